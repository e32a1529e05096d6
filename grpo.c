// grpo.c - group-relative policy optimisation: equations 2 to 7 of Surg-R1 and the switches that researchers expect.
//
// What it is:  short functions on per-token arrays. Rewards in, advantages out (eq. 3); entropies in, token weights out
//              (eq. 6); log-probabilities in, the loss (eq. 2, 7 and its general form) and d loss / d l out, which
//              model_pass takes as dlp. Equation 4 is surgery/reward.c; equation 5 is logprob_forward in ops.c.
// What it is not: sampling, the model, or the loop that trains.
// Read before: surgr1.h ("grpo.c"), surgery/reward.c.  Read next: train.c for what an update does with dlp.
//
// Notation: sequence i = 1..B of a batch, token t, mask m in {0, 1}, T_i = sum_t m_it; l, l_old, l_ref: log-probability
// of the sampled token under the policy, the policy that sampled it, the reference; A_i: advantage; w_it: token weight.
#include "surgr1.h"

// ------------------------------------------------------------------------------------------------------------ presets

const char *const grpo_baseline_names[GRPO_BASELINES] = {"mean", "others"};
const char *const grpo_scale_names[GRPO_SCALES] = {"group", "batch", "none"};
const char *const grpo_weights_names[GRPO_WEIGHTS] = {"off", "entropy", "top"};
const char *const grpo_term_names[GRPO_TERMS] = {"reinforce", "clip", "cispo", "sapo"};
const char *const grpo_ratio_names[GRPO_RATIOS] = {"token", "sequence", "sequence-token"};
const char *const grpo_norm_names[GRPO_NORMS] = {"sequences", "grpo", "bnpo", "dr_grpo", "dapo", "luspo"};

// What no preset says is off, but has the value its source uses once it is switched on.
static const GrpoLoss grpo_neutral = {
    .ddof = 1,
    .eps = 1e-4,
    .spread_tol = 1e-6, // a group of equal rewards that are not representable has a deviation of an ulp or so
    .dynamic_low = 0,
    .dynamic_high = 1,
    .tau = 1,
    .top_quantile = 0.2,
    .eps_low = 0.2,
    .eps_high = 0.2,
    .cispo_cap = 5,
    .sapo_plus = 1,
    .sapo_minus = 1.05,
    .log_ratio_limit = 20,
    .kl_in_flat_groups = true,
};

static void preset_surg_r1(GrpoLoss *o) { // eq. 3, 6 and 7 as the paper writes them; tau and eps are ours
    o->ddof = 0, o->eps = 1e-6;
    o->weights = WEIGHTS_ENTROPY;
    o->term = TERM_REINFORCE, o->norm = NORM_SEQUENCES;
}
static void preset_vlm_r1(GrpoLoss *o) { // 2504.07615: clip .2, KL .04, means of every sequence
    o->term = TERM_CLIP, o->norm = NORM_GRPO;
    o->beta = 0.04;
}
static void preset_trl(GrpoLoss *o) { // defaults of TRL in July 2026
    o->term = TERM_CLIP, o->norm = NORM_DAPO;
}
static void preset_dapo(GrpoLoss *o) { // 2503.14476 as verl runs it; its soft overlong punishment is a reward term
    o->eps = 1e-6;
    o->dynamic_sampling = true;
    o->term = TERM_CLIP, o->norm = NORM_DAPO;
    o->eps_high = 0.28;
}
static const struct {
    const char *name;
    void (*set)(GrpoLoss *o);
} presets[] = {
    {"surg-r1", preset_surg_r1},
    // No source gives Surgery-R1's numbers; earlier code of its authors is a fork of VLM-R1.
    {"surgery-r1", preset_vlm_r1},
    {"trl", preset_trl},
    {"vlm-r1", preset_vlm_r1},
    {"dapo", preset_dapo},
};
enum { PRESETS = sizeof presets / sizeof presets[0] };

const char *grpo_preset_name(int k) { return k >= 0 && k < PRESETS ? presets[k].name : NULL; }

bool grpo_preset(GrpoLoss *o, const char *name) {
    for (int k = 0; k < PRESETS; k++)
        if (!strcmp(presets[k].name, name)) {
            *o = grpo_neutral, o->preset = presets[k].name;
            presets[k].set(o);
            return true;
        }
    return false;
}

static bool bounded(double v, double low, double high) { return v >= low && v <= high; } // false for NaN

