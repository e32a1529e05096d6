// vision.c - pictures to rows of the decoder: smart resize, patches, window order, rotary table, tower, merger.
//
// What it is:  the forward half of transformers' Qwen2VLImageProcessor (after decoding) and of
//              Qwen2_5_VisionTransformerPretrainedModel.
// What it is not: decoding and resizing of pixels (io/image.c) or the block itself (block.c).
// Read before: block.c.  Read next: model.c.
//
// Words: a patch is `patch` x `patch` pixels. A unit is `merge` x `merge` patches: it becomes one row of the decoder. A
// window is (window / patch / merge) squared units. Rows of a picture come in raster order of units, and inside a unit
// in raster order of its patches.
#include "surgr1.h"

// ------------------------------------------------------------------------------------------------------ preprocessing

// transformers models/qwen2_vl/image_processing_qwen2_vl.py smart_resize. rint() rounds half to even, as Python does.
bool smart_resize(int64_t height, int64_t width, int64_t factor, int64_t min_pixels, int64_t max_pixels, int64_t *out_h,
                  int64_t *out_w, const char *name, Err *e) {
    int64_t longer = height > width ? height : width, shorter = height > width ? width : height;
    if (shorter < 1 || (double)longer / (double)shorter > (double)LIMIT_IMAGE_RATIO)
        return err_set(e, "E-IM-02", AT(.file = name),
                       "expected sides with a ratio of at most %lld; found %lld x %lld pixels; do: crop the picture",
                       (long long)LIMIT_IMAGE_RATIO, (long long)width, (long long)height);
    double f = (double)factor, h = rint((double)height / f) * f, w = rint((double)width / f) * f;
    if (h * w > (double)max_pixels) {
        double beta = sqrt((double)height * (double)width / (double)max_pixels);
        h = fmax(f, floor((double)height / beta / f) * f), w = fmax(f, floor((double)width / beta / f) * f);
    } else if (h * w < (double)min_pixels) {
        double beta = sqrt((double)min_pixels / ((double)height * (double)width));
        h = ceil((double)height * beta / f) * f, w = ceil((double)width * beta / f) * f;
    }
    *out_h = (int64_t)h, *out_w = (int64_t)w;
    return true;
}

// pixels[row, e]: row = ((by * (gw/merge) + bx) * merge + iy) * merge + ix is the patch (by*merge + iy, bx*merge + ix);
// e = ((c * temporal + frame) * patch + y) * patch + x. A single picture stands for all `temporal` frames.
bool image_to_patches(const VisionConfig *c, const Image *im, const char *name, float **pixels, Grid *grid, Err *e) {
    int64_t H, W, p = c->patch, m = c->merge;
    if (!smart_resize(im->height, im->width, p * m, c->min_pixels, c->max_pixels, &H, &W, name, e)) return false;
    uint8_t *resized = alloc_or_die((size_t)(H * W), 3, "resized picture");
    image_resize_bicubic(resized, (int)W, (int)H, im->rgb, im->width, im->height);

    float level[3][256]; // the processor rescales in double, then subtracts and divides in float
    for (int ch = 0; ch < 3; ch++)
        for (int v = 0; v < 256; v++) level[ch][v] = ((float)(v * c->rescale) - c->mean[ch]) / c->std[ch];

    int64_t gh = H / p, gw = W / p, length = c->channels * c->temporal * p * p;
    float *out = alloc_or_die((size_t)(gh * gw), (size_t)length * sizeof(float), "patches");
    for (int64_t row = 0; row < gh * gw; row++) {
        int64_t ix = row % m, iy = row / m % m, bx = row / (m * m) % (gw / m), by = row / (m * gw);
        const uint8_t *corner = resized + 3 * ((by * m + iy) * p * W + (bx * m + ix) * p);
        float *to = out + row * length;
        for (int64_t ch = 0; ch < c->channels; ch++)
            for (int64_t frame = 0; frame < c->temporal; frame++)
                for (int64_t y = 0; y < p; y++)
                    for (int64_t x = 0; x < p; x++) *to++ = level[ch][corner[3 * (y * W + x) + ch]];
    }
    free(resized);
    *pixels = out, *grid = (Grid){1, gh, gw};
    return true;
}

