// bench_gpu.c - how fast "cuda" is: every kernel beside its floor, a whole LoRA training step, decoding, and memory.
//
//     bench_gpu [--smoke] [--rounds N] [--shape 7b|3b|all] [--only TEXT] [--model DIR] [--python PATH] [--out FILE]
//
// What it is:  first the ceilings of this device, measured in this run: copying in device memory, mma.sync on registers,
//              the best large matmul. Then each kernel at the shapes of real models, rung beside rung and round by round, so
//              that a disturbed moment meets all of them: the median, and the share of the floor, which is the larger of
//              bytes / copy bandwidth and operations / best matmul. With --model DIR (build/bench/make_checkpoint 7b DIR) a LoRA
//              step of that checkpoint, what its arenas hold against what the device says is used, and decoding; with
//              --python the same steps and answers by transformers and PEFT in the same run, in turn.
//              --only TEXT: rows whose name holds it, and no model. --smoke: tiny sizes, so that the emulator runs every
//              line; its times mean nothing.
// What it is not: a test. Parity is test_kernels' business; a number of this program counts only beside a clean parity run.
// Read before: step.h, ops.h.  Read next: bench/results/, PERF.md.
#include "step.h"
#include "../test/gpu_probe.h"
#include <errno.h>
#include <stdarg.h>

__attribute__((weak)) bool gpu_describe(char *text, size_t size);
__attribute__((weak)) double gpu_mma_peak(void);

static const Ops *d;
static bool smoke;
static int rounds = 7;
static const char *only;
static FILE *result;

__attribute__((format(printf, 1, 2))) static void say(const char *format, ...) { // to standard output and --out
    va_list list, again;
    va_start(list, format);
    va_copy(again, list);
    vprintf(format, list), fflush(stdout);
    if (result) vfprintf(result, format, again), fflush(result);
    va_end(again), va_end(list);
}

// ------------------------------------------------------------------------------------------------------------- shapes

typedef struct Shape {
    const char *name;
    int64_t C, heads, kv_heads, dim, F, V; // decoder
    int64_t sequences, length, rank, head_rows;
} Shape;
static const Shape shapes[] = {
    {"7b", 3584, 28, 4, 128, 18944, 152064, 8, 1536, 16, 1024},
    {"3b", 2048, 16, 2, 128, 11008, 151936, 8, 1536, 16, 1024},
};
static const Shape tiny = {"smoke", 64, 4, 2, 16, 96, 300, 2, 24, 8, 8};
// The tower of both: one picture of 1280 x 720 is 4784 patches. 3420 wide in the file, 3424 in memory.
typedef struct VisionShape {
    int64_t N, window, C, heads, dim, F, merged;
} VisionShape;
static const VisionShape vision = {4784, 64, 1280, 16, 80, 3424, 3584}, tiny_vision = {32, 8, 64, 4, 16, 88, 64};

// ------------------------------------------------------------------------------------------------------------- memory

static char *buffers[64];
static int n_buffers;
static void free_buffers(void) {
    while (n_buffers) d->release(buffers[--n_buffers]);
}
static Mat empty(int64_t rows, int64_t cols, Type type) {
    size_t bytes = (size_t)(rows * cols) * type_size(type);
    Mat m = mat(d->alloc(bytes), rows, cols, type);
    CHECK(m.p && n_buffers < 64, "bench_gpu: %zu bytes more than the device has", bytes);
    buffers[n_buffers++] = m.p;
    return m;
}
static Mat zeros(int64_t rows, int64_t cols, Type type) {
    Mat m = empty(rows, cols, type);
    d->zero(m);
    return m;
}
// Uniform in [-scale, scale): zeros would flatter (a multiplier at rest draws less power, and clocks rise). A block of
// random values, doubled until it fills the matrix; never whole rows, so that no two rows are alike.
static Mat noise(int64_t rows, int64_t cols, Type type, float scale) {
    Mat m = empty(rows, cols, type), flat = mat(m.p, 1, rows * cols, type);
    int64_t n = rows * cols, block = n < 999983 ? n : 999983;
    size_t size = type_size(type);
    char *host = alloc_or_die((size_t)block, size, "random values");
    for (int64_t i = 0; i < block; i++) {
        float v = scale * (float)(int32_t)cheap() * (1.0f / 2147483648.0f);
        uint16_t h = f32_to_bf16(v);
        memcpy(host + (size_t)i * size, type == BF16 ? (void *)&h : (void *)&v, size);
    }
    d->upload(mat_cols(flat, 0, block), mat(host, 1, block, type));
    for (int64_t have = block; have < n; have *= 2)
        d->copy(mat_cols(flat, have, have < n - have ? have : n - have),
                mat_cols(flat, 0, have < n - have ? have : n - have));
    d->sync(), free(host);
    return m;
}
static Mat ids(int64_t rows, int64_t cols, int64_t below) { // I32, random in [0, below)
    Mat m = empty(rows, cols, I32);
    int32_t *host = alloc_or_die((size_t)(rows * cols), sizeof *host, "indices");
    for (int64_t i = 0; i < rows * cols; i++) host[i] = (int32_t)(cheap() % (uint64_t)below);
    d->upload(m, mat(host, rows, cols, I32)), free(host);
    return m;
}
static Span span_list[4096];
static Spans spans_of(int64_t n) { // of span_list[0, n)
    Spans s = {empty(n, 5, I32), span_list, n, 0};
    for (int64_t i = 0; i < n; i++)
        if (span_list[i].last - span_list[i].first > s.longest) s.longest = span_list[i].last - span_list[i].first;
    d->upload(s.rows, mat(span_list, n, 5, I32));
    return s;
}
static Spans sequences_of(int64_t n, int64_t length, bool causal) { // side by side
    for (int64_t i = 0; i < n; i++)
        span_list[i] = (Span){(int32_t)(i * length), (int32_t)((i + 1) * length), 0, 0, causal};
    return spans_of(n);
}

