// grpo.c - surgr1 grpo: reinforcement learning from the command line.
//
// What it is:  glue: options and presets, prompts, the model with its trained parameters, the run folder; and what a person
//              wants to see before step 0: the resolved preset, the prompts by task, how much memory by role.
// What it is not: the training (../grpo_run.c), its formulas (../grpo.c) or the rewards (../surgery/reward.c).
// Read before: training.h, ../grpo_run.c.  Read next: ../surgery/reward.c.
//
// A switch of the loss or of a reward that nobody gives has the value of its preset; config.json holds what came of it.
#include "training.h"

static struct {
    Training t;
    Many data, eval, sft_data;
    const char *system;
    int64_t top_k;
    int preset, rewards, reference, weak, score;
    bool reasoning;
    // switches: 0 and -1 stand for the preset's value
    int baseline, scale, normalize_then_sum, missing_as_zero, dynamic_sampling, mask_truncated, weights, term, ratio;
    int kl_unbiased, kl_in_flat_groups, norm;
    int64_t ddof;
    double eps, spread_tol, dynamic_low, dynamic_high, tau, w_max, top_quantile, eps_low, eps_high, delta, dual_clip;
    double cispo_cap, sapo_plus, sapo_minus, log_ratio_limit, beta, kl_limit, sft_coef, bonus_coef;
    int structure, strict_answer, any_answer, box, language, coherence;
    double weight[REWARD_TERMS], structure_part, box_threshold, repetition_penalty;
    int64_t overlong_buffer, ngram;
    GrpoOptions o;
} grpo = {.t = {TRAINING_DEFAULTS(1e-5, 0.05, 0.95), .rate = SCHEDULE_CONSTANT},
          .ddof = -1,
          .eps = -1,
          .spread_tol = -1,
          .dynamic_low = -1,
          .dynamic_high = -1,
          .tau = -1,
          .w_max = -1,
          .top_quantile = -1,
          .eps_low = -1,
          .eps_high = -1,
          .delta = -1,
          .dual_clip = -1,
          .cispo_cap = -1,
          .sapo_plus = -1,
          .sapo_minus = -1,
          .log_ratio_limit = -1,
          .beta = -1,
          .kl_limit = -1,
          .sft_coef = -1,
          .bonus_coef = -1,
          .weight = {-1, -1, -1, -1, -1, -1, -1, -1, -1},
          .structure_part = -1,
          .box_threshold = -1,
          .repetition_penalty = 1,
          .overlong_buffer = -1,
          .ngram = -1,
          .o = {.epochs = 1,
                .prompts = 8,
                .group = 8,
                .updates = 1,
                .inner = 1,
                .micro = 1,
                .max_new_tokens = 768,
                .sample = {.temperature = 1, .top_p = 1, .repetition_penalty = 1},
                .max_redraws = 4,
                .sft_batch = 8,
                .gate = 0.8,
                .task_floor = 0.1,
                .gate_samples = 64,
                .eval_samples = 0,
                .log_groups = 8}};

