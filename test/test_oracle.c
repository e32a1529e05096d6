// test_oracle.c - every comparison with other people's numbers, over any folder laid out like ../shared or
// test/fixtures.
//
//     build/test_oracle [--root DIR] [--device ref|cpu|cuda] [--threads N] [--only TEXT] [--skip TEXT] [--verbose]
//                       [--plant NAME] [--keep LAYERS]
//
// What it is:     one function per kind of data (the table `kinds`), each of which walks whatever the folder holds. One
//                 line per case: its worst measured error and the limit of that (when it fails: the first value that
//                 went wrong, in the order of computation). Exit 1 if one limit is passed. The last line counts.
// What it is not: a list of cases. No case, shape or file of a data set is named here; all limits stand in one table.
// Read before:    test/compare.h, test/fixtures/README.md.
#include "compare.h"
#include <dirent.h>

// ------------------------------------------------------------------------------------------------------------ limits
typedef enum Rule {
    EXACT,
    PIXELS,
    STATE,
    PROBABILITY,
    GRADIENT,
    ADAPTER,
    MERGED,
    TRAJECTORY,
    TRAINED,
    METRIC,
    GRPO,
    GRPO_FLOAT,
    GRPO_LOGGED,
    JPEG_MEAN,
    JPEG_FAR,
    JPEG_COLOUR,
    RULES
} Rule;
enum { REF, CPU, CUDA, DEVICES };
static const char *const device_names[DEVICES] = {"ref", "cpu", "cuda"};
// Relative L2 of floats also bounds the largest difference: it may be 100 limits of the reference's rms (compare.h).
static const struct {
    double limit[DEVICES];
    const char *unit, *why;
} rules[RULES] = {
    [EXACT] = {{0, 0, 0},
               "differing elements",
               "ids, texts, positions, orders, sizes, verdicts, 8-bit pixels of PNG files: no rounding is involved"},
    [PIXELS] = {{1e-6, 1e-6, 1e-6},
                "relative L2",
                "(x * 1/255 - mean) / std: a few roundings of 6e-8; always computed on the host"},
    [STATE] = {{1e-5, 2e-5, 5e-5},
               "relative L2",
               "hidden states and logits in fp32: the reference itself is within 1.3e-6 of float64; cpu sums in float "
               "lanes, cuda in float tiles"},
    [PROBABILITY] = {{1e-5, 1e-5, 1e-5},
                     "largest difference",
                     "a softmax of at most a few hundred exact logits: double needs 1e-12, float 1e-6"},
    [GRADIENT] = {{5e-5, 5e-5, 2e-4},
                  "relative L2",
                  "gradients in fp32: the reference itself is within 5.3e-6 of float64"},
    [ADAPTER] = {{1e-5, 1e-5, 5e-5}, "relative L2", "logits with an adapter: as STATE"},
    [MERGED] = {{1e-6, 1e-6, 1e-6}, "relative L2", "W + scale B A: one fp32 rounding each of product and sum"},
    [TRAJECTORY] = {{3e-4, 3e-4, 1e-3},
                    "relative difference",
                    "loss, gradient norm and learning rate of an update: the reference is within 6e-5 of float64"},
    [TRAINED] = {{1e-3, 1e-3, 2e-3},
                 "relative L2",
                 "weights after all updates, where Adam has divided by small numbers"},
    [METRIC] = {{1e-9, 1e-9, 1e-9},
                "relative difference",
                "metrics in double from the same counts: the order of a sum is all that may differ"},
    [GRPO] = {{1e-9, 1e-9, 1e-9},
              "difference relative to max(1, reference)",
              "losses, advantages and their gradients in double: numpy reaches 1e-13"},
    [GRPO_FLOAT] = {{1e-5, 1e-5, 2e-5},
                    "difference relative to max(1, reference)",
                    "the device's head in fp32, on the rows that begin at logits"},
    [GRPO_LOGGED] = {{1e-6, 1e-6, 1e-6},
                     "difference relative to max(1, reference)",
                     "numbers that the reference passes through fp32"},
    [JPEG_MEAN] = {{0.5, 0.5, 0.5},
                   "mean difference in levels",
                   "decoders differ in the inverse DCT and in chroma upsampling"},
    [JPEG_FAR] = {{0.01, 0.01, 0.01},
                  "share of values more than 3 levels off",
                  "the same differences at hard colour edges"},
    [JPEG_COLOUR] = {{0.5, 0.5, 0.5},
                     "difference of the mean colour in levels",
                     "what can be said where no reference picture is stored"},
};

// ----------------------------------------------------------------------------------------------------------- options
static const char *root = "../shared", *only = "", *omitted = "", *plant = "";
static int device_index;
static bool verbose;
static int64_t keep_layers; // of the training passes: how many blocks keep what they computed
static const Ops *device;
static int passed, failed, skipped;

// -------------------------------------------------------------------------------------------------------- one case
typedef struct Measure {
    char what[120];
    double error, limit;
} Measure;
typedef struct Case {
    char name[400];
    int measured, over;        // comparisons, and how many of them passed their limit
    Measure worst, first_over; // worst: by error / limit
    char broken[2600];         // why the case could not be carried through; "" when it could
} Case;

// False when the case is not wanted (--only, --skip); every true is followed by case_end.
static PRINTF_LIKE(2, 3) bool case_begin(Case *c, const char *fmt, ...) {
    *c = (Case){.over = 0};
    va_list args;
    va_start(args, fmt);
    vsnprintf(c->name, sizeof c->name, fmt, args);
    va_end(args);
    return strstr(c->name, only) && !(omitted[0] && strstr(c->name, omitted));
}

static PRINTF_LIKE(2, 3) void case_broken(Case *c, const char *fmt, ...) {
    if (c->broken[0]) return; // the first reason is the one to mend
    va_list args;
    va_start(args, fmt);
    vsnprintf(c->broken, sizeof c->broken, fmt, args);
    va_end(args);
}

// Stores the message of *e and returns false.
static bool case_refused(Case *c, const Err *e) {
    char line[2500];
    case_broken(c, "%s", err_line(e, "error", line, sizeof line));
    return false;
}

static void case_end(Case *c) {
    if (!c->broken[0] && !c->measured) case_broken(c, "nothing in it could be compared");
    if (c->broken[0]) printf("FAIL %s  %s\n", c->name, c->broken);
    else if (c->over)
        printf("FAIL %s  %s %.1e > %.1e (first of %d over; worst of %d: %s %.1e)\n", c->name, c->first_over.what,
               c->first_over.error, c->first_over.limit, c->over, c->measured, c->worst.what, c->worst.error);
    else
        printf("ok   %s  %s %.1e <= %.1e (worst of %d)\n", c->name, c->worst.what, c->worst.error, c->worst.limit,
               c->measured);
    if (c->broken[0] || c->over) failed++;
    else passed++;
    fflush(stdout);
}

static PRINTF_LIKE(1, 2) void skip(const char *fmt, ...) {
    char line[700];
    va_list args;
    va_start(args, fmt);
    vsnprintf(line, sizeof line, fmt, args);
    va_end(args);
    if (!strstr(line, only)) return;
    printf("skip %s\n", line), fflush(stdout);
    skipped++;
}

static void measure(Case *c, Rule rule, const char *what, double error) {
    double limit = rules[rule].limit[device_index];
    Measure m = {.error = error, .limit = limit};
    snprintf(m.what, sizeof m.what, "%s", what);
    bool over = !(error <= limit);
    if (verbose)
        printf("     %s  %s  %.2e %s %.1e  %s\n", c->name, what, error, over ? ">" : "<=", limit, rules[rule].unit);
    if (over && !c->over++) c->first_over = m;
    double share = error / (limit > 0 ? limit : 1e-9),
           worst = c->worst.error / (c->worst.limit > 0 ? c->worst.limit : 1e-9);
    if (!c->measured++ || share > worst || isnan(share)) c->worst = m;
}

