// test_eval.c - evaluations: numbers worked by hand for every task, floors, published variants, what is refused.
#include "test.h"
#include <sys/stat.h>
#include <unistd.h>

static void fail(const char *what) { FAIL("%s", what); }
static char dir[64];
static void clean(void) {
    char command[100];
    snprintf(command, sizeof command, "rm -rf %s", dir);
    if (system(command)) fprintf(stderr, "%s is left behind\n", dir);
}
static const char *path(const char *name) {
    static char buffer[4][128];
    static int turn;
    if (!*dir) {
        snprintf(dir, sizeof dir, "/tmp/surgr1_eval_XXXXXX");
        if (!mkdtemp(dir)) exit(99);
        atexit(clean);
    }
    turn = (turn + 1) % 4;
    snprintf(buffer[turn], sizeof buffer[turn], "%s/%s", dir, name);
    return buffer[turn];
}
static void put_file(const char *name, const Text *t) {
    Err e = {0};
    if (!file_write_atomic(path(name), t->p ? t->p : "", t->len, &e)) err_report(&e), exit(99);
}

static Text records, answers, json, tables;
static JsonDoc doc;
static EvalOptions options;
static Err err;
static void begin(void) {
    text_free(&records), text_free(&answers), text_free(&json), text_free(&tables), json_free(&doc);
    memset(&doc, 0, sizeof doc);
    options = (EvalOptions){.min_pixels = 3136, .max_pixels = 12845056, .factor = 28, .level = 0.95, .resamples = 100};
}
// A record without braces: its members behind the id; and its completion (NULL: none).
static int made;
static void ask_about(const char *members, const char *completion) {
    char id[16];
    snprintf(id, sizeof id, "q%03d", made++);
    text_addf(&records, "{\"id\":\"%s\",%s}\n", id, members);
    if (!completion) return;
    text_addf(&answers, "{\"id\":\"%s\",\"response\":", id);
    text_add_json_string(&answers, completion, strlen(completion));
    text_addf(&answers, "}\n");
}
static void asked(const char *members, const char *answer) { // a completion that lacks nothing else
    Text t = {0};
    text_addf(&t, "<think>Level 1: x</think>\n<answer>%s</answer>", answer);
    ask_about(members, t.p);
    text_free(&t);
}
static bool score(void) {
    char data[128], predictions[128];
    put_file("data.jsonl", &records), put_file("answers.jsonl", &answers);
    snprintf(data, sizeof data, "%s", path("data.jsonl")),
        snprintf(predictions, sizeof predictions, "%s", path("answers.jsonl"));
    options.data = data, options.predictions = predictions;
    text_free(&json), text_free(&tables), json_free(&doc);
    memset(&doc, 0, sizeof doc), err = (Err){0};
    bool ok = eval_score(&options, &json, &tables, &err);
    if (ok && !json_parse(&doc, json.p, json.len, "metrics.json", (JsonOptions){.refuse_duplicates = true}, &err))
        fail("metrics.json is no JSON"), err_report(&err), ok = false;
    return ok;
}
static void scored(void) {
    if (!score()) err_report(&err), fail("not scored");
}
static const Json *section(const char *task) {
    const Json *all = json_get(doc.root, "sections"), *s = all ? all->child : NULL;
    while (s && !json_is(json_get(s, "task"), task)) s = s->next;
    if (!s) FAIL("no section %s", task);
    return s;
}
static double value_of(const char *task, const char *metric, const char *column) {
    const Json *m = json_get(json_get(section(task), "metrics"), metric), *v = m ? json_get(m, column) : NULL;
    if (!v) FAIL("no %s of %s of %s", column, metric, task);
    return v && v->type == JSON_NUMBER ? v->number : (double)NAN;
}
static int64_t count_of(const char *task, const char *name) {
    const Json *v = json_get(json_get(section(task), "answers"), name);
    return v && v->integer ? v->i : -1;
}
static void number_is(const char *what, double got, double want, double limit) {
    if (!(fabs(got - want) <= limit)) FAIL("%s: expected %.9g, got %.9g", what, want, got);
}
static void value(const char *task, const char *metric, double want) {
    number_is(metric, value_of(task, metric, "value"), want, 1e-12);
}
static void floor_is(const char *task, const char *metric, double want) {
    number_is(metric, value_of(task, metric, "constant"), want, 1e-12);
}

