// test_gradients.c - every backward op of ops.c, and the block, against finite differences of its forward, in double.
//
// What it is:  the proof that the references are right; cpu.c and kernels.cu are compared with the references. ops.c and
//              block.c are compiled here a second time with real = double, so that a difference quotient has digits to
//              lose. For random dy the loss is L = sum dy y, and each element of each input is moved in turn:
//                  dL/dx = (8 (L(x + h) - L(x - h)) - (L(x + 2h) - L(x - 2h))) / 12 h,   error h^4 L^(5) / 30.
// How far is too far: h = 2^-9 makes the error of the formula about 5e-13 L^(5), and the rounding of L, some 1e-15, is
//              divided by h: 1e-12 together where derivatives are of order one. The limit is 1e-10 for an op, so that
//              no wrong term is small enough to hide, and 1e-9 for a block, whose fifth derivatives are larger.
// Controls:    of each gradient, what must fail: it shifted by an element, negated, one element off by 1e-6; and of each
//              case, a backward with a mistake in its arguments (a span dropped, the other sign, the wrong target).
// What it is not: a test of float rounding or speed (test_ops.c, test_kernels.c).
// Read before: ops.c, block.c.
#define SURGR1_REAL_DOUBLE
#include "../ops.c"
#include "../block.c"
#include "test.h"

// ----------------------------------------------------------------------------------------------------------- harness

enum { MAX_VARIABLES = 40, PAD = 3 };
static const double STEP = 1.0 / 512;

// A value and the gradient of L with respect to it. d.p == NULL: none is asked for. Every view has PAD columns of NaN
// beside it, which nothing may read or write.
typedef struct Variable {
    const char *name;
    Mat v, d;
    Mat before; // what d holds before the backward: numbers where it adds to them, else NaN, to be overwritten
    bool adds;
} Variable;

typedef struct Case Case;
struct Case {
    const char *what;
    void (*forward)(const Case *c);               // out[].v from in[].v
    void (*backward)(const Case *c, int mistake); // in[].d from out[].d after a forward; 0: no mistake, else its number
    int mistakes;                                 // each of 1..mistakes must be noticed
    Variable in[MAX_VARIABLES], out[MAX_VARIABLES];
    int n_in, n_out;
    double limit;
    // what ops need besides
    Mat stat, delta, index, angles;
    Spans spans;
    Layout layout;
    float scalar; // alpha, eps, scale or inv_temperature
    int64_t heads, kv_heads, dim;
    bool in_place;
    const struct BlockCase *block;
};

static const Ops *d;
static void *made[400];
static int n_made;
static Mat new_mat(int64_t rows, int64_t cols, Type type) { // all NaN, or zeros for I32
    d = ops_ref();
    Mat m =
        mat(alloc_or_die((size_t)((rows + 1) * (cols + PAD)), type_size(type), "a test's matrix"), rows, cols, type);
    CHECK(n_made < (int)(sizeof made / sizeof *made), "more matrices than expected");
    made[n_made++] = m.p, m.stride = cols + PAD;
    for (int64_t i = 0; type == F32 && i < (rows + 1) * m.stride; i++) ((double *)m.p)[i] = NAN;
    return m;
}
static void free_made(void) {
    while (n_made) free(made[--n_made]);
}
static Mat random_mat(int64_t rows, int64_t cols, double size) { // in (-size, size), a fixed stream per call
    static uint64_t stream;
    Mat m = new_mat(rows, cols, F32);
    stream++;
    for (int64_t i = 0; i < rows * cols; i++)
        put(m, i / cols, i % cols, size * (2 * random_uniform(5, RANDOM_TEST, stream, (uint32_t)i) - 1));
    return m;
}
static Mat integers(int64_t rows, int64_t cols, const int32_t *values) {
    Mat m = new_mat(rows, cols, I32);
    for (int64_t i = 0; i < rows * cols; i++) *(int32_t *)mat_at(m, i / cols, i % cols) = values[i];
    return m;
}
static Spans host_spans(const Span *s, int64_t n) {
    Spans all = {mat((void *)(uintptr_t)s, n, 5, I32), s, n, 0};
    for (int64_t i = 0; i < n; i++)
        if (s[i].last - s[i].first > all.longest) all.longest = s[i].last - s[i].first;
    return all;
}
static void fill(Mat m, double value) {
    for (int64_t i = 0; i < m.rows; i++)
        for (int64_t j = 0; j < m.cols; j++) put(m, i, j, value);
}
static bool padding_is_nan(Mat m) {
    for (int64_t i = 0; i <= m.rows; i++)
        for (int64_t j = i < m.rows ? m.cols : 0; j < m.stride; j++)
            if (!isnan(get(m, i, j))) return false;
    return true;
}

static Case new_case(const char *what, void (*forward)(const Case *), void (*back)(const Case *, int), int mistakes) {
    return (Case){.what = what, .forward = forward, .backward = back, .mistakes = mistakes, .limit = 1e-10};
}
enum Gradient { OVERWRITTEN, ADDED, FROZEN };
static Variable *input(Case *c, const char *name, Mat value, enum Gradient g) {
    CHECK(c->n_in < MAX_VARIABLES, "more inputs than expected");
    Variable *t = &c->in[c->n_in++];
    *t = (Variable){name, value, mat_none(), mat_none(), g == ADDED};
    if (g != FROZEN) t->d = new_mat(value.rows, value.cols, F32);
    if (g == ADDED) t->before = random_mat(value.rows, value.cols, 1);
    return t;
}
static Variable *output(Case *c, const char *name, int64_t rows, int64_t cols) {
    CHECK(c->n_out < MAX_VARIABLES, "more outputs than expected");
    Variable *t = &c->out[c->n_out++];
    *t = (Variable){name, new_mat(rows, cols, F32), random_mat(rows, cols, 1), mat_none(), false};
    return t;
}

