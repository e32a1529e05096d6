// test_synth.c - requests to a teacher and back: every way an answer can be wrong, and the teacher of drawn scenes.
#include "../surgr1.h"
#include "test.h"
#include <dirent.h>
#include <sys/stat.h>

static const char *const knowledge_files[] = {"data/knowledge/cholecystectomy.json", "data/knowledge/cvs.json",
                                              "data/knowledge/prostatectomy.json", "data/knowledge/bypass.json",
                                              "data/knowledge/nephrectomy.json"};
enum { KNOWLEDGE = sizeof knowledge_files / sizeof *knowledge_files };

static void wipe(void) {
    extern char *synth_dir;
    char command[200];
    snprintf(command, sizeof command, "rm -rf '%s'", synth_dir);
    if (synth_dir[0] && system(command)) perror(command);
}
char *synth_dir;
static const char *in(const char *name) { // a path in a folder of this run
    static char dir[64], ring[16][160];
    static int next;
    if (!*dir) {
        snprintf(dir, sizeof dir, "/tmp/surgr1_synth_XXXXXX");
        if (!mkdtemp(dir)) perror("mkdtemp"), exit(1);
        synth_dir = dir;
        atexit(wipe);
    }
    snprintf(ring[++next % 16], 160, "%s/%s", dir, name);
    return ring[next % 16];
}

static void write_text(const char *path, const char *text) {
    FILE *f = fopen(path, "w");
    if (!f || fputs(text, f) < 0 || fclose(f)) perror(path), exit(1);
}

static char *read_text(const char *path, size_t *size) {
    char *data = NULL;
    size_t n = 0;
    Err e = {0};
    if (!file_read(path, 1 << 28, "E-JS-01", &data, &n, &e)) FAIL("%s: %s", path, e.found);
    if (size) *size = n;
    return data;
}

// Records of `frames` drawn scenes with their pictures: in(name) and frames/.
static int scenes_to(const char *name, int frames, uint32_t tasks, enum SceneKind kind, uint64_t seed) {
    Text out = {0};
    Err e = {0};
    int n = 0;
    mkdir(in("frames"), 0755);
    for (int i = 0; i < frames; i++) {
        Scene s;
        char image[64];
        SceneOptions o = {.seed = seed, .index = i * 5, .width = 96, .height = 80, .kind = kind};
        snprintf(image, sizeof image, "frames/%s-%d.png", name, i);
        scene_render(&s, &o);
        SceneRecords how = {
            .seed = seed, .index = o.index, .split = "train", .image = image, .truth = true, .tasks = tasks};
        n += scene_records(&s, &how, &out);
        EXPECT(image_write_png(in(image), s.rgb, s.width, s.height, &e));
        scene_free(&s);
    }
    write_text(in(name), out.p ? out.p : "");
    text_free(&out);
    return n;
}

static SynthRequests asking(const char *data, const char *out) {
    return (SynthRequests){.data = data,
                           .knowledge = knowledge_files,
                           .n_knowledge = KNOWLEDGE,
                           .out = out,
                           .model = "teacher-1",
                           .image_detail = "high",
                           .limit_name = "max_tokens",
                           .max_tokens = 1000,
                           .temperature = 0.5,
                           .max_bytes = 90000000,
                           .min_words = 40,
                           .max_words = 450};
}

// -------------------------------------------------------------------------------------------------------- knowledge
TEST(every_knowledge_file_is_read_and_fits_its_own_procedures_only) {
    static const char *const procedures[] = {"laparoscopic cholecystectomy", "Laparoscopic_Cholecystectomy",
                                             "radical prostatectomy",        "gastric bypass",
                                             "robotic nephrectomy",          "tonsillectomy"};
    static const int fits[][KNOWLEDGE] = {{1, 1, 0, 0, 0}, {1, 1, 0, 0, 0}, {0, 0, 1, 0, 0},
                                          {0, 0, 0, 1, 0}, {0, 0, 0, 0, 1}, {0}};
    for (int k = 0; k < KNOWLEDGE; k++) {
        Knowledge x;
        Err e = {0};
        if (!knowledge_read(&x, knowledge_files[k], &e)) {
            FAIL("%s:%lld: %s %s: expected %s, found %s", knowledge_files[k], (long long)e.line, e.code, e.field,
                 e.expected, e.found);
            continue;
        }
        for (int p = 0; p < 6; p++) {
            if (knowledge_fits(&x, procedures[p], TASK_CVS2) != fits[p][k])
                FAIL("%s and %s", knowledge_files[k], procedures[p]);
            EXPECT(knowledge_fits(&x, procedures[p], TASK_PHASE) ==
                   (fits[p][k] && k != 1)); // cvs.json is for its tasks
        }
        knowledge_free(&x);
    }
}

TEST(a_prompt_holds_only_what_its_task_needs) {
    Knowledge chole, cvs;
    Err e = {0};
    EXPECT(knowledge_read(&chole, knowledge_files[0], &e) && knowledge_read(&cvs, knowledge_files[1], &e));
    Text tool = {0}, phase = {0}, c2 = {0};
    knowledge_print(&chole, TASK_TOOL, &tool);
    knowledge_print(&chole, TASK_PHASE, &phase);
    knowledge_print(&cvs, TASK_CVS2, &c2);
    EXPECT(strstr(tool.p, "- clipper: silver") && !strstr(tool.p, "Phases") && !strstr(tool.p, "Combinations"));
    EXPECT(strstr(phase.p, "- clipping and cutting: ") && strstr(phase.p, "- irrigator: aspirate fluid") &&
           strstr(phase.p, "gallbladder 10717"));
    EXPECT(strstr(c2.p, "\"hepatocystic triangle\"") && !strstr(c2.p, "\"cystic plate\""));
    EXPECT_INT(knowledge_terms(&chole, "Two graspers hold the cystic-duct.", 34), 2);
    EXPECT_INT(knowledge_terms(&chole, "a hooked thing, ductus cysticus", 31), 0); // whole words only
    EXPECT_STR(knowledge_foreign(&chole, "The Jejunum is pink", 19), "jejunum");
    EXPECT(!knowledge_foreign(&chole, "The liver is brown", 18));
    text_free(&tool), text_free(&phase), text_free(&c2);
    knowledge_free(&chole), knowledge_free(&cvs);
}

