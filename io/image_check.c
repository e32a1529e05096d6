// image_check.c - the structural check of JPEG and PNG files: everything that must hold before a decoder sees a byte.
//
// What it is:  marker and chunk walks, checksums, an inflate that only counts, a Huffman walk of every JPEG scan
//              without pixels, EXIF orientation. It refuses; it never repairs. For a JPEG it also writes the stream
//              that the decoder reads: the segments and scans that were understood, and nothing else (no APPn, no
//              comments, no fill bytes).
// What it is not: a decoder (io/image.c).
// Formats:     ITU-T T.81 (JPEG); W3C PNG specification, third edition; RFC 1950 and 1951 (zlib, deflate); EXIF 2.32.
// Read before: surgr1.h, section io/image.c.  Read next: io/image.c.
#include "../surgr1.h"

static uint32_t be16(const uint8_t *p) { return (uint32_t)p[0] << 8 | p[1]; }
static uint32_t be32(const uint8_t *p) { return be16(p) << 16 | be16(p + 2); }

// Rule 2 of the check: nothing of image size exists before this.
static bool size_ok(const char *name, int64_t at, uint32_t width, uint32_t height, Err *e) {
    Where where = AT(.file = name, BYTE(at));
    if (width < 1 || height < 1 || width > LIMIT_IMAGE_SIDE || height > LIMIT_IMAGE_SIDE)
        return err_set(e, "E-IM-02", where,
                       "expected sides of 1 to %lld pixels; found %u x %u; do: scale the picture down first",
                       (long long)LIMIT_IMAGE_SIDE, width, height);
    if ((int64_t)width * height > LIMIT_IMAGE_PIXELS)
        return err_set(e, "E-IM-02", where,
                       "expected at most %lld pixels; found %u x %u = %lld; do: scale the picture down first",
                       (long long)LIMIT_IMAGE_PIXELS, width, height, (long long)width * height);
    if (width > LIMIT_IMAGE_RATIO * height || height > LIMIT_IMAGE_RATIO * width)
        return err_set(e, "E-IM-02", where,
                       "expected sides whose ratio is at most %lld; found %u x %u; do: cut the picture into parts",
                       (long long)LIMIT_IMAGE_RATIO, width, height);
    return true;
}

// EXIF orientation (tag 0x0112, one SHORT) of the first directory of a TIFF block; 1 for anything that is not as it
// should be, since a wrong guess turns the picture.
static int exif_orientation(const uint8_t *t, size_t n) {
    if (n < 8 || !((t[0] == 'I' && t[1] == 'I') || (t[0] == 'M' && t[1] == 'M'))) return 1;
    bool little = t[0] == 'I';
#define TIFF16(p) (little ? (uint32_t)((p)[0] | (p)[1] << 8) : be16(p))
#define TIFF32(p) (little ? TIFF16(p) | TIFF16((p) + 2) << 16 : be32(p))
    size_t at = TIFF32(t + 4);
    if (TIFF16(t + 2) != 42 || at > n || n - at < 2) return 1;
    size_t count = TIFF16(t + at), room = (n - at - 2) / 12;
    for (size_t i = 0; i < count && i < room; i++) {
        const uint8_t *entry = t + at + 2 + 12 * i;
        if (TIFF16(entry) != 0x0112) continue;
        uint32_t value = TIFF16(entry + 8);
        return TIFF16(entry + 2) == 3 && TIFF32(entry + 4) == 1 && value >= 1 && value <= 8 ? (int)value : 1;
    }
#undef TIFF16
#undef TIFF32
    return 1;
}

// ------------------------------------------------------------------------------------------------------------- PNG

typedef struct PngWalk {
    const char *name;
    const uint8_t *data;
    size_t size;
    Err *e;
    uint32_t width, height;
    int depth, colour, interlace, palette; // palette: entries of PLTE, 0 when there is none
    // The compressed stream, from the middle of one IDAT chunk to the next.
    const uint8_t *in, *in_end;
    uint64_t bits; // next bit lowest
    int n_bits;
    bool ended; // the last IDAT is used up
    // The picture's bytes as they appear: where in which row of which pass.
    int pass;
    uint32_t row, rows, row_left; // row_left 0: a filter byte comes next
    size_t row_bytes;
    uint8_t filter;
    uint8_t *line; // [2][LIMIT_IMAGE_SIDE]: this and the previous row of indexes, for pictures with a palette
    int64_t done, total;
    uint32_t adler;
} PngWalk;

static bool png_fail(PngWalk *w, const uint8_t *at, const char *expected, const char *found) {
    return err_set(w->e, "E-IM-03", AT(.file = w->name, BYTE(at - w->data)),
                   "expected %s; found %s; do: copy or save the picture again", expected, found);
}

uint32_t png_crc(uint32_t crc, const uint8_t *p, size_t n) {
    static uint32_t table[256];
    if (!__atomic_load_n(&table[255], __ATOMIC_ACQUIRE))
        for (uint32_t i = 0; i < 256; i++) { // two threads may both fill it, with the same values
            uint32_t c = i;
            for (int k = 0; k < 8; k++) c = c & 1 ? 0xEDB88320u ^ c >> 1 : c >> 1;
            __atomic_store_n(&table[i], c, __ATOMIC_RELEASE);
        }
    for (crc = ~crc; n; n--) crc = table[(crc ^ *p++) & 255] ^ crc >> 8;
    return ~crc;
}

uint32_t png_adler(uint32_t adler, const uint8_t *p, size_t n) {
    uint32_t a = adler & 0xFFFF, b = adler >> 16;
    while (n) { // 5552: the longest run that cannot overflow 32 bits (RFC 1950)
        size_t run = n < 5552 ? n : 5552;
        n -= run;
        for (; run; run--) a += *p++, b += a;
        a %= 65521, b %= 65521;
    }
    return b << 16 | a;
}

// Where the decompressor is: bytes that were read ahead are not used yet.
static const uint8_t *png_at(const PngWalk *w) { return w->ended ? w->in : w->in - w->n_bits / 8; }

// Columns and rows of one pass of Adam7 (pass 0 to 6), or of the whole picture (not interlaced: pass 0 only).
static void png_pass(const PngWalk *w, int pass, uint32_t *columns, uint32_t *rows) {
    static const uint8_t x0[7] = {0, 4, 0, 2, 0, 1, 0}, y0[7] = {0, 0, 4, 0, 2, 0, 1};
    static const uint8_t dx[7] = {8, 8, 4, 4, 2, 2, 1}, dy[7] = {8, 8, 8, 4, 4, 2, 2};
    *columns = w->width, *rows = w->height;
    if (w->interlace) {
        *columns = (w->width + dx[pass] - 1 - x0[pass]) / dx[pass];
        *rows = (w->height + dy[pass] - 1 - y0[pass]) / dy[pass];
    }
}

static size_t png_row_bytes(const PngWalk *w, uint32_t columns) {
    static const uint8_t channels[7] = {1, 0, 3, 1, 2, 0, 4};
    return ((size_t)columns * channels[w->colour] * (size_t)w->depth + 7) / 8;
}

