// report_rollouts.c - the completions of reinforcement runs as a part of a report.
//
// What it is:  rollouts.jsonl as groups side by side: advantage, rewards, status, and each token tinted by its weight of eq. 6.
// What it is not: a statistic over completions; the trainer logs those (report_runs.c draws them).
// Read before: grpo.c (eq. 3 and 6), report_runs.c.  Read next: report.c.
#include "../surgr1.h"

const char *const report_rollouts_style =
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
        if (report_number(doc.root, "advantage", &a)) g->low = fmin(g->low, a), g->high = fmax(g->high, a);
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
    double all = pieces->count;
    report_number(completion, "tokens", &all); // the trainer logs the front of a very long one
    if ((double)shown < all) text_addf(out, "<span class=note> [%.0f more tokens]</span>", all - (double)shown);
    text_addf(out, "</p>");
}

static void member(const Json *c, double largest, Text *out) {
    double advantage = NAN, total = NAN, number = NAN, count = NAN;
    const Json *right = json_get(c, "right"), *stopped = json_get(c, "stopped"), *reward = json_get(c, "reward");
    report_number(c, "advantage", &advantage), report_number(c, "total", &total), report_number(c, "member", &number);
    report_number(c, "tokens", &count);
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
    report_number(p->root, "advantage", &x), report_number(q->root, "advantage", &y);
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
    if (report_number(first, "level", &level)) text_addf(out, " · level %.0f", level);
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
    bool ok = report_log(path, rollout_scan, &r, e);
    if (ok && r.n) {
        choose(&r, max_groups);
        for (int64_t i = 0; i < r.n; i++)
            if (r.g[i].chosen) r.g[i].docs = alloc_or_die((size_t)r.g[i].n, sizeof *r.g[i].docs, "the completions");
        ok = report_log(path, rollout_load, &r, e);
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
