// sft.c - supervised fine-tuning: stages 1 and 2 of Surg-R1, the first stage of Surgery-R1.
//
// What it is:  equation 1 of the Surg-R1 paper, L = -1/T sum_t log p(y_t | x, y_<t) over the T target tokens of an update,
//              and the loop around it: order, packing, accumulation, evaluation, completions, checkpoints, resume. Two
//              variants for models that learn to see: the mean may be taken answer by answer (per_answer), and rows of a
//              picture may have targets of their own (align).
// What it is not: the step itself (train.c, model.c) or the samples (data/samples.c).
// Read before: train.c.  Read next: commands/sft.c, which fills the options.
//
// What can be computed from the step is never saved, and what is saved is saved exactly: a run that was killed goes on to
// the same bits. Lines of run.jsonl therefore hold no times; those go to timing.jsonl.
#include "surgr1.h"

// --------------------------------------------------------------------------------------------------------------- plan

// The order of a run over the units of a data set: place `seen` is place seen mod n of epoch seen / n. Places are looked up
// again and again, and one costs a thousand cipher rounds: those of the last two epochs are remembered.
typedef struct Order {
    const Dataset *d;
    const SftOptions *o;
    bool in_order;
    struct {
        int64_t epoch, *at; // at [n_units], -1: not asked for yet
    } known[2];             // by epoch mod 2
} Order;

static Order order_of(const Dataset *d, const SftOptions *o) {
    return (Order){.d = d, .o = o, .in_order = o->in_order, .known = {{.epoch = -1}, {.epoch = -1}}};
}
static void order_free(Order *w) { free(w->known[0].at), free(w->known[1].at); }

static int64_t unit_at(Order *w, int64_t seen) {
    int64_t n = w->d->n_units, index = seen % n, epoch = seen / n;
    if (w->in_order) return index;
    int half = (int)(epoch % 2);
    if (w->known[half].epoch != epoch) {
        if (!w->known[half].at) w->known[half].at = alloc_or_die((size_t)n, sizeof(int64_t), "the order of an epoch");
        memset(w->known[half].at, 0xFF, (size_t)n * sizeof(int64_t));
        w->known[half].epoch = epoch;
    }
    int64_t *at = &w->known[half].at[index];
    if (*at < 0) *at = shuffled(w->o->seed, epoch, index, n);
    return *at;
}

// What units bring into a pass. Rows of a beginning that samples share count once.
typedef struct Size {
    int64_t units, samples, spans, rows, patches, targets, aligned;
    double total; // the normaliser of the text loss: sum of weights, over targets or over samples
} Size;

static void add_unit(Size *s, const Order *w, int64_t unit) {
    const Dataset *d = w->d;
    int64_t first = d->units[unit], end = d->units[unit + 1];
    for (int64_t i = first; i < end; i++) {
        const SampleInfo *x = &d->samples[i];
        bool leads = x->lead == i;
        s->rows += x->tokens - (leads ? 0 : x->shared - 1);
        s->spans += leads && end > first + 1 ? 2 : 1; // a shared beginning is a span of its own
        s->patches += leads ? x->patches : 0;
        s->targets += x->targets, s->aligned += w->o->align > 0 ? x->aligned : 0;
        s->total += x->weight * (w->o->per_answer ? 1 : (double)x->targets);
    }
    s->units++, s->samples += end - first;
}

// How many units from the seen-th on go into the next micro-batch: at most `batch`, and with a limit of tokens as many
// as fit (always one). None is taken at or behind `end`.
static int64_t micro_batch(Order *w, int64_t seen, int64_t end) {
    Size size = {0};
    int64_t n = 0;
    for (; n < w->o->batch && seen + n < end; n++) {
        if (!w->o->pack_tokens) continue;
        add_unit(&size, w, unit_at(w, seen + n));
        if (n && size.rows > w->o->pack_tokens) break;
    }
    return n;
}

static int by_size(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x > y ? -1 : x < y;
}
// The largest sum of `batch` values that follow each other in some orders of them, one order after the other: where an epoch
// ends and the next begins a value may come again.
static int64_t largest_sum(int64_t *values, int64_t n, int64_t batch) {
    int64_t sum = 0, times = (batch - 1) / n + 2;
    qsort(values, (size_t)n, sizeof *values, by_size);
    for (int64_t i = 0; i < batch; i++) sum += values[i / times];
    return sum;
}
static void at_least(int64_t *most, int64_t value) { *most = value > *most ? value : *most; }