// clang-format off
static Option grpo_options[] = {
    TEXT("model", &grpo.t.model, "DIR", "checkpoint folder to start from (a cold start: it keeps to the format)"),
    MANY("data", &grpo.data, "FILE", "prompts: records with labels (data/README.md); answers in them are not shown; again for more", 64),
    MANY("eval", &grpo.eval, "FILE", "prompts of the gate and of evaluations; again for more", 64),
    MANY("sft-data", &grpo.sft_data, "FILE", "demonstrations for --sft-coef; again for more", 64),
    TEXT("image-root", &grpo.t.image_root, "DIR", "where relative picture paths start (default: beside each file)"),
    TEXT("system", &grpo.system, "TEXT", "system turn, instead of the records' own"),
    FLAG("reasoning", &grpo.reasoning, "the system turn that asks for <think> and <answer>, for records without one"),
    TRAINING_RUN_ROWS(grpo.t),
    TRAINING_WEIGHTS_ROWS(grpo.t),
    CHOICE("preset", &grpo.preset, "surg-r1|surgery-r1|trl|vlm-r1|dapo", "loss: eq. 3, 6 and 7 of Surg-R1, or another's; each switch can be set"),
    INT("prompts", &grpo.o.prompts, "P", "prompts in a rollout", 1, 65536),
    INT("group", &grpo.o.group, "G", "completions of each prompt", 2, 1024),
    INT("updates", &grpo.o.updates, "U", "parts of a rollout, with an update for each", 1, 65536),
    INT("epochs-per-rollout", &grpo.o.inner, "E", "times through the rollout", 1, 1000),
    INT("max-new-tokens", &grpo.o.max_new_tokens, "N", "longest completion", 1, 8192),
    REAL("temperature", &grpo.o.sample.temperature, "T", "of sampling, and of the distribution that the loss is about", 0.01, 100),
    INT("top-k", &grpo.top_k, "K", "sample from the K most likely; 0 = off, as the loss assumes", 0, 1048576),
    REAL("top-p", &grpo.o.sample.top_p, "P", "sample from the smallest set of this probability; 1 = off, as the loss assumes", 0, 1),
    INT("micro", &grpo.o.micro, "N", "groups in one pass", 1, 65536),
    INT("generate-batch", &grpo.o.generate_batch, "N", "prompts that are answered together; 0 = all of a rollout; never changes a text", 0, 65536),
    REAL("epochs", &grpo.o.epochs, "E", "times through the prompts, when --steps is 0", 0.0001, 100000),
    INT("steps", &grpo.o.steps, "N", "updates; 0 = by --epochs", 0, 1e9),
    TRAINING_RATE_ROWS(grpo.t),
    CHOICE("score", &grpo.score, "auto|sampler|pass", "who says what the tokens' log-probabilities and entropies were: the sampler, or one more\n"
        "                             forward pass; auto: the pass where activations are bf16 and both round apart"),
    TRAINING_KEEP_ROW(grpo.t),

    CHOICE("rewards", &grpo.rewards, "preset|surg-r1|surgery-r1", "which paper's rewards"),
    REAL("reward-format", &grpo.weight[REWARD_FORMAT], "W", "weight of the tags' form (-1 here and below: the preset's)", -1, 1000),
    REAL("reward-answer", &grpo.weight[REWARD_ANSWER], "W", "weight of a right answer (surg-r1)", -1, 1000),
    REAL("reward-structure", &grpo.weight[REWARD_STRUCTURE], "W", "weight of the levels (surg-r1)", -1, 1000),
    REAL("reward-grounding", &grpo.weight[REWARD_GROUNDING], "W", "weight of the box (surgery-r1)", -1, 1000),
    REAL("reward-language", &grpo.weight[REWARD_LANGUAGE], "W", "weight of the label (surgery-r1)", -1, 1000),
    REAL("reward-coherence", &grpo.weight[REWARD_COHERENCE], "W", "weight of box and label together (surgery-r1)", -1, 1000),
    REAL("reward-overlong", &grpo.weight[REWARD_OVERLONG], "W", "weight of the soft overlong punishment (2503.14476)", -1, 1000),
    REAL("reward-cosine", &grpo.weight[REWARD_COSINE], "W", "weight of the length reward (2502.03373)", -1, 1000),
    REAL("reward-repetition", &grpo.weight[REWARD_REPETITION], "W", "weight of repeated n-grams", -1, 1000),
    REAL("structure-part", &grpo.structure_part, "F", "part of the run, from its start, in which the structure counts", -1, 1),
    CHOICE("structure", &grpo.structure, "preset|paper|header", "\"Level 1\" anywhere, or headers with a text"),
    CHOICE("strict-answer", &grpo.strict_answer, "preset|off|on", "an answer counts in a well-formed completion only"),
    CHOICE("any-answer", &grpo.any_answer, "preset|off|on", "text without tags is an answer too (for models that answer directly)"),
    CHOICE("box", &grpo.box, "preset|iou|iou50|tiered|l1|giou|giou50", "what a box is worth"),
    REAL("box-threshold", &grpo.box_threshold, "F", "of iou50 and giou50", -1, 1),
    CHOICE("language", &grpo.language, "preset|exact|in-vocab|token-f1", "what a label is worth"),
    CHOICE("coherence", &grpo.coherence, "preset|joint|product|quadrant|trace", "how box and label agree"),
    INT("overlong-buffer", &grpo.overlong_buffer, "N", "tokens before the limit in which the punishment grows", -1, 8192),
    INT("ngram", &grpo.ngram, "N", "of repetition", -1, 64),
    REAL("repetition-penalty", &grpo.repetition_penalty, "R", "at most so much for repetition, below 0; 1: the preset's", -1000, 1),

    CHOICE("baseline", &grpo.baseline, "preset|mean|others", "of the advantage: group mean; mean of the others (RLOO)"),
    CHOICE("scale", &grpo.scale, "preset|group|batch|none", "deviation it is divided by; none: Dr. GRPO"),
    INT("ddof", &grpo.ddof, "N", "deviation over n - N; 0: the paper, 1: the trainers", -1, 1),
    REAL("adv-eps", &grpo.eps, "E", "added to the deviation", -1, 1),
    REAL("spread-tol", &grpo.spread_tol, "F", "rewards that differ by no more are equal", -1, 1),
    CHOICE("normalize-then-sum", &grpo.normalize_then_sum, "preset|off|on", "GDPO: every reward by itself"),
    CHOICE("missing-as-zero", &grpo.missing_as_zero, "preset|off|on", "a completion without any reward counts as 0"),
    CHOICE("dynamic-sampling", &grpo.dynamic_sampling, "preset|off|on", "DAPO: other prompts for groups that tell nothing"),
    REAL("dynamic-low", &grpo.dynamic_low, "F", "groups must have a mean answer reward above it", -1, 1000),
    REAL("dynamic-high", &grpo.dynamic_high, "F", "and below this", -1, 1000),
    INT("max-redraws", &grpo.o.max_redraws, "N", "rounds of other prompts in one rollout", 0, 1000),
    CHOICE("mask-truncated", &grpo.mask_truncated, "preset|off|on", "completions cut by the limit take no part in the loss"),
    CHOICE("weights", &grpo.weights, "preset|off|entropy|top", "of tokens: 1; eq. 6; the most uncertain only (2506.01939)"),
    REAL("tau", &grpo.tau, "T", "temperature of eq. 6", -1, 100),
    REAL("w-max", &grpo.w_max, "W", "cap of eq. 6; 0: none", -1, 1e6),
    REAL("top-quantile", &grpo.top_quantile, "F", "share of tokens that --weights top keeps", -1, 1),
    CHOICE("term", &grpo.term, "preset|reinforce|clip|cispo|sapo", "policy term: eq. 7; PPO; CISPO; SAPO"),
    CHOICE("ratio", &grpo.ratio, "preset|token|sequence|sequence-token", "PPO; GSPO; GSPO by token"),
    REAL("clip-low", &grpo.eps_low, "E", "ratio is clipped below 1 - E", -1, 1),
    REAL("clip-high", &grpo.eps_high, "E", "and above 1 + E", -1, 1e6),
    REAL("delta", &grpo.delta, "D", "ratio is cut to at most D first; 0: off", -1, 1e6),
    REAL("dual-clip", &grpo.dual_clip, "C", "the same for negative advantages (1912.09729); 0: off", -1, 1e6),
    REAL("cispo-cap", &grpo.cispo_cap, "C", "of the ratio in CISPO", -1, 1e6),
    REAL("sapo-plus", &grpo.sapo_plus, "T", "SAPO's temperature for positive advantages", -1, 1000),
    REAL("sapo-minus", &grpo.sapo_minus, "T", "and for the others", -1, 1000),
    REAL("log-ratio-limit", &grpo.log_ratio_limit, "L", "log ratios are clamped to +- L; 0: never", -1, 80),
    REAL("kl", &grpo.beta, "B", "coefficient of the KL term (k3); 0: off", -1, 1e6),
    CHOICE("reference", &grpo.reference, "base|initial", "of the KL term: the adapter off, or the policy before step 0"),
    CHOICE("kl-unbiased", &grpo.kl_unbiased, "preset|off|on", "k3 times the ratio"),
    CHOICE("kl-flat-groups", &grpo.kl_in_flat_groups, "preset|off|on", "groups without spread keep their KL term"),
    REAL("kl-limit", &grpo.kl_limit, "K", "k3 is cut to at most K; 0: never", -1, 1e9),
    CHOICE("norm", &grpo.norm, "preset|sequences|grpo|bnpo|dr_grpo|dapo|luspo", "what the loss is divided by"),
    REAL("sft-coef", &grpo.sft_coef, "C", "coefficient of eq. 1 over --sft-data; 0: off", -1, 1e6),
    INT("sft-batch", &grpo.o.sft_batch, "N", "demonstrations in an update", 1, 65536),
    REAL("bonus-coef", &grpo.bonus_coef, "C", "entropy bonus; only 0 can be done, for the head has no gradient of the entropy", -1, 1e6),

    REAL("gate", &grpo.o.gate, "F", "least format reward of sampled answers before step 0; 0 = no gate", 0, 1),
    INT("gate-samples", &grpo.o.gate_samples, "N", "prompts it is measured on: the first of --eval, else of --data", 0, 1e6),
    REAL("task-floor", &grpo.o.task_floor, "F", "least share of right sampled answers of a task; 0 = off", 0, 1),
    CHOICE("weak-tasks", &grpo.weak, "drop|keep", "tasks below the floor"),
    INT("eval-every", &grpo.o.eval_every, "N", "steps between evaluations, greedy and sampled; 0 = none", 0, 1e9),
    INT("eval-samples", &grpo.o.eval_samples, "N", "evaluate on the first N; 0 = all", 0, 1e9),
    INT("save-every", &grpo.o.save_every, "N", "steps between checkpoints; 0 = at the end only", 0, 1e9),
    TRAINING_SAVE_ROWS(grpo.t),
    INT("log-groups", &grpo.o.log_groups, "N", "groups of a rollout that rollouts.jsonl keeps; -1 = all", -1, 65536),
    TRAINING_GUARD_ROWS(grpo.t),
    TRAINING_EXPORT_ROWS(grpo.t),
    INT("seed", &grpo.t.seed, "N", "of order, sampling, new adapters and dropout", 0, 9007199254740992.),
    FLAG("trust-text", &grpo.t.trust_text, "typed special tokens are special, as in Hugging Face"),
    TRAINING_MACHINE_ROWS(grpo.t),
    END};