bool grpo_loss_check(const GrpoLoss *o, Where at, Err *e) {
    const struct {
        const char *name;
        double v, low, high;
        bool off; // 0 is allowed as well: off
    } numbers[] = {
        {"baseline", o->baseline, 0, GRPO_BASELINES - 1, false},
        {"scale", o->scale, 0, GRPO_SCALES - 1, false},
        {"weights", o->weights, 0, GRPO_WEIGHTS - 1, false},
        {"term", o->term, 0, GRPO_TERMS - 1, false},
        {"ratio", o->ratio, 0, GRPO_RATIOS - 1, false},
        {"norm", o->norm, 0, GRPO_NORMS - 1, false},
        {"ddof", o->ddof, 0, 1, false},
        {"eps", o->eps, 0, 1, false},
        {"spread_tol", o->spread_tol, 0, 1, false},
        {"dynamic_low", o->dynamic_low, -1e6, 1e6, false},
        {"dynamic_high", o->dynamic_high, o->dynamic_low, 1e6, false},
        {"tau", o->tau, 0.01, 100, false},
        {"w_max", o->w_max, 1, 1e6, true},
        {"top_quantile", o->top_quantile, 0.001, 1, false},
        {"eps_low", o->eps_low, 0, 1, false},
        {"eps_high", o->eps_high, 0, 1e6, false},
        {"delta", o->delta, 1, 1e6, true},
        {"dual_clip", o->dual_clip, 1 + o->eps_high, 1e6, true}, // below, it would undo the clip
        {"cispo_cap", o->cispo_cap, 1e-6, 1e6, false},
        {"sapo_plus", o->sapo_plus, 1e-3, 1e3, false},
        {"sapo_minus", o->sapo_minus, 1e-3, 1e3, false},
        {"log_ratio_limit", o->log_ratio_limit, 0.01, 80, true},
        {"beta", o->beta, 0, 1e6, false},
        {"kl_limit", o->kl_limit, 1e-3, 1e9, true},
        {"sft_coef", o->sft_coef, 0, 1e6, false},
        {"bonus_coef", o->bonus_coef, 0, 1e6, false},
    };
    for (size_t k = 0; k < sizeof numbers / sizeof numbers[0]; k++) {
        at.field = numbers[k].name;
        if (!bounded(numbers[k].v, numbers[k].low, numbers[k].high) && !(numbers[k].off && numbers[k].v == 0))
            return err_set(e, "E-CF-02", at, "expected %s%g to %g; found %g; do: choose a value in that range",
                           numbers[k].off ? "0 (off), or " : "", numbers[k].low, numbers[k].high, numbers[k].v);
    }
    at.field = "ratio";
    if (o->norm == NORM_LUSPO && o->ratio != RATIO_SEQUENCE)
        return err_set(e, "E-CF-02", at, "expected the sequence ratio for norm luspo; found %s; do: set ratio sequence",
                       grpo_ratio_names[o->ratio]);
    return true;
}

void grpo_loss_print(const GrpoLoss *o, Text *out) {
    const struct {
        const char *name, *word; // word: instead of a number; "": true or false
        double v;
    } fields[] = {
        {"preset", o->preset ? o->preset : "none", 0},
        {"baseline", grpo_baseline_names[o->baseline], 0},
        {"scale", grpo_scale_names[o->scale], 0},
        {"ddof", NULL, o->ddof},
        {"eps", NULL, o->eps},
        {"spread_tol", NULL, o->spread_tol},
        {"normalize_then_sum", "", o->normalize_then_sum},
        {"missing_as_zero", "", o->missing_as_zero},
        {"dynamic_sampling", "", o->dynamic_sampling},
        {"dynamic_low", NULL, o->dynamic_low},
        {"dynamic_high", NULL, o->dynamic_high},
        {"mask_truncated", "", o->mask_truncated},
        {"weights", grpo_weights_names[o->weights], 0},
        {"tau", NULL, o->tau},
        {"w_max", NULL, o->w_max},
        {"top_quantile", NULL, o->top_quantile},
        {"term", grpo_term_names[o->term], 0},
        {"ratio", grpo_ratio_names[o->ratio], 0},
        {"eps_low", NULL, o->eps_low},
        {"eps_high", NULL, o->eps_high},
        {"delta", NULL, o->delta},
        {"dual_clip", NULL, o->dual_clip},
        {"cispo_cap", NULL, o->cispo_cap},
        {"sapo_plus", NULL, o->sapo_plus},
        {"sapo_minus", NULL, o->sapo_minus},
        {"log_ratio_limit", NULL, o->log_ratio_limit},
        {"beta", NULL, o->beta},
        {"kl_unbiased", "", o->kl_unbiased},
        {"kl_in_flat_groups", "", o->kl_in_flat_groups},
        {"kl_limit", NULL, o->kl_limit},
        {"norm", grpo_norm_names[o->norm], 0},
        {"sft_coef", NULL, o->sft_coef},
        {"bonus_coef", NULL, o->bonus_coef},
    };
    for (size_t k = 0; k < sizeof fields / sizeof fields[0]; k++) {
        text_addf(out, "%c\"%s\":", k ? ',' : '{', fields[k].name);
        if (fields[k].word && !*fields[k].word) text_addf(out, fields[k].v != 0 ? "true" : "false");
        else if (fields[k].word) text_add_json_string(out, fields[k].word, strlen(fields[k].word));
        else text_add_json_number(out, fields[k].v);
    }
    text_addf(out, "}");
}

