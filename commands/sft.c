// sft.c - surgr1 sft: supervised fine-tuning from the command line.
//
// What it is:  glue: options, data sets, the model with its trained parameters, the run folder; and what a person wants to
//              see before step 0: what is trained, how much memory by role, one sample with its loss mask.
// What it is not: the training (../sft.c).
// Read before: commands.h, ../sft.c.  Read next: merge.c.
#include "commands.h"
#include <unistd.h>

static struct {
    const char *model, *image_root, *out, *config, *lora, *full, *freeze, *adapter;
    Many data, eval, anyway;
    int64_t rank, max_tokens, threads, max_memory, min_pixels, max_pixels, seed, warmup;
    double alpha_lora, dropout, lr, lr_vision, lr_merger;
    int bad_sample, device, dtype, alpha, exif, schedule, outliers, export, export_dtype;
    bool rslora, drop_long, absolute, trust_text, dry_run, allow_nonfinite, hash_base, group;
    SftOptions o;
} sft = {.rank = 16,
         .alpha_lora = 32,
         .lr = 1e-4,
         .device = DEVICE_CPU,
         .o = {.epochs = 1,
               .batch = 8,
               .accumulate = 1,
               .adam = {.beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .clip = 1},
               .schedule = {.decay_part = 0.2},
               .warmup_part = 0.03,
               .keep = -1,
               .keep_last = 3,
               .samples = 2,
               .sample_tokens = 64,
               .max_skips = 3}};