// L = sum dy y. An output whose dy is NaN is one that the op must leave alone: it counts for nothing, and its dy must
// not be read either.
static double loss(const Case *c) {
    double sum = 0;
    for (int n = 0; n < c->n_out; n++) fill(c->out[n].v, NAN);
    c->forward(c);
    for (int n = 0; n < c->n_out; n++) {
        Mat y = c->out[n].v, dy = c->out[n].d;
        for (int64_t i = 0; i < y.rows; i++)
            for (int64_t j = 0; j < y.cols; j++) {
                if (isnan(get(dy, i, j)) != isnan(get(y, i, j)))
                    FAIL("%s: %s[%lld,%lld] is %g", c->what, c->out[n].name, (long long)i, (long long)j, get(y, i, j));
                if (!isnan(get(dy, i, j))) sum += get(dy, i, j) * get(y, i, j);
            }
    }
    return sum;
}
static void differences(const Case *c, Mat x, double *out) {
    for (int64_t i = 0; i < x.rows; i++)
        for (int64_t j = 0; j < x.cols; j++) {
            double here = get(x, i, j), sum = 0;
            static const double weight[5] = {1, -8, 0, 8, -1};
            for (int k = -2; k <= 2; k++) {
                put(x, i, j, here + k * STEP);
                if (k) sum += weight[k + 2] * loss(c);
            }
            put(x, i, j, here);
            out[i * x.cols + j] = sum / (12 * STEP);
        }
}

static void backward(const Case *c, int mistake) {
    for (int n = 0; n < c->n_in; n++) {
        if (c->in[n].adds) ref_copy(c->in[n].d, c->in[n].before);
        else if (c->in[n].d.p) fill(c->in[n].d, NAN);
    }
    loss(c); // the statistics that the backward reads are those of the unmoved inputs
    c->backward(c, mistake);
}
static void gradient(const Variable *t, double *out) { // what the backward wrote, or what it added
    for (int64_t i = 0; i < t->d.rows; i++)
        for (int64_t j = 0; j < t->d.cols; j++)
            out[i * t->d.cols + j] = get(t->d, i, j) - (t->adds ? get(t->before, i, j) : 0);
}

// Relative L2, or infinity when an element is not finite or the largest error passes 100 limits of the rms
// (compare.h in double).
static double distance(const double *got, const double *want, int64_t n, double limit) {
    double diff = 0, norm = 0, largest = 0;
    for (int64_t i = 0; i < n; i++) {
        double e = fabs(got[i] - want[i]);
        if (!isfinite(e)) return INFINITY;
        diff += e * e, norm += want[i] * want[i], largest = fmax(largest, e);
    }
    if (norm == 0) return diff == 0 ? 0 : INFINITY;
    return largest > 100 * limit * sqrt(norm / (double)n) ? INFINITY : sqrt(diff / norm);
}

// Every gradient of the case against differences; the controls; the padding. Frees the case's matrices.
static void check(const Case *c) {
    double *want[MAX_VARIABLES] = {0}, *got;
    int64_t size[MAX_VARIABLES] = {0}, most = 0;
    for (int n = 0; n < c->n_in; n++)
        size[n] = c->in[n].d.rows * c->in[n].d.cols, most = size[n] > most ? size[n] : most;
    got = alloc_or_die((size_t)most + 1, sizeof *got, "a gradient");
    backward(c, 0);
    for (int n = 0; n < c->n_in; n++) {
        const Variable *t = &c->in[n];
        if (!t->d.p) continue;
        want[n] = alloc_or_die((size_t)size[n], sizeof *got, "differences");
        gradient(t, got); // taken before differences() runs more forwards
        differences(c, t->v, want[n]);
        double error = distance(got, want[n], size[n], c->limit), rms = 0;
        if (!(error <= c->limit)) FAIL("%s: d%s is off by %.3g (limit %.3g)", c->what, t->name, error, c->limit);
        for (int64_t i = 0; i < size[n]; i++) rms += want[n][i] * want[n][i] / (double)size[n];
        if (!(rms > 1e-6)) FAIL("%s: d%s is too small to show anything", c->what, t->name);
        got[size[n] / 2] += 1e-6 * sqrt(rms);
        if (distance(got, want[n], size[n], c->limit) <= c->limit)
            FAIL("%s: one wrong element of d%s passes", c->what, t->name);
        gradient(t, got);
        for (int64_t i = 0; i < size[n]; i++) got[i] = -got[i];
        if (distance(got, want[n], size[n], c->limit) <= c->limit) FAIL("%s: -d%s passes", c->what, t->name);
        gradient(t, got), got[size[n]] = got[0];
        if (distance(got + 1, want[n], size[n], c->limit) <= c->limit)
            FAIL("%s: d%s shifted by one passes", c->what, t->name);
    }
    for (int m = 1; m <= c->mistakes; m++) {
        bool seen = false;
        backward(c, m);
        for (int n = 0; n < c->n_in; n++)
            if (c->in[n].d.p)
                gradient(&c->in[n], got), seen |= !(distance(got, want[n], size[n], c->limit) <= c->limit);
        if (!seen) FAIL("%s: mistake %d passes", c->what, m);
    }
    backward(c, 0);
    for (int n = 0; n < c->n_in + c->n_out; n++) {
        const Variable *t = n < c->n_in ? &c->in[n] : &c->out[n - c->n_in];
        if (!padding_is_nan(t->v) || (t->d.p && !padding_is_nan(t->d))) FAIL("%s: wrote beside %s", c->what, t->name);
    }
    if (c->stat.p && !padding_is_nan(c->stat)) FAIL("%s: wrote beside the statistics", c->what);
    if (c->delta.p && !padding_is_nan(c->delta)) FAIL("%s: wrote beside delta", c->what);
    for (int n = 0; n < c->n_in; n++) free(want[n]);
    free(got), free_made();
}

