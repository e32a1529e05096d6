// test_table.c - the table of an experiment: numbers worked by hand, what an interval draws, pairs, arms that are not there.
#include "temporary.h"

static Text text, markdown, json;
static JsonDoc doc;
static Err err;
static TableOptions options;

// A file of answers: one line for each letter of `right` ('1' right, '0' wrong, 'x' not well-formed, '.' no answer to this
// record), ids from `first` on, `per` records of a patient.
static void answers(const char *name, const char *task, const char *label, const char *right, int first, int per,
                    bool append) {
    Text t = {0};
    for (int i = 0; right[i]; i++) {
        if (right[i] == '.') continue;
        text_addf(&t, "{\"id\":\"%s-%d\",\"task\":\"%s\",\"answer\":\"%s\",\"patient\":\"p%d\",\"response\":\"", task,
                  first + i, task, label, (first + i) / per);
        if (right[i] == 'x') text_addf(&t, "%s", label);
        else text_addf(&t, "<think>Level 1: x</think><answer>%s</answer>", right[i] == '1' ? label : "no such thing");
        text_addf(&t, "\",\"tokens\":%d}\n", right[i] == '1' ? 10 : 20);
    }
    FILE *f = fopen(tmp_path(name), append ? "ab" : "wb");
    if (!f || fwrite(t.p, 1, t.len, f) != t.len || fclose(f)) perror(name), exit(1);
    text_free(&t);
}

static bool table(const char *spec, int roots, int64_t resamples, uint64_t seed) {
    static const char *const all[] = {"s1", "s2", "s3", "s4"};
    static char at[4][600];
    static const char *list[4];
    for (int k = 0; k < 4; k++) snprintf(at[k], sizeof at[k], "%s", tmp_folder(all[k])), list[k] = at[k];
    put_file(tmp_path("spec.json"), spec, strlen(spec));
    text_free(&text), text_free(&markdown), text_free(&json), json_free(&doc);
    memset(&doc, 0, sizeof doc), memset(&err, 0, sizeof err);
    options = (TableOptions){tmp_path("spec.json"), list, roots, resamples, 0.95, seed};
    if (!table_make(&options, &text, &markdown, &json, &err)) return false;
    Err e = {0};
    if (!json_parse(&doc, json.p, json.len, "table.json", (JsonOptions){.refuse_duplicates = true}, &e))
        err_report(&e), exit(1);
    return true;
}
static const Json *item(const char *list, int k) {
    const Json *v = json_get(doc.root, list);
    for (v = v ? v->child : NULL; v && k; k--) v = v->next;
    return v;
}
static const Json *arm(int k, const char *what) {
    const Json *tasks = json_get(json_get(item("arms", k), "tasks"), what);
    return tasks ? tasks : json_get(item("arms", k), what);
}
static double number(const Json *cell, const char *name) {
    const Json *v = json_get(cell, name);
    return v && v->type == JSON_NUMBER ? v->number : (double)NAN;
}
static double by_seed(const Json *cell, int k) {
    const Json *v = json_get(cell, "by_seed");
    for (v = v ? v->child : NULL; v && k; k--) v = v->next;
    return v && v->type == JSON_NUMBER ? v->number : (double)NAN;
}
static bool holds(const Text *t, const char *part) { return t->p && strstr(t->p, part); }

static void two_seeds(void) { // phase: 3/4, 2/4 against 1/4, 2/4; step: 1/2, 2/2 against 2/2, 0/2
    tmp_folder("s1"), tmp_folder("s2");
    answers("s1/a.jsonl", "phase", "Preparation", "1101", 0, 2, false);
    answers("s1/a.jsonl", "step", "expose the field", "10", 0, 2, true);
    answers("s2/a.jsonl", "phase", "Preparation", "1100", 0, 2, false);
    answers("s2/a.jsonl", "step", "expose the field", "11", 0, 2, true);
    answers("s1/b.jsonl", "step", "expose the field", "11", 0, 2, false); // in another order
    answers("s1/b.jsonl", "phase", "Preparation", "100x", 0, 2, true);
    answers("s2/b.jsonl", "phase", "Preparation", "0011", 0, 2, false);
    answers("s2/b.jsonl", "step", "expose the field", "00", 0, 2, true);
}
static const char *const spec_ab =
    "{\"format\":1,\"title\":\"t\",\"tasks\":[\"phase\",\"step\"],\"arms\":["
    "{\"name\":\"A\",\"predictions\":\"a.jsonl\",\"section\":\"S\"},{\"name\":\"B\",\"predictions\":\"b.jsonl\"}],"
    "\"differences\":[{\"name\":\"A over B\",\"a\":\"A\",\"b\":\"B\"},{\"name\":\"B over A\",\"a\":\"B\",\"b\":\"A\"},"
    "{\"name\":\"phase\",\"a\":\"A\",\"b\":\"B\",\"tasks\":[\"phase\"]},{\"name\":\"length\",\"a\":\"A\",\"b\":\"B\","
    "\"metric\":\"tokens\"}]}";

