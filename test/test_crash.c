// test_crash.c - a training run in which one system call fails, or is the last: what it says, and what is left to resume from.
//
// What it is:  strace kills the shipped program at its n-th openat, write, fsync, rename, ..., or lets that call fail; then
//              the same command without strace must end with the bytes of a run that nothing happened to. Full disks, by a
//              limit on file sizes and by a small tmpfs.
// What it is not: random instants (test_resume.c).
//
// SURGR1_POINTS=N is the number of places tried, 15 when it is not set, 0 for every one; SURGR1_SEED=N chooses others.
#define _GNU_SOURCE
#include "trainer.h"
#include <sched.h>
#include <sys/mount.h>

static Variant fine_tuning = {.name = "small",
                              .options = "--lora q_proj --lora-rank 2 --lora-dropout 0.1 --lr 1e-2 --batch 2 --steps 4 "
                                         "--save-every 2 --eval-every 4 --eval-samples 1 --sample-every 4 --samples 1 "
                                         "--sample-tokens 2 --threads 1",
                              .steps = 4};
// A checkpoint falls into the middle of each rollout, and there is a reference policy.
static Variant reinforcement = {
    .name = "rolled",
    .options = "grpo --lora q_proj --lora-rank 2 --lr 1e-2 --warmup-ratio 0 --preset trl --updates "
               "2 --epochs-per-rollout 2 --prompts 2 --group 3 --kl 0.1 --reference initial "
               "--max-new-tokens 8 --temperature 0.2 --gate 0 --task-floor 0 "
               "--reward-repetition 1 --ngram 1 --steps 4 --save-every 2 --threads 1",
    .steps = 4};
static Variant *small = &fine_tuning;

static void make_reference(Variant *v) {
    if (v->dir[0]) return;
    snprintf(v->dir, sizeof v->dir, "%s/%s", work, v->name);
    EXPECT_EXIT(finish(start(command(v, v->dir, NOTHING_MORE))), 0);
}

// ------------------------------------------------------------------------------------------------------ where it begins

// FROM_NOTHING; or FROM_RUIN: a run whose newest checkpoint is damaged, with leftovers of killed processes, and logs that
// go on behind the last good checkpoint in half a line.
enum { FROM_NOTHING, FROM_RUIN, BEGINNINGS };

static void append_to(const char *path, const char *bytes) {
    FILE *f = fopen(path, "ab");
    if (!f || fputs(bytes, f) < 0 || fclose(f)) FAIL("cannot append to %s", path);
}

static void set_up(const char *dir, int beginning) {
    static const char *const leftovers[] = {"ckpt/.tmp-step-000000004-1", "ckpt/.trash-step-000000002-1-0",
                                            ".tmp-export"};
    discard(dir);
    if (beginning == FROM_NOTHING) return;
    copy_tree(small->dir, dir);
    char *export = joined(dir, "export"), *state = joined(dir, "ckpt/step-000000004/state.json");
    char *log = joined(dir, "run.jsonl"), *timing = joined(dir, "timing.jsonl");
    discard(export), append_to(state, " "), append_to(log, "{\"crc\":\"0"), append_to(timing, "{\"crc");
    for (int i = 0; i < 3; i++) {
        char *path = joined(dir, leftovers[i]), *file = joined(path, "half");
        mkdir(path, 0755), spill(file, "ha", 2), free(path), free(file);
    }
    char *rollouts = joined(dir, "rollouts.jsonl");
    if (file_exists(rollouts)) append_to(rollouts, "{\"crc\":");
    free(export), free(state), free(log), free(timing), free(rollouts);
}

// ---------------------------------------------------------------------------------------------------------- the places

typedef struct Place {
    int beginning;
    const char *call, *fault; // of strace -e inject
    int64_t n;                // which call of that kind
} Place;

static bool have_strace(void) {
    int rc = system("strace -f -qq -o /dev/null -e trace=write -e inject=write:error=EIO:when=1 true >/dev/null 2>&1");
    return rc == 0;
}

// How many calls of that name the run makes in its main thread.
static int64_t count_calls(const char *dir, int beginning, const char *call) {
    char options[300], *trace = joined(work, "trace"), name[40];
    set_up(dir, beginning);
    snprintf(options, sizeof options, "strace -qq -o %s -e trace=%s", trace, call);
    wrapper = options;
    int rc = finish(start(command(small, dir, "--quiet")));
    wrapper = "";
    if (rc) show_errors("strace %s: exit %d", call, rc);
    char *text = slurp(trace, NULL);
    snprintf(name, sizeof name, "%s(", call);
    int64_t n = count_in(text, name);
    free(text), free(trace);
    return n;
}

