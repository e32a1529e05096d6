// training.h - what the commands that train have in common: the options of every trainer, and what they open.
//
// What it is:  one struct that holds these options and the things they name, the rows of the option table, and the steps
//              from a command line to a model that is open for training in a run folder.
// What it is not: anything about data, losses or steps: sft.c and grpo.c bring those.
// Read before: commands.h.  Read next: training.c, then sft.c.
#ifndef SURGR1_TRAINING_H
#define SURGR1_TRAINING_H
#include "commands.h"

typedef struct Training {
    const Command *command;
    // options
    const char *model, *image_root, *out, *config, *lora, *full, *freeze, *adapter;
    Many anyway;
    int64_t rank, threads, max_memory, min_pixels, max_pixels, seed, warmup, keep;
    double alpha_lora, dropout, lr, lr_vision, lr_merger, warmup_part;
    int device, dtype, matmul, kernels, alpha, exif, rate, outliers, export_dtype;
    bool rslora, absolute, trust_text, dry_run, allow_nonfinite, hash_base;
    bool paper; // weights are laid out, not loaded, and the table goes to standard output
    AdamOptions adam;
    Schedule schedule;
    TrainerOptions guards;
    // what they name
    Config c;
    Tokenizer *t;
    Model m;
    Run run;
    Checkpoint from;
    char base[65]; // fingerprint of the base weights
} Training;
#define TRAINING_DEFAULTS(rate, part, second)                                                                          \
    .rank = 16, .alpha_lora = 32, .lr = rate, .device = DEVICE_CPU, .warmup_part = part, .keep = -1,                   \
    .adam = {.beta1 = 0.9, .beta2 = second, .eps = 1e-8, .clip = 1}, .schedule = {.decay_part = 0.2},                  \
    .guards = {.keep_last = 3, .max_skips = 3}, .from = {.step = -1}, .run = {.lock = -1}

// clang-format off
#define TRAINING_RUN_ROWS(T) \
    TEXT("out", &(T).out, "RUN", "run folder; started again on the same folder, the run resumes"), \
    TEXT("config", &(T).config, "FILE", "options from a run's config.json; the command line speaks louder"), \
    MANY("resume-anyway", &(T).anyway, "FIELD", "resume though this member of config.json differs (options.lr); again for more", 20), \
    FLAG("dry-run", &(T).dry_run, "everything up to step 0, and nothing written")
#define TRAINING_WEIGHTS_ROWS(T) \
    TEXT("lora", &(T).lora, "WHAT", "decoder, vision, merger (comma-separated), module names, or \"/regular expression/\""), \
    INT("lora-rank", &(T).rank, "R", "rank of A and B", 1, 1024), \
    REAL("lora-alpha", &(T).alpha_lora, "A", "scale is alpha / rank", 1e-6, 65536), \
    FLAG("rslora", &(T).rslora, "scale is alpha / sqrt(rank)"), \
    REAL("lora-dropout", &(T).dropout, "P", "dropout before A", 0, 0.9), \
    TEXT("adapter", &(T).adapter, "DIR", "go on from this PEFT adapter instead of a new one"), \
    TEXT("full", &(T).full, "WHAT", "train the weights themselves: decoder, vision, merger (comma-separated)"), \
    TEXT("freeze", &(T).freeze, "NAMES", "with --full: what stays, by parts of names (embed_tokens,blocks.0)")
#define TRAINING_RATE_ROWS(T) \
    REAL("lr", &(T).lr, "LR", "learning rate", 0, 10), \
    REAL("lr-vision", &(T).lr_vision, "LR", "of the vision tower; 0 = --lr", 0, 10), \
    REAL("lr-merger", &(T).lr_merger, "LR", "of the merger; 0 = --lr", 0, 10), \
    CHOICE("schedule", &(T).rate, "cosine|linear|constant|wsd", "of the learning rate after warm-up"), \
    INT("warmup", &(T).warmup, "N", "steps of warm-up; 0 = by --warmup-ratio", 0, 1e9), \
    REAL("warmup-ratio", &(T).warmup_part, "F", "warm-up as a part of all steps", 0, 1), \
    REAL("min-lr-ratio", &(T).schedule.floor, "F", "part of the learning rate left at the end", 0, 1), \
    REAL("decay-ratio", &(T).schedule.decay_part, "F", "wsd: the part of the run that falls", 0, 1), \
    REAL("beta1", &(T).adam.beta1, "B", "of AdamW", 0, 0.999999), \
    REAL("beta2", &(T).adam.beta2, "B", "of AdamW", 0, 0.999999), \
    REAL("adam-eps", &(T).adam.eps, "E", "of AdamW", 1e-12, 1), \
    REAL("weight-decay", &(T).adam.decay, "D", "of matrices; never of norms and biases", 0, 1), \
    REAL("clip", &(T).adam.clip, "N", "largest norm of the gradient; 0 = off", 0, 1e9)