// clang-format on

static const char *const free_options[] = {"config",  "dry-run",        "threads",    "max-memory", "out",
                                           "origins", "keep-last",      "keep-every", "save-every", "resume-anyway",
                                           "keep",    "generate-batch", NULL};

typedef struct Session {
    PromptSet train, eval;
    Dataset sft;
} Session;

// -------------------------------------------------------------------------------------------------------------- options

// A switch that was given goes into the preset; then the option holds what came of it.
#define PICK(o, field)                                                                                                 \
    ((o)->field = grpo.field > 0 ? grpo.field - 1 : (int)(o)->field, grpo.field = (int)(o)->field + 1)
#define PICK_NUMBER(o, field) ((o)->field = grpo.field >= 0 ? grpo.field : (o)->field, grpo.field = (o)->field)

static bool resolve_loss(Err *e) {
    GrpoLoss *o = &grpo.o.loss;
    grpo_preset(o, grpo_preset_name(grpo.preset));
    PICK(o, baseline), PICK(o, scale), PICK(o, normalize_then_sum), PICK(o, missing_as_zero), PICK(o, dynamic_sampling);
    PICK(o, mask_truncated), PICK(o, weights), PICK(o, term), PICK(o, ratio), PICK(o, kl_unbiased);
    PICK(o, kl_in_flat_groups), PICK(o, norm);
    if (grpo.ddof >= 0) o->ddof = (int)grpo.ddof;
    grpo.ddof = o->ddof;
    PICK_NUMBER(o, eps), PICK_NUMBER(o, spread_tol), PICK_NUMBER(o, dynamic_low), PICK_NUMBER(o, dynamic_high);
    PICK_NUMBER(o, tau), PICK_NUMBER(o, w_max), PICK_NUMBER(o, top_quantile), PICK_NUMBER(o, eps_low);
    PICK_NUMBER(o, eps_high), PICK_NUMBER(o, delta), PICK_NUMBER(o, dual_clip), PICK_NUMBER(o, cispo_cap);
    PICK_NUMBER(o, sapo_plus), PICK_NUMBER(o, sapo_minus), PICK_NUMBER(o, log_ratio_limit), PICK_NUMBER(o, beta);
    PICK_NUMBER(o, kl_limit), PICK_NUMBER(o, sft_coef), PICK_NUMBER(o, bonus_coef);
    return grpo_loss_check(o, AT(.file = "command line"), e);
}

