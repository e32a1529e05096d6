// test_records.c - conversations from JSON lines: the forms that are read, the rules that refuse, whole files.
#include "test.h"
#include <sys/stat.h>

static char line[2048];
static RecordOptions ready; // what the readers below are ready for
// "" when the line is read (into *r), else the message.
static const char *parse_into(Record *r, const char *text) {
    Err e = {0};
    char *exact = malloc(strlen(text) + 1);
    memcpy(exact, text, strlen(text));
    Piece piece = {.text = exact, .len = strlen(text), .number = 7, .line = 7, .col = 1};
    bool ok = record_parse_piece(r, &piece, "d.jsonl", ready, &e);
    free(exact); // the record must own all it points to
    if (ok != !e.code[0]) FAIL("verdict and error disagree on %s", text);
    return ok ? "" : err_line(&e, "error", line, sizeof line);
}
static const char *verdict(const char *text) {
    Record r;
    const char *v = parse_into(&r, text);
    if (!*v) record_free(&r);
    return v;
}
// The whole record in one line: role[part part ...], pictures as <path>.
static const char *shown(const char *text) {
    static char out[2048];
    Record r;
    const char *v = parse_into(&r, text);
    if (*v) return v;
    Text t = {0};
    text_addf(&t, "%s:", r.id);
    for (int i = 0; i < r.n; i++) {
        text_addf(&t, " %s%s[", r.messages[i].role, r.trained[i] ? "*" : ""); // * the loss counts it
        for (int k = 0; k < r.messages[i].n_parts; k++) {
            const Part *p = &r.messages[i].parts[k];
            if (p->image >= 0) text_addf(&t, "<%s>", r.images[p->image]);
            else text_addf(&t, "%.*s|", (int)p->len, p->text);
        }
        text_addf(&t, "]");
    }
    snprintf(out, sizeof out, "%s", t.p);
    text_free(&t);
    record_free(&r);
    return out;
}
static bool refused(const char *text, const char *code) {
    const char *v = verdict(text);
    char want[64];
    snprintf(want, sizeof want, "surgr1: error %s: d.jsonl:7:", code);
    if (!strncmp(v, want, strlen(want))) return true;
    fprintf(stderr, "%s\n  expected %s, got %s\n", text, code, *v ? v : "acceptance");
    return false;
}
#define USER(content) "{\"messages\": [{\"role\": \"user\", \"content\": " content "}]"

TEST(forms_that_are_read) {
    EXPECT_STR(shown(USER("\"hello\"") "}"), "7: user[hello|]");
    EXPECT_STR(
        shown(USER("[{\"type\":\"image\",\"image\":\"a/b.png\"},{\"type\":\"text\",\"text\":\"x <image>\"}]") "}"),
        "7: user[<a/b.png>x <image>|]"); // a typed mark in a part is text
    EXPECT_STR(
        shown(USER("\"see <image> and <image>, ok\"") ", \"images\": [\"1.png\", {\"path\": \"2.png\"}], \"id\": 12}"),
        "12: user[see |<1.png> and |<2.png>, ok|]");
    EXPECT_STR(
        shown(
            USER("[{\"type\":\"image\"},{\"type\":\"image\",\"path\":\"p.png\"},{\"type\":\"image\"}]") ", \"images\": "
                                                                                                        "[\"1.png\", "
                                                                                                        "\"2.png\"]}"),
        "7: user[<1.png><p.png><2.png>]");
    EXPECT_STR(shown("{\"custom_id\":\"q-1\",\"body\":" USER(
                   "[{\"type\":\"image_url\",\"image_url\":{\"url\":\"u.png\"}}]") "}}"),
               "q-1: user[<u.png>]");
    EXPECT_STR(
        shown("{\"messages\":[{\"role\":\"system\",\"content\":\"\"},{\"role\":\"user\",\"content\":\"a\"},"
              "{\"role\":\"assistant\",\"content\":\"b\"},{\"role\":\"user\",\"content\":\"c\"}],\"extra\":[1]}"),
        "7: system[] user[a|] assistant*[b|] user[c|]");
}

