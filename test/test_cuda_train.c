// test_cuda_train.c - the whole model on device "cuda", emulated: it trains and generates as the host does, and under every
// schedule of blocks, warps and copies with the same bits.
//
// What it is:  the promises of test_train.c and test_model.c on the other device, with activations in F32 and in BF16.
// What it is not: a test of one kernel (test_kernels.c) or of Hugging Face's numbers (test_oracle --device cuda).
//
// Limits. F32: those of the oracle models, 5e-5 for log-probabilities and 2e-4 for gradients. BF16: a rounding is off by at
// most 2^-9, about 2^-9 / sqrt(3) = 1.1e-3 in the root mean square; between a pixel and a log-probability lie about 40
// of them (some 9 in each of four blocks), and as many again on the way back, which add up as a random walk: 1.1e-3 *
// sqrt(40) = 0.7 % of a log-probability and 1.1e-3 * sqrt(80) = 1 % of a gradient. The limits are three times that, for
// what cancels in a sum: 2 % and 3 %. The weights are the same on both devices: bf16 holds them exactly.
#include "passes.h"

__attribute__((weak)) void cuda_emu_schedule(int order, int early); // absent beside a real GPU
enum { FORWARD, REVERSE, SHUFFLED };
static const struct {
    int order, early;
    const char *name;
} schedules[] = {{FORWARD, 1, "forward, early"},   {REVERSE, 1, "reverse, early"}, {SHUFFLED, 1, "shuffled, early"},
                 {FORWARD, 0, "forward, late"},    {REVERSE, 0, "reverse, late"},  {SHUFFLED, 0, "shuffled, late"},
                 {FORWARD, 1, "forward, repeated"}};
enum { SCHEDULES = sizeof schedules / sizeof *schedules };
static void schedule(int order, int early) {
    if (cuda_emu_schedule) cuda_emu_schedule(order, early);
}

// Heads as wide as the real ones (128 and 80) and sizes that are multiples of 32: what the fast rungs ask for.
static const char *WIDE = "{\"model_type\":\"qwen2_5_vl\",\"vocab_size\":64,\"hidden_size\":256,\"intermediate_size\":"
                          "96,\"num_hidden_layers\":2,"
                          "\"num_attention_heads\":2,\"num_key_value_heads\":1,\"max_position_embeddings\":200,\"rms_"
                          "norm_eps\":1e-6,\"rope_theta\":10000.0,"
                          "\"rope_scaling\":{\"type\":\"mrope\",\"mrope_section\":[16,24,24]},\"hidden_act\":\"silu\","
                          "\"tie_word_embeddings\":false,"
                          "\"image_token_id\":40,\"video_token_id\":41,\"vision_start_token_id\":42,\"vision_end_token_"
                          "id\":43,\"eos_token_id\":44,"
                          "\"vision_config\":{\"depth\":2,\"hidden_size\":160,\"intermediate_size\":96,\"num_heads\":2,"
                          "\"patch_size\":4,\"window_size\":16,"
                          "\"out_hidden_size\":256,\"fullatt_block_indexes\":[1]}}";

static const Type TYPES[2] = {F32, BF16};
static const double LP_LIMIT[2] = {5e-5, 2e-2}, GRADIENT_LIMIT[2] = {2e-4, 3e-2};

// Models opened from here on: on the host for type -1, else on cuda with such activations.
static void on(int type, const char *config) {
    Err e = {0};
    tiny_rounded = true, passes_config = config;
    passes_on = type < 0 ? ops_cpu() : ops_cuda(TYPES[type], &e);
    if (!passes_on) err_report(&e), exit(99);
    schedule(FORWARD, 1);
}

// ------------------------------------------------------------------------------------------------------------ training

// Log-probabilities, then gradients, of one pass over examples [0, last).
typedef struct Numbers {
    float *lp, *gradients;
    int64_t n_lp, n;
} Numbers;
static Numbers numbers(Model *m, int last, bool dropout, int64_t keep) {
    Numbers x = {0};
    model_zero_gradients(m);
    Result r = train_pass(m, 0, last, 40, dropout, keep);
    x.lp = r.lp, x.n_lp = r.n;
    x.gradients = flat(m, false, &x.n);
    return x;
}
static void numbers_free(Numbers x) { free(x.lp), free(x.gradients); }

