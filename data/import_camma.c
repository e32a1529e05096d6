// import_camma.c - the sets of the CAMMA family and their relatives: cholecystectomy and bypass.
//
// What it is:  Cholec80, CholecT45, CholecT50, CholecTrack20, Cholec80-CVS, Endoscapes2023, MultiBypass140.
// What it is not: splits by number, patients on both sides, writing (import.c).
// Read before: import.h.  Read next: import_vqa.c.
// Sources: CAMMA-public/TF-Cholec80, cholect50 (docs/README-Format.md), cholect45, ivtmetrics (maps.txt), cholectrack20, Endoscapes,
//          MultiBypass140; ManuelRios18/CHOLEC80-CVS-PUBLIC.
#include "import.h"

// -------------------------------------------------------------------------------------------------------- vocabularies
#define VOCABULARY(id, text, names, other_names)                                                                       \
    const Vocabulary id = {text, names, (int)(sizeof names / sizeof *names), other_names, false}

static const char *const phase_names[] = {
    "Preparation",           "Calot Triangle Dissection", "Clipping Cutting",      "Gallbladder Dissection",
    "Gallbladder Packaging", "Cleaning Coagulation",      "Gallbladder Retraction"};
static const char *const phase_aliases[][2] = {{"carlot-triangle-dissection", "Calot Triangle Dissection"},
                                               {"clipping-and-cutting", "Clipping Cutting"},
                                               {"cleaning-and-coagulation", "Cleaning Coagulation"},
                                               {"gallbladder-extraction", "Gallbladder Retraction"},
                                               {NULL, NULL}};
VOCABULARY(cholec80_phases, "phase of Cholec80", phase_names, phase_aliases);

static const char *const tool_names[] = {"grasper", "bipolar",   "hook",        "scissors",
                                         "clipper", "irrigator", "specimen bag"};
VOCABULARY(cholec_tools, "tool", tool_names, NULL);
static VOCABULARY(cholec_verbs, "verb", cholect50_verbs, NULL);
static VOCABULARY(cholec_targets, "target", cholect50_targets, NULL);
enum { MOST_BOXES = 64, INSTRUMENTS = 6, VERBS = 10, TARGETS = 15, NULL_VERB = 9 };

// --------------------------------------------------------------------------------------------------------------- tools
// Where the frames of a video may be: beneath --frames, else in the set's own folder, ROOT/frames or ROOT.
static bool video_frames(Import *im, Frames *f, const char *own, int64_t number, Err *e) {
    const char *dirs[16],
        *bases[3] = {own ? tree_path_of(im, "%s", own) : NULL, tree_path_of(im, "frames"), im->o->root};
    int n = 0;
    for (int b = 0; b < 3; b++)
        for (int k = 0; k < 5; k++) {
            char name[40];
            if (!bases[b] || (im->o->frames && b)) continue;
            snprintf(name, sizeof name, "%s%0*lld", k < 2 || k == 4 ? k == 1 ? "VID" : "video" : "", k < 3 ? 2 : 1,
                     (long long)number);
            dirs[n++] = keep(im, "%s/%s", im->o->frames ? im->o->frames : bases[b], name);
        }
    return frames_open(f, dirs, n, e);
}

static const char *patient_of(Import *im, int64_t number) { return keep(im, "camma-%lld", (long long)number); }

// The number in names like "video01-phase.txt": digits between a prefix and a suffix; -1 when the name is another one.
static int64_t name_number(const char *name, const char *prefix, const char *suffix) {
    size_t n = strlen(name), a = strlen(prefix), b = strlen(suffix);
    int64_t number;
    if (n <= a + b || strncmp(name, prefix, a) || strcmp(name + n - b, suffix) ||
        !text_int(name + a, n - a - b, &number))
        return -1;
    return number;
}

static bool json_whole(const JsonDoc *d, const Json *v, const char *what, int64_t min, int64_t max, int64_t *out,
                       Err *e) {
    if (v && v->type == JSON_NUMBER && v->integer && v->i >= min && v->i <= max) return *out = v->i, true;
    double whole = v && v->type == JSON_NUMBER ? v->number : NAN; // some exporters write 7.0
    if (whole == floor(whole) && whole >= (double)min && whole <= (double)max) return *out = (int64_t)whole, true;
    return err_set(e, "E-DS-13", json_at(d, v, what),
                   "expected an integer from %lld to %lld; found %s; do: check the file", (long long)min,
                   (long long)max, v ? json_shown(v) : "nothing");
}

static bool json_kind(const JsonDoc *d, const Json *v, JsonType type, const char *what, Err *e) {
    static const char *const kinds[] = {"null", "false", "true", "a number", "a text", "a list", "an object"};
    if (v && v->type == type) return true;
    return err_set(e, "E-DS-13", json_at(d, v, what),
                   "expected %s; found %s; do: check that this is the file of the data set", kinds[type],
                   v ? json_shown(v) : "nothing");
}

// ------------------------------------------------------------------------------------------------------------ Cholec80
typedef struct PhaseFile { // of one video; both tables may be missing
    Table phases, tools;
    int tool_at[16]; // vocabulary id of a column, -1
} PhaseFile;

static void phase_file_free(PhaseFile *p) { table_free(&p->phases), table_free(&p->tools); }

static bool read_optional(Import *im, Table *t, const char *path, const char *what, Err *e) {
    *t = (Table){0};
    if (!file_exists(path)) {
        skip_add(im, what, path, 1);
        return true;
    }
    if (!table_read(t, path, '\t', e)) return false;
    im->files++;
    im->rows += t->n;
    return true;
}

static bool frames_rise(const Table *t, int64_t *last,
                        Err *e) { // first column: frame numbers, each above the one before
    *last = -1;
    for (int64_t i = 1; i < t->n; i++) {
        int64_t frame;
        if (!table_int(t, &t->rows[i], 0, "Frame", 0, 100000000, &frame, e)) return false;
        if (frame <= *last)
            return err_set(e, "E-DS-13", AT(.file = t->file, .line = t->rows[i].line, .field = "Frame"),
                           "expected rising frame numbers; found %lld behind %lld; do: check the file",
                           (long long)frame, (long long)*last);
        *last = frame;
    }
    return true;
}

static bool header_is(const Table *t, int64_t columns, const char *first, Err *e) {
    if (!t->n || !table_columns(t, &t->rows[0], columns, columns > 2, "the header", e))
        return t->n ? false
                    : err_set(e, "E-DS-13", AT(.file = t->file),
                              "expected a header and rows; found none; do: fetch the file again");
    if (!strcasecmp(t->rows[0].cells[0].p, first)) return true;
    return err_set(e, "E-DS-13", AT(.file = t->file, .line = t->rows[0].line),
                   "expected a header that begins with %s; found %s; do: %s", first,
                   quoted(t->rows[0].cells[0].p, t->rows[0].cells[0].len),
                   "check that this is the file of the data set");
}

static bool cholec80_read(Import *im, PhaseFile *p, int64_t number, int64_t *last, Err *e) {
    int64_t last_phase = -1, last_tool = -1;
    *p = (PhaseFile){0};
    if (!read_optional(im, &p->phases, tree_path_of(im, "phase_annotations/video%02lld-phase.txt", (long long)number),
                       "missing phase file", e) ||
        !read_optional(im, &p->tools, tree_path_of(im, "tool_annotations/video%02lld-tool.txt", (long long)number),
                       "missing tool file", e))
        return false;
    if (p->phases.file && (!header_is(&p->phases, 2, "Frame", e) || !frames_rise(&p->phases, &last_phase, e)))
        return false;
    if (p->tools.file && (!header_is(&p->tools, 3, "Frame", e) || !frames_rise(&p->tools, &last_tool, e))) return false;
    for (int64_t c = 1; p->tools.n && c < p->tools.rows[0].n; c++) { // columns are named: their order does not matter
        const Cell *name = &p->tools.rows[0].cells[c];
        Where at = AT(.file = p->tools.file, .line = p->tools.rows[0].line);
        int id = label_of(&cholec_tools, name->p, name->len);
        if (c >= 16 || (id < 0 && !unknown_label(im, &cholec_tools, at, name->p, name->len, e)))
            return e->code[0] ? false
                              : err_set(e, "E-DS-13", at, "expected at most 15 tools; found more; do: check the file");
        p->tool_at[c] = id;
    }
    *last = last_phase > last_tool ? last_phase : last_tool;
    return true;
}

