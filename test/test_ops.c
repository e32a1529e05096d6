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

TEST(zero_rows_are_no_work) {
    Mat x = new_mat(2, 4, F32), w = new_mat(3, 4, F32), y = new_mat(2, 3, F32);
    matmul(d, mat_rows(y, 0, 0), mat_rows(x, 0, 0), w, NT, 1, 0);
    rmsnorm_forward(d, mat_rows(x, 0, 0), mat_none(), mat_rows(x, 0, 0), mat_rows(w, 0, 1), 1e-6f);
    attention_forward(d, mat_rows(x, 0, 0), mat_none(), mat_rows(x, 0, 0), mat_rows(x, 0, 0), mat_rows(x, 0, 0),
                      (Spans){0}, 1, 1, 4, 1);
    EXPECT(true);
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
