// bench_train.c - how long one training step takes on "cpu", beside the same step in PyTorch eager.
//
//     bench_train DIR [--threads N] [--rounds N] [--python PATH] [--spread N] [--profile]
//
// What it is:  full fine-tuning in F32 of the checkpoint in DIR (bench/make_checkpoint demo DIR): eight sequences, each with a
//              picture, 2,048 tokens and 1,024 targets in all; packing, forward, backward, the norm of the gradient, clipping,
//              AdamW. With --python, bench/peers/train_step.py does the same work with transformers in another process, from
//              the same weights and samples, and the two take turns: step by step, so that a disturbed moment meets both.
//              Loss and norm of both are printed: a comparison of different work would be worthless. Sequences are of equal
//              length (the peer pads nothing then) unless --spread N makes them 14 N apart.
//              --profile adds where our own time goes, op by op.
// What it is not: a test. Nothing fails here.
// Read before: step.h.  Read next: PERF.md, where the results are kept.
#include "step.h"

enum { SEQUENCES = 8, TOKENS = 2048 };
static const int64_t sides[SEQUENCES][2] = {{8, 8},   {10, 10}, {12, 12}, {14, 14},
                                            {12, 16}, {16, 12}, {16, 16}, {16, 16}}; // 112 x 112 to 224 x 224

// -------------------------------------------------------------------------------------------------------- where it goes
// The processor's time of all threads between two ops counts for the later one, so the work of the host is in the op it prepares. Products are told
// apart by layout; zero, copy, upload and download by a table of ops that times them.

typedef struct Share {
    const char *op;
    double seconds;
    int64_t calls;
} Share;
static Share shares[64];
static double last_seen;
static const char *layout_seen;
static Ops timed;

static void count_op(const char *op) {
    double now = cpu_seconds();
    int i = 0;
    while (shares[i].op && strcmp(shares[i].op, op)) i++;
    shares[i].op = op, shares[i].seconds += now - last_seen, shares[i].calls++;
    last_seen = now;
}
static void see_op(void *ctx, const Ops *d, const char *op, Mat y) {
    (void)ctx, (void)d, (void)y;
    count_op(!strcmp(op, "matmul") ? layout_seen : op);
}
static void timed_matmul(Mat y, Mat x, Mat w, Layout layout, float alpha, float beta) {
    layout_seen = layout == NT ? "matmul NT" : layout == NN ? "matmul NN" : "matmul TN";
    ops_cpu()->matmul(y, x, w, layout, alpha, beta);
}
static void timed_zero(Mat y) {
    count_op("host");
    ops_cpu()->zero(y);
    count_op("zero");
}
static void timed_upload(Mat y, Mat x) {
    count_op("host");
    ops_cpu()->upload(y, x);
    count_op("upload");
}
static void timed_download(Mat y, Mat x) {
    count_op("host");
    ops_cpu()->download(y, x);
    count_op("download");
}
static int by_seconds(const void *a, const void *b) {
    const Share *x = a, *y = b;
    return x->seconds < y->seconds ? 1 : x->seconds > y->seconds ? -1 : 0;
}
static bool profile(Step *t, int64_t keep, int rounds, Err *e) {
    double total = 0;
    int n = 0;
    memset(shares, 0, sizeof shares);
    timed = *ops_cpu();
    timed.matmul = timed_matmul, timed.zero = timed_zero, timed.upload = timed_upload, timed.download = timed_download;
    t->m.d = &timed;
    op_trace_set(see_op, NULL);
    for (int r = 0; r < rounds; r++) {
        last_seen = cpu_seconds();
        if (!step_once(t, keep, e)) return false;
        count_op("host");
    }
    op_trace_set(NULL, NULL);
    t->m.d = ops_cpu();
    for (; shares[n].op; n++) total += shares[n].seconds;
    qsort(shares, (size_t)n, sizeof *shares, by_seconds);
    for (int i = 0; i < n; i++)
        printf("  %-24s %6.1f %%  %8.2f ms  %5lld calls\n", shares[i].op, 100 * shares[i].seconds / total,
               1e3 * shares[i].seconds / rounds, (long long)(shares[i].calls / rounds));
    return true;
}

// ----------------------------------------------------------------------------------------------------------------- main

// Steps of one kind: ours and, right after each, one of the peer.
typedef struct Times {
    double wall[MOST_ROUNDS], cpu[MOST_ROUNDS], peer_wall[MOST_ROUNDS], peer_cpu[MOST_ROUNDS];
    double wall_ratio[MOST_ROUNDS], cpu_ratio[MOST_ROUNDS];
} Times;

static void print_step(const char *name, const double *wall, const double *cpu, int rounds, double operations,
                       double peak) {
    double seconds = median(wall, rounds), worked = median(cpu, rounds);
    printf("%-30s %8.1f ms %7.0f tokens/s %7.1f GFLOP/s; of processor %8.1f ms, %4.1f %% of its multiply-adds\n", name,
           1e3 * seconds, TOKENS / seconds, 1e-9 * operations / seconds, 1e3 * worked,
           100e-9 * operations / worked / peak);
}

