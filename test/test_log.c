// test_log.c - JSON lines with checksums and TensorBoard event files: whole records, torn ends, cuts, damage.
#include "test.h"
#include "../surgr1.h"
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

static const char *fresh_folder(void) { // of this test's own, empty at each call
    static char dir[80], command[200];
    if (!dir[0]) {
        snprintf(dir, sizeof dir, "%s/surgr1-log-XXXXXX", folder_exists("/dev/shm") ? "/dev/shm" : "/tmp");
        if (!mkdtemp(dir)) perror("mkdtemp"), exit(1);
    }
    snprintf(command, sizeof command, "rm -rf '%s' && mkdir '%s'", dir, dir);
    if (system(command)) perror("system"), exit(1);
    return dir;
}
static pid_t parent;
__attribute__((constructor)) static void remember_parent(void) { parent = getpid(); }
__attribute__((destructor)) static void remove_folder(void) {
    if (getpid() == parent) rmdir(fresh_folder());
}

static const char *in(const char *dir, const char *name) { // dir/name, in one of 8 buffers
    static char ring[8][400];
    static int turn;
    char *p = ring[turn++ % 8];
    snprintf(p, sizeof ring[0], "%s/%s", dir, name);
    return p;
}
typedef struct Bytes {
    char *p;
    size_t n;
} Bytes;
static Bytes get(const char *path) {
    Bytes b = {0};
    Err e = {0};
    if (!file_read(path, 1 << 28, "E-JS-01", &b.p, &b.n, &e)) FAIL("%s: %s", path, e.code);
    return b;
}
static void put(const char *path, const void *data, size_t n) {
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, n, f) != n || fclose(f)) perror(path), exit(1);
}
static const char *line_of(const Err *e) {
    static char line[4096];
    return err_line(e, "error", line, sizeof line);
}
static void write_steps(Log *l, int from, int to) {
    for (int i = from; i < to; i++) {
        Err e = {0};
        char members[100];
        snprintf(members, sizeof members, "\"ev\":\"step\",\"step\":%d,\"loss\":%.3f", i, 10.0 / (1 + i));
        if (!log_write(l, members, &e)) FAIL("%s", line_of(&e));
    }
}
static int null_stderr(void) { // warnings that are meant to come; returns the old descriptor
    fflush(stderr);
    int old = dup(2), null = open("/dev/null", O_WRONLY);
    dup2(null, 2), close(null);
    return old;
}
static void old_stderr(int old) { fflush(stderr), dup2(old, 2), close(old); }

// --------------------------------------------------------------------------------------------------------- CRC-32C

TEST(crc32c_is_castagnolis) { // the vectors of RFC 3720, appendix B.4, and the usual one
    uint8_t b[32];
    EXPECT_INT(crc32c(0, "123456789", 9), 0xE3069283);
    memset(b, 0, 32);
    EXPECT_INT(crc32c(0, b, 32), 0x8A9136AA);
    memset(b, 255, 32);
    EXPECT_INT(crc32c(0, b, 32), 0x62A8AB43);
    for (int i = 0; i < 32; i++) b[i] = (uint8_t)i;
    EXPECT_INT(crc32c(0, b, 32), 0x46DD794E);
    EXPECT_INT(crc32c(0, b, 0), 0);
    for (size_t cut = 0; cut <= 32; cut++) EXPECT_INT(crc32c(crc32c(0, b, cut), b + cut, 32 - cut), 0x46DD794E);
}

// -------------------------------------------------------------------------------------------------------- JSON lines

TEST(a_line_holds_its_checksum_and_its_number) {
    const char *path = in(fresh_folder(), "run.jsonl");
    Log l;
    Err e = {0};
    EXPECT(log_open(&l, path, -1, &e) && log_write(&l, "\"ev\":\"start\"", &e) && log_write(&l, "", &e));
    EXPECT_INT(l.seq, 2);
    log_close(&l);
    Bytes b = get(path);
    char want[200], body[] = "\"seq\":0,\"ev\":\"start\"}", second[] = "\"seq\":1}";
    snprintf(want, sizeof want, "{\"crc\":\"%08x\",%s\n{\"crc\":\"%08x\",%s\n", crc32c(0, body, strlen(body)), body,
             crc32c(0, second, strlen(second)), second);
    EXPECT_STR(b.p, want);
    EXPECT_INT(l.bytes, b.n);
    free(b.p);
}