static bool is_signal(const char *fault) { return !strncmp(fault, "signal", 6); }

// One fault, what came of it, and the run after it.
static void try_place(const char *dir, const Place *p, int64_t *exits) {
    char options[300];
    set_up(dir, p->beginning);
    snprintf(options, sizeof options, "strace -f -qq -o /dev/null -e trace=%s -e inject=%s:%s:when=%lld", p->call,
             p->call, p->fault, (long long)p->n);
    wrapper = options;
    int rc = finish(start(command(small, dir, "--quiet")));
    wrapper = "";
    int before = test_failures;
    bool signalled = is_signal(p->fault), killed = !strcmp(p->fault, "signal=KILL");
    char *err = joined(work, "err"), *text = slurp(err, NULL);
    int64_t errors = count_in(text, "surgr1: error E-");
    bool loading = text && strstr(text, "shared librar"); // the system's loader met the fault, before main
    exits[signalled ? 0 : rc >= 0 && rc < 12 ? 1 + rc : 13]++;
    if (killed) {
        if (rc != -SIGKILL && rc != 0) show_errors("ended with %d, not by SIGKILL", rc);
    } else if (signalled) {
        if ((rc != 75 && rc != 0) || errors) show_errors("ended with %d after a signal, not with 75 or 0", rc);
    } else if (rc == 9 && !strcmp(p->call, "pread64")) { // the only good checkpoint could not be read
        if (!told("error E-CK-01: ")) show_errors("exit 9 without E-CK-01");
    } else if (rc != 0 && rc != 4 && rc != 5 && !loading) show_errors("exit %d, not 0, 4 or 5", rc);
    else if ((rc == 0 || loading ? 0 : 1) != errors && !(rc && !errors && !strcmp(p->call, "write")))
        show_errors("exit %d with %lld lines of error", rc, (long long)errors); // but the failed write was that line
    free(err), free(text);
    // What had been saved is as it was.
    int64_t count = 0;
    Err e = {0};
    if (p->beginning == FROM_RUIN) {
        char *path = joined(dir, "ckpt/step-000000002");
        if (!checkpoint_verify(path, &e)) FAIL("%s was harmed: %s", path, e.found);
        free(path);
    } else if (folder_exists(dir) && !run_verify(dir, &count, &e)) FAIL("%s, found %s", e.file, e.found);
    Why w = {{0}};
    if (rc == 0 && !killed && !program_equal(small->dir, dir)) FAIL("ended well with other bytes");
    int again = finish(start(command(small, dir, "--quiet")));
    if (again) show_errors("the start after it: exit %d", again);
    else if (!own_equal(small, small->dir, dir, !signalled || killed, &w)) FAIL("the start after it: %s", w.text);
    if (test_failures > before)
        fprintf(stderr, "     from %s: %s:%s:when=%lld\n", p->beginning ? "a ruin" : "nothing", p->call, p->fault,
                (long long)p->n);
}

static const struct {
    const char *call, *fault;
} faults[] = {
    {"openat", "signal=KILL"},    {"write", "signal=KILL"},  {"pwrite64", "signal=KILL"},  {"fsync", "signal=KILL"},
    {"rename", "signal=KILL"},    {"mkdir", "signal=KILL"},  {"unlinkat", "signal=KILL"},  {"unlink", "signal=KILL"},
    {"ftruncate", "signal=KILL"}, {"close", "signal=KILL"},  {"write", "error=ENOSPC"},    {"write", "error=EIO"},
    {"write", "error=EINTR"},     {"write", "retval=1"},     {"pwrite64", "error=ENOSPC"}, {"fsync", "error=EIO"},
    {"fsync", "error=ENOSPC"},    {"rename", "error=EIO"},   {"rename", "error=ENOSPC"},   {"openat", "error=EMFILE"},
    {"openat", "error=EINTR"},    {"mkdir", "error=ENOSPC"}, {"unlinkat", "error=EIO"},    {"ftruncate", "error=EIO"},
    {"pread64", "error=EINTR"},   {"pread64", "error=EIO"},  {"close", "error=EIO"},       {"getdents64", "error=EIO"},
    {"flock", "error=EINTR"},     {"fstatfs", "error=EIO"},  {"write", "signal=TERM"},     {"fsync", "signal=TERM"},
    {"rename", "signal=INT"}};
enum { N_FAULTS = sizeof faults / sizeof *faults };

