// merge.c - surgr1 merge: a checkpoint and a LoRA adapter become one plain checkpoint.
//
// What it is:  glue: load, attach, write. Weights pass through memory piece by piece: a 7B model in bf16 needs
//              little more than its mapped files and the adapter.
// What it is not: the sum (lora.c).
// Read before: commands.h, lora.c.  Read next: ask.c.
#include "commands.h"

enum { SAVE_KEEP, SAVE_F32, SAVE_BF16 };
static const char *const dtype_names[] = {[SAVE_KEEP] = "keep", [SAVE_F32] = "f32", [SAVE_BF16] = "bf16"};

static struct {
    const char *model, *adapter, *out;
    int dtype;
    int64_t shard_bytes, threads;
    bool allow_nonfinite;
} merge = {.shard_bytes = INT64_C(5000000000)};

// clang-format off
static Option merge_options[] = {
    TEXT("model", &merge.model, "DIR", "checkpoint folder the adapter was trained on"),
    TEXT("adapter", &merge.adapter, "DIR", "PEFT LoRA adapter folder; without one the checkpoint is only rewritten"),
    TEXT("out", &merge.out, "DIR", "new checkpoint folder; must not be there yet, or be empty"),
    CHOICE("dtype", &merge.dtype, "keep|f32|bf16", "type of the weights written; keep: as each was"),
    INT("shard-bytes", &merge.shard_bytes, "N", "most bytes of weights in one file", 1, 1e15),
    INT("threads", &merge.threads, "N", "threads; 0 = one per processor; never changes a result", 0, 256),
    FLAG("allow-nonfinite", &merge.allow_nonfinite, "load weights with NaN or infinity"),
    END};
// clang-format on

static bool merge_run(Err *e) {
    Model m;
    TensorFile f;
    int64_t bytes = 0, pairs = 0;
    LoadOptions options = {.allow_nonfinite = merge.allow_nonfinite};
    SaveOptions save = {.type = dtype_names[merge.dtype], .shard_bytes = merge.shard_bytes};
    if (!model_load(&m, merge.model, ops_cpu(), options, e)) return false;
    bool ok = !merge.adapter || lora_load(&m, merge.adapter, e);
    for (int64_t i = 0; ok && i < m.n_params; i++) pairs += m.params[i].kind == PARAM_LORA_A;
    ok = ok && model_save(&m, merge.out, save, e);
    model_free(&m);
    if (!ok || !tensors_open_folder(&f, merge.out, e)) return false; // read back: what was written is a checkpoint
    for (int64_t i = 0; i < f.count; i++) bytes += (int64_t)f.tensors[i].bytes;
    printf("%s: %lld tensors, %lld bytes, %lld pairs merged\n", merge.out, (long long)f.count, (long long)bytes,
           (long long)pairs);
    tensors_close(&f);
    return true;
}

static int run_merge(char **args, int n) {
    Err e = {0};
    (void)args, (void)n;
    if (!merge.model) return usage("--model", "a checkpoint folder", "none", "give --model DIR");
    if (!merge.out) return usage("--out", "a folder for the result", "none", "give --out DIR");
    pool_start((int)merge.threads);
    bool ok = merge_run(&e);
    pool_stop();
    warn_summary();
    return ok ? EXIT_OK : err_report(&e);
}

const Command command_merge = {"merge",
                               "merge --model DIR --adapter DIR --out DIR",
                               "Adds a LoRA adapter to the weights of its checkpoint and writes a plain checkpoint "
                               "folder that Hugging Face opens.\n"
                               "One line on standard output says what was written.",
                               merge_options,
                               0,
                               0,
                               "no argument",
                               run_merge};
