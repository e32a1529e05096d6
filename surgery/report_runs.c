// report_runs.c - the parts of a report about experiments: the ablation table and the curves of runs.
//
// What it is:  table.json as a table with intervals drawn; the numbers of run.jsonl as small multiples, several runs in one
//              picture.
// What it is not: the page (report.c), nor the place where a number is computed: what is drawn stands in the files.
// Read before: io/log.c, table.c.  Read next: report_rollouts.c, report.c.
#include "../surgr1.h"

const char *const report_runs_style =
    "table.ablation{font-size:13px}.ablation td{vertical-align:top;padding:3px 6px}.ablation td:first-child{"
    "min-width:130px}.ablation svg{display:block;margin-left:auto}.differences svg{display:block}.differences "
    "td:first-child{min-width:190px}"
    ".differences td:last-child{min-width:230px}"
    ".ablation th[scope=rowgroup]{font-weight:600;color:var(--fg);text-align:left}"
    ".wide{overflow-x:auto}.iv{stroke:var(--accent);stroke-width:5;opacity:.45}.mark{fill:var(--accent)}"
    ".iv2{stroke:var(--fg);stroke-width:1.5}.hollow{fill:var(--bg);stroke:var(--fg);stroke-width:1.5}"
    ".solid{fill:var(--fg)}.seed{fill:var(--dim);opacity:.6}.axis{stroke:var(--line);stroke-width:1}"
    ".zero{stroke:var(--dim);stroke-width:1;stroke-dasharray:3 3}svg text{font-size:10px;fill:var(--dim)}"
    ".curves{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(300px,100%),1fr));gap:12px}"
    "figure{margin:0}figcaption{font-size:13px;color:var(--dim);display:flex;justify-content:space-between;gap:8px}"
    "figcaption b{color:var(--c);font-weight:600}.curves svg{display:block;width:100%;border:1px solid var(--line);"
    "background:var(--card);box-sizing:border-box}"
    ".curves path{fill:none;stroke:var(--c);stroke-width:1.6;stroke-linejoin:round}.curves path.raw{stroke-width:1;"
    "opacity:.35}.curves circle{fill:var(--c)}.dash{stroke-dasharray:5 3}"
    ".legend{display:flex;flex-wrap:wrap;gap:4px 18px;font-size:13px;margin:4px 0 10px;list-style:none;padding:0}"
    ".legend li{overflow-wrap:anywhere}.legend i{display:inline-block;width:22px;height:0;border-top:3px solid "
    "var(--c);"
    "vertical-align:middle;margin-right:6px}"
    ".c0{--c:var(--s0)}.c1{--c:var(--s1)}.c2{--c:var(--s2)}.c3{--c:var(--s3)}.c4{--c:var(--s4)}.c5{--c:var(--s5)}"
    ".c6{--c:var(--s6)}.c7{--c:var(--s7)}";

// ---------------------------------------------------------------------------------------------------------------- text

void html_add(Text *out, const char *p, size_t len) {
    for (size_t pos = 0; pos < len;) {
        size_t from = pos;
        int32_t c = utf8_next(p, len, &pos);
        if (c == '&') text_addf(out, "&amp;");
        else if (c == '<') text_addf(out, "&lt;");
        else if (c == '>') text_addf(out, "&gt;");
        else if (c == '"') text_addf(out, "&quot;");
        else if (c == '\'') text_addf(out, "&#39;");
        else if (c < 0) text_addf(out, "\xEF\xBF\xBD");
        else if (c >= 0x20 || c == '\n' || c == '\t') text_add(out, p + from, pos - from);
    }
}
void html_text(Text *out, const char *text) { html_add(out, text ? text : "", text ? strlen(text) : 0); }

// -------------------------------------------------------------------------------------------------------------- shared

typedef struct LogLines {
    LineCallback each;
    void *ctx;
    int64_t good;
} LogLines;
static bool log_line(void *ctx, const char *line, size_t len, int64_t number, Err *e) {
    LogLines *l = ctx;
    return number > l->good || l->each(l->ctx, line, len, number, e);
}
bool report_log(const char *path, LineCallback each, void *ctx, Err *e) {
    LogLines l = {.each = each, .ctx = ctx};
    bool torn;
    return log_check(path, &l.good, &torn, e) && lines_read(path, log_line, &l, e);
}

