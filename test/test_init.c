// test_init.c - fresh checkpoints: what their numbers are, and that the folder is one.
#include "test.h"

static char folder[200];
static const char *in_folder(const char *name) { // one of a few rotating buffers
    static char path[4][400];
    static int turn;
    turn = (turn + 1) % 4;
    snprintf(path[turn], sizeof path[turn], "%s/%s", folder, name);
    return path[turn];
}
static void write_text(const char *name, const char *text) {
    Err e = {0};
    if (!file_write_atomic(in_folder(name), text, strlen(text), &e)) exit(err_report(&e));
}

static const char *dirs[] = {"tok", "a", "b"};
static void remove_all(void) {
    char path[400];
    for (int d = 0; d < 3; d++) {
        Err e = {0};
        snprintf(path, sizeof path, "%s/%s", folder, dirs[d]);
        if (folder_exists(path) && folder_begin(path, &e)) rmdir(path);
    }
    unlink(in_folder("text.txt")), unlink(in_folder("config.json"));
    rmdir(folder);
}

// A tokenizer of 280 ids, and the config to use it with.
static void prepare(const char *config) {
    Err e = {0};
    write_text("config.json", config);
    if (folder_exists(in_folder("tok"))) return;
    write_text("text.txt", "hook grasper hook grasper clipper hook grasper scissors grasper clipper scissors");
    const char *text[] = {in_folder("text.txt")};
    TokenizerTrain o = {.text = text, .n_text = 1, .size = 280};
    TokenizerStats s;
    if (!tokenizer_train(&o, in_folder("tok"), &s, &e) || s.size != 280) exit(99);
}
static const char *base(void) {
    if (*folder) return folder;
    snprintf(folder, sizeof folder, "/tmp/surgr1_test_XXXXXX");
    if (!mkdtemp(folder)) exit(99);
    atexit(remove_all);
    return folder;
}
static bool make(const char *dir, uint64_t seed, FileType type, InitResult *r, Err *e) {
    char config[400], tokenizer[400];
    snprintf(config, sizeof config, "%s", in_folder("config.json"));
    snprintf(tokenizer, sizeof tokenizer, "%s", in_folder("tok"));
    InitOptions o = {.config = config, .tokenizer = tokenizer, .seed = seed, .type = type};
    if (folder_exists(in_folder(dir)) && !folder_begin(in_folder(dir), e)) return false;
    return model_init(&o, in_folder(dir), r, e);
}
static void must_make(const char *dir, uint64_t seed, FileType type) {
    Err e = {0};
    InitResult r;
    if (!make(dir, seed, type, &r, &e)) err_report(&e), exit(99);
}
static float *values(const char *dir, const char *name, int64_t *n) {
    Err e = {0};
    TensorFile f;
    if (!tensors_open_folder(&f, in_folder(dir), &e)) err_report(&e), exit(99);
    const Tensor *t = tensors_find(&f, name);
    float *v = NULL;
    *n = t ? t->elements : 0;
    if (t) v = alloc_or_die((size_t)*n, sizeof *v, "test"), tensor_to_f32(t, 0, *n, v);
    tensors_close(&f);
    return v;
}
static bool equal(const char *name, const char *x, const char *y) {
    int64_t n, m;
    float *a = values(x, name, &n), *b = values(y, name, &m);
    bool same = n && n == m && !memcmp(a, b, (size_t)n * sizeof *a);
    free(a), free(b);
    return same;
}

// FLAT of tiny.h, but for a few members.
static const char *shape(int layers, const char *vocab, bool nested) {
    static char text[2000];
    const char *inner =
        "\"hidden_size\":24,\"intermediate_size\":20,\"num_attention_heads\":3,\"num_key_value_heads\":1,"
        "\"max_position_embeddings\":200,\"rope_theta\":10000.0,\"rope_scaling\":{\"type\":\"mrope\","
        "\"mrope_section\":[1,1,2]},\"hidden_act\":\"silu\"";
    snprintf(text, sizeof text,
             "{\"model_type\":\"qwen2_5_vl\",%s%s,\"num_hidden_layers\":%d%s%s,\"tie_word_embeddings\":false,"
             "\"image_token_id\":3,\"eos_token_id\":44,\"torch_dtype\":\"float16\",\"vision_config\":{\"depth\":2,"
             "\"hidden_size\":16,\"intermediate_size\":12,\"num_heads\":2,\"patch_size\":4,\"temporal_patch_size\":1,"
             "\"window_size\":16,\"out_hidden_size\":24,\"fullatt_block_indexes\":[1]}}",
             nested ? "\"text_config\":{" : "", inner, layers, vocab, nested ? "}" : "");
    return text;
}

