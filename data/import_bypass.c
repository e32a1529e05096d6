// import_bypass.c - MultiBypass140: phases and steps of gastric bypass in two hospitals.
//
// What it is:  the interval files (*.mp4.json, milliseconds) and, where they are, the pickles that hold labels and splits.
// What it is not: a Python interpreter: pickles are read as data (import_read.c).
// Read before: import.h.  Read next: import_other.c.
// Source: CAMMA-public/MultiBypass140 (README, tables, label files); Lavanchy et al., arXiv 2312.11250.
#include "import.h"

static const char *const phase_names[] = {"preparation",
                                          "gastric pouch creation",
                                          "omentum division",
                                          "gastrojejunal anastomosis",
                                          "anastomosis test",
                                          "jejunal separation",
                                          "closure petersen space",
                                          "jejunojejunal anastomosis",
                                          "closure mesenteric defect",
                                          "cleaning coagulation",
                                          "disassembling",
                                          "other intervention",
                                          "out of body",
                                          "severe index"};
enum { PHASES = 12, OUT_OF_BODY = 12, SEVERE = 13 }; // these two lie over the phase below them
static const Vocabulary phases = {"phase of MultiBypass140", phase_names, 14, NULL, false};
static const Vocabulary phase_choices = {"phase of MultiBypass140", phase_names, PHASES, NULL, false};
static const char *const step_names[] = {"null step",
                                         "cavity exploration",
                                         "trocar placement",
                                         "retractor placement",
                                         "crura dissection",
                                         "his angle dissection",
                                         "horizontal stapling",
                                         "retrogastric dissection",
                                         "vertical stapling",
                                         "gastric remnant reinforcement",
                                         "gastric pouch reinforcement",
                                         "gastric opening",
                                         "omental lifting",
                                         "omental section",
                                         "adhesiolysis",
                                         "treitz angle identification",
                                         "biliary limb measurement",
                                         "jejunum opening",
                                         "gastrojejunal stapling",
                                         "gastrojejunal defect closing",
                                         "mesenteric opening",
                                         "jejunal section",
                                         "gastric tube placement",
                                         "jejunal clamping",
                                         "ink injection",
                                         "visual assessment",
                                         "gastrojejunal anastomosis reinforcement",
                                         "petersen space exposure",
                                         "petersen space closing",
                                         "biliary limb opening",
                                         "alimentary limb measurement",
                                         "alimentary limb opening",
                                         "jejunojejunal stapling",
                                         "jejunojejunal defect closing",
                                         "jejunojejunal anastomosis reinforcement",
                                         "staple line reinforcement",
                                         "mesenteric defect exposure",
                                         "mesenteric defect closing",
                                         "anastomosis fixation",
                                         "coagulation",
                                         "irrigation aspiration",
                                         "parietal closure",
                                         "trocar removal",
                                         "calibration",
                                         "drainage insertion",
                                         "specimen retrieval"};
static const Vocabulary steps = {"step of MultiBypass140", step_names, 46, NULL, false};

// Validation videos of the five folds, and the test videos that are published in print; all others stand in the pickles only.
static const char *const fold_val[2][5] = {
    {"3 12 17 25 27 28 35 49 56 69", "12 18 25 35 36 41 44 49 67 69", "8 18 23 36 41 44 47 48 60 67",
     "5 8 22 23 31 38 47 48 51 60", "5 22 29 31 33 38 45 51 54 58"},
    {"9 20 31 33 41 43 50 55 60 61", "5 9 33 34 36 41 42 43 60 67", "5 8 17 34 35 36 40 42 48 67",
     "4 8 15 17 35 37 39 40 48 65", "4 12 15 25 30 37 38 39 46 65"}};
static const char *const bern_test[5] = {NULL, "2 3 4 7 15 16 17 27 28 32 34 37 39 43 52 53 55 56 62 70",
                                         "3 7 12 13 15 17 19 25 27 28 30 35 43 49 52 53 56 57 68 69",
                                         "6 12 13 14 18 19 24 25 30 35 36 41 44 49 57 61 64 67 68 69",
                                         "1 6 8 14 18 23 24 36 41 44 46 47 48 59 60 61 63 64 65 67"};