// Three phases; the answers are right, another phase, right, half a name, empty, and nothing at all.
static void six_phases(void) {
    static const char *const rows[6][3] = {
        {"1", "Preparation", "<think>Level 1: x</think><answer>preparation.</answer>"},
        {"1", "Preparation", "<think>Level 1: x</think><answer>Clipping Cutting</answer>"},
        {"1", "ClippingCutting", "<think>Level 1: x</think><answer>B. clipping-cutting</answer>"},
        {"2", "ClippingCutting", "<think>Level 1: x</think><answer>Clipping</answer>"},
        {"2", "GallbladderPackaging", "<think>Level 1: x</think><answer></answer>"},
        {"2", "ClippingCutting", ""}};
    begin();
    for (int i = 0; i < 6; i++) {
        char members[200];
        snprintf(members, sizeof members, "\"task\":\"phase\",\"answer\":\"%s\",\"video\":\"%s\",\"frame\":%d",
                 rows[i][1], rows[i][0], i);
        ask_about(members, rows[i][2]);
    }
}
TEST(phases_are_scored_as_worked_by_hand) {
    six_phases(), scored();
    value("phase", "accuracy", 2. / 6);
    // Preparation 1 of 1 said, of 2; ClippingCutting 1 of 2 said, of 3; GallbladderPackaging never said, of 1
    value("phase", "macro_precision", (1 + .5 + 0) / 3), value("phase", "macro_recall", (.5 + 1. / 3 + 0) / 3);
    value("phase", "macro_f1", (2. / 3 + .4 + 0) / 3), value("phase", "macro_jaccard", (.5 + .25 + 0) / 3);
    value("phase", "balanced_accuracy", (.5 + 1. / 3 + 0) / 3);
    value("phase", "weighted_f1", (2 * 2. / 3 + 3 * .4) / 6);
    // by video: 2 of 3 right, 0 of 3
    value("phase", "video_accuracy", 1. / 3);
    value("phase", "video_recall", (.5 + (1 + 0) / 2. + 0) / 3);
    // a constant ClippingCutting
    floor_is("phase", "accuracy", .5), floor_is("phase", "macro_recall", 1. / 3),
        floor_is("phase", "macro_jaccard", .5 / 3);
    EXPECT_INT(count_of("phase", "empty"), 1);
    EXPECT_INT(count_of("phase", "unparsable"), 2);
    EXPECT_INT(count_of("phase", "outside"), 1);
    EXPECT_INT(json_get(json_get(json_get(section("phase"), "answers"), "status"), "EMPTY")->i, 1);
    EXPECT_INT(json_get(json_get(json_get(section("phase"), "answers"), "status"), "NO_THINK")->i, 1);
    number_is("a number", json_get(json_get(doc.root, "arena"), "value")->number, 2. / 6, 1e-12);
}
TEST(the_authors_evaluator_calls_the_empty_answer_right) {
    six_phases(), scored();
    value("phase", "surgr1_legacy_rows", 5);          // the row without a response is left out
    value("phase", "surgr1_legacy_accuracy", 3. / 5); // right, half a name, empty; "clipping-cutting" keeps its hyphen
    value("phase", "surgr1_legacy_macro_recall", (.5 + 0 + 0) / 3); // by equality: "preparation" alone
    EXPECT(value_of("phase", "surgr1_legacy_accuracy", "value") > value_of("phase", "accuracy", "value"));
}
TEST(legacy_text_is_what_that_evaluator_compares) {
    static const struct {
        const char *said, *label, *text;
        bool right;
    } cases[] = {
        {"<think>x</think><answer></answer>", "A. Preparation", "", true},
        {"<answer>A. Preparation</answer>", "A. Preparation", "preparation", true},
        {"The answer is  Preparation.", "Preparation", "preparation", true},
        {"the current phase is Clipping Cutting", "ClippingCutting", "clippingcutting", true},
        {"The complete surgical actions are: hook dissect gallbladder", "hook dissect gallbladder",
         "hookdissectgallbladder", true},
        {"A. Preparation; B. Clipping, C. Cutting", "D. Cutting", "preparation,clipping,cutting",
         true}, // all options listed
        {"unknown", "no", "unknown", true},
        {"yes", "no", "yes", false},
        {"no", "no", "no", true},
        {"<answer>a</answer><answer>b</answer>", "b", "a", false}, // the first pair
        {"<answer>hook", "hook", "<answer>hook", true},
        {"gallbladder-dissection", "Gallbladder Dissection", "gallbladder-dissection", false},
        {"thesis", "x", "thesis", false},
        {"D.", "D", "", true}, // a letter alone leaves nothing, which is right
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Text said = {0}, label = {0};
        eval_legacy_text(cases[i].said, strlen(cases[i].said), &said);
        eval_legacy_text(cases[i].label, strlen(cases[i].label), &label);
        text_add(&said, "", 0);
        EXPECT_STR(said.p, cases[i].text);
        if (eval_legacy_right(&said, &label) != cases[i].right) FAIL("%s: not %d", cases[i].said, cases[i].right);
        text_free(&said), text_free(&label);
    }
}

TEST(triplets_by_component_and_ap_as_worked_by_hand) {
    begin();
#define TRIPLET(x) "\"task\":\"triplet\",\"video\":\"1\",\"answer\":\"" x "\""
    asked(TRIPLET("grasper retract gallbladder, hook dissect cystic_duct"),
          "Hook dissect cystic duct; grasper retract gallbladder.");
    asked(TRIPLET("grasper retract liver"), "grasper retract gallbladder");
    asked(TRIPLET("hook dissect gallbladder"), "hook dissect spleen");
    scored();
    value("triplet", "accuracy", 1. / 3), value("triplet", "instrument_accuracy", 1),
        value("triplet", "verb_accuracy", 1);
    value("triplet", "target_accuracy", 1. / 3);
    value("triplet", "micro_jaccard", 2. / 6); // 2 of 4 found, 2 said in vain
    EXPECT_INT(count_of("triplet", "outside"), 1);
    // classes: said twice and right once; right; never said (one of three frames) twice
    value("triplet", "map_ivt_binary_scores", (.5 + 1 + 1. / 3 + 1. / 3) / 4);
    // grasper found in both frames; hook in one of two: .5 * 1 + .5 * 2/3
    value("triplet", "map_i_binary_scores", (1 + (.5 + 1. / 3)) / 2);
    value("triplet", "ivtmetrics_0.1.5_map_ivt", (.5 + 1 + 1. / 3 + 1. / 3) / 100); // absent classes as 0
}
TEST(three_names_and_more_are_no_triplet) {
    begin();
    asked(TRIPLET("grasper retract liver"), "grasper retract liver twice");
    scored();
    value("triplet", "accuracy", 0), value("triplet", "instrument_accuracy", 1), value("triplet", "target_accuracy", 0);
    EXPECT_INT(count_of("triplet", "outside"), 1);
}
TEST(triplets_of_other_vocabularies_are_compared_as_sets_only) {
    begin();
    asked(TRIPLET("stapler staple stomach"), "stapler staple stomach");
    asked(TRIPLET("grasper retract liver"), "stapler staple stomach");
    scored();
    value("triplet", "accuracy", .5);
    EXPECT(!json_get(json_get(section("triplet"), "metrics"), "instrument_accuracy"));
}

