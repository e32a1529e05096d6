// base.c - the ground floor at work: UTF-8, growing text, errors and warnings, notes, a progress line, the ends of the program.
//
// What it is:  the one place that knows the form of a message (the rules stand above err_set in base.h), counts
//              warnings, maps error codes to exit codes, and ends the program when it must (out of memory, a bug).
// What it is not: a log of training steps, or a place that decides what is an error.
// Read before: base.h.  Read next: ops.h.
#define _GNU_SOURCE
#include "base.h"
#include <float.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

// ----------------------------------------------------------------------------------------------------------- UTF-8

// Unicode 15, table 3-7: what a lead byte asks for. Zero trailing bytes: it is no lead byte.
typedef struct Lead {
    int trail;               // continuation bytes that follow
    unsigned char low, high; // range of the first of them (the others: 80..BF)
} Lead;
static Lead lead_of(unsigned char c) {
    if (c >= 0xc2 && c <= 0xdf) return (Lead){1, 0x80, 0xbf};
    if (c == 0xe0) return (Lead){2, 0xa0, 0xbf}; // below: an overlong form
    if (c == 0xed) return (Lead){2, 0x80, 0x9f}; // above: a surrogate
    if (c >= 0xe1 && c <= 0xef) return (Lead){2, 0x80, 0xbf};
    if (c == 0xf0) return (Lead){3, 0x90, 0xbf}; // below: an overlong form
    if (c >= 0xf1 && c <= 0xf3) return (Lead){3, 0x80, 0xbf};
    if (c == 0xf4) return (Lead){3, 0x80, 0x8f}; // above: beyond U+10FFFF
    return (Lead){0, 0, 0};
}

// How many of the lead byte's continuation bytes stand, well-formed, behind text[0] (at most `lead.trail`).
static int trailing(const unsigned char *text, size_t len, Lead lead) {
    int k = 0;
    while (k < lead.trail && (size_t)k + 1 < len) {
        unsigned char c = text[k + 1];
        if (k == 0 ? c < lead.low || c > lead.high : c < 0x80 || c > 0xbf) break;
        k++;
    }
    return k;
}

uint64_t bytes_hash(const void *bytes, size_t len) {
    uint64_t h = UINT64_C(0xCBF29CE484222325);
    for (const uint8_t *p = bytes, *end = p + len; p < end; p++) h = (h ^ *p) * UINT64_C(0x100000001B3);
    return h;
}

int32_t utf8_next(const char *text, size_t len, size_t *pos) {
    const unsigned char *p = (const unsigned char *)text + *pos;
    if (p[0] < 0x80) {
        ++*pos;
        return p[0];
    }
    Lead lead = lead_of(p[0]);
    int k = trailing(p, len - *pos, lead);
    *pos += (size_t)k + 1; // a broken sequence ends before the first byte that cannot continue it
    if (!lead.trail || k < lead.trail) return -1;
    int32_t code = p[0] & (0x3f >> lead.trail);
    for (int i = 1; i <= k; i++) code = code << 6 | (p[i] & 0x3f);
    return code;
}

size_t utf8_put(char out[4], uint32_t c) {
    CHECK(c <= 0x10ffff && (c < 0xd800 || c > 0xdfff), "U+%04X is no character", c);
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    size_t n = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (size_t i = n - 1; i > 0; i--, c >>= 6) out[i] = (char)(0x80 | (c & 0x3f));
    out[0] = (char)((0xf00u >> n & 0xf0u) | c); // C0, E0, F0 for 2, 3, 4 bytes
    return n;
}

bool utf8_valid(const char *text, size_t len, size_t *bad_at) {
    size_t pos = 0;
    while (pos < len) {
        uint64_t eight;
        if (len - pos >= 8 && (memcpy(&eight, text + pos, 8), !(eight & UINT64_C(0x8080808080808080)))) {
            pos += 8; // eight bytes of ASCII at once
            continue;
        }
        size_t start = pos;
        if (utf8_next(text, len, &pos) < 0) {
            if (bad_at) *bad_at = start;
            return false;
        }
    }
    return true;
}

size_t utf8_complete(const char *text, size_t len) {
    const unsigned char *p = (const unsigned char *)text;
    for (size_t back = 1; back <= 3 && back <= len; back++) {
        Lead lead = lead_of(p[len - back]);
        if (lead.trail) // cut only what could still become a character
            return (int)back <= lead.trail && trailing(p + len - back, back, lead) == (int)back - 1 ? len - back : len;
        if (p[len - back] < 0x80 || p[len - back] > 0xbf) break;
    }
    return len;
}

// ------------------------------------------------------------------------------------------------------------ text

static void text_reserve(Text *t, size_t more) {
    size_t want = t->len + more + 1;
    CHECK(want > t->len, "text of %zu + %zu bytes", t->len, more);
    if (want <= t->cap) return;
    t->cap = want > 2 * t->cap ? (want < 64 ? 64 : want) : 2 * t->cap;
    t->p = grow_or_die(t->p, t->cap, 1, "text");
}

