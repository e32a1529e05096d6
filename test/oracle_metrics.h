// oracle_metrics.h - comparing surgery/metrics.c with other people's libraries (part of test_oracle.c).
//
// What it is:     for each kind of file in oracle/metrics, what reads its cases and which of our numbers stands against
//                 which of theirs. null there and NaN (or an infinite value) here are "no value" and must agree.
// What it is not: a second implementation: nothing is computed here but the layout of arrays.
// Read before:    test_oracle.c, surgery/metrics.c; the README beside the data for what each value means.

// ------------------------------------------------------------------------------------------------- numbers from JSON
typedef struct Numbers {
    double *p;
    int64_t n, room;
} Numbers;
static void numbers_add(Numbers *a, double v) {
    if (a->n == a->room) {
        a->room = 2 * a->room + 16;
        a->p = grow_or_die(a->p, (size_t)a->room, sizeof *a->p, "numbers");
    }
    a->p[a->n++] = v;
}
static void numbers_of(const Json *v, Numbers *out) { // all of a value, inner lists in place; what is no number: NaN
    if (v && v->type == JSON_ARRAY)
        for (const Json *x = v->child; x; x = x->next) numbers_of(x, out);
    else if (v) numbers_add(out, v->type == JSON_NUMBER ? v->number : (double)NAN);
}
static Numbers numbers_get(const Json *object, const char *key) {
    Numbers out = {0};
    numbers_of(json_get(object, key), &out);
    return out;
}
// Whole numbers of a list (or lists); what is none becomes `other`.
static int32_t *labels_get(const Json *object, const char *key, int32_t other, int64_t *n) {
    Numbers x = numbers_get(object, key);
    int32_t *out = alloc_or_die((size_t)x.n, sizeof *out, "labels");
    for (int64_t i = 0; i < x.n; i++) out[i] = fabs(x.p[i]) < 1e9 && x.p[i] == rint(x.p[i]) ? (int32_t)x.p[i] : other;
    *n = x.n;
    free(x.p);
    return out;
}
static int64_t count_of(const Json *list) { return list && list->type == JSON_ARRAY ? list->count : 0; }
static const Json *json_at_index(const Json *list, int64_t i) {
    const Json *v = list ? list->child : NULL;
    while (v && i--) v = v->next;
    return v;
}

// The limit is relative, below 1e-3 absolute: values near zero are differences of larger ones.
static void compare_values(Case *c, const char *what, const double *got, int64_t n, const Json *want) {
    Numbers w = {0};
    numbers_of(want, &w);
    double worst = want && w.n == n ? 0 : INFINITY, hurt = planted(what) ? 1e-6 : 0;
    char name[120];
    snprintf(name, sizeof name, "%s", what);
    for (int64_t i = 0; i < n && i < w.n; i++) {
        double g = got[i], error;
        if (hurt != 0 && i == n / 2) g = isfinite(g) ? g + hurt * fmax(1, fabs(g)) : 0;
        if (!isfinite(g) || isnan(w.p[i])) error = isfinite(g) == !isnan(w.p[i]) ? 0 : INFINITY;
        else error = fabs(g - w.p[i]) / fmax(fabs(w.p[i]), 1e-3);
        if (error <= worst) continue;
        worst = error;
        if (error > rules[METRIC].limit[device_index])
            snprintf(name, sizeof name, "%s [%lld] %.12g for %.12g", what, (long long)i, g, w.p[i]);
    }
    if (hurt != 0 && !n) worst = INFINITY;
    measure(c, METRIC, worst > rules[METRIC].limit[device_index] ? name : what, worst);
    free(w.p);
}
static void compare_value(Case *c, const char *what, double got, const Json *object, const char *key) {
    compare_values(c, what, &got, 1, json_get(object, key));
}
// A value that may be anywhere between two.
static void compare_between(Case *c, const char *what, double got, double low, double high) {
    if (planted(what)) got += 1 + fabs(high);
    measure(c, METRIC, what, got >= low && got <= high ? 0 : fmax(low - got, got - high));
}
static PRINTF_LIKE(1, 2) const char *named(const char *fmt, ...) { // in one of 64 rotating buffers
    static char buffers[64][100];
    static int next;
    char *out = buffers[next++ & 63];
    va_list args;
    va_start(args, fmt);
    vsnprintf(out, sizeof buffers[0], fmt, args);
    va_end(args);
    return out;
}

// ----------------------------------------------------------------------------------------------------------- triplets
static void metric_triplet_map(Case *c, const Json *row) {
    const Json *rows = json_get(row, "rows"), *ids = json_get(row, "ids");
    double got[TRIPLETS][6];
    for (int id = 0; id < TRIPLETS; id++) {
        Triplet x = triplet_at(id);
        got[id][0] = triplet_id(x), got[id][1] = x.i, got[id][2] = x.v, got[id][3] = x.t;
        got[id][4] = triplet_column_id(PART_IV, triplet_column(PART_IV, id));
        got[id][5] = triplet_column_id(PART_IT, triplet_column(PART_IT, id));
    }
    compare_values(c, "rows", got[0], TRIPLETS * 6, rows);
    for (int part = 0; part < TRIPLET_PARTS; part++) {
        double column[TRIPLETS];
        int n = triplet_columns(part);
        for (int k = 0; k < n; k++) column[k] = triplet_column_id(part, k);
        compare_values(c, named("ids of %s", triplet_part_names[part]), column, n,
                       json_get(ids, triplet_part_names[part]));
    }
}

