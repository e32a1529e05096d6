// import_vqa.c - the sets of questions and answers: EndoVis-18-VQA, EndoVis-18/17-VQLA, PitVQA, PSI-AVA-VQA.
//
// What it is:  lines of question|answer, some with a box.
// What it is not: a judge of wording: questions are passed on as they stand (underscores become spaces).
// Read before: import.h.  Read next: import_other.c.
// Sources: lalithjets/Surgical_VQA, lalithjets/SurgicalGPT, longbai1006/Surgical-VQLA (dataloader.py), mobarakol/PitVQA.
#include "import.h"

static const char *const endovis_names[] = {"kidney",
                                            "Idle",
                                            "Grasping",
                                            "Retraction",
                                            "Tissue Manipulation",
                                            "Tool Manipulation",
                                            "Cutting",
                                            "Cauterization",
                                            "Suction",
                                            "Looping",
                                            "Suturing",
                                            "Clipping",
                                            "Staple",
                                            "Ultrasound Sensing",
                                            "left-top",
                                            "right-top",
                                            "left-bottom",
                                            "right-bottom",
                                            "bipolar forceps",
                                            "monopolar curved scissors",
                                            "prograsp forceps",
                                            "large needle driver",
                                            "ultrasound probe",
                                            "clip applier",
                                            "suction",
                                            "stapler"};
// "Suction" is an action, "suction" a tool: letters count as written.
static const Vocabulary endovis = {"label of EndoVis-18-VQA", endovis_names, 18, NULL, true};
static const Vocabulary endovis_extended = {"label of EndoVis-VQLA", endovis_names, 26, NULL, true};

// The question in words: "Where is bipolar_forceps located?" names the tool with blanks.
static const char *words(Import *im, const Cell *c) {
    char *copy = (char *)(uintptr_t)keep(im, "%s", c->p);
    for (char *p = copy; *p; p++)
        if (*p == '_') *p = ' ';
    return copy;
}

// ------------------------------------------------------------------------------------------------------------- EndoVis
// Four integers, 1-based and both corners inside: pixel columns x1..x2. As edges: x1 - 1 to x2.
static bool vqla_box(const Table *t, const TableRow *r, Box *b, Err *e) {
    double *const out[4] = {&b->x1, &b->y1, &b->x2, &b->y2};
    const char *p = r->cells[2].p;
    for (int i = 0; i < 4; i++) {
        int64_t v = 0;
        while (*p == ' ') p++;
        size_t n = strcspn(p, ", ");
        const char *end = p + n;
        while (*end == ' ') end++;
        if (!text_int(p, n, &v) || v < 1 || v > LIMIT_IMAGE_SIDE || (i < 3 ? *end != ',' : *end))
            return err_set(e, "E-DS-06", AT(.file = t->file, .line = r->line),
                           "expected x1, y1, x2, y2 as integers from 1; found %s; do: check the file",
                           quoted(r->cells[2].p, r->cells[2].len));
        *out[i] = (double)(i < 2 ? v - 1 : v);
        p = end + 1;
    }
    return true;
}

static bool endovis_file(Import *im, const char *path, ImportFrame *f, bool boxes, Err *e) {
    Table t;
    char number[24];
    bool ok = true;
    const Vocabulary *v = boxes ? &endovis_extended : &endovis;
    if (!table_read(&t, path, '|', e)) return false;
    im->files++, im->rows += t.n;
    if (!frame_open(im, f, boxes, e)) ok = !e->code[0], t.n = 0; // counted; nothing to ask about
    for (int64_t i = 0; ok && i < t.n; i++) {
        const TableRow *r = &t.rows[i];
        Where at = AT(.file = path, .line = r->line);
        Box box = {0};
        if (!(ok = table_columns(&t, r, boxes ? 3 : 2, false,
                                 boxes ? "question|answer|x1, y1, x2, y2" : "question|answer", e)))
            break;
        int id = label_of(v, r->cells[1].p, r->cells[1].len);
        if (id < 0) {
            ok = unknown_label(im, v, at, r->cells[1].p, r->cells[1].len, e);
            continue;
        }
        if (boxes && !(ok = vqla_box(&t, r, &box, e))) break;
        if (boxes) snprintf(box.label, sizeof box.label, "%s", endovis_names[id]);
        snprintf(number, sizeof number, "%lld", (long long)i);
        ok = item_add(im, f,
                      (Question){.task = boxes ? TASK_VQLA : TASK_VQA,
                                 .what = number,
                                 .question = words(im, &r->cells[0]),
                                 .answer = endovis_names[id],
                                 .choices = id < 18 ? &endovis : &endovis_extended,
                                 .boxes = boxes ? &box : NULL,
                                 .n_boxes = boxes,
                                 .at = at},
                      e);
    }
    table_free(&t);
    return ok;
}

