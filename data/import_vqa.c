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

static bool endovis_file(Import *im, const char *path, const char *stem, ImportFrame *f, bool boxes, Err *e) {
    Table t;
    char number[160];
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
        snprintf(number, sizeof number, "%.120s%s%lld", stem ? stem : "", stem ? "-" : "", (long long)i);
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
    bool ok = frames_list(&frames, frame_dirs, n_dirs, e);
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
        const char *stem = split && !strcmp(split, "test") ? keep(im, "%.*s", (int)(n - s), name) : NULL;
        if (stem && n - s > 3) { // of EndoVis-17, frames of all sequences lie in one folder: "seq1_frame000"
            size_t front = digits;
            while (front && strchr("_-frame", name[front - 1])) front--;
            if (front) f.patient = keep(im, "%s-%.*s", patients, (int)front, name);
        }
        if (sample_keeps(im, f.frame, 0)) ok = endovis_file(im, keep(im, "%s/%s", dir, name), stem, &f, boxes, e);
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

// EndoVis-17: 97 chosen frames in one folder, for testing only. The divisor of its boxes is that of EndoVis-18, 1280 x 1024, which
// is the size of its frames.
bool import_endovis17_vqla(Import *im, Err *e) {
    const char *base = im->o->frames ? im->o->frames : im->o->root, *dir = tree_path_of(im, "vqla/label");
    const char *const dirs[2] = {keep(im, "%s/left_frames", base), base};
    if (!split_wanted(im, "test")) return true;
    return endovis_folder(im, dir, ".txt", "endovis17", "endovis17", "test", dirs, 2, true, e);
}

// -------------------------------------------------------------------------------------------------------------- PitVQA
static const char *const pit_names[] = {"nasal corridor creation",
                                        "anterior sphenoidotomy",
                                        "septum displacement",
                                        "sphenoid sinus clearance",
                                        "sellotomy",
                                        "haemostasis",
                                        "synthetic graft placement",
                                        "durotomy",
                                        "tumour excision",
                                        "fat graft placement",
                                        "gasket seal construct",
                                        "dural sealant",
                                        "nasal packing",
                                        "debris clearance",
                                        "end of step",
                                        "nasal sphenoid",
                                        "sellar",
                                        "closure",
                                        "end of phase",
                                        "suction",
                                        "freer elevator",
                                        "pituitary rongeurs",
                                        "spatula dissector",
                                        "kerrisons",
                                        "cottle",
                                        "haemostatic foam",
                                        "micro doppler",
                                        "nasal cutting forceps",
                                        "stealth pointer",
                                        "irrigation syringe",
                                        "retractable knife",
                                        "dural scissors",
                                        "ring curette",
                                        "cup forceps",
                                        "bipolar forceps",
                                        "tissue glue",
                                        "surgical drill",
                                        "zero",
                                        "one",
                                        "two",
                                        "top-left",
                                        "top-right",
                                        "centre",
                                        "bottom-left",
                                        "bottom-right"};
static const Vocabulary pit = {"label of PitVQA", pit_names, 45, NULL, false};
enum { PIT_OPERATIONS = 14 }; // sentences that stand in the files only: so many other labels are taken as they are

static bool pit_operation(Import *im, const Cell *c, Where at, const char **answer, Err *e) {
    for (int i = 0; i < im->n_taken; i++)
        if (!strcmp(im->taken[i], c->p)) return *answer = im->taken[i], true;
    if (im->n_taken == PIT_OPERATIONS) return *answer = NULL, unknown_label(im, &pit, at, c->p, c->len, e);
    return *answer = im->taken[im->n_taken++] = keep(im, "%s", c->p), true;
}

static bool pit_file(Import *im, const char *path, ImportFrame *f, Err *e) {
    Table t;
    char number[24];
    bool ok = true;
    if (!table_read(&t, path, '|', e)) return false;
    im->files++, im->rows += t.n;
    if (!frame_open(im, f, false, e)) ok = !e->code[0], t.n = 0;
    for (int64_t i = 0; ok && i < t.n; i++) {
        Where at = AT(.file = path, .line = t.rows[i].line);
        if (!(ok = table_columns(&t, &t.rows[i], 2, false, "question|answer", e))) break;
        const Cell *c = &t.rows[i].cells[1];
        if (!strcmp(c->p, "no_visible_instrument") || !strcmp(c->p, "no_secondary_instrument")) {
            skip_add(im, "answer that the data set's own loader leaves out",
                     keep(im, "%s:%lld", path, (long long)at.line), 1);
            continue;
        }
        int id = label_of(&pit, c->p, c->len);
        const char *answer = id >= 0 ? pit_names[id] : NULL;
        if (id < 0 && !(ok = pit_operation(im, c, at, &answer, e))) break;
        if (!answer) continue;
        snprintf(number, sizeof number, "%lld", (long long)i);
        ok = item_add(im, f,
                      (Question){.task = TASK_VQA,
                                 .what = number,
                                 .question = words(im, &t.rows[i].cells[0]),
                                 .answer = answer,
                                 .at = at},
                      e);
    }
    table_free(&t);
    return ok;
}

static bool pit_video(Import *im, const char *dir, const char *name, int64_t number, Err *e) {
    Names names;
    Frames frames;
    const char *split = split_of(im, name, number), *base = im->o->frames ? im->o->frames : tree_path_of(im, "images");
    const char *const dirs[1] = {keep(im, "%s/%s", base, name)};
    if (!split) return true;
    if (!frames_open(&frames, dirs, 1, e)) return false;
    if (!folder_names(&names, keep(im, "%s/%s", dir, name), e)) return frames_free(&frames), false;
    const char *video = keep(im, "%s", name);
    bool ok = true;
    int64_t asked = 0;
    video_begin(im);
    for (int64_t i = 0; ok && i < names.n; i++) {
        int64_t frame;
        size_t n = strlen(names.p[i]);
        if (n < 5 || strcmp(names.p[i] + n - 4, ".txt") || !text_int(names.p[i], n - 4, &frame)) {
            skip_add(im, "file that is no annotation", names.p[i], 1);
            continue;
        }
        asked++;
        if (!sample_keeps(im, frame, 1)) continue;
        ImportFrame f = {.video = video,
                         .patient = keep(im, "pitvqa-%lld", (long long)number),
                         .split = split,
                         .frame = frame,
                         .fps = 1,
                         .dir = frames.dir,
                         .name = frames_find(&frames, frame),
                         .source = "\"frame_base\":1"};
        ok = pit_file(im, keep(im, "%s/%s/%s", dir, name, names.p[i]), &f, e);
    }
    if (ok && frames.n > asked) skip_add(im, "frame without questions", frames.dir, frames.n - asked);
    names_free(&names), frames_free(&frames);
    return ok;
}

bool import_pitvqa(Import *im, Err *e) {
    Names names;
    bool ok = true;
    const char *dir = tree_path_of(im, "qa");
    if (!folder_names(&names, dir, e)) return false;
    for (int64_t i = 0; ok && i < names.n; i++) {
        int64_t number;
        if (!strncmp(names.p[i], "video_", 6) && text_int(names.p[i] + 6, strlen(names.p[i] + 6), &number))
            ok = pit_video(im, dir, names.p[i], number, e);
        else skip_add(im, "name that is no video", names.p[i], 1);
    }
    names_free(&names);
    return ok;
}

// ---------------------------------------------------------------------------------------------------------- PSI-AVA-VQA
static const char *const psi_names[] = {"top left",
                                        "top right",
                                        "bottom left",
                                        "bottom right",
                                        "Tiempo_muerto",
                                        "LPAI",
                                        "LPAD",
                                        "Espacio_de_Retzius",
                                        "Complejo_venoso_dorsal",
                                        "Id_Cuello_Vesical",
                                        "Vesículas_Seminales",
                                        "Fascia_Denonvilliers",
                                        "Control_Pediculos",
                                        "Separacion_Prostata_Uretra",
                                        "Rec_Cuello_Vesical",
                                        "Id_Vena_Arteria_Iliaca",
                                        "Diseccion_Ganglios_Iliacos",
                                        "Diseccion_Ganglios_Obturadores",
                                        "Empacar_Ganglios",
                                        "Diseccion_Prevesical",
                                        "Pasar_Aguja_Cvdp",
                                        "Diseccion_Prostata",
                                        "Diseccion_Seminal",
                                        "Diseccion_Denon",
                                        "Corte_Prostata",
                                        "Sujetar_Prostata",
                                        "Empacar_Prostata",
                                        "Pasar_Aguja_Uretra",
                                        "Pasar_Aguja_Cuello",
                                        "Halar_sutura",
                                        "Anudar",
                                        "Succion",
                                        "Corte",
                                        "Corte_Vejiga",
                                        "Clip_Pediculos"};
static const Vocabulary psi = {"label of PSI-AVA-VQA", psi_names, 35, NULL, false};

// CASE021/00001.jpg|question|answer
static bool psi_line(Import *im, const Table *t, const TableRow *r, const char *file, const char *split, Err *e) {
    Where at = AT(.file = t->file, .line = r->line);
    if (!table_columns(t, r, 3, false, "frame|question|answer", e)) return false;
    const Cell *frame = &r->cells[0], *answer = &r->cells[2];
    const char *slash = strchr(frame->p, '/'), *dot = strrchr(frame->p, '.');
    ImportFrame f = {.split = split};
    if (!slash || slash == frame->p || !dot || dot < slash || strchr(slash + 1, '/') || strstr(frame->p, "..") ||
        !text_int(slash + 1, (size_t)(dot - slash - 1), &f.frame))
        return err_set(e, "E-DS-13", at, "expected CASE/NUMBER.jpg; found %s; do: check the file",
                       quoted(frame->p, frame->len));
    f.video = keep(im, "%.*s", (int)(slash - frame->p), frame->p);
    f.patient = keep(im, "psi-ava-%s", f.video);
    if (im->n_own && !(f.split = split_of(im, f.video, 0))) return true;
    int id = label_of(&psi, answer->p, answer->len);
    if (id < 0) return unknown_label(im, &psi, at, answer->p, answer->len, e);
    if (!sample_keeps(im, f.frame, 0)) return true;
    f.dir = keep(im, "%s/%s", im->o->frames ? im->o->frames : tree_path_of(im, "keyframes"), f.video);
    f.name = keep(im, "%s", slash + 1);
    if (!frame_open(im, &f, false, e)) return !e->code[0];
    const char *what = keep(im, "%.2s-%lld", file, (long long)r->line);
    return item_add(
        im, &f,
        (Question){
            .task = TASK_VQA, .what = what, .question = words(im, &r->cells[1]), .answer = psi_names[id], .at = at},
        e);
}

bool import_psi_ava_vqa(Import *im, Err *e) {
    static const char *const folders[2] = {"Train", "Val"}, *const splits[2] = {"train", "val"};
    bool ok = true;
    for (int s = 0; ok && s < 2; s++) {
        Names names;
        const char *dir = tree_path_of(im, "%s", folders[s]);
        if (!folder_exists(dir)) {
            skip_add(im, "missing folder of a split", dir, 1);
            continue;
        }
        if (!im->n_own && !split_wanted(im, splits[s])) continue;
        if (!(ok = folder_names(&names, dir, e))) break;
        for (int64_t i = 0; ok && i < names.n; i++) {
            size_t n = strlen(names.p[i]);
            Table t;
            if (n < 7 || names.p[i][0] != 'C' || strcmp(names.p[i] + n - 4, ".txt")) {
                skip_add(im, "file that is no annotation", names.p[i], 1);
                continue;
            }
            if (!(ok = table_read(&t, keep(im, "%s/%s", dir, names.p[i]), '|', e))) break;
            im->files++, im->rows += t.n;
            im->seen = 0; // cases are mixed in a file
            for (int64_t k = 0; ok && k < t.n; k++) ok = psi_line(im, &t, &t.rows[k], names.p[i], splits[s], e);
            table_free(&t);
        }
        names_free(&names);
    }
    return ok;
}
