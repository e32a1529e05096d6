// tasks.c - the tasks of both papers, and how their questions and answers are worded.
//
// What it is:  one table of tasks (Surg-R1's three levels, Surgery-R1's visual question localised answering).
// What it is not: where a label comes from (scenes.c, import.c) or how an answer is scored (surgery/).
// Read before: surgr1.h, section data/tasks.c.  Read next: scenes.c.
// Source: Surg-R1 (arXiv 2603.12430), table of the three-level hierarchy; Surgery-R1 (arXiv 2506.19469).
#include "../surgr1.h"

static const TaskInfo tasks[TASKS] = {
    [TASK_TOOL] = {"tool", 1, ANSWER_LIST, "which instruments are visible"},
    [TASK_TISSUE] = {"tissue", 1, ANSWER_LIST, "which tissues are visible"},
    [TASK_TOOL_BOX] = {"tool_box", 1, ANSWER_BOX, "where one instrument is"},
    [TASK_TOOL_BOXES] = {"tool_boxes", 1, ANSWER_BOXES, "where all instruments are"},
    [TASK_TISSUE_BOX] = {"tissue_box", 1, ANSWER_BOX, "where a tissue is"},
    [TASK_GRID] = {"grid", 1, ANSWER_WORD, "in which ninth of the picture an instrument's tip is"},
    [TASK_CVS1] = {"cvs1", 1, ANSWER_YESNO, "critical view of safety, two structures"},
    [TASK_CVS2] = {"cvs2", 1, ANSWER_YESNO, "critical view of safety, hepatocystic triangle"},
    [TASK_CVS3] = {"cvs3", 1, ANSWER_YESNO, "critical view of safety, cystic plate"},
    [TASK_ACTION] = {"action", 2, ANSWER_WORD, "what is being done"},
    [TASK_MOTION] = {"motion", 2, ANSWER_WORD, "how the laparoscope moves"},
    [TASK_TRIPLET] = {"triplet", 2, ANSWER_TRIPLETS, "instrument, verb, target"},
    [TASK_COUNT] = {"count", 3, ANSWER_NUMBER, "how many instruments are visible"},
    [TASK_STEP] = {"step", 3, ANSWER_WORD, "which step"},
    [TASK_PHASE] = {"phase", 3, ANSWER_WORD, "which phase"},
    [TASK_CVS] = {"cvs", 3, ANSWER_YESNO, "whether the critical view of safety is achieved"},
    [TASK_PROTOCOL] = {"protocol", 3, ANSWER_WORD, "which action a fixed protocol asks for next (data/protocol.c)"},
    [TASK_VQA] = {"vqa", 0, ANSWER_WORD, "a question answered by a label"},
    [TASK_VQLA] = {"vqla", 0, ANSWER_VQLA, "a question answered by a label and a box"},
};

const TaskInfo *task_info(enum Task t) { return &tasks[t]; }

int task_of(const char *name) {
    for (int t = 0; t < TASKS; t++)
        if (!strcmp(tasks[t].name, name)) return t;
    return -1;
}

// --------------------------------------------------------------------------------------------------------- wording
// A template holds <image> once, inside its sentence; {procedure}, {slot} and {question} are filled in. The wording is
// ours; [0] of `compat` follows the shapes that the public Surg-R1 model and its evaluation files use.
enum { PHRASES = 5 };
#define BOX_HINT  " Answer with {\"bbox_2d\": [x1, y1, x2, y2], \"label\": \"{slot}\"}, in pixels."
#define GRID_HINT " Name the cell of a 3x3 grid, for example upper left or center."
#define YES_NO    " Answer yes or no."
#define CVS_ROLE  "You are an expert of surgical safety. In the {procedure} image <image>, "

