// test_cpu.c - every fast row of cpu.c against the reference: odd sizes, views with gaps, weights at odd addresses, guards
// around everything, every instruction set that runs here, 1 to 8 threads; rows alone and in company; the thread pool.
#include "test.h"
#include <stdatomic.h>
#include <sys/wait.h>

static const char *const isas[] = {"scalar", "avx2", "avx2x16", "avx512"};
static const int thread_counts[] = {1, 2, 3, 8};
enum { ISAS = 4, THREADS = 4, GUARD = 64, POISON = 0xA5 };

// A view inside a poisoned block: rows may have gaps between them, and the first element may be misaligned.
typedef struct Buffer {
    Mat m;
    char *block;
    size_t bytes, offset;
} Buffer;

static Buffer buffer(int64_t rows, int64_t cols, int64_t gap, Type type, size_t misalign) {
    Buffer b = {.offset = GUARD + misalign};
    b.bytes = (size_t)(rows * (cols + gap)) * type_size(type) + 2 * GUARD + misalign;
    b.block = alloc_or_die(1, b.bytes, "test");
    memset(b.block, POISON, b.bytes);
    b.m = mat(b.block + b.offset, rows, cols, type), b.m.stride = cols + gap;
    return b;
}
static float value(uint32_t seed, int64_t i, int64_t j) {
    return (float)(random_uniform(seed, RANDOM_TEST, (uint64_t)i, (uint32_t)j) * 2 - 1);
}
static Buffer random_buffer(int64_t rows, int64_t cols, int64_t gap, Type type, size_t misalign, uint32_t seed) {
    Buffer b = buffer(rows, cols, gap, type, misalign);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j++) {
            float f = value(seed, i, j);
            uint16_t h = f32_to_bf16(f);
            if (type == BF16) memcpy(mat_at(b.m, i, j), &h, 2);
            else memcpy(mat_at(b.m, i, j), &f, 4);
        }
    return b;
}
static Buffer ints(int64_t rows, int64_t below, uint32_t seed) {
    Buffer b = buffer(rows, 1, 0, I32, 0);
    for (int64_t i = 0; i < rows; i++)
        *(int32_t *)mat_at(b.m, i, 0) = (int32_t)(fabs(value(seed, i, 0)) * (double)below) - (i % 5 == 4);
    return b;
}
static Buffer none(void) { return (Buffer){.m = mat_none()}; }
static Buffer clone(Buffer b) {
    if (!b.block) return b;
    Buffer c = b;
    c.block = alloc_or_die(1, b.bytes, "test");
    memcpy(c.block, b.block, b.bytes);
    c.m.p = c.block + c.offset;
    return c;
}
static void drop(Buffer *b, int n) {
    for (int i = 0; i < n; i++) free(b[i].block), b[i].block = NULL;
}
// Every byte outside the view is still poison.
static bool guarded(Buffer b) {
    if (!b.block) return true;
    size_t size = type_size(b.m.type), row = (size_t)b.m.stride * size, used = (size_t)b.m.cols * size;
    for (size_t k = 0; k < b.bytes; k++) {
        bool inside = k >= b.offset && k < b.offset + (size_t)b.m.rows * row && (k - b.offset) % row < used;
        if (!inside && (unsigned char)b.block[k] != POISON) return false;
    }
    return true;
}
// The view without its gaps.
static float *packed(Buffer b) {
    float *p = alloc_or_die((size_t)(b.m.rows * b.m.cols) + 1, sizeof *p, "test");
    for (int64_t i = 0; i < b.m.rows; i++) memcpy(p + i * b.m.cols, mat_at(b.m, i, 0), (size_t)b.m.cols * 4);
    return p;
}

// Runs an op on the reference and, for every instruction set and thread count, on cpu: outputs close to the reference,
// equal bits at every thread count, nothing written outside the outputs' views, inputs untouched.
typedef void (*RunOp)(const Ops *d, Buffer *b, const void *arg);
static void against_reference(const char *what, RunOp run, const void *arg, Buffer *b, int n, unsigned outputs,
                              double limit) {
    Buffer want[8], got[8];
    for (int i = 0; i < n; i++) want[i] = clone(b[i]);
    run(ops_ref(), want, arg);
    for (int s = 0; s < ISAS; s++) {
        if (!cpu_isa_set(isas[s])) continue;
        Buffer first[8];
        for (int t = 0; t < THREADS; t++) {
            pool_start(thread_counts[t]);
            for (int i = 0; i < n; i++) got[i] = clone(b[i]);
            run(ops_cpu(), got, arg);
            for (int i = 0; i < n; i++) {
                if (!got[i].block) continue;
                if (!guarded(got[i])) FAIL("%s on %s: wrote outside of argument %d", what, isas[s], i);
                if (!(outputs >> i & 1)) {
                    if (memcmp(got[i].block, b[i].block, b[i].bytes))
                        FAIL("%s on %s: changed input %d", what, isas[s], i);
                } else if (t == 0 && got[i].m.type == F32) {
                    char name[200];
                    float *g = packed(got[i]), *w = packed(want[i]);
                    snprintf(name, sizeof name, "%s on %s, output %d", what, isas[s], i);
                    EXPECT_CLOSE(name, g, w, got[i].m.rows * got[i].m.cols, limit);
                    free(g), free(w);
                }
                if (t > 0 && memcmp(got[i].block, first[i].block, got[i].bytes))
                    FAIL("%s on %s: %d threads changed bits of argument %d", what, isas[s], thread_counts[t], i);
            }
            if (t == 0) memcpy(first, got, sizeof first);
            else drop(got, n);
        }
        drop(first, n);
    }
    cpu_isa_set(NULL);
    pool_start(2);
    drop(want, n), drop(b, n);
}

// ------------------------------------------------------------------------------------------------------------ matmul

typedef struct MatmulArg {
    Layout layout;
    float alpha, beta;
} MatmulArg;
static void run_matmul(const Ops *d, Buffer *b, const void *arg) {
    const MatmulArg *a = arg;
    matmul(d, b[0].m, b[1].m, b[2].m, a->layout, a->alpha, a->beta);
}
static void matmul_case(Layout layout, int64_t I, int64_t J, int64_t K, Type type, float beta, int64_t gap,
                        size_t misalign) {
    MatmulArg arg = {layout, beta == 0 ? 1.0f : 0.75f, beta};
    char what[120];
    snprintf(what, sizeof what, "matmul layout %d, %lldx%lldx%lld %s", layout, (long long)I, (long long)J, (long long)K,
             type_name(type));
    Buffer b[3] = {random_buffer(I, J, gap, F32, 0, 1),
                   layout == TN ? random_buffer(K, I, gap, F32, 0, 2) : random_buffer(I, K, gap, F32, 0, 2),
                   layout == NT ? random_buffer(J, K, gap, type, misalign, 3)
                                : random_buffer(K, J, gap, type, misalign, 3)};
    if (beta == 0) // then the old y may be anything
        for (int64_t i = 0; i < I; i++) memset(mat_at(b[0].m, i, 0), 0xFF, (size_t)J * 4);
    against_reference(what, run_matmul, &arg, b, 3, 1, 2e-6);
}

