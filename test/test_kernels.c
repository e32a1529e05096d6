// test_kernels.c - every kernel of kernels.cu against the reference, in fp32 and bf16.
//
// What it is:  a table of cases per op. Linked with the emulated kernels each case runs under six schedules (three orders,
//              asynchronous work early and late) and must give the same bits under all; linked with the nvcc object it
//              runs twice on the GPU.
// How far is too far: inputs are rounded to their type first and the reference computes in double, so an fp32 result
//              differs by the order of its sums (relative L2 <= 1e-5) and a bf16 result by one rounding more (<= 3e-3).
//              Every comparison is followed by controls that must fail: the result shifted by an element, with two rows
//              swapped, with one element off.
// Read before: ops.c, kernels.cu.
#include "compare.h"
#include "test.h"
#include <sys/mman.h>
#include <sys/wait.h>

__attribute__((weak)) void cuda_emu_schedule(int order, int early); // absent beside a real GPU

static const Ops *cuda(void) {
    Err e = {0};
    const Ops *d = ops_cuda(F32, &e);
    if (!d) { // nothing below can run: say so in the form of a test's last line
        char line[1200];
        printf("skip all: %s\ntest_kernels: 0 passed, 0 failed, 1 skipped\n", err_line(&e, "error", line, sizeof line));
        exit(0);
    }
    return d;
}

// ------------------------------------------------------------------------------------------------------- one comparison

enum Role { IN, OUT, INOUT };
enum { MAX_ARGS = 10, GUARD = 0x3F }; // 0x3F3F.. is 0.747 in fp32 and bf16: sums that read it go wrong

// One argument of an op, outputs first. values: rows * cols, or NULL for random ones. pad: stride - cols.
typedef struct Arg {
    int role;
    int64_t rows, cols, pad;
    Type type;
    const void *values; // float or int32_t
    bool absent;
} Arg;
typedef struct Case {
    const char *what;
    Arg args[MAX_ARGS];
    void (*call)(const Ops *d, const Mat *m, const void *ctx);
    const void *ctx;
    double limit_scale; // 0 = 1
} Case;

static uint64_t random_stream;
static float random_value(uint64_t stream, int64_t i) {
    return (float)(2 * random_uniform(11, RANDOM_TEST, stream, (uint32_t)i) - 1);
}
static void store(Mat m, int64_t i, int64_t j, const void *from) { // a float or int32_t, in the view's type
    float value;
    memcpy(&value, from, 4);
    uint16_t h = f32_to_bf16(value);
    memcpy(mat_at(m, i, j), m.type == BF16 ? (const void *)&h : from, type_size(m.type));
}
static float load(Mat m, int64_t i, int64_t j) {
    return m.type == BF16  ? bf16_to_f32(*(uint16_t *)mat_at(m, i, j))
           : m.type == F32 ? *(float *)mat_at(m, i, j)
                           : (float)*(int32_t *)mat_at(m, i, j);
}
// A view of rows x cols inside fresh memory with one row more, all of it guard bytes.
static Mat guarded(Arg a, Type type) {
    int64_t stride = a.cols + a.pad;
    Mat m = mat(malloc((size_t)((a.rows + 1) * stride + 1) * type_size(type)), a.rows, a.cols, type);
    m.stride = stride;
    memset(m.p, GUARD, (size_t)((a.rows + 1) * stride) * type_size(type));
    return m;
}
static Mat whole(Mat view) { // with its guards
    view.rows++, view.cols = view.stride;
    return view;
}
static bool guards_hold(Mat host) {
    for (int64_t i = 0; i <= host.rows; i++)
        for (int64_t j = i < host.rows ? host.cols : 0; j < host.stride; j++)
            for (size_t b = 0; b < type_size(host.type); b++)
                if (((unsigned char *)mat_at(host, i, j))[b] != GUARD) return false;
    return true;
}
static void fill(Mat m, Arg a, uint64_t stream) {
    for (int64_t i = 0; i < a.rows; i++)
        for (int64_t j = 0; j < a.cols; j++) {
            float r = random_value(stream, i * a.cols + j);
            r = a.type == BF16 ? bf16_to_f32(f32_to_bf16(r)) : r;
            store(m, i, j, a.values ? (const char *)a.values + 4 * (i * a.cols + j) : (const char *)&r);
        }
}
static void to_floats(Mat m, float *out) {
    for (int64_t i = 0; i < m.rows; i++)
        for (int64_t j = 0; j < m.cols; j++) out[i * m.cols + j] = load(m, i, j);
}

static void compare(const char *what, int arg, Mat got_mat, Mat want_mat, double limit) {
    int64_t n = want_mat.rows * want_mat.cols, rows = want_mat.rows, cols = want_mat.cols;
    float *got = malloc((size_t)n * 4 + 4), *want = malloc((size_t)n * 4 + 4), *bad = malloc((size_t)n * 4 + 4);
    to_floats(got_mat, got), to_floats(want_mat, want);
    TensorError e = tensor_error(got, want, n);
    if (!error_within(e, limit))
        FAIL("%s, argument %d [%lld,%lld] %s: relative L2 %.3g, max/rms %.3g, %lld non-finite (limit %.3g)", what, arg,
             (long long)rows, (long long)cols, type_name(got_mat.type), e.relative_l2, e.max_rms,
             (long long)e.nonfinite, limit);
    double squares = 0;
    for (int64_t i = 0; i < n; i++) squares += (double)want[i] * want[i];
    if (n >= 8 && squares > 0) { // controls: the same measure must refuse these
        // (except where the reference itself would pass, as rows of one column may, whose norms are all 1)
        for (int64_t i = 0; i < n; i++) bad[i] = want[(i + 1) % n];
        bool blind = cols == 1 && error_within(tensor_error(bad, want, n), limit);
        for (int64_t i = 0; i < n; i++) bad[i] = got[(i + 1) % n];
        if (!blind && error_within(tensor_error(bad, want, n), limit))
            FAIL("%s: shifted by one element and still within the limit", what);
        if (rows > 1) {
            memcpy(bad, want, (size_t)n * 4), memcpy(bad, want + cols, (size_t)cols * 4),
                memcpy(bad + cols, want, (size_t)cols * 4);
            blind = cols == 1 && error_within(tensor_error(bad, want, n), limit);
            memcpy(bad, got, (size_t)n * 4), memcpy(bad, got + cols, (size_t)cols * 4),
                memcpy(bad + cols, got, (size_t)cols * 4);
            if (!blind && memcmp(want, want + cols, (size_t)cols * 4) &&
                error_within(tensor_error(bad, want, n), limit))
                FAIL("%s: two rows swapped and still within the limit", what);
        }
        memcpy(bad, got, (size_t)n * 4);
        bad[n / 2] += (float)sqrt(squares / (double)n);
        if (error_within(tensor_error(bad, want, n), limit))
            FAIL("%s: one element off by the rms and still within the limit", what);
    }
    free(got), free(want), free(bad);
}

// Runs a case on the reference in fp32 and on the device under every schedule, and compares all outputs.
static void check(Case c) {
    static const int schedules[6][2] = {{0, 1}, {2, 0}, {1, 0}, {0, 0}, {1, 1}, {2, 1}};
    const Ops *ref = ops_ref(), *d = cuda();
    Mat want[MAX_ARGS], first[MAX_ARGS];
    uint64_t stream = random_stream += MAX_ARGS;
    int n = 0;
    for (; n < MAX_ARGS && (c.args[n].rows || c.args[n].absent); n++) {
        Arg a = c.args[n];
        want[n] = a.absent ? mat_none() : guarded(a, a.type == I32 ? I32 : F32);
        if (!a.absent && a.role != OUT) fill(want[n], a, stream + (uint64_t)n);
    }
    c.call(ref, want, c.ctx);
    int runs = cuda_emu_schedule ? 6 : 2;
    for (int s = 0; s < runs; s++) {
        if (cuda_emu_schedule) cuda_emu_schedule(schedules[s][0], schedules[s][1]);
        Mat dev[MAX_ARGS], host[MAX_ARGS];
        for (int i = 0; i < n; i++) {
            Arg a = c.args[i];
            dev[i] = host[i] = mat_none();
            if (a.absent) continue;
            dev[i] = host[i] = guarded(a, a.type);
            if (a.role != OUT) fill(host[i], a, stream + (uint64_t)i);
            dev[i].p = d->alloc((size_t)((a.rows + 1) * dev[i].stride) * type_size(a.type));
            d->upload(whole(dev[i]), whole(host[i]));
        }
        c.call(d, dev, c.ctx);
        for (int i = 0; i < n; i++) {
            Arg a = c.args[i];
            if (a.absent) continue;
            Mat before = guarded(a, a.type);
            if (a.role != OUT) fill(before, a, stream + (uint64_t)i);
            d->download(whole(host[i]), whole(dev[i]));
            d->release(dev[i].p);
            size_t bytes = (size_t)((a.rows + 1) * host[i].stride) * type_size(a.type);
            if (!guards_hold(host[i])) FAIL("%s: wrote outside argument %d", c.what, i);
            if (a.role == IN && memcmp(before.p, host[i].p, bytes)) FAIL("%s: changed its input %d", c.what, i);
            free(before.p);
            if (a.role == IN) free(host[i].p);
            else if (s == 0) {
                first[i] = host[i];
                if (a.type == I32) {
                    if (memcmp(host[i].p, want[i].p, bytes)) FAIL("%s: argument %d is not the reference's", c.what, i);
                } else
                    compare(c.what, i, host[i], want[i],
                            (a.type == BF16 ? 3e-3 : 1e-5) * (c.limit_scale ? c.limit_scale : 1));
            } else {
                if (memcmp(first[i].p, host[i].p, bytes))
                    FAIL("%s: argument %d has other bits under schedule %d,%d", c.what, i, schedules[s][0],
                         schedules[s][1]);
                free(host[i].p);
            }
        }
    }
    for (int i = 0; i < n; i++) {
        if (c.args[i].absent) continue;
        free(want[i].p);
        if (c.args[i].role != IN) free(first[i].p);
    }
}

static const Type act_types[2] = {F32, BF16};
static const int64_t odd[] = {1, 31, 33, 127};
#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))

// ---------------------------------------------------------------------------------------------------------- the device

// Runs `body` in a child and returns its exit status, or -signal.
static int in_child(void (*body)(void)) {
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        if (!freopen("/dev/null", "w", stderr)) _exit(99);
        body(), _exit(0);
    }
    int status = 0;
    waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}
static void hidden_device(void) {
    setenv("CUDA_VISIBLE_DEVICES", "", 1);
    Err e = {0};
    const Ops *d = ops_cuda(F32, &e);
    _exit(!d && !strcmp(e.code, "E-DV-01") && err_exit_code(&e) == EXIT_DEVICE ? 42 : 1);
}
TEST(without_a_device_there_is_an_error_and_no_table) {
    EXPECT_INT(in_child(hidden_device), 42);
} // first: tables are kept

enum { NO_DEVICE = 43 };
static void impossible_launch(void) { // a grid dimension over the hardware's 65,535
    Err e = {0};
    const Ops *d = ops_cuda(F32, &e);
    if (!d) _exit(NO_DEVICE);
    Mat q = mat(d->alloc(70000 * 4), 1, 70000, F32);
    Span span = {0, 1, 0, 0, 0};
    Mat rows = mat(d->alloc(sizeof span), 1, 5, I32);
    d->upload(rows, mat(&span, 1, 5, I32));
    attention_forward(d, q, mat_none(), q, q, q, (Spans){rows, &span, 1, 1}, 70000, 70000, 1, 1);
}
TEST(a_failing_launch_ends_the_program_with_the_device_exit_code) {
    int status = in_child(impossible_launch);
    if (status == NO_DEVICE) SKIP("there is no CUDA device");
    EXPECT_INT(status, EXIT_DEVICE);
}

TEST(memory_moves_with_any_stride) {
    const Ops *d = cuda();
    for (int early = 0; early < 2; early++) {
        if (cuda_emu_schedule) cuda_emu_schedule(0, early);
        static const Type types[] = {F32, BF16, I32};
        for (int t = 0; t < 3; t++)
            for (int64_t pad = 0; pad < 4; pad += 3) {
                Arg a = {IN, 5, 7, pad, types[t], NULL, false}, b = {IN, 5, 7, 2, types[t], NULL, false};
                size_t bytes = (size_t)(6 * (7 + pad)) * type_size(types[t]),
                       bytes_b = (size_t)(6 * 9) * type_size(types[t]);
                Mat host = guarded(a, types[t]), back = guarded(b, types[t]), dev = host, copied = back;
                fill(host, a, 5);
                dev.p = d->alloc(bytes), copied.p = d->alloc(bytes_b);
                EXPECT((uintptr_t)dev.p % 64 == 0);
                d->upload(whole(copied), whole(back)); // guards
                d->upload(dev, host);
                d->copy(copied, dev);
                d->download(back, copied);
                for (int i = 0; i < 5; i++)
                    EXPECT(!memcmp(mat_at(host, i, 0), mat_at(back, i, 0), 7 * type_size(types[t])));
                d->zero(copied);
                d->download(whole(back), whole(copied));
                EXPECT(guards_hold(back));
                for (int i = 0; i < 5; i++)
                    for (int j = 0; j < 7; j++) EXPECT(load(back, i, j) == 0);
                d->release(dev.p), d->release(copied.p), free(host.p), free(back.p);
            }
    }
    EXPECT(d->alloc((size_t)1 << 50) == NULL); // more than there is: not an error, and nothing sticks
    void *p = d->alloc(0);
    EXPECT(p != NULL);
    d->release(p), d->release(NULL), d->sync();
    EXPECT(ops_cuda(BF16, NULL)->act_type == BF16 && ops_cuda(F32, NULL)->act_type == F32);
}

TEST(host_memory_may_be_reused_after_an_upload) {
    const Ops *d = cuda();
    if (cuda_emu_schedule) cuda_emu_schedule(0, 0); // late: the copy happens when somebody waits
    float host[4] = {1, 2, 3, 4}, back[4];
    Mat m = mat(d->alloc(16), 1, 4, F32);
    d->upload(m, mat(host, 1, 4, F32));
    host[2] = 9;
    d->download(mat(back, 1, 4, F32), m);
    EXPECT(back[2] == 3);
    d->release(m.p);
}

// --------------------------------------------------------------------------------------------------------------- dense

