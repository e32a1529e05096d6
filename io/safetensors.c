// safetensors.c - checkpoint files: read one or a sharded folder, write one.
//
// What it is:  the container. A safetensors file is 8 bytes of header length N (little endian), N bytes of JSON, then
//              the data; every rule of that layout is checked before a tensor is handed out. Read it from the bottom
//              of the trust: header_span (is this such a file?), entry_read (is this entry true?), layout_check (do the
//              entries tile the data?), then files, folders, the writer.
// What it is not: anything that knows which tensors a model needs, or under which names (model.c); nothing here
//              changes, converts in place or repairs what a file says.
// Read before: io/json.c, io/files.c.  Read next: model.c.
// Source: huggingface/safetensors README.md ("Format") and safetensors/src/tensor.rs.
#include "../surgr1.h"
#include <sys/stat.h>
#include <unistd.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "elements are little endian in the file and in memory");

enum { PATH_BUFFER = 1100, NAME_BUFFER = 640, SHAPE_BUFFER = 160, SHARD_NAME_BYTES = 255 };

// What a person can do next, for messages.
#define AGAIN     "; do: download the file again"
#define ALL_AGAIN "; do: download the checkpoint again"
#define LIBRARY   "; do: write the file with the safetensors library"
#define NOT_ONE   "; do: this is not a safetensors file, or it is damaged"

typedef struct TensorShard {
    char *path;
    FileMap map; // all zero when the bytes belong to the caller (tensors_open_memory)
    char *names; // the names of its tensors, each with a zero byte behind it
} TensorShard;

// ---------------------------------------------------------------------------------------------------------- elements

// In the order of FileType. rank: the place in the reference library's Dtype enumeration, which its writer sorts by.
static const struct TypeInfo {
    const char *name;
    size_t size;
    int rank;
} type_info[] = {{"F64", 8, 8}, {"F32", 4, 7}, {"F16", 2, 4}, {"BF16", 2, 5}, {"I64", 8, 9},
                 {"I32", 4, 6}, {"I16", 2, 3}, {"I8", 1, 2},  {"U8", 1, 1},   {"BOOL", 1, 0}};
enum { N_TYPES = sizeof type_info / sizeof *type_info };

const char *file_type_name(FileType t) { return type_info[t].name; }
size_t file_type_size(FileType t) { return type_info[t].size; }

float f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, fraction = h & 1023, bits;
    float f;
    if (exponent == 31) {
        bits = sign | 0x7F800000 | fraction << 13;
    } else if (exponent) {
        bits = sign | (exponent + 112) << 23 | fraction << 13; // bias 15 to bias 127
    } else {
        f = (float)fraction * 0x1p-24f; // zero or subnormal: exact, since a float has room for all of them
        return sign ? -f : f;
    }
    memcpy(&f, &bits, 4);
    return f;
}

// Elements lie at any alignment, so each is copied out: one move on every machine we build for.
#define EACH(type, expression)                                                                                         \
    for (int64_t i = 0; i < count; i++) {                                                                              \
        type x;                                                                                                        \
        memcpy(&x, p + i * (int64_t)sizeof x, sizeof x);                                                               \
        out[i] = expression;                                                                                           \
    }                                                                                                                  \
    break

static const uint8_t *elements_at(const Tensor *t, int64_t first, int64_t count) {
    CHECK(first >= 0 && count >= 0 && first <= t->elements && count <= t->elements - first,
          "elements [%lld, +%lld) of a tensor of %lld", (long long)first, (long long)count, (long long)t->elements);
    return t->data + (size_t)first * file_type_size(t->type);
}

void tensor_to_f32(const Tensor *t, int64_t first, int64_t count, float *out) {
    const uint8_t *p = elements_at(t, first, count);
    switch (t->type) {
    case FT_F64: EACH(double, (float)x);
    case FT_F32: EACH(float, x);
    case FT_F16: EACH(uint16_t, f16_to_f32(x));
    case FT_BF16: EACH(uint16_t, bf16_to_f32(x));
    case FT_I64: EACH(int64_t, (float)x);
    case FT_I32: EACH(int32_t, (float)x);
    case FT_I16: EACH(int16_t, x);
    case FT_I8: EACH(int8_t, x);
    case FT_U8: EACH(uint8_t, x);
    case FT_BOOL: EACH(uint8_t, x ? 1.0f : 0.0f);
    }
}

void tensor_to_i64(const Tensor *t, int64_t first, int64_t count, int64_t *out) {
    const uint8_t *p = elements_at(t, first, count);
    switch (t->type) {
    case FT_I64: EACH(int64_t, x);
    case FT_I32: EACH(int32_t, x);
    case FT_I16: EACH(int16_t, x);
    case FT_I8: EACH(int8_t, x);
    case FT_U8: EACH(uint8_t, x);
    case FT_BOOL: EACH(uint8_t, x != 0);
    default: CHECK(false, "tensor \"%s\" holds %s, not integers", t->name, file_type_name(t->type));
    }
}
#undef EACH

