// forms.c - one record of training data: from any of the usual forms to one conversation.
//
// What it is:  the strict reader of a JSON object that holds a conversation. The form is told by the fields
//              (README.md shows each); every form ends in the same messages, pictures and trained turns. Every rule
//              refuses with file and place; nothing is repaired or cut.
// What it is not: files (records.c), or the prompt (tokenizer.c makes the ids, samples.c the loss mask).
// Read before: surgr1.h, section data/forms.c; README.md.  Read next: records.c, samples.c.
//
// In a content list the text parts are plain: <image> marks count only in strings. <bbox> and <ref-object> are marks
// only beside "objects".
#define _GNU_SOURCE // memmem
#include "../surgr1.h"

typedef struct RecordText { // owned by the record
    struct RecordText *next;
    char text[];
} RecordText;

// ---------------------------------------------------------------------------------------------------------- fields
static bool refuse(const Record *r, const Json *v, const char *code, const char *field, Err *e, const char *expected,
                   const char *found, const char *todo) {
    return err_set(e, code, json_at(&r->doc, v, field), "expected %s; found %s; do: %s", expected, found, todo);
}

static const char *json_kind(const Json *v) {
    static const char *const names[] = {"null", "false", "true", "a number", "a string", "an array", "an object"};
    return v ? names[v->type] : "nothing";
}