// ------------------------------------------------------------------------------------------------------ comparisons
// --plant NAME damages one element of the value of that name before it is compared: the case must then fail.
static bool planted(const char *what) { return plant[0] && !strcmp(plant, what); }

static void compare_floats(Case *c, Rule rule, const char *what, float *got, const float *want, int64_t n) {
    if (planted(what) && n) {
        double squares = 0;
        for (int64_t i = 0; i < n; i++) squares += (double)want[i] * want[i];
        got[n / 2] += (float)sqrt(squares / (double)n); // by the size of a typical element
    }
    TensorError e = tensor_error(got, want, n);
    measure(c, rule, what, e.nonfinite ? (double)NAN : fmax(e.relative_l2, e.max_rms / 100));
}

static void compare_ints(Case *c, const char *what, int32_t *got, int64_t got_n, const int32_t *want, int64_t n) {
    int32_t extra = 0;
    if (planted(what) && got_n) got[got_n / 2] ^= 1;
    else if (planted(what)) got = &extra, got_n = 1; // an empty list gains an element
    int64_t shared = got_n < n ? got_n : n, wrong = (got_n > n ? got_n : n) - shared;
    for (int64_t i = 0; i < shared; i++) wrong += got[i] != want[i];
    measure(c, EXACT, what, (double)wrong);
}

static void compare_bytes(Case *c, const char *what, char *got, size_t got_n, const char *want, size_t n) {
    char extra = 0;
    if (planted(what) && got_n) got[got_n / 2] ^= 1;
    else if (planted(what)) got = &extra, got_n = 1;
    size_t shared = got_n < n ? got_n : n, wrong = (got_n > n ? got_n : n) - shared;
    for (size_t i = 0; i < shared; i++) wrong += got[i] != want[i];
    measure(c, EXACT, what, (double)wrong);
}

static void compare_flag(Case *c, const char *what, bool got, bool want) {
    measure(c, EXACT, what, (got != planted(what)) != want);
}

// 8-bit pictures of one size. `lossy`: the limits of JPEG, else every value must agree.
static void compare_picture(Case *c, const char *what, uint8_t *got, const uint8_t *want, int64_t n, bool lossy) {
    if (planted(what) && n) got[n / 2] ^= 1;
    if (planted(what) && lossy)
        for (int64_t i = 0; i < n; i += 16) got[i] ^= 128;
    double sum = 0, wrong = 0, far = 0;
    for (int64_t i = 0; i < n; i++) {
        int d = abs(got[i] - want[i]);
        sum += d, wrong += d != 0, far += d > 3;
    }
    if (!lossy) {
        measure(c, EXACT, what, wrong);
        return;
    }
    char name[100];
    snprintf(name, sizeof name, "%s, mean", what), measure(c, JPEG_MEAN, name, sum / (double)n);
    snprintf(name, sizeof name, "%s, far off", what), measure(c, JPEG_FAR, name, far / (double)n);
}

// ------------------------------------------------------------------------------------------------------------- files
// Joins into a buffer of LIMIT_PATH_BYTES + 1; a path that does not fit becomes one that does not exist.
typedef struct Path {
    char p[1025];
} Path;
static Path path_of(const char *dir, const char *name) {
    Path out;
    Err e = {0};
    if (!path_join(out.p, sizeof out.p, dir, name, &e)) out.p[0] = 0;
    return out;
}

static int by_name(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }
// Names in a folder that start and end as asked, in byte order. Free with names_free.
typedef struct Names {
    char **p;
    size_t n;
} Names;
static Names names_in(const char *dir, const char *begin, const char *end) {
    Names out = {0};
    DIR *d = opendir(dir);
    for (struct dirent *f; d && (f = readdir(d));) {
        size_t len = strlen(f->d_name), b = strlen(begin), e = strlen(end);
        if (f->d_name[0] == '.' || len < b + e || memcmp(f->d_name, begin, b) || memcmp(f->d_name + len - e, end, e))
            continue;
        out.p = grow_or_die(out.p, out.n + 1, sizeof *out.p, "file names");
        out.p[out.n] = alloc_or_die(len + 1, 1, "file name");
        memcpy(out.p[out.n++], f->d_name, len + 1);
    }
    if (d) closedir(d);
    if (out.n) qsort(out.p, out.n, sizeof *out.p, by_name);
    return out;
}
static void names_free(Names *names) {
    for (size_t i = 0; i < names->n; i++) free(names->p[i]);
    free(names->p);
}

// A table in a text file: a header line of column names, then rows.
typedef struct Table {
    char *text, *next, *columns[32], *fields[32];
    int n_columns, n_fields;
    char separator;
} Table;
static int table_cut(Table *t, char **fields) { // the next line, cut in place
    int n = 0;
    char *line = t->next, *end = strchr(line, '\n');
    t->next = end ? end + 1 : line + strlen(line);
    if (end) *end = 0;
    for (char *cut; n < 32; line = cut + 1) {
        fields[n++] = line;
        if (!(cut = strchr(line, t->separator))) break;
        *cut = 0;
    }
    return n;
}
static bool table_open(Table *t, const char *path, char separator, Err *e) {
    size_t size;
    *t = (Table){.separator = separator};
    if (!file_read(path, LIMIT_TOKENIZER_BYTES, "E-IO-03", &t->text, &size, e)) return false;
    t->next = t->text, t->n_columns = table_cut(t, t->columns);
    return true;
}
static bool table_next(Table *t) { return *t->next && (t->n_fields = table_cut(t, t->fields)) > 0; }
static const char *table_get(const Table *t, const char *column) { // "" when the row or the table lacks it
    for (int i = 0; i < t->n_columns && i < t->n_fields; i++)
        if (!strcmp(t->columns[i], column)) return t->fields[i];
    return "";
}
static int64_t table_int(const Table *t, const char *column) { return strtoll(table_get(t, column), NULL, 10); }

// Reads what a manifest row describes; false (and the case is broken) unless size and sum agree.
static bool manifest_file(Case *c, const char *path, const char *sha256, char **data, size_t *size) {
    Err e = {0};
    char hex[65];
    if (!file_read(path, LIMIT_TOKENIZER_BYTES, "E-IO-03", data, size, &e)) return case_refused(c, &e);
    sha256_hex(*data, *size, hex);
    if (!strcmp(hex, sha256)) return true;
    case_broken(c, "%s is not the file of its manifest (sha256 %s)", path, hex);
    free(*data);
    return false;
}

// ------------------------------------------------------------------------------------------------------ JSON helpers
static int64_t int_of(const Json *object, const char *key) {
    const Json *v = json_get(object, key);
    return v && v->type == JSON_NUMBER && v->integer ? v->i : -1;
}
static double number_of(const Json *object, const char *key, double missing) {
    const Json *v = json_get(object, key);
    return v && v->type == JSON_NUMBER ? v->number : missing;
}
static const char *text_of(const Json *object, const char *key) {
    const Json *v = json_get(object, key);
    return v && v->type == JSON_STRING ? v->str : "";
}
static bool true_of(const Json *object, const char *key) {
    const Json *v = json_get(object, key);
    return v && v->type == JSON_TRUE;
}
// Numbers of a list, or of a list of lists. An id that is no id of int32 becomes -1, which equals nothing computed.
static void ids_of(const Json *list, Ids *out) {
    for (const Json *v = list ? list->child : NULL; v; v = v->next) {
        if (v->type == JSON_ARRAY) ids_of(v, out);
        else ids_add(out, v->type == JSON_NUMBER && v->integer && v->i >= 0 && v->i <= INT32_MAX ? (int32_t)v->i : -1);
    }
}
static void floats_of(const Json *list, float *out, int64_t room, int64_t *n) { // at most `room`; *n counts all
    for (const Json *v = list ? list->child : NULL; v; v = v->next) {
        if (v->type == JSON_ARRAY) floats_of(v, out, room, n);
        else if ((*n)++ < room) out[*n - 1] = v->type == JSON_NUMBER ? (float)v->number : NAN;
    }
}
static bool ids_below(const Ids *ids, int64_t end) { // all of them in [0, end)
    for (int64_t i = 0; i < ids->n; i++)
        if (ids->p[i] < 0 || ids->p[i] >= end) return false;
    return true;
}