typedef struct Product {
    Layout layout;
    float alpha, beta;
} Product;
static void call_matmul(const Ops *d, const Mat *m, const void *ctx) {
    const Product *p = ctx;
    matmul(d, m[0], m[1], m[2], p->layout, p->alpha, p->beta);
}
// The rungs of matmul. What one does not take it leaves to the next slower one, so all may be asked for everything.
static const CudaMatmul matmul_rungs[] = {MATMUL_NAIVE, MATMUL_TENSOR, MATMUL_CUBLAS};
static const char *const matmul_rung_names[] = {"auto", "naive", "tensor", "cublas"};
static CudaMatmul matmul_rung; // the chosen one, for messages
static void choose_matmul(CudaMatmul rung) {
    static uint64_t before; // numbers of their own, so that every other case keeps those it has
    if ((rung == MATMUL_AUTO) != (matmul_rung == MATMUL_AUTO)) {
        uint64_t now = random_stream;
        random_stream = rung == MATMUL_AUTO ? before : 1 << 30, before = now;
    }
    matmul_rung = rung;
    cuda_rungs_set((CudaRungs){.matmul = rung});
}
static int64_t pad_of(int64_t cols, int64_t pad) { return pad < 0 ? (cols + 7) / 8 * 8 - cols : pad; }
// y[N,M] over K, with strides of pad more than the columns; pad -1: rounded up to 8, so that rows are on 16 bytes.
static void check_matmul(Product p, int64_t N, int64_t M, int64_t K, int64_t pad, Type ty, Type tx, Type tw) {
    bool nt = p.layout == NT, tn = p.layout == TN;
    char what[160];
    snprintf(what, sizeof what, "matmul (%s) %s N %lld M %lld K %lld pad %lld beta %g x %s w %s",
             matmul_rung_names[matmul_rung],
             nt   ? "NT"
             : tn ? "TN"
                  : "NN",
             (long long)N, (long long)M, (long long)K, (long long)pad, p.beta, type_name(tx), type_name(tw));
    check((Case){.what = what,
                 .args = {{p.beta == 0 ? OUT : INOUT, N, M, pad_of(M, pad), ty, NULL, false},
                          {IN, tn ? K : N, tn ? N : K, pad_of(tn ? N : K, pad), tx, NULL, false},
                          {IN, nt ? M : K, nt ? K : M, pad_of(nt ? K : M, pad), tw, NULL, false}},
                 .call = call_matmul,
                 .ctx = &p});
}
TEST(matmul_of_any_layout_type_and_size) {
    static const Layout layouts[] = {NT, NN, TN};
    int turn = 0;
    for (int l = 0; l < 3; l++)
        for (int t = 0; t < 8; t++) // bf16 activations, F32 gradients and masters, adapters of either type: all mixes
            for (int s = 0; s < 4; s++, turn++) {
                Product p = {layouts[l], turn % 3 ? 1 : 0.5f, (turn + turn / 4) % 2 ? 0 : 1.5f};
                check_matmul(p, odd[s], odd[(s + 1 + t) % 4], odd[(s + 2 + l) % 4], turn % 2 * 3, act_types[t % 2],
                             act_types[t / 2 % 2], act_types[t / 4]);
            }
    check_matmul((Product){NT, 1, 0}, 65, 70, 1000, 0, F32, F32, F32); // long sums
}
// Rows on 16 bytes, their lengths whatever: every mix of types on every rung, with tiles for few rows, some and many.
TEST(every_rung_of_matmul_at_odd_sizes) {
    static const int64_t rows[] = {1, 7, 16, 17, 33, 127}, outs[] = {1, 20, 33, 66}, inner[] = {1, 17, 33, 100};
    int turn = 0;
    for (int r = 0; r < 3; r++)
        for (int l = 0; l < 3; l++) {
            choose_matmul(matmul_rungs[r]);
            for (int t = 0; t < 8; t++, turn++) {
                Product p = {(Layout)l, turn % 3 ? 1 : 0.5f, turn % 2 ? 0 : 1.5f};
                check_matmul(p, rows[turn % 6], outs[turn % 4], inner[(turn + l) % 4], -1, act_types[t % 2],
                             act_types[t / 2 % 2], act_types[t / 4]);
            }
            if (matmul_rung == MATMUL_NAIVE) continue;
            for (int t = 0; t < 2; t++) // more than one tile of 128 x 128 in either direction
                check_matmul((Product){(Layout)l, 1, 0}, 130, 140 + 30 * t, 75, -1, act_types[t], BF16, BF16);
            check_matmul((Product){(Layout)l, 1, 0}, 65, 130, 700, -1, F32, r == 1 ? F32 : BF16, F32); // long sums
        }
    choose_matmul(MATMUL_AUTO);
}
static void call_matmul_bias(const Ops *d, const Mat *m, const void *ctx) {
    (void)ctx, matmul_bias(d, m[0], m[1], m[2], m[3]);
}
TEST(matmul_with_a_bias_on_every_rung) {
    int turn = 0;
    for (int r = 0; r < 3; r++)
        for (int t = 0; t < 16; t++, turn++) { // types of y, x, w and the bias
            int64_t N = odd[turn % 4], M = odd[(turn + 1 + t / 4) % 4], K = odd[(turn + 2) % 4];
            choose_matmul(matmul_rungs[r]);
            check((Case){"matmul_bias",
                         {{OUT, N, M, pad_of(M, turn % 5 ? -1 : 1), act_types[t % 2], NULL, false},
                          {IN, N, K, pad_of(K, -1), act_types[t / 2 % 2], NULL, false},
                          {IN, M, K, pad_of(K, -1), act_types[t / 4 % 2], NULL, false},
                          {IN, 1, M, 0, act_types[t / 8], NULL, false}},
                         call_matmul_bias,
                         NULL,
                         0});
        }
    choose_matmul(MATMUL_AUTO);
}
// fp32 on tensor cores keeps 24 bits: numbers of very different sizes, and neighbours that nearly cancel.
TEST(tensor_cores_lose_nothing_of_fp32) {
    enum { N = 20, M = 24, K = 64 };
    float x[N * K], w[M * K];
    for (int i = 0; i < N * K; i++) x[i] = ldexpf(1 + random_value(31, i), i % 2 ? -(i % 40) : i % 40);
    for (int j = 0; j < M; j++)
        for (int k = 0; k < K; k++) w[j * K + k] = (k % 2 ? 1 : 0x1.000002p0f) * (k / 2 % 2 ? 1 : -1) * (float)(1 + j);
    for (int r = 0; r < 3; r++) {
        Product p = {NT, 1, 0};
        choose_matmul(matmul_rungs[r]);
        check((Case){"matmul of numbers far apart",
                     {{OUT, N, M, 0, F32, NULL, false}, {IN, N, K, 0, F32, x, false}, {IN, M, K, 0, F32, w, false}},
                     call_matmul,
                     &p,
                     0});
    }
    choose_matmul(MATMUL_AUTO);
}
// A padded matrix: the logical columns are those of the reference, and what lies behind them is zero before and after.
TEST(padded_matrices_keep_zeros_behind_their_columns) {
    const Ops *d = cuda(), *ref = ops_ref();
    enum { N = 19, M = 20, K = 42 };
    Err e = {0};
    Arena none = {0}, a = {.role = "padded"}, plain = {0};
    for (int t = 0; t < 2; t++)
        for (int r = 0; r < 3; r++) {
            Type T = act_types[t];
            if (cuda_emu_schedule) cuda_emu_schedule(r, 0);
            choose_matmul(matmul_rungs[r]);
            Mat m[3]; // y, x, w
            none.used = plain.used = 0;
            for (int pass = 0; pass < 2; pass++) {
                Arena *at = pass ? &a : &none;
                if (pass) EXPECT(arena_reserve(&a, d, none.used, &e));
                for (int i = 0; i < 3; i++)
                    m[i] = arena_padded(at, d, i < 2 ? N : M, i ? K : M, T), arena_padded(&plain, ref, 3, K, T);
            }
            EXPECT_INT(plain.used, 6 * ((3 * K * (int64_t)type_size(T) + 63) / 64 * 64)); // ref asks for no padding
            for (int i = 0; i < 3; i++)
                EXPECT(m[i].zeros == (i ? 64 - K : 32 - M) && m[i].stride == m[i].cols + m[i].zeros);
            EXPECT(mat_cols(m[1], 2, K - 2).zeros == 64 - K && mat_cols(m[1], 0, K - 1).zeros == 0);
            Arg args[3] = {
                {OUT, N, M, 0, F32, NULL, false}, {IN, N, K, 0, T, NULL, false}, {IN, M, K, 0, T, NULL, false}};
            Mat host[3], back = guarded((Arg){OUT, N, M, 12, T, NULL, false}, T);
            for (int i = 0; i < 3; i++) {
                host[i] = guarded(args[i], args[i].type);
                if (i) fill(host[i], args[i], (uint64_t)(70 + i)), d->upload(m[i], host[i]);
            }
            matmul(ref, host[0], host[1], host[2], NT, 1, 0);
            matmul(d, m[0], m[1], m[2], NT, 1, 0);
            d->download(back, m[0]);
            compare("matmul of padded matrices", 0, back, host[0], T == BF16 ? 3e-3 : 1e-5);
            for (int i = 0; i < 3; i++) {
                Mat row = m[i], tail = m[i];
                row.cols += row.zeros, row.zeros = 0;
                tail = mat_cols(row, m[i].cols, m[i].zeros);
                float *zeros = calloc((size_t)(tail.rows * tail.cols), 4),
                      *got = malloc((size_t)(tail.rows * tail.cols) * 4);
                d->download(mat(got, tail.rows, tail.cols, T), tail);
                EXPECT(!memcmp(got, zeros, (size_t)(tail.rows * tail.cols) * type_size(T)));
                free(zeros), free(got), free(host[i].p);
            }
            free(back.p);
        }
    arena_release(&a, d);
    choose_matmul(MATMUL_AUTO);
}
TEST(matmul_on_tensor_cores_at_odd_sizes) {
    cuda_rungs_set((CudaRungs){.matmul = MATMUL_TENSOR});
    static const int64_t inner[] = {8, 32, 40, 136};
    for (int n = 0; n < 4; n++)
        for (int k = 0; k < 4; k++)
            for (int t = 0; t < 2; t++)
                check_matmul((Product){NT, t ? 1 : -2, t ? 0 : 1}, odd[n], odd[(n + k + 1) % 4], inner[k], 8 * (k % 2),
                             act_types[t], BF16, BF16);
    // Backward: y and w of whole 16-byte rows, inner sizes too in NN, any number of summed rows in TN.
    static const int64_t sizes[] = {8, 24, 72, 136};
    for (int n = 0; n < 4; n++)
        for (int t = 0; t < 2; t++) {
            Product p = {NN, t ? 1 : -2, t ? 0 : 1};
            check_matmul(p, odd[n], sizes[(n + t) % 4], sizes[(n + 2) % 4], 8 * t, act_types[t], BF16, BF16);
            p.layout = TN;
            check_matmul(p, sizes[n], sizes[(n + 1 + t) % 4], odd[(n + t) % 4], 8 * t, act_types[t], BF16, BF16);
        }
    for (int l = NT; l <= TN; l++) check_matmul((Product){(Layout)l, 1, 0}, 136, 200, 1000, 0, F32, BF16, BF16);
    cuda_rungs_set((CudaRungs){.matmul = MATMUL_AUTO});
}
TEST(matmul_of_views_off_the_16_byte_grid) { // tensor cores cannot read these rows: the plain rung must
    const Ops *d = cuda(), *ref = ops_ref();
    for (int shift = 0; shift < 9; shift += 4) {
        Arg a = {IN, 20, 48, 0, BF16, NULL, false}, b = {IN, 20, 20, 0, F32, NULL, false};
        Mat hx = guarded(a, BF16), hw = guarded(a, BF16), want = guarded(b, F32), got = guarded(b, F32), x = hx, w = hw,
            y = got;
        fill(hx, a, 1), fill(hw, a, 2);
        x.p = d->alloc(20 * 48 * 2), w.p = d->alloc(20 * 48 * 2), y.p = d->alloc(20 * 20 * 4);
        d->upload(x, hx), d->upload(w, hw);
        matmul(ref, want, mat_cols(hx, shift, 32), mat_cols(hw, 8 - shift, 32), NT, 1, 0);
        matmul(d, y, mat_cols(x, shift, 32), mat_cols(w, 8 - shift, 32), NT, 1, 0);
        d->download(got, y);
        compare("matmul of shifted views", 0, got, want, 1e-5);
        d->release(x.p), d->release(w.p), d->release(y.p), free(hx.p), free(hw.p), free(want.p), free(got.p);
    }
}
static Mat device_random(int64_t rows, int64_t cols, Type type, uint64_t stream) {
    Arg a = {IN, rows, cols, 0, type, NULL, false};
    Mat host = guarded(a, type), dev = host;
    fill(host, a, stream);
    dev.p = cuda()->alloc((size_t)(rows * cols) * type_size(type));
    cuda()->upload(dev, host);
    free(host.p);
    return dev;
}
static bool same_bits(Mat a, Mat b) { // contiguous device matrices of one shape
    size_t bytes = (size_t)(a.rows * a.cols) * type_size(a.type);
    void *pa = malloc(bytes), *pb = malloc(bytes);
    Mat ha = a, hb = b;
    ha.p = pa, hb.p = pb, ha.stride = hb.stride = a.cols;
    cuda()->download(ha, a), cuda()->download(hb, b);
    bool same = !memcmp(pa, pb, bytes);
    free(pa), free(pb);
    return same;
}
TEST(matmul_with_nothing_to_sum_scales_y) {
    const Ops *d = cuda();
    for (int t = 0; t < 2; t++) {
        if (cuda_emu_schedule) cuda_emu_schedule(0, 0); // a copy that nobody waits for shows when copies are late
        float y[3] = {1, 2, 3};
        Mat m = mat(d->alloc(12), 1, 3, F32), x = mat(d->alloc(4), 1, 0, act_types[t]),
            w = mat(x.p, 3, 0, act_types[t]);
        d->upload(m, mat(y, 1, 3, F32));
        matmul(d, m, x, w, NT, 1, 2);
        d->download(mat(y, 1, 3, F32), m);
        EXPECT(y[0] == 2 && y[1] == 4 && y[2] == 6);
        d->release(m.p), d->release(x.p);
        // the gradient of a weight that no row went through
        Mat dw = device_random(8, 16, F32, 1), before = device_random(8, 16, F32, 1);
        matmul(d, dw, mat(NULL, 0, 8, act_types[t]), mat(NULL, 0, 16, act_types[t]), TN, 1, 1);
        EXPECT(same_bits(dw, before));
        d->release(dw.p), d->release(before.p);
    }
}

// However many rows there are: 1 and 16 (the tile for few), 100 (the middle one), 300 (that for many, of two processors on).
TEST(a_row_of_a_product_has_the_same_bits_among_any_number) {
    const Ops *d = cuda();
    enum { N = 300, M = 140, K = 104 };
    static const int64_t counts[] = {1, 5, 16, 100, 257};
    for (int r = 0; r < 3; r++)
        for (int t = 0; t < 8; t++) {
            choose_matmul(matmul_rungs[r]);
            if (cuda_emu_schedule) cuda_emu_schedule(t % 3, t % 2);
            Type tx = act_types[t % 2], tw = act_types[t / 2 % 2];
            bool nn = t / 4;
            Mat x = device_random(N, K, tx, 1), w = device_random(nn ? K : M, nn ? M : K, tw, 2);
            Mat y = device_random(N, M, t % 3 ? F32 : BF16, 3), z = device_random(N, M, y.type, 4);
            Mat b = device_random(1, M, y.type, 5);
            if (nn) matmul(d, y, x, w, NN, 1, 0);
            else matmul_bias(d, y, x, w, b);
            for (int c = 0; c < COUNT(counts) - (r != 1 || t % 4 != 3);
                 c++) { // the largest again only where tiles differ
                int64_t first = 31 % (N - counts[c]);
                Mat part = mat_rows(z, first, counts[c]);
                if (nn) matmul(d, part, mat_rows(x, first, counts[c]), w, NN, 1, 0);
                else matmul_bias(d, part, mat_rows(x, first, counts[c]), w, b);
                if (!same_bits(mat_rows(y, first, counts[c]), part))
                    FAIL("%s: %lld rows of %s by %s have other bits among %d", matmul_rung_names[matmul_rung],
                         (long long)counts[c], type_name(tx), type_name(tw), N);
            }
            d->release(x.p), d->release(w.p), d->release(y.p), d->release(z.p), d->release(b.p);
        }
    choose_matmul(MATMUL_AUTO);
}
// The same in a size of the 7B model, which takes the emulator too long: qkv of 3000 tokens. Nothing but a GPU can
// tell whether the library's algorithm sums in one order for any number of rows.
TEST(a_row_of_a_large_product_has_the_same_bits_among_any_number) {
    if (cuda_emu_schedule) SKIP("too large for the emulator");
    const Ops *d = cuda();
    enum { N = 3000, M = 4608, K = 3584 };
    static const int64_t counts[] = {1, 2, 8, 17, 64, 130, 500, 2049};
    for (int r = 1; r < 3; r++)
        for (int nn = 0; nn < 2; nn++) {
            choose_matmul(matmul_rungs[r]);
            Mat x = device_random(N, nn ? M : K, BF16, 1), w = device_random(M, K, BF16, 2);
            Mat y = device_random(N, nn ? K : M, BF16, 3), z = device_random(N, nn ? K : M, BF16, 4);
            matmul(d, y, x, w, nn ? NN : NT, 1, 0);
            for (int c = 0; c < COUNT(counts); c++) {
                Mat part = mat_rows(z, 3, counts[c]);
                matmul(d, part, mat_rows(x, 3, counts[c]), w, nn ? NN : NT, 1, 0);
                if (!same_bits(mat_rows(y, 3, counts[c]), part))
                    FAIL("%s %s: %lld rows have other bits among %d", matmul_rung_names[matmul_rung], nn ? "NN" : "NT",
                         (long long)counts[c], N);
            }
            d->release(x.p), d->release(w.p), d->release(y.p), d->release(z.p);
        }
    choose_matmul(MATMUL_AUTO);
}
TEST(a_row_alone_and_in_a_batch_has_the_same_bits) {
    const Ops *d = cuda();
    for (int t = 0; t < 2; t++) {
        Type type = act_types[t];
        Mat x = device_random(70, 96, type, 1), w = device_random(65, 96, type, 2), y = device_random(70, 65, F32, 3),
            z = device_random(70, 65, F32, 4);
        matmul(d, y, x, w, NT, 1, 0);
        for (int64_t i = 0; i < 70; i += 23) {
            matmul(d, mat_rows(z, i, 1), mat_rows(x, i, 1), w, NT, 1, 0);
            EXPECT(same_bits(mat_rows(y, i, 1), mat_rows(z, i, 1)));
        }
        Mat dx = device_random(70, 96, F32, 11), dz = device_random(70, 96, F32, 12),
            dy = device_random(70, 72, type, 13), wide = device_random(72, 96, type, 14);
        matmul(d, dx, dy, wide, NN, 1, 0);
        matmul(d, mat_rows(dz, 46, 1), mat_rows(dy, 46, 1), wide, NN, 1, 0);
        EXPECT(same_bits(mat_rows(dx, 46, 1), mat_rows(dz, 46, 1)));
        // attention: 45 rows as one sequence between others, and by themselves; 2 heads of 32, 1 key head
        Mat q = device_random(70, 64, type, 5), k = device_random(70, 32, type, 6), v = device_random(70, 32, type, 7);
        Mat o = device_random(70, 64, type, 8), alone = device_random(45, 64, type, 9);
        Span batch[3] = {{0, 13, 0, 0, 1}, {13, 58, 0, 0, 1}, {58, 70, 0, 13, 1}}, one = {0, 45, 0, 0, 1};
        Mat rows = mat(d->alloc(sizeof batch), 3, 5, I32), row = mat(d->alloc(sizeof one), 1, 5, I32);
        d->upload(rows, mat(batch, 3, 5, I32)), d->upload(row, mat(&one, 1, 5, I32));
        attention_forward(d, o, mat_none(), q, k, v, (Spans){rows, batch, 3, 45}, 2, 1, 32, 0.2f);
        attention_forward(d, alone, mat_none(), mat_rows(q, 13, 45), mat_rows(k, 13, 45), mat_rows(v, 13, 45),
                          (Spans){row, &one, 1, 45}, 2, 1, 32, 0.2f);
        EXPECT(same_bits(mat_rows(o, 13, 45), alone));
        // decode: three rows at once, and the second by itself
        Span caches[3] = {{0, 70, 0, 0, 0}, {40, 60, 0, 30, 0}, {3, 5, 0, 0, 0}};
        d->upload(rows, mat(caches, 3, 5, I32)), d->upload(row, mat(&caches[1], 1, 5, I32));
        attention_decode(d, mat_rows(o, 0, 3), mat_rows(q, 0, 3), k, v, (Spans){rows, caches, 3, 70}, 2, 1, 32, 0.2f);
        attention_decode(d, mat_rows(alone, 0, 1), mat_rows(q, 1, 1), k, v, (Spans){row, &caches[1], 1, 20}, 2, 1, 32,
                         0.2f);
        EXPECT(same_bits(mat_rows(o, 1, 1), mat_rows(alone, 0, 1)));
        Mat all[] = {x, w, y, z, dx, dz, dy, wide, q, k, v, o, alone, rows, row};
        for (int i = 0; i < COUNT(all); i++) d->release(all[i].p);
    }
}

