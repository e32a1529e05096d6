// test_train.c - the promises of training: what is packed, recomputed, accumulated or shared out among threads gives the
// gradients of the plain way; what is frozen stays; what is saved comes back to the bit.
//
// Equality with Hugging Face autograd and torch.optim is test_oracle's business.
#include "tiny.h"

enum { MAX_N = 64 };
typedef struct Example {
    int32_t ids[MAX_N];
    uint8_t trained[MAX_N];
    int64_t n;
    float pixels[96 * 96]; // up to 96 patches of 3*2*4*4 values
    Grid grid;
} Example;

// Sequence k: a few words, a picture for odd k, more words; a random half of the words are targets.
static Example example(int k) {
    Example x = {.grid = {1, 4 + 2 * (k % 3), 4}};
    int64_t units = x.grid.h * x.grid.w / 4, words = 9 + 3 * (k % 4);
    for (int64_t i = 0; i < words; i++) {
        if (k % 2 && i == 3) {
            x.ids[x.n++] = 42;
            for (int64_t u = 0; u < units; u++) x.ids[x.n++] = 40;
            x.ids[x.n++] = 43;
        }
        uint64_t stream = (uint64_t)(100 * k + i);
        x.trained[x.n] = random_uniform(1, RANDOM_TEST, stream, 0) < 0.5 || i == words - 1;
        x.ids[x.n++] = (int32_t)(random_uniform(1, RANDOM_TEST, stream, 1) * 39);
    }
    for (int64_t i = 0; i < 96 * grid_patches(x.grid); i++)
        x.pixels[i] = (float)(2 * random_uniform(2, RANDOM_TEST, (uint64_t)k, (uint32_t)i) - 1);
    return x;
}
static void add_example(Pack *p, const Model *m, int k) {
    static Example x;
    Err e = {0};
    x = example(k);
    Sequence s = {.ids = x.ids,
                  .n = x.n,
                  .n_prompt = x.n,
                  .trained = x.trained,
                  .pixels = x.pixels,
                  .grids = &x.grid,
                  .n_grids = k % 2,
                  .key = (uint32_t)k};
    if (!pack_add(p, &m->c, &s, &e)) err_report(&e), exit(99);
}

typedef struct Result {
    float *lp; // of all rows, in order of sequences
    int64_t n, targets;
} Result;

// Examples [first, last) as one pack: log-probabilities, and gradients of sum -lp / total.
static Result train_pass(Model *m, int first, int last, double total, bool dropout, int64_t keep) {
    Pack p = {0};
    Err e = {0};
    for (int k = first; k < last; k++) add_example(&p, m, k);
    const TrainBatch *b = pack_batch(&p, dropout, 7, keep);
    Result r = {alloc_or_die((size_t)b->N, sizeof(float), "test"), b->N, 0};
    float *dlp = alloc_or_die((size_t)b->N, sizeof *dlp, "test");
    for (int64_t i = 0; i < b->N; i++) r.targets += b->targets[i] >= 0, dlp[i] = (float)(-1 / total);
    if (!model_pass(m, b, total > 0 ? dlp : NULL, r.lp, NULL, &e)) err_report(&e), exit(99);
    free(dlp), pack_free(&p);
    return r;
}
static double loss_of(Model *m, int first, int last, double total, bool dropout) {
    Result r = train_pass(m, first, last, dropout ? total : -1, dropout, 0);
    double loss = 0;
    for (int64_t i = 0; i < r.n; i++) loss -= r.lp[i] / total;
    free(r.lp);
    return loss;
}

// The parameter table points into the Model, so a Model is filled where it stays.
static void open_at(Model *m) {
    Err e = {0};
    if (!model_load(m, checkpoint(FLAT, false), ops_cpu(), (LoadOptions){0}, &e)) err_report(&e), exit(99);
}

