// test_safetensors.c - checkpoint files: what is accepted means what it says, and every lie is refused by name.
//
// Own cases prove the rules one by one (whole message lines), a flood of mutants proves that nothing else slips through,
// and files of the reference library prove that we read and lay out as it does.
#include "temporary.h"
#include <regex.h>

// ------------------------------------------------------------------------------------------------------------ helpers

static uint8_t *get_file(const char *path, size_t *size) {
    Err e = {0};
    char *data = NULL;
    if (!file_read(path, INT64_C(1) << 30, "E-IO-03", &data, size, &e)) {
        FAIL("cannot read %s", path);
        *size = 0;
        return alloc_or_die(1, 1, "nothing");
    }
    return (uint8_t *)data;
}

// A whole file: header length, header, `size` bytes of data that count up from 1 (or `data`). Exactly as large as it
// must be, so that a read behind its end is seen by AddressSanitizer.
typedef struct Bytes {
    uint8_t *p;
    size_t n;
} Bytes;
static Bytes make_file(const char *header, size_t header_size, size_t size, const void *data) {
    uint64_t h = header_size;
    Bytes b = {malloc(8 + h + size), 8 + h + size};
    if (!b.p) exit(1);
    memcpy(b.p, &h, 8), memcpy(b.p + 8, header, h);
    for (size_t i = 0; i < size; i++) b.p[8 + h + i] = (uint8_t)(data ? ((const uint8_t *)data)[i] : i + 1);
    return b;
}

static const char *line_of(const Err *e) {
    static char ring[2][4096];
    static int turn;
    return e->code[0] ? err_line(e, "error", ring[turn++ & 1], sizeof ring[0]) : "accepted";
}
// What tensors_open_memory says of a file: "accepted", or the line after "surgr1: error ".
static const char *verdict(const void *data, size_t size) {
    TensorFile f;
    Err e = {0};
    if (tensors_open_memory(&f, data, size, "m.safetensors", &e)) {
        tensors_close(&f);
        return "accepted";
    }
    const char *line = line_of(&e), *lead = "surgr1: error ";
    return strncmp(line, lead, strlen(lead)) ? line : line + strlen(lead);
}

static bool well_formed(const char *line) {
    static regex_t form;
    static bool ready;
    if (!ready)
        ready = !regcomp(&form, "^surgr1: error E-[A-Z]{2}-[0-9]{2}: .+: expected .+; found .+; do: .+$",
                         REG_EXTENDED | REG_NOSUB);
    return ready && !regexec(&form, line, 0, NULL, 0) && !strchr(line, '\n');
}

// ----------------------------------------------------------------------------------------------------------- elements

// The value by the definition of IEEE 754 binary16: sign, 5 bits of exponent with bias 15, 10 bits of fraction.
TEST(every_half_float_has_its_value) {
    for (uint32_t h = 0; h < 65536; h++) {
        int exponent = (int)(h >> 10 & 31), fraction = (int)(h & 1023);
        double want = exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);
        if (exponent == 31) want = fraction ? NAN : INFINITY;
        if (h & 0x8000) want = -want;
        float got = f16_to_f32((uint16_t)h);
        bool same = isnan(want) ? isnan(got) : got == want && !signbit(got) == !signbit(want);
        if (!same) FAIL("f16 %04x: expected %g, got %g", h, want, (double)got);
    }
}

TEST(elements_of_every_type_come_out_at_any_alignment) {
    static const struct {
        FileType type;
        double values[4];
        uint8_t bytes[32];
    } cases[] = {
        {FT_F64, {1.5, -2, 0.1f, 65504}, {0, 0, 0, 0,    0,    0,    0xF8, 0x3F, 0, 0, 0, 0, 0, 0,    0,    0xC0,
                                          0, 0, 0, 0xA0, 0x99, 0x99, 0xB9, 0x3F, 0, 0, 0, 0, 0, 0xFC, 0xEF, 0x40}},
        {FT_F32, {1.5, -2, 3, 0.5}, {0, 0, 0xC0, 0x3F, 0, 0, 0, 0xC0, 0, 0, 0x40, 0x40, 0, 0, 0, 0x3F}},
        {FT_F16, {1.5, -2, 65504, 0x1p-24}, {0, 0x3E, 0, 0xC0, 0xFF, 0x7B, 1, 0}},
        {FT_BF16, {1.5, -2, 3, 0x1p127}, {0xC0, 0x3F, 0, 0xC0, 0x40, 0x40, 0, 0x7F}},
        {FT_I64, {1, -1, 256, -4294967296.0}, {1, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF,
                                               0, 1, 0, 0, 0, 0, 0, 0, 0,    0,    0,    0,    0xFF, 0xFF, 0xFF, 0xFF}},
        {FT_I32, {1, -1, 65536, -2147483648.0}, {1, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 1, 0, 0, 0, 0, 0x80}},
        {FT_I16, {1, -1, 256, -32768}, {1, 0, 0xFF, 0xFF, 0, 1, 0, 0x80}},
        {FT_I8, {1, -1, 127, -128}, {1, 0xFF, 0x7F, 0x80}},
        {FT_U8, {1, 255, 127, 128}, {1, 0xFF, 0x7F, 0x80}},
        {FT_BOOL, {1, 0, 1, 0}, {1, 0, 1, 0}},
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++)
        for (size_t shift = 0; shift < 8; shift++) {
            uint8_t buffer[48] = {0};
            size_t size = file_type_size(cases[c].type);
            memcpy(buffer + shift, cases[c].bytes, 4 * size);
            Tensor t = {.name = "t", .type = cases[c].type, .elements = 4, .data = buffer + shift, .bytes = 4 * size};
            float f[4] = {7, 7, 7, 7};
            int64_t n[4] = {7, 7, 7, 7};
            tensor_to_f32(&t, 0, 4, f);
            for (int i = 0; i < 4; i++) EXPECT(f[i] == (float)cases[c].values[i]);
            tensor_to_f32(&t, 2, 1, f); // a part
            EXPECT(f[0] == (float)cases[c].values[2] && f[1] == (float)cases[c].values[1]);
            if (cases[c].type < FT_I64) continue;
            tensor_to_i64(&t, 1, 3, n);
            for (int i = 0; i < 3; i++) EXPECT(n[i] == (int64_t)cases[c].values[i + 1]);
            EXPECT_INT(n[3], 7);
            EXPECT_INT(tensor_count_nonfinite(&t), 0);
        }
}

static int64_t count_one_by_one(const Tensor *t) {
    int64_t n = 0;
    for (int64_t i = 0; i < t->elements; i++) {
        double v;
        float f;
        if (t->type == FT_F64) memcpy(&v, t->data + 8 * i, 8);
        else tensor_to_f32(t, i, 1, &f), v = f;
        n += !isfinite(v);
    }
    return n;
}

// The eight-bytes-at-once count against isfinite: all 65,536 patterns of two bytes beside each other, all tails.
TEST(nonfinite_elements_are_counted_exactly) {
    static const FileType types[] = {FT_F64, FT_F32, FT_F16, FT_BF16};
    static uint8_t data[2 * 65536 + 64];
    for (uint32_t i = 0; i < 65536; i++) data[2 * i + 1] = (uint8_t)(i >> 8), data[2 * i + 2] = (uint8_t)i;
    for (int k = 0; k < 4; k++) {
        int64_t size = (int64_t)file_type_size(types[k]);
        Tensor all = {.type = types[k], .elements = 2 * 65536 / size, .data = data + 1, .bytes = 2 * 65536};
        EXPECT_INT(tensor_count_nonfinite(&all), count_one_by_one(&all));
        EXPECT(tensor_count_nonfinite(&all) > 0);
        Tensor clean = {
            .type = types[k], .elements = 8192 / size, .data = (const uint8_t *)calloc(1, 8192), .bytes = 8192};
        EXPECT_INT(tensor_count_nonfinite(&clean), 0);
        memset((uint8_t *)(uintptr_t)clean.data + 8192 - size, 0xFF, (size_t)size); // one in the second of two blocks
        EXPECT_INT(tensor_count_nonfinite(&clean), 1);
        free((uint8_t *)(uintptr_t)clean.data);
        for (int64_t n = 0; n < 20; n++) { // short tensors full of NaN, with NaN right behind them
            uint8_t ones[20 * 8];
            memset(ones, 0xFF, sizeof ones);
            Tensor t = {.type = types[k], .elements = n, .data = ones, .bytes = (size_t)(n * size)};
            EXPECT_INT(tensor_count_nonfinite(&t), n);
        }
    }
}

// ------------------------------------------------------------------------------------------------------- round trips

static const float floats[6] = {1, -2, 3.5f, 0, 1e30f, -1e-30f};
static const uint16_t halves[6] = {0x3C00, 0xC000, 0, 0x7BFF, 1, 0x8000};
static const int64_t longs[3] = {1, -5, INT64_MAX};
static const uint8_t small[5] = {1, 0, 1, 1, 0};

static const TensorOut samples[] = {
    {"model.norm.weight", FT_BF16, 1, {6}, halves},
    {"zeta", FT_F32, 2, {2, 3}, floats},
    {"alpha", FT_F32, 3, {3, 1, 2}, floats},
    {"mask", FT_BOOL, 1, {5}, small},
    {"ids", FT_I64, 1, {3}, longs},
    {"nothing", FT_F16, 2, {0, 4}, NULL},
    {"one", FT_F32, 0, {0}, floats},
    {"bytes", FT_U8, 1, {5}, small},
    {"signed", FT_I8, 1, {5}, small},
    {"double", FT_F64, 1, {1}, longs},
    {"short", FT_I16, 1, {2}, halves},
    {"\"quoted\" \\ \xC3\xA9\x01", FT_F16, 1, {6}, halves},
    {"int", FT_I32, 1, {1}, floats},
};
enum { N_SAMPLES = sizeof samples / sizeof *samples };

