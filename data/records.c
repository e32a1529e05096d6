// records.c - conversations from JSON lines.
//
// What it is:  the strict reader of the `messages` form: one JSON object a line, as Hugging Face datasets, ms-swift and
//              the batch services write it. Every rule refuses with file and line; nothing is repaired or cut.
// What it is not: the prompt. tokenizer.c turns a conversation into ids; pictures are opened by whoever runs it.
// Read before: surgr1.h, section data/records.c; io/json.c.  Read next: generate.c.
//
//   {"messages": [...], "images": ["a.png"], "id": "7"}        "custom_id" and {"body": {...}} as batch services nest
//   it content: "text with <image> marks"                         as many marks as images; they go in in this order
//   content: [{"type": "text", "text": "..."},
//             {"type": "image", "image": "a.png"}]             also "path" or "url"; without one: the next of "images"
//             {"type": "image_url", "image_url": {"url": "a.png"}}
//   images:  ["a.png"] or [{"path": "a.png"}]
//
// In a content list the text parts are plain: <image> marks count only in content strings.
#include "../surgr1.h"
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

// ----------------------------------------------------------------------------------------------------------- lines
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

static bool hand_over(const char *path, LineCallback each, void *ctx, const char *line, size_t len, int64_t number,
                      Err *e) {
    if (len && line[len - 1] == '\r') len--;
    size_t blank = 0;
    while (blank < len && (line[blank] == ' ' || line[blank] == '\t')) blank++;
    if (blank < len) return each(ctx, line, len, number, e);
    warn("E-DS-11", AT(.file = path, .line = number),
         "expected one JSON object on every line; found a blank line; do: delete it (it is skipped)");
    return true;
}

static bool lines_of(int fd, const char *path, LineCallback each, void *ctx, Err *e) {
    Stamp before = {0}, after = {0};
    if (!stamp(fd, &before))
        return err_set(e, "E-IO-02", AT(.file = path, BYTE(0)),
                       "expected a regular file; found a folder or a device; do: name a .jsonl file");
    if (before.size > LIMIT_JSONL_BYTES)
        return err_set(e, "E-JS-01", AT(.file = path, BYTE(0)),
                       "expected at most %lld bytes of JSON lines; found %lld; do: split the file",
                       (long long)LIMIT_JSONL_BYTES, (long long)before.size);
    // One buffer holds the longest line, its end, and a byte more that shows it to be too long.
    size_t cap = (size_t)LIMIT_JSONL_LINE_BYTES + 3, have = 0, from = 0, scanned = 0;
    char *buffer = alloc_or_die(cap, 1, "a line of a JSONL file");
    int64_t number = 1, total = 0;
    bool ok = true, more = true;
    while (ok && (more || from < have)) {
        char *end = memchr(buffer + from + scanned, '\n', have - from - scanned);
        size_t len = end ? (size_t)(end - buffer) - from : have - from;
        if (!end && more && len < cap) { // the line goes on: make room and read
            scanned = len;
            if (from) memmove(buffer, buffer + from, len), have = len, from = 0;
            if (have < cap) {
                ssize_t got = read(fd, buffer + have, cap - have);
                if (got < 0 && errno == EINTR) continue;
                if (got < 0)
                    ok = err_set(e, "E-IO-03", AT(.file = path, BYTE(total)),
                                 "expected to read on; found a read error (%d); do: check the disk", errno);
                else if (got == 0) more = false;
                else have += (size_t)got, total += got;
                continue;
            }
        }
        size_t text = len && buffer[from + len - 1] == '\r' ? len - 1 : len;
        if (text > (size_t)LIMIT_JSONL_LINE_BYTES)
            ok =
                err_set(e, "E-JS-01", AT(.file = path, .line = number),
                        "expected at most %lld bytes on one line; found more; do: check that this is a JSON lines file",
                        (long long)LIMIT_JSONL_LINE_BYTES);
        else if (number > LIMIT_JSONL_LINES)
            ok = err_set(e, "E-JS-01", AT(.file = path, .line = number),
                         "expected at most %lld lines; found more; do: split the file", (long long)LIMIT_JSONL_LINES);
        else ok = hand_over(path, each, ctx, buffer + from, len, number++, e);
        from += len + (end ? 1 : 0), scanned = 0;
    }
    free(buffer);
    if (!ok) return false;
    if (!stamp(fd, &after) || total != before.size || after.size != before.size ||
        after.changed.tv_sec != before.changed.tv_sec || after.changed.tv_nsec != before.changed.tv_nsec)
        return err_set(e, "E-IO-05", AT(.file = path, BYTE(total)),
                       "expected the file to stay as it is; found it changed while it was read; do: run again when it "
                       "is complete");
    return true;
}