TEST(matmul_is_the_reference_at_odd_sizes) {
    static const int64_t sizes[][3] = {{1, 1, 1},    {1, 31, 33},  {1, 127, 1176}, {2, 33, 513},   {3, 5, 1280},
                                       {7, 100, 31}, {13, 33, 64}, {31, 127, 130}, {33, 10, 3420}, {300, 101, 33}};
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++)
        for (int type = F32; type <= BF16; type++)
            matmul_case(NT, sizes[k][0], sizes[k][1], sizes[k][2], (Type)type, k % 2 ? 1.0f : 0.0f, k % 3 ? 3 : 0,
                        type == BF16 ? 2 * (k % 2) : 0);
}
TEST(matmul_backward_layouts_are_the_reference) {
    static const int64_t sizes[][3] = {{1, 1, 1},      {1, 31, 33},   {5, 33, 127}, {40, 17, 600}, {127, 130, 31},
                                       {3, 257, 1000}, {33, 65, 200}, {100, 3, 77}, {13, 300, 385}};
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++)
        for (int type = F32; type <= BF16; type++) {
            matmul_case(NN, sizes[k][0], sizes[k][1], sizes[k][2], (Type)type, k % 2 ? 0.0f : 0.5f, 1, 0);
            matmul_case(TN, sizes[k][0], sizes[k][1], sizes[k][2], (Type)type, k % 2 ? 1.0f : 0.0f, k % 3, 0);
            matmul_case(TN, sizes[k][0], sizes[k][1], sizes[k][2], (Type)type, 0.5f, 2, type == BF16 ? 1 : 2);
        }
}
// The shapes of LoRA: rank r beside wide matrices, in all layouts.
TEST(thin_products_are_the_reference) {
    static const int64_t ranks[] = {1, 4, 8, 13, 64};
    for (size_t k = 0; k < sizeof ranks / sizeof *ranks; k++) {
        int64_t r = ranks[k], N = 131, C = 167;
        matmul_case(NT, N, r, C, F32, 0, 1, 0);
        matmul_case(NT, N, C, r, F32, 1, 0, 2);
        matmul_case(NT, 1, C, r, F32, 1, 0, 0);
        matmul_case(NN, N, r, C, F32, 0, 3, 0);
        matmul_case(NN, N, C, r, F32, 1, 0, 0);
        matmul_case(TN, r, C, N, F32, 1, 1, 0);
        matmul_case(TN, C, r, N, F32, 1, 1, 0);
    }
}
TEST(weights_may_start_at_any_address) {
    matmul_case(NT, 1, 40, 1176, BF16, 0, 0, 1);
    matmul_case(NT, 40, 40, 77, BF16, 0, 5, 1);
    matmul_case(NT, 3, 9, 100, F32, 0, 0, 2);
}

TEST(a_row_alone_and_in_a_batch_has_the_same_bits) {
    static const int64_t batches[] = {2, 5, 8, 13, 64, 200}, Ks[] = {33, 192, 1176, 3420};
    enum { J = 37, MOST = 200 };
    for (int s = 0; s < ISAS; s++) {
        if (!cpu_isa_set(isas[s])) continue;
        for (int type = F32; type <= BF16; type++)
            for (int k = 0; k < 4; k++) {
                Buffer x = random_buffer(MOST, Ks[k], 1, F32, 0, 5), w = random_buffer(J, Ks[k], 0, (Type)type, 0, 6);
                Buffer alone = random_buffer(MOST, J, 0, F32, 0, 7), y = buffer(MOST, J, 0, F32, 0);
                for (int64_t i = 0; i < MOST; i++)
                    matmul(ops_cpu(), mat_rows(alone.m, i, 1), mat_rows(x.m, i, 1), w.m, NT, 1, 0);
                for (int n = 0; n < 6; n++) {
                    matmul(ops_cpu(), mat_rows(y.m, 0, batches[n]), mat_rows(x.m, MOST - batches[n], batches[n]), w.m,
                           NT, 1, 0);
                    if (memcmp(y.m.p, mat_at(alone.m, MOST - batches[n], 0), (size_t)(batches[n] * J) * 4))
                        FAIL("%s: a batch of %d rows differs, K %d", isas[s], (int)batches[n], (int)Ks[k]);
                }
                Buffer all[] = {x, w, alone, y};
                drop(all, 4);
            }
    }
    cpu_isa_set(NULL);
}

// So has a row of an input gradient.
TEST(a_gradient_row_alone_and_in_a_batch_has_the_same_bits) {
    static const int64_t shapes[][2] = {{40, 8}, {65, 300}, {300, 64}, {7, 1000}}; // columns, inner
    enum { MOST = 101 };
    for (int s = 0; s < ISAS; s++) {
        if (!cpu_isa_set(isas[s])) continue;
        for (int k = 0; k < 4; k++) {
            int64_t J = shapes[k][0], K = shapes[k][1];
            Buffer dy = random_buffer(MOST, K, 1, F32, 0, 5), w = random_buffer(K, J, 0, F32, 0, 6);
            Buffer alone = buffer(MOST, J, 0, F32, 0), dx = buffer(MOST, J, 0, F32, 0);
            for (int64_t i = 0; i < MOST; i++)
                matmul(ops_cpu(), mat_rows(alone.m, i, 1), mat_rows(dy.m, i, 1), w.m, NN, 1, 0);
            matmul(ops_cpu(), dx.m, dy.m, w.m, NN, 1, 0);
            if (memcmp(dx.m.p, alone.m.p, (size_t)(MOST * J) * 4)) FAIL("%s: shape %d: a batch differs", isas[s], k);
            Buffer all[] = {dy, w, alone, dx};
            drop(all, 4);
        }
    }
    cpu_isa_set(NULL);
}

// Controls: the checks above can fail. Another order of summation changes bits; one wrong element breaks the limit.
TEST(control_the_checks_see_a_changed_order_and_a_changed_element) {
    Buffer x = random_buffer(9, 1176, 0, F32, 0, 1), w = random_buffer(40, 1176, 0, F32, 0, 2);
    Buffer y = buffer(9, 40, 0, F32, 0), z = buffer(9, 40, 0, F32, 0);
    cpu_isa_set("scalar");
    matmul(ops_cpu(), y.m, x.m, w.m, NT, 1, 0);
    if (cpu_isa_set("avx2")) {
        matmul(ops_cpu(), z.m, x.m, w.m, NT, 1, 0);
        EXPECT(memcmp(y.m.p, z.m.p, 9 * 40 * 4) != 0); // 4 lanes and 8 lanes add in different orders
    }
    cpu_isa_set(NULL);
    matmul(ops_ref(), z.m, x.m, w.m, NT, 1, 0);
    float *got = y.m.p, *want = z.m.p;
    EXPECT(error_within(tensor_error(got, want, 360), 2e-6));
    float keep = got[77];
    got[77] = got[78];
    EXPECT(!error_within(tensor_error(got, want, 360), 2e-6));
    got[77] = NAN;
    EXPECT(!error_within(tensor_error(got, want, 360), 2e-6));
    got[77] = keep;
    EXPECT(guarded(y));
    ((char *)mat_at(y.m, 8, 39))[4] = 0;
    EXPECT(!guarded(y));
    Buffer all[] = {x, w, y, z};
    drop(all, 4);
}

TEST(an_infinite_weight_stays_in_its_column) {
    Buffer x = random_buffer(20, 100, 0, F32, 0, 1), w = random_buffer(9, 100, 0, F32, 0, 2),
           y = buffer(20, 9, 0, F32, 0);
    *(float *)mat_at(w.m, 4, 99) = INFINITY;
    *(float *)mat_at(x.m, 7, 3) = NAN;
    matmul(ops_cpu(), y.m, x.m, w.m, NT, 1, 0);
    for (int64_t i = 0; i < 20; i++)
        for (int64_t j = 0; j < 9; j++) {
            float f = *(float *)mat_at(y.m, i, j);
            EXPECT_INT(isfinite(f) != 0, i != 7 && j != 4);
            EXPECT_INT(isnan(f) != 0, i == 7);
        }
    Buffer all[] = {x, w, y};
    drop(all, 3);
    // a gradient of weights: row i of dw belongs to column i of dy, column j to column j of x; a NaN stays in its row,
    // an infinity in its column
    Buffer dy = random_buffer(70, 20, 0, F32, 0, 1), in = random_buffer(70, 40, 0, F32, 0, 2),
           dw = random_buffer(20, 40, 0, F32, 0, 3);
    *(float *)mat_at(dy.m, 69, 7) = NAN;
    *(float *)mat_at(in.m, 3, 4) = INFINITY;
    matmul(ops_cpu(), dw.m, dy.m, in.m, TN, 1, 1);
    for (int64_t i = 0; i < 20; i++)
        for (int64_t j = 0; j < 40; j++) {
            float f = *(float *)mat_at(dw.m, i, j);
            EXPECT_INT(isfinite(f) != 0, i != 7 && j != 4);
            EXPECT_INT(isnan(f) != 0, i == 7);
        }
    Buffer more[] = {dy, in, dw};
    drop(more, 3);
}

// ---------------------------------------------------------------------------------------------------- rows of numbers

static const int64_t row_sizes[][2] = {{0, 8}, {1, 1}, {1, 2048}, {3, 31}, {5, 127}, {40, 1280}, {9, 3420}};
enum { ROW_SIZES = 7 };
#define EACH_SIZE(N, C)                                                                                                \
    for (int k_ = 0; k_ < ROW_SIZES; k_++)                                                                             \
        for (int64_t N = row_sizes[k_][0], C = row_sizes[k_][1], once_ = 1; once_; once_ = 0)

