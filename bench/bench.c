// bench.c - how fast the cpu device is, as shares of what this machine can do, both measured in the same run.
//
// What it is:  a table, one line each: name, measured, ceiling, share. Ceilings: a loop of fused multiply-adds that touches
//              no memory (GFLOP/s), and reading memory once with all threads (GB/s). Each line is the median of a few
//              rounds, each with its ceiling measured right before and after: neighbours on a machine come and go.
// What it is not: a test. Nothing fails here.      build/bench/bench [--threads N] [--rounds N] [--model DIR] [--tokens N]
// Read before: ops.h.  Read next: PERF.md, where the results are kept.
#include "ceilings.h"

static int rounds = 5;

// ---------------------------------------------------------------------------------------------------------- ceilings
// That of fused multiply-adds is in ceilings.h; this is that of memory.

enum { READ_CHUNK = 1 << 20 };
static char *read_from;
static size_t read_bytes;
static void read_job(void *ctx, int64_t chunk, int thread) { // four streams, as the kernels read four rows
    typedef uint64_t V __attribute__((vector_size(32), may_alias, aligned(8)));
    const char *p = read_from + chunk * READ_CHUNK;
    const size_t quarter = READ_CHUNK / 4;
    V a = {0}, b = a, c = a, d = a;
    (void)ctx, (void)thread;
    for (size_t i = 0; i < quarter; i += 32) {
        a ^= *(const V *)(p + i), b ^= *(const V *)(p + quarter + i);
        c ^= *(const V *)(p + 2 * quarter + i), d ^= *(const V *)(p + 3 * quarter + i);
    }
    a ^= b ^ c ^ d;
    sink = (float)a[0];
}
static double read_speed(void) { // GB/s of all threads
    double started = clock_seconds();
    parallel_for((int64_t)(read_bytes / READ_CHUNK), read_job, NULL);
    return 1e-9 * (double)read_bytes / (clock_seconds() - started);
}

// One line of the table: measured speeds, each with its ceiling from right before and after (the higher of the two). Printed
// is the round whose share is the median: on a machine with neighbours the best of each would come from different moments.
typedef struct Shares {
    double speed[MOST_ROUNDS], ceiling[MOST_ROUNDS];
    int n;
} Shares;
static void shares_add(Shares *s, double speed, double before, double after) {
    int at = s->n++; // kept in order of the share
    double top = before > after ? before : after;
    for (; at > 0 && s->speed[at - 1] / s->ceiling[at - 1] > speed / top; at--)
        s->speed[at] = s->speed[at - 1], s->ceiling[at] = s->ceiling[at - 1];
    s->speed[at] = speed, s->ceiling[at] = top;
}
static double shares_print(const Shares *s, const char *name, const char *unit) {
    double speed = s->speed[s->n / 2], top = s->ceiling[s->n / 2];
    printf("%-46s %8.1f %-8s %8.1f %6.1f %%\n", name, speed, unit, top, 100 * speed / top);
    fflush(stdout);
    return speed;
}

typedef void (*Once)(void *ctx);
static double share_line(const char *name, Once once, void *ctx, double amount, const char *unit,
                         double (*ceiling)(void)) {
    Shares s = {.n = 0};
    once(ctx); // warm
    for (int r = 0; r < rounds; r++) {
        double before = ceiling(), started = clock_seconds();
        once(ctx);
        double seconds = clock_seconds() - started;
        shares_add(&s, amount / seconds, before, ceiling());
    }
    return shares_print(&s, name, unit);
}

// ------------------------------------------------------------------------------------------------------------ memory

static Mat random_mat(int64_t rows, int64_t cols, Type type) {
    Mat m = mat(ops_cpu()->alloc((size_t)(rows * cols) * type_size(type)), rows, cols, type);
    CHECK(m.p, "no memory for a matrix of %lld x %lld", (long long)rows, (long long)cols);
    for (int64_t i = 0; i < rows * cols; i++) {
        float f = (float)(int32_t)cheap() * (1.0f / 2147483648.0f);
        if (type == BF16) ((uint16_t *)m.p)[i] = f32_to_bf16(f);
        else ((float *)m.p)[i] = f;
    }
    return m;
}