static const struct {
    const char *compat, *own[PHRASES];
} phrases[TASKS] = {
    [TASK_TOOL] = {"Given the {procedure} image <image>, which instruments are visible?",
                   {"Look at the {procedure} image <image>: which instruments can be seen?",
                    "Which instruments appear in the {procedure} image <image>?",
                    "In the {procedure} image <image>, name every instrument in view.",
                    "The picture <image> shows a moment of {procedure}. List its instruments.",
                    "What instruments does the surgeon have in view in the {procedure} image <image>?"}},
    [TASK_TISSUE] = {"Given the {procedure} image <image>, which organs or tissues are visible?",
                     {"Look at the {procedure} image <image>: which tissues can be seen?",
                      "Which organs and tissues appear in the {procedure} image <image>?",
                      "In the {procedure} image <image>, name every tissue in view.",
                      "The picture <image> shows a moment of {procedure}. List the anatomy in it.",
                      "What anatomy can be recognised in the {procedure} image <image>?"}},
    [TASK_TOOL_BOX] = {"Given the {procedure} image <image>, find {slot} in the format of bbox (x1,y1), (x2,y2).",
                       {"Where is the {slot} in the {procedure} image <image>?" BOX_HINT,
                        "In the {procedure} image <image>, draw a box around the {slot}." BOX_HINT,
                        "Locate the {slot} in the picture <image>, taken during {procedure}." BOX_HINT,
                        "The {procedure} image <image> shows a {slot}. Give its box." BOX_HINT,
                        "Mark the {slot} of the {procedure} image <image> with a box." BOX_HINT}},
    [TASK_TOOL_BOXES] =
        {"Given the {procedure} image <image>, locate all the tools in the format of bbox (x1,y1), (x2,y2).",
         {"Where are the instruments in the {procedure} image <image>? Give one box for each.",
          "In the {procedure} image <image>, draw a box around every instrument and name it.",
          "Locate all instruments in the picture <image>, taken during {procedure}, each with name and box.",
          "List every instrument of the {procedure} image <image> as bbox_2d and label.",
          "Mark each instrument in the {procedure} image <image> with a named box, in pixels."}},
    [TASK_TISSUE_BOX] = {"Given the {procedure} image <image>, find {slot} in the format of bbox (x1,y1), (x2,y2).",
                         {"Where is the {slot} in the {procedure} image <image>?" BOX_HINT,
                          "In the {procedure} image <image>, draw a box around the {slot}." BOX_HINT,
                          "Locate the {slot} in the picture <image>, taken during {procedure}." BOX_HINT,
                          "How far does the {slot} reach in the {procedure} image <image>?" BOX_HINT,
                          "Mark the {slot} of the {procedure} image <image> with a box." BOX_HINT}},
    [TASK_GRID] =
        {"Given the {procedure} image <image>, in which grid position is the tip of the {slot}?",
         {"In which part of the {procedure} image <image> is the tip of the {slot}?" GRID_HINT,
          "Where does the tip of the {slot} lie in the {procedure} image <image>?" GRID_HINT,
          "In the {procedure} image <image>, which ninth of the picture holds the tip of the {slot}?" GRID_HINT,
          "Point out where in the picture <image> the working end of the {slot} is." GRID_HINT,
          "The {procedure} image <image> shows a {slot}. In which region is its tip?" GRID_HINT}},
    [TASK_CVS1] = {CVS_ROLE "are only two tubular structures connected to the gallbladder?",
                   {"In the {procedure} image <image>, do exactly two tubular structures enter the gallbladder?" YES_NO,
                    "Can two, and only two, structures be seen entering the gallbladder in the image <image>?" YES_NO,
                    "Look at the {procedure} image <image>: are duct and artery both seen, and nothing else, going to "
                    "the gallbladder?" YES_NO,
                    "Critical view of safety, two structures: is it met in the {procedure} image <image>?" YES_NO,
                    "Does the image <image> show the cystic duct and the cystic artery as the only two structures "
                    "at the gallbladder?" YES_NO}},
    [TASK_CVS2] =
        {CVS_ROLE "is the hepatocystic triangle cleared of fat and fibrous tissue?",
         {"In the {procedure} image <image>, is the hepatocystic triangle free of fat and fibrous tissue?" YES_NO,
          "Has the hepatocystic triangle in the image <image> been cleared?" YES_NO,
          "Look at the {procedure} image <image>: can one see through the triangle beside the gallbladder, "
          "without fat in the way?" YES_NO,
          "Critical view of safety, hepatocystic triangle: is it met in the {procedure} image <image>?" YES_NO,
          "Does the image <image> show a hepatocystic triangle without covering tissue?" YES_NO}},
    [TASK_CVS3] =
        {CVS_ROLE "is the lower part of the gallbladder detached from the liver bed?",
         {"In the {procedure} image <image>, is the lower gallbladder freed so that the cystic plate shows?" YES_NO,
          "Has the lower third of the gallbladder in the image <image> been taken off the liver bed?" YES_NO,
          "Look at the {procedure} image <image>: is the cystic plate visible behind the gallbladder?" YES_NO,
          "Critical view of safety, cystic plate: is it met in the {procedure} image <image>?" YES_NO,
          "Does the image <image> show a gap between the lower gallbladder and the liver?" YES_NO}},
    [TASK_ACTION] = {"Given the {procedure} image <image>, what action related to the needle and suture is the surgeon "
                     "focusing on right now?",
                     {"What is the surgeon doing in the {procedure} image <image>?",
                      "Which action is under way in the {procedure} image <image>?",
                      "In the {procedure} image <image>, name the action that is being carried out.",
                      "The picture <image> was taken during {procedure}. Which action does it show?",
                      "Look at the {procedure} image <image> and say which action the instruments perform."}},
    [TASK_MOTION] = {"Given the {procedure} image <image>, what is the motion of the laparoscope?",
                     {"How is the camera moving in the {procedure} image <image>?",
                      "Which way does the laparoscope move in the {procedure} image <image>?",
                      "In the {procedure} image <image>, name the motion of the laparoscope.",
                      "The picture <image> was taken during {procedure}. How does the view move?",
                      "Does the camera stand still or move in the {procedure} image <image>, and how?"}},
    [TASK_TRIPLET] =
        {"Given the {procedure} image <image>, describe the complete surgical action in terms of tool, "
         "action, and tissue.",
         {"In the {procedure} image <image>, which instrument does what to which tissue?",
          "Describe the {procedure} image <image> as instrument, verb and target.",
          "What does each instrument do, and to what, in the {procedure} image <image>?",
          "List the interactions in the {procedure} image <image>, each as instrument verb target.",
          "The picture <image> was taken during {procedure}. Name every instrument with its verb and target."}},
    [TASK_COUNT] = {"Given the {procedure} image <image>, how many tools are visible?",
                    {"How many instruments are in view in the {procedure} image <image>?",
                     "Count the instruments in the {procedure} image <image>.",
                     "In the {procedure} image <image>, what is the number of visible instruments?",
                     "The picture <image> was taken during {procedure}. How many instruments does it show?",
                     "Look at the {procedure} image <image> and give the number of instruments."}},
    [TASK_STEP] = {"Given the {procedure} image <image>, which surgical step is being performed?",
                   {"Which step of the operation does the {procedure} image <image> show?",
                    "In the {procedure} image <image>, which step is under way?",
                    "Name the surgical step of the {procedure} image <image>.",
                    "The picture <image> was taken during {procedure}. At which step?",
                    "What step has the team reached in the {procedure} image <image>?"}},
    [TASK_PHASE] = {"Given the {procedure} image <image>, which surgical phase is being performed?",
                    {"Which phase of the operation does the {procedure} image <image> show?",
                     "In the {procedure} image <image>, which phase is under way?",
                     "Name the surgical phase of the {procedure} image <image>.",
                     "The picture <image> was taken during {procedure}. In which phase?",
                     "What phase has the operation reached in the {procedure} image <image>?"}},
    [TASK_CVS] =
        {CVS_ROLE "is the critical view of safety achieved?",
         {"Is the critical view of safety achieved in the {procedure} image <image>?" YES_NO,
          "In the {procedure} image <image>, are all three criteria of the critical view of safety met?" YES_NO,
          "Would clipping be safe by the critical view of safety in the {procedure} image <image>?" YES_NO,
          "Look at the {procedure} image <image>: does it give the full critical view of safety?" YES_NO,
          "Does the picture <image> satisfy the critical view of safety?" YES_NO}},
    [TASK_PROTOCOL] = {"Given the {procedure} image <image>, which action does the protocol ask for next?",
                       {"By the protocol, which action comes next in the {procedure} image <image>?",
                        "In the {procedure} image <image>, what does the protocol ask for next?",
                        "Go through the protocol for the {procedure} image <image> and name the next action.",
                        "The picture <image> was taken during {procedure}. To which action does the protocol lead?",
                        "Look at the {procedure} image <image>: where does the protocol end?"}},
    [TASK_VQA] = {"Given the {procedure} image <image>, {question}",
                  {"Look at the {procedure} image <image>. {question}", "In the {procedure} image <image>: {question}",
                   "About the {procedure} image <image>: {question}",
                   "The picture <image> was taken during {procedure}. {question}",
                   "Answer from the {procedure} image <image>: {question}"}},
#define VQLA_HINT " Answer with {\"answer\": \"...\", \"bbox_2d\": [x1, y1, x2, y2]}, in pixels."
    [TASK_VQLA] = {"Given the {procedure} image <image>, {question}" VQLA_HINT,
                   {"Look at the {procedure} image <image>. {question}" VQLA_HINT,
                    "In the {procedure} image <image>: {question}" VQLA_HINT,
                    "About the {procedure} image <image>: {question}" VQLA_HINT,
                    "The picture <image> was taken during {procedure}. {question}" VQLA_HINT,
                    "Answer from the {procedure} image <image>: {question}" VQLA_HINT}},
};