TEST(numbers_worked_by_hand) {
    two_seeds();
    EXPECT(table(spec_ab, 2, 200, 0));
    EXPECT_NEAR(number(arm(0, "phase"), "value"), 0.625, 1e-12); // mean of .75 and .5
    EXPECT_NEAR(by_seed(arm(0, "phase"), 0), 0.75, 1e-12);
    EXPECT_NEAR(by_seed(arm(0, "phase"), 1), 0.5, 1e-12);
    EXPECT_NEAR(number(arm(0, "phase"), "sd"), 0.25 / sqrt(2), 1e-12);
    EXPECT_INT(number(arm(0, "phase"), "n"), 8);
    EXPECT_NEAR(number(arm(0, "mean"), "value"), (0.625 + 0.75) / 2, 1e-12);
    EXPECT_NEAR(by_seed(arm(0, "mean"), 0), 0.625, 1e-12);
    EXPECT_NEAR(by_seed(arm(0, "mean"), 1), 0.75, 1e-12);
    EXPECT_NEAR(number(arm(1, "phase"), "value"), (0.25 + 0.5) / 2, 1e-12);
    EXPECT_NEAR(number(arm(1, "format"), "value"), (5.0 / 6 + 1) / 2, 1e-12); // of all answers of a seed together
    EXPECT_NEAR(number(arm(0, "tokens"), "value"), (80.0 / 6 + 80.0 / 6) / 2, 1e-12);
    EXPECT_NEAR(number(arm(1, "tokens"), "value"), (90.0 / 6 + 100.0 / 6) / 2, 1e-12);
    EXPECT(holds(&text, "68.8") && holds(&markdown, "62.5 ["));
    EXPECT(!holds(&text, "IoU")); // no task with boxes
}

TEST(differences_are_paired_and_have_a_sign) {
    two_seeds();
    EXPECT(table(spec_ab, 2, 500, 0));
    const Json *ab = json_get(item("differences", 0), "mean"), *ba = json_get(item("differences", 1), "mean");
    // seed 1: phase +2/4, step -1/2, mean 0; seed 2: phase 0, step +1, mean +1/2
    EXPECT_NEAR(by_seed(ab, 0), 0, 1e-12);
    EXPECT_NEAR(by_seed(ab, 1), 0.5, 1e-12);
    EXPECT_NEAR(number(ab, "value"), 0.25, 1e-12);
    EXPECT_NEAR(number(ba, "value"), -0.25, 1e-12);
    EXPECT_NEAR(number(ba, "low"), -number(ab, "high"), 1e-12); // the same resamples, turned
    EXPECT_NEAR(number(json_get(item("differences", 2), "mean"), "value"), 0.25, 1e-12);
    EXPECT_NEAR(number(json_get(item("differences", 3), "mean"), "value"), -2.5, 1e-9);
    EXPECT_INT(number(ab, "n"), 12);
    answers("s1/b.jsonl", "phase", "Preparation", ".00.", 0, 2, false); // only two of them have a partner
    EXPECT(table(spec_ab, 1, 200, 0));
    EXPECT_INT(number(json_get(item("differences", 2), "mean"), "n"), 2);
    EXPECT_NEAR(number(json_get(item("differences", 2), "mean"), "value"), 0.5,
                1e-12); // records 1 and 2: right, wrong against wrong, wrong
    EXPECT(holds(&text, "+50.0"));
}