void patches_to_image(const VisionConfig *c, const float *pixels, Grid g, Image *im) {
    int64_t p = c->patch, m = c->merge, W = g.w * p, length = c->channels * c->temporal * p * p;
    *im = (Image){.width = (int)W, .height = (int)(g.h * p), .orientation = 1};
    im->rgb = alloc_or_die((size_t)(g.h * p * W), 3, "a picture made of patches");
    for (int64_t row = 0; row < g.h * g.w; row++) {
        int64_t ix = row % m, iy = row / m % m, bx = row / (m * m) % (g.w / m), by = row / (m * g.w);
        uint8_t *corner = im->rgb + 3 * ((by * m + iy) * p * W + (bx * m + ix) * p);
        for (int64_t ch = 0; ch < c->channels; ch++)
            for (int64_t y = 0; y < p; y++)
                for (int64_t x = 0; x < p; x++) { // the first of the `temporal` equal frames
                    double v = pixels[row * length + (ch * c->temporal * p + y) * p + x];
                    double level = rint((v * c->std[ch] + c->mean[ch]) / c->rescale);
                    corner[3 * (y * W + x) + ch] = (uint8_t)fmin(fmax(level, 0), 255);
                }
    }
}

// -------------------------------------------------------------------------------------------------------- window order

// transformers get_window_index: for every frame, window rows, window columns, then the units inside, skipping what
// lies outside the picture. Windows at the right and bottom edge may be partial; none spans frames or pictures.
void window_order(WindowOrder *o, const VisionConfig *c, const Grid *grids, int n) {
    int64_t side = c->window / c->merge / c->patch, units = 0, windows = 0, frames = 0;
    for (int i = 0; i < n; i++) {
        int64_t h = grids[i].h / c->merge, w = grids[i].w / c->merge;
        units += grids[i].t * h * w, frames += grids[i].t;
        windows += grids[i].t * ((h + side - 1) / side) * ((w + side - 1) / side);
    }
    o->index = alloc_or_die((size_t)units, sizeof(int32_t), "window order");
    o->starts = alloc_or_die((size_t)windows + 1, sizeof(int32_t), "window starts");
    o->full_starts = alloc_or_die((size_t)frames + 1, sizeof(int32_t), "picture starts");
    o->units = o->n_windows = o->n_frames = 0;
    int32_t unit_patches = (int32_t)(c->merge * c->merge);
    for (int i = 0; i < n; i++) {
        int64_t h = grids[i].h / c->merge, w = grids[i].w / c->merge;
        for (int64_t t = 0; t < grids[i].t; t++) {
            int64_t base = o->units;
            for (int64_t wy = 0; wy < h; wy += side)
                for (int64_t wx = 0; wx < w; wx += side) {
                    for (int64_t y = wy; y < h && y < wy + side; y++)
                        for (int64_t x = wx; x < w && x < wx + side; x++)
                            o->index[o->units++] = (int32_t)(base + y * w + x);
                    o->starts[++o->n_windows] = (int32_t)o->units * unit_patches;
                }
            o->full_starts[++o->n_frames] = (int32_t)o->units * unit_patches;
        }
    }
}

void window_order_free(WindowOrder *o) {
    free(o->index), free(o->starts), free(o->full_starts);
    memset(o, 0, sizeof *o);
}

