// cpu.c - the device "cpu": the reference device with its hot rows replaced by fast ones, and the thread pool.
//
// What it is:  the pool of base.h and the choice of instruction set.
// What it is not: where an operation is defined. Contracts, formulas and the slow, exact version of each op are in
// ops.c. Read before: ops.h, ops.c.  Read next: block.c.
#ifndef _GNU_SOURCE
#define _GNU_SOURCE // CPU_COUNT
#endif
#include "ops.h"
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <unistd.h>

// ------------------------------------------------------------------------------------------------------ thread pool
// A job is open while its chunks may be taken. A worker first counts itself in (`inside`), then looks whether a job is
// open; the caller first closes the job, then waits for `inside` to reach zero. Whichever order these two pairs meet in
// (all four accesses are sequentially consistent), no worker can run a chunk of a job that has returned, and the caller
// never waits for a worker that the system has not scheduled yet: on a busy machine it does the work itself.
//
// Waiting is a short spin (a decode step is hundreds of jobs a few dozen microseconds apart), then sleep: endless
// spinning takes the processor from whoever shares it, including our own workers.
enum { SPIN_WORKER = 400, SPIN_CALLER = 4000, WORKER_STACK = 8 << 20 }; // about 25 ns a spin (Zen 3)

static struct {
    int threads; // including the caller; 0 before pool_start
    pthread_t worker[256];
    PoolJob job; // these three are written while no job is open and nobody is inside
    void *ctx;
    int64_t chunks;
    _Atomic int64_t next;   // first chunk nobody has taken
    _Atomic int open;       // a job may be entered
    _Atomic int inside;     // workers between counting in and counting out
    _Atomic uint32_t round; // changes with every job, and at the end
    _Atomic int stop;       //
    _Atomic int sleepers;   // workers asleep or about to be
    _Atomic int caller_waits;
    _Atomic int busy; // a parallel_for is running
    pthread_mutex_t lock;
    pthread_cond_t work, done;
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER, .work = PTHREAD_COND_INITIALIZER, .done = PTHREAD_COND_INITIALIZER};

static inline void pause_briefly(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#else
    atomic_signal_fence(memory_order_seq_cst);
#endif
}

static void take_chunks(int thread) {
    for (int64_t c; (c = atomic_fetch_add_explicit(&pool.next, 1, memory_order_relaxed)) < pool.chunks;)
        pool.job(pool.ctx, c, thread);
}

static void *worker_main(void *arg) {
    int thread = (int)(intptr_t)arg;
    for (uint32_t seen = 0;;) {
        for (int i = 0; i < SPIN_WORKER && atomic_load(&pool.round) == seen; i++) pause_briefly();
        if (atomic_load(&pool.round) == seen) {
            pthread_mutex_lock(&pool.lock);
            atomic_fetch_add(&pool.sleepers, 1);
            while (atomic_load(&pool.round) == seen) pthread_cond_wait(&pool.work, &pool.lock);
            atomic_fetch_sub(&pool.sleepers, 1);
            pthread_mutex_unlock(&pool.lock);
        }
        seen = atomic_load(&pool.round);
        if (atomic_load(&pool.stop)) return NULL;
        atomic_fetch_add(&pool.inside, 1);
        if (atomic_load(&pool.open)) take_chunks(thread);
        if (atomic_fetch_sub(&pool.inside, 1) == 1 && atomic_load(&pool.caller_waits)) {
            pthread_mutex_lock(&pool.lock);
            pthread_cond_signal(&pool.done);
            pthread_mutex_unlock(&pool.lock);
        }
    }
}

static void wake_workers(void) {
    atomic_fetch_add(&pool.round, 1);
    if (atomic_load(&pool.sleepers)) {
        pthread_mutex_lock(&pool.lock);
        pthread_cond_broadcast(&pool.work);
        pthread_mutex_unlock(&pool.lock);
    }
}

void parallel_for(int64_t chunks, PoolJob job, void *ctx) {
    if (chunks <= 0) return;
    CHECK(!atomic_exchange(&pool.busy, 1), "parallel_for inside a job, or from two threads at once");
    if (chunks == 1 || pool_threads() == 1) {
        for (int64_t c = 0; c < chunks; c++) job(ctx, c, 0);
        atomic_store(&pool.busy, 0);
        return;
    }
    pool.job = job, pool.ctx = ctx, pool.chunks = chunks;
    atomic_store(&pool.next, 0);
    atomic_store(&pool.open, 1);
    wake_workers();
    take_chunks(0);
    atomic_store(&pool.open, 0);
    for (int i = 0; i < SPIN_CALLER && atomic_load(&pool.inside); i++) pause_briefly();
    if (atomic_load(&pool.inside)) {
        pthread_mutex_lock(&pool.lock);
        atomic_store(&pool.caller_waits, 1);
        while (atomic_load(&pool.inside)) pthread_cond_wait(&pool.done, &pool.lock);
        atomic_store(&pool.caller_waits, 0);
        pthread_mutex_unlock(&pool.lock);
    }
    atomic_store(&pool.busy, 0);
}