bool lines_read(const char *path, LineCallback each, void *ctx, Err *e) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY); // a FIFO must not block before it is refused
    if (fd < 0) {
        const char *why = errno == ENOENT ? "no such file" : errno == EACCES ? "permission denied" : "an error";
        return err_set(e, "E-IO-01", AT(.file = path, BYTE(0)),
                       "expected a readable file; found %s (%d); do: check the path", why, errno);
    }
    bool ok = lines_of(fd, path, each, ctx, e);
    close(fd);
    return ok;
}

// ---------------------------------------------------------------------------------------------------------- fields
static bool refuse(const Record *r, const Json *v, const char *code, const char *field, Err *e, const char *expected,
                   const char *found, const char *todo) {
    return err_set(e, code, json_at(&r->doc, v, field), "expected %s; found %s; do: %s", expected, found, todo);
}

static const char *json_kind(const Json *v) {
    static const char *const names[] = {"null", "false", "true", "a number", "a string", "an array", "an object"};
    return v ? names[v->type] : "nothing";
}

// Text of people, datasets and teachers: no NUL, no control characters but tab and newline.
static bool text_ok(const Record *r, const Json *v, const char *field, int64_t limit, Err *e) {
    char expected[80], found[40];
    if ((int64_t)v->len > limit) {
        snprintf(expected, sizeof expected, "at most %lld bytes of text", (long long)limit);
        snprintf(found, sizeof found, "%zu", v->len);
        return refuse(r, v, "E-DS-05", field, e, expected, found, "shorten it");
    }
    for (size_t i = 0; i < v->len; i++) {
        unsigned char c = (unsigned char)v->str[i];
        if ((c >= 0x20 && c != 0x7F) || c == '\t' || c == '\n') continue;
        snprintf(found, sizeof found, "byte 0x%02X", c);
        return refuse(r, v, "E-DS-05", field, e, "text without control characters", found, "remove it");
    }
    return true;
}

// A relative path of plain parts: nothing that leads out of the data folder. (open_beneath enforces it once more.)
static bool path_ok(const Record *r, const Json *v, const char *field, Err *e) {
    const char *p = v->str;
    size_t len = v->len, part = 0;
    bool ok = len > 0 && (int64_t)len <= LIMIT_PATH_BYTES && !memchr(p, 0, len) && !memchr(p, '\\', len);
    for (size_t i = 0; ok && i <= len; i++) {
        if (i < len && p[i] != '/') continue;
        size_t n = i - part;
        ok = n > 0 && !(n == 1 && p[part] == '.') && !(n == 2 && p[part] == '.' && p[part + 1] == '.');
        part = i + 1;
    }
    for (size_t i = 0; ok && i + 2 < len; i++) ok = memcmp(p + i, "://", 3) != 0 && (i || memcmp(p, "data:", 5) != 0);
    if (ok) return true;
    return refuse(r, v, "E-DS-04", field, e, "a path inside the data folder", quoted(p, len),
                  "give plain paths relative to the file's folder");
}