// cos | sin of the 2-D rotary embedding for patches in window order, F32 [patches, dim]. The first dim/4 angles turn
// with the row, the next dim/4 with the column: position * 10000^(-2k / (dim/2)), in fp32 as torch computes it.
// Positions are those in the whole picture.
static void rotary_table(const VisionConfig *c, const WindowOrder *o, const Grid *grids, int n, float *table) {
    int64_t quarter = c->dim / 4, m = c->merge, picture = 0, first = 0;
    float inverse[128]; // dim <= 512
    for (int64_t k = 0; k < quarter; k++) inverse[k] = 1.0f / (float)pow(10000.0, (float)(2 * k) / (float)(c->dim / 2));
    for (int64_t g = 0; g < o->units; g++) {
        int64_t unit = o->index[g], h = grids[picture].h / m, w = grids[picture].w / m;
        while (unit - first >= grids[picture].t * h * w) {
            first += grids[picture].t * h * w, picture++;
            CHECK(picture < n, "window order names unit %lld of fewer", (long long)unit);
            h = grids[picture].h / m, w = grids[picture].w / m;
        }
        int64_t uy = (unit - first) / w % h, ux = (unit - first) % w;
        for (int64_t part = 0; part < m * m; part++) {
            float *row = table + (g * m * m + part) * c->dim;
            float position[2] = {(float)(uy * m + part / m), (float)(ux * m + part % m)};
            for (int64_t axis = 0; axis < 2; axis++)
                for (int64_t k = 0; k < quarter; k++) {
                    float angle = position[axis] * inverse[k];
                    row[axis * quarter + k] = (float)cos(angle);
                    row[c->dim / 2 + axis * quarter + k] = (float)sin(angle);
                }
        }
    }
}

// ------------------------------------------------------------------------------------------------------------- tower

struct VisionScratch {
    int64_t P, n_x;             // patches; 1, or depth + 1 in training
    Mat pixels;                 // F32 [P, patch length]
    Mat cast;                   // the same in the activation type, when that is another
    Mat embedded;               // [P, C] in raster order
    Mat *x;                     // [n_x] each [P, C] in window order: the input of every block, or one for all
    Mat angles;                 // F32 [P, dim]
    Mat order, inverse;         // I32 [P / unit, 1]
    Mat window_rows, full_rows; // I32 [spans, 5]
    Mat keys, unit_keys;        // I32 [P, 2], [P / unit, 2] of dropout, in window order
    BlockScratch block;         // of the block that runs
    BlockScratch *kept;         // [depth]; of the last `keep` blocks, else as `block`
    Mat normed, rstd;           // [P, C], F32 [P, 1]: ln_q
    Mat hidden, activated;      // [P / unit, C * unit] before and after GELU
    Mat merged;                 // [P / unit, out] in window order
    LoraScratch merger_lora;
    // training
    Mat dx, dnormed;         // [P, C]
    Mat dhidden, dactivated; // [P / unit, C * unit]
    Mat dmerged;             // [P / unit, out]
    BlockGrad grad;
    // host
    WindowOrder o;
    Spans windows, full;
};

static BlockShape shape_of(const Vision *v) {
    const VisionConfig *c = &v->c;
    return (BlockShape){c->C, c->heads, c->heads, c->dim, c->F, c->eps, v->rank, v->dropout};
}