int pool_threads(void) { return pool.threads > 1 ? pool.threads : 1; }

void pool_start(int threads) {
    CHECK(threads >= 0 && threads <= LIMIT_THREADS, "pool_start(%d)", threads);
    pool_stop();
    if (threads == 0) {
        cpu_set_t set;
        threads = sched_getaffinity(0, sizeof set, &set) ? (int)sysconf(_SC_NPROCESSORS_ONLN) : CPU_COUNT(&set);
        threads = threads < 1 ? 1 : threads > (int)LIMIT_THREADS ? (int)LIMIT_THREADS : threads;
    }
    atomic_store(&pool.stop, 0);
    atomic_store(&pool.round, 0);
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, WORKER_STACK);
    pool.threads = 1;
    // Where the system gives no more threads, fewer do the same work: the count never changes a result.
    while (pool.threads < threads) {
        void *arg = (void *)(intptr_t)pool.threads;
        if (pthread_create(&pool.worker[pool.threads], &attr, worker_main, arg)) break;
        pool.threads++;
    }
    pthread_attr_destroy(&attr);
}

void pool_stop(void) {
    CHECK(!atomic_load(&pool.busy), "pool_stop inside a job");
    if (pool.threads > 1) {
        atomic_store(&pool.stop, 1);
        wake_workers();
        for (int t = 1; t < pool.threads; t++) pthread_join(pool.worker[t], NULL);
    }
    pool.threads = 0;
}

// ----------------------------------------------------------------------------------------------- instruction sets
// The kernels are in cpu_lanes.h, for vectors of LANES floats in the compiler's vector notation; only the fused
// multiply-add is spelled per instruction set.

typedef float V4 __attribute__((vector_size(16)));
typedef float V8 __attribute__((vector_size(32)));

// y = alpha * a b^T + beta * y, where element (r, k) of an operand lies at p + r*row + k*col (bytes).
typedef struct Operand {
    const char *p;
    int64_t row, col;
    bool bf16;
} Operand;
typedef struct Product {
    float *y;
    int64_t ldy;
    Operand a, b;    // a: F32
    int64_t I, J, K; // y [I, J]
    int64_t block_j; // rows of b in one chunk
    int64_t block_i; // rows of a in one chunk (outer_job)
    bool swapped;    // a and b have changed places: y [J, I] is stored transposed (outer_job)
    float alpha, beta;
} Product;
// One element of y: the first block of k starts it (beta y is read only where beta is not 0), the others add.
static inline void put(float *y, float sum, bool first, float alpha, float beta) {
    float v = alpha * sum;
    *y = !first ? v + *y : beta != 0 ? v + beta * *y : v;
}
enum { K_BLOCK = 1024, PACKED_ROW = K_BLOCK + 16, J_BLOCK = 64, I_BLOCK = 576, FEW_ROWS = 12 };
enum { OUTER_K = 192, OUTER_I = 96, OUTER_J = 256, SHORT_K = 192 };

// dst[i*ld + k] = the float at src + k*step + 4*i, for i, k < 4: a square of 4 x 4, turned.
static inline __attribute__((always_inline)) void turn4(float *dst, int64_t ld, const char *src, int64_t step) {
    typedef float V4Any __attribute__((vector_size(16), aligned(1), may_alias));
    V4 a = *(const V4Any *)src, b = *(const V4Any *)(src + step);
    V4 c = *(const V4Any *)(src + 2 * step), d = *(const V4Any *)(src + 3 * step);
    V4 ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), AB = __builtin_shufflevector(a, b, 2, 6, 3, 7);
    V4 cd = __builtin_shufflevector(c, d, 0, 4, 1, 5), CD = __builtin_shufflevector(c, d, 2, 6, 3, 7);
    *(V4Any *)dst = __builtin_shufflevector(ab, cd, 0, 1, 4, 5);
    *(V4Any *)(dst + ld) = __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
    *(V4Any *)(dst + 2 * ld) = __builtin_shufflevector(AB, CD, 0, 1, 4, 5);
    *(V4Any *)(dst + 3 * ld) = __builtin_shufflevector(AB, CD, 2, 3, 6, 7);
}