// For small models: one wording, the picture in front, so that all questions about a picture begin alike.
static const char *const brief[TASKS] = {
    [TASK_TOOL] = "<image>Which tools?",
    [TASK_TISSUE] = "<image>Which tissues?",
    [TASK_TOOL_BOX] = "<image>Box of the {slot}?",
    [TASK_TOOL_BOXES] = "<image>Box of every tool?",
    [TASK_TISSUE_BOX] = "<image>Box of the {slot}?",
    [TASK_GRID] = "<image>Where is the {slot}?",
    [TASK_CVS1] = "<image>Two structures?",
    [TASK_CVS2] = "<image>Triangle clear?",
    [TASK_CVS3] = "<image>Plate seen?",
    [TASK_ACTION] = "<image>Which action?",
    [TASK_MOTION] = "<image>Which motion?",
    [TASK_TRIPLET] = "<image>Which triplets?",
    [TASK_COUNT] = "<image>How many tools?",
    [TASK_STEP] = "<image>Which step?",
    [TASK_PHASE] = "<image>Which phase?",
    [TASK_CVS] = "<image>View achieved?",
    [TASK_PROTOCOL] = "<image>Which action next?",
    [TASK_VQA] = "<image>{question}",
    [TASK_VQLA] = "<image>{question} With a box.",
};

