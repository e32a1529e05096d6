// grpo_run.c - reinforcement learning with group-relative advantages: stage 3 of Surg-R1, the last stage of Surgery-R1.
//
// What it is:  the loop around grpo.c. Draw G completions of each prompt in one batch, judge them, turn rewards into
//              advantages (eq. 3) and entropies into weights (eq. 6) once over the whole rollout, and make one or several
//              updates of it (eq. 7); beside that what a run must know about itself: the gate before step 0, weak tasks,
//              rewards without variance, flat groups, contradictions, evaluations.
// What it is not: the formulas (grpo.c), the rewards (surgery/reward.c), or guards and checkpoints (trainer.c).
// Read before: grpo.c, trainer.c, generate.c.  Read next: commands/grpo.c, which fills the options.
//
// A completion is a pure function of (seed, rollout, prompt's place in it, member). What was drawn, how it was judged and the
// old log-probabilities are in a checkpoint that falls between the updates of one rollout, so that a run that was killed
// goes on to the same bits. A rollout during which a stop is asked for is thrown away and drawn again.
#include "surgr1.h"

enum { RANDOM_ROLLOUT = 66 };                     // purpose of the Philox counter
enum { DRAW_TRAIN, DRAW_GATE, DRAW_EVAL };        // what is drawn
enum { FLAT_WARNING = 50, DROPPED_LIMIT = 20 };   // rollouts in a row
enum { CONSTANT_WARNING = 10, GATE_ANSWERS = 4 }; // rollouts between alarms; answers to each prompt of the gate
enum { LOGGED_BYTES = 40000 };                    // of the tokens of one completion in rollouts.jsonl

// --------------------------------------------------------------------------------------------------------------- state

typedef struct Buffer {         // a rollout: row i is member i % G of group i / G; N = first[rows]
    int64_t groups, rows, used; // updates made of it
    int64_t *index;             // [groups] which prompt
    Prompt *prompts;            // [groups]
    int64_t *first;             // [rows + 1] of its tokens
    int32_t *ids;               // [N]
    double *old_lp, *ref_lp;    // [N] of the policy that drew them, of the reference (NULL: no KL)
    double *entropy, *weight;   // [N]
    double *lp;                 // [N] of the policy now
    double *drawn;              // [N] what the sampler said; NULL behind a resume
    uint8_t *mask;              // [N]
    double *advantage;          // [rows]
    bool *stopped, *flat;       // [rows] by an end token; of a group without spread
} Buffer;

typedef struct Reference {
    bool other;   // values of its own; else the adapter is off
    Mat *values;  // [opt.n]
    float *scale; // [n_params] of a LoRA pair
    Arena arena;
} Reference;

typedef struct Shown { // of the rollout, in the lines of its steps
    double reward, right, format, length, fraction;
    int64_t flat;
} Shown;

typedef struct Drift { // of the training pass against the sampler, over tokens of the first update
    double sum, most, ratio, least_ratio, most_ratio;
    int64_t n;
} Drift;

typedef struct Grpo {
    Trainer t;
    const Tokenizer *tok;
    const PromptSet *train, *eval; // eval: NULL when there is none
    const Dataset *sft;            // NULL: no demonstrations
    const GrpoOptions *o;
    GenerationConfig g;
    int64_t *order, n; // prompts of the tasks that are trained
    int64_t steps;
    Schedule schedule;
    Reference ref;
    Pack pack;
    float *row_dlp, *row_lp, *row_entropy; // of one pass
    int64_t cap;
    // what a checkpoint holds
    bool left_out[TASKS];
    int64_t rollouts, seen, sft_seen, redraws, flat_rollouts, dropped_rollouts;
    int64_t constant[REWARD_TERMS]; // rollouts in a row without variance
    Buffer b;                       // groups 0: none
    // not saved
    bool stoppable, thrown; // whether a stop ends what is drawn; it did
    double draw_seconds;
    int64_t drawn_tokens;
    Shown shown;
    double score_seconds;
} Grpo;

static void *room(int64_t n, size_t size) { return alloc_or_die((size_t)n + 1, size, "a rollout"); }

static void buffer_free(Buffer *b) {
    for (int64_t g = 0; b->prompts && g < b->groups; g++) prompt_free(&b->prompts[g]);
    free(b->index), free(b->prompts), free(b->first), free(b->ids), free(b->old_lp), free(b->ref_lp);
    free(b->entropy), free(b->weight), free(b->lp), free(b->drawn), free(b->mask), free(b->advantage), free(b->stopped),
        free(b->flat);
    *b = (Buffer){.groups = 0};
}

static int64_t prompt_at(const Grpo *s, int64_t seen) {
    return s->order[shuffled(s->o->seed, seen / s->n, seen % s->n, s->n)];
}

// ------------------------------------------------------------------------------------------------- what was answered

typedef struct Count {
    int64_t n, right, tokens;
} Count;
typedef struct Tally { // over completions
    Count all, task[TASKS], level[4];
    int64_t status[ANSWER_STATUSES], truncated, empty;
    int64_t judged, contradicted; // answers whose terms can be looked for in the trace; that are not there
    int64_t header[3];            // "Level k:" with a text
    int64_t asked[REWARD_TERMS];
    double term[REWARD_TERMS], low[REWARD_TERMS], high[REWARD_TERMS], total;
} Tally;

static void count(Count *c, const Reward *r, const Completion *done) {
    c->n++, c->right += r->right, c->tokens += done->ids.n;
}
static void tally(Tally *t, const Prompt *q, const Reward *r, const Completion *done) {
    const TaskItem *item = &q->task.item;
    count(&t->all, r, done), count(&t->task[item->task], r, done);
    count(&t->level[task_info(item->task)->level], r, done);
    t->status[r->answer.status]++, t->truncated += !done->stopped, t->empty += !r->answer.text.len;
    int against = synth_contradicts(r);
    t->judged += against >= 0, t->contradicted += against == 1;
    for (int k = 0; k < 3; k++) t->header[k] += r->answer.level[k].found && r->answer.level[k].colon;
    for (int k = 0; k < REWARD_TERMS; k++) {
        double v = r->term[k];
        if (isnan(v)) continue;
        t->low[k] = t->asked[k] ? fmin(t->low[k], v) : v, t->high[k] = t->asked[k] ? fmax(t->high[k], v) : v;
        t->asked[k]++, t->term[k] += v;
    }
    t->total += r->total;
}
static double share(int64_t part, int64_t n) { return n ? (double)part / (double)n : (double)NAN; }
static double term_mean(const Tally *t, enum RewardTerm k) {
    return t->asked[k] ? t->term[k] / (double)t->asked[k] : (double)NAN;
}

static void member(Text *out, const char *name, double v) { // one that exists
    if (!isnan(v)) trainer_number(out, name, v);
}
static void add_counts(Text *out, const char *title, const Count *c, int n, const char *(*name)(int)) {
    text_addf(out, ",\"%s\":{", title);
    bool any = false;
    for (int k = 0; k < n; k++) {
        if (!c[k].n) continue;
        text_addf(out, "%s\"%s\":{\"n\":%lld", any ? "," : "", name(k), (long long)c[k].n), any = true;
        trainer_number(out, "right", share(c[k].right, c[k].n)),
            trainer_number(out, "length", share(c[k].tokens, c[k].n));
        text_addf(out, "}");
    }
    text_addf(out, "}");
}
static const char *task_name(int k) { return task_info((enum Task)k)->name; }
static const char *level_name(int k) {
    static const char *const names[4] = {"0", "1", "2", "3"};
    return names[k];
}
// Members of a line: everything that is known of these completions.
static void tally_print(const Tally *t, Text *out) {
    text_addf(out, ",\"completions\":%lld", (long long)t->all.n);
    trainer_number(out, "reward", t->total / (double)t->all.n);
    text_addf(out, ",\"terms\":{");
    for (int k = 0, n = 0; k < REWARD_TERMS; k++) {
        if (!t->asked[k]) continue;
        text_addf(out, "%s\"%s\":", n++ ? "," : "", reward_term_names[k]);
        text_add_json_number(out, term_mean(t, (enum RewardTerm)k));
    }
    text_addf(out, "}");
    trainer_number(out, "right", share(t->all.right, t->all.n));
    trainer_number(out, "length", share(t->all.tokens, t->all.n));
    trainer_number(out, "truncated", share(t->truncated, t->all.n));
    trainer_number(out, "empty", share(t->empty, t->all.n));
    trainer_number(out, "unparsable", share(t->all.n - t->status[ANSWER_OK], t->all.n));
    member(out, "contradictions", share(t->contradicted, t->judged));
    text_addf(out, ",\"status\":{");
    for (int k = 0, n = 0; k < ANSWER_STATUSES; k++)
        if (t->status[k])
            text_addf(out, "%s\"%s\":%lld", n++ ? "," : "", answer_status_names[k], (long long)t->status[k]);
    text_addf(out, "},\"headers\":[");
    for (int k = 0; k < 3; k++) {
        text_addf(out, "%s", k ? "," : "");
        text_add_json_number(out, share(t->header[k], t->all.n));
    }
    text_addf(out, "]");
    add_counts(out, "tasks", t->task, TASKS, task_name), add_counts(out, "levels", t->level, 4, level_name);
}
static bool tally_scalars(Grpo *s, const char *where, const Tally *t, Err *e) {
    char tag[80];
    bool ok = true;
    for (int k = 0; ok && k < TASKS; k++) {
        snprintf(tag, sizeof tag, "%s/right/%s", where, task_name(k));
        if (t->task[k].n) ok = trainer_scalar(&s->t, tag, share(t->task[k].right, t->task[k].n), e);
    }
    for (int k = 0; ok && k < 4; k++) {
        if (!t->level[k].n) continue;
        snprintf(tag, sizeof tag, "%s/right/level %d", where, k);
        ok = trainer_scalar(&s->t, tag, share(t->level[k].right, t->level[k].n), e);
        snprintf(tag, sizeof tag, "%s/length/level %d", where, k);
        ok = ok && trainer_scalar(&s->t, tag, share(t->level[k].tokens, t->level[k].n), e);
    }
    for (int k = 0; ok && k < REWARD_TERMS; k++) {
        snprintf(tag, sizeof tag, "%s/reward/%s", where, reward_term_names[k]);
        if (t->asked[k]) ok = trainer_scalar(&s->t, tag, term_mean(t, (enum RewardTerm)k), e);
    }
    const struct {
        const char *name;
        double v;
    } rest[] = {{"reward", t->total / (double)t->all.n},
                {"right", share(t->all.right, t->all.n)},
                {"length", share(t->all.tokens, t->all.n)},
                {"truncated", share(t->truncated, t->all.n)},
                {"empty", share(t->empty, t->all.n)},
                {"unparsable", share(t->all.n - t->status[ANSWER_OK], t->all.n)},
                {"contradictions", share(t->contradicted, t->judged)}};
    for (size_t k = 0; ok && k < sizeof rest / sizeof *rest; k++) {
        snprintf(tag, sizeof tag, "%s/%s", where, rest[k].name);
        if (!isnan(rest[k].v)) ok = trainer_scalar(&s->t, tag, rest[k].v, e);
    }
    return ok;
}