TEST(rules_by_code) {
    EXPECT(refused("[1]", "E-DS-01"));
    EXPECT(refused("{\"messages\": [}", "E-JS-04"));
    EXPECT(refused("{\"id\":1,\"id\":2}", "E-JS-08"));
    EXPECT(refused("{}", "E-DS-02"));
    EXPECT(refused("{\"messages\": []}", "E-DS-02"));
    EXPECT(refused("{\"messages\": [{\"role\":\"user\"}]}", "E-DS-02"));
    EXPECT(refused("{\"messages\": [3]}", "E-DS-02"));
    EXPECT(refused(USER("7") "}", "E-DS-02"));
    EXPECT(refused(USER("[{\"type\":\"video\",\"video\":\"v.mp4\"}]") "}", "E-DS-02"));
    EXPECT(refused(USER("[{\"type\":\"text\"}]") "}", "E-DS-02"));
    EXPECT(refused(USER("[\"x\"]") "}", "E-DS-02"));
    EXPECT(refused("{\"messages\":[{\"role\":\"tool\",\"content\":\"x\"}]}", "E-DS-02"));
    EXPECT(refused("{\"messages\":[{\"role\":\"system\",\"content\":\"x\"}]}", "E-DS-02"));
    EXPECT(refused("{\"messages\":[{\"role\":\"assistant\",\"content\":\"x\"}]}", "E-DS-02"));
    EXPECT(refused("{\"messages\":[{\"role\":\"user\",\"content\":\"x\"},{\"role\":\"user\",\"content\":\"x\"}]}",
                   "E-DS-02"));
    EXPECT(refused("{\"messages\":[{\"role\":\"user\",\"content\":\"x\"},{\"role\":\"system\",\"content\":\"x\"}]}",
                   "E-DS-02"));
    EXPECT(refused(USER("\"a <image>\"") "}", "E-DS-02")); // a mark and no images
    EXPECT(refused(USER("\"a <image>\"") ",\"images\":[]}", "E-DS-02"));
    EXPECT(refused(USER("\"<image>\"") ",\"images\":[\"x.png\",\"y.png\"]}", "E-DS-02"));
    EXPECT(refused(USER("\"<image>\"") ",\"images\":5}", "E-DS-02"));
    EXPECT(refused(USER("\"<image>\"") ",\"images\":\"x.png\",\"image\":\"x.png\"}", "E-DS-02"));
    EXPECT(refused(USER("\"<image>\"") ",\"images\":[7]}", "E-DS-02"));
    EXPECT(refused("{\"messages\":[{\"role\":\"user\",\"content\":\"x\"},{\"role\":\"assistant\",\"content\":\"<image>"
                   "\"}],\"images\":[\"a\"]}",
                   "E-DS-02"));
    EXPECT(refused(USER("\"find <bbox>\"") ",\"objects\":{\"bbox\":[[1,2,3,4]]}}", "E-DS-02"));
    EXPECT(refused(USER("\"x\"") ",\"id\":1.5}", "E-DS-02"));
    EXPECT(refused(USER("\"x\"") ",\"id\":\"\"}", "E-DS-03"));
    EXPECT(refused(USER("\"x\"") ",\"id\":\"a\\u0000b\"}", "E-DS-03"));
    EXPECT(refused(USER("\"a\\u0000b\"") "}", "E-DS-05"));
    EXPECT(refused(USER("\"a\\u001b[2Jb\"") "}", "E-DS-05"));
    EXPECT(refused(USER("\"\"") "}", "E-DS-05"));
    EXPECT(refused(USER("[]") "}", "E-DS-05"));
}

TEST(paths_stay_inside) {
    static const char *const bad[] = {"",
                                      "/etc/passwd",
                                      "../x.png",
                                      "a/../x.png",
                                      "a//b.png",
                                      "./a.png",
                                      "a/.",
                                      "a/",
                                      "..",
                                      "a\\\\b.png",
                                      "a\\u0000.png",
                                      "http://x/y.png",
                                      "file:///etc/passwd",
                                      "data:image/png;base64,AAAA"};
    static const char *const good[] = {"a.png", "a/b/c.png", "...", "a..b/c", ".hidden", "\\u00e9.png", "a b.png"};
    char text[400];
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        snprintf(text, sizeof text, USER("[{\"type\":\"image\",\"image\":\"%s\"}]") "}", bad[i]);
        EXPECT(refused(text, "E-DS-04"));
    }
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        snprintf(text, sizeof text, USER("\"<image>\"") ",\"images\":[\"%s\"]}", good[i]);
        EXPECT_STR(verdict(text), "");
    }
}

static const char *question_of(int64_t bytes, const char *role) { // a record whose last turn has that many bytes
    static char text[80000];
    int n = snprintf(text, sizeof text, "{\"messages\":[%s{\"role\":\"%s\",\"content\":\"",
                     strcmp(role, "assistant") ? "" : "{\"role\":\"user\",\"content\":\"q\"},", role);
    memset(text + n, 'x', (size_t)bytes);
    snprintf(text + n + bytes, 10, "\"}]}");
    return text;
}
TEST(limits_and_one_more) {
    EXPECT_STR(verdict(question_of(LIMIT_QUESTION_BYTES, "user")), "");
    EXPECT(refused(question_of(LIMIT_QUESTION_BYTES + 1, "user"), "E-DS-05"));
    EXPECT_STR(verdict(question_of(65536, "assistant")), "");
    EXPECT(refused(question_of(65537, "assistant"), "E-DS-05"));
    for (int n = 16; n <= 17; n++) {
        Text t = {0};
        text_addf(&t, "%s", "{\"messages\":[{\"role\":\"user\",\"content\":[");
        for (int i = 0; i < n; i++) text_addf(&t, "%s{\"type\":\"image\",\"image\":\"a.png\"}", i ? "," : "");
        text_addf(&t, "]}]}");
        if (n == 16) EXPECT_STR(verdict(t.p), "");
        else EXPECT(refused(t.p, "E-DS-02"));
        text_free(&t);
    }
    for (int n = 256; n <= 257; n++) {
        char id[260], text[400];
        memset(id, 'i', sizeof id), id[n] = 0;
        snprintf(text, sizeof text, USER("\"x\"") ",\"id\":\"%s\"}", id);
        if (n == 256) EXPECT_STR(verdict(text), "");
        else EXPECT(refused(text, "E-DS-03"));
    }
    for (int n = 1024; n <= 1025; n++) {
        char path[1100], text[1300];
        memset(path, 'p', sizeof path), path[n] = 0;
        snprintf(text, sizeof text, USER("\"<image>\"") ",\"images\":[\"%s\"]}", path);
        if (n == 1024) EXPECT_STR(verdict(text), "");
        else EXPECT(refused(text, "E-DS-04"));
    }
}

TEST(one_whole_message) {
    EXPECT_STR(verdict(USER("\"<image>\"") ",\"images\":[\"../../home/x.png\"]}"),
               "surgr1: error E-DS-04: d.jsonl:7:65: field \"images\": expected a path inside the data folder; found "
               "\"../../home/x.png\"; do: give plain paths relative to the file's folder");
}

// ----------------------------------------------------------------------------------------------------------- forms
#define TWO_TURNS "7: system[be brief|] user[<a.png>what|] assistant*[a liver|] user[sure?|] assistant*[yes|]"
#define FOUR(r, c, u, a)                                                                                               \
    "[{\"" r "\":\"system\",\"" c "\":\"be brief\"},{\"" r "\":\"" u "\",\"" c "\":\"<image>what\"},"                  \
    "{\"" r "\":\"" a "\",\"" c "\":\"a liver\"},{\"" r "\":\"" u "\",\"" c "\":\"sure?\"}"