TEST(a_log_goes_on_where_it_ended) {
    const char *dir = fresh_folder(), *one = in(dir, "one"), *two = in(dir, "two");
    Log l;
    Err e = {0};
    EXPECT(log_open(&l, one, -1, &e));
    write_steps(&l, 0, 20), log_close(&l);
    for (int i = 0; i < 20; i += 5) {
        EXPECT(log_open(&l, two, -1, &e));
        write_steps(&l, i, i + 5), log_close(&l);
    }
    Bytes a = get(one), b = get(two);
    EXPECT(a.n == b.n && !memcmp(a.p, b.p, a.n));
    free(a.p), free(b.p);
}

TEST(a_log_torn_at_any_byte_loses_only_the_torn_line) {
    const char *dir = fresh_folder(), *whole = in(dir, "whole"), *torn = in(dir, "torn");
    Log l;
    Err e = {0};
    EXPECT(log_open(&l, whole, -1, &e));
    write_steps(&l, 0, 12), log_close(&l);
    Bytes all = get(whole);
    int old = null_stderr();
    for (size_t n = 0; n <= all.n; n++)
        for (int zeros = 0; zeros < 2; zeros++) { // cut off, or filled with zeros as a power cut leaves it
            Bytes b = {malloc(all.n), zeros ? all.n : n};
            memset(b.p, 0, all.n), memcpy(b.p, all.p, n);
            put(torn, b.p, b.n), free(b.p);
            int64_t lines = 0, seen;
            bool is_torn = false;
            size_t end = 0;
            for (size_t i = 0; i < n; i++)
                if (all.p[i] == '\n') lines++, end = i + 1;
            e = (Err){0};
            EXPECT(log_check(torn, &seen, &is_torn, &e));
            EXPECT_INT(seen, lines);
            EXPECT_INT(is_torn, (zeros ? all.n : n) > end);
            EXPECT(log_open(&l, torn, -1, &e));
            EXPECT_INT(l.seq, lines);
            EXPECT_INT(l.bytes, end);
            write_steps(&l, (int)lines, 12), log_close(&l);
            b = get(torn);
            EXPECT(b.n == all.n && !memcmp(b.p, all.p, b.n));
            free(b.p);
        }
    old_stderr(old);
    EXPECT(warn_count("E-CK-07") > 1000);
    free(all.p);
}

TEST(a_flipped_byte_in_the_middle_is_refused_and_named) {
    const char *dir = fresh_folder(), *path = in(dir, "log");
    Log l;
    Err e = {0};
    EXPECT(log_open(&l, path, -1, &e));
    write_steps(&l, 0, 6), log_close(&l);
    Bytes all = get(path);
    int old = null_stderr();
    int64_t line = 1, lines;
    bool torn;
    for (size_t i = 0; i < all.n; i++) {
        for (int bit = 0; bit < 8; bit += 3) {
            all.p[i] ^= (char)(1 << bit), put(path, all.p, all.n), all.p[i] ^= (char)(1 << bit);
            e = (Err){0};
            if (line < 6 && !(line == 5 && all.p[i] == '\n')) { // a lost newline joins the line with the next
                EXPECT(!log_check(path, &lines, &torn, &e));
                EXPECT_STR(e.code, "E-CK-02");
                EXPECT_INT(e.line, line);
                e = (Err){0};
                EXPECT(!log_open(&l, path, -1, &e) && l.fd < 0);
                EXPECT_STR(e.code, "E-CK-02");
            } else { // the last line: no good one behind it, so it counts as torn
                EXPECT(log_check(path, &lines, &torn, &e) && torn);
                EXPECT_INT(lines, line - 1);
            }
            e = (Err){0}; // cut where a checkpoint says, everything before must be whole
            EXPECT(!log_open(&l, path, (int64_t)all.n, &e));
            EXPECT_STR(e.code, "E-CK-02");
        }
        line += all.p[i] == '\n';
    }
    old_stderr(old);
    free(all.p);
}

