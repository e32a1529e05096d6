// import_xlsx.c - the first sheet of a spreadsheet as CSV text: what Cholec80-CVS is published as.
//
// What it is:  ZIP, DEFLATE and the few XML elements that hold cells (sheetData/row/c/v, sharedStrings/si/t). Sizes are checked before
//              anything is written, and the CRC of each part after it.
// What it is not: an XML parser, or formulas: the value a cell had when it was saved is taken.
// Read before: import.h.  Read next: import_camma.c.
// Sources: PKWARE APPNOTE 4.3 (ZIP), RFC 1951 (DEFLATE), ECMA-376 part 1, 18.3 (cells) and 18.4 (shared strings).
#include "import.h"

typedef struct ZipPart { // a file inside the ZIP
    char *text;          // zero-terminated
    size_t size;
} ZipPart;
typedef struct Zip {
    const char *file;
    const uint8_t *p;
    size_t size;
    Err *e;
} Zip;

static bool zip_fail(const Zip *z, size_t at, const char *expected, const char *found) {
    return err_set(z->e, "E-DS-13", AT(.file = z->file, BYTE(at)),
                   "expected %s; found %s; do: save the sheet as CSV (UTF-8, commas) instead", expected, found);
}

static uint32_t le(const uint8_t *p, int n) {
    uint32_t v = 0;
    for (int i = n; i-- > 0;) v = v << 8 | p[i];
    return v;
}

// ------------------------------------------------------------------------------------------------------------ DEFLATE
typedef struct Bits { // least significant bit first
    const uint8_t *p, *end;
    uint32_t hold;
    int n;
} Bits;
typedef struct Code { // canonical Huffman: how many codes of each length, symbols by code
    uint16_t count[16], symbol[288];
} Code;

static int bits_take(Bits *b, int n) { // -1 at the end of the data
    while (b->n < n) {
        if (b->p == b->end) return -1;
        b->hold |= (uint32_t)*b->p++ << b->n;
        b->n += 8;
    }
    int v = (int)(b->hold & ((1u << n) - 1));
    b->hold >>= n, b->n -= n;
    return v;
}

static bool code_build(Code *c, const uint8_t *lengths,
                       int n) { // false when the lengths ask for more codes than there are
    uint16_t start[16] = {0};
    int left = 1;
    memset(c, 0, sizeof *c);
    for (int i = 0; i < n; i++) c->count[lengths[i]]++;
    c->count[0] = 0;
    for (int len = 1; len < 16; len++) {
        left = 2 * left - c->count[len];
        if (left < 0) return false;
        if (len > 1) start[len] = (uint16_t)(start[len - 1] + c->count[len - 1]);
    }
    for (int i = 0; i < n; i++)
        if (lengths[i]) c->symbol[start[lengths[i]]++] = (uint16_t)i;
    return true;
}

static int code_take(Bits *b, const Code *c) {
    int code = 0, first = 0, index = 0;
    for (int len = 1; len < 16; len++) {
        int bit = bits_take(b, 1);
        if (bit < 0) return -1;
        code |= bit;
        if (code - c->count[len] < first) return c->symbol[index + code - first];
        index += c->count[len];
        first = 2 * (first + c->count[len]);
        code *= 2;
    }
    return -1;
}

// The codes of a block of kind 1 (fixed) or 2 (sent in front of it).
static bool block_codes(Bits *b, int kind, Code *literals, Code *distances) {
    static const uint8_t order[19] = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};
    uint8_t lengths[320] = {0};
    if (kind == 1) {
        for (int i = 0; i < 288; i++) lengths[i] = i < 144 ? 8 : i < 256 ? 9 : i < 280 ? 7 : 8;
        for (int i = 0; i < 30; i++) lengths[288 + i] = 5;
        return code_build(literals, lengths, 288) && code_build(distances, lengths + 288, 30);
    }
    int n_literals = bits_take(b, 5) + 257, n_distances = bits_take(b, 5) + 1, n_lengths = bits_take(b, 4) + 4;
    if (n_literals < 257 || n_literals > 286 || n_distances < 1 || n_distances > 30 || n_lengths < 4) return false;
    for (int i = 0; i < n_lengths; i++) {
        int v = bits_take(b, 3);
        if (v < 0) return false;
        lengths[order[i]] = (uint8_t)v;
    }
    if (!code_build(literals, lengths, 19)) return false;
    Code small = *literals;
    memset(lengths, 0, sizeof lengths);
    for (int i = 0; i < n_literals + n_distances;) {
        int s = code_take(b, &small), times = 1;
        uint8_t value = (uint8_t)(s < 16 ? s : 0);
        if (s < 0 || (s == 16 && !i)) return false;
        if (s >= 16) {
            int more = bits_take(b, s == 16 ? 2 : s == 17 ? 3 : 7);
            if (more < 0) return false;
            times = more + (s == 18 ? 11 : 3);
            if (s == 16) value = lengths[i - 1];
        }
        if (i + times > n_literals + n_distances) return false;
        while (times-- > 0) lengths[i++] = value;
    }
    return code_build(literals, lengths, n_literals) && code_build(distances, lengths + n_literals, n_distances);
}

