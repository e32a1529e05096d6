// test_model.c - configuration layouts, loading and its refusals, positions, window order, and the promises of generation:
// decoding is the forward pass, a batch is its sequences, a shared prompt is a copied one, threads change nothing.
//
// Needs nothing but this file: it writes a small random checkpoint into a temporary folder. Equality with Hugging Face is
// test_oracle's business.
#include "tiny.h"

static Model open_model(const char *dir, const Ops *d) {
    Err e = {0};
    Model m;
    if (!model_load(&m, dir, d, (LoadOptions){0}, &e)) err_report(&e), exit(99);
    return m;
}

// ------------------------------------------------------------------------------------------------------ preprocessing

TEST(smart_resize_gives_the_published_values) {
    static const int64_t rows[][6] = {
        // height, width, out; out with max_pixels 1003520
        {480, 640, 476, 644, 476, 644}, {1080, 1920, 1092, 1932, 728, 1316}, {4000, 6000, 2912, 4368, 812, 1204},
        {42, 70, 56, 56, 56, 56},       {70, 98, 56, 112, 56, 112},          {126, 154, 112, 168, 112, 168},
        {10, 10, 56, 56, 56, 56},       {13, 2000, 28, 700, 28, 700},        {20, 4000, 28, 4004, 28, 4004},
        {1, 200, 28, 812, 28, 812}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (int k = 0; k < 2; k++) {
            int64_t h = 0, w = 0;
            Err e = {0};
            EXPECT(smart_resize(rows[i][0], rows[i][1], 28, 3136, k ? 1003520 : 12845056, &h, &w, "x", &e));
            EXPECT_INT(h, rows[i][2 + 2 * k]);
            EXPECT_INT(w, rows[i][3 + 2 * k]);
        }
    Err e = {0};
    int64_t h, w;
    EXPECT(!smart_resize(1, 201, 28, 3136, 12845056, &h, &w, "thin.png", &e));
    char line[2000];
    EXPECT_STR(err_line(&e, "error", line, sizeof line), "surgr1: error E-IM-02: thin.png: expected sides with a ratio "
                                                         "of at most 200; found 201 x 1 pixels; do: crop the picture");
}

TEST(patches_are_the_picture_again) {
    VisionConfig c = {.patch = 4,
                      .merge = 2,
                      .temporal = 2,
                      .channels = 3,
                      .min_pixels = 64,
                      .max_pixels = 4096,
                      .rescale = 1.0 / 255,
                      .mean = {0.48145466f, 0.4578275f, 0.40821073f},
                      .std = {0.26862954f, 0.26130258f, 0.27577711f}};
    uint8_t rgb[24 * 16 * 3];
    for (size_t i = 0; i < sizeof rgb; i++) rgb[i] = (uint8_t)(random_uniform(3, RANDOM_TEST, 0, (uint32_t)i) * 256);
    Image im = {.rgb = rgb, .width = 24, .height = 16, .orientation = 1}, back;
    float *pixels;
    Grid g;
    Err e = {0};
    EXPECT(image_to_patches(&c, &im, "noise", &pixels, &g, &e)); // its sides are multiples already: no resize
    patches_to_image(&c, pixels, g, &back);
    EXPECT(back.width == 24 && back.height == 16 && !memcmp(back.rgb, rgb, sizeof rgb));
    free(pixels), image_free(&back);
}

TEST(window_order_gives_the_published_values) {
    VisionConfig c = {.patch = 14, .merge = 2, .window = 112};
    static const int32_t want[] = {0,  1,  2,  3,  10, 11, 12, 13, 20, 21, 22, 23, 30, 31, 32, 33, 4,  5,  6,  7,
                                   14, 15, 16, 17, 24, 25, 26, 27, 34, 35, 36, 37, 8,  9,  18, 19, 28, 29, 38, 39,
                                   40, 41, 42, 43, 50, 51, 52, 53, 44, 45, 46, 47, 54, 55, 56, 57, 48, 49, 58, 59};
    static const int32_t starts[] = {0, 64, 128, 160, 192, 224, 240};
    WindowOrder o;
    window_order(&o, &c, &(Grid){1, 12, 20}, 1);
    EXPECT_INT(o.units, 60);
    EXPECT(!memcmp(o.index, want, sizeof want));
    EXPECT_INT(o.n_windows, 6);
    EXPECT(!memcmp(o.starts, starts, sizeof starts));
    EXPECT(o.n_frames == 1 && o.full_starts[1] == 240);
    window_order_free(&o);
    window_order(&o, &c, (Grid[]){{1, 16, 16}, {2, 4, 4}}, 2); // exact windows; then two frames of less than one window
    EXPECT_INT(o.n_windows, 6);
    EXPECT(o.starts[4] == 256 && o.starts[5] == 272 && o.starts[6] == 288 && o.n_frames == 3);
    window_order_free(&o);
}

TEST(positions_give_the_published_values) {
    Config c = {.image_id = 9, .video_id = 8, .vision = {.merge = 2}};
    int32_t ids[] = {1, 2, 3, 4, 9, 9, 9, 9, 9, 9, 5, 6, 7}, pos[39];
    int32_t want[3][13] = {{0, 1, 2, 3, 4, 4, 4, 4, 4, 4, 7, 8, 9},
                           {0, 1, 2, 3, 4, 4, 4, 5, 5, 5, 7, 8, 9},
                           {0, 1, 2, 3, 4, 5, 6, 4, 5, 6, 7, 8, 9}};
    Grid g[] = {{1, 4, 6}, {1, 2, 2}};
    int64_t next = 0;
    Err e = {0};
    EXPECT(mrope_positions(&c, ids, 13, 13, g, 1, pos, &next, &e));
    EXPECT(!memcmp(pos, want, sizeof want));
    EXPECT_INT(next, 10);
    ids[11] = 9, ids[12] = 8; // an image and a video token that the model drew are text
    EXPECT(mrope_positions(&c, ids, 13, 11, g, 1, pos, &next, &e));
    EXPECT(!memcmp(pos, want, sizeof want));
    ids[11] = 6, ids[12] = 7;
    EXPECT(!mrope_positions(&c, ids, 13, 13, g, 2, pos, &next, &e)); // a picture without a place
    EXPECT_STR(e.code, "E-DS-10");
    e = (Err){0};
    EXPECT(!mrope_positions(&c, ids, 13, 13, g, 0, pos, &next, &e)); // a place without a picture
    EXPECT_STR(e.code, "E-DS-10");
    e = (Err){0};
    EXPECT(!mrope_positions(&c, ids, 8, 8, g, 1, pos, &next, &e)); // too few image tokens
    EXPECT_STR(e.code, "E-DS-10");
    e = (Err){0};
    ids[0] = 8;
    EXPECT(!mrope_positions(&c, ids, 13, 13, g, 1, pos, &next, &e)); // a video token
    EXPECT_STR(e.code, "E-DS-10");
}

// ------------------------------------------------------------------------------------------------------ configuration

TEST(three_config_layouts_say_the_same) {
    const char *layouts[] = {
        FLAT,
        "{\"model_type\":\"qwen2_5_vl\",\"text_config\":{\"model_type\":\"qwen2_5_vl_text\",\"vocab_size\":50,\"hidden_"
        "size\":24,\"intermediate_size\":20,"
        "\"num_hidden_layers\":2,\"num_attention_heads\":3,\"num_key_value_heads\":1,\"max_position_embeddings\":200,"
        "\"rms_norm_eps\":1e-6,"
        "\"rope_theta\":10000.0,\"rope_scaling\":{\"rope_type\":\"default\",\"type\":\"default\",\"mrope_section\":[1,"
        "1,2]}},\"hidden_size\":9999,"
        "\"tie_word_embeddings\":false,\"image_token_id\":40,\"video_token_id\":41,\"vision_start_token_id\":42,"
        "\"vision_end_token_id\":43,"
        "\"vision_config\":{\"depth\":2,\"hidden_size\":16,\"intermediate_size\":12,\"num_heads\":2,\"patch_size\":4,"
        "\"window_size\":16,"
        "\"out_hidden_size\":24,\"fullatt_block_indexes\":[1]}}",
        "{\"model_type\":\"qwen2_5_vl\",\"text_config\":{\"vocab_size\":50,\"hidden_size\":24,\"intermediate_size\":20,"
        "\"num_hidden_layers\":2,\"num_attention_heads\":3,\"num_key_value_heads\":1,\"max_position_embeddings\":200,"
        "\"rms_norm_eps\":1e-6,"
        "\"rope_parameters\":{\"rope_theta\":10000.0,\"rope_type\":\"default\",\"mrope_section\":[1,1,2]}},"
        "\"image_token_id\":40,\"video_token_id\":41,\"vision_start_token_id\":42,\"vision_end_token_id\":43,"
        "\"vision_config\":{\"depth\":2,\"hidden_size\":16,\"intermediate_size\":12,\"num_heads\":2,\"patch_size\":4,"
        "\"window_size\":16,"
        "\"out_hidden_size\":24,\"fullatt_block_indexes\":[1]}}"};
    Text first = {0};
    for (int i = 0; i < 3; i++) {
        Config c;
        Err e = {0};
        Text t = {0};
        checkpoint(layouts[i], false);
        EXPECT(config_load(&c, folder, &e));
        config_print(&c, &t);
        if (!i) first = t;
        else {
            EXPECT_STR(t.p, first.p);
            text_free(&t);
        }
    }
    text_free(&first);
}

TEST(a_bad_config_is_refused_by_field) {
    static const struct {
        const char *find, *put, *code, *says;
    } cases[] = {
        {"qwen2_5_vl\"", "llama\"", "E-CF-01", "expected \"qwen2_5_vl\"; found \"llama\""},
        {"\"hidden_size\":24", "\"hidden_size\":24.5", "E-JS-07", "field \"hidden_size\""},
        {"\"hidden_size\":24", "\"hidden_size\":0", "E-CF-02", "field \"hidden_size\""},
        {"\"num_attention_heads\":3", "\"num_attention_heads\":5", "E-CF-03", "field \"num_attention_heads\""},
        {"\"num_key_value_heads\":1", "\"num_key_value_heads\":2", "E-CF-03", "field \"num_key_value_heads\""},
        {"[1,1,2]", "[1,1,1]", "E-CF-03", "field \"mrope_section\""},
        {"[1,1,2]", "[1,2]", "E-CF-02", "field \"mrope_section\""},
        {"\"type\":\"mrope\"", "\"type\":\"yarn\"", "E-CF-02", "found \"yarn\""},
        {"\"silu\"", "\"gelu\"", "E-CF-02", "found \"gelu\""},
        {"\"image_token_id\":40", "\"image_token_id\":50", "E-CF-02", "field \"image_token_id\""},
        {"\"num_heads\":2", "\"num_heads\":3", "E-CF-03", "vision_config.num_heads"},
        {"\"out_hidden_size\":24", "\"out_hidden_size\":32", "E-CF-03", "out_hidden_size"},
        {"\"window_size\":16", "\"window_size\":7", "E-CF-03", "window_size"},
        {"\"tie_word_embeddings\":false", "\"tie_word_embeddings\":false,\"use_sliding_window\":true", "E-CF-02",
         "use_sliding_window"},
        {"\"tie_word_embeddings\":false", "\"quantization_config\":{}", "E-CF-02", "quantization_config"},
        {"\"vocab_size\":50", "\"vocab_size\":50,\"vocab_size\":51", "E-JS-08", "vocab_size"},
    };
    checkpoint(FLAT, false);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[4000], line[3000];
        const char *at = strstr(FLAT, cases[i].find);
        snprintf(text, sizeof text, "%.*s%s%s", (int)(at - FLAT), FLAT, cases[i].put, at + strlen(cases[i].find));
        write_text("config.json", text);
        Config c;
        Err e = {0};
        EXPECT(!config_load(&c, folder, &e));
        err_line(&e, "error", line, sizeof line);
        if (strcmp(e.code, cases[i].code) || !strstr(line, cases[i].says)) FAIL("%s: %s", cases[i].put, line);
    }
    write_text("config.json", FLAT),
        write_text("preprocessor_config.json", "{\"min_pixels\":5000,\"max_pixels\":4096,\"patch_size\":4}");
    Config c;
    Err e = {0};
    EXPECT(!config_load(&c, folder, &e) && !strcmp(e.code, "E-CF-03"));
    write_text("preprocessor_config.json", "{\"patch_size\":14}");
    e = (Err){0};
    EXPECT(!config_load(&c, folder, &e) && !strcmp(e.code, "E-CF-03"));
}

