// log.c - what people see on standard error: errors, warnings, notes, a progress line; and the op trace as a file.
//
// What it is:  the one place that knows the form of a message (docs: the rules stand above err_set in base.h), counts
//              warnings, maps error codes to exit codes, and ends the program when it must (out of memory, a bug).
//              Below that, the trace: every op's output, sampled, in one safetensors file, and the comparison of two.
// What it is not: a log of training steps, or a place that decides what is an error.
// Read before: base.h.  Read next: json.c, files.c (the first users).
#include "../surgr1.h"
#include <inttypes.h>
#include <pthread.h>
#include <unistd.h>

static int log_level = LOG_NORMAL;
static bool log_json;
static bool progress_shown;                                  // a progress line stands unfinished on the terminal
static pthread_mutex_t log_lock = PTHREAD_MUTEX_INITIALIZER; // standard error, the counters below, progress_shown

void log_setup(int level, bool json) { log_level = level, log_json = json; }

// ---------------------------------------------------------------------------------------------------------- errors

// The two letters of a code and the exit code they mean.
static const struct {
    char letters[3];
    int exit_code;
} families[] = {
    {"JS", EXIT_REFUSED},    {"CF", EXIT_REFUSED}, {"ST", EXIT_REFUSED}, {"IX", EXIT_REFUSED}, {"TK", EXIT_REFUSED},
    {"DS", EXIT_REFUSED},    {"IM", EXIT_REFUSED}, {"TA", EXIT_REFUSED}, {"AD", EXIT_REFUSED}, {"CL", EXIT_USAGE},
    {"IO", EXIT_READ},       {"WR", EXIT_WRITE},   {"ME", EXIT_MEMORY},  {"DV", EXIT_DEVICE},  {"NU", EXIT_NUMBERS},
    {"CK", EXIT_CHECKPOINT}, {"LK", EXIT_LOCKED},  {"BG", EXIT_BUG},
};

int err_exit_code(const Err *e) {
    for (size_t i = 0; i < sizeof families / sizeof families[0]; i++)
        if (!strncmp(e->code, "E-", 2) && !strncmp(e->code + 2, families[i].letters, 2)) return families[i].exit_code;
    return EXIT_BUG;
}

static bool code_ok(const char *code) {
    if (strlen(code) != 7 || memcmp(code, "E-", 2) || code[4] != '-') return false;
    return code[2] >= 'A' && code[2] <= 'Z' && code[3] >= 'A' && code[3] <= 'Z' && code[5] >= '0' && code[5] <= '9' &&
           code[6] >= '0' && code[6] <= '9';
}

const char *quoted(const char *text, size_t len) {
    enum { SHOWN = 64 };
    static _Thread_local char ring[8][2 + 4 * SHOWN + 3 + 1];
    static _Thread_local unsigned turn;
    char *out = ring[turn++ % 8], *o = out;
    *o++ = '"';
    for (size_t i = 0; i < len && i < SHOWN; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c >= 0x20 && c <= 0x7e && c != '"' && c != '\\') *o++ = (char)c;
        else o += snprintf(o, 5, "\\x%02X", c);
    }
    *o++ = '"';
    if (len > SHOWN) memcpy(o, "...", 3), o += 3;
    *o = 0;
    return out;
}

