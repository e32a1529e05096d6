// import_read.c - what the importers read with: tables, folders of numbered frames, pickles without a program in them.
//
// What it is:  strict readers. They refuse with file and line; they neither guess a separator nor mend a cell.
// What it is not: the meaning of a column (import_camma.c, import_vqa.c, import_other.c).
// Read before: import.h.  Read next: import.c.
#include "import.h"
#include <dirent.h>
#include <errno.h>

// ----------------------------------------------------------------------------------------------------------- numbers
bool text_int(const char *p, size_t len, int64_t *out) {
    size_t i = len && *p == '-';
    int64_t v = 0;
    if (i == len || len > 19) return false;
    for (; i < len; i++) {
        if (p[i] < '0' || p[i] > '9' || !mul_ok(v, 10, &v) || !add_ok(v, p[i] - '0', &v)) return false;
    }
    *out = *p == '-' ? -v : v;
    return true;
}

bool text_double(const char *p, size_t len, double *out) { // digits, one point, an exponent: what csv writers write
    char copy[64], *end;
    size_t i = len && (*p == '-' || *p == '+'), digits = 0;
    if (len >= sizeof copy) return false;
    for (; i < len && p[i] >= '0' && p[i] <= '9'; i++) digits++;
    if (i < len && p[i] == '.')
        for (i++; i < len && p[i] >= '0' && p[i] <= '9'; i++) digits++;
    if (digits && i < len && (p[i] == 'e' || p[i] == 'E')) {
        i++;
        if (i < len && (p[i] == '-' || p[i] == '+')) i++;
        size_t from = i;
        while (i < len && p[i] >= '0' && p[i] <= '9') i++;
        if (i == from) return false;
    }
    if (!digits || i != len) return false;
    memcpy(copy, p, len);
    copy[len] = 0;
    *out = strtod(copy, &end);
    return !*end && isfinite(*out);
}

// ------------------------------------------------------------------------------------------------------------ tables
typedef struct Cells { // growing
    Cell *p;
    size_t n, cap;
} Cells;

static void cell_put(Cells *c, const char *p, size_t len) {
    if (c->n == c->cap) c->p = grow_or_die(c->p, c->cap = c->cap ? 2 * c->cap : 256, sizeof *c->p, "cells of a table");
    c->p[c->n++] = (Cell){p, len};
}

static bool row_put(Table *t, Cells *cells, size_t first, int64_t line, int64_t *cap) {
    if (t->n == *cap) t->rows = grow_or_die(t->rows, (size_t)(*cap = *cap ? 2 * *cap : 64), sizeof *t->rows, "a table");
    t->rows[t->n++] = (TableRow){.cells = (Cell *)(uintptr_t)first, .n = (int64_t)(cells->n - first), .line = line};
    return true;
}

// A quoted cell from p (behind its quote): its text moves together, doubled quotes become one. Returns the place behind the
// closing quote, NULL without one.
static char *quoted_cell(char *p, const char *end, size_t *len, int64_t *line) {
    char *to = p, *from = p;
    for (; from < end; from++) {
        if (*from == '\n') ++*line;
        if (*from == '"') {
            if (from + 1 == end || from[1] != '"') {
                *len = (size_t)(to - p);
                return from + 1;
            }
            from++;
        }
        *to++ = *from;
    }
    return NULL;
}

static bool table_fail(const Table *t, int64_t line, const char *expected, const char *found, const char *todo,
                       Err *e) {
    return err_set(e, "E-DS-13", AT(.file = t->file, .line = line), "expected %s; found %s; do: %s", expected, found,
                   todo);
}