#define LAST(r, c, a) "{\"" r "\":\"" a "\",\"" c "\":\"yes\"}]"

TEST(every_form_tells_the_same_conversation) {
    static const char *const forms[] = {
        "{\"messages\":" FOUR("role", "content", "user", "assistant") "," LAST("role", "content",
                                                                               "assistant") ",\"images\":[\"a.png\"]}",
        "{\"conversations\":" FOUR("from", "value", "human", "gpt") "," LAST("from", "value",
                                                                             "gpt") ",\"image\":\"a.png\"}",
        "{\"conversations\":" FOUR("role", "value", "user", "gpt") "," LAST("role", "content",
                                                                            "assistant") ",\"images\":[\"a.png\"]}",
        "{\"messages\":null,\"query\":\"sure?\",\"response\":\"yes\",\"system\":\"be "
        "brief\",\"history\":[[\"<image>what\","
        "\"a liver\"]],\"images\":[{\"bytes\":null,\"path\":\"a.png\"}],\"split\":\"train\"}",
        "{\"instruction\":\"sure?\",\"input\":\"\",\"output\":\"yes\",\"system\":\"be brief\",\"history\":[[\"what\","
        "\"a liver\"]],\"image\":[\"a.png\"]}",
        "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\",\"image_url\":\"a.png\"},{\"type\":"
        "\"text\","
        "\"text\":\"what\",\"image\":null}]},{\"role\":\"assistant\",\"content\":\"a liver\",\"loss\":true},{\"role\":"
        "\"user\",\"content\":\"sure?\",\"loss\":null},{\"role\":\"assistant\",\"content\":[{\"type\":\"text\","
        "\"text\":"
        "\"yes\"}]}],\"system\":\"be brief\"}",
    };
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) EXPECT_STR(shown(forms[i]), TWO_TURNS);
    // prompt and completion: only the completion is trained; the prompt alone is no fault of the form
    EXPECT_STR(shown("{\"prompt\":" FOUR("role", "content", "user", "assistant") "],\"completion\":[" LAST(
                   "role", "content", "assistant") ",\"image\":\"a.png\"}"),
               "7: system[be brief|] user[<a.png>what|] assistant[a liver|] user[sure?|] assistant*[yes|]");
    EXPECT_STR(shown("{\"prompt\":[{\"role\":\"user\",\"content\":\"q\"}],\"solution\":\"42\",\"answer\":[1]}"),
               "7: user[q|]");
    EXPECT_STR(shown("{\"prompt\":\"q\",\"completion\":\"a\"}"), "7: user[q|] assistant*[a|]");
    EXPECT_STR(shown("{\"problem\":\"<image>count\",\"answer\":\"3\",\"images\":[\"a.png\"],\"level\":4}"),
               "7: user[<a.png>count|] assistant*[3|]");
    EXPECT_STR(shown("{\"instruction\":\"translate\",\"input\":\"foie\",\"output\":\"liver\"}"),
               "7: user[translate|\n|foie|] assistant*[liver|]");
    EXPECT_STR(shown("{\"instruction\":\"\",\"input\":\"foie\",\"output\":\"liver\"}"),
               "7: user[foie|] assistant*[liver|]");
}

TEST(question_and_answer_under_every_name) {
    static const char *const questions[] = {"query", "prompt", "input", "instruction", "question", "problem"};
    static const char *const answers[] = {"response", "answer", "output",     "target", "targets",
                                          "solution", "text",   "completion", "content"};
    char text[200];
    for (size_t q = 0; q < sizeof questions / sizeof *questions; q++)
        for (size_t a = 0; a < sizeof answers / sizeof *answers; a++) {
            snprintf(text, sizeof text, "{\"%s\":\"q\",\"%s\":\"a\"}", questions[q], answers[a]);
            EXPECT_STR(shown(text), "7: user[q|] assistant*[a|]");
        }
}

TEST(turns_that_are_not_trained) {
    EXPECT_STR(
        shown("{\"messages\":[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\",\"content\":\"a\","
              "\"loss\":false},{\"role\":\"user\",\"content\":\"r\"},{\"role\":\"assistant\",\"content\":\"b\"}]}"),
        "7: user[q|] assistant[a|] user[r|] assistant*[b|]");
    EXPECT_STR(shown("{\"prompt\":[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\",\"content\":\"a\","
                     "\"loss\":true},{\"role\":\"user\",\"content\":\"r\"}],\"completion\":\"b\"}"),
               "7: user[q|] assistant[a|] user[r|] assistant*[b|]");
}

TEST(pictures_without_a_place_stand_before_the_first_words_of_the_user) {
    EXPECT_STR(shown("{\"system\":\"s\",\"query\":\"r\",\"history\":[[\"q\",\"a\"]],\"answer\":\"b\",\"images\":"
                     "[\"1.png\",\"2.png\"]}"),
               "7: system[s|] user[<1.png><2.png>q|] assistant*[a|] user[r|] assistant*[b|]");
    EXPECT_STR(shown(USER("[{\"type\":\"text\",\"text\":\"x\"}]") ",\"images\":[\"1.png\"]}"), "7: user[<1.png>x|]");
    EXPECT(refused(USER("\"<image>x\"") ",\"images\":[\"1.png\",\"2.png\"]}", "E-DS-02"));
    EXPECT(refused(USER("[{\"type\":\"image\",\"image\":\"p.png\"}]") ",\"images\":[\"1.png\"]}", "E-DS-02"));
}