// ------------------------------------------------------------------------------------------------------------- timing

typedef struct Rung {
    const char *name;
    CudaRungs rungs;
} Rung;
static const Rung matmul_rungs[] = {
    {"naive", {MATMUL_NAIVE, true}},
    {"tensor", {MATMUL_TENSOR, false}},
#ifdef SURGR1_CUBLAS
    {"cublas", {MATMUL_CUBLAS, false}},
#endif
};
// Kernels with one rung are timed as "fast" and without a name.
static const Rung kernel_rungs[] = {{"naive", {MATMUL_AUTO, true}}, {"fast", {MATMUL_AUTO, false}}};
enum { MATMUL_RUNGS = sizeof matmul_rungs / sizeof *matmul_rungs, KERNEL_RUNGS = 2 };

typedef struct Work Work;
struct Work { // one row of the table
    void (*run)(const Work *w, int64_t turn);
    double operations, bytes; // that any way to compute it needs: multiply-adds count 2, each byte once
    Mat m[10];
    Spans spans;
    Layout layout;
    int64_t heads, kv_heads, dim, copies;
    SampleParams sample;
    AdamStep adam;
};

static double copy_gbs, peak_tflops; // the ceilings

static double seconds_of(const Work *w, int64_t times, int64_t *turn) { // a call, of so many in a row
    double started = clock_seconds();
    for (int64_t i = 0; i < times; i++) w->run(w, (*turn)++);
    d->sync();
    return (clock_seconds() - started) / (double)times;
}
// Prints a line for each rung, and returns the shortest median. Whatever is launched one by one and ends within a few
// microseconds is bound by launching; calls in a row hide that only in part.
static double measure(const char *name, const Work *w, const Rung *rungs, int n) {
    double times[KERNEL_RUNGS + MATMUL_RUNGS][MOST_ROUNDS], best = 0;
    int64_t calls[KERNEL_RUNGS + MATMUL_RUNGS], turn = 0;
    int taken[KERNEL_RUNGS + MATMUL_RUNGS] = {0};
    for (int k = 0; k < n; k++) {
        cuda_rungs_set(rungs[k].rungs);
        seconds_of(w, 1, &turn); // loads the kernel
        double one = seconds_of(w, 1, &turn);
        calls[k] = smoke ? 1 : one > 0.02 ? 1 : (int64_t)(0.02 / (one > 1e-6 ? one : 1e-6));
        if (calls[k] > 500) calls[k] = 500;
    }
    for (int r = 0; r < rounds; r++)
        for (int k = 0; k < n; k++) {
            if (r >= 3 && taken[k] * times[k][0] * (double)calls[k] > 1.5) continue; // a plain rung may take seconds
            cuda_rungs_set(rungs[k].rungs);
            times[k][taken[k]++] = seconds_of(w, calls[k], &turn);
        }
    cuda_rungs_set((CudaRungs){MATMUL_AUTO, false});
    for (int k = 0; k < n; k++) {
        double t = median(times[k], taken[k]), by_operations = peak_tflops ? w->operations / (1e12 * peak_tflops) : 0,
               by_bytes = copy_gbs ? w->bytes / (1e9 * copy_gbs) : 0;
        double floor = by_operations > by_bytes ? by_operations : by_bytes;
        say("%-46s %-7s %10.4f ms  %8.1f TFLOP/s  %8.1f GB/s  %5.1f %% of %s\n", k ? "" : name,
            n == 1 ? "" : rungs[k].name, 1e3 * t, 1e-12 * w->operations / t, 1e-9 * w->bytes / t, 100 * floor / t,
            by_operations > by_bytes ? "operations" : "bytes");
        if (best == 0 || t < best) best = t;
    }
    return best;
}
// Begins a row of the table; false when --only does not want it. timed() ends it.
static char row_name[160];
__attribute__((format(printf, 1, 2))) static bool row(const char *format, ...) {
    va_list list;
    va_start(list, format);
    vsnprintf(row_name, sizeof row_name, format, list);
    va_end(list);
    return !only || strstr(row_name, only);
}
static void timed(const Rung *rungs, int n, Work w) {
    measure(row_name, &w, rungs, n);
    free_buffers();
}
static double mat_bytes(Mat m) { return (double)(m.rows * m.cols) * (double)type_size(m.type); }

// -------------------------------------------------------------------------------------------------------- what is timed