// Calls each(ctx, row, line number) for every line of a JSON lines file.
typedef struct Rows {
    const char *path;
    void (*each)(void *ctx, const Json *row, int64_t line);
    void *ctx;
} Rows;
static bool rows_line(void *ctx, const char *text, size_t len, int64_t line, Err *e) {
    Rows *r = ctx;
    JsonDoc doc = {0};
    if (!json_parse(&doc, text, len, r->path, (JsonOptions){.first_line = (uint32_t)line}, e)) return false;
    r->each(r->ctx, doc.root, line);
    json_free(&doc);
    return true;
}
static void rows_read(const char *path, void (*each)(void *, const Json *, int64_t), void *ctx) {
    Rows r = {path, each, ctx};
    Err e = {0};
    if (lines_read(path, rows_line, &r, &e)) return;
    Case c;
    if (case_begin(&c, "%s", path)) case_refused(&c, &e), case_end(&c);
}

// ---------------------------------------------------------------------------------------------------------- pictures
typedef struct Pictures {
    float *pixels; // [patches, values]
    int64_t patches, values;
    Grid grids[16];
    int n;
} Pictures;
static bool pictures_add(Case *c, Pictures *p, const VisionConfig *v, const char *path) {
    Err e = {0};
    Image im;
    float *pixels;
    Grid g;
    if (p->n == 16) return case_broken(c, "more than 16 pictures"), false;
    if (!image_read(&im, path, (ImageOptions){0}, &e)) return case_refused(c, &e);
    bool done = image_to_patches(v, &im, path, &pixels, &g, &e);
    image_free(&im);
    if (!done) return case_refused(c, &e);
    p->values = v->channels * v->temporal * v->patch * v->patch;
    p->pixels =
        grow_or_die(p->pixels, (size_t)(p->patches + grid_patches(g)), (size_t)p->values * sizeof *pixels, "pixels");
    memcpy(p->pixels + p->patches * p->values, pixels, (size_t)(grid_patches(g) * p->values) * sizeof *pixels);
    p->patches += grid_patches(g), p->grids[p->n++] = g;
    free(pixels);
    return true;
}
static void compare_grids(Case *c, const Pictures *p, const int32_t *want, int64_t n) {
    int32_t got[48];
    for (int i = 0; i < p->n; i++)
        got[3 * i] = (int32_t)p->grids[i].t, got[3 * i + 1] = (int32_t)p->grids[i].h,
                got[3 * i + 2] = (int32_t)p->grids[i].w;
    compare_ints(c, "image_grid_thw", got, 3 * p->n, want, n);
}

// ------------------------------------------------------------------------------------------------------------- model
typedef struct PromptIds {
    const int32_t *ids;
    int64_t n;
    const float *pixels;
    const Grid *grids;
    int n_grids;
    int64_t n_answer; // the last of the n ids, drawn by the model: text, whatever they are
} PromptIds;

// Logits of rows [first, first + rows) in one pass without a cache: [rows, V] on the host (free), or NULL.
static float *logits_of(Case *c, Model *m, PromptIds p, int64_t first, int64_t rows, Tap tap, void *ctx) {
    const Ops *d = m->d;
    Err e = {0};
    int64_t unit = m->c.vision.merge * m->c.vision.merge, units = 0, next;
    for (int i = 0; i < p.n_grids; i++) units += grid_patches(p.grids[i]) / unit;
    Arena arena = {.role = "pictures"};
    Mat image = mat_none(), out = mat(d->alloc((size_t)(rows * m->c.V) * sizeof(float)), rows, m->c.V, F32);
    int32_t *pos = alloc_or_die((size_t)(3 * p.n), sizeof *pos, "positions"),
            *head = alloc_or_die((size_t)rows, sizeof *head, "rows"),
            *places = alloc_or_die((size_t)p.n, sizeof *places, "picture rows");
    image_places(&m->c, p.ids, p.n - p.n_answer, 0, places);
    for (int64_t i = 0; i < rows; i++) head[i] = (int32_t)(first + i);
    Span span = {.first = 0, .last = (int32_t)p.n, .causal = 1};
    float *logits = NULL;
    bool ok = mrope_positions(&m->c, p.ids, p.n, p.n - p.n_answer, p.grids, p.n_grids, pos, &next, &e);
    if (ok && units) {
        image = mat(d->alloc((size_t)(units * m->c.C) * type_size(d->act_type)), units, m->c.C, d->act_type);
        ok = vision_forward(d, &m->vision, image, p.pixels, p.grids, p.n_grids, &arena, tap, ctx, &e);
    }
    TextInput in = {.ids = p.ids,
                    .N = p.n,
                    .pos = pos,
                    .spans = &span,
                    .n_spans = 1,
                    .image_rows = image,
                    .image_at = places,
                    .head_rows = head,
                    .n_head = rows};
    ok = ok && text_forward(m, &in, out, tap, ctx, &e);
    if (ok) {
        logits = alloc_or_die((size_t)(rows * m->c.V), sizeof *logits, "logits");
        d->download(mat(logits, rows, m->c.V, F32), out);
    } else case_refused(c, &e);
    free(pos), free(head), free(places);
    d->release(out.p);
    if (image.p) d->release(image.p);
    arena_release(&arena, d);
    return logits;
}

static bool go_on(void *ctx, int completion, int32_t id) { return (void)ctx, (void)completion, (void)id, true; }

// Plain argmax without penalty or stop tokens, with the cache: `count` ids appended to *out.
static bool greedy_of(Case *c, Model *m, PromptIds p, int64_t count, Ids *out) {
    Request r = {.ids = p.ids, .n = p.n, .pixels = p.pixels, .grids = p.grids, .n_grids = p.n_grids, .completions = 1};
    GenerationConfig g = {
        .sample = {.repetition_penalty = 1, .temperature = 1, .top_p = 1}, .max_new_tokens = count, .pad = -1};
    Completion done = {0};
    Err e = {0};
    if (!generate(m, &r, 1, &g, go_on, NULL, &done, &e)) return case_refused(c, &e);
    for (int64_t i = 0; i < done.ids.n; i++) ids_add(out, done.ids.p[i]);
    completion_free(&done);
    return true;
}

// The prompt and all but the last of the new ids: what a forward pass needs to repeat every step's logits.
static Ids continued(PromptIds p, const int32_t *new, int64_t n) {
    Ids all = {0};
    for (int64_t i = 0; i < p.n; i++) ids_add(&all, p.ids[i]);
    for (int64_t i = 0; i + 1 < n; i++) ids_add(&all, new[i]);
    return all;
}

// ------------------------------------------------------------------------------------------------- oracle/models/NAME
typedef struct ModelCase {
    Case *c;
    Model *m;
    TensorFile f;
    Ids ids, grid;     // from the file
    Pictures pictures; // from the PNG files
    float *pixels;     // from the file: what the towers are fed with
} ModelCase;