TEST(what_no_form_can_be_read_from) {
    EXPECT_STR(
        verdict("{\"id\": 3, \"foo\": 1, \"text\": \"x\"}"),
        "surgr1: error E-DS-02: d.jsonl:7:1: field \"messages\": expected \"messages\"; \"conversations\"; a "
        "\"prompt\" list with its \"completion\"; or a question (query, prompt, input, instruction, question, "
        "problem) with its answer (response, answer, output, target, solution, text, completion, content); found "
        "the fields \"id\", \"foo\", \"text\"; do: see the forms in data/README.md");
    EXPECT_STR(verdict("{\"question\":\"q\",\"answer\":\"3\",\"solution\":\"1+2=3\"}"),
               "surgr1: error E-DS-02: d.jsonl:7:41: field \"solution\": expected one field with the answer; found "
               "\"answer\" and \"solution\"; do: keep one of the two");
    EXPECT(refused("{\"question\":\"q\",\"prompt\":\"3\",\"answer\":\"a\"}", "E-DS-02"));
    EXPECT(refused("{\"question\":\"q\",\"instruction\":\"\",\"input\":\"x\",\"answer\":\"a\"}", "E-DS-02"));
    EXPECT(refused("{\"question\":7,\"answer\":\"a\"}", "E-DS-02"));
    EXPECT(refused("{\"question\":\"q\",\"answer\":7}", "E-DS-02"));
    EXPECT(refused("{\"question\":\"q\",\"answer\":\"\"}", "E-DS-05"));
    EXPECT(refused("{\"question\":\"q\",\"answer\":\"a\",\"system\":[]}", "E-DS-02"));
    EXPECT(refused("{\"question\":\"q\",\"answer\":\"a\",\"history\":[[\"x\"]]}", "E-DS-02"));
    EXPECT(refused("{\"question\":\"q\",\"answer\":\"a\",\"history\":[[\"x\",null]]}", "E-DS-02"));
    EXPECT(refused("{\"question\":\"q\",\"answer\":\"a\",\"history\":\"x\"}", "E-DS-02"));
    EXPECT(refused("{\"conversations\":[]}", "E-DS-02"));
    EXPECT(refused("{\"conversations\":\"x\"}", "E-DS-02"));
    EXPECT(refused("{\"conversations\":[{\"from\":\"gpt\",\"value\":\"x\"}]}", "E-DS-02"));
    EXPECT(refused("{\"prompt\":[{\"role\":\"user\",\"content\":\"q\"}],\"completion\":7}", "E-DS-02"));
    EXPECT(refused("{\"prompt\":[\"q\"],\"completion\":\"a\"}", "E-DS-02"));
    EXPECT(refused("{\"messages\":[{\"role\":\"system\",\"content\":\"s\"},{\"role\":\"user\",\"content\":\"q\"}],"
                   "\"system\":\"t\"}",
                   "E-DS-02"));
    EXPECT(refused("{\"messages\":[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\",\"content\":\"a\","
                   "\"loss\":1}]}",
                   "E-DS-02"));
    EXPECT(refused("{\"messages\":[{\"role\":\"user\",\"content\":\"q\",\"loss\":true}]}", "E-DS-02"));
    EXPECT(refused(USER("\"q\"") ",\"weight\":-1}", "E-DS-08"));
    EXPECT(refused(USER("\"q\"") ",\"weight\":1001}", "E-DS-08"));
    EXPECT(refused(USER("\"q\"") ",\"weight\":\"1\"}", "E-DS-08"));
    EXPECT_STR(verdict(USER("\"q\"") ",\"weight\":0.5}"), "");
    EXPECT(refused(USER("\"q\"") ",\"box_frame\":\"pixels\"}", "E-DS-02"));
}

// ----------------------------------------------------------------------------------------------------------- boxes
// The record with its boxes placed, for pictures of 200 x 100 that are resized to 84 x 56.
static const char *placed(const char *text) {
    static char out[2048];
    Record r;
    Err e = {0};
    ready = (RecordOptions){.boxes = true};
    const char *v = parse_into(&r, text);
    ready = (RecordOptions){0};
    if (*v) return v;
    FrameSize sizes[16];
    for (int k = 0; k < 16; k++) sizes[k] = (FrameSize){200, 100, 84, 56};
    sizes[1] = (FrameSize){1000, 1000, 140, 140};
    if (!record_place_boxes(&r, sizes, &e)) v = err_line(&e, "error", line, sizeof line);
    Text t = {0};
    for (int i = 0; i < r.n; i++)
        for (int k = 0; k < r.messages[i].n_parts; k++) {
            const Part *p = &r.messages[i].parts[k];
            if (p->image >= 0) text_addf(&t, "<%d>", p->image);
            else text_add(&t, p->text, p->len);
        }
    snprintf(out, sizeof out, "%s", t.len ? t.p : "");
    text_free(&t);
    record_free(&r);
    return *v ? v : out;
}
static bool misplaced(const char *text, const char *code) {
    const char *v = placed(text);
    char want[64];
    snprintf(want, sizeof want, "surgr1: error %s: d.jsonl:7:", code);
    if (!strncmp(v, want, strlen(want))) return true;
    fprintf(stderr, "%s\n  expected %s, got %s\n", text, code, v);
    return false;
}
#define ASK(q, a)    "{\"query\":\"" q "\",\"response\":\"" a "\",\"images\":[\"1.png\"]"
#define BOX(numbers) "{\\\"bbox_2d\\\": " numbers ", \\\"label\\\": \\\"x\\\"}"