// Copies [from, to) of text into out and ends it in "..." where it does not fit.
static void copy_part(char *out, size_t size, const char *text, size_t from, size_t to) {
    size_t n = to > from ? to - from : 0;
    bool cut = n >= size;
    if (cut) n = size - 1;
    memcpy(out, text + from, n);
    out[n] = 0;
    if (cut) memcpy(out + n - 3, "...", 3);
    if (!n) snprintf(out, size, "...");
}

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral" // prefixes of a format that was checked at the call
// Splits where the FORMAT has its separators, whatever the arguments expand to: the lengths of the expanded prefixes
// of the format are the places to cut.
PRINTF_LIKE(4, 0) static void err_fill(Err *e, const char *code, Where at, const char *fmt, va_list args) {
    static const char first[] = "expected ", second[] = "; found ", third[] = "; do: ";
    const char *found = strstr(fmt, second), *todo = found ? strstr(found, third) : NULL;
    CHECK(code_ok(code) && !strncmp(fmt, first, sizeof first - 1) && todo,
          "message %s \"%s\" is not of the form \"expected A; found B; do: C\"", code, fmt);
    char prefix[1024], text[8192];
    CHECK(strlen(fmt) < sizeof prefix, "message format of %s is too long", code);
    size_t cut[3];
    for (int i = 0; i < 3; i++) {
        size_t n = i == 0 ? (size_t)(found - fmt) : i == 1 ? (size_t)(todo - fmt) : strlen(fmt);
        memcpy(prefix, fmt, n), prefix[n] = 0;
        va_list copy;
        va_copy(copy, args);
        int length = vsnprintf(text, sizeof text, prefix, copy);
        va_end(copy);
        CHECK(length >= 0, "message %s cannot be formatted", code);
        cut[i] = (size_t)length < sizeof text ? (size_t)length : sizeof text - 1;
    }
    copy_part(e->expected, sizeof e->expected, text, sizeof first - 1, cut[0]);
    copy_part(e->found, sizeof e->found, text, cut[0] + sizeof second - 1, cut[1]);
    copy_part(e->todo, sizeof e->todo, text, cut[1] + sizeof third - 1, cut[2]);
    memcpy(e->code, code, sizeof e->code);
    snprintf(e->file, sizeof e->file, "%s", at.file ? at.file : "");
    e->line = at.line, e->col = at.col, e->has_byte = at.has_byte, e->byte = at.byte;
    const char *kind = at.tensor ? "tensor" : at.field ? "field" : at.sample ? "sample" : "";
    const char *name = at.tensor ? at.tensor : at.field ? at.field : at.sample ? at.sample : "";
    snprintf(e->field_kind, sizeof e->field_kind, "%s", kind);
    snprintf(e->field, sizeof e->field, "%s", name);
}

#pragma GCC diagnostic pop

bool err_set(Err *e, const char *code, Where at, const char *fmt, ...) {
    if (e->code[0]) return false;
    va_list args;
    va_start(args, fmt);
    err_fill(e, code, at, fmt, args);
    va_end(args);
    return false;
}

// A message is one line and never drives a terminal: control bytes that came in through a path or an argument are
// written as \xHH. Everything else, UTF-8 included, stays as the user gave it.
static void add_clean(Text *t, const char *text) {
    for (const char *p = text; *p; p++) {
        unsigned char c = (unsigned char)*p;
        if (c < 0x20 || c == 0x7f) text_addf(t, "\\x%02X", c);
        else text_add(t, p, 1);
    }
}

static void add_line(Text *t, const Err *e, const char *level) {
    text_addf(t, "surgr1: %s %s: ", level, e->code);
    if (e->file[0]) add_clean(t, e->file);
    else if (!e->field_kind[0]) text_addf(t, "surgr1");
    if (e->line > 0) text_addf(t, ":%" PRId64, e->line);
    if (e->line > 0 && e->col > 0) text_addf(t, ":%" PRId64, e->col);
    if (e->has_byte) text_addf(t, ": byte %" PRId64, e->byte);
    if (e->field_kind[0])
        text_addf(t, "%s%s %s", e->file[0] ? ": " : "", e->field_kind, quoted(e->field, strlen(e->field)));
    text_addf(t, ": expected "), add_clean(t, e->expected);
    text_addf(t, "; found "), add_clean(t, e->found);
    text_addf(t, "; do: "), add_clean(t, e->todo);
}

static void add_json_member(Text *t, const char *name, const char *value) {
    text_addf(t, ",\"%s\":", name);
    text_add_json_string(t, value, strlen(value));
}

static void add_json(Text *t, const Err *e, const char *level) {
    text_addf(t, "{\"level\":\"%s\",\"code\":\"%s\",\"where\":{\"file\":", level, e->code);
    if (e->file[0]) text_add_json_string(t, e->file, strlen(e->file));
    else text_addf(t, "null");
    const char *name[3] = {"line", "col", "byte"};
    int64_t value[3] = {e->line, e->col, e->byte};
    bool there[3] = {e->line > 0, e->line > 0 && e->col > 0, e->has_byte};
    for (int i = 0; i < 3; i++) {
        text_addf(t, ",\"%s\":", name[i]);
        if (there[i]) text_addf(t, "%" PRId64, value[i]);
        else text_addf(t, "null");
    }
    if (strcmp(e->field_kind, "field")) text_addf(t, ",\"field\":null");
    if (e->field_kind[0]) add_json_member(t, e->field_kind, e->field);
    text_addf(t, "}");
    add_json_member(t, "expected", e->expected), add_json_member(t, "found", e->found);
    add_json_member(t, "do", e->todo);
    text_addf(t, "}");
}

