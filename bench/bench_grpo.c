// bench_grpo.c - what a shared prompt saves in GRPO, on "cpu": rollouts in one batch against one by one, and the training pass
// over a group against its sequences packed one after the other.
//
//     bench_grpo DIR [--threads N] [--rounds N] [--new N] [--only rollouts|pass]
//
// What it is:  the checkpoint in DIR in F32 (bench/make_checkpoint demo DIR), every parameter trained. Eight prompts of 192
//              tokens, 64 of them a picture of 224 x 224, and eight answers to each of N tokens (96). Both ways take turns,
//              a round holds one of each, and a ratio is the median over rounds, by the clock and by the processor's time. The answers of both ways must be the same
//              tokens with the same bits of log-probability, and the gradients of both the same to rounding, or the
//              comparison would be worthless: that is looked at, and said.
// What it is not: a test. Nothing fails here but answers or gradients that differ.
// Read before: generate.c, train.c (pack_add_group).  Read next: PERF.md, where the results are kept.
#include "ceilings.h"

enum { PROMPTS = 8, G = 8, ANSWERS = PROMPTS * G, PROMPT = 192, SIDE = 16, MOST_NEW = 1024 };

typedef struct Rollouts {
    Model m;
    int32_t ids[PROMPTS][PROMPT];
    Grid grid;
    float *pixels; // [PROMPTS] pictures
    int64_t values, new_tokens;
    Completion batch[ANSWERS], alone[ANSWERS];
} Rollouts;

static bool rollouts_open(Rollouts *r, const char *dir, Err *e) {
    if (!model_load(&r->m, dir, ops_cpu(), (LoadOptions){.force_f32 = true}, e)) return false;
    for (int64_t i = 0; i < r->m.n_params; i++) r->m.params[i].trained = true;
    if (!model_train_open(&r->m, e)) return false;
    const Config *c = &r->m.c;
    int64_t units = SIDE * SIDE / 4, text = c->vision_start_id - 9; // ids below the special ones
    r->grid = (Grid){1, SIDE, SIDE};
    r->values = SIDE * SIDE * c->vision.channels * c->vision.temporal * c->vision.patch * c->vision.patch;
    r->pixels = alloc_or_die((size_t)(PROMPTS * r->values), sizeof *r->pixels, "pictures");
    for (int64_t i = 0; i < PROMPTS * r->values; i++) r->pixels[i] = (float)(int32_t)cheap() * (2.0f / 2147483648.0f);
    for (int q = 0; q < PROMPTS; q++)
        for (int i = 0; i < PROMPT; i++)
            r->ids[q][i] = i == 8                   ? c->vision_start_id
                           : i > 8 && i < 9 + units ? c->image_id
                           : i == 9 + units         ? c->vision_end_id
                                                    : (int32_t)(cheap() % (uint64_t)text);
    return true;
}
static Request request_of(const Rollouts *r, int q, int first, int completions) {
    return (Request){.ids = r->ids[q],
                     .n = PROMPT,
                     .pixels = r->pixels + q * r->values,
                     .grids = &r->grid,
                     .n_grids = 1,
                     .stream = (uint32_t)(G * q + first),
                     .completions = completions};
}

// ----------------------------------------------------------------------------------------------------------- rollouts

typedef struct Times { // of one way, by round
    double wall[MOST_ROUNDS], cpu[MOST_ROUNDS];
    double wall_started, cpu_started;
} Times;
static void begin(Times *t) { t->cpu_started = cpu_seconds(), t->wall_started = clock_seconds(); }
static void end(Times *t, int round) {
    t->wall[round] = clock_seconds() - t->wall_started, t->cpu[round] = cpu_seconds() - t->cpu_started;
}