static void expect_the_hosts(const char *config, int last) {
    for (int lora = 0; lora < 2; lora++) {
        Model host;
        on(-1, config);
        trainable(&host, lora, 0.3);
        Numbers want = numbers(&host, last, lora, 0);
        for (int type = 0; type < 2; type++) {
            Model m;
            on(type, config);
            trainable(&m, lora, 0.3);
            Numbers got = numbers(&m, last, lora, 0);
            EXPECT(got.n == want.n && got.n_lp == want.n_lp);
            TensorError lp = tensor_error(got.lp, want.lp, want.n_lp);
            TensorError gradient = tensor_error(got.gradients, want.gradients, want.n);
            printf("     %s, %s: log-probabilities %.1e, gradients %.1e off the host's\n", lora ? "LoRA" : "full",
                   type_name(TYPES[type]), lp.relative_l2, gradient.relative_l2);
            EXPECT_CLOSE("log-probabilities", got.lp, want.lp, want.n_lp, LP_LIMIT[type]);
            EXPECT_CLOSE("gradients", got.gradients, want.gradients, want.n, GRADIENT_LIMIT[type]);
            numbers_free(got);
            got = numbers(&m, last - 1, lora, 0); // the control: a sequence less is over the limit
            EXPECT(!error_within(tensor_error(got.gradients, want.gradients, want.n), GRADIENT_LIMIT[type]));
            numbers_free(got), model_free(&m);
        }
        numbers_free(want), model_free(&host);
    }
}
TEST(log_probabilities_and_gradients_are_the_hosts) { expect_the_hosts(FLAT, 6); }
TEST(log_probabilities_and_gradients_are_the_hosts_with_real_heads) { expect_the_hosts(WIDE, 2); }

static const AdamOptions ADAM = {
    .lr = {1e-2, 1e-2, 1e-2}, .beta1 = 0.9, .beta2 = 0.99, .eps = 1e-8, .decay = 0.1, .clip = 1};

// Updates [from, to), each on another four of eight sequences.
static void train(Model *m, Optimizer *o, int from, int to, bool dropout, double *loss) {
    for (int step = from; step < to; step++) {
        model_zero_gradients(m);
        Result r = train_pass(m, step % 4, step % 4 + 4, 30, dropout, step % 2);
        *loss = 0;
        for (int64_t i = 0; i < r.n; i++) *loss -= r.lp[i] / (double)r.targets;
        free(r.lp);
        optimizer_step(o, m, 1, gradient_norm(o, m));
    }
}

// The weights after some updates, under every schedule, or with fewer of them (`every`) where a pass is dear.
static void expect_same_bits(const char *config, int updates, int every) {
    for (int type = 0; type < 2; type++)
        for (int lora = 0; lora < 2; lora++) {
            float *want = NULL;
            double want_loss = 0, loss;
            for (int k = 0; k < SCHEDULES; k += every) {
                Model m;
                Optimizer o;
                Err e = {0};
                int64_t n;
                on(type, config);
                schedule(schedules[k].order, schedules[k].early);
                trainable(&m, lora, 0.3);
                EXPECT(optimizer_open(&o, &m, &ADAM, &e));
                train(&m, &o, 0, updates, lora, &loss);
                float *got = flat(&m, true, &n);
                if (!want) want = got, want_loss = loss;
                else {
                    if (loss != want_loss || memcmp(got, want, (size_t)n * sizeof *got))
                        FAIL("%s, lora %d: other bits when %s", type_name(TYPES[type]), lora, schedules[k].name);
                    free(got);
                }
                optimizer_close(&o, &m), model_free(&m);
            }
            free(want);
        }
}
TEST(every_schedule_gives_the_same_bits) { expect_same_bits(FLAT, 2, 1); }
TEST(every_schedule_gives_the_same_bits_with_real_heads) { expect_same_bits(WIDE, 1, 2); }

