// test_answer.c - a model's answer: its form, its levels, what it says, its boxes in every spelling and nothing near them,
// and hostile text in linear time.
#include "test.h"

static Box boxes[64];
static int find(const char *text) { return answer_boxes(text, strlen(text), boxes, 64); }
static bool box_is(int i, double x1, double y1, double x2, double y2, const char *label) {
    const Box *b = &boxes[i];
    return b->x1 == x1 && b->y1 == y1 && b->x2 == x2 && b->y2 == y2 && !strcmp(b->label, label);
}

TEST(json_objects_in_a_fence) {
    EXPECT_INT(find("```json\n[\n\t{\"bbox_2d\": [12, 34, 56, 78], \"label\": \"grasper\"},\n"
                    "\t{\"label\": \"hook\", \"bbox_2d\": [1,2,3,4]}\n]\n```"),
               2);
    EXPECT(box_is(0, 12, 34, 56, 78, "grasper"));
    EXPECT(box_is(1, 1, 2, 3, 4, "hook"));
}

TEST(an_answer_that_breaks_off_gives_the_boxes_before_the_break) {
    EXPECT_INT(find("[{\"bbox_2d\": [1, 2, 3, 4], \"label\": \"a\"}, {\"bbox_2d\": [5, 6, 7"), 1);
    EXPECT(box_is(0, 1, 2, 3, 4, "a"));
    EXPECT_INT(find("{\"bbox_2d\": [1, 2, 3, 4], \"label\": \"cut o"), 1);
    EXPECT(box_is(0, 1, 2, 3, 4, ""));
    EXPECT_INT(find("{\"bbox_2d\": [1, 2, 3, 4"), 0);
}

TEST(pairs_with_the_name_that_touches_them) {
    EXPECT_INT(
        find("grasper(262,0),(473,172)\nLarge Needle Driver(1, 2), (3, 4); at (5,6),(7,8) and <box>(9,9),(10,10)"), 4);
    EXPECT(box_is(0, 262, 0, 473, 172, "grasper"));
    EXPECT(box_is(1, 1, 2, 3, 4, "Large Needle Driver"));
    EXPECT(box_is(2, 5, 6, 7, 8, ""));
    EXPECT(box_is(3, 9, 9, 10, 10, ""));
}

TEST(bare_lists_and_numbers_as_they_stand) {
    EXPECT_INT(find("at [ -1.5 ,\t2.25, 999999.999999 , 0 ] and [[1,2,3,4],[4,3,2,1]]"), 3);
    EXPECT(box_is(0, -1.5, 2.25, 999999.999999, 0, ""));
    EXPECT(box_is(2, 4, 3, 2, 1, "")); // corners are not swapped
    EXPECT(!box_is_valid(boxes[2], 100, 100));
    EXPECT(box_is_valid(boxes[1], 100, 100));
    EXPECT(box_is_valid((Box){99.5, 0, 200, 1, ""}, 100, 100) && !box_is_valid((Box){100, 0, 200, 1, ""}, 100, 100));
    EXPECT(!box_is_valid((Box){-5, 0, 0, 1, ""}, 100, 100) && !box_is_valid((Box){0, 100, 1, 101, ""}, 100, 100));
    EXPECT(!box_is_valid((Box){NAN, 0, 1, 1, ""}, 100, 100));
}

TEST(what_is_no_box) {
    static const char *const no[] = {
        "[1,2,3]",    "[1,2,3,4,5]", "[1,2,3,4",    "[1e2,2,3,4]", "[+1,2,3,4]", "[1234567,2,3,4]", "[1.1234567,2,3,4]",
        "[.5,2,3,4]", "[1.,2,3,4]",  "[nan,2,3,4]", "[--1,2,3,4]", "[1 2 3 4]",  "[1,2,3,4,]",      "(1,2)",
        "(1,2)(3,4)", "(1,2),(3,4",  "(1,2,3,4)",   "[1,2,3,\n4]", "[1,2,3,4a]", "{1,2,3,4}",       "",
        "[",          "(",           "[(1,2),(3",   "[0x1,2,3,4]"};
    for (size_t i = 0; i < sizeof no / sizeof *no; i++)
        if (find(no[i])) FAIL("a box in %s", no[i]);
}

TEST(labels_are_unescaped_cut_and_never_searched_for_boxes) {
    EXPECT_INT(find("{\"label\": \"a [1,2,3,4] \\\"b\\\" \\u00e9\\ud83d\\ude42\\n\", \"bbox_2d\": [5,6,7,8]}"), 1);
    EXPECT(box_is(0, 5, 6, 7, 8, "a [1,2,3,4] \"b\" \xC3\xA9\xF0\x9F\x99\x82 "));
    size_t bad;
    char text[400] = "{\"label\": \"";
    for (int i = 0; i < 40; i++) strncat(text, "\xC3\xA9", 3);
    strncat(text, "\", \"bbox_2d\": [1,2,3,4]}", 40);
    EXPECT_INT(find(text), 1);
    EXPECT_INT(strlen(boxes[0].label), 62); // 31 whole characters of two bytes
    EXPECT(utf8_valid(boxes[0].label, strlen(boxes[0].label), &bad));
    EXPECT_INT(find("{\"label\": \"x\"} [1,2,3,4]"), 1); // a label of another object
    EXPECT(box_is(0, 1, 2, 3, 4, ""));
}