bool report_number(const Json *object, const char *name, double *out) {
    const Json *v = json_get(object, name);
    if (!v || v->type != JSON_NUMBER || fabs(v->number) > 1e200) return false; // what no axis holds is not there
    *out = v->number;
    return true;
}
void html_json(Text *out, const Json *v) { // a string, or nothing
    if (v && v->type == JSON_STRING) html_add(out, v->str, v->len);
}

// Round numbers for an axis: at most `most` intervals of 1, 2 or 5 times a power of ten that hold [low, high].
typedef struct Axis {
    double low, high, step;
} Axis;
static Axis axis_of(double low, double high, int most) {
    if (!(high - low > 1e-4 * fmax(fabs(low), fabs(high))) || high - low < 1e-200) { // one value: in the middle
        double around = 0.1 * fmax(fabs(low), fabs(high));
        low -= around, high += around;
        if (!(high - low > 1e-200)) low = 0, high = 1;
    }
    double rough = (high - low) / most, power = pow(10, floor(log10(rough)));
    Axis a = {.step = power};
    for (int k = 0; k < 4; k++) {
        a.step = power * (const double[]){1, 2, 5, 10}[k];
        a.low = floor(low / a.step + 1e-9) * a.step, a.high = ceil(high / a.step - 1e-9) * a.step;
        if ((a.high - a.low) / a.step < most + 0.5) break;
    }
    return a;
}
static double axis_tick(const Axis *a, int k) { // NaN behind the last
    double v = a->low + k * a->step;
    if (fabs(v) < 1e-9 * a->step) v = 0;
    return v > a->high + a->step / 2 ? NAN : v;
}

// --------------------------------------------------------------------------------------------------------------- table

typedef struct Estimate {        // a number of table.json
    double value, low, high, sd; // NaN: not there
    const Json *by_seed;         // NULL: none
} Estimate;
static Estimate estimate_of(const Json *v) {
    Estimate i = {NAN, NAN, NAN, NAN, json_get(v, "by_seed")};
    report_number(v, "value", &i.value), report_number(v, "sd", &i.sd);
    if (!report_number(v, "low", &i.low) || !report_number(v, "high", &i.high)) i.low = i.high = NAN;
    return i;
}
static const Json *first_seed(Estimate i) { return i.by_seed ? i.by_seed->child : NULL; }
static bool seed_value(const Json *s, double *out) {
    return s->type == JSON_NUMBER && fabs(s->number) < 1e200 && (*out = s->number, true);
}
static void widen(double range[2], double v) {
    if (!isnan(v)) range[0] = fmin(range[0], v), range[1] = fmax(range[1], v);
}

// The columns of estimates: the tasks of the first arm that has any, then members that some arm has.
enum { COLUMNS = TASKS + 6 };
typedef struct Column {
    const Json *task;          // NULL: a member of the arm itself
    const char *member, *head; //
    double scale;              // to percent
    double range[2];           // of everything in it
} Column;
static const struct {
    const char *member, *head;
    double scale;
} behind[] = {{"mean", "mean", 100},    {"label", "label", 100},   {"iou", "IoU", 100},
              {"box", "IoU ≥ .5", 100}, {"format", "format", 100}, {"tokens", "tokens", 1}};

static Estimate column_value(const Column *c, const Json *arm) {
    return estimate_of(c->task ? json_get(json_get(arm, "tasks"), c->task->key) : json_get(arm, c->member));
}
static int columns_of(const Json *arms, Column *c) {
    const Json *tasks = NULL;
    int n = 0, kept = 0;
    for (const Json *a = arms->child; a && !tasks; a = a->next) {
        const Json *t = json_get(a, "tasks");
        if (t && t->type == JSON_OBJECT) tasks = t->child;
    }
    for (; tasks && n < TASKS; tasks = tasks->next) c[n++] = (Column){.task = tasks, .scale = 100};
    for (int k = 0; k < 6; k++)
        c[n++] = (Column){.member = behind[k].member, .head = behind[k].head, .scale = behind[k].scale};
    for (int k = 0; k < n; k++) {
        c[k].range[0] = INFINITY, c[k].range[1] = -INFINITY;
        for (const Json *a = arms->child; a; a = a->next) {
            Estimate i = column_value(&c[k], a);
            widen(c[k].range, i.value), widen(c[k].range, i.low), widen(c[k].range, i.high);
        }
        if (c[k].range[0] <= c[k].range[1]) c[kept++] = c[k];
    }
    return kept;
}

