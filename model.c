// model.c - configuration, the parameter table, loading, multimodal positions, the layer loop, the head.
//
// What it is:  a Qwen2.5-VL checkpoint folder made ready to run, and the decoder's forward pass.
// What it is not: generation (generate.c) or the vision tower (vision.c).
// Read before: block.c, vision.c.  Read next: generate.c.
#include "surgr1.h"

// ------------------------------------------------------------------------------------------------------ configuration

// A field is looked up in its own section first, then at top level (transformers 4.52 moved the text fields into
// text_config and often repeats them). Missing fields take the class defaults of transformers'
// configuration_qwen2_5_vl.
typedef struct Fields {
    const JsonDoc *doc;
    const Json *section;
    Err *e;
} Fields;

static const Json *holder(Fields f, const char *name) { return json_get(f.section, name) ? f.section : f.doc->root; }
static bool field_int(Fields f, const char *name, int64_t missing, int64_t min, int64_t max, int64_t *out) {
    *out = missing;
    return json_int(f.doc, holder(f, name), name, false, min, max, out, f.e);
}
static bool field_double(Fields f, const char *name, double missing, double min, double max, double *out) {
    *out = missing;
    return json_double(f.doc, holder(f, name), name, false, min, max, out, f.e);
}
static bool field_id(Fields f, const char *name, int64_t V, int32_t *out) {
    int64_t id = -1;
    if (!field_int(f, name, -1, 0, V - 1, &id)) return false;
    *out = (int32_t)id;
    return true;
}
// A string field that must be `want` when it is there: another value names a thing this program does not compute.
static bool field_is(Fields f, const char *name, const char *want) {
    const Json *v = json_get(holder(f, name), name);
    if (!v || v->type == JSON_NULL || json_is(v, want)) return true;
    return err_set(f.e, "E-CF-02", json_at(f.doc, v, name),
                   "expected \"%s\"; found %s; do: use a Qwen2.5-VL checkpoint", want, json_shown(v));
}
static bool field_refused(Fields f, const char *name, bool present_is_bad, const char *why) {
    const Json *v = json_get(holder(f, name), name);
    if (!v || v->type == JSON_NULL || (!present_is_bad && v->type != JSON_TRUE)) return true;
    return err_set(f.e, "E-CF-02", json_at(f.doc, v, name),
                   "expected no %s; found it; do: use the plain checkpoint, without %s", name, why);
}
static bool cross(const JsonDoc *doc, const char *field, Err *e, const char *expected, int64_t found) {
    return err_set(e, "E-CF-03", AT(.file = doc->file, .field = field),
                   "expected %s; found %lld; do: use the config.json that came with the weights", expected,
                   (long long)found);
}

static bool read_rope(Config *c, Fields f) {
    const Json *rope = json_get(holder(f, "rope_parameters"), "rope_parameters");
    const char *where = "rope_parameters";
    if (!rope || rope->type == JSON_NULL) where = "rope_scaling", rope = json_get(holder(f, where), where);
    if (!field_double(f, "rope_theta", 1e6, 1, 1e12, &c->theta)) return false;
    if (rope && rope->type == JSON_NULL) rope = NULL;
    if (rope && rope->type != JSON_OBJECT)
        return err_set(f.e, "E-CF-02", json_at(f.doc, rope, where),
                       "expected an object; found %s; do: use the config.json that came with the weights",
                       json_shown(rope));
    if (!json_double(f.doc, rope, "rope_theta", false, 1, 1e12, &c->theta, f.e)) return false;
    const char *names[] = {"type", "rope_type"};
    for (int i = 0; i < 2; i++) {
        const Json *type = rope ? json_get(rope, names[i]) : NULL;
        if (type && !json_is(type, "mrope") && !json_is(type, "default"))
            return err_set(f.e, "E-CF-02", json_at(f.doc, type, names[i]),
                           "expected \"mrope\" or \"default\"; found %s; do: remove the rope scaling, long-context "
                           "scaling is not supported",
                           json_shown(type));
    }
    const Json *sections = rope ? json_get(rope, "mrope_section") : NULL;
    int64_t default_sections[3] = {16, 24, 24}, sum = 0;
    memcpy(c->mrope, default_sections, sizeof c->mrope);
    if (sections) {
        const Json *v = sections->child;
        if (sections->type != JSON_ARRAY || sections->count != 3)
            return err_set(
                f.e, "E-CF-02", json_at(f.doc, sections, "mrope_section"),
                "expected an array of three integers; found %s; do: use the config.json that came with the weights",
                json_shown(sections));
        for (int i = 0; i < 3; i++, v = v->next) {
            if (v->type != JSON_NUMBER || !v->integer || v->i < 0 || v->i > 4096)
                return err_set(
                    f.e, "E-CF-02", json_at(f.doc, v, "mrope_section"),
                    "expected integers 0..4096; found %s; do: use the config.json that came with the weights",
                    json_shown(v));
            c->mrope[i] = v->i;
        }
    }
    for (int i = 0; i < 3; i++) sum += c->mrope[i];
    return sum * 2 == c->dim ||
           cross(f.doc, "mrope_section", f.e, "three parts that add up to half the head size", sum);
}