static bool cholec80_tools(Import *im, const ImportFrame *f, const PhaseFile *p, const TableRow *r, Err *e) {
    const char *names[16];
    int n = 0;
    Text list = {0};
    if (!table_columns(&p->tools, r, p->tools.rows[0].n, false, "as the header has", e)) return false;
    for (int id = 0; id < cholec_tools.n; id++)
        for (int c = 1; c < r->n; c++) {
            int64_t present;
            if (p->tool_at[c] != id) continue;
            if (!table_int(&p->tools, r, c, cholec_tools.names[id], 0, 1, &present, e)) return false;
            if (present) names[n++] = cholec_tools.names[id];
        }
    if (!n) return skip_add(im, "no tool to name", f->video, task_on(im, TASK_TOOL)), true;
    task_list_text(names, n, &list);
    bool ok = item_add(im, f,
                       (Question){.task = TASK_TOOL,
                                  .answer = keep(im, "%s", list.p),
                                  .at = AT(.file = p->tools.file, .line = r->line)},
                       e);
    text_free(&list);
    return ok;
}

static bool cholec80_frame(Import *im, ImportFrame *f, const PhaseFile *p, const TableRow *phase, const TableRow *tools,
                           Err *e) {
    if (phase) {
        if (!table_columns(&p->phases, phase, 2, false, "Frame, Phase", e)) return false;
        const Cell *c = &phase->cells[1];
        int id = label_of(&cholec80_phases, c->p, c->len);
        Where at = AT(.file = p->phases.file, .line = phase->line, .field = "Phase");
        if (id < 0
                ? !unknown_label(im, &cholec80_phases, at, c->p, c->len, e)
                : !item_add(
                      im, f,
                      (Question){.task = TASK_PHASE, .answer = phase_names[id], .choices = &cholec80_phases, .at = at},
                      e))
            return false;
    }
    return !tools || cholec80_tools(im, f, p, tools, e);
}

enum { CHOLEC80_FPS = 25 };

static bool cholec80_video(Import *im, int64_t number, FrameNaming naming, Err *e) {
    PhaseFile p;
    Frames frames = {0};
    int64_t last, a = 1, b = 1;
    const char *video = keep(im, "%02lld", (long long)number), *split = split_of(im, video, number);
    if (!split) return true;
    bool ok = cholec80_read(im, &p, number, &last, e) && video_frames(im, &frames, NULL, number, e);
    video_begin(im);
    while (ok && (a < p.phases.n || b < p.tools.n)) { // both rise
        int64_t frame_a = INT64_MAX, frame_b = INT64_MAX;
        const TableRow *phase = a < p.phases.n ? &p.phases.rows[a] : NULL,
                       *tools = b < p.tools.n ? &p.tools.rows[b] : NULL;
        if (phase) text_int(phase->cells[0].p, phase->cells[0].len, &frame_a);
        if (tools) text_int(tools->cells[0].p, tools->cells[0].len, &frame_b);
        int64_t frame = frame_a < frame_b ? frame_a : frame_b;
        if (frame_a > frame) phase = NULL;
        else a++;
        if (frame_b > frame) tools = NULL;
        else b++;
        if (!sample_keeps(im, frame, CHOLEC80_FPS)) continue;
        int64_t image = naming_number(naming, frame, CHOLEC80_FPS);
        ImportFrame f = {.video = video,
                         .patient = patient_of(im, number),
                         .split = split,
                         .frame = frame,
                         .fps = CHOLEC80_FPS,
                         .dir = frames.dir,
                         .name = image < 0 ? NULL : frames_find(&frames, image)};
        f.source = keep(im, "\"frame_base\":0,\"image_number\":%lld,\"image_base\":%d", (long long)image,
                        naming == SECONDS_1 || naming == FRAMES_1);
        if (frame_open(im, &f, false, e)) ok = cholec80_frame(im, &f, &p, phase, tools, e);
        else ok = !e->code[0];
    }
    frames_free(&frames), phase_file_free(&p);
    return ok;
}

bool import_cholec80(Import *im, Err *e) {
    bool here[1000] = {false}, ok = true;
    Names names;
    NamingFacts facts = {0};
    FrameNaming naming;
    const char *const folders[2] = {"phase_annotations", "tool_annotations"}, *const ends[2] = {"-phase.txt",
                                                                                                "-tool.txt"};
    for (int k = 0; ok && k < 2; k++) {
        const char *dir = tree_path_of(im, "%s", folders[k]);
        if (!folder_exists(dir)) continue;
        if (!(ok = folder_names(&names, dir, e))) break;
        for (int64_t i = 0; i < names.n; i++) {
            int64_t number = name_number(names.p[i], "video", ends[k]);
            if (number > 0 && number < 1000) here[number] = true;
            else skip_add(im, "file that is no annotation", names.p[i], 1);
        }
        names_free(&names);
    }
    int64_t files = im->files, rows = im->rows;
    int reasons = im->n_reasons;
    for (int64_t v = 1; ok && v < 1000; v++) { // how are the frames numbered? all videos alike
        Frames frames = {0};
        PhaseFile p = {0};
        int64_t last = 0;
        if (!here[v] || !(ok = video_frames(im, &frames, NULL, v, e))) continue;
        if (frames.n && (ok = cholec80_read(im, &p, v, &last, e)))
            naming_see(&facts, &frames, last / CHOLEC80_FPS + 1, CHOLEC80_FPS);
        frames_free(&frames), phase_file_free(&p);
    }
    im->files = files, im->rows = rows, im->n_reasons = reasons; // the second reading counts
    if (!ok || !naming_tell(im, &facts, CHOLEC80_FPS, &naming, e)) return false;
    for (int64_t v = 1; ok && v < 1000; v++)
        if (here[v]) ok = cholec80_video(im, v, naming, e);
    return ok;
}

// ------------------------------------------------------------------------------------------------------- CholecT45/T50
// What a frame of triplets gives: the set of triplets, its instruments, and the verb when there is one triplet only.
static bool triplets_add(Import *im, const ImportFrame *f, const uint8_t present[100], Where at, Err *e) {
    const char *tools[INSTRUMENTS];
    int n = 0, n_tools = 0, only = -1;
    Text list = {0};
    bool seen[INSTRUMENTS] = {false};
    for (int id = 0; id < 100; id++) {
        const uint8_t *p = cholect50_triplets[id];
        if (!present[id]) continue;
        text_addf(&list, "%s%s %s %s", n++ ? ", " : "", tool_names[p[0]], cholect50_verbs[p[1]],
                  cholect50_targets[p[2]]);
        seen[p[0]] = true, only = id;
    }
    if (!n)
        return skip_add(im, "frame without a triplet", keep(im, "%s frame %lld", f->video, (long long)f->frame), 1),
               true;
    bool ok = item_add(im, f, (Question){.task = TASK_TRIPLET, .answer = keep(im, "%s", list.p), .at = at}, e);
    text_free(&list);
    for (int i = 0; i < INSTRUMENTS; i++)
        if (seen[i]) tools[n_tools++] = tool_names[i];
    task_list_text(tools, n_tools, &list);
    ok = ok && item_add(im, f, (Question){.task = TASK_TOOL, .answer = keep(im, "%s", list.p), .at = at}, e);
    text_free(&list);
    if (n == 1 && cholect50_triplets[only][1] != NULL_VERB)
        return ok && item_add(im, f,
                              (Question){.task = TASK_ACTION,
                                         .answer = cholect50_verbs[cholect50_triplets[only][1]],
                                         .choices = &cholec_verbs,
                                         .at = at},
                              e);
    skip_add(im, n > 1 ? "action: several triplets" : "action: null triplet", f->video, task_on(im, TASK_ACTION));
    return ok;
}