static Tensor *needed(ModelCase *mc, const char *name) {
    Tensor *t = tensors_find(&mc->f, name);
    if (t) t->used = true;
    else case_broken(mc->c, "the case has no tensor %s", name);
    return t;
}
static float *needed_floats(ModelCase *mc, const char *name, int64_t elements) { // malloc'ed; NULL: broken
    Tensor *t = needed(mc, name);
    if (t && t->elements != elements)
        case_broken(mc->c, "%s: %lld elements in the file, %lld computed", name, (long long)t->elements,
                    (long long)elements);
    if (!t || t->elements != elements) return NULL;
    float *out = alloc_or_die((size_t)elements, sizeof *out, name);
    tensor_to_f32(t, 0, elements, out);
    return out;
}
static bool needed_ints(ModelCase *mc, const char *name, Ids *out) {
    Tensor *t = needed(mc, name);
    if (!t) return false;
    if (t->type != FT_I32 && t->type != FT_I64) return case_broken(mc->c, "%s holds no integers", name), false;
    for (int64_t i = 0, v; i < t->elements; i++) tensor_to_i64(t, i, 1, &v), ids_add(out, (int32_t)v);
    return true;
}
static void compare_stored(ModelCase *mc, Rule rule, const char *name, float *got, int64_t n) {
    float *want = needed_floats(mc, name, n);
    if (want) compare_floats(mc->c, rule, name, got, want, n);
    free(want);
}
static void compare_stored_ints(ModelCase *mc, const char *name, int32_t *got, int64_t n) {
    Ids want = {0};
    if (needed_ints(mc, name, &want)) compare_ints(mc->c, name, got, n, want.p, want.n);
    ids_free(&want);
}

// The towers show their hidden states here; those that the file has are compared under their own name.
static void compare_state(void *ctx, const char *name, const Ops *d, Mat value) {
    ModelCase *mc = ctx;
    if (!tensors_find(&mc->f, name)) return;
    int64_t n = value.rows * value.cols;
    float *got = alloc_or_die((size_t)n, sizeof *got, name);
    d->download(mat(got, value.rows, value.cols, value.type), value);
    if (value.type == BF16)
        for (int64_t i = n; i-- > 0;) got[i] = bf16_to_f32(((uint16_t *)got)[i]); // widen from the end, in place
    compare_stored(mc, STATE, name, got, n);
    free(got);
}

static bool case_inputs(ModelCase *mc, const char *dir, const Json *entry) {
    const VisionConfig *v = &mc->m->c.vision;
    if (!needed_ints(mc, "input_ids", &mc->ids)) return false;
    if (!mc->ids.n || !ids_below(&mc->ids, mc->m->c.V))
        return case_broken(mc->c, "input_ids hold no token, or no id of this vocabulary"), false;
    const Json *images = json_get(entry, "images");
    for (const Json *file = images ? images->child : NULL; file; file = file->next) {
        if (file->type != JSON_STRING) return case_broken(mc->c, "images: names of files wanted"), false;
        if (!pictures_add(mc->c, &mc->pictures, v, path_of(dir, file->str).p)) return false;
    }
    if (!mc->pictures.n) return true;
    if (!needed_ints(mc, "image_grid_thw", &mc->grid)) return false;
    compare_grids(mc->c, &mc->pictures, mc->grid.p, mc->grid.n);
    if (mc->c->over) return false; // with other grids nothing below means anything
    int64_t n = mc->pictures.patches * mc->pictures.values;
    mc->pixels = needed_floats(mc, "pixel_values", n);
    if (!mc->pixels) return false;
    compare_floats(mc->c, PIXELS, "pixel_values", mc->pictures.pixels, mc->pixels, n);
    return true;
}

static bool case_positions(ModelCase *mc, PromptIds p) {
    Err e = {0};
    int64_t next;
    int32_t *pos = alloc_or_die((size_t)(3 * p.n), sizeof *pos, "positions");
    bool ok = mrope_positions(&mc->m->c, p.ids, p.n, p.n, p.grids, p.n_grids, pos, &next, &e);
    if (ok) {
        int32_t delta = (int32_t)(next - p.n);
        compare_stored_ints(mc, "positions", pos, 3 * p.n);
        compare_stored_ints(mc, "rope_delta", &delta, 1);
    } else case_refused(mc->c, &e);
    free(pos);
    if (ok && p.n_grids) {
        WindowOrder o;
        window_order(&o, &mc->m->c.vision, p.grids, p.n_grids);
        compare_stored_ints(mc, "vision.window_index", o.index, o.units);
        compare_stored_ints(mc, "vision.window_starts", o.starts, o.n_windows + 1);
        window_order_free(&o);
    }
    return ok;
}

static void case_forward(ModelCase *mc, PromptIds p) {
    float *logits = logits_of(mc->c, mc->m, p, 0, p.n, compare_state, mc);
    if (!logits) return;
    compare_stored(mc, STATE, "logits", logits, p.n * mc->m->c.V);
    free(logits);
    for (int64_t i = 0; i < mc->f.count; i++) {
        const Tensor *t = &mc->f.tensors[i];
        if (!t->used && (!strncmp(t->name, "vision.", 7) || !strncmp(t->name, "text.", 5)))
            case_broken(mc->c, "%s is stored, but was never computed", t->name);
    }
}

static void case_greedy(ModelCase *mc, PromptIds p) {
    Ids want = {0}, got = {0};
    if (needed_ints(mc, "greedy_ids", &want) && greedy_of(mc->c, mc->m, p, want.n, &got)) {
        compare_ints(mc->c, "greedy_ids", got.p, got.n, want.p, want.n);
        Ids all = continued(p, want.p, want.n); // the stored ids: the logits are compared even where the ids differ
        p.ids = all.p, p.n_answer = all.n - p.n, p.n = all.n;
        float *logits = logits_of(mc->c, mc->m, p, all.n - want.n, want.n, NULL, NULL);
        if (logits) compare_stored(mc, STATE, "greedy_logits", logits, want.n * mc->m->c.V);
        free(logits), ids_free(&all);
    }
    ids_free(&want), ids_free(&got);
}

static void run_model_case(Case *c, Model *m, const char *dir, const Json *entry) {
    ModelCase mc = {.c = c, .m = m};
    Err e = {0};
    char file[300];
    snprintf(file, sizeof file, "%s.safetensors", text_of(entry, "name"));
    if (!tensors_open(&mc.f, path_of(dir, file).p, &e)) {
        case_refused(c, &e);
        return;
    }
    if (case_inputs(&mc, dir, entry)) {
        PromptIds p = {mc.ids.p, mc.ids.n, mc.pixels, mc.pictures.grids, mc.pictures.n, 0};
        if (case_positions(&mc, p)) case_forward(&mc, p), case_greedy(&mc, p);
    }
    ids_free(&mc.ids), ids_free(&mc.grid), free(mc.pictures.pixels), free(mc.pixels);
    tensors_close(&mc.f);
}

static void run_models(const char *dir) {
    Names folders = names_in(dir, "", "");
    for (size_t i = 0; i < folders.n; i++) {
        Path folder = path_of(dir, folders.p[i]), index = path_of(folder.p, "index.json");
        if (!folder_exists(folder.p)) continue; // versions.json and the like
        Err e = {0};
        JsonDoc doc = {0};
        Case c;
        Model m = {0};
        bool loaded = false;
        if (!json_read(&doc, index.p, LIMIT_CONFIG_BYTES, (JsonOptions){0}, &e)) {
            if (case_begin(&c, "models/%s", folders.p[i])) case_refused(&c, &e), case_end(&c);
            continue;
        }
        const Json *cases = json_get(doc.root, "cases");
        for (const Json *entry = cases ? cases->child : NULL; entry; entry = entry->next) {
            if (!case_begin(&c, "models/%s/%s", folders.p[i], text_of(entry, "name"))) continue;
            const char *checkpoint = text_of(doc.root, "checkpoint");
            if (!loaded && !e.code[0])
                loaded = model_load(&m, path_of(folder.p, checkpoint).p, device, (LoadOptions){0}, &e);
            if (loaded) run_model_case(&c, &m, folder.p, entry);
            else case_refused(&c, &e);
            case_end(&c);
        }
        if (loaded) model_free(&m);
        json_free(&doc);
    }
    names_free(&folders);
}

