// import_other.c - SAR-RARP50, AutoLaparo, and any other table through a mapping that the user writes.
//
// What it is:  labels by frame number, with label numbers that may start at 0 or at 1.
// What it is not: segmentation: masks are not read.
// Read before: import.h.  Read next: ../commands/import.c.
// Sources: surgical-vision/SAR_RARP50-evaluation; JianJiangKCL/Laparo, isyangshu/Surgformer (generate_labels_autolaparo.py).
#include "import.h"

// Whether class numbers start at 0 or at 1 is told by the lowest and the highest that exist; where neither occurs nobody can tell.
typedef struct BaseFacts {
    bool low, high; // 0 and n occur
} BaseFacts;

static bool base_tell(Import *im, BaseFacts f, int n, const char *what, int64_t *base, Err *e) {
    if (im->o->label_base) return *base = im->o->label_base - 1, true;
    if (f.low != f.high) return *base = f.high, true;
    return err_set(e, "E-DS-14", AT(.file = im->o->root),
                   "expected %s numbered 0 to %d or 1 to %d; found %s; do: say which with --label-base 0|1", what,
                   n - 1, n, f.low ? "both ends" : "neither end");
}

// ---------------------------------------------------------------------------------------------------------- SAR-RARP50
static const Vocabulary actions = {"action of SAR-RARP50", rarp50_actions, 8, NULL, false};

static bool sar_rows(Import *im, Table *t, const char *path, BaseFacts *facts, Err *e) {
    int64_t last = -1, frame, class;
    if (!table_read(t, path, ',', e)) return false;
    for (int64_t i = 0; i < t->n; i++) {
        const TableRow *r = &t->rows[i];
        if (!table_columns(t, r, 2, false, "frame,class", e) || !table_int(t, r, 0, "frame", 0, 100000000, &frame, e) ||
            !table_int(t, r, 1, "class", 0, 8, &class, e))
            return false;
        if (frame <= last)
            return err_set(e, "E-DS-13", AT(.file = path, .line = r->line, .field = "frame"),
                           "expected rising frames; found %lld behind %lld; do: check the file", (long long)frame,
                           (long long)last);
        last = frame;
        facts->low |= class == 0, facts->high |= class == 8;
    }
    (void)im;
    return true;
}

// video: "video_11_1"; its patient is number 11.
static bool sar_video(Import *im, const char *dir, const char *name, int64_t base, Err *e) {
    Table t;
    BaseFacts unused = {0};
    Frames frames = {0};
    int64_t number = strtoll(name + 6, NULL, 10);
    const char *video = keep(im, "%s", name + 6), *split = split_of(im, video, number);
    const char *const dirs[3] = {im->o->frames ? keep(im, "%s/%s/rgb", im->o->frames, name)
                                               : keep(im, "%s/%s/rgb", dir, name),
                                 im->o->frames ? keep(im, "%s/%s", im->o->frames, name) : NULL, NULL};
    if (!split) return true;
    bool ok = sar_rows(im, &t, keep(im, "%s/%s/action_discrete.txt", dir, name), &unused, e) &&
              frames_open(&frames, dirs, 3, e);
    im->files++, im->rows += t.n;
    video_begin(im);
    for (int64_t i = 0; ok && i < t.n; i++) {
        int64_t frame, class;
        Where at = AT(.file = t.file, .line = t.rows[i].line, .field = "class");
        text_int(t.rows[i].cells[0].p, t.rows[i].cells[0].len, &frame);
        text_int(t.rows[i].cells[1].p, t.rows[i].cells[1].len, &class);
        class -= base;
        if (!sample_keeps(im, frame, 60)) continue;
        if (class < 0 || class >= actions.n) {
            ok = unknown_label(im, &actions, at, t.rows[i].cells[1].p, t.rows[i].cells[1].len, e);
            continue;
        }
        ImportFrame f = {.video = video,
                         .patient = keep(im, "sar-rarp50-%lld", (long long)number),
                         .split = split,
                         .frame = frame,
                         .fps = 60,
                         .dir = frames.dir,
                         .name = frames_find(&frames, frame)};
        f.source =
            keep(im, "\"frame_base\":0,\"image_number\":%lld,\"label_base\":%lld", (long long)frame, (long long)base);
        if (frame_open(im, &f, false, e))
            ok = item_add(
                im, &f, (Question){.task = TASK_ACTION, .answer = rarp50_actions[class], .choices = &actions, .at = at},
                e);
        else ok = !e->code[0];
    }
    frames_free(&frames), table_free(&t);
    return ok;
}