static bool table_parse(Table *t, char *p, char *end, char separator, Cells *cells, Err *e) {
    int64_t line = 1, cap = 0;
    while (p < end) {
        size_t first = cells->n;
        int64_t began = line;
        for (bool more = true; more;) { // one cell
            size_t len = 0;
            char *start = p;
            if (separator == ' ')
                while (p < end && (*p == ' ' || *p == '\t')) start = ++p;
            if (separator == ',' && p < end && *p == '"') {
                start = ++p;
                if (!(p = quoted_cell(p, end, &len, &line)))
                    return table_fail(t, began, "a closing quote", "the end of the file", "mend the line", e);
                if (p < end && *p != ',' && *p != '\n' && *p != '\r')
                    return table_fail(t, line, "a comma or the line's end behind a closing quote", quoted(p, 1),
                                      "double a quote that belongs to the text", e);
            } else {
                while (p < end && *p != '\n' && *p != separator && !(separator == ' ' && *p == '\t')) {
                    if (separator == ',' && *p == '"')
                        return table_fail(t, line, "quotes around a whole cell", "one inside of a cell",
                                          "quote the cell and double its quotes", e);
                    p++;
                }
                len = (size_t)(p - start);
                bool at_end = p == end || *p == '\n';
                if (at_end && len && start[len - 1] == '\r') len--;
            }
            if (separator == ',' && p < end && *p == '\r' && p + 1 < end && p[1] == '\n') p++;
            more = p < end && *p != '\n';
            if (separator != ' ' || len || cells->n == first) cell_put(cells, start, len);
            if (p < end) {
                line += *p == '\n';
                p++;
            }
            start[len] = 0; // the separator's place, or the zero byte behind the file
            if (more && p == end && separator != ' ')
                cell_put(cells, end, 0), more = false; // "a,b," ends in an empty cell
        }
        if (cells->n - first == 1 && !cells->p[first].len) { // nothing on it
            cells->n = first;
            if (p < end)
                warn("E-DS-11", AT(.file = t->file, .line = began),
                     "expected no blank line inside of a table; found one; do: delete it (it is skipped)");
            continue;
        }
        row_put(t, cells, first, began, &cap);
    }
    return true;
}

// text: size bytes and a zero, which the table owns from here on.
static bool table_take(Table *t, const char *file, char *text, size_t size, char separator, Err *e) {
    size_t bad;
    Cells cells = {0};
    *t = (Table){.text = text};
    t->file = alloc_or_die(strlen(file) + 1, 1, "a path");
    memcpy(t->file, file, strlen(file));
    char *p = text, *end = p + size;
    int64_t line = 1;
    if (size >= 3 && !memcmp(p, "\xEF\xBB\xBF", 3)) p += 3;
    bool ok = true;
    if (!utf8_valid(p, (size_t)(end - p), &bad)) {
        for (size_t i = 0; i < bad; i++) line += p[i] == '\n';
        ok = table_fail(t, line, "UTF-8", quoted(p + bad, 1), "convert the file to UTF-8", e);
    } else if (memchr(p, 0, (size_t)(end - p))) {
        for (size_t i = 0; p[i]; i++) line += p[i] == '\n';
        ok = table_fail(t, line, "text", "a zero byte", "this is no table", e);
    } else ok = table_parse(t, p, end, separator, &cells, e);
    t->cells = cells.p;
    for (int64_t i = 0; i < t->n; i++) t->rows[i].cells = cells.p + (uintptr_t)t->rows[i].cells; // they stand still now
    if (!ok) table_free(t);
    return ok;
}

bool table_read(Table *t, const char *path, char separator, Err *e) {
    char *text;
    size_t size;
    *t = (Table){0};
    return file_read(path, LIMIT_TABLE_BYTES, "E-DS-13", &text, &size, e) &&
           table_take(t, path, text, size, separator, e);
}

bool table_text(Table *t, const char *file, const char *text, size_t size, char separator, Err *e) {
    char *copy = alloc_or_die(size + 1, 1, "a table");
    if (size) memcpy(copy, text, size);
    return table_take(t, file, copy, size, separator, e);
}

void table_free(Table *t) {
    free(t->file), free(t->text), free(t->rows), free(t->cells);
    *t = (Table){0};
}

bool table_columns(const Table *t, const TableRow *r, int64_t n, bool many, const char *what, Err *e) {
    if (r->n == n || (many && r->n > n)) return true;
    return err_set(e, "E-DS-13", AT(.file = t->file, .line = r->line),
                   "expected %s%lld columns: %s; found %lld; do: check that this is the file of the data set",
                   many ? "at least " : "", (long long)n, what, (long long)r->n);
}

