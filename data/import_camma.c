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
static const char *const verb_names[] = {"grasp", "retract",  "dissect",  "coagulate", "clip",
                                         "cut",   "aspirate", "irrigate", "pack",      "null_verb"};
static VOCABULARY(cholec_verbs, "verb", verb_names, NULL);
static const char *const target_names[] = {
    "gallbladder", "cystic_plate",          "cystic_duct", "cystic_artery", "cystic_pedicle", "blood_vessel",
    "fluid",       "abdominal_wall_cavity", "liver",       "adhesion",      "omentum",        "peritoneum",
    "gut",         "specimen_bag",          "null_target"};
static VOCABULARY(cholec_targets, "target", target_names, NULL);
enum { MOST_BOXES = 64, INSTRUMENTS = 6, VERBS = 10, TARGETS = 15, NULL_VERB = 9 };

// Triplet id to (instrument, verb, target): CAMMA-public/ivtmetrics, ivtmetrics/maps.txt.
static const uint8_t triplet_parts[100][3] = {
    {0, 2, 1},  {0, 2, 0},  {0, 2, 10}, {0, 0, 3},  {0, 0, 2},  {0, 0, 4},  {0, 0, 1},  {0, 0, 0},  {0, 0, 12},
    {0, 0, 8},  {0, 0, 10}, {0, 0, 11}, {0, 0, 13}, {0, 8, 0},  {0, 1, 2},  {0, 1, 4},  {0, 1, 1},  {0, 1, 0},
    {0, 1, 12}, {0, 1, 8},  {0, 1, 10}, {0, 1, 11}, {1, 3, 7},  {1, 3, 5},  {1, 3, 3},  {1, 3, 2},  {1, 3, 4},
    {1, 3, 1},  {1, 3, 0},  {1, 3, 8},  {1, 3, 10}, {1, 3, 11}, {1, 2, 9},  {1, 2, 3},  {1, 2, 2},  {1, 2, 1},
    {1, 2, 0},  {1, 2, 10}, {1, 0, 1},  {1, 0, 8},  {1, 0, 13}, {1, 1, 2},  {1, 1, 4},  {1, 1, 0},  {1, 1, 8},
    {1, 1, 10}, {2, 3, 5},  {2, 3, 3},  {2, 3, 2},  {2, 3, 4},  {2, 3, 1},  {2, 3, 0},  {2, 3, 8},  {2, 3, 10},
    {2, 5, 5},  {2, 5, 11}, {2, 2, 5},  {2, 2, 3},  {2, 2, 2},  {2, 2, 1},  {2, 2, 0},  {2, 2, 10}, {2, 2, 11},
    {2, 1, 0},  {2, 1, 8},  {3, 3, 10}, {3, 5, 9},  {3, 5, 5},  {3, 5, 3},  {3, 5, 2},  {3, 5, 1},  {3, 5, 8},
    {3, 5, 10}, {3, 5, 11}, {3, 2, 1},  {3, 2, 0},  {3, 2, 10}, {4, 4, 5},  {4, 4, 3},  {4, 4, 2},  {4, 4, 4},
    {4, 4, 1},  {5, 6, 6},  {5, 2, 2},  {5, 2, 4},  {5, 2, 1},  {5, 2, 0},  {5, 2, 10}, {5, 7, 7},  {5, 7, 4},
    {5, 7, 8},  {5, 1, 0},  {5, 1, 8},  {5, 1, 10}, {0, 9, 14}, {1, 9, 14}, {2, 9, 14}, {3, 9, 14}, {4, 9, 14},
    {5, 9, 14},
};

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

static const char *patient_of(Import *im, int64_t number) { return keep(im, "camma-%02lld", (long long)number); }

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
        const uint8_t *p = triplet_parts[id];
        if (!present[id]) continue;
        text_addf(&list, "%s%s %s %s", n++ ? ", " : "", tool_names[p[0]], verb_names[p[1]], target_names[p[2]]);
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
    if (n == 1 && triplet_parts[only][1] != NULL_VERB)
        return ok && item_add(im, f,
                              (Question){.task = TASK_ACTION,
                                         .answer = verb_names[triplet_parts[only][1]],
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
        if (triplet_parts[i][0] == id[0] && triplet_parts[i][1] == id[1] && triplet_parts[i][2] == id[2]) return i;
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
            if (part[k] >= 0 && part[k] != triplet_parts[known_id][k])
                return err_set(e, "E-DS-13", json_at(d, cell[k ? 6 + k : 1], kinds[k]),
                               "expected the %s of triplet %d (%s); found %s; do: check the file", kinds[k], known_id,
                               parts[k]->names[triplet_parts[known_id][k]], parts[k]->names[part[k]]);
        t->present[known_id] = 1;
        part[0] = triplet_parts[known_id][0];
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