static bool inflate_block(Bits *b, const Code *literals, const Code *distances, uint8_t *out, size_t size, size_t *at) {
    static const uint16_t length_base[29] = {3,  4,  5,  6,  7,  8,  9,  10, 11,  13,  15,  17,  19,  23, 27,
                                             31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258};
    static const uint8_t length_bits[29] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2,
                                            2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0};
    for (;;) {
        int s = code_take(b, literals);
        if (s < 0 || s > 285) return false;
        if (s == 256) return true;
        if (s < 256) {
            if (*at == size) return false;
            out[(*at)++] = (uint8_t)s;
            continue;
        }
        int extra = bits_take(b, length_bits[s - 257]), d = code_take(b, distances);
        if (extra < 0 || d < 0 || d > 29) return false;
        size_t length = (size_t)(length_base[s - 257] + extra);
        int far_bits = d < 2 ? 0 : d / 2 - 1, far = bits_take(b, far_bits);
        if (far < 0) return false;
        size_t distance = (size_t)(d < 2 ? d + 1 : ((2 + d % 2) << far_bits) + 1 + far);
        if (distance > *at || length > size - *at) return false;
        for (size_t i = 0; i < length; i++, ++*at) out[*at] = out[*at - distance];
    }
}

static bool inflate_all(const uint8_t *p, size_t n, uint8_t *out, size_t size) { // exactly size bytes
    Bits b = {p, p + n, 0, 0};
    size_t at = 0;
    for (int last = 0; !last;) {
        Code literals, distances;
        last = bits_take(&b, 1);
        int kind = bits_take(&b, 2);
        if (last < 0 || kind < 0 || kind == 3) return false;
        if (kind == 0) { // stored: whole bytes from the next one on
            b.p -= b.n / 8, b.hold = 0, b.n = 0;
            if (b.end - b.p < 4 || le(b.p, 2) != (~le(b.p + 2, 2) & 0xffff)) return false;
            size_t length = le(b.p, 2);
            b.p += 4;
            if (length > (size_t)(b.end - b.p) || length > size - at) return false;
            if (length) memcpy(out + at, b.p, length);
            b.p += length, at += length;
        } else if (!block_codes(&b, kind, &literals, &distances) ||
                   !inflate_block(&b, &literals, &distances, out, size, &at))
            return false;
    }
    return at == size;
}

