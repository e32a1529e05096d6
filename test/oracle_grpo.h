// oracle_grpo.h - comparing grpo.c with what trl and torch computed (part of test_oracle.c).
//
// What it is:     for each file of oracle/grpo, what reads its cases, and a head in double (log-probability, entropy and
//                 their gradients) for the cases that begin at logits. The device's own head is compared beside it.
// What it is not: a second implementation of anything in grpo.c.
// Read before:    test_oracle.c, oracle_metrics.h, grpo.c; the README beside the data for what each value means.

// Relative to max(1, |reference|); null there is NaN here.
static void compare_grpo(Case *c, Rule rule, const char *what, const double *got, int64_t n, const Json *want) {
    Numbers w = {0};
    numbers_of(want, &w);
    double worst = want && w.n == n ? 0 : INFINITY, limit = rules[rule].limit[device_index];
    double hurt = planted(what) ? fmax(10 * limit, 1) : 0;
    for (int64_t i = 0; i < n && i < w.n; i++) {
        double g = got[i] + (i == n / 2 ? hurt * fmax(1, fabs(got[i])) : 0);
        if (isnan(g) || isnan(w.p[i])) {
            if (isnan(g) != isnan(w.p[i]) || hurt != 0) worst = INFINITY;
        } else worst = fmax(worst, fabs(g - w.p[i]) / fmax(1, fabs(w.p[i])));
    }
    measure(c, rule, what, hurt != 0 && !n ? INFINITY : worst);
    free(w.p);
}
static void compare_grpo_value(Case *c, Rule rule, const char *what, double got, const Json *row, const char *key) {
    compare_grpo(c, rule, what, &got, 1, json_get(row, key));
}

static int name_index(Case *c, const char *const *names, int n, const char *name) {
    for (int k = 0; k < n; k++)
        if (!strcmp(names[k], name)) return k;
    case_broken(c, "\"%s\" is not known here", name);
    return 0;
}
static double *grpo_array(Case *c, const Json *row, const char *key, int64_t n) { // NULL when it is null
    const Json *v = json_get(row, key);
    if (!v || v->type == JSON_NULL) return NULL;
    Numbers x = numbers_get(row, key);
    if (x.n != n) case_broken(c, "\"%s\" has %lld numbers instead of %lld", key, (long long)x.n, (long long)n);
    x.p = grow_or_die(x.p, (size_t)(n > x.n ? n : x.n) + 1, sizeof *x.p, "numbers"); // no more is read than is there
    for (int64_t i = x.n; i < n; i++) x.p[i] = 0;
    return x.p;
}
static uint8_t *grpo_mask(Case *c, const Json *row, int64_t n) {
    double *x = grpo_array(c, row, "mask", n);
    uint8_t *out = alloc_or_die((size_t)n + 1, 1, "mask");
    for (int64_t i = 0; x && i < n; i++) out[i] = x[i] != 0;
    if (!x) case_broken(c, "no mask");
    free(x);
    return out;
}
static int64_t *grpo_first(const double *lengths, int64_t B) {
    int64_t *first = alloc_or_die((size_t)B + 1, sizeof *first, "sequence bounds");
    for (int64_t i = 0; i < B; i++) first[i + 1] = first[i] + (int64_t)lengths[i];
    return first;
}