static void call_add_bias(const Ops *d, const Mat *m, const void *ctx) { (void)ctx, add_bias(d, m[0], m[1]); }
static void call_add(const Ops *d, const Mat *m, const void *ctx) { (void)ctx, add(d, m[0], m[1], m[2]); }
static void call_add_onto(const Ops *d, const Mat *m, const void *ctx) { (void)ctx, add(d, m[0], m[0], m[1]); }
static void call_cast(const Ops *d, const Mat *m, const void *ctx) { (void)ctx, cast(d, m[0], m[1]); }
static void call_copy(const Ops *d, const Mat *m, const void *ctx) { (void)ctx, copy(d, m[0], m[1]); }
static void call_swiglu(const Ops *d, const Mat *m, const void *ctx) { (void)ctx, swiglu_forward(d, m[0], m[1], m[2]); }
static void call_swiglu_backward(const Ops *d, const Mat *m, const void *ctx) {
    (void)ctx, swiglu_backward(d, m[0], m[1], m[2], m[3], m[4]);
}
static void call_gelu(const Ops *d, const Mat *m, const void *ctx) { (void)ctx, gelu_forward(d, m[0], m[1]); }
static void call_gelu_backward(const Ops *d, const Mat *m, const void *ctx) {
    (void)ctx, gelu_backward(d, m[0], m[1], m[2]);
}
static void call_bias_backward(const Ops *d, const Mat *m, const void *ctx) { (void)ctx, bias_backward(d, m[0], m[1]); }

TEST(elementwise_ops_of_both_types) {
    for (int t = 0; t < 2; t++)
        for (int s = 0; s < 5; s++) {
            Type T = act_types[t];
            int64_t N = s < 4 ? odd[3 - s] : 3, C = s < 4 ? odd[s] : 600, pad = s;
            Arg out = {OUT, N, C, pad, T, NULL, false}, inout = {INOUT, N, C, pad, T, NULL, false},
                in = {IN, N, C, 2 * pad, T, NULL, false};
            Arg bias = {IN, 1, C, 0, s % 2 ? T : F32, NULL, false},
                other = {IN, N, C, 1, act_types[1 - t], NULL, false};
            check((Case){"add_bias", {inout, bias}, call_add_bias, NULL, 0});
            check((Case){"add", {out, in, other}, call_add, NULL, 0});
            check((Case){"add onto itself", {inout, in}, call_add_onto, NULL, 0});
            check((Case){"cast", {out, other}, call_cast, NULL, 0});
            check((Case){"copy", {out, in}, call_copy, NULL, 0});
            check((Case){"swiglu", {out, in, in}, call_swiglu, NULL, 0});
            check((Case){"gelu", {out, in}, call_gelu, NULL, 0});
            check((Case){"swiglu_backward", {out, out, in, other, in}, call_swiglu_backward, NULL, 0});
            check((Case){"gelu_backward", {out, other, in}, call_gelu_backward, NULL, 0});
        }
}
TEST(activations_are_right_far_from_zero) {
    float far[] = {-100, -20, -9, -6, -5, -4, -3, -1e-3f, 0, 1e-3f, 3, 5, 9, 20, 100, 1e4f};
    Arg out = {OUT, 1, 1, 0, F32, NULL, false}, in = {IN, 1, 1, 0, F32, NULL, false}, up = in;
    for (int i = 0; i < COUNT(far);
         i++) { // one by one: each relative to itself, while the reference can tell 1 + erf from 0
        in.values = &far[i];
        if (far[i] > -7) check((Case){"gelu far from zero", {out, in}, call_gelu, NULL, 0});
        if (far[i] > -80) check((Case){"swiglu far from zero", {out, in, up}, call_swiglu, NULL, 0});
        Arg dy = {IN, 1, 1, 0, F32, NULL, false};
        if (far[i] > -6) check((Case){"gelu_backward far from zero", {out, dy, in}, call_gelu_backward, NULL, 0});
        if (far[i] > -80)
            check((Case){"swiglu_backward far from zero", {out, out, dy, in, dy}, call_swiglu_backward, NULL, 0});
    }
}

TEST(a_bias_gathers_the_columns_of_its_gradient) {
    static const int64_t rows[] = {1, 15, 16, 17, 200};
    for (int t = 0; t < 2; t++)
        for (int r = 0; r < COUNT(rows); r++)
            for (int s = 0; s < 4; s++)
                check((Case){
                    "bias_backward",
                    {{INOUT, 1, odd[s], r, F32, NULL, false}, {IN, rows[r], odd[s], s, act_types[t], NULL, false}},
                    call_bias_backward,
                    NULL,
                    0});
}

typedef struct Drop {
    float p;
    uint64_t seed;
    uint32_t site;
} Drop;
static void call_dropout(const Ops *d, const Mat *m, const void *ctx) {
    const Drop *c = ctx;
    dropout(d, m[0], m[1], m[2], c->p, c->seed, c->site);
}
static void call_dropout_onto(const Ops *d, const Mat *m, const void *ctx) {
    const Drop *c = ctx;
    dropout(d, m[0], m[0], m[1], c->p, c->seed, c->site);
}
TEST(dropout_drops_the_elements_of_the_reference) {
    static const Drop drops[] = {
        {0, 1, 0}, {0.1f, UINT64_MAX, 3}, {0.5f, 1 << 20, 0xffffff}, {0.999f, 7, 1}, {1e-9f, 9, 2}};
    static const int64_t cols[] = {1, 3, 4, 129, 1100};
    int32_t keys[7 * 2];
    for (int i = 0; i < COUNT(keys); i++) keys[i] = i % 5 ? i * 7919 : -i;
    for (int t = 0; t < 2; t++)
        for (int p = 0; p < COUNT(drops); p++)
            for (int s = 0; s < COUNT(cols); s++) {
                Arg out = {OUT, 7, cols[s], p, act_types[t], NULL, false}, in = out,
                    at = {IN, 7, 2, s % 2, I32, keys, false};
                in.role = IN, in.pad = s;
                check((Case){"dropout", {out, in, at}, call_dropout, &drops[p], 0});
                in.role = INOUT;
                check((Case){"dropout in place", {in, at}, call_dropout_onto, &drops[p], 0});
            }
}

// ---------------------------------------------------------------------------------------------------------------- norm

static void call_rmsnorm(const Ops *d, const Mat *m, const void *ctx) {
    rmsnorm_forward(d, m[0], m[1], m[2], m[3], *(const float *)ctx);
}
static void call_add_rmsnorm(const Ops *d, const Mat *m, const void *ctx) {
    add_rmsnorm_forward(d, m[0], m[1], m[2], m[3], m[4], m[5], *(const float *)ctx);
}
static void call_add_rmsnorm_onto(const Ops *d, const Mat *m, const void *ctx) { // sum is x
    add_rmsnorm_forward(d, m[0], m[1], m[2], m[2], m[3], m[4], *(const float *)ctx);
}
TEST(rmsnorm_alone_and_behind_an_addition) {
    static const float eps = 1e-6f;
    for (int t = 0; t < 2; t++)
        for (int s = 0; s < 5; s++) {
            Type T = act_types[t];
            int64_t N = s < 4 ? odd[3 - s] : 2, C = s < 4 ? odd[s] : 1000;
            Arg y = {OUT, N, C, s, T, NULL, false}, x = {IN, N, C, 3, T, NULL, false},
                w = {IN, 1, C, 0, s % 2 ? BF16 : F32, NULL, false};
            Arg rstd = {OUT, N, 1, s % 2, F32, NULL, s == 2}, sum = {INOUT, N, C, 1, T, NULL, false},
                sum_out = {OUT, N, C, 0, T, NULL, false};
            check((Case){"rmsnorm", {y, rstd, x, w}, call_rmsnorm, &eps, 0});
            // rstd of a bf16 sum is of the rounded sum, the reference's of the unrounded one
            if (T == BF16) rstd.absent = true;
            check((Case){"add_rmsnorm", {y, rstd, sum_out, x, x, w}, call_add_rmsnorm, &eps, 0});
            check((Case){"add_rmsnorm onto x", {y, rstd, sum, x, w}, call_add_rmsnorm_onto, &eps, 0});
        }
}

static void call_rmsnorm_backward(const Ops *d, const Mat *m, const void *ctx) {
    (void)ctx, rmsnorm_backward_add(d, m[0], m[1], m[2], m[3], m[4], m[5]);
}
TEST(rmsnorm_backward_adds_to_both_gradients) {
    for (int t = 0; t < 2; t++)
        for (int s = 0; s < 6; s++) {
            Type T = act_types[t];
            int64_t N = s < 4 ? odd[3 - s] : s == 4 ? 2 : 100, C = s < 4 ? odd[s] : s == 4 ? 1000 : 40;
            Arg dx = {INOUT, N, C, s, T, NULL, false}, dw = {INOUT, 1, C, s, F32, NULL, s == 2},
                dy = {IN, N, C, 1, T, NULL, false}, x = {IN, N, C, 3, act_types[(t + s) % 2], NULL, false},
                w = {IN, 1, C, 0, s % 2 ? BF16 : F32, NULL, false}, rstd = {IN, N, 1, s % 3, F32, NULL, false};
            check((Case){"rmsnorm_backward_add", {dx, dw, dy, x, w, rstd}, call_rmsnorm_backward, NULL, 0});
        }
}

// ------------------------------------------------------------------------------------------------------------ position

typedef struct Heads {
    int64_t heads, kv_heads, dim;
    float scale; // or the sign, for rope
    const Span *spans;
    int64_t n_spans;
} Heads;
static void call_rope(const Ops *d, const Mat *m, const void *ctx) {
    const Heads *h = ctx;
    rope(d, m[0], m[1], h->heads, h->dim, h->scale);
}
TEST(rope_in_place_both_ways) {
    static const int64_t shapes[][3] = {{1, 1, 2}, {31, 3, 16}, {33, 16, 80}, {7, 28, 128}}; // rows, heads, dim
    for (int t = 0; t < 2; t++)
        for (int s = 0; s < 4; s++) {
            Heads h = {shapes[s][1], 0, shapes[s][2], s % 2 ? -1 : 1, NULL, 0};
            int64_t N = shapes[s][0];
            float *angles = malloc((size_t)(N * h.dim) * 4);
            for (int64_t i = 0; i < N * h.dim; i++) {
                double a = 0.37 * (double)(i / h.dim) * pow(10, -(double)(i % (h.dim / 2)) / (double)h.dim);
                angles[i] = (float)(i % h.dim < h.dim / 2 ? cos(a) : sin(a));
            }
            check((Case){
                "rope",
                {{INOUT, N, h.heads * h.dim, s * 5, act_types[t], NULL, false}, {IN, N, h.dim, s, F32, angles, false}},
                call_rope,
                &h,
                0});
            free(angles);
        }
}

// ----------------------------------------------------------------------------------------------------------- attention

static Spans spans_on(const Ops *d, const Heads *h) {
    Spans s = {mat(d->alloc((size_t)h->n_spans * sizeof(Span) + 1), h->n_spans, 5, I32), h->spans, h->n_spans, 0};
    d->upload(s.rows, mat((void *)(uintptr_t)h->spans, h->n_spans, 5, I32));
    for (int64_t i = 0; i < s.n; i++)
        if (s.host[i].last - s.host[i].first > s.longest) s.longest = s.host[i].last - s.host[i].first;
    return s;
}
static void call_attention(const Ops *d, const Mat *m, const void *ctx) {
    const Heads *h = ctx;
    Spans s = spans_on(d, h);
    attention_forward(d, m[0], m[1], m[2], m[3], m[4], s, h->heads, h->kv_heads, h->dim, h->scale);
    d->sync(), d->release(s.rows.p);
}
static void call_decode(const Ops *d, const Mat *m, const void *ctx) {
    const Heads *h = ctx;
    Spans s = spans_on(d, h);
    attention_decode(d, m[0], m[1], m[2], m[3], s, h->heads, h->kv_heads, h->dim, h->scale);
    d->sync(), d->release(s.rows.p);
}
// Outputs start with values, so that rows in no span must keep them.
static void check_attention(const char *what, Type T, int64_t queries, int64_t keys, Heads h, int64_t pad, bool lse) {
    if (lse)
        check((Case){what,
                     {{INOUT, queries, h.heads * h.dim, pad, T, NULL, false},
                      {INOUT, queries, h.heads, pad, F32, NULL, false},
                      {IN, queries, h.heads * h.dim, 2 * pad, T, NULL, false},
                      {IN, keys, h.kv_heads * h.dim, pad, T, NULL, false},
                      {IN, keys, h.kv_heads * h.dim, 3 * pad, T, NULL, false}},
                     call_attention,
                     &h,
                     0});
    else
        check((Case){what,
                     {{INOUT, queries, h.heads * h.dim, pad, T, NULL, false},
                      {.absent = true},
                      {IN, queries, h.heads * h.dim, 2 * pad, T, NULL, false},
                      {IN, keys, h.kv_heads * h.dim, pad, T, NULL, false},
                      {IN, keys, h.kv_heads * h.dim, 3 * pad, T, NULL, false}},
                     call_attention,
                     &h,
                     0});
}
#define HEADS(h, kv, dim, list) ((Heads){h, kv, dim, 2.0f / sqrtf(dim), list, COUNT(list)})
TEST(attention_over_all_kinds_of_spans) {
    static const Span one[] = {{0, 1, 0, 0, 1}}, causal[] = {{0, 127, 0, 0, 1}}, full[] = {{0, 33, 0, 0, 0}};
    static const Span packed[] = {
        {0, 31, 0, 0, 1}, {33, 64, 0, 0, 1}, {64, 65, 0, 0, 1}, {65, 96, 0, 0, 0}}; // rows 31, 32: in none
    static const Span windows[] = {
        {0, 4, 0, 0, 0}, {4, 20, 0, 0, 0}, {20, 22, 0, 0, 0}, {22, 38, 0, 0, 0}, {38, 39, 0, 0, 0}};
    static const Span group[] = {
        {0, 37, 0, 0, 1}, {37, 60, 0, 37, 1}, {60, 61, 0, 37, 1}, {61, 100, 0, 37, 1}, {100, 110, 5, 70, 0}};
    static const Span beyond[] = {{0, 9, 40, 200, 1},
                                  {9, 9, 0, 0, 1}}; // the prefix lies behind the queries; an empty span
    static const Span hundreds[] = {{0, 300, 0, 0, 1}};
    for (int t = 0; t < 2; t++) {
        Type T = act_types[t];
        check_attention("attention of one row", T, 1, 1, HEADS(2, 1, 16, one), 0, true);
        check_attention("causal attention", T, 127, 127, HEADS(4, 2, 16, causal), 1, true);
        check_attention("whole attention, dim 80", T, 33, 33, HEADS(3, 3, 80, full), 0, false);
        check_attention("packed attention, dim 7", T, 97, 97, HEADS(6, 2, 7, packed), 2, true);
        check_attention("window attention", T, 39, 39, HEADS(2, 2, 20, windows), 0, true);
        check_attention("attention of a group that shares a prefix", T, 110, 110, HEADS(4, 1, 24, group), 3, true);
        check_attention("attention to a prefix elsewhere, dim 128", T, 9, 200, HEADS(2, 1, 128, beyond), 0, true);
        check_attention("attention, dim 1", T, 33, 33, HEADS(1, 1, 1, full), 0, true);
        check_attention("attention, dim 512", T, 33, 33, HEADS(1, 1, 512, full), 0, true);
        check_attention("attention over 300 rows", T, 300, 300, HEADS(1, 1, 32, hundreds), 0, true);
    }
}
TEST(a_hidden_key_is_never_touched) { // NaN in a row must not reach the rows that do not see it
    const Ops *d = cuda();
    static const Span causal[] = {{0, 40, 0, 0, 1}};
    Heads h = HEADS(1, 1, 8, causal);
    Mat o = device_random(40, 8, F32, 1), q = device_random(40, 8, F32, 2), k = device_random(40, 8, F32, 3),
        v = device_random(40, 8, F32, 4);
    float host[40 * 8], nan_row[8];
    for (int i = 0; i < 8; i++) nan_row[i] = NAN;
    d->upload(mat_rows(k, 37, 1), mat(nan_row, 1, 8, F32)), d->upload(mat_rows(v, 37, 1), mat(nan_row, 1, 8, F32));
    call_attention(d, (Mat[]){o, mat_none(), q, k, v}, &h);
    d->download(mat(host, 40, 8, F32), o);
    for (int i = 0; i < 40 * 8; i++) EXPECT(isfinite(host[i]) == (i < 37 * 8));
    d->release(o.p), d->release(q.p), d->release(k.p), d->release(v.p);
}