static void resolve_rewards(void) {
    RewardOptions *r = &grpo.o.reward;
    bool surgery = grpo.rewards ? grpo.rewards == 2 : !strcmp(grpo.o.loss.preset, "surgery-r1");
    reward_preset(r, surgery ? "surgery-r1" : "surg-r1");
    grpo.rewards = surgery ? 2 : 1;
    for (int k = 0; k < REWARD_TERMS; k++) PICK_NUMBER(r, weight[k]);
    PICK_NUMBER(r, structure_part), PICK_NUMBER(r, box_threshold), PICK_NUMBER(r, overlong_buffer);
    PICK_NUMBER(r, ngram);
    if (grpo.repetition_penalty < 1) r->repetition_penalty = grpo.repetition_penalty;
    grpo.repetition_penalty = r->repetition_penalty;
    PICK(r, structure), PICK(r, strict_answer), PICK(r, any_answer), PICK(r, box), PICK(r, language),
        PICK(r, coherence);
    r->max_tokens = grpo.o.max_new_tokens;
}

static bool refuse(const char *field, const char *expected, const char *found, const char *todo, Err *e) {
    return err_set(e, "E-CL-01", AT(.file = "command line", .field = field), "expected %s; found %s; do: %s", expected,
                   found, todo);
}

static bool check_options(JsonDoc *config, Err *e) {
    Training *t = &grpo.t;
    GrpoOptions *o = &grpo.o;
    if (!training_options(t, config, e)) return false;
    if (!grpo.data.n) return refuse("--data", "a file of prompts", "none", "give --data FILE", e);
    if (!resolve_loss(e)) return false;
    resolve_rewards();
    const GrpoLoss *l = &o->loss;
    bool eval = grpo.eval.n > 0, gate = o->gate > 0 || o->task_floor > 0, sft = grpo.sft_data.n > 0;
    const IdleRule rules[] = {
        {&o->eval_every, eval, "--eval FILE"},
        {&o->eval_samples, eval && o->eval_every, "--eval FILE and --eval-every N"},
        {&grpo.eval, o->eval_every || gate, "--eval-every N, or a gate"},
        {&o->gate_samples, gate, "--gate or --task-floor"},
        {&grpo.weak, o->task_floor > 0, "--task-floor F"},
        {&grpo.reference, l->beta > 0, "--kl B"},
        {&grpo.kl_unbiased, l->beta > 0, "--kl B"},
        {&grpo.kl_limit, l->beta > 0, "--kl B"},
        {&grpo.kl_in_flat_groups, l->beta > 0, "--kl B"},
        {&o->max_redraws, l->dynamic_sampling, "--dynamic-sampling on"},
        {&grpo.dynamic_low, l->dynamic_sampling, "--dynamic-sampling on"},
        {&grpo.dynamic_high, l->dynamic_sampling, "--dynamic-sampling on"},
        {&grpo.tau, l->weights == WEIGHTS_ENTROPY, "--weights entropy"},
        {&grpo.w_max, l->weights == WEIGHTS_ENTROPY, "--weights entropy"},
        {&grpo.top_quantile, l->weights == WEIGHTS_TOP, "--weights top"},
        {&grpo.cispo_cap, l->term == TERM_CISPO, "--term cispo"},
        {&grpo.sapo_plus, l->term == TERM_SAPO, "--term sapo"},
        {&grpo.sapo_minus, l->term == TERM_SAPO, "--term sapo"},
        {&grpo.delta, l->term == TERM_CLIP, "--term clip"},
        {&grpo.dual_clip, l->term == TERM_CLIP, "--term clip"},
        {&grpo.eps_low, l->term == TERM_CLIP, "--term clip"},
        {&grpo.eps_high, l->term == TERM_CLIP, "--term clip"},
        {&grpo.sft_data, l->sft_coef > 0, "--sft-coef C"},
        {&o->sft_batch, sft, "--sft-data FILE"},
    };
    if (!none_idle(t, rules, sizeof rules / sizeof *rules, e)) return false;
    if (l->sft_coef > 0 && !sft) return refuse("--sft-coef", "demonstrations", "none", "give --sft-data FILE", e);
    if (l->bonus_coef > 0)
        return refuse("--bonus-coef", "0", "an entropy bonus", "leave it out: the head has no gradient of the entropy",
                      e);
    if (o->updates > o->prompts)
        return refuse("--updates", "at most as many as --prompts", "more", "raise --prompts or lower it", e);
    if (l->term == TERM_REINFORCE && o->updates * o->inner > 1)
        return refuse("--term", "a term with a ratio for several updates of one rollout", "reinforce",
                      "choose --term clip, cispo or sapo", e);
    if (grpo.system && grpo.reasoning)
        return refuse("--system", "one of --system and --reasoning", "both", "choose one", e);
    o->sample.do_sample = true, o->sample.top_k = (int32_t)grpo.top_k;
    o->seed = (uint64_t)t->seed, o->keep_weak = grpo.weak == 1;
    o->reference = (enum GrpoReference)grpo.reference, o->score = (enum GrpoScore)grpo.score;
    o->adam = t->adam, o->schedule = t->schedule, o->warmup_part = t->warmup_part, o->trainer = t->guards;
    return true;
}

