// refine.c - surgr1 refine: stage 4 of Surg-R1 from the command line.
//
// What it is:  glue: options, the device, and a look at the options of surgr1 sft before anything is sampled.
// What it is not: the refinement (../refine.c).
// Read before: commands.h, ../refine.c.  Read next: sft.c.
#include "commands.h"

enum { DETAIL_NONE, DETAIL_AUTO, DETAIL_LOW, DETAIL_HIGH, MOST_SFT_ARGUMENTS = 200 };
static struct {
    const char *model, *adapter, *image_root, *out, *teacher, *teacher_name;
    Many data, mix, knowledge, responses;
    int64_t iterations, rollouts, limit, batch, max_new_tokens, top_k, seed, min_words, max_words, min_pixels,
        max_pixels, threads, max_memory, teacher_tokens, max_bytes;
    double temperature, top_p, min_p, wrong, overcall, teacher_temperature;
    int pick, refused, aggregate, start, alpha, exif, device, dtype, matmul, kernels, detail, limit_name;
    bool brief, consistent, measure, trust_text, allow_nonfinite, hash_base;
} refine = {.teacher = "none",
            .iterations = 1,
            .rollouts = 3,
            .batch = 16,
            .max_new_tokens = 768,
            .temperature = 1,
            .top_p = 1,
            .min_words = 1,
            .max_words = 450,
            .teacher_tokens = 2048,
            .teacher_temperature = 0.7,
            .max_bytes = 90000000,
            .device = DEVICE_CPU};
// clang-format off
static Option refine_options[] = {
    TEXT("model", &refine.model, "DIR", "checkpoint folder to begin with"),
    TEXT("adapter", &refine.adapter, "DIR", "PEFT LoRA adapter on it; every training goes on from the last one"),
    MANY("data", &refine.data, "FILE", "records with labels; again for more", 64),
    TEXT("image-root", &refine.image_root, "DIR", "where picture paths start, of --mix too (default: beside each file)"),
    TEXT("out", &refine.out, "RUN", "run folder; started again on the same folder, the run resumes"),
    INT("iterations", &refine.iterations, "N", "times to sample, label and train; more of them go on from the last one", 1, 1000),
    INT("rollouts", &refine.rollouts, "K", "completions of a record; it is hard when none of them is right (eq. 8)", 1, REFINE_MOST_ROLLOUTS - 1),
    INT("limit", &refine.limit, "N", "records to take, a draw by --seed; 0 = all", 0, 1e9),
    CHOICE("pick", &refine.pick, "first|logprob|fresh", "label of an easy record: its first right rollout; the right one with the\n"
        "                             highest mean log-probability; one more rollout, as the paper has it, which makes\n"
        "                             the record hard when it is wrong"),
    TEXT("teacher", &refine.teacher, "WHO", "of hard records: none; scene, the built-in one (scenes --truth); model:DIR, a\n"
        "                             second checkpoint; batch, requests out and answers in (see --responses)"),
    CHOICE("refused", &refine.refused, "drop|teacher", "easy records of which the filters refuse every right rollout"),
    FLAG("brief", &refine.brief, "thoughts of a few words: of the scene teacher, and the filters do not ask for English"),
    FLAG("consistent", &refine.consistent, "no label of a model whose last level does not name its answer"),
    REAL("wrong", &refine.wrong, "SHARE", "of the scene teacher's thoughts that mistake what an instrument does", 0, 1),
    REAL("overcall", &refine.overcall, "SHARE", "of the unmet criteria that the scene teacher takes for met; answers that follow are refused", 0, 1),
    MANY("knowledge", &refine.knowledge, "FILE", "data/knowledge/*.json: vocabulary for the filters and for a batch teacher", 64),
    INT("min-words", &refine.min_words, "N", "shortest thought", 0, 10000),
    INT("max-words", &refine.max_words, "N", "longest thought", 1, 10000),
    MANY("responses", &refine.responses, "FILE", "what came back from a batch teacher, for the iteration that waits; again for more", 64),
    TEXT("teacher-name", &refine.teacher_name, "NAME", "batch: the teacher, as its server names it"),
    INT("teacher-tokens", &refine.teacher_tokens, "N", "batch: longest answer", 1, 1e6),
    REAL("teacher-temperature", &refine.teacher_temperature, "T", "batch: -1 = do not say", -1, 2),
    CHOICE("limit-name", &refine.limit_name, "max_tokens|max_completion_tokens", "batch: what the server calls --teacher-tokens"),
    CHOICE("image-detail", &refine.detail, "none|auto|low|high", "batch: \"detail\" of the pictures"),
    INT("max-bytes", &refine.max_bytes, "N", "batch: largest file of requests", 1000, 1e12),
    MANY("mix", &refine.mix, "FILE", "training records beside the pseudo-labels, for rehearsal; again for more", 32),
    CHOICE("aggregate", &refine.aggregate, "last|all", "pseudo-labels to train on: of this iteration, or of all so far"),
    CHOICE("start", &refine.start, "last|first", "model that a training starts from: the last one (the paper), or the first"),
    FLAG("measure", &refine.measure, "sample the last model too: the table then tells what the last training changed"),
    REAL("temperature", &refine.temperature, "T", "of sampling", 1e-9, 100),
    INT("top-k", &refine.top_k, "K", "sample from the K most likely; 0 = off", 0, 1048576),
    REAL("top-p", &refine.top_p, "P", "sample from the smallest set of this probability; 1 = off", 0, 1),
    REAL("min-p", &refine.min_p, "P", "drop what is less likely than P times the best; 0 = off", 0, 1),
    INT("max-new-tokens", &refine.max_new_tokens, "N", "longest completion", 1, 8192),
    INT("batch", &refine.batch, "N", "records sampled together; never changes a completion", 1, 4096),
    INT("seed", &refine.seed, "N", "of sampling, of --limit and of the scene teacher's wording", 0, 9007199254740992.),
    INT("min-pixels", &refine.min_pixels, "N", "smallest picture area after the resize; 0 = the checkpoint's", 0, 12845056),
    INT("max-pixels", &refine.max_pixels, "N", "largest picture area after the resize; 0 = the checkpoint's", 0, 12845056),
    CHOICE("alpha", &refine.alpha, "drop|white", "transparent pictures: drop alpha, or lay over white"),
    CHOICE("exif", &refine.exif, "ignore|apply", "turn pictures by their EXIF orientation"),
    FLAG("trust-text", &refine.trust_text, "typed special tokens are special, as in Hugging Face"),
    CHOICE("device", &refine.device, "ref|cpu|cuda", "who computes; ref is slow and defines the answer"),
    CUDA_ROWS(refine),
    CHOICE("dtype", &refine.dtype, "auto|f32|bf16", "type of matrices; auto keeps the checkpoint's"),
    INT("threads", &refine.threads, "N", "threads; 0 = one per processor; never changes a result", 0, 256),
    INT("max-memory", &refine.max_memory, "N", "bytes of host memory to use at most; 0 = 80 % of what is there", 0, 1e15),
    FLAG("allow-nonfinite", &refine.allow_nonfinite, "load weights with NaN or infinity"),
    FLAG("hash-base", &refine.hash_base, "remember the weights to begin with by all their bytes, not by names and shapes"),
    END};