static void call_attention_backward(const Ops *d, const Mat *m, const void *ctx) {
    const Heads *h = ctx;
    Spans s = spans_on(d, h);
    attention_backward(d, m[0], m[1], m[2], m[3], m[4], m[5], m[6], m[7], m[8], m[9], s, h->heads, h->kv_heads, h->dim,
                       h->scale);
    d->sync(), d->release(s.rows.p);
}
// Random rows; those of queries in no span, and what such rows of o and lse hold, are NaN: nothing may read them.
static float *random_rows(int64_t rows, int64_t cols, Type T, const Heads *in_spans) {
    float *p = malloc((size_t)(rows * cols) * 4 + 4);
    uint64_t stream = random_stream += 1;
    for (int64_t i = 0; i < rows; i++) {
        bool used = !in_spans;
        for (int64_t n = 0; in_spans && n < in_spans->n_spans; n++)
            used |= i >= in_spans->spans[n].first && i < in_spans->spans[n].last;
        for (int64_t j = 0; j < cols; j++) {
            float r = random_value(stream, i * cols + j);
            p[i * cols + j] = !used ? NAN : T == BF16 ? bf16_to_f32(f32_to_bf16(r)) : r;
        }
    }
    return p;
}
static void check_attention_backward(const char *what, Type T, int64_t queries, int64_t keys, Heads h, int64_t pad,
                                     double limit_scale) {
    int64_t C = h.heads * h.dim, Ckv = h.kv_heads * h.dim;
    float *q = random_rows(queries, C, T, &h), *dout = random_rows(queries, C, T, &h),
          *o = random_rows(queries, C, T, &h), *lse = random_rows(queries, h.heads, F32, &h),
          *k = random_rows(keys, Ckv, T, NULL), *v = random_rows(keys, Ckv, T, NULL);
    call_attention(ops_ref(),
                   (Mat[]){mat(o, queries, C, F32), mat(lse, queries, h.heads, F32), mat(q, queries, C, F32),
                           mat(k, keys, Ckv, F32), mat(v, keys, Ckv, F32)},
                   &h);
    for (int64_t i = 0; T == BF16 && i < queries * C; i++) o[i] = bf16_to_f32(f32_to_bf16(o[i]));
    check((Case){what,
                 {{OUT, queries, C, pad, T, NULL, false},
                  {OUT, keys, Ckv, 2 * pad, T, NULL, false},
                  {OUT, keys, Ckv, pad, T, NULL, false},
                  {OUT, queries, h.heads, pad, F32, NULL, false},
                  {IN, queries, C, pad, T, dout, false},
                  {IN, queries, C, 2 * pad, T, q, false},
                  {IN, keys, Ckv, pad, T, k, false},
                  {IN, keys, Ckv, 3 * pad, T, v, false},
                  {IN, queries, C, 0, T, o, false},
                  {IN, queries, h.heads, pad, F32, lse, false}},
                 call_attention_backward,
                 &h,
                 limit_scale});
    free(q), free(dout), free(o), free(lse), free(k), free(v);
}
TEST(attention_backward_over_all_kinds_of_spans) {
    static const Span two[] = {{0, 2, 0, 0, 0}}, causal[] = {{0, 61, 0, 0, 1}}, full[] = {{0, 33, 0, 0, 0}};
    static const Span packed[] = {
        {0, 15, 0, 0, 1}, {17, 33, 0, 0, 1}, {33, 34, 0, 0, 1}, {34, 51, 0, 0, 0}}; // rows 15, 16: in none
    static const Span group[] = {
        {0, 19, 0, 0, 1}, {19, 40, 0, 19, 1}, {40, 41, 0, 19, 1}, {41, 60, 0, 19, 1}, {60, 70, 5, 40, 0}};
    static const Span beyond[] = {{0, 9, 20, 47, 1}, {9, 9, 0, 0, 1}}; // keys behind the queries; an empty span
    Span windows[70]; // more than a warp can look at in one go: 70 windows of 2, all with the prefix [0, 3)
    for (int i = 0; i < 70; i++) windows[i] = (Span){3 + 2 * i, 5 + 2 * i, 0, 3, i % 2};
    cuda_rungs_set((CudaRungs){.naive = true}); // the other one: below
    for (int t = 0; t < 2; t++) {
        Type T = act_types[t];
        check_attention_backward("backward of two rows", T, 2, 2, HEADS(2, 1, 16, two), 0, 0);
        check_attention_backward("backward of causal attention", T, 61, 61, HEADS(4, 2, 16, causal), 1, 0);
        check_attention_backward("backward of whole attention, dim 80", T, 33, 33, HEADS(3, 3, 80, full), 0, 0);
        check_attention_backward("backward of packed attention, dim 7", T, 53, 53, HEADS(6, 2, 7, packed), 2, 0);
        check_attention_backward("backward of a group that shares a prefix", T, 70, 70, HEADS(4, 1, 24, group), 3, 0);
        check_attention_backward("backward to a prefix elsewhere, dim 128", T, 9, 50, HEADS(2, 1, 128, beyond), 0, 0);
        check_attention_backward("backward of many windows", T, 143, 143, HEADS(1, 1, 4, windows), 0, 0);
        check_attention_backward("backward, dim 1", T, 33, 33, HEADS(1, 1, 1, full), 0, 0);
        check_attention_backward("backward, dim 512", T, 33, 33, HEADS(1, 1, 512, full), 0, 0);
    }
    cuda_rungs_set((CudaRungs){0});
}
TEST(attention_backward_of_a_hidden_row_is_never_touched) {
    const Ops *d = cuda();
    enum { N = 40, C = 8, AT = 21 };
    static const Span causal[] = {{0, N, 0, 0, 1}};
    Heads h = HEADS(1, 1, C, causal);
    for (int query = 0; query < 2;
         query++) { // NaN in query row AT: keys behind it do not show; in key row AT: queries before
        Mat m[10];  // dq, dk, dv, delta, dout, q, k, v, o, lse
        for (int i = 0; i < 10; i++) m[i] = device_random(N, i == 3 || i == 9 ? 1 : C, F32, (uint64_t)i);
        call_attention(d, (Mat[]){m[8], m[9], m[5], m[6], m[7]}, &h);
        float nan_row[C], dq[N * C], dk[N * C], dv[N * C];
        for (int i = 0; i < C; i++) nan_row[i] = NAN;
        for (int i = 0; i < 2; i++) d->upload(mat_rows(m[query ? 4 + i : 6 + i], AT, 1), mat(nan_row, 1, C, F32));
        call_attention_backward(d, m, &h);
        d->download(mat(dq, N, C, F32), m[0]), d->download(mat(dk, N, C, F32), m[1]);
        d->download(mat(dv, N, C, F32), m[2]);
        for (int i = 0; i < N; i++)
            for (int c = 0; c < C; c++) {
                EXPECT_INT(isfinite(dq[i * C + c]) != 0, query ? i != AT : i < AT);
                EXPECT_INT(isfinite(dk[i * C + c]) != 0, query ? i > AT : i != AT);
                EXPECT_INT(isfinite(dv[i * C + c]) != 0, query ? i > AT : i != AT);
            }
        for (int i = 0; i < 10; i++) d->release(m[i].p);
    }
}
TEST(attention_backward_of_nothing_is_zero) {
    const Ops *d = cuda();
    static const Span empty[] = {{2, 2, 0, 0, 1}};
    for (int early = 0; early < 2; early++)
        for (int queries = 0; queries < 6; queries += 5) // and without a span, or with an empty one
            for (int spans = 0; spans < (queries ? 2 : 1); spans++) {
                if (cuda_emu_schedule) cuda_emu_schedule(1, early);
                Heads h = {2, 1, 4, 1, empty, spans};
                Mat m[10];
                for (int i = 0; i < 10; i++) {
                    bool of_keys = i == 1 || i == 2 || i == 6 || i == 7;
                    m[i] = device_random(6, of_keys ? 4 : i == 3 || i == 9 ? 2 : 8, F32, (uint64_t)i);
                    if (!of_keys) m[i].rows = queries;
                }
                call_attention_backward(d, m, &h);
                for (int i = 0; i < 4; i++) {
                    float host[48];
                    d->download(mat(host, m[i].rows, m[i].cols, F32), m[i]);
                    for (int64_t e = 0; e < m[i].rows * m[i].cols; e++) EXPECT(host[e] == 0);
                }
                for (int i = 0; i < 10; i++) d->release(m[i].p);
            }
}
TEST(gradients_of_a_sequence_alone_and_in_a_batch_have_the_same_bits) {
    const Ops *d = cuda();
    static const Span batch[] = {{0, 13, 0, 0, 1}, {13, 58, 0, 0, 1}, {58, 70, 0, 13, 1}}, one[] = {{0, 45, 0, 0, 1}};
    for (int t = 0; t < 2; t++) {
        Type type = act_types[t];
        Heads all = HEADS(4, 2, 24, batch), alone = HEADS(4, 2, 24, one);
        Mat m[10], part[10]; // dq, dk, dv, delta, dout, q, k, v, o, lse
        for (int i = 0; i < 10; i++) {
            int64_t cols = i == 1 || i == 2 || i == 6 || i == 7 ? 48 : i == 3 || i == 9 ? 4 : 96;
            m[i] = device_random(70, cols, i == 3 || i == 9 ? F32 : type, (uint64_t)i);
            part[i] = i < 4 ? device_random(45, cols, m[i].type, 20) : mat_rows(m[i], 13, 45);
        }
        call_attention(d, (Mat[]){m[8], m[9], m[5], m[6], m[7]}, &all);
        call_attention_backward(d, m, &all), call_attention_backward(d, part, &alone);
        for (int i = 0; i < 4; i++) EXPECT(same_bits(mat_rows(m[i], 13, 45), part[i]));
        // rmsnorm: the gradient of one row
        Mat dx = device_random(70, 96, type, 30), one_dx = device_random(70, 96, type, 30),
            rstd = device_random(70, 1, F32, 31), w = device_random(1, 96, F32, 32);
        rmsnorm_backward_add(d, dx, mat_none(), m[4], m[5], w, rstd);
        rmsnorm_backward_add(d, mat_rows(one_dx, 33, 1), mat_none(), mat_rows(m[4], 33, 1), mat_rows(m[5], 33, 1), w,
                             mat_rows(rstd, 33, 1));
        EXPECT(same_bits(mat_rows(dx, 33, 1), mat_rows(one_dx, 33, 1)));
        EXPECT(!same_bits(mat_rows(dx, 34, 1), mat_rows(one_dx, 34, 1)));
        for (int i = 0; i < 10; i++) d->release(m[i].p);
        for (int i = 0; i < 4; i++) d->release(part[i].p);
        d->release(dx.p), d->release(one_dx.p), d->release(rstd.p), d->release(w.p);
    }
}
TEST(a_decoded_row_without_keys_is_zero) {
    const Ops *d = cuda();
    static const Span none[] = {{0, 0, 0, 0, 0}, {0, 0, 3, 5, 0}};
    Heads h = HEADS(1, 1, 4, none);
    for (int early = 0; early < 2; early++) {
        if (cuda_emu_schedule) cuda_emu_schedule(2, early);
        Mat o = device_random(2, 4, F32, 1), q = device_random(2, 4, F32, 2), k = device_random(6, 4, F32, 3);
        Mat m[] = {o, q, k, k};
        call_decode(d, m, &h);
        float host[8];
        d->download(mat(host, 2, 4, F32), o);
        EXPECT(host[0] == 0 && host[1] == 0 && host[2] == 0 && host[3] == 0 && host[4] != 0);
        d->release(o.p), d->release(q.p), d->release(k.p);
    }
}
TEST(dropping_a_span_is_noticed) { // control of the comparisons above
    static const Span all[] = {{0, 20, 0, 0, 1}, {20, 40, 0, 10, 1}}, less[] = {{0, 20, 0, 0, 1}, {20, 40, 0, 9, 1}};
    Heads ha = HEADS(2, 1, 16, all), hl = HEADS(2, 1, 16, less);
    const Ops *d = ops_ref();
    Arg a = {IN, 40, 32, 0, F32, NULL, false}, b = {IN, 40, 16, 0, F32, NULL, false};
    Mat q = guarded(a, F32), k = guarded(b, F32), v = guarded(b, F32), o1 = guarded(a, F32), o2 = guarded(a, F32);
    fill(q, a, 1), fill(k, b, 2), fill(v, b, 3);
    call_attention(d, (Mat[]){o1, mat_none(), q, k, v}, &ha);
    call_attention(d, (Mat[]){o2, mat_none(), q, k, v}, &hl); // one key of the prefix less
    EXPECT(!error_within(tensor_error(o2.p, o1.p, 40 * 32), 3e-3));
    hl = ha, hl.n_spans = 1;
    memset(o2.p, 0, 40 * 32 * 4);
    call_attention(d, (Mat[]){o2, mat_none(), q, k, v}, &hl);
    EXPECT(!error_within(tensor_error(o2.p, o1.p, 40 * 32), 3e-3));
    free(q.p), free(k.p), free(v.p), free(o1.p), free(o2.p);
}
TEST(decode_over_caches_with_and_without_prefix) {
    static const Span spans[] = {
        {0, 1, 0, 0, 0}, {500, 533, 0, 300, 0}, {600, 600, 7, 8, 1}, {10, 520, 0, 0, 1}, {300, 556, 0, 0, 0}};
    static const int64_t shapes[][3] = {{1, 1, 1},   {4, 2, 16}, {18, 2, 33},
                                        {7, 1, 128}, {8, 8, 80}, {9, 1, 512}}; // heads, kv heads, dim
    for (int t = 0; t < 2; t++)
        for (int s = 0; s < COUNT(shapes); s++) {
            Heads h = {shapes[s][0], shapes[s][1], shapes[s][2], 2.0f / sqrtf((float)shapes[s][2]), spans, 5};
            char what[100];
            snprintf(what, sizeof what, "attention_decode %lld/%lld heads of %lld", (long long)h.heads,
                     (long long)h.kv_heads, (long long)h.dim);
            check((Case){what,
                         {{OUT, 5, h.heads * h.dim, s % 2, act_types[t], NULL, false},
                          {IN, 5, h.heads * h.dim, s, act_types[t], NULL, false},
                          {IN, 601, h.kv_heads * h.dim, s % 3, act_types[t], NULL, false},
                          {IN, 601, h.kv_heads * h.dim, 0, act_types[t], NULL, false}},
                         call_decode,
                         &h,
                         0});
        }
}

