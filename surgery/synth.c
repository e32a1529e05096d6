// synth.c - reasoning data: requests to a teacher as OpenAI batch JSONL, and its answers judged and joined.
//
// What it is:  Surg-R1's second stage without a network: a file that any OpenAI-compatible server answers, and a reader
//              that trusts nothing of what comes back. An answer is taken as it is or left out; it is never repaired.
// What it is not: the teacher of drawn scenes (teach.c), or what is known of an operation (knowledge.c).
// Read before: surgr1.h, sections surgery/answer.c to surgery/synth.c.  Read next: teach.c.
//
// A folder of requests holds requests-NNN.jsonl, copies of the knowledge files, and manifest.jsonl: a line about the whole,
// then one line a request with its place and the record it is about. So a folder is all that ingest needs.
#define _GNU_SOURCE // memmem
#include "../surgr1.h"
#include <fcntl.h>
#include <unistd.h>

enum { PATH_BYTES = 1100, MOST_KNOWLEDGE = 64 };
const char *const synth_verdict_names[SYNTH_VERDICTS] = {
    [SYNTH_ACCEPTED] = "accepted", [SYNTH_MISSING] = "missing", [SYNTH_DUPLICATE] = "duplicate",
    [SYNTH_ERROR] = "error",       [SYNTH_CUT] = "cut",         [SYNTH_EMPTY] = "empty",
    [SYNTH_FORMAT] = "format",     [SYNTH_LEVELS] = "levels",   [SYNTH_LENGTH] = "length",
    [SYNTH_LANGUAGE] = "language", [SYNTH_LEAK] = "leak",       [SYNTH_VOCABULARY] = "vocabulary",
    [SYNTH_BOXES] = "boxes",       [SYNTH_ANSWER] = "answer",   [SYNTH_CONTRADICTION] = "contradiction",
};

// ------------------------------------------------------------------------------------------------------------ judge
static int64_t count_words(View v) {
    int64_t n = 0;
    bool inside = false;
    for (size_t i = 0; i < v.len; i++) {
        bool blank = v.p[i] == ' ' || v.p[i] == '\n' || v.p[i] == '\t' || v.p[i] == '\r';
        n += !blank && !inside, inside = !blank;
    }
    return n;
}

// Nearly all ASCII, and at least one word in ten is one of those that no English text does without.
static bool is_english(View v, const Text *words) {
    static const char *const common[] = {"the",  "a",    "an",   "of",   "and",  "is",  "are", "in",
                                         "at",   "to",   "with", "on",   "it",   "no",  "by",  "this",
                                         "that", "from", "its",  "into", "near", "not", "as",  "be"};
    int64_t ascii = 0, hits = 0;
    for (size_t i = 0; i < v.len; i++) ascii += (unsigned char)v.p[i] < 0x80;
    for (size_t k = 0; k < sizeof common / sizeof *common; k++) {
        char padded[12];
        snprintf(padded, sizeof padded, " %s ", common[k]);
        for (const char *p = words->p; (p = strstr(p, padded)) != NULL; p++) hits++;
    }
    return ascii * 100 >= (int64_t)v.len * 98 && hits * 10 >= count_words(v);
}

static bool leaks(const Text *words) {
    static const char *const phrases[] = {
        "ground truth",
        "the label",
        "given label",
        "provided label",
        "as stated",
        "as given",
        "as provided",
        "as instructed",
        "was told",
        "answer must be",
        "answer is given",
        "given answer",
        "provided answer",
        "expected answer",
        "reference answer",
        "correct answer",
        "given conclusion",
        "provided conclusion",
        "conclusion to reach",
        "target conclusion",
        "since the answer",
        "because the answer",
        "according to the table",
        "according to the list",
        "reference table",
        "reference text",
        "reference list",
        "the prompt",
        "the instruction",
        "annotation",
        "annotated",
    };
    for (size_t k = 0; k < sizeof phrases / sizeof *phrases; k++)
        if (words_hold(words, phrases[k])) return true;
    return false;
}

static int count_of(const char *text, size_t len, const char *what) {
    int n = 0;
    size_t m = strlen(what);
    for (const char *p = text, *end = text + len; (p = memmem(p, (size_t)(end - p), what, m)) != NULL; p += m) n++;
    return n;
}

// Boxes of the whole text: every one as bbox_2d (that is what readers of samples rescale), and inside of the picture.
static bool boxes_clean(const TaskItem *item, const char *text, size_t len) {
    Box box[ANSWER_MAX_BOXES];
    int n = answer_boxes(text, len, box, ANSWER_MAX_BOXES);
    if (count_of(text, len, "bbox_2d\"") != n) return false;
    for (int i = 0; i < n; i++)
        if (!(box[i].x1 >= 0 && box[i].y1 >= 0 && box[i].x1 < box[i].x2 && box[i].y1 < box[i].y2) ||
            (item->width && !(box[i].x2 <= (double)item->width && box[i].y2 <= (double)item->height)))
            return false;
    return true;
}

// One to one, and so near that only the spelling of the numbers may differ.
static bool boxes_equal(const TaskItem *item, const Reading *r) {
    bool used[ANSWER_MAX_BOXES] = {0}, named = task_info(item->task)->kind == ANSWER_BOXES;
    if (!r->ok || r->n_boxes != item->n_boxes) return false;
    for (int i = 0; i < item->n_boxes; i++) {
        const Box *b = &item->boxes[i];
        int j = 0;
        while (j < r->n_boxes && (used[j] || !(box_iou_strict(b, &r->boxes[j]) >= 0.99) ||
                                  (named && !label_equal(view_of(b->label), view_of(r->boxes[j].label)))))
            j++;
        if (j == r->n_boxes) return false;
        used[j] = true;
    }
    return true;
}

