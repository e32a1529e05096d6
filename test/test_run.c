// test_run.c - run folders and checkpoints: damage is found, kills at any instant survived, a resume repeats the run.
//
// Most tests use a small stand-in for a trainer (`train` below): it logs, writes TensorBoard points and checkpoints,
// and its numbers depend on all steps before, so that a wrong resume shows.
#define _GNU_SOURCE // memmem
#include "test.h"
#include "../surgr1.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

static const char *base_folder(void) {
    static char dir[80];
    if (!dir[0]) {
        snprintf(dir, sizeof dir, "%s/surgr1-run-XXXXXX", folder_exists("/dev/shm") ? "/dev/shm" : "/tmp");
        if (!mkdtemp(dir)) perror("mkdtemp"), exit(1);
    }
    return dir;
}
static void shell(const char *fmt, ...) {
    char command[1000];
    va_list args;
    va_start(args, fmt);
    vsnprintf(command, sizeof command, fmt, args);
    va_end(args);
    if (system(command)) fprintf(stderr, "failed: %s\n", command), exit(1);
}
static const char *fresh(const char *name) { // BASE/name, emptied; the same pointer for the same name
    static char paths[32][200];
    char path[200];
    int i = 0;
    snprintf(path, sizeof path, "%s/%s", base_folder(), name);
    while (paths[i][0] && strcmp(paths[i], path)) i++;
    memcpy(paths[i], path, sizeof path);
    shell("rm -rf '%s'", path);
    return paths[i];
}
static const char *in(const char *dir, const char *name) {
    static char ring[16][1200];
    static int turn;
    char *p = ring[turn++ % 16];
    Err e = {0};
    if (!path_join(p, sizeof ring[0], dir, name, &e)) exit(1);
    return p;
}
static pid_t parent;
__attribute__((destructor)) static void remove_base(void) {
    if (getpid() == parent) shell("rm -rf '%s'", base_folder());
}

typedef struct Bytes {
    char *p;
    size_t n;
} Bytes;
static Bytes get(const char *path) {
    Bytes b = {0};
    Err e = {0};
    if (!file_read(path, 1 << 28, "E-JS-01", &b.p, &b.n, &e)) {
        FAIL("%s: %s", path, e.code);
        b.p = calloc(1, 1);
    }
    return b;
}
static void put(const char *path, const void *data, size_t n) {
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, n, f) != n || fclose(f)) perror(path), exit(1);
}
static void put_text(const char *path, const char *text) { put(path, text, strlen(text)); }
static const char *line_of(const Err *e) {
    static char line[4096];
    return err_line(e, "error", line, sizeof line);
}
static void expect_code(const Err *e, const char *code) {
    if (strcmp(e->code, code)) FAIL("expected %s, got %s", code, e->code[0] ? line_of(e) : "no error");
}
static int entries(const char *dir, const char *prefix) { // whose names begin so
    int n = 0;
    DIR *d = opendir(dir);
    for (struct dirent *f; d && (f = readdir(d));)
        n += strcmp(f->d_name, ".") && strcmp(f->d_name, "..") && !strncmp(f->d_name, prefix, strlen(prefix));
    if (d) closedir(d);
    return n;
}
static int quiet(int fd) { // to /dev/null: returns what restores it
    fflush(fd == 2 ? stderr : stdout);
    int old = dup(fd), null = open("/dev/null", O_WRONLY);
    dup2(null, fd), close(null);
    return old;
}
static void loud(int fd, int old) { fflush(fd == 2 ? stderr : stdout), dup2(old, fd), close(old); }

// ------------------------------------------------------------------------------------------- a stand-in for a trainer

#define CONFIG "{\"options\":{\"lr\":0.001,\"seed\":7,\"out\":\"x\"},\"origins\":{\"lr\":\"default\"}}"
static const char *const free_members[] = {"out", "origins", NULL};
enum { WEIGHTS = 500, SAVE_EVERY = 3 };

static bool save(Run *r, int64_t step, const float *w, Err *e) {
    char dir[1400], state[100];
    bool enough;
    if (!checkpoint_begin(r, step, 4 * WEIGHTS, dir, sizeof dir, &enough, e)) return false;
    if (!enough) return true;
    TensorOut t[2] = {{.name = "w", .type = FT_F32, .dims = 1, .shape = {WEIGHTS}, .data = w},
                      {.name = "norm", .type = FT_F32, .dims = 2, .shape = {2, 2}, .data = w}};
    snprintf(state, sizeof state, "{\"step\":%lld}", (long long)step);
    if (!tensors_write(in(dir, "optimizer.safetensors"), t, 2, e)) return checkpoint_abort(r, dir), false;
    return checkpoint_commit(r, step, dir, state, e) && checkpoint_rotate(r, 3, 12, -1, e);
}

static bool load(const Checkpoint *c, float *w, Err *e) {
    TensorFile f;
    if (!tensors_open(&f, in(c->dir, "optimizer.safetensors"), e)) return false;
    tensor_to_f32(tensors_find(&f, "w"), 0, WEIGHTS, w);
    tensors_close(&f);
    int64_t step;
    return json_int(&c->state, c->state.root, "step", true, c->step, c->step, &step, e);
}