static const struct Centre {
    const char *folder, *prefix, *videos;
} centres[2] = {{"bern", "BBP", "BernBypass70"}, {"strasbourg", "SBP", "StrasBypass70"}};

static bool has_number(const char *list, int64_t number) {
    for (const char *p = list; p && *p;) {
        char *end;
        if (strtoll(p, &end, 10) == number) return true;
        p = end + (*end == ' ');
    }
    return false;
}

static bool open_frames(Import *im, Frames *f, int centre, const char *video, Err *e) {
    const char *dirs[5];
    int n = 0;
    if (im->o->frames) dirs[n++] = keep(im, "%s/%s", im->o->frames, video);
    else {
        dirs[n++] = tree_path_of(im, "labels/%s/labels_by70_splits/frames/%s", centres[centre].folder, video);
        dirs[n++] = tree_path_of(im, "%s/frames/%s", centres[centre].videos, video);
        dirs[n++] = tree_path_of(im, "frames/%s", video);
    }
    return frames_open(f, dirs, n, e);
}

// One frame at second `second`: the number in its picture's name. phase, step: -1 without one.
static bool bypass_frame(Import *im, const Frames *frames, const char *video, const char *split, int64_t second,
                         int phase, int step, bool severe, Where at, Err *e) {
    ImportFrame f = {.video = video,
                     .patient = keep(im, "multibypass-%s", video),
                     .split = split,
                     .frame = second,
                     .fps = 1,
                     .dir = frames->dir,
                     .name = frames_find(frames, second)};
    if (phase == OUT_OF_BODY) return skip_add(im, "out of body", video, 1), true;
    if (phase < 0 && step < 0) return skip_add(im, "null frame: neither phase nor step", video, 1), true;
    f.source = severe ? "\"frame_base\":1,\"severe_index\":true" : "\"frame_base\":1";
    if (!frame_open(im, &f, false, e)) return !e->code[0];
    if (phase >= 0 && phase < PHASES &&
        !item_add(im, &f,
                  (Question){.task = TASK_PHASE, .answer = phase_names[phase], .choices = &phase_choices, .at = at}, e))
        return false;
    return step < 0 || item_add(im, &f, (Question){.task = TASK_STEP, .answer = step_names[step], .at = at}, e);
}

// ---------------------------------------------------------------------------------------------------------- intervals
typedef struct LabelSpan {
    int64_t start, end; // milliseconds, [start, end)
    int label;
} LabelSpan;

static bool read_spans(Import *im, const JsonDoc *d, const char *field, const Vocabulary *v, LabelSpan **out,
                       int64_t *n, Err *e) {
    const Json *list = json_get(d->root, field);
    *n = 0, *out = NULL;
    if (!list || list->type != JSON_ARRAY)
        return err_set(e, "E-DS-13", json_at(d, list, field),
                       "expected a list of intervals; found %s; do: check the file",
                       list ? json_shown(list) : "nothing");
    *out = alloc_or_die(list->count + 1u, sizeof **out, "intervals");
    for (const Json *s = list->child; s; s = s->next) {
        const Json *name = json_get(s, "label_name");
        LabelSpan span;
        if (!json_int(d, s, "start", true, 0, INT64_C(1000000000), &span.start, e) ||
            !json_int(d, s, "end", true, 0, INT64_C(1000000000), &span.end, e))
            return false;
        if (span.end < span.start)
            return err_set(e, "E-DS-13", json_at(d, s, field),
                           "expected an interval that ends behind its start; found %lld to %lld; do: mend it",
                           (long long)span.start, (long long)span.end);
        if (!name || name->type != JSON_STRING)
            return err_set(e, "E-DS-13", json_at(d, name ? name : s, "label_name"),
                           "expected a text; found none; do: check the file");
        const char *text = name->str; // "s1_cavity_exploration": the number is no part of the name
        if (v == &steps && *text == 's') {
            const char *p = text + 1;
            while (*p >= '0' && *p <= '9') p++;
            if (p > text + 1 && *p == '_') text = p + 1;
        }
        span.label = label_of(v, text, strlen(text));
        if (span.label < 0) {
            if (!unknown_label(im, v, json_at(d, name, "label_name"), name->str, name->len, e)) return false;
            continue;
        }
        (*out)[(*n)++] = span;
    }
    return true;
}

