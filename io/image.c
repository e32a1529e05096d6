// image.c - pictures: JPEG and PNG to 8-bit RGB, Pillow's bicubic resize, PNG out, boxes and labels.
//
// What it is:  the doors to a picture file, what stands between stb_image and Pillow's pixels, and the drawing of
//              answers.
// What it is not: the judge of a file (io/image_check.c), or of the size that a model wants (vision.c, smart_resize).
// Formats:     ITU-T T.81 (JPEG); W3C PNG specification; RFC 1950 and 1951 (zlib, deflate).
// Read before: surgr1.h, section io/image.c; io/image_check.c.  Read next: vision.c.
#include "../surgr1.h"
#include <unistd.h>

// stb_image decodes, behind the check. Only its memory interface for two formats is compiled. Its JPEG half is used
// below its public door: it unpacks coefficients, and the transform, the chroma filter and the colour conversion here
// are libjpeg's, so that a JPEG has the pixels that Pillow gives it.
#define STB_IMAGE_IMPLEMENTATION
#define STBI_ONLY_JPEG
#define STBI_ONLY_PNG
#define STBI_NO_STDIO
#define STBI_NO_FAILURE_STRINGS
#define STBI_MAX_DIMENSIONS 8192 // LIMIT_IMAGE_SIDE
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wsign-compare"
#pragma GCC diagnostic ignored "-Wshadow"
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wunused-parameter"
#pragma GCC diagnostic ignored "-Wcast-qual"
#include <stb/stb_image.h>
#pragma GCC diagnostic pop

static bool no_memory(Err *e, const char *name, int width, int height, const char *what) {
    return err_set(
        e, "E-ME-01", AT(.file = name),
        "expected memory for %s of %d x %d pixels; found none; do: close other programs or use a smaller picture", what,
        width, height);
}

// ------------------------------------------------------------------------------------------------------------ JPEG

static uint8_t clamp8(int32_t v) { return (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v); }

// One pass of the inverse DCT, along each of the eight columns: Loeffler, Ligtenberg and Moschytz (1989) with 13-bit
// constants, rounded where libjpeg's "islow" transform (jidctint.c) rounds, which makes it the same function. Unsigned,
// because a damaged but well-formed file may hold coefficients that overflow.
static inline void idct_columns(int32_t *a, int shift) {
    for (int32_t *p = a; p < a + 8; p++) {
        uint32_t s0 = (uint32_t)p[0], s1 = (uint32_t)p[8], s2 = (uint32_t)p[16], s3 = (uint32_t)p[24];
        uint32_t s4 = (uint32_t)p[32], s5 = (uint32_t)p[40], s6 = (uint32_t)p[48], s7 = (uint32_t)p[56];
        uint32_t half = 1u << (shift - 1);
        uint32_t z = (s2 + s6) * 4433u;                     // 0.541196100
        uint32_t c2 = z - s6 * 15137u, c3 = z + s2 * 6270u; // 1.847759065, 0.765366865
        uint32_t c0 = (s0 + s4) * 8192u + half, c1 = (s0 - s4) * 8192u + half;
        uint32_t e0 = c0 + c3, e1 = c1 + c2, e2 = c1 - c2, e3 = c0 - c3;
        uint32_t z5 = (s7 + s3 + s5 + s1) * 9633u;                       // 1.175875602
        uint32_t z1 = (s7 + s1) * 7373u, z2 = (s5 + s3) * 20995u;        // 0.899976223, 2.562915447
        uint32_t z3 = z5 - (s7 + s3) * 16069u;                           // 1.961570560
        uint32_t z4 = z5 - (s5 + s1) * 3196u;                            // 0.390180644
        uint32_t o0 = s1 * 12299u - z1 + z4, o1 = s3 * 25172u - z2 + z3; // 1.501321110, 3.072711026
        uint32_t o2 = s5 * 16819u - z2 + z4, o3 = s7 * 2446u - z1 + z3;  // 2.053119869, 0.298631336
        p[0] = (int32_t)(e0 + o0) >> shift, p[56] = (int32_t)(e0 - o0) >> shift;
        p[8] = (int32_t)(e1 + o1) >> shift, p[48] = (int32_t)(e1 - o1) >> shift;
        p[16] = (int32_t)(e2 + o2) >> shift, p[40] = (int32_t)(e2 - o2) >> shift;
        p[24] = (int32_t)(e3 + o3) >> shift, p[32] = (int32_t)(e3 - o3) >> shift;
    }
}

