// table.c - the table of an experiment: arms in rows, tasks in columns, seeds behind every number, differences in pairs.
//
// What it is:  answers of several models to the same records (surgr1 eval --out), judged by reward.c, as one table of the
//              papers' shape: accuracy by task and its mean (Surg-R1, eq. 9), boxes, format, length. Every number is a mean
//              over seeds and has an interval; every claim "A over B" is a difference of the same records, with its own.
// What it is not: an evaluation in depth (eval.c has F1, mAP, floors by question).
// Read before: reward.c, metrics.c.  Read next: ../commands/table.c.
//
// Intervals: what varies is the seed (another training) and the patient (frames of one patient are alike). A resample
// draws seeds with replacement, and within each drawn seed patients with replacement; a number of the resample is its mean
// over the drawn seeds. When all seeds were tested on the same patients one draw of patients serves all of them: patients
// are then crossed with seeds, and separate draws would average away what the choice of patients adds. With one seed only
// patients are drawn, and the interval says nothing about another training.
#include "../surgr1.h"

enum Measure { RIGHT, LABEL, IOU, NEAR, FORMAT, TOKENS, MEASURES };
static const char *const measure_names[MEASURES] = {"accuracy", "label", "iou", "box", "format", "tokens"};

typedef struct Judged { // one answer
    char *id, *who;     // who: its patient
    int task;           // a column of the table
    int64_t patient;    // of Seed.patients
    double v[MEASURES]; // NaN: does not apply
} Judged;
typedef struct Answers { // of one arm at one seed, by id
    bool there;
    Judged *p;
    int64_t n, cap;
} Answers;
typedef struct Arm {
    const char *name, *section, *note;
    const Json *predictions; // a path or several
    bool constant, any;
    Answers *at; // [seeds]
    int seeds;   // with answers
} Arm;
typedef struct Seed {
    char **patients; // sorted
    int64_t n;
} Seed;
typedef struct Cell { // one number of the table
    double value, low, high, sd;
    double *by_seed; // [seeds], NaN: none
    int64_t n;       // answers behind it, of all seeds
} Cell;

typedef struct Table {
    const TableOptions *o;
    JsonDoc spec;
    struct Column {
        const char *name; // "phase", or "phase:cholec80": of that data set only
        enum Task task;
        const char *dataset; // NULL: any
    } task[TASKS];
    int n_tasks;
    Arm *arms;
    int n_arms;
    Seed *seeds;
    bool shared, several; // the same patients at every seed; more than one seed
} Table;

static char *copy_text(const char *p) {
    size_t n = strlen(p);
    char *out = alloc_or_die(n + 1, 1, "a text");
    memcpy(out, p, n);
    return out;
}

// --------------------------------------------------------------------------------------------------------------- spec
static bool members_known(const Table *t, const Json *object, const char *what, const char *const *names, Err *e) {
    if (object->type != JSON_OBJECT)
        return err_set(e, "E-CF-02", json_at(&t->spec, object, what), "expected an object; found %s; do: write {...}",
                       json_shown(object));
    for (const Json *v = object->child; v; v = v->next) {
        bool known = false;
        for (int i = 0; names[i]; i++) known = known || !strcmp(v->key, names[i]);
        if (!known)
            return err_set(e, "E-CF-02", json_at(&t->spec, v, v->key),
                           "expected a member of %s; found an unknown one; do: see data/recipes/README.md", what);
    }
    return true;
}

static bool text_of(const Table *t, const Json *object, const char *name, bool required, const char **out, Err *e) {
    const Json *v = json_get(object, name);
    if (!v && !required) return true;
    if (!v || v->type != JSON_STRING || !v->len || memchr(v->str, 0, v->len))
        return err_set(e, "E-CF-02", json_at(&t->spec, v ? v : object, name), "expected a text; found %s; do: add it",
                       json_shown(v));
    *out = v->str;
    return true;
}

// A path, or a list of them.
static bool paths_of(const Table *t, const Json *object, const char *name, const Json **out, Err *e) {
    const Json *v = json_get(object, name);
    bool list = v && v->type == JSON_ARRAY, ok = v && (!list || v->count);
    for (const Json *x = list ? v->child : v; ok && x; x = list ? x->next : NULL)
        ok = x->type == JSON_STRING && x->len && !memchr(x->str, 0, x->len);
    *out = v;
    return ok || err_set(e, "E-CF-02", json_at(&t->spec, v ? v : object, name),
                         "expected a path or a list of paths; found %s; do: add it", json_shown(v));
}
static const Json *first_path(const Json *v) { return v->type == JSON_ARRAY ? v->child : v; }
static const Json *next_path(const Json *list, const Json *v) { return list->type == JSON_ARRAY ? v->next : NULL; }

static bool is_list(const Table *t, const Json *v, const char *name, Err *e) {
    return (v && v->type == JSON_ARRAY && v->count) ||
           err_set(e, "E-CF-02", json_at(&t->spec, v ? v : t->spec.root, name),
                   "expected a list with something in it; found %s; do: see data/recipes/README.md", json_shown(v));
}
static int column_named(const Table *t, const Json *v) {
    for (int k = 0; k < t->n_tasks; k++)
        if (json_is(v, t->task[k].name)) return k;
    return -1;
}
static int column_of(const Table *t, const TaskItem *item) {
    for (int k = 0; k < t->n_tasks; k++)
        if (t->task[k].task == item->task &&
            (!t->task[k].dataset || (item->dataset && !strcmp(t->task[k].dataset, item->dataset))))
            return k;
    return -1;
}
// The columns: "phase", or "phase:cholec80".
static bool read_columns(Table *t, const Json *list, Err *e) {
    if (!is_list(t, list, "tasks", e)) return false;
    for (const Json *v = list->child; v; v = v->next) {
        char task[32] = "";
        size_t n = v->type == JSON_STRING && !memchr(v->str, 0, v->len) ? strcspn(v->str, ":") : sizeof task;
        if (n < sizeof task) memcpy(task, v->str, n);
        if (task_of(task) < 0 || column_named(t, v) >= 0 || t->n_tasks == TASKS || (v->str[n] && !v->str[n + 1]))
            return err_set(e, "E-CF-02", json_at(&t->spec, v, "tasks"),
                           "expected the name of a task, once (phase, or phase:cholec80 of one data set), at most %d; "
                           "found %s; do: see data/README.md",
                           TASKS, json_shown(v));
        t->task[t->n_tasks++] = (struct Column){v->str, (enum Task)task_of(task), v->str[n] ? v->str + n + 1 : NULL};
    }
    return true;
}
// Some of the columns, by bit; without a list all of them.
static bool columns_of(const Table *t, const Json *list, uint32_t *mask, Err *e) {
    *mask = (1u << t->n_tasks) - 1;
    if (!list) return true;
    if (!is_list(t, list, "tasks", e)) return false;
    *mask = 0;
    for (const Json *v = list->child; v; v = v->next) {
        int k = column_named(t, v);
        if (k < 0)
            return err_set(e, "E-CF-02", json_at(&t->spec, v, "tasks"),
                           "expected a task of this table; found %s; do: see its \"tasks\"", json_shown(v));
        *mask |= 1u << k;
    }
    return true;
}

