// test_ops.c - the reference ops against what their formulas promise, and the contracts against broken calls.
#include "test.h"
#include <sys/wait.h>

static const Ops *d;
static void *made[1000]; // freed at the end
static int n_made;
static void free_made(void) {
    while (n_made) free(made[--n_made]);
}
static Mat new_mat(int64_t rows, int64_t cols, Type type) { // random in (-1, 1), a fixed stream per call
    static uint64_t stream;
    d = ops_ref();
    Mat m = mat(d->alloc((size_t)(rows * cols + 1) * type_size(type)), rows, cols, type);
    if (!n_made) atexit(free_made);
    CHECK(n_made < (int)(sizeof made / sizeof *made), "more matrices than expected");
    made[n_made++] = m.p, stream++;
    for (int64_t i = 0; i < rows * cols; i++) {
        float f = (float)(2 * random_uniform(7, RANDOM_TEST, stream, (uint32_t)i) - 1);
        if (type == F32) ((float *)m.p)[i] = f;
        else if (type == BF16) ((uint16_t *)m.p)[i] = f32_to_bf16(f);
        else ((int32_t *)m.p)[i] = (int32_t)i;
    }
    return m;
}
static float *f(Mat m) { return m.p; }
static Spans host_spans(const Span *s, int64_t n) {
    Spans all = {mat((void *)(uintptr_t)s, n, 5, I32), s, n, 0};
    for (int64_t i = 0; i < n; i++)
        if (s[i].last - s[i].first > all.longest) all.longest = s[i].last - s[i].first;
    return all;
}

// Salmon et al. 2011, Random123 known-answer file kat_vectors: philox4x32-10.
TEST(philox_gives_the_published_vectors) {
    Random4 zero = philox(0, 0, 0, 0, 0), ones = philox(UINT64_MAX, UINT32_MAX, UINT32_MAX, UINT32_MAX, UINT32_MAX);
    Random4 pi = philox(0x299f31d0a4093822ull, 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344);
    uint32_t want[3][4] = {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8},
                           {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd},
                           {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}};
    for (int i = 0; i < 4; i++) {
        EXPECT_INT(zero.v[i], want[0][i]);
        EXPECT_INT(ones.v[i], want[1][i]);
        EXPECT_INT(pi.v[i], want[2][i]);
    }
}

TEST(bf16_rounds_to_nearest_even_and_keeps_nan) {
    EXPECT_INT(f32_to_bf16(1.0f), 0x3f80);
    EXPECT_INT(f32_to_bf16(1.00390625f), 0x3f80); // half way between 3f80 and 3f81: to even
    EXPECT_INT(f32_to_bf16(1.01171875f), 0x3f82); // half way between 3f81 and 3f82
    EXPECT_INT(f32_to_bf16(3.4e38f), 0x7f80);     // over the largest: infinity
    EXPECT(isnan(bf16_to_f32(f32_to_bf16(NAN))));
    for (uint32_t h = 0; h < 65536; h++)
        if ((h & 0x7fff) <= 0x7f80) { EXPECT_INT(f32_to_bf16(bf16_to_f32((uint16_t)h)), h); }
}

TEST(matmul_layouts_agree_with_each_other) {
    Mat x = new_mat(5, 7, F32), w = new_mat(3, 7, F32), y = new_mat(5, 3, F32), xt = new_mat(7, 5, F32),
        wt = new_mat(7, 3, F32), z = new_mat(5, 3, F32);
    for (int i = 0; i < 5; i++)
        for (int k = 0; k < 7; k++) f(xt)[k * 5 + i] = f(x)[i * 7 + k];
    for (int j = 0; j < 3; j++)
        for (int k = 0; k < 7; k++) f(wt)[k * 3 + j] = f(w)[j * 7 + k];
    matmul(d, y, x, w, NT, 1, 0);
    matmul(d, z, x, wt, NN, 1, 0);
    EXPECT_CLOSE("NN", f(z), f(y), 15, 1e-7);
    matmul(d, z, xt, wt, TN, 1, 0);
    EXPECT_CLOSE("TN", f(z), f(y), 15, 1e-7);
    matmul(d, z, x, w, NT, 2, 1);
    for (int i = 0; i < 15; i++) f(y)[i] *= 3;
    EXPECT_CLOSE("alpha, beta", f(z), f(y), 15, 1e-6);
    for (int i = 0; i < 15; i++) f(z)[i] = NAN;
    matmul(d, z, x, w, NT, 3, 0); // beta 0 does not read y
    EXPECT_CLOSE("beta 0", f(z), f(y), 15, 1e-6);
}