TEST(lines_that_are_missing_twice_or_changed_round_are_damage) {
    const char *dir = fresh_folder(), *path = in(dir, "log");
    Log l;
    Err e = {0};
    int64_t lines;
    bool torn;
    EXPECT(log_open(&l, path, -1, &e));
    write_steps(&l, 0, 3), log_close(&l);
    Bytes b = get(path);
    char *second = strchr(b.p, '\n') + 1, *third = strchr(second, '\n') + 1;
    size_t n = (size_t)(second - b.p), m = (size_t)(third - second), k = b.n - n - m;
    char mixed[1000];
    memcpy(mixed, b.p, n), memcpy(mixed + n, third, k), put(path, mixed, n + k); // 0 2
    EXPECT(!log_check(path, &lines, &torn, &e) && e.line == 2);
    e = (Err){0};
    memcpy(mixed + n, b.p, n), put(path, mixed, 2 * n); // 0 0
    EXPECT(!log_check(path, &lines, &torn, &e) && e.line == 2);
    e = (Err){0};
    put(path, second, m + k); // 1 2
    EXPECT(!log_check(path, &lines, &torn, &e) && e.line == 1);
    free(b.p);
}

TEST(a_resume_cuts_the_log_where_the_checkpoint_says) {
    const char *dir = fresh_folder(), *path = in(dir, "log");
    Log l;
    Err e = {0};
    EXPECT(log_open(&l, path, 0, &e));
    write_steps(&l, 0, 4);
    int64_t keep = l.bytes;
    write_steps(&l, 4, 9), log_close(&l);
    Bytes b = get(path);
    int old = null_stderr();
    EXPECT(log_open(&l, path, keep, &e));
    old_stderr(old);
    EXPECT_INT(l.seq, 4);
    EXPECT_INT(l.bytes, keep);
    write_steps(&l, 4, 9), log_close(&l);
    Bytes again = get(path);
    EXPECT(again.n == b.n && !memcmp(again.p, b.p, b.n));
    for (int64_t wrong = keep - 1; wrong <= keep + 1; wrong += 2) { // inside a line
        e = (Err){0};
        EXPECT(!log_open(&l, path, wrong, &e));
        EXPECT_STR(e.code, "E-CK-02");
    }
    e = (Err){0};
    EXPECT(!log_open(&l, path, (int64_t)b.n + 1, &e)); // shorter than the checkpoint says
    EXPECT_STR(e.code, "E-CK-02");
    old = null_stderr(), e = (Err){0};
    EXPECT(log_open(&l, path, 0, &e) && l.bytes == 0 && l.seq == 0);
    old_stderr(old), log_close(&l), free(b.p), free(again.p);
}

TEST(long_texts_are_cut_with_a_mark_and_long_lines_are_read) {
    const char *path = in(fresh_folder(), "log");
    static char text[20000];
    Text t = {0};
    Log l;
    Err e = {0};
    for (size_t i = 0; i + 1 < sizeof text; i++) text[i] = i % 2 ? '\xa9' : '\xc3'; // 2-byte letters
    log_add_text(&t, text, 100);
    EXPECT_INT(t.len, 102);
    text_free(&t);
    log_add_text(&t, text + 0, (size_t)LIMIT_LOG_TEXT_BYTES);
    EXPECT_INT(t.len, LIMIT_LOG_TEXT_BYTES + 2);
    text_free(&t);
    log_add_text(&t, text, (size_t)LIMIT_LOG_TEXT_BYTES + 1);
    EXPECT(strstr(t.p, "[... 1 bytes more]\"") != NULL && utf8_valid(t.p, t.len, NULL));
    text_free(&t);
    memset(text, 1, sizeof text); // six bytes each in JSON
    log_add_text(&t, text, sizeof text);
    Text members = {0};
    text_addf(&members, "\"text\":"), text_add(&members, t.p, t.len);
    EXPECT((int64_t)members.len > 6 * LIMIT_LOG_TEXT_BYTES);
    EXPECT(log_open(&l, path, -1, &e));
    for (int i = 0; i < 50; i++) EXPECT(log_write(&l, members.p, &e)); // more than the reader's buffer holds
    log_close(&l);
    int64_t lines = 0;
    bool torn = true;
    EXPECT(log_check(path, &lines, &torn, &e) && !torn);
    EXPECT_INT(lines, 50);
    Bytes b = get(path); // without newlines all of it is one endless line
    for (size_t i = 0; i < b.n; i++)
        if (b.p[i] == '\n' && i + 1 < b.n) b.p[i] = ' ';
    put(path, b.p, b.n), free(b.p);
    EXPECT(log_check(path, &lines, &torn, &e) && torn && lines == 0);
    text_free(&t), text_free(&members);
}