// An op over rows: its matrices (what each is, stands at the kernel), and which rows a chunk has.
typedef struct Rows {
    Mat m[6];
    float f; // eps, sign, 1/temperature, dropout's p
    uint64_t seed;
    uint32_t site;
    int64_t heads, dim, per_chunk;
} Rows;
static inline int64_t rows_first(const Rows *g, int64_t chunk) { return chunk * g->per_chunk; }
static inline int64_t rows_last(const Rows *g, int64_t chunk) {
    return (chunk + 1) * g->per_chunk < g->m[0].rows ? (chunk + 1) * g->per_chunk : g->m[0].rows;
}

typedef struct AdamRows {
    Rows rows;
    AdamStep step;
} AdamRows;
typedef struct Squares {
    Mat x;
    int64_t per_chunk; // rows
    double *sums;      // [chunks]
} Squares;
// Columns of one chunk where a sum runs over rows, and rows that are summed in float before double takes over.
enum { COLUMNS = 64, COLUMN_ROWS = 64, SQUARE_SUMS = 512, SQUARE_ROW = 1 << 14 };

typedef struct Attention {
    Mat o, lse, q, k, v;
    const Span *spans;
    int64_t heads, group, dim, blocks; // query heads per key head; blocks of queries in the longest span
    int64_t together;                  // decoding: most rows of q that one job may take
    float scale;
} Attention;
enum { QUERIES = 64, KEYS = 64, SIDE = KEYS, HEAD_DIM = 512, OUT_ROW = HEAD_DIM + 16, PADDED = QUERIES + 12 };
typedef struct Attend { // query rows on their way through their keys; PADDED: whole tiles of rows
    _Alignas(64) float q[PADDED * OUT_ROW], o[PADDED * OUT_ROW], kt[HEAD_DIM * SIDE];
    _Alignas(64) float s[PADDED * KEYS], top[PADDED], sum[PADDED];
} Attend;
static inline bool same_prefix(const Span *a, const Span *b) { // and not an empty one
    return a->prefix_first == b->prefix_first && a->prefix_last == b->prefix_last && a->prefix_first < a->prefix_last;
}

// The backward pass works on squares of SIDE queries times SIDE keys of one query head.
typedef struct Backward {
    Mat dq, dk, dv, delta, dout, q, k, v, o, lse;
    const Span *spans;
    int64_t n_spans, heads, group, dim, blocks; // query heads per key head; blocks of SIDE queries in the longest span
    float scale;
} Backward;

typedef struct Lanes { // one instruction set's kernels
    PoolJob few_rows, many_rows, outer, add, columns, dropout, rmsnorm, rmsnorm_backward, rope;
    PoolJob attention, backward_delta, backward_dq, backward_dkv, backward_all, decode;
    PoolJob swiglu, swiglu_backward, gelu, gelu_backward, gather, scatter, logprob, logprob_backward, squares, adamw;
} Lanes;

#pragma GCC diagnostic ignored "-Wpsabi" // vectors wider than the baseline's are passed to inlined functions only

static inline __attribute__((always_inline)) V4 sqrt4(V4 a) {
    for (int i = 0; i < 4; i++) a[i] = sqrtf(a[i]);
    return a;
}

static inline __attribute__((always_inline)) V4 part4(const void *p, int64_t n) {
    V4 v = {0};
    memcpy(&v, p, (size_t)n * 4);
    return v;
}

#define LANES      4
#define LANES_NAME scalar
#define LANES_TARGET
#define LANES_FMA(a, b, c) ((a) * (b) + (c))
#define OUTER_ROWS         3
#define LANES_SQRT(a)      sqrt4(a)
#define LANES_PART(p, n)   part4(p, n)
#define TILE_ROWS          3
#include "cpu_lanes.h"

#if defined(__x86_64__)
#include <immintrin.h>
// A masked load touches no memory behind its mask. n set lanes begin at part_mask + 16 - n.
static const int32_t part_mask[32] = {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};
static inline __attribute__((always_inline, target("avx2,fma"))) V8 part8(const void *p, const int32_t *mask) {
    return (V8)_mm256_maskload_ps(p, _mm256_loadu_si256((const __m256i *)mask));
}
#define LANES              8
#define LANES_NAME         avx2
#define LANES_TARGET       __attribute__((target("avx2,fma")))
#define LANES_FMA(a, b, c) ((Vec)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
#define OUTER_ROWS         6
#define LANES_SQRT(a)      ((Vec)_mm256_sqrt_ps((__m256)(a)))
#define LANES_PART(p, n)   part8(p, part_mask + 16 - (n))
#define TILE_ROWS          3
#include "cpu_lanes.h"