// ---------------------------------------------------------------------------------------------------------- answering

static bool go_on(void *ctx, int completion, int32_t id) {
    bool *thrown = ctx;
    (void)completion, (void)id;
    *thrown |= stop_requested();
    return !*thrown;
}

// The sampler for one purpose; number: which rollout.
static GenerationConfig sampler(const Grpo *s, uint32_t what, int64_t number, bool greedy) {
    GenerationConfig g = s->g;
    Random4 w = philox(s->o->seed, RANDOM_ROLLOUT, (uint32_t)number, (uint32_t)(number >> 32), what);
    g.sample.seed = (uint64_t)w.v[0] << 32 | w.v[1];
    g.sample.do_sample = !greedy;
    return g;
}

// `each` answers to every prompt, into out [n * each]: in pieces, which change nothing. s->thrown: a stop came.
static bool answer(Grpo *s, const Prompt *prompts, int64_t n, int each, const GenerationConfig *g, Completion *out,
                   Err *e) {
    int64_t piece = s->o->generate_batch > 0 ? s->o->generate_batch : n;
    Request *requests = alloc_or_die((size_t)n + 1, sizeof *requests, "a batch of prompts");
    bool ok = true;
    for (int64_t first = 0; ok && first < n && !s->thrown; first += piece) {
        int64_t m = n - first < piece ? n - first : piece;
        for (int64_t i = 0; i < m; i++)
            requests[i] = prompt_request(&prompts[first + i], (uint32_t)((first + i) * each), each);
        ok = generate(s->t.m, requests, (int)m, g, s->stoppable ? go_on : NULL, &s->thrown, out + first * each, e);
    }
    free(requests);
    return ok;
}

// steps 0: outside of the run's schedule, everything counts.
static void judge(const Grpo *s, const Prompt *q, const Completion *c, int64_t steps, Text *text, Reward *r) {
    tokenizer_decode(s->tok, c->ids.p, c->ids.n, true, text);
    reward_score(r, &s->o->reward,
                 &(RewardInput){.item = &q->task.item,
                                .text = text->p ? text->p : "",
                                .len = text->len,
                                .resized_w = q->n_grids ? q->sizes[0].resized_width : 0,
                                .resized_h = q->n_grids ? q->sizes[0].resized_height : 0,
                                .step = s->t.step,
                                .steps = steps,
                                .tokens = c->ids.n,
                                .ids = c->ids.p});
}

// `each` answers to the first n prompts of a set, counted.
static bool survey(Grpo *s, const PromptSet *set, int64_t n, int each, uint32_t what, bool greedy, Tally *t, Err *e) {
    int64_t batch = s->o->prompts;
    Prompt *prompts = alloc_or_die((size_t)batch, sizeof *prompts, "a batch of prompts");
    Completion *done = alloc_or_die((size_t)(batch * each), sizeof *done, "a batch of answers");
    Reward *r = alloc_or_die(1, sizeof *r, "a reward");
    double started = clock_seconds();
    bool ok = true;
    *t = (Tally){.truncated = 0};
    for (int64_t first = 0; ok && first < n && !s->thrown; first += batch) {
        int64_t m = n - first < batch ? n - first : batch, have = 0;
        progress(greedy ? "greedy answers" : "sampled answers", first, n, started);
        for (; ok && have < m; have += ok) ok = prompts_load(set, first + have, &prompts[have], e);
        GenerationConfig g = sampler(s, what, first, greedy);
        memset(done, 0, (size_t)(batch * each) * sizeof *done);
        ok = ok && answer(s, prompts, m, each, &g, done, e);
        for (int64_t i = 0; i < m * each; i++) {
            Text text = {0};
            if (ok && !s->thrown) {
                judge(s, &prompts[i / each], &done[i], 0, &text, r);
                tally(t, &prompts[i / each], r, &done[i]);
            }
            text_free(&text), completion_free(&done[i]);
        }
        for (int64_t i = 0; i < have; i++) prompt_free(&prompts[i]);
    }
    progress(greedy ? "greedy answers" : "sampled answers", n, n, started);
    free(prompts), free(done), free(r);
    return ok;
}

static int64_t eval_prompts(const Grpo *s) {
    return s->o->eval_samples && s->o->eval_samples < s->eval->n ? s->o->eval_samples : s->eval->n;
}
// A stop that comes meanwhile waits for its end: a checkpoint in front of it would not know that it is still to come.
static bool evaluate(Grpo *s, Err *e) {
    Tally greedy, sampled;
    s->stoppable = s->t.step == 0;
    if (!survey(s, s->eval, eval_prompts(s), 1, DRAW_EVAL, true, &greedy, e) ||
        !survey(s, s->eval, eval_prompts(s), 1, DRAW_EVAL, false, &sampled, e))
        return false;
    s->stoppable = true;
    if (s->thrown) return true;
    note("eval at step %lld: right %.3f greedy, %.3f sampled; format %.3f and %.3f; %lld prompts", (long long)s->t.step,
         share(greedy.all.right, greedy.all.n), share(sampled.all.right, sampled.all.n),
         term_mean(&greedy, REWARD_FORMAT), term_mean(&sampled, REWARD_FORMAT), (long long)greedy.all.n);
    Text t = {0};
    text_addf(&t, "\"ev\":\"eval\",\"step\":%lld,\"greedy\":{\"T\":0", (long long)s->t.step);
    tally_print(&greedy, &t);
    text_addf(&t, "},\"sampled\":{\"T\":");
    text_add_json_number(&t, s->g.sample.temperature);
    tally_print(&sampled, &t);
    text_addf(&t, "}");
    return trainer_log(&s->t, &t, e) && tally_scalars(s, "eval greedy", &greedy, e) &&
           tally_scalars(s, "eval sampled", &sampled, e);
}

// ------------------------------------------------------------------------------------------------------------ the gate

// The prompts of the tasks that are trained, in the order of the file.
static void make_order(Grpo *s) {
    s->order = s->order ? s->order : room(s->train->n, sizeof *s->order);
    s->n = 0;
    for (int64_t i = 0; i < s->train->n; i++)
        if (!s->left_out[s->train->prompts[i].task]) s->order[s->n++] = i;
}

