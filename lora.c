// lora.c - LoRA on a loaded model; PEFT adapters in and out; merging; checkpoints out.
//
// What it is:  choosing the linear layers that get a pair A, B (y += scale B A x, Hu et al. 2021), filling the pairs at
//              random or from an adapter folder, writing them back as PEFT does, and folding them into the weights of a
//              plain checkpoint.
// What it is not: the forward and backward pass (block.c), or the checks an adapter folder passes by itself
//              (io/adapter.c).
// Read before: model.c, io/adapter.c.  Read next: train.c.
// Source: huggingface/peft 0.17 src/peft/tuners/lora/{model,layer}.py, src/peft/utils/{other,save_and_load}.py;
//         huggingface/transformers 4.57 modeling_utils.py save_pretrained.
#include "surgr1.h"

enum { PATH_BUFFER = 1100, NAME_BUFFER = 640, SHAPE_BUFFER = 160, CHUNK = 1 << 20 };

// What becomes of each base parameter.
typedef struct Choice {
    int64_t rank;                // of the pair that its linear layer gets; 0: none
    double alpha;                //
    bool saved;                  // gets a value of its own (modules_to_save)
    const Tensor *a, *b, *value; // where these come from; NULL: drawn at random
} Choice;

// The module of a parameter: its name without the last part, in the original layout.
static void module_of(char *out, size_t size, const char *parameter) {
    snprintf(out, size, "%.*s", (int)(strrchr(parameter, '.') - parameter), parameter);
}

// -------------------------------------------------------------------------------------------------------------- pairs

static size_t pair_bytes(const Model *m, const Choice *choice) {
    Arena count = {0};
    for (int64_t i = 0; i < m->n_base; i++) {
        const Param *p = &m->params[i];
        if (choice[i].rank) {
            arena_padded(&count, m->d, choice[i].rank, p->cols, F32);
            arena_padded(&count, m->d, p->rows, choice[i].rank, F32);
        }
        if (choice[i].saved) arena_padded(&count, m->d, p->rows, p->cols, F32);
    }
    return count.used;
}

static void fill(const Model *m, Mat y, const Tensor *t) {
    float *host = alloc_or_die((size_t)t->elements, sizeof *host, "a tensor of the adapter");
    tensor_to_f32(t, 0, t->elements, host);
    m->d->upload(y, mat(host, y.rows, y.cols, F32));
    free(host);
}

// A ~ U(-1/sqrt(in), 1/sqrt(in)): Kaiming's uniform with a = sqrt(5), as PEFT starts it. A layer's numbers depend on
// the seed and the layer alone, not on which others have a pair.
static void fill_random(const Model *m, Mat a, uint64_t seed, int64_t site) {
    int64_t n = a.rows * a.cols;
    double bound = 1 / sqrt((double)a.cols);
    float *host = alloc_or_die((size_t)n, sizeof *host, "a new adapter");
    for (int64_t k = 0; k < n; k++)
        host[k] = (float)((2 * random_uniform(seed, RANDOM_INIT, (uint64_t)site, (uint32_t)k) - 1) * bound);
    m->d->upload(a, mat(host, a.rows, a.cols, F32));
    free(host);
}

static void row_add(Model *m, Weight *w, int64_t base, enum ParamKind kind) {
    const Param *of = &m->params[base];
    Param *p = &m->params[m->n_params++];
    char name[sizeof of->name];
    memcpy(name, of->name, sizeof name);
    snprintf(strrchr(name, '.'), 16, ".lora_%c.weight",
             kind == PARAM_LORA_A ? 'A' : 'B'); // the longest name has 45 bytes
    *p = (Param){.w = w,
                 .rows = w->v.rows,
                 .cols = w->v.cols,
                 .dims = 2,
                 .shape = {w->v.rows, w->v.cols},
                 .kind = kind,
                 .tower = of->tower,
                 .linear = of->linear,
                 .trained = true,
                 .owned = true};
    memcpy(p->name, name, sizeof name);
}

// Gives every chosen layer its pair, every saved parameter its value, and freezes all others.
static bool pairs_open(Model *m, const Choice *choice, LoraConfig *config, uint64_t seed, Err *e) {
    CHECK(!m->lora && m->n_params == m->n_base, "the model has an adapter already");
    if (!arena_reserve(&m->adapter, m->d, pair_bytes(m, choice), e)) return false;
    m->lora = config;
    for (int64_t i = 0; i < m->n_base; i++) {
        Param *p = &m->params[i];
        const Choice *c = &choice[i];
        p->trained = c->saved;
        if (c->rank) {
            Lora *l = &p->linear->lora;
            *l = (Lora){.scale = (float)(c->alpha / (config->rslora ? sqrt((double)c->rank) : (double)c->rank)),
                        .dropout = (float)config->dropout,
                        .site = (uint32_t)i};
            l->a.v = arena_padded(&m->adapter, m->d, c->rank, p->cols, F32);
            l->b.v = arena_padded(&m->adapter, m->d, p->rows, c->rank, F32);
            if (c->a) fill(m, l->a.v, c->a), fill(m, l->b.v, c->b);
            else fill_random(m, l->a.v, seed, i), m->d->zero(l->b.v);
            row_add(m, &l->a, i, PARAM_LORA_A), row_add(m, &l->b, i, PARAM_LORA_B);
            int64_t *rank = p->tower == TOWER_DECODER ? &m->rank : &m->vision.rank;
            if (c->rank > *rank) *rank = c->rank;
            if (config->dropout > 0) *(p->tower == TOWER_DECODER ? &m->dropout : &m->vision.dropout) = true;
        }
        if (c->saved) { // a tied head stays what it was when only the embedding is replaced, as PEFT has it
            p->w->v = arena_padded(&m->adapter, m->d, p->rows, p->cols, F32);
            p->owned = true;
            fill(m, p->w->v, c->value);
            if (p->w == &m->embed || p->w == &m->head.w) m->params[m->n_base - 1].tied = m->c.tied = false;
        }
    }
    return true;
}