static void run_add(const Ops *d, Buffer *b, const void *arg) { (void)arg, add(d, b[0].m, b[1].m, b[2].m); }
static void run_add_in_place(const Ops *d, Buffer *b, const void *arg) { (void)arg, add(d, b[0].m, b[0].m, b[1].m); }
static void run_add_bias(const Ops *d, Buffer *b, const void *arg) { (void)arg, add_bias(d, b[0].m, b[1].m); }
TEST(add_and_add_bias_are_the_reference) {
    EACH_SIZE(N, C) {
        Buffer b[] = {buffer(N, C, 3, F32, 0), random_buffer(N, C, 0, F32, 0, 1), random_buffer(N, C, 1, F32, 0, 2)};
        against_reference("add", run_add, NULL, b, 3, 1, 1e-7);
        Buffer c[] = {random_buffer(N, C, 3, F32, 0, 1), random_buffer(N, C, 1, F32, 0, 2)};
        against_reference("add in place", run_add_in_place, NULL, c, 2, 1, 1e-7);
        for (int type = F32; type <= BF16; type++) {
            Buffer e[] = {random_buffer(N, C, 3, F32, 0, 1), random_buffer(1, C, 0, (Type)type, type == BF16, 2)};
            against_reference("add_bias", run_add_bias, NULL, e, 2, 1, 1e-7);
        }
    }
}

static void run_rmsnorm(const Ops *d, Buffer *b, const void *arg) {
    (void)arg, rmsnorm_forward(d, b[0].m, b[1].m, b[2].m, b[3].m, 1e-6f);
}
static void run_add_rmsnorm(const Ops *d, Buffer *b, const void *arg) {
    (void)arg, add_rmsnorm_forward(d, b[0].m, b[1].m, b[2].m, b[3].m, b[4].m, b[5].m, 1e-6f);
}
static void run_add_rmsnorm_in_place(const Ops *d, Buffer *b, const void *arg) {
    (void)arg, add_rmsnorm_forward(d, b[0].m, b[1].m, b[2].m, b[2].m, b[3].m, b[4].m, 1e-6f);
}
TEST(rmsnorm_is_the_reference) {
    EACH_SIZE(N, C)
    for (int type = F32; type <= BF16; type++) {
        Buffer w = random_buffer(1, C, 0, (Type)type, type == BF16, 9);
        Buffer b[] = {buffer(N, C, 3, F32, 0), k_ % 2 ? none() : buffer(N, 1, 0, F32, 0),
                      random_buffer(N, C, 1, F32, 0, 2), clone(w)};
        against_reference("rmsnorm", run_rmsnorm, NULL, b, 4, 3, 1e-6);
        Buffer c[] = {buffer(N, C, 3, F32, 0),           buffer(N, 1, 2, F32, 0),           buffer(N, C, 1, F32, 0),
                      random_buffer(N, C, 1, F32, 0, 2), random_buffer(N, C, 0, F32, 0, 3), clone(w)};
        against_reference("add_rmsnorm", run_add_rmsnorm, NULL, c, 6, 7, 1e-6);
        Buffer e[] = {buffer(N, C, 3, F32, 0), none(), random_buffer(N, C, 1, F32, 0, 2),
                      random_buffer(N, C, 0, F32, 0, 3), w};
        against_reference("add_rmsnorm in place", run_add_rmsnorm_in_place, NULL, e, 5, 5, 1e-6);
    }
}

// A matrix as the backward of something meets it: sizes as above, and long columns.
static const int64_t column_sizes[][2] = {{0, 8},     {1, 1},    {1, 31},    {3, 33},
                                          {127, 127}, {300, 65}, {33, 1280}, {64, 64}};
#define EACH_COLUMN_SIZE(N, C)                                                                                         \
    for (int k_ = 0; k_ < 8; k_++)                                                                                     \
        for (int64_t N = column_sizes[k_][0], C = column_sizes[k_][1], once_ = 1; once_; once_ = 0)

static void run_bias_backward(const Ops *d, Buffer *b, const void *arg) { (void)arg, bias_backward(d, b[0].m, b[1].m); }
TEST(bias_backward_adds_to_what_is_there) {
    EACH_COLUMN_SIZE(N, C) {
        Buffer b[] = {random_buffer(1, C, 0, F32, 0, 1), random_buffer(N, C, 3, F32, 0, 2)};
        against_reference("bias_backward", run_bias_backward, NULL, b, 2, 1, 1e-6);
        Buffer c[] = {random_buffer(1, C, 0, F32, 0, 1), random_buffer(N, C, 3, BF16, 0, 2)};
        against_reference("bias_backward of bf16", run_bias_backward, NULL, c, 2, 1, 1e-6);
    }
}

static void run_rmsnorm_backward(const Ops *d, Buffer *b, const void *arg) {
    (void)arg, rmsnorm_backward_add(d, b[0].m, b[1].m, b[2].m, b[3].m, b[4].m, b[5].m);
}
TEST(rmsnorm_backward_is_the_reference_and_adds) {
    EACH_COLUMN_SIZE(N, C)
    for (int type = F32; type <= BF16; type++)
        for (int frozen = 0; frozen < 2; frozen++) {
            Buffer b[] = {random_buffer(N, C, 3, F32, 0, 1),
                          frozen ? none() : random_buffer(1, C, 0, F32, 0, 2),
                          random_buffer(N, C, 1, F32, 0, 3),
                          random_buffer(N, C, 0, F32, 0, 4),
                          random_buffer(1, C, 0, (Type)type, type == BF16, 5),
                          random_buffer(N, 1, 1, F32, 0, 6)};
            against_reference("rmsnorm_backward_add", run_rmsnorm_backward, NULL, b, 6, 3, 2e-6);
        }
    Buffer b[] = {random_buffer(5, 33, 0, F32, 0, 1),  random_buffer(1, 33, 0, F32, 0, 2),
                  random_buffer(5, 33, 1, BF16, 0, 3), random_buffer(5, 33, 0, F32, 0, 4),
                  random_buffer(1, 33, 0, F32, 0, 5),  random_buffer(5, 1, 1, F32, 0, 6)};
    against_reference("rmsnorm_backward_add of bf16", run_rmsnorm_backward, NULL, b, 6, 3, 2e-6);
}

typedef struct DropoutArg {
    float p;
    uint64_t seed;
    uint32_t site;
} DropoutArg;
static void run_dropout(const Ops *d, Buffer *b, const void *arg) {
    const DropoutArg *a = arg;
    dropout(d, b[0].m, b[1].m, b[2].m, a->p, a->seed, a->site);
}
static void run_dropout_in_place(const Ops *d, Buffer *b, const void *arg) {
    const DropoutArg *a = arg;
    dropout(d, b[0].m, b[0].m, b[1].m, a->p, a->seed, a->site);
}
static Buffer keys_of(int64_t N) {
    Buffer b = buffer(N, 2, 1, I32, 0);
    for (int64_t i = 0; i < N; i++)
        *(uint32_t *)mat_at(b.m, i, 0) = (uint32_t)i * 77, *(uint32_t *)mat_at(b.m, i, 1) = 4000000000u + (uint32_t)i;
    return b;
}
// A wrong bit of the mask is an error of the size of an element: the limit sees one in a million.
TEST(dropout_drops_what_the_reference_drops) {
    static const DropoutArg args[] = {{0, 1, 0}, {0.1f, 0xFFFFFFFFFFFFFFFFu, 5}, {0.5f, 7, 0xFFFFFFu}, {0.999f, 3, 1}};
    EACH_COLUMN_SIZE(N, C)
    for (int k = 0; k < 4; k++) {
        Buffer b[] = {buffer(N, C, 3, F32, 0), random_buffer(N, C, 1, F32, 0, 1), keys_of(N)};
        against_reference("dropout", run_dropout, &args[k], b, 3, 1, 1e-7);
        Buffer c[] = {random_buffer(N, C, 1, F32, 0, 1), keys_of(N)};
        against_reference("dropout in place", run_dropout_in_place, &args[k], c, 2, 1, 1e-7);
        Buffer e[] = {buffer(N, C, 3, F32, 0), random_buffer(N, C, 1, BF16, 0, 1), keys_of(N)};
        against_reference("dropout of bf16", run_dropout, &args[k], e, 3, 1, 1e-7);
    }
}