const char *err_line(const Err *e, const char *level, char *buf, size_t size) {
    Text t = {0};
    add_line(&t, e, level);
    snprintf(buf, size, "%s", t.p);
    text_free(&t);
    return buf;
}

// One whole line to standard error in one write, so that lines of two threads do not mix.
static void print_line(Text *t) {
    text_add(t, "\n", 1);
    if (progress_shown) fputs("\r\033[K", stderr), progress_shown = false;
    fwrite(t->p, 1, t->len, stderr);
    fflush(stderr);
    text_free(t);
}

static void print_message(const Err *e, const char *level) {
    Text t = {0};
    if (log_json) add_json(&t, e, level);
    else add_line(&t, e, level);
    print_line(&t);
}

int err_report(const Err *e) {
    CHECK(e->code[0], "err_report without an error");
    pthread_mutex_lock(&log_lock);
    print_message(e, "error");
    pthread_mutex_unlock(&log_lock);
    return err_exit_code(e);
}

// How often each warning code came.
static struct {
    char code[8];
    int64_t count;
} warnings[64];

static int64_t *warning_counter(const char *code) {
    const size_t n = sizeof warnings / sizeof warnings[0];
    for (size_t i = 0; i < n; i++) {
        if (!warnings[i].code[0]) snprintf(warnings[i].code, sizeof warnings[i].code, "%s", code);
        if (!strcmp(warnings[i].code, code)) return &warnings[i].count;
    }
    bug(__FILE__, __LINE__, "more than %zu codes of warnings", n);
}

void warn(const char *code, Where at, const char *fmt, ...) {
    Err e = {0};
    va_list args;
    va_start(args, fmt);
    err_fill(&e, code, at, fmt, args);
    va_end(args);
    pthread_mutex_lock(&log_lock);
    int64_t *count = warning_counter(code);
    if (++*count <= LIMIT_WARNINGS) print_message(&e, "warning");
    pthread_mutex_unlock(&log_lock);
}

int64_t warn_count(const char *code) {
    pthread_mutex_lock(&log_lock);
    int64_t count = *warning_counter(code);
    pthread_mutex_unlock(&log_lock);
    return count;
}

void warn_summary(void) {
    for (size_t i = 0; i < sizeof warnings / sizeof warnings[0] && warnings[i].code[0]; i++)
        if (warnings[i].count > LIMIT_WARNINGS)
            note("warning %s: %" PRId64 " in all, the first %" PRId64 " shown", warnings[i].code, warnings[i].count,
                 LIMIT_WARNINGS);
}

// ------------------------------------------------------------------------------------------------ ends of the program

// The last message. Building it takes a little memory and the lock: when memory is gone for that too (then this
// function comes here again) or another thread holds the lock, a plain line must do. _exit: no destructor of a program
// that is known to be broken runs.
NO_RETURN static void end_with(Err *e, const char *code, const char *todo, int exit_code) {
    static int ending;
    snprintf(e->code, sizeof e->code, "%s", code);
    snprintf(e->todo, sizeof e->todo, "%s", todo);
    if (!__atomic_exchange_n(&ending, 1, __ATOMIC_SEQ_CST) && !pthread_mutex_trylock(&log_lock))
        print_message(e, "error");
    else
        fprintf(stderr, "surgr1: error %s: surgr1: expected %s; found %s; do: %s\n", code, e->expected, e->found, todo);
    fflush(stdout);
#ifdef SURGR1_DEBUG
    if (exit_code == EXIT_BUG) abort();
#endif
    _exit(exit_code);
}

void bug(const char *file, int line, const char *fmt, ...) {
    Err e = {.line = line, .expected = "the program to keep its own contracts"};
    va_list args;
    va_start(args, fmt);
    vsnprintf(e.found, sizeof e.found, fmt, args);
    va_end(args);
    snprintf(e.file, sizeof e.file, "%s", file);
    end_with(&e, "E-BG-01", "report this line and the command, it is a bug in surgr1", EXIT_BUG);
}

