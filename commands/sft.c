// sft.c - surgr1 sft: supervised fine-tuning from the command line.
//
// What it is:  glue: options, data sets, what the largest pass is; and what a person wants to see before step 0: one sample
//              with its loss mask.
// What it is not: the training (../sft.c).
// Read before: training.h, ../sft.c.  Read next: merge.c.
#include "training.h"

static struct {
    Training t;
    Many data, eval;
    int64_t max_tokens;
    int bad_sample, export;
    bool drop_long, group;
    SftOptions o;
} sft = {.t = {TRAINING_DEFAULTS(1e-4, 0.03, 0.999)},
         .o = {.epochs = 1, .batch = 8, .accumulate = 1, .samples = 2, .sample_tokens = 64}};

// clang-format off
static Option sft_options[] = {
    TEXT("model", &sft.t.model, "DIR", "checkpoint folder to start from"),
    MANY("data", &sft.data, "FILE", "training records, JSONL or a JSON array; again for more (data/README.md has the forms)", 64),
    MANY("eval", &sft.eval, "FILE", "evaluation records; again for more", 64),
    TEXT("image-root", &sft.t.image_root, "DIR", "where relative picture paths start (default: beside each file)"),
    TRAINING_RUN_ROWS(sft.t),
    TRAINING_WEIGHTS_ROWS(sft.t),
    TRAINING_RATE_ROWS(sft.t),
    REAL("epochs", &sft.o.epochs, "E", "times through the data, when --steps is 0", 0.0001, 100000),
    INT("steps", &sft.o.steps, "N", "updates; 0 = by --epochs", 0, 1e9),
    INT("batch", &sft.o.batch, "N", "samples packed into one pass; with --group pictures, each with all its questions", 1, 65536),
    INT("accumulate", &sft.o.accumulate, "N", "passes in one update; the loss is one mean over all their targets", 1, 65536),
    INT("pack-tokens", &sft.o.pack_tokens, "N", "most tokens in one pass (a longer sample goes alone); 0 = no limit", 0, 1e7),
    TRAINING_KEEP_ROW(sft.t),
    INT("max-tokens", &sft.max_tokens, "N", "longest sample; 0 = the model's context, at most 32768", 0, 32768),
    FLAG("drop-long", &sft.drop_long, "leave longer samples out (they are never cut)"),
    CHOICE("on-bad-sample", &sft.bad_sample, "stop|skip", "skip leaves up to 1 % of bad samples out"),
    FLAG("absolute-images", &sft.t.absolute, "accept absolute picture paths"),
    FLAG("trust-text", &sft.t.trust_text, "typed special tokens are special, as in Hugging Face"),
    FLAG("group", &sft.group, "records that follow each other and show the same pictures are one unit: its pictures are\n"
        "                             computed once, and epochs shuffle units"),
    REAL("align", &sft.o.align, "W", "weight of the mean loss over picture rows whose words \"cells\" gives; 0 = off", 0, 1000),
    FLAG("per-answer", &sft.o.per_answer, "every answer weighs the same, however long; else every token does"),
    FLAG("in-order", &sft.o.in_order, "do not shuffle"),
    INT("eval-every", &sft.o.eval_every, "N", "steps between evaluations; 0 = none", 0, 1e9),
    INT("eval-samples", &sft.o.eval_samples, "N", "evaluate on the first N; 0 = all", 0, 1e9),
    INT("patience", &sft.o.patience, "N", "stop after N evaluations without a better loss; 0 = never", 0, 1e9),
    REAL("min-delta", &sft.o.min_delta, "D", "what counts as better", 0, 1e9),
    INT("save-every", &sft.o.save_every, "N", "steps between checkpoints; 0 = at the end only", 0, 1e9),
    TRAINING_SAVE_ROWS(sft.t),
    INT("sample-every", &sft.o.sample_every, "N", "steps between sample answers; 0 = none", 0, 1e9),
    INT("samples", &sft.o.samples, "N", "how many of them", 0, 1000),
    INT("sample-tokens", &sft.o.sample_tokens, "N", "longest sample answer", 1, 8192),
    TRAINING_GUARD_ROWS(sft.t),
    CHOICE("export", &sft.export, "last|best", "which checkpoint RUN/export comes from; best by the evaluation loss"),
    TRAINING_EXPORT_ROWS(sft.t),
    INT("seed", &sft.t.seed, "N", "of order, new adapters and dropout", 0, 9007199254740992.),
    TRAINING_MACHINE_ROWS(sft.t),
    END};