#include "oracle_training.h"
#include "oracle_metrics.h"
#include "oracle_grpo.h"

// --------------------------------------------------------------------------------------- oracle/pipeline: the pictures
static void run_smart_resize(const char *path) {
    Case c;
    Table t;
    Err e = {0};
    if (!case_begin(&c, "pipeline/smart_resize.csv")) return;
    if (!table_open(&t, path, ',', &e)) case_refused(&c, &e);
    for (int64_t row = 2; !c.broken[0] && table_next(&t); row++) {
        Err refused = {0};
        int64_t h = 0, w = 0;
        char what[60];
        if (!smart_resize(table_int(&t, "height"), table_int(&t, "width"), table_int(&t, "factor"),
                          table_int(&t, "min_pixels"), table_int(&t, "max_pixels"), &h, &w, path, &refused))
            h = w = 0; // the table says 0,0 where the reference raises an error
        snprintf(what, sizeof what, "line %lld", (long long)row);
        int32_t got[2] = {(int32_t)h, (int32_t)w},
                want[2] = {(int32_t)table_int(&t, "out_height"), (int32_t)table_int(&t, "out_width")};
        compare_ints(&c, what, got, 2, want, 2);
    }
    free(t.text);
    case_end(&c);
}

static void resize_row(void *ctx, const Json *row, int64_t line) {
    const char *dir = ctx;
    Case c;
    Image in = {0}, out = {0};
    Err e = {0};
    (void)line;
    if (!case_begin(&c, "pipeline/resize/%s", text_of(row, "input"))) return;
    if (!image_read(&in, path_of(dir, text_of(row, "input")).p, (ImageOptions){0}, &e) ||
        !image_read(&out, path_of(dir, text_of(row, "output")).p, (ImageOptions){0}, &e))
        case_refused(&c, &e);
    else if (out.width != int_of(row, "width") || out.height != int_of(row, "height"))
        case_broken(&c, "the output is not of the size its row says");
    else {
        int64_t n = (int64_t)out.width * out.height * 3;
        uint8_t *got = alloc_or_die((size_t)n, 1, "picture");
        image_resize_bicubic(got, out.width, out.height, in.rgb, in.width, in.height);
        compare_picture(&c, "resized", got, out.rgb, n, false);
        free(got);
    }
    image_free(&in), image_free(&out);
    case_end(&c);
}
static void run_resize(const char *dir) {
    rows_read(path_of(dir, "index.jsonl").p, resize_row, (void *)(uintptr_t)dir);
}

// The published preprocessor at the pixel limits that the pictures under pixels/ were made with (oracle/README.md).
static const VisionConfig pixel_chain = {.patch = 14,
                                         .merge = 2,
                                         .temporal = 2,
                                         .channels = 3,
                                         .min_pixels = 3136,
                                         .max_pixels = 18816,
                                         .rescale = 1.0 / 255,
                                         .mean = {0.48145466f, 0.4578275f, 0.40821073f},
                                         .std = {0.26862954f, 0.26130258f, 0.27577711f}};

// The verdict on a file of testdata/images; "" when its manifest does not know it.
static void image_verdict(const char *file, char *out, size_t size) {
    Table t;
    Err e = {0};
    snprintf(out, size, "%s", "");
    if (!table_open(&t, path_of(root, "testdata/images/MANIFEST.tsv").p, '\t', &e)) return;
    while (table_next(&t))
        if (!strcmp(table_get(&t, "file"), file)) snprintf(out, size, "%s", table_get(&t, "surgr1_verdict"));
    free(t.text);
}

static void compare_resized(Case *c, const Image *im, const Tensor *want, bool lossy) {
    int32_t size[2] = {0}, want_size[2] = {(int32_t)want->shape[0], (int32_t)want->shape[1]};
    int64_t h = 0, w = 0;
    Err e = {0};
    if (smart_resize(im->height, im->width, 28, pixel_chain.min_pixels, pixel_chain.max_pixels, &h, &w, c->name, &e))
        size[0] = (int32_t)h, size[1] = (int32_t)w;
    compare_ints(c, "size", size, 2, want_size, 2);
    uint8_t *got = alloc_or_die((size_t)want->elements, 1, "picture");
    image_resize_bicubic(got, want_size[1], want_size[0], im->rgb, im->width, im->height);
    compare_picture(c, "resized", got, want->data, want->elements, lossy);
    free(got);
}

static void compare_pixel_values(Case *c, const char *path, const Tensor *stored) {
    Pictures p = {0};
    if (!pictures_add(c, &p, &pixel_chain, path)) return;
    int64_t n = p.patches * p.values;
    float *want = alloc_or_die((size_t)stored->elements, sizeof *want, "pixels");
    tensor_to_f32(stored, 0, stored->elements, want);
    if (stored->elements == n) compare_floats(c, PIXELS, "pixel_values", p.pixels, want, n);
    else case_broken(c, "pixel_values: %lld stored, %lld computed", (long long)stored->elements, (long long)n);
    free(want), free(p.pixels);
}

static void pixels_row(void *ctx, const Json *row, int64_t line) {
    const TensorFile *f = ctx;
    const char *name = text_of(row, "file"), *end = strrchr(name, '.');
    bool lossy = !end || strcmp(end, ".png");
    char file[300], relative[320], whole[320], verdict[20];
    Case c;
    Image im;
    Err e = {0};
    (void)line;
    if (!case_begin(&c, "pipeline/pixels/%s", name)) return;
    snprintf(file, sizeof file, "%s/%s", lossy ? "jpeg" : "png", name);
    snprintf(relative, sizeof relative, "testdata/images/%s", file);
    snprintf(whole, sizeof whole, "%s.pixel_values", text_of(row, "tensor"));
    image_verdict(file, verdict, sizeof verdict);
    if (strcmp(verdict, "accept")) { // a progressive JPEG without its last scans, for example: libjpeg smooths those
        skip("%s: its manifest does not ask for the file to be read", c.name);
        return;
    }
    if (text_of(row, "mode")[0] == 'I') { // the rule is the high byte; testdata/images compares that
        skip("%s: Pillow clips 16-bit grey to white, which is not the rule here", c.name);
        return;
    }
    const Tensor *stored = tensors_find(f, text_of(row, "tensor")), *values = tensors_find(f, whole);
    Path path = path_of(root, relative);
    if (!stored || stored->dims != 3 || stored->type != FT_U8) case_broken(&c, "no U8 tensor [H, W, 3] for this file");
    else if (!image_read(&im, path.p, (ImageOptions){0}, &e)) case_refused(&c, &e);
    else {
        compare_resized(&c, &im, stored, lossy);
        if (values && !lossy) compare_pixel_values(&c, path.p, values); // floats of a JPEG differ as its bytes do
        image_free(&im);
    }
    case_end(&c);
}
static void run_pixels(const char *dir) {
    TensorFile f;
    Err e = {0};
    Case c;
    if (tensors_open(&f, path_of(dir, "pixels.safetensors").p, &e)) {
        rows_read(path_of(dir, "index.jsonl").p, pixels_row, &f);
        tensors_close(&f);
    } else if (case_begin(&c, "pipeline/pixels")) case_refused(&c, &e), case_end(&c);
}