// What no micro-batch of the run can exceed, whatever the order. (A limit of tokens only makes them smaller.)
static void plan_bound(const Order *w, SftPlan *p) {
    const Dataset *d = w->d;
    int64_t *values = alloc_or_die((size_t)d->n_units, 5 * sizeof *values, "the plan"), n = d->n_units,
            batch = w->o->batch;
    for (int64_t u = 0; u < n; u++) {
        Size s = {0};
        add_unit(&s, w, u);
        int64_t of_unit[] = {s.rows, s.patches, s.targets + s.aligned, s.samples, s.spans};
        for (int k = 0; k < 5; k++) values[k * n + u] = of_unit[k];
    }
    int64_t *most[] = {&p->tokens, &p->patches, &p->targets, &p->samples, &p->spans};
    for (int k = 0; k < 5; k++) at_least(most[k], largest_sum(values + k * n, n, batch));
    at_least(&p->units, batch);
    free(values);
}

// Long runs are walked so far; of the rest only bounds are wanted, and counting, where no limit of tokens cuts.
enum { PLAN_WALK = 200000 };

static void plan_units(const Dataset *d, const SftOptions *o, bool in_order, int64_t end, int64_t steps, SftPlan *p) {
    Order w = order_of(d, o);
    w.in_order |= in_order;
    *p = (SftPlan){.end = end};
    int64_t seen = 0;
    while (seen < end && (!steps || p->steps < steps)) {
        if (seen >= PLAN_WALK && (steps || !o->pack_tokens)) {
            int64_t each = o->batch * o->accumulate, left = (end - seen - 1) / each + 1;
            int64_t walked = seen, more = steps && steps - p->steps < left ? steps - p->steps : left;
            seen = more <= (end - seen) / each ? seen + more * each : end;
            p->steps += more;
            p->all_tokens = (int64_t)((double)p->all_tokens / (double)walked * (double)seen);
            plan_bound(&w, p);
            break;
        }
        for (int64_t k = 0; k < o->accumulate && seen < end; k++) {
            Size s = {0};
            for (int64_t n = micro_batch(&w, seen, end); n; n--) add_unit(&s, &w, unit_at(&w, seen++));
            at_least(&p->tokens, s.rows), at_least(&p->patches, s.patches),
                at_least(&p->targets, s.targets + s.aligned);
            at_least(&p->units, s.units), at_least(&p->samples, s.samples), at_least(&p->spans, s.spans);
            p->all_tokens += s.rows;
        }
        p->steps++;
    }
    if (p->end > seen) p->end = seen;
    order_free(&w);
}

// How far an evaluation goes: whole units, until they hold as many samples as it wants.
static int64_t eval_units(const Dataset *d, const SftOptions *o) {
    int64_t n = d->n_units;
    if (o->eval_samples && o->eval_samples < d->n)
        for (n = 0; d->units[n] < o->eval_samples;) n++;
    return n;
}

void sft_plan(const Dataset *d, const SftOptions *o, SftPlan *p) {
    int64_t end = o->steps ? INT64_MAX : (int64_t)ceil(o->epochs * (double)d->n_units);
    plan_units(d, o, false, end, o->steps, p);
}

void sft_eval_plan(const Dataset *d, const SftOptions *o, SftPlan *p) {
    SftOptions once = *o;
    once.accumulate = 1;
    plan_units(d, &once, true, eval_units(d, o), 0, p);
}

// -------------------------------------------------------------------------------------------------------------- state

typedef struct Sft {
    Trainer t;
    const Tokenizer *tok;
    const Dataset *train, *eval; // eval: NULL when there is none
    const SftOptions *o;
    SftPlan plan;
    Order order, eval_order;
    Schedule schedule;
    Pack pack;
    float *dlp, *lp, *entropy; // of one micro-batch
    int64_t cap;
    // what a checkpoint holds; seen: units, which are samples where nothing is grouped
    int64_t seen;
    double best;
    int64_t best_step, stale; // evaluations since the best
} Sft;