TEST(the_folder_is_a_checkpoint_with_the_tokenizers_ids) {
    base();
    for (int nested = 0; nested < 2; nested++) {
        prepare(shape(2, nested ? ",\"vocab_size\":320" : ",\"vocab_size\":100", nested));
        Err e = {0};
        InitResult r;
        Model m;
        Tokenizer *t;
        GenerationConfig g;
        bool from_file;
        EXPECT(make("a", 5, FT_F32, &r, &e));
        EXPECT_INT(r.vocab, nested ? 320 : 280); // padded, or raised
        EXPECT(model_load(&m, in_folder("a"), ops_cpu(), (LoadOptions){0}, &e));
        EXPECT(tokenizer_load(&t, in_folder("a"), &e));
        if (e.code[0]) err_report(&e), exit(99);
        int64_t stored = 0;
        for (int64_t i = 0; i < m.n_params; i++) stored += m.params[i].rows * m.params[i].cols;
        EXPECT_INT(r.parameters, stored);
        EXPECT_INT(r.tensors, m.n_params);
        EXPECT_INT(m.c.V, r.vocab);
        EXPECT_INT(m.c.image_id, tokenizer_added(t, "<|image_pad|>"));
        EXPECT_INT(m.c.video_id, tokenizer_added(t, "<|video_pad|>"));
        EXPECT_INT(m.c.vision_start_id, tokenizer_added(t, "<|vision_start|>"));
        EXPECT_INT(m.c.vision_end_id, tokenizer_added(t, "<|vision_end|>"));
        EXPECT_INT(m.c.vision.temporal, 1);
        EXPECT_INT(m.c.vision.min_pixels, 4 * 64);   // 4 picture tokens of 8 x 8
        EXPECT_INT(m.c.vision.max_pixels, 100 * 64); // half the context
        EXPECT(generation_config_load(&g, in_folder("a"), &from_file, &e) && from_file);
        EXPECT_INT(g.n_stop, 2);
        EXPECT_INT(g.stop[0], tokenizer_added(t, "<|im_end|>"));
        EXPECT_INT(g.stop[1], tokenizer_added(t, "<|endoftext|>"));
        EXPECT(!g.sample.do_sample);
        model_free(&m), tokenizer_free(t);
    }
}

TEST(numbers_have_the_deviation_that_keeps_sizes) {
    base(), prepare(shape(2, "", false));
    static const struct {
        const char *name;
        double deviation;
    } rows[] = {{"model.embed_tokens.weight", 0.02},
                {"lm_head.weight", 0.204124145},                         // 24
                {"model.layers.1.mlp.down_proj.weight", 0.223606798},    // 20
                {"model.layers.0.self_attn.o_proj.weight", 0.204124145}, // 24
                {"visual.blocks.0.attn.qkv.weight", 0.25},               // 16
                {"visual.patch_embed.proj.weight", 0.144337567},         // 3 * 1 * 4 * 4
                {"visual.merger.mlp.0.weight", 0.125}};                  // 4 * 16
    must_make("a", 7, FT_F32);
    for (size_t k = 0; k < sizeof rows / sizeof *rows; k++) {
        int64_t n;
        double sum = 0, squares = 0, largest = 0;
        float *v = values("a", rows[k].name, &n);
        for (int64_t i = 0; i < n; i++)
            sum += v[i], squares += (double)v[i] * v[i], largest = fmax(largest, fabs((double)v[i]));
        double d = rows[k].deviation;
        if (n < 400) FAIL("%s has %lld elements", rows[k].name, (long long)n);
        EXPECT_NEAR(sum / (double)n / d, 0, 5 / sqrt((double)n));
        EXPECT_NEAR(sqrt(squares / (double)n) / d, 1, 2.5 / sqrt((double)n)); // 5.6 sigma of a uniform's deviation
        EXPECT(largest <= d * sqrt(3.0) * (1 + 1e-6) && largest > d * 1.6);
        free(v);
    }
    static const char *const constant[] = {"model.norm.weight", "visual.merger.ln_q.weight",
                                           "visual.blocks.1.norm2.weight", "visual.blocks.1.mlp.up_proj.bias",
                                           "model.layers.0.self_attn.k_proj.bias"};
    for (int k = 0; k < 5; k++) {
        int64_t n;
        float *v = values("a", constant[k], &n);
        EXPECT(n > 0);
        for (int64_t i = 0; i < n; i++) EXPECT(v[i] == (k < 3 ? 1.0f : 0.0f));
        free(v);
    }
}

TEST(a_number_depends_on_seed_name_and_element_alone) {
    base(), prepare(shape(2, "", false));
    must_make("a", 7, FT_F32), must_make("b", 7, FT_F32);
    Err e = {0};
    char *x, *y;
    size_t n, m;
    if (!file_read(in_folder("a/model.safetensors"), 1 << 26, "E-JS-01", &x, &n, &e) ||
        !file_read(in_folder("b/model.safetensors"), 1 << 26, "E-JS-01", &y, &m, &e))
        exit(err_report(&e));
    EXPECT(n == m && !memcmp(x, y, n));
    free(x), free(y);
    prepare(shape(3, "", false)), must_make("b", 7, FT_F32); // a deeper model
    EXPECT(equal("model.layers.1.mlp.up_proj.weight", "a", "b"));
    EXPECT(equal("visual.merger.mlp.2.weight", "a", "b"));
    int64_t k, l;
    float *p = values("b", "model.layers.1.mlp.up_proj.weight", &k),
          *q = values("b", "model.layers.2.mlp.up_proj.weight", &l);
    EXPECT(k == l && memcmp(p, q, (size_t)k * sizeof *p)); // two layers are not alike
    free(p), free(q);
    must_make("b", 8, FT_F32);
    EXPECT(!equal("model.layers.1.mlp.up_proj.weight", "a", "b"));
    EXPECT(!equal("model.embed_tokens.weight", "a", "b"));
    must_make("b", 7, FT_BF16);
    p = values("a", "model.layers.0.mlp.gate_proj.weight", &k),
    q = values("b", "model.layers.0.mlp.gate_proj.weight", &l);
    EXPECT_INT(k, l);
    for (int64_t i = 0; i < k; i++) EXPECT(q[i] == bf16_to_f32(f32_to_bf16(p[i])));
    free(p), free(q);
}