// ------------------------------------------------------------------------------------------------------------ choosing

// "self_attn.q_proj" of a layer, "mlp.0" of the merger: what stands behind the number of the block.
static const char *short_name(const char *module) {
    const char *blocks = strstr(module, "layers."), *merger = strstr(module, "merger.");
    if (!blocks) blocks = strstr(module, "blocks.");
    return blocks ? strchr(blocks + 7, '.') + 1 : merger ? merger + 7 : module;
}

// The shortest name of PEFT's suffix rule that hits these layers in every block, and none of another kind.
static const char *suffix_name(const char *module) {
    const char *name = short_name(module);
    return strncmp(name, "self_attn.", 10) && strncmp(name, "mlp.", 4) ? name // attn.qkv, attn.proj
           : strstr(module, "merger.")                                 ? name // mlp.0, mlp.2
                                                                       : strchr(name, '.') + 1;
}

static bool ends_in(const char *path, const char *name, size_t len) {
    size_t n = strlen(path);
    return n >= len && !memcmp(path + n - len, name, len) && (n == len || path[n - len - 1] == '.');
}

// The names one can choose by, for messages.
static const char *suffix_names(const Model *m, char *out, size_t size) {
    size_t used = 0;
    *out = 0;
    for (int64_t i = 0; i < m->n_base; i++) {
        char module[NAME_BUFFER];
        if (!m->params[i].linear) continue;
        module_of(module, sizeof module, m->params[i].name);
        const char *name = suffix_name(module);
        const char *there = strstr(out, name);
        if ((there && (there == out || there[-1] == ' ')) || used + strlen(name) + 3 > size) continue;
        used += (size_t)snprintf(out + used, size - used, "%s%s", used ? ", " : "", name);
    }
    return out;
}

// E-AD-03: matrices that PEFT could put a LoRA on and this program does not.
static bool choice_refused(const Param *p, const char *module, Where at, Err *e) {
    return err_set(e, "E-AD-03", at, "expected linear layers of the blocks and of the merger; found %s; do: %s", module,
                   p->dims == 5 ? "leave the patch embedding out" : "leave embeddings and the head out");
}

// One name of LoraOptions.targets, or its "/pattern/".
static bool choose(Model *m, const char *target, size_t len, const Pattern *pattern, bool *chosen, Err *e) {
    static const char *const groups[] = {
        [TOWER_VISION] = "vision", [TOWER_MERGER] = "merger", [TOWER_DECODER] = "decoder"};
    Where at = AT(.file = "LoRA", .field = "targets");
    int group = -1;
    int64_t hits = 0;
    for (int k = 0; k < 3 && !pattern; k++)
        if (strlen(groups[k]) == len && !memcmp(groups[k], target, len)) group = k;
    for (int64_t i = 0; i < m->n_base; i++) {
        const Param *p = &m->params[i];
        char module[NAME_BUFFER], tree[NAME_BUFFER];
        if (!p->linear && p->dims < 2) continue;
        module_of(module, sizeof module, p->name);
        tree_path(tree, sizeof tree, module);
        bool hit = pattern      ? pattern_matches(pattern, tree, strlen(tree))
                   : group >= 0 ? p->linear && (int)p->tower == group
                                : ends_in(tree, target, len) || ends_in(module, target, len);
        if (hit && !p->linear) return choice_refused(p, tree, at, e);
        if (hit) chosen[i] = true, hits++;
    }
    char names[300];
    return hits || err_set(e, "E-AD-03", at,
                           "expected decoder, vision, merger, or the end of a module's path: %s; found %s, which hits "
                           "nothing; do: use those names, or a /regular expression/ of a whole path",
                           suffix_names(m, names, sizeof names), quoted(target, len));
}

static bool choose_all(Model *m, const char *targets, bool *chosen, Err *e) {
    size_t len = strlen(targets);
    if (len >= 2 && targets[0] == '/' && targets[len - 1] == '/') {
        Pattern pattern;
        if (!pattern_compile(&pattern, targets + 1, len - 2, AT(.file = "LoRA", .field = "targets"), e)) return false;
        bool ok = choose(m, targets, len, &pattern, chosen, e);
        pattern_free(&pattern);
        return ok;
    }
    for (const char *p = targets;; p++) {
        size_t n = strcspn(p, ",");
        if (!choose(m, p, n, NULL, chosen, e)) return false;
        p += n;
        if (!*p) return true;
    }
}

// ----------------------------------------------------------------------------------------------------- target_modules

// A set of blocks, "\d+" for all of them or "(?:0|2)", for the layers with this short name; NULL when it is empty.
static bool blocks_of(const Model *m, enum Tower tower, const char *name, Text *out) {
    int64_t with = 0, all = 0;
    Text list = {0};
    for (int64_t i = 0; i < m->n_base; i++) {
        const Param *p = &m->params[i];
        char module[NAME_BUFFER];
        if (!p->linear || p->tower != tower) continue;
        module_of(module, sizeof module, p->name);
        if (strcmp(short_name(module), name)) continue;
        all++;
        if (!p->linear->lora.a.v.p) continue;
        const char *number = strpbrk(module, "0123456789");
        text_addf(&list, "%s%.*s", with++ ? "|" : "", (int)strspn(number, "0123456789"), number);
    }
    if (with && tower != TOWER_MERGER) {
        if (with == all) text_addf(out, "\\d+");
        else text_addf(out, "(?:%s)", list.p);
    }
    text_free(&list);
    return with > 0;
}

static void add_escaped(Text *t, const char *name) {
    for (; *name; name++) text_addf(t, *name == '.' ? "\\%c" : "%c", *name);
}