// A float is infinite or NaN when all its exponent bits are set. With everything else masked away, adding the lowest
// exponent bit then carries into the sign's place and no further, so eight bytes are tested at once, whatever the
// width.
typedef struct Lanes { // the same in every lane of 8 bytes
    uint64_t exponent, lowest, sign;
} Lanes;

static inline uint64_t nonfinite_lanes(const uint8_t *p, size_t bytes,
                                       Lanes l) { // a sign bit for each that is not finite
    uint64_t x = 0;
    memcpy(&x, p, bytes);
    return ((x & l.exponent) + l.lowest) & l.sign;
}

int64_t tensor_count_nonfinite(const Tensor *t) {
    Lanes l;
    switch (t->type) {
    case FT_F64: l = (Lanes){0x7FF0000000000000, 0x0010000000000000, 0x8000000000000000}; break;
    case FT_F32: l = (Lanes){0x7F8000007F800000, 0x0080000000800000, 0x8000000080000000}; break;
    case FT_F16: l = (Lanes){0x7C007C007C007C00, 0x0400040004000400, 0x8000800080008000}; break;
    case FT_BF16: l = (Lanes){0x7F807F807F807F80, 0x0080008000800080, 0x8000800080008000}; break;
    default: return 0;
    }
    enum { BLOCK = 4096 };
    int64_t found = 0;
    for (size_t i = 0; i < t->bytes;) {
        size_t block = t->bytes - i < BLOCK ? t->bytes - i : BLOCK;
        uint64_t any = block < BLOCK;
        if (block == BLOCK) // nearly always clean, and a loop of fixed length is one that compilers vectorise
            for (size_t k = 0; k < BLOCK; k += 8) any |= nonfinite_lanes(t->data + i + k, 8, l);
        for (size_t k = 0; any && k < block; k += 8)
            found += __builtin_popcountll(nonfinite_lanes(t->data + i + k, block - k < 8 ? block - k : 8, l));
        i += block;
    }
    return found;
}

// ------------------------------------------------------------------------------------------------------- the header

static bool text_is(const char *text, size_t len, const char *want) {
    return len == strlen(want) && !memcmp(text, want, len);
}

// Files that are often found where weights should be.
static const struct Impostor {
    const char *magic, *name, *todo;
} impostors[] = {{"version https://git-lfs", "a Git LFS pointer", "fetch the real file (git lfs pull)"},
                 {"<!DOCTYPE", "an HTML page", "download the file itself, not the page that shows it"},
                 {"<!doctype", "an HTML page", "download the file itself, not the page that shows it"},
                 {"<html", "an HTML page", "download the file itself, not the page that shows it"},
                 {"{", "JSON text", "give the .safetensors file, not its index or configuration"},
                 {"PK\x03\x04", "a zip archive (PyTorch's own format)", "convert it to safetensors first"},
                 {"\x80\x02", "a Python pickle", "convert it to safetensors first"},
                 {"GGUF", "a GGUF file", "use the checkpoint in safetensors format"}};

// E-ST-01 to -03: how many bytes of header a file has.
static bool header_span(const uint8_t *data, size_t size, const char *path, size_t *header, Err *e) {
    if (size < 8)
        return err_set(e, "E-ST-01", AT(.file = path, BYTE(0)), "expected at least 8 bytes; found %zu" AGAIN, size);
    uint64_t n = 0, inside = size - 8;
    memcpy(&n, data, 8);
    if (n > (uint64_t)LIMIT_HEADER_BYTES) {
        for (size_t i = 0; i < sizeof impostors / sizeof *impostors; i++) {
            size_t len = strlen(impostors[i].magic);
            if (size >= len && !memcmp(data, impostors[i].magic, len))
                return err_set(e, "E-ST-02", AT(.file = path, BYTE(0)),
                               "expected safetensors data; found %s of %zu bytes; do: %s", impostors[i].name, size,
                               impostors[i].todo);
        }
        return err_set(e, "E-ST-03", AT(.file = path, BYTE(0)),
                       "expected a header length of at most %lld; found %llu" NOT_ONE, (long long)LIMIT_HEADER_BYTES,
                       (unsigned long long)n);
    }
    if (n < 2)
        return err_set(e, "E-ST-03", AT(.file = path, BYTE(0)),
                       "expected a header length of at least 2; found %llu" NOT_ONE, (unsigned long long)n);
    if (n > inside)
        return err_set(
            e, "E-ST-03", AT(.file = path, BYTE(0)),
            "expected %llu bytes of header after byte 8; found %llu; do: the download stopped early; fetch it again",
            (unsigned long long)n, (unsigned long long)inside);
    *header = (size_t)n;
    return true;
}