TEST(what_always_differs_excludes_0) {
    tmp_folder("s1");
    answers("s1/a.jsonl", "phase", "Preparation", "11111111111111111111", 0, 1, false);
    answers("s1/b.jsonl", "phase", "Preparation", "00000000001111111111", 0, 1, false);
    static const char *const spec =
        "{\"format\":1,\"tasks\":[\"phase\"],\"arms\":[{\"name\":\"A\",\"predictions\":\"a.jsonl\"},{\"name\":\"B\","
        "\"predictions\":\"b.jsonl\"}],"
        "\"differences\":[{\"name\":\"up\",\"a\":\"A\",\"b\":\"B\"},{\"name\":\"none\",\"a\":\"A\",\"b\":\"A\"}]}";
    EXPECT(table(spec, 1, 1000, 3));
    const Json *up = item("differences", 0), *none = item("differences", 1);
    EXPECT_INT(json_get(up, "excludes_0")->type, JSON_TRUE);
    EXPECT_INT(json_get(none, "excludes_0")->type, JSON_FALSE); // [0, 0] holds 0
    EXPECT(number(json_get(up, "mean"), "low") > 0.2 && number(json_get(up, "mean"), "high") < 0.8);
}

TEST(one_seed_draws_patients_as_metrics_does) {
    static const char *const spec =
        "{\"format\":1,\"tasks\":[\"phase\"],\"arms\":[{\"name\":\"A\",\"predictions\":\"a.jsonl\"}]}";
    tmp_folder("s1");
    answers("s1/a.jsonl", "phase", "Preparation", "110100101110010101111011", 0, 3, false);
    double right[8] = {2, 1, 2, 2, 1, 2, 3, 2}, n[8] = {3, 3, 3, 3, 3, 3, 3, 3}; // patients p0..p7 sort as numbered
    ClusterSums sums = {right, NULL, n};
    for (uint64_t seed = 5; seed < 8; seed++) {
        Interval i = bootstrap(cluster_ratio, &sums, 8, 77, 0.95, seed);
        EXPECT(table(spec, 1, 77, seed));
        EXPECT_NEAR(number(arm(0, "phase"), "value"), 15.0 / 24, 1e-12);
        EXPECT_NEAR(number(arm(0, "phase"), "low"), i.low, 1e-12);
        EXPECT_NEAR(number(arm(0, "phase"), "high"), i.high, 1e-12);
    }
    EXPECT(isnan(number(arm(0, "phase"), "sd")));
    EXPECT(holds(&text, "nothing is said about another training"));
}

// Seeds alone: every patient of a seed alike, so that a resample is the mean of the seeds drawn.
TEST(seeds_are_drawn) {
    two_seeds();
    answers("s1/a.jsonl", "phase", "Preparation", "11111111", 0, 2, false);
    answers("s2/a.jsonl", "phase", "Preparation", "00000000", 0, 2, false);
    EXPECT(table("{\"format\":1,\"tasks\":[\"phase\"],\"arms\":[{\"name\":\"A\",\"predictions\":\"a.jsonl\"}]}", 2,
                 1000, 1));
    EXPECT_NEAR(number(arm(0, "phase"), "value"), 0.5, 1e-12);
    EXPECT_NEAR(number(arm(0, "phase"), "low"), 0, 1e-12); // a quarter of the resamples has one seed twice
    EXPECT_NEAR(number(arm(0, "phase"), "high"), 1, 1e-12);
}

// Patients alone: four seeds of the same answers. On the same patients one draw serves all, and four seeds are worth one;
// on four sets of patients they are worth four times as many.
TEST(patients_are_drawn_once_for_all_seeds_that_share_them) {
    static const char *const spec =
        "{\"format\":1,\"tasks\":[\"phase\"],\"arms\":[{\"name\":\"A\",\"predictions\":\"a.jsonl\"}]}";
    char name[40];
    double width[3];
    for (int apart = 0; apart < 2; apart++) {
        for (int k = 0; k < 4; k++) {
            snprintf(name, sizeof name, "s%d", k + 1), tmp_folder(name);
            snprintf(name, sizeof name, "s%d/a.jsonl", k + 1);
            answers(name, "phase", "Preparation", "1010101010101010101010101010101010101010", apart ? 1000 * k : 0, 1,
                    false);
        }
        if (!apart) {
            EXPECT(table(spec, 1, 4000, 2));
            width[2] = number(arm(0, "phase"), "high") - number(arm(0, "phase"), "low");
        }
        EXPECT(table(spec, 4, 4000, 2));
        width[apart] = number(arm(0, "phase"), "high") - number(arm(0, "phase"), "low");
        EXPECT_INT(json_get(doc.root, "patients_shared")->type, apart ? JSON_FALSE : JSON_TRUE);
    }
    EXPECT_NEAR(width[2], 2 * 1.96 * 0.5 / sqrt(40), 0.03); // one seed: 40 coins
    EXPECT_NEAR(width[0], width[2], 0.03);
    EXPECT_NEAR(width[1], width[2] / 2, 0.03);
}