static void run_sum_squares(const Ops *d, Buffer *b, const void *arg) { (void)arg, sum_squares(d, b[0].m, b[1].m); }
TEST(sum_squares_is_the_reference) {
    static const int64_t sizes[][2] = {{0, 3}, {1, 1}, {1, 33}, {600, 31}, {1, 70001}, {127, 513}};
    for (int k = 0; k < 6; k++)
        for (int gap = 0; gap < 3; gap += 2)
            for (int type = F32; type <= BF16; type++) {
                Buffer b[] = {buffer(1, 1, 0, F32, 0), random_buffer(sizes[k][0], sizes[k][1], gap, (Type)type, 0, 1)};
                against_reference("sum_squares", run_sum_squares, NULL, b, 2, 1, 1.2e-7); // one rounding of double
            }
}

static void run_adamw(const Ops *d, Buffer *b, const void *arg) {
    adamw(d, b[0].m, b[1].m, b[2].m, b[3].m, *(const AdamStep *)arg);
}
TEST(adamw_is_the_reference) {
    static const AdamStep steps[] = {{1, 1e-3, 0.1, 0.9, 0.999, 1e-8, 1e-2, 31.6},
                                     {0.25, 0.5, 0, 0, 0.5, 1e-3, 0.5, 1}};
    static const int64_t sizes[][2] = {{1, 1}, {1, 33}, {60, 31}, {1, 40001}, {127, 513}};
    for (int k = 0; k < 5; k++)
        for (int gap = 0; gap < 3; gap += 2)
            for (int n = 0; n < 2; n++) {
                int64_t N = sizes[k][0], C = sizes[k][1];
                Buffer b[] = {random_buffer(N, C, gap, F32, 0, 1), random_buffer(N, C, gap, F32, 0, 2),
                              random_buffer(N, C, gap, F32, 0, 3), random_buffer(N, C, 0, F32, 0, 4)};
                for (int64_t i = 0; i < N; i++)
                    for (int64_t j = 0; j < C; j++) {
                        float *v = mat_at(b[2].m, i, j), *g = mat_at(b[3].m, i, j);
                        *v *= *v; // a second moment is a mean of squares
                        if (j % 7 == 3) *g = 0, *v = 0;
                    }
                against_reference("adamw", run_adamw, &steps[n], b, 4, 7, 5e-7);
            }
}
// A decay of 1e-9 a step is far below the rounding of float: it must come through where w is about to round, not be
// lost in 1 - lr decay. 1000 elements of which each has its own distance to the next float.
TEST(adamw_does_not_lose_a_small_decay) {
    AdamStep step = {1, 1e-5, 4e-3, 0.9, 0.999, 1e-8, 0, 1}; // 1 - 4e-8 is 1 in float
    Buffer w = buffer(1, 1000, 0, F32, 0), m = buffer(1, 1000, 0, F32, 0), v = buffer(1, 1000, 0, F32, 0), g = clone(v);
    for (int i = 0; i < 1000; i++) ((float *)w.m.p)[i] = 1.0f + (float)i * 0x1p-10f;
    memset(m.m.p, 0, 4000), memset(v.m.p, 0, 4000), memset(g.m.p, 0, 4000);
    Buffer want = clone(w);
    adamw(ops_ref(), want.m, m.m, v.m, g.m, step);
    adamw(ops_cpu(), w.m, m.m, v.m, g.m, step);
    EXPECT(!memcmp(w.m.p, want.m.p, 4000));
    Buffer all[] = {w, m, v, g, want};
    drop(all, 5);
}

typedef struct HeadsArg {
    int64_t heads, kv_heads, dim;
    float sign;
    Spans spans;
} HeadsArg;
static void run_rope(const Ops *d, Buffer *b, const void *arg) {
    const HeadsArg *a = arg;
    rope(d, b[0].m, b[1].m, a->heads, a->dim, a->sign);
}
TEST(rope_is_the_reference) {
    static const HeadsArg shapes[] = {{.heads = 2, .dim = 128, .sign = 1},
                                      {.heads = 3, .dim = 80, .sign = -1},
                                      {.heads = 1, .dim = 2, .sign = 1},
                                      {.heads = 5, .dim = 34, .sign = 1}};
    for (int k = 0; k < 4; k++)
        for (int64_t N = 0; N < 40; N += 13) {
            Buffer b[] = {random_buffer(N, shapes[k].heads * shapes[k].dim, 7, F32, 0, 1),
                          random_buffer(N, shapes[k].dim, k, F32, 0, 2)};
            against_reference("rope", run_rope, &shapes[k], b, 2, 1, 1e-6);
        }
}

static void run_swiglu(const Ops *d, Buffer *b, const void *arg) {
    (void)arg, swiglu_forward(d, b[0].m, b[1].m, b[2].m);
}
static void run_gelu(const Ops *d, Buffer *b, const void *arg) { (void)arg, gelu_forward(d, b[0].m, b[1].m); }
TEST(swiglu_and_gelu_are_the_reference) {
    EACH_SIZE(N, C) {
        Buffer gate = random_buffer(N, C, 2, F32, 0, 1);
        for (int64_t i = 0; i < N; i++)
            for (int64_t j = 0; j < C; j++) *(float *)mat_at(gate.m, i, j) *= i % 3 == 2 ? 80.0f : 4.0f;
        Buffer b[] = {buffer(N, C, 3, F32, 0), clone(gate), random_buffer(N, C, 1, F32, 0, 2)};
        against_reference("swiglu", run_swiglu, NULL, b, 3, 1, 1e-6);
        Buffer c[] = {buffer(N, C, 3, F32, 0), gate};
        against_reference("gelu", run_gelu, NULL, c, 2, 1, 1e-6);
    }
}

static void run_swiglu_backward(const Ops *d, Buffer *b, const void *arg) {
    (void)arg, swiglu_backward(d, b[0].m, b[1].m, b[2].m, b[3].m, b[4].m);
}
static void run_gelu_backward(const Ops *d, Buffer *b, const void *arg) {
    (void)arg, gelu_backward(d, b[0].m, b[1].m, b[2].m);
}
TEST(swiglu_backward_and_gelu_backward_are_the_reference) {
    EACH_SIZE(N, C)
    for (int type = F32; type <= BF16; type++) { // gate and x as bf16 are the reference's own rows
        Buffer gate = random_buffer(N, C, 2, (Type)type, 0, 1);
        for (int64_t i = 0; i < N && type == F32; i++)
            for (int64_t j = 0; j < C; j++) *(float *)mat_at(gate.m, i, j) *= i % 3 == 2 ? 80.0f : 4.0f;
        Buffer b[] = {buffer(N, C, 3, F32, 0), buffer(N, C, 0, F32, 0), random_buffer(N, C, 1, F32, 0, 2), clone(gate),
                      random_buffer(N, C, 4, F32, 0, 3)};
        against_reference("swiglu_backward", run_swiglu_backward, NULL, b, 5, 3, 1e-6);
        Buffer c[] = {buffer(N, C, 3, F32, 0), random_buffer(N, C, 1, F32, 0, 2), gate};
        against_reference("gelu_backward", run_gelu_backward, NULL, c, 3, 1, 1e-6);
    }
}

// gelu(x)/x is Phi(x): right to a few rounding steps wherever float can hold it, far out on the left, too.
TEST(the_normal_distribution_is_right_over_its_whole_range) {
    enum { N = 40001 };
    Buffer x = buffer(1, N, 0, F32, 0), y = buffer(1, N, 0, F32, 0), one = buffer(1, N, 0, F32, 0);
    float *z = x.m.p, *f = y.m.p;
    for (int s = 0; s < ISAS; s++) {
        if (!cpu_isa_set(isas[s])) continue;
        for (int i = 0; i < N; i++) z[i] = (float)(i - N / 2) * 12.5f / (N / 2), ((float *)one.m.p)[i] = 1;
        gelu_forward(ops_cpu(), y.m, x.m);
        double worst = 0, worst_slope = 0, limit = strcmp(isas[s], "scalar") ? 1e-6 : 6e-6; // no FMA: x^2 is rounded
        for (int i = 0; i < N; i++) {
            double want = 0.5 * erfc(-(double)z[i] * 0.70710678118654752440);
            if (z[i] != 0) worst = fmax(worst, fabs((double)f[i] / (double)z[i] - want) / want);
        }
        gelu_backward(ops_cpu(), y.m, one.m, x.m);
        for (int i = 0; i < N; i++) {
            double t = z[i],
                   want = 0.5 * erfc(-t * 0.70710678118654752440) + t * 0.39894228040143267794 * exp(-t * t / 2);
            worst_slope = fmax(worst_slope, fabs((double)f[i] - want));
        }
        if (!(worst < limit)) FAIL("%s: relative error of Phi %.3g", isas[s], worst);
        if (!(worst_slope < 5e-7)) FAIL("%s: error of the slope %.3g", isas[s], worst_slope);
        z[0] = NAN, z[1] = INFINITY, z[2] = -1e30f, z[3] = 300;
        gelu_forward(ops_cpu(), y.m, x.m);
        EXPECT(isnan(f[0]) && isinf(f[1]) && fabsf(f[2]) < 1e-6f && f[3] == 300);
        gelu_backward(ops_cpu(), y.m, one.m, x.m);
        EXPECT(isnan(f[0]) && f[3] == 1);
    }
    cpu_isa_set(NULL);
    Buffer all[] = {x, y, one};
    drop(all, 3);
}