// ----------------------------------------------------------------------------------------------------------- the lines

typedef struct Product {
    Mat y, x, w;
    Layout layout;
    float beta;
} Product;
static void product_once(void *ctx) {
    Product *p = ctx;
    matmul(ops_cpu(), p->y, p->x, p->w, p->layout, 1, p->beta);
}
static void bench_matmul(int64_t N, int64_t K, int64_t M, Type type, double (*ceiling)(void)) {
    char name[100];
    Product p = {random_mat(N, M, F32), random_mat(N, K, F32), random_mat(M, K, type), NT, 0};
    snprintf(name, sizeof name, "%s %lld x %lld x %lld, %s weights", N > 16 ? "matmul" : "few rows", (long long)N,
             (long long)K, (long long)M, type_name(type));
    if (ceiling == fma_peak) share_line(name, product_once, &p, 2e-9 * (double)(N * K * M), "GFLOP/s", fma_peak);
    else share_line(name, product_once, &p, 1e-9 * (double)(K * M) * (double)type_size(type), "GB/s", read_speed);
    ops_cpu()->release(p.y.p), ops_cpu()->release(p.x.p), ops_cpu()->release(p.w.p);
}

// The three products of a linear layer in training: N tokens, in and out channels; the weight gradient adds.
static void bench_training(const char *what, int64_t N, int64_t in, int64_t out) {
    char name[100];
    Product p[3] = {{random_mat(N, out, F32), random_mat(N, in, F32), random_mat(out, in, F32), NT, 0},
                    {random_mat(N, in, F32), random_mat(N, out, F32), random_mat(out, in, F32), NN, 0},
                    {random_mat(out, in, F32), random_mat(N, out, F32), random_mat(N, in, F32), TN, 1}};
    for (int k = 0; k < 3; k++) {
        snprintf(name, sizeof name, "%s %lld > %lld, %s", what, (long long)in, (long long)out,
                 k == 0   ? "forward"
                 : k == 1 ? "dx"
                          : "dw");
        share_line(name, product_once, &p[k], 2e-9 * (double)(N * in * out), "GFLOP/s", fma_peak);
        ops_cpu()->release(p[k].y.p), ops_cpu()->release(p[k].x.p), ops_cpu()->release(p[k].w.p);
    }
}