// What the reference library writes for the same tensors: __metadata__, then I64 F64 F32 I32 BF16 F16 I16 I8 U8 BOOL,
// names in byte order within a type, compact JSON, spaces up to a multiple of 8.
TEST(the_layout_of_a_written_file_is_the_reference_librarys) {
    static const char want[] =
        "{\"__metadata__\":{\"format\":\"pt\"},\"ids\":{\"dtype\":\"I64\",\"shape\":[3],\"data_offsets\":[0,24]},"
        "\"double\":{\"dtype\":\"F64\",\"shape\":[1],\"data_offsets\":[24,32]},\"alpha\":{\"dtype\":\"F32\",\"shape\":["
        "3,1,2],\"data_offsets\":[32,56]},\"one\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[56,60]},\"zeta\":{"
        "\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[60,84]},\"int\":{\"dtype\":\"I32\",\"shape\":[1],\"data_"
        "offsets\":[84,88]},\"model.norm.weight\":{\"dtype\":\"BF16\",\"shape\":[6],\"data_offsets\":[88,100]},"
        "\"\\\"quoted\\\" \\\\ "
        "\xC3\xA9\\u0001\":{\"dtype\":\"F16\",\"shape\":[6],\"data_offsets\":[100,112]},\"nothing\":{\"dtype\":\"F16\","
        "\"shape\":[0,4],\"data_offsets\":[112,112]},\"short\":{\"dtype\":\"I16\",\"shape\":[2],\"data_offsets\":[112,"
        "116]},\"signed\":{\"dtype\":\"I8\",\"shape\":[5],\"data_offsets\":[116,121]},\"bytes\":{\"dtype\":\"U8\","
        "\"shape\":[5],\"data_offsets\":[121,126]},\"mask\":{\"dtype\":\"BOOL\",\"shape\":[5],\"data_offsets\":[126,"
        "131]}}";
    const char *path = tmp_path("layout.safetensors");
    Err e = {0};
    EXPECT(tensors_write(path, samples, N_SAMPLES, &e));
    size_t size, header = (sizeof want - 1 + 7) / 8 * 8;
    uint8_t *got = get_file(path, &size);
    uint64_t n = 0;
    if (size >= 8) memcpy(&n, got, 8);
    EXPECT_INT(n, header);
    EXPECT_INT(size, 8 + header + 131);
    if (size == 8 + header + 131) {
        EXPECT(!memcmp(got + 8, want, sizeof want - 1));
        for (size_t i = 8 + sizeof want - 1; i < 8 + header; i++) EXPECT_INT(got[i], ' ');
        EXPECT(!memcmp(got + 8 + header, longs, 24));
        EXPECT(!memcmp(got + 8 + header + 126, small, 5));
    }
    free(got);
}

// Writes what f holds, with its metadata.
static bool rewrite(const TensorFile *f, const char *path, Err *e) {
    TensorOut *out = alloc_or_die((size_t)f->count + 1, sizeof *out, "tensors");
    for (int64_t i = 0; i < f->count; i++) {
        const Tensor *t = &f->tensors[i];
        out[i] = (TensorOut){.name = t->name, .type = t->type, .dims = t->dims, .data = t->data};
        memcpy(out[i].shape, t->shape, sizeof t->shape);
    }
    const char *metadata = strcmp(f->metadata.p, "{}") ? f->metadata.p : NULL;
    bool ok = tensors_write_with(path, metadata, out, f->count, e);
    free(out);
    return ok;
}
static bool rewrites_to_the_same_bytes(const char *path) {
    TensorFile f;
    Err e = {0};
    if (!tensors_open(&f, path, &e)) {
        FAIL("%s", line_of(&e));
        return false;
    }
    const char *copy = tmp_path("copy.safetensors");
    bool same = rewrite(&f, copy, &e);
    size_t na, nb;
    uint8_t *a = get_file(path, &na), *b = get_file(copy, &nb);
    same = same && na == nb && !memcmp(a, b, na);
    free(a), free(b);
    tensors_close(&f);
    return same;
}

TEST(write_read_write_gives_equal_bytes) {
    const char *path = tmp_path("samples.safetensors");
    Err e = {0};
    EXPECT(tensors_write(path, samples, N_SAMPLES, &e));
    EXPECT(rewrites_to_the_same_bytes(path));
    EXPECT(tensors_write_with(path, NULL, samples, 0, &e)); // no tensors at all
    EXPECT(rewrites_to_the_same_bytes(path));
    EXPECT(tensors_write_with(path, "{\"a\":\"b\",\"\\u0001\":\"\"}", samples, 3, &e));
    EXPECT(rewrites_to_the_same_bytes(path));
    for (uint32_t seed = 0; seed < 60; seed++) { // random sets of tensors
        TensorOut t[12];
        char names[12][32];
        int64_t count = philox(seed, RANDOM_TEST, 0, 0, 0).v[0] % 13;
        for (int64_t i = 0; i < count; i++) {
            Random4 r = philox(seed, RANDOM_TEST, 0, 1, (uint32_t)i);
            snprintf(names[i], sizeof names[i], "%c%lld.%u", 'a' + (int)(r.v[0] % 26), (long long)i, r.v[1] % 100);
            t[i] = (TensorOut){
                .name = names[i], .type = (FileType)(r.v[2] % 10), .dims = (int)(r.v[3] % 3), .data = floats};
            t[i].shape[0] = r.v[0] >> 8 & 1, t[i].shape[1] = r.v[1] >> 8 & 3;
        }
        EXPECT(tensors_write(path, t, count, &e));
        if (!rewrites_to_the_same_bytes(path)) FAIL("seed %u", seed);
    }
}

TEST(what_was_written_is_found_by_name) {
    const char *path = tmp_path("samples.safetensors");
    Err e = {0};
    TensorFile f;
    EXPECT(tensors_write(path, samples, N_SAMPLES, &e) && tensors_open(&f, path, &e));
    if (e.code[0]) return;
    EXPECT_INT(f.count, N_SAMPLES);
    EXPECT_STR(f.metadata.p, "{\"format\":\"pt\"}");
    for (int i = 0; i < N_SAMPLES; i++) {
        Tensor *t = tensors_find(&f, samples[i].name);
        if (!t) {
            FAIL("no \"%s\"", samples[i].name);
            continue;
        }
        int64_t n = 1;
        for (int k = 0; k < samples[i].dims; k++) n *= samples[i].shape[k];
        EXPECT(t->type == samples[i].type && t->dims == samples[i].dims && t->elements == n);
        EXPECT(!memcmp(t->shape, samples[i].shape, sizeof *t->shape * (size_t)t->dims));
        EXPECT_INT(t->bytes, n * (int64_t)file_type_size(t->type));
        EXPECT(!n || !memcmp(t->data, samples[i].data, t->bytes));
        EXPECT_STR(tensors_path(&f, t), path);
    }
    EXPECT(!tensors_find(&f, "absent") && !tensors_find(&f, "") && !tensors_find(&f, "zet") &&
           !tensors_find(&f, "zetaa"));
    tensors_close(&f);
}

TEST(a_file_that_cannot_be_written_is_an_error_and_leaves_nothing) {
    Err e = {0};
    char path[600];
    snprintf(path, sizeof path, "%s/absent/x.safetensors", folder[0] ? folder : tmp_path(".."));
    EXPECT(!tensors_write(path, samples, N_SAMPLES, &e));
    EXPECT_INT(err_exit_code(&e), EXIT_WRITE);
    EXPECT(!file_exists(path));
}

// ---------------------------------------------------------------------------------------- files of the reference library

static int64_t oracle_files, oracle_same;
static int visit(const char *path, const struct stat *s, int type, struct FTW *w) {
    (void)s, (void)w;
    const char *dot = strrchr(path, '.');
    if (type != FTW_F || !dot || strcmp(dot, ".safetensors")) return 0;
    oracle_files++;
    if (rewrites_to_the_same_bytes(path)) oracle_same++;
    else FAIL("%s: rewritten it has other bytes", path);
    return 0;
}
TEST(files_of_the_reference_library_open_and_rewrite_to_the_same_bytes) {
    char root[600];
    snprintf(root, sizeof root, "%s/oracle", test_root());
    if (!folder_exists(root)) SKIP("no folder %.200s", root);
    oracle_files = oracle_same = 0;
    nftw(root, visit, 16, FTW_PHYS);
    EXPECT(oracle_files > 0);
    EXPECT_INT(oracle_same, oracle_files);
}

// --------------------------------------------------------------------------------------------------- rule by rule