// One id of a row by the names of the file, so that no order is assumed; the published order where the file does not name it.
static bool t50_name(Import *im, const JsonDoc *d, const char *kind, int64_t id, const Vocabulary *v, int *out,
                     bool *known, Err *e) {
    char key[24];
    snprintf(key, sizeof key, "%lld", (long long)id);
    const Json *name = json_get(json_get(json_get(d->root, "categories"), kind), key);
    *known = true;
    if (!name) {
        *out = (int)id;
        return id < v->n || err_set(e, "E-DS-12", AT(.file = d->file, .field = kind),
                                    "expected an id below %d; found %s; do: check the file", v->n, key);
    }
    if (!json_kind(d, name, JSON_STRING, kind, e)) return false;
    *out = label_of(v, name->str, name->len);
    if (*out >= 0) return true;
    *known = false;
    return unknown_label(im, v, json_at(d, name, kind), name->str, name->len, e);
}

// "grasper,dissect,cystic_plate"
static int triplet_of(const char *text) {
    int id[3];
    const Vocabulary *const parts[3] = {&cholec_tools, &cholec_verbs, &cholec_targets};
    for (int k = 0; k < 3; k++) {
        size_t n = strcspn(text, ",");
        if ((id[k] = label_of(parts[k], text, n)) < 0 || (k < 2) != (text[n] == ',')) return -1;
        text += n + 1;
    }
    for (int i = 0; i < 100; i++)
        if (cholect50_triplets[i][0] == id[0] && cholect50_triplets[i][1] == id[1] && cholect50_triplets[i][2] == id[2])
            return i;
    return -1;
}

typedef struct T50Frame {
    uint8_t present[100];
    int phase; // -1: none
    Box boxes[MOST_BOXES];
    int n_boxes, n_tools;
    bool bad;
} T50Frame;

// [triplet, instrument, score, x, y, w, h, verb, target, score, x, y, w, h, phase]
static bool t50_row(Import *im, const JsonDoc *d, const Json *row, T50Frame *t, Err *e) {
    const Json *cell[15], *c = row->child;
    int64_t id[3], triplet, phase;
    int part[3] = {-1, -1, -1}, phase_id;
    bool known;
    if (!json_kind(d, row, JSON_ARRAY, "annotations", e)) return false;
    if (row->count != 15)
        return err_set(e, "E-DS-13", json_at(d, row, "annotations"),
                       "expected 15 numbers; found %u; do: check that this is CholecT50", row->count);
    for (int i = 0; i < 15; i++, c = c->next) {
        if (!json_kind(d, c, JSON_NUMBER, "annotations", e)) return false;
        cell[i] = c;
    }
    if (!json_whole(d, cell[0], "triplet", -1, 99, &triplet, e) ||
        !json_whole(d, cell[1], "instrument", -1, INSTRUMENTS - 1, &id[0], e) ||
        !json_whole(d, cell[7], "verb", -1, VERBS - 1, &id[1], e) ||
        !json_whole(d, cell[8], "target", -1, TARGETS - 1, &id[2], e) ||
        !json_whole(d, cell[14], "phase", -1, cholec80_phases.n - 1, &phase, e))
        return false;
    if (phase >= 0) {
        if (!t50_name(im, d, "phase", phase, &cholec80_phases, &phase_id, &known, e)) return false;
        if (known && t->phase >= 0 && t->phase != phase_id)
            return err_set(e, "E-DS-13", json_at(d, cell[14], "phase"),
                           "expected one phase for a frame; found %s and %s; do: check the file", phase_names[t->phase],
                           phase_names[phase_id]);
        if (known) t->phase = phase_id;
    }
    static const char *const kinds[3] = {"instrument", "verb", "target"};
    const Vocabulary *const parts[3] = {&cholec_tools, &cholec_verbs, &cholec_targets};
    for (int k = 0; k < 3; k++) {
        if (id[k] < 0) continue;
        if (!t50_name(im, d, kinds[k], id[k], parts[k], &part[k], &known, e)) return false;
        t->bad |= !known;
    }
    if (triplet >= 0) {
        char key[24];
        snprintf(key, sizeof key, "%lld", (long long)triplet);
        const Json *name = json_get(json_get(json_get(d->root, "categories"), "triplet"), key);
        int known_id = name && name->type == JSON_STRING ? triplet_of(name->str) : (int)triplet;
        static const Vocabulary bank = {"triplet of the 100 of CholecT50", NULL, 0, NULL, false};
        if (known_id < 0) {
            t->bad = true;
            return unknown_label(im, &bank, json_at(d, name, "triplet"), name->str, name->len, e);
        }
        for (int k = 0; k < 3; k++)
            if (part[k] >= 0 && part[k] != cholect50_triplets[known_id][k])
                return err_set(e, "E-DS-13", json_at(d, cell[k ? 6 + k : 1], kinds[k]),
                               "expected the %s of triplet %d (%s); found %s; do: check the file", kinds[k], known_id,
                               parts[k]->names[cholect50_triplets[known_id][k]], parts[k]->names[part[k]]);
        t->present[known_id] = 1;
        part[0] = cholect50_triplets[known_id][0];
    }
    if (part[0] < 0) return true;
    t->n_tools++;
    double b[4];
    for (int i = 0; i < 4; i++) b[i] = cell[3 + i]->number;
    if (b[0] < 0 || b[1] < 0 || b[2] <= 0 || b[3] <= 0 || t->n_boxes >= MOST_BOXES) return true;
    if (b[0] + b[2] > 1 + 1e-3 || b[1] + b[3] > 1 + 1e-3)
        return err_set(
            e, "E-DS-06", json_at(d, cell[3], "annotations"),
            "expected x, y, w, h as shares of the picture; found [%.10g,%.10g,%.10g,%.10g]; do: check the file", b[0],
            b[1], b[2], b[3]);
    Box *box = &t->boxes[t->n_boxes++];
    *box = (Box){b[0], b[1], b[0] + b[2] > 1 ? 1 : b[0] + b[2], b[1] + b[3] > 1 ? 1 : b[1] + b[3], ""};
    snprintf(box->label, sizeof box->label, "%s", tool_names[part[0]]);
    return true;
}

static void scale_boxes(Box *b, int n, double width, double height) {
    for (int i = 0; i < n; i++) b[i].x1 *= width, b[i].x2 *= width, b[i].y1 *= height, b[i].y2 *= height;
}