static bool run(const char *dir, const char *python, int64_t spread, bool profiled, int rounds, Err *e) {
    static const char *const names[] = {"surgr1, every block kept", "surgr1, none kept (--keep 0)"};
    Step *t = alloc_or_die(1, sizeof *t, "the step");
    Times *times = alloc_or_die(2, sizeof *times, "the times");
    Peer p = {0};
    double peaks[MOST_ROUNDS], wall, cpu, loss, norm;
    if (!step_open(t, dir, ops_cpu(), NULL, e)) return false;
    int64_t keep[2] = {t->m.c.L > t->m.c.vision.depth ? t->m.c.L : t->m.c.vision.depth, 0}, elements = 0;
    step_samples(t, (SampleShape){SEQUENCES, TOKENS / SEQUENCES, spread, sides, 0});
    if (!samples_write(&t->s, dir, e)) return false;
    for (int64_t i = 0; i < t->o.n; i++) elements += t->o.rows[i].p->rows * t->o.rows[i].p->cols;
    printf("one step of full fine-tuning, F32: %.2f M parameters, %d tokens in %d sequences of %d to %d, %lld targets, "
           "%lld patches\ninstruction set %s, %d threads, medians of %d rounds\n",
           1e-6 * (double)elements, TOKENS, SEQUENCES, t->s.lengths[0], t->s.lengths[SEQUENCES - 1],
           (long long)t->s.targets, (long long)t->s.patches, cpu_isa(), pool_threads(), rounds);
    fflush(stdout);
    char threads[16];
    snprintf(threads, sizeof threads, "%d", pool_threads());
    bool peer = python && peer_open(&p, python, "bench/peers/train_step.py", (const char *[]){dir, threads, NULL});
    if (python && !peer)
        printf("PyTorch was not measured: %s. make bench PYTHON=path/to/python names one that has torch and "
               "transformers.\n",
               p.name);

    // The first step warms up and shows that both do the same; the last one that they still do.
    if (!step_once(t, keep[0], e)) return false;
    printf("step 1: loss %.6f, norm of the gradient %.6f\n", t->loss, t->norm);
    if (peer && (peer = peer_step(&p, &wall, &cpu, &loss, &norm)))
        printf("PyTorch:     %.6f                      %.6f\n", loss, norm);
    for (int r = 0; r < rounds; r++) {
        double before = cpu_seconds(), work = fma_work();
        peaks[r] = work / (cpu_seconds() - before);
        for (int k = 0; k < 2; k++) { // by turns: with every block kept, and with none
            Times *x = times + k;
            if (!step_once(t, keep[k], e)) return false;
            x->wall[r] = t->seconds, x->cpu[r] = t->cpu;
            if (!peer || !(peer = peer_step(&p, x->peer_wall + r, x->peer_cpu + r, &loss, &norm))) continue;
            x->wall_ratio[r] = x->peer_wall[r] / t->seconds, x->cpu_ratio[r] = x->peer_cpu[r] / t->cpu;
        }
    }
    printf("step %d: loss %.6f, norm of the gradient %.6f\n", 2 * rounds + 1, t->loss, t->norm);
    if (peer) printf("PyTorch:     %.6f                      %.6f\n", loss, norm);
    double peak = median(peaks, rounds), operations = step_operations(t);
    printf("%.1f GFLOP in the products of a step; fused multiply-adds in registers: %.0f GFLOP a second of processor\n",
           1e-9 * operations, peak);
    for (int k = 0; k < 2; k++) print_step(names[k], times[k].wall, times[k].cpu, rounds, operations, peak);
    if (peer) {
        print_step("PyTorch", times[0].peer_wall, times[0].peer_cpu, rounds, operations, peak);
        printf("  (%s)\n", p.name);
        for (int k = 0; k < 2; k++)
            printf("%-30s PyTorch takes %.2f times as long (%.2f times the processor's time)\n", names[k],
                   median(times[k].wall_ratio, rounds), median(times[k].cpu_ratio, rounds));
    }
    peer_close(&p);
    for (int k = 0; profiled && k < 2; k++) {
        printf("where the processor's time goes, %s:\n", names[k] + 8);
        if (!profile(t, keep[k], rounds, e)) return false;
    }
    step_close(t), step_samples_free(t), free(t), free(times);
    return true;
}

int main(int argc, char **argv) {
    const char *dir = argc > 1 && argv[1][0] != '-' ? argv[1] : NULL, *python = NULL;
    int threads = 0, rounds = 7;
    int64_t spread = 0;
    bool profiled = false, right = dir != NULL;
    for (int i = 2; right && i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (!strcmp(argv[i], "--profile")) profiled = true;
        else if (!value) right = false;
        else if (!strcmp(argv[i], "--threads")) threads = (int)strtol(value, NULL, 10), i++;
        else if (!strcmp(argv[i], "--rounds")) rounds = (int)strtol(value, NULL, 10), i++;
        else if (!strcmp(argv[i], "--spread")) spread = strtol(value, NULL, 10), i++;
        else if (!strcmp(argv[i], "--python")) python = value, i++;
        else right = false;
    }
    if (!right || spread < 0 || spread > 20) {
        fprintf(stderr,
                "usage: bench_train DIR [--threads N] [--rounds N] [--python PATH] [--spread 0..20] [--profile]\n");
        return EXIT_USAGE;
    }
    Err e = {0};
    rounds = rounds < 1 ? 1 : rounds > MOST_ROUNDS ? MOST_ROUNDS : rounds;
    pool_start(threads);
    bool ok = run(dir, python, spread, profiled, rounds, &e);
    pool_stop();
    return ok ? EXIT_OK : err_report(&e);
}