// ------------------------------------------------------------------------------------------------------------- loading

static bool load_fails(const char *code, const char *says) {
    Err e = {0};
    Model m;
    char line[3000];
    if (model_load(&m, folder, ops_ref(), (LoadOptions){0}, &e)) return model_free(&m), false;
    err_line(&e, "error", line, sizeof line);
    if (!strcmp(e.code, code) && strstr(line, says)) return true;
    FAIL("%s", line);
    return false;
}

// Rewrites the checkpoint through `change` (returns false to drop a tensor).
static void rewrite(bool (*change)(TensorOut *t, float *data)) {
    Err e = {0};
    TensorFile f;
    checkpoint(FLAT, false);
    if (!tensors_open(&f, in_folder("model.safetensors"), &e)) err_report(&e), exit(99);
    TensorOut *out = alloc_or_die((size_t)f.count, sizeof *out, "test");
    int64_t n = 0;
    for (int64_t i = 0; i < f.count; i++) {
        Tensor *t = &f.tensors[i];
        float *data = alloc_or_die((size_t)t->elements, sizeof *data, "test");
        tensor_to_f32(t, 0, t->elements, data);
        out[n] = (TensorOut){.name = t->name, .type = t->type, .dims = t->dims, .data = data};
        memcpy(out[n].shape, t->shape, sizeof t->shape);
        n += change(&out[n], data);
    }
    if (!tensors_write(in_folder("changed.safetensors"), out, n, &e)) err_report(&e), exit(99);
    tensors_close(&f);
    if (rename(in_folder("changed.safetensors"), in_folder("model.safetensors"))) exit(99);
    for (int64_t i = 0; i < n; i++) free((void *)(uintptr_t)out[i].data);
    free(out);
}
static bool drop_one(TensorOut *t, float *data) {
    bool drop = !strcmp(t->name, "model.layers.1.mlp.up_proj.weight");
    if (drop) free(data);
    return !drop;
}
static bool wrong_shape(TensorOut *t, float *data) {
    (void)data;
    if (!strcmp(t->name, "model.norm.weight")) t->dims = 2, t->shape[0] = 2, t->shape[1] = 12;
    return true;
}
static bool plant_nan(TensorOut *t, float *data) {
    if (!strcmp(t->name, "visual.merger.mlp.0.bias")) data[3] = NAN;
    return true;
}
static bool integers(TensorOut *t, float *data) {
    (void)data;
    if (!strcmp(t->name, "model.norm.weight")) t->type = FT_I32;
    return true;
}
TEST(a_checkpoint_that_does_not_fit_is_refused_by_tensor) {
    rewrite(drop_one);
    EXPECT(load_fails("E-ST-10", "found 1 missing: model.layers.1.mlp.up_proj.weight"));
    rewrite(wrong_shape);
    EXPECT(load_fails("E-ST-10", "tensor \"model.norm.weight\": expected shape [24] from config.json; found [2,12]"));
    rewrite(integers);
    EXPECT(load_fails("E-ST-06", "tensor \"model.norm.weight\""));
    rewrite(plant_nan);
    EXPECT(load_fails("E-NU-01", "1 in visual.merger.mlp.0.bias"));
    Err e = {0};
    Model m;
    EXPECT(model_load(&m, folder, ops_ref(), (LoadOptions){.allow_nonfinite = true}, &e)); // unless asked for
    model_free(&m);
}