TEST(the_critical_view_is_pooled_averaged_and_joint) {
    begin();
    static const char *const truth[2][3] = {{"yes", "no", "yes"}, {"no", "no", "no"}}, *const said[2][3] = {
                                                                                           {"yes", "yes", "yes."},
                                                                                           {"no", "maybe",
                                                                                            "No, it is not"}};
    for (int i = 0; i < 2; i++)
        for (int c = 0; c < 3; c++) {
            char members[160];
            snprintf(members, sizeof members, "\"task\":\"cvs%d\",\"answer\":\"%s\",\"images\":[\"%d.png\"]", c + 1,
                     truth[i][c], i);
            asked(members, said[i][c]);
        }
    scored();
    value("cvs_criteria", "overall_pooled", 4. / 6), value("cvs_criteria", "avg", 2. / 3),
        value("cvs_criteria", "joint", 0);
    value("cvs_criteria", "achieved", .5); // the first is said to be achieved and is not
    value("cvs_criteria", "c2_accuracy", 0), value("cvs_criteria", "c1_balanced_accuracy", 1);
    floor_is("cvs_criteria", "overall_pooled", 4. / 6); // no, no, no: 1 + 2 + 1 of 6
    value("cvs2", "accuracy", 0);
    EXPECT_INT(count_of("cvs2", "unparsable"), 1);
    number_is("a number", json_get(json_get(doc.root, "arena"), "value")->number, 4. / 6, 1e-12);
    EXPECT_INT(json_get(json_get(doc.root, "arena"), "n")->i, 1);
}

TEST(a_picture_is_right_when_its_three_criteria_are) {
    begin();
    for (int i = 0; i < 4; i++) // the first of four is all right
        for (int c = 0; c < 3; c++) {
            char members[160];
            snprintf(members, sizeof members, "\"task\":\"cvs%d\",\"answer\":\"yes\",\"images\":[\"%d.png\"]", c + 1,
                     i);
            asked(members, i && c == i - 1 ? "no" : "yes");
        }
    scored();
    value("cvs_criteria", "joint", .25), value("cvs_criteria", "overall_pooled", .75),
        value("cvs_criteria", "achieved", .25);
}

#define BOX_OF(x)                                                                                                      \
    "\"task\":\"tool_box\",\"slot\":\"grasper\",\"size\":[112,112],\"boxes\":[{\"label\":\"grasper\",\"box\":" x "}]"
TEST(boxes_are_measured_in_pixels_of_the_file) {
    begin();
    // shown at 224 x 224: twice as large
    text_addf(&records, "{\"id\":\"a\"," BOX_OF("[10,10,30,30]") "}\n{\"id\":\"b\"," BOX_OF("[10,10,30,30]") "}\n");
    text_addf(&answers, "{\"id\":\"b\",\"response\":\"no idea\",\"resized\":[224,224]}\n"
                        "{\"id\":\"a\",\"response\":\"<think>Level 1: "
                        "x</think><answer>(20,20),(60,40)</answer>\",\"resized\":[224,224]}\n");
    scored();
    value("tool_box", "miou", .25), value("tool_box", "iou_50", .5), value("tool_box", "iou_75", 0);
    value("tool_box", "ap50", 51. / 101), value("tool_box", "coco_ap", 51. / 1010), value("tool_box", "ap75", 0);
    value("tool_box", "precision_50", 1), value("tool_box", "recall_50", .5);
    floor_is("tool_box", "miou", 1); // both are at one place
    EXPECT_INT(count_of("tool_box", "unparsable"), 1);
    options.boxes_original = true, scored();
    value("tool_box", "miou", 200. / 2 / (400 + 800 - 100) / 2 * 1); // 10 x 10 in common
}
TEST(without_a_frame_boxes_are_those_of_the_resize) {
    begin();
    ask_about("\"task\":\"tool_box\",\"slot\":\"hook\",\"size\":[100,100],\"boxes\":[{\"label\":\"hook\",\"box\":[25,"
              "25,50,50]}]",
              "<think>x</think><answer>[28,28,56,56]</answer>"); // 100 becomes 112
    scored();
    value("tool_box", "miou", 1);
    begin();
    ask_about("\"task\":\"tool_box\",\"slot\":\"hook\",\"boxes\":[{\"label\":\"hook\",\"box\":[25,25,50,50]}]", "x");
    EXPECT(!score());
    EXPECT_STR(err.code, "E-DS-02");
}
TEST(all_boxes_of_a_picture_are_matched_by_name) {
    begin();
    options.boxes_original = true;
    asked("\"task\":\"tool_boxes\",\"boxes\":[{\"label\":\"grasper\",\"box\":[0,0,10,10]},{\"label\":\"hook\",\"box\":["
          "20,20,30,30]}]",
          "grasper(0,0),(10,10), hook(50,50),(60,60)");
    asked("\"task\":\"tool_boxes\",\"boxes\":[]", "No tools detected");
    asked("\"task\":\"tool_boxes\",\"boxes\":[{\"label\":\"hook\",\"box\":[20,20,30,30]}]", "spoon(20,20),(30,30)");
    scored();
    value("tool_boxes", "miou", (.5 + 1 + 0) / 3), value("tool_boxes", "iou_50", 1. / 3);
    value("tool_boxes", "ap50", .5); // grasper 1, hook 0
    value("tool_boxes", "precision_50", 1. / 3), value("tool_boxes", "recall_50", 1. / 3);
    floor_is("tool_boxes", "miou", 1. / 3);
    EXPECT_INT(count_of("tool_boxes", "outside"), 1);
}
TEST(the_published_overlap_is_inflated_and_stands_apart) {
    begin();
    options.boxes_original = true;
#define VQLA(label)                                                                                                    \
    "\"task\":\"vqla\",\"question\":\"what is it\",\"size\":[100,100],\"answer\":\"" label                             \
    "\",\"boxes\":[{\"box\":[40,40,60,60]}]"
    asked(VQLA("kidney"), "{\"answer\": \"kidney\", \"bbox_2d\": [70, 70, 90, 90]}");
    asked(VQLA("left-top"), "{\"answer\": \"left-top\", \"bbox_2d\": [45, 45, 65, 65]}");
    asked(VQLA("left-top"), "{\"answer\": \"kidney\", \"bbox_2d\": [40, 40, 60, 60]}");
    asked(VQLA("left-top"), "kidney");
    scored();
    double near = 225. / (800 - 225), legacy = 0.391304347826087 + 0.849117174959871 + 1 + 0;
    value("vqla", "accuracy", .5), value("vqla", "miou", (0 + near + 1 + 0) / 4);
    number_is("a number", value_of("vqla", "miou_vqla_legacy", "value"), legacy / 4, 1e-6);
    value("vqla", "iou_50", .25), value("vqla", "label_and_iou_50", 0);
    // kidney: 1 of 3 said, of 1; left-top: 1 of 1 said, of 3: F 1/2 and 1/2
    value("vqla", "vqla_f_score", .5), value("vqla", "macro_f1", .5);
}