// Trains in `dir` up to `last` steps, from wherever it is.
static bool train(const char *dir, int64_t last, Err *e) {
    float w[WEIGHTS] = {0};
    char members[200];
    Run r;
    Checkpoint c = {.step = -1};
    bool ok = run_open(&r, dir, e) && run_config(&r, CONFIG, free_members, NULL, e) && run_newest(&r, &c, e) &&
              run_logs_open(&r, &c, e) && (c.step < 0 || load(&c, w, e));
    for (int64_t step = c.step < 0 ? 1 : c.step + 1; ok && step <= last; step++) {
        double loss = 0;
        for (int i = 0; i < WEIGHTS; i++) {
            w[i] = 0.9f * w[i] + (float)random_uniform(7, RANDOM_TEST, (uint64_t)step, (uint32_t)i);
            loss += (double)w[i] * w[i];
        }
        snprintf(members, sizeof members, "\"ev\":\"step\",\"step\":%lld,\"loss\":%.17g", (long long)step, loss);
        ok = log_write(&r.log, members, e) && events_scalar(&r.events, "loss", step, loss, e);
        snprintf(members, sizeof members, "\"ev\":\"time\",\"step\":%lld,\"s\":%.17g", (long long)step,
                 clock_seconds());
        ok = ok && log_write(&r.timing, members, e) && events_scalar(&r.events, "seconds", step, clock_seconds(), e);
        if (ok && (step % SAVE_EVERY == 0 || step == last)) ok = save(&r, step, w, e);
    }
    char path[600];
    snprintf(path, sizeof path, "%s/export", dir);
    if (ok && mkdir(path, 0755) && errno != EEXIST) ok = err_set(e, "E-WR-02", AT(0), "expected x; found y; do: z");
    ok = ok && file_write_atomic(in(path, "weights.bin"), w, sizeof w, e);
    checkpoint_free(&c), run_close(&r);
    return ok;
}
static void train_or_fail(const char *dir, int64_t last) {
    Err e = {0};
    if (!train(dir, last, &e)) FAIL("%s", line_of(&e));
}

// "SURGR1_RUN_CHILD=DIR:STEPS test_run" is such a trainer: what strace is let loose on.
__attribute__((constructor)) static void be_the_child(void) {
    const char *job = getenv("SURGR1_RUN_CHILD");
    parent = getpid();
    signal(SIGXFSZ, SIG_IGN);
    log_setup(LOG_QUIET, false); // no notes; warnings come all the same
    if (!job) return;
    char dir[300];
    Err e = {0};
    snprintf(dir, sizeof dir, "%.*s", (int)strcspn(job, ":"), job);
    bool ok = train(dir, atoi(strchr(job, ':') + 1), &e);
    if (!ok) fprintf(stderr, "%s\n", line_of(&e));
    _exit(ok ? 0 : err_exit_code(&e));
}

static const char *compared(const char *a, const char *b, bool *same) { // what it prints
    static char text[2000];
    const char *path = in(base_folder(), "printed");
    Err e = {0};
    fflush(stdout);
    int old = dup(1), to = open(path, O_CREAT | O_TRUNC | O_WRONLY, 0644);
    dup2(to, 1), close(to);
    if (!run_compare(a, b, same, &e)) FAIL("%s", line_of(&e));
    loud(1, old);
    Bytes got = get(path);
    snprintf(text, sizeof text, "%s", got.p);
    free(got.p);
    return text;
}
static bool equal_runs(const char *a, const char *b) {
    bool same = false;
    const char *text = compared(a, b, &same);
    if (!same) FAIL("%s and %s: %s", a, b, text);
    return same;
}
// TensorBoard points without their times: length, step and tag of each record; values too where they repeat.
static uint32_t points(const char *dir, int *n) {
    char path[600] = "";
    uint32_t sum = 0;
    DIR *d = opendir(in(dir, "tensorboard"));
    for (struct dirent *f; d && (f = readdir(d));)
        if (strstr(f->d_name, "tfevents")) snprintf(path, sizeof path, "%s/tensorboard/%s", dir, f->d_name);
    if (d) closedir(d);
    Bytes b = get(path);
    *n = 0;
    for (size_t at = 0; at + 16 <= b.n; ++*n) {
        uint64_t len;
        memcpy(&len, b.p + at, 8);
        if (len > b.n - at - 16 || len < 9) {
            FAIL("a broken record at %zu of %s", at, path);
            break;
        } else {
            bool timed = len > 20 && memmem(b.p + at + 12, (size_t)len, "seconds", 7);
            sum = crc32c(sum, b.p + at + 12 + 9, (size_t)len - 9 - (timed ? 4 : 0)), at += 16 + (size_t)len;
        }
    }
    free(b.p);
    return sum;
}

static void expect_equal(const char *a, const char *b) {
    int n, m;
    EXPECT(equal_runs(a, b));
    uint32_t p = points(a, &n), q = points(b, &m);
    EXPECT_INT(n, m);
    EXPECT(p == q);
}

// ---------------------------------------------------------------------------------------------------------- the folder