// A number with its interval as a bar beneath it, on the axis of its column.
static void estimate_cell(const Column *c, Estimate i, Text *out) {
    enum { W = 66, H = 9 };
    if (isnan(i.value)) {
        text_addf(out, "<td class=n>-");
        return;
    }
    double width = c->range[1] - c->range[0], pixels = (W - 6) / (width > 1e-12 * fabs(c->range[0]) ? width : 1), v;
    text_addf(out, "<td class=n title=\"");
    if (!isnan(i.low)) text_addf(out, "%.1f to %.1f", c->scale * i.low, c->scale * i.high);
    if (!isnan(i.sd)) text_addf(out, ", deviation %.1f", c->scale * i.sd);
    if (first_seed(i)) text_addf(out, "; seeds:");
    for (const Json *s = first_seed(i); s; s = s->next)
        if (seed_value(s, &v)) text_addf(out, " %.1f", c->scale * v);
    text_addf(out, "\">%.*f<svg width=%d height=%d aria-hidden=true><line class=axis x1=3 x2=%d y1=5 y2=5 />", 1,
              c->scale * i.value, W, H, W - 3);
    if (!isnan(i.low))
        text_addf(out, "<line class=iv x1=%.1f x2=%.1f y1=5 y2=5 />", 3 + (i.low - c->range[0]) * pixels,
                  3 + (i.high - c->range[0]) * pixels);
    text_addf(out, "<rect class=mark x=%.1f y=1 width=2 height=8 /></svg>", 2 + (i.value - c->range[0]) * pixels);
}

static bool same_text(const Json *a, const Json *b) {
    return a && b && a->type == JSON_STRING && b->type == JSON_STRING && a->len == b->len &&
           !memcmp(a->str, b->str, a->len);
}
static void arms_table(const Json *arms, Text *out) {
    Column columns[COLUMNS];
    int n = columns_of(arms, columns);
    text_addf(out, "<div class=wide><table class=ablation><thead><tr><th>arm<th class=n>seeds");
    for (int k = 0; k < n; k++) {
        text_addf(out, "<th class=n>");
        if (columns[k].task) html_add(out, columns[k].task->key, columns[k].task->key_len);
        else html_text(out, columns[k].head);
    }
    text_addf(out, "</thead><tbody>\n");
    const Json *section = NULL;
    for (const Json *a = arms->child; a; a = a->next) {
        const Json *s = json_get(a, "section"), *says = json_get(a, "note");
        double seeds = 0;
        if (s && s->type == JSON_STRING && !same_text(s, section)) {
            text_addf(out, "<tr><th scope=rowgroup colspan=%d>", 2 + n);
            html_json(out, s);
            text_addf(out, "</tr>\n");
        }
        section = s;
        text_addf(out, "<tr><td>");
        html_json(out, json_get(a, "name"));
        if (says && says->type == JSON_STRING) {
            text_addf(out, "<br><span class=note>");
            html_json(out, says);
            text_addf(out, "</span>");
        }
        report_number(a, "seeds", &seeds);
        text_addf(out, "<td class=n>%.0f", seeds);
        if (seeds < 1) text_addf(out, "<td class=note colspan=%d>not run", n);
        for (int k = 0; seeds >= 1 && k < n; k++) estimate_cell(&columns[k], column_value(&columns[k], a), out);
        text_addf(out, "</tr>\n");
    }
    text_addf(out,
              "</tbody></table></div><p class=note>Percent, but for seeds and tokens. Bars: intervals, with a mark at "
              "the mean over seeds; each column has an axis of its own, from its lowest bound to its highest. Point "
              "at a number for its interval and its seeds.</p>\n");
}

// Which tasks a difference comes from: "tool +3.1*", the star where its interval leaves 0 out.
static void by_task(const Json *difference, double scale, Text *out) {
    const Json *tasks = json_get(difference, "tasks");
    bool any = false;
    for (const Json *t = tasks && tasks->type == JSON_OBJECT ? tasks->child : NULL; t; t = t->next) {
        Estimate i = estimate_of(t);
        if (isnan(i.value)) continue;
        text_addf(out, any ? ", " : ""), any = true;
        html_add(out, t->key, t->key_len);
        text_addf(out, " %+.1f%s", scale * i.value, i.low > 0 || i.high < 0 ? "*" : "");
    }
}