// ---------------------------------------------------------------------------------------------------------------- ZIP
static bool zip_part(const Zip *z, const char *name, ZipPart *out, bool *found) { // false on damage only
    size_t end = z->size, at;
    *found = false;
    for (at = end < 22 ? 0 : end - 22;; at--) { // the end record stands last, behind it only a comment
        if (z->size >= 22 && !memcmp(z->p + at, "PK\5\6", 4)) break;
        if (!at || z->size < 22 || end - at > 65557)
            return zip_fail(z, 0, "a spreadsheet (a ZIP file)", "no end record of one");
    }
    uint32_t entries = le(z->p + at + 10, 2), from = le(z->p + at + 16, 4);
    for (size_t p = from; entries-- > 0;) {
        if (p > z->size || z->size - p < 46 || memcmp(z->p + p, "PK\1\2", 4))
            return zip_fail(z, p, "an entry of the ZIP's list", "another thing");
        const uint8_t *h = z->p + p;
        size_t n = le(h + 28, 2), next = 46 + n + le(h + 30, 2) + le(h + 32, 2), packed = le(h + 20, 4),
               size = le(h + 24, 4), local = le(h + 42, 4);
        if (next > z->size - p) return zip_fail(z, p, "an entry inside of the file", "one that ends behind it");
        p += next;
        if (n != strlen(name) || memcmp(h + 46, name, n)) continue;
        uint32_t method = le(h + 10, 2);
        if (le(h + 8, 2) & 1 || (method != 0 && method != 8))
            return zip_fail(z, p, "a part that is stored or deflated", "another method");
        if (local > z->size || z->size - local < 30 || memcmp(z->p + local, "PK\3\4", 4))
            return zip_fail(z, local, "a part", "another thing");
        size_t data = local + 30 + le(z->p + local + 26, 2) + le(z->p + local + 28, 2);
        if (data > z->size || packed > z->size - data)
            return zip_fail(z, local, "a part inside of the file", "one that ends behind it");
        if (size > (size_t)LIMIT_TABLE_BYTES || size > 1100 * packed + 64)
            return zip_fail(z, local, "a part of a sheet's size", "a larger one");
        out->text = alloc_or_die(size + 1, 1, "a part of a spreadsheet"), out->size = size;
        bool ok = method ? inflate_all(z->p + data, packed, (uint8_t *)out->text, size) : packed == size;
        if (ok && !method && size) memcpy(out->text, z->p + data, size);
        if (!ok || png_crc(0, (const uint8_t *)out->text, size) != le(h + 16, 4) || memchr(out->text, 0, size)) {
            free(out->text), *out = (ZipPart){0};
            return zip_fail(z, data, "undamaged data", "a part that does not unpack to its checksum");
        }
        return *found = true;
    }
    return true;
}

// ---------------------------------------------------------------------------------------------------------------- XML
// The next element of this name from p on: its attributes [*attributes, *inside) and its content [*inside, *end). NULL: none.
static const char *element(const char *p, const char *stop, const char *name, const char **attributes,
                           const char **inside, const char **end) {
    size_t n = strlen(name);
    for (; (p = strchr(p, '<')) && p < stop; p++) {
        if (strncmp(p + 1, name, n) || !strchr(" \t\r\n>/", p[1 + n])) continue;
        const char *close = strchr(p, '>');
        if (!close || close >= stop) return NULL;
        *attributes = p + 1 + n, *inside = close + 1, *end = close + 1;
        if (close[-1] == '/') return close + 1; // empty
        char tag[40];
        snprintf(tag, sizeof tag, "</%s>", name);
        *end = strstr(close, tag);
        return *end && *end < stop ? *end + n + 3 : NULL;
    }
    return NULL;
}

static bool attribute(const char *from, const char *to, const char *name, char *out, size_t size) {
    size_t n = strlen(name);
    for (const char *p = from; p + n + 2 < to; p++) {
        if ((p[0] != ' ' && p[0] != '\n' && p[0] != '\t') || strncmp(p + 1, name, n) || p[1 + n] != '=' ||
            p[2 + n] != '"')
            continue;
        const char *value = p + n + 3, *quote = memchr(value, '"', (size_t)(to - value));
        if (!quote) return false;
        snprintf(out, size, "%.*s", (int)(quote - value), value);
        return true;
    }
    return false;
}

static void add_plain(Text *out, const char *p, const char *end) { // with entities resolved, as a CSV cell's inside
    static const struct {
        const char *name, *text;
    } entities[] = {{"&lt;", "<"}, {"&gt;", ">"}, {"&amp;", "&"}, {"&quot;", "\"\""}, {"&apos;", "'"}};
    while (p < end) {
        bool done = false;
        for (size_t i = 0; i < sizeof entities / sizeof *entities && !done; i++)
            if (!strncmp(p, entities[i].name, strlen(entities[i].name)))
                text_addf(out, "%s", entities[i].text), p += strlen(entities[i].name), done = true;
        if (done) continue;
        text_add(out, *p == '"' ? "\"\"" : p, *p == '"' ? 2 : 1);
        p++;
    }
}

