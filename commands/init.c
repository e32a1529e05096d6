// init.c - surgr1 init: a checkpoint folder with random weights.
//
// What it is:  glue: options in, one line of counts out.
// What it is not: the numbers (../init.c).
// Read before: commands.h, ../init.c.  Read next: sft.c.
#include "commands.h"

static struct {
    const char *config, *tokenizer, *out;
    int64_t seed, min_pixels, max_pixels;
    int dtype;
} init = {.seed = 1};

// clang-format off
static Option init_options[] = {
    TEXT("config", &init.config, "FILE", "the shape: a config.json of Qwen2.5-VL; ids and vocab_size are set from the tokenizer"),
    TEXT("tokenizer", &init.tokenizer, "DIR", "folder of the tokenizer, for example of surgr1 tokenizer"),
    TEXT("out", &init.out, "DIR", "new checkpoint folder"),
    INT("seed", &init.seed, "N", "of the weights", 0, 9007199254740992.),
    CHOICE("dtype", &init.dtype, "f32|bf16", "type of the weights written"),
    INT("min-pixels", &init.min_pixels, "N", "smallest area of a picture; 0 = of 4 picture tokens", 0, 12845056),
    INT("max-pixels", &init.max_pixels, "N", "largest area; 0 = of 1280 picture tokens, at most half the context", 0, 12845056),
    END};
// clang-format on

static int run_init(char **args, int n) {
    (void)args, (void)n;
    Err e = {0};
    InitResult r;
    if (!init.config) return usage("--config", "a config.json", "none", "give --config FILE");
    if (!init.tokenizer) return usage("--tokenizer", "the folder of a tokenizer", "none", "give --tokenizer DIR");
    if (!init.out) return usage("--out", "a folder for the result", "none", "give --out DIR");
    InitOptions o = {.config = init.config,
                     .tokenizer = init.tokenizer,
                     .seed = (uint64_t)init.seed,
                     .type = init.dtype ? FT_BF16 : FT_F32,
                     .min_pixels = init.min_pixels,
                     .max_pixels = init.max_pixels};
    if (!model_init(&o, init.out, &r, &e)) return err_report(&e);
    printf("{\"parameters\":%lld,\"tensors\":%lld,\"vocab_size\":%lld}\n", (long long)r.parameters,
           (long long)r.tensors, (long long)r.vocab);
    warn_summary();
    return EXIT_OK;
}

const Command command_init = {
    "init",
    "init --config FILE --tokenizer DIR --out DIR --seed N",
    "Writes a checkpoint folder of random weights: every matrix of deviation 1/sqrt(columns), embeddings 0.02, norms "
    "1,\n"
    "biases 0. The folder opens in transformers too. One JSON line with counts on standard output.",
    init_options,
    0,
    0,
    "no argument",
    run_init};
