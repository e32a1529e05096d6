// reward_check.c - surgr1 reward-check FILE: what every completion of a file is worth, term by term.
//
// What it is:  the parser and the rewards that training uses, over completions made by anyone: one JSON line for each.
// What it is not: an evaluation. Means over completions say what a trainer would see, not how good a model is (eval.c).
// Read before: commands.h, ../surgery/reward.c.  Read next: ../surgr1.c.
#include "commands.h"

enum { BAD_STOP, BAD_SKIP };
static const char *const presets[] = {"surg-r1", "surgery-r1"};
static struct {
    int preset, structure, box, language, coherence, frame, on_bad;
    Many weights;
    bool strict_answer;
    double threshold, penalty;
    int64_t min_pixels, max_pixels, factor, max_tokens, buffer, ngram, step, steps;
} check = {.threshold = 0.5, .penalty = -1, .min_pixels = 3136, .max_pixels = 12845056, .factor = 28, .ngram = 3};
// clang-format off
static Option reward_options[] = {
    CHOICE("preset", &check.preset, "surg-r1|surgery-r1", "whose terms, and their weights"),
    MANY("weight", &check.weights, "TERM=W", "weight of a term in the total, over the preset's", 64),
    CHOICE("structure", &check.structure, "paper|header",
        "surg-r1: \"Level 1\" anywhere in the thought, or headers up to the task's level"),
    CHOICE("box", &check.box, "iou|iou50|tiered|l1|giou|giou50", "what a box earns"),
    REAL("box-threshold", &check.threshold, "T", "of iou50 and giou50", -1, 1),
    CHOICE("language", &check.language, "exact|in-vocab|token-f1", "surgery-r1: what a label earns"),
    CHOICE("coherence", &check.coherence, "joint|product|quadrant|trace", "surgery-r1: when label and box agree"),
    FLAG("strict-answer", &check.strict_answer, "an answer counts only in a completion of status OK"),
    CHOICE("box-frame", &check.frame, "resized|original",
        "pixels that completions write boxes in: of the picture the model was shown, or of the file"),
    INT("min-pixels", &check.min_pixels, "N", "of the resize, where a record has no \"resized\"", 1, 1 << 28),
    INT("max-pixels", &check.max_pixels, "N", "the same", 1, 1 << 28),
    INT("factor", &check.factor, "N", "patch size times merge size", 1, 1024),
    INT("max-tokens", &check.max_tokens, "N",
        "longest completion: measures overlong and cosine (records need \"tokens\"); 0: off", 0, 1 << 20),
    INT("overlong-buffer", &check.buffer, "N", "tokens before --max-tokens in which overlong falls to -1", 0, 1 << 20),
    INT("ngram", &check.ngram, "N", "words of a repetition; 0: off", 0, 64),
    REAL("repetition-penalty", &check.penalty, "P", "of a completion that says one thing for ever", -100, 0),
    INT("step", &check.step, "N", "of the run, for the schedule of the structure term", 0, INT32_MAX),
    INT("steps", &check.steps, "N", "of the whole run; 0: every term counts", 0, INT32_MAX),
    CHOICE("on-bad-line", &check.on_bad, "stop|skip", "what a refused line does"),
    END};
// clang-format on

typedef struct Sums {
    const char *path;
    RewardOptions o;
    Text out;
    Reward r;
    int64_t lines, bad, right, status[ANSWER_STATUSES];
    int64_t n[REWARD_TERMS];
    double sum[REWARD_TERMS], first[REWARD_TERMS], total;
    bool varies[REWARD_TERMS];
} Sums;

static void add_number(Text *out, double v) {
    if (isnan(v)) text_addf(out, "null");
    else text_add_json_number(out, v);
}

static void add_view(Text *out, View v) { text_add_json_string(out, v.len ? v.p : "", v.len); }

static void add_boxes(Text *out, const Reading *r) {
    text_addf(out, "[");
    for (int i = 0; i < r->n_boxes; i++) {
        const Box *b = &r->boxes[i];
        text_addf(out, "%s{\"label\":", i ? "," : "");
        text_add_json_string(out, b->label, strlen(b->label));
        text_addf(out, ",\"box\":[");
        text_add_json_number(out, b->x1), text_addf(out, ",");
        text_add_json_number(out, b->y1), text_addf(out, ",");
        text_add_json_number(out, b->x2), text_addf(out, ",");
        text_add_json_number(out, b->y2), text_addf(out, "]}");
    }
    text_addf(out, "]");
}