void text_add(Text *t, const char *bytes, size_t len) {
    text_reserve(t, len);
    if (len) memcpy(t->p + t->len, bytes, len);
    t->len += len, t->p[t->len] = 0;
}

void text_addf(Text *t, const char *fmt, ...) {
    va_list args, again;
    va_start(args, fmt);
    va_copy(again, args);
    text_reserve(t, 64);
    int n = vsnprintf(t->p + t->len, t->cap - t->len, fmt, args);
    CHECK(n >= 0, "text_addf cannot format");
    if ((size_t)n >= t->cap - t->len) {
        text_reserve(t, (size_t)n);
        vsnprintf(t->p + t->len, t->cap - t->len, fmt, again);
    }
    t->len += (size_t)n;
    va_end(again);
    va_end(args);
}

void text_free(Text *t) {
    free(t->p);
    *t = (Text){0};
}

void text_add_json_string(Text *t, const char *bytes, size_t len) {
    static const char short_for[] = "\bb\tt\nn\ff\rr\"\"\\\\"; // pairs: the byte, its letter
    text_add(t, "\"", 1);
    for (size_t pos = 0; pos < len;) {
        size_t start = pos;
        unsigned char c = (unsigned char)bytes[pos];
        while (pos < len && c >= 0x20 && c < 0x80 && c != '"' && c != '\\')
            if (++pos < len) c = (unsigned char)bytes[pos];
        if (pos > start) {
            text_add(t, bytes + start, pos - start);
        } else if (c >= 0x80) {
            if (utf8_next(bytes, len, &pos) < 0) text_add(t, "\xef\xbf\xbd", 3);
            else text_add(t, bytes + start, pos - start);
        } else {
            const char *s = short_for;
            while (*s && (unsigned char)*s != c) s += 2;
            if (*s && c) text_addf(t, "\\%c", s[1]);
            else text_addf(t, "\\u%04x", c);
            pos++;
        }
    }
    text_add(t, "\"", 1);
}

void text_add_base64(Text *t, const uint8_t *p, size_t n) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t i = 0; i < n; i += 3) {
        uint32_t v = (uint32_t)p[i] << 16 | (i + 1 < n ? (uint32_t)p[i + 1] << 8 : 0) | (i + 2 < n ? p[i + 2] : 0);
        char four[4] = {digits[v >> 18], digits[v >> 12 & 63], i + 1 < n ? digits[v >> 6 & 63] : '=',
                        i + 2 < n ? digits[v & 63] : '='};
        text_add(t, four, 4);
    }
}

// %.17g always reads back; below it, the first precision that does is the shortest. 15 digits are always enough to
// print what was written with 15, so the search begins there, but for subnormals: they hold fewer digits.
static int shortest(char *out, size_t size, double v) {
    int digits = fabs(v) < DBL_MIN ? 1 : 15, n;
    do n = snprintf(out, size, "%.*g", digits, v);
    while (strtod(out, NULL) != v && digits++ < 17);
    return n;
}

void text_add_json_number(Text *t, double v) {
    CHECK(isfinite(v), "JSON has no %f", v);
    char digits[40];
    int n = shortest(digits, sizeof digits, v);
    text_add(t, digits, (size_t)n);
}

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

void text_add_clean(Text *t, const char *bytes, size_t len, const char *allowed) {
    for (size_t pos = 0, start = 0; pos < len; start = pos) {
        int32_t c = utf8_next(bytes, len, &pos);
        bool control = c < 0x20 || (c >= 0x7f && c < 0xa0); // ill-formed bytes (-1) count as such
        if (!control || (c > 0 && c < 0x20 && strchr(allowed, c))) text_add(t, bytes + start, pos - start);
        else
            for (; start < pos; start++) text_addf(t, "\\x%02X", (unsigned char)bytes[start]);
    }
}

// A message is one line: control characters that came in through a path or an argument are shown; UTF-8 stays.
static void add_clean(Text *t, const char *text) { text_add_clean(t, text, strlen(text), ""); }

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

// ------------------------------------------------------------------------------------------------------------ signals

static volatile sig_atomic_t stop_asked;
static volatile time_t stop_asked_at; // set before stop_asked, read in the handler only
static void on_stop(int signal_number) {
    (void)signal_number;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (stop_asked && now.tv_sec - stop_asked_at <= 5) _exit(EXIT_STOPPED);
    stop_asked_at = now.tv_sec, stop_asked = 1;
}
void stop_on_signals(void) {
    struct sigaction a = {.sa_handler = on_stop};
    sigemptyset(&a.sa_mask);
    sigaction(SIGINT, &a, NULL), sigaction(SIGTERM, &a, NULL);
}
bool stop_requested(void) { return stop_asked; }