const char *task_brief_question(enum Task t) { return brief[t] + strlen("<image>"); }

int task_pick(uint64_t seed, const char *id, uint32_t what, int n) {
    if (!id) id = "";
    return (int)(random_uniform(seed, RANDOM_WORDING, bytes_hash(id, strlen(id)), what) * n);
}

static void add_spaced(Text *out, const char *name) { // names of label sets write spaces as underscores
    for (; *name; name++) text_add(out, *name == '_' ? " " : name, 1);
}

static void fill(Text *out, const char *template, const TaskItem *t) {
    for (const char *p = template; *p;) {
        size_t n = strcspn(p, "{");
        text_add(out, p, n);
        p += n;
        if (!*p) break;
        if (!strncmp(p, "{procedure}", 11)) {
            add_spaced(out, t->procedure ? t->procedure : "surgical");
            p += 11;
        } else if (!strncmp(p, "{slot}", 6)) {
            add_spaced(out, t->slot ? t->slot : "object");
            p += 6;
        } else if (!strncmp(p, "{question}", 10)) {
            text_addf(out, "%s", t->question ? t->question : "what is shown?");
            p += 10;
        } else text_add(out, p++, 1);
    }
}

const char *task_system_prompt(bool short_one) {
    if (short_one) return "First <think>...</think>, then <answer>...</answer>.";
    return "You are a surgical assistant who looks at pictures of operations and answers the user's questions about "
           "them. "
           "First think about what the picture shows, between <think> and </think>. Then give the final answer alone, "
           "between <answer> and </answer>. Write nothing outside of these two.";
}

void task_question(const TaskItem *t, TaskWording w, Text *out) {
    bool placed = t->question && strstr(t->question, "<image>"); // already a whole question
    int k = task_pick(w.seed, t->id, 0, PHRASES);
    if (placed && (t->task == TASK_VQA || t->task == TASK_VQLA)) text_addf(out, "%s", t->question);
    else fill(out, w.brief ? brief[t->task] : w.compat ? phrases[t->task].compat : phrases[t->task].own[k], t);
    for (int i = 0; w.choices && i < t->n_choices && i < TASK_MAX_CHOICES; i++)
        text_addf(out, "\n%c. %s", 'A' + i, t->choices[i]);
}

const char *task_grid_cell(double x, double y, double width, double height) {
    static const char *const cells[3][3] = {{"upper left", "upper middle", "upper right"},
                                            {"middle left", "center", "middle right"},
                                            {"lower left", "lower middle", "lower right"}};
    int column = (int)(3 * x / width), row = (int)(3 * y / height);
    return cells[row < 0 ? 0 : row > 2 ? 2 : row][column < 0 ? 0 : column > 2 ? 2 : column];
}