TEST(a_knowledge_file_with_a_mistake_refuses) {
#define HEAD "{\"name\":\"x\",\"procedures\":[\"x\"],\"what\":\"x\",\"sources\":{\"G\":\"g\"}"
#define TOOL(more)                                                                                                     \
    ",\"tools\":[{\"name\":\"a\",\"colour\":\"c\",\"shape\":\"s\",\"texture\":\"t\",\"use\":\"u\"," more "}]"
    static const char *const good = HEAD TOOL("\"source\":\"G\"") "}";
    static const char *const bad[] = {
        "[]",
        "{\"name\":\"x\"}",
        HEAD ",\"tols\":[]}",
        HEAD TOOL("\"source\":\"Q\"") "}",
        HEAD TOOL("\"use2\":\"\",\"source\":\"G\"") "}",
        HEAD TOOL("\"aliases\":\"b\",\"source\":\"G\"") "}",
        HEAD ",\"tools\":[{\"name\":\"a\",\"source\":\"G\"}]}",
        HEAD TOOL("\"source\":\"G\"") ",\"cooccurrence\":[{\"tool\":\"b\",\"action\":\"x\",\"source\":\"G\"}],\"other_"
                                      "verbs\":[\"x\"]}",
        HEAD TOOL("\"source\":\"G\"") ",\"cooccurrence\":[{\"tool\":\"a\",\"action\":\"x\",\"source\":\"G\"}]}",
        HEAD ",\"tasks\":[\"sing\"]}",
        HEAD ",\"target_counts\":{\"a\":-1}}",
        HEAD ",\"name\":\"y\"}"};
    Knowledge k;
    Err e = {0};
    write_text(in("k.json"), good);
    EXPECT(knowledge_read(&k, in("k.json"), &e));
    knowledge_free(&k);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        e = (Err){0};
        write_text(in("k.json"), bad[i]);
        bool read = knowledge_read(&k, in("k.json"), &e);
        if (read) FAIL("accepted %s", bad[i]);
        if (read) knowledge_free(&k);
        else EXPECT(!strcmp(e.code, "E-CF-02") || !strcmp(e.code, "E-JS-08"));
    }
}

// --------------------------------------------------------------------------------------------------------- requests
typedef struct Asked { // what a manifest says
    char id[65], file[32], *record;
    int64_t offset, bytes, attempt;
    char task[24], why[24];
} Asked;
typedef struct AskedList {
    Asked *p;
    int n;
} AskedList;

static bool add_asked(void *ctx, const char *line, size_t len, int64_t number, Err *e) {
    AskedList *l = ctx;
    JsonDoc d;
    if (number == 1) return true;
    if (!json_parse(&d, line, len, "manifest", (JsonOptions){.refuse_duplicates = true}, e)) return false;
    Asked a = {0};
    const Json *record = json_get(d.root, "record"), *why = json_get(d.root, "why");
    Text t = {0};
    json_print(&t, record);
    snprintf(a.id, sizeof a.id, "%s", json_get(d.root, "custom_id")->str),
        snprintf(a.file, sizeof a.file, "%s", json_get(d.root, "file")->str);
    snprintf(a.task, sizeof a.task, "%s", json_get(record, "task")->str);
    if (why) snprintf(a.why, sizeof a.why, "%s", why->str);
    a.record = t.p, a.offset = json_get(d.root, "offset")->i, a.bytes = json_get(d.root, "bytes")->i,
    a.attempt = json_get(d.root, "attempt")->i;
    l->p = grow_or_die(l->p, (size_t)l->n + 1, sizeof *l->p, "a test");
    l->p[l->n++] = a;
    json_free(&d);
    return true;
}
static AskedList asked_of(const char *dir) {
    AskedList l = {0};
    Err e = {0};
    char path[200];
    snprintf(path, sizeof path, "%s/manifest.jsonl", dir);
    if (!lines_read(path, add_asked, &l, &e)) FAIL("%s: %s", e.expected, e.found);
    return l;
}
static void asked_free(AskedList *l) {
    for (int i = 0; i < l->n; i++) free(l->p[i].record);
    free(l->p);
}

static size_t decode(const char *text, size_t len, uint8_t *out) { // base64, the plain way
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    uint32_t bits = 0;
    int have = 0;
    size_t n = 0;
    for (size_t i = 0; i < len && text[i] != '='; i++) {
        bits = bits << 6 | (uint32_t)(strchr(digits, text[i]) - digits), have += 6;
        if (have >= 8) have -= 8, out[n++] = (uint8_t)(bits >> have);
    }
    return n;
}