static bool answer_right(const TaskItem *item, View answer) {
    Reading r;
    answer_read(&r, answer, item);
    switch (task_info(item->task)->kind) {
    case ANSWER_BOX:
    case ANSWER_BOXES: return boxes_equal(item, &r);
    case ANSWER_VQLA: return boxes_equal(item, &r) && item->answer && label_equal(r.word, view_of(item->answer));
    default: return r.ok && answer_matches(&r, item);
    }
}

enum SynthVerdict synth_judge_thought(const TaskItem *item, const char *text, size_t len,
                                      const Knowledge *const *knowledge, int n, int64_t min_words, int64_t max_words,
                                      bool any_language) {
    Answer a;
    int level = task_info(item->task)->level, terms = 0;
    enum SynthVerdict v = SYNTH_ACCEPTED;
    answer_parse(&a, text, len);
    if (!a.text.len && a.status != ANSWER_TOO_LONG) return SYNTH_EMPTY;
    if (a.status != ANSWER_OK) return SYNTH_FORMAT;
    if (level ? a.headers != level : a.level[0].found || a.level[1].found || a.level[2].found) return SYNTH_LEVELS;
    int64_t long_as = count_words(a.think);
    if (long_as < min_words || long_as > max_words) return SYNTH_LENGTH;
    Text words = {0};
    words_of(a.think.p, a.think.len, &words);
    for (int k = 0; k < n; k++) terms += knowledge_terms(knowledge[k], a.think.p, a.think.len);
    if (!any_language && !is_english(a.think, &words)) v = SYNTH_LANGUAGE;
    else if (leaks(&words)) v = SYNTH_LEAK;
    else if (n && !terms) v = SYNTH_VOCABULARY;
    for (int k = 0; k < n && v == SYNTH_ACCEPTED; k++)
        if (knowledge_foreign(knowledge[k], a.text.p, a.text.len)) v = SYNTH_VOCABULARY;
    text_free(&words);
    return v;
}

enum SynthVerdict synth_judge(const TaskItem *item, const char *text, size_t len, const Knowledge *const *knowledge,
                              int n, int64_t min_words, int64_t max_words) {
    enum SynthVerdict v = synth_judge_thought(item, text, len, knowledge, n, min_words, max_words, false);
    if (v != SYNTH_ACCEPTED) return v;
    Answer a;
    answer_parse(&a, text, len);
    if (!boxes_clean(item, a.text.p, a.text.len)) return SYNTH_BOXES;
    return answer_right(item, a.answer) ? SYNTH_ACCEPTED : SYNTH_ANSWER;
}

static View second_word(View v) { // the verb of "grasper retract gallbladder"
    const char *end = v.p + v.len, *p = v.p;
    while (p < end && *p != ' ') p++;
    while (p < end && *p == ' ') p++;
    const char *q = p;
    while (q < end && *q != ' ') q++;
    return (View){p, (size_t)(q - p)};
}

int synth_contradicts(const Reward *r) {
    enum AnswerKind kind = r->reading.kind;
    const Answer *a = &r->answer;
    bool one = kind == ANSWER_WORD || kind == ANSWER_VQLA, several = kind == ANSWER_LIST || kind == ANSWER_TRIPLETS;
    if ((!one && !several) || !r->reading.ok || !r->reading.word.len || !a->think.len) return -1;
    View last = a->think, rest = r->reading.word, item = rest;
    for (int k = 0; k < 3; k++)
        if (a->level[k].found) last = a->level[k].text;
    Text words = {0}, term = {0};
    bool missing = false;
    words_of(last.p, last.len, &words);
    while (one || answer_next_item(&rest, kind, &item)) {
        View v = kind == ANSWER_TRIPLETS ? second_word(item) : item;
        text_free(&term);
        text_add(&term, v.p, v.len);
        missing |= v.len && !words_hold(&words, term.p);
        if (one) break;
    }
    text_free(&words), text_free(&term);
    return missing;
}

// ---------------------------------------------------------------------------------------------------- request files
typedef struct Batch { // a folder of requests that is being written
    char folder[PATH_BYTES];
    const char *dir;
    FileWriter requests, manifest;
    char name[32]; // of the file that is open
    int64_t max_bytes, in_file;
    SynthSent sent;
} Batch;

static bool batch_begin(Batch *b, const char *dir, int64_t max_bytes, const Text *header, Err *e) {
    char path[PATH_BYTES];
    *b = (Batch){.dir = dir, .max_bytes = max_bytes, .requests.fd = -1, .manifest.fd = -1};
    if (snprintf(b->folder, sizeof b->folder, "%s.part", dir) >= (int)sizeof b->folder)
        return err_set(e, "E-IO-01", AT(.file = dir),
                       "expected a path of at most %lld bytes; found a longer one; do: shorten it",
                       (long long)LIMIT_PATH_BYTES);
    return folder_begin(b->folder, e) && path_join(path, sizeof path, b->folder, "manifest.jsonl", e) &&
           file_write_begin(&b->manifest, path, e) && file_write_bytes(&b->manifest, header->p, header->len, e);
}

