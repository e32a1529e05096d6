// test_grpo_run.c - surgr1 grpo: what a run learns, what its numbers are, what it refuses, and that it goes on to the same
// bits after any end.
//
// What it is:  a small cold start that answers each question in one of several ways, made by surgr1 sft; runs of the
//              shipped program on it; and one update held against a batch made by hand.
// What it is not: the formulas (test_grpo.c) or the rewards (test_reward.c).
//
// SURGR1_KILLS=N is the number of random kills, 4 when it is not set.
#define _GNU_SOURCE
#include "trainer.h"

// ----------------------------------------------------------------------------------------------------------- cold start

typedef struct Question {
    const char *words, *picture, *task, *answers[4];
} Question;
static const Question questions[] = {{"Which tool?", NULL, "tool", {"hook", "clip", "grasper", "scissors"}},
                                     {"What phase?", NULL, "phase", {"start", "end"}},
                                     {"<image>What is it?", "c0_0.png", "tissue", {"liver", "fat"}}};
enum { QUESTIONS = sizeof questions / sizeof *questions };

static void add_record(Text *t, const Question *q, const char *id, const char *label, const char *said) {
    text_addf(t,
              "{\"id\":\"%s\",\"task\":\"%s\",\"answer\":\"%s\",\"messages\":[{\"role\":\"user\",\"content\":\"%s\"}",
              id, q->task, label, q->words);
    if (said)
        text_addf(t, ",{\"role\":\"assistant\",\"content\":\"<think>Level 1: %s</think><answer>%s</answer>\"}", said,
                  said);
    text_addf(t, "]");
    if (q->picture) text_addf(t, ",\"images\":[\"%s\"]", q->picture);
    text_addf(t, "}\n");
}
static const char *put(const char *name, Text *t) {
    static char path[4][200];
    static int turn;
    turn = (turn + 1) % 4;
    snprintf(path[turn], sizeof path[turn], "%s/%s", work, name);
    spill(path[turn], t->p, t->len), text_free(t);
    return path[turn];
}
static const char *demonstrations(void) {
    Text t = {0};
    for (int q = 0, n = 0; q < QUESTIONS; q++)
        for (int a = 0; a < 4 && questions[q].answers[a]; a++) {
            char id[20];
            snprintf(id, sizeof id, "d%d", n++);
            add_record(&t, &questions[q], id, "", questions[q].answers[a]);
        }
    return put("cold.jsonl", &t);
}
// never: the label of this task is one that is never said.
static const char *prompts(const char *name, const char *never) {
    Text t = {0};
    for (int q = 0; q < QUESTIONS; q++)
        for (int k = 0; k < 2; k++) {
            char id[40];
            snprintf(id, sizeof id, "%s-%d", questions[q].task, k);
            bool is = never && !strcmp(never, questions[q].task);
            add_record(&t, &questions[q], id, is ? "never" : questions[q].answers[0], NULL);
        }
    return put(name, &t);
}

static const char *cold(void) { // a checkpoint that gives one of the answers, with about equal chances
    static char dir[200];
    if (dir[0]) return dir;
    snprintf(dir, sizeof dir, "%s/cold/export", work);
    EXPECT_EXIT(run("sft --model " MODEL " --image-root " FIXTURES
                    " --data %s --out %s/cold --full decoder --dtype f32 --lr 3e-3 --batch 8 --steps 150",
                    demonstrations(), work),
                0);
    return dir;
}

static char *grpo(const char *name, const char *model, const char *data, const char *options) { // its folder
    static char args[3000];
    const char *device = getenv("SURGR1_DEVICE");
    char *dir = joined(work, name);
    snprintf(args, sizeof args,
             "grpo --model %s --image-root " FIXTURES " --data %s --out %s --device %s --max-new-tokens 40 "
             "--warmup-ratio 0 %s",
             model, data, dir, device && *device ? device : "cpu", options);
    free(dir);
    return args;
}
#define SMALL " --prompts 3 --group 4 --gate 0 --task-floor 0 "