bool import_sar_rarp50(Import *im, Err *e) {
    static const char *const folders[4] = {"train1", "train2", "test", "."};
    BaseFacts facts = {0};
    int64_t base = 0;
    bool ok = true, any = false;
    snprintf(im->naming, sizeof im->naming, "frames of the video at 60 a second, from 0");
    for (int pass = 0; ok && pass < 2; pass++) { // how classes are numbered is seen in all files first
        for (int k = 0; ok && k < 4; k++) {
            Names names;
            const char *dir = tree_path_of(im, "%s", folders[k]);
            if (!folder_exists(dir)) continue;
            if (!(ok = folder_names(&names, dir, e))) break;
            for (int64_t i = 0; ok && i < names.n; i++) {
                const char *path = keep(im, "%s/%s/action_discrete.txt", dir, names.p[i]);
                Table t;
                if (strncmp(names.p[i], "video_", 6)) continue;
                if (!file_exists(path)) {
                    if (pass) skip_add(im, "missing action_discrete.txt", path, 1);
                } else if (any = true, pass) ok = sar_video(im, dir, names.p[i], base, e);
                else ok = sar_rows(im, &t, path, &facts, e), table_free(&t);
            }
            names_free(&names);
        }
        if (ok && !pass && any) ok = base_tell(im, facts, 8, "classes", &base, e);
    }
    return ok;
}

// ---------------------------------------------------------------------------------------------------------- AutoLaparo
static const char *const laparo_names[] = {"Preparation",
                                           "Dividing Ligament and Peritoneum",
                                           "Dividing Uterine Vessels and Ligament",
                                           "Transecting the Vagina",
                                           "Specimen Removal",
                                           "Suturing",
                                           "Washing"};
static const Vocabulary laparo = {"phase of AutoLaparo", laparo_names, 7, NULL, false};

static bool laparo_rows(Table *t, const char *path, BaseFacts *facts, Err *e) {
    int64_t frame, class, last = 0;
    if (!table_read(t, path, '\t', e)) return false;
    if (!t->n || strcasecmp(t->rows[0].cells[0].p, "Frame"))
        return err_set(e, "E-DS-13", AT(.file = path, .line = 1),
                       "expected a header that begins with Frame; found another line; do: check the file");
    for (int64_t i = 1; i < t->n; i++) {
        const TableRow *r = &t->rows[i];
        if (!table_columns(t, r, 2, false, "Frame, Phase", e) || !table_int(t, r, 0, "Frame", 1, 10000000, &frame, e) ||
            !table_int(t, r, 1, "Phase", 0, 7, &class, e))
            return false;
        if (frame <= last)
            return err_set(e, "E-DS-13", AT(.file = path, .line = r->line, .field = "Frame"),
                           "expected rising frames; found %lld behind %lld; do: check the file", (long long)frame,
                           (long long)last);
        last = frame;
        facts->low |= class == 0, facts->high |= class == 7;
    }
    return true;
}

static bool laparo_frames(Import *im, Frames *f, int64_t number, Err *e) {
    const char *base = im->o->frames ? im->o->frames : tree_path_of(im, "frames");
    const char *const dirs[3] = {keep(im, "%s/%02lld", base, (long long)number),
                                 keep(im, "%s/%lld", base, (long long)number),
                                 keep(im, "%s/video%02lld", base, (long long)number)};
    return frames_open(f, dirs, 3, e);
}