#define LANES              16
#define LANES_NAME         avx512
#define LANES_TARGET       __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")))
#define LANES_FMA(a, b, c) ((Vec)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c)))
#define OUTER_ROWS         12
#define LANES_SQRT(a)      ((Vec)_mm512_sqrt_ps((__m512)(a)))
#define LANES_PART(p, n)   ((Vec)_mm512_maskz_loadu_ps((__mmask16)((1u << (n)) - 1), p))
#define TILE_ROWS          6
#include "cpu_lanes.h"

// The 16-lane kernels in halves on AVX2: the same bits as avx512, so that they can be tested where there is none.
#define LANES              16
#define LANES_NAME         avx2x16
#define LANES_TARGET       __attribute__((target("avx2,fma")))
#define LANES_FMA(a, b, c) fma_halves(a, b, c)
#define OUTER_ROWS         3
#define LANES_SQRT(a)      sqrt_halves(a)
#define LANES_PART(p, n)   part_halves(p, n)
#define TILE_ROWS          6
typedef float V16 __attribute__((vector_size(64)));
static inline __attribute__((always_inline, target("avx2,fma"))) V16 fma_halves(V16 a, V16 b, V16 c) {
#define LOW(v)  (__m256) __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7)
#define HIGH(v) (__m256) __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15)
    V8 low = (V8)_mm256_fmadd_ps(LOW(a), LOW(b), LOW(c)), high = (V8)_mm256_fmadd_ps(HIGH(a), HIGH(b), HIGH(c));
    return __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}
static inline __attribute__((always_inline, target("avx2,fma"))) V16 part_halves(const char *p, int64_t n) {
    V8 low = part8(p, part_mask + 16 - n), high = part8(p + 32, part_mask + 24 - n);
    return __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}
static inline __attribute__((always_inline, target("avx2,fma"))) V16 sqrt_halves(V16 a) {
    V8 low = (V8)_mm256_sqrt_ps(LOW(a)), high = (V8)_mm256_sqrt_ps(HIGH(a));
    return __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}
#include "cpu_lanes.h"
#endif

static const struct Isa {
    const char *name;
    const Lanes *lanes;
} isa_table[] = {
#if defined(__x86_64__)
    {"avx512", &lanes_avx512},
    {"avx2", &lanes_avx2},
    {"avx2x16", &lanes_avx2x16},
#endif
    {"scalar", &lanes_scalar},
};
enum { ISA_COUNT = sizeof isa_table / sizeof *isa_table };
static const struct Isa *isa_chosen;

static bool isa_runs(const char *name) {
#if defined(__x86_64__)
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (!strcmp(name, "avx512"))
        return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (!strncmp(name, "avx2", 4)) return avx2;
#endif
    return !strcmp(name, "scalar");
}

bool cpu_isa_set(const char *name) {
    for (int i = 0; i < ISA_COUNT; i++) {
        if (!isa_runs(isa_table[i].name) || (name && strcmp(name, isa_table[i].name))) continue;
        isa_chosen = &isa_table[i];
        return true;
    }
    return false;
}

static const struct Isa *isa(void) {
    if (!isa_chosen) {
        const char *name = getenv("SURGR1_ISA");
        if (!name || !*name || !cpu_isa_set(name)) cpu_isa_set(NULL);
    }
    return isa_chosen;
}
const char *cpu_isa(void) { return isa()->name; }

// ------------------------------------------------------------------------------------------------------------ matmul
// All three layouts are one product y = a b^T over k; they differ in how the operands are stepped through. A sum is made
// in one order, whatever the number of rows, chunks or threads, so one row alone and the same row among thousands give
// the same bits, which decoding with a batch, shared prompts and GRPO's ratio of 1 rely on. There are two orders; which
// one is taken depends on layout, J and K, never on the number of rows of x:
//   dot    k in blocks of K_BLOCK; in a block lane l takes elements l, l + LANES, ... in turn; lanes are added in the tree
//          of sum4; blocks in turn. For rows that lie along k: linear layers, few rows or many. The price is one sum4 per
//          four results and block: about 5 % at K = 2048, half the time at K = 64.
//   outer  k in blocks of OUTER_K; in a block one chain per element of y, k in turn; blocks in turn. Needs b with k going
//          down, copied into panels. For weight gradients (TN), where both operands lie that way; for input gradients
//          (NN) of 64 columns and more; for all products with K <= SHORT_K, such as LoRA's B and layers of tiny models.