static bool bypass_json(Import *im, const char *path, int centre, const char *video, const char *split, Err *e) {
    JsonDoc d;
    LabelSpan *phase = NULL, *step = NULL;
    Frames frames = {0};
    int64_t n_phase = 0, n_step = 0, last = 0;
    if (!read_json(im, &d, path, e)) return false;
    bool ok = (d.root->type == JSON_OBJECT || err_set(e, "E-DS-13", json_at(&d, d.root, ""),
                                                      "expected an object; found another value; do: check the file")) &&
              read_spans(im, &d, "phases", &phases, &phase, &n_phase, e) &&
              read_spans(im, &d, "steps", &steps, &step, &n_step, e) && open_frames(im, &frames, centre, video, e);
    for (int64_t i = 0; i < n_phase; i++) last = phase[i].end > last ? phase[i].end : last;
    for (int64_t i = 0; i < n_step; i++) last = step[i].end > last ? step[i].end : last;
    im->rows += n_phase + n_step;
    video_begin(im);
    for (int64_t second = 1; ok && second * 1000 <= last; second++) { // picture N is second N
        int now = -1, doing = -1;
        bool outside = false, severe = false;
        int64_t ms = second * 1000;
        for (int64_t i = 0; i < n_phase; i++) {
            if (ms < phase[i].start || ms >= phase[i].end) continue;
            if (phase[i].label == OUT_OF_BODY) outside = true;
            else if (phase[i].label == SEVERE) severe = true;
            else now = phase[i].label;
        }
        for (int64_t i = 0; i < n_step; i++)
            if (ms >= step[i].start && ms < step[i].end) doing = step[i].label;
        if (sample_keeps(im, second, 1))
            ok = bypass_frame(im, &frames, video, split, second, outside ? OUT_OF_BODY : now, doing, severe,
                              AT(.file = path), e);
    }
    free(phase), free(step);
    frames_free(&frames), json_free(&d);
    return ok;
}

// ------------------------------------------------------------------------------------------------------------ pickles
static bool json_field(const JsonDoc *d, const Json *record, const char *name, int64_t max, int64_t *out, Err *e) {
    return json_int(d, record, name, true, 0, max, out, e);
}

static bool bypass_pickle(Import *im, const char *path, int centre, const char *split, Err *e) {
    Text text = {0};
    JsonDoc d;
    if (!pickle_json(&text, path, e)) return text_free(&text), false;
    bool ok = json_parse(&d, text.p, text.len, path, (JsonOptions){.refuse_duplicates = true}, e);
    text_free(&text);
    if (!ok) return false;
    im->files++;
    ok = d.root->type == JSON_OBJECT ||
         err_set(e, "E-DS-15", AT(.file = path), "expected a dict of videos; found another value; do: check the file");
    for (const Json *v = ok ? d.root->child : NULL; ok && v; v = v->next) {
        Frames frames = {0};
        const char *video = keep(im, "%s", v->key), *chosen = split;
        if (v->type != JSON_ARRAY)
            ok = err_set(e, "E-DS-15", AT(.file = path, .field = video),
                         "expected a list of frames; found another value; do: check the file");
        if (ok && im->n_own && !(chosen = split_of(im, video, 0))) continue;
        ok = ok && open_frames(im, &frames, centre, video, e);
        video_begin(im);
        for (const Json *r = ok ? v->child : NULL; ok && r; r = r->next) {
            int64_t original, phase, step;
            const Json *id = json_get(r, "Frame_id");
            const char *mark = id && id->type == JSON_STRING ? strrchr(id->str, '_') : NULL;
            int64_t second = 0;
            im->rows++;
            ok = json_field(&d, r, "Original_frame_id", 100000000, &original, e) &&
                 json_field(&d, r, "Phase_gt", SEVERE, &phase, e) &&
                 json_field(&d, r, "Step_gt", steps.n - 1, &step, e);
            if (!ok) break;
            if (!mark || !text_int(mark + 1, strlen(mark + 1), &second) || second != original + 1) {
                ok = err_set(e, "E-DS-15", AT(.file = path, .field = video),
                             "expected Frame_id VIDEO_SECOND with SECOND = Original_frame_id + 1 = %lld; found %s; do: "
                             "check the file",
                             (long long)original + 1, id ? json_shown(id) : "none");
                break;
            }
            if (sample_keeps(im, second, 1))
                ok = bypass_frame(im, &frames, video, chosen, second, phase == SEVERE ? -1 : (int)phase, (int)step,
                                  phase == SEVERE, AT(.file = path, .field = video), e);
        }
        frames_free(&frames);
    }
    json_free(&d);
    return ok;
}