TEST(lists_numbers_and_words_as_worked_by_hand) {
    begin();
    asked("\"task\":\"tool\",\"answer\":\"grasper and hook\"", "hook, grasper");
    asked("\"task\":\"tool\",\"answer\":\"grasper\"", "grasper and clipper");
    asked("\"task\":\"tool\",\"answer\":\"hook\"", "");
    asked("\"task\":\"count\",\"answer\":\"2\"", "two");
    asked("\"task\":\"count\",\"answer\":3", "1");
    asked("\"task\":\"count\",\"answer\":\"3\"", "many");
    asked("\"task\":\"grid\",\"slot\":\"hook\",\"answer\":\"upper left\"", "Upper-Left");
    asked("\"task\":\"grid\",\"slot\":\"hook\",\"answer\":\"center\"", "lower left");
    asked("\"task\":\"motion\",\"answer\":\"up\"", "up"), asked("\"task\":\"motion\",\"answer\":\"down\"", "up");
    asked("\"task\":\"step\",\"answer\":\"a b\"", "A_b");
    asked("\"task\":\"cvs\",\"answer\":\"yes\"", "Yes, it is"), asked("\"task\":\"cvs\",\"answer\":\"no\"", "Yes");
    scored();
    value("tool", "exact_accuracy", 1. / 3), value("tool", "mean_jaccard", (1 + .5 + 0) / 3);
    value("tool", "micro_precision", 3. / 4), value("tool", "micro_recall", 3. / 4);
    value("tool", "macro_f1", (1 + 2. / 3) / 2);
    value("tool", "map_binary_scores", (1 + (.5 + .5 * 2 / 3)) / 2);
    value("count", "accuracy", 1. / 3), value("count", "mean_error_of_read", 1);
    EXPECT_INT(count_of("count", "unparsable"), 1);
    value("grid", "accuracy", .5);
    EXPECT_INT(count_of("grid", "outside"), 0); // a cell that is no label here is one of the nine all the same
    value("motion", "accuracy", .5), value("step", "accuracy", 1), value("cvs", "accuracy", .5);
}
TEST(the_last_phase_of_cholec80_has_two_names) {
    for (int set = 0; set < 2; set++) {
        begin();
        char members[2][100];
        for (int i = 0; i < 2; i++)
            snprintf(members[i], sizeof members[i], "\"task\":\"phase\",\"dataset\":\"%s\",\"answer\":\"%s\"",
                     set ? "other" : "cholec80", i ? "Preparation" : "GallbladderRetraction");
        asked(members[0], "Gallbladder Extraction"), asked(members[1], "Gallbladder Extraction");
        scored();
        value("phase", "accuracy", set ? 0 : .5);
        EXPECT_INT(count_of("phase", "outside"), set ? 2 : 0); // a wrong answer, but one of the phases
    }
}
TEST(idle_instruments_can_be_left_out) {
    begin();
    asked(TRIPLET("grasper retract gallbladder, hook null_verb null_target"), "grasper retract gallbladder");
    asked(TRIPLET("hook null_verb null_target"), "hook dissect gallbladder");
    scored();
    value("triplet", "accuracy", 0), value("triplet", "accuracy_without_null", 1); // the second frame has nothing left
}
TEST(actions_have_the_score_of_their_challenge) {
    static const char truth[] = "0000111122", said[] = "0100111122"; // datasets.md M.5
    begin();
    for (int k = 0, i = 0; k < 10; k++, i = 3 * k % 10) { // in no order of time
        char members[120], label[2] = {said[i], 0};
        snprintf(members, sizeof members, "\"task\":\"action\",\"video\":\"v\",\"frame\":%d,\"answer\":\"a%c\"", i,
                 truth[i]);
        char text[4] = {'a', label[0], 0};
        asked(members, text);
    }
    scored();
    value("action", "accuracy", .9), value("action", "video_segment_f1_at_10", .75);
    value("action", "sar_rarp50_score", sqrt(.9 * .75));
}
TEST(the_published_f_score_counts_what_is_never_said_as_precise) {
    begin();
    asked("\"task\":\"vqa\",\"answer\":\"a\"", "a"), asked("\"task\":\"vqa\",\"answer\":\"b\"", "a");
    scored();
    value("vqa", "macro_precision", .25), value("vqa", "vqla_precision", .75); // b: 0 of 0
    value("vqa", "macro_f1", 1. / 3), value("vqa", "vqla_f_score", 1. / 3);
    asked("\"task\":\"vqa\",\"answer\":\"b\"", "zebra"),
        scored(); // a third class in the union, which no label asks for
    value("vqa", "vqla_recall", (1 + 0 + 1) / 3.), value("vqa", "macro_recall", .5);
    value("vqa", "vqla_f_score", (2. / 3 + 0 + 0) / 3), value("vqa", "macro_f1", 1. / 3);
}
TEST(each_question_has_its_own_most_frequent_answer) {
    begin();
    static const char *const rows[][2] = {{"organ", "kidney"}, {"organ", "kidney"},  {"organ", "liver"},
                                          {"state", "idle"},   {"state", "cutting"}, {"state", "idle"},
                                          {"state", "idle"}};
    for (size_t i = 0; i < 7; i++) {
        char members[120];
        snprintf(members, sizeof members, "\"task\":\"vqa\",\"question\":\"%s\",\"answer\":\"%s\"", rows[i][0],
                 rows[i][1]);
        asked(members, "kidney");
    }
    scored();
    value("vqa", "accuracy", 2. / 7), floor_is("vqa", "accuracy", 3. / 7);
    number_is("a number", value_of("vqa", "accuracy", "question"), 5. / 7, 1e-12);
    const Json *organ = json_get(section("vqa"), "questions")->child; // by question
    EXPECT_STR(json_get(organ, "question")->str, "organ");
    EXPECT_INT(json_get(organ, "n")->i, 3);
    number_is("accuracy of organ", json_get(organ, "accuracy")->number, 2. / 3, 1e-12);
    number_is("accuracy of state", json_get(organ->next, "accuracy")->number, 0, 1e-12);
    // from other records: cutting is the most frequent label there, and organs are not asked for
    Text train = {0};
    text_addf(&train, "{\"id\":\"1\",\"task\":\"vqa\",\"question\":\"state\",\"answer\":\"cutting\"}\n");
    for (int i = 2; i < 5; i++) text_addf(&train, "{\"id\":\"%d\",\"task\":\"action\",\"answer\":\"idle\"}\n", i);
    put_file("train.jsonl", &train), text_free(&train);
    char name[128];
    snprintf(name, sizeof name, "%s", path("train.jsonl"));
    options.train = name, scored();
    floor_is("vqa", "accuracy", 1. / 7);
    number_is("a number", value_of("vqa", "accuracy", "question"), 1. / 7, 1e-12);
}