static bool t50_frame(Import *im, const JsonDoc *d, const Json *rows, ImportFrame *f, Err *e) {
    T50Frame t = {.phase = -1};
    Where at = json_at(d, rows, "annotations");
    for (const Json *row = rows->child; row; row = row->next)
        if (!t50_row(im, d, row, &t, e)) return false;
    if (!rows->count)
        return skip_add(im, "null frame: no row", keep(im, "%s frame %lld", f->video, (long long)f->frame), 1), true;
    if (t.bad) return skip_add(im, "frame with an unknown label", f->video, 1), true;
    bool boxed = t.n_boxes && t.n_boxes == t.n_tools;
    if (t.n_boxes && !boxed)
        skip_add(im, "boxes of a frame where some tool has none", f->video,
                 task_on(im, TASK_TOOL_BOX) || task_on(im, TASK_TOOL_BOXES));
    if (!frame_open(im, f, boxed, e)) return !e->code[0];
    if (t.phase >= 0 &&
        !item_add(im, f,
                  (Question){.task = TASK_PHASE, .answer = phase_names[t.phase], .choices = &cholec80_phases, .at = at},
                  e))
        return false;
    if (!triplets_add(im, f, t.present, at, e)) return false;
    if (!boxed) return true;
    bool tool = im->task_wanted[TASK_TOOL];
    scale_boxes(t.boxes, t.n_boxes, (double)f->width, (double)f->height);
    im->task_wanted[TASK_TOOL] = false; // asked already, from the triplets
    bool ok = tools_add(im, f, t.boxes, t.n_boxes, false, at, e);
    im->task_wanted[TASK_TOOL] = tool;
    return ok;
}

typedef struct Keyed { // members of an object whose keys are frame numbers, in their order
    int64_t number;
    const Json *v;
} Keyed;

static int by_frame(const void *a, const void *b) {
    int64_t x = ((const Keyed *)a)->number, y = ((const Keyed *)b)->number;
    return (x > y) - (x < y);
}

static bool keyed_frames(const JsonDoc *d, const Json *object, Keyed **out, int64_t *n, Err *e) {
    *n = 0;
    *out = NULL;
    if (!json_kind(d, object, JSON_OBJECT, "annotations", e)) return false;
    *out = alloc_or_die(object->count + 1u, sizeof **out, "frames of a video");
    for (const Json *v = object->child; v; v = v->next) {
        Keyed *k = &(*out)[(*n)++];
        k->v = v;
        if (!text_int(v->key, v->key_len, &k->number) || k->number < 0)
            return err_set(e, "E-DS-13", json_at(d, v, "annotations"),
                           "expected a frame number as the key; found %s; do: check the file",
                           quoted(v->key, v->key_len));
    }
    qsort(*out, (size_t)*n, sizeof **out, by_frame);
    return true;
}

static bool t50_video(Import *im, const char *path, int64_t number, Err *e) {
    JsonDoc d;
    Frames frames = {0};
    Keyed *rows = NULL;
    int64_t n = 0;
    double fps = 1;
    const char *video = keep(im, "%02lld", (long long)number), *split = split_of(im, video, number);
    if (!split) return true;
    if (!read_json(im, &d, path, e)) return false;
    bool ok = json_kind(&d, d.root, JSON_OBJECT, "", e) && json_double(&d, d.root, "fps", false, 1e-3, 1000, &fps, e) &&
              keyed_frames(&d, json_get(d.root, "annotations"), &rows, &n, e) &&
              video_frames(im, &frames, "videos", number, e);
    if (ok && !frames.n) {
        frames_free(&frames);
        ok = video_frames(im, &frames, "data", number, e);
    }
    video_begin(im);
    snprintf(im->naming, sizeof im->naming, "index of the annotation, from 0");
    for (int64_t i = 0; ok && i < n; i++) {
        if (!json_kind(&d, rows[i].v, JSON_ARRAY, "annotations", e)) ok = false;
        else if (im->rows += rows[i].v->count, sample_keeps(im, rows[i].number, fps)) {
            ImportFrame f = {.video = video,
                             .patient = patient_of(im, number),
                             .split = split,
                             .frame = rows[i].number,
                             .fps = fps,
                             .dir = frames.dir,
                             .name = frames_find(&frames, rows[i].number)};
            f.source =
                keep(im, "\"frame_base\":0,\"image_number\":%lld,\"image_base\":0,\"boxes\":\"x,y,w,h in shares\"",
                     (long long)f.frame);
            ok = t50_frame(im, &d, rows[i].v, &f, e);
        }
    }
    free(rows);
    frames_free(&frames), json_free(&d);
    return ok;
}

bool import_cholect50(Import *im, Err *e) {
    Names names;
    bool ok = true;
    const char *dir = tree_path_of(im, "labels");
    if (!folder_names(&names, dir, e)) return false;
    for (int64_t i = 0; ok && i < names.n; i++) {
        int64_t number = name_number(names.p[i], "VID", ".json");
        if (number > 0) ok = t50_video(im, keep(im, "%s/%s", dir, names.p[i]), number, e);
        else skip_add(im, "file that is no annotation", names.p[i], 1);
    }
    names_free(&names);
    return ok;
}

// One line of triplet/VID01.txt: the frame and a hundred zeros and ones.
static bool t45_row(Import *im, const Table *t, const TableRow *r, ImportFrame *f, Err *e) {
    uint8_t present[100];
    if (!table_columns(t, r, 101, false, "frame and 100 triplets", e)) return false;
    for (int id = 0; id < 100; id++) {
        int64_t value;
        if (!table_int(t, r, 1 + id, "triplet", 0, 1, &value, e)) return false;
        present[id] = (uint8_t)value;
    }
    if (!frame_open(im, f, false, e)) return !e->code[0];
    return triplets_add(im, f, present, AT(.file = t->file, .line = r->line), e);
}

// dict/maps.txt, when it is there, must say what we say: id, instrument, verb, target, ...
static bool t45_maps(Import *im, Err *e) {
    Table t;
    bool ok = true;
    const char *path = tree_path_of(im, "dict/maps.txt");
    if (!file_exists(path)) return skip_add(im, "missing dict/maps.txt: the published one is assumed", path, 1), true;
    if (!table_read(&t, path, ',', e)) return false;
    for (int64_t i = 0; ok && i < t.n; i++) {
        int64_t v[4];
        if (t.rows[i].cells[0].p[0] == '#') continue;
        ok = table_columns(&t, &t.rows[i], 4, true, "triplet, instrument, verb, target", e);
        for (int k = 0; ok && k < 4; k++) {
            const Cell *c = &t.rows[i].cells[k];
            while (*c->p == ' ') t.rows[i].cells[k].p++, t.rows[i].cells[k].len--;
            ok = table_int(&t, &t.rows[i], k, "id", 0, 99, &v[k], e);
        }
        if (ok && (v[1] != cholect50_triplets[v[0]][0] || v[2] != cholect50_triplets[v[0]][1] ||
                   v[3] != cholect50_triplets[v[0]][2]))
            ok = err_set(e, "E-DS-12", AT(.file = path, .line = t.rows[i].line),
                         "expected triplet %lld to be %s %s %s; found another; do: %s", (long long)v[0],
                         tool_names[cholect50_triplets[v[0]][0]], cholect50_verbs[cholect50_triplets[v[0]][1]],
                         cholect50_targets[cholect50_triplets[v[0]][2]], "use the published label files");
    }
    table_free(&t);
    return ok;
}