TEST(at_most_max_and_the_last_one_keeps_its_label) {
    Box one;
    const char *text =
        "{\"bbox_2d\": [1,2,3,4], \"label\": \"first\"}, {\"bbox_2d\": [5,6,7,8], \"label\": \"second\"}";
    EXPECT_INT(answer_boxes(text, strlen(text), &one, 1), 1);
    EXPECT_STR(one.label, "first");
    EXPECT_INT(answer_boxes(text, strlen(text), &one, 0), 0);
}

// Any bytes: never out of bounds (the copy is exact, so a sanitizer sees it), the same twice, a whole label, and a box
// that is printed again is read again.
TEST(random_text_from_the_grammar) {
    static const char *const piece[] = {
        "[",       "]",           "(",         ")",        ",",         "1", "23.5",         "-4", " ",
        "\t",      "\n",          "{",         "}",        "\"label\"", ":", "\"",           "\\", "\\u00e9",
        "\\ud83d", "(1,2),(3,4)", "[1,2,3,4]", "\xC3\xA9", "\xFF",      "x", "\"bbox_2d\":", "."};
    int found = 0;
    for (uint32_t k = 0; k < 20000; k++) {
        char text[300];
        size_t n = 0;
        for (uint32_t i = 0; i < 24; i++) {
            const char *p = piece[(int)(random_uniform(1, RANDOM_TEST, k, i) * (sizeof piece / sizeof *piece))];
            memcpy(text + n, p, strlen(p));
            n += strlen(p);
        }
        char *exact = malloc(n);
        memcpy(exact, text, n);
        Box a[8], b[8];
        int count = answer_boxes(exact, n, a, 8);
        EXPECT_INT(answer_boxes(exact, n, b, 8), count);
        free(exact);
        for (int i = 0; i < count; i++) {
            EXPECT(!memcmp(&a[i].x1, &b[i].x1, 4 * sizeof(double)) && !strcmp(a[i].label, b[i].label));
            char again[120];
            Box r;
            snprintf(again, sizeof again, "[%.6f,%.6f,%.6f,%.6f]", a[i].x1, a[i].y1, a[i].x2, a[i].y2);
            EXPECT_INT(answer_boxes(again, strlen(again), &r, 1), 1);
            EXPECT(r.x1 == a[i].x1 && r.y1 == a[i].y1 && r.x2 == a[i].x2 && r.y2 == a[i].y2);
        }
        found += count;
    }
    EXPECT(found > 1000); // the generator does reach boxes
}

// Of this process, so that whatever else runs here does not count.
static double cpu_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// Hostile repetitions at the limit of an output: 4 times the text may take 4 times as long, not 16.
TEST(linear_time_on_repetitions) {
    static const char *const unit[] = {"[",
                                       "(",
                                       "[1,",
                                       "(1,2),(",
                                       "{\"label\":\"",
                                       "{\"label\":\"\\",
                                       "\"label\":",
                                       "[  ",
                                       "-",
                                       "1",
                                       "{",
                                       "\"label\":\"\\u00",
                                       "x "};
    for (size_t u = 0; u < sizeof unit / sizeof *unit; u++) {
        double took[2];
        for (int big = 0; big < 2; big++) {
            size_t n = big ? (size_t)LIMIT_OUTPUT_BYTES * 4 : (size_t)LIMIT_OUTPUT_BYTES, len = strlen(unit[u]);
            char *text = malloc(n);
            for (size_t i = 0; i < n; i++) text[i] = unit[u][i % len];
            double best = 1e9;
            for (int k = 0; k < 3; k++) {
                double start = cpu_seconds();
                answer_boxes(text, n, boxes, 64);
                best = fmin(best, cpu_seconds() - start);
            }
            took[big] = best;
            free(text);
        }
        if (took[1] > 10 * took[0] + 0.02) FAIL("%s: %.4f s, four times as long %.4f s", unit[u], took[0], took[1]);
    }
}

TEST(frames_map_and_round_trip) {
    Box b = {.x1 = 420, .y1 = 0, .x2 = 840, .y2 = 476, .label = "x"};
    Box o = box_to_original(b, 840, 476, 854, 480); // 854 x 480 is resized to 840 x 476
    EXPECT_NEAR(o.x1, 427, 1e-12);
    EXPECT_NEAR(o.x2, 854, 1e-12);
    EXPECT_NEAR(o.y2, 480, 1e-12);
    EXPECT_STR(o.label, "x");
    for (uint32_t k = 0; k < 10000; k++) {
        int64_t s[4];
        for (uint32_t i = 0; i < 4; i++) s[i] = 1 + (int64_t)(8191 * random_uniform(2, RANDOM_TEST, k, i));
        Box r = {.x1 = random_uniform(3, RANDOM_TEST, k, 0) * 8192, .y2 = random_uniform(3, RANDOM_TEST, k, 1) * 8192};
        Box back = box_to_original(box_to_original(r, s[0], s[1], s[2], s[3]), s[2], s[3], s[0], s[1]);
        EXPECT_NEAR(back.x1, r.x1, 1e-9);
        EXPECT_NEAR(back.y2, r.y2, 1e-9);
    }
}