static const Json *present(const Json *object, const char *key) { // null counts as absent: tables write it everywhere
    const Json *v = json_get(object, key);
    return v && v->type != JSON_NULL ? v : NULL;
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
static bool path_ok(const Record *r, const Json *v, const char *field, RecordOptions o, Err *e) {
    const char *p = v->str;
    size_t len = v->len, part = 0;
    bool data = len >= 5 && !memcmp(p, "data:", 5);
    if (data && o.data_images && !memchr(p, 0, len)) return true; // samples.c decodes it
    bool ok = len > 0 && (int64_t)len <= LIMIT_PATH_BYTES && !memchr(p, 0, len) && !data;
    if (ok && o.absolute_images && p[0] == '/') return true;
    ok = ok && !memchr(p, '\\', len);
    for (size_t i = 0; ok && i <= len; i++) {
        if (i < len && p[i] != '/') continue;
        size_t n = i - part;
        ok = n > 0 && !(n == 1 && p[part] == '.') && !(n == 2 && p[part] == '.' && p[part + 1] == '.');
        part = i + 1;
    }
    for (size_t i = 0; ok && i + 2 < len; i++) ok = memcmp(p + i, "://", 3) != 0;
    if (ok) return true;
    return refuse(r, v, "E-DS-04", field, e, "a path inside the data folder", quoted(p, len),
                  "give plain paths relative to the file's folder");
}

// ---------------------------------------------------------------------------------------------------------- reader
typedef struct Reader {
    Record *r;
    RecordOptions options;
    const Json *listed; // the next unused entry of "images" or "image"
    uint32_t left;      // how many there are
    bool has_list, has_objects;
    const Json *ref, *bbox, *picture; // next unused entries of "objects"; NULL when there is none left
    enum BoxFrame frame;              // of its boxes
    Part *parts;                      // of all messages, one after the other
    int n_parts, cap_parts, cap_messages, cap_boxes;
    int *first; // [r->n] the first part of each message
} Reader;

static void add_part(Reader *d, Part part) {
    if (d->n_parts == d->cap_parts) {
        d->cap_parts = d->cap_parts ? 2 * d->cap_parts : 8;
        d->parts = grow_or_die(d->parts, (size_t)d->cap_parts, sizeof *d->parts, "the parts of a record");
    }
    d->parts[d->n_parts++] = part;
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

static bool image_add(Reader *d, const Json *at, const Json *path, const char *field, Err *e) {
    Record *r = d->r;
    if (!path) return refuse(r, at, "E-DS-02", field, e, "an image with a path", json_kind(at), "name its file");
    if (r->n_images >= LIMIT_IMAGES)
        return refuse(r, at, "E-DS-02", field, e, "at most 16 images in one conversation", "more", "split it");
    if (!path_ok(r, path, field, d->options, e)) return false;
    r->images[r->n_images++] = (char *)(uintptr_t)path->str;
    return true;
}

static bool next_listed(Reader *d, const Json *at, const char *field, Err *e) {
    if (!d->left)
        return refuse(d->r, at, "E-DS-02", field, e, "as many entries in \"images\" as image marks",
                      d->has_list ? "more marks than entries" : "a mark but no \"images\"",
                      "name a file for each mark");
    const Json *entry = d->listed;
    d->listed = entry->next, d->left--;
    return image_add(d, entry, image_path(entry), "images", e);
}

// "images" or "image": a list of pictures, or one.
static bool read_images(Reader *d, const Json *holder, Err *e) {
    const Json *many = present(holder, "images"), *one = present(holder, "image"), *v = many ? many : one;
    if (many && one)
        return refuse(d->r, one, "E-DS-02", "image", e, "\"images\" or \"image\"", "both", "keep one of the two");
    if (!v) return true;
    if (v->type != JSON_ARRAY && v->type != JSON_STRING && v->type != JSON_OBJECT)
        return refuse(d->r, v, "E-DS-02", v->key, e, "a list of paths, or one path", json_kind(v), "write a list");
    d->has_list = true;
    d->listed = v->type == JSON_ARRAY ? v->child : v;
    d->left = v->type == JSON_ARRAY ? v->count : 1;
    return true;
}

// Pictures that no text has a place for stand before the first words of the user.
static bool images_in_front(Reader *d, Err *e) {
    Record *r = d->r;
    int user = 0, k = (int)d->left;
    if (!k || r->n_images) return true;
    while (user < r->n && strcmp(r->messages[user].role, "user")) user++;
    if (user == r->n) return true; // refused later
    while (d->left)
        if (!next_listed(d, d->listed, "images", e)) return false;
    int at = d->first[user], n = d->n_parts;
    for (int i = 0; i < k; i++) add_part(d, (Part){0});
    memmove(d->parts + at + k, d->parts + at, (size_t)(n - at) * sizeof *d->parts);
    for (int i = 0; i < k; i++) d->parts[at + i] = (Part){.image = i};
    r->messages[user].n_parts += k;
    for (int m = user + 1; m < r->n; m++) d->first[m] += k;
    for (int b = 0; b < r->n_boxes; b++)
        if (r->boxes[b].message == user) r->boxes[b].part += k;
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

// --------------------------------------------------------------------------------------------------------- objects
// {"ref": [names], "bbox": [[x1, y1, x2, y2]], "bbox_type": "real" | "norm1", "image_id": [pictures, from 0]}
static bool read_objects(Reader *d, const Json *holder, Err *e) {
    static const char *const lists[] = {"ref", "bbox", "image_id"};
    const Json *objects = present(holder, "objects"), *type, **next[] = {&d->ref, &d->bbox, &d->picture};
    Record *r = d->r;
    char field[40];
    if (!objects || objects->type != JSON_OBJECT) return true; // a column of somebody else's
    for (int k = 0; k < 3; k++) {
        const Json *v = present(objects, lists[k]);
        snprintf(field, sizeof field, "objects.%s", lists[k]);
        if (v && v->type != JSON_ARRAY)
            return refuse(r, v, "E-DS-02", field, e, "a list", json_kind(v), "write a list");
        *next[k] = v ? v->child : NULL;
        if (k == 1 && v && v->count > LIMIT_BOXES)
            return refuse(r, v, "E-DS-06", field, e, "at most 64 boxes", "more", "split the record");
    }
    d->has_objects = present(objects, "ref") || present(objects, "bbox");
    if ((d->ref || d->bbox) && !d->options.boxes)
        return refuse(r, objects, "E-DS-02", "objects", e, "names and boxes written out in the text",
                      "a table of objects", "replace its <ref-object> and <bbox> marks");
    type = present(objects, "bbox_type");
    d->frame = type && json_is(type, "norm1") ? BOX_NORM1 : BOX_ORIGINAL;
    if (type && d->frame != BOX_NORM1 && !json_is(type, "real"))
        return refuse(r, type, "E-DS-02", "objects.bbox_type", e, "\"real\" (pixels of the file) or \"norm1\"",
                      json_shown(type), "say in which frame the boxes are");
    return true;
}

static bool next_name(Reader *d, const Json *at, const char *field, Err *e) {
    const Json *v = d->ref;
    if (!v)
        return refuse(d->r, at, "E-DS-02", field, e, "as many entries in \"objects.ref\" as <ref-object> marks",
                      "more marks", "name each object");
    if (v->type != JSON_STRING || !v->len)
        return refuse(d->r, v, "E-DS-02", "objects.ref", e, "the name of an object", json_kind(v), "write its name");
    d->ref = v->next;
    if (!text_ok(d->r, v, "objects.ref", LIMIT_QUESTION_BYTES, e)) return false;
    add_part(d, (Part){.image = -1, .text = v->str, .len = v->len});
    return true;
}

static bool next_box(Reader *d, const Json *at, const char *field, Err *e) {
    Record *r = d->r;
    const Json *v = d->bbox, *c;
    if (!v)
        return refuse(r, at, "E-DS-02", field, e, "as many entries in \"objects.bbox\" as <bbox> marks", "more marks",
                      "give a box for each mark");
    BoxMark m = {.message = r->n, .part = d->n_parts - d->first[r->n], .image = -1, .frame = d->frame, .at = v};
    d->bbox = v->next;
    if (v->type != JSON_ARRAY || v->count != 4)
        return refuse(r, v, "E-DS-06", "objects.bbox", e, "a box of four numbers [x1, y1, x2, y2]", json_kind(v),
                      "write its left, top, right and bottom edge");
    int k = 0;
    for (c = v->child; c; c = c->next) {
        if (c->type != JSON_NUMBER)
            return refuse(r, c, "E-DS-06", "objects.bbox", e, "a number", json_shown(c), "write a number");
        m.box[k++] = c->number;
    }
    if (d->picture) {
        if (d->picture->type != JSON_NUMBER || !d->picture->integer || d->picture->i < 0 ||
            d->picture->i >= LIMIT_IMAGES)
            return refuse(r, d->picture, "E-DS-02", "objects.image_id", e, "the number of a picture, from 0",
                          json_shown(d->picture), "say whose box it is");
        m.image = (int)d->picture->i, d->picture = d->picture->next;
    }
    if (r->n_boxes == d->cap_boxes) {
        d->cap_boxes = d->cap_boxes ? 2 * d->cap_boxes : 4;
        r->boxes = grow_or_die(r->boxes, (size_t)d->cap_boxes, sizeof *r->boxes, "the boxes of a record");
    }
    r->boxes[r->n_boxes++] = m;
    add_part(d, (Part){.image = -1, .text = "<bbox>", .len = 6});
    return true;
}

// After all texts: every entry of "objects" was used, and every box knows its picture. Names may go unused when no text
// asks for any: they only say what the boxes are.
static bool objects_done(Reader *d, const Json *holder, Err *e) {
    Record *r = d->r;
    const Json *objects = json_get(holder, "objects");
    if (!d->has_objects) return true;
    if (d->bbox)
        return refuse(r, d->bbox, "E-DS-02", "objects.bbox", e, "a <bbox> mark in the text for every box",
                      "more boxes than marks", "add the marks");
    if (d->ref && d->ref != json_get(objects, "ref")->child)
        return refuse(r, d->ref, "E-DS-02", "objects.ref", e, "a <ref-object> mark in the text for every name",
                      "more names than marks", "add the marks");
    for (int b = 0; b < r->n_boxes; b++) {
        BoxMark *m = &r->boxes[b];
        if (m->image < 0 && r->n_images == 1) m->image = 0;
        if (m->image < 0 || m->image >= r->n_images)
            return refuse(r, m->at, "E-DS-06", "objects.bbox", e, "a picture that the box belongs to",
                          !r->n_images    ? "no picture"
                          : m->image >= 0 ? "an image_id without a picture"
                                          : "several pictures",
                          "say which in \"objects.image_id\", from 0");
    }
    return true;
}

// ----------------------------------------------------------------------------------------------------------- turns
static bool starts(const char *p, size_t len, const char *mark, size_t n) { return len >= n && !memcmp(p, mark, n); }

// A text with its marks: <image> in strings, <ref-object> and <bbox> where there are objects.
static bool add_text(Reader *d, const Json *text, bool images, const char *field, int64_t limit, Err *e) {
    if (!text_ok(d->r, text, field, limit, e)) return false;
    const char *p = text->str, *mark;
    size_t len = text->len, from = 0;
    for (size_t i = 0; i < len && (mark = memchr(p + i, '<', len - i));) {
        i = (size_t)(mark - p);
        size_t image = images && starts(mark, len - i, "<image>", 7) ? 7 : 0;
        size_t box = d->has_objects && starts(mark, len - i, "<bbox>", 6) ? 6 : 0;
        size_t name = d->has_objects && starts(mark, len - i, "<ref-object>", 12) ? 12 : 0, n = image + box + name;
        if (!n) {
            i++;
            continue;
        }
        if (i > from) add_part(d, (Part){.image = -1, .text = p + from, .len = i - from});
        if (image) {
            add_part(d, (Part){.image = d->r->n_images});
            if (!next_listed(d, text, field, e)) return false;
        } else if (!(box ? next_box(d, text, field, e) : next_name(d, text, field, e))) return false;
        i += n, from = i;
    }
    if (from < len) add_part(d, (Part){.image = -1, .text = p + from, .len = len - from});
    return true;
}

static bool add_content(Reader *d, const Json *content, const Json *at, const char *field, int64_t limit, Err *e) {
    Record *r = d->r;
    if (content && content->type == JSON_STRING) return add_text(d, content, true, field, limit, e);
    if (!content || content->type != JSON_ARRAY)
        return refuse(r, content ? content : at, "E-DS-02", field, e, "a string or a list of parts", json_kind(content),
                      "write the text there");
    for (const Json *part = content->child; part; part = part->next) {
        const Json *type = json_get(part, "type"), *text = json_get(part, "text");
        if (type && json_is(type, "text") && text && text->type == JSON_STRING) {
            if (!add_text(d, text, false, field, limit, e)) return false;
        } else if (type && (json_is(type, "image") || json_is(type, "image_url"))) {
            const Json *path = image_path(part);
            add_part(d, (Part){.image = r->n_images});
            if (!(path ? image_add(d, part, path, field, e) : next_listed(d, part, field, e))) return false;
        } else {
            return refuse(r, part, "E-DS-02", field, e, "a part of type \"text\" (with text) or \"image\"",
                          type && type->type == JSON_STRING ? quoted(type->str, type->len) : json_kind(part),
                          "write {\"type\": \"text\", \"text\": ...}");
        }
    }
    return true;
}

// One turn. `more` is a second text, a line below the first (Alpaca's input), or NULL.
static bool add_turn(Reader *d, const char *role, const Json *content, const Json *more, const Json *at, bool trained,
                     const char *field, Err *e) {
    Record *r = d->r;
    bool system = !strcmp(role, "system"), assistant = !strcmp(role, "assistant"), user = !strcmp(role, "user");
    const char *before = r->n ? r->messages[r->n - 1].role : NULL;
    bool after_user = before && !strcmp(before, "user");
    // system first and once, then user and assistant in turn, user first
    if (system ? before != NULL : user ? after_user : !after_user)
        return refuse(r, at, "E-DS-02", field, e,
                      "an optional system turn, then user and assistant in turn, the user first",
                      quoted(role, strlen(role)), "put the turns in order");
    if (r->n == d->cap_messages) {
        size_t cap = (size_t)(d->cap_messages = d->cap_messages ? 2 * d->cap_messages : 4);
        r->messages = grow_or_die(r->messages, cap, sizeof *r->messages, "the messages of a record");
        r->trained = grow_or_die(r->trained, cap, sizeof *r->trained, "the messages of a record");
        d->first = grow_or_die(d->first, cap, sizeof *d->first, "the messages of a record");
    }
    int pictures = r->n_images, first = d->first[r->n] = d->n_parts;
    int64_t limit = assistant ? 65536 : LIMIT_QUESTION_BYTES;
    if (!add_content(d, content, at, field, limit, e)) return false;
    if (more) {
        add_part(d, (Part){.image = -1, .text = "\n", .len = 1});
        if (!add_content(d, more, at, field, limit, e)) return false;
    }
    if (!user && r->n_images > pictures)
        return refuse(r, at, "E-DS-02", field, e, "pictures in user turns only", "one in another turn",
                      "move it to the question");
    size_t bytes = 0;
    for (int k = first; k < d->n_parts; k++) bytes += d->parts[k].image < 0 ? d->parts[k].len : 1;
    if (!bytes && !system)
        return refuse(r, at, "E-DS-05", field, e, "a turn that says something", "an empty one", "fill it or drop it");
    r->messages[r->n] = (Message){.role = role, .n_parts = d->n_parts - first};
    r->trained[r->n] = assistant && trained;
    r->n++;
    return true;
}

// A list of turns: {"role" or "from", "content" or "value", and perhaps "loss"}.
static bool add_turns(Reader *d, const Json *turns, const char *name, bool trained, Err *e) {
    static const char *const words[][2] = {
        {"system", "system"}, {"user", "user"}, {"human", "user"}, {"assistant", "assistant"}, {"gpt", "assistant"}};
    Record *r = d->r;
    char field[64];
    int i = 0;
    if (turns->type != JSON_ARRAY || !turns->count)
        return refuse(r, turns, "E-DS-02", name, e, "a list of turns", turns->count ? json_kind(turns) : "an empty one",
                      "see data/README.md");
    for (const Json *m = turns->child; m; m = m->next, i++) {
        const Json *role = present(m, "role"), *content = json_get(m, "content"), *loss = present(m, "loss");
        const char *who = NULL;
        snprintf(field, sizeof field, "%s[%d].%s", name, i, role ? "role" : present(m, "from") ? "from" : "role");
        if (!role) role = present(m, "from");
        for (size_t k = 0; role && k < sizeof words / sizeof *words; k++)
            if (json_is(role, words[k][0])) who = words[k][1];
        if (!who)
            return refuse(
                r, role ? role : m, "E-DS-02", field, e, "\"system\", \"user\" (\"human\") or \"assistant\" (\"gpt\")",
                role && role->type == JSON_STRING ? quoted(role->str, role->len) : json_kind(role), "name who speaks");
        snprintf(field, sizeof field, "%s[%d].loss", name, i);
        if (loss && ((loss->type != JSON_TRUE && loss->type != JSON_FALSE) ||
                     (loss->type == JSON_TRUE && strcmp(who, "assistant"))))
            return refuse(r, loss, "E-DS-02", field, e, "true or false, in an assistant turn",
                          loss->type == JSON_TRUE ? "true in another turn" : json_kind(loss), "remove it");
        if (!present(m, "content") && present(m, "value")) content = json_get(m, "value");
        snprintf(field, sizeof field, "%s[%d].%s", name, i, content && content->key ? content->key : "content");
        if (!add_turn(d, who, content, NULL, m, loss ? trained && loss->type == JSON_TRUE : trained, field, e))
            return false;
    }
    return true;
}

// ----------------------------------------------------------------------------------------------------------- forms
// The one field of a record that has one of these names. More than one refuses: nobody can know which is meant.
static bool one_of(const Record *r, const Json *holder, const char *names, const char *what, const Json **out, Err *e) {
    *out = NULL;
    char name[24], expected[60], found[100];
    for (const char *p = names; *p;) {
        size_t n = strcspn(p, " ");
        snprintf(name, sizeof name, "%.*s", (int)n, p);
        p += n + (p[n] != 0);
        const Json *v = present(holder, name);
        if (!v) continue;
        if (*out) {
            snprintf(expected, sizeof expected, "one field with the %s", what);
            snprintf(found, sizeof found, "\"%s\" and \"%s\"", (*out)->key, name);
            return refuse(r, v, "E-DS-02", v->key, e, expected, found, "keep one of the two");
        }
        *out = v;
    }
    return true;
}

static bool read_history(Reader *d, const Json *holder, Err *e) {
    const Json *history = present(holder, "history");
    char field[40];
    int i = 0;
    if (!history) return true;
    if (history->type != JSON_ARRAY)
        return refuse(d->r, history, "E-DS-02", "history", e, "a list of [question, answer]", json_kind(history),
                      "write a list");
    for (const Json *pair = history->child; pair; pair = pair->next, i++) {
        snprintf(field, sizeof field, "history[%d]", i);
        if (pair->type != JSON_ARRAY || pair->count != 2)
            return refuse(d->r, pair, "E-DS-02", field, e, "[question, answer]", json_kind(pair), "write both");
        if (!add_turn(d, "user", pair->child, NULL, pair->child, false, field, e) ||
            !add_turn(d, "assistant", pair->child->next, NULL, pair->child->next, true, field, e))
            return false;
    }
    return true;
}

static const char question_names[] = "query prompt input instruction question problem";
static const char answer_names[] = "response answer output target targets solution text completion content";

static bool read_question(Reader *d, const Json *holder, Err *e) {
    const Json *question = NULL, *more = NULL, *answer, *instruction = present(holder, "instruction"),
               *input = present(holder, "input");
    if (instruction && input && instruction->type == JSON_STRING && input->type == JSON_STRING) { // Alpaca
        if (!one_of(d->r, holder, "query prompt question problem instruction", "question", &question, e)) return false;
        if (!instruction->len) question = input;
        else if (input->len) more = input;
    } else if (!one_of(d->r, holder, question_names, "question", &question, e)) return false;
    if (!one_of(d->r, holder, answer_names, "answer", &answer, e) || !read_history(d, holder, e)) return false;
    if (question->type != JSON_STRING)
        return refuse(d->r, question, "E-DS-02", question->key, e, "a question in a string", json_kind(question),
                      "write text");
    if (answer && answer->type != JSON_STRING)
        return refuse(d->r, answer, "E-DS-02", answer->key, e, "an answer in a string", json_kind(answer),
                      "write text");
    return add_turn(d, "user", question, more, question, false, question->key, e) &&
           (!answer || add_turn(d, "assistant", answer, NULL, answer, true, answer->key, e));
}

static bool no_form(const Record *r, const Json *holder, Err *e) {
    Text found = {0};
    int n = 0;
    for (const Json *v = holder->child; v && n < 12; v = v->next, n++)
        text_addf(&found, "%s%s", n ? ", " : "the fields ", quoted(v->key, v->key_len));
    bool ok =
        refuse(r, holder, "E-DS-02", "messages", e,
               "\"messages\"; \"conversations\"; a \"prompt\" list with its \"completion\"; or a question (query, "
               "prompt, input, instruction, question, problem) with its answer (response, answer, output, target, "
               "solution, text, completion, content)",
               found.p ? found.p : "an empty object", "see the forms in data/README.md");
    text_free(&found);
    return ok;
}

static bool read_form(Reader *d, const Json *holder, Err *e) {
    const Json *messages = present(holder, "messages"), *conversations = present(holder, "conversations");
    const Json *prompt = present(holder, "prompt"), *completion = present(holder, "completion");
    const Json *system = present(holder, "system");
    bool question = false;
    for (const char *p = question_names; *p && !question; p += strcspn(p, " "), p += *p == ' ') {
        char name[24];
        snprintf(name, sizeof name, "%.*s", (int)strcspn(p, " "), p);
        question = present(holder, name) != NULL;
    }
    if (!messages && !conversations && !question) return no_form(d->r, holder, e);
    if (system && system->type != JSON_STRING)
        return refuse(d->r, system, "E-DS-02", "system", e, "a system turn in a string", json_kind(system),
                      "write text");
    if (system && system->len && !add_turn(d, "system", system, NULL, system, false, "system", e)) return false;
    if (messages) return add_turns(d, messages, "messages", true, e);
    if (conversations) return add_turns(d, conversations, "conversations", true, e);
    if (!prompt || prompt->type != JSON_ARRAY) return read_question(d, holder, e);
    if (!add_turns(d, prompt, "prompt", false, e)) return false;
    if (!completion) return true;
    if (completion->type == JSON_STRING)
        return add_turn(d, "assistant", completion, NULL, completion, true, "completion", e);
    return add_turns(d, completion, "completion", true, e);
}

// --------------------------------------------------------------------------------------------------------- records
static bool read_id(Record *r, const Json *root, int64_t number, Err *e) {
    const Json *id = present(root, "id") ? present(root, "id") : present(root, "custom_id");
    if (!id) {
        snprintf(r->id, sizeof r->id, "%lld", (long long)number);
        return true;
    }
    if (!(id->type == JSON_STRING || (id->type == JSON_NUMBER && id->integer)))
        return refuse(r, id, "E-DS-02", "id", e, "a string or an integer", json_kind(id), "write a string");
    if (id->len < 1 || id->len > 256 || memchr(id->str, 0, id->len))
        return refuse(r, id, "E-DS-03", "id", e, "an id of 1 to 256 bytes", quoted(id->str, id->len), "choose another");
    memcpy(r->id, id->str, id->len);
    r->id[id->len] = 0, r->named = true;
    return true;
}

static bool read_settings(Reader *d, const Json *holder, Err *e) {
    static const char *const frames[] = {"resized", "original", "norm1", "norm1000"};
    Record *r = d->r;
    const Json *weight = present(holder, "weight"), *frame = present(holder, "box_frame"),
               *image = present(holder, "image_id");
    r->weight = 1, r->frame = BOX_RESIZED, r->text_image = -1;
    if (weight && (weight->type != JSON_NUMBER || !(weight->number >= 0 && weight->number <= 1000)))
        return refuse(r, weight, "E-DS-08", "weight", e, "a number from 0 to 1000", json_shown(weight), "change it");
    if (weight) r->weight = weight->number;
    if (image && image->type == JSON_NUMBER && image->integer && image->i >= 0 && image->i < LIMIT_IMAGES)
        r->text_image = (int)image->i;
    if (!frame) return true;
    int k = 0;
    while (k < 4 && !json_is(frame, frames[k])) k++;
    if (k == 4)
        return refuse(r, frame, "E-DS-02", "box_frame", e, "\"resized\", \"original\", \"norm1\" or \"norm1000\"",
                      json_shown(frame), "say in which frame the boxes of the texts are");
    if (k && !d->options.boxes)
        return refuse(r, frame, "E-DS-02", "box_frame", e, "boxes in the frame of the resized picture",
                      json_shown(frame), "rewrite the boxes");
    r->frame = (enum BoxFrame)k;
    return true;
}

static bool read_conversation(Reader *d, const Json *root, const Json *holder, int64_t number, Err *e) {
    Record *r = d->r;
    if (!read_id(r, root, number, e) || !read_images(d, holder, e) || !read_objects(d, holder, e) ||
        !read_settings(d, holder, e) || !read_form(d, holder, e) || !images_in_front(d, e))
        return false;
    if (!r->n || !strcmp(r->messages[r->n - 1].role, "system"))
        return refuse(r, holder, "E-DS-02", "messages", e, "at least one user turn", "none", "add the question");
    if (d->left)
        return refuse(r, d->listed, "E-DS-02", "images", e, "an image mark in the text for every entry",
                      "more entries than marks", "add the <image> marks");
    return objects_done(d, holder, e);
}

bool record_parse_piece(Record *r, const Piece *p, const char *file, RecordOptions o, Err *e) {
    JsonOptions options = {.refuse_duplicates = true, .first_line = (uint32_t)p->line, .first_col = (uint32_t)p->col};
    *r = (Record){.line = p->line, .offset = p->offset, .bytes = (int64_t)p->len};
    if (!json_parse(&r->doc, p->text, p->len, file, options, e)) return false;
    const Json *root = r->doc.root, *body = json_get(root, "body");
    bool ok = root->type == JSON_OBJECT ||
              refuse(r, root, "E-DS-01", NULL, e, "a JSON object", json_kind(root), "write one record a line");
    Reader d = {.r = r, .options = o};
    r->images = alloc_or_die((size_t)LIMIT_IMAGES, sizeof *r->images, "the images of a record");
    ok = ok && read_conversation(&d, root, body && body->type == JSON_OBJECT ? body : root, p->number, e);
    if (ok) // messages[0].parts is the block that record_free looks for
        for (int i = 0; i < r->n; i++) r->messages[i].parts = d.parts + d.first[i];
    else free(d.parts);
    free(d.first);
    if (!ok) {
        r->n = 0;
        record_free(r);
    }
    return ok;
}

bool record_parse(Record *r, const char *line, size_t len, const char *file, int64_t line_number, Err *e) {
    Piece p = {.text = line, .len = len, .number = line_number, .line = line_number, .col = 1};
    return record_parse_piece(r, &p, file, (RecordOptions){0}, e);
}

void record_free(Record *r) {
    if (r->n) free((void *)(uintptr_t)r->messages[0].parts);
    free(r->messages);
    free(r->trained);
    free(r->images);
    free(r->boxes);
    for (RecordText *t = r->placed, *next; t; t = next) next = t->next, free(t);
    json_free(&r->doc);
    memset(r, 0, sizeof *r);
}

// ----------------------------------------------------------------------------------------------------------- boxes
static const char *keep_text(Record *r, const char *text, size_t len) {
    RecordText *t = alloc_or_die(sizeof *t + len + 1, 1, "the boxes of a record");
    memcpy(t->text, text, len);
    t->next = r->placed, r->placed = t;
    return t->text;
}

// box in `frame` -> whole pixels of the resized picture: x' = round(x W' / W) within 0..W'-1, half to even.
static bool place_box(const Record *r, const Json *at, const char *field, const double box[4], enum BoxFrame frame,
                      FrameSize s, int64_t out[4], Err *e) {
    static const char *const names[] = {"pixels of the resized picture", "pixels of the file", "shares of the picture",
                                        "thousandths of the picture"};
    double unit = frame == BOX_NORM1 ? 1 : 1000, limit[2] = {unit, unit};
    const int64_t to[2] = {s.resized_width, s.resized_height};
    if (frame == BOX_ORIGINAL) limit[0] = (double)s.width, limit[1] = (double)s.height;
    if (frame == BOX_RESIZED) limit[0] = (double)to[0], limit[1] = (double)to[1];
    if (!(box[0] >= 0 && box[0] < box[2] && box[2] <= limit[0] && box[1] >= 0 && box[1] < box[3] && box[3] <= limit[1]))
        return err_set(e, "E-DS-06", json_at(&r->doc, at, field),
                       "expected 0 <= x1 < x2 <= %.12g and 0 <= y1 < y2 <= %.12g (%s); found [%.6g, %.6g, %.6g, %.6g]; "
                       "do: mend the box, or say in which frame it is",
                       limit[0], limit[1], names[frame], box[0], box[1], box[2], box[3]);
    for (int k = 0; k < 4; k++) { // as Qwen2.5-VL's own fine-tuning tools: x2 is at most the last column
        double v = rint(box[k] * (double)to[k % 2] / limit[k % 2]), last = (double)(to[k % 2] - 1);
        out[k] = (int64_t)(v < last ? v : last);
    }
    return (out[0] < out[2] && out[1] < out[3]) ||
           err_set(e, "E-DS-06", json_at(&r->doc, at, field),
                   "expected a box of at least a pixel in the resized picture; found [%.6g, %.6g, %.6g, %.6g], which "
                   "becomes "
                   "[%lld, %lld, %lld, %lld]; do: raise --max-pixels, or leave so small a thing out",
                   box[0], box[1], box[2], box[3], (long long)out[0], (long long)out[1], (long long)out[2],
                   (long long)out[3]);
}

static size_t skip(const char *p, size_t len, size_t i, const char *set) {
    while (i < len && p[i] && strchr(set, p[i])) i++;
    return i;
}

// Reads what stands behind `bbox_2d` and its quote: where the four numbers lie and what they are. 0: no numbers are
// there (a template in words); -1: numbers that are no box; 1: a box.
static int read_text_box(const char *p, size_t len, size_t i, size_t from[4], size_t to[4], double box[4]) {
    static const char blank[] = " \t\n";
    i = skip(p, len, i, blank);
    if (i >= len || p[i] != ':') return 0;
    i = skip(p, len, i + 1, blank);
    if (i >= len || p[i] != '[') return 0;
    for (int k = 0; k < 4; k++) {
        char number[48], *end;
        from[k] = i = skip(p, len, i + 1, blank);
        bool word = starts(p + i, len - i, "NaN", 3) || starts(p + i, len - i, "nan", 3) ||
                    starts(p + i, len - i, "Inf", 3) || starts(p + i, len - i, "inf", 3);
        to[k] = skip(p, len, i, "0123456789+-.eE");
        size_t n = to[k] - i;
        size_t inner = i < len && p[i] == '[' ? skip(p, len, i + 1, blank) : len; // a list of boxes: not this form
        bool nested = inner < len && p[inner] && strchr("0123456789+-.", p[inner]);
        if (!k && !n && !word && !nested) return 0;
        if (!n || n >= sizeof number) return -1;
        memcpy(number, p + i, n), number[n] = 0;
        box[k] = strtod(number, &end);
        i = skip(p, len, to[k], blank);
        if (*end || !isfinite(box[k]) || i >= len || p[i] != (k < 3 ? ',' : ']')) return -1;
    }
    return 1;
}

// Rewrites the numbers of every "bbox_2d" in one text.
static bool place_in_text(Record *r, Part *part, const char *field, FrameSize s, const char *why_not, Err *e) {
    static const char key[] = "bbox_2d";
    const char *p = part->text, *at;
    size_t len = part->len, done = 0, from[4], to[4];
    const Json *root = r->doc.root;
    Text out = {0};
    bool ok = true, changed = false;
    for (size_t i = 0; ok && i < len && (at = memmem(p + i, len - i, key, sizeof key - 1));) {
        size_t start = (size_t)(at - p);
        double box[4];
        int64_t whole[4];
        i = start + sizeof key - 1;
        if (!start || i >= len || p[i] != p[start - 1] || (p[i] != '"' && p[i] != '\'')) continue;
        int found = read_text_box(p, len, i + 1, from, to, box);
        if (!found) continue;
        if (found < 0)
            ok = refuse(r, root, "E-DS-06", field, e, "\"bbox_2d\": [x1, y1, x2, y2] with four finite numbers",
                        quoted(at - 1, len - start + 1), "mend the box");
        else if (why_not)
            ok = refuse(r, root, "E-DS-06", field, e, "a picture that the boxes of the text belong to", why_not,
                        "say which in \"image_id\", from 0");
        else if (s.width && (ok = place_box(r, root, field, box, r->frame, s, whole, e)))
            for (int k = 0; k < 4; k++) {
                text_add(&out, p + done, from[k] - done);
                text_addf(&out, "%lld", (long long)whole[k]);
                done = to[k], changed = true;
            }
    }
    if (ok && changed) {
        text_add(&out, p + done, len - done);
        part->text = keep_text(r, out.p, out.len), part->len = out.len;
    }
    text_free(&out);
    return ok;
}

void boxes_to_file(const char *text, size_t len, const FrameSize *s, Text *out) {
    static const char key[] = "bbox_2d";
    const double scale[2] = {(double)s->width / (double)s->resized_width,
                             (double)s->height / (double)s->resized_height};
    const char *at;
    size_t done = 0, from[4], to[4];
    for (size_t i = 0; i < len && (at = memmem(text + i, len - i, key, sizeof key - 1));) {
        size_t start = (size_t)(at - text);
        double box[4];
        i = start + sizeof key - 1;
        if (!start || i >= len || text[i] != text[start - 1] || (text[i] != '"' && text[i] != '\'')) continue;
        if (read_text_box(text, len, i + 1, from, to, box) != 1) continue;
        for (int k = 0; k < 4; k++) {
            text_add(out, text + done, from[k] - done);
            text_addf(out, "%.10g", box[k] * scale[k % 2]);
            done = to[k];
        }
    }
    text_add(out, text + done, len - done);
}

bool record_place_boxes(Record *r, const FrameSize *sizes, Err *e) {
    char text[120];
    FrameSize s = {0};
    const char *why_not = NULL;
    int k = r->n_images == 1 ? 0 : r->text_image;
    if (!r->n_images && r->frame == BOX_RESIZED) return true; // text alone: nothing to measure against
    if (k >= 0 && k < r->n_images) s = sizes[k];
    else if (r->frame != BOX_RESIZED) why_not = r->n_images ? "several pictures" : "no picture";
    else // numbers stay as they are in any of the pictures: only what fits none of them is wrong
        for (int i = 0; i < r->n_images; i++) {
            s.width = 1;
            if (sizes[i].resized_width > s.resized_width) s.resized_width = sizes[i].resized_width;
            if (sizes[i].resized_height > s.resized_height) s.resized_height = sizes[i].resized_height;
        }
    for (int i = 0; i < r->n; i++) {
        snprintf(text, sizeof text, "message %d", i + 1);
        for (int j = 0; j < r->messages[i].n_parts; j++) {
            Part *part = (Part *)(uintptr_t)&r->messages[i].parts[j];
            if (part->image < 0 && !place_in_text(r, part, text, s, why_not, e)) return false;
        }
    }
    for (int b = 0; b < r->n_boxes; b++) {
        const BoxMark *m = &r->boxes[b];
        int64_t v[4];
        if (!place_box(r, m->at, "objects.bbox", m->box, m->frame, sizes[m->image], v, e)) return false;
        int n = snprintf(text, sizeof text, "[%lld, %lld, %lld, %lld]", (long long)v[0], (long long)v[1],
                         (long long)v[2], (long long)v[3]);
        Part *part = (Part *)(uintptr_t)&r->messages[m->message].parts[m->part];
        part->text = keep_text(r, text, (size_t)n), part->len = (size_t)n;
    }
    return true;
}
