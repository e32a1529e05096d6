// ceilings.h - what this machine can do: a loop of fused multiply-adds that touches no memory, for the programs of bench/.
//
// What it is:  fma_peak() in GFLOP/s of all threads, in the instruction set that "cpu" uses; a cheap source of numbers; the
//              processor's clock; the median over rounds.
// What it is not: part of the library.
// Read before: ops.h (cpu_isa), base.h (parallel_for).  Read next: bench.c, bench_train.c, bench_grpo.c.
#ifndef SURGR1_CEILINGS_H
#define SURGR1_CEILINGS_H
#include "../surgr1.h"

static volatile float sink;

enum { PEAK_LOOPS = 400000, PEAK_CHAINS = 12 };
// Twelve chains: more than latency times width. The assembler text keeps the compiler from merging equal chains.
#define CHAINS(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define PEAK_BODY(instruction, constraint)                                                                             \
    for (int r = 0; r < PEAK_LOOPS; r++) {                                                                             \
        __asm__ volatile(instruction " %2, %1, %0" : "+" constraint(a0) : constraint(x), constraint(y));               \
        __asm__ volatile(instruction " %2, %1, %0" : "+" constraint(a1) : constraint(x), constraint(y));               \
        __asm__ volatile(instruction " %2, %1, %0" : "+" constraint(a2) : constraint(x), constraint(y));               \
        __asm__ volatile(instruction " %2, %1, %0" : "+" constraint(a3) : constraint(x), constraint(y));               \
        __asm__ volatile(instruction " %2, %1, %0" : "+" constraint(a4) : constraint(x), constraint(y));               \
        __asm__ volatile(instruction " %2, %1, %0" : "+" constraint(a5) : constraint(x), constraint(y));               \
        __asm__ volatile(instruction " %2, %1, %0" : "+" constraint(a6) : constraint(x), constraint(y));               \
        __asm__ volatile(instruction " %2, %1, %0" : "+" constraint(a7) : constraint(x), constraint(y));               \
        __asm__ volatile(instruction " %2, %1, %0" : "+" constraint(a8) : constraint(x), constraint(y));               \
        __asm__ volatile(instruction " %2, %1, %0" : "+" constraint(a9) : constraint(x), constraint(y));               \
        __asm__ volatile(instruction " %2, %1, %0" : "+" constraint(a10) : constraint(x), constraint(y));              \
        __asm__ volatile(instruction " %2, %1, %0" : "+" constraint(a11) : constraint(x), constraint(y));              \
    }                                                                                                                  \
    sink = a0[0] + a1[0] + a2[0] + a3[0] + a4[0] + a5[0] + a6[0] + a7[0] + a8[0] + a9[0] + a10[0] + a11[0]
#define DECLARE(i) a##i = {0},
#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) static void peak_avx2(void *ctx, int64_t chunk, int thread) {
    typedef float V __attribute__((vector_size(32)));
    (void)ctx, (void)chunk, (void)thread;
    V CHAINS(DECLARE) x = {0.5f, 0.25f}, y = {0.125f, 3};
    PEAK_BODY("vfmadd231ps", "x");
}
__attribute__((target("avx512f"))) static void peak_avx512(void *ctx, int64_t chunk, int thread) {
    typedef float V __attribute__((vector_size(64)));
    (void)ctx, (void)chunk, (void)thread;
    V CHAINS(DECLARE) x = {0.5f, 0.25f}, y = {0.125f, 3};
    PEAK_BODY("vfmadd231ps", "v");
}
#endif
static void peak_scalar(void *ctx, int64_t chunk,
                        int thread) { // a multiply and an add per lane, as the scalar kernels do
    typedef float V __attribute__((vector_size(16)));
    (void)ctx, (void)chunk, (void)thread;
    V a[PEAK_CHAINS] = {{0}}, x = {0.5f, 0.25f};
    for (int r = 0; r < PEAK_LOOPS; r++) {
#pragma GCC unroll 12
        for (int i = 0; i < PEAK_CHAINS; i++) a[i] = a[i] * x + (float)i;
        __asm__ volatile("" : "+m"(x));
    }
    for (int i = 0; i < PEAK_CHAINS; i++) sink = a[i][0];
}

static inline double fma_work(void) { // GFLOP of fused multiply-adds in all threads, done when it returns
    PoolJob job = peak_scalar;
    int lanes = 4, chunks = 4 * pool_threads();
#if defined(__x86_64__)
    if (!strncmp(cpu_isa(), "avx2", 4)) job = peak_avx2, lanes = 8;
    if (!strcmp(cpu_isa(), "avx512")) job = peak_avx512, lanes = 16;
#endif
    parallel_for(chunks, job, NULL);
    return 2e-9 * lanes * PEAK_CHAINS * PEAK_LOOPS * chunks;
}
static inline double fma_peak(void) { // GFLOP/s of all threads
    double started = clock_seconds(), work = fma_work();
    return work / (clock_seconds() - started);
}

static uint64_t cheap_state = 88172645463325252u;
static inline uint64_t cheap(void) { // xorshift64 (Marsaglia 2003): only to fill memory
    cheap_state ^= cheap_state << 13, cheap_state ^= cheap_state >> 7, cheap_state ^= cheap_state << 17;
    return cheap_state;
}

// Of all threads of this process: on a machine with neighbours the steadier of the two clocks.
static inline double cpu_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

enum { MOST_ROUNDS = 64 };
static inline int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}
static inline double median(const double *values, int n) { // n <= MOST_ROUNDS
    double v[MOST_ROUNDS];
    memcpy(v, values, (size_t)n * sizeof *v);
    qsort(v, (size_t)n, sizeof *v, by_size);
    return n % 2 ? v[n / 2] : 0.5 * (v[n / 2 - 1] + v[n / 2]);
}
#endif