static bool read_vision(Config *c, Fields f) {
    VisionConfig *v = &c->vision;
    const JsonDoc *doc = f.doc;
    const Json *section = f.section;
    if (section && section->type != JSON_OBJECT)
        return err_set(f.e, "E-CF-02", json_at(doc, section, "vision_config"),
                       "expected an object; found %s; do: use the config.json that came with the weights",
                       json_shown(section));
    f.doc = doc;
#define VISION_INT(name, missing, min, max, out)                                                                       \
    (*(out) = (missing), json_int(doc, section, name, false, min, max, out, f.e))
    if (!VISION_INT("depth", 32, 1, 512, &v->depth) || !VISION_INT("hidden_size", 3584, 1, 65536, &v->C) ||
        !VISION_INT("intermediate_size", 3420, 1, 262144, &v->F) || !VISION_INT("num_heads", 16, 1, 1024, &v->heads) ||
        !VISION_INT("in_channels", 3, 3, 3, &v->channels) || !VISION_INT("patch_size", 14, 1, 256, &v->patch) ||
        !VISION_INT("spatial_merge_size", 2, 1, 16, &v->merge) ||
        !VISION_INT("temporal_patch_size", 2, 1, 16, &v->temporal) ||
        !VISION_INT("tokens_per_second", 4, 0, 1000, &c->tokens_per_second) ||
        !VISION_INT("window_size", 112, 1, 65536, &v->window) ||
        !VISION_INT("out_hidden_size", 3584, 1, 65536, &v->out))
        return false;
#undef VISION_INT
    const Json *act = section ? json_get(section, "hidden_act") : NULL;
    if (act && !json_is(act, "silu"))
        return err_set(f.e, "E-CF-02", json_at(doc, act, "vision_config.hidden_act"),
                       "expected \"silu\"; found %s; do: use a Qwen2.5-VL checkpoint", json_shown(act));
    v->dim = v->C / v->heads, v->eps = 1e-6f;
    const Json *full = section ? json_get(section, "fullatt_block_indexes") : NULL;
    memset(v->full, 0, sizeof v->full);
    if (!full)
        for (int j = 7; j < 32; j += 8) v->full[j] = true;
    else if (full->type != JSON_ARRAY)
        return err_set(
            f.e, "E-CF-02", json_at(doc, full, "fullatt_block_indexes"),
            "expected an array of block numbers; found %s; do: use the config.json that came with the weights",
            json_shown(full));
    else
        for (const Json *j = full->child; j; j = j->next) {
            if (j->type != JSON_NUMBER || !j->integer || j->i < 0 ||
                j->i >= (int64_t)(sizeof v->full / sizeof *v->full))
                return err_set(
                    f.e, "E-CF-02", json_at(doc, j, "fullatt_block_indexes"),
                    "expected block numbers 0..511; found %s; do: use the config.json that came with the weights",
                    json_shown(j));
            v->full[j->i] = true; // numbers past the last block have no effect, as in transformers
        }
    if (v->C % v->heads)
        return cross(doc, "vision_config.num_heads", f.e, "a divisor of the vision hidden_size", v->heads);
    if (v->dim % 4)
        return cross(doc, "vision_config.num_heads", f.e, "heads of a size that is a multiple of 4", v->dim);
    if (v->dim > 512) return cross(doc, "vision_config.num_heads", f.e, "heads of a size of at most 512", v->dim);
    if (v->out != c->C)
        return cross(doc, "vision_config.out_hidden_size", f.e, "the hidden_size of the decoder", v->out);
    if (v->window / v->merge / v->patch < 1)
        return cross(doc, "vision_config.window_size", f.e, "a window of at least one merged patch", v->window);
    return true;
}

static void preprocessor_defaults(VisionConfig *v) { // of transformers' class
    static const float mean[3] = {0.48145466f, 0.4578275f, 0.40821073f},
                       std[3] = {0.26862954f, 0.26130258f, 0.27577711f};
    v->min_pixels = 56 * 56, v->max_pixels = 28 * 28 * 1280, v->rescale = 1.0 / 255.0;
    memcpy(v->mean, mean, sizeof mean), memcpy(v->std, std, sizeof std);
}

static bool read_preprocessor(Config *c, const char *dir, Err *e) {
    VisionConfig *v = &c->vision;
    char path[1200];
    if (!path_join(path, sizeof path, dir, "preprocessor_config.json", e)) return false;
    if (!file_exists(path)) return true;

    JsonDoc doc = {0};
    if (!json_read(&doc, path, LIMIT_CONFIG_BYTES, (JsonOptions){.refuse_duplicates = true}, e)) return false;
    const Json *size = json_get(doc.root, "size");
    int64_t patch = v->patch, merge = v->merge, temporal = v->temporal;
    bool ok = json_int(&doc, size, "shortest_edge", false, 1, LIMIT_MODEL_PIXELS, &v->min_pixels, e) &&
              json_int(&doc, size, "longest_edge", false, 1, LIMIT_MODEL_PIXELS, &v->max_pixels, e) &&
              json_int(&doc, doc.root, "min_pixels", false, 1, LIMIT_MODEL_PIXELS, &v->min_pixels, e) &&
              json_int(&doc, doc.root, "max_pixels", false, 1, LIMIT_MODEL_PIXELS, &v->max_pixels, e) &&
              json_int(&doc, doc.root, "patch_size", false, 1, 256, &patch, e) &&
              json_int(&doc, doc.root, "merge_size", false, 1, 16, &merge, e) &&
              json_int(&doc, doc.root, "temporal_patch_size", false, 1, 16, &temporal, e) &&
              json_double(&doc, doc.root, "rescale_factor", false, 1e-9, 1, &v->rescale, e);
    const char *names[2] = {"image_mean", "image_std"};
    for (int k = 0; ok && k < 2; k++) {
        const Json *list = json_get(doc.root, names[k]);
        if (!list || list->type == JSON_NULL) continue;
        bool good = list->type == JSON_ARRAY && list->count == 3;
        const Json *x = list->child;
        for (int i = 0; good && i < 3; i++, x = x->next) {
            good = x->type == JSON_NUMBER && fabs(x->number) < 1e6 && (k == 0 || x->number > 1e-6);
            if (good) (k ? v->std : v->mean)[i] = (float)x->number;
        }
        if (!good)
            ok = err_set(
                e, "E-CF-02", json_at(&doc, list, names[k]),
                "expected three numbers%s; found %s; do: use the preprocessor_config.json that came with the weights",
                k ? " above zero" : "", json_shown(list));
    }
    if (ok && v->min_pixels > v->max_pixels) ok = cross(&doc, "min_pixels", e, "at most max_pixels", v->min_pixels);
    if (ok && patch != v->patch) ok = cross(&doc, "patch_size", e, "the patch_size of config.json", patch);
    if (ok && merge != v->merge) ok = cross(&doc, "merge_size", e, "the spatial_merge_size of config.json", merge);
    if (ok && temporal != v->temporal)
        ok = cross(&doc, "temporal_patch_size", e, "the temporal_patch_size of config.json", temporal);
    json_free(&doc);
    return ok;
}