static bool triplet_video(Case *c, const Json *video, const char *format, TripletVideo *out) {
    const Json *targets = json_get(video, "targets"), *scores = json_get(video, "scores");
    int64_t frames = count_of(targets), f = 0;
    uint8_t *truth = alloc_or_die((size_t)frames, TRIPLETS, "labels");
    double *score = alloc_or_die((size_t)frames, TRIPLETS * sizeof *score, "scores");
    *out = (TripletVideo){truth, score, frames};
    bool fine = count_of(scores) == frames;
    for (const Json *v = targets ? targets->child : NULL; v; v = v->next, f++)
        for (const Json *x = v->child; x; x = x->next)
            if (x->integer && x->i >= 0 && x->i < TRIPLETS) truth[f * TRIPLETS + x->i] = 1;
            else fine = false;
    f = 0;
    for (const Json *v = fine ? scores->child : NULL; v; v = v->next, f++) {
        int64_t k = 0;
        for (const Json *x = v->child; x; x = x->next, k++) {
            const Json *id = !strcmp(format, "pairs") ? x->child : x;
            if (!strcmp(format, "dense") && k < TRIPLETS) score[f * TRIPLETS + k] = x->number;
            else if (!id || !id->integer || id->i < 0 || id->i >= TRIPLETS) fine = false;
            else score[f * TRIPLETS + id->i] = id == x ? 1 : id->next ? id->next->number : (double)NAN;
        }
        fine = fine && (strcmp(format, "dense") || k == TRIPLETS);
    }
    if (!fine) case_broken(c, "targets and scores of a video do not fit the format \"%s\"", format);
    return fine;
}

static void compare_triplet_part(Case *c, const TripletVideo *videos, int64_t n, enum TripletPart part,
                                 const Json *row) {
    const char *name = triplet_part_names[part];
    const Json *want = json_get(json_get(row, "expect"), name), *old = json_get(json_get(row, "as_installed"), name),
               *top = json_get(json_get(row, "topk"), name);
    TripletAP ap, zero;
    double *per_video = alloc_or_die((size_t)n, (size_t)triplet_columns(part) * sizeof *per_video, "scores by video");
    triplet_ap(videos, n, part, false, per_video, &ap), triplet_ap(videos, n, part, true, NULL, &zero);
    compare_values(c, named("%s per_video_AP", name), per_video, n * ap.columns, json_get(want, "per_video_AP"));
    compare_values(c, named("%s video_AP", name), ap.video_ap, ap.columns, json_get(want, "video_AP"));
    compare_values(c, named("%s global_AP", name), ap.global_ap, ap.columns, json_get(want, "global_AP"));
    compare_value(c, named("%s video_mAP", name), ap.video_map, want, "video_mAP");
    compare_value(c, named("%s global_mAP", name), ap.global_map, want, "global_mAP");
    compare_value(c, named("%s installed video_mAP", name), zero.video_map, old, "video_mAP");
    compare_value(c, named("%s installed global_mAP", name), zero.global_map, old, "global_mAP");
    if (part == PART_IVT) {
        compare_value(c, "video_mAP_ignore_null", ap.video_map_ignore_null, want, "video_mAP_ignore_null");
        compare_value(c, "global_mAP_ignore_null", ap.global_map_ignore_null, want, "global_mAP_ignore_null");
        compare_value(c, "installed video_mAP_ignore_null", zero.video_map_ignore_null, old, "video_mAP_ignore_null");
        compare_value(c, "installed global_mAP_ignore_null", zero.global_map_ignore_null, old,
                      "global_mAP_ignore_null");
    }
    for (const Json *k = top ? top->child : NULL; k; k = k->next) { // "lib" hangs on the machine that sorted: lo, hi
        double low, high, got = triplet_top_k(videos, n, part, (int)strtol(k->key, NULL, 10), &low, &high);
        compare_value(c, named("%s top %s least", name, k->key), low, k, "lo");
        compare_value(c, named("%s top %s greatest", name, k->key), high, k, "hi");
        compare_between(c, named("%s top %s", name, k->key), got, number_of(k, "lo", NAN) - 1e-12,
                        number_of(k, "hi", NAN) + 1e-12);
    }
    free(per_video);
}

static void metric_triplet_ap(Case *c, const Json *row) {
    const Json *list = json_get(row, "videos");
    int64_t n = count_of(list), read = 0;
    TripletVideo *videos = alloc_or_die((size_t)n, sizeof *videos, "videos");
    bool fine = n > 0;
    for (const Json *v = list ? list->child : NULL; v && fine; v = v->next)
        fine = triplet_video(c, v, text_of(row, "format"), &videos[read++]);
    for (int part = 0; fine && part < TRIPLET_PARTS; part++) compare_triplet_part(c, videos, n, part, row);
    for (int64_t v = 0; v < read; v++) free((void *)videos[v].truth), free((void *)videos[v].score);
    free(videos);
}

// Frames of triplet ids as triplets: start [frames + 1].
static Triplet *triplet_frames(Case *c, const Json *frames, int64_t **start) {
    int64_t n = 0, f = 0;
    Numbers all = {0};
    numbers_of(frames, &all);
    Triplet *out = alloc_or_die((size_t)all.n, sizeof *out, "triplets");
    *start = alloc_or_die((size_t)count_of(frames) + 1, sizeof **start, "frames");
    for (const Json *v = frames ? frames->child : NULL; v; v = v->next) {
        for (const Json *x = v->child; x; x = x->next)
            if (x->integer && x->i >= 0 && x->i < TRIPLETS) out[n++] = triplet_at((int)x->i);
            else case_broken(c, "a triplet of frame %lld is none of the %d", (long long)f, TRIPLETS);
        (*start)[++f] = n;
    }
    free(all.p);
    return out;
}

