// test_json.c - JSON in and out, typed fields, text, UTF-8: what is accepted, what is refused, and in which words.
#include "test.h"
#include <dirent.h>

// "ok", or the whole message of a refusal. The tree, when wanted, is printed into *printed.
static const char *verdict_of(const char *text, size_t len, JsonOptions options, Text *printed) {
    static char line[4096];
    JsonDoc doc;
    Err e = {0};
    char *copy = malloc(len ? len : 1); // exactly as long as the text, so that a sanitizer sees a read behind it
    if (len) memcpy(copy, text, len);
    bool ok = json_parse(&doc, copy, len, "x.json", options, &e);
    free(copy);
    EXPECT(ok == !e.code[0]);
    if (!ok) {
        EXPECT(doc.root == NULL && doc.blocks == NULL);
        return err_line(&e, "error", line, sizeof line);
    }
    if (printed) json_print(printed, doc.root);
    json_free(&doc);
    return "ok";
}
static const char *verdict(const char *text) { return verdict_of(text, strlen(text), (JsonOptions){0}, NULL); }

static bool same_tree(const Json *a, const Json *b) {
    for (;; a = a->next, b = b->next) {
        if (!a || !b) return a == b;
        if (a->type != b->type || a->integer != b->integer || a->count != b->count) return false;
        if (!a->key != !b->key || (a->key && (a->key_len != b->key_len || memcmp(a->key, b->key, a->key_len))))
            return false;
        if (a->type == JSON_NUMBER && (memcmp(&a->number, &b->number, sizeof(double)) || a->i != b->i)) return false;
        if (a->type == JSON_STRING && (a->len != b->len || memcmp(a->str, b->str, a->len))) return false;
        if (!same_tree(a->child, b->child)) return false; // at most 64 deep
    }
}

// print(parse(x)) parses to the same tree, and prints to the same bytes.
static void expect_round_trip(const char *text, size_t len, JsonOptions options) {
    JsonDoc first, second;
    Err e = {0};
    if (!json_parse(&first, text, len, "x.json", options, &e)) return;
    Text once = {0}, twice = {0};
    json_print(&once, first.root);
    if (!json_parse(&second, once.p, once.len, "printed", options, &e)) {
        FAIL("%s does not parse: %s", once.p, e.code);
    } else {
        EXPECT(same_tree(first.root, second.root));
        json_print(&twice, second.root);
        EXPECT(once.len == twice.len && !memcmp(once.p, twice.p, once.len));
        json_free(&second);
    }
    text_free(&once), text_free(&twice);
    json_free(&first);
}

TEST(the_third_party_suite_is_judged_as_it_says) {
    // Our fixed answers for the files where the standard leaves the choice.
    static const char *const accepted[] = {
        "i_number_double_huge_neg_exp.json",   "i_number_real_underflow.json",
        "i_number_too_big_neg_int.json",       "i_number_too_big_pos_int.json",
        "i_number_very_big_negative_int.json", "i_structure_UTF-8_BOM_empty_object.json"};
    char dir[700], path[1100];
    snprintf(dir, sizeof dir, "%s/testdata/jsontestsuite/test_parsing", test_root());
    DIR *d = opendir(dir);
    if (!d) SKIP("no JSONTestSuite beneath %.200s", test_root());
    int files = 0;
    for (struct dirent *f; (f = readdir(d));) {
        const char *name = f->d_name;
        if (name[0] != 'y' && name[0] != 'n' && name[0] != 'i') continue;
        snprintf(path, sizeof path, "%s/%s", dir, name);
        Err e = {0};
        char *text;
        size_t len;
        if (!file_read(path, LIMIT_CONFIG_BYTES, "E-JS-01", &text, &len, &e)) {
            FAIL("%s: %s", name, e.code);
            continue;
        }
        bool want = name[0] == 'y', got = !strcmp(verdict_of(text, len, (JsonOptions){0}, NULL), "ok");
        for (size_t i = 0; i < sizeof accepted / sizeof *accepted; i++) want |= !strcmp(name, accepted[i]);
        if (got != want) FAIL("%s is %s", name, got ? "accepted" : "refused");
        expect_round_trip(text, len, (JsonOptions){0});
        free(text), files++;
    }
    closedir(d);
    EXPECT(files > 0);
}