static void add_texts(Text *out, const char *p, const char *end) { // all <t> of an element
    const char *attributes, *inside, *to;
    while ((p = element(p, end, "t", &attributes, &inside, &to))) add_plain(out, inside, to);
}

typedef struct Strings {
    Text all;
    size_t *start; // [n + 1]
    size_t n, cap;
} Strings;

static void strings_read(Strings *s, const ZipPart *part) {
    const char *attributes, *inside, *end, *stop = part->text + part->size;
    s->start = alloc_or_die(1, sizeof *s->start, "texts of a spreadsheet");
    for (const char *p = part->text; p && (p = element(p, stop, "si", &attributes, &inside, &end));) {
        add_texts(&s->all, inside, end);
        s->start = grow_or_die(s->start, ++s->n + 1, sizeof *s->start, "texts of a spreadsheet");
        s->start[s->n] = s->all.len;
    }
}

static bool add_cell(const Zip *z, const Strings *s, Text *csv, const char *attributes, const char *inside,
                     const char *end) {
    char type[16] = "n";
    const char *a, *v = NULL, *to = NULL;
    int64_t index;
    attribute(attributes, inside, "t", type, sizeof type);
    text_addf(csv, "\"");
    if (!strcmp(type, "inlineStr")) add_texts(csv, inside, end);
    else if (element(inside, end, "v", &a, &v, &to)) {
        if (strcmp(type, "s")) add_plain(csv, v, to);
        else if (!text_int(v, (size_t)(to - v), &index) || index < 0 || (size_t)index >= s->n)
            return zip_fail(z, 0, "a cell whose text is in the list of texts", "another number");
        else text_add(csv, s->all.p ? s->all.p + s->start[index] : "", s->start[index + 1] - s->start[index]);
    }
    text_addf(csv, "\"");
    return true;
}

// One line of CSV, as long as the first; a cell's place is in its name: "C7".
static bool add_row(const Zip *z, const Strings *s, Text *csv, const char *p, const char *stop, int *width) {
    const char *attributes, *inside, *end;
    int column = 0;
    while ((p = element(p, stop, "c", &attributes, &inside, &end))) {
        char place[16] = "";
        int wanted = 0;
        if (attribute(attributes, inside, "r", place, sizeof place))
            for (const char *c = place; *c >= 'A' && *c <= 'Z' && wanted < 1000; c++)
                wanted = 26 * wanted + *c - 'A' + 1;
        if (!wanted) wanted = column + 1;
        if (wanted <= column || wanted > 256)
            return zip_fail(z, 0, "at most 256 cells in their order", "another order");
        for (; column < wanted - 1; column++) text_addf(csv, "%s", column ? "," : "");
        text_addf(csv, "%s", column++ ? "," : "");
        if (!add_cell(z, s, csv, attributes, inside, end)) return false;
    }
    if (column > *width && *width >= 0) return zip_fail(z, 0, "no row longer than the first", "a longer one");
    for (; column && column < *width; column++) text_addf(csv, ","); // a sheet leaves out its empty cells
    if (*width < 0) *width = column;
    text_addf(csv, "\n");
    return true;
}

bool xlsx_csv(Text *csv, const char *path, Err *e) {
    char *data;
    ZipPart sheet = {0}, texts = {0};
    Strings s = {0};
    bool here = false, shared = false;
    int width = -1; // cells of the first row
    Zip z = {.file = path, .e = e};
    if (!file_read(path, LIMIT_TABLE_BYTES, "E-DS-13", &data, &z.size, e)) return false;
    z.p = (const uint8_t *)data;
    bool ok = zip_part(&z, "xl/worksheets/sheet1.xml", &sheet, &here) &&
              zip_part(&z, "xl/sharedStrings.xml", &texts, &shared);
    if (ok && !here) ok = zip_fail(&z, 0, "a part xl/worksheets/sheet1.xml", "none");
    if (ok && shared) strings_read(&s, &texts);
    const char *attributes, *inside, *end, *stop = ok ? sheet.text + sheet.size : NULL;
    for (const char *p = ok ? sheet.text : NULL; ok && p && (p = element(p, stop, "row", &attributes, &inside, &end));)
        ok = add_row(&z, &s, csv, inside, end, &width);
    free(data), free(sheet.text), free(texts.text), free(s.start);
    text_free(&s.all);
    return ok;
}