// ------------------------------------------------------------------------------------------- equation 3: advantages
//
//     r_i = sum_k weight_k r_ik                       (eq. 4; a missing reward is left out of the sum)
//     mu = 1/G sum_j r_j,   sigma = sqrt(1/(G - ddof) sum_j (r_j - mu)^2)
//     A_i = (r_i - mu) / (sigma + eps)                eq. 3: ddof 0. TRL, verl, VLM-R1, ms-swift: ddof 1
//     A_i = r_i - mu                                  Dr. GRPO (2503.20783): scale none
//     A_i = (r_i - mu) / (sigma_batch + eps)          scale batch: sigma over all rows
//     A_i = r_i - mean_{j != i} r_j = G/(G-1) (r_i - mu)     RLOO (2402.14740): baseline others, scale none
//     z_ik = (r_ik - mu_k)/(sigma_k + eps), S_i = sum_k weight_k z_ik, A_i = (S_i - mean S)/(sigma_batch(S) + eps)
//                                                     GDPO: normalize_then_sum
// G counts the rows that have a reward. A group without spread has A = 0 exactly, by max - min and not by sigma: seven
// rewards of 0.1 have a sigma of 1e-17, which eps 0 or 1e-9 would turn into advantages.

typedef struct Moments {
    double mean, deviation, low, high;
    int64_t n;
} Moments;
// Two passes in row order over the rows that are used.
static Moments moments(const double *x, const bool *use, int64_t n, int ddof) {
    Moments m = {.low = INFINITY, .high = -INFINITY};
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < n; i++)
        if (use[i]) sum += x[i], m.low = fmin(m.low, x[i]), m.high = fmax(m.high, x[i]), m.n++;
    if (m.n) m.mean = sum / (double)m.n;
    for (int64_t i = 0; i < n; i++)
        if (use[i]) squares += (x[i] - m.mean) * (x[i] - m.mean);
    if (m.n > ddof) m.deviation = sqrt(squares / (double)(m.n - ddof));
    return m;
}
static bool no_spread(const Moments *m, double tol) { return !m->n || m->high - m->low <= tol; }

// GDPO: a->advantage of every row that has a reward.
static void normalize_then_sum(const GrpoLoss *o, const double *rewards, const double *weights, int64_t K, int64_t G,
                               Advantages *a) {
    double *x = alloc_or_die((size_t)G, sizeof *x, "rewards of a group");
    bool *use = alloc_or_die((size_t)G, sizeof *use, "rewards of a group");
    for (int64_t g = 0; g < a->groups; g++) {
        bool spread = false;
        for (int64_t k = 0; k < K; k++) {
            for (int64_t j = 0; j < G; j++) x[j] = rewards[(g * G + j) * K + k], use[j] = !isnan(x[j]);
            Moments m = moments(x, use, G, o->ddof);
            if (no_spread(&m, o->spread_tol)) continue;
            spread = true;
            for (int64_t j = 0; j < G; j++)
                if (use[j]) a->advantage[g * G + j] += weights[k] * ((x[j] - m.mean) / (m.deviation + o->eps));
        }
        a->flat[g] = !spread; // rewards whose sum is flat may still differ
    }
    Moments batch = moments(a->advantage, a->counted, a->rows, o->ddof);
    bool none = no_spread(&batch, o->spread_tol);
    for (int64_t i = 0; i < a->rows; i++)
        if (none || !a->counted[i] || a->flat[i / G]) a->advantage[i] = 0;
        else a->advantage[i] = (a->advantage[i] - batch.mean) / (batch.deviation + o->eps);
    free(x), free(use);
}