// part: of the places that are tried in all.
static void try_places(double part) {
    make_reference(small);
    const char *wanted = getenv("SURGR1_POINTS"), *seed = getenv("SURGR1_SEED");
    int64_t most = wanted && *wanted ? strtoll(wanted, NULL, 10) : 15, n = 0, tried = 0, exits[14] = {0};
    most = (int64_t)ceil((double)most * part);
    int64_t counts[BEGINNINGS][N_FAULTS] = {{0}}; // of the call, with whatever fault
    random_state = seed && *seed ? strtoull(seed, NULL, 10) : 4;
    char *dir = joined(work, "faulted");
    for (int b = 0; b < BEGINNINGS; b++)
        for (int f = 0; f < N_FAULTS; f++) {
            for (int g = 0; g < f; g++)
                if (!strcmp(faults[g].call, faults[f].call)) counts[b][f] = counts[b][g];
            if (!counts[b][f]) counts[b][f] = count_calls(dir, b, faults[f].call);
            n += counts[b][f];
        }
    EXPECT(n > 1000);
    for (int b = 0; !most && b < BEGINNINGS; b++)
        for (int f = 0; f < N_FAULTS; f++)
            for (int64_t k = 1; k <= counts[b][f] && test_failures < 10; k++, tried++)
                try_place(dir, &(Place){b, faults[f].call, faults[f].fault, k}, exits);
    while (tried < most && test_failures < 10) { // kills and errors by turns, every kind of call as often
        int b = (int)(BEGINNINGS * uniform()), f = (int)(N_FAULTS * uniform());
        if (!counts[b][f] || is_signal(faults[f].fault) != (tried % 2 == 0)) continue;
        int64_t k = 1 + (int64_t)((double)counts[b][f] * uniform());
        try_place(dir, &(Place){b, faults[f].call, faults[f].fault, k}, exits), tried++;
    }
    printf(
        "     %lld of %lld places: %lld signals; of the errors %lld did no harm, %lld ended with 4, %lld with 5, %lld "
        "otherwise\n",
        (long long)tried, (long long)n, (long long)exits[0], (long long)exits[1], (long long)exits[5],
        (long long)exits[6], (long long)(tried - exits[0] - exits[1] - exits[5] - exits[6]));
    free(dir);
}

TEST(a_fault_in_any_system_call_is_told_and_survived) {
    if (!have_strace()) SKIP("strace is not installed, or may not trace here");
    try_places(1);
}

TEST(a_rollout_that_is_half_used_survives_them_too) {
    if (!have_strace()) SKIP("strace is not installed, or may not trace here");
    small = &reinforcement;
    try_places(0.4);
    small = &fine_tuning;
}

// A log, or a folder of names, that could not be flushed is never passed over: the next checkpoint would stand on it.
TEST(a_flush_that_fails_ends_the_run) {
    static const char *const targets[] = {"run.jsonl", "timing.jsonl", "ckpt", "."};
    if (!have_strace()) SKIP("strace is not installed, or may not trace here");
    make_reference(small);
    char *dir = joined(work, "faulted");
    for (int i = 0; i < 4; i++)
        for (int which = 1; which <= (i < 3 ? 2 : 1); which++) { // the run folder is flushed once, for export
            char options[400];
            set_up(dir, FROM_RUIN);
            snprintf(options, sizeof options, "strace -qq -o /dev/null -P %s/%s -e inject=fsync:error=EIO:when=%d", dir,
                     targets[i], which);
            wrapper = options;
            int rc = finish(start(command(small, dir, "--quiet")));
            wrapper = "";
            if (rc != 5 || !told("error E-WR-02: ")) show_errors("fsync %d of %s: exit %d", which, targets[i], rc);
            EXPECT_EXIT(finish(start(command(small, dir, NOTHING_MORE))), 0);
            expect_equal(small, dir, true);
        }
    free(dir);
}

// ------------------------------------------------------------------------------------------------------------ full disks

// SIGXFSZ must not end it, and no file that was there may be harmed.
TEST(files_that_may_not_grow_end_the_run_with_5) {
    make_reference(small);
    char *dir = joined(work, "limited");
    int64_t refused = 0;
    for (rlim_t limit = 0, rc = 5; rc == 5; limit = limit * 3 / 2 + 700) { // until every file fits
        discard(dir);
        file_limit = limit;
        rc = (rlim_t)finish(start(command(small, dir, "--quiet")));
        file_limit = RLIM_INFINITY, refused += rc == 5;
        int64_t count = 0;
        Err e = {0};
        if (rc && (rc != 5 || (limit && !told("error E-WR-01: "))))
            show_errors("limit %lld: exit %lld", (long long)limit, (long long)rc);
        if (folder_exists(dir) && !run_verify(dir, &count, &e)) FAIL("limit %lld: %s", (long long)limit, e.found);
        EXPECT_EXIT(finish(start(command(small, dir, NOTHING_MORE))), 0);
        expect_equal(small, dir, true);
    }
    EXPECT(refused >= 5);
    free(dir);
}