static bool png_next_pass(PngWalk *w) { // to the next pass with a pixel; false after the last
    uint32_t columns = 0;
    for (w->pass++, w->row = 0; w->pass < (w->interlace ? 7 : 1); w->pass++) {
        png_pass(w, w->pass, &columns, &w->rows);
        w->row_bytes = png_row_bytes(w, columns), w->row_left = 0;
        if (columns && w->rows) return true;
    }
    return false;
}

// A row of palette indexes is complete: undo its filter (one byte per step, whatever the depth) and look for an index
// that PLTE does not have. Decoders read whatever lies behind their table for it.
static bool png_indexes(PngWalk *w) {
    uint8_t *line = w->line, *above = w->line + LIMIT_IMAGE_SIDE;
    uint32_t columns, rows;
    png_pass(w, w->pass, &columns, &rows);
    for (size_t i = 0; i < w->row_bytes; i++) {
        int a = i ? line[i - 1] : 0, b = w->row ? above[i] : 0, c = i && w->row ? above[i - 1] : 0;
        int pa = abs(b - c), pb = abs(a - c), pc = abs(a + b - 2 * c);
        int paeth = pa <= pb && pa <= pc ? a : pb <= pc ? b : c;
        const int guess[5] = {0, a, b, (a + b) / 2, paeth};
        line[i] = (uint8_t)(line[i] + guess[w->filter]);
    }
    for (uint32_t x = 0; x < columns; x++) {
        size_t bit = (size_t)x * (size_t)w->depth;
        int index = line[bit / 8] >> (8 - w->depth - (int)(bit % 8)) & ((1 << w->depth) - 1);
        if (index >= w->palette) {
            char found[64];
            snprintf(found, sizeof found, "index %d in row %u", index, w->row);
            return png_fail(w, png_at(w), "palette indexes below the number of PLTE entries", found);
        }
    }
    memcpy(above, line, w->row_bytes);
    return true;
}

// Takes n decompressed bytes.
static bool png_take(PngWalk *w, const uint8_t *p, size_t n) {
    w->adler = png_adler(w->adler, p, n);
    w->done += (int64_t)n;
    while (n) {
        if (w->row_left == 0) {
            w->filter = *p++, n--;
            if (w->filter > 4) return png_fail(w, png_at(w), "a row filter of 0 to 4", "another one");
            w->row_left = (uint32_t)w->row_bytes;
        }
        size_t run = n < w->row_left ? n : w->row_left;
        if (w->palette) memcpy(w->line + (w->row_bytes - w->row_left), p, run);
        p += run, n -= run, w->row_left -= (uint32_t)run;
        if (w->row_left == 0) {
            if (w->palette && w->colour == 3 && !png_indexes(w)) return false;
            if (++w->row == w->rows) png_next_pass(w);
        }
    }
    return true;
}

// At least `need` (at most 48) bits into the buffer; missing ones are zero and `ended` is set.
static void inflate_fill(PngWalk *w, int need) {
    while (w->n_bits < need) {
        if (w->in_end - w->in >= 8) {
            uint64_t next = (uint64_t)be32(w->in) << 32 | be32(w->in + 4);
            w->bits |= __builtin_bswap64(next) << w->n_bits;
            w->in += (63 - w->n_bits) / 8, w->n_bits |= 56; // bits above n_bits come again, the same
            return;
        }
        if (w->in == w->in_end) { // CRC, then the next chunk: the chunk walk has been here before
            const uint8_t *next = w->in_end + 4;
            if (w->ended || memcmp(next + 4, "IDAT", 4)) {
                w->ended = true, w->n_bits += 64;
                return;
            }
            w->in = next + 8, w->in_end = w->in + be32(next);
            continue;
        }
        w->bits |= (uint64_t)*w->in++ << w->n_bits, w->n_bits += 8;
    }
}

// A canonical Huffman code (RFC 1951, 3.2.2). quick: length and symbol for the next 9 bits, 0 for longer codes.
enum { QUICK = 9 };
typedef struct Inflate {
    uint16_t quick[1 << QUICK];
    uint16_t count[16], symbol[288];
} Inflate;

static bool inflate_table(Inflate *h, const uint8_t *lengths, int n) {
    uint16_t at[16], code[16];
    memset(h, 0, sizeof *h);
    for (int i = 0; i < n; i++) h->count[lengths[i]]++;
    int used = n - h->count[0], left = 1;
    h->count[0] = 0, at[0] = 0, code[0] = 0;
    for (int len = 1; len < 16; len++) {
        at[len] = (uint16_t)(at[len - 1] + h->count[len - 1]);
        code[len] = (uint16_t)((code[len - 1] + h->count[len - 1]) << 1);
        if ((left = 2 * left - h->count[len]) < 0) return false; // more codes than there are
    }
    if (left > 0 && used > 1) return false; // fewer: allowed for one code of one bit, or none (as zlib has it)
    if (used == 1 && h->count[1] != 1) return false;
    for (int i = 0; i < n; i++) {
        int len = lengths[i];
        if (!len) continue;
        h->symbol[at[len]++] = (uint16_t)i;
        uint32_t reversed = 0, c = code[len]++;
        for (int b = 0; b < len; b++) reversed |= (c >> b & 1) << (len - 1 - b);
        if (len <= QUICK)
            for (uint32_t k = reversed; k < 1 << QUICK; k += 1u << len) h->quick[k] = (uint16_t)(i << 4 | len);
    }
    return true;
}

static int inflate_symbol(PngWalk *w, const Inflate *h) { // -1: no such code
    inflate_fill(w, 16);
    uint32_t quick = h->quick[w->bits & ((1 << QUICK) - 1)];
    if (quick) {
        w->bits >>= quick & 15, w->n_bits -= (int)(quick & 15);
        return (int)(quick >> 4);
    }
    int code = 0, first = 0, index = 0;
    for (int len = 1; len < 16; len++) {
        code |= (int)(w->bits & 1), w->bits >>= 1, w->n_bits--;
        if (code - first < h->count[len]) return h->symbol[index + code - first];
        index += h->count[len], first = (first + h->count[len]) << 1, code <<= 1;
    }
    return -1;
}

static uint32_t inflate_bits(PngWalk *w, int n) { // n <= 16
    inflate_fill(w, n);
    uint32_t v = (uint32_t)(w->bits & ((1u << n) - 1));
    w->bits >>= n, w->n_bits -= n;
    return v;
}

// The code tables of one block with its own codes (RFC 1951, 3.2.7).
static bool inflate_dynamic(PngWalk *w, Inflate *literals, Inflate *distances) {
    static const uint8_t order[19] = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};
    uint8_t lengths[320] = {0};
    int n_literals = (int)inflate_bits(w, 5) + 257, n_distances = (int)inflate_bits(w, 5) + 1;
    int n_lengths = (int)inflate_bits(w, 4) + 4;
    if (n_literals > 286 || n_distances > 30) return false;
    for (int i = 0; i < n_lengths; i++) lengths[order[i]] = (uint8_t)inflate_bits(w, 3);
    if (!inflate_table(literals, lengths, 19)) return false;
    memset(lengths, 0, sizeof lengths);
    for (int i = 0; i < n_literals + n_distances;) {
        int symbol = inflate_symbol(w, literals), repeat = 1;
        uint8_t value = (uint8_t)symbol;
        if (symbol < 0 || (symbol == 16 && i == 0)) return false;
        if (symbol == 16) value = lengths[i - 1], repeat = 3 + (int)inflate_bits(w, 2);
        if (symbol == 17) value = 0, repeat = 3 + (int)inflate_bits(w, 3);
        if (symbol == 18) value = 0, repeat = 11 + (int)inflate_bits(w, 7);
        if (repeat > n_literals + n_distances - i) return false;
        for (; repeat; repeat--) lengths[i++] = value;
    }
    return lengths[256] && inflate_table(literals, lengths, n_literals) &&
           inflate_table(distances, lengths + n_literals, n_distances);
}

