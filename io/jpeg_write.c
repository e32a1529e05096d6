// jpeg_write.c - 8-bit RGB to a baseline JPEG file: integer arithmetic throughout, so equal pixels give equal bytes.
//
// What it is:  YCbCr, 4:4:4 or 4:2:0, the forward DCT, quantisation, and Huffman coding with the tables that T.81
//              prints as typical.
// What it is not: a decoder (io/image.c) or the smallest file (no tables fitted to the picture, no progressive scans).
// Formats:     ITU-T T.81 (JPEG): B (markers), F.1 (coding), K.1 to K.3 (tables); ITU-T T.871 (JFIF).
// Read before: surgr1.h, section io/image.c.  Read next: io/image_check.c, which reads the same markers back.
#include "../surgr1.h"

typedef struct Jpeg {
    uint8_t *p; // the file so far
    size_t n, room;
    uint32_t bits; // not yet written, the last one lowest
    int n_bits;    // at most 7 between two codes
    int32_t quant[2][64];
    struct JpegCode {
        uint16_t code[256];
        uint8_t length[256];
    } dc[2], ac[2]; // of luma and of chroma
} Jpeg;

// T.81, figure A.6: the place in the block (row by row) of the k-th coefficient of the file.
static const uint8_t zigzag[64] = {0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,
                                   12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6,  7,  14, 21, 28,
                                   35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51,
                                   58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63};

// T.81, tables K.1 (luma) and K.2 (chroma), row by row.
static const uint8_t typical_quant[2][64] = {
    {16, 11,  10,  16, 24, 40, 51, 61, 12,  12,  14,  19,  26, 58, 60, 55,  14,  13,  16,  24, 40, 57,
     69, 56,  14,  17, 22, 29, 51, 87, 80,  62,  18,  22,  37, 56, 68, 109, 103, 77,  24,  35, 55, 64,
     81, 104, 113, 92, 49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98,  112, 100, 103, 99},
    {17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99,
     99, 99, 47, 66, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99,
     99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99}};

// T.81, tables K.3 to K.6 as DHT carries them: how many codes of 1 to 16 bits, then their symbols. A DC symbol is the
// size of a difference; an AC symbol is run << 4 | size, with 0x00 the end of the block and 0xF0 a run of 16 zeros.
static const uint8_t typical_dc[2][16 + 12] = {
    {0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11},
    {0, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}};
static const uint8_t typical_ac[2][16 + 162] = {
    {0,    2,    1,    3,    3,    2,    4,    3,    5,    5,    4,    4,    0,    0,    1,    125,  0x01, 0x02,
     0x03, 0x00, 0x04, 0x11, 0x05, 0x12, 0x21, 0x31, 0x41, 0x06, 0x13, 0x51, 0x61, 0x07, 0x22, 0x71, 0x14, 0x32,
     0x81, 0x91, 0xA1, 0x08, 0x23, 0x42, 0xB1, 0xC1, 0x15, 0x52, 0xD1, 0xF0, 0x24, 0x33, 0x62, 0x72, 0x82, 0x09,
     0x0A, 0x16, 0x17, 0x18, 0x19, 0x1A, 0x25, 0x26, 0x27, 0x28, 0x29, 0x2A, 0x34, 0x35, 0x36, 0x37, 0x38, 0x39,
     0x3A, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49, 0x4A, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58, 0x59, 0x5A, 0x63,
     0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6A, 0x73, 0x74, 0x75, 0x76, 0x77, 0x78, 0x79, 0x7A, 0x83, 0x84, 0x85,
     0x86, 0x87, 0x88, 0x89, 0x8A, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0x9A, 0xA2, 0xA3, 0xA4, 0xA5,
     0xA6, 0xA7, 0xA8, 0xA9, 0xAA, 0xB2, 0xB3, 0xB4, 0xB5, 0xB6, 0xB7, 0xB8, 0xB9, 0xBA, 0xC2, 0xC3, 0xC4, 0xC5,
     0xC6, 0xC7, 0xC8, 0xC9, 0xCA, 0xD2, 0xD3, 0xD4, 0xD5, 0xD6, 0xD7, 0xD8, 0xD9, 0xDA, 0xE1, 0xE2, 0xE3, 0xE4,
     0xE5, 0xE6, 0xE7, 0xE8, 0xE9, 0xEA, 0xF1, 0xF2, 0xF3, 0xF4, 0xF5, 0xF6, 0xF7, 0xF8, 0xF9, 0xFA},
    {0,    2,    1,    2,    4,    4,    3,    4,    7,    5,    4,    4,    0,    1,    2,    119,  0x00, 0x01,
     0x02, 0x03, 0x11, 0x04, 0x05, 0x21, 0x31, 0x06, 0x12, 0x41, 0x51, 0x07, 0x61, 0x71, 0x13, 0x22, 0x32, 0x81,
     0x08, 0x14, 0x42, 0x91, 0xA1, 0xB1, 0xC1, 0x09, 0x23, 0x33, 0x52, 0xF0, 0x15, 0x62, 0x72, 0xD1, 0x0A, 0x16,
     0x24, 0x34, 0xE1, 0x25, 0xF1, 0x17, 0x18, 0x19, 0x1A, 0x26, 0x27, 0x28, 0x29, 0x2A, 0x35, 0x36, 0x37, 0x38,
     0x39, 0x3A, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49, 0x4A, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58, 0x59, 0x5A,
     0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6A, 0x73, 0x74, 0x75, 0x76, 0x77, 0x78, 0x79, 0x7A, 0x82, 0x83,
     0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8A, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0x9A, 0xA2, 0xA3,
     0xA4, 0xA5, 0xA6, 0xA7, 0xA8, 0xA9, 0xAA, 0xB2, 0xB3, 0xB4, 0xB5, 0xB6, 0xB7, 0xB8, 0xB9, 0xBA, 0xC2, 0xC3,
     0xC4, 0xC5, 0xC6, 0xC7, 0xC8, 0xC9, 0xCA, 0xD2, 0xD3, 0xD4, 0xD5, 0xD6, 0xD7, 0xD8, 0xD9, 0xDA, 0xE2, 0xE3,
     0xE4, 0xE5, 0xE6, 0xE7, 0xE8, 0xE9, 0xEA, 0xF2, 0xF3, 0xF4, 0xF5, 0xF6, 0xF7, 0xF8, 0xF9, 0xFA}};