bool group_advantages(const GrpoLoss *o, const double *rewards, const double *weights, int64_t K, int64_t groups,
                      int64_t G, Advantages *a, Err *e) {
    int64_t n = groups * G;
    *a = (Advantages){.rows = n, .groups = groups};
    a->reward = alloc_or_die((size_t)n, sizeof *a->reward, "rewards");
    a->advantage = alloc_or_die((size_t)n, sizeof *a->advantage, "advantages");
    a->counted = alloc_or_die((size_t)n, sizeof *a->counted, "advantages");
    a->mean = alloc_or_die((size_t)groups, sizeof *a->mean, "group means");
    a->deviation = alloc_or_die((size_t)groups, sizeof *a->deviation, "group deviations");
    a->flat = alloc_or_die((size_t)groups, sizeof *a->flat, "group spreads");
    for (int64_t i = 0; i < n; i++) {
        a->counted[i] = o->missing_as_zero;
        for (int64_t k = 0; k < K; k++) {
            double r = rewards[i * K + k];
            if (isnan(r)) continue;
            a->counted[i] = true, a->reward[i] += weights[k] * r;
        }
        if (isfinite(a->reward[i])) continue;
        double found = a->reward[i];
        advantages_free(a);
        return err_set(e, "E-NU-06", AT(.file = "grpo"),
                       "expected finite rewards; found %g in completion %lld of group %lld; do: report this", found,
                       (long long)(i % G), (long long)(i / G));
    }
    Moments batch = moments(a->reward, a->counted, n, o->ddof);
    a->batch_deviation = batch.deviation;
    for (int64_t g = 0; g < groups; g++) {
        int64_t first = g * G;
        Moments m = moments(a->reward + first, a->counted + first, G, o->ddof);
        a->mean[g] = m.mean, a->deviation[g] = m.deviation, a->flat[g] = no_spread(&m, o->spread_tol);
        if (a->flat[g] || o->normalize_then_sum) continue;
        double by = o->scale == SCALE_GROUP   ? m.deviation + o->eps
                    : o->scale == SCALE_BATCH ? batch.deviation + o->eps
                                              : 1;
        if (o->baseline == BASELINE_OTHERS) by *= (double)(m.n - 1) / (double)m.n;
        // The largest z-score of n numbers is sqrt(n - 1) with ddof 0 and (n - 1) / sqrt(n) with ddof 1.
        bool limited = o->scale == SCALE_GROUP && o->baseline == BASELINE_MEAN;
        double limit = limited ? sqrt((double)G) * (1 + 1e-9) : INFINITY;
        for (int64_t i = first; i < first + G; i++) {
            if (a->counted[i]) a->advantage[i] = (a->reward[i] - m.mean) / by;
            if (fabs(a->advantage[i]) <= limit) continue; // a NaN is none
            double found = a->advantage[i];
            advantages_free(a);
            return err_set(e, "E-NU-06", AT(.file = "grpo"),
                           "expected an advantage within +- sqrt(%lld); found %g in group %lld; do: report this",
                           (long long)G, found, (long long)g);
        }
    }
    if (o->normalize_then_sum) normalize_then_sum(o, rewards, weights, K, G, a);
    for (int64_t g = 0; g < groups; g++) a->flat_groups += a->flat[g];
    return true;
}

void advantages_free(Advantages *a) {
    free(a->reward), free(a->advantage), free(a->counted), free(a->mean), free(a->deviation), free(a->flat);
    *a = (Advantages){0};
}

// DAPO's dynamic sampling (2503.14476): 0 < #right < G, that is 0 < mean < 1 for answer rewards in {0, 1}. EasyR1's
// online filter is low .01, high .99. Rewards that are not 0/1 must differ, too: a group of IoU .5 teaches nothing. It
// looks at the answer reward, not at the sum: a format that differs does not make a hopeless prompt a useful one.
bool group_informative(const GrpoLoss *o, const double *answer_reward, int64_t G) {
    bool *use = alloc_or_die((size_t)G, sizeof *use, "answer rewards");
    for (int64_t i = 0; i < G; i++) use[i] = !isnan(answer_reward[i]);
    Moments m = moments(answer_reward, use, G, 0);
    free(use);
    return !no_spread(&m, o->spread_tol) && m.mean > o->dynamic_low && m.mean < o->dynamic_high;
}

// ------------------------------------------------------------------------------------------ which tokens take part

bool completion_truncated(const int32_t *ids, int64_t n, int32_t eos, int32_t pad) {
    return n == 0 || (ids[n - 1] != eos && ids[n - 1] != pad);
}

