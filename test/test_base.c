// test_base.c - the one form of every message, exit codes, warnings and notes, the ends of the program, the op trace.
#define _GNU_SOURCE // pseudo-terminals
#include "test.h"
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>

// So that a sanitized build answers a request for too much memory as the C library does.
const char *__asan_default_options(void);
const char *__asan_default_options(void) { return "allocator_may_return_null=1"; }

// What `run` writes to a descriptor (1 or 2), in a static buffer.
static const char *written(int fd, void (*run)(void *), void *ctx) {
    static char text[65536];
    char path[] = "/tmp/surgr1-log-XXXXXX";
    fflush(stdout), fflush(stderr);
    int file = mkstemp(path), saved = dup(fd);
    if (file < 0 || saved < 0 || dup2(file, fd) < 0) perror(path), exit(1);
    run(ctx);
    fflush(stdout), fflush(stderr);
    dup2(saved, fd), close(saved), unlink(path);
    ssize_t n = pread(file, text, sizeof text - 1, 0);
    text[n > 0 ? n : 0] = 0;
    close(file);
    return text;
}

// How a child that calls `run` ends: its exit code, or minus the signal. What it wrote on standard error is kept.
static char child_said[4096];
static int child_ends(void (*run)(void)) {
    int pipes[2], status;
    if (pipe(pipes)) perror("pipe"), exit(1);
    fflush(stdout);
    pid_t child = fork();
    if (!child) {
        dup2(pipes[1], 2), close(pipes[0]), close(pipes[1]);
        run();
        _exit(0);
    }
    close(pipes[1]);
    size_t n = 0;
    for (ssize_t k; n < sizeof child_said - 1 && (k = read(pipes[0], child_said + n, sizeof child_said - 1 - n)) > 0;)
        n += (size_t)k;
    child_said[n] = 0, close(pipes[0]);
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

static const char *line_of(const Err *e) {
    static char line[8192];
    return err_line(e, "error", line, sizeof line);
}

// ---------------------------------------------------------------------------------------------------------- errors

TEST(base64_gives_the_vectors_of_rfc_4648) {
    static const char *const want[] = {"", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"};
    for (size_t n = 0; n < 7; n++) {
        Text t = {0};
        text_add_base64(&t, (const uint8_t *)"foobar", n);
        EXPECT_STR(t.p ? t.p : "", want[n]);
        text_free(&t);
    }
}

TEST(a_message_names_place_expected_found_and_remedy) {
    static const struct {
        Where at;
        const char *where;
    } cases[] = {
        {{.file = "c.json", .line = 14, .col = 3}, "c.json:14:3"},
        {{.file = "train.jsonl", .line = 57, .field = "image"}, "train.jsonl:57: field \"image\""},
        {{.file = "c.json", .field = "a.b[3]"}, "c.json: field \"a.b[3]\""},
        {{.file = "m.safetensors", BYTE(73411)}, "m.safetensors: byte 73411"},
        {{.file = "m.safetensors", BYTE(0), .tensor = "lm_head.weight"},
         "m.safetensors: byte 0: tensor \"lm_head.weight\""},
        {{.file = "t.jsonl", .line = 2, .sample = "id 7"}, "t.jsonl:2: sample \"id 7\""},
        {{.file = "m", .tensor = "a\"\n\x1b[31m\xc3\xa9"}, "m: tensor \"a\\x22\\x0A\\x1B[31m\\xC3\\xA9\""},
        {{.field = "x"}, "field \"x\""},
        {{.file = "a\nb\x1b\xc3\xa9"}, "a\\x0Ab\\x1B\xc3\xa9"},
        {{0}, "surgr1"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Err e = {0};
        char want[300];
        EXPECT(!err_set(&e, "E-CF-02", cases[i].at, "expected %d; found %s; do: %s", 5, "6", "write 5"));
        snprintf(want, sizeof want, "surgr1: error E-CF-02: %s: expected 5; found 6; do: write 5", cases[i].where);
        EXPECT_STR(line_of(&e), want);
    }
}

TEST(the_format_is_split_and_not_its_arguments) {
    Err e = {0};
    err_set(&e, "E-DS-02", AT(.file = "x"), "expected %s or %d; found %s and %s; do: %s %.1f", "a; found b; do: c", 3,
            "; do: ", "; found ", "expected; do: d", 0.5);
    EXPECT_STR(e.expected, "a; found b; do: c or 3");
    EXPECT_STR(e.found, "; do:  and ; found ");
    EXPECT_STR(e.todo, "expected; do: d 0.5");
    EXPECT_STR(line_of(&e),
               "surgr1: error E-DS-02: x: expected a; found b; do: c or 3; found ; do:  and ; found ; do: expected; "
               "do: d 0.5");
}

TEST(the_first_error_wins) {
    Err e = {0};
    EXPECT(!err_set(&e, "E-JS-04", AT(.file = "a"), "expected 1; found 2; do: 3"));
    EXPECT(!err_set(&e, "E-ST-01", AT(.file = "b", BYTE(1)), "expected 4; found 5; do: 6"));
    EXPECT_STR(line_of(&e), "surgr1: error E-JS-04: a: expected 1; found 2; do: 3");
}

TEST(long_parts_are_cut_and_none_is_lost) {
    static char huge[20000];
    memset(huge, 'x', sizeof huge - 1);
    Err e = {0};
    err_set(&e, "E-JS-04", AT(.file = huge, .field = huge), "expected %s; found %s; do: %s", huge, "f", "d");
    EXPECT_INT(strlen(e.expected), sizeof e.expected - 1);
    EXPECT_STR(e.expected + strlen(e.expected) - 4, "x...");
    EXPECT(e.found[0] && e.todo[0]); // cut, but there
    e = (Err){0};
    huge[2000] = 0;
    err_set(&e, "E-JS-04", AT(.file = "f"), "expected %s; found %s; do: %s", huge, "f", "d");
    EXPECT_STR(e.found, "f");
    EXPECT_STR(e.todo, "d");
    e = (Err){0};
    err_set(&e, "E-JS-04", AT(.file = "f"), "expected %s; found %s; do: %s", "", "", "");
    EXPECT_STR(line_of(&e), "surgr1: error E-JS-04: f: expected ...; found ...; do: ...");
    char small[20];
    EXPECT_STR(err_line(&e, "warning", small, sizeof small), "surgr1: warning E-J");
}

TEST(text_from_files_is_quoted) {
    EXPECT_STR(quoted("plain text ~!", 13), "\"plain text ~!\"");
    EXPECT_STR(quoted("a\"b\\c\n\0\x7f\xe9", 9), "\"a\\x22b\\x5Cc\\x0A\\x00\\x7F\\xE9\"");
    EXPECT_STR(quoted(NULL, 0), "\"\"");
    char text[70];
    memset(text, 'q', sizeof text);
    EXPECT_INT(strlen(quoted(text, 64)), 66);
    EXPECT_INT(strlen(quoted(text, 65)), 69);
    EXPECT(!strcmp(quoted(text, 65) + 64, "q\"..."));
    memset(text, 1, sizeof text);
    EXPECT_INT(strlen(quoted(text, 70)), 4 * 64 + 2 + 3);
    const char *eight[8];
    for (int i = 0; i < 8; i++) eight[i] = quoted(&"abcdefgh"[i], 1);
    for (int i = 0; i < 8; i++) EXPECT(eight[i][1] == "abcdefgh"[i]); // eight in one message
}

TEST(exit_codes_follow_the_table) {
    static const struct {
        const char *code;
        int exit_code;
    } cases[] = {{"E-JS-04", 3}, {"E-CF-01", 3}, {"E-ST-08", 3}, {"E-IX-01", 3},  {"E-TK-01", 3}, {"E-DS-10", 3},
                 {"E-IM-99", 3}, {"E-TA-01", 3}, {"E-AD-01", 3}, {"E-IO-05", 4},  {"E-WR-01", 5}, {"E-ME-01", 6},
                 {"E-DV-03", 7}, {"E-NU-01", 8}, {"E-CK-01", 9}, {"E-LK-01", 10}, {"E-BG-01", 70}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Err e = {0};
        err_set(&e, cases[i].code, AT(.file = "f"), "expected a; found b; do: c");
        EXPECT_INT(err_exit_code(&e), cases[i].exit_code);
    }
}

static void report(void *e) { EXPECT_INT(err_report(e), EXIT_REFUSED); }

TEST(an_error_is_one_line_or_one_json_object) {
    Err e = {0};
    err_set(&e, "E-JS-04", AT(.file = "a\"\xff.json", .line = 2, .col = 5, .field = "k\n"),
            "expected \"x\"; found \x01; do: c");
    EXPECT_STR(written(2, report, &e),
               "surgr1: error E-JS-04: a\"\\xFF.json:2:5: field \"k\\x0A\": expected \"x\"; found \\x01; do: "
               "c\n");
    log_setup(LOG_NORMAL, true);
    EXPECT_STR(written(2, report, &e),
               "{\"level\":\"error\",\"code\":\"E-JS-04\",\"where\":{\"file\":\"a\\\"\xef\xbf\xbd.json\",\"line\":2,"
               "\"col\":5,\"byte\":"
               "null,\"field\":\"k\\n\"},\"expected\":\"\\\"x\\\"\",\"found\":\"\\u0001\",\"do\":\"c\"}\n");
    e = (Err){0};
    err_set(&e, "E-ST-08", AT(BYTE(0), .tensor = "w"), "expected a; found b; do: c");
    const char *line = written(2, report, &e);
    EXPECT_STR(
        line,
        "{\"level\":\"error\",\"code\":\"E-ST-08\",\"where\":{\"file\":null,\"line\":null,\"col\":null,\"byte\":0,"
        "\"field\":null,\"tensor\":\"w\"},\"expected\":\"a\",\"found\":\"b\",\"do\":\"c\"}\n");
    JsonDoc doc;
    Err parsed = {0};
    EXPECT(json_parse(&doc, line, strlen(line), "line", (JsonOptions){.refuse_duplicates = true}, &parsed));
    json_free(&doc);
    log_setup(LOG_NORMAL, false);
}

// -------------------------------------------------------------------------------------------------- warnings, notes

static void warn_often(void *ctx) {
    (void)ctx;
    for (int i = 0; i < 12; i++) warn("E-TK-05", AT(.file = "f", .line = i + 1), "expected a; found %d; do: c", i);
    warn("E-IM-06", AT(.file = "g", BYTE(3)), "expected a; found b; do: c");
    warn_summary();
}
static int lines(const char *text) {
    int n = 0;
    for (; *text; text++) n += *text == '\n';
    return n;
}

TEST(warnings_of_one_code_are_printed_five_times_and_counted) {
    const char *text = written(2, warn_often, NULL);
    EXPECT_INT(lines(text), LIMIT_WARNINGS + 1 + 1);
    EXPECT(!strncmp(text, "surgr1: warning E-TK-05: f:1: expected a; found 0; do: c\n", 57));
    EXPECT(strstr(text, "surgr1: warning E-IM-06: g: byte 3: expected a; found b; do: c\n") != NULL);
    EXPECT(strstr(text, "warning E-TK-05: 12 in all, the first 5 shown\n") != NULL && !strstr(text, "f:6"));
    EXPECT_INT(warn_count("E-TK-05"), 12);
    EXPECT_INT(warn_count("E-IM-06"), 1);
    EXPECT_INT(warn_count("E-IM-07"), 0);
}

static void notes(void *ctx) {
    (void)ctx;
    note("plain %d\x1b[2J", 1), note_verbose("verbose");
}

TEST(notes_follow_the_level) {
    EXPECT_STR(written(2, notes, NULL), "plain 1\\x1B[2J\n");
    log_setup(LOG_VERBOSE, false);
    EXPECT_STR(written(2, notes, NULL), "plain 1\\x1B[2J\nverbose\n");
    log_setup(LOG_QUIET, false);
    EXPECT_STR(written(2, notes, NULL), "");
    log_setup(LOG_NORMAL, true);
    EXPECT_STR(written(2, notes, NULL), "{\"level\":\"note\",\"text\":\"plain 1\\u001b[2J\"}\n");
    log_setup(LOG_NORMAL, false);
}

static void some_progress(void *ctx) {
    (void)ctx;
    double start = clock_seconds() - 10;
    progress("reading", 1, 4, start), note("between"), progress("reading", 4, 4, start);
}
static void progress_in_terminal(void) {
    int master = posix_openpt(O_RDWR | O_NOCTTY);
    if (master < 0 || grantpt(master) || unlockpt(master)) _exit(77);
    int said = dup(2), terminal = open(ptsname(master), O_RDWR | O_NOCTTY);
    if (terminal < 0) _exit(77);
    dup2(terminal, 2);
    some_progress(NULL);
    close(2), close(terminal); // then the other side can be read to its end
    char text[1000];
    for (ssize_t n; (n = read(master, text, sizeof text)) > 0;)
        if (write(said, text, (size_t)n) != n) _exit(1);
    _exit(0);
}

TEST(progress_is_drawn_on_a_terminal_only) {
    EXPECT_STR(written(2, some_progress, NULL), "between\n");
    int ended = child_ends(progress_in_terminal);
    if (ended == 77) SKIP("no pseudo-terminal");
    EXPECT_INT(ended, 0);
    EXPECT_STR(child_said, "\r\033[Kreading 1/4, 0:30 left\r\033[Kbetween\r\n"); // the note wipes the line away
}

// ------------------------------------------------------------------------------------------------ ends of the program

#ifdef SURGR1_DEBUG
enum { BUG_ENDS = -SIGABRT };
#else
enum { BUG_ENDS = EXIT_BUG };
#endif

static void break_contract(void) { CHECK(1 + 1 == 3, "matmul: y [%d, %d]\n", 2, 3); }
static void wrong_format(void) { err_set(&(Err){0}, "E-JS-04", AT(.file = "f"), "expected a; do: c; found b"); }
static void wrong_code(void) { err_set(&(Err){0}, "E-J-04", AT(.file = "f"), "expected a; found b; do: c"); }
static void no_error(void) { err_report(&(Err){0}); }
static void too_many(void) { free(alloc_or_die(SIZE_MAX / 2, 4, "a matrix")); }
static void too_much(void) { free(grow_or_die(NULL, (size_t)1 << 46, 1, "a list")); }
static void too_much_growth(void) { free(grow_or_die(NULL, SIZE_MAX / 2, 4, "a list")); }

TEST(a_broken_contract_ends_the_program) {
    EXPECT_INT(child_ends(break_contract), BUG_ENDS);
    const char *place = strstr(child_said, "surgr1: error E-BG-01: "),
               *rest = strstr(child_said, ": expected the program");
    EXPECT(place && rest && strstr(child_said, "test_base.c:"));
    EXPECT(
        rest &&
        !strcmp(
            rest,
            ": expected the program to keep its own contracts; found matmul: y [2, 3]\\x0A; do: report this line and "
            "the command, it is a bug in surgr1\n"));
    EXPECT_INT(child_ends(wrong_format), BUG_ENDS);
    EXPECT_INT(child_ends(wrong_code), BUG_ENDS);
    EXPECT_INT(child_ends(no_error), BUG_ENDS);
}

TEST(memory_that_must_be_there_is_there_or_the_program_ends) {
    EXPECT_INT(child_ends(too_many), EXIT_MEMORY);
    EXPECT(
        strstr(child_said,
               "surgr1: error E-ME-01: surgr1: expected memory for a matrix (9223372036854775807 x 4 bytes); found no "
               "more; do: close other programs, or use a machine with more memory\n") != NULL);
    EXPECT_INT(child_ends(too_much_growth), EXIT_MEMORY);
    EXPECT_INT(child_ends(too_much), EXIT_MEMORY);
    EXPECT(strstr(child_said, "memory for a list (70368744177664 x 1 bytes)") != NULL);
    uint8_t *p = alloc_or_die(1000, 3, "bytes"), sum = 0;
    for (int i = 0; i < 3000; i++) sum |= p[i];
    EXPECT_INT(sum, 0);
    p[2999] = 7, p = grow_or_die(p, 5000, 1, "bytes");
    EXPECT_INT(p[2999], 7);
    free(p), free(alloc_or_die(0, 8, "nothing")), free(grow_or_die(NULL, 0, 0, "nothing"));
}

// ----------------------------------------------------------------------------------------------------------- trace

typedef struct TracedRun { // a small run of three ops to be traced
    const char *path, *where;
    int64_t rows, ops;
    float nudge, poison;
} TracedRun;

static bool traced_run(TracedRun r) {
    const Ops *d = ops_ref();
    float x[100 * 60], y[100 * 60], z[100 * 60];
    for (int i = 0; i < 100 * 60; i++) x[i] = (float)sin(i), y[i] = z[i] = 0;
    Mat mx = mat(x, r.rows, 60, F32), my = mat(y, r.rows, 60, F32), mz = mat(z, r.rows, 60, F32);
    Err e = {0};
    trace_start(r.path, "three \"ops\"");
    trace_where("text.layer.0");
    copy(d, my, mx);
    trace_where(r.where);
    y[0] += r.nudge, y[1] += r.poison;
    if (r.ops > 1) add(d, mz, mx, my);
    if (r.ops > 2) add(d, my, mz, mz);
    bool ok = trace_finish(&e);
    if (!ok) FAIL("%s", line_of(&e));
    copy(d, mz, mx); // behind the end: not in the file
    return ok;
}

static const char *trace_path(int k) {
    static char path[2][64];
    snprintf(path[k], sizeof path[k], "/tmp/surgr1-trace-%ld-%d", (long)getpid(), k);
    return path[k];
}

typedef struct Diff {
    double limit;
    bool same, ok;
    Err e;
} Diff;
static void diff(void *ctx) {
    Diff *d = ctx;
    d->e = (Err){0}, d->ok = trace_diff(trace_path(0), trace_path(1), d->limit, &d->same, &d->e);
}

// The report on run b against the usual run, which must begin as wanted; "same" when they agree.
static void expect_report(TracedRun b, double limit, bool same, const char *want) {
    b.path = trace_path(1);
    if (!traced_run((TracedRun){.path = trace_path(0), .where = "text.layer.1", .rows = 3, .ops = 3}) || !traced_run(b))
        return;
    Diff d = {.limit = limit};
    const char *got = written(1, diff, &d);
    EXPECT(d.ok && d.same == same);
    if (strncmp(got, want, strlen(want))) FAIL("expected \"%s\", got \"%s\"", want, got);
}

TEST(equal_traces_agree) {
    expect_report((TracedRun){.where = "text.layer.1", .rows = 3, .ops = 3}, 0, true, "all 3 ops agree within 0\n");
    expect_report((TracedRun){.where = "text.layer.1", .rows = 3, .ops = 3, .nudge = 1e-6f}, 1e-5, true,
                  "all 3 ops agree within 1e-05; largest relative L2 ");
}

TEST(the_first_op_that_differs_is_named) {
    expect_report((TracedRun){.where = "text.layer.1", .rows = 3, .ops = 3, .nudge = 0.1f}, 1e-5, false,
                  "op 1, \"text.layer.1.add\", is the first to differ: relative L2 0.00528, limit 1e-05\n  ");
    expect_report((TracedRun){.where = "text.layer.1", .rows = 3, .ops = 3, .poison = NAN}, 1e30, false,
                  "op 1, \"text.layer.1.add\", is the first to differ: relative L2 inf, limit 1e+30\n  ");
    expect_report((TracedRun){.where = "text.layer.1", .rows = 4, .ops = 3}, 1e-5, false,
                  "op 0, \"text.layer.0.copy\", has another shape\n  ");
    expect_report((TracedRun){.where = "text.layer.2", .rows = 3, .ops = 3}, 1e-5, false,
                  "op 1 is another op: \"text.layer.1.add\" and \"text.layer.2.add\"\n  ");
    char want[200];
    snprintf(want, sizeof want, "the first 2 ops agree; then %s ends, and the other goes on for 1\n", trace_path(1));
    expect_report((TracedRun){.where = "text.layer.1", .rows = 3, .ops = 2}, 1e-5, false, want);
}

TEST(a_trace_holds_a_sample_and_statistics_of_the_whole) {
    TensorFile f;
    Err e = {0};
    if (!traced_run((TracedRun){.path = trace_path(0), .where = "", .rows = 100, .ops = 2})) return;
    EXPECT(tensors_open(&f, trace_path(0), &e) && f.count == 4);
    EXPECT_STR(f.metadata.p, "{\"label\":\"three \\\"ops\\\"\"}");
    Tensor *kept = tensors_find(&f, "000000.text.layer.0.copy"),
           *stats = tensors_find(&f, "000000.text.layer.0.copy.stats");
    EXPECT(tensors_find(&f, "000001.add") != NULL);
    EXPECT(kept && kept->elements == 4096 && stats && stats->type == FT_F64 && stats->elements == 5);
    float sample[4096];
    double s[5], squares = 0, largest = 0;
    tensor_to_f32(kept, 0, 4096, sample), memcpy(s, stats->data, sizeof s);
    for (int k = 0; k < 4096; k++)
        if (sample[k] != (float)sin(k * 6000 / 4096)) FAIL("element %d", k);
    for (int i = 0; i < 6000; i++) {
        double v = (double)(float)sin(i);
        squares += v * v, largest = fmax(largest, fabs(v));
    }
    EXPECT(s[0] == 100 && s[1] == 60 && s[3] == largest && s[4] == 0);
    EXPECT_NEAR(s[2], sqrt(squares / 6000), 1e-12);
    tensors_close(&f);
}

TEST(what_is_no_trace_is_refused) {
    float values[3] = {1, 2, 3};
    TensorOut other[2] = {{"a.weight", FT_F32, 1, {3}, values}, {"b.weight", FT_F32, 1, {3}, values}};
    Err e = {0};
    EXPECT(tensors_write(trace_path(0), other, 2, &e) && tensors_write(trace_path(1), other, 2, &e));
    Diff d = {0};
    EXPECT_STR(written(1, diff, &d), "");
    EXPECT(!d.ok && !d.same);
    char want[400];
    snprintf(want, sizeof want,
             "surgr1: error E-ST-10: %s: tensor \"a.weight\": expected a sampled op, F32 of at most 4096 elements, and "
             "its stats; "
             "found another tensor; do: give files written by --trace",
             trace_path(0));
    EXPECT_STR(line_of(&d.e), want);
    unlink(trace_path(1));
    written(1, diff, &d);
    EXPECT(!d.ok && !strcmp(d.e.code, "E-IO-01"));
    unlink(trace_path(0));
    EXPECT(trace_finish(&e)); // none was started
    trace_start("/nowhere/at/all", "x");
    EXPECT(!trace_finish(&e) && !strcmp(e.code, "E-WR-02"));
}

TEST(text_of_strangers_drives_no_terminal) {
    static const char text[] = "a\x1b[2J\n\xc2\x9b"
                               "31m \xc3\xa9 \x9b\x7f\t.";
    Text line = {0}, page = {0};
    text_add_clean(&line, text, sizeof text - 1, "");
    text_add_clean(&page, text, sizeof text - 1, "\n\t");
    EXPECT_STR(line.p, "a\\x1B[2J\\x0A\\xC2\\x9B31m \xc3\xa9 \\x9B\\x7F\\x09.");
    EXPECT_STR(page.p, "a\\x1B[2J\n\\xC2\\x9B31m \xc3\xa9 \\x9B\\x7F\t.");
    text_free(&line), text_free(&page);
}