static void metric_triplet_sets(Case *c, const Json *row) {
    const Json *targets = json_get(row, "targets"), *preds = json_get(row, "preds");
    int64_t *g_start, *p_start;
    Triplet *g = triplet_frames(c, targets, &g_start), *p = triplet_frames(c, preds, &p_start),
            null = triplet_at(TRIPLET_FIRST_NULL);
    if (count_of(targets) != count_of(preds)) case_broken(c, "targets and predictions of unequal length");
    for (int drop = 0; drop < 2 && !c->broken[0]; drop++) {
        const Json *want = json_get(row, drop ? "expect_ignore_null" : "expect");
        TripletSets s;
        triplet_sets(g, g_start, p, p_start, count_of(targets), drop ? &null : NULL, &s);
        compare_value(c, "frames", (double)s.frames, want, "frames");
        compare_value(c, "frames_used", (double)s.frames_used, want, "frames_used");
        for (int part = 0; part < TRIPLET_PARTS && s.frames_used; part++) {
            const char *name = triplet_part_names[part];
            const Json *w = json_get(want, name);
            compare_value(c, named("%s exact", name), s.exact[part], w, "exact");
            compare_value(c, named("%s contained", name), s.contained[part], w, "contained");
            compare_value(c, named("%s micro_jaccard", name), s.micro_jaccard[part], w, "micro_jaccard");
            compare_value(c, named("%s micro_f1", name), s.micro_f1[part], w, "micro_f1");
        }
    }
    free(g), free(p), free(g_start), free(p_start);
}

// Rows [triplet, instrument, score, x, y, w, h] per video and frame, or [image, category, x, y, w, h, score?] of COCO.
typedef struct Boxes {
    ScoredBox *p;
    int64_t n;
} Boxes;
static void boxes_add(Boxes *b, ScoredBox x) {
    if (!(b->n & (b->n - 1))) b->p = grow_or_die(b->p, (size_t)(b->n ? 2 * b->n : 1), sizeof *b->p, "boxes");
    b->p[b->n++] = x;
}
static void frame_boxes(Case *c, const Json *videos, const char *key, int column, Boxes *out) {
    int64_t video = 0;
    for (const Json *v = videos ? videos->child : NULL; v; v = v->next, video++) {
        const Json *frames = json_get(v, key);
        int64_t frame = 0;
        for (const Json *f = frames ? frames->child : NULL; f; f = f->next, frame++)
            for (const Json *r = f->child; r; r = r->next) {
                Numbers x = {0};
                numbers_of(r, &x);
                if (x.n != 7) case_broken(c, "a row of %s has %lld numbers", key, (long long)x.n);
                else
                    boxes_add(out, (ScoredBox){video, frame, (int32_t)x.p[column], x.p[2], x.p[3], x.p[4],
                                               x.p[3] + x.p[5], x.p[4] + x.p[6]});
                free(x.p);
            }
    }
}

static void compare_curves(Case *c, const char *prefix, const CurveScores *s, int32_t n, CurveScores mean,
                           const Json *want) {
    double column[TRIPLETS];
    for (int k = 0; k < 3; k++) {
        const char *name = (const char *[]){"AP", "Rec", "Pre"}[k];
        for (int32_t i = 0; i < n; i++) column[i] = k == 0 ? s[i].ap : k == 1 ? s[i].recall : s[i].precision;
        compare_values(c, named("%s %s", prefix, name), column, n, json_get(want, name));
        compare_value(c, named("%s m%s", prefix, name),
                      k == 0   ? mean.ap
                      : k == 1 ? mean.recall
                               : mean.precision,
                      want, named("m%s", name));
    }
}

static void metric_triplet_det(Case *c, const Json *row) {
    const Json *videos = json_get(row, "videos");
    for (int column = 0; column < 2; column++) {
        const char *part = column ? "i" : "ivt";
        int32_t n = triplet_columns(column ? PART_I : PART_IVT);
        const Json *want = json_get(json_get(row, "expect"), part);
        Boxes gt = {0}, pd = {0};
        CurveScores video[TRIPLETS], global[TRIPLETS], video_mean, global_mean;
        frame_boxes(c, videos, "gt", column, &gt), frame_boxes(c, videos, "pd", column, &pd);
        for (int legacy = 0; legacy < 2 && !c->broken[0]; legacy++) {
            const Json *old = json_get(row, "expect_legacy"); // where it differs
            if (legacy && old) want = json_get(old, part);
            triplet_detection(gt.p, gt.n, pd.p, pd.n, count_of(videos), n, number_of(row, "threshold", NAN), legacy,
                              video, global, &video_mean, &global_mean);
            compare_curves(c, named("%s%s video", legacy ? "legacy " : "", part), video, n, video_mean,
                           json_get(want, "video"));
            compare_curves(c, named("%s%s global", legacy ? "legacy " : "", part), global, n, global_mean,
                           json_get(want, "global"));
        }
        free(gt.p), free(pd.p);
    }
}

// -------------------------------------------------------------------------------------------------------------- boxes
static void coco_rows(Case *c, const Json *list, const Numbers *cats, Boxes *out) {
    for (const Json *r = list ? list->child : NULL; r; r = r->next) {
        Numbers x = {0};
        int32_t category = 0;
        numbers_of(r, &x);
        while (x.n > 1 && category < cats->n && cats->p[category] != x.p[1]) category++;
        if (x.n < 6 || category == cats->n) case_broken(c, "a box of no listed category");
        else
            boxes_add(out, (ScoredBox){0, (int64_t)x.p[0], category, x.n > 6 ? x.p[6] : 1, x.p[2], x.p[3],
                                       x.p[2] + x.p[4], x.p[3] + x.p[5]});
        free(x.p);
    }
}

