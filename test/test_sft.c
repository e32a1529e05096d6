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

// --------------------------------------------------------------------------------------- units, picture words, answers

#define CELLS ",\"cells\":[\"liver\",null,\"cystic_duct\",\"liver\",\"grasper\",null]"
// Units of three beginnings with one picture (one of them with another system prompt, and words of its own), of plain text, of
// two questions, and of two pictures. Every beginning has its words once, so that grouping changes no sum.
static const char unit_records[] =
    "{\"query\":\"<image>What is this?\",\"answer\":\"A liver.\",\"image\":\"c0_0.png\"" CELLS "}\n"
    "{\"query\":\"<image>Which phase?\",\"answer\":\"Calot triangle "
    "dissection\",\"image\":\"c0_0.png\",\"weight\":0.5}\n"
    "{\"system\":\"Brief.\",\"query\":\"<image>Tool?\",\"answer\":\"Hook\",\"image\":\"c0_0.png\"" CELLS "}\n"
    "{\"query\":\"<image>How many?\",\"answer\":\"3\",\"image\":\"c0_0.png\",\"weight\":2}\n"
    "{\"query\":\"Hello\",\"answer\":\"Hello there, surgeon.\"}\n"
    "{\"query\":\"<image>Blood?\",\"answer\":\"No.\",\"image\":\"c2_0.png\"}\n"
    "{\"query\":\"<image>Where is the tool?\",\"answer\":\"lower left, near the duct\",\"image\":\"c2_0.png\"}\n"
    "{\"query\":\"<image><image>Same?\",\"answer\":\"No, another.\",\"images\":[\"c0_0.png\",\"c2_0.png\"]}\n"
    "{\"query\":\"<image><image>Both?\",\"answer\":\"Yes\",\"images\":[\"c0_0.png\",\"c2_0.png\"]}\n";
static const char *unit_file(void) {
    static char path[200];
    if (!*path) snprintf(path, sizeof path, "%s/units.jsonl", work), spill(path, unit_records, sizeof unit_records - 1);
    return path;
}
#define UNITS "sft --model " MODEL " --image-root " FIXTURES " --data %s --full decoder,vision,merger --warmup-ratio 0 "

// The first moments after one step without clipping and with beta1 = 0: the gradient of the update, all parameters in
// the order of the file. Returns how many values.
static int64_t moments(const char *dir, float **out) {
    char *path = joined(dir, "ckpt/step-000000001/optimizer.safetensors");
    TensorFile f;
    Err e = {0};
    int64_t n = 0;
    *out = NULL;
    if (!tensors_open(&f, path, &e)) FAIL("%s: %s", path, e.found);
    else {
        for (int64_t i = 0; i < f.count; i++) {
            const Tensor *t = &f.tensors[i];
            size_t len = strlen(t->name);
            if (len < 8 || strcmp(t->name + len - 8, ".exp_avg")) continue;
            *out = grow_or_die(*out, (size_t)(n + t->elements), sizeof **out, "test");
            tensor_to_f32(t, 0, t->elements, *out + n), n += t->elements;
        }
        tensors_close(&f);
    }
    free(path);
    return n;
}
static int64_t gradient_of(const char *name, const char *options, float **out) {
    char *dir = fresh(name);
    EXPECT_EXIT(run(UNITS "--steps 1 --beta1 0 --clip 0 --in-order %s --out %s", unit_file(), options, dir), 0);
    int64_t n = moments(dir, out);
    free(dir);
    return n;
}
static double logged(const char *name, const char *member) { // of the first step
    char *dir = joined(work, name), *path = joined(dir, "run.jsonl"), *text = slurp(path, NULL), key[40];
    snprintf(key, sizeof key, "\"%s\":", member);
    char *line = text ? strstr(text, "\"ev\":\"step\"") : NULL, *end = line ? strchr(line, '\n') : NULL;
    char *at = line ? strstr(line, key) : NULL;
    double value = at && at < end ? strtod(at + strlen(key), NULL) : NAN;
    free(text), free(path), free(dir);
    return value;
}