TEST(the_same_bytes_again_and_in_any_order_of_lines) {
    two_seeds();
    EXPECT(table(spec_ab, 2, 300, 0));
    Text first = {0};
    text_add(&first, text.p, text.len), text_add(&first, markdown.p, markdown.len), text_add(&first, json.p, json.len);
    two_seeds();
    answers("s1/a.jsonl", "step", "expose the field", "10", 0, 2, false); // the other way round
    answers("s1/a.jsonl", "phase", "Preparation", "1101", 0, 2, true);
    EXPECT(table(spec_ab, 2, 300, 0));
    Text second = {0};
    text_add(&second, text.p, text.len), text_add(&second, markdown.p, markdown.len),
        text_add(&second, json.p, json.len);
    EXPECT(first.len == second.len && !memcmp(first.p, second.p, first.len));
    text_free(&first), text_free(&second);
}

TEST(an_arm_that_was_not_run_says_so) {
    two_seeds();
    remove(tmp_path("s2/b.jsonl"));
    int64_t before = warn_count("E-TA-03");
    EXPECT(table("{\"format\":1,\"tasks\":[\"phase\",\"step\"],\"arms\":[{\"name\":\"A\",\"predictions\":\"a.jsonl\"},"
                 "{\"name\":\"B\",\"predictions\":\"b.jsonl\"},{\"name\":\"C\",\"predictions\":\"c.jsonl\"}],"
                 "\"differences\":[{\"name\":\"A over B\",\"a\":\"A\",\"b\":\"B\"},{\"name\":\"C over "
                 "B\",\"a\":\"C\",\"b\":\"B\"}]}",
                 2, 100, 0));
    EXPECT_INT(warn_count("E-TA-03") - before, 3);
    EXPECT(holds(&text, "not run") && holds(&markdown, "not run"));
    EXPECT_INT(number(item("arms", 0), "seeds"), 2);
    EXPECT_INT(number(item("arms", 1), "seeds"), 1);
    EXPECT_INT(number(item("arms", 2), "seeds"), 0);
    EXPECT(holds(&text, "1/2") && holds(&text, "0/2"));
    EXPECT_NEAR(number(arm(1, "phase"), "value"), 0.25, 1e-12); // of the seed that is there
    EXPECT(isnan(number(arm(2, "mean"), "value")));
    EXPECT_NEAR(number(json_get(item("differences", 0), "mean"), "value"), 0, 1e-12);
    EXPECT(isnan(number(json_get(item("differences", 1), "mean"), "value")));
}