// Logits of a text + picture prompt, [N, V].
enum { N_PROMPT = 16 };
static const int32_t PROMPT[N_PROMPT] = {1, 2, 42, 40, 40, 40, 40, 40, 40, 43, 7, 8, 9, 10, 11, 12};
static const int32_t PLACES[] = {3, 4, 5, 6, 7, 8};
static const Grid GRID = {1, 4, 6};
static float *picture(const Model *m) {
    const VisionConfig *v = &m->c.vision;
    int64_t n = grid_patches(GRID) * v->channels * v->temporal * v->patch * v->patch;
    float *p = alloc_or_die((size_t)n, sizeof *p, "test");
    for (int64_t i = 0; i < n; i++) p[i] = (float)(2 * random_uniform(6, RANDOM_TEST, 1, (uint32_t)i) - 1);
    return p;
}
static float *prompt_logits(Model *m) {
    Err e = {0};
    int32_t pos[3 * N_PROMPT];
    int64_t next;
    float *pixels = picture(m);
    Mat rows = mat(m->d->alloc(6 * 24 * 4), 6, 24, F32),
        logits = mat(m->d->alloc((size_t)(N_PROMPT * m->c.V) * 4), N_PROMPT, m->c.V, F32);
    if (!vision_forward(m->d, &m->vision, rows, pixels, &GRID, 1, &m->activations, NULL, NULL, &e) ||
        !mrope_positions(&m->c, PROMPT, N_PROMPT, N_PROMPT, &GRID, 1, pos, &next, &e))
        err_report(&e), exit(99);
    Span span = {0, N_PROMPT, 0, 0, 1};
    TextInput in = {
        .ids = PROMPT, .N = N_PROMPT, .pos = pos, .spans = &span, .n_spans = 1, .image_rows = rows, .image_at = PLACES};
    if (!text_forward(m, &in, logits, NULL, NULL, &e)) err_report(&e), exit(99);
    free(pixels), m->d->release(rows.p);
    return logits.p;
}

