// config.c - config.json and preprocessor_config.json of a checkpoint folder, understood and checked.
//
// What it is:  every field the program computes with, from the flat, nested and rope_parameters layouts that transformers
//              has written over time, each checked for type, range and agreement with the others.
// What it is not: generation_config.json (generate.c) or weights (model.c).
// Read before: io/json.c.  Read next: model.c.
#include "surgr1.h"

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