static void metric_coco(Case *c, const Json *row) {
    Numbers cats = numbers_get(row, "cats");
    Boxes gt = {0}, dt = {0};
    const Json *want = json_get(row, "expect"), *per = json_get(want, "per_class");
    coco_rows(c, json_get(row, "gt"), &cats, &gt), coco_rows(c, json_get(row, "dt"), &cats, &dt);
    CocoScores s;
    CocoClass *classes = alloc_or_die((size_t)cats.n, sizeof *classes, "classes");
    double *column = alloc_or_die((size_t)cats.n, sizeof *column, "classes");
    if (!c->broken[0]) {
        coco_boxes(gt.p, gt.n, dt.p, dt.n, (int32_t)cats.n, &s, classes);
        const struct {
            const char *name;
            double value;
        } totals[] = {{"AP", s.ap},
                      {"AP50", s.ap50},
                      {"AP75", s.ap75},
                      {"AP_small", s.ap_small},
                      {"AP_medium", s.ap_medium},
                      {"AP_large", s.ap_large},
                      {"AR1", s.ar1},
                      {"AR10", s.ar10},
                      {"AR100", s.ar100},
                      {"AR_small", s.ar_small},
                      {"AR_medium", s.ar_medium},
                      {"AR_large", s.ar_large}};
        for (size_t k = 0; k < sizeof totals / sizeof totals[0]; k++)
            compare_value(c, totals[k].name, totals[k].value, want, totals[k].name);
        const char *const names[] = {"AP", "AP50", "AP75", "AR100", "tp50", "ndt", "ngt"};
        for (int k = 0; k < 7; k++) {
            for (int64_t i = 0; i < cats.n; i++) {
                const CocoClass *x = &classes[i];
                column[i] = (double[]){x->ap,
                                       x->ap50,
                                       x->ap75,
                                       x->ar100,
                                       (double)x->matched50,
                                       (double)x->detections,
                                       (double)x->objects}[k];
            }
            compare_values(c, named("class %s", names[k]), column, cats.n, json_get(per, names[k]));
        }
    }
    free(column), free(classes), free(cats.p), free(gt.p), free(dt.p);
}

static bool box_of(const Json *list, Box *out) {
    Numbers x = {0};
    numbers_of(list, &x);
    bool fine = x.n == 4;
    if (fine) *out = (Box){x.p[0], x.p[1], x.p[2], x.p[3], ""};
    free(x.p);
    return fine;
}
static void metric_iou(Case *c, const Json *row) {
    Box a, b;
    if (!box_of(json_get(row, "a"), &a) || !box_of(json_get(row, "b"), &b)) {
        case_broken(c, "a box has four numbers");
        return;
    }
    compare_value(c, "iou", box_iou(&a, &b), row, "iou");
    compare_value(c, "giou", box_giou(&a, &b), row, "giou");
    compare_value(c, "diou", box_diou(&a, &b), row, "diou");
    compare_value(c, "ciou", box_ciou(&a, &b), row, "ciou");
    compare_value(c, "reward_iou", box_iou_strict(&a, &b), row, "reward_iou");
}

static void compare_box_list(Case *c, const char *what, const char *mean_name, double (*iou)(const Box *, const Box *),
                             const Json *row, const char *gt, const char *pred) {
    const Json *g = json_get(row, gt), *p = json_get(row, pred), *want = json_get(row, "expect");
    Numbers got = {0};
    for (g = g ? g->child : NULL, p = p ? p->child : NULL; g && p; g = g->next, p = p->next) {
        Box a, b;
        if (box_of(g, &a) && box_of(p, &b)) numbers_add(&got, iou(&a, &b));
        else case_broken(c, "a box has four numbers");
    }
    compare_values(c, what, got.p, got.n, json_get(want, what));
    compare_value(c, mean_name, mean_of(got.p, got.n), want, mean_name);
    free(got.p);
}
static void metric_vqla(Case *c, const Json *row) {
    compare_box_list(c, "legacy", "miou_vqla_legacy", box_iou_vqla_legacy, row, "gt", "pred");
    compare_box_list(c, "true", "miou", box_iou_strict, row, "gt", "pred");
    if (json_get(row, "gt_px"))
        compare_box_list(c, "inclusive_pixel", "miou_inclusive_pixel", box_iou_pixels, row, "gt_px", "pred_px");
}

// ----------------------------------------------------------------------------------------------------- classification
// Labels of the truth in [0, k); false when they are not.
static bool labels_fit(Case *c, const int32_t *truth, int64_t n, int64_t n_predicted, int64_t k) {
    bool fine = n == n_predicted && k > 0 && k < INT32_MAX;
    for (int64_t i = 0; i < n && fine; i++) fine = truth[i] >= 0 && truth[i] < k;
    if (!fine) case_broken(c, "labels do not fit %lld classes, or lists differ in length", (long long)k);
    return fine;
}

static void compare_class_scores(Case *c, const char *prefix, ClassScores s, const Json *want) {
    const double values[4] = {s.precision, s.recall, s.f1, s.jaccard};
    const char *const names[4] = {"precision", "recall", "f1", "jaccard"};
    for (int k = 0; k < 4; k++) // with zero_division NaN the reference has no jaccard
        if (json_get(want, names[k])) compare_value(c, named("%s %s", prefix, names[k]), values[k], want, names[k]);
}