// ----------------------------------------------------------------------------------------------------------- tables

// The Independent JPEG Group's scale (jcparam.c, jpeg_quality_scaling): 5000 / q percent of the typical steps below
// quality 50, 200 - 2q percent from there on, rounded, and at least 1 and at most 255 (8-bit tables).
static void scale_quant(Jpeg *j, int quality) {
    int percent = quality < 50 ? 5000 / quality : 200 - 2 * quality;
    for (int t = 0; t < 2; t++)
        for (int i = 0; i < 64; i++) {
            int step = (typical_quant[t][i] * percent + 50) / 100;
            j->quant[t][i] = step < 1 ? 1 : step > 255 ? 255 : step;
        }
}

static void make_code(struct JpegCode *c, const uint8_t *table) { // T.81, C.2: canonical codes, the shortest first
    const uint8_t *symbol = table + 16;
    uint32_t code = 0;
    for (int length = 1; length <= 16; length++, code <<= 1)
        for (int i = 0; i < table[length - 1]; i++, symbol++)
            c->code[*symbol] = (uint16_t)code++, c->length[*symbol] = (uint8_t)length;
}

// ------------------------------------------------------------------------------------------------------------ bytes
// Room is made once for the headers (623 bytes) and before each unit, never here.

static void put(Jpeg *j, const uint8_t *bytes, size_t n) { memcpy(j->p + j->n, bytes, n), j->n += n; }
static void put8(Jpeg *j, int v) { j->p[j->n++] = (uint8_t)v; }
static void put_marker(Jpeg *j, int marker, size_t n) { // a segment of n bytes follows; it counts its own length
    put8(j, 0xFF), put8(j, marker), put8(j, (int)((n + 2) >> 8)), put8(j, (int)((n + 2) & 255));
}
static void put_table(Jpeg *j, int id, const uint8_t *table, size_t n) {
    put_marker(j, 0xC4, 1 + n), put8(j, id), put(j, table, n);
}

static void put_bits(Jpeg *j, uint32_t v, int n) { // n at most 16
    j->bits = j->bits << n | v, j->n_bits += n;
    while (j->n_bits >= 8) {
        uint8_t byte = (uint8_t)(j->bits >> (j->n_bits -= 8));
        put8(j, byte);
        if (byte == 0xFF) put8(j, 0); // so that it is not taken for a marker (F.1.2.3)
    }
}