TEST(boxes_by_hand) {
    static const char
        lines[] = // the picture was shown at half its size; IoU 1, .5, 0 (no box); label and box, label alone
        "{\"id\":\"1\",\"task\":\"tool_box\",\"slot\":\"hook\",\"size\":[100,100],\"resized\":[50,50],\"boxes\":[{"
        "\"label\":\"hook\",\"box\":[0,0,20,20]}],"
        "\"response\":\"<think>x</think><answer>{\\\"bbox_2d\\\": [0, 0, 10, 10]}</answer>\"}\n"
        "{\"id\":\"2\",\"task\":\"tool_box\",\"slot\":\"hook\",\"size\":[100,100],\"resized\":[50,50],\"boxes\":[{"
        "\"label\":\"hook\",\"box\":[0,0,20,20]}],"
        "\"response\":\"<think>x</think><answer>{\\\"bbox_2d\\\": [0, 0, 5, 10]}</answer>\"}\n"
        "{\"id\":\"3\",\"task\":\"tool_box\",\"slot\":\"hook\",\"size\":[100,100],\"resized\":[50,50],\"boxes\":[{"
        "\"label\":\"hook\",\"box\":[0,0,20,20]}],"
        "\"response\":\"<think>x</think><answer>nowhere</answer>\"}\n"
        "{\"id\":\"4\",\"task\":\"vqla\",\"answer\":\"Grasping\",\"size\":[100,100],\"resized\":[50,50],\"boxes\":[{"
        "\"box\":[0,0,20,20]}],"
        "\"response\":\"<think>x</think><answer>{\\\"answer\\\": \\\"Grasping\\\", \\\"bbox_2d\\\": [0, 0, 10, "
        "9]}</answer>\"}\n"
        "{\"id\":\"5\",\"task\":\"vqla\",\"answer\":\"Grasping\",\"size\":[100,100],\"resized\":[50,50],\"boxes\":[{"
        "\"box\":[0,0,20,20]}],"
        "\"response\":\"<think>x</think><answer>{\\\"answer\\\": \\\"Grasping\\\", \\\"bbox_2d\\\": [0, 0, 2, "
        "10]}</answer>\"}\n"
        "{\"id\":\"6\",\"task\":\"phase\",\"response\":\"<think>x</think><answer>Preparation</answer>\"}\n";
    tmp_folder("s1");
    put_file(tmp_path("s1/a.jsonl"), lines, sizeof lines - 1);
    EXPECT(table("{\"format\":1,\"tasks\":[\"tool_box\",\"vqla\",\"phase\"],\"arms\":[{\"name\":\"A\",\"predictions\":"
                 "\"a.jsonl\"}]}",
                 1, 100, 0));
    EXPECT_NEAR(number(arm(0, "tool_box"), "value"), 2.0 / 3, 1e-12); // IoU .5 is enough
    EXPECT_NEAR(number(arm(0, "vqla"), "value"), 0.5, 1e-12);         // label and box
    EXPECT_NEAR(number(arm(0, "label"), "value"), 1, 1e-12);          // of vqla alone
    EXPECT_NEAR(number(arm(0, "iou"), "value"), (1.5 / 3 + (0.9 + 0.2) / 2) / 2, 1e-12);
    EXPECT_NEAR(number(arm(0, "box"), "value"), (2.0 / 3 + 0.5) / 2, 1e-12);
    EXPECT(isnan(number(arm(0, "phase"), "value")));                          // its record has no label
    EXPECT_NEAR(number(arm(0, "mean"), "value"), (2.0 / 3 + 0.5) / 2, 1e-12); // of the tasks that there are
    EXPECT(holds(&text, "IoU"));
}

TEST(a_column_may_be_a_task_of_one_data_set_and_an_arm_several_files) {
    static const char one[] =
        "{\"id\":\"1\",\"task\":\"phase\",\"dataset\":\"x\",\"answer\":\"Preparation\",\"response\":\"Preparation\"}\n"
        "{\"id\":\"2\",\"task\":\"phase\",\"dataset\":\"y\",\"answer\":\"Preparation\",\"response\":\"no\"}\n";
    static const char two[] =
        "{\"id\":\"3\",\"task\":\"phase\",\"dataset\":\"y\",\"answer\":\"Preparation\",\"response\":\"Preparation\"}\n"
        "{\"id\":\"4\",\"task\":\"phase\",\"dataset\":\"z\",\"answer\":\"Preparation\",\"response\":\"no\"}\n";
    static const char *const spec =
        "{\"format\":1,\"tasks\":[\"phase:x\",\"phase:y\"],\"train\":[\"one.jsonl\",\"two.jsonl\"],\"arms\":[{\"name\":"
        "\"A\",\"answers\":\"any\","
        "\"predictions\":[\"one.jsonl\",\"two.jsonl\"]},{\"name\":\"constant\",\"constant\":true}],"
        "\"differences\":[{\"name\":\"d\",\"a\":\"A\",\"b\":\"constant\",\"tasks\":[\"phase:y\"]}]}";
    tmp_folder("s1");
    put_file(tmp_path("s1/one.jsonl"), one, sizeof one - 1), put_file(tmp_path("s1/two.jsonl"), two, sizeof two - 1);
    EXPECT(table(spec, 1, 100, 0));
    EXPECT_NEAR(number(arm(0, "phase:x"), "value"), 1, 1e-12);
    EXPECT_NEAR(number(arm(0, "phase:y"), "value"), 0.5, 1e-12);
    EXPECT_INT(number(arm(0, "mean"), "n"), 3); // z is no column
    EXPECT_NEAR(number(arm(1, "mean"), "value"), 1, 1e-12);
    EXPECT_NEAR(number(json_get(item("differences", 0), "mean"), "value"), -0.5, 1e-12);
    remove(tmp_path("s1/two.jsonl")); // half of an arm is no arm
    EXPECT(table(spec, 1, 100, 0));
    EXPECT_INT(number(item("arms", 0), "seeds"), 0);
    EXPECT(isnan(number(arm(0, "phase:x"), "value")));
}