// ---------------------------------------------------------------------------------------------------------- images
// The path of a picture: a string, or an object with one under "path", "image" or "url". NULL when there is none.
static const Json *image_path(const Json *v) {
    static const char *const keys[] = {"image", "path", "url", "image_url"};
    if (!v || v->type == JSON_STRING) return v;
    for (size_t k = 0; k < sizeof keys / sizeof *keys; k++) {
        const Json *inner = json_get(v, keys[k]);
        if (inner && inner->type == JSON_OBJECT) inner = json_get(inner, "url");
        if (inner && inner->type == JSON_STRING) return inner;
    }
    return NULL;
}

static bool image_add(Record *r, const Json *at, const Json *path, const char *field, Err *e) {
    if (!path) return refuse(r, at, "E-DS-02", field, e, "an image with a path", json_kind(at), "name its file");
    if (r->n_images >= LIMIT_IMAGES)
        return refuse(r, at, "E-DS-02", field, e, "at most 16 images in one conversation", "more", "split it");
    if (!path_ok(r, path, field, e)) return false;
    r->images[r->n_images++] = (char *)(uintptr_t)path->str;
    return true;
}

int split_image_marks(const char *text, size_t len, int *image, Part *parts) {
    static const char mark[] = "<image>";
    const size_t m = sizeof mark - 1;
    int n = 0;
    size_t from = 0;
    for (size_t i = 0; i + m <= len;) {
        if (memcmp(text + i, mark, m) != 0) {
            i++;
            continue;
        }
        if (i > from) {
            if (parts) parts[n] = (Part){.image = -1, .text = text + from, .len = i - from};
            n++;
        }
        if (parts) parts[n] = (Part){.image = *image};
        n++, ++*image, i += m, from = i;
    }
    if (from < len) {
        if (parts) parts[n] = (Part){.image = -1, .text = text + from, .len = len - from};
        n++;
    }
    return n;
}

// --------------------------------------------------------------------------------------------------------- records
typedef struct Reader {
    Record *r;
    const Json *listed; // the next unused entry of "images"; NULL when there is none left
    bool has_list;
    Part *parts;
    int n_parts, listed_used;
} Reader;

static bool next_listed(Reader *d, const Json *at, const char *field, Err *e) {
    if (!d->listed)
        return refuse(d->r, at, "E-DS-02", field, e, "as many entries in \"images\" as image marks",
                      d->has_list ? "more marks than entries" : "a mark but no \"images\"",
                      "name a file for each mark");
    const Json *entry = d->listed;
    d->listed = entry->next;
    return image_add(d->r, entry, image_path(entry), "images", e);
}

static bool read_content(Reader *d, const Json *content, const char *field, int64_t limit, Err *e) {
    Record *r = d->r;
    if (content && content->type == JSON_STRING) {
        if (!text_ok(r, content, field, limit, e)) return false;
        int first = r->n_images, image = first;
        int n = split_image_marks(content->str, content->len, &image, d->parts + d->n_parts);
        for (; first < image; first++)
            if (!next_listed(d, content, field, e)) return false;
        d->n_parts += n;
        return true;
    }
    if (!content || content->type != JSON_ARRAY)
        return refuse(r, content ? content : r->doc.root, "E-DS-02", field, e, "a string or a list of parts",
                      json_kind(content), "write the text there");
    for (const Json *part = content->child; part; part = part->next) {
        const Json *type = json_get(part, "type"), *text = json_get(part, "text");
        if (type && json_is(type, "text") && text && text->type == JSON_STRING) {
            if (!text_ok(r, text, field, limit, e)) return false;
            d->parts[d->n_parts++] = (Part){.image = -1, .text = text->str, .len = text->len};
        } else if (type && (json_is(type, "image") || json_is(type, "image_url"))) {
            const Json *path = image_path(part);
            d->parts[d->n_parts++] = (Part){.image = r->n_images};
            if (!(path ? image_add(r, part, path, field, e) : next_listed(d, part, field, e))) return false;
        } else {
            return refuse(r, part, "E-DS-02", field, e, "a part of type \"text\" (with text) or \"image\"",
                          type && type->type == JSON_STRING ? quoted(type->str, type->len) : json_kind(part),
                          "write {\"type\": \"text\", \"text\": ...}");
        }
    }
    return true;
}

