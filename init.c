// init.c - a checkpoint folder with random weights.
//
// What it is:  the numbers a model starts from, and the small files beside them, so that this program and transformers
//              open the folder like any published one.
// What it is not: training (sft.c), or a new adapter (lora.c).
// Read before: config.c, model.c (the parameter table), tokenizer_train.c.  Read next: train.c.
//
// Every matrix y = x W^T: W uniform with mean 0 and deviation 1 / sqrt(columns), so that y is about as large as x; the
// matrices that write to the residual stream are no exception. (GPT-2 divides those by sqrt(2 layers); with few layers
// that only makes them slow to learn.) Embeddings: deviation 0.02, also when they are the head. Norms 1, biases 0.
// A number depends on the seed, the parameter's name and the element alone: a deeper model has the same first layers.
#include "surgr1.h"

enum { PATH_BUFFER = 1100 };

void init_values(const Param *p, uint64_t seed, float *out) {
    int64_t n = p->rows * p->cols;
    size_t len = strlen(p->name);
    if (p->dims == 1) { // a bias or the scale of a norm
        float v = len > 5 && !strcmp(p->name + len - 5, ".bias") ? 0.0f : 1.0f;
        for (int64_t k = 0; k < n; k++) out[k] = v;
        return;
    }
    bool embedding = !strcmp(p->name, "model.embed_tokens.weight");
    double deviation = embedding ? 0.02 : 1 / sqrt((double)p->cols), bound = deviation * sqrt(3.0);
    uint64_t stream = bytes_hash(p->name, len);
    for (int64_t k = 0; k < n; k++) {
        double u = random_uniform(seed, RANDOM_INIT, stream + (uint64_t)(k >> 32), (uint32_t)k);
        out[k] = (float)((2 * u - 1) * bound);
    }
}

// --------------------------------------------------------------------------------------------------------- weights
typedef struct Rows {
    const Param **p; // in the order of the tensors
    FileType type;
    uint64_t seed;
} Rows;

static bool source(void *ctx, int64_t i, FileWriter *w, Err *e) {
    const Rows *r = ctx;
    size_t n = (size_t)(r->p[i]->rows * r->p[i]->cols);
    float *values = alloc_or_die(n, sizeof *values, "new weights");
    uint16_t *halves = r->type == FT_BF16 ? alloc_or_die(n, sizeof *halves, "new weights") : NULL;
    init_values(r->p[i], r->seed, values);
    for (size_t k = 0; halves && k < n; k++) halves[k] = f32_to_bf16(values[k]);
    bool ok = file_write_bytes(w, halves ? (const void *)halves : values, n * file_type_size(r->type), e);
    free(values), free(halves);
    return ok;
}

static bool weights_write(const Model *m, const InitOptions *o, const char *dir, InitResult *r, Err *e) {
    char path[PATH_BUFFER];
    TensorOut *out = alloc_or_die((size_t)m->n_params, sizeof *out, "list of tensors to write");
    Rows rows = {alloc_or_die((size_t)m->n_params, sizeof *rows.p, "list of tensors to write"), o->type, o->seed};
    int64_t n = 0;
    for (int64_t i = 0; i < m->n_params; i++) {
        const Param *p = &m->params[i];
        if (p->tied) continue;
        rows.p[n] = p;
        out[n] = (TensorOut){.name = p->name, .type = o->type, .dims = p->dims};
        memcpy(out[n++].shape, p->shape, sizeof out->shape);
        r->parameters += p->rows * p->cols;
    }
    r->tensors = n, r->vocab = m->c.V;
    bool ok = path_join(path, sizeof path, dir, "model.safetensors", e) &&
              tensors_write_from(path, "{\"format\":\"pt\"}", out, n, source, &rows, e);
    free(out), free(rows.p);
    return ok;
}

// ----------------------------------------------------------------------------------------------------------- files
// What config.json says of the vocabulary, in its own words or in those of the tokenizer.
typedef struct Word {
    const char *key, *token; // token: the key's value is its id
    bool text;               // stands in text_config too
    int32_t id;
} Word;
enum { IMAGE, VIDEO, VISION_START, VISION_END, BOS, EOS, PAD, IDS };

static bool ids_find(const InitOptions *o, Word *words, int64_t *size, Err *e) {
    Tokenizer *t;
    if (!tokenizer_load(&t, o->tokenizer, e)) return false;
    *size = tokenizer_size(t);
    bool ok = true;
    for (int k = 0; k < IDS && ok; k++) {
        words[k].id = tokenizer_added(t, words[k].token);
        if (words[k].id < 0)
            ok = err_set(e, "E-TK-06", AT(.file = o->tokenizer),
                         "expected the added token %s; found none; do: make a tokenizer with surgr1 tokenizer, or use "
                         "that of a Qwen2.5-VL model",
                         quoted(words[k].token, strlen(words[k].token)));
    }
    tokenizer_free(t);
    return ok;
}

// An object of the given config, without what is set here, and then that.
static void object_print(const Json *object, bool text, const Word *words, int64_t vocab, const char *dtype,
                         Text *out) {
    static const char *const others[] = {"vocab_size", "torch_dtype", "dtype"};
    text_addf(out, "{");
    for (const Json *v = object->child; v; v = v->next) {
        bool set = false;
        for (int k = 0; k < IDS; k++) set = set || !strcmp(v->key, words[k].key);
        for (size_t k = 0; k < sizeof others / sizeof *others; k++) set = set || !strcmp(v->key, others[k]);
        if (set) continue;
        text_addf(out, "\n  ");
        text_add_json_string(out, v->key, v->key_len);
        text_addf(out, ": ");
        if (!text && !strcmp(v->key, "text_config") && v->type == JSON_OBJECT)
            object_print(v, true, words, vocab, dtype, out);
        else json_print(out, v);
        text_addf(out, ",");
    }
    for (int k = 0; k < IDS; k++)
        if (!text || words[k].text) text_addf(out, "\n  \"%s\": %d,", words[k].key, words[k].id);
    text_addf(out, "\n  \"torch_dtype\": \"%s\",\n  \"vocab_size\": %lld\n}", dtype, (long long)vocab);
}