void task_list_text(const char *const *names, int n, Text *out) {
    for (int i = 0; i < n; i++) text_addf(out, "%s%s", !i ? "" : i < n - 1 ? ", " : " and ", names[i]);
}

static void add_box_text(Text *out, const Box *b) {
    text_addf(out, "{\"bbox_2d\": [%.10g, %.10g, %.10g, %.10g], \"label\": ", b->x1, b->y1, b->x2, b->y2);
    text_add_json_string(out, b->label, strlen(b->label));
    text_addf(out, "}");
}

bool task_answer_text(const TaskItem *t, TaskWording w, Text *out) {
    enum AnswerKind kind = tasks[t->task].kind;
    if (kind == ANSWER_BOX || kind == ANSWER_BOXES) {
        bool many = kind == ANSWER_BOXES;
        if (many ? t->n_boxes < 0 : t->n_boxes != 1) return false;
        if (many && !t->n_boxes) text_addf(out, "No tools detected");
        else if (w.compat || w.brief)
            for (int i = 0; i < t->n_boxes; i++)
                text_addf(out, "%s%s<bbox>", i ? ", " : "", many ? t->boxes[i].label : "");
        else {
            text_addf(out, "%s", many ? "[" : "");
            for (int i = 0; i < t->n_boxes; i++) text_addf(out, "%s", i ? ", " : ""), add_box_text(out, &t->boxes[i]);
            text_addf(out, "%s", many ? "]" : "");
        }
        return true;
    }
    if (!t->answer || !*t->answer) return false;
    if (kind == ANSWER_VQLA) {
        if (t->n_boxes != 1) return false;
        const Box *b = &t->boxes[0];
        text_addf(out, "{\"answer\": ");
        text_add_json_string(out, t->answer, strlen(t->answer));
        text_addf(out, ", \"bbox_2d\": [%.10g, %.10g, %.10g, %.10g]}", b->x1, b->y1, b->x2, b->y2);
        return true;
    }
    if (!w.choices || !t->n_choices) {
        text_addf(out, "%s", t->answer);
        return true;
    }
    for (int i = 0; i < t->n_choices && i < TASK_MAX_CHOICES; i++)
        if (!strcmp(t->choices[i], t->answer)) {
            text_addf(out, "%c. %s", 'A' + i, t->answer);
            return true;
        }
    return false;
}

// ---------------------------------------------------------------------------------------------------------- record
static void add_member(Text *out, const char *name, const char *value) {
    if (!value) return;
    text_addf(out, ",\"%s\":", name);
    text_add_json_string(out, value, strlen(value));
}

static void add_turn(Text *out, const char *role, const char *text, size_t len) {
    text_addf(out, "%s{\"role\":\"%s\",\"content\":", out->p[out->len - 1] == '[' ? "" : ",", role);
    text_add_json_string(out, text, len);
    text_addf(out, "}");
}

static int count_marks(const char *text, const char *mark) {
    int n = 0;
    for (const char *p = text; (p = strstr(p, mark)); p += strlen(mark)) n++;
    return n;
}

static void add_boxes(Text *out, const TaskItem *t) {
    text_addf(out, ",\"boxes\":[");
    for (int i = 0; i < t->n_boxes; i++) {
        const Box *b = &t->boxes[i];
        text_addf(out, "%s{\"label\":", i ? "," : "");
        text_add_json_string(out, b->label, strlen(b->label));
        text_addf(out, ",\"box\":[%.10g,%.10g,%.10g,%.10g]}", b->x1, b->y1, b->x2, b->y2);
    }
    text_addf(out, "]");
}

static void add_objects(Text *out, const TaskItem *t) { // what <bbox> in the answer stands for
    text_addf(out, ",\"objects\":{\"ref\":[],\"bbox\":[");
    for (int i = 0; i < t->n_boxes; i++) {
        const Box *b = &t->boxes[i];
        text_addf(out, "%s[%.10g,%.10g,%.10g,%.10g]", i ? "," : "", b->x1, b->y1, b->x2, b->y2);
    }
    text_addf(out, "]}");
}