// clang-format on

// What both commands take goes on to sft, in front of its own options, which therefore speak louder.
static const char *const shared[] = {"min-pixels", "max-pixels", "alpha",   "exif",    "trust-text", "device",
                                     "dtype",      "matmul",     "kernels", "threads", "max-memory", "allow-nonfinite"};
static const char *const ours[] = {"model", "adapter", "data", "image-root", "out", "dry-run", "resume-anyway"};

static bool named(const char *const *names, size_t n, const char *name) {
    for (size_t k = 0; k < n; k++)
        if (!strcmp(names[k], name)) return true;
    return false;
}
#define NAMED(names, name) named(names, sizeof(names) / sizeof *(names), name)

typedef struct SftArguments {
    const char *p[MOST_SFT_ARGUMENTS + 40];
    int n;
    Text kept[2 * sizeof shared / sizeof *shared];
} SftArguments;

static void pass_on(SftArguments *a) {
    for (size_t k = 0; k < sizeof shared / sizeof *shared; k++) {
        Text *name = &a->kept[2 * k], *value = &a->kept[2 * k + 1];
        const Option *o = refine_options;
        while (strcmp(o->name, shared[k])) o++;
        if (!o->origin) continue;
        text_addf(name, "--%s", o->name);
        a->p[a->n++] = name->p;
        if (o->kind == OPT_FLAG) continue;
        if (o->kind == OPT_INT) text_addf(value, "%lld", (long long)*(int64_t *)o->value);
        else { // a choice
            const char *w = o->arg;
            for (int i = 0; i < *(int *)o->value; i++) w += strcspn(w, "|") + 1;
            text_addf(value, "%.*s", (int)strcspn(w, "|"), w);
        }
        a->p[a->n++] = value->p;
    }
}