static void show_preset(void) {
    Text loss = {0}, rewards = {0};
    grpo_loss_print(&grpo.o.loss, &loss);
    for (int k = 0; k < REWARD_TERMS; k++)
        if (grpo.o.reward.weight[k] != 0)
            text_addf(&rewards, "%s%g %s", rewards.len ? " + " : "", grpo.o.reward.weight[k], reward_term_names[k]);
    note("loss: %s", loss.p);
    note("reward: %s", rewards.p);
    text_free(&loss), text_free(&rewards);
}

// --------------------------------------------------------------------------------------------------------- before step 0

static void describe_prompts(const char *what, const PromptSet *p) {
    int64_t n[TASKS] = {0};
    Text tasks = {0};
    for (int64_t i = 0; i < p->n; i++) n[p->prompts[i].task]++;
    for (int k = 0; k < TASKS; k++)
        if (n[k]) text_addf(&tasks, "%s%lld %s", tasks.len ? ", " : "", (long long)n[k], task_info((enum Task)k)->name);
    note("%s: %lld prompts (%s); the longest has %lld tokens", what, (long long)p->n, tasks.p, (long long)p->longest);
    text_free(&tasks);
}

static bool prepare(Session *s, Err *e) {
    Training *t = &grpo.t;
    ImageOptions image = {.alpha_white = t->alpha == 1, .apply_orientation = t->exif == 1};
    PromptOptions p = {.system = grpo.system,
                       .or_system = grpo.reasoning ? task_system_prompt(false) : NULL,
                       .trust_text = t->trust_text,
                       .new_tokens = grpo.o.max_new_tokens,
                       .image = image};
    if (!training_config(t, e)) return false;
    if (!prompts_open(&s->train, t->t, &t->c, grpo.data.p, grpo.data.n, t->image_root, p, e)) return false;
    describe_prompts("training", &s->train);
    if (grpo.eval.n && !prompts_open(&s->eval, t->t, &t->c, grpo.eval.p, grpo.eval.n, t->image_root, p, e))
        return false;
    if (grpo.eval.n) describe_prompts("evaluation", &s->eval);
    DataOptions d = {.files = grpo.sft_data.p,
                     .n_files = grpo.sft_data.n,
                     .image_root = t->image_root,
                     .absolute_images = true,
                     .trust_text = t->trust_text,
                     .image = image};
    return !grpo.sft_data.n || dataset_open(&s->sft, t->t, &t->c, d, e);
}