static void trainable(Model *m, bool lora, double dropout) {
    Err e = {0};
    open_at(m);
    LoraOptions o = {.targets = "decoder,vision,merger", .r = 3, .alpha = 6, .dropout = dropout, .seed = 3};
    if (lora && !lora_init(m, &o, &e)) err_report(&e), exit(99);
    for (int64_t i = 0; i < m->n_params; i++) {
        Param *p = &m->params[i];
        if (!lora) p->trained = true;
        if (p->kind != PARAM_LORA_B) continue;
        float *v = p->w->v.p; // B starts at zero, where A has no gradient
        for (int64_t k = 0; k < p->rows * p->cols; k++)
            v[k] = (float)(0.2 * (random_uniform(4, RANDOM_TEST, (uint64_t)i, (uint32_t)k) - 0.5));
    }
    if (!model_train_open(m, &e)) err_report(&e), exit(99);
}

// All gradients (or values) of the trained parameters, one after the other.
static float *flat(const Model *m, bool values, int64_t *n) {
    float *out = NULL;
    *n = 0;
    for (int64_t i = 0; i < m->n_params; i++) {
        const Param *p = &m->params[i];
        if (!p->w->d.p || p->tied) continue;
        int64_t count = p->rows * p->cols;
        out = grow_or_die(out, (size_t)(*n + count), sizeof *out, "test");
        memcpy(out + *n, values ? p->w->v.p : p->w->d.p, (size_t)count * sizeof *out);
        *n += count;
    }
    return out;
}

// ------------------------------------------------------------------------------------------------------------ gradients

TEST(one_pass_of_eight_is_eight_passes_of_one_to_rounding) {
    for (int lora = 0; lora < 2; lora++) {
        Model m;
        trainable(&m, lora, 0.3);
        int64_t n;
        Result all = train_pass(&m, 0, 8, 50, lora, 0);
        float *want = flat(&m, false, &n);
        model_zero_gradients(&m);
        int64_t row = 0, targets = 0;
        for (int k = 0; k < 8; k++) {
            Result one = train_pass(&m, k, k + 1, 50, lora, 0);
            EXPECT(!memcmp(one.lp, all.lp + row, (size_t)one.n * sizeof *one.lp)); // a sequence alone has the same bits
            row += one.n, targets += one.targets;
            free(one.lp);
        }
        float *got = flat(&m, false, &n);
        EXPECT_INT(targets, all.targets);
        EXPECT_CLOSE("gradients", got, want, n, 1e-6);
        got[n / 3] += 0.01f * got[n / 3] + 1e-4f; // the control: the comparison sees one element
        EXPECT(!error_within(tensor_error(got, want, n), 1e-6));
        free(got), free(want), free(all.lp);
        model_free(&m);
    }
}

TEST(recompute_gives_the_same_bits) {
    for (int lora = 0; lora < 2; lora++) {
        Model m;
        trainable(&m, lora, 0.2);
        int64_t n;
        float *want = NULL;
        for (int64_t keep = 0; keep <= 3; keep++) {
            model_zero_gradients(&m);
            free(train_pass(&m, 0, 6, 40, lora, keep).lp);
            float *got = flat(&m, false, &n);
            if (!want) want = got;
            else {
                EXPECT(!memcmp(got, want, (size_t)n * sizeof *got));
                free(got);
            }
        }
        free(want), model_free(&m);
    }
}

TEST(threads_give_the_same_bits) {
    static const int threads[] = {1, 2, 3, 8};
    float *want = NULL;
    int64_t n;
    for (int t = 0; t < 4; t++) {
        pool_start(threads[t]);
        Model m;
        trainable(&m, false, 0);
        Optimizer o;
        Err e = {0};
        AdamOptions a = {.lr = {1e-2, 1e-2, 1e-2}, .beta1 = 0.9, .beta2 = 0.99, .eps = 1e-8, .decay = 0.1, .clip = 1};
        EXPECT(optimizer_open(&o, &m, &a, &e));
        for (int step = 0; step < 3; step++) {
            model_zero_gradients(&m);
            free(train_pass(&m, 0, 6, 40, false, 1).lp);
            optimizer_step(&o, &m, 1, gradient_norm(&o, &m));
        }
        float *got = flat(&m, true, &n);
        if (!want) want = got;
        else {
            EXPECT(!memcmp(got, want, (size_t)n * sizeof *got));
            free(got);
        }
        optimizer_close(&o, &m), model_free(&m);
    }
    free(want);
    pool_stop();
}