// What is not a number goes in and comes out, in its row or element and nowhere else.
TEST(nan_passes_through_every_backward_row) {
    enum { N = 5, C = 37 };
    for (int s = 0; s < ISAS; s++) {
        if (!cpu_isa_set(isas[s])) continue;
        Buffer a = random_buffer(N, C, 0, F32, 0, 1), b = random_buffer(N, C, 0, F32, 0, 2), c = clone(a), e = clone(a),
               g = random_buffer(N, C, 0, F32, 0, 3), w = random_buffer(1, C, 0, F32, 0, 4), dw = clone(w),
               rstd = random_buffer(N, 1, 0, F32, 0, 5), out = buffer(1, 1, 0, F32, 0), keys = keys_of(N),
               index = ints(N, N, 1), lse = random_buffer(N, 1, 0, F32, 0, 6),
               moment = random_buffer(N, C, 0, F32, 0, 7);
        float *nan_at = mat_at(a.m, 2, 35), *x = c.m.p, *y = e.m.p;
        *nan_at = NAN;
        sum_squares(ops_cpu(), out.m, a.m);
        EXPECT(isnan(*(float *)out.m.p));
        swiglu_backward(ops_cpu(), c.m, e.m, b.m, a.m, g.m);
        for (int i = 0; i < N * C; i++) EXPECT(isnan(x[i]) == (i == 2 * C + 35) && isnan(y[i]) == (i == 2 * C + 35));
        gelu_backward(ops_cpu(), c.m, b.m, a.m);
        for (int i = 0; i < N * C; i++) EXPECT(isnan(x[i]) == (i == 2 * C + 35));
        bias_backward(ops_cpu(), dw.m, a.m);
        for (int i = 0; i < C; i++) EXPECT(isnan(((float *)dw.m.p)[i]) == (i == 35));
        memcpy(dw.m.p, w.m.p, C * 4), memset(c.m.p, 0, N * C * 4);
        rmsnorm_backward_add(ops_cpu(), c.m, dw.m, a.m, b.m, w.m, rstd.m);
        for (int i = 0; i < N * C; i++) EXPECT(isnan(x[i]) == (i / C == 2));
        for (int i = 0; i < C; i++) EXPECT(isnan(((float *)dw.m.p)[i]) == (i == 35));
        for (int i = 0; i < N; i++) *(int32_t *)mat_at(index.m, i, 0) = i;
        logprob_backward(ops_cpu(), c.m, a.m, index.m, lse.m, rstd.m, 1);
        for (int i = 0; i < N * C; i++) EXPECT(isnan(x[i]) == (i == 2 * C + 35));
        memset(c.m.p, 0, N * C * 4);
        scatter_add_rows(ops_cpu(), c.m, a.m, index.m);
        for (int i = 0; i < N * C; i++) EXPECT(isnan(x[i]) == (i == 2 * C + 35));
        for (int i = 0; i < N * C; i++) ((float *)g.m.p)[i] = fabsf(((float *)g.m.p)[i]);
        adamw(ops_cpu(), b.m, moment.m, g.m, a.m, (AdamStep){1, 1e-3, 0, 0.9, 0.99, 1e-8, 1e-3, 1});
        for (int i = 0; i < N * C; i++)
            EXPECT(isnan(((float *)b.m.p)[i]) == (i == 2 * C + 35) && isnan(((float *)g.m.p)[i]) == (i == 2 * C + 35));
        Buffer all[] = {a, b, c, e, g, w, dw, rstd, out, keys, index, lse, moment};
        drop(all, 13);
    }
    cpu_isa_set(NULL);
}

// swiglu with up = 1 + exp(-z) would be z; here the exponential itself: silu(z)/z = 1/(1+exp(-z)) over its whole range.
TEST(the_exponential_is_right_over_its_whole_range) {
    enum { N = 40001 };
    Buffer gate = buffer(1, N, 0, F32, 0), up = buffer(1, N, 0, F32, 0), y = buffer(1, N, 0, F32, 0);
    float *z = gate.m.p, *u = up.m.p, *f = y.m.p;
    for (int s = 0; s < ISAS; s++) {
        if (!cpu_isa_set(isas[s])) continue;
        for (int i = 0; i < N; i++) z[i] = (float)(i - N / 2) * 86.0f / (N / 2), u[i] = 1;
        swiglu_forward(ops_cpu(), y.m, gate.m, up.m);
        double worst = 0;
        for (int i = 0; i < N; i++) {
            double want = (double)z[i] / (1 + exp(-(double)z[i]));
            if (z[i] != 0) worst = fmax(worst, fabs(f[i] - want) / fabs(want));
        }
        if (!(worst < 5e-7)) FAIL("%s: relative error %.3g", isas[s], worst);
        z[0] = NAN, z[1] = INFINITY, z[2] = -1e30f, z[3] = 300;
        swiglu_forward(ops_cpu(), y.m, gate.m, up.m);
        EXPECT(isnan(f[0]) && isinf(f[1]) && fabsf(f[2]) < 1 && f[3] == 300);
    }
    cpu_isa_set(NULL);
    Buffer all[] = {gate, up, y};
    drop(all, 3);
}

// -------------------------------------------------------------------------------------------------------------- rows

static void run_gather(const Ops *d, Buffer *b, const void *arg) { (void)arg, gather_rows(d, b[0].m, b[1].m, b[2].m); }
TEST(gather_rows_is_the_reference) {
    EACH_SIZE(N, C)
    for (int type = F32; type <= BF16; type++) {
        Buffer b[] = {buffer(N, C, 3, F32, 0), random_buffer(17, C, 1, (Type)type, type == BF16, 2), ints(N, 17, 3)};
        against_reference("gather_rows", run_gather, NULL, b, 3, 1, 1e-9);
    }
}

static void run_scatter(const Ops *d, Buffer *b, const void *arg) {
    (void)arg, scatter_add_rows(d, b[0].m, b[1].m, b[2].m);
}
// Several rows go to one place, some nowhere; the sum runs in order of the rows.
TEST(scatter_add_rows_is_the_reference) {
    EACH_COLUMN_SIZE(N, C)
    for (int type = F32; type <= BF16; type++) {
        Buffer b[] = {random_buffer(17, C, 3, F32, 0, 1), random_buffer(N, C, 1, (Type)type, 0, 2), ints(N, 17, 3)};
        against_reference("scatter_add_rows", run_scatter, NULL, b, 3, 1, 1e-6);
    }
}

