// commands.h - what the subcommands share: option tables, and how a wrong command line is told.
//
// What it is:  the top floor's own header. One table per subcommand makes the parsing, the help text and the start-up
//              listing; each file of this folder is one subcommand (options.c serves them all, surgr1.c lists them).
// What it is not: a place for logic. What an option does is done in the file below it belongs to.
// Read before: surgr1.h.  Read next: options.c, then ask.c.
#ifndef SURGR1_COMMANDS_H
#define SURGR1_COMMANDS_H
#include "../surgr1.h"

typedef enum Kind { OPT_FLAG, OPT_UNFLAG, OPT_TEXT, OPT_INT, OPT_REAL, OPT_CHOICE, OPT_MANY } Kind;

typedef struct Many { // an option that may be given several times
    const char *p[64];
    int n;
} Many;

typedef struct Option {
    const char *name; // without the dashes; NULL ends a table
    Kind kind;
    void *value;     // bool, bool, const char *, int64_t, double, int (which of the words of `arg`), Many
    const char *arg; // what stands for the value in the help; OPT_CHOICE: the words, "ref|cpu|cuda"
    const char *help;
    double min, max;    // OPT_INT, OPT_REAL
    const char *origin; // who set it: NULL = the default, "command line", or the name of a file
} Option;

// The rows of a table.
#define FLAG(name, value, help)                                                                                        \
    { name, OPT_FLAG, value, NULL, help, 0, 0, NULL }
#define UNFLAG(name, value, help)                                                                                      \
    { name, OPT_UNFLAG, value, NULL, help, 0, 0, NULL }
#define TEXT(name, value, arg, help)                                                                                   \
    { name, OPT_TEXT, value, arg, help, 0, 0, NULL }
#define CHOICE(name, value, words, help)                                                                               \
    { name, OPT_CHOICE, value, words, help, 0, 0, NULL }
#define MANY(name, value, arg, help, max)                                                                              \
    { name, OPT_MANY, value, arg, help, 0, max, NULL }
#define INT(name, value, arg, help, min, max)                                                                          \
    { name, OPT_INT, value, arg, help, min, max, NULL }
#define REAL(name, value, arg, help, min, max)                                                                         \
    { name, OPT_REAL, value, arg, help, min, max, NULL }
#define END                                                                                                            \
    { 0 }

typedef struct Command {
    const char *name, *usage, *what; // `what` also says what the arguments are and what is printed where
    Option *options;
    int min_args, max_args;
    const char *args; // what the arguments are, for messages
    int (*run)(char **args, int n);
} Command;

extern const Command command_ask, command_info, command_check, command_compare, command_merge, command_sft,
    command_report;
extern const Command command_reward_check;
extern const Command command_scenes;
extern const Command command_import;
extern const Command command_eval;
extern const Command command_grpo;
extern const Command command_synth;
extern const Command command_recipe;
extern const Command command_refine;
extern const Command command_table;
extern const Command command_tokenizer;
extern const Command command_init;
extern const Command command_memory;

// Reads argv (without the program and the command) by the table of c and runs it; --help prints the table instead.
// Returns the exit code. A wrong command line is exit 2 with one line that names the nearest option.
int command_run(const Command *c, int argc, char **argv);
// One line of the usual form, E-CL-01, "command line: field ..."; returns EXIT_USAGE.
int usage(const char *field, const char *expected, const char *found, const char *todo);
int choice_of(const char *words, const char *text);  // which of "a|b|c" text is; -1 when it is none
int word_distance(const char *a, const char *b);     // Levenshtein, for "did you mean"
Option *option_of(Option *table, const void *value); // the row whose value this is
// For who writes command lines: the command of that name (NULL: none; *nearest may be what was meant, or NULL), its option,
// and whether that takes the text. E-CF-02.
const Command *command_named(const char *name, const char **nearest);
const Option *option_named(const Command *c, const char *name, Where at, Err *e);
bool option_takes(const Command *c, const Option *o, const char *text, Where at, Err *e);
// One note with every option whose value came from `origin` ("" = the default).
void list_options(const Option *options, const char *origin, const char *title);
// Options as two JSON objects, name to value and name to origin ("default", "command line", a file's name).
void options_json(const Option *options, Text *values, Text *origins);
// The other way: the options of a run's config.json (or a bare object of them) into those that nobody has set yet. doc
// holds the texts and must outlive the options. E-CF-02 names the field.
bool options_read(const Command *c, const char *path, JsonDoc *doc, Err *e);
// The device of --device and --dtype, with the rungs of --matmul and --kernels. E-DV-01; E-CL-01 for rungs of a device that
// has none, or that the build has not.
enum { DEVICE_REF, DEVICE_CPU, DEVICE_CUDA };
enum { DTYPE_AUTO, DTYPE_F32, DTYPE_BF16 };
const Ops *device_of(int device, int dtype, CudaRungs rungs, Err *e);
// The rows of a table that say which, and what T's members `matmul` and `kernels` then mean.
#define CUDA_ROWS(T)                                                                                                   \
    CHOICE("matmul", &(T).matmul, "auto|naive|tensor|cublas",                                                          \
           "cuda: products of matrices by the fastest there is, plain, on tensor cores, by cuBLASLt"),                 \
        CHOICE("kernels", &(T).kernels, "auto|naive", "cuda: all else by the fastest there is, or plain")
#define CUDA_RUNGS(T) ((CudaRungs){(CudaMatmul)(T).matmul, (T).kernels == 1})
// False with E-CL-01 when the smallest area is larger than the largest.
bool pixel_limits_ok(const VisionConfig *v, Err *e);

#endif