static void batch_abort(Batch *b) { // nothing of it is left
    char path[PATH_BYTES + 64];
    if (b->requests.fd >= 0) file_write_abort(&b->requests);
    if (b->manifest.fd >= 0) file_write_abort(&b->manifest);
    for (int64_t f = 0; f < b->sent.files; f++)
        snprintf(path, sizeof path, "%s/requests-%03lld.jsonl", b->folder, (long long)f), unlink(path);
    for (int k = 0; k < MOST_KNOWLEDGE; k++)
        snprintf(path, sizeof path, "%s/knowledge-%d.json", b->folder, k), unlink(path);
    snprintf(path, sizeof path, "%s/manifest.jsonl", b->folder), unlink(path);
    rmdir(b->folder);
}

static bool batch_file_done(Batch *b, Err *e) {
    if (b->requests.fd < 0) return true;
    bool ok = file_write_commit(&b->requests, e);
    b->requests.fd = -1, b->in_file = 0;
    return ok;
}

// A line of requests and one of the manifest: record is its JSON.
static bool batch_add(Batch *b, const char *id, const Text *line, int attempt, const char *why, const char *record,
                      size_t record_len, Where at, Err *e) {
    if ((int64_t)line->len > b->max_bytes)
        return err_set(e, "E-DS-07", at, "expected a request of at most %lld bytes; found %zu; do: %s",
                       (long long)b->max_bytes, line->len, "use a smaller picture, or raise --max-bytes");
    if (b->requests.fd >= 0 &&
        (b->requests.written + (int64_t)line->len > b->max_bytes || b->in_file == SYNTH_FILE_REQUESTS) &&
        !batch_file_done(b, e))
        return false;
    if (b->requests.fd < 0) {
        char path[PATH_BYTES];
        snprintf(b->name, sizeof b->name, "requests-%03lld.jsonl", (long long)b->sent.files++);
        if (!path_join(path, sizeof path, b->folder, b->name, e) || !file_write_begin(&b->requests, path, e))
            return false;
    }
    Text row = {0};
    text_addf(&row, "{\"custom_id\":\"%s\",\"file\":\"%s\",\"offset\":%lld,\"bytes\":%zu,\"attempt\":%d,", id, b->name,
              (long long)b->requests.written, line->len, attempt);
    if (why) text_addf(&row, "\"why\":\"%s\",", why);
    text_addf(&row, "\"record\":");
    text_add(&row, record, record_len);
    text_addf(&row, "}\n");
    bool ok = (int64_t)row.len <= LIMIT_JSONL_LINE_BYTES ||
              err_set(e, "E-DS-07", at, "expected a record of less than %lld bytes; found more; do: shorten it",
                      (long long)LIMIT_JSONL_LINE_BYTES);
    ok = ok && file_write_bytes(&b->manifest, row.p, row.len, e) &&
         file_write_bytes(&b->requests, line->p, line->len, e);
    b->in_file++, b->sent.requests++, b->sent.bytes += (int64_t)line->len;
    text_free(&row);
    return ok;
}

static bool batch_finish(Batch *b, Err *e) {
    if (!batch_file_done(b, e)) return false;
    bool ok = file_write_commit(&b->manifest, e);
    b->manifest.fd = -1;
    return ok && folder_finish(b->folder, b->dir, e);
}

// ------------------------------------------------------------------------------------------------------- requests

static const char teacher_role[] = "You write worked examples of visual reasoning about pictures from operations, to "
                                   "train a smaller model. You describe "
                                   "what a picture shows, step by step and in plain English, and nothing that cannot "
                                   "be seen in it. You answer in exactly "
                                   "the form that is asked for.";

static void print_form(const TaskItem *item, const char *label, const SynthRequests *o, Text *out) {
    static const char *const level[] = {"Level 1: the instruments and tissues that can be seen and matter here: where, "
                                        "their colour and shape, how surely (at "
                                        "most 90 words)",
                                        "Level 2: which instrument does what to which tissue, with the contact and the "
                                        "tension that show it (at most 70 words)",
                                        "Level 3: what this means for the question, and what speaks against the "
                                        "nearest other answer (at most 60 words)"};
    const TaskInfo *info = task_info(item->task);
    text_addf(
        out,
        "\n\nThe lists above say what is typical. Where the picture shows something else, the picture is right. Use no "
        "names of instruments, tissues, actions or phases but those of the lists.\n");
    if (info->level) {
        text_addf(out,
                  "This is a level %d task: %s. Write exactly this form, with nothing before and nothing after it:\n",
                  info->level, info->what);
        text_addf(out, "<think>This is a Level %d task requiring (a few words).\n", info->level);
        for (int k = 0; k < info->level; k++) text_addf(out, "\n%s%s", level[k], k + 1 < info->level ? "\n" : "");
    } else
        text_addf(out,
                  "Write exactly this form, with nothing before and nothing after it:\n<think>what can be seen at the "
                  "place that the question is about, and what follows from it");
    text_addf(out, "</think>\n<answer>%s</answer>\n", label);
    text_addf(
        out,
        "The conclusion is the text between <answer> and </answer> above: repeat it there letter by letter. Come to it "
        "by "
        "looking: go from what is seen to what follows. Never write that a conclusion, a label, a list or these lines "
        "were given to you, and do not reason backwards from it. ");
    if (task_info(item->task)->kind == ANSWER_BOX || item->n_boxes)
        text_addf(out, "Boxes are [x1, y1, x2, y2] in pixels of the picture as it is sent (%lld x %lld). ",
                  (long long)item->width, (long long)item->height);
    text_addf(out,
              "The thought has %lld to %lld words. If the picture does not show enough, say which part is missing, and "
              "keep to the "
              "form and the conclusion.",
              (long long)o->min_words, (long long)o->max_words);
}