static void run_matmul(const Work *w, int64_t turn) { // w->m[2]: `copies` weights on top of each other
    int64_t rows = w->m[2].rows / w->copies;
    matmul(d, w->m[0], w->m[1], mat_rows(w->m[2], turn % w->copies * rows, rows), w->layout, 1, 0);
}
// y[N,M] over K, as Layout says. A weight that fits in the second cache is taken from as many copies as do not.
static Work product(int64_t N, int64_t M, int64_t K, Layout layout, Type ty, bool streamed) {
    Work w = {.run = run_matmul, .layout = layout, .copies = 1, .operations = 2.0 * (double)N * (double)M * (double)K};
    double weight = (double)(M * K) * 2;
    if (streamed && !smoke) w.copies = weight > 256e6 ? 1 : (int64_t)(256e6 / weight) + 1;
    w.m[0] = empty(N, M, ty);
    w.m[1] = layout == TN ? noise(K, N, BF16, 1) : noise(N, K, BF16, 1);
    w.m[2] = layout == NT ? noise(w.copies * M, K, BF16, 0.03f) : noise(w.copies * K, M, BF16, 0.03f);
    w.bytes = mat_bytes(w.m[0]) + mat_bytes(w.m[1]) + weight;
    return w;
}
static void run_attention(const Work *w, int64_t turn) {
    (void)turn;
    attention_forward(d, w->m[0], w->m[1], w->m[2], w->m[3], w->m[4], w->spans, w->heads, w->kv_heads, w->dim, 0.09f);
}
static void run_attention_backward(const Work *w, int64_t turn) {
    (void)turn;
    attention_backward(d, w->m[5], w->m[6], w->m[7], w->m[8], w->m[9], w->m[2], w->m[3], w->m[4], w->m[0], w->m[1],
                       w->spans, w->heads, w->kv_heads, w->dim, 0.09f);
}
static Work attention(int64_t n, int64_t length, bool causal, int64_t heads, int64_t kv_heads, int64_t dim,
                      bool backward) {
    Work w = {.run = run_attention, .heads = heads, .kv_heads = kv_heads, .dim = dim};
    int64_t N = n * length, wide = heads * dim, narrow = kv_heads * dim;
    w.spans = sequences_of(n, length, causal);
    w.m[0] = empty(N, wide, BF16), w.m[1] = empty(N, heads, F32), w.m[2] = noise(N, wide, BF16, 1);
    w.m[3] = noise(N, narrow, BF16, 1), w.m[4] = noise(N, narrow, BF16, 1);
    double pairs = (double)n * (double)length * (double)(causal ? length + 1 : 2 * length) / 2;
    w.operations = 4 * pairs * (double)wide;
    w.bytes = mat_bytes(w.m[0]) + mat_bytes(w.m[1]) + mat_bytes(w.m[2]) + 2 * mat_bytes(w.m[3]);
    if (!backward) return w;
    run_attention(&w, 0); // o and lse as they are
    w.run = run_attention_backward;
    w.m[5] = empty(N, wide, BF16), w.m[6] = empty(N, narrow, BF16), w.m[7] = empty(N, narrow, BF16);
    w.m[8] = empty(N, heads, F32), w.m[9] = noise(N, wide, BF16, 1);
    w.operations *= 2.5; // five products instead of two
    w.bytes = 4 * mat_bytes(w.m[0]) + mat_bytes(w.m[1]) + 4 * mat_bytes(w.m[3]);
    return w;
}
static void run_decode(const Work *w, int64_t turn) {
    (void)turn;
    attention_decode(d, w->m[0], w->m[1], w->m[2], w->m[3], w->spans, w->heads, w->kv_heads, w->dim, 0.09f);
}
// `rows` answers to prompts of `prompt` keys that `group` of them share, each with `own` keys of its own.
static Work decoding(const Shape *s, int64_t rows, int64_t group, int64_t prompt, int64_t own) {
    Work w = {.run = run_decode, .heads = s->heads, .kv_heads = s->kv_heads, .dim = s->dim};
    int64_t prompts = rows / group, keys = prompts * prompt + rows * own;
    for (int64_t r = 0; r < rows; r++) {
        int32_t first = (int32_t)(prompts * prompt + r * own), prefix = (int32_t)(r / group * prompt);
        span_list[r] = (Span){first, first + (int32_t)own, prefix, prefix + (int32_t)prompt, 0};
    }
    w.spans = spans_of(rows);
    w.m[0] = empty(rows, s->heads * s->dim, BF16), w.m[1] = noise(rows, s->heads * s->dim, BF16, 1);
    w.m[2] = noise(keys, s->kv_heads * s->dim, BF16, 1), w.m[3] = noise(keys, s->kv_heads * s->dim, BF16, 1);
    w.operations = 4 * (double)(rows * (prompt + own)) * (double)(s->heads * s->dim);
    w.bytes = 2 * mat_bytes(w.m[2]) + 2 * mat_bytes(w.m[0]);
    return w;
}
static void run_rmsnorm(const Work *w, int64_t turn) {
    (void)turn, rmsnorm_forward(d, w->m[0], w->m[1], w->m[2], w->m[3], 1e-6f);
}
static void run_add_rmsnorm(const Work *w, int64_t turn) {
    (void)turn, add_rmsnorm_forward(d, w->m[0], w->m[1], w->m[2], w->m[4], w->m[5], w->m[3], 1e-6f);
}
static void run_rmsnorm_backward(const Work *w, int64_t turn) {
    (void)turn, rmsnorm_backward_add(d, w->m[0], w->m[6], w->m[2], w->m[4], w->m[3], w->m[1]);
}
static void run_rope(const Work *w, int64_t turn) { rope(d, w->m[0], w->m[1], w->heads, w->dim, turn % 2 ? -1 : 1); }
static void run_swiglu(const Work *w, int64_t turn) { (void)turn, swiglu_forward(d, w->m[0], w->m[1], w->m[2]); }
static void run_swiglu_backward(const Work *w, int64_t turn) {
    (void)turn, swiglu_backward(d, w->m[3], w->m[4], w->m[0], w->m[1], w->m[2]);
}
static void run_gelu(const Work *w, int64_t turn) { (void)turn, gelu_forward(d, w->m[0], w->m[1]); }
static void run_add(const Work *w, int64_t turn) { (void)turn, add(d, w->m[0], w->m[0], w->m[1]); }
static void run_bias(const Work *w, int64_t turn) { (void)turn, add_bias(d, w->m[0], w->m[1]); }
static void run_cast(const Work *w, int64_t turn) { (void)turn, cast(d, w->m[0], w->m[1]); }
static void run_copy(const Work *w, int64_t turn) { (void)turn, copy(d, w->m[0], w->m[1]); }
static void run_gather(const Work *w, int64_t turn) { (void)turn, gather_rows(d, w->m[0], w->m[1], w->m[2]); }
static void run_logprob(const Work *w, int64_t turn) {
    (void)turn, logprob_forward(d, w->m[0], w->m[1], w->m[2], w->m[3], w->m[4], 1);
}
static void run_logprob_backward(const Work *w, int64_t turn) {
    (void)turn, logprob_backward(d, w->m[5], w->m[3], w->m[4], w->m[1], w->m[0], 1);
}
static void run_sample(const Work *w, int64_t turn) {
    (void)turn, sample(d, w->m[0], w->m[1], w->m[2], w->m[3], w->m[4], w->sample);
}
static void run_squares(const Work *w, int64_t turn) { (void)turn, sum_squares(d, w->m[0], w->m[1]); }
static void run_adamw(const Work *w, int64_t turn) {
    (void)turn, adamw(d, w->m[0], w->m[1], w->m[2], w->m[3], w->adam);
}