// ------------------------------------------------------------------------------------------------------------- dense

// With y = alpha product(x, w): NT has dx = dy w (NN), dw = dy^T x (TN); NN has dx = dy w^T (NT), dw = x^T dy (TN);
// TN has dx = w dy^T (NT), dw = x dy (NN). dw is added to, as layers do it.
static void matmul_f(const Case *c) { matmul(d, c->out[0].v, c->in[0].v, c->in[1].v, c->layout, c->scalar, 0); }
static void matmul_b(const Case *c, int mistake) {
    Mat x = c->in[0].v, w = c->in[1].v, dy = c->out[0].d;
    float alpha = mistake == 1 ? 1 : c->scalar, keep = mistake == 2 ? 0 : 1;
    if (c->layout == NT) {
        matmul(d, c->in[0].d, dy, w, NN, alpha, 0), matmul(d, c->in[1].d, dy, x, TN, alpha, keep);
    } else if (c->layout == NN) {
        matmul(d, c->in[0].d, dy, w, NT, alpha, 0), matmul(d, c->in[1].d, x, dy, TN, alpha, keep);
    } else {
        matmul(d, c->in[0].d, w, dy, NT, alpha, 0), matmul(d, c->in[1].d, x, dy, NN, alpha, keep);
    }
}
TEST(the_gradients_of_each_matmul_layout_are_matmuls_in_the_other_two) {
    static const struct {
        const char *what;
        Layout layout;
        int64_t x[2], w[2], y[2];
    } cases[] = {{"matmul NT", NT, {5, 7}, {3, 7}, {5, 3}},
                 {"matmul NN", NN, {5, 7}, {7, 3}, {5, 3}},
                 {"matmul TN", TN, {5, 7}, {5, 3}, {7, 3}},
                 {"matmul NT of one row", NT, {1, 4}, {6, 4}, {1, 6}}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Case c = new_case(cases[i].what, matmul_f, matmul_b, 2);
        c.layout = cases[i].layout, c.scalar = 1.5f;
        input(&c, "x", random_mat(cases[i].x[0], cases[i].x[1], 1), OVERWRITTEN);
        input(&c, "w", random_mat(cases[i].w[0], cases[i].w[1], 1), ADDED);
        output(&c, "y", cases[i].y[0], cases[i].y[1]);
        check(&c);
    }
}

static void bias_f(const Case *c) {
    copy(d, c->out[0].v, c->in[0].v);
    add_bias(d, c->out[0].v, c->in[1].v);
}
static void bias_b(const Case *c, int mistake) {
    copy(d, c->in[0].d, c->out[0].d);
    bias_backward(d, c->in[1].d, mistake == 1 ? mat_rows(c->out[0].d, 1, c->out[0].d.rows - 1) : c->out[0].d);
    if (mistake == 2) bias_backward(d, c->in[1].d, c->out[0].d);
}
TEST(the_gradient_of_a_bias_is_the_sum_of_the_rows_added_to_what_was_there) {
    Case c = new_case("add_bias", bias_f, bias_b, 2);
    input(&c, "y", random_mat(5, 7, 1), OVERWRITTEN), input(&c, "b", random_mat(1, 7, 1), ADDED);
    output(&c, "y", 5, 7);
    check(&c);
}

static void add_f(const Case *c) { add(d, c->out[0].v, c->in[0].v, c->in[1].v); }
static void add_b(const Case *c, int mistake) {
    (void)mistake;
    copy(d, c->in[0].d, c->out[0].d), copy(d, c->in[1].d, c->out[0].d);
}
TEST(a_sum_passes_its_gradient_to_both_terms) {
    Case c = new_case("add", add_f, add_b, 0);
    input(&c, "a", random_mat(3, 5, 1), OVERWRITTEN), input(&c, "b", random_mat(3, 5, 1), OVERWRITTEN);
    output(&c, "y", 3, 5);
    check(&c);
}

static void dropout_f(const Case *c) {
    if (c->in_place) copy(d, c->out[0].v, c->in[0].v);
    dropout(d, c->out[0].v, c->in_place ? c->out[0].v : c->in[0].v, c->index, 0.3f, 42, 7);
}
static void dropout_b(const Case *c, int mistake) {
    if (c->in_place) copy(d, c->in[0].d, c->out[0].d);
    dropout(d, c->in[0].d, c->in_place ? c->in[0].d : c->out[0].d, c->index, mistake == 3 ? 0.31f : 0.3f,
            mistake == 2 ? 43 : 42, mistake == 1 ? 8 : 7);
}
TEST(dropout_is_its_own_backward) {
    for (int in_place = 0; in_place < 2; in_place++) {
        Case c = new_case(in_place ? "dropout in place" : "dropout", dropout_f, dropout_b, 3);
        c.in_place = in_place, c.index = integers(6, 2, (int32_t[]){1, 0, 1, 1, 2, 0, 2, 1, -5, 9, 0, 0});
        input(&c, "x", random_mat(6, 11, 1), OVERWRITTEN);
        output(&c, "y", 6, 11);
        check(&c);
    }
}

