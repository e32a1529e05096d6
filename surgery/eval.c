// eval.c - an evaluation: answers against records, every number beside its floors and its published variants.
//
// What it is:  answers are joined to records by id, read by the one parser (answer.c), measured by metrics.c, and printed
//              as JSON and as tables. A section is one task of one data set. What every section shows beside the answers
//              measured: a constant answer, the most frequent answer to each question, and a run that saw no picture.
//              Nothing that cannot be read is dropped: it is wrong, and counted by what is wrong with it.
// What it is not: a generator of answers (eval_generate.c) or a metric.
// Read before: answer.c, metrics.c.  Read next: eval_generate.c, ../commands/eval.c.
//
// Items are sorted by id before anything is measured, so that no number depends on the order of lines. One does by its
// definition: the 11-point "mAP" of the Surg-R1 authors' evaluator, which takes rows in the order of the data file.
#define _GNU_SOURCE // memmem
#include "../surgr1.h"

enum System { MODEL, CONSTANT, QUESTION, BLIND, SYSTEMS };
static const char *const system_names[SYSTEMS] = {"value", "constant", "question", "blind"};

typedef struct Said { // one completion
    char *text;
    size_t len;
    bool given, bare;      // bare: text is the answer itself
    int64_t width, height; // of the frame its boxes are in; 0: pixels of the file
    int64_t tokens;        // -1: unknown
    int stopped;           // 0: the token limit ended it; -1: unknown
} Said;

typedef struct Item {
    TaskRecord r;
    int64_t line, cluster;
    Said said[2]; // of the model, of the blind run
    int8_t yes[SYSTEMS];
} Item;

typedef struct Job { // an interval to be resampled
    ClusterStatistic statistic;
    ClusterSums sums;
    double *correct, *n, *counts; // counts: [clusters, k, 3] hits, predicted, support
    int32_t k;
    bool jaccard;
    int64_t clusters, section, metric;
    Interval out;
} Job;

typedef struct Metric {
    char name[48];
    double value[SYSTEMS], low, high;
    bool interval;
} Metric;

enum { MOST_METRICS = 72 };
typedef struct Section {
    struct Eval *ev;
    enum Task task;
    const char *dataset, *title;
    Item **items;
    int64_t n, patients;
    bool system[SYSTEMS];
    char **names; // vocabulary
    int32_t k, cap;
    int32_t *truth;      // [n] class of each item, where it has one
    double *cluster_n;   // [patients]
    int64_t *cluster_of; // [n]
    Metric metric[MOST_METRICS];
    int n_metrics, primary;
    int64_t status[ANSWER_STATUSES], missing, empty, cut, unparsable, outside, choice;
    double readings[3]; // share right by enum EvalReading
    Text classes;       // JSON array of the table by class
    Text questions;     // the same by question
    Text table;         // the same for people
} Section;

typedef struct Eval {
    const EvalOptions *o;
    Item *items, *train;
    int64_t n, cap, n_train, cap_train, unlabelled, missing[2], foreign[2];
    Section *sections;
    int64_t n_sections;
    Job *jobs;
    int64_t n_jobs, cap_jobs;
} Eval;

typedef struct Result { // one answer, read and measured
    enum AnswerStatus status;
    bool answered, read, right, near75, label_right;
    int32_t class; // of the section's vocabulary; k: outside of it
    int64_t number;
    double iou, iou_legacy; // of all boxes asked for
    char *word;             // LIST, TRIPLETS
    Box *boxes;
    int n_boxes;
    bool by_reading[3];
} Result;

static double ratio(double part, double whole) { return whole > 0 ? part / whole : (double)NAN; }
static bool has_box(enum AnswerKind k) { return k == ANSWER_BOX || k == ANSWER_BOXES || k == ANSWER_VQLA; }
static bool has_class(enum AnswerKind k) {
    return k == ANSWER_WORD || k == ANSWER_YESNO || k == ANSWER_NUMBER || k == ANSWER_VQLA;
}
static char *copy_text(const char *p, size_t len) {
    char *out = alloc_or_die(len + 1, 1, "a text");
    if (len) memcpy(out, p, len);
    return out;
}

// ------------------------------------------------------------------------------------------------------------ reading
static bool labelled(const TaskItem *t) {
    enum AnswerKind k = task_info(t->task)->kind;
    if (k == ANSWER_BOXES) return t->n_boxes >= 0;
    if (k == ANSWER_BOX) return t->n_boxes > 0;
    return t->answer && *t->answer;
}

typedef struct Loader {
    Eval *ev;
    const char *file;
    int which; // 0: records, 1: records whose labels make floors
} Loader;

static void said_of(const TaskRecord *r, Said *s) {
    const Json *stopped = json_get(r->doc.root, "stopped");
    *s = (Said){.text = copy_text(r->response, r->response_len), .len = r->response_len, .given = true};
    s->width = r->resized_width, s->height = r->resized_height, s->tokens = r->tokens;
    s->stopped = !stopped ? -1 : stopped->type == JSON_TRUE ? 1 : stopped->type == JSON_FALSE ? 0 : -1;
}

static bool load_record(void *ctx, const Piece *p, Err *e) {
    Loader *l = ctx;
    Eval *ev = l->ev;
    TaskRecord r;
    if (!task_record_read(&r, p->text, p->len, l->file, p->line, e)) return false;
    if (!labelled(&r.item)) {
        ev->unlabelled += !l->which;
        task_record_free(&r);
        return true;
    }
    Item **list = l->which ? &ev->train : &ev->items;
    int64_t *n = l->which ? &ev->n_train : &ev->n, *cap = l->which ? &ev->cap_train : &ev->cap;
    if (*n == *cap) {
        *cap = *cap ? 2 * *cap : 256;
        *list = grow_or_die(*list, (size_t)*cap, sizeof **list, "the records");
    }
    Item *it = &(*list)[(*n)++];
    *it = (Item){.r = r, .line = p->number};
    if (!l->which && !ev->o->predictions && r.response) said_of(&r, &it->said[0]);
    return true;
}

static int by_id(const void *a, const void *b) {
    return strcmp(((const Item *)a)->r.item.id, ((const Item *)b)->r.item.id);
}

typedef struct Answers {
    Eval *ev;
    const char *file;
    int which; // of Item.said
} Answers;
static bool load_answer(void *ctx, const Piece *p, Err *e) {
    Answers *a = ctx;
    Item key;
    if (!task_record_read(&key.r, p->text, p->len, a->file, p->line, e)) return false;
    const char *id = key.r.item.id;
    Where at = AT(.file = a->file, .line = p->line, .sample = id);
    Item *it = a->ev->n ? bsearch(&key, a->ev->items, (size_t)a->ev->n, sizeof key, by_id) : NULL;
    bool ok = true;
    if (!it && a->ev->o->skip_foreign) a->ev->foreign[a->which]++;
    else if (!it)
        ok = err_set(e, "E-TA-01", at,
                     "expected the id of a labelled record; found another one; do: score against the records that were "
                     "answered, or say --on-foreign skip");
    else if (it->said[a->which].given)
        ok =
            err_set(e, "E-TA-02", at, "expected one answer to a record; found a second one; do: leave one of them out");
    else if (key.r.response) said_of(&key.r, &it->said[a->which]);
    task_record_free(&key.r);
    return ok;
}

static bool join(Eval *ev, int which, const char *file, Err *e) {
    Answers a = {ev, file, which};
    if (file && !pieces_read(file, NULL, load_answer, &a, e)) return false;
    for (int64_t i = 0; i < ev->n; i++) {
        if (ev->items[i].said[which].given) continue;
        if (!ev->missing[which]++ && !ev->o->missing_wrong)
            return err_set(e, "E-TA-03", AT(.file = file ? file : ev->o->data, .sample = ev->items[i].r.item.id),
                           "expected an answer to every labelled record; found none to this one; do: answer it, or say "
                           "--on-missing wrong");
    }
    return true;
}

// Where the boxes of a completion lie: what the line says, else what the resize of the model would have made.
static bool place_frames(Eval *ev, int which, Err *e) {
    const EvalOptions *o = ev->o;
    for (int64_t i = 0; i < ev->n; i++) {
        Item *it = &ev->items[i];
        Said *s = &it->said[which];
        const TaskItem *t = &it->r.item;
        if (!s->given || !has_box(task_info(t->task)->kind)) continue;
        if (o->boxes_original) {
            s->width = s->height = 0;
            continue;
        }
        if (t->width <= 0)
            return err_set(e, "E-DS-02", AT(.file = o->data, .line = it->line, .sample = t->id, .field = "size"),
                           "expected the size of the picture; found none; do: write \"size\": [width, height], or say "
                           "--box-frame original");
        if (s->width <= 0 && !smart_resize(t->height, t->width, o->factor, o->min_pixels, o->max_pixels, &s->height,
                                           &s->width, t->image ? t->image : t->id, e))
            return false;
    }
    return true;
}

// What has these names already gives way.
void eval_record_print(const Json *record, const char *more, const EvalAnswer *a, Text *out) {
    static const char *const ours[] = {"response", "prediction", "output", "completion",
                                       "resized",  "tokens",     "stopped"};
    text_addf(out, "{");
    int64_t n = 0;
    for (const Json *m = record->child; m; m = m->next) {
        bool is_ours = false;
        for (size_t i = 0; i < sizeof ours / sizeof *ours; i++)
            is_ours = is_ours || (m->key_len == strlen(ours[i]) && !memcmp(m->key, ours[i], m->key_len));
        // null counts as absent where a reader needs a value: it gives way to one in `more`
        bool absent = (m->type == JSON_NULL && (!strcmp(m->key, "id") || !strcmp(m->key, "size"))) ||
                      (more && strstr(more, "\"options_shown\":") && !strcmp(m->key, "options_shown"));
        if (is_ours || absent) continue;
        text_addf(out, n++ ? "," : "");
        text_add_json_string(out, m->key, m->key_len), text_addf(out, ":"), json_print(out, m);
    }
    if (more && *more) text_addf(out, "%s%s", n++ ? "," : "", more);
    text_addf(out, "%s\"response\":", n ? "," : "");
    text_add_json_string(out, a->text, a->len);
    if (a->resized_width > 0)
        text_addf(out, ",\"resized\":[%lld,%lld]", (long long)a->resized_width, (long long)a->resized_height);
    if (a->tokens >= 0) text_addf(out, ",\"tokens\":%lld", (long long)a->tokens);
    if (a->stopped >= 0) text_addf(out, ",\"stopped\":%s", a->stopped ? "true" : "false");
    text_addf(out, "}\n");
}

