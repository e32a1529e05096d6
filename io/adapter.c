// adapter.c - a LoRA adapter folder as PEFT writes it: adapter_config.json + adapter_model.safetensors.
//
// What it is:  the description of an adapter, checked: settings, which modules, and that every lora_A has its lora_B; and
//              PEFT's rules for names of modules, which lora.c reads and writes by.
// What it is not: the application of one to a model. What is more than a plain LoRA is refused by name.
// Read before: io/safetensors.c, io/pattern.c.  Read next: lora.c.
// Source: huggingface/peft src/peft/tuners/lora/config.py, src/peft/utils/save_and_load.py and other.py.
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

// -------------------------------------------------------------------------------------------------------------- names

const char *original_path(char *out, size_t size, const char *path) {
    const char *p = strncmp(path, "model.", 6) ? path : path + 6;
    bool visual = !strncmp(p, "visual.", 7), head = !strncmp(p, "lm_head", 7);
    if (!strncmp(p, "language_model.", 15)) p += 15;
    if (!strncmp(p, "model.", 6)) p += 6;
    snprintf(out, size, "%s%s", visual || head ? "" : "model.", p);
    return out;
}

const char *tree_path(char *out, size_t size, const char *original) {
    bool decoder = !strncmp(original, "model.", 6), visual = !strncmp(original, "visual.", 7);
    snprintf(out, size, "%s%s",
             decoder  ? "model.language_model."
             : visual ? "model."
                      : "",
             original + (decoder ? 6 : 0));
    return out;
}

// PEFT's rule for names: the module itself, or anything that ends in "." and the name.
static bool module_named(const char *module, const char *name, size_t name_len) {
    size_t len = strlen(module);
    return len >= name_len && !memcmp(module + len - name_len, name, name_len) &&
           (len == name_len || module[len - name_len - 1] == '.');
}

// A module is saved when its path ends in one of the names, whole part or not: so PEFT looks for them.
bool module_saved(const Json *names, const char *parameter) {
    for (const char *dot = strchr(parameter, '.'); dot; dot = strchr(dot + 1, '.'))
        for (const Json *s = names && names->type == JSON_ARRAY ? names->child : NULL; s; s = s->next) {
            size_t len = (size_t)(dot - parameter);
            if (len >= s->len && !memcmp(dot - s->len, s->str, s->len)) return true;
        }
    return false;
}

// Most keys are names: letters, digits, "_", and "." for any character. Those are compared as they are.
struct ModuleNumber {
    char *name; // NULL: the pattern counts
    Pattern pattern;
    double value;
};