// Runs the whole zlib stream through a window and png_take. Never holds more than the window.
enum { WINDOW = 32768, WINDOW_ROOM = 4 * WINDOW };
static bool png_stream(PngWalk *w) {
    const char *stream = "a zlib stream as deflate writes it";
    uint32_t head = inflate_bits(w, 8) << 8;
    head |= inflate_bits(w, 8);
    if ((head >> 8 & 15) != 8 || head >> 12 > 7 || head % 31 || head & 0x20)
        return png_fail(w, png_at(w), stream, "another header");
    uint8_t *window = malloc(WINDOW + WINDOW_ROOM);
    Inflate *tables = malloc(2 * sizeof *tables), *literals = tables, *distances = tables + 1;
    bool ok = false, last = false;
    size_t have = 0, taken = 0; // bytes in the window, and how many of them png_take has seen
    if (!window || !tables) {
        err_set(w->e, "E-ME-01", AT(.file = w->name),
                "expected memory to check a PNG; found none; do: close other programs");
        goto done;
    }
    while (!last) {
        last = inflate_bits(w, 1);
        uint32_t type = inflate_bits(w, 2), stored = 0;
        if (type == 0) {
            int rest = w->n_bits & 7;
            w->bits >>= rest, w->n_bits -= rest;
            stored = inflate_bits(w, 16);
            if ((inflate_bits(w, 16) ^ stored) != 0xFFFF) type = 3;
        } else if (type == 1) {
            uint8_t lengths[288];
            for (int i = 0; i < 288; i++) lengths[i] = i < 144 ? 8 : i < 256 ? 9 : i < 280 ? 7 : 8;
            inflate_table(literals, lengths, 288);
            memset(lengths, 5, 32);
            inflate_table(distances, lengths, 32);
        } else if (type == 2 && !inflate_dynamic(w, literals, distances)) {
            type = 3;
        }
        while (type != 3) {
            if (have + 258 > WINDOW + WINDOW_ROOM || w->ended) { // make room; and stop where the data stops
                if ((int64_t)(have - taken) > w->total - w->done) break;
                if (!png_take(w, window + taken, have - taken)) goto done;
                if (w->ended) break;
                memmove(window, window + have - WINDOW, WINDOW);
                have = taken = WINDOW;
            }
            if (type == 0) {
                if (stored == 0) break;
                window[have++] = (uint8_t)inflate_bits(w, 8), stored--;
                continue;
            }
            int symbol = inflate_symbol(w, literals);
            if (symbol >= 0 && symbol < 256) {
                window[have++] = (uint8_t)symbol;
                continue;
            }
            if (symbol == 256) break;
            if (symbol < 0 || symbol > 285) {
                type = 3;
                break;
            }
            // RFC 1951, 3.2.5: groups of four length codes and of two distance codes, each with one more extra bit
            int l = symbol - 257, extra = l < 8 || l == 28 ? 0 : l / 4 - 1;
            size_t length = l == 28 ? 258 : 3 + (l < 8 ? (size_t)l : (size_t)(4 + l % 4) << extra);
            length += inflate_bits(w, extra);
            int d = inflate_symbol(w, distances);
            extra = d < 4 ? 0 : d / 2 - 1;
            size_t distance = d < 0 || d > 29 ? SIZE_MAX : 1 + (d < 4 ? (size_t)d : (size_t)(2 + d % 2) << extra);
            if (distance != SIZE_MAX) distance += inflate_bits(w, extra);
            if (distance > have) {
                type = 3;
                break;
            }
            for (; length; length--, have++) window[have] = window[have - distance];
        }
        if (type == 3) {
            png_fail(w, png_at(w), stream, "damaged data");
            goto done;
        }
        if ((int64_t)(have - taken) > w->total - w->done) {
            char expected[80];
            snprintf(expected, sizeof expected, "%lld decompressed bytes", (long long)w->total);
            png_fail(w, png_at(w), expected, "more");
            goto done;
        }
        if (w->ended) break;
    }
    if (!w->ended && !png_take(w, window + taken, have - taken)) goto done;
    if (w->ended || w->done < w->total) {
        char expected[80], found[80];
        snprintf(expected, sizeof expected, "%lld decompressed bytes", (long long)w->total);
        snprintf(found, sizeof found, "%lld (the picture stops at row %u of %u%s)", (long long)w->done, w->row, w->rows,
                 w->interlace ? " of a pass" : "");
        png_fail(w, png_at(w), expected, found);
        goto done;
    }
    int rest = w->n_bits & 7;
    w->bits >>= rest, w->n_bits -= rest;
    uint32_t adler = 0;
    for (int i = 0; i < 4; i++) adler = adler << 8 | inflate_bits(w, 8);
    if (w->ended || adler != w->adler)
        png_fail(w, png_at(w), "the right Adler-32 at the end of the zlib stream",
                 w->ended ? "its end" : "another one");
    else ok = true;
done:
    free(window), free(tables);
    return ok;
}

static bool png_header(PngWalk *w, const uint8_t *chunk, uint32_t length) {
    const uint8_t *d = chunk + 8;
    if (length != 13) return png_fail(w, chunk, "an IHDR of 13 bytes", "another length");
    w->width = be32(d), w->height = be32(d + 4), w->depth = d[8], w->colour = d[9], w->interlace = d[12];
    // depths that each colour type allows, one bit for each
    static const uint32_t depths[7] = {1 << 1 | 1 << 2 | 1 << 4 | 1 << 8 | 1 << 16,
                                       0,
                                       1 << 8 | 1 << 16,
                                       1 << 1 | 1 << 2 | 1 << 4 | 1 << 8,
                                       1 << 8 | 1 << 16,
                                       0,
                                       1 << 8 | 1 << 16};
    if (!size_ok(w->name, chunk + 8 - w->data, w->width, w->height, w->e)) return false;
    if (w->colour > 6 || w->depth > 16 || !(depths[w->colour] >> w->depth & 1)) {
        char found[64];
        snprintf(found, sizeof found, "depth %d with colour type %d", w->depth, w->colour);
        return png_fail(w, chunk + 16, "a bit depth that the colour type has", found);
    }
    if (d[10] || d[11] || w->interlace > 1)
        return png_fail(w, chunk + 18, "compression 0, filter 0 and interlace 0 or 1", "another method");
    return true;
}

