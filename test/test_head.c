// test_head.c - the head of a training pass: logits of a few rows at a time, made once, and nothing that depends on how many.
//
// The ops themselves are compared with the reference by test_kernels.c, and their gradients with finite differences by
// test_gradients.c.
#include "compare.h"
#include "tiny.h"

__attribute__((weak)) void cuda_emu_schedule(int order, int early); // absent beside a real GPU

// One layer, no picture is used; V decides how many rows of logits the CPU holds together: 2^23 / V of them.
#define CONFIG(V)                                                                                                      \
    "{\"model_type\":\"qwen2_5_vl\",\"vocab_size\":" V ",\"hidden_size\":8,\"intermediate_size\":16,"                  \
    "\"num_hidden_layers\":1,\"num_attention_heads\":1,\"num_key_value_heads\":1,\"max_position_embeddings\":2000,"    \
    "\"rms_norm_eps\":1e-6,\"rope_theta\":10000.0,\"rope_scaling\":{\"type\":\"mrope\",\"mrope_section\":[1,1,2]},"    \
    "\"hidden_act\":\"silu\",\"tie_word_embeddings\":false,\"image_token_id\":40,\"video_token_id\":41,"               \
    "\"vision_start_token_id\":42,\"vision_end_token_id\":43,\"eos_token_id\":44,"                                     \
    "\"vision_config\":{\"depth\":1,\"hidden_size\":16,\"intermediate_size\":12,\"num_heads\":2,\"patch_size\":4,"     \
    "\"window_size\":16,\"out_hidden_size\":8,\"fullatt_block_indexes\":[0]}}"

typedef struct Seen { // of the ops of a pass
    int64_t V, logit_rows, most_rows, gradient_rows;
    Type gradient_type;
} Seen;
static void watch(void *ctx, const Ops *d, const char *op, Mat y) {
    Seen *s = ctx;
    (void)d;
    if (y.cols != s->V) return;
    if (y.rows > s->most_rows) s->most_rows = y.rows;
    if (!strcmp(op, "matmul")) s->logit_rows += y.rows;
    if (!strcmp(op, "logprob_backward")) s->gradient_rows += y.rows, s->gradient_type = y.type;
}

typedef struct Result {
    float *lp, *entropy, *gradient; // [N], [N], of all trained parameters
    int64_t N, n;
    Seen seen;
} Result;
static Result pass(Model *m, int from, int to, int64_t targets, bool backward) { // sequences [from, to)
    Err e = {0};
    Pack p = {0};
    Result r = {.seen = {.V = m->c.V}};
    int64_t n = targets + 1;
    int32_t *ids = alloc_or_die((size_t)n, sizeof *ids, "test");
    uint8_t *trained = alloc_or_die((size_t)n, 1, "test");
    memset(trained + 1, 1, (size_t)targets);
    for (int k = from; k < to; k++) {
        for (int64_t i = 0; i < n; i++) ids[i] = (int32_t)((37 * k + 11 * i + k * i) % (m->c.V < 1000 ? 39 : m->c.V));
        Sequence s = {.ids = ids, .n = n, .n_prompt = 1, .trained = trained};
        if (!pack_add(&p, &m->c, &s, &e)) err_report(&e), exit(99);
    }
    const TrainBatch *b = pack_batch(&p, false, 7, 0);
    float *dlp = alloc_or_die((size_t)b->N, sizeof *dlp, "test");
    for (int64_t i = 0; i < b->N; i++) dlp[i] = (float)(i % 3 - 1.5);
    r.N = b->N;
    r.lp = alloc_or_die((size_t)b->N, sizeof *r.lp, "test"), r.entropy = alloc_or_die((size_t)b->N, 4, "test");
    model_zero_gradients(m);
    op_trace_set(watch, &r.seen);
    if (!model_pass(m, b, backward ? dlp : NULL, r.lp, r.entropy, &e)) err_report(&e), exit(99);
    op_trace_set(NULL, NULL);
    for (int64_t i = 0; i < m->n_params; i++) {
        Mat g = m->params[i].w->d;
        if (!g.p) continue;
        r.gradient = grow_or_die(r.gradient, (size_t)(r.n + g.rows * g.cols), sizeof(float), "test");
        m->d->download(mat(r.gradient + r.n, g.rows, g.cols, F32), g);
        r.n += g.rows * g.cols;
    }
    free(ids), free(trained), free(dlp), pack_free(&p);
    return r;
}
static void result_free(Result *r) { free(r->lp), free(r->entropy), free(r->gradient); }