static void compare_group(Case *c, const int32_t *y, const int32_t *p, int64_t n, int32_t k, enum ClassGroup group,
                          const char *name, const Json *want) {
    const char *const divisions[3] = {"zd0", "zd1", "zdnan"}, *const names[4] = {"precision", "recall", "f1",
                                                                                 "jaccard"};
    const double value[3] = {0, 1, NAN};
    ClassScores *per_class = alloc_or_die((size_t)k + 1, sizeof *per_class, "scores by class");
    int64_t *support = alloc_or_die((size_t)k + 1, sizeof *support, "support");
    uint8_t *in_group = alloc_or_die((size_t)k + 1, 1, "classes of a group");
    double *column = alloc_or_die((size_t)k + 1, sizeof *column, "scores by class");
    for (int z = 0; z < 3; z++) {
        const Json *w = json_get(want, divisions[z]), *per = json_get(w, "per_class");
        ClassReport r;
        int64_t m = 0;
        if (!w) continue;
        class_report(y, p, n, k, group, value[z], per_class, support, in_group, &r);
        const char *prefix = named("%s %s", name, divisions[z]);
        for (int32_t i = 0; i <= k; i++)
            if (in_group[i]) column[m++] = i;
        if (!z) compare_values(c, named("%s labels", name), column, m, json_get(want, "labels"));
        m = 0;
        for (int32_t i = 0; i <= k; i++)
            if (in_group[i]) column[m++] = (double)support[i];
        compare_values(c, named("%s support", prefix), column, m, json_get(w, "support"));
        for (int s = 0; s < 4; s++) {
            m = 0;
            for (int32_t i = 0; i <= k; i++)
                if (in_group[i])
                    column[m++] = (const double[]){per_class[i].precision, per_class[i].recall, per_class[i].f1,
                                                   per_class[i].jaccard}[s];
            if (json_get(per, names[s]))
                compare_values(c, named("%s class %s", prefix, names[s]), column, m, json_get(per, names[s]));
        }
        compare_class_scores(c, named("%s macro", prefix), r.macro, json_get(w, "macro"));
        compare_class_scores(c, named("%s weighted", prefix), r.weighted, json_get(w, "weighted"));
        compare_class_scores(c, named("%s micro", prefix), r.micro, json_get(w, "micro"));
    }
    free(column), free(in_group), free(support), free(per_class);
}

static void metric_classification(Case *c, const Json *row) {
    int64_t n, m, k = int_of(row, "k");
    int32_t *y = labels_get(row, "y", -1, &n), *p = labels_get(row, "p", -1, &m);
    const Json *want = json_get(row, "expect");
    if (labels_fit(c, y, n, m, k)) {
        int32_t classes = (int32_t)k;
        int64_t cells = (k + 1) * (k + 1), *counts = alloc_or_die((size_t)cells, sizeof *counts, "confusion");
        double *confusion = alloc_or_die((size_t)cells, sizeof *confusion, "confusion");
        class_confusion(y, p, n, classes, counts);
        for (int64_t i = 0; i < cells; i++) confusion[i] = (double)counts[i];
        compare_value(c, "accuracy", class_accuracy(y, p, n), want, "accuracy");
        compare_value(c, "balanced_accuracy", class_balanced_accuracy(y, p, n, classes), want, "balanced_accuracy");
        compare_value(c, "map11_file_order", class_map11(y, p, n, classes), want, "map11_file_order");
        compare_values(c, "confusion", confusion, cells, json_get(want, "confusion"));
        compare_group(c, y, p, n, classes, CLASSES_ALL, "all", json_get(want, "all"));
        compare_group(c, y, p, n, classes, CLASSES_TRUTH, "truth", json_get(want, "truth"));
        compare_group(c, y, p, n, classes, CLASSES_UNION, "union", json_get(want, "union"));
        free(confusion), free(counts);
    }
    free(y), free(p);
}

static void metric_vqa(Case *c, const Json *row) {
    int64_t n, m, k = int_of(row, "oov_from");
    int32_t *y = labels_get(row, "y", -1, &n), *p = labels_get(row, "p", -1, &m), strings = 0;
    const Json *want = json_get(row, "expect"), *types = json_get(want, "by_type"), *type = json_get(row, "type");
    if (labels_fit(c, y, n, m, k)) {
        ClassReport r;
        for (int64_t i = 0; i < n; i++) strings = p[i] >= strings ? p[i] + 1 : strings;
        compare_value(c, "accuracy", class_accuracy(y, p, n), want, "accuracy");
        // every string a class, whatever the vocabulary
        class_report(y, p, n, strings > k ? strings : (int32_t)k, CLASSES_UNION, 1, NULL, NULL, NULL, &r);
        compare_class_scores(c, "legacy_union", r.macro, json_get(want, "legacy_union"));
        compare_value(c, "legacy_union classes", r.classes, json_get(want, "legacy_union"), "classes");
        class_report(y, p, n, (int32_t)k, CLASSES_VOCABULARY, 1, NULL, NULL, NULL, &r);
        compare_class_scores(c, "vocabulary_union", r.macro, json_get(want, "vocabulary_union"));
        class_report(y, p, n, (int32_t)k, CLASSES_VOCABULARY, 0, NULL, NULL, NULL, &r);
        compare_class_scores(c, "vocabulary_union_zd0", r.macro, json_get(want, "vocabulary_union_zd0"));

        int32_t *kind = alloc_or_die((size_t)n, sizeof *kind, "types"), kinds = (int32_t)(types ? types->count : 0);
        int64_t at = 0, *count = alloc_or_die((size_t)kinds + 1, sizeof *count, "types");
        double *accuracy = alloc_or_die((size_t)kinds + 1, sizeof *accuracy, "types");
        for (const Json *t = type ? type->child : NULL; t && at < n; t = t->next, at++) {
            const Json *q = types ? types->child : NULL;
            for (; q && !json_is(t, q->key); q = q->next) kind[at]++;
        }
        accuracy_by_kind(y, p, n, kind, kinds + 1, count, accuracy);
        if (at != n || count[kinds]) case_broken(c, "a type of by_type is missing");
        at = 0;
        for (const Json *q = types ? types->child : NULL; q; q = q->next, at++) {
            compare_value(c, "type n", (double)count[at], q, "n");
            compare_value(c, "type accuracy", accuracy[at], q, "accuracy");
        }
        free(accuracy), free(count), free(kind);
    }
    free(y), free(p);
}

