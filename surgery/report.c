// report.c - one HTML file that shows what a model answered and how a run went.
//
// What it is:  predictions (records with a "response") as cards with picture, boxes, reasoning by level and rewards; tables
//              by task; confusion matrices; the papers' own rows where a data set is theirs; the page around these and
//              the parts of report_runs.c and report_rollouts.c. One file, no network, light and dark.
// What it is not: a metric. Cards say right or wrong by reward.c; the numbers of an evaluation come from its metrics.json.
// Read before: answer.c, reward.c, report_runs.c, report_rollouts.c.  Read next: ../commands/report.c.
#include "../surgr1.h"

static void html_view(Text *out, View v) { html_add(out, v.len ? v.p : "", v.len); }

// --------------------------------------------------------------------------------------------------------------- items

typedef struct Item {
    TaskRecord r;
    bool right, parsed, shown;
    Box truth[ANSWER_MAX_BOXES], found[ANSWER_MAX_BOXES];
    int n_truth, n_found;
} Item;
typedef struct Gather {
    const ReportOptions *o;
    Item *items;
    int64_t n, cap;
    RewardOptions surg_r1, surgery_r1;
    struct Picture *pictures; // [n_pictures] by name
    int64_t n_pictures;
} Gather;

static const RewardOptions *rewards_of(const Gather *g, enum Task t) {
    return task_info(t)->kind == ANSWER_VQLA ? &g->surgery_r1 : &g->surg_r1;
}
static void score(const Gather *g, const Item *it, Reward *r) {
    RewardInput in = {.item = &it->r.item,
                      .text = it->r.response,
                      .len = it->r.response_len,
                      .resized_w = it->r.resized_width,
                      .resized_h = it->r.resized_height,
                      .tokens = it->r.tokens};
    reward_score(r, rewards_of(g, it->r.item.task), &in);
}

static bool gather(void *ctx, const Piece *p, Err *e) {
    Gather *g = ctx;
    TaskRecord r;
    if (!task_record_read(&r, p->text, p->len, g->o->predictions, p->line, e)) return false;
    if (!r.response) {
        task_record_free(&r);
        return err_set(e, "E-DS-02", AT(.file = g->o->predictions, .line = p->line, .field = "response"),
                       "expected the completion of a model; found none; do: give the predictions of surgr1 eval");
    }
    if (g->n == g->cap) {
        g->cap = g->cap ? 2 * g->cap : 256;
        g->items = grow_or_die(g->items, (size_t)g->cap, sizeof *g->items, "the predictions");
    }
    Item *it = &g->items[g->n++];
    *it = (Item){.r = r};
    Reward w;
    score(g, it, &w);
    it->right = w.right, it->parsed = w.answer.has_answer && w.reading.ok;
    const TaskItem *t = &it->r.item;
    for (int i = 0; i < t->n_boxes && i < ANSWER_MAX_BOXES; i++) it->truth[it->n_truth++] = t->boxes[i];
    for (int i = 0; i < w.reading.n_boxes; i++) {
        Box b = w.reading.boxes[i];
        bool resized = it->r.resized_width > 0 && t->width > 0;
        it->found[it->n_found++] =
            resized ? box_to_original(b, it->r.resized_width, it->r.resized_height, t->width, t->height) : b;
    }
    return true;
}

// Which items get a card: task by task in turn, wrong ones first, so that a short report still shows every kind of fault.
static void choose(Gather *g) {
    int64_t left = g->o->max_items, next[TASKS][2] = {{0}};
    bool any = true;
    while (left > 0 && any) {
        any = false;
        for (int t = 0; t < TASKS && left > 0; t++)
            for (int right = 0; right < 2 && left > 0; right++) {
                int64_t *i = &next[t][right];
                while (*i < g->n && ((int)g->items[*i].r.item.task != t || g->items[*i].right != (right == 1))) ++*i;
                if (*i == g->n) continue;
                g->items[(*i)++].shown = true, left--, any = true;
            }
    }
}

// -------------------------------------------------------------------------------------------------------------- tables