// The completion is the tokens up to and with the end token: all of them have mask 1. mask_truncated is DAPO's overlong
// filtering: sequences that the length limit cut get mask 0, before tokens are counted. Their rewards stay in the
// group's mean and deviation (eq. 3); a group of nothing else is dropped.
void completion_mask(const GrpoLoss *o, const int64_t *first, const bool *truncated, int64_t n, int64_t G,
                     uint8_t *mask, bool *dropped, Completions *c) {
    CHECK(G > 0 && n % G == 0, "%lld completions in groups of %lld", (long long)n, (long long)G);
    *c = (Completions){.n = n};
    int64_t all = first[n] - first[0], ended = 0;
    for (int64_t i = 0; i < n; i++) {
        int64_t length = first[i + 1] - first[i];
        bool used = !(o->mask_truncated && truncated[i]);
        for (int64_t t = first[i]; t < first[i + 1]; t++) mask[t] = used;
        if (used) c->tokens += length;
        if (truncated[i]) c->truncated++;
        else ended += length;
    }
    for (int64_t g = 0; g < n / G; g++) {
        bool none = o->mask_truncated;
        for (int64_t i = g * G; none && i < (g + 1) * G; i++) none = truncated[i];
        c->dropped_groups += none;
        if (dropped) dropped[g] = none;
    }
    if (n) c->clipped_ratio = (double)c->truncated / (double)n, c->mean_length = (double)all / (double)n;
    c->mean_ended_length = c->truncated < n ? (double)ended / (double)(n - c->truncated) : (double)NAN;
}

// ------------------------------------------------------------------------------------- equation 5: the entropy H_t
//
//     H_t = -sum_v p(v) log p(v)      over the full vocabulary, in nats
// logprob_forward (ops.c) computes it beside l_t, from the same distribution. Here only: is it one?

bool entropies_clamp(double *entropy, const uint8_t *mask, int64_t n, int64_t V, Err *e) {
    double most = log((double)V);
    for (int64_t t = 0; t < n; t++) {
        if (mask && !mask[t]) continue;
        if (!bounded(entropy[t], -1e-6, most + 1e-6))
            return err_set(
                e, "E-NU-09", AT(.file = "grpo"),
                "expected an entropy in 0 to ln %lld = %.3f; found %g at token %lld; do: look for non-finite "
                "weights with surgr1 check checkpoint",
                (long long)V, most, entropy[t], (long long)t);
        entropy[t] = fmin(fmax(entropy[t], 0), most);
    }
    return true;
}

// -------------------------------------------------------------------------------- equation 6: entropy weights w_t
//
//     w_t = exp(H_t / tau) / (1/L sum_j exp(H_j / tau)) = L exp((H_t - max H) / tau) / sum_j exp((H_j - max H) / tau)
// over the L tokens with mask 1, so sum_t w_t = L. The raw exponential is never formed: it overflows at H / tau > 709.
// w is a constant of the loss; no gradient goes through it (method.md 1.6).
// Our cap: w_t = min(w_max, c exp(H_t / tau)) with the c that keeps sum_t w_t = L. Every round fixes the tokens above
// the cap and shares what is left among the others by eq. 6; a round that fixes none is the last.

