// table.c - surgr1 table: the arms of an experiment side by side.
//
// What it is:  the options of ../surgery/table.c, and where its three forms go.
// What it is not: a number.
// Read before: commands.h, ../surgery/table.c.  Read next: ../data/recipes/README.md.
#include "commands.h"

static struct {
    Many roots;
    const char *out;
    int64_t resamples, seed;
    double level;
} table = {.resamples = 2000, .level = 0.95};
// clang-format off
static Option table_options[] = {
    MANY("root", &table.roots, "DIR", "folder that the paths of the spec start at; again for every further seed", 64),
    TEXT("out", &table.out, "DIR", "folder for table.md, table.json, table.txt"),
    INT("resamples", &table.resamples, "N", "of the intervals", 2, 1e6),
    REAL("level", &table.level, "P", "of the intervals", 0.5, 0.9999),
    INT("seed", &table.seed, "N", "of the intervals", 0, 9007199254740992.),
    END};
// clang-format on

static int run_table(char **args, int n) {
    Err e = {0};
    Text form[3] = {0};
    static const char *const names[3] = {"table.txt", "table.md", "table.json"};
    char path[1200];
    TableOptions o = {.spec = args[0],
                      .roots = table.roots.p,
                      .n_roots = table.roots.n,
                      .resamples = table.resamples,
                      .level = table.level,
                      .seed = (uint64_t)table.seed};
    (void)n;
    if (!o.n_roots) return usage("--root", "a folder for each seed", "none", "give --root DIR");
    bool ok = table_make(&o, &form[0], &form[1], &form[2], &e) && (!table.out || folder_make_all(table.out, &e));
    if (ok) fwrite(form[0].p, 1, form[0].len, stdout);
    for (int k = 0; ok && table.out && k < 3; k++)
        ok = path_join(path, sizeof path, table.out, names[k], &e) &&
             file_write_atomic(path, form[k].p, form[k].len, &e);
    for (int k = 0; k < 3; k++) text_free(&form[k]);
    warn_summary();
    return ok ? EXIT_OK : err_report(&e);
}

const Command command_table = {
    "table",
    "table SPEC.json --root DIR [--root DIR ...] [--out DIR]",
    "Puts the arms of an experiment side by side (the spec is explained in data/recipes/README.md): accuracy by task,\n"
    "boxes, format and length from predictions.jsonl files of surgr1 eval, means over seeds with intervals, and "
    "paired\n"
    "differences. The table goes to standard output.",
    table_options,
    1,
    1,
    "one spec",
    run_table};