// ------------------------------------------------------------------------------------------------------ label by frame
// Videos of {gt, pred}. Labels in [0, k), or any when k is 0.
static LabelVideo *label_videos(Case *c, const Json *list, int64_t k) {
    LabelVideo *out = alloc_or_die((size_t)count_of(list), sizeof *out, "videos");
    int64_t v = 0;
    for (const Json *x = list ? list->child : NULL; x; x = x->next, v++) {
        int64_t n, m;
        int32_t *y = labels_get(x, "gt", -1, &n), *p = labels_get(x, "pred", -1, &m);
        out[v] = (LabelVideo){y, p, n};
        if (n != m) case_broken(c, "a video of unequal lists");
        else if (k) labels_fit(c, y, n, m, k);
    }
    return out;
}
static void label_videos_free(LabelVideo *videos, int64_t n) {
    for (int64_t v = 0; v < n; v++) free((void *)videos[v].truth), free((void *)videos[v].predicted);
    free(videos);
}

static void compare_phases(Case *c, const LabelVideo *videos, int64_t n, int32_t phases, enum PhaseMode mode,
                           const char *name, const Json *want) {
    const int64_t cells = n * phases;
    double *accuracy = alloc_or_die((size_t)n, sizeof *accuracy, "accuracy by video"),
           *by_phase = alloc_or_die((size_t)phases, 3 * sizeof *by_phase, "scores by phase"),
           *by_video = alloc_or_die((size_t)cells, 3 * sizeof *by_video, "scores by video");
    PhaseScores s;
    phase_scores(videos, n, phases, mode, accuracy, by_phase, by_video, &s);
    compare_values(c, named("%s acc_per_video", name), accuracy, n, json_get(want, "acc_per_video"));
    compare_value(c, named("%s acc_mean", name), s.accuracy, want, "acc_mean");
    compare_value(c, named("%s acc_std_n1", name), s.accuracy_std_n1, want, "acc_std_n1");
    compare_value(c, named("%s acc_std_n", name), s.accuracy_std_n, want, "acc_std_n");
    for (int kind = 0; kind < 3; kind++) {
        const char *score = (const char *[]){"jaccard", "precision", "recall"}[kind];
        const PhaseTable *t = kind == 0 ? &s.jaccard : kind == 1 ? &s.precision : &s.recall;
        const Json *w = json_get(want, score);
        bool infinite = false;
        for (int64_t i = 0; i < cells; i++) infinite = infinite || isinf(by_video[kind * cells + i]);
        compare_values(c, named("%s %s by video", name, score), by_video + kind * cells, cells,
                       json_get(w, "per_video_phase_unclamped"));
        compare_values(c, named("%s %s by phase", name, score), by_phase + kind * (int64_t)phases, phases,
                       json_get(w, "per_phase"));
        compare_value(c, named("%s %s mean", name, score), t->mean, w, "mean");
        compare_value(c, named("%s %s std_n1", name, score), t->std, w, "std_n1");
        compare_value(c, named("%s %s without", name, score), t->without_value, w, "phases_without_value");
        compare_flag(c, named("%s %s infinite", name, score), infinite, true_of(w, "infinite_became_100"));
    }
    free(by_video), free(by_phase), free(accuracy);
}

static void metric_phase(Case *c, const Json *row) {
    const Json *list = json_get(row, "videos"), *want = json_get(row, "expect"), *pooled = json_get(want, "pooled");
    int64_t n = count_of(list), phases = int_of(row, "nphase"), all = 0, at = 0;
    LabelVideo *videos = label_videos(c, list, phases > 0 ? phases : 1);
    const char *const modes[3] = {"strict", "relaxed_script", "relaxed_tail"};
    for (int mode = 0; mode < 3 && !c->broken[0]; mode++)
        if (json_get(want, modes[mode]))
            compare_phases(c, videos, n, (int32_t)phases, mode, modes[mode], json_get(want, modes[mode]));
    if (pooled && !c->broken[0]) {
        ClassReport r;
        for (int64_t v = 0; v < n; v++) all += videos[v].frames;
        int32_t *y = alloc_or_die((size_t)all, sizeof *y, "frames"),
                *p = alloc_or_die((size_t)all, sizeof *p, "frames");
        for (int64_t v = 0; v < n; at += videos[v++].frames) {
            memcpy(y + at, videos[v].truth, (size_t)videos[v].frames * sizeof *y);
            memcpy(p + at, videos[v].predicted, (size_t)videos[v].frames * sizeof *p);
        }
        class_report(y, p, all, (int32_t)phases, CLASSES_TRUTH, 0, NULL, NULL, NULL, &r);
        compare_value(c, "pooled accuracy", r.accuracy, pooled, "accuracy");
        compare_class_scores(c, "pooled", r.macro, pooled);
        free(y), free(p);
    }
    label_videos_free(videos, n);
}

