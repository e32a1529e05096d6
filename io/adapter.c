// adapter.c - a LoRA adapter folder as PEFT writes it: adapter_config.json + adapter_model.safetensors.
//
// What it is:  the description of an adapter, checked: settings, which modules, and that every lora_A has its lora_B.
// What it is not: the application of one to a model. What is more than a plain LoRA is refused by name.
// Read before: io/safetensors.c.  Read next: model.c.
// Source: huggingface/peft src/peft/tuners/lora/config.py, src/peft/utils/save_and_load.py.
#include "../surgr1.h"

enum { PATH_BUFFER = 1100, NAME_BUFFER = 640, SHAPE_BUFFER = 160 };

// What a person can do next, for messages.
#define ITS_CONFIG "; do: use the adapter_config.json that came with the weights"
#define COPY       "; do: copy the adapter again"

// What PEFT can do beyond a plain LoRA, by the name of the switch: each must be off (absent, null, false or empty).
// clang-format off
static const char *const adapter_off[] = {
    "use_dora", "lora_bias", "fan_in_fan_out", "use_qalora", "layer_replication", "megatron_config", "arrow_config",
    "trainable_token_indices", "target_parameters", "alora_invocation_tokens",
};
// clang-format on

static bool adapter_refuse(const JsonDoc *doc, const Json *v, const char *field, const char *expected, Err *e) {
    return err_set(e, "E-AD-03", json_at(doc, v, field), "expected %s; found %s; do: %s", expected, json_shown(v),
                   "train or convert the adapter as a plain LoRA");
}

static bool names_ok(const Json *v) {
    for (const Json *c = v->type == JSON_ARRAY ? v->child : NULL; c; c = c->next)
        if (c->type != JSON_STRING || !c->len || memchr(c->str, 0, c->len)) return false;
    return v->type == JSON_ARRAY;
}

// A field of a wrong type or range is E-CF-02 in model configurations and E-AD-02 here.
static bool adapter_field(bool ok, Err *e) {
    if (!ok && !strcmp(e->code, "E-CF-02")) memcpy(e->code, "E-AD-02", sizeof e->code);
    return ok;
}

static bool adapter_config(AdapterInfo *a, const JsonDoc *doc, Err *e) {
    const Json *c = doc->root, *v = json_get(c, "peft_type");
    if (!v || !json_is(v, "LORA"))
        return err_set(e, "E-AD-01", json_at(doc, v ? v : c, "peft_type"),
                       "expected \"LORA\"; found %s; do: use a LoRA adapter", v ? json_shown(v) : "none");
    a->r = 8, a->alpha = 8, a->dropout = 0;
    if (!adapter_field(json_int(doc, c, "r", false, 1, LIMIT_LORA_RANK, &a->r, e), e) ||
        !adapter_field(json_double(doc, c, "lora_alpha", false, 1e-6, 65536, &a->alpha, e), e) ||
        !adapter_field(json_double(doc, c, "lora_dropout", false, 0, 0.9, &a->dropout, e), e) ||
        !adapter_field(json_bool(doc, c, "use_rslora", false, &a->rslora, e), e))
        return false;
    for (size_t i = 0; i < sizeof adapter_off / sizeof *adapter_off; i++) {
        v = json_get(c, adapter_off[i]);
        bool off = !v || v->type == JSON_NULL || v->type == JSON_FALSE ||
                   ((v->type == JSON_ARRAY || v->type == JSON_OBJECT) && !v->count);
        if (!off) return adapter_refuse(doc, v, adapter_off[i], "this extension of LoRA to be off", e);
    }
    v = json_get(c, "bias");
    if (v && !json_is(v, "none")) return adapter_refuse(doc, v, "bias", "\"none\"", e);
    // PiSSA, OLoRA, CorDA and LoftQ subtract from the base weights what they put into the adapter.
    v = json_get(c, "init_lora_weights");
    if (v && v->type == JSON_STRING && !json_is(v, "gaussian") && !json_is(v, "eva") && !json_is(v, "orthogonal"))
        return adapter_refuse(doc, v, "init_lora_weights", "a start that leaves the base weights alone", e);
    v = json_get(c, "target_modules");
    if (v && v->type != JSON_STRING && v->type != JSON_NULL && !names_ok(v))
        return adapter_refuse(doc, v, "target_modules", "a list of module names or one pattern", e);
    if (v) json_print(&a->targets, v);
    else text_add(&a->targets, "null", 4);
    v = json_get(c, "modules_to_save");
    if (v && v->type != JSON_NULL && !names_ok(v))
        return adapter_refuse(doc, v, "modules_to_save", "a list of module names", e);
    static const char *const patterns[] = {"rank_pattern", "alpha_pattern"};
    for (int k = 0; k < 2; k++) {
        v = json_get(c, patterns[k]);
        if (v && v->type != JSON_NULL && v->type != JSON_OBJECT)
            return adapter_refuse(doc, v, patterns[k], "an object that maps modules to numbers", e);
        for (const Json *p = v ? v->child : NULL; p; p = p->next)
            if (p->type != JSON_NUMBER || p->number <= 0 || p->number > 65536 ||
                (k == 0 && (!p->integer || p->i > LIMIT_LORA_RANK)))
                return err_set(e, "E-AD-02", json_at(doc, p, patterns[k]),
                               "expected a %s above 0 and at most %lld; found %s" ITS_CONFIG,
                               k ? "number" : "whole number", k ? 65536LL : (long long)LIMIT_LORA_RANK, json_shown(p));
    }
    v = json_get(c, "base_model_name_or_path");
    if (v && v->type == JSON_STRING)
        snprintf(a->base_model, sizeof a->base_model, "%.*s",
                 (int)utf8_complete(v->str, v->len < sizeof a->base_model ? v->len : sizeof a->base_model - 1), v->str);
    return true;
}