// ------------------------------------------------------------------------------------------------------ loss_cases
static void grpo_loss_case(Case *c, const Json *row) {
    const Json *rows = json_get(row, "mask");
    int64_t B = count_of(rows), T = count_of(json_at_index(rows, 0)), N = B * T, whole_rows = 0;
    GrpoLoss o;
    grpo_preset(&o, "trl");
    bool cispo = !strcmp(text_of(row, "loss_type"), "cispo");
    double *lengths = alloc_or_die((size_t)B + 1, sizeof *lengths, "lengths");
    for (int64_t i = 0; i < B; i++) lengths[i] = (double)T;
    o.term = cispo ? TERM_CISPO : TERM_CLIP;
    o.norm = cispo ? NORM_DAPO : (enum GrpoNorm)name_index(c, grpo_norm_names, GRPO_NORMS, text_of(row, "loss_type"));
    o.ratio = (enum GrpoRatio)name_index(c, grpo_ratio_names, GRPO_RATIOS, text_of(row, "level"));
    o.eps_low = number_of(row, "eps_low", NAN), o.eps_high = number_of(row, "eps_high", NAN);
    o.cispo_cap = o.eps_high;
    o.delta = number_of(row, "delta", 0), o.beta = number_of(row, "beta", NAN);
    o.kl_unbiased = true_of(row, "kl_bias_correction");
    o.top_quantile = number_of(row, "top_entropy_quantile", NAN);
    o.weights = o.top_quantile < 1 ? WEIGHTS_TOP : WEIGHTS_OFF;
    uint8_t *mask = grpo_mask(c, row, N);
    int64_t *first = grpo_first(lengths, B);
    double *lp = grpo_array(c, row, "logp", N), *old = grpo_array(c, row, "old_logp", N);
    double *ref = grpo_array(c, row, "ref_logp", N), *H = grpo_array(c, row, "entropy", N);
    double *A = grpo_array(c, row, "adv", B), *w = alloc_or_die((size_t)N + 1, sizeof *w, "weights");
    double *dlp = alloc_or_die((size_t)N + 1, sizeof *dlp, "gradient");
    if (!lp || !H || !A) case_broken(c, "an input is missing");
    if (!c->broken[0]) {
        WeightStats ws;
        GrpoStats s;
        int64_t K = int_of(row, "accum");
        grpo_weights(&o, H, mask, first, B, w, &ws);
        GrpoBatch b = {B,
                       first,
                       mask,
                       lp,
                       old,
                       ref,
                       H,
                       w,
                       A,
                       NULL,
                       K,
                       K * B,
                       int_of(row, "num_items"),
                       int_of(row, "max_completion_length")};
        double loss = grpo_loss(&o, &b, dlp, &s);
        compare_grpo_value(c, GRPO, "loss", loss, row, "loss");
        compare_grpo(c, GRPO, "dlogp", dlp, N, json_get(row, "dlogp"));
        if (o.weights == WEIGHTS_TOP) {
            compare_grpo_value(c, GRPO_LOGGED, "entropy_threshold", ws.threshold, row, "entropy_threshold");
            compare_grpo(c, EXACT, "entropy_kept", w, N, json_get(row, "entropy_kept"));
        }
        for (int64_t i = 0; i < B; i++) {
            bool any = false;
            for (int64_t t = 0; t < T; t++) any |= mask[i * T + t];
            whole_rows += any;
        }
        // trl takes the mean of one column over all rows, masked ones too (the README beside the data).
        bool rows_agree = whole_rows == B || !whole_rows, means = rows_agree || T > 1;
        if (means && o.beta > 0) compare_grpo_value(c, GRPO, "mean_kl", s.kl, row, "mean_kl");
        if (means && whole_rows) compare_grpo_value(c, GRPO, "mean_entropy", s.entropy, row, "mean_entropy");
        if (means && (rows_agree || o.ratio == RATIO_TOKEN)) {
            if (cispo) compare_grpo_value(c, GRPO_LOGGED, "clip_cispo", s.clip_cispo, row, "clip_cispo");
            else {
                compare_grpo_value(c, GRPO_LOGGED, "clip_low", s.clip_low, row, "clip_low");
                compare_grpo_value(c, GRPO_LOGGED, "clip_high", s.clip_high, row, "clip_high");
                compare_grpo_value(c, GRPO_LOGGED, "clip_region", s.clip_low + s.clip_high, row, "clip_region");
            }
        }
    }
    free(mask), free(first), free(lengths), free(lp), free(old), free(ref), free(H), free(A), free(w), free(dlp);
}

// ------------------------------------------------------------------------------------------------- advantage_cases
static void grpo_advantage_case(Case *c, const Json *row) {
    GrpoLoss o;
    Advantages a;
    Err e = {0};
    Numbers weights = numbers_get(row, "weights"), rewards = numbers_get(row, "rewards");
    int64_t groups = int_of(row, "groups"), G = int_of(row, "G");
    grpo_preset(&o, "trl");
    o.scale = (enum GrpoScale)name_index(c, grpo_scale_names, GRPO_SCALES, text_of(row, "scale"));
    o.ddof = (int)int_of(row, "ddof"), o.eps = number_of(row, "eps", NAN);
    o.spread_tol = 0; // the reference asks for equal rewards
    o.missing_as_zero = !strcmp(text_of(row, "missing_rows"), "zero");
    if (groups < 1 || G < 1 || rewards.n != groups * G * weights.n)
        case_broken(c, "%lld rewards for %lld groups of %lld", (long long)rewards.n, (long long)groups, (long long)G);
    else if (!group_advantages(&o, rewards.p, weights.p, weights.n, groups, G, &a, &e)) case_refused(c, &e);
    else {
        int64_t n_want;
        int32_t *flat = alloc_or_die((size_t)groups, sizeof *flat, "flags");
        int32_t *want = labels_get(row, "zero_variance", -1, &n_want);
        for (int64_t g = 0; g < groups; g++) flat[g] = a.flat[g];
        compare_grpo(c, GRPO, "reward", a.reward, a.rows, json_get(row, "reward"));
        compare_grpo(c, GRPO, "mean", a.mean, groups, json_get(row, "mean"));
        compare_grpo(c, GRPO, "std", a.deviation, groups, json_get(row, "std"));
        compare_grpo_value(c, GRPO, "batch_std", a.batch_deviation, row, "batch_std");
        compare_grpo(c, GRPO, "adv", a.advantage, a.rows, json_get(row, "adv"));
        compare_ints(c, "zero_variance", flat, groups, want, n_want);
        free(flat), free(want), advantages_free(&a);
    }
    free(weights.p), free(rewards.p);
}

