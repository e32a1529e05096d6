// eval.c - surgr1 eval: a model's answers, or anyone's, against records.
//
// What it is:  glue: weights, generation settings, a folder with predictions.jsonl, metrics.json, tables.txt.
// What it is not: the answers (surgery/eval_generate.c) or the numbers (surgery/eval.c).
// Read before: commands.h, ../surgery/eval.c.  Read next: report.c.
#include "commands.h"
#include <errno.h>
#include <sys/stat.h>

static struct {
    const char *model, *adapter, *data, *predictions, *blind_predictions, *train, *out, *image_root, *system;
    int64_t batch, max_new_tokens, top_k, seed, min_pixels, max_pixels, factor, threads, max_memory, resamples;
    double temperature, top_p, min_p, repetition_penalty, level;
    int device, dtype, matmul, kernels, form, answers, frame, missing, foreign, alpha, exif;
    bool greedy, reasoning, blind, trust_text, allow_nonfinite;
} eval = {.batch = 8,
          .max_new_tokens = 768,
          .top_k = 50,
          .temperature = 1,
          .top_p = 1,
          .repetition_penalty = 1,
          .factor = 28,
          .resamples = 2000,
          .level = 0.95,
          .device = DEVICE_CPU};
// clang-format off
static Option eval_options[] = {
    TEXT("data", &eval.data, "FILE", "records with labels (surgr1 import, surgr1 scenes)"),
    TEXT("predictions", &eval.predictions, "FILE", "answers made elsewhere: id and response, in any order; or the records with both"),
    TEXT("model", &eval.model, "DIR", "checkpoint folder that answers the records"),
    TEXT("adapter", &eval.adapter, "DIR", "PEFT LoRA adapter folder, applied to the model"),
    TEXT("out", &eval.out, "DIR", "folder for predictions.jsonl, metrics.json, tables.txt, options.json"),
    FLAG("blind", &eval.blind, "once more with every picture in one colour: what the questions alone give"),
    TEXT("blind-predictions", &eval.blind_predictions, "FILE", "the same, made elsewhere"),
    TEXT("train", &eval.train, "FILE", "records whose labels make the constant answers (default: those of --data)"),
    TEXT("image-root", &eval.image_root, "DIR", "where the pictures' paths start (default: beside the records)"),
    CHOICE("answers", &eval.answers, "tags|format|any",
        "what is read: the last <answer> pair; the same of well-formed completions only; plain text too"),
    CHOICE("form", &eval.form, "written|open|choice", "options of a question: as its record has it, never, always"),
    TEXT("system", &eval.system, "TEXT", "system turn, instead of the records' own"),
    FLAG("reasoning", &eval.reasoning, "the system turn that asks for <think> and <answer>"),
    CHOICE("on-missing", &eval.missing, "stop|wrong", "a record without an answer"),
    CHOICE("on-foreign", &eval.foreign, "stop|skip", "an answer to no record (or to one without a label)"),
    CHOICE("box-frame", &eval.frame, "resized|original",
        "pixels that answers write boxes in: of the picture the model was shown, or of the file"),
    INT("factor", &eval.factor, "N", "patch size times merge size, of predictions without \"resized\"", 1, 1024),
    INT("resamples", &eval.resamples, "N", "of the intervals, by patient; 0 = none", 0, 1e6),
    REAL("level", &eval.level, "P", "of the intervals", 0.5, 0.9999),
    INT("batch", &eval.batch, "N", "questions worked on together; never changes an answer", 1, 256),
    INT("max-new-tokens", &eval.max_new_tokens, "N", "longest answer, in tokens", 1, 8192),
    FLAG("greedy", &eval.greedy, "always the most likely token (the default, unless an option of sampling is given)"),
    REAL("temperature", &eval.temperature, "T", "of sampling", 1e-9, 100),
    INT("top-k", &eval.top_k, "K", "sample from the K most likely; 0 = off", 0, 1048576),
    REAL("top-p", &eval.top_p, "P", "sample from the smallest set of this probability; 1 = off", 0, 1),
    REAL("min-p", &eval.min_p, "P", "drop what is less likely than P times the best; 0 = off", 0, 1),
    REAL("repetition-penalty", &eval.repetition_penalty, "R", "for tokens that occurred; 1 = off", 0.01, 100),
    INT("seed", &eval.seed, "N", "of sampling and of the intervals", 0, 9007199254740992.),
    INT("min-pixels", &eval.min_pixels, "N", "smallest area after the resize; 0 = the checkpoint's", 0, 12845056),
    INT("max-pixels", &eval.max_pixels, "N", "largest area after the resize; 0 = the checkpoint's", 0, 12845056),
    CHOICE("alpha", &eval.alpha, "drop|white", "transparent pictures: drop alpha, or lay over white"),
    CHOICE("exif", &eval.exif, "ignore|apply", "turn pictures by their EXIF orientation"),
    CHOICE("device", &eval.device, "ref|cpu|cuda", "who computes; ref is slow and defines the answer"),
    CUDA_ROWS(eval),
    CHOICE("dtype", &eval.dtype, "auto|f32|bf16", "type of matrices; auto keeps the checkpoint's"),
    INT("max-memory", &eval.max_memory, "N", "bytes of host memory to use at most; 0 = 80 % of what is there", 0, 1e15),
    INT("threads", &eval.threads, "N", "threads; 0 = one per processor; never changes a result", 0, 256),
    FLAG("trust-text", &eval.trust_text, "typed special tokens are special, as in Hugging Face"),
    FLAG("allow-nonfinite", &eval.allow_nonfinite, "load weights with NaN or infinity"),
    END};