static void cpu_matmul(Mat y, Mat x, Mat w, Layout layout, float alpha, float beta) {
    int64_t sx = (int64_t)type_size(x.type), sw = (int64_t)type_size(w.type), K = layout == TN ? x.rows : x.cols;
    if (y.type != F32 || x.type != F32 || K == 0) {
        ops_ref()->matmul(y, x, w, layout, alpha, beta);
        return;
    }
    Product g = {.y = y.p, .ldy = y.stride, .I = y.rows, .J = y.cols, .K = K, .alpha = alpha, .beta = beta};
    g.a = (Operand){x.p, layout == TN ? sx : x.stride * sx, layout == TN ? x.stride * sx : sx, false};
    g.b = (Operand){w.p, layout == NT ? w.stride * sw : sw, layout == NT ? sw : w.stride * sw, w.type == BF16};
    if (layout == TN || K <= SHORT_K || (layout == NN && g.J >= 64)) {
        if (layout == TN && g.J < 32 && g.J < g.I) { // the longer side goes into vectors
            Operand a = g.a;
            int64_t I = g.I;
            g.a = g.b, g.b = a, g.I = g.J, g.J = I, g.swapped = true;
        }
        // wide blocks read a less often; three for each thread keep all of them busy
        int64_t blocks_i = (g.I + OUTER_I - 1) / OUTER_I, width = OUTER_J, wanted = pool_threads();
        wanted = wanted > 1 ? 3 * wanted : 1;
        while (width > 64 && blocks_i * ((g.J + width - 1) / width) < wanted) width /= 2;
        int64_t blocks_j = (g.J + width - 1) / width;
        g.block_i = (g.I + blocks_i * 12 - 1) / (blocks_i * 12) * 12;
        g.block_j = (g.J + blocks_j * 32 - 1) / (blocks_j * 32) * 32;
        blocks_i = (g.I + g.block_i - 1) / g.block_i, blocks_j = (g.J + g.block_j - 1) / g.block_j;
        parallel_for(blocks_i * blocks_j, isa()->lanes->outer, &g);
    } else if (layout == NT && g.I <= FEW_ROWS) {
        // chunks of about 512 KiB of weights
        int64_t rows = (1 << 19) / (K * sw) / 4 * 4;
        g.block_j = rows < 4 ? 4 : rows > 256 ? 256 : rows;
        parallel_for((g.J + g.block_j - 1) / g.block_j, isa()->lanes->few_rows, &g);
    } else {
        g.block_j = g.J * g.I <= 8 * J_BLOCK * I_BLOCK ? J_BLOCK / 2 : J_BLOCK;
        parallel_for((g.J + g.block_j - 1) / g.block_j * ((g.I + I_BLOCK - 1) / I_BLOCK), isa()->lanes->many_rows, &g);
    }
}

// ------------------------------------------------------------------------------------------------- the other rows

static bool all_f32(const Mat *m, int n) {
    for (int i = 0; i < n; i++)
        if (m[i].p && m[i].type != F32) return false;
    return true;
}

// Chunks of about 16,384 elements: below that a row is not worth waking anybody.
static void over_rows(Rows *g, int64_t cols, PoolJob job) {
    g->per_chunk = (1 << 14) / cols > 1 ? (1 << 14) / cols : 1;
    parallel_for((g->m[0].rows + g->per_chunk - 1) / g->per_chunk, job, g);
}

static void cpu_add_bias(Mat y, Mat b) {
    Rows g = {.m = {y, y, b}};
    if (!all_f32(g.m, 2)) ops_ref()->add_bias(y, b);
    else over_rows(&g, y.cols, isa()->lanes->add);
}

static void cpu_add(Mat y, Mat a, Mat b) {
    Rows g = {.m = {y, a, b}};
    if (!all_f32(g.m, 3)) ops_ref()->add(y, a, b);
    else over_rows(&g, y.cols, isa()->lanes->add);
}

static void cpu_bias_backward(Mat db, Mat dy) {
    Rows g = {.m = {db, dy, mat_none(), mat_none()}};
    if (!all_f32(g.m, 2)) ops_ref()->bias_backward(db, dy);
    else parallel_for((dy.cols + COLUMNS - 1) / COLUMNS, isa()->lanes->columns, &g);
}

static void cpu_dropout(Mat y, Mat x, Mat keys, float p, uint64_t seed, uint32_t site) {
    Rows g = {.m = {y, x, keys}, .f = p, .seed = seed, .site = site};
    if (!all_f32(g.m, 2)) ops_ref()->dropout(y, x, keys, p, seed, site);
    else over_rows(&g, y.cols, isa()->lanes->dropout);
}