// Upper bound of the parts of all messages, so that one block holds them.
static size_t count_parts(const Json *messages) {
    size_t n = 0;
    for (const Json *m = messages->child; m; m = m->next) {
        const Json *content = json_get(m, "content");
        int image = 0;
        if (content && content->type == JSON_ARRAY) n += content->count;
        else if (content && content->type == JSON_STRING)
            n += (size_t)split_image_marks(content->str, content->len, &image, NULL);
    }
    return n;
}

static bool read_messages(Reader *d, const Json *messages, Err *e) {
    Record *r = d->r;
    const char *before = NULL;
    char field[64];
    for (const Json *m = messages->child; m; m = m->next) {
        Message *out = &r->messages[r->n];
        const Json *role = json_get(m, "role");
        snprintf(field, sizeof field, "messages[%d].role", r->n);
        bool system = json_is(role, "system"), user = json_is(role, "user"), assistant = json_is(role, "assistant");
        if (!system && !user && !assistant)
            return refuse(r, role ? role : m, "E-DS-02", field, e, "\"system\", \"user\" or \"assistant\"",
                          role && role->type == JSON_STRING ? quoted(role->str, role->len) : json_kind(role),
                          "name who speaks");
        // system first and once, then user and assistant in turn, user first
        bool legal = system ? !before : user ? !before || strcmp(before, "user") : before && !strcmp(before, "user");
        if (!legal)
            return refuse(r, role, "E-DS-02", field, e,
                          "an optional system turn, then user and assistant in turn, the user first",
                          quoted(role->str, role->len), "put the turns in order");
        snprintf(field, sizeof field, "messages[%d].content", r->n);
        out->role = before = role->str;
        out->parts = d->parts + d->n_parts;
        int first = d->n_parts, pictures = r->n_images;
        if (!read_content(d, json_get(m, "content"), field, assistant ? 65536 : LIMIT_QUESTION_BYTES, e)) return false;
        out->n_parts = d->n_parts - first;
        if (!user && r->n_images > pictures)
            return refuse(r, m, "E-DS-02", field, e, "pictures in user turns only", "one in another turn",
                          "move it to the question");
        size_t bytes = 0;
        for (int k = 0; k < out->n_parts; k++) bytes += out->parts[k].image < 0 ? out->parts[k].len : 1;
        if (!bytes && !system)
            return refuse(r, m, "E-DS-05", field, e, "a turn that says something", "an empty one",
                          "fill it or drop it");
        r->n++;
    }
    if (before && strcmp(before, "system")) return true;
    return refuse(r, messages, "E-DS-02", "messages", e, "at least one user turn", "none", "add the question");
}

static bool read_id(Record *r, const Json *root, int64_t line, Err *e) {
    const Json *id = json_get(root, "id") ? json_get(root, "id") : json_get(root, "custom_id");
    if (!id) {
        snprintf(r->id, sizeof r->id, "%lld", (long long)line);
        return true;
    }
    if (!(id->type == JSON_STRING || (id->type == JSON_NUMBER && id->integer)))
        return refuse(r, id, "E-DS-02", "id", e, "a string or an integer", json_kind(id), "write a string");
    if (id->len < 1 || id->len > 256 || memchr(id->str, 0, id->len))
        return refuse(r, id, "E-DS-03", "id", e, "an id of 1 to 256 bytes", quoted(id->str, id->len), "choose another");
    memcpy(r->id, id->str, id->len);
    r->id[id->len] = 0;
    return true;
}