// What was read, in the type the task asks for; null when it is none of that type.
static void add_reading(Text *out, const Reading *r) {
    View rest = r->word, item;
    if (!r->ok) {
        text_addf(out, "null");
        return;
    }
    switch (r->kind) {
    case ANSWER_WORD: add_view(out, r->word); break;
    case ANSWER_LIST:
    case ANSWER_TRIPLETS:
        text_addf(out, "[");
        for (int n = 0; answer_next_item(&rest, r->kind, &item); n++) text_addf(out, n ? "," : ""), add_view(out, item);
        text_addf(out, "]");
        break;
    case ANSWER_YESNO: text_addf(out, r->yes ? "\"yes\"" : "\"no\""); break;
    case ANSWER_NUMBER: text_addf(out, "%lld", (long long)r->number); break;
    case ANSWER_BOX:
    case ANSWER_BOXES: add_boxes(out, r); break;
    case ANSWER_VQLA:
        text_addf(out, "{\"answer\":"), add_view(out, r->word);
        text_addf(out, ",\"boxes\":"), add_boxes(out, r);
        text_addf(out, "}");
        break;
    }
}

static void print_reward(Text *out, const Reward *r, const TaskItem *t, int64_t line) {
    text_addf(out, "{\"line\":%lld,\"id\":", (long long)line);
    text_add_json_string(out, t->id, strlen(t->id));
    text_addf(out, ",\"task\":\"%s\",\"status\":\"%s\",\"lenient\":%s,\"answer\":", task_info(t->task)->name,
              answer_status_names[r->answer.status],
              r->answer.has_answer && r->answer.status != ANSWER_OK ? "true" : "false");
    if (r->answer.has_answer) add_view(out, r->answer.answer);
    else text_addf(out, "null");
    text_addf(out, ",\"read\":");
    add_reading(out, &r->reading);
    text_addf(out, ",\"levels\":%d,\"right\":%s,\"iou\":", r->answer.headers, r->right ? "true" : "false");
    add_number(out, r->iou);
    text_addf(out, ",\"rewards\":{");
    bool some = false;
    for (int k = 0; k < REWARD_TERMS; k++) {
        if (isnan(r->term[k])) continue;
        text_addf(out, "%s\"%s\":", some ? "," : "", reward_term_names[k]);
        text_add_json_number(out, r->term[k]);
        some = true;
    }
    text_addf(out, "},\"total\":");
    text_add_json_number(out, r->total);
    text_addf(out, "}\n");
}

static bool score(Sums *s, const TaskRecord *rec, const Piece *p, Err *e) {
    const TaskItem *t = &rec->item;
    enum AnswerKind kind = task_info(t->task)->kind;
    bool boxes = kind == ANSWER_BOX || kind == ANSWER_BOXES || kind == ANSWER_VQLA;
    Where at = AT(.file = s->path, .line = p->line, .sample = t->id);
    RewardInput in = {.item = t, .text = rec->response, .len = rec->response_len, .step = check.step};
    in.steps = check.steps, in.tokens = rec->tokens;
    in.resized_w = rec->resized_width, in.resized_h = rec->resized_height;
    if (!rec->response)
        return err_set(e, "E-DS-02", at,
                       "expected a completion; found none; do: write the model's text as \"response\"");
    if (check.max_tokens && rec->tokens < 0)
        return err_set(e, "E-DS-02", at,
                       "expected the number of tokens; found none; do: write it as \"tokens\", or "
                       "leave --max-tokens away");
    if (boxes && t->n_boxes > 0 && !check.frame) {
        if (!t->width)
            return err_set(e, "E-DS-02", at,
                           "expected the size of the picture; found none; do: write \"size\": "
                           "[width, height], or say --box-frame original");
        if (!in.resized_w && !smart_resize(t->height, t->width, check.factor, check.min_pixels, check.max_pixels,
                                           &in.resized_h, &in.resized_w, t->image ? t->image : s->path, e))
            return false;
    }
    if (check.frame) in.resized_w = in.resized_h = 0;
    reward_score(&s->r, &s->o, &in);
    print_reward(&s->out, &s->r, t, p->number);
    s->lines++, s->right += s->r.right, s->status[s->r.answer.status]++, s->total += s->r.total;
    for (int k = 0; k < REWARD_TERMS; k++) {
        double v = s->r.term[k];
        if (isnan(v)) continue;
        if (!s->n[k]++) s->first[k] = v;
        else if (v != s->first[k]) s->varies[k] = true;
        s->sum[k] += v;
    }
    return true;
}

static void flush(Text *out) {
    fwrite(out->p, 1, out->len, stdout);
    out->len = 0;
}

