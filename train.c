// train.c - what every trainer here is made of: packed batches, AdamW, the schedule, the guards, and what a checkpoint holds.
//
// What it is:  the step of training without the loss: sequences are packed into one pass, gradients are clipped and
//              applied, bad numbers are stopped, and all of it can be written down and read back to the bit.
// What it is not: a trainer. sft.c is one.
// Read before: model.c (model_pass), lora.c.  Read next: sft.c.
#include "surgr1.h"

// ------------------------------------------------------------------------------------------------------------ packing

static void *room(void *p, int64_t count, size_t size) { return grow_or_die(p, (size_t)count, size, "a packed batch"); }

void pack_clear(Pack *p) {
    p->b.N = p->b.n_spans = p->n = p->n_places = p->patches = 0;
    p->b.n_grids = 0;
}

void pack_free(Pack *p) {
    free(p->ids), free(p->axes), free(p->pos), free(p->spans), free(p->pixels), free(p->grids), free(p->image_at);
    free(p->targets), free(p->keys), free(p->patch_keys), free(p->places);
    *p = (Pack){0};
}

// Ids [from, to) of a sequence as one span, which also sees rows [prefix_first, prefix_last) whole; pos [3, n] is of the
// whole sequence. Row i of a sequence predicts its id i + 1, where that id is a target.
static void add_rows(Pack *p, const Sequence *s, const int32_t *pos, int64_t from, int64_t to, int64_t prefix_first,
                     int64_t prefix_last) {
    TrainBatch *b = &p->b;
    int64_t first = b->N, n = to - from, N = first + n;
    p->axes = room(p->axes, 3 * N, sizeof *p->axes); // [span][3][rows]; made [3][N] in pack_batch
    p->ids = room(p->ids, N, sizeof *p->ids), p->targets = room(p->targets, N, sizeof *p->targets);
    p->keys = room(p->keys, 2 * N, sizeof *p->keys);
    p->spans = room(p->spans, b->n_spans + 1, sizeof *p->spans);
    for (int axis = 0; axis < 3; axis++)
        memcpy(p->axes + 3 * first + axis * n, pos + axis * s->n + from, (size_t)n * sizeof *pos);
    for (int64_t i = from, row = first; i < to; i++, row++) {
        p->ids[row] = s->ids[i];
        p->targets[row] = i + 1 < s->n && s->trained[i + 1] ? s->ids[i + 1] : -1;
        p->keys[2 * row] = (int32_t)s->key, p->keys[2 * row + 1] = (int32_t)i;
    }
    p->spans[b->n_spans++] = (Span){(int32_t)first, (int32_t)N, (int32_t)prefix_first, (int32_t)prefix_last, 1};
    b->N = N;
}

// The pictures of a sequence whose ids [0, n) stand in rows `first` and behind, and the targets of their rows.
static void add_pictures(Pack *p, const Config *c, const Sequence *s, int64_t n, int64_t first, PackPlace *place) {
    TrainBatch *b = &p->b;
    int64_t patches = 0, values = c->vision.channels * c->vision.temporal * c->vision.patch * c->vision.patch;
    p->image_at = room(p->image_at, p->n_places + n, sizeof *p->image_at);
    const int32_t *at = p->image_at + p->n_places;
    int64_t rows = image_places(c, s->ids, n, first, p->image_at + p->n_places);
    p->n_places += rows;
    for (int64_t u = 0; s->align && u < rows; u++) {
        if (s->align[u] < 0) continue;
        CHECK(p->targets[at[u]] < 0, "a row of a picture has two targets, %d and %d", p->targets[at[u]], s->align[u]);
        p->targets[at[u]] = s->align[u];
        if (!place->n_align) place->align_row = at[u];
        place->n_align = at[u] + 1 - place->align_row;
    }
    if (!s->n_grids) return;
    for (int i = 0; i < s->n_grids; i++) patches += grid_patches(s->grids[i]);
    p->grids = room(p->grids, b->n_grids + s->n_grids, sizeof *p->grids);
    memcpy(p->grids + b->n_grids, s->grids, (size_t)s->n_grids * sizeof *p->grids);
    b->n_grids += s->n_grids;
    p->pixels = room(p->pixels, (p->patches + patches) * values, sizeof *p->pixels);
    memcpy(p->pixels + p->patches * values, s->pixels, (size_t)(patches * values) * sizeof *p->pixels);
    p->patch_keys = room(p->patch_keys, 2 * (p->patches + patches), sizeof *p->patch_keys);
    for (int64_t i = 0; i < patches; i++) {
        p->patch_keys[2 * (p->patches + i)] = (int32_t)s->key;
        p->patch_keys[2 * (p->patches + i) + 1] = (int32_t)i;
    }
    p->patches += patches;
}

