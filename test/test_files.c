// test_files.c - reading whole files, writing them atomically, staying inside a folder, SHA-256.
#include "test.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

// A folder of this test's own, empty at each call; its path stays valid.
static const char *fresh_folder(void) {
    static char dir[64], command[200];
    if (!dir[0]) {
        snprintf(dir, sizeof dir, "/tmp/surgr1-files-XXXXXX");
        if (!mkdtemp(dir)) perror("mkdtemp"), exit(1);
    }
    snprintf(command, sizeof command, "rm -rf '%s' && mkdir '%s'", dir, dir);
    if (system(command)) perror("system"), exit(1);
    return dir;
}
__attribute__((destructor)) static void remove_folder(void) { rmdir(fresh_folder()); }

static const char *in(const char *dir, const char *name) { // dir/name, in one of 16 buffers
    static char ring[16][300];
    static int turn;
    char *p = ring[turn++ % 16];
    snprintf(p, sizeof ring[0], "%s/%s", dir, name);
    return p;
}
static void put(const char *path, const char *text) {
    FILE *f = fopen(path, "w");
    if (!f || fputs(text, f) < 0 || fclose(f)) perror(path), exit(1);
}
static int entries(const char *dir) { // of a folder, hidden ones too
    int n = 0;
    DIR *d = opendir(dir);
    for (struct dirent *f; d && (f = readdir(d));) n += strcmp(f->d_name, ".") && strcmp(f->d_name, "..");
    if (d) closedir(d);
    return n;
}
static void expect_content(const char *path, const char *want) {
    char *data = NULL;
    size_t size = 0;
    Err e = {0};
    if (!file_read(path, 1 << 20, "E-JS-01", &data, &size, &e)) FAIL("%s: %s", path, e.code);
    else if (size != strlen(want) || memcmp(data, want, size + 1)) FAIL("%s holds \"%s\"", path, data);
    free(data);
}
static const char *line_of(const Err *e) {
    static char line[4096];
    return err_line(e, "error", line, sizeof line);
}

// --------------------------------------------------------------------------------------------------------- reading

TEST(a_file_is_read_whole) {
    const char *dir = fresh_folder(), *path = in(dir, "f");
    put(path, "hello"), expect_content(path, "hello");
    put(path, ""), expect_content(path, "");
    EXPECT(file_exists(path) && !file_exists(dir) && !file_exists(in(dir, "g")));
    EXPECT(folder_exists(dir) && !folder_exists(path) && !folder_exists(in(dir, "g")));
}

TEST(what_cannot_be_read_is_refused_in_words) {
    const char *dir = fresh_folder();
    char *data = NULL, want[3000], here[1024];
    size_t size;
    Err e = {0};
    EXPECT(!file_read(in(dir, "none"), 10, "E-JS-01", &data, &size, &e) && getcwd(here, sizeof here));
    snprintf(want, sizeof want,
             "surgr1: error E-IO-01: %s/none: byte 0: expected a readable file; found \"No such file or directory\"; "
             "do: check "
             "the path (current folder: %s)",
             dir, here);
    EXPECT_STR(line_of(&e), want);

    e = (Err){0};
    EXPECT(!file_read(dir, 10, "E-JS-01", &data, &size, &e));
    snprintf(want, sizeof want,
             "surgr1: error E-IO-02: %s: byte 0: expected a regular file; found a folder; do: name a file", dir);
    EXPECT_STR(line_of(&e), want);

    EXPECT(!mkfifo(in(dir, "fifo"), 0600)); // nobody writes into it: this must not wait
    e = (Err){0};
    EXPECT(!file_read(in(dir, "fifo"), 10, "E-JS-01", &data, &size, &e));
    EXPECT_STR(e.code, "E-IO-02");
    EXPECT_STR(e.found, "a FIFO");
    e = (Err){0};
    EXPECT(!file_read("/dev/zero", 10, "E-JS-01", &data, &size, &e));
    EXPECT_STR(e.code, "E-IO-02");
    EXPECT_STR(e.found, "a device");

    put(in(dir, "f"), "12345"); // at the limit, and over it
    e = (Err){0};
    EXPECT(file_read(in(dir, "f"), 5, "E-IM-01", &data, &size, &e));
    free(data), data = NULL;
    EXPECT(!file_read(in(dir, "f"), 4, "E-IM-01", &data, &size, &e) && !data);
    snprintf(
        want, sizeof want,
        "surgr1: error E-IM-01: %s/f: byte 0: expected at most 4 bytes; found 5; do: check that this is the right file",
        dir);
    EXPECT_STR(line_of(&e), want);
}