// The options behind --, each known to sft and none of those that are set here.
static bool read_sft_options(char **args, int n, SftArguments *a, Err *e) {
    Where at = AT(.file = "command line", .field = "--");
    bool shapes = false;
    for (int i = 0; i < n; i++) {
        char name[80];
        size_t len = strcspn(args[i], "=");
        snprintf(name, sizeof name, "%.*s", (int)len, args[i]);
        if (strncmp(name, "--", 2) || !name[2])
            return err_set(e, "E-CL-01", at, "expected options of surgr1 sft behind --; found %s; do: %s",
                           quoted(args[i], strlen(args[i])), "put \"--\" between the two kinds of options");
        const Option *o = option_named(&command_sft, name + 2, at, e);
        if (!o) return false;
        if (NAMED(ours, o->name))
            return err_set(
                e, "E-CL-01", AT(.file = "command line", .field = name),
                "expected options that refine leaves open; found one that it sets; do: leave it out behind --");
        shapes |= !strncmp(o->name, "lora", 4) || !strcmp(o->name, "rslora");
        a->p[a->n++] = args[i];
        bool flag = o->kind == OPT_FLAG || o->kind == OPT_UNFLAG;
        if (flag || args[i][len]) continue;
        if (i + 1 == n)
            return err_set(e, "E-CL-01", AT(.file = "command line", .field = name),
                           "expected %s; found the end of the command line; do: add it", o->arg);
        if (!option_takes(&command_sft, o, args[i + 1], at, e)) return false;
        if (!strcmp(o->name, "full") && refine.adapter)
            return err_set(
                e, "E-CL-01", AT(.file = "command line", .field = name),
                "expected --adapter or whole weights to train; found both; do: surgr1 merge the adapter first");
        a->p[a->n++] = args[++i];
    }
    return !shapes || !refine.adapter ||
           err_set(
               e, "E-CL-01", AT(.file = "command line", .field = "--adapter"),
               "expected no options for a new adapter beside it; found some behind --; do: leave one of the two out");
}

static int check_options(enum RefineTeacher *teacher, const char **folder) {
    static const char *const words[] = {"none", "scene", "batch"};
    if (!refine.model) return usage("--model", "a checkpoint folder", "none", "give --model DIR");
    if (!refine.data.n) return usage("--data", "records with labels", "none", "give --data FILE");
    if (!refine.out) return usage("--out", "a run folder", "none", "give --out RUN");
    if (refine.min_words > refine.max_words)
        return usage("--min-words", "at most --max-words", "more", "lower it, or raise --max-words");
    int chosen = choice_of("none|scene|batch", refine.teacher);
    if (!strncmp(refine.teacher, "model:", 6) && refine.teacher[6])
        *teacher = TEACHER_MODEL, *folder = refine.teacher + 6;
    else if (chosen < 0)
        return usage("--teacher", "none, scene, batch or model:DIR", quoted(refine.teacher, strlen(refine.teacher)),
                     "name one of them");
    else *teacher = !strcmp(words[chosen], "scene") ? TEACHER_SCENE : chosen ? TEACHER_BATCH : TEACHER_NONE;
    if (*teacher == TEACHER_BATCH && !refine.teacher_name)
        return usage("--teacher-name", "the name of the batch teacher", "none", "give --teacher-name NAME");
    if (*teacher == TEACHER_BATCH && !refine.knowledge.n)
        return usage("--knowledge", "a knowledge file for the requests", "none",
                     "give --knowledge data/knowledge/X.json");
    if (*teacher != TEACHER_BATCH && (refine.responses.n || refine.teacher_name))
        return usage(refine.responses.n ? "--responses" : "--teacher-name", "--teacher batch beside it",
                     "another teacher", "leave it out, or give --teacher batch");
    if (*teacher != TEACHER_SCENE && (refine.wrong > 0 || refine.overcall > 0))
        return usage(refine.wrong > 0 ? "--wrong" : "--overcall", "--teacher scene beside it", "another teacher",
                     "leave it out, or give --teacher scene");
    if (refine.refused && *teacher == TEACHER_NONE)
        return usage("--refused", "a teacher for them", "none", "give --teacher, or leave it out");
    if (refine.dtype == DTYPE_BF16 && refine.device != DEVICE_CUDA)
        return usage("--dtype", "auto or f32 on this device", "bf16", "use --dtype auto, which keeps the file's type");
    return EXIT_OK;
}