static void run_logprob_backward(const Ops *d, Buffer *b, const void *arg) {
    logprob_backward(d, b[0].m, b[1].m, b[2].m, b[3].m, b[4].m, *(const float *)arg);
}
static void run_logprob_backward_in_place(const Ops *d, Buffer *b, const void *arg) {
    logprob_backward(d, b[0].m, b[0].m, b[1].m, b[2].m, b[3].m, *(const float *)arg);
}
TEST(logprob_backward_is_the_reference) {
    static const float inv[] = {1, 0.7f, 3};
    static const int64_t Vs[] = {1, 31, 513, 15193};
    for (int k = 0; k < 4; k++)
        for (int t = 0; t < 3; t++) {
            Buffer z = random_buffer(7, Vs[k], 3, F32, 0, 2), target = ints(7, Vs[k], 4), lse = buffer(7, 1, 0, F32, 0);
            Buffer lp = buffer(7, 1, 0, F32, 0), dlp = random_buffer(7, 1, 2, F32, 0, 5);
            for (int64_t i = 0; i < 7; i++)
                for (int64_t j = 0; j < Vs[k]; j++) *(float *)mat_at(z.m, i, j) *= 4;
            if (Vs[k] > 1) *(float *)mat_at(z.m, 3, 1) = -INFINITY; // a masked id
            *(int32_t *)mat_at(target.m, 3, 0) = 0;
            *(float *)mat_at(dlp.m, 1, 0) = 0; // a token without weight
            logprob_forward(ops_ref(), lp.m, lse.m, mat_none(), z.m, target.m, inv[t]);
            Buffer b[] = {buffer(7, Vs[k], 1, F32, 0), clone(z), clone(target), clone(lse), clone(dlp)};
            if (Vs[k] > 1) against_reference("logprob_backward", run_logprob_backward, &inv[t], b, 5, 1, 4e-6);
            else drop(b, 5); // one id: the gradient is zero to rounding, which has no relative error
            Buffer c[] = {clone(z), clone(target), clone(lse), clone(dlp)};
            if (Vs[k] > 1)
                against_reference("logprob_backward in place", run_logprob_backward_in_place, &inv[t], c, 4, 1, 4e-6);
            else drop(c, 4);
            Buffer e[] = {buffer(7, Vs[k], 1, BF16, 0), z, target, lse, dlp};
            against_reference("logprob_backward to bf16", run_logprob_backward, &inv[t], e, 5, 1, 4e-6);
            drop(&lp, 1);
        }
}

static void run_logprob(const Ops *d, Buffer *b, const void *arg) {
    logprob_forward(d, b[0].m, b[1].m, b[2].m, b[3].m, b[4].m, *(const float *)arg);
}
TEST(logprob_is_the_reference) {
    static const float inv[] = {1, 0.7f, 3};
    static const int64_t Vs[] = {1, 31, 513, 15193};
    for (int k = 0; k < 4; k++)
        for (int t = 0; t < 3; t++) {
            Buffer z = random_buffer(7, Vs[k], 3, F32, 0, 2);
            for (int64_t i = 0; i < 7; i++)
                for (int64_t j = 0; j < Vs[k]; j++) *(float *)mat_at(z.m, i, j) *= 20;
            if (Vs[k] > 1) *(float *)mat_at(z.m, 3, 1) = -INFINITY; // a masked id
            Buffer b[] = {buffer(7, 1, 0, F32, 0), buffer(7, 1, 2, F32, 0), t == 2 ? none() : buffer(7, 1, 0, F32, 0),
                          z, ints(7, Vs[k], 4)};
            *(int32_t *)mat_at(b[4].m, 3, 0) = 0;
            against_reference("logprob", run_logprob, &inv[t], b, 5, 7, 2e-6);
        }
}

static void run_sample(const Ops *d, Buffer *b, const void *arg) {
    sample(d, b[0].m, b[1].m, mat_none(), b[2].m, b[3].m, *(const SampleParams *)arg);
}
TEST(sampling_draws_the_same_token_on_every_device_and_thread_count) {
    SampleParams p = {
        .do_sample = 1, .repetition_penalty = 1, .temperature = 0.9, .top_k = 20, .top_p = 0.9, .seed = 5};
    Buffer b[] = {buffer(9, 1, 0, I32, 0), random_buffer(9, 3001, 1, F32, 0, 1), ints(9, 1000, 2), ints(9, 50, 3)},
           ref = clone(b[0]), cpu = clone(b[0]);
    sample(ops_ref(), ref.m, b[1].m, mat_none(), b[2].m, b[3].m, p);
    sample(ops_cpu(), cpu.m, b[1].m, mat_none(), b[2].m, b[3].m, p);
    EXPECT(!memcmp(ref.m.p, cpu.m.p, 9 * 4));
    drop(&ref, 1), drop(&cpu, 1);
    against_reference("sample", run_sample, &p, b, 4, 1, 1);
}

// --------------------------------------------------------------------------------------------------------- attention

static void run_attention(const Ops *d, Buffer *b, const void *arg) {
    const HeadsArg *a = arg;
    attention_forward(d, b[0].m, b[1].m, b[2].m, b[3].m, b[4].m, a->spans, a->heads, a->kv_heads, a->dim,
                      1 / sqrtf((float)a->dim));
}
static void run_decode(const Ops *d, Buffer *b, const void *arg) {
    const HeadsArg *a = arg;
    attention_decode(d, b[0].m, b[1].m, b[2].m, b[3].m, a->spans, a->heads, a->kv_heads, a->dim,
                     1 / sqrtf((float)a->dim));
}
static Spans spans_of(const Span *s, int64_t n) {
    Spans r = {.rows = mat((void *)(uintptr_t)s, n, 5, I32), .host = s, .n = n};
    for (int64_t i = 0; i < n; i++) r.longest = s[i].last - s[i].first > r.longest ? s[i].last - s[i].first : r.longest;
    return r;
}
static const Span test_spans[] = {{0, 1, 0, 0, 1},     {1, 66, 0, 0, 1},       {66, 131, 1, 60, 1},
                                  {131, 195, 0, 0, 0}, {195, 200, 66, 131, 0}, {200, 200, 0, 0, 1},
                                  {200, 225, 0, 0, 1}, {230, 300, 0, 0, 0}};
enum { TEST_ROWS = 301, TEST_SPANS = 8 };
static const HeadsArg head_shapes[] = {{.heads = 4, .kv_heads = 2, .dim = 128},
                                       {.heads = 2, .kv_heads = 2, .dim = 80},
                                       {.heads = 7, .kv_heads = 1, .dim = 16},
                                       {.heads = 2, .kv_heads = 1, .dim = 10}};

TEST(attention_is_the_reference_over_all_kinds_of_spans) {
    for (int k = 0; k < 4; k++) {
        HeadsArg a = head_shapes[k];
        a.spans = spans_of(test_spans, TEST_SPANS);
        int64_t Q = a.heads * a.dim, KV = a.kv_heads * a.dim;
        // q, k, v as in a block: three views of one [N, Q + 2 KV] matrix would do; here each has its own gaps
        Buffer b[] = {random_buffer(TEST_ROWS, Q, 2, F32, 0, 1),
                      k % 2 ? none() : random_buffer(TEST_ROWS, a.heads, 0, F32, 0, 2),
                      random_buffer(TEST_ROWS, Q, 1, F32, 0, 3), random_buffer(TEST_ROWS, KV, 5, F32, 0, 4),
                      random_buffer(TEST_ROWS, KV, 0, F32, 0, 5)};
        for (int64_t i = 0; i < TEST_ROWS; i++)
            for (int64_t c = 0; c < Q; c++) *(float *)mat_at(b[2].m, i, c) *= 6; // peaked rows and flat ones
        against_reference("attention_forward", run_attention, &a, b, 5, 3, 2e-6);
    }
}
TEST(attention_decode_is_the_reference) {
    static const Span rows[] = {
        {0, 1, 0, 0, 0}, {5, 70, 0, 0, 0}, {100, 300, 3, 99, 0}, {7, 7, 0, 3, 0}, {8, 8, 2, 2, 0}};
    for (int k = 0; k < 4; k++) {
        HeadsArg a = head_shapes[k];
        a.spans = spans_of(rows, 5);
        Buffer b[] = {buffer(5, a.heads * a.dim, 2, F32, 0), random_buffer(5, a.heads * a.dim, 1, F32, 0, 3),
                      random_buffer(TEST_ROWS, a.kv_heads * a.dim, 5, F32, 0, 4),
                      random_buffer(TEST_ROWS, a.kv_heads * a.dim, 0, F32, 0, 5)};
        against_reference("attention_decode", run_decode, &a, b, 4, 1, 2e-6);
    }
}