// clang-format off
static Option sft_options[] = {
    TEXT("model", &sft.model, "DIR", "checkpoint folder to start from"),
    MANY("data", &sft.data, "FILE", "training records, JSONL or a JSON array; again for more (data/README.md has the forms)", 64),
    MANY("eval", &sft.eval, "FILE", "evaluation records; again for more", 64),
    TEXT("image-root", &sft.image_root, "DIR", "where relative picture paths start (default: beside each file)"),
    TEXT("out", &sft.out, "RUN", "run folder; started again on the same folder, the run resumes"),
    TEXT("config", &sft.config, "FILE", "options from a run's config.json; the command line speaks louder"),
    MANY("resume-anyway", &sft.anyway, "FIELD", "resume though this member of config.json differs (options.lr); again for more", 20),
    FLAG("dry-run", &sft.dry_run, "everything up to step 0, and nothing written"),
    TEXT("lora", &sft.lora, "WHAT", "decoder, vision, merger (comma-separated), module names, or \"/regular expression/\""),
    INT("lora-rank", &sft.rank, "R", "rank of A and B", 1, 1024),
    REAL("lora-alpha", &sft.alpha_lora, "A", "scale is alpha / rank", 1e-6, 65536),
    FLAG("rslora", &sft.rslora, "scale is alpha / sqrt(rank)"),
    REAL("lora-dropout", &sft.dropout, "P", "dropout before A", 0, 0.9),
    TEXT("adapter", &sft.adapter, "DIR", "go on from this PEFT adapter instead of a new one"),
    TEXT("full", &sft.full, "WHAT", "train the weights themselves: decoder, vision, merger (comma-separated)"),
    TEXT("freeze", &sft.freeze, "NAMES", "with --full: what stays, by parts of names (embed_tokens,blocks.0)"),
    REAL("lr", &sft.lr, "LR", "learning rate", 0, 10),
    REAL("lr-vision", &sft.lr_vision, "LR", "of the vision tower; 0 = --lr", 0, 10),
    REAL("lr-merger", &sft.lr_merger, "LR", "of the merger; 0 = --lr", 0, 10),
    CHOICE("schedule", &sft.schedule, "cosine|linear|constant|wsd", "of the learning rate after warm-up"),
    INT("warmup", &sft.warmup, "N", "steps of warm-up; 0 = by --warmup-ratio", 0, 1e9),
    REAL("warmup-ratio", &sft.o.warmup_part, "F", "warm-up as a part of all steps", 0, 1),
    REAL("min-lr-ratio", &sft.o.schedule.floor, "F", "part of the learning rate left at the end", 0, 1),
    REAL("decay-ratio", &sft.o.schedule.decay_part, "F", "wsd: the part of the run that falls", 0, 1),
    REAL("beta1", &sft.o.adam.beta1, "B", "of AdamW", 0, 0.999999),
    REAL("beta2", &sft.o.adam.beta2, "B", "of AdamW", 0, 0.999999),
    REAL("adam-eps", &sft.o.adam.eps, "E", "of AdamW", 1e-12, 1),
    REAL("weight-decay", &sft.o.adam.decay, "D", "of matrices; never of norms and biases", 0, 1),
    REAL("clip", &sft.o.adam.clip, "N", "largest norm of the gradient; 0 = off", 0, 1e9),
    REAL("epochs", &sft.o.epochs, "E", "times through the data, when --steps is 0", 0.0001, 100000),
    INT("steps", &sft.o.steps, "N", "updates; 0 = by --epochs", 0, 1e9),
    INT("batch", &sft.o.batch, "N", "samples packed into one pass; with --group pictures, each with all its questions", 1, 65536),
    INT("accumulate", &sft.o.accumulate, "N", "passes in one update; the loss is one mean over all their targets", 1, 65536),
    INT("pack-tokens", &sft.o.pack_tokens, "N", "most tokens in one pass (a longer sample goes alone); 0 = no limit", 0, 1e7),
    INT("keep", &sft.o.keep, "K", "blocks of each tower that keep what they computed, the others run again in backward;\n"
        "                             more is faster, never other bits; -1 = as many as fit (cuda: 0)", -1, 1024),
    INT("max-tokens", &sft.max_tokens, "N", "longest sample; 0 = the model's context, at most 32768", 0, 32768),
    FLAG("drop-long", &sft.drop_long, "leave longer samples out (they are never cut)"),
    CHOICE("on-bad-sample", &sft.bad_sample, "stop|skip", "skip leaves up to 1 % of bad samples out"),
    FLAG("absolute-images", &sft.absolute, "accept absolute picture paths"),
    FLAG("trust-text", &sft.trust_text, "typed special tokens are special, as in Hugging Face"),
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
    INT("keep-last", &sft.o.keep_last, "N", "newest checkpoints to keep, beside the best", 2, 1e6),
    INT("keep-every", &sft.o.keep_every, "N", "also keep those at multiples of N; 0 = none", 0, 1e9),
    INT("sample-every", &sft.o.sample_every, "N", "steps between sample answers; 0 = none", 0, 1e9),
    INT("samples", &sft.o.samples, "N", "how many of them", 0, 1000),
    INT("sample-tokens", &sft.o.sample_tokens, "N", "longest sample answer", 1, 8192),
    INT("max-skips", &sft.o.max_skips, "N", "skipped steps in a row that end the run", 1, 1000),
    CHOICE("outliers", &sft.outliers, "report|skip", "steps with a far loss or gradient norm"),
    CHOICE("export", &sft.export, "last|best", "which checkpoint RUN/export comes from; best by the evaluation loss"),
    CHOICE("export-dtype", &sft.export_dtype, "keep|f32|bf16", "with --full: type of the weights in RUN/export; keep: as in the\n"
        "                             checkpoint, where bf16 rounds small changes of the trained F32 away"),
    FLAG("old-keys", &sft.o.old_keys, "export the adapter with the names of transformers before 4.52"),
    INT("seed", &sft.seed, "N", "of order, new adapters and dropout", 0, 9007199254740992.),
    INT("min-pixels", &sft.min_pixels, "N", "smallest picture area after the resize; 0 = the checkpoint's", 0, 12845056),
    INT("max-pixels", &sft.max_pixels, "N", "largest picture area after the resize; 0 = the checkpoint's", 0, 12845056),
    CHOICE("alpha", &sft.alpha, "drop|white", "transparent pictures: drop alpha, or lay over white"),
    CHOICE("exif", &sft.exif, "ignore|apply", "turn pictures by their EXIF orientation"),
    CHOICE("device", &sft.device, "ref|cpu|cuda", "who computes; ref is slow and defines the answer"),
    CHOICE("dtype", &sft.dtype, "auto|f32|bf16", "type of frozen matrices; auto keeps the checkpoint's"),
    INT("threads", &sft.threads, "N", "threads; 0 = one per processor; never changes a result", 0, 256),
    INT("max-memory", &sft.max_memory, "N", "bytes of host memory to use at most; 0 = 80 % of what is there", 0, 1e15),
    FLAG("allow-nonfinite", &sft.allow_nonfinite, "load weights with NaN or infinity"),
    FLAG("hash-base", &sft.hash_base, "remember the base weights by all their bytes, not by names and shapes"),
    END};