// Rows of numbers, as one read of memory would be the ceiling: bytes in and out.
typedef struct Elementwise {
    Mat a[6], rstd, w, keys, targets;
    int which;
} Elementwise;
static void elementwise_once(void *ctx) {
    Elementwise *e = ctx;
    const Ops *d = ops_cpu();
    Mat *a = e->a;
    switch (e->which) {
    case 0: swiglu_forward(d, a[0], a[2], a[3]); break;
    case 1: swiglu_backward(d, a[0], a[1], a[2], a[3], a[4]); break;
    case 2: gelu_forward(d, a[0], a[2]); break;
    case 3: gelu_backward(d, a[0], a[2], a[3]); break;
    case 4: rmsnorm_backward_add(d, a[0], mat_rows(a[1], 0, 1), a[2], a[3], e->w, e->rstd); break;
    case 5: bias_backward(d, mat_rows(a[1], 0, 1), a[2]); break;
    case 6: dropout(d, a[0], a[2], e->keys, 0.1f, 1, 2); break;
    case 7: logprob_forward(d, e->rstd, mat_none(), mat_none(), a[2], e->targets, 1); break;
    case 8: logprob_backward(d, a[0], a[2], e->targets, e->rstd, e->rstd, 1); break;
    case 9: scatter_add_rows(d, a[0], a[2], e->targets); break;
    case 10: sum_squares(d, mat(e->w.p, 1, 1, F32), a[2]); break;
    default: adamw(d, a[0], a[1], a[5], a[2], (AdamStep){1, 1e-3, 0.1, 0.9, 0.999, 1e-8, 1e-3, 1});
    }
}
static void bench_elementwise(int64_t N, int64_t C) {
    static const struct {
        const char *name;
        double passes; // over a matrix
    } ops[] = {{"swiglu_forward", 3},       {"swiglu_backward", 5},  {"gelu_forward", 2}, {"gelu_backward", 3},
               {"rmsnorm_backward_add", 6}, {"bias_backward", 1},    {"dropout", 2},      {"logprob_forward", 2},
               {"logprob_backward", 2},     {"scatter_add_rows", 3}, {"sum_squares", 1},  {"adamw", 7}};
    Elementwise e = {.rstd = random_mat(N, 1, F32),
                     .w = random_mat(1, C, F32),
                     .keys = random_mat(N, 2, F32),
                     .targets = random_mat(N, 1, F32)};
    e.keys.type = e.targets.type = I32;
    for (int64_t i = 0; i < N; i++) ((int32_t *)e.targets.p)[i] = (int32_t)(i * 37 % (C < N ? C : N));
    for (int k = 0; k < 6; k++) e.a[k] = random_mat(N, C, F32);
    memset(e.a[5].p, 0, (size_t)(N * C) * 4); // a second moment is not negative
    for (e.which = 0; e.which < 12; e.which++) {
        char name[100];
        snprintf(name, sizeof name, "%s %lld x %lld", ops[e.which].name, (long long)N, (long long)C);
        share_line(name, elementwise_once, &e, 4e-9 * ops[e.which].passes * (double)(N * C), "GB/s", read_speed);
    }
    for (int k = 0; k < 6; k++) ops_cpu()->release(e.a[k].p);
    ops_cpu()->release(e.rstd.p), ops_cpu()->release(e.w.p), ops_cpu()->release(e.keys.p);
    ops_cpu()->release(e.targets.p);
}

// All matrix-vector products of one decode step of a 3B model. The weights of DISTINCT layers stand for all: together they
// are larger than any cache.
enum { LAYERS = 36, DISTINCT = 6, PER_LAYER = 7 };
static const int64_t decode_shapes[PER_LAYER][2] = {{2048, 2048},  {256, 2048},   {256, 2048},  {2048, 2048},
                                                    {11008, 2048}, {11008, 2048}, {2048, 11008}};
typedef struct DecodeStep {
    Mat w[DISTINCT][PER_LAYER], head, x, y;
} DecodeStep;
static void decode_once(void *ctx) {
    DecodeStep *s = ctx;
    for (int l = 0; l < LAYERS; l++)
        for (int k = 0; k < PER_LAYER; k++) {
            Mat w = s->w[l % DISTINCT][k];
            matmul(ops_cpu(), mat_cols(s->y, 0, w.rows), mat_cols(s->x, 0, w.cols), w, NT, 1, 0);
        }
    matmul(ops_cpu(), mat_cols(s->y, 0, s->head.rows), mat_cols(s->x, 0, s->head.cols), s->head, NT, 1, 0);
}
static void bench_decode_step(void) {
    DecodeStep s = {
        .head = random_mat(151936, 2048, BF16), .x = random_mat(1, 11008, F32), .y = random_mat(1, 151936, F32)};
    double bytes = 2.0 * 151936 * 2048;
    for (int k = 0; k < PER_LAYER; k++) {
        for (int l = 0; l < DISTINCT; l++) s.w[l][k] = random_mat(decode_shapes[k][0], decode_shapes[k][1], BF16);
        bytes += 2.0 * LAYERS * (double)(decode_shapes[k][0] * decode_shapes[k][1]);
    }
    double speed =
        share_line("the products of a 3B decode step, bf16", decode_once, &s, 1e-9 * bytes, "GB/s", read_speed);
    printf("%-46s %8.2f %-8s\n", "  that is", speed * 1e9 / bytes, "steps/s");
    for (int k = 0; k < PER_LAYER; k++)
        for (int l = 0; l < DISTINCT; l++) ops_cpu()->release(s.w[l][k].p);
    ops_cpu()->release(s.head.p), ops_cpu()->release(s.x.p), ops_cpu()->release(s.y.p);
}