// -------------------------------------------------------------------------------------------------------- the ceilings

static void ceilings(void) {
    Work w = {.run = run_copy};
    int64_t n = smoke ? 1 << 16 : (int64_t)1 << 29, side = smoke ? 64 : 8192, turn = 0;
    double times[MOST_ROUNDS], best = 0;
    w.m[1] = noise(1, n, BF16, 1), w.m[0] = empty(1, n, BF16);
    seconds_of(&w, 1, &turn);
    for (int r = 0; r < rounds; r++) times[r] = seconds_of(&w, 5, &turn);
    copy_gbs = 2e-9 * mat_bytes(w.m[0]) / median(times, rounds);
    free_buffers();
    double mma = gpu_mma_peak ? gpu_mma_peak() : emulated_mma_peak();
    say("ceilings: copying %.0f GB/s (read + written); mma.sync bf16 on registers %.0f TFLOP/s\n", copy_gbs, mma);
    w = product(side, side, side, NT, BF16, false);
    char name[80];
    snprintf(name, sizeof name, "matmul NT %lld^3, the ceiling of products", (long long)side);
    peak_tflops = mma;
    best = measure(name, &w, matmul_rungs, MATMUL_RUNGS);
    peak_tflops = 1e-12 * w.operations / best;
    if (MATMUL_RUNGS < 3 && peak_tflops < mma) peak_tflops = mma; // without cuBLASLt our own product is no ceiling
    free_buffers();
    say("the floor of what follows: %.0f TFLOP/s or %.0f GB/s, whichever takes longer\n\n", peak_tflops, copy_gbs);
}

// ---------------------------------------------------------------------------------------------------------- the kernels