static void summary(const Gather *g, Text *out) {
    text_addf(out,
              "<section><h2>By task</h2><table><tr><th>task<th>level<th class=n>answers<th class=n>right<th class=n>%%"
              "<th class=n>unparsable</tr>\n");
    for (int t = 0; t < TASKS; t++) {
        int64_t n = 0, right = 0, lost = 0;
        for (int64_t i = 0; i < g->n; i++)
            if ((int)g->items[i].r.item.task == t) n++, right += g->items[i].right, lost += !g->items[i].parsed;
        if (n)
            text_addf(out, "<tr><td>%s<td>%d<td class=n>%lld<td class=n>%lld<td class=n>%.1f<td class=n>%lld</tr>\n",
                      task_info((enum Task)t)->name, task_info((enum Task)t)->level, (long long)n, (long long)right,
                      100. * (double)right / (double)n, (long long)lost);
    }
    text_addf(
        out, "</table><p class=note>Right: the label exactly, a box with IoU of at least 0.5. An answer that cannot be "
             "read is wrong and counted.</p></section>\n");
}

enum { MATRIX = 20 };
typedef struct Labels {
    char name[MATRIX][80];
    int n;
} Labels;
static int label_order(const void *a, const void *b) { return strcmp(a, b); }
static int label_index(Labels *l, View v, bool add) {
    for (int i = 0; i < l->n; i++)
        if (label_equal(view_of(l->name[i]), v)) return i;
    if (!add || l->n == MATRIX || !v.len) return -1;
    snprintf(l->name[l->n], sizeof l->name[0], "%.*s", (int)(v.len < 79 ? v.len : 79), v.p);
    return l->n++;
}

// Truth in rows, answers in columns, for tasks whose answer is one word of at most MATRIX; the last column is all else.
static void confusion(const Gather *g, int task, Text *out) {
    enum AnswerKind kind = task_info((enum Task)task)->kind;
    if (kind != ANSWER_WORD && kind != ANSWER_YESNO && kind != ANSWER_NUMBER) return;
    Labels labels = {.n = 0};
    int64_t counts[MATRIX][MATRIX + 1] = {{0}}, n = 0, outside = 0;
    for (int64_t i = 0; i < g->n; i++) {
        const TaskItem *t = &g->items[i].r.item;
        if ((int)t->task == task && t->answer && label_index(&labels, view_of(t->answer), true) < 0) outside++;
    }
    if (labels.n < 2 || outside) return; // one class, or too many for a page
    qsort(labels.name, (size_t)labels.n, sizeof labels.name[0], label_order);
    for (int64_t i = 0; i < g->n; i++) {
        const Item *it = &g->items[i];
        if ((int)it->r.item.task != task || !it->r.item.answer) continue;
        Reward w;
        score(g, it, &w);
        char number[32];
        View said = w.reading.word;
        if (kind == ANSWER_YESNO) said = view_of(w.reading.yes ? "yes" : "no");
        if (kind == ANSWER_NUMBER)
            snprintf(number, sizeof number, "%lld", (long long)w.reading.number), said = view_of(number);
        int row = label_index(&labels, view_of(it->r.item.answer), false);
        int col = w.reading.ok ? label_index(&labels, said, false) : -1;
        counts[row][col < 0 ? labels.n : col]++, n++;
    }
    text_addf(out, "<h3>%s</h3><table class=matrix><tr><th>truth \\ answer", task_info((enum Task)task)->name);
    for (int c = 0; c <= labels.n; c++) {
        text_addf(out, "<th>");
        html_text(out, c < labels.n ? labels.name[c] : "(else)");
    }
    text_addf(out, "</tr>\n");
    for (int r = 0; r < labels.n; r++) {
        int64_t sum = 0;
        for (int c = 0; c <= labels.n; c++) sum += counts[r][c];
        text_addf(out, "<tr><th>");
        html_text(out, labels.name[r]);
        for (int c = 0; c <= labels.n; c++)
            text_addf(out, "<td class=n style=\"--a:%.2f\"%s>%lld", sum ? (double)counts[r][c] / (double)sum : 0,
                      r == c ? " data-d" : "", (long long)counts[r][c]);
        text_addf(out, "</tr>\n");
    }
    text_addf(out, "</table>\n");
}