TEST(recompute_gives_the_same_bits) {
    for (int type = 0; type < 2; type++)
        for (int lora = 0; lora < 2; lora++) {
            Model m;
            Numbers want = {0};
            on(type, FLAT);
            trainable(&m, lora, 0.2);
            for (int64_t keep = 0; keep <= 2; keep++) {
                Numbers got = numbers(&m, 6, lora, keep);
                if (!keep) want = got;
                else {
                    EXPECT(!memcmp(got.lp, want.lp, (size_t)got.n_lp * sizeof *got.lp));
                    EXPECT(!memcmp(got.gradients, want.gradients, (size_t)got.n * sizeof *got.gradients));
                    numbers_free(got);
                }
            }
            numbers_free(want), model_free(&m);
        }
}

TEST(one_pass_is_the_sum_of_passes_and_a_sequence_alone_has_the_same_bits) {
    for (int type = 0; type < 2; type++)
        for (int lora = 0; lora < 2; lora++) {
            Model m;
            int64_t n, row = 0;
            on(type, FLAT);
            trainable(&m, lora, 0.3);
            Numbers all = numbers(&m, 6, lora, 0);
            model_zero_gradients(&m);
            for (int k = 0; k < 6; k++) {
                Result one = train_pass(&m, k, k + 1, 40, lora, 0);
                EXPECT(!memcmp(one.lp, all.lp + row, (size_t)one.n * sizeof *one.lp));
                row += one.n, free(one.lp);
            }
            float *sum = flat(&m, false, &n);
            EXPECT_INT(row, all.n_lp);
            EXPECT_CLOSE("gradients", sum, all.gradients, n, 2e-6); // the order of a sum in F32
            free(sum), numbers_free(all), model_free(&m);
        }
}

TEST(training_goes_on_from_a_checkpoint_to_the_same_bits) {
    for (int type = 0; type < 2; type++) {
        char dir[] = "/tmp/surgr1_cuda_XXXXXX", path[200];
        EXPECT(mkdtemp(dir) != NULL);
        Err e = {0};
        Model m, again;
        Optimizer o, p;
        int64_t n;
        double loss, other;
        on(type, FLAT);
        trainable(&m, false, 0), trainable(&again, false, 0);
        EXPECT(optimizer_open(&o, &m, &ADAM, &e) && optimizer_open(&p, &again, &ADAM, &e));
        train(&m, &o, 0, 2, false, &loss);
        EXPECT(train_save(&o, &m, dir, &e));
        EXPECT(train_load_values(&again, dir, &e) && train_load_moments(&p, &again, dir, &e));
        memcpy(p.updates, o.updates, sizeof p.updates);
        train(&m, &o, 2, 4, false, &loss), train(&again, &p, 2, 4, false, &other);
        float *want = flat(&m, true, &n), *got = flat(&again, true, &n);
        EXPECT(loss == other && !memcmp(got, want, (size_t)n * sizeof *got));
        free(got), free(want);
        optimizer_close(&o, &m), optimizer_close(&p, &again), model_free(&m), model_free(&again);
        snprintf(path, sizeof path, "%s/trained.safetensors", dir), unlink(path);
        snprintf(path, sizeof path, "%s/optimizer.safetensors", dir), unlink(path);
        rmdir(dir);
    }
}

TEST(a_batch_can_be_learned_by_heart) {
    for (int type = 0; type < 2; type++) {
        Model m;
        Optimizer o;
        Err e = {0};
        double first = 0, last = 0;
        on(type, FLAT);
        trainable(&m, true, 0);
        EXPECT(optimizer_open(&o, &m, &ADAM, &e));
        for (int step = 0; step < 25; step++) {
            model_zero_gradients(&m);
            Result r = train_pass(&m, 0, 2, 12, false, 0);
            last = 0;
            for (int64_t i = 0; i < r.n; i++) last -= r.lp[i] / (double)r.targets;
            if (!step) first = last;
            free(r.lp);
            optimizer_step(&o, &m, 1, gradient_norm(&o, &m));
        }
        if (!(last < 0.5 * first))
            FAIL("%s: the loss went from %.3f to %.3f only", type_name(TYPES[type]), first, last);
        optimizer_close(&o, &m), model_free(&m);
    }
}