// Differences against 0, all on one axis: those of shares, or those of tokens.
static void differences_table(const Json *list, double level, bool tokens, Text *out) {
    enum { W = 300, H = 24, SIDE = 14 };
    double range[2] = {0, 0}, scale = tokens ? 1 : 100, v;
    int rows = 0;
    for (const Json *d = list->child; d; d = d->next) {
        const Json *metric = json_get(d, "metric");
        Estimate i = estimate_of(json_get(d, "mean"));
        if ((metric && json_is(metric, "tokens")) != tokens) continue;
        rows++, widen(range, i.value), widen(range, i.low), widen(range, i.high);
        for (const Json *s = first_seed(i); s; s = s->next)
            if (seed_value(s, &v)) widen(range, v);
    }
    if (!rows) return;
    Axis a = axis_of(range[0], range[1], 6);
    double pixels = (W - 2 * SIDE) / (a.high - a.low), zero = SIDE - a.low * pixels;
    text_addf(out,
              "<div class=wide><table class=differences><thead><tr><th>difference<th class=n>%s<th>%g %% interval"
              "<th>leaves 0 out<th>by task</thead><tbody>\n",
              tokens ? "tokens" : "points", 100 * level);
    for (const Json *d = list->child; d; d = d->next) {
        const Json *metric = json_get(d, "metric"), *outside = json_get(d, "excludes_0");
        if ((metric && json_is(metric, "tokens")) != tokens) continue;
        Estimate i = estimate_of(json_get(d, "mean"));
        bool clear = outside && outside->type == JSON_TRUE;
        text_addf(out, "<tr><td>");
        html_json(out, json_get(d, "name"));
        text_addf(out, "<br><span class=note>");
        html_json(out, json_get(d, "a"));
        text_addf(out, " − ");
        html_json(out, json_get(d, "b"));
        if (metric && !json_is(metric, "accuracy") && !tokens) text_addf(out, ", "), html_json(out, metric);
        text_addf(out, "</span>");
        if (isnan(i.value)) {
            text_addf(out, "<td class=n>-<td class=note>not run<td><td></tr>\n");
            continue;
        }
        text_addf(out, "<td class=n>%+.1f<td><svg width=%d height=%d role=img aria-label=\"", scale * i.value, W, H);
        if (!isnan(i.low)) text_addf(out, "%+.1f to %+.1f", scale * i.low, scale * i.high);
        text_addf(out, "\"><line class=axis x1=%d x2=%d y1=11 y2=11 /><line class=zero x1=%.1f x2=%.1f y1=0 y2=%d />",
                  SIDE, W - SIDE, zero, zero, H);
        for (const Json *s = first_seed(i); s; s = s->next)
            if (seed_value(s, &v)) text_addf(out, "<circle class=seed cx=%.1f cy=20 r=2 />", zero + v * pixels);
        if (!isnan(i.low))
            text_addf(out, "<path class=iv2 d=\"M%.1f 11H%.1fM%.1f 7v8M%.1f 7v8\"/>", zero + i.low * pixels,
                      zero + i.high * pixels, zero + i.low * pixels, zero + i.high * pixels);
        text_addf(out, "<circle class=%s cx=%.1f cy=11 r=4 /></svg><td>%s<td class=note>", clear ? "solid" : "hollow",
                  zero + i.value * pixels,
                  isnan(i.low) ? "-"
                  : clear      ? "yes"
                               : "no");
        by_task(d, scale, out);
        text_addf(out, "</tr>\n");
    }
    text_addf(out, "<tr><td><td><td><svg width=%d height=16 aria-hidden=true>", W);
    for (int k = 0; !isnan(axis_tick(&a, k)); k++)
        text_addf(out, "<text x=%.1f y=12 text-anchor=middle>%.3g</text>", zero + axis_tick(&a, k) * pixels,
                  scale * axis_tick(&a, k));
    text_addf(out, "</svg><td><td></tr></tbody></table></div>\n");
}