NO_RETURN static void out_of_memory(size_t count, size_t size, const char *what) {
    Err e = {.found = "no more"};
    snprintf(e.expected, sizeof e.expected, "memory for %s (%zu x %zu bytes)", what, count, size);
    end_with(&e, "E-ME-01", "close other programs, or use a machine with more memory", EXIT_MEMORY);
}

void *alloc_or_die(size_t count, size_t size, const char *what) {
    void *p = calloc(count ? count : 1, size ? size : 1);
    if (!p) out_of_memory(count, size, what);
    return p;
}

void *grow_or_die(void *p, size_t count, size_t size, const char *what) {
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes)) out_of_memory(count, size, what);
    void *grown = realloc(p, bytes ? bytes : 1);
    if (!grown) out_of_memory(count, size, what);
    return grown;
}

// ----------------------------------------------------------------------------------------------------------- notes

PRINTF_LIKE(2, 0) static void print_note(int level, const char *fmt, va_list args) {
    if (log_level < level) return;
    char text[2048];
    int length = vsnprintf(text, sizeof text, fmt, args);
    CHECK(length >= 0, "a note cannot be formatted");
    Text t = {0};
    if (log_json) {
        text_addf(&t, "{\"level\":\"note\"");
        add_json_member(&t, "text", text);
        text_addf(&t, "}");
    } else add_clean(&t, text);
    pthread_mutex_lock(&log_lock);
    print_line(&t);
    pthread_mutex_unlock(&log_lock);
}

void note(const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    print_note(LOG_NORMAL, fmt, args);
    va_end(args);
}

void note_verbose(const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    print_note(LOG_VERBOSE, fmt, args);
    va_end(args);
}

void progress(const char *what, int64_t done, int64_t total, double started_seconds) {
    static double last;
    if (log_level < LOG_NORMAL || log_json || total <= 0 || !isatty(STDERR_FILENO)) return;
    double now = clock_seconds(), spent = now - started_seconds;
    pthread_mutex_lock(&log_lock);
    if (done >= total) {
        if (progress_shown) fputs("\r\033[K", stderr), progress_shown = false;
    } else if (now - last >= 0.1) { // a person reads no faster
        last = now, progress_shown = true;
        fprintf(stderr, "\r\033[K%s %" PRId64 "/%" PRId64, what, done, total);
        if (done > 0) {
            double left = spent / (double)done * (double)(total - done);
            fprintf(stderr, ", %d:%02d left", (int)(left / 60), (int)fmod(left, 60));
        }
    }
    fflush(stderr);
    pthread_mutex_unlock(&log_lock);
}

// ----------------------------------------------------------------------------------------------------------- trace
// In the file, op number 12 is two tensors: "000012.text.layer.3.matmul" F32 [kept elements] and the same name with
// ".stats", F64 [5]: rows, columns, rms, largest magnitude, non-finite elements. rms and magnitude are of the finite
// elements of the whole output; names sort in the order of the ops.

enum { TRACE_KEPT = 4096, TRACE_STATS = 5 };

typedef struct TracedOp {
    char name[200];
    float *kept;
    int64_t n;
    double stats[TRACE_STATS];
} TracedOp;

static struct {
    char path[1100], where[120];
    Text label; // JSON string
    TracedOp *ops;
    int64_t count, cap, lost;
    char *host; // scratch for the largest output so far
    size_t host_size;
} trace;

static float element(Type type, const char *p, int64_t i) {
    uint16_t h;
    int32_t k;
    float f;
    switch (type) {
    case BF16: memcpy(&h, p + 2 * i, 2); return bf16_to_f32(h);
    case I32: memcpy(&k, p + 4 * i, 4); return (float)k;
    case F32: break;
    }
    memcpy(&f, p + 4 * i, 4);
    return f;
}