TEST(a_run_leaves_what_it_says) {
    const char *dir = fresh("deep/er/run");
    train_or_fail(dir, 4);
    EXPECT(file_exists(in(dir, "LOCK")) && file_exists(in(dir, "config.json")) && file_exists(in(dir, "run.jsonl")));
    EXPECT(file_exists(in(dir, "ckpt/step-000000003/MANIFEST.json")));
    Bytes b = get(in(dir, "ckpt/LATEST"));
    EXPECT_STR(b.p, "step-000000004\n");
    free(b.p);
    Run r;
    Checkpoint c;
    Err e = {0};
    EXPECT(run_open(&r, dir, &e) && run_newest(&r, &c, &e));
    EXPECT_INT(c.step, 4);
    struct stat s;
    EXPECT(!stat(in(dir, "run.jsonl"), &s) && s.st_size == c.log_bytes && c.timing_bytes > 0 && c.events_bytes > 0);
    EXPECT(json_get(c.state.root, "step")->i == 4);
    b = get(in(dir, "ckpt/step-000000004/MANIFEST.json"));
    const char *names[] = {"optimizer.safetensors", "state.json"};
    char *at = b.p;
    for (int i = 0; i < 2; i++) EXPECT((at = strstr(at, names[i])) != NULL);
    EXPECT(!strstr(b.p, "local.json"));
    free(b.p), checkpoint_free(&c), run_close(&r);
    EXPECT(r.lock == -1);
    Run never = {0};
    run_close(&never); // must not close descriptor 0
    EXPECT(fcntl(0, F_GETFD) != -1 || errno == EBADF);
}

TEST(a_second_process_is_refused_and_told_who_holds_the_folder) {
    const char *dir = fresh("run");
    int ready[2];
    char byte, pid[40];
    EXPECT(!pipe(ready));
    pid_t child = fork();
    if (!child) {
        Run r;
        Err e = {0};
        bool ok = run_open(&r, dir, &e);
        ok = write(ready[1], &ok, 1) == 1;
        pause();
        _exit(!ok);
    }
    EXPECT(read(ready[0], &byte, 1) == 1 && byte == 1);
    Run r;
    Err e = {0};
    EXPECT(!run_open(&r, dir, &e));
    expect_code(&e, "E-LK-01");
    EXPECT_INT(err_exit_code(&e), EXIT_LOCKED);
    char host[100] = "";
    gethostname(host, sizeof host - 1);
    snprintf(pid, sizeof pid, "pid %d, host %.10s", (int)child, host);
    EXPECT(strstr(e.found, pid) != NULL);
    kill(child, SIGKILL), waitpid(child, NULL, 0);
    e = (Err){0};
    EXPECT(run_open(&r, dir, &e)); // a lock dies with its process
    Run again;
    EXPECT(!run_open(&again, dir, &e));
    run_close(&r), e = (Err){0};
    EXPECT(run_open(&again, dir, &e));
    run_close(&again), close(ready[0]), close(ready[1]);
}

TEST(what_a_killed_process_left_is_swept_away_and_nothing_else) {
    const char *dir = fresh("run");
    train_or_fail(dir, 3);
    shell("mkdir -p '%s/ckpt/.tmp-step-000000009-1/a/b' '%s/ckpt/.trash-x' '%s/export/.tmp-y' '%s/.tmp-mine' "
          "'%s/.tmp-export/a' && "
          "touch '%s/ckpt/.tmp-LATEST-1-2' '%s/ckpt/.trash-x/f' '%s/.tmp-config.json-1-2' '%s/ckpt/notes' && "
          "ln -s '%s' '%s/ckpt/.tmp-link'",
          dir, dir, dir, dir, dir, dir, dir, dir, dir, dir, dir);
    Run r;
    Err e = {0};
    EXPECT(run_open(&r, dir, &e));
    run_close(&r);
    EXPECT_INT(entries(in(dir, "ckpt"), "."), 0);
    EXPECT_INT(entries(in(dir, "export"), "."), 0);
    EXPECT(file_exists(in(dir, "ckpt/notes")) && folder_exists(in(dir, ".tmp-mine")) && file_exists(in(dir, "LOCK")));
    EXPECT(!file_exists(in(dir, ".tmp-config.json-1-2")) && !folder_exists(in(dir, ".tmp-export")));
    EXPECT(checkpoint_verify(in(dir, "ckpt/step-000000003"), &e));
}

// -------------------------------------------------------------------------------------------------------------- config

static const char *config_error(const char *dir, const char *json, const char *const *anyway, char id[65]) {
    static Err e;
    Run r;
    e = (Err){0};
    if (run_open(&r, dir, &e) && run_config(&r, json, free_members, anyway, &e)) memcpy(id, r.id, 65);
    run_close(&r);
    return e.code[0] ? line_of(&e) : "";
}