TEST(requests_are_valid_batch_lines_with_the_picture_of_the_file) {
    int n = scenes_to("a.jsonl", 3, ~0u, SCENE_MIXED, 5);
    SynthSent sent;
    Err e = {0};
    SynthRequests o = asking(in("a.jsonl"), in("req-a"));
    if (!synth_requests(&o, &sent, &e)) FAIL("%s %s: expected %s; found %s", e.code, e.field, e.expected, e.found);
    EXPECT(n > 20 && sent.requests == n && sent.files == 1);
    AskedList l = asked_of(in("req-a"));
    EXPECT_INT(l.n, n);
    char *all = read_text(in("req-a/requests-000.jsonl"), NULL);
    for (int i = 0; i < l.n; i++) {
        const Asked *a = &l.p[i];
        JsonDoc d, record;
        EXPECT(strlen(a->id) <= 64 && a->id[0]);
        for (int j = 0; j < i; j++) EXPECT(strcmp(a->id, l.p[j].id));
        if (!json_parse(&d, all + a->offset, (size_t)a->bytes, "request", (JsonOptions){.refuse_duplicates = true},
                        &e)) {
            FAIL("%s", e.found);
            break;
        }
        EXPECT(json_parse(&record, a->record, strlen(a->record), "record", (JsonOptions){0}, &e));
        const Json *body = json_get(d.root, "body"), *messages = json_get(body, "messages"),
                   *user = messages->child->next;
        EXPECT(json_is(json_get(d.root, "custom_id"), a->id) && json_is(json_get(d.root, "method"), "POST"));
        EXPECT(json_is(json_get(d.root, "url"), "/v1/chat/completions") &&
               json_is(json_get(body, "model"), "teacher-1"));
        EXPECT(json_get(body, "max_tokens")->i == 1000 && json_get(body, "temperature")->number == 0.5);
        EXPECT(messages->count == 2 && json_is(json_get(messages->child, "role"), "system") &&
               json_is(json_get(user, "role"), "user"));
        const Json *parts = json_get(user, "content");
        EXPECT_INT(parts->count, 3); // the question's words stand around its picture
        const Json *before = json_get(parts->child, "text"), *image = json_get(parts->child->next, "image_url"),
                   *after = json_get(parts->child->next->next, "text");
        EXPECT(json_is(json_get(image, "detail"), "high"));
        const char *url = json_get(image, "url")->str, *head = "data:image/png;base64,";
        EXPECT(!strncmp(url, head, strlen(head)));
        size_t size;
        char *file = read_text(in(json_get(record.root, "images")->child->str), &size);
        uint8_t *bytes = malloc(strlen(url));
        EXPECT(decode(url + strlen(head), strlen(url) - strlen(head), bytes) == size && !memcmp(bytes, file, size));
        free(bytes), free(file);
        const Json *question = json_get(json_get(record.root, "messages")->child, "content");
        const char *mark = strstr(question->str, "<image>");
        EXPECT(mark && !memcmp(before->str + before->len - (size_t)(mark - question->str), question->str,
                               (size_t)(mark - question->str)));
        EXPECT(!strncmp(after->str, mark + 7, strlen(mark + 7)));
        EXPECT(!strstr(before->str, "<image>") && !strstr(after->str, "<image>") && !strstr(after->str, "\"tools\""));
        const Json *answer = json_get(record.root, "answer");
        EXPECT(!answer || strstr(after->str, answer->str));
        int level = task_info((enum Task)task_of(a->task))->level;
        EXPECT(!!strstr(after->str, "\nLevel 3:") == (level == 3) && !!strstr(after->str, "\nLevel 1:") == (level > 0));
        bool robot = strstr(a->record, "radical prostatectomy") != NULL;
        EXPECT(!!strstr(before->str, "About robot-assisted radical prostatectomy") == robot);
        EXPECT(!!strstr(before->str, "About laparoscopic cholecystectomy") == !robot);
        json_free(&d), json_free(&record);
    }
    free(all);
    asked_free(&l);
}

TEST(request_files_are_split_by_size_and_lose_nothing) {
    int n = scenes_to("b.jsonl", 4, 1u << TASK_TRIPLET | 1u << TASK_COUNT, SCENE_CHOLEC, 6);
    SynthSent sent;
    Err e = {0};
    SynthRequests o = asking(in("b.jsonl"), in("req-b"));
    o.max_bytes = 75000;
    EXPECT(synth_requests(&o, &sent, &e));
    EXPECT_INT(sent.requests, n);
    EXPECT(sent.files > 1 && sent.files <= n);
    AskedList l = asked_of(in("req-b"));
    int64_t bytes = 0;
    for (int64_t f = 0; f < sent.files; f++) {
        char name[64];
        size_t size;
        snprintf(name, sizeof name, "req-b/requests-%03lld.jsonl", (long long)f);
        char *text = read_text(in(name), &size);
        EXPECT((int64_t)size <= 75000 && size > 0);
        bytes += (int64_t)size;
        for (int i = 0; i < l.n; i++) {
            if (strcmp(l.p[i].file, name + 6)) continue;
            char wanted[100];
            snprintf(wanted, sizeof wanted, "{\"custom_id\":\"%s\",", l.p[i].id);
            EXPECT(!strncmp(text + l.p[i].offset, wanted, strlen(wanted)) &&
                   text[l.p[i].offset + l.p[i].bytes - 1] == '\n');
        }
        free(text);
    }
    EXPECT_INT(bytes, sent.bytes);
    asked_free(&l);
    o.max_bytes = 2000; // no request fits: it is not cut
    o.out = in("req-none");
    EXPECT(!synth_requests(&o, &sent, &e) && !strcmp(e.code, "E-DS-07"));
    EXPECT(!folder_exists(in("req-none")) && !folder_exists(in("req-none.part")));
}

TEST(records_that_cannot_be_asked_about_refuse) {
    static const char *const bad[] = {
        "{\"id\":\"a\",\"messages\":[{\"role\":\"user\",\"content\":\"q "
        "<image>\"}],\"images\":[\"frames/c.jsonl-0.png\"],\"task\":\"phase\",\"procedure\":\"gastric bypass\"}",
        "{\"id\":\"a\",\"messages\":[{\"role\":\"user\",\"content\":\"q "
        "<image>\"}],\"images\":[\"frames/c.jsonl-0.png\"],\"task\":\"phase\",\"answer\":\"preparation\"}",
        "{\"id\":\"a\",\"messages\":[{\"role\":\"user\",\"content\":\"q "
        "<image>\"}],\"images\":[\"frames/"
        "c.jsonl-0.png\"],\"task\":\"phase\",\"answer\":\"x\",\"procedure\":\"tonsillectomy\"}",
        "{\"id\":\"a\",\"messages\":[{\"role\":\"user\",\"content\":\"q\"}],\"task\":\"phase\",\"answer\":\"x\","
        "\"procedure\":\"gastric bypass\"}"};
    scenes_to("c.jsonl", 1, 1u << TASK_COUNT, SCENE_CHOLEC, 7);
    for (int i = 0; i < 4; i++) {
        SynthSent sent;
        Err e = {0};
        write_text(in("bad.jsonl"), bad[i]);
        SynthRequests o = asking(in("bad.jsonl"), in("req-bad"));
        EXPECT(!synth_requests(&o, &sent, &e));
        EXPECT_STR(e.code, "E-DS-02");
        EXPECT(!folder_exists(in("req-bad")) && !folder_exists(in("req-bad.part")));
    }
}