TEST(plain_answers_count_where_the_arm_says_so) {
    tmp_folder("s1");
    answers("s1/a.jsonl", "phase", "Preparation", "1x0x", 0, 1, false);
    EXPECT(table("{\"format\":1,\"tasks\":[\"phase\"],\"arms\":[{\"name\":\"tags\",\"predictions\":\"a.jsonl\"},"
                 "{\"name\":\"any\",\"predictions\":\"a.jsonl\",\"answers\":\"any\"}]}",
                 1, 100, 0));
    EXPECT_NEAR(number(arm(0, "phase"), "value"), 0.25, 1e-12);
    EXPECT_NEAR(number(arm(1, "phase"), "value"), 0.75, 1e-12);
    EXPECT_NEAR(number(arm(1, "format"), "value"), 0.5, 1e-12); // it does not become well-formed by that
}

TEST(a_constant_says_what_is_most_frequent_in_training) {
    static const char train[] =
        "{\"task\":\"phase\",\"answer\":\"Preparation\"}\n{\"task\":\"phase\",\"answer\":\"GallbladderRetraction\"}\n"
        "{\"task\":\"phase\",\"answer\":\"GallbladderRetraction\"}\n"
        "{\"task\":\"triplet\",\"answer\":\"grasper retract liver\"}\n{\"task\":\"triplet\",\"answer\":\"grasper "
        "retract liver\"}\n"
        "{\"task\":\"triplet\",\"answer\":\"hook dissect gallbladder, grasper retract gallbladder\"}\n"
        "{\"task\":\"triplet\",\"answer\":\"grasper retract gallbladder, hook dissect gallbladder\"}\n"
        "{\"task\":\"triplet\",\"answer\":\"grasper retract gallbladder, hook dissect gallbladder\"}\n"
        "{\"task\":\"tool_box\",\"slot\":\"hook\",\"size\":[100,50],\"boxes\":[{\"label\":\"hook\",\"box\":[0,0,40,20]}"
        "]}\n"
        "{\"task\":\"tool_box\",\"slot\":\"hook\",\"size\":[200,100],\"boxes\":[{\"label\":\"hook\",\"box\":[0,0,40,40]"
        "}]}\n";
    static const char asked[] =
        "{\"id\":\"1\",\"task\":\"phase\",\"answer\":\"Preparation\",\"response\":\"x\"}\n"
        "{\"id\":\"2\",\"task\":\"phase\",\"answer\":\"GallbladderRetraction\",\"response\":\"x\"}\n"
        "{\"id\":\"3\",\"task\":\"triplet\",\"answer\":\"hook dissect gallbladder, grasper retract "
        "gallbladder\",\"response\":\"x\"}\n"
        "{\"id\":\"4\",\"task\":\"tool_box\",\"slot\":\"hook\",\"size\":[100,100],\"resized\":[28,28],"
        "\"boxes\":[{\"label\":\"hook\",\"box\":[0,0,30,40]}],\"response\":\"x\"}\n";
    tmp_folder("s1");
    put_file(tmp_path("s1/train.jsonl"), train, sizeof train - 1);
    put_file(tmp_path("s1/a.jsonl"), asked, sizeof asked - 1);
    EXPECT(table("{\"format\":1,\"tasks\":[\"phase\",\"triplet\",\"tool_box\"],\"train\":\"train.jsonl\",\"arms\":[{"
                 "\"name\":\"constant\",\"constant\":true},"
                 "{\"name\":\"A\",\"predictions\":\"a.jsonl\"}]}",
                 1, 100, 0));
    EXPECT_NEAR(number(arm(0, "phase"), "value"), 0.5, 1e-12);
    EXPECT_NEAR(number(arm(0, "triplet"), "value"), 1, 1e-12); // three of five, in two orders
    EXPECT_NEAR(number(arm(0, "iou"), "value"), 1,
                1e-9); // the mean of (0, 0, .4, .4) and (0, 0, .2, .4), of this picture
    EXPECT(isnan(number(arm(0, "format"), "value")));
    EXPECT_NEAR(number(arm(1, "mean"), "value"), 0, 1e-12);
}