TEST(a_resume_with_another_configuration_names_what_differs) {
    const char *dir = fresh("run"), *other = fresh("other");
    const char *const lr[] = {"options.lr", NULL};
    char id[65], same[65], found[2000];
    EXPECT_STR(config_error(dir, CONFIG, NULL, id), "");
    EXPECT_STR(config_error(dir, CONFIG, NULL, same), "");
    EXPECT_STR(id, same);
    const char *moved = "{\"origins\":{\"lr\":\"file\"},\"options\":{\"out\":\"elsewhere\",\"seed\":7,\"lr\":1e-3}}";
    EXPECT_STR(config_error(dir, moved, NULL, same), ""); // free members, order, spelling of a number: no difference
    EXPECT_STR(id, same);
    EXPECT_STR(config_error(other, "{\"options\":{\"lr\":1e-3,\"seed\":7,\"out\":\"y\"},\"origins\":{}}", NULL, same),
               "");
    EXPECT_STR(id, same); // the folder's name must not change what a manifest says
    const char *changed = "{\"options\":{\"lr\":0.002,\"seed\":7,\"out\":\"x\",\"new\":true},\"origins\":{}}";
    snprintf(found, sizeof found, "%s", config_error(dir, changed, NULL, same));
    EXPECT(strstr(found, "E-CK-05") && strstr(found, "options.lr") && strstr(found, "was 0.001 and is 0.002") &&
           strstr(found, "options.new") && strstr(found, "was nothing and is true"));
    EXPECT(!strstr(found, "origins") && !strstr(found, "out"));
    EXPECT(strstr(config_error(dir, changed, lr, same), "options.new") != NULL);
    EXPECT_STR(config_error(dir, "{\"options\":{\"lr\":5,\"seed\":7,\"out\":\"x\"},\"origins\":{}}", lr, same), "");
    EXPECT_STR(id, same); // what this one resume allows does not make it another run
    EXPECT(
        strstr(config_error(dir, "{\"options\":{\"lr\":0.001},\"origins\":{}}", NULL, same), "was 7 and is nothing"));
    Text many = {0};
    text_addf(&many, "{\"options\":{\"lr\":0.001,\"seed\":7,\"out\":1");
    for (int i = 0; i < 60; i++) text_addf(&many, ",\"member_%d\":%d", i, i);
    text_addf(&many, "}}");
    const char *text = config_error(dir, many.p, NULL, same);
    EXPECT(strstr(text, "member_0") && !strstr(text, "member_40") && strstr(text, " more; do: "));
    text_free(&many);
    Bytes b = get(in(dir, "config.json")); // frozen
    EXPECT_STR(b.p, CONFIG "\n");
    free(b.p);
}

TEST(a_checkpoint_of_another_run_is_refused) {
    const char *dir = fresh("run"), *other = fresh("other");
    char id[65];
    train_or_fail(dir, 3);
    EXPECT_STR(config_error(other, "{\"options\":{\"lr\":9}}", NULL, id), "");
    shell("cp -r '%s/ckpt/step-000000003' '%s/ckpt/'", dir, other);
    Run r;
    Checkpoint c;
    Err e = {0};
    EXPECT(run_open(&r, other, &e) && run_config(&r, "{\"options\":{\"lr\":9}}", free_members, NULL, &e));
    EXPECT(!run_newest(&r, &c, &e));
    expect_code(&e, "E-CK-05");
    run_close(&r);
}

// -------------------------------------------------------------------------------------------------------------- damage

TEST(a_flipped_a_missing_and_an_added_byte_are_found_in_every_file) {
    const char *dir = fresh("run"), *step = in(dir, "ckpt/step-000000003");
    char folder[600];
    snprintf(folder, sizeof folder, "%s", step);
    train_or_fail(dir, 3);
    const char *files[] = {"MANIFEST.json", "local.json", "state.json", "optimizer.safetensors"};
    int64_t flips = 0;
    for (int k = 0; k < 4; k++) {
        const char *path = in(folder, files[k]);
        Bytes b = get(path);
        for (size_t i = 0; i < b.n; i++) {
            Err e = {0};
            b.p[i] ^= (char)(1 << i % 8), put(path, b.p, b.n), b.p[i] ^= (char)(1 << i % 8), flips++;
            if (checkpoint_verify(folder, &e)) FAIL("byte %zu of %s was flipped and not found", i, files[k]);
            expect_code(&e, k < 2 ? "E-CK-02" : "E-CK-03");
        }
        for (int cut = -1; cut <= 1; cut += 2) {
            Err e = {0};
            put(path, b.p, b.n + (size_t)cut); // one byte less, or the zero behind the buffer more
            EXPECT(!checkpoint_verify(folder, &e));
            expect_code(&e, k < 2 ? "E-CK-02" : "E-CK-03");
        }
        Err e = {0};
        unlink(path);
        EXPECT(!checkpoint_verify(folder, &e));
        expect_code(&e, "E-CK-02");
        put(path, b.p, b.n), free(b.p), e = (Err){0};
        if (!checkpoint_verify(folder, &e)) FAIL("%s", line_of(&e));
    }
    EXPECT(flips > 2500);
}