static void state_print(const Sft *s, Text *out) {
    text_addf(out, "{\"format\":1,");
    trainer_state_print(&s->t, out);
    text_addf(out, ",\"seen\":%lld,\"epoch\":%lld,\"index\":%lld,\"best\":\"%a\",\"best_step\":%lld,\"stale\":%lld}",
              (long long)s->seen, (long long)(s->seen / s->train->n_units), (long long)(s->seen % s->train->n_units),
              s->best, (long long)s->best_step, (long long)s->stale);
}

static bool state_read(Sft *s, const Checkpoint *c, Err *e) {
    const Json *j = c->state.root, *best = json_get(j, "best");
    int64_t format = 0, most = INT64_MAX;
    bool ok = json_int(&c->state, j, "format", true, 1, 1, &format, e) &&
              trainer_state_read(&s->t, c, "a fine-tuning run", e) &&
              json_int(&c->state, j, "seen", true, 0, most, &s->seen, e) &&
              json_int(&c->state, j, "best_step", true, -1, most, &s->best_step, e) &&
              json_int(&c->state, j, "stale", true, 0, most, &s->stale, e);
    if (!ok) return false;
    ok = best && best->type == JSON_STRING;
    if (ok) s->best = strtod(best->str, NULL);
    return ok || trainer_state_bad(c, "a fine-tuning run", e);
}

// -------------------------------------------------------------------------------------------------------------- passes

typedef struct Sums { // over the sequences of an update or an evaluation
    double loss, weight, entropy, align;
    int64_t rows, targets, sequences, aligned;
    Text ids, bad; // of the first sequences; of those whose loss is not finite
} Sums;

typedef struct Loading { // samples of a micro-batch
    const Dataset *d;
    const int64_t *index; // [n] which of d
    const bool *pixels;   // [n] with its pictures
    Sample *x;            // [n]
    Err *e;               // [n]
    bool *ok;             // [n]
} Loading;
static void load_one(void *ctx, int64_t k, int thread) {
    Loading *l = ctx;
    (void)thread;
    l->ok[k] = (l->pixels[k] ? sample_load : sample_load_text)(l->d, l->index[k], &l->x[k], &l->e[k]);
}

static Sequence sequence(const Sample *x, const Sample *pictures, const SftOptions *o, uint32_t key) {
    return (Sequence){.ids = x->ids.p,
                      .n = x->ids.n,
                      .n_prompt = x->ids.n,
                      .trained = x->trained,
                      .pixels = pictures->pixels,
                      .grids = x->grids,
                      .n_grids = x->n_grids,
                      .key = key,
                      .align = o->align > 0 ? x->align : NULL};
}

// Samples [first, end) of a unit, which stand at x: those of one lead share the rows of their beginning. Writes at *place
// which of all samples each sequence of the pack is; `base` is the number of x[0] among them.
static bool pack_unit(Sft *s, const Order *w, int64_t first, int64_t end, const Sample *x, int64_t base, int64_t seen,
                      int64_t **place, Err *e) {
    Sequence q[UNIT_SAMPLES];
    int64_t n_units = w->d->n_units, epoch = seen / n_units;
    bool ok = true;
    for (int64_t lead = first; ok && lead < end; lead++) {
        int n = 0;
        const int32_t *align = NULL;
        if (w->d->samples[lead].lead != lead) continue;
        for (int64_t i = lead; i < end; i++) {
            if (w->d->samples[i].lead != lead) continue;
            // the visit of a sample names its dropout mask; with one sample a unit it is `seen` itself
            int64_t key = n_units == w->d->n ? seen : epoch * w->d->n + i;
            q[n] = sequence(&x[i - first], &x[0], s->o, (uint32_t)key);
            if (q[n].align) align = q[n].align;
            n++, *(*place)++ = base + i - first;
        }
        q[0].align = align;
        ok = n == 1 ? pack_add(&s->pack, &s->t.m->c, q, e)
                    : pack_add_group(&s->pack, &s->t.m->c, q, n, w->d->samples[lead].shared, e);
    }
    return ok;
}