// One expression that matches the paths of exactly the layers that have a pair, in both module trees.
static void targets_pattern(const Model *m, Text *out) {
    static const char *const starts[] = {[TOWER_VISION] = "(?:model\\.)?visual\\.blocks\\.",
                                         [TOWER_MERGER] = "(?:model\\.)?visual\\.merger\\.",
                                         [TOWER_DECODER] = "model\\.(?:language_model\\.)?layers\\."};
    bool first = true;
    for (int64_t i = 0; i < m->n_base; i++) { // once for each kind of layer: where it first comes
        const Param *p = &m->params[i];
        char module[NAME_BUFFER], before[NAME_BUFFER];
        bool seen = false;
        if (!p->linear) continue;
        module_of(module, sizeof module, p->name);
        for (int64_t k = 0; k < i && !seen; k++) {
            if (!m->params[k].linear || m->params[k].tower != p->tower) continue;
            module_of(before, sizeof before, m->params[k].name);
            seen = !strcmp(short_name(before), short_name(module));
        }
        Text blocks = {0};
        if (!seen && blocks_of(m, p->tower, short_name(module), &blocks)) {
            text_addf(out, "%s%s%s%s", first ? "" : "|", starts[p->tower], blocks.p ? blocks.p : "",
                      blocks.p ? "\\." : "");
            add_escaped(out, short_name(module));
            first = false;
        }
        text_free(&blocks);
    }
}

// target_modules as JSON: names when a list of names hits exactly the layers that have a pair, else an expression.
static void targets_text(const Model *m, Text *out) {
    const char *names[32];
    char modules[32][NAME_BUFFER];
    int n = 0;
    bool list = true;
    for (int64_t i = 0; i < m->n_base && list; i++) {
        const Param *p = &m->params[i];
        if (!p->linear) continue;
        module_of(modules[n], sizeof modules[n], p->name);
        names[n] = suffix_name(modules[n]);
        bool new_name = true;
        for (int k = 0; k < n && new_name; k++) new_name = strcmp(names[k], names[n]) != 0;
        if (!new_name) continue;
        int64_t with = 0, without = 0;
        for (int64_t k = 0; k < m->n_base; k++) {
            char module[NAME_BUFFER];
            if (!m->params[k].linear) continue;
            module_of(module, sizeof module, m->params[k].name);
            if (!ends_in(module, names[n], strlen(names[n]))) continue;
            *(m->params[k].linear->lora.a.v.p ? &with : &without) += 1;
        }
        list = !with || !without;
        if (with) n++;
        CHECK(n < 32, "more kinds of linear layers than there are");
    }
    Text pattern = {0};
    if (list) {
        text_add(out, "[", 1);
        for (int done = 0; done < n; done++) { // in byte order, so that the same set gives the same bytes
            int least = -1;
            for (int k = 0; k < n; k++)
                if (names[k] && (least < 0 || strcmp(names[k], names[least]) < 0)) least = k;
            if (done) text_add(out, ",", 1);
            text_add_json_string(out, names[least], strlen(names[least]));
            names[least] = NULL;
        }
        text_add(out, "]", 1);
    } else {
        targets_pattern(m, &pattern);
        text_add_json_string(out, pattern.p, pattern.len);
    }
    text_free(&pattern);
}

// ---------------------------------------------------------------------------------------------------------------- init

bool lora_init(Model *m, const LoraOptions *o, Err *e) {
    Where at = AT(.file = "LoRA");
    if (o->r < 1 || o->r > LIMIT_LORA_RANK)
        return err_set(e, "E-AD-02", at, "expected a rank from 1 to %lld; found %lld; do: choose another",
                       (long long)LIMIT_LORA_RANK, (long long)o->r);
    if (!(o->alpha >= 1e-6 && o->alpha <= 65536) || !(o->dropout >= 0 && o->dropout <= 0.9))
        return err_set(
            e, "E-AD-02", at,
            "expected alpha from 1e-6 to 65536 and dropout from 0 to 0.9; found %g and %g; do: choose others", o->alpha,
            o->dropout);
    bool *chosen = alloc_or_die((size_t)m->n_base, sizeof *chosen, "targets of LoRA");
    Choice *choice = alloc_or_die((size_t)m->n_base, sizeof *choice, "targets of LoRA");
    LoraConfig *config = alloc_or_die(1, sizeof *config, "settings of LoRA");
    config->r = o->r, config->alpha = o->alpha, config->dropout = o->dropout, config->rslora = o->rslora;
    snprintf(config->base_model, sizeof config->base_model, "%.*s",
             (int)utf8_complete(m->c.dir, strnlen(m->c.dir, sizeof config->base_model - 1)), m->c.dir);
    bool ok = choose_all(m, o->targets, chosen, e);
    for (int64_t i = 0; ok && i < m->n_base; i++)
        if (chosen[i]) choice[i].rank = o->r, choice[i].alpha = o->alpha;
    ok = ok && pairs_open(m, choice, config, o->seed, e);
    if (ok) {
        text_addf(&config->saved, "null"), text_addf(&config->rank_pattern, "{}");
        text_addf(&config->alpha_pattern, "{}");
        targets_text(m, &config->targets);
    } else free(config);
    free(chosen), free(choice);
    return ok;
}

// ---------------------------------------------------------------------------------------------------------------- load

#define OTHER_BASE "; do: load the adapter on the model it was trained on"