typedef struct Attending {
    Mat o, q, k, v, lse, dq, dk, dv, dout;
    Spans spans;
    int64_t heads, kv_heads, dim;
} Attending;
static void attention_once(void *ctx) {
    Attending *a = ctx;
    attention_forward(ops_cpu(), a->o, mat_none(), a->q, a->k, a->v, a->spans, a->heads, a->kv_heads, a->dim, 0.1f);
}
static void attention_backward_once(void *ctx) {
    Attending *a = ctx;
    attention_backward(ops_cpu(), a->dq, a->dk, a->dv,
                       mat_reshape(mat_rows(a->lse, a->q.rows, a->q.rows), a->q.rows, a->heads), a->dout, a->q, a->k,
                       a->v, a->o, mat_rows(a->lse, 0, a->q.rows), a->spans, a->heads, a->kv_heads, a->dim, 0.1f);
}
static void bench_attention(const char *name, int64_t N, int64_t window, bool causal, int64_t heads, int64_t kv_heads,
                            int64_t dim) {
    int64_t n = N / window;
    Span *s = alloc_or_die((size_t)n, sizeof *s, "spans");
    for (int64_t i = 0; i < n; i++) s[i] = (Span){(int32_t)(i * window), (int32_t)((i + 1) * window), 0, 0, causal};
    Attending a = {random_mat(N, heads * dim, F32),
                   random_mat(N, heads * dim, F32),
                   random_mat(N, kv_heads * dim, F32),
                   random_mat(N, kv_heads * dim, F32),
                   random_mat(2 * N, heads, F32), // lse, and below it delta
                   random_mat(N, heads * dim, F32),
                   random_mat(N, kv_heads * dim, F32),
                   random_mat(N, kv_heads * dim, F32),
                   random_mat(N, heads * dim, F32),
                   {mat(s, n, 5, I32), s, n, window},
                   heads,
                   kv_heads,
                   dim};
    double pairs = (double)n * (causal ? 0.5 * (double)(window * (window + 1)) : (double)(window * window));
    share_line(name, attention_once, &a, 4e-9 * pairs * (double)(heads * dim), "GFLOP/s", fma_peak);
    // counted as the five products that are needed: S = Q K^T, dP = dO V^T, dQ, dK, dV
    share_line("  its backward", attention_backward_once, &a, 10e-9 * pairs * (double)(heads * dim), "GFLOP/s",
               fma_peak);
    Mat all[] = {a.o, a.q, a.k, a.v, a.lse, a.dq, a.dk, a.dv, a.dout};
    for (int i = 0; i < 9; i++) ops_cpu()->release(all[i].p);
    free(s);
}

// A whole model: seconds between the first and the last token of one answer.
typedef struct TokenTimes {
    double first, last;
    int64_t n;
} TokenTimes;
static bool token_seen(void *ctx, int completion, int32_t id) {
    TokenTimes *t = ctx;
    (void)completion, (void)id;
    t->last = clock_seconds();
    if (t->n++ == 0) t->first = t->last;
    return true;
}
static bool bench_model(const char *dir, int64_t tokens, Err *e) {
    Model m = {0};
    double started = clock_seconds(), bytes = 0;
    if (!model_load(&m, dir, ops_cpu(), (LoadOptions){0}, e)) return false;
    printf("%-46s %8.2f %-8s\n", "loading the model", clock_seconds() - started, "s");
    for (int64_t i = 0; i < m.n_params; i++) { // what a decode step reads: decoder matrices and the head, once
        Param *p = &m.params[i];
        bool embedding = p->w == &m.embed && !m.c.tied;
        if (p->dims == 2 && !p->tied && !embedding && strncmp(p->name, "visual.", 7))
            bytes += (double)(p->rows * p->cols) * (double)type_size(p->w->v.type);
    }
    int32_t ids[32];
    for (int i = 0; i < 32; i++) ids[i] = (int32_t)(cheap() % 1000);
    GenerationConfig g = {.sample = {.repetition_penalty = 1, .temperature = 1, .top_p = 1}, .max_new_tokens = tokens};
    Shares s = {.n = 0};
    for (int r = 0; r < 3; r++) {
        Request request = {.ids = ids, .n = 32, .completions = 1};
        Completion out = {0};
        TokenTimes t = {0};
        double before = read_speed();
        if (!generate(&m, &request, 1, &g, token_seen, &t, &out, e)) return false;
        if (t.n > 1) shares_add(&s, (double)(t.n - 1) / (t.last - t.first) * bytes * 1e-9, before, read_speed());
        completion_free(&out);
    }
    if (s.n)
        printf("%-46s %8.2f %-8s\n", "  that is", shares_print(&s, "decode, one sequence", "GB/s") * 1e9 / bytes,
               "tokens/s");
    model_free(&m);
    return true;
}