// Rows that decode behind one prefix go through it together: in runs of 1, 2 and 40 rows, with own keys of many lengths, the
// prefix longer and shorter than a block. Each has the bits it has alone, though the own keys of another are not numbers.
TEST(decoding_behind_a_shared_prefix_gives_each_row_its_bits_alone) {
    enum { ROWS = 46 };
    static const int32_t runs[][3] = {{40, 0, 97}, {1, 5, 5}, {1, 5, 5}, {2, 100, 120}, {1, 0, 97}, {1, 0, 96}};
    Span spans[ROWS];
    int n = 0;
    for (int r = 0; r < 6; r++)
        for (int i = 0; i < runs[r][0]; i++, n++)
            spans[n] = (Span){120 + 3 * n, 120 + 3 * n + 7 * n % 130, runs[r][1], runs[r][2], 0};
    spans[3].last = spans[3].first; // nothing but the prefix
    EXPECT_INT(n, ROWS);
    for (int shape = 0; shape < 4; shape++) {
        HeadsArg a = head_shapes[shape];
        int64_t Q = a.heads * a.dim, KV = a.kv_heads * a.dim;
        Buffer b[] = {buffer(ROWS, Q, 2, F32, 0), random_buffer(ROWS, Q, 1, F32, 0, 1),
                      random_buffer(400, KV, 5, F32, 0, 2), random_buffer(400, KV, 0, F32, 0, 3)};
        Buffer alone = buffer(1, Q, 0, F32, 0);
        int64_t bad = spans[39].last - 1; // of some rows: the others must not look at it
        for (int64_t c = 0; c < KV; c++) *(float *)mat_at(b[3].m, bad, c) = NAN;
        for (int s = 0; s < ISAS; s++)
            for (int threads = 1; cpu_isa_set(isas[s]) && threads <= 3; threads += 2) {
                pool_start(threads);
                a.spans = spans_of(spans, ROWS);
                run_decode(ops_cpu(), b, &a);
                int64_t other = 0, numbers = 0;
                for (int i = 0; i < ROWS; i++) {
                    a.spans = spans_of(spans + i, 1);
                    Buffer one[] = {alone, {.m = mat_rows(b[1].m, i, 1)}, b[2], b[3]};
                    run_decode(ops_cpu(), one, &a);
                    other += memcmp(alone.m.p, mat_at(b[0].m, i, 0), (size_t)Q * 4) != 0;
                    numbers += isfinite(*(float *)alone.m.p);
                }
                if (other || numbers < ROWS / 2 || numbers == ROWS)
                    FAIL("%s, shape %d, %d threads: %lld rows differ, %lld are numbers", isas[s], shape, threads,
                         (long long)other, (long long)numbers);
                pool_stop();
            }
        cpu_isa_set(NULL);
        drop(b, 4), drop(&alone, 1);
    }
}

// A sequence gives the same bits alone, at another place, and with more rows behind it; what a causal row may not see may
// even be NaN. Decoding its last row against the cache gives those bits too.
TEST(a_sequence_alone_and_in_company_has_the_same_bits) {
    HeadsArg a = head_shapes[0];
    int64_t Q = a.heads * a.dim, KV = a.kv_heads * a.dim, n = 101;
    for (int s = 0; s < ISAS; s++) {
        if (!cpu_isa_set(isas[s])) continue;
        Buffer q = random_buffer(TEST_ROWS, Q, 0, F32, 0, 1), k = random_buffer(TEST_ROWS, KV, 0, F32, 0, 2),
               v = random_buffer(TEST_ROWS, KV, 0, F32, 0, 3);
        Buffer o = buffer(TEST_ROWS, Q, 0, F32, 0), alone = buffer(n, Q, 0, F32, 0), last = buffer(1, Q, 0, F32, 0);
        for (int64_t i = 57 + n; i < TEST_ROWS; i++)
            *(float *)mat_at(v.m, i, 3) = NAN, *(float *)mat_at(k.m, i, 5) = NAN;
        Span batch[] = {{0, 57, 0, 0, 1}, {57, TEST_ROWS, 0, 0, 1}}, one[] = {{0, (int32_t)n, 0, 0, 1}},
             cache[] = {{57, (int32_t)(57 + n), 0, 0, 0}};
        attention_forward(ops_cpu(), o.m, mat_none(), q.m, k.m, v.m, spans_of(batch, 2), a.heads, a.kv_heads, a.dim,
                          0.1f);
        attention_forward(ops_cpu(), alone.m, mat_none(), mat_rows(q.m, 57, n), mat_rows(k.m, 57, n),
                          mat_rows(v.m, 57, n), spans_of(one, 1), a.heads, a.kv_heads, a.dim, 0.1f);
        attention_decode(ops_cpu(), last.m, mat_rows(q.m, 57 + n - 1, 1), k.m, v.m, spans_of(cache, 1), a.heads,
                         a.kv_heads, a.dim, 0.1f);
        if (memcmp(mat_at(o.m, 57, 0), alone.m.p, (size_t)(n * Q) * 4)) FAIL("%s: in company the bits differ", isas[s]);
        if (memcmp(mat_at(o.m, 57 + n - 1, 0), last.m.p, (size_t)Q * 4)) FAIL("%s: decoding gives other bits", isas[s]);
        Buffer all[] = {q, k, v, o, alone, last};
        drop(all, 6);
    }
    cpu_isa_set(NULL);
}
static void run_attention_backward(const Ops *d, Buffer *b, const void *arg) {
    const HeadsArg *a = arg;
    attention_backward(d, b[0].m, b[1].m, b[2].m, b[3].m, b[4].m, b[5].m, b[6].m, b[7].m, b[8].m, b[9].m, a->spans,
                       a->heads, a->kv_heads, a->dim, 1 / sqrtf((float)a->dim));
}
// dq, dk, dv, delta (to be overwritten), dout, q, k, v, o, lse as the forward makes them.
static void backward_buffers(Buffer *b, const HeadsArg *a, int64_t rows) {
    int64_t Q = a->heads * a->dim, KV = a->kv_heads * a->dim;
    Buffer all[] = {random_buffer(rows, Q, 3, F32, 0, 11),  random_buffer(rows, KV, 1, F32, 0, 12),
                    random_buffer(rows, KV, 0, F32, 0, 13), random_buffer(rows, a->heads, 0, F32, 0, 14),
                    random_buffer(rows, Q, 2, F32, 0, 15),  random_buffer(rows, Q, 1, F32, 0, 3),
                    random_buffer(rows, KV, 5, F32, 0, 4),  random_buffer(rows, KV, 0, F32, 0, 5),
                    random_buffer(rows, Q, 0, F32, 0, 16),  random_buffer(rows, a->heads, 1, F32, 0, 17)};
    memcpy(b, all, sizeof all);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t c = 0; c < Q; c++) *(float *)mat_at(b[5].m, i, c) *= 4;
    attention_forward(ops_ref(), b[8].m, b[9].m, b[5].m, b[6].m, b[7].m, a->spans, a->heads, a->kv_heads, a->dim,
                      1 / sqrtf((float)a->dim));
}
// against_reference takes eight arguments at most: the inputs that are not under test go by pointer.
typedef struct BackwardArg {
    HeadsArg heads;
    Buffer *b;
} BackwardArg;
static void run_backward_outputs(const Ops *d, Buffer *outputs, const void *arg) {
    const BackwardArg *a = arg;
    Buffer all[10];
    memcpy(all, a->b, sizeof all), memcpy(all, outputs, 4 * sizeof *all);
    run_attention_backward(d, all, &a->heads);
}
static void attention_backward_case(const HeadsArg *a, Buffer *b, double limit) {
    BackwardArg arg = {*a, b};
    Buffer before[10];
    for (int i = 4; i < 10; i++) before[i] = clone(b[i]);
    against_reference("attention_backward", run_backward_outputs, &arg, b, 4, 15, limit);
    for (int i = 4; i < 10; i++)
        if (memcmp(before[i].block, b[i].block, b[i].bytes)) FAIL("attention_backward changed input %d", i);
    drop(before + 4, 6), drop(b + 4, 6);
}
// Packed texts, whole pictures, windows; a prefix that three spans share, one of them being its own; and the long span
// alone, which goes the other way. Rows 225 to 229 and the last are in no span: zeros.
static const Span packed_spans[] = {{0, 1, 0, 0, 1},     {1, 66, 0, 0, 1},    {66, 131, 0, 0, 1}, {131, 195, 0, 0, 0},
                                    {195, 200, 0, 0, 0}, {200, 225, 0, 0, 1}, {230, 300, 0, 0, 0}},
                  shared_spans[] = {{0, 70, 0, 0, 1},
                                    {70, 100, 3, 70, 1},
                                    {100, 201, 0, 70, 1},
                                    {201, 225, 68, 140, 0},
                                    {230, 300, 0, 0, 1}},
                  long_span[] = {{3, 300, 0, 0, 1}};