static void *positions_room(int64_t n) { return alloc_or_die((size_t)(3 * n) + 1, sizeof(int32_t), "positions"); }

bool pack_add(Pack *p, const Config *c, const Sequence *s, Err *e) {
    int64_t first = p->b.N, next;
    int32_t *pos = positions_room(s->n);
    bool ok = mrope_positions(c, s->ids, s->n, s->n_prompt, s->grids, s->n_grids, pos, &next, e);
    if (ok) {
        p->places = room(p->places, p->n + 1, sizeof *p->places);
        p->places[p->n] = (PackPlace){.row = first, .n = s->n};
        add_rows(p, s, pos, 0, s->n, 0, 0);
        add_pictures(p, c, s, s->n_prompt, first, &p->places[p->n++]);
    }
    free(pos);
    return ok;
}

static void group_check(const Config *c, const Sequence *s, int n, int64_t shared) {
    for (int k = 0; k < n; k++) {
        CHECK(shared >= 1 && shared <= s[k].n_prompt && s[k].n_prompt <= s[k].n,
              "pack_add_group: %lld ids shared, sequence %d has %lld, %lld of them in the prompt", (long long)shared, k,
              (long long)s[k].n, (long long)s[k].n_prompt);
        CHECK(!memcmp(s[k].ids, s[0].ids, (size_t)shared * sizeof *s->ids),
              "pack_add_group: sequence %d begins otherwise than the first", k);
        for (int64_t i = 0; i < shared; i++)
            CHECK(!s[k].trained[i], "pack_add_group: the shared id %lld is a target of sequence %d", (long long)i, k);
        for (int64_t i = shared - 1; c->image_id >= 0 && i < s[k].n_prompt; i++)
            CHECK(s[k].ids[i] != c->image_id, "pack_add_group: id %lld of sequence %d is a picture's, %lld are shared",
                  (long long)i, k, (long long)shared);
    }
}

bool pack_add_group(Pack *p, const Config *c, const Sequence *s, int n, int64_t shared, Err *e) {
    int64_t prefix = p->b.N, next, ids = 0;
    bool ok = true;
    group_check(c, s, n, shared);
    for (int k = 0; k < n; k++) ids += s[k].n;
    int32_t *pos = positions_room(ids), *at = pos; // all before the first row is added: an error leaves p as it was
    for (int k = 0; ok && k < n; at += 3 * s[k].n, k++)
        ok = mrope_positions(c, s[k].ids, s[k].n, s[k].n_prompt, s->grids, s->n_grids, at, &next, e);
    if (ok && n) {
        PackPlace pictures = {0};
        p->places = room(p->places, p->n + n, sizeof *p->places);
        if (shared > 1) add_rows(p, s, pos, 0, shared - 1, 0, 0);
        add_pictures(p, c, s, shared - 1, prefix, &pictures);
        at = pos;
        for (int k = 0; k < n; at += 3 * s[k].n, k++) {
            PackPlace *place = &p->places[p->n++];
            *place = (PackPlace){.row = p->b.N, .from = shared - 1, .n = s[k].n};
            if (k == 0) place->align_row = pictures.align_row, place->n_align = pictures.n_align;
            add_rows(p, &s[k], at, shared - 1, s[k].n, prefix, prefix + shared - 1);
        }
    }
    free(pos);
    return ok;
}