TEST(a_unit_has_the_gradients_of_its_samples) {
    static const char *const ways[] = {"", "--align 0.7", "--per-answer --align 2"};
    for (int k = 0; k < 3; k++) {
        float *apart, *together, *split;
        char options[100];
        snprintf(options, sizeof options, "--batch 9 %s", ways[k]);
        int64_t n = gradient_of("apart", options, &apart);
        snprintf(options, sizeof options, "--group --batch 4 %s", ways[k]);
        int64_t m = gradient_of("together", options, &together);
        snprintf(options, sizeof options, "--group --batch 1 --accumulate 4 %s", ways[k]);
        int64_t l = gradient_of("split", options, &split);
        EXPECT(n > 10000 && n == m && n == l);
        EXPECT_CLOSE("gradients of units", together, apart, n, 1e-5);
        EXPECT_CLOSE("gradients of units, one by one", split, apart, n, 1e-5);
        EXPECT_NEAR(logged("together", "loss"), logged("apart", "loss"), 1e-5);
        EXPECT_INT((int64_t)logged("together", "samples"), 9);
        EXPECT_INT((int64_t)logged("together", "targets"), (int64_t)logged("apart", "targets"));
        EXPECT(logged("together", "tokens") < 0.8 * logged("apart", "tokens"));
        if (k) EXPECT_NEAR(logged("together", "align_loss"), logged("apart", "align_loss"), 1e-5);
        else EXPECT(isnan(logged("together", "align_loss")));
        free(apart), free(together), free(split);
    }
}

// The same update by hand: every sample packed by itself, -lp of each target with its own factor.
TEST(losses_are_weighed_as_the_options_say) {
    for (int way = 0; way < 3; way++) { // plain; answers; answers and pictures
        static const char *const words[] = {" liver", NULL, " cystic duct", " liver", " grasper", NULL};
        static Model m;
        const char *path = unit_file();
        Tokenizer *t = NULL;
        Dataset d;
        Pack p = {0};
        Err e = {0};
        double W = way == 2 ? 0.7 : 0, factors[16], loss = 0, align_loss = 0, total = 0;
        EXPECT(model_load(&m, MODEL, ops_cpu(), (LoadOptions){0}, &e) && tokenizer_load(&t, MODEL, &e));
        EXPECT(dataset_open(&d, t, &m.c, (DataOptions){.files = &path, .n_files = 1, .image_root = FIXTURES}, &e));
        for (int64_t i = 0; i < m.n_params; i++) m.params[i].trained = !m.params[i].tied;
        EXPECT(model_train_open(&m, &e));
        int32_t align[6];
        for (int k = 0; k < 6; k++) {
            Ids ids = {0};
            if (words[k]) tokenizer_encode(t, words[k], strlen(words[k]), false, &ids);
            align[k] = words[k] ? ids.p[0] : -1, ids_free(&ids);
        }
        for (int64_t i = 0; i < d.n; i++) {
            Sample x;
            EXPECT(sample_load(&d, i, &x, &e));
            Sequence q = {.ids = x.ids.p,
                          .n = x.ids.n,
                          .n_prompt = x.ids.n,
                          .trained = x.trained,
                          .pixels = x.pixels,
                          .grids = x.grids,
                          .n_grids = x.n_grids,
                          .align = W > 0 && (i == 0 || i == 2) ? align : NULL};
            EXPECT(pack_add(&p, &m.c, &q, &e));
            factors[i] = way ? x.weight / (double)x.targets : x.weight;
            total += way ? x.weight : x.weight * (double)x.targets;
            sample_free(&x);
        }
        const TrainBatch *b = pack_batch(&p, false, 0, 2);
        float *dlp = calloc((size_t)b->N, sizeof *dlp), *lp = calloc((size_t)b->N, sizeof *lp);
        for (int pass = 0; pass < 2; pass++) {
            for (int64_t k = 0; k < d.n; k++)
                for (int64_t i = b->spans[k].first; i < b->spans[k].last; i++) {
                    bool picture = b->ids[i] == m.c.image_id;
                    double factor = picture ? W / 8 : factors[k] / total; // four words in each of two samples
                    if (b->targets[i] < 0) continue;
                    dlp[i] = (float)-factor;
                    if (pass) *(picture ? &align_loss : &loss) -= lp[i] * (picture ? 1. / 8 : factor);
                }
            if (!pass) EXPECT(model_pass(&m, b, dlp, lp, NULL, &e));
        }
        static const char *const options[] = {"--batch 9", "--batch 9 --per-answer",
                                              "--group --batch 2 --accumulate 2 --per-answer --align 0.7"};
        float *got, *want = NULL;
        int64_t n = gradient_of("ours", options[way], &got), have = 0;
        // by the order of the file, which is that of names
        char *file = joined(work, "ours/ckpt/step-000000001/optimizer.safetensors");
        TensorFile f;
        EXPECT(tensors_open(&f, file, &e));
        want = calloc((size_t)n + 1, sizeof *want);
        for (int64_t i = 0; i < f.count; i++)
            for (int64_t k = 0; k < m.n_params; k++) {
                const Param *q = &m.params[k];
                size_t len = strlen(q->name);
                if (strncmp(f.tensors[i].name, q->name, len) || strcmp(f.tensors[i].name + len, ".exp_avg")) continue;
                memcpy(want + have, q->w->d.p, (size_t)(q->rows * q->cols) * sizeof *want), have += q->rows * q->cols;
            }
        EXPECT_INT(have, n);
        EXPECT_CLOSE("gradients", got, want, n, 1e-5);
        EXPECT_NEAR(logged("ours", "loss"), loss, 1e-5);
        if (W > 0) EXPECT_NEAR(logged("ours", "align_loss"), align_loss, 1e-5);
        tensors_close(&f), free(file), free(got), free(want), free(dlp), free(lp);
        pack_free(&p), dataset_close(&d), tokenizer_free(t), model_free(&m);
    }
}