static void metric_segments(Case *c, const Json *row) {
    const Json *list = json_get(row, "videos"), *want = json_get(row, "expect"), *per = json_get(want, "per_video");
    int64_t n = count_of(list);
    LabelVideo *videos = label_videos(c, list, 0);
    SegmentScores *got = alloc_or_die((size_t)n, sizeof *got, "scores by video");
    double accuracy, f1, score;
    if (!c->broken[0]) {
        action_scores(videos, n, got, &accuracy, &f1, &score);
        compare_value(c, "accuracy", accuracy, want, "accuracy");
        compare_value(c, "f1_10", f1, want, "f1_10");
        compare_value(c, "score", score, want, "score");
        for (int64_t v = 0; v < n; v++) {
            const Json *w = json_at_index(per, v);
            compare_value(c, "video tp", (double)got[v].tp, w, "tp");
            compare_value(c, "video fp", (double)got[v].fp, w, "fp");
            compare_value(c, "video fn", (double)got[v].fn, w, "fn");
            compare_value(c, "video f1", got[v].f1, w, "f1");
            compare_value(c, "video accuracy", got[v].accuracy, w, "accuracy");
        }
    }
    free(got), label_videos_free(videos, n);
}

// -------------------------------------------------------------------------------------------------- CVS, arena, chance
static void metric_cvs(Case *c, const Json *row) {
    const Json *want = json_get(row, "expect"), *criteria = json_get(want, "criteria");
    int64_t n, m;
    int32_t *g = labels_get(row, "gt", -1, &n), *p = labels_get(row, "pred", -1, &m);
    Numbers scores = numbers_get(row, "scores"), raters = numbers_get(row, "ds");
    bool fine = n % 3 == 0 && m == n && (!scores.n || scores.n == n);
    for (int64_t i = 0; i < n && fine; i++) fine = g[i] <= 1;
    if (!fine) case_broken(c, "labels, answers and scores of three criteria do not fit each other");
    else {
        CvsScores s;
        cvs_scores(g, p, scores.n ? scores.p : NULL, n / 3, &s);
        for (int k = 0; k < 3; k++) {
            const CvsCriterion *x = &s.criterion[k];
            const Json *w = json_at_index(criteria, k);
            compare_value(c, "criterion n", (double)x->n, w, "n");
            if (!x->n) continue;
            compare_value(c, "criterion positives", (double)x->positives, w, "positives");
            compare_value(c, "criterion negatives", (double)x->negatives, w, "negatives");
            compare_value(c, "criterion correct", (double)x->correct, w, "correct");
            compare_value(c, "criterion accuracy", x->accuracy, w, "accuracy");
            compare_value(c, "criterion balanced_accuracy", x->balanced_accuracy, w, "balanced_accuracy");
            compare_value(c, "criterion majority", x->majority, w, "majority");
            if (scores.n) compare_value(c, "criterion AP", x->ap, w, "AP");
        }
        compare_value(c, "avg", s.avg, want, "avg");
        compare_value(c, "pooled", s.pooled, want, "pooled");
        compare_value(c, "majority_pooled", s.majority_pooled, want, "majority_pooled");
        compare_value(c, "frames_all_three", (double)s.all_three, want, "frames_all_three");
        compare_value(c, "joint", s.joint, want, "joint");
        compare_value(c, "achieved", s.achieved, want, "achieved");
        if (scores.n) compare_value(c, "mAP", s.map, want, "mAP");
        for (int64_t i = 0; i < raters.n; i++) raters.p[i] = cvs_of_raters(raters.p[i]);
        if (raters.n) compare_values(c, "rounded raters", raters.p, raters.n, json_get(row, "gt"));
    }
    free(scores.p), free(raters.p), free(g), free(p);
}

static void metric_arena_counts(Case *c, const Json *row) {
    const Json *want = json_get(row, "expect"), *published = json_get(row, "published");
    Numbers correct = numbers_get(row, "correct"), asked = numbers_get(row, "asked");
    if (correct.n == 3 && asked.n == 3) {
        int64_t right[3], all[3];
        double percent[3], pooled, avg;
        for (int k = 0; k < 3; k++) right[k] = (int64_t)correct.p[k], all[k] = (int64_t)asked.p[k];
        cvs_of_counts(right, all, percent, &pooled, &avg);
        compare_values(c, "criteria", percent, 3, json_get(want, "criteria"));
        compare_value(c, "pooled", pooled, want, "pooled");
        compare_value(c, "avg", avg, want, "avg");
        double overall = number_of(published, "overall", NAN), mean = number_of(published, "avg", NAN);
        compare_between(c, "published overall", pooled, overall - 0.0051, overall + 0.0051);
        compare_between(c, "published avg", avg, mean - 0.0101, mean + 0.0101);
    } else case_broken(c, "three criteria are needed");
    free(correct.p), free(asked.p);
}