static void idct_block(stbi_uc *out, int stride, short data[64]) {
    int32_t a[64], b[64];
    short dc = data[0], any = 0;
    data[0] = 0;
    for (int i = 0; i < 64; i++) any |= data[i];
    if (!any) { // most blocks of smooth pictures: what the two passes give for a constant
        uint8_t v = clamp8(((dc * 4 + 16) >> 5) + 128);
        for (int y = 0; y < 8; y++) memset(out + (ptrdiff_t)y * stride, v, 8);
        return;
    }
    data[0] = dc;
    for (int i = 0; i < 64; i++) a[i] = data[i];
    idct_columns(a, 11);
    for (int y = 0; y < 8; y++)
        for (int x = 0; x < 8; x++) b[8 * x + y] = a[8 * y + x];
    idct_columns(b, 18);
    for (int y = 0; y < 8; y++)
        for (int x = 0; x < 8; x++) out[(ptrdiff_t)y * stride + x] = clamp8(b[8 * x + y] + 128);
}

// Row y of component c at full resolution into out, by libjpeg's rules (jdsample.c): a factor of 2 in x, in y or in
// both is a triangle filter (3/4 near, 1/4 far; its rounding alternates), any other factor repeats. scratch: one row.
static void upsample_row(const stbi__jpeg *j, int c, int y, uint8_t *out, uint16_t *scratch) {
    int hs = j->img_h_max / j->img_comp[c].h, vs = j->img_v_max / j->img_comp[c].v;
    int n = j->img_comp[c].x, rows = j->img_comp[c].y, stride = j->img_comp[c].w2, row = y / vs;
    const uint8_t *near = j->img_comp[c].data + (ptrdiff_t)row * stride, *far = near;
    bool lower = y % 2;
    if (vs == 2 && (lower ? row + 1 < rows : row > 0)) far += lower ? stride : -stride;
    if (hs == 1 && vs == 2) {
        for (int x = 0; x < n; x++) out[x] = (uint8_t)((3 * near[x] + far[x] + (lower ? 2 : 1)) >> 2);
    } else if (hs == 2 && vs <= 2 && n > 2) {
        int shift = vs == 2 ? 4 : 2;
        int round_left = vs == 2 ? 8 : 1, round_right = vs == 2 ? 7 : 2;
        for (int x = 0; x < n; x++) scratch[x] = (uint16_t)(vs == 2 ? 3 * near[x] + far[x] : near[x]);
        for (int x = 0; x < n; x++) {
            int here = scratch[x], left = x > 0 ? scratch[x - 1] : here, right = x + 1 < n ? scratch[x + 1] : here;
            out[2 * x] = (uint8_t)((3 * here + left + round_left) >> shift);
            out[2 * x + 1] = (uint8_t)((3 * here + right + round_right) >> shift);
        }
    } else if (hs == 1) {
        memcpy(out, near, (size_t)n);
    } else {
        for (int x = 0; x < n * hs; x++) out[x] = near[x / hs];
    }
}

static bool decode_jpeg(Image *im, const ImageFacts *f, const char *name, Err *e) {
    stbi__context s;
    stbi__jpeg *j = calloc(1, sizeof *j);
    int width = f->width, height = f->height;
    size_t row_bytes = (size_t)width + 8; // a repeated sample may pass the edge by 3
    uint8_t *rows = malloc(3 * row_bytes);
    uint16_t *scratch = malloc(row_bytes * sizeof *scratch);
    bool ok = false;
    if (!j || !rows || !scratch) {
        no_memory(e, name, width, height, "a JPEG");
        goto done;
    }
    stbi__start_mem(&s, f->jpeg, (int)f->jpeg_size);
    j->s = &s, s.img_n = 0;
    stbi__setup_jpeg(j);
    j->idct_block_kernel = idct_block;
    bool decoded = stbi__decode_jpeg_image(j);
    for (int c = 0; c < 4; c++) { // a progressive picture's coefficients are most of its memory: back before the pixels
        free(j->img_comp[c].raw_coeff);
        j->img_comp[c].raw_coeff = NULL;
    }
    if (!decoded || (int)s.img_x != width || (int)s.img_y != height || s.img_n != f->components) {
        err_set(
            e, "E-IM-08", AT(.file = name),
            "expected a JPEG of %d x %d pixels that decodes in memory; found that the decoder gave up; do: save the "
            "picture again",
            width, height);
        goto done;
    }
    im->rgb = malloc((size_t)width * (size_t)height * 3);
    if (!im->rgb) {
        no_memory(e, name, width, height, "a picture");
        goto done;
    }
    for (int y = 0; y < height; y++) {
        uint8_t *out = im->rgb + (size_t)y * (size_t)width * 3;
        for (int c = 0; c < s.img_n; c++) upsample_row(j, c, y, rows + (size_t)c * row_bytes, scratch);
        const uint8_t *p0 = rows, *p1 = rows + row_bytes, *p2 = p1 + row_bytes;
        for (int x = 0; x < width; x++, out += 3) {
            if (s.img_n == 1) {
                out[0] = out[1] = out[2] = p0[x];
            } else if (f->coded_rgb) {
                out[0] = p0[x], out[1] = p1[x], out[2] = p2[x];
            } else { // JFIF's YCbCr with 16-bit constants, rounded as libjpeg's jdcolor.c does
                int luma = p0[x], cb = p1[x] - 128, cr = p2[x] - 128;
                out[0] = clamp8(luma + ((91881 * cr + 32768) >> 16));
                out[1] = clamp8(luma + ((-22554 * cb - 46802 * cr + 32768) >> 16));
                out[2] = clamp8(luma + ((116130 * cb + 32768) >> 16));
            }
        }
    }
    ok = true;
done:
    if (j && j->s) stbi__cleanup_jpeg(j);
    free(j), free(rows), free(scratch);
    return ok;
}