static char *log_of(const char *name, const char *file) {
    char path[300];
    snprintf(path, sizeof path, "%s/%s/%s", work, name, file);
    char *text = slurp(path, NULL);
    if (!text) FAIL("no %s", path);
    return text ? text : calloc(1, 1);
}
// The value of a member in the k-th line of this kind; NaN: there is none.
static double value_of(const char *text, const char *event, int64_t k, const char *member) {
    char wanted[80];
    snprintf(wanted, sizeof wanted, "\"ev\":\"%s\"", event);
    const char *p = text;
    while ((p = strstr(p, wanted)) && k-- > 0) p++;
    if (!p) return NAN;
    const char *end = strchr(p, '\n');
    snprintf(wanted, sizeof wanted, "\"%s\":", member);
    p = strstr(p, wanted);
    return p && p < end ? strtod(p + strlen(wanted), NULL) : (double)NAN;
}

// ------------------------------------------------------------------------------------------------------------- learning

TEST(a_policy_learns_the_answer_that_is_rewarded) {
    const char *options = "--full decoder --dtype f32 --lr 3e-4 --steps 30 --prompts 6 --group 8 --gate 0.6 "
                          "--gate-samples 6 --log-groups 1 "
                          "--eval-every 30 --eval ";
    char more[500];
    const char *data = prompts("p.jsonl", NULL);
    snprintf(more, sizeof more, "%s%s", options, data);
    EXPECT_EXIT(run("%s", grpo("learn", cold(), data, more)), 0);
    char *log = log_of("learn", "run.jsonl");
    double before = value_of(log, "gate", 0, "right"), format = value_of(log, "gate", 0, "reward"), late = 0;
    EXPECT(before < 0.65 && format > 0.6);
    for (int k = 20; k < 30; k++) late += value_of(log, "rollout", k, "right") / 10;
    if (late < before + 0.2) FAIL("right %.3f before, %.3f at the end", before, late);
    // 24 answers at the gate, 480 at the end: two standard errors of the difference are below 0.2
    EXPECT(value_of(log, "eval", 0, "right") < value_of(log, "eval", 1, "right"));
    // the sampler and the training pass agree on every token, and so the first ratios are 1
    for (int k = 0; k < 30; k++) {
        double drift = value_of(log, "step", k, "drift_max"), ratio = value_of(log, "step", k, "ratio_max");
        if (!(drift < 2e-4 && fabs(ratio - 1) < 2e-4)) FAIL("step %d: drift %g, ratio %g", k + 1, drift, ratio);
    }
    EXPECT(count_in(log, "\"ev\":\"step\"") == 30);
    free(log);
    char *kept = log_of("learn", "rollouts.jsonl");
    EXPECT_INT(count_in(kept, "\"ev\":\"completion\""), 30 * 8); // of one group each
    EXPECT(strstr(kept, "\"pieces\":[\"<\",\"th") || strstr(kept, "\"pieces\":[\"<th"));
    free(kept);
}