TEST(what_does_not_fit_is_refused_and_leaves_nothing) {
    base(), prepare(shape(2, "", false));
    Err e = {0};
    InitResult r;
    must_make("a", 1, FT_F32);
    char config[400], plain[400];
    snprintf(config, sizeof config, "%s", in_folder("config.json"));
    snprintf(plain, sizeof plain, "%s", in_folder("tok"));
    InitOptions o = {.config = config, .tokenizer = plain, .type = FT_F32};
    EXPECT(!model_init(&o, in_folder("a"), &r, &e)); // the folder is there
    EXPECT_STR(e.code, "E-WR-02");
    EXPECT(folder_begin(in_folder("b"), &(Err){0})); // an empty one is fine as a place
    o.min_pixels = 9000, o.max_pixels = 5000, e = (Err){0};
    EXPECT(!model_init(&o, in_folder("b"), &r, &e));
    EXPECT_STR(e.code, "E-CF-03");
    EXPECT(!file_exists(in_folder("b/config.json")));
    o.min_pixels = o.max_pixels = 0, e = (Err){0};
    o.tokenizer = "test/fixtures/tokenizer", r = (InitResult){0}; // the 22 added tokens of Qwen2.5 are enough
    EXPECT(model_init(&o, in_folder("b"), &r, &e));
    EXPECT_INT(r.vocab, 502);
    EXPECT(folder_begin(in_folder("b"), &(Err){0}));
    write_text("config.json", "{\"model_type\":\"llama\"}");
    e = (Err){0};
    EXPECT(!model_init(&o, in_folder("b"), &r, &e));
    EXPECT_STR(e.code, "E-CF-01");
    char path[400];
    snprintf(path, sizeof path, "%s/b.tmp-%ld", folder, (long)getpid());
    EXPECT(!folder_exists(path));
}

TEST(a_tokenizer_without_picture_tokens_is_refused) {
    base(), prepare(shape(2, "", false));
    Err e = {0};
    InitResult r;
    unlink(in_folder("tok/tokenizer.json")); // then vocab.json, merges.txt and the config's added tokens count
    char kept[400], gone[400];
    snprintf(kept, sizeof kept, "%s", in_folder("tok/tokenizer_config.json"));
    snprintf(gone, sizeof gone, "%s", in_folder("tok/gone"));
    EXPECT(!rename(kept, gone));
    EXPECT(!make("b", 1, FT_F32, &r, &e));
    EXPECT_STR(e.code, "E-TK-06");
    EXPECT(!rename(gone, kept));
    e = (Err){0};
    EXPECT(make("b", 1, FT_F32, &r, &e));
}

TEST(the_base_models_shape_is_small_and_speaks) {
    base();
    Config c;
    Err e = {0};
    char *text;
    size_t size;
    if (!file_read("data/recipes/base-model.json", 1 << 20, "E-JS-01", &text, &size, &e)) exit(err_report(&e));
    prepare(text);
    free(text);
    EXPECT(config_read(&c, "data/recipes/base-model.json", &e));
    EXPECT_INT(c.vision.temporal, 1);
    InitResult r;
    EXPECT(make("a", 1, FT_F32, &r, &e));
    EXPECT(r.parameters > 1000000 && r.parameters < 3000000);
    Model m;
    if (!model_load(&m, in_folder("a"), ops_cpu(), (LoadOptions){0}, &e)) exit(err_report(&e));
    int32_t ids[8] = {1, 70, 71, 72, 200, 9, 40, 5}, targets[8];
    int32_t pos[24];
    float lp[8], entropy[8];
    for (int k = 0; k < 24; k++) pos[k] = k % 8;
    for (int k = 0; k < 8; k++) targets[k] = k < 7 ? ids[k + 1] : -1;
    TrainBatch b = {.N = 8, .ids = ids, .pos = pos, .spans = &(Span){0, 8, 0, 0, 1}, .n_spans = 1, .targets = targets};
    EXPECT(model_train_open(&m, &e) && model_pass(&m, &b, NULL, lp, entropy, &e));
    for (int k = 0; k < 7; k++) { // it knows nothing: close to a uniform choice among V
        EXPECT(entropy[k] > 0.95 * log((double)m.c.V) && entropy[k] <= 1.0001 * log((double)m.c.V));
        EXPECT(lp[k] < -3 && lp[k] > -9);
    }
    model_free(&m);
}