// Before step 0: a policy that does not keep to the format has no reward to climb (its cold start failed), and a task that
// is hardly ever solved teaches nothing while the others pull its answers away.
static bool gate(Grpo *s, Err *e) {
    const PromptSet *set = s->eval ? s->eval : s->train;
    int64_t n = s->o->gate_samples < set->n ? s->o->gate_samples : set->n;
    Tally t;
    if (!n || (s->o->gate <= 0 && s->o->task_floor <= 0)) return true;
    if (!survey(s, set, n, GATE_ANSWERS, DRAW_GATE, false, &t, e)) return false;
    if (s->thrown) return true;
    double format = term_mean(&t, REWARD_FORMAT);
    note("gate: format %.3f, right %.3f over %lld sampled answers to %lld prompts", format, share(t.all.right, t.all.n),
         (long long)t.all.n, (long long)n);
    Text line = {0}, weak = {0};
    for (int k = 0; k < TASKS; k++) {
        const Count *c = &t.task[k];
        if (!c->n) continue;
        double right = share(c->right, c->n);
        note("  %-12s right %.3f of %lld, length %.1f", task_name(k), right, (long long)c->n, share(c->tokens, c->n));
        if (right >= s->o->task_floor) continue;
        text_addf(&weak, "%s%s (%.2f)", weak.len ? ", " : "", task_name(k), right);
        s->left_out[k] = !s->o->keep_weak;
    }
    text_addf(&line, "\"ev\":\"gate\",\"step\":0");
    tally_print(&t, &line);
    text_addf(&line, ",\"left_out\":[");
    for (int k = 0, m = 0; k < TASKS; k++)
        if (s->left_out[k]) text_addf(&line, "%s\"%s\"", m++ ? "," : "", task_name(k));
    text_addf(&line, "]");
    bool ok = trainer_log(&s->t, &line, e);
    if (ok && weak.len)
        warn("E-NU-12", AT(.file = s->t.run->dir),
             "expected at least %.2f of the sampled answers of every task to be right; found less for %.150s; do: %s",
             s->o->task_floor, weak.p,
             s->o->keep_weak ? "watch them, other tasks may drive them to zero"
                             : "give them more cold start (they are left out; --weak-tasks keep trains them)");
    text_free(&weak);
    if (!ok) return false;
    if (!(format >= s->o->gate))
        return err_set(e, "E-NU-10", AT(.file = s->t.run->dir),
                       "expected a format reward of at least %.2f before the first step; found %.3f over %lld sampled "
                       "answers; do: train the cold start longer (surgr1 sft), check the system turn of the records, "
                       "or pass --gate 0",
                       s->o->gate, format, (long long)t.all.n);
    make_order(s);
    return s->n || err_set(e, "E-NU-12", AT(.file = s->t.run->dir),
                           "expected a task with some success to train; found none above %.2f; do: train the cold "
                           "start longer, or pass --weak-tasks keep",
                           s->o->task_floor);
}

// -------------------------------------------------------------------------------------------------------------- passes

// Row of the batch that predicts token t of a completion: that of the id before it.
static int64_t row_of(const PackPlace *p, int64_t n_prompt, int64_t t) { return p->row + n_prompt + t - 1 - p->from; }

// Groups [g, g + n) of the buffer in one pass; every prompt is computed once. dlp [N]: their gradients are added; lp and
// entropy [N] are filled (each may be NULL).
static bool pass(Grpo *s, int64_t g, int64_t n, const double *dlp, double *lp, double *entropy, Err *e) {
    const Buffer *b = &s->b;
    int64_t G = s->o->group, first = g * G, last = (g + n) * G;
    Sequence *seqs = room(G, sizeof *seqs);
    Ids *ids = room(G, sizeof *ids);
    uint8_t **trained = room(G, sizeof *trained);
    bool ok = true;
    pack_clear(&s->pack);
    for (int64_t k = g; ok && k < g + n; k++) {
        const Prompt *q = &b->prompts[k];
        for (int64_t j = 0; j < G; j++) {
            int64_t row = k * G + j, at = b->first[row], T = b->first[row + 1] - at;
            ids[j] = (Ids){room(q->ids.n + T, sizeof(int32_t)), q->ids.n + T, q->ids.n + T};
            trained[j] = room(q->ids.n + T, 1);
            memcpy(ids[j].p, q->ids.p, (size_t)q->ids.n * sizeof(int32_t));
            memcpy(ids[j].p + q->ids.n, b->ids + at, (size_t)T * sizeof(int32_t));
            memset(trained[j] + q->ids.n, 1, (size_t)T);
            seqs[j] = (Sequence){.ids = ids[j].p,
                                 .n = ids[j].n,
                                 .n_prompt = q->ids.n,
                                 .trained = trained[j],
                                 .pixels = q->pixels,
                                 .grids = q->grids,
                                 .n_grids = q->n_grids,
                                 .key = (uint32_t)((s->rollouts * b->rows + row) * s->o->inner) +
                                        (uint32_t)(b->used / s->o->updates)};
        }
        ok = pack_add_group(&s->pack, &s->t.m->c, seqs, (int)G, q->ids.n, e);
        for (int64_t j = 0; j < G; j++) ids_free(&ids[j]), free(trained[j]);
    }
    free(seqs), free(ids), free(trained);
    if (!ok) return false;
    const TrainBatch *batch = pack_batch(&s->pack, dlp && s->o->dropout, s->o->seed, s->o->keep);
    s->pack.b.inv_temperature = (float)(1 / s->g.sample.temperature);
    if (batch->N > s->cap) {
        s->cap = batch->N;
        s->row_dlp = grow_or_die(s->row_dlp, (size_t)s->cap, sizeof *s->row_dlp, "the loss");
        s->row_lp = grow_or_die(s->row_lp, (size_t)s->cap, sizeof *s->row_lp, "the loss");
        s->row_entropy = grow_or_die(s->row_entropy, (size_t)s->cap, sizeof *s->row_entropy, "the loss");
    }
    memset(s->row_dlp, 0, (size_t)batch->N * sizeof *s->row_dlp);
    for (int64_t row = first; dlp && row < last; row++)
        for (int64_t t = 0; t < b->first[row + 1] - b->first[row]; t++)
            s->row_dlp[row_of(&s->pack.places[row - first], b->prompts[row / G].ids.n, t)] =
                (float)dlp[b->first[row] + t];
    ok = model_pass(s->t.m, batch, dlp ? s->row_dlp : NULL, s->row_lp, s->row_entropy, e);
    for (int64_t row = first; ok && row < last; row++)
        for (int64_t t = 0; t < b->first[row + 1] - b->first[row]; t++) {
            int64_t at = row_of(&s->pack.places[row - first], b->prompts[row / G].ids.n, t);
            if (lp) lp[b->first[row] + t] = s->row_lp[at];
            if (entropy) entropy[b->first[row] + t] = s->row_entropy[at];
        }
    return ok;
}
static int64_t groups_in_pass(const Grpo *s, int64_t left) { return left < s->o->micro ? left : s->o->micro; }
static bool score_groups(Grpo *s, int64_t from, int64_t to, double *lp, double *entropy, Err *e) {
    bool ok = true;
    double started = clock_seconds();
    for (int64_t g = from, n; ok && g < to; g += n) {
        progress("log-probabilities", g - from, to - from, started);
        n = groups_in_pass(s, to - g);
        ok = pass(s, g, n, NULL, lp, entropy, e);
    }
    return ok;
}

// ----------------------------------------------------------------------------------------------------------- reference

// Puts the reference's values where the policy's are, or back.
static void reference_swap(Grpo *s) {
    Model *m = s->t.m;
    for (int64_t i = 0; s->ref.other && i < s->t.opt.n; i++) {
        Mat *v = &s->t.opt.rows[i].p->w->v, kept = *v;
        *v = s->ref.values[i], s->ref.values[i] = kept;
    }
    if (m->c.tied) m->head.w = m->embed;
    for (int64_t i = 0; !s->ref.other && i < m->n_params; i++) {
        if (m->params[i].kind != PARAM_LORA_A) continue;
        float *v = &m->params[i].linear->lora.scale, kept = *v;
        *v = s->ref.scale[i], s->ref.scale[i] = kept;
    }
}

// The policy as it is now becomes the reference, or on a resume what was kept of its beginning.
static bool reference_open(Grpo *s, bool resumed, Err *e) {
    Reference *r = &s->ref;
    Optimizer *o = &s->t.opt;
    if (s->o->loss.beta <= 0) return true;
    r->other = s->o->reference == REFERENCE_INITIAL || !s->t.m->lora;
    for (int64_t i = 0; !r->other && i < o->n; i++)
        if (o->rows[i].p->kind == PARAM_BASE)
            return err_set(e, "E-CF-02", AT(.file = "grpo", .field = "reference", .tensor = o->rows[i].p->name),
                           "expected an adapter of A and B only, which can be switched off; found modules_to_save; do: "
                           "choose the reference initial");
    r->scale = room(s->t.m->n_params, sizeof *r->scale);
    if (!r->other) return true;
    Arena count = {.role = "the reference"};
    r->arena = (Arena){.role = "the reference"};
    r->values = room(o->n, sizeof *r->values);
    for (int64_t i = 0; i < o->n; i++) arena_mat(&count, o->rows[i].p->rows, o->rows[i].p->cols, F32);
    if (!arena_reserve(&r->arena, s->t.m->d, count.used, e)) return false;
    for (int64_t i = 0; i < o->n; i++) {
        r->values[i] = arena_mat(&r->arena, o->rows[i].p->rows, o->rows[i].p->cols, F32);
        copy(s->t.m->d, r->values[i], o->rows[i].p->w->v);
    }
    if (!resumed) return train_values_save(o, s->t.m, s->t.run->dir, "reference.safetensors", e);
    reference_swap(s);
    bool ok = train_values_load(s->t.m, s->t.run->dir, "reference.safetensors", e);
    reference_swap(s);
    return ok;
}
static void reference_close(Grpo *s) {
    arena_release(&s->ref.arena, s->t.m->d);
    free(s->ref.values), free(s->ref.scale);
}