// ------------------------------------------------------------------------------------------------------------- PNG

static bool decode_png(Image *im, const ImageFacts *f, const uint8_t *data, size_t size, const char *name,
                       bool alpha_white, Err *e) {
    // Only what Pillow opens as RGBA is laid over white (qwen-vl-utils asks for the mode): 8-bit grey with alpha is
    // not.
    bool blend = alpha_white && (f->components == 4 || (f->components == 2 && f->depth == 16));
    int width = 0, height = 0, channels = 0;
    uint8_t *pixels = stbi_load_from_memory(data, (int)size, &width, &height, &channels, blend ? 4 : 3);
    if (!pixels || width != f->width || height != f->height) {
        free(pixels);
        return err_set(
            e, "E-IM-08", AT(.file = name),
            "expected a PNG of %d x %d pixels that decodes in memory; found that the decoder gave up; do: save "
            "the picture again",
            f->width, f->height);
    }
    int64_t n = (int64_t)width * height;
    for (int64_t i = 0; blend && i < n; i++) { // in place: RGB never overtakes RGBA
        uint32_t alpha = pixels[4 * i + 3];
        for (int c = 0; c < 3; c++) { // rounded as Pillow's paste does: x / 255 to nearest
            uint32_t v = pixels[4 * i + c] * alpha + 255 * (255 - alpha) + 128;
            pixels[3 * i + c] = (uint8_t)((v + (v >> 8)) >> 8);
        }
    }
    im->rgb = pixels;
    return true;
}

// ------------------------------------------------------------------------------------------------------------ files

// Turns the pixels by an EXIF orientation of 2 to 8.
static bool orient(Image *im, int orientation) {
    int w = im->width, h = im->height;
    bool swap = orientation >= 5;
    int out_w = swap ? h : w, out_h = swap ? w : h;
    uint8_t *out = malloc((size_t)w * (size_t)h * 3);
    if (!out) return false;
    for (int y = 0; y < out_h; y++)
        for (int x = 0; x < out_w; x++) {
            int column = swap ? y : x, row = swap ? x : y; // in the stored picture
            if (orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8) column = w - 1 - column;
            if (orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7) row = h - 1 - row;
            memcpy(out + ((size_t)y * (size_t)out_w + (size_t)x) * 3,
                   im->rgb + ((size_t)row * (size_t)w + (size_t)column) * 3, 3);
        }
    free(im->rgb);
    im->rgb = out, im->width = out_w, im->height = out_h;
    return true;
}

bool image_decode(Image *im, const uint8_t *data, size_t size, const char *name, ImageOptions options, Err *e) {
    ImageFacts f;
    memset(im, 0, sizeof *im);
    if (!image_check(&f, data, size, name, false, e)) return false;
    im->width = f.width, im->height = f.height, im->orientation = f.orientation;
    bool ok = f.jpeg ? decode_jpeg(im, &f, name, e) : decode_png(im, &f, data, size, name, options.alpha_white, e);
    free(f.jpeg);
    if (ok && options.apply_orientation && f.orientation != 1 && !orient(im, f.orientation))
        ok = no_memory(e, name, f.width, f.height, "a turned picture");
    if (!ok) {
        image_free(im);
        return false;
    }
    if (f.orientation != 1 && !options.apply_orientation)
        warn("E-IM-07", AT(.file = name),
             "expected pixels in upright order; found EXIF orientation %d; do: nothing, the pixels are used as stored",
             f.orientation);
    if (f.depth == 16 && f.components == 1)
        warn("E-IM-07", AT(.file = name),
             "expected grey samples of at most 8 bits; found 16; do: nothing, the high byte is used (Pillow would "
             "clip)");
    return true;
}