// Loads and packs units seen .. seen + n. samples [count] are the caller's to free, place [count] says which of them each
// sequence of the pack is. Samples are read by all threads, pictures once a unit: nothing depends on who reads which.
static bool pack_units(Sft *s, Order *w, int64_t seen, int64_t n, Sample *x, int64_t count, int64_t *place, Err *e) {
    const Dataset *d = w->d;
    int64_t *index = alloc_or_die((size_t)count, sizeof *index, "a micro-batch"), k = 0;
    bool *flags = alloc_or_die((size_t)count, 2 * sizeof *flags, "a micro-batch"), ok = true;
    Err *errors = alloc_or_die((size_t)count, sizeof *errors, "a micro-batch");
    for (int64_t u = 0; u < n; u++) {
        int64_t unit = unit_at(w, seen + u), first = d->units[unit];
        for (int64_t i = first; i < d->units[unit + 1]; i++) flags[k] = i == first, index[k++] = i;
    }
    Loading l = {.d = d, .index = index, .pixels = flags, .x = x, .e = errors, .ok = flags + count};
    parallel_for(count, load_one, &l);
    for (k = 0; ok && k < count; k++)
        if (!(ok = l.ok[k])) *e = errors[k];
    pack_clear(&s->pack);
    k = 0;
    for (int64_t u = 0; ok && u < n; u++) {
        int64_t unit = unit_at(w, seen + u), first = d->units[unit], end = d->units[unit + 1];
        ok = pack_unit(s, w, first, end, x + k, k, seen + u, &place, e);
        k += end - first;
    }
    free(index), free(flags), free(errors);
    return ok;
}

// Whether row i of the batch is one of the text of its sequence; the others are a picture's with targets of their own.
static bool of_text(const PackPlace *p, int64_t i) { return i < p->align_row || i >= p->align_row + p->n_align; }

// The gradient of the loss with respect to every log-probability:
//   -sum weight lp / total over targets of the text, -align / aligned over those of pictures.
static void weigh(const Sft *s, const TrainBatch *b, const Sample *x, const int64_t *place, const Size *all) {
    memset(s->dlp, 0, (size_t)b->N * sizeof *s->dlp);
    for (int64_t k = 0; k < s->pack.n; k++) {
        const PackPlace *p = &s->pack.places[k];
        const Sample *q = &x[place[k]];
        double weight = s->o->per_answer ? q->weight / (double)q->targets : q->weight;
        for (int64_t i = p->row; i < p->row + p->n - p->from; i++)
            s->dlp[i] = b->targets[i] < 0 ? 0 : (float)(-weight / (all->total > 0 ? all->total : 1));
        for (int64_t i = p->align_row; i < p->align_row + p->n_align; i++)
            s->dlp[i] = b->targets[i] < 0 ? 0 : (float)(-s->o->align / (double)all->aligned);
    }
}

static void add_sums(const Sft *s, const TrainBatch *b, const Sample *x, const int64_t *place, bool per_answer,
                     Sums *sums) {
    for (int64_t k = 0; k < s->pack.n; k++) {
        const PackPlace *p = &s->pack.places[k];
        const Sample *q = &x[place[k]];
        double loss = 0, entropy = 0, align = 0;
        int64_t targets = 0;
        for (int64_t i = p->row; i < p->row + p->n - p->from; i++)
            if (of_text(p, i)) loss -= s->lp[i], entropy += s->entropy[i], targets += b->targets[i] >= 0;
        for (int64_t i = p->align_row; i < p->align_row + p->n_align; i++)
            if (b->targets[i] >= 0) align -= s->lp[i], sums->aligned++;
        if (sums->ids.len < 160) text_addf(&sums->ids, "%s%s", sums->ids.len ? ", " : "", q->id);
        if (!isfinite(loss) || !isfinite(align)) text_addf(&sums->bad, "%s%s", sums->bad.len ? ", " : "", q->id);
        sums->loss += (per_answer ? q->weight / (double)q->targets : q->weight) * loss;
        sums->weight += q->weight * (double)targets, sums->entropy += entropy, sums->align += align;
        sums->targets += targets, sums->sequences++;
    }
    sums->rows += b->N;
}