TEST(every_refusal_says_where_what_and_what_to_do) {
#define E "surgr1: error "
    static const struct {
        const char *text, *line;
    } cases[] = {
        // E-JS-03
        {"{\"a\":\n\"\xe9t\xe9\"}", E "E-JS-03: x.json:2:2: expected UTF-8 text; found byte 0xE9 (looks like Latin-1); "
                                      "do: convert the file to UTF-8"},
        {"\"\xc0\xaf\"", E
         "E-JS-03: x.json:1:2: expected UTF-8 text; found byte 0xC0 (an overlong form); do: convert the file to UTF-8"},
        {"\"\xed\xa0\x80\"",
         E "E-JS-03: x.json:1:2: expected UTF-8 text; found byte 0xED (a surrogate); do: convert the file to UTF-8"},
        {"\"\xf4\x90\x80\x80\"", E
         "E-JS-03: x.json:1:2: expected UTF-8 text; found byte 0xF4 (beyond U+10FFFF); do: convert the file to UTF-8"},
        {"\"\x80\"", E "E-JS-03: x.json:1:2: expected UTF-8 text; found byte 0x80 (a continuation byte alone); do: "
                       "convert the file to "
                       "UTF-8"},
        {"\"\xf0\x9f\x98", E "E-JS-03: x.json:1:2: expected UTF-8 text; found byte 0xF0 (the text ends inside a "
                             "character); do: convert the "
                             "file to UTF-8"},
        // E-JS-04
        {"{\"a\": 1,\n  }",
         E "E-JS-04: x.json:2:3: expected a string key after \",\"; found \"}\"; do: remove the comma before it"},
        {"[1,]", E "E-JS-04: x.json:1:4: expected a value after \",\"; found \"]\"; do: remove the comma before it"},
        {"[", E "E-JS-04: x.json:1:2: expected a value or \"]\" after \"[\"; found the end of the text; do: complete "
                "the text, "
                "it stops too early"},
        {"", E "E-JS-04: x.json:1:1: expected a JSON value; found the end of the text; do: complete the text, it stops "
               "too early"},
        {"[NaN]", E "E-JS-04: x.json:1:2: expected a value or \"]\" after \"[\"; found \"NaN\"; do: write a finite "
                    "number or null"},
        {"[-Infinity]",
         E "E-JS-04: x.json:1:3: expected a digit after \"-\"; found \"Infinity\"; do: write a finite number or null"},
        {"{'a':1}",
         E "E-JS-04: x.json:1:2: expected a string key or \"}\" after \"{\"; found \"'\"; do: use double quotes"},
        {"{a:1}", E "E-JS-04: x.json:1:2: expected a string key or \"}\" after \"{\"; found \"a\"; do: write keys in "
                    "double quotes"},
        {"{\"a\" 1}",
         E "E-JS-04: x.json:1:6: expected \":\" after the key; found \"1\"; do: put a colon between key and value"},
        {"[1 2]", E "E-JS-04: x.json:1:4: expected \",\" or \"]\"; found \"2\"; do: add the missing comma"},
        {"[1}", E "E-JS-04: x.json:1:3: expected \",\" or \"]\"; found \"}\"; do: close with the bracket that fits"},
        {"{} x", E "E-JS-04: x.json:1:4: expected nothing after the value; found \"x\"; do: remove what follows"},
        {"[1] // x",
         E "E-JS-04: x.json:1:5: expected nothing after the value; found \"/\"; do: remove the comment, JSON has none"},
        {"[012]",
         E "E-JS-04: x.json:1:2: expected a number without leading zeros; found \"012\"; do: remove the zeros"},
        {"[1.]", E "E-JS-04: x.json:1:4: expected a digit after \".\"; found \"]\"; do: complete the number"},
        {"[1e+]", E "E-JS-04: x.json:1:5: expected a digit in the exponent; found \"]\"; do: complete the number"},
        {"True", E
         "E-JS-04: x.json:1:1: expected a JSON value; found \"True\"; do: write true, false or null in small letters"},
        {"\"a\tb\"",
         E "E-JS-04: x.json:1:3: expected no bare control character in a string; found \"\\x09\"; do: write it as \\u "
           "and four hex digits"},
        {"\"abc",
         E "E-JS-04: x.json:1:5: expected the closing quote of a string; found the end of the text; do: complete the "
           "text, it stops too early"},
        // E-JS-06
        {"\"\\ud83d\"",
         E "E-JS-06: x.json:1:8: expected a low surrogate after \\ud83d; found \"\\x22\"; do: re-export the text"},
        {"\"\\ud83d\\u0041\"",
         E "E-JS-06: x.json:1:8: expected a low surrogate after \\ud83d; found \"\\x5Cu0041\"; do: re-export the text"},
        {"\"\\udc00\"", E
         "E-JS-06: x.json:1:2: expected a high surrogate before \\udc00; found \"\\x5Cudc00\"; do: re-export the text"},
        {"\"\\u12g4\"",
         E "E-JS-06: x.json:1:4: expected four hex digits after \\u; found \"12g4\"; do: re-export the text"},
        {"\"\\x41\"",
         E "E-JS-06: x.json:1:3: expected one of \" \\ / b f n r t u after the backslash; found \"x\"; do: re-export "
           "the text"},
        {"\"\\", E
         "E-JS-06: x.json:1:3: expected one of \" \\ / b f n r t u after the backslash; found the end of the text; do: "
         "re-export the text"},
        // E-JS-07
        {"[1e309]",
         E "E-JS-07: x.json:1:2: expected a number that a double can hold (up to 1.8e308); found 1e309; do: write a "
           "smaller number"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) EXPECT_STR(verdict(cases[i].text), cases[i].line);
}

TEST(wide_encodings_are_named) {
    static const struct {
        const char *text;
        size_t len;
        const char *name;
    } cases[] = {
        {"\xff\xfe[\0]\0", 6, "UTF-16 (little-endian)"},
        {"\xfe\xff\0[\0]", 6, "UTF-16 (big-endian)"},
        {"[\0]\0", 4, "UTF-16 (little-endian)"},
        {"\0[\0]", 4, "UTF-16 (big-endian)"},
        {"\xff\xfe\0\0[\0\0\0", 8, "UTF-32 (little-endian)"},
        {"\0\0\xfe\xff\0\0\0[", 8, "UTF-32 (big-endian)"},
        {"[\0\0\0]\0\0\0", 8, "UTF-32 (little-endian)"},
        {"\0\0\0[\0\0\0]", 8, "UTF-32 (big-endian)"},
        {"1\0", 2, "UTF-16 (little-endian)"},
    };
    char want[200];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        snprintf(want, sizeof want,
                 E "E-JS-03: x.json:1:1: expected UTF-8 text; found %s; do: convert the file to UTF-8", cases[i].name);
        EXPECT_STR(verdict_of(cases[i].text, cases[i].len, (JsonOptions){0}, NULL), want);
    }
}