// Everything on the device. With `training` each block's input stays, and what the last `keep` blocks computed.
static void scratch_place(struct VisionScratch *s, Arena *a, const Vision *v, const Ops *d, bool training,
                          int64_t keep) {
    Type act = d->act_type;
    const VisionConfig *c = &v->c;
    BlockShape shape = shape_of(v);
    int64_t unit = c->merge * c->merge, P = s->P, U = P / unit, wide = c->C * unit;
    s->pixels = arena_padded(a, d, P, c->channels * c->temporal * c->patch * c->patch, F32);
    s->cast = act == F32 ? s->pixels : arena_padded(a, d, P, s->pixels.cols, act);
    s->embedded = arena_mat(a, P, c->C, act);
    for (int64_t j = 0; j < s->n_x; j++) s->x[j] = arena_mat(a, P, c->C, act);
    s->angles = arena_mat(a, P, c->dim, F32);
    s->order = arena_mat(a, U, 1, I32);
    s->inverse = arena_mat(a, U, 1, I32);
    s->window_rows = arena_mat(a, s->o.n_windows, 5, I32);
    s->full_rows = arena_mat(a, s->o.n_frames, 5, I32);
    block_scratch_place(&s->block, a, d, shape, P, training, NULL);
    s->hidden = arena_mat(a, U, wide, act);
    s->merged = arena_mat(a, U, c->out, act);
    lora_scratch_place(&s->merger_lora, a, d, v->rank, wide, v->dropout, training, U);
    s->normed = s->embedded, s->activated = mat_reshape(s->x[0], U, wide); // free again by then
    if (!training) return;
    s->keys = arena_mat(a, P, 2, I32), s->unit_keys = arena_mat(a, U, 2, I32);
    for (int64_t j = 0; j < c->depth; j++) {
        s->kept[j] = s->block;
        if (j >= c->depth - keep) block_scratch_place(&s->kept[j], a, d, shape, P, true, &s->block);
    }
    s->normed = arena_mat(a, P, c->C, act), s->rstd = arena_mat(a, P, 1, F32);
    s->activated = arena_mat(a, U, wide, act);
    s->dx = arena_mat(a, P, c->C, act), s->dnormed = arena_mat(a, P, c->C, act);
    s->dhidden = arena_mat(a, U, wide, act), s->dactivated = arena_mat(a, U, wide, act);
    s->dmerged = arena_mat(a, U, c->out, act);
    block_grad_place(&s->grad, a, d, shape, P);
}

static struct VisionScratch *scratch_new(const Vision *v, const Grid *grids, int n, bool training) {
    struct VisionScratch *s = alloc_or_die(1, sizeof *s, "the vision pass");
    for (int i = 0; i < n; i++) s->P += grid_patches(grids[i]);
    s->n_x = training ? v->c.depth + 1 : 1;
    s->x = alloc_or_die((size_t)s->n_x, sizeof *s->x, "the vision pass");
    s->kept = alloc_or_die((size_t)v->c.depth, sizeof *s->kept, "the vision pass");
    window_order(&s->o, &v->c, grids, n);
    return s;
}
static void scratch_free(struct VisionScratch *s) {
    if (!s) return;
    free((void *)(uintptr_t)s->windows.host), free((void *)(uintptr_t)s->full.host);
    window_order_free(&s->o);
    free(s->x), free(s->kept), free(s);
}

// Spans [starts[i], starts[i+1]) without a mask, on the host (to free) and the device.
static Spans spans_between(const Ops *d, const int32_t *starts, int64_t n, Mat rows) {
    Span *host = alloc_or_die((size_t)n, sizeof *host, "attention spans");
    Spans s = {rows, host, n, 0};
    for (int64_t i = 0; i < n; i++) {
        host[i] = (Span){starts[i], starts[i + 1], 0, 0, 0};
        if (starts[i + 1] - starts[i] > s.longest) s.longest = starts[i + 1] - starts[i];
    }
    d->upload(rows, mat(host, n, 5, I32));
    return s;
}

static void upload_tables(const Ops *d, const Vision *v, struct VisionScratch *s, const float *pixels,
                          const Grid *grids, int n) {
    const WindowOrder *o = &s->o;
    int32_t *inverse = alloc_or_die((size_t)o->units, sizeof *inverse, "window order");
    for (int64_t g = 0; g < o->units; g++) inverse[o->index[g]] = (int32_t)g;
    float *table = alloc_or_die((size_t)s->P, (size_t)v->c.dim * sizeof *table, "rotary table");
    rotary_table(&v->c, o, grids, n, table);
    d->upload(s->pixels, mat((void *)(uintptr_t)pixels, s->P, s->pixels.cols, F32));
    d->upload(s->angles, mat(table, s->P, v->c.dim, F32));
    d->upload(s->order, mat(o->index, o->units, 1, I32));
    d->upload(s->inverse, mat(inverse, o->units, 1, I32));
    s->windows = spans_between(d, o->starts, o->n_windows, s->window_rows);
    s->full = spans_between(d, o->full_starts, o->n_frames, s->full_rows);
    free(inverse), free(table);
}