static bool plain_name(const char *key, size_t len) {
    for (size_t i = 0; i < len; i++) {
        char c = key[i];
        bool plain = (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || c == '_' || c == '.';
        if (!plain) return false;
    }
    return true;
}

bool module_numbers_open(ModuleNumbers *p, const JsonDoc *doc, const Json *object, Err *e) {
    *p = (ModuleNumbers){0};
    if (!object || !object->count) return true;
    p->keys = alloc_or_die(object->count, sizeof *p->keys, "patterns of an adapter");
    for (const Json *v = object->child; v; v = v->next) {
        struct ModuleNumber *k = &p->keys[p->n];
        Text whole = {0};
        k->value = v->number;
        bool ok = true;
        if (plain_name(v->key, v->key_len)) {
            k->name = alloc_or_die(v->key_len + 1, 1, "patterns of an adapter");
            memcpy(k->name, v->key, v->key_len);
        } else {
            text_addf(&whole, "(.*\\.)?(");
            text_add(&whole, v->key, v->key_len);
            text_addf(&whole, ")");
            ok = pattern_compile(&k->pattern, whole.p, whole.len, json_at(doc, v, object->key), e);
        }
        text_free(&whole);
        p->n += ok;
        if (!ok) {
            module_numbers_close(p);
            return false;
        }
    }
    return true;
}

void module_numbers_close(ModuleNumbers *p) {
    for (int64_t i = 0; i < p->n; i++) free(p->keys[i].name), pattern_free(&p->keys[i].pattern);
    free(p->keys);
    *p = (ModuleNumbers){0};
}

bool module_number(const ModuleNumbers *p, const char *module, double *out) {
    size_t len = strlen(module);
    for (int64_t i = 0; i < p->n; i++) {
        const struct ModuleNumber *k = &p->keys[i];
        bool named;
        if (k->name) {
            size_t n = strlen(k->name);
            named = n <= len && (n == len || module[len - n - 1] == '.');
            for (size_t j = 0; named && j < n; j++) named = k->name[j] == '.' || k->name[j] == module[len - n + j];
        } else named = pattern_matches(&k->pattern, module, len);
        if (!named) continue;
        *out = k->value;
        return true;
    }
    return false;
}

double adapter_number(const ModuleNumbers *p, const char *path, double missing) {
    char original[NAME_BUFFER], today[NAME_BUFFER];
    double value = missing;
    if (module_number(p, path, &value)) return value;
    tree_path(today, sizeof today, original_path(original, sizeof original, path));
    return strcmp(today, path) && module_number(p, today, &value) ? value : missing;
}

bool adapter_targets(const AdapterInfo *a, const char *path) {
    const Json *targets = json_get(a->config.root, "target_modules");
    char original[NAME_BUFFER], today[NAME_BUFFER];
    if (!targets || targets->type == JSON_NULL || json_is(targets, "all-linear")) return true;
    tree_path(today, sizeof today, original_path(original, sizeof original, path));
    bool named = false;
    for (const Json *n = targets->child; n && !named; n = n->next)
        named = module_named(path, n->str, n->len) || module_named(today, n->str, n->len);
    if (targets->type == JSON_STRING) {
        Pattern pattern;
        Err not_for_us = {0}; // what re can and we cannot: then the tensors alone say which modules
        if (!pattern_compile(&pattern, targets->str, targets->len, AT(0), &not_for_us)) return true;
        named = pattern_matches(&pattern, path, strlen(path)) || pattern_matches(&pattern, today, strlen(today));
        pattern_free(&pattern);
    }
    return named;
}

char adapter_part(const Tensor *t, char *out, size_t size) {
    static const char prefix[] = "base_model.model.", suffix_a[] = ".lora_A.weight", suffix_b[] = ".lora_B.weight";
    size_t len = strlen(t->name), skip = sizeof prefix - 1, end = sizeof suffix_a - 1;
    bool under = !strncmp(t->name, prefix, skip), half = under && len > skip + end;
    char part = half && !strcmp(t->name + len - end, suffix_a)   ? 'A'
                : half && !strcmp(t->name + len - end, suffix_b) ? 'B'
                                                                 : 0;
    snprintf(out, size, "%.*s", (int)(part ? len - skip - end : len), t->name + (under ? skip : 0));
    return part;
}

// ------------------------------------------------------------------------------------------------------------ tensors

// E-AD-04: the matrices of one module fit each other and the config.
static bool pair_fits(const AdapterInfo *a, const Tensor *A, const Tensor *B, const char *module, Err *e) {
    Where at = AT(.file = tensors_path(&a->tensors, A), .tensor = A->name);
    char shape_a[SHAPE_BUFFER], shape_b[SHAPE_BUFFER];
    shape_text(A->dims, A->shape, shape_a, sizeof shape_a), shape_text(B->dims, B->shape, shape_b, sizeof shape_b);
    if (A->dims != 2 || B->dims != 2 || A->shape[0] != B->shape[1] || !A->elements || !B->elements)
        return err_set(e, "E-AD-04", at,
                       "expected shapes [rank, in] and [out, rank] of lora_A and lora_B; found %s and %s" COPY, shape_a,
                       shape_b);
    if (A->shape[0] != (int64_t)adapter_number(&a->ranks, module, (double)a->r))
        return err_set(e, "E-AD-04", at,
                       "expected the rank of adapter_config.json (r is %lld); found shape %s" ITS_CONFIG,
                       (long long)a->r, shape_a);
    return adapter_targets(a, module) ||
           err_set(e, "E-AD-04", at, "expected a module that target_modules names; found %s" ITS_CONFIG,
                   quoted(module, strlen(module)));
}

// One tensor of the adapter: half of a pair (which is looked at from its A), or part of a module that is saved whole.
static bool adapter_tensor(AdapterInfo *a, const Tensor *t, Err *e) {
    Where at = AT(.file = tensors_path(&a->tensors, t), .tensor = t->name);
    char path[NAME_BUFFER], other_name[NAME_BUFFER];
    char part = adapter_part(t, path, sizeof path);
    bool under = strcmp(path, t->name) != 0;
    if (!part && !(under && module_saved(json_get(a->config.root, "modules_to_save"), path)))
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
    a->modules_saved += !part;
    a->pairs += part == 'A';
    if (!part) return true;
    const char *other_part = part == 'A' ? "lora_B.weight" : "lora_A.weight";
    snprintf(other_name, sizeof other_name, "%.*s%s", (int)(strlen(t->name) - strlen(other_part)), t->name, other_part);
    const Tensor *other = tensors_find(&a->tensors, other_name);
    if (!other) return err_set(e, "E-AD-04", at, "expected its other half %s; found none" COPY, other_part);
    return part == 'B' || pair_fits(a, t, other, path, e);
}

bool adapter_open(AdapterInfo *a, const char *dir, Err *e) {
    char config[PATH_BUFFER], weights[PATH_BUFFER];
    *a = (AdapterInfo){0};
    if (!path_join(config, sizeof config, dir, "adapter_config.json", e) ||
        !path_join(weights, sizeof weights, dir, "adapter_model.safetensors", e) ||
        !json_read(&a->config, config, LIMIT_CONFIG_BYTES, (JsonOptions){.refuse_duplicates = true}, e))
        return false;
    const Json *root = a->config.root;
    bool ok = adapter_config(a, &a->config, e) &&
              module_numbers_open(&a->ranks, &a->config, json_get(root, "rank_pattern"), e) &&
              module_numbers_open(&a->alphas, &a->config, json_get(root, "alpha_pattern"), e) &&
              tensors_open(&a->tensors, weights, e);
    for (int64_t i = 0; ok && i < a->tensors.count; i++) ok = adapter_tensor(a, &a->tensors.tensors[i], e);
    if (ok && !a->pairs)
        ok = err_set(e, "E-AD-04", AT(.file = weights),
                     "expected at least one pair of lora_A and lora_B; found none" COPY);
    if (!ok) adapter_close(a);
    return ok;
}

void adapter_close(AdapterInfo *a) {
    tensors_close(&a->tensors);
    module_numbers_close(&a->ranks), module_numbers_close(&a->alphas);
    if (a->config.root) json_free(&a->config);
    text_free(&a->targets);
    *a = (AdapterInfo){0};
}