static void linear_rows(const char *who, const char *layer, int64_t N, int64_t out, int64_t in) {
    if (row("%s %s: y = x w^T, %lld x %lld x %lld", who, layer, (long long)N, (long long)out, (long long)in))
        timed(matmul_rungs, MATMUL_RUNGS, product(N, out, in, NT, BF16, false));
    if (row("%s %s: dx = dy w", who, layer)) timed(matmul_rungs, MATMUL_RUNGS, product(N, in, out, NN, BF16, false));
}
static void decoder_kernels(const Shape *s) {
    const char *who = s->name;
    int64_t N = s->sequences * s->length, wide = s->heads * s->dim, narrow = s->kv_heads * s->dim;
    const int64_t batches[] = {1, 8, 64};
    say("%s, %lld tokens\n", who, (long long)N);
    linear_rows(who, "q, o", N, wide, s->C);
    linear_rows(who, "k, v", N, narrow, s->C);
    linear_rows(who, "gate, up", N, s->F, s->C);
    linear_rows(who, "down", N, s->C, s->F);
    linear_rows(who, "lora A of q", N, s->rank, s->C);
    linear_rows(who, "lora B of q", N, wide, s->rank);
    if (row("%s lora dA of q = dh^T x", who))
        timed(matmul_rungs, MATMUL_RUNGS, product(s->rank, s->C, N, TN, F32, false));
    if (row("%s dw of gate = dy^T x", who)) timed(matmul_rungs, MATMUL_RUNGS, product(s->F, s->C, N, TN, F32, false));
    for (int b = 0; b < 3; b++) {
        int64_t n = batches[b];
        if (row("%s decode q, %lld rows", who, (long long)n))
            timed(matmul_rungs, MATMUL_RUNGS, product(n, wide, s->C, NT, BF16, true));
        if (row("%s decode gate, %lld rows", who, (long long)n))
            timed(matmul_rungs, MATMUL_RUNGS, product(n, s->F, s->C, NT, BF16, true));
        if (row("%s decode head, %lld rows", who, (long long)n))
            timed(matmul_rungs, MATMUL_RUNGS, product(n, s->V, s->C, NT, F32, true));
    }
    if (row("%s attention, %lld causal of %lld", who, (long long)s->sequences, (long long)s->length))
        timed(kernel_rungs, KERNEL_RUNGS,
              attention(s->sequences, s->length, true, s->heads, s->kv_heads, s->dim, false));
    if (row("%s attention backward", who))
        timed(kernel_rungs, KERNEL_RUNGS,
              attention(s->sequences, s->length, true, s->heads, s->kv_heads, s->dim, true));
    int64_t prompt = smoke ? 20 : 1290, own = smoke ? 5 : 256;
    if (row("%s decode attention, 1 row, %lld keys", who, (long long)(prompt + own)))
        timed(kernel_rungs, KERNEL_RUNGS, decoding(s, 1, 1, 0, prompt + own));
    if (row("%s decode attention, 8 that share a prompt", who))
        timed(kernel_rungs, KERNEL_RUNGS, decoding(s, 8, 8, prompt, own));
    if (row("%s decode attention, 8 prompts of 8", who))
        timed(kernel_rungs, KERNEL_RUNGS, decoding(s, 64, 8, prompt, own));

    Mat none = mat_none();
    if (row("%s rmsnorm", who)) {
        Work w = {.run = run_rmsnorm,
                  .m = {empty(N, s->C, BF16), empty(N, 1, F32), noise(N, s->C, BF16, 1), noise(1, s->C, BF16, 1)}};
        w.bytes = 2 * mat_bytes(w.m[0]);
        timed(&kernel_rungs[1], 1, w);
    }
    if (row("%s add_rmsnorm", who)) {
        Work w = {.run = run_add_rmsnorm,
                  .m = {empty(N, s->C, BF16), empty(N, 1, F32), empty(N, s->C, BF16), noise(1, s->C, BF16, 1),
                        noise(N, s->C, BF16, 1), noise(N, s->C, BF16, 1)}};
        w.bytes = 4 * mat_bytes(w.m[0]);
        timed(&kernel_rungs[1], 1, w);
    }
    if (row("%s rmsnorm backward, frozen weight", who)) {
        Work w = {.run = run_rmsnorm_backward,
                  .m = {zeros(N, s->C, BF16), noise(N, 1, F32, 1), noise(N, s->C, BF16, 1), noise(1, s->C, BF16, 1),
                        noise(N, s->C, BF16, 1), none, none}};
        w.bytes = 4 * mat_bytes(w.m[0]);
        timed(&kernel_rungs[1], 1, w);
    }
    if (row("%s rope of q", who)) {
        Work w = {.run = run_rope, .m = {noise(N, wide, BF16, 1), noise(N, s->dim, F32, 0.7f)}, .heads = s->heads};
        w.dim = s->dim, w.bytes = 2 * mat_bytes(w.m[0]) + mat_bytes(w.m[1]);
        timed(&kernel_rungs[1], 1, w);
    }
    if (row("%s swiglu", who)) {
        Work w = {.run = run_swiglu, .m = {empty(N, s->F, BF16), noise(N, s->F, BF16, 4), noise(N, s->F, BF16, 4)}};
        w.bytes = 3 * mat_bytes(w.m[0]);
        timed(&kernel_rungs[1], 1, w);
    }
    if (row("%s swiglu backward", who)) {
        Work w = {.run = run_swiglu_backward,
                  .m = {noise(N, s->F, BF16, 1), noise(N, s->F, BF16, 4), noise(N, s->F, BF16, 4), empty(N, s->F, BF16),
                        empty(N, s->F, BF16)}};
        w.bytes = 5 * mat_bytes(w.m[0]);
        timed(&kernel_rungs[1], 1, w);
    }
    if (row("%s add", who)) {
        Work w = {.run = run_add, .m = {noise(N, s->C, BF16, 1), noise(N, s->C, BF16, 1)}};
        w.bytes = 3 * mat_bytes(w.m[0]);
        timed(&kernel_rungs[1], 1, w);
    }
    if (row("%s add_bias of q", who)) {
        Work w = {.run = run_bias, .m = {noise(N, wide, BF16, 1), noise(1, wide, BF16, 1)}};
        w.bytes = 2 * mat_bytes(w.m[0]);
        timed(&kernel_rungs[1], 1, w);
    }
    if (row("%s embedding", who)) {
        Work w = {.run = run_gather, .m = {empty(N, s->C, BF16), noise(s->V, s->C, BF16, 1), ids(N, 1, s->V)}};
        w.bytes = 2 * mat_bytes(w.m[0]);
        timed(&kernel_rungs[1], 1, w);
    }
    if (row("%s log-probability and entropy, %lld rows", who, (long long)s->head_rows)) {
        Work w = {.run = run_logprob,
                  .m = {empty(s->head_rows, 1, F32), empty(s->head_rows, 1, F32), empty(s->head_rows, 1, F32),
                        noise(s->head_rows, s->V, F32, 10), ids(s->head_rows, 1, s->V)}};
        w.bytes = mat_bytes(w.m[3]);
        timed(kernel_rungs, KERNEL_RUNGS, w);
    }
    if (row("%s gradient of the logits", who)) {
        Work w = {.run = run_logprob_backward,
                  .m = {noise(s->head_rows, 1, F32, 1), noise(s->head_rows, 1, F32, 1), none,
                        noise(s->head_rows, s->V, F32, 1), ids(s->head_rows, 1, s->V),
                        empty(s->head_rows, s->V, BF16)}};
        w.bytes = mat_bytes(w.m[3]) + mat_bytes(w.m[5]);
        timed(kernel_rungs, KERNEL_RUNGS, w);
    }
    linear_rows(who, "head", s->head_rows, s->V, s->C);
    static const struct {
        const char *name;
        SampleParams p;
    } draws[] = {{"greedy", {.repetition_penalty = 1}},
                 {"T = 1", {.repetition_penalty = 1, .do_sample = 1, .temperature = 1, .top_p = 1}},
                 {"top-k 50, top-p 0.9",
                  {.repetition_penalty = 1.05, .do_sample = 1, .temperature = 0.7, .top_k = 50, .top_p = 0.9}}};
    for (int k = 0; k < 3; k++)
        if (row("%s sample 64 rows, %s", who, draws[k].name)) {
            Work w = {.run = run_sample, .sample = draws[k].p};
            w.m[0] = empty(64, 1, I32), w.m[1] = noise(64, s->V, F32, 10), w.m[2] = zeros(64, (s->V + 31) / 32, I32);
            w.m[3] = ids(64, 1, 1 << 20), w.m[4] = ids(64, 1, 1 << 20);
            w.bytes = mat_bytes(w.m[1]);
            timed(&kernel_rungs[1], 1, w);
        }
}
static void other_kernels(void) {
    const VisionShape *v = smoke ? &tiny_vision : &vision;
    say("vision tower, one picture of %lld patches\n", (long long)v->N);
    linear_rows("vision", "qkv", v->N, 3 * v->C, v->C);
    linear_rows("vision", "proj", v->N, v->C, v->C);
    linear_rows("vision", "gate, up", v->N, v->F, v->C);
    linear_rows("vision", "down", v->N, v->C, v->F);
    linear_rows("vision", "merger", v->N / 4, 4 * v->C, 4 * v->C);
    for (int backward = 0; backward < 2; backward++) {
        if (row("vision attention%s, windows of %lld", backward ? " backward" : "", (long long)v->window))
            timed(kernel_rungs, KERNEL_RUNGS,
                  attention(v->N / v->window, v->window, false, v->heads, v->heads, v->dim, backward));
        if (row("vision attention%s, the whole picture", backward ? " backward" : ""))
            timed(kernel_rungs, KERNEL_RUNGS, attention(1, v->N, false, v->heads, v->heads, v->dim, backward));
    }
    if (row("vision gelu of the merger")) {
        Work w = {.run = run_gelu, .m = {empty(v->N / 4, 4 * v->C, BF16), noise(v->N / 4, 4 * v->C, BF16, 3)}};
        w.bytes = 2 * mat_bytes(w.m[0]);
        timed(&kernel_rungs[1], 1, w);
    }
    int64_t rows = smoke ? 6 : 9860, cols = smoke ? 100 : 4096; // 40.4 M: the LoRA of a 7B
    say("the optimizer, %.1f M parameters\n", 1e-6 * (double)(rows * cols));
    if (row("adamw")) {
        Work w = {
            .run = run_adamw,
            .m = {noise(rows, cols, F32, 1), zeros(rows, cols, F32), zeros(rows, cols, F32), noise(rows, cols, F32, 1)},
            .adam = {1, 1e-4, 0.01, 0.9, 0.999, 1e-8, 1e-3, 30}};
        w.bytes = 7 * mat_bytes(w.m[0]);
        timed(&kernel_rungs[1], 1, w);
    }
    if (row("sum of squares")) {
        Work w = {.run = run_squares, .m = {empty(1, 1, F32), noise(rows, cols, F32, 1)}};
        w.bytes = mat_bytes(w.m[1]);
        timed(&kernel_rungs[1], 1, w);
    }
    if (row("cast to bf16")) {
        Work w = {.run = run_cast, .m = {empty(rows, cols, BF16), noise(rows, cols, F32, 1)}};
        w.bytes = mat_bytes(w.m[0]) + mat_bytes(w.m[1]);
        timed(&kernel_rungs[1], 1, w);
    }
}