TEST(a_full_disk_leaves_no_half_line) {
    const char *path = in(fresh_folder(), "log");
    struct rlimit old, tiny;
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old);
    Log l;
    Err e = {0};
    EXPECT(log_open(&l, path, -1, &e));
    write_steps(&l, 0, 3);
    int64_t bytes = l.bytes;
    tiny = old, tiny.rlim_cur = (rlim_t)bytes + 10; // room for a part of the next line
    setrlimit(RLIMIT_FSIZE, &tiny);
    EXPECT(!log_write(&l, "\"ev\":\"step\",\"step\":3", &e));
    EXPECT_STR(e.code, "E-WR-01");
    EXPECT_INT(l.bytes, bytes);
    EXPECT_INT(l.seq, 3);
    struct stat s;
    EXPECT(!stat(path, &s) && s.st_size == bytes);
    setrlimit(RLIMIT_FSIZE, &old); // room again: the log goes on
    write_steps(&l, 3, 5), log_close(&l);
    int64_t lines;
    bool torn;
    e = (Err){0};
    EXPECT(log_check(path, &lines, &torn, &e) && lines == 5 && !torn);
}

TEST(what_is_no_log_is_refused_in_words) {
    const char *dir = fresh_folder();
    Log l;
    Err e = {0};
    int64_t lines;
    bool torn;
    EXPECT(!log_check(in(dir, "none"), &lines, &torn, &e) && !strcmp(e.code, "E-IO-01"));
    e = (Err){0};
    EXPECT(!log_check(dir, &lines, &torn, &e) && !strcmp(e.code, "E-IO-02"));
    e = (Err){0};
    EXPECT(!log_open(&l, dir, -1, &e) && !strcmp(e.code, "E-WR-02"));
    e = (Err){0};
    EXPECT(!log_open(&l, in(dir, "no/log"), -1, &e) && !strcmp(e.code, "E-WR-02"));
    e = (Err){0};
    EXPECT(!log_write(&l, "", &e) && !strcmp(e.code, "E-WR-02"));
    put(in(dir, "text"), "hello\nworld\n", 12), e = (Err){0};
    EXPECT(log_check(in(dir, "text"), &lines, &torn, &e) && lines == 0 && torn);
}

TEST(a_line_costs_microseconds) {
    const char *path = in(fresh_folder(), "log");
    Log l;
    Err e = {0};
    EXPECT(log_open(&l, path, -1, &e));
    const char *members =
        "\"ev\":\"step\",\"step\":123456,\"loss\":1.23456789,\"lr\":0.0001,\"norm\":0.98765,\"tokens\":"
        "2048,\"targets\":512,\"clip\":0.5,\"skipped\":0,\"epoch\":1.25,\"sample\":\"abcdefgh\"";
    double start = clock_seconds();
    for (int i = 0; i < 20000; i++) EXPECT(log_write(&l, members, &e));
    double each = (clock_seconds() - start) / 20000 * 1e6;
    printf("     log_write: %.2f us a line of %zu bytes\n", each, (size_t)l.bytes / 20000);
    EXPECT(each < 200); // a crowded machine under sanitizers; about 2 otherwise
    log_close(&l);
}

// ------------------------------------------------------------------------------------------------- TensorBoard events

static uint32_t u32(const char *p) {
    uint32_t v;
    memcpy(&v, p, 4);
    return v;
}
static const char *event_file(const char *dir) { // the only one there
    static char path[400];
    int n = 0;
    DIR *d = opendir(dir);
    for (struct dirent *f; (f = readdir(d));)
        if (strstr(f->d_name, "tfevents")) n++, snprintf(path, sizeof path, "%s/%s", dir, f->d_name);
    closedir(d);
    EXPECT_INT(n, 1);
    return path;
}
static void write_points(Events *t, int from, int to) {
    for (int i = from; i < to; i++) {
        Err e = {0};
        if (!events_scalar(t, "train/loss", i, 1.0 / (i + 1), &e)) FAIL("%s", line_of(&e));
    }
}
static int records(const char *path, size_t *end) { // counted by the framing alone
    Bytes b = get(path);
    size_t at = 0;
    int n = 0;
    while (at + 16 <= b.n) {
        uint64_t len;
        memcpy(&len, b.p + at, 8);
        uint32_t a = crc32c(0, b.p + at, 8), c = len <= b.n - at - 16 ? crc32c(0, b.p + at + 12, (size_t)len) : 0;
        if (u32(b.p + at + 8) != (a >> 15 | a << 17) + 0xA282EAD8u || len > b.n - at - 16) break;
        if (u32(b.p + at + 12 + len) != (c >> 15 | c << 17) + 0xA282EAD8u) break;
        at += 16 + (size_t)len, n++;
    }
    free(b.p), *end = at;
    return n;
}