// ------------------------------------------------------------------------------------------------------------- rollout

typedef struct Drawn { // what a rollout is made of and a checkpoint need not hold
    Completion *done;  // [rows]
    Reward *rewards;   // [rows]
    Text *texts;       // [rows]
    int64_t attempts;  // groups that were drawn
    Advantages a;
    Completions c;
    WeightStats w;
    Tally t;
} Drawn;
static void drawn_free(Drawn *d, int64_t rows) {
    for (int64_t i = 0; i < rows; i++) completion_free(&d->done[i]), text_free(&d->texts[i]);
    free(d->done), free(d->rewards), free(d->texts);
    advantages_free(&d->a);
}

// What says whether a prompt is worth its place: the answer, not its form.
static double answer_reward(const Reward *r) {
    static const enum RewardTerm terms[] = {REWARD_ANSWER, REWARD_LANGUAGE, REWARD_GROUNDING};
    double sum = 0;
    int n = 0;
    for (int k = 0; k < 3; k++)
        if (!isnan(r->term[terms[k]])) sum += r->term[terms[k]], n++;
    return n ? sum / n : (double)NAN;
}
static bool informative(const Grpo *s, const Reward *r) {
    double *v = room(s->o->group, sizeof *v);
    for (int64_t j = 0; j < s->o->group; j++) v[j] = answer_reward(&r[j]);
    bool is = group_informative(&s->o->loss, v, s->o->group);
    free(v);
    return is;
}

// Prompts and their completions until the rollout is full. With dynamic sampling groups that tell nothing make room for
// other prompts, in max_redraws further rounds at most; what the last one draws is taken as it is.
static bool draw(Grpo *s, Drawn *d, Err *e) {
    Buffer *b = &s->b;
    int64_t P = s->o->prompts, G = s->o->group, seen = s->seen, tokens = 0, redraws = s->redraws;
    double started = clock_seconds();
    *b = (Buffer){.groups = P, .rows = P * G};
    b->index = room(P, sizeof *b->index), b->prompts = room(P, sizeof *b->prompts);
    d->done = room(b->rows, sizeof *d->done), d->rewards = room(b->rows, sizeof *d->rewards);
    d->texts = room(b->rows, sizeof *d->texts);
    bool ok = true;
    for (int64_t have = 0, round = 0; ok && have < P && !s->thrown; round++) {
        int64_t n = P - have, loaded = 0;
        Completion *done = room(n * G, sizeof *done);
        bool last = !s->o->loss.dynamic_sampling || round >= s->o->max_redraws;
        for (; ok && loaded < n; loaded += ok) {
            b->index[have + loaded] = prompt_at(s, seen++);
            ok = prompts_load(s->train, b->index[have + loaded], &b->prompts[have + loaded], e);
        }
        GenerationConfig g = sampler(s, DRAW_TRAIN | (uint32_t)round << 8, s->rollouts, false);
        ok = ok && answer(s, b->prompts + have, n, (int)G, &g, done, e);
        int64_t kept = have;
        for (int64_t k = 0; k < n; k++) {
            Prompt *q = &b->prompts[have + k];
            bool keep = ok && !s->thrown;
            for (int64_t j = 0; keep && j < G; j++) {
                Text text = {0};
                int64_t row = kept * G + j;
                judge(s, q, &done[k * G + j], s->steps, &text, &d->rewards[row]);
                d->texts[row] = text, tokens += done[k * G + j].ids.n;
            }
            d->attempts += keep;
            if (keep && !last && !informative(s, &d->rewards[kept * G])) {
                for (int64_t j = 0; j < G; j++) text_free(&d->texts[kept * G + j]);
                keep = false, redraws++;
            }
            if (!keep) {
                for (int64_t j = 0; j < G; j++) completion_free(&done[k * G + j]);
                if (k < loaded) prompt_free(q);
                continue;
            }
            memcpy(d->done + kept * G, done + k * G, (size_t)G * sizeof *done);
            if (kept != have + k) {
                b->prompts[kept] = *q, b->index[kept] = b->index[have + k];
                *q = (Prompt){.len = 0};
            }
            kept++;
        }
        free(done);
        have = kept;
    }
    s->draw_seconds = fmax(clock_seconds() - started, 1e-6), s->drawn_tokens = tokens;
    if (ok && !s->thrown) s->seen = seen, s->redraws = redraws;
    return ok;
}

// Tokens side by side, and what is known of each.
static void lay_out(Buffer *b, const Drawn *d, bool kl) {
    b->first = room(b->rows + 1, sizeof *b->first), b->stopped = room(b->rows, sizeof *b->stopped);
    for (int64_t i = 0; i < b->rows; i++)
        b->first[i + 1] = b->first[i] + d->done[i].ids.n, b->stopped[i] = d->done[i].stopped;
    int64_t N = b->first[b->rows];
    double **columns[] = {&b->old_lp, &b->lp, &b->drawn, &b->entropy, &b->weight, kl ? &b->ref_lp : NULL};
    for (int k = 0; k < 6; k++)
        if (columns[k]) *columns[k] = room(N, sizeof(double));
    b->ids = room(N, sizeof *b->ids), b->mask = room(N, sizeof *b->mask);
    b->advantage = room(b->rows, sizeof *b->advantage), b->flat = room(b->rows, sizeof *b->flat);
    for (int64_t i = 0; i < b->rows; i++) {
        const Completion *c = &d->done[i];
        memcpy(b->ids + b->first[i], c->ids.p, (size_t)c->ids.n * sizeof *b->ids);
        for (int64_t t = 0; t < c->ids.n; t++) {
            b->drawn[b->first[i] + t] = b->old_lp[b->first[i] + t] = (double)c->lp[t];
            b->entropy[b->first[i] + t] = (double)c->entropy[t];
        }
    }
}

// Equation 3 over the terms that count at this step.
static bool make_advantages(Grpo *s, Drawn *d, Err *e) {
    Buffer *b = &s->b;
    double weights[REWARD_TERMS], *rewards = room(b->rows * REWARD_TERMS, sizeof *rewards);
    int64_t K = 0;
    for (int k = 0; k < REWARD_TERMS; k++) {
        double w = s->o->reward.weight[k];
        if (w == 0 || (k == REWARD_STRUCTURE && !d->rewards[0].structure_counts)) continue;
        weights[K++] = w;
    }
    for (int64_t i = 0; i < b->rows; i++)
        for (int64_t k = 0, at = i * K; k < REWARD_TERMS; k++)
            if (s->o->reward.weight[k] != 0 && (k != REWARD_STRUCTURE || d->rewards[0].structure_counts))
                rewards[at++] = d->rewards[i].term[k];
    bool ok = group_advantages(&s->o->loss, rewards, weights, K, b->groups, s->o->group, &d->a, e);
    for (int64_t i = 0; ok && i < b->rows; i++)
        b->advantage[i] = d->a.advantage[i], b->flat[i] = d->a.flat[i / s->o->group];
    free(rewards);
    return ok;
}

// How likely each token was, and how sure the policy was of it (eq. 5): the sampler knows, for no token was changed since.
// Where it would be asked wrongly (GrpoScore), the training pass is.
static bool score(Grpo *s, Drawn *d, Err *e) {
    Buffer *b = &s->b;
    double started = clock_seconds();
    bool ask = s->o->score == SCORE_PASS || (s->o->score == SCORE_AUTO && s->t.m->d->act_type == BF16);
    if (ask && !score_groups(s, 0, b->groups, b->old_lp, b->entropy, e)) return false;
    memcpy(b->lp, b->old_lp, (size_t)b->first[b->rows] * sizeof *b->lp);
    if (b->ref_lp) {
        reference_swap(s);
        bool ok = score_groups(s, 0, b->groups, b->ref_lp, NULL, e);
        reference_swap(s);
        if (!ok) return false;
    }
    s->score_seconds = clock_seconds() - started;
    bool *truncated = room(b->rows, sizeof *truncated);
    for (int64_t i = 0; i < b->rows; i++) truncated[i] = !b->stopped[i];
    completion_mask(&s->o->loss, b->first, truncated, b->rows, s->o->group, b->mask, NULL, &d->c);
    free(truncated);
    // what is no number is left to the loss: it skips the step and names the prompt
    uint8_t *known = room(b->first[b->rows], 1);
    for (int64_t t = 0; t < b->first[b->rows]; t++) known[t] = b->mask[t] && isfinite(b->entropy[t]);
    bool ok = entropies_clamp(b->entropy, known, b->first[b->rows], s->t.m->c.V, e);
    free(known);
    if (!ok) return false;
    grpo_weights(&s->o->loss, b->entropy, b->mask, b->first, b->rows, b->weight, &d->w);
    return true;
}