static bool in_batch(Rollouts *r, Times *t, int round, Err *e) {
    GenerationConfig g = {.sample = {.repetition_penalty = 1, .do_sample = 1, .temperature = 1, .top_p = 1, .seed = 1},
                          .max_new_tokens = r->new_tokens};
    Request all[PROMPTS];
    begin(t);
    for (int q = 0; q < PROMPTS; q++) all[q] = request_of(r, q, 0, G);
    bool ok = generate(&r->m, all, PROMPTS, &g, NULL, NULL, r->batch, e);
    end(t, round);
    return ok;
}
static bool one_by_one(Rollouts *r, Times *t, int round, Err *e) {
    GenerationConfig g = {.sample = {.repetition_penalty = 1, .do_sample = 1, .temperature = 1, .top_p = 1, .seed = 1},
                          .max_new_tokens = r->new_tokens};
    bool ok = true;
    begin(t);
    for (int k = 0; ok && k < ANSWERS; k++) {
        Request one = request_of(r, k / G, k % G, 1);
        ok = generate(&r->m, &one, 1, &g, NULL, NULL, &r->alone[k], e);
    }
    end(t, round);
    return ok;
}
static bool same_answers(const Rollouts *r) {
    int64_t same = 0;
    for (int k = 0; k < ANSWERS; k++) {
        const Completion *a = &r->batch[k], *b = &r->alone[k];
        same += a->ids.n == b->ids.n && !memcmp(a->ids.p, b->ids.p, (size_t)a->ids.n * sizeof *a->ids.p) &&
                !memcmp(a->lp, b->lp, (size_t)a->ids.n * sizeof *a->lp);
    }
    return same == ANSWERS;
}

static void print_way(const char *name, const Times *t, int rounds, double tokens) {
    double wall = median(t->wall, rounds);
    printf("  %-28s %8.1f ms %7.0f tokens/s; of processor %8.1f ms\n", name, 1e3 * wall, tokens / wall,
           1e3 * median(t->cpu, rounds));
}
static void print_ratio(const char *what, const Times *a, const Times *b, int rounds, const char *same) {
    double wall[MOST_ROUNDS], cpu[MOST_ROUNDS], low = INFINITY, high = 0;
    for (int i = 0; i < rounds; i++) {
        wall[i] = a->wall[i] / b->wall[i], cpu[i] = a->cpu[i] / b->cpu[i];
        low = fmin(low, wall[i]), high = fmax(high, wall[i]);
    }
    printf("  %s %.2f (%.2f to %.2f in %d rounds), of the processor's time %.2f; %s\n", what, median(wall, rounds), low,
           high, rounds, median(cpu, rounds), same);
}
static bool differ(const char *found, Err *e) {
    return err_set(e, "E-BG-01", AT(.file = "bench_grpo"), "expected the same work both ways; found %s; do: report it",
                   found);
}

static bool bench_rollouts(Rollouts *r, int rounds, Err *e) {
    Times batch, alone;
    for (int i = 0; i < rounds; i++) {
        if (!in_batch(r, &batch, i, e) || !one_by_one(r, &alone, i, e)) return false;
        bool same = same_answers(r);
        for (int k = 0; k < ANSWERS; k++) completion_free(&r->batch[k]), completion_free(&r->alone[k]);
        if (!same) return differ("other answers", e);
    }
    double tokens = (double)(ANSWERS * r->new_tokens);
    printf("rollouts: %d prompts of %d tokens with a picture, %d answers to each of %lld tokens\n", PROMPTS, PROMPT, G,
           (long long)r->new_tokens);
    print_way("one batch, prompts shared", &batch, rounds, tokens);
    print_way("one by one", &alone, rounds, tokens);
    print_ratio("one by one takes so many times as long:", &alone, &batch, rounds,
                "the answers are the same to the bit");
    return true;
}

// ------------------------------------------------------------------------------------------------------------ the pass

