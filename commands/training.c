// training.c - from the options of a trainer to a model that is open for training in a run folder.
//
// What it is:  choosing what is trained, refusing options that would do nothing, the table of memory, the run folder of a
//              new or an earlier start.
// What it is not: data or steps (sft.c, grpo.c), or what a checkpoint is (../io/run.c).
// Read before: training.h.  Read next: sft.c.
#include "training.h"

// ---------------------------------------------------------------------------------------------------------- what to train

// Whether `names` (comma-separated) has the word.
static bool listed(const char *names, const char *word, size_t len) {
    for (const char *p = names; p && *p;) {
        size_t n = strcspn(p, ",");
        if (n == len && !memcmp(p, word, n)) return true;
        p += n + (p[n] == ',');
    }
    return false;
}
// A freeze rule names whole parts of a parameter's name: "blocks.0" is in "visual.blocks.0.norm1.weight".
static bool name_has(const char *name, const char *part, size_t len) {
    char padded[200], wanted[200];
    snprintf(padded, sizeof padded, ".%s.", name), snprintf(wanted, sizeof wanted, ".%.*s.", (int)len, part);
    return strstr(padded, wanted) != NULL;
}

static bool choose_weights(const Training *s, Model *m, Err *e) {
    static const char *const towers[] = {
        [TOWER_VISION] = "vision", [TOWER_MERGER] = "merger", [TOWER_DECODER] = "decoder"};
    for (const char *p = s->full; *p;) {
        size_t n = strcspn(p, ",");
        if (!n || !listed("decoder,vision,merger", p, n))
            return err_set(e, "E-CL-01", AT(.file = "command line", .field = "--full"),
                           "expected decoder, vision, merger; found %s; do: give such a list", quoted(p, n));
        p += n + (p[n] == ',');
    }
    int64_t trained = 0;
    for (int64_t i = 0; i < m->n_params; i++) {
        Param *p = &m->params[i];
        p->trained = !p->tied && listed(s->full, towers[p->tower], strlen(towers[p->tower]));
    }
    for (const char *f = s->freeze; f && *f;) {
        size_t n = strcspn(f, ",");
        int64_t hits = 0;
        for (int64_t i = 0; i < m->n_params; i++)
            if (name_has(m->params[i].name, f, n)) m->params[i].trained = false, hits++;
        if (!hits)
            return err_set(e, "E-CL-01", AT(.file = "command line", .field = "--freeze"),
                           "expected parts of parameter names; found %s, which is in none; do: see surgr1 check "
                           "safetensors --print FILE",
                           quoted(f, n));
        f += n + (f[n] == ',');
    }
    for (int64_t i = 0; i < m->n_params; i++) trained += m->params[i].trained;
    return trained || err_set(e, "E-CL-01", AT(.file = "command line", .field = "--freeze"),
                              "expected something left to train; found everything frozen; do: freeze less");
}

static bool choose_trained(Training *s, bool *dropout, Err *e) {
    Model *m = &s->m;
    const char *adapter = s->from.step >= 0 ? s->from.dir : s->adapter;
    if (s->full) return choose_weights(s, m, e);
    if (adapter && !lora_load(m, adapter, e)) return false;
    LoraOptions o = {.targets = s->lora,
                     .r = s->rank,
                     .alpha = s->alpha_lora,
                     .rslora = s->rslora,
                     .dropout = s->dropout,
                     .seed = (uint64_t)s->seed};
    if (!adapter && !lora_init(m, &o, e)) return false;
    *dropout = m->dropout || m->vision.dropout;
    return true;
}

bool trains_decoder(const Training *s) {
    bool decoder = false;
    for (int64_t i = 0; i < s->m.n_params; i++)
        decoder |= s->m.params[i].trained && s->m.params[i].tower == TOWER_DECODER;
    return decoder;
}

bool training_load(Training *s, bool *dropout, Err *e) {
    LoadOptions options = {.allow_nonfinite = s->allow_nonfinite, .force_f32 = s->dtype == DTYPE_F32};
    if (s->paper) {
        if (!model_lay_out(&s->m, s->model, s->dtype == DTYPE_F32 ? F32 : BF16, e)) return false;
        return choose_trained(s, dropout, e);
    }
    const Ops *d = device_of(s->device, s->dtype, CUDA_RUNGS(*s), e);
    size_t all;
    if (d && d->memory) d->memory(&s->guards.device_free, &all);
    if (!d || !model_load(&s->m, s->model, d, options, e)) return false;
    s->m.c.vision.min_pixels = s->c.vision.min_pixels, s->m.c.vision.max_pixels = s->c.vision.max_pixels;
    s->m.vision.c = s->m.c.vision;
    return choose_trained(s, dropout, e);
}