TEST(a_path_has_a_limit) {
    char path[1200], *data = NULL;
    size_t size;
    Err e = {0};
    memset(path, '/', 1025), snprintf(path + 1015, 20, "/dev/nothing");
    path[1024] = 0;
    EXPECT(!file_read(path, 10, "E-JS-01", &data, &size, &e));
    EXPECT_STR(e.found, "\"No such file or directory\"");
    memset(path, '/', 1025), path[1025] = 0;
    e = (Err){0};
    EXPECT(!file_read(path, 10, "E-JS-01", &data, &size, &e));
    EXPECT_STR(e.code, "E-IO-01");
    EXPECT_STR(e.found, "\"File name too long\"");

    char out[1100], name[1100];
    memset(name, 'n', sizeof name), name[1022] = 0;
    e = (Err){0};
    EXPECT(path_join(out, sizeof out, "d", name, &e) && strlen(out) == 1024);
    EXPECT(!path_join(out, sizeof out, "dd", name, &e));
    EXPECT_STR(e.code, "E-IO-01");
    e = (Err){0};
    EXPECT(!path_join(out, 8, "dir", "name", &e) && path_join(out, 9, "dir", "name", (&(Err){0})));
    EXPECT_STR(out, "dir/name");
    EXPECT(path_join(out, sizeof out, "/", "x", &e));
    EXPECT_STR(out, "/x");
    static const char *const dirs[][2] = {{"a/b/c", "a/b"}, {"c", "."}, {"/c", "/"}, {"a/", "a"}};
    for (size_t i = 0; i < sizeof dirs / sizeof *dirs; i++) {
        e = (Err){0};
        EXPECT(path_dir(out, sizeof out, dirs[i][0], &e));
        EXPECT_STR(out, dirs[i][1]);
    }
}

// The kernel's own files have sizes that are not true: more bytes than said, and fewer.
TEST(a_file_whose_size_is_not_true_is_refused) {
    char *data = NULL;
    size_t size;
    Err e = {0};
    if (!file_exists("/proc/version")) SKIP("no /proc");
    EXPECT(!file_read("/proc/version", 100000, "E-JS-01", &data, &size, &e));
    EXPECT_STR(line_of(&e),
               "surgr1: error E-IO-05: /proc/version: byte 0: expected a file that stays as it is while it is read; "
               "found that it changed; do: wait until whatever writes it is done");
    const char *page = "/sys/kernel/mm/transparent_hugepage/enabled"; // 4096 bytes, it says
    struct stat s;
    if (stat(page, &s) || s.st_size != 4096) SKIP("no file under /sys that is shorter than it says");
    e = (Err){0};
    EXPECT(!file_read(page, 100000, "E-JS-01", &data, &size, &e));
    EXPECT_STR(e.code, "E-IO-03");
    EXPECT_STR(e.expected, "4096 bytes");
}

TEST(a_mapped_file_is_watched) {
    const char *dir = fresh_folder(), *path = in(dir, "f");
    FileMap m;
    Err e = {0};
    put(path, "weights");
    EXPECT(file_map(&m, path, &e) && m.size == 7 && !memcmp(m.data, "weights", 7));
    EXPECT(file_map_unchanged(&m, path, &e));
    EXPECT(file_write_atomic(path, "weights", 7, &e)); // the same bytes, but another file
    EXPECT(!file_map_unchanged(&m, path, &e));
    EXPECT_STR(e.code, "E-IO-05");
    EXPECT(!memcmp(m.data, "weights", 7));
    file_unmap(&m), file_unmap(&m);
    put(path, "");
    e = (Err){0};
    EXPECT(file_map(&m, path, &e) && m.size == 0 && file_map_unchanged(&m, path, &e));
    file_unmap(&m);
    EXPECT(!file_map(&m, in(dir, "none"), &e) && !strcmp(e.code, "E-IO-01"));
    e = (Err){0};
    EXPECT(!file_map(&m, dir, &e) && !strcmp(e.code, "E-IO-02"));
}

// -------------------------------------------------------------------------------------------------- inside a folder