TEST(boxes_of_objects_are_written_in_the_resized_frame) {
    // x' = x 84 / 200, y' = y 56 / 100, half to even, at most 83 and 55
    EXPECT_STR(placed(ASK("find <ref-object>", "<bbox>") ",\"objects\":{\"ref\":[\"the clip\"],\"bbox\":[[100,50,200,"
                                                         "100]]}}"),
               "<0>find the clip[42, 28, 83, 55]");
    EXPECT_STR(
        placed(ASK("x", "<bbox> and <bbox>") ",\"objects\":{\"ref\":[\"unused\",\"names\"],\"bbox_type\":\"real\","
                                             "\"bbox\":[[25,1,26,3],[0,0,200.0,99.5]]}}"),
        "<0>x[10, 1, 11, 2] and [0, 0, 83, 55]"); // 10.5 is 10; 55.72 would be 56
    EXPECT_STR(
        placed(ASK("x", "[{\\\"bbox_2d\\\": <bbox>, \\\"label\\\": \\\"<ref-object>\\\"}]") ",\"objects\":{"
                                                                                            "\"ref\":[\"clip\"],\"bbox_"
                                                                                            "type\":\"norm1\",\"bbox\":"
                                                                                            "[[0.25,0.5,0.5,1]]}}"),
        "<0>x[{\"bbox_2d\": [21, 28, 42, 55], \"label\": \"clip\"}]");
    // two pictures: the second is 1000 x 1000 -> 140 x 140
    EXPECT_STR(placed("{\"query\":\"<image><image>\",\"response\":\"<bbox><bbox>\",\"images\":[\"1.png\",\"2.png\"],"
                      "\"objects\":{\"bbox\":[[500,100,1000,600],[100,50,200,100]],\"image_id\":[1,0]}}"),
               "<0><1>[70, 14, 139, 84][42, 28, 83, 55]");
    // a box in the turn that pictures are put in front of
    EXPECT_STR(
        placed(ASK("what is in <bbox>?", "a <ref-object>") ",\"objects\":{\"ref\":[\"clip\"],\"bbox\":[[100,50,200,"
                                                           "100]]}}"),
        "<0>what is in [42, 28, 83, 55]?a clip");
    // a frame for texts says nothing about objects
    EXPECT_STR(placed(ASK("x", "<bbox>") ",\"box_frame\":\"norm1000\",\"objects\":{\"bbox\":[[100,50,200,100]]}}"),
               "<0>x[42, 28, 83, 55]");
    EXPECT_STR(placed(ASK("<bbox>", "<ref-object>") "}"), "<0><bbox><ref-object>"); // no objects: no marks
    EXPECT_STR(placed(ASK("x", "y") ",\"objects\":[{\"name\":1}]}"), "<0>xy");      // a column of others
}

TEST(boxes_in_texts_are_rewritten_from_any_frame) {
    EXPECT_STR(placed(ASK("x", BOX("[100, 50,200 ,100]")) ",\"box_frame\":\"original\"}"),
               "<0>x{\"bbox_2d\": [42, 28,83 ,55], \"label\": \"x\"}");
    EXPECT_STR(placed(ASK("x", BOX("[125, 250, 500, 1000]") BOX("[0,0,1e2,1E+2]")) ",\"box_frame\":\"norm1000\"}"),
               "<0>x{\"bbox_2d\": [10, 14, 42, 55], \"label\": \"x\"}{\"bbox_2d\": [0,0,8,6], \"label\": \"x\"}");
    EXPECT_STR(placed(ASK("x", BOX("[0.25, 0.5, 0.5, 1.0]")) ",\"box_frame\":\"norm1\"}"),
               "<0>x{\"bbox_2d\": [21, 28, 42, 55], \"label\": \"x\"}");
    EXPECT_STR(placed(ASK("x", BOX("[10.5, 3, 11.5, 7]")) "}"), "<0>x{\"bbox_2d\": [10, 3, 12, 7], \"label\": \"x\"}");
    EXPECT_STR(placed(ASK(BOX("[1,2,3,4]"), "ok") ",\"box_frame\":\"resized\"}"),
               "<0>{\"bbox_2d\": [1,2,3,4], \"label\": \"x\"}ok");
    // templates in words stay
    EXPECT_STR(placed(ASK(BOX("[x1, y1, x2, y2]") BOX("[[x1, ...]]") BOX("[]"), "ok") ",\"box_frame\":\"original\"}"),
               "<0>{\"bbox_2d\": [x1, y1, x2, y2], \"label\": \"x\"}{\"bbox_2d\": [[x1, ...]], \"label\": \"x\"}"
               "{\"bbox_2d\": [], \"label\": \"x\"}ok");
    // half a pixel of 200 is a fifth of one of 84: nothing would be left of it
    EXPECT(misplaced(ASK("x", BOX("[10, 10, 10.5, 40]")) ",\"box_frame\":\"original\"}", "E-DS-06"));
    // several pictures
#define PAIR                                                                                                           \
    "{\"query\":\"<image><image>\",\"response\":\"" BOX("[100, 50, 200, 100]") "\",\"images\":[\"1.png\",\"2.png\"]"
    EXPECT_STR(placed(PAIR ",\"box_frame\":\"original\",\"image_id\":1}"),
               "<0><1>{\"bbox_2d\": [14, 7, 28, 14], \"label\": \"x\"}");
    EXPECT(misplaced(PAIR ",\"box_frame\":\"original\"}", "E-DS-06"));
    EXPECT(misplaced(PAIR ",\"box_frame\":\"original\",\"image_id\":2}", "E-DS-06"));
    EXPECT(misplaced(PAIR "}", "E-DS-06")); // x2 = 200 is in neither resized picture
    EXPECT_STR(placed("{\"query\":\"x\",\"response\":\"" BOX("[100, 50, 200, 100]") "\"}"),
               "x{\"bbox_2d\": [100, 50, 200, 100], \"label\": \"x\"}"); // no picture to measure against
}

