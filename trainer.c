// trainer.c - what every trainer does around its updates: logs, guards against bad numbers, checkpoints, the export.
//
// What it is:  robustness.md sections 2.6 and 3, once for sft.c and grpo_run.c: which steps are skipped and when a run has
//              to stop, what of the optimizer and of the guards a checkpoint holds, and what is written at the end.
// What it is not: an update (train.c), or the order of data (sft.c, grpo_run.c).
// Read before: train.c, io/run.c.  Read next: sft.c.
#include "surgr1.h"

// ---------------------------------------------------------------------------------------------------------------- logs

bool trainer_log(Trainer *t, Text *members, Err *e) {
    bool ok = log_write(&t->run->log, members->p, e);
    text_free(members);
    return ok;
}
void trainer_number(Text *t, const char *name, double v) { // JSON knows no NaN
    text_addf(t, ",\"%s\":", name);
    if (isfinite(v)) text_add_json_number(t, v);
    else text_addf(t, "\"%s\"", isnan(v) ? "nan" : v > 0 ? "inf" : "-inf");
}
bool trainer_scalar(Trainer *t, const char *tag, double v, Err *e) {
    return events_scalar(&t->run->events, tag, t->step, v, e);
}
bool trainer_due(int64_t every, int64_t step) { return every > 0 && step % every == 0; }

// -------------------------------------------------------------------------------------------------------------- state

void trainer_state_print(const Trainer *t, Text *out) {
    text_addf(out,
              "\"step\":%lld,\"updates\":[%lld,%lld,%lld],\"skipped\":%lld,\"in_a_row\":%lld,\"outliers\":%lld,"
              "\"skips\":[",
              (long long)t->step, (long long)t->opt.updates[0], (long long)t->opt.updates[1],
              (long long)t->opt.updates[2], (long long)t->skipped, (long long)t->in_a_row, (long long)t->outliers);
    for (int64_t i = 0; i < t->n_skips; i++) text_addf(out, "%s%lld", i ? "," : "", (long long)t->skips[i]);
    text_addf(out, "],\"losses\":");
    window_print(&t->losses, out);
    text_addf(out, ",\"norms\":");
    window_print(&t->norms, out);
}

bool trainer_state_bad(const Checkpoint *c, const char *what, Err *e) {
    return err_set(e, "E-CK-04", AT(.file = c->state.file),
                   "expected the state of %s; found something else; do: resume with the program version that wrote it",
                   what);
}

bool trainer_state_read(Trainer *t, const Checkpoint *c, const char *what, Err *e) {
    const Json *j = c->state.root, *skips = json_get(j, "skips"), *updates = json_get(j, "updates");
    int64_t most = INT64_MAX;
    bool ok = json_int(&c->state, j, "step", true, 0, most, &t->step, e) &&
              json_int(&c->state, j, "skipped", true, 0, most, &t->skipped, e) &&
              json_int(&c->state, j, "in_a_row", true, 0, most, &t->in_a_row, e) &&
              json_int(&c->state, j, "outliers", true, 0, most, &t->outliers, e);
    if (!ok) return false;
    ok = updates && updates->type == JSON_ARRAY && updates->count == 3 && skips && skips->type == JSON_ARRAY &&
         skips->count <= TRAINER_SKIPS && window_read(&t->losses, json_get(j, "losses")) &&
         window_read(&t->norms, json_get(j, "norms"));
    for (const Json *k = ok ? skips->child : NULL; k; k = k->next) t->skips[t->n_skips++] = k->i;
    const Json *u = ok ? updates->child : NULL;
    for (int tower = 0; u; tower++, u = u->next) t->opt.updates[tower] = u->i;
    return ok || trainer_state_bad(c, what, e);
}

// --------------------------------------------------------------------------------------------------------- checkpoints

// When checkpoints are made is no result of a run (a signal makes one too): timing.jsonl tells of them, run.jsonl does not.
// What follows a checkpoint, and also the first thing after a resume from it: a kill may have come between.
// Behind a step that went bad every older one stays: nobody knows yet which of them will be wanted.
static bool rotate(Trainer *t, int64_t best, Err *e) {
    if (t->in_a_row || t->outliers) return true;
    return checkpoint_rotate(t->run, t->o.keep_last, t->o.keep_every, best, e);
}