static bool png_check(PngWalk *w, ImageFacts *f, bool headers_only) {
    const uint8_t *first_data = NULL, *end = w->data + w->size, *chunk = w->data + 8;
    bool data_over = false, transparency = false, finished = false;
    for (int64_t chunks = 0; !finished; chunks++) {
        if (chunks == LIMIT_PNG_CHUNKS) return png_fail(w, chunk, "at most 65536 chunks", "more");
        if (end - chunk < 12) return png_fail(w, chunk, "a chunk, and IEND as the last", "the end of the file");
        uint32_t length = be32(chunk);
        const uint8_t *type = chunk + 4, *d = chunk + 8;
        for (int i = 0; i < 4; i++)
            if ((type[i] | 32) < 'a' || (type[i] | 32) > 'z')
                return png_fail(w, type, "a chunk type of four letters", quoted((const char *)type, 4));
        if (length > INT32_MAX || (int64_t)length > end - chunk - 12) {
            char found[100];
            snprintf(found, sizeof found, "a chunk %s of %u bytes", quoted((const char *)type, 4), length);
            return png_fail(w, chunk, "chunks that end inside the file", found);
        }
        bool is_data = !memcmp(type, "IDAT", 4), is_header = !memcmp(type, "IHDR", 4);
        if (is_data && headers_only) break;
        if (is_header != (chunks == 0)) return png_fail(w, type, "one IHDR, as the first chunk", "another order");
        if (!headers_only && png_crc(0, type, length + 4) != be32(d + length)) {
            char expected[80], found[40];
            snprintf(expected, sizeof expected, "the CRC of chunk %s", quoted((const char *)type, 4));
            snprintf(found, sizeof found, "%08X", be32(d + length));
            return png_fail(w, d + length, expected, found);
        }
        if (is_header) {
            if (!png_header(w, chunk, length)) return false;
        } else if (is_data) {
            if (data_over) return png_fail(w, type, "all IDAT chunks in one run", "another chunk between them");
            if (w->colour == 3 && !w->palette) return png_fail(w, type, "PLTE before IDAT", "none");
            if (!first_data) first_data = chunk;
        } else if (!memcmp(type, "IEND", 4)) {
            if (length || !first_data) return png_fail(w, type, "an empty IEND after the picture", "another one");
            finished = true;
        } else if (!memcmp(type, "PLTE", 4)) {
            if (w->palette || first_data || transparency || !(w->colour & 2))
                return png_fail(w, type, "one PLTE, before tRNS and IDAT, in a colour picture", "another one");
            if (length % 3 || length < 3 || length > 768 || (w->colour == 3 && length / 3 > 1u << w->depth)) {
                char found[40];
                snprintf(found, sizeof found, "%u bytes", length);
                return png_fail(w, chunk, "a PLTE of 3 bytes for each of 1 to 2^depth colours", found);
            }
            w->palette = (int)length / 3;
        } else if (!memcmp(type, "tRNS", 4)) {
            bool fits = w->colour == 0   ? length == 2
                        : w->colour == 2 ? length == 6
                        : w->colour == 3 ? length <= (uint32_t)w->palette
                                         : false;
            if (!fits || transparency || first_data)
                return png_fail(w, type, "one tRNS that fits the colour type, between PLTE and IDAT", "another one");
            transparency = true;
        } else if (!(type[0] & 32)) {
            return png_fail(w, type, "only the critical chunks IHDR, PLTE, IDAT, IEND", quoted((const char *)type, 4));
        } else if (!memcmp(type, "eXIf", 4)) {
            f->orientation = exif_orientation(d, length);
        }
        if (first_data && !is_data) data_over = true;
        chunk = d + length + 4;
    }
    f->width = (int)w->width, f->height = (int)w->height, f->depth = w->depth;
    f->components = w->colour == 6 ? 4 : w->colour == 4 ? 2 : w->colour == 0 ? 1 : 3;
    if (headers_only) return true;
    if (chunk != end)
        warn("E-IM-06", AT(.file = w->name, BYTE(chunk - w->data)),
             "expected nothing after IEND; found %lld more bytes; do: nothing, they are ignored",
             (long long)(end - chunk));

    for (w->pass = -1; png_next_pass(w);) w->total += (int64_t)w->rows * (int64_t)(1 + w->row_bytes);
    w->pass = -1, png_next_pass(w);
    w->in = first_data + 8, w->in_end = w->in + be32(first_data), w->adler = 1;
    if (w->colour != 3) w->palette = 0; // a suggestion only
    uint8_t line[2 * 8192];             // two rows of LIMIT_IMAGE_SIDE indexes
    w->line = line;
    return png_stream(w);
}

// ------------------------------------------------------------------------------------------------------------ JPEG

typedef struct JpegCode { // a Huffman table of T.81, annex C
    bool defined;
    uint16_t quick[1 << QUICK]; // length << 8 | symbol for the next 9 bits, 0 for longer codes
    int32_t beyond[17];         // first code of this length that is not one, times 2^(16 - length)
    int32_t offset[17];         // index of a symbol = code + offset
    uint8_t symbol[256];
} JpegCode;

typedef struct JpegPart { // a colour component
    int id, h, v, quant;
    uint32_t columns, rows; // blocks that hold pixels
    uint32_t stride;        // blocks in a row, with those that only fill up the last MCU
    int dc, ac;             // tables of the current scan
    int32_t predicted;
    bool coded;        // sequential: its scan was there
    int8_t low[64];    // progressive: lowest bit so far of each coefficient, -1 when none
    uint64_t *nonzero; // progressive: [stride * padded rows], bit k set when coefficient k is not zero so far
} JpegPart;

typedef struct JpegWalk {
    const char *name;
    const uint8_t *data, *p, *end;
    Err *e;
    uint8_t *clean, *clean_end; // what the decoder will read; as large as the file
    int frame;                  // the SOF marker, 0 before
    uint32_t width, height;
    int n_parts, h_max, v_max;
    JpegPart part[3];
    bool quant[4], quant16[4], quant_used[4];
    JpegCode code[2][4]; // DC, AC
    uint32_t restart;
    int64_t scans, visits;
    bool jfif, exif;
    int adobe; // transform of the Adobe marker, -1 without
    // The scan.
    int n_scan, start, stop, high, low;
    JpegPart *scan[3];
    uint64_t bits; // next bit highest
    int n_bits;
    uint32_t eob_run;
    uint32_t at_row; // pixel row, for messages
} JpegWalk;

static bool jpeg_fail(JpegWalk *w, const uint8_t *at, const char *expected, const char *found) {
    return err_set(w->e, "E-IM-04", AT(.file = w->name, BYTE(at - w->data)),
                   "expected %s; found %s; do: copy or save the picture again", expected, found);
}
static bool jpeg_unsupported(JpegWalk *w, const uint8_t *at, const char *found) {
    return err_set(w->e, "E-IM-05", AT(.file = w->name, BYTE(at - w->data)),
                   "expected a baseline or progressive JPEG with 8-bit grey or colour; found %s; do: save it as one",
                   found);
}

static void jpeg_emit(JpegWalk *w, int marker, const uint8_t *segment, size_t n) {
    if (!w->clean) return; // headers only
    *w->clean_end++ = 0xFF, *w->clean_end++ = (uint8_t)marker;
    memcpy(w->clean_end, segment, n), w->clean_end += n;
}