static bool t45_video(Import *im, const char *path, int64_t number, Err *e) {
    Table t;
    Frames frames = {0};
    int64_t last = -1;
    const char *video = keep(im, "%02lld", (long long)number), *split = split_of(im, video, number);
    if (!split) return true;
    if (!table_read(&t, path, ',', e)) return false;
    im->files++, im->rows += t.n;
    video_begin(im);
    bool ok = video_frames(im, &frames, "data", number, e);
    snprintf(im->naming, sizeof im->naming, "index of the annotation, from 0");
    for (int64_t i = 0; ok && i < t.n; i++) {
        int64_t frame;
        if (!(ok = table_int(&t, &t.rows[i], 0, "frame", 0, 100000000, &frame, e))) break;
        if (frame <= last) {
            ok = err_set(e, "E-DS-13", AT(.file = path, .line = t.rows[i].line),
                         "expected rising frames; found %lld behind %lld; do: check the file", (long long)frame,
                         (long long)last);
            break;
        }
        last = frame;
        if (!sample_keeps(im, frame, 1)) continue;
        ImportFrame f = {.video = video,
                         .patient = patient_of(im, number),
                         .split = split,
                         .frame = frame,
                         .fps = 1,
                         .dir = frames.dir,
                         .name = frames_find(&frames, frame)};
        f.source = keep(im, "\"frame_base\":0,\"image_number\":%lld,\"image_base\":0", (long long)frame);
        ok = t45_row(im, &t, &t.rows[i], &f, e);
    }
    frames_free(&frames), table_free(&t);
    return ok;
}

bool import_cholect45(Import *im, Err *e) {
    Names names;
    const char *dir = tree_path_of(im, "triplet");
    if (!t45_maps(im, e) || !folder_names(&names, dir, e)) return false;
    bool ok = true;
    for (int64_t i = 0; ok && i < names.n; i++) {
        int64_t number = name_number(names.p[i], "VID", ".txt");
        if (number > 0) ok = t45_video(im, keep(im, "%s/%s", dir, names.p[i]), number, e);
        else skip_add(im, "file that is no annotation", names.p[i], 1);
    }
    names_free(&names);
    return ok;
}

// ------------------------------------------------------------------------------------------------------ CholecTrack20
// The name that categories.KIND, a list of {"id", "name"}, gives to an id; NULL when it does not name it.
static const Json *category_of(const JsonDoc *d, const char *kind, int64_t id) {
    const Json *list = json_get(json_get(d->root, "categories"), kind);
    for (const Json *c = list && list->type == JSON_ARRAY ? list->child : NULL; c; c = c->next) {
        const Json *number = json_get(c, "id"), *name = json_get(c, "name");
        if (number && number->integer && number->i == id && name && name->type == JSON_STRING) return name;
    }
    return NULL;
}

static bool track_label(Import *im, const JsonDoc *d, const Json *v, const char *kind, const Vocabulary *words,
                        int *out, Err *e) {
    int64_t id;
    *out = -1;
    if (!json_whole(d, v, kind, -1, 1000, &id, e)) return false;
    if (id < 0) return true;
    const Json *name = category_of(d, kind, id);
    *out = name ? label_of(words, name->str, name->len) : id < words->n ? (int)id : -1;
    if (*out >= 0) return true;
    const char *found = name ? name->str : keep(im, "%lld", (long long)id);
    return unknown_label(im, words, json_at(d, v, kind), found, strlen(found), e);
}

// tool_bbox is x, y, w, h in shares of the picture in the files, in pixels in the README's example: one number above 1 in a
// video decides for pixels.
static bool track_pixels(const Keyed *rows, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        for (const Json *r = rows[i].v->type == JSON_ARRAY ? rows[i].v->child : NULL; r; r = r->next) {
            const Json *box = json_get(r, "tool_bbox");
            for (const Json *c = box && box->type == JSON_ARRAY ? box->child : NULL; c; c = c->next)
                if (c->type == JSON_NUMBER && c->number > 1) return true;
        }
    return false;
}

static bool track_frame(Import *im, const JsonDoc *d, const Json *records, ImportFrame *f, bool pixels, int64_t width,
                        int64_t height, Err *e) {
    Box boxes[MOST_BOXES];
    int n = 0, phase = -1;
    Where at = json_at(d, records, "annotations");
    bool unknown = false;
    if (!frame_open(im, f, true, e)) return !e->code[0];
    for (const Json *r = records->child; r; r = r->next) {
        const Json *box = json_get(r, "tool_bbox"), *c = box ? box->child : NULL;
        double b[4];
        int tool, now = -1;
        if (!track_label(im, d, json_get(r, "instrument"), "tools", &cholec_tools, &tool, e)) return false;
        if (json_get(r, "phase") && !track_label(im, d, json_get(r, "phase"), "phases", &cholec80_phases, &now, e))
            return false;
        if (now >= 0) phase = now;
        if (!json_kind(d, box, JSON_ARRAY, "tool_bbox", e)) return false;
        if (box->count != 4 || n == MOST_BOXES)
            return err_set(e, "E-DS-06", json_at(d, box, "tool_bbox"),
                           "expected 4 numbers, and at most %d boxes; found another count; do: check "
                           "the file",
                           MOST_BOXES);
        for (int k = 0; k < 4; k++, c = c->next) {
            if (!json_kind(d, c, JSON_NUMBER, "tool_bbox", e)) return false;
            b[k] = c->number;
        }
        if (tool < 0) {
            unknown = true;
            continue;
        }
        boxes[n] = (Box){b[0], b[1], b[0] + b[2], b[1] + b[3], ""};
        snprintf(boxes[n++].label, sizeof boxes[0].label, "%s", tool_names[tool]);
    }
    if (unknown) return skip_add(im, "frame with an unknown label", f->video, 1), true;
    if (!pixels) scale_boxes(boxes, n, (double)f->width, (double)f->height);
    else if (width && (width != f->width || height != f->height))
        return err_set(
            e, "E-DS-06", at,
            "expected frames of %lldx%lld, as the boxes are in pixels; found %lldx%lld; do: extract them unscaled",
            (long long)width, (long long)height, (long long)f->width, (long long)f->height);
    if (phase >= 0 &&
        !item_add(im, f,
                  (Question){.task = TASK_PHASE, .answer = phase_names[phase], .choices = &cholec80_phases, .at = at},
                  e))
        return false;
    return tools_add(im, f, boxes, n, true, at, e);
}

static bool track_video(Import *im, const char *folder, int64_t number, const char *split, Err *e) {
    JsonDoc d;
    Keyed *rows = NULL;
    Frames frames = {0};
    int64_t n = 0, width = 0, height = 0;
    char name[40];
    snprintf(name, sizeof name, "VID%02lld", (long long)number);
    const char *video = keep(im, "%02lld", (long long)number), *base = tree_path_of(im, "%s/%s", folder, name);
    const char *const dirs[3] = {
        im->o->frames ? keep(im, "%s/%s", im->o->frames, name) : keep(im, "%s/Frames", base),
        im->o->frames ? keep(im, "%s/%s/%s/Frames", im->o->frames, folder, name) : keep(im, "%s/frames", base), NULL};
    if (im->n_own && !(split = split_of(im, video, number))) return true;
    if (!read_json(im, &d, keep(im, "%s/%s.json", base, name), e)) return false;
    const Json *info = json_get(d.root, "video");
    bool ok = json_kind(&d, d.root, JSON_OBJECT, "", e) &&
              json_int(&d, info, "width", false, 1, LIMIT_IMAGE_SIDE, &width, e) &&
              json_int(&d, info, "height", false, 1, LIMIT_IMAGE_SIDE, &height, e) &&
              keyed_frames(&d, json_get(d.root, "annotations"), &rows, &n, e) && frames_open(&frames, dirs, 3, e);
    bool pixels = ok && track_pixels(rows, n);
    video_begin(im);
    snprintf(im->naming, sizeof im->naming, "frame of the annotation");
    for (int64_t i = 0; ok && i < n; i++) {
        if (!(ok = json_kind(&d, rows[i].v, JSON_ARRAY, "annotations", e))) break;
        im->rows += rows[i].v->count;
        if (!sample_keeps(im, rows[i].number, 25)) continue;
        ImportFrame f = {.video = video,
                         .patient = patient_of(im, number),
                         .split = split,
                         .frame = rows[i].number,
                         .fps = 25,
                         .dir = frames.dir,
                         .name = frames_find(&frames, rows[i].number)};
        f.source = keep(im, "\"image_number\":%lld,\"boxes\":\"x,y,w,h in %s\"", (long long)f.frame,
                        pixels ? "pixels" : "shares");
        ok = track_frame(im, &d, rows[i].v, &f, pixels, width, height, e);
    }
    free(rows);
    frames_free(&frames), json_free(&d);
    return ok;
}