static Where entry_at(const char *path, const Json *v, const char *name) {
    return AT(.file = path, BYTE(8 + v->byte), .tensor = name);
}

const char *shape_text(int dims, const int64_t *shape, char *buffer, size_t size) {
    size_t at = (size_t)snprintf(buffer, size, "[");
    for (int i = 0; i < dims && at < size; i++)
        at += (size_t)snprintf(buffer + at, size - at, i ? ",%lld" : "%lld", (long long)shape[i]);
    if (at < size) snprintf(buffer + at, size - at, "]");
    return buffer;
}

static const char metadata_key[] = "__metadata__";

typedef struct Extent { // where a tensor says its bytes lie, counted from the start of the data
    int64_t begin, end;
    const char *name;
    int64_t tensor; // index of the tensor
    size_t byte;    // of its data_offsets in the header, for messages
} Extent;

// E-ST-07: shape, elements and bytes of *t, whose type is known.
static bool shape_read(const Json *shape, const char *path, Tensor *t, Err *e) {
    if (shape->type != JSON_ARRAY || shape->count > LIMIT_TENSOR_DIMS) {
        char found[40];
        snprintf(found, sizeof found, "%u dimensions", shape->count);
        return err_set(e, "E-ST-07", entry_at(path, shape, t->name),
                       "expected a shape of at most %lld dimensions; found %s" AGAIN, (long long)LIMIT_TENSOR_DIMS,
                       shape->type == JSON_ARRAY ? found : json_shown(shape));
    }
    t->elements = 1;
    int64_t bytes = 0;
    bool fits = true;
    for (const Json *d = shape->child; d; d = d->next) {
        if (!d->integer || d->i < 0 || d->i > LIMIT_TENSOR_DIM)
            return err_set(e, "E-ST-07", entry_at(path, d, t->name), "expected a dimension 0..%lld; found %s" AGAIN,
                           (long long)LIMIT_TENSOR_DIM, json_shown(d));
        t->shape[t->dims++] = d->i;
        fits = fits && mul_ok(t->elements, d->i, &t->elements);
    }
    if (!fits || !mul_ok(t->elements, (int64_t)file_type_size(t->type), &bytes)) {
        char text[SHAPE_BUFFER];
        shape_text(t->dims, t->shape, text, sizeof text);
        return err_set(e, "E-ST-07", entry_at(path, shape, t->name),
                       "expected a size in bytes below 2^63; found shape %s %s" AGAIN, text, file_type_name(t->type));
    }
    t->bytes = (size_t)bytes;
    return true;
}

// E-ST-08 but for the end of the data: where *t, whose shape is known, says that its bytes lie.
static bool offsets_read(const Json *offsets, const char *path, const Tensor *t, Extent *x, Err *e) {
    const Json *begin = offsets->type == JSON_ARRAY && offsets->count == 2 ? offsets->child : NULL;
    const Json *end = begin ? begin->next : NULL;
    if (!begin || !begin->integer || !end->integer || begin->i < 0 || end->i < begin->i)
        return err_set(e, "E-ST-08", entry_at(path, offsets, t->name),
                       "expected data_offsets [begin, end] with integers 0 <= begin <= end; found %s%s%s%s%s" AGAIN,
                       begin ? "[" : json_shown(offsets), begin ? json_shown(begin) : "", begin ? ", " : "",
                       begin ? json_shown(end) : "", begin ? "]" : "");
    if ((size_t)(end->i - begin->i) != t->bytes) {
        char text[SHAPE_BUFFER];
        shape_text(t->dims, t->shape, text, sizeof text);
        return err_set(e, "E-ST-08", entry_at(path, offsets, t->name),
                       "expected %zu bytes for shape %s %s; found %lld" AGAIN " and compare its sha256", t->bytes, text,
                       file_type_name(t->type), (long long)(end->i - begin->i));
    }
    x->begin = begin->i, x->end = end->i, x->name = t->name, x->byte = offsets->byte;
    return true;
}