TEST(the_first_record_and_a_scalar_are_the_known_bytes) {
    const char *dir = fresh_folder();
    Events t;
    Err e = {0};
    EXPECT(events_open(&t, dir, -1, &e));
    int64_t first = t.bytes;
    EXPECT(events_scalar(&t, "a", 300, 0.5, &e));
    events_close(&t);
    const char *name = strrchr(event_file(dir), '/') + 1;
    EXPECT(!strncmp(name, "events.out.tfevents.", 20) && strspn(name + 20, "0123456789") == 10 &&
           !strncmp(name + 30, ".surgr1", 7));
    Bytes b = get(event_file(dir));
    EXPECT_INT(b.p[0], 24);
    EXPECT_INT(first, 40);
    EXPECT(b.p[12] == 0x09 && !memcmp(b.p + 21,
                                      "\x1a\x0d"
                                      "brain.Event:2",
                                      15)); // 1: double, 3: string
    // 2: 300; 5: summary{1: value{1: "a", 2: 0.5f}}
    EXPECT(!memcmp(b.p + first + 21,
                   "\x10\xac\x02\x2a\x0a\x0a\x08\x0a\x01"
                   "a\x15\0\0\0\x3f",
                   15));
    EXPECT_INT(b.n, (size_t)first + 12 + 9 + 15 + 4);
    free(b.p);
}

TEST(events_go_on_in_the_same_file_and_are_cut_where_told) {
    const char *dir = fresh_folder();
    Events t;
    Err e = {0};
    size_t end;
    EXPECT(events_open(&t, dir, 0, &e));
    write_points(&t, 0, 10);
    int64_t keep = t.bytes;
    write_points(&t, 10, 17), events_close(&t);
    put(in(dir, "events.out.tfevents.1111111111.other"), "not ours", 8); // another program's
    put(in(dir, "events.out.tfevents.12.surgr1"), "not ours", 8);
    unlink(in(dir, "events.out.tfevents.12.surgr1")), unlink(in(dir, "events.out.tfevents.1111111111.other"));
    EXPECT_INT(records(event_file(dir), &end), 18);
    EXPECT(events_open(&t, dir, keep, &e) && t.bytes == keep);
    write_points(&t, 10, 12), events_close(&t);
    EXPECT_INT(records(event_file(dir), &end), 13);
    EXPECT(!events_open(&t, dir, keep + 1, &e));
    EXPECT_STR(e.code, "E-CK-02");
    e = (Err){0};
    EXPECT(!events_open(&t, dir, (int64_t)end + 1, &e));
    EXPECT_STR(e.code, "E-CK-02");
    e = (Err){0};
    EXPECT(events_open(&t, dir, 0, &e));
    events_close(&t);
    EXPECT_INT(records(event_file(dir), &end), 1);
}

TEST(other_programs_event_files_are_left_alone) {
    const char *dir = fresh_folder();
    Events t;
    Err e = {0};
    put(in(dir, "events.out.tfevents.1111111111.other"), "not ours", 8);
    EXPECT(events_open(&t, dir, 0, &e));
    events_close(&t);
    Bytes b = get(in(dir, "events.out.tfevents.1111111111.other"));
    EXPECT_STR(b.p, "not ours");
    free(b.p);
}

TEST(a_missing_event_file_is_begun_anew_with_a_warning) {
    const char *dir = fresh_folder();
    Events t;
    Err e = {0};
    int64_t before = warn_count("E-CK-07");
    int old = null_stderr();
    EXPECT(events_open(&t, dir, 12345, &e));
    events_close(&t);
    old_stderr(old);
    EXPECT_INT(warn_count("E-CK-07"), before + 1);
}