static bool bypass_pickles(Import *im, int centre, int fold, bool *found, Err *e) {
    static const char *const splits[3] = {"train", "val", "test"};
    bool ok = true;
    *found = false;
    for (int s = 0; s < 3; s++)
        *found |= file_exists(tree_path_of(im, "labels/%s/labels_by70_splits/labels/%s/1fps_%s%d.pickle",
                                           centres[centre].folder, splits[s], s ? "" : "100_", fold));
    for (int s = 0; *found && ok && s < 3; s++) {
        const char *path = tree_path_of(im, "labels/%s/labels_by70_splits/labels/%s/1fps_%s%d.pickle",
                                        centres[centre].folder, splits[s], s ? "" : "100_", fold);
        if (!file_exists(path)) skip_add(im, "missing pickle", path, 1);
        else if (split_wanted(im, splits[s]) || im->n_own) ok = bypass_pickle(im, path, centre, splits[s], e);
    }
    return ok;
}

// --------------------------------------------------------------------------------------------------------------- both
static bool bypass_intervals(Import *im, int centre, int fold, Err *e) {
    Names names;
    const struct Centre *c = &centres[centre];
    const char *dir = tree_path_of(im, "labels/%s/labels_by70", c->folder);
    bool ok = true;
    if (!folder_exists(dir)) return skip_add(im, "missing folder of a centre", dir, 1), true;
    if (!folder_names(&names, dir, e)) return false;
    for (int64_t i = 0; ok && i < names.n; i++) {
        char video[16];
        int64_t number;
        size_t n = strlen(names.p[i]);
        if (n != 5 + 9 || strncmp(names.p[i], c->prefix, 3) || strcmp(names.p[i] + 5, ".mp4.json") ||
            !text_int(names.p[i] + 3, 2, &number)) {
            skip_add(im, "file that is no annotation", names.p[i], 1);
            continue;
        }
        snprintf(video, sizeof video, "%.5s", names.p[i]);
        const char *split = has_number(fold_val[centre][fold], number) ? "val" : NULL,
                   *test = centre ? NULL : bern_test[fold];
        if (im->n_own) {
            if (!(split = split_of(im, video, number))) continue;
        } else if (!split && !test) {
            skip_add(im, "video whose split stands in the pickles only", video, 1);
            continue;
        } else if (!split) split = has_number(test, number) ? "test" : "train";
        if (!split_wanted(im, split)) skip_add(im, "video of a split that was not asked for", video, 1);
        else ok = bypass_json(im, keep(im, "%s/%s", dir, names.p[i]), centre, keep(im, "%s", video), split, e);
    }
    names_free(&names);
    return ok;
}

bool import_multibypass(Import *im, Err *e) {
    int fold = im->n_own ? 0 : im->variant[4] - '0';
    snprintf(im->naming, sizeof im->naming, "seconds, from 1");
    for (int centre = 0; centre < 2; centre++) {
        bool found = false;
        if (!im->n_own && !bypass_pickles(im, centre, fold, &found, e)) return false;
        if (!found && !bypass_intervals(im, centre, fold, e)) return false;
    }
    return true;
}