// One update is the gradient of grpo_loss over separate sequences: AdamW's first moment is (1 - beta1) of it.
TEST(an_update_is_the_gradient_of_separate_sequences) {
    const char *data = prompts("p.jsonl", NULL), *model = cold();
    EXPECT_EXIT(
        run("%s",
            grpo("gradient", model, data,
                 SMALL "--preset trl --weights entropy --full decoder --dtype f32 --device ref --lr 1e-3 --clip 0 "
                       "--updates 3 --prompts 6 --micro 2 --steps 1 --save-every 1 --seed 3")),
        0);
    Err e = {0};
    Model m;
    Tokenizer *t = NULL;
    PromptSet set;
    TensorFile rollout, moments;
    char dir[300], file[400];
    snprintf(dir, sizeof dir, "%s/gradient/ckpt/step-000000001", work);
    snprintf(file, sizeof file, "%s/rollout.safetensors", dir);
    bool ok = model_load(&m, model, ops_ref(), (LoadOptions){.force_f32 = true}, &e) && tokenizer_load(&t, model, &e) &&
              prompts_open(&set, t, &m.c, &data, 1, FIXTURES, (PromptOptions){.new_tokens = 1}, &e) &&
              tensors_open(&rollout, file, &e);
    snprintf(file, sizeof file, "%s/optimizer.safetensors", dir);
    ok = ok && tensors_open(&moments, file, &e);
    if (!ok) {
        err_report(&e);
        FAIL("nothing to compare");
        return;
    }
    for (int64_t i = 0; i < m.n_params; i++)
        m.params[i].trained = m.params[i].tower == TOWER_DECODER && !m.params[i].tied;
    EXPECT(model_train_open(&m, &e));
    const int64_t *first = (const void *)tensors_find(&rollout, "first")->data;
    const int64_t *which = (const void *)tensors_find(&rollout, "prompts")->data;
    const int32_t *ids = (const void *)tensors_find(&rollout, "ids")->data;
    const double *advantage = (const void *)tensors_find(&rollout, "advantage")->data;
    const double *old_lp = (const void *)tensors_find(&rollout, "old_lp")->data;
    const double *entropy = (const void *)tensors_find(&rollout, "entropy")->data;
    GrpoLoss loss;
    grpo_preset(&loss, "trl");
    loss.weights = WEIGHTS_ENTROPY;
    enum { ROWS = 2 * 4 }; // a third of six groups of four
    int64_t tokens = first[ROWS];
    double norm = 0, spread = 0;
    for (int i = 0; i < ROWS; i++) {
        Prompt q;
        Pack pack = {0};
        int64_t T = first[i + 1] - first[i], start[2] = {0, T};
        EXPECT(prompts_load(&set, which[i / 4], &q, &e));
        int64_t n = q.ids.n + T;
        int32_t *all = malloc((size_t)n * sizeof *all);
        uint8_t *trained = calloc((size_t)n, 1), *mask = malloc((size_t)T);
        memcpy(all, q.ids.p, (size_t)q.ids.n * sizeof *all);
        memcpy(all + q.ids.n, ids + first[i], (size_t)T * sizeof *all);
        memset(trained + q.ids.n, 1, (size_t)T), memset(mask, 1, (size_t)T);
        Sequence s = {.ids = all,
                      .n = n,
                      .n_prompt = q.ids.n,
                      .trained = trained,
                      .pixels = q.pixels,
                      .grids = q.grids,
                      .n_grids = q.n_grids};
        EXPECT(pack_add(&pack, &m.c, &s, &e));
        const TrainBatch *b = pack_batch(&pack, false, 0, 0);
        float *lp = calloc((size_t)n, 4), *dlp = calloc((size_t)n, 4), *h = calloc((size_t)n, 4);
        EXPECT(model_pass(&m, b, NULL, lp, h, &e));
        double *l = malloc((size_t)T * 8), *w = malloc((size_t)T * 8), *d = malloc((size_t)T * 8);
        for (int64_t k = 0; k < T; k++) {
            l[k] = lp[q.ids.n - 1 + k];
            EXPECT(fabs(l[k] - old_lp[first[i] + k]) < 1e-4 && fabs(h[q.ids.n - 1 + k] - entropy[first[i] + k]) < 1e-4);
        }
        entropy_weights(entropy + first[i], mask, T, loss.tau, 0, w);
        GrpoBatch batch = {.B = 1,
                           .first = start,
                           .mask = mask,
                           .lp = l,
                           .old_lp = l,
                           .weight = w,
                           .advantage = advantage + i,
                           .accumulate = ROWS,
                           .sequences = ROWS,
                           .tokens = tokens,
                           .max_tokens = 40};
        grpo_loss(&loss, &batch, d, NULL);
        for (int64_t k = 0; k < T; k++) dlp[q.ids.n - 1 + k] = (float)d[k];
        EXPECT(model_pass(&m, b, dlp, lp, h, &e));
        spread += fabs(advantage[i]);
        free(all), free(trained), free(mask), free(lp), free(dlp), free(h), free(l), free(w), free(d);
        pack_free(&pack), prompt_free(&q);
    }
    EXPECT(spread > 1);
    double worst = 0, compared = 0;
    for (int64_t i = 0; i < m.n_params; i++) {
        if (!m.params[i].trained) continue;
        char name[220];
        snprintf(name, sizeof name, "%s.exp_avg", m.params[i].name);
        const Tensor *x = tensors_find(&moments, name);
        if (!x) {
            FAIL("no %s", name);
            continue;
        }
        const float *mine = m.params[i].w->d.p, *theirs = (const void *)x->data;
        for (int64_t k = 0; k < x->elements; k++) {
            norm += (double)mine[k] * mine[k], compared++;
            worst = fmax(worst, fabs((double)mine[k] - 10 * (double)theirs[k]));
        }
    }
    char *log = log_of("gradient", "run.jsonl");
    double logged = value_of(log, "step", 0, "grad_norm");
    norm = sqrt(norm);
    if (!(compared > 1000 && norm > 0.01 && worst < 1e-4 * norm && fabs(logged / norm - 1) < 1e-4))
        FAIL("norm %g, logged %g, largest difference %g of %g elements", norm, logged, worst, compared);
    free(log);
    tensors_close(&rollout), tensors_close(&moments), prompts_close(&set), tokenizer_free(t), model_free(&m);
}