bool image_read(Image *im, const char *path, ImageOptions options, Err *e) {
    char *data;
    size_t size;
    memset(im, 0, sizeof *im);
    if (!file_read(path, LIMIT_IMAGE_BYTES, "E-IM-01", &data, &size, e)) return false;
    bool ok = image_decode(im, (const uint8_t *)data, size, path, options, e);
    free(data);
    return ok;
}

bool image_read_beneath(Image *im, const char *root, const char *path, Where at, ImageOptions options, Err *e) {
    char *data = NULL;
    size_t size;
    int fd = open_beneath(root, path, "E-DS-04", at, e);
    if (fd < 0) return false;
    bool ok = file_read_fd(fd, path, LIMIT_IMAGE_BYTES, "E-IM-01", &data, &size, e);
    close(fd);
    ok = ok && image_decode(im, (const uint8_t *)data, size, path, options, e);
    free(data);
    return ok;
}

bool image_info(const char *path, int *width, int *height, const char **format, int *orientation, Err *e) {
    char *data;
    size_t size;
    ImageFacts f;
    if (!file_read(path, LIMIT_IMAGE_BYTES, "E-IM-01", &data, &size, e)) return false;
    bool ok = image_check(&f, (const uint8_t *)data, size, path, true, e);
    free(data);
    if (ok) *width = f.width, *height = f.height, *format = f.format, *orientation = f.orientation;
    return ok;
}

void image_free(Image *im) {
    free(im->rgb);
    memset(im, 0, sizeof *im);
}

// ------------------------------------------------------------------------------------------------------------ resize
// Pillow's ImagingResample for 8-bit samples (src/libImaging/Resample.c): two passes with 8-bit pixels between them,
// integer weights with 22 fractional bits.

enum { WEIGHT_BITS = 22 };
typedef struct Weights { // of one pass: out[i] = sum over k < count[i] of w[i * taps + k] * in[from[i] + k]
    int taps, *from, *count;
    int32_t *w;
} Weights;

static double bicubic(double t) { // Keys' kernel, a = -0.5
    t = fabs(t);
    if (t < 1) return ((-0.5 + 2.0) * t - (-0.5 + 3.0)) * t * t + 1;
    if (t < 2) return (((t - 5) * t + 8) * t - 4) * -0.5;
    return 0;
}

static Weights weights_make(int in, int out) {
    double scale = (double)in / out, stretch = scale < 1 ? 1 : scale, support = 2 * stretch, inverse = 1 / stretch;
    Weights p = {.taps = (int)ceil(support) * 2 + 1};
    p.from = alloc_or_die((size_t)out, sizeof *p.from, "resize weights");
    p.count = alloc_or_die((size_t)out, sizeof *p.count, "resize weights");
    p.w = alloc_or_die((size_t)out * (size_t)p.taps, sizeof *p.w, "resize weights");
    double *exact = alloc_or_die((size_t)p.taps, sizeof *exact, "resize weights");
    for (int i = 0; i < out; i++) {
        double centre = (i + 0.5) * scale, sum = 0;
        int from = (int)(centre - support + 0.5), to = (int)(centre + support + 0.5); // toward zero, as in C
        from = from < 0 ? 0 : from, to = to > in ? in : to;
        p.from[i] = from, p.count[i] = to - from;
        for (int k = 0; k < to - from; k++) sum += exact[k] = bicubic((k + from - centre + 0.5) * inverse);
        for (int k = 0; k < to - from; k++) {
            double w = sum != 0 ? exact[k] / sum : exact[k];
            p.w[(int64_t)i * p.taps + k] = (int32_t)(w * (1 << WEIGHT_BITS) + (w < 0 ? -0.5 : 0.5));
        }
    }
    free(exact);
    return p;
}

static void weights_free(Weights *p) { free(p->from), free(p->count), free(p->w); }

static uint8_t weighted(int32_t sum) { return clamp8(sum >> WEIGHT_BITS); }

// Rows [first, last) of in, each from in_w to out_w pixels; out starts at row `first`.
static void resize_rows(uint8_t *out, int out_w, const uint8_t *in, int in_w, int first, int last) {
    Weights p = weights_make(in_w, out_w);
    for (int y = first; y < last; y++) {
        const uint8_t *row = in + (size_t)y * (size_t)in_w * 3;
        for (int x = 0; x < out_w; x++, out += 3) {
            const uint8_t *s = row + 3 * (ptrdiff_t)p.from[x];
            const int32_t *w = p.w + (int64_t)x * p.taps;
            int32_t r = 1 << (WEIGHT_BITS - 1), g = r, b = r;
            for (int k = 0; k < p.count[x]; k++, s += 3) r += w[k] * s[0], g += w[k] * s[1], b += w[k] * s[2];
            out[0] = weighted(r), out[1] = weighted(g), out[2] = weighted(b);
        }
    }
    weights_free(&p);
}