// The records with their answers, in the order of the records. One without an answer has an empty one.
static int by_item_line(const void *a, const void *b) {
    const Item *x = *(Item *const *)a, *y = *(Item *const *)b;
    return x->line < y->line ? -1 : x->line > y->line;
}
static bool write_joined(const Eval *ev, Err *e) {
    FileWriter w;
    Text line = {0};
    if (!file_write_begin(&w, ev->o->joined, e)) return false;
    Item **order = alloc_or_die((size_t)ev->n, sizeof *order, "records");
    for (int64_t i = 0; i < ev->n; i++) order[i] = &ev->items[i];
    qsort(order, (size_t)ev->n, sizeof *order, by_item_line);
    bool ok = true;
    for (int64_t i = 0; ok && i < ev->n; i++) {
        const Item *it = order[i];
        const Said *s = &it->said[0];
        Text more = {0};
        if (it->r.id) text_addf(&more, "\"id\":\"%s\"", it->r.item.id); // a number of a line
        EvalAnswer a = {s->given ? s->text : "",   s->len, s->width, s->height, s->given ? s->tokens : -1,
                        s->given ? s->stopped : -1};
        line.len = 0;
        eval_record_print(it->r.doc.root, more.p, &a, &line);
        ok = file_write_bytes(&w, line.p, line.len, e); // when it fails the file is gone already
        text_free(&more);
    }
    free(order), text_free(&line);
    return ok && file_write_commit(&w, e);
}