// What the sampler said of its tokens is what one more forward pass would say: on the host the same bits.
TEST(one_more_forward_pass_changes_nothing) {
    const char *device = getenv("SURGR1_DEVICE"), *data = prompts("p.jsonl", NULL);
    if (device && !strcmp(device, "cuda")) SKIP("there they differ by rounding");
    static const char *const ways[2] = {"sampler", "pass"};
    char *part[2][2];
    for (int k = 0; k < 2; k++) {
        char options[300];
        snprintf(options, sizeof options,
                 SMALL "--temperature 0.8 --full decoder --dtype f32 --lr 1e-3 --steps 3 --score %s", ways[k]);
        EXPECT_EXIT(run("%s", grpo(ways[k], cold(), data, options)), 0);
        char *dir = joined(work, ways[k]);
        part[0][k] = joined(dir, "run.jsonl"), part[1][k] = joined(dir, "export"), free(dir);
    }
    Why w = {{0}};
    for (int k = 0; k < 2; k++) {
        if (!same_tree(part[k][0], part[k][1], &w)) FAIL("%s", w.text);
        free(part[k][0]), free(part[k][1]);
    }
}

TEST(every_preset_runs) {
    const char *data = prompts("p.jsonl", NULL);
    for (int k = 0; grpo_preset_name(k); k++) {
        char options[300], wanted[80];
        snprintf(options, sizeof options, SMALL "--preset %s --lora decoder --lora-rank 2 --steps 2",
                 grpo_preset_name(k));
        EXPECT_EXIT(run("%s", grpo("preset", cold(), data, options)), 0);
        char *log = log_of("preset", "run.jsonl"), *config = log_of("preset", "config.json");
        snprintf(wanted, sizeof wanted, "\"loss\":{\"preset\":\"%s\"", grpo_preset_name(k));
        EXPECT(strstr(log, wanted) && count_in(log, "\"ev\":\"step\"") == 2);
        // the configuration holds what came of it, and not that a preset was asked
        EXPECT(!strstr(config, "\"norm\":\"preset\"") && !strstr(config, "\"tau\":-1"));
        bool kl = !strcmp(grpo_preset_name(k), "vlm-r1") || !strcmp(grpo_preset_name(k), "surgery-r1");
        EXPECT(isnan(value_of(log, "step", 0, "kl")) != kl);
        free(log), free(config);
        char *dir = joined(work, "preset");
        discard(dir), free(dir);
    }
}

TEST(the_reference_is_where_the_policy_began) {
    static const char *const ways[3] = {"--lora decoder --lora-rank 2 --reference base", "--full decoder --dtype f32",
                                        "--lora decoder --lora-rank 2 --reference initial"};
    double second[3];
    for (int k = 0; k < 3; k++) {
        char options[300];
        snprintf(options, sizeof options, SMALL "--kl 0.05 --lr 2e-3 --steps 3 %s", ways[k]);
        EXPECT_EXIT(run("%s", grpo("kl", cold(), prompts("p.jsonl", NULL), options)), 0);
        char *log = log_of("kl", "run.jsonl"), *dir = joined(work, "kl");
        EXPECT(value_of(log, "step", 0, "kl") == 0);
        second[k] = value_of(log, "step", 2, "kl");
        EXPECT(second[k] > 1e-6);
        free(log), discard(dir), free(dir);
    }
    EXPECT(second[0] == second[2]); // a new adapter is nothing at first: both references are the same weights
}

// ------------------------------------------------------------------------------------------------------ before step 0

TEST(a_cold_start_without_form_is_refused) {
    const char *data = prompts("p.jsonl", NULL);
    EXPECT_EXIT(run("%s", grpo("gate", MODEL, data, "--prompts 3 --group 4 --steps 2 --lora decoder")), 8);
    EXPECT_TOLD("E-NU-10");
    char *dir = joined(work, "gate/ckpt");
    Listing l = list(dir);
    EXPECT_INT(l.n, 0);
    list_free(l), free(dir);
    EXPECT_EXIT(run("%s", grpo("gate", MODEL, data, SMALL "--steps 1 --lora decoder")), 0); // --gate 0: on request
}