// ------------------------------------------------------------------------------------------------------- the server
static char *good_answer(const Asked *a) { // the teacher of scenes stands in for a server's model
    TaskRecord r;
    Err e = {0};
    Text t = {0};
    EXPECT(task_record_read(&r, a->record, strlen(a->record), "record", 1, &e));
    EXPECT(teach_text(&r.item, (TaskWording){.seed = 9}, json_get(r.doc.root, "truth"), (TeachOptions){0}, &t, &e));
    task_record_free(&r);
    return t.p;
}

static char *replaced(char *text, const char *what, const char *with) { // the first one; frees text
    Text t = {0};
    char *at = strstr(text, what);
    if (!at) FAIL("no %s in %s", what, text);
    else {
        text_add(&t, text, (size_t)(at - text));
        text_addf(&t, "%s%s", with, at + strlen(what));
    }
    free(text);
    return t.p;
}

enum Fault {
    GOOD,
    GOOD_BARE,
    WRONG_LABEL,
    LEAKED,
    LEVEL_MISSING,
    LEVEL_MORE,
    SHORT,
    LONG,
    TRUNCATED,
    TWICE,
    UNANSWERED,
    EMPTY,
    BLANK,
    STATUS,
    SERVER_ERROR,
    NO_RESPONSE,
    NO_TAGS,
    FUSED_TAG,
    GERMAN,
    OTHER_ORGAN,
    TWO_CHOICES,
    TWO_ANSWERS,
    PICTURE_MARK,
    CONTROL,
    FAULTS
};
static const enum SynthVerdict expected[FAULTS] = {[GOOD] = SYNTH_ACCEPTED,         [GOOD_BARE] = SYNTH_ACCEPTED,
                                                   [WRONG_LABEL] = SYNTH_ANSWER,    [LEAKED] = SYNTH_LEAK,
                                                   [LEVEL_MISSING] = SYNTH_LEVELS,  [LEVEL_MORE] = SYNTH_LEVELS,
                                                   [SHORT] = SYNTH_LENGTH,          [LONG] = SYNTH_LENGTH,
                                                   [TRUNCATED] = SYNTH_CUT,         [TWICE] = SYNTH_DUPLICATE,
                                                   [UNANSWERED] = SYNTH_MISSING,    [EMPTY] = SYNTH_EMPTY,
                                                   [BLANK] = SYNTH_EMPTY,           [STATUS] = SYNTH_ERROR,
                                                   [SERVER_ERROR] = SYNTH_ERROR,    [NO_RESPONSE] = SYNTH_ERROR,
                                                   [NO_TAGS] = SYNTH_FORMAT,        [FUSED_TAG] = SYNTH_FORMAT,
                                                   [GERMAN] = SYNTH_LANGUAGE,       [OTHER_ORGAN] = SYNTH_VOCABULARY,
                                                   [TWO_CHOICES] = SYNTH_DUPLICATE, [TWO_ANSWERS] = SYNTH_FORMAT,
                                                   [PICTURE_MARK] = SYNTH_FORMAT,   [CONTROL] = SYNTH_FORMAT};

static void respond(const Asked *a, enum Fault fault, Text *out) {
    char *text = good_answer(a);
    const char *finish = "stop";
    bool bare = fault == GOOD_BARE;
    Text t = {0};
    switch (fault) {
    case UNANSWERED: free(text); return;
    case WRONG_LABEL: text = replaced(text, "<answer>", "<answer>hook dissect gut, "); break;
    case LEAKED: text = replaced(text, "Level 2:", "Level 2: The given answer fits what is seen."); break;
    case LEVEL_MISSING: text = replaced(text, "Level 2:", "And then:"); break;
    case LEVEL_MORE: text = replaced(text, "</think>", "\n\nLevel 3: This is the phase of dissection.</think>"); break;
    case SHORT:
        text_addf(&t, "<think>Level 1: a tool.\n\nLevel 2: it acts.</think>%s", strstr(text, "\n<answer>"));
        free(text), text = t.p;
        break;
    case LONG:
        for (int i = 0; i < 60; i++) text_addf(&t, " The liver is seen here and there."); // 420 words more
        text_addf(&t, "</think>");
        text = replaced(text, "</think>", t.p);
        text_free(&t);
        break;
    case TRUNCATED: finish = "length"; break;
    case EMPTY: text[0] = 0; break;
    case BLANK: strcpy(text, " \n "); break;
    case NO_TAGS: text = replaced(text, "<think>", ""); break;
    case FUSED_TAG: text = replaced(text, "</think>", "Thethink>"); break;
    case GERMAN:
        text_addf(&t, "<think>Level 1: ");
        for (int i = 0; i < 12; i++) text_addf(&t, "Die Zange liegt oben links neben der Leber. ");
        text_addf(&t, "\n\nLevel 2: Die Zange zieht die Gallenblase zur Seite.</think>%s", strstr(text, "\n<answer>"));
        free(text), text = t.p;
        break;
    case OTHER_ORGAN: text = replaced(text, "Level 2:", "Level 2: The jejunum is near."); break;
    case TWO_ANSWERS: text = replaced(text, "</answer>", "</answer><answer>x</answer>"); break;
    case PICTURE_MARK: text = replaced(text, "Level 2:", "Level 2: In <image> one sees it."); break;
    case CONTROL: text = replaced(text, "Level 2:", "Level 2: \x1b[2J"); break;
    default: break;
    }
    Text completion = {0};
    text_addf(&completion, "{\"id\":\"c\",\"object\":\"chat.completion\",\"model\":\"teacher-1-2025\",\"choices\":[");
    for (int k = 0; k < (fault == TWO_CHOICES ? 2 : 1); k++) {
        text_addf(&completion, "%s{\"index\":%d,\"message\":{\"role\":\"assistant\",\"content\":", k ? "," : "", k);
        if (fault == GOOD_BARE) text = replaced(text, "</answer>", "</answer>\n \n");
        text_add_json_string(&completion, text, strlen(text));
        text_addf(&completion, "},\"finish_reason\":\"%s\"}", finish);
    }
    text_addf(&completion, "],\"usage\":{\"total_tokens\":5}}");
    for (int k = 0; k < (fault == TWICE ? 2 : 1); k++) {
        text_addf(out, "{\"id\":\"r\",\"custom_id\":\"%s\",", a->id);
        if (fault == NO_RESPONSE) text_addf(out, "\"response\":null,\"error\":null}\n");
        else if (fault == SERVER_ERROR)
            text_addf(out, "\"response\":null,\"error\":{\"code\":\"x\",\"message\":\"y\"}}\n");
        else if (bare) text_addf(out, "\"response\":%s,\"error\":null}\n", completion.p);
        else
            text_addf(out, "\"response\":{\"status_code\":%d,\"request_id\":\"q\",\"body\":%s},\"error\":null}\n",
                      fault == STATUS ? 500 : 200,
                      fault == STATUS ? "{\"error\":{\"message\":\"overloaded\"}}" : completion.p);
    }
    text_free(&completion);
    free(text);
}

