// test_grpo.c - the mathematics of GRPO by worked numbers, finite differences and properties.
//
// What it is: the numbers of rl_reference.md section 7 and method.md section 5 (both computed elsewhere, in double),
//             every gradient against central differences of its loss, and what must hold whatever the numbers are.
// Read before: grpo.c.  Read next: oracle_grpo.h, the same functions against trl and torch.
#include "test.h"

enum { B4 = 4, N4 = 10 }; // rl_reference.md section 7
static const int64_t first4[B4 + 1] = {0, 4, 6, 9, 10};
static const uint8_t ones[64] = {[0 ... 63] = 1};
static const double lp4[N4] = {-.10, -1.20, -.40, -2.00, -.70, -.05, -1.50, -.30, -.90, -.25},
                    old4[N4] = {-.20, -1.00, -.40, -2.50, -.60, -.70, -1.10, -.35, -1.20, -.25},
                    ref4[N4] = {-.15, -1.10, -.45, -2.20, -.80, -.05, -1.30, -.30, -1.00, -.20},
                    entropy4[N4] = {.10, 1.40, .60, 2.10, .90, .02, 1.80, .30, 1.10, .25},
                    rewards4[B4] = {1, 0, .75, .25}, one_weight[1] = {1};
static const double L_max4 = 5;

static GrpoLoss preset(const char *name) {
    GrpoLoss o;
    if (!grpo_preset(&o, name)) FAIL("no preset %s", name);
    return o;
}

// Advantages of one group; free with free.
static double *advantages_of(const GrpoLoss *o, const double *rewards, int64_t G) {
    Advantages a;
    Err e = {0};
    double *out = alloc_or_die((size_t)G, sizeof *out, "advantages");
    if (!group_advantages(o, rewards, one_weight, 1, 1, G, &a, &e)) FAIL("%s: %s", e.code, e.found);
    else memcpy(out, a.advantage, (size_t)G * sizeof *out), advantages_free(&a);
    return out;
}

static double worked_loss(const GrpoLoss *o, GrpoStats *s) {
    GrpoLoss plain = preset("trl");
    double w[N4], dlp[N4], *A = advantages_of(&plain, rewards4, B4);
    WeightStats ws;
    grpo_weights(o, entropy4, ones, first4, B4, w, &ws);
    GrpoBatch b = {B4, first4, ones, lp4, old4, ref4, entropy4, w, A, NULL, 1, B4, N4, (int64_t)L_max4};
    double loss = grpo_loss(o, &b, dlp, s);
    free(A);
    return loss;
}

// ---------------------------------------------------------------------------------------------------- worked numbers
TEST(advantages_of_the_reference_section) {
    const struct {
        int ddof;
        double eps, a, b;
    } rows[] = {
        {1, 1e-4, 1.095205168, .547602584}, {1, 1e-6, 1.095442715, .547721358}, {0, 1e-4, 1.264591145, .632295573}};
    for (size_t k = 0; k < sizeof rows / sizeof rows[0]; k++) {
        GrpoLoss o = preset("trl");
        o.ddof = rows[k].ddof, o.eps = rows[k].eps;
        double *A = advantages_of(&o, rewards4, B4);
        EXPECT_NEAR(A[0], rows[k].a, 1e-9);
        EXPECT_NEAR(A[1], -rows[k].a, 1e-9);
        EXPECT_NEAR(A[2], rows[k].b, 1e-9);
        EXPECT_NEAR(A[3], -rows[k].b, 1e-9);
        free(A);
    }
}

TEST(advantages_of_the_method_section) {
    const double r[8] = {1.5, .5, 1.5, .5, .5, 0, 1.5, .5};
    GrpoLoss o = preset("surg-r1");
    Advantages a;
    Err e = {0};
    EXPECT(group_advantages(&o, r, one_weight, 1, 1, 8, &a, &e));
    EXPECT_NEAR(a.mean[0], .8125, 0);
    EXPECT_NEAR(a.deviation[0], .55551215, 5e-9);
    EXPECT_NEAR(a.advantage[0], 1.2375945, 5e-8);
    EXPECT_NEAR(a.advantage[1], -.5625429, 5e-8);
    advantages_free(&a);
    o = preset("trl");
    EXPECT(group_advantages(&o, r, one_weight, 1, 1, 8, &a, &e));
    EXPECT_NEAR(a.deviation[0], .59386747, 5e-9);
    EXPECT_NEAR(a.advantage[0], 1.1574708, 5e-8);
    EXPECT_NEAR(a.advantage[1], -.5261231, 5e-8);
    advantages_free(&a);
}

TEST(losses_of_the_reference_section) {
    const struct {
        double eps_high, delta, beta;
        enum GrpoRatio ratio;
        double keep, grpo, token, dr_grpo;
    } rows[] = {
        {.20, 0, 0, RATIO_TOKEN, 1, .107407277, -.247989386, -.123994693},
        {.28, 0, 0, RATIO_TOKEN, 1, .098280567, -.261131848, -.130565924},
        {.28, 1.5, 0, RATIO_TOKEN, 1, .041392759, -.306642095, -.153321047},
        {.28, 0, .04, RATIO_TOKEN, 1, .098470834, -.260897012, -.130448506},
        {.28, 0, 0, RATIO_SEQUENCE, 1, .060133343, -.302586515, -.151293257},
        {.28, 0, 0, RATIO_TOKEN, .2, -.118205496, -.176893160, -.088446580},
        {.28, 0, .04, RATIO_TOKEN, .2, -.118015229, -.176658324, -.088329162},
        {.28, 0, 0, RATIO_TOKEN, .5, -.108785996, -.237555845, -.118777922},
    };
    for (size_t k = 0; k < sizeof rows / sizeof rows[0]; k++) {
        GrpoLoss o = preset("trl");
        o.eps_high = rows[k].eps_high, o.delta = rows[k].delta, o.beta = rows[k].beta, o.ratio = rows[k].ratio;
        if (rows[k].keep < 1) o.weights = WEIGHTS_TOP, o.top_quantile = rows[k].keep;
        o.norm = NORM_GRPO;
        EXPECT_NEAR(worked_loss(&o, NULL), rows[k].grpo, 1e-9);
        o.norm = NORM_BNPO;
        EXPECT_NEAR(worked_loss(&o, NULL), rows[k].token, 1e-9);
        o.norm = NORM_DAPO;
        EXPECT_NEAR(worked_loss(&o, NULL), rows[k].token, 1e-9);
        o.norm = NORM_DR_GRPO;
        EXPECT_NEAR(worked_loss(&o, NULL), rows[k].dr_grpo, 1e-9);
        // dual clip of verl and EasyR1 has the value of delta
        if (rows[k].delta > 0) {
            o.norm = NORM_GRPO, o.dual_clip = o.delta, o.delta = 0;
            EXPECT_NEAR(worked_loss(&o, NULL), rows[k].grpo, 1e-9);
        }
    }
    GrpoLoss o = preset("trl");
    GrpoStats s;
    o.beta = .04, worked_loss(&o, &s);
    EXPECT_NEAR(s.kl, .005870921, 1e-9);
    o = preset("trl"), o.term = TERM_CISPO;
    EXPECT_NEAR(worked_loss(&o, NULL), .569960153, 1e-9);
}