// E-AD-04: tensor t (half 'A' or 'B' of a pair, or 0 for a saved parameter) fits parameter p of the model.
static bool tensor_lands(const Tensor *t, const char *file, char part, const Param *p, const char *path, Choice *c,
                         Err *e) {
    Where at = AT(.file = file, .tensor = t->name);
    char want[SHAPE_BUFFER], got[SHAPE_BUFFER];
    if (!p || (part && p->dims < 2))
        return err_set(e, "E-AD-04", at, "expected a %s of this model; found none of the name %s" OTHER_BASE,
                       part ? "linear layer" : "parameter", quoted(path, strlen(path)));
    if (part && !p->linear) return choice_refused(p, quoted(path, strlen(path)), at, e);
    bool fits = part == 'A'   ? t->shape[1] == p->cols
                : part == 'B' ? t->shape[0] == p->rows
                              : t->dims == p->dims && !memcmp(t->shape, p->shape, (size_t)t->dims * sizeof *t->shape);
    if (!fits) {
        int64_t shape[2] = {part == 'A' ? t->shape[0] : p->rows, part == 'A' ? p->cols : t->shape[1]};
        return err_set(e, "E-AD-04", at, "expected shape %s of %s; found %s" OTHER_BASE,
                       part ? shape_text(2, shape, want, sizeof want)
                            : shape_text(p->dims, p->shape, want, sizeof want),
                       path, shape_text(t->dims, t->shape, got, sizeof got));
    }
    const Tensor **place = part == 'A' ? &c->a : part == 'B' ? &c->b : &c->value, *other = *place;
    if (!other) other = !part ? (c->a ? c->a : c->b) : c->value; // a layer is adapted or saved whole, not both
    if (other)
        return err_set(e, "E-AD-04", at, "expected each layer once; found it also as %s; do: copy the adapter again",
                       quoted(other->name, strlen(other->name)));
    *place = t;
    return true;
}

static int64_t param_find(const Model *m, const char *name) {
    for (int64_t i = 0; i < m->n_base; i++)
        if (!strcmp(m->params[i].name, name)) return i;
    return -1;
}

static bool all_land(const Model *m, const AdapterInfo *a, Choice *choice, Err *e) {
    for (int64_t i = 0; i < a->tensors.count; i++) {
        const Tensor *t = &a->tensors.tensors[i];
        char path[NAME_BUFFER], name[NAME_BUFFER + 8];
        char part = adapter_part(t, path, sizeof path);
        original_path(name, sizeof name - 8, path);
        if (part) strcat(name, ".weight");
        int64_t k = param_find(m, name);
        if (!tensor_lands(t, tensors_path(&a->tensors, t), part, k < 0 ? NULL : &m->params[k], path,
                          k < 0 ? NULL : &choice[k], e))
            return false;
        if (part == 'A') {
            choice[k].rank = t->shape[0];
            choice[k].alpha = adapter_number(&a->alphas, path, a->alpha);
        } else if (!part) choice[k].saved = true;
    }
    const Json *saved = json_get(a->config.root, "modules_to_save");
    for (int64_t i = 0; i < m->n_base; i++) {
        char tree[NAME_BUFFER];
        tree_path(tree, sizeof tree, m->params[i].name);
        if (module_saved(saved, tree) && !choice[i].saved)
            return err_set(e, "E-AD-04", AT(.file = a->tensors.path),
                           "expected every parameter of the modules in modules_to_save; found no %s; do: copy the "
                           "adapter again",
                           m->params[i].name);
    }
    return true;
}

// PEFT fills layers that target_modules names and the file does not hold with B = 0, and says so.
static void warn_of_missing(const Model *m, const AdapterInfo *a, const Choice *choice) {
    const Json *root = a->config.root, *targets = json_get(root, "target_modules");
    const char *narrower[] = {"exclude_modules", "layers_to_transform", "layers_pattern"};
    int64_t missing = 0;
    char first[NAME_BUFFER] = "", module[NAME_BUFFER], tree[NAME_BUFFER];
    for (size_t k = 0; k < sizeof narrower / sizeof *narrower; k++) {
        const Json *v = json_get(root, narrower[k]);
        if (v && v->type != JSON_NULL) return;
    }
    if (!targets || targets->type == JSON_NULL) return;
    Pattern probe;
    Err not_for_us = {0};
    if (targets->type == JSON_STRING) {
        if (!pattern_compile(&probe, targets->str, targets->len, AT(0), &not_for_us)) return;
        pattern_free(&probe);
    }
    for (int64_t i = 0; i < m->n_base; i++) {
        if (!m->params[i].linear || choice[i].rank) continue;
        module_of(module, sizeof module, m->params[i].name);
        tree_path(tree, sizeof tree, module);
        if (!adapter_targets(a, tree) || module_saved(json_get(root, "modules_to_save"), tree)) continue;
        if (!missing++) snprintf(first, sizeof first, "%s", tree);
    }
    if (missing)
        warn("E-AD-04", AT(.file = a->tensors.path),
             "expected a pair for every layer that target_modules names; found %lld without, the first is %s; do: "
             "nothing, if it was trained on the others only",
             (long long)missing, first);
}

// Whether PEFT's rules give every pair the rank and alpha it has, in both module trees.
static bool patterns_hold(const Model *m, const AdapterInfo *a, const Choice *choice) {
    for (int64_t i = 0; i < m->n_base; i++) {
        char module[NAME_BUFFER], tree[NAME_BUFFER];
        if (!choice[i].rank) continue;
        module_of(module, sizeof module, m->params[i].name);
        tree_path(tree, sizeof tree, module);
        const char *paths[2] = {module, tree};
        for (int k = 0; k < 2; k++) {
            double rank = (double)a->r, alpha = a->alpha;
            module_number(&a->ranks, paths[k], &rank), module_number(&a->alphas, paths[k], &alpha);
            if (rank != (double)choice[i].rank || alpha != choice[i].alpha) return false;
        }
    }
    return true;
}

// rank_pattern and alpha_pattern with a key for each layer that differs: the end of its path that both trees share.
static void patterns_by_name(const Model *m, const Choice *choice, LoraConfig *config) {
    Text *out[2] = {&config->rank_pattern, &config->alpha_pattern};
    for (int k = 0; k < 2; k++) {
        bool comma = false;
        text_add(out[k], "{", 1);
        for (int64_t i = 0; i < m->n_base; i++) {
            char module[NAME_BUFFER];
            double value = k ? choice[i].alpha : (double)choice[i].rank;
            if (!choice[i].rank || value == (k ? config->alpha : (double)config->r)) continue;
            module_of(module, sizeof module, m->params[i].name);
            const char *name = strncmp(module, "model.", 6) ? module : module + 6;
            text_addf(out[k], "%s\"%s\":", comma ? "," : "", name);
            text_add_json_number(out[k], value);
            comma = true;
        }
        text_add(out[k], "}", 1);
    }
}

