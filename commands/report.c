// report.c - surgr1 report: predictions, metrics and runs as one HTML file.
//
// What it is:  the options of ../surgery/report.c.
// What it is not: an evaluation (eval.c makes predictions and metrics).
// Read before: commands.h, ../surgery/report.c.  Read next: ../surgr1.c.
#include "commands.h"

static struct {
    const char *predictions, *metrics, *image_root, *out, *title;
    Many runs, tables;
    int64_t max_items, max_side, max_groups;
} report = {.out = "report.html", .title = "surgr1", .max_items = 120, .max_side = 320, .max_groups = 12};
// clang-format off
static Option report_options[] = {
    TEXT("predictions", &report.predictions, "FILE", "records with a \"response\", as surgr1 eval writes them"),
    TEXT("metrics", &report.metrics, "FILE", "metrics.json of surgr1 eval"),
    MANY("table", &report.tables, "FILE", "table.json of surgr1 table; again for more", 16),
    MANY("run", &report.runs, "RUN", "run folder: its curves, and completions if it has any; again for more", 16),
    TEXT("image-root", &report.image_root, "DIR", "where the pictures' paths start (default: beside the predictions)"),
    TEXT("out", &report.out, "FILE", "the page"),
    TEXT("title", &report.title, "TEXT", "of the page"),
    INT("max-items", &report.max_items, "N", "answers with a card; tables always count all", 0, 100000),
    INT("max-side", &report.max_side, "N", "longer side of a picture, in pixels", 16, 4096),
    INT("max-groups", &report.max_groups, "N", "groups of completions shown of each run", 0, 10000),
    END};
// clang-format on

static int run_report(char **args, int n) {
    Err e = {0};
    int64_t cards;
    ReportOptions o = {.predictions = report.predictions,
                       .metrics = report.metrics,
                       .tables = report.tables.p,
                       .n_tables = report.tables.n,
                       .runs = report.runs.p,
                       .n_runs = report.runs.n,
                       .image_root = report.image_root,
                       .out = report.out,
                       .title = report.title,
                       .max_items = report.max_items,
                       .max_side = report.max_side,
                       .max_groups = report.max_groups};
    (void)args, (void)n;
    if (!o.predictions && !o.n_runs && !o.metrics && !o.n_tables)
        return usage("--predictions", "something to report on", "nothing",
                     "give --predictions, --metrics, --table or --run");
    if (!report_write(&o, &cards, &e)) return err_report(&e);
    printf("%s: %lld answers shown\n", o.out, (long long)cards);
    return EXIT_OK;
}

const Command command_report = {
    "report",
    "report [--table FILE] [--run RUN] [--metrics FILE] [--predictions FILE] --out report.html",
    "Writes one HTML file without any outside part: the ablation table, curves of runs, completions of reinforcement\n"
    "runs with their tokens tinted by weight, answers with pictures, boxes, reasoning by level and rewards, confusion\n"
    "matrices. Filters, light and dark, arrow keys; it reads without scripts too.",
    report_options,
    0,
    0,
    "no argument",
    run_report};