// To out_h rows of `width` pixels with weights p; in starts at row `first`.
static void resize_columns(uint8_t *out, int out_h, const uint8_t *in, int first, int width, const Weights *p) {
    size_t n = (size_t)width * 3;
    int32_t *sum = alloc_or_die(n, sizeof *sum, "a resized row");
    for (int y = 0; y < out_h; y++, out += n) {
        for (size_t i = 0; i < n; i++) sum[i] = 1 << (WEIGHT_BITS - 1);
        for (int k = 0; k < p->count[y]; k++) {
            const uint8_t *row = in + (size_t)(p->from[y] + k - first) * n;
            int32_t w = p->w[(int64_t)y * p->taps + k];
            for (size_t i = 0; i < n; i++) sum[i] += w * row[i];
        }
        for (size_t i = 0; i < n; i++) out[i] = weighted(sum[i]);
    }
    free(sum);
}

void image_resize_bicubic(uint8_t *out, int out_w, int out_h, const uint8_t *in, int in_w, int in_h) {
    CHECK(out_w > 0 && out_h > 0 && in_w > 0 && in_h > 0, "a resize from %d x %d to %d x %d", in_w, in_h, out_w, out_h);
    if (out_w == in_w && out_h == in_h) {
        memcpy(out, in, (size_t)in_w * (size_t)in_h * 3);
        return;
    }
    if (out_h == in_h) {
        resize_rows(out, out_w, in, in_w, 0, in_h);
        return;
    }
    Weights p = weights_make(in_h, out_h);
    if (out_w == in_w) {
        resize_columns(out, out_h, in, 0, in_w, &p);
    } else if (out_h < in_h && in_h - out_h > 2 * (in_w - out_w)) {
        // Pillow 13 (its pull request 9549, measured against 13.0): columns first when the height shrinks by more than
        // twice what the width does, in pixels. Releases before 12.2 never do; 12.2 does for heights over 100 widths.
        uint8_t *between = alloc_or_die((size_t)out_h * (size_t)in_w, 3, "a resized picture");
        resize_columns(between, out_h, in, 0, in_w, &p);
        resize_rows(out, out_w, between, in_w, 0, out_h);
        free(between);
    } else { // rows first, and only those that the columns need
        int first = p.from[0], last = p.from[out_h - 1] + p.count[out_h - 1];
        uint8_t *between = alloc_or_die((size_t)(last - first) * (size_t)out_w, 3, "a resized picture");
        resize_rows(between, out_w, in, in_w, first, last);
        resize_columns(out, out_h, between, first, out_w, &p);
        free(between);
    }
    weights_free(&p);
}

// --------------------------------------------------------------------------------------------------------- PNG out

typedef struct Bits { // deflate's bit order: lowest first
    uint8_t *p;
    uint64_t bits;
    int n;
} Bits;

static void put_bits(Bits *b, uint32_t value, int n) {
    b->bits |= (uint64_t)value << b->n, b->n += n;
    for (; b->n >= 8; b->n -= 8, b->bits >>= 8) *b->p++ = (uint8_t)b->bits;
}

typedef struct Code { // a Huffman code that is built from counts
    uint32_t count[286];
    uint8_t length[286];
    uint16_t bits[286]; // reversed, as deflate writes them
} Code;

// Huffman's construction over n symbols, lengths of at most 15. Fewer than two used symbols are padded to two.
static void code_build(Code *c, int n) {
    uint32_t weight[2 * 286];
    int parent[2 * 286];
    for (int i = 0, used = 0; i < n && used < 2; i++) // used: of the first symbols, so that two have a count
        used += c->count[i] > 0 || i < 2, c->count[i] += i < 2 && c->count[i] == 0;
    for (int longest = 16; longest > 15;) {
        int nodes = n;
        for (int i = 0; i < n; i++) weight[i] = c->count[i], parent[i] = -1;
        for (;; nodes++) { // join the two lightest roots until one is left
            int a = -1, b = -1;
            for (int i = 0; i < nodes; i++) {
                if (parent[i] >= 0 || (i < n && weight[i] == 0)) continue;
                if (a < 0 || weight[i] < weight[a]) b = a, a = i;
                else if (b < 0 || weight[i] < weight[b]) b = i;
            }
            if (b < 0) break;
            weight[nodes] = weight[a] + weight[b], parent[nodes] = -1, parent[a] = parent[b] = nodes;
        }
        longest = 0;
        for (int i = 0; i < n; i++) {
            int length = 0;
            for (int k = i; parent[k] >= 0; k = parent[k]) length++;
            c->length[i] = (uint8_t)length;
            longest = length > longest ? length : longest;
            if (c->count[i]) c->count[i] = (c->count[i] + 1) / 2; // flatter, should a code be too long
        }
    }
    for (uint32_t length = 1, code = 0; length <= 15; length++, code <<= 1)
        for (int i = 0; i < n; i++) {
            if (c->length[i] != length) continue;
            uint32_t reversed = 0;
            for (uint32_t b = 0; b < length; b++) reversed |= (code >> b & 1) << (length - 1 - b);
            c->bits[i] = (uint16_t)reversed, code++;
        }
}

