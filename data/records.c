// records.c - files of records: JSON lines, or one JSON array.
//
// What it is:  a file of any size cut into the texts of its records, in one pass and in the memory of the longest of
//              them. A file whose first character is [ is an array; its elements are found by counting brackets outside of
//              strings, and each is parsed by itself, so that no tree of the whole ever exists.
// What it is not: what a record says (forms.c), or pictures and ids (samples.c).
// Read before: surgr1.h, section data/records.c; io/json.c.  Read next: forms.c.
#include "../surgr1.h"
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

// ---------------------------------------------------------------------------------------------------------- source
// What one file looks like while we hold it open: it must look the same at the end.
typedef struct Stamp {
    off_t size;
    struct timespec changed;
} Stamp;

static bool stamp(int fd, Stamp *s) {
    struct stat st;
    if (fstat(fd, &st) || !S_ISREG(st.st_mode)) return false;
    s->size = st.st_size, s->changed = st.st_mtim;
    return true;
}

// One buffer holds the longest piece, its end, and a byte more that shows it to be too long.
typedef struct Source {
    int fd;
    const char *path;
    Sha256 *hash;
    Stamp before;
    char *buffer;
    size_t cap, from, have; // [from, have) is not yet handed over
    int64_t total;          // bytes read
    bool ended;             // the file is
} Source;

static bool source_open(Source *s, const char *path, Sha256 *hash, Err *e) {
    *s = (Source){.path = path, .hash = hash, .cap = (size_t)LIMIT_JSONL_LINE_BYTES + 3};
    s->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY); // a FIFO must not block before it is refused
    if (s->fd < 0) {
        const char *why = errno == ENOENT ? "no such file" : errno == EACCES ? "permission denied" : "an error";
        return err_set(e, "E-IO-01", AT(.file = path, BYTE(0)),
                       "expected a readable file; found %s (%d); do: check the path", why, errno);
    }
    bool ok = true;
    if (!stamp(s->fd, &s->before))
        ok = err_set(e, "E-IO-02", AT(.file = path, BYTE(0)),
                     "expected a regular file; found a folder or a device; do: name a file of records");
    else if (s->before.size > LIMIT_JSONL_BYTES)
        ok = err_set(e, "E-JS-01", AT(.file = path, BYTE(0)),
                     "expected at most %lld bytes of records; found %lld; do: split the file",
                     (long long)LIMIT_JSONL_BYTES, (long long)s->before.size);
    if (ok) s->buffer = alloc_or_die(s->cap, 1, "a record of a file");
    else close(s->fd);
    return ok;
}

// Reads on behind what is there; what is not yet handed over moves to the front. A buffer that is full stays so.
static bool source_more(Source *s, Err *e) {
    if (s->from) {
        memmove(s->buffer, s->buffer + s->from, s->have - s->from);
        s->have -= s->from, s->from = 0;
    }
    if (s->have == s->cap || s->ended) return true;
    ssize_t got;
    do got = read(s->fd, s->buffer + s->have, s->cap - s->have);
    while (got < 0 && errno == EINTR);
    if (got < 0)
        return err_set(e, "E-IO-03", AT(.file = s->path, BYTE(s->total)),
                       "expected to read on; found a read error (%d); do: check the disk", errno);
    s->ended = got == 0;
    if (s->hash && got) sha256_add(s->hash, s->buffer + s->have, (size_t)got);
    s->have += (size_t)got, s->total += got;
    return true;
}

static bool source_close(Source *s, bool ok, Err *e) {
    Stamp after = {0};
    if (ok && (!stamp(s->fd, &after) || s->total != s->before.size || after.size != s->before.size ||
               after.changed.tv_sec != s->before.changed.tv_sec || after.changed.tv_nsec != s->before.changed.tv_nsec))
        ok = err_set(e, "E-IO-05", AT(.file = s->path, BYTE(s->total)),
                     "expected the file to stay as it is; found it changed while it was read; do: run again when it "
                     "is complete");
    free(s->buffer);
    close(s->fd);
    return ok;
}

static bool too_long(const Source *s, int64_t line, const char *what, Err *e) {
    return err_set(e, "E-JS-01", AT(.file = s->path, .line = line),
                   "expected at most %lld bytes %s; found more; do: check that this is a file of records",
                   (long long)LIMIT_JSONL_LINE_BYTES, what);
}

// ----------------------------------------------------------------------------------------------------------- lines
static bool hand_over(const Source *s, PieceCallback each, void *ctx, const char *line, size_t len, int64_t number,
                      Err *e) {
    size_t blank = 0;
    while (blank < len && (line[blank] == ' ' || line[blank] == '\t')) blank++;
    Piece p = {.text = line, .len = len, .number = number, .line = number, .col = 1};
    p.offset = s->total - (int64_t)(s->have - (size_t)(line - s->buffer));
    if (blank < len) return each(ctx, &p, e);
    warn("E-DS-11", AT(.file = s->path, .line = number),
         "expected one JSON object on every line; found a blank line; do: delete it (it is skipped)");
    return true;
}