TEST(both_tensor_layouts_and_both_devices_give_the_same_model) {
    Model a = open_model(checkpoint(FLAT, false), ops_ref());
    float *want = prompt_logits(&a);
    Model b = open_model(checkpoint(FLAT, true), ops_ref());
    float *got = prompt_logits(&b);
    EXPECT(!memcmp(want, got, (size_t)(N_PROMPT * a.c.V) * 4));
    Model c = open_model(folder, ops_cpu());
    float *fast = prompt_logits(&c);
    EXPECT_CLOSE("cpu", fast, want, N_PROMPT * a.c.V, 2e-5);
    want[0] += 1; // control
    EXPECT(!error_within(tensor_error(fast, want, N_PROMPT * a.c.V), 2e-5));
    free(want), free(got), free(fast);
    model_free(&a), model_free(&b), model_free(&c);
}

TEST(tied_embeddings_are_the_head) {
    char text[3000];
    const char *at = strstr(FLAT, "\"tie_word_embeddings\":false");
    snprintf(text, sizeof text, "%.*s\"tie_word_embeddings\":true%s", (int)(at - FLAT), FLAT,
             at + strlen("\"tie_word_embeddings\":false"));
    Model m = open_model(checkpoint(text, false), ops_ref());
    EXPECT(m.head.w.v.p == m.embed.v.p && m.head.w.v.rows == m.c.V);
    model_free(&m);
    checkpoint(FLAT, false); // now with a head of its own, which the tied config contradicts
    write_text("config.json", text);
    EXPECT(load_fails("E-ST-10", "tensor \"lm_head.weight\""));
}