static void cpu_rmsnorm_forward(Mat y, Mat rstd, Mat x, Mat w, float eps) {
    Rows g = {.m = {y, rstd, mat_none(), x, mat_none(), w}, .f = eps};
    if (!all_f32(g.m, 5)) ops_ref()->rmsnorm_forward(y, rstd, x, w, eps);
    else over_rows(&g, x.cols, isa()->lanes->rmsnorm);
}

static void cpu_add_rmsnorm_forward(Mat y, Mat rstd, Mat sum, Mat x, Mat r, Mat w, float eps) {
    Rows g = {.m = {y, rstd, sum, x, r, w}, .f = eps};
    if (!all_f32(g.m, 5)) ops_ref()->add_rmsnorm_forward(y, rstd, sum, x, r, w, eps);
    else over_rows(&g, x.cols, isa()->lanes->rmsnorm);
}

static void cpu_rmsnorm_backward_add(Mat dx, Mat dw, Mat dy, Mat x, Mat w, Mat rstd) {
    Rows g = {.m = {dx, dy, x, w, rstd}}, sums = {.m = {dw, dy, x, rstd}};
    if (!all_f32(g.m, 3)) {
        ops_ref()->rmsnorm_backward_add(dx, dw, dy, x, w, rstd);
        return;
    }
    over_rows(&g, x.cols, isa()->lanes->rmsnorm_backward);
    if (dw.p) parallel_for((x.cols + COLUMNS - 1) / COLUMNS, isa()->lanes->columns, &sums);
}

static void cpu_rope(Mat x, Mat angles, int64_t heads, int64_t dim, float sign) {
    Rows g = {.m = {x, angles}, .f = sign, .heads = heads, .dim = dim};
    if (!all_f32(g.m, 1)) ops_ref()->rope(x, angles, heads, dim, sign);
    else over_rows(&g, x.cols, isa()->lanes->rope);
}

static void cpu_swiglu_forward(Mat y, Mat gate, Mat up) {
    Rows g = {.m = {y, gate, up}};
    if (!all_f32(g.m, 3)) ops_ref()->swiglu_forward(y, gate, up);
    else over_rows(&g, y.cols, isa()->lanes->swiglu);
}

static void cpu_swiglu_backward(Mat dgate, Mat dup, Mat dy, Mat gate, Mat up) {
    Rows g = {.m = {dgate, dup, dy, gate, up}};
    if (!all_f32(g.m, 5)) ops_ref()->swiglu_backward(dgate, dup, dy, gate, up);
    else over_rows(&g, dy.cols, isa()->lanes->swiglu_backward);
}

static void cpu_gelu_forward(Mat y, Mat x) {
    Rows g = {.m = {y, x}};
    if (!all_f32(g.m, 2)) ops_ref()->gelu_forward(y, x);
    else over_rows(&g, y.cols, isa()->lanes->gelu);
}

static void cpu_gelu_backward(Mat dx, Mat dy, Mat x) {
    Rows g = {.m = {dx, dy, x}};
    if (!all_f32(g.m, 3)) ops_ref()->gelu_backward(dx, dy, x);
    else over_rows(&g, x.cols, isa()->lanes->gelu_backward);
}

static void cpu_gather_rows(Mat y, Mat table, Mat index) {
    Rows g = {.m = {y, table, index}};
    if (!all_f32(g.m, 1)) ops_ref()->gather_rows(y, table, index);
    else over_rows(&g, y.cols, isa()->lanes->gather);
}

static void cpu_scatter_add_rows(Mat y, Mat x, Mat index) {
    Rows g = {.m = {y, x, index}};
    if (!all_f32(g.m, 2)) ops_ref()->scatter_add_rows(y, x, index);
    else parallel_for((y.cols + COLUMNS - 1) / COLUMNS, isa()->lanes->scatter, &g);
}

static void cpu_logprob_forward(Mat lp, Mat lse, Mat entropy, Mat logits, Mat targets, float inv_temperature) {
    Rows g = {.m = {lp, lse, entropy, logits, targets}, .f = inv_temperature};
    over_rows(&g, logits.cols, isa()->lanes->logprob);
}

static void cpu_logprob_backward(Mat dlogits, Mat logits, Mat targets, Mat lse, Mat dlp, float inv_temperature) {
    Rows g = {.m = {dlogits, logits, targets, lse, dlp}, .f = inv_temperature};
    if (!all_f32(g.m, 1)) ops_ref()->logprob_backward(dlogits, logits, targets, lse, dlp, inv_temperature);
    else over_rows(&g, logits.cols, isa()->lanes->logprob_backward);
}