// Both rungs of attention, on rows that tensor cores can take. Their o is two roundings to bf16 away from the reference, of
// the probabilities and of o, each of at most 2^-9 and 2^-9 / sqrt(3) in the mean square: for values of random sign
// 2^-9 sqrt(2 / 3) = 1.6e-3 together, so the limit of one rounding, 3e-3, still holds. lse has none: 1e-5.
static void check_on_both_rungs(const char *what, int64_t queries, int64_t keys, Heads h, int64_t pad) {
    for (int naive = 0; naive < 2; naive++) {
        cuda_rungs_set((CudaRungs){.naive = naive});
        check_attention(what, BF16, queries, keys, h, pad, true);
    }
    cuda_rungs_set((CudaRungs){0});
}
TEST(attention_on_tensor_cores_over_all_kinds_of_spans) {
    static const Span one[] = {{3, 4, 0, 0, 1}}, causal[] = {{0, 193, 0, 0, 1}}, full[] = {{0, 129, 0, 0, 0}};
    static const Span packed[] = {{0, 31, 0, 0, 1}, {33, 98, 0, 0, 1}, {98, 99, 0, 0, 1}, {99, 120, 0, 0, 0}};
    static const Span windows[] = {
        {0, 64, 0, 0, 0}, {64, 128, 0, 0, 0}, {128, 144, 0, 0, 0}, {144, 160, 0, 0, 0}, {160, 164, 0, 0, 0}};
    static const Span group[] = {
        {0, 67, 0, 0, 1}, {67, 90, 0, 67, 1}, {90, 91, 0, 67, 1}, {91, 230, 0, 67, 1}, {230, 240, 5, 70, 0}};
    static const Span beyond[] = {{0, 9, 40, 200, 1}, {9, 9, 0, 0, 1}}, hundreds[] = {{1, 460, 0, 0, 1}};
    check_on_both_rungs("one row, dim 16", 5, 6, HEADS(2, 1, 16, one), 0);
    check_on_both_rungs("causal, dim 32", 193, 193, HEADS(2, 1, 32, causal), 8);
    check_on_both_rungs("whole, dim 80", 129, 129, HEADS(1, 1, 80, full), 16);
    check_on_both_rungs("packed, dim 48", 121, 121, HEADS(3, 1, 48, packed), 8);
    check_on_both_rungs("windows, dim 80", 164, 164, HEADS(1, 1, 80, windows), 0);
    check_on_both_rungs("a group that shares a prefix, dim 64", 240, 240, HEADS(2, 1, 64, group), 0);
    check_on_both_rungs("a group that shares a prefix, dim 128", 240, 240, HEADS(2, 2, 128, group), 8);
    check_on_both_rungs("a prefix elsewhere, dim 112", 9, 200, HEADS(7, 1, 112, beyond), 0);
    check_on_both_rungs("hundreds of rows, dim 128", 460, 470, HEADS(1, 1, 128, hundreds), 0);
}

static Mat device_rows(const uint16_t *values, int64_t rows, int64_t cols) {
    Mat m = mat(cuda()->alloc((size_t)(rows * cols) * 2), rows, cols, BF16);
    cuda()->upload(m, mat((void *)(uintptr_t)values, rows, cols, BF16));
    return m;
}
// Keys and queries are codes of +-1, every query that of one key, and so steep a softmax leaves that key's value alone, bit
// for bit. All values differ: a row, a column, a key or a head at another's place in a fragment would show.
TEST(every_value_arrives_where_it_belongs) {
    enum { N = 150, HEADS_HERE = 3, MAX = N * HEADS_HERE * 128 };
    static const Span full[] = {{0, 40, 0, 0, 0}, {40, N, 3, 38, 0}};
    static uint16_t q[MAX], k[MAX], v[MAX], want[MAX], got[MAX], decoded[MAX];
    static const int dims[] = {32, 64, 80, 128};
    const Ops *d = cuda();
    for (int n = 0; n < COUNT(dims); n++)
        for (int kv_heads = 1; kv_heads <= 3; kv_heads += 2) {
            int D = dims[n], C = HEADS_HERE * D, Ckv = kv_heads * D, different = 0;
            for (int t = 0; t < N; t++)
                for (int c = 0; c < Ckv; c++) {
                    k[t * Ckv + c] = f32_to_bf16(random_value(91, t * Ckv + c) < 0 ? -1 : 1);
                    v[t * Ckv + c] = (uint16_t)(0x3000 + (t * Ckv + c) % 0x4000);
                }
            for (int i = 0; i < N; i++)
                for (int h = 0; h < HEADS_HERE; h++) {
                    // of 40 keys the 7th further, of the second span's 145 the 31st, which may lie in the prefix
                    int t = i < 40 ? (i + 7 * h + 7) % 40 : (i - 40 + 31 * h + 31) % 145;
                    int key = i < 40 || t >= 35 ? (i < 40 ? t : t - 35 + 40) : 3 + t;
                    int kv = h / (HEADS_HERE / kv_heads) * D;
                    for (int c = 0; c < D; c++) {
                        q[i * C + h * D + c] = k[key * Ckv + kv + c];
                        want[i * C + h * D + c] = v[key * Ckv + kv + c];
                        different += want[i * C + h * D + c] != want[h * D + c];
                    }
                }
            EXPECT(different > N * C / 2);
            Mat mq = device_rows(q, N, C), mk = device_rows(k, N, Ckv), mv = device_rows(v, N, Ckv);
            Mat o = device_rows(q, N, C);
            Heads h = {HEADS_HERE, kv_heads, D, 20, full, 2}; // 20 times D against 20 times what codes have in common
            for (int naive = 0; naive < 2; naive++) {
                cuda_rungs_set((CudaRungs){.naive = naive});
                d->zero(o);
                call_attention(d, (Mat[]){o, mat_none(), mq, mk, mv}, &h);
                d->download(mat(got, N, C, BF16), o);
                if (memcmp(got, want, (size_t)(N * C) * 2)) FAIL("dim %d, %d key heads, naive %d", D, kv_heads, naive);
                Span rows[5] = {
                    {40, N, 3, 38, 0}, {40, N, 3, 38, 0}, {0, 40, 0, 0, 0}, {40, N, 3, 38, 0}, {0, 40, 0, 0, 0}};
                const int at[5] = {149, 77, 39, 40, 0};
                Heads five = {HEADS_HERE, kv_heads, D, 20, rows, 5};
                Mat q5 = mat(d->alloc((size_t)(5 * C) * 2), 5, C, BF16),
                    o5 = mat(d->alloc((size_t)(5 * C) * 2), 5, C, BF16);
                for (int i = 0; i < 5; i++) d->copy(mat_rows(q5, i, 1), mat_rows(mq, at[i], 1));
                call_decode(d, (Mat[]){o5, q5, mk, mv}, &five);
                d->download(mat(decoded, 5, C, BF16), o5);
                for (int i = 0; i < 5; i++)
                    if (memcmp(decoded + i * C, want + at[i] * C, (size_t)C * 2))
                        FAIL("decoded row %d, dim %d, %d key heads, naive %d", at[i], D, kv_heads, naive);
                d->release(q5.p), d->release(o5.p);
            }
            cuda_rungs_set((CudaRungs){0});
            d->release(mq.p), d->release(mk.p), d->release(mv.p), d->release(o.p);
        }
}

// The same rows under both rungs: close, and not the same bits, or one of them did not run.
TEST(both_rungs_of_attention_run_and_agree) {
    enum { N = 140, C = 64 };
    static const Span spans[] = {{0, 70, 0, 0, 1}, {70, N, 0, 60, 1}};
    static uint16_t host[4][N * C];
    const Ops *d = cuda();
    Mat q = device_random(N, C, BF16, 1), k = device_random(N, C, BF16, 2), v = device_random(N, C, BF16, 3);
    Mat o = device_random(N, C, BF16, 4);
    Heads h = {2, 2, 32, 0.3f, spans, 2};
    Span lasts[N];
    for (int i = 0; i < N; i++) lasts[i] = (Span){0, i + 1, 0, 0, 0};
    Heads rows = {2, 2, 32, 0.3f, lasts, N};
    for (int naive = 0; naive < 2; naive++) {
        cuda_rungs_set((CudaRungs){.naive = naive});
        call_attention(d, (Mat[]){o, mat_none(), q, k, v}, &h);
        d->download(mat(host[naive], N, C, BF16), o);
        call_decode(d, (Mat[]){o, q, k, v}, &rows);
        d->download(mat(host[2 + naive], N, C, BF16), o);
    }
    cuda_rungs_set((CudaRungs){0});
    for (int op = 0; op < 4; op += 2) {
        compare("the rungs of attention", op, mat(host[op], N, C, BF16), mat(host[op + 1], N, C, BF16), 3e-3);
        EXPECT(memcmp(host[op], host[op + 1], sizeof host[op]));
    }
    compare("decoded and in one go", 0, mat(host[2], 70, C, BF16), mat(host[0], 70, C, BF16), 3e-3);
    // What tensor cores cannot take runs on the plain rung whatever is asked for: the same bits.
    struct {
        int64_t shift, heads, dim;
        Type type;
        float scale;
    } other[] = {{4, 1, 32, BF16, 0.3f}, {8, 2, 24, BF16, 0.3f}, {0, 2, 32, BF16, -0.3f}, {8, 1, 32, F32, 0.3f}};
    for (int n = 0; n < COUNT(other); n++) {
        int64_t cols = other[n].heads * other[n].dim, at = other[n].shift;
        Mat f = device_random(N, C, F32, 5), kn = mat_cols(other[n].type == F32 ? f : k, at, cols);
        Heads hn = {other[n].heads, other[n].heads, other[n].dim, other[n].scale, spans, 2}, rn = hn;
        rn.spans = lasts, rn.n_spans = N;
        for (int naive = 0; naive < 2; naive++) {
            cuda_rungs_set((CudaRungs){.naive = naive});
            for (int op = 0; op < 2; op++) {
                Mat y = mat(d->alloc((size_t)(N * cols) * 2), N, cols, BF16);
                if (op == 0) call_attention(d, (Mat[]){y, mat_none(), mat_cols(q, 0, cols), kn, kn}, &hn);
                else call_decode(d, (Mat[]){y, mat_cols(q, 0, cols), kn, kn}, &rn);
                d->download(mat(host[2 * op + naive], N, cols, BF16), y);
                d->release(y.p);
            }
        }
        cuda_rungs_set((CudaRungs){0});
        for (int op = 0; op < 4; op += 2) EXPECT(!memcmp(host[op], host[op + 1], (size_t)(N * cols) * 2));
        d->release(f.p);
    }
    d->release(q.p), d->release(k.p), d->release(v.p), d->release(o.p);
}

// A value that is not finite changes no bit of a row that does not see its key, and shows in exactly its own columns of
// those that do.
TEST(tensor_cores_never_touch_a_hidden_key) {
    enum { N = 150, D = 32 };
    static const Span causal[] = {{0, N, 0, 0, 1}}, group[] = {{0, 70, 0, 0, 1}, {70, N, 0, 40, 1}};
    static const int at[] = {5, 63, 64, 100};
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    static uint16_t clean[N * D], got[N * D], bad_row[D];
    static float lse[2][N];
    const Ops *d = cuda();
    for (int g = 0; g < 2; g++)
        for (int n = 0; n < COUNT(at); n++)
            for (int where = 0; where < 3; where++) { // in the key, in one column of the value, in a whole value
                Heads h = {1, 1, D, 0.3f, g ? group : causal, g ? 2 : 1};
                Mat q = device_random(N, D, BF16, 1), k = device_random(N, D, BF16, 2),
                    v = device_random(N, D, BF16, 3);
                Mat o = device_random(N, D, BF16, 4), l = device_random(N, 1, F32, 5), in = where ? v : k;
                for (int i = 0; i < D; i++) bad_row[i] = f32_to_bf16(bad[(i + n) % 3]);
                if (cuda_emu_schedule) cuda_emu_schedule(n % 3, where % 2);
                call_attention(d, (Mat[]){o, l, q, k, v}, &h);
                d->download(mat(clean, N, D, BF16), o), d->download(mat(lse[0], N, 1, F32), l);
                d->upload(mat_cols(mat_rows(in, at[n], 1), where == 1 ? 9 : 0, where == 1 ? 1 : D),
                          mat(bad_row, 1, where == 1 ? 1 : D, BF16));
                call_attention(d, (Mat[]){o, l, q, k, v}, &h);
                d->download(mat(got, N, D, BF16), o), d->download(mat(lse[1], N, 1, F32), l);
                for (int i = 0; i < N; i++) {
                    bool sees = g && i >= 70 ? at[n] < 40 || (at[n] >= 70 && at[n] <= i) : at[n] <= i;
                    EXPECT((lse[0][i] == lse[1][i]) == !(sees && where == 0));
                    for (int c = 0; c < D; c++) {
                        bool touched = sees && (where != 1 || c == 9);
                        EXPECT(isfinite(bf16_to_f32(got[i * D + c])) == !touched);
                        if (!touched) EXPECT(got[i * D + c] == clean[i * D + c]);
                    }
                }
                d->release(q.p), d->release(k.p), d->release(v.p), d->release(o.p), d->release(l.p);
            }
}

// A row's bits follow from its keys: not from the rows beside it, the block it falls into, the length of other spans, nor
// from whether keys come as a prefix or as own rows.
TEST(rows_on_tensor_cores_have_the_same_bits_however_they_are_cut) {
    enum { N = 230 };
    static const Span whole[] = {{40, N, 0, 0, 1}}, cut[] = {{40, 105, 0, 0, 1}, {105, 141, 40, 105, 1}},
                      rest[] = {{141, 150, 40, 141, 1}, {150, N, 40, 150, 1}}, windows[] = {{0, 40, 0, 0, 0}},
                      both[] = {{0, 40, 0, 0, 0}, {40, N, 0, 0, 1}};
    static const int dims[] = {16, 80, 128};
    const Ops *d = cuda();
    for (int n = 0; n < COUNT(dims); n++) {
        int D = dims[n], C = 2 * D;
        Mat q = device_random(N, C, BF16, 1), k = device_random(N, D, BF16, 2), v = device_random(N, D, BF16, 3);
        Mat o[3], l[3];
        for (int i = 0; i < 3; i++) o[i] = device_random(N, C, BF16, 9), l[i] = device_random(N, 2, F32, 9);
        Heads h = {2, 1, D, 0.4f, whole, 1};
        if (cuda_emu_schedule) cuda_emu_schedule(2, n % 2);
        call_attention(d, (Mat[]){o[0], l[0], q, k, v}, &h);
        h.spans = windows;
        call_attention(d, (Mat[]){o[0], l[0], q, k, v}, &h);
        h.spans = cut, h.n_spans = 2; // in two launches: one with only 36 to 65 rows a span
        call_attention(d, (Mat[]){o[1], l[1], q, k, v}, &h);
        h.spans = rest;
        call_attention(d, (Mat[]){o[1], l[1], q, k, v}, &h);
        h.spans = windows, h.n_spans = 1;
        call_attention(d, (Mat[]){o[1], l[1], q, k, v}, &h);
        h.spans = both, h.n_spans = 2;
        if (cuda_emu_schedule) cuda_emu_schedule(1, n % 2);
        call_attention(d, (Mat[]){o[2], l[2], q, k, v}, &h);
        for (int i = 1; i < 3; i++) EXPECT(same_bits(o[0], o[i]) && same_bits(l[0], l[i]));
        for (int i = 0; i < 3; i++) d->release(o[i].p), d->release(l[i].p);
        d->release(q.p), d->release(k.p), d->release(v.p);
    }
}

// The tensor-core rung of the backward pass: of dq, dk and dv two roundings to bf16 are in the way, of ds or p and of the
// result, each of at most 2^-9. Where few terms meet both may be near that: 4e-3. delta has no rounding: 1e-5 (times 4/3).
static void check_backward_on_tensor_cores(const char *what, int64_t queries, int64_t keys, Heads h, int64_t pad) {
    check_attention_backward(what, BF16, queries, keys, h, pad, 4.0 / 3);
}
TEST(attention_backward_on_tensor_cores_over_all_kinds_of_spans) {
    static const Span two[] = {{0, 2, 0, 0, 0}}, causal[] = {{0, 150, 0, 0, 1}}, full[] = {{0, 65, 0, 0, 0}};
    static const Span packed[] = {{0, 31, 0, 0, 1}, {33, 98, 0, 0, 1}, {98, 99, 0, 0, 1}, {99, 120, 0, 0, 0}};
    static const Span windows[] = {
        {0, 64, 0, 0, 0}, {64, 128, 0, 0, 0}, {128, 144, 0, 0, 0}, {144, 160, 0, 0, 0}, {160, 164, 0, 0, 0}};
    static const Span group[] = {
        {0, 67, 0, 0, 1}, {67, 90, 0, 67, 1}, {90, 91, 0, 67, 1}, {91, 170, 0, 67, 1}, {170, 180, 5, 70, 0}};
    static const Span beyond[] = {{0, 9, 20, 147, 1}, {9, 9, 0, 0, 1}}, hundreds[] = {{1, 330, 0, 0, 1}};
    Span many[70]; // more than a warp can look at in one go
    for (int i = 0; i < 70; i++) many[i] = (Span){3 + 2 * i, 5 + 2 * i, 0, 3, i % 2};
    check_backward_on_tensor_cores("backward of two rows, dim 16", 2, 2, HEADS(2, 1, 16, two), 0);
    check_backward_on_tensor_cores("backward, causal, dim 32", 150, 150, HEADS(4, 2, 32, causal), 8);
    check_backward_on_tensor_cores("backward, whole, dim 80", 65, 65, HEADS(2, 2, 80, full), 16);
    check_backward_on_tensor_cores("backward, packed, dim 48", 121, 121, HEADS(3, 1, 48, packed), 8);
    check_backward_on_tensor_cores("backward, windows, dim 80", 164, 164, HEADS(1, 1, 80, windows), 0);
    check_backward_on_tensor_cores("backward of a group, dim 64", 180, 180, HEADS(3, 1, 64, group), 0);
    check_backward_on_tensor_cores("backward of a group, dim 128", 180, 180, HEADS(1, 1, 128, group), 8);
    check_backward_on_tensor_cores("backward to a prefix elsewhere, dim 112", 9, 150, HEADS(7, 1, 112, beyond), 0);
    check_backward_on_tensor_cores("backward of many windows, dim 16", 143, 143, HEADS(2, 1, 16, many), 0);
    check_backward_on_tensor_cores("backward over hundreds of rows, dim 96", 330, 340, HEADS(1, 1, 96, hundreds), 0);
}
TEST(a_misplaced_fragment_of_a_gradient_is_noticed) { // control of the comparisons above
    enum { N = 330, C = 96 };                         // as large as the largest of them
    static float want[N * C], got[N * C];
    for (int i = 0; i < N * C; i++) want[i] = random_value(7, i);
    for (int kind = 0; kind < 4;
         kind++) {                     // of one 16 x 8 fragment: lower half above, neighbours turned, lanes moved on,
        memcpy(got, want, sizeof got); // rows as columns
        for (int i = 0; i < 16; i++)
            for (int j = 0; j < 8; j++) {
                int a = kind == 0 ? (i + 8) % 16 : kind == 3 ? i / 8 * 8 + j : i;
                int b = kind == 1 ? j ^ 1 : kind == 2 ? (j + 2) % 8 : kind == 3 ? i % 8 : j;
                got[(160 + i) * C + 40 + j] = want[(160 + a) * C + 40 + b];
            }
        EXPECT(!error_within(tensor_error(got, want, N * C), 4e-3));
    }
}