const TrainBatch *pack_batch(Pack *p, bool dropout, uint64_t seed, int64_t keep) {
    TrainBatch *b = &p->b;
    p->pos = room(p->pos, 3 * b->N, sizeof *p->pos);
    for (int64_t k = 0; k < b->n_spans; k++) {
        int64_t first = p->spans[k].first, n = p->spans[k].last - first;
        for (int axis = 0; axis < 3; axis++)
            memcpy(p->pos + axis * b->N + first, p->axes + 3 * first + axis * n, (size_t)n * sizeof *p->pos);
    }
    b->ids = p->ids, b->pos = p->pos, b->spans = p->spans, b->pixels = p->pixels, b->grids = p->grids;
    b->image_at = p->image_at, b->targets = p->targets;
    b->keys = dropout ? p->keys : NULL, b->patch_keys = dropout ? p->patch_keys : NULL;
    b->seed = seed, b->keep = keep;
    return b;
}

// ----------------------------------------------------------------------------------------------------------- schedule

// transformers get_*_schedule_with_warmup; wsd as in llm.c's schedulers.h: flat, then 1 - sqrt over the last part.
double schedule_factor(const Schedule *s, int64_t step) {
    double W = (double)s->warmup, N = (double)s->steps, t = (double)step, x = 1;
    if (step < s->warmup) return t / fmax(1, W);
    double through = fmin(1, (t - W) / fmax(1, N - W));
    switch (s->kind) {
    case SCHEDULE_CONSTANT: return 1;
    case SCHEDULE_LINEAR: x = fmax(0, (N - t) / fmax(1, N - W)); break;
    case SCHEDULE_COSINE: x = fmax(0, 0.5 * (1 + cos(3.14159265358979323846 * through))); break;
    case SCHEDULE_WSD: {
        double start = N - s->decay_part * N;
        x = t < start ? 1 : 1 - sqrt(fmin(1, (t - start) / fmax(1, N - start)));
        break;
    }
    }
    return x * (1 - s->floor) + s->floor;
}

// ---------------------------------------------------------------------------------------------------------- optimizer

static int64_t trained_params(const Model *m) {
    int64_t n = 0;
    for (int64_t i = 0; i < m->n_params; i++) n += m->params[i].w->d.p != NULL && !m->params[i].tied;
    return n;
}
static void moments_place(Optimizer *o, Arena *a) {
    for (int64_t i = 0; i < o->n; i++) {
        o->rows[i].m = arena_mat(a, o->rows[i].p->rows, o->rows[i].p->cols, F32);
        o->rows[i].v = arena_mat(a, o->rows[i].p->rows, o->rows[i].p->cols, F32);
    }
    o->squares = arena_mat(a, o->n, 1, F32);
}

size_t optimizer_bytes(const Model *m) {
    Arena a = {0};
    int64_t n = 0;
    for (int64_t i = 0; i < m->n_params; i++) {
        const Param *p = &m->params[i];
        if (!p->trained || p->tied) continue;
        n++;
        for (int k = 0; k < 2; k++) arena_mat(&a, p->rows, p->cols, F32);
    }
    arena_mat(&a, n, 1, F32);
    return a.used;
}