bool report_table(const char *file, int number, Text *out, Err *e) {
    JsonDoc doc;
    if (!json_read(&doc, file, LIMIT_CONFIG_BYTES, (JsonOptions){.refuse_duplicates = true}, e)) return false;
    const Json *arms = json_get(doc.root, "arms"), *differences = json_get(doc.root, "differences");
    int64_t format;
    double level = .95;
    bool ok = json_int(&doc, doc.root, "format", true, 1, 1, &format, e) &&
              json_double(&doc, doc.root, "level", false, 0, 1, &level, e);
    if (ok && (!arms || arms->type != JSON_ARRAY))
        ok = err_set(e, "E-CF-02", json_at(&doc, arms ? arms : doc.root, "arms"),
                     "expected a list of arms; found %s; do: give the table.json of surgr1 table",
                     arms ? json_shown(arms) : "none");
    if (ok) {
        const Json *title = json_get(doc.root, "title");
        char id[24] = "table";
        if (number) snprintf(id, sizeof id, "table-%d", number + 1);
        text_addf(out, "<section id=%s><h2>", id);
        if (title && title->type == JSON_STRING) html_json(out, title);
        else text_addf(out, "Ablations");
        text_addf(out, "</h2>\n");
        arms_table(arms, out);
        if (differences && differences->type == JSON_ARRAY && differences->child) {
            text_addf(out, "<h3>Paired differences</h3>\n");
            differences_table(differences, level, false, out), differences_table(differences, level, true, out);
            text_addf(out, "<p class=note>Of the same records, in percentage points (or tokens). Large dot: the "
                           "difference, filled where its interval leaves 0 out; small dots: the seeds. A star: so does "
                           "the interval of that task.</p>\n");
        }
        text_addf(out, "</section>\n");
    }
    json_free(&doc);
    return ok;
}

// -------------------------------------------------------------------------------------------------------------- curves

typedef struct Points {
    double *x, *y;
    int64_t n, cap;
} Points;
static void points_add(Points *p, double x, double y) {
    if (p->n == p->cap) {
        p->cap = p->cap ? 2 * p->cap : 64;
        p->x = grow_or_die(p->x, (size_t)p->cap, sizeof *p->x, "a curve");
        p->y = grow_or_die(p->y, (size_t)p->cap, sizeof *p->y, "a curve");
    }
    p->x[p->n] = x, p->y[p->n++] = y;
}

// The charts, in their order: what sft.c and grpo_run.c log and people look at. Rows with one title share a chart; `line`
// then tells them apart. What a run logs beside these goes into charts of its own, folded away.
static const struct {
    const char *event, *field, *chart, *line;
} known[] = {{"rollout", "reward", "reward", ""},
             {"rollout", "right", "right answers while training", ""},
             {"eval", "greedy.right", "evaluation: right", "greedy"},
             {"eval", "sampled.right", "evaluation: right", "sampled"},
             {"eval", "greedy.terms.format", "evaluation: format", "greedy"},
             {"eval", "sampled.terms.format", "evaluation: format", "sampled"},
             {"rollout", "terms.format", "reward: format", ""},
             {"rollout", "terms.answer", "reward: answer", ""},
             {"rollout", "terms.structure", "reward: structure", ""},
             {"rollout", "terms.grounding", "reward: grounding", ""},
             {"rollout", "terms.language", "reward: language", ""},
             {"rollout", "terms.coherence", "reward: coherence", ""},
             {"rollout", "length", "length (tokens)", ""},
             {"rollout", "truncated", "share cut off", ""},
             {"rollout", "unparsable", "share unparsable", ""},
             {"rollout", "contradictions", "share contradicting its trace", ""},
             {"rollout", "flat_groups", "groups without spread", ""},
             {"rollout", "w_fraction", "effective token fraction of w", ""},
             {"step", "drift_max", "largest |log p drawn − trained|", ""},
             {"step", "kl", "KL to the reference", ""},
             {"step", "loss", "training loss", ""},
             {"eval", "loss", "evaluation loss", ""},
             {"step", "entropy", "entropy (nats)", ""},
             {"step", "grad_norm", "gradient norm", ""},
             {"step", "learning_rate", "learning rate", ""}};