// The keys of dropout follow their patches into window order; a unit goes by its first patch.
static void upload_keys(const Ops *d, const Vision *v, struct VisionScratch *s, const VisionTape *tape) {
    int64_t unit = v->c.merge * v->c.merge;
    int32_t *rows = alloc_or_die((size_t)s->P, 2 * sizeof *rows, "the keys of dropout");
    int32_t *units = alloc_or_die((size_t)s->o.units, 2 * sizeof *units, "the keys of dropout");
    for (int64_t g = 0; g < s->o.units; g++) {
        memcpy(rows + 2 * g * unit, tape->keys + 2 * s->o.index[g] * unit, (size_t)unit * 2 * sizeof *rows);
        memcpy(units + 2 * g, rows + 2 * g * unit, 2 * sizeof *units);
    }
    d->upload(s->keys, mat(rows, s->P, 2, I32));
    d->upload(s->unit_keys, mat(units, s->o.units, 2, I32));
    free(rows), free(units);
    s->merger_lora.keys = s->unit_keys, s->merger_lora.seed = tape->seed;
    s->block.lora.keys = s->keys, s->block.lora.seed = tape->seed;
    for (int64_t j = 0; j < v->c.depth; j++) s->kept[j].lora = s->block.lora;
}

static Spans spans_of(const Vision *v, const struct VisionScratch *s, int64_t j) {
    return v->c.full[j] ? s->full : s->windows;
}

static void tower_forward(const Ops *d, const Vision *v, Mat y, struct VisionScratch *s, bool training, Tap tap,
                          void *tap_ctx) {
    const VisionConfig *c = &v->c;
    int64_t U = s->o.units, wide = c->C * c->merge * c->merge;
    char name[64];
    trace_where("vision.patch_embed");
    if (s->cast.p != s->pixels.p) cast(d, s->cast, s->pixels);
    linear_forward(d, &v->patch_embed, s->embedded, s->cast, NULL);
    if (tap) tap(tap_ctx, "vision.patch_embed", d, s->embedded);
    gather_rows(d, mat_reshape(s->x[0], U, wide), mat_reshape(s->embedded, U, wide), s->order);

    Mat x = s->x[0];
    for (int64_t j = 0; j < c->depth; j++) {
        snprintf(name, sizeof name, "vision.block.%lld", (long long)j);
        trace_where(name);
        Mat next = training ? s->x[j + 1] : x;
        block_forward(d, &v->blocks[j], shape_of(v), training ? s->kept[j] : s->block, next, x, s->angles,
                      spans_of(v, s, j), NULL, NULL, NULL, NULL, NULL);
        x = next;
        if (tap) tap(tap_ctx, name, d, x);
    }

    trace_where("vision.merger");
    rmsnorm_forward(d, s->normed, s->rstd, x, v->ln_q.v, c->eps);
    linear_forward(d, &v->merger0, s->hidden, mat_reshape(s->normed, U, wide), &s->merger_lora);
    gelu_forward(d, s->activated, s->hidden);
    linear_forward(d, &v->merger2, s->merged, s->activated, &s->merger_lora);
    if (tap) tap(tap_ctx, "vision.merger_window_order", d, s->merged);
    gather_rows(d, y, s->merged, s->inverse);
    if (tap) tap(tap_ctx, "vision.output", d, y);
}

bool vision_forward(const Ops *d, const Vision *v, Mat y, const float *pixels, const Grid *grids, int n, Arena *arena,
                    Tap tap, void *tap_ctx, Err *e) {
    struct VisionScratch *s = scratch_new(v, grids, n, false);
    CHECK(y.rows == s->o.units && y.cols == v->c.out, "vision_forward: %lld rows for %lld patches", (long long)y.rows,
          (long long)s->P);
    Arena count = {.role = "activations"};
    scratch_place(s, &count, v, d, false, 0);
    bool ok = arena_reserve(arena, d, count.used, e);
    if (ok) {
        scratch_place(s, arena, v, d, false, 0);
        upload_tables(d, v, s, pixels, grids, n);
        tower_forward(d, v, y, s, false, tap, tap_ctx);
        d->sync(); // the host tables must outlive their use
    }
    scratch_free(s);
    return ok;
}