TEST(top_mask_thresholds_of_the_reference_section) {
    double w[N4], kept = 0;
    EXPECT_NEAR(entropy_top_mask(entropy4, ones, N4, .2, w), 1.48, 1e-12);
    for (int t = 0; t < N4; t++) kept += w[t];
    EXPECT_NEAR(kept, 2, 0);
    EXPECT_NEAR(entropy_top_mask(entropy4, ones, N4, .5, w), .75, 1e-12);
    kept = 0;
    for (int t = 0; t < N4; t++) kept += w[t];
    EXPECT_NEAR(kept, 5, 0);
}

TEST(entropy_weights_of_the_method_section) {
    const double H[4] = {0, .5, 2, .1}, want[4] = {.35897142, .59184382, 2.65245998, .39672478};
    double w[4];
    entropy_weights(H, ones, 4, 1, 0, w);
    for (int t = 0; t < 4; t++) EXPECT_NEAR(w[t], want[t], 5e-9);
}

TEST(equation_7_of_the_method_section) {
    const double H[3] = {.83239558, 1.09528727, .12908313}, lp[3] = {-.40760596, -1.20194285, -.02474489}, A[1] = {.8};
    const double want[3] = {1.02153661, 1.72821891, .25024448};
    const int64_t first[2] = {0, 3};
    double w[3], dlp[3];
    WeightStats ws;
    GrpoLoss o = preset("surg-r1");
    o.tau = .5;
    grpo_weights(&o, H, ones, first, 1, w, &ws);
    GrpoBatch b = {1, first, ones, lp, NULL, NULL, H, w, A, NULL, 1, 1, 3, 3};
    EXPECT_NEAR(grpo_loss(&o, &b, dlp, NULL), 1.99983764, 3e-8);
    for (int t = 0; t < 3; t++) {
        EXPECT_NEAR(w[t], want[t], 2e-8);
        EXPECT_NEAR(dlp[t], -.8 * w[t], 1e-15);
    }
    // d loss / d logits of the first row, sampled id 0, w constant: the gradient through w would be -0.0769.
    double z[3] = {1, 0, -1}, sum = exp(1) + 1 + exp(-1), dz[3] = {-.27357490, .19999927, .07357562};
    for (int v = 0; v < 3; v++) EXPECT_NEAR(dlp[0] * ((v == 0) - exp(z[v]) / sum), dz[v], 2e-8);
}

// ------------------------------------------------------------------------------------------------------- differences
// A random batch with holes, an empty row and ratios on both sides of every bound, but none near one.
typedef struct Batch {
    int64_t first[6];
    uint8_t mask[40];
    double lp[40], old[40], ref[40], entropy[40], w[40], A[5];
    bool flat[5];
    GrpoBatch b;
} Batch;
static double draw(uint32_t *k, double low, double high) {
    return low + (high - low) * random_uniform(11, RANDOM_TEST, 0, (*k)++);
}
static void batch_fill(Batch *x, const GrpoLoss *o, uint32_t seed) {
    uint32_t k = seed * 1000;
    const int64_t bounds[6] = {0, 7, 8, 12, 17, 23};
    *x = (Batch){.b = {.B = 5}};
    memcpy(x->first, bounds, sizeof bounds);
    int64_t N = bounds[5], tokens = 0;
    for (int64_t t = 0; t < N; t++) {
        x->mask[t] = !(t >= 8 && t < 12) && t != 3 && t != 20, tokens += x->mask[t];
        x->lp[t] = draw(&k, -4, -.01), x->entropy[t] = draw(&k, 0, 3);
        x->old[t] = x->lp[t] - draw(&k, -1.5, 1.5), x->ref[t] = x->lp[t] + draw(&k, -1, 1);
    }
    for (int i = 0; i < 5; i++) x->A[i] = draw(&k, -2, 2);
    WeightStats ws;
    grpo_weights(o, x->entropy, x->mask, x->first, 5, x->w, &ws);
    x->flat[0] = true;
    x->b =
        (GrpoBatch){5, x->first, x->mask, x->lp, x->old, x->ref, x->entropy, x->w, x->A, x->flat, 2, 9, 2 * tokens, 13};
}

// Largest difference between dlp and central differences of the loss. frozen: the ratios do not move with l.
static double difference_error(Batch *x, const GrpoLoss *o, bool frozen) {
    double dlp[40], dummy[40], worst = 0, h = 1e-5;
    grpo_loss(o, &x->b, dlp, NULL);
    for (int64_t t = 0; t < x->first[5]; t++) {
        double at = x->lp[t], old = x->old[t];
        x->lp[t] = at + h, x->old[t] = frozen ? old + h : old;
        double up = grpo_loss(o, &x->b, dummy, NULL);
        x->lp[t] = at - h, x->old[t] = frozen ? old - h : old;
        double down = grpo_loss(o, &x->b, dummy, NULL);
        x->lp[t] = at, x->old[t] = old;
        worst = fmax(worst, fabs((up - down) / (2 * h) - dlp[t]));
    }
    return worst;
}