bool import_cholectrack20(Import *im, Err *e) {
    static const char *const folders[3] = {"Training", "Validation", "Testing"}, *const splits[3] = {"train", "val",
                                                                                                     "test"};
    bool ok = true;
    for (int s = 0; ok && s < 3; s++) {
        Names names;
        const char *dir = tree_path_of(im, "%s", folders[s]);
        if (!folder_exists(dir)) {
            skip_add(im, "missing folder of a split", dir, 1);
            continue;
        }
        if (!split_wanted(im, splits[s]) && !im->n_own) continue;
        if (!(ok = folder_names(&names, dir, e))) break;
        for (int64_t i = 0; ok && i < names.n; i++) {
            int64_t number = name_number(names.p[i], "VID", "");
            if (number > 0) ok = track_video(im, folders[s], number, splits[s], e);
            else skip_add(im, "name that is no video", names.p[i], 1);
        }
        names_free(&names);
    }
    return ok;
}

// --------------------------------------------------------------------------------------- critical view of safety (CVS)
// The three criteria in our order: two structures, hepatocystic triangle, cystic plate. Each source has an order of its own.
static bool cvs_add(Import *im, const ImportFrame *f, const bool met[3], Where at, Err *e) {
    static const enum Task tasks[3] = {TASK_CVS1, TASK_CVS2, TASK_CVS3};
    for (int k = 0; k < 3; k++)
        if (!item_add(im, f, (Question){.task = tasks[k], .answer = met[k] ? "yes" : "no", .at = at}, e)) return false;
    return item_add(im, f, (Question){.task = TASK_CVS, .answer = met[0] && met[1] && met[2] ? "yes" : "no", .at = at},
                    e);
}

// ------------------------------------------------------------------------------------------------------- Cholec80-CVS
typedef struct CvsSpan {
    int64_t video, from, to; // seconds, both inside
    int score[3];            // in our order
} CvsSpan;

static bool cvs_spans(Import *im, const char *path, CvsSpan **out, int64_t *n, Err *e) {
    static const char *const columns[8] = {"video",        "initial_minute", "initial_second",        "final_minute",
                                           "final_second", "two_structures", "hepatocystic_triangle", "cystic_plate"};
    Table t;
    int at[8];
    *n = 0;
    size_t length = strlen(path);
    if (length > 5 && !strcmp(path + length - 5, ".xlsx")) {
        Text csv = {0};
        bool read = xlsx_csv(&csv, path, e) && table_text(&t, path, csv.p ? csv.p : "", csv.len, ',', e);
        text_free(&csv);
        if (!read) return false;
    } else if (!table_read(&t, path, ',', e)) return false;
    bool ok =
        t.n > 1 || err_set(e, "E-DS-13", AT(.file = path),
                           "expected a header and rows; found %lld lines; do: export the sheet again", (long long)t.n);
    im->files++;
    for (int k = 0; ok && k < 8; k++) { // by name
        at[k] = -1;
        for (int64_t c = 0; c < t.rows[0].n; c++)
            if (!strcasecmp(t.rows[0].cells[c].p, columns[k])) at[k] = (int)c;
        ok = at[k] >= 0 || err_set(e, "E-DS-13", AT(.file = path, .line = t.rows[0].line, .field = columns[k]),
                                   "expected a column of this name; found none; do: export the sheet with its header");
    }
    *out = alloc_or_die((size_t)t.n + 1, sizeof **out, "intervals");
    for (int64_t i = 1; ok && i < t.n; i++) {
        int64_t v[8];
        im->rows++;
        ok = table_columns(&t, &t.rows[i], t.rows[0].n, false, "as the header has", e);
        for (int k = 0; ok && k < 8; k++)
            ok = table_int(&t, &t.rows[i], at[k], columns[k], 0, k == 0 ? 1000 : k < 5 ? 600 : 2, &v[k], e);
        if (!ok) break;
        CvsSpan s = {v[0], 60 * v[1] + v[2], 60 * v[3] + v[4], {(int)v[5], (int)v[6], (int)v[7]}};
        if (s.to < s.from) {
            ok = err_set(e, "E-DS-13", AT(.file = path, .line = t.rows[i].line),
                         "expected an interval that ends behind its start; found %lld s "
                         "to %lld s; do: mend the line",
                         (long long)s.from, (long long)s.to);
            break;
        }
        if (v[5] + v[6] + v[7]) (*out)[(*n)++] = s;
        else skip_add(im, "interval with all scores 0", keep(im, "%s:%lld", path, (long long)t.rows[i].line), 1);
    }
    table_free(&t);
    return ok;
}

// Second of the first ClippingCutting frame; the end of the phases without one; -1 without a phase file.
static bool clipping_second(Import *im, int64_t number, int64_t *second, Err *e) {
    PhaseFile p = {0};
    int64_t last;
    *second = -1;
    int reasons = im->n_reasons;
    bool ok = cholec80_read(im, &p, number, &last, e);
    im->n_reasons = reasons; // tools are not needed here
    for (int64_t i = 1; ok && i < p.phases.n; i++) {
        if (!(ok = table_columns(&p.phases, &p.phases.rows[i], 2, false, "Frame, Phase", e))) break;
        const Cell *c = &p.phases.rows[i].cells[1];
        int64_t frame = 0;
        text_int(p.phases.rows[i].cells[0].p, p.phases.rows[i].cells[0].len, &frame);
        *second = frame / CHOLEC80_FPS + 1;
        if (label_of(&cholec80_phases, c->p, c->len) != 2) continue;
        *second = (frame + CHOLEC80_FPS - 1) / CHOLEC80_FPS;
        break;
    }
    phase_file_free(&p);
    return ok;
}