// dq, dk, dv, delta, dout, q, k, v, o, lse of n rows, each from its own stream; o and lse by attention_forward. They are
// views of what is wider by 8 columns; number `shifted` lies 4 columns further in.
enum { BACKWARD_MATS = 10 };
static void backward_mats(Mat m[BACKWARD_MATS], Mat whole_mats[BACKWARD_MATS], int64_t n, Heads h, Type type,
                          int shifted) {
    for (int i = 0; i < BACKWARD_MATS; i++) {
        bool of_keys = i == 1 || i == 2 || i == 6 || i == 7, of_heads = i == 3 || i == 9;
        int64_t cols = of_heads ? h.heads : of_keys ? h.kv_heads * h.dim : h.heads * h.dim;
        whole_mats[i] = device_random(n, cols + 8, of_heads ? F32 : type, (uint64_t)i);
        m[i] = mat_cols(whole_mats[i], i == shifted ? 4 : 0, cols);
    }
    call_attention(cuda(), (Mat[]){m[8], m[9], m[5], m[6], m[7]}, &h);
}
static void release_all(const Mat *m, int n) {
    for (int i = 0; i < n; i++) cuda()->release(m[i].p);
}
static Mat downloaded(Mat m) {
    Mat host = mat(malloc((size_t)(m.rows * m.cols) * type_size(m.type)), m.rows, m.cols, m.type);
    cuda()->download(host, m);
    return host;
}
TEST(both_rungs_of_attention_backward_run_and_agree) {
    enum { N = 140, NONE = -1 };
    static const Span spans[] = {{0, 70, 0, 0, 1}, {70, N, 0, 60, 1}};
    struct { // from the third on, tensor cores cannot take them: the same bits whatever is asked for
        int64_t dim;
        Type type;
        int shifted;
    } cases[] = {{32, BF16, NONE}, {64, BF16, NONE}, {24, BF16, NONE}, {144, BF16, NONE}, {32, F32, NONE},
                 {32, BF16, 0},    {32, BF16, 1},    {32, BF16, 2},    {32, BF16, 4},     {32, BF16, 5},
                 {32, BF16, 6},    {32, BF16, 7},    {32, BF16, 8}};
    for (int n = 0; n < COUNT(cases); n++) {
        Heads h = HEADS(2, 1, cases[n].dim, spans);
        Mat m[BACKWARD_MATS], whole_mats[BACKWARD_MATS], got[2][4];
        backward_mats(m, whole_mats, N, h, cases[n].type, cases[n].shifted);
        for (int naive = 0; naive < 2; naive++) {
            cuda_rungs_set((CudaRungs){.naive = naive});
            call_attention_backward(cuda(), m, &h);
            for (int i = 0; i < 4; i++) got[naive][i] = downloaded(m[i]);
        }
        cuda_rungs_set((CudaRungs){0});
        for (int i = 0; i < 4; i++) {
            Mat a = got[0][i], b = got[1][i];
            compare("the rungs of attention_backward", i, a, b, a.type == BF16 ? 4e-3 : 1e-5);
            bool same = !memcmp(a.p, b.p, (size_t)(a.rows * a.cols) * type_size(a.type));
            if (same != (n >= 2) && i != 3) FAIL("case %d: argument %d has %s bits", n, i, same ? "the same" : "other");
            free(a.p), free(b.p);
        }
        release_all(whole_mats, BACKWARD_MATS);
    }
}

// What is not finite changes no bit of a row that does not see it, and shows in those that do.
TEST(gradients_on_tensor_cores_never_touch_a_hidden_row) {
    enum { N = 150, D = 32 };
    static const Span causal[] = {{0, N, 0, 0, 1}}, group[] = {{0, 70, 0, 0, 1}, {70, N, 0, 40, 1}};
    static const int rows[] = {5, 63, 64, 100};
    static const int64_t bad_type[] = {4, 5, 6, 7}; // dout, q; k, v
    for (int g = 0; g < 2; g++)
        for (int n = 0; n < COUNT(rows); n++)
            for (int b = 0; b < COUNT(bad_type); b++) {
                int at = rows[n];
                Heads h = {1, 1, D, 0.3f, g ? group : causal, g ? 2 : 1};
                Mat m[BACKWARD_MATS], whole_mats[BACKWARD_MATS], clean[3];
                backward_mats(m, whole_mats, N, h, BF16, -1);
                if (cuda_emu_schedule) cuda_emu_schedule(n % 3, b % 2);
                call_attention_backward(cuda(), m, &h);
                for (int i = 0; i < 3; i++) clean[i] = downloaded(m[i]);
                uint16_t nan = f32_to_bf16(NAN); // one column is enough
                cuda()->upload(mat_cols(mat_rows(m[bad_type[b]], at, 1), 9, 1), mat(&nan, 1, 1, BF16));
                if (b == 1) { // what forward would have left there
                    float nan_lse = NAN;
                    cuda()->upload(mat_rows(m[9], at, 1), mat(&nan_lse, 1, 1, F32));
                }
                call_attention_backward(cuda(), m, &h);
                for (int i = 0; i < 3; i++) {
                    Mat got = downloaded(m[i]);
                    for (int r = 0; r < N; r++) {
                        int query = i == 0 ? r : at, key = i == 0 ? at : r;
                        bool sees = g && query >= 70 ? key < 40 || (key >= 70 && key <= query) : key <= query;
                        // A query's dout and q touch what it gives to the keys it sees, dout only the same column of
                        // dv; a key's k and v what its queries get, k its own dk and dv, v its own dk.
                        bool touched = b < 2 ? (i == 0 ? r == at : sees) : i == 0 ? sees : r == at && i <= 4 - b;
                        for (int c = 0; c < D; c++) {
                            bool here = touched && (i < 2 || b > 0 || c == 9);
                            EXPECT(isfinite(load(got, r, c)) == !here);
                            if (!here) EXPECT(load(got, r, c) == load(clean[i], r, c));
                        }
                    }
                    free(got.p), free(clean[i].p);
                }
                release_all(whole_mats, BACKWARD_MATS);
            }
}

// A row's gradient follows from what it saw and who saw it: not from its place among the rows, the block that it falls
// into, nor the rows beside it.
TEST(gradients_on_tensor_cores_alone_and_in_a_batch_have_the_same_bits) {
    enum { N = 250, AT = 37, ALONE = 141 };
    static const Span batch[] = {{0, AT, 0, 0, 1},
                                 {AT, AT + 70, 0, 0, 1},
                                 {AT + 70, AT + 71, AT, AT + 65, 1},
                                 {AT + 71, AT + ALONE, AT, AT + 65, 1},
                                 {AT + ALONE, N, 0, 0, 0}};
    static const Span one[] = {{0, 70, 0, 0, 1}, {70, 71, 0, 65, 1}, {71, ALONE, 0, 65, 1}};
    static const int dims[] = {16, 80, 128};
    for (int n = 0; n < COUNT(dims); n++) {
        Heads all = HEADS(2, 1, dims[n], batch), alone = HEADS(2, 1, dims[n], one);
        Mat m[BACKWARD_MATS], whole_mats[BACKWARD_MATS], part[BACKWARD_MATS];
        backward_mats(m, whole_mats, N, all, BF16, -1);
        for (int i = 0; i < BACKWARD_MATS; i++)
            part[i] = i < 4 ? device_random(ALONE, m[i].cols, m[i].type, 20) : mat_rows(m[i], AT, ALONE);
        if (cuda_emu_schedule) cuda_emu_schedule(2, n % 2);
        call_attention_backward(cuda(), m, &all);
        if (cuda_emu_schedule) cuda_emu_schedule(n % 2, 0);
        call_attention_backward(cuda(), part, &alone);
        for (int i = 0; i < 4; i++) {
            Mat a = downloaded(mat_rows(m[i], AT, ALONE)), b = downloaded(part[i]);
            EXPECT(!memcmp(a.p, b.p, (size_t)(a.rows * a.cols) * type_size(a.type)));
            free(a.p), free(b.p);
        }
        release_all(whole_mats, BACKWARD_MATS), release_all(part, 4);
    }
}

// One to all 32 splits of the keys, and around again; keys that share blocks of 64, prefixes of any length; more rows than
// there is room for at once when emulated; more query heads to a key head than eight.
TEST(decode_on_tensor_cores_over_caches_of_any_length) {
    static const Span spans[] = {{0, 1, 0, 0, 0},    {500, 533, 0, 300, 0},    {600, 600, 7, 8, 1},
                                 {10, 520, 0, 0, 1}, {300, 364, 0, 0, 0},      {301, 366, 0, 0, 0},
                                 {5, 5, 6, 6, 0},    {2, 2150, 2160, 2170, 0}, {700, 716, 0, 47, 0}};
    static const int64_t shapes[][3] = {{2, 1, 16}, {14, 2, 128}, {9, 1, 80}, {3, 3, 64}, {18, 2, 32}};
    for (int s = 0; s < COUNT(shapes); s++)
        for (int naive = 0; naive < 2; naive++) {
            Heads h = {shapes[s][0], shapes[s][1], shapes[s][2], 2.0f / sqrtf((float)shapes[s][2]),
                       spans,        COUNT(spans)};
            char what[100];
            snprintf(what, sizeof what, "decode %lld/%lld heads of %lld, naive %d", (long long)h.heads,
                     (long long)h.kv_heads, (long long)h.dim, naive);
            cuda_rungs_set((CudaRungs){.naive = naive});
            check((Case){what,
                         {{OUT, COUNT(spans), h.heads * h.dim, s % 2 * 8, BF16, NULL, false},
                          {IN, COUNT(spans), h.heads * h.dim, s % 3 * 8, BF16, NULL, false},
                          {IN, 2170, h.kv_heads * h.dim, s % 2 * 16, BF16, NULL, false},
                          {IN, 2170, h.kv_heads * h.dim, 0, BF16, NULL, false}},
                         call_decode,
                         &h,
                         0});
        }
    cuda_rungs_set((CudaRungs){0});
}
// A score far above all before it makes them weigh nothing: also where a warp has seen other keys already.
TEST(one_key_of_a_long_cache_can_outweigh_all_others) {
    enum { N = 2300, D = 64, ROWS = 4 };
    static const int at[ROWS] = {2299, 2200, 2048, 100};
    static const Span all = {0, N, 0, 0, 0};
    static uint16_t k[N * D], v[N * D], q[ROWS * D], got[ROWS * D];
    const Span spans[ROWS] = {all, all, all, all};
    const Ops *d = cuda();
    for (int i = 0; i < N * D; i++) {
        k[i] = f32_to_bf16(random_value(92, i) < 0 ? -1 : 1);
        v[i] = f32_to_bf16(random_value(93, i));
    }
    for (int i = 0; i < ROWS; i++) memcpy(q + i * D, k + at[i] * D, D * 2);
    Mat mq = device_rows(q, ROWS, D), mk = device_rows(k, N, D), mv = device_rows(v, N, D), o = device_rows(q, ROWS, D);
    Heads h = {1, 1, D, 20, spans, ROWS};
    for (int naive = 0; naive < 2; naive++) {
        cuda_rungs_set((CudaRungs){.naive = naive});
        call_decode(d, (Mat[]){o, mq, mk, mv}, &h);
        d->download(mat(got, ROWS, D, BF16), o);
        for (int i = 0; i < ROWS; i++)
            if (memcmp(got + i * D, v + at[i] * D, D * 2)) FAIL("key %d, naive %d", at[i], naive);
    }
    cuda_rungs_set((CudaRungs){0});
    d->release(mq.p), d->release(mk.p), d->release(mv.p), d->release(o.p);
}
// Equal weights, and among small values some so large that they swallow what is added before they cancel: any other order
// of the splits would give another sum. The blocks finish in another order under each schedule.
TEST(splits_are_added_in_one_order_whoever_finishes_last) {
    enum { N = 640, D = 16 };
    static const int schedules[4][2] = {{0, 1}, {1, 1}, {2, 0}, {1, 0}};
    static const Span rows[3] = {{0, N, 0, 0, 0}, {0, N, 0, 0, 0}, {128, N, 0, 128, 0}};
    static uint16_t q[3 * D], v[N * D], first[D], got[3 * D];
    const Ops *d = cuda();
    double exact = 0;
    for (int i = 0; i < N * D; i++) {
        int chunk = i / D / 64;
        float value = chunk == 2 ? 0x1p26f : chunk == 7 ? -0x1p26f : 1 + random_value(94, i);
        v[i] = f32_to_bf16(value), exact += i % D ? 0 : bf16_to_f32(v[i]);
    }
    Mat mq = device_rows(q, 3, D), mv = device_rows(v, N, D), o = device_rows(q, 3, D);
    for (int s = 0; s < 4; s++) {
        if (cuda_emu_schedule) cuda_emu_schedule(schedules[s][0], schedules[s][1]);
        Heads h = {1, 1, D, 1, rows, 1 + s % 3};
        call_decode(d, (Mat[]){mat_rows(o, 0, h.n_spans), mat_rows(mq, 0, h.n_spans), mv, mv}, &h);
        d->download(mat(got, 3, D, BF16), o);
        if (s == 0) memcpy(first, got, sizeof first);
        for (int64_t i = 0; i < h.n_spans; i++) EXPECT(!memcmp(got + i * D, first, sizeof first));
    }
    EXPECT(fabs(bf16_to_f32(first[0]) - exact / N) > 0.1); // something was swallowed
    d->release(mq.p), d->release(mv.p), d->release(o.p);
}
// Each row alone, in a cache whose other rows are NaN, gives the bits it had in the batch.
TEST(a_decoded_row_depends_on_its_keys_alone) {
    enum { ROWS = 7, N = 2300, D = 64, C = 2 * D };
    static const Span spans[ROWS] = {{100, 164, 0, 0, 0},  {200, 230, 0, 90, 0}, {300, 301, 0, 90, 0},
                                     {301, 303, 0, 90, 0}, {400, 400, 0, 0, 0},  {400, 2290, 50, 300, 0},
                                     {90, 99, 0, 90, 0}};
    static uint16_t clean[N * D], with_nan[N * D];
    const Ops *d = cuda();
    Mat q = device_random(ROWS, C, BF16, 1), k = device_random(N, D, BF16, 2), v = device_random(N, D, BF16, 3);
    Mat o = device_random(ROWS, C, BF16, 4), one = device_random(1, C, BF16, 5),
        again = device_random(ROWS, C, BF16, 6);
    Heads h = {2, 1, D, 0.5f, spans, ROWS};
    if (cuda_emu_schedule) cuda_emu_schedule(1, 1);
    call_decode(d, (Mat[]){o, q, k, v}, &h);
    if (cuda_emu_schedule) cuda_emu_schedule(2, 0);
    call_decode(d, (Mat[]){again, q, k, v}, &h);
    EXPECT(same_bits(o, again));
    for (int i = 0; i < ROWS; i++) {
        Mat hidden[2] = {device_random(N, D, BF16, 2), device_random(N, D, BF16, 3)};
        for (int m = 0; m < 2; m++) {
            d->download(mat(clean, N, D, BF16), hidden[m]);
            memset(with_nan, 0xff, sizeof with_nan);
            for (int t = 0; t < N; t++)
                if ((t >= spans[i].first && t < spans[i].last) ||
                    (t >= spans[i].prefix_first && t < spans[i].prefix_last))
                    memcpy(with_nan + t * D, clean + t * D, D * 2);
            d->upload(hidden[m], mat(with_nan, N, D, BF16));
        }
        h.spans = spans + i, h.n_spans = 1;
        call_decode(d, (Mat[]){one, mat_rows(q, i, 1), hidden[0], hidden[1]}, &h);
        EXPECT(same_bits(one, mat_rows(o, i, 1)));
        d->release(hidden[0].p), d->release(hidden[1].p);
    }
    EXPECT(!same_bits(mat_rows(o, 2, 1), mat_rows(o, 3, 1)));
    d->release(q.p), d->release(k.p), d->release(v.p), d->release(o.p), d->release(one.p), d->release(again.p);
}