double entropy_weights(const double *entropy, const uint8_t *mask, int64_t n, double tau, double w_max, double *w) {
    int64_t L = 0, capped = 0;
    for (int64_t t = 0; t < n; t++) w[t] = 0, L += mask[t];
    if (!L) return (double)NAN;
    for (int64_t found = 1; found && capped < L;) {
        double most = -INFINITY, sum = 0;
        for (int64_t t = 0; t < n; t++)
            if (mask[t] && !(w_max > 0 && w[t] >= w_max)) most = fmax(most, entropy[t]);
        for (int64_t t = 0; t < n; t++)
            if (mask[t] && !(w_max > 0 && w[t] >= w_max)) sum += exp((entropy[t] - most) / tau);
        double left = (double)L - (double)capped * w_max, log_share = log(fmax(left, 0)) - log(sum);
        found = 0;
        for (int64_t t = 0; t < n; t++) {
            if (!mask[t] || (w_max > 0 && w[t] >= w_max)) continue;
            w[t] = exp((entropy[t] - most) / tau + log_share);
            if (w_max > 0 && w[t] >= w_max) w[t] = w_max, found++;
        }
        capped += found;
    }
    double sum = 0, squares = 0;
    for (int64_t t = 0; t < n; t++) sum += w[t], squares += w[t] * w[t];
    CHECK(!(fabs(sum / (double)L - 1) > 1e-5), "the mean of %lld weights is %g", (long long)L, sum / (double)L);
    return sum * sum / ((double)L * squares);
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

// The top-20 % mask of 2506.01939: keep H_t >= quantile_{1-q}, by linear interpolation between the sorted values. Ties
// are kept. The normalisers still count every token with mask 1 (as TRL does), so q = 0.2 also shrinks the term about
// five-fold.
double entropy_top_mask(const double *entropy, const uint8_t *mask, int64_t n, double q, double *w) {
    int64_t L = 0;
    for (int64_t t = 0; t < n; t++) w[t] = 0, L += mask[t];
    if (!L) return (double)NAN;
    double *sorted = alloc_or_die((size_t)L, sizeof *sorted, "entropies");
    int64_t k = 0;
    for (int64_t t = 0; t < n; t++)
        if (mask[t]) sorted[k++] = entropy[t];
    qsort(sorted, (size_t)L, sizeof *sorted, by_value);
    double rank = (1 - q) * (double)(L - 1), whole = rint(rank);
    if (fabs(rank - whole) <= 1e-6) rank = whole; // 0.8f * 10 is 8.0000001, and would lose the token at 8
    int64_t below = (int64_t)floor(rank), above = (int64_t)ceil(rank);
    double threshold = sorted[below] + (rank - (double)below) * (sorted[above] - sorted[below]);
    free(sorted);
    for (int64_t t = 0; t < n; t++) w[t] = mask[t] && entropy[t] >= threshold;
    return threshold;
}

void grpo_weights(const GrpoLoss *o, const double *entropy, const uint8_t *mask, const int64_t *first, int64_t B,
                  double *w, WeightStats *s) {
    *s = (WeightStats){.threshold = NAN, .mean_fraction = NAN, .low_fraction = NAN};
    int64_t N = first[B];
    double sum = 0;
    if (o->weights == WEIGHTS_TOP) s->threshold = entropy_top_mask(entropy, mask, N, o->top_quantile, w);
    for (int64_t i = 0; i < B; i++) {
        int64_t at = first[i], n = first[i + 1] - at;
        double fraction = NAN;
        if (o->weights == WEIGHTS_ENTROPY)
            fraction = entropy_weights(entropy + at, mask + at, n, o->tau, o->w_max, w + at);
        else if (o->weights == WEIGHTS_OFF)
            for (int64_t t = at; t < at + n; t++) w[t] = mask[t];
        if (isnan(fraction)) continue;
        s->low_fraction = fmin(s->low_fraction, fraction); // fmin passes over NaN
        sum += fraction, s->sequences++, s->low += fraction < 0.1;
    }
    if (s->sequences) s->mean_fraction = sum / (double)s->sequences;
    for (int64_t t = 0; t < N; t++) s->kept += w[t] > 0;
    if (s->low)
        warn("E-NU-11", AT(.file = "grpo", .field = "tau"),
             "expected an effective token fraction of 0.1 or more; found %.3f, and less than 0.1 in %lld of %lld "
             "completions; do: raise tau",
             s->low_fraction, (long long)s->low, (long long)s->sequences);
}

// ------------------------------------------------------------------------------------- equations 2 and 7: the loss
//
//     loss = sum_i sum_t Z_i m_it (w_it P_it + beta k3_it)
//
// Policy term P, by o->term:
//     reinforce   -A l                                 J of eq. 2 (w = 1) and of eq. 7 (w of eq. 6), sign turned; knows
//                                                      no l_old, so it is for one update per rollout
//     clip        -min(min(rho, delta) A, clip(rho, 1 - eps_low, 1 + eps_high) A)
//                                                      PPO 1707.06347, GRPO 2402.03300; clip-higher 2503.14476;
//                                                      delta: TRL; dual clip 1912.09729: delta = c where A < 0
//     cispo       -sg(min(rho, eps_max)) A l           2506.13585; sg = a constant of the gradient
//     sapo        -4/tau_A sigma(tau_A (rho - 1)) A    tau_A = tau_plus where A > 0, else tau_minus
// Ratio rho, by o->ratio; without l_old it is 1, with the gradient of exp(l - sg(l)):
//     token           exp(l - l_old)
//     sequence        exp(1/T_i sum_t m (l - l_old))           GSPO 2507.18071: one for all tokens of i
//     sequence-token  the same value, but d rho / d l_t = rho at every token: sg(rho_i) exp(l - sg(l))
// KL (Schulman's k3): u = l_ref - l, k3 = e^u - u - 1; kl_unbiased: times rho, which no clip touches.
// Normaliser Z_i, by o->norm (L_max and the counts of the whole update of K micro-batches of B come with the batch):
//     sequences   1 / (K B)            eq. 7: sum over tokens, mean over sequences
//     grpo        1 / (K B T_i)        2402.03300: mean over sequences of their means
//     bnpo        1 / (K sum_i T_i)    mean over micro-batches of their token means
//     dr_grpo     1 / (K B L_max)      2503.20783
//     dapo        1 / (all tokens of the update)      2503.14476; CISPO's as well
//     luspo       1 / (K B)            with the sequence ratio: P_i times T_i, mean over sequences

// rho = exp(d) with d within the limit; slope = d rho / d d.
typedef struct Ratio {
    double rho, slope;
    bool clamped;
} Ratio;
static Ratio ratio_of(double d, double limit) {
    if (!isfinite(d)) return (Ratio){NAN, NAN, false}; // a minimum or a clamp would hide it
    if (limit > 0 && fabs(d) > limit) return (Ratio){exp(copysign(limit, d)), 0, true};
    return (Ratio){exp(d), exp(d), false};
}

typedef struct Term {
    double value, d_rho, d_lp; // P; dP/d rho; dP/dl at fixed rho
} Term;

// P = -min(c1 A, c2 A) with c1 = min(rho, cap), c2 = clip(rho). For A >= 0 it follows rho up to the smaller of both
// upper bounds, for A < 0 from the lower bound up to the larger one. On a bound the gradient is whole.
static Term term_clip(const GrpoLoss *o, double rho, double A) {
    double low = 1 - o->eps_low, high = 1 + o->eps_high, cap = o->delta > 0 ? o->delta : INFINITY;
    if (A < 0 && o->dual_clip > 0) cap = fmin(cap, o->dual_clip);
    double c1 = fmin(rho, cap), c2 = fmin(fmax(rho, low), high);
    bool follows = A >= 0 ? rho <= fmin(cap, high) : rho >= low && rho <= fmax(cap, high);
    return (Term){-fmin(c1 * A, c2 * A), follows ? -A : 0, 0};
}
static Term term_cispo(const GrpoLoss *o, double rho, double lp, double A) {
    double c = fmin(rho, o->cispo_cap);
    return (Term){-c * A * lp, 0, -c * A};
}
static Term term_sapo(const GrpoLoss *o, double rho, double A) {
    double tau = A > 0 ? o->sapo_plus : o->sapo_minus, s = 1 / (1 + exp(-tau * (rho - 1)));
    return (Term){-4 / tau * s * A, -4 * s * (1 - s) * A, 0};
}
static Term policy_term(const GrpoLoss *o, double rho, double lp, double A) {
    if (isnan(rho)) return (Term){NAN, NAN, NAN};
    switch (o->term) {
    case TERM_CLIP: return term_clip(o, rho, A);
    case TERM_CISPO: return term_cispo(o, rho, lp, A);
    case TERM_SAPO: return term_sapo(o, rho, A);
    case TERM_REINFORCE: break;
    }
    return (Term){-A * lp, 0, -A};
}

typedef struct Kl {
    double k3, d_lp;
    bool clamped;
} Kl;
static Kl kl_of(const GrpoLoss *o, double u) {
    if (!isfinite(u)) return (Kl){NAN, NAN, false};
    Kl k = {.clamped = o->log_ratio_limit > 0 && fabs(u) > o->log_ratio_limit};
    if (k.clamped) u = copysign(o->log_ratio_limit, u);
    k.k3 = fmax(0, expm1(u) - u), k.d_lp = k.clamped ? 0 : -expm1(u);
    if (o->kl_limit > 0 && k.k3 > o->kl_limit) k = (Kl){o->kl_limit, 0, true};
    return k;
}

// 1 / Z_i: what sequence i is divided by.
static double divisor(const GrpoLoss *o, const GrpoBatch *b, int64_t tokens_i, int64_t tokens_batch) {
    switch (o->norm) {
    case NORM_GRPO: return (double)b->sequences * (double)tokens_i;
    case NORM_BNPO: return (double)b->accumulate * (double)tokens_batch;
    case NORM_DR_GRPO: return (double)b->sequences * (double)b->max_tokens;
    case NORM_DAPO: return (double)b->tokens;
    case NORM_SEQUENCES:
    case NORM_LUSPO: break;
    }
    return (double)b->sequences;
}

double grpo_loss(const GrpoLoss *o, const GrpoBatch *b, double *dlp, GrpoStats *s) {
    GrpoStats own;
    if (!s) s = &own;
    *s = (GrpoStats){.ratio_min = INFINITY, .ratio_max = -INFINITY};
    bool by_token = o->ratio == RATIO_TOKEN, pooled = o->ratio == RATIO_SEQUENCE;
    int64_t clip_low = 0, clip_high = 0, clip_cispo = 0, kl_tokens = 0;
    double policy = 0, kl_part = 0, kl_sum = 0, entropy = 0, ratio_sum = 0, drift = 0;
    for (int64_t t = 0; t < b->first[b->B]; t++) dlp[t] = 0, s->tokens += b->mask[t];
    for (int64_t i = 0; i < b->B; i++) {
        int64_t from = b->first[i], to = b->first[i + 1], n = 0;
        double A = b->advantage[i], mean_d = 0, pool = 0;
        for (int64_t t = from; t < to; t++) {
            if (!b->mask[t]) continue;
            double d = b->old_lp ? b->lp[t] - b->old_lp[t] : 0;
            mean_d += d, drift += fabs(d), s->drift_max = fmax(s->drift_max, fabs(d)), n++;
        }
        if (!n) continue;
        double divide = divisor(o, b, n, s->tokens);
        CHECK(divide > 0, "norm %s of %lld tokens divides by %g", grpo_norm_names[o->norm], (long long)n, divide);
        bool with_kl = o->beta > 0 && b->ref_lp && (o->kl_in_flat_groups || !(b->flat && b->flat[i]));
        Ratio r = by_token ? (Ratio){0} : ratio_of(mean_d / (double)n, o->log_ratio_limit);
        double policy_i = 0, kl_i = 0;
        for (int64_t t = from, seen = 0; t < to; t++) {
            if (!b->mask[t]) continue;
            if (by_token) r = ratio_of(b->old_lp ? b->lp[t] - b->old_lp[t] : 0, o->log_ratio_limit);
            if (by_token || !seen++) { // a new ratio
                s->ratios++, s->ratio_clamped += r.clamped, ratio_sum += r.rho;
                s->ratio_min = fmin(s->ratio_min, r.rho), s->ratio_max = fmax(s->ratio_max, r.rho);
                clip_low += A < 0 && r.rho < 1 - o->eps_low;
                clip_high += A > 0 && r.rho > 1 + o->eps_high;
                clip_cispo += A > 0 && r.rho > o->cispo_cap;
            }
            double w = b->weight ? b->weight[t] : 1, along = 0; // along: d (w P + beta k3 rho) / d rho
            if (w != 0) {                                       // a token of weight 0 is not looked at
                Term p = policy_term(o, r.rho, b->lp[t], A);
                policy_i += w * p.value, dlp[t] += w * p.d_lp, along += w * p.d_rho;
            }
            if (with_kl) {
                Kl k = kl_of(o, b->ref_lp[t] - b->lp[t]);
                double times = o->kl_unbiased ? r.rho : 1;
                kl_i += times * k.k3, dlp[t] += o->beta * times * k.d_lp, s->kl_clamped += k.clamped, kl_tokens++;
                if (o->kl_unbiased) along += o->beta * k.k3;
            }
            if (pooled) pool += along * r.slope;
            else dlp[t] += along * r.slope;
            if (b->entropy) entropy += b->entropy[t];
        }
        // The sequence ratio depends on every l of i by 1 / T_i.
        for (int64_t t = from; t < to; t++)
            if (b->mask[t]) dlp[t] = (dlp[t] + pool / (double)n) / divide;
        policy += policy_i / divide, kl_part += o->beta * kl_i / divide, kl_sum += kl_i;
    }
    double ratios = (double)(s->ratios ? s->ratios : 1), tokens = (double)(s->tokens ? s->tokens : 1);
    if (!s->ratios) s->ratio_min = s->ratio_max = 1;
    s->policy = policy, s->kl = kl_sum / (double)(kl_tokens ? kl_tokens : 1), s->entropy = entropy / tokens;
    s->ratio_mean = s->ratios ? ratio_sum / ratios : 1, s->drift_mean = drift / tokens;
    s->clip_low = (double)clip_low / ratios, s->clip_high = (double)clip_high / ratios;
    s->clip_cispo = (double)clip_cispo / ratios;
    return policy + kl_part;
}

// ------------------------------------------------------------------------------------------------------- other terms

// Equation 1 on demonstrations that share the update: keeps a policy near its cold start.
double grpo_sft_term(double coef, const double *lp, const uint8_t *mask, int64_t n, int64_t tokens, double *dlp) {
    double sum = 0;
    for (int64_t t = 0; t < n; t++) {
        if (!mask[t]) continue;
        CHECK(tokens > 0, "demonstrations without a token count");
        sum += lp[t], dlp[t] -= coef / (double)tokens;
    }
    return sum == 0 ? 0 : -coef * sum / (double)tokens;
}

// Entropy bonus (1602.01783): the loss falls as the mean entropy rises.
double grpo_bonus_term(double coef, const double *entropy, const uint8_t *mask, int64_t n, int64_t tokens,
                       double *dentropy) {
    double sum = 0;
    for (int64_t t = 0; t < n; t++) {
        dentropy[t] = 0;
        if (!mask[t]) continue;
        CHECK(tokens > 0, "entropies without a token count");
        sum += entropy[t], dentropy[t] = -coef / (double)tokens;
    }
    return sum == 0 ? 0 : -coef * sum / (double)tokens;
}
