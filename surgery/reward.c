// reward.c - what a completion is worth: the rewards of both papers, term by term.
//
// What it is:  Surg-R1's eq. 4 (arXiv 2603.12430), r = w_f 1[format] + w_a 1[answer] + w_s 1[structure]; Surgery-R1's
//              visual grounding, linguistic answer and multimodal coherence (arXiv 2506.19469), which its paper names
//              without formulas: those here are this project's definitions; shaping terms of the literature.
// What it is not: an average over completions, an advantage (grpo.c) or a table (eval.c).
// Read before: answer.c.  Read next: ../surgr1.h, section surgery/eval.c.
//
// Nothing is repaired on the way to a score. Boxes come in pixels of the resized picture and are mapped to the file's;
// one with its corners in the wrong order or with no part in the picture is worth 0, and is never swapped or clamped: a
// repair would pay for malformed output.
#define _GNU_SOURCE // memmem
#include "../surgr1.h"

const char *const reward_term_names[REWARD_TERMS] = {"format",    "answer",   "structure", "grounding", "language",
                                                     "coherence", "overlong", "cosine",    "repetition"};

bool reward_preset(RewardOptions *o, const char *name) {
    *o = (RewardOptions){
        .structure_part = 0.1, .box_threshold = 0.5, .cosine = {1, 0.5, -0.5, 0}, .ngram = 3, .repetition_penalty = -1};
    if (!strcmp(name, "surg-r1")) {
        o->weight[REWARD_FORMAT] = 1, o->weight[REWARD_ANSWER] = 1, o->weight[REWARD_STRUCTURE] = 0.5;
        return true;
    }
    o->surgery_r1 = true;
    o->weight[REWARD_FORMAT] = 0.5, o->weight[REWARD_GROUNDING] = 1;
    o->weight[REWARD_LANGUAGE] = 1, o->weight[REWARD_COHERENCE] = 1;
    return !strcmp(name, "surgery-r1");
}

// ----------------------------------------------------------------------------------------------------------- boxes
static bool box_counts(const Box *b, int64_t width, int64_t height) { // without a size only the corners can be judged
    if (width > 0 && height > 0) return box_is_valid(*b, width, height);
    return b->x1 < b->x2 && b->y1 < b->y2 && b->x2 > 0 && b->y2 > 0;
}

static double box_value(const Box *truth, const Box *found, const RewardOptions *o) {
    static const double tiers[3] = {0.3, 0.5, 0.7};
    double iou = box_iou_strict(truth, found), off = 0, value = 0;
    switch (o->box) {
    case BOX_IOU: return iou;
    case BOX_IOU50: return o->surgery_r1 ? iou > o->box_threshold : iou >= o->box_threshold;
    case BOX_TIERED:
        for (int i = 0; i < 3; i++) value += (iou >= tiers[i]) / 3.0;
        return value;
    case BOX_L1:
        off = fmax(fmax(fabs(truth->x1 - found->x1), fabs(truth->y1 - found->y1)),
                   fmax(fabs(truth->x2 - found->x2), fabs(truth->y2 - found->y2)));
        return off < 10;
    case BOX_GIOU: return (1 + box_giou(truth, found)) / 2;
    case BOX_GIOU50: return box_giou(truth, found) >= o->box_threshold;
    }
    return 0;
}

// Kuhn-Munkres with potentials, O(n^3), on a square of values padded with zeros: match[i] is the column of row i.
static void assign(int n, double value[ANSWER_MAX_BOXES][ANSWER_MAX_BOXES], int *match) {
    double row[ANSWER_MAX_BOXES + 1] = {0}, column[ANSWER_MAX_BOXES + 1] = {0}; // potentials; index 0: no one
    int owner[ANSWER_MAX_BOXES + 1] = {0}, way[ANSWER_MAX_BOXES + 1] = {0};     // of a column; the path back
    for (int i = 1; i <= n; i++) {
        double slack[ANSWER_MAX_BOXES + 1];
        bool used[ANSWER_MAX_BOXES + 1] = {0};
        for (int j = 0; j <= n; j++) slack[j] = INFINITY;
        int at = 0;
        owner[0] = i;
        do {
            used[at] = true;
            int who = owner[at], next = 0;
            double step = INFINITY;
            for (int j = 1; j <= n; j++) {
                if (used[j]) continue;
                double cost = -value[who - 1][j - 1] - row[who] - column[j];
                if (cost < slack[j]) slack[j] = cost, way[j] = at;
                if (slack[j] < step) step = slack[j], next = j;
            }
            for (int j = 0; j <= n; j++) {
                if (used[j]) row[owner[j]] += step, column[j] -= step;
                else slack[j] -= step;
            }
            at = next;
        } while (owner[at]);
        for (; at; at = way[at]) owner[at] = owner[way[at]];
    }
    for (int j = 1; j <= n; j++) match[owner[j] - 1] = j - 1;
}