TEST(rmsnorm_gives_rows_of_rms_one_and_add_rmsnorm_is_add_then_rmsnorm) {
    Mat x = new_mat(4, 33, F32), r = new_mat(4, 33, F32), w = new_mat(1, 33, F32), y = new_mat(4, 33, F32),
        rstd = new_mat(4, 1, F32);
    Mat sum = new_mat(4, 33, F32), y2 = new_mat(4, 33, F32);
    for (int j = 0; j < 33; j++) f(w)[j] = 1;
    rmsnorm_forward(d, y, rstd, x, w, 0);
    for (int i = 0; i < 4; i++) {
        double s = 0;
        for (int j = 0; j < 33; j++) s += (double)f(y)[i * 33 + j] * f(y)[i * 33 + j];
        EXPECT_NEAR(s / 33, 1, 1e-6);
    }
    add(d, sum, x, r);
    rmsnorm_forward(d, y, rstd, sum, w, 1e-6f);
    add_rmsnorm_forward(d, y2, mat_none(), x, x, r, w, 1e-6f); // the sum may replace x
    EXPECT(!memcmp(y.p, y2.p, 4 * 33 * 4) && !memcmp(sum.p, x.p, 4 * 33 * 4));
}

TEST(rope_keeps_lengths_and_its_inverse_undoes_it) {
    int heads = 3, dim = 8;
    Mat x = new_mat(5, heads * dim, F32), angles = new_mat(5, dim, F32), before = new_mat(5, heads * dim, F32);
    for (int i = 0; i < 5; i++)
        for (int k = 0; k < dim / 2; k++)
            f(angles)[i * dim + k] = cosf((float)(i * (k + 1))),
                                f(angles)[i * dim + dim / 2 + k] = sinf((float)(i * (k + 1)));
    copy(d, before, x);
    rope(d, x, angles, heads, dim, 1);
    EXPECT(!memcmp(x.p, before.p, (size_t)(heads * dim) * 4)); // position 0: no turn
    EXPECT(fabsf(f(x)[heads * dim] - f(before)[heads * dim]) > 1e-3f);
    // a pair (1, 0) at angle t becomes (cos t, sin t): the halves are paired, not neighbours, and the turn is to the left
    Mat one = new_mat(1, 4, F32), quarter = new_mat(1, 4, F32);
    memcpy(one.p, (float[]){1, 0, 0, 0}, 16), memcpy(quarter.p, (float[]){0, 1, 1, 0}, 16);
    rope(d, one, quarter, 1, 4, 1);
    EXPECT_NEAR(f(one)[0], 0, 1e-7);
    EXPECT_NEAR(f(one)[2], 1, 1e-7);
    EXPECT_NEAR(f(one)[1], 0, 0);
    EXPECT_NEAR(f(one)[3], 0, 0);
    rope(d, x, angles, heads, dim, -1);
    EXPECT_CLOSE("inverse", f(x), f(before), 5 * heads * dim, 1e-6);
}