// ----------------------------------------------------------------------------------------------------- text and tokens
typedef struct TokenRows {
    Case c;
    Tokenizer *t;
} TokenRows;
static void compare_decoded(Case *c, const char *what, const Tokenizer *t, const Ids *ids, bool skip_special,
                            const Json *want) {
    if (!want || want->type != JSON_STRING) {
        case_broken(c, "%s: no text to compare with", what);
        return;
    }
    Text got = {0}, streamed = {0};
    DecodeStream s = {.t = t, .skip_special = skip_special};
    tokenizer_decode(t, ids->p, ids->n, skip_special, &got);
    for (int64_t i = 0; i < ids->n; i++) stream_push(&s, ids->p[i], &streamed);
    stream_finish(&s, &streamed);
    compare_bytes(c, what, got.p, got.len, want->str, want->len);
    compare_bytes(c, "streamed text", streamed.p, streamed.len, want->str, want->len);
    text_free(&got), text_free(&streamed), text_free(&s.held);
}
// {"text", "ids", "decoded"[, "decoded_skip_special"]}, or the same without a text: only decoded.
static void token_row(void *ctx, const Json *row, int64_t line) {
    TokenRows *r = ctx;
    const Json *text = json_get(row, "text"), *decoded = json_get(row, "decoded"),
               *plain = json_get(row, "decoded_skip_special");
    Ids want = {0}, got = {0};
    char what[60];
    ids_of(json_get(row, "ids"), &want);
    snprintf(what, sizeof what, "line %lld", (long long)line);
    if (text && text->type == JSON_STRING) {
        tokenizer_encode(r->t, text->str, text->len, true, &got);
        compare_ints(&r->c, what, got.p, got.n, want.p, want.n);
    }
    snprintf(what, sizeof what, "line %lld decoded", (long long)line);
    if (decoded) compare_decoded(&r->c, what, r->t, &want, false, decoded);
    snprintf(what, sizeof what, "line %lld without special tokens", (long long)line);
    if (plain) compare_decoded(&r->c, what, r->t, &want, true, plain);
    ids_free(&want), ids_free(&got);
}
static void run_tokenizer(const char *dir) {
    Names files = names_in(dir, "cases_", ".jsonl");
    TokenRows r = {.t = NULL};
    for (size_t i = 0; i < files.n; i++) {
        Err e = {0};
        if (!case_begin(&r.c, "tokenizer/%s", files.p[i])) continue;
        if (r.t || tokenizer_load(&r.t, dir, &e)) rows_read(path_of(dir, files.p[i]).p, token_row, &r);
        else case_refused(&r.c, &e);
        case_end(&r.c);
    }
    if (r.t) tokenizer_free(r.t);
    names_free(&files);
}
static void run_small_bpe(const char *dir) {
    TokenRows r = {.t = NULL};
    Err e = {0};
    if (!case_begin(&r.c, "pipeline/small_bpe/cases.jsonl")) return;
    if (tokenizer_load_json(&r.t, path_of(dir, "tokenizer.json").p, &e))
        rows_read(path_of(dir, "cases.jsonl").p, token_row, &r);
    else case_refused(&r.c, &e);
    if (r.t) tokenizer_free(r.t);
    case_end(&r.c);
}

// The messages of a row as the program takes them; texts stay in the row.
typedef struct Conversation {
    Message *messages;
    Part *parts;
    int n;
    const char *files[16];
    int n_files;
} Conversation;
static bool conversation_read(Case *c, Conversation *v, const Json *messages) {
    size_t n_parts = 0;
    for (const Json *m = messages ? messages->child : NULL; m; m = m->next) {
        const Json *content = json_get(m, "content");
        n_parts += content && content->type == JSON_ARRAY ? content->count : 1;
    }
    *v = (Conversation){.messages = alloc_or_die(messages ? messages->count + 1 : 1, sizeof *v->messages, "messages"),
                        .parts = alloc_or_die(n_parts + 1, sizeof *v->parts, "parts")};
    Part *next = v->parts;
    for (const Json *m = messages ? messages->child : NULL; m; m = m->next) {
        const Json *content = json_get(m, "content");
        Message *out = &v->messages[v->n++];
        *out = (Message){.role = text_of(m, "role"), .parts = next};
        if (content && content->type == JSON_STRING)
            *next++ = (Part){.image = -1, .text = content->str, .len = content->len};
        for (const Json *part = content && content->type == JSON_ARRAY ? content->child : NULL; part;
             part = part->next) {
            const Json *text = json_get(part, "text");
            if (json_is(json_get(part, "type"), "image") && v->n_files < 16) {
                *next++ = (Part){.image = v->n_files};
                v->files[v->n_files++] = text_of(part, "image");
            } else if (text && text->type == JSON_STRING)
                *next++ = (Part){.image = -1, .text = text->str, .len = text->len};
            else case_broken(c, "a part of a message that is neither a picture nor a text, or a 17th picture");
        }
        out->n_parts = (int)(next - out->parts);
    }
    return !c->broken[0];
}
static void conversation_free(Conversation *v) { free(v->messages), free(v->parts); }

static void compare_prompt(Case *c, const char *what, const Conversation *v, bool add_generation_prompt,
                           const Json *row) {
    const Json *want = json_get(row, "prompt");
    Text got = {0};
    chat_render(v->messages, v->n, add_generation_prompt, &got);
    if (want && want->type == JSON_STRING) compare_bytes(c, what, got.p, got.len, want->str, want->len);
    else case_broken(c, "%s: no prompt to compare with", what);
    text_free(&got);
}

static void template_row(void *ctx, const Json *row, int64_t line) {
    Case *c = ctx;
    Conversation v;
    char what[60];
    snprintf(what, sizeof what, "line %lld", (long long)line);
    if (conversation_read(c, &v, json_get(row, "messages")))
        compare_prompt(c, what, &v, true_of(row, "add_generation_prompt"), row);
    conversation_free(&v);
}

// ----------------------------------------------------------------------------------------------- oracle/pipeline/ask
typedef struct Ask {
    const char *dir;
    bool loaded; // once, for the first case that is wanted
    Err refused;
    Model m;
    Tokenizer *t;
} Ask;
static bool ask_load(Ask *a, Case *c) {
    Path checkpoint = path_of(a->dir, "checkpoint");
    if (!a->loaded && !a->refused.code[0])
        a->loaded = tokenizer_load(&a->t, checkpoint.p, &a->refused) &&
                    model_load(&a->m, checkpoint.p, device, (LoadOptions){0}, &a->refused);
    return a->loaded || case_refused(c, &a->refused);
}

// The five best logits of every step, as a pass over the whole answer gives them.
static void compare_scores(Case *c, Ask *a, PromptIds p, const Ids *answer, const Ids *best, const Json *scores) {
    int64_t n = 0, each = best->n / answer->n;
    float *got = alloc_or_die((size_t)best->n * 2, sizeof *got, "logits"), *want = got + best->n;
    floats_of(scores, want, best->n, &n);
    if (n != best->n || best->n % answer->n || !ids_below(best, a->m.c.V) || !ids_below(answer, a->m.c.V)) {
        case_broken(c, "top5_ids, top5_logits and greedy_ids do not fit each other");
        free(got);
        return;
    }
    Ids all = continued(p, answer->p, answer->n);
    p.ids = all.p, p.n_answer = all.n - p.n, p.n = all.n;
    float *logits = logits_of(c, &a->m, p, all.n - answer->n, answer->n, NULL, NULL);
    for (int64_t i = 0; logits && i < n; i++) got[i] = logits[i / each * a->m.c.V + best->p[i]];
    if (logits) compare_floats(c, STATE, "top5_logits", got, want, n);
    free(got), free(logits), ids_free(&all);
}