// A tmpfs in a mount namespace of this process: it is gone with it.
static bool small_disk(const char *at, int64_t kilobytes) {
    static bool unshared;
    char size[40];
    snprintf(size, sizeof size, "size=%lldk", (long long)kilobytes);
    if (geteuid()) return false;
    if (!unshared && (unshare(CLONE_NEWNS) || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL))) return false;
    unshared = true, mkdir(at, 0755);
    return !mount("tmpfs", at, "tmpfs", 0, size);
}
static void fill(const char *path, int64_t kilobytes) {
    char *bytes = alloc_or_die((size_t)kilobytes, 1024, "ballast");
    spill(path, bytes, (size_t)kilobytes * 1024), free(bytes);
}

TEST(a_full_disk_is_warned_of_and_the_third_time_ends_the_run) {
    static Variant slow = {.name = "slow",
                           .options = "--lora q_proj --lora-rank 2 --lr 1e-2 --batch 16 --accumulate 8 --steps 4 "
                                      "--save-every 1 --threads 1 --keep-last 9",
                           .steps = 4};
    char *disk = joined(work, "disk"), *dir = joined(disk, "run"), *ballast = joined(disk, "ballast");
    if (!small_disk(disk, 600)) SKIP("not allowed to mount a tmpfs");
    make_reference(&slow);
    // room for the logs, but not for 1.25 checkpoints of 68 kB
    fill(ballast, 520);
    EXPECT_EXIT(finish(start(command(&slow, dir, NOTHING_MORE))), 5);
    EXPECT_TOLD("warning E-WR-01: ");
    EXPECT_TOLD("error E-WR-01: ");
    EXPECT_TOLD("found none for the third time in a row");
    char *err = joined(work, "err"), *text = slurp(err, NULL);
    EXPECT_INT(count_in(text, "training goes on"), 3);
    EXPECT(text && strstr(text, "step 3/4") && !strstr(text, "step 4/4"));
    remove(ballast);
    EXPECT_EXIT(finish(start(command(&slow, dir, NOTHING_MORE))), 0);
    expect_equal(&slow, dir, true);
    // Room again behind the first miss: the run ends well, without the checkpoint that was missed.
    discard(dir), fill(ballast, 520);
    pid_t pid = start(command(&slow, dir, NOTHING_MORE));
    bool there = wait_for_step(pid, 2, 4);
    remove(ballast);
    EXPECT_EXIT(finish(pid), 0);
    EXPECT(there);
    EXPECT_TOLD("warning E-WR-01: ");
    expect_equal(&slow, dir, false);
    // At the last step nothing comes that could try again.
    static Variant ends = {.name = "ends", .options = "--lora q_proj --lora-rank 2 --batch 2 --steps 2", .steps = 2};
    make_reference(&ends);
    discard(dir), fill(ballast, 520);
    EXPECT_EXIT(finish(start(command(&ends, dir, NOTHING_MORE))), 5);
    EXPECT_TOLD("found none at the last step");
    remove(ballast);
    EXPECT_EXIT(finish(start(command(&ends, dir, NOTHING_MORE))), 0);
    expect_equal(&ends, dir, true);
    umount(disk);
    free(text), free(err), free(disk), free(dir), free(ballast);
}

// The disk ends anywhere: in a log, a checkpoint, the export.
TEST(a_disk_of_any_size_leaves_a_run_that_resumes) {
    char *disk = joined(work, "disk"), *dir = joined(disk, "run");
    make_reference(small);
    for (int64_t size = 8; size <= 200; size += 24) {
        if (!small_disk(disk, size)) SKIP("not allowed to mount a tmpfs");
        int rc = finish(start(command(small, dir, "--quiet")));
        int64_t count = 0;
        Err e = {0};
        if (rc != 0 && (rc != 5 || !told("error E-WR-01: "))) show_errors("%lld kB: exit %d", (long long)size, rc);
        if (folder_exists(dir) && !run_verify(dir, &count, &e)) FAIL("%lld kB: %s", (long long)size, e.found);
        EXPECT(!mount("none", disk, NULL, MS_REMOUNT, "size=4m"));
        EXPECT_EXIT(finish(start(command(small, dir, NOTHING_MORE))), 0);
        expect_equal(small, dir, size > 150);
        umount(disk);
    }
    free(disk), free(dir);
}