bool trainer_finite(Trainer *t, Err *e) {
    const char *name = train_find_nonfinite(&t->opt, t->m);
    return !name || err_set(e, "E-NU-07", AT(.file = t->run->dir, .tensor = name),
                            "expected finite weights and moments after step %lld; found some that are not; do: lower "
                            "the learning rate and begin in another folder (no checkpoint was written of them)",
                            (long long)t->step);
}

bool trainer_save(Trainer *t, const char *state, int64_t best, bool last, CheckpointFiles more, void *ctx, Err *e) {
    char dir[1300];
    bool enough = true;
    if (!trainer_finite(t, e)) return false;
    if (!checkpoint_begin(t->run, t->step, train_bytes(&t->opt), dir, sizeof dir, &enough, e)) return false;
    if (!enough) {
        if (++t->disk_full < 3 && !last) return true;
        return err_set(
            e, "E-WR-01", AT(.file = t->run->dir),
            "expected room for a checkpoint; found none%s; do: free space, then start the same command again",
            last ? " at the last step" : " for the third time in a row");
    }
    t->disk_full = 0;
    bool ok = train_save(&t->opt, t->m, dir, e) && (!more || more(ctx, dir, e));
    if (!ok) checkpoint_abort(t->run, dir);
    return ok && checkpoint_commit(t->run, t->step, dir, state, e) && rotate(t, best, e);
}

bool trainer_resume(Trainer *t, const Checkpoint *c, int64_t best, Err *e) {
    return train_load_moments(&t->opt, t->m, c->dir, e) && (t->m->lora || train_load_values(t->m, c->dir, e)) &&
           rotate(t, best, e);
}

// -------------------------------------------------------------------------------------------------------------- guards

// The first op of a forward pass whose output is not finite: "text.layer.3 matmul".
static void look_for_nonfinite(void *ctx, const Ops *d, const char *op, Mat y) {
    Culprit *c = ctx;
    if (c->op[0] || y.type == I32) return;
    int64_t n = y.rows * y.cols;
    char *host = alloc_or_die((size_t)n + 1, type_size(y.type), "the search for the first bad value");
    d->download(mat(host, y.rows, y.cols, y.type), y);
    for (int64_t i = 0; i < n && !c->op[0]; i++) {
        float v = y.type == F32 ? ((float *)(void *)host)[i] : bf16_to_f32(((uint16_t *)(void *)host)[i]);
        if (!isfinite(v)) snprintf(c->op, sizeof c->op, "%s %s", trace_place(), op);
    }
    free(host);
}
void culprit_watch(Culprit *c) { op_trace_set(c ? look_for_nonfinite : NULL, c); }

// Whether the run has to stop: three skips in a row, or more than 1 % (and at least 10) of the last 1,000 steps.
static bool too_many_skips(Trainer *t) {
    if (t->n_skips == TRAINER_SKIPS)
        memmove(t->skips, t->skips + 1, (TRAINER_SKIPS - 1) * sizeof *t->skips), t->n_skips--;
    t->skips[t->n_skips++] = t->step;
    int64_t recent = 0;
    for (int64_t i = 0; i < t->n_skips; i++) recent += t->skips[i] > t->step - 1000;
    return t->in_a_row >= t->o.max_skips || recent > 10;
}

bool trainer_skip(Trainer *t, const char *bad, const char *ids, double norm, const Culprit *culprit, Err *e) {
    Text gradients = {0}, line = {0};
    char found[400];
    t->skipped++, t->in_a_row++;
    if (!bad) describe_nonfinite(&t->opt, &gradients);
    if (bad)
        snprintf(found, sizeof found, "%.120s in sample %.200s",
                 culprit->op[0] ? culprit->op : "no bad op on a second look", bad);
    else
        snprintf(found, sizeof found, "gradient norm %g with samples %.150s; bad in %.200s", fabs(norm), ids,
                 gradients.p ? gradients.p : "");
    warn(bad ? "E-NU-02" : "E-NU-03", AT(.file = t->run->dir, .sample = bad ? bad : ids),
         "expected a finite %s in step %lld; found %s; do: look at the sample (the step is skipped)",
         bad ? "loss" : "gradient", (long long)t->step, found);
    text_addf(&line, "\"ev\":\"skip\",\"step\":%lld,\"code\":\"%s\",\"found\":", (long long)t->step,
              bad ? "E-NU-02" : "E-NU-03");
    text_add_json_string(&line, found, strlen(found));
    text_free(&gradients);
    if (!trainer_log(t, &line, e)) return false;
    if (!too_many_skips(t)) return true;
    char path[1300], report[600];
    snprintf(report, sizeof report, "{\"step\":%lld,\"skipped\":%lld,\"in_a_row\":%lld}\n", (long long)t->step,
             (long long)t->skipped, (long long)t->in_a_row);
    if (!path_join(path, sizeof path, t->run->dir, "nan-report.json", e) ||
        !file_write_atomic(path, report, strlen(report), e))
        return false;
    return err_set(
        e, "E-NU-04", AT(.file = t->run->dir),
        "expected finite numbers; found %lld skipped steps in a row, %lld in all, the last: %.300s; do: mend "
        "the sample or lower the learning rate, and begin in another folder",
        (long long)t->in_a_row, (long long)t->skipped, found);
}