// ------------------------------------------------------------------------------------------------------------ the model

static size_t used_now(void) { // by this process and all others
    size_t unused = 0, all = 0;
    d->memory(&unused, &all);
    return all - unused;
}
static double mib(size_t bytes) { return (double)bytes / (1 << 20); }

typedef struct Memory {
    const char *role;
    size_t bytes;
} Memory;
// What the arenas hold, role by role, beside what the device says more is in use than before the model came.
static void memory_report(const Step *t, const TrainBatch *b, size_t before) {
    const Model *m = &t->m;
    PassBytes pass = model_pass_bytes(m, b, true);
    const Memory rows[] = {{"weights", m->weights.size},         {"adapter", m->adapter.size},
                           {"trained weights", m->trained.size}, {"gradients", m->gradients.size},
                           {"optimizer", t->o.arena.size},       {"activations", m->activations.size},
                           {"vision tape", m->tape.arena.size},  {"tables", m->tables.size}};
    size_t sum = 0;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        sum += rows[i].bytes;
        if (rows[i].bytes) say("  %-18s %12.1f MiB\n", rows[i].role, mib(rows[i].bytes));
    }
    size_t used = used_now() - before;
    say("  together           %12.1f MiB, in all arenas %.1f; planned for the pass %.1f; the device says %.1f more are "
        "in use than "
        "before the model\n",
        mib(sum), mib((size_t)memory_held(d)), mib(pass.text + pass.vision + pass.pictures), mib(used));
}