// PEFT's rule for names: the module itself, or anything that ends in "." and the name.
static bool module_named(const char *module, size_t len, const char *name, size_t name_len) {
    return len >= name_len && !memcmp(module + len - name_len, name, name_len) &&
           (len == name_len || module[len - name_len - 1] == '.');
}

// Whether a key of rank_pattern names the module. PEFT reads the key as a regular expression behind an optional "...";
// no expression from a file is run here, so a key is taken as a name (with "^" for the whole path and "\." for a dot),
// and one that is more than a name stays undecided.
enum Named { NAMED_NO, NAMED_YES, NAMED_UNDECIDED };
static enum Named pattern_names(const Json *key, const char *module, size_t len) {
    char name[NAME_BUFFER];
    size_t n = 0;
    bool whole = key->key_len && key->key[0] == '^';
    for (size_t i = whole; i < key->key_len; i++) {
        char c = key->key[i];
        if (c == '\\' && i + 1 < key->key_len && key->key[i + 1] == '.') continue;
        if (!c || strchr("*+?[](){}|^$\\", c) || n == sizeof name) return NAMED_UNDECIDED;
        name[n++] = c;
    }
    return module_named(module, len, name, n) && (!whole || n == len) ? NAMED_YES : NAMED_NO;
}

// Whether `rank` is what the config says: that of the first key of rank_pattern that names the module, else r.
static bool rank_fits(const AdapterInfo *a, const Json *ranks, const char *module, size_t len, int64_t rank) {
    for (const Json *p = ranks ? ranks->child : NULL; p; p = p->next) {
        enum Named named = pattern_names(p, module, len);
        if (named == NAMED_YES) return rank == p->i;
        if (named == NAMED_UNDECIDED && rank == p->i) return true;
    }
    return rank == a->r;
}

// Whether the tensor "module.rest" lies in a module whose path ends in one of these names, as PEFT looks for them.
static bool inside_saved(const char *path, const Json *saved) {
    for (const char *dot = strchr(path, '.'); dot; dot = strchr(dot + 1, '.'))
        for (const Json *s = saved && saved->type == JSON_ARRAY ? saved->child : NULL; s; s = s->next) {
            size_t len = (size_t)(dot - path);
            if (len >= s->len && !memcmp(dot - s->len, s->str, s->len)) return true;
        }
    return false;
}