static bool cvs_video(Import *im, const CvsSpan *spans, int64_t n, const char *path, int64_t number, FrameNaming naming,
                      Err *e) {
    Frames frames = {0};
    int64_t clip, from = 0, to = 0, threshold = im->o->cvs_score ? im->o->cvs_score : 2;
    const char *video = keep(im, "%02lld", (long long)number), *split = split_of(im, video, number);
    if (!split) return true;
    if (!clipping_second(im, number, &clip, e) || !video_frames(im, &frames, NULL, number, e)) return false;
    if (clip < 0) skip_add(im, "video without a phase file: only its intervals", video, 1);
    for (int64_t i = 0; i < n; i++)
        if (spans[i].video == number && spans[i].to + 1 > to) to = spans[i].to + 1;
    if (clip >= 0) { // the last part of what comes before the first clip
        double part = im->o->cvs_part > 0 ? im->o->cvs_part : 0.15;
        to = clip;
        from = (int64_t)ceil((double)clip * (1 - part) - 1e-9);
    }
    video_begin(im);
    bool ok = true;
    for (int64_t s = from; ok && s < to; s++) {
        const CvsSpan *span = NULL;
        for (int64_t i = 0; i < n; i++) {
            if (spans[i].video != number || s < spans[i].from || s > spans[i].to) continue;
            bool after =
                span && span->to == s && spans[i].from == s && span->from < s; // a shared second is the next one's
            bool before = span && spans[i].to == s && span->from == s && spans[i].from < s;
            if (span && !after && !before && memcmp(span->score, spans[i].score, sizeof span->score))
                return frames_free(&frames),
                       err_set(e, "E-DS-13", AT(.file = path),
                               "expected one score for video %lld at %lld s; found two; do: mend the intervals",
                               (long long)number, (long long)s);
            if (!before) span = &spans[i];
        }
        if (!span && clip < 0) continue;
        if (!sample_keeps(im, s * CHOLEC80_FPS, CHOLEC80_FPS)) continue;
        int64_t frame = s * CHOLEC80_FPS, image = naming_number(naming, frame, CHOLEC80_FPS);
        ImportFrame f = {.video = video,
                         .patient = patient_of(im, number),
                         .split = split,
                         .frame = frame,
                         .fps = CHOLEC80_FPS,
                         .dir = frames.dir,
                         .name = frames_find(&frames, image)};
        f.source =
            keep(im, "\"frame_base\":0,\"image_number\":%lld,\"image_base\":%d,\"scores\":[%d,%d,%d],\"met_from\":%lld",
                 (long long)image, naming == SECONDS_1 || naming == FRAMES_1, span ? span->score[0] : 0,
                 span ? span->score[1] : 0, span ? span->score[2] : 0, (long long)threshold);
        bool met[3];
        for (int k = 0; k < 3; k++) met[k] = span && span->score[k] >= threshold;
        if (frame_open(im, &f, false, e)) ok = cvs_add(im, &f, met, AT(.file = path), e);
        else ok = !e->code[0];
    }
    frames_free(&frames);
    return ok;
}

bool import_cholec80_cvs(Import *im, Err *e) {
    CvsSpan *spans = NULL;
    int64_t n;
    NamingFacts facts = {0};
    FrameNaming naming = SECONDS_0;
    const char *path = tree_path_of(im, "surgeons_annotations.csv"),
               *sheet = tree_path_of(im, "surgeons_annotations.xlsx");
    if (!file_exists(path) && file_exists(sheet)) path = sheet;
    bool ok = cvs_spans(im, path, &spans, &n, e);
    for (int64_t v = 1; ok && v <= 80; v++) {
        Frames frames;
        int64_t seconds = 0;
        for (int64_t i = 0; i < n; i++)
            if (spans[i].video == v && spans[i].to > seconds) seconds = spans[i].to;
        if (!(ok = video_frames(im, &frames, NULL, v, e))) break;
        int64_t files = im->files, rows = im->rows, last = -1;
        PhaseFile p = {0};
        int reasons = im->n_reasons;
        if (frames.n && (ok = cholec80_read(im, &p, v, &last, e)))
            naming_see(&facts, &frames, last >= 0 ? last / CHOLEC80_FPS + 1 : seconds * 4 + 600, CHOLEC80_FPS);
        im->files = files, im->rows = rows, im->n_reasons = reasons;
        phase_file_free(&p), frames_free(&frames);
    }
    ok = ok && naming_tell(im, &facts, CHOLEC80_FPS, &naming, e);
    for (int64_t v = 1; ok && v <= 80;
         v++) { // videos without an interval never reach the view: they count too, with phases
        bool here = file_exists(tree_path_of(im, "phase_annotations/video%02lld-phase.txt", (long long)v));
        for (int64_t i = 0; i < n && !here; i++) here = spans[i].video == v;
        if (here) ok = cvs_video(im, spans, n, path, v, naming, e);
    }
    free(spans);
    return ok;
}

// ---------------------------------------------------------------------------------------------------- Endoscapes2023
static const char *const endoscapes_names[] = {"cystic plate", "calot triangle", "cystic artery",
                                               "cystic duct",  "gallbladder",    "tool"};
static VOCABULARY(endoscapes_classes, "class of Endoscapes", endoscapes_names, NULL);
enum { ENDOSCAPES_TOOL = 5 };

// Unpacked on Windows, the archive's links are files of some bytes: the picture of the same name in train, val or test is meant.
static bool is_stub(const char *path) {
    FILE *f = fopen(path, "rb");
    uint8_t head[1025];
    if (!f) return true;
    size_t n = fread(head, 1, sizeof head, f);
    fclose(f);
    bool picture = n >= 8 && ((head[0] == 0xFF && head[1] == 0xD8) || !memcmp(head, "\x89PNG", 4));
    return n < sizeof head && !picture;
}

static void endoscapes_picture(Import *im, ImportFrame *f, const char *folder) {
    static const char *const homes[3] = {"train", "val", "test"};
    const char *base = im->o->frames ? im->o->frames : im->o->root;
    f->dir = keep(im, "%s/%s", base, folder);
    const char *path = keep(im, "%s/%s", f->dir, f->name);
    if (!is_stub(path)) return;
    for (int k = 0; k < 3; k++) {
        const char *other = keep(im, "%s/%s/%s", base, homes[k], f->name);
        if (!strcmp(other, path) || is_stub(other)) continue;
        f->dir = keep(im, "%s/%s", base, homes[k]);
        skip_add(im, "stub of a link: the picture of that name in another folder is used", path, 1);
        return;
    }
    f->name = NULL;
}

// "162_5850.jpg"
static bool endoscapes_name(Import *im, const JsonDoc *d, const Json *image, ImportFrame *f, int64_t *number, Err *e) {
    const Json *name = json_get(image, "file_name");
    if (!json_kind(d, name, JSON_STRING, "file_name", e)) return false;
    const char *mark = strchr(name->str, '_'), *dot = strrchr(name->str, '.');
    if (!mark || !dot || dot < mark || strlen(name->str) != name->len || strchr(name->str, '/') ||
        !text_int(name->str, (size_t)(mark - name->str), number) ||
        !text_int(mark + 1, (size_t)(dot - mark - 1), &f->frame))
        return err_set(e, "E-DS-13", json_at(d, name, "file_name"),
                       "expected VIDEO_FRAME.jpg; found %s; do: check the file", json_shown(name));
    f->name = keep(im, "%s", name->str);
    f->video = keep(im, "%lld", (long long)*number);
    f->patient = keep(im, "endoscapes-%lld", (long long)*number);
    for (int64_t i = 0; i < im->n_same; i++) // the user's table: this is video N of the CAMMA family
        if (im->same[i][0] == *number) f->patient = patient_of(im, im->same[i][1]);
    f->fps = 25;
    return json_int(d, image, "width", false, 1, LIMIT_IMAGE_SIDE, &f->width, e) &&
           json_int(d, image, "height", false, 1, LIMIT_IMAGE_SIDE, &f->height, e);
}

static bool endoscapes_cvs(Import *im, const JsonDoc *d, const Json *image, ImportFrame *f, Err *e) {
    const Json *ds = json_get(image, "ds"), *c = ds ? ds->child : NULL;
    double mean[3];
    bool met[3];
    if (!json_kind(d, ds, JSON_ARRAY, "ds", e)) return false;
    if (ds->count != 3)
        return err_set(e, "E-DS-13", json_at(d, ds, "ds"), "expected 3 means of raters; found %u; do: check the file",
                       ds->count);
    for (int k = 0; k < 3; k++, c = c->next) { // C1 two structures, C2 triangle, C3 plate: our order
        if (!json_kind(d, c, JSON_NUMBER, "ds", e)) return false;
        mean[k] = c->number;
        if (!(mean[k] >= 0 && mean[k] <= 1))
            return err_set(e, "E-DS-13", json_at(d, c, "ds"),
                           "expected a mean from 0 to 1; found %g; do: check the file", mean[k]);
        met[k] = rint(mean[k]) == 1; // half goes to even: two raters who disagree give 0
    }
    f->source = keep(im, "\"raters\":[%.6g,%.6g,%.6g]", mean[0], mean[1], mean[2]);
    return cvs_add(im, f, met, json_at(d, image, "ds"), e);
}