// clang-format on

// What a resumed run may change: what decides no number of it.
static const char *const free_options[] = {"config",    "dry-run",    "threads",    "max-memory",    "out",  "origins",
                                           "keep-last", "keep-every", "save-every", "resume-anyway", "keep", NULL};

typedef struct Session {
    Dataset train, eval;
    SftPlan plan;
} Session;

// The vision tower and the merger learn from pictures only.
static bool something_learns(const Session *s, Err *e) {
    return trains_decoder(&sft.t) || s->train.patches ||
           err_set(e, "E-CL-01", AT(.file = "command line", .field = "--data"),
                   "expected pictures, for only the vision tower or the merger is trained; found none in any sample; "
                   "do: train the decoder too, or give data with pictures");
}

// --------------------------------------------------------------------------------------------------------- before step 0

// The largest of the whole run; evaluations work in the same arenas.
static PassBytes largest_pass(void *ctx, int64_t keep) {
    const Session *s = ctx;
    PassBytes pass = plan_bytes(&sft.t, &s->plan, true, keep);
    if (!s->eval.n) return pass;
    SftPlan plan;
    sft_eval_plan(&s->eval, &sft.o, &plan);
    pass_at_least(&pass, plan_bytes(&sft.t, &plan, false, 0));
    return pass;
}

// One sample as the model sees it; what the loss counts stands between >> and <<, runs of picture tokens as one.
static bool show_sample(Session *s, Text *out, Err *e) {
    Sample x;
    if (!sample_load(&s->train, 0, &x, e)) return false;
    for (int64_t i = 0, end; i < x.ids.n; i = end) { // run by run: a character may be several tokens
        bool on = x.trained[i], picture = x.ids.p[i] == sft.t.c.image_id;
        for (end = i + 1; end < x.ids.n && x.trained[end] == x.trained[i]; end++)
            if ((x.ids.p[end] == sft.t.c.image_id) != picture) break;
        if (on && !(i && x.trained[i - 1])) text_addf(out, ">>");
        if (picture) text_addf(out, "[%lld picture tokens]", (long long)(end - i));
        else tokenizer_decode(sft.t.t, &x.ids.p[i], end - i, false, out);
        if (on && !(end < x.ids.n && x.trained[end])) text_addf(out, "<<");
    }
    Text clean = {0};
    text_add_clean(&clean, out->p ? out->p : "", out->len, "\n");
    note("sample %s, %lld tokens, %lld of them targets (between >> and <<):", x.id, (long long)x.ids.n,
         (long long)x.targets);
    for (char *line = clean.p, *end; line && *line; line = end + (*end == '\n')) {
        end = line + strcspn(line, "\n");
        note("  | %.*s", (int)(end - line), line);
    }
    text_free(&clean), sample_free(&x);
    return true;
}

// ---------------------------------------------------------------------------------------------------------------- run

static bool judged(const char *field, Err *e) {
    return (sft.eval.n && sft.o.eval_every) ||
           err_set(e, "E-CL-01", AT(.file = "command line", .field = field),
                   "expected evaluations to judge by; found none; do: give --eval FILE and --eval-every N");
}

