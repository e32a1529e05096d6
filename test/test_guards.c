// test_guards.c - bad numbers in a training run: what is skipped, what is told, what ends the run, and what is never saved.
//
// What it is:  the shipped program on the tiny checkpoint with a few of its bytes changed, so that one sample, or one
//              gradient, is not finite.
// What it is not: the arithmetic of the guards (test_train.c).
#define _GNU_SOURCE
#include "trainer.h"

// --------------------------------------------------------------------------------------------- a checkpoint that hurts

// A copy of the checkpoint; `change` gets the bytes of one of its tensors.
static void change_weights(const char *dir, const char *tensor, void (*change)(uint16_t *bf16, int64_t n)) {
    char *path = joined(dir, "model.safetensors");
    TensorFile f;
    Err e = {0};
    size_t len = 0;
    char *bytes = slurp(path, &len);
    const Tensor *t =
        bytes && tensors_open_memory(&f, (uint8_t *)bytes, len, path, &e) ? tensors_find(&f, tensor) : NULL;
    if (!t || t->type != FT_BF16) FAIL("no %s in BF16", tensor);
    else {
        size_t at = (size_t)(t->data - (const uint8_t *)bytes), n = t->bytes;
        uint16_t *copy = alloc_or_die(n, 1, "a tensor");
        memcpy(copy, bytes + at, n), change(copy, t->elements), memcpy(bytes + at, copy, n);
        spill(path, bytes, len), free(copy), tensors_close(&f);
    }
    free(bytes), free(path);
}

static int32_t rare_id; // of a token that only the sample "bad" has
static void make_rare_row_infinite(uint16_t *w, int64_t n) {
    int64_t cols = n / 512;
    for (int64_t j = 0; j < cols; j++) w[rare_id * cols + j] = 0x7f80;
}
static void make_rare_row_large(uint16_t *w, int64_t n) {
    int64_t cols = n / 512;
    for (int64_t j = 0; j < cols; j++) w[rare_id * cols + j] = 0x7f60; // 3e38
}
static void make_zero(uint16_t *w, int64_t n) { memset(w, 0, (size_t)n * sizeof *w); }
static void make_huge(uint16_t *w, int64_t n) { // times 2^80
    for (int64_t i = 0; i < n; i++)
        if (w[i] & 0x7f80) w[i] = (uint16_t)(w[i] + (80 << 7));
}

static char *with_rare_row(const char *name, void (*change)(uint16_t *bf16, int64_t n)) {
    char *dir = joined(work, name);
    Tokenizer *t = NULL;
    Ids ids = {0};
    Err e = {0};
    if (folder_exists(dir)) return dir;
    EXPECT(tokenizer_load(&t, MODEL, &e));
    tokenizer_encode(t, "~", 1, false, &ids);
    EXPECT_INT(ids.n, 1);
    rare_id = ids.p[0];
    ids_free(&ids), tokenizer_free(t);
    copy_tree(MODEL, dir), change_weights(dir, "model.embed_tokens.weight", change);
    return dir;
}
static char *with_infinite_row(void) { return with_rare_row("infinite", make_rare_row_infinite); }
static char *with_row_at_the_edge(void) { return with_rare_row("edge", make_rare_row_large); }
// The input of one matrix is huge and its output 0: the loss is as always, the gradient of its B overflows.
static char *with_huge_gradient(void) {
    char *dir = joined(work, "huge");
    if (folder_exists(dir)) return dir;
    copy_tree(MODEL, dir);
    change_weights(dir, "model.layers.1.mlp.up_proj.weight", make_huge);
    change_weights(dir, "model.layers.1.mlp.down_proj.weight", make_zero);
    return dir;
}