static bool endoscapes_boxes(Import *im, const JsonDoc *d, const Json *image, ImportFrame *f, Err *e) {
    Box tools[MOST_BOXES], tissues[MOST_BOXES];
    int n_tools = 0, n_tissues = 0, kind[MOST_BOXES] = {0};
    const Json *id = json_get(image, "id"), *list = json_get(d->root, "annotations");
    Where at = json_at(d, image, "images");
    for (const Json *a = list && list->type == JSON_ARRAY ? list->child : NULL; a; a = a->next) {
        const Json *of = json_get(a, "image_id"), *box = json_get(a, "bbox"), *c = box ? box->child : NULL,
                   *name = NULL;
        double b[4];
        int64_t category;
        if (!of || !id || !of->integer || of->i != id->i) continue;
        if (!json_whole(d, json_get(a, "category_id"), "category_id", 0, 1000, &category, e) ||
            !json_kind(d, box, JSON_ARRAY, "bbox", e))
            return false;
        const Json *names = json_get(d->root, "categories");
        for (const Json *k = names && names->type == JSON_ARRAY ? names->child : NULL; k; k = k->next) {
            const Json *number = json_get(k, "id");
            if (number && number->integer && number->i == category) name = json_get(k, "name");
        }
        if (!json_kind(d, name, JSON_STRING, "categories", e)) return false;
        int class = label_of(&endoscapes_classes, name->str, name->len);
        if (class < 0) {
            if (!unknown_label(im, &endoscapes_classes, json_at(d, name, "categories"), name->str, name->len, e))
                return false;
            continue;
        }
        if (box->count != 4)
            return err_set(e, "E-DS-06", json_at(d, box, "bbox"),
                           "expected x, y, w, h; found %u numbers; do: check the file", box->count);
        for (int k = 0; k < 4; k++, c = c->next) {
            if (!json_kind(d, c, JSON_NUMBER, "bbox", e)) return false;
            b[k] = c->number;
        }
        bool tool = class == ENDOSCAPES_TOOL;
        if ((tool ? n_tools : n_tissues) == MOST_BOXES)
            return err_set(e, "E-DS-06", json_at(d, a, "annotations"),
                           "expected at most %d boxes of a picture; found more; do: check the file", MOST_BOXES);
        Box *to = tool ? &tools[n_tools++] : (kind[n_tissues] = class, &tissues[n_tissues++]);
        *to = (Box){b[0], b[1], b[0] + b[2], b[1] + b[3], ""};
        snprintf(to->label, sizeof to->label, "%s", endoscapes_names[class]);
    }
    f->source = "\"boxes\":\"x,y,w,h in pixels\"";
    const char *names[ENDOSCAPES_TOOL];
    int n = 0;
    for (int class = 0; class < ENDOSCAPES_TOOL; class ++) {
        const Box *only = NULL;
        int same = 0;
        for (int i = 0; i < n_tissues; i++)
            if (kind[i] == class) only = &tissues[i], same++;
        if (same) names[n++] = endoscapes_names[class];
        if (same > 1)
            skip_add(im, "several boxes of one tissue: no single box", f->video, task_on(im, TASK_TISSUE_BOX));
        else if (same && !item_add(im, f,
                                   (Question){.task = TASK_TISSUE_BOX,
                                              .what = keep(im, "%d", class),
                                              .slot = endoscapes_names[class],
                                              .answer = endoscapes_names[class],
                                              .boxes = only,
                                              .n_boxes = 1,
                                              .at = at},
                                   e))
            return false;
    }
    Text text = {0};
    task_list_text(names, n, &text);
    bool ok = !n || item_add(im, f, (Question){.task = TASK_TISSUE, .answer = keep(im, "%s", text.p), .at = at}, e);
    text_free(&text);
    bool tool = im->task_wanted[TASK_TOOL]; // "tool" is no answer to "which tool"
    im->task_wanted[TASK_TOOL] = false;
    ok = ok && tools_add(im, f, tools, n_tools, true, at, e);
    im->task_wanted[TASK_TOOL] = tool;
    return ok;
}

static bool json_true(const Json *v) {
    return v && (v->type == JSON_TRUE || (v->type == JSON_NUMBER && v->number == 1));
}

// One COCO file. cvs: its critical view of safety, else its boxes.
static bool endoscapes_file(Import *im, const char *folder, const char *name, const char *split, bool cvs, Err *e) {
    JsonDoc d;
    const char *path = tree_path_of(im, "%s/%s", folder, name), *key = cvs ? "is_ds_keyframe" : "is_det_keyframe",
               *last = "";
    if (!file_exists(path)) return skip_add(im, "missing annotation file", path, 1), true;
    if (!read_json(im, &d, path, e)) return false;
    const Json *images = json_get(d.root, "images");
    bool ok = json_kind(&d, d.root, JSON_OBJECT, "", e) && json_kind(&d, images, JSON_ARRAY, "images", e);
    for (const Json *image = ok ? images->child : NULL; ok && image; image = image->next) {
        ImportFrame f = {.split = split};
        int64_t number;
        im->rows++;
        if (!(ok = endoscapes_name(im, &d, image, &f, &number, e))) break;
        if (strcmp(last, f.video)) video_begin(im), last = f.video;
        if (im->n_own && !(f.split = split_of(im, f.video, number))) continue;
        if (json_get(image, key) &&
            !json_true(json_get(image, key))) { // others carry the label of the key frame before
            skip_add(im, cvs ? "frame that no rater looked at" : "frame without drawn boxes", f.name, 1);
            continue;
        }
        if (!sample_keeps(im, f.frame, 25)) continue;
        int64_t width = f.width, height = f.height;
        f.image = f.name;
        endoscapes_picture(im, &f, folder);
        if (!frame_open(im, &f, !cvs, e)) {
            ok = !e->code[0];
            continue;
        }
        if (!cvs && width && (width != f.width || height != f.height)) {
            ok = err_set(e, "E-DS-06", json_at(&d, image, "width"),
                         "expected a picture of %lldx%lld; found %lldx%lld; do: use the pictures of the archive",
                         (long long)width, (long long)height, (long long)f.width, (long long)f.height);
            break;
        }
        ok = cvs ? endoscapes_cvs(im, &d, image, &f, e) : endoscapes_boxes(im, &d, image, &f, e);
    }
    json_free(&d);
    return ok;
}

bool import_endoscapes(Import *im, Err *e) {
    static const char *const splits[3] = {"train", "val", "test"};
    const char *v = im->variant ? im->variant : "paper";
    bool seg = !strcmp(v, "seg"), ok = true;
    for (int s = 0; ok && s < 3; s++) {
        const char *folder = keep(im, "%s%s", splits[s], seg ? "_seg" : "");
        const char *part = strchr(v, '-');
        if (!s && part && !im->n_own)
            folder = keep(im, "%.*s/train_%s", (int)(part - v), v, part + 1); // "12_5-0", "25-2"
        if (!im->n_own && !split_wanted(im, splits[s])) continue;
        if (!folder_exists(tree_path_of(im, "%s", folder))) {
            skip_add(im, "missing folder of a split", folder, 1);
            continue;
        }
        ok = endoscapes_file(im, folder, "annotation_coco.json", splits[s], false, e);
        if (!ok || seg) continue;
        bool key = file_exists(tree_path_of(im, "%s/annotation_ds_coco.json", folder));
        ok = endoscapes_file(im, folder, key ? "annotation_ds_coco.json" : "annotation_coco_vid.json", splits[s], true,
                             e);
    }
    return ok;
}