static bool read_config(Config *c, const JsonDoc *doc, Err *e) {
    const Json *type = json_get(doc->root, "model_type");
    if (!type || !json_is(type, "qwen2_5_vl"))
        return err_set(
            e, "E-CF-01", type ? json_at(doc, type, "model_type") : AT(.file = doc->file, .field = "model_type"),
            "expected \"qwen2_5_vl\"; found %s; do: use a Qwen2.5-VL checkpoint", type ? json_shown(type) : "none");
    const Json *text = json_get(doc->root, "text_config");
    if (text && text->type != JSON_OBJECT)
        return err_set(e, "E-CF-02", json_at(doc, text, "text_config"),
                       "expected an object; found %s; do: use the config.json that came with the weights",
                       json_shown(text));
    Fields f = {doc, text, e}, top = {doc, doc->root, e};
    double eps;
    if (!field_int(f, "vocab_size", 152064, 1, LIMIT_VOCAB, &c->V) ||
        !field_int(f, "hidden_size", 8192, 1, 65536, &c->C) ||
        !field_int(f, "intermediate_size", 29568, 1, 1048576, &c->F) ||
        !field_int(f, "num_hidden_layers", 80, 1, 1024, &c->L) ||
        !field_int(f, "num_attention_heads", 64, 1, 1024, &c->heads) ||
        !field_int(f, "num_key_value_heads", 8, 1, 1024, &c->kv_heads) ||
        !field_int(f, "max_position_embeddings", 32768, 1, 100000000, &c->context) ||
        !field_double(f, "rms_norm_eps", 1e-5, 0, 1, &eps) || !field_is(f, "hidden_act", "silu") ||
        !field_refused(f, "use_sliding_window", false, "sliding-window attention") ||
        !field_refused(f, "quantization_config", true, "quantised weights"))
        return false;
    c->eps = (float)eps;
    if (c->C % c->heads) return cross(doc, "num_attention_heads", e, "a divisor of hidden_size", c->heads);
    if (c->heads % c->kv_heads)
        return cross(doc, "num_key_value_heads", e, "a divisor of num_attention_heads", c->kv_heads);
    c->dim = c->C / c->heads;
    if (c->dim % 2 || c->dim > 512)
        return cross(doc, "num_attention_heads", e, "an even head size of at most 512", c->dim);
    if (!read_rope(c, f)) return false;
    c->tied = false; // transformers reads the top level; text_config speaks only when that is silent
    if (!json_bool(doc, text, "tie_word_embeddings", false, &c->tied, e) ||
        !json_bool(doc, doc->root, "tie_word_embeddings", false, &c->tied, e))
        return false;
    if (!field_id(top, "image_token_id", c->V, &c->image_id) || !field_id(top, "video_token_id", c->V, &c->video_id) ||
        !field_id(top, "vision_start_token_id", c->V, &c->vision_start_id) ||
        !field_id(top, "vision_end_token_id", c->V, &c->vision_end_id))
        return false;
    if (!read_vision(c, (Fields){doc, json_get(doc->root, "vision_config"), e})) return false;
    // the products that become sizes
    int64_t layer, total;
    if (!mul_ok(c->C, 2 * c->C + 3 * c->F, &layer) || !mul_ok(layer, c->L, &total) || total > INT64_C(1) << 42)
        return err_set(e, "E-CF-04", AT(.file = doc->file),
                       "expected at most 2^42 parameters; found %lld layers of width %lld and %lld; do: use the "
                       "config.json that came with the weights",
                       (long long)c->L, (long long)c->C, (long long)c->F);
    return true;
}

bool config_read(Config *c, const char *path, Err *e) {
    JsonDoc doc = {0};
    memset(c, 0, sizeof *c);
    preprocessor_defaults(&c->vision);
    if (!json_read(&doc, path, LIMIT_CONFIG_BYTES, (JsonOptions){.refuse_duplicates = true}, e)) return false;
    bool ok = read_config(c, &doc, e);
    json_free(&doc);
    return ok;
}

bool config_load(Config *c, const char *dir, Err *e) {
    char path[1200];
    if (!path_join(path, sizeof path, dir, "config.json", e) || !config_read(c, path, e)) return false;
    snprintf(c->dir, sizeof c->dir, "%s", dir);
    return read_preprocessor(c, dir, e);
}