// metrics.json as it is: objects become tables, one level after the other.
static void json_table(const Json *v, int depth, Text *out) {
    if (v->type != JSON_OBJECT && v->type != JSON_ARRAY) {
        if (v->type == JSON_STRING) html_add(out, v->str, v->len);
        else if (v->type == JSON_NUMBER && !v->integer) text_addf(out, "%.4g", v->number);
        else {
            Text t = {0};
            json_print(&t, v);
            html_add(out, t.p, t.len);
            text_free(&t);
        }
        return;
    }
    if (depth > 6) return;
    text_addf(out, "<table>");
    int64_t i = 0;
    for (const Json *c = v->child; c && i < 200; c = c->next, i++) {
        text_addf(out, "<tr><th>");
        if (c->key) html_add(out, c->key, c->key_len);
        else text_addf(out, "%lld", (long long)i + 1);
        text_addf(out, "<td>");
        json_table(c, depth + 1, out);
        text_addf(out, "</tr>\n");
    }
    text_addf(out, "</table>");
}

// What the papers report on their own data (arXiv 2603.12430, tables 1 and 4 to 7; arXiv 2506.19469), shown beside answers
// about the same data set. Percent, but for Surgery-R1's shares.
static const struct {
    const char *dataset, *metric, *row;
} paper[] = {
    {"cholect50", "accuracy of instrument / verb / target / triplet",
     "Surg-R1 86.50 / 72.15 / 57.49 / 51.69; Qwen2.5-VL-7B 10.21 / 4.90 / 5.54 / 0.35"},
    {"cholec80", "accuracy / recall / precision / Jaccard",
     "Surg-R1 80.90 / 67.26 / 71.81 / 55.87; Qwen2.5-VL-7B 30.45 / 16.69 / 26.17 / 7.73"},
    {"sar-rarp50", "accuracy / recall / precision / Jaccard",
     "Surg-R1 48.10 / 29.95 / 45.49 / 22.55; Qwen2.5-VL-7B 31.10 / 12.50 / 3.89 / 3.89, which is a constant answer"},
    {"multibypass140", "accuracy / recall / precision / Jaccard",
     "Surg-R1 49.94 / 50.74 / 55.24 / 32.02; Qwen2.5-VL-7B 8.29 / 8.17 / 2.53 / 1.72"},
    {"endovis18-vqla", "accuracy / F-score / mIoU",
     "Surgery-R1 0.7356 / 0.4576 / 0.8721 (the published mIoU adds one to normalised coordinates)"},
    {"endovis17-vqla", "accuracy / F-score / mIoU", "Surgery-R1 0.5672 / 0.4422 / 0.8422 (the same)"},
};
static void papers(const Gather *g, Text *out) {
    bool begun = false;
    for (size_t k = 0; k < sizeof paper / sizeof *paper; k++) {
        bool here = false;
        for (int64_t i = 0; i < g->n && !here; i++) {
            const char *d = g->items[i].r.item.dataset;
            here = d && label_equal(view_of(d), view_of(paper[k].dataset));
        }
        if (!here) continue;
        if (!begun)
            text_addf(out, "<section><h2>The papers' rows</h2><table><tr><th>data<th>metric<th>published</tr>\n");
        begun = true;
        text_addf(out, "<tr><td>%s<td>%s<td>%s</tr>\n", paper[k].dataset, paper[k].metric, paper[k].row);
    }
    if (begun)
        text_addf(out, "</table><p class=note>Their subsets are not published; compare with care.</p></section>\n");
}

// --------------------------------------------------------------------------------------------------------------- cards

// Every distinct picture is in the page once, as an <image> in front of the first card that shows it; cards <use> it and
// draw their boxes over it. A picture that cannot be read is said in its cards, not fatal.
typedef struct Picture {
    const char *name;
    int w, h;    // as shown; 0: not tried yet
    char *fault; // instead of it
} Picture;

static int by_name(const void *a, const void *b) {
    return strcmp(((const Picture *)a)->name, ((const Picture *)b)->name);
}
static void pictures_of(Gather *g) {
    g->pictures = alloc_or_die((size_t)g->n + 1, sizeof *g->pictures, "the pictures");
    for (int64_t i = 0; i < g->n; i++) {
        const char *name = g->items[i].r.item.image;
        if (g->items[i].shown && name) g->pictures[g->n_pictures++].name = name;
    }
    int64_t n = 0;
    qsort(g->pictures, (size_t)g->n_pictures, sizeof *g->pictures, by_name);
    for (int64_t i = 0; i < g->n_pictures; i++)
        if (!n || strcmp(g->pictures[n - 1].name, g->pictures[i].name)) g->pictures[n++] = g->pictures[i];
    g->n_pictures = n;
}