enum { KNOWN = sizeof known / sizeof *known, SERIES = 600, NAME = 120 };
static const char *const events[] = {"step", "rollout", "eval", NULL};
// Members that count or place a line and draw nothing but a ramp; of nested ones the last part of the name.
static const char *const not_drawn[] = {"seq",     "step",      "epoch",       "best_step", "samples", "targets",
                                        "rollout", "update",    "seen",        "tokens",    "n",       "T",
                                        "status",  "sequences", "completions", NULL};

typedef struct Series { // one member of one kind of event, of every run
    char event[16], field[NAME];
    Points *of; // [runs]
} Series;
typedef struct Curves {
    const char *const *runs;
    int n_runs, run; // run: the one that is read
    Series series[SERIES];
    int n;
    const char *path;
} Curves;

static Series *series_of(Curves *c, const char *event, const char *field) {
    for (int k = 0; k < c->n; k++)
        if (!strcmp(c->series[k].event, event) && !strcmp(c->series[k].field, field)) return &c->series[k];
    if (c->n == SERIES) return NULL;
    Series *s = &c->series[c->n++];
    snprintf(s->event, sizeof s->event, "%s", event), snprintf(s->field, sizeof s->field, "%s", field);
    s->of = alloc_or_die((size_t)c->n_runs, sizeof *s->of, "the curves");
    return s;
}

// Every number of an event, of nested objects as "reward.format".
static void collect(Curves *c, const char *event, const Json *object, const char *prefix, double step, int depth) {
    for (const Json *v = object->child; v; v = v->next) {
        char field[NAME];
        bool skip = strlen(v->key) != v->key_len || // a name with a zero byte
                    snprintf(field, sizeof field, "%s%s%s", prefix, *prefix ? "." : "", v->key) >= NAME;
        for (int k = 0; !skip && not_drawn[k]; k++) skip = !strcmp(v->key, not_drawn[k]);
        if (skip) continue;
        if (v->type == JSON_OBJECT && depth < 3) collect(c, event, v, field, step, depth + 1);
        if (v->type != JSON_NUMBER || fabs(v->number) > 1e200) continue;
        Series *s = series_of(c, event, field);
        if (s) points_add(&s->of[c->run], step, v->number);
    }
}
static bool curve_line(void *ctx, const char *line, size_t len, int64_t number, Err *e) {
    Curves *c = ctx;
    JsonDoc doc;
    double step;
    if (!json_parse(&doc, line, len, c->path, (JsonOptions){.first_line = (uint32_t)number}, e)) return false;
    for (int k = 0; events[k]; k++) {
        const Json *ev = json_get(doc.root, "ev");
        if (ev && json_is(ev, events[k]) && report_number(doc.root, "step", &step))
            collect(c, events[k], doc.root, "", step, 0);
    }
    json_free(&doc);
    return true;
}

// A line through points of which at most 2 in each of 150 places are drawn, the lowest and the highest.
enum { CHART_W = 340, CHART_H = 160, CHART_LEFT = 46, CHART_RIGHT = 10, CHART_TOP = 9, CHART_BOTTOM = 20 };
static double chart_x(Axis x, double v) {
    return CHART_LEFT + (v - x.low) / (x.high - x.low) * (CHART_W - CHART_LEFT - CHART_RIGHT);
}
static double chart_y(Axis y, double v) {
    return CHART_TOP + (y.high - v) / (y.high - y.low) * (CHART_H - CHART_TOP - CHART_BOTTOM);
}
static void chart_path(const Points *p, const double *values, Axis x, Axis y, const char *class, Text *out) {
    int64_t every = p->n / 150 + 1;
    char letter = 'M';
    text_addf(out, "<path class=\"%s\" d=\"", class);
    for (int64_t from = 0; from < p->n; from += every) {
        int64_t end = from + every < p->n ? from + every : p->n, low = from, high = from;
        for (int64_t i = from; i < end; i++) {
            if (values[i] < values[low]) low = i;
            if (values[i] > values[high]) high = i;
        }
        int64_t first = low < high ? low : high, second = low < high ? high : low;
        text_addf(out, "%c%.1f %.1f", letter, chart_x(x, p->x[first]), chart_y(y, values[first])), letter = 'L';
        if (second != first) text_addf(out, "L%.1f %.1f", chart_x(x, p->x[second]), chart_y(y, values[second]));
    }
    text_addf(out, "\"/>");
}