// Rewrites a manifest with a fresh checksum of itself: the work of someone who wants to be believed.
static void reseal(const char *folder, const char *from, const char *to) {
    Bytes b = get(in(folder, "MANIFEST.json"));
    char *self = strstr(b.p, ",\"self\":"), *at = strstr(b.p, from), hex[65];
    Text t = {0};
    if (!self || !at || at > self) FAIL("no %s in a manifest", from);
    else {
        text_add(&t, b.p, (size_t)(at - b.p)), text_addf(&t, "%s", to);
        text_add(&t, at + strlen(from), (size_t)(self - at) - strlen(from)), text_addf(&t, "}");
        sha256_hex(t.p, t.len, hex), t.len--, text_addf(&t, ",\"self\":\"%s\"}\n", hex);
        put(in(folder, "MANIFEST.json"), t.p, t.len);
    }
    text_free(&t), free(b.p);
}

TEST(a_manifest_that_lies_is_refused) {
    const char *lies[][3] = {
        {"\"format\":1", "\"format\":2", "E-CK-04"},        {"\"state.json\"", "\"../state.json\"", "E-CK-02"},
        {"\"state.json\"", "\".state.json\"", "E-CK-02"},   {"\"state.json\"", "\"sta\\u0000te.json\"", "E-CK-02"},
        {"\"state.json\"", "\"other.json\"", "E-CK-02"},    {"\"sha256\":\"", "\"sha256\":\"0", "E-CK-02"},
        {"\"files\":[", "\"fils\":[", "E-CK-02"},           {"\"step\":3", "\"step\":-3", "E-CF-02"},
        {"\"step\":3", "\"step\":3,\"step\":3", "E-JS-08"}, {"\"size\":", "\"size\":1", "E-CK-03"}};
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        const char *dir = fresh("run");
        char folder[600];
        Err e = {0};
        snprintf(folder, sizeof folder, "%s/ckpt/step-000000003", dir);
        train_or_fail(dir, 3);
        reseal(folder, lies[i][0], lies[i][1]);
        EXPECT(!checkpoint_verify(folder, &e));
        expect_code(&e, lies[i][2]);
        if (i == 0) EXPECT(strstr(line_of(&e), "use surgr1 \"" SURGR1_VERSION "\"") != NULL);
    }
    const char *dir = fresh("run"); // a link to a good file is no file of the checkpoint
    Err e = {0};
    train_or_fail(dir, 3);
    shell("cd '%s/ckpt/step-000000003' && mv state.json ../s && ln -s ../s state.json", dir);
    EXPECT(!checkpoint_verify(in(dir, "ckpt/step-000000003"), &e));
    expect_code(&e, "E-CK-02");
}

static int64_t newest(const char *dir, Err *e) { // its step, or -2 with e
    Run r;
    Checkpoint c;
    *e = (Err){0};
    bool ok = run_open(&r, dir, e) && run_newest(&r, &c, e);
    int64_t step = ok ? c.step : -2;
    if (ok) checkpoint_free(&c);
    run_close(&r);
    return step;
}

TEST(the_newest_whole_checkpoint_is_used) {
    const char *dir = fresh("run"), *whole = fresh("whole");
    Err e;
    train_or_fail(dir, 9), train_or_fail(whole, 9);
    int old = quiet(2);
    EXPECT_INT(newest(dir, &e), 9);
    int64_t before = warn_count("E-CK-06");
    put_text(in(dir, "ckpt/LATEST"), "step-000000099\n"); // a hint, never trusted
    put_text(in(dir, "ckpt/step-12"), "not a name of ours");
    shell("mkdir '%s/ckpt/step-0000000012' '%s/ckpt/step-x'", dir, dir);
    EXPECT_INT(newest(dir, &e), 9);
    EXPECT_INT(warn_count("E-CK-06"), before);
    put_text(in(dir, "ckpt/step-000000009/state.json"), "{}");
    EXPECT_INT(newest(dir, &e), 6);
    EXPECT_INT(warn_count("E-CK-06"), before + 1);
    train_or_fail(dir, 9); // done again from step 6: the damaged one makes room
    expect_equal(dir, whole);
    shell("mv '%s/ckpt/step-000000009' '%s/ckpt/step-000000011'", dir, dir); // not the step it says
    EXPECT_INT(newest(dir, &e), 6);
    shell("rm -r '%s/ckpt/step-000000011' && for f in '%s'/ckpt/step-0000*/MANIFEST.json; do : > $f; done", dir, dir);
    EXPECT_INT(newest(dir, &e), -2);
    expect_code(&e, "E-CK-01");
    EXPECT_INT(err_exit_code(&e), EXIT_CHECKPOINT);
    shell("rm -r '%s'/ckpt/step-0*", dir);
    EXPECT_INT(newest(dir, &e), -1);
    loud(2, old);
}

TEST(a_checkpoint_of_a_newer_program_is_no_damage) {
    const char *dir = fresh("run");
    Err e;
    train_or_fail(dir, 6);
    reseal(in(dir, "ckpt/step-000000006"), "\"format\":1", "\"format\":2");
    EXPECT_INT(newest(dir, &e), -2);
    expect_code(&e, "E-CK-04");
    EXPECT(folder_exists(in(dir, "ckpt/step-000000006")));
}

// ------------------------------------------------------------------------------------------------------------- writing