TEST(every_gradient_is_that_of_its_loss) {
    int seen = 0;
    for (int term = 0; term < GRPO_TERMS; term++)
        for (int ratio = 0; ratio < RATIO_SEQUENCE_TOKEN; ratio++)
            for (int norm = 0; norm < GRPO_NORMS; norm++)
                for (int kind = 0; kind < 7; kind++) {
                    GrpoLoss o = preset("trl");
                    o.term = (enum GrpoTerm)term, o.ratio = (enum GrpoRatio)ratio, o.norm = (enum GrpoNorm)norm;
                    o.weights = kind < GRPO_WEIGHTS ? (enum GrpoWeights)kind : WEIGHTS_ENTROPY;
                    o.cispo_cap = 1.5, o.eps_high = .28;
                    if (kind > 0) o.beta = .3;
                    if (kind > 1) o.kl_in_flat_groups = false;
                    if (kind > 2 && term != TERM_CISPO) o.kl_unbiased = true; // cispo: its ratio is frozen below
                    if (kind == 3) o.delta = 1.1;                             // inside the clip bound on purpose
                    if (kind == 4) o.dual_clip = 2;
                    if (kind == 5) o.log_ratio_limit = .6;
                    if (kind == 6) o.kl_limit = .1;
                    for (uint32_t seed = 0; seed < 4; seed++, seen++) {
                        Batch x;
                        batch_fill(&x, &o, seed);
                        double error = difference_error(&x, &o, term == TERM_CISPO);
                        if (!(error < 1e-8))
                            FAIL("term %s ratio %s norm %s kind %d seed %u: off by %g", grpo_term_names[term],
                                 grpo_ratio_names[ratio], grpo_norm_names[norm], kind, seed, error);
                    }
                }
    EXPECT_INT(seen, 4 * 2 * 6 * 7 * 4);
}

TEST(differences_notice_a_wrong_gradient) { // the control of the test above
    GrpoLoss o = preset("vlm-r1");
    Batch x;
    batch_fill(&x, &o, 1);
    EXPECT(difference_error(&x, &o, false) < 1e-8);
    EXPECT(difference_error(&x, &o, true) > 1e-3); // a ratio that is held still is another loss
}

TEST(sequence_token_ratio_spreads_nothing) {
    GrpoLoss o = preset("trl");
    Batch x;
    double pooled[40], each[40];
    o.ratio = RATIO_SEQUENCE, batch_fill(&x, &o, 2);
    double a = grpo_loss(&o, &x.b, pooled, NULL);
    o.ratio = RATIO_SEQUENCE_TOKEN;
    double b = grpo_loss(&o, &x.b, each, NULL);
    EXPECT_NEAR(a, b, 0);
    for (int i = 0; i < 5; i++) { // with equal weights both are the same, token by token
        for (int64_t t = x.first[i]; t < x.first[i + 1]; t++) EXPECT_NEAR(pooled[t], each[t], 1e-15);
    }
    o.weights = WEIGHTS_ENTROPY, batch_fill(&x, &o, 2);
    o.ratio = RATIO_SEQUENCE, grpo_loss(&o, &x.b, pooled, NULL);
    o.ratio = RATIO_SEQUENCE_TOKEN, grpo_loss(&o, &x.b, each, NULL);
    double most = 0;
    for (int i = 0; i < 5; i++) { // with other weights only their sums are
        double p = 0, q = 0;
        for (int64_t t = x.first[i]; t < x.first[i + 1]; t++)
            p += pooled[t], q += each[t], most = fmax(most, fabs(pooled[t] - each[t]));
        EXPECT_NEAR(p, q, 1e-14);
    }
    EXPECT(most > 1e-3);
}

// --------------------------------------------------------------------------------------------------------- the terms
TEST(first_update_is_on_policy) {
    // Without old log-probabilities, or with equal ones, ratio 1 and the clipped gradient is that of eq. 7.
    GrpoLoss clip = preset("surg-r1"), plain = preset("surg-r1");
    Batch x;
    double a[40], b[40], c[40];
    GrpoStats s;
    clip.term = TERM_CLIP;
    batch_fill(&x, &plain, 3);
    x.b.old_lp = NULL, grpo_loss(&plain, &x.b, a, NULL), grpo_loss(&clip, &x.b, b, NULL);
    x.b.old_lp = x.lp, grpo_loss(&clip, &x.b, c, &s);
    for (int64_t t = 0; t < x.first[5]; t++) {
        EXPECT_NEAR(a[t], b[t], 1e-15);
        EXPECT_NEAR(b[t], c[t], 0);
    }
    EXPECT_NEAR(s.ratio_min, 1, 0);
    EXPECT_NEAR(s.ratio_max, 1, 0);
    EXPECT_NEAR(s.drift_max, 0, 0);
    EXPECT_NEAR(s.clip_low + s.clip_high, 0, 0);
}

TEST(gradient_on_a_clip_bound_is_whole) {
    const int64_t first[2] = {0, 1};
    double lp[1] = {0}, old[1], dlp[1], A[1] = {2};
    GrpoLoss o = preset("trl");
    GrpoBatch b = {1, first, ones, lp, old, NULL, NULL, NULL, A, NULL, 1, 1, 1, 1};
    o.eps_low = 0, o.eps_high = 0, old[0] = 0; // ratio 1 is both bounds
    grpo_loss(&o, &b, dlp, NULL);
    EXPECT_NEAR(dlp[0], -2, 0);
    A[0] = -2, grpo_loss(&o, &b, dlp, NULL);
    EXPECT_NEAR(dlp[0], 2, 0);
    old[0] = -1e-9, grpo_loss(&o, &b, dlp, NULL);
    EXPECT_NEAR(dlp[0], 2, 1e-8); // above: A < 0 still follows
    A[0] = 2, grpo_loss(&o, &b, dlp, NULL);
    EXPECT_NEAR(dlp[0], 0, 0);
}