static void put_headers(Jpeg *j, int width, int height, bool subsample) {
    put8(j, 0xFF), put8(j, 0xD8);
    put_marker(j, 0xE0, 14), put(j, (const uint8_t *)"JFIF\0\1\1\0\0\1\0\1\0\0", 14); // 1.01, square pixels
    for (int t = 0; t < 2; t++) {
        put_marker(j, 0xDB, 65), put8(j, t);
        for (int k = 0; k < 64; k++) put8(j, j->quant[t][zigzag[k]]);
    }
    put_marker(j, 0xC0, 15); // 8 bits, height, width; of each component: number, sampling, quantisation table
    put8(j, 8), put8(j, height >> 8), put8(j, height & 255), put8(j, width >> 8), put8(j, width & 255), put8(j, 3);
    for (int c = 0; c < 3; c++) put8(j, c + 1), put8(j, c == 0 && subsample ? 0x22 : 0x11), put8(j, c > 0);
    for (int t = 0; t < 2; t++) {
        put_table(j, t, typical_dc[t], sizeof typical_dc[t]);
        put_table(j, 0x10 | t, typical_ac[t], sizeof typical_ac[t]);
    }
    put_marker(j, 0xDA, 10), put8(j, 3);
    for (int c = 0; c < 3; c++) put8(j, c + 1), put8(j, c > 0 ? 0x11 : 0x00);
    put8(j, 0), put8(j, 63), put8(j, 0);
}

// ----------------------------------------------------------------------------------------------------------- blocks

// out[8u] = sum over x of in[x] c(u) / 2 cos((2x + 1) u pi / 16), c(0) = sqrt(1/2), else 1; times 2^15. By symmetry the
// even u need only the sums of in[x] and in[7 - x], the odd u their differences.
static void dct_row(int32_t *out, const int32_t *in) {
    // cos(k pi / 16) / 2 times 2^15 for k = 1 to 7.
    enum { C1 = 16069, C2 = 15137, C3 = 13623, C4 = 11585, C5 = 9102, C6 = 6270, C7 = 3196 };
    int32_t s0 = in[0] + in[7], s1 = in[1] + in[6], s2 = in[2] + in[5], s3 = in[3] + in[4];
    int32_t d0 = in[0] - in[7], d1 = in[1] - in[6], d2 = in[2] - in[5], d3 = in[3] - in[4];
    out[0] = C4 * (s0 + s1 + s2 + s3), out[32] = C4 * (s0 - s1 - s2 + s3);
    out[16] = C2 * (s0 - s3) + C6 * (s1 - s2), out[48] = C6 * (s0 - s3) - C2 * (s1 - s2);
    out[8] = C1 * d0 + C3 * d1 + C5 * d2 + C7 * d3, out[24] = C3 * d0 - C7 * d1 - C1 * d2 - C5 * d3;
    out[40] = C5 * d0 - C1 * d1 + C7 * d2 + C3 * d3, out[56] = C7 * d0 - C5 * d1 + C3 * d2 - C1 * d3;
}

static int bit_size(int32_t v) { // bits of |v| (T.81, table F.1)
    int n = 0;
    for (int32_t m = v < 0 ? -v : v; m; m >>= 1) n++;
    return n;
}
static void put_value(Jpeg *j, const struct JpegCode *c, int run, int32_t v) { // F.1.2.1.1: a negative v as v - 1
    int size = bit_size(v), symbol = run << 4 | size;
    put_bits(j, c->code[symbol], c->length[symbol]);
    put_bits(j, (uint32_t)(v < 0 ? v - 1 : v) & ((1u << size) - 1), size);
}

// One block of samples (level shift done: -128 to 127). *dc: the last block's of this component. Coefficients are at
// most 1024 in size (AC: 1020), which the tables' 11 bits for a difference of DC and 10 for an AC value hold.
static void put_block(Jpeg *j, const int32_t sample[64], int table, int32_t *dc) {
    int32_t rows[64], f[64], level[64];
    for (int y = 0; y < 8; y++) dct_row(rows + y, sample + 8 * y);         // rows[8u + y], below 2^9 * 2^15
    for (int i = 0; i < 64; i++) rows[i] = (rows[i] + (1 << 10)) >> 11;    // 4 fractional bits are left
    for (int u = 0; u < 8; u++) dct_row(f + u, rows + 8 * u);              // f[8v + u], 19 fractional bits
    for (int k = 0; k < 64; k++) {                                         // to the nearest level, halves away from 0
        int32_t v = f[zigzag[k]], step = j->quant[table][zigzag[k]] << 19; // at most 255 * 2^19 < 2^27
        level[k] = v < 0 ? -((step / 2 - v) / step) : (v + step / 2) / step;
    }
    put_value(j, &j->dc[table], 0, level[0] - *dc), *dc = level[0];
    const struct JpegCode *ac = &j->ac[table];
    int run = 0;
    for (int k = 1; k < 64; k++) {
        if (!level[k]) {
            run++;
            continue;
        }
        for (; run > 15; run -= 16) put_bits(j, ac->code[0xF0], ac->length[0xF0]);
        put_value(j, ac, run, level[k]), run = 0;
    }
    if (run) put_bits(j, ac->code[0], ac->length[0]);
}