static bool placed(void *ctx, Record *r, Err *e) { // a training record; ctx counts
    FrameSize s = {96, 80, 112, 84};
    ++*(int *)ctx;
    EXPECT_INT(r->n, 3);
    EXPECT_STR(r->messages[0].role, "system");
    EXPECT_INT(r->n_images, 1);
    const Json *root = r->doc.root, *last = json_get(root, "messages")->child->next->next;
    EXPECT(json_is(json_get(root, "teacher"), "teacher-1-2025") && json_get(root, "request"));
    Answer a;
    answer_parse(&a, json_get(last, "content")->str, json_get(last, "content")->len);
    EXPECT_INT(a.status, ANSWER_OK);
    EXPECT_INT(a.text.len, json_get(last, "content")->len); // nothing around it
    return record_place_boxes(r, &s, e);
}

static int records_in(const char *path) {
    int n = 0;
    Err e = {0};
    if (!records_read_all(path, (RecordOptions){.boxes = true}, NULL, placed, NULL, &n, &e))
        FAIL("%s: %s", e.expected, e.found);
    return n;
}

TEST(every_fault_of_a_response_is_counted_under_its_name_and_asked_again) {
    scenes_to("d.jsonl", 2 * FAULTS + 12, 1u << TASK_TRIPLET, SCENE_CHOLEC, 8);
    SynthSent sent;
    SynthCounts c, again;
    Err e = {0};
    SynthRequests o = asking(in("d.jsonl"), in("req-d"));
    EXPECT(synth_requests(&o, &sent, &e));
    AskedList l = asked_of(in("req-d"));
    EXPECT(l.n >= FAULTS);
    int64_t want[SYNTH_VERDICTS] = {0};
    Text lines[2] = {{0}}, line = {0};
    int64_t n_lines = 0;
    for (int i = l.n - 1; i >= 0; i--) { // in another order, in two files
        enum Fault f = i < FAULTS ? (enum Fault)i : GOOD;
        want[expected[f]]++;
        line.len = 0;
        respond(&l.p[i], f, &line);
        n_lines += f == TWICE ? 2 : f != UNANSWERED;
        text_add(&lines[i % 2], line.p, line.len);
    }
    text_addf(
        &lines[0],
        "{\"custom_id\":\"nobody\",\"response\":{\"choices\":[]}}\n{\"custom_id\": broken\n{\"response\":null}\n");
    write_text(in("r0.jsonl"), lines[0].p), write_text(in("r1.jsonl"), lines[1].p);
    const char *responses[] = {in("r0.jsonl"), in("r1.jsonl")};
    if (!synth_ingest(in("req-d"), responses, 2, in("cot-d.jsonl"), in("retry-d"), &c, &e))
        FAIL("%s: %s", e.expected, e.found);
    EXPECT_INT(c.requests, l.n);
    EXPECT_INT(c.lines, n_lines + 3);
    EXPECT_INT(c.foreign, 1);
    EXPECT_INT(c.unreadable, 2);
    for (int v = 0; v < SYNTH_VERDICTS; v++)
        if (c.verdict[v] != want[v])
            FAIL("%s: expected %lld, got %lld", synth_verdict_names[v], (long long)want[v], (long long)c.verdict[v]);
    EXPECT_INT(records_in(in("cot-d.jsonl")), c.verdict[SYNTH_ACCEPTED]);
    // The refused ones, with why, under new ids; the server is right this time.
    AskedList r = asked_of(in("retry-d"));
    EXPECT_INT(r.n, l.n - c.verdict[SYNTH_ACCEPTED]);
    Text second = {0};
    for (int i = 0; i < r.n; i++) {
        EXPECT_INT(r.p[i].attempt, 1);
        EXPECT(r.p[i].why[0] && strcmp(r.p[i].why, "accepted"));
        for (int j = 0; j < l.n; j++) EXPECT(strcmp(r.p[i].id, l.p[j].id));
        respond(&r.p[i], i % 2 ? GOOD : GOOD_BARE, &second);
    }
    write_text(in("r2.jsonl"), second.p);
    responses[0] = in("r2.jsonl");
    EXPECT(synth_ingest(in("retry-d"), responses, 1, in("cot-e.jsonl"), in("retry-e"), &again, &e));
    EXPECT_INT(again.verdict[SYNTH_ACCEPTED], r.n);
    EXPECT(!folder_exists(in("retry-e"))); // nothing to ask again
    // Requests of a retry are those of the first time but for their id.
    size_t n0;
    char *first = read_text(in("req-d/requests-000.jsonl"), &n0),
         *repeat = read_text(in("retry-d/requests-000.jsonl"), NULL);
    const Asked *a = &l.p[WRONG_LABEL], *b = &r.p[0];
    EXPECT_STR(b->why, "answer");
    const char *x = strstr(first + a->offset, "\"method\""), *y = strstr(repeat + b->offset, "\"method\"");
    EXPECT(x && y && !strncmp(x, y, (size_t)(first + a->offset + a->bytes - x)));
    free(first), free(repeat);
    text_free(&lines[0]), text_free(&lines[1]), text_free(&line), text_free(&second);
    asked_free(&l), asked_free(&r);
}