// Units seen .. seen + n in one pass. With `all`, what the whole update holds, gradients of the loss are added; without it
// only scores.
static bool pass(Sft *s, Order *w, int64_t seen, int64_t n, const Size *all, Sums *sums, Err *e) {
    int64_t count = 0;
    for (int64_t u = 0; u < n; u++) {
        int64_t unit = unit_at(w, seen + u);
        count += w->d->units[unit + 1] - w->d->units[unit];
    }
    Sample *x = alloc_or_die((size_t)count, sizeof *x, "a micro-batch");
    int64_t *place = alloc_or_die((size_t)count, sizeof *place, "a micro-batch");
    bool ok = pack_units(s, w, seen, n, x, count, place, e);
    if (ok) {
        const TrainBatch *b = pack_batch(&s->pack, all && s->o->dropout, s->o->seed, s->o->keep);
        if (b->N > s->cap) {
            s->cap = b->N;
            s->dlp = grow_or_die(s->dlp, (size_t)s->cap, sizeof *s->dlp, "the loss");
            s->lp = grow_or_die(s->lp, (size_t)s->cap, sizeof *s->lp, "the loss");
            s->entropy = grow_or_die(s->entropy, (size_t)s->cap, sizeof *s->entropy, "the loss");
        }
        if (all) weigh(s, b, x, place, all);
        ok = model_pass(s->t.m, b, all ? s->dlp : NULL, s->lp, s->entropy, e);
        if (ok) add_sums(s, b, x, place, all && s->o->per_answer, sums);
    }
    for (int64_t k = 0; k < count; k++) sample_free(&x[k]);
    free(x), free(place);
    return ok;
}

// The first bad op of a second, forward pass over the same samples.
static bool find_culprit(Sft *s, int64_t first, int64_t end, Culprit *c, Err *e) {
    Sums sums = {0};
    bool ok = true;
    culprit_watch(c);
    for (int64_t seen = first, n; ok && seen < end && !c->op[0]; seen += n) {
        n = micro_batch(&s->order, seen, end);
        ok = pass(s, &s->order, seen, n, NULL, &sums, e);
    }
    culprit_watch(NULL);
    text_free(&sums.ids), text_free(&sums.bad);
    return ok;
}

// ---------------------------------------------------------------------------------------------------------- evaluation

static bool evaluate(Sft *s, double *loss, Err *e) {
    Sums sums = {0};
    double started = clock_seconds();
    int64_t end = eval_units(s->eval, s->o);
    bool ok = true;
    for (int64_t seen = 0, n; ok && seen < end; seen += n) {
        progress("evaluation", seen, end, started);
        n = micro_batch(&s->eval_order, seen, end);
        ok = pass(s, &s->eval_order, seen, n, NULL, &sums, e);
    }
    progress("evaluation", end, end, started);
    text_free(&sums.ids), text_free(&sums.bad);
    if (!ok) return false;
    *loss = sums.weight > 0 ? sums.loss / sums.weight : 0;
    bool better =
        s->t.step && *loss < s->best - s->o->min_delta; // step 0 is where the model stood: nothing to go back to
    if (better) s->best = *loss, s->best_step = s->t.step, s->stale = 0;
    else s->stale += s->t.step > 0;
    note("eval at step %lld: loss %.4f, perplexity %.3f over %lld targets of %lld samples%s", (long long)s->t.step,
         *loss, exp(*loss), (long long)sums.targets, (long long)sums.sequences, better ? ", the best so far" : "");
    Text t = {0};
    text_addf(&t, "\"ev\":\"eval\",\"step\":%lld", (long long)s->t.step);
    trainer_number(&t, "loss", *loss);
    text_addf(&t, ",\"targets\":%lld,\"best_step\":%lld", (long long)sums.targets, (long long)s->best_step);
    return trainer_log(&s->t, &t, e) && trainer_scalar(&s->t, "eval/loss", *loss, e) &&
           trainer_scalar(&s->t, "eval/perplexity", exp(*loss), e);
}