void config_print(const Config *c, Text *out) {
    const VisionConfig *v = &c->vision;
    text_addf(
        out,
        "{\"model_type\":\"qwen2_5_vl\",\"vocab_size\":%lld,\"hidden_size\":%lld,\"intermediate_size\":%lld,\"num_"
        "hidden_layers\":%lld,"
        "\"num_attention_heads\":%lld,\"num_key_value_heads\":%lld,\"max_position_embeddings\":%lld,\"rms_norm_eps\":",
        (long long)c->V, (long long)c->C, (long long)c->F, (long long)c->L, (long long)c->heads, (long long)c->kv_heads,
        (long long)c->context);
    text_add_json_number(out, c->eps);
    text_addf(out, ",\"rope_theta\":");
    text_add_json_number(out, c->theta);
    text_addf(
        out,
        ",\"mrope_section\":[%lld,%lld,%lld],\"tie_word_embeddings\":%s,\"image_token_id\":%d,\"video_token_id\":%d,"
        "\"vision_start_token_id\":%d,\"vision_end_token_id\":%d,\"vision_config\":{\"depth\":%lld,\"hidden_size\":%"
        "lld,"
        "\"intermediate_size\":%lld,\"num_heads\":%lld,\"patch_size\":%lld,\"spatial_merge_size\":%lld,\"temporal_"
        "patch_size\":%lld,"
        "\"window_size\":%lld,\"out_hidden_size\":%lld,\"tokens_per_second\":%lld,\"fullatt_block_indexes\":[",
        (long long)c->mrope[0], (long long)c->mrope[1], (long long)c->mrope[2], c->tied ? "true" : "false", c->image_id,
        c->video_id, c->vision_start_id, c->vision_end_id, (long long)v->depth, (long long)v->C, (long long)v->F,
        (long long)v->heads, (long long)v->patch, (long long)v->merge, (long long)v->temporal, (long long)v->window,
        (long long)v->out, (long long)c->tokens_per_second);
    bool comma = false;
    for (int64_t j = 0; j < v->depth; j++)
        if (v->full[j]) text_addf(out, "%s%lld", comma ? "," : "", (long long)j), comma = true;
    text_addf(out, "]},\"min_pixels\":%lld,\"max_pixels\":%lld,\"rescale_factor\":", (long long)v->min_pixels,
              (long long)v->max_pixels);
    text_add_json_number(out, v->rescale);
    text_addf(out, "}");
}

// --------------------------------------------------------------------------------------------------- parameter table

static void param_add(Model *m, Weight *w, int dims, const int64_t *shape, const char *fmt, ...) PRINTF_LIKE(5, 6);
static void param_add(Model *m, Weight *w, int dims, const int64_t *shape, const char *fmt, ...) {
    Param *p = &m->params[m->n_params++];
    va_list args;
    va_start(args, fmt);
    vsnprintf(p->name, sizeof p->name, fmt, args);
    va_end(args);
    p->w = w, p->dims = dims, p->rows = dims > 1 ? shape[0] : 1, p->cols = dims > 1 ? 1 : shape[0];
    for (int i = 0; i < dims; i++) p->shape[i] = shape[i];
    for (int i = 1; i < dims; i++) p->cols *= shape[i];
    w->v = mat(NULL, p->rows, p->cols, F32);
}
#define VECTOR(w, n, ...)          param_add(m, w, 1, (int64_t[]){n}, __VA_ARGS__)
#define MATRIX(w, rows, cols, ...) param_add(m, w, 2, (int64_t[]){rows, cols}, __VA_ARGS__)