// ------------------------------------------------------------------------------------- the Surg-R1 authors' evaluator
// JianJiangKCL/Eval_SurgR1, eval_mcq_acc.py: the first <answer> pair or the whole text; set phrases leave; the texts of
// "X. ..." options, else the text without a leading letter; lower case without blanks; then right when equal or when one
// holds the other, so that an empty answer is right whatever the label. Rows without a response are not counted.
static bool blank(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
static char low(char c) { return c >= 'A' && c <= 'Z' ? (char)(c + 32) : c; }
static bool capital(char c) { return c >= 'A' && c <= 'Z'; }

// The length of a phrase at p: a blank in it stands for some white space, (..) for a word that may be absent.
static size_t phrase_at(const char *p, const char *end, const char *phrase) {
    const char *at = p;
    for (; *phrase; phrase++) {
        if (*phrase == '(') {
            const char *close = strchr(phrase, ')');
            size_t n = (size_t)(close - phrase) - 1;
            bool same = (size_t)(end - at) >= n;
            for (size_t i = 0; same && i < n && phrase[1 + i] != ' '; i++) same = low(at[i]) == phrase[1 + i];
            if (same && phrase[n] == ' ') { // the word needs its blanks
                const char *q = at + n - 1;
                same = q < end && blank(*q);
                while (q < end && blank(*q)) q++;
                if (same) at = q;
            } else if (same) at += n;
            phrase = close;
        } else if (*phrase == ' ' || *phrase == '~') { // some, or any number of blanks
            if (*phrase == ' ' && (at == end || !blank(*at))) return 0;
            while (at < end && blank(*at)) at++;
        } else if (at < end && low(*at) == *phrase) at++;
        else return 0;
    }
    return (size_t)(at - p);
}
static void drop_phrase(Text *t, const char *phrase) {
    size_t out = 0;
    const char *end = t->p + t->len;
    for (const char *p = t->p; p < end;) {
        size_t n = phrase_at(p, end, phrase);
        if (n) p += n;
        else t->p[out++] = *p++;
    }
    t->len = out;
}
static const char marks[] = ".,!?;:";
static View without_marks(View v, bool behind_blanks) {
    while (behind_blanks && v.len && blank(v.p[v.len - 1])) v.len--;
    while (v.len && strchr(marks, v.p[v.len - 1]) && v.p[v.len - 1]) v.len--;
    return v;
}
static View without_letter(View v) {
    if (v.len < 2 || !capital(v.p[0]) || v.p[1] != '.') return v;
    v.p += 2, v.len -= 2;
    while (v.len && blank(v.p[0])) v.p++, v.len--;
    return v;
}
void eval_legacy_text(const char *text, size_t len, Text *out) {
    View v = view_trim((View){text, len});
    const char *open = v.len ? memmem(v.p, v.len, "<answer>", 8) : NULL,
               *close = open ? memmem(open + 8, (size_t)(v.p + v.len - open) - 8, "</answer>", 9) : NULL;
    if (close) v = view_trim((View){open + 8, (size_t)(close - open) - 8});
    Text t = {0}, parts = {0};
    text_add(&t, v.len ? v.p : "", v.len);
    static const char *const actions = "the complete surgical action(s) ar(e)~:~", *const answer = "the answer is~";
    drop_phrase(&t, actions), drop_phrase(&t, "the surgical phase shown in this image is~"), drop_phrase(&t, answer);
    bool some = false;
    for (size_t i = 0; i < t.len;) { // X. text up to ; , or a line's end
        if (i + 1 >= t.len || !capital(t.p[i]) || t.p[i + 1] != '.') {
            i++;
            continue;
        }
        size_t from = i + 2, to;
        while (from < t.len && blank(t.p[from])) from++;
        for (to = from; to < t.len && t.p[to] != ';' && t.p[to] != ',' && t.p[to] != '\n';) to++;
        if (to == from) { // no text: the last blank that is no line's end is one
            while (from > i + 2 && t.p[from - 1] == '\n') from--;
            if (from == i + 2) {
                i++;
                continue;
            }
            to = from--;
        }
        View one = without_marks(view_trim((View){t.p + from, to - from}), false);
        if (some) text_add(&parts, ", ", 2);
        text_add(&parts, one.p, one.len);
        some = true, i = to;
    }
    if (!some) {
        View whole = view_trim((View){t.p, t.len}), rest = without_marks(without_letter(whole), false);
        if (!rest.len) rest = whole;
        text_add(&parts, rest.len ? rest.p : "", rest.len);
    }
    drop_phrase(&parts, "the (current )phase is~"), drop_phrase(&parts, actions), drop_phrase(&parts, answer);
    v = without_letter((View){parts.p, parts.len});
    text_add(out, "", 0);
    for (size_t i = 0; i < v.len; i++) {
        char c = low(v.p[i]);
        if (c != ' ') text_add(out, &c, 1);
    }
    text_free(&t), text_free(&parts);
}
static bool holds(const Text *t, const Text *part) {
    return !part->len || (t->len >= part->len && memmem(t->p, t->len, part->p, part->len));
}
static bool is_text(const Text *t, const char *s) { return t->len == strlen(s) && !memcmp(t->p, s, t->len); }
bool eval_legacy_right(const Text *said, const Text *label) {
    bool same = said->len == label->len && (!said->len || !memcmp(said->p, label->p, said->len));
    bool yes_no = (is_text(said, "yes") || is_text(said, "no")) && (is_text(label, "yes") || is_text(label, "no"));
    return same || (!yes_no && (holds(said, label) || holds(label, said)));
}

// ------------------------------------------------------------------------------------------------------- the sections
static int32_t name_of(const Section *s, View v) {
    for (int32_t c = 0; c < s->k; c++)
        if (label_equal(v, view_of(s->names[c]))) return c;
    return s->k;
}
static void name_add(Section *s, View v) {
    if (name_of(s, v) < s->k || !v.len || !label_equal(v, v)) return;
    if (s->k == s->cap) {
        s->cap = s->cap ? 2 * s->cap : 16;
        s->names = grow_or_die(s->names, (size_t)s->cap, sizeof *s->names, "a vocabulary");
    }
    s->names[s->k++] = copy_text(v.p, v.len);
}
static int by_text(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static Reading *
reading(void) { // large: one for the whole program, like the answers it is made for, one after the other
    static Reading r;
    return &r;
}
// The label of an item as a class name; NULL where it has none.
static const char *class_name(const TaskItem *t, Reading *r) {
    answer_read(r, view_of(t->answer), t);
    if (!r->ok) return NULL;
    if (r->kind == ANSWER_YESNO) return r->yes ? "yes" : "no";
    if (r->kind == ANSWER_NUMBER) snprintf(r->text, sizeof r->text, "%lld", (long long)r->number);
    else if (r->word.len) {
        size_t n = r->word.len < sizeof r->text - 1 ? r->word.len : sizeof r->text - 1;
        memmove(r->text, r->word.p, n), r->text[n] = 0;
    }
    return r->text;
}

static View box_name(const TaskItem *t, const char *label) { // of a box: what is asked for, else its own
    const char *name = task_info(t->task)->kind == ANSWER_BOX && t->slot ? t->slot : label;
    return view_of(*name ? name : "object");
}

// The vocabulary: what the labels say, and what the options of the prompts say.
static bool vocabulary(Section *s, Err *e) {
    enum AnswerKind kind = task_info(s->task)->kind;
    Reading *r = reading();
    if (kind == ANSWER_YESNO) name_add(s, view_of("no")), name_add(s, view_of("yes"));
    if (s->task == TASK_GRID)
        for (int i = 0; i < 9; i++) name_add(s, view_of(task_grid_cell(i % 3 + .5, i / 3 + .5, 3, 3)));
    for (int64_t i = 0; i < s->n; i++) {
        const TaskItem *t = &s->items[i]->r.item;
        View rest = {0}, one;
        if (has_class(kind)) {
            const char *name = class_name(t, r);
            if (!name || !*name)
                return err_set(e, "E-DS-12", AT(.file = s->ev->o->data, .line = s->items[i]->line, .sample = t->id),
                               "expected a label of the kind of its task; found %s; do: check the import",
                               quoted(t->answer, strlen(t->answer)));
            name_add(s, view_of(name));
            for (int c = 0; c < t->n_choices && kind != ANSWER_YESNO && kind != ANSWER_NUMBER; c++)
                name_add(s, view_of(t->choices[c]));
        } else if (kind == ANSWER_LIST) {
            answer_read(r, view_of(t->answer), t);
            for (rest = r->word; answer_next_item(&rest, kind, &one);) name_add(s, one);
        } else if (kind == ANSWER_BOX) name_add(s, box_name(t, t->boxes[0].label));
        else if (kind == ANSWER_BOXES)
            for (int b = 0; b < t->n_boxes; b++) name_add(s, box_name(t, t->boxes[b].label));
    }
    if (s->k) qsort(s->names, (size_t)s->k, sizeof *s->names, by_text);
    s->truth = alloc_or_die((size_t)s->n + 1, sizeof *s->truth, "labels");
    for (int64_t i = 0; i < s->n && has_class(kind); i++)
        s->truth[i] = name_of(s, view_of(class_name(&s->items[i]->r.item, r)));
    return true;
}

// ----------------------------------------------------------------------------------------------------------- one answer
static void measure_boxes(const Item *it, const Said *said, Reading *r, Result *out) {
    const TaskItem *t = &it->r.item;
    enum AnswerKind kind = task_info(t->task)->kind;
    Box truth[ANSWER_MAX_BOXES];
    RewardOptions o = {.box = BOX_IOU};
    out->iou = out->iou_legacy = 0, out->near75 = false;
    for (int b = 0; b < r->n_boxes; b++)
        if (said->width > 0) r->boxes[b] = box_to_original(r->boxes[b], said->width, said->height, t->width, t->height);
    for (int b = 0; b < t->n_boxes; b++) {
        truth[b] = t->boxes[b];
        if (kind != ANSWER_BOXES) truth[b].label[0] = 0;
    }
    if (!r->ok) return;
    out->iou = boxes_match(truth, t->n_boxes, r->boxes, r->n_boxes, t->width, t->height, &o);
    o.box = BOX_IOU50, o.box_threshold = 0.75;
    out->near75 = boxes_match(truth, t->n_boxes, r->boxes, r->n_boxes, t->width, t->height, &o) == 1;
    if (kind == ANSWER_VQLA && r->n_boxes && t->n_boxes && t->width > 0) {
        double w = (double)t->width, h = (double)t->height;
        Box a = {truth[0].x1 / w, truth[0].y1 / h, truth[0].x2 / w, truth[0].y2 / h, ""},
            b = {r->boxes[0].x1 / w, r->boxes[0].y1 / h, r->boxes[0].x2 / w, r->boxes[0].y2 / h, ""};
        out->iou_legacy = box_iou_vqla_legacy(&a, &b);
    }
}
static bool near50(const TaskItem *t, const Reading *r) { // boxes are in pixels of the file
    Box truth[ANSWER_MAX_BOXES];
    RewardOptions half = {.box = BOX_IOU50, .box_threshold = 0.5};
    for (int b = 0; b < t->n_boxes; b++) {
        truth[b] = t->boxes[b];
        if (task_info(t->task)->kind != ANSWER_BOXES) truth[b].label[0] = 0;
    }
    return r->ok && boxes_match(truth, t->n_boxes, r->boxes, r->n_boxes, t->width, t->height, &half) == 1;
}

// The class that a wrong answer names: of Cholec80's phases one has two names, which answer_matches knows.
static int32_t class_said(const Section *s, const Reading *r, const TaskItem *t) {
    TaskItem other = *t;
    if (r->kind == ANSWER_YESNO) return r->yes;
    for (int32_t c = 0; c < s->k; c++) {
        other.answer = s->names[c];
        if (answer_matches(r, &other)) return c;
    }
    return s->k;
}

static void read_one(const Section *s, int64_t i, const Said *said, Result *out) {
    const Item *it = s->items[i];
    const TaskItem *t = &it->r.item;
    enum AnswerKind kind = task_info(s->task)->kind;
    Answer a = {.status = ANSWER_OK};
    View text = {said->text, said->len}, view[3] = {{0}};
    *out = (Result){.class = s->k, .iou = NAN};
    bool boxes = has_box(kind) && t->n_boxes > (kind == ANSWER_BOXES ? -1 : 0);
    if (boxes) out->iou = 0;
    if (!said->given) return;
    if (said->bare) view[EVAL_FORMAT] = view[EVAL_TAGS] = view[EVAL_ANY] = text;
    else {
        answer_parse(&a, text.p, text.len);
        if (a.status == ANSWER_OK) view[EVAL_FORMAT] = a.answer;
        if (a.has_answer && a.status != ANSWER_TOO_MANY) view[EVAL_TAGS] = a.answer;
        view[EVAL_ANY] = answer_any(&a);
    }
    out->status = a.status;
    // the reading that counts comes last, and what it says stays
    static const enum EvalReading order[3][3] = {
        {EVAL_FORMAT, EVAL_ANY, EVAL_TAGS}, {EVAL_TAGS, EVAL_ANY, EVAL_FORMAT}, {EVAL_FORMAT, EVAL_TAGS, EVAL_ANY}};
    Reading *r = reading();
    for (int m = 0; m < 3; m++) {
        enum EvalReading mode = order[s->ev->o->reading][m];
        answer_read(r, view[mode], t);
        if (boxes) measure_boxes(it, said, r, out);
        out->label_right =
            has_class(kind) || kind == ANSWER_LIST || kind == ANSWER_TRIPLETS ? answer_matches(r, t) : false;
        out->right = (!boxes || near50(t, r)) && (kind == ANSWER_BOX || kind == ANSWER_BOXES || out->label_right);
        out->by_reading[mode] = out->right;
        out->answered = view[mode].len > 0;
    }
    out->read = r->ok, out->number = r->number;
    if (has_class(kind) && r->ok) out->class = out->label_right ? s->truth[i] : class_said(s, r, t);
    if (kind == ANSWER_LIST || kind == ANSWER_TRIPLETS) out->word = copy_text(r->word.p, r->word.len);
    if (r->n_boxes) {
        out->boxes = alloc_or_die((size_t)r->n_boxes, sizeof(Box), "boxes of an answer");
        memcpy(out->boxes, r->boxes, (size_t)r->n_boxes * sizeof(Box));
        out->n_boxes = r->n_boxes;
    }
}

// ------------------------------------------------------------------------------------------------ metrics of a section
static Metric *metric(Section *s, const char *name) {
    for (int i = 0; i < s->n_metrics; i++)
        if (!strcmp(s->metric[i].name, name)) return &s->metric[i];
    CHECK(s->n_metrics < MOST_METRICS, "more than %d metrics in a section", MOST_METRICS);
    Metric *m = &s->metric[s->n_metrics++];
    *m = (Metric){.low = NAN, .high = NAN};
    for (int k = 0; k < SYSTEMS; k++) m->value[k] = NAN;
    snprintf(m->name, sizeof m->name, "%s", name);
    return m;
}
static void put(Section *s, enum System sys, const char *name, double v) { metric(s, name)->value[sys] = v; }

static Job *job_add(Section *s, const char *name, ClusterStatistic statistic) {
    Eval *ev = s->ev;
    if (ev->n_jobs == ev->cap_jobs) {
        ev->cap_jobs = ev->cap_jobs ? 2 * ev->cap_jobs : 64;
        ev->jobs = grow_or_die(ev->jobs, (size_t)ev->cap_jobs, sizeof *ev->jobs, "the intervals");
    }
    Job *j = &ev->jobs[ev->n_jobs++];
    *j = (Job){.statistic = statistic, .clusters = s->patients, .section = s - ev->sections};
    j->metric = metric(s, name) - s->metric;
    return j;
}
// The mean of value [n] over items, NaN left out, with an interval by patient.
static void put_mean(Section *s, enum System sys, const char *name, const double *value) {
    put(s, sys, name, mean_of(value, s->n));
    if (sys != MODEL || s->ev->o->resamples < 2) return;
    Job *j = job_add(s, name, cluster_ratio);
    j->correct = alloc_or_die((size_t)s->patients, sizeof *j->correct, "sums by patient");
    j->n = alloc_or_die((size_t)s->patients, sizeof *j->n, "sums by patient");
    for (int64_t i = 0; i < s->n; i++)
        if (!isnan(value[i])) j->correct[s->cluster_of[i]] += value[i], j->n[s->cluster_of[i]] += 1;
}

// Macro F1 or Jaccard over the classes of the truth, of the patients drawn.
enum { HITS, PREDICTED, SUPPORT, COUNTS };
static double macro_drawn(const void *ctx, const int64_t *drawn, int64_t n) {
    const Job *j = ctx;
    double *sum = alloc_or_die((size_t)j->k, COUNTS * sizeof *sum, "counts by class"), total = 0;
    int32_t used = 0;
    for (int64_t i = 0; i < n; i++)
        for (int32_t c = 0; c < COUNTS * j->k; c++) sum[c] += j->counts[drawn[i] * COUNTS * j->k + c];
    for (int32_t c = 0; c < j->k; c++) {
        const double *x = sum + COUNTS * c;
        if (x[SUPPORT] <= 0) continue;
        total +=
            j->jaccard ? x[HITS] / (x[PREDICTED] + x[SUPPORT] - x[HITS]) : 2 * x[HITS] / (x[PREDICTED] + x[SUPPORT]);
        used++;
    }
    free(sum);
    return used ? total / used : (double)NAN;
}
static void interval_of_macro(Section *s, const char *name, const int32_t *predicted, bool jaccard) {
    if (s->ev->o->resamples < 2) return;
    Job *j = job_add(s, name, macro_drawn);
    j->k = s->k, j->jaccard = jaccard;
    j->counts = alloc_or_die((size_t)(s->patients * s->k), COUNTS * sizeof *j->counts, "counts by patient");
    for (int64_t i = 0; i < s->n; i++) {
        double *x = j->counts + s->cluster_of[i] * COUNTS * s->k;
        x[COUNTS * s->truth[i] + SUPPORT] += 1;
        if (predicted[i] < s->k) x[COUNTS * predicted[i] + PREDICTED] += 1;
        if (predicted[i] == s->truth[i]) x[COUNTS * s->truth[i] + HITS] += 1;
    }
}

static void add_number(Text *out, double v) {
    if (isfinite(v)) text_add_json_number(out, v);
    else text_addf(out, "null");
}
static void show_number(Text *out, double v, int width) {
    if (v >= 2 && v == rint(v)) text_addf(out, "%*.0f", width, v); // a count; nearly all else is a share
    else if (isfinite(v)) text_addf(out, "%*.4f", width, v);
    else text_addf(out, "%*s", width, "-");
}
static void add_name(Text *out, const char *name) { text_add_json_string(out, name, strlen(name)); }
static void show_name(Text *out, const char *name, int width) { // labels are text of strangers
    Text clean = {0};
    text_add_clean(&clean, name, strlen(name), "");
    text_addf(out, "  %-*.*s", width, 60, clean.len ? clean.p : "");
    text_free(&clean);
}
static void class_row(Section *s, const char *name, int64_t support, int64_t predicted, const char *const *keys,
                      const double *values, int n) {
    Text *j = &s->classes, *t = &s->table;
    if (!t->len) {
        text_addf(t, "  %-36s %8s %9s", "class", "support", "predicted");
        for (int i = 0; i < n; i++) text_addf(t, " %9s", keys[i]);
        text_addf(t, "\n");
    }
    text_addf(j, "%s{\"name\":", j->len ? "," : "");
    add_name(j, name);
    text_addf(j, ",\"support\":%lld,\"predicted\":%lld", (long long)support, (long long)predicted);
    show_name(t, name, 36);
    text_addf(t, " %8lld %9lld", (long long)support, (long long)predicted);
    for (int i = 0; i < n; i++) {
        text_addf(j, ",\"%s\":", keys[i]), add_number(j, values[i]);
        text_addf(t, " "), show_number(t, values[i], 9);
    }
    text_addf(j, "}"), text_addf(t, "\n");
}

// Frames of one video in their order.
typedef struct Place {
    const char *video;
    int64_t frame, at;
} Place;
static int by_place(const void *a, const void *b) {
    const Place *x = a, *y = b;
    int d = strcmp(x->video, y->video);
    if (d) return d;
    if (x->frame != y->frame) return x->frame < y->frame ? -1 : 1;
    return x->at < y->at ? -1 : x->at > y->at;
}
static const char *video_of(const TaskItem *t) { return t->video ? t->video : t->patient ? t->patient : t->id; }
static Place *places(const Section *s) {
    Place *p = alloc_or_die((size_t)s->n, sizeof *p, "frames of videos");
    for (int64_t i = 0; i < s->n; i++) p[i] = (Place){video_of(&s->items[i]->r.item), s->items[i]->r.item.frame, i};
    if (s->n) qsort(p, (size_t)s->n, sizeof *p, by_place);
    return p;
}

static void video_metrics(Section *s, enum System sys, const int32_t *predicted) {
    Place *p = places(s);
    int32_t *labels = alloc_or_die((size_t)s->n, 2 * sizeof *labels, "labels of videos"), *said = labels + s->n;
    LabelVideo *videos = alloc_or_die((size_t)s->n, sizeof *videos, "videos");
    int64_t n = 0;
    for (int64_t i = 0; i < s->n; i++) {
        labels[i] = s->truth[p[i].at], said[i] = predicted[p[i].at];
        if (!i || strcmp(p[i].video, p[i - 1].video)) videos[n++] = (LabelVideo){labels + i, said + i, 0};
        videos[n - 1].frames++;
    }
    if (s->task == TASK_ACTION) {
        double accuracy, f1, score;
        action_scores(videos, n, NULL, &accuracy, &f1, &score);
        put(s, sys, "video_accuracy", accuracy), put(s, sys, "video_segment_f1_at_10", f1);
        put(s, sys, "sar_rarp50_score", score);
    } else {
        PhaseScores x;
        phase_scores(videos, n, s->k, PHASE_STRICT, NULL, NULL, NULL, &x);
        put(s, sys, "video_accuracy", x.accuracy / 100), put(s, sys, "video_accuracy_std", x.accuracy_std_n1 / 100);
        put(s, sys, "video_precision", x.precision.mean / 100), put(s, sys, "video_recall", x.recall.mean / 100);
        put(s, sys, "video_jaccard", x.jaccard.mean / 100);
    }
    free(p), free(labels), free(videos);
}

static void class_metrics(Section *s, enum System sys, const Result *res) {
    int32_t *said = alloc_or_die((size_t)s->n, sizeof *said, "classes said"), k = s->k;
    double *right = alloc_or_die((size_t)s->n, sizeof *right, "right answers");
    ClassScores *by_class = alloc_or_die((size_t)k + 1, sizeof *by_class, "scores by class");
    int64_t *support = alloc_or_die((size_t)k + 1, 2 * sizeof *support, "counts by class"), *count = support + k + 1;
    ClassReport report;
    for (int64_t i = 0; i < s->n; i++) said[i] = res[i].class, right[i] = said[i] == s->truth[i], count[said[i]]++;
    class_report(s->truth, said, s->n, k, CLASSES_TRUTH, 0, by_class, support, NULL, &report);
    put_mean(s, sys, "accuracy", right);
    put(s, sys, "balanced_accuracy", class_balanced_accuracy(s->truth, said, s->n, k));
    put(s, sys, "macro_precision", report.macro.precision), put(s, sys, "macro_recall", report.macro.recall);
    put(s, sys, "macro_f1", report.macro.f1), put(s, sys, "macro_jaccard", report.macro.jaccard);
    put(s, sys, "weighted_precision", report.weighted.precision), put(s, sys, "weighted_f1", report.weighted.f1);
    if (sys == MODEL) interval_of_macro(s, "macro_f1", said, false), interval_of_macro(s, "macro_jaccard", said, true);
    static const char *const keys[] = {"precision", "recall", "f1", "jaccard"};
    for (int32_t c = 0; c <= k && sys == MODEL; c++) {
        double v[] = {by_class[c].precision, by_class[c].recall, by_class[c].f1, by_class[c].jaccard};
        if (c == k) v[0] = v[1] = v[2] = v[3] = NAN;
        if (c < k ? support[c] || count[c] : count[c] > 0)
            class_row(s, c < k ? s->names[c] : "(outside or unreadable)", support[c], count[c], keys, v, 4);
    }
    if (s->task == TASK_VQA ||
        s->task == TASK_VQLA) { // longbai1006/Surgical-VQLA: scikit-learn over the union, 0/0 = 1
        class_report(s->truth, said, s->n, k, CLASSES_UNION, 1, NULL, NULL, NULL, &report);
        put(s, sys, "vqla_precision", report.macro.precision), put(s, sys, "vqla_recall", report.macro.recall);
        put(s, sys, "vqla_f_score", report.macro.f1);
    }
    if (s->task == TASK_PHASE || s->task == TASK_STEP || s->task == TASK_ACTION) video_metrics(s, sys, said);
    if (task_info(s->task)->kind == ANSWER_NUMBER) { // of what was read as a number
        double *off = right;
        for (int64_t i = 0; i < s->n; i++)
            off[i] = res[i].read ? fabs((double)res[i].number - strtod(s->names[s->truth[i]], NULL)) : (double)NAN;
        put(s, sys, "mean_error_of_read", mean_of(off, s->n));
    }
    free(said), free(right), free(by_class), free(support);
}

// The names of a list as classes, each once; how many are outside of the vocabulary.
static int64_t names_in(const Section *s, const char *list, enum AnswerKind kind, uint8_t *has) {
    View rest = view_of(list), one;
    int64_t outside = 0;
    memset(has, 0, (size_t)s->k + 1);
    while (answer_next_item(&rest, kind, &one)) {
        int32_t c = name_of(s, one);
        outside += c == s->k && !has[c], has[c] = 1; // unknown names count once: they are wrong either way
    }
    return outside;
}

static void list_metrics(Section *s, enum System sys, const Result *res) {
    size_t k = (size_t)s->k, n = (size_t)s->n;
    double *right = alloc_or_die(n, sizeof *right, "right answers"),
           *jaccard = alloc_or_die(n, sizeof *jaccard, "overlaps"),
           *score = alloc_or_die(n, sizeof *score, "binary scores");
    uint8_t *has = alloc_or_die(k + 1, n, "names said"), *is = alloc_or_die(k + 1, n, "names of labels"),
            *positive = alloc_or_die(n, 1, "labels of a class");
    int64_t tp = 0, fp = 0, fn = 0;
    Reading *r = reading();
    for (size_t i = 0; i < n; i++) {
        const TaskItem *t = &s->items[i]->r.item;
        answer_read(r, view_of(t->answer), t);
        char *label = copy_text(r->word.p, r->word.len);
        names_in(s, label, ANSWER_LIST, is + i * (k + 1));
        free(label);
        int64_t a = 0, b = names_in(s, res[i].word, ANSWER_LIST, has + i * (k + 1)), c = 0;
        for (size_t x = 0; x < k; x++) {
            bool g = is[i * (k + 1) + x], p = has[i * (k + 1) + x];
            a += g && p, b += p && !g, c += g && !p;
        }
        right[i] = res[i].right, jaccard[i] = ratio((double)a, (double)(a + b + c));
        tp += a, fp += b, fn += c;
    }
    put_mean(s, sys, "exact_accuracy", right), put_mean(s, sys, "mean_jaccard", jaccard);
    put(s, sys, "micro_precision", ratio((double)tp, (double)(tp + fp)));
    put(s, sys, "micro_recall", ratio((double)tp, (double)(tp + fn)));
    put(s, sys, "micro_f1", ratio(2 * (double)tp, (double)(2 * tp + fp + fn)));
    double f1 = 0, map = 0;
    int64_t used = 0;
    static const char *const keys[] = {"precision", "recall", "f1", "ap"};
    for (size_t x = 0; x < k; x++) {
        int64_t a = 0, said = 0, support = 0;
        for (size_t i = 0; i < n; i++) {
            positive[i] = is[i * (k + 1) + x], score[i] = has[i * (k + 1) + x];
            a += positive[i] && has[i * (k + 1) + x], said += has[i * (k + 1) + x], support += positive[i];
        }
        double v[] = {said ? ratio((double)a, (double)said) : 0, ratio((double)a, (double)support),
                      ratio(2 * (double)a, (double)(said + support)), average_precision(positive, score, s->n)};
        if (support) f1 += v[2], map += v[3], used++;
        if (sys == MODEL && (support || said)) class_row(s, s->names[x], support, said, keys, v, 4);
    }
    put(s, sys, "macro_f1", ratio(f1, (double)used));
    put(s, sys, "map_binary_scores", ratio(map, (double)used));
    free(right), free(jaccard), free(score), free(has), free(is), free(positive);
}

// ---------------------------------------------------------------------------------------------------------- triplets
static const TripletNames cholect50 = {cholect50_instruments, cholect50_verbs, cholect50_targets, 6, 10, 15};

typedef struct TripletList {
    Triplet *p;
    int64_t *start; // [n + 1]
    int64_t n, cap;
} TripletList;
// Adds the triplets of a text as the next frame; false when one is not made of known names.
static bool triplets_add(TripletList *l, int64_t frame, const char *text) {
    View rest = view_of(text), one;
    bool known = true;
    while (answer_next_item(&rest, ANSWER_TRIPLETS, &one)) {
        if (l->n == l->cap) {
            l->cap = l->cap ? 2 * l->cap : 64;
            l->p = grow_or_die(l->p, (size_t)l->cap, sizeof *l->p, "triplets");
        }
        Triplet *x = &l->p[l->n++];
        if (!answer_triplet(one, &cholect50, x)) x->t = -1, known = false; // also where words follow the three
    }
    l->start[frame + 1] = l->n;
    return known;
}
static TripletList triplet_list(int64_t frames) {
    return (TripletList){.start = alloc_or_die((size_t)frames + 1, sizeof(int64_t), "triplets of frames")};
}

// The classes of a part: in how many frames they are, and were said to be.
static void triplet_rows(Section *s, enum TripletPart part, const TripletAP *ap, const uint8_t *is,
                         const double *score) {
    static const char *const keys[] = {"video_ap", "global_ap"};
    int column[TRIPLETS];
    int64_t support[TRIPLETS] = {0}, count[TRIPLETS] = {0};
    for (int x = 0; x < TRIPLETS; x++) column[x] = triplet_column(part, x);
    for (int64_t i = 0; i < s->n; i++) {
        bool g[TRIPLETS] = {0}, f[TRIPLETS] = {0};
        for (int x = 0; x < TRIPLETS; x++)
            g[column[x]] |= is[i * TRIPLETS + x], f[column[x]] |= score[i * TRIPLETS + x] > 0;
        for (int c = 0; c < ap->columns; c++) support[c] += g[c], count[c] += f[c];
    }
    for (int c = 0; c < ap->columns; c++) {
        int id = triplet_column_id(part, c);
        char row[64];
        Triplet x = triplet_at(part == PART_IVT ? id : 0);
        if (part == PART_IVT)
            snprintf(row, sizeof row, "%s %s %s", cholect50_instruments[x.i], cholect50_verbs[x.v],
                     cholect50_targets[x.t]);
        else
            snprintf(row, sizeof row, "%s",
                     part == PART_I   ? cholect50_instruments[id]
                     : part == PART_V ? cholect50_verbs[id]
                                      : cholect50_targets[id]);
        double v[] = {ap->video_ap[c], ap->global_ap[c]};
        if (support[c] || count[c]) class_row(s, row, support[c], count[c], keys, v, 2);
    }
}

static void triplet_map(Section *s, enum System sys, const TripletList *truth, const TripletList *said) {
    Place *p = places(s);
    uint8_t *is = alloc_or_die((size_t)s->n, TRIPLETS, "triplet labels");
    double *score = alloc_or_die((size_t)s->n, TRIPLETS * sizeof *score, "binary scores");
    TripletVideo *videos = alloc_or_die((size_t)s->n, sizeof *videos, "videos");
    int64_t n = 0;
    for (int64_t i = 0; i < s->n; i++) {
        int64_t at = p[i].at;
        for (int64_t x = truth->start[at]; x < truth->start[at + 1]; x++)
            is[i * TRIPLETS + triplet_id(truth->p[x])] = 1;
        for (int64_t x = said->start[at]; x < said->start[at + 1]; x++) {
            int id = triplet_id(said->p[x]); // none of the 100: wrong elsewhere, no column here
            if (id >= 0) score[i * TRIPLETS + id] = 1;
        }
        if (!i || strcmp(p[i].video, p[i - 1].video))
            videos[n++] = (TripletVideo){is + i * TRIPLETS, score + i * TRIPLETS, 0};
        videos[n - 1].frames++;
    }
    for (int part = 0; part < TRIPLET_PARTS; part++) {
        TripletAP ap;
        char name[48];
        triplet_ap(videos, n, (enum TripletPart)part, false, NULL, &ap);
        snprintf(name, sizeof name, "map_%s_binary_scores", triplet_part_names[part]);
        put(s, sys, name, ap.video_map);
        snprintf(name, sizeof name, "map_%s_all_frames", triplet_part_names[part]);
        put(s, sys, name, ap.global_map);
        if (part == PART_IVT) put(s, sys, "map_ivt_without_null", ap.video_map_ignore_null);
        if (sys == MODEL && part <= PART_T) triplet_rows(s, (enum TripletPart)part, &ap, is, score);
        triplet_ap(videos, n, (enum TripletPart)part, true, NULL, &ap);
        snprintf(name, sizeof name, "ivtmetrics_0.1.5_map_%s", triplet_part_names[part]);
        put(s, sys, name, ap.video_map);
    }
    free(p), free(is), free(score), free(videos);
}

static void triplet_metrics(Section *s, enum System sys, const Result *res) {
    double *right = alloc_or_die((size_t)s->n, sizeof *right, "right answers");
    TripletList truth = triplet_list(s->n), said = triplet_list(s->n);
    bool known = true, in_bank = true;
    for (int64_t i = 0; i < s->n; i++) {
        right[i] = res[i].right;
        known = triplets_add(&truth, i, s->items[i]->r.item.answer) && known;
        triplets_add(&said, i, res[i].word ? res[i].word : "");
    }
    put_mean(s, sys, "accuracy", right);
    if (known) { // names of CholecT50
        static const char *const names[TRIPLET_PARTS] = {"exact",  "instrument",      "verb",
                                                         "target", "instrument_verb", "instrument_target"};
        TripletSets sets;
        for (int part = PART_I; part < TRIPLET_PARTS; part++) {
            char name[48];
            for (int64_t i = 0; i < s->n; i++) {
                int64_t g[2] = {0, truth.start[i + 1] - truth.start[i]}, f[2] = {0, said.start[i + 1] - said.start[i]};
                triplet_sets(truth.p + truth.start[i], g, f[1] ? said.p + said.start[i] : NULL, f, 1, NULL, &sets);
                right[i] = sets.exact[part];
            }
            snprintf(name, sizeof name, "%s_accuracy", names[part]);
            put_mean(s, sys, name, right);
        }
        triplet_sets(truth.p, truth.start, said.p, said.start, s->n, NULL, &sets);
        put(s, sys, "contained", sets.contained[PART_IVT]), put(s, sys, "micro_f1", sets.micro_f1[PART_IVT]);
        put(s, sys, "micro_jaccard", sets.micro_jaccard[PART_IVT]);
        if (sys == MODEL) s->outside = sets.outside;
        TripletSets acting; // without "instrument null_verb null_target" on both sides
        triplet_sets(truth.p, truth.start, said.p, said.start, s->n, &(Triplet){-1, 9, 14}, &acting);
        put(s, sys, "accuracy_without_null", acting.exact[PART_IVT]);
        for (int64_t x = 0; x < truth.n; x++) in_bank = in_bank && triplet_id(truth.p[x]) >= 0;
        if (in_bank) triplet_map(s, sys, &truth, &said);
    }
    free(right), free(truth.p), free(truth.start), free(said.p), free(said.start);
}

// ------------------------------------------------------------------------------------------------------------- boxes
// One picture a question: the order of detections, all of one score, is that of the ids, then as written.
static void box_metrics(Section *s, enum System sys, const Result *res) {
    enum AnswerKind kind = task_info(s->task)->kind;
    size_t n = (size_t)s->n;
    double *value = alloc_or_die(n, sizeof *value, "IoU");
    int64_t n_truth = 0, n_found = 0;
    for (size_t i = 0; i < n; i++) {
        value[i] = res[i].iou;
        if (!isnan(res[i].iou)) n_truth += s->items[i]->r.item.n_boxes, n_found += res[i].n_boxes;
    }
    put_mean(s, sys, "miou", value);
    for (size_t i = 0; i < n; i++)
        value[i] = isnan(res[i].iou) ? (double)NAN : kind == ANSWER_VQLA ? res[i].iou >= 0.5 : res[i].right;
    put_mean(s, sys, "iou_50", value);
    for (size_t i = 0; i < n; i++) value[i] = isnan(res[i].iou) ? (double)NAN : res[i].near75;
    put_mean(s, sys, "iou_75", value);
    if (kind == ANSWER_VQLA) {
        for (size_t i = 0; i < n; i++) value[i] = isnan(res[i].iou) ? (double)NAN : res[i].iou_legacy;
        put_mean(s, sys, "miou_vqla_legacy", value);
        for (size_t i = 0; i < n; i++) value[i] = isnan(res[i].iou) ? (double)NAN : res[i].right;
        put_mean(s, sys, "label_and_iou_50", value);
        free(value);
        return;
    }
    ScoredBox *truth = alloc_or_die((size_t)n_truth, sizeof *truth, "true boxes"),
              *found = alloc_or_die((size_t)n_found, sizeof *found, "boxes found");
    CocoClass *by_class = alloc_or_die((size_t)s->k + 1, sizeof *by_class, "COCO scores");
    CocoScores coco;
    int64_t a = 0, b = 0, hits = 0, outside = 0;
    for (size_t i = 0; i < n; i++) {
        const TaskItem *t = &s->items[i]->r.item;
        int32_t own = kind == ANSWER_BOX ? name_of(s, box_name(t, t->boxes[0].label)) : 0;
        if (isnan(res[i].iou)) continue;
        for (int x = 0; x < t->n_boxes; x++) {
            const Box *box = &t->boxes[x];
            truth[a++] =
                (ScoredBox){0,       (int64_t)i, kind == ANSWER_BOX ? own : name_of(s, box_name(t, box->label)),
                            1,       box->x1,    box->y1,
                            box->x2, box->y2};
        }
        for (int x = 0; x < res[i].n_boxes; x++) {
            const Box *box = &res[i].boxes[x];
            int32_t c = kind == ANSWER_BOX ? own : name_of(s, box_name(t, box->label));
            outside += c == s->k; // a name that no label has: no category to be wrong in, but wrong in precision
            if (c < s->k) found[b++] = (ScoredBox){0, (int64_t)i, c, 1, box->x1, box->y1, box->x2, box->y2};
        }
    }
    coco_boxes(truth, a, found, b, s->k, &coco, by_class);
    static const char *const keys[] = {"ap", "ap50", "ap75", "ar100"};
    for (int32_t c = 0; c < s->k; c++) {
        double v[] = {by_class[c].ap, by_class[c].ap50, by_class[c].ap75, by_class[c].ar100};
        hits += by_class[c].matched50;
        if (sys == MODEL) class_row(s, s->names[c], by_class[c].objects, by_class[c].detections, keys, v, 4);
    }
    put(s, sys, "coco_ap", coco.ap), put(s, sys, "ap50", coco.ap50), put(s, sys, "ap75", coco.ap75);
    put(s, sys, "precision_50", ratio((double)hits, (double)(b + outside))),
        put(s, sys, "recall_50", ratio((double)hits, (double)a));
    if (sys == MODEL) s->outside += outside;
    free(value), free(truth), free(found), free(by_class);
}

// ------------------------------------------------------------------------------------------------------------- legacy
typedef struct Row { // of the authors' evaluator
    int64_t line;
    Text said, label;
    bool right;
} Row;
static int by_line(const void *a, const void *b) {
    const Row *x = a, *y = b;
    return x->line < y->line ? -1 : x->line > y->line;
}
static void legacy_metrics(Section *s, enum System sys, const Said *const *said) {
    Row *rows = alloc_or_die((size_t)s->n, sizeof *rows, "rows");
    int64_t n = 0, right = 0;
    for (int64_t i = 0; i < s->n; i++) {
        const TaskItem *t = &s->items[i]->r.item;
        if (!said[i]->given || !said[i]->len) continue;
        Row *r = &rows[n++];
        *r = (Row){.line = s->items[i]->line};
        eval_legacy_text(said[i]->text, said[i]->len, &r->said);
        eval_legacy_text(t->answer, strlen(t->answer), &r->label);
        right += eval_legacy_right(&r->said, &r->label);
    }
    if (n) qsort(rows, (size_t)n, sizeof *rows, by_line);
    put(s, sys, "surgr1_legacy_accuracy", ratio((double)right, (double)n));
    put(s, sys, "surgr1_legacy_rows", (double)n);
    if (has_class(task_info(s->task)->kind) && n) {
        char **labels = alloc_or_die((size_t)n, sizeof *labels, "labels");
        int32_t *is = alloc_or_die((size_t)n, 2 * sizeof *is, "classes"), *f = is + n, k = 0;
        for (int64_t i = 0; i < n; i++) labels[i] = rows[i].label.p;
        qsort(labels, (size_t)n, sizeof *labels, by_text);
        for (int64_t i = 0; i < n; i++)
            if (!i || strcmp(labels[i], labels[i - 1])) labels[k++] = labels[i];
        for (int64_t i = 0; i < n; i++) {
            char **hit = bsearch(&rows[i].label.p, labels, (size_t)k, sizeof *labels, by_text);
            is[i] = (int32_t)(hit - labels), f[i] = k;
            hit = bsearch(&rows[i].said.p, labels, (size_t)k, sizeof *labels, by_text);
            if (hit) f[i] = (int32_t)(hit - labels);
        }
        ClassReport report;
        class_report(is, f, n, k, CLASSES_TRUTH, 0, NULL, NULL, NULL, &report);
        put(s, sys, "surgr1_legacy_macro_precision", report.macro.precision);
        put(s, sys, "surgr1_legacy_macro_recall", report.macro.recall);
        put(s, sys, "surgr1_legacy_macro_f1", report.macro.f1);
        put(s, sys, "surgr1_legacy_macro_jaccard", report.macro.jaccard);
        put(s, sys, "surgr1_legacy_map_11_points", class_map11(is, f, n, k));
        free(labels), free(is);
    }
    for (int64_t i = 0; i < n; i++) text_free(&rows[i].said), text_free(&rows[i].label);
    free(rows);
}

// ----------------------------------------------------------------------------------------------------- floors and all
static const char *question_of(const TaskItem *t, const char *prompt) {
    if (t->question) return t->question;
    if (t->slot) return t->slot;
    return (t->task == TASK_VQA || t->task == TASK_VQLA) && prompt ? prompt : "";
}
typedef struct Label { // of a record that floors are made of
    const char *question;
    char *text; // as its class is told apart
    const Item *it;
    int64_t at;
    double box[4]; // parts of the picture's sides, or pixels where the size is unknown
} Label;
static int by_label(const void *a, const void *b) {
    const Label *x = a, *y = b;
    int d = strcmp(x->text, y->text);
    return d ? d : x->at < y->at ? -1 : x->at > y->at;
}
static int by_question(const void *a, const void *b) {
    const Label *x = a, *y = b;
    int d = strcmp(x->question, y->question);
    return d ? d : by_label(a, b);
}
static char *label_key(const TaskItem *t) { // of sets: the names in order
    enum AnswerKind kind = task_info(t->task)->kind;
    Text out = {0};
    Reading *r = reading();
    text_add(&out, "", 0);
    if (kind == ANSWER_LIST || kind == ANSWER_TRIPLETS) {
        char *names[64];
        int n = 0;
        View rest = view_of(t->answer), one;
        while (n < 64 && answer_next_item(&rest, kind, &one)) {
            Text name = {0};
            label_normalise(one, &name), text_add(&name, "", 0);
            names[n++] = name.p;
        }
        qsort(names, (size_t)n, sizeof *names, by_text);
        for (int i = 0; i < n; i++) {
            if (!i || strcmp(names[i], names[i - 1])) text_addf(&out, "%s,", names[i]);
        }
        for (int i = 0; i < n; i++) free(names[i]);
    } else if (has_class(kind)) {
        const char *name = class_name(t, r);
        label_normalise(view_of(name ? name : t->answer), &out), text_add(&out, "", 0);
    }
    return out.p;
}
typedef struct Floor { // of labels [from, to), sorted by text
    const Item *most;  // the most frequent; the first in order among equals
    double box[4];     // mean
} Floor;
static Floor floor_of(const Label *l, int64_t from, int64_t to) {
    Floor f = {.most = l[from].it};
    int64_t best = 0, n = 0;
    for (int64_t i = from, j; i < to; i = j) {
        for (j = i + 1; j < to && !strcmp(l[j].text, l[i].text);) j++;
        if (j - i > best) best = j - i, f.most = l[i].it;
    }
    for (int64_t i = from; i < to; i++) {
        if (l[i].it->r.item.n_boxes < 1) continue;
        n++;
        for (int c = 0; c < 4; c++) f.box[c] += l[i].box[c];
    }
    for (int c = 0; c < 4 && n; c++) f.box[c] /= (double)n;
    return f;
}
static void floor_text(const Section *s, const TaskItem *t, const Floor *f, Text *out) {
    enum AnswerKind kind = task_info(s->task)->kind;
    Reading *r = reading();
    if (kind == ANSWER_BOXES) {
        text_addf(out, "No tools detected");
        return;
    }
    const TaskItem *most = &f->most->r.item;
    const char *name = has_class(kind) ? class_name(most, r) : most->answer;
    if (!name) name = most->answer; // a label of other records that is none of its kind
    if (!has_box(kind) || !t->n_boxes) {
        text_addf(out, "%s", name);
        return;
    }
    double w = t->width > 0 ? (double)t->width : 1, h = t->width > 0 ? (double)t->height : 1;
    text_addf(out, "{");
    if (kind == ANSWER_VQLA) text_addf(out, "\"answer\": "), add_name(out, name), text_addf(out, ", ");
    text_addf(out, "\"bbox_2d\": [%.3f, %.3f, %.3f, %.3f]}", f->box[0] * w, f->box[1] * h, f->box[2] * w,
              f->box[3] * h);
}

// What a constant and the most frequent answer to each question say to the items of a section. said [2][n].
static void floors(const Section *s, Said *said) {
    const Eval *ev = s->ev;
    const Item *from = ev->o->train ? ev->train : NULL;
    int64_t n = from ? ev->n_train : s->n, used = 0;
    Label *l = alloc_or_die((size_t)n, 2 * sizeof *l, "labels of the floors"), *by = l + n;
    for (int64_t i = 0; i < n; i++) {
        const Item *it = from ? &from[i] : s->items[i];
        const TaskItem *t = &it->r.item;
        if (t->task != s->task || !labelled(t)) continue;
        Label *x = &l[used];
        *x = (Label){question_of(t, it->r.prompt), label_key(t), it, used, {0}};
        if (t->n_boxes > 0) {
            const Box *b = &t->boxes[0];
            double w = t->width > 0 ? (double)t->width : 1, h = t->width > 0 ? (double)t->height : 1;
            x->box[0] = b->x1 / w, x->box[1] = b->y1 / h, x->box[2] = b->x2 / w, x->box[3] = b->y2 / h;
        }
        used++;
    }
    memcpy(by, l, (size_t)used * sizeof *l);
    if (used) qsort(l, (size_t)used, sizeof *l, by_label), qsort(by, (size_t)used, sizeof *by, by_question);
    Floor whole = {0}, *of = alloc_or_die((size_t)used, sizeof *of, "floors"); // of: at the first label of a question
    if (used) whole = floor_of(l, 0, used);
    for (int64_t i = 0, j; i < used; i = j) {
        for (j = i + 1; j < used && !strcmp(by[j].question, by[i].question);) j++;
        of[i] = floor_of(by, i, j);
    }
    for (int64_t i = 0; i < s->n && used; i++) {
        const TaskItem *t = &s->items[i]->r.item;
        const char *q = question_of(t, s->items[i]->r.prompt);
        Text one = {0}, two = {0};
        int64_t first = 0, end = used;
        while (first < end) {
            int64_t middle = (first + end) / 2;
            if (strcmp(by[middle].question, q) < 0) first = middle + 1;
            else end = middle;
        }
        bool found = first < used && !strcmp(by[first].question, q); // else the records of the floors do not ask it
        floor_text(s, t, &whole, &one), floor_text(s, t, found ? &of[first] : &whole, &two);
        said[i] = (Said){.text = one.p, .len = one.len, .given = true, .bare = true};
        said[s->n + i] = (Said){.text = two.p, .len = two.len, .given = true, .bare = true};
    }
    free(of);
    for (int64_t i = 0; i < used; i++) free(l[i].text);
    free(l);
}

static void count_answers(Section *s, const Result *res) {
    enum AnswerKind kind = task_info(s->task)->kind;
    double right[3] = {0};
    for (int64_t i = 0; i < s->n; i++) {
        const Item *it = s->items[i];
        const Said *said = &it->said[0];
        for (int m = 0; m < 3; m++) right[m] += res[i].by_reading[m];
        const Json *shown = json_get(it->r.doc.root, "options_shown");
        s->choice += shown ? shown->type == JSON_TRUE : it->r.prompt && strstr(it->r.prompt, "\nA. ");
        s->unparsable += !res[i].read;
        if (!said->given) s->missing++;
        else
            s->status[res[i].status]++, s->empty += !view_trim((View){said->text, said->len}).len,
                s->cut += !said->stopped;
        if (has_class(kind))
            s->outside += res[i].read && res[i].class == s->k && (kind != ANSWER_VQLA || res[i].answered);
    }
    for (int m = 0; m < 3; m++) s->readings[m] = ratio(right[m], (double)s->n);
}

// Visual questions by what they ask.
static void question_rows(Section *s, const Result *res) {
    Label *l = alloc_or_die((size_t)s->n, sizeof *l, "questions");
    for (int64_t i = 0; i < s->n; i++)
        l[i] = (Label){question_of(&s->items[i]->r.item, s->items[i]->r.prompt), (char *)(uintptr_t) "", NULL, i, {0}};
    if (s->n) qsort(l, (size_t)s->n, sizeof *l, by_question);
    int64_t kinds = 0;
    for (int64_t i = 0, j; i < s->n && kinds < 200; i = j, kinds++) {
        int64_t right = 0;
        for (j = i; j < s->n && !strcmp(l[j].question, l[i].question); j++) right += res[l[j].at].label_right;
        text_addf(&s->questions, "%s{\"question\":", s->questions.len ? "," : ""),
            add_name(&s->questions, l[i].question);
        text_addf(&s->questions, ",\"n\":%lld,\"accuracy\":", (long long)(j - i));
        add_number(&s->questions, ratio((double)right, (double)(j - i))), text_addf(&s->questions, "}");
        if (kinds > 40) continue;
        if (!kinds) text_addf(&s->table, "  %-46s %8s %9s\n", "question", "asked", "accuracy");
        show_name(&s->table, l[i].question, 46), text_addf(&s->table, " %8lld ", (long long)(j - i));
        show_number(&s->table, ratio((double)right, (double)(j - i)), 9), text_addf(&s->table, "\n");
    }
    free(l);
}

static void measure(Section *s, enum System sys, const Said *const *said) {
    enum AnswerKind kind = task_info(s->task)->kind;
    Result *res = alloc_or_die((size_t)s->n, sizeof *res, "readings");
    for (int64_t i = 0; i < s->n; i++) read_one(s, i, said[i], &res[i]);
    s->system[sys] = true;
    if (sys == MODEL) count_answers(s, res);
    if (has_class(kind)) class_metrics(s, sys, res);
    if (sys == MODEL && (s->task == TASK_VQA || s->task == TASK_VQLA)) question_rows(s, res);
    if (kind == ANSWER_LIST) list_metrics(s, sys, res);
    if (kind == ANSWER_TRIPLETS) triplet_metrics(s, sys, res);
    if (has_box(kind)) box_metrics(s, sys, res);
    if (kind != ANSWER_BOX && kind != ANSWER_BOXES && kind != ANSWER_VQLA) legacy_metrics(s, sys, said);
    for (int64_t i = 0; i < s->n; i++) {
        s->items[i]->yes[sys] = (int8_t)(kind == ANSWER_YESNO && res[i].read ? res[i].class : 2);
        free(res[i].word), free(res[i].boxes);
    }
    free(res);
}

// Surg-R1's CVS table: the three criteria of a picture together. "pooled" is the published "overall" (method.md 1.9).
typedef struct Asked { // one criterion of one picture
    const TaskItem *item;
    int64_t at;
    int criterion;
} Asked;
static int by_picture(const void *a, const void *b) {
    const TaskItem *x = ((const Asked *)a)->item, *y = ((const Asked *)b)->item;
    int d = strcmp(x->image ? x->image : x->id, y->image ? y->image : y->id);
    if (!d) d = strcmp(x->video ? x->video : "", y->video ? y->video : "");
    return d ? d : x->frame < y->frame ? -1 : x->frame > y->frame;
}
static int by_asked(const void *a, const void *b) {
    int64_t x = ((const Asked *)a)->at, y = ((const Asked *)b)->at;
    int d = by_picture(a, b);
    return d ? d : x < y ? -1 : x > y;
}
static void criteria_metrics(Section *s) {
    Asked *v = alloc_or_die((size_t)s->n, sizeof *v, "pictures");
    int32_t *truth = alloc_or_die((size_t)s->n, 3 * sizeof *truth, "criteria"),
            *said = alloc_or_die((size_t)s->n, 3 * sizeof *said, "criteria");
    double *right = alloc_or_die((size_t)s->n, sizeof *right, "right answers"),
           *joint = alloc_or_die((size_t)s->n, sizeof *joint, "right pictures");
    int64_t *first = alloc_or_die((size_t)s->n, sizeof *first, "pictures");
    Reading *r = reading();
    for (int64_t i = 0; i < s->n; i++) {
        const TaskItem *t = &s->items[i]->r.item;
        v[i] = (Asked){t, i, (int)t->task - TASK_CVS1};
    }
    if (s->n) qsort(v, (size_t)s->n, sizeof *v, by_asked);
    for (int sys = 0; sys < SYSTEMS; sys++) {
        if (!s->system[sys]) continue;
        int64_t n = 0;
        for (int64_t i = 0; i < s->n; i++) {
            const Item *it = s->items[v[i].at];
            // a picture asked twice for one criterion begins another row
            if (!i || by_picture(&v[i], &v[i - 1]) || truth[3 * (n - 1) + v[i].criterion] >= 0) {
                for (int c = 0; c < 3; c++) truth[3 * n + c] = -1, said[3 * n + c] = 2;
                first[n++] = v[i].at;
            }
            int32_t *g = &truth[3 * (n - 1) + v[i].criterion], *p = &said[3 * (n - 1) + v[i].criterion];
            answer_read(r, view_of(it->r.item.answer), &it->r.item);
            *g = r->yes, *p = it->yes[sys];
            right[v[i].at] = *g == *p, joint[v[i].at] = NAN;
        }
        CvsScores x;
        cvs_scores(truth, said, NULL, n, &x);
        for (int64_t i = 0; i < n; i++)
            if (truth[3 * i] >= 0 && truth[3 * i + 1] >= 0 && truth[3 * i + 2] >= 0)
                joint[first[i]] = truth[3 * i] == said[3 * i] && truth[3 * i + 1] == said[3 * i + 1] &&
                                  truth[3 * i + 2] == said[3 * i + 2];
        put_mean(s, (enum System)sys, "overall_pooled", right);
        put(s, (enum System)sys, "avg", x.avg);
        put_mean(s, (enum System)sys, "joint", joint);
        put(s, (enum System)sys, "achieved", x.achieved);
        for (int c = 0; c < 3; c++) {
            char name[48];
            snprintf(name, sizeof name, "c%d_accuracy", c + 1), put(s, (enum System)sys, name, x.criterion[c].accuracy);
            snprintf(name, sizeof name, "c%d_balanced_accuracy", c + 1);
            put(s, (enum System)sys, name, x.criterion[c].balanced_accuracy);
        }
        static const char *const keys[] = {"accuracy", "balanced", "majority"};
        for (int c = 0; c < 3 && sys == MODEL; c++) {
            const CvsCriterion *k = &x.criterion[c];
            char name[24];
            snprintf(name, sizeof name, "C%d yes", c + 1);
            int64_t yes = 0;
            for (int64_t i = 0; i < n; i++) yes += truth[3 * i + c] >= 0 && said[3 * i + c] == 1;
            double values[] = {k->accuracy, k->balanced_accuracy, k->majority};
            if (k->n) class_row(s, name, k->positives, yes, keys, values, 3);
        }
    }
    free(v), free(truth), free(said), free(right), free(joint), free(first);
}

// ------------------------------------------------------------------------------------------------------ the evaluation
static const char *dataset_of(const TaskItem *t) { return t->dataset ? t->dataset : "records"; }
static const char *patient_of(const TaskItem *t) { return t->patient ? t->patient : video_of(t); }
static int by_section(const void *a, const void *b) {
    const Item *x = *(Item *const *)a, *y = *(Item *const *)b;
    int d = strcmp(dataset_of(&x->r.item), dataset_of(&y->r.item));
    if (d) return d;
    if (x->r.item.task != y->r.item.task) return x->r.item.task < y->r.item.task ? -1 : 1;
    return x < y ? -1 : x > y; // by id
}
static void patients(Section *s) {
    const char **names = alloc_or_die((size_t)s->n, sizeof *names, "patients");
    s->cluster_of = alloc_or_die((size_t)s->n, sizeof *s->cluster_of, "patients");
    for (int64_t i = 0; i < s->n; i++) names[i] = patient_of(&s->items[i]->r.item);
    if (s->n) qsort(names, (size_t)s->n, sizeof *names, by_text);
    for (int64_t i = 0; i < s->n; i++)
        if (!i || strcmp(names[i], names[i - 1])) names[s->patients++] = names[i];
    for (int64_t i = 0; i < s->n; i++) {
        const char *name = patient_of(&s->items[i]->r.item);
        const char **hit = bsearch(&name, names, (size_t)s->patients, sizeof *names, by_text);
        s->cluster_of[i] = hit - names;
    }
    free(names);
}

static const char *primary_of(enum Task t) {
    switch (task_info(t)->kind) {
    case ANSWER_LIST: return "exact_accuracy";
    case ANSWER_BOX:
    case ANSWER_BOXES: return "miou";
    default: return "accuracy";
    }
}
static bool evaluate(Section *s, Err *e) {
    if (!vocabulary(s, e)) return false;
    patients(s);
    Said *floor_said = alloc_or_die((size_t)s->n, 2 * sizeof *floor_said, "floors");
    const Said **said = alloc_or_die((size_t)s->n, sizeof *said, "answers");
    floors(s, floor_said);
    for (int sys = 0; sys < SYSTEMS; sys++) {
        if (sys == BLIND && !s->ev->o->blind) continue;
        for (int64_t i = 0; i < s->n; i++)
            said[i] = sys == MODEL   ? &s->items[i]->said[0]
                      : sys == BLIND ? &s->items[i]->said[1]
                                     : &floor_said[(sys == QUESTION ? s->n : 0) + i];
        measure(s, (enum System)sys, said);
    }
    for (int64_t i = 0; i < 2 * s->n; i++) free(floor_said[i].text);
    free(floor_said), free(said);
    s->title = task_info(s->task)->name;
    s->primary = (int)(metric(s, primary_of(s->task)) - s->metric);
    return true;
}

// Items of a data set and task side by side, sections of them, and behind those of the criteria one of all three.
static bool sections(Eval *ev, Item **order, Err *e) {
    for (int64_t i = 0; i < ev->n; i++) order[i] = &ev->items[i];
    if (ev->n) qsort(order, (size_t)ev->n, sizeof *order, by_section);
    int64_t most = 2;
    for (int64_t i = 1; i < ev->n; i++)
        most += 2 * (order[i]->r.item.task != order[i - 1]->r.item.task ||
                     strcmp(dataset_of(&order[i]->r.item), dataset_of(&order[i - 1]->r.item)));
    ev->sections = alloc_or_die((size_t)most, sizeof *ev->sections, "sections");
    for (int64_t first = 0, last, criteria = -1; first < ev->n; first = last) {
        const TaskItem *t = &order[first]->r.item;
        Section *s = &ev->sections[ev->n_sections++];
        for (last = first + 1; last < ev->n && order[last]->r.item.task == t->task &&
                               !strcmp(dataset_of(&order[last]->r.item), dataset_of(t));)
            last++;
        *s = (Section){.ev = ev, .task = t->task, .dataset = dataset_of(t), .items = order + first, .n = last - first};
        if (!evaluate(s, e)) return false;
        bool criterion = t->task >= TASK_CVS1 && t->task <= TASK_CVS3;
        if (criterion && criteria < 0) criteria = first;
        const TaskItem *next = last < ev->n ? &order[last]->r.item : NULL;
        if (!criterion || (next && next->task <= TASK_CVS3 && !strcmp(dataset_of(next), dataset_of(t)))) continue;
        Section *all = &ev->sections[ev->n_sections++];
        *all = (Section){.ev = ev, .task = TASK_CVS1, .dataset = s->dataset, .title = "cvs_criteria"};
        all->items = order + criteria, all->n = last - criteria, criteria = -1;
        memcpy(all->system, s->system, sizeof s->system);
        patients(all), criteria_metrics(all);
        all->primary = (int)(metric(all, "overall_pooled") - all->metric);
    }
    return true;
}

typedef struct Resampling {
    Eval *ev;
} Resampling;
static void resample(void *ctx, int64_t i, int thread) {
    Eval *ev = ((Resampling *)ctx)->ev;
    Job *j = &ev->jobs[i];
    (void)thread;
    j->sums = (ClusterSums){j->correct, NULL, j->n};
    j->out = bootstrap(j->statistic, j->counts ? (const void *)j : (const void *)&j->sums, j->clusters,
                       ev->o->resamples, ev->o->level, ev->o->seed);
}

// Equation 9 of Surg-R1: the mean over triplet, phase, action (accuracy) and CVS (pooled). false: no such task.
static bool in_arena(const Eval *ev, const Section *s) {
    if (!strcmp(s->title, "cvs_criteria")) return true;
    if (s->task == TASK_TRIPLET || s->task == TASK_PHASE || s->task == TASK_ACTION) return true;
    if (s->task != TASK_CVS) return false;
    for (int64_t i = 0; i < ev->n_sections; i++)
        if (!strcmp(ev->sections[i].title, "cvs_criteria") && !strcmp(ev->sections[i].dataset, s->dataset))
            return false;
    return true;
}

static void arena(const Eval *ev, Text *json, Text *out) {
    double *scores = alloc_or_die((size_t)ev->n_sections + 1, SYSTEMS * sizeof *scores, "arena"), own[SYSTEMS],
           common[SYSTEMS];
    int64_t tasks = 0, n[SYSTEMS];
    uint8_t *both = alloc_or_die((size_t)ev->n_sections + 1, 1, "arena");
    for (int64_t i = 0; i < ev->n_sections; i++) tasks += in_arena(ev, &ev->sections[i]);
    int64_t models = ev->o->blind ? SYSTEMS : BLIND;
    text_addf(json, "\"arena\":{\"tasks\":[");
    for (int64_t i = 0, t = 0; i < ev->n_sections; i++) {
        const Section *s = &ev->sections[i];
        if (!in_arena(ev, s)) continue;
        for (int64_t m = 0; m < models; m++) scores[m * tasks + t] = s->metric[s->primary].value[m];
        text_addf(json, "%s\"", t++ ? "," : "");
        text_addf(json, "%s ", s->title); // names of data sets are text of strangers
        Text name = {0};
        add_name(&name, s->dataset);
        text_add(json, name.p + 1, name.len - 2), text_addf(json, "\"");
        text_free(&name);
    }
    arena_scores(scores, models, tasks, own, n, common, both);
    text_addf(json, "],\"n\":%lld", (long long)tasks);
    text_addf(out, "arena score (eq. 9) over |T| = %lld task%s:", (long long)tasks, tasks == 1 ? "" : "s");
    for (int m = 0; m < models; m++) {
        text_addf(json, ",\"%s\":", system_names[m]), add_number(json, own[m]);
        text_addf(out, "  %s %.2f", m == MODEL ? "this model" : system_names[m], 100 * own[m]);
    }
    text_addf(json, "}"), text_addf(out, "\n\n");
    free(scores), free(both);
}

static void show_interval(Text *out, const Metric *m) {
    size_t from = out->len;
    text_addf(out, "  ");
    if (m->interval && isfinite(m->low)) text_addf(out, "%.4f to %.4f", m->low, m->high);
    if (out->len - from < 20) text_addf(out, "%*s", (int)(20 - (out->len - from)), "");
}
static void show_metric(const Section *s, const Metric *m, Text *out) {
    show_number(out, m->value[MODEL], 9), show_interval(out, m);
    for (int sys = CONSTANT; sys < SYSTEMS; sys++)
        if (sys != BLIND || s->ev->o->blind) text_addf(out, " "), show_number(out, m->value[sys], 9);
    text_addf(out, "\n");
}
static void show_head(const Eval *ev, const char *what, Text *out) {
    char level[40] = "";
    if (ev->o->resamples > 1) snprintf(level, sizeof level, "%g %% interval", 100 * ev->o->level);
    text_addf(out, "  %-36s %9s  %-18s %9s %9s%s\n", what, "value", level, "constant", "question",
              ev->o->blind ? "     blind" : "");
}

static void print_section(const Section *s, Text *json, Text *out) {
    static const char *const readings[] = {"tags", "format", "any"};
    text_addf(json, "{\"dataset\":"), add_name(json, s->dataset);
    text_addf(json, ",\"task\":\"%s\",\"n\":%lld,\"patients\":%lld,\"primary\":\"%s\",\"metrics\":{", s->title,
              (long long)s->n, (long long)s->patients, s->metric[s->primary].name);
    Text name = {0};
    text_add_clean(&name, s->dataset, strlen(s->dataset), "");
    text_addf(out, "%s, %s: %lld answers, %lld patients\n", s->title, name.p ? name.p : "", (long long)s->n,
              (long long)s->patients);
    text_free(&name);
    show_head(s->ev, "", out);
    for (int i = 0; i < s->n_metrics; i++) {
        const Metric *m = &s->metric[i];
        text_addf(json, "%s\"%s\":{", i ? "," : "", m->name);
        for (int sys = 0; sys < SYSTEMS; sys++) {
            if (sys == BLIND && !s->ev->o->blind) continue;
            text_addf(json, "%s\"%s\":", sys ? "," : "", system_names[sys]), add_number(json, m->value[sys]);
        }
        if (m->interval) {
            text_addf(json, ",\"low\":"), add_number(json, m->low);
            text_addf(json, ",\"high\":"), add_number(json, m->high);
        }
        text_addf(json, "}");
        text_addf(out, "  %-36s ", m->name), show_metric(s, m, out);
    }
    text_addf(json, "}");
    if (strcmp(s->title, "cvs_criteria")) {
        text_addf(json,
                  ",\"answers\":{\"missing\":%lld,\"empty\":%lld,\"cut\":%lld,\"unparsable\":%lld,\"outside\":%lld,"
                  "\"choice\":%lld,\"status\":{",
                  (long long)s->missing, (long long)s->empty, (long long)s->cut, (long long)s->unparsable,
                  (long long)s->outside, (long long)s->choice);
        text_addf(out, "  answers:");
        for (int k = 0, some = 0; k < ANSWER_STATUSES; k++) {
            if (!s->status[k]) continue;
            text_addf(json, "%s\"%s\":%lld", some++ ? "," : "", answer_status_names[k], (long long)s->status[k]);
            text_addf(out, " %s %lld,", answer_status_names[k], (long long)s->status[k]);
        }
        text_addf(json, "}},\"right_by_reading\":{");
        text_addf(out,
                  " missing %lld, empty %lld, cut at the limit %lld; unparsable %lld, outside the vocabulary %lld; "
                  "options shown in %lld prompts\n  right by reading:",
                  (long long)s->missing, (long long)s->empty, (long long)s->cut, (long long)s->unparsable,
                  (long long)s->outside, (long long)s->choice);
        for (int m = 0; m < 3; m++) {
            text_addf(json, "%s\"%s\":", m ? "," : "", readings[m]), add_number(json, s->readings[m]);
            text_addf(out, " %s", readings[m]), show_number(out, s->readings[m], 7);
            text_addf(out, "%s%s", m == (int)s->ev->o->reading ? " (this one)" : "", m < 2 ? "," : "\n");
        }
        text_addf(json, "}");
    }
    text_addf(json, ",\"classes\":["), text_add(json, s->classes.p ? s->classes.p : "", s->classes.len);
    if (s->questions.len) text_addf(json, "],\"questions\":["), text_add(json, s->questions.p, s->questions.len);
    text_addf(json, "]}");
    text_add(out, s->table.p ? s->table.p : "", s->table.len), text_addf(out, "\n");
}

static void print_all(const Eval *ev, Text *json, Text *out) {
    static const char *const readings[] = {"tags", "format", "any"};
    const EvalOptions *o = ev->o;
    text_addf(json,
              "{\"surgr1\":\"" SURGR1_VERSION
              "\",\"answers\":%lld,\"without_label\":%lld,\"missing\":%lld,\"foreign\":%lld,\"blind_missing\":%lld,"
              "\"reading\":\"%s\",\"boxes\":\"%s\",\"floors_from\":\"%s\",\"bootstrap\":{\"resamples\":%lld,\"level\":",
              (long long)ev->n, (long long)ev->unlabelled, (long long)ev->missing[0], (long long)ev->foreign[0],
              (long long)(o->blind ? ev->missing[1] : 0), readings[o->reading],
              o->boxes_original ? "original" : "resized", o->train ? "other records" : "these labels",
              (long long)o->resamples);
    add_number(json, o->level);
    text_addf(json, ",\"seed\":%lld,\"unit\":\"patient\"},", (long long)o->seed);
    text_addf(out,
              "%lld answers; %lld records without a label left out, %lld answers missing (wrong), %lld to foreign ids "
              "left out\n"
              "answer read from: %s; floors: constant = most frequent label, question = most frequent label of each "
              "question, of %s\n\n",
              (long long)ev->n, (long long)ev->unlabelled, (long long)ev->missing[0], (long long)ev->foreign[0],
              o->reading == EVAL_TAGS     ? "the last <answer> pair"
              : o->reading == EVAL_FORMAT ? "completions of status OK only"
                                          : "the last <answer> pair, or the plain text",
              o->train ? "other records" : "these very labels");
    arena(ev, json, out);
    show_head(ev, "task", out);
    for (int64_t i = 0; i < ev->n_sections; i++) {
        const Section *s = &ev->sections[i];
        char title[80];
        snprintf(title, sizeof title, "%s %s", s->title, s->metric[s->primary].name);
        text_addf(out, "  %-36s ", title), show_metric(s, &s->metric[s->primary], out);
    }
    int64_t plain = 0;
    for (int64_t i = 0; i < ev->n_sections; i++)
        plain += ev->sections[i].status[ANSWER_NO_THINK] + ev->sections[i].status[ANSWER_NO_ANSWER];
    if (2 * plain > ev->n && o->reading != EVAL_ANY)
        text_addf(out, "  most completions lack a pair of tags: --answers any also reads plain text\n");
    text_addf(out, "\n"), text_addf(json, ",\"sections\":[");
    for (int64_t i = 0; i < ev->n_sections; i++) {
        text_addf(json, i ? "," : "");
        print_section(&ev->sections[i], json, out);
    }
    text_addf(json, "]}\n");
    text_addf(out, "binary scores: text has no scores, so they are 0 or 1, and an average precision of them never "
                   "falls below the share of positives.\n"
                   "surgr1_legacy: the rules of the Surg-R1 authors' evaluator, where an empty answer is right. "
                   "vqla_legacy: one pixel added to sides of 0 to 1.\n");
}

static void eval_free(Eval *ev) {
    for (int64_t i = 0; i < ev->n; i++) {
        free(ev->items[i].said[0].text), free(ev->items[i].said[1].text);
        task_record_free(&ev->items[i].r);
    }
    for (int64_t i = 0; i < ev->n_train; i++) task_record_free(&ev->train[i].r);
    for (int64_t i = 0; i < ev->n_jobs; i++) free(ev->jobs[i].correct), free(ev->jobs[i].n), free(ev->jobs[i].counts);
    for (int64_t i = 0; i < ev->n_sections; i++) {
        Section *s = &ev->sections[i];
        for (int32_t c = 0; c < s->k; c++) free(s->names[c]);
        free(s->names), free(s->truth), free(s->cluster_of), text_free(&s->classes), text_free(&s->table),
            text_free(&s->questions);
    }
    free(ev->items), free(ev->train), free(ev->jobs), free(ev->sections);
}

bool eval_score(const EvalOptions *o, Text *json, Text *tables, Err *e) {
    Eval ev = {.o = o};
    Loader data = {&ev, o->data, 0}, train = {&ev, o->train, 1};
    bool ok = pieces_read(o->data, NULL, load_record, &data, e) &&
              (!o->train || pieces_read(o->train, NULL, load_record, &train, e));
    if (ok && !ev.n)
        ok = err_set(e, "E-DS-02", AT(.file = o->data),
                     "expected records with labels; found none; do: give records of surgr1 import or scenes");
    if (ok) qsort(ev.items, (size_t)ev.n, sizeof *ev.items, by_id);
    for (int64_t i = 1; ok && i < ev.n; i++)
        if (!strcmp(ev.items[i].r.item.id, ev.items[i - 1].r.item.id))
            ok = err_set(e, "E-DS-03", AT(.file = o->data, .sample = ev.items[i].r.item.id),
                         "expected every id once; found it again; do: make ids unique");
    ok = ok && join(&ev, 0, o->predictions, e) && place_frames(&ev, 0, e);
    if (ok && o->blind) ok = join(&ev, 1, o->blind, e) && place_frames(&ev, 1, e);
    if (ok && o->joined) ok = write_joined(&ev, e);
    Item **order = alloc_or_die((size_t)ev.n + 1, sizeof *order, "records");
    ok = ok && sections(&ev, order, e);
    if (ok) {
        Resampling all = {&ev};
        if (ev.n_jobs) parallel_for(ev.n_jobs, resample, &all);
        for (int64_t i = 0; i < ev.n_jobs; i++) {
            Metric *m = &ev.sections[ev.jobs[i].section].metric[ev.jobs[i].metric];
            m->interval = true, m->low = ev.jobs[i].out.low, m->high = ev.jobs[i].out.high;
        }
        print_all(&ev, json, tables);
    }
    free(order), eval_free(&ev);
    return ok;
}