// --------------------------------------------------------------------------------------------------------------- memory

// A line of the table: what a dry look is asked for, else news.
static void memory_line(const Training *s, const char *fmt, ...) PRINTF_LIKE(2, 3);
static void memory_line(const Training *s, const char *fmt, ...) {
    char line[300];
    va_list args;
    va_start(args, fmt);
    vsnprintf(line, sizeof line, fmt, args);
    va_end(args);
    if (s->paper) printf("%s\n", line);
    else note("%s", line);
}
static void memory_row(const Training *s, const char *role, size_t bytes, const char *what) {
    if (bytes) memory_line(s, "  %-22s %10.1f MB%s%s", role, (double)bytes / 1e6, *what ? "  " : "", what);
}

PassBytes plan_bytes(const Training *s, const SftPlan *p, bool backward, int64_t keep) {
    int32_t *targets = alloc_or_die((size_t)p->tokens, sizeof *targets, "the memory table");
    for (int64_t i = p->targets; i < p->tokens; i++) targets[i] = -1;
    Span *spans = alloc_or_die((size_t)p->spans, sizeof *spans, "the memory table");
    // one picture of as many patches stands for all of them
    Grid grid = {1, s->c.vision.merge, p->patches / s->c.vision.merge};
    TrainBatch b = {.N = p->tokens,
                    .targets = targets,
                    .spans = spans,
                    .n_spans = p->spans,
                    .grids = &grid,
                    .n_grids = p->patches > 0,
                    .keep = keep};
    PassBytes pass = model_pass_bytes(&s->m, &b, backward);
    free(targets), free(spans);
    return pass;
}
static size_t sum_of(PassBytes p) { return p.text + p.vision + p.pictures; }
void pass_at_least(PassBytes *p, PassBytes other) {
    if (other.text > p->text) p->text = other.text;
    if (other.vision > p->vision) p->vision = other.vision;
    if (other.pictures > p->pictures) p->pictures = other.pictures;
}
// Answers are drawn in the arena of the decoder's activations.
static PassBytes pass_of(LargestPass largest, void *ctx, int64_t keep, GenerateBytes sampling) {
    PassBytes p = largest(ctx, keep);
    pass_at_least(&p, (PassBytes){.text = sampling.activations});
    return p;
}

// Bytes that all of it may take. here: what is on the device already.
static size_t memory_room(const Training *s, size_t here) {
    const Ops *d = s->m.d;
    size_t left, all;
    if (d->alloc == ops_ref()->alloc) return (size_t)memory_limit();
    if (s->paper) return s->max_memory ? (size_t)s->max_memory : SIZE_MAX;
    d->memory(&left, &all);
    return here + left;
}
static bool memory_fits(const Training *s, size_t total, size_t room, const char *advice, Err *e) {
    bool host = s->m.d->alloc == ops_ref()->alloc;
    return total <= room ||
           err_set(e, "E-ME-01", AT(.file = "memory"),
                   "expected at most %.1f MB%s; found a need for %.1f MB; do: lower %s or --keep, or %s",
                   (double)room / 1e6,
                   host       ? " (--max-memory)"
                   : s->paper ? " (--device-memory)"
                              : ", which is what the device has left",
                   (double)total / 1e6, advice, host ? "raise --max-memory" : "take a larger device");
}