// Killed in the middle of an epoch of units, started again: the same bytes.
TEST(a_run_over_units_resumes_to_the_same_bits) {
    char *whole = fresh("units-whole"), *killed = fresh("units-killed");
    const char *options =
        "--steps 30 --lr 1e-3 --batch 2 --accumulate 2 --group --align 0.5 --per-answer --save-every 4";
    char args[2000];
    EXPECT_EXIT(run(UNITS "%s --out %s", unit_file(), options, whole), 0);
    snprintf(args, sizeof args, UNITS "%s --out %s", unit_file(), options, killed);
    for (int64_t step = 6; step < 30; step += 11) {
        pid_t pid = start(args);
        wait_for_step(pid, step, 30), kill(pid, SIGKILL), finish(pid);
    }
    EXPECT_EXIT(run("%s", args), 0);
    EXPECT_TOLD("resumed from step ");
    EXPECT(program_equal(whole, killed));
    Why w = {{0}};
    if (!whole_logs(killed, 30, &w)) FAIL("%s", w.text);
    free(whole), free(killed);
}

TEST(an_epoch_visits_every_unit_once) {
    char *dir = fresh("epoch");
    EXPECT_EXIT(run(UNITS "--epochs 2 --batch 1 --group --out %s", unit_file(), dir), 0);
    char *path = joined(dir, "run.jsonl"), *log = slurp(path, NULL);
    static const struct {
        const char *member;
        int64_t times;
    } sizes[] = {{"\"samples\":4,", 2}, {"\"samples\":1,", 2}, {"\"samples\":2,", 4}, {"\"ev\":\"step\"", 8}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        EXPECT_INT(count_in(log, sizes[i].member), sizes[i].times);
    free(log), free(path), free(dir);
}

TEST(units_and_words_that_are_not_there_are_refused) {
    EXPECT_EXIT(run(DRY, words_only("words.jsonl", "Leber"), "--align 1"), 2);
    EXPECT_TOLD("field \"--align\"");
    EXPECT_EXIT(run(DRY, words_only("words.jsonl", "Leber"), "--group"), 2);
    EXPECT_TOLD("field \"--group\"");
    EXPECT_EXIT(run(DRY, unit_file(), "--group --align 1 --per-answer"), 0);
    EXPECT_TOLD("4 units of samples with the same pictures");
    EXPECT_TOLD("8 picture rows have words of their own");
}

// A million steps are not walked one by one; what is told of them bounds what comes.
TEST(a_long_plan_is_bounded) {
    double started = clock_seconds();
    EXPECT_EXIT(run(DRY, unit_file(), "--group --batch 3 --steps 1000000"), 0);
    EXPECT_TOLD(
        "plan: 1000000 steps of up to 1 x 10 samples"); // the unit of four twice: last of an epoch, first of the next
    EXPECT_EXIT(run(DRY, unit_file(), "--group --batch 3 --epochs 100000"), 0);
    EXPECT_TOLD("plan: 133334 steps of up to 1 x 10 samples");
    if (clock_seconds() - started > 20) FAIL("two plans took %.1f s", clock_seconds() - started);
}