TEST(boxes_that_are_none) {
    static const char *const bad[] = {"[10, 10, 5, 20]", "[10, 20, 15, 20]", "[-1, 0, 5, 5]",  "[0, 0, 201, 5]",
                                      "[0, 0, 5, 101]",  "[1, 2, 3]",        "[1, 2, 3, 4, 5]"};
    static const char *const bad_text[] = {"[NaN, 1, 2, 3]", "[1, 2, Infinity, 4]", "[1, 2, 1e999, 4]", "[1, 2, 3, 4",
                                           "[1, two, 3, 4]", "[1..2, 2, 3, 4]",     "[[1, 2, 3, 4]]",   "[1 2, 3, 4]"};
    char text[400];
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        snprintf(text, sizeof text, ASK("x", "<bbox>") ",\"objects\":{\"bbox\":[%s]}}", bad[i]);
        EXPECT(misplaced(text, "E-DS-06"));
        snprintf(text, sizeof text, ASK("x", BOX("%s")) ",\"box_frame\":\"original\"}", bad[i]);
        EXPECT(misplaced(text, "E-DS-06"));
    }
    for (size_t i = 0; i < sizeof bad_text / sizeof *bad_text; i++) {
        snprintf(text, sizeof text, ASK("x", BOX("%s")) ",\"box_frame\":\"original\"}", bad_text[i]);
        EXPECT(misplaced(text, "E-DS-06"));
    }
    EXPECT_STR(
        placed(ASK("x", "<bbox>") ",\"objects\":{\"bbox\":[[0,0,5,101]]}}"),
        "surgr1: error E-DS-06: d.jsonl:7:72: field \"objects.bbox\": expected 0 <= x1 < x2 <= 200 and 0 <= y1 < "
        "y2 <= 100 (pixels of the file); found [0, 0, 5, 101]; do: mend the box, or say in which frame it is");
    EXPECT(misplaced(ASK("x", "<bbox>") ",\"objects\":{\"bbox\":[[0,0,1.5,1]],\"bbox_type\":\"norm1\"}}", "E-DS-06"));
    EXPECT(misplaced(ASK("x", "<bbox>") ",\"objects\":{\"bbox\":[[\"0\",0,1,1]]}}", "E-DS-06"));
    EXPECT(misplaced(ASK("x", "<bbox>") ",\"objects\":{\"bbox\":[[0,0,1,1]],\"bbox_type\":\"norm\"}}", "E-DS-02"));
    EXPECT(misplaced(ASK("x", "<bbox>") ",\"objects\":{\"bbox\":[[0,0,1,1]],\"image_id\":[1]}}", "E-DS-06"));
    EXPECT(misplaced(ASK("x", "<bbox>") ",\"objects\":{\"bbox\":[[0,0,1,1]],\"image_id\":[-1]}}", "E-DS-02"));
    EXPECT(misplaced(ASK("x", "<bbox>") ",\"objects\":{\"bbox\":[]}}", "E-DS-02"));
    EXPECT(misplaced(ASK("x", "y") ",\"objects\":{\"bbox\":[[0,0,1,1]]}}", "E-DS-02"));
    EXPECT(misplaced(ASK("<ref-object>", "<ref-object>") ",\"objects\":{\"ref\":[\"a\"]}}", "E-DS-02"));
    EXPECT(misplaced(ASK("x", "<ref-object>") ",\"objects\":{\"ref\":[\"a\",\"b\"]}}", "E-DS-02"));
    EXPECT(misplaced("{\"query\":\"x\",\"response\":\"<bbox>\",\"objects\":{\"bbox\":[[0,0,1,1]]}}", "E-DS-06"));
    EXPECT(
        misplaced("{\"query\":\"<image><image>\",\"response\":\"<bbox>\",\"images\":[\"1.png\",\"2.png\"],\"objects\":"
                  "{\"bbox\":[[0,0,1,1]]}}",
                  "E-DS-06"));
    EXPECT(refused(ASK("x", BOX("[1, 2, 3, 4]")) ",\"box_frame\":\"original\"}", "E-DS-02")); // nobody will place them
}

TEST(images_by_absolute_path_or_in_the_record) {
    ready = (RecordOptions){.absolute_images = true};
    EXPECT_STR(shown(USER("\"<image>\"") ",\"image\":\"/data/a.png\"}"), "7: user[</data/a.png>]");
    EXPECT(refused(USER("\"<image>\"") ",\"image\":\"data:image/png;base64,AAAA\"}", "E-DS-04"));
    EXPECT(refused(USER("\"<image>\"") ",\"image\":\"http://x/a.png\"}", "E-DS-04"));
    ready = (RecordOptions){.data_images = true};
    EXPECT_STR(shown(USER("\"<image>\"") ",\"image\":\"data:image/png;base64,AAAA\"}"),
               "7: user[<data:image/png;base64,AAAA>]");
    EXPECT(refused(USER("\"<image>\"") ",\"image\":\"/data/a.png\"}", "E-DS-04"));
    ready = (RecordOptions){0};
}

// ----------------------------------------------------------------------------------------------------------- files
static const char *temporary(const char *content, size_t size) {
    static char path[100];
    snprintf(path, sizeof path, "/tmp/surgr1_records_%d.jsonl", (int)getpid());
    FILE *f = fopen(path, "wb");
    if (f) fwrite(content, 1, size, f), fclose(f);
    return path;
}
static char seen[4000];
static bool see(void *ctx, Record *r, Err *e) {
    (void)ctx, (void)e;
    snprintf(seen + strlen(seen), sizeof seen - strlen(seen), "%s ", r->id);
    return true;
}
static void see_bad(void *ctx, const Err *e) {
    (void)ctx;
    snprintf(seen + strlen(seen), sizeof seen - strlen(seen), "%s@%d ", e->code, (int)e->line);
}
static const char *read_file(const char *content, size_t size, bool all) {
    Err e = {0};
    const char *path = temporary(content, size);
    seen[0] = 0;
    bool ok = all ? records_read_all(path, (RecordOptions){0}, NULL, see, see_bad, NULL, &e)
                  : records_read(path, see, NULL, &e);
    unlink(path);
    if (!ok) see_bad(NULL, &e);
    return seen;
}
#define R(id)         "{\"id\":\"" id "\",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}"
#define FILE_OF(text) text, sizeof text - 1