#define H(text) text, sizeof text - 1
static const struct Lie {
    const char *header;
    size_t header_size, data_size;
    const char *line;
} lies[] = {
    {H(" {\"t\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}}"), 24,
     "E-ST-04: m.safetensors: byte 8: expected \"{\" at the start of the header; found \" \"; do: this is not a "
     "safetensors file, or it is damaged"},
    {H("[{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}]"), 24,
     "E-ST-04: m.safetensors: byte 8: expected \"{\" at the start of the header; found \"[\"; do: this is not a "
     "safetensors file, or it is damaged"},
    {H("\357\273\277{\"t\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}}"), 24,
     "E-ST-04: m.safetensors: byte 8: expected \"{\" at the start of the header; found \"\\xEF\"; do: this is not a "
     "safetensors file, or it is damaged"},
    {H("{\"t\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}}\n"), 24,
     "E-ST-04: m.safetensors: byte 65: expected nothing but spaces after the header's last \"}\"; found \"\\x0A\"; do: "
     "write the file with the safetensors library"},
    {H("{\"t\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}}\t "), 24,
     "E-ST-04: m.safetensors: byte 65: expected nothing but spaces after the header's last \"}\"; found \"\\x09\"; do: "
     "write the file with the safetensors library"},
    {H("{\"t\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}}  \000"), 24,
     "E-JS-04: m.safetensors: byte 67: expected nothing after the value; found \"\\x00\"; do: remove what follows"},
    {H("{\"t\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}} x"), 24,
     "E-JS-04: m.safetensors: byte 66: expected nothing after the value; found \"x\"; do: remove what follows"},
    {H("{\"t\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}"), 24,
     "E-JS-04: m.safetensors: byte 64: expected \",\" or \"}\"; found the end of the text; do: complete the text, it "
     "stops too early"},
    {H("{\"t\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]},}"), 24,
     "E-JS-04: m.safetensors: byte 65: expected a string key after \",\"; found \"}\"; do: remove the comma before it"},
    {H("{'t':1}"), 24,
     "E-JS-04: m.safetensors: byte 9: expected a string key or \"}\" after \"{\"; found \"'\"; do: use double quotes"},
    {H("{\"t\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}}{}"), 24,
     "E-JS-04: m.safetensors: byte 65: expected nothing after the value; found \"{\"; do: remove what follows"},
    {H("{\"t\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24],}}"), 24,
     "E-JS-04: m.safetensors: byte 64: expected a string key after \",\"; found \"}\"; do: remove the comma before it"},
    {H("{\"t\":{\"dtype\":\"F32\",\"shape\":[[[[2]]],3],\"data_offsets\":[0,24]}}"), 24,
     "E-JS-05: m.safetensors: byte 38: expected at most 4 nested levels; found level 5; do: flatten the file"},
    {H("{\"\377\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}}"), 24,
     "E-JS-03: m.safetensors: byte 10: expected UTF-8 text; found byte 0xFF (looks like Latin-1); do: convert the file "
     "to UTF-8"},
    {H("{\"\\ud800\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}}"), 24,
     "E-JS-06: m.safetensors: byte 16: expected a low surrogate after \\ud800; found \"\\x22\"; do: re-export the "
     "text"},
    {H("{\"t\":{\"dtype\":\"F32\",\"shape\":[2,03],\"data_offsets\":[0,24]}}"), 24,
     "E-JS-04: m.safetensors: byte 39: expected a number without leading zeros; found \"03\"; do: remove the zeros"},
    {H("{\"t\":{\"dtype\":\"F32\",\"shape\":[2,NaN],\"data_offsets\":[0,24]}}"), 24,
     "E-JS-04: m.safetensors: byte 39: expected a value after \",\"; found \"NaN\"; do: write a finite number or null"},
    {H("{\"t\":{\"dtype\":\"F32\",\"shape\":[2,1e400],\"data_offsets\":[0,24]}}"), 24,
     "E-JS-07: m.safetensors: byte 39: expected a number that a double can hold (up to 1.8e308); found 1e400; do: "
     "write a smaller number"},
    {H("{\"t\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]},\"t\":{\"dtype\":\"F32\",\"shape\":[2,3],"
       "\"data_offsets\":[0,24]}}"),
     24,
     "E-JS-08: m.safetensors: byte 65: field \"t\": expected each key once; found it first at byte 9; do: delete one "
     "of the two"},
    {H("{\"t\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]},\"\\u0074\":{\"dtype\":\"F32\",\"shape\":[0]"
       ",\"data_offsets\":[24,24]}}"),
     24,
     "E-JS-08: m.safetensors: byte 65: field \"t\": expected each key once; found it first at byte 9; do: delete one "
     "of the two"},
    {H("{\"t\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}}"), 24,
     "E-JS-08: m.safetensors: byte 28: field \"t.dtype\": expected each key once; found it first at byte 14; do: "
     "delete one of the two"},
    {H("{\"__metadata__\":{},\"__metadata__\":{},\"t\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}}"),
     24,
     "E-JS-08: m.safetensors: byte 27: field \"__metadata__\": expected each key once; found it first at byte 9; do: "
     "delete one of the two"},
    {H("{\"t\":[]}"), 0,
     "E-ST-05: m.safetensors: byte 13: tensor \"t\": expected an object with dtype, shape and data_offsets; found an "
     "array; do: download the file again"},
    {H("{\"t\":null}"), 0,
     "E-ST-05: m.safetensors: byte 13: tensor \"t\": expected an object with dtype, shape and data_offsets; found "
     "null; do: download the file again"},
    {H("{\"t\":\"F32\"}"), 0,
     "E-ST-05: m.safetensors: byte 13: tensor \"t\": expected an object with dtype, shape and data_offsets; found "
     "\"F32\"; do: download the file again"},
    {H("{\"t\":{}}"), 0,
     "E-ST-05: m.safetensors: byte 13: tensor \"t\": expected the key \"dtype\"; found an entry without it; do: write "
     "the file with the safetensors library"},
    {H("{\"t\":{\"dtype\":\"F32\",\"shape\":[2,3]}}"), 24,
     "E-ST-05: m.safetensors: byte 13: tensor \"t\": expected the key \"data_offsets\"; found an entry without it; do: "
     "write the file with the safetensors library"},
    {H("{\"t\":{\"shape\":[2,3],\"data_offsets\":[0,24]}}"), 24,
     "E-ST-05: m.safetensors: byte 13: tensor \"t\": expected the key \"dtype\"; found an entry without it; do: write "
     "the file with the safetensors library"},
    {H("{\"t\":{\"dtype\":\"F32\",\"data_offsets\":[0,24]}}"), 24,
     "E-ST-05: m.safetensors: byte 13: tensor \"t\": expected the key \"shape\"; found an entry without it; do: write "
     "the file with the safetensors library"},
    {H("{\"t\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24],\"strides\":[3,1]}}"), 24,
     "E-ST-05: m.safetensors: byte 74: tensor \"t\": expected dtype, shape and data_offsets only; found \"strides\"; "
     "do: write the file with the safetensors library"},
    {H("{\"t\":{\"dtype\":\"F32\",\"Shape\":[2,3],\"data_offsets\":[0,24]}}"), 24,
     "E-ST-05: m.safetensors: byte 36: tensor \"t\": expected dtype, shape and data_offsets only; found \"Shape\"; do: "
     "write the file with the safetensors library"},
    {H("{\"__metadata__\":[],\"t\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}}"), 24,
     "E-ST-05: m.safetensors: byte 24: field \"__metadata__\": expected an object that maps strings to strings; found "
     "an array; do: write the file with the safetensors library"},
    {H("{\"__metadata__\":null,\"t\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}}"), 24,
     "E-ST-05: m.safetensors: byte 24: field \"__metadata__\": expected an object that maps strings to strings; found "
     "null; do: write the file with the safetensors library"},
    {H("{\"__metadata__\":{\"format\":1},\"t\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}}"), 24,
     "E-ST-05: m.safetensors: byte 34: field \"__metadata__\": expected an object that maps strings to strings; found "
     "1; do: write the file with the safetensors library"},
    {H("{\"__metadata__\":{\"format\":{\"a\":\"b\"}},\"t\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}"
       "}"),
     24,
     "E-ST-05: m.safetensors: byte 34: field \"__metadata__\": expected an object that maps strings to strings; found "
     "an object; do: write the file with the safetensors library"},
    {H("{\"\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}}"), 24,
     "E-ST-05: m.safetensors: byte 12: expected a tensor name of 1 to 512 bytes without a zero byte; found \"\" of 0 "
     "bytes; do: download the file again"},
    {H("{\"a\\u0000b\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}}"), 24,
     "E-ST-05: m.safetensors: byte 20: expected a tensor name of 1 to 512 bytes without a zero byte; found \"a\\x00b\" "
     "of 3 bytes; do: download the file again"},
    {H("{\"t\":{\"dtype\":\"F8_E4M3\",\"shape\":[2,3],\"data_offsets\":[0,24]}}"), 24,
     "E-ST-06: m.safetensors: byte 22: tensor \"t\": expected dtype F64, F32, F16, BF16, I64, I32, I16, I8, U8 or "
     "BOOL; found \"F8_E4M3\"; do: convert the checkpoint to bfloat16"},
    {H("{\"t\":{\"dtype\":\"f32\",\"shape\":[2,3],\"data_offsets\":[0,24]}}"), 24,
     "E-ST-06: m.safetensors: byte 22: tensor \"t\": expected dtype F64, F32, F16, BF16, I64, I32, I16, I8, U8 or "
     "BOOL; found \"f32\"; do: convert the checkpoint to bfloat16"},
    {H("{\"t\":{\"dtype\":\"F32 \",\"shape\":[2,3],\"data_offsets\":[0,24]}}"), 24,
     "E-ST-06: m.safetensors: byte 22: tensor \"t\": expected dtype F64, F32, F16, BF16, I64, I32, I16, I8, U8 or "
     "BOOL; found \"F32 \"; do: convert the checkpoint to bfloat16"},
    {H("{\"t\":{\"dtype\":\"F32\\u0000\",\"shape\":[2,3],\"data_offsets\":[0,24]}}"), 24,
     "E-ST-06: m.safetensors: byte 22: tensor \"t\": expected dtype F64, F32, F16, BF16, I64, I32, I16, I8, U8 or "
     "BOOL; found \"F32\\x00\"; do: convert the checkpoint to bfloat16"},
    {H("{\"t\":{\"dtype\":\"\",\"shape\":[2,3],\"data_offsets\":[0,24]}}"), 24,
     "E-ST-06: m.safetensors: byte 22: tensor \"t\": expected dtype F64, F32, F16, BF16, I64, I32, I16, I8, U8 or "
     "BOOL; found \"\"; do: convert the checkpoint to bfloat16"},
    {H("{\"t\":{\"dtype\":32,\"shape\":[2,3],\"data_offsets\":[0,24]}}"), 24,
     "E-ST-06: m.safetensors: byte 22: tensor \"t\": expected dtype F64, F32, F16, BF16, I64, I32, I16, I8, U8 or "
     "BOOL; found 32; do: convert the checkpoint to bfloat16"},
    {H("{\"t\":{\"dtype\":null,\"shape\":[2,3],\"data_offsets\":[0,24]}}"), 24,
     "E-ST-06: m.safetensors: byte 22: tensor \"t\": expected dtype F64, F32, F16, BF16, I64, I32, I16, I8, U8 or "
     "BOOL; found null; do: convert the checkpoint to bfloat16"},
    {H("{\"t\":{\"dtype\":[\"F32\"],\"shape\":[2,3],\"data_offsets\":[0,24]}}"), 24,
     "E-ST-06: m.safetensors: byte 22: tensor \"t\": expected dtype F64, F32, F16, BF16, I64, I32, I16, I8, U8 or "
     "BOOL; found an array; do: convert the checkpoint to bfloat16"},
    {H("{\"t\":{\"dtype\":\"U16\",\"shape\":[2,3],\"data_offsets\":[0,24]}}"), 24,
     "E-ST-06: m.safetensors: byte 22: tensor \"t\": expected dtype F64, F32, F16, BF16, I64, I32, I16, I8, U8 or "
     "BOOL; found \"U16\"; do: convert the checkpoint to bfloat16"},
    {H("{\"t\":{\"dtype\":\"C64\",\"shape\":[2,3],\"data_offsets\":[0,24]}}"), 24,
     "E-ST-06: m.safetensors: byte 22: tensor \"t\": expected dtype F64, F32, F16, BF16, I64, I32, I16, I8, U8 or "
     "BOOL; found \"C64\"; do: convert the checkpoint to bfloat16"},
    {H("{\"t\":{\"dtype\":\"BF16\\u001b[2J\",\"shape\":[2,3],\"data_offsets\":[0,24]}}"), 24,
     "E-ST-06: m.safetensors: byte 22: tensor \"t\": expected dtype F64, F32, F16, BF16, I64, I32, I16, I8, U8 or "
     "BOOL; found \"BF16\\x1B[2J\"; do: convert the checkpoint to bfloat16"},
    {H("{\"t\":{\"dtype\":\"F32\",\"shape\":[2,3.0],\"data_offsets\":[0,24]}}"), 24,
     "E-ST-07: m.safetensors: byte 39: tensor \"t\": expected a dimension 0..1099511627776; found 3.0; do: download "
     "the file again"},
    {H("{\"t\":{\"dtype\":\"F32\",\"shape\":[2,-3],\"data_offsets\":[0,24]}}"), 24,
     "E-ST-07: m.safetensors: byte 39: tensor \"t\": expected a dimension 0..1099511627776; found -3; do: download the "
     "file again"},
    {H("{\"t\":{\"dtype\":\"F32\",\"shape\":[-2,-3],\"data_offsets\":[0,24]}}"), 24,
     "E-ST-07: m.safetensors: byte 37: tensor \"t\": expected a dimension 0..1099511627776; found -2; do: download the "
     "file again"},
    {H("{\"t\":{\"dtype\":\"F32\",\"shape\":[\"2\",3],\"data_offsets\":[0,24]}}"), 24,
     "E-ST-07: m.safetensors: byte 37: tensor \"t\": expected a dimension 0..1099511627776; found \"2\"; do: download "
     "the file again"},
    {H("{\"t\":{\"dtype\":\"F32\",\"shape\":[2,null],\"data_offsets\":[0,24]}}"), 24,
     "E-ST-07: m.safetensors: byte 39: tensor \"t\": expected a dimension 0..1099511627776; found null; do: download "
     "the file again"},
    {H("{\"t\":{\"dtype\":\"F32\",\"shape\":6,\"data_offsets\":[0,24]}}"), 24,
     "E-ST-07: m.safetensors: byte 36: tensor \"t\": expected a shape of at most 8 dimensions; found 6; do: download "
     "the file again"},
    {H("{\"t\":{\"dtype\":\"F32\",\"shape\":\"[2,3]\",\"data_offsets\":[0,24]}}"), 24,
     "E-ST-07: m.safetensors: byte 36: tensor \"t\": expected a shape of at most 8 dimensions; found \"[2,3]\"; do: "
     "download the file again"},
    {H("{\"t\":{\"dtype\":\"F32\",\"shape\":{\"0\":2},\"data_offsets\":[0,24]}}"), 24,
     "E-ST-07: m.safetensors: byte 36: tensor \"t\": expected a shape of at most 8 dimensions; found an object; do: "
     "download the file again"},
    {H("{\"t\":{\"dtype\":\"F32\",\"shape\":null,\"data_offsets\":[0,24]}}"), 24,
     "E-ST-07: m.safetensors: byte 36: tensor \"t\": expected a shape of at most 8 dimensions; found null; do: "
     "download the file again"},
    {H("{\"t\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,2,3],\"data_offsets\":[0,24]}}"), 24,
     "E-ST-07: m.safetensors: byte 36: tensor \"t\": expected a shape of at most 8 dimensions; found 9 dimensions; do: "
     "download the file again"},
    {H("{\"t\":{\"dtype\":\"F32\",\"shape\":[1099511627777,0],\"data_offsets\":[0,24]}}"), 24,
     "E-ST-07: m.safetensors: byte 37: tensor \"t\": expected a dimension 0..1099511627776; found 1099511627777; do: "
     "download the file again"},
    {H("{\"t\":{\"dtype\":\"F32\",\"shape\":[18446744073709551617],\"data_offsets\":[0,24]}}"), 24,
     "E-ST-07: m.safetensors: byte 37: tensor \"t\": expected a dimension 0..1099511627776; found "
     "18446744073709551617; do: download the file again"},
    {H("{\"t\":{\"dtype\":\"F32\",\"shape\":[1099511627776,1099511627776],\"data_offsets\":[0,24]}}"), 24,
     "E-ST-07: m.safetensors: byte 36: tensor \"t\": expected a size in bytes below 2^63; found shape "
     "[1099511627776,1099511627776] F32; do: download the file again"},
    {H("{\"t\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296,0],\"data_offsets\":[0,24]}}"), 24,
     "E-ST-07: m.safetensors: byte 36: tensor \"t\": expected a size in bytes below 2^63; found shape "
     "[4294967296,4294967296,0] F32; do: download the file again"},
    {H("{\"t\":{\"dtype\":\"F32\",\"shape\":[8388608,1099511627776],\"data_offsets\":[0,24]}}"), 24,
     "E-ST-07: m.safetensors: byte 36: tensor \"t\": expected a size in bytes below 2^63; found shape "
     "[8388608,1099511627776] F32; do: download the file again"},
    {H("{\"t\":{\"dtype\":\"F32\",\"shape\":[2,3e0],\"data_offsets\":[0,24]}}"), 24,
     "E-ST-07: m.safetensors: byte 39: tensor \"t\": expected a dimension 0..1099511627776; found 3e0; do: download "
     "the file again"},
    {H("{\"t\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904,4],\"data_offsets\":[0,24]}}"), 24,
     "E-ST-07: m.safetensors: byte 37: tensor \"t\": expected a dimension 0..1099511627776; found 4611686018427387904; "
     "do: download the file again"},
    {H("{\"t\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,23]}}"), 24,
     "E-ST-08: m.safetensors: byte 57: tensor \"t\": expected 24 bytes for shape [2,3] F32; found 23; do: download the "
     "file again and compare its sha256"},
    {H("{\"t\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,25]}}"), 24,
     "E-ST-08: m.safetensors: byte 57: tensor \"t\": expected 24 bytes for shape [2,3] F32; found 25; do: download the "
     "file again and compare its sha256"},
    {H("{\"t\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[1,24]}}"), 24,
     "E-ST-08: m.safetensors: byte 57: tensor \"t\": expected 24 bytes for shape [2,3] F32; found 23; do: download the "
     "file again and compare its sha256"},
    {H("{\"t\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[24,0]}}"), 24,
     "E-ST-08: m.safetensors: byte 57: tensor \"t\": expected data_offsets [begin, end] with integers 0 <= begin <= "
     "end; found [24, 0]; do: download the file again"},
    {H("{\"t\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[-24,0]}}"), 24,
     "E-ST-08: m.safetensors: byte 57: tensor \"t\": expected data_offsets [begin, end] with integers 0 <= begin <= "
     "end; found [-24, 0]; do: download the file again"},
    {H("{\"t\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24.0]}}"), 24,
     "E-ST-08: m.safetensors: byte 57: tensor \"t\": expected data_offsets [begin, end] with integers 0 <= begin <= "
     "end; found [0, 24.0]; do: download the file again"},
    {H("{\"t\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,\"24\"]}}"), 24,
     "E-ST-08: m.safetensors: byte 57: tensor \"t\": expected data_offsets [begin, end] with integers 0 <= begin <= "
     "end; found [0, \"24\"]; do: download the file again"},
    {H("{\"t\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0]}}"), 24,
     "E-ST-08: m.safetensors: byte 57: tensor \"t\": expected data_offsets [begin, end] with integers 0 <= begin <= "
     "end; found an array; do: download the file again"},
    {H("{\"t\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24,0]}}"), 24,
     "E-ST-08: m.safetensors: byte 57: tensor \"t\": expected data_offsets [begin, end] with integers 0 <= begin <= "
     "end; found an array; do: download the file again"},
    {H("{\"t\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[]}}"), 24,
     "E-ST-08: m.safetensors: byte 57: tensor \"t\": expected data_offsets [begin, end] with integers 0 <= begin <= "
     "end; found an array; do: download the file again"},
    {H("{\"t\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":null}}"), 24,
     "E-ST-08: m.safetensors: byte 57: tensor \"t\": expected data_offsets [begin, end] with integers 0 <= begin <= "
     "end; found null; do: download the file again"},
    {H("{\"t\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":24}}"), 24,
     "E-ST-08: m.safetensors: byte 57: tensor \"t\": expected data_offsets [begin, end] with integers 0 <= begin <= "
     "end; found 24; do: download the file again"},
    {H("{\"t\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":{\"0\":0,\"1\":24}}}"), 24,
     "E-ST-08: m.safetensors: byte 57: tensor \"t\": expected data_offsets [begin, end] with integers 0 <= begin <= "
     "end; found an object; do: download the file again"},
    {H("{\"t\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,18446744073709551640]}}"), 24,
     "E-ST-08: m.safetensors: byte 57: tensor \"t\": expected data_offsets [begin, end] with integers 0 <= begin <= "
     "end; found [0, 18446744073709551640]; do: download the file again"},
    {H("{\"t\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,9223372036854775807]}}"), 24,
     "E-ST-08: m.safetensors: byte 57: tensor \"t\": expected 24 bytes for shape [2,3] F32; found 9223372036854775807; "
     "do: download the file again and compare its sha256"},
    {H("{\"t\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[9223372036854775784,9223372036854775807]}}"), 24,
     "E-ST-08: m.safetensors: byte 57: tensor \"t\": expected 24 bytes for shape [2,3] F32; found 23; do: download the "
     "file again and compare its sha256"},
    {H("{\"t\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[null,24]}}"), 24,
     "E-ST-08: m.safetensors: byte 57: tensor \"t\": expected data_offsets [begin, end] with integers 0 <= begin <= "
     "end; found [null, 24]; do: download the file again"},
    {H("{\"t\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[-9223372036854775808,9223372036854775807]}}"), 24,
     "E-ST-08: m.safetensors: byte 57: tensor \"t\": expected data_offsets [begin, end] with integers 0 <= begin <= "
     "end; found [-9223372036854775808, 9223372036854775807]; do: download the file again"},
    {H("{\"a\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,12]},\"b\":{\"dtype\":\"F32\",\"shape\":[3],\"data_"
       "offsets\":[12,24]}}"),
     23,
     "E-ST-09: m.safetensors: byte 118: expected 142 bytes in all; found 141 (1 missing); do: the download stopped "
     "early; fetch it again"},
    {H("{\"a\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,12]},\"b\":{\"dtype\":\"F32\",\"shape\":[3],\"data_"
       "offsets\":[12,24]}}"),
     25,
     "E-ST-09: m.safetensors: byte 118: expected 142 bytes in all; found 143 (1 too many); do: something was appended "
     "to the file; fetch it again"},
    {H("{\"a\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,12]},\"b\":{\"dtype\":\"F32\",\"shape\":[3],\"data_"
       "offsets\":[12,24]}}"),
     0,
     "E-ST-09: m.safetensors: byte 118: expected 142 bytes in all; found 118 (24 missing); do: the download stopped "
     "early; fetch it again"},
    {H("{\"a\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,12]},\"b\":{\"dtype\":\"F32\",\"shape\":[3],\"data_"
       "offsets\":[16,28]}}"),
     28,
     "E-ST-09: m.safetensors: byte 134: tensor \"b\": expected data that begins at offset 12, where the tensor before "
     "ends; found 16 (a hole of 4 bytes); do: download the file again"},
    {H("{\"a\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,12]},\"b\":{\"dtype\":\"F32\",\"shape\":[3],\"data_"
       "offsets\":[8,20]}}"),
     20,
     "E-ST-09: m.safetensors: byte 125: tensor \"b\": expected data that begins at offset 12, where the tensor before "
     "ends; found 8 (an overlap of 4 bytes); do: download the file again"},
    {H("{\"a\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,12]},\"b\":{\"dtype\":\"F32\",\"shape\":[3],\"data_"
       "offsets\":[0,12]}}"),
     12,
     "E-ST-09: m.safetensors: byte 117: tensor \"b\": expected data that begins at offset 12, where the tensor before "
     "ends; found 0 (an overlap of 12 bytes); do: download the file again"},
    {H("{\"a\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[4,16]},\"b\":{\"dtype\":\"F32\",\"shape\":[3],\"data_"
       "offsets\":[16,28]}}"),
     28,
     "E-ST-09: m.safetensors: byte 122: tensor \"a\": expected data that begins at offset 0, where the tensor before "
     "ends; found 4 (a hole of 4 bytes); do: download the file again"},
    {H("{\"a\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,12]},\"b\":{\"dtype\":\"F32\",\"shape\":[0],\"data_"
       "offsets\":[12,12]}}"),
     16,
     "E-ST-09: m.safetensors: byte 118: expected 130 bytes in all; found 134 (4 too many); do: something was appended "
     "to the file; fetch it again"},
    {H("{\"a\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,12]},\"b\":{\"dtype\":\"F32\",\"shape\":[0],\"data_"
       "offsets\":[4,4]}}"),
     12,
     "E-ST-09: m.safetensors: byte 120: tensor \"b\": expected data that begins at offset 12, where the tensor before "
     "ends; found 4 (an overlap of 8 bytes); do: download the file again"},
    {H("{\"a\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,12]},\"b\":{\"dtype\":\"F32\",\"shape\":[0],\"data_"
       "offsets\":[13,13]}}"),
     12,
     "E-ST-08: m.safetensors: byte 109: tensor \"b\": expected data_offsets up to 12, the size of the data; found [13, "
     "13]; do: download the file again"},
    {H("{\"a\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,12]},\"b\":{\"dtype\":\"F32\",\"shape\":[3],\"data_"
       "offsets\":[1000000,1000012]}}"),
     24,
     "E-ST-08: m.safetensors: byte 109: tensor \"b\": expected data_offsets up to 24, the size of the data; found "
     "[1000000, 1000012]; do: download the file again"},
    {H("{}"), 8,
     "E-ST-09: m.safetensors: byte 10: expected 10 bytes in all; found 18 (8 too many); do: something was appended to "
     "the file; fetch it again"},
    {H("{\"a\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,12]},\"b\":{\"dtype\":\"F32\",\"shape\":[3],\"data_"
       "offsets\":[9223372036854775792,9223372036854775804]}}"),
     24,
     "E-ST-08: m.safetensors: byte 109: tensor \"b\": expected data_offsets up to 24, the size of the data; found "
     "[9223372036854775792, 9223372036854775804]; do: download the file again"},
    {H("{\"a\":{\"dtype\":\"F32\",\"shape\":[1048576,1099511627776],\"data_offsets\":[0,4611686018427387904]},\"b\":{"
       "\"dtype\":\"F32\",\"shape\":[1048575,1099511627776],\"data_offsets\":[4611686018427387904,9223372036854775804]}"
       "}"),
     24,
     "E-ST-08: m.safetensors: byte 166: tensor \"b\": expected 4611681620380876800 bytes for shape "
     "[1048575,1099511627776] F32; found 4611686018427387900; do: download the file again and compare its sha256"},
};
enum { N_LIES = sizeof lies / sizeof *lies };

