// trainer.h - drives the shipped program as a person does: starts it, waits, kills it, and judges what it left in a run folder.
//
// What it is:  files and processes of a test, a small training command (Variant), and a comparison of two run folders that
//              is not the program's: it also reads the event file and the times.
// What it is not: a test. test_resume.c, test_crash.c and test_guards.c are.
#ifndef SURGR1_TEST_TRAINER_H
#define SURGR1_TEST_TRAINER_H
#include "../surgr1.h"
#include "test.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define FIXTURES "test/fixtures/oracle/pipeline/ask"
#define MODEL    FIXTURES "/checkpoint"

static char work[100]; // a folder of this test's own, removed at the end
static const char *program = "./surgr1";
static const char *wrapper = "";          // words before the program: strace and its options
static rlim_t file_limit = RLIM_INFINITY; // bytes of the longest file, ulimit -f

static uint64_t random_state;
static inline double uniform(void) { // splitmix64
    uint64_t z = random_state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u, z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (double)((z ^ z >> 31) >> 11) * 0x1p-53;
}

// ------------------------------------------------------------------------------------------------------------- files

static inline char *slurp(const char *path, size_t *len) { // NULL when it is not there
    FILE *f = fopen(path, "rb");
    if (!f) return NULL;
    Text t = {0};
    char piece[65536];
    text_add(&t, "", 0);
    for (size_t n; (n = fread(piece, 1, sizeof piece, f)) > 0;) text_add(&t, piece, n);
    fclose(f);
    if (len) *len = t.len;
    return t.p;
}
static inline void spill(const char *path, const char *bytes, size_t len) {
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(bytes, 1, len, f) != len || fclose(f)) FAIL("cannot write %s", path);
}
static inline char *joined(const char *dir, const char *name) { // the caller frees
    Text t = {0};
    text_addf(&t, "%s/%s", dir, name);
    return t.p;
}
static inline int64_t count_in(const char *text, const char *what) {
    int64_t n = 0;
    for (const char *p = text; p && (p = strstr(p, what)); p += strlen(what)) n++;
    return n;
}

typedef struct Listing {
    struct dirent **p;
    int n;
} Listing;
static inline int no_dots(const struct dirent *f) { return strcmp(f->d_name, ".") && strcmp(f->d_name, ".."); }
static inline Listing list(const char *dir) {
    Listing l = {0};
    l.n = scandir(dir, &l.p, no_dots, alphasort);
    if (l.n < 0) l.n = 0;
    return l;
}
static inline void list_free(Listing l) {
    for (int i = 0; i < l.n; i++) free(l.p[i]);
    free(l.p);
}
static inline void discard(const char *path) {
    Listing l = list(path);
    for (int i = 0; i < l.n; i++) {
        char *inside = joined(path, l.p[i]->d_name);
        discard(inside), free(inside);
    }
    list_free(l);
    (void)!remove(path);
}
static inline void copy_tree(const char *from, const char *to) { // a file, or a folder with all in it
    if (!folder_exists(from)) {
        size_t len = 0;
        char *bytes = slurp(from, &len);
        if (bytes) spill(to, bytes, len);
        free(bytes);
        return;
    }
    discard(to), mkdir(to, 0755);
    Listing l = list(from);
    for (int i = 0; i < l.n; i++) {
        char *a = joined(from, l.p[i]->d_name), *b = joined(to, l.p[i]->d_name);
        copy_tree(a, b), free(a), free(b);
    }
    list_free(l);
}