TEST(the_same_checkpoint_again_is_dropped_and_another_is_a_bug) {
    const char *dir = fresh("run");
    float w[WEIGHTS] = {0};
    Run r;
    Checkpoint c;
    Err e = {0};
    EXPECT(run_open(&r, dir, &e) && run_config(&r, CONFIG, free_members, NULL, &e) && run_logs_open(&r, NULL, &e));
    EXPECT(log_write(&r.log, "\"a\":1", &e) && save(&r, 5, w, &e));
    Bytes before = get(in(dir, "ckpt/step-000000005/MANIFEST.json"));
    EXPECT(events_scalar(&r.events, "late", 5, 1, &e) && save(&r, 5, w, &e));
    Bytes after = get(in(dir, "ckpt/step-000000005/MANIFEST.json"));
    EXPECT_STR(after.p, before.p);
    EXPECT(run_newest(&r, &c, &e));
    EXPECT_INT(c.events_bytes, r.events.bytes); // but the lengths of the other logs are those of now
    EXPECT_INT(entries(in(dir, "ckpt"), "."), 0);
    checkpoint_free(&c), w[3] = 1;
    EXPECT(!save(&r, 5, w, &e));
    expect_code(&e, "E-BG-02");
    EXPECT_INT(entries(in(dir, "ckpt"), "."), 0);
    run_close(&r), free(before.p), free(after.p), e = (Err){0};
    EXPECT(checkpoint_verify(in(dir, "ckpt/step-000000005"), &e));
}

TEST(a_manifest_says_nothing_that_changes_from_run_to_run) {
    const char *a = fresh("a"), *b = fresh("longer/name");
    train_or_fail(a, 7), usleep(1100), train_or_fail(b, 2), train_or_fail(b, 5), train_or_fail(b, 7);
    Bytes x = get(in(a, "ckpt/step-000000007/MANIFEST.json")), y = get(in(b, "ckpt/step-000000007/MANIFEST.json"));
    EXPECT_STR(x.p, y.p);
    expect_equal(a, b);
    free(x.p), free(y.p);
}

TEST(a_full_disk_leaves_the_older_checkpoints_alone) {
    const char *dir = fresh("run");
    float w[WEIGHTS] = {0};
    char path[1400];
    bool enough = true;
    Run r;
    Err e = {0};
    train_or_fail(dir, 6);
    int old_stderr = dup(2);
    Checkpoint c;
    EXPECT(run_open(&r, dir, &e) && run_config(&r, CONFIG, free_members, NULL, &e) && run_newest(&r, &c, &e) &&
           run_logs_open(&r, &c, &e));
    struct rlimit old, tiny;
    getrlimit(RLIMIT_FSIZE, &old);
    for (rlim_t size = 0; size <= 2000; size += 100) { // every file of a checkpoint meets its end somewhere
        tiny = old, tiny.rlim_cur = size, e = (Err){0};
        setrlimit(RLIMIT_FSIZE, &tiny);
        bool saved = save(&r, 9, w, &e);
        setrlimit(RLIMIT_FSIZE, &old);
        EXPECT(!saved);
        expect_code(&e, "E-WR-01");
        EXPECT_INT(err_exit_code(&e), EXIT_WRITE);
        EXPECT_INT(entries(in(dir, "ckpt"), "."), 0);
        EXPECT(!folder_exists(in(dir, "ckpt/step-000000009")));
    }
    e = (Err){0};
    int64_t before = warn_count("E-WR-01"), count = 0;
    EXPECT(checkpoint_begin(&r, 9, INT64_MAX / 2, path, sizeof path, &enough, &e) && !enough);
    EXPECT_INT(warn_count("E-WR-01"), before + 1);
    EXPECT_INT(entries(in(dir, "ckpt"), "."), 0);
    EXPECT(run_verify(dir, &count, &e) && count == 2);
    EXPECT(save(&r, 9, w, &e)); // room again
    EXPECT(run_verify(dir, &count, &e) && count == 3);
    checkpoint_free(&c), run_close(&r), loud(2, old_stderr);
}

static void expect_steps(const char *dir, const char *want) {
    char got[300] = "";
    for (int s = 0; s < 100; s++) {
        char path[600];
        snprintf(path, sizeof path, "%s/ckpt/step-%09d", dir, s);
        if (folder_exists(path)) snprintf(got + strlen(got), sizeof got - strlen(got), "%d ", s);
    }
    EXPECT_STR(got, want);
}

TEST(rotation_keeps_the_newest_the_multiples_and_the_best) {
    const char *dir = fresh("run");
    float w[WEIGHTS] = {0};
    char path[1400];
    bool enough;
    Run r;
    Err e = {0};
    EXPECT(run_open(&r, dir, &e));
    for (int s = 1; s <= 20; s++) {
        EXPECT(checkpoint_begin(&r, s, 10, path, sizeof path, &enough, &e) && enough);
        put(in(path, "w"), w, sizeof w), w[0] += 1;
        EXPECT(checkpoint_commit(&r, s, path, "{}", &e));
    }
    EXPECT(checkpoint_rotate(&r, 5, 8, 2, &e));
    expect_steps(dir, "2 8 16 17 18 19 20 ");
    EXPECT(checkpoint_rotate(&r, 5, 8, 2, &e)); // a second time changes nothing
    expect_steps(dir, "2 8 16 17 18 19 20 ");
    run_close(&r);
    EXPECT(run_open(&r, dir, &e)); // another process, which has verified nothing yet
    put_text(in(dir, "ckpt/step-000000019/w"), "damaged");
    EXPECT(checkpoint_rotate(&r, 3, 0, -1, &e)); // a damaged one counts for nothing
    expect_steps(dir, "17 18 19 20 ");
    EXPECT(checkpoint_rotate(&r, 0, 0, -1, &e)); // never fewer than two
    expect_steps(dir, "18 19 20 ");
    EXPECT_INT(entries(in(dir, "ckpt"), "."), 0);
    run_close(&r);
}