// Forward and backward of one group, every block kept. Gradients are left in the model.
static bool pass(Rollouts *r, bool shared, int64_t *rows, Times *t, int round, Err *e) {
    static int32_t ids[G][PROMPT + MOST_NEW];
    static uint8_t trained[PROMPT + MOST_NEW];
    Pack p = {0};
    Sequence s[G];
    bool ok = true;
    for (int k = 0; k < G; k++) {
        memcpy(ids[k], r->ids[0], sizeof r->ids[0]);
        for (int64_t i = 0; i < r->new_tokens; i++)
            ids[k][PROMPT + i] = (int32_t)((31 * i + 7 * k) % 1000), trained[PROMPT + i] = 1;
        s[k] = (Sequence){.ids = ids[k],
                          .n = PROMPT + r->new_tokens,
                          .n_prompt = PROMPT,
                          .trained = trained,
                          .pixels = r->pixels,
                          .grids = &r->grid,
                          .n_grids = 1};
    }
    model_zero_gradients(&r->m);
    begin(t);
    if (shared) ok = pack_add_group(&p, &r->m.c, s, G, PROMPT, e);
    for (int k = 0; !shared && ok && k < G; k++) ok = pack_add(&p, &r->m.c, &s[k], e);
    const TrainBatch *b = pack_batch(&p, false, 0, r->m.c.L);
    float *dlp = alloc_or_die(2 * (size_t)b->N, sizeof *dlp, "the pass");
    for (int64_t i = 0; i < b->N; i++) dlp[i] = b->targets[i] < 0 ? 0 : b->targets[i] % 2 ? -1e-3f : 1e-3f;
    ok = ok && model_pass(&r->m, b, dlp, dlp + b->N, NULL, e);
    end(t, round), *rows = b->N;
    free(dlp), pack_free(&p);
    return ok;
}

static bool bench_pass(Rollouts *r, int rounds, Err *e) {
    Times group, apart;
    double error = 0, size = 0;
    int64_t rows[2], n = (int64_t)(r->m.gradients.used / sizeof(float));
    const float *now = (const float *)(const void *)r->m.gradients.base;
    float *before = alloc_or_die((size_t)n, sizeof *before, "gradients");
    for (int i = 0; i < rounds; i++) {
        if (!pass(r, true, &rows[0], &group, i, e)) return false;
        memcpy(before, now, (size_t)n * sizeof *before);
        if (!pass(r, false, &rows[1], &apart, i, e)) return false;
    }
    for (int64_t i = 0; i < n; i++)
        error += (now[i] - before[i]) * (double)(now[i] - before[i]), size += now[i] * (double)now[i];
    free(before);
    if (!(error < 1e-10 * size)) return differ("other gradients", e);
    printf("the pass: forward and backward of one group, %d answers of %lld tokens to a prompt of %d with a picture\n",
           G, (long long)r->new_tokens, PROMPT);
    print_way("one group", &group, rounds, (double)rows[0]);
    print_way("separate sequences", &apart, rounds, (double)rows[1]);
    char same[100];
    snprintf(same, sizeof same, "%lld of %lld rows; the gradients differ by %.1e of their norm", (long long)rows[0],
             (long long)rows[1], sqrt(error / size));
    print_ratio("the group takes so much of the time of the separate ones:", &group, &apart, rounds, same);
    return true;
}

int main(int argc, char **argv) {
    static Rollouts r = {.new_tokens = 96};
    const char *dir = argc > 1 && argv[1][0] != '-' ? argv[1] : NULL, *only = "";
    int threads = 0, rounds = 5;
    bool right = dir != NULL;
    for (int i = 2; right && i < argc; i += 2) {
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (!value) right = false;
        else if (!strcmp(argv[i], "--threads")) threads = (int)strtol(value, NULL, 10);
        else if (!strcmp(argv[i], "--rounds")) rounds = (int)strtol(value, NULL, 10);
        else if (!strcmp(argv[i], "--new")) r.new_tokens = strtol(value, NULL, 10);
        else if (!strcmp(argv[i], "--only")) only = value;
        else right = false;
    }
    if (!right || r.new_tokens < 1 || r.new_tokens > MOST_NEW) {
        fprintf(stderr, "usage: bench_grpo DIR [--threads N] [--rounds N] [--new 1..%d] [--only rollouts|pass]\n",
                MOST_NEW);
        return EXIT_USAGE;
    }
    Err e = {0};
    rounds = rounds < 1 ? 1 : rounds > MOST_ROUNDS ? MOST_ROUNDS : rounds;
    pool_start(threads);
    printf("instruction set %s, %d threads, medians of %d rounds\n", cpu_isa(), pool_threads(), rounds);
    bool ok = rollouts_open(&r, dir, &e) && (!strcmp(only, "pass") || bench_rollouts(&r, rounds, &e)) &&
              (!strcmp(only, "rollouts") || bench_pass(&r, rounds, &e));
    model_free(&r.m), free(r.pixels);
    pool_stop();
    return ok ? EXIT_OK : err_report(&e);
}