bool trainer_far(Trainer *t, const char *ids, double loss, double norm, bool *skip) {
    t->in_a_row = 0;
    bool far = outlier(&t->norms, norm);
    far |= outlier(&t->losses, loss);
    t->outliers = far ? t->outliers + 1 : 0;
    *skip = far && t->o.skip_outliers && t->outliers <= 5;
    if (far)
        warn("E-NU-05", AT(.file = t->run->dir, .sample = ids),
             "expected step %lld to be like the ones before; found loss %.4g and gradient norm %.4g; do: %s",
             (long long)t->step, loss, norm,
             *skip ? "look at its samples (the step is skipped)" : "look at its samples when it comes often");
    if (*skip) t->skipped++;
    return far;
}

// -------------------------------------------------------------------------------------------------------------- export

// The trained values of a checkpoint in a model of their own, on the host.
static bool load_of(Model *m, const Trainer *t, const char *dir, Err *e) {
    if (!model_load(m, t->m->c.dir, ops_ref(), (LoadOptions){.allow_nonfinite = true}, e)) return false;
    if (t->m->lora) return lora_load(m, dir, e);
    for (int64_t i = 0; i < m->n_params; i++) m->params[i].trained = t->m->params[i].trained;
    return model_train_open(m, e) && train_load_values(m, dir, e);
}

static bool write_result(const Model *m, const Trainer *t, const char *dir, Err *e) {
    char temporary[1300];
    if (!m->lora) return model_save(m, dir, (SaveOptions){.type = t->o.export_type}, e);
    return path_join(temporary, sizeof temporary, t->run->dir, ".tmp-export", e) && folder_begin(temporary, e) &&
           lora_save(m, temporary, t->o.old_keys, e) && folder_finish(temporary, dir, e);
}

static bool export_result(Trainer *t, int64_t step, Err *e) {
    char dir[1300], best[1300], name[60];
    if (!path_join(dir, sizeof dir, t->run->dir, "export", e)) return false;
    if (!path_join(best, sizeof best, dir, t->m->lora ? "adapter_config.json" : "config.json", e)) return false;
    if (file_exists(best)) return true; // the folder appeared whole, by the end of an earlier start
    if (step < 0 || step == t->step) return write_result(t->m, t, dir, e);
    Model m = {0};
    snprintf(name, sizeof name, "ckpt/step-%09lld", (long long)step);
    note("export of step %lld, the best one", (long long)step);
    bool ok = path_join(best, sizeof best, t->run->dir, name, e) && checkpoint_verify(best, e) &&
              load_of(&m, t, best, e) && write_result(&m, t, dir, e);
    model_free(&m);
    return ok;
}

void trainer_memory(const Trainer *t) {
    const Ops *d = t->m->d;
    size_t left, all;
    if (!t->o.device_free || !d->memory || t->step != t->first_step + 1) return;
    d->memory(&left, &all);
    double taken = (double)t->o.device_free - (double)left, held = (double)memory_held(d);
    note("device memory after the first step: %.1f MB taken, %.1f MB of it by arenas (the table: %.1f MB), %.1f MB by "
         "the driver, libraries and other programs; %.1f of %.1f MB are free",
         taken / 1e6, held / 1e6, (double)t->o.foretold / 1e6, (taken - held) / 1e6, (double)left / 1e6,
         (double)all / 1e6);
}

bool trainer_end(Trainer *t, int64_t step, Err *e) {
    Text end = {0};
    text_addf(&end, "\"ev\":\"end\",\"step\":%lld,\"skipped\":%lld", (long long)t->step, (long long)t->skipped);
    return trainer_log(t, &end, e) && log_sync(&t->run->log, e) &&
           (!t->run->with_rollouts || log_sync(&t->run->rollouts, e)) && log_sync(&t->run->timing, e) &&
           events_sync(&t->run->events, e) && export_result(t, step, e);
}