static bool laparo_video(Import *im, const char *path, int64_t number, int64_t base, FrameNaming naming, Err *e) {
    Table t;
    BaseFacts unused = {0};
    Frames frames = {0};
    const char *video = keep(im, "%02lld", (long long)number), *split = split_of(im, video, number);
    if (!split) return true;
    bool ok = laparo_rows(&t, path, &unused, e) && laparo_frames(im, &frames, number, e);
    im->files++, im->rows += t.n - 1;
    video_begin(im);
    for (int64_t i = 1; ok && i < t.n; i++) {
        int64_t frame, class;
        Where at = AT(.file = path, .line = t.rows[i].line, .field = "Phase");
        text_int(t.rows[i].cells[0].p, t.rows[i].cells[0].len, &frame);
        text_int(t.rows[i].cells[1].p, t.rows[i].cells[1].len, &class);
        class -= base, frame--; // second, from 0
        if (!sample_keeps(im, frame, 1)) continue;
        if (class < 0 || class >= laparo.n) {
            ok = unknown_label(im, &laparo, at, t.rows[i].cells[1].p, t.rows[i].cells[1].len, e);
            continue;
        }
        int64_t image = naming_number(naming, frame, 1);
        ImportFrame f = {.video = video,
                         .patient = keep(im, "autolaparo-%lld", (long long)number),
                         .split = split,
                         .frame = frame,
                         .fps = 1,
                         .dir = frames.dir,
                         .name = frames_find(&frames, image)};
        f.source = keep(im, "\"frame_base\":0,\"image_number\":%lld,\"image_base\":%d,\"label_base\":%lld",
                        (long long)image, naming == SECONDS_1, (long long)base);
        if (frame_open(im, &f, false, e))
            ok = item_add(
                im, &f, (Question){.task = TASK_PHASE, .answer = laparo_names[class], .choices = &laparo, .at = at}, e);
        else ok = !e->code[0];
    }
    frames_free(&frames), table_free(&t);
    return ok;
}

bool import_autolaparo(Import *im, Err *e) {
    Names names;
    BaseFacts facts = {0};
    NamingFacts seen = {0};
    FrameNaming naming = SECONDS_0;
    int64_t base = 0;
    bool ok = true, any = false;
    const char *dir = tree_path_of(im, "labels");
    if (!folder_names(&names, dir, e)) return false;
    for (int pass = 0; ok && pass < 2; pass++) {
        for (int64_t i = 0; ok && i < names.n; i++) {
            const char *name = names.p[i], *path = keep(im, "%s/%s", dir, name);
            size_t n = strlen(name);
            int64_t number;
            if (n < 11 || strncmp(name, "label_", 6) || strcmp(name + n - 4, ".txt") ||
                !text_int(name + 6, n - 10, &number)) {
                if (pass) skip_add(im, "file that is no annotation", name, 1);
                continue;
            }
            any = true;
            if (pass) {
                ok = laparo_video(im, path, number, base, naming, e);
                continue;
            }
            Table t;
            Frames frames = {0};
            ok = laparo_rows(&t, path, &facts, e) && laparo_frames(im, &frames, number, e);
            int64_t last = 0;
            if (ok && t.n > 1) text_int(t.rows[t.n - 1].cells[0].p, t.rows[t.n - 1].cells[0].len, &last);
            if (ok) naming_see(&seen, &frames, last, 1);
            frames_free(&frames), table_free(&t);
        }
        if (ok && !pass && any)
            ok = base_tell(im, facts, 7, "phases", &base, e) && naming_tell(im, &seen, 1, &naming, e);
    }
    names_free(&names);
    return ok;
}

// ------------------------------------------------------------------------------------------------------------- generic
// A mapping (data/README.md): where the tables are, and for each field of a record a text in which {column} is filled in from the
// row. Columns are those of the header line, or {1}, {2}, ... without one, or the keys of a JSON object.
enum { MOST_COLUMNS = 256 };
typedef struct Generic {
    Import *im;
    const JsonDoc *spec;
    const Json *fields, *labels, *splits;
    const char *file, *split, *video; // video: of the row before
    enum Task task;
    bool task_named; // "task" is the same for all rows
    const char *names[MOST_COLUMNS];
    int n_names;
    Vocabulary vocabulary;
    const char **words;
    const char *box_form;
    double fps;
} Generic;
typedef struct GenericRow { // a line of a table, or an object
    const TableRow *row;
    const JsonDoc *doc;
    const Json *object;
    Where at;
} GenericRow;

static bool spec_fail(const Generic *g, const Json *v, const char *field, const char *expected, Err *e) {
    return err_set(e, "E-CF-02", json_at(g->spec, v, field),
                   "expected %s; found %s; do: see data/README.md, import generic", expected,
                   v ? json_shown(v) : "nothing");
}

static const char *spec_text(const Generic *g, const Json *object, const char *name) { // NULL when absent or no text
    const Json *v = json_get(object, name);
    (void)g;
    return v && v->type == JSON_STRING && strlen(v->str) == v->len ? v->str : NULL;
}