TEST(attention_over_spans_is_attention_over_each_piece) {
    int64_t heads = 4, kv = 2, dim = 6, n = 9;
    Mat q = new_mat(n, heads * dim, F32), k = new_mat(n, kv * dim, F32), v = new_mat(n, kv * dim, F32);
    Mat o = new_mat(n, heads * dim, F32), lse = new_mat(n, heads, F32), piece = new_mat(n, heads * dim, F32);
    Span two[] = {{0, 4, 0, 0, 1}, {4, 9, 0, 0, 0}}, alone[] = {{0, 5, 0, 0, 0}};
    attention_forward(d, o, lse, q, k, v, host_spans(two, 2), heads, kv, dim, 0.4f);
    attention_forward(d, mat_rows(piece, 4, 5), mat_none(), mat_rows(q, 4, 5), mat_rows(k, 4, 5), mat_rows(v, 4, 5),
                      host_spans(alone, 1), heads, kv, dim, 0.4f);
    EXPECT(!memcmp(mat_at(o, 4, 0), mat_at(piece, 4, 0), (size_t)(5 * heads * dim) * 4));
    for (int c = 0; c < dim; c++)
        EXPECT_NEAR(f(o)[3 * dim + c], f(v)[dim + c], 1e-6); // first causal row, head 3: value of key head 1
    // a prefix of rows 0..3 and own rows 4..8, causal, is one causal sequence of 9 for its last five rows
    Span whole[] = {{0, 9, 0, 0, 1}}, prefixed[] = {{4, 9, 0, 4, 1}};
    attention_forward(d, o, lse, q, k, v, host_spans(whole, 1), heads, kv, dim, 0.4f);
    attention_forward(d, piece, mat_none(), q, k, v, host_spans(prefixed, 1), heads, kv, dim, 0.4f);
    EXPECT_CLOSE("prefix", (float *)mat_at(piece, 4, 0), (float *)mat_at(o, 4, 0), 5 * heads * dim, 1e-7);
    // decoding the last row is the same row
    Span last[] = {{4, 9, 0, 4, 0}};
    Mat one = new_mat(1, heads * dim, F32);
    attention_decode(d, one, mat_rows(q, 8, 1), k, v, host_spans(last, 1), heads, kv, dim, 0.4f);
    EXPECT_CLOSE("decode", f(one), (float *)mat_at(o, 8, 0), heads * dim, 1e-7);
    // control: another prefix is another answer
    Span dropped[] = {{4, 9, 1, 4, 0}};
    attention_decode(d, one, mat_rows(q, 8, 1), k, v, host_spans(dropped, 1), heads, kv, dim, 0.4f);
    EXPECT(!error_within(tensor_error(f(one), mat_at(o, 8, 0), heads * dim), 1e-5));
}

TEST(attention_survives_large_scores) {
    Mat q = new_mat(2, 4, F32), k = new_mat(2, 4, F32), v = new_mat(2, 4, F32), o = new_mat(2, 4, F32);
    for (int i = 0; i < 8; i++) f(q)[i] *= 1e4f, f(k)[i] *= 1e4f;
    Span s[] = {{0, 2, 0, 0, 0}};
    attention_forward(d, o, mat_none(), q, k, v, host_spans(s, 1), 1, 1, 4, 1);
    for (int i = 0; i < 8; i++) EXPECT(isfinite(f(o)[i]));
}

TEST(rows_gather_and_scatter_are_transposes) {
    Mat table = new_mat(6, 3, BF16), index = new_mat(4, 1, I32), y = new_mat(4, 3, F32), back = new_mat(6, 3, F32);
    memcpy(index.p, (int32_t[]){5, -1, 2, 5}, 16);
    gather_rows(d, y, table, index);
    EXPECT(f(y)[0] == bf16_to_f32(((uint16_t *)table.p)[15]) && f(y)[3] == 0 && f(y)[9] == f(y)[0]);
    d->zero(back);
    scatter_add_rows(d, back, y, index);
    EXPECT(f(back)[15] == 2 * f(y)[0] && f(back)[6] == f(y)[6] && f(back)[0] == 0);
}

TEST(logprob_of_equal_logits_is_uniform_and_entropy_is_its_logarithm) {
    Mat logits = new_mat(2, 5, F32), t = new_mat(2, 1, I32), lp = new_mat(2, 1, F32), lse = new_mat(2, 1, F32),
        H = new_mat(2, 1, F32);
    for (int i = 0; i < 5; i++) f(logits)[i] = 300;
    memcpy(t.p, (int32_t[]){3, -100}, 8);
    logprob_forward(d, lp, lse, H, logits, t, 0.5f);
    EXPECT_NEAR(f(lp)[0], -log(5), 1e-6);
    EXPECT_NEAR(f(H)[0], log(5), 1e-6);
    EXPECT_NEAR(f(lse)[0], 150 + log(5), 1e-5);
    EXPECT(f(lp)[1] == 0);
}