static bool jpeg_quant(JpegWalk *w, const uint8_t *d, const uint8_t *end) {
    while (d < end) {
        int precision = *d >> 4, id = *d & 15;
        if (precision > 1 || id > 3)
            return jpeg_fail(w, d, "a quantisation table 0 to 3 of 8 or 16 bits", "another one");
        if (end - d < 1 + 64 * (1 + precision))
            return jpeg_fail(w, d, "a DQT segment of whole tables", "a table that is cut off");
        if (precision && w->frame == 0xC0) return jpeg_unsupported(w, d, "a 16-bit quantisation table in baseline");
        if (w->frame == 0xC2 && w->quant_used[id])
            return jpeg_fail(w, d, "quantisation tables that stay once a scan uses them", "a new table");
        w->quant[id] = true, w->quant16[id] = precision;
        d += 1 + 64 * (1 + precision);
    }
    return true;
}

static bool jpeg_huffman(JpegWalk *w, const uint8_t *d, const uint8_t *end) {
    while (d < end) {
        int kind = *d >> 4, id = *d & 15, total = 0;
        if (kind > 1 || id > 3)
            return jpeg_fail(w, d, "a Huffman table of class 0 or 1 and number 0 to 3", "another one");
        if (end - d < 17) return jpeg_fail(w, d, "a DHT segment of whole tables", "a table that is cut off");
        JpegCode *h = &w->code[kind][id];
        memset(h, 0, sizeof *h);
        const uint8_t *count = d, *symbol = d + 17;
        for (int len = 1, code = 0; len <= 16; len++, code <<= 1) {
            h->offset[len] = total - code;
            if (count[len] > end - symbol - total)
                return jpeg_fail(w, d, "a DHT segment of whole tables", "a table that is cut off");
            if (total + count[len] > 256) return jpeg_fail(w, d, "at most 256 Huffman codes", "more");
            // T.81 keeps the code of all ones free, so a length may use one code less than there are
            if (count[len] && code + count[len] >= 1 << len)
                return jpeg_fail(w, d, "Huffman codes that fit their lengths", "more codes than there are");
            for (int i = 0; i < count[len]; i++, code++, total++) {
                h->symbol[total] = symbol[total];
                if (len <= QUICK)
                    for (int k = 0; k < 1 << (QUICK - len); k++)
                        h->quick[(code << (QUICK - len)) + k] = (uint16_t)(len << 8 | symbol[total]);
            }
            h->beyond[len] = code << (16 - len);
        }
        h->defined = true;
        d = symbol + total;
    }
    return true;
}

static bool jpeg_frame(JpegWalk *w, int marker, const uint8_t *d, size_t n, bool headers_only) {
    static const char *const other[16] = {
        [3] = "lossless coding",        [5] = "a hierarchical picture",  [6] = "a hierarchical picture",
        [7] = "a hierarchical picture", [9] = "arithmetic coding",       [10] = "arithmetic coding",
        [11] = "arithmetic coding",     [13] = "a hierarchical picture", [14] = "a hierarchical picture",
        [15] = "a hierarchical picture"};
    if (marker > 0xC2) return jpeg_unsupported(w, d, other[marker & 15]);
    if (w->frame) return jpeg_fail(w, d, "one frame header", "a second one");
    if (n < 6) return jpeg_fail(w, d, "a frame header", "one that is cut off");
    if (d[0] == 12 || d[0] == 16) return jpeg_unsupported(w, d, d[0] == 12 ? "12-bit samples" : "16-bit samples");
    if (d[0] != 8) return jpeg_fail(w, d, "8-bit samples", "another depth");
    w->height = be16(d + 1), w->width = be16(d + 3), w->n_parts = d[5];
    if (w->n_parts == 4) return jpeg_unsupported(w, d + 5, "four components (CMYK or YCCK)");
    if (w->n_parts != 1 && w->n_parts != 3) return jpeg_fail(w, d + 5, "1 or 3 components", "another number");
    if (n != 6 + 3 * (size_t)w->n_parts) return jpeg_fail(w, d, "3 bytes for each component", "another length");
    if (!size_ok(w->name, d + 1 - w->data, w->width, w->height, w->e)) return false;
    w->frame = marker, w->h_max = w->v_max = 1;
    for (int i = 0; i < w->n_parts; i++) {
        JpegPart *c = &w->part[i];
        const uint8_t *s = d + 6 + 3 * i;
        c->id = s[0], c->h = s[1] >> 4, c->v = s[1] & 15, c->quant = s[2];
        for (int k = 0; k < i; k++)
            if (w->part[k].id == c->id) return jpeg_fail(w, s, "components with numbers of their own", "one twice");
        if (c->h < 1 || c->h > 4 || c->v < 1 || c->v > 4)
            return jpeg_fail(w, s + 1, "sampling factors of 1 to 4", "another one");
        if (c->quant > 3) return jpeg_fail(w, s + 2, "quantisation table 0 to 3", "another one");
        if (marker == 0xC0 && w->quant16[c->quant])
            return jpeg_unsupported(w, s + 2, "a 16-bit quantisation table in baseline");
        w->h_max = c->h > w->h_max ? c->h : w->h_max, w->v_max = c->v > w->v_max ? c->v : w->v_max;
    }
    for (int i = 0; i < w->n_parts; i++) {
        JpegPart *c = &w->part[i];
        uint32_t h_max = (uint32_t)w->h_max, v_max = (uint32_t)w->v_max, h = (uint32_t)c->h, v = (uint32_t)c->v;
        if (h_max % h || v_max % v) return jpeg_fail(w, d + 7 + 3 * i, "sampling factors in whole ratios", "others");
        c->columns = ((w->width * h + h_max - 1) / h_max + 7) / 8;
        c->rows = ((w->height * v + v_max - 1) / v_max + 7) / 8;
        c->stride = (w->width + 8 * h_max - 1) / (8 * h_max) * h;
        memset(c->low, -1, sizeof c->low);
        uint32_t padded = (w->height + 8 * v_max - 1) / (8 * v_max) * v;
        if (marker != 0xC2 || headers_only) continue;
        c->nonzero = calloc((size_t)c->stride * padded, sizeof *c->nonzero);
        if (!c->nonzero)
            return err_set(w->e, "E-ME-01", AT(.file = w->name),
                           "expected memory to check a JPEG; found none; do: close other programs");
    }
    return true;
}

// More bits into the buffer, up to the next marker. FF 00 stands for the byte FF.
static void jpeg_fill(JpegWalk *w) {
    if (w->end - w->p >= 8) {
        uint64_t next = (uint64_t)be32(w->p) << 32 | be32(w->p + 4);
        if (!((~next - 0x0101010101010101u) & next & 0x8080808080808080u)) { // no byte FF among the eight
            int take = (64 - w->n_bits) / 8;
            w->bits |= (take == 8 ? next : next >> (64 - 8 * take) << (64 - 8 * take)) >> w->n_bits;
            w->p += take, w->n_bits += 8 * take;
            return;
        }
    }
    while (w->n_bits <= 56 && w->p < w->end) {
        if (*w->p == 0xFF && (w->end - w->p < 2 || w->p[1] != 0)) return;
        w->bits |= (uint64_t)*w->p << (56 - w->n_bits), w->n_bits += 8;
        w->p += *w->p == 0xFF ? 2 : 1;
    }
}