TEST(line_ends_blank_lines_and_the_last_line) {
    EXPECT_STR(read_file(FILE_OF(R("a") "\n" R("b") "\r\n" R("c")), false), "a b c ");
    EXPECT_STR(read_file(FILE_OF(R("a") "\n\n  \r\n" R("b") "\n"), false), "a b ");
    EXPECT_STR(read_file(FILE_OF(""), false), "");
    EXPECT_STR(read_file(FILE_OF("\xEF\xBB\xBF" R("a") "\n"), false), "a ");
    EXPECT_STR(read_file(FILE_OF(R("a") "\n{\n" R("b") "\n"), false), "a E-JS-04@2 ");
}

TEST(an_array_is_read_as_lines_are) {
    EXPECT_STR(read_file(FILE_OF("[" R("a") "," R("b") "]"), false), "a b ");
    EXPECT_STR(read_file(FILE_OF(" \n[\n  " R("a") " ,\r\n\t" R("b") "\n]\n\n"), false), "a b ");
    EXPECT_STR(read_file(FILE_OF("\xEF\xBB\xBF[" R("a") "]"), false), "a ");
    EXPECT_STR(read_file(FILE_OF("[ ]"), false), "");
    EXPECT_STR(read_file(FILE_OF("[{\"query\":\"x\"},{\"query\":\"]}\\\"[{\\\\\"}, {\"query\":\"y\"}]"), false),
               "1 2 3 ");
    EXPECT_STR(read_file(FILE_OF("[" R("a") ",\n {\"id\" 3},\n" R("b") ", 7," R("a") "]"), true),
               "a E-JS-04@2 b E-DS-01@3 E-DS-03@3 ");
    EXPECT_STR(read_file(FILE_OF("[" R("a") ",{]," R("b") "]"), true), "a E-JS-04@1 b ");
    EXPECT_STR(read_file(FILE_OF("[" R("a") ",]"), true), "a E-JS-04@1 ");
    EXPECT_STR(read_file(FILE_OF("[," R("a") "]"), true), "E-JS-04@1 ");
    EXPECT_STR(read_file(FILE_OF("[" R("a") "\n" R("b") "]"), true), "E-JS-04@2 "); // no comma: one broken element
    EXPECT_STR(read_file(FILE_OF("[" R("a") "] x"), true), "a E-JS-04@1 ");
    EXPECT_STR(read_file(FILE_OF("["), true), "E-JS-04@1 ");
    EXPECT_STR(read_file(FILE_OF("[" R("a") ",\n"), true), "a E-JS-04@2 ");
    EXPECT_STR(read_file(FILE_OF("[{\"a"), true), "E-JS-04@1 ");
    EXPECT_STR(read_file(FILE_OF("[{\"a\\"), true), "E-JS-04@1 ");
}

static bool find_column(void *ctx, Record *r, Err *e) {
    (void)e;
    text_addf(ctx, "%lld+%lld ", (long long)r->offset, (long long)r->bytes);
    return true;
}
TEST(an_element_of_an_array_knows_its_place) {
    Err e = {0};
    Text places = {0};
    char message[600];
    const char *path = temporary(FILE_OF("[{\"query\":\"x\"},\n  {\"query\":\"x\"}, {\"query\":7}]"));
    EXPECT(!records_read(path, find_column, &places, &e));
    EXPECT_STR(places.p, "1+13 18+13 ");
    EXPECT(strstr(err_line(&e, "error", message, sizeof message),
                  ".jsonl:2:27: field \"query\": expected a question") != NULL);
    unlink(path);
    text_free(&places);
}

static bool count_bytes(void *ctx, const Piece *p, Err *e) {
    (void)e;
    int64_t *n = ctx;
    n[0]++, n[1] += (int64_t)p->len;
    if (p->text[0] != '{' || p->text[p->len - 1] != '}') n[2]++;
    return true;
}
TEST(elements_and_lines_of_any_length_cross_the_buffer_whole) {
    for (int array = 0; array < 2; array++) {
        Text t = {0};
        int64_t bytes = 0, got[3] = {0};
        char hex[65], want[65];
        for (uint32_t i = 0; i < 60; i++) {
            int fill = (int)(random_uniform(9, RANDOM_TEST, i, 0) * 200000);
            size_t before = (text_addf(&t, "%s", array ? i ? ",\n " : "[" : i ? "\n" : ""), t.len);
            text_addf(&t, "{\"a\":\"%*s\\\"]},\"}", fill, "[{");
            bytes += (int64_t)(t.len - before);
        }
        text_addf(&t, array ? "\n]" : "\n");
        Err e = {0};
        Sha256 hash;
        sha256_start(&hash);
        const char *path = temporary(t.p, t.len);
        EXPECT(pieces_read(path, &hash, count_bytes, got, &e));
        unlink(path);
        EXPECT_INT(got[0], 60);
        EXPECT_INT(got[1], bytes);
        EXPECT_INT(got[2], 0);
        sha256_finish(&hash, hex), sha256_hex(t.p, t.len, want);
        EXPECT_STR(hex, want);
        text_free(&t);
    }
}