// -------------------------------------------------------------------------------------------------------------- norm

static Mat rotated_rows(Mat m) { // row i + 1 in place of row i
    Mat out = new_mat(m.rows, m.cols, F32);
    for (int64_t i = 0; i < m.rows; i++) copy(d, mat_rows(out, i, 1), mat_rows(m, (i + 1) % m.rows, 1));
    return out;
}
static void rmsnorm_f(const Case *c) { rmsnorm_forward(d, c->out[0].v, c->stat, c->in[0].v, c->in[1].v, c->scalar); }
static void rmsnorm_b(const Case *c, int mistake) {
    if (mistake == 1) ref_zero(c->in[0].d); // overwrites the gradient that came along the residual
    rmsnorm_backward_add(d, c->in[0].d, c->in[1].d, c->out[0].d, c->in[0].v, c->in[1].v,
                         mistake == 2 ? rotated_rows(c->stat) : c->stat);
}
// eps = 1/4 is of the size of the mean square, so that a backward that forgets it is far off; one row is all zeros.
TEST(rmsnorm_adds_its_gradients_to_those_of_the_residual_and_of_the_weight) {
    for (int frozen = 0; frozen < 2; frozen++) {
        Case c = new_case(frozen ? "rmsnorm, w frozen" : "rmsnorm", rmsnorm_f, rmsnorm_b, 2);
        c.scalar = 0.25f, c.stat = new_mat(5, 1, F32);
        Variable *x = input(&c, "x", random_mat(5, 9, 2), ADDED);
        input(&c, "w", random_mat(1, 9, 2), frozen ? FROZEN : ADDED);
        output(&c, "y", 5, 9);
        fill(mat_rows(x->v, 3, 1), 0);
        check(&c);
    }
}

// y and the sum both go on into the loss: the sum along the residual, so its gradient is there before the norm's.
static void add_rmsnorm_f(const Case *c) {
    Mat sum = c->out[1].v, x = c->in[0].v;
    if (c->in_place) copy(d, sum, x), x = sum;
    add_rmsnorm_forward(d, c->out[0].v, c->stat, sum, x, c->in[1].v, c->in[2].v, c->scalar);
}
static void add_rmsnorm_b(const Case *c, int mistake) {
    copy(d, c->in[0].d, c->out[1].d);
    rmsnorm_backward_add(d, c->in[0].d, c->in[2].d, c->out[0].d, mistake == 1 ? c->in[0].v : c->out[1].v, c->in[2].v,
                         c->stat);
    copy(d, c->in[1].d, mistake == 2 ? c->out[1].d : c->in[0].d);
}
TEST(add_rmsnorm_passes_the_gradient_of_the_sum_and_of_its_norm_to_both_terms) {
    for (int in_place = 0; in_place < 2; in_place++) {
        Case c = new_case(in_place ? "add_rmsnorm in place" : "add_rmsnorm", add_rmsnorm_f, add_rmsnorm_b, 2);
        c.scalar = 0.25f, c.in_place = in_place, c.stat = new_mat(4, 1, F32);
        input(&c, "x", random_mat(4, 9, 1), OVERWRITTEN), input(&c, "r", random_mat(4, 9, 1), OVERWRITTEN);
        input(&c, "w", random_mat(1, 9, 2), ADDED);
        output(&c, "y", 4, 9), output(&c, "sum", 4, 9);
        check(&c);
    }
}

// ---------------------------------------------------------------------------------------------------------- position

static Mat turns(int64_t rows, int64_t dim) { // cos | sin, row i turned by (i + 1) / (j^2 + 1) in pair j
    Mat m = new_mat(rows, dim, F32);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < dim / 2; j++) {
            double turn = (double)(i + 1) / (double)(j * j + 1);
            put(m, i, j, cos(turn)), put(m, i, dim / 2 + j, sin(turn));
        }
    return m;
}
static void rope_f(const Case *c) {
    copy(d, c->out[0].v, c->in[0].v);
    rope(d, c->out[0].v, c->angles, c->heads, c->dim, 1);
}
static void rope_b(const Case *c, int mistake) {
    copy(d, c->in[0].d, c->out[0].d);
    rope(d, c->in[0].d, c->angles, c->heads, c->dim, mistake == 1 ? 1 : -1);
}
TEST(the_backward_of_a_rotation_is_the_inverse_rotation) {
    Case c = new_case("rope", rope_f, rope_b, 1);
    c.heads = 3, c.dim = 6, c.angles = turns(5, 6);
    Variable *x = input(&c, "x", random_mat(5, 18, 1), OVERWRITTEN);
    output(&c, "y", 5, 18);
    Mat there_and_back = new_mat(5, 18, F32);
    copy(d, there_and_back, x->v);
    rope(d, there_and_back, c.angles, 3, 6, 1), rope(d, there_and_back, c.angles, 3, 6, -1);
    for (int64_t i = 0; i < 5; i++)
        for (int64_t j = 0; j < 18; j++) EXPECT_NEAR(get(there_and_back, i, j), get(x->v, i, j), 1e-15);
    check(&c);
}

// --------------------------------------------------------------------------------------------------------- attention

