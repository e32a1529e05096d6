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

typedef struct VisionScratch {
    Mat pixels;         // F32 [P, patch length]
    Mat cast;           // the same in the activation type, when that is another
    Mat embedded, x;    // [P, C] in raster and in window order
    Mat angles;         // F32 [P, dim]
    Mat order, inverse; // I32 [P / unit, 1]
    Mat windows, full;  // I32 [spans, 5]
    BlockScratch block;
    Mat hidden, merged; // [P / unit, C * unit], [P / unit, out]
} VisionScratch;

static void scratch_place(VisionScratch *s, Arena *a, const VisionConfig *c, int64_t P, const WindowOrder *o,
                          Type act) {
    int64_t unit = c->merge * c->merge, length = c->channels * c->temporal * c->patch * c->patch;
    s->pixels = arena_mat(a, P, length, F32);
    s->cast = act == F32 ? s->pixels : arena_mat(a, P, length, act);
    s->embedded = arena_mat(a, P, c->C, act);
    s->x = arena_mat(a, P, c->C, act);
    s->angles = arena_mat(a, P, c->dim, F32);
    s->order = arena_mat(a, P / unit, 1, I32);
    s->inverse = arena_mat(a, P / unit, 1, I32);
    s->windows = arena_mat(a, o->n_windows, 5, I32);
    s->full = arena_mat(a, o->n_frames, 5, I32);
    block_scratch_place(&s->block, a, (BlockShape){c->C, c->heads, c->heads, c->dim, c->F, c->eps}, P, act);
    s->hidden = arena_mat(a, P / unit, c->C * unit, act);
    s->merged = arena_mat(a, P / unit, c->out, act);
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

bool vision_forward(const Ops *d, const Vision *v, Mat y, const float *pixels, const Grid *grids, int n, Arena *arena,
                    Tap tap, void *tap_ctx, Err *e) {
    const VisionConfig *c = &v->c;
    BlockShape shape = {c->C, c->heads, c->heads, c->dim, c->F, c->eps};
    int64_t unit = c->merge * c->merge, P = 0;
    for (int i = 0; i < n; i++) P += grid_patches(grids[i]);
    CHECK(y.rows == P / unit && y.cols == c->out, "vision_forward: %lld rows for %lld patches", (long long)y.rows,
          (long long)P);

    WindowOrder o;
    window_order(&o, c, grids, n);
    VisionScratch s;
    Arena count = {.role = "activations"};
    scratch_place(&s, &count, c, P, &o, d->act_type);
    if (!arena_reserve(arena, d, count.used, e)) {
        window_order_free(&o);
        return false;
    }
    scratch_place(&s, arena, c, P, &o, d->act_type);

    int32_t *inverse = alloc_or_die((size_t)o.units, sizeof *inverse, "window order");
    for (int64_t g = 0; g < o.units; g++) inverse[o.index[g]] = (int32_t)g;
    float *table = alloc_or_die((size_t)P, (size_t)c->dim * sizeof *table, "rotary table");
    rotary_table(c, &o, grids, n, table);
    d->upload(s.pixels, mat((void *)(uintptr_t)pixels, P, s.pixels.cols, F32));
    d->upload(s.angles, mat(table, P, c->dim, F32));
    d->upload(s.order, mat(o.index, o.units, 1, I32));
    d->upload(s.inverse, mat(inverse, o.units, 1, I32));
    Spans windows = spans_between(d, o.starts, o.n_windows, s.windows),
          full = spans_between(d, o.full_starts, o.n_frames, s.full);

    char name[64];
    trace_where("vision.patch_embed");
    if (s.cast.p != s.pixels.p) cast(d, s.cast, s.pixels);
    linear_forward(d, &v->patch_embed, s.embedded, s.cast);
    if (tap) tap(tap_ctx, "vision.patch_embed", d, s.embedded);
    gather_rows(d, mat_reshape(s.x, o.units, c->C * unit), mat_reshape(s.embedded, o.units, c->C * unit), s.order);

    for (int64_t j = 0; j < c->depth; j++) {
        snprintf(name, sizeof name, "vision.block.%lld", (long long)j);
        trace_where(name);
        block_forward(d, &v->blocks[j], shape, s.block, s.x, s.angles, c->full[j] ? full : windows, NULL, NULL, NULL,
                      NULL, NULL);
        if (tap) tap(tap_ctx, name, d, s.x);
    }

    trace_where("vision.merger");
    rmsnorm_forward(d, s.embedded, mat_none(), s.x, v->ln_q.v, c->eps);
    linear_forward(d, &v->merger0, s.hidden, mat_reshape(s.embedded, o.units, c->C * unit));
    gelu_forward(d, mat_reshape(s.x, o.units, c->C * unit), s.hidden);
    linear_forward(d, &v->merger2, s.merged, mat_reshape(s.x, o.units, c->C * unit));
    if (tap) tap(tap_ctx, "vision.merger_window_order", d, s.merged);
    gather_rows(d, y, s.merged, s.inverse);
    if (tap) tap(tap_ctx, "vision.output", d, y);

    d->sync(); // the host tables below must outlive their use
    free(inverse), free(table), free((void *)(uintptr_t)windows.host), free((void *)(uintptr_t)full.host);
    window_order_free(&o);
    return true;
}