bool memory_table(Training *s, const SftPlan *p, LargestPass largest, void *ctx, GenerateBytes sampling,
                  const MemoryRow *more, int n, const char *advice, Err *e) {
    const Model *m = &s->m;
    bool host = m->d->alloc == ops_ref()->alloc;
    size_t own, gradients, mapped = 0, here = m->weights.size + m->adapter.size;
    int64_t trained = 0, all = 0;
    for (int64_t i = 0; i < m->n_params; i++) {
        const Param *q = &m->params[i];
        size_t size = (size_t)(q->rows * q->cols);
        if (q->tied) continue;
        all += (int64_t)size;
        if (m->mapped && !q->owned && host) mapped += size * type_size(q->w->v.type);
        if (q->trained) trained += (int64_t)size;
    }
    model_train_bytes(m, &own, &gradients);
    size_t moments = optimizer_bytes(m), lasting = here + own + gradients + moments;
    lasting += sampling.cache + sampling.logits + sampling.pictures;
    for (int i = 0; i < n; i++)
        if (host || !more[i].host) lasting += more[i].bytes;
    size_t room = memory_room(s, here), most = host ? room : room / 10 * 9; // the driver and libraries take their part
    if (s->keep < 0) {
        s->keep = s->c.L > s->c.vision.depth ? s->c.L : s->c.vision.depth;
        if (room == SIZE_MAX) s->keep = 0; // nobody said how much there is
        while (s->keep > 0 && lasting + sum_of(pass_of(largest, ctx, s->keep, sampling)) > most) s->keep--;
    }
    PassBytes pass = pass_of(largest, ctx, s->keep, sampling);
    size_t total = lasting + sum_of(pass);
    memory_line(s, "trained: %lld of %lld parameters (%.2f %%)", (long long)trained, (long long)all,
                100. * (double)trained / (double)all);
    memory_line(s, "memory on %s, for at most %lld tokens and %lld patches in a pass:", m->d->name,
                (long long)p->tokens, (long long)p->patches);
    memory_row(s, "mapped weights", mapped, "the checkpoint's own pages, shared with the system");
    memory_row(s, "weights", m->weights.size, "converted or small");
    memory_row(s, "adapter", m->adapter.size, "A and B, F32");
    memory_row(s, "trained weights", own, "F32 master copies");
    memory_row(s, "gradients", gradients, "F32");
    memory_row(s, "optimizer", moments, "two moments, F32");
    for (int i = 0; i < n; i++) memory_row(s, more[i].role, more[i].bytes, more[i].what);
    memory_row(s, "key/value cache", sampling.cache, "of the answers that are drawn together");
    memory_row(s, "logits", sampling.logits, "of their next tokens");
    char kept[80];
    snprintf(kept, sizeof kept, "decoder and head; %lld blocks of each tower are kept", (long long)s->keep);
    memory_row(s, "activations", pass.text, kept);
    memory_row(s, "vision activations", pass.vision, "");
    memory_row(s, "picture rows", pass.pictures + sampling.pictures, "");
    memory_row(s, "total", total, mapped ? "without the mapped weights" : "");
    s->guards.foretold = total;
    return memory_fits(s, total, room, advice, e);
}

// -------------------------------------------------------------------------------------------------------------- options

bool on_command_line(const Training *s, const void *value) {
    const char *origin = option_of(s->command->options, value)->origin;
    return origin && !strcmp(origin, "command line");
}

bool none_idle(const Training *s, const IdleRule *rules, size_t n, Err *e) {
    for (size_t k = 0; k < n; k++) {
        char field[40];
        snprintf(field, sizeof field, "--%s", option_of(s->command->options, rules[k].value)->name);
        if (!rules[k].used && on_command_line(s, rules[k].value))
            return err_set(e, "E-CL-01", AT(.file = "command line", .field = field),
                           "expected it beside %s; found none, so that it would do nothing; do: add that, or leave it "
                           "out",
                           rules[k].beside);
    }
    return true;
}

// What is trained is one choice: made on the command line it takes the place of the one in --config.
static void choose_way(Training *s) {
    const char **ways[] = {&s->lora, &s->full, &s->adapter, &s->freeze};
    if (!on_command_line(s, &s->lora) && !on_command_line(s, &s->full) && !on_command_line(s, &s->adapter)) return;
    for (size_t k = 0; k < sizeof ways / sizeof *ways; k++)
        if (!on_command_line(s, ways[k])) *ways[k] = NULL, option_of(s->command->options, ways[k])->origin = NULL;
}

bool training_options(Training *s, JsonDoc *config, Err *e) {
    if (s->config && !options_read(s->command, s->config, config, e)) return false;
    choose_way(s);
    const char *missing = !s->model ? "--model DIR" : !s->out && !s->dry_run ? "--out RUN" : NULL;
    int ways = (s->lora != NULL) + (s->full != NULL) + (s->adapter != NULL);
    bool fresh = !s->full && !s->adapter;
    const IdleRule rules[] = {
        {&s->rank, fresh, "a new adapter (--lora)"},
        {&s->alpha_lora, fresh, "a new adapter (--lora)"},
        {&s->rslora, fresh, "a new adapter (--lora)"},
        {&s->dropout, fresh, "a new adapter (--lora)"},
        {&s->guards.old_keys, !s->full, "an adapter to export"},
        {&s->export_dtype, s->full != NULL, "--full WHAT"},
        {&s->schedule.decay_part, s->rate == SCHEDULE_WSD, "--schedule wsd"},
    };
    if (missing)
        return err_set(e, "E-CL-01", AT(.file = "command line"), "expected %s; found none; do: see surgr1 %s --help",
                       missing, s->command->name);
    if (ways > 1)
        return err_set(e, "E-CL-01", AT(.file = "command line"),
                       "expected one of --lora, --full and --adapter; found %d; do: choose one", ways);
    if (s->freeze && !s->full)
        return err_set(e, "E-CL-01", AT(.file = "command line", .field = "--freeze"),
                       "expected it beside --full; found it alone; do: leave it out, LoRA freezes all else");
    if (!none_idle(s, rules, sizeof rules / sizeof *rules, e)) return false;
    if (!ways) s->lora = "decoder,vision,merger";
    s->schedule.kind = (enum ScheduleKind)s->rate;
    s->schedule.warmup = s->warmup;
    if (s->warmup) s->warmup_part = 0;
    s->adam.lr[TOWER_DECODER] = s->lr;
    s->adam.lr[TOWER_VISION] = s->lr_vision > 0 ? s->lr_vision : s->lr;
    s->adam.lr[TOWER_MERGER] = s->lr_merger > 0 ? s->lr_merger : s->lr;
    static const char *const types[] = {"keep", "f32", "bf16"};
    s->guards.skip_outliers = s->outliers == 1;
    s->guards.export_type = types[s->export_dtype];
    return true;
}