// clang-format on

// What a resumed run may change: what decides no number of it.
static const char *const free_options[] = {"config",    "dry-run",    "threads",    "max-memory",    "out",  "origins",
                                           "keep-last", "keep-every", "save-every", "resume-anyway", "keep", NULL};

typedef struct Session {
    Config c;
    Tokenizer *t;
    Dataset train, eval;
    SftPlan plan;
    Model m;
    Run run;
    Checkpoint from;
    char base[65]; // fingerprint of the base weights
} Session;

// ---------------------------------------------------------------------------------------------------------- what to train

// Whether `names` (comma-separated) has the word.
static bool listed(const char *names, const char *word, size_t len) {
    for (const char *p = names; p && *p;) {
        size_t n = strcspn(p, ",");
        if (n == len && !memcmp(p, word, n)) return true;
        p += n + (p[n] == ',');
    }
    return false;
}
// A freeze rule names whole parts of a parameter's name: "blocks.0" is in "visual.blocks.0.norm1.weight".
static bool name_has(const char *name, const char *part, size_t len) {
    char padded[200], wanted[200];
    snprintf(padded, sizeof padded, ".%s.", name), snprintf(wanted, sizeof wanted, ".%.*s.", (int)len, part);
    return strstr(padded, wanted) != NULL;
}

static bool choose_weights(Model *m, Err *e) {
    static const char *const towers[] = {
        [TOWER_VISION] = "vision", [TOWER_MERGER] = "merger", [TOWER_DECODER] = "decoder"};
    for (const char *p = sft.full; *p;) {
        size_t n = strcspn(p, ",");
        if (!n || !listed("decoder,vision,merger", p, n))
            return err_set(e, "E-CL-01", AT(.file = "command line", .field = "--full"),
                           "expected decoder, vision, merger; found %s; do: give such a list", quoted(p, n));
        p += n + (p[n] == ',');
    }
    int64_t trained = 0;
    for (int64_t i = 0; i < m->n_params; i++) {
        Param *p = &m->params[i];
        p->trained = !p->tied && listed(sft.full, towers[p->tower], strlen(towers[p->tower]));
    }
    for (const char *f = sft.freeze; f && *f;) {
        size_t n = strcspn(f, ",");
        int64_t hits = 0;
        for (int64_t i = 0; i < m->n_params; i++)
            if (name_has(m->params[i].name, f, n)) m->params[i].trained = false, hits++;
        if (!hits)
            return err_set(e, "E-CL-01", AT(.file = "command line", .field = "--freeze"),
                           "expected parts of parameter names; found %s, which is in none; do: see surgr1 check "
                           "safetensors --print FILE",
                           quoted(f, n));
        f += n + (f[n] == ',');
    }
    for (int64_t i = 0; i < m->n_params; i++) trained += m->params[i].trained;
    return trained || err_set(e, "E-CL-01", AT(.file = "command line", .field = "--freeze"),
                              "expected something left to train; found everything frozen; do: freeze less");
}

static bool choose_trained(Session *s, Err *e) {
    Model *m = &s->m;
    const char *adapter = s->from.step >= 0 ? s->from.dir : sft.adapter;
    if (sft.full) return choose_weights(m, e);
    if (adapter && !lora_load(m, adapter, e)) return false;
    LoraOptions o = {.targets = sft.lora,
                     .r = sft.rank,
                     .alpha = sft.alpha_lora,
                     .rslora = sft.rslora,
                     .dropout = sft.dropout,
                     .seed = (uint64_t)sft.seed};
    if (!adapter && !lora_init(m, &o, e)) return false;
    sft.o.dropout = m->dropout || m->vision.dropout;
    return true;
}

// The vision tower and the merger learn from pictures only.
static bool something_learns(const Session *s, Err *e) {
    bool decoder = false;
    for (int64_t i = 0; i < s->m.n_params; i++)
        decoder |= s->m.params[i].trained && s->m.params[i].tower == TOWER_DECODER;
    return decoder || s->train.patches ||
           err_set(e, "E-CL-01", AT(.file = "command line", .field = "--data"),
                   "expected pictures, for only the vision tower or the merger is trained; found none in any sample; "
                   "do: train the decoder too, or give data with pictures");
}

// --------------------------------------------------------------------------------------------------------- before step 0

static void row(const char *role, size_t bytes, const char *what) {
    note("  %-22s %10.1f MB  %s", role, (double)bytes / 1e6, what);
}