static void compare_answer(Case *c, Ask *a, PromptIds p, const Json *row) {
    Ids want = {0}, got = {0}, best = {0};
    ids_of(json_get(row, "greedy_ids"), &want), ids_of(json_get(row, "top5_ids"), &best);
    if (!want.n) case_broken(c, "no greedy_ids");
    if (want.n && best.n) compare_scores(c, a, p, &want, &best, json_get(row, "top5_logits"));
    if (want.n && greedy_of(c, &a->m, p, want.n, &got)) {
        compare_ints(c, "greedy_ids", got.p, got.n, want.p, want.n);
        compare_decoded(c, "greedy_text", a->t, &got, false, json_get(row, "greedy_text"));
        compare_decoded(c, "greedy_text_skip_special", a->t, &got, true, json_get(row, "greedy_text_skip_special"));
    }
    ids_free(&want), ids_free(&got), ids_free(&best);
}

static void ask_row(void *ctx, const Json *row, int64_t line) {
    Ask *a = ctx;
    Case c;
    Conversation v;
    Pictures pictures = {0};
    Ids grid = {0}, ids = {0}, want = {0};
    Err e = {0};
    if (!case_begin(&c, "pipeline/ask/conversations.jsonl:%lld", (long long)line)) return;
    bool ok = conversation_read(&c, &v, json_get(row, "messages")) && ask_load(a, &c);
    for (int i = 0; ok && i < v.n_files; i++)
        ok = pictures_add(&c, &pictures, &a->m.c.vision, path_of(a->dir, v.files[i]).p);
    if (ok) {
        int64_t tokens[16], unit = a->m.c.vision.merge * a->m.c.vision.merge;
        for (int i = 0; i < pictures.n; i++) tokens[i] = grid_patches(pictures.grids[i]) / unit;
        ids_of(json_get(row, "grid_thw"), &grid), ids_of(json_get(row, "input_ids"), &want);
        compare_prompt(&c, "prompt", &v, true, row);
        compare_grids(&c, &pictures, grid.p, grid.n);
        if (chat_encode(a->t, v.messages, v.n, true, tokens, pictures.n, true, &ids, &e)) {
            compare_ints(&c, "input_ids", ids.p, ids.n, want.p, want.n);
            compare_answer(&c, a, (PromptIds){ids.p, ids.n, pictures.pixels, pictures.grids, pictures.n, 0}, row);
        } else case_refused(&c, &e);
    }
    conversation_free(&v), free(pictures.pixels), ids_free(&grid), ids_free(&ids), ids_free(&want);
    case_end(&c);
}

static void run_ask(const char *dir) {
    Case c;
    Path templates = path_of(dir, "chat_template.jsonl");
    if (file_exists(templates.p) && case_begin(&c, "pipeline/ask/chat_template.jsonl"))
        rows_read(templates.p, template_row, &c), case_end(&c);
    Ask a = {.dir = dir};
    rows_read(path_of(dir, "conversations.jsonl").p, ask_row, &a);
    if (a.loaded) model_free(&a.m);
    if (a.t) tokenizer_free(a.t);
}

// --------------------------------------------------------------------------------------------------- oracle/sampling
typedef struct SamplingCase {
    SampleParams p;
    int64_t V, min_keep;
    float *logits;
    double *probs, *want; // [V] each
    uint8_t *kept;        // [V]
    Ids seen, want_kept, best;
} SamplingCase;
static bool sampling_read(SamplingCase *s, const Json *row) {
    const Json *logits = json_get(row, "logits"), *probs = json_get(row, "probs");
    int64_t n = 0, kept = 0;
    *s = (SamplingCase){.p = {.do_sample = true_of(row, "do_sample"),
                              .repetition_penalty = number_of(row, "repetition_penalty", 1),
                              .temperature = number_of(row, "temperature", 1),
                              .top_k = (int32_t)int_of(row, "top_k"),
                              .top_p = number_of(row, "top_p", 1),
                              .min_p = number_of(row, "min_p", 0)},
                        .V = logits ? logits->count : 0,
                        .min_keep = int_of(row, "min_tokens_to_keep")};
    size_t room = (size_t)s->V + 1;
    s->logits = alloc_or_die(room, sizeof *s->logits, "logits");
    s->probs = alloc_or_die(room, sizeof *s->probs, "probabilities");
    s->want = alloc_or_die(room, sizeof *s->want, "probabilities");
    s->kept = alloc_or_die(room, 1, "kept");
    floats_of(logits, s->logits, s->V, &n);
    ids_of(json_get(row, "prev_ids"), &s->seen);
    ids_of(json_get(row, "kept"), &s->want_kept), ids_of(json_get(row, "argmax"), &s->best);
    if (!n || n != s->V || n != int_of(row, "V") || !ids_below(&s->seen, n) || !ids_below(&s->want_kept, n))
        return false;
    for (const Json *v = probs ? probs->child : NULL; v; v = v->next, kept++)
        if (kept < s->want_kept.n) s->want[s->want_kept.p[kept]] = v->number;
    return kept == s->want_kept.n;
}

static int downwards(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x < y) - (x > y);
}
static void compare_sampling(Case *c, SamplingCase *s, bool exact) {
    int32_t want = (int32_t)s->want_kept.n;
    int32_t n =
        (int32_t)sample_distribution(s->logits, s->V, s->seen.p, s->seen.n, s->p, s->min_keep, s->probs, s->kept);
    compare_ints(c, "n_kept", &n, 1, &want, 1);
    if (exact) {
        Ids kept = {0};
        int64_t top = 0;
        bool among = false;
        for (int64_t i = 0; i < s->V; i++) {
            if (s->kept[i]) ids_add(&kept, (int32_t)i);
            if (s->probs[i] > s->probs[top]) top = i;
        }
        for (int64_t i = 0; i < s->best.n; i++) among |= s->best.p[i] == top;
        compare_ints(c, "kept", kept.p, kept.n, s->want_kept.p, want);
        compare_flag(c, "argmax", among, true);
        ids_free(&kept);
    } else { // a step cut through equal values: which of them stay is up to the sort
        qsort(s->probs, (size_t)s->V, sizeof *s->probs, downwards);
        qsort(s->want, (size_t)s->V, sizeof *s->want, downwards);
    }
    double largest = 0;
    if (planted("probs")) s->probs[s->V / 2] += 1e-3;
    for (int64_t i = 0; i < s->V; i++)
        if (!(fabs(s->probs[i] - s->want[i]) <= largest)) largest = fabs(s->probs[i] - s->want[i]);
    measure(c, PROBABILITY, "probs", largest);
}

static void sampling_row(void *ctx, const Json *row, int64_t line) {
    Case c;
    SamplingCase s;
    (void)ctx;
    if (!case_begin(&c, "sampling/%s", text_of(row, "id"))) return;
    if (sampling_read(&s, row)) compare_sampling(&c, &s, json_is(json_get(row, "check"), "exact"));
    else case_broken(&c, "line %lld: logits, ids and probabilities do not fit each other", (long long)line);
    free(s.logits), free(s.probs), free(s.want), free(s.kept);
    ids_free(&s.seen), ids_free(&s.want_kept), ids_free(&s.best);
    case_end(&c);
}
static void run_sampling(const char *dir) { rows_read(path_of(dir, "sampling_cases.jsonl").p, sampling_row, NULL); }

// ---------------------------------------------------------------------------------------- testdata: verdicts on files
// A verdict of a manifest: "accept", "reject" (with a code of this family), or "either": then only that we came back.
static void compare_verdict(Case *c, const char *verdict, bool accepted, const Err *e, const char *family) {
    if (strcmp(verdict, "either")) compare_flag(c, "accepted", accepted, !strcmp(verdict, "accept"));
    compare_flag(c, "refused with the right kind of code", accepted || !strncmp(e->code, family, strlen(family)), true);
}