TEST(every_lie_in_a_header_is_named) {
    EXPECT(N_LIES >= 60);
    for (int i = 0; i < N_LIES; i++) {
        Bytes b = make_file(lies[i].header, lies[i].header_size, lies[i].data_size, NULL);
        const char *line = verdict(b.p, b.n);
        if (strcmp(line, lies[i].line)) FAIL("%s:\n  expected %s\n  got      %s", lies[i].header, lies[i].line, line);
        free(b.p);
    }
}

TEST(files_that_are_something_else_are_named) {
    static const struct {
        const char *bytes;
        size_t size;
        const char *line;
    } cases[] = {
        {H(""), "E-ST-01: m.safetensors: byte 0: expected at least 8 bytes; found 0; do: download the file again"},
        {H("{}\n"), "E-ST-01: m.safetensors: byte 0: expected at least 8 bytes; found 3; do: download the file again"},
        {H("\2\0\0\0\0\0\0"),
         "E-ST-01: m.safetensors: byte 0: expected at least 8 bytes; found 7; do: download the file again"},
        {H("version https://git-lfs.github.com/spec/v1\noid sha256:4665\nsize 135\n"),
         "E-ST-02: m.safetensors: byte 0: expected safetensors data; found a Git LFS pointer of 68 bytes; do: fetch "
         "the real file (git lfs pull)"},
        {H("<!DOCTYPE html><html></html>"),
         "E-ST-02: m.safetensors: byte 0: expected safetensors data; found an HTML page of 28 bytes; do: download the "
         "file itself, not the page that shows it"},
        {H("<html><body>"), "E-ST-02: m.safetensors: byte 0: expected safetensors data; found an HTML page of 12 "
                            "bytes; do: download the file itself, not the page that shows it"},
        {H("{\"metadata\": {}}"), "E-ST-02: m.safetensors: byte 0: expected safetensors data; found JSON text of 16 "
                                  "bytes; do: give the .safetensors file, not its index or configuration"},
        {H("PK\3\4\0\0\10\10\0\0"), "E-ST-02: m.safetensors: byte 0: expected safetensors data; found a zip archive "
                                    "(PyTorch's own format) of 10 bytes; do: convert it to safetensors first"},
        {H("GGUF\3\0\0\0\0"), "E-ST-02: m.safetensors: byte 0: expected safetensors data; found a GGUF file of 9 "
                              "bytes; do: use the checkpoint in safetensors format"},
        {H("not weights"), "E-ST-03: m.safetensors: byte 0: expected a header length of at most 16777216; found "
                           "7451598620781211502; do: this is not a safetensors file, or it is damaged"},
        {H("\0\0\0\0\0\0\0\0"), "E-ST-03: m.safetensors: byte 0: expected a header length of at least 2; found 0; do: "
                                "this is not a safetensors file, or it is damaged"},
        {H("\1\0\0\0\0\0\0\0{"), "E-ST-03: m.safetensors: byte 0: expected a header length of at least 2; found 1; do: "
                                 "this is not a safetensors file, or it is damaged"},
        {H("\3\0\0\0\0\0\0\0{}"), "E-ST-03: m.safetensors: byte 0: expected 3 bytes of header after byte 8; found 2; "
                                  "do: the download stopped early; fetch it again"},
        {H("\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF{}"),
         "E-ST-03: m.safetensors: byte 0: expected a header length of at most 16777216; found 18446744073709551615; "
         "do: this is not a safetensors file, or it is damaged"},
        {H("\xF8\xFF\xFF\xFF\xFF\xFF\xFF\xFF{}"),
         "E-ST-03: m.safetensors: byte 0: expected a header length of at most 16777216; found 18446744073709551608; "
         "do: this is not a safetensors file, or it is damaged"},
        {H("{\0\0\0\0\0\0\0{}"), "E-ST-03: m.safetensors: byte 0: expected 123 bytes of header after byte 8; found 2; "
                                 "do: the download stopped early; fetch it again"},
        {H("\2\0\0\0\0\0\0\0{}"), "accepted"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint8_t *exact = malloc(cases[i].size ? cases[i].size : 1);
        memcpy(exact, cases[i].bytes, cases[i].size);
        EXPECT_STR(verdict(exact, cases[i].size), cases[i].line);
        free(exact);
    }
}

TEST(legal_oddities_are_accepted) {
    static const struct {
        const char *header;
        size_t size;
    } cases[] = {
        {"{}", 0},
        {"{}      ", 0},
        {"{\"__metadata__\":{}}", 0},
        {" {}" + 1, 0},
        {"{ \"t\" : {\n\"shape\":[ 2 ,\t3 ],\r\"data_offsets\":[0,24] ,\"dtype\":\"F32\"} }",
         24},                                                               // spaces inside, any order
        {"{\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[3,7]}," // unaligned, unsorted
         "\"a\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,3]}}",
         7},
        {"{\"z\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}}", 0}, // zero-size: alone,
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},"       // at the start,
         "\"b\":{\"dtype\":\"F32\",\"shape\":[5,0],\"data_offsets\":[0,0]},\"c\":{\"dtype\":\"U8\",\"shape\":[1],"
         "\"data_offsets\":[2,3]},\"d\":{\"dtype\":\"F64\",\"shape\":[0,7],\"data_offsets\":[2,2]}," // between,
         "\"e\":{\"dtype\":\"F64\",\"shape\":[1099511627776,0],\"data_offsets\":[3,3]}}",
         3},                                                                                  // at the end
        {"{\"s\":{\"dtype\":\"F64\",\"shape\":[],\"data_offsets\":[0,8]}}", 8},               // a scalar
        {"{\"t\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1,1,2],\"data_offsets\":[0,2]}}", 2}, // 8 dimensions
        {"{\"\\u00e9\":{\"dtype\":\"U8\",\"shape\":[-0],\"data_offsets\":[0,-0]}}", 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Bytes b = make_file(cases[i].header, strlen(cases[i].header), cases[i].size, NULL);
        const char *line = verdict(b.p, b.n);
        if (strcmp(line, "accepted")) FAIL("%s: %s", cases[i].header, line);
        free(b.p);
    }
}