TEST(sampling_draws_from_its_distribution) {
    enum { V = 6, DRAWS = 40000 };
    float logits[V] = {0, 1, 2, -1, 0.5f, 3};
    SampleParams p = {
        .repetition_penalty = 1.3, .do_sample = 1, .top_k = 4, .temperature = 0.8, .top_p = 0.95, .seed = 3};
    int32_t seen_ids[] = {5, 5, 2};
    double probs[V];
    uint8_t kept[V];
    int64_t n = sample_distribution(logits, V, seen_ids, 3, p, 1, probs, kept);
    EXPECT(n >= 2 && n <= 4 && !kept[3] && !kept[0]);
    Mat tokens = new_mat(1, 1, I32), stream = new_mat(1, 1, I32), step = new_mat(1, 1, I32), seen = new_mat(1, 1, I32);
    double count[V] = {0};
    for (int i = 0; i < DRAWS; i++) {
        *(int32_t *)seen.p = 1 << 5 | 1 << 2, *(int32_t *)stream.p = i % 100, *(int32_t *)step.p = i / 100;
        sample(d, tokens, mat(logits, 1, V, F32), seen, stream, step, p);
        int32_t t = *(int32_t *)tokens.p;
        count[t] += 1.0 / DRAWS;
        EXPECT(*(int32_t *)seen.p == (1 << 5 | 1 << 2 | 1 << t));
    }
    for (int v = 0; v < V; v++)
        EXPECT_NEAR(count[v], probs[v], 4 * sqrt(probs[v] * (1 - probs[v]) / DRAWS)); // four sigma
}

TEST(greedy_takes_the_lowest_id_of_equals_and_ignores_the_sampling_filters) {
    float logits[4] = {1, 7, 7, -3};
    Mat tokens = new_mat(1, 1, I32), stream = new_mat(1, 1, I32), step = new_mat(1, 1, I32);
    sample(d, tokens, mat(logits, 1, 4, F32), mat_none(), stream, step,
           (SampleParams){.repetition_penalty = 1, .top_k = 1, .top_p = 0});
    EXPECT_INT(*(int32_t *)tokens.p, 1);
    Mat seen = new_mat(1, 1, I32);
    *(int32_t *)seen.p = 1 << 1;
    sample(d, tokens, mat(logits, 1, 4, F32), seen, stream, step, (SampleParams){.repetition_penalty = 2});
    EXPECT_INT(*(int32_t *)tokens.p, 2);
}

static AdamStep adam_step(int t, double grad_scale, double lr, double decay) {
    return (AdamStep){.grad_scale = grad_scale,
                      .lr = lr,
                      .decay = decay,
                      .beta1 = 0.9,
                      .beta2 = 0.999,
                      .eps = 1e-8,
                      .step_size = lr / (1 - pow(0.9, t)),
                      .root_scale = 1 / sqrt(1 - pow(0.999, t))};
}
static Mat filled(int64_t rows, int64_t cols, float value) {
    Mat m = new_mat(rows, cols, F32);
    for (int64_t i = 0; i < rows * cols; i++) f(m)[i] = value;
    return m;
}
// theta 0.5 under a constant gradient of 0.2 with lr 0.01: without decay each step is lr to seven digits.
// torch.optim.AdamW gives the same numbers.
TEST(adamw_takes_the_worked_steps_with_and_without_decay_at_any_grad_scale) {
    static const double want[2][3] = {{0.49, 0.48, 0.47}, {0.489950000500, 0.479901006000, 0.469853016399}};
    for (int scaled = 0; scaled < 2; scaled++)
        for (int decayed = 0; decayed < 2; decayed++) {
            Mat w = filled(2, 3, 0.5f), m = filled(2, 3, 0), v = filled(2, 3, 0),
                g = filled(2, 3, scaled ? 0.8f : 0.2f);
            for (int t = 1; t <= 3; t++) {
                adamw(d, w, m, v, g, adam_step(t, scaled ? 0.25 : 1, 0.01, decayed ? 0.01 : 0));
                for (int i = 0; i < 6; i++) {
                    EXPECT_NEAR(f(w)[i], want[decayed][t - 1], 5e-8);
                    EXPECT_NEAR(f(m)[i], 0.2 * (1 - pow(0.9, t)), 2e-8); // the gradient after its scale, not before
                    EXPECT_NEAR(f(v)[i], 0.04 * (1 - pow(0.999, t)), 2e-11);
                    EXPECT(f(g)[i] == (scaled ? 0.8f : 0.2f));
                }
            }
        }
    Mat w = filled(1, 1, 0), m = filled(1, 1, 0), v = filled(1, 1, 0), g = filled(1, 1, 3e-8f);
    adamw(d, w, m, v, g, adam_step(1, 1, 0.01, 0)); // eps beside the corrected root: 3e-8 / (3e-8 + 1e-8)
    EXPECT_NEAR(f(w)[0], -0.0075, 1e-8);
    f(w)[0] = 2;
    adamw(d, w, m, v, g, adam_step(2, 1, 0, 0.5)); // the decay is lr * decay: none without lr
    EXPECT(f(w)[0] == 2);
}
TEST(adamw_follows_gradients_that_change) { // against the textbook order: moments, their corrections, then the step
    enum { N = 12, STEPS = 20 };
    double w1[N], m1[N] = {0}, v1[N] = {0};
    float want[N];
    Mat w = new_mat(3, 4, F32), m = filled(3, 4, 0), v = filled(3, 4, 0);
    for (int i = 0; i < N; i++) w1[i] = f(w)[i];
    for (int t = 1; t <= STEPS; t++) {
        Mat g = new_mat(3, 4, F32);
        adamw(d, w, m, v, g, adam_step(t, 0.3, 0.02, 0.1));
        for (int i = 0; i < N; i++) {
            double gi = 0.3 * (double)f(g)[i];
            m1[i] = 0.9 * m1[i] + 0.1 * gi, v1[i] = 0.999 * v1[i] + 0.001 * gi * gi;
            double m_hat = m1[i] / (1 - pow(0.9, t)), v_hat = v1[i] / (1 - pow(0.999, t));
            w1[i] -= 0.02 * 0.1 * w1[i] + 0.02 * m_hat / (sqrt(v_hat) + 1e-8);
        }
    }
    for (int i = 0; i < N; i++) want[i] = (float)w1[i];
    EXPECT_CLOSE("weights after 20 steps", f(w), want, N, 1e-6);
    want[5] *= 1.00001f; // control
    EXPECT(!error_within(tensor_error(f(w), want, N), 1e-6));
}