// A reward that is the same for all teaches nothing: a parser that always says yes looks like this (method.md 1.7).
static void watch_terms(Grpo *s, const Drawn *d, Text *line) {
    text_addf(line, ",\"constant\":[");
    for (int k = 0, n = 0; k < REWARD_TERMS; k++) {
        bool used = s->o->reward.weight[k] != 0 && (k != REWARD_STRUCTURE || d->rewards[0].structure_counts);
        bool constant = used && d->t.asked[k] > 1 && d->t.high[k] - d->t.low[k] <= s->o->loss.spread_tol;
        s->constant[k] = constant ? s->constant[k] + 1 : 0;
        if (constant) text_addf(line, "%s\"%s\"", n++ ? "," : "", reward_term_names[k]);
        if (s->constant[k] && s->constant[k] % CONSTANT_WARNING == 0)
            warn("E-NU-13", AT(.file = s->t.run->dir, .field = reward_term_names[k]),
                 "expected a reward that differs among %lld completions; found %g for all of them, %lld rollouts in a "
                 "row; do: look whether its rule fits the labels (surgr1 reward-check)",
                 (long long)d->t.asked[k], d->t.low[k], (long long)s->constant[k]);
    }
    text_addf(line, "]");
}

static bool watch_groups(Grpo *s, const Drawn *d, Err *e) {
    s->flat_rollouts = d->a.flat_groups == s->b.groups ? s->flat_rollouts + 1 : 0;
    s->dropped_rollouts = d->c.dropped_groups == s->b.groups ? s->dropped_rollouts + 1 : 0;
    if (s->flat_rollouts && s->flat_rollouts % FLAT_WARNING == 0)
        warn("E-NU-14", AT(.file = s->t.run->dir),
             "expected groups whose rewards differ; found none in %lld rollouts in a row, mean reward %.3f; do: choose "
             "prompts that are sometimes answered rightly",
             (long long)s->flat_rollouts, d->t.total / (double)d->t.all.n);
    return s->dropped_rollouts < DROPPED_LIMIT ||
           err_set(e, "E-NU-08", AT(.file = s->t.run->dir),
                   "expected completions that end; found all of them cut by the length limit in %lld rollouts in a "
                   "row; do: raise --max-new-tokens",
                   (long long)s->dropped_rollouts);
}

static void add_short(Text *out, int64_t at, double v) { // JSON knows no NaN
    text_addf(out, at ? "," : "");
    if (isfinite(v)) text_addf(out, "%.4g", v);
    else text_addf(out, "null");
}

// One line for each completion; of a very long one the tokens in front.
static bool log_completion(Grpo *s, const Drawn *d, int64_t row, Err *e) {
    const Buffer *b = &s->b;
    const Prompt *q = &b->prompts[row / s->o->group];
    const Reward *r = &d->rewards[row];
    int64_t at = b->first[row], n = b->first[row + 1] - at, shown = 0;
    const TaskInfo *task = task_info(q->task.item.task);
    Text t = {0}, pieces = {0}, entropy = {0}, weight = {0};
    text_addf(&t, "\"ev\":\"completion\",\"step\":%lld,\"group\":%lld,\"member\":%lld,\"id\":", (long long)s->t.step,
              (long long)(row / s->o->group), (long long)(row % s->o->group));
    text_add_json_string(&t, q->record.id, strlen(q->record.id));
    text_addf(&t, ",\"task\":\"%s\",\"level\":%d,\"text\":", task->name, task->level);
    log_add_text(&t, d->texts[row].p ? d->texts[row].p : "", d->texts[row].len);
    text_addf(&t, ",\"tokens\":%lld,\"stopped\":%s,\"status\":\"%s\",\"reward\":{", (long long)n,
              b->stopped[row] ? "true" : "false", answer_status_names[r->answer.status]);
    for (int k = 0, m = 0; k < REWARD_TERMS; k++) {
        if (isnan(r->term[k])) continue;
        text_addf(&t, "%s\"%s\":", m++ ? "," : "", reward_term_names[k]);
        text_add_json_number(&t, r->term[k]);
    }
    text_addf(&t, "}");
    trainer_number(&t, "total", r->total), trainer_number(&t, "advantage", b->advantage[row]);
    text_addf(&t, ",\"right\":%s", r->right ? "true" : "false");
    for (; shown < n && pieces.len + entropy.len + weight.len < LOGGED_BYTES; shown++) {
        size_t len = 0;
        bool added, special;
        const char *piece = tokenizer_token(s->tok, b->ids[at + shown], &len, &added, &special);
        text_addf(&pieces, shown ? "," : ""), text_add_json_string(&pieces, piece ? piece : "", len);
        add_short(&entropy, shown, b->entropy[at + shown]), add_short(&weight, shown, b->weight[at + shown]);
    }
    text_addf(&t, ",\"pieces\":[%s],\"entropy\":[%s],\"weight\":[%s]", pieces.p, entropy.p, weight.p);
    bool ok = log_write(&s->t.run->rollouts, t.p, e);
    text_free(&t), text_free(&pieces), text_free(&entropy), text_free(&weight);
    return ok;
}

static bool log_rollout(Grpo *s, Drawn *d, Err *e) {
    Buffer *b = &s->b;
    Text t = {0};
    int64_t groups = s->o->log_groups < 0 || s->o->log_groups > b->groups ? b->groups : s->o->log_groups;
    double flat = share(d->a.flat_groups, b->groups);
    text_addf(&t, "\"ev\":\"rollout\",\"step\":%lld,\"rollout\":%lld,\"seen\":%lld,\"redrawn\":%lld",
              (long long)s->t.step, (long long)s->rollouts, (long long)s->seen, (long long)(d->attempts - b->groups));
    tally_print(&d->t, &t);
    text_addf(&t, ",\"flat_groups\":%lld,\"dropped_groups\":%lld", (long long)d->a.flat_groups,
              (long long)d->c.dropped_groups);
    member(&t, "w_fraction", d->w.mean_fraction), member(&t, "w_fraction_low", d->w.low_fraction);
    member(&t, "w_threshold", d->w.threshold);
    watch_terms(s, d, &t);
    bool ok = trainer_log(&s->t, &t, e) && watch_groups(s, d, e) && tally_scalars(s, "rollout", &d->t, e) &&
              trainer_scalar(&s->t, "rollout/flat groups", flat, e) &&
              (isnan(d->w.mean_fraction) || trainer_scalar(&s->t, "rollout/w fraction", d->w.mean_fraction, e));
    for (int64_t row = 0; ok && row < groups * s->o->group; row++) ok = log_completion(s, d, row, e);
    return ok;
}

// What the step line shows of the rollout it belongs to.
static void keep_summary(Grpo *s, const Drawn *d) {
    s->shown = (Shown){.reward = d->t.total / (double)d->t.all.n,
                       .right = share(d->t.all.right, d->t.all.n),
                       .format = term_mean(&d->t, REWARD_FORMAT),
                       .length = share(d->t.all.tokens, d->t.all.n),
                       .fraction = d->w.mean_fraction,
                       .flat = d->a.flat_groups};
}

static bool roll_out(Grpo *s, Err *e) {
    Drawn d = {.attempts = 0};
    Buffer *b = &s->b;
    bool ok = draw(s, &d, e);
    if (ok && !s->thrown) {
        lay_out(b, &d, s->o->loss.beta > 0);
        for (int64_t i = 0; i < b->rows; i++) tally(&d.t, &b->prompts[i / s->o->group], &d.rewards[i], &d.done[i]);
        ok = make_advantages(s, &d, e) && score(s, &d, e) && log_rollout(s, &d, e);
        keep_summary(s, &d);
        s->rollouts++;
    }
    drawn_free(&d, s->b.rows);
    if (!ok || s->thrown) buffer_free(b);
    return ok;
}

// -------------------------------------------------------------------------------------------------------------- update

typedef struct Sums { // of an update
    GrpoStats g;      // ratio_mean, kl, entropy, drift_mean and shares are sums until the end
    double loss, sft;
    int64_t tokens, sequences, flat;
    Drift drift;
} Sums;

static void add_stats(Sums *u, const GrpoStats *g) {
    double tokens = (double)g->tokens, ratios = (double)g->ratios;
    if (!u->g.ratios) u->g.ratio_min = INFINITY, u->g.ratio_max = -INFINITY;
    u->g.tokens += g->tokens, u->g.ratios += g->ratios;
    u->g.ratio_clamped += g->ratio_clamped, u->g.kl_clamped += g->kl_clamped, u->g.policy += g->policy;
    u->g.kl += tokens * g->kl, u->g.entropy += tokens * g->entropy, u->g.drift_mean += tokens * g->drift_mean;
    u->g.drift_max = fmax(u->g.drift_max, g->drift_max), u->g.ratio_mean += ratios * g->ratio_mean;
    u->g.ratio_min = fmin(u->g.ratio_min, g->ratio_min), u->g.ratio_max = fmax(u->g.ratio_max, g->ratio_max);
    u->g.clip_low += ratios * g->clip_low, u->g.clip_high += ratios * g->clip_high;
    u->g.clip_cispo += ratios * g->clip_cispo;
}
static void end_stats(Sums *u) {
    double tokens = fmax((double)u->g.tokens, 1), ratios = fmax((double)u->g.ratios, 1);
    u->g.kl /= tokens, u->g.entropy /= tokens, u->g.drift_mean /= tokens, u->g.ratio_mean /= ratios;
    u->g.clip_low /= ratios, u->g.clip_high /= ratios, u->g.clip_cispo /= ratios;
}