static void attention_f(const Case *c) {
    attention_forward(d, c->out[0].v, c->stat, c->in[0].v, c->in[1].v, c->in[2].v, c->spans, c->heads, c->kv_heads,
                      c->dim, c->scalar);
}
// Mistakes: the last span is dropped; every span is causal where it was not and the reverse; another scale; the last
// span's prefix lacks a row.
static void attention_b(const Case *c, int mistake) {
    Span copies[16];
    CHECK(c->spans.n <= 16, "more spans than expected");
    for (int64_t i = 0; i < c->spans.n; i++) {
        copies[i] = c->spans.host[i];
        if (mistake == 2) copies[i].causal = !copies[i].causal;
    }
    if (mistake == 4) copies[c->spans.n - 1].prefix_first++;
    fill(c->delta, NAN);
    attention_backward(d, c->in[0].d, c->in[1].d, c->in[2].d, c->delta, c->out[0].d, c->in[0].v, c->in[1].v, c->in[2].v,
                       c->out[0].v, c->stat, host_spans(copies, c->spans.n - (mistake == 1)), c->heads, c->kv_heads,
                       c->dim, mistake == 3 ? 0.5f : c->scalar);
}
static bool row_is_zero(Mat m, int64_t row) {
    for (int64_t j = 0; j < m.cols; j++)
        if (get(m, row, j) != 0) return false;
    return true;
}
// Query rows in no span and key rows that nothing sees hold NaN in every array: were one of them read, or multiplied by
// zero, it would show. Their gradients must be zeros.
static void check_attention(const char *what, int mistakes, const Span *spans, int64_t n, int64_t q_rows,
                            int64_t k_rows, int64_t heads, int64_t kv_heads, int64_t dim) {
    Case c = new_case(what, attention_f, attention_b, mistakes);
    c.spans = host_spans(spans, n), c.scalar = 0.7f, c.heads = heads, c.kv_heads = kv_heads, c.dim = dim;
    c.stat = new_mat(q_rows, heads, F32), c.delta = new_mat(q_rows, heads, F32);
    Variable *q = input(&c, "q", random_mat(q_rows, heads * dim, 1), OVERWRITTEN);
    Variable *k = input(&c, "k", random_mat(k_rows, kv_heads * dim, 1), OVERWRITTEN);
    Variable *v = input(&c, "v", random_mat(k_rows, kv_heads * dim, 1), OVERWRITTEN);
    Variable *o = output(&c, "o", q_rows, heads * dim);
    bool asks[64] = {0}, is_seen[64] = {0};
    CHECK(q_rows <= 64 && k_rows <= 64, "more rows than expected");
    for (int64_t i = 0; i < n; i++) {
        Span s = spans[i];
        for (int64_t r = s.first; r < s.last; r++) asks[r] = is_seen[r] = true;
        for (int64_t r = s.prefix_first; s.first < s.last && r < s.prefix_last; r++) is_seen[r] = true;
    }
    for (int64_t r = 0; r < q_rows; r++)
        if (!asks[r]) fill(mat_rows(q->v, r, 1), NAN), fill(mat_rows(o->d, r, 1), NAN);
    for (int64_t r = 0; r < k_rows; r++)
        if (!is_seen[r]) fill(mat_rows(k->v, r, 1), NAN), fill(mat_rows(v->v, r, 1), NAN);
    backward(&c, 0);
    for (int64_t r = 0; r < q_rows; r++)
        if (row_is_zero(q->d, r) != !asks[r]) {
            // a row that sees one key has p = 1 whatever q is, so its gradient is zero to rounding or exactly
            bool one_key = false;
            for (int64_t i = 0; i < n; i++)
                if (spans[i].first <= r && r < spans[i].last)
                    one_key = spans[i].prefix_last - spans[i].prefix_first + (spans[i].causal ? r + 1 : spans[i].last) -
                                  spans[i].first ==
                              1;
            if (!one_key) FAIL("%s: dq of row %lld", what, (long long)r);
        }
    for (int64_t r = 0; r < k_rows; r++)
        if (row_is_zero(v->d, r) != !is_seen[r] || (!is_seen[r] && !row_is_zero(k->d, r)))
            FAIL("%s: dk, dv of row %lld", what, (long long)r);
    for (int64_t r = 0; r < q_rows; r++)
        for (int64_t h = 0; h < heads; h++) // delta is dout.o, zero where nothing asks
            EXPECT_NEAR(get(c.delta, r, h), asks[r] ? dot(o->d, r, h * dim, o->v, r, h * dim, dim) : 0, 0);
    check(&c);
}
#define ATTENTION(what, mistakes, spans, q_rows, k_rows, heads, kv_heads, dim)                                         \
    check_attention(what, mistakes, spans, (int64_t)(sizeof(spans) / sizeof *(spans)), q_rows, k_rows, heads,          \
                    kv_heads, dim)