// ----------------------------------------------------------------------------------------------------------- comparing

TEST(compare_names_the_first_file_tensor_and_element) {
    const char *a = fresh("a"), *b = fresh("b");
    bool same = false;
    float w[WEIGHTS] = {0};
    train_or_fail(a, 6), train_or_fail(b, 6);
    EXPECT(strstr(compared(a, b, &same), "equal: ") && same);
    EXPECT(strstr(compared(a, a, &same), "equal: ") && same);
    char path[700];
    snprintf(path, sizeof path, "%s/ckpt/step-000000006/optimizer.safetensors", b);
    Bytes good = get(path);
    float v;
    size_t last = good.n - 4; // the last element of "w": the types are one, so "norm" stands before it
    memcpy(&v, good.p + last, 4), v += 1, memcpy(good.p + last, &v, 4), put(path, good.p, good.n);
    const char *text = compared(a, b, &same);
    EXPECT(!same && strstr(text, "ckpt/step-000000006/optimizer.safetensors: tensor \"w\" [500]: element 499 is "));
    v -= 1, memcpy(good.p + last, &v, 4);
    TensorOut t[1] = {{.name = "w", .type = FT_F32, .dims = 1, .shape = {WEIGHTS}, .data = w}};
    Err e = {0};
    EXPECT(tensors_write(path, t, 1, &e));
    EXPECT(strstr(compared(a, b, &same), "tensor \"norm\" is only in the first run") && !same);
    put(path, good.p, good.n - 3);
    EXPECT(strstr(compared(a, b, &same), "byte") && !same);
    put(path, good.p, good.n);
    EXPECT(strstr(compared(a, b, &same), "equal: ") && same);
    Bytes log = get(in(b, "run.jsonl"));
    char *third = strchr(strchr(log.p, '\n') + 1, '\n') + 1;
    third[30] ^= 1, put(in(b, "run.jsonl"), log.p, log.n), third[30] ^= 1;
    EXPECT(strstr(compared(a, b, &same), "run.jsonl: line 3 (byte ") && !same);
    put(in(b, "run.jsonl"), log.p, log.n - 5);
    EXPECT(strstr(compared(a, b, &same), "run.jsonl: the first run's file goes on after") && !same);
    put(in(b, "run.jsonl"), log.p, log.n);
    put_text(in(b, "export/more"), "x");
    EXPECT(strstr(compared(a, b, &same), "export/more: only in the second run") && !same);
    unlink(in(b, "export/more")), put_text(in(b, "ckpt/step-000000006/local.json"), "nobody compares it");
    put_text(in(b, "timing.jsonl"), "nor this");
    EXPECT(strstr(compared(a, b, &same), "equal: ") && same);
    free(log.p), free(good.p);
}

TEST(compare_allows_a_checkpoint_more_but_not_another_end) {
    const char *a = fresh("a"), *b = fresh("b"), *c = fresh("c");
    bool same = false;
    train_or_fail(a, 6), train_or_fail(b, 4), train_or_fail(b, 6), train_or_fail(c, 7);
    const char *text = compared(a, b, &same); // stopped at 4, where it saved
    EXPECT(same && strstr(text, "ckpt/step-000000004: only in the second run, not compared"));
    EXPECT(strstr(compared(a, c, &same), "the newest checkpoint is step 6 and step 7") && !same);
    Err e = {0};
    shell("mkdir -p '%s' '%s/ckpt'", fresh("d"), in(base_folder(), "d"));
    EXPECT(!run_compare(in(base_folder(), "d"), in(base_folder(), "d"), &same, &e)); // two empty ones prove nothing
    expect_code(&e, "E-IO-01"), e = (Err){0};
    EXPECT(!run_compare(a, in(base_folder(), "none"), &same, &e));
    expect_code(&e, "E-IO-01");
}

// --------------------------------------------------------------------------------------------------------------- kills

static void still_sound(const char *dir, int round) { // after a kill, before anybody mends anything
    int64_t count = 0, lines;
    bool torn;
    Err e = {0};
    if (!folder_exists(dir)) return; // it did not come that far
    if (!run_verify(dir, &count, &e)) FAIL("after kill %d: %s", round, line_of(&e));
    const char *logs[] = {"run.jsonl", "timing.jsonl"};
    for (int k = 0; k < 2; k++)
        if (file_exists(in(dir, logs[k])) && !log_check(in(dir, logs[k]), &lines, &torn, &e))
            FAIL("after kill %d: %s", round, line_of(&e));
}