// clang-format on

static bool given(const void *value) { return option_of(eval_options, value)->origin != NULL; }

// Greedy unless the command line wants to sample; what it leaves open is generation_config.json's.
static bool settings(GenerationConfig *g, Err *e) {
    bool from_file;
    if (!generation_config_load(g, eval.model, &from_file, e)) return false;
    SampleParams *p = &g->sample;
    p->do_sample = given(&eval.temperature) || given(&eval.top_k) || given(&eval.top_p) || given(&eval.min_p);
    if (given(&eval.temperature)) p->temperature = eval.temperature;
    if (given(&eval.top_k)) p->top_k = (int32_t)eval.top_k;
    if (given(&eval.top_p)) p->top_p = eval.top_p;
    if (given(&eval.min_p)) p->min_p = eval.min_p;
    if (given(&eval.repetition_penalty)) p->repetition_penalty = eval.repetition_penalty;
    p->seed = (uint64_t)eval.seed, g->max_new_tokens = eval.max_new_tokens;
    eval.temperature = p->temperature, eval.top_k = p->top_k, eval.top_p = p->top_p, eval.min_p = p->min_p;
    eval.repetition_penalty = p->repetition_penalty, eval.greedy = !p->do_sample;
    return true;
}

static bool make_folder(const char *dir, Err *e) {
    if (!mkdir(dir, 0777) || (errno == EEXIST && folder_exists(dir))) return true;
    return err_set(e, errno == ENOSPC ? "E-WR-01" : "E-WR-02", AT(.file = dir),
                   "expected to make the folder; found %s; do: check the path", error_text(errno));
}

// Answers of the model, and of the model without pictures, into the folder. *stopped: neither is complete.
static bool answer(const char *predictions, const char *blind, bool *stopped, Err *e) {
    Model m;
    Tokenizer *t = NULL;
    EvalGenerate o = {.data = eval.data,
                      .image_root = eval.image_root,
                      .out = predictions,
                      .system = eval.reasoning ? task_system_prompt(false) : eval.system,
                      .form = (enum EvalForm)eval.form,
                      .trust_text = eval.trust_text,
                      .batch = eval.batch,
                      .image = {.alpha_white = eval.alpha == 1, .apply_orientation = eval.exif == 1}};
    LoadOptions load = {.allow_nonfinite = eval.allow_nonfinite, .force_f32 = eval.dtype == DTYPE_F32};
    int64_t n = 0;
    double started = clock_seconds();
    if (!tokenizer_load(&t, eval.model, e)) return false;
    const Ops *d = NULL;
    bool ok = chat_template_check(eval.model, e) && settings(&o.g, e) &&
              (d = device_of(eval.device, eval.dtype, CUDA_RUNGS(eval), e)) && model_load(&m, eval.model, d, load, e);
    if (!ok) return tokenizer_free(t), false;
    if (eval.min_pixels) m.c.vision.min_pixels = m.vision.c.min_pixels = eval.min_pixels;
    if (eval.max_pixels) m.c.vision.max_pixels = m.vision.c.max_pixels = eval.max_pixels;
    ok = pixel_limits_ok(&m.c.vision, e) && (!eval.adapter || lora_load(&m, eval.adapter, e));
    if (ok) {
        note("model: %s, read in %.2f s; device %s, %d threads", eval.model, clock_seconds() - started, d->name,
             pool_threads());
        list_options(eval_options, "command line", "given");
        list_options(eval_options, "", "defaults");
        started = clock_seconds();
        ok = eval_generate(&m, t, &o, &n, e);
        if (ok) note("answers: %lld in %.1f s", (long long)n, clock_seconds() - started);
        o.blind = true, o.out = blind;
        if (ok && blind && !stop_requested()) ok = eval_generate(&m, t, &o, &n, e);
    }
    *stopped = stop_requested();
    model_free(&m), tokenizer_free(t);
    return ok;
}