// The derivative along a random direction, by differences of the loss; dropout keeps its mask, since its keys stay.
TEST(gradients_are_the_slope_of_the_loss_with_dropout_on) {
    Model m;
    trainable(&m, true, 0.4);
    int64_t n, at = 0;
    free(train_pass(&m, 0, 6, 40, true, 0).lp);
    float *g = flat(&m, false, &n), *start = flat(&m, true, &n);
    double slope = 0, loss[2];
    for (int64_t i = 0; i < n; i++) slope += g[i] * (random_uniform(9, RANDOM_TEST, 0, (uint32_t)i) - 0.5);
    for (int side = 0; side < 2; side++) {
        at = 0;
        for (int64_t i = 0; i < m.n_params; i++) {
            const Param *p = &m.params[i];
            if (!p->w->d.p) continue;
            float *v = p->w->v.p;
            for (int64_t k = 0; k < p->rows * p->cols; k++, at++)
                v[k] = (float)(start[at] +
                               (side ? 1e-3 : -1e-3) * (random_uniform(9, RANDOM_TEST, 0, (uint32_t)at) - 0.5));
        }
        loss[side] = loss_of(&m, 0, 6, 40, true);
    }
    EXPECT_NEAR((loss[1] - loss[0]) / 2e-3, slope, 1e-2 * fabs(slope));
    EXPECT(fabs(loss_of(&m, 0, 6, 40, true) - loss_of(&m, 0, 6, 40, false)) > 1e-4); // and it is on
    free(g), free(start), model_free(&m);
}

TEST(a_part_trained_alone_has_the_gradients_it_has_among_all) {
    Model all;
    trainable(&all, false, 0);
    free(train_pass(&all, 0, 6, 40, false, 0).lp);
    static const char *const parts[] = {"visual.merger.", "visual.blocks.1",    "visual.patch_embed",
                                        "model.layers.1", "model.embed_tokens", "model.norm",
                                        "lm_head"};
    for (size_t k = 0; k < sizeof parts / sizeof *parts; k++) {
        Err e = {0};
        Model m;
        open_at(&m);
        int64_t trained = 0;
        for (int64_t i = 0; i < m.n_params; i++)
            trained += m.params[i].trained = !strncmp(m.params[i].name, parts[k], strlen(parts[k]));
        EXPECT(trained > 0 && model_train_open(&m, &e));
        free(train_pass(&m, 0, 6, 40, false, 0).lp);
        for (int64_t i = 0; i < m.n_params; i++) {
            const Param *p = &m.params[i];
            EXPECT((p->w->d.p != NULL) == p->trained);
            if (p->trained && memcmp(p->w->d.p, all.params[i].w->d.p, (size_t)(p->rows * p->cols) * sizeof(float)))
                FAIL("%s: other gradient when trained alone", p->name);
        }
        model_free(&m);
    }
    model_free(&all);
}