// E-ST-05 to -08: one entry of the header into *t, which has its name, but for its data; and into *x.
static bool entry_read(const Json *v, const char *path, Tensor *t, Extent *x, Err *e) {
    static const char *const fields[3] = {"dtype", "shape", "data_offsets"};
    const Json *part[3] = {NULL, NULL, NULL};
    if (v->type != JSON_OBJECT)
        return err_set(e, "E-ST-05", entry_at(path, v, t->name),
                       "expected an object with dtype, shape and data_offsets; found %s" AGAIN, json_shown(v));
    for (const Json *c = v->child; c; c = c->next) {
        int k = 0;
        while (k < 3 && !text_is(c->key, c->key_len, fields[k])) k++;
        if (k == 3)
            return err_set(e, "E-ST-05", entry_at(path, c, t->name),
                           "expected dtype, shape and data_offsets only; found %s" LIBRARY, quoted(c->key, c->key_len));
        part[k] = c;
    }
    for (int k = 0; k < 3; k++)
        if (!part[k])
            return err_set(e, "E-ST-05", entry_at(path, v, t->name),
                           "expected the key \"%s\"; found an entry without it" LIBRARY, fields[k]);
    int type = 0;
    while (type < N_TYPES && !json_is(part[0], type_info[type].name)) type++;
    if (type == N_TYPES)
        return err_set(e, "E-ST-06", entry_at(path, part[0], t->name),
                       "expected dtype F64, F32, F16, BF16, I64, I32, I16, I8, U8 or BOOL; found %s; do: convert the "
                       "checkpoint to bfloat16",
                       json_shown(part[0]));
    t->type = (FileType)type;
    return shape_read(part[1], path, t, e) && offsets_read(part[2], path, t, x, e);
}

static int extent_order(const void *pa, const void *pb) {
    const Extent *a = pa, *b = pb;
    if (a->begin != b->begin) return a->begin < b->begin ? -1 : 1;
    if (a->end != b->end) return a->end < b->end ? -1 : 1;
    return strcmp(a->name, b->name);
}

// E-ST-08 (beyond the data) and E-ST-09: sorted by begin, the extents cover [0, size) with no hole, no overlap and no
// tail. A row of extents without a gap that is longer than the data is what a cut-off download looks like.
static bool layout_check(Extent *x, int64_t n, int64_t start, int64_t size, const char *path, Err *e) {
    qsort(x, (size_t)n, sizeof *x, extent_order);
    int64_t at = 0, i = 0;
    while (i < n && x[i].begin == at) at = x[i++].end;
    if (i == n) {
        if (at == size) return true;
        long long gap = (long long)(at > size ? at - size : size - at);
        return err_set(e, "E-ST-09", AT(.file = path, BYTE(start)),
                       "expected %llu bytes in all; found %llu (%lld %s); do: %s",
                       (unsigned long long)start + (unsigned long long)at,
                       (unsigned long long)start + (unsigned long long)size, gap, at > size ? "missing" : "too many",
                       at > size ? "the download stopped early; fetch it again"
                                 : "something was appended to the file; fetch it again");
    }
    for (int64_t k = 0; k < n; k++)
        if (x[k].end > size)
            return err_set(e, "E-ST-08", AT(.file = path, BYTE(8 + x[k].byte), .tensor = x[k].name),
                           "expected data_offsets up to %lld, the size of the data; found [%lld, %lld]" AGAIN,
                           (long long)size, (long long)x[k].begin, (long long)x[k].end);
    return err_set(
        e, "E-ST-09", AT(.file = path, BYTE(start + x[i].begin), .tensor = x[i].name),
        "expected data that begins at offset %lld, where the tensor before ends; found %lld (%s of %lld bytes)" AGAIN,
        (long long)at, (long long)x[i].begin, x[i].begin > at ? "a hole" : "an overlap",
        (long long)(x[i].begin > at ? x[i].begin - at : at - x[i].begin));
}

static bool metadata_read(const Json *v, const char *path, Text *out, Err *e) {
    bool strings = v->type == JSON_OBJECT;
    for (const Json *c = strings ? v->child : NULL; c; c = c->next)
        if (c->type != JSON_STRING) {
            strings = false, v = c;
            break;
        }
    if (!strings)
        return err_set(e, "E-ST-05", AT(.file = path, BYTE(8 + v->byte), .field = metadata_key),
                       "expected an object that maps strings to strings; found %s" LIBRARY, json_shown(v));
    if (out) json_print(out, v);
    return true;
}