// ----------------------------------------------------------------------------------------------------- batch_cases
static void grpo_batch_case(Case *c, const Json *row) {
    const Json *list = json_get(row, "completions");
    int64_t B = count_of(list), longest = 0, i = 0, all = 0;
    double *lengths = alloc_or_die((size_t)B + 1, sizeof *lengths, "lengths");
    bool *truncated = alloc_or_die((size_t)B + 1, sizeof *truncated, "truncated");
    for (const Json *v = list ? list->child : NULL; v; v = v->next, i++) {
        int64_t n;
        Numbers x = {0};
        numbers_of(v, &x);
        int32_t *ids = alloc_or_die((size_t)x.n + 1, sizeof *ids, "ids");
        for (n = 0; n < x.n; n++) ids[n] = (int32_t)x.p[n];
        truncated[i] = completion_truncated(ids, n, (int32_t)int_of(row, "eos"), (int32_t)int_of(row, "pad"));
        lengths[i] = (double)n, all += n;
        if (n > longest) longest = n;
        free(ids), free(x.p);
    }
    GrpoLoss o;
    grpo_preset(&o, "trl");
    o.mask_truncated = true_of(row, "mask_truncated");
    int64_t *first = grpo_first(lengths, B);
    uint8_t *mask = alloc_or_die((size_t)all + 1, 1, "mask");
    double *padded = alloc_or_die((size_t)(B * longest) + 1, sizeof *padded, "mask");
    Completions s;
    completion_mask(&o, first, truncated, B, 1, mask, NULL, &s);
    for (i = 0; i < B; i++)
        for (int64_t t = first[i]; t < first[i + 1]; t++) padded[i * longest + t - first[i]] = mask[t];
    compare_grpo(c, EXACT, "mask", padded, B * longest, json_get(row, "mask"));
    compare_grpo_value(c, EXACT, "num_items", (double)s.tokens, row, "num_items");
    compare_grpo_value(c, GRPO_LOGGED, "clipped_ratio", s.clipped_ratio, row, "clipped_ratio");
    compare_grpo_value(c, GRPO_LOGGED, "mean_length", s.mean_length, row, "mean_length");
    // trl says 0 where no completion ended; a mean of nothing is no number here
    double ended = s.truncated == B && isnan(s.mean_ended_length) ? 0 : s.mean_ended_length;
    compare_grpo_value(c, GRPO_LOGGED, "mean_terminated_length", ended, row, "mean_terminated_length");
    free(lengths), free(truncated), free(first), free(mask), free(padded);
}

// ------------------------------------------------------------------------------------------------------- eq7_cases
// A row of logits in double: p [V], l of the target, H (eq. 5).
static void head_row(const double *logits, int64_t V, double temperature, int64_t target, double *p, double *l,
                     double *H) {
    double most = -INFINITY, sum = 0, weighted = 0;
    for (int64_t v = 0; v < V; v++) most = fmax(most, logits[v] / temperature);
    for (int64_t v = 0; v < V; v++) sum += p[v] = exp(logits[v] / temperature - most);
    for (int64_t v = 0; v < V; v++) p[v] /= sum, weighted += p[v] * (logits[v] / temperature - most);
    *l = logits[target] / temperature - most - log(sum), *H = log(sum) - weighted;
}