// The pictures of a sample as the model sees them, in TensorBoard.
static bool show_pictures(Sft *s, const Sample *x, Err *e) {
    const VisionConfig *v = &s->t.m->c.vision;
    const float *pixels = x->pixels;
    bool ok = true;
    for (int k = 0; ok && k < x->n_grids; k++) {
        Image im;
        char tag[300];
        snprintf(tag, sizeof tag, "picture/%s/%d", x->id, k + 1);
        patches_to_image(v, pixels, x->grids[k], &im);
        ok = events_image(&s->t.run->events, tag, s->t.step, &im, e);
        image_free(&im);
        pixels += grid_patches(x->grids[k]) * v->channels * v->temporal * v->patch * v->patch;
    }
    return ok;
}

// Greedy answers to the first prompts of the evaluation set (or of the training set), for people to read.
static bool complete_samples(Sft *s, Err *e) {
    const Dataset *d = s->eval ? s->eval : s->train;
    GenerationConfig g;
    bool from_file, ok = generation_config_load(&g, s->t.m->c.dir, &from_file, e);
    g.sample = (SampleParams){.repetition_penalty = 1, .temperature = 1, .top_p = 1};
    g.max_new_tokens = s->o->sample_tokens;
    bool first = s->t.step == s->o->sample_every; // their pictures are shown once
    Text table = {0};
    text_addf(&table, "| id | answer |\n|---|---|\n");
    for (int64_t i = 0; ok && i < s->o->samples && i < d->n; i++) {
        Sample x;
        Ids prompt = {0};
        Completion done = {0};
        int n_grids = 0;
        if (!(ok = sample_load(d, i, &x, e))) break;
        ok = sample_prompt(d, i, &prompt, &n_grids, e);
        int64_t room = (s->t.m->c.context < LIMIT_CONTEXT ? s->t.m->c.context : LIMIT_CONTEXT) - prompt.n;
        GenerationConfig fits = g;
        if (fits.max_new_tokens > room) fits.max_new_tokens = room > 1 ? room : 1;
        Request r = {.ids = prompt.p,
                     .n = prompt.n,
                     .pixels = n_grids ? x.pixels : NULL,
                     .grids = x.grids,
                     .n_grids = n_grids,
                     .stream = (uint32_t)i,
                     .completions = 1};
        ok = ok && generate(s->t.m, &r, 1, &fits, NULL, NULL, &done, e);
        if (ok) {
            Text answer = {0}, clean = {0}, line = {0};
            tokenizer_decode(s->tok, done.ids.p, done.ids.n, true, &answer);
            text_add_clean(&clean, answer.p ? answer.p : "", answer.len, "");
            note("sample %s at step %lld: %s", x.id, (long long)s->t.step, clean.p ? clean.p : "");
            text_addf(&line, "\"ev\":\"sample\",\"step\":%lld,\"id\":", (long long)s->t.step);
            text_add_json_string(&line, x.id, strlen(x.id));
            text_addf(&line, ",\"tokens\":%lld,\"stopped\":%s,\"text\":", (long long)done.ids.n,
                      done.stopped ? "true" : "false");
            log_add_text(&line, answer.p ? answer.p : "", answer.len);
            text_addf(&table, "| %s | %s |\n", x.id, clean.p ? clean.p : "");
            ok = trainer_log(&s->t, &line, e) && (!first || show_pictures(s, &x, e));
            text_free(&answer), text_free(&clean), completion_free(&done);
        }
        ids_free(&prompt), sample_free(&x);
    }
    ok = ok && events_text(&s->t.run->events, "samples", s->t.step, table.p, table.len, e);
    text_free(&table);
    return ok;
}

// --------------------------------------------------------------------------------------------------------- checkpoints

static int64_t best_of(const Sft *s) { return s->eval ? s->best_step : -1; }

static bool save_checkpoint(Sft *s, bool last, Err *e) {
    Text state = {0};
    state_print(s, &state);
    bool ok = trainer_save(&s->t, state.p, best_of(s), last, NULL, NULL, e);
    text_free(&state);
    return ok;
}

static bool resume(Sft *s, const Checkpoint *c, Err *e) {
    if (!state_read(s, c, e) || !trainer_resume(&s->t, c, best_of(s), e)) return false;
    note("resumed from step %lld of %lld", (long long)s->t.step, (long long)s->plan.steps);
    return true;
}

// ---------------------------------------------------------------------------------------------------------------- step

