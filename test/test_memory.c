// test_memory.c - what the memory table says is what is held: by training on a GPU, by answers that are drawn, and on paper for
// models that are not here.
//
// The table itself is commands/training.c; its numbers come from the functions that are compared with allocations here.
#include "../surgr1.h"
#include "tiny.h"

__attribute__((weak)) void cuda_emu_schedule(int order, int early); // absent beside a real GPU

static void must(bool ok, const Err *e) {
    if (!ok) err_report(e), exit(99);
}
static const Ops *cuda(Type type) {
    Err e = {0};
    const Ops *d = ops_cuda(type, &e);
    if (!d) { // nothing below can run: say so in the form of a test's last line
        char line[1200];
        printf("skip all: %s\ntest_memory: 0 passed, 0 failed, 1 skipped\n", err_line(&e, "error", line, sizeof line));
        exit(0);
    }
    return d;
}
// Bytes that are gone from the emulated device. A real one gives out whole pages, and keeps some for itself.
static int64_t taken(const Ops *d) {
    size_t left, all;
    if (!cuda_emu_schedule) return memory_held(d);
    d->memory(&left, &all);
    return (int64_t)(all - left);
}

// ---------------------------------------------------------------------------------------------------------------- training

enum { PICTURE = 24, WORDS = 19 }; // patches of a picture, words of a sequence
static float pixels[PICTURE * 96];
static const Grid picture = {1, 2, PICTURE / 2};
// A question with a picture, and an answer of which every id is a target.
static int64_t sequence(int32_t *ids, uint8_t *trained, int k) {
    int64_t n = 0;
    ids[n++] = 42;
    for (int u = 0; u < PICTURE / 4; u++) ids[n++] = 40;
    ids[n++] = 43;
    for (int i = 0; i < WORDS; i++) trained[n] = i > 4, ids[n++] = (7 * k + 3 * i) % 39;
    return n;
}
static void add_sequences(Pack *p, const Model *m, int count) {
    for (int k = 0; k < count; k++) {
        int32_t ids[64];
        uint8_t trained[64] = {0};
        Err e = {0};
        int64_t n = sequence(ids, trained, k);
        Sequence s = {.ids = ids, .n = n, .n_prompt = n, .trained = trained, .pixels = pixels, .grids = &picture};
        s.n_grids = 1;
        must(pack_add(p, &m->c, &s, &e), &e);
    }
}

typedef struct Way { // what is trained
    const char *lora;
    bool decoder_only;
    int64_t keep;
} Way;
static void choose(Model *m, Way w) {
    Err e = {0};
    LoraOptions o = {.targets = w.lora, .r = 3, .alpha = 6, .seed = 3};
    if (w.lora) must(lora_init(m, &o, &e), &e);
    for (int64_t i = 0; !w.lora && i < m->n_params; i++)
        m->params[i].trained = !m->params[i].tied && (!w.decoder_only || m->params[i].tower == TOWER_DECODER);
}
typedef struct Foretold {
    size_t weights, adapter, values, gradients, moments;
    PassBytes pass;
} Foretold;
static Foretold foretell(const Model *m, const TrainBatch *b) {
    Foretold f = {.weights = m->weights.size, .adapter = m->adapter.size};
    model_train_bytes(m, &f.values, &f.gradients);
    f.moments = optimizer_bytes(m);
    f.pass = model_pass_bytes(m, b, true);
    return f;
}
static void trains_in_what_was_foretold(Type type, Way w) {
    const Ops *d = cuda(type);
    int64_t before = taken(d), held = memory_held(d);
    Err e = {0};
    Model m, on_paper;
    Optimizer opt;
    Pack p = {0};
    AdamOptions adam = {.lr = {1e-3, 1e-3, 1e-3}, .beta1 = 0.9, .beta2 = 0.99, .eps = 1e-8};
    must(model_load(&m, checkpoint(FLAT, false), d, (LoadOptions){0}, &e), &e);
    choose(&m, w);
    add_sequences(&p, &m, 3);
    const TrainBatch *b = pack_batch(&p, false, 7, w.keep);
    Foretold f = foretell(&m, b);
    EXPECT(f.gradients > 0 && f.moments > 2 * f.gradients - 1 && f.pass.text > 0 && f.pass.pictures > 0);
    EXPECT((f.values > 0) == (!w.lora && type == BF16)); // F32 weights that are trained are so in place
    EXPECT((f.pass.vision > 0) == (w.lora ? strcmp(w.lora, "decoder") != 0 : !w.decoder_only));

    must(model_lay_out(&on_paper, folder, type, &e), &e); // no weights are read
    choose(&on_paper, w);
    Foretold same = foretell(&on_paper, b);
    EXPECT(!memcmp(&same, &f, sizeof f));
    must(model_train_open(&on_paper, &e) && optimizer_open(&opt, &on_paper, &adam, &e), &e);
    optimizer_close(&opt, &on_paper), model_free(&on_paper);
    EXPECT_INT(memory_held(d) - held, (int64_t)(f.weights + f.adapter));

    must(model_train_open(&m, &e) && optimizer_open(&opt, &m, &adam, &e), &e);
    float *dlp = alloc_or_die((size_t)b->N, sizeof *dlp, "test"), *lp = alloc_or_die((size_t)b->N, sizeof *lp, "test");
    for (int64_t i = 0; i < b->N; i++) dlp[i] = -0.1f;
    must(model_pass(&m, b, dlp, lp, NULL, &e), &e);
    optimizer_step(&opt, &m, 1, gradient_norm(&opt, &m));
    int64_t want = (int64_t)(f.weights + f.adapter + f.values + f.gradients + f.moments + f.pass.text + f.pass.vision +
                             f.pass.pictures);
    EXPECT_INT(taken(d) - before, want);
    EXPECT_INT(memory_held(d) - held, want);
    optimizer_close(&opt, &m), model_free(&m), pack_free(&p);
    EXPECT_INT(taken(d), before);
    free(dlp), free(lp);
}
TEST(training_on_a_gpu_holds_what_the_table_says) {
    static const Way ways[] = {{"decoder,vision,merger", false, 0},
                               {"decoder,vision,merger", false, 2},
                               {"decoder", false, 1},
                               {NULL, false, 0},
                               {NULL, false, 2},
                               {NULL, true, 0}};
    if (cuda_emu_schedule) cuda_emu_schedule(0, 1);
    for (int t = 0; t < 2; t++)
        for (size_t k = 0; k < sizeof ways / sizeof *ways; k++) trains_in_what_was_foretold(t ? BF16 : F32, ways[k]);
}