// The tensors of a parsed header, appended to f->tensors; the data begins at data + start and has `size` bytes.
static bool entries_read(TensorFile *f, const JsonDoc *doc, const uint8_t *data, int64_t start, int64_t size, Err *e) {
    TensorShard *s = &f->shards[f->n_shards - 1];
    size_t n = 0, in_names = 0;
    for (const Json *v = doc->root->child; v; v = v->next)
        if (!text_is(v->key, v->key_len, metadata_key)) n++, in_names += v->key_len + 1;
    if (n > (size_t)LIMIT_TENSORS)
        return err_set(e, "E-ST-05", AT(.file = s->path, BYTE(8)),
                       "expected at most %lld tensors; found %zu; do: check that this is the right file",
                       (long long)LIMIT_TENSORS, n);
    s->names = alloc_or_die(in_names + 1, 1, "tensor names");
    f->tensors = grow_or_die(f->tensors, (size_t)f->count + n + 1, sizeof *f->tensors, "list of tensors");
    Extent *extents = alloc_or_die(n + 1, sizeof *extents, "list of tensor extents");
    Tensor *tensors = f->tensors + f->count;
    char *name = s->names;
    int64_t count = 0;
    bool ok = true;
    for (const Json *v = doc->root->child; ok && v; v = v->next) {
        if (text_is(v->key, v->key_len, metadata_key)) {
            ok = metadata_read(v, s->path, f->n_shards == 1 ? &f->metadata : NULL, e);
        } else if (v->key_len < 1 || v->key_len > (size_t)LIMIT_TENSOR_NAME_BYTES || memchr(v->key, 0, v->key_len)) {
            ok = err_set(e, "E-ST-05", AT(.file = s->path, BYTE(8 + v->byte)),
                         "expected a tensor name of 1 to %lld bytes without a zero byte; found %s of %zu bytes" AGAIN,
                         (long long)LIMIT_TENSOR_NAME_BYTES, quoted(v->key, v->key_len), v->key_len);
        } else {
            memcpy(name, v->key, v->key_len); // the zero byte behind it is there
            tensors[count] = (Tensor){.name = name, .shard = f->n_shards - 1};
            extents[count].tensor = count;
            ok = entry_read(v, s->path, &tensors[count], &extents[count], e);
            name += v->key_len + 1, count++;
        }
    }
    ok = ok && layout_check(extents, count, start, size, s->path, e);
    for (int64_t i = 0; ok && i < count; i++) tensors[extents[i].tensor].data = data + start + extents[i].begin;
    if (ok) f->count += count;
    free(extents);
    return ok;
}

// Checks one whole file that lies in memory and adds its tensors to f (not yet sorted by name), as its newest shard.
static bool shard_read(TensorFile *f, const uint8_t *data, size_t size, const char *path, Err *e) {
    f->shards = grow_or_die(f->shards, (size_t)f->n_shards + 1, sizeof *f->shards, "list of shards");
    TensorShard *s = &f->shards[f->n_shards++];
    *s = (TensorShard){.path = alloc_or_die(strlen(path) + 1, 1, "path of a shard")};
    memcpy(s->path, path, strlen(path));

    size_t header = 0;
    if (!header_span(data, size, path, &header, e)) return false;
    const char *text = (const char *)data + 8;
    if (text[0] != '{')
        return err_set(e, "E-ST-04", AT(.file = path, BYTE(8)),
                       "expected \"{\" at the start of the header; found %s" NOT_ONE, quoted(text, 1));
    JsonDoc doc;
    JsonOptions options = {.max_depth = (int)LIMIT_HEADER_DEPTH, .first_byte = 8, .by_byte = true};
    options.refuse_duplicates = options.refuse_bom = true;
    if (!json_parse(&doc, text, header, path, options, e)) return false;
    size_t last = header - 1;
    while (text[last] == ' ') last--;
    bool ok = text[last] == '}';
    if (!ok)
        err_set(e, "E-ST-04", AT(.file = path, BYTE(8 + last)),
                "expected nothing but spaces after the header's last \"}\"; found %s" LIBRARY, quoted(text + last, 1));
    int64_t start = 8 + (int64_t)header;
    ok = ok && entries_read(f, &doc, data, start, (int64_t)size - start, e);
    json_free(&doc);
    return ok;
}

// ---------------------------------------------------------------------------------------------------- files, folders

static int name_order(const void *pa, const void *pb) {
    return strcmp(((const Tensor *)pa)->name, ((const Tensor *)pb)->name);
}

static void sort_by_name(TensorFile *f) {
    if (f->count) qsort(f->tensors, (size_t)f->count, sizeof *f->tensors, name_order);
}

// Called first and last by all that open: an empty file with its path; then sorted by name, with metadata, or closed.
static void open_begin(TensorFile *f, const char *path) {
    *f = (TensorFile){.path = alloc_or_die(strlen(path) + 1, 1, "path of a checkpoint")};
    memcpy(f->path, path, strlen(path));
}
static bool open_end(TensorFile *f, bool ok) {
    if (!ok) {
        tensors_close(f);
        return false;
    }
    sort_by_name(f);
    if (!f->metadata.len) text_add(&f->metadata, "{}", 2);
    return true;
}

void tensors_fingerprint(const TensorFile *f, bool all_bytes, char hex[65]) {
    Sha256 h;
    sha256_start(&h);
    for (int64_t i = 0; i < f->count; i++) {
        const Tensor *t = &f->tensors[i];
        char line[900], shape[160];
        int n = snprintf(line, sizeof line, "%s %s %s\n", t->name, file_type_name(t->type),
                         shape_text(t->dims, t->shape, shape, sizeof shape));
        sha256_add(&h, line, (size_t)n);
        if (all_bytes) sha256_add(&h, t->data, t->bytes);
    }
    sha256_finish(&h, hex);
}