void task_record_print(const TaskItem *t, TaskWording w, const char *completion, const char *more, Text *out) {
    Text question = {0};
    const TaskInfo *info = &tasks[t->task];
    task_question(t, w, &question);
    text_addf(out, "{\"id\":");
    text_add_json_string(out, t->id, strlen(t->id));
    text_addf(out, ",\"messages\":[");
    const char *system = task_system_prompt(w.brief);
    if (w.reasoning) add_turn(out, "system", system, strlen(system));
    add_turn(out, "user", question.p, question.len);
    if (completion) add_turn(out, "assistant", completion, strlen(completion));
    text_addf(out, "],\"images\":[");
    text_add_json_string(out, t->image, strlen(t->image));
    text_addf(out, "]");
    if (completion && count_marks(completion, "<bbox>")) add_objects(out, t);
    if (completion && strstr(completion, "bbox_2d")) add_member(out, "box_frame", "original");
    text_addf(out, ",\"task\":\"%s\",\"level\":%d", info->name, info->level);
    add_member(out, "answer", t->answer);
    if (t->n_choices) {
        text_addf(out, ",\"choices\":[");
        for (int i = 0; i < t->n_choices; i++) {
            text_addf(out, "%s", i ? "," : "");
            text_add_json_string(out, t->choices[i], strlen(t->choices[i]));
        }
        text_addf(out, "]");
    }
    if (t->n_boxes || info->kind == ANSWER_BOXES) add_boxes(out, t);
    add_member(out, "slot", t->slot);
    add_member(out, "question", t->question);
    add_member(out, "procedure", t->procedure);
    add_member(out, "dataset", t->dataset);
    add_member(out, "patient", t->patient);
    add_member(out, "video", t->video);
    text_addf(out, ",\"frame\":%lld", (long long)t->frame);
    add_member(out, "split", t->split);
    if (t->width) text_addf(out, ",\"size\":[%lld,%lld]", (long long)t->width, (long long)t->height);
    if (t->truth) text_addf(out, ",\"truth\":%s", t->truth);
    if (more && *more) text_addf(out, ",%s", more);
    text_addf(out, "}\n");
    text_free(&question);
}

// --------------------------------------------------------------------------------------------------- reading a record
typedef struct RecordReader {
    TaskRecord *r;
    Err *e;
} RecordReader;

static const Json *member(const Json *object, const char *key) { // null counts as absent
    const Json *v = json_get(object, key);
    return v && v->type != JSON_NULL ? v : NULL;
}

static bool unfit(const RecordReader *d, const Json *v, const char *code, const char *field, const char *expected,
                  const char *found, const char *todo) {
    return err_set(d->e, code, json_at(&d->r->doc, v, field), "expected %s; found %s; do: %s", expected, found, todo);
}

// A plain text: a string without NUL and control characters but tab and newline. numbers: an integer will do, as it is
// written.
static bool plain_text(const RecordReader *d, const char *key, bool numbers, const char **out) {
    const Json *v = member(d->r->doc.root, key);
    if (!v) return true;
    if (v->type != JSON_STRING && !(numbers && v->type == JSON_NUMBER && v->integer))
        return unfit(d, v, "E-DS-02", key, "a string", json_shown(v), "write a text there");
    for (size_t i = 0; i < v->len; i++) {
        unsigned char c = (unsigned char)v->str[i];
        if ((c < 0x20 && c != '\t' && c != '\n') || c == 0x7F)
            return unfit(d, v, "E-DS-05", key, "text without control characters", quoted(v->str + i, 1), "remove it");
    }
    *out = v->str;
    return true;
}

// The text of the first of these members that is there. An array stands for its only element.
static const Json *first_member(const Json *root, const char *const *keys, int n, const char **key) {
    for (int i = 0; i < n; i++) {
        const Json *v = member(root, keys[i]);
        if (v && v->type == JSON_ARRAY && v->count == 1) v = v->child;
        *key = keys[i];
        if (v) return v;
    }
    return NULL;
}

static bool read_size(const RecordReader *d, const char *key, int64_t *width, int64_t *height) {
    const Json *v = member(d->r->doc.root, key);
    if (!v) return true;
    const Json *w = v->child, *h = w ? w->next : NULL;
    bool ok = v->type == JSON_ARRAY && v->count == 2 && w->integer && h->integer && w->i > 0 && h->i > 0 &&
              w->i <= LIMIT_IMAGE_SIDE && h->i <= LIMIT_IMAGE_SIDE;
    if (!ok) return unfit(d, v, "E-DS-02", key, "[width, height] in pixels", json_shown(v), "write two integers");
    *width = w->i, *height = h->i;
    return true;
}