// ------------------------------------------------------------------------------------------------------------ form
static Answer parsed;
static const char *status_of(const char *text) {
    answer_parse(&parsed, text, strlen(text));
    return answer_status_names[parsed.status];
}
static bool view_is(View v, const char *text) { return v.len == strlen(text) && !memcmp(v.p ? v.p : "", text, v.len); }

TEST(every_status) {
    static const char *const cases[][2] = {
        {"<think>a</think><answer>b</answer>", "OK"},
        {" \n<think> a </think>\r\n\t <answer>\nb</answer>\v\f ", "OK"},
        {"", "NO_THINK"},
        {"b", "NO_THINK"},
        {"<answer>b</answer>", "NO_THINK"},
        {"a</think><answer>b</answer>", "NO_THINK"}, // the opening tag was part of the prompt
        {"<think>a</think>", "NO_ANSWER"},
        {"<think>a</think>b</answer>", "NO_ANSWER"},
        {"<think>a", "UNCLOSED"}, // cut off while thinking, and while answering
        {"<think>a</think><answer>b", "UNCLOSED"},
        {"<think>a</think><answer>b</answer", "UNCLOSED"},
        {"<think>a Thethink>\n<answer>b</answer>", "UNCLOSED"},
        {"<think>a</think><answer>b</answer><answer>", "UNCLOSED"},
        {"<think>a<think>b</think><answer>c</answer>", "NESTED"},
        {"<think>a<answer>b</answer></think>", "NESTED"},
        {"<think>a</think><answer><think>b</think></answer>", "NESTED"},
        {"<think>a<answer></think>b</answer>", "NESTED"},
        {"<think>a</answer></think><answer>b</answer>", "NESTED"},
        {"<think>a</think><answer>b</answer><answer>b</answer>", "REPEATED"},
        {"<think>a</think><think>a</think><answer>b</answer>", "REPEATED"},
        {"<answer>b</answer><think>a</think>", "ORDER"},
        {"x<think>a</think><answer>b</answer>", "OUTSIDE"},
        {"<think>a</think>x<answer>b</answer>", "OUTSIDE"},
        {"<think>a</think><answer>b</answer>.", "OUTSIDE"},
        {"<think>a</think></think><answer>b</answer>", "OUTSIDE"},
        {"<think>a</think><answer>b</answer><|im_end|>", "OUTSIDE"},
        {"<think></think><answer>b</answer>", "EMPTY"},
        {"<think>a</think><answer> \n</answer>", "EMPTY"},
        {"<think>a</think><answer>\xFF</answer>", "BAD_UTF8"},
        {"<think>\xFF</think><answer>b</answer>", "OK"}, // the thought is not scored
        {"<Think>a</Think><answer>b</answer>", "NO_THINK"},
        {"<think >a</think><answer>b</answer>", "NO_THINK"},
        {"<think>a</think ><answer>b</answer>", "UNCLOSED"},
    };
    bool seen[ANSWER_STATUSES] = {0};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (strcmp(status_of(cases[i][0]), cases[i][1]))
            FAIL("%s: expected %s, got %s", cases[i][0], cases[i][1], answer_status_names[parsed.status]);
        seen[parsed.status] = true;
    }
    Text many = {0};
    text_addf(&many, "<think>a</think><answer>");
    for (int i = 0; i < 64; i++) text_addf(&many, "[1,2,3,4]");
    size_t cut = many.len;
    text_addf(&many, "</answer>");
    EXPECT_STR(status_of(many.p), "OK");
    many.len = cut;
    text_addf(&many, "(1,2),(3,4)</answer>");
    EXPECT_STR(status_of(many.p), "TOO_MANY");
    seen[ANSWER_TOO_MANY] = true;
    many.len = 0;
    text_addf(&many, "<think>");
    while (many.len < (size_t)LIMIT_OUTPUT_BYTES - 26) text_add(&many, "a", 1);
    text_addf(&many, "</think><answer>b</answer>");
    EXPECT_INT(many.len, LIMIT_OUTPUT_BYTES);
    EXPECT_STR(status_of(many.p), "OK");
    text_addf(&many, " ");
    EXPECT_STR(status_of(many.p), "TOO_LONG");
    EXPECT(!parsed.has_answer && !parsed.think.len);
    seen[ANSWER_TOO_LONG] = true;
    for (int k = 0; k < ANSWER_STATUSES; k++)
        if (!seen[k]) FAIL("no case of %s", answer_status_names[k]);
    text_free(&many);
}