void training_list(const Training *s) {
    list_options(s->command->options, "command line", "given");
    if (s->config) list_options(s->command->options, s->config, "from --config");
    list_options(s->command->options, "", "defaults");
}

bool training_config(Training *s, Err *e) {
    TensorFile f;
    if (!config_load(&s->c, s->model, e)) return false;
    if (s->min_pixels) s->c.vision.min_pixels = s->min_pixels;
    if (s->max_pixels) s->c.vision.max_pixels = s->max_pixels;
    if (!pixel_limits_ok(&s->c.vision, e) || !tokenizer_load(&s->t, s->model, e) || !chat_template_check(s->model, e))
        return false;
    // what of the base a resume compares: names, types, shapes and sizes of its tensors, or all their bytes
    if (!tensors_open_folder(&f, s->model, e)) return false;
    tensors_fingerprint(&f, s->hash_base, s->base);
    tensors_close(&f);
    return true;
}

// ----------------------------------------------------------------------------------------------------------- run folder

void training_config_text(const Training *s, const char *inputs, Text *out) {
    Text origins = {0};
    text_addf(out, "{\"command\":{\"name\":\"%s\",\"version\":\"" SURGR1_VERSION "\"},\"options\":", s->command->name);
    options_json(s->command->options, out, &origins);
    text_addf(out, ",\"origins\":%s,\"inputs\":{\"base\":\"%s\"%s}}\n", origins.p, s->base, inputs);
    text_free(&origins);
}

bool training_reopen(Training *s, const char *config, const char *const *free_options, Err *e) {
    if (!folder_exists(s->out)) return true;
    if (!run_open(&s->run, s->out, e) || !run_newest(&s->run, &s->from, e)) return false;
    return s->from.step < 0 ||
           (run_config(&s->run, config, free_options, s->anyway.p, e) && run_owns(&s->run, &s->from, e));
}

bool training_open(Training *s, const char *config, const char *const *free_options, Err *e) {
    char path[1300];
    return s->from.step >= 0 || ((s->run.lock >= 0 || run_open(&s->run, s->out, e)) &&
                                 path_join(path, sizeof path, s->out, "config.json", e) &&
                                 file_write_atomic(path, config, strlen(config), e) &&
                                 run_config(&s->run, config, free_options, s->anyway.p, e));
}

// A resume with other options is told where the run's other beginnings are; config.json stays what it began with.
static bool log_anyway(Training *s, Err *e) {
    if (s->from.step < 0 || !s->anyway.n) return true;
    Text t = {0};
    text_addf(&t, "\"ev\":\"resume_anyway\",\"step\":%lld,\"fields\":[", (long long)s->from.step);
    for (int i = 0; i < s->anyway.n; i++) {
        text_addf(&t, "%s", i ? "," : "");
        text_add_json_string(&t, s->anyway.p[i], utf8_complete(s->anyway.p[i], strnlen(s->anyway.p[i], 80)));
    }
    text_addf(&t, "]");
    bool ok = log_write(&s->run.timing, t.p, e);
    text_free(&t);
    return ok;
}

bool training_logs(Training *s, const char *config, Err *e) {
    if (!run_logs_open(&s->run, &s->from, e) || !log_anyway(s, e)) return false;
    if (s->from.step >= 0) return true;
    Text fenced = {0};
    text_addf(&fenced, "```\n%s\n```\n", config);
    bool ok = events_text(&s->run.events, "config", 0, fenced.p, fenced.len, e);
    text_free(&fenced);
    return ok;
}

int training_close(Training *s, bool ok, bool finished, const Err *e) {
    if (finished) printf("%s/export\n", s->out);
    else if (ok && !s->dry_run) note("stopped on request; start the same command again to resume");
    warn_summary();
    run_close(&s->run), checkpoint_free(&s->from);
    model_free(&s->m), tokenizer_free(s->t);
    pool_stop();
    return !ok ? err_report(e) : finished || s->dry_run ? EXIT_OK : EXIT_STOPPED;
}