// Of a part of a rollout, or of one demonstration.
static PassBytes largest_pass(void *ctx, int64_t keep) {
    const Session *s = ctx;
    SftPlan p, one = {.samples = 1,
                      .spans = 1,
                      .tokens = s->sft.longest,
                      .targets = s->sft.longest,
                      .patches = s->sft.most_patches};
    grpo_largest(&s->train, &grpo.o, &p);
    PassBytes pass = plan_bytes(&grpo.t, &p, true, keep);
    if (s->sft.n) pass_at_least(&pass, plan_bytes(&grpo.t, &one, true, keep));
    return pass;
}

static bool load(Session *s, Err *e) {
    Training *t = &grpo.t;
    SftPlan p;
    if (!training_load(t, &grpo.o.dropout, e)) return false;
    if (!trains_decoder(t) && !s->train.most_patches)
        return refuse("--data", "pictures, for only the vision tower or the merger is trained", "none in any prompt",
                      "train the decoder too, or give prompts with pictures", e);
    grpo_largest(&s->train, &grpo.o, &p);
    MemoryRow more[] = {{"reference", "the policy before step 0, F32", grpo_reference_bytes(&t->m, &grpo.o), false}};
    bool ok = memory_table(t, &p, largest_pass, s, grpo_sampling(&t->m, &s->train, &s->eval, &grpo.o), more, 1,
                           "--generate-batch, --max-new-tokens, --micro", e);
    grpo.o.keep = t->keep, grpo.o.trainer = t->guards;
    return ok;
}