double boxes_match(const Box *truth, int n_truth, const Box *found, int n_found, int64_t width, int64_t height,
                   const RewardOptions *o) {
    static _Thread_local double value[ANSWER_MAX_BOXES][ANSWER_MAX_BOXES];
    int n = n_truth > n_found ? n_truth : n_found, match[ANSWER_MAX_BOXES];
    CHECK(n <= ANSWER_MAX_BOXES, "at most %d boxes can be matched, not %d", ANSWER_MAX_BOXES, n);
    if (!n) return 1;
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++) {
            bool pair = i < n_truth && j < n_found && box_counts(&found[j], width, height) &&
                        (!truth[i].label[0] || label_equal(view_of(found[j].label), view_of(truth[i].label)));
            double v = pair ? box_value(&truth[i], &found[j], o) : 0;
            value[i][j] = v > 0 ? v : 0; // a NaN must not enter the search
        }
    assign(n, value, match);
    double sum = 0;
    for (int i = 0; i < n_truth; i++) sum += value[i][match[i]];
    return sum / n;
}

// ----------------------------------------------------------------------------------------------------------- words
// The 18 answers of EndoVis-18-VQA and EndoVis-17-VQLA.
static const char *const endovis_labels[] = {"kidney",
                                             "Idle",
                                             "Grasping",
                                             "Retraction",
                                             "Tissue_Manipulation",
                                             "Tool_Manipulation",
                                             "Cutting",
                                             "Cauterization",
                                             "Suction",
                                             "Looping",
                                             "Suturing",
                                             "Clipping",
                                             "Staple",
                                             "Ultrasound_Sensing",
                                             "left-top",
                                             "right-top",
                                             "left-bottom",
                                             "right-bottom"};

static bool is_word_byte(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || (c & 0x80);
}

// The words of v in lower case, a blank around each: " retracts the liver ".
static void add_words(View v, Text *out) {
    text_add(out, " ", 1);
    for (size_t i = 0; i < v.len; i++) {
        char c = v.p[i] >= 'A' && v.p[i] <= 'Z' ? (char)(v.p[i] + 32) : v.p[i];
        if (is_word_byte(c)) text_add(out, &c, 1);
        else if (out->p[out->len - 1] != ' ') text_add(out, " ", 1);
    }
    if (out->p[out->len - 1] != ' ') text_add(out, " ", 1);
}

static bool next_word(View *rest, View *word) { // of what add_words wrote
    while (rest->len && rest->p[0] == ' ') rest->p++, rest->len--;
    const char *end = rest->len ? memchr(rest->p, ' ', rest->len) : NULL;
    if (!end) return false;
    *word = (View){rest->p, (size_t)(end - rest->p)};
    rest->p += word->len, rest->len -= word->len;
    return true;
}

// F1 of the words two texts share, each as often as it stands in both.
static double token_f1(View a, View label) {
    enum { MOST = 256 }; // words of a label
    View wanted[MOST], word;
    bool taken[MOST] = {0};
    Text x = {0}, y = {0};
    int n = 0;
    int64_t words = 0, shared = 0;
    add_words(a, &x), add_words(label, &y);
    for (View rest = {y.p, y.len}; n < MOST && next_word(&rest, &wanted[n]);) n++;
    for (View rest = {x.p, x.len}; words < 4 * MOST && next_word(&rest, &word); words++)
        for (int i = 0; i < n; i++)
            if (!taken[i] && wanted[i].len == word.len && !memcmp(wanted[i].p, word.p, word.len)) {
                taken[i] = true, shared++;
                break;
            }
    text_free(&x), text_free(&y);
    return shared ? 2.0 * (double)shared / (double)(words + n) : 0; // 2 P R / (P + R)
}

static bool named_in(View text, View name) {
    Text t = {0}, n = {0};
    add_words(text, &t), add_words(name, &n);
    bool found = n.len > 1 && memmem(t.p, t.len, n.p, n.len);
    text_free(&t), text_free(&n);
    return found;
}