bool table_int(const Table *t, const TableRow *r, int column, const char *name, int64_t min, int64_t max, int64_t *out,
               Err *e) {
    const Cell *c = &r->cells[column];
    if (column < r->n && text_int(c->p, c->len, out) && *out >= min && *out <= max) return true;
    return err_set(e, "E-DS-13", AT(.file = t->file, .line = r->line, .field = name),
                   "expected an integer from %lld to %lld; found %s; do: check the file", (long long)min,
                   (long long)max, column < r->n ? quoted(c->p, c->len) : "no such column");
}

bool table_double(const Table *t, const TableRow *r, int column, const char *name, double min, double max, double *out,
                  Err *e) {
    const Cell *c = &r->cells[column];
    if (column < r->n && text_double(c->p, c->len, out) && *out >= min && *out <= max) return true;
    return err_set(e, "E-DS-13", AT(.file = t->file, .line = r->line, .field = name),
                   "expected a number from %g to %g; found %s; do: check the file", min, max,
                   column < r->n ? quoted(c->p, c->len) : "no such column");
}

// ----------------------------------------------------------------------------------------------------------- folders
static int by_name(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

bool folder_names(Names *names, const char *dir, Err *e) {
    *names = (Names){0};
    DIR *d = opendir(dir);
    if (!d)
        return err_set(e, "E-IO-01", AT(.file = dir), "expected a folder; found %s; do: check the path",
                       error_text(errno));
    size_t cap = 0;
    for (struct dirent *entry; (entry = readdir(d));) {
        if (entry->d_name[0] == '.') continue;
        if ((size_t)names->n == cap)
            names->p = grow_or_die(names->p, cap = cap ? 2 * cap : 64, sizeof *names->p, "names");
        size_t len = strlen(entry->d_name);
        char *name = alloc_or_die(len + 1, 1, "a name");
        memcpy(name, entry->d_name, len);
        names->p[names->n++] = name;
    }
    closedir(d);
    if (names->n) qsort(names->p, (size_t)names->n, sizeof *names->p, by_name);
    return true;
}

void names_free(Names *names) {
    for (int64_t i = 0; i < names->n; i++) free(names->p[i]);
    free(names->p);
    *names = (Names){0};
}

static bool is_picture(const char *name) {
    const char *dot = strrchr(name, '.');
    return dot && (!strcasecmp(dot, ".png") || !strcasecmp(dot, ".jpg") || !strcasecmp(dot, ".jpeg"));
}

static bool number_of(const char *name, int64_t *number) { // the last run of digits in front of the last dot
    const char *end = strrchr(name, '.');
    if (!end) end = name + strlen(name);
    while (end > name && !(end[-1] >= '0' && end[-1] <= '9')) end--;
    const char *from = end;
    while (from > name && from[-1] >= '0' && from[-1] <= '9') from--;
    return from < end && text_int(from, (size_t)(end - from), number);
}

static int by_number(const void *a, const void *b) {
    int64_t x = ((const FrameFile *)a)->number, y = ((const FrameFile *)b)->number;
    return (x > y) - (x < y);
}

bool frames_list(Frames *f, const char *const *dirs, int n_dirs, Err *e) {
    *f = (Frames){0};
    Names names = {0};
    for (int i = 0; i < n_dirs && !*f->dir; i++)
        if (dirs[i] && folder_exists(dirs[i])) snprintf(f->dir, sizeof f->dir, "%s", dirs[i]);
    if (!*f->dir) return true;
    if (!folder_names(&names, f->dir, e)) return false;
    f->files = alloc_or_die((size_t)names.n + 1, sizeof *f->files, "frames of a video");
    for (int64_t i = 0; i < names.n; i++) {
        FrameFile file = {.name = names.p[i]};
        if (!is_picture(names.p[i]) || !number_of(names.p[i], &file.number)) continue;
        f->files[f->n++] = file;
        names.p[i] = NULL;
    }
    names_free(&names);
    qsort(f->files, (size_t)f->n, sizeof *f->files, by_number);
    return true;
}

bool frames_open(Frames *f, const char *const *dirs, int n_dirs, Err *e) {
    if (!frames_list(f, dirs, n_dirs, e)) return false;
    for (int64_t i = 1; i < f->n; i++)
        if (f->files[i].number == f->files[i - 1].number) {
            err_set(e, "E-DS-13", AT(.file = f->dir),
                    "expected one picture of each number; found %s and %s; do: remove one",
                    quoted(f->files[i - 1].name, strlen(f->files[i - 1].name)),
                    quoted(f->files[i].name, strlen(f->files[i].name)));
            frames_free(f);
            return false;
        }
    return true;
}

const char *frames_find(const Frames *f, int64_t number) {
    FrameFile key = {.number = number};
    const FrameFile *hit = f->n ? bsearch(&key, f->files, (size_t)f->n, sizeof key, by_number) : NULL;
    return hit ? hit->name : NULL;
}

void frames_free(Frames *f) {
    for (int64_t i = 0; i < f->n; i++) free(f->files[i].name);
    free(f->files);
    *f = (Frames){0};
}

// ------------------------------------------------------------------------------------------------------------ pickles
// A pickle is a program for a stack machine (Python's pickletools.py describes every opcode). We run only those that build
// plain data, and build JSON text: a value on our stack is a Text. Tuples become lists; keys of a dict are texts or integers.
// Opcodes that name or call a class (GLOBAL, REDUCE, INST, OBJ, NEWOBJ, BUILD, EXT*, PERSID) refuse.
enum { PICKLE_VALUE, PICKLE_LIST, PICKLE_DICT, PICKLE_MARK };
typedef struct PickleValue {
    int kind, depth;
    bool text, whole; // a JSON string; an integer: what may be a key
    int64_t shared;   // how often a memo entry points at it
    Text t;           // lists and dicts: the elements with commas, without brackets
} PickleValue;
typedef struct Pickle {
    const char *file;
    const uint8_t *p, *end, *start;
    PickleValue **stack, **memo, **all;
    size_t n, cap, n_memo, cap_memo, n_all, cap_all, bytes;
    Err *e;
} Pickle;

static bool pickle_fail(Pickle *v, const char *expected, const char *found) {
    return err_set(v->e, "E-DS-15", AT(.file = v->file, BYTE(v->p - v->start)), "expected %s; found %s; do: %s",
                   expected, found, "convert the pickle to JSON or CSV yourself; programs in data are never run");
}

static PickleValue *pickle_new(Pickle *v, int kind) {
    if (v->n_all == v->cap_all)
        v->all = grow_or_die(v->all, v->cap_all = v->cap_all ? 2 * v->cap_all : 256, sizeof *v->all, "a pickle");
    PickleValue *x = alloc_or_die(1, sizeof *x, "a value of a pickle");
    x->kind = kind;
    return v->all[v->n_all++] = x;
}

static void pickle_push(Pickle *v, PickleValue *x) {
    if (v->n == v->cap)
        v->stack = grow_or_die(v->stack, v->cap = v->cap ? 2 * v->cap : 64, sizeof *v->stack, "a pickle");
    v->stack[v->n++] = x;
}

static PickleValue *pickle_scalar(Pickle *v) {
    PickleValue *x = pickle_new(v, PICKLE_VALUE);
    pickle_push(v, x);
    return x;
}

static void pickle_print(const PickleValue *x, Text *out) {
    const char *open = x->kind == PICKLE_LIST ? "[" : x->kind == PICKLE_DICT ? "{" : "";
    const char *close = x->kind == PICKLE_LIST ? "]" : x->kind == PICKLE_DICT ? "}" : "";
    text_addf(out, "%s", open);
    if (x->t.len) text_add(out, x->t.p, x->t.len);
    text_addf(out, "%s", close);
}

// Puts x into a list or dict (in front of it its key). What is put in is done: adding to it later would be lost, so that refuses
// through `shared`.
static bool pickle_put(Pickle *v, PickleValue *into, const PickleValue *key, PickleValue *x) {
    if (x->kind == PICKLE_MARK || x == into) return pickle_fail(v, "a value", "a mark, or a list inside of itself");
    if (x->depth + 1 > into->depth) into->depth = x->depth + 1;
    if (into->depth > LIMIT_JSON_DEPTH) return pickle_fail(v, "at most 64 nested levels", "more");
    size_t before = into->t.len;
    if (into->t.len) text_addf(&into->t, ",");
    if (key) {
        if (!key->text && !key->whole)
            return pickle_fail(v, "a text or an integer as the key of a dict", "another value");
        if (key->text) text_add(&into->t, key->t.p, key->t.len);
        else text_addf(&into->t, "\"%s\"", key->t.p);
        text_addf(&into->t, ":");
    }
    pickle_print(x, &into->t);
    x->shared++;
    v->bytes += into->t.len - before;
    if (v->bytes > (size_t)LIMIT_TABLE_BYTES * 4)
        return pickle_fail(v, "a pickle of less than a gigabyte of text", "more");
    return true;
}

static bool pickle_mark(Pickle *v, size_t *at) { // place of the last mark
    for (size_t i = v->n; i-- > 0;)
        if (v->stack[i]->kind == PICKLE_MARK) {
            *at = i;
            return true;
        }
    return pickle_fail(v, "a mark on the stack", "none");
}

static bool pickle_fill(Pickle *v, size_t target, size_t from, int kind) { // stack[from..] into stack[target]
    if (v->n <= target || from > v->n || v->stack[target]->kind != kind || v->stack[target]->shared > 0)
        return pickle_fail(v, "a list or dict that is still open", "another value");
    PickleValue *into = v->stack[target];
    if (kind == PICKLE_DICT && (v->n - from) % 2) return pickle_fail(v, "a value for every key", "a key alone");
    for (size_t i = from; i < v->n; i += kind == PICKLE_DICT ? 2 : 1)
        if (kind == PICKLE_DICT ? !pickle_put(v, into, v->stack[i], v->stack[i + 1])
                                : !pickle_put(v, into, NULL, v->stack[i]))
            return false;
    return true;
}

static bool pickle_memo_put(Pickle *v, uint64_t index) {
    if (!v->n || index > (1u << 24)) return pickle_fail(v, "a memo index below 2^24 and a value", "another");
    if (index >= v->cap_memo) {
        size_t old = v->cap_memo;
        v->cap_memo = index + 1 < 256 ? 256 : 2 * (index + 1);
        v->memo = grow_or_die(v->memo, v->cap_memo, sizeof *v->memo, "a pickle's memo");
        memset(v->memo + old, 0, (v->cap_memo - old) * sizeof *v->memo);
    }
    v->memo[index] = v->stack[v->n - 1];
    if (index >= v->n_memo) v->n_memo = index + 1;
    return true;
}

static bool pickle_memo_get(Pickle *v, uint64_t index) {
    if (index >= v->n_memo || !v->memo[index]) return pickle_fail(v, "a memo entry that is there", "none");
    pickle_push(v, v->memo[index]);
    return true;
}

static bool pickle_text(Pickle *v, const uint8_t *p, uint64_t n) {
    size_t bad;
    if (n > (uint64_t)(v->end - p)) return pickle_fail(v, "a text inside of the file", "one that ends behind it");
    if (!utf8_valid((const char *)p, (size_t)n, &bad)) return pickle_fail(v, "UTF-8", "another encoding");
    PickleValue *x = pickle_scalar(v);
    text_add_json_string(&x->t, (const char *)p, (size_t)n);
    x->text = true;
    v->p = p + n;
    return true;
}

static void pickle_number(Pickle *v, int64_t i) {
    PickleValue *x = pickle_scalar(v);
    text_addf(&x->t, "%lld", (long long)i);
    x->whole = true;
}

static void pickle_word(Pickle *v, const char *word) { text_addf(&pickle_scalar(v)->t, "%s", word); }

static uint64_t little(const uint8_t *p, int n) {
    uint64_t x = 0;
    for (int i = n; i-- > 0;) x = x << 8 | p[i];
    return x;
}

static bool pickle_line(Pickle *v, const uint8_t **p, size_t *n) { // the argument of a text opcode
    const uint8_t *end = memchr(v->p, '\n', (size_t)(v->end - v->p));
    if (!end) return pickle_fail(v, "a line", "the end of the file");
    *p = v->p, *n = (size_t)(end - v->p);
    v->p = end + 1;
    return true;
}

static bool pickle_close(Pickle *v, int kind, size_t from,
                         size_t values) { // stack[values..] become one list or dict at `from`
    PickleValue *x = pickle_new(v, kind);
    size_t n = v->n;
    if (kind == PICKLE_DICT && (n - values) % 2) return pickle_fail(v, "a value for every key", "a key alone");
    for (size_t i = values; i < n; i += kind == PICKLE_DICT ? 2 : 1)
        if (kind == PICKLE_DICT ? !pickle_put(v, x, v->stack[i], v->stack[i + 1])
                                : !pickle_put(v, x, NULL, v->stack[i]))
            return false;
    v->n = from;
    pickle_push(v, x);
    return true;
}

static bool pickle_double(Pickle *v, double d) {
    if (!isfinite(d)) return pickle_fail(v, "a finite number", "NaN or infinity");
    text_add_json_number(&pickle_scalar(v)->t, d);
    return true;
}

static bool pickle_step(Pickle *v, bool *done) {
    static const struct {
        char op;
        uint8_t bytes;
    } sizes[] = {{'\x80', 1}, {'\x95', 8}, {'K', 1}, {'M', 2}, {'J', 4}, {'G', 8}, {'X', 4}, {'\x8c', 1},
                 {'\x8d', 8}, {'U', 1},    {'T', 4}, {'q', 1}, {'r', 4}, {'h', 1}, {'j', 4}, {'\x8a', 1}};
    int op = *v->p++;
    uint64_t a = 0;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if ((uint8_t)sizes[i].op == op) {
            if (v->end - v->p < sizes[i].bytes)
                return pickle_fail(v, "the argument of an opcode", "the end of the file");
            a = little(v->p, sizes[i].bytes);
            v->p += sizes[i].bytes;
        }
    size_t at = 0, n = 0;
    const uint8_t *p = NULL;
    int64_t whole;
    double d;
    switch (op) {
    case 0x80: return a <= 5 || pickle_fail(v, "pickle protocol 0 to 5", "a newer one");
    case 0x95: return true; // FRAME
    case '.': return *done = v->n == 1, *done || pickle_fail(v, "one value at the end", "another number");
    case 'N': return pickle_word(v, "null"), true;
    case 0x88: return pickle_word(v, "true"), true;
    case 0x89: return pickle_word(v, "false"), true;
    case 'K':
    case 'M': return pickle_number(v, (int64_t)a), true;
    case 'J': return pickle_number(v, (int32_t)(uint32_t)a), true;
    case 0x8a: // LONG1
        if (a > 8 || (uint64_t)(v->end - v->p) < a) return pickle_fail(v, "an integer of 64 bits", "a longer one");
        whole = (int64_t)(a ? little(v->p, (int)a) << (64 - 8 * a) : 0);
        v->p += a;
        return pickle_number(v, a ? whole >> (64 - 8 * a) : 0), true;
    case 'I':
    case 'L': // text of protocol 0; "00" and "01" are booleans
        if (!pickle_line(v, &p, &n)) return false;
        if (op == 'I' && n == 2 && p[0] == '0') return pickle_word(v, p[1] == '1' ? "true" : "false"), true;
        if (op == 'L' && n && p[n - 1] == 'L') n--;
        if (!text_int((const char *)p, n, &whole)) return pickle_fail(v, "an integer", quoted((const char *)p, n));
        return pickle_number(v, whole), true;
    case 'F':
        if (!pickle_line(v, &p, &n)) return false;
        return text_double((const char *)p, n, &d) ? pickle_double(v, d)
                                                   : pickle_fail(v, "a number", quoted((const char *)p, n));
    case 'G':
        a = __builtin_bswap64(a); // big-endian
        memcpy(&d, &a, sizeof d);
        return pickle_double(v, d);
    case 'X':
    case 0x8c:
    case 0x8d:
    case 'U':
    case 'T': return pickle_text(v, v->p, a);
    case 'V': // a line; escapes of it are left to those who need them
    case 'S':
        if (!pickle_line(v, &p, &n)) return false;
        if (op == 'S') {
            if (n < 2 || (p[0] != '\'' && p[0] != '"') || p[n - 1] != p[0])
                return pickle_fail(v, "a quoted text", "another");
            p++, n -= 2;
        }
        if (n && memchr(p, '\\', n)) return pickle_fail(v, "a text without escapes", "one with them");
        {
            const uint8_t *behind = v->p;
            bool ok = pickle_text(v, p, n);
            v->p = behind;
            return ok;
        }
    case ']': return pickle_push(v, pickle_new(v, PICKLE_LIST)), true;
    case '}': return pickle_push(v, pickle_new(v, PICKLE_DICT)), true;
    case ')': return pickle_push(v, pickle_new(v, PICKLE_LIST)), true;
    case '(': return pickle_push(v, pickle_new(v, PICKLE_MARK)), true;
    case 'l':
    case 't': return pickle_mark(v, &at) && pickle_close(v, PICKLE_LIST, at, at + 1);
    case 'd': return pickle_mark(v, &at) && pickle_close(v, PICKLE_DICT, at, at + 1);
    case 0x85:
    case 0x86:
    case 0x87:
        n = (size_t)(op - 0x84);
        return v->n >= n ? pickle_close(v, PICKLE_LIST, v->n - n, v->n - n)
                         : pickle_fail(v, "values on the stack", "too few");
    case 'a':
        if (v->n < 2 || !pickle_fill(v, v->n - 2, v->n - 1, PICKLE_LIST))
            return v->n < 2 ? pickle_fail(v, "two values", "fewer") : false;
        return v->n--, true;
    case 's':
        if (v->n < 3 || !pickle_fill(v, v->n - 3, v->n - 2, PICKLE_DICT))
            return v->n < 3 ? pickle_fail(v, "three values", "fewer") : false;
        return v->n -= 2, true;
    case 'e':
    case 'u':
        if (!pickle_mark(v, &at)) return false;
        if (!at) return pickle_fail(v, "a list or dict below the mark", "nothing");
        if (!pickle_fill(v, at - 1, at + 1, op == 'e' ? PICKLE_LIST : PICKLE_DICT)) return false;
        return v->n = at, true;
    case '0': return v->n ? (v->n--, true) : pickle_fail(v, "a value", "none");
    case 'q':
    case 'r': return pickle_memo_put(v, a);
    case 0x94: return pickle_memo_put(v, v->n_memo);
    case 'h':
    case 'j': return pickle_memo_get(v, a);
    case 'p':
    case 'g':
        if (!pickle_line(v, &p, &n)) return false;
        if (!text_int((const char *)p, n, &whole) || whole < 0)
            return pickle_fail(v, "a memo index", quoted((const char *)p, n));
        return op == 'p' ? pickle_memo_put(v, (uint64_t)whole) : pickle_memo_get(v, (uint64_t)whole);
    default: {
        char found[40];
        snprintf(found, sizeof found, "opcode 0x%02X", (unsigned)op);
        v->p--;
        return pickle_fail(v, "an opcode of plain data (dict, list, tuple, text, number, boolean, None)", found);
    }
    }
}

bool pickle_json(Text *json, const char *path, Err *e) {
    char *data;
    size_t size;
    bool ok = true, done = false;
    if (!file_read(path, LIMIT_TABLE_BYTES, "E-DS-15", &data, &size, e)) return false;
    Pickle v = {.file = path, .p = (const uint8_t *)data, .start = (const uint8_t *)data, .e = e};
    v.end = v.p + size;
    while (ok && !done)
        ok = v.p < v.end ? pickle_step(&v, &done) : pickle_fail(&v, "a STOP opcode", "the end of the file");
    if (ok && v.stack[0]->kind == PICKLE_MARK) ok = pickle_fail(&v, "a value at the end", "a mark");
    if (ok) pickle_print(v.stack[0], json);
    for (size_t i = 0; i < v.n_all; i++) text_free(&v.all[i]->t), free(v.all[i]);
    free(v.all), free(v.stack), free(v.memo), free(data);
    return ok;
}