// RFC 1951, 3.2.5: the symbol of a length or a distance, and its extra bits; v counts from the smallest. group: 4
// length or 2 distance symbols share a number of extra bits.
static int deflate_symbol(uint32_t v, uint32_t group, int *extra) {
    *extra = 0;
    if (v < 2 * group) return (int)v;
    *extra = 31 - __builtin_clz(v) - (group == 4 ? 2 : 1);
    return (int)group * *extra + (int)(v >> *extra);
}
static int length_symbol(uint32_t length, int *extra) {
    return length == 258 ? (*extra = 0, 285) : 257 + deflate_symbol(length - 3, 4, extra);
}

enum { TOKENS = 1 << 16, HASH_BITS = 15 };
typedef struct Deflate {
    uint32_t token[TOKENS]; // a literal, or length << 16 | distance
    int64_t seen[1 << HASH_BITS];
    Code literals, distances;
} Deflate;

static void deflate_block(Deflate *z, Bits *b, int n, bool last) {
    int extra = 0;
    memset(&z->literals, 0, sizeof z->literals), memset(&z->distances, 0, sizeof z->distances);
    z->literals.count[256] = 1;
    for (int i = 0; i < n; i++) {
        uint32_t length = z->token[i] >> 16, distance = z->token[i] & 0xFFFF;
        if (!length) z->literals.count[distance]++;
        else
            z->literals.count[length_symbol(length, &extra)]++,
                z->distances.count[deflate_symbol(distance - 1, 2, &extra)]++;
    }
    code_build(&z->literals, 286), code_build(&z->distances, 30);
    // The lengths of both codes, each as a four-bit number: a code of 16 symbols of four bits needs no runs to be
    // small.
    put_bits(b, last, 1), put_bits(b, 2, 2), put_bits(b, 286 - 257, 5), put_bits(b, 30 - 1, 5), put_bits(b, 19 - 4, 4);
    for (int i = 0; i < 19; i++) put_bits(b, i < 3 ? 0 : 4, 3);
    for (int i = 0; i < 286 + 30; i++) {
        uint32_t length = i < 286 ? z->literals.length[i] : z->distances.length[i - 286];
        put_bits(b, (length & 1) << 3 | (length & 2) << 1 | (length & 4) >> 1 | length >> 3, 4);
    }
    for (int i = 0; i < n; i++) {
        uint32_t length = z->token[i] >> 16, distance = z->token[i] & 0xFFFF;
        int symbol = length ? length_symbol(length, &extra) : (int)distance;
        put_bits(b, z->literals.bits[symbol], z->literals.length[symbol]);
        if (!length) continue;
        put_bits(b, (length - 3) & ((1u << extra) - 1), extra);
        symbol = deflate_symbol(distance - 1, 2, &extra);
        put_bits(b, z->distances.bits[symbol], z->distances.length[symbol]);
        put_bits(b, (distance - 1) & ((1u << extra) - 1), extra);
    }
    put_bits(b, z->literals.bits[256], z->literals.length[256]);
}

// A zlib stream of in[n] at out; returns its size, at most n + n / 4 + 1024. Greedy matches against the last place with
// the same three bytes.
static size_t deflate(uint8_t *out, const uint8_t *in, int64_t n) {
    Deflate *z = alloc_or_die(1, sizeof *z, "PNG compression");
    Bits b = {.p = out};
    put_bits(&b, 0x78, 8), put_bits(&b, 0x01, 8);
    for (int i = 0; i < 1 << HASH_BITS; i++) z->seen[i] = INT64_MIN / 2;
    int tokens = 0;
    for (int64_t i = 0; i < n;) {
        int64_t length = 0, distance = 0;
        if (n - i >= 4) {
            uint32_t hash = ((uint32_t)in[i] << 16 | (uint32_t)in[i + 1] << 8 | in[i + 2]) * 2654435761u;
            int64_t *seen = &z->seen[hash >> (32 - HASH_BITS)];
            distance = i - *seen, *seen = i;
            if (distance <= 32768)
                while (length < 258 && i + length < n && in[i + length] == in[i + length - distance]) length++;
        }
        bool match = length >= 4;
        z->token[tokens++] = match ? (uint32_t)length << 16 | (uint32_t)distance : in[i];
        i += match ? length : 1;
        if (tokens == TOKENS && i < n) deflate_block(z, &b, tokens, false), tokens = 0;
    }
    deflate_block(z, &b, tokens, true);
    put_bits(&b, 0, (8 - b.n) & 7);
    uint32_t adler = png_adler(1, in, (size_t)n);
    for (int i = 24; i >= 0; i -= 8) *b.p++ = (uint8_t)(adler >> i);
    free(z);
    return (size_t)(b.p - out);
}

