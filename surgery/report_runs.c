// report_runs.c - the parts of a report that are about runs: the ablation table, curves, groups of completions.
//
// What it is:  table.json as a table with intervals drawn; the numbers of run.jsonl as small multiples, several runs in one
//              picture; rollouts.jsonl as groups side by side, each token tinted by its weight of eq. 6.
// What it is not: the page (report.c), nor the place where a number is computed: what is drawn stands in the files.
// Read before: io/log.c, grpo.c (eq. 3 and 6).  Read next: report.c.
#include "../surgr1.h"

const char *const report_runs_style =
    "table.ablation{font-size:13px}.ablation td{vertical-align:top;padding:3px 6px}.ablation td:first-child{"
    "min-width:130px}.ablation svg{display:block;margin-left:auto}.differences svg{display:block}"
    ".ablation th[scope=rowgroup]{font-weight:600;color:var(--fg);text-align:left}"
    ".wide{overflow-x:auto}.iv{stroke:var(--accent);stroke-width:5;opacity:.45}.mark{fill:var(--accent)}"
    ".iv2{stroke:var(--fg);stroke-width:1.5}.hollow{fill:var(--bg);stroke:var(--fg);stroke-width:1.5}"
    ".solid{fill:var(--fg)}.seed{fill:var(--dim);opacity:.6}.axis{stroke:var(--line);stroke-width:1}"
    ".zero{stroke:var(--dim);stroke-width:1;stroke-dasharray:3 3}svg text{font-size:10px;fill:var(--dim)}"
    ".curves{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(300px,100%),1fr));gap:12px}"
    "figure{margin:0}figcaption{font-size:13px;color:var(--dim);display:flex;justify-content:space-between;gap:8px}"
    "figcaption b{color:var(--fg);font-weight:600}.curves svg{display:block;width:100%;border:1px solid var(--line);"
    "background:var(--card);box-sizing:border-box}"
    ".curves path{fill:none;stroke:var(--c);stroke-width:1.6;stroke-linejoin:round}.curves path.raw{stroke-width:1;"
    "opacity:.35}.curves circle{fill:var(--c)}.dash{stroke-dasharray:5 3}"
    ".legend{display:flex;flex-wrap:wrap;gap:4px 18px;font-size:13px;margin:4px 0 10px;list-style:none;padding:0}"
    ".legend li{overflow-wrap:anywhere}.legend i{display:inline-block;width:22px;height:0;border-top:3px solid "
    "var(--c);"
    "vertical-align:middle;margin-right:6px}"
    ".c0{--c:var(--s0)}.c1{--c:var(--s1)}.c2{--c:var(--s2)}.c3{--c:var(--s3)}.c4{--c:var(--s4)}.c5{--c:var(--s5)}"
    ".c6{--c:var(--s6)}.c7{--c:var(--s7)}"
    ".group{border-top:1px solid var(--line);margin:14px 0;padding-top:8px}.group h3{margin:0 0 6px;"
    "overflow-wrap:anywhere;font-weight:600}.group h3 span{font-weight:400;color:var(--dim)}"
    ".members{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(235px,100%),1fr));gap:10px}"
    ".member{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:8px 10px;min-width:0}"
    ".member p{margin:2px 0}.member .note{font-size:12px;line-height:1.4}"
    ".adv{position:relative;height:6px;background:var(--line);border-radius:3px;margin:4px 0}.adv i{position:absolute;"
    "top:0;bottom:0;border-radius:3px}.adv .up{left:50%;background:var(--yes)}.adv "
    ".down{right:50%;background:var(--no)}"
    ".tok{max-height:360px;overflow:auto;font-size:13px;line-height:1.55;unicode-bidi:isolate}.tok i{font-style:normal;"
    "border-radius:2px}"
    ".m1{background:color-mix(in srgb,var(--more) 17%,transparent)}"
    ".m2{background:color-mix(in srgb,var(--more) 32%,transparent)}"
    ".m3{background:color-mix(in srgb,var(--more) 47%,transparent)}"
    ".m4{background:color-mix(in srgb,var(--more) 62%,transparent)}"
    ".l1{background:color-mix(in srgb,var(--less) 14%,transparent)}"
    ".l2{background:color-mix(in srgb,var(--less) 26%,transparent)}"
    ".l3{background:color-mix(in srgb,var(--less) 38%,transparent)}"
    ".l4{background:color-mix(in srgb,var(--less) 50%,transparent)}"
    ".tints{display:flex;flex-wrap:wrap;gap:2px;align-items:center;font-size:12px;margin:6px 0}.tints i{font-style:"
    "normal;padding:1px 7px;border-radius:3px;border:1px solid var(--line)}";

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