TEST(clip_higher_leaves_room_above_only) {
    const int64_t first[2] = {0, 1};
    double lp[1] = {log(1.25)}, old[1] = {0}, dlp[1], A[1] = {1};
    GrpoLoss trl = preset("trl"), dapo = preset("dapo");
    GrpoBatch b = {1, first, ones, lp, old, NULL, NULL, NULL, A, NULL, 1, 1, 1, 1};
    EXPECT_NEAR(grpo_loss(&trl, &b, dlp, NULL), -1.2, 1e-15);
    EXPECT_NEAR(dlp[0], 0, 0);
    EXPECT_NEAR(grpo_loss(&dapo, &b, dlp, NULL), -1.25, 1e-15);
    EXPECT_NEAR(dlp[0], -1.25, 1e-15);
}

TEST(sapo_is_on_policy_at_ratio_one) { // slope 4 s (1 - s) = 1 there, whatever tau: the gradient is -A
    const int64_t first[2] = {0, 1};
    double lp[1] = {-1}, dlp[1], A[1] = {1.5};
    GrpoLoss o = preset("trl");
    o.term = TERM_SAPO;
    GrpoBatch b = {1, first, ones, lp, NULL, NULL, NULL, NULL, A, NULL, 1, 1, 1, 1};
    EXPECT_NEAR(grpo_loss(&o, &b, dlp, NULL), -.5 * 4 * 1.5, 1e-15);
    EXPECT_NEAR(dlp[0], -1.5, 1e-15);
    A[0] = -1.5;
    EXPECT_NEAR(grpo_loss(&o, &b, dlp, NULL), .5 * 4 / 1.05 * 1.5, 1e-15);
    EXPECT_NEAR(dlp[0], 1.5, 1e-15);
}

TEST(cispo_caps_the_weight_of_a_token_and_keeps_its_gradient) {
    const int64_t first[2] = {0, 2};
    double lp[2] = {-1, -2}, old[2] = {-1 - log(2), -2}, dlp[2], A[1] = {1};
    GrpoLoss o = preset("trl");
    GrpoStats s;
    o.term = TERM_CISPO, o.cispo_cap = 1.5;
    GrpoBatch b = {1, first, ones, lp, old, NULL, NULL, NULL, A, NULL, 1, 1, 2, 2};
    EXPECT_NEAR(grpo_loss(&o, &b, dlp, &s), (1.5 * 1 + 1 * 2) / 2, 1e-15);
    EXPECT_NEAR(dlp[0], -.75, 1e-15);
    EXPECT_NEAR(dlp[1], -.5, 1e-15);
    EXPECT_NEAR(s.clip_cispo, .5, 0);
}

TEST(statistics_count_ratios_and_drift) {
    const int64_t first[4] = {0, 3, 5, 6};
    const uint8_t mask[6] = {1, 1, 0, 1, 1, 0};
    double lp[6] = {-1, -1, -1, -1, -1, -1}, old[6] = {-2, -1.5, -9, -.5, -1, -9}, dlp[6], A[3] = {1, -1, 1};
    GrpoLoss o = preset("trl");
    GrpoStats s;
    GrpoBatch b = {3, first, mask, lp, old, NULL, NULL, NULL, A, NULL, 1, 3, 4, 3};
    grpo_loss(&o, &b, dlp, &s); // ratios e, e^.5 (A > 0), e^-.5, 1 (A < 0)
    EXPECT_INT(s.tokens, 4);
    EXPECT_INT(s.ratios, 4);
    EXPECT_NEAR(s.clip_high, .5, 0);
    EXPECT_NEAR(s.clip_low, .25, 0);
    EXPECT_NEAR(s.drift_max, 1, 0);
    EXPECT_NEAR(s.drift_mean, .5, 1e-15);
    EXPECT_NEAR(s.ratio_max, exp(1), 1e-15);
    EXPECT_NEAR(s.ratio_min, exp(-.5), 1e-15);
    A[0] = -1; // above the upper bound with A < 0 is no clip
    grpo_loss(&o, &b, dlp, &s);
    EXPECT_NEAR(s.clip_high, 0, 0);
    A[1] = 1; // nor is below the lower one with A > 0
    grpo_loss(&o, &b, dlp, &s);
    EXPECT_NEAR(s.clip_low, 0, 0);
    o.ratio = RATIO_SEQUENCE, A[0] = 1; // one per sequence with tokens: e^.75 and e^-.25
    grpo_loss(&o, &b, dlp, &s);
    EXPECT_INT(s.ratios, 2);
    EXPECT_NEAR(s.clip_high, .5, 0);
    EXPECT_NEAR(s.ratio_mean, (exp(.75) + exp(-.25)) / 2, 1e-15);
}

TEST(accumulated_losses_are_parts_of_an_update) {
    for (int norm = 0; norm < GRPO_NORMS; norm++) {
        GrpoLoss o = preset("vlm-r1");
        Batch x;
        double once[40], half[40];
        o.norm = (enum GrpoNorm)norm;
        batch_fill(&x, &o, 8);
        x.b.accumulate = 1, x.b.sequences = 5, x.b.tokens = 17;
        double all = grpo_loss(&o, &x.b, once, NULL);
        x.b.accumulate = 2, x.b.sequences = 10, x.b.tokens = 34; // the update has another micro-batch like this one
        EXPECT_NEAR(grpo_loss(&o, &x.b, half, NULL), all / 2, 1e-14);
        for (int64_t t = 0; t < x.first[5]; t++) EXPECT_NEAR(half[t], once[t] / 2, 1e-15);
    }
}

TEST(luspo_multiplies_by_the_length) {
    const int64_t first[3] = {0, 4, 5};
    double lp[5] = {-1, -1, -1, -1, -1}, old[5] = {-1, -1, -1, -1, -1}, dlp[5], A[2] = {1, -1};
    GrpoLoss o = preset("trl");
    o.ratio = RATIO_SEQUENCE, o.norm = NORM_LUSPO;
    GrpoBatch b = {2, first, ones, lp, old, NULL, NULL, NULL, A, NULL, 1, 2, 5, 4};
    EXPECT_NEAR(grpo_loss(&o, &b, dlp, NULL), (-1.0 * 4 + 1.0 * 1) / 2, 1e-15);
    o.norm = NORM_GRPO;
    EXPECT_NEAR(grpo_loss(&o, &b, dlp, NULL), 0, 1e-15);
}