// The bytes are PNG or JPEG, whichever is shorter: smooth drawings and photographs want different ones.
static bool picture_encode(const ReportOptions *o, Picture *p, const char *root, int64_t number, Text *out, Err *e) {
    Image im;
    if (!image_read_beneath(&im, root, p->name, AT(.file = o->predictions), (ImageOptions){0}, e)) return false;
    double longer = im.width > im.height ? im.width : im.height, scale = fmin(1, (double)o->max_side / longer);
    int w = (int)fmax(1, rint(im.width * scale)), h = (int)fmax(1, rint(im.height * scale));
    uint8_t *rgb = alloc_or_die((size_t)w * (size_t)h, 3, "a picture of the report"), *png = NULL, *jpeg = NULL;
    size_t png_size, jpeg_size;
    image_resize_bicubic(rgb, w, h, im.rgb, im.width, im.height);
    image_free(&im);
    bool ok = image_encode_png(&png, &png_size, rgb, w, h, p->name, e) &&
              image_encode_jpeg(&jpeg, &jpeg_size, rgb, w, h, 90, false, p->name, e);
    if (ok) {
        p->w = w, p->h = h;
        text_addf(out,
                  "<svg class=defs aria-hidden=true><image id=p%lld width=%d height=%d href=\"data:image/%s;base64,",
                  (long long)number, w, h, jpeg_size < png_size ? "jpeg" : "png");
        text_add_base64(out, jpeg_size < png_size ? jpeg : png, jpeg_size < png_size ? jpeg_size : png_size);
        text_addf(out, "\"/></svg>\n");
    }
    free(rgb), free(png), free(jpeg);
    return ok;
}
static const Picture *picture(const Gather *g, const char *name, const char *root, Text *out) {
    Picture *p = bsearch(&(Picture){.name = name}, g->pictures, (size_t)g->n_pictures, sizeof *p, by_name);
    Err e = {0};
    if (p->w || p->fault || picture_encode(g->o, p, root, p - g->pictures, out, &e)) return p;
    char line[2500];
    Text t = {0};
    text_addf(&t, "%s", err_line(&e, "error", line, sizeof line));
    p->fault = t.p;
    return p;
}

static void boxes_svg(const Box *b, int n, double sx, double sy, const char *class, Text *out) {
    for (int i = 0; i < n; i++) {
        text_addf(out, "<rect class=%s x=%.1f y=%.1f width=%.1f height=%.1f><title>", class, b[i].x1 * sx, b[i].y1 * sy,
                  fmax(0, b[i].x2 - b[i].x1) * sx, fmax(0, b[i].y2 - b[i].y1) * sy);
        html_text(out, b[i].label);
        text_addf(out, "</title></rect>");
    }
}

static void reasoning(const Answer *a, Text *out) {
    bool any = false;
    for (int k = 0; k < 3; k++) any |= a->level[k].found;
    if (a->preamble.len && any) {
        text_addf(out, "<p class=pre>");
        html_view(out, a->preamble);
        text_addf(out, "</p>");
    }
    for (int k = 0; k < 3; k++) {
        if (!a->level[k].found) continue;
        text_addf(out, "<details open><summary>Level %d</summary><p class=pre>", k + 1);
        html_view(out, view_trim(a->level[k].text));
        text_addf(out, "</p></details>");
    }
    if (any || !a->think.len) return;
    text_addf(out, "<details open><summary>Reasoning without levels</summary><p class=pre>");
    html_view(out, a->think);
    text_addf(out, "</p></details>");
}