typedef struct Asking {
    const SynthRequests *o;
    Knowledge *knowledge;
    Batch batch;
    char root[PATH_BYTES];
} Asking;

static const char *const box_frame_names[] = {"resized", "original", "norm1", "norm1000"};

// What synth needs of a record beyond its form.
static bool usable(const Asking *a, const Record *r, const TaskItem *item, const Text *label, Err *e) {
    Where at = AT(.file = a->o->data, .line = r->line, .sample = r->id);
    const Json *root = r->doc.root;
    if (!json_get(root, "messages") || json_get(root, "objects") || r->n_images != 1)
        return err_set(e, "E-DS-02", at,
                       "expected \"messages\" with one picture and no \"objects\"; found %d pictures%s; do: %s",
                       r->n_images, json_get(root, "objects") ? " and \"objects\"" : "", "give boxes under \"boxes\"");
    if (r->frame != BOX_RESIZED && r->frame != BOX_ORIGINAL)
        return err_set(e, "E-DS-02", at, "expected boxes in pixels of the file; found \"%s\"; do: convert them",
                       box_frame_names[r->frame]);
    if (!label->len)
        return err_set(e, "E-DS-02", at,
                       "expected a label (\"answer\", \"boxes\") that the question can have; found none; do: add it");
    return item->procedure ||
           err_set(e, "E-DS-02", at, "expected \"procedure\"; found none; do: name the operation of the record");
}

static bool add_picture(const Asking *a, const Record *r, Text *out, Err *e) {
    Where at = AT(.file = a->o->data, .line = r->line, .sample = r->id);
    ImageFacts facts = {0};
    char *data = NULL;
    size_t size = 0;
    int fd = open_beneath(a->root, r->images[0], "E-DS-04", at, e);
    bool ok = fd >= 0 && file_read_fd(fd, r->images[0], LIMIT_IMAGE_BYTES, "E-IM-01", &data, &size, e);
    if (fd >= 0) close(fd);
    ok = ok && image_check(&facts, (const uint8_t *)data, size, r->images[0], true, e);
    if (ok) {
        text_addf(out, "{\"type\":\"image_url\",\"image_url\":{\"url\":\"data:image/%s;base64,",
                  strcmp(facts.format, "PNG") ? "jpeg" : "png");
        text_add_base64(out, (const uint8_t *)data, size);
        text_addf(out, "\"");
        if (a->o->image_detail) text_addf(out, ",\"detail\":\"%s\"", a->o->image_detail);
        text_addf(out, "}},");
    }
    free(facts.jpeg);
    free(data);
    return ok;
}

static void add_text_part(Text *out, const Text *text) {
    text_addf(out, "{\"type\":\"text\",\"text\":");
    text_add_json_string(out, text->p, text->len);
    text_addf(out, "},");
}