// --------------------------------------------------------------------------------------------------------- shaping
static int by_value(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

// (1 - different n-grams / n-grams) * penalty, over token ids or lower-cased words between white space. n-grams are told
// apart by 64-bit hashes.
static double repetition(const RewardOptions *o, const RewardInput *in) {
    int64_t n = 0, most = in->ids ? in->tokens : (int64_t)in->len / 2 + 1;
    uint64_t *gram = alloc_or_die((size_t)(most > 0 ? most : 1), sizeof *gram, "n-grams of a completion");
    if (in->ids) {
        for (; n < in->tokens; n++) gram[n] = (uint64_t)(uint32_t)in->ids[n] + 1;
    } else {
        bool inside = false;
        for (size_t i = 0; i < in->len; i++) {
            char c = in->text[i] >= 'A' && in->text[i] <= 'Z' ? (char)(in->text[i] + 32) : in->text[i];
            bool space = c == ' ' || (c >= '\t' && c <= '\r');
            if (!space && !inside) gram[n++] = UINT64_C(14695981039346656037);
            if (!space) gram[n - 1] = (gram[n - 1] ^ (unsigned char)c) * UINT64_C(1099511628211);
            inside = !space;
        }
    }
    int64_t grams = n - o->ngram + 1, different = 0;
    for (int64_t i = 0; i < grams; i++) { // in place: what is read lies at i and behind it
        uint64_t h = UINT64_C(0x9E3779B97F4A7C15);
        for (int64_t k = 0; k < o->ngram; k++) {
            h = (h ^ gram[i + k]) * UINT64_C(0xBF58476D1CE4E5B9);
            h ^= h >> 31;
        }
        gram[i] = h;
    }
    if (grams > 0) qsort(gram, (size_t)grams, sizeof *gram, by_value);
    for (int64_t i = 0; i < grams; i++) different += !i || gram[i] != gram[i - 1];
    free(gram);
    return different < grams ? (1 - (double)different / (double)grams) * o->repetition_penalty : 0;
}

static void shaping(Reward *r, const RewardOptions *o, const RewardInput *in) {
    double L = (double)o->max_tokens, C = (double)o->overlong_buffer, y = (double)in->tokens;
    if (o->max_tokens > 0 && in->tokens >= 0) {
        // DAPO (arXiv 2503.14476): 0 up to L - C, falling to -1 at L, -1 beyond
        r->term[REWARD_OVERLONG] = y > L ? -1 : y <= L - C ? 0 : (L - C - y) / C;
        // arXiv 2502.03373: right answers should be short, wrong ones are let think
        const double *ends = r->right ? o->cosine : o->cosine + 2;
        r->term[REWARD_COSINE] = ends[1] + (ends[0] - ends[1]) * (1 + cos(acos(-1) * fmin(y / L, 1))) / 2;
    }
    if (o->ngram > 0) r->term[REWARD_REPETITION] = repetition(o, in);
}

// ----------------------------------------------------------------------------------------------------------- terms
static bool has_boxes(enum AnswerKind k) { return k == ANSWER_BOX || k == ANSWER_BOXES || k == ANSWER_VQLA; }

// What is known of the truth: the label, the boxes. A list of boxes may be known to be empty.
static bool label_known(const TaskItem *t) {
    enum AnswerKind k = task_info(t->task)->kind;
    return k != ANSWER_BOX && k != ANSWER_BOXES && t->answer && *t->answer;
}
static bool boxes_known(const TaskItem *t) {
    enum AnswerKind k = task_info(t->task)->kind;
    return has_boxes(k) && (k == ANSWER_BOXES ? t->n_boxes >= 0 : t->n_boxes > 0);
}

static double structure(const Answer *a, const TaskItem *t, enum StructureMode mode) {
    int level = task_info(t->task)->level;
    if (mode == STRUCTURE_HEADER && !level) return NAN; // its level is not known
    if (!a->think_closed) return 0;
    if (mode == STRUCTURE_HEADER) return a->headers >= level;
    return a->think.len && memmem(a->think.p, a->think.len, "Level 1", 7);
}

static double quadrant(const Reading *answer, const Box *box, const TaskItem *t) { // NaN when no place is asked for
    static const char *const names[4] = {"left-top", "right-top", "left-bottom", "right-bottom"};
    if (label_lookup(view_of(t->answer), names, 4) < 0 || t->width < 1 || t->height < 1) return NAN;
    if (!box || !box_counts(box, t->width, t->height)) return 0;
    int right = box->x1 + box->x2 >= (double)t->width, bottom = box->y1 + box->y2 >= (double)t->height;
    return label_equal(answer->word, view_of(names[2 * bottom + right]));
}

static double trace(const Reward *r) { // both are named in the thought
    Box said[ANSWER_MAX_BOXES];
    const Box *b = &r->reading.boxes[0];
    int n = answer_boxes(r->answer.think.p, r->answer.think.len, said, ANSWER_MAX_BOXES);
    if (r->reading.n_boxes != 1 || !r->answer.think_closed || !named_in(r->answer.think, r->reading.word)) return 0;
    for (int i = 0; i < n; i++)
        if (said[i].x1 == b->x1 && said[i].y1 == b->y1 && said[i].x2 == b->x2 && said[i].y2 == b->y2) return 1;
    return 0;
}

static double language(const Reward *r, const RewardOptions *o, const RewardInput *in, bool right) {
    const TaskItem *t = in->item;
    bool word = r->reading.kind == ANSWER_WORD || r->reading.kind == ANSWER_VQLA;
    if (right || !word || !r->reading.ok) return right;
    if (o->language == LANGUAGE_TOKEN_F1) return token_f1(r->reading.word, view_of(t->answer));
    const char *const *labels = in->labels ? in->labels : t->n_choices ? t->choices : endovis_labels;
    int n = in->labels ? in->n_labels : t->n_choices ? t->n_choices : (int)(sizeof endovis_labels / sizeof(char *));
    return o->language == LANGUAGE_IN_VOCAB && label_lookup(r->reading.word, labels, n) >= 0 ? 0.1 : 0;
}

static double coherence(const Reward *r, const RewardOptions *o, const RewardInput *in, const Box *box, bool right) {
    switch (o->coherence) {
    case COHERENCE_JOINT: return right && r->iou >= 0.5;
    case COHERENCE_PRODUCT: return r->term[REWARD_LANGUAGE] * r->iou;
    case COHERENCE_QUADRANT: return quadrant(&r->reading, box, in->item);
    case COHERENCE_TRACE: return trace(r);
    }
    return 0;
}

void reward_score(Reward *r, const RewardOptions *o, const RewardInput *in) {
    const TaskItem *t = in->item;
    enum AnswerKind kind = task_info(t->task)->kind;
    Answer *a = &r->answer;
    Box found[ANSWER_MAX_BOXES];
    for (int k = 0; k < REWARD_TERMS; k++) r->term[k] = NAN;
    answer_parse(a, in->text, in->len);
    bool ok = a->status == ANSWER_OK;
    bool counts = ok || (!o->strict_answer && a->has_answer);
    answer_read(&r->reading, o->any_answer ? answer_any(a) : counts ? a->answer : (View){0}, t);
    for (int i = 0; i < r->reading.n_boxes; i++)
        found[i] = in->resized_w > 0
                       ? box_to_original(r->reading.boxes[i], in->resized_w, in->resized_h, t->width, t->height)
                       : r->reading.boxes[i];

    // One region that is asked for needs no name; where all are asked for the names must fit.
    bool with_label = label_known(t), with_boxes = boxes_known(t);
    double value = NAN;
    r->iou = NAN;
    r->right = with_label && answer_matches(&r->reading, t);
    bool label_right = r->right;
    if (with_boxes) {
        Box truth[ANSWER_MAX_BOXES];
        RewardOptions plain = *o, half = *o;
        plain.box = BOX_IOU, half.box = BOX_IOU50, half.box_threshold = 0.5, half.surgery_r1 = false;
        CHECK(t->n_boxes <= ANSWER_MAX_BOXES, "an item has at most %d boxes", ANSWER_MAX_BOXES);
        for (int i = 0; i < t->n_boxes; i++) {
            truth[i] = t->boxes[i];
            if (kind != ANSWER_BOXES) truth[i].label[0] = 0;
        }
        bool said = r->reading.ok;
        int n = r->reading.n_boxes;
        value = said ? boxes_match(truth, t->n_boxes, found, n, t->width, t->height, o) : 0;
        r->iou = said ? boxes_match(truth, t->n_boxes, found, n, t->width, t->height, &plain) : 0;
        bool near = said && boxes_match(truth, t->n_boxes, found, n, t->width, t->height, &half) == 1;
        r->right = near && (!with_label || label_right);
    }

    if (o->surgery_r1) {
        bool fields = kind != ANSWER_VQLA ? r->reading.ok
                                          : r->reading.json && (!with_label || r->reading.word.len) &&
                                                (!with_boxes || r->reading.n_boxes == 1);
        r->term[REWARD_FORMAT] = ok && fields;
        r->term[REWARD_GROUNDING] = value;
        if (with_label) r->term[REWARD_LANGUAGE] = language(r, o, in, label_right);
        if (with_label && with_boxes)
            r->term[REWARD_COHERENCE] = coherence(r, o, in, r->reading.n_boxes ? found : NULL, label_right);
    } else {
        r->term[REWARD_FORMAT] = ok;
        if (with_label || with_boxes) // a label with its region: both
            r->term[REWARD_ANSWER] = (with_label ? label_right : 1) * (with_boxes ? value : 1);
        r->term[REWARD_STRUCTURE] = structure(a, t, o->structure);
    }
    shaping(r, o, in);

    r->structure_counts = in->steps <= 0 || (double)in->step < o->structure_part * (double)in->steps;
    r->total = 0;
    for (int k = 0; k < REWARD_TERMS; k++)
        if (!isnan(r->term[k]) && o->weight[k] != 0 && (k != REWARD_STRUCTURE || r->structure_counts))
            r->total += o->weight[k] * r->term[k];
}
