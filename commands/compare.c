// compare.c - surgr1 compare RUN_A RUN_B: did two runs do the same, byte for byte?
//
// What it is:  the proof of an exact resume, for users: run once without a stop, once with, and compare.
// What it is not: a comparison of results that may differ by rounding. One bit is a difference.
// Read before: commands.h, ../io/run.c.  Read next: ../surgr1.c.
#include "commands.h"

// clang-format off
static Option compare_options[] = {
    END};
// clang-format on

static int run_compare_command(char **args, int n) {
    Err e = {0};
    bool same = false;
    (void)n;
    if (!run_compare(args[0], args[1], &same, &e)) return err_report(&e);
    return same ? EXIT_OK : EXIT_NO;
}

const Command command_compare = {
    "compare",
    "compare RUN_A RUN_B",
    "Compares two run folders: checkpoints of the same step, run.jsonl and export must be\n"
    "equal byte for byte. Prints the first difference: file, tensor, element.\n"
    "Exit 0 when they are equal, 1 when not.",
    compare_options,
    2,
    2,
    "two run folders",
    run_compare_command};