// Every parameter once, by its original name, in the order the forward pass meets it.
static void parameter_table(Model *m) {
    Config *c = &m->c;
    VisionConfig *v = &c->vision;
    Vision *t = &m->vision;
    int64_t unit = v->C * v->merge * v->merge;
    t->c = *v;
    t->blocks = alloc_or_die((size_t)v->depth, sizeof *t->blocks, "vision blocks");
    m->layers = alloc_or_die((size_t)c->L, sizeof *m->layers, "decoder layers");
    m->params = alloc_or_die((size_t)(12 * (v->depth + c->L) + 9), sizeof *m->params, "parameter table");

    param_add(m, &t->patch_embed.w, 5, (int64_t[]){v->C, v->channels, v->temporal, v->patch, v->patch},
              "visual.patch_embed.proj.weight");
    for (int j = 0; j < (int)v->depth; j++) {
        Block *b = &t->blocks[j];
        b->n_qkv = 1;
        VECTOR(&b->norm1, v->C, "visual.blocks.%d.norm1.weight", j);
        MATRIX(&b->qkv[0].w, 3 * v->C, v->C, "visual.blocks.%d.attn.qkv.weight", j);
        VECTOR(&b->qkv[0].b, 3 * v->C, "visual.blocks.%d.attn.qkv.bias", j);
        MATRIX(&b->proj.w, v->C, v->C, "visual.blocks.%d.attn.proj.weight", j);
        VECTOR(&b->proj.b, v->C, "visual.blocks.%d.attn.proj.bias", j);
        VECTOR(&b->norm2, v->C, "visual.blocks.%d.norm2.weight", j);
        MATRIX(&b->gate.w, v->F, v->C, "visual.blocks.%d.mlp.gate_proj.weight", j);
        VECTOR(&b->gate.b, v->F, "visual.blocks.%d.mlp.gate_proj.bias", j);
        MATRIX(&b->up.w, v->F, v->C, "visual.blocks.%d.mlp.up_proj.weight", j);
        VECTOR(&b->up.b, v->F, "visual.blocks.%d.mlp.up_proj.bias", j);
        MATRIX(&b->down.w, v->C, v->F, "visual.blocks.%d.mlp.down_proj.weight", j);
        VECTOR(&b->down.b, v->C, "visual.blocks.%d.mlp.down_proj.bias", j);
    }
    VECTOR(&t->ln_q, v->C, "visual.merger.ln_q.weight");
    MATRIX(&t->merger0.w, unit, unit, "visual.merger.mlp.0.weight");
    VECTOR(&t->merger0.b, unit, "visual.merger.mlp.0.bias");
    MATRIX(&t->merger2.w, v->out, unit, "visual.merger.mlp.2.weight");
    VECTOR(&t->merger2.b, v->out, "visual.merger.mlp.2.bias");

    MATRIX(&m->embed, c->V, c->C, "model.embed_tokens.weight");
    for (int i = 0; i < (int)c->L; i++) {
        Block *b = &m->layers[i];
        int64_t out[3] = {c->heads * c->dim, c->kv_heads * c->dim, c->kv_heads * c->dim};
        b->n_qkv = 3;
        VECTOR(&b->norm1, c->C, "model.layers.%d.input_layernorm.weight", i);
        for (int k = 0; k < 3; k++) {
            MATRIX(&b->qkv[k].w, out[k], c->C, "model.layers.%d.self_attn.%c_proj.weight", i, "qkv"[k]);
            VECTOR(&b->qkv[k].b, out[k], "model.layers.%d.self_attn.%c_proj.bias", i, "qkv"[k]);
        }
        MATRIX(&b->proj.w, c->C, out[0], "model.layers.%d.self_attn.o_proj.weight", i);
        VECTOR(&b->norm2, c->C, "model.layers.%d.post_attention_layernorm.weight", i);
        MATRIX(&b->gate.w, c->F, c->C, "model.layers.%d.mlp.gate_proj.weight", i);
        MATRIX(&b->up.w, c->F, c->C, "model.layers.%d.mlp.up_proj.weight", i);
        MATRIX(&b->down.w, c->C, c->F, "model.layers.%d.mlp.down_proj.weight", i);
    }
    VECTOR(&m->norm, c->C, "model.norm.weight");
    MATRIX(&m->head.w, c->V, c->C, "lm_head.weight");
    m->params[m->n_params - 1].tied = c->tied;
}

void canonical_name(char *out, size_t size, const char *name) {
    static const char *prefixes[][2] = {{"model.visual.", "visual."}, {"model.language_model.", "model."}};
    for (int i = 0; i < 2; i++) {
        size_t n = strlen(prefixes[i][0]);
        if (strncmp(name, prefixes[i][0], n)) continue;
        snprintf(out, size, "%s%s", prefixes[i][1], name + n);
        return;
    }
    snprintf(out, size, "%s", name);
}

// ------------------------------------------------------------------------------------------------------------ loading

typedef struct Named {
    char name[520];
    Tensor *t;
} Named;
static int compare_named(const void *a, const void *b) {
    return strcmp(((const Named *)a)->name, ((const Named *)b)->name);
}
static int compare_name(const void *key, const void *b) { return strcmp(key, ((const Named *)b)->name); }

// The file's tensors under their original names. Both layouts may be read, but no name may come twice.
static Named *tensors_by_name(const TensorFile *f, Err *e) {
    Named *list = alloc_or_die((size_t)f->count + 1, sizeof *list, "tensor names");
    for (int64_t i = 0; i < f->count; i++)
        canonical_name(list[i].name, sizeof list[i].name, f->tensors[i].name), list[i].t = &f->tensors[i];
    qsort(list, (size_t)f->count, sizeof *list, compare_named);
    for (int64_t i = 1; i < f->count; i++)
        if (!strcmp(list[i - 1].name, list[i].name)) {
            err_set(e, "E-ST-10", AT(.file = tensors_path(f, list[i].t), .tensor = list[i].t->name),
                    "expected each parameter once; found it also as %s; do: use one naming layout",
                    quoted(list[i - 1].t->name, strlen(list[i - 1].t->name)));
            free(list);
            return NULL;
        }
    return list;
}

// Finds each parameter's tensor (found[i], NULL for a tied head) and checks its shape and type.
static bool match_tensors(Model *m, Tensor **found, Err *e) {
    Named *list = tensors_by_name(&m->files, e);
    if (!list) return false;
    bool ok = true;
    int64_t missing = 0;
    Text names = {0};
    for (int64_t i = 0; ok && i < m->n_params; i++) {
        Param *p = &m->params[i];
        Named *n = bsearch(p->name, list, (size_t)m->files.count, sizeof *list, compare_name);
        Tensor *t = found[i] = n ? n->t : NULL;
        if (t) t->used = true;
        if (!t && p->tied) continue;
        if (!t) {
            if (missing++ < LIMIT_LISTED) text_addf(&names, "%s%s", missing > 1 ? ", " : "", p->name);
            continue;
        }
        char want[160], got[160];
        bool fits = t->dims == p->dims;
        for (int k = 0; fits && k < p->dims; k++) fits = t->shape[k] == p->shape[k];
        if (!fits)
            ok = err_set(
                e, "E-ST-10", AT(.file = tensors_path(&m->files, t), .tensor = t->name),
                "expected shape %s from config.json; found %s; do: use the config.json that came with the weights",
                shape_text(p->dims, p->shape, want, sizeof want), shape_text(t->dims, t->shape, got, sizeof got));
        else if (t->type != FT_F32 && t->type != FT_BF16 && t->type != FT_F16)
            ok = err_set(e, "E-ST-06", AT(.file = tensors_path(&m->files, t), .tensor = t->name),
                         "expected dtype BF16, F16 or F32; found \"%s\"; do: convert the checkpoint to bfloat16",
                         file_type_name(t->type));
    }
    if (ok && missing)
        ok = err_set(e, "E-ST-10", AT(.file = m->files.path),
                     "expected all %lld parameters of config.json; found %lld missing: %s%s; do: fetch all files of "
                     "the checkpoint",
                     (long long)m->n_params, (long long)missing, names.p, missing > LIMIT_LISTED ? ", ..." : "");
    for (int64_t i = 0; ok && i < m->files.count; i++)
        if (!m->files.tensors[i].used)
            warn("E-ST-10",
                 AT(.file = tensors_path(&m->files, &m->files.tensors[i]), .tensor = m->files.tensors[i].name),
                 "expected only parameters of the model; found one it does not have; do: nothing, it is ignored");
    text_free(&names), free(list);
    return ok;
}