TEST(the_output_does_not_depend_on_the_order_of_the_responses) {
    scenes_to("f.jsonl", 6, 1u << TASK_PHASE | 1u << TASK_CVS | 1u << TASK_TOOL, SCENE_CHOLEC, 11);
    SynthSent sent;
    SynthCounts c;
    Err e = {0};
    SynthRequests o = asking(in("f.jsonl"), in("req-f"));
    EXPECT(synth_requests(&o, &sent, &e));
    AskedList l = asked_of(in("req-f"));
    Text up = {0}, down = {0};
    for (int i = 0; i < l.n; i++) respond(&l.p[i], GOOD, &up), respond(&l.p[l.n - 1 - i], GOOD, &down);
    write_text(in("up.jsonl"), up.p), write_text(in("down.jsonl"), down.p);
    const char *a[] = {in("up.jsonl")}, *b[] = {in("down.jsonl")};
    EXPECT(synth_ingest(in("req-f"), a, 1, in("up.cot"), NULL, &c, &e));
    EXPECT_INT(c.verdict[SYNTH_ACCEPTED], l.n);
    EXPECT(synth_ingest(in("req-f"), b, 1, in("down.cot"), NULL, &c, &e));
    char *one = read_text(in("up.cot"), NULL), *two = read_text(in("down.cot"), NULL);
    EXPECT_STR(one, two);
    free(one), free(two);
    text_free(&up), text_free(&down);
    asked_free(&l);
}

// ------------------------------------------------------------------------------------------------------------ judge
TEST(boxes_are_the_labels_boxes_in_the_form_that_is_rescaled) {
    Box truth[] = {{10, 20, 50, 60, "hook"}, {5, 5, 30, 30, "grasper"}};
    TaskItem one = {
        .task = TASK_TOOL_BOX, .id = "a", .slot = "hook", .boxes = truth, .n_boxes = 1, .width = 96, .height = 80};
    TaskItem both = {.task = TASK_TOOL_BOXES, .id = "a", .boxes = truth, .n_boxes = 2, .width = 96, .height = 80};
    TaskItem vqla = {
        .task = TASK_VQLA, .id = "a", .answer = "left-top", .boxes = truth, .n_boxes = 1, .width = 96, .height = 80};
    static const struct {
        int item;
        const char *answer;
        enum SynthVerdict verdict;
    } cases[] = {
        {0, "{\\\"bbox_2d\\\": [10, 20, 50, 60], \\\"label\\\": \\\"hook\\\"}", SYNTH_ACCEPTED},
        {0, "{\\\"bbox_2d\\\": [10, 20, 50, 59], \\\"label\\\": \\\"hook\\\"}", SYNTH_ANSWER},
        {0, "{\\\"bbox_2d\\\": [50, 60, 10, 20], \\\"label\\\": \\\"hook\\\"}", SYNTH_BOXES}, // corners are not swapped
        {0, "{\\\"bbox_2d\\\": [10, 20, 50, 81], \\\"label\\\": \\\"hook\\\"}", SYNTH_BOXES},
        {0, "(10,20),(50,60)", SYNTH_BOXES}, // right, but nobody would rescale it
        {0, "hook", SYNTH_ANSWER},
        {1,
         "[{\\\"bbox_2d\\\": [5, 5, 30, 30], \\\"label\\\": \\\"grasper\\\"}, {\\\"bbox_2d\\\": [10, 20, 50, 60], "
         "\\\"label\\\": \\\"hook\\\"}]",
         SYNTH_ACCEPTED},
        {1,
         "[{\\\"bbox_2d\\\": [5, 5, 30, 30], \\\"label\\\": \\\"hook\\\"}, {\\\"bbox_2d\\\": [10, 20, 50, 60], "
         "\\\"label\\\": \\\"grasper\\\"}]",
         SYNTH_ANSWER},
        {1, "[{\\\"bbox_2d\\\": [10, 20, 50, 60], \\\"label\\\": \\\"hook\\\"}]", SYNTH_ANSWER},
        {1, "No tools detected", SYNTH_ANSWER},
        {2, "{\\\"answer\\\": \\\"left-top\\\", \\\"bbox_2d\\\": [10, 20, 50, 60]}", SYNTH_ACCEPTED},
        {2, "{\\\"answer\\\": \\\"right-top\\\", \\\"bbox_2d\\\": [10, 20, 50, 60]}", SYNTH_ANSWER},
        {2, "{\\\"answer\\\": \\\"left-top\\\", \\\"bbox_2d\\\": [11, 20, 50, 60]}", SYNTH_ANSWER},
        {2, "left-top", SYNTH_ANSWER},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const TaskItem *item = cases[i].item == 0 ? &one : cases[i].item == 1 ? &both : &vqla;
        Text t = {0};
        text_addf(&t, "<think>%sThe hook is in the upper part of the view, and it is near the liver.</think>\n<answer>",
                  cases[i].item == 2 ? "" : "Level 1: ");
        for (const char *p = cases[i].answer; *p; p++)
            if (*p != '\\') text_add(&t, p, 1);
        text_addf(&t, "</answer>");
        enum SynthVerdict v = synth_judge(item, t.p, t.len, NULL, 0, 1, 100);
        if (v != cases[i].verdict)
            FAIL("%s: expected %s, got %s", t.p, synth_verdict_names[cases[i].verdict], synth_verdict_names[v]);
        text_free(&t);
    }
}