// The loss of groups [from, to) and its gradient dlp [N], micro-batch by micro-batch (NORM_BNPO knows them).
static void losses(Grpo *s, int64_t from, int64_t to, double *dlp, Sums *u) {
    const Buffer *b = &s->b;
    int64_t G = s->o->group, *first = room(s->o->micro * G + 1, sizeof *first);
    for (int64_t t = b->first[from * G]; t < b->first[to * G]; t++) u->tokens += b->mask[t];
    u->sequences = (to - from) * G;
    for (int64_t g = from, n; g < to; g += n) {
        n = groups_in_pass(s, to - g);
        int64_t row = g * G, at = b->first[row];
        for (int64_t i = 0; i <= n * G; i++) first[i] = b->first[row + i] - at;
        GrpoBatch batch = {.B = n * G,
                           .first = first,
                           .mask = b->mask + at,
                           .lp = b->lp + at,
                           .old_lp = b->old_lp + at,
                           .ref_lp = b->ref_lp ? b->ref_lp + at : NULL,
                           .entropy = b->entropy + at,
                           .weight = b->weight + at,
                           .advantage = b->advantage + row,
                           .flat = b->flat + row,
                           .accumulate = (to - from + s->o->micro - 1) / s->o->micro,
                           .sequences = u->sequences,
                           .tokens = u->tokens,
                           .max_tokens = s->g.max_new_tokens};
        GrpoStats stats;
        u->loss += grpo_loss(&s->o->loss, &batch, dlp + at, &stats);
        add_stats(u, &stats);
        for (int64_t i = 0; i < n; i++) u->flat += b->flat[row + i * G];
    }
    end_stats(u);
    free(first);
}

// What the training pass says of groups [g, g + n) against what the sampler said, of tokens that take part.
static void add_drift(const Grpo *s, int64_t g, int64_t n, const double *now, Drift *d) {
    const Buffer *b = &s->b;
    for (int64_t t = b->first[g * s->o->group]; t < b->first[(g + n) * s->o->group]; t++) {
        if (!b->mask[t]) continue;
        double off = now[t] - b->drawn[t], ratio = exp(off);
        d->least_ratio = d->n ? fmin(d->least_ratio, ratio) : ratio;
        d->most_ratio = d->n ? fmax(d->most_ratio, ratio) : ratio;
        d->sum += fabs(off), d->most = fmax(d->most, fabs(off)), d->ratio += ratio, d->n++;
    }
}

static bool teaches(const Buffer *b, int64_t group, int64_t G, const double *dlp) { // some of its gradient is not 0
    for (int64_t t = b->first[group * G]; t < b->first[(group + 1) * G]; t++)
        if (dlp[t] != 0) return true;
    return false;
}

// Equation 1 on the next demonstrations, with its share of the loss.
static bool demonstrate(Grpo *s, Sums *u, Err *e) {
    int64_t n = s->o->sft_batch, total = 0;
    int64_t *index = room(n, sizeof *index);
    for (int64_t k = 0; k < n; k++) {
        int64_t seen = s->sft_seen++;
        index[k] = shuffled(s->o->seed + 1, seen / s->sft->n, seen % s->sft->n, s->sft->n);
        total += s->sft->samples[index[k]].targets;
    }
    bool ok = true;
    for (int64_t k = 0; ok && k < n; k++) { // one at a time: they need no more memory than the largest of them
        Sample x;
        if (!(ok = sample_load(s->sft, index[k], &x, e))) break;
        Sequence q = {.ids = x.ids.p,
                      .n = x.ids.n,
                      .n_prompt = x.ids.n,
                      .trained = x.trained,
                      .pixels = x.pixels,
                      .grids = x.grids,
                      .n_grids = x.n_grids,
                      .key = (uint32_t)(s->sft_seen - n + k) ^ 0x80000000u};
        pack_clear(&s->pack);
        ok = pack_add(&s->pack, &s->t.m->c, &q, e);
        sample_free(&x);
        if (!ok) break;
        const TrainBatch *b = pack_batch(&s->pack, s->o->dropout, s->o->seed, s->o->keep);
        s->pack.b.inv_temperature = 1;
        float *dlp = room(b->N, sizeof *dlp), *lp = room(b->N, sizeof *lp);
        for (int64_t i = 0; i < b->N; i++)
            dlp[i] = b->targets[i] < 0 ? 0 : (float)(-s->o->loss.sft_coef / (double)total);
        ok = model_pass(s->t.m, b, dlp, lp, NULL, e);
        for (int64_t i = 0; ok && i < b->N; i++) u->sft -= s->o->loss.sft_coef * (double)lp[i] / (double)total;
        free(dlp), free(lp);
    }
    free(index);
    u->loss += u->sft;
    return ok;
}

static void name_groups(const Grpo *s, int64_t from, int64_t to, bool bad, Text *out) {
    const Buffer *b = &s->b;
    for (int64_t g = from; g < to; g++) {
        bool finite = true;
        for (int64_t t = b->first[g * s->o->group]; t < b->first[(g + 1) * s->o->group]; t++)
            finite &= isfinite(b->lp[t]) != 0;
        if (out->len < 160 && !(bad && finite)) text_addf(out, "%s%s", out->len ? ", " : "", b->prompts[g].record.id);
    }
}

static bool report_step(Grpo *s, const Sums *u, double norm, double factor, bool far, bool idle, double seconds,
                        Err *e) {
    Trainer *t = &s->t;
    const GrpoOptions *o = s->o;
    const Shown *r = &s->shown;
    double lr = o->adam.lr[TOWER_DECODER] * factor, spent = clock_seconds() - t->started;
    int64_t done = t->step - t->first_step, left = s->steps - t->step, per = o->updates * o->inner;
    double eta = done > 0 ? spent / (double)done * (double)left : 0, draw = s->draw_seconds;
    bool kl = o->loss.beta > 0;
    char kl_text[40] = "", fraction[16] = "   -";
    if (kl) snprintf(kl_text, sizeof kl_text, "  kl %8.5f", u->g.kl);
    if (!isnan(r->fraction)) snprintf(fraction, sizeof fraction, "%4.2f", r->fraction);
    note("step %*lld/%lld  reward %6.3f  right %5.3f  format %5.3f  length %6.1f  flat %3lld  w %s  norm %8.3f%s  lr "
         "%9.3e  draw %6.0f tok/s  train %6.0f tok/s  left %d:%02d",
         snprintf(NULL, 0, "%lld", (long long)s->steps), (long long)t->step, (long long)s->steps, r->reward, r->right,
         r->format, r->length, (long long)r->flat, fraction, norm, kl_text, lr,
         draw > 0 ? (double)s->drawn_tokens / draw : 0, (double)u->tokens / seconds, (int)(eta / 60),
         (int)fmod(eta, 60));
    Text line = {0}, timing = {0};
    text_addf(&line, "\"ev\":\"step\",\"step\":%lld,\"rollout\":%lld,\"update\":%lld", (long long)t->step,
              (long long)s->rollouts, (long long)(s->b.used + 1));
    trainer_number(&line, "loss", u->loss), trainer_number(&line, "grad_norm", norm);
    trainer_number(&line, "learning_rate", lr), trainer_number(&line, "policy", u->g.policy);
    trainer_number(&line, "entropy", u->g.entropy);
    if (kl) trainer_number(&line, "kl", u->g.kl);
    if (s->sft) trainer_number(&line, "sft", u->sft);
    const Drift *d = &u->drift;
    if (d->n) { // the ratio that the loss takes for 1
        trainer_number(&line, "drift_mean", d->sum / (double)d->n), trainer_number(&line, "drift_max", d->most);
        trainer_number(&line, "ratio_mean", d->ratio / (double)d->n);
        trainer_number(&line, "ratio_min", d->least_ratio), trainer_number(&line, "ratio_max", d->most_ratio);
    } else {
        trainer_number(&line, "ratio_mean", u->g.ratio_mean), trainer_number(&line, "ratio_min", u->g.ratio_min);
        trainer_number(&line, "ratio_max", u->g.ratio_max);
    }
    trainer_number(&line, "clip_low", u->g.clip_low), trainer_number(&line, "clip_high", u->g.clip_high);
    text_addf(&line,
              ",\"ratio_clamped\":%lld,\"kl_clamped\":%lld,\"tokens\":%lld,\"sequences\":%lld,\"flat_groups\":%lld,"
              "\"idle\":%s,\"outlier\":%s",
              (long long)u->g.ratio_clamped, (long long)u->g.kl_clamped, (long long)u->tokens, (long long)u->sequences,
              (long long)u->flat, idle ? "true" : "false", far ? "true" : "false");
    trainer_number(&line, "epoch", (double)s->seen / (double)s->n);
    text_addf(&timing, "\"ev\":\"step\",\"step\":%lld", (long long)t->step);
    trainer_number(&timing, "seconds", seconds),
        trainer_number(&timing, "tokens_per_second", (double)u->tokens / seconds);
    if (s->b.used % per == 0 && draw > 0) trainer_number(&timing, "draw_seconds", draw);
    bool ok = trainer_log(t, &line, e) && log_write(&t->run->timing, timing.p, e) &&
              trainer_scalar(t, "train/loss", u->loss, e) && trainer_scalar(t, "train/grad_norm", norm, e) &&
              trainer_scalar(t, "train/learning_rate", lr, e) && trainer_scalar(t, "train/entropy", u->g.entropy, e) &&
              trainer_scalar(t, "train/ratio max", d->n ? d->most_ratio : u->g.ratio_max, e) &&
              (!d->n || (trainer_scalar(t, "train/drift mean", d->sum / (double)d->n, e) &&
                         trainer_scalar(t, "train/drift max", d->most, e))) &&
              (!kl || trainer_scalar(t, "train/kl", u->g.kl, e)) &&
              trainer_scalar(t, "speed/tokens_per_second", (double)u->tokens / seconds, e);
    text_free(&timing);
    return ok;
}

