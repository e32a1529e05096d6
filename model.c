// model.c - the parameter table, loading, multimodal positions, the layer loop, the head, and the training pass.
//
// What it is:  a Qwen2.5-VL checkpoint folder made ready to run; the decoder's forward pass; and one packed pass of
//              training over both towers, forward and backward.
// What it is not: configuration (config.c), generation (generate.c), the vision tower (vision.c) or LoRA (lora.c).
// Read before: block.c, vision.c.  Read next: generate.c, train.c.
#include "surgr1.h"

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
    p->tower = !strncmp(p->name, "visual.merger.", 14) ? TOWER_MERGER
               : !strncmp(p->name, "visual.", 7)       ? TOWER_VISION
                                                       : TOWER_DECODER;
}
// The weight of a linear layer that LoRA may adapt, and its bias when there is one.
static void linear_add(Model *m, Linear *l, int64_t rows, int64_t cols, bool bias, const char *fmt, ...)
    PRINTF_LIKE(6, 7);
static void linear_add(Model *m, Linear *l, int64_t rows, int64_t cols, bool bias, const char *fmt, ...) {
    char module[128];
    va_list args;
    va_start(args, fmt);
    vsnprintf(module, sizeof module, fmt, args);
    va_end(args);
    param_add(m, &l->w, 2, (int64_t[]){rows, cols}, "%s.weight", module);
    m->params[m->n_params - 1].linear = l;
    if (bias) param_add(m, &l->b, 1, (int64_t[]){rows}, "%s.bias", module);
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
    // 12 in a block, at most 7 of them linear layers beside which LoRA may put two
    m->params = alloc_or_die((size_t)((12 + 14) * (v->depth + c->L) + 9 + 4), sizeof *m->params, "parameter table");

    param_add(m, &t->patch_embed.w, 5, (int64_t[]){v->C, v->channels, v->temporal, v->patch, v->patch},
              "visual.patch_embed.proj.weight");
    for (int j = 0; j < (int)v->depth; j++) {
        Block *b = &t->blocks[j];
        b->n_qkv = 1;
        VECTOR(&b->norm1, v->C, "visual.blocks.%d.norm1.weight", j);
        linear_add(m, &b->qkv[0], 3 * v->C, v->C, true, "visual.blocks.%d.attn.qkv", j);
        linear_add(m, &b->proj, v->C, v->C, true, "visual.blocks.%d.attn.proj", j);
        VECTOR(&b->norm2, v->C, "visual.blocks.%d.norm2.weight", j);
        linear_add(m, &b->gate, v->F, v->C, true, "visual.blocks.%d.mlp.gate_proj", j);
        linear_add(m, &b->up, v->F, v->C, true, "visual.blocks.%d.mlp.up_proj", j);
        linear_add(m, &b->down, v->C, v->F, true, "visual.blocks.%d.mlp.down_proj", j);
    }
    VECTOR(&t->ln_q, v->C, "visual.merger.ln_q.weight");
    linear_add(m, &t->merger0, unit, unit, true, "visual.merger.mlp.0");
    linear_add(m, &t->merger2, v->out, unit, true, "visual.merger.mlp.2");

    MATRIX(&m->embed, c->V, c->C, "model.embed_tokens.weight");
    for (int i = 0; i < (int)c->L; i++) {
        Block *b = &m->layers[i];
        int64_t out[3] = {c->heads * c->dim, c->kv_heads * c->dim, c->kv_heads * c->dim};
        b->n_qkv = 3;
        VECTOR(&b->norm1, c->C, "model.layers.%d.input_layernorm.weight", i);
        for (int k = 0; k < 3; k++)
            linear_add(m, &b->qkv[k], out[k], c->C, true, "model.layers.%d.self_attn.%c_proj", i, "qkv"[k]);
        linear_add(m, &b->proj, c->C, out[0], false, "model.layers.%d.self_attn.o_proj", i);
        VECTOR(&b->norm2, c->C, "model.layers.%d.post_attention_layernorm.weight", i);
        linear_add(m, &b->gate, c->F, c->C, false, "model.layers.%d.mlp.gate_proj", i);
        linear_add(m, &b->up, c->F, c->C, false, "model.layers.%d.mlp.up_proj", i);
        linear_add(m, &b->down, c->C, c->F, false, "model.layers.%d.mlp.down_proj", i);
    }
    VECTOR(&m->norm, c->C, "model.norm.weight");
    MATRIX(&m->head.w, c->V, c->C, "lm_head.weight");
    m->params[m->n_params - 1].tied = c->tied;
    m->n_base = m->n_params;
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
// that a 7B bf16 model needs no second copy); everything else is converted into the arena. Vectors are F32, except the bias
// of a matrix in bf16 when the file has it in bf16: then nothing is lost, and a matmul can add it (matmul_bias).
static bool stays_mapped(const Model *m, const Param *p, const Tensor *t, LoadOptions options) {
    if (m->d->alloc != ops_ref()->alloc) return false;
    bool type_fits = t->type == FT_F32 || (t->type == FT_BF16 && !options.force_f32);
    return p->rows > 1 && type_fits && (uintptr_t)t->data % file_type_size(t->type) == 0;
}

static Mat value_place(const Model *m, const Param *p, Arena *a, Type type) {
    return p->rows > 1 ? arena_padded(a, m->d, p->rows, p->cols, type) : arena_mat(a, 1, p->cols, type);
}
static void place_weights(Model *m, Tensor **found, LoadOptions options, Arena *a) {
    for (int64_t i = 0; i < m->n_params; i++) {
        Param *p = &m->params[i];
        if (p->tied) continue;
        size_t length = strlen(p->name);
        bool bias = length > 5 && !strcmp(p->name + length - 5, ".bias") && found[i] && found[i]->type == FT_BF16;
        Type type = (p->rows > 1 || bias) && m->d->act_type == BF16 ? BF16 : F32;
        if (stays_mapped(m, p, found[i], options))
            p->w->v = mat((void *)(uintptr_t)found[i]->data, p->rows, p->cols, found[i]->type == FT_BF16 ? BF16 : F32);
        else p->w->v = value_place(m, p, a, type), p->owned = type == F32;
    }
}
static bool reserve_weights(Model *m, Tensor **found, LoadOptions options, Err *e) {
    Arena count = {.role = "weights"};
    place_weights(m, found, options, &count);
    if (!arena_reserve(&m->weights, m->d, count.used, e)) return false;
    place_weights(m, found, options, &m->weights);
    return true;
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
    m->weights.role = "weights", m->adapter.role = "adapter", m->trained.role = "trained weights";
    m->gradients.role = "gradients", m->activations.role = "activations", m->tables.role = "picture rows";
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
    ok = ok && reserve_weights(m, found, options, e);
    if (ok) {
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

bool model_lay_out(Model *m, const char *dir, Type act_type, Err *e) {
    if (!model_describe(m, dir, e)) return false;
    m->d = ops_paper(act_type);
    Tensor **none = alloc_or_die((size_t)m->n_params, sizeof(Tensor *), "tensor table");
    bool ok = reserve_weights(m, none, (LoadOptions){.force_f32 = false}, e);
    if (ok && m->c.tied) m->head.w = m->embed;
    free(none);
    if (!ok) model_free(m);
    return ok;
}

void model_free(Model *m) {
    Arena *arenas[] = {&m->weights, &m->merged, &m->adapter, &m->trained, &m->gradients, &m->activations, &m->tables};
    for (size_t i = 0; m->d && i < sizeof arenas / sizeof *arenas; i++) arena_release(arenas[i], m->d);
    if (m->d) vision_tape_close(m->d, &m->tape);
    if (m->lora) text_free(&m->lora->targets), text_free(&m->lora->saved);
    if (m->lora) text_free(&m->lora->rank_pattern), text_free(&m->lora->alpha_pattern), free(m->lora);
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

// Of one pass over the decoder. Generation places the first part; training all of it.
typedef struct TextScratch {
    Mat *x;              // [n_x] each [N, C]: the residual stream before every layer and after the last, or one for all
    int64_t n_x;         // 1, or L + 1
    Mat angles;          // F32 [N, dim]
    Mat index, image_at; // I32 [N, 1] token ids, -1 at picture rows; I32 [n_images, 1] where those are
    Mat span_rows;       // I32 [n_spans, 5]
    Mat slots;           // I32 [N, 1]
    bool decode;         // spans speak of cache rows
    Mat head_index, head_x; // I32 [n_head, 1]; [n_head, C] after the final norm
    BlockScratch block;
    Spans spans;
    // training
    BlockScratch *kept; // [L]; of the last `keep` layers, else as `block`
    Mat keys;           // I32 [N, 2] of dropout
    Mat rows, rstd, dhead,
        drows; // [n_head, C], F32 [n_head, 1], [n_head, C] twice: the head's rows around the final norm
    Mat dx;    // [N, C]
    BlockGrad grad;
    // the head of model_pass
    Mat targets, lp, lse, entropy, dlp; // [n_head, 1]
    Mat logits;                         // F32 [head_chunk, V]
} TextScratch;

static BlockShape text_shape(const Model *m) {
    const Config *c = &m->c;
    return (BlockShape){c->C, c->heads, c->kv_heads, c->dim, c->F, c->eps, m->rank, m->dropout};
}

static void text_place(TextScratch *s, Arena *a, const Model *m, const TextInput *in, int64_t n_images) {
    const Config *c = &m->c;
    Type act = m->d->act_type;
    for (int64_t i = 0; i < s->n_x; i++) s->x[i] = arena_mat(a, in->N, c->C, act);
    s->angles = arena_mat(a, in->N, c->dim, F32);
    s->index = arena_mat(a, in->N, 1, I32);
    s->image_at = arena_mat(a, n_images, 1, I32);
    s->span_rows = arena_mat(a, in->n_spans, 5, I32);
    s->slots = arena_mat(a, in->cache ? in->N : 0, 1, I32);
    s->head_index = arena_mat(a, in->head_rows ? in->n_head : 0, 1, I32);
    s->head_x = arena_mat(a, in->head_rows ? in->n_head : in->N, c->C, act);
    block_scratch_place(&s->block, a, m->d, text_shape(m), in->N, s->n_x > 1, NULL);
    s->rows = mat_rows(s->block.normed1, 0, in->n_head); // free again by then
    s->rstd = mat_none();
}

// Rows of the head that are worked on together. On the CPU their logits take at most 32 MiB, which its caches hold; a GPU
// needs rows for all its matrix units (512 of 152,064 logits are 311 MB).
static int64_t head_chunk(const Model *m, int64_t n_head) {
    bool host = m->d->alloc == ops_ref()->alloc;
    int64_t most = !host ? 512 : (1 << 23) / m->c.V > 1 ? (1 << 23) / m->c.V : 1;
    return n_head < most ? n_head : most;
}

static void head_place(TextScratch *s, Arena *a, const Model *m, const TextInput *in) {
    Mat *columns[] = {&s->lp, &s->lse, &s->entropy, &s->dlp};
    s->targets = arena_mat(a, in->n_head, 1, I32);
    for (int i = 0; i < 4; i++) *columns[i] = arena_mat(a, in->n_head, 1, F32);
    s->logits = arena_mat(a, head_chunk(m, in->n_head), m->c.V, F32);
}

static void train_place(TextScratch *s, Arena *a, const Model *m, const TextInput *in, int64_t keep) {
    const Config *c = &m->c;
    Type act = m->d->act_type;
    for (int64_t i = 0; i < c->L; i++) {
        s->kept[i] = s->block;
        if (i >= c->L - keep) block_scratch_place(&s->kept[i], a, m->d, text_shape(m), in->N, true, &s->block);
    }
    s->keys = arena_mat(a, in->N, 2, I32);
    s->rows = arena_mat(a, in->n_head, c->C, act), s->rstd = arena_mat(a, in->n_head, 1, F32);
    s->dhead = arena_mat(a, in->n_head, c->C, act), s->drows = arena_mat(a, in->n_head, c->C, act);
    s->dx = arena_mat(a, in->N, c->C, act);
    block_grad_place(&s->grad, a, m->d, text_shape(m), in->N);
}

static void text_check(const Model *m, const TextInput *in, int64_t n_images) {
    CHECK(!in->head_rows || in->n_head <= in->N, "text_forward: %lld head rows of %lld", (long long)in->n_head,
          (long long)in->N);
    for (int64_t i = 0; i < in->N; i++)
        CHECK(in->ids[i] >= 0 && in->ids[i] < m->c.V, "text_forward: id %d of a vocabulary of %lld", in->ids[i],
              (long long)m->c.V);
    for (int64_t i = 0; i < n_images; i++)
        CHECK(in->image_at[i] >= 0 && in->image_at[i] < in->N, "text_forward: picture row at %d of %lld",
              in->image_at[i], (long long)in->N);
}

static void text_upload(const Model *m, TextScratch *s, const TextInput *in, int64_t n_images) {
    const Ops *d = m->d;
    int32_t *index = alloc_or_die((size_t)in->N, sizeof *index, "token rows");
    memcpy(index, in->ids, (size_t)in->N * sizeof *index);
    for (int64_t i = 0; i < n_images; i++) index[in->image_at[i]] = -1; // zero until the picture's row is added
    float *table = alloc_or_die((size_t)in->N, (size_t)m->c.dim * sizeof *table, "rotary table");
    mrope_table(&m->c, in->pos, in->N, table);
    s->spans = (Spans){s->span_rows, in->spans, in->n_spans, 0};
    for (int64_t i = 0; i < in->n_spans; i++)
        if (in->spans[i].last - in->spans[i].first > s->spans.longest)
            s->spans.longest = in->spans[i].last - in->spans[i].first;
    d->upload(s->index, mat(index, in->N, 1, I32));
    if (n_images) d->upload(s->image_at, mat((void *)(uintptr_t)in->image_at, n_images, 1, I32));
    d->upload(s->angles, mat(table, in->N, m->c.dim, F32));
    d->upload(s->span_rows, mat((void *)(uintptr_t)in->spans, in->n_spans, 5, I32));
    if (in->cache) d->upload(s->slots, mat((void *)(uintptr_t)in->slots, in->N, 1, I32));
    if (in->head_rows) d->upload(s->head_index, mat((void *)(uintptr_t)in->head_rows, in->n_head, 1, I32));
    free(index), free(table);
}

// From ids and picture rows to the final norm of the head's rows.
static void text_layers(const Model *m, TextScratch *s, const TextInput *in, int64_t n_images, Tap tap, void *tap_ctx) {
    const Ops *d = m->d;
    bool training = s->n_x > 1;
    Mat x = s->x[0];
    trace_where("text.embeddings");
    gather_rows(d, x, m->embed.v, s->index);
    if (n_images) scatter_add_rows(d, x, in->image_rows, s->image_at);
    if (tap) tap(tap_ctx, "text.embeddings", d, x);
    for (int64_t i = 0; i < m->c.L; i++) {
        char name[64], attention[64], mlp[64];
        snprintf(name, sizeof name, "text.layer.%lld", (long long)i);
        snprintf(attention, sizeof attention, "text.attention.%lld", (long long)i);
        snprintf(mlp, sizeof mlp, "text.mlp.%lld", (long long)i);
        trace_where(name);
        BlockCache cache = {0};
        if (in->cache) cache = (BlockCache){in->cache->k[i], in->cache->v[i], s->slots, s->decode};
        Mat y = training ? s->x[i + 1] : x;
        block_forward(d, &m->layers[i], text_shape(m), training ? s->kept[i] : s->block, y, x, s->angles, s->spans,
                      in->cache ? &cache : NULL, tap, tap_ctx, attention, mlp);
        x = y;
        if (tap) tap(tap_ctx, name, d, x);
    }
    trace_where("text.head");
    if (in->head_rows) {
        gather_rows(d, s->rows, x, s->head_index);
        x = s->rows;
    }
    rmsnorm_forward(d, s->head_x, s->rstd, x, m->norm.v, m->c.eps);
    if (tap) tap(tap_ctx, "text.norm", d, s->head_x);
}

size_t text_forward_bytes(const Model *m, const TextInput *in, int64_t n_images) {
    Mat x;
    TextScratch s = {.x = &x, .n_x = 1};
    Arena count = {0};
    text_place(&s, &count, m, in, n_images);
    return count.used;
}

bool text_forward(Model *m, const TextInput *in, Mat logits, Tap tap, void *tap_ctx, Err *e) {
    int64_t n_images = in->image_rows.p ? in->image_rows.rows : 0;
    text_check(m, in, n_images);
    Mat x;
    TextScratch s = {.x = &x, .n_x = 1};
    Arena count = {.role = "activations"};
    text_place(&s, &count, m, in, n_images);
    if (!arena_reserve(&m->activations, m->d, count.used, e)) return false;
    text_place(&s, &m->activations, m, in, n_images);
    text_upload(m, &s, in, n_images);
    text_layers(m, &s, in, n_images, tap, tap_ctx);
    if (logits.p) linear_forward(m->d, &m->head, logits, s.head_x, NULL);
    if (tap && logits.p) tap(tap_ctx, "logits", m->d, logits);
    m->d->sync(); // the spans of the caller must outlive their use
    return true;
}

void text_step_place(TextStep *s, Arena *a, const Model *m, int64_t N) {
    s->x = arena_mat(a, N, m->c.C, m->d->act_type);
    s->angles = arena_mat(a, N, m->c.dim, F32);
    s->head_x = arena_mat(a, N, m->c.C, m->d->act_type);
    block_scratch_place(&s->block, a, m->d, text_shape(m), N, false, NULL);
}

void text_step(const Model *m, const TextStep *t, Mat logits) {
    Mat x = t->x;
    TextScratch s = {.x = &x,
                     .n_x = 1,
                     .angles = t->angles,
                     .index = t->ids,
                     .slots = t->slots,
                     .decode = true,
                     .head_x = t->head_x,
                     .block = t->block,
                     .spans = t->spans};
    TextInput in = {.N = x.rows, .cache = t->cache};
    gather_rows(m->d, t->angles, t->turns, t->positions);
    text_layers(m, &s, &in, 0, NULL, NULL);
    linear_forward(m->d, &m->head, logits, t->head_x, NULL);
}

// ----------------------------------------------------------------------------------------------------------- training

// A parameter that is trained needs an F32 value that is not the file's, and a gradient.
static void train_arenas(Model *m, Arena *values, Arena *gradients) {
    for (int64_t i = 0; i < m->n_params; i++) {
        Param *p = &m->params[i];
        if (!p->trained || p->tied) continue;
        if (!p->owned) {
            Mat own = value_place(m, p, values, F32);
            if (values->base) cast(m->d, own, p->w->v), p->w->v = own, p->owned = true;
        }
        p->w->d = arena_mat(gradients, p->rows, p->cols, F32);
    }
}

void model_train_bytes(const Model *m, size_t *values, size_t *gradients) {
    Arena v = {0}, g = {0};
    for (int64_t i = 0; i < m->n_params; i++) {
        const Param *p = &m->params[i];
        if (!p->trained || p->tied) continue;
        if (!p->owned) value_place(m, p, &v, F32);
        arena_mat(&g, p->rows, p->cols, F32);
    }
    *values = v.used, *gradients = g.used;
}

bool model_train_open(Model *m, Err *e) {
    size_t values, gradients;
    for (int64_t i = 0; i < m->n_params; i++) m->params[i].w->d = mat_none();
    model_train_bytes(m, &values, &gradients);
    CHECK(!values || !m->trained.base, "model_train_open: weights are trained that were not the first time");
    if ((values && !arena_reserve(&m->trained, m->d, values, e)) || !arena_reserve(&m->gradients, m->d, gradients, e))
        return false;
    m->trained.used = m->gradients.used = 0;
    train_arenas(m, &m->trained, &m->gradients);
    if (m->c.tied) m->head.w = m->embed;
    model_zero_gradients(m);
    return true;
}

void model_zero_gradients(Model *m) {
    m->pictures = false;
    if (m->gradients.used) m->d->zero(mat(m->gradients.base, 1, (int64_t)m->gradients.used / 4, F32));
}

static bool vision_trained(const Vision *v) {
    bool any = v->patch_embed.w.d.p || v->ln_q.d.p || linear_trained(&v->merger0) || linear_trained(&v->merger2);
    for (int64_t j = 0; j < v->c.depth; j++) any |= block_trained(&v->blocks[j]);
    return any;
}

// The decoder's part of a pass: what TextInput calls it, with the rows that have a target as the head's rows.
static TextInput pass_input(const TrainBatch *b, int32_t *head_rows) {
    TextInput in = {.ids = b->ids,
                    .N = b->N,
                    .pos = b->pos,
                    .spans = b->spans,
                    .n_spans = b->n_spans,
                    .image_at = b->image_at,
                    .head_rows = head_rows};
    for (int64_t i = 0; i < b->N; i++)
        if (b->targets[i] >= 0) head_rows[in.n_head++] = (int32_t)i;
    return in;
}
static int64_t picture_rows(const Model *m, const TrainBatch *b) {
    int64_t patches = 0, unit = m->c.vision.merge * m->c.vision.merge;
    for (int i = 0; i < b->n_grids; i++) patches += grid_patches(b->grids[i]);
    return patches / unit;
}
static size_t place_pass(TextScratch *s, Arena *a, const Model *m, const TextInput *in, int64_t n_images, bool backward,
                         int64_t keep) {
    text_place(s, a, m, in, n_images);
    head_place(s, a, m, in);
    if (backward) train_place(s, a, m, in, keep);
    return a->used;
}
static TextScratch pass_scratch(const Model *m, bool backward) {
    TextScratch s = {.n_x = backward ? m->c.L + 1 : 1};
    s.x = alloc_or_die((size_t)s.n_x, sizeof *s.x, "a training pass");
    s.kept = alloc_or_die((size_t)m->c.L, sizeof *s.kept, "a training pass");
    return s;
}

PassBytes model_pass_bytes(const Model *m, const TrainBatch *b, bool backward) {
    int32_t *head_rows = alloc_or_die((size_t)b->N, sizeof *head_rows, "rows of the head");
    TextInput in = pass_input(b, head_rows);
    TextScratch s = pass_scratch(m, backward);
    Arena count = {0};
    PassBytes bytes = {0};
    int64_t U = picture_rows(m, b);
    bytes.text = place_pass(&s, &count, m, &in, U, backward, b->keep);
    bool train = false;
    for (int64_t i = 0; backward && i < m->n_params; i++)
        train |= m->params[i].trained && m->params[i].tower != TOWER_DECODER;
    size_t vision = U ? vision_bytes(m->d, &m->vision, b->grids, b->n_grids, train, b->keep) : 0;
    if (train) bytes.vision = vision;
    else if (vision > bytes.text) bytes.text = vision;
    Arena rows = {0};
    for (int k = 0; k < (train ? 2 : 1); k++) arena_mat(&rows, U, m->c.C, m->d->act_type);
    bytes.pictures = rows.used;
    free(s.x), free(s.kept), free(head_rows);
    return bytes;
}

// Log-probabilities of the head's rows, chunk by chunk, and with `backward` the gradient of the final norm's output. Logits
// are F32 for the log-probabilities' sake; their gradient takes their place, in the type of activations.
static void pass_head(Model *m, TextScratch *s, int64_t n_head, float inv_temperature, bool backward) {
    const Ops *d = m->d;
    float scale = inv_temperature != 0 ? inv_temperature : 1;
    int64_t chunk = s->logits.rows;
    for (int64_t first = 0; first < n_head; first += chunk) {
        int64_t n = n_head - first < chunk ? n_head - first : chunk;
        Mat logits = mat_rows(s->logits, 0, n), x = mat_rows(s->head_x, first, n);
        Mat targets = mat_rows(s->targets, first, n), lse = mat_rows(s->lse, first, n);
        Mat lp = mat_rows(s->lp, first, n), entropy = mat_rows(s->entropy, first, n), dlogits = logits;
        if (d->act_type == BF16) dlogits.type = BF16, dlogits.stride *= 2; // in the first half of every row
        linear_forward(d, &m->head, logits, x, NULL);
        if (!backward) {
            logprob_forward(d, lp, lse, entropy, logits, targets, scale);
            continue;
        }
        logprob_forward_backward(d, dlogits, lp, lse, entropy, logits, targets, mat_rows(s->dlp, first, n), scale);
        linear_backward(d, &m->head, mat_rows(s->dhead, first, n), dlogits, x, 0, NULL);
    }
}

static void pass_backward(Model *m, TextScratch *s, const TrainBatch *b, Mat dpictures) {
    const Ops *d = m->d;
    int64_t L = m->c.L, lowest = 0;
    while (!dpictures.p && !m->embed.d.p && lowest < L && !block_trained(&m->layers[lowest])) lowest++;
    trace_where("text.head.backward");
    d->zero(s->drows), d->zero(s->dx);
    rmsnorm_backward_add(d, s->drows, m->norm.d, s->dhead, s->rows, m->norm.v, s->rstd);
    scatter_add_rows(d, s->dx, s->drows, s->head_index);
    for (int64_t i = L - 1; i >= lowest; i--) {
        char name[64];
        snprintf(name, sizeof name, "text.layer.%lld.backward", (long long)i);
        trace_where(name);
        if (i < L - 1 - b->keep) // not kept, nor the last that ran through the shared scratch: again, for the same bits
            block_forward(d, &m->layers[i], text_shape(m), s->kept[i], s->x[i + 1], s->x[i], s->angles, s->spans, NULL,
                          NULL, NULL, NULL, NULL);
        block_backward(d, &m->layers[i], text_shape(m), s->kept[i], s->grad, s->dx, s->x[i], s->angles, s->spans);
    }
    trace_where("text.embeddings.backward");
    if (m->embed.d.p) scatter_add_rows(d, m->embed.d, s->dx, s->index);
    if (!dpictures.p) return;
    gather_rows(d, dpictures, s->dx, s->image_at);
    vision_backward(d, &m->vision, dpictures, &m->tape);
    m->pictures = true;
}

// Rows of the pictures, and with `train` the tape of their tower.
static bool pass_pictures(Model *m, const TrainBatch *b, bool train, Mat *rows, Mat *drows, Err *e) {
    int64_t U = picture_rows(m, b);
    Type act = m->d->act_type;
    *rows = *drows = mat_none();
    if (!U) return true;
    Arena count = {.role = "picture rows"};
    for (int pass = 0; pass < 2; pass++) {
        Arena *a = pass ? &m->tables : &count;
        if (pass && !arena_reserve(a, m->d, count.used, e)) return false;
        *rows = arena_mat(a, U, m->c.C, act);
        if (train) *drows = arena_mat(a, U, m->c.C, act);
    }
    if (!train)
        return vision_forward(m->d, &m->vision, *rows, b->pixels, b->grids, b->n_grids, &m->activations, NULL, NULL, e);
    m->tape.keep = b->keep, m->tape.keys = b->patch_keys, m->tape.seed = b->seed;
    return vision_forward_train(m->d, &m->vision, *rows, b->pixels, b->grids, b->n_grids, &m->tape, e);
}

bool model_pass(Model *m, const TrainBatch *b, const float *dlp, float *lp, float *entropy, Err *e) {
    const Ops *d = m->d;
    bool backward = dlp != NULL;
    int32_t *head_rows = alloc_or_die((size_t)b->N, sizeof *head_rows, "rows of the head");
    TextInput in = pass_input(b, head_rows);
    for (int64_t i = 0; i < b->N; i++) {
        CHECK(b->targets[i] < m->c.V, "model_pass: target %d of a vocabulary of %lld", b->targets[i],
              (long long)m->c.V);
        lp[i] = 0;
    }
    for (int64_t i = 0; entropy && i < b->N; i++) entropy[i] = 0;
    if (!in.n_head) {
        free(head_rows);
        return true;
    }

    TextScratch s = pass_scratch(m, backward);
    Mat dpictures;
    Arena count = {.role = "activations"};
    bool ok = pass_pictures(m, b, backward && b->n_grids && vision_trained(&m->vision), &in.image_rows, &dpictures, e);
    int64_t n_images = in.image_rows.p ? in.image_rows.rows : 0;
    ok = ok && arena_reserve(&m->activations, d, place_pass(&s, &count, m, &in, n_images, backward, b->keep), e);
    if (ok) {
        text_check(m, &in, n_images);
        place_pass(&s, &m->activations, m, &in, n_images, backward, b->keep);
        text_upload(m, &s, &in, n_images);
        if (backward && b->keys) {
            d->upload(s.keys, mat((void *)(uintptr_t)b->keys, b->N, 2, I32));
            s.block.lora.keys = s.keys, s.block.lora.seed = b->seed;
            for (int64_t i = 0; i < m->c.L; i++) s.kept[i].lora = s.block.lora;
        }
        float *column = alloc_or_die((size_t)in.n_head, sizeof *column, "a column of the head");
        int32_t *targets = (int32_t *)(void *)column;
        for (int64_t i = 0; i < in.n_head; i++) targets[i] = b->targets[head_rows[i]];
        d->upload(s.targets, mat(targets, in.n_head, 1, I32));
        for (int64_t i = 0; backward && i < in.n_head; i++) column[i] = dlp[head_rows[i]];
        if (backward) d->upload(s.dlp, mat(column, in.n_head, 1, F32));

        text_layers(m, &s, &in, n_images, NULL, NULL);
        pass_head(m, &s, in.n_head, b->inv_temperature, backward);
        if (backward) pass_backward(m, &s, b, dpictures);
        d->download(mat(column, in.n_head, 1, F32), s.lp);
        for (int64_t i = 0; i < in.n_head; i++) lp[head_rows[i]] = column[i];
        if (entropy) d->download(mat(column, in.n_head, 1, F32), s.entropy);
        for (int64_t i = 0; entropy && i < in.n_head; i++) entropy[head_rows[i]] = column[i];
        free(column);
    }
    free(s.x), free(s.kept), free(head_rows);
    return ok;
}