static char *text_data(const char *name, int plain, const char *id, const char *question, const char *answer) {
    Text t = {0};
    for (int i = 0; i <= plain; i++) // the special one is the last but two
        text_addf(&t,
                  "{\"id\":\"%s%.0d\",\"messages\":[{\"role\":\"user\",\"content\":\"%s\"},{\"role\":\"assistant\","
                  "\"content\":\"%s\"}]}\n",
                  i == plain - 2 ? id : "n", i == plain - 2 ? 0 : i + 1, i == plain - 2 ? question : "Say yes",
                  i == plain - 2 ? answer : "Yes");
    char *path = joined(work, name);
    spill(path, t.p, t.len), text_free(&t);
    return path;
}

// ------------------------------------------------------------------------------------------------------- what is judged

static char *log_of(const char *dir) {
    char *path = joined(dir, "run.jsonl"), *text = slurp(path, NULL);
    free(path);
    return text;
}
static bool in_log(const char *dir, const char *what) {
    char *text = log_of(dir);
    bool is = text && strstr(text, what);
    free(text);
    return is;
}
static int64_t checkpoints(const char *dir) {
    char *ckpt = joined(dir, "ckpt");
    Listing l = list(ckpt);
    int64_t n = 0;
    for (int i = 0; i < l.n; i++) n += !strncmp(l.p[i]->d_name, "step-", 5);
    list_free(l), free(ckpt);
    return n;
}
// Every tensor in every file beneath a folder is finite; *tensors counts them.
static bool all_finite(const char *dir, int64_t *tensors) {
    Listing l = list(dir);
    bool finite = true;
    for (int i = 0; i < l.n; i++) {
        char *path = joined(dir, l.p[i]->d_name);
        TensorFile f;
        Err e = {0};
        if (folder_exists(path)) finite &= all_finite(path, tensors);
        else if (strstr(path, ".safetensors")) {
            if (!tensors_open(&f, path, &e)) FAIL("%s: %s", path, e.found);
            else {
                for (int64_t k = 0; k < f.count; k++) finite &= tensor_count_nonfinite(&f.tensors[k]) == 0, ++*tensors;
                tensors_close(&f);
            }
        }
        free(path);
    }
    list_free(l);
    return finite;
}
static void expect_finite(const char *dir) {
    int64_t tensors = 0;
    EXPECT(all_finite(dir, &tensors));
    EXPECT(tensors > 50);
}

// ---------------------------------------------------------------------------------------------------------------- tests

#define SETTING "--batch 1 --in-order --lora decoder --lora-rank 2 --lr 1e-3 "

TEST(a_sample_without_a_finite_loss_is_skipped_and_named) {
    char *model = with_infinite_row(), *dir = fresh("skipped"),
         *data = text_data("bad.jsonl", 7, "bad", "Say ~ now", "No");
    EXPECT_EXIT(run("sft --allow-nonfinite --model %s --data %s --out %s " SETTING "--epochs 2 --save-every 1", model,
                    data, dir),
                0);
    EXPECT_TOLD("warning E-NU-02: ");
    EXPECT_TOLD(
        "sample \"bad\": expected a finite loss in step 6; found text.embeddings gather_rows in sample bad; do: ");
    EXPECT_TOLD("expected a finite loss in step 14; ");
    EXPECT(in_log(
        dir,
        "\"ev\":\"skip\",\"step\":6,\"code\":\"E-NU-02\",\"found\":\"text.embeddings gather_rows in sample bad\""));
    EXPECT(in_log(dir, "\"ev\":\"end\",\"step\":16,\"skipped\":2"));
    EXPECT(!in_log(dir, "\"ev\":\"step\",\"step\":6,"));
    expect_finite(dir);
    // The cursor and the schedule went on, AdamW's count did not.
    char *state = joined(dir, "ckpt/step-000000016/state.json"), *text = slurp(state, NULL);
    EXPECT(text && strstr(text, "\"seen\":16,") && strstr(text, "\"updates\":[0,0,14]") &&
           strstr(text, "\"skips\":[6,14]"));
    free(text), free(state);

    // The same run, killed behind the skip: it has left its trace in no number.
    char *again = fresh("skipped-again"), path[300];
    snprintf(path, sizeof path, "%s/err", work);
    for (int64_t step = 7; step < 16; step += 4) {
        static char args[2000];
        snprintf(args, sizeof args,
                 "sft --allow-nonfinite --model %s --data %s --out %s " SETTING "--epochs 2 --save-every 1", model,
                 data, again);
        pid_t pid = start(args);
        (void)wait_for_step(pid, step, 16), kill(pid, SIGKILL), (void)finish(pid);
    }
    EXPECT_EXIT(run("sft --allow-nonfinite --model %s --data %s --out %s " SETTING "--epochs 2 --save-every 1", model,
                    data, again),
                0);
    EXPECT(program_equal(dir, again));
    free(model), free(data), free(dir), free(again);
}