// ---------------------------------------------------------------------------------------------------------------- answers

static void watch(void *ctx, const Ops *d, const char *op, Mat y) {
    int64_t *most = ctx, now = memory_held(d);
    (void)op, (void)y;
    if (now > *most) *most = now;
}
static void answers_in_what_was_foretold(const Ops *d, int prompts, int completions, int64_t new_tokens, int shorter) {
    Err e = {0};
    Model m;
    int32_t ids[8][64];
    uint8_t trained[64];
    Request r[8];
    Completion out[64] = {0};
    int64_t longest = 0, most = 0;
    must(model_load(&m, checkpoint(FLAT, false), d, (LoadOptions){0}, &e), &e);
    for (int k = 0; k < prompts; k++) {
        int64_t n = sequence(ids[k], trained, k) - (k ? shorter : 0);
        if (n > longest) longest = n;
        r[k] = (Request){
            .ids = ids[k], .n = n, .pixels = pixels, .grids = &picture, .n_grids = 1, .stream = 64u * (unsigned)k};
        r[k].completions = completions;
    }
    GenerationConfig g = {.sample = {.repetition_penalty = 1, .do_sample = 1, .temperature = 1, .top_p = 1, .seed = 5},
                          .max_new_tokens = new_tokens};
    GenerateBytes f = generate_bytes(&m, prompts, longest, PICTURE, completions, new_tokens);
    int64_t want = memory_held(d) + (int64_t)(f.cache + f.logits + f.pictures + f.activations);
    op_trace_set(watch, &most);
    must(generate(&m, r, prompts, &g, NULL, NULL, out, &e), &e);
    op_trace_set(NULL, NULL);
    // the rotary table serves prompts of other lengths too, and comes when the picture rows have gone
    int64_t table = (longest + new_tokens) * m.c.dim * 4 + 64;
    if (most > want || most < (shorter ? want * 3 / 4 : want - table))
        FAIL("%s: %d prompts, %d answers of %lld: held %lld, foretold %lld", d->name, prompts, completions,
             (long long)new_tokens, (long long)most, (long long)want);
    for (int k = 0; k < prompts * completions; k++) completion_free(&out[k]);
    model_free(&m);
}
TEST(answers_hold_what_the_table_says) {
    if (cuda_emu_schedule) cuda_emu_schedule(0, 1);
    for (int k = 0; k < 3; k++) {
        const Ops *d = k ? cuda(k == 2 ? BF16 : F32) : ops_cpu();
        answers_in_what_was_foretold(d, 1, 1, 3, 0);
        answers_in_what_was_foretold(d, 4, 4, 2, 0); // 16 rows: a traced step is not recorded and gets no idle ones
        answers_in_what_was_foretold(d, 3, 4, 2, 5); // the others are shorter than the longest
    }
    answers_in_what_was_foretold(ops_cpu(), 2, 30, 6, 0); // more rows to decode than prompts have
}