// The place of the next bit: bytes that were read ahead are given back.
static void jpeg_unread(JpegWalk *w) {
    for (int ahead = w->n_bits / 8; ahead; ahead--) w->p -= w->p[-1] == 0 && w->p[-2] == 0xFF ? 2 : 1;
    w->bits = 0, w->n_bits = 0;
}

static bool jpeg_short(JpegWalk *w) {
    char found[100];
    jpeg_unread(w);
    snprintf(found, sizeof found, "%s (the picture stops at row %u of %u)",
             w->p >= w->end ? "the end of the file" : "a marker", w->at_row, w->height);
    return jpeg_fail(w, w->p, "picture data to the last block of the scan", found);
}

static bool jpeg_damaged(JpegWalk *w, const char *found) {
    jpeg_unread(w);
    return jpeg_fail(w, w->p, "picture data as the tables allow it", found);
}

static bool jpeg_skip(JpegWalk *w, int n, uint32_t *value) { // n <= 16 bits
    *value = 0;
    if (w->n_bits < n) jpeg_fill(w);
    if (w->n_bits < n) return jpeg_short(w);
    if (n) *value = (uint32_t)(w->bits >> (64 - n));
    w->bits <<= n, w->n_bits -= n;
    return true;
}

static bool jpeg_skip_many(JpegWalk *w, int n) {
    uint32_t value;
    for (; n > 16; n -= 16)
        if (!jpeg_skip(w, 16, &value)) return false;
    return jpeg_skip(w, n, &value);
}

static bool jpeg_symbol(JpegWalk *w, const JpegCode *h, int *symbol) {
    if (w->n_bits < 16) jpeg_fill(w);
    int length;
    uint32_t quick = h->quick[w->bits >> (64 - QUICK)];
    if (quick) {
        length = (int)(quick >> 8), *symbol = (int)(quick & 255);
    } else {
        int32_t next = (int32_t)(w->bits >> 48);
        for (length = QUICK + 1; length <= 16 && next >= h->beyond[length];) length++;
        if (length > 16) return w->n_bits < 16 ? jpeg_short(w) : jpeg_damaged(w, "a Huffman code that is not defined");
        *symbol = h->symbol[(next >> (16 - length)) + h->offset[length]];
    }
    if (length > w->n_bits) return jpeg_short(w);
    w->bits <<= length, w->n_bits -= length;
    return true;
}

// The DC coefficient: a difference of at most 11 bits (T.81, table F.1 for 8-bit samples), whose sum stays in 16 bits
// whatever the encoder does.
static bool jpeg_dc(JpegWalk *w, JpegPart *c) {
    int size;
    uint32_t value;
    if (!jpeg_symbol(w, &w->code[0][c->dc], &size)) return false;
    if (size > 11) return jpeg_damaged(w, "a DC difference of more than 11 bits");
    if (!jpeg_skip(w, size, &value)) return false;
    c->predicted += (int32_t)value < (size ? 1 << (size - 1) : 0) ? (int32_t)value - (1 << size) + 1 : (int32_t)value;
    if (abs(c->predicted) > INT16_MAX >> w->low) return jpeg_damaged(w, "a DC coefficient of more than 16 bits");
    return true;
}

static bool jpeg_block_sequential(JpegWalk *w, JpegPart *c) {
    const JpegCode *h = &w->code[1][c->ac];
    if (!jpeg_dc(w, c)) return false;
    for (int k = 1, symbol; k < 64;) {
        uint32_t value;
        if (!jpeg_symbol(w, h, &symbol)) return false;
        int run = symbol >> 4, size = symbol & 15;
        if (symbol == 0) return true;
        if (size > 10 || (size == 0 && run != 15)) return jpeg_damaged(w, "an AC code that baseline does not have");
        k += run + 1;
        if (k > 64) return jpeg_damaged(w, "more than 64 coefficients in a block");
        if (!jpeg_skip(w, size, &value)) return false;
    }
    return true;
}

// First pass over a band of AC coefficients (T.81, G.1.2.2).
static bool jpeg_block_first(JpegWalk *w, JpegPart *c, uint64_t *nonzero) {
    if (w->eob_run) return w->eob_run--, true;
    for (int k = w->start, symbol; k <= w->stop;) {
        uint32_t value;
        if (!jpeg_symbol(w, &w->code[1][c->ac], &symbol)) return false;
        int run = symbol >> 4, size = symbol & 15;
        if (size == 0 && run < 15) {
            if (!jpeg_skip(w, run, &value)) return false;
            w->eob_run = (1u << run) + value - 1;
            return true;
        }
        if (size > 10) return jpeg_damaged(w, "an AC code of more than 10 bits");
        k += run + 1;
        if (k > w->stop + 1) return jpeg_damaged(w, "coefficients past the end of the band");
        if (!jpeg_skip(w, size, &value)) return false;
        if (size) *nonzero |= 1ull << (k - 1);
    }
    return true;
}

// A refining pass (T.81, G.1.2.3): one more bit for each coefficient that is not zero, and new ones of +-1 between
// them.
static bool jpeg_block_refine(JpegWalk *w, JpegPart *c, uint64_t *nonzero) {
    int k = w->start, symbol;
    uint32_t value;
    while (!w->eob_run && k <= w->stop) {
        if (!jpeg_symbol(w, &w->code[1][c->ac], &symbol)) return false;
        int run = symbol >> 4, size = symbol & 15;
        if (size == 0 && run < 15) {
            if (!jpeg_skip(w, run, &value)) return false;
            w->eob_run = (1u << run) + value;
            break;
        }
        if (size > 1) return jpeg_damaged(w, "a refinement of more than one bit");
        if (!jpeg_skip(w, size, &value)) return false;
        int refined = 0;
        for (; k <= w->stop; k++) {
            if (*nonzero >> k & 1) refined++;
            else if (run-- == 0) break;
        }
        if (!jpeg_skip_many(w, refined)) return false;
        if (k > w->stop) return jpeg_damaged(w, "coefficients past the end of the band");
        if (size) *nonzero |= 1ull << k;
        k++;
    }
    if (w->eob_run) {
        uint64_t band = k > w->stop ? 0 : (*nonzero >> k) & (~0ull >> (63 - (w->stop - k)));
        if (!jpeg_skip_many(w, __builtin_popcountll(band))) return false;
        w->eob_run--;
    }
    return true;
}

static bool jpeg_block(JpegWalk *w, JpegPart *c, uint32_t column, uint32_t row) {
    uint32_t value;
    if (w->frame != 0xC2) return jpeg_block_sequential(w, c);
    if (w->start == 0) return w->high ? jpeg_skip(w, 1, &value) : jpeg_dc(w, c);
    uint64_t *nonzero = &c->nonzero[(size_t)row * c->stride + column];
    return w->high ? jpeg_block_refine(w, c, nonzero) : jpeg_block_first(w, c, nonzero);
}