// A skipped update is as if it had not been asked for: the weights before it and after it are the same.
TEST(a_skip_leaves_weights_and_moments_alone) {
    static const char *const files[] = {"adapter_model.safetensors", "optimizer.safetensors"};
    char *model = with_infinite_row(), *dir = fresh("kept"),
         *data = text_data("bad.jsonl", 7, "bad", "Say ~ now", "No");
    EXPECT_EXIT(run("sft --allow-nonfinite --model %s --data %s --out %s " SETTING
                    "--epochs 1 --save-every 1 --keep-last 9",
                    model, data, dir),
                0);
    for (int i = 0; i < 2; i++) {
        char before[400], at[400], after[400];
        snprintf(before, sizeof before, "%s/ckpt/step-000000005/%s", dir, files[i]);
        snprintf(at, sizeof at, "%s/ckpt/step-000000006/%s", dir, files[i]);
        snprintf(after, sizeof after, "%s/ckpt/step-000000007/%s", dir, files[i]);
        Why w = {{0}};
        EXPECT(same_tree(before, at, &w));
        EXPECT(!same_tree(at, after, &w));
    }
    free(model), free(data), free(dir);
}

TEST(too_many_skips_end_the_run_with_8_and_without_a_checkpoint) {
    char *model = with_infinite_row(), *dir = fresh("ended"),
         *data = text_data("bad.jsonl", 7, "bad", "Say ~ now", "No");
    char *report = joined(dir, "nan-report.json"), *last = joined(dir, "ckpt/step-000000006");
    for (int i = 0; i < 2; i++) { // a second start comes to the same end
        EXPECT_EXIT(run("sft --allow-nonfinite --model %s --data %s --out %s " SETTING "--save-every 1 --max-skips 1",
                        model, data, dir),
                    8);
        EXPECT_TOLD("error E-NU-04: ");
        char *text = slurp(report, NULL);
        EXPECT(text && strstr(text, "\"step\":6,\"skipped\":1,\"in_a_row\":1"));
        EXPECT(!folder_exists(last));
        EXPECT_INT(checkpoints(dir), 3);
        free(text);
    }
    expect_finite(dir);
    free(model), free(data), free(report), free(last), free(dir);
}

TEST(a_gradient_that_overflows_is_skipped_and_its_tensor_named) {
    char *model = with_huge_gradient(), *dir = fresh("gradient"),
         *data = text_data("two.jsonl", 7, "two", "Say no", "No");
    EXPECT_EXIT(run("sft --model %s --data %s --out %s " SETTING, model, data, dir), 8);
    EXPECT_TOLD(
        "sample \"n1\": expected a finite gradient in step 1; found gradient norm inf with samples n1; bad in "
        "model.layers.1.mlp.down_proj.lora_B.weight; beside them model.layers.1.mlp.down_proj.lora_A.weight is clean");
    EXPECT_TOLD("error E-NU-04: ");
    EXPECT(in_log(dir, "\"ev\":\"skip\",\"step\":3,\"code\":\"E-NU-03\""));
    EXPECT_INT(checkpoints(dir), 0);
    free(model), free(data), free(dir);
}