// One update of a part of the rollout. t.step advances whatever comes of it.
static bool update(Grpo *s, Err *e) {
    Buffer *b = &s->b;
    int64_t part = b->used % s->o->updates, G = s->o->group;
    int64_t from = b->groups * part / s->o->updates, to = b->groups * (part + 1) / s->o->updates;
    double started = clock_seconds() - (b->used ? 0 : s->score_seconds), norm = 0;
    double *dlp = room(b->first[b->rows], sizeof *dlp);
    // the policy of the first update is the one that drew; dropout would be seen as a difference
    bool compare = !b->used && b->drawn && !s->o->dropout;
    double *now = compare ? room(b->first[b->rows], sizeof *now) : NULL;
    Sums u = {.tokens = 0};
    bool ok = !b->used || score_groups(s, from, to, b->lp, NULL, e);
    if (ok) losses(s, from, to, dlp, &u);
    bool finite = isfinite(u.loss), idle = true, far = false;
    if (ok) model_zero_gradients(s->t.m);
    for (int64_t g = from, n; ok && finite && g < to; g += n) {
        progress("update", g - from, to - from, started);
        int64_t most = groups_in_pass(s, to - g);
        for (n = 0; n < most && teaches(b, g + n, G, dlp);) n++;
        if (!n) { // a flat group: no pass for it
            n = 1;
            continue;
        }
        ok = pass(s, g, n, dlp, now, NULL, e), idle = false;
        if (ok && now) add_drift(s, g, n, now, &u.drift);
    }
    progress("update", to - from, to - from, started);
    if (ok && finite && s->sft && s->o->loss.sft_coef > 0) ok = demonstrate(s, &u, e), idle = false;
    free(dlp), free(now);
    if (!ok) return false;
    finite &= isfinite(u.loss) != 0;
    norm = finite ? gradient_norm(&s->t.opt, s->t.m) : 0;
    double factor = schedule_factor(&s->schedule, s->t.step++);
    Text ids = {0}, bad = {0};
    name_groups(s, from, to, false, &ids);
    if (!finite || !isfinite(norm)) {
        Culprit culprit = {{0}};
        if (!finite) name_groups(s, from, to, true, &bad);
        if (!finite) {
            culprit_watch(&culprit);
            ok = score_groups(s, from, to, NULL, NULL, e);
            culprit_watch(NULL);
        }
        ok = ok && trainer_skip(&s->t, finite ? NULL : bad.len ? bad.p : "a demonstration", ids.p, norm, &culprit, e);
    } else {
        bool skip = false;
        if (!idle) far = trainer_far(&s->t, ids.p, u.loss, norm, &skip);
        if (!idle && !skip) optimizer_step(&s->t.opt, s->t.m, factor, norm);
        ok = report_step(s, &u, norm, factor, far, idle, fmax(clock_seconds() - started, 1e-6), e);
    }
    text_free(&ids), text_free(&bad);
    if (++b->used == s->o->updates * s->o->inner) buffer_free(b);
    return ok;
}

// --------------------------------------------------------------------------------------------------------- checkpoints

static void state_print(const Grpo *s, Text *out) {
    text_addf(out, "{\"format\":1,");
    trainer_state_print(&s->t, out);
    text_addf(out,
              ",\"rollouts\":%lld,\"seen\":%lld,\"sft_seen\":%lld,\"redraws\":%lld,\"flat_rollouts\":%lld,"
              "\"dropped_rollouts\":%lld,\"groups\":%lld,\"used\":%lld,\"left_out\":[",
              (long long)s->rollouts, (long long)s->seen, (long long)s->sft_seen, (long long)s->redraws,
              (long long)s->flat_rollouts, (long long)s->dropped_rollouts, (long long)s->b.groups,
              (long long)s->b.used);
    for (int k = 0, n = 0; k < TASKS; k++)
        if (s->left_out[k]) text_addf(out, "%s\"%s\"", n++ ? "," : "", task_name(k));
    text_addf(out, "],\"constant\":[");
    for (int k = 0; k < REWARD_TERMS; k++) text_addf(out, "%s%lld", k ? "," : "", (long long)s->constant[k]);
    text_addf(out, "]}");
}

static const char run_kind[] = "a run of group-relative policy optimisation";

static bool state_read(Grpo *s, const Checkpoint *c, int64_t *groups, int64_t *used, Err *e) {
    const Json *j = c->state.root, *left = json_get(j, "left_out"), *constant = json_get(j, "constant");
    int64_t format = 0, most = INT64_MAX;
    bool ok = json_int(&c->state, j, "format", true, 1, 1, &format, e) && trainer_state_read(&s->t, c, run_kind, e) &&
              json_int(&c->state, j, "rollouts", true, 0, most, &s->rollouts, e) &&
              json_int(&c->state, j, "seen", true, 0, most, &s->seen, e) &&
              json_int(&c->state, j, "sft_seen", true, 0, most, &s->sft_seen, e) &&
              json_int(&c->state, j, "redraws", true, 0, most, &s->redraws, e) &&
              json_int(&c->state, j, "flat_rollouts", true, 0, most, &s->flat_rollouts, e) &&
              json_int(&c->state, j, "dropped_rollouts", true, 0, most, &s->dropped_rollouts, e) &&
              json_int(&c->state, j, "groups", true, 0, s->o->prompts, groups, e) &&
              json_int(&c->state, j, "used", true, 0, s->o->updates * s->o->inner, used, e);
    if (!ok) return false;
    ok = left && left->type == JSON_ARRAY && constant && constant->type == JSON_ARRAY &&
         constant->count == REWARD_TERMS && (!*groups || *groups == s->o->prompts);
    for (const Json *k = ok ? left->child : NULL; ok && k; k = k->next) {
        int task = k->type == JSON_STRING ? task_of(k->str) : -1;
        if ((ok = task >= 0)) s->left_out[task] = true;
    }
    int at = 0;
    for (const Json *k = ok ? constant->child : NULL; k; k = k->next) s->constant[at++] = k->i;
    return ok || trainer_state_bad(c, run_kind, e);
}

// The arrays of a buffer, as they stand in a checkpoint.
typedef struct Column {
    const char *name;
    FileType type;
    void *data;
    int64_t n;
} Column;
static int columns_of(const Buffer *b, Column out[12]) {
    int64_t N = b->first[b->rows];
    const Column all[] = {{"advantage", FT_F64, b->advantage, b->rows},
                          {"entropy", FT_F64, b->entropy, N},
                          {"first", FT_I64, b->first, b->rows + 1},
                          {"flat", FT_BOOL, b->flat, b->rows},
                          {"ids", FT_I32, b->ids, N},
                          {"mask", FT_U8, b->mask, N},
                          {"old_lp", FT_F64, b->old_lp, N},
                          {"prompts", FT_I64, b->index, b->groups},
                          {"ref_lp", FT_F64, b->ref_lp, N},
                          {"stopped", FT_BOOL, b->stopped, b->rows},
                          {"weight", FT_F64, b->weight, N}};
    int n = 0;
    for (size_t k = 0; k < sizeof all / sizeof *all; k++)
        if (all[k].data) out[n++] = all[k];
    return n;
}
enum { COLUMNS = 12 };
#define ROLLOUT_FILE "rollout.safetensors"

static bool save_buffer(void *ctx, const char *dir, Err *e) {
    const Grpo *s = ctx;
    Column columns[COLUMNS];
    TensorOut out[COLUMNS];
    char path[1300];
    if (!s->b.groups) return true;
    int n = columns_of(&s->b, columns);
    for (int k = 0; k < n; k++)
        out[k] = (TensorOut){columns[k].name, columns[k].type, 1, {columns[k].n}, columns[k].data};
    return path_join(path, sizeof path, dir, ROLLOUT_FILE, e) && tensors_write(path, out, n, e);
}