static int run_refine(char **args, int n) {
    static const char *const details[] = {NULL, "auto", "low", "high"};
    static SftArguments sft;
    Err e = {0};
    Text json = {0}, origins = {0}, config = {0};
    const char *folder = NULL;
    enum RefineTeacher teacher = TEACHER_NONE;
    bool from_file;
    int status = EXIT_OK, rc = check_options(&teacher, &folder);
    if (rc) return rc;
    pass_on(&sft);
    int n_shared = sft.n;
    if (!read_sft_options(args, n, &sft, &e)) return err_report(&e);
    stop_on_signals();
    list_options(refine_options, "command line", "given");
    list_options(refine_options, "", "defaults");
    pool_start((int)refine.threads);
    if (refine.max_memory) memory_limit_set(refine.max_memory);
    options_json(refine_options, &json, &origins);
    text_addf(&config, "\"options\":%s,\"origins\":%s", json.p, origins.p);
    RefineOptions o = {
        .model = refine.model,
        .adapter = refine.adapter,
        .data = refine.data.p,
        .n_data = refine.data.n,
        .image_root = refine.image_root,
        .out = refine.out,
        .iterations = refine.iterations,
        .rollouts = refine.rollouts,
        .batch = refine.batch,
        .limit = refine.limit,
        .seed = (uint64_t)refine.seed,
        .prompt = {.trust_text = refine.trust_text,
                   .image = {.alpha_white = refine.alpha == 1, .apply_orientation = refine.exif == 1}},
        .min_pixels = refine.min_pixels,
        .max_pixels = refine.max_pixels,
        .load = {.allow_nonfinite = refine.allow_nonfinite, .force_f32 = refine.dtype == DTYPE_F32},
        .pick = (enum RefinePick)refine.pick,
        .teacher = teacher,
        .teacher_model = folder,
        .teach = {.brief = refine.brief, .wrong = refine.wrong, .overcall = refine.overcall},
        .ask = {.model = refine.teacher_name,
                .image_detail = details[refine.detail],
                .limit_name = refine.limit_name ? "max_completion_tokens" : "max_tokens",
                .max_tokens = refine.teacher_tokens,
                .temperature = refine.teacher_temperature,
                .max_bytes = refine.max_bytes},
        .responses = refine.responses.p,
        .n_responses = refine.responses.n,
        .refused_to_teacher = refine.refused == 1,
        .any_language = refine.brief,
        .consistent = refine.consistent,
        .min_words = refine.min_words,
        .max_words = refine.max_words,
        .knowledge = refine.knowledge.p,
        .n_knowledge = refine.knowledge.n,
        .mix = refine.mix.p,
        .n_mix = refine.mix.n,
        .aggregate_all = refine.aggregate == 1,
        .from_first = refine.start == 1,
        .measure = refine.measure,
        .hash_base = refine.hash_base,
        .sft = sft.p,
        .n_sft = sft.n,
        .n_shared = n_shared,
        .options_json = config.p,
    };
    bool ok = generation_config_load(&o.g, refine.model, &from_file, &e) &&
              (o.device = device_of(refine.device, refine.dtype, CUDA_RUNGS(refine), &e));
    // the distribution that is trained: what generation_config.json says of sampling is for users
    o.g.sample = (SampleParams){.do_sample = true,
                                .repetition_penalty = 1,
                                .temperature = refine.temperature,
                                .top_k = (int32_t)refine.top_k,
                                .top_p = refine.top_p,
                                .min_p = refine.min_p};
    o.g.max_new_tokens = refine.max_new_tokens;
    ok = ok && refine_run(&o, &status, &e);
    if (ok && status == EXIT_STOPPED) note("stopped; start the same command again to resume");
    warn_summary();
    pool_stop();
    text_free(&json), text_free(&origins), text_free(&config);
    for (size_t k = 0; k < sizeof sft.kept / sizeof *sft.kept; k++) text_free(&sft.kept[k]);
    return ok ? status : err_report(&e);
}

const Command command_refine = {
    "refine",
    "refine --model DIR --data FILE --out RUN [--teacher WHO] [options] [-- options of surgr1 sft]",
    "Stage 4 of Surg-R1: samples every record K times, labels easy ones with a right rollout and hard ones by a "
    "teacher,\n"
    "filters both, trains on what was accepted (surgr1 sft, with the options behind --), and begins again with the "
    "new\n"
    "model. RUN/iter-I has rollouts.jsonl, pseudo.jsonl (every line says where it comes from), summary.json and sft/;\n"
    "RUN/refine.json the tables that go to standard output, whose last line is the export of the last training.\n"
    "Started again on the same RUN it goes on where it was, to the same bytes.",
    refine_options,
    0,
    MOST_SFT_ARGUMENTS,
    "options of surgr1 sft behind --",
    run_refine};