static uint8_t *put_be32(uint8_t *p, uint32_t v) {
    for (int i = 24; i >= 0; i -= 8) *p++ = (uint8_t)(v >> i);
    return p;
}

static uint8_t *put_chunk(uint8_t *p, const char *type, size_t n) { // the n bytes of data are at p + 8
    put_be32(p, (uint32_t)n), memcpy(p + 4, type, 4);
    return put_be32(p + 8 + n, png_crc(0, p + 4, n + 4));
}

// A row with filter `kind` (PNG, 9.2) into out[1 + n]; returns the sum of magnitudes, by which the best is chosen.
static int64_t filter_row(uint8_t *out, int kind, const uint8_t *row, const uint8_t *above, size_t n) {
    int64_t sum = 0;
    out[0] = (uint8_t)kind;
    for (size_t i = 0; i < n; i++) {
        int a = i < 3 ? 0 : row[i - 3], b = above ? above[i] : 0, c = above && i >= 3 ? above[i - 3] : 0;
        int pa = abs(b - c), pb = abs(a - c), pc = abs(a + b - 2 * c);
        int paeth = pa <= pb && pa <= pc ? a : pb <= pc ? b : c;
        int guess = kind == 0 ? 0 : kind == 1 ? a : kind == 2 ? b : kind == 3 ? (a + b) / 2 : paeth;
        out[1 + i] = (uint8_t)(row[i] - guess);
        sum += abs((int8_t)out[1 + i]);
    }
    return sum;
}

bool image_encode_png(uint8_t **png, size_t *size, const uint8_t *rgb, int width, int height, const char *name,
                      Err *e) {
    CHECK(width > 0 && height > 0 && width <= LIMIT_IMAGE_SIDE && height <= LIMIT_IMAGE_SIDE, "a PNG of %d x %d", width,
          height);
    size_t row_bytes = (size_t)width * 3, raw = (1 + row_bytes) * (size_t)height;
    uint8_t *filtered = malloc(raw), *file = malloc(raw + raw / 4 + 2048), *trial = malloc(1 + row_bytes), *p = file;
    if (!filtered || !file || !trial) {
        free(filtered), free(file), free(trial);
        return no_memory(e, name, width, height, "a PNG");
    }
    for (int y = 0; y < height; y++) {
        const uint8_t *row = rgb + (size_t)y * row_bytes, *above = y ? row - row_bytes : NULL;
        uint8_t *best = filtered + (size_t)y * (1 + row_bytes);
        int64_t least = filter_row(best, 0, row, above, row_bytes);
        for (int kind = 1; kind <= 4; kind++) {
            int64_t sum = filter_row(trial, kind, row, above, row_bytes);
            if (sum < least) least = sum, memcpy(best, trial, 1 + row_bytes);
        }
    }
    memcpy(p, "\x89PNG\r\n\x1a\n", 8), p += 8;
    memcpy(put_be32(put_be32(p + 8, (uint32_t)width), (uint32_t)height), "\x08\x02\0\0\0", 5); // 8-bit RGB
    p = put_chunk(p, "IHDR", 13);
    p = put_chunk(p, "IDAT", deflate(p + 8, filtered, (int64_t)raw));
    p = put_chunk(p, "IEND", 0);
    free(filtered), free(trial);
    *png = file, *size = (size_t)(p - file);
    return true;
}

bool image_write_png(const char *path, const uint8_t *rgb, int width, int height, Err *e) {
    uint8_t *png;
    size_t size;
    if (!image_encode_png(&png, &size, rgb, width, height, path, e)) return false;
    bool ok = file_write_atomic(path, png, size, e);
    free(png);
    return ok;
}

// ---------------------------------------------------------------------------------------------------------- drawing