TEST(micro_batches_add_up_to_one_batch) {
    const char *names[] = {"surg-r1", "surgery-r1", "trl", "dapo"};
    for (int k = 0; k < 4; k++) {
        GrpoLoss o = preset(names[k]);
        Batch x;
        double whole[40], part[40], sum = 0;
        batch_fill(&x, &o, 4);
        double loss = grpo_loss(&o, &x.b, whole, NULL);
        for (int i = 0; i < 5; i++) { // one sequence at a time
            const int64_t n = x.first[i + 1] - x.first[i], first[2] = {0, n};
            GrpoBatch b = x.b;
            b.B = 1, b.first = first, b.mask += x.first[i], b.lp += x.first[i], b.old_lp += x.first[i];
            b.ref_lp += x.first[i], b.entropy += x.first[i], b.weight += x.first[i], b.advantage += i, b.flat += i;
            sum += grpo_loss(&o, &b, part, NULL);
            for (int64_t t = 0; t < n; t++) EXPECT_NEAR(part[t], whole[x.first[i] + t], 0);
        }
        EXPECT_NEAR(sum, loss, 1e-14);
    }
}

TEST(masked_tokens_do_not_matter) {
    GrpoLoss o = preset("vlm-r1");
    o.weights = WEIGHTS_ENTROPY;
    Batch x, y;
    double a[40], b[40];
    batch_fill(&x, &o, 5), batch_fill(&y, &o, 5);
    for (int64_t t = 0; t < x.first[5]; t++)
        if (!y.mask[t]) y.lp[t] = y.old[t] = y.ref[t] = y.entropy[t] = NAN;
    WeightStats ws;
    grpo_weights(&o, y.entropy, y.mask, y.first, 5, y.w, &ws);
    EXPECT_NEAR(grpo_loss(&o, &x.b, a, NULL), grpo_loss(&o, &y.b, b, NULL), 0);
    for (int64_t t = 0; t < x.first[5]; t++) EXPECT_NEAR(a[t], b[t], 0);
    EXPECT_NEAR(b[9], 0, 0);
}

TEST(batch_without_tokens_has_no_loss) {
    for (int norm = 0; norm < GRPO_NORMS; norm++) {
        GrpoLoss o = preset("vlm-r1");
        Batch x;
        GrpoStats s;
        double dlp[40];
        o.norm = (enum GrpoNorm)norm, o.weights = WEIGHTS_TOP;
        batch_fill(&x, &o, 6), memset(x.mask, 0, sizeof x.mask), x.b.tokens = 0;
        EXPECT_NEAR(grpo_loss(&o, &x.b, dlp, &s), 0, 0);
        for (int64_t t = 0; t < x.first[5]; t++) EXPECT_NEAR(dlp[t], 0, 0);
        EXPECT_INT(s.tokens, 0);
        EXPECT_INT(s.ratios, 0);
        EXPECT_NEAR(s.ratio_max, 1, 0);
    }
}

TEST(numbers_that_are_none_reach_the_loss) { // so that the update is skipped, and no minimum hides them
    for (int term = 0; term < GRPO_TERMS; term++)
        for (int ratio = 0; ratio < GRPO_RATIOS; ratio++)
            for (int which = 0; which < 6; which++) {
                GrpoLoss o = preset("vlm-r1");
                Batch x;
                double dlp[40], bad = which < 3 ? (double)NAN : -(double)INFINITY;
                o.term = (enum GrpoTerm)term, o.ratio = (enum GrpoRatio)ratio;
                batch_fill(&x, &o, 9);
                *(which % 3 == 0 ? &x.lp[1] : which % 3 == 1 ? &x.old[1] : &x.ref[1]) = bad;
                bool unused = which % 3 == 1 && term == TERM_REINFORCE;
                double loss = grpo_loss(&o, &x.b, dlp, NULL);
                if (isfinite(loss) && !unused)
                    FAIL("%g in %d hidden by %s, %s", bad, which % 3, grpo_term_names[term], grpo_ratio_names[ratio]);
            }
}

TEST(far_ratios_are_clamped_and_counted) {
    const int64_t first[2] = {0, 2};
    double lp[2] = {-1, -900}, old[2] = {-800, -1}, ref[2] = {-900, -1}, dlp[2], A[1] = {-1};
    GrpoLoss o = preset("vlm-r1");
    GrpoStats s;
    GrpoBatch b = {1, first, ones, lp, old, ref, NULL, NULL, A, NULL, 1, 1, 2, 2};
    double loss = grpo_loss(&o, &b, dlp, &s);
    EXPECT(isfinite(loss));
    EXPECT(isfinite(dlp[0]) && isfinite(dlp[1]));
    EXPECT_INT(s.ratio_clamped, 2);
    EXPECT_INT(s.kl_clamped, 2);
    EXPECT_NEAR(s.ratio_max / exp(20), 1, 1e-12);
    EXPECT_NEAR(s.ratio_min / exp(-20), 1, 1e-12);
    o.kl_limit = 10, grpo_loss(&o, &b, dlp, &s);
    EXPECT_NEAR(s.kl, 10, 1e-12);
}

TEST(kl_of_a_flat_group_is_kept_or_dropped) {
    GrpoLoss o = preset("vlm-r1");
    Batch x;
    double dlp[40];
    batch_fill(&x, &o, 7);
    x.A[0] = 0; // sequence 0 is of a flat group: no policy gradient
    grpo_loss(&o, &x.b, dlp, NULL);
    EXPECT(dlp[0] != 0);
    o.kl_in_flat_groups = false;
    grpo_loss(&o, &x.b, dlp, NULL);
    EXPECT(dlp[0] == 0);
    EXPECT(dlp[13] != 0);
}

