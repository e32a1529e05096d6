// process.c - this program run once more, as a child with a subcommand of its own.
//
// What it is:  how one command uses another (refine and run start trainings): start, wait, pass a stop on. The two share
//              files and nothing else, so a stage is the same whether a person starts it or another stage does.
// What it is not: a shell. It runs this very program only, with the arguments as they are.
// Read before: surgr1.h, section io/process.c.  Read next: run.c.
//
// The child is a process group of its own: what a terminal or `timeout` sends to the group comes here alone and is passed
// on once (a second signal within 5 s would end the child at once). When this process dies, by SIGKILL too, the kernel
// ends the child: nobody goes on writing into a run folder that the next start wants to lock.
#define _GNU_SOURCE
#include "../surgr1.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum { POLL_NANOSECONDS = 10000000 };

// In the child, between fork and exec: system calls only.
static void become(char *const *args, int out, pid_t parent, int failure) {
    int error = 0;
    sigset_t none;
    sigemptyset(&none);
    signal(SIGINT, SIG_DFL), signal(SIGTERM, SIG_DFL); // a stop that comes before the child listens ends it
    if (setpgid(0, 0) || prctl(PR_SET_PDEATHSIG, SIGKILL)) error = errno;
    if (getppid() != parent) _exit(EXIT_STOPPED); // it died before the line above
    if (!error && out >= 0 && dup2(out, STDOUT_FILENO) < 0) error = errno;
    sigprocmask(SIG_SETMASK, &none, NULL);
    if (!error) execv("/proc/self/exe", args), error = errno;
    if (write(failure, &error, sizeof error) != (ssize_t)sizeof error) _exit(126);
    _exit(127);
}

// The errno of a child that could not become the program; 0 when it did (its end of the pipe closed by exec).
static int exec_error(int fd) {
    int error = 0;
    ssize_t n;
    do n = read(fd, &error, sizeof error);
    while (n < 0 && errno == EINTR);
    return n == (ssize_t)sizeof error ? error : 0;
}

static int wait_for(pid_t child) {
    const struct timespec nap = {.tv_nsec = POLL_NANOSECONDS};
    bool passed_on = false;
    int how;
    for (;;) { // polled: the signal may be handled by any thread, which wakes no other one
        pid_t ended = waitpid(child, &how, WNOHANG);
        CHECK(ended >= 0 || errno == EINTR, "waitpid of our own child: errno %d", errno);
        if (ended == child) break;
        if (stop_requested() && !passed_on) passed_on = true, kill(child, SIGTERM);
        nanosleep(&nap, NULL);
    }
    if (!WIFSIGNALED(how)) return WEXITSTATUS(how);
    return passed_on && WTERMSIG(how) == SIGTERM ? EXIT_STOPPED : 128 + WTERMSIG(how);
}

bool self_run_to(const char *out, const char *const *argv, int *status, Err *e) {
    int n = 0, pipe_of[2], error = 0;
    sigset_t all, before;
    int to = out ? open(out, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOCTTY, 0644) : -1;
    if (out && to < 0)
        return err_set(e, "E-WR-02", AT(.file = out), "expected a file for the output of a child; found %s; do: %s",
                       error_text(errno), "choose another place");
    while (argv[n]) n++;
    char **args = alloc_or_die((size_t)n + 2, sizeof *args, "the arguments of a child");
    args[0] = (char *)(uintptr_t) "surgr1";
    for (int i = 0; i < n; i++) args[i + 1] = (char *)(uintptr_t)argv[i];
    fflush(stdout); // in the order of what was printed
    if (pipe2(pipe_of, O_CLOEXEC)) error = errno;
    pid_t child = -1, parent = getpid();
    if (!error) {
        sigfillset(&all);
        sigprocmask(SIG_SETMASK, &all, &before);
        child = fork();
        if (!child) become(args, to, parent, pipe_of[1]);
        error = child < 0 ? errno : 0;
        sigprocmask(SIG_SETMASK, &before, NULL);
        close(pipe_of[1]);
        if (!error) error = exec_error(pipe_of[0]);
        close(pipe_of[0]);
    }
    if (child > 0) {
        int how = wait_for(child);
        if (!error) *status = how;
    }
    if (to >= 0) close(to);
    free(args);
    return !error || err_set(e, "E-IO-01", AT(.file = "/proc/self/exe", .field = argv[0]),
                             "expected to start this program again; found %s; do: check the limits of processes and "
                             "memory, and that /proc is mounted",
                             error_text(error));
}

bool self_run(const char *const *argv, int *status, Err *e) { return self_run_to(NULL, argv, status, e); }