static bool row_value(const Generic *g, const GenericRow *r, const char *name, size_t len, Text *out) {
    if (r->object) {
        char key[128];
        const Json *v;
        snprintf(key, sizeof key, "%.*s", (int)len, name);
        v = json_get(r->object, key);
        if (!v || v->type == JSON_NULL || v->type == JSON_ARRAY || v->type == JSON_OBJECT) return false;
        if (v->type == JSON_STRING || v->type == JSON_NUMBER) text_add(out, v->str, v->len);
        else text_addf(out, "%s", v->type == JSON_TRUE ? "true" : "false");
        return true;
    }
    int64_t number;
    int column = -1;
    for (int i = 0; i < g->n_names; i++)
        if (strlen(g->names[i]) == len && !memcmp(g->names[i], name, len)) column = i;
    if (column < 0 && !g->n_names && text_int(name, len, &number) && number >= 1 && number <= r->row->n)
        column = (int)number - 1;
    if (column < 0 || column >= r->row->n) return false;
    text_add(out, r->row->cells[column].p, r->row->cells[column].len);
    return true;
}

// A field of the mapping for this row; NULL when the mapping has none.
static bool field_text(const Generic *g, const GenericRow *r, const char *field, const char **out, Err *e) {
    const char *p = spec_text(g, g->fields, field);
    Text text = {0};
    *out = NULL;
    if (!p) return true;
    while (*p) {
        size_t n = strcspn(p, "{"), len;
        text_add(&text, p, n);
        p += n;
        if (!*p) break;
        len = strcspn(++p, "}");
        if (!row_value(g, r, p, len, &text)) {
            text_free(&text);
            Where at = r->at;
            at.field = field;
            return err_set(e, "E-DS-13", at, "expected a column or member %s; found none; do: check the mapping",
                           quoted(p, len));
        }
        p += len + (p[len] == '}');
    }
    *out = keep(g->im, "%s", text.p ? text.p : "");
    text_free(&text);
    return true;
}

static bool field_number(const Generic *g, const GenericRow *r, const char *field, double *out, Err *e) {
    const char *text;
    Where at = r->at;
    at.field = field;
    if (!field_text(g, r, field, &text, e)) return false;
    if (text && text_double(text, strlen(text), out)) return true;
    return err_set(e, "E-DS-13", at, "expected a number; found %s; do: check the mapping",
                   text ? quoted(text, strlen(text)) : "no such field");
}

static bool generic_box(const Generic *g, const GenericRow *r, const ImportFrame *f, Box *b, Err *e) {
    static const char *const names[4] = {"box.1", "box.2", "box.3", "box.4"};
    double v[4];
    const char *form = g->box_form;
    for (int i = 0; i < 4; i++)
        if (!field_number(g, r, names[i], &v[i], e)) return false;
    if (strstr(form, "shares"))
        v[0] *= (double)f->width, v[2] *= (double)f->width, v[1] *= (double)f->height, v[3] *= (double)f->height;
    if (!strncmp(form, "xywh", 4)) v[2] += v[0], v[3] += v[1];
    if (strstr(form, "from 1")) v[0]--, v[1]--;    // first and last pixel, both inside
    if (strstr(form, "inclusive")) v[2]++, v[3]++; // the same counted from 0
    *b = (Box){v[0], v[1], v[2], v[3], ""};
    return true;
}