// <split>-<row>-<attempt>-<8 hex of what is asked>: at most 64 characters, and the row makes it the only one.
static void name_request(char id[65], const Record *r, const TaskItem *item, int64_t row, const Text *asked) {
    char hex[65], split[25];
    int n = 0;
    Text all = {0};
    for (const char *p = item->split ? item->split : "data"; *p && n < 24; p++)
        if ((*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z') || (*p >= '0' && *p <= '9')) split[n++] = *p;
    split[n] = 0;
    text_addf(&all, "%s\n", r->id);
    text_add(&all, asked->p, asked->len);
    sha256_hex(all.p, all.len, hex);
    text_free(&all);
    snprintf(id, 65, "%s-%08lld-0-%.8s", n ? split : "data", (long long)row, hex);
}

static bool ask_about(void *ctx, Record *r, Err *e) {
    Asking *a = ctx;
    TaskRecord task;
    Text label = {0}, before = {0}, after = {0}, line = {0}, record = {0}, asked = {0}, picture = {0};
    char id[65];
    int fitting = 0;
    json_print(&record, r->doc.root);
    if (!task_record_read(&task, record.p, record.len, a->o->data, r->line, e)) return text_free(&record), false;
    const TaskItem item = task.item;
    Where at = AT(.file = a->o->data, .line = r->line, .sample = r->id);
    const Message *question = NULL;
    for (int m = 0; m < r->n; m++)
        if (!strcmp(r->messages[m].role, "user")) question = &r->messages[m];
    bool listed = item.n_choices && task.prompt && strstr(task.prompt, "\nA. "); // the question lists options
    task_answer_text(&item, (TaskWording){.choices = listed}, &label);
    bool ok = usable(a, r, &item, &label, e) && add_picture(a, r, &picture, e);
    for (int k = 0; ok && k < a->o->n_knowledge; k++)
        if (knowledge_fits(&a->knowledge[k], item.procedure, item.task))
            fitting++, knowledge_print(&a->knowledge[k], item.task, &before), text_addf(&before, "\n");
    if (ok && !fitting)
        ok = err_set(e, "E-DS-02", at,
                     "expected a procedure of the knowledge files; found %s; do: give the file that has it",
                     quoted(item.procedure, strlen(item.procedure)));
    if (ok) {
        bool behind = false;
        text_addf(&before, "The question: ");
        for (int p = 0; p < question->n_parts; p++) {
            const Part *part = &question->parts[p];
            if (part->image >= 0) behind = true;
            else text_add(behind ? &after : &before, part->text, part->len);
        }
        print_form(&item, label.p, a->o, &after);
        text_add(&asked, before.p, before.len), text_add(&asked, after.p, after.len); // what is asked, for the id
        name_request(id, r, &item, a->batch.sent.requests, &asked);
        text_addf(
            &line,
            "{\"custom_id\":\"%s\",\"method\":\"POST\",\"url\":\"/v1/chat/completions\",\"body\":{\"model\":", id);
        text_add_json_string(&line, a->o->model, strlen(a->o->model));
        text_addf(&line, ",\"messages\":[{\"role\":\"system\",\"content\":");
        text_add_json_string(&line, teacher_role, sizeof teacher_role - 1);
        text_addf(&line, "},{\"role\":\"user\",\"content\":[");
        add_text_part(&line, &before);
        text_add(&line, picture.p, picture.len);
        add_text_part(&line, &after);
        line.len--; // the last comma
        text_addf(&line, "]}],");
        if (a->o->temperature >= 0) text_addf(&line, "\"temperature\":%.6g,", a->o->temperature);
        text_addf(&line, "\"%s\":%lld}}\n", a->o->limit_name, (long long)a->o->max_tokens);
        ok = batch_add(&a->batch, id, &line, 0, NULL, record.p, record.len, at, e);
    }
    task_record_free(&task);
    text_free(&asked), text_free(&label), text_free(&before), text_free(&after), text_free(&line), text_free(&record),
        text_free(&picture);
    return ok;
}

static bool copy_file(const char *from, const char *folder, const char *name, Err *e) {
    char path[PATH_BYTES], *data = NULL;
    size_t size = 0;
    bool ok = path_join(path, sizeof path, folder, name, e) &&
              file_read(from, LIMIT_CONFIG_BYTES, "E-JS-01", &data, &size, e) && file_write_atomic(path, data, size, e);
    free(data);
    return ok;
}

static void print_header(Text *out, const char *model, int n_knowledge, int64_t min_words, int64_t max_words) {
    text_addf(out, "{\"kind\":\"surgr1-requests\",\"model\":");
    text_add_json_string(out, model, strlen(model));
    text_addf(out, ",\"words\":[%lld,%lld],\"knowledge\":[", (long long)min_words, (long long)max_words);
    for (int k = 0; k < n_knowledge; k++) text_addf(out, "%s\"knowledge-%d.json\"", k ? "," : "", k);
    text_addf(out, "]}\n");
}

bool synth_requests(const SynthRequests *o, SynthSent *sent, Err *e) {
    Asking a = {.o = o};
    Text header = {0};
    int read = 0;
    a.knowledge = alloc_or_die((size_t)o->n_knowledge + 1, sizeof *a.knowledge, "knowledge of operations");
    bool ok = o->image_root ? path_join(a.root, sizeof a.root, o->image_root, ".", e)
                            : path_dir(a.root, sizeof a.root, o->data, e);
    while (ok && read < o->n_knowledge) ok = knowledge_read(&a.knowledge[read], o->knowledge[read], e), read += ok;
    print_header(&header, o->model, o->n_knowledge, o->min_words, o->max_words);
    if (ok) {
        char name[32];
        ok = batch_begin(&a.batch, o->out, o->max_bytes, &header, e);
        for (int k = 0; ok && k < o->n_knowledge; k++) {
            snprintf(name, sizeof name, "knowledge-%d.json", k);
            ok = copy_file(o->knowledge[k], a.batch.folder, name, e);
        }
        ok = ok && records_read_all(o->data, (RecordOptions){.boxes = true}, NULL, ask_about, NULL, &a, e);
        if (ok && !a.batch.sent.requests)
            ok = err_set(e, "E-DS-02", AT(.file = o->data),
                         "expected records; found none; do: name a file with records");
        ok = ok && batch_finish(&a.batch, e);
        if (!ok) batch_abort(&a.batch);
    }
    *sent = a.batch.sent;
    while (read) knowledge_free(&a.knowledge[--read]);
    free(a.knowledge);
    text_free(&header);
    return ok;
}

// --------------------------------------------------------------------------------------------------------- ingest
typedef struct Entry { // one request, and what came back
    char id[65], file[32];
    int64_t offset, bytes;
    int attempt;
    char *record; // JSON of the record
    Text line;    // the training record, when accepted
    enum SynthVerdict verdict;
} Entry;
typedef struct Ingest {
    const char *manifest;
    char model[80];
    Knowledge *knowledge;
    int n_knowledge;
    int64_t min_words, max_words;
    Entry *entries;
    int64_t n, cap, *by_id; // by_id: places of entries in the order of their ids
    const char *file;       // of responses, for messages
    SynthCounts *counts;
} Ingest;

static bool bad_manifest(const JsonDoc *d, const Json *v, const char *field, Err *e) {
    return err_set(e, "E-DS-02", json_at(d, v, field),
                   "expected a manifest that synth requests wrote; found %s; do: %s", v ? json_shown(v) : "nothing",
                   "name the folder of the requests");
}

static bool read_header(Ingest *g, const JsonDoc *d, const char *dir, Err *e) {
    const Json *root = d->root, *model = json_get(root, "model"), *words = json_get(root, "words"),
               *list = json_get(root, "knowledge");
    if (!json_is(json_get(root, "kind"), "surgr1-requests")) return bad_manifest(d, root, "kind", e);
    if (!model || model->type != JSON_STRING) return bad_manifest(d, model, "model", e);
    if (!words || words->count != 2 || !words->child->integer || !words->child->next->integer)
        return bad_manifest(d, words, "words", e);
    if (!list || list->type != JSON_ARRAY) return bad_manifest(d, list, "knowledge", e);
    snprintf(g->model, sizeof g->model, "%.79s", model->str);
    g->min_words = words->child->i, g->max_words = words->child->next->i;
    g->knowledge = alloc_or_die(list->count + 1, sizeof *g->knowledge, "knowledge of operations");
    for (const Json *k = list->child; k; k = k->next) {
        char path[PATH_BYTES];
        if (k->type != JSON_STRING || strchr(k->str, '/')) return bad_manifest(d, k, "knowledge", e);
        if (!path_join(path, sizeof path, dir, k->str, e) || !knowledge_read(&g->knowledge[g->n_knowledge], path, e))
            return false;
        g->n_knowledge++;
    }
    return true;
}

static bool read_entry(Ingest *g, const JsonDoc *d, Err *e) {
    const Json *root = d->root, *id = json_get(root, "custom_id"), *file = json_get(root, "file"),
               *record = json_get(root, "record");
    int64_t attempt = 0;
    if (g->n == g->cap) {
        g->cap = g->cap ? 2 * g->cap : 256;
        g->entries = grow_or_die(g->entries, (size_t)g->cap, sizeof *g->entries, "the requests of a manifest");
    }
    Entry *x = &g->entries[g->n];
    *x = (Entry){.verdict = SYNTH_MISSING};
    if (!id || id->type != JSON_STRING || id->len < 1 || id->len > 64) return bad_manifest(d, id, "custom_id", e);
    if (!file || file->type != JSON_STRING || file->len > 31 || strchr(file->str, '/'))
        return bad_manifest(d, file, "file", e);
    if (!record || record->type != JSON_OBJECT) return bad_manifest(d, record, "record", e);
    if (!json_int(d, root, "offset", true, 0, LIMIT_JSONL_BYTES, &x->offset, e) ||
        !json_int(d, root, "bytes", true, 1, 2 * LIMIT_IMAGE_BYTES, &x->bytes, e) ||
        !json_int(d, root, "attempt", true, 0, 1000, &attempt, e))
        return false;
    Text text = {0};
    json_print(&text, record);
    x->record = text.p, x->attempt = (int)attempt, g->n++;
    memcpy(x->id, id->str, id->len), memcpy(x->file, file->str, file->len);
    return true;
}

typedef struct ManifestReader {
    Ingest *g;
    const char *dir;
} ManifestReader;

static bool manifest_line(void *ctx, const char *line, size_t len, int64_t number, Err *e) {
    ManifestReader *m = ctx;
    JsonDoc d;
    JsonOptions options = {.refuse_duplicates = true, .first_line = (uint32_t)number};
    if (!json_parse(&d, line, len, m->g->manifest, options, e)) return false;
    bool ok = number == 1 ? read_header(m->g, &d, m->dir, e) : read_entry(m->g, &d, e);
    json_free(&d);
    return ok;
}

static const Entry *sorting; // by qsort's comparison below

static int by_id(const void *a, const void *b) {
    return strcmp(sorting[*(const int64_t *)a].id, sorting[*(const int64_t *)b].id);
}

static Entry *find_entry(const Ingest *g, const char *id) {
    int64_t low = 0, high = g->n;
    while (low < high) {
        int64_t mid = (low + high) / 2;
        int order = strcmp(g->entries[g->by_id[mid]].id, id);
        if (!order) return &g->entries[g->by_id[mid]];
        if (order < 0) low = mid + 1;
        else high = mid;
    }
    return NULL;
}

// The completion object of a response in either form, or NULL: the server failed.
static const Json *completion_of(const Json *line) {
    const Json *error = json_get(line, "error"), *response = json_get(line, "response"),
               *status = json_get(response, "status_code");
    if ((error && error->type != JSON_NULL) || !response || response->type != JSON_OBJECT) return NULL;
    if (json_get(response, "choices")) return response;
    if (status && !(status->type == JSON_NUMBER && status->number >= 200 && status->number < 300)) return NULL;
    const Json *body = json_get(response, "body");
    return body && json_get(body, "choices") ? body : NULL;
}

static void add_string(Text *out, const char *name, const char *value) {
    text_addf(out, ",\"%s\":", name);
    text_add_json_string(out, value, strlen(value));
}

// The record with the teacher's text as its answer and, where it has no system turn of its own, the prompt for reasoning.
void synth_record_print(const Json *root, const char *text, const char *teacher, const char *request, Text *out) {
    static const char *const of_another_text[] = {"box_frame", "teacher", "request", "pseudo"};
    const Json *messages = json_get(root, "messages"), *user = NULL, *system = messages->child;
    Text question = {0};
    bool thought = strstr(text, "<think>") != NULL; // an answer alone needs no turn that asks to think
    for (const Json *m = messages->child; m; m = m->next)
        if (json_is(json_get(m, "role"), "user")) user = m;
    if (!system || !json_is(json_get(system, "role"), "system")) system = NULL;
    json_print(&question, user);
    // "objects" are what marks of the texts stand for: those of the answer that was there are gone with it
    bool marks = strstr(question.p, "<bbox>") || strstr(question.p, "<ref-object>");
    text_addf(out, "{");
    for (const Json *v = root->child; v; v = v->next) {
        bool skip = !strcmp(v->key, "objects") && !marks;
        for (size_t k = 0; k < sizeof of_another_text / sizeof *of_another_text; k++)
            skip |= !strcmp(v->key, of_another_text[k]);
        if (skip) continue;
        text_addf(out, "%s", out->p[out->len - 1] == '{' ? "" : ",");
        text_add_json_string(out, v->key, v->key_len);
        text_addf(out, ":");
        if (v != messages) {
            json_print(out, v);
            continue;
        }
        text_addf(out, "[");
        if (system) json_print(out, system);
        else if (thought) {
            text_addf(out, "{\"role\":\"system\",\"content\":");
            text_add_json_string(out, task_system_prompt(false), strlen(task_system_prompt(false)));
            text_addf(out, "}");
        }
        text_addf(out, "%s", system || thought ? "," : "");
        text_add(out, question.p, question.len);
        text_addf(out, ",{\"role\":\"assistant\"");
        add_string(out, "content", text);
        text_addf(out, "}]");
    }
    if (strstr(text, "bbox_2d\"") || json_get(root, "box_frame")) add_string(out, "box_frame", "original");
    if (teacher) add_string(out, "teacher", teacher);
    if (request) add_string(out, "request", request);
    text_addf(out, "}\n");
    text_free(&question);
}

// What is written must be read again as a training record: no control characters, no picture marks, no text too long.
bool synth_is_record(const Text *line, const FrameSize *sizes) {
    Record r;
    Err why = {0};
    Piece p = {.text = line->p, .len = line->len - 1, .number = 1, .line = 1, .col = 1};
    if (!record_parse_piece(&r, &p, "", (RecordOptions){.boxes = true, .absolute_images = true}, &why)) return false;
    bool ok = !sizes || record_place_boxes(&r, sizes, &why);
    record_free(&r);
    return ok;
}

static enum SynthVerdict judge_response(const Ingest *g, Entry *x, const Json *line, Err *e) {
    const Json *body = completion_of(line), *choices = json_get(body, "choices"), *model = json_get(body, "model");
    if (!choices || choices->type != JSON_ARRAY || !choices->child) return SYNTH_ERROR;
    if (choices->count > 1) return SYNTH_DUPLICATE;
    const Json *content = json_get(json_get(choices->child, "message"), "content");
    if (!json_is(json_get(choices->child, "finish_reason"), "stop")) return SYNTH_CUT;
    if (!content || content->type != JSON_STRING || !content->len) return SYNTH_EMPTY;
    TaskRecord task;
    const TaskItem *item = &task.item;
    const Knowledge *fitting[MOST_KNOWLEDGE];
    int n = 0;
    if (!task_record_read(&task, x->record, strlen(x->record), g->manifest, 1, e)) return SYNTH_ERROR;
    if (!task.prompt) bad_manifest(&task.doc, task.doc.root, "messages", e);
    for (int k = 0; k < g->n_knowledge && n < MOST_KNOWLEDGE; k++)
        if (item->procedure && knowledge_fits(&g->knowledge[k], item->procedure, item->task))
            fitting[n++] = &g->knowledge[k];
    enum SynthVerdict v = SYNTH_FORMAT;
    if (task.prompt && !memchr(content->str, 0, content->len))
        v = synth_judge(item, content->str, content->len, fitting, n, g->min_words, g->max_words);
    if (v == SYNTH_ACCEPTED) {
        Text text = {0}, record = {0};
        View trimmed = view_trim((View){content->str, content->len}); // as the parser sees it
        text_add(&text, trimmed.p, trimmed.len);
        synth_record_print(task.doc.root, text.p, model && model->type == JSON_STRING ? model->str : g->model, x->id,
                           &record);
        FrameSize size = {item->width, item->height, item->width, item->height};
        if (synth_is_record(&record, item->width ? &size : NULL)) x->line = record;
        else v = SYNTH_FORMAT, text_free(&record);
        text_free(&text);
    }
    task_record_free(&task);
    return v;
}

static bool response_line(void *ctx, const char *line, size_t len, int64_t number, Err *e) {
    Ingest *g = ctx;
    JsonDoc d;
    Err bad = {0};
    g->counts->lines++;
    if (!json_parse(&d, line, len, g->file, (JsonOptions){.first_line = (uint32_t)number}, &bad)) {
        g->counts->unreadable++;
        warn("E-TA-03", AT(.file = g->file, .line = number), "expected a response; found %s; do: %s", bad.found,
             "nothing: its request counts as missing");
        return true;
    }
    const Json *id = json_get(d.root, "custom_id");
    Entry *x = id && id->type == JSON_STRING ? find_entry(g, id->str) : NULL;
    bool ok = true;
    if (!id || id->type != JSON_STRING) g->counts->unreadable++;
    else if (!x) {
        g->counts->foreign++;
        warn("E-TA-01", AT(.file = g->file, .line = number), "expected an id of the requests; found %s; do: %s",
             quoted(id->str, id->len), "name the responses to these requests");
    } else if (x->verdict != SYNTH_MISSING) x->verdict = SYNTH_DUPLICATE;
    else {
        x->verdict = judge_response(g, x, d.root, e);
        ok = !*e->code;
    }
    json_free(&d);
    return ok;
}

static bool write_accepted(const Ingest *g, const char *out, Err *e) {
    FileWriter w;
    if (!file_write_begin(&w, out, e)) return false;
    for (int64_t i = 0; i < g->n; i++) {
        const Entry *x = &g->entries[i];
        if (x->verdict == SYNTH_ACCEPTED && !file_write_bytes(&w, x->line.p, x->line.len, e)) return false;
    }
    return file_write_commit(&w, e);
}

// The request's line as it was, under the id of the next attempt.
static bool add_again(Batch *b, const Ingest *g, const Entry *x, const char *dir, Err *e) {
    char id[65], path[PATH_BYTES], attempt[24];
    Text line = {0};
    const char *hash = strrchr(x->id, '-'), *stem = hash;
    while (stem && stem > x->id && stem[-1] != '-') stem--;
    char *bytes = alloc_or_die((size_t)x->bytes + 1, 1, "a request");
    bool ok = path_join(path, sizeof path, dir, x->file, e);
    int fd = ok ? open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY) : -1;
    size_t known = strlen("{\"custom_id\":\"") + strlen(x->id);
    ok = ok && fd >= 0 && pread(fd, bytes, (size_t)x->bytes, x->offset) == (ssize_t)x->bytes &&
         bytes[x->bytes - 1] == '\n' && (size_t)x->bytes > known &&
         !memcmp(bytes + known - strlen(x->id), x->id, strlen(x->id));
    if (fd >= 0) close(fd);
    if (!ok)
        err_set(e, "E-IO-05", AT(.file = path, BYTE(x->offset)),
                "expected request %s where the manifest says; found other bytes; do: %s", quoted(x->id, strlen(x->id)),
                "make the requests again");
    else {
        snprintf(attempt, sizeof attempt, "%d", x->attempt + 1);
        int n = hash && stem > x->id ? snprintf(id, sizeof id, "%.*s%s%s", (int)(stem - x->id), x->id, attempt, hash)
                                     : snprintf(id, sizeof id, "%.50s-%s", x->id, attempt);
        if (n > 64) id[64] = 0;
        text_addf(&line, "{\"custom_id\":\"%s", id);
        text_add(&line, bytes + known, (size_t)x->bytes - known);
        ok = batch_add(b, id, &line, x->attempt + 1, synth_verdict_names[x->verdict], x->record, strlen(x->record),
                       AT(.file = g->manifest, .sample = x->id), e);
    }
    free(bytes);
    text_free(&line);
    return ok;
}

static bool write_retry(const Ingest *g, const char *dir, const char *retry, Err *e) {
    Batch b;
    Text header = {0};
    char name[32], from[PATH_BYTES];
    int64_t most = 0;
    for (int64_t i = 0; i < g->n; i++) most = g->entries[i].bytes > most ? g->entries[i].bytes : most;
    print_header(&header, g->model, g->n_knowledge, g->min_words, g->max_words);
    bool ok = batch_begin(&b, retry, most + 64 > 90000000 ? most + 64 : 90000000, &header, e);
    for (int k = 0; ok && k < g->n_knowledge; k++) {
        snprintf(name, sizeof name, "knowledge-%d.json", k);
        ok = path_join(from, sizeof from, dir, name, e) && copy_file(from, b.folder, name, e);
    }
    for (int64_t i = 0; ok && i < g->n; i++)
        if (g->entries[i].verdict != SYNTH_ACCEPTED) ok = add_again(&b, g, &g->entries[i], dir, e);
    ok = ok && batch_finish(&b, e);
    if (!ok) batch_abort(&b);
    text_free(&header);
    return ok;
}

bool synth_ingest(const char *requests, const char *const *responses, int n, const char *out, const char *retry,
                  SynthCounts *c, Err *e) {
    char manifest[PATH_BYTES];
    *c = (SynthCounts){0};
    Ingest g = {.manifest = manifest, .counts = c};
    ManifestReader reader = {&g, requests};
    bool ok = path_join(manifest, sizeof manifest, requests, "manifest.jsonl", e) &&
              lines_read(manifest, manifest_line, &reader, e);
    if (ok && !g.n)
        ok = err_set(e, "E-DS-02", AT(.file = manifest),
                     "expected requests; found none; do: name the folder of the requests");
    if (ok) {
        g.by_id = alloc_or_die((size_t)g.n, sizeof *g.by_id, "the order of the requests");
        for (int64_t i = 0; i < g.n; i++) g.by_id[i] = i;
        sorting = g.entries;
        qsort(g.by_id, (size_t)g.n, sizeof *g.by_id, by_id);
        for (int64_t i = 1; ok && i < g.n; i++)
            if (!strcmp(g.entries[g.by_id[i - 1]].id, g.entries[g.by_id[i]].id))
                ok = err_set(e, "E-DS-03", AT(.file = manifest, .sample = g.entries[g.by_id[i]].id),
                             "expected every id once; found one twice; do: make the requests again");
    }
    for (int i = 0; ok && i < n; i++) g.file = responses[i], ok = lines_read(responses[i], response_line, &g, e);
    for (int64_t i = 0; ok && i < g.n; i++) c->verdict[g.entries[i].verdict]++;
    c->requests = g.n;
    ok = ok && write_accepted(&g, out, e);
    if (ok && retry && c->verdict[SYNTH_ACCEPTED] < g.n) ok = write_retry(&g, requests, retry, e);
    for (int64_t i = 0; i < g.n; i++) free(g.entries[i].record), text_free(&g.entries[i].line);
    for (int k = 0; k < g.n_knowledge; k++) knowledge_free(&g.knowledge[k]);
    free(g.entries), free(g.by_id), free(g.knowledge);
    return ok;
}

void synth_counts_print(const SynthCounts *c, Text *out) {
    text_addf(out, "{\"requests\":%lld,\"responses\":%lld,\"foreign\":%lld,\"unreadable\":%lld", (long long)c->requests,
              (long long)c->lines, (long long)c->foreign, (long long)c->unreadable);
    for (int v = 0; v < SYNTH_VERDICTS; v++)
        text_addf(out, ",\"%s\":%lld", synth_verdict_names[v], (long long)c->verdict[v]);
    text_addf(out, "}\n");
}