// ------------------------------------------------------------------------------------------------------------ teach
TEST(the_teacher_of_scenes_passes_every_check_of_a_teacher) {
    static const char *const nouns[] = {"grasper",
                                        "bipolar",
                                        "hook",
                                        "scissors",
                                        "clipper",
                                        "irrigator",
                                        "large needle driver",
                                        "prograsp forceps",
                                        "monopolar curved scissors",
                                        "suction instrument",
                                        "clip applier",
                                        "liver",
                                        "gallbladder",
                                        "cystic plate",
                                        "cystic duct",
                                        "cystic artery",
                                        "cystic pedicle",
                                        "fat",
                                        "omentum",
                                        "gut",
                                        "adhesion",
                                        "peritoneum",
                                        "bladder",
                                        "urethra",
                                        "prostate",
                                        "dorsal venous complex",
                                        "pubis",
                                        "specimen bag",
                                        "catheter",
                                        "fluid"};
    Knowledge k[KNOWLEDGE];
    Err e = {0};
    for (int i = 0; i < KNOWLEDGE; i++) EXPECT(knowledge_read(&k[i], knowledge_files[i], &e));
    int seen[TASKS] = {0}, texts = 0, other_words = 0;
    for (int i = 0; i < 120; i++) {
        Scene s;
        Text records = {0};
        SceneOptions o = {.seed = 21, .index = i * 7, .width = 96, .height = 96, .kind = SCENE_MIXED};
        scene_render(&s, &o);
        SceneRecords how = {
            .seed = 21, .index = o.index, .split = "train", .image = "x.png", .truth = true, .tasks = ~0u};
        scene_records(&s, &how, &records);
        for (char *line = records.p, *end; line && (end = strchr(line, '\n')) != NULL; line = end + 1) {
            TaskRecord r;
            Text t = {0}, again = {0}, other = {0}, brief = {0};
            const Knowledge *fitting[KNOWLEDGE];
            int n = 0;
            if (!task_record_read(&r, line, (size_t)(end - line), "scene", 1, &e)) {
                FAIL("%s: %s", e.expected, e.found);
                continue;
            }
            const Json *truth = json_get(r.doc.root, "truth");
            for (int j = 0; j < KNOWLEDGE; j++)
                if (knowledge_fits(&k[j], r.item.procedure, r.item.task)) fitting[n++] = &k[j];
            EXPECT(n > 0);
            EXPECT(teach_text(&r.item, (TaskWording){.seed = 1}, truth, (TeachOptions){0}, &t, &e) &&
                   teach_text(&r.item, (TaskWording){.seed = 1}, truth, (TeachOptions){0}, &again, &e));
            EXPECT(teach_text(&r.item, (TaskWording){.seed = 2}, truth, (TeachOptions){0}, &other, &e) &&
                   teach_text(&r.item, (TaskWording){.seed = 1}, truth, (TeachOptions){.brief = true}, &brief, &e));
            EXPECT_STR(t.p, again.p);
            other_words += strcmp(t.p, other.p) != 0;
            enum SynthVerdict v = synth_judge(&r.item, t.p, t.len, fitting, n, 40, 450);
            if (v) FAIL("%s: %s", synth_verdict_names[v], t.p);
            v = synth_judge(&r.item, brief.p, brief.len, NULL, 0, 1, 100);
            if (v && v != SYNTH_LANGUAGE) FAIL("%s: %s", synth_verdict_names[v], brief.p); // keywords are no English
            // Nothing is named that the truth does not list. The criteria and what decides a phase name what is missing.
            bool absence = r.item.task == TASK_CVS || (r.item.task >= TASK_CVS1 && r.item.task <= TASK_CVS3) ||
                           task_info(r.item.task)->level == 3;
            Text words = {0}, there = {0};
            words_of(t.p, t.len, &words);
            for (int j = 0; j < s.truth.n_tools; j++) text_addf(&there, "|%s", s.truth.tools[j].name);
            for (int j = 0; j < s.truth.n_tissues; j++) text_addf(&there, "|%s", s.truth.tissues[j].name);
            for (char *p = there.p; p && *p; p++)
                if (*p == '_') *p = ' ';
            for (size_t j = 0; j < sizeof nouns / sizeof *nouns && !absence; j++)
                if (words_hold(&words, nouns[j]) && (!there.p || !strstr(there.p, nouns[j])))
                    FAIL("%s is not there: %s", nouns[j], t.p);
            seen[r.item.task]++, texts++;
            text_free(&t), text_free(&again), text_free(&other), text_free(&brief), text_free(&words),
                text_free(&there);
            task_record_free(&r);
        }
        text_free(&records);
        scene_free(&s);
    }
    EXPECT(texts > 1000 && other_words > texts * 9 / 10);
    for (int t = 0; t < TASKS; t++)
        if (t != TASK_MOTION && !seen[t]) FAIL("no scene asked for %s", task_info((enum Task)t)->name);
    for (int i = 0; i < KNOWLEDGE; i++) knowledge_free(&k[i]);
}