// A group of two completions that share a prompt with a picture: once with the prompt computed once and seen as a prefix,
// once as two whole sequences.
TEST(a_shared_prompt_gives_the_gradients_of_its_copies) {
    Model m;
    trainable(&m, false, 0);
    Example x = example(5); // with a picture
    int64_t P = x.n, A = 4, B = 6, n, next;
    Err e = {0};
    int32_t ids[2][MAX_N], flat_ids[MAX_N], pos[3 * MAX_N], targets[MAX_N], at[MAX_N];
    Pack copies = {0};
    for (int c = 0; c < 2; c++) {
        int64_t len = c ? B : A;
        uint8_t trained[MAX_N] = {0};
        memcpy(ids[c], x.ids, (size_t)P * sizeof *x.ids);
        for (int64_t i = 0; i < len; i++) ids[c][P + i] = (int32_t)(7 * i + 3 * c + 1) % 39, trained[P + i] = 1;
        Sequence s = {.ids = ids[c],
                      .n = P + len,
                      .n_prompt = P,
                      .trained = trained,
                      .pixels = x.pixels,
                      .grids = &x.grid,
                      .n_grids = 1};
        EXPECT(pack_add(&copies, &m.c, &s, &e));
    }
    float dlp[2 * MAX_N], lp[2 * MAX_N], lp_shared[2 * MAX_N];
    for (int i = 0; i < 2 * MAX_N; i++) dlp[i] = -0.1f;
    EXPECT(model_pass(&m, pack_batch(&copies, false, 0, 0), dlp, lp, NULL, &e));
    float *want = flat(&m, false, &n);

    // shared: rows are the prompt, then both completions. A row predicts what comes next in its own sequence, but the
    // prompt's last row would have to predict two first tokens: it is repeated, as row one of each completion.
    int64_t N = 0;
    Span spans[3];
    memcpy(flat_ids, x.ids, (size_t)(P - 1) * sizeof *x.ids), N = P - 1;
    for (int64_t i = 0; i < N; i++) targets[i] = -1;
    spans[0] = (Span){0, (int32_t)N, 0, 0, 1};
    int32_t whole[2][3 * MAX_N];
    for (int c = 0; c < 2; c++) {
        int64_t len = c ? B : A;
        EXPECT(mrope_positions(&m.c, ids[c], P + len, P, &x.grid, 1, whole[c], &next, &e));
        spans[1 + c] = (Span){(int32_t)N, (int32_t)(N + len), 0, (int32_t)(P - 1), 1};
        for (int64_t i = 0; i < len; i++) flat_ids[N + i] = ids[c][P - 1 + i], targets[N + i] = ids[c][P + i];
        N += len;
    }
    for (int axis = 0; axis < 3; axis++) {
        int64_t row = 0;
        for (int64_t i = 0; i < P - 1; i++) pos[axis * N + row++] = whole[0][axis * (P + A) + i];
        for (int c = 0; c < 2; c++)
            for (int64_t i = 0, len = c ? B : A; i < len; i++)
                pos[axis * N + row++] = whole[c][axis * (P + len) + P - 1 + i];
    }
    image_places(&m.c, x.ids, P, 0, at);
    TrainBatch shared = {.N = N,
                         .ids = flat_ids,
                         .pos = pos,
                         .spans = spans,
                         .n_spans = 3,
                         .pixels = x.pixels,
                         .grids = &x.grid,
                         .n_grids = 1,
                         .image_at = at,
                         .targets = targets};
    model_zero_gradients(&m);
    EXPECT(model_pass(&m, &shared, dlp, lp_shared, NULL, &e));
    float *got = flat(&m, false, &n);
    EXPECT_CLOSE("log-probabilities", lp_shared + P - 1, lp + P - 1, A, 1e-5);
    EXPECT_CLOSE("log-probabilities", lp_shared + P - 1 + A, lp + P + A + P - 1, B, 1e-5);
    EXPECT_CLOSE("gradients", got, want, n, 1e-5);
    free(got), free(want), pack_free(&copies), model_free(&m);
}

// ------------------------------------------------------------------------------------------------------------ optimizer

TEST(a_batch_can_be_learned_by_heart_and_what_is_frozen_stays) {
    for (int lora = 0; lora < 2; lora++) {
        Model m, before;
        trainable(&m, lora, 0), open_at(&before);
        Optimizer o;
        Err e = {0};
        AdamOptions a = {.lr = {1e-2, 1e-2, 1e-2}, .beta1 = 0.9, .beta2 = 0.99, .eps = 1e-8, .clip = 1};
        EXPECT(optimizer_open(&o, &m, &a, &e));
        Result r = train_pass(&m, 0, 4, 1, false, 0);
        double T = (double)r.targets, first = loss_of(&m, 0, 4, T, false);
        free(r.lp);
        for (int step = 0; step < 150; step++) {
            model_zero_gradients(&m);
            free(train_pass(&m, 0, 4, T, false, 0).lp);
            optimizer_step(&o, &m, 1, gradient_norm(&o, &m));
        }
        double last = loss_of(&m, 0, 4, T, false);
        if (!(last < 0.1 * first)) FAIL("lora %d: the loss went from %.3f to %.3f only", lora, first, last);
        for (int64_t i = 0; lora && i < m.n_base; i++)
            if (memcmp(m.params[i].w->v.p, before.params[i].w->v.p,
                       (size_t)(m.params[i].rows * m.params[i].cols) * sizeof(float)))
                FAIL("%s moved, though it is frozen", m.params[i].name);
        optimizer_close(&o, &m), model_free(&m), model_free(&before);
    }
}