TEST(slips_of_a_spec_are_refused) {
    static const struct {
        const char *spec, *code, *part;
    } slips[] = {
        {"{\"format\":1,\"tasks\":[\"phase\"],\"arms\":[{\"name\":\"A\",\"predictons\":\"a\"}]}", "E-CF-02",
         "predictons"},
        {"{\"format\":1,\"tasks\":[\"phase\"],\"arms\":[{\"name\":\"A\"}]}", "E-CF-02", "predictions"},
        {"{\"format\":1,\"tasks\":[\"fase\"],\"arms\":[{\"name\":\"A\",\"predictions\":\"a\"}]}", "E-CF-02", "tasks"},
        {"{\"format\":1,\"tasks\":[\"phase\"],\"arms\":[]}", "E-CF-02", "arms"},
        {"{\"format\":2,\"tasks\":[\"phase\"],\"arms\":[{\"name\":\"A\",\"predictions\":\"a\"}]}", "E-CF-02", "format"},
        {"{\"format\":1,\"tasks\":[\"phase\"],\"arms\":[{\"name\":\"A\",\"predictions\":\"a\"},{\"name\":\"A\","
         "\"predictions\":\"b\"}]}",
         "E-CF-02", "name"},
        {"{\"format\":1,\"tasks\":[\"phase\"],\"arms\":[{\"name\":\"A\",\"predictions\":\"a\"}],\"differences\":[{"
         "\"name\":\"d\",\"a\":\"A\",\"b\":\"B\"}]}",
         "E-CF-02", "b"},
        {"{\"format\":1,\"tasks\":[\"phase\"],\"arms\":[{\"name\":\"A\",\"predictions\":\"a\"}],\"differences\":[{"
         "\"name\":\"d\",\"a\":\"A\",\"b\":\"A\",\"tasks\":[\"step\"]}]}",
         "E-CF-02", "tasks"},
        {"{\"format\":1,\"tasks\":[\"phase\"],\"arms\":[{\"name\":\"A\",\"predictions\":\"a\"}],\"differences\":[{"
         "\"name\":\"d\",\"a\":\"A\",\"b\":\"A\",\"metric\":\"f1\"}]}",
         "E-CF-02", "metric"},
        {"{\"format\":1,\"tasks\":[\"phase\"],\"arms\":[{\"name\":\"A\",\"constant\":true},{\"name\":\"B\","
         "\"predictions\":\"twice.jsonl\"}]}",
         "E-TA-02", "phase-0"},
    };
    tmp_folder("s1");
    answers("s1/twice.jsonl", "phase", "Preparation", "1", 0, 1, false);
    answers("s1/twice.jsonl", "phase", "Preparation", "0", 0, 1, true);
    for (size_t i = 0; i < sizeof slips / sizeof *slips; i++) {
        if (table(slips[i].spec, 1, 10, 0)) FAIL("accepted: %s", slips[i].spec);
        EXPECT_STR(err.code, slips[i].code);
        EXPECT_STR(err.field, slips[i].part);
    }
}

TEST(names_of_strangers_stay_text) {
    tmp_folder("s1");
    answers("s1/a.jsonl", "phase", "Preparation", "10", 0, 1, false);
    EXPECT(table("{\"format\":1,\"title\":\"<b>|x\",\"tasks\":[\"phase\"],\"arms\":[{\"name\":\"a|b "
                 "<i>\\u001b[31m\",\"predictions\":\"a.jsonl\",\"note\":\"*n*\"}]}",
                 1, 10, 0));
    EXPECT(holds(&markdown, "a\\|b \\<i\\>") && holds(&markdown, "\\*n\\*") && holds(&markdown, "\\<b\\>\\|x"));
    EXPECT(!holds(&markdown, "\x1b") && !holds(&text, "\x1b"));
}