static bool read_box(const RecordReader *d, const Json *v, Box *b) {
    const Json *box = v->type == JSON_OBJECT ? member(v, "box") : v, *name = member(v, "label");
    double *corner[4] = {&b->x1, &b->y1, &b->x2, &b->y2};
    const TaskItem *t = &d->r->item;
    bool ok = box && box->type == JSON_ARRAY && box->count == 4 && (!name || name->type == JSON_STRING);
    const Json *c = ok ? box->child : NULL;
    for (int i = 0; c; i++, c = c->next) ok = ok && c->type == JSON_NUMBER, *corner[i] = c->number;
    if (!ok)
        return unfit(d, v, "E-DS-02", "boxes", "{\"label\": ..., \"box\": [x1, y1, x2, y2]}", json_shown(v),
                     "write each box like that");
    bool inside = b->x1 >= 0 && b->y1 >= 0 && b->x1 < b->x2 && b->y1 < b->y2;
    if (t->width && (b->x2 > (double)t->width || b->y2 > (double)t->height)) inside = false;
    if (!inside)
        return unfit(d, v, "E-DS-06", "boxes", "0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height",
                     "a box that is not inside", "write pixels of the original picture");
    if (!name) return true;
    if (name->len >= sizeof b->label || memchr(name->str, 0, name->len))
        return unfit(d, name, "E-DS-05", "boxes", "a name of at most 63 bytes", quoted(name->str, name->len),
                     "shorten it");
    memcpy(b->label, name->str, name->len);
    return true;
}

static bool read_boxes(RecordReader *d) {
    TaskItem *t = &d->r->item;
    const Json *v = member(d->r->doc.root, "boxes");
    t->n_boxes = !v && tasks[t->task].kind == ANSWER_BOXES ? -1 : 0; // an empty list says that there is none
    if (!v) return true;
    if (v->type != JSON_ARRAY || v->count > LIMIT_BOXES)
        return unfit(d, v, v->type == JSON_ARRAY ? "E-DS-06" : "E-DS-02", "boxes", "a list of at most 64 boxes",
                     v->type == JSON_ARRAY ? "more" : json_shown(v), "write a list of boxes");
    t->boxes = alloc_or_die(v->count + 1, sizeof *t->boxes, "the boxes of a record");
    for (const Json *c = v->child; c; c = c->next)
        if (!read_box(d, c, &t->boxes[t->n_boxes++])) return false;
    return true;
}

static bool add_choice(RecordReader *d, char *text) {
    TaskItem *t = &d->r->item;
    if (!d->r->choices) d->r->choices = alloc_or_die(TASK_MAX_CHOICES, sizeof *d->r->choices, "choices");
    d->r->choices[t->n_choices++] = text;
    t->choices = (const char *const *)d->r->choices;
    return t->n_choices < TASK_MAX_CHOICES;
}

// The options as the prompt lists them, a line each from "A. " on: files of other systems have no other place for them.
static void choices_of_prompt(RecordReader *d) {
    TaskRecord *r = d->r;
    const char *p = r->prompt ? strchr(r->prompt, '\n') : NULL;
    for (; p; p = strchr(p, '\n')) {
        p++;
        if (p[0] != 'A' + r->item.n_choices || p[1] != '.' || p[2] != ' ') continue;
        size_t len = strcspn(p + 3, "\n");
        char *text = alloc_or_die(len + 1, 1, "a choice");
        memcpy(text, p + 3, len);
        if (!add_choice(d, text)) break;
    }
    r->choices_owned = r->item.n_choices > 0;
}

static bool read_choices(RecordReader *d) {
    const Json *v = member(d->r->doc.root, "choices");
    if (!v) return choices_of_prompt(d), true;
    if (v->type != JSON_ARRAY || v->count > TASK_MAX_CHOICES)
        return unfit(d, v, "E-DS-02", "choices", "a list of at most 26 texts", json_shown(v), "list the options");
    for (const Json *c = v->child; c; c = c->next) {
        if (c->type != JSON_STRING || !c->len || memchr(c->str, 0, c->len))
            return unfit(d, c, "E-DS-02", "choices", "a text", json_shown(c), "write the option's name");
        add_choice(d, (char *)(uintptr_t)c->str);
    }
    return true;
}