typedef struct Scan {
    Tensor **tensors;
    int64_t *bad;
} Scan;
static void scan_one(void *ctx, int64_t i, int thread) {
    (void)thread;
    Scan *s = ctx;
    s->bad[i] = s->tensors[i] ? tensor_count_nonfinite(s->tensors[i]) : 0;
}
static bool check_finite(const Model *m, Tensor **found, Err *e) {
    Scan s = {found, alloc_or_die((size_t)m->n_params, sizeof(int64_t), "scan of the weights")};
    parallel_for(m->n_params, scan_one, &s);
    int64_t tensors = 0, first = -1;
    Text names = {0};
    for (int64_t i = 0; i < m->n_params; i++) {
        if (!s.bad[i]) continue;
        if (first < 0) first = i;
        if (tensors++ < LIMIT_LISTED)
            text_addf(&names, "%s%lld in %s", tensors > 1 ? ", " : "", (long long)s.bad[i], m->params[i].name);
    }
    free(s.bad);
    if (first >= 0)
        err_set(e, "E-NU-01", AT(.file = tensors_path(&m->files, found[first]), .tensor = found[first]->name),
                "expected finite weights; found NaN or infinity in %lld tensors (%s); do: download the checkpoint "
                "again, or pass --allow-nonfinite",
                (long long)tensors, names.p);
    text_free(&names);
    return first < 0;
}

// Where a weight goes: matrices of the CPU devices stay in the mapped file when its type is one the ops read there (so
// that a 7B bf16 model needs no second copy); everything else is converted into the arena. Vectors are F32 everywhere.
static bool stays_mapped(const Model *m, const Param *p, const Tensor *t, LoadOptions options) {
    bool host = m->d->alloc == ops_ref()->alloc;
    bool type_fits = t->type == FT_F32 || (t->type == FT_BF16 && !options.force_f32);
    return host && p->rows > 1 && type_fits && (uintptr_t)t->data % file_type_size(t->type) == 0;
}

static void place_weights(Model *m, Tensor **found, LoadOptions options, Arena *a) {
    for (int64_t i = 0; i < m->n_params; i++) {
        Param *p = &m->params[i];
        if (p->tied) continue;
        Type type = p->rows > 1 && m->d->act_type == BF16 ? BF16 : F32;
        if (stays_mapped(m, p, found[i], options))
            p->w->v = mat((void *)(uintptr_t)found[i]->data, p->rows, p->cols, found[i]->type == FT_BF16 ? BF16 : F32);
        else p->w->v = arena_mat(a, p->rows, p->cols, type);
    }
}

static void fill_weights(Model *m, Tensor **found, LoadOptions options) {
    enum { CHUNK = 1 << 20 };
    float *buffer = alloc_or_die(CHUNK, sizeof *buffer, "conversion of weights");
    for (int64_t i = 0; i < m->n_params; i++) {
        Param *p = &m->params[i];
        if (p->tied || stays_mapped(m, p, found[i], options)) continue;
        int64_t rows = CHUNK / p->cols > 0 ? CHUNK / p->cols : 1, n = p->rows * p->cols;
        for (int64_t first = 0; first < n;) { // whole rows when a row fits the buffer, else pieces of a row
            int64_t row = first / p->cols, col = first % p->cols;
            int64_t count = p->cols <= CHUNK        ? (row + rows > p->rows ? p->rows - row : rows) * p->cols
                            : p->cols - col < CHUNK ? p->cols - col
                                                    : CHUNK;
            tensor_to_f32(found[i], first, count, buffer);
            Mat part = p->cols <= CHUNK ? mat_rows(p->w->v, row, count / p->cols)
                                        : mat_cols(mat_rows(p->w->v, row, 1), col, count);
            if (part.type == BF16)
                for (int64_t k = 0; k < count; k++) ((uint16_t *)(void *)buffer)[k] = f32_to_bf16(buffer[k]);
            m->d->upload(part, mat(buffer, part.rows, part.cols, part.type));
            first += count;
        }
    }
    free(buffer);
}

bool model_describe(Model *m, const char *dir, Err *e) {
    memset(m, 0, sizeof *m);
    m->weights.role = "weights", m->activations.role = "activations";
    if (!config_load(&m->c, dir, e)) return false;
    parameter_table(m);
    return true;
}