TEST(sum_squares_of_nothing_is_zero_and_nan_passes_through) {
    Mat x = new_mat(7, 9, F32), out = filled(1, 1, 5), wide = x;
    double sum = 0;
    for (int i = 0; i < 63; i++) sum += (double)f(x)[i] * f(x)[i];
    sum_squares(d, out, x);
    EXPECT_NEAR(f(out)[0], sum, 6e-8 * sum);
    wide.cols = 4; // a view with gaps: what lies in them does not count
    for (int i = 0; i < 7; i++) f(x)[i * 9 + 4] = NAN;
    sum = 0;
    for (int i = 0; i < 63; i++) sum += i % 9 < 4 ? (double)f(x)[i] * f(x)[i] : 0;
    sum_squares(d, out, wide);
    EXPECT_NEAR(f(out)[0], sum, 6e-8 * sum);
    sum_squares(d, out, x);
    EXPECT(isnan(f(out)[0]));
    f(x)[0] = INFINITY;
    sum_squares(d, out, wide);
    EXPECT(isinf(f(out)[0]));
    f(out)[0] = 5;
    sum_squares(d, out, mat_rows(x, 0, 0));
    EXPECT(f(out)[0] == 0);
    f(out)[0] = 5;
    sum_squares(d, out, mat_cols(x, 0, 0));
    EXPECT(f(out)[0] == 0);
    Mat half = new_mat(2, 2, BF16);
    memcpy(half.p, (uint16_t[]){0x3f80, 0x4000, 0xc040, 0}, 8); // 1, 2, -3, 0
    sum_squares(d, out, half);
    EXPECT(f(out)[0] == 14);
    Mat many = filled(1000, 1000, 1e-3f); // in float the sum would stall: 1e6 terms of 1e-6
    sum_squares(d, out, many);
    EXPECT_NEAR(f(out)[0], 1e6 * (double)1e-3f * (double)1e-3f, 1e-7);
}