static bool source_lines(Source *s, PieceCallback each, void *ctx, Err *e) {
    size_t scanned = 0; // bytes of this line that hold no end
    for (int64_t number = 1; !s->ended || s->from < s->have;) {
        char *start = s->buffer + s->from, *end = memchr(start + scanned, '\n', s->have - s->from - scanned);
        size_t len = end ? (size_t)(end - start) : s->have - s->from;
        if (!end && !s->ended && len < s->cap) { // the line goes on
            scanned = len;
            if (!source_more(s, e)) return false;
            continue;
        }
        size_t text = len && start[len - 1] == '\r' ? len - 1 : len;
        if (text > (size_t)LIMIT_JSONL_LINE_BYTES) return too_long(s, number, "on one line", e);
        if (number > LIMIT_JSONL_LINES)
            return err_set(e, "E-JS-01", AT(.file = s->path, .line = number),
                           "expected at most %lld lines; found more; do: split the file", (long long)LIMIT_JSONL_LINES);
        if (!hand_over(s, each, ctx, start, text, number++, e)) return false;
        s->from += len + (end ? 1 : 0), scanned = 0;
    }
    return true;
}

// ----------------------------------------------------------------------------------------------------------- array
// Walks from `from` on, byte by byte, keeping count of lines.
typedef struct Walk {
    Source *s;
    size_t at; // in the buffer, counted from s->from
    int64_t line, line_start;
    Err *e;
    bool failed;
} Walk;

static int64_t walk_offset(const Walk *w) { // in the file
    return w->s->total - (int64_t)(w->s->have - w->s->from) + (int64_t)w->at;
}
static int64_t walk_col(const Walk *w) { return walk_offset(w) - w->line_start + 1; }

// The byte at the walker, or -1 at the end of the file, on an error, and when a piece is longer than the buffer.
static int walk_peek(Walk *w) {
    while (w->s->from + w->at >= w->s->have) {
        bool full = w->s->have - w->s->from == w->s->cap;
        if (w->failed || w->s->ended || full) return -1;
        if (!source_more(w->s, w->e)) w->failed = true;
    }
    return (unsigned char)w->s->buffer[w->s->from + w->at];
}

static void walk_on(Walk *w) {
    if (w->s->buffer[w->s->from + w->at] == '\n') w->line++, w->line_start = walk_offset(w) + 1;
    w->at++;
}

static void walk_drop(Walk *w) { w->s->from += w->at, w->at = 0; } // what lies behind is done with

static int walk_space(Walk *w) { // the next byte that is no space
    for (int c;; walk_on(w), walk_drop(w))
        if ((c = walk_peek(w)) != ' ' && c != '\t' && c != '\r' && c != '\n') return c;
}

static bool walk_fails(Walk *w, const char *code, const char *expected, const char *todo) {
    int c = walk_peek(w);
    char byte = (char)c;
    return err_set(w->e, code, AT(.file = w->s->path, .line = w->line, .col = walk_col(w)),
                   "expected %s; found %s; do: %s", expected, c < 0 ? "the end of the file" : quoted(&byte, 1), todo);
}

// One element: up to the comma or bracket that ends it, outside of strings and inner brackets. Whether it is good JSON
// is for the parser to say. w->at is its length afterwards.
static bool walk_element(Walk *w, int64_t line) {
    bool in_string = false;
    size_t depth = 0;
    for (int c; (c = walk_peek(w)) >= 0; walk_on(w)) {
        if (in_string) {
            if (c == '"') in_string = false;
            if (c == '\\' && (walk_on(w), walk_peek(w) < 0)) break;
        } else if (c == '"') in_string = true;
        else if (c == '[' || c == '{') depth++;
        else if (depth && (c == ']' || c == '}')) depth--;
        else if (!depth && (c == ',' || c == ']')) return true;
        if (w->at > (size_t)LIMIT_JSONL_LINE_BYTES) break;
    }
    if (w->failed) return false;
    if (w->at > (size_t)LIMIT_JSONL_LINE_BYTES) return too_long(w->s, line, "in one element of the array", w->e);
    return walk_fails(w, "E-JS-04", "the ] that closes the array of records", "copy the file again, it was cut");
}

static bool source_array(Walk *w, PieceCallback each, void *ctx) {
    walk_on(w), walk_drop(w); // the [
    if (walk_space(w) != ']') {
        for (int64_t number = 1;; number++) {
            int c = walk_space(w);
            if (c < 0 || c == ',' || c == ']')
                return walk_fails(w, "E-JS-04", "a record", "remove the comma in front of it");
            Piece p = {.number = number, .line = w->line, .col = walk_col(w), .offset = walk_offset(w)};
            if (!walk_element(w, p.line)) return false;
            if (number > LIMIT_JSONL_LINES) return walk_fails(w, "E-JS-01", "fewer records", "split the file");
            p.text = w->s->buffer + w->s->from, p.len = w->at;
            while (p.len && strchr(" \t\r\n", p.text[p.len - 1]) && p.text[p.len - 1]) p.len--;
            if (p.len > (size_t)LIMIT_JSONL_LINE_BYTES)
                return too_long(w->s, p.line, "in one element of the array", w->e);
            if (!each(ctx, &p, w->e)) return false;
            walk_drop(w);
            c = walk_peek(w); // , or ]
            if (c == ']') break;
            walk_on(w), walk_drop(w);
        }
    }
    walk_on(w), walk_drop(w); // the ]
    if (walk_space(w) >= 0) return walk_fails(w, "E-JS-04", "nothing behind the array", "remove what follows");
    return !w->failed;
}