TEST(the_lenient_answer_is_the_last_complete_pair) {
    static const char *const cases[][2] = {
        {"<answer>a</answer>", "a"},
        {"<answer>a</answer> then <answer>b</answer>", "b"},
        {"<answer>a</answer><answer>cut off", "a"},
        {"<answer>a<answer>b</answer>c</answer>", "b"},
        {"The The The the Thethink>\n<answer> grasp </answer>", "grasp"},
        {"<think>retracting<answer>x</answer>", "x"},
        {"<answer></answer>", ""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (!strcmp(status_of(cases[i][0]), "OK")) FAIL("%s is not OK", cases[i][0]);
        if (!parsed.has_answer || !view_is(parsed.answer, cases[i][1])) FAIL("%s", cases[i][0]);
    }
    status_of("<think>a</think> answer: b");
    EXPECT(!parsed.has_answer && !parsed.answer.len);
    EXPECT(parsed.think_closed && view_is(parsed.think, "a"));
    status_of("<think>Level 1: a\nLevel 2: b Thethink>\n<answer>c</answer>"); // what there is of the thought is shown
    EXPECT(!parsed.think_closed && view_is(parsed.level[1].text, "b Thethink>"));
}

TEST(levels_with_their_places_and_texts) {
    const char *text =
        "<think>This is a Level 3 task requiring context.\n\nLevel 1: grasper, liver\n\nLevel 2:retracts "
        "-> Level 3 : dissection</think>\n<answer>x</answer>";
    EXPECT_STR(status_of(text), "OK");
    EXPECT_INT(parsed.headers, 3);
    EXPECT(view_is(parsed.preamble, "This is a Level 3 task requiring context."));
    EXPECT(view_is(parsed.level[0].text, "grasper, liver"));
    EXPECT(view_is(parsed.level[1].text, "retracts ->"));
    EXPECT(view_is(parsed.level[2].text, "dissection"));
    EXPECT_INT(parsed.level[0].at, strstr(text, "Level 1") - text);
    EXPECT_INT(parsed.level[2].at, strstr(text, "Level 3 :") - text);
    static const struct {
        const char *think;
        int headers;
    } cases[] = {{"Level 1: a", 1},
                 {"Level 1: a Level 2: b", 2},
                 {"Level 1: a Level 2: b Level 3: c", 3},
                 {"This is a Level 1 task", 0},
                 {"Level 1 a", 0},
                 {"Level 2: b", 0},
                 {"Level 2: b Level 1: a", 0},
                 {"Level 1: a Level 3: c", 0},
                 {"Level 1: a Level 1: a", 0},
                 {"Level 1: Level 2: b", 0},
                 {"Level 1:", 0},
                 {"level 1: a", 0},
                 {"Level1: a", 0},
                 {"Level 12: a", 0},
                 {"SubLevel 1: a", 0},
                 {"Level 4: a", 0},
                 {"**Level 1:** a", 1}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char all[200];
        snprintf(all, sizeof all, "<think>%s</think><answer>x</answer>", cases[i].think);
        EXPECT_STR(status_of(all), "OK");
        if (parsed.headers != cases[i].headers) FAIL("%s: %d headers", cases[i].think, parsed.headers);
    }
    // without a colon: in front of a line only, and one with a colon is taken first
    status_of("<think>Level 1\nthe hook\nthen Level 2 things\n## Level 2\ncuts</think><answer>x</answer>");
    EXPECT(parsed.level[0].found && !parsed.level[0].colon && parsed.level[1].found && !parsed.level[2].found);
    EXPECT(view_is(parsed.level[1].text, "cuts"));
    status_of("<think>Level 1 tasks name tools.\nLevel 1: hook</think><answer>x</answer>");
    EXPECT(view_is(parsed.level[0].text, "hook") && parsed.headers == 1);
}

// ---------------------------------------------------------------------------------------------------------- labels
static bool same(const char *a, const char *b) {
    bool equal = label_equal(view_of(a), view_of(b));
    if (equal != label_equal(view_of(b), view_of(a))) FAIL("%s, %s: not symmetric", a, b);
    return equal;
}

TEST(labels_are_equal_after_normalisation) {
    EXPECT(same("Gallbladder Dissection", "gallbladder-dissection"));
    EXPECT(same("D. Gallbladder Dissection.", "GallbladderDissection"));
    EXPECT(same("D) gallbladder_dissection", " gallbladder  dissection\n"));
    EXPECT(same("CalotTriangleDissection", "carlot-triangle-dissection"));
    EXPECT(same("Hepatocystic triangle dissection", "Calot Triangle Dissection"));
    EXPECT(!same("liver", "live"));
    EXPECT(!same("liver", "liver bed"));
    EXPECT(!same("liver", "the liver"));
    EXPECT(!same("liver..", "liver"));
    EXPECT(!same("", ""));
    EXPECT(!same("", "liver"));
    EXPECT(!same("._- ", "-"));
    EXPECT(same("A.", "a")); // a letter alone is not a prefix
    Text t = {0};
    label_normalise(view_of(" B. Clipping-and_Cutting. "), &t);
    EXPECT_STR(t.p, "clippingandcutting");
    Text again = {0};
    label_normalise((View){t.p, t.len}, &again);
    EXPECT_STR(again.p, t.p);
    text_free(&t), text_free(&again);
    static const char *const words[] = {"Suction", "suction", "Cutting"}; // an action and a tool
    EXPECT_INT(label_lookup(view_of("suction"), words, 3), 1);
    EXPECT_INT(label_lookup(view_of("SUCTION"), words, 3), 0);
    EXPECT_INT(label_lookup(view_of("C. cutting"), words, 3), 2);
    EXPECT_INT(label_lookup(view_of(""), words, 3), -1);
    EXPECT_INT(label_lookup(view_of("cut"), words, 3), -1);
}

static Reading reading;
static bool right(enum Task task, const char *label, const char *answer) {
    TaskItem t = {.task = task, .id = "x", .answer = label};
    answer_read(&reading, view_of(answer), &t);
    return answer_matches(&reading, &t);
}

TEST(words_and_options) {
    static const char *const choices[] = {"Preparation", "Calot Triangle Dissection", "Clipping and Cutting"};
    TaskItem t = {
        .task = TASK_PHASE, .id = "x", .choices = choices, .n_choices = 3, .answer = "B. Calot Triangle Dissection"};
    static const char *const good[] = {
        "B", "b", "B.", "B)", "(B)", " B ", "B. Calot Triangle Dissection", "calot triangle dissection"};
    static const char *const bad[] = {"A", "D", "Z", "", "BB", "B C", "Preparation", "A, B", "B or C", "AB. Calot"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        answer_read(&reading, view_of(good[i]), &t);
        if (!answer_matches(&reading, &t)) FAIL("%s is right", good[i]);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        answer_read(&reading, view_of(bad[i]), &t);
        if (answer_matches(&reading, &t)) FAIL("%s is wrong", bad[i]);
    }
    EXPECT(!right(TASK_PHASE, "B. Calot Triangle Dissection", "B")); // no options, no letters
    EXPECT(!right(TASK_ACTION, "cutting", "cutting or suturing"));   // no substring counts
    EXPECT(!right(TASK_ACTION, "", ""));
    EXPECT(!right(TASK_ACTION, NULL, "cutting"));
    EXPECT(!right(TASK_ACTION, "cutting", "cutting\xFF"));
    EXPECT(!right(TASK_ACTION, "cut\xFF", "cut\xFF") && !reading.ok);
    t = (TaskItem){.task = TASK_PHASE, .id = "x", .answer = "GallbladderRetraction", .dataset = "cholec80"};
    answer_read(&reading, view_of("Gallbladder Extraction"), &t);
    EXPECT(answer_matches(&reading, &t));
    t.dataset = "autolaparo";
    EXPECT(!answer_matches(&reading, &t));
}

TEST(sets_of_items) {
    const char *label = "grasper retract gallbladder, hook dissect cystic_duct";
    EXPECT(right(TASK_TRIPLET, label, "Hook dissect cystic duct; grasper retract gallbladder."));
    EXPECT(!right(TASK_TRIPLET, label, "grasper retract gallbladder"));
    EXPECT(!right(TASK_TRIPLET, label, "hook dissect cystic duct, grasper retract gallbladder, grasper grasp liver"));
    EXPECT(
        right(TASK_TRIPLET, label, "hook dissect cystic duct\ngrasper retract gallbladder\nhook dissect cystic-duct"));
    EXPECT(!right(TASK_TRIPLET, label, "grasper retract gallbladder hook dissect cystic_duct"));
    EXPECT(!right(TASK_TRIPLET, label, ",;\n"));
    EXPECT(
        !right(TASK_TRIPLET, "grasper retract gallbladder", "grasper retract gallbladder grasper retract gallbladder"));
    EXPECT(right(TASK_TOOL, "grasper, hook and clipper", "Clipper, grasper, and hook"));
    EXPECT(right(TASK_TOOL, "grasper, hook and clipper", "hook and clipper and grasper and hook"));
    EXPECT(!right(TASK_TOOL, "grasper, hook and clipper", "grasper, hook"));
    EXPECT(!right(TASK_TOOL, "sandpaper", "s, paper"));
    static const char *const instruments[] = {"grasper", "hook"}, *const verbs[] = {"grasp", "retract", "null_verb"},
                             *const targets[] = {"cystic_duct", "gallbladder", "null_target"};
    TripletNames names = {instruments, verbs, targets, 2, 3, 3};
    Triplet x;
    EXPECT(answer_triplet(view_of("Grasper retract cystic duct."), &names, &x) && x.i == 0 && x.v == 1 && x.t == 0);
    EXPECT(answer_triplet(view_of("hook null_verb null_target"), &names, &x) && x.i == 1 && x.v == 2 && x.t == 2);
    EXPECT(!answer_triplet(view_of("hook coagulate gallbladder"), &names, &x) && x.i == 1 && x.v == -1 && x.t == -1);
    EXPECT(!answer_triplet(view_of("hook retract gallbladder wall"), &names, &x) && x.t == 1);
    EXPECT(!answer_triplet(view_of(""), &names, &x) && x.i == -1);
}

TEST(yes_no_and_numbers) {
    EXPECT(right(TASK_CVS1, "yes", "Yes, two structures are seen.") && right(TASK_CVS1, "no", "No."));
    EXPECT(!right(TASK_CVS1, "no", "unknown") && !right(TASK_CVS1, "no", "none") &&
           !right(TASK_CVS1, "yes", "yesterday"));
    EXPECT(!right(TASK_CVS1, "yes", "no") && !right(TASK_CVS1, "yes", "the answer is yes"));
    EXPECT(right(TASK_COUNT, "3", "three") && right(TASK_COUNT, "3", " 3. ") && right(TASK_COUNT, "twenty", "20"));
    EXPECT(right(TASK_COUNT, "0", "Zero") && right(TASK_COUNT, "3", "03"));
    static const char *const no[] = {"3.0", "3e0", "+3", "-3",          "33",     "3 tools",
                                     "0x3", "2",   "",   "three three", "0000003"};
    for (size_t i = 0; i < sizeof no / sizeof *no; i++)
        if (right(TASK_COUNT, "3", no[i])) FAIL("%s is not 3", no[i]);
}

static int boxes_of(enum Task task, const char *answer) { // -1: not ok
    TaskItem t = {.task = task, .id = "x"};
    answer_read(&reading, view_of(answer), &t);
    return reading.ok ? reading.n_boxes : -1;
}

TEST(boxes_of_an_answer_in_every_spelling) {
    static const char *const good[] = {"grasper(262,0),(473,172)",
                                       "grasper (262,0), (473,172)",
                                       "[262, 0, 473, 172]",
                                       "{\"bbox_2d\": [262, 0, 473, 172], \"label\": \"grasper\"}",
                                       "[{\"label\": \"grasper\", \"bbox_2d\": [262.0, 0, 473, 172]}]",
                                       "```json\n[{\"bbox_2d\": [262, 0, 473, 172], \"label\": \"grasper\"}]\n```",
                                       "[[262,0,473,172]]",
                                       "{\"grasper\": [262,0,473,172]}"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        if (boxes_of(TASK_TOOL_BOXES, good[i]) != 1 || reading.boxes[0].x1 != 262 || reading.boxes[0].y2 != 172)
            FAIL("%s", good[i]);
        if (strstr(good[i], "\"label\"") && strcmp(reading.boxes[0].label, "grasper")) FAIL("no name: %s", good[i]);
    }
    EXPECT_INT(boxes_of(TASK_TOOL_BOXES, "hook(1,2),(3,4), grasper(5,6),(7,8)"), 2);
    EXPECT_STR(reading.boxes[1].label, "grasper");
    EXPECT_INT(
        boxes_of(TASK_TOOL_BOXES, "{\"bbox_2d\":[1,2,3,4],\"label\":\"a\"},\n{\"bbox_2d\":[5,6,7,8],\"label\":\"b\"}"),
        2);
    EXPECT_STR(reading.boxes[1].label, "b");
    static const char *const none[] = {"No tools detected", "no tools detected.", "None", "[]", "No"};
    for (size_t i = 0; i < sizeof none / sizeof *none; i++)
        if (boxes_of(TASK_TOOL_BOXES, none[i]) != 0) FAIL("%s says that there is none", none[i]);
    static const char *const bad[] = {"",
                                      "grasper",
                                      "nonsense",
                                      "No 1 2 3",
                                      "(1,2),(3,4e1)",
                                      "[nan,0,1,1]",
                                      "[1,2,3]",
                                      "{}",
                                      "{\"bbox_2d\": [1,2,3,4]",
                                      "{\"bbox_2d\": [1e2,2,3,4]}",
                                      "{\"bbox_2d\": [1,2,3,4], \"bbox_2d\": [1,2,3,4]}",
                                      "{\"bbox_2d\": [1,2,3,1234567]}",
                                      "{\"bbox_2d\": [1,2,3,\"4\"]}",
                                      "{\"bbox_2d\": \"[1,2,3,4]\"}",
                                      "[[[[[[1,2,3,4]]]]]]",
                                      "{\"a\":{\"b\":{\"c\":{\"d\":[1,2,3,4]}}}}",
                                      "[[1,2,3,4]] [5,6,7,8]",
                                      "{\"bbox_2d\": [NaN, 0, 1, 1]}",
                                      "[\"grasper\"]"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (boxes_of(TASK_TOOL_BOXES, bad[i]) != -1) FAIL("%s: %d", bad[i], reading.n_boxes);
    // a string of JSON is no place for boxes
    EXPECT_INT(boxes_of(TASK_TOOL_BOXES, "{\"note\": \"(9,9),(99,99)\", \"bbox_2d\": [1,2,3,4]}"), 1);
    EXPECT(reading.boxes[0].x1 == 1);
}

TEST(label_and_box_together) {
    EXPECT_INT(boxes_of(TASK_VQLA, "{\"answer\": \"left-top\", \"bbox_2d\": [1, 2, 3, 4]}"), 1);
    EXPECT(reading.json && view_is(reading.word, "left-top") && reading.boxes[0].y2 == 4);
    EXPECT_INT(boxes_of(TASK_VQLA, "{\"answer\": \"caf\\u00e9\"}"), 0);
    EXPECT(reading.json && view_is(reading.word, "caf\xC3\xA9"));
    EXPECT_INT(boxes_of(TASK_VQLA, "{\"bbox_2d\": [1, 2, 3, 4]}"), 1);
    EXPECT(reading.json && !reading.word.len);
    EXPECT_INT(boxes_of(TASK_VQLA, "kidney (1,2),(3,4)"), 1);
    EXPECT(!reading.json && view_is(reading.word, "kidney"));
    EXPECT_INT(boxes_of(TASK_VQLA, "[1,2,3,4]"), 1);
    EXPECT(!reading.json && !reading.word.len);
    EXPECT_INT(boxes_of(TASK_VQLA, "kidney"), 0);
    char most[1100];
    memset(most, 'x', sizeof most), most[1024] = 0; // a byte too long is no label, not half of one
    EXPECT_INT(boxes_of(TASK_VQLA, most), -1);
    most[1023] = 0;
    EXPECT_INT(boxes_of(TASK_VQLA, most), 0);
    EXPECT_INT(reading.word.len, 1023);
    static const char *const bad[] = {"{}",
                                      "[]",
                                      "{\"answer\": 3}",
                                      "{\"answer\": \"a\", \"answer\": \"b\"}",
                                      "{\"answer\": \"\"}",
                                      "[1,2,3,4] [1,2,3,4]"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (boxes_of(TASK_VQLA, bad[i]) != -1) FAIL("%s", bad[i]);
    EXPECT_INT(boxes_of(TASK_VQLA, "{\"answer\": \"a\", \"bbox_2d\": [1, 2, 3]}"), 0);
    EXPECT(!reading.json);
    EXPECT_INT(boxes_of(TASK_VQLA, "{\"answer\": \"a\"}, {\"answer\": \"b\"}"), -1);
    EXPECT(!reading.json);
}

// ------------------------------------------------------------------------------------------------------- mutations
// A second reading of "OK", written from the definition and in no hurry.
static int count_of(const char *text, size_t len, const char *mark) {
    size_t n = strlen(mark);
    int count = 0;
    for (size_t i = 0; i + n <= len; i++) count += !memcmp(text + i, mark, n);
    return count;
}
static size_t place_of(const char *text, size_t len, const char *mark) {
    size_t n = strlen(mark), i = 0;
    while (i + n <= len && memcmp(text + i, mark, n)) i++;
    return i;
}
static bool blank(const char *p, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!memchr(" \t\n\v\f\r", p[i], 6)) return false;
    return true;
}
static bool is_ok(const char *t, size_t n) {
    static const char *const tags[4] = {"<think>", "</think>", "<answer>", "</answer>"};
    size_t at[4], bad;
    for (int i = 0; i < 4; i++) {
        if (count_of(t, n, tags[i]) != 1) return false;
        at[i] = place_of(t, n, tags[i]);
        if (i && at[i] < at[i - 1]) return false;
    }
    if (!blank(t, at[0]) || !blank(t + at[1] + 8, at[2] - at[1] - 8) || !blank(t + at[3] + 9, n - at[3] - 9))
        return false;
    const char *a = t + at[2] + 8;
    size_t len = at[3] - at[2] - 8;
    return !blank(t + at[0] + 7, at[1] - at[0] - 7) && !blank(a, len) && utf8_valid(a, len, &bad);
}
static bool inside(View v, View whole) { return !v.len || (v.p >= whole.p && v.p + v.len <= whole.p + whole.len); }

TEST(a_hundred_thousand_mutations) {
    static const char *const seed[] = {
        "<think>This is a Level 1 task.\n\nLevel 1: a grasper</think>\n<answer>grasper</answer>",
        "<think>Level 1: x\nLevel 2: y\nLevel 3: z</think><answer>{\"answer\": \"left-top\", \"bbox_2d\": [1, 2, 3, "
        "4]}</answer>",
        "<think>t</think> <answer>grasper(262,0),(473,172), hook(1,2),(3,4)</answer>",
        "<think>t</think><answer>[{\"bbox_2d\": [1, 2, 3, 4], \"label\": \"hook\"}, {\"bbox_2d\": [5, 6, 7, "
        "8]}]</answer>",
        "<think>t</think><answer>grasper retract gallbladder, hook dissect cystic_duct</answer>",
        "<answer>grasper</answer><think>t</think>"};
    static const char *const piece[] = {
        "<think>", "</think>", "<answer>", "</answer>", "Level 1:", "Level 2", "\n",        " ",   "[",  "]",
        "(",       ")",        "{",        "}",         "\"",       "\\",      ",",         "1",   "e5", "nan",
        "\xFF",    "\xC3",     "think>",   "No",        "B.",       "<think",  "[1,2,3,4]", "and", "-",  "."};
    int64_t ok = 0, seen[ANSWER_STATUSES] = {0}, hits = 0;
    for (uint32_t k = 0; k < 100000; k++) {
        char text[2000];
        double u[12];
        for (uint32_t i = 0; i < 12; i++) u[i] = random_uniform(11, RANDOM_TEST, k, i);
        const char *s = seed[(int)(u[0] * (sizeof seed / sizeof *seed))];
        size_t n = strlen(s);
        memcpy(text, s, n);
        int edits = (int)(u[1] * 4);
        for (int e = 0; e < edits; e++) {
            double a = u[2 + 3 * e], b = u[3 + 3 * e], c = u[4 + 3 * e];
            size_t at = (size_t)(a * (double)(n + 1)), cut = (size_t)(b * b * (double)(n - at + 1));
            if (c < 0.25) { // cut a piece out
                memmove(text + at, text + at + cut, n - at - cut);
                n -= cut;
            } else if (c < 0.45) { // say a piece twice
                memmove(text + at + cut, text + at, n - at);
                n += cut;
            } else if (c < 0.5) n = at; // broken off
            else {
                const char *p = piece[(int)((c - 0.5) * 2 * (sizeof piece / sizeof *piece))];
                size_t len = strlen(p);
                memmove(text + at + len, text + at, n - at);
                memcpy(text + at, p, len);
                n += len;
            }
        }
        char *exact = malloc(n + !n);
        memcpy(exact, text, n);
        Answer a, b;
        answer_parse(&a, exact, n), answer_parse(&b, exact, n);
        seen[a.status]++;
        if (!(a.status < ANSWER_STATUSES)) FAIL("no status");
        if (memcmp(&a.status, &b.status, sizeof a.status) || a.answer.len != b.answer.len || a.steps != b.steps)
            FAIL("not the same twice");
        bool good = a.status == ANSWER_OK || a.status == ANSWER_TOO_MANY;
        if (good != is_ok(exact, n)) FAIL("%.*s: %s", (int)n, exact, answer_status_names[a.status]);
        if (a.steps > 20 * (n + 1)) FAIL("%zu steps for %zu bytes", a.steps, n);
        EXPECT(inside(a.think, a.text) && inside(a.answer, a.text) && inside(a.preamble, a.think));
        for (int l = 0; l < 3; l++)
            if (a.level[l].found)
                EXPECT(inside(a.level[l].text, a.think) && !memcmp(a.text.p + a.level[l].at, "Level", 5));
        if (a.status == ANSWER_OK) { // written again it is read as the same
            Text t = {0};
            text_addf(&t, "<think>");
            text_add(&t, a.think.p, a.think.len);
            text_addf(&t, "</think>\n<answer>");
            text_add(&t, a.answer.p, a.answer.len);
            text_addf(&t, "</answer>");
            answer_parse(&b, t.p, t.len);
            EXPECT(b.status == ANSWER_OK && b.think.len == a.think.len && b.answer.len == a.answer.len &&
                   b.headers == a.headers);
            EXPECT(!memcmp(a.answer.p, b.answer.p, a.answer.len));
            text_free(&t), ok++;
        }
        static const enum Task tasks[] = {TASK_PHASE, TASK_TOOL,    TASK_TOOL_BOXES, TASK_CVS1,
                                          TASK_COUNT, TASK_TRIPLET, TASK_VQLA};
        for (size_t i = 0; i < sizeof tasks / sizeof *tasks; i++) {
            Box truth = {1, 2, 3, 4, "hook"};
            TaskItem t = {.task = tasks[i], .id = "x", .answer = "grasper", .boxes = &truth, .n_boxes = 1};
            answer_read(&reading, a.answer, &t);
            if (reading.n_boxes < 0 || reading.n_boxes > ANSWER_MAX_BOXES) FAIL("%d boxes", reading.n_boxes);
            bool match = answer_matches(&reading, &t);
            if (match && (!reading.ok || !a.answer.len)) FAIL("nothing matches something: %.*s", (int)n, exact);
            hits += match;
        }
        free(exact);
    }
    EXPECT(ok > 10000 && hits > 1000);
    for (int k = 0; k < ANSWER_STATUSES; k++) // the last three need what no mutation of these seeds has
        if (!seen[k] && k != ANSWER_TOO_LONG && k != ANSWER_TOO_MANY)
            FAIL("no mutation was %s", answer_status_names[k]);
}

TEST(parsing_is_linear_on_repetitions) {
    static const char *const unit[] = {"<",
                                       "<think>",
                                       "</think>",
                                       "<answer>",
                                       "</answer>",
                                       "<think></think>",
                                       "<answer></answer>",
                                       "Level ",
                                       "Level 1",
                                       "Level 1:",
                                       " ",
                                       "L",
                                       "<think",
                                       "\n",
                                       "Level        ",
                                       "_ "};
    static const char *const wrap[][2] = {
        {"", ""}, {"<think>", "</think><answer>x</answer>"}, {"<think>x</think><answer>", "</answer>"}};
    TaskItem t = {.task = TASK_TOOL, .id = "x", .answer = "hook, grasper, clipper"};
    for (size_t u = 0; u < sizeof unit / sizeof *unit; u++)
        for (size_t w = 0; w < 3; w++) {
            double took[2];
            for (int big = 0; big < 2; big++) {
                size_t n = (size_t)LIMIT_OUTPUT_BYTES / (big ? 1 : 4) - 100;
                Text text = {0};
                text_addf(&text, "%s", wrap[w][0]);
                while (text.len < n) text_addf(&text, "%s", unit[u]);
                text_addf(&text, "%s", wrap[w][1]);
                took[big] = 1e9;
                for (int k = 0; k < 3; k++) {
                    double start = cpu_seconds();
                    answer_parse(&parsed, text.p, text.len);
                    answer_read(&reading, parsed.has_answer ? parsed.answer : parsed.text, &t);
                    answer_matches(&reading, &t);
                    took[big] = fmin(took[big], cpu_seconds() - start);
                }
                if (parsed.steps > 20 * text.len) FAIL("%s: %zu steps for %zu bytes", unit[u], parsed.steps, text.len);
                text_free(&text);
            }
            if (took[1] > 10 * took[0] + 0.02) FAIL("%s: %.4f s, four times as long %.4f s", unit[u], took[0], took[1]);
        }
}