// The device's head on the same rows, and its backward pass on the gradient that grpo_loss gave.
static void compare_device_head(Case *c, const Json *row, const double *logits, const double *targets, int64_t N,
                                int64_t V, const double *dlp, const double *want_dlogits) {
    float *z = alloc_or_die((size_t)(N * V), sizeof *z, "logits"), *d = alloc_or_die((size_t)N, sizeof *d, "gradient");
    float *want = alloc_or_die((size_t)(N * V), sizeof *want, "gradient");
    float *row_out[3], inverse = (float)(1 / number_of(row, "temperature", NAN));
    int32_t *y = alloc_or_die((size_t)N, sizeof *y, "targets");
    for (int64_t i = 0; i < N * V; i++) z[i] = (float)logits[i], want[i] = (float)want_dlogits[i];
    for (int64_t i = 0; i < N; i++) d[i] = (float)dlp[i], y[i] = (int32_t)targets[i];
    for (int k = 0; k < 3; k++) row_out[k] = alloc_or_die((size_t)N, sizeof **row_out, "head");
    const struct {
        void *host;
        int cols;
        Type type;
    } parts[7] = {{z, (int)V, F32},     {y, 1, I32},          {d, 1, F32},     {row_out[0], 1, F32},
                  {row_out[1], 1, F32}, {row_out[2], 1, F32}, {z, (int)V, F32}};
    Mat host[7], on[7];
    for (int k = 0; k < 7; k++) {
        host[k] = mat(parts[k].host, (int)N, parts[k].cols, parts[k].type);
        on[k] = mat(device->alloc((size_t)N * (size_t)parts[k].cols * 4), (int)N, parts[k].cols, parts[k].type);
        if (k < 3) device->upload(on[k], host[k]);
    }
    logprob_forward(device, on[3], on[4], on[5], on[0], on[1], inverse);
    logprob_backward(device, on[6], on[0], on[1], on[4], on[2], inverse);
    for (int k = 3; k < 7; k++) device->download(host[k], on[k]), device->release(on[k].p);
    for (int k = 0; k < 3; k++) device->release(on[k].p);
    double *got = alloc_or_die((size_t)N, sizeof *got, "numbers");
    for (int64_t i = 0; i < N; i++) got[i] = row_out[0][i];
    compare_grpo(c, GRPO_FLOAT, "logp of the device", got, N, json_get(row, "logp"));
    for (int64_t i = 0; i < N; i++) got[i] = row_out[2][i];
    compare_grpo(c, GRPO_FLOAT, "entropy of the device", got, N, json_get(row, "entropy"));
    double worst = 0;
    for (int64_t i = 0; i < N * V; i++) {
        double g = z[i] + (planted("dlogits of the device") && i == N * V / 2 ? 1 : 0);
        worst = isnan(g) ? INFINITY : fmax(worst, fabs(g - want[i]) / fmax(1, fabs(want[i])));
    }
    measure(c, GRPO_FLOAT, "dlogits of the device", worst);
    for (int k = 0; k < 3; k++) free(row_out[k]);
    free(z), free(d), free(want), free(y), free(got);
}