// ----------------------------------------------------------------------------------------------------------- training

size_t vision_bytes(const Ops *d, const Vision *v, const Grid *grids, int n, bool training, int64_t keep) {
    struct VisionScratch *s = scratch_new(v, grids, n, training);
    Arena count = {.role = "vision activations"};
    scratch_place(s, &count, v, d, training, keep);
    scratch_free(s);
    return count.used;
}

bool vision_forward_train(const Ops *d, const Vision *v, Mat y, const float *pixels, const Grid *grids, int n,
                          VisionTape *tape, Err *e) {
    CHECK(!tape->scratch, "vision_forward_train: the tape holds a pass that had no backward");
    struct VisionScratch *s = scratch_new(v, grids, n, true);
    CHECK(y.rows == s->o.units && y.cols == v->c.out, "vision_forward_train: %lld rows for %lld patches",
          (long long)y.rows, (long long)s->P);
    Arena count = {.role = "vision activations"};
    tape->arena.role = count.role;
    scratch_place(s, &count, v, d, true, tape->keep);
    if (!arena_reserve(&tape->arena, d, count.used, e)) {
        scratch_free(s);
        return false;
    }
    scratch_place(s, &tape->arena, v, d, true, tape->keep);
    upload_tables(d, v, s, pixels, grids, n);
    if (tape->keys) upload_keys(d, v, s, tape);
    tower_forward(d, v, y, s, true, NULL, NULL);
    tape->scratch = s;
    return true;
}

void vision_backward(const Ops *d, const Vision *v, Mat dy, VisionTape *tape) {
    struct VisionScratch *s = tape->scratch;
    const VisionConfig *c = &v->c;
    CHECK(s, "vision_backward: no forward pass before it");
    int64_t U = s->o.units, wide = c->C * c->merge * c->merge, lowest = 0;
    bool embed = v->patch_embed.w.d.p != NULL;
    while (!embed && lowest < c->depth && !block_trained(&v->blocks[lowest])) lowest++; // nothing learns below

    trace_where("vision.merger.backward");
    gather_rows(d, s->dmerged, dy, s->order);
    linear_backward(d, &v->merger2, s->dactivated, s->dmerged, s->activated, 0, &s->merger_lora);
    gelu_backward(d, s->dhidden, s->dactivated, s->hidden);
    linear_backward(d, &v->merger0, mat_reshape(s->dnormed, U, wide), s->dhidden, mat_reshape(s->normed, U, wide), 0,
                    &s->merger_lora);
    d->zero(s->dx);
    rmsnorm_backward_add(d, s->dx, v->ln_q.d, s->dnormed, s->x[c->depth], v->ln_q.v, s->rstd);
    for (int64_t j = c->depth - 1; j >= lowest; j--) {
        char name[64];
        snprintf(name, sizeof name, "vision.block.%lld.backward", (long long)j);
        trace_where(name);
        if (j < c->depth - 1 - tape->keep) // as in model.c; the next block's input is made again beside it
            block_forward(d, &v->blocks[j], shape_of(v), s->kept[j], s->x[j + 1], s->x[j], s->angles, spans_of(v, s, j),
                          NULL, NULL, NULL, NULL, NULL);
        block_backward(d, &v->blocks[j], shape_of(v), s->kept[j], s->grad, s->dx, s->x[j], s->angles,
                       spans_of(v, s, j));
    }
    trace_where("vision.patch_embed.backward");
    if (embed) {
        gather_rows(d, mat_reshape(s->embedded, U, wide), mat_reshape(s->dx, U, wide), s->inverse);
        linear_backward(d, &v->patch_embed, mat_none(), s->embedded, s->cast, 0, NULL);
    }
    d->sync();
    scratch_free(s);
    tape->scratch = NULL;
}

void vision_tape_close(const Ops *d, VisionTape *tape) {
    scratch_free(tape->scratch);
    arena_release(&tape->arena, d);
    *tape = (VisionTape){0};
}