TEST(attention_over_one_sequence) {
    Span causal[] = {{0, 7, 0, 0, 1}}, all[] = {{0, 7, 0, 0, 0}};
    ATTENTION("causal", 3, causal, 7, 7, 2, 2, 3);
    ATTENTION("whole", 3, all, 7, 7, 2, 2, 3);
    ATTENTION("one head of odd width", 3, causal, 7, 7, 1, 1, 5);
}
TEST(attention_in_windows_and_packed_sequences) {
    Span windows[] = {{0, 4, 0, 0, 0}, {4, 8, 0, 0, 0}, {8, 9, 0, 0, 0}, {9, 12, 0, 0, 0}};
    Span packed[] = {{0, 5, 0, 0, 1}, {5, 6, 0, 0, 1}, {6, 12, 0, 0, 1}};
    Span mixed[] = {{6, 12, 0, 0, 1}, {0, 6, 0, 0, 0}}; // in any order
    ATTENTION("windows", 3, windows, 12, 12, 2, 2, 4);
    ATTENTION("packed", 3, packed, 12, 12, 2, 1, 4);
    ATTENTION("mixed", 3, mixed, 12, 12, 2, 1, 4);
}
TEST(attention_of_grouped_query_heads_adds_up_in_their_shared_key_head) {
    Span packed[] = {{0, 4, 0, 0, 1}, {4, 7, 0, 0, 1}};
    ATTENTION("four on two", 3, packed, 7, 7, 4, 2, 4);
    ATTENTION("six on two", 3, packed, 7, 7, 6, 2, 2);
    ATTENTION("three on one", 3, packed, 7, 7, 3, 1, 4);
}
// A GRPO group: the prompt once, causal, and completions that each see all of it and themselves.
TEST(attention_of_a_group_adds_up_in_the_shared_prompt) {
    Span group[] = {{0, 5, 0, 0, 1}, {5, 8, 0, 5, 1}, {8, 9, 0, 5, 1}, {9, 13, 0, 5, 1}};
    Span two_groups[] = {{0, 3, 0, 0, 1}, {3, 5, 0, 3, 1},  {5, 7, 0, 3, 1},
                         {7, 9, 0, 0, 1}, {9, 11, 7, 9, 1}, {11, 13, 7, 9, 1}};
    Span inner[] = {{5, 8, 1, 4, 1}, {8, 10, 2, 5, 0}}; // overlapping prefixes that are nobody's queries
    Span later[] = {{0, 3, 7, 10, 1}, {3, 6, 0, 3, 0}}; // a prefix behind its span, and rows that are own and prefix
    ATTENTION("group", 4, group, 13, 13, 4, 2, 4);
    ATTENTION("two groups", 4, two_groups, 13, 13, 2, 1, 4);
    ATTENTION("prefixes inside", 4, inner, 10, 10, 2, 2, 4);
    ATTENTION("prefix after, more keys than queries", 4, later, 6, 10, 2, 1, 4);
}
TEST(attention_rows_that_no_span_names_and_empty_spans_have_no_gradient) {
    Span gaps[] = {{1, 4, 0, 0, 1}, {6, 9, 0, 0, 0}};
    Span empty[] = {{0, 0, 0, 0, 1}, {0, 4, 0, 0, 1}, {4, 4, 0, 4, 1}, {6, 6, 5, 6, 0}, {6, 9, 1, 3, 1}};
    ATTENTION("gaps", 3, gaps, 11, 11, 2, 1, 4);
    ATTENTION("empty spans", 4, empty, 10, 11, 2, 1, 4);
    Mat q = random_mat(3, 4, 1), dq = new_mat(3, 4, F32), dk = new_mat(3, 4, F32), dv = new_mat(3, 4, F32),
        lse = new_mat(3, 1, F32), delta = new_mat(3, 1, F32);
    attention_backward(d, dq, dk, dv, delta, q, q, q, q, q, lse, (Spans){0}, 1, 1, 4, 1);
    for (int64_t r = 0; r < 3; r++)
        EXPECT(row_is_zero(dq, r) && row_is_zero(dk, r) && row_is_zero(dv, r) && row_is_zero(delta, r));
    free_made();
}

// --------------------------------------------------------------------------------------------------------------- mlp

static void swiglu_f(const Case *c) { swiglu_forward(d, c->out[0].v, c->in[0].v, c->in[1].v); }
static void swiglu_b(const Case *c, int mistake) {
    swiglu_backward(d, c->in[mistake == 1].d, c->in[mistake != 1].d, c->out[0].d, c->in[0].v, c->in[1].v);
}
static void gelu_f(const Case *c) { gelu_forward(d, c->out[0].v, c->in[0].v); }
static void gelu_b(const Case *c, int mistake) {
    gelu_backward(d, c->in[0].d, c->out[0].d, mistake == 1 ? c->out[0].v : c->in[0].v);
}
TEST(swiglu_and_gelu) {
    Case c = new_case("swiglu", swiglu_f, swiglu_b, 1);
    input(&c, "gate", random_mat(6, 7, 5), OVERWRITTEN), input(&c, "up", random_mat(6, 7, 2), OVERWRITTEN);
    output(&c, "y", 6, 7);
    check(&c);
    Case g = new_case("gelu", gelu_f, gelu_b, 1);
    input(&g, "x", random_mat(6, 7, 4), OVERWRITTEN);
    output(&g, "y", 6, 7);
    check(&g);
}
TEST(swiglu_and_gelu_far_from_zero_are_the_identity_or_nothing) {
    Mat x = new_mat(1, 4, F32), one = new_mat(1, 4, F32), dx = new_mat(1, 4, F32), dup = new_mat(1, 4, F32);
    double far[4] = {800, -800, 1e300, -1e300};
    fill(one, 1);
    for (int j = 0; j < 4; j++) put(x, 0, j, far[j]);
    swiglu_backward(d, dx, dup, one, x, one);
    for (int j = 0; j < 4; j++) {
        EXPECT_NEAR(get(dx, 0, j), far[j] > 0, 1e-15);
        EXPECT_NEAR(get(dup, 0, j), far[j] > 0 ? far[j] : 0, 1e-15);
    }
    gelu_backward(d, dx, one, x);
    for (int j = 0; j < 4; j++) EXPECT_NEAR(get(dx, 0, j), far[j] > 0, 1e-15);
    free_made();
}

// -------------------------------------------------------------------------------------------------------------- rows