TEST(a_byte_order_mark_is_skipped_or_refused) {
    int64_t before = warn_count("E-JS-02");
    EXPECT_STR(verdict("\xef\xbb\xbf{}"), "ok");
    EXPECT_INT(warn_count("E-JS-02"), before + 1);
    EXPECT_STR(
        verdict_of("\xef\xbb\xbf{}", 5, (JsonOptions){.refuse_bom = true, .by_byte = true, .first_byte = 8}, NULL),
        E "E-JS-02: x.json: byte 8: expected no byte order mark; found EF BB BF; do: save it as UTF-8 without BOM");
    EXPECT(strstr(verdict("\xef\xbb\xbf\xef\xbb\xbf{}"), "E-JS-04: x.json:1:4:") != NULL);
    // only the file's first line can begin with one
    EXPECT(strstr(verdict_of("\xef\xbb\xbf{}", 5, (JsonOptions){.first_line = 2}, NULL), "E-JS-04: x.json:2:1:") !=
           NULL);
}

TEST(depth_has_a_limit) {
    char text[300];
    memset(text, '[', 64), memset(text + 64, ']', 64), text[128] = 0;
    EXPECT_STR(verdict(text), "ok");
    memset(text, '[', 65), memset(text + 65, ']', 65), text[130] = 0;
    EXPECT_STR(verdict(text),
               E "E-JS-05: x.json:1:65: expected at most 64 nested levels; found level 65; do: flatten the file");
    EXPECT_STR(verdict_of("[[[[]]]]", 8, (JsonOptions){.max_depth = 4}, NULL), "ok");
    EXPECT_STR(verdict_of("[[[[{}]]]]", 10, (JsonOptions){.max_depth = 4, .by_byte = true, .first_byte = 8}, NULL),
               E "E-JS-05: x.json: byte 12: expected at most 4 nested levels; found level 5; do: flatten the file");
}

TEST(the_number_of_values_has_a_limit) {
    Text t = {0};
    for (int64_t i = 0; i < LIMIT_JSON_VALUES - 1; i++) text_add(&t, i ? ",1" : "[1", 2);
    text_add(&t, "]", 1);
    JsonDoc doc;
    Err e = {0};
    EXPECT(json_parse(&doc, t.p, t.len, "x.json", (JsonOptions){0}, &e));
    EXPECT_INT(doc.root->count, LIMIT_JSON_VALUES - 1); // and the array itself
    json_free(&doc);
    t.len--, text_add(&t, ",1]", 3);
    EXPECT(!json_parse(&doc, t.p, t.len, "x.json", (JsonOptions){0}, &e));
    EXPECT_STR(e.code, "E-JS-01");
    EXPECT_STR(e.expected, "at most 8388608 values");
    text_free(&t);
}