TEST(attention_backward_is_the_reference_over_all_kinds_of_spans) {
    for (int k = 0; k < 4; k++)
        for (int kind = 0; kind < 4; kind++) {
            if ((k == 0 && kind != 1) || (k == 1 && kind == 2))
                continue; // the reference takes its time over wide heads
            HeadsArg a = head_shapes[k];
            a.spans = kind == 0   ? spans_of(packed_spans, 7)
                      : kind == 1 ? spans_of(shared_spans, 5)
                      : kind == 2 ? spans_of(long_span, 1)
                                  : spans_of(NULL, 0);
            Buffer b[10];
            backward_buffers(b, &a, TEST_ROWS);
            attention_backward_case(&a, b, 4e-6);
        }
}
TEST(attention_backward_of_bf16_is_the_reference) {
    HeadsArg a = head_shapes[3];
    Buffer b[10];
    static const Span one[] = {{0, 9, 0, 0, 1}, {9, 12, 2, 5, 0}};
    a.spans = spans_of(one, 2);
    backward_buffers(b, &a, 13);
    drop(b + 7, 1);
    b[7] = random_buffer(13, a.kv_heads * a.dim, 0, BF16, 0, 5);
    attention_backward_case(&a, b, 1e-6);
}
// The gradients of a sequence have the same bits alone and in a pack, made in one go or by rows and by keys; what follows
// a row (causal) and what stands beside its span may be NaN.
TEST(a_sequence_has_the_same_gradients_alone_and_in_company) {
    for (int s = 0; s < ISAS; s++) {
        if (!cpu_isa_set(isas[s])) continue;
        for (int k = 0; k < 4; k++) {
            HeadsArg a = head_shapes[k];
            int64_t n = 97, at = 57;
            Buffer b[10], alone[10];
            static const Span pack[] = {{0, 57, 0, 0, 1}, {57, 154, 0, 0, 1}, {154, 160, 0, 0, 1}, {160, 220, 0, 0, 0}},
                              prefixed[] = {{0, 57, 0, 0, 1}, {57, 154, 0, 0, 1}, {154, 300, 3, 40, 1}},
                              single[] = {{0, 97, 0, 0, 1}};
            a.spans = spans_of(pack, 4);
            backward_buffers(b, &a, TEST_ROWS);
            for (int i = 0; i < 10; i++) {
                alone[i] = buffer(n, b[i].m.cols, 0, b[i].m.type, 0);
                copy(ops_ref(), alone[i].m, mat_rows(b[i].m, at, n));
            }
            for (int64_t i = 154; i < TEST_ROWS; i++)
                for (int t = 4; t < 8; t++) *(float *)mat_at(b[t].m, i, 3) = NAN;
            for (int kind = 0; kind < 2; kind++) {
                a.spans = kind ? spans_of(prefixed, 3) : spans_of(pack, 4);
                run_attention_backward(ops_cpu(), b, &a);
                a.spans = spans_of(single, 1);
                run_attention_backward(ops_cpu(), alone, &a);
                for (int i = 0; i < 4; i++)
                    for (int64_t r = 0; r < n; r++)
                        if (memcmp(mat_at(b[i].m, at + r, 0), mat_at(alone[i].m, r, 0), (size_t)b[i].m.cols * 4)) {
                            FAIL("%s, heads of %d, kind %d: output %d differs in row %d", isas[s], (int)a.dim, kind, i,
                                 (int)r);
                            break;
                        }
            }
            // a later row of the same sequence: earlier dq rows and the others' keys do not know it
            a.spans = spans_of(single, 1);
            for (int t = 4; t < 8; t++) *(float *)mat_at(alone[t].m, n - 1, 3) = NAN;
            run_attention_backward(ops_cpu(), alone, &a);
            for (int64_t r = 0; r < n - 1; r++)
                if (memcmp(mat_at(b[0].m, at + r, 0), mat_at(alone[0].m, r, 0), (size_t)b[0].m.cols * 4)) {
                    FAIL("%s: a row that is not seen changed dq of row %d", isas[s], (int)r);
                    break;
                }
            EXPECT(isnan(*(float *)mat_at(alone[0].m, n - 1, 0)) && isnan(*(float *)mat_at(alone[1].m, 0, 0)) &&
                   isnan(*(float *)mat_at(alone[2].m, 0, 3)));
            drop(b, 10), drop(alone, 10);
        }
    }
    cpu_isa_set(NULL);
}

TEST(control_attention_notices_a_dropped_and_a_shifted_span) {
    HeadsArg a = head_shapes[1];
    Span right[] = {{0, 70, 0, 0, 1}}, shifted[] = {{0, 70, 0, 0, 0}};
    int64_t Q = a.heads * a.dim;
    Buffer q = random_buffer(70, Q, 0, F32, 0, 1), k = random_buffer(70, Q, 0, F32, 0, 2),
           v = random_buffer(70, Q, 0, F32, 0, 3), o = buffer(70, Q, 0, F32, 0), w = buffer(70, Q, 0, F32, 0);
    attention_forward(ops_ref(), w.m, mat_none(), q.m, k.m, v.m, spans_of(right, 1), a.heads, a.kv_heads, a.dim, 0.1f);
    attention_forward(ops_cpu(), o.m, mat_none(), q.m, k.m, v.m, spans_of(shifted, 1), a.heads, a.kv_heads, a.dim,
                      0.1f);
    EXPECT(!error_within(tensor_error(o.m.p, w.m.p, 70 * Q), 2e-6));
    Buffer all[] = {q, k, v, o, w};
    drop(all, 5);
}

// ------------------------------------------------------------------------------------------------------- thread pool

typedef struct Hits {
    _Atomic int count[1000], bad_thread;
} Hits;
static void hit(void *ctx, int64_t chunk, int thread) {
    Hits *h = ctx;
    atomic_fetch_add(&h->count[chunk], 1);
    if (thread < 0 || thread >= pool_threads()) atomic_store(&h->bad_thread, 1);
}
TEST(every_chunk_runs_exactly_once) {
    static Hits h;
    for (int threads = 1; threads <= 9; threads += 2) {
        pool_start(threads);
        EXPECT_INT(pool_threads(), threads);
        for (int round = 0; round < 300; round++) {
            int64_t n = round * 37 % 1000;
            memset(&h, 0, sizeof h);
            parallel_for(n, hit, &h);
            int64_t wrong = 0;
            for (int64_t c = 0; c < 1000; c++) wrong += h.count[c] != (c < n);
            EXPECT_INT(wrong, 0);
            if (round % 50 == 0) usleep(300); // let the workers fall asleep
        }
        EXPECT_INT(h.bad_thread, 0);
    }
    pool_start(2);
}
TEST(the_pool_may_be_stopped_twice_and_started_again) {
    static Hits h;
    pool_stop();
    pool_stop();
    EXPECT_INT(pool_threads(), 1);
    memset(&h, 0, sizeof h);
    parallel_for(3, hit, &h); // without a pool: serial
    EXPECT_INT(h.count[0] + h.count[1] + h.count[2], 3);
    pool_start(0);
    EXPECT(pool_threads() >= 1);
    pool_start(2);
}
static void nested(void *ctx, int64_t chunk, int thread) {
    (void)chunk, (void)thread;
    parallel_for(2, hit, ctx);
}
TEST(a_job_inside_a_job_is_a_bug) {
    pool_stop(); // a forked child has no workers
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        static Hits h;
        if (!freopen("/dev/null", "w", stderr)) _exit(1);
        parallel_for(2, nested, &h);
        _exit(0);
    }
    int status = 0;
    EXPECT(child > 0 && waitpid(child, &status, 0) == child);
    EXPECT(!WIFEXITED(status) || WEXITSTATUS(status) == EXIT_BUG || WEXITSTATUS(status) == 134);
    EXPECT(!(WIFEXITED(status) && WEXITSTATUS(status) == 0));
    pool_start(2);
}
TEST(an_unknown_instruction_set_changes_nothing) {
    char now[32];
    snprintf(now, sizeof now, "%s", cpu_isa());
    EXPECT(!cpu_isa_set("avx9000"));
    EXPECT_STR(cpu_isa(), now);
    EXPECT(cpu_isa_set("scalar"));
    EXPECT_STR(cpu_isa(), "scalar");
    EXPECT(cpu_isa_set(NULL));
}