static void grpo_eq7_case(Case *c, const Json *row) {
    int64_t G = int_of(row, "G"), V = int_of(row, "V"), masked = 0;
    double *lengths = grpo_array(c, row, "T", G), N_of_norm = number_of(row, "N", NAN),
           temperature = number_of(row, "temperature", NAN);
    if (!lengths || G < 1 || V < 1) {
        case_broken(c, "no sizes"), free(lengths);
        return;
    }
    int64_t *first = grpo_first(lengths, G), N = first[G];
    GrpoLoss o;
    grpo_preset(&o, "surg-r1");
    bool general = !strcmp(text_of(row, "objective"), "general");
    if (general) o.term = TERM_CLIP;
    o.weights = true_of(row, "entropy_weights") ? WEIGHTS_ENTROPY : WEIGHTS_OFF;
    o.tau = number_of(row, "tau", NAN), o.beta = general ? number_of(row, "beta", NAN) : 0;
    o.eps_low = number_of(row, "eps_low", NAN), o.eps_high = number_of(row, "eps_high", NAN);
    o.bonus_coef = number_of(row, "entropy_coef", NAN);
    const char *norm = text_of(row, "norm");
    o.norm = !strcmp(norm, "tokens") ? NORM_DAPO : !strcmp(norm, "max_length") ? NORM_DR_GRPO : NORM_SEQUENCES;
    uint8_t *mask = grpo_mask(c, row, N);
    for (int64_t t = 0; t < N; t++) masked += mask[t];
    double *A = grpo_array(c, row, "adv", G), *old = grpo_array(c, row, "old_logp", N);
    double *ref = grpo_array(c, row, "ref_logp", N), *logits = grpo_array(c, row, "logits", N * V);
    double *targets = grpo_array(c, row, "targets", N);
    double *p = alloc_or_die((size_t)(N * V) + 1, sizeof *p, "probabilities");
    double *out = alloc_or_die((size_t)(N * V) + 1, sizeof *out, "gradient of the logits");
    double *x[5]; // lp, H, w, dlp, dH
    for (int k = 0; k < 5; k++) x[k] = alloc_or_die((size_t)N + 1, sizeof **x, "per token");
    if (!A || !logits || !targets) case_broken(c, "an input is missing");
    for (int64_t t = 0; t < N && targets; t++)
        if (!(targets[t] >= 0 && targets[t] < (double)V)) case_broken(c, "a target is not in the vocabulary");
    if (!c->broken[0]) {
        Err e = {0};
        for (int64_t t = 0; t < N; t++)
            head_row(logits + t * V, V, temperature, (int64_t)targets[t], p + t * V, &x[0][t], &x[1][t]);
        if (!entropies_clamp(x[1], NULL, N, V, &e)) case_refused(c, &e);
        WeightStats ws;
        double *fraction = alloc_or_die((size_t)G, sizeof *fraction, "fractions");
        for (int64_t i = 0; i < G; i++)
            fraction[i] = entropy_weights(x[1] + first[i], mask + first[i], first[i + 1] - first[i], o.tau, 0, x[2]);
        if (o.weights == WEIGHTS_ENTROPY) compare_grpo(c, GRPO, "eff_frac", fraction, G, json_get(row, "eff_frac"));
        free(fraction);
        grpo_weights(&o, x[1], mask, first, G, x[2], &ws);
        // N = G L_max; the other two kinds of N are counted here.
        GrpoBatch b = {G,    first, mask, x[0], old, ref,    x[1],
                       x[2], A,     NULL, 1,    G,   masked, (int64_t)(N_of_norm / (double)G)};
        double loss = grpo_loss(&o, &b, x[3], NULL);
        loss += grpo_bonus_term(o.bonus_coef, x[1], mask, N, masked, x[4]);
        compare_grpo(c, GRPO, "logp", x[0], N, json_get(row, "logp"));
        compare_grpo(c, GRPO, "entropy", x[1], N, json_get(row, "entropy"));
        compare_grpo(c, GRPO, "weight", x[2], N, json_get(row, "weight"));
        compare_grpo_value(c, GRPO, "loss", loss, row, "loss");
        compare_grpo(c, GRPO, "dlogp", x[3], N, json_get(row, "dlogp"));
        for (int64_t i = 0; i < N * V; i++) // dl/dz_j = (1[j = y] - p_j) / T
            out[i] = x[3][i / V] * ((i % V == (int64_t)targets[i / V]) - p[i]) / temperature;
        compare_device_head(c, row, logits, targets, N, V, x[3], out);
        for (int64_t i = 0; i < N * V; i++) // dH/dz_j = -p_j (log p_j + H) / T; p log p = 0 where p underflows
            out[i] -= x[4][i / V] * (p[i] > 0 ? p[i] * (log(p[i]) + x[1][i / V]) : 0) / temperature;
        compare_grpo(c, GRPO, "dlogits", out, N * V, json_get(row, "dlogits"));
    }
    for (int k = 0; k < 5; k++) free(x[k]);
    free(lengths), free(first), free(mask), free(A), free(old), free(ref), free(logits), free(targets), free(p),
        free(out);
}

// ------------------------------------------------------------------------------------------------------ the folder
static const struct {
    const char *name; // of the file, without .jsonl
    void (*run)(Case *c, const Json *row);
} grpo_files[] = {
    {"advantage_cases", grpo_advantage_case},
    {"batch_cases", grpo_batch_case},
    {"eq7_cases", grpo_eq7_case},
    {"loss_cases", grpo_loss_case},
};

static void grpo_row(void *ctx, const Json *row, int64_t line) {
    size_t k = *(const size_t *)ctx;
    Case c;
    const char *id = text_of(row, "id");
    if (!case_begin(&c, "grpo/%s/%s", grpo_files[k].name, id[0] ? id : named("%lld", (long long)line))) return;
    grpo_files[k].run(&c, row);
    case_end(&c);
}

static void run_grpo(const char *dir) {
    Names files = names_in(dir, "", ".jsonl");
    size_t known = sizeof grpo_files / sizeof grpo_files[0];
    for (size_t k = 0; k < known; k++) {
        Path path = path_of(dir, named("%s.jsonl", grpo_files[k].name));
        if (file_exists(path.p)) rows_read(path.p, grpo_row, &k);
        else skip("grpo/%s: %s has no such file", grpo_files[k].name, dir);
    }
    for (size_t i = 0; i < files.n; i++) { // a file that nobody compares must not look like one that passed
        size_t k = 0;
        while (k < known && strcmp(files.p[i], named("%s.jsonl", grpo_files[k].name))) k++;
        if (k == known) skip("grpo/%s: nothing here reads it", files.p[i]);
    }
    names_free(&files);
}