bool optimizer_open(Optimizer *o, Model *m, const AdamOptions *options, Err *e) {
    *o = (Optimizer){.options = *options, .arena = {.role = "optimizer"}, .n = trained_params(m)};
    o->rows = alloc_or_die((size_t)o->n + 1, sizeof *o->rows, "the optimizer");
    o->host = alloc_or_die((size_t)o->n + 1, sizeof *o->host, "the optimizer");
    for (int64_t i = 0, k = 0; i < m->n_params; i++) {
        Param *p = &m->params[i];
        if (!p->w->d.p || p->tied) continue;
        // no decay for norms and biases, as in transformers' Trainer
        o->rows[k++] = (OptimizerRow){.p = p, .decay = p->dims > 1 ? options->decay : 0, .lr = options->lr[p->tower]};
    }
    Arena count = {0};
    moments_place(o, &count);
    if (!arena_reserve(&o->arena, m->d, count.used, e)) return false;
    moments_place(o, &o->arena);
    m->d->zero(mat(o->arena.base, 1, (int64_t)(o->arena.used / sizeof(real)), F32));
    return true;
}
void optimizer_close(Optimizer *o, const Model *m) {
    arena_release(&o->arena, m->d);
    free(o->rows), free(o->host);
    *o = (Optimizer){0};
}

// |g| of all trained parameters, from each one's sum of squares (kept for whoever asks which of them is not finite).
double gradient_norm(Optimizer *o, const Model *m) {
    double sum = 0;
    for (int64_t i = 0; i < o->n; i++) sum_squares(m->d, mat_rows(o->squares, i, 1), o->rows[i].p->w->d);
    m->d->download(mat(o->host, o->n, 1, F32), o->squares);
    for (int64_t i = 0; i < o->n; i++) sum += o->host[i];
    return sqrt(sum);
}

// torch.nn.utils.clip_grad_norm_, then torch.optim.AdamW. factor: of the schedule. As in torch, a parameter that took no
// part in the update is left alone: no decay, no moments, and its own count of updates.
void optimizer_step(Optimizer *o, Model *m, double factor, double norm) {
    const AdamOptions *a = &o->options;
    for (int tower = 0; tower < 3; tower++) o->updates[tower] += tower == TOWER_DECODER || m->pictures;
    double scale = a->clip > 0 ? fmin(1, a->clip / (norm + 1e-6)) : 1;
    for (int64_t i = 0; i < o->n; i++) {
        OptimizerRow *r = &o->rows[i];
        if (r->p->tower != TOWER_DECODER && !m->pictures) continue;
        double t = (double)o->updates[r->p->tower];
        double lr = r->lr * factor;
        AdamStep s = {.grad_scale = scale,
                      .lr = lr,
                      .decay = r->decay,
                      .beta1 = a->beta1,
                      .beta2 = a->beta2,
                      .eps = a->eps,
                      .step_size = lr / (1 - pow(a->beta1, t)),
                      .root_scale = 1 / sqrt(1 - pow(a->beta2, t))};
        adamw(m->d, r->p->w->v, r->m, r->v, r->p->w->d, s);
    }
}

// ------------------------------------------------------------------------------------------------------------- guards

bool outlier(Window *w, double value) {
    bool is = false;
    if (w->n >= OUTLIER_FROM) {
        double mean = 0, square = 0;
        for (int64_t i = 0; i < w->n; i++) mean += w->value[i];
        mean /= (double)w->n;
        for (int64_t i = 0; i < w->n; i++) square += (w->value[i] - mean) * (w->value[i] - mean);
        double limit = mean + 6 * sqrt(square / (double)w->n);
        is = value > limit && value > 2 * mean;
        if (is) value = limit; // what is far out enters the window as the limit, so that it cannot widen it at once
    }
    w->value[w->next] = value;
    w->next = (w->next + 1) % OUTLIER_WINDOW;
    if (w->n < OUTLIER_WINDOW) w->n++;
    return is;
}

void describe_nonfinite(const Optimizer *o, Text *out) {
    int64_t bad = 0;
    for (int64_t i = 0; i < o->n; i++) {
        if (isfinite(o->host[i])) continue;
        if (bad++ < LIMIT_LISTED) text_addf(out, "%s%s", bad > 1 ? ", " : "", o->rows[i].p->name);
    }
    if (bad > LIMIT_LISTED) text_addf(out, " and %lld more", (long long)(bad - LIMIT_LISTED));
    if (bad == o->n) text_addf(out, " (all of them)");
    for (int64_t i = 0; bad < o->n && i < o->n; i++)
        if (isfinite(o->host[i]) && ((i && !isfinite(o->host[i - 1])) || (i + 1 < o->n && !isfinite(o->host[i + 1])))) {
            text_addf(out, "; beside them %s is clean", o->rows[i].p->name);
            break;
        }
}