static void add_or(Text *t, const Json *v, const char *missing) {
    if (v && v->type != JSON_NULL) json_print(t, v);
    else text_addf(t, "%s", missing);
}

bool lora_load(Model *m, const char *dir, Err *e) {
    AdapterInfo a;
    if (!adapter_open(&a, dir, e)) return false;
    Choice *choice = alloc_or_die((size_t)m->n_base, sizeof *choice, "layers of the adapter");
    LoraConfig *config = alloc_or_die(1, sizeof *config, "settings of LoRA");
    config->r = a.r, config->alpha = a.alpha, config->dropout = a.dropout, config->rslora = a.rslora;
    memcpy(config->base_model, a.base_model, sizeof config->base_model);
    bool ok = all_land(m, &a, choice, e) && pairs_open(m, choice, config, 0, e);
    if (ok) {
        const Json *root = a.config.root;
        warn_of_missing(m, &a, choice);
        add_or(&config->saved, json_get(root, "modules_to_save"), "null");
        if (patterns_hold(m, &a, choice)) {
            add_or(&config->rank_pattern, json_get(root, "rank_pattern"), "{}");
            add_or(&config->alpha_pattern, json_get(root, "alpha_pattern"), "{}");
        } else patterns_by_name(m, choice, config);
        targets_text(m, &config->targets);
    } else free(config);
    free(choice);
    adapter_close(&a);
    return ok;
}

// -------------------------------------------------------------------------------------------------------------- values

// The pair of a layer on the host, to be added to its weight.
typedef struct Pair {
    const Lora *lora; // NULL: nothing to add
    float *a, *b;     // [r, in], [out, r]
    int64_t r;
} Pair;

static Pair pair_open(const Model *m, const Param *p) {
    Pair pair = {0};
    if (p->kind != PARAM_BASE || !p->linear || !p->linear->lora.a.v.p) return pair;
    Mat a = p->linear->lora.a.v, b = p->linear->lora.b.v;
    pair = (Pair){.lora = &p->linear->lora, .r = a.rows};
    pair.a = alloc_or_die((size_t)(a.rows * a.cols), sizeof *pair.a, "half of a LoRA");
    pair.b = alloc_or_die((size_t)(b.rows * b.cols), sizeof *pair.b, "half of a LoRA");
    m->d->download(mat(pair.a, a.rows, a.cols, F32), a), m->d->download(mat(pair.b, b.rows, b.cols, F32), b);
    return pair;
}
static void pair_close(Pair *pair) { free(pair->a), free(pair->b); }

// w[i, :] = fl(w[i, :] + scale * sum over k of b[i, k] a[k, :]), summed in double.
typedef struct MergeJob {
    const Pair *pair;
    float *w; // rows [first, first + rows) of the weight
    int64_t first, rows, cols;
} MergeJob;
enum { MERGE_ROWS = 8 };
static void merge_some(void *ctx, int64_t chunk, int thread) {
    const MergeJob *job = ctx;
    const Pair *pair = job->pair;
    int64_t from = chunk * MERGE_ROWS, to = from + MERGE_ROWS < job->rows ? from + MERGE_ROWS : job->rows;
    double *sum = alloc_or_die((size_t)job->cols, sizeof *sum, "a merge");
    (void)thread;
    for (int64_t i = from; i < to; i++) {
        float *w = job->w + i * job->cols;
        memset(sum, 0, (size_t)job->cols * sizeof *sum);
        for (int64_t k = 0; k < pair->r; k++) {
            const float *a = pair->a + k * job->cols;
            double b = pair->b[(job->first + i) * pair->r + k];
            for (int64_t j = 0; j < job->cols; j++) sum[j] += b * (double)a[j];
        }
        for (int64_t j = 0; j < job->cols; j++) w[j] = (float)((double)w[j] + (double)pair->lora->scale * sum[j]);
    }
    free(sum);
}

// Rows [first, first + count) of a parameter as floats on the host, with the pair added.
static void param_rows(const Model *m, const Param *p, const Pair *pair, int64_t first, int64_t count, float *out) {
    Mat part = mat_rows(p->w->v, first, count);
    m->d->download(mat(out, part.rows, part.cols, part.type), part);
    if (part.type == BF16) { // widen in place, from the end
        const uint16_t *half = (const uint16_t *)(const void *)out;
        for (int64_t k = count * p->cols - 1; k >= 0; k--) out[k] = bf16_to_f32(half[k]);
    }
    MergeJob job = {pair, out, first, count, p->cols};
    if (pair->lora) parallel_for((count + MERGE_ROWS - 1) / MERGE_ROWS, merge_some, &job);
}
static int64_t rows_at_once(const Param *p) {
    int64_t rows = CHUNK / p->cols;
    return rows < 1 ? 1 : rows < p->rows ? rows : p->rows;
}

// IEEE 754 binary16, rounded to nearest even.
static uint16_t f32_to_f16(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    uint16_t sign = (uint16_t)(u >> 16 & 0x8000);
    u &= 0x7fffffff;
    if (u > 0x7f800000) return sign | 0x7e00;  // NaN
    if (u >= 0x477ff000) return sign | 0x7c00; // from 65520 on
    if (u < 0x38800000) {                      // below 2^-14: a multiple of 2^-24
        float magnitude;
        memcpy(&magnitude, &u, 4);
        return sign | (uint16_t)lrintf(magnitude * 0x1p24f);
    }
    u += 0xc8000fff + (u >> 13 & 1); // bias 127 to 15, and half of the last place
    return sign | (uint16_t)(u >> 13);
}