// ---------------------------------------------------------------------------------------------------------- generation

enum { NEW = 14, LONG = 40, ANSWERS = 6 };
typedef struct Generated {
    float pixels[MAX_N * 96];
    int32_t prompt[LONG];
    Grid grid;
    Request all[3];
    Completion c[ANSWERS];
} Generated;

// A prompt with a picture and three answers, one of a single token, one with two answers.
static void generate_all(Model *m, double temperature, Generated *g) {
    static const int32_t head[] = {1, 2, 42, 40, 40, 40, 40, 40, 40, 43};
    Err e = {0};
    memset(g, 0, sizeof *g);
    g->grid = (Grid){1, 4, 6};
    for (int i = 0; i < LONG; i++) g->prompt[i] = i < 10 ? head[i] : (7 * i) % 39;
    for (int64_t i = 0; i < 96 * grid_patches(g->grid); i++)
        g->pixels[i] = (float)(2 * random_uniform(6, RANDOM_TEST, 1, (uint32_t)i) - 1);
    g->all[0] = (Request){g->prompt, LONG, g->pixels, &g->grid, 1, 7, 3};
    g->all[1] = (Request){g->prompt + 20, 1, NULL, NULL, 0, 100, 1};
    g->all[2] = (Request){g->prompt + 15, 20, NULL, NULL, 0, 200, 2};
    GenerationConfig config = {.sample = {.repetition_penalty = 1.05,
                                          .do_sample = temperature > 0,
                                          .temperature = temperature,
                                          .top_k = 20,
                                          .top_p = 0.98,
                                          .seed = 3},
                               .max_new_tokens = NEW,
                               .stop = {44},
                               .n_stop = 1};
    if (!generate(m, g->all, 3, &config, NULL, NULL, g->c, &e)) err_report(&e), exit(99);
}
static void generated_free(Generated *g) {
    for (int k = 0; k < ANSWERS; k++) completion_free(&g->c[k]);
}
static bool same_tokens(const Generated *a, const Generated *b, bool and_bits) {
    for (int k = 0; k < ANSWERS; k++) {
        const Completion *x = &a->c[k], *y = &b->c[k];
        size_t n = (size_t)x->ids.n;
        if (x->ids.n != y->ids.n || memcmp(x->ids.p, y->ids.p, n * sizeof *x->ids.p)) return false;
        if (and_bits && (memcmp(x->lp, y->lp, n * sizeof *x->lp) || memcmp(x->entropy, y->entropy, n * sizeof *x->lp)))
            return false;
    }
    return true;
}

// Greedy and drawn; with F32 the logits agree to rounding, and then the same numbers draw the same tokens.
TEST(the_tokens_are_the_hosts) {
    static Generated want, got;
    static const char *const configs[2] = {"flat", "wide"};
    for (int wide = 0; wide < 2; wide++)
        for (int drawn = 0; drawn < 2; drawn++) {
            Model host, m;
            on(-1, wide ? WIDE : FLAT), open_at(&host);
            generate_all(&host, drawn ? 0.9 : 0, &want);
            on(0, wide ? WIDE : FLAT), open_at(&m);
            generate_all(&m, drawn ? 0.9 : 0, &got);
            if (!same_tokens(&want, &got, false))
                FAIL("%s, %s: other tokens", configs[wide], drawn ? "drawn" : "greedy");
            double most = 0;
            int64_t tokens = 0;
            for (int k = 0; k < ANSWERS; k++)
                for (int64_t i = 0; i < want.c[k].ids.n && i < got.c[k].ids.n; i++, tokens++)
                    most = fmax(most, fabs((double)want.c[k].lp[i] - got.c[k].lp[i]));
            EXPECT(tokens > 40 && most < 1e-4);
            generated_free(&want), generated_free(&got), model_free(&host), model_free(&m);
        }
}