static int arm_named(const Table *t, const char *name) {
    for (int i = 0; i < t->n_arms; i++)
        if (!strcmp(t->arms[i].name, name)) return i;
    return -1;
}

static bool read_arm(Table *t, const Json *v, Err *e) {
    static const char *const members[] = {"name", "predictions", "section", "note", "answers", "constant", NULL};
    Arm a = {.at = alloc_or_die((size_t)t->o->n_roots, sizeof *a.at, "arms of a table")};
    const char *answers = "tags";
    bool ok = members_known(t, v, "an arm", members, e) && text_of(t, v, "name", true, &a.name, e) &&
              json_bool(&t->spec, v, "constant", false, &a.constant, e) &&
              (a.constant || paths_of(t, v, "predictions", &a.predictions, e)) &&
              text_of(t, v, "section", false, &a.section, e) && text_of(t, v, "note", false, &a.note, e) &&
              text_of(t, v, "answers", false, &answers, e);
    if (ok && strcmp(answers, "tags") && strcmp(answers, "any"))
        ok = err_set(e, "E-CF-02", json_at(&t->spec, json_get(v, "answers"), "answers"),
                     "expected tags or any; found %s; do: write one of them", json_shown(json_get(v, "answers")));
    if (ok && arm_named(t, a.name) >= 0)
        ok = err_set(e, "E-CF-02", json_at(&t->spec, v, "name"), "expected another name; found %s twice; do: change it",
                     quoted(a.name, strlen(a.name)));
    a.any = !strcmp(answers, "any");
    if (!ok) return free(a.at), false;
    t->arms[t->n_arms++] = a;
    return true;
}

static bool read_spec(Table *t, Err *e) {
    static const char *const members[] = {"format", "title", "about", "tasks", "train", "arms", "differences", NULL};
    static const char *const of_difference[] = {"name", "a", "b", "tasks", "metric", NULL};
    int64_t format;
    uint32_t mask = 0;
    if (!json_read(&t->spec, t->o->spec, LIMIT_CONFIG_BYTES, (JsonOptions){.refuse_duplicates = true}, e)) return false;
    const Json *root = t->spec.root, *arms = json_get(root, "arms"), *tasks = json_get(root, "tasks"),
               *differences = json_get(root, "differences");
    if (!members_known(t, root, "a table", members, e) || !json_int(&t->spec, root, "format", true, 1, 1, &format, e))
        return false;
    if (!read_columns(t, tasks, e) || !is_list(t, arms, "arms", e)) return false;
    t->arms = alloc_or_die(arms->count, sizeof *t->arms, "arms of a table");
    for (const Json *v = arms->child; v; v = v->next)
        if (!read_arm(t, v, e)) return false;
    if (differences && differences->type != JSON_ARRAY)
        return err_set(e, "E-CF-02", json_at(&t->spec, differences, "differences"),
                       "expected a list; found %s; do: write [...]", json_shown(differences));
    for (const Json *v = differences ? differences->child : NULL; v; v = v->next) {
        const char *name, *side[2], *metric = "accuracy";
        if (!members_known(t, v, "a difference", of_difference, e) || !text_of(t, v, "name", true, &name, e) ||
            !text_of(t, v, "a", true, &side[0], e) || !text_of(t, v, "b", true, &side[1], e) ||
            !text_of(t, v, "metric", false, &metric, e) || !columns_of(t, json_get(v, "tasks"), &mask, e))
            return false;
        bool known = false;
        for (int m = 0; m < MEASURES; m++) known = known || !strcmp(metric, measure_names[m]);
        if (!known)
            return err_set(e, "E-CF-02", json_at(&t->spec, json_get(v, "metric"), "metric"),
                           "expected accuracy, label, iou, box, format or tokens; found %s; do: write one of them",
                           quoted(metric, strlen(metric)));
        for (int i = 0; i < 2; i++)
            if (arm_named(t, side[i]) < 0)
                return err_set(e, "E-CF-02", json_at(&t->spec, v, i ? "b" : "a"),
                               "expected the name of an arm; found %s; do: check \"arms\"",
                               quoted(side[i], strlen(side[i])));
    }
    return true;
}

// ------------------------------------------------------------------------------------------- what a constant would say
typedef struct Known { // a label of the training records
    char *text;
    int column, same_as; // same_as: the entry that says the same in other words, or itself
    int64_t count;
} Known;
typedef struct Constant { // by column
    const Table *t;
    Known *p;
    int n, cap;
    double box[TASKS][4], boxes[TASKS]; // sums of shares of the picture's sides; how many
    const char *most[TASKS];
} Constant;

static Reading *reading(void) { // large: one for the whole program
    static Reading r;
    return &r;
}