bool model_load(Model *m, const char *dir, const Ops *d, LoadOptions options, Err *e) {
    if (!model_describe(m, dir, e)) return false;
    m->d = d;
    Tensor **found = alloc_or_die((size_t)m->n_params, sizeof(Tensor *), "tensor table");
    Tensor *head, *embed;
    bool ok = tensors_open_folder(&m->files, dir, e) && match_tensors(m, found, e) &&
              (options.allow_nonfinite || check_finite(m, found, e));
    if (ok && m->c.tied && (head = found[m->n_params - 1])) { // a stored head beside tied embeddings must say the same
        embed = tensors_find(&m->files, "model.embed_tokens.weight");
        if (!embed) embed = tensors_find(&m->files, "model.language_model.embed_tokens.weight");
        if (!embed || embed->bytes != head->bytes || memcmp(embed->data, head->data, head->bytes))
            ok = err_set(e, "E-ST-10", AT(.file = tensors_path(&m->files, head), .tensor = head->name),
                         "expected the embedding's values, since tie_word_embeddings is true; found others; do: set "
                         "tie_word_embeddings to false, or drop the tensor");
    }
    if (ok) {
        Arena count = {.role = "weights"};
        place_weights(m, found, options, &count);
        ok = arena_reserve(&m->weights, d, count.used, e);
    }
    if (ok) {
        place_weights(m, found, options, &m->weights);
        fill_weights(m, found, options);
        if (m->c.tied) m->head.w = m->embed;
        for (int64_t i = 0; i < m->n_params; i++)
            m->mapped |= found[i] && stays_mapped(m, &m->params[i], found[i], options);
        if (!m->mapped) tensors_close(&m->files);
    }
    free(found);
    if (!ok) model_free(m);
    return ok;
}

void model_free(Model *m) {
    if (m->d) arena_release(&m->weights, m->d), arena_release(&m->activations, m->d);
    tensors_close(&m->files);
    free(m->vision.blocks), free(m->layers), free(m->params);
    memset(m, 0, sizeof *m);
}

// ---------------------------------------------------------------------------------------------------------- positions

// transformers get_rope_index: text counts up by one on all three axes; a picture of h x w units takes (start, start +
// y, start + x) in raster order, and text goes on at 1 + the largest position of the picture.
bool mrope_positions(const Config *c, const int32_t *ids, int64_t n, int64_t n_prompt, const Grid *grids, int n_grids,
                     int32_t *pos, int64_t *next, Err *e) {
    int32_t *axis[3] = {pos, pos + n, pos + 2 * n};
    int64_t at = 0, m = c->vision.merge;
    int picture = 0;
    for (int64_t i = 0; i < n;) {
        if (i < n_prompt && ids[i] == c->video_id && c->video_id >= 0)
            return err_set(
                e, "E-DS-10", AT(.file = "prompt"),
                "expected text and pictures; found a video token at position %lld; do: give frames as pictures",
                (long long)i);
        if (i >= n_prompt || ids[i] != c->image_id || c->image_id < 0) {
            for (int k = 0; k < 3; k++) axis[k][i] = (int32_t)at;
            i++, at++;
            continue;
        }
        int64_t run = 0;
        while (i + run < n_prompt && ids[i + run] == c->image_id) run++;
        if (picture == n_grids)
            return err_set(
                e, "E-DS-10", AT(.file = "prompt"),
                "expected %d pictures; found more image tokens at position %lld; do: give one picture for each place",
                n_grids, (long long)i);
        Grid g = grids[picture++];
        int64_t h = g.h / m, w = g.w / m, units = g.t * h * w;
        if (run < units)
            return err_set(
                e, "E-DS-10", AT(.file = "prompt"),
                "expected %lld image tokens for picture %d; found %lld; do: give one image token for each merged patch",
                (long long)units, picture, (long long)run);
        for (int64_t u = 0; u < units; u++, i++) {
            axis[0][i] = (int32_t)at; // a still picture has one moment: t does not advance
            axis[1][i] = (int32_t)(at + u / w % h);
            axis[2][i] = (int32_t)(at + u % w);
        }
        at += h > w ? h : w;
    }
    if (picture < n_grids)
        return err_set(e, "E-DS-10", AT(.file = "prompt"),
                       "expected a place for each of %d pictures; found %d; do: write <image> where each belongs",
                       n_grids, picture);
    *next = at;
    return true;
}

int64_t image_places(const Config *c, const int32_t *ids, int64_t n, int64_t first, int32_t *at) {
    int64_t found = 0;
    for (int64_t i = 0; i < n; i++)
        if (c->image_id >= 0 && ids[i] == c->image_id) at[found++] = (int32_t)(first + i);
    return found;
}

// Angle j of a head (half of dim) turns with the t position for the first mrope[0] of them, then h, then w:
// position * theta^(-2j/dim), in fp32 as torch computes it.
void mrope_table(const Config *c, const int32_t *pos, int64_t n, float *table) {
    int64_t half = c->dim / 2;
    for (int64_t j = 0; j < half; j++) {
        int axis = j < c->mrope[0] ? 0 : j < c->mrope[0] + c->mrope[1] ? 1 : 2;
        float inverse = 1.0f / (float)pow(c->theta, (float)(2 * j) / (float)c->dim);
        for (int64_t i = 0; i < n; i++) {
            float angle = inverse * (float)pos[axis * n + i];
            table[i * c->dim + j] = (float)cos(angle);
            table[i * c->dim + half + j] = (float)sin(angle);
        }
    }
}

// -------------------------------------------------------------------------------------------------------- forward pass