TEST(a_relative_path_stays_in_its_folder) {
    const char *dir = fresh_folder();
    EXPECT(!mkdir(in(dir, "root"), 0700) && !mkdir(in(dir, "root/a"), 0700) && !mkdir(in(dir, "root/a/b"), 0700));
    put(in(dir, "secret"), "secret"), put(in(dir, "root/f"), "f"), put(in(dir, "root/a/b/g..h"), "g");
    EXPECT(!symlink("../secret", in(dir, "root/link")) && !symlink("f", in(dir, "root/inner")));
    EXPECT(!symlink("..", in(dir, "root/a/up")) && !mkfifo(in(dir, "root/fifo"), 0600));
    char root[300];
    snprintf(root, sizeof root, "%s/root", dir);
    const Where at = AT(.file = "train.jsonl", .line = 57, .field = "image");
    static const struct {
        const char *path, *code;
    } cases[] = {{"f", ""},           {"a/b/g..h", ""},           {"../secret", "E-DS-04"}, {"a/../f", "E-DS-04"},
                 {"", "E-DS-04"},     {"/etc/passwd", "E-DS-04"}, {"a//b/g..h", "E-DS-04"}, {"a/", "E-DS-04"},
                 {".", "E-DS-04"},    {"./f", "E-DS-04"},         {"..", "E-DS-04"},        {"a\\f", "E-DS-04"},
                 {"link", "E-DS-04"}, {"inner", "E-DS-04"},       {"a/up/f", "E-DS-04"},    {"none", "E-IO-01"},
                 {"f/x", "E-IO-01"},  {"none/x", "E-IO-01"},      {"a", "E-IO-02"},         {"fifo", "E-IO-02"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Err e = {0};
        int fd = open_beneath(root, cases[i].path, "E-DS-04", at, &e);
        if (strcmp(e.code, cases[i].code) || (fd >= 0) != !e.code[0]) FAIL("%s: %s", cases[i].path, e.code);
        char *data = NULL;
        size_t size;
        if (fd >= 0) {
            EXPECT(file_read_fd(fd, cases[i].path, 10, "E-IM-01", &data, &size, &e) && size == 1);
            EXPECT(close(fd) == 0);
        }
        free(data);
    }
    Err e = {0};
    open_beneath("pictures", "../../home/x.png", "E-DS-04", at, &e);
    EXPECT_STR(line_of(&e),
               "surgr1: error E-DS-04: train.jsonl:57: field \"image\": expected a path inside the folder; found "
               "\"../../home/x.png\"; do: give paths relative to pictures");
    char longest[1100];
    memset(longest, 'a', 1025), longest[1025] = 0;
    e = (Err){0};
    EXPECT(open_beneath(root, longest, "E-DS-04", at, &e) < 0 && !strcmp(e.code, "E-DS-04"));
    longest[1024] = 0; // one part of 1024 bytes: no such file can exist, but the path is not too long
    e = (Err){0};
    EXPECT(open_beneath(root, longest, "E-DS-04", at, &e) < 0 && !strcmp(e.code, "E-IO-01"));
    e = (Err){0};
    EXPECT(open_beneath(in(dir, "secret"), "f", "E-DS-04", at, &e) < 0 && !strcmp(e.code, "E-IO-01"));
}

// --------------------------------------------------------------------------------------------------------- writing

TEST(a_written_file_is_new_or_replaced) {
    const char *dir = fresh_folder(), *path = in(dir, "f");
    Err e = {0};
    EXPECT(file_write_atomic(path, "one", 3, &e));
    expect_content(path, "one");
    EXPECT(file_write_atomic(path, "three", 5, &e));
    expect_content(path, "three");
    EXPECT(file_write_atomic(path, NULL, 0, &e));
    expect_content(path, "");
    EXPECT_INT(entries(dir), 1);
    char here[1024];
    EXPECT(getcwd(here, sizeof here) && !chdir(dir)); // a name without a folder
    EXPECT(file_write_atomic("bare", "x", 1, &e));
    expect_content("bare", "x");
    EXPECT(!chdir(here));
    EXPECT_INT(entries(dir), 2);
    char name[300];
    memset(name, 'n', 255), name[255] = 0; // as long as a name can be: the temporary name must still fit
    snprintf(name, sizeof name, "%s/%0*d", dir, 255, 7);
    EXPECT(file_write_atomic(name, "long", 4, &e));
    expect_content(name, "long");
    EXPECT_INT(entries(dir), 3);
}

TEST(a_failed_write_leaves_the_old_file_and_nothing_else) {
    const char *dir = fresh_folder(), *path = in(dir, "f");
    char want[1000], *large = calloc(1, 1 << 20);
    Err e = {0};
    put(path, "old");
    struct rlimit before, small;
    EXPECT(!getrlimit(RLIMIT_FSIZE, &before));
    small = before, small.rlim_cur = 100000;
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN); // as the program does at its start
    EXPECT(!setrlimit(RLIMIT_FSIZE, &small));
    EXPECT(!file_write_atomic(path, large, 1 << 20, &e));
    FileWriter w;
    Err again = {0};
    EXPECT(file_write_begin(&w, path, &again) && file_write_bytes(&w, large, 60000, &again));
    EXPECT_INT(entries(dir), 2);
    EXPECT(!file_write_bytes(&w, large, 60000, &again));
    EXPECT(!setrlimit(RLIMIT_FSIZE, &before));
    signal(SIGXFSZ, handler);
    free(large);
    snprintf(want, sizeof want,
             "surgr1: error E-WR-01: %s: byte 100000: expected room for the file; found \"File too large\"; do: free "
             "space (or "
             "raise ulimit -f, or the quota)",
             path);
    EXPECT_STR(line_of(&e), want);
    EXPECT_STR(line_of(&again), want);
    EXPECT_INT(err_exit_code(&e), EXIT_WRITE);
    expect_content(path, "old");
    EXPECT_INT(entries(dir), 1);
}

