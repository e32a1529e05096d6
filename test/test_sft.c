// test_sft.c - surgr1 sft as a person meets it: what is shown before step 0, and what is refused for doing nothing.
//
// What it is not: the numbers of training (test_train.c), resume (test_resume.c) or the guards (test_guards.c).
#define _GNU_SOURCE
#include "trainer.h"

static const char *words_only(const char *name, const char *answer) {
    static char path[300];
    snprintf(path, sizeof path, "%s/%s", work, name);
    Text t = {0};
    text_addf(&t, "{\"query\":\"Was ist das?\",\"response\":\"%s\"}\n", answer);
    spill(path, t.p, t.len), text_free(&t);
    return path;
}
#define DRY "sft --model " MODEL " --image-root " FIXTURES " --dry-run --data %s %s"

TEST(a_character_of_several_tokens_is_shown_whole) {
    const char *answer = "\xE6\x89\x8B\xE6\x9C\xAF \xF0\x9F\xA9\xBA \xC3\x9C"
                         "bung"; // two signs, a stethoscope, U umlaut
    char line[80];
    snprintf(line, sizeof line, ">>%s<|im_end|><<", answer);
    EXPECT_EXIT(run(DRY, words_only("signs.jsonl", answer), ""), 0);
    EXPECT_TOLD(line);
    EXPECT_EXIT(run(DRY, data_file(), "--in-order"), 0);
    EXPECT_TOLD("<|vision_start|>[6 picture tokens]<|vision_end|>What is this? (0)<|im_end|>");
    EXPECT_TOLD(">>A liver with a grasper.<|im_end|><<");
}

static double megabytes(const char *role) { // of that line of the memory table; 0: no such line
    char *path = joined(work, "err"), *text = slurp(path, NULL), line[80], *at;
    snprintf(line, sizeof line, "\n  %s ", role);
    double value = text && (at = strstr(text, line)) ? strtod(at + strlen(line), NULL) : 0;
    free(path), free(text);
    return value;
}
TEST(the_memory_table_knows_evaluations_and_frozen_towers) {
    const char *words = words_only("words.jsonl", "Leber");
    char options[300];
    EXPECT_EXIT(run(DRY, words, "--keep 0"), 0);
    double alone = megabytes("activations");
    snprintf(options, sizeof options, "--keep 0 --eval-every 1 --eval %s", data_file());
    EXPECT_EXIT(run(DRY, words, options), 0);
    EXPECT(alone > 0 && megabytes("activations") > 1.2 * alone); // an evaluation of longer samples, with pictures
    EXPECT_EXIT(run(DRY, data_file(), "--lora decoder"), 0);
    EXPECT(megabytes("activations") > 0 && megabytes("vision activations") == 0);
    EXPECT_EXIT(run(DRY, data_file(), "--lora merger"), 0);
    EXPECT(megabytes("vision activations") > 0);
}

TEST(an_option_that_would_do_nothing_is_refused) {
    static const struct {
        const char *options, *field;
    } idle[] = {{"--full decoder --lora-rank 4", "--lora-rank"},
                {"--full decoder --old-keys", "--old-keys"},
                {"--lora decoder --export-dtype f32", "--export-dtype"},
                {"--adapter nowhere --lora-dropout 0.1", "--lora-dropout"},
                {"--eval nowhere.jsonl", "--eval"},
                {"--eval-every 2", "--eval-every"},
                {"--decay-ratio 0.3", "--decay-ratio"},
                {"--lora vision,merger", "--data"}}; // no picture in any sample
    for (size_t i = 0; i < sizeof idle / sizeof *idle; i++) {
        char field[60];
        snprintf(field, sizeof field, "field \"%s\"", idle[i].field);
        EXPECT_EXIT(run(DRY, words_only("words.jsonl", "Leber"), idle[i].options), 2);
        EXPECT_TOLD(field);
    }
    EXPECT_EXIT(run(DRY, data_file(), "--lora vision,merger --schedule wsd --decay-ratio 0.3"), 0);
}

TEST(the_command_line_changes_what_the_config_file_trains) {
    char *path = joined(work, "config.json"), options[300];
    const char *config = "{\"lora\":\"decoder\",\"lora-rank\":3}";
    spill(path, config, strlen(config));
    snprintf(options, sizeof options, "--config %s", path);
    EXPECT_EXIT(run(DRY, data_file(), options), 0);
    EXPECT_TOLD("A and B");
    snprintf(options, sizeof options, "--config %s --full merger", path);
    EXPECT_EXIT(run(DRY, data_file(), options), 0);
    EXPECT_TOLD("F32 master copies");
    EXPECT(!told("A and B"));
    free(path);
}

TEST(an_export_can_keep_what_bf16_would_round_away) {
    char *dir = joined(work, "masters"), *export = joined(dir, "export");
    char *trained = joined(dir, "ckpt/step-000000002/trained.safetensors");
    TensorFile masters, out;
    Err e = {0};
    int64_t same = 0;
    EXPECT_EXIT(run("sft --model " MODEL " --image-root " FIXTURES
                    " --data %s --full merger --export-dtype f32 --steps 2 "
                    "--warmup-ratio 0 --lr 1e-6 --out %s",
                    data_file(), dir),
                0);
    EXPECT(tensors_open(&masters, trained, &e) && tensors_open_folder(&out, export, &e));
    for (int64_t i = 0; i < masters.count; i++) {
        const Tensor *a = &masters.tensors[i], *b = tensors_find(&out, a->name);
        same += b && b->type == FT_F32 && b->bytes == a->bytes && !memcmp(a->data, b->data, a->bytes);
    }
    EXPECT(masters.count > 4);
    EXPECT_INT(same, masters.count);
    tensors_close(&masters), tensors_close(&out);
    free(trained), free(export), free(dir);
}

TEST(samples_that_were_left_out_are_counted_in_the_log) {
    char *dir = joined(work, "dropped"), *log = joined(dir, "run.jsonl"), *data = joined(work, "dropped.jsonl");
    const char *records = "{\"query\":\"q\",\"answer\":\"a\"}\n{\"query\":\"q\"}\n";
    spill(data, records, strlen(records));
    EXPECT_EXIT(run("sft --model " MODEL " --data %s --on-bad-sample skip --steps 1 --out %s", data, dir), 0);
    char *text = slurp(log, NULL);
    EXPECT(text && strstr(text, "\"samples\":1,\"bad_samples\":1,\"long_samples\":0,"));
    free(text), free(data), free(log), free(dir);
}