TEST(a_hopeless_task_is_left_out) {
    const char *data = prompts("weak.jsonl", "phase");
    const char *options = "--prompts 4 --group 4 --steps 2 --lora decoder --log-groups -1 --gate 0.5";
    char keep[300];
    EXPECT_EXIT(run("%s", grpo("weak", cold(), data, options)), 0);
    EXPECT_TOLD("E-NU-12");
    EXPECT_TOLD("phase (0.00)");
    char *log = log_of("weak", "run.jsonl"), *kept = log_of("weak", "rollouts.jsonl");
    EXPECT(strstr(log, "\"left_out\":[\"phase\"]") && strstr(log, "\"prompts\":4,\"left_out\":2"));
    EXPECT(!strstr(kept, "\"task\":\"phase\"") && strstr(kept, "\"task\":\"tool\""));
    free(log), free(kept);
    snprintf(keep, sizeof keep, "%s --weak-tasks keep", options);
    EXPECT_EXIT(run("%s", grpo("kept", cold(), data, keep)), 0);
    EXPECT_TOLD("E-NU-12");
    kept = log_of("kept", "rollouts.jsonl");
    EXPECT(strstr(kept, "\"task\":\"phase\""));
    free(kept);
}

TEST(what_cannot_be_done_is_refused) {
    static const struct {
        const char *options, *told;
        int code;
    } slips[] = {{"--bonus-coef 0.1", "--bonus-coef", 2},
                 {"--updates 2", "--term", 2},
                 {"--tau 2 --weights off", "--tau", 2},
                 {"--reference initial", "--reference", 2},
                 {"--updates 9 --term clip", "--updates", 2},
                 {"--sft-coef 1", "--sft-coef", 2},
                 {"--tau 0", "tau", 3},
                 {"--group 1", "--group", 2}};
    for (size_t k = 0; k < sizeof slips / sizeof *slips; k++) {
        EXPECT_EXIT(run("%s", grpo("slip", MODEL, prompts("p.jsonl", NULL), slips[k].options)), slips[k].code);
        EXPECT_TOLD(slips[k].told);
    }
    Text t = {0};
    text_addf(&t, "{\"messages\":[{\"role\":\"user\",\"content\":\"What?\"}]}\n");
    EXPECT_EXIT(run("%s", grpo("slip", MODEL, put("bare.jsonl", &t), "--steps 1")), 3);
    EXPECT_TOLD("a label to reward");
}

// ------------------------------------------------------------------------------------------------------------ rollouts

TEST(dynamic_sampling_ends) {
    const char *data = prompts("p.jsonl", NULL);
    // nothing that the untrained model says is right
    EXPECT_EXIT(
        run("%s", grpo("redraw", MODEL, data, SMALL "--dynamic-sampling on --max-redraws 2 --steps 1 --lora decoder")),
        0);
    char *log = log_of("redraw", "run.jsonl");
    EXPECT(value_of(log, "rollout", 0, "redrawn") == 6 && value_of(log, "rollout", 0, "seen") == 9);
    EXPECT(strstr(log, "\"idle\":true"));
    free(log);
    EXPECT_EXIT(run("%s", grpo("redrawn", cold(), data,
                               SMALL "--dynamic-sampling on --max-redraws 30 --steps 2 --lora decoder")),
                0);
    log = log_of("redrawn", "run.jsonl");
    for (int k = 0; k < 2; k++) EXPECT(value_of(log, "rollout", k, "flat_groups") == 0);
    free(log);
}

TEST(completions_that_are_always_cut_end_the_run) {
    EXPECT_EXIT(run("%s", grpo("cut", cold(), prompts("p.jsonl", NULL),
                               SMALL "--max-new-tokens 3 --mask-truncated on --steps 40 --lora decoder")),
                8);
    EXPECT_TOLD("E-NU-08");
    EXPECT_TOLD("E-NU-13"); // the answer's reward was 0 for ten rollouts
    char *log = log_of("cut", "run.jsonl");
    EXPECT(value_of(log, "rollout", 0, "truncated") == 1 && strstr(log, "\"constant\":[\"format\",\"answer\""));
    free(log);
}

// --------------------------------------------------------------------------------------------------------------- resume