TEST(schedules_give_the_worked_numbers) {
    // rl_reference.md section 9: W = 10, N = 100
    Schedule s = {.kind = SCHEDULE_COSINE, .warmup = 10, .steps = 100};
    for (int kind = 0; kind < 2; kind++) {
        s.kind = kind ? SCHEDULE_LINEAR : SCHEDULE_COSINE;
        EXPECT_NEAR(schedule_factor(&s, 0), 0, 0);
        EXPECT_NEAR(schedule_factor(&s, 5), 0.5, 1e-15);
        EXPECT_NEAR(schedule_factor(&s, 10), 1, 1e-15);
        EXPECT_NEAR(schedule_factor(&s, 55), 0.5, 1e-15);
        EXPECT_NEAR(schedule_factor(&s, 100), 0, 1e-15);
    }
    s.floor = 0.1;
    EXPECT_NEAR(schedule_factor(&s, 55), 0.55, 1e-15);
    EXPECT_NEAR(schedule_factor(&s, 100), 0.1, 1e-15);
    s = (Schedule){.kind = SCHEDULE_WSD, .warmup = 10, .steps = 100, .decay_part = 0.2};
    EXPECT_NEAR(schedule_factor(&s, 79), 1, 0);
    EXPECT_NEAR(schedule_factor(&s, 80), 1, 0);
    EXPECT_NEAR(schedule_factor(&s, 85), 0.5, 1e-15);
    EXPECT_NEAR(schedule_factor(&s, 100), 0, 1e-15);
    s.kind = SCHEDULE_CONSTANT;
    EXPECT_NEAR(schedule_factor(&s, 99), 1, 0);
    s = (Schedule){.kind = SCHEDULE_COSINE, .steps = 4}; // no warm-up
    EXPECT_NEAR(schedule_factor(&s, 0), 1, 0);
}

TEST(groups_have_their_own_learning_rates_and_no_decay_for_vectors) {
    Model m;
    trainable(&m, false, 0);
    Optimizer o;
    Err e = {0};
    AdamOptions a = {.lr = {[TOWER_VISION] = 1, [TOWER_MERGER] = 2, [TOWER_DECODER] = 3}, .decay = 0.5};
    EXPECT(optimizer_open(&o, &m, &a, &e));
    for (int64_t i = 0; i < o.n; i++) {
        const char *name = o.rows[i].p->name;
        double lr = strstr(name, "merger") ? 2 : strstr(name, "visual.") ? 1 : 3;
        EXPECT_NEAR(o.rows[i].lr, lr, 0);
        EXPECT_NEAR(o.rows[i].decay, strstr(name, "norm") || strstr(name, "ln_q") || strstr(name, ".bias") ? 0 : 0.5,
                    0);
    }
    optimizer_close(&o, &m), model_free(&m);
}

TEST(a_checkpoint_comes_back_to_the_bit) {
    char dir[] = "/tmp/surgr1_train_XXXXXX", path[200];
    EXPECT(mkdtemp(dir) != NULL);
    Err e = {0};
    AdamOptions a = {.lr = {1e-2, 1e-2, 1e-2}, .beta1 = 0.9, .beta2 = 0.99, .eps = 1e-8};
    Optimizer o, p;
    Model m, again;
    trainable(&m, false, 0), trainable(&again, false, 0);
    EXPECT(optimizer_open(&o, &m, &a, &e) && optimizer_open(&p, &again, &a, &e));
    free(train_pass(&m, 0, 4, 30, false, 0).lp);
    optimizer_step(&o, &m, 1, gradient_norm(&o, &m));
    EXPECT(train_save(&o, &m, dir, &e));
    EXPECT(train_load_values(&again, dir, &e) && train_load_moments(&p, &again, dir, &e));
    for (int64_t i = 0; i < o.n; i++) {
        size_t bytes = (size_t)(o.rows[i].p->rows * o.rows[i].p->cols) * sizeof(float);
        EXPECT(!memcmp(o.rows[i].p->w->v.p, p.rows[i].p->w->v.p, bytes));
        EXPECT(!memcmp(o.rows[i].m.p, p.rows[i].m.p, bytes) && !memcmp(o.rows[i].v.p, p.rows[i].v.p, bytes));
    }
    // a run that trains less must not take it
    Model less;
    open_at(&less);
    less.params[3].trained = true;
    EXPECT(model_train_open(&less, &e) && !train_load_values(&less, dir, &e));
    EXPECT_STR(e.code, "E-CK-05");
    optimizer_close(&o, &m), optimizer_close(&p, &again);
    model_free(&m), model_free(&again), model_free(&less);
    snprintf(path, sizeof path, "%s/trained.safetensors", dir), unlink(path);
    snprintf(path, sizeof path, "%s/optimizer.safetensors", dir), unlink(path);
    rmdir(dir);
}

