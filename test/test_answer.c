// test_answer.c - boxes in a model's answer: every spelling, nothing near them, and hostile text in linear time.
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
                double start = clock_seconds();
                answer_boxes(text, n, boxes, 64);
                best = fmin(best, clock_seconds() - start);
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