static bool check_options(JsonDoc *config, Err *e) {
    Training *t = &sft.t;
    bool eval = sft.eval.n > 0;
    const IdleRule rules[] = {
        {&sft.o.eval_every, eval, "--eval FILE"},
        {&sft.o.eval_samples, eval, "--eval FILE"},
        {&sft.eval, sft.o.eval_every || sft.o.sample_every, "--eval-every N, or --sample-every N"},
    };
    if (!training_options(t, config, e)) return false;
    if (!sft.data.n)
        return err_set(e, "E-CL-01", AT(.file = "command line"),
                       "expected --data FILE; found none; do: see surgr1 sft --help");
    if ((sft.export == 1 && !judged("--export", e)) || (sft.o.patience && !judged("--patience", e))) return false;
    if (!none_idle(t, rules, sizeof rules / sizeof *rules, e)) return false;
    sft.o.seed = (uint64_t)t->seed, sft.o.export_best = sft.export == 1;
    sft.o.adam = t->adam, sft.o.schedule = t->schedule, sft.o.warmup_part = t->warmup_part, sft.o.trainer = t->guards;
    return true;
}

static void describe_data(const char *what, const Dataset *d) {
    note("%s: %lld samples, %lld tokens, %lld targets, %lld patches; the longest sample has %lld tokens", what,
         (long long)d->n, (long long)d->tokens, (long long)d->targets, (long long)d->patches, (long long)d->longest);
    if (d->options.group) note("%s: %lld units of samples with the same pictures", what, (long long)d->n_units);
    if (d->aligned) note("%s: %lld picture rows have words of their own", what, (long long)d->aligned);
    if (d->dropped_long + d->dropped_bad)
        note("%s: left out %lld too long and %lld bad samples", what, (long long)d->dropped_long,
             (long long)d->dropped_bad);
}

// What is asked of the data must be in it: else the options would do nothing.
static bool data_fit(const Session *s, Err *e) {
    const Dataset *d = &s->train;
    if (sft.o.align > 0 && !d->aligned)
        return err_set(
            e, "E-CL-01", AT(.file = "command line", .field = "--align"),
            "expected records with \"cells\" in --data; found none, so that it would do nothing; do: add them "
            "(data/README.md), or leave --align out");
    if (sft.group && d->n_units == d->n && (!s->eval.n || s->eval.n_units == s->eval.n))
        return err_set(
            e, "E-CL-01", AT(.file = "command line", .field = "--group"),
            "expected records that follow each other with the same pictures; found none, so that it would do "
            "nothing; do: sort them by picture, or leave --group out");
    return true;
}

static bool prepare(Session *s, Err *e) {
    DataOptions o = {.image_root = sft.t.image_root,
                     .max_tokens = sft.max_tokens,
                     .drop_long = sft.drop_long,
                     .drop_bad = sft.bad_sample == 1,
                     .absolute_images = sft.t.absolute,
                     .trust_text = sft.t.trust_text,
                     .group = sft.group,
                     .align = sft.o.align > 0,
                     .image = {.alpha_white = sft.t.alpha == 1, .apply_orientation = sft.t.exif == 1}};
    if (!training_config(&sft.t, e)) return false;
    o.files = sft.data.p, o.n_files = sft.data.n;
    if (!dataset_open(&s->train, sft.t.t, &sft.t.c, o, e)) return false;
    describe_data("training data", &s->train);
    o.files = sft.eval.p, o.n_files = sft.eval.n, o.align = false;
    if (sft.eval.n && !dataset_open(&s->eval, sft.t.t, &sft.t.c, o, e)) return false;
    if (sft.eval.n) describe_data("evaluation data", &s->eval);
    if (!data_fit(s, e)) return false;
    const char *first;
    int64_t shared = dataset_shared(&s->train, &s->eval, &first);
    if (shared)
        warn("E-DS-09", AT(.file = sft.eval.p[0], .sample = first),
             "expected no sample of the evaluation among the training data; found %lld with the same id; do: evaluate "
             "on "
             "others, this loss says nothing about new samples",
             (long long)shared);
    sft_plan(&s->train, &sft.o, &s->plan);
    note("plan: %lld steps of up to %lld x %lld samples, %lld tokens in all", (long long)s->plan.steps,
         (long long)sft.o.accumulate, (long long)s->plan.samples, (long long)s->plan.all_tokens);
    return true;
}