// E-AD-04: the matrices of one module, `module` of `len` bytes, fit each other and the config.
static bool pair_fits(const AdapterInfo *a, const Tensor *A, const Tensor *B, const char *module, size_t len,
                      const Json *config, Err *e) {
    Where at = AT(.file = tensors_path(&a->tensors, A), .tensor = A->name);
    char shape_a[SHAPE_BUFFER], shape_b[SHAPE_BUFFER];
    shape_text(A->dims, A->shape, shape_a, sizeof shape_a), shape_text(B->dims, B->shape, shape_b, sizeof shape_b);
    if (A->dims != 2 || B->dims != 2 || A->shape[0] != B->shape[1] || !A->elements || !B->elements)
        return err_set(e, "E-AD-04", at,
                       "expected shapes [rank, in] and [out, rank] of lora_A and lora_B; found %s and %s" COPY, shape_a,
                       shape_b);
    if (!rank_fits(a, json_get(config, "rank_pattern"), module, len, A->shape[0]))
        return err_set(e, "E-AD-04", at,
                       "expected the rank of adapter_config.json (r is %lld); found shape %s" ITS_CONFIG,
                       (long long)a->r, shape_a);
    const Json *targets = json_get(config, "target_modules");
    bool named = !targets || targets->type != JSON_ARRAY;
    for (const Json *n = named ? NULL : targets->child; n && !named; n = n->next)
        named = module_named(module, len, n->str, n->len);
    return named || err_set(e, "E-AD-04", at, "expected a module that target_modules names; found %s" ITS_CONFIG,
                            quoted(module, len));
}

// One tensor of the adapter: half of a pair (which is looked at from its A), or part of a module that is saved whole.
static bool adapter_tensor(AdapterInfo *a, const Tensor *t, const Json *config, Err *e) {
    static const char prefix[] = "base_model.model.", suffix_a[] = ".lora_A.weight", suffix_b[] = ".lora_B.weight";
    Where at = AT(.file = tensors_path(&a->tensors, t), .tensor = t->name);
    size_t len = strlen(t->name), skip = sizeof prefix - 1, end = sizeof suffix_a - 1;
    bool under = !strncmp(t->name, prefix, skip);
    bool is_a = under && len > skip + end && !strcmp(t->name + len - end, suffix_a);
    bool is_b = under && len > skip + end && !strcmp(t->name + len - end, suffix_b);
    if (!is_a && !is_b && !(under && inside_saved(t->name + skip, json_get(config, "modules_to_save"))))
        return err_set(e, "E-AD-04", at,
                       "expected lora_A.weight or lora_B.weight of a module under base_model.model, or a tensor of "
                       "modules_to_save; found something else; do: use a plain LoRA adapter as PEFT saves it");
    if (t->type != FT_F32 && t->type != FT_BF16 && t->type != FT_F16)
        return err_set(e, "E-AD-04", at, "expected dtype F32, BF16 or F16; found %s; do: save the adapter in float32",
                       file_type_name(t->type));
    int64_t bad = tensor_count_nonfinite(t);
    if (bad)
        return err_set(e, "E-NU-01", at, "expected finite values; found %lld of %lld that are not; do: %s",
                       (long long)bad, (long long)t->elements, "use an adapter from an earlier step of its training");
    a->parameters += t->elements;
    a->modules_saved += !is_a && !is_b;
    a->pairs += is_a;
    if (!is_a && !is_b) return true;
    char other_name[NAME_BUFFER];
    memcpy(other_name, t->name, len + 1);
    memcpy(other_name + len - end, is_a ? suffix_b : suffix_a, end);
    const Tensor *other = tensors_find(&a->tensors, other_name);
    if (!other)
        return err_set(e, "E-AD-04", at, "expected its other half %s; found none" COPY,
                       is_a ? "lora_B.weight" : "lora_A.weight");
    return is_b || pair_fits(a, t, other, t->name + skip, len - skip - end, config, e);
}

bool adapter_open(AdapterInfo *a, const char *dir, Err *e) {
    char config[PATH_BUFFER], weights[PATH_BUFFER];
    JsonDoc doc;
    *a = (AdapterInfo){0};
    if (!path_join(config, sizeof config, dir, "adapter_config.json", e) ||
        !path_join(weights, sizeof weights, dir, "adapter_model.safetensors", e) ||
        !json_read(&doc, config, LIMIT_CONFIG_BYTES, (JsonOptions){.refuse_duplicates = true}, e))
        return false;
    bool ok = adapter_config(a, &doc, e) && tensors_open(&a->tensors, weights, e);
    for (int64_t i = 0; ok && i < a->tensors.count; i++) ok = adapter_tensor(a, &a->tensors.tensors[i], doc.root, e);
    if (ok && !a->pairs)
        ok = err_set(e, "E-AD-04", AT(.file = weights),
                     "expected at least one pair of lora_A and lora_B; found none" COPY);
    json_free(&doc);
    if (!ok) adapter_close(a);
    return ok;
}

void adapter_close(AdapterInfo *a) {
    tensors_close(&a->tensors);
    text_free(&a->targets);
    *a = (AdapterInfo){0};
}