// --------------------------------------------------------------------------------------------------------------- guards

TEST(an_outlier_is_six_deviations_and_twice_the_mean_away) {
    Window w = {0}, back;
    for (int i = 0; i < 63; i++) EXPECT(!outlier(&w, 100 * (1 + i % 2))); // too few to judge: nothing is far
    EXPECT(!outlier(&w, 1e9));
    w = (Window){0};
    for (int i = 0; i < 200; i++) EXPECT(!outlier(&w, 1 + 0.1 * (i % 2)));
    EXPECT_INT(w.n, 128);
    EXPECT(!outlier(&w, 1.9)); // far in deviations, but not twice the mean
    w = (Window){0};
    for (int i = 0; i < 128; i++) outlier(&w, 1 + 0.1 * (i % 2));
    EXPECT(outlier(&w, 50));
    EXPECT(w.value[0] < 1.5); // it entered as the limit
    Text t = {0};
    JsonDoc doc;
    Err e = {0};
    window_print(&w, &t);
    EXPECT(json_parse(&doc, t.p, t.len, "window", (JsonOptions){0}, &e) && window_read(&back, doc.root));
    EXPECT(back.n == w.n && back.next == w.next && !memcmp(back.value, w.value, sizeof w.value));
    json_free(&doc), text_free(&t);
}

TEST(a_bad_gradient_is_named_and_so_is_a_clean_neighbour) {
    Model m;
    trainable(&m, false, 0);
    Optimizer o;
    Err e = {0};
    AdamOptions a = {.lr = {1, 1, 1}};
    EXPECT(optimizer_open(&o, &m, &a, &e));
    EXPECT(isfinite(gradient_norm(&o, &m)));
    ((float *)o.rows[5].p->w->d.p)[1] = NAN;
    EXPECT(isnan(gradient_norm(&o, &m)));
    Text t = {0};
    describe_nonfinite(&o, &t);
    EXPECT(strstr(t.p, o.rows[5].p->name) && strstr(t.p, "is clean") && !strstr(t.p, o.rows[9].p->name));
    text_free(&t), optimizer_close(&o, &m), model_free(&m);
}

// ---------------------------------------------------------------------------------------------------------------- memory

// What a new model holds after one pass over examples [0, 4), beside what was foretold for it.
static void expect_foretold(const char *targets, bool backward, int64_t keep) {
    Err e = {0};
    Model m;
    Pack p = {0};
    open_at(&m);
    LoraOptions o = {.targets = targets, .r = 3, .alpha = 6, .seed = 3};
    EXPECT(lora_init(&m, &o, &e));
    for (int k = 0; k < 4; k++) add_example(&p, &m, k);
    PassBytes want = model_pass_bytes(&m, pack_batch(&p, false, 7, keep), backward); // before training is open
    EXPECT(model_train_open(&m, &e));
    EXPECT(want.pictures > 0 && (want.vision > 0) == (backward && strcmp(targets, "decoder")));
    pack_free(&p);
    free(train_pass(&m, 0, 4, backward ? 40 : 0, false, keep).lp);
    EXPECT_NEAR((double)m.activations.size, (double)want.text, 0.01 * (double)want.text);
    EXPECT_NEAR((double)m.tape.arena.size, (double)want.vision, 0.01 * (double)want.vision);
    EXPECT_NEAR((double)m.tables.size, (double)want.pictures, 0.01 * (double)want.pictures + 64);
    model_free(&m);
}
TEST(a_pass_takes_the_memory_that_was_foretold) {
    expect_foretold("decoder,vision,merger", true, 0);
    expect_foretold("decoder,vision,merger", true, 1);
    expect_foretold("merger", true, 2);
    expect_foretold("decoder", true, 1); // a tower that learns nothing keeps nothing
    expect_foretold("decoder,vision,merger", false, 0);
}