static Mat dropout_keys(int64_t n) { // row i: sample 10 + i, place 3 i
    Mat keys = new_mat(n, 2, I32);
    for (int32_t i = 0; i < n; i++) ((int32_t *)keys.p)[2 * i] = 10 + i, ((int32_t *)keys.p)[2 * i + 1] = 3 * i;
    return keys;
}
TEST(dropout_drops_a_share_of_p_and_scales_the_rest) {
    enum { N = 1000, C = 1000 };
    static const float shares[] = {0.05f, 0.5f, 0.9f};
    Mat x = filled(N, C, 1), y = new_mat(N, C, F32), keys = dropout_keys(N);
    for (int i = 0; i < N * C; i++) f(x)[i] = 1 + (float)(i % 1013) / 1013;
    for (int k = 0; k < 3; k++) {
        float p = shares[k];
        int64_t dropped = 0, wrong = 0, by_lane[4] = {0};
        dropout(d, y, x, keys, p, 123456789012345, 77);
        for (int i = 0; i < N * C; i++) {
            if (f(y)[i] == 0) dropped++, by_lane[i % 4]++;
            else wrong += fabs(f(y)[i] * (1 - (double)p) / f(x)[i] - 1) > 6e-8; // one rounding to float
        }
        EXPECT_INT(wrong, 0);
        EXPECT_NEAR((double)dropped / (N * C), p, 4 * sqrt(p * (1 - p) / (N * C))); // four sigma
        for (int lane = 0; lane < 4; lane++)                                        // of each of Philox's four words
            EXPECT_NEAR((double)by_lane[lane] / (N * C / 4), p, 4 * sqrt(p * (1 - p) / (N * C / 4)));
    }
    dropout(d, y, x, keys, 0, 1, 1);
    EXPECT(!memcmp(y.p, x.p, (size_t)N * C * 4));
    Mat infinite = filled(1, 64, INFINITY), out = new_mat(1, 64, F32); // dropped means 0, not 0 times what was there
    dropout(d, out, infinite, mat_rows(keys, 0, 1), 0.5f, 1, 1);
    for (int j = 0; j < 64; j++) EXPECT(f(out)[j] == 0 || isinf(f(out)[j]));
}
// Share of equal places in two masks: 1 where they are the same, p^2 + (1 - p)^2 where they are independent.
static double agreement(Mat a, Mat b) {
    int64_t same = 0;
    for (int64_t i = 0; i < a.rows; i++)
        for (int64_t j = 0; j < a.cols; j++)
            same += (*(float *)mat_at(a, i, j) == 0) == (*(float *)mat_at(b, i, j) == 0);
    return (double)same / (double)(a.rows * a.cols);
}
TEST(a_dropout_mask_depends_on_seed_site_keys_and_column_alone) {
    enum { N = 40, C = 250 }; // 10,000 elements: at p = 1/2 independent masks agree in 0.5 +- 0.005
    Mat x = filled(N, C, 1), y = new_mat(N, C, F32), z = new_mat(N, C, F32), keys = dropout_keys(N);
    dropout(d, y, x, keys, 0.5f, 5, 9);
    // the second call, in place, on other values, narrower, row by row in the other order: the same mask
    for (int64_t i = N - 1; i >= 0; i--) {
        Mat row = mat_rows(z, i, 1);
        for (int64_t j = 0; j < C; j++) f(row)[j] = -3 - (float)j;
        dropout(d, mat_cols(row, 0, 7), mat_cols(row, 0, 7), mat_rows(keys, i, 1), 0.5f, 5, 9);
        EXPECT(agreement(mat_cols(row, 0, 7), mat_cols(mat_rows(y, i, 1), 0, 7)) == 1);
        EXPECT(f(row)[7] == -10);
    }
    Mat turned = new_mat(N, 2, I32); // rows of a batch in the other order keep their masks
    for (int i = 0; i < N; i++) memcpy(mat_at(turned, i, 0), mat_at(keys, N - 1 - i, 0), 8);
    dropout(d, z, x, turned, 0.5f, 5, 9);
    for (int i = 0; i < N; i++) EXPECT(agreement(mat_rows(z, i, 1), mat_rows(y, N - 1 - i, 1)) == 1);
    EXPECT_NEAR(agreement(z, y), 0.5, 0.02);
    // each of them alone makes another mask, in its high bits too
    static const uint64_t seeds[] = {6, 5 + (1ull << 32), 5 + (1ull << 63)};
    static const uint32_t sites[] = {8, 9 + (1u << 16), 9 + (1u << 23)};
    for (int k = 0; k < 3; k++) {
        dropout(d, z, x, keys, 0.5f, seeds[k], 9);
        EXPECT_NEAR(agreement(z, y), 0.5, 0.02);
        dropout(d, z, x, keys, 0.5f, 5, sites[k]);
        EXPECT_NEAR(agreement(z, y), 0.5, 0.02);
    }
    for (int part = 0; part < 2; part++)
        for (int bit = 0; bit < 32; bit += 31) {
            memcpy(turned.p, keys.p, (size_t)N * 8);
            for (int i = 0; i < N; i++) ((uint32_t *)turned.p)[2 * i + part] ^= 1u << bit;
            dropout(d, z, x, turned, 0.5f, 5, 9);
            EXPECT_NEAR(agreement(z, y), 0.5, 0.02);
        }
    for (int i = 1; i < N; i++) EXPECT_NEAR(agreement(mat_rows(y, 0, 1), mat_rows(y, i, 1)), 0.5, 0.16); // five sigma
    for (int lag = 1; lag <= 200; lag++) // of at least 2,000 elements: five sigma
        EXPECT_NEAR(agreement(mat_cols(y, 0, C - lag), mat_cols(y, lag, C - lag)), 0.5, 0.056);
    // a larger p drops what a smaller one dropped, and more
    dropout(d, z, x, keys, 0.7f, 5, 9);
    for (int i = 0; i < N * C; i++) EXPECT(f(y)[i] != 0 || f(z)[i] == 0);
}

