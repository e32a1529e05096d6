// test_process.c - this program as a child of itself: arguments, exit codes, signals, and what happens when the parent dies.
//
// What it is:  the test is its own child: under the name that self_run gives, it does what its first argument says.
// What it is not: a test of a stage that another one runs (test_refine.c).
#include "temporary.h"
#include "../surgr1.h"
#include <signal.h>
#include <sys/wait.h>

static void nap(void) { nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL); }

static const char *read_all(const char *path) {
    static char text[4000];
    FILE *f = fopen(path, "r");
    size_t n = f ? fread(text, 1, sizeof text - 1, f) : 0;
    text[n] = 0;
    if (f) fclose(f);
    return text;
}

// until-stopped FILE: says in FILE who it is, then works until it is asked to stop.
static int until_stopped(const char *file) {
    Err e = {0};
    char text[40];
    int n = snprintf(text, sizeof text, "%d", (int)getpid());
    stop_on_signals();
    if (!file_write_atomic(file, text, (size_t)n, &e)) return 1;
    for (int i = 0; i < 1000 && !stop_requested(); i++) nap();
    nap(); // what is left to do then
    return stop_requested() ? EXIT_STOPPED : 1;
}

static int be_child(int argc, char **argv) {
    Err e = {0};
    int status = -1;
    if (!strcmp(argv[1], "say")) {
        for (int i = 2; i < argc; i++) printf("[%s]", argv[i]);
        fflush(stdout);
        return 7;
    }
    if (!strcmp(argv[1], "die")) raise(SIGKILL);
    if (!strcmp(argv[1], "own-group")) return getpgrp() == getpid() ? 0 : 1;
    if (!strcmp(argv[1], "until-stopped")) return until_stopped(argv[2]);
    if (strcmp(argv[1], "parent-of")) return 98;
    stop_on_signals(); // runs until-stopped, and tells how that ended
    return self_run((const char *const[]){"until-stopped", argv[2], NULL}, &status, &e) ? status : 99;
}
__attribute__((constructor)) static void child_or_test(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[0], "surgr1")) _exit(be_child(argc, argv));
}

static int run(const char *what) {
    Err e = {0};
    int status = -1;
    EXPECT(self_run((const char *const[]){what, NULL}, &status, &e));
    return status;
}

TEST(arguments_arrive_as_they_are_and_the_exit_code_comes_back) {
    Err e = {0};
    int status = -1;
    const char *file = tmp_path("out");
    put_file(file, "what was there before, and is longer than what comes", 50);
    EXPECT(self_run_to(file, (const char *const[]){"say", "a b", "", "--c=\"d\"", "$HOME", NULL}, &status, &e));
    EXPECT_INT(status, 7);
    EXPECT_STR(read_all(file), "[a b][][--c=\"d\"][$HOME]");
    EXPECT_INT(run("die"), 128 + SIGKILL);
    EXPECT_INT(run("own-group"), 0);
}

TEST(output_that_cannot_be_written_is_told) {
    Err e = {0};
    int status = -1;
    EXPECT(!self_run_to(tmp_folder("a-folder"), (const char *const[]){"say", NULL}, &status, &e));
    EXPECT_STR(e.code, "E-WR-02");
    EXPECT_INT(status, -1);
}

// A parent in another process, with its child at work.
static pid_t start_pair(const char *file, pid_t *child) {
    unlink(file);
    pid_t parent = fork();
    if (!parent) {
        execl("/proc/self/exe", "surgr1", "parent-of", file, (char *)NULL);
        _exit(99);
    }
    for (int i = 0; i < 1000 && !file_exists(file); i++) nap();
    *child = (pid_t)atoi(read_all(file));
    EXPECT(*child > 1 && *child != parent && !kill(*child, 0));
    return parent;
}

static bool gone(pid_t child) { // it may wait for an init that fetches it
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)child);
    return kill(child, 0) || strstr(read_all(path), ") Z ");
}

TEST(a_stop_is_passed_on_and_the_child_ends_in_its_own_time) {
    static const int signals[] = {SIGINT, SIGTERM};
    for (int i = 0; i < 2; i++) {
        pid_t child, parent = start_pair(tmp_path("pid"), &child);
        int how = 0;
        kill(parent, signals[i]);
        EXPECT(waitpid(parent, &how, 0) == parent && WIFEXITED(how));
        EXPECT_INT(WEXITSTATUS(how), EXIT_STOPPED);
        EXPECT(gone(child));
    }
}

TEST(the_child_does_not_outlive_a_parent_that_is_killed) {
    pid_t child, parent = start_pair(tmp_path("pid"), &child);
    int how = 0, i = 0;
    kill(parent, SIGKILL);
    EXPECT(waitpid(parent, &how, 0) == parent && WIFSIGNALED(how));
    while (i < 300 && !gone(child)) i++, nap();
    EXPECT(i < 300);
}