TEST(limits_hold_at_the_limit_and_not_one_beyond) {
    Text t = {0};
    for (int over = 0; over < 2; over++) {
        char name[520];
        memset(name, 'n', sizeof name);
        text_free(&t), t = (Text){0}; // names
        text_addf(&t, "{\"%.*s\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}", 512 + over, name);
        Bytes b = make_file(t.p, t.len, 0, NULL);
        EXPECT_INT(strcmp(verdict(b.p, b.n), "accepted") != 0, over);
        if (over)
            EXPECT_STR(verdict(b.p, b.n),
                       "E-ST-05: m.safetensors: byte 525: expected a tensor name of 1 to 512 bytes without a zero "
                       "byte; found \"nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn\"... of 513 "
                       "bytes; do: download the file again");
        free(b.p);

        text_free(&t), t = (Text){0}; // header bytes
        text_addf(&t, "{}%*s", (int)LIMIT_HEADER_BYTES - 2 + over, "");
        b = make_file(t.p, t.len, 0, NULL);
        EXPECT_INT(strncmp(verdict(b.p, b.n), "E-ST-03: ", 9) == 0, over);
        EXPECT_INT(strcmp(verdict(b.p, b.n), "accepted") != 0, over);
        free(b.p);

        for (int metadata = 0; metadata < 2; metadata++) { // tensors
            text_free(&t), t = (Text){0};
            text_addf(&t, "{%s", metadata ? "\"__metadata__\":{}" : "");
            for (int64_t i = 0; i < LIMIT_TENSORS + over; i++)
                text_addf(&t, "%s\"%llx\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}",
                          i || metadata ? "," : "", (long long)i);
            text_addf(&t, "}");
            b = make_file(t.p, t.len, 0, NULL);
            EXPECT_STR(verdict(b.p, b.n), over ? "E-ST-05: m.safetensors: byte 8: expected at most 65536 tensors; "
                                                 "found 65537; do: check that this is the right file"
                                               : "accepted");
            free(b.p);
        }
    }
    text_free(&t);
}