static bool train(Session *s, bool *finished, Err *e) {
    Training *t = &grpo.t;
    Text config = {0}, inputs = {0};
    text_addf(&inputs, ",\"data\":\"%s\"", s->train.sha256);
    if (s->eval.n) text_addf(&inputs, ",\"eval\":\"%s\"", s->eval.sha256);
    if (s->sft.n) text_addf(&inputs, ",\"sft\":\"%s\"", s->sft.sha256);
    training_config_text(t, inputs.p, &config);
    bool ok =
        training_reopen(t, config.p, free_options, e) && load(s, e) && training_open(t, config.p, free_options, e);
    t->run.with_rollouts = true;
    ok = ok && training_logs(t, config.p, e) && model_train_open(&t->m, e) &&
         grpo_run(&t->m, t->t, &s->train, s->eval.n ? &s->eval : NULL, s->sft.n ? &s->sft : NULL, &t->run, &grpo.o,
                  &t->from, finished, e);
    text_free(&config), text_free(&inputs);
    return ok;
}

static int run_grpo(char **args, int n) {
    static Session s;
    JsonDoc config = {0};
    Err e = {0};
    bool finished = false;
    (void)args, (void)n;
    grpo.t.command = &command_grpo;
    stop_on_signals();
    if (!check_options(&config, &e)) return err_report(&e);
    training_list(&grpo.t), show_preset();
    pool_start((int)grpo.t.threads);
    if (grpo.t.max_memory) memory_limit_set(grpo.t.max_memory);
    bool ok = prepare(&s, &e) && (grpo.t.dry_run ? load(&s, &e) : train(&s, &finished, &e));
    if (ok && grpo.t.dry_run) printf("dry run: %lld prompts, nothing was written\n", (long long)s.train.n);
    int rc = training_close(&grpo.t, ok, finished, &e);
    prompts_close(&s.train), prompts_close(&s.eval), dataset_close(&s.sft);
    json_free(&config);
    return rc;
}

const Command command_grpo = {
    "grpo",
    "grpo --model DIR --data FILE --out RUN [options]",
    "Reinforcement learning with group-relative advantages: stage 3 of Surg-R1, the last stage of Surgery-R1.\n"
    "Results go to RUN (run.jsonl, rollouts.jsonl, tensorboard/, ckpt/, export/); the last line on standard output is "
    "the\n"
    "export folder. Started again on the same RUN it goes on from the newest checkpoint, to the same bits.",
    grpo_options,
    0,
    0,
    "no argument",
    run_grpo};