// -------------------------------------------------------------------------------------------------------- checkpoints

typedef struct Stored { // tensors on their way to a file; one at a time is copied to the host
    const Model *m;
    TensorOut *out;
    char (*names)[200];
    Mat *values;
    int64_t n;
} Stored;
static void stored_add(Stored *s, const Param *p, const char *suffix, Mat value) {
    TensorOut *t = &s->out[s->n];
    snprintf(s->names[s->n], sizeof *s->names, "%s%s", p->name, suffix);
    *t = (TensorOut){.name = s->names[s->n], .type = FT_F32, .dims = p->dims};
    memcpy(t->shape, p->shape, sizeof t->shape);
    s->values[s->n++] = value;
}
static Stored stored_new(const Model *m, int64_t n) {
    return (Stored){.m = m,
                    .out = alloc_or_die((size_t)n + 1, sizeof(TensorOut), "a checkpoint"),
                    .names = alloc_or_die((size_t)n + 1, 200, "a checkpoint"),
                    .values = alloc_or_die((size_t)n + 1, sizeof(Mat), "a checkpoint")};
}
static bool stored_source(void *ctx, int64_t i, FileWriter *w, Err *e) {
    const Stored *s = ctx;
    Mat value = s->values[i];
    size_t n = (size_t)(value.rows * value.cols);
    float *copy = alloc_or_die(n, sizeof *copy, "a tensor of the checkpoint");
    s->m->d->download(mat(copy, value.rows, value.cols, F32), value);
    bool ok = file_write_bytes(w, copy, n * sizeof *copy, e);
    free(copy);
    return ok;
}
static bool stored_write(Stored *s, const char *dir, const char *file, Err *e) {
    char path[1300];
    bool ok = path_join(path, sizeof path, dir, file, e) &&
              tensors_write_from(path, "{\"format\":\"pt\"}", s->out, s->n, stored_source, s, e);
    free(s->out), free(s->names), free(s->values);
    return ok;
}

bool train_values_save(const Optimizer *o, const Model *m, const char *dir, const char *file, Err *e) {
    Stored s = stored_new(m, o->n);
    for (int64_t i = 0; i < o->n; i++) stored_add(&s, o->rows[i].p, "", o->rows[i].p->w->v);
    return stored_write(&s, dir, file, e);
}
// Of a model without an adapter; an adapter holds its own.
static bool trained_save(const Optimizer *o, const Model *m, const char *dir, Err *e) {
    return m->lora ? lora_save(m, dir, false, e) : train_values_save(o, m, dir, "trained.safetensors", e);
}

const char *train_find_nonfinite(const Optimizer *o, const Model *m) {
    const char *name = NULL;
    for (int64_t i = 0; !name && i < o->n; i++) {
        const Param *p = o->rows[i].p;
        const Mat values[] = {p->w->v, o->rows[i].m, o->rows[i].v};
        float *copy = alloc_or_die((size_t)(p->rows * p->cols), sizeof *copy, "a look at the weights");
        for (int k = 0; k < 3; k++) {
            m->d->download(mat(copy, p->rows, p->cols, F32), values[k]);
            for (int64_t j = 0; j < p->rows * p->cols; j++)
                if (!isfinite(copy[j])) name = p->name;
        }
        free(copy);
    }
    return name;
}

bool train_save(const Optimizer *o, const Model *m, const char *dir, Err *e) {
    if (!trained_save(o, m, dir, e)) return false;
    Stored s = stored_new(m, 2 * o->n);
    for (int64_t i = 0; i < o->n; i++) {
        stored_add(&s, o->rows[i].p, ".exp_avg", o->rows[i].m);
        stored_add(&s, o->rows[i].p, ".exp_avg_sq", o->rows[i].v);
    }
    return stored_write(&s, dir, "optimizer.safetensors", e);
}