// The lines of a log: checked whole first (E-CK-02), and a torn last one, of a run that works or was killed, is not there.
typedef struct LogLines {
    LineCallback each;
    void *ctx;
    int64_t good;
} LogLines;
static bool log_line(void *ctx, const char *line, size_t len, int64_t number, Err *e) {
    LogLines *l = ctx;
    return number > l->good || l->each(l->ctx, line, len, number, e);
}
static bool log_lines(const char *path, LineCallback each, void *ctx, Err *e) {
    LogLines l = {.each = each, .ctx = ctx};
    bool torn;
    return log_check(path, &l.good, &torn, e) && lines_read(path, log_line, &l, e);
}

static bool number_of(const Json *object, const char *name, double *out) {
    const Json *v = json_get(object, name);
    if (!v || v->type != JSON_NUMBER || fabs(v->number) > 1e200) return false; // what no axis holds is not there
    *out = v->number;
    return true;
}
static void html_json(Text *out, const Json *v) { // a string, or nothing
    if (v && v->type == JSON_STRING) html_add(out, v->str, v->len);
}

// Round numbers for an axis: at most `most` intervals of 1, 2 or 5 times a power of ten that hold [low, high].
typedef struct Axis {
    double low, high, step;
} Axis;
static Axis axis_of(double low, double high, int most) {
    if (!(high - low > 1e-12 * fabs(low)) || high - low < 1e-200) { // one value: it stands in the middle
        double around = fabs(low) > 1e-200 ? 0.1 * fabs(low) : 1;
        low -= around, high += around;
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

typedef struct Estimate {
    double mean, low, high, sd; // NaN: not there
} Estimate;
static Estimate estimate_of(const Json *v) {
    Estimate i = {NAN, NAN, NAN, NAN};
    if (v && v->type == JSON_NUMBER && fabs(v->number) < 1e200) i.mean = v->number;
    number_of(v, "mean", &i.mean), number_of(v, "low", &i.low), number_of(v, "high", &i.high);
    number_of(v, "sd", &i.sd);
    return i;
}
static void widen(double range[2], Estimate i) {
    const double v[3] = {i.mean, i.low, i.high};
    for (int k = 0; k < 3; k++)
        if (!isnan(v[k])) range[0] = fmin(range[0], v[k]), range[1] = fmax(range[1], v[k]);
}

// A number with its interval as a bar beneath it, on the axis of its column. Shares are shown in percent.
static void estimate_cell(Estimate i, const double range[2], Text *out) {
    enum { W = 66, H = 9 };
    if (isnan(i.mean)) {
        text_addf(out, "<td class=n>-");
        return;
    }
    bool bar = !isnan(i.low) && !isnan(i.high);
    double scale = (W - 6) / (range[1] > range[0] ? range[1] - range[0] : 1);
    text_addf(out, "<td class=n");
    if (bar) text_addf(out, " title=\"%.1f to %.1f", 100 * i.low, 100 * i.high);
    if (bar && !isnan(i.sd)) text_addf(out, ", deviation %.1f", 100 * i.sd);
    text_addf(out, "%s>%.1f<svg width=%d height=%d aria-hidden=true><line class=axis x1=3 x2=%d y1=5 y2=5 />",
              bar ? "\"" : "", 100 * i.mean, W, H, W - 3);
    if (bar)
        text_addf(out, "<line class=iv x1=%.1f x2=%.1f y1=5 y2=5 />", 3 + (i.low - range[0]) * scale,
                  3 + (i.high - range[0]) * scale);
    text_addf(out, "<rect class=mark x=%.1f y=1 width=2 height=8 /></svg>", 2 + (i.mean - range[0]) * scale);
}

// The columns of estimates: the tasks, then members of an arm that some arm has.
enum { COLUMNS = 40 };
typedef struct Column {
    const Json *task;   // its name; NULL: a member of the arm itself
    const char *member; //
    double range[2];    // of everything in it
} Column;
static Estimate column_value(const Column *c, const Json *arm) {
    const Json *accuracy = json_get(arm, "accuracy");
    if (c->task) return estimate_of(c->task->type == JSON_STRING ? json_get(accuracy, c->task->str) : NULL);
    return estimate_of(json_get(arm, c->member));
}
static int columns_of(const Json *tasks, const Json *arms, Column *c) {
    int n = 0;
    for (const Json *t = tasks ? tasks->child : NULL; t && n < COLUMNS - 2; t = t->next) c[n++].task = t;
    c[n++].member = "mean", c[n++].member = "iou";
    for (int k = 0; k < n; k++) {
        c[k].range[0] = INFINITY, c[k].range[1] = -INFINITY;
        for (const Json *a = arms->child; a; a = a->next) widen(c[k].range, column_value(&c[k], a));
    }
    while (n && !(c[n - 1].range[1] >= c[n - 1].range[0])) n--;
    return n;
}

static void arms_table(const Json *root, Text *out) {
    const Json *arms = json_get(root, "arms");
    Column columns[COLUMNS] = {{0}};
    int n = columns_of(json_get(root, "tasks"), arms, columns);
    bool tokens = false, format = false;
    for (const Json *a = arms->child; a; a = a->next) {
        tokens |= !isnan(estimate_of(json_get(a, "tokens")).mean);
        format |= !isnan(estimate_of(json_get(a, "format")).mean);
    }
    text_addf(out, "<div class=wide><table class=ablation><thead><tr><th>arm<th class=n>seeds");
    for (int k = 0; k < n; k++) {
        text_addf(out, "<th class=n>");
        if (columns[k].task) html_json(out, columns[k].task);
        else html_text(out, columns[k].member);
    }
    text_addf(out, "%s%s</thead><tbody>\n", format ? "<th class=n>format" : "", tokens ? "<th class=n>tokens" : "");
    const Json *section = NULL;
    for (const Json *a = arms->child; a; a = a->next) {
        const Json *s = json_get(a, "section"), *note_text = json_get(a, "note"), *missing = json_get(a, "missing");
        bool named = s && s->type == JSON_STRING && s->len;
        if (named && (!section || section->len != s->len || memcmp(section->str, s->str, s->len))) {
            text_addf(out, "<tr><th scope=rowgroup colspan=%d>", 2 + n + format + tokens);
            html_json(out, s);
            text_addf(out, "</tr>\n");
        }
        section = named ? s : NULL;
        text_addf(out, "<tr><td>");
        html_json(out, json_get(a, "name"));
        if (note_text && note_text->type == JSON_STRING && note_text->len) {
            text_addf(out, "<br><span class=note>");
            html_json(out, note_text);
            text_addf(out, "</span>");
        }
        if (missing && missing->type == JSON_TRUE) {
            text_addf(out, "<td class=note colspan=%d>not there</tr>\n", 1 + n + format + tokens);
            continue;
        }
        double seeds = NAN, share = estimate_of(json_get(a, "format")).mean;
        double length = estimate_of(json_get(a, "tokens")).mean;
        number_of(a, "seeds", &seeds);
        text_addf(out, isnan(seeds) ? "<td class=n>-" : "<td class=n>%.0f", seeds);
        for (int k = 0; k < n; k++) estimate_cell(column_value(&columns[k], a), columns[k].range, out);
        if (format) text_addf(out, isnan(share) ? "<td class=n>-" : "<td class=n>%.1f", 100 * share);
        if (tokens) text_addf(out, isnan(length) ? "<td class=n>-" : "<td class=n>%.0f", length);
        text_addf(out, "</tr>\n");
    }
    text_addf(out,
              "</tbody></table></div><p class=note>Percent, but for seeds and tokens. Bars: the interval in "
              "table.json, with a mark at the mean over seeds; each column has an axis of its own, from its lowest "
              "bound to its highest. Point at a number for its interval.</p>\n");
}

static void differences_table(const Json *list, Text *out) {
    enum { W = 300, H = 22, SIDE = 10 };
    double range[2] = {0, 0};
    for (const Json *d = list->child; d; d = d->next) {
        widen(range, estimate_of(d));
        const Json *seeds = json_get(d, "per_seed");
        for (const Json *s = seeds ? seeds->child : NULL; s; s = s->next) widen(range, estimate_of(s));
    }
    Axis a = axis_of(range[0], range[1], 6);
    double scale = (W - 2 * SIDE) / (a.high - a.low);
#define AT_X(v) (SIDE + ((v)-a.low) * scale)
    text_addf(out, "<h3>Paired differences</h3><div class=wide><table class=differences><thead><tr><th>question<th>"
                   "difference<th class=n>points<th>95 %% interval<th>0 is</thead><tbody>\n");
    for (const Json *d = list->child; d; d = d->next) {
        Estimate i = estimate_of(d);
        const Json *outside = json_get(d, "excludes_zero"), *seeds = json_get(d, "per_seed");
        bool clear = outside && outside->type == JSON_TRUE, known = !isnan(i.low) && !isnan(i.high);
        text_addf(out, "<tr><td>");
        html_json(out, json_get(d, "name"));
        text_addf(out, "<td>");
        html_json(out, json_get(d, "a"));
        text_addf(out, " − ");
        html_json(out, json_get(d, "b"));
        if (isnan(i.mean)) {
            text_addf(out, "<td class=n>-<td class=note>not there<td></tr>\n");
            continue;
        }
        text_addf(out, "<td class=n>%+.1f<td><svg width=%d height=%d role=img aria-label=\"", 100 * i.mean, W, H);
        if (known) text_addf(out, "%+.1f to %+.1f", 100 * i.low, 100 * i.high);
        text_addf(out, "\"><line class=axis x1=%d x2=%d y1=11 y2=11 /><line class=zero x1=%.1f x2=%.1f y1=0 y2=%d />",
                  SIDE, W - SIDE, AT_X(0), AT_X(0), H);
        for (const Json *s = seeds ? seeds->child : NULL; s; s = s->next)
            if (s->type == JSON_NUMBER) text_addf(out, "<circle class=seed cx=%.1f cy=18 r=2 />", AT_X(s->number));
        if (known)
            text_addf(out, "<path class=iv2 d=\"M%.1f 11H%.1fM%.1f 7v8M%.1f 7v8\"/>", AT_X(i.low), AT_X(i.high),
                      AT_X(i.low), AT_X(i.high));
        text_addf(out, "<circle class=%s cx=%.1f cy=11 r=4 /></svg><td>%s</tr>\n", clear ? "solid" : "hollow",
                  AT_X(i.mean), clear ? "outside" : "inside");
    }
    text_addf(out, "<tr><td><td><td><td><svg width=%d height=16 aria-hidden=true>", W);
    for (int k = 0; !isnan(axis_tick(&a, k)); k++)
        text_addf(out, "<text x=%.1f y=12 text-anchor=middle>%.3g</text>", AT_X(axis_tick(&a, k)),
                  100 * axis_tick(&a, k));
#undef AT_X
    text_addf(out,
              "</svg><td></tr></tbody></table></div><p class=note>Percentage points, seed by seed. A filled dot: the "
              "interval leaves 0 out; small dots: the seeds.</p>\n");
}

bool report_table(const char *file, Text *out, Err *e) {
    JsonDoc doc;
    if (!json_read(&doc, file, LIMIT_CONFIG_BYTES, (JsonOptions){.refuse_duplicates = true}, e)) return false;
    const Json *arms = json_get(doc.root, "arms"), *differences = json_get(doc.root, "differences");
    bool ok = arms && arms->type == JSON_ARRAY;
    if (!ok)
        err_set(e, "E-CF-02", json_at(&doc, arms ? arms : doc.root, "arms"),
                "expected a list of arms; found %s; do: give the table.json of surgr1 table",
                arms ? json_shown(arms) : "none");
    else {
        const Json *title = json_get(doc.root, "title");
        text_addf(out, "<section id=table><h2>");
        if (title && title->type == JSON_STRING && title->len) html_json(out, title);
        else text_addf(out, "Ablations");
        text_addf(out, "</h2>\n");
        arms_table(doc.root, out);
        if (differences && differences->child) differences_table(differences, out);
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

// The charts, in their order. Several rows with one title share a chart; `line` then tells them apart. What a run logs
// beside these goes into charts of its own, folded away.
static const struct {
    const char *event, *field, *chart, *line;
} known[] = {{"step", "reward", "reward", ""},
             {"step", "loss", "training loss", ""},
             {"eval", "loss", "evaluation loss", ""},
             {"step", "grad_norm", "gradient norm", ""},
             {"step", "learning_rate", "learning rate", ""},
             {"step", "entropy", "entropy (nats)", ""}};
enum { KNOWN = sizeof known / sizeof *known, SERIES = 400, NAME = 120 };
// Members that count or place a line and draw nothing but a ramp.
static const char *const not_drawn[] = {"seq", "step", "epoch", "best_step", "samples", "targets", NULL};

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
        for (int k = 0; !skip && not_drawn[k]; k++) skip = !strcmp(field, not_drawn[k]);
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
    static const char *const events[] = {"step", "eval"};
    for (int k = 0; k < 2; k++) {
        const Json *ev = json_get(doc.root, "ev");
        if (ev && json_is(ev, events[k]) && number_of(doc.root, "step", &step))
            collect(c, events[k], doc.root, "", step, 0);
    }
    json_free(&doc);
    return true;
}

// A line through points of which at most 2 in each of 300 places are drawn, the lowest and the highest.
enum { CHART_W = 340, CHART_H = 160, CHART_LEFT = 46, CHART_RIGHT = 10, CHART_TOP = 9, CHART_BOTTOM = 20 };
static double chart_x(Axis x, double v) {
    return CHART_LEFT + (v - x.low) / (x.high - x.low) * (CHART_W - CHART_LEFT - CHART_RIGHT);
}
static double chart_y(Axis y, double v) {
    return CHART_TOP + (y.high - v) / (y.high - y.low) * (CHART_H - CHART_TOP - CHART_BOTTOM);
}
static void chart_path(const Points *p, const double *values, Axis x, Axis y, const char *class, Text *out) {
    int64_t every = p->n / 300 + 1;
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
    for (int k = 0; k < n && n <= 2; k++)
        text_addf(out, "%s%s%s<b>%.4g</b>", k ? ", " : "", lines[k].name, *lines[k].name ? " " : "",
                  last_value(lines[k].p));
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
        snprintf(name, sizeof name, "%s%s", strcmp(s->event, "step") ? "evaluation: " : "", s->field);
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
        ok = path_join(path, sizeof path, runs[c->run], "run.jsonl", e) && log_lines(path, curve_line, c, e);
    for (int k = 0; k < c->n; k++)
        for (int r = 0; r < n; r++) {
            bool here = c->series[k].of[r].n > 0;
            any |= here, others[r] |= here, rewarded[r] |= here && !strncmp(c->series[k].field, "reward", 6);
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

// ------------------------------------------------------------------------------------------------------------ rollouts

enum { MEMBERS = 8, TOKENS_SHOWN = 1500 }; // of a group; of a completion
typedef struct Group {
    int64_t step, group, n;
    double low, high; // advantages of its members
    char task[32];
    bool chosen;
    JsonDoc *docs; // [n] of a chosen group, the completions
    int64_t read;
} Group;
typedef struct Rollouts {
    const char *path;
    Group *g;
    int64_t n, cap;
    int32_t *of_line; // [lines] the group of each line, -1: none
    int64_t lines, line_cap;
} Rollouts;

// First reading: which groups there are. A group's lines need not follow each other, but its step's do.
static bool rollout_scan(void *ctx, const char *line, size_t len, int64_t number, Err *e) {
    Rollouts *r = ctx;
    JsonDoc doc;
    int64_t step, group;
    if (!json_parse(&doc, line, len, r->path, (JsonOptions){.first_line = (uint32_t)number}, e)) return false;
    const Json *ev = json_get(doc.root, "ev"), *task = json_get(doc.root, "task");
    int64_t at = -1;
    if (ev && json_is(ev, "completion")) {
        if (!json_int(&doc, doc.root, "step", true, 0, INT64_MAX, &step, e) ||
            !json_int(&doc, doc.root, "group", true, 0, INT64_MAX, &group, e)) {
            json_free(&doc);
            return false;
        }
        for (at = r->n - 1; at >= 0 && r->g[at].step == step && r->g[at].group != group;) at--;
        if (at < 0 || r->g[at].step != step) {
            if (r->n == r->cap) {
                r->cap = r->cap ? 2 * r->cap : 256;
                r->g = grow_or_die(r->g, (size_t)r->cap, sizeof *r->g, "the groups of completions");
            }
            r->g[at = r->n++] = (Group){.step = step, .group = group, .low = INFINITY, .high = -INFINITY};
        }
        Group *g = &r->g[at];
        double a;
        g->n++;
        if (number_of(doc.root, "advantage", &a)) g->low = fmin(g->low, a), g->high = fmax(g->high, a);
        if (task && task->type == JSON_STRING) snprintf(g->task, sizeof g->task, "%s", task->str);
    }
    json_free(&doc);
    if (number > r->line_cap) {
        r->line_cap = 2 * number + 256;
        r->of_line = grow_or_die(r->of_line, (size_t)r->line_cap, sizeof *r->of_line, "the lines of rollouts.jsonl");
    }
    while (r->lines < number - 1) r->of_line[r->lines++] = -1;
    r->of_line[r->lines++] = (int32_t)at;
    return true;
}
static bool rollout_load(void *ctx, const char *line, size_t len, int64_t number, Err *e) {
    Rollouts *r = ctx;
    Group *g = number <= r->lines && r->of_line[number - 1] >= 0 ? &r->g[r->of_line[number - 1]] : NULL;
    if (!g || !g->chosen || g->read == g->n) return true;
    if (!json_parse(&g->docs[g->read], line, len, r->path, (JsonOptions){.first_line = (uint32_t)number}, e))
        return false;
    g->read++;
    return true;
}

// Groups in turn from the first, the middle and the last step, and from there on; with a spread before flat ones, of a task
// that was not taken yet before those of others.
static void choose(Rollouts *r, int64_t most) {
    int64_t *taken = alloc_or_die((size_t)most + 1, sizeof *taken, "the groups that are shown");
    for (int64_t k = 0; k < most && k < r->n; k++) {
        double first = (double)r->g[0].step, last = (double)r->g[r->n - 1].step;
        double anchor = k % 3 == 0 ? first : k % 3 == 1 ? floor((first + last) / 2) : last, best_key[3] = {0};
        int64_t best = -1;
        for (int64_t i = 0; i < r->n; i++) {
            const Group *g = &r->g[i];
            if (g->chosen) continue;
            double key[3] = {!(g->high > g->low), fabs((double)g->step - anchor), 0};
            for (int64_t j = 0; j < k; j++) key[2] += !strcmp(r->g[taken[j]].task, g->task);
            int c = 0;
            while (c < 2 && key[c] == best_key[c]) c++;
            if (best < 0 || key[c] < best_key[c]) best = i, memcpy(best_key, key, sizeof key);
        }
        r->g[best].chosen = true, taken[k] = best;
    }
    free(taken);
}

// The class of a tint: m1 to m4 and l1 to l4 for |log2 w| of a quarter, three quarters and so on; "" about 1.
static const char *tint(double w) {
    static const char *const more[] = {"", "m1", "m2", "m3", "m4"}, *const less[] = {"", "l1", "l2", "l3", "l4"};
    if (!(w > 0)) return w == 0 ? "l4" : "";
    double steps = fmin(4, floor(2 * fabs(log2(w)) + 0.5));
    return (w > 1 ? more : less)[(int)steps];
}
static void legend(Text *out) {
    static const double w[] = {0.25, 0.35, 0.5, 0.71, 1, 1.41, 2, 2.83, 4};
    text_addf(out, "<p class=tints><span class=note>weight w of a token (eq. 6):&nbsp;</span>");
    for (int k = 0; k < 9; k++)
        text_addf(out, "<i class=\"%s\">%s%.3g</i>", tint(w[k]), k == 0 ? "≤ " : k == 8 ? "≥ " : "", w[k]);
    text_addf(out,
              "<span class=note>&nbsp;1 is neutral; weights average 1 over a completion. Point at a token for w and "
              "its entropy H in nats.</span></p>\n");
}

// The text token by token; without pieces, or with other than one weight for each, as it is.
static void tokens(const Json *completion, Text *out) {
    const Json *pieces = json_get(completion, "pieces"), *weight = json_get(completion, "weight");
    const Json *entropy = json_get(completion, "entropy"), *text = json_get(completion, "text");
    text_addf(out, "<p class=\"pre tok\" dir=auto tabindex=0>");
    bool whole = pieces && weight && pieces->type == JSON_ARRAY && weight->type == JSON_ARRAY &&
                 pieces->count == weight->count && pieces->count;
    if (!whole) {
        html_json(out, text);
        text_addf(out, "</p>");
        return;
    }
    const Json *w = weight->child, *h = entropy && entropy->count == pieces->count ? entropy->child : NULL;
    int64_t shown = 0;
    for (const Json *p = pieces->child; p && shown < TOKENS_SHOWN; p = p->next, w = w->next, h = h ? h->next : NULL) {
        shown++;
        if (w->type != JSON_NUMBER) { // a token that does not take part
            html_json(out, p);
            continue;
        }
        const char *class = tint(w->number);
        text_addf(out, "<i%s%s title=\"w %.3g", *class ? " class=" : "", class, w->number);
        if (h && h->type == JSON_NUMBER) text_addf(out, " H %.3g", h->number);
        text_addf(out, "\">");
        html_json(out, p);
        text_addf(out, "</i>");
    }
    if (shown < pieces->count)
        text_addf(out, "<span class=note> [%lld more tokens]</span>", (long long)(pieces->count - shown));
    text_addf(out, "</p>");
}

static void member(const Json *c, double largest, Text *out) {
    double advantage = NAN, total = NAN, number = NAN, count = NAN;
    const Json *right = json_get(c, "right"), *stopped = json_get(c, "stopped"), *reward = json_get(c, "reward");
    number_of(c, "advantage", &advantage), number_of(c, "total", &total), number_of(c, "member", &number);
    number_of(c, "tokens", &count);
    text_addf(out, "<div class=member><p>");
    if (!isnan(number)) text_addf(out, "<span class=note>#%.0f</span> ", number);
    if (!isnan(advantage)) text_addf(out, "<b>A %+.2f</b> ", advantage);
    if (!isnan(total)) text_addf(out, "reward %.3g ", total);
    if (right && right->type == JSON_TRUE) text_addf(out, "<span class=yes>right</span>");
    if (right && right->type == JSON_FALSE) text_addf(out, "<span class=no>wrong</span>");
    double part = largest > 0 && !isnan(advantage) ? 50 * fabs(advantage) / largest : 0;
    text_addf(out, "</p><div class=adv><i class=%s style=\"width:%.1f%%\"></i></div><p class=note>",
              advantage < 0 ? "down" : "up", part);
    html_json(out, json_get(c, "status"));
    for (const Json *v = reward && reward->type == JSON_OBJECT ? reward->child : NULL; v; v = v->next) {
        if (v->type != JSON_NUMBER) continue;
        text_addf(out, " · ");
        html_add(out, v->key, v->key_len);
        text_addf(out, " %.3g", v->number);
    }
    if (!isnan(count)) text_addf(out, " · %.0f tokens", count);
    if (stopped && stopped->type == JSON_FALSE) text_addf(out, ", cut off");
    text_addf(out, "</p>");
    tokens(c, out);
    text_addf(out, "</div>\n");
}

static int by_advantage(const void *a, const void *b) {
    double x = -INFINITY, y = -INFINITY;
    const JsonDoc *p = a, *q = b;
    number_of(p->root, "advantage", &x), number_of(q->root, "advantage", &y);
    return x != y ? (x < y) - (x > y) : (p->root->line > q->root->line) - (p->root->line < q->root->line);
}
static void group_html(Group *g, Text *out) {
    if (!g->read) return;
    qsort(g->docs, (size_t)g->read, sizeof *g->docs, by_advantage);
    const Json *first = g->docs[0].root;
    double level;
    int64_t right = 0;
    for (int64_t k = 0; k < g->read; k++) {
        const Json *v = json_get(g->docs[k].root, "right");
        right += v && v->type == JSON_TRUE;
    }
    text_addf(out, "<div class=group><h3>");
    html_json(out, json_get(first, "task"));
    text_addf(out, " <code>");
    html_json(out, json_get(first, "id"));
    text_addf(out, "</code> <span>step %lld", (long long)g->step);
    if (number_of(first, "level", &level)) text_addf(out, " · level %.0f", level);
    text_addf(out, " · %lld of %lld right%s</span></h3><div class=members>\n", (long long)right, (long long)g->read,
              g->high > g->low ? "" : " · no spread: nothing is learned from it");
    // Best first; of many the best and the worst.
    int64_t left_out = g->read > MEMBERS ? g->read - MEMBERS : 0;
    for (int64_t k = 0; k < g->read; k++)
        if (!left_out || k < MEMBERS / 2 || k >= MEMBERS / 2 + left_out)
            member(g->docs[k].root, fmax(fabs(g->low), fabs(g->high)), out);
    text_addf(out, "</div>");
    if (left_out) text_addf(out, "<p class=note>%lld between these are not shown.</p>", (long long)left_out);
    text_addf(out, "</div>\n");
}

static bool rollouts_of(const char *run, const char *path, int64_t max_groups, Text *out, Err *e) {
    Rollouts r = {.path = path};
    bool ok = log_lines(path, rollout_scan, &r, e);
    if (ok && r.n) {
        choose(&r, max_groups);
        for (int64_t i = 0; i < r.n; i++)
            if (r.g[i].chosen) r.g[i].docs = alloc_or_die((size_t)r.g[i].n, sizeof *r.g[i].docs, "the completions");
        ok = log_lines(path, rollout_load, &r, e);
        int64_t flat = 0;
        for (int64_t i = 0; i < r.n; i++) flat += !(r.g[i].high > r.g[i].low);
        text_addf(out, "<h3>");
        html_text(out, run);
        text_addf(out, "</h3><p class=note>%lld groups, %lld of them without spread.</p>\n", (long long)r.n,
                  (long long)flat);
        for (int64_t i = 0; ok && i < r.n; i++)
            if (r.g[i].chosen) group_html(&r.g[i], out);
    }
    for (int64_t i = 0; i < r.n; i++) {
        for (int64_t k = 0; k < r.g[i].read; k++) json_free(&r.g[i].docs[k]);
        free(r.g[i].docs);
    }
    free(r.g), free(r.of_line);
    return ok;
}

bool report_rollouts(const char *const *runs, int n, int64_t max_groups, Text *out, Err *e) {
    bool ok = true;
    Text all = {0};
    for (int k = 0; ok && k < n && max_groups > 0; k++) {
        char path[1300];
        ok = path_join(path, sizeof path, runs[k], "rollouts.jsonl", e);
        if (ok && file_exists(path)) ok = rollouts_of(runs[k], path, max_groups, &all, e);
    }
    if (ok && all.len) {
        text_addf(out, "<section id=rollouts><h2>Completions of the reinforcement</h2>\n");
        legend(out);
        text_add(out, all.p, all.len);
        text_addf(out,
                  "<p class=note>A: advantage within the group (eq. 3), also as a bar, on one scale within the group. "
                  "Groups come from the first, the middle and the last steps.</p></section>\n");
    }
    text_free(&all);
    return ok;
}