TEST(a_target_that_is_no_file_is_refused) {
    const char *dir = fresh_folder();
    put(in(dir, "f"), "old");
    EXPECT(!symlink("f", in(dir, "link")) && !mkdir(in(dir, "sub"), 0700) && !mkfifo(in(dir, "fifo"), 0600));
    const char *const targets[] = {"link", "sub", "sub/", "fifo", "none/f", "f/x"};
    const char *const found[] = {
        "a symbolic link",    "a folder", "a folder", "a device or a pipe", "\"No such file or directory\"",
        "\"Not a directory\""};
    for (int i = 0; i < 6; i++) {
        Err e = {0};
        EXPECT(!file_write_atomic(in(dir, targets[i]), "new", 3, &e));
        EXPECT_STR(e.code, "E-WR-02");
        EXPECT_STR(e.found, found[i]);
    }
    Err e = {0};
    EXPECT(!file_write_atomic("/dev/null", "new", 3, &e)); // a rename would have replaced the device
    struct stat s;
    EXPECT(!stat("/dev/null", &s) && S_ISCHR(s.st_mode));
    EXPECT_STR(line_of(&e),
               "surgr1: error E-WR-02: /dev/null: expected the name of a new or regular file; found a device or a "
               "pipe; do: give another name");
    expect_content(in(dir, "f"), "old");
    EXPECT_INT(entries(dir), 4);
}

TEST(a_large_file_is_written_in_pieces) {
    const char *dir = fresh_folder(), *path = in(dir, "f");
    FileWriter w;
    Err e = {0};
    put(path, "old");
    EXPECT(file_write_begin(&w, path, &e));
    for (int i = 0; i < 1000; i++) EXPECT(file_write_bytes(&w, "0123456789", i % 11, &e));
    expect_content(path, "old"); // until the commit
    EXPECT_INT(entries(dir), 2);
    file_write_abort(&w), file_write_abort(&w);
    EXPECT_INT(entries(dir), 1);
    expect_content(path, "old");
    EXPECT(file_write_begin(&w, path, &e) && file_write_bytes(&w, "ab", 2, &e) && file_write_bytes(&w, "", 0, &e) &&
           file_write_bytes(&w, "c", 1, &e) && file_write_commit(&w, &e));
    EXPECT_INT(w.written, 3);
    EXPECT_INT(w.fd, -1);
    expect_content(path, "abc");
    EXPECT_INT(entries(dir), 1);
    struct stat s;
    EXPECT(!stat(path, &s) && (s.st_mode & 0777 & ~0644) == 0 && (s.st_mode & 0600) == 0600);
}

TEST(names_left_by_a_crash_do_not_stop_a_write) {
    const char *dir = fresh_folder(), *path = in(dir, "f");
    FileWriter w;
    Err e = {0};
    EXPECT(file_write_begin(&w, path, &e)); // learn where the counter stands
    int count = (int)strtol(strrchr(w.tmp, '-') + 1, NULL, 10);
    file_write_abort(&w);
    for (int i = 1; i <= 5; i++) {
        char stale[100];
        snprintf(stale, sizeof stale, ".tmp-f-%ld-%d", (long)getpid(), count + i);
        put(in(dir, stale), "stale");
    }
    EXPECT(file_write_atomic(path, "new", 3, &e));
    expect_content(path, "new");
    EXPECT_INT(entries(dir), 6); // they are somebody else's to remove
}

// --------------------------------------------------------------------------------------------------------- SHA-256

static void expect_sha(const void *data, size_t size, const char *want) {
    char hex[65];
    sha256_hex(data, size, hex);
    EXPECT_STR(hex, want);
}

TEST(sha256_gives_the_published_values) {
    // NIST, "Examples with intermediate values", and the long message of the SHS validation suite.
    expect_sha(NULL, 0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    expect_sha("abc", 3, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    expect_sha("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 56,
               "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    char *million = malloc(1000000);
    memset(million, 'a', 1000000);
    expect_sha(million, 1000000, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    free(million);
}

TEST(sha256_pads_every_length) {
    // The digests of 00 01 02 ... of length 0 to 200, one behind the other, digested again: computed with Python's hashlib.
    Text all = {0};
    char hex[65];
    uint8_t bytes[200];
    for (int i = 0; i < 200; i++) bytes[i] = (uint8_t)i;
    for (size_t n = 0; n <= 200; n++) sha256_hex(bytes, n, hex), text_add(&all, hex, 64);
    expect_sha(all.p, all.len, "b367ea311264aae50e6260b96a10761169ce3eec5d5f8f2258351f82c7252776");
    text_free(&all);
}