// ------------------------------------------------------------------------------------------------------------ mutants

// The five files that are damaged.
static Bytes valid_file(int k) {
    if (k == 0 || k == 1) { // all types; then an adapter's two pairs without metadata
        static const TensorOut pairs[] = {
            {"base_model.model.model.layers.0.q_proj.lora_A.weight", FT_F32, 2, {1, 6}, floats},
            {"base_model.model.model.layers.0.q_proj.lora_B.weight", FT_F32, 2, {2, 1}, floats},
            {"base_model.model.model.layers.1.q_proj.lora_A.weight", FT_BF16, 2, {1, 6}, halves},
            {"base_model.model.model.layers.1.q_proj.lora_B.weight", FT_F16, 2, {4, 1}, halves}};
        const char *path = tmp_path("valid.safetensors");
        Err e = {0};
        bool ok = k ? tensors_write_with(path, NULL, pairs, 4, &e) : tensors_write(path, samples, N_SAMPLES, &e);
        if (!ok) FAIL("%s", line_of(&e));
        Bytes b;
        b.p = get_file(path, &b.n);
        return b;
    }
    static const char *const headers[] = {
        "{\"w\":{\"dtype\":\"BF16\",\"shape\":[4,8],\"data_offsets\":[0,64]}}",
        "{ \"b\" : {\"shape\":[ 1 ],\"dtype\":\"F32\",\"data_offsets\":[3,7]}, "
        "\"zero\":{\"dtype\":\"F32\",\"shape\":[0,9],\"data_offsets\":[3,3]},\n\"a\":{\"dtype\":\"U8\",\"shape\":[3],"
        "\"data_offsets\":[0,3]},\"__metadata__\":{\"a\\nb\":\"\\u00e9\",\"\":\"\"}}",
        "{\"__metadata__\":{\"format\":\"pt\",\"note\":\"no tensors\"}}    ",
    };
    static const size_t sizes[] = {64, 7, 0};
    return make_file(headers[k - 2], strlen(headers[k - 2]), sizes[k - 2], NULL);
}

static int by_place(const void *pa, const void *pb) {
    const Tensor *a = pa, *b = pb;
    if (a->data != b->data) return a->data < b->data ? -1 : 1;
    return (a->bytes > b->bytes) - (a->bytes < b->bytes);
}

// The tensors with any bytes in the order of their data: checks that they tile the data and that sizes agree.
static int64_t tiles(TensorFile *f, const uint8_t *data, size_t size, Tensor *out, int64_t max) {
    int64_t n = 0;
    for (int64_t i = 0; i < f->count; i++) {
        Tensor *t = &f->tensors[i];
        int64_t elements = 1;
        for (int k = 0; k < t->dims; k++) elements *= t->shape[k];
        EXPECT(t->elements == elements && t->bytes == (size_t)elements * file_type_size(t->type));
        EXPECT(t->data >= data && t->data <= data + size && t->bytes <= (size_t)(data + size - t->data));
        EXPECT(tensors_find(f, t->name) == t);
        EXPECT(!i || strcmp(t[-1].name, t->name) < 0);
        if (t->bytes && n < max) out[n++] = *t;
    }
    qsort(out, (size_t)n, sizeof *out, by_place);
    for (int64_t i = 0; i < n; i++) EXPECT(out[i].data + out[i].bytes == (i + 1 < n ? out[i + 1].data : data + size));
    return n;
}

static int64_t mutants, mutants_accepted;

// A mutant is refused with a good line, or says the same as the original: tensors over the same bytes, of the same types.
// (Nobody can see that a byte left out of "BF16" has made "F16" of it: `same_types` is for damage that cannot do that.)
static void try_mutant(const uint8_t *data, size_t size, const uint8_t *original, size_t original_size,
                       bool same_types) {
    uint8_t *exact = malloc(size ? size : 1);
    if (!exact) exit(1);
    if (size) memcpy(exact, data, size);
    TensorFile f, g;
    Err e = {0}, none = {0};
    mutants++;
    if (!tensors_open_memory(&f, exact, size, "m.safetensors", &e)) {
        const char *line = line_of(&e);
        if (!well_formed(line)) FAIL("not of the form: %s", line);
        if (strncmp(e.code, "E-ST-0", 6) && strncmp(e.code, "E-JS-0", 6)) FAIL("unexpected code: %s", line);
    } else if (tensors_open_memory(&g, original, original_size, "original", &none)) {
        Tensor a[32], b[32];
        mutants_accepted++;
        int64_t n = tiles(&f, exact, size, a, 32), m = tiles(&g, original, original_size, b, 32);
        EXPECT_INT(n, m);
        for (int64_t i = 0; i < n && i < m; i++)
            EXPECT((a[i].type == b[i].type || !same_types) && a[i].bytes == b[i].bytes &&
                   !memcmp(a[i].data, b[i].data, b[i].bytes));
        tensors_close(&f), tensors_close(&g);
    }
    free(exact);
}