enum { SHOWN_BYTES = 20000 }; // of a completion that is not of the right form
static void card(const Gather *g, const Item *it, const char *root, Text *out) {
    const TaskItem *t = &it->r.item;
    Reward w;
    score(g, it, &w);
    const Picture *p = t->image ? picture(g, t->image, root, out) : NULL;
    text_addf(out, "<article data-task=%s data-state=%s tabindex=0><header><b>%s</b> <span class=%s>%s</span> <code>",
              task_info(t->task)->name,
              !it->parsed ? "lost"
              : it->right ? "right"
                          : "wrong",
              task_info(t->task)->name, it->right ? "yes" : "no",
              !it->parsed ? "unparsable"
              : it->right ? "right"
                          : "wrong");
    html_text(out, t->id);
    text_addf(out, "</code></header><div class=body>");
    if (p && p->fault) {
        text_addf(out, "<p class=\"note pic\">No picture: ");
        html_text(out, p->fault);
        text_addf(out, "</p>");
    } else if (p) {
        text_addf(out,
                  "<svg class=pic viewBox=\"0 0 %d %d\" style=\"width:%dpx\" role=img aria-label=picture><use "
                  "href=\"#p%lld\"/>",
                  p->w, p->h, p->w, (long long)(p - g->pictures));
        if (t->width > 0 && t->height > 0) {
            double sx = (double)p->w / (double)t->width, sy = (double)p->h / (double)t->height;
            boxes_svg(it->truth, it->n_truth, sx, sy, "truth", out);
            boxes_svg(it->found, it->n_found, sx, sy, "found", out);
        }
        text_addf(out, "</svg>");
    }
    text_addf(out, "<div class=text><p class=q>");
    html_text(out, it->r.prompt ? it->r.prompt : t->question);
    text_addf(out, "</p>");
    reasoning(&w.answer, out);
    text_addf(out, "<p><b>answer</b> <span class=pre>");
    if (w.answer.has_answer) html_view(out, w.answer.answer);
    else text_addf(out, "(none)");
    text_addf(out, "</span></p>");
    if (w.answer.status != ANSWER_OK && it->r.response_len) {
        text_addf(out, "<details><summary>the whole completion</summary><p class=pre>");
        html_add(out, it->r.response, it->r.response_len < SHOWN_BYTES ? it->r.response_len : SHOWN_BYTES);
        text_addf(out, "%s</p></details>", it->r.response_len > SHOWN_BYTES ? " [cut]" : "");
    }
    text_addf(out, "<p><b>label</b> ");
    html_text(out, t->answer);
    for (int i = 0; !t->answer && i < it->n_truth; i++) {
        text_addf(out, "%s[%g, %g, %g, %g] ", i ? ", " : "", it->truth[i].x1, it->truth[i].y1, it->truth[i].x2,
                  it->truth[i].y2);
        html_text(out, it->truth[i].label);
    }
    text_addf(out, "</p><p class=note>%s", answer_status_names[w.answer.status]);
    if (!isnan(w.iou)) text_addf(out, " · IoU %.2f", w.iou);
    for (int k = 0; k < REWARD_TERMS; k++)
        if (!isnan(w.term[k])) text_addf(out, " · %s %.3g", reward_term_names[k], w.term[k]);
    text_addf(out, " · reward %.3g</p></div></div></article>\n", w.total);
}

// ---------------------------------------------------------------------------------------------------------------- page

#define LIGHT                                                                                                          \
    "--bg:#fbfaf8;--fg:#1d1f23;--dim:#62676f;--line:#dcd9d2;--card:#fff;--yes:#17803d;--no:#b3261e;--accent:#0b63a5;"  \
    "--more:#f08a1c;--less:#2f7fd0;--s0:#0b63a5;--s1:#c2410c;--s2:#17803d;--s3:#8b3fb0;--s4:#946c00;--s5:#c2185b;"     \
    "--s6:#0b7a78;--s7:#62676f"
#define DARK                                                                                                           \
    "--bg:#15171a;--fg:#e6e4df;--dim:#9aa0a8;--line:#33373d;--card:#1d2024;--yes:#57c27e;--no:#ff8a80;--accent:#"      \
    "6cb6f0;"                                                                                                          \
    "--more:#e8862a;--less:#3f8fe0;--s0:#6cb6f0;--s1:#ff9e64;--s2:#57c27e;--s3:#c792ea;--s4:#e0c050;--s5:#ff7eb6;"     \
    "--s6:#4dd0d3;--s7:#9aa0a8"