static bool generic_row(Generic *g, const GenericRow *r, Err *e) {
    Import *im = g->im;
    const char *task, *video, *patient, *split, *frame, *path, *answer, *what, *procedure;
    Question q = {.task = g->task, .at = r->at};
    ImportFrame f = {.dir = im->o->frames ? im->o->frames : im->o->root, .fps = g->fps};
    im->rows++;
    if (!field_text(g, r, "task", &task, e) || !field_text(g, r, "video", &video, e) ||
        !field_text(g, r, "patient", &patient, e) || !field_text(g, r, "split", &split, e) ||
        !field_text(g, r, "frame", &frame, e) || !field_text(g, r, "image", &path, e) ||
        !field_text(g, r, "answer", &answer, e) || !field_text(g, r, "id", &what, e) ||
        !field_text(g, r, "slot", &q.slot, e) || !field_text(g, r, "question", &q.question, e) ||
        !field_text(g, r, "procedure", &procedure, e))
        return false;
    Where at = r->at;
    int number = task ? task_of(task) : (int)g->task;
    at.field = "task";
    if (number < 0)
        return err_set(e, "E-DS-12", at, "expected a task of data/README.md; found %s; do: check the mapping",
                       quoted(task, strlen(task)));
    q.task = (enum Task)number;
    f.video = video ? video : "all";
    f.patient = patient ? patient : keep(im, "%s-%s", im->dataset, f.video);
    at.field = "frame";
    if (frame && !text_int(frame, strlen(frame), &f.frame)) // a name with a number in it will do
        return err_set(e, "E-DS-13", at, "expected an integer; found %s; do: map \"frame\" to a column of numbers",
                       quoted(frame, strlen(frame)));
    if (!split) split = g->split;
    for (const Json *s = g->splits ? g->splits->child : NULL; s; s = s->next) // {"train": ["v1"], ...}
        for (const Json *v = s->type == JSON_ARRAY ? s->child : NULL; v; v = v->next)
            if (json_is(v, f.video)) split = keep(im, "%s", s->key);
    if (im->n_own && !(split = split_of(im, f.video, 0))) return true;
    if (split && !strcmp(split, "validation")) split = "val";
    at.field = "split";
    if (!split || (strcmp(split, "train") && strcmp(split, "val") && strcmp(split, "test")))
        return err_set(e, "E-DS-13", at,
                       "expected train, val or test; found %s; do: map \"split\", or list videos under \"splits\"",
                       split ? quoted(split, strlen(split)) : "none");
    f.split = split;
    if (!split_wanted(im, split)) return skip_add(im, "row of a split that was not asked for", f.video, 1), true;
    if (!g->video || strcmp(g->video, f.video)) im->bucket = -1, im->seen = 0, g->video = f.video;
    if (!sample_keeps(im, f.frame, f.fps)) return true;
    at.field = "answer";
    const Json *renamed = answer && g->labels ? json_get(g->labels, answer) : NULL;
    if (renamed && renamed->type == JSON_NULL)
        return skip_add(im, "label that the mapping leaves out", answer, 1), true;
    if (renamed && renamed->type == JSON_STRING) answer = keep(im, "%s", renamed->str);
    if (g->vocabulary.n) {
        int id = answer ? label_of(&g->vocabulary, answer, strlen(answer)) : -1;
        if (id < 0) return unknown_label(im, &g->vocabulary, at, answer ? answer : "", answer ? strlen(answer) : 0, e);
        answer = g->words[id], q.choices = &g->vocabulary;
    }
    q.answer = answer;
    f.name = path;
    at.field = "image";
    if (!path || !*path || strstr(path, "..") || *path == '/')
        return err_set(e, "E-DS-04", at,
                       "expected a relative path inside the folder of frames; found %s; do: check the mapping",
                       path ? quoted(path, strlen(path)) : "none");
    enum AnswerKind kind = task_info(q.task)->kind;
    bool boxed = kind == ANSWER_BOX || kind == ANSWER_BOXES || kind == ANSWER_VQLA;
    if (!frame_open(im, &f, boxed, e)) return !e->code[0];
    Box box = {0};
    if (boxed) {
        if (!generic_box(g, r, &f, &box, e)) return false;
        const char *label = q.slot ? q.slot : answer ? answer : "object";
        snprintf(box.label, sizeof box.label, "%s", label);
        if (!q.answer) q.answer = label;
        q.boxes = &box, q.n_boxes = 1;
    } else if (!answer || !*answer)
        return skip_add(im, "row without a label", keep(im, "%s:%lld", r->at.file, (long long)r->at.line), 1), true;
    if ((q.task == TASK_VQA || q.task == TASK_VQLA) && !q.question)
        return err_set(e, "E-CF-02", json_at(g->spec, g->fields, "question"),
                       "expected a question for task %s; found none; do: map \"question\"", task_info(q.task)->name);
    const char *usual = im->procedure;
    if (procedure) im->procedure = procedure;
    q.what = what ? what : keep(im, "%lld", (long long)im->rows);
    bool ok = item_add(im, &f, q, e);
    im->procedure = usual;
    return ok;
}

typedef struct GenericLines {
    Generic *g;
} GenericLines;