static bool config_write(const InitOptions *o, const Word *words, int64_t size, const char *dir, Err *e) {
    JsonDoc doc = {0};
    char path[PATH_BUFFER];
    if (!json_read(&doc, o->config, LIMIT_CONFIG_BYTES, (JsonOptions){.refuse_duplicates = true}, e)) return false;
    const Json *text = json_get(doc.root, "text_config");
    int64_t vocab = 0;
    Text out = {0};
    bool ok =
        json_int(&doc, json_get(text, "vocab_size") ? text : doc.root, "vocab_size", false, 1, LIMIT_VOCAB, &vocab, e);
    ok = ok && (doc.root->type == JSON_OBJECT ||
                err_set(e, "E-CF-02", json_at(&doc, doc.root, NULL), "expected an object; found %s; do: %s",
                        json_shown(doc.root), "use a config.json of a Qwen2.5-VL model"));
    if (ok)
        object_print(doc.root, false, words, vocab > size ? vocab : size, o->type == FT_F32 ? "float32" : "bfloat16",
                     &out);
    ok = ok && path_join(path, sizeof path, dir, "config.json", e) && file_write_atomic(path, out.p, out.len, e);
    text_free(&out), json_free(&doc);
    return ok;
}

static void preprocessor_print(const Config *c, const InitOptions *o, Text *out) {
    const VisionConfig *v = &c->vision;
    int64_t area = v->patch * v->merge * v->patch * v->merge, tokens = c->context / 2 < 1280 ? c->context / 2 : 1280;
    int64_t most = tokens > 4 ? tokens * area : 4 * area;
    text_addf(out,
              "{\n  \"image_processor_type\": \"Qwen2VLImageProcessor\",\n  \"processor_class\": "
              "\"Qwen2_5_VLProcessor\",\n  \"min_pixels\": %lld,\n  \"max_pixels\": %lld,\n  \"patch_size\": %lld,\n"
              "  \"temporal_patch_size\": %lld,\n  \"merge_size\": %lld",
              (long long)(o->min_pixels ? o->min_pixels : 4 * area),
              (long long)(o->max_pixels               ? o->max_pixels
                          : most < LIMIT_MODEL_PIXELS ? most
                                                      : LIMIT_MODEL_PIXELS),
              (long long)v->patch, (long long)v->temporal, (long long)v->merge);
    for (int k = 0; k < 2; k++) {
        text_addf(out, ",\n  \"%s\": [", k ? "image_std" : "image_mean");
        for (int i = 0; i < 3; i++) text_addf(out, "%s%.9g", i ? ", " : "", (double)(k ? v->std : v->mean)[i]);
        text_addf(out, "]");
    }
    text_addf(out, "\n}\n");
}

// An end of turn or of text ends an answer; the most probable token is taken, as long as nobody asks for more.
static void generation_print(const Word *words, Text *out) {
    text_addf(out,
              "{\n  \"bos_token_id\": %d,\n  \"do_sample\": false,\n  \"eos_token_id\": [%d, %d],\n"
              "  \"pad_token_id\": %d\n}\n",
              words[BOS].id, words[EOS].id, words[BOS].id, words[PAD].id);
}

static bool folder_write(const InitOptions *o, const char *dir, InitResult *r, Err *e) {
    Word words[IDS] = {[IMAGE] = {"image_token_id", "<|image_pad|>", false, 0},
                       [VIDEO] = {"video_token_id", "<|video_pad|>", false, 0},
                       [VISION_START] = {"vision_start_token_id", "<|vision_start|>", false, 0},
                       [VISION_END] = {"vision_end_token_id", "<|vision_end|>", false, 0},
                       [BOS] = {"bos_token_id", "<|endoftext|>", true, 0},
                       [EOS] = {"eos_token_id", "<|im_end|>", true, 0},
                       [PAD] = {"pad_token_id", "<|endoftext|>", true, 0}};
    int64_t size;
    Config c;
    Model m;
    char path[PATH_BUFFER];
    if (!ids_find(o, words, &size, e) || !config_write(o, words, size, dir, e) ||
        !path_join(path, sizeof path, dir, "config.json", e) || !config_read(&c, path, e))
        return false;
    Text preprocessor = {0}, generation = {0};
    preprocessor_print(&c, o, &preprocessor), generation_print(words, &generation);
    bool ok = path_join(path, sizeof path, dir, "preprocessor_config.json", e) &&
              file_write_atomic(path, preprocessor.p, preprocessor.len, e) &&
              path_join(path, sizeof path, dir, "generation_config.json", e) &&
              file_write_atomic(path, generation.p, generation.len, e) && tokenizer_copy(o->tokenizer, dir, e);
    text_free(&preprocessor), text_free(&generation);
    if (!ok || !model_describe(&m, dir, e)) return false; // with the limits of pictures, as a reader will
    ok = weights_write(&m, o, dir, r, e);
    model_free(&m);
    return ok;
}

bool model_init(const InitOptions *o, const char *dir, InitResult *r, Err *e) {
    CHECK(o->type == FT_F32 || o->type == FT_BF16, "weights of type %d", o->type);
    *r = (InitResult){0};
    NewFolder folder;
    if (!folder_new(&folder, dir, e)) return false;
    bool ok = folder_begin(folder.made, e) && folder_write(o, folder.made, r, e);
    return folder_new_end(&folder, ok, e);
}