TEST(zero_rows_are_no_work) {
    Mat x = new_mat(2, 4, F32), w = new_mat(3, 4, F32), y = new_mat(2, 3, F32);
    matmul(d, mat_rows(y, 0, 0), mat_rows(x, 0, 0), w, NT, 1, 0);
    rmsnorm_forward(d, mat_rows(x, 0, 0), mat_none(), mat_rows(x, 0, 0), mat_rows(w, 0, 1), 1e-6f);
    attention_forward(d, mat_rows(x, 0, 0), mat_none(), mat_rows(x, 0, 0), mat_rows(x, 0, 0), mat_rows(x, 0, 0),
                      (Spans){0}, 1, 1, 4, 1);
    EXPECT(true);
}
TEST(zero_rows_have_no_gradient_and_move_no_weight) {
    Mat x = mat_rows(new_mat(2, 4, F32), 0, 0), column = mat_rows(new_mat(2, 1, F32), 0, 0), w = filled(1, 4, 3),
        sums = filled(1, 4, 5), index = mat_rows(new_mat(2, 1, I32), 0, 0);
    bias_backward(d, sums, x);
    rmsnorm_backward_add(d, x, sums, x, x, w, column);
    matmul(d, filled(4, 4, 5), x, x, TN, 1, 1);
    matmul(d, sums, mat_cols(w, 0, 0), mat_reshape(x, 0, 4), NN, 1, 1); // an inner size of zero adds nothing
    dropout(d, x, x, mat_reshape(index, 0, 2), 0.5f, 1, 1);
    rope(d, x, x, 1, 4, -1);
    attention_backward(d, x, x, x, column, x, x, x, x, x, column, (Spans){0}, 1, 1, 4, 1);
    swiglu_backward(d, x, x, x, x, x);
    gelu_backward(d, x, x, x);
    scatter_add_rows(d, sums, x, index);
    logprob_backward(d, x, x, index, column, column, 1);
    adamw(d, x, x, x, x, (AdamStep){.lr = 1});
    bias_backward(d, mat_none(), filled(3, 4, 1)); // frozen
    for (int j = 0; j < 4; j++) EXPECT(f(sums)[j] == 5 && f(w)[j] == 3);
    Mat g = filled(3, 4, 7), dx = filled(3, 4, NAN); // and an empty span list leaves gradients of zero
    Mat q = filled(3, 4, 1), lse = filled(3, 1, 0);
    attention_backward(d, dx, g, g, filled(3, 1, 0), q, q, q, q, q, lse, (Spans){0}, 1, 1, 4, 1);
    for (int i = 0; i < 12; i++) EXPECT(f(dx)[i] == 0 && f(g)[i] == 0);
}

// Exit status of a child that makes a call; its standard error is dropped.
static int status_of(void (*call)(void)) {
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        if (!freopen("/dev/null", "w", stderr)) _exit(99);
        call();
        _exit(0);
    }
    int status = 0;
    waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
static void wrong_inner_size(void) {
    matmul(ops_ref(), new_mat(2, 3, F32), new_mat(2, 4, F32), new_mat(3, 5, F32), NT, 1, 0);
}
static void span_past_the_end(void) {
    Mat x = new_mat(4, 4, F32);
    Span s[] = {{0, 5, 0, 0, 1}};
    attention_forward(ops_ref(), new_mat(4, 4, F32), mat_none(), x, x, x, host_spans(s, 1), 1, 1, 4, 1);
}
static void integers_as_reals(void) { add(ops_ref(), new_mat(2, 2, F32), new_mat(2, 2, I32), new_mat(2, 2, F32)); }
static void index_of_wrong_length(void) {
    gather_rows(ops_ref(), new_mat(3, 2, F32), new_mat(5, 2, F32), new_mat(4, 1, I32));
}
TEST(a_broken_contract_stops_the_program) {
    void (*calls[])(void) = {wrong_inner_size, span_past_the_end, integers_as_reals, index_of_wrong_length};
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        int s = status_of(calls[i]);
        if (s != EXIT_BUG && s != 128 + 6) FAIL("call %zu ended with status %d", i, s);
    }
}