static bool read_texts(RecordReader *d) {
    static const char *const labels[] = {"answer", "labels", "label", "ground_truth", "target"};
    static const char *const responses[] = {"response", "prediction", "output", "completion"};
    TaskRecord *r = d->r;
    TaskItem *t = &r->item;
    const Json *root = r->doc.root, *v;
    const char *key;
    if (!plain_text(d, "dataset", false, &t->dataset) || !plain_text(d, "procedure", false, &t->procedure) ||
        !plain_text(d, "patient", true, &t->patient) || !plain_text(d, "video", true, &t->video) ||
        !plain_text(d, "split", false, &t->split) || !plain_text(d, "slot", false, &t->slot) ||
        !plain_text(d, "question", false, &t->question))
        return false;
    v = first_member(root, labels, 5, &key);
    bool number = v && v->type == JSON_NUMBER && v->integer;
    if (v && !number && (v->type != JSON_STRING || memchr(v->str, 0, v->len)))
        return unfit(d, v, "E-DS-02", key, "the label as a text", json_shown(v), "write a text there");
    t->answer = v ? v->str : NULL;
    v = first_member(root, responses, 4, &key);
    if (v && v->type != JSON_STRING)
        return unfit(d, v, "E-DS-02", key, "the completion as a text", json_shown(v), "write the model's whole text");
    if (v) r->response = v->str, r->response_len = v->len;
    v = first_member(root, (const char *const[]){"images", "image"}, 2, &key);
    if (v && v->type == JSON_STRING && !memchr(v->str, 0, v->len)) t->image = v->str;
    v = member(root, "messages");
    for (const Json *m = v && v->type == JSON_ARRAY ? v->child : NULL; m; m = m->next) {
        const Json *role = json_get(m, "role"), *text = json_get(m, "content");
        if (role && json_is(role, "user") && text && text->type == JSON_STRING && !memchr(text->str, 0, text->len))
            r->prompt = text->str;
    }
    return true;
}

static bool read_record(RecordReader *d, int64_t number) {
    TaskRecord *r = d->r;
    TaskItem *t = &r->item;
    const Json *root = r->doc.root, *task = member(root, "task"), *truth = member(root, "truth");
    if (root->type != JSON_OBJECT)
        return unfit(d, root, "E-DS-01", NULL, "a JSON object", json_shown(root), "write one object a line");
    t->task = TASK_VQA;
    if (!plain_text(d, "id", true, &t->id)) return false;
    if (!t->id) {
        r->id = alloc_or_die(24, 1, "an id");
        snprintf(r->id, 24, "%lld", (long long)number);
        t->id = r->id;
    }
    size_t len = strlen(t->id);
    if (len < 1 || len > 256)
        return unfit(d, member(root, "id"), "E-DS-03", "id", "1 to 256 bytes", quoted(t->id, len), "use a shorter id");
    if (task) {
        int k = task->type == JSON_STRING ? task_of(task->str) : -1;
        if (k < 0)
            return unfit(d, task, "E-DS-02", "task", "the name of a task (tool, triplet, phase, vqla, ...)",
                         json_shown(task), "use a name of data/README.md");
        t->task = (enum Task)k;
    }
    if (!json_int(&r->doc, root, "frame", false, 0, INT64_MAX, &t->frame, d->e) ||
        !json_int(&r->doc, root, "tokens", false, 0, INT32_MAX, &r->tokens, d->e) ||
        !read_size(d, "size", &t->width, &t->height) ||
        !read_size(d, "resized", &r->resized_width, &r->resized_height) || !read_texts(d) || !read_choices(d) ||
        !read_boxes(d))
        return false;
    if (truth) {
        json_print(&r->truth, truth);
        t->truth = r->truth.p;
    }
    return true;
}

bool task_record_read(TaskRecord *r, const char *line, size_t len, const char *file, int64_t number, Err *e) {
    *r = (TaskRecord){.tokens = -1};
    RecordReader d = {r, e};
    if (!json_parse(&r->doc, line, len, file, (JsonOptions){.refuse_duplicates = true, .first_line = (uint32_t)number},
                    e))
        return false;
    if (read_record(&d, number)) return true;
    task_record_free(r);
    return false;
}

void task_record_free(TaskRecord *r) {
    for (int i = 0; r->choices_owned && i < r->item.n_choices; i++) free(r->choices[i]);
    free(r->choices);
    free(r->id);
    free(r->item.boxes);
    text_free(&r->truth);
    json_free(&r->doc);
    *r = (TaskRecord){0};
}