// ----------------------------------------------------------------------------------------------------------- generation

static void run(Model *m, const Request *r, int n, GenerationConfig g, Completion *out) {
    Err e = {0};
    if (!generate(m, r, n, &g, NULL, NULL, out, &e)) err_report(&e), exit(99);
}
static bool same_completion(const Completion *a, const Completion *b) {
    return a->ids.n == b->ids.n && !memcmp(a->ids.p, b->ids.p, (size_t)a->ids.n * 4) && a->logprob == b->logprob;
}

TEST(decoding_with_a_cache_is_the_forward_pass) {
    Model m = open_model(checkpoint(FLAT, false), ops_ref());
    float *pixels = picture(&m);
    Request r = {PROMPT, N_PROMPT, pixels, &GRID, 1, 0, 1};
    Completion c;
    run(&m, &r, 1, (GenerationConfig){.sample = {.repetition_penalty = 1}, .max_new_tokens = 12}, &c);
    EXPECT_INT(c.ids.n, 12);
    // the same tokens by one forward pass over prompt + answer: each is the argmax one row before it
    int32_t ids[N_PROMPT + 12], pos[3 * (N_PROMPT + 12)];
    memcpy(ids, PROMPT, sizeof PROMPT), memcpy(ids + N_PROMPT, c.ids.p, 12 * 4);
    int64_t n = N_PROMPT + 12, next;
    Err e = {0};
    Mat rows = mat(m.d->alloc(6 * 24 * 4), 6, 24, F32),
        logits = mat(m.d->alloc((size_t)(n * m.c.V) * 4), n, m.c.V, F32);
    EXPECT(vision_forward(m.d, &m.vision, rows, pixels, &GRID, 1, &m.activations, NULL, NULL, &e) &&
           mrope_positions(&m.c, ids, n, N_PROMPT, &GRID, 1, pos, &next, &e));
    Span span = {0, (int32_t)n, 0, 0, 1};
    TextInput in = {
        .ids = ids, .N = n, .pos = pos, .spans = &span, .n_spans = 1, .image_rows = rows, .image_at = PLACES};
    EXPECT(text_forward(&m, &in, logits, NULL, NULL, &e));
    double logprob = 0;
    for (int64_t i = N_PROMPT - 1; i < n - 1; i++) {
        const float *row = mat_at(logits, i, 0);
        int best = 0;
        double sum = 0;
        for (int v = 1; v < m.c.V; v++) best = row[v] > row[best] ? v : best;
        for (int v = 0; v < m.c.V; v++) sum += exp((double)row[v] - row[best]);
        EXPECT_INT(best, ids[i + 1]);
        logprob -= log(sum);
    }
    EXPECT_NEAR(c.logprob, logprob, 1e-4);
    completion_free(&c), free(pixels), m.d->release(rows.p), m.d->release(logits.p);
    model_free(&m);
}