TEST(other_terms) {
    const uint8_t mask[4] = {1, 0, 1, 1};
    double lp[4] = {-1, -50, -2, -3}, dlp[4] = {.5, .5, .5, .5}, dH[4];
    EXPECT_NEAR(grpo_sft_term(.1, lp, mask, 4, 6, dlp), .1, 1e-15); // .1 * 6 / 6
    EXPECT_NEAR(dlp[0], .5 - .1 / 6, 1e-15);
    EXPECT_NEAR(dlp[1], .5, 0);
    EXPECT_NEAR(grpo_bonus_term(.1, entropy4, mask, 4, 3, dH), -.1 * (.1 + .6 + 2.1) / 3, 1e-15);
    EXPECT_NEAR(dH[0], -.1 / 3, 1e-15);
    EXPECT_NEAR(dH[1], 0, 0);
    EXPECT_NEAR(grpo_sft_term(.1, lp, mask, 0, 0, dlp), 0, 0);
}

// -------------------------------------------------------------------------------------------------------- advantages
TEST(equal_rewards_teach_nothing) {
    GrpoLoss o = preset("surg-r1");
    double r[7] = {.1, .1, .1, .1, .1, .1, .1};
    o.eps = 0; // 0/0, or 1e-17 over 1e-17, without the rule
    for (int scale = 0; scale < GRPO_SCALES; scale++) {
        o.scale = (enum GrpoScale)scale;
        double *A = advantages_of(&o, r, 7);
        for (int i = 0; i < 7; i++) EXPECT(A[i] == 0);
        free(A);
    }
    o.scale = SCALE_GROUP, r[6] += 1e-5; // above the tolerance
    double *A = advantages_of(&o, r, 7);
    EXPECT_NEAR(A[6], sqrt(6), 1e-5);
    free(A);
}

TEST(advantages_without_deviation_and_leave_one_out) {
    GrpoLoss o = preset("trl");
    o.scale = SCALE_NONE; // Dr. GRPO
    double *A = advantages_of(&o, rewards4, 4);
    EXPECT_NEAR(A[0], .5, 1e-15);
    EXPECT_NEAR(A[3], -.25, 1e-15);
    free(A);
    o.baseline = BASELINE_OTHERS; // RLOO: 1 - (0 + .75 + .25) / 3
    A = advantages_of(&o, rewards4, 4);
    EXPECT_NEAR(A[0], 2.0 / 3, 1e-15);
    EXPECT_NEAR(A[1], 0 - 2.0 / 3, 1e-15);
    free(A);
}

TEST(batch_scale_divides_by_one_deviation) {
    const double r[4] = {0, 1, 0, 3}; // group means .5 and 1.5; the deviation of all four, ddof 0, is sqrt 1.5
    GrpoLoss o = preset("surg-r1");
    Advantages a;
    Err e = {0};
    o.scale = SCALE_BATCH, o.eps = 0;
    EXPECT(group_advantages(&o, r, one_weight, 1, 2, 2, &a, &e));
    EXPECT_NEAR(a.batch_deviation, sqrt(1.5), 1e-15);
    EXPECT_NEAR(a.advantage[1], .5 / sqrt(1.5), 1e-15);
    EXPECT_NEAR(a.advantage[2], -1.5 / sqrt(1.5), 1e-15);
    advantages_free(&a);
}

TEST(missing_rewards_are_left_out) {
    const double weights[2] = {1, .5}, r[8] = {1, NAN, NAN, NAN, 0, 2, 0, 0}; // sums 1, none, 1, 0
    GrpoLoss o = preset("surg-r1");
    Advantages a;
    Err e = {0};
    EXPECT(group_advantages(&o, r, weights, 2, 1, 4, &a, &e));
    EXPECT_NEAR(a.mean[0], 2.0 / 3, 1e-15);
    EXPECT(!a.counted[1]);
    EXPECT(a.advantage[1] == 0);
    EXPECT_NEAR(a.advantage[0], (1.0 / 3) / (sqrt(2) / 3 + 1e-6), 1e-12);
    EXPECT_NEAR(a.advantage[2], a.advantage[0], 0);
    advantages_free(&a);
    o.missing_as_zero = true;
    EXPECT(group_advantages(&o, r, weights, 2, 1, 4, &a, &e));
    EXPECT_NEAR(a.mean[0], .5, 0);
    EXPECT_NEAR(a.advantage[1], -1, 1e-5);
    advantages_free(&a);
    const double nothing[2] = {NAN, NAN};
    EXPECT(group_advantages(&o, nothing, one_weight, 1, 1, 2, &a, &e));
    EXPECT(a.flat[0]);
    advantages_free(&a);
}

TEST(normalised_rewards_weigh_alike) {
    // Two rewards of one group, one a hundred times larger: after normalisation each counts by its weight alone.
    const double weights[2] = {1, 1}, r[8] = {100, 0, 0, 0, 100, 1, 0, 1}, same[8] = {1, 0, 0, 0, 1, 1, 0, 1};
    GrpoLoss o = preset("trl");
    o.normalize_then_sum = true, o.eps = 0;
    Advantages a, b;
    Err e = {0};
    EXPECT(group_advantages(&o, r, weights, 2, 1, 4, &a, &e));
    EXPECT(group_advantages(&o, same, weights, 2, 1, 4, &b, &e));
    for (int i = 0; i < 4; i++) EXPECT_NEAR(a.advantage[i], b.advantage[i], 1e-12);
    // z = +-sqrt(3)/2 each; S = (0, -sqrt 3, sqrt 3, 0) / its deviation sqrt 2
    EXPECT_NEAR(b.advantage[2], sqrt(1.5), 1e-12);
    EXPECT_NEAR(b.advantage[1], -sqrt(1.5), 1e-12);
    EXPECT_NEAR(b.advantage[0], 0, 1e-12);
    advantages_free(&a);
    advantages_free(&b);
    // Opposite rewards cancel in the sum; here the group is flat only when no reward differs.
    const double opposite[8] = {1, 0, 0, 1, 1, 0, 0, 1}, equal[4] = {2, 3, 2, 3};
    EXPECT(group_advantages(&o, opposite, weights, 2, 1, 4, &a, &e));
    EXPECT(!a.flat[0]);
    EXPECT(a.advantage[0] == 0);
    advantages_free(&a);
    EXPECT(group_advantages(&o, equal, weights, 2, 1, 2, &a, &e));
    EXPECT(a.flat[0]);
    EXPECT(a.advantage[0] == 0);
    advantages_free(&a);
}