// A unit of side 8 or (4:2:0) 16 whose left top pixel is (left, top). Beyond the picture its last column and row
// repeat.
static void put_unit(Jpeg *j, const uint8_t *rgb, int width, int height, int left, int top, int side, int32_t dc[3]) {
    int32_t plane[3][256], block[64];
    for (int y = 0; y < side; y++)
        for (int x = 0; x < side; x++) {
            size_t row = (size_t)(top + y < height ? top + y : height - 1);
            size_t column = (size_t)(left + x < width ? left + x : width - 1);
            const uint8_t *p = rgb + (row * (size_t)width + column) * 3;
            int32_t r = p[0], g = p[1], b = p[2], at = side * y + x;
            // T.871 (BT.601 over 0 to 255) with 16-bit constants that sum to 1 and to 0, less 128. Chroma rounds a half
            // down, since 255.5 must not become 256.
            plane[0][at] = ((19595 * r + 38470 * g + 7471 * b + 32768) >> 16) - 128;
            plane[1][at] = (-11059 * r - 21709 * g + 32768 * b + 32767) >> 16;
            plane[2][at] = (32768 * r - 27439 * g - 5329 * b + 32767) >> 16;
        }
    for (int y = 0; y < side; y += 8)
        for (int x = 0; x < side; x += 8) {
            for (int i = 0; i < 8; i++) memcpy(block + 8 * i, plane[0] + side * (y + i) + x, 8 * sizeof *block);
            put_block(j, block, 0, &dc[0]);
        }
    for (int c = 1; c < 3; c++) {
        for (int i = 0; i < 64 && side == 16; i++) { // the mean of 2 x 2; its rounding alternates, so that none drifts
            const int32_t *p = plane[c] + 32 * (i / 8) + 2 * (i % 8);
            block[i] = (p[0] + p[1] + p[16] + p[17] + 1 + i % 2) >> 2;
        }
        put_block(j, side == 16 ? block : plane[c], 1, &dc[c]);
    }
}

bool image_encode_jpeg(uint8_t **jpeg, size_t *size, const uint8_t *rgb, int width, int height, int quality,
                       bool subsample, const char *name, Err *e) {
    CHECK(width > 0 && height > 0 && width <= LIMIT_IMAGE_SIDE && height <= LIMIT_IMAGE_SIDE, "a JPEG of %d x %d",
          width, height);
    CHECK(quality >= 1 && quality <= 100, "a JPEG of quality %d", quality);
    Jpeg j = {0};
    int32_t dc[3] = {0};
    int side = subsample ? 16 : 8;
    // The most that a unit, or the headers, can take: six blocks of 64 values of 16 + 11 bits, each byte stuffed.
    size_t most = 6 * 64 * 27 / 8 * 2 + 16;
    scale_quant(&j, quality);
    for (int t = 0; t < 2; t++) make_code(&j.dc[t], typical_dc[t]), make_code(&j.ac[t], typical_ac[t]);
    for (int64_t unit = -1, across = (width + side - 1) / side, n = across * ((height + side - 1) / side); unit < n;
         unit++) {
        if (j.room - j.n < most) {
            size_t room = 2 * j.room + (size_t)width * (size_t)height / 2 + 2 * most;
            uint8_t *more = realloc(j.p, room);
            if (!more) {
                free(j.p);
                return err_set(e, "E-ME-01", AT(.file = name),
                               "expected memory for a JPEG of %d x %d pixels; found none; do: close other programs or "
                               "use a smaller picture",
                               width, height);
            }
            j.p = more, j.room = room;
        }
        if (unit < 0) put_headers(&j, width, height, subsample);
        else put_unit(&j, rgb, width, height, (int)(unit % across) * side, (int)(unit / across) * side, side, dc);
    }
    if (j.n_bits) put_bits(&j, (1u << (8 - j.n_bits)) - 1, 8 - j.n_bits); // ones fill the last byte (F.1.2.3)
    put8(&j, 0xFF), put8(&j, 0xD9);
    *jpeg = j.p, *size = j.n;
    return true;
}

bool image_write_jpeg(const char *path, const uint8_t *rgb, int width, int height, int quality, bool subsample,
                      Err *e) {
    uint8_t *jpeg;
    size_t size;
    if (!image_encode_jpeg(&jpeg, &size, rgb, width, height, quality, subsample, path, e)) return false;
    bool ok = file_write_atomic(path, jpeg, size, e);
    free(jpeg);
    return ok;
}