static bool buffer_bad(const char *path, const char *what, Err *e) {
    return err_set(e, "E-CK-05", AT(.file = path),
                   "expected %s of a rollout; found another shape or type; do: resume with the options of the run",
                   what);
}
static bool load_column(const TensorFile *f, Column c, Err *e) {
    const Tensor *t = tensors_find(f, c.name);
    if (!t || t->type != c.type || t->elements != c.n) return buffer_bad(f->path, c.name, e);
    memcpy(c.data, t->data, t->bytes);
    return true;
}
static bool load_buffer(Grpo *s, const char *dir, int64_t groups, int64_t used, Err *e) {
    Buffer *b = &s->b;
    TensorFile f;
    char path[1300];
    if (!path_join(path, sizeof path, dir, ROLLOUT_FILE, e) || !tensors_open(&f, path, e)) return false;
    int64_t G = s->o->group;
    *b = (Buffer){.groups = groups, .rows = groups * G, .used = used};
    b->index = room(groups, sizeof *b->index), b->prompts = room(groups, sizeof *b->prompts);
    b->first = room(b->rows + 1, sizeof *b->first);
    bool ok = load_column(&f, (Column){"first", FT_I64, b->first, b->rows + 1}, e) &&
              load_column(&f, (Column){"prompts", FT_I64, b->index, groups}, e);
    for (int64_t i = 0; ok && i < b->rows; i++)
        ok = (b->first[0] == 0 && b->first[i + 1] >= b->first[i]) || buffer_bad(path, "first", e);
    if (ok) {
        int64_t N = b->first[b->rows];
        b->ids = room(N, sizeof *b->ids), b->mask = room(N, 1);
        b->old_lp = room(N, sizeof(double)), b->entropy = room(N, sizeof(double));
        b->weight = room(N, sizeof(double)), b->lp = room(N, sizeof(double));
        if (s->o->loss.beta > 0) b->ref_lp = room(N, sizeof(double));
        b->advantage = room(b->rows, sizeof(double));
        b->stopped = room(b->rows, sizeof *b->stopped), b->flat = room(b->rows, sizeof *b->flat);
        Column columns[COLUMNS];
        int n = columns_of(b, columns);
        for (int k = 0; ok && k < n; k++) ok = load_column(&f, columns[k], e);
        memcpy(b->lp, b->old_lp, (size_t)N * sizeof(double));
        for (int64_t t = 0; ok && t < N; t++)
            ok = (b->ids[t] >= 0 && b->ids[t] < s->t.m->c.V) || buffer_bad(path, "ids", e);
    }
    for (int64_t g = 0; ok && g < groups; g++)
        ok = (b->index[g] >= 0 && b->index[g] < s->train->n) || buffer_bad(path, "prompts", e);
    for (int64_t g = 0; ok && g < groups; g++) ok = prompts_load(s->train, b->index[g], &b->prompts[g], e);
    s->shown = (Shown){NAN, NAN, NAN, NAN, NAN, 0}; // an earlier process has told it
    for (int64_t g = 0; ok && g < groups; g++) s->shown.flat += b->flat[g * G];
    tensors_close(&f);
    return ok;
}

static bool save_checkpoint(Grpo *s, bool last, Err *e) {
    Text state = {0};
    state_print(s, &state);
    bool ok = trainer_save(&s->t, state.p, -1, last, save_buffer, s, e);
    text_free(&state);
    return ok;
}

// ----------------------------------------------------------------------------------------------------------------- run

static void make_plan(Grpo *s) {
    int64_t per = s->o->updates * s->o->inner;
    int64_t rollouts = (int64_t)ceil(s->o->epochs * (double)s->n / (double)s->o->prompts);
    s->steps = s->o->steps ? s->o->steps : rollouts * per;
    s->schedule = s->o->schedule;
    s->schedule.steps = s->steps;
    if (s->o->warmup_part > 0) s->schedule.warmup = (int64_t)ceil(s->o->warmup_part * (double)s->steps);
}

void grpo_largest(const PromptSet *train, const GrpoOptions *o, SftPlan *p) {
    int64_t rows = o->micro * o->group;
    *p = (SftPlan){.samples = rows,
                   .spans = rows + o->micro,
                   .tokens = o->micro * train->longest + rows * (o->max_new_tokens + 1),
                   .targets = rows * o->max_new_tokens,
                   .patches = o->micro * train->most_patches};
}

GenerateBytes grpo_sampling(const Model *m, const PromptSet *train, const PromptSet *eval, const GrpoOptions *o) {
    int64_t prompts = o->generate_batch && o->generate_batch < o->prompts ? o->generate_batch : o->prompts;
    int64_t longest = train->longest, patches = train->most_patches, each = o->group;
    if (eval->n && eval->longest > longest) longest = eval->longest;
    if (eval->n && eval->most_patches > patches) patches = eval->most_patches;
    if ((o->gate > 0 || o->task_floor > 0) && each < GATE_ANSWERS) each = GATE_ANSWERS;
    return generate_bytes(m, prompts, longest, patches, each, o->max_new_tokens);
}

// Values of its own, unless the reference is the base model behind an adapter.
size_t grpo_reference_bytes(const Model *m, const GrpoOptions *o) {
    size_t values, gradients;
    if (o->loss.beta <= 0 || (o->reference == REFERENCE_BASE && m->lora)) return 0;
    model_train_bytes(m, &values, &gradients);
    return gradients; // as many as there are trained values
}

static bool resume(Grpo *s, const Checkpoint *c, Err *e) {
    int64_t groups, used;
    if (!state_read(s, c, &groups, &used, e)) return false;
    make_order(s), make_plan(s);
    if (!reference_open(s, true, e) || !trainer_resume(&s->t, c, -1, e)) return false;
    if (groups && !load_buffer(s, c->dir, groups, used, e)) return false;
    note("resumed from step %lld of %lld%s", (long long)s->t.step, (long long)s->steps,
         groups ? ", in the middle of a rollout" : "");
    return true;
}

static bool start(Grpo *s, Err *e) {
    make_order(s);
    if (!reference_open(s, false, e) || !gate(s, e) || s->thrown) return !e->code[0];
    make_plan(s);
    Text t = {0};
    text_addf(&t, "\"ev\":\"start\",\"steps\":%lld,\"prompts\":%lld,\"left_out\":%lld,\"trained\":%lld,\"loss\":",
              (long long)s->steps, (long long)s->n, (long long)(s->train->n - s->n), (long long)s->t.opt.n);
    grpo_loss_print(&s->o->loss, &t);
    return trainer_log(&s->t, &t, e) && (!s->eval || !s->o->eval_every || evaluate(s, e));
}

static bool train(Grpo *s, Err *e) {
    bool ok = true, stop = stop_requested(); // looked at once a step: a signal after the look is for the next step
    int64_t saved = s->t.step;
    while (ok && s->t.step < s->steps && !stop) {
        if (!s->b.groups) ok = roll_out(s, e);
        if (ok && s->thrown) return saved == s->t.step || save_checkpoint(s, true, e);
        if (!ok || !(ok = update(s, e))) break;
        int64_t step = s->t.step;
        progress("training", step - s->t.first_step, s->steps - s->t.first_step, s->t.started);
        trainer_memory(&s->t);
        bool last = step == s->steps;
        if (s->eval && s->o->eval_every && (trainer_due(s->o->eval_every, step) || last)) ok = evaluate(s, e);
        stop = stop_requested();
        if (ok && (trainer_due(s->o->save_every, step) || last || stop))
            ok = save_checkpoint(s, last || stop, e), saved = step;
        if (ok && trainer_due(CHECK_FINITE_EVERY, step)) ok = trainer_finite(&s->t, e);
    }
    return ok;
}

bool grpo_run(Model *m, const Tokenizer *t, const PromptSet *prompts, const PromptSet *eval, const Dataset *sft,
              Run *run, const GrpoOptions *o, const Checkpoint *from, bool *finished, Err *e) {
    Grpo s = {.t = {.m = m, .run = run, .o = o->trainer},
              .tok = t,
              .train = prompts,
              .eval = eval,
              .sft = sft,
              .o = o,
              .stoppable = true};
    bool resumed = from && from->step >= 0, from_file;
    *finished = false;
    if (o->loss.bonus_coef != 0)
        return err_set(e, "E-CF-02", AT(.file = "grpo", .field = "bonus_coef"),
                       "expected 0; found %g; do: leave the entropy bonus off, the head has no gradient of the entropy",
                       o->loss.bonus_coef);
    if (!grpo_loss_check(&o->loss, AT(.file = "grpo"), e)) return false;
    bool ok = generation_config_load(&s.g, m->c.dir, &from_file, e);
    s.g.max_new_tokens = o->max_new_tokens, s.g.sample = o->sample;
    ok = ok && optimizer_open(&s.t.opt, m, &o->adam, e) && (resumed ? resume(&s, from, e) : start(&s, e));
    s.t.started = clock_seconds(), s.t.first_step = s.t.step, s.stoppable = true;
    ok = ok && (s.thrown || train(&s, e));
    if (ok && !s.thrown && s.t.step == s.steps) *finished = ok = trainer_end(&s.t, -1, e);
    buffer_free(&s.b), reference_close(&s);
    optimizer_close(&s.t.opt, m);
    pack_free(&s.pack);
    free(s.order), free(s.row_dlp), free(s.row_lp), free(s.row_entropy);
    return ok;
}