// All text files of one folder, each about the frame of its name.
static bool endovis_folder(Import *im, const char *dir, const char *suffix, const char *video, const char *patients,
                           const char *split, const char *const *frame_dirs, int n_dirs, bool boxes, Err *e) {
    Names names;
    Frames frames;
    bool ok = frames_open(&frames, frame_dirs, n_dirs, e);
    if (!ok) return false;
    if (!folder_names(&names, dir, e)) return frames_free(&frames), false;
    video_begin(im);
    for (int64_t i = 0; ok && i < names.n; i++) {
        const char *name = names.p[i];
        size_t n = strlen(name), s = strlen(suffix);
        if (n <= s || strcmp(name + n - s, suffix)) {
            skip_add(im, "file that is no annotation", keep(im, "%s/%s", dir, name), 1);
            continue;
        }
        ImportFrame f = {.video = video, .patient = patients, .split = split, .dir = frames.dir};
        for (int64_t k = 0; k < frames.n; k++) { // the picture of the same stem
            const char *dot = strrchr(frames.files[k].name, '.');
            if ((size_t)(dot - frames.files[k].name) == n - s && !strncmp(frames.files[k].name, name, n - s))
                f.name = frames.files[k].name, f.frame = frames.files[k].number;
        }
        size_t digits = n - s;
        while (digits && name[digits - 1] >= '0' && name[digits - 1] <= '9') digits--;
        if (!f.name && !text_int(name + digits, n - s - digits, &f.frame)) f.frame = i;
        f.source = boxes ? "\"boxes\":\"1-based pixels, corners inside\"" : NULL;
        if (sample_keeps(im, f.frame, 0)) ok = endovis_file(im, keep(im, "%s/%s", dir, name), &f, boxes, e);
    }
    names_free(&names), frames_free(&frames);
    return ok;
}

static bool endovis18(Import *im, bool boxes, Err *e) {
    Names names;
    bool ok = true;
    if (!folder_names(&names, im->o->root, e)) return false;
    for (int64_t i = 0; ok && i < names.n; i++) {
        int64_t number;
        const char *seq = names.p[i], *frames = im->o->frames ? im->o->frames : im->o->root;
        if (strncmp(seq, "seq_", 4) || !text_int(seq + 4, strlen(seq + 4), &number)) {
            skip_add(im, "name that is no sequence", seq, 1);
            continue;
        }
        const char *video = keep(im, "seq%lld", (long long)number), *split = split_of(im, video, number);
        const char *dir = tree_path_of(im, boxes ? "%s/vqla/label" : "%s/vqa/Classification", seq);
        if (!split) continue;
        if (!folder_exists(dir)) {
            skip_add(im, "sequence without questions", dir, 1);
            continue;
        }
        const char *const dirs[3] = {keep(im, "%s/%s/left_frames", frames, seq), keep(im, "%s/%s/left_fr", frames, seq),
                                     keep(im, "%s/%s", frames, seq)};
        ok = endovis_folder(im, dir, "_QA.txt", video, keep(im, "endovis18-%lld", (long long)number), split, dirs, 3,
                            boxes, e);
    }
    names_free(&names);
    return ok;
}

bool import_endovis18_vqa(Import *im, Err *e) { return endovis18(im, false, e); }
bool import_endovis18_vqla(Import *im, Err *e) { return endovis18(im, true, e); }