static bool generic_piece(void *ctx, const Piece *p, Err *e) { // one object of a JSON list or JSON lines
    Generic *g = ((GenericLines *)ctx)->g;
    JsonDoc d;
    JsonOptions o = {.refuse_duplicates = true, .first_line = (uint32_t)p->line, .first_col = (uint32_t)p->col};
    if (!json_parse(&d, p->text, p->len, g->file, o, e)) return false;
    bool ok = d.root->type == JSON_OBJECT || err_set(e, "E-DS-13", json_at(&d, d.root, ""),
                                                     "expected an object; found another value; do: check the file");
    GenericRow r = {.doc = &d, .object = d.root, .at = AT(.file = g->file, .line = p->line)};
    ok = ok && generic_row(g, &r, e);
    json_free(&d);
    return ok;
}

static bool generic_json(Generic *g, const char *path, const char *records, Err *e) {
    if (!records) return pieces_read(path, NULL, generic_piece, &(GenericLines){g}, e); // a list, or JSON lines
    JsonDoc d;
    if (!json_read(&d, path, LIMIT_TABLE_BYTES, (JsonOptions){.refuse_duplicates = true}, e)) return false;
    const Json *list = d.root;
    for (const char *p = records; list && *p;) { // "a.b"
        char key[128];
        size_t n = strcspn(p, ".");
        snprintf(key, sizeof key, "%.*s", (int)n, p);
        list = json_get(list, key);
        p += n + (p[n] == '.');
    }
    bool ok = (list && list->type == JSON_ARRAY) || err_set(e, "E-DS-13", json_at(&d, list, records),
                                                            "expected a list of objects; found %s; do: check "
                                                            "\"records\" of the mapping",
                                                            list ? json_shown(list) : "nothing");
    for (const Json *v = ok ? list->child : NULL; ok && v; v = v->next) {
        GenericRow r = {.doc = &d, .object = v, .at = json_at(&d, v, records)};
        ok = v->type == JSON_OBJECT
                 ? generic_row(g, &r, e)
                 : err_set(e, "E-DS-13", r.at, "expected an object; found %s; do: check the file", json_shown(v));
    }
    json_free(&d);
    return ok;
}

static bool generic_table(Generic *g, const char *path, char separator, bool header, int64_t skip, Err *e) {
    Table t;
    if (!table_read(&t, path, separator, e)) return false;
    int64_t first = skip;
    bool ok = true;
    g->n_names = 0;
    if (header && t.n > first) {
        const TableRow *h = &t.rows[first++];
        ok = h->n <= MOST_COLUMNS ||
             err_set(e, "E-DS-13", AT(.file = path, .line = h->line),
                     "expected at most %d columns; found more; do: check the file", MOST_COLUMNS);
        for (int64_t i = 0; ok && i < h->n; i++) g->names[g->n_names++] = keep(g->im, "%s", h->cells[i].p);
    }
    for (int64_t i = first; ok && i < t.n; i++) {
        GenericRow r = {.row = &t.rows[i], .at = AT(.file = path, .line = t.rows[i].line)};
        if (header) ok = table_columns(&t, r.row, g->n_names, false, "as the header has", e);
        ok = ok && generic_row(g, &r, e);
    }
    table_free(&t);
    return ok;
}

