// test_records.c - conversations from JSON lines: the forms that are read, the rules that refuse, whole files.
#include "test.h"
#include <sys/stat.h>

static char line[2048];
// "" when the line is read (into *r), else the message.
static const char *parse_into(Record *r, const char *text) {
    Err e = {0};
    char *exact = malloc(strlen(text) + 1);
    memcpy(exact, text, strlen(text));
    bool ok = record_parse(r, exact, strlen(text), "d.jsonl", 7, &e);
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