// What a brief thought says of the criteria, as bits, and the action that its walk ends at.
static int criteria_said(const char *text) {
    int said = 0;
    for (int k = 0; k < 3; k++) {
        const char *question = task_brief_question(TASK_CVS1 + k), *at = strstr(text, question);
        EXPECT(at != NULL);
        if (at) said |= !strncmp(at + strlen(question), " yes.", 5) << k;
    }
    return said;
}
static bool walk_ends_at(const char *text, const char *action) {
    Text end = {0};
    text_addf(&end, " %s.</think>", action);
    bool there = strstr(text, end.p) != NULL;
    text_free(&end);
    return there;
}

TEST(a_teacher_that_misreads_a_criterion_walks_on_from_it_and_keeps_the_label) {
    int n = scenes_to("h.jsonl", 40, 1u << TASK_PROTOCOL, SCENE_CHOLEC, 41), checked = 0, elsewhere = 0;
    char *text = read_text(in("h.jsonl"), NULL);
    Err e = {0};
    for (char *line = text, *end; (end = strchr(line, '\n')) != NULL; line = end + 1, checked++) {
        TaskRecord r;
        Text right = {0}, wrong = {0};
        EXPECT(task_record_read(&r, line, (size_t)(end - line), "scene", 1, &e));
        const Json *truth = json_get(r.doc.root, "truth");
        TaskWording brief = {.seed = 1, .brief = true};
        EXPECT(teach_text(&r.item, brief, truth, (TeachOptions){.brief = true}, &right, &e) &&
               teach_text(&r.item, brief, truth, (TeachOptions){.brief = true, .wrong = 1}, &wrong, &e));
        int differ = criteria_said(right.p) ^ criteria_said(wrong.p);
        EXPECT(differ == 1 || differ == 2 || differ == 4);
        EXPECT(walk_ends_at(right.p, r.item.answer));
        elsewhere += !walk_ends_at(wrong.p, r.item.answer);
        const char *answer = strstr(right.p, "<answer>");
        EXPECT(answer && strstr(wrong.p, answer));
        text_free(&right), text_free(&wrong);
        task_record_free(&r);
    }
    EXPECT_INT(checked, n);
    EXPECT(n > 8 && elsewhere > n / 3);
    free(text);
}

TEST(a_teacher_who_overcalls_ends_where_its_reading_leads_with_thoughts_and_without) {
    uint32_t tasks = 1u << TASK_PROTOCOL | 1u << TASK_CVS | 1u << TASK_CVS2;
    int n = scenes_to("o.jsonl", 40, tasks, SCENE_CHOLEC, 43), checked = 0, elsewhere = 0, some = 0;
    char *text = read_text(in("o.jsonl"), NULL);
    Err e = {0};
    for (char *line = text, *end; (end = strchr(line, '\n')) != NULL; line = end + 1, checked++) {
        TaskRecord r;
        Text right = {0}, over = {0}, half = {0}, silent = {0}, tags = {0};
        EXPECT(task_record_read(&r, line, (size_t)(end - line), "scene", 1, &e));
        const Json *truth = json_get(r.doc.root, "truth");
        TaskWording w = {.seed = 1, .brief = true};
        EXPECT(
            teach_text(&r.item, w, truth, (TeachOptions){.brief = true}, &right, &e) &&
            teach_text(&r.item, w, truth, (TeachOptions){.brief = true, .overcall = 1}, &over, &e) &&
            teach_text(&r.item, w, truth, (TeachOptions){.brief = true, .overcall = 0.5}, &half, &e) &&
            teach_text(&r.item, w, truth, (TeachOptions){.brief = true, .overcall = 0.5, .silent = true}, &silent, &e));
        EXPECT_INT(criteria_said(over.p), 7);                           // every unmet one is called met
        EXPECT_INT(criteria_said(right.p) & ~criteria_said(half.p), 0); // and no met one unmet
        some += criteria_said(half.p) != criteria_said(right.p) && criteria_said(half.p) != 7;
        const char *answer = strstr(over.p, "<answer>") + 8;
        char said[40];
        snprintf(said, sizeof said, "%.*s", (int)strcspn(answer, "<"), answer);
        if (r.item.task == TASK_PROTOCOL) EXPECT(walk_ends_at(over.p, said));
        else EXPECT_STR(said, "yes");
        elsewhere += strcmp(said, r.item.answer) != 0;
        text_addf(&tags, "<answer>%s</answer>", silent.p);
        EXPECT(strstr(half.p, tags.p) && !strchr(silent.p, '<'));
        text_free(&right), text_free(&over), text_free(&half), text_free(&silent), text_free(&tags);
        task_record_free(&r);
    }
    EXPECT_INT(checked, n);
    EXPECT(n > 20 && elsewhere > n / 4 && some > 2);
    free(text);
}

TEST(teach_writes_training_records_and_needs_the_truth) {
    int n = scenes_to("g.jsonl", 3, ~0u, SCENE_MIXED, 31), got = 0;
    int64_t written = 0;
    Err e = {0};
    EXPECT(synth_teach(in("g.jsonl"), in("g.cot"), 1, (TeachOptions){0}, &written, &e));
    EXPECT_INT(written, n);
    char *text = read_text(in("g.cot"), NULL);
    for (const char *p = text; (p = strstr(p, "\"teacher\":\"scene-graph\"")) != NULL; p++) got++;
    EXPECT_INT(got, n);
    free(text);
    write_text(in("plain.jsonl"), "{\"id\":\"a\",\"messages\":[{\"role\":\"user\",\"content\":\"q "
                                  "<image>\"}],\"images\":[\"x.png\"],\"task\":\"count\",\"answer\":\"1\"}\n");
    EXPECT(!synth_teach(in("plain.jsonl"), in("plain.cot"), 1, (TeachOptions){0}, &written, &e));
    EXPECT_STR(e.code, "E-DS-02");
    EXPECT(!file_exists(in("plain.cot")));
}