// Every MCU of a scan, with the restart markers between them. Afterwards p is behind the last byte that was used.
static bool jpeg_scan_data(JpegWalk *w) {
    bool alone = w->n_scan == 1;
    uint32_t columns = alone ? w->scan[0]->columns : w->part[0].stride / (uint32_t)w->part[0].h;
    uint32_t mcu_height = 8 * (uint32_t)w->v_max;
    uint32_t rows = alone ? w->scan[0]->rows : (w->height + mcu_height - 1) / mcu_height;
    uint32_t left = w->restart, expected = 0;
    w->visits += (int64_t)columns * rows * (alone ? 1 : w->n_scan);
    // A normal progressive file visits each block about ten times. This many visits take about the two seconds that one
    // picture may have; the scans of a file that wants more were made to burn time.
    if (w->visits > LIMIT_IMAGE_PIXELS)
        return err_set(w->e, "E-IM-08", AT(.file = w->name, BYTE(w->p - w->data)),
                       "expected scans that decode within two seconds; found scan %lld and %lld block visits; do: save "
                       "the picture again with the usual scans",
                       (long long)w->scans, (long long)w->visits);
    w->bits = 0, w->n_bits = 0, w->eob_run = 0;
    for (int i = 0; i < w->n_scan; i++) w->scan[i]->predicted = 0;
    for (uint32_t y = 0; y < rows; y++) {
        w->at_row = alone ? y * 8 * (uint32_t)(w->v_max / w->scan[0]->v) : y * mcu_height;
        for (uint32_t x = 0; x < columns; x++) {
            if (w->restart && left == 0) {
                jpeg_unread(w);
                const uint8_t *marker = w->p;
                while (w->end - marker > 2 && marker[0] == 0xFF && marker[1] == 0xFF) marker++;
                if (w->end - marker < 2 || marker[0] != 0xFF || marker[1] != 0xD0 + expected) {
                    char want[48];
                    snprintf(want, sizeof want, "the restart marker FF D%u", expected);
                    return jpeg_fail(w, w->p, want, w->end - marker < 2 ? "the end of the file" : "other data");
                }
                w->p = marker + 2, left = w->restart, expected = (expected + 1) & 7, w->eob_run = 0;
                for (int i = 0; i < w->n_scan; i++) w->scan[i]->predicted = 0;
            }
            left--;
            if (alone) {
                if (!jpeg_block(w, w->scan[0], x, y)) return false;
                continue;
            }
            for (int i = 0; i < w->n_scan; i++) {
                JpegPart *c = w->scan[i];
                uint32_t h = (uint32_t)c->h, v = (uint32_t)c->v;
                for (uint32_t by = 0; by < v; by++)
                    for (uint32_t bx = 0; bx < h; bx++)
                        if (!jpeg_block(w, c, x * h + bx, y * v + by)) return false;
            }
        }
    }
    jpeg_unread(w);
    return true;
}

// The order of passes that a progressive picture must keep: DC first, every band coarse first and then bit by bit.
static bool jpeg_progression(JpegWalk *w, const uint8_t *d) {
    if (w->start > w->stop || w->stop > 63 || w->low > 13 || (w->start == 0) != (w->stop == 0) ||
        (w->start && w->n_scan > 1) || (w->high && w->high != w->low + 1))
        return jpeg_fail(w, d, "a scan of one band and one bit position", "another one");
    for (int i = 0; i < w->n_scan; i++)
        for (int k = w->start; k <= w->stop; k++) {
            int8_t *low = &w->scan[i]->low[k];
            if (*low != (w->high ? w->high : -1) || (k && w->scan[i]->low[0] < 0))
                return jpeg_fail(w, d, "scans in order: DC first, then coarse to fine", "another order");
            *low = (int8_t)w->low;
        }
    return true;
}

static bool jpeg_scan(JpegWalk *w, const uint8_t *d, size_t n) {
    if (!w->frame) return jpeg_fail(w, d, "a frame header before the first scan", "a scan");
    if (++w->scans > LIMIT_JPEG_SCANS) return jpeg_fail(w, d, "at most 512 scans", "more");
    w->n_scan = n ? d[0] : 0;
    if (w->n_scan < 1 || w->n_scan > w->n_parts || n != 4 + 2 * (size_t)w->n_scan)
        return jpeg_fail(w, d, "a scan header for components of the frame", "another length");
    const uint8_t *band = d + 1 + 2 * w->n_scan;
    w->start = band[0], w->stop = band[1], w->high = band[2] >> 4, w->low = band[2] & 15;
    bool progressive = w->frame == 0xC2;
    if (!progressive && (w->start || w->stop != 63 || w->high || w->low))
        return jpeg_fail(w, band, "all 64 coefficients in one scan", "a part of them");
    int blocks = 0, found = -1; // components stand in the order of the frame header
    for (int i = 0; i < w->n_scan; i++) {
        const uint8_t *s = d + 1 + 2 * i;
        for (found++; found < w->n_parts && w->part[found].id != s[0];) found++;
        if (found >= w->n_parts) return jpeg_fail(w, s, "components of the frame, in its order", "another one");
        JpegPart *c = w->scan[i] = &w->part[found];
        c->dc = s[1] >> 4, c->ac = s[1] & 15, blocks += c->h * c->v;
        bool needs_dc = w->start == 0 && !w->high, needs_ac = w->stop > 0;
        if (c->dc > 3 || c->ac > 3 || (needs_dc && !w->code[0][c->dc].defined) ||
            (needs_ac && !w->code[1][c->ac].defined) || !w->quant[c->quant])
            return jpeg_fail(w, s, "tables that are defined before the scan that uses them", "a table that is not");
        if (!progressive && c->coded) return jpeg_fail(w, s, "one scan for each component", "a second one");
        c->coded = w->quant_used[c->quant] = true;
    }
    if (w->n_scan > 1 && blocks > 10) return jpeg_fail(w, d, "at most 10 blocks in an MCU", "more");
    return !progressive || jpeg_progression(w, band);
}

static void jpeg_application(JpegWalk *w, ImageFacts *f, int marker, const uint8_t *d, size_t n) {
    if (marker == 0xE0 && n >= 14 && !memcmp(d, "JFIF", 5)) w->jfif = true;
    if (marker == 0xEE && n >= 12 && !memcmp(d, "Adobe", 5)) w->adobe = d[11];
    if (marker == 0xE1 && n >= 6 && !memcmp(d, "Exif\0", 6) && !w->exif)
        w->exif = true, f->orientation = exif_orientation(d + 6, n - 6);
}

// RGB or YCbCr, as libjpeg decides it (jdapimin.c, default_decompress_parms): JFIF means YCbCr, then the Adobe marker
// speaks, then the names of the components.
static bool jpeg_is_rgb(const JpegWalk *w) {
    if (w->n_parts != 3 || w->jfif) return false;
    if (w->adobe >= 0) return w->adobe == 0;
    return w->part[0].id == 'R' && w->part[1].id == 'G' && w->part[2].id == 'B';
}