static bool report_skip(Sft *s, const Sums *sums, int64_t first, double norm, Err *e) {
    Culprit culprit = {{0}};
    bool loss = sums->bad.len > 0;
    if (loss && !find_culprit(s, first, s->seen, &culprit, e)) return false;
    return trainer_skip(&s->t, loss ? sums->bad.p : NULL, sums->ids.p, norm, &culprit, e);
}

static bool report_step(Sft *s, const Sums *sums, double loss, double align, double norm, double factor, bool far,
                        double seconds, Err *e) {
    const AdamOptions *a = &s->o->adam;
    double lr = a->lr[TOWER_DECODER] * factor, entropy = sums->targets ? sums->entropy / (double)sums->targets : 0;
    double spent = clock_seconds() - s->t.started;
    int64_t done = s->t.step - s->t.first_step, left = s->plan.steps - s->t.step;
    double eta = done > 0 ? spent / (double)done * (double)left : 0;
    int width = snprintf(NULL, 0, "%lld", (long long)s->plan.steps);
    char aligned[40] = "";
    if (s->o->align > 0) snprintf(aligned, sizeof aligned, "  align %8.4f", align);
    note("step %*lld/%lld  loss %8.4f%s  norm %8.3f  lr %9.3e  tokens %6lld  targets %5lld  %6.2f s  %7.0f tok/s  left "
         "%d:%02d",
         width, (long long)s->t.step, (long long)s->plan.steps, loss, aligned, norm, lr, (long long)sums->rows,
         (long long)sums->targets, seconds, (double)sums->rows / seconds, (int)(eta / 60), (int)fmod(eta, 60));
    Text t = {0}, timing = {0};
    text_addf(&t, "\"ev\":\"step\",\"step\":%lld", (long long)s->t.step);
    trainer_number(&t, "loss", loss);
    if (s->o->align > 0) trainer_number(&t, "align_loss", align);
    trainer_number(&t, "grad_norm", norm), trainer_number(&t, "learning_rate", lr),
        trainer_number(&t, "entropy", entropy);
    trainer_number(&t, "epoch", (double)s->seen / (double)s->train->n_units);
    text_addf(&t, ",\"tokens\":%lld,\"targets\":%lld,\"samples\":%lld,\"outlier\":%s", (long long)sums->rows,
              (long long)sums->targets, (long long)sums->sequences, far ? "true" : "false");
    text_addf(&timing, "\"ev\":\"step\",\"step\":%lld", (long long)s->t.step);
    trainer_number(&timing, "seconds", seconds),
        trainer_number(&timing, "tokens_per_second", (double)sums->rows / seconds);
    bool ok = trainer_log(&s->t, &t, e) && log_write(&s->t.run->timing, timing.p, e) &&
              trainer_scalar(&s->t, "train/loss", loss, e) &&
              (s->o->align <= 0 || trainer_scalar(&s->t, "train/align_loss", align, e)) &&
              trainer_scalar(&s->t, "train/grad_norm", norm, e) &&
              trainer_scalar(&s->t, "train/learning_rate", lr, e) &&
              trainer_scalar(&s->t, "train/entropy", entropy, e) &&
              trainer_scalar(&s->t, "speed/tokens_per_second", (double)sums->rows / seconds, e);
    text_free(&timing);
    return ok;
}

// One update: accumulate, look, clip, apply. s->t.step and s->seen advance whatever comes of it.
static bool update(Sft *s, Err *e) {
    double started = clock_seconds();
    int64_t first = s->seen, end = s->seen, micros = 0;
    for (; micros < s->o->accumulate && end < s->plan.end; micros++) end += micro_batch(&s->order, end, s->plan.end);
    Size all = {0};
    for (int64_t seen = first; seen < end; seen++) add_unit(&all, &s->order, unit_at(&s->order, seen));
    Sums sums = {0};
    model_zero_gradients(s->t.m);
    for (int64_t k = 0; k < micros; k++) {
        progress("update", k, micros, started);
        int64_t n = micro_batch(&s->order, s->seen, end);
        if (!pass(s, &s->order, s->seen, n, &all, &sums, e)) return text_free(&sums.ids), text_free(&sums.bad), false;
        s->seen += n;
    }
    progress("update", micros, micros, started);

    double loss = all.total > 0 ? sums.loss / all.total : 0, norm = gradient_norm(&s->t.opt, s->t.m);
    double align = sums.aligned ? sums.align / (double)sums.aligned : 0;
    double factor = schedule_factor(&s->schedule, s->t.step++);
    bool ok = true, far = false;
    if (sums.bad.len || !isfinite(norm)) ok = report_skip(s, &sums, first, norm, e);
    else {
        bool skip;
        far = trainer_far(&s->t, sums.ids.p, loss, norm, &skip);
        if (!skip) optimizer_step(&s->t.opt, s->t.m, factor, norm);
        ok = report_step(s, &sums, loss, align, norm, factor, far, fmax(clock_seconds() - started, 1e-6), e);
    }
    text_free(&sums.ids), text_free(&sums.bad);
    return ok;
}