static void constant_add(Constant *c, const TaskItem *item) {
    enum AnswerKind kind = task_info(item->task)->kind;
    int column = column_of(c->t, item);
    if (column < 0) return;
    if (item->n_boxes > 0 && (kind == ANSWER_BOX || kind == ANSWER_VQLA)) {
        const Box *b = &item->boxes[0];
        double w = item->width > 0 ? (double)item->width : 1, h = item->width > 0 ? (double)item->height : 1;
        double share[4] = {b->x1 / w, b->y1 / h, b->x2 / w, b->y2 / h};
        for (int k = 0; k < 4; k++) c->box[column][k] += share[k];
        c->boxes[column]++;
    }
    if (kind == ANSWER_BOX || kind == ANSWER_BOXES || !item->answer || !*item->answer) return;
    int found = -1;
    for (int i = 0; i < c->n && found < 0; i++)
        if (c->p[i].column == column && !strcmp(c->p[i].text, item->answer)) found = c->p[i].same_as;
    if (found >= 0) {
        c->p[found].count++;
        return;
    }
    for (int i = 0; i < c->n && found < 0; i++) {
        if (c->p[i].column != column || c->p[i].same_as != i) continue;
        answer_read(reading(), view_of(c->p[i].text), item);
        if (answer_matches(reading(), item)) found = i;
    }
    if (c->n == c->cap) {
        c->cap = 2 * c->cap + 64;
        c->p = grow_or_die(c->p, (size_t)c->cap, sizeof *c->p, "labels of the training records");
    }
    c->p[c->n] = (Known){copy_text(item->answer), column, found < 0 ? c->n : found, 0};
    c->p[c->p[c->n].same_as].count++;
    c->n++;
}

static bool constant_record(void *ctx, const Piece *p, Err *e) {
    TaskRecord r;
    if (!task_record_read(&r, p->text, p->len, "the training records", p->line, e)) return false;
    constant_add(ctx, &r.item);
    task_record_free(&r);
    return true;
}
static void constant_free(Constant *c) {
    for (int i = 0; i < c->n; i++) free(c->p[i].text);
    free(c->p);
}
// The files of "train" at a seed; *there: all of them are.
static bool constant_read(Constant *c, const Table *t, const Json *train, const char *root, bool *there, Err *e) {
    char path[1200];
    int64_t best[TASKS] = {0};
    *c = (Constant){.t = t};
    *there = true;
    for (const Json *v = first_path(train); v; v = next_path(train, v)) {
        if (!path_join(path, sizeof path, root, v->str, e)) return false;
        if (!file_exists(path)) {
            warn("E-TA-03", AT(.file = path), "expected the training records; found none; do: check \"train\"");
            *there = false;
        } else if (!pieces_read(path, NULL, constant_record, c, e)) return false;
    }
    for (int i = 0; i < c->n; i++) // the first among equals
        if (c->p[i].count > best[c->p[i].column])
            best[c->p[i].column] = c->p[i].count, c->most[c->p[i].column] = c->p[i].text;
    return true;
}
// The most frequent label, the mean box; where all boxes are asked for, none.
static void constant_says(const Constant *c, const TaskItem *item, int column, Text *out) {
    enum AnswerKind kind = task_info(item->task)->kind;
    const char *label = c->most[column] ? c->most[column] : "";
    const double *b = c->box[column], n = c->boxes[column] > 0 ? c->boxes[column] : 1;
    double w = item->width > 0 ? (double)item->width : 1, h = item->width > 0 ? (double)item->height : 1;
    out->len = 0;
    text_addf(out, "<think>.</think><answer>");
    if (kind == ANSWER_BOXES) text_addf(out, "No tools detected");
    else if (kind == ANSWER_BOX || kind == ANSWER_VQLA) {
        text_addf(out, "{");
        if (kind == ANSWER_VQLA) {
            text_addf(out, "\"answer\": ");
            text_add_json_string(out, label, strlen(label)), text_addf(out, ", ");
        }
        text_addf(out, "\"bbox_2d\": [%.3f, %.3f, %.3f, %.3f]}", b[0] / n * w, b[1] / n * h, b[2] / n * w,
                  b[3] / n * h);
    } else text_addf(out, "%s", label);
    text_addf(out, "</answer>");
}

// -------------------------------------------------------------------------------------------------------------- judging
typedef struct Judge {
    const Table *t;
    const Arm *arm;
    Answers *to;
    const Constant *constant; // answers instead of the record's response
    const char *path;
    RewardOptions o;
    Text said;
    int64_t skipped;
} Judge;

static bool judge_record(void *ctx, const Piece *p, Err *e) {
    static Reward r; // large
    Judge *j = ctx;
    TaskRecord rec;
    if (!task_record_read(&rec, p->text, p->len, j->path, p->line, e)) return false;
    int task = column_of(j->t, &rec.item);
    if (task < 0) return task_record_free(&rec), true;
    RewardInput in = {
        .item = &rec.item, .text = rec.response ? rec.response : "", .len = rec.response_len, .tokens = -1};
    in.resized_w = rec.resized_width, in.resized_h = rec.resized_height;
    if (j->constant) {
        constant_says(j->constant, &rec.item, task, &j->said);
        in.text = j->said.p, in.len = j->said.len, in.resized_w = in.resized_h = 0;
    }
    reward_score(&r, &j->o, &in);
    double label = r.term[REWARD_LANGUAGE], none = (double)NAN;
    if (isnan(label) && isnan(r.iou)) { // nothing to be right about
        j->skipped++;
        task_record_free(&rec);
        return true;
    }
    Answers *a = j->to;
    if (a->n == a->cap) {
        a->cap = 2 * a->cap + 256;
        a->p = grow_or_die(a->p, (size_t)a->cap, sizeof *a->p, "answers of a table");
    }
    bool both = task_info(rec.item.task)->kind == ANSWER_VQLA;
    Judged *x = &a->p[a->n++];
    *x = (Judged){.id = copy_text(rec.item.id), .task = task};
    x->who = copy_text(rec.item.patient && *rec.item.patient ? rec.item.patient : rec.item.id);
    x->v[RIGHT] = r.right, x->v[LABEL] = both ? label : none, x->v[IOU] = r.iou;
    x->v[NEAR] = isnan(r.iou) ? none : both ? r.iou >= 0.5 : r.right;
    x->v[FORMAT] = j->constant ? none : r.answer.status == ANSWER_OK;
    x->v[TOKENS] = j->constant || rec.tokens < 0 ? none : (double)rec.tokens;
    task_record_free(&rec);
    return true;
}