static void trace_op(void *ctx, const Ops *d, const char *op, Mat y) {
    (void)ctx;
    if (2 * (trace.count + 1) > LIMIT_TENSORS) { // the file could not be read back
        trace.lost++;
        return;
    }
    int64_t n = y.rows * y.cols;
    size_t bytes = (size_t)n * type_size(y.type);
    if (bytes > trace.host_size) {
        trace.host = grow_or_die(trace.host, bytes, 1, "an op's output in the trace");
        trace.host_size = bytes;
    }
    if (n) d->download(mat(trace.host, y.rows, y.cols, y.type), y);
    if (trace.count == trace.cap) {
        trace.cap = trace.cap ? 2 * trace.cap : 256;
        trace.ops = grow_or_die(trace.ops, (size_t)trace.cap, sizeof *trace.ops, "the trace");
    }
    TracedOp *t = &trace.ops[trace.count];
    snprintf(t->name, sizeof t->name, "%06" PRId64 ".%s%s%s", trace.count, trace.where, *trace.where ? "." : "", op);
    double squares = 0, largest = 0;
    int64_t bad = 0;
    for (int64_t i = 0; i < n; i++) {
        double v = (double)element(y.type, trace.host, i);
        if (!isfinite(v)) bad++;
        else squares += v * v, largest = fabs(v) > largest ? fabs(v) : largest;
    }
    t->n = n < TRACE_KEPT ? n : TRACE_KEPT;
    t->kept = alloc_or_die((size_t)t->n, sizeof *t->kept, "the trace");
    for (int64_t k = 0; k < t->n; k++) // evenly spaced, from the first element on
        t->kept[k] = element(y.type, trace.host, (int64_t)((double)k * (double)n / (double)t->n));
    double rms = n > bad ? sqrt(squares / (double)(n - bad)) : 0;
    const double stats[TRACE_STATS] = {(double)y.rows, (double)y.cols, rms, largest, (double)bad};
    memcpy(t->stats, stats, sizeof stats);
    trace.count++;
}

static void trace_free(void) {
    for (int64_t i = 0; i < trace.count; i++) free(trace.ops[i].kept);
    free(trace.ops), free(trace.host), text_free(&trace.label);
    memset(&trace, 0, sizeof trace);
}

void trace_start(const char *path, const char *label) {
    trace_free();
    snprintf(trace.path, sizeof trace.path, "%s", path);
    text_addf(&trace.label, "{\"label\":"), text_add_json_string(&trace.label, label, strlen(label));
    text_addf(&trace.label, "}");
    op_trace_set(trace_op, NULL);
}

void trace_where(const char *where) { snprintf(trace.where, sizeof trace.where, "%s", where); }

bool trace_finish(Err *e) {
    if (!trace.path[0]) return true;
    op_trace_set(NULL, NULL);
    TensorOut *out = alloc_or_die(2 * (size_t)trace.count, sizeof *out, "the trace");
    char(*names)[220] = alloc_or_die((size_t)trace.count, sizeof *names, "the trace");
    for (int64_t i = 0; i < trace.count; i++) {
        const TracedOp *t = &trace.ops[i];
        snprintf(names[i], sizeof names[i], "%s.stats", t->name);
        out[2 * i] = (TensorOut){.name = t->name, .type = FT_F32, .dims = 1, .shape = {t->n}, .data = t->kept};
        out[2 * i + 1] = (TensorOut){names[i], FT_F64, 1, {TRACE_STATS}, t->stats};
    }
    if (trace.lost)
        note("the trace is full: %" PRId64 " ops after the first %" PRId64 " are not in it", trace.lost, trace.count);
    bool ok = tensors_write_with(trace.path, trace.label.p, out, 2 * trace.count, e);
    free(names), free(out);
    trace_free();
    return ok;
}

// One op of an open trace file.
typedef struct FileOp {
    const char *name; // without the number
    double stats[TRACE_STATS];
    float *kept;
    int64_t n;
} FileOp;

static bool trace_read(const TensorFile *f, int64_t op, FileOp *out, Err *e) {
    const Tensor *kept = &f->tensors[2 * op], *stats = kept + 1;
    size_t n = strlen(kept->name);
    bool ok =
        n > 7 && kept->name[6] == '.' && !strncmp(stats->name, kept->name, n) && !strcmp(stats->name + n, ".stats");
    ok = ok && kept->type == FT_F32 && kept->dims == 1 && kept->elements <= TRACE_KEPT;
    ok = ok && stats->type == FT_F64 && stats->dims == 1 && stats->elements == TRACE_STATS;
    if (!ok)
        return err_set(e, "E-ST-10", AT(.file = f->path, .tensor = kept->name),
                       "expected a sampled op, F32 of at most %d elements, and its stats; found another tensor; do: %s",
                       TRACE_KEPT, "give files written by --trace");
    memcpy(out->stats, stats->data, sizeof out->stats);
    out->name = kept->name + 7, out->n = kept->elements;
    tensor_to_f32(kept, 0, out->n, out->kept);
    return true;
}