// `count` sequences of `targets` in one pass, whose head takes them `chunk` at a time, and each by itself.
static void expect_one_visit(const Ops *d, const char *config, int count, int64_t targets, int64_t chunk) {
    Err e = {0};
    Model m;
    LoraOptions o = {.targets = "decoder", .r = 2, .alpha = 4, .seed = 3};
    if (!model_load(&m, checkpoint(config, false), d, (LoadOptions){0}, &e) || !lora_init(&m, &o, &e) ||
        !model_train_open(&m, &e))
        err_report(&e), exit(99);
    int64_t rows = count * targets;
    Result all = pass(&m, 0, count, targets, true), scored = pass(&m, 0, count, targets, false);
    EXPECT(rows > chunk); // or this test tests nothing
    EXPECT_INT(all.seen.logit_rows, rows);
    EXPECT_INT(all.seen.gradient_rows, rows);
    EXPECT_INT(all.seen.most_rows, chunk);
    EXPECT_INT(all.seen.gradient_type, d->act_type);
    EXPECT_INT(scored.seen.logit_rows, rows);
    EXPECT_INT(scored.seen.gradient_rows, 0);
    EXPECT(!memcmp(all.lp, scored.lp, (size_t)all.N * 4) && !memcmp(all.entropy, scored.entropy, (size_t)all.N * 4));
    for (int k = 0; k < count; k++) { // a row in no matter which chunk
        Result one = pass(&m, k, k + 1, targets, false);
        int64_t at = k * (targets + 1);
        if (memcmp(one.lp, all.lp + at, (size_t)one.N * 4) || memcmp(one.entropy, all.entropy + at, (size_t)one.N * 4))
            FAIL("%s: sequence %d has other bits alone", d->name, k);
        result_free(&one);
    }
    EXPECT(all.lp[0] < 0 && all.entropy[0] > 0.5 && all.entropy[0] < log((double)m.c.V) + 1e-5 && all.n > 0);
    result_free(&all), result_free(&scored), model_free(&m);
}
TEST(logits_are_made_once_and_a_few_rows_at_a_time) {
    (void)FLAT;                                               // tiny.h's own model has too few ids
    expect_one_visit(ops_cpu(), CONFIG("400000"), 4, 12, 20); // 2^23 / 400,000 = 20.97
    if (cuda_emu_schedule) cuda_emu_schedule(1, 0);
    for (int t = 0; t < 2; t++) {
        const Ops *d = ops_cuda(t ? BF16 : F32, &(Err){0});
        if (d) expect_one_visit(d, CONFIG("48"), 3, 180, 512);
    }
}

// A gradient of a whole pass, of which the head saw two chunks, against the sum of two passes of one chunk.
TEST(chunks_of_the_head_add_up_to_the_gradient) {
    Err e = {0};
    Model m;
    LoraOptions o = {.targets = "decoder", .r = 2, .alpha = 4, .seed = 3};
    if (!model_load(&m, checkpoint(CONFIG("400000"), false), ops_cpu(), (LoadOptions){0}, &e) ||
        !lora_init(&m, &o, &e) || !model_train_open(&m, &e))
        err_report(&e), exit(99);
    Result both = pass(&m, 0, 2, 17, true), first = pass(&m, 0, 1, 17, true), second = pass(&m, 1, 2, 17, true);
    EXPECT_INT(both.seen.most_rows, 20);
    EXPECT_INT(first.seen.most_rows, 17);
    for (int64_t i = 0; i < first.n; i++) first.gradient[i] += second.gradient[i];
    EXPECT_CLOSE("gradient", both.gradient, first.gradient, both.n, 1e-4);
    double squares = 0;
    for (int64_t i = 0; i < both.n; i++) squares += (double)both.gradient[i] * both.gradient[i];
    EXPECT(squares > 1e-6);
    result_free(&both), result_free(&first), result_free(&second), model_free(&m);
}