static int by_id(const void *a, const void *b) { return strcmp(((const Judged *)a)->id, ((const Judged *)b)->id); }

// The answers of an arm at one seed, from all its files: it is there when they are.
static bool judge_files(Judge *j, const Json *files, const char *root, Err *e) {
    char path[1200];
    Answers *a = j->to;
    bool ok = true, all = true;
    reward_preset(&j->o, "surgery-r1"); // its language term tells the label from the box
    j->o.any_answer = j->arm->any;
    j->path = path;
    for (const Json *v = first_path(files); ok && v; v = next_path(files, v)) {
        ok = path_join(path, sizeof path, root, v->str, e);
        if (ok && !file_exists(path)) {
            all = false;
            warn("E-TA-03", AT(.file = path, .field = j->arm->name),
                 "expected the answers of this arm; found none; do: run it, its row says so");
        } else if (ok && all) ok = pieces_read(path, NULL, judge_record, j, e);
    }
    text_free(&j->said);
    if (ok && a->n) qsort(a->p, (size_t)a->n, sizeof *a->p, by_id);
    for (int64_t i = 1; ok && i < a->n; i++)
        if (!strcmp(a->p[i - 1].id, a->p[i].id))
            ok = err_set(e, "E-TA-02", AT(.file = path, .sample = a->p[i].id),
                         "expected one answer to a record; found a second one; do: leave one of them out");
    if (ok && j->skipped) note("%s: %lld records without a label left out", path, (long long)j->skipped);
    a->there = ok && all && a->n > 0;
    if (ok && all && !a->there)
        warn("E-TA-03", AT(.file = path, .field = j->arm->name),
             "expected labelled answers to the tasks of the table; found none; do: check \"tasks\"");
    for (int64_t i = 0; ok && !all && i < a->n; i++) free(a->p[i].id), free(a->p[i].who);
    if (ok && !all) a->n = 0;
    return ok;
}

static bool read_answers(Table *t, Err *e) {
    const Json *train = NULL;
    for (int k = 0; k < t->n_arms; k++) {
        Arm *a = &t->arms[k];
        for (int s = 0; !a->constant && s < t->o->n_roots; s++) {
            Judge j = {.t = t, .arm = a, .to = &a->at[s]};
            if (!judge_files(&j, a->predictions, t->o->roots[s], e)) return false;
            a->seeds += a->at[s].there;
        }
    }
    for (int k = 0; k < t->n_arms; k++) { // on the records of the first arm that was run
        Arm *a = &t->arms[k];
        if (!a->constant) continue;
        if (!train && !paths_of(t, t->spec.root, "train", &train, e)) return false;
        for (int s = 0; s < t->o->n_roots; s++) {
            int from = 0;
            bool there;
            Constant c;
            while (from < t->n_arms && (t->arms[from].constant || !t->arms[from].at[s].there)) from++;
            if (from == t->n_arms) continue;
            bool ok = constant_read(&c, t, train, t->o->roots[s], &there, e);
            Judge j = {.t = t, .arm = a, .to = &a->at[s], .constant = &c};
            if (ok && there) ok = judge_files(&j, t->arms[from].predictions, t->o->roots[s], e);
            constant_free(&c);
            if (!ok) return false;
            a->seeds += a->at[s].there;
        }
    }
    return true;
}