// ---------------------------------------------------------------------------------------------------------------- rows

static void call_gather(const Ops *d, const Mat *m, const void *ctx) { (void)ctx, gather_rows(d, m[0], m[1], m[2]); }
static void call_scatter(const Ops *d, const Mat *m, const void *ctx) {
    (void)ctx, scatter_add_rows(d, m[0], m[1], m[2]);
}
TEST(rows_are_gathered_and_scattered_in_order) {
    static const int32_t index[] = {3, -1, 0, 3, 8, -7, 3, 1, 1, 8, 5};
    for (int t = 0; t < 2; t++)
        for (int s = 0; s < 4; s++) {
            Type T = act_types[t];
            Arg at = {IN, 11, 1, s % 2, I32, index, false};
            check((Case){"gather_rows",
                         {{OUT, 11, odd[s], s, T, NULL, false}, {IN, 9, odd[s], 1, act_types[s % 2], NULL, false}, at},
                         call_gather,
                         NULL,
                         0});
            check(
                (Case){"scatter_add_rows",
                       {{INOUT, 9, odd[s], 2, T, NULL, false}, {IN, 11, odd[s], s, act_types[s % 2], NULL, false}, at},
                       call_scatter,
                       NULL,
                       0});
        }
}

// ---------------------------------------------------------------------------------------------------------------- head

static void call_logprob(const Ops *d, const Mat *m, const void *ctx) {
    logprob_forward(d, m[0], m[1], m[2], m[3], m[4], *(const float *)ctx);
}
static const CudaRungs head_rungs[] = {{.naive = false}, {.naive = true}};
TEST(logprob_and_entropy_of_every_vocabulary_size) {
    static const int64_t sizes[] = {2, 31, 513, 3001, 9000}; // a step of the fast rung has 4096 columns
    static const float inv_temperatures[] = {1, 0.5f, 3, 20, 0.7f};
    for (int turn = 0; turn < 10; turn++) {
        int s = turn % 5;
        int64_t V = sizes[s], N = 5;
        cuda_rungs_set(head_rungs[turn / 5]);
        float *logits = malloc((size_t)(N * V) * 4);
        for (int64_t i = 0; i < N * V; i++) logits[i] = 8 * random_value(77, i);
        logits[1] = -INFINITY;
        int32_t targets[] = {0, (int32_t)V - 1, -1, 1, (int32_t)V / 2};
        Arg column = {OUT, N, 1, s % 2, F32, NULL, false}, maybe = column;
        maybe.absent = s == 1;
        check((Case){"logprob",
                     {column, maybe, maybe, {IN, N, V, s % 4, F32, logits, false}, {IN, N, 1, s, I32, targets, false}},
                     call_logprob,
                     &inv_temperatures[s],
                     s == 3 ? 2 : 0}); // z = 20 * 8: its rounding alone is 1e-5 of a small entropy
        free(logits);
    }
    cuda_rungs_set(head_rungs[0]);
}
// In one pass the largest logit is known only at the end: sums go along when it rises.
TEST(logprob_of_rows_whose_largest_logit_comes_anywhere) {
    enum { N = 8, V = 8300 };
    static float logits[N * V];
    static int32_t targets[N] = {V - 1, 0, 17, 5000, 3, 8, 4500, 9};
    for (int64_t v = 0; v < V; v++) {
        logits[v] = (float)v / 400, logits[V + v] = (float)-v / 400; // rising, falling
        logits[2 * V + v] = v == 17 ? 200 : -200;                    // all mass on one
        logits[3 * V + v] = v < 4999 ? -INFINITY : (float)(v % 7);   // threads that see nothing at first
        logits[4 * V + v] = v < 2048 ? 1 : -INFINITY;                // and nothing more later
        logits[5 * V + v] = 1e30f * (float)(v % 3 == 0);             // far from all thresholds
        logits[6 * V + v] = v >= 4096 ? -1e30f : -2e30f;
        logits[7 * V + v] = 0;
    }
    float one = 1;
    Arg column = {OUT, N, 1, 0, F32, NULL, false};
    check((Case){"logprob of rising and falling rows",
                 {column, column, column, {IN, N, V, 0, F32, logits, false}, {IN, N, 1, 0, I32, targets, false}},
                 call_logprob,
                 &one,
                 0});
}

static void call_logprob_backward(const Ops *d, const Mat *m, const void *ctx) {
    logprob_backward(d, m[0], m[1], m[2], m[3], m[4], *(const float *)ctx);
}
static void call_logprob_backward_onto(const Ops *d, const Mat *m, const void *ctx) {
    logprob_backward(d, m[0], m[0], m[1], m[2], m[3], *(const float *)ctx);
}
TEST(logprob_backward_of_every_vocabulary_size) {
    static const int64_t sizes[] = {2, 31, 513, 3001, 9000};
    static const float inv_temperatures[] = {1, 0.5f, 3, 20, 0.7f};
    enum { N = 6 };
    for (int turn = 0; turn < 10; turn++) {
        int s = turn % 5;
        int64_t V = sizes[s];
        cuda_rungs_set(head_rungs[turn / 5]);
        float *logits = malloc((size_t)(N * V) * 4), lp[N], lse[N], dlp[N] = {1, -2, 3, 1.5f, 0, -2.5f};
        for (int64_t i = 0; i < N * V; i++) logits[i] = 8 * random_value(78, i);
        logits[1] = -INFINITY;
        int32_t targets[] = {0, (int32_t)V - 1, -1, 1, (int32_t)V / 2, 1};
        logprob_forward(ops_ref(), mat(lp, N, 1, F32), mat(lse, N, 1, F32), mat_none(), mat(logits, N, V, F32),
                        mat(targets, N, 1, I32), inv_temperatures[s]);
        logits[4 * V] = NAN; // a row without a gradient is not looked at
        Arg in = {IN, N, V, s % 4, F32, logits, false}, at = {IN, N, 1, s, I32, targets, false},
            norm = {IN, N, 1, s % 2, F32, lse, false}, g = {IN, N, 1, 0, F32, dlp, false}, inout = in;
        inout.role = INOUT;
        for (int t = 0; t < 2; t++)
            check((Case){"logprob_backward",
                         {{OUT, N, V, 2 * (s % 4), act_types[t], NULL, false}, in, at, norm, g},
                         call_logprob_backward,
                         &inv_temperatures[s],
                         t ? 0 : 0.1}); // 1e-6: z = 160 must not be rounded before lse is taken off
        check((Case){"logprob_backward over the logits",
                     {inout, at, norm, g},
                     call_logprob_backward_onto,
                     &inv_temperatures[s],
                     0.1});
        free(logits);
    }
    cuda_rungs_set(head_rungs[0]);
}

// Everything the head gives for a row: lp, lse, entropy, then dlogits. It works on memory that begins `shift` floats behind an
// aligned address, rows V + pad apart.
enum { HEAD_ROWS = 5 };
typedef struct HeadCall {
    int64_t V, pad, shift;
    Type type;      // of dlogits
    bool onto, one; // dlogits over the logits; in one visit
} HeadCall;
static void head_results(HeadCall h, float *columns, void *dlogits) {
    const Ops *d = cuda();
    int64_t V = h.V, N = HEAD_ROWS, room = 4 + N * (V + h.pad);
    float *host = malloc((size_t)room * 4), dlp[] = {1, -2, 3, 0, -0.5f};
    int32_t targets[] = {0, (int32_t)V - 1, -1, 1, (int32_t)V / 2};
    for (int64_t i = 0; i < room; i++) memset(host + i, GUARD, 4);
    Mat in = mat(host + h.shift, N, V, F32), out = in, column[5];
    in.stride += h.pad;
    for (int64_t i = 0; i < N * V; i++) *(float *)mat_at(in, i / V, i % V) = 8 * random_value(79, i);
    *(float *)mat_at(in, 3, V / 2) = NAN; // in a row without a gradient
    void *memory = d->alloc((size_t)room * 4), *beside = d->alloc((size_t)room * 4);
    d->upload(mat(memory, 1, room, F32), mat(host, 1, room, F32));
    in.p = (float *)memory + h.shift, out = in, out.type = h.type;
    if (h.onto && h.type == BF16) out.stride *= 2;
    if (!h.onto) out.p = (float *)beside + h.shift, d->upload(mat(beside, 1, room, F32), mat(host, 1, room, F32));
    for (int i = 0; i < 5; i++) column[i] = mat(d->alloc(N * 4), N, 1, i == 3 ? I32 : F32);
    d->upload(column[3], mat(targets, N, 1, I32)), d->upload(column[4], mat(dlp, N, 1, F32));
    if (h.one) logprob_forward_backward(d, out, column[0], column[1], column[2], in, column[3], column[4], 0.8f);
    else {
        logprob_forward(d, column[0], column[1], column[2], in, column[3], 0.8f);
        logprob_backward(d, out, in, column[3], column[1], column[4], 0.8f);
    }
    for (int i = 0; i < 3; i++) d->download(mat(columns + i * N, N, 1, F32), column[i]);
    d->download(mat(dlogits, N, V, h.type), out);
    d->download(mat(host, 1, room, F32), mat(h.onto ? memory : beside, 1, room, F32));
    for (int64_t i = 0; i < room; i++) { // what lies between rows, and around them, is as it was
        int64_t at = i - h.shift;
        bool inside = at >= 0 && at < N * (V + h.pad) && at % (V + h.pad) < V;
        uint32_t word, guard;
        memcpy(&word, host + i, 4), memset(&guard, GUARD, 4);
        if (!inside && (h.onto || h.type == F32) && word != guard)
            FAIL("the head wrote outside of its rows at %lld", (long long)i);
    }
    for (int i = 0; i < 5; i++) d->release(column[i].p);
    d->release(memory), d->release(beside), free(host);
}
TEST(the_head_has_one_result_however_it_is_asked) {
    static const int64_t sizes[] = {2, 50, 511, 4096, 4100, 9001};
    float *want = malloc(HEAD_ROWS * 9001 * 4), *got = malloc(HEAD_ROWS * 9001 * 4), first[3 * HEAD_ROWS],
          again[3 * HEAD_ROWS];
    for (int s = 0; s < COUNT(sizes); s++)
        for (int turn = 0; turn < 4; turn++) {
            int64_t V = sizes[s];
            Type type = act_types[turn % 2];
            size_t bytes = (size_t)(HEAD_ROWS * V) * type_size(type);
            cuda_rungs_set(head_rungs[turn / 2]);
            if (cuda_emu_schedule) cuda_emu_schedule(0, 1);
            head_results((HeadCall){.V = V, .type = type}, first, want);
            EXPECT(isnan(first[3]) && first[2] == 0 && isfinite(first[4]));
            for (int k = 0; k < 8; k++) {
                HeadCall h = {V, k % 4, k / 2 % 4, type, k % 2 == 1, k / 4 == 1};
                if (cuda_emu_schedule) cuda_emu_schedule(k % 3, k % 2);
                head_results(h, again, got);
                if (memcmp(first, again, sizeof first) || memcmp(want, got, bytes))
                    FAIL("head of %lld, %s, rung %d: other bits with stride + %lld, begin + %lld, %s%s", (long long)V,
                         type_name(type), turn / 2, (long long)h.pad, (long long)h.shift,
                         h.onto ? "in place" : "beside", h.one ? ", in one visit" : "");
            }
        }
    cuda_rungs_set(head_rungs[0]);
    free(want), free(got);
}
TEST(the_head_in_one_visit_is_the_reference) {
    enum { N = 3, V = 5000 };
    static float logits[N * V], want[N * V], got[N * V];
    float lp[2][N], lse[2][N], h[2][N], dlp[N] = {1, -1, 0.25f}, inv = 1 / 0.9f;
    static uint16_t halves[N * V];
    int32_t targets[N] = {4999, 0, 77};
    const Ops *ref = ops_ref(), *d = cuda();
    for (int i = 0; i < N * V; i++) logits[i] = 9 * random_value(80, i);
    logprob_forward_backward(ref, mat(want, N, V, F32), mat(lp[0], N, 1, F32), mat(lse[0], N, 1, F32),
                             mat(h[0], N, 1, F32), mat(logits, N, V, F32), mat(targets, N, 1, I32), mat(dlp, N, 1, F32),
                             inv);
    Mat in = mat(d->alloc(sizeof logits), N, V, F32), out = in, m[5];
    for (int i = 0; i < 5; i++) m[i] = mat(d->alloc(N * 4), N, 1, i == 3 ? I32 : F32);
    d->upload(in, mat(logits, N, V, F32)), d->upload(m[3], mat(targets, N, 1, I32));
    d->upload(m[4], mat(dlp, N, 1, F32));
    out.type = BF16, out.stride = 2 * V;
    logprob_forward_backward(d, out, m[0], m[1], m[2], in, m[3], m[4], inv);
    d->download(mat(lp[1], N, 1, F32), m[0]), d->download(mat(lse[1], N, 1, F32), m[1]);
    d->download(mat(h[1], N, 1, F32), m[2]), d->download(mat(halves, N, V, BF16), out);
    for (int i = 0; i < N * V; i++) got[i] = bf16_to_f32(halves[i]);
    EXPECT_CLOSE("lp", lp[1], lp[0], N, 1e-5);
    EXPECT_CLOSE("lse", lse[1], lse[0], N, 1e-5);
    EXPECT_CLOSE("entropy", h[1], h[0], N, 1e-5);
    compare("dlogits in one visit", 0, mat(got, N, V, F32), mat(want, N, V, F32), 3e-3);
    for (int i = 0; i < 5; i++) d->release(m[i].p);
    d->release(in.p);
}
// 14,122 rows of 152,064 logits are 2^31 of them.
TEST(the_head_reaches_logits_behind_the_2_147_483_648th) {
    enum { V = 96 };
    const int64_t stride = (INT64_C(1) << 31) + 64;
    const Ops *devices[] = {ops_ref(), ops_cpu(), cuda()};
    size_t bytes = (size_t)(stride + V) * 4;
    for (int k = 0; k < 3; k++) {
        const Ops *d = devices[k];
        bool host = k < 2 || cuda_emu_schedule; // pages that nobody touches cost nothing there
        void *p = host ? mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
                       : d->alloc(bytes);
        if (!p || p == MAP_FAILED) {
            SKIP("no room for %zu bytes of addresses", bytes);
            return;
        }
        float rows[2][V], out[6], dlp[2] = {1, 1};
        for (int v = 0; v < V; v++) rows[0][v] = 0, rows[1][v] = v == 5 ? 3 : 0;
        int32_t targets[2] = {5, 5};
        Mat logits = {p, 2, V, stride, F32, 0}, m[5];
        for (int i = 0; i < 5; i++) m[i] = mat(d->alloc(8), 2, 1, i == 3 ? I32 : F32);
        for (int i = 0; i < 2; i++)
            if (host) memcpy(mat_at(logits, i, 0), rows[i], sizeof rows[i]);
            else d->upload(mat_rows(logits, i, 1), mat(rows[i], 1, V, F32));
        d->upload(m[3], mat(targets, 2, 1, I32)), d->upload(m[4], mat(dlp, 2, 1, F32));
        logprob_forward_backward(d, logits, m[0], m[1], m[2], logits, m[3], m[4], 1);
        d->download(mat(out, 2, 1, F32), m[0]);
        EXPECT_NEAR(out[0], -log(V), 1e-5);
        EXPECT_NEAR(out[1], 3 - log(V - 1 + exp(3)), 1e-5);
        d->sync();
        if (host) memcpy(rows[1], mat_at(logits, 1, 0), sizeof rows[1]);
        else d->download(mat(rows[1], 1, V, F32), mat_rows(logits, 1, 1));
        EXPECT_NEAR(rows[1][5], 1 - exp(3) / (V - 1 + exp(3)), 1e-5);
        for (int i = 0; i < 5; i++) d->release(m[i].p);
        if (host) munmap(p, bytes);
        else d->release(p);
    }
}