TEST(advantages_are_centred_and_blind_to_a_constant) {
    uint32_t k = 0;
    for (int round = 0; round < 10000; round++) {
        GrpoLoss o = preset(round & 1 ? "surg-r1" : "trl");
        int G = 2 + (int)draw(&k, 0, 15);
        double r[16], moved[16], sum = 0;
        for (int i = 0; i < G; i++) r[i] = rint(draw(&k, 0, 4)) / 2, moved[i] = r[i] + 3;
        double *A = advantages_of(&o, r, G), *M = advantages_of(&o, moved, G);
        for (int i = 0; i < G; i++) {
            sum += A[i];
            EXPECT_NEAR(A[i], M[i], 1e-9);
        }
        EXPECT_NEAR(sum, 0, 1e-5);
        free(A), free(M);
    }
}

TEST(infinite_reward_is_refused) {
    GrpoLoss o = preset("trl");
    Advantages a;
    Err e = {0};
    const double r[2] = {1, INFINITY};
    EXPECT(!group_advantages(&o, r, one_weight, 1, 1, 2, &a, &e));
    EXPECT_STR(e.code, "E-NU-06");
}

TEST(prompts_that_tell_something) {
    const double none[4] = {0, 0, 0, 0}, all[4] = {1, 1, 1, 1}, some[4] = {0, 1, 1, 1}, half[4] = {.5, .5, .5, .5},
                 missing[4] = {1, NAN, NAN, 1};
    GrpoLoss o = preset("dapo");
    EXPECT(o.dynamic_sampling);
    EXPECT(!group_informative(&o, none, 4) && !group_informative(&o, all, 4) && !group_informative(&o, half, 4));
    EXPECT(group_informative(&o, some, 4));
    EXPECT(!group_informative(&o, missing, 4));
    o.dynamic_high = .7; // EasyR1's filter, narrower
    EXPECT(!group_informative(&o, some, 4));
}

// --------------------------------------------------------------------------------------------------- tokens, weights
TEST(truncated_completions_leave_the_loss) {
    const int32_t ended[3] = {5, 6, 1}, cut[3] = {5, 6, 7}, only_end[1] = {1};
    EXPECT(!completion_truncated(ended, 3, 1, 0) && completion_truncated(cut, 3, 1, 0));
    EXPECT(!completion_truncated(only_end, 1, 1, 0));
    const int64_t first[5] = {0, 3, 6, 8, 9};
    const bool truncated[4] = {false, true, true, true};
    uint8_t mask[9];
    bool dropped[2];
    Completions c;
    GrpoLoss o = preset("dapo");
    completion_mask(&o, first, truncated, 4, 2, mask, dropped, &c);
    EXPECT_INT(c.tokens, 9);
    EXPECT_INT(c.dropped_groups, 0);
    EXPECT(!dropped[1]);
    EXPECT_NEAR(c.clipped_ratio, .75, 0);
    EXPECT_NEAR(c.mean_length, 2.25, 0);
    EXPECT_NEAR(c.mean_ended_length, 3, 0);
    o.mask_truncated = true;
    completion_mask(&o, first, truncated, 4, 2, mask, dropped, &c);
    EXPECT_INT(c.tokens, 3);
    EXPECT_INT(c.dropped_groups, 1);
    EXPECT(!dropped[0] && dropped[1]);
    for (int t = 0; t < 9; t++) EXPECT_INT(mask[t], t < 3);
}

TEST(entropy_weights_have_mean_one_at_any_size) {
    uint32_t k = 0;
    for (int round = 0; round < 10000; round++) {
        double H[64], w[64], sum = 0;
        int n = 1 + (int)draw(&k, 0, 63), counted = 0;
        double size = pow(10, draw(&k, -3, 6)), tau = pow(10, draw(&k, -2, 2)), cap = round % 3 ? 0 : draw(&k, 1, 5);
        uint8_t mask[64];
        for (int t = 0; t < n; t++) H[t] = draw(&k, 0, size), mask[t] = draw(&k, 0, 1) < .8, counted += mask[t];
        double fraction = entropy_weights(H, mask, n, tau, cap, w);
        for (int t = 0; t < n; t++) {
            sum += w[t];
            if (!(w[t] >= 0) || (!mask[t] && w[t] != 0) || (cap > 0 && w[t] > cap))
                FAIL("weight %g, cap %g", w[t], cap);
        }
        if (!counted) {
            EXPECT(isnan(fraction));
        } else {
            EXPECT_NEAR(sum / counted, 1, 1e-9);
            EXPECT(fraction <= 1 + 1e-12 && fraction >= 1.0 / counted - 1e-12);
        }
    }
}

TEST(entropy_weights_at_the_ends_of_tau) {
    const double H[4] = {.5, .5, .5, .5}, G[4] = {0, 1, 11.9, 3};
    double w[4];
    EXPECT_NEAR(entropy_weights(H, ones, 4, 1, 0, w), 1, 1e-15);
    for (int t = 0; t < 4; t++) EXPECT_NEAR(w[t], 1, 1e-15);
    EXPECT_NEAR(entropy_weights(G, ones, 4, .002, 0, w), .25, 1e-15);
    EXPECT_NEAR(w[2], 4, 1e-12);
    entropy_weights(G, ones, 4, 1e9, 0, w);
    EXPECT_NEAR(w[0], 1, 1e-7);
    // The cap hands what it takes to the next most uncertain token, which it then stops, too: 1.5, 1.5, and 1 is left.
    entropy_weights(G, ones, 4, .1, 1.5, w);
    EXPECT_NEAR(w[2], 1.5, 0);
    EXPECT_NEAR(w[3], 1.5, 0);
    EXPECT_NEAR(w[1], 1, 1e-3);
    EXPECT_NEAR(w[0], 0, 1e-3);
}