TEST(events_torn_at_any_byte_lose_only_the_torn_record) {
    const char *dir = fresh_folder();
    Events t;
    Err e = {0};
    size_t end;
    uint8_t rgb[12] = {255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9};
    Image im = {.rgb = rgb, .width = 2, .height = 2};
    EXPECT(events_open(&t, dir, -1, &e));
    write_points(&t, 0, 3);
    EXPECT(events_text(&t, "sample", 3, "**hello**", 9, &e) && events_image(&t, "frame", 3, &im, &e));
    write_points(&t, 3, 5), events_close(&t);
    char path[400];
    snprintf(path, sizeof path, "%s", event_file(dir));
    Bytes all = get(path);
    int n = records(path, &end), old = null_stderr();
    EXPECT_INT(n, 8);
    EXPECT_INT(end, all.n);
    for (size_t k = 0; k < all.n; k++)
        for (int zeros = 0; zeros < 2; zeros++) {
            char *torn = calloc(1, all.n);
            memcpy(torn, all.p, k), put(path, torn, zeros ? all.n : k), free(torn);
            n = records(path, &end), e = (Err){0};
            EXPECT(events_open(&t, dir, -1, &e));
            EXPECT_INT(t.bytes, end ? end : 40); // nothing left: begun again
            write_points(&t, 7, 9), events_close(&t);
            size_t now;
            EXPECT_INT(records(path, &now), (n ? n : 1) + 2);
            Bytes b = get(path);
            EXPECT_INT(b.n, now);
            EXPECT(!end || !memcmp(b.p, all.p, end));
            free(b.p);
        }
    for (size_t k = 0; k < all.n; k++) { // damage with good records behind it
        all.p[k] ^= 16, put(path, all.p, all.n), all.p[k] ^= 16, e = (Err){0};
        bool opened = events_open(&t, dir, -1, &e);
        if (k + 60 < all.n) // the last record is shorter: without it the rest counts as torn
            EXPECT(!opened && !strcmp(e.code, "E-CK-02"));
        if (opened) events_close(&t);
        e = (Err){0};
        EXPECT(!events_open(&t, dir, (int64_t)all.n, &e) && !strcmp(e.code, "E-CK-02"));
    }
    old_stderr(old), free(all.p);
}

TEST(records_have_the_same_length_in_every_run) { // so a reader that watches the file stays between records
    const char *dir = fresh_folder();
    Events t;
    Err e = {0};
    int64_t length[2];
    for (int k = 0; k < 2; k++) {
        EXPECT(events_open(&t, dir, 0, &e));
        write_points(&t, 0, 300);
        length[k] = t.bytes, events_close(&t), usleep(2000);
    }
    EXPECT_INT(length[0], length[1]);
}

// What test/reference/check_tensorboard.py reads back: SURGR1_EVENTS=DIR keeps the file.
TEST(a_file_for_tensorboard_written_in_two_sittings) {
    const char *dir = getenv("SURGR1_EVENTS") ? getenv("SURGR1_EVENTS") : fresh_folder();
    static uint8_t rgb[48 * 64 * 3];
    Image im = {.rgb = rgb, .width = 64, .height = 48};
    const char *table = "| step | answer |\n|---|---|\n| 1 | \xc3\xa9t\xc3\xa9 <b>&</b> |\n";
    Events t;
    Err e = {0};
    for (int y = 0; y < 48; y++)
        for (int x = 0; x < 64; x++) {
            uint8_t *p = rgb + (y * 64 + x) * 3;
            p[0] = (uint8_t)(4 * x), p[1] = (uint8_t)(5 * y), p[2] = (uint8_t)(x ^ y);
        }
    EXPECT(events_open(&t, dir, 0, &e));
    write_points(&t, 0, 50);
    EXPECT(events_text(&t, "samples", 50, table, strlen(table), &e));
    EXPECT(events_image(&t, "frame", 50, &im, &e));
    EXPECT(events_scalar(&t, "odd/nan", 1, NAN, &e) && events_scalar(&t, "odd/step", INT64_C(1) << 40, -1e-3, &e));
    int64_t keep = t.bytes;
    write_points(&t, 50, 77); // these are cut and come again
    events_close(&t);
    EXPECT(events_open(&t, dir, keep, &e));
    write_points(&t, 50, 100);
    EXPECT(events_text(&t, "samples", 100, "", 0, &e) && events_sync(&t, &e));
    events_close(&t);
    size_t end;
    EXPECT_INT(records(event_file(dir), &end), 1 + 100 + 5);
}