TEST(a_far_step_is_reported_or_skipped) {
    char *data = text_data("far.jsonl", 130, "far", "Tell all", "Zebra quartz 93871 ~~ voltage fjord waltz?");
    for (int skip = 0; skip < 2; skip++) {
        char *dir = fresh("far");
        EXPECT_EXIT(run("sft --model " MODEL
                        " --data %s --out %s --batch 1 --in-order --lora-rank 2 --lr 1e-2 --outliers %s",
                        data, dir, skip ? "skip" : "report"),
                    0);
        EXPECT_TOLD("sample \"far\": expected step 129 to be like the ones before; found loss ");
        if (skip) EXPECT_TOLD("the step is skipped");
        char *text = log_of(dir);
        EXPECT_INT(count_in(text, "\"outlier\":true"), 1);
        EXPECT(in_log(dir, skip ? "\"step\":131,\"skipped\":1" : "\"step\":131,\"skipped\":0"));
        free(text), free(dir);
    }
    free(data);
}

// One prompt of eight holds the token with infinite weights: its completions have no log-probability.
TEST(a_prompt_without_numbers_costs_grpo_one_step) {
    Text t = {0};
    for (int i = 0; i < 8; i++)
        text_addf(&t,
                  "{\"id\":\"p%d\",\"task\":\"step\",\"answer\":\"a\",\"messages\":[{\"role\":\"user\",\"content\":"
                  "\"Say %s\"}]}\n",
                  i, i == 5 ? "~" : "yes");
    char *data = joined(work, "prompts.jsonl"), *dir = fresh("grpo"), *path = joined(dir, "run.jsonl");
    spill(data, t.p, t.len), text_free(&t);
    EXPECT_EXIT(
        run("grpo --model %s --data %s --out %s --lora decoder --prompts 1 --group 2 --steps 8 --gate 0 --task-floor 0 "
            "--allow-nonfinite --max-new-tokens 6 --reward-repetition 1 --ngram 1 --warmup-ratio 0 --lr 1e-3",
            with_infinite_row(), data, dir),
        0);
    EXPECT_TOLD("E-NU-02");
    EXPECT_TOLD("text.embeddings gather_rows in sample p5");
    char *log = slurp(path, NULL);
    EXPECT_INT(count_in(log, "\"ev\":\"skip\""), 1);
    EXPECT_INT(count_in(log, "\"ev\":\"step\""), 7);
    EXPECT(log && strstr(log, "\"ev\":\"end\",\"step\":8,\"skipped\":1"));
    char *kept = joined(dir, "rollouts.jsonl"), *lines = slurp(kept, NULL);
    EXPECT(lines && strstr(lines, "\"id\":\"p5\"") && !strstr(lines, "nan,") && !strstr(lines, "nan]")); // no JSON
    free(kept), free(lines);
    free(log), free(data), free(dir), free(path);
}

// 1 - rate x decay = -1.1 a step: a row of the embedding that no sample uses overflows while every gradient is finite.
TEST(weights_that_overflow_never_reach_a_checkpoint) {
    char *model = with_row_at_the_edge(), *data = text_data("plain.jsonl", 7, "two", "Say no", "No");
    for (int every = 0; every < 2; every++) { // at the look of every 50 steps, and before a checkpoint
        char *dir = fresh("overflow");
        EXPECT_EXIT(run("sft --model %s --data %s --out %s --batch 1 --full decoder --freeze layers,lm_head --lr 10 "
                        "--weight-decay 0.21 --schedule constant --warmup-ratio 0 --steps 60 --save-every %d",
                        model, data, dir, every),
                    8);
        EXPECT_TOLD(every ? "expected finite weights and moments after step 2; "
                          : "expected finite weights and moments after step 50; ");
        EXPECT_TOLD("tensor \"model.embed_tokens.weight\": ");
        EXPECT_TOLD("error E-NU-07: ");
        EXPECT_INT(checkpoints(dir), every);
        int64_t tensors = 0;
        EXPECT(all_finite(dir, &tensors) && tensors == 6 * every);
        free(dir);
    }
    free(model), free(data);
}