TEST(the_size_of_a_file_has_a_limit) {
    char path[] = "/tmp/surgr1-json-XXXXXX";
    int fd = mkstemp(path);
    EXPECT(fd >= 0 && write(fd, "[1,2,3] ", 8) == 8 && close(fd) == 0);
    JsonDoc doc;
    Err e = {0};
    EXPECT(json_read(&doc, path, 8, (JsonOptions){0}, &e));
    EXPECT_INT(doc.root->count, 3);
    json_free(&doc);
    EXPECT(!json_read(&doc, path, 7, (JsonOptions){0}, &e));
    char line[2000], want[300];
    snprintf(want, sizeof want,
             E "E-JS-01: %s: byte 0: expected at most 7 bytes of JSON; found 8; do: check that this is the right file",
             path);
    EXPECT_STR(err_line(&e, "error", line, sizeof line), want);
    unlink(path);
}

TEST(repeated_keys_are_refused_when_asked) {
    const JsonOptions once = {.refuse_duplicates = true};
    const char *text = "{\n  \"a\": 1,\n  \"b\": {\"c\": 1},\n  \"a\" : 2\n}";
    EXPECT_STR(verdict(text), "ok");
    EXPECT_STR(verdict_of(text, strlen(text), once, NULL),
               E "E-JS-08: x.json:4:3: field \"a\": expected each key once; found it first on line 2; do: delete one "
                 "of the two");
    text = "{\"x\": [1, {\"k\": [0, {\"q\\\"\": 1, \"z\": 2, \"q\\u0022\" :[3]}]}]}"; // equal once decoded
    EXPECT_STR(
        verdict_of(text, strlen(text), once, NULL),
        E "E-JS-08: x.json:1:40: field \"x[1].k[1].q\\x22\": expected each key once; found it first in column 22; do: "
          "delete one of the two");
    text = "{\"\":1,\"\\u0000\":2,\"a\\\\\":\"b\\\\\",\"A\":3}"; // all different
    EXPECT_STR(verdict_of(text, strlen(text), once, NULL), "ok");
    text = "{\"t\":1,\"t\":2}";
    EXPECT_STR(verdict_of(text, strlen(text),
                          (JsonOptions){.refuse_duplicates = true, .by_byte = true, .first_byte = 8}, NULL),
               E "E-JS-08: x.json: byte 15: field \"t\": expected each key once; found it first at byte 9; do: delete "
                 "one of the "
                 "two");
    text = "[{\"a\":1},{\"a\":1},{\"b\":{\"a\":1},\"a\":1}]"; // the same key in other objects
    EXPECT_STR(verdict_of(text, strlen(text), once, NULL), "ok");
}

TEST(a_vocabulary_of_151643_entries_is_checked_in_linear_time) {
    const JsonOptions once = {.refuse_duplicates = true};
    const int n = 151643;
    for (int repeat = -1; repeat < n; repeat += n / 2) { // no repeat, or the key of that entry again at the end
        Text t = {0};
        for (int i = 0; i < n; i++) text_addf(&t, "%s\"tok%d\": %d", i ? ", " : "{", i * 7, i);
        if (repeat >= 0) text_addf(&t, ",\n\"tok%d\": 0", repeat * 7);
        text_add(&t, "}", 1);
        JsonDoc doc;
        Err e = {0};
        double start = clock_seconds();
        bool ok = json_parse(&doc, t.p, t.len, "vocab.json", once, &e);
        EXPECT(clock_seconds() - start < 5); // comparing all pairs takes minutes
        EXPECT(ok == (repeat < 0));
        if (ok) {
            EXPECT_INT(doc.root->count, n);
            EXPECT_INT(json_get(doc.root, "tok700000")->i, 100000);
            json_free(&doc);
        } else {
            EXPECT_STR(e.code, "E-JS-08");
            EXPECT_INT(e.line, 2);
            EXPECT_STR(e.found, "it first on line 1");
        }
        text_free(&t);
    }
}

TEST(a_tree_holds_what_was_written) {
    const char *text =
        " {\"a\" : [true, false,null, -12, 2.5e3],\n\t\"z\\u0000\\ud83d\\ude00\\n\": \"\\/\xc3\xa9\"}\r\n";
    JsonDoc doc;
    Err e = {0};
    EXPECT(json_parse(&doc, text, strlen(text), "x.json", (JsonOptions){.first_line = 7}, &e));
    const Json *root = doc.root, *a = json_get(root, "a"), *v = a->child, *z = a->next;
    EXPECT(root->type == JSON_OBJECT && root->count == 2 && !root->key);
    EXPECT(a->type == JSON_ARRAY && a->count == 5 && a->line == 7 && a->col == 9 && a->byte == 8);
    EXPECT(v->type == JSON_TRUE && v->next->type == JSON_FALSE && v->next->next->type == JSON_NULL);
    v = v->next->next->next;
    EXPECT(v->type == JSON_NUMBER && v->integer && v->i == -12 && v->number == -12 && v->len == 3);
    EXPECT_STR(v->str, "-12");
    EXPECT(!v->next->integer && v->next->number == 2500 && !v->next->next);
    EXPECT(z->key_len == 7 && !memcmp(z->key, "z\0\xf0\x9f\x98\x80\n", 8));
    EXPECT(json_is(z, "/\xc3\xa9") && !json_is(z, "/") && !json_is(a, "/") && !json_is(NULL, ""));
    EXPECT(z->line == 8 && z->col == 27 && !z->next);
    EXPECT(!json_get(root, "b") && !json_get(a, "a") && !json_get(NULL, "a"));
    Text t = {0};
    json_print(&t, root);
    EXPECT_STR(t.p, "{\"a\":[true,false,null,-12,2500.0],\"z\\u0000\xf0\x9f\x98\x80\\n\":\"/\xc3\xa9\"}");
    text_free(&t), json_free(&doc);
}