void tensors_close(TensorFile *f) {
    for (int i = 0; i < f->n_shards; i++) {
        TensorShard *s = &f->shards[i];
        if (s->map.data) file_unmap(&s->map);
        free(s->names), free(s->path);
    }
    free(f->shards), free(f->tensors), free(f->path), text_free(&f->metadata);
    *f = (TensorFile){0};
}

Tensor *tensors_find(const TensorFile *f, const char *name) {
    Tensor key = {.name = name};
    return f->count ? bsearch(&key, f->tensors, (size_t)f->count, sizeof key, name_order) : NULL;
}

const char *tensors_path(const TensorFile *f, const Tensor *t) { return f->shards[t->shard].path; }

bool tensors_open_memory(TensorFile *f, const uint8_t *data, size_t size, const char *name, Err *e) {
    open_begin(f, name);
    return open_end(f, shard_read(f, data, size, name, e));
}

// Adds the mapped file to f, which owns the mapping from here on.
static bool shard_add(TensorFile *f, FileMap m, const char *path, Err *e) {
    bool ok = shard_read(f, m.data, m.size, path, e);
    f->shards[f->n_shards - 1].map = m;
    return ok && file_map_unchanged(&m, path, e);
}

bool tensors_open(TensorFile *f, const char *path, Err *e) {
    FileMap m;
    open_begin(f, path);
    return open_end(f, file_map(&m, path, e) && shard_add(f, m, path, e));
}

// The Hugging Face cache keeps a file once, as blobs/HASH (40 or 64 hex digits), and fills its snapshot folders with
// links to it. Returns the HASH in such a link's text, or NULL.
static const char *hub_blob(const char *link) {
    const char *slash = strrchr(link, '/');
    if (!slash || slash - link < 6 || memcmp(slash - 6, "/blobs", 6)) return NULL;
    size_t hex = strspn(slash + 1, "0123456789abcdef");
    return (hex == 40 || hex == 64) && !slash[1 + hex] ? slash + 1 : NULL;
}

// Opens dir/name and adds it to f; name comes from an index, dir from the user. A name from a file must not lead out of
// the folder, so a symbolic link is refused, with one exception: a checkpoint in the Hugging Face cache consists of
// links to blobs. The text of such a link can name nothing but a content hash in a folder "blobs", and the blob itself
// must not be a link again.
static bool shard_open(TensorFile *f, const char *dir, const char *name, Where at, Err *e) {
    char path[PATH_BUFFER], link[PATH_BUFFER], blobs[PATH_BUFFER];
    if (!path_join(path, sizeof path, dir, name, e)) return false;
    ssize_t len = readlink(path, link, sizeof link - 1);
    if (len >= 0) {
        link[len] = 0;
        name = hub_blob(link);
        if (!name)
            return err_set(e, "E-IX-01", AT(.file = path),
                           "expected a file, or a link to blobs/HASH of a Hugging Face cache; found a link to %s; do: "
                           "put the file itself there, or give the folder in which it lies",
                           quoted(link, (size_t)len));
        link[name - link - 1] = 0; // cuts it into folder and HASH
        dir = link;
        if (link[0] != '/') {
            char parent[PATH_BUFFER];
            if (!path_dir(parent, sizeof parent, path, e) || !path_join(blobs, sizeof blobs, parent, link, e))
                return false;
            dir = blobs;
        }
    }
    int fd = open_beneath(dir, name, "E-IX-01", at, e);
    if (fd < 0) return false;
    FileMap m;
    bool ok = file_map_fd(&m, fd, path, e);
    close(fd); // only read from: there is nothing to lose
    return ok && shard_add(f, m, path, e);
}

// One row of an index: tensor -> file.
static int file_order(const void *pa, const void *pb) {
    const Json *a = *(const Json *const *)pa, *b = *(const Json *const *)pb;
    return strcmp(a->str, b->str);
}

static bool inside_folder(const Json *v) { // not a string: nothing that points anywhere
    return v->type != JSON_STRING || (!memchr(v->str, '/', v->len) && !memchr(v->str, '\\', v->len));
}
static bool plain_shard_name(const Json *v) {
    static const char suffix[] = ".safetensors";
    size_t n = sizeof suffix - 1;
    return v->type == JSON_STRING && v->len > n && v->len <= SHARD_NAME_BYTES && v->str[0] != '.' &&
           !memchr(v->str, 0, v->len) && inside_folder(v) && !memcmp(v->str + v->len - n, suffix, n);
}