// |b - a| / |a|. Non-finite elements must be the same in both, or the difference is infinite.
static double relative_l2(const FileOp *a, const FileOp *b) {
    double diff = 0, norm = 0;
    for (int64_t i = 0; i < a->n; i++) {
        double x = (double)a->kept[i], y = (double)b->kept[i];
        if (isfinite(x) && isfinite(y)) diff += (y - x) * (y - x), norm += x * x;
        else if (!(isnan(x) && isnan(y)) && x != y) return INFINITY;
    }
    return diff == 0 ? 0 : norm == 0 ? INFINITY : sqrt(diff / norm);
}

static void print_traced(const char *file, const FileOp *o) {
    printf("  %s: [%.0f, %.0f], rms %.6g, largest %.6g, %.0f not finite; first elements", file, o->stats[0],
           o->stats[1], o->stats[2], o->stats[3], o->stats[4]);
    for (int64_t i = 0; i < o->n && i < 4; i++) printf(" %.7g", (double)o->kept[i]);
    printf("\n");
}

static bool trace_compare(const TensorFile *fa, const TensorFile *fb, FileOp *a, FileOp *b, double limit, bool *same,
                          Err *e) {
    int64_t ops_a = fa->count / 2, ops_b = fb->count / 2, ops = ops_a < ops_b ? ops_a : ops_b, worst_op = 0;
    double worst = 0;
    *same = false;
    for (int64_t i = 0; i < ops; i++) {
        if (!trace_read(fa, i, a, e) || !trace_read(fb, i, b, e)) return false;
        bool name = !strcmp(a->name, b->name), shape = a->stats[0] == b->stats[0] && a->stats[1] == b->stats[1];
        shape = shape && a->n == b->n;
        double error = name && shape ? relative_l2(a, b) : INFINITY;
        if (error > worst) worst = error, worst_op = i;
        if (error <= limit) continue;
        if (!name)
            printf("op %" PRId64 " is another op: %s and %s\n", i, quoted(a->name, strlen(a->name)),
                   quoted(b->name, strlen(b->name)));
        else if (!shape) printf("op %" PRId64 ", %s, has another shape\n", i, quoted(a->name, strlen(a->name)));
        else
            printf("op %" PRId64 ", %s, is the first to differ: relative L2 %.3g, limit %.3g\n", i,
                   quoted(a->name, strlen(a->name)), error, limit);
        print_traced(fa->path, a), print_traced(fb->path, b);
        printf("  the %" PRId64 " ops before it agree\n", i);
        return true;
    }
    if (ops_a != ops_b) {
        printf("the first %" PRId64 " ops agree; then %s ends, and the other goes on for %" PRId64 "\n", ops,
               ops_a < ops_b ? fa->path : fb->path, ops_a < ops_b ? ops_b - ops : ops_a - ops);
        return true;
    }
    printf("all %" PRId64 " ops agree within %.3g", ops, limit);
    if (worst > 0)
        printf("; largest relative L2 %.3g, op %" PRId64 ", %s", worst, worst_op, fa->tensors[2 * worst_op].name + 7);
    printf("\n");
    return *same = true;
}

bool trace_diff(const char *path_a, const char *path_b, double limit, bool *same, Err *e) {
    TensorFile fa, fb;
    if (!tensors_open(&fa, path_a, e)) return false;
    if (!tensors_open(&fb, path_b, e)) {
        tensors_close(&fa);
        return false;
    }
    FileOp a = {.kept = alloc_or_die(TRACE_KEPT, sizeof(float), "traces")}, b = a;
    b.kept = alloc_or_die(TRACE_KEPT, sizeof(float), "traces");
    bool ok = trace_compare(&fa, &fb, &a, &b, limit, same, e);
    free(a.kept), free(b.kept);
    tensors_close(&fa), tensors_close(&fb);
    return ok;
}