TEST(a_batch_gives_each_prompt_what_it_gets_alone_bit_for_bit) {
    Model m = open_model(checkpoint(FLAT, false), ops_cpu());
    float *pixels = picture(&m);
    int32_t other[] = {3, 4, 5};
    GenerationConfig g = {
        .sample =
            {.repetition_penalty = 1.1, .do_sample = 1, .temperature = 1.5, .top_k = 30, .top_p = 0.95, .seed = 11},
        .max_new_tokens = 20,
        .stop = {44},
        .n_stop = 1};
    Request all[] = {{other, 3, NULL, NULL, 0, 100, 1},
                     {PROMPT, N_PROMPT, pixels, &GRID, 1, 7, 3},
                     {PROMPT + 10, 6, NULL, NULL, 0, 200, 2}};
    Completion batch[6], alone[6];
    int threads[] = {1, 2, 3, 8};
    for (int t = 0; t < 4; t++) {
        pool_start(threads[t]);
        run(&m, all, 3, g, batch);
        if (t == 0) {
            run(&m, &all[0], 1, g, alone), run(&m, &all[1], 1, g, alone + 1), run(&m, &all[2], 1, g, alone + 4);
            // a completion of its own, with the stream that the third of a group has
            Request third = {PROMPT, N_PROMPT, pixels, &GRID, 1, 9, 1};
            Completion c;
            run(&m, &third, 1, g, &c);
            EXPECT(same_completion(&c, &alone[3]));
            completion_free(&c);
        }
        for (int i = 0; i < 6; i++) {
            if (!same_completion(&batch[i], &alone[i])) FAIL("completion %d at %d threads", i, threads[t]);
            completion_free(&batch[i]);
        }
        pool_stop();
    }
    EXPECT(!same_completion(&alone[1], &alone[2])); // control: another stream is another text
    for (int i = 0; i < 6; i++) completion_free(&alone[i]);
    free(pixels);
    model_free(&m);
}