// E-IX-01: every value of weight_map is a plain file name.
static bool index_names(const JsonDoc *doc, const Json *map, Err *e) {
    if (!map || map->type != JSON_OBJECT)
        return err_set(e, "E-IX-01", json_at(doc, map ? map : doc->root, "weight_map"),
                       "expected an object that maps tensor names to file names; found %s; do: use the index that came "
                       "with the weights",
                       map ? json_shown(map) : "none");
    for (const Json *v = map->child; v; v = v->next)
        if (!plain_shard_name(v)) {
            char field[300];
            snprintf(field, sizeof field, "weight_map.%.*s", v->key_len < 280 ? (int)v->key_len : 280, v->key);
            return err_set(e, "E-IX-01", json_at(doc, v, field), "expected %s; found %s; do: %s",
                           inside_folder(v) ? "a plain name of a .safetensors file" : "a file name in the same folder",
                           json_shown(v),
                           inside_folder(v) ? "use the index that came with the weights"
                                            : "do not use this checkpoint, it points outside its folder");
        }
    return true;
}

// E-IX-02: the index and the shards say the same; f is sorted by name.
static bool index_agrees(TensorFile *f, const JsonDoc *doc, const Json *map, Err *e) {
    for (int64_t i = 1; i < f->count; i++)
        if (!strcmp(f->tensors[i - 1].name, f->tensors[i].name))
            return err_set(e, "E-IX-02", AT(.file = tensors_path(f, &f->tensors[i]), .tensor = f->tensors[i].name),
                           "expected a tensor in one shard only; found it in %s too" ALL_AGAIN,
                           quoted(tensors_path(f, &f->tensors[i - 1]), strlen(tensors_path(f, &f->tensors[i - 1]))));
    for (const Json *v = map->child; v; v = v->next) {
        Tensor *t = strlen(v->key) == v->key_len ? tensors_find(f, v->key) : NULL;
        const char *slash = t ? strrchr(tensors_path(f, t), '/') : NULL;
        if (!t || strcmp(slash + 1, v->str)) {
            Where at = json_at(doc, v, NULL);
            at.tensor = v->key;
            return err_set(e, "E-IX-02", at, "expected this tensor in %s; found it %s" ALL_AGAIN,
                           quoted(v->str, v->len), t ? "in another shard" : "in no shard");
        }
        t->used = true;
    }
    for (int64_t i = 0; i < f->count; i++) {
        Tensor *t = &f->tensors[i];
        if (!t->used)
            return err_set(e, "E-IX-02", AT(.file = tensors_path(f, t), .tensor = t->name),
                           "expected only tensors that the index names; found one it does not name" ALL_AGAIN);
        t->used = false;
    }
    return true;
}

// E-IX-03, a warning: published checkpoints with a wrong total exist, and nothing depends on it.
static void index_total(const TensorFile *f, const JsonDoc *doc) {
    const Json *total = json_get(json_get(doc->root, "metadata"), "total_size");
    int64_t sum = 0;
    for (int64_t i = 0; i < f->count; i++) sum += (int64_t)f->tensors[i].bytes;
    if (total && !(total->type == JSON_NUMBER && total->number == (double)sum))
        warn("E-IX-03", json_at(doc, total, "metadata.total_size"),
             "expected the sum of all tensors, %lld; found %s; do: nothing, if all shards are complete", (long long)sum,
             json_shown(total));
}

static bool index_read(TensorFile *f, const char *dir, const char *path, JsonDoc *doc, Err *e) {
    const Json *map = json_get(doc->root, "weight_map");
    if (!index_names(doc, map, e)) return false;
    if (map->count > LIMIT_TENSORS)
        return err_set(e, "E-IX-02", json_at(doc, map, "weight_map"),
                       "expected at most %lld tensors; found %u; do: check that this is the right file",
                       (long long)LIMIT_TENSORS, map->count);
    const Json **rows = alloc_or_die((size_t)map->count + 1, sizeof *rows, "rows of a shard index");
    int64_t n = 0;
    for (const Json *v = map->child; v; v = v->next) rows[n++] = v;
    qsort(rows, (size_t)n, sizeof *rows, file_order);
    bool ok = true;
    for (int64_t i = 0; ok && i < n; i++) {
        if (i && !strcmp(rows[i - 1]->str, rows[i]->str)) continue;
        if (f->n_shards == LIMIT_SHARDS)
            ok = err_set(e, "E-IX-02", json_at(doc, map, "weight_map"),
                         "expected at most %lld shards; found more; do: check that this is the right file",
                         (long long)LIMIT_SHARDS);
        ok = ok && shard_open(f, dir, rows[i]->str, json_at(doc, rows[i], "weight_map"), e);
        if (ok && f->count > LIMIT_TENSORS)
            ok = err_set(
                e, "E-IX-02", AT(.file = path),
                "expected at most %lld tensors in all shards; found more; do: check that this is the right folder",
                (long long)LIMIT_TENSORS);
    }
    free(rows);
    if (!ok) return false;
    sort_by_name(f);
    if (!index_agrees(f, doc, map, e)) return false;
    index_total(f, doc);
    return true;
}