TEST(records_and_answers_are_written_side_by_side) {
    six_phases();
    char joined[128];
    snprintf(joined, sizeof joined, "%s", path("joined.jsonl"));
    options.joined = joined, scored();
    Text first = {0};
    text_add(&first, json.p, json.len);
    options.data = joined, options.predictions = options.joined = NULL; // the file is an evaluation by itself
    text_free(&json), text_free(&tables);
    if (!eval_score(&options, &json, &tables, &err)) err_report(&err), fail("not scored");
    EXPECT_STR(json.p, first.p);
    text_free(&first);
    JsonDoc d;
    Err e = {0};
    Text out = {0};
    const char *line = "{\"id\":\"1\",\"prediction\":\"old\",\"a\":[1,{\"b\":null}]}";
    if (!json_parse(&d, line, strlen(line), "x", (JsonOptions){.first_line = 1}, &e)) fail("a record");
    eval_record_print(d.root, "\"size\":[2,3]", &(EvalAnswer){"x\"\n", 3, 28, 56, 4, 0}, &out);
    EXPECT_STR(out.p, "{\"id\":\"1\",\"a\":[1,{\"b\":null}],\"size\":[2,3],\"response\":\"x\\\"\\n\",\"resized\":[28,"
                      "56],\"tokens\":4,"
                      "\"stopped\":false}\n");
    json_free(&d), text_free(&out);
}

// ------------------------------------------------------------------------------------------------------- drawn scenes
enum { FRAMES = 24 };
static void scene_text(void (*say)(const char *id, const char *task, const char *answer)) {
    begin();
    for (int i = 0; i < FRAMES; i++) {
        Scene s;
        scene_render(&s, &(SceneOptions){.seed = 3, .index = i, .group = 6, .width = 112, .height = 112});
        scene_records(
            &s,
            &(SceneRecords){
                .seed = 3, .index = i, .split = "test", .image = "x.png", .answers = true, .tasks = (1u << TASKS) - 1},
            &records);
        scene_free(&s);
    }
    for (char *line = records.p, *end; line && (end = strchr(line, '\n')); line = end + 1) {
        JsonDoc d;
        Err e = {0};
        if (!json_parse(&d, line, (size_t)(end - line), "scenes", (JsonOptions){.first_line = 1}, &e)) {
            err_report(&e), fail("a record of a scene");
            return;
        }
        const Json *m = json_get(d.root, "messages")->child;
        while (m->next) m = m->next;
        say(json_get(d.root, "id")->str, json_get(d.root, "task")->str, json_get(m, "content")->str);
        json_free(&d);
    }
    options.boxes_original = true;
}
static void say_it(const char *id, const char *task, const char *answer) {
    (void)task;
    Text t = {0};
    text_addf(&t, "<think>Level 1: x</think><answer>%s</answer>", answer);
    text_addf(&answers, "{\"id\":\"%s\",\"response\":", id), text_add_json_string(&answers, t.p, t.len),
        text_addf(&answers, "}\n");
    text_free(&t);
}
TEST(perfect_answers_get_everything) {
    scene_text(say_it), scored();
    int n = 0;
    for (const Json *s = json_get(doc.root, "sections")->child; s; s = s->next, n++)
        for (const Json *m = json_get(s, "metrics")->child; m; m = m->next) {
            const Json *v = json_get(m, "value");
            bool error = strstr(m->key, "error") || strstr(m->key, "_std"),
                 other = strstr(m->key, "ivtmetrics") || strstr(m->key, "rows");
            if (other) continue;
            // deviations, and means without a class, have no value here
            if (v->type == JSON_NUMBER ? fabs(v->number - (error ? 0 : 1)) > 1e-12 : !strstr(m->key, "without_null"))
                FAIL("%s of %s is %g", m->key, json_get(s, "task")->str, v->number);
        }
    EXPECT(n >= 15);
    number_is("a number", json_get(json_get(doc.root, "arena"), "value")->number, 1, 1e-12);
}
static char constant[TASKS][300];
static int most[TASKS];
static void say_constant(const char *id, const char *task, const char *answer) {
    (void)answer;
    say_it(id, task, constant[task_of(task)]);
}
static struct {
    int task, n;
    char text[300];
} seen[4000];
static int n_seen;
static void count_it(const char *id, const char *task, const char *answer) {
    (void)id;
    int i = 0, t = task_of(task);
    while (i < n_seen && (seen[i].task != t || strcmp(seen[i].text, answer))) i++;
    if (i == n_seen) seen[n_seen].task = t, snprintf(seen[n_seen++].text, sizeof seen[0].text, "%s", answer);
    if (++seen[i].n > most[t]) most[t] = seen[i].n, snprintf(constant[t], sizeof constant[t], "%s", answer);
}
TEST(a_constant_answer_gets_its_floor) {
    scene_text(count_it);
    scene_text(say_constant);
    scored();
    int n = 0;
    static const char *const tasks[] = {"tool",  "tissue", "grid",  "cvs1",    "cvs2", "cvs3",
                                        "count", "step",   "phase", "triplet", "vqa"};
    for (size_t t = 0; t < sizeof tasks / sizeof *tasks; t++) {
        const char *primary = json_get(section(tasks[t]), "primary")->str;
        double got = value_of(tasks[t], primary, "value"), want = value_of(tasks[t], primary, "constant");
        // with several labels of that number another one may have been taken: the share right is the same
        if (!(fabs(got - want) < 1e-12)) FAIL("%s: %s %.9g, its floor %.9g", tasks[t], primary, got, want);
        n++;
    }
    EXPECT_INT(n, 11);
}
TEST(the_order_of_lines_and_the_threads_change_nothing) {
    scene_text(say_it);
    Text first = {0}, shown = {0}, turned = {0};
    // every third answer says something else
    int k = 0;
    for (char *p = answers.p; (p = strstr(p, "<answer>")); p += 8)
        if (k++ % 3 == 0) memcpy(p, "<answe>r", 8);
    scored();
    text_add(&first, json.p, json.len), text_add(&shown, tables.p, tables.len);
    for (size_t end = answers.len; end;) { // last line first
        size_t from = end - 1;
        while (from && answers.p[from - 1] != '\n') from--;
        text_add(&turned, answers.p + from, end - from);
        end = from;
    }
    EXPECT_INT(turned.len, answers.len);
    text_free(&answers), answers = turned;
    for (int threads = 1; threads <= 5; threads += 2) {
        pool_start(threads);
        scored();
        pool_stop();
        EXPECT_STR(json.p, first.p);
        EXPECT_STR(tables.p, shown.p);
    }
    EXPECT(value_of("phase", "accuracy", "value") < 0.9);
    text_free(&first), text_free(&shown);
}

