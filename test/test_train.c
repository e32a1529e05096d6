// test_train.c - the promises of training: what is packed, recomputed, accumulated or shared out among threads gives the
// gradients of the plain way; what is frozen stays; what is saved comes back to the bit.
//
// Equality with Hugging Face autograd and torch.optim is test_oracle's business.
#include "passes.h"

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

// A random direction in the space of the trained weights: its slope under a gradient, and the weights moved along it.
static double direction(int64_t i) { return random_uniform(9, RANDOM_TEST, 0, (uint32_t)i) - 0.5; }
static double slope_along(const float *gradient, int64_t n) {
    double slope = 0;
    for (int64_t i = 0; i < n; i++) slope += gradient[i] * direction(i);
    return slope;
}
static void move_along(Model *m, const float *start, double by) {
    int64_t at = 0;
    for (int64_t i = 0; i < m->n_params; i++) {
        const Param *p = &m->params[i];
        float *v = p->w->v.p;
        for (int64_t k = 0; p->w->d.p && k < p->rows * p->cols; k++, at++)
            v[k] = (float)(start[at] + by * direction(at));
    }
}

// The derivative along a random direction, by differences of the loss; dropout keeps its mask, since its keys stay.
TEST(gradients_are_the_slope_of_the_loss_with_dropout_on) {
    Model m;
    trainable(&m, true, 0.4);
    int64_t n;
    free(train_pass(&m, 0, 6, 40, true, 0).lp);
    float *g = flat(&m, false, &n), *start = flat(&m, true, &n);
    double slope = slope_along(g, n), loss[2];
    for (int side = 0; side < 2; side++) {
        move_along(&m, start, side ? 1e-3 : -1e-3);
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

// Groups and plain sequences as one pack, or every sequence by itself. Group 0 has a picture, whose rows have targets; group 1
// shares a single id, which leaves no prefix; group 2 is text; example 5 stands between them.
enum { GROUPS = 3, MEMBERS = 3, MOST = GROUPS * MEMBERS + 1 };
typedef struct Grouped {
    Example x[MOST];
    Sequence s[MOST];
    int64_t shared[GROUPS];
    int32_t align[MAX_N];
} Grouped;
static void grouped_make(Grouped *g, int64_t keys) {
    static const int of[GROUPS] = {3, 0, 2};
    memset(g, 0, sizeof *g);
    for (int i = 0; i < MAX_N; i++) g->align[i] = i % 3 == 1 ? -1 : (5 * i + 2) % 39;
    for (int k = 0; k < MOST; k++) {
        Example *x = &g->x[k];
        bool plain = k == MOST - 1;
        int q = plain ? 5 : of[k / MEMBERS];
        *x = example(q);
        if (!plain) {
            int64_t shared = g->shared[k / MEMBERS] = q ? x->n : 1;
            memset(x->trained, 0, sizeof x->trained);
            for (int64_t i = shared; i < x->n; i++) x->ids[i] = (x->ids[i] + k) % 39; // another question
            for (int i = 0; i < 3 + 2 * (k % MEMBERS); i++)
                x->trained[x->n] = i != 1, x->ids[x->n++] = (7 * i + 3 * k) % 39;
        }
        g->s[k] = (Sequence){.ids = x->ids,
                             .n = x->n,
                             .n_prompt = x->n,
                             .trained = x->trained,
                             .pixels = x->pixels,
                             .grids = &x->grid,
                             .n_grids = q % 2,
                             .key = (uint32_t)(keys ? keys + k : 0),
                             .align = k == 0 ? g->align : NULL};
    }
}
static void grouped_pack(const Grouped *g, const Model *m, bool copies, Pack *p) {
    Err e = {0};
    bool ok = true;
    for (int k = 0; k < GROUPS; k++) {
        for (int i = 0; copies && i < MEMBERS; i++) ok &= pack_add(p, &m->c, &g->s[MEMBERS * k + i], &e);
        if (!copies) ok &= pack_add_group(p, &m->c, &g->s[MEMBERS * k], MEMBERS, g->shared[k], &e);
        if (k == 0) ok &= pack_add(p, &m->c, &g->s[MOST - 1], &e);
    }
    if (!ok) err_report(&e), exit(99);
}
// lp and entropy [MOST][MAX_N] by id of the sequence that a row stands for, and of the rows of the picture. The gradient of
// the loss is another number for each of them.
typedef struct GroupedResult {
    float lp[MOST][MAX_N], entropy[MOST][MAX_N], picture[MAX_N];
} GroupedResult;
static void grouped_pass(const Grouped *g, Model *m, bool copies, bool dropout, int64_t keep, float inv_temperature,
                         GroupedResult *r) {
    Pack p = {0};
    Err e = {0};
    grouped_pack(g, m, copies, &p);
    pack_batch(&p, dropout, 7, keep);
    p.b.inv_temperature = inv_temperature;
    int64_t N = p.b.N, targets = 0, counted = 0;
    float *dlp = alloc_or_die((size_t)(3 * N), sizeof *dlp, "test"), *lp = dlp + N, *entropy = lp + N;
    memset(r, 0, sizeof *r);
    EXPECT_INT(p.n, MOST);
    for (int pass = 0; pass < 2; pass++) {
        for (int k = 0; k < p.n; k++) {
            const PackPlace *at = &p.places[k];
            int of = k < MEMBERS ? k : k == MEMBERS ? MOST - 1 : k - 1; // example 5 came behind group 0
            EXPECT_INT(at->n, g->s[of].n);
            EXPECT_INT(at->from, copies || of == MOST - 1 ? 0 : g->shared[of / MEMBERS] - 1);
            EXPECT((at->n_align > 0) == (of == 0));
            for (int64_t j = 0; j < at->n_align; j++) {
                int64_t row = at->align_row + j;
                if (pass) r->picture[j] = lp[row];
                else
                    dlp[row] = (float)random_uniform(21, RANDOM_TEST, 99, (uint32_t)j),
                    counted += p.b.targets[row] >= 0;
            }
            for (int64_t i = at->from; i < at->n; i++) {
                int64_t row = at->row + i - at->from;
                EXPECT_INT(p.b.ids[row], g->s[of].ids[i]);
                if (at->n_align && row >= at->align_row && row < at->align_row + at->n_align) continue;
                if (pass) r->lp[of][i] = lp[row], r->entropy[of][i] = entropy[row];
                else
                    dlp[row] = (float)(random_uniform(21, RANDOM_TEST, (uint64_t)of, (uint32_t)i) - 0.5),
                    counted += p.b.targets[row] >= 0;
            }
        }
        if (!pass && !model_pass(m, &p.b, dlp, lp, entropy, &e)) err_report(&e), exit(99);
    }
    for (int64_t i = 0; i < N; i++) targets += p.b.targets[i] >= 0;
    EXPECT_INT(counted, targets); // the places name every row that has a target, once
    free(dlp), pack_free(&p);
}

TEST(packed_groups_give_the_gradients_of_their_copies) {
    static Grouped g;
    static GroupedResult want_r, r;
    grouped_make(&g, 0);
    for (int lora = 0; lora < 2; lora++)
        for (int cold = 0; cold < 2; cold++) {
            Model m;
            int64_t n, rows = MOST * MAX_N;
            trainable(&m, lora, 0);
            grouped_pass(&g, &m, true, false, 0, cold ? 0 : 1 / 0.7f, &want_r);
            float *want = flat(&m, false, &n);
            model_zero_gradients(&m);
            grouped_pass(&g, &m, false, false, 0, cold ? 0 : 1 / 0.7f, &r);
            float *got = flat(&m, false, &n);
            EXPECT_CLOSE("log-probabilities", &r.lp[0][0], &want_r.lp[0][0], rows, 1e-5);
            EXPECT_CLOSE("entropies", &r.entropy[0][0], &want_r.entropy[0][0], rows, 1e-5);
            EXPECT_CLOSE("of the picture", r.picture, want_r.picture, MAX_N, 1e-5);
            EXPECT_CLOSE("gradients", got, want, n, 1e-5);
            EXPECT(r.picture[0] < 0 && r.picture[1] == 0 && r.picture[2] < 0); // targets as align says
            free(got);
            model_zero_gradients(&m); // a control: one member less in a group is seen
            g.x[1].trained[g.x[1].n - 1] = 0;
            grouped_pass(&g, &m, false, false, 0, cold ? 0 : 1 / 0.7f, &r);
            g.x[1].trained[g.x[1].n - 1] = 1;
            got = flat(&m, false, &n);
            EXPECT(!error_within(tensor_error(got, want, n), 1e-5));
            free(got), free(want), model_free(&m);
        }
}

TEST(recompute_gives_the_same_bits_with_groups) {
    static Grouped g;
    static GroupedResult first, r;
    grouped_make(&g, 100);
    Model m;
    int64_t n;
    float *want = NULL;
    trainable(&m, true, 0.3);
    for (int64_t keep = 0; keep <= 2; keep++) {
        model_zero_gradients(&m);
        grouped_pass(&g, &m, false, true, keep, 1.25f, &r);
        float *got = flat(&m, false, &n);
        if (!want) want = got, first = r;
        else {
            EXPECT(!memcmp(got, want, (size_t)n * sizeof *got) && !memcmp(&r, &first, sizeof r));
            free(got);
        }
    }
    free(want), model_free(&m);
}

// Row by row: keys of dropout are those of the first sequence up to the last shared id, then everyone's own.
TEST(a_group_has_the_dropout_of_its_first_sequence_where_it_is_shared) {
    static Grouped g;
    grouped_make(&g, 100);
    Model m;
    Pack p = {0};
    Err e = {0};
    open_at(&m);
    EXPECT(pack_add_group(&p, &m.c, &g.s[0], MEMBERS, g.shared[0], &e));
    const TrainBatch *b = pack_batch(&p, true, 7, 0);
    int64_t shared = g.shared[0];
    EXPECT_INT(b->N, shared - 1 + 3 * 1 + 3 + 5 + 7);
    for (int64_t i = 0; i < shared - 1; i++) EXPECT(b->keys[2 * i] == 100 && b->keys[2 * i + 1] == i);
    for (int k = 0; k < MEMBERS; k++)
        for (int64_t i = shared - 1; i < g.s[k].n; i++) {
            const int32_t *key = b->keys + 2 * (p.places[k].row + i - shared + 1);
            EXPECT(key[0] == 100 + k && key[1] == i);
        }
    // what is refused leaves the pack as it was
    Pack before = p;
    Sequence bad[2] = {g.s[0], g.s[1]};
    g.x[1].ids[g.x[1].n - 1] = m.c.video_id;
    EXPECT(!pack_add_group(&p, &m.c, bad, 2, shared, &e));
    EXPECT_STR(e.code, "E-DS-10");
    EXPECT(p.n == before.n && p.n_places == before.n_places && p.patches == before.patches && p.b.N == before.b.N &&
           p.b.n_spans == before.b.n_spans && p.b.n_grids == before.b.n_grids);
    pack_free(&p), model_free(&m);
}

// The slope of the loss along a random direction, at another temperature.
TEST(the_gradient_at_a_temperature_is_the_slope) {
    static Grouped g;
    static GroupedResult r;
    grouped_make(&g, 0);
    Model m;
    int64_t n;
    trainable(&m, true, 0);
    grouped_pass(&g, &m, false, false, 0, 0.6f, &r);
    float *grad = flat(&m, false, &n), *start = flat(&m, true, &n);
    double slope = slope_along(grad, n), loss[2] = {0};
    for (int side = 0; side < 2; side++) {
        move_along(&m, start, side ? 1e-3 : -1e-3);
        grouped_pass(&g, &m, false, false, 0, 0.6f, &r);
        for (int k = 0; k < MOST; k++)
            for (int i = 0; i < MAX_N; i++)
                loss[side] += r.lp[k][i] * (random_uniform(21, RANDOM_TEST, (uint64_t)k, (uint32_t)i) - 0.5);
        for (int j = 0; j < MAX_N; j++) loss[side] += r.picture[j] * random_uniform(21, RANDOM_TEST, 99, (uint32_t)j);
    }
    EXPECT_NEAR((loss[1] - loss[0]) / 2e-3, slope, 1e-2 * fabs(slope));
    free(grad), free(start), model_free(&m);
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