// Calls that break the contract of a backward op in one place each; case 0 breaks none.
static int broken;
static bool is(int n) { return broken == n; }
static Mat fresh(int64_t rows, int64_t cols) { return new_mat(rows, cols, F32); }
static void backward_calls(void) {
    Mat x = fresh(4, 6), column = fresh(4, 1), row = filled(1, 6, 1), index = new_mat(4, 1, I32),
        half = new_mat(4, 6, BF16);
    Span span = {0, is(1) ? 5 : 4, 0, 0, 1}, twice = {0, 4, is(2) ? 3 : 4, 4, 0};
    d = ops_ref();
    bias_backward(d, is(3) ? fresh(1, 5) : is(4) ? new_mat(1, 6, BF16) : is(5) ? fresh(2, 6) : row, is(6) ? x : half);
    if (is(6)) bias_backward(d, row, new_mat(4, 6, I32));
    dropout(d, fresh(4, 6), is(7) ? fresh(3, 6) : x, is(8) ? index : new_mat(is(9) ? 3 : 4, 2, I32),
            is(10)   ? 1
            : is(11) ? -0.1f
            : is(12) ? NAN
                     : 0.5f,
            1, is(13) ? 1u << 24 : (1u << 24) - 1);
    rmsnorm_backward_add(d, is(14) ? fresh(4, 5) : fresh(4, 6), is(15) ? new_mat(1, 6, BF16) : row, x, x,
                         is(16) ? fresh(1, 5) : row,
                         is(17)   ? mat_none()
                         : is(18) ? fresh(3, 1)
                                  : column);
    attention_backward(d, is(19) ? fresh(3, 6) : fresh(4, 6), is(20) ? fresh(4, 3) : fresh(4, 6),
                       is(21) ? fresh(5, 6) : fresh(4, 6),
                       is(22)   ? mat_none()
                       : is(23) ? fresh(4, 1)
                                : fresh(4, 2),
                       is(24) ? fresh(4, 5) : x, x, x, x, x,
                       is(25)   ? mat_none()
                       : is(26) ? new_mat(4, 2, BF16)
                                : fresh(4, 2),
                       host_spans(&span, 1), 2, is(27) ? 1 : 2, 3, 1);
    attention_backward(d, fresh(4, 6), fresh(4, 6), fresh(4, 6), fresh(4, 2), x, x, x, x, x, fresh(4, 2),
                       host_spans(&twice, 1), 2, 2, 3, 1);
    swiglu_backward(d, fresh(4, 6), is(28) ? fresh(4, 5) : half, x, is(29) ? fresh(3, 6) : x, is(30) ? index : x);
    gelu_backward(d, fresh(4, 6), is(31) ? fresh(4, 5) : half, is(32) ? new_mat(4, 6, I32) : x);
    logprob_backward(d, is(33) ? fresh(4, 5) : half, is(34) ? half : x, is(35) ? column : index,
                     is(36) ? mat_none() : column,
                     is(37)   ? mat_none()
                     : is(38) ? row
                              : column,
                     1);
    scatter_add_rows(d, fresh(9, is(39) ? 5 : 6), x, is(40) ? new_mat(3, 1, I32) : index);
    sum_squares(d, is(41) ? fresh(1, 2) : is(42) ? new_mat(1, 1, BF16) : fresh(1, 1), is(43) ? index : half);
    adamw(d, is(44) ? half : x, fresh(4, 6), is(45) ? fresh(4, 5) : fresh(4, 6), is(46) ? half : x,
          (AdamStep){.lr = 1});
}
TEST(a_broken_contract_of_a_backward_op_stops_the_program) {
    enum { CALLS = 46 };
    for (broken = 0; broken <= CALLS; broken++) {
        int s = status_of(backward_calls);
        if (broken ? s != EXIT_BUG && s != 128 + 6 : s != 0) FAIL("call %d ended with status %d", broken, s);
    }
}