TEST(intervals_draw_patients_not_frames) {
    begin();
    options.resamples = 400;
    for (int i = 0; i < 100; i++) {
        char members[120];
        snprintf(members, sizeof members, "\"task\":\"step\",\"patient\":\"%d\",\"answer\":\"a\"", i % 2);
        asked(members, i % 2 ? "a" : "b");
    }
    scored();
    // two patients, one all right and one all wrong: frames would give about 0.4 to 0.6
    number_is("a number", value_of("step", "accuracy", "low"), 0, 1e-12),
        number_is("a number", value_of("step", "accuracy", "high"), 1, 1e-12);
    EXPECT_INT(json_get(section("step"), "patients")->i, 2);
    options.resamples = 0, scored();
    EXPECT(!json_get(json_get(json_get(section("step"), "metrics"), "accuracy"), "low"));
}

TEST(three_ways_to_read_stand_beside_each_other) {
    begin();
    ask_about("\"task\":\"step\",\"answer\":\"a\"", "<think>Level 1: x</think><answer>a</answer>");
    ask_about("\"task\":\"step\",\"answer\":\"a\"", "<answer>a</answer>");
    ask_about("\"task\":\"step\",\"answer\":\"a\"", "a");
    ask_about("\"task\":\"step\",\"answer\":\"a\"", "<think>b</think> a ");
    static const double want[] = {.5, .25, 1}; // tags, format, any
    for (int mode = 0; mode < 3; mode++) {
        options.reading = (enum EvalReading)mode, scored();
        value("step", "accuracy", want[mode]);
        const Json *r = json_get(section("step"), "right_by_reading");
        number_is("a number", json_get(r, "tags")->number, .5, 1e-12),
            number_is("a number", json_get(r, "format")->number, .25, 1e-12);
        number_is("a number", json_get(r, "any")->number, 1, 1e-12);
    }
}
TEST(an_option_letter_stands_for_its_choice) {
    begin();
#define PHASE                                                                                                          \
    "\"task\":\"phase\",\"answer\":\"B. Clipping\",\"messages\":[{\"role\":\"user\",\"content\":\"Which?\\nA. "        \
    "Dissection\\nB. Clipping\"}]"
    asked(PHASE, "B"), asked(PHASE, "Clipping"), asked(PHASE, "A"), asked(PHASE, "C");
    scored();
    value("phase", "accuracy", .5);
    EXPECT_INT(count_of("phase", "choice"), 4);
    EXPECT_INT(count_of("phase", "outside"), 1); // Dissection is an option
}