static bool jpeg_check(JpegWalk *w, ImageFacts *f, bool headers_only) {
    w->p = w->data + 2;
    jpeg_emit(w, 0xD8, w->p, 0);
    for (bool after_scan = false;;) {
        const uint8_t *at = w->p;
        if (after_scan) { // decoders pass over anything here that is no marker
            while (w->end - w->p >= 2 && !(w->p[0] == 0xFF && w->p[1] != 0 && w->p[1] != 0xFF)) w->p++;
            if (w->p != at && w->end - w->p >= 2)
                for (const uint8_t *p = at; p < w->p; p++)
                    if (*p != 0xFF) {
                        warn("E-IM-06", AT(.file = w->name, BYTE(p - w->data)),
                             "expected a marker after the scan; found %lld other bytes; do: nothing, they are ignored",
                             (long long)(w->p - p));
                        break;
                    }
        }
        while (w->end - w->p >= 2 && w->p[0] == 0xFF && w->p[1] == 0xFF) w->p++;
        if (w->end - w->p < 2) {
            char found[96];
            snprintf(found, sizeof found, "the end of the file after %lld scans", (long long)w->scans);
            return jpeg_fail(w, w->end, "the end marker FF D9", found);
        }
        if (w->p[0] != 0xFF) return jpeg_fail(w, w->p, "a marker (FF and a code)", "another byte");
        int marker = w->p[1];
        w->p += 2;
        if (marker == 0xD9) break;
        if (after_scan && marker >= 0xD0 && marker <= 0xD7) continue; // a restart marker after the last MCU
        if (marker < 0xC0 || (marker >= 0xD0 && marker <= 0xD8))
            return jpeg_fail(w, w->p - 2, "a marker with a segment", "another one");
        uint32_t length = w->end - w->p < 2 ? 0 : be16(w->p);
        if (length < 2 || length > w->end - w->p)
            return jpeg_fail(w, w->p, "a segment that ends inside the file", "one that does not");
        const uint8_t *d = w->p + 2, *next = w->p + length;
        size_t n = length - 2;
        bool keep = true;
        if (marker == 0xDB) {
            if (!jpeg_quant(w, d, next)) return false;
        } else if (marker == 0xC4) {
            if (!jpeg_huffman(w, d, next)) return false;
        } else if (marker == 0xCC) {
            return jpeg_unsupported(w, d, "arithmetic coding");
        } else if (marker == 0xDE || marker == 0xDF) {
            return jpeg_unsupported(w, d, "a hierarchical picture");
        } else if (marker == 0xC8 || marker >= 0xF0) {
            keep = false;
            if (marker != 0xFE) return jpeg_fail(w, d - 4, "a marker of a JPEG picture", "a reserved one");
        } else if (marker < 0xD0) {
            if (!jpeg_frame(w, marker, d, n, headers_only)) return false;
        } else if (marker == 0xDD) {
            if (n != 2) return jpeg_fail(w, d, "a restart interval of two bytes", "another length");
            w->restart = be16(d);
        } else if (marker == 0xDA) {
            if (headers_only && w->frame) break;
            if (!jpeg_scan(w, d, n)) return false;
        } else { // DNL says again what the frame header said; APPn
            keep = false;
            if (marker == 0xDC && (n != 2 || be16(d) != w->height))
                return jpeg_fail(w, d, "the height of the frame header", "another one");
            jpeg_application(w, f, marker, d, n);
        }
        if (keep) jpeg_emit(w, marker, w->p, length);
        w->p = next, after_scan = marker == 0xDA;
        if (!after_scan) continue;
        if (!jpeg_scan_data(w)) return false;
        if (w->clean) memcpy(w->clean_end, next, (size_t)(w->p - next)), w->clean_end += w->p - next;
    }
    f->width = (int)w->width, f->height = (int)w->height, f->depth = 8, f->components = w->n_parts;
    f->coded_rgb = jpeg_is_rgb(w);
    if (!w->frame) return jpeg_fail(w, w->p - 2, "a frame header", "none before the end marker");
    if (headers_only) return true;
    for (int i = 0; i < w->n_parts; i++) {
        if (!w->part[i].coded)
            return jpeg_fail(w, w->p - 2, "a scan of every component before the end marker", "the end marker");
        // A picture that lacks fine passes was cut off, however well it ends. (libjpeg smooths such pictures by
        // guessing.)
        for (int k = 0; k < 64 && w->frame == 0xC2; k++)
            if (w->part[i].low[k] != 0)
                return jpeg_fail(w, w->p - 2, "all passes of a progressive picture before the end marker", "some");
    }
    jpeg_emit(w, 0xD9, w->p, 0);
    if (w->p != w->end)
        warn("E-IM-06", AT(.file = w->name, BYTE(w->p - w->data)),
             "expected nothing after FF D9; found %lld more bytes; do: nothing, they are ignored",
             (long long)(w->end - w->p));
    return true;
}

// ------------------------------------------------------------------------------------------------------------ both

static const char *format_name(const uint8_t *d, size_t n) {
    static const struct {
        size_t at, len;
        const char *magic, *name;
    } known[] = {{0, 4, "GIF8", "a GIF"},         {0, 2, "BM", "a BMP"},
                 {8, 4, "WEBP", "a WebP"},        {0, 4, "II*\0", "a TIFF"},
                 {0, 4, "MM\0*", "a TIFF"},       {4, 8, "ftypavif", "an AVIF"},
                 {4, 4, "ftyp", "a HEIC or MP4"}, {0, 23, "version https://git-lfs", "a Git LFS pointer"},
                 {0, 1, "<", "HTML or XML text"}, {0, 4, "%PDF", "a PDF"}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (n >= known[i].at + known[i].len && !memcmp(d + known[i].at, known[i].magic, known[i].len))
            return known[i].name;
    return NULL;
}

bool image_check(ImageFacts *f, const uint8_t *data, size_t size, const char *name, bool headers_only, Err *e) {
    memset(f, 0, sizeof *f);
    f->orientation = 1;
    if (size < 1 || size > (size_t)LIMIT_IMAGE_BYTES)
        return err_set(e, "E-IM-01", AT(.file = name, BYTE(0)),
                       "expected 1 to %lld bytes of JPEG or PNG; found %llu; do: check that this is the right file",
                       (long long)LIMIT_IMAGE_BYTES, (unsigned long long)size);
    if (size >= 8 && !memcmp(data, "\x89PNG\r\n\x1a\n", 8)) {
        PngWalk w = {.name = name, .data = data, .size = size, .e = e};
        f->format = "PNG";
        return png_check(&w, f, headers_only);
    }
    if (size < 3 || memcmp(data, "\xFF\xD8\xFF", 3)) {
        const char *known = format_name(data, size);
        return err_set(e, "E-IM-01", AT(.file = name, BYTE(0)),
                       "expected a JPEG or a PNG; found %s; do: convert the picture to one of them",
                       known ? known : quoted((const char *)data, size < 16 ? size : 16));
    }
    f->format = "JPEG";
    JpegWalk *w = calloc(1, sizeof *w);
    uint8_t *clean = headers_only || !w ? NULL : malloc(size);
    bool ok = false;
    if (!w || !(clean || headers_only)) {
        err_set(e, "E-ME-01", AT(.file = name),
                "expected memory to check a JPEG; found none; do: close other programs");
    } else {
        w->name = name, w->data = data, w->end = data + size, w->e = e, w->adobe = -1;
        w->clean = w->clean_end = clean;
        ok = jpeg_check(w, f, headers_only);
        for (int i = 0; i < 3; i++) free(w->part[i].nonzero);
    }
    if (ok) f->jpeg = clean, f->jpeg_size = clean ? (size_t)(w->clean_end - clean) : 0;
    else free(clean);
    free(w);
    return ok;
}
