// surgr1.c - the program: its subcommands, its help, its exit code.
//
// What it is:  the list of commands. Each is a file of commands/; the two that are a few lines stand here.
// What it is not: a place for logic.
// Read before: surgr1.h, the map of the program.  Read next: commands/ask.c, then generate.c.
#include "commands/commands.h"
#include <errno.h>
#include <signal.h>

#define VERSION SURGR1_VERSION
#ifdef SURGR1_CUDA
#define DEVICES "ref cpu cuda"
#else
#define DEVICES "ref cpu"
#endif

static struct { double limit; } trace = {1e-4};
// clang-format off
static Option trace_options[] = {
    REAL("limit", &trace.limit, "L", "largest relative L2 error of an op's output", 0, 1e6),
    END};
// clang-format on

static int run_trace_diff(char **args, int n) {
    Err e = {0};
    bool same = false;
    (void)n;
    if (!trace_diff(args[0], args[1], trace.limit, &same, &e)) return err_report(&e);
    return same ? EXIT_OK : EXIT_NO;
}

// clang-format off
static Option no_options[] = {
    END};
// clang-format on

static int run_limits(char **args, int n) {
    (void)args, (void)n;
#define X(name, value, what) printf("%-26s %14lld  %s\n", #name, (long long)name, what);
    SURGR1_LIMITS(X)
#undef X
    return EXIT_OK;
}

static const Command command_trace_diff = {
    "trace-diff",
    "trace-diff A B",
    "Compares two files of ask --trace op by op. Exit 0 when they agree, 1 when not.",
    trace_options,
    2,
    2,
    "two trace files",
    run_trace_diff};
static const Command command_limits = {
    "limits",      "limits",  "Prints every limit of the program. No file can raise one.", no_options, 0, 0,
    "no argument", run_limits};
static const Command *const commands[] = {
    &command_ask,          &command_sft,        &command_grpo,   &command_merge,  &command_info,  &command_check,
    &command_compare,      &command_trace_diff, &command_limits, &command_scenes, &command_synth, &command_import,
    &command_reward_check, &command_eval,       &command_report, &command_recipe, &command_table, &command_tokenizer,
    &command_init,         &command_refine,     &command_memory};
enum { N_COMMANDS = sizeof commands / sizeof *commands };

static int help_program(void) {
    printf("surgr1 " VERSION " - surgical vision-language models on Qwen2.5-VL, in plain C\n\n");
    for (int i = 0; i < N_COMMANDS; i++) printf("usage: surgr1 %s\n", commands[i]->usage);
    printf("       surgr1 COMMAND --help    options with units and defaults\n"
           "       surgr1 --version\n\n"
           "exit codes: 0 done, 1 the answer is no, 2 wrong command line, 3 input refused, 4 cannot read, 5 cannot "
           "write,\n"
           "            6 out of memory or over a limit, 7 the device failed, 8 bad numbers, 9 no fitting "
           "checkpoint,\n"
           "            10 the run is locked, 70 a bug, 75 stopped on request\n");
    return EXIT_OK;
}

const Command *command_named(const char *name, const char **nearest) {
    int least = 3;
    *nearest = NULL;
    for (int i = 0; i < N_COMMANDS; i++) {
        int d = word_distance(name, commands[i]->name);
        if (!d) return commands[i];
        if (d < least) least = d, *nearest = commands[i]->name;
    }
    return NULL;
}

int surgr1_main(int argc, char **argv) {
    // A closed pipe and a file-size limit come back as errors of the call instead of ending the process.
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
    const char *name = argc > 1 ? argv[1] : "";
    int rc = -1;
    if (!strcmp(name, "--help") || !strcmp(name, "help")) rc = help_program();
    else if (!strcmp(name, "--version")) rc = (puts("surgr1 " VERSION ", devices: " DEVICES), EXIT_OK);
    const char *nearest = NULL;
    const Command *command = rc < 0 ? command_named(name, &nearest) : NULL;
    if (command) rc = command_run(command, argc - 2, argv + 2);
    if (rc < 0) {
        char todo[80];
        if (nearest) snprintf(todo, sizeof todo, "write surgr1 %s", nearest);
        else snprintf(todo, sizeof todo, "see surgr1 --help");
        return usage(NULL, "a command", argc > 1 ? quoted(name, strlen(name)) : "none", todo);
    }
    errno = 0;
    if (fflush(stdout) || ferror(stdout)) { // what was asked for never arrived: say so even when all else went well
        Err e = {0};
        err_set(&e, errno == ENOSPC || errno == EFBIG ? "E-WR-01" : "E-WR-02", AT(.file = "standard output"),
                "expected to write the result; found %s; do: check where the output goes", error_text(errno));
        int write_rc = err_report(&e);
        return rc ? rc : write_rc;
    }
    return rc;
}

int main(int argc, char **argv) { return surgr1_main(argc, argv); }