static bool generic_open(Generic *g, const Json *root, Err *e) {
    static const char *const forms =
        "xyxy pixels|xyxy shares|xywh pixels|xywh shares|xyxy pixels from 1|xyxy pixels inclusive";
    const char *task;
    if (root->type != JSON_OBJECT) return spec_fail(g, root, "", "an object", e);
    g->fields = json_get(root, "fields"), g->labels = json_get(root, "labels"), g->splits = json_get(root, "splits");
    if (!g->fields || g->fields->type != JSON_OBJECT)
        return spec_fail(g, g->fields, "fields", "an object of fields", e);
    static const char *const known[] = {"task", "video",    "patient",   "split", "frame", "image", "answer", "id",
                                        "slot", "question", "procedure", "box.1", "box.2", "box.3", "box.4"};
    for (const Json *v = g->fields->child; v; v = v->next) {
        bool found = false;
        for (size_t i = 0; i < sizeof known / sizeof *known; i++) found |= !strcmp(known[i], v->key);
        if (!found || v->type != JSON_STRING)
            return spec_fail(g, v, v->key,
                             "a text for one of task, video, patient, split, frame, image, answer, id, slot, question, "
                             "procedure, box.1 to box.4",
                             e);
    }
    static const char *const tops[] = {"dataset", "procedure", "task",   "files",      "format", "header", "skip_lines",
                                       "records", "fields",    "labels", "vocabulary", "splits", "box",    "fps"};
    for (const Json *v = root->child; v; v = v->next) {
        bool found = false;
        for (size_t i = 0; i < sizeof tops / sizeof *tops; i++) found |= !strcmp(tops[i], v->key);
        if (!found) return spec_fail(g, v, v->key, "a member that data/README.md names", e);
    }
    if ((task = spec_text(g, root, "dataset"))) g->im->dataset = keep(g->im, "%s", task);
    if ((task = spec_text(g, root, "procedure"))) g->im->procedure = keep(g->im, "%s", task);
    task = spec_text(g, root, "task");
    if (!task && !json_get(g->fields, "task"))
        return spec_fail(g, json_get(root, "task"), "task", "the name of a task, here or among the fields", e);
    if (task && task_of(task) < 0) return spec_fail(g, json_get(root, "task"), "task", "the name of a task", e);
    if (task) g->task = (enum Task)task_of(task);
    if (!json_double(g->spec, root, "fps", false, 0, 1000, &g->fps, e)) return false;
    g->box_form = spec_text(g, root, "box");
    if (g->box_form) {
        bool found = false;
        for (const char *p = forms; *p;) {
            size_t n = strcspn(p, "|");
            found |= n == strlen(g->box_form) && !memcmp(p, g->box_form, n);
            p += n + (p[n] == '|');
        }
        if (!found) return spec_fail(g, json_get(root, "box"), "box", forms, e);
    } else g->box_form = "xyxy pixels";
    const Json *v = json_get(root, "vocabulary");
    if (v && v->type != JSON_ARRAY) return spec_fail(g, v, "vocabulary", "a list of labels", e);
    if (v) {
        g->words = alloc_or_die(v->count + 1u, sizeof *g->words, "a vocabulary");
        g->vocabulary.what = "label of the mapping's vocabulary", g->vocabulary.names = g->words;
        for (const Json *w = v->child; w; w = w->next) {
            if (w->type != JSON_STRING) return spec_fail(g, w, "vocabulary", "a text", e);
            g->words[g->vocabulary.n++] = keep(g->im, "%s", w->str);
        }
    }
    return true;
}

bool import_generic(Import *im, Err *e) {
    static const char *const formats[] = {"csv", "tsv", "pipe", "blank", "json"};
    static const char separators[] = {',', '\t', '|', ' ', 0};
    JsonDoc d;
    if (!json_read(&d, im->o->spec, LIMIT_CONFIG_BYTES, (JsonOptions){.refuse_duplicates = true}, e)) return false;
    Generic g = {.im = im, .spec = &d};
    const Json *root = d.root, *files = json_get(root, "files");
    bool ok = generic_open(&g, root, e), header = true;
    int64_t skip = 0;
    const char *format = ok ? spec_text(&g, root, "format") : NULL,
               *records = ok ? spec_text(&g, root, "records") : NULL;
    int kind = -1;
    for (int i = 0; format && i < 5; i++)
        if (!strcmp(format, formats[i])) kind = i;
    if (ok && kind < 0) ok = spec_fail(&g, json_get(root, "format"), "format", "csv, tsv, pipe, blank or json", e);
    ok = ok && json_bool(&d, root, "header", false, &header, e) &&
         json_int(&d, root, "skip_lines", false, 0, 1000, &skip, e);
    if (ok && (!files || files->type != JSON_ARRAY || !files->count))
        ok = spec_fail(&g, files, "files", "a list of files", e);
    for (const Json *f = ok ? files->child : NULL; ok && f;
         f = f->next) { // "a.csv", or {"path": "a.csv", "split": "train"}
        const char *name = f->type == JSON_STRING ? f->str : spec_text(&g, f, "path");
        g.split = f->type == JSON_OBJECT ? spec_text(&g, f, "split") : NULL;
        if (g.split) g.split = keep(im, "%s", g.split);
        if (!name || *name == '/' || strstr(name, "..")) {
            ok = spec_fail(&g, f, "files", "a path inside of the data set, or {\"path\": ..., \"split\": ...}", e);
            break;
        }
        g.file = tree_path_of(im, "%s", name);
        im->files++;
        ok = kind == 4 ? generic_json(&g, g.file, records, e)
                       : generic_table(&g, g.file, separators[kind], header, skip, e);
    }
    im->kept_words = g.words; // records point at them
    json_free(&d);
    return ok;
}