// The log-probabilities of generation, and those of a pass over the packed groups: scoring, and training with blocks kept
// and computed again. Prompts are longer than a block of keys, answers too; one prompt is a single token.
static void lp_bits(const Ops *d, const char *isa, double temperature, bool lora) {
    enum { NEW = 90, LONG = 75, ANSWERS = 6 };
    Model m; // filled where it stays: the parameter table points into it
    Err e = {0};
    EXPECT(model_load(&m, checkpoint(FLAT, false), d, (LoadOptions){0}, &e));
    float *pixels = picture(&m);
    int32_t prompt[LONG], ids[ANSWERS][LONG + NEW];
    uint8_t trained[ANSWERS][LONG + NEW] = {{0}};
    for (int i = 0; i < LONG; i++) prompt[i] = i < N_PROMPT ? PROMPT[i] : (7 * i) % 39;
    Request all[] = {{prompt, LONG, pixels, &GRID, 1, 7, 3},
                     {prompt + 20, 1, NULL, NULL, 0, 100, 1},
                     {prompt + 15, 40, NULL, NULL, 0, 200, 2}};
    GenerationConfig g = {.sample = {.repetition_penalty = 1.05,
                                     .do_sample = temperature > 0,
                                     .temperature = temperature,
                                     .top_k = 20,
                                     .top_p = 0.98,
                                     .seed = 3},
                          .max_new_tokens = NEW,
                          .stop = {44},
                          .n_stop = 1};
    if (lora) {
        LoraOptions o = {.targets = "decoder,vision,merger", .r = 3, .alpha = 6, .dropout = 0.2, .seed = 3};
        EXPECT(lora_init(&m, &o, &e));
        for (int64_t i = 0; i < m.n_params; i++)
            if (m.params[i].kind == PARAM_LORA_B)
                for (int64_t k = 0; k < m.params[i].rows * m.params[i].cols; k++)
                    ((float *)m.params[i].w->v.p)[k] =
                        (float)(0.1 * random_uniform(4, RANDOM_TEST, (uint64_t)i, (uint32_t)k));
        EXPECT(model_train_open(&m, &e));
    }
    Completion c[ANSWERS];
    run(&m, all, 3, g, c);
    Pack p = {0};
    Sequence s[ANSWERS];
    int64_t tokens = 0;
    for (int r = 0, k = 0; r < 3; r++) {
        for (int i = 0; i < all[r].completions; i++, k++) {
            int64_t n = all[r].n;
            memcpy(ids[k], all[r].ids, (size_t)n * 4), memcpy(ids[k] + n, c[k].ids.p, (size_t)c[k].ids.n * 4);
            memset(trained[k] + n, 1, (size_t)c[k].ids.n);
            s[k] = (Sequence){.ids = ids[k],
                              .n = n + c[k].ids.n,
                              .n_prompt = n,
                              .trained = trained[k],
                              .pixels = all[r].pixels,
                              .grids = all[r].grids,
                              .n_grids = all[r].n_grids};
            tokens += c[k].ids.n;
        }
        EXPECT(pack_add_group(&p, &m.c, s + k - all[r].completions, all[r].completions, all[r].n, &e));
    }
    EXPECT(tokens > 200);
    float lp[ANSWERS * (LONG + NEW)], dlp[ANSWERS * (LONG + NEW)] = {0};
    for (int64_t keep = 0; keep < (lora ? 2 : 1); keep++)
        for (int backward = 0; backward <= lora; backward++) {
            pack_batch(&p, false, 0, keep);
            p.b.inv_temperature = temperature > 0 ? (float)(1 / temperature) : 0;
            EXPECT(model_pass(&m, &p.b, backward ? dlp : NULL, lp, NULL, &e));
            int64_t same = 0;
            double most = 0, sum = 0;
            for (int k = 0; k < ANSWERS; k++)
                for (int64_t i = 0; i < c[k].ids.n; i++) {
                    float x = lp[p.places[k].row + i], y = c[k].lp[i];
                    same += x == y, most = fmax(most, fabs((double)x - y)), sum += x;
                }
            if (same != tokens)
                FAIL("%s, temperature %g, lora %d, keep %lld: %lld of %lld are the same, the rest differ by up to %.3g",
                     isa, temperature, lora, (long long)keep, (long long)same, (long long)tokens, most);
            EXPECT(sum < -10);
        }
    // at temperature 1 they add up to logprob; at another they do not
    double sum = 0;
    for (int64_t i = 0; i < c[0].ids.n; i++) sum += c[0].lp[i];
    EXPECT((fabs(sum - c[0].logprob) < 1e-3) == (temperature == 0 || temperature == 1));
    for (int k = 0; k < ANSWERS; k++) completion_free(&c[k]);
    pack_free(&p), free(pixels), model_free(&m);
}
TEST(log_probabilities_of_generation_are_those_of_the_training_pass_to_the_bit) {
    static const double temperatures[] = {0, 1, 0.7};
    static const char *const sets[] = {"scalar", "avx2", "avx512"};
    for (int t = 0; t < 3; t++) {
        lp_bits(ops_ref(), "ref", temperatures[t], t == 2);
        for (int k = 0; k < 3; k++)
            if (cpu_isa_set(sets[k]))
                for (int lora = 0; lora < 2; lora++) lp_bits(ops_cpu(), sets[k], temperatures[t], lora);
        cpu_isa_set(NULL);
    }
}