static const int32_t rows_chosen[] = {5, -1, 2, 5, 0, 5}, rows_mistaken[] = {5, -1, 2, 5, 1, 5};
static void gather_f(const Case *c) { gather_rows(d, c->out[0].v, c->in[0].v, c->index); }
static void gather_b(const Case *c, int mistake) {
    scatter_add_rows(d, c->in[0].d, c->out[0].d, mistake ? integers(6, 1, rows_mistaken) : c->index);
}
static void scatter_f(const Case *c) {
    copy(d, c->out[0].v, c->in[1].v);
    scatter_add_rows(d, c->out[0].v, c->in[0].v, c->index);
}
static void scatter_b(const Case *c, int mistake) {
    gather_rows(d, c->in[0].d, c->out[0].d, mistake ? integers(6, 1, rows_mistaken) : c->index);
    copy(d, c->in[1].d, c->out[0].d);
}
TEST(gathering_and_scattering_rows_are_each_others_backward) {
    Case c = new_case("gather_rows", gather_f, gather_b, 1);
    c.index = integers(6, 1, rows_chosen);
    input(&c, "table", random_mat(7, 3, 1), ADDED);
    output(&c, "y", 6, 3);
    check(&c);
    Case s = new_case("scatter_add_rows", scatter_f, scatter_b, 1);
    s.index = integers(6, 1, rows_chosen);
    input(&s, "x", random_mat(6, 3, 1), OVERWRITTEN), input(&s, "y", random_mat(7, 3, 1), OVERWRITTEN);
    output(&s, "y", 7, 3);
    check(&s);
}

// -------------------------------------------------------------------------------------------------------------- head

static void logprob_f(const Case *c) {
    logprob_forward(d, c->out[0].v, c->stat, mat_none(), c->in[0].v, c->index, c->scalar);
}
static void logprob_b(const Case *c, int mistake) {
    Mat logits = c->in[0].v, dlogits = c->in[0].d, targets = c->index;
    if (c->in_place) copy(d, dlogits, logits), logits = dlogits;
    if (mistake == 2) { // each row's target is the next id
        targets = new_mat(c->index.rows, 1, I32);
        for (int64_t i = 0; i < targets.rows; i++) {
            int32_t t = get_index(c->index, i);
            *(int32_t *)mat_at(targets, i, 0) = t < 0 ? t : (t + 1) % (int32_t)logits.cols;
        }
    }
    if (mistake == 3) targets = integers(5, 1, (int32_t[]){0, 0, 0, 0, 0}); // rows without a target get one
    logprob_backward(d, dlogits, logits, targets, c->stat, c->out[0].d, mistake == 1 ? c->scalar * 1.01f : c->scalar);
}
TEST(logprob_of_each_target) {
    static const struct {
        const char *what;
        float inv_temperature;
        bool in_place;
        int32_t targets[5];
    } cases[] = {{"logprob", 1, false, {0, 10, 3, 3, 7}},
                 {"logprob, some without target", 1, false, {4, -1, 3, -100, 0}},
                 {"logprob, warm", 1 / 1.7f, false, {4, -1, 3, 10, 0}},
                 {"logprob, cold, in place", 2.5f, true, {4, -1, 3, 10, 0}}};
    for (size_t n = 0; n < sizeof cases / sizeof *cases; n++) {
        Case c = new_case(cases[n].what, logprob_f, logprob_b, 3);
        c.scalar = cases[n].inv_temperature, c.in_place = cases[n].in_place, c.stat = new_mat(5, 1, F32),
        c.index = integers(5, 1, cases[n].targets);
        Variable *logits = input(&c, "logits", random_mat(5, 11, 2), OVERWRITTEN);
        Variable *lp = output(&c, "lp", 5, 1);
        for (int64_t v = 0; v < 11; v++) put(logits->v, 4, v, get(logits->v, 4, v) + 800); // only differences count
        if (n == 0) put(lp->d, 2, 0, 0);                                                   // a token of weight 0
        backward(&c, 0);
        for (int64_t i = 0; i < 5; i++)
            EXPECT(row_is_zero(logits->d, i) == (cases[n].targets[i] < 0 || (n == 0 && i == 2)));
        check(&c);
    }
}

// ------------------------------------------------------------------------------------------------------------- block