TEST(no_mutant_gets_through) {
    mutants = mutants_accepted = 0;
    for (int k = 0; k < 5; k++) {
        Bytes b = valid_file(k);
        EXPECT_STR(verdict(b.p, b.n), "accepted");
        uint64_t h;
        memcpy(&h, b.p, 8);
        size_t start = 8 + (size_t)h;
        uint8_t *m = malloc(b.n + 64);
        if (!m) exit(1);
        for (size_t n = 0; n < b.n; n++) { // every truncation, of header and data
            if (n >= 8 && !strcmp(verdict(b.p, n), "accepted")) FAIL("file %d cut to %zu is accepted", k, n);
            try_mutant(b.p, n, b.p, b.n, true);
        }
        for (size_t more = 1; more <= 32; more++) { // a tail
            memcpy(m, b.p, b.n), memset(m + b.n, more & 1 ? ' ' : 0, more);
            if (!strcmp(verdict(m, b.n + more), "accepted")) FAIL("file %d with a tail of %zu is accepted", k, more);
            try_mutant(m, b.n + more, b.p, b.n, true);
        }
        memcpy(m, b.p, b.n);
        for (size_t bit = 0; bit < 8 * start; bit++) { // every single bit of length and header
            m[bit / 8] ^= (uint8_t)(1 << bit % 8);
            try_mutant(m, b.n, b.p, b.n, true);
            m[bit / 8] ^= (uint8_t)(1 << bit % 8);
        }
        for (size_t i = 8; i < start; i++) { // every byte left out or doubled, the length put right
            h = start - 9, memcpy(m, &h, 8);
            memcpy(m + 8, b.p + 8, i - 8), memcpy(m + i, b.p + i + 1, b.n - i - 1);
            try_mutant(m, b.n - 1, b.p, b.n, false);
            h = start - 7, memcpy(m, &h, 8);
            memcpy(m + i + 1, b.p + i, b.n - i);
            try_mutant(m, b.n + 1, b.p, b.n, false);
        }
        for (uint32_t i = 0; i < 1500; i++) { // a few bytes replaced by bytes that mean something
            static const char words[] = "0123456789-.,:[]{}\"\\eE tnu\xFF";
            memcpy(m, b.p, b.n);
            Random4 r = philox((uint64_t)k, RANDOM_TEST, 7, i, 0);
            for (uint32_t j = 0; j <= r.v[0] % 3; j++)
                m[8 + r.v[1 + j] % (start - 8)] = (uint8_t)words[(r.v[1 + j] >> 16) % (sizeof words - 1)];
            try_mutant(m, b.n, b.p, b.n, false);
        }
        free(m), free(b.p);
    }
    EXPECT(mutants >= 20000);
    EXPECT(mutants_accepted > 0 && mutants_accepted < mutants / 2); // names and metadata may change, little else
}

// ------------------------------------------------------------------------------------------------------------ folders

static void put_text(const char *dir, const char *name, const char *text) {
    char path[1000];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    put_file(path, text, strlen(text));
}
static void put_tensors(const char *dir, const char *name, const TensorOut *tensors, int64_t count) {
    char path[1000];
    Err e = {0};
    snprintf(path, sizeof path, "%s/%s", dir, name);
    if (!tensors_write(path, tensors, count, &e)) FAIL("%s", line_of(&e));
}
// Opens the folder: "accepted", or the line after "surgr1: error " with the folder's own path left out.
static const char *folder_verdict(const char *dir) {
    static char out[4096];
    TensorFile f;
    Err e = {0};
    if (tensors_open_folder(&f, dir, &e)) {
        tensors_close(&f);
        return "accepted";
    }
    const char *line = line_of(&e);
    if (!well_formed(line)) FAIL("not of the form: %s", line);
    size_t n = 0, len = strlen(dir);
    for (const char *p = line + strlen("surgr1: error "); *p && n + 1 < sizeof out;) {
        if (!strncmp(p, dir, len)) p += len + (p[len] == '/');
        else out[n++] = *p++;
    }
    out[n] = 0;
    return out;
}

static const TensorOut first_shard[] = {{"a", FT_F32, 1, {3}, floats}, {"c", FT_F32, 1, {2}, floats}};
static const TensorOut second_shard[] = {{"b", FT_BF16, 1, {6}, halves}};
static const char good_index[] = "{\"metadata\":{\"total_size\":32},\"weight_map\":{\"a\":\"model-1.safetensors\","
                                 "\n\"b\":\"model-2.safetensors\",\"c\":\"model-1.safetensors\"}}";
static const char *sharded(void) {
    const char *dir = tmp_folder("sharded");
    put_tensors(dir, "model-1.safetensors", first_shard, 2);
    put_tensors(dir, "model-2.safetensors", second_shard, 1);
    put_text(dir, "model.safetensors.index.json", good_index);
    return dir;
}

TEST(a_sharded_folder_reads_like_one_file) {
    const char *dir = sharded();
    TensorFile f;
    Err e = {0};
    EXPECT(tensors_open_folder(&f, dir, &e));
    if (e.code[0]) return;
    EXPECT_INT(f.count, 3);
    EXPECT_INT(f.n_shards, 2);
    EXPECT_STR(f.tensors[0].name, "a");
    EXPECT_STR(f.tensors[1].name, "b");
    EXPECT_STR(f.tensors[2].name, "c");
    for (int i = 0; i < 3; i++) EXPECT(!f.tensors[i].used);
    float v[3];
    tensor_to_f32(tensors_find(&f, "a"), 0, 3, v);
    EXPECT(v[0] == 1 && v[1] == -2 && v[2] == 3.5f);
    EXPECT(strstr(tensors_path(&f, tensors_find(&f, "b")), "/sharded/model-2.safetensors") != NULL);
    EXPECT_STR(f.path, dir);
    tensors_close(&f);
    put_tensors(dir, "model.safetensors", first_shard, 1); // one whole file comes before an index
    EXPECT(tensors_open_folder(&f, dir, &e) && f.count == 1 && f.n_shards == 1);
    tensors_close(&f);
    char path[700];
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    remove(path);
}