#define TRAINING_KEEP_ROW(T) \
    INT("keep", &(T).keep, "K", "blocks of each tower that keep what they computed, the others run again in backward;\n" \
        "                             more is faster, never other bits; -1 = as many as fit", -1, 1024)
#define TRAINING_SAVE_ROWS(T) \
    INT("keep-last", &(T).guards.keep_last, "N", "newest checkpoints to keep, beside the best", 2, 1e6), \
    INT("keep-every", &(T).guards.keep_every, "N", "also keep those at multiples of N; 0 = none", 0, 1e9)
#define TRAINING_GUARD_ROWS(T) \
    INT("max-skips", &(T).guards.max_skips, "N", "skipped steps in a row that end the run", 1, 1000), \
    CHOICE("outliers", &(T).outliers, "report|skip", "steps with a far loss or gradient norm")
#define TRAINING_EXPORT_ROWS(T) \
    CHOICE("export-dtype", &(T).export_dtype, "keep|f32|bf16", "with --full: type of the weights in RUN/export; keep: as in the\n" \
        "                             checkpoint, where bf16 rounds small changes of the trained F32 away"), \
    FLAG("old-keys", &(T).guards.old_keys, "export the adapter with the names of transformers before 4.52")
#define TRAINING_MACHINE_ROWS(T) \
    INT("min-pixels", &(T).min_pixels, "N", "smallest picture area after the resize; 0 = the checkpoint's", 0, 12845056), \
    INT("max-pixels", &(T).max_pixels, "N", "largest picture area after the resize; 0 = the checkpoint's", 0, 12845056), \
    CHOICE("alpha", &(T).alpha, "drop|white", "transparent pictures: drop alpha, or lay over white"), \
    CHOICE("exif", &(T).exif, "ignore|apply", "turn pictures by their EXIF orientation"), \
    CHOICE("device", &(T).device, "ref|cpu|cuda", "who computes; ref is slow and defines the answer"), \
    CUDA_ROWS(T), \
    CHOICE("dtype", &(T).dtype, "auto|f32|bf16", "type of frozen matrices; auto keeps the checkpoint's"), \
    INT("threads", &(T).threads, "N", "threads; 0 = one per processor; never changes a result", 0, 256), \
    INT("max-memory", &(T).max_memory, "N", "bytes of host memory to use at most; 0 = 80 % of what is there", 0, 1e15), \
    FLAG("allow-nonfinite", &(T).allow_nonfinite, "load weights with NaN or infinity"), \
    FLAG("hash-base", &(T).hash_base, "remember the base weights by all their bytes, not by names and shapes")
// clang-format on

// An option that does nothing unless something stands beside it.
typedef struct IdleRule {
    const void *value;
    bool used;
    const char *beside; // what that is
} IdleRule;
bool on_command_line(const Training *s, const void *value);
// Who gives an option expects something of it: one that would do nothing is refused. A --config holds them all.
bool none_idle(const Training *s, const IdleRule *rules, size_t n, Err *e);
// From the --config file and the command line to adam, schedule and guards. E-CL-01.
bool training_options(Training *s, JsonDoc *config, Err *e);
void training_list(const Training *s);     // what was given, and by whom
bool training_config(Training *s, Err *e); // c and t
// The model with what is trained marked, and *dropout: some LoRA has it. A resumed one is that of the checkpoint.
bool training_load(Training *s, bool *dropout, Err *e);
bool trains_decoder(const Training *s);

// What the largest micro-batch of a plan takes while it is worked on.
PassBytes plan_bytes(const Training *s, const SftPlan *p, bool backward, int64_t keep);
void pass_at_least(PassBytes *p, PassBytes other); // each of its parts
// The table of what is held by role; chooses s->keep where it is -1; stops when it is too much. largest: of all passes.
// sampling: answers that are drawn meanwhile.
typedef PassBytes (*LargestPass)(void *ctx, int64_t keep);
typedef struct MemoryRow { // more of it
    const char *role, *what;
    size_t bytes;
    bool host; // not on the device
} MemoryRow;
bool memory_table(Training *s, const SftPlan *p, LargestPass largest, void *ctx, GenerateBytes sampling,
                  const MemoryRow *more, int n, const char *advice, Err *e);

// config.json; inputs: members beside "base".
void training_config_text(const Training *s, const char *inputs, Text *out);
// The folder of an earlier start, and what it left. A configuration is binding from the first checkpoint on.
bool training_reopen(Training *s, const char *config, const char *const *free_options, Err *e);
// A new folder is made when everything that can be refused has been, so that a slip leaves nothing behind.
bool training_open(Training *s, const char *config, const char *const *free_options, Err *e);
// The logs, from the checkpoint on, and what a resume with other options must tell.
bool training_logs(Training *s, const char *config, Err *e);
int training_close(Training *s, bool ok, bool finished, const Err *e); // frees everything; the exit code

#endif