TEST(killed_at_random_instants_it_ends_with_the_same_bytes) {
    int64_t last = 120;
    const char *whole = fresh("whole");
    train_or_fail(whole, last);
    int kills = 0, finished = 0, old = dup(2);
    double start = clock_seconds();
    for (int folder = 0; kills < 120 && clock_seconds() - start < 60; folder++) {
        const char *dir = fresh("killed");
        for (bool done = false; !done;) {
            pid_t child = fork();
            if (!child) {
                Err e = {0};
                _exit(train(dir, last, &e) ? 0 : err_exit_code(&e));
            }
            // Between a kill in the first moment and a third of the run, drawn anew each time.
            double share = random_uniform(11, RANDOM_TEST, (uint64_t)folder, (uint32_t)kills);
            usleep((useconds_t)(share * share * 12000));
            kill(child, SIGKILL);
            int status;
            waitpid(child, &status, 0);
            done = WIFEXITED(status);
            if (done && WEXITSTATUS(status)) FAIL("a resume after %d kills ended with %d", kills, WEXITSTATUS(status));
            if (!done) kills++;
            still_sound(dir, kills);
            if (kills % 40 == 39) { // let it come to its end now and then
                Err e = {0};
                done = train(dir, last, &e);
                if (!done) FAIL("%s", line_of(&e));
            }
        }
        if (folder_exists(in(dir, "export"))) expect_equal(dir, whole), finished++;
    }
    loud(2, old);
    printf("     %d kills, %d runs came to their end\n", kills, finished);
    EXPECT(kills >= 100 && finished >= 1);
}

// -------------------------------------------------------------------------------------- faults at every system call

static bool strace_works(void) { return !system("strace -f -qq -o /dev/null -e trace=write true >/dev/null 2>&1"); }

// Runs the trainer under strace with one injected fault; its exit status, or 137 when it was killed.
static int run_with(const char *dir, const char *call, const char *what, int when) {
    char command[1200], self[400] = "";
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n <= 0) return -1;
    snprintf(command, sizeof command,
             "SURGR1_RUN_CHILD='%s:7' strace -f -qq -o /dev/null -e trace=%s -e inject=%s:%s:when=%d '%s' "
             ">/dev/null 2>&1",
             dir, call, call, what, when, self);
    int status = system(command);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

TEST(a_fault_at_every_system_call_is_survived) {
    static const struct {
        const char *call, *what;
        bool overcome; // some of these faults end in success: that does not mean that the run is over
    } faults[] = {
        {"write", "signal=KILL", false},    {"fsync", "signal=KILL", false},     {"rename", "signal=KILL", false},
        {"mkdir", "signal=KILL", false},    {"ftruncate", "signal=KILL", false}, {"unlinkat", "signal=KILL", false},
        {"pwrite64", "signal=KILL", false}, {"openat", "signal=KILL", false},    {"write", "error=ENOSPC", true},
        {"write", "error=EIO", true},       {"write", "retval=1", true},         {"fsync", "error=EIO", true},
        {"rename", "error=EIO", true},      {"mkdir", "error=ENOSPC", true},     {"ftruncate", "error=EIO", true},
        {"unlinkat", "error=EIO", true},    {"flock", "error=ENOLCK", true},     {"openat", "error=EMFILE", true},
        {"close", "error=EIO", true},       {"pread64", "error=EINTR", true}};
    if (!strace_works()) SKIP("strace is not there, or may not trace");
    const char *whole = fresh("whole"), *dir;
    train_or_fail(whole, 7);
    int points_tried = 0;
    double start = clock_seconds();
    for (size_t k = 0; k < sizeof faults / sizeof *faults; k++) {
        bool past = false; // the run ends before its call number `when`
        // Every call with SURGR1_LONG=1 (a minute), else every 19th, from another start for each kind.
        int stride = getenv("SURGR1_LONG") ? 1 : 19;
        for (int when = 1 + (int)k % stride; !past && when < 1000; when += stride) {
            dir = fresh("faulty");
            int status = run_with(dir, faults[k].call, faults[k].what, when);
            int64_t count;
            Err e = {0};
            bool killed = status == 137 || status == 128 + SIGKILL;
            if (!killed && status != 0 && status != EXIT_WRITE && status != EXIT_READ && status != EXIT_MEMORY &&
                status != 127 && status != 1)
                FAIL("%s %s at %d: exit %d", faults[k].call, faults[k].what, when, status);
            points_tried++;
            if (folder_exists(dir) && !run_verify(dir, &count, &e) && strcmp(e.code, "E-IO-01"))
                FAIL("%s %s at %d: %s", faults[k].call, faults[k].what, when, line_of(&e));
            int old = quiet(2);
            e = (Err){0};
            bool resumed = train(dir, 7, &e);
            loud(2, old);
            if (!resumed) FAIL("%s %s at %d: %s", faults[k].call, faults[k].what, when, line_of(&e));
            if (!equal_runs(dir, whole)) FAIL("%s %s at %d: another end", faults[k].call, faults[k].what, when);
            past = status == 0 && (!faults[k].overcome || when > 150);
        }
    }
    printf("     %d faults in %.1f s\n", points_tried, clock_seconds() - start);
    EXPECT(points_tried >= 50);
}