static bool decode_report(Step *t, int64_t rows, int64_t more, Peer *peer, Err *e) {
    Completion out[64];
    GenerationConfig g = {.sample = {.repetition_penalty = 1}, .max_new_tokens = 1};
    Request q = {.ids = t->s.ids,
                 .n = t->s.lengths[0],
                 .pixels = t->s.pictures ? t->s.pixels : NULL,
                 .grids = t->s.pictures ? t->s.grid : NULL,
                 .n_grids = t->s.pictures,
                 .completions = (int)rows};
    double first[MOST_ROUNDS], whole[MOST_ROUNDS], ours[MOST_ROUNDS], theirs[MOST_ROUNDS], a = 0, b = 0, c = 0, f = 0;
    bool both = peer != NULL;
    for (int r = -1; r < rounds; r++) { // the first is for warming up
        for (int k = 0; k < 2; k++) {
            g.max_new_tokens = k ? more + 1 : 1;
            double started = clock_seconds();
            if (!generate(&t->m, &q, 1, &g, NULL, NULL, out, e)) return false;
            t->m.d->sync();
            if (r >= 0) *(k ? &whole[r] : &first[r]) = clock_seconds() - started;
            for (int64_t i = 0; i < rows; i++) completion_free(&out[i]);
        }
        if (r >= 0) ours[r] = (double)(rows * more) / (whole[r] - first[r]);
        if (!both) continue;
        // "decode ROWS NEW" is answered by "SECONDS_OF_ONE SECONDS_OF_ALL 0 0"
        char line[200];
        fprintf(peer->to, "decode %lld %lld\n", (long long)rows, (long long)more), fflush(peer->to);
        both = peer_line(peer, line, sizeof line) && sscanf(line, "%lf %lf %lf %lf", &a, &b, &c, &f) == 4;
        if (both && r >= 0) theirs[r] = (double)(rows * more) / (b - a);
    }
    double weights = 0;
    for (int64_t i = 0; i < t->m.n_params; i++) {
        const Param *p = &t->m.params[i];
        if (p->tower == TOWER_DECODER && (p->w != &t->m.embed || t->m.c.tied) && !p->tied)
            weights += (double)(p->rows * p->cols) * (double)type_size(p->w->v.type);
    }
    double rate = median(ours, rounds);
    say("decode, %lld answers to one prompt of %d tokens: %.1f tokens/s; prompt %.1f ms; weights at %.0f GB/s, %.1f %% "
        "of "
        "copying\n",
        (long long)rows, t->s.lengths[0], rate, 1e3 * median(first, rounds), 1e-9 * weights * rate / (double)rows,
        100e-9 * weights * rate / (double)rows / copy_gbs);
    if (both)
        say("  transformers: %.1f tokens/s; we are %.2f times as fast\n", median(theirs, rounds),
            rate / median(theirs, rounds));
    return true;
}

static bool step_report(const char *what, Step *t, SampleShape shape, const char *dir, const char *python,
                        size_t before, Err *e) {
    static const char *const names[] = {"no block kept (--keep 0)", "every block kept"};
    Peer p = {0};
    double times[2][MOST_ROUNDS], peer_times[MOST_ROUNDS], ratio[2][MOST_ROUNDS], cpu, loss, norm;
    int64_t most = t->m.c.L > t->m.c.vision.depth ? t->m.c.L : t->m.c.vision.depth;
    step_samples(t, shape);
    if (!samples_write(&t->s, dir, e)) return false;
    double operations = step_operations(t);
    say("\none LoRA step, %s: %lld tokens in %d sequences, %lld targets, %lld patches, %.1f TFLOP in products\n", what,
        (long long)t->s.tokens, t->s.n, (long long)t->s.targets, (long long)t->s.patches, 1e-12 * operations);
    int kinds = 0;
    for (; kinds < 2; kinds++) { // warms up; what does not fit is said and left out
        Err full = {0};
        if (!step_once(t, kinds ? most : 0, &full)) {
            char line[1200];
            say("%s does not fit: %s\n", names[kinds], err_line(&full, "note", line, sizeof line));
            break;
        }
        if (!kinds) say("step 1: loss %.6f, norm of the gradient %.6f\n", t->loss, t->norm);
        say("memory, %s\n", names[kinds]);
        const TrainBatch *b = step_batch(t, kinds ? most : 0, e);
        if (!b) return false;
        memory_report(t, b, before);
    }
    char adapter[1300];
    if (!path_join(adapter, sizeof adapter, dir, "bench_adapter", e)) return false;
    bool peer = python && peer_open(&p, python, "bench/peers/gpu_step.py", (const char *[]){dir, adapter, NULL});
    if (python && !peer) say("PyTorch was not measured: %s\n", p.name);
    if (peer && (peer = peer_step(&p, &peer_times[0], &cpu, &loss, &norm)))
        say("PyTorch: loss %.6f, norm %.6f at its first step (%s)\n", loss, norm, p.name);
    for (int r = 0; r < rounds; r++) {
        for (int k = 0; k < kinds; k++) {
            if (!step_once(t, k ? most : 0, e)) return false;
            times[k][r] = t->seconds;
        }
        if (!peer || !(peer = peer_step(&p, &peer_times[r], &cpu, &loss, &norm))) continue;
        for (int k = 0; k < kinds; k++) ratio[k][r] = peer_times[r] / times[k][r];
    }
    say("step %d: loss %.6f\n", 1 + kinds * (rounds + 1) - 1, t->loss);
    for (int k = 0; k < kinds; k++) {
        double s = median(times[k], rounds);
        say("%-46s %10.2f ms  %8.1f TFLOP/s  %8.0f tokens/s  %5.1f %% of the best matmul\n", names[k], 1e3 * s,
            1e-12 * operations / s, (double)t->s.tokens / s, 100e-12 * operations / s / peak_tflops);
        if (peer)
            say("  PyTorch %.2f ms: it takes %.2f times as long\n", 1e3 * median(peer_times, rounds),
                median(ratio[k], rounds));
    }
    if (!decode_report(t, 1, smoke ? 4 : 128, peer ? &p : NULL, e)) return false;
    if (!decode_report(t, 8, smoke ? 4 : 128, peer ? &p : NULL, e)) return false;
    peer_close(&p);
    step_samples_free(t);
    return true;
}