static inline void remove_work(void) {
    if (work[0]) discard(work);
}
__attribute__((constructor)) static void prepare(void) {
    const char *named = getenv("SURGR1");
    if (named && *named) program = named;
    snprintf(work, sizeof work, "%s/surgr1-resume-XXXXXX", access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm");
    if (!mkdtemp(work) || access(program, X_OK)) {
        fprintf(stderr, "FAIL no folder to work in, or no program %s: run make\n0 passed, 1 failed, 0 skipped\n",
                program);
        exit(1);
    }
    atexit(remove_work);
}

// --------------------------------------------------------------------------------------------------------- processes

// Starts the program with the words of `args`; its output goes to work/out and work/err.
static inline pid_t start(const char *args) {
    static char words[4000];
    char *argv[200] = {0};
    int n = 0;
    snprintf(words, sizeof words, "%s %s %s", wrapper, program, args);
    for (char *p = strtok(words, " "); p && n < 199; p = strtok(NULL, " ")) argv[n++] = p;
    char *out = joined(work, "out"), *err = joined(work, "err");
    spill(err, "", 0); // else a reader may still find the last process's words
    pid_t pid = fork();
    if (pid == 0) {
        int o = open(out, O_WRONLY | O_CREAT | O_TRUNC, 0644), e = open(err, O_WRONLY | O_CREAT | O_TRUNC, 0644);
        int i = open("/dev/null", O_RDONLY);
        if (o < 0 || e < 0 || i < 0 || dup2(i, 0) < 0 || dup2(o, 1) < 0 || dup2(e, 2) < 0) _exit(99);
        struct rlimit limit = {file_limit, file_limit};
        (void)setrlimit(RLIMIT_FSIZE, &limit);
        if (*wrapper) (void)setenv("ASAN_OPTIONS", "detect_leaks=0", 0); // LeakSanitizer is a tracer too: one is enough
        execvp(argv[0], argv);
        _exit(99);
    }
    free(out), free(err);
    return pid;
}

static inline void pause_for(double seconds) {
    struct timespec t = {(time_t)seconds, (long)(fmod(seconds, 1) * 1e9)};
    while (nanosleep(&t, &t) && errno == EINTR) {}
}

// How it ended: the exit code, or minus the signal.
static inline int finish(pid_t pid) {
    int status = 0;
    for (double end = clock_seconds() + 240; waitpid(pid, &status, WNOHANG) == 0; pause_for(0.0005))
        if (clock_seconds() > end) {
            FAIL("a process did not end");
            kill(pid, SIGKILL), end += 1e9;
        }
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

PRINTF_LIKE(1, 2) static inline int run(const char *fmt, ...) {
    char args[3900];
    va_list list_of;
    va_start(list_of, fmt);
    vsnprintf(args, sizeof args, fmt, list_of);
    va_end(list_of);
    return finish(start(args));
}

static inline bool told(const char *what) { // is it on standard error of the last process?
    char *path = joined(work, "err"), *text = slurp(path, NULL);
    bool is = text && strstr(text, what);
    free(path), free(text);
    return is;
}
PRINTF_LIKE(1, 2)
static inline void show_errors(const char *fmt, ...) { // fails the test, with the last process's own words
    char what[500];
    va_list list_of;
    va_start(list_of, fmt);
    vsnprintf(what, sizeof what, fmt, list_of);
    va_end(list_of);
    FAIL("%s", what);
    char *path = joined(work, "err"), *text = slurp(path, NULL);
    size_t len = text ? strlen(text) : 0;
    fprintf(stderr, "%s\n", text ? text + (len > 1500 ? len - 1500 : 0) : "");
    free(path), free(text);
}
#define EXPECT_EXIT(got, want)                                                                                         \
    do {                                                                                                               \
        int got_ = (got);                                                                                              \
        if (got_ != (want)) show_errors("exit %d, not %d", got_, want);                                                \
    } while (0)
#define EXPECT_TOLD(what)                                                                                              \
    do {                                                                                                               \
        if (!told(what)) show_errors("no \"%s\" on standard error", what);                                             \
    } while (0)

// Waits until the line of that step is on standard error; false when the process ended before.
static inline bool wait_for_step(pid_t pid, int64_t step, int64_t steps) {
    char line[80];
    int width = snprintf(NULL, 0, "%lld", (long long)steps);
    snprintf(line, sizeof line, "step %*lld/%lld ", width, (long long)step, (long long)steps);
    siginfo_t info;
    do {
        if (told(line)) return true;
        pause_for(0.0005), info.si_pid = 0;
    } while (!waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT) && !info.si_pid);
    return told(line);
}

// ---------------------------------------------------------------------------------------------------------- variants

// Pictures and plain text; the answers are of different lengths.
static inline const char *data_file(void) {
    static char path[200];
    static const struct {
        const char *picture, *question, *answer;
    } records[] = {
        {"c0_0.png", "What is this?", "A liver with a grasper."},
        {"c2_0.png", "Where is the tool?", "[{\\\"bbox_2d\\\": [2, 12, 20, 44], \\\"label\\\": \\\"hook\\\"}]"},
        {"c2_1.png", "Which phase?", "Calot triangle dissection"},
        {NULL, "Say hello", "Hello there, surgeon."},
        {"c3_0.png", "Count the tools.", "There are 3 tools."},
        {"c3_1.png", "Is there blood?", "No."},
        {NULL, "Which hand holds the hook?", "The right one."},
        {"c0_0.png", "Name the organ.", "Liver"}};
    if (path[0]) return path;
    Text t = {0};
    for (int i = 0; i < 16; i++) {
        int k = i % 8;
        text_addf(&t,
                  "{\"id\":\"s%d\",\"messages\":[{\"role\":\"user\",\"content\":\"%s%s (%d)\"},{\"role\":\"assistant\","
                  "\"content\":\"%s\"}]",
                  i, records[k].picture ? "<image>" : "", records[k].question, i, records[k].answer);
        if (records[k].picture) text_addf(&t, ",\"images\":[\"%s\"]", records[k].picture);
        text_addf(&t, "}\n");
    }
    snprintf(path, sizeof path, "%s/train.jsonl", work);
    spill(path, t.p, t.len);
    text_free(&t);
    return path;
}

// Labelled prompts, with and without a picture.
static inline const char *prompt_file(void) {
    static char path[200];
    if (path[0]) return path;
    Text t = {0};
    for (int i = 0; i < 6; i++)
        text_addf(
            &t,
            "{\"id\":\"p%d\",\"task\":\"%s\",\"answer\":\"liver\",\"messages\":[{\"role\":\"user\",\"content\":\"%sSay "
            "what (%d)\"}]%s}\n",
            i, i % 2 ? "phase" : "tissue", i % 3 ? "<image>" : "", i, i % 3 ? ",\"images\":[\"c2_0.png\"]" : "");
    snprintf(path, sizeof path, "%s/prompts.jsonl", work);
    spill(path, t.p, t.len), text_free(&t);
    return path;
}

typedef struct Variant {
    const char *name, *options;
    int64_t steps;
    char dir[200];  // of the run that nothing happened to
    double seconds; // it took; 0: not made yet
} Variant;
// The command of a variant with another folder and more options. Options that begin with "grpo" make it one of surgr1 grpo.
PRINTF_LIKE(3, 4) static inline const char *command(const Variant *v, const char *dir, const char *fmt, ...) {
    static char args[3000];
    va_list list_of;
    const char *device = getenv("SURGR1_DEVICE");
    bool grpo = !strncmp(v->options, "grpo ", 5), eval = strstr(v->options, "--eval-every");
    const char *data = grpo ? prompt_file() : data_file();
    int n = snprintf(args, sizeof args,
                     "%s --model " MODEL " --image-root " FIXTURES " --data %s %s%s --device %s --out %s %s ",
                     grpo ? "grpo" : "sft", data, eval ? "--eval " : "", eval ? data : "",
                     device && *device ? device : "cpu", dir, v->options + (grpo ? 5 : 0));
    va_start(list_of, fmt);
    vsnprintf(args + n, sizeof args - (size_t)n, fmt, list_of);
    va_end(list_of);
    return args;
}
#define NOTHING_MORE "%s", ""

// ------------------------------------------------------------------------------------------- the comparison of this test

typedef struct Why {
    char text[400];
} Why;
PRINTF_LIKE(2, 3) static inline bool because(Why *w, const char *fmt, ...) {
    va_list list_of;
    va_start(list_of, fmt);
    vsnprintf(w->text, sizeof w->text, fmt, list_of);
    va_end(list_of);
    return false;
}

static inline bool same_tree(const char *a, const char *b,
                             Why *w) { // but local.json: lengths of logs with times in them
    if (folder_exists(a) != folder_exists(b) || file_exists(a) != file_exists(b))
        return because(w, "only one has %s, or as another kind", a);
    if (!folder_exists(a)) {
        size_t n = 0, m = 0;
        char *x = slurp(a, &n), *y = slurp(b, &m);
        bool same = x && y && n == m && !memcmp(x, y, n);
        free(x), free(y);
        return same || because(w, "%s and %s differ", a, b);
    }
    Listing p = list(a), q = list(b);
    bool same = true;
    for (int i = 0; same && i < q.n; i++) {
        char *x = joined(a, q.p[i]->d_name);
        if (access(x, F_OK)) same = because(w, "%s is missing", x);
        free(x);
    }
    for (int i = 0; same && i < p.n; i++) {
        if (!strcmp(p.p[i]->d_name, "local.json")) continue;
        char *x = joined(a, p.p[i]->d_name), *y = joined(b, p.p[i]->d_name);
        same = same_tree(x, y, w), free(x), free(y);
    }
    list_free(p), list_free(q);
    return same;
}

// Nothing that was begun and not finished.
static inline bool no_leftovers(const char *dir, Why *w) {
    Listing l = list(dir);
    bool none = true;
    for (int i = 0; none && i < l.n; i++) {
        char *inside = joined(dir, l.p[i]->d_name);
        if (l.p[i]->d_name[0] == '.' || strstr(l.p[i]->d_name, "tmp-")) none = because(w, "%s was left", inside);
        none = none && (!folder_exists(inside) || no_leftovers(inside, w));
        free(inside);
    }
    list_free(l);
    return none;
}

// A protobuf message: the next field's number, and its value as a number or as bytes.
typedef struct Field {
    uint64_t number, value;
    const uint8_t *bytes;
    size_t len;
} Field;
static inline uint64_t varint(const uint8_t **p, const uint8_t *end) {
    uint64_t v = 0;
    for (int shift = 0; *p < end && shift < 64; shift += 7) {
        uint8_t byte = *(*p)++;
        v |= (uint64_t)(byte & 127) << shift;
        if (byte < 128) break;
    }
    return v;
}
static inline bool next_field(const uint8_t **p, const uint8_t *end, Field *f) {
    if (*p >= end) return false;
    uint64_t key = varint(p, end), size = 0;
    *f = (Field){.number = key >> 3};
    if ((key & 7) == 0) f->value = varint(p, end);
    else if ((key & 7) == 2) size = varint(p, end), f->bytes = *p, f->len = size;
    else size = (key & 7) == 1 ? 8 : 4, memcpy(&f->value, *p, size);
    *p += size;
    return *p <= end;
}

// Every value of an event file in its order, one line each: "tag step value"; speeds and the configuration (it names
// the folder) without their value. False when a record is torn or its checksums are wrong.
static inline bool read_events(const char *dir, Text *out, Why *w) {
    char *board = joined(dir, "tensorboard");
    Listing l = list(board);
    char *path = l.n == 1 ? joined(board, l.p[0]->d_name) : NULL;
    size_t size = 0, at = 0;
    uint8_t *file = path ? (uint8_t *)slurp(path, &size) : NULL;
    list_free(l), free(board), free(path);
    if (!file) return because(w, "%s has no event file, or several", dir);
    bool ok = true;
    while (ok && at < size) {
        uint64_t len = 0;
        uint32_t crc[2] = {0};
        if (size - at >= 16) memcpy(&len, file + at, 8);
        if (size - at < 16 || len > size - at - 16) {
            ok = because(w, "a torn record at byte %zu", at);
            break;
        }
        memcpy(&crc[0], file + at + 8, 4), memcpy(&crc[1], file + at + 12 + len, 4);
        for (int i = 0; i < 2; i++) {
            uint32_t c = i ? crc32c(0, file + at + 12, len) : crc32c(0, file + at, 8);
            if (crc[i] != (c >> 15 | c << 17) + 0xa282ead8u) ok = because(w, "a wrong checksum at byte %zu", at);
        }
        const uint8_t *p = file + at + 12, *end = p + len, *q, *r;
        uint64_t step = 0;
        Field event, summary, value;
        while (next_field(&p, end, &event)) {
            if (event.number == 2) step = event.value;
            if (event.number != 5) continue;
            for (q = event.bytes; next_field(&q, event.bytes + event.len, &summary);) {
                char tag[300] = "", found[65] = "-";
                for (r = summary.bytes; next_field(&r, summary.bytes + summary.len, &value);) {
                    if (value.number == 1) snprintf(tag, sizeof tag, "%.*s", (int)value.len, (const char *)value.bytes);
                    if (value.number == 2) snprintf(found, sizeof found, "%08llx", (unsigned long long)value.value);
                    if (value.number == 4 || value.number == 8) sha256_hex(value.bytes, value.len, found);
                }
                bool any = !strncmp(tag, "speed/", 6) || !strcmp(tag, "config");
                text_addf(out, "%s %llu %s\n", tag, (unsigned long long)step, any ? "*" : found);
            }
        }
        at += 16 + len;
    }
    free(file);
    return ok;
}

static inline bool same_events(const char *a, const char *b, Why *w) {
    Text x = {0}, y = {0};
    bool same = read_events(a, &x, w) && read_events(b, &y, w);
    if (same && strcmp(x.p ? x.p : "", y.p ? y.p : "")) {
        size_t i = 0, line = 0;
        for (; x.p[i] && x.p[i] == y.p[i]; i++)
            if (x.p[i] == '\n') line = i + 1;
        same = because(w, "events differ: %.60s and %.60s", x.p + line, y.p + line);
    }
    // equal lists are not enough, should both have a value twice
    for (char *p = x.p, *end; same && p && *p; p = end + 1) {
        char key[400];
        end = strchr(p, '\n');
        int n = snprintf(key, sizeof key, "%.*s", (int)(end - p), p);
        while (n && key[n] != ' ') n--;
        key[n + 1] = 0;
        int64_t times = 0;
        for (const char *q = x.p; q; q = strchr(q, '\n'), q = q && q[1] ? q + 1 : NULL)
            times += !strncmp(q, key, n + 1);
        if (times != 1) same = because(w, "%lld values of %s", (long long)times, key);
    }
    text_free(&x), text_free(&y);
    return same;
}

// run.jsonl and timing.jsonl: whole lines, and every step from 1 to the last once and in order.
static inline bool whole_logs(const char *dir, int64_t steps, Why *w) {
    for (int i = 0; i < 2; i++) {
        char *path = joined(dir, i ? "timing.jsonl" : "run.jsonl"), *text = slurp(path, NULL), wanted[60];
        int64_t lines = 0;
        bool torn = false;
        Err e = {0};
        bool ok = log_check(path, &lines, &torn, &e) && !torn;
        if (!ok) because(w, "%s: torn, or %s", path, e.found);
        const char *at = text;
        for (int64_t k = 1; ok && k <= steps; k++) {
            snprintf(wanted, sizeof wanted, "\"ev\":\"step\",\"step\":%lld,", (long long)k);
            const char *here = strstr(at, wanted);
            if (!here) ok = because(w, "%s: no %s after those before it", path, wanted);
            else at = here;
        }
        if (ok && count_in(text, "\"ev\":\"step\"") != steps)
            ok = because(w, "%s: %lld lines of steps", path, (long long)count_in(text, "\"ev\":\"step\""));
        free(path), free(text);
        if (!ok) return false;
    }
    return true;
}

// all_steps: both must have the same checkpoints; else those that both have must be the same, the newest one too.
static inline bool own_equal(const Variant *v, const char *a, const char *b, bool all_steps, Why *w) {
    char *p = joined(a, "ckpt"), *q = joined(b, "ckpt");
    Listing x = list(p), y = list(q);
    bool same = x.n > 1 && y.n > 1 && !strcmp(x.p[x.n - 1]->d_name, y.p[y.n - 1]->d_name);
    if (!same) because(w, "no checkpoints, or another newest one");
    for (int side = 0; same && all_steps && side < 2; side++)
        for (int i = 0; same && i < (side ? y : x).n; i++) {
            char *other = joined(side ? p : q, (side ? y : x).p[i]->d_name);
            if (access(other, F_OK)) same = because(w, "no %s", other);
            free(other);
        }
    int64_t compared = 0;
    for (int i = 0; same && i < x.n; i++) {
        char *one = joined(p, x.p[i]->d_name), *other = joined(q, x.p[i]->d_name);
        if (!strncmp(x.p[i]->d_name, "step-", 5) && folder_exists(other)) same = same_tree(one, other, w), compared++;
        free(one), free(other);
    }
    if (same && !compared) same = because(w, "nothing was compared");
    list_free(x), list_free(y), free(p), free(q);
    static const char *const parts[] = {"run.jsonl", "export", "rollouts.jsonl"};
    for (int i = 0; same && i < 3; i++) {
        p = joined(a, parts[i]), q = joined(b, parts[i]);
        if (i < 2 || file_exists(p) || file_exists(q)) same = same_tree(p, q, w);
        free(p), free(q);
    }
    return same && no_leftovers(b, w) && whole_logs(b, v->steps, w) && same_events(a, b, w);
}

static inline bool program_equal(const char *a, const char *b) {
    int rc = run("compare %s %s", a, b);
    char *path = joined(work, "out"), *text = slurp(path, NULL);
    bool same = rc == 0 && text && strstr(text, "equal: ");
    if (rc != (same ? 0 : 1)) FAIL("compare ended with %d", rc);
    free(path), free(text);
    return same;
}

static inline bool expect_equal(const Variant *v, const char *dir, bool all_steps) {
    Why w = {{0}};
    bool own = own_equal(v, v->dir, dir, all_steps, &w), theirs = program_equal(v->dir, dir);
    if (!own) FAIL("%s: %s", v->name, w.text);
    if (!theirs) FAIL("%s: surgr1 compare finds a difference", v->name);
    return own && theirs;
}

// Starts the variant until it ends, and compares.
static inline void expect_resumes(const Variant *v, const char *dir, bool all_steps) {
    EXPECT_EXIT(finish(start(command(v, dir, NOTHING_MORE))), 0);
    expect_equal(v, dir, all_steps);
}

static inline char *fresh(const char *name) { // a folder's path, nothing there
    char *dir = joined(work, name);
    discard(dir);
    return dir;
}

#endif
