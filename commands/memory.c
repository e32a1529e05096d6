// memory.c - surgr1 memory: what a training would hold on a GPU, from config.json alone.
//
// What it is:  the memory table of sft and grpo for sizes that are said instead of read from data, laid out by the same
//              code on a device of addresses (ops_paper): neither weights nor a GPU are needed.
// What it is not: a measurement. A GPU keeps some hundred megabytes for itself; sft and grpo say how many after their
//              first step.
// Read before: training.h.  Read next: sft.c.
#include "training.h"

static struct {
    Training t;
    int64_t tokens, targets, patches, sequences;
    int64_t group, prompts, generate_batch;
    GrpoOptions o;
} memory = {.t = {TRAINING_DEFAULTS(1e-4, 0, 0.999), .paper = true},
            .tokens = 4096,
            .sequences = 1,
            .prompts = 8,
            .o = {.micro = 1, .max_new_tokens = 768}};

// clang-format off
static Option memory_options[] = {
    TEXT("model", &memory.t.model, "DIR", "folder with config.json; the weights need not be there"),
    TEXT("lora", &memory.t.lora, "WHAT", "decoder, vision, merger (comma-separated), module names, or \"/regular expression/\""),
    INT("lora-rank", &memory.t.rank, "R", "rank of A and B", 1, 1024),
    REAL("lora-dropout", &memory.t.dropout, "P", "dropout before A", 0, 0.9),
    TEXT("full", &memory.t.full, "WHAT", "train the weights themselves: decoder, vision, merger (comma-separated)"),
    TEXT("freeze", &memory.t.freeze, "NAMES", "with --full: what stays, by parts of names (embed_tokens,blocks.0)"),
    INT("tokens", &memory.tokens, "N", "tokens in a pass, those of pictures included; with --group: in a prompt", 1, 1e7),
    INT("targets", &memory.targets, "N", "of these are targets; 0 = all. With --group all new tokens are", 0, 1e7),
    INT("patches", &memory.patches, "N", "patches of pictures in a pass, four for a token; with --group: in a prompt", 0, 1e7),
    INT("sequences", &memory.sequences, "N", "samples that are packed into a pass", 1, 65536),
    INT("keep", &memory.t.keep, "K", "blocks of each tower that keep what they computed; -1 = as many as fit in --device-memory, or 0", -1, 1024),
    INT("group", &memory.group, "G", "grpo: completions of each prompt; 0 = sft", 0, 1024),
    INT("prompts", &memory.prompts, "P", "grpo: prompts in a rollout", 1, 65536),
    INT("micro", &memory.o.micro, "N", "grpo: groups in one pass", 1, 65536),
    INT("generate-batch", &memory.generate_batch, "N", "grpo: prompts that are answered together; 0 = all of a rollout", 0, 65536),
    INT("max-new-tokens", &memory.o.max_new_tokens, "N", "grpo: longest completion", 1, 8192),
    CHOICE("dtype", &memory.t.dtype, "auto|f32|bf16", "type of matrices and activations; auto is bf16"),
    INT("device-memory", &memory.t.max_memory, "N", "bytes that the GPU has: more is refused; 0 = only the table", 0, 1e15),
    END};
// clang-format on

static PassBytes largest_pass(void *ctx, int64_t keep) { return plan_bytes(&memory.t, ctx, true, keep); }

static bool check_options(Err *e) {
    Training *t = &memory.t;
    bool grpo = memory.group > 0;
    const IdleRule rules[] = {
        {&t->rank, !t->full, "--lora"},
        {&t->dropout, !t->full, "--lora"},
        {&t->freeze, t->full != NULL, "--full WHAT"},
        {&memory.targets, !grpo, "sft (no --group)"},
        {&memory.sequences, !grpo, "sft (no --group)"},
        {&memory.prompts, grpo, "--group G"},
        {&memory.o.micro, grpo, "--group G"},
        {&memory.generate_batch, grpo, "--group G"},
        {&memory.o.max_new_tokens, grpo, "--group G"},
    };
    if (!t->model)
        return err_set(e, "E-CL-01", AT(.file = "command line"),
                       "expected --model DIR; found none; do: see surgr1 memory --help");
    if (t->full && t->lora)
        return err_set(e, "E-CL-01", AT(.file = "command line"),
                       "expected one of --lora and --full; found both; do: choose one");
    if (!none_idle(t, rules, sizeof rules / sizeof *rules, e)) return false;
    if (!t->full && !t->lora) t->lora = "decoder,vision,merger";
    if (memory.targets > memory.tokens)
        return err_set(e, "E-CL-01", AT(.file = "command line", .field = "--targets"),
                       "expected at most --tokens (%lld); found %lld; do: lower it", (long long)memory.tokens,
                       (long long)memory.targets);
    return config_load(&t->c, t->model, e);
}

static bool show(Err *e) {
    Training *t = &memory.t;
    bool dropout;
    SftPlan p = {.samples = memory.sequences,
                 .spans = memory.sequences,
                 .tokens = memory.tokens,
                 .targets = memory.targets ? memory.targets : memory.tokens,
                 .patches = memory.patches};
    GenerateBytes sampling = {0};
    if (!training_load(t, &dropout, e)) return false;
    int64_t unit = t->c.vision.merge * t->c.vision.merge;
    if (memory.patches % unit || memory.patches / unit > memory.tokens)
        return err_set(e, "E-CL-01", AT(.file = "command line", .field = "--patches"),
                       "expected %lld patches for a token of --tokens (%lld); found %lld; do: change one of them",
                       (long long)unit, (long long)memory.tokens, (long long)memory.patches);
    if (memory.group) {
        PromptSet prompts = {.longest = memory.tokens, .most_patches = memory.patches}, none = {.n = 0};
        memory.o.group = memory.group, memory.o.prompts = memory.prompts;
        memory.o.generate_batch = memory.generate_batch;
        grpo_largest(&prompts, &memory.o, &p);
        sampling = grpo_sampling(&t->m, &prompts, &none, &memory.o);
    }
    const char *advice = memory.group ? "--generate-batch, --max-new-tokens, --micro" : "--tokens";
    return memory_table(t, &p, largest_pass, &p, sampling, NULL, 0, advice, e);
}

static int run_memory(char **args, int n) {
    Err e = {0};
    (void)args, (void)n;
    memory.t.command = &command_memory;
    bool ok = check_options(&e) && show(&e);
    model_free(&memory.t.m);
    return ok ? EXIT_OK : err_report(&e);
}

const Command command_memory = {
    "memory",
    "memory --model DIR [options]",
    "Says what sft (or, with --group, grpo) would hold on a GPU, by role, from config.json alone: no weights, no data, "
    "no "
    "GPU.\n"
    "The table goes to standard output. A GPU keeps some hundred megabytes for itself beside it.",
    memory_options,
    0,
    0,
    "no argument",
    run_memory};