// All of a parameter into an open file. E-NU-01 when a number is too large for the type.
static bool param_write(const Model *m, const Param *p, FileType type, FileWriter *w, Err *e) {
    Pair pair = pair_open(m, p);
    int64_t step = rows_at_once(p);
    float *f = alloc_or_die((size_t)(step * p->cols), sizeof *f, "weights on their way to a file");
    uint16_t *h = alloc_or_die((size_t)(step * p->cols), sizeof *h, "weights on their way to a file");
    bool ok = true;
    for (int64_t first = 0; ok && first < p->rows; first += step) {
        int64_t rows = first + step < p->rows ? step : p->rows - first, n = rows * p->cols, lost = 0;
        param_rows(m, p, &pair, first, rows, f);
        for (int64_t k = 0; k < n && type != FT_F32; k++) {
            h[k] = type == FT_F16 ? f32_to_f16(f[k]) : f32_to_bf16(f[k]);
            lost += isfinite(f[k]) && !isfinite(type == FT_F16 ? f16_to_f32(h[k]) : bf16_to_f32(h[k]));
        }
        if (lost)
            ok = err_set(e, "E-NU-01", AT(.file = w->path, .tensor = p->name),
                         "expected numbers that %s can hold; found %lld that are too large; do: save in f32",
                         file_type_name(type), (long long)lost);
        ok = ok && file_write_bytes(w, type == FT_F32 ? (const void *)f : h, (size_t)n * file_type_size(type), e);
    }
    free(f), free(h), pair_close(&pair);
    return ok;
}

// The tensors of one file, from the model's memory.
typedef struct SaveRow {
    const Param *p;
    char name[NAME_BUFFER];
    FileType type;
    int shard;
} SaveRow;
typedef struct SaveFile {
    const Model *m;
    const SaveRow *rows; // [n] in the order of the tensors written
    int64_t n, *done, all;
    double started;
} SaveFile;
static bool save_source(void *ctx, int64_t i, FileWriter *w, Err *e) {
    SaveFile *f = ctx;
    bool ok = param_write(f->m, f->rows[i].p, f->rows[i].type, w, e);
    progress("tensors", ++*f->done, f->all, f->started);
    return ok;
}
static bool rows_write(const char *path, SaveFile *f, Err *e) {
    TensorOut *out = alloc_or_die((size_t)f->n, sizeof *out, "list of tensors to write");
    for (int64_t i = 0; i < f->n; i++) {
        const SaveRow *r = &f->rows[i];
        out[i] = (TensorOut){.name = r->name, .type = r->type, .dims = r->p->dims};
        memcpy(out[i].shape, r->p->shape, sizeof out[i].shape);
    }
    bool ok = tensors_write_from(path, "{\"format\":\"pt\"}", out, f->n, save_source, f, e);
    free(out);
    return ok;
}

// ---------------------------------------------------------------------------------------------------------------- save

// The path of a module or parameter in the chosen tree.
static const char *path_in(bool old, char *out, size_t size, const char *original) {
    if (old) snprintf(out, size, "%s", original);
    else tree_path(out, size, original);
    return out;
}

// modules_to_save: what the adapter said, and the module of every other base parameter that is trained.
static void saved_names(const Model *m, bool old, JsonDoc *doc) {
    Text list = {0};
    Err e = {0};
    text_add(&list, m->lora->saved.p, m->lora->saved.len);
    for (int64_t i = 0;;) {
        CHECK(json_parse(doc, list.p, list.len, "modules_to_save", (JsonOptions){0}, &e), "own JSON");
        char path[NAME_BUFFER], module[NAME_BUFFER];
        while (i < m->n_base &&
               (!m->params[i].trained || module_saved(doc->root, path_in(old, path, sizeof path, m->params[i].name))))
            i++;
        if (i == m->n_base) break;
        bool first = doc->root->type != JSON_ARRAY || !doc->root->count;
        module_of(module, sizeof module, path);
        if (first) list.len = 0, text_add(&list, "[", 1);
        else list.len--, text_add(&list, ",", 1);
        text_add_json_string(&list, module, strlen(module));
        text_add(&list, "]", 1);
        json_free(doc);
    }
    text_free(&list);
}

static void config_text(const LoraConfig *c, const Json *saved, Text *t) { // keys in byte order, as PEFT writes them
    text_addf(t, "{\n  \"alpha_pattern\": %s,\n  \"auto_mapping\": null,\n  \"base_model_name_or_path\": ",
              c->alpha_pattern.p);
    if (*c->base_model) text_add_json_string(t, c->base_model, strlen(c->base_model));
    else text_addf(t, "null");
    text_addf(t, ",\n  \"bias\": \"none\",\n  \"fan_in_fan_out\": false,\n  \"inference_mode\": true,\n"
                 "  \"init_lora_weights\": true,\n  \"layers_pattern\": null,\n  \"layers_to_transform\": null,\n"
                 "  \"lora_alpha\": ");
    text_add_json_number(t, c->alpha);
    text_addf(t, ",\n  \"lora_dropout\": ");
    text_add_json_number(t, c->dropout);
    text_addf(t, ",\n  \"modules_to_save\": ");
    json_print(t, saved);
    text_addf(t,
              ",\n  \"peft_type\": \"LORA\",\n  \"r\": %lld,\n  \"rank_pattern\": %s,\n  \"revision\": null,\n"
              "  \"target_modules\": %s,\n  \"task_type\": \"CAUSAL_LM\"%s\n}\n",
              (long long)c->r, c->rank_pattern.p, c->targets.p, c->rslora ? ",\n  \"use_rslora\": true" : "");
}