TEST(ids_are_joined_or_refused) {
    static const struct {
        const char *answers, *code;
        bool wrong, skip;
    } cases[] = {
        {"{\"id\":\"a\",\"response\":\"x\"}\n{\"id\":\"b\",\"output\":\"x\"}\n", "", false, false},
        {"{\"id\":\"a\",\"response\":\"x\"}\n{\"id\":\"a\",\"response\":\"x\"}\n", "E-TA-02", false, true},
        {"{\"id\":\"a\",\"response\":\"x\"}\n{\"id\":\"c\",\"response\":\"x\"}\n", "E-TA-01", true, false},
        {"{\"id\":\"a\",\"response\":\"x\"}\n", "E-TA-03", false, true},
        {"{\"id\":\"a\",\"response\":\"x\"}\n{\"id\":\"b\"}\n", "E-TA-03", false, true},
        {"{\"id\":\"a\",\"response\":\"x\"}\n{\"id\":\"c\",\"response\":\"x\"}\n", "", true, true},
        {"{\"id\":\"a\",\"response\":1}\n", "E-DS-02", true, true},
        {"[]x\n", "E-JS-04", true, true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        begin();
        text_addf(
            &records,
            "{\"id\":\"a\",\"task\":\"step\",\"answer\":\"x\"}\n{\"id\":\"b\",\"task\":\"step\",\"answer\":\"x\"}\n"
            "{\"id\":\"z\",\"task\":\"step\"}\n");
        text_addf(&answers, "%s", cases[i].answers);
        options.missing_wrong = cases[i].wrong, options.skip_foreign = cases[i].skip;
        bool ok = score();
        if (ok != !*cases[i].code || strcmp(err.code, cases[i].code))
            FAIL("case %zu: %s instead of %s", i, err.code, cases[i].code);
        if (!ok) continue;
        EXPECT_INT(json_get(doc.root, "answers")->i, 2);
        EXPECT_INT(json_get(doc.root, "without_label")->i, 1);
        EXPECT_INT(count_of("step", "missing"), i == 5);
        EXPECT_INT(json_get(doc.root, "foreign")->i, i == 5);
    }
    begin();
    text_addf(&records, "{\"id\":\"a\",\"answer\":\"x\"}\n{\"id\":\"a\",\"answer\":\"y\"}\n");
    EXPECT(!score());
    EXPECT_STR(err.code, "E-DS-03");
    begin();
    text_addf(&records, "{\"id\":\"a\",\"task\":\"count\",\"answer\":\"several\"}\n"),
        text_addf(&answers, "{\"id\":\"a\",\"response\":\"\"}\n");
    EXPECT(!score());
    EXPECT_STR(err.code, "E-DS-12");
    begin();
    text_addf(&records, "{\"id\":\"a\"}\n"), text_addf(&answers, "{\"id\":\"a\",\"response\":\"\"}\n");
    EXPECT(!score());
    EXPECT_STR(err.code, "E-DS-02");
}
TEST(hostile_answers_and_labels_are_counted_and_printed_clean) {
    begin();
    char *long_text = malloc(300001);
    memset(long_text, 'a', 300000), long_text[300000] = 0;
    asked("\"task\":\"vqa\",\"dataset\":\"a\\u0022b<script>\",\"answer\":\"\\u001b[31m\\\"</script>\"", "\x1b[2J");
    ask_about("\"task\":\"vqa\",\"dataset\":\"a\\u0022b<script>\",\"answer\":\"x\"", long_text);
    ask_about("\"task\":\"vqa\",\"dataset\":\"a\\u0022b<script>\",\"answer\":\"x\"",
              "<think></think><answer>x\xff</answer>");
    bool ok = score();
    if (ok) { // a control character in a label is a matter of the reader
        EXPECT(!strchr(tables.p, 0x1b));
        value("vqa", "accuracy", 0);
        EXPECT_INT(count_of("vqa", "unparsable"), 1);
        EXPECT_INT(count_of("vqa", "outside"), 2);
    } else EXPECT_STR(err.code, "E-DS-05");
    begin();
    asked("\"task\":\"vqa\",\"dataset\":\"a\\u0022b<script>\",\"answer\":\"y\"", "y");
    ask_about("\"task\":\"vqa\",\"dataset\":\"a\\u0022b<script>\",\"answer\":\"x\"", long_text);
    ask_about("\"task\":\"vqa\",\"dataset\":\"a\\u0022b<script>\",\"answer\":\"x\"",
              "<think>x</think><answer>x\xff</answer>");
    scored();
    value("vqa", "accuracy", 1. / 3);
    EXPECT_INT(count_of("vqa", "unparsable"), 1);
    free(long_text);
}

// -------------------------------------------------------------------------------------------------------- generation
static const char *checkpoint = "test/fixtures/oracle/pipeline/ask/checkpoint";
static void generate_to(const char *out, EvalGenerate o, int64_t batch, int64_t want) {
    Err e = {0};
    Model m;
    Tokenizer *t = NULL;
    int64_t n = 0;
    char name[128], data[128];
    snprintf(name, sizeof name, "%s", path(out)), snprintf(data, sizeof data, "%s", path("scenes.jsonl"));
    o.data = data, o.out = name, o.batch = batch;
    if (!tokenizer_load(&t, checkpoint, &e) ||
        !model_load(&m, checkpoint, ops_cpu(), (LoadOptions){.force_f32 = true}, &e)) {
        err_report(&e), fail("the checkpoint");
        return;
    }
    m.c.vision.max_pixels = 12544;
    bool from_file;
    if (!generation_config_load(&o.g, checkpoint, &from_file, &e)) err_report(&e), fail("settings");
    o.g.max_new_tokens = 6, o.g.sample.do_sample = true, o.g.sample.temperature = 1, o.g.sample.seed = 5;
    if (!eval_generate(&m, t, &o, &n, &e)) err_report(&e), fail(e.code);
    EXPECT_INT(n, want);
    model_free(&m), tokenizer_free(t);
}
static char *file_text(const char *name) {
    char *data = NULL;
    size_t size;
    Err e = {0};
    if (!file_read(path(name), INT64_C(1) << 26, "E-JS-01", &data, &size, &e)) err_report(&e), exit(99);
    return data;
}
TEST(an_answer_depends_on_its_record_alone) {
    if (!folder_exists(checkpoint)) SKIP("no %s", checkpoint);
    begin();
    Scene s;
    Err e = {0};
    scene_render(&s, &(SceneOptions){.seed = 1, .index = 7, .width = 112, .height = 112});
    if (!image_write_png(path("x.png"), s.rgb, 112, 112, &e)) err_report(&e), exit(99);
    int all = scene_records(
        &s,
        &(SceneRecords){
            .seed = 1, .index = 7, .split = "test", .image = "x.png", .answers = true, .tasks = (1u << TASKS) - 1},
        &records);
    scene_free(&s);
    put_file("scenes.jsonl", &records);
    generate_to("one.jsonl", (EvalGenerate){.image_root = NULL}, 1, all);
    generate_to("five.jsonl", (EvalGenerate){.image_root = NULL}, 5, all);
    char *one = file_text("one.jsonl"), *five = file_text("five.jsonl");
    EXPECT_STR(five, one);
    // every record comes back as it was, with the four members behind
    int n = 0;
    bool differ = false, stopped = false;
    for (char *line = one, *record = records.p; *line; n++) {
        size_t a = strcspn(line, "\n"), b = strcspn(record, "\n");
        EXPECT(a > b && !memcmp(line, record, b - 1) && !strncmp(line + b - 1, ",\"response\":", 12));
        EXPECT(strstr(line, "\"resized\":[112,112],\"tokens\":"));
        line[a] = 0, stopped |= strstr(line, "\"stopped\":true") != NULL, line += a + 1, record += b + 1;
    }
    EXPECT_INT(n, all);
    generate_to("blind.jsonl", (EvalGenerate){.blind = true}, 5, all);
    generate_to("system.jsonl", (EvalGenerate){.system = "Say one word."}, 5, all);
    char *blind = file_text("blind.jsonl"), *system_turn = file_text("system.jsonl");
    differ = strcmp(blind, five) != 0;
    EXPECT(differ);
    EXPECT(strcmp(system_turn, five));
    // the blind run is the same whatever the picture shows
    uint8_t *grey = calloc(112 * 112, 3);
    if (!image_write_png(path("x.png"), grey, 112, 112, &e)) err_report(&e), exit(99);
    free(grey);
    generate_to("blind2.jsonl", (EvalGenerate){.blind = true}, 3, all);
    char *again = file_text("blind2.jsonl");
    EXPECT_STR(again, blind);
    // what was written is scored as it stands
    begin();
    char data[128], other[128];
    snprintf(data, sizeof data, "%s", path("five.jsonl")), snprintf(other, sizeof other, "%s", path("blind.jsonl"));
    options.data = data, options.blind = other, options.reading = EVAL_ANY, err = (Err){0};
    if (!eval_score(&options, &json, &tables, &err)) err_report(&err), fail("not scored");
    EXPECT(json.p && strstr(json.p, "\"blind\":"));
    free(one), free(five), free(blind), free(system_turn), free(again);
}
TEST(the_system_turn_takes_the_place_of_the_records_own) {
    if (!folder_exists(checkpoint)) SKIP("no %s", checkpoint);
    static const char *const turns[4] = {
        "{\"role\":\"user\",\"content\":\"Which?\"}",
        "{\"role\":\"system\",\"content\":\"Be brief.\"},{\"role\":\"user\",\"content\":\"Which?\"}",
        "{\"role\":\"user\",\"content\":\"Where, and why?\"}",
        "{\"role\":\"user\",\"content\":\"Which?\"},{\"role\":\"assistant\",\"content\":\"the answer\"}"};
    char *text[4], *said[4], *own;
    for (int i = 0; i < 4; i++) {
        begin();
        text_addf(&records, "{\"id\":\"a\",\"task\":\"step\",\"answer\":\"up\",\"messages\":[%s]}\n", turns[i]);
        put_file("scenes.jsonl", &records);
        generate_to("turns.jsonl", (EvalGenerate){.system = "Say one word."}, 1, 1);
        text[i] = file_text("turns.jsonl"), said[i] = strstr(text[i], "\"response\"");
        if (i != 1) continue;
        generate_to("turns.jsonl", (EvalGenerate){.system = NULL}, 1, 1);
        own = file_text("turns.jsonl");
        EXPECT(strcmp(strstr(own, "\"response\""), said[1]));
        free(own);
    }
    EXPECT_STR(said[1], said[0]);
    EXPECT_STR(said[3], said[0]); // the answer of a record is no part of its prompt
    EXPECT(strcmp(said[2], said[0]));
    for (int i = 0; i < 4; i++) free(text[i]);
}
TEST(options_of_a_question_come_and_go) {
    if (!folder_exists(checkpoint)) SKIP("no %s", checkpoint);
    begin();
#define ASKED(id, content)                                                                                             \
    "{\"id\":\"" id "\",\"task\":\"step\",\"answer\":\"up\",\"choices\":[\"up\",\"down\"],\"messages\":[{\"role\":"    \
    "\"user\",\"content\":\"" content "\"}]}\n"
    text_addf(&records, ASKED("a", "Which?")), put_file("scenes.jsonl", &records);
    generate_to("open.jsonl", (EvalGenerate){.form = EVAL_OPEN}, 1, 1);
    generate_to("choice.jsonl", (EvalGenerate){.form = EVAL_CHOICE}, 1, 1);
    text_free(&records), text_addf(&records, ASKED("a", "Which?\\nA. up\\nB. down")),
        put_file("scenes.jsonl", &records);
    generate_to("open2.jsonl", (EvalGenerate){.form = EVAL_OPEN}, 1, 1);
    generate_to("choice2.jsonl", (EvalGenerate){.form = EVAL_CHOICE}, 1, 1);
    static const char *const files[4] = {"open.jsonl", "open2.jsonl", "choice.jsonl", "choice2.jsonl"};
    char *text[4], *said[4];
    for (int i = 0; i < 4; i++) text[i] = file_text(files[i]), said[i] = strstr(text[i], "\"response\"");
    EXPECT_STR(said[1], said[0]);
    EXPECT_STR(said[3], said[2]);
    EXPECT(strcmp(said[0], said[2]));
    EXPECT(strstr(text[0], "\"options_shown\":false,\"response\"") &&
           strstr(text[2], "\"options_shown\":true,\"response\""));
    for (int i = 0; i < 4; i++) free(text[i]);
}