static void run_json(const char *dir) {
    Table t;
    Err e = {0};
    Case c;
    if (!table_open(&t, path_of(dir, "MANIFEST.tsv").p, '\t', &e)) {
        if (case_begin(&c, "jsontestsuite")) case_refused(&c, &e), case_end(&c);
        return;
    }
    while (table_next(&t)) {
        char relative[300], *data;
        size_t size;
        if (!case_begin(&c, "jsontestsuite/%s", table_get(&t, "file"))) continue;
        snprintf(relative, sizeof relative, "test_parsing/%s", table_get(&t, "file"));
        if (manifest_file(&c, path_of(dir, relative).p, table_get(&t, "sha256"), &data, &size)) {
            JsonDoc doc = {0};
            Err refused = {0};
            bool accepted = json_parse(&doc, data, size, relative, (JsonOptions){0}, &refused);
            compare_verdict(&c, table_get(&t, "verdict"), accepted, &refused, "E-JS-");
            if (accepted) json_free(&doc);
            free(data);
        }
        case_end(&c);
    }
    free(t.text);
}

static void compare_sum(Case *c, const char *what, const Image *im, const char *want) {
    char hex[65];
    sha256_hex(im->rgb, (size_t)im->width * (size_t)im->height * 3, hex);
    compare_bytes(c, what, hex, 64, want, strlen(want));
}

// A decoded picture against what its row knows: size; PNG: sums of the pixels; JPEG: the reference picture or the mean
// colour.
static void compare_decoded_image(Case *c, const Table *t, const char *dir, const char *data, size_t size, Image *im) {
    const char *file = table_get(t, "file"), *base = strrchr(file, '/') ? strrchr(file, '/') + 1 : file,
               *white = table_get(t, "rgba_on_white_sha256");
    int32_t got[2] = {im->width, im->height},
            want[2] = {(int32_t)table_int(t, "width"), (int32_t)table_int(t, "height")};
    int64_t n = (int64_t)im->width * im->height * 3;
    Err e = {0};
    compare_ints(c, "size", got, 2, want, 2);
    if (!*table_get(t, "jpeg_mean_rgb")) {
        compare_sum(c, "rgb_sha256", im, table_get(t, "rgb_sha256"));
        Image on_white;
        if (*white &&
            image_decode(&on_white, (const uint8_t *)data, size, file, (ImageOptions){.alpha_white = true}, &e)) {
            compare_sum(c, "rgba_on_white_sha256", &on_white, white);
            image_free(&on_white);
        }
        return;
    }
    char relative[300];
    snprintf(relative, sizeof relative, "reference/%s.png", base);
    Path reference = path_of(dir, relative);
    Image r = {0};
    if (file_exists(reference.p)) {
        if (!image_read(&r, reference.p, (ImageOptions){0}, &e)) case_refused(c, &e);
        else if (r.width != im->width || r.height != im->height)
            case_broken(c, "the reference picture has another size");
        else compare_picture(c, "pixels", im->rgb, r.rgb, n, true);
        image_free(&r);
        return;
    }
    double want_mean[3] = {0}, sum[3] = {0}, worst = planted("mean colour") ? 1 : 0;
    sscanf(table_get(t, "jpeg_mean_rgb"), "%lf,%lf,%lf", &want_mean[0], &want_mean[1], &want_mean[2]);
    for (int64_t i = 0; i < n; i++) sum[i % 3] += im->rgb[i];
    for (int k = 0; k < 3; k++) worst = fmax(worst, fabs(sum[k] / (double)(n / 3) - want_mean[k]));
    measure(c, JPEG_COLOUR, "mean colour", worst);
}

static void run_images(const char *dir) {
    Table t;
    Err e = {0};
    Case c;
    if (!table_open(&t, path_of(dir, "MANIFEST.tsv").p, '\t', &e)) {
        if (case_begin(&c, "images")) case_refused(&c, &e), case_end(&c);
        return;
    }
    while (table_next(&t)) {
        const char *file = table_get(&t, "file"), *verdict = table_get(&t, "surgr1_verdict");
        char *data;
        size_t size;
        if (!case_begin(&c, "images/%s", file)) continue;
        if (manifest_file(&c, path_of(dir, file).p, table_get(&t, "file_sha256"), &data, &size)) {
            Image im;
            Err refused = {0};
            bool accepted = image_decode(&im, (const uint8_t *)data, size, file, (ImageOptions){0}, &refused);
            compare_verdict(&c, verdict, accepted, &refused, "E-IM-");
            if (accepted && !strcmp(verdict, "accept")) compare_decoded_image(&c, &t, dir, data, size, &im);
            if (accepted) image_free(&im);
            free(data);
        }
        case_end(&c);
    }
    free(t.text);
}

// -------------------------------------------------------------------------------------------------------------- main
static const struct {
    const char *path; // under the root; a kind whose path is missing is skipped
    void (*run)(const char *path);
} kinds[] = {
    {"testdata/jsontestsuite", run_json},
    {"testdata/images", run_images},
    {"tokenizer", run_tokenizer},
    {"oracle/pipeline/small_bpe", run_small_bpe},
    {"oracle/pipeline/smart_resize.csv", run_smart_resize},
    {"oracle/pipeline/resize", run_resize},
    {"oracle/pipeline/pixels", run_pixels},
    {"oracle/sampling", run_sampling},
    {"oracle/models", run_models},
    {"oracle/models", run_training},
    {"oracle/metrics", run_metrics},
    {"oracle/grpo", run_grpo},
    {"oracle/pipeline/ask", run_ask},
};

static int usage(const char *what) {
    fprintf(stderr,
            "test_oracle: %s\nusage: test_oracle [--root DIR] [--device ref|cpu|cuda] [--threads N] [--only TEXT] "
            "[--skip TEXT] [--keep LAYERS] [--verbose] [--plant NAME]\n",
            what);
    return EXIT_USAGE;
}

int main(int argc, char **argv) {
    const char *device_name = "ref", *threads = "0", *keep = "0";
    const struct {
        const char *name, **value;
    } options[] = {{"--root", &root}, {"--device", &device_name}, {"--threads", &threads}, {"--skip", &omitted},
                   {"--only", &only}, {"--plant", &plant},        {"--keep", &keep}};
    for (int i = 1; i < argc; i++) {
        size_t k = 0, n = sizeof options / sizeof options[0];
        while (k < n && strcmp(argv[i], options[k].name)) k++;
        if (!strcmp(argv[i], "--verbose")) verbose = true;
        else if (k < n && i + 1 < argc) *options[k].value = argv[++i];
        else return usage(argv[i]);
    }
    while (device_index < DEVICES && strcmp(device_name, device_names[device_index])) device_index++;
    char *end;
    long n_threads = strtol(threads, &end, 10);
    if (device_index == DEVICES) return usage(device_name);
    keep_layers = strtol(keep, NULL, 10);
    if (*end || n_threads < 0 || n_threads > LIMIT_THREADS) return usage("--threads wants 0 (all processors) to 256");
    Err e = {0};
    device = device_index == REF ? ops_ref() : device_index == CPU ? ops_cpu() : ops_cuda(F32, &e);
    if (!device) return err_report(&e);
    if (!folder_exists(root)) return usage("--root is not a folder");

    pool_start((int)n_threads);
    for (size_t k = 0; k < sizeof kinds / sizeof kinds[0]; k++) {
        Path path = path_of(root, kinds[k].path);
        if (folder_exists(path.p) || file_exists(path.p)) kinds[k].run(path.p);
        else skip("%s: %s has no such part", kinds[k].path, root);
    }
    pool_stop();
    printf("%d passed, %d failed, %d skipped\n", passed, failed, skipped);
    return failed ? EXIT_NO : passed || skipped ? EXIT_OK : usage("nothing matches --only");
}