static char *
all_options(void) { // everything that has a state: half-used rollouts, a reference, demonstrations, dropout
    static char options[500];
    snprintf(options, sizeof options,
             SMALL
             "--full decoder --dtype f32 --preset trl --updates 2 --epochs-per-rollout 2 --kl 0.02 --sft-coef 0.1 "
             "--sft-batch 2 --dynamic-sampling on --max-redraws 1 --lr 5e-4 --steps 11 --save-every 1 "
             "--keep-every 1 --log-groups 1 --eval-every 5 --eval %s --eval-samples 2 --sft-data %s",
             prompts("eval.jsonl", NULL), demonstrations());
    return options;
}
static Variant *whole(void) {
    static Variant v = {.name = "whole", .steps = 11};
    if (v.dir[0]) return &v;
    snprintf(v.dir, sizeof v.dir, "%s/whole", work);
    double started = clock_seconds();
    EXPECT_EXIT(run("%s", grpo("whole", cold(), prompts("p.jsonl", NULL), all_options())), 0);
    v.seconds = clock_seconds() - started;
    return &v;
}
static void expect_whole(const char *name, bool all_steps) {
    char *dir = joined(work, name), *a = joined(whole()->dir, "rollouts.jsonl"), *b = joined(dir, "rollouts.jsonl");
    Why w = {{0}};
    expect_equal(whole(), dir, all_steps);
    if (!same_tree(a, b, &w)) FAIL("%s", w.text);
    free(dir), free(a), free(b);
}

TEST(a_killed_run_goes_on_to_the_same_bits) {
    const char *kills = getenv("SURGR1_KILLS");
    int n = kills ? atoi(kills) : 4;
    Variant *v = whole();
    random_state = 7;
    for (int k = 0; k < n; k++) {
        char *args = grpo("killed", cold(), prompts("p.jsonl", NULL), all_options());
        char *dir = joined(work, "killed");
        pid_t pid = start(args);
        pause_for(v->seconds * (0.1 + 0.8 * uniform()));
        kill(pid, SIGKILL);
        int ended = finish(pid);
        EXPECT(ended == -SIGKILL || ended == 0);
        EXPECT_EXIT(run("%s", grpo("killed", cold(), prompts("p.jsonl", NULL), all_options())), 0);
        expect_whole("killed", true);
        discard(dir), free(dir);
    }
}

TEST(every_update_of_a_rollout_can_be_the_last_before_an_end) {
    whole();
    for (int64_t step = 4; step <= 7; step++) { // a rollout makes four updates
        char name[60], *from = joined(work, "whole"), *to = joined(work, "again");
        copy_tree(from, to);
        for (int64_t k = 11; k > step; k--) {
            snprintf(name, sizeof name, "%s/ckpt/step-%09lld", to, (long long)k);
            char *gone = joined("", name);
            discard(gone + 1), free(gone);
        }
        char *export = joined(to, "export");
        discard(export), free(export);
        EXPECT_EXIT(run("%s", grpo("again", cold(), prompts("p.jsonl", NULL), all_options())), 0);
        if (step % 4) EXPECT_TOLD("in the middle of a rollout");
        expect_whole("again", true);
        discard(to), free(from), free(to);
    }
}

TEST(a_stop_throws_the_rollout_away) {
    for (int k = 0; k < 3; k++) {
        pid_t pid = start(grpo("stopped", cold(), prompts("p.jsonl", NULL), all_options()));
        if (k < 2) wait_for_step(pid, 4 + 3 * k, 11);
        else pause_for(0.02);
        kill(pid, SIGTERM);
        int ended = finish(pid);
        if (ended != 75 && ended != 0) show_errors("exit %d", ended);
        EXPECT_EXIT(run("%s", grpo("stopped", cold(), prompts("p.jsonl", NULL), all_options())), 0);
        expect_whole("stopped", false);
        char *dir = joined(work, "stopped");
        discard(dir), free(dir);
    }
}

TEST(threads_change_nothing) {
    for (int n = 1; n <= 3; n++) {
        char options[600];
        snprintf(options, sizeof options, "%s --threads %d --generate-batch %d", all_options(), n, n);
        EXPECT_EXIT(run("%s", grpo("threads", cold(), prompts("p.jsonl", NULL), options)), 0);
        expect_whole("threads", true);
        char *dir = joined(work, "threads");
        discard(dir), free(dir);
    }
}