bool lora_save(const Model *m, const char *dir, bool old_keys, Err *e) {
    CHECK(m->lora, "there is no adapter to save");
    char config[PATH_BUFFER], weights[PATH_BUFFER];
    for (int64_t i = 0; i < m->n_base; i++)
        if (m->params[i].trained && m->params[i].w == &m->embed && m->c.tied)
            return err_set(e, "E-AD-03", AT(.file = dir, .tensor = m->params[i].name),
                           "expected the embedding frozen, or a head of its own; found them trained as one; do: train "
                           "without LoRA, or leave the embedding out");
    if (!path_join(config, sizeof config, dir, "adapter_config.json", e) ||
        !path_join(weights, sizeof weights, dir, "adapter_model.safetensors", e) ||
        (!folder_exists(dir) && !folder_begin(dir, e)))
        return false;
    JsonDoc saved;
    saved_names(m, old_keys, &saved);
    SaveRow *rows = alloc_or_die((size_t)m->n_params, sizeof *rows, "tensors of the adapter");
    int64_t n = 0, done = 0;
    for (int64_t i = 0; i < m->n_params; i++) {
        const Param *p = &m->params[i];
        char path[NAME_BUFFER - 20];
        path_in(old_keys, path, sizeof path, p->name);
        if (p->kind == PARAM_BASE && (p->tied || !module_saved(saved.root, path))) continue;
        rows[n] = (SaveRow){.p = p, .type = FT_F32};
        snprintf(rows[n].name, sizeof rows[n].name, "base_model.model.%s", path);
        n++;
    }
    SaveFile file = {.m = m, .rows = rows, .n = n, .done = &done, .all = n, .started = clock_seconds()};
    Text text = {0};
    config_text(m->lora, saved.root, &text);
    bool ok = rows_write(weights, &file, e) && file_write_atomic(config, text.p, text.len, e);
    text_free(&text), json_free(&saved), free(rows);
    return ok;
}

// --------------------------------------------------------------------------------------------------------------- merge

static bool inside(const Arena *a, const Param *p) {
    const char *at = p->w->v.p;
    return a->base && at >= a->base && at < a->base + a->size;
}

bool lora_merge(Model *m, Err *e) {
    CHECK(m->lora, "there is no adapter to merge");
    // Into one new arena: weights that are not ours to change, and what the arenas that go away hold.
    Arena count = {0}, merged = {.role = "merged weights"};
    bool *moves = alloc_or_die((size_t)m->n_base, sizeof *moves, "a merge");
    for (int64_t i = 0; i < m->n_base; i++) {
        const Param *p = &m->params[i];
        bool pair = p->linear && p->linear->lora.a.v.p;
        moves[i] = !p->tied && ((pair && !p->owned) || inside(&m->adapter, p) || inside(&m->merged, p));
        if (moves[i]) arena_padded(&count, m->d, p->rows, p->cols, F32);
    }
    bool ok = arena_reserve(&merged, m->d, count.used, e);
    for (int64_t i = 0; ok && i < m->n_base; i++) {
        Param *p = &m->params[i];
        Pair pair = pair_open(m, p);
        Mat y = moves[i] ? arena_padded(&merged, m->d, p->rows, p->cols, F32) : p->w->v;
        int64_t step = rows_at_once(p);
        float *host = alloc_or_die((size_t)(step * p->cols), sizeof *host, "a merge");
        for (int64_t first = 0; (moves[i] || pair.lora) && first < p->rows; first += step) {
            int64_t rows = first + step < p->rows ? step : p->rows - first;
            param_rows(m, p, &pair, first, rows, host);
            m->d->upload(mat_rows(y, first, rows), mat(host, rows, p->cols, F32));
        }
        free(host), pair_close(&pair);
        if (moves[i]) p->w->v = y, p->owned = true;
        p->trained = false;
    }
    free(moves);
    if (!ok) return false;
    for (int64_t i = 0; i < m->n_base; i++)
        if (m->params[i].linear) m->params[i].linear->lora = (Lora){0};
    LoraConfig *c = m->lora;
    text_free(&c->targets), text_free(&c->saved), text_free(&c->rank_pattern), text_free(&c->alpha_pattern), free(c);
    m->lora = NULL, m->n_params = m->n_base, m->rank = m->vision.rank = 0, m->dropout = m->vision.dropout = false;
    arena_release(&m->adapter, m->d), arena_release(&m->merged, m->d);
    m->merged = merged;
    return true;
}

// ---------------------------------------------------------------------------------------------------------- checkpoint

// Every stored parameter with the name and type it gets, in shards of at most shard_bytes (one tensor may be more).
static int64_t plan_shards(const Model *m, const TensorFile *source, SaveOptions o, SaveRow *rows, int *shards) {
    int64_t n = 0, limit = o.shard_bytes ? o.shard_bytes : INT64_C(5000000000), filled = 0;
    const Tensor **of = alloc_or_die((size_t)m->n_base, sizeof *of, "tensors of the checkpoint");
    for (int64_t i = 0; i < source->count; i++) {
        char name[NAME_BUFFER];
        canonical_name(name, sizeof name, source->tensors[i].name);
        int64_t k = param_find(m, name);
        if (k >= 0) of[k] = &source->tensors[i];
    }
    int64_t embed = param_find(m, "model.embed_tokens.weight");
    *shards = 1;
    for (int64_t i = 0; i < m->n_base; i++) {
        const Param *p = &m->params[i];
        const Tensor *t = of[i] ? of[i] : of[embed]; // a head that is tied no more has no tensor there
        if (p->tied) continue;
        CHECK(t, "%s has no tensor in the checkpoint", p->name);
        FileType type = !strcmp(o.type, "f32") ? FT_F32 : !strcmp(o.type, "bf16") ? FT_BF16 : t->type;
        int64_t bytes = p->rows * p->cols * (int64_t)file_type_size(type);
        if (filled && filled + bytes > limit) filled = 0, ++*shards;
        filled += bytes;
        rows[n] = (SaveRow){.p = p, .type = type, .shard = *shards};
        snprintf(rows[n++].name, sizeof rows->name, "%s", of[i] ? t->name : p->name);
    }
    free(of);
    return n;
}

static void shard_name(char *out, size_t size, int shard, int shards) {
    if (shards == 1) snprintf(out, size, "model.safetensors");
    else snprintf(out, size, "model-%05d-of-%05d.safetensors", shard, shards);
}