TEST(an_index_and_its_shards_must_agree) {
    const char *dir = sharded();
#define WHERE "model.safetensors.index.json:"
    static const struct {
        const char *index, *line;
    } cases[] = {
        {"{\"weight_map\":{\"a\":\"../../etc/passwd\"}}",
         "E-IX-01: " WHERE "1:20: field \"weight_map.a\": expected a file name in the same folder; found "
         "\"../../etc/passwd\"; do: do not use this checkpoint, it points outside its folder"},
        {"{\"weight_map\":{\"a\":\"sub/x.safetensors\"}}",
         "E-IX-01: " WHERE "1:20: field \"weight_map.a\": expected a file name in the same folder; found "
         "\"sub/x.safetensors\"; do: do not use this checkpoint, it points outside its folder"},
        {"{\"weight_map\":{\"a\":\"..\\\\x.safetensors\"}}",
         "E-IX-01: " WHERE "1:20: field \"weight_map.a\": expected a file name in the same folder; found "
         "\"..\\x5Cx.safetensors\"; do: do not use this checkpoint, it points outside its folder"},
        {"{\"weight_map\":{\"a\":\".x.safetensors\"}}",
         "E-IX-01: " WHERE "1:20: field \"weight_map.a\": expected a plain name of a .safetensors file; found "
         "\".x.safetensors\"; do: use the index that came with the weights"},
        {"{\"weight_map\":{\"a\":\"x\\u0000.safetensors\"}}",
         "E-IX-01: " WHERE "1:20: field \"weight_map.a\": expected a plain name of a .safetensors file; found "
         "\"x\\x00.safetensors\"; do: use the index that came with the weights"},
        {"{\"weight_map\":{\"a\":\"model-1.bin\"}}",
         "E-IX-01: " WHERE "1:20: field \"weight_map.a\": expected a plain name of a .safetensors file; found "
         "\"model-1.bin\"; do: use the index that came with the weights"},
        {"{\"weight_map\":{\"a\":1}}",
         "E-IX-01: " WHERE "1:20: field \"weight_map.a\": expected a plain name of a .safetensors file; found 1; do: "
         "use the index that came with the weights"},
        {"{}", "E-IX-01: " WHERE "1:1: field \"weight_map\": expected an object that maps tensor names to file names; "
               "found none; do: use the index that came with the weights"},
        {"[]", "E-IX-01: " WHERE "1:1: field \"weight_map\": expected an object that maps tensor names to file names; "
               "found none; do: use the index that came with the weights"},
        {"{\"weight_map\":[]}",
         "E-IX-01: " WHERE "1:15: field \"weight_map\": expected an object that maps tensor names to file names; found "
         "an array; do: use the index that came with the weights"},
        {"{\"weight_map\":{\"a\":\"model-1.safetensors\",\"b\":\"model-2.safetensors\"}}",
         "E-IX-02: model-1.safetensors: tensor \"c\": expected only tensors that the index names; found one it does "
         "not name; do: download the checkpoint again"},
        {"{\"weight_map\":{\"a\":\"model-1.safetensors\",\"c\":\"model-1.safetensors\",\"d\":\"model-1.safetensors\"}}",
         "E-IX-02: " WHERE "1:72: tensor \"d\": expected this tensor in \"model-1.safetensors\"; found it in no shard; "
         "do: download the checkpoint again"},
        {"{\"weight_map\":{\"a\":\"model-1.safetensors\",\"b\":\"model-2.safetensors\",\"c\":\"model-2.safetensors\"}}",
         "E-IX-02: " WHERE "1:72: tensor \"c\": expected this tensor in \"model-2.safetensors\"; found it in another "
         "shard; do: download the checkpoint again"},
        {"{\"weight_map\":{\"a\\u0000\":\"model-1.safetensors\",\"c\":\"model-1.safetensors\"}}",
         "E-IX-02: " WHERE "1:26: tensor \"a\": expected this tensor in \"model-1.safetensors\"; found it in no shard; "
         "do: download the checkpoint again"},
        {"{\"weight_map\":{\"a\":\"model-1.safetensors\",\"b\":\"model-2.safetensors\",\"c\":\"model-1.safetensors\"}}",
         "accepted"},
        {"{\"weight_map\":{}}", "accepted"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        put_text(dir, "model.safetensors.index.json", cases[i].index);
        const char *line = folder_verdict(dir);
        if (strcmp(line, cases[i].line)) FAIL("%s:\n  expected %s\n  got      %s", cases[i].index, cases[i].line, line);
    }
    put_text(dir, "model.safetensors.index.json",
             "{\"weight_map\":{\"a\":\"model-1.safetensors\",\"a\":\"model-1.safetensors\"}}");
    EXPECT(!strncmp(folder_verdict(dir), "E-JS-08: " WHERE "1:42: ", strlen("E-JS-08: " WHERE "1:42: ")));
    char name[300]; // the longest file name and one more
    for (int over = 0; over < 2; over++) {
        Text t = {0};
        memset(name, 'x', sizeof name);
        text_addf(&t, "{\"weight_map\":{\"a\":\"%.*s.safetensors\"}}", 255 - 12 + over, name);
        put_text(dir, "model.safetensors.index.json", t.p);
        EXPECT(!strncmp(folder_verdict(dir), over ? "E-IX-01" : "E-IO-01", 7)); // there is no such file
        text_free(&t);
    }
    TensorOut twice[2] = {second_shard[0], first_shard[0]}; // "a" in both shards
    put_tensors(dir, "model-2.safetensors", twice, 2);
    put_text(dir, "model.safetensors.index.json", good_index);
    const char *line = folder_verdict(dir);
    EXPECT(!strncmp(line, "E-IX-02: model-", 15) &&
           strstr(line, ": tensor \"a\": expected a tensor in one shard only; found it in \"") != NULL);
    put_tensors(dir, "model-2.safetensors", second_shard, 0); // a shard without what it should hold
    EXPECT(!strncmp(folder_verdict(dir),
                    "E-IX-02: " WHERE "2:5: tensor \"b\": ", strlen("E-IX-02: " WHERE "2:5: tensor \"b\": ")));
    put_text(dir, "model-2.safetensors", "short"); // a damaged shard is named itself
    EXPECT_STR(folder_verdict(dir),
               "E-ST-01: model-2.safetensors: byte 0: expected at least 8 bytes; found 5; do: download the file again");
#undef WHERE
}

TEST(a_wrong_total_size_is_a_warning) {
    const char *dir = sharded();
    int64_t before = warn_count("E-IX-03");
    EXPECT_STR(folder_verdict(dir), "accepted");
    EXPECT_INT(warn_count("E-IX-03"), before);
    put_text(dir, "model.safetensors.index.json",
             "{\"metadata\":{\"total_size\":33},\"weight_map\":{\"a\":\"model-1.safetensors\",\"b\":\"model-2."
             "safetensors\",\"c\":\"model-1.safetensors\"}}");
    EXPECT_STR(folder_verdict(dir), "accepted");
    EXPECT_INT(warn_count("E-IX-03"), before + 1);
}

TEST(an_empty_folder_is_refused_with_advice) {
    EXPECT_STR(folder_verdict(tmp_folder("empty")),
               "E-IO-01: : expected model.safetensors or model.safetensors.index.json in this folder; found neither; "
               "do: give the folder of a checkpoint in safetensors format");
}

// The shape of the Hugging Face cache: snapshots/REVISION/FILE -> ../../blobs/HASH.
TEST(a_checkpoint_in_the_hugging_face_cache_opens_and_other_links_do_not) {
    static const char hash1[] = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    static const char hash2[] = "0123456789abcdef0123456789abcdef01234567";
    char hub[300], dir[400], link[700], target[500];
    snprintf(hub, sizeof hub, "%s", tmp_folder("hub"));
    const char *parts[] = {"blobs", "snapshots", "snapshots/main"};
    for (int i = 0; i < 3; i++) snprintf(link, sizeof link, "%s/%s", hub, parts[i]), mkdir(link, 0755);
    snprintf(dir, sizeof dir, "%s/snapshots/main", hub), snprintf(target, sizeof target, "%s/blobs", hub);
    put_tensors(target, hash1, first_shard, 2);
    put_tensors(target, hash2, second_shard, 1);
    put_tensors(hub, "outside.safetensors", second_shard, 1);
    put_text(dir, "model.safetensors.index.json", good_index);
    snprintf(target, sizeof target, "../../blobs/%s", hash1),
        snprintf(link, sizeof link, "%s/model-1.safetensors", dir);
    EXPECT_INT(symlink(target, link), 0);
    snprintf(link, sizeof link, "%s/model-2.safetensors", dir);
    char absolute[700];
    snprintf(absolute, sizeof absolute, "%s/blobs/%s", hub, hash2);
    snprintf(target, sizeof target, "../../blobs/%s", hash2);
    const char *good[] = {target, absolute};
    for (int i = 0; i < 2; i++) {
        EXPECT_INT(symlink(good[i], link), 0);
        EXPECT_STR(folder_verdict(dir), "accepted");
        remove(link);
    }
    put_tensors(dir, hash2, second_shard, 1);
    static const char *const bad[] = {"../../blobs/abcdef",
                                      "../../outside.safetensors",
                                      "../../BLOBS/x",
                                      "/etc/passwd",
                                      "0123456789abcdef0123456789abcdef01234567",
                                      "../../blobs/",
                                      "model-1.safetensors",
                                      "../../blobs/0123456789abcdef0123456789abcdef0123456g"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        EXPECT_INT(symlink(bad[i], link), 0);
        const char *line = folder_verdict(dir);
        if (strncmp(line, "E-IX-01: model-2.safetensors: expected a file, or a link to blobs/HASH", 70))
            FAIL("%s: %s", bad[i], line);
        remove(link);
    }
    EXPECT_INT(symlink("../../outside.safetensors", link), 0);
    EXPECT_STR(
        folder_verdict(dir),
        "E-IX-01: model-2.safetensors: expected a file, or a link to blobs/HASH of a Hugging Face cache; found a link "
        "to \"../../outside.safetensors\"; do: put the file itself there, or give the folder in which it lies");
    remove(link);
    snprintf(absolute, sizeof absolute, "%s/blobs/%s", hub, hash2); // a blob that is itself a link
    remove(absolute);
    EXPECT_INT(symlink("../outside.safetensors", absolute), 0);
    EXPECT_INT(symlink(target, link), 0);
    EXPECT(!strncmp(folder_verdict(dir), "E-IX-01: ", 9));
    remove(absolute);
    EXPECT(!strncmp(folder_verdict(dir), "E-IO-01: ", 9)); // and one that is not there
}

TEST(a_link_to_a_single_file_is_followed) { // the program names the file here, not an index
    const char *dir = tmp_folder("linked");
    put_tensors(folder, "target.safetensors", first_shard, 2);
    char link[700];
    snprintf(link, sizeof link, "%s/model.safetensors", dir);
    EXPECT_INT(symlink("../target.safetensors", link), 0);
    EXPECT_STR(folder_verdict(dir), "accepted");
}

TEST(a_checkpoint_has_at_most_1024_shards_and_65536_tensors) {
    const char *dir = tmp_folder("many");
    char name[40];
    for (int over = 0; over < 2; over++) {
        Text index = {0};
        for (int64_t i = 0; i < LIMIT_SHARDS + over; i++) {
            char header[100], path[700];
            snprintf(header, sizeof header, "{\"t%lld\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}",
                     (long long)i);
            snprintf(path, sizeof path, "%s/%lld.safetensors", dir, (long long)i);
            Bytes b = make_file(header, strlen(header), 0, NULL);
            put_file(path, b.p, b.n);
            free(b.p);
            text_addf(&index, "%s\"t%lld\":\"%lld.safetensors\"", i ? "," : "{\"weight_map\":{", (long long)i,
                      (long long)i);
        }
        text_addf(&index, "}}");
        put_text(dir, "model.safetensors.index.json", index.p);
        EXPECT_STR(folder_verdict(dir),
                   over ? "E-IX-02: model.safetensors.index.json:1:15: field \"weight_map\": expected at most "
                          "1024 shards; found more; do: check that this is the right file"
                        : "accepted");
        text_free(&index);
    }
    for (int shard = 0; shard < 2; shard++) { // each shard within the limit, both together not
        Text t = {0};
        for (int64_t i = 0; i < LIMIT_TENSORS / 2 + 1; i++)
            text_addf(&t, "%s\"%d.%lld\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}", i ? "," : "{", shard,
                      (long long)i);
        text_addf(&t, "}");
        Bytes b = make_file(t.p, t.len, 0, NULL);
        char path[700];
        snprintf(name, sizeof name, "%d.safetensors", shard), snprintf(path, sizeof path, "%s/%s", dir, name);
        put_file(path, b.p, b.n);
        free(b.p), text_free(&t);
    }
    put_text(dir, "model.safetensors.index.json", "{\"weight_map\":{\"a\":\"0.safetensors\",\"b\":\"1.safetensors\"}}");
    EXPECT_STR(folder_verdict(dir),
               "E-IX-02: model.safetensors.index.json: expected at most 65536 tensors in all shards; found "
               "more; do: check that this is the right folder");
}

TEST(no_mutant_of_an_index_gets_through) {
    const char *dir = sharded();
    char path[700], index[sizeof good_index + 8];
    snprintf(path, sizeof path, "%s/model.safetensors.index.json", dir);
    const char *text = strchr(good_index, ',') + 1; // without the total, which is a warning
    size_t n = (size_t)snprintf(index, sizeof index, "{%s", text);
    for (size_t bit = 0; bit < 8 * n; bit++) {
        index[bit / 8] ^= (char)(1 << bit % 8);
        put_file(path, index, n);
        const char *line = folder_verdict(dir);
        bool known = !strncmp(line, "E-IX-0", 6) || !strncmp(line, "E-JS-0", 6) || !strncmp(line, "E-IO-01", 7);
        if (!known) FAIL("bit %zu of the index: %s", bit, line); // no flipped bit leaves names and files as they are
        index[bit / 8] ^= (char)(1 << bit % 8);
    }
    for (size_t cut = 0; cut < n; cut++) {
        put_file(path, index, cut);
        EXPECT(!strncmp(folder_verdict(dir), "E-JS-0", 6));
    }
}