// ---------------------------------------------------------------------------------------------------------------- refusals

TEST(a_device_without_room_says_how_much_it_has) {
    const Ops *d = cuda(F32);
    size_t left, all;
    Err e = {0};
    char line[1200], numbers[100];
    Arena a = {.role = "activations"};
    d->memory(&left, &all);
    snprintf(numbers, sizeof numbers, "found %zu free of %zu", left, all);
    EXPECT(!arena_reserve(&a, d, 2 * all, &e));
    EXPECT_STR(e.code, "E-ME-01");
    if (cuda_emu_schedule) EXPECT(strstr(err_line(&e, "error", line, sizeof line), numbers) != NULL);
    EXPECT(!a.base && !a.size);
    EXPECT(arena_reserve(&a, d, 1000, &e)); // and goes on
    arena_release(&a, d);
}

// ------------------------------------------------------------------------------------------------------------ real models

static const char *SEVEN =
    "{\"model_type\":\"qwen2_5_vl\",\"vocab_size\":152064,\"hidden_size\":3584,\"intermediate_size\":18944,"
    "\"num_hidden_layers\":28,\"num_attention_heads\":28,\"num_key_value_heads\":4,\"max_position_embeddings\":128000,"
    "\"rms_norm_eps\":1e-6,\"rope_theta\":1000000.0,\"rope_scaling\":{\"type\":\"mrope\",\"mrope_section\":[16,24,24]},"
    "\"hidden_act\":\"silu\",\"tie_word_embeddings\":false,\"image_token_id\":151655,\"video_token_id\":151656,"
    "\"vision_start_token_id\":151652,\"vision_end_token_id\":151653,\"eos_token_id\":151645,"
    "\"vision_config\":{\"depth\":32,\"hidden_size\":1280,\"intermediate_size\":3420,\"num_heads\":16,\"patch_size\":"
    "14,"
    "\"window_size\":112,\"out_hidden_size\":3584,\"fullatt_block_indexes\":[7,15,23,31]}}";

static void near(const char *what, double got, double want) {
    if (fabs(got - want) > 0.01 * want) FAIL("%s: %.1f MB, by hand %.1f MB", what, got / 1e6, want / 1e6);
}
// By hand: bytes that each tensor of a pass with recompute takes for a token, from the comments of its structs.
TEST(a_7b_step_takes_what_was_worked_out_by_hand) {
    Err e = {0};
    Model m;
    checkpoint(FLAT, false); // makes the folder
    write_text("config.json", SEVEN);
    unlink(in_folder("preprocessor_config.json"));
    double started = clock_seconds();
    must(model_lay_out(&m, folder, BF16, &e), &e);
    double matrices = 0, vectors = 0;
    for (int64_t i = 0; i < m.n_params; i++)
        *(m.params[i].rows > 1 ? &matrices : &vectors) += (double)(m.params[i].rows * m.params[i].cols);
    EXPECT_INT((int64_t)(matrices + vectors), 8292166656);
    near("weights", (double)m.weights.size, 2 * matrices + 4 * vectors);
    LoraOptions o = {.targets = "decoder", .r = 32, .alpha = 64, .seed = 1}; // a rank of whole tiles: no padding
    must(lora_init(&m, &o, &e), &e);
    double out = 3584 + 512 + 512 + 3584 + 18944 + 18944 + 3584, in = 6 * 3584 + 18944, pairs = 28 * 32 * (out + in);
    Foretold f;
    enum { N = 2048, HEAD = 700 };
    static int32_t targets[N];
    for (int i = HEAD; i < N; i++) targets[i] = -1;
    Span span = {0, N, 0, 0, 1};
    TrainBatch b = {.N = N, .targets = targets, .spans = &span, .n_spans = 1};
    f = foretell(&m, &b);
    near("adapter", (double)f.adapter, 4 * pairs);
    near("gradients", (double)f.gradients, 4 * pairs);
    near("moments", (double)f.moments, 8 * pairs);
    double C = 3584, F = 18944, qkv = 36 * 128;
    double block = 5 * C + qkv + C + 3 * F + 2 * 32, back = C + qkv + C + 3 * F; // normed1, -2, mid, branch, input; att
    double token =
        2 * (28 * C + block + back + C) + 4 * (128 + 28 + 28 + 6 + 6); // x of 28 more; dx; F32 and I32 columns
    near("a pass", (double)f.pass.text, N * token + HEAD * 4 * C * 2 + 512. * 152064 * 4);
    EXPECT(f.pass.vision == 0 && f.pass.pictures == 0);
    EXPECT(clock_seconds() - started < 60); // nothing of 16 GB was touched
    model_free(&m);
}