static const char *const style =
    ":root{color-scheme:light;" LIGHT "}@media(prefers-color-scheme:dark){:root:not(.light){color-scheme:dark;" DARK
    "}}"
    ":root.dark{color-scheme:dark;" DARK "}"
    "body{margin:0 auto;max-width:1080px;padding:24px;background:var(--bg);color:var(--fg);"
    "font:15px/1.5 system-ui,sans-serif}@media(max-width:600px){body{padding:12px}}"
    "h1{font-size:24px;margin:0;overflow-wrap:anywhere}h2{font-size:18px;margin:28px 0 8px}"
    "h3{font-size:15px;margin:16px 0 4px}a{color:var(--accent)}section{overflow-x:auto}"
    "table{border-collapse:collapse;margin:4px 0}td,th{border:1px solid var(--line);padding:3px 8px;text-align:left;"
    "font-weight:400}th{color:var(--dim)}.n{text-align:right;font-variant-numeric:tabular-nums}"
    ".matrix td{background:color-mix(in srgb,var(--no) calc(var(--a)*45%),transparent)}"
    ".matrix td[data-d]{background:color-mix(in srgb,var(--yes) calc(var(--a)*45%),transparent)}"
    ".note{color:var(--dim);font-size:13px}.toc{display:flex;flex-wrap:wrap;gap:4px 16px}"
    "article{background:var(--card);border:1px solid var(--line);border-radius:8px;margin:10px 0;padding:10px 14px;"
    "overflow-wrap:anywhere}article:focus{outline:2px solid var(--accent)}article[hidden]{display:none}"
    ".body{display:flex;gap:16px;flex-wrap:wrap}.pic{align-self:flex-start;max-width:100%;border-radius:4px}"
    ".defs{position:absolute;width:0;height:0}"
    ".pic rect{fill:none;stroke-width:2;vector-effect:non-scaling-stroke;pointer-events:all}"
    ".truth{stroke:#2fbf71}.found{stroke:#ffb000;stroke-dasharray:5 3}.text{flex:1;min-width:min(280px,100%)}"
    ".pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:2px 0}.q{color:var(--dim);overflow-wrap:anywhere}"
    ".yes{color:var(--yes)}.no{color:var(--no)}.bar{position:sticky;top:0;background:var(--bg);padding:8px 0;"
    "border-bottom:1px solid var(--line);display:flex;gap:10px;flex-wrap:wrap;align-items:center;z-index:1}"
    "select,button{font:inherit;color:inherit;background:var(--card);border:1px solid var(--line);border-radius:6px;"
    "padding:3px 8px}";
static const char *const script =
    "const "
    "all=[...document.querySelectorAll('article')],task=document.querySelector('#task'),state=document.querySelector('#"
    "state'),"
    "count=document.querySelector('#count');let shown=all;"
    "function filter(){shown=all.filter(a=>{const "
    "ok=(!task.value||a.dataset.task===task.value)&&(!state.value||a.dataset.state===state.value);"
    "a.hidden=!ok;return ok});count.textContent=shown.length+' of '+all.length}"
    "task.onchange=state.onchange=filter;filter();"
    "function move(d){if(!shown.length)return;const i=shown.indexOf(document.activeElement);"
    "const "
    "a=shown[Math.max(0,Math.min(shown.length-1,i<0?0:i+d))];a.focus({preventScroll:true});a.scrollIntoView({block:'"
    "center'})}"
    "addEventListener('keydown',e=>{if(e.target.tagName==='SELECT')return;"
    "if(e.key==='ArrowRight'||e.key==='j'){move(1);e.preventDefault()}if(e.key==='ArrowLeft'||e.key==='k'){move(-1);e."
    "preventDefault()}});";
static const char *const theme_script =
    "document.querySelector('#theme').onclick=()=>{const r=document.documentElement,dark=r.classList.contains('dark')||"
    "(!r.classList.contains('light')&&matchMedia('(prefers-color-scheme:dark)').matches);r.className=dark?'light':'"
    "dark'}";

static void navigation(const Gather *g, Text *out) {
    text_addf(out, "<nav class=bar><select id=task aria-label=task><option value=\"\">all tasks");
    for (int t = 0; t < TASKS; t++) {
        bool any = false;
        for (int64_t i = 0; i < g->n && !any; i++) any = g->items[i].shown && (int)g->items[i].r.item.task == t;
        if (any) text_addf(out, "<option>%s", task_info((enum Task)t)->name);
    }
    text_addf(out, "</select><select id=state aria-label=\"right or wrong\"><option value=\"\">right and wrong<option "
                   "value=right>right"
                   "<option value=wrong>wrong<option value=lost>unparsable</select><span id=count></span>"
                   "<span class=note>arrow keys: next, previous · <span style=\"color:#2fbf71\">—</span> true box "
                   "<span style=\"color:#ffb000\">- -</span> the model's</span></nav>\n");
}