TEST(generation_stops_at_an_end_token_or_the_limit) {
    Model m = open_model(checkpoint(FLAT, false), ops_ref());
    int32_t prompt[] = {3, 4, 5};
    Request r = {prompt, 3, NULL, NULL, 0, 0, 1};
    Completion c;
    GenerationConfig g = {.sample = {.repetition_penalty = 1}, .max_new_tokens = 6};
    run(&m, &r, 1, g, &c);
    EXPECT(c.ids.n == 6 && !c.stopped);
    int64_t first = 2; // stop at the first occurrence of the third token
    for (int64_t i = 2; i >= 0; i--) first = c.ids.p[i] == c.ids.p[2] ? i : first;
    g.stop[0] = c.ids.p[2], g.n_stop = 1;
    completion_free(&c);
    run(&m, &r, 1, g, &c);
    EXPECT(c.ids.n == first + 1 && c.stopped);
    completion_free(&c);
    g.max_new_tokens = 198; // 3 + 198 tokens, 200 allowed
    Err e = {0};
    char line[2000];
    EXPECT(!generate(&m, &r, 1, &g, NULL, NULL, &c, &e));
    EXPECT(strstr(err_line(&e, "error", line, sizeof line),
                  "E-ME-02: prompt: expected 1 to 200 tokens in all; found 3 in the prompt and up to 198 new") != NULL);
    model_free(&m);
}

TEST(memory_over_the_limit_is_refused_with_the_numbers) {
    Model m = open_model(checkpoint(FLAT, false), ops_ref());
    int64_t before = memory_limit();
    int32_t prompt[] = {3, 4, 5};
    Request r = {prompt, 3, NULL, NULL, 0, 0, 1};
    Completion c;
    Err e = {0};
    GenerationConfig g = {.sample = {.repetition_penalty = 1}, .max_new_tokens = 5};
    memory_limit_set(5000);
    EXPECT(!generate(&m, &r, 1, &g, NULL, NULL, &c, &e));
    EXPECT_STR(e.code, "E-ME-01");
    EXPECT(err_exit_code(&e) == EXIT_MEMORY && strstr(e.expected, "--max-memory 5000"));
    memory_limit_set(before);
    e = (Err){0};
    EXPECT(generate(&m, &r, 1, &g, NULL, NULL, &c, &e)); // and the model is as good as before
    completion_free(&c);
    model_free(&m);
}

static bool stop_after_three(void *ctx, int completion, int32_t id) {
    (void)completion, (void)id;
    return ++*(int *)ctx < 3;
}
TEST(a_caller_can_stop_generation) {
    Model m = open_model(checkpoint(FLAT, false), ops_ref());
    int32_t prompt[] = {3, 4, 5};
    Request r = {prompt, 3, NULL, NULL, 0, 0, 1};
    Completion c;
    Err e = {0};
    int calls = 0;
    GenerationConfig g = {.sample = {.repetition_penalty = 1}, .max_new_tokens = 50};
    EXPECT(generate(&m, &r, 1, &g, stop_after_three, &calls, &c, &e) && c.ids.n == 3);
    completion_free(&c);
    model_free(&m);
}

TEST(generation_settings_come_from_the_file_and_hf_defaults) {
    checkpoint(FLAT, false);
    GenerationConfig g;
    bool from_file = true;
    Err e = {0};
    EXPECT(generation_config_load(&g, folder, &from_file, &e));
    EXPECT(!from_file && !g.sample.do_sample && g.sample.top_k == 50 && g.n_stop == 1 && g.stop[0] == 44);
    write_text("generation_config.json", "{\"do_sample\":true,\"eos_token_id\":[44,45],\"pad_token_id\":45,"
                                         "\"repetition_penalty\":1.05,\"temperature\":0.000001}");
    EXPECT(generation_config_load(&g, folder, &from_file, &e));
    EXPECT(from_file && g.sample.do_sample && g.sample.temperature == 1e-6 && g.sample.repetition_penalty == 1.05 &&
           g.sample.top_k == 50 && g.sample.top_p == 1);
    EXPECT(g.n_stop == 2 && g.stop[1] == 45 && g.pad == 45);
    write_text("generation_config.json", "{\"temperature\":0}");
    EXPECT(!generation_config_load(&g, folder, &from_file, &e) && !strcmp(e.code, "E-CF-02"));
}