int main(int argc, char **argv) {
    const char *model = NULL;
    int threads = 0;
    int64_t tokens = 16;
    for (int i = 1; i < argc; i += 2) {
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (value && !strcmp(argv[i], "--threads")) threads = (int)strtol(value, NULL, 10);
        else if (value && !strcmp(argv[i], "--rounds")) rounds = (int)strtol(value, NULL, 10);
        else if (value && !strcmp(argv[i], "--model")) model = value;
        else if (value && !strcmp(argv[i], "--tokens")) tokens = strtol(value, NULL, 10);
        else {
            fprintf(stderr, "usage: bench [--threads N] [--rounds N] [--model DIR [--tokens N]]\n");
            return strcmp(argv[i], "--help") ? EXIT_USAGE : EXIT_OK;
        }
    }
    rounds = rounds < 1 ? 1 : rounds > MOST_ROUNDS ? MOST_ROUNDS : rounds;
    pool_start(threads);
    read_bytes = (size_t)768 << 20;
    Mat memory = random_mat(1, (int64_t)(read_bytes / 4), F32);
    read_from = memory.p;
    printf("instruction set %s, %d threads, median of %d rounds\n", cpu_isa(), pool_threads(), rounds);
    printf("%-46s %8s %-8s %8s %8s\n", "name", "measured", "unit", "ceiling", "share");
    if (model) {
        Err e = {0};
        return bench_model(model, tokens, &e) ? EXIT_OK : err_report(&e);
    }
    static const int64_t shapes[][3] = {
        {512, 2048, 2048}, {512, 2048, 11008}, {512, 11008, 2048}, {1024, 3584, 3584}, {2048, 1280, 3420}};
    for (int type = F32; type <= BF16; type++)
        for (int k = 0; k < 5; k++) bench_matmul(shapes[k][0], shapes[k][1], shapes[k][2], (Type)type, fma_peak);
    bench_attention("attention, 1024 causal, 16/2 heads of 128", 1024, 1024, true, 16, 2, 128);
    bench_attention("attention, 1024 whole, 16 heads of 80", 1024, 1024, false, 16, 16, 80);
    bench_attention("attention, windows of 64, 16 heads of 80", 1024, 64, false, 16, 16, 80);
    bench_attention("attention, 4 x 512 causal, 4/2 heads of 64", 2048, 512, true, 4, 2, 64);
    static const int64_t layers[][2] = {{256, 512}, {256, 688}, {688, 256}, {160, 480}, {512, 1536}, {256, 4096}};
    for (int k = 0; k < 6; k++) bench_training("2048 tokens,", 2048, layers[k][0], layers[k][1]);
    bench_training("LoRA A,", 2048, 256, 8), bench_training("LoRA B,", 2048, 8, 688);
    bench_training("LoRA A,", 2048, 256, 64), bench_training("LoRA B,", 2048, 64, 688);
    bench_elementwise(2048, 688), bench_elementwise(2048, 4096);
    for (int n = 1; n <= 8; n *= 2) bench_matmul(n, 3584, 37888, BF16, read_speed);
    bench_decode_step();
    pool_stop();
    return EXIT_OK;
}