// The mean over the points around each: a 25th of the run to either side, as far as there are any.
static double *smooth(const Points *p) {
    double *sum = alloc_or_die((size_t)p->n + 1, sizeof *sum, "a curve");
    double *mean = alloc_or_die((size_t)p->n, sizeof *mean, "a curve");
    for (int64_t i = 0; i < p->n; i++) sum[i + 1] = sum[i] + p->y[i];
    for (int64_t i = 0; i < p->n; i++) {
        int64_t side = p->n / 25, from = i > side ? i - side : 0, end = i + side + 1 < p->n ? i + side + 1 : p->n;
        mean[i] = (sum[end] - sum[from]) / (double)(end - from);
    }
    free(sum);
    return mean;
}

enum { LINES = 64, SMOOTHED = 40 };
static double last_value(const Points *p) { // of the line that is drawn thick
    int64_t n = p->n >= SMOOTHED ? p->n / 25 + 1 : 1;
    double sum = 0;
    for (int64_t i = p->n - n; i < p->n; i++) sum += p->y[i];
    return sum / (double)n;
}
typedef struct Line {
    const Points *p;
    int run, style;
    const char *name;
} Line;
static void chart(const char *title, const Line *lines, int n, Text *out) {
    double low = INFINITY, high = -INFINITY, first = INFINITY, last = -INFINITY;
    int64_t most = 0;
    for (int k = 0; k < n; k++)
        for (int64_t i = 0; i < lines[k].p->n; i++) {
            const Points *p = lines[k].p;
            low = fmin(low, p->y[i]), high = fmax(high, p->y[i]);
            first = fmin(first, p->x[i]), last = fmax(last, p->x[i]);
            most = most > p->n ? most : p->n;
        }
    if (most < 2) return;
    Axis y = axis_of(low, high, 4), x = {first, last > first ? last : first + 1, 0};
    text_addf(out, "<figure><figcaption><span>");
    html_text(out, title);
    text_addf(out, "</span><span>");
    for (int k = 0; k < n; k++) { // what is drawn whole and what dashed, and where a line or two end
        bool first_of_style = *lines[k].name && (!k || lines[k - 1].style != lines[k].style);
        if (first_of_style) text_addf(out, "%s%s %s ", k ? " " : "", lines[k].style % 2 ? "- -" : "—", lines[k].name);
        if (n <= 2)
            text_addf(out, "%s<b class=c%d>%.3g</b>", k && !first_of_style ? ", " : "", lines[k].run % 8,
                      last_value(lines[k].p));
    }
    text_addf(out, "</span></figcaption><svg viewBox=\"0 0 %d %d\" role=img aria-label=\"", CHART_W, CHART_H);
    html_text(out, title);
    text_addf(out, "\">");
    for (int k = 0; !isnan(axis_tick(&y, k)); k++)
        text_addf(out, "<line class=axis x1=%d x2=%d y1=%.1f y2=%.1f /><text x=%d y=%.1f text-anchor=end>%.6g</text>",
                  CHART_LEFT, CHART_W - CHART_RIGHT, chart_y(y, axis_tick(&y, k)), chart_y(y, axis_tick(&y, k)),
                  CHART_LEFT - 4, chart_y(y, axis_tick(&y, k)) + 3, axis_tick(&y, k));
    text_addf(out, "<text x=%d y=%d>step %.0f</text><text x=%d y=%d text-anchor=end>%.0f</text>", CHART_LEFT,
              CHART_H - 6, first, CHART_W - CHART_RIGHT, CHART_H - 6, last);
    for (int k = 0; k < n; k++) {
        const Points *p = lines[k].p;
        char class[40];
        text_addf(out, "<g class=c%d>", lines[k].run % 8);
        snprintf(class, sizeof class, "%s", (lines[k].run / 8 + lines[k].style) % 2 ? "dash" : "whole");
        if (p->n >= SMOOTHED) {
            double *mean = smooth(p);
            chart_path(p, p->y, x, y, "raw", out), chart_path(p, mean, x, y, class, out);
            free(mean);
        } else {
            chart_path(p, p->y, x, y, class, out);
            for (int64_t i = 0; i < p->n; i++)
                text_addf(out, "<circle cx=%.1f cy=%.1f r=2 />", chart_x(x, p->x[i]), chart_y(y, p->y[i]));
        }
        text_addf(out, "</g>");
    }
    text_addf(out, "</svg></figure>\n");
}