static void call_sample(const Ops *d, const Mat *m, const void *ctx) {
    sample(d, m[0], m[2], m[1], m[3], m[4], *(const SampleParams *)ctx);
}
static void check_sample(int64_t V, float levels, SampleParams p, bool seen) {
    enum { N = 6 };
    int64_t words = (V + 31) / 32;
    float *logits = malloc((size_t)(N * V) * 4);
    for (int64_t i = 0; i < N * V; i++) { // with levels, rounded so that many are equal, zeros of both signs among them
        logits[i] = 6 * random_value(99 + (uint64_t)V, i);
        if (levels < 0) logits[i] = i % 2 ? -0.0f : 0.0f; // equal, though their bits differ
        if (levels > 0) logits[i] = roundf(logits[i] * levels) / levels;
        if (i % 7 == 3 && V > 1) logits[i] = -INFINITY;
    }
    int32_t *bits = calloc((size_t)(N * words), 4), streams[N] = {0, 1, -1, 7, 7, 123456},
            steps[N] = {0, 0, 3, 7, 8, 1 << 20};
    for (int64_t i = 0; i < N * V; i += 3) bits[i / V * words + i % V / 32] ^= (int32_t)(1u << (i % V % 32));
    char what[200];
    snprintf(what, sizeof what, "sample V %lld levels %g do_sample %d penalty %g T %g k %d p %g min %g", (long long)V,
             levels, p.do_sample, (double)p.repetition_penalty, (double)p.temperature, p.top_k, (double)p.top_p,
             (double)p.min_p);
    check((Case){what,
                 {{OUT, N, 1, 1, I32, NULL, false},
                  {INOUT, N, words, 2, I32, bits, !seen},
                  {IN, N, V, 3, F32, logits, false},
                  {IN, N, 1, 0, I32, streams, false},
                  {IN, N, 1, 1, I32, steps, false}},
                 call_sample,
                 &p,
                 0});
    free(logits), free(bits);
}
TEST(sampling_draws_the_reference_tokens) {
    static const int64_t sizes[] = {1, 5, 33, 1000};
    static const SampleParams settings[] = {
        {.do_sample = 0, .repetition_penalty = 1, .temperature = 1, .top_p = 1},
        {.do_sample = 0, .repetition_penalty = 1.3f, .temperature = 1, .top_p = 1},
        {.do_sample = 1, .repetition_penalty = 1, .temperature = 1, .top_p = 1, .seed = 1},
        {.do_sample = 1, .repetition_penalty = 1.05f, .temperature = 0.7f, .top_p = 1, .top_k = 3, .seed = 2},
        {.do_sample = 1, .repetition_penalty = 1.05f, .temperature = 3, .top_p = 0.8f, .seed = 3},
        {.do_sample = 1, .repetition_penalty = 1, .temperature = 2, .top_p = 0.5f, .top_k = 40, .seed = 4},
        {.do_sample = 1, .repetition_penalty = 1, .temperature = 1.5f, .top_p = 1, .min_p = 0.2f, .seed = 5},
        {.do_sample = 1,
         .repetition_penalty = 0.8f,
         .temperature = 5,
         .top_p = 0.95f,
         .top_k = 500,
         .min_p = 0.1f,
         .seed = 6},
        {.do_sample = 1, .repetition_penalty = 1, .temperature = 1e-6f, .top_p = 1, .top_k = 50, .seed = 7},
        {.do_sample = 1, .repetition_penalty = 1, .temperature = 1, .top_p = 0, .top_k = 0, .seed = UINT64_MAX},
        {.do_sample = 1, .repetition_penalty = 1, .temperature = 50, .top_p = 0.25f, .top_k = 1 << 30, .seed = 9},
    };
    for (int s = 0; s < COUNT(sizes); s++)
        for (int i = 0; i < COUNT(settings); i++)
            for (int levels = 0; levels < 2; levels++)
                check_sample(sizes[s], (float)levels, settings[i], settings[i].repetition_penalty != 1 || i % 2);
    check_sample(20011, 2, settings[5], true);
    for (int i = 0; i < COUNT(settings); i++) check_sample(100, -1, settings[i], true);
}

// ---------------------------------------------------------------------------------------------------------------- step

static void call_sum_squares(const Ops *d, const Mat *m, const void *ctx) { (void)ctx, sum_squares(d, m[0], m[1]); }
TEST(squares_are_summed_in_double) {
    static const int64_t shapes[][2] = {{1, 1}, {1, 31}, {127, 33}, {33, 127}, {1, 70001}, {600, 3}};
    for (int t = 0; t < 2; t++)
        for (int s = 0; s < COUNT(shapes); s++)
            for (int64_t pad = 0; pad < 6; pad += 5)
                check((Case){"sum_squares",
                             {{OUT, 1, 1, pad, F32, NULL, false},
                              {IN, shapes[s][0], shapes[s][1], pad, act_types[t], NULL, false}},
                             call_sum_squares,
                             NULL,
                             0.01}); // 1e-7: the one rounding of the result
    const Ops *d = cuda();
    // 2^24 + 1 + 1 + ...: sums in fp32 would stay at 2^24 in any order that meets the large one early
    enum { N = 3000 };
    static float x[N];
    for (int i = 0; i < N; i++) x[i] = i ? 1 : 4096;
    Mat m = mat(d->alloc(sizeof x), 1, N, F32), out = mat(d->alloc(4), 1, 1, F32);
    float got;
    d->upload(m, mat(x, 1, N, F32));
    for (int e = 0; e < 3; e++) { // as it is; an empty view; with a NaN
        if (e == 2) x[N - 1] = NAN, d->upload(m, mat(x, 1, N, F32));
        sum_squares(d, out, e == 1 ? mat_rows(m, 0, 0) : m);
        d->download(mat(&got, 1, 1, F32), out);
        EXPECT(e == 0 ? got == 16777216.0f + 3000 : e == 1 ? got == 0 : isnan(got));
    }
    d->release(m.p), d->release(out.p);
}

static void call_adamw(const Ops *d, const Mat *m, const void *ctx) {
    for (int i = 0; i < 3; i++) adamw(d, m[0], m[1], m[2], m[3], ((const AdamStep *)ctx)[i]);
}
TEST(adamw_takes_the_steps_of_the_reference) {
    AdamStep steps[3];
    for (int t = 1; t <= 3; t++) // the first steps, clipped; then a later one without decay
        steps[t - 1] = (AdamStep){.grad_scale = t == 2 ? 0.3 : 1,
                                  .lr = 1e-2 * t,
                                  .decay = t == 3 ? 0 : 0.1,
                                  .beta1 = 0.9,
                                  .beta2 = 0.999,
                                  .eps = 1e-8,
                                  .step_size = 1e-2 * t / (1 - pow(0.9, t)),
                                  .root_scale = 1 / sqrt(1 - pow(0.999, t))};
    static const int64_t shapes[][2] = {{1, 1}, {31, 33}, {2, 300}, {1, 2500}};
    for (int s = 0; s < COUNT(shapes); s++) {
        int64_t N = shapes[s][0], C = shapes[s][1];
        float *squares = malloc((size_t)(N * C) * 4);
        for (int64_t i = 0; i < N * C; i++) squares[i] = i % 7 ? 0.1f * fabsf(random_value(5, i)) : 0;
        check((Case){"adamw",
                     {{INOUT, N, C, s, F32, NULL, false},
                      {INOUT, N, C, 2, F32, NULL, false},
                      {INOUT, N, C, 0, F32, squares, false},
                      {IN, N, C, s, F32, NULL, false}},
                     call_adamw,
                     steps,
                     0.02}); // 2e-7: both compute in double and round three times
        free(squares);
    }
}

// --------------------------------------------------------------------------------------------------------- all together

// One decoder block with adapters and dropout, forward and backward, as training calls it: views into joined tensors,
// gradients that add, a mask made twice. Returns how many numbers the gradients have; they are written to out.
enum { MAX_GRADIENTS = 40 };
typedef struct Gradients {
    const Ops *d;
    Type weight_type;
    uint64_t stream;
    Mat made[2 * MAX_GRADIENTS], wanted[MAX_GRADIENTS];
    int n_made, n_wanted;
} Gradients;
static Mat random_on(Gradients *g, int64_t rows, int64_t cols, Type type, float size) {
    Mat host = mat(malloc((size_t)(rows * cols) * 4), rows, cols, type), dev = host;
    g->stream++;
    for (int64_t i = 0; i < rows * cols; i++) {
        float r = size * random_value(g->stream, i);
        store(host, i / cols, i % cols, &r);
    }
    dev.p = g->d->alloc((size_t)(rows * cols) * type_size(type));
    g->d->upload(dev, host);
    free(host.p);
    return g->made[g->n_made++] = dev;
}
static Weight trained(Gradients *g, int64_t rows, int64_t cols, float size) {
    Weight w = {random_on(g, rows, cols, g->weight_type, size), random_on(g, rows, cols, F32, 0)};
    g->wanted[g->n_wanted++] = w.d;
    return w;
}
static Linear trained_linear(Gradients *g, int64_t out, int64_t in, bool bias, uint32_t site) {
    Linear l = {.w = trained(g, out, in, 1.7f / sqrtf((float)in))};
    if (bias) l.b = trained(g, 1, out, 0.3f);
    l.lora = (Lora){.scale = 0.5f, .dropout = site % 2 ? 0.25f : 0, .site = site};
    l.lora.a = trained(g, 8, in, 1.7f / sqrtf((float)in)), l.lora.b = trained(g, out, 8, 0.6f);
    return l;
}
static int64_t block_gradients(const Ops *d, Type act, Type weights, float *out, int64_t sizes[MAX_GRADIENTS]) {
    static const Span group[] = {{0, 13, 0, 0, 1}, {13, 24, 0, 13, 1}, {24, 37, 0, 13, 1}};
    enum { N = 37, C = 48, HEADS = 4, KV = 2, DIM = 16, F = 40, RANK = 8 };
    BlockShape shape = {C, HEADS, KV, DIM, F, 1e-5f, RANK, true};
    Gradients g = {.d = d, .weight_type = weights};
    Mat x = random_on(&g, N, C, act, 1), y = random_on(&g, N, C, act, 0), dx = random_on(&g, N, C, act, 1);
    Block b = {.n_qkv = 3, .norm1 = trained(&g, 1, C, 1), .norm2 = trained(&g, 1, C, 1)};
    for (int i = 0; i < 3; i++) b.qkv[i] = trained_linear(&g, (i ? KV : HEADS) * DIM, C, true, (uint32_t)i);
    b.proj = trained_linear(&g, C, HEADS * DIM, false, 3), b.gate = trained_linear(&g, F, C, false, 4);
    b.up = trained_linear(&g, F, C, false, 5), b.down = trained_linear(&g, C, F, false, 7);
    float turns[N * DIM];
    int32_t keys[N * 2];
    for (int i = 0; i < N * DIM; i++) {
        double a = i / DIM * pow(10, -(i % (DIM / 2)) / 3.0);
        turns[i] = (float)(i % DIM < DIM / 2 ? cos(a) : sin(a));
    }
    for (int i = 0; i < N * 2; i++) keys[i] = i % 2 ? i / 2 : 3;
    Mat angles = random_on(&g, N, DIM, F32, 0), key = random_on(&g, N, 2, I32, 0);
    d->upload(angles, mat(turns, N, DIM, F32)), d->upload(key, mat(keys, N, 2, I32));
    Heads h = {0, 0, 0, 0, group, 3};
    Spans spans = spans_on(d, &h);
    Arena arena = {.role = "activations"};
    BlockScratch s;
    BlockGrad scratch;
    for (int pass = 0; pass < 2; pass++) {
        Err e = {0};
        if (pass) EXPECT(arena_reserve(&arena, d, arena.used, &e));
        block_scratch_place(&s, &arena, d, shape, N, true, NULL);
        block_grad_place(&scratch, &arena, d, shape, N);
    }
    s.lora.keys = key, s.lora.seed = 5;
    block_forward(d, &b, shape, s, y, x, angles, spans, NULL, NULL, NULL, NULL, NULL);
    block_backward(d, &b, shape, s, scratch, dx, x, angles, spans);
    Mat squares = random_on(&g, 1, 1, F32, 0), dx32 = random_on(&g, N, C, F32, 0);
    sum_squares(d, squares, b.down.w.d);
    cast(d, dx32, dx);
    g.wanted[g.n_wanted++] = dx32, g.wanted[g.n_wanted++] = squares;
    int64_t n = 0;
    for (int i = 0; i < g.n_wanted; i++) {
        Mat m = g.wanted[i];
        d->download(mat(out + n, m.rows, m.cols, F32), m);
        n += sizes[i] = m.rows * m.cols;
    }
    for (int i = 0; i < g.n_made; i++) d->release(g.made[i].p);
    d->release(spans.rows.p), arena_release(&arena, d);
    return g.n_wanted;
}
TEST(gradients_of_a_whole_block_are_those_of_the_reference) {
    enum { ROOM = 60000 };
    float *want = malloc(ROOM * 4), *got = malloc(ROOM * 4), *again = malloc(ROOM * 4);
    int64_t sizes[MAX_GRADIENTS];
    // F32; bf16 activations beside bf16 weights, or beside F32 weights. bf16 rounds after every op: some 1 % together.
    static const Type types[3][2] = {{F32, F32}, {BF16, BF16}, {BF16, F32}};
    for (int t = 0; t < 3; t++) {
        int64_t n = block_gradients(ops_ref(), F32, types[t][1], want, sizes);
        for (int run = 0; run < 2; run++) {
            if (cuda_emu_schedule) cuda_emu_schedule(run ? 2 : 0, !run);
            EXPECT_INT(block_gradients(cuda(), types[t][0], types[t][1], run ? again : got, sizes), n);
        }
        int64_t at = 0;
        for (int64_t i = 0; i < n; at += sizes[i++]) {
            char what[60];
            snprintf(what, sizeof what, "gradient %d of types %d", (int)i, t);
            EXPECT_CLOSE(what, got + at, want + at, sizes[i], types[t][0] == F32 ? 1e-5 : 3e-2);
        }
        EXPECT(at <= ROOM && !memcmp(got, again, (size_t)at * 4));
    }
    free(want), free(got), free(again);
}

// Its softmax is 1 whatever the score, so the true gradient is 0. A rounding in its place would be a direction to Adam.
TEST(a_query_that_sees_one_key_has_exactly_no_gradient) {
    enum { N = 9, HEADS = 2, MAX = N * HEADS * 19 };
    const Span spans[] = {{0, 1, 0, 0, 0}, {1, 2, 0, 0, 1}, {2, 5, 0, 0, 1}, {5, 6, 0, 0, 0}, {6, 9, 0, 0, 0}};
    static const int alone[N] = {1, 1, 1, 0, 0, 1, 0, 0, 0}; // rows; row 2 is the first of a causal span
    Err e = {0};
    const Ops *devices[] = {ops_ref(), ops_cpu(), ops_cuda(F32, &e), ops_cuda(BF16, &e)};
    for (int k = 0; k < 4; k++) { // the last on tensor cores
        const Ops *d = devices[k];
        Type type = k == 3 ? BF16 : F32;
        int64_t dim = k == 3 ? 16 : 19;
        float buffer[MAX];
        Mat m[10]; // dq dk dv delta dout q k v o lse
        for (int i = 0; i < 10; i++) {
            bool of_heads = i == 3 || i == 9;
            Mat host = mat(buffer, N, of_heads ? HEADS : HEADS * dim, of_heads ? F32 : type);
            m[i] = host, m[i].p = d->alloc(sizeof buffer);
            for (int64_t j = 0; j < N * host.cols; j++) {
                float r = (float)(4 * random_uniform(31, RANDOM_TEST, (uint64_t)i, (uint32_t)j) - 2);
                store(host, j / host.cols, j % host.cols, &r);
            }
            d->upload(m[i], host);
        }
        Mat rows = mat(d->alloc(sizeof spans), 5, 5, I32);
        d->upload(rows, mat((void *)(uintptr_t)spans, 5, 5, I32));
        Spans s = {rows, spans, 5, 3};
        attention_forward(d, m[8], m[9], m[5], m[6], m[7], s, HEADS, HEADS, dim, 0.3f);
        attention_backward(d, m[0], m[1], m[2], m[3], m[4], m[5], m[6], m[7], m[8], m[9], s, HEADS, HEADS, dim, 0.3f);
        for (int which = 0; which < 2; which++) {
            Mat host = mat(buffer, N, HEADS * dim, type);
            d->download(host, m[which]);
            for (int row = 0; row < N; row++) {
                if (which == 1 && row == 2) continue; // its key is seen by the rows behind it
                bool zero = true;
                for (int64_t c = 0; c < host.cols; c++) zero = zero && load(host, row, c) == 0;
                if (zero != (alone[row] == 1))
                    FAIL("%s: %s of row %d is %szero", d->name, which ? "dk" : "dq", row, zero ? "" : "not ");
            }
        }
        for (int i = 0; i < 10; i++) d->release(m[i].p);
        d->release(rows.p);
    }
}