static bool write_results(const Text *json, const Text *tables, Err *e) {
    char path[1200];
    Text values = {0}, origins = {0}, options = {0};
    options_json(eval_options, &values, &origins);
    text_addf(&options, "{\"options\":%s,\"origins\":%s}\n", values.p, origins.p);
    bool ok =
        path_join(path, sizeof path, eval.out, "metrics.json", e) && file_write_atomic(path, json->p, json->len, e) &&
        path_join(path, sizeof path, eval.out, "tables.txt", e) && file_write_atomic(path, tables->p, tables->len, e) &&
        path_join(path, sizeof path, eval.out, "options.json", e) && file_write_atomic(path, options.p, options.len, e);
    text_free(&values), text_free(&origins), text_free(&options);
    return ok;
}

static int run_eval(char **args, int n) {
    Err e = {0};
    Text json = {0}, tables = {0};
    char predictions[1200], blind[1200];
    bool stopped = false, ok = true;
    (void)args, (void)n;
    if (!eval.data && !eval.predictions) return usage("--data", "a file of records", "none", "give --data FILE");
    if (eval.model && eval.predictions)
        return usage("--model", "a model or --predictions", "both", "leave one of them out");
    if (eval.model && !(eval.data && eval.out))
        return usage("--model", "records and a folder beside it", "none", "give --data FILE and --out DIR");
    if ((eval.adapter || eval.blind) && !eval.model)
        return usage(eval.blind ? "--blind" : "--adapter", "a model", "none", "give --model DIR");
    if (eval.system && eval.reasoning)
        return usage("--system", "one system turn", "--reasoning too", "leave one of them out");
    if (eval.greedy && (given(&eval.temperature) || given(&eval.top_k) || given(&eval.top_p) || given(&eval.min_p)))
        return usage("--greedy", "--greedy or options of sampling", "both", "leave one of them out");
    if (eval.dtype == DTYPE_BF16 && eval.device != DEVICE_CUDA)
        return usage("--dtype", "auto or f32 on this device", "bf16", "use --dtype auto, which keeps the file's type");
    int64_t least = eval.min_pixels ? eval.min_pixels : 3136, most = eval.max_pixels ? eval.max_pixels : 12845056;
    if (least > most) return usage("--min-pixels", "at most --max-pixels", "more", "swap the two");
    stop_on_signals();
    pool_start((int)eval.threads);
    if (eval.max_memory) memory_limit_set(eval.max_memory);
    EvalOptions o = {.data = eval.data ? eval.data : eval.predictions,
                     .predictions = eval.data ? eval.predictions : NULL,
                     .blind = eval.blind_predictions,
                     .train = eval.train,
                     .reading = (enum EvalReading)eval.answers,
                     .missing_wrong = eval.missing == 1,
                     .skip_foreign = eval.foreign == 1,
                     .boxes_original = eval.frame == 1,
                     .min_pixels = least,
                     .max_pixels = most,
                     .factor = eval.factor,
                     .resamples = eval.resamples,
                     .level = eval.level,
                     .seed = (uint64_t)eval.seed};
    if (eval.out)
        ok = make_folder(eval.out, &e) && path_join(predictions, sizeof predictions, eval.out, "predictions.jsonl", &e);
    if (eval.out && !eval.model) o.joined = predictions;
    if (ok && eval.model) {
        ok = path_join(blind, sizeof blind, eval.out, "predictions_blind.jsonl", &e) &&
             answer(predictions, eval.blind ? blind : NULL, &stopped, &e);
        o.data = predictions, o.predictions = NULL;
        if (eval.blind) o.blind = blind;
        o.skip_foreign = true; // records without a label were answered too
    }
    double started = clock_seconds();
    if (ok && !stopped) ok = eval_score(&o, &json, &tables, &e);
    if (ok && !stopped) {
        note("scored in %.2f s", clock_seconds() - started);
        fwrite(tables.p, 1, tables.len, stdout);
        if (eval.out) ok = write_results(&json, &tables, &e);
    }
    pool_stop();
    text_free(&json), text_free(&tables);
    warn_summary();
    return !ok ? err_report(&e) : stopped ? EXIT_STOPPED : EXIT_OK;
}

const Command command_eval = {
    "eval",
    "eval --model DIR --data FILE --out DIR | --predictions FILE [--data FILE] [--out DIR]",
    "Answers records with a model, or takes answers made elsewhere, and measures them: a table for every task on\n"
    "standard output, with intervals by patient and the floors that a constant answer, the most frequent answer to\n"
    "each question and a run without pictures give. What cannot be read is wrong and counted, never left out.",
    eval_options,
    0,
    0,
    "no argument",
    run_eval};