static int by_name(const void *a, const void *b) {
    return strcmp((*(const SaveRow *const *)a)->name, (*(const SaveRow *const *)b)->name);
}

static bool weights_write(const Model *m, const char *dir, const SaveRow *rows, int64_t n, int shards, Err *e) {
    char path[PATH_BUFFER], name[64];
    int64_t done = 0, bytes = 0, elements = 0;
    double started = clock_seconds();
    for (int64_t i = 0, end; i < n; i = end) {
        for (end = i; end < n && rows[end].shard == rows[i].shard; end++) {
            elements += rows[end].p->rows * rows[end].p->cols;
            bytes += rows[end].p->rows * rows[end].p->cols * (int64_t)file_type_size(rows[end].type);
        }
        SaveFile f = {.m = m, .rows = rows + i, .n = end - i, .done = &done, .all = n, .started = started};
        shard_name(name, sizeof name, rows[i].shard, shards);
        if (!path_join(path, sizeof path, dir, name, e) || !rows_write(path, &f, e)) return false;
    }
    if (shards == 1) return true;
    const SaveRow **sorted = alloc_or_die((size_t)n, sizeof *sorted, "index of the shards");
    Text t = {0};
    for (int64_t i = 0; i < n; i++) sorted[i] = &rows[i];
    qsort(sorted, (size_t)n, sizeof *sorted, by_name);
    text_addf(&t,
              "{\n  \"metadata\": {\n    \"total_parameters\": %lld,\n    \"total_size\": %lld\n  },\n"
              "  \"weight_map\": {\n",
              (long long)elements, (long long)bytes);
    for (int64_t i = 0; i < n; i++) {
        shard_name(name, sizeof name, sorted[i]->shard, shards);
        text_addf(&t, "    \"%s\": \"%s\"%s\n", sorted[i]->name, name, i + 1 < n ? "," : ""); // own names: no escapes
    }
    text_addf(&t, "  }\n}\n");
    bool ok =
        path_join(path, sizeof path, dir, "model.safetensors.index.json", e) && file_write_atomic(path, t.p, t.len, e);
    text_free(&t), free(sorted);
    return ok;
}

// config.json with other words in the places of a few values; every other byte stays.
typedef struct Splice {
    size_t at, len;
    const char *text;
} Splice;
static int by_place(const void *a, const void *b) {
    size_t x = ((const Splice *)a)->at, y = ((const Splice *)b)->at;
    return x < y ? -1 : x > y;
}
static bool config_copy(const Model *m, const char *from, const char *to, const char *type, Err *e) {
    static const char *const sections[] = {NULL, "text_config", "vision_config"}, *const types[] = {"torch_dtype",
                                                                                                    "dtype"};
    char *data;
    size_t size, at = 0;
    JsonDoc doc;
    Splice s[12];
    int n = 0;
    const char *word = !strcmp(type, "f32") ? "\"float32\"" : !strcmp(type, "bf16") ? "\"bfloat16\"" : NULL;
    if (!file_read(from, LIMIT_CONFIG_BYTES, "E-JS-01", &data, &size, e)) return false;
    if (!json_parse(&doc, data, size, from, (JsonOptions){.refuse_duplicates = true}, e)) {
        free(data);
        return false;
    }
    for (size_t k = 0; k < sizeof sections / sizeof *sections; k++) {
        const Json *section = sections[k] ? json_get(doc.root, sections[k]) : doc.root;
        for (int j = 0; word && j < 2; j++) {
            const Json *v = json_get(section, types[j]);
            if (v && v->type == JSON_STRING) s[n++] = (Splice){v->byte, v->len + 2, word}; // no escapes in such words
        }
        const Json *tied = k < 2 ? json_get(section, "tie_word_embeddings") : NULL;
        if (tied && tied->type == JSON_TRUE && !m->c.tied) s[n++] = (Splice){tied->byte, 4, "false"};
    }
    qsort(s, (size_t)n, sizeof *s, by_place);
    Text out = {0};
    for (int k = 0; k < n; k++) {
        text_add(&out, data + at, s[k].at - at), text_add(&out, s[k].text, strlen(s[k].text));
        at = s[k].at + s[k].len;
    }
    text_add(&out, data + at, size - at);
    bool ok = file_write_atomic(to, out.p, out.len, e);
    text_free(&out), json_free(&doc), free(data);
    return ok;
}

// What transformers' processor and generation read beside the weights; files that are not there are not missed.
static bool files_copy(const Model *m, const char *dir, const char *type, Err *e) {
    static const char *const names[] = {"config.json", "generation_config.json", "preprocessor_config.json",
                                        "video_preprocessor_config.json", "processor_config.json"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char from[PATH_BUFFER], to[PATH_BUFFER];
        if (i > 0 ? !file_copy(m->c.dir, dir, names[i], e)
                  : !path_join(from, sizeof from, m->c.dir, names[i], e) ||
                        !path_join(to, sizeof to, dir, names[i], e) || !config_copy(m, from, to, type, e))
            return false;
    }
    return tokenizer_copy(m->c.dir, dir, e);
}

bool model_save(const Model *m, const char *dir, SaveOptions o, Err *e) {
    NewFolder folder;
    if (!folder_new(&folder, dir, e)) return false;
    TensorFile source;
    if (!tensors_open_folder(&source, m->c.dir, e)) return false;
    SaveRow *rows = alloc_or_die((size_t)m->n_base, sizeof *rows, "tensors of the checkpoint");
    int shards;
    int64_t n = plan_shards(m, &source, o, rows, &shards);
    tensors_close(&source);
    bool ok = folder_begin(folder.made, e) && weights_write(m, folder.made, rows, n, shards, e) &&
              files_copy(m, folder.made, o.type, e);
    ok = folder_new_end(&folder, ok, e);
    free(rows);
    return ok;
}