// What the largest micro-batch of a plan takes while it is worked on.
static PassBytes plan_bytes(const Session *s, const SftPlan *p, bool backward, int64_t keep) {
    int32_t *targets = alloc_or_die((size_t)p->tokens, sizeof *targets, "the memory table");
    for (int64_t i = p->targets; i < p->tokens; i++) targets[i] = -1;
    Span *spans = alloc_or_die((size_t)p->spans, sizeof *spans, "the memory table");
    // one picture of as many patches stands for all of them
    Grid grid = {1, s->c.vision.merge, p->patches / s->c.vision.merge};
    TrainBatch b = {.N = p->tokens,
                    .targets = targets,
                    .spans = spans,
                    .n_spans = p->spans,
                    .grids = &grid,
                    .n_grids = p->patches > 0,
                    .keep = keep};
    PassBytes pass = model_pass_bytes(&s->m, &b, backward);
    free(targets), free(spans);
    return pass;
}
// The largest of the whole run; evaluations work in the same arenas.
static PassBytes largest_pass(const Session *s, int64_t keep) {
    PassBytes pass = plan_bytes(s, &s->plan, true, keep);
    if (!s->eval.n) return pass;
    SftPlan plan;
    sft_eval_plan(&s->eval, &sft.o, &plan);
    PassBytes eval = plan_bytes(s, &plan, false, 0);
    if (eval.text > pass.text) pass.text = eval.text;
    if (eval.pictures > pass.pictures) pass.pictures = eval.pictures;
    return pass;
}
static size_t sum_of(PassBytes p) { return p.text + p.vision + p.pictures; }

// What the model, the optimizer and the passes will hold, by role; a stop when it is too much. Not in it: the pictures of
// the batch that is read, and the cache of sample answers.
static bool memory_table(Session *s, Err *e) {
    Model *m = &s->m;
    const SftPlan *p = &s->plan;
    bool host = m->d->alloc == ops_ref()->alloc;
    size_t own = 0, elements = 0, mapped = 0;
    int64_t trained = 0, all = 0;
    for (int64_t i = 0; i < m->n_params; i++) {
        const Param *q = &m->params[i];
        size_t n = (size_t)(q->rows * q->cols);
        if (q->tied) continue;
        all += (int64_t)n;
        if (m->mapped && !q->owned && host) mapped += n * type_size(q->w->v.type);
        if (!q->trained) continue;
        trained += (int64_t)n, elements += n, own += q->owned ? 0 : 4 * n;
    }
    size_t samples = s->train.kept + s->eval.kept;
    size_t lasting = m->weights.size + m->adapter.size + own + 12 * elements + (host ? samples : 0);
    if (sft.o.keep < 0) {
        sft.o.keep = !host ? 0 : s->c.L > s->c.vision.depth ? s->c.L : s->c.vision.depth;
        while (sft.o.keep > 0 && (int64_t)(lasting + sum_of(largest_pass(s, sft.o.keep))) > memory_limit())
            sft.o.keep--;
    }
    PassBytes pass = largest_pass(s, sft.o.keep);
    size_t total = lasting + sum_of(pass);
    note("trained: %lld of %lld parameters (%.2f %%)", (long long)trained, (long long)all,
         100. * (double)trained / (double)all);
    note("memory on %s, for at most %lld tokens and %lld patches in a pass:", m->d->name, (long long)p->tokens,
         (long long)p->patches);
    if (mapped) row("mapped weights", mapped, "the checkpoint's own pages, shared with the system");
    row("weights", m->weights.size, "converted or small");
    if (m->adapter.size) row("adapter", m->adapter.size, "A and B, F32");
    if (own) row("trained weights", own, "F32 master copies");
    row("gradients", 4 * elements, "F32");
    row("optimizer", 8 * elements, "two moments, F32");
    if (samples) row("samples", samples, host ? "ids, tokenised once" : "ids, tokenised once; on the host");
    char kept[80];
    snprintf(kept, sizeof kept, "decoder and head; %lld blocks of each tower are kept", (long long)sft.o.keep);
    row("activations", pass.text, kept);
    if (pass.vision) row("vision activations", pass.vision, "");
    row("total", total, "without the mapped weights");
    return !host || (int64_t)total <= memory_limit() ||
           err_set(
               e, "E-ME-01", AT(.file = "memory"),
               "expected at most %.1f MB (--max-memory); found a need for %.1f MB; do: lower --pack-tokens, --batch or "
               "--keep, or raise --max-memory",
               (double)memory_limit() / 1e6, (double)total / 1e6);
}