// The evaluation before the first step, if there is one: where the model stood.
static bool start(Sft *s, Err *e) {
    Text t = {0};
    text_addf(
        &t,
        "\"ev\":\"start\",\"steps\":%lld,\"samples\":%lld,\"bad_samples\":%lld,\"long_samples\":%lld,\"trained\":%lld",
        (long long)s->plan.steps, (long long)s->train->n, (long long)s->train->dropped_bad,
        (long long)s->train->dropped_long, (long long)s->t.opt.n);
    double loss;
    return trainer_log(&s->t, &t, e) && (!s->eval || !s->o->eval_every || evaluate(s, &loss, e));
}

bool sft_run(Model *m, const Tokenizer *t, const Dataset *train, const Dataset *eval, Run *run, const SftOptions *o,
             const Checkpoint *from, bool *finished, Err *e) {
    Sft s = {.t = {.m = m, .run = run, .o = o->trainer},
             .tok = t,
             .train = train,
             .eval = eval,
             .o = o,
             .best = INFINITY,
             .best_step = -1};
    *finished = false;
    sft_plan(train, o, &s.plan);
    s.order = order_of(train, o);
    s.eval_order = (Order){.d = eval, .o = o, .in_order = true};
    s.schedule = o->schedule;
    s.schedule.steps = s.plan.steps;
    if (o->warmup_part > 0) s.schedule.warmup = (int64_t)ceil(o->warmup_part * (double)s.plan.steps);
    bool ok =
        optimizer_open(&s.t.opt, m, &o->adam, e) && (from && from->step >= 0 ? resume(&s, from, e) : start(&s, e));
    s.t.started = clock_seconds(), s.t.first_step = s.t.step;
    bool stale = o->patience > 0 && s.stale >= o->patience; // when resumed behind an early end
    bool stop = stop_requested(); // looked at once a step: a signal after the look is for the next step
    while (ok && s.t.step < s.plan.steps && !stale && !stop) {
        double loss;
        int64_t best = s.best_step;
        if (!(ok = update(&s, e))) break;
        progress("training", s.t.step - s.t.first_step, s.plan.steps - s.t.first_step, s.t.started);
        trainer_memory(&s.t);
        bool last = s.t.step == s.plan.steps;
        if (eval && (trainer_due(o->eval_every, s.t.step) || (last && o->eval_every))) ok = evaluate(&s, &loss, e);
        if (ok && trainer_due(o->sample_every, s.t.step)) ok = complete_samples(&s, e);
        stale = o->patience > 0 && s.stale >= o->patience;
        stop = stop_requested();
        if (ok && (trainer_due(o->save_every, s.t.step) || last || stale || stop || s.best_step > best))
            ok = save_checkpoint(&s, last || stale || stop, e);
        if (ok && trainer_due(CHECK_FINITE_EVERY, s.t.step)) ok = trainer_finite(&s.t, e);
    }
    *finished = ok && (s.t.step == s.plan.steps || stale);
    if (*finished) {
        if (stale && s.t.step < s.plan.steps)
            note("stopped at step %lld: %lld evaluations without a better loss", (long long)s.t.step,
                 (long long)s.stale);
        *finished = ok = trainer_end(&s.t, o->export_best ? s.best_step : -1, e);
    }
    optimizer_close(&s.t.opt, m);
    pack_free(&s.pack), order_free(&s.order);
    free(s.dlp), free(s.lp), free(s.entropy);
    return ok;
}