static bool score_line(void *ctx, const Piece *p, Err *e) {
    Sums *s = ctx;
    TaskRecord rec;
    Err own = {0};
    bool ok = task_record_read(&rec, p->text, p->len, s->path, p->line, &own);
    if (ok) {
        ok = score(s, &rec, p, &own);
        task_record_free(&rec);
    }
    if (s->out.len > 1 << 16) flush(&s->out);
    if (ok) return true;
    if (check.on_bad == BAD_STOP) return *e = own, false;
    s->bad++;
    Where at = AT(.file = own.file, .line = own.line, .col = own.col);
    if (!strcmp(own.field_kind, "sample")) at.sample = own.field;
    else if (own.field[0]) at.field = own.field;
    warn(own.code, at, "expected %s; found %s; do: %s (the line is skipped)", own.expected, own.found, own.todo);
    return true;
}

static void summary(const Sums *s) {
    note("%s: %lld completions, %lld right, mean reward %.4f%s", s->path, (long long)s->lines, (long long)s->right,
         s->lines ? s->total / (double)s->lines : 0, s->bad ? "; some lines were refused" : "");
    for (int k = 0; k < ANSWER_STATUSES; k++)
        if (s->status[k])
            note("  %-10s %8lld  %5.1f %%", answer_status_names[k], (long long)s->status[k],
                 100 * (double)s->status[k] / (double)s->lines);
    for (int k = 0; k < REWARD_TERMS; k++)
        if (s->n[k])
            note("  %-10s mean %.4f over %lld, weight %g", reward_term_names[k], s->sum[k] / (double)s->n[k],
                 (long long)s->n[k], s->o.weight[k]);
    for (int k = 0; k < REWARD_TERMS; k++)
        if (s->n[k] > 1 && !s->varies[k] && s->o.weight[k] != 0)
            warn("E-NU-10", AT(.file = s->path, .field = reward_term_names[k]),
                 "expected a reward that tells completions apart; found %g for all %lld; do: look whether it can be "
                 "earned and missed at all",
                 s->first[k], (long long)s->n[k]);
}

// "TERM=W" over the preset's weights.
static bool read_weights(RewardOptions *o, int *rc) {
    for (int i = 0; i < check.weights.n; i++) {
        const char *text = check.weights.p[i], *equals = strchr(text, '=');
        int term = -1;
        char *end = NULL;
        double w = equals ? strtod(equals + 1, &end) : 0;
        for (int k = 0; equals && k < REWARD_TERMS; k++)
            if (strlen(reward_term_names[k]) == (size_t)(equals - text) &&
                !memcmp(reward_term_names[k], text, (size_t)(equals - text)))
                term = k;
        if (term >= 0 && end && *end == 0 && end > equals + 1 && isfinite(w)) {
            o->weight[term] = w;
            continue;
        }
        *rc = usage("--weight", "TERM=W", quoted(text, strlen(text)),
                    "use format, answer, structure, grounding, language, coherence, overlong, cosine or repetition");
        return false;
    }
    return true;
}

static int run_reward_check(char **args, int n) {
    static Sums s; // the reading of an answer is large
    Err e = {0};
    int rc = EXIT_OK;
    (void)n;
    s.path = args[0];
    RewardOptions *o = &s.o;
    reward_preset(o, presets[check.preset]);
    o->structure = (enum StructureMode)check.structure, o->box = (enum BoxReward)check.box;
    o->language = (enum LanguageReward)check.language, o->coherence = (enum CoherenceReward)check.coherence;
    o->box_threshold = check.threshold, o->strict_answer = check.strict_answer;
    o->max_tokens = check.max_tokens, o->overlong_buffer = check.buffer;
    o->ngram = check.ngram, o->repetition_penalty = check.penalty;
    if (!read_weights(o, &rc)) return rc;
    if (check.min_pixels > check.max_pixels)
        return usage("--min-pixels", "at most --max-pixels", "more", "swap the two");
    bool ok = pieces_read(s.path, NULL, score_line, &s, &e);
    if (s.out.len) flush(&s.out);
    text_free(&s.out);
    if (!ok) return err_report(&e);
    summary(&s);
    if (s.bad) note("%lld lines were refused and skipped", (long long)s.bad);
    warn_summary();
    if (fflush(stdout) || ferror(stdout)) {
        err_set(&e, "E-WR-02", AT(.file = "standard output"), "expected to write; found an error; do: %s",
                "check the disk, or the program that reads");
        return err_report(&e);
    }
    return EXIT_OK;
}

const Command command_reward_check = {
    "reward-check",
    "reward-check FILE.jsonl",
    "Scores completions: records of data/README.md with the model's whole text as \"response\"\n"
    "(or \"prediction\", \"output\", \"completion\"). One JSON line for each on standard output: status,\n"
    "the answer as it was read, every term of the reward, their weighted sum. A summary follows on\n"
    "standard error. Exit 3 when a line is refused.",
    reward_options,
    1,
    1,
    "a file of records",
    run_reward_check};