TEST(generation_has_the_same_bits_under_every_schedule) {
    static Generated want, got;
    for (int type = 0; type < 2; type++) {
        for (int k = 0; k < SCHEDULES; k++) {
            Model m;
            on(type, FLAT);
            schedule(schedules[k].order, schedules[k].early);
            open_at(&m);
            generate_all(&m, 0.9, k ? &got : &want);
            if (k && !same_tokens(&want, &got, true))
                FAIL("%s: other bits when %s", type_name(TYPES[type]), schedules[k].name);
            if (k) generated_free(&got);
            model_free(&m);
        }
        generated_free(&want);
    }
}

// What generation said of its tokens, beside a training pass over the same groups: ops of another order of sums, so rounding
// only. In BF16 a sum that falls on the other side of a rounding moves an activation by 2^-8 of itself, and decoding and the
// pass, which have kernels of their own, round apart: each is as far from the host in fp32 as bf16 activations are (5 to 6 %
// of these few, small log-probabilities, with plain kernels too), so they may be that far from each other.
TEST(log_probabilities_of_generation_are_near_those_of_the_training_pass) {
    static Generated g;
    static int32_t ids[ANSWERS][LONG + NEW];
    static uint8_t trained[ANSWERS][LONG + NEW];
    for (int type = 0; type < 2; type++)
        for (int wide = 0; wide < 2; wide++) {
            Model m;
            Err e = {0};
            Pack p = {0};
            Sequence s[ANSWERS];
            on(type, wide ? WIDE : FLAT);
            trainable(&m, true, 0);
            generate_all(&m, 0.7, &g);
            memset(trained, 0, sizeof trained);
            for (int r = 0, k = 0; r < 3; r++) {
                const Request *q = &g.all[r];
                for (int i = 0; i < q->completions; i++, k++) {
                    int64_t n = q->n, own = g.c[k].ids.n;
                    memcpy(ids[k], q->ids, (size_t)n * 4), memcpy(ids[k] + n, g.c[k].ids.p, (size_t)own * 4);
                    memset(trained[k] + n, 1, (size_t)own);
                    s[k] = (Sequence){.ids = ids[k],
                                      .n = n + own,
                                      .n_prompt = n,
                                      .trained = trained[k],
                                      .pixels = q->pixels,
                                      .grids = q->grids,
                                      .n_grids = q->n_grids};
                }
                EXPECT(pack_add_group(&p, &m.c, s + k - q->completions, (int)q->completions, q->n, &e));
            }
            float lp[ANSWERS * (LONG + NEW)], host_lp[ANSWERS * (LONG + NEW)];
            float got[ANSWERS * NEW], want[ANSWERS * NEW], host[ANSWERS * NEW];
            pack_batch(&p, false, 0, 0);
            p.b.inv_temperature = (float)(1 / 0.7);
            EXPECT(model_pass(&m, &p.b, NULL, lp, NULL, &e));
            model_free(&m);
            on(-1, wide ? WIDE : FLAT);
            trainable(&m, true, 0);
            EXPECT(model_pass(&m, &p.b, NULL, host_lp, NULL, &e));
            int64_t n = 0;
            double most = 0;
            for (int k = 0; k < ANSWERS; k++)
                for (int64_t i = 0; i < g.c[k].ids.n; i++, n++) {
                    got[n] = g.c[k].lp[i], want[n] = lp[p.places[k].row + i], host[n] = host_lp[p.places[k].row + i];
                    most = fmax(most, fabs((double)got[n] - want[n]));
                }
            printf("     %s, %s: %lld tokens, the sampler's log-probability is at most %.1e off the pass's\n",
                   wide ? "real heads" : "small heads", type_name(TYPES[type]), (long long)n, most);
            EXPECT(n > 40);
            double rounding = tensor_error(want, host, n).relative_l2;
            EXPECT(rounding < (type ? 0.1 : 1e-5));
            EXPECT_CLOSE("log-probabilities", got, want, n, type ? rounding : 1e-5);
            EXPECT(!error_within(tensor_error(got + 1, want, n - 1), 0.3)); // the control: another token's
            generated_free(&g), pack_free(&p), model_free(&m);
        }
}