static bool read_record(Record *r, int64_t line, Err *e) {
    const Json *root = r->doc.root;
    if (root->type != JSON_OBJECT)
        return refuse(r, root, "E-DS-01", NULL, e, "a JSON object", json_kind(root), "write one record a line");
    if (!read_id(r, root, line, e)) return false;
    const Json *body = json_get(root, "body"), *holder = body && body->type == JSON_OBJECT ? body : root;
    const Json *messages = json_get(holder, "messages"), *images = json_get(holder, "images");
    if (!messages || messages->type != JSON_ARRAY || !messages->count)
        return refuse(r, messages ? messages : root, "E-DS-02", "messages", e, "a list of turns", json_kind(messages),
                      "see the formats in data/records.c");
    if (images && images->type != JSON_ARRAY && images->type != JSON_NULL)
        return refuse(r, images, "E-DS-02", "images", e, "a list of paths", json_kind(images), "write a list");
    const Json *objects = json_get(holder, "objects");
    if (objects && objects->type == JSON_OBJECT && objects->count)
        return refuse(r, objects, "E-DS-02", "objects", e, "names and boxes written out in the text",
                      "a table of objects", "replace its <ref-object> and <bbox> marks");
    Part *parts = alloc_or_die(count_parts(messages) + 1, sizeof *parts, "the parts of a record");
    r->messages = alloc_or_die(messages->count, sizeof *r->messages, "the messages of a record");
    r->images = alloc_or_die((size_t)LIMIT_IMAGES, sizeof *r->images, "the images of a record");
    r->messages[0].parts = parts; // where record_free looks for them
    Reader d = {.r = r, .parts = parts, .has_list = images && images->type == JSON_ARRAY};
    d.listed = d.has_list ? images->child : NULL;
    if (!read_messages(&d, messages, e)) return false;
    if (d.listed)
        return refuse(r, d.listed, "E-DS-02", "images", e, "an image mark in the text for every entry",
                      "more entries than marks", "add the <image> marks");
    return true;
}

bool record_parse(Record *r, const char *line, size_t len, const char *file, int64_t line_number, Err *e) {
    memset(r, 0, sizeof *r);
    JsonOptions options = {.refuse_duplicates = true, .first_line = (uint32_t)line_number};
    if (json_parse(&r->doc, line, len, file, options, e) && read_record(r, line_number, e)) return true;
    record_free(r);
    return false;
}

void record_free(Record *r) {
    if (r->messages) free((void *)(uintptr_t)r->messages[0].parts);
    free(r->messages);
    free(r->images);
    json_free(&r->doc);
    memset(r, 0, sizeof *r);
}

// ----------------------------------------------------------------------------------------------------------- files
// The ids of a file: their text, one zero-ended piece after another, and an open-addressing table of (offset + 1).
typedef struct IdSet {
    Text text;
    size_t *slots, n, cap;
} IdSet;

static uint64_t id_hash(const char *id) { // FNV-1a, 64 bits
    uint64_t h = 0xcbf29ce484222325u;
    for (; *id; id++) h = (h ^ (unsigned char)*id) * 0x100000001b3u;
    return h ^ h >> 32;
}

static size_t *id_slot(const IdSet *s, const char *id) {
    size_t i = (size_t)id_hash(id) & (s->cap - 1);
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
    RecordCallback each;
    BadRecord bad;
    void *ctx;
    IdSet ids;
} FileReader;

static bool read_line(void *ctx, const char *line, size_t len, int64_t number, Err *e) {
    FileReader *f = ctx;
    Record r;
    Err own = {0};
    bool ok = record_parse(&r, line, len, f->path, number, &own);
    if (ok && !id_add(&f->ids, r.id))
        ok = err_set(&own, "E-DS-03", AT(.file = f->path, .line = number, .field = "id"),
                     "expected each id once; found %s again; do: give every record its own id",
                     quoted(r.id, strlen(r.id)));
    ok = ok && f->each(f->ctx, &r, &own);
    record_free(&r);
    if (ok) return true;
    if (f->bad) return f->bad(f->ctx, &own), true;
    *e = own;
    return false;
}

bool records_read_all(const char *path, RecordCallback each, BadRecord bad, void *ctx, Err *e) {
    FileReader f = {.path = path, .each = each, .bad = bad, .ctx = ctx};
    bool ok = lines_read(path, read_line, &f, e);
    text_free(&f.ids.text);
    free(f.ids.slots);
    return ok;
}

bool records_read(const char *path, RecordCallback each, void *ctx, Err *e) {
    return records_read_all(path, each, NULL, ctx, e);
}