bool pieces_read(const char *path, Sha256 *hash, PieceCallback each, void *ctx, Err *e) {
    Source s;
    if (!source_open(&s, path, hash, e)) return false;
    Walk w = {.s = &s, .line = 1, .e = e};
    bool ok = source_more(&s, e), bom = false;
    if (ok &&
        walk_peek(&w) == 0xEF) { // a byte order mark in front of an array is the parser's "skipped with a warning"
        while (s.have < 3 && !s.ended && ok) ok = source_more(&s, e);
        bom = ok && s.have >= 3 && !memcmp(s.buffer, "\xEF\xBB\xBF", 3);
    }
    size_t first = bom ? 3 : 0;
    while (ok && first < s.have && strchr(" \t\r\n", s.buffer[first]) && s.buffer[first]) first++;
    if (ok && first < s.have && s.buffer[first] == '[') {
        if (bom) {
            warn("E-JS-02", AT(.file = path, BYTE(0)),
                 "expected UTF-8 without a byte order mark; found one; do: save the file as UTF-8 without BOM");
            s.from = 3, w.line_start = 3;
        }
        (void)walk_space(&w);
        ok = source_array(&w, each, ctx);
    } else ok = ok && source_lines(&s, each, ctx, e);
    return source_close(&s, ok, e);
}

typedef struct LineReader {
    LineCallback each;
    void *ctx;
} LineReader;

static bool read_piece_as_line(void *ctx, const Piece *p, Err *e) {
    LineReader *l = ctx;
    return l->each(l->ctx, p->text, p->len, p->line, e);
}

bool lines_read(const char *path, LineCallback each, void *ctx, Err *e) {
    Source s;
    LineReader l = {each, ctx};
    return source_open(&s, path, NULL, e) && source_close(&s, source_lines(&s, read_piece_as_line, &l, e), e);
}

// ----------------------------------------------------------------------------------------------------------- files
// The ids of a file: their text, one zero-ended piece after another, and an open-addressing table of (offset + 1).
typedef struct IdSet {
    Text text;
    size_t *slots, n, cap;
} IdSet;

static size_t *id_slot(const IdSet *s, const char *id) {
    size_t i = (size_t)bytes_hash(id, strlen(id)) & (s->cap - 1);
    while (s->slots[i] && strcmp(s->text.p + s->slots[i] - 1, id)) i = (i + 1) & (s->cap - 1);
    return &s->slots[i];
}

static bool id_add(IdSet *s, const char *id) { // false when it is there already
    if (2 * (s->n + 1) > s->cap) {
        free(s->slots);
        s->cap = s->cap ? 2 * s->cap : 1024;
        s->slots = alloc_or_die(s->cap, sizeof *s->slots, "the table of record ids");
        for (size_t at = 0; at < s->text.len; at += strlen(s->text.p + at) + 1) *id_slot(s, s->text.p + at) = at + 1;
    }
    size_t *slot = id_slot(s, id);
    if (*slot) return false;
    *slot = s->text.len + 1, s->n++;
    text_add(&s->text, id, strlen(id) + 1);
    return true;
}

typedef struct FileReader {
    const char *path;
    RecordOptions options;
    RecordCallback each;
    BadRecord bad;
    void *ctx;
    IdSet ids;
} FileReader;

static bool read_piece(void *ctx, const Piece *p, Err *e) {
    FileReader *f = ctx;
    Record r;
    Err own = {0};
    bool ok = record_parse_piece(&r, p, f->path, f->options, &own);
    if (ok && !id_add(&f->ids, r.id))
        ok = err_set(&own, "E-DS-03", AT(.file = f->path, .line = p->line, .field = "id"),
                     "expected each id once; found %s again; do: give every record its own id",
                     quoted(r.id, strlen(r.id)));
    ok = ok && f->each(f->ctx, &r, &own);
    record_free(&r);
    if (ok) return true;
    if (f->bad) return f->bad(f->ctx, &own), true;
    *e = own;
    return false;
}

bool records_read_all(const char *path, RecordOptions o, Sha256 *hash, RecordCallback each, BadRecord bad, void *ctx,
                      Err *e) {
    FileReader f = {.path = path, .options = o, .each = each, .bad = bad, .ctx = ctx};
    bool ok = pieces_read(path, hash, read_piece, &f, e);
    text_free(&f.ids.text);
    free(f.ids.slots);
    return ok;
}

bool records_read(const char *path, RecordCallback each, void *ctx, Err *e) {
    return records_read_all(path, (RecordOptions){0}, NULL, each, NULL, ctx, e);
}