// Rows are cut into at most SQUARE_SUMS chunks, each with a sum of its own; then those in order. A matrix without gaps
// counts as rows of SQUARE_ROW elements and a rest, whatever its shape.
static double squares_of(Mat x) {
    double sums[SQUARE_SUMS], sum = 0;
    Squares g = {x, (x.rows + SQUARE_SUMS - 1) / SQUARE_SUMS, sums};
    if (!x.rows || !x.cols) return 0;
    int64_t chunks = (x.rows + g.per_chunk - 1) / g.per_chunk;
    parallel_for(chunks, isa()->lanes->squares, &g);
    for (int64_t c = 0; c < chunks; c++) sum += sums[c];
    return sum;
}
static void cpu_sum_squares(Mat out, Mat x) {
    if (x.type != F32) {
        ops_ref()->sum_squares(out, x);
        return;
    }
    double sum;
    if (x.stride == x.cols) {
        int64_t n = x.rows * x.cols, whole = n / SQUARE_ROW;
        sum = squares_of(mat(x.p, whole, SQUARE_ROW, F32));
        sum += squares_of(mat((float *)x.p + whole * SQUARE_ROW, 1, n - whole * SQUARE_ROW, F32));
    } else sum = squares_of(x);
    *(float *)out.p = (float)sum;
}

static void cpu_adamw(Mat w, Mat m, Mat v, Mat g, AdamStep step) {
    AdamRows a = {{.m = {w, m, v, g}}, step};
    if (w.stride == w.cols && m.stride == w.cols && v.stride == w.cols && g.stride == w.cols) { // no gaps, no shape
        int64_t n = w.rows * w.cols, whole = n / SQUARE_ROW, rest = n - whole * SQUARE_ROW;
        for (int k = 0; k < 4; k++) a.rows.m[k] = mat(a.rows.m[k].p, whole, SQUARE_ROW, F32);
        over_rows(&a.rows, SQUARE_ROW, isa()->lanes->adamw);
        for (int k = 0; k < 4 && rest; k++) a.rows.m[k] = mat(mat_at(a.rows.m[k], whole, 0), 1, rest, F32);
        if (rest) over_rows(&a.rows, rest, isa()->lanes->adamw);
    } else over_rows(&a.rows, w.cols, isa()->lanes->adamw);
}

// --------------------------------------------------------------------------------------------------------- attention

static void cpu_attention_forward(Mat o, Mat lse, Mat q, Mat k, Mat v, Spans spans, int64_t heads, int64_t kv_heads,
                                  int64_t dim, float scale) {
    Mat m[] = {o, q, k, v};
    Attention g = {o, lse,  q, k, v, spans.host, heads, heads / kv_heads, dim, (spans.longest + QUERIES - 1) / QUERIES,
                   1, scale};
    if (!all_f32(m, 4)) ops_ref()->attention_forward(o, lse, q, k, v, spans, heads, kv_heads, dim, scale);
    else parallel_for(spans.n * g.blocks * heads, isa()->lanes->attention, &g);
}

// Each element of dq, dk and dv is one chain of FMAs: dq over keys in order (prefix, then own), dk and dv over spans, their
// rows in blocks of SIDE from the span's start, the query heads of the group, rows. Chains go on where they were put
// down, so it does not matter how the squares are shared out, and two ways may be used. Where no span has a prefix, each
// span owns its keys: a chunk is a span and key head, and makes dq, dk and dv in one go. Where there are prefixes, or
// too few chunks of that kind, dq is made by rows of queries and dk, dv by rows of keys, for two more products to five.
static void zero_rows_job(void *ctx, int64_t chunk, int thread) {
    const Rows *g = ctx;
    int64_t first = rows_first(g, chunk), n = rows_last(g, chunk) - first;
    (void)thread;
    ops_ref()->zero(mat_rows(g->m[0], first, n));
}
static void cpu_attention_backward(Mat dq, Mat dk, Mat dv, Mat delta, Mat dout, Mat q, Mat k, Mat v, Mat o, Mat lse,
                                   Spans spans, int64_t heads, int64_t kv_heads, int64_t dim, float scale) {
    Mat m[] = {dq, dk, dv, dout, q, k, v, o};
    if (!all_f32(m, 8)) {
        ops_ref()->attention_backward(dq, dk, dv, delta, dout, q, k, v, o, lse, spans, heads, kv_heads, dim, scale);
        return;
    }
    Rows zeros[] = {{.m = {dq}}, {.m = {dk}}, {.m = {dv}}, {.m = {delta}}};
    for (int i = 0; i < 4; i++) over_rows(&zeros[i], zeros[i].m[0].cols, zero_rows_job);
    int64_t work = 0, most = spans.longest * spans.longest;
    bool prefixes = false;
    for (int64_t i = 0; i < spans.n; i++) {
        Span s = spans.host[i];
        work += (int64_t)(s.last - s.first) * (s.last - s.first);
        prefixes = prefixes || s.prefix_first < s.prefix_last;
    }
    Backward g = {dq,         dk,
                  dv,         delta,
                  dout,       q,
                  k,          v,
                  o,          lse,
                  spans.host, spans.n,
                  heads,      heads / kv_heads,
                  dim,        (spans.longest + SIDE - 1) / SIDE,
                  scale};
    const Lanes *lanes = isa()->lanes;
    parallel_for(spans.n * g.blocks, lanes->backward_delta, &g);
    if (!prefixes && work * kv_heads >= 4 * most) parallel_for(spans.n * kv_heads, lanes->backward_all, &g);
    else {
        parallel_for(spans.n * g.blocks * heads, lanes->backward_dq, &g);
        parallel_for((k.rows + SIDE - 1) / SIDE * kv_heads, lanes->backward_dkv, &g);
    }
}