TEST(integers_do_not_wrap) {
    static const struct {
        const char *text;
        bool integer;
        int64_t i;
    } cases[] = {{"9223372036854775807", true, INT64_MAX},
                 {"-9223372036854775808", true, INT64_MIN},
                 {"9223372036854775808", false, 0},
                 {"-9223372036854775809", false, 0},
                 {"18446744073709551616", false, 0},
                 {"123456789012345678901234567890", false, 0},
                 {"0", true, 0},
                 {"-0", true, 0},
                 {"1.0", false, 0},
                 {"1e2", false, 0}};
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        JsonDoc doc;
        Err e = {0};
        EXPECT(json_parse(&doc, cases[k].text, strlen(cases[k].text), "x", (JsonOptions){0}, &e));
        EXPECT_INT(doc.root->integer, cases[k].integer);
        EXPECT_INT(doc.root->i, cases[k].i);
        EXPECT(doc.root->number == strtod(cases[k].text, NULL));
        json_free(&doc);
        expect_round_trip(cases[k].text, strlen(cases[k].text), (JsonOptions){0});
    }
}

TEST(numbers_print_in_the_fewest_digits_that_read_back) {
    static const struct {
        double v;
        const char *text;
    } cases[] = {{0, "0"},
                 {-0.0, "-0"},
                 {1, "1"},
                 {0.1, "0.1"},
                 {1e-6, "1e-06"},
                 {1e22, "1e+22"},
                 {1e23, "1e+23"},
                 {5e-324, "5e-324"},
                 {2.2250738585072014e-308, "2.2250738585072014e-308"},
                 {1.0 / 3, "0.3333333333333333"},
                 {1.7976931348623157e308, "1.7976931348623157e+308"},
                 {9007199254740993.0, "9007199254740992"},
                 {0.30000000000000004, "0.30000000000000004"},
                 {1000000, "1000000"},
                 {6.02214076e23, "6.02214076e+23"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Text t = {0};
        text_add_json_number(&t, cases[i].v);
        EXPECT_STR(t.p, cases[i].text);
        text_free(&t);
    }
    for (uint32_t i = 0; i < 20000; i++) { // any bits
        Random4 r = philox(1, RANDOM_TEST, i, 0, 0);
        uint64_t bits = (uint64_t)r.v[0] << 32 | r.v[1];
        double v;
        memcpy(&v, &bits, 8);
        if (!isfinite(v)) continue;
        Text t = {0};
        text_add_json_number(&t, v);
        double back = strtod(t.p, NULL);
        EXPECT(!memcmp(&back, &v, 8));
        text_free(&t);
    }
}

// ---------------------------------------------------------------------------------------------- random documents

typedef struct Dice {
    uint32_t seed, n;
} Dice;
static uint32_t roll(Dice *d, uint32_t sides) { return philox(42, RANDOM_TEST, d->seed, d->n++, 0).v[0] % sides; }

static void random_space(Dice *d, Text *t) {
    if (!roll(d, 4)) text_add(t, &" \t\n\r"[roll(d, 4)], 1);
}
static void random_string(Dice *d, Text *t) {
    static const char *const parts[] = {"a",
                                        "key",
                                        "\\n",
                                        "\\\"",
                                        "\\\\",
                                        "\\/",
                                        "\\u0000",
                                        "\xc3\xa9",
                                        "\xe2\x82\xac",
                                        "\xf0\x9f\x98\x80",
                                        "\\ud83d\\ude00",
                                        "\\u00e9",
                                        " ",
                                        "<|im_end|>"};
    text_add(t, "\"", 1);
    for (uint32_t n = roll(d, 6); n; n--) text_addf(t, "%s", parts[roll(d, sizeof parts / sizeof *parts)]);
    text_add(t, "\"", 1);
}
static void random_value(Dice *d, Text *t, int depth) {
    static const char *const numbers[] = {
        "0", "-0", "-0.0", "17", "-1e-400", "1E5", "0.1e1", "123456789012345678901", "3.14159"};
    random_space(d, t);
    uint32_t kind = roll(d, depth > 6 ? 5 : 8), n = roll(d, 5);
    if (kind == 0) text_addf(t, "null");
    else if (kind == 1) text_addf(t, roll(d, 2) ? "true" : "false");
    else if (kind == 2) text_addf(t, "%s", numbers[roll(d, sizeof numbers / sizeof *numbers)]);
    else if (kind == 3)
        text_addf(t, "%.*g", 1 + (int)roll(d, 17), (roll(d, 2000) - 1e3) * exp((double)roll(d, 1200) - 600));
    else if (kind == 4) random_string(d, t);
    else {
        bool object = kind > 5;
        text_add(t, object ? "{" : "[", 1);
        for (uint32_t i = 0; i < n; i++) {
            if (i) text_add(t, ",", 1);
            random_space(d, t);
            if (object) random_string(d, t), random_space(d, t), text_add(t, ":", 1);
            random_value(d, t, depth + 1);
        }
        random_space(d, t);
        text_add(t, object ? "}" : "]", 1);
    }
    random_space(d, t);
}

TEST(random_documents_survive_printing_and_parsing) {
    int accepted = 0;
    for (uint32_t seed = 0; seed < 10000; seed++) {
        Dice d = {seed, 0};
        Text t = {0};
        random_value(&d, &t, 0);
        accepted += !strcmp(verdict_of(t.p, t.len, (JsonOptions){0}, NULL), "ok");
        expect_round_trip(t.p, t.len, (JsonOptions){0});
        text_free(&t);
    }
    EXPECT_INT(accepted, 10000);
}

TEST(damaged_documents_never_hurt) {
    int refused = 0;
    for (uint32_t seed = 0; seed < 20000; seed++) {
        Dice d = {seed, 0};
        Text t = {0};
        random_value(&d, &t, 0);
        for (uint32_t n = 1 + roll(&d, 3); n && t.len; n--) {
            uint32_t at = roll(&d, (uint32_t)t.len);
            switch (roll(&d, 4)) {
            case 0: t.p[at] = (char)(t.p[at] ^ 1 << roll(&d, 8)); break;
            case 1: t.p[at] = "{}[]\",:\\0u-e.\x80\xff\0"[roll(&d, 17)]; break;
            case 2: t.len = at; break;
            case 3: memmove(t.p + at, t.p + at + 1, t.len - at - 1), t.len--; break;
            }
        }
        JsonOptions o = {.refuse_duplicates = roll(&d, 2), .by_byte = roll(&d, 2), .max_depth = 1 + (int)roll(&d, 8)};
        const char *line = verdict_of(t.p, t.len, o, NULL);
        if (strcmp(line, "ok")) { // the form of every message
            refused++;
            const char *expected = strstr(line, ": expected "), *found = expected ? strstr(expected, "; found ") : NULL;
            const char *todo = found ? strstr(found, "; do: ") : NULL;
            if (strncmp(line, E "E-JS-0", 20) || !todo || strlen(todo) < 8 || strchr(line, '\n'))
                FAIL("message %s", line);
        }
        expect_round_trip(t.p, t.len, o);
        text_free(&t);
    }
    EXPECT(refused > 5000);
}

// --------------------------------------------------------------------------------------------------- typed fields

TEST(typed_fields_name_field_place_and_range) {
    const char *text =
        "{\n \"hidden_size\": 2048.5, \"n\": 12, \"big\": 99999999999999999999, \"f\": 0.5, \"t\": true,\n"
        " \"s\": \"x\\ny\", \"z\": null, \"o\": {}}";
    JsonDoc doc;
    Err e = {0};
    EXPECT(json_parse(&doc, text, strlen(text), "config.json", (JsonOptions){0}, &e));
    const Json *o = doc.root;
    int64_t n = -1;
    double f = -1;
    bool b = false;
    char line[2000];
    EXPECT(json_int(&doc, o, "n", true, 12, 12, &n, &e) && n == 12);
    EXPECT(json_double(&doc, o, "f", true, 0, 1, &f, &e) && f == 0.5);
    EXPECT(json_double(&doc, o, "n", true, 0, 100, &f, &e) && f == 12);
    EXPECT(json_bool(&doc, o, "t", true, &b, &e) && b);
    n = 5; // absent, or null, leaves the value alone
    EXPECT(json_int(&doc, o, "none", false, 0, 1, &n, &e) && json_int(&doc, o, "z", false, 0, 1, &n, &e) && n == 5);
    EXPECT(json_int(&doc, NULL, "n", false, 0, 1, &n, &e) && n == 5);
#define REFUSED(call, want)                                                                                            \
    do {                                                                                                               \
        e = (Err){0};                                                                                                  \
        EXPECT(!(call));                                                                                               \
        EXPECT_STR(err_line(&e, "error", line, sizeof line), E want);                                                  \
    } while (0)
    REFUSED(
        json_int(&doc, o, "hidden_size", true, 1, 65536, &n, &e),
        "E-JS-07: config.json:2:17: field \"hidden_size\": expected an integer 1..65536; found 2048.5; do: write 2048");
    REFUSED(
        json_int(&doc, o, "n", true, 13, 20, &n, &e),
        "E-CF-02: config.json:2:30: field \"n\": expected an integer 13..20; found 12; do: use a value in this range");
    REFUSED(
        json_int(&doc, o, "n", true, 1, 11, &n, &e),
        "E-CF-02: config.json:2:30: field \"n\": expected an integer 1..11; found 12; do: use a value in this range");
    REFUSED(json_int(&doc, o, "big", true, 0, INT64_MAX, &n, &e),
            "E-CF-02: config.json:2:41: field \"big\": expected an integer 0..9223372036854775807; found "
            "99999999999999999999; "
            "do: use a value in this range");
    REFUSED(json_int(&doc, o, "s", true, 0, 1, &n, &e), "E-CF-02: config.json:3:7: field \"s\": expected an integer "
                                                        "0..1; found the string \"x\\x0Ay\"; do: use a value in "
                                                        "this range");
    REFUSED(
        json_double(&doc, o, "f", true, 0.75, 1, &f, &e),
        "E-CF-02: config.json:2:68: field \"f\": expected a number 0.75..1; found 0.5; do: use a value in this range");
    REFUSED(json_double(&doc, o, "o", true, 0, 1, &f, &e), "E-CF-02: config.json:3:31: field \"o\": expected a number "
                                                           "0..1; found an object; do: use a value in this range");
    REFUSED(json_bool(&doc, o, "n", true, &b, &e),
            "E-CF-02: config.json:2:30: field \"n\": expected true or false; found 12; do: write true or false");
    REFUSED(json_int(&doc, o, "none", true, 0, 1, &n, &e),
            "E-CF-02: config.json:1:1: field \"none\": expected an integer 0..1; found no such field; do: use the file "
            "that came "
            "with the weights");
    REFUSED(json_int(&doc, NULL, "none", true, 0, 1, &n, &e),
            "E-CF-02: config.json: field \"none\": expected an integer 0..1; found no such field; do: use the file "
            "that came with "
            "the weights");
    REFUSED(
        json_int(&doc, o, "z", true, 0, 1, &n, &e),
        "E-CF-02: config.json:3:20: field \"z\": expected an integer 0..1; found null; do: use a value in this range");
    EXPECT(n == 5);
    json_free(&doc);
}

// ----------------------------------------------------------------------------------------------------------- text

TEST(strings_are_escaped_and_broken_bytes_replaced) {
    Text t = {0};
    text_add_json_string(&t, "a\"b\\c\b\f\n\r\t\x01\x7f\0z\xc3\xa9\xf0\x9f\x98\xff\xed\xa0\x80", 23);
    EXPECT_STR(t.p, "\"a\\\"b\\\\c\\b\\f\\n\\r\\t\\u0001\x7f\\u0000z\xc3\xa9\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef"
                    "\xbf\xbd\xef\xbf\xbd\"");
    text_free(&t);
    text_add_json_string(&t, NULL, 0);
    EXPECT_STR(t.p, "\"\"");
    text_free(&t);
    for (int i = 0; i < 300; i++) text_addf(&t, "%0*d|", i, 7); // longer and longer pieces
    EXPECT_INT(t.len, 299 * 300 / 2 + 1 + 300);
    text_free(&t);
}

// ---------------------------------------------------------------------------------------------------------- UTF-8

// Decodes from the bit patterns alone, then checks the value: another road to the same verdict.
static int32_t plain_decode(const unsigned char *p, size_t len, size_t *used) {
    int n = p[0] < 0x80 ? 1 : p[0] >> 5 == 6 ? 2 : p[0] >> 4 == 14 ? 3 : p[0] >> 3 == 30 ? 4 : 0;
    if (!n || (size_t)n > len) return -1;
    int32_t c = n == 1 ? p[0] : p[0] & (0x7f >> n);
    for (int i = 1; i < n; i++) {
        if (p[i] >> 6 != 2) return -1;
        c = c << 6 | (p[i] & 63);
    }
    static const int32_t smallest[5] = {0, 0, 0x80, 0x800, 0x10000};
    if (c < smallest[n] || (c >= 0xd800 && c < 0xe000) || c > 0x10ffff) return -1;
    *used = (size_t)n;
    return c;
}

TEST(every_character_encodes_and_decodes) {
    for (int32_t c = 0; c <= 0x10ffff; c++) {
        if (c >= 0xd800 && c < 0xe000) continue;
        char b[4];
        size_t n = utf8_put(b, (uint32_t)c), pos = 0, used = 0;
        if (utf8_next(b, n, &pos) != c || pos != n || plain_decode((unsigned char *)b, n, &used) != c || used != n)
            FAIL("U+%04X", (unsigned)c);
        for (size_t cut = 1; cut < n; cut++) {
            pos = 0;
            if (utf8_next(b, cut, &pos) != -1 || pos != cut || utf8_complete(b, cut) != 0)
                FAIL("U+%04X cut at %zu", (unsigned)c, cut);
        }
        if (utf8_complete(b, n) != n) FAIL("U+%04X is not complete", (unsigned)c);
    }
}

static void compare_decoders(const unsigned char *b, size_t n) {
    size_t pos = 0, used = 0;
    int32_t got = utf8_next((const char *)b, n, &pos), want = plain_decode(b, n, &used);
    if (got != want || (want >= 0 && pos != used) || pos < 1 || pos > n)
        FAIL("%02X %02X %02X %02X: %d instead of %d", b[0], b[1], b[2], b[3], (int)got, (int)want);
}

TEST(no_other_bytes_decode) {
    static const unsigned char edge[] = {0x00, 0x41, 0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc0, 0xc2, 0xed, 0xff};
    const size_t edges = sizeof edge;
    for (unsigned a = 0; a < 256; a++)
        for (unsigned b = 0; b < 256; b++) {
            compare_decoders((const unsigned char[4]){(unsigned char)a, (unsigned char)b}, 2);
            for (size_t c = 0; c < edges; c++) {
                compare_decoders((const unsigned char[4]){(unsigned char)a, (unsigned char)b, edge[c]}, 3);
                for (size_t d = 0; d < edges && a >= 0xe0; d++)
                    compare_decoders((const unsigned char[4]){(unsigned char)a, (unsigned char)b, edge[c], edge[d]}, 4);
            }
        }
}

TEST(broken_text_is_replaced_by_maximal_subparts) {
    // The examples of the Unicode Standard 15, section 3.9, tables 3-8 to 3-11: each dot is one U+FFFD.
    static const struct {
        const char *bytes, *marks;
    } cases[] = {{"\xc0\xaf\xe0\x80\xbf\xf0\x81\x82\x41", "........A"},
                 {"\xed\xa0\x80\xed\xbf\xbf\xed\xaf\x41", "........A"},
                 {"\xf4\x91\x92\x93\xff\x41\x80\xbf\x42", ".....A..B"},
                 {"\xe1\x80\xe2\xf0\x91\x92\xf1\xbf\x41", "....A"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char marks[32];
        size_t n = 0;
        for (size_t pos = 0; pos < strlen(cases[i].bytes);) {
            int32_t c = utf8_next(cases[i].bytes, strlen(cases[i].bytes), &pos);
            marks[n++] = c < 0 ? '.' : (char)c;
        }
        marks[n] = 0;
        EXPECT_STR(marks, cases[i].marks);
    }
}

TEST(validity_and_completeness_agree_with_decoding) {
    for (uint32_t seed = 0; seed < 3000; seed++) {
        Dice d = {seed, 7};
        char b[64];
        size_t n = 0, starts[64], chars = 0;
        while (n < 40) { // long runs of ASCII too: validity takes them eight at a time
            static const uint32_t kinds[] = {0x80, 0x80, 0x80, 0x800, 0xd800, 0x10ffff};
            uint32_t c = roll(&d, kinds[roll(&d, 6)]);
            if (c >= 0xd800 && c < 0xe000) c = 0xe000;
            starts[chars++] = n;
            n += utf8_put(b + n, c);
        }
        EXPECT(utf8_valid(b, n, NULL));
        for (size_t cut = 0; cut <= n; cut++) {
            size_t want = cut;
            for (size_t k = 0; k < chars; k++)
                if (starts[k] <= cut && (k + 1 == chars ? n : starts[k + 1]) > cut) want = starts[k];
            if (utf8_complete(b, cut) != want) FAIL("seed %u cut %zu", seed, cut);
            size_t bad = 99;
            if (utf8_valid(b, cut, &bad) != (want == cut) || (want != cut && bad != want))
                FAIL("seed %u cut %zu", seed, cut);
        }
        size_t at = roll(&d, (uint32_t)n), bad = 99;
        b[at] = (char)0xff;
        EXPECT(!utf8_valid(b, n, &bad) && bad <= at);
    }
    EXPECT_INT(utf8_complete("a\xff", 2), 2); // can become no character: nothing to wait for
    EXPECT_INT(utf8_complete("\xe0\x80", 2), 2);
    EXPECT_INT(utf8_complete("\x80\x80\x80\x80", 4), 4);
    EXPECT_INT(utf8_complete("", 0), 0);
}