static bool index_open(TensorFile *f, const char *dir, const char *index, Err *e) {
    JsonDoc doc;
    if (!json_read(&doc, index, LIMIT_CONFIG_BYTES, (JsonOptions){.refuse_duplicates = true}, e))
        return open_end(f, false);
    bool ok = index_read(f, dir, index, &doc, e);
    json_free(&doc);
    return open_end(f, ok);
}

bool tensors_open_folder(TensorFile *f, const char *dir, Err *e) {
    char single[PATH_BUFFER], index[PATH_BUFFER];
    open_begin(f, dir);
    if (!path_join(single, sizeof single, dir, "model.safetensors", e) ||
        !path_join(index, sizeof index, dir, "model.safetensors.index.json", e))
        return open_end(f, false);
    FileMap m;
    if (file_exists(single)) return open_end(f, file_map(&m, single, e) && shard_add(f, m, single, e));
    if (!file_exists(index))
        return open_end(f, err_set(e, "E-IO-01", AT(.file = dir),
                                   "expected model.safetensors or model.safetensors.index.json in this folder; found "
                                   "neither; do: give the folder of a checkpoint in safetensors format"));
    return index_open(f, dir, index, e);
}

bool tensors_open_index(TensorFile *f, const char *index, Err *e) {
    char dir[PATH_BUFFER];
    open_begin(f, index);
    if (!path_dir(dir, sizeof dir, index, e)) return open_end(f, false);
    return index_open(f, dir, index, e);
}

// --------------------------------------------------------------------------------------------------------- the writer

static int write_order(const void *pa, const void *pb) {
    const TensorOut *a = *(const TensorOut *const *)pa, *b = *(const TensorOut *const *)pb;
    int ra = type_info[a->type].rank, rb = type_info[b->type].rank;
    return ra != rb ? rb - ra : strcmp(a->name, b->name);
}

static size_t out_bytes(const TensorOut *t) {
    int64_t n = (int64_t)file_type_size(t->type);
    for (int i = 0; i < t->dims; i++) CHECK(t->shape[i] >= 0 && mul_ok(n, t->shape[i], &n), "size of %s", t->name);
    return (size_t)n;
}

bool tensors_write_from(const char *path, const char *metadata, const TensorOut *tensors, int64_t count,
                        TensorSource source, void *ctx, Err *e) {
    const TensorOut **order = alloc_or_die((size_t)count + 1, sizeof *order, "list of tensors to write");
    for (int64_t i = 0; i < count; i++) order[i] = &tensors[i];
    qsort(order, (size_t)count, sizeof *order, write_order);

    Text header = {0};
    text_addf(&header, "%8s{", ""); // room for the length
    if (metadata) text_addf(&header, "\"__metadata__\":%s", metadata);
    size_t begin = 0;
    for (int64_t i = 0; i < count; i++) {
        const TensorOut *t = order[i];
        size_t end = begin + out_bytes(t);
        if (i || metadata) text_add(&header, ",", 1);
        text_add_json_string(&header, t->name, strlen(t->name));
        text_addf(&header, ":{\"dtype\":\"%s\",\"shape\":[", file_type_name(t->type));
        for (int k = 0; k < t->dims; k++) text_addf(&header, k ? ",%lld" : "%lld", (long long)t->shape[k]);
        text_addf(&header, "],\"data_offsets\":[%zu,%zu]}", begin, end);
        begin = end;
    }
    text_add(&header, "}", 1);
    while (header.len % 8) text_add(&header, " ", 1);
    uint64_t length = header.len - 8;
    memcpy(header.p, &length, 8);

    FileWriter w;
    bool ok = file_write_begin(&w, path, e) && file_write_bytes(&w, header.p, header.len, e);
    int64_t header_bytes = ok ? w.written : 0;
    begin = 0;
    for (int64_t i = 0; ok && i < count; i++) {
        ok = source(ctx, order[i] - tensors, &w, e);
        begin += out_bytes(order[i]);
        CHECK(!ok || (size_t)(w.written - header_bytes) == begin, "tensor %s has another size", order[i]->name);
    }
    if (!ok) file_write_abort(&w); // what the source refused for a reason of its own
    ok = ok && file_write_commit(&w, e);
    text_free(&header);
    free(order);
    return ok;
}

static bool from_memory(void *ctx, int64_t i, FileWriter *w, Err *e) {
    const TensorOut *t = &((const TensorOut *)ctx)[i];
    size_t bytes = out_bytes(t);
    return !bytes || file_write_bytes(w, t->data, bytes, e);
}
bool tensors_write_with(const char *path, const char *metadata, const TensorOut *tensors, int64_t count, Err *e) {
    return tensors_write_from(path, metadata, tensors, count, from_memory, (void *)(uintptr_t)tensors, e);
}

bool tensors_write(const char *path, const TensorOut *tensors, int64_t count, Err *e) {
    return tensors_write_with(path, "{\"format\":\"pt\"}", tensors, count, e);
}