static bool model_report(const char *dir, const char *python, Err *e) {
    enum { PICTURES = 8 };
    int64_t sides[PICTURES][2];
    Step *t = alloc_or_die(1, sizeof *t, "the step");
    LoraOptions lora = {.targets = "decoder", .r = 16, .alpha = 32, .seed = 1};
    char adapter[1300];
    size_t before = used_now();
    double started = clock_seconds();
    for (int k = 0; k < PICTURES; k++) sides[k][0] = smoke ? 4 : 52, sides[k][1] = smoke ? 8 : 92; // 1288 x 728
    say("\n%s: ", dir);
    if (!step_open(t, dir, d, &lora, e)) return false;
    d->sync();
    say("loaded in %.2f s\n", clock_seconds() - started);
    if (!path_join(adapter, sizeof adapter, dir, "bench_adapter", e) || !tree_remove(adapter, e) ||
        !lora_save(&t->m, adapter, false, e))
        return false;
    int64_t length = smoke ? 32 : 1536, long_text = smoke ? 40 : 2048;
    bool ok = step_report("a picture of 1280 x 720 each", t,
                          (SampleShape){smoke ? 2 : PICTURES, length, 0, (const int64_t(*)[2])sides, smoke ? 8 : 256},
                          dir, python, before, e) &&
              step_report("text only", t, (SampleShape){smoke ? 2 : 6, long_text, 0, NULL, long_text}, dir, python,
                          before, e);
    step_close(t), free(t);
    return ok;
}

// ----------------------------------------------------------------------------------------------------------------- main

static int usage(void) {
    fprintf(stderr, "usage: bench_gpu [--smoke] [--rounds N] [--shape 7b|3b|all] [--only TEXT] [--model DIR] "
                    "[--python PATH] [--out FILE]\n");
    return EXIT_USAGE;
}
int main(int argc, char **argv) {
    const char *dir = NULL, *python = NULL, *out = NULL, *shape = "all";
    char device[600];
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (!strcmp(argv[i], "--smoke")) smoke = true;
        else if (!value) return usage();
        else if (!strcmp(argv[i], "--rounds")) rounds = (int)strtol(value, NULL, 10), i++;
        else if (!strcmp(argv[i], "--shape")) shape = value, i++;
        else if (!strcmp(argv[i], "--only")) only = value, i++;
        else if (!strcmp(argv[i], "--model")) dir = value, i++;
        else if (!strcmp(argv[i], "--python")) python = value, i++;
        else if (!strcmp(argv[i], "--out")) out = value, i++;
        else return usage();
    }
    if (strcmp(shape, "all") && strcmp(shape, "7b") && strcmp(shape, "3b")) return usage();
    rounds = smoke ? 1 : rounds < 1 ? 1 : rounds > MOST_ROUNDS ? MOST_ROUNDS : rounds;
    Err e = {0};
    d = ops_cuda(BF16, &e);
    if (!d) return err_report(&e);
    if (out && !(result = fopen(out, "w"))) {
        err_set(&e, "E-WR-01", AT(.file = out), "expected a file to write to; found %s; do: change --out",
                error_text(errno));
        return err_report(&e);
    }
    pool_start(0);
    bool there = gpu_describe ? gpu_describe(device, sizeof device) : emulated_describe(device, sizeof device);
    time_t now = time(NULL);
    char date[40];
    strftime(date, sizeof date, "%Y-%m-%d %H:%M UTC", gmtime(&now));
    say("%s\n%s\n%scuBLASLt: %s; medians of %d rounds\n", date, there ? device : "no device",
        gpu_describe
            ? ""
            : "EMULATED ON THE HOST: the times and shares below mean nothing, they show that every line runs\n",
        MATMUL_RUNGS == 3 ? "yes" : "not built in", rounds);
    ceilings();
    if (smoke) decoder_kernels(&tiny);
    for (size_t k = 0; !smoke && k < sizeof shapes / sizeof *shapes; k++)
        if (!strcmp(shape, "all") || !strcmp(shape, shapes[k].name)) decoder_kernels(&shapes[k]);
    other_kernels();
    bool ok = !dir || only || model_report(dir, python, &e);
    pool_stop();
    if (result && fclose(result)) ok = false;
    return ok ? EXIT_OK : err_report(&e);
}