static int known_series(const Series *s) {
    for (int k = 0; k < KNOWN; k++)
        if (!strcmp(known[k].event, s->event) && !strcmp(known[k].field, s->field)) return k;
    return -1;
}
static int add_lines(const Curves *c, const Series *s, const char *name, int style, const bool *member, Line *lines,
                     int n) {
    for (int r = 0; r < c->n_runs; r++)
        if (member[r] && s->of[r].n && n < LINES) lines[n++] = (Line){&s->of[r], r, style, name};
    return n;
}

// The runs of one kind: supervised ones and those with rewards are not drawn over each other.
static void family(const Curves *c, const char *title, const bool *member, Text *out) {
    Line lines[LINES];
    Text more = {0};
    int members = 0;
    for (int r = 0; r < c->n_runs; r++) members += member[r];
    if (!members) return;
    text_addf(out, "<h3>%s</h3><ul class=legend>", title);
    for (int r = 0; r < c->n_runs; r++) {
        if (!member[r]) continue;
        text_addf(out, "<li class=c%d><i%s></i>", r % 8, r / 8 % 2 ? " style=\"border-top-style:dashed\"" : "");
        html_text(out, c->runs[r]);
    }
    text_addf(out, "</ul><div class=curves>\n");
    for (int k = 0; k < KNOWN; k++) {
        bool begun = false;
        for (int j = 0; j < k; j++) begun |= !strcmp(known[j].chart, known[k].chart);
        int n = 0, style = 0;
        for (int j = k; !begun && j < KNOWN; j++) {
            if (strcmp(known[j].chart, known[k].chart)) continue;
            for (int i = 0; i < c->n; i++)
                if (known_series(&c->series[i]) == j)
                    n = add_lines(c, &c->series[i], known[j].line, style, member, lines, n);
            style++;
        }
        if (n) chart(known[k].chart, lines, n, out);
    }
    text_addf(out, "</div>\n");
    for (int i = 0; i < c->n; i++) {
        const Series *s = &c->series[i];
        char name[NAME + 20];
        if (known_series(s) >= 0) continue;
        snprintf(name, sizeof name, "%s: %s", s->event, s->field);
        chart(name, lines, add_lines(c, s, "", 0, member, lines, 0), &more);
    }
    if (more.len)
        text_addf(out, "<details><summary>Everything else in the log</summary><div class=curves>\n%s</div></details>\n",
                  more.p);
    text_free(&more);
}

bool report_curves(const char *const *runs, int n, Text *out, Err *e) {
    Curves *c = alloc_or_die(1, sizeof *c, "the curves");
    bool ok = true, any = false, *rewarded = alloc_or_die((size_t)n + 1, 1, "the runs");
    bool *others = alloc_or_die((size_t)n + 1, 1, "the runs");
    char path[1300];
    c->runs = runs, c->n_runs = n, c->path = path;
    for (c->run = 0; ok && c->run < n; c->run++)
        ok = path_join(path, sizeof path, runs[c->run], "run.jsonl", e) && report_log(path, curve_line, c, e);
    for (int k = 0; k < c->n; k++)
        for (int r = 0; r < n; r++) {
            bool here = c->series[k].of[r].n > 0;
            any |= here, others[r] |= here, rewarded[r] |= here && !strcmp(c->series[k].event, "rollout");
        }
    for (int r = 0; r < n; r++) others[r] &= !rewarded[r];
    if (ok && any) {
        text_addf(out, "<section id=curves><h2>Curves</h2>\n");
        family(c, "Reinforcement", rewarded, out), family(c, "Supervised", others, out);
        text_addf(out,
                  "<p class=note>Of more than %d points the thin line is what was logged, the thick one its mean "
                  "over 8 %% of the run. The number above a curve is where its thick line ends.</p></section>\n",
                  SMOOTHED);
    }
    for (int k = 0; k < c->n; k++) {
        for (int r = 0; r < n; r++) free(c->series[k].of[r].x), free(c->series[k].of[r].y);
        free(c->series[k].of);
    }
    free(rewarded), free(others), free(c);
    return ok;
}