static void metric_arena(Case *c, const Json *row) {
    const Json *want = json_get(row, "expect"), *pairs = json_get(want, "pairs"),
               *published = json_get(row, "published");
    int64_t models = count_of(json_get(row, "models")), tasks = count_of(json_get(row, "tasks")), n = 0;
    Numbers scores = numbers_get(row, "scores");
    if (!strcmp(text_of(row, "kind"), "paper_cvs")) {
        metric_arena_counts(c, row);
    } else if (scores.n != models * tasks) case_broken(c, "scores are not models x tasks");
    else {
        double *own = alloc_or_die((size_t)models, 3 * sizeof *own, "means"), *common = own + models,
               *had = common + models, *list = alloc_or_die((size_t)tasks, sizeof *list, "common tasks");
        int64_t *count = alloc_or_die((size_t)models, sizeof *count, "tasks");
        uint8_t *is_common = alloc_or_die((size_t)tasks, 1, "common tasks");
        arena_scores(scores.p, models, tasks, own, count, common, is_common);
        for (int64_t m = 0; m < models; m++) had[m] = (double)count[m];
        for (int64_t t = 0; t < tasks; t++)
            if (is_common[t]) list[n++] = (double)t;
        compare_values(c, "own", own, models, json_get(want, "own"));
        compare_values(c, "n_tasks", had, models, json_get(want, "n_tasks"));
        compare_values(c, "common_tasks", list, n, json_get(want, "common_tasks"));
        compare_values(c, "common", common, models, json_get(want, "common"));
        Numbers got = {0};
        for (int64_t i = 0; i < models; i++)
            for (int64_t j = i + 1; j < models; j++) {
                double a, b;
                int64_t both = arena_pair(scores.p + i * tasks, scores.p + j * tasks, tasks, &a, &b);
                const double line[5] = {(double)i, (double)j, (double)both, a, b};
                for (int k = 0; k < 5; k++) numbers_add(&got, line[k]);
            }
        compare_values(c, "pairs", got.p, got.n, pairs);
        int64_t m = 0;
        for (const Json *name = json_get(row, "models")->child; name; name = name->next, m++) {
            const Json *v = name->type == JSON_STRING ? json_get(published, name->str) : NULL;
            if (v) compare_between(c, "published", own[m], v->number - 0.0500001, v->number + 0.0500001);
        }
        free(got.p), free(is_common), free(count), free(list), free(own);
    }
    free(scores.p);
}

static void metric_bootstrap(Case *c, const Json *row) {
    Numbers n = numbers_get(row, "n"), a = numbers_get(row, "correct"), b = numbers_get(row, "correct_b");
    const Json *want = json_get(row, "expect");
    int64_t resamples = int_of(row, "band_for_n_resamples");
    ClusterSums sums = {a.p, b.p, n.p};
    if (a.n != n.n || b.n != n.n || !n.n) case_broken(c, "lists of clusters differ in length");
    for (const Json *w = want ? want->child : NULL; w && !c->broken[0]; w = w->next) {
        ClusterStatistic f = !strncmp(w->key, "ratio", 5)            ? cluster_ratio
                             : !strncmp(w->key, "mean_of_means", 13) ? cluster_mean
                             : !strncmp(w->key, "difference", 10)    ? cluster_difference
                                                                     : NULL;
        Numbers low = numbers_get(w, "low_band"), high = numbers_get(w, "high_band");
        double se = number_of(w, "standard_error", NAN), allowed = number_of(w, "se_tol", NAN);
        if (!f || low.n != 2 || high.n != 2) case_broken(c, "an unknown statistic \"%s\"", w->key);
        for (uint64_t seed = 1; seed <= 3 && !c->broken[0]; seed++) { // not one lucky seed
            Interval x = bootstrap(f, &sums, n.n, resamples > BOOTSTRAP_RESAMPLES ? resamples : BOOTSTRAP_RESAMPLES,
                                   number_of(w, "level", 0.95), seed);
            compare_value(c, named("%s estimate", w->key), x.estimate, w, "estimate");
            compare_between(c, named("%s low", w->key), x.low, low.p[0] - 1e-12, low.p[1] + 1e-12);
            compare_between(c, named("%s high", w->key), x.high, high.p[0] - 1e-12, high.p[1] + 1e-12);
            compare_between(c, named("%s standard_error", w->key), x.standard_error, se - allowed, se + allowed);
        }
        free(low.p), free(high.p);
    }
    free(n.p), free(a.p), free(b.p);
}

// -------------------------------------------------------------------------------------------------------- the folder
static const struct {
    const char *name; // of the file, without .jsonl
    void (*run)(Case *c, const Json *row);
} metric_files[] = {
    {"triplet_map", metric_triplet_map},
    {"triplet_ap", metric_triplet_ap},
    {"triplet_sets", metric_triplet_sets},
    {"triplet_det", metric_triplet_det},
    {"coco_boxes", metric_coco},
    {"iou", metric_iou},
    {"vqla_miou", metric_vqla},
    {"classification", metric_classification},
    {"phase_video", metric_phase},
    {"action_segments", metric_segments},
    {"endovis_vqa", metric_vqa},
    {"cvs", metric_cvs},
    {"arena", metric_arena},
    {"bootstrap", metric_bootstrap},
};

static void metric_row(void *ctx, const Json *row, int64_t line) {
    size_t k = *(const size_t *)ctx;
    Case c;
    const char *id = text_of(row, "id");
    if (!case_begin(&c, "metrics/%s/%s", metric_files[k].name, id[0] ? id : named("%lld", (long long)line))) return;
    metric_files[k].run(&c, row);
    case_end(&c);
}

static void run_metrics(const char *dir) {
    Names files = names_in(dir, "", ".jsonl");
    size_t known = sizeof metric_files / sizeof metric_files[0];
    for (size_t k = 0; k < known; k++) {
        Path path = path_of(dir, named("%s.jsonl", metric_files[k].name));
        if (file_exists(path.p)) rows_read(path.p, metric_row, &k);
        else skip("metrics/%s: %s has no such file", metric_files[k].name, dir);
    }
    for (size_t i = 0; i < files.n; i++) { // a file that nobody compares must not look like one that passed
        size_t k = 0;
        while (k < known && strcmp(files.p[i], named("%s.jsonl", metric_files[k].name))) k++;
        if (k == known) skip("metrics/%s: nothing here reads it", files.p[i]);
    }
    names_free(&files);
}