static int by_text(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

// The patients of each seed over all arms, so that one draw means the same patients for every row.
static void number_patients(Table *t) {
    t->shared = true;
    for (int s = 0; s < t->o->n_roots; s++) {
        Seed *seed = &t->seeds[s];
        int64_t n = 0;
        for (int k = 0; k < t->n_arms; k++) n += t->arms[k].at[s].n;
        seed->patients = alloc_or_die((size_t)n + 1, sizeof *seed->patients, "patients");
        for (int k = 0; k < t->n_arms; k++)
            for (int64_t i = 0; i < t->arms[k].at[s].n; i++) seed->patients[seed->n++] = t->arms[k].at[s].p[i].who;
        if (n) qsort(seed->patients, (size_t)n, sizeof *seed->patients, by_text);
        seed->n = 0;
        for (int64_t i = 0; i < n; i++)
            if (!seed->n || strcmp(seed->patients[seed->n - 1], seed->patients[i]))
                seed->patients[seed->n++] = seed->patients[i];
        for (int k = 0; k < t->n_arms; k++)
            for (int64_t i = 0; i < t->arms[k].at[s].n; i++) {
                Judged *x = &t->arms[k].at[s].p[i];
                char **hit = bsearch(&x->who, seed->patients, (size_t)seed->n, sizeof *seed->patients, by_text);
                x->patient = hit - seed->patients;
            }
        t->shared = t->shared && seed->n == t->seeds[0].n;
        for (int64_t i = 0; t->shared && i < seed->n; i++)
            t->shared = !strcmp(seed->patients[i], t->seeds[0].patients[i]);
    }
}

// ----------------------------------------------------------------------------------------------------------- intervals
typedef struct SeedSums {  // of one seed
    const double *sum, *n; // [patients, n_tasks]
    int64_t patients;
} SeedSums;
typedef struct Sums {
    SeedSums *seed; // [seeds]
    int seeds, n_tasks;
    const bool *used; // [n_tasks]
    bool pooled;      // all answers together, instead of the mean over tasks
    bool shared;
    uint64_t random_seed;
    int64_t *calls; // of the statistic: the first is the estimate
} Sums;

// Of one seed, over the patients drawn (NULL: all, once): sum / n of each task, and the mean of these.
static double value_at(const Sums *s, int seed, const int64_t *drawn, int64_t n) {
    const SeedSums *p = &s->seed[seed];
    double sum[TASKS] = {0}, count[TASKS] = {0}, total = 0, all = 0;
    int64_t tasks = 0;
    for (int64_t i = 0; i < n; i++) {
        int64_t at = (drawn ? drawn[i] : i) * s->n_tasks;
        for (int k = 0; k < s->n_tasks; k++) sum[k] += p->sum[at + k], count[k] += p->n[at + k];
    }
    for (int k = 0; k < s->n_tasks; k++) {
        if (!s->used[k]) continue;
        if (s->pooled) total += sum[k], all += count[k];
        else if (count[k] > 0) total += sum[k] / count[k], all += 1;
        tasks++;
    }
    if (!s->pooled && all < (double)tasks) return NAN; // the resample holds no record of some task
    return all > 0 ? total / all : (double)NAN;
}

static double over_patients(const void *ctx, const int64_t *drawn, int64_t n) { return value_at(ctx, 0, drawn, n); }

// bootstrap draws the seeds; patients are drawn here, from streams of their own.
static double over_seeds(const void *ctx, const int64_t *drawn, int64_t n) {
    const Sums *s = ctx;
    int64_t call = (*s->calls)++, most = 0;
    double sum = 0;
    int64_t seeds = 0;
    for (int k = 0; k < s->seeds; k++) most = s->seed[k].patients > most ? s->seed[k].patients : most;
    int64_t *who = alloc_or_die((size_t)most + 1, sizeof *who, "patients drawn");
    for (int64_t k = 0; k < n; k++) {
        int seed = (int)drawn[k];
        int64_t patients = s->seed[seed].patients;
        uint64_t stream = (UINT64_C(1) << 40) + (uint64_t)call * (uint64_t)n + (s->shared ? 0 : (uint64_t)k);
        for (int64_t i = 0; i < patients; i++)
            who[i] = call ? (int64_t)(random_uniform(s->random_seed, RANDOM_BOOTSTRAP, stream, (uint32_t)i) *
                                      (double)patients)
                          : i;
        double v = value_at(s, seed, who, patients);
        if (!isnan(v)) sum += v, seeds++;
    }
    free(who);
    return seeds ? sum / (double)seeds : (double)NAN;
}

// Adds one answer, or the difference of two, to the sums of its patient and task.
static void sums_add(double *sum, double *n, int n_tasks, const Judged *x, double v) {
    if (isnan(v)) return;
    sum[x->patient * n_tasks + x->task] += v, n[x->patient * n_tasks + x->task] += 1;
}

// A number of the table: of arm a, or of a minus b on the records that both answered.
static Cell cell_of(const Table *t, const Arm *a, const Arm *b, enum Measure m, uint32_t tasks, bool pooled) {
    int seeds = t->o->n_roots, n = 0;
    Cell c = {NAN, NAN, NAN, NAN, alloc_or_die((size_t)seeds, sizeof(double), "numbers by seed"), 0};
    SeedSums *parts = alloc_or_die((size_t)seeds, sizeof *parts, "sums by seed");
    bool used[TASKS] = {0};
    for (int s = 0; s < seeds; s++) {
        const Answers *x = &a->at[s], *y = b ? &b->at[s] : x;
        c.by_seed[s] = NAN;
        if (!x->there || !y->there) continue;
        size_t size = (size_t)t->seeds[s].n * (size_t)t->n_tasks + 1;
        double *sum = alloc_or_die(size, 2 * sizeof *sum, "sums by patient"), *count = sum + size;
        int64_t before = c.n;
        for (int64_t i = 0, k = 0; i < x->n; i++) {
            const Judged *one = &x->p[i];
            while (k < y->n && strcmp(y->p[k].id, one->id) < 0) k++;
            bool pair = k < y->n && !strcmp(y->p[k].id, one->id) && y->p[k].task == one->task;
            if (!pair || !(tasks & 1u << one->task)) continue;
            double v = one->v[m] - (b ? y->p[k].v[m] : 0);
            sums_add(sum, count, t->n_tasks, one, v);
            if (!isnan(v)) c.n++, used[one->task] = true;
        }
        if (c.n == before) free(sum);
        else parts[n++] = (SeedSums){sum, count, t->seeds[s].n}, c.by_seed[s] = 0;
    }
    int64_t calls = 0;
    Sums sums = {parts, n, t->n_tasks, used, pooled, t->shared, t->o->seed, &calls};
    double squares = 0;
    for (int s = 0, k = 0; s < seeds; s++)
        if (!isnan(c.by_seed[s])) c.by_seed[s] = value_at(&sums, k, NULL, parts[k].patients), k++;
    c.value = mean_of(c.by_seed, seeds);
    for (int s = 0; s < seeds; s++)
        if (!isnan(c.by_seed[s])) squares += (c.by_seed[s] - c.value) * (c.by_seed[s] - c.value);
    if (n > 1) c.sd = sqrt(squares / (n - 1));
    if (n && t->o->resamples > 1) {
        Interval i = n > 1
                         ? bootstrap(over_seeds, &sums, n, t->o->resamples, t->o->level, t->o->seed)
                         : bootstrap(over_patients, &sums, parts[0].patients, t->o->resamples, t->o->level, t->o->seed);
        c.low = i.low, c.high = i.high;
    }
    for (int k = 0; k < n; k++) free((double *)(uintptr_t)parts[k].sum);
    free(parts);
    return c;
}

// ------------------------------------------------------------------------------------------------------------ printing
typedef struct Sheet { // rows of texts; a section is a row with one text
    Text *cell;        // [rows, columns]
    int rows, columns;
    bool *section; // [rows]
} Sheet;
static Sheet sheet_of(int rows, int columns) {
    return (Sheet){alloc_or_die((size_t)(rows * columns), sizeof(Text), "a table"), 0, columns,
                   alloc_or_die((size_t)rows, sizeof(bool), "a table")};
}
static Text *sheet_at(Sheet *g, int row, int column) { return &g->cell[row * g->columns + column]; }
static void sheet_free(Sheet *g) {
    for (int i = 0; i < g->rows * g->columns; i++) text_free(&g->cell[i]);
    free(g->cell), free(g->section);
}
static int width_of(const Text *t) { // columns of a terminal
    int n = 0;
    for (size_t i = 0; i < t->len; i++) n += ((unsigned char)t->p[i] & 0xC0) != 0x80;
    return n;
}
// The first row is the head. Numbers stand to the right, names to the left; in Markdown a bar is escaped.
static void sheet_print(Sheet *g, bool markdown, Text *out) {
    int width[64] = {0};
    CHECK(g->columns <= 64, "%d columns", g->columns);
    for (int r = 0; r < g->rows; r++)
        for (int c = 0; c < g->columns && !g->section[r]; c++) {
            int w = width_of(sheet_at(g, r, c));
            if (w > width[c]) width[c] = w;
        }
    for (int r = 0; r < g->rows; r++) {
        if (g->section[r]) {
            const Text *name = sheet_at(g, r, 0);
            if (!markdown) text_addf(out, "%s\n", name->p);
            else {
                text_addf(out, "| **%s** |", name->p);
                for (int c = 1; c < g->columns; c++) text_addf(out, " |");
                text_addf(out, "\n");
            }
            continue;
        }
        for (int c = 0; c < g->columns; c++) {
            const Text *x = sheet_at(g, r, c);
            int pad = width[c] - width_of(x);
            text_addf(out, markdown ? "| " : "  ");
            if (c) text_addf(out, "%*s", pad, "");
            text_add(out, x->len ? x->p : "", x->len);
            if (!c) text_addf(out, "%*s", pad, "");
            if (markdown) text_addf(out, " ");
        }
        text_addf(out, markdown ? "|\n" : "\n");
        if (r || !markdown) continue;
        for (int c = 0; c < g->columns; c++) {
            text_addf(out, "|");
            for (int i = 0; i < width[c] + 2 - (c > 0); i++) text_addf(out, "-");
            text_addf(out, c ? ":" : ""); // numbers to the right
        }
        text_addf(out, "|\n");
    }
}
static void add_clean(Text *out, const char *text, bool markdown) {
    Text clean = {0};
    text_add_clean(&clean, text, strlen(text), "");
    for (size_t i = 0; i < clean.len; i++) {
        if (markdown && strchr("|\\<>*_`", clean.p[i])) text_addf(out, "\\");
        text_add(out, clean.p + i, 1);
    }
    text_free(&clean);
}

static void show(Text *out, double v, double scale, bool sign) {
    if (isnan(v)) text_addf(out, "-");
    else if (sign) text_addf(out, "%+.1f", v * scale);
    else text_addf(out, "%.1f", v * scale);
}
static void show_cell(Text *out, const Cell *c, double scale, bool sign, bool with_sd, bool with_interval) {
    show(out, c->value, scale, sign);
    if (with_sd && !isnan(c->sd)) text_addf(out, " ±%.1f", c->sd * scale);
    if (with_interval && !isnan(c->low)) {
        text_addf(out, " ["), show(out, c->low, scale, sign);
        text_addf(out, ", "), show(out, c->high, scale, sign), text_addf(out, "]");
    }
}
static void add_number(Text *out, double v) {
    if (isfinite(v)) text_add_json_number(out, v);
    else text_addf(out, "null");
}
static void add_name(Text *out, const char *key, const char *value) {
    text_addf(out, "\"%s\":", key);
    if (value) text_add_json_string(out, value, strlen(value));
    else text_addf(out, "null");
}
static void cell_json(Text *out, const char *name, const Cell *c, int seeds) {
    text_add_json_string(out, name, strlen(name));
    text_addf(out, ":{\"value\":"), add_number(out, c->value);
    text_addf(out, ",\"low\":"), add_number(out, c->low);
    text_addf(out, ",\"high\":"), add_number(out, c->high);
    text_addf(out, ",\"sd\":"), add_number(out, c->sd);
    text_addf(out, ",\"n\":%lld,\"by_seed\":[", (long long)c->n);
    for (int s = 0; s < seeds; s++) text_addf(out, s ? "," : ""), add_number(out, c->by_seed[s]);
    text_addf(out, "]}");
}

static double scale_of(enum Measure m) { return m == TOKENS ? 1 : 100; }
static bool excludes_0(const Cell *c) { return c->low > 0 || c->high < 0; }

// What the head of the columns behind the tasks says; those that no task can have are left out.
static const struct {
    enum Measure m;
    const char *head;
    bool pooled;
} behind[] = {{LABEL, "label", false},
              {IOU, "IoU", false},
              {NEAR, "IoU >= .5", false},
              {FORMAT, "format", true},
              {TOKENS, "tokens", true}};
enum { BEHIND = sizeof behind / sizeof *behind };

static bool applies(const Table *t, enum Measure m) {
    bool box = false, vqla = false;
    for (int k = 0; k < t->n_tasks; k++) {
        enum AnswerKind kind = task_info(t->task[k].task)->kind;
        vqla = vqla || kind == ANSWER_VQLA;
        box = box || kind == ANSWER_VQLA || kind == ANSWER_BOX || kind == ANSWER_BOXES;
    }
    return m == LABEL ? vqla : m == IOU || m == NEAR ? box : true;
}

// The cells of an arm: tasks, their mean, the measures behind.
static void arm_cells(const Table *t, const Arm *a, Cell *c) {
    uint32_t all = 0;
    for (int k = 0; k < t->n_tasks; k++) {
        all |= 1u << k;
        c[k] = cell_of(t, a, NULL, RIGHT, 1u << k, false);
    }
    c[t->n_tasks] = cell_of(t, a, NULL, RIGHT, all, false);
    for (int k = 0; k < BEHIND; k++) c[t->n_tasks + 1 + k] = cell_of(t, a, NULL, behind[k].m, all, behind[k].pooled);
}

static void arms_print(const Table *t, const Cell *cells, bool markdown, Text *out) {
    int per_arm = t->n_tasks + 1 + BEHIND, column;
    Sheet g = sheet_of(2 * t->n_arms + 1, 3 + per_arm);
    g.columns = 3 + t->n_tasks;
    for (int k = 0; k < BEHIND; k++) g.columns += applies(t, behind[k].m);
    text_addf(sheet_at(&g, 0, 0), "arm"), text_addf(sheet_at(&g, 0, 1), "seeds");
    for (int k = 0; k < t->n_tasks; k++) add_clean(sheet_at(&g, 0, 2 + k), t->task[k].name, markdown);
    text_addf(sheet_at(&g, 0, 2 + t->n_tasks), "mean");
    column = 3 + t->n_tasks;
    for (int k = 0; k < BEHIND; k++)
        if (applies(t, behind[k].m)) text_addf(sheet_at(&g, 0, column++), "%s", behind[k].head);
    g.rows = 1;
    for (int i = 0; i < t->n_arms; i++) {
        const Arm *a = &t->arms[i];
        const Cell *c = cells + i * per_arm;
        const char *before = i ? t->arms[i - 1].section : NULL;
        if (a->section && (!before || strcmp(before, a->section)))
            add_clean(sheet_at(&g, g.rows, 0), a->section, markdown), g.section[g.rows++] = true;
        int r = g.rows++;
        add_clean(sheet_at(&g, r, 0), a->name, markdown);
        text_addf(sheet_at(&g, r, 1), "%d/%d", a->seeds, t->o->n_roots);
        if (!a->seeds) {
            text_addf(sheet_at(&g, r, 2), "not run");
            for (int k = 3; k < g.columns; k++) text_addf(sheet_at(&g, r, k), "-");
            continue;
        }
        for (int k = 0; k < t->n_tasks; k++) show_cell(sheet_at(&g, r, 2 + k), &c[k], 100, false, false, markdown);
        show_cell(sheet_at(&g, r, 2 + t->n_tasks), &c[t->n_tasks], 100, false, true, true);
        column = 3 + t->n_tasks;
        for (int k = 0; k < BEHIND; k++)
            if (applies(t, behind[k].m))
                show_cell(sheet_at(&g, r, column++), &c[t->n_tasks + 1 + k], scale_of(behind[k].m), false, false,
                          markdown);
    }
    sheet_print(&g, markdown, out);
    sheet_free(&g);
    bool any = false;
    for (int i = 0; i < t->n_arms; i++) {
        if (!t->arms[i].note) continue;
        text_addf(out, any ? "" : "\n"), any = true;
        text_addf(out, markdown ? "- " : "  ");
        add_clean(out, t->arms[i].name, markdown), text_addf(out, ": ");
        add_clean(out, t->arms[i].note, markdown), text_addf(out, "\n");
    }
}

static void arms_json(const Table *t, const Cell *cells, Text *out) {
    int per_arm = t->n_tasks + 1 + BEHIND;
    text_addf(out, "\"arms\":[");
    for (int i = 0; i < t->n_arms; i++) {
        const Arm *a = &t->arms[i];
        const Cell *c = cells + i * per_arm;
        text_addf(out, "%s\n{", i ? "," : ""), add_name(out, "name", a->name);
        text_addf(out, ","), add_name(out, "section", a->section), text_addf(out, ","), add_name(out, "note", a->note);
        text_addf(out, ",\"seeds\":%d,\"tasks\":{", a->seeds);
        for (int k = 0; k < t->n_tasks; k++) {
            text_addf(out, k ? "," : "");
            cell_json(out, t->task[k].name, &c[k], t->o->n_roots);
        }
        text_addf(out, "},"), cell_json(out, "mean", &c[t->n_tasks], t->o->n_roots);
        for (int k = 0; k < BEHIND; k++)
            text_addf(out, ","), cell_json(out, measure_names[behind[k].m], &c[t->n_tasks + 1 + k], t->o->n_roots);
        text_addf(out, "}");
    }
    text_addf(out, "]");
}

typedef struct Difference {
    const Json *at;
    const char *name;
    const Arm *a, *b;
    enum Measure m;
    uint32_t tasks;
    Cell mean, *task; // [n_tasks]
} Difference;

static int differences_of(const Table *t, Difference **list) {
    const Json *all = json_get(t->spec.root, "differences");
    int n = 0;
    *list = alloc_or_die(all ? all->count + 1 : 1, sizeof **list, "differences");
    for (const Json *v = all ? all->child : NULL; v; v = v->next) {
        Difference *d = &(*list)[n++];
        const Json *metric = json_get(v, "metric"), *tasks = json_get(v, "tasks");
        *d = (Difference){.at = v, .name = json_get(v, "name")->str};
        d->a = &t->arms[arm_named(t, json_get(v, "a")->str)], d->b = &t->arms[arm_named(t, json_get(v, "b")->str)];
        for (int m = 0; metric && m < MEASURES; m++)
            if (json_is(metric, measure_names[m])) d->m = (enum Measure)m;
        Err none = {0};
        CHECK(columns_of(t, tasks, &d->tasks, &none), "tasks of a difference that were read before");
        bool pooled = d->m == FORMAT || d->m == TOKENS;
        d->mean = cell_of(t, d->a, d->b, d->m, d->tasks, pooled);
        d->task = alloc_or_die((size_t)t->n_tasks, sizeof *d->task, "differences by task");
        for (int k = 0; k < t->n_tasks; k++) d->task[k] = cell_of(t, d->a, d->b, d->m, d->tasks & 1u << k, false);
    }
    return n;
}

static void differences_print(const Table *t, const Difference *d, int n, bool markdown, Text *out) {
    Sheet g = sheet_of(n + 1, 6 + t->n_tasks);
    static const char *const head[] = {"difference", "of", "mean", "excludes 0", "by seed", "pairs"};
    int by_seed = 4 + t->n_tasks, pairs = by_seed + 1;
    for (int k = 0; k < 6; k++) text_addf(sheet_at(&g, 0, k < 4 ? k : k + t->n_tasks), "%s", head[k]);
    for (int k = 0; k < t->n_tasks; k++) add_clean(sheet_at(&g, 0, 4 + k), t->task[k].name, markdown);
    g.rows = n + 1;
    for (int i = 0; i < n; i++) {
        double scale = scale_of(d[i].m);
        const Cell *c = &d[i].mean;
        add_clean(sheet_at(&g, i + 1, 0), d[i].name, markdown);
        text_addf(sheet_at(&g, i + 1, 1), "%s", measure_names[d[i].m]);
        if (!c->n) text_addf(sheet_at(&g, i + 1, 2), "not run");
        else show_cell(sheet_at(&g, i + 1, 2), c, scale, true, false, true);
        text_addf(sheet_at(&g, i + 1, 3), "%s", isnan(c->low) ? "-" : excludes_0(c) ? "yes" : "no");
        for (int k = 0; k < t->n_tasks; k++) {
            Text *x = sheet_at(&g, i + 1, 4 + k);
            show(x, d[i].task[k].value, scale, true);
            if (excludes_0(&d[i].task[k])) text_addf(x, markdown ? "\\*" : "*");
        }
        for (int s = 0; s < t->o->n_roots; s++) {
            text_addf(sheet_at(&g, i + 1, by_seed), s ? " " : "");
            show(sheet_at(&g, i + 1, by_seed), c->by_seed[s], scale, true);
        }
        text_addf(sheet_at(&g, i + 1, pairs), "%lld", (long long)c->n);
    }
    sheet_print(&g, markdown, out);
    sheet_free(&g);
}

static void differences_json(const Table *t, const Difference *d, int n, Text *out) {
    text_addf(out, "\"differences\":[");
    for (int i = 0; i < n; i++) {
        text_addf(out, "%s\n{", i ? "," : ""), add_name(out, "name", d[i].name), text_addf(out, ",");
        add_name(out, "a", d[i].a->name), text_addf(out, ","), add_name(out, "b", d[i].b->name);
        text_addf(out, ",\"metric\":\"%s\",\"excludes_0\":%s,", measure_names[d[i].m],
                  isnan(d[i].mean.low)     ? "null"
                  : excludes_0(&d[i].mean) ? "true"
                                           : "false");
        cell_json(out, "mean", &d[i].mean, t->o->n_roots);
        text_addf(out, ",\"tasks\":{");
        bool some = false;
        for (int k = 0; k < t->n_tasks; k++) {
            if (!(d[i].tasks & 1u << k)) continue;
            text_addf(out, some ? "," : ""), some = true;
            cell_json(out, t->task[k].name, &d[i].task[k], t->o->n_roots);
        }
        text_addf(out, "}}");
    }
    text_addf(out, "]");
}

// What the numbers are, so that nobody has to ask.
static void legend(const Table *t, bool markdown, Text *out) {
    int seeds = t->o->n_roots;
    const char *start = markdown ? "" : "  ";
    text_addf(out, "\n%sAccuracy in percent, of every answer: what cannot be read is wrong. mean: of the tasks%s.",
              start, t->several ? "; ±: standard deviation over seeds" : "");
    if (applies(t, IOU))
        text_addf(out, "\n%sBoxes are right at IoU >= .5, all of them; IoU in percent; vqla: label and box.", start);
    text_addf(
        out,
        "\n%sformat: share of well-formed answers. Of a difference: percentage points (tokens: tokens) of the same "
        "records; *: its interval excludes 0.",
        start);
    text_addf(out, "\n%s[...]: %g %% bootstrap, %lld resamples, ", start, 100 * t->o->level,
              (long long)t->o->resamples);
    if (!t->several) text_addf(out, "by patient; one seed: nothing is said about another training.\n");
    else {
        text_addf(out, "of %d seeds and of patients within them%s.", seeds,
                  t->shared ? " (the same ones at every seed: drawn once for all)" : "");
        if (seeds < 5) text_addf(out, " Intervals of so few seeds are too narrow.");
        text_addf(out, "\n");
    }
}

static void table_free(Table *t) {
    for (int k = 0; k < t->n_arms; k++) {
        for (int s = 0; s < t->o->n_roots; s++) {
            for (int64_t i = 0; i < t->arms[k].at[s].n; i++)
                free(t->arms[k].at[s].p[i].id), free(t->arms[k].at[s].p[i].who);
            free(t->arms[k].at[s].p);
        }
        free(t->arms[k].at);
    }
    for (int s = 0; s < t->o->n_roots; s++) free(t->seeds[s].patients);
    free(t->arms), free(t->seeds), json_free(&t->spec);
}

bool table_make(const TableOptions *o, Text *text, Text *markdown, Text *json, Err *e) {
    Table t = {.o = o, .several = o->n_roots > 1};
    const char *title = NULL;
    t.seeds = alloc_or_die((size_t)o->n_roots, sizeof *t.seeds, "seeds");
    bool ok = read_spec(&t, e) && text_of(&t, t.spec.root, "title", false, &title, e) && read_answers(&t, e);
    if (!ok) return table_free(&t), false;
    number_patients(&t);
    int per_arm = t.n_tasks + 1 + BEHIND;
    Cell *cells = alloc_or_die((size_t)(t.n_arms * per_arm), sizeof *cells, "numbers of a table");
    for (int k = 0; k < t.n_arms; k++) arm_cells(&t, &t.arms[k], cells + k * per_arm);
    Difference *d;
    int n = differences_of(&t, &d);
    for (int k = 0; k < 2; k++) {
        Text *out = k ? markdown : text;
        if (title) text_addf(out, k ? "## " : ""), add_clean(out, title, k), text_addf(out, "\n\n");
        arms_print(&t, cells, k, out);
        text_addf(out, "\n");
        if (n) differences_print(&t, d, n, k, out);
        legend(&t, k, out);
    }
    text_addf(json, "{\"format\":1,"), add_name(json, "title", title);
    text_addf(json, ",\"seeds\":%d,\"level\":", o->n_roots), text_add_json_number(json, o->level);
    text_addf(json, ",\"resamples\":%lld,\"patients_shared\":%s,", (long long)o->resamples,
              t.shared ? "true" : "false");
    arms_json(&t, cells, json), text_addf(json, ","), differences_json(&t, d, n, json);
    text_addf(json, "}\n");
    for (int i = 0; i < n; i++) {
        for (int k = 0; k < t.n_tasks; k++) free(d[i].task[k].by_seed);
        free(d[i].task), free(d[i].mean.by_seed);
    }
    for (int k = 0; k < t.n_arms * per_arm; k++) free(cells[k].by_seed);
    free(cells), free(d), table_free(&t);
    return true;
}