// Everything about single answers: tables by task, confusion, cards.
static bool answers(Gather *g, Text *out, Err *e) {
    const ReportOptions *o = g->o;
    char folder[1200];
    if (!o->image_root && !path_dir(folder, sizeof folder, o->predictions, e)) return false;
    text_addf(out, "<h2 id=answers>Answers</h2>\n");
    summary(g, out);
    papers(g, out);
    text_addf(out, "<section><details><summary>Confusion</summary>");
    for (int t = 0; t < TASKS; t++) confusion(g, t, out);
    text_addf(out, "</details></section>\n");
    navigation(g, out);
    pictures_of(g);
    double started = clock_seconds();
    for (int64_t i = 0; i < g->n; i++) {
        progress("cards", i, g->n, started);
        if (g->items[i].shown) card(g, &g->items[i], o->image_root ? o->image_root : folder, out);
    }
    progress("cards", g->n, g->n, started);
    text_addf(out, "<script>%s</script>", script);
    return true;
}

static bool metrics(const char *file, Text *out, Err *e) {
    JsonDoc doc;
    if (!json_read(&doc, file, LIMIT_CONFIG_BYTES, (JsonOptions){.refuse_duplicates = true}, e)) return false;
    text_addf(out, "<section id=metrics><h2>Metrics</h2>");
    json_table(doc.root, 0, out);
    text_addf(out, "</section>\n");
    json_free(&doc);
    return true;
}

static bool page(Gather *g, Text *out, Err *e) {
    const ReportOptions *o = g->o;
    enum { PARTS = 5 };
    static const char *const names[PARTS][2] = {{"table", "ablations"},
                                                {"curves", "curves"},
                                                {"rollouts", "completions"},
                                                {"metrics", "metrics"},
                                                {"answers", "answers"}};
    Text part[PARTS] = {{0}};
    bool ok = true;
    for (int k = 0; ok && k < o->n_tables; k++) ok = report_table(o->tables[k], k, &part[0], e);
    ok = ok && report_curves(o->runs, o->n_runs, &part[1], e) &&
         report_rollouts(o->runs, o->n_runs, o->max_groups, &part[2], e) &&
         (!o->metrics || metrics(o->metrics, &part[3], e)) && (!g->n || answers(g, &part[4], e));
    text_addf(out, "<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport "
                   "content=\"width=device-width\"><title>");
    html_text(out, o->title);
    text_addf(
        out,
        "</title><style>%s%s%s</style></head><body><button id=theme style=\"float:right\">light / dark</button><h1>",
        style, report_runs_style, report_rollouts_style);
    html_text(out, o->title);
    text_addf(out, "</h1><p class=\"note toc\"><span>surgr1 " SURGR1_VERSION "</span>");
    for (int k = 0; k < PARTS; k++)
        if (part[k].len) text_addf(out, "<a href=\"#%s\">%s</a>", names[k][0], names[k][1]);
    text_addf(out, "</p>\n");
    for (int k = 0; k < PARTS; k++) {
        if (part[k].len) text_add(out, part[k].p, part[k].len);
        text_free(&part[k]);
    }
    text_addf(out, "<script>%s</script></body></html>\n", theme_script);
    return ok;
}

bool report_write(const ReportOptions *o, int64_t *cards, Err *e) {
    Gather g = {.o = o};
    Text out = {0};
    CHECK(reward_preset(&g.surg_r1, "surg-r1") && reward_preset(&g.surgery_r1, "surgery-r1"), "a preset is not there");
    bool ok = !o->predictions || pieces_read(o->predictions, NULL, gather, &g, e);
    if (ok) choose(&g);
    ok = ok && page(&g, &out, e) && file_write_atomic(o->out, out.p, out.len, e);
    *cards = 0;
    for (int64_t i = 0; i < g.n; i++) *cards += g.items[i].shown, task_record_free(&g.items[i].r);
    for (int64_t i = 0; i < g.n_pictures; i++) free(g.pictures[i].fault);
    free(g.items), free(g.pictures), text_free(&out);
    return ok;
}