typedef struct TextScratch {
    Mat x;                  // [N, C] the residual stream
    Mat angles;             // F32 [N, dim]
    Mat index, image_at;    // I32 [N, 1] token ids, -1 at picture rows; I32 [n_images, 1] where those are
    Mat spans;              // I32 [n_spans, 5]
    Mat slots;              // I32 [N, 1]
    Mat head_index, head_x; // I32 [n_head, 1]; [n_head, C]
    BlockScratch block;
} TextScratch;

static void text_place(TextScratch *s, Arena *a, const Config *c, const TextInput *in, int64_t n_images, Type act) {
    s->x = arena_mat(a, in->N, c->C, act);
    s->angles = arena_mat(a, in->N, c->dim, F32);
    s->index = arena_mat(a, in->N, 1, I32);
    s->image_at = arena_mat(a, n_images, 1, I32);
    s->spans = arena_mat(a, in->n_spans, 5, I32);
    s->slots = arena_mat(a, in->cache ? in->N : 0, 1, I32);
    s->head_index = arena_mat(a, in->head_rows ? in->n_head : 0, 1, I32);
    s->head_x = arena_mat(a, in->head_rows ? in->n_head : in->N, c->C, act);
    block_scratch_place(&s->block, a, (BlockShape){c->C, c->heads, c->kv_heads, c->dim, c->F, c->eps}, in->N, act);
}

bool text_forward(Model *m, const TextInput *in, Mat logits, Tap tap, void *tap_ctx, Err *e) {
    const Config *c = &m->c;
    const Ops *d = m->d;
    BlockShape shape = {c->C, c->heads, c->kv_heads, c->dim, c->F, c->eps};
    int64_t n_images = in->image_rows.p ? in->image_rows.rows : 0;
    CHECK(!in->head_rows || in->n_head <= in->N, "text_forward: %lld head rows of %lld", (long long)in->n_head,
          (long long)in->N);
    for (int64_t i = 0; i < in->N; i++)
        CHECK(in->ids[i] >= 0 && in->ids[i] < c->V, "text_forward: id %d of a vocabulary of %lld", in->ids[i],
              (long long)c->V);
    for (int64_t i = 0; i < n_images; i++)
        CHECK(in->image_at[i] >= 0 && in->image_at[i] < in->N, "text_forward: picture row at %d of %lld",
              in->image_at[i], (long long)in->N);

    TextScratch s;
    Arena count = {.role = "activations"};
    text_place(&s, &count, c, in, n_images, d->act_type);
    if (!arena_reserve(&m->activations, d, count.used, e)) return false;
    text_place(&s, &m->activations, c, in, n_images, d->act_type);

    int32_t *index = alloc_or_die((size_t)in->N, sizeof *index, "token rows");
    memcpy(index, in->ids, (size_t)in->N * sizeof *index);
    for (int64_t i = 0; i < n_images; i++) index[in->image_at[i]] = -1; // zero until the picture's row is added
    float *table = alloc_or_die((size_t)in->N, (size_t)c->dim * sizeof *table, "rotary table");
    mrope_table(c, in->pos, in->N, table);
    Spans spans = {s.spans, in->spans, in->n_spans, 0};
    for (int64_t i = 0; i < in->n_spans; i++)
        if (in->spans[i].last - in->spans[i].first > spans.longest)
            spans.longest = in->spans[i].last - in->spans[i].first;
    d->upload(s.index, mat(index, in->N, 1, I32));
    if (n_images) d->upload(s.image_at, mat((void *)(uintptr_t)in->image_at, n_images, 1, I32));
    d->upload(s.angles, mat(table, in->N, c->dim, F32));
    d->upload(s.spans, mat((void *)(uintptr_t)in->spans, in->n_spans, 5, I32));
    if (in->cache) d->upload(s.slots, mat((void *)(uintptr_t)in->slots, in->N, 1, I32));
    if (in->head_rows) d->upload(s.head_index, mat((void *)(uintptr_t)in->head_rows, in->n_head, 1, I32));

    trace_where("text.embeddings");
    gather_rows(d, s.x, m->embed.v, s.index);
    if (n_images) scatter_add_rows(d, s.x, in->image_rows, s.image_at);
    if (tap) tap(tap_ctx, "text.embeddings", d, s.x);
    for (int64_t i = 0; i < c->L; i++) {
        char name[64], attention[64], mlp[64];
        snprintf(name, sizeof name, "text.layer.%lld", (long long)i);
        snprintf(attention, sizeof attention, "text.attention.%lld", (long long)i);
        snprintf(mlp, sizeof mlp, "text.mlp.%lld", (long long)i);
        trace_where(name);
        BlockCache cache = {0};
        if (in->cache) cache = (BlockCache){in->cache->k[i], in->cache->v[i], s.slots, in->decode};
        block_forward(d, &m->layers[i], shape, s.block, s.x, s.angles, spans, in->cache ? &cache : NULL, tap, tap_ctx,
                      attention, mlp);
        if (tap) tap(tap_ctx, name, d, s.x);
    }
    trace_where("text.head");
    Mat x = s.x;
    if (in->head_rows) {
        x = mat_rows(s.block.normed, 0, in->n_head);
        gather_rows(d, x, s.x, s.head_index);
    }
    rmsnorm_forward(d, s.head_x, mat_none(), x, m->norm.v, c->eps);
    if (tap) tap(tap_ctx, "text.norm", d, s.head_x);
    if (logits.p) linear_forward(d, &m->head, logits, s.head_x);
    if (tap && logits.p) tap(tap_ctx, "logits", d, logits);
    d->sync(); // the host tables must outlive their use
    free(index), free(table);
    return true;
}