static bool stored_read(const TensorFile *f, const Model *m, const Param *p, const char *suffix, Mat value, Err *e) {
    char name[200];
    snprintf(name, sizeof name, "%s%s", p->name, suffix);
    const Tensor *t = tensors_find(f, name);
    if (!t || t->type != FT_F32 || t->elements != p->rows * p->cols)
        return err_set(e, "E-CK-05", AT(.file = f->path, .tensor = p->name),
                       "expected %s in F32 with %lld elements; found %s; do: resume with the options of the run", name,
                       (long long)(p->rows * p->cols), t ? "another shape or type" : "none");
    float *copy = alloc_or_die((size_t)t->elements, sizeof *copy, "a tensor of the checkpoint");
    tensor_to_f32(t, 0, t->elements, copy);
    m->d->upload(value, mat(copy, p->rows, p->cols, F32));
    free(copy);
    return true;
}

// A file must hold what is asked for and nothing else.
static bool open_of(TensorFile *f, const char *dir, const char *file, int64_t count, Err *e) {
    char path[1300];
    if (!path_join(path, sizeof path, dir, file, e) || !tensors_open(f, path, e)) return false;
    if (f->count == count) return true;
    err_set(e, "E-CK-05", AT(.file = path), "expected %lld tensors; found %lld; do: resume with the options of the run",
            (long long)count, (long long)f->count);
    tensors_close(f);
    return false;
}

bool train_values_load(Model *m, const char *dir, const char *file, Err *e) {
    TensorFile f;
    bool ok = open_of(&f, dir, file, trained_params(m), e);
    if (!ok) return false;
    for (int64_t i = 0; ok && i < m->n_params; i++)
        if (m->params[i].w->d.p && !m->params[i].tied) ok = stored_read(&f, m, &m->params[i], "", m->params[i].w->v, e);
    tensors_close(&f);
    return ok;
}
bool train_load_values(Model *m, const char *dir, Err *e) { // of a model without adapter
    return train_values_load(m, dir, "trained.safetensors", e);
}
bool train_load_moments(Optimizer *o, const Model *m, const char *dir, Err *e) {
    TensorFile f;
    bool ok = open_of(&f, dir, "optimizer.safetensors", 2 * o->n, e);
    if (!ok) return false;
    for (int64_t i = 0; ok && i < o->n; i++)
        ok = stored_read(&f, m, o->rows[i].p, ".exp_avg", o->rows[i].m, e) &&
             stored_read(&f, m, o->rows[i].p, ".exp_avg_sq", o->rows[i].v, e);
    tensors_close(&f);
    return ok;
}
int64_t train_bytes(const Optimizer *o) { // of a checkpoint, about
    int64_t bytes = 0;
    for (int64_t i = 0; i < o->n; i++) bytes += 3 * 4 * o->rows[i].p->rows * o->rows[i].p->cols;
    return bytes + (1 << 16);
}

// The state of a window, exactly: hexadecimal floats.
void window_print(const Window *w, Text *out) {
    text_addf(out, "{\"next\":%lld,\"values\":[", (long long)w->next);
    for (int64_t i = 0; i < w->n; i++) text_addf(out, "%s\"%a\"", i ? "," : "", w->value[i]);
    text_addf(out, "]}");
}
bool window_read(Window *w, const Json *v) {
    const Json *values = json_get(v, "values"), *next = json_get(v, "next");
    *w = (Window){0};
    if (!values || values->type != JSON_ARRAY || values->count > OUTLIER_WINDOW || !next || !next->integer ||
        next->i < 0 || next->i >= OUTLIER_WINDOW)
        return false;
    for (const Json *x = values->child; x; x = x->next) {
        char *end;
        if (x->type != JSON_STRING) return false;
        w->value[w->n++] = strtod(x->str, &end);
        if (*end) return false;
    }
    w->next = next->i;
    return true;
}