// Glyphs of 5 x 7 pixels for ASCII 32 to 126: 35 bits, rows from the top, the left pixel in the highest bit.
enum { GLYPH_W = 5, GLYPH_H = 7 };
static const uint64_t font[95] = {
    0x000000000, 0x108421004, 0x294A00000, 0x295F57D4A, 0x11F4717C4, 0x632222263, 0x22944564D, 0x108800000, 0x088842082,
    0x208210888, 0x009575480, 0x0084F9080, 0x000003088, 0x0000F8000, 0x00000018C, 0x002222200, 0x3A33AE62E, 0x11842108E,
    0x3A211111F, 0x7C441062E, 0x08CA97C42, 0x7E1E0862E, 0x1910F462E, 0x7C2222108, 0x3A317462E, 0x3A317844C, 0x018C03180,
    0x018C03088, 0x088882082, 0x001F07C00, 0x208208888, 0x3A2111004, 0x3A216D6AE, 0x3A318FE31, 0x7A31F463E, 0x3A308422E,
    0x72518C65C, 0x7E10F421F, 0x7E10F4210, 0x3A30BC62F, 0x4631FC631, 0x38842108E, 0x1C4210A4C, 0x4654C5251, 0x42108421F,
    0x4775AC631, 0x4639ACE31, 0x3A318C62E, 0x7A31F4210, 0x3A318D64D, 0x7A31F5251, 0x3E107043E, 0x7C8421084, 0x46318C62E,
    0x46318C544, 0x4631AD771, 0x462A22A31, 0x462A21084, 0x7C222221F, 0x39084210E, 0x020820820, 0x38421084E, 0x115100000,
    0x00000001F, 0x208200000, 0x000E0BE2F, 0x4216CC63E, 0x000E8422E, 0x042D9C62F, 0x000E8FE0E, 0x1928E2108, 0x01F18BC2E,
    0x4216CC631, 0x100C2108E, 0x080610A4C, 0x4212A6292, 0x30842108E, 0x001AAD6B5, 0x0016CC631, 0x000E8C62E, 0x001E8FA10,
    0x000D9BC21, 0x0016CC210, 0x000F8383E, 0x211C42126, 0x00118C66D, 0x00118C544, 0x00118D6AA, 0x001151151, 0x00118BC2E,
    0x001F1111F, 0x0C8441083, 0x108421084, 0x608411098, 0x0008A8800,
};

static void fill(Image *im, int x1, int y1, int x2, int y2, const uint8_t colour[3]) { // clipped
    x1 = x1 < 0 ? 0 : x1, y1 = y1 < 0 ? 0 : y1;
    x2 = x2 > im->width ? im->width : x2, y2 = y2 > im->height ? im->height : y2;
    for (int y = y1; y < y2; y++)
        for (int x = x1; x < x2; x++) memcpy(im->rgb + ((size_t)y * (size_t)im->width + (size_t)x) * 3, colour, 3);
}

static int to_pixel(double v, int side) { // nearest edge inside the picture; 0 for what is no number
    return !(v > 0) ? 0 : v >= side ? side : (int)(v + 0.5);
}

void image_draw_box(Image *im, double x1, double y1, double x2, double y2, const uint8_t colour[3], int thick,
                    const char *label) {
    int left = to_pixel(x1 < x2 ? x1 : x2, im->width), right = to_pixel(x1 < x2 ? x2 : x1, im->width);
    int top = to_pixel(y1 < y2 ? y1 : y2, im->height), bottom = to_pixel(y1 < y2 ? y2 : y1, im->height);
    thick = thick < 1 ? 1 : thick > 64 ? 64 : thick;
    fill(im, left, top, right, top + thick < bottom ? top + thick : bottom, colour);
    fill(im, left, bottom - thick > top ? bottom - thick : top, right, bottom, colour);
    fill(im, left, top, left + thick < right ? left + thick : right, bottom, colour);
    fill(im, right - thick > left ? right - thick : left, top, right, bottom, colour);
    if (!label || !*label) return;

    // The label stands above the box; inside it where the picture ends; and never to the right of the picture.
    size_t length = strlen(label);
    int scale = 1 + thick / 2, cell = (GLYPH_W + 1) * scale, fits = im->width / cell;
    int n = length < (size_t)fits ? (int)length : fits, w = n * cell + scale, h = (GLYPH_H + 2) * scale;
    int x = left + w > im->width ? im->width - w : left, y = top >= h ? top - h : top;
    x = x < 0 ? 0 : x;
    static const uint8_t black[3] = {0, 0, 0}, white[3] = {255, 255, 255};
    bool light = 299 * colour[0] + 587 * colour[1] + 114 * colour[2] > 140 * 1000;
    fill(im, x, y, x + w, y + h, colour);
    for (int i = 0; i < n; i++) {
        unsigned char c = (unsigned char)label[i];
        uint64_t glyph = font[(c < 32 || c > 126 ? '?' : c) - 32];
        for (int bit = 0; bit < GLYPH_W * GLYPH_H; bit++) {
            if (!(glyph >> (GLYPH_W * GLYPH_H - 1 - bit) & 1)) continue;
            int px = x + scale + i * cell + bit % GLYPH_W * scale, py = y + scale + bit / GLYPH_W * scale;
            fill(im, px, py, px + scale, py + scale, light ? black : white);
        }
    }
}