TEST(examples_of_the_readme_are_read) {
    char *readme, *block;
    size_t size;
    Err e = {0};
    int blocks = 0;
    int64_t n = 0;
    if (!file_read("data/README.md", LIMIT_CONFIG_BYTES, "E-JS-01", &readme, &size, &e)) {
        FAIL("%s", e.found);
        return;
    }
    char *imports = strstr(readme, "\n## Frames from videos"); // what follows speaks of other files
    EXPECT(imports != NULL);
    if (imports) *imports = 0;
    for (char *at = readme; (block = strstr(at, "```json\n")); blocks++) {
        char *end = strstr(block += 8, "```"), message[800];
        Text t = {0};
        if (!end) break;
        text_addf(&t, "["); // records one after the other: an array of them
        for (char *p = block; p < end; p++) text_addf(&t, p > block && p[-1] == '\n' && *p == '{' ? ",%c" : "%c", *p);
        text_addf(&t, "]");
        const char *path = temporary(t.p, t.len);
        seen[0] = 0;
        if (!records_read_all(path, (RecordOptions){.boxes = true}, NULL, see, NULL, NULL, &e))
            FAIL("%s", err_line(&e, "error", message, sizeof message));
        for (char *c = seen; *c; c++) n += *c == ' ';
        unlink(path);
        text_free(&t);
        at = end + 3;
    }
    EXPECT_INT(blocks, 9);
    EXPECT_INT(n, 13);
    free(readme);
}

TEST(all_faults_are_told_and_reading_goes_on) {
    EXPECT_STR(read_file(FILE_OF(R("a") "\n{\n[]\n" R("a") "\n" R("b") "\n"), true),
               "a E-JS-04@2 E-DS-01@3 E-DS-03@4 b ");
}

TEST(ids_are_unique_among_many) {
    Text t = {0};
    for (int i = 0; i < 5000; i++)
        text_addf(&t, "{\"id\":%d,\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}\n", i == 4999 ? 1234 : i * 7);
    const char *got = read_file(t.p, t.len, true);
    EXPECT(strstr(got, "E-DS-03@") == NULL); // 1234 is no multiple of 7
    text_addf(&t, "{\"id\":7,\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}\n");
    memset(seen, 0, sizeof seen);
    Err e = {0};
    const char *path = temporary(t.p, t.len);
    EXPECT(!records_read(path, see, NULL, &e));
    unlink(path);
    EXPECT_STR(e.code, "E-DS-03");
    EXPECT_INT(e.line, 5001);
    text_free(&t);
}

TEST(a_line_at_the_limit_and_one_byte_more) {
    for (int more = 0; more < 2; more++) {
        size_t n = (size_t)LIMIT_JSONL_LINE_BYTES + (size_t)more;
        char *text = malloc(2 * n + 4);
        for (int k = 0; k < 2; k++) { // two of them, so that the second crosses the reader's buffer
            memset(text + k * (n + 2), ' ', n);
            memcpy(text + k * (n + 2), k ? R("b") : R("a"), sizeof R("a") - 1);
            memcpy(text + k * (n + 2) + n, "\r\n", 2);
        }
        EXPECT_STR(read_file(text, 2 * n + 4, false), more ? "E-JS-01@1 " : "a b ");
        free(text);
    }
}

TEST(what_cannot_be_read) {
    Err e = {0}, f = {0};
    EXPECT(!records_read("/nonexistent/x.jsonl", see, NULL, &e));
    EXPECT_STR(e.code, "E-IO-01");
    EXPECT(!records_read("/tmp", see, NULL, &f));
    EXPECT_STR(f.code, "E-IO-02");
}

// Any damage to a good line ends in acceptance or in one message; nothing is leaked or read beyond the line.
TEST(damaged_lines) {
    const char *good =
        "{\"id\":\"q\",\"messages\":[{\"role\":\"system\",\"content\":\"s\"},{\"role\":\"user\",\"content\":[{\"type\":"
        "\"image\","
        "\"image\":\"a/"
        "b.png\"},{\"type\":\"text\",\"text\":\"hi\"}]},{\"role\":\"assistant\",\"content\":\"ok\"}],\"images\":[]}";
    size_t len = strlen(good);
    int accepted = 0, refusals = 0;
    for (uint32_t k = 0; k < 20000; k++) {
        char text[600];
        size_t n = len;
        memcpy(text, good, len);
        for (uint32_t edit = 0; edit < 1 + k % 3; edit++) {
            size_t at = (size_t)(random_uniform(5, RANDOM_TEST, k, 3 * edit) * (double)n);
            double what = random_uniform(5, RANDOM_TEST, k, 3 * edit + 1);
            char byte = "\"{}[],:\\/.\x00\xFF a1"[(int)(random_uniform(5, RANDOM_TEST, k, 3 * edit + 2) * 16)];
            if (what < 0.4) text[at] = byte;
            else if (what < 0.7 && n > 1) memmove(text + at, text + at + 1, n - at - 1), n--;
            else n = at ? at : 1;
        }
        char *exact = malloc(n);
        memcpy(exact, text, n);
        Record r;
        Err e = {0};
        if (record_parse(&r, exact, n, "d.jsonl", 1, &e)) {
            accepted++;
            for (int i = 0; i < r.n_images; i++) EXPECT(r.images[i][0] != '/' && !strstr(r.images[i], "../"));
            record_free(&r);
        } else {
            refusals++;
            EXPECT(err_exit_code(&e) == EXIT_REFUSED);
        }
        free(exact);
    }
    EXPECT(accepted > 100 && refusals > 10000);
}

TEST(marks_are_cut_in_linear_time_and_in_order) {
    Part parts[8];
    int image = 3;
    EXPECT_INT(split_image_marks("<image><image>a<imag<image>", 27, &image, parts), 4);
    EXPECT_INT(image, 6);
    EXPECT(parts[0].image == 3 && parts[1].image == 4 && parts[2].image == -1 && parts[3].image == 5);
    EXPECT(parts[2].len == 6 && !memcmp(parts[2].text, "a<imag", 6));
    EXPECT_INT(split_image_marks("", 0, &image, NULL), 0);
}