static bool load(Session *s, Err *e) {
    if (!training_load(&sft.t, &sft.o.dropout, e) || !something_learns(s, e)) return false;
    bool host = sft.t.m.d->alloc == ops_ref()->alloc;
    const MemoryRow more[] = {{"samples", host ? "ids, tokenised once" : "ids, tokenised once; on the host",
                               s->train.kept + s->eval.kept, true}};
    const Dataset *shown = s->eval.n ? &s->eval : &s->train; // whose first prompts are answered, one at a time
    GenerateBytes samples = {0};
    if (sft.o.sample_every && sft.o.samples)
        samples = generate_bytes(&sft.t.m, 1, shown->longest, shown->most_patches, 1, sft.o.sample_tokens);
    bool ok = memory_table(&sft.t, &s->plan, largest_pass, s, samples, more, 1, "--pack-tokens, --batch", e);
    sft.o.trainer = sft.t.guards;
    sft.o.keep = sft.t.keep;
    return ok;
}

static bool train(Session *s, bool *finished, Err *e) {
    Training *t = &sft.t;
    Text config = {0}, sample = {0}, inputs = {0};
    text_addf(&inputs, ",\"data\":\"%s\"", s->train.sha256);
    if (s->eval.n) text_addf(&inputs, ",\"eval\":\"%s\"", s->eval.sha256);
    training_config_text(t, inputs.p, &config);
    bool ok = training_reopen(t, config.p, free_options, e) && load(s, e) && show_sample(s, &sample, e) &&
              training_open(t, config.p, free_options, e) && training_logs(t, config.p, e);
    if (ok && t->from.step < 0) {
        Text fenced = {0};
        text_addf(&fenced, "```\n%s\n```\n", sample.p);
        ok = events_text(&t->run.events, "first sample", 0, fenced.p, fenced.len, e);
        text_free(&fenced);
    }
    ok = ok && model_train_open(&t->m, e) &&
         sft_run(&t->m, t->t, &s->train, s->eval.n ? &s->eval : NULL, &t->run, &sft.o, &t->from, finished, e);
    text_free(&config), text_free(&sample), text_free(&inputs);
    return ok;
}

static int run_sft(char **args, int n) {
    static Session s;
    JsonDoc config = {0};
    Text sample = {0};
    Err e = {0};
    bool finished = false;
    (void)args, (void)n;
    sft.t.command = &command_sft;
    stop_on_signals();
    if (!check_options(&config, &e)) return err_report(&e);
    training_list(&sft.t);
    pool_start((int)sft.t.threads);
    if (sft.t.max_memory) memory_limit_set(sft.t.max_memory);
    bool ok = prepare(&s, &e);
    if (ok && sft.t.dry_run) ok = load(&s, &e) && show_sample(&s, &sample, &e);
    else if (ok) ok = train(&s, &finished, &e);
    if (ok && sft.t.dry_run) printf("dry run: %lld steps, nothing was written\n", (long long)s.plan.steps);
    int rc = training_close(&sft.t, ok, finished, &e);
    dataset_close(&s.train), dataset_close(&s.eval);
    text_free(&sample), json_free(&config);
    return rc;
}

const Command command_sft = {
    "sft",
    "sft --model DIR --data FILE --out RUN [options]",
    "Supervised fine-tuning with LoRA on the decoder, the vision tower and the merger, or of the weights themselves.\n"
    "Results go to RUN (run.jsonl, tensorboard/, ckpt/, export/); the last line on standard output is the export "
    "folder.\n"
    "Started again on the same RUN it goes on from the newest checkpoint, to the same bits.",
    sft_options,
    0,
    0,
    "no argument",
    run_sft};