// One sample as the model sees it; what the loss counts stands between >> and <<, runs of picture tokens as one.
static bool show_sample(Session *s, Text *out, Err *e) {
    Sample x;
    if (!sample_load(&s->train, 0, &x, e)) return false;
    for (int64_t i = 0, end; i < x.ids.n; i = end) { // run by run: a character may be several tokens
        bool on = x.trained[i], picture = x.ids.p[i] == s->c.image_id;
        for (end = i + 1; end < x.ids.n && x.trained[end] == x.trained[i]; end++)
            if ((x.ids.p[end] == s->c.image_id) != picture) break;
        if (on && !(i && x.trained[i - 1])) text_addf(out, ">>");
        if (picture) text_addf(out, "[%lld picture tokens]", (long long)(end - i));
        else tokenizer_decode(s->t, &x.ids.p[i], end - i, false, out);
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

// What of the base a resume compares: names, types, shapes and sizes of its tensors, or all their bytes.
static bool fingerprint(Session *s, Err *e) {
    TensorFile f;
    if (!tensors_open_folder(&f, sft.model, e)) return false;
    tensors_fingerprint(&f, sft.hash_base, s->base);
    tensors_close(&f);
    return true;
}

static void config_text(const Session *s, Text *out) {
    Text origins = {0};
    text_addf(out, "{\"command\":{\"name\":\"sft\",\"version\":\"" SURGR1_VERSION "\"},\"options\":");
    options_json(sft_options, out, &origins);
    text_addf(out, ",\"origins\":%s,\"inputs\":{\"base\":\"%s\",\"data\":\"%s\"", origins.p, s->base, s->train.sha256);
    if (s->eval.n) text_addf(out, ",\"eval\":\"%s\"", s->eval.sha256);
    text_addf(out, "}}\n");
    text_free(&origins);
}

// ---------------------------------------------------------------------------------------------------------------- run

static bool on_command_line(const void *value) {
    const char *origin = option_of(sft_options, value)->origin;
    return origin && !strcmp(origin, "command line");
}

// Who gives an option expects something of it: one that would do nothing is refused. A --config holds them all.
static bool none_idle(Err *e) {
    bool eval = sft.eval.n > 0, fresh = !sft.full && !sft.adapter;
    const struct {
        const void *value;
        bool used;
        const char *beside;
    } rules[] = {
        {&sft.rank, fresh, "a new adapter (--lora)"},
        {&sft.alpha_lora, fresh, "a new adapter (--lora)"},
        {&sft.rslora, fresh, "a new adapter (--lora)"},
        {&sft.dropout, fresh, "a new adapter (--lora)"},
        {&sft.o.old_keys, !sft.full, "an adapter to export"},
        {&sft.export_dtype, sft.full != NULL, "--full WHAT"},
        {&sft.o.eval_every, eval, "--eval FILE"},
        {&sft.o.eval_samples, eval, "--eval FILE"},
        {&sft.eval, sft.o.eval_every || sft.o.sample_every, "--eval-every N, or --sample-every N"},
        {&sft.o.schedule.decay_part, sft.schedule == SCHEDULE_WSD, "--schedule wsd"},
    };
    for (size_t k = 0; k < sizeof rules / sizeof *rules; k++) {
        char field[40];
        snprintf(field, sizeof field, "--%s", option_of(sft_options, rules[k].value)->name);
        if (!rules[k].used && on_command_line(rules[k].value))
            return err_set(e, "E-CL-01", AT(.file = "command line", .field = field),
                           "expected it beside %s; found none, so that it would do nothing; do: add that, or leave it "
                           "out",
                           rules[k].beside);
    }
    return true;
}

// What is trained is one choice: made on the command line it takes the place of the one in --config.
static void choose_way(void) {
    const char **ways[] = {&sft.lora, &sft.full, &sft.adapter, &sft.freeze};
    if (!on_command_line(&sft.lora) && !on_command_line(&sft.full) && !on_command_line(&sft.adapter)) return;
    for (size_t k = 0; k < sizeof ways / sizeof *ways; k++)
        if (!on_command_line(ways[k])) *ways[k] = NULL, option_of(sft_options, ways[k])->origin = NULL;
}

static bool check_options(Err *e) {
    choose_way();
    const char *missing = !sft.model                 ? "--model DIR"
                          : !sft.data.n              ? "--data FILE"
                          : !sft.out && !sft.dry_run ? "--out RUN"
                                                     : NULL;
    int ways = (sft.lora != NULL) + (sft.full != NULL) + (sft.adapter != NULL);
    if (missing)
        return err_set(e, "E-CL-01", AT(.file = "command line"), "expected %s; found none; do: see surgr1 sft --help",
                       missing);
    if (ways > 1)
        return err_set(e, "E-CL-01", AT(.file = "command line"),
                       "expected one of --lora, --full and --adapter; found %d; do: choose one", ways);
    if (sft.freeze && !sft.full)
        return err_set(e, "E-CL-01", AT(.file = "command line", .field = "--freeze"),
                       "expected it beside --full; found it alone; do: leave it out, LoRA freezes all else");
    if (sft.export == 1 && !(sft.eval.n && sft.o.eval_every))
        return err_set(e, "E-CL-01", AT(.file = "command line", .field = "--export"),
                       "expected evaluations to judge by; found none; do: give --eval FILE and --eval-every N");
    if (sft.o.patience && !(sft.eval.n && sft.o.eval_every))
        return err_set(e, "E-CL-01", AT(.file = "command line", .field = "--patience"),
                       "expected evaluations to judge by; found none; do: give --eval FILE and --eval-every N");
    if (!none_idle(e)) return false;
    if (!ways) sft.lora = "decoder,vision,merger";
    sft.o.seed = (uint64_t)sft.seed;
    sft.o.schedule.kind = (enum ScheduleKind)sft.schedule;
    sft.o.schedule.warmup = sft.warmup;
    if (sft.warmup) sft.o.warmup_part = 0;
    sft.o.adam.lr[TOWER_DECODER] = sft.lr;
    sft.o.adam.lr[TOWER_VISION] = sft.lr_vision > 0 ? sft.lr_vision : sft.lr;
    sft.o.adam.lr[TOWER_MERGER] = sft.lr_merger > 0 ? sft.lr_merger : sft.lr;
    static const char *const types[] = {"keep", "f32", "bf16"};
    sft.o.skip_outliers = sft.outliers == 1, sft.o.export_best = sft.export == 1;
    sft.o.export_type = types[sft.export_dtype];
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
    DataOptions o = {.image_root = sft.image_root,
                     .max_tokens = sft.max_tokens,
                     .drop_long = sft.drop_long,
                     .drop_bad = sft.bad_sample == 1,
                     .absolute_images = sft.absolute,
                     .trust_text = sft.trust_text,
                     .group = sft.group,
                     .align = sft.o.align > 0,
                     .image = {.alpha_white = sft.alpha == 1, .apply_orientation = sft.exif == 1}};
    if (!config_load(&s->c, sft.model, e)) return false;
    if (sft.min_pixels) s->c.vision.min_pixels = sft.min_pixels;
    if (sft.max_pixels) s->c.vision.max_pixels = sft.max_pixels;
    if (!pixel_limits_ok(&s->c.vision, e) || !tokenizer_load(&s->t, sft.model, e) || !chat_template_check(sft.model, e))
        return false;
    o.files = sft.data.p, o.n_files = sft.data.n;
    if (!dataset_open(&s->train, s->t, &s->c, o, e)) return false;
    describe_data("training data", &s->train);
    o.files = sft.eval.p, o.n_files = sft.eval.n, o.align = false;
    if (sft.eval.n && !dataset_open(&s->eval, s->t, &s->c, o, e)) return false;
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
    return fingerprint(s, e);
}

static bool load(Session *s, Err *e) {
    LoadOptions options = {.allow_nonfinite = sft.allow_nonfinite, .force_f32 = sft.dtype == DTYPE_F32};
    const Ops *d = device_of(sft.device, sft.dtype, e);
    if (!d || !model_load(&s->m, sft.model, d, options, e)) return false;
    s->m.c.vision.min_pixels = s->c.vision.min_pixels, s->m.c.vision.max_pixels = s->c.vision.max_pixels;
    s->m.vision.c = s->m.c.vision;
    return choose_trained(s, e) && something_learns(s, e) && memory_table(s, e);
}

// The folder of an earlier start, and what it left. A configuration is binding from the first checkpoint on.
static bool reopen(Session *s, const char *config, Err *e) {
    char path[1300];
    if (!run_open(&s->run, sft.out, e) || !path_join(path, sizeof path, sft.out, "config.json", e)) return false;
    if (!run_newest(&s->run, &s->from, e)) return false;
    return s->from.step < 0 ||
           (run_config(&s->run, config, free_options, sft.anyway.p, e) && run_owns(&s->run, &s->from, e));
}

// A new folder is made when everything that can be refused has been, so that a slip leaves nothing behind.
static bool open_new(Session *s, const char *config, Err *e) {
    char path[1300];
    return (s->run.lock >= 0 || run_open(&s->run, sft.out, e)) &&
           path_join(path, sizeof path, sft.out, "config.json", e) &&
           file_write_atomic(path, config, strlen(config), e) &&
           run_config(&s->run, config, free_options, sft.anyway.p, e);
}

// A resume with other options is told where the run's other beginnings are; config.json stays what it began with.
static bool log_anyway(Session *s, Err *e) {
    if (s->from.step < 0 || !sft.anyway.n) return true;
    Text t = {0};
    text_addf(&t, "\"ev\":\"resume_anyway\",\"step\":%lld,\"fields\":[", (long long)s->from.step);
    for (int i = 0; i < sft.anyway.n; i++) {
        text_addf(&t, "%s", i ? "," : "");
        text_add_json_string(&t, sft.anyway.p[i], utf8_complete(sft.anyway.p[i], strnlen(sft.anyway.p[i], 80)));
    }
    text_addf(&t, "]");
    bool ok = log_write(&s->run.timing, t.p, e);
    text_free(&t);
    return ok;
}

static bool train(Session *s, bool *finished, Err *e) {
    Text config = {0}, sample = {0};
    config_text(s, &config);
    bool ok = (!folder_exists(sft.out) || reopen(s, config.p, e)) && load(s, e) && show_sample(s, &sample, e) &&
              (s->from.step >= 0 || open_new(s, config.p, e)) && run_logs_open(&s->run, &s->from, e) &&
              log_anyway(s, e);
    if (ok && s->from.step < 0) {
        Text fenced = {0};
        text_addf(&fenced, "```\n%s\n```\n", config.p);
        ok = events_text(&s->run.events, "config", 0, fenced.p, fenced.len, e);
        text_free(&fenced);
        text_addf(&fenced, "```\n%s\n```\n", sample.p);
        ok = ok && events_text(&s->run.events, "first sample", 0, fenced.p, fenced.len, e);
        text_free(&fenced);
    }
    ok = ok && model_train_open(&s->m, e) &&
         sft_run(&s->m, s->t, &s->train, s->eval.n ? &s->eval : NULL, &s->run, &sft.o, &s->from, finished, e);
    text_free(&config), text_free(&sample);
    return ok;
}

static int run_sft(char **args, int n) {
    static Session s;
    JsonDoc config = {0};
    Text sample = {0};
    Err e = {0};
    bool finished = false;
    (void)args, (void)n;
    s.from.step = -1, s.run.lock = -1;
    stop_on_signals();
    if (sft.config && !options_read(&command_sft, sft.config, &config, &e)) return err_report(&e);
    if (!check_options(&e)) return err_report(&e);
    list_options(sft_options, "command line", "given");
    if (sft.config) list_options(sft_options, sft.config, "from --config");
    list_options(sft_options, "", "defaults");
    pool_start((int)sft.threads);
    if (sft.max_memory) memory_limit_set(sft.max_memory);
    bool ok = prepare(&s, &e);
    if (ok && sft.dry_run) ok = load(&s, &e) && show_sample(&s, &sample, &e);
    else if (ok) ok = train(&s, &finished, &e);
    if (ok && sft.dry_run) printf("dry run: %lld steps, nothing was written\n", (long long)s.plan.steps);
    else if (finished) printf("%s/export\n", sft.out);
    else if (ok) note("stopped on request; start the same command again to resume");
    warn_summary();
    run_close(&s.run), checkpoint_free(&s.from);
    model_free(&s.m), dataset_close(&s.train), dataset_close(&s.eval), tokenizer_free(s.t);
    text_free(&sample), json_free(&config);
    pool_stop();
    return !ok ? err_report(&e) : finished || sft.dry_run ? EXIT_OK : EXIT_STOPPED;
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