static void cpu_attention_decode(Mat o, Mat q, Mat k, Mat v, Spans spans, int64_t heads, int64_t kv_heads, int64_t dim,
                                 float scale) {
    Mat m[] = {o, q, k, v};
    int64_t together = QUERIES / (heads / kv_heads);
    while (together > 1 && spans.n * kv_heads < 3 * pool_threads() * together) together--; // work for every thread
    Attention g = {o,    mat_none(), q, k, v, spans.host, heads, heads / kv_heads, dim, 1, together > 1 ? together : 1,
                   scale};
    if (!all_f32(m, 4)) ops_ref()->attention_decode(o, q, k, v, spans, heads, kv_heads, dim, scale);
    else parallel_for(spans.n * kv_heads, isa()->lanes->decode, &g);
}

// ------------------------------------------------------------------------------------------------------------ sampling

typedef struct SampleRows {
    Rows rows; // tokens, logits, seen, streams, steps
    SampleParams p;
} SampleRows;
static void sample_job(void *ctx, int64_t chunk, int thread) {
    const SampleRows *g = ctx;
    Mat m[5];
    int64_t first = rows_first(&g->rows, chunk), n = rows_last(&g->rows, chunk) - first;
    (void)thread;
    for (int k = 0; k < 5; k++) m[k] = g->rows.m[k].p ? mat_rows(g->rows.m[k], first, n) : mat_none();
    ops_ref()->sample(m[0], m[1], m[2], m[3], m[4], g->p);
}
static void cpu_sample(Mat tokens, Mat logits, Mat seen, Mat streams, Mat steps, SampleParams p) {
    SampleRows g = {{.m = {tokens, logits, seen, streams, steps}}, p};
    over_rows(&g.rows, logits.cols, sample_job);
}

const Ops *ops_cpu(void) {
    static Ops cpu;
    if (!cpu.name) {
        cpu = *ops_ref();
        cpu.name = "cpu";
        cpu.matmul = cpu_matmul, cpu.add_bias = cpu_add_bias, cpu.bias_backward = cpu_bias_backward;
        cpu.add = cpu_add, cpu.dropout = cpu_dropout;
        cpu.rmsnorm_forward = cpu_rmsnorm_forward, cpu.add_rmsnorm_forward = cpu_add_rmsnorm_forward;
        cpu.rmsnorm_backward_add = cpu_rmsnorm_backward_add;
        cpu.rope = cpu_rope;
        cpu.attention_forward = cpu_attention_forward, cpu.attention_backward = cpu_attention_backward;
        cpu.attention_decode = cpu_attention_decode;
        cpu.swiglu_forward = cpu_swiglu_forward, cpu.swiglu_backward = cpu_swiglu_backward;
        cpu.gelu_forward = cpu_gelu_forward, cpu.gelu_backward = cpu_gelu_backward;
        cpu.gather_rows = cpu_gather_rows, cpu.scatter_add_rows = cpu_scatter_add_rows;
        cpu.logprob_forward = cpu_logprob_forward, cpu.logprob_backward = cpu_logprob_backward;
        cpu.sample = cpu_sample;
        cpu.sum_squares = cpu_sum_squares, cpu.adamw = cpu_adamw;
    }
    return &cpu;
}