typedef struct BlockCase {
    Block b;
    BlockShape shape;
    BlockScratch s;
    BlockGrad g;
    Arena arena;
} BlockCase;
static const char *named(const char *layer, const char *part) {
    static char names[MAX_VARIABLES][24];
    static int turn;
    char *name = names[turn++ % MAX_VARIABLES];
    snprintf(name, sizeof names[0], "%s.%s", layer, part);
    return name;
}
static Weight weight(Case *c, const char *layer, const char *part, int64_t rows, int64_t cols, bool trained) {
    Mat value = random_mat(rows, cols, 0.6);
    if (!trained) return (Weight){value, mat_none()};
    Variable *t = input(c, named(layer, part), value, ADDED);
    return (Weight){t->v, t->d};
}
// rank 0: no LoRA. frozen: only LoRA learns.
static Linear linear(Case *c, const char *name, int64_t out, int64_t in, bool bias, int64_t rank, float p,
                     bool frozen) {
    static uint32_t site;
    Linear l = {.w = weight(c, name, "w", out, in, !frozen)};
    if (bias) l.b = weight(c, name, "b", 1, out, !frozen);
    if (!rank) return l;
    l.lora = (Lora){.scale = 2 / (float)rank, .dropout = p, .site = ++site};
    l.lora.a = weight(c, name, "A", rank, in, true), l.lora.b = weight(c, name, "B", out, rank, true);
    return l;
}
static void block_f(const Case *c) {
    const BlockCase *t = c->block;
    block_forward(d, &t->b, t->shape, t->s, c->out[0].v, c->in[0].v, c->angles, c->spans, NULL, NULL, NULL, NULL, NULL);
}
// Mistakes: the last span is dropped; other rotary angles; the dropout of another step.
static void block_b(const Case *c, int mistake) {
    BlockScratch s = c->block->s;
    Spans spans = c->spans;
    if (mistake == 1) spans.n--;
    if (mistake == 3) s.lora.seed++;
    copy(d, c->in[0].d, c->out[0].d);
    block_backward(d, &c->block->b, c->block->shape, s, c->block->g, c->in[0].d, c->in[0].v,
                   mistake == 2 ? rotated_rows(c->angles) : c->angles, spans);
}
static void check_block(const char *what, BlockShape shape, bool joined, const Span *spans, int64_t n, float p,
                        bool frozen) {
    int64_t N = spans[n - 1].last, C = shape.C, q = shape.heads * shape.dim, kv = shape.kv_heads * shape.dim,
            rank = shape.rank;
    Case c = new_case(what, block_f, block_b, p > 0 ? 3 : 2);
    BlockCase t = {.shape = shape, .arena = {.role = "block"}};
    c.limit = 1e-9, c.block = &t, c.spans = host_spans(spans, n), c.angles = turns(N, shape.dim);
    input(&c, "x", random_mat(N, C, 1), OVERWRITTEN), output(&c, "y", N, C);
    t.b.norm1 = weight(&c, "norm1", "w", 1, C, !frozen), t.b.norm2 = weight(&c, "norm2", "w", 1, C, !frozen);
    t.b.n_qkv = joined ? 1 : 3;
    if (joined) t.b.qkv[0] = linear(&c, "qkv", q + 2 * kv, C, true, rank, p, frozen);
    else {
        t.b.qkv[0] = linear(&c, "q", q, C, true, rank, p, frozen);
        t.b.qkv[1] = linear(&c, "k", kv, C, true, 0, p, frozen); // LoRA on some layers, of several ranks
        t.b.qkv[2] = linear(&c, "v", kv, C, true, rank ? 1 : 0, p, frozen);
    }
    t.b.proj = linear(&c, "proj", C, q, joined, rank, p, frozen);
    t.b.gate = linear(&c, "gate", shape.F, C, joined, rank, p, frozen);
    t.b.up = linear(&c, "up", shape.F, C, joined, rank ? 1 : 0, p, frozen);
    t.b.down = linear(&c, "down", C, shape.F, joined, rank, 0, frozen); // and dropout on some
    for (int pass = 0; pass < 2; pass++) {
        Err e = {0};
        if (pass) EXPECT(arena_reserve(&t.arena, d, t.arena.used, &e));
        block_scratch_place(&t.s, &t.arena, d, shape, N, true, NULL);
        block_grad_place(&t.g, &t.arena, d, shape, N);
    }
    if (p > 0) {
        t.s.lora.keys = new_mat(N, 2, I32), t.s.lora.seed = 77;
        for (int32_t i = 0; i < N; i++) *(int32_t *)mat_at(t.s.lora.keys, i, 1) = i;
    }
    check(&c);
    arena_release(&t.arena, d);
}
TEST(a_block_with_all_its_weights_and_adapters) {
    Span group[] = {{0, 3, 0, 0, 1}, {3, 5, 0, 3, 1}, {5, 7, 0, 3, 1}}, windows[] = {{0, 4, 0, 0, 0}, {4, 6, 0, 0, 0}};
    BlockShape text = {.C = 6, .heads = 4, .kv_heads = 2, .dim = 4, .F = 5, .eps = 0.25f};
    BlockShape vision = {.C = 8, .heads = 2, .kv_heads = 2, .dim = 4, .F = 7, .eps = 0.25f};
    check_block("decoder block", text, false, group, 3, 0, false);
    check_block("tower block", vision, true, windows, 2, 0, false);
    text.rank = 3, vision.rank = 2;
    check_block("decoder block, LoRA", text, false, group, 3, 0, true);
    check_block("tower block, LoRA beside trained weights", vision, true, windows, 2, 0, false);
    text.dropout = vision.dropout = true;
    check_block("decoder block, LoRA with dropout", text, false, group, 3, 0.25f, true);
    check_block("tower block, LoRA with dropout beside trained weights", vision, true, windows, 2, 0.25f, false);
}

// -------------------------------------------------------------------------------------------------------------- step

// theta 0.5 under a constant gradient of 0.2, lr 0.01: eps = 1e-8 shows in the tenth digit, which a float has not.
TEST(adamw_to_twelve_digits) {
    static const double want[2][3] = {{0.490000000500, 0.480000001000, 0.470000001500},
                                      {0.489950000500, 0.479901006000, 0.469853016399}};
    for (int decayed = 0; decayed < 2; decayed++) {
        Mat w = new_mat(1, 1, F32), m = new_mat(1, 1, F32), v = new_mat(1, 1, F32), g = new_mat(1, 1, F32);
        fill(w, 0.5), fill(m, 0), fill(v, 0), fill(g, 0.2);
        for (int t = 1; t <= 3; t++) {
            adamw(d, w, m, v, g,
                  (AdamStep){.grad_scale = 1,
                             .lr = 0.01,
                             .decay = decayed ? 0.01 : 0,
                             .beta1 = 0.9,
                             .beta2 = 0.999,
                             .eps = 1e-8,
                             .step_size = 0.01 / (1 - pow(0.9, t)),
                             .root_scale = 1 / sqrt(1 - pow(0.999, t))});
            EXPECT_NEAR(get(w, 0, 0), want[decayed][t - 1], 6e-13);
        }
        free_made();
    }
}