TEST(narrow_weights_are_told) {
    const int64_t first[3] = {0, 12, 24};
    double H[24] = {0}, w[24];
    WeightStats s;
    GrpoLoss o = preset("surg-r1");
    grpo_weights(&o, H, ones, first, 2, w, &s);
    EXPECT_INT(s.low, 0);
    EXPECT_NEAR(s.mean_fraction, 1, 1e-12);
    EXPECT_INT(warn_count("E-NU-11"), 0);
    H[3] = 10; // one token of twelve has nearly all the weight
    grpo_weights(&o, H, ones, first, 2, w, &s);
    EXPECT_INT(s.low, 1);
    EXPECT_INT(s.sequences, 2);
    EXPECT_NEAR(s.low_fraction, 1.0 / 12, 1e-3);
    EXPECT_INT(warn_count("E-NU-11"), 1);
}

TEST(top_mask_ranks_the_whole_batch) {
    const int64_t first[3] = {0, 2, 4};
    const double H[4] = {1, 2, 3, 4};
    double w[4];
    WeightStats s;
    GrpoLoss o = preset("trl");
    o.weights = WEIGHTS_TOP, o.top_quantile = .5;
    grpo_weights(&o, H, ones, first, 2, w, &s);
    EXPECT_NEAR(s.threshold, 2.5, 1e-15);
    EXPECT_INT(s.kept, 2);
    EXPECT(w[0] == 0 && w[1] == 0 && w[2] == 1 && w[3] == 1); // by sequence it would be 0 1 0 1
    const double eleven[11] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
    double v[11];
    EXPECT_NEAR(entropy_top_mask(eleven, ones, 11, 1 - (double).8f, v), 8, 0); // .8f * 10 is 8.0000001
    EXPECT(v[8] == 1 && v[7] == 0);
}

TEST(entropies_out_of_range_are_refused) {
    double H[3] = {-5e-7, 1, log(7) + 5e-7};
    Err e = {0};
    EXPECT(entropies_clamp(H, NULL, 3, 7, &e));
    EXPECT(H[0] == 0 && H[2] == log(7));
    H[1] = NAN;
    EXPECT(!entropies_clamp(H, NULL, 3, 7, &e));
    EXPECT_STR(e.code, "E-NU-09");
    H[1] = 2, e = (Err){0};
    EXPECT(!entropies_clamp(H, NULL, 3, 7, &e));
}

// ----------------------------------------------------------------------------------------------------------- presets
TEST(presets_are_those_of_their_sources) {
    GrpoLoss o = preset("surg-r1");
    EXPECT(o.ddof == 0 && o.weights == WEIGHTS_ENTROPY && o.tau == 1 && o.term == TERM_REINFORCE && o.beta == 0);
    EXPECT(o.norm == NORM_SEQUENCES);
    o = preset("vlm-r1");
    EXPECT(o.ddof == 1 && o.eps == 1e-4 && o.beta == .04 && o.eps_low == .2 && o.eps_high == .2 && o.norm == NORM_GRPO);
    o = preset("trl");
    EXPECT(o.beta == 0 && o.norm == NORM_DAPO && o.weights == WEIGHTS_OFF);
    o = preset("dapo");
    EXPECT(o.eps_high == .28 && o.dynamic_sampling && o.norm == NORM_DAPO);
    EXPECT(!grpo_preset(&o, "ppo"));
    int n = 0;
    for (const char *name; (name = grpo_preset_name(n)); n++) {
        Err e = {0};
        Text t = {0};
        JsonDoc doc;
        o = preset(name);
        EXPECT(grpo_loss_check(&o, AT(.file = "options"), &e));
        grpo_loss_print(&o, &t);
        if (json_parse(&doc, t.p, t.len, "preset", (JsonOptions){.refuse_duplicates = true}, &e)) {
            EXPECT(json_is(json_get(doc.root, "preset"), name));
            EXPECT(json_is(json_get(doc.root, "norm"), grpo_norm_names[o.norm]));
            bool dynamic = false;
            double tau = 0;
            EXPECT(json_bool(&doc, doc.root, "dynamic_sampling", true, &dynamic, &e) && dynamic == o.dynamic_sampling);
            EXPECT(json_double(&doc, doc.root, "tau", true, 0, 9, &tau, &e) && tau == o.tau);
            json_free(&doc);
        } else FAIL("%s", t.p);
        text_free(&t);
    }
    EXPECT_INT(n, 5);
}

TEST(settings_out_of_range_are_refused) {
    const struct {
        const char *field;
        size_t at;
        double v;
    } wrong[] = {
        {"tau", offsetof(GrpoLoss, tau), .001},       {"tau", offsetof(GrpoLoss, tau), NAN},
        {"w_max", offsetof(GrpoLoss, w_max), .5},     {"dual_clip", offsetof(GrpoLoss, dual_clip), 1.1},
        {"delta", offsetof(GrpoLoss, delta), .5},     {"top_quantile", offsetof(GrpoLoss, top_quantile), 0},
        {"eps_low", offsetof(GrpoLoss, eps_low), -1}, {"beta", offsetof(GrpoLoss, beta), INFINITY},
    };
    for (size_t k = 0; k < sizeof wrong / sizeof wrong[0]; k++) {
        GrpoLoss o = preset("trl");
        Err e = {0};
        memcpy((char *)&o + wrong[k].at, &wrong[k].v, sizeof(double));
        EXPECT(!grpo_loss_check(&o, AT(.file = "options"), &e));
        EXPECT_STR(e.code, "E-CF-02");
        EXPECT_STR(e.field, wrong[k].field);
    }
    GrpoLoss o = preset("trl");
    Err e = {0};
    o.norm = NORM_LUSPO;
    EXPECT(!grpo_loss_check(&o, AT(.file = "options"), &e));
    EXPECT_STR(e.field, "ratio");
}
