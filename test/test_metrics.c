// test_metrics.c - what must hold of the metrics whatever the numbers are: bounds, symmetries, worked examples, "no
// value" for empty inputs, and that one wrong answer is seen. Other people's values are compared in oracle_metrics.h.
#include "test.h"

static uint32_t draws; // every draw of this file has its own counter
static double uniform(void) { return random_uniform(7, RANDOM_TEST, 0, draws++); }
static int32_t below(int32_t n) { return (int32_t)(uniform() * n); }
static bool none(double v) { return isnan(v); }
#define EXPECT_NONE(value)                                                                                             \
    do {                                                                                                               \
        double v_ = (value);                                                                                           \
        if (!isnan(v_)) FAIL("%s: expected no value, got %.9g", #value, v_);                                           \
    } while (0)

// ------------------------------------------------------------------------------------------------------------- boxes
static Box random_box(double size) {
    double x = uniform() * size, y = uniform() * size;
    return (Box){x, y, x + uniform() * size + 1e-3, y + uniform() * size + 1e-3, ""};
}
static bool same_box(const Box *a, const Box *b) {
    return a->x1 == b->x1 && a->y1 == b->y1 && a->x2 == b->x2 && a->y2 == b->y2;
}

TEST(iou_is_symmetric_and_1_only_for_equal_boxes) {
    for (int i = 0; i < 20000; i++) {
        Box a = random_box(40), b = random_box(40);
        if (i % 4 == 0) b = a;
        if (i % 4 == 1) b = a, b.x2 += 1e-6 * (1 + uniform());
        double iou = box_iou_strict(&a, &b), back = box_iou_strict(&b, &a);
        if (iou != back || !(iou >= 0 && iou <= 1)) FAIL("IoU %.17g one way, %.17g the other", iou, back);
        if ((iou == 1) != same_box(&a, &b))
            FAIL("IoU %.17g of boxes that are %sequal", iou, same_box(&a, &b) ? "" : "not ");
        double giou = box_giou(&a, &b), diou = box_diou(&a, &b), ciou = box_ciou(&a, &b);
        if (giou > iou + 1e-12 || giou < -1) FAIL("GIoU %.17g beside IoU %.17g", giou, iou);
        if (diou > iou + 1e-12 || diou < -1 || ciou > diou + 1e-12)
            FAIL("DIoU %.9g, CIoU %.9g, IoU %.9g", diou, ciou, iou);
    }
}

TEST(boxes_without_area_and_crossed_boxes_get_nothing) {
    Box good = {10, 10, 20, 30, ""};
    const Box bad[] = {{20, 10, 10, 30, ""}, {20, 30, 10, 10, ""},  {10, 10, 10, 30, ""},       {10, 10, 20, 10, ""},
                       {10, 10, 10, 10, ""}, {NAN, 10, 20, 30, ""}, {10, 10, INFINITY, 30, ""}, {10, NAN, 20, NAN, ""}};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        EXPECT(box_iou_strict(&good, &bad[i]) == 0);
        EXPECT(box_iou_strict(&bad[i], &good) == 0);
        EXPECT(box_iou_strict(&bad[i], &bad[i]) == 0);
    }
    Box far = {20, 10, 30, 30, ""}; // they share an edge
    EXPECT(box_iou_strict(&good, &far) == 0);
}

TEST(the_legacy_vqla_iou_rewards_boxes_that_are_apart) {
    Box a = {.4, .4, .6, .6, ""}, b = {.7, .7, .9, .9, ""}, c = {.45, .45, .65, .65, ""};
    EXPECT_NEAR(box_iou_vqla_legacy(&a, &b), 0.391304, 5e-7);
    EXPECT_NEAR(box_iou_strict(&a, &b), 0, 0);
    EXPECT_NEAR(box_iou_vqla_legacy(&a, &c), 0.849117, 5e-7);
    EXPECT_NEAR(box_iou_strict(&a, &c), 0.391304, 5e-7);
    Box p = {1, 1, 2, 2, ""}, q = {2, 2, 3, 3, ""}; // 4 pixels each, one shared
    EXPECT_NEAR(box_iou_pixels(&p, &q), 1.0 / 7, 1e-15);
}

// -------------------------------------------------------------------------------------------------- average precision
// Straight from the definition, in squares of n.
static double slow_precision(const uint8_t *y, const double *s, int64_t n) {
    double ap = 0, all = 0;
    for (int64_t i = 0; i < n; i++) all += y[i];
    if (all == 0) return NAN;
    for (int64_t i = 0; i < n; i++) {
        double hits = 0, items = 0;
        for (int64_t j = 0; j < n; j++)
            if (s[j] >= s[i]) hits += y[j], items++;
        if (y[i]) ap += hits / items / all; // each positive adds its share of the step it is in
    }
    return ap;
}

TEST(average_precision_of_the_worked_example) {
    EXPECT_NEAR(average_precision((const uint8_t[]){1, 0, 1}, (const double[]){.9, .8, .7}, 3), 5.0 / 6, 1e-15);
    EXPECT_NEAR(average_precision((const uint8_t[]){1, 0, 1}, (const double[]){.7, .8, .9}, 3), 5.0 / 6, 1e-15);
    EXPECT_NEAR(average_precision((const uint8_t[]){1, 0, 1}, (const double[]){.8, .9, .7}, 3), 7.0 / 12, 1e-15);
    EXPECT_NONE(average_precision((const uint8_t[]){0, 0}, (const double[]){.9, .8}, 2));
    EXPECT_NONE(average_precision(NULL, NULL, 0));
    // a score that is no number ranks behind every other
    EXPECT_NEAR(average_precision((const uint8_t[]){1, 0}, (const double[]){NAN, -1e300}, 2), 0.5, 1e-15);
}

TEST(average_precision_of_equal_scores_has_one_step) {
    enum { MOST = 60 };
    for (int round = 0; round < 400; round++) {
        uint8_t y[MOST];
        double s[MOST];
        int n = 1 + below(MOST), levels = 1 + below(8);
        for (int i = 0; i < n; i++) y[i] = uniform() < 0.3, s[i] = below(levels) - 3.5;
        double want = slow_precision(y, s, n), got = average_precision(y, s, n);
        if (none(want) ? !none(got) : !(fabs(got - want) < 1e-12)) FAIL("AP %.17g, by the definition %.17g", got, want);
        for (int i = n - 1; i > 0; i--) { // the order of the list does not matter
            int j = below(i + 1);
            uint8_t t = y[i];
            double u = s[i];
            y[i] = y[j], y[j] = t, s[i] = s[j], s[j] = u;
        }
        double again = average_precision(y, s, n);
        if (!none(got) && again != got) FAIL("AP %.17g in one order, %.17g in another", got, again);
    }
}

// ---------------------------------------------------------------------------------------------------------- triplets
TEST(
    text_answers_have_the_average_precision_of_the_formula) { // AP = R P + (1 - R) prevalence; nothing said: prevalence
    enum { FRAMES = 50 };
    static uint8_t truth[FRAMES * TRIPLETS];
    static double score[FRAMES * TRIPLETS];
    memset(truth, 0, sizeof truth);
    for (int i = 0; i < FRAMES * TRIPLETS; i++) score[i] = 0;
    for (int f = 0; f < FRAMES; f++) truth[f * TRIPLETS + 17] = f % 5 < 2, score[f * TRIPLETS + 17] = f % 3 == 0;
    TripletVideo video = {truth, score, FRAMES};
    TripletAP ap;
    double hits = 0, said = 0, per_video[TRIPLETS];
    for (int f = 0; f < FRAMES; f++) hits += f % 5 < 2 && f % 3 == 0, said += f % 3 == 0;
    double recall = hits / 20, precision = hits / said;
    triplet_ap(&video, 1, PART_IVT, false, per_video, &ap);
    EXPECT_NEAR(ap.video_ap[17], recall * precision + (1 - recall) * 0.4, 1e-14);
    EXPECT(ap.video_ap[17] == per_video[17] && ap.video_map == ap.video_ap[17]); // other classes are absent, not 0
    EXPECT_NONE(ap.video_ap[18]);
    for (int i = 0; i < FRAMES * TRIPLETS; i++) score[i] = 0;
    triplet_ap(&video, 1, PART_I, false, NULL, &ap);
    EXPECT_INT(ap.columns, 6);
    EXPECT_NEAR(ap.video_map, 0.4, 1e-14);
    triplet_ap(&video, 1, PART_I, true, NULL, &ap);
    EXPECT_NEAR(ap.video_map, 0.4 / 6, 1e-14);
    triplet_ap(NULL, 0, PART_IVT, false, NULL, &ap);
    EXPECT(none(ap.video_map) && none(ap.global_map) && none(ap.video_map_ignore_null));
}

TEST(scores_below_zero_are_scores) { // log-probabilities: the best of a part must not start at 0
    uint8_t truth[2 * TRIPLETS] = {0};
    double score[2 * TRIPLETS];
    for (int i = 0; i < 2 * TRIPLETS; i++) score[i] = -5;
    truth[7] = 1, score[7] = -1; // of grasper, in the first frame
    TripletVideo video = {truth, score, 2};
    TripletAP ap;
    triplet_ap(&video, 1, PART_I, false, NULL, &ap);
    EXPECT_NEAR(ap.video_ap[0], 1, 0);
    score[7] = -9; // now the other graspers of the frame count, and both frames are equal
    triplet_ap(&video, 1, PART_I, false, NULL, &ap);
    EXPECT_NEAR(ap.video_ap[0], 0.5, 0);
}

TEST(the_triplet_table_agrees_with_itself) {
    const int columns[TRIPLET_PARTS] = {100, 6, 10, 15, 26, 59};
    for (int part = 0; part < TRIPLET_PARTS; part++) EXPECT_INT(triplet_columns(part), columns[part]);
    for (int id = 0; id < TRIPLETS; id++) {
        Triplet x = triplet_at(id);
        EXPECT_INT(triplet_id(x), id);
        EXPECT((x.v == 9) == (id >= TRIPLET_FIRST_NULL) && (x.t == 14) == (id >= TRIPLET_FIRST_NULL));
        EXPECT_INT(triplet_column_id(PART_IV, triplet_column(PART_IV, id)), 10 * x.i + x.v);
        EXPECT_INT(triplet_column_id(PART_IT, triplet_column(PART_IT, id)), 15 * x.i + x.t);
    }
    EXPECT_INT(triplet_id((Triplet){0, 4, 0}), -1); // grasper, clip, gallbladder
    EXPECT_INT(triplet_id((Triplet){-1, 0, 0}), -1);
}

TEST(triplets_are_never_more_accurate_than_their_parts) {
    enum { FRAMES = 40, MOST = 4 };
    for (int round = 0; round < 200; round++) {
        Triplet g[FRAMES * MOST], p[FRAMES * MOST];
        int64_t g_start[FRAMES + 1] = {0}, p_start[FRAMES + 1] = {0};
        for (int f = 0; f < FRAMES; f++) {
            int n = below(MOST), m = uniform() < 0.5 ? n : below(MOST);
            for (int k = 0; k < n; k++) g[g_start[f] + k] = triplet_at(below(8) * 12);
            for (int k = 0; k < m; k++) {
                Triplet x = k < n ? g[g_start[f] + k] : triplet_at(below(TRIPLETS));
                int change = below(12); // sometimes another part, sometimes one outside the vocabulary
                if (change == 0) x.i = below(6);
                if (change == 1) x.v = below(10);
                if (change == 2) x.t = -1;
                p[p_start[f] + k] = x;
            }
            g_start[f + 1] = g_start[f] + n, p_start[f + 1] = p_start[f] + m;
        }
        TripletSets s;
        triplet_sets(g, g_start, p, p_start, FRAMES, NULL, &s);
        for (int part = 0; part < TRIPLET_PARTS; part++) {
            if (s.exact[PART_IVT] > s.exact[part])
                FAIL("triplets are right more often than %s", triplet_part_names[part]);
            if (s.exact[part] > s.contained[part]) FAIL("%s: equal sets that do not contain", triplet_part_names[part]);
            EXPECT(s.micro_jaccard[part] <= s.micro_f1[part] && s.micro_f1[part] <= 1);
        }
    }
}

TEST(sets_of_triplets_have_no_order_and_no_repeats) {
    const Triplet a = {0, 1, 0}, b = {2, 2, 2}, null = {1, 9, 14}, odd = {0, 1, -1};
    const Triplet g[] = {a, b}, p[] = {b, a, b}, both[] = {b, a, null}, unknown[] = {odd};
    const int64_t two[] = {0, 2}, three[] = {0, 3}, one[] = {0, 1}, zero[] = {0, 0};
    TripletSets s;
    triplet_sets(g, two, p, three, 1, NULL, &s);
    EXPECT(s.exact[PART_IVT] == 1 && s.micro_jaccard[PART_IVT] == 1);
    triplet_sets(g, two, both, three, 1, NULL, &s);
    EXPECT(s.exact[PART_IVT] == 0 && s.contained[PART_IVT] == 1);
    EXPECT_NEAR(s.micro_jaccard[PART_IVT], 2.0 / 3, 1e-15);
    triplet_sets(g, two, both, three, 1, &null, &s);
    EXPECT(s.exact[PART_IVT] == 1);
    triplet_sets(unknown, one, unknown, one, 1, NULL, &s); // a word outside the vocabulary is wrong, even twice
    EXPECT(s.exact[PART_IVT] == 0 && s.exact[PART_T] == 0 && s.exact[PART_I] == 1 && s.exact[PART_IV] == 1);
    EXPECT_INT(s.outside, 1);
    triplet_sets(g, zero, p, three, 1, NULL, &s); // no truth: the frame is left out
    EXPECT_INT(s.frames_used, 0);
    EXPECT(none(s.exact[PART_IVT]) && none(s.micro_f1[PART_T]));
}

TEST(the_k_best_lie_between_the_orders_of_equal_scores) {
    enum { FRAMES = 30 };
    static uint8_t truth[FRAMES * TRIPLETS];
    static double score[FRAMES * TRIPLETS];
    for (int i = 0; i < FRAMES * TRIPLETS; i++) truth[i] = uniform() < 0.03, score[i] = below(5) / 4.0;
    TripletVideo video = {truth, score, FRAMES};
    double low, high, before = 0;
    for (int k = 1; k <= TRIPLETS; k++) {
        double got = triplet_top_k(&video, 1, PART_IVT, k, &low, &high);
        EXPECT(low <= got && got <= high && got >= before);
        before = got;
    }
    EXPECT(before == 1 && low == 1);
}

// ---------------------------------------------------------------------------------------------------------- detection
static const ScoredBox object = {0, 0, 0, 1, 10, 10, 110, 110};
static ScoredBox moved(ScoredBox b, int64_t image, double dx, double score) {
    b.image = image, b.x1 += dx, b.x2 += dx, b.score = score;
    return b;
}

TEST(coco_without_scores_depends_on_the_order_of_hits) {
    ScoredBox gt[3], dt[3];
    CocoScores s;
    CocoClass c;
    const struct {
        bool hit[3];
        double ap;
    } cases[] = {{{1, 0, 1}, 0.55445545}, {{0, 1, 1}, 0.44224422}, {{1, 1, 0}, 0.66336634}};
    for (int k = 0; k < 3; k++) {
        for (int i = 0; i < 3; i++) {
            gt[i] = moved(object, i, 0, 1);
            dt[i] = moved(object, i, cases[k].hit[i] ? 0 : 500, 1);
        }
        coco_boxes(gt, 3, dt, 3, 1, &s, &c);
        EXPECT_NEAR(s.ap50, cases[k].ap, 5e-9);
        EXPECT_NEAR(s.ap, cases[k].ap, 5e-9);
        EXPECT_INT(c.matched50, 2);
        const ScoredBox turned[3] = {dt[2], dt[0], dt[1]}; // the image decides, not the place in the list
        coco_boxes(gt, 3, turned, 3, 1, &s, NULL);
        EXPECT_NEAR(s.ap50, cases[k].ap, 5e-9);
    }
}

TEST(coco_takes_the_last_of_equal_objects_and_counts_crossed_boxes_as_wrong) {
    const ScoredBox gt[2] = {moved(object, 0, -20, 1), moved(object, 0, 20, 1)},
                    dt[2] = {moved(object, 0, 0, .9), moved(object, 0, 22, .8)};
    CocoScores s;
    CocoClass c;
    coco_boxes(gt, 2, dt, 2, 1, &s, &c); // the first takes gt[1], so that the second, which has only that, gets none
    EXPECT_INT(c.matched50, 1);
    const ScoredBox swapped[2] = {gt[1], gt[0]};
    coco_boxes(swapped, 2, dt, 2, 1, &s, &c);
    EXPECT_INT(c.matched50, 2);
    ScoredBox crossed = moved(object, 0, 0, .95);
    crossed.x1 = object.x2, crossed.x2 = object.x1;
    const ScoredBox first[2] = {crossed, object};
    coco_boxes(&object, 1, first, 2, 1, &s, &c);
    EXPECT_INT(c.detections, 2);
    EXPECT_NEAR(s.ap50, 1, 0); // score 1 comes first
    const ScoredBox second[2] = {crossed, moved(object, 0, 0, .5)};
    coco_boxes(&object, 1, second, 2, 1, &s, &c);
    EXPECT_NEAR(s.ap50, 0.5, 1e-15); // a box without area is a false detection, not an ignored one
    EXPECT_NEAR(s.ap_large, 1, 0);   // but of no size that could make it a large one
    coco_boxes(NULL, 0, second, 2, 1, &s, &c);
    EXPECT(none(s.ap) && none(c.ap) && none(s.ar100));
    coco_boxes(&object, 1, NULL, 0, 1, &s, &c);
    EXPECT(s.ap == 0 && c.ap50 == 0 && none(s.ap_small));
}

TEST(coco_samples_recall_at_a_hundredth_times_i) {
    enum { N = 100 };
    ScoredBox gt[N], dt[N];
    CocoScores s;
    for (int i = 0; i < N; i++) gt[i] = moved(object, i, 0, 1), dt[i] = moved(object, i, i < 35 ? 0 : 500, 1);
    coco_boxes(gt, N, dt, N, 1, &s, NULL);
    EXPECT_NEAR(s.ap50, 35.0 / 101, 1e-15); // 35 of 100 is 0.35, and 35 * 0.01 is a little more
}

TEST(coco_counts_100_detections_of_an_image_and_iou_at_the_threshold) {
    enum { N = 101 };
    ScoredBox dt[N];
    CocoScores s;
    CocoClass c;
    CurveScores video, global, mean, pooled;
    for (int i = 0; i < N; i++) dt[i] = moved(object, 0, i == N - 1 ? 0 : 500, 1);
    coco_boxes(&object, 1, dt, N, 1, &s, &c);
    EXPECT(c.detections == 100 && c.matched50 == 0 && s.ap50 == 0); // the hit is the last of 101
    coco_boxes(&object, 1, dt + 1, N - 1, 1, &s, &c);
    EXPECT(c.matched50 == 1 && s.ar100 == 1 && s.ar10 == 0);
    const ScoredBox wide = {0, 0, 0, 1, 0, 0, 4, 1}, half = {0, 0, 0, 1, 0, 0, 2, 1};
    coco_boxes(&wide, 1, &half, 1, 1, &s, &c);
    EXPECT(s.ap50 == 1 && s.ap75 == 0);
    triplet_detection(&wide, 1, &half, 1, 1, 1, 0.5, false, &video, &global, &mean, &pooled);
    EXPECT(video.recall == 1);
}

TEST(detection_by_frame_takes_the_first_object_that_fits) {
    const ScoredBox gt[2] = {moved(object, 0, -20, 1), moved(object, 0, 20, 1)},
                    dt[2] = {moved(object, 0, 15, .9), moved(object, 0, -25, .8)}; // IoU .48 and .90; .90 and .38
    CurveScores video, global, mean, pooled;
    triplet_detection(gt, 2, dt, 2, 1, 1, 0.4, false, &video, &global, &mean, &pooled);
    EXPECT(video.recall == 0.5 && global.recall == 0.5); // the first takes gt[0], though gt[1] is nearer
    triplet_detection(gt, 2, dt, 2, 1, 1, 0.5, false, &video, &global, &mean, &pooled);
    EXPECT(video.recall == 1 && video.ap == 1 && mean.ap == 1 && pooled.ap == 1);
    // hits 1 0 1 of 5 objects: the largest precision where recall >= 0, .1, .2 is 1, at .3 and .4 it is 2/3
    ScoredBox five[5];
    const ScoredBox three[3] = {moved(object, 0, 0, .9), moved(object, 1, 500, .9), moved(object, 2, 0, .9)};
    for (int i = 0; i < 5; i++) five[i] = moved(object, i, 0, 1);
    triplet_detection(five, 5, three, 3, 1, 1, 0.5, false, &video, &global, &mean, &pooled);
    EXPECT_NEAR(video.ap, (3 + 2 * 2.0 / 3) / 11, 1e-15);
    EXPECT(video.recall == 0.4 && video.precision == 1);
    triplet_detection(NULL, 0, three, 3, 1, 1, 0.5, false, &video, &global, &mean, &pooled);
    EXPECT(video.ap == 0); // as the library has it, unlike recognition
    // the fault of the release: an object compared a second time has grown, and what would fit it no longer does
    const ScoredBox one[1] = {moved(object, 0, 0, 1)},
                    miss_hit[2] = {moved(object, 0, 90, .9), moved(object, 0, 0, .8)};
    triplet_detection(one, 1, miss_hit, 2, 1, 1, 0.9, false, &video, &global, &mean, &pooled);
    EXPECT(video.recall == 1);
    triplet_detection(one, 1, miss_hit, 2, 1, 1, 0.9, true, &video, &global, &mean, &pooled);
    EXPECT(video.recall == 0);
    triplet_detection(NULL, 0, NULL, 0, 1, 1, 0.5, false, &video, &global, &mean, &pooled);
    EXPECT(none(video.ap) && none(mean.ap) && none(pooled.recall));
}

// ------------------------------------------------------------------------------------------------------ classification
TEST(scores_of_classes_agree_with_each_other) {
    enum { N = 300, K = 6 };
    for (int round = 0; round < 50; round++) {
        int32_t y[N], p[N], renamed_y[N], renamed_p[N];
        int64_t counts[(K + 1) * (K + 1)], sum = 0, diagonal = 0;
        for (int i = 0; i < N; i++) {
            y[i] = below(K - 1), p[i] = uniform() < 0.5 ? y[i] : below(K + 1);
            renamed_y[i] = K - 1 - y[i], renamed_p[i] = p[i] < K ? K - 1 - p[i] : 99; // anything outside is the same
        }
        ClassReport r, renamed, all;
        class_report(y, p, N, K, CLASSES_TRUTH, 0, NULL, NULL, NULL, &r);
        class_report(renamed_y, renamed_p, N, K, CLASSES_TRUTH, 0, NULL, NULL, NULL, &renamed);
        class_report(y, p, N, K, CLASSES_ALL, 1, NULL, NULL, NULL, &all);
        EXPECT_NEAR(r.weighted.recall, r.accuracy, 1e-14); // a "recall" equal to the accuracy is the weighted one
        EXPECT_NEAR(r.macro.f1, renamed.macro.f1, 1e-14);
        EXPECT_NEAR(class_balanced_accuracy(y, p, N, K), r.macro.recall, 0);
        EXPECT(r.macro.jaccard <= r.macro.f1 && r.micro.jaccard <= r.micro.f1);
        class_confusion(y, p, N, K, counts);
        for (int i = 0; i < (K + 1) * (K + 1); i++) sum += counts[i];
        for (int i = 0; i <= K; i++) diagonal += counts[i * (K + 1) + i];
        EXPECT_INT(sum, N);
        EXPECT_NEAR((double)diagonal / N, r.accuracy, 1e-15);
    }
}

TEST(one_planted_error_is_seen_in_every_score) {
    const int32_t y[] = {0, 0, 1, 1, 2, 2};
    int32_t p[] = {0, 0, 1, 1, 2, 2};
    ClassReport r;
    class_report(y, p, 6, 3, CLASSES_TRUTH, 0, NULL, NULL, NULL, &r);
    EXPECT(r.accuracy == 1 && r.macro.f1 == 1 && r.micro.jaccard == 1 && r.weighted.precision == 1);
    EXPECT(class_map11(y, p, 6, 3) == 1);
    p[3] = 2;
    class_report(y, p, 6, 3, CLASSES_TRUTH, 0, NULL, NULL, NULL, &r);
    EXPECT_NEAR(r.accuracy, 5.0 / 6, 1e-15);
    EXPECT_NEAR(r.macro.recall, (1 + 0.5 + 1) / 3, 1e-15);
    EXPECT_NEAR(r.macro.precision, (1 + 1 + 2.0 / 3) / 3, 1e-15);
    EXPECT_NEAR(r.macro.f1, (1 + 2.0 / 3 + 0.8) / 3, 1e-15);
    EXPECT_NEAR(r.macro.jaccard, (1 + 0.5 + 2.0 / 3) / 3, 1e-15);
    EXPECT(class_map11(y, p, 6, 3) < 1 && class_accuracy(y, p, 6) < 1);
    p[3] = 3; // outside the vocabulary: wrong, and a class only where every string is one
    class_report(y, p, 6, 3, CLASSES_VOCABULARY, 1, NULL, NULL, NULL, &r);
    EXPECT_INT(r.classes, 3);
    EXPECT_NEAR(r.macro.precision, 1, 0);
    class_report(y, p, 6, 3, CLASSES_UNION, 1, NULL, NULL, NULL, &r);
    EXPECT_INT(r.classes, 4);
    EXPECT_NEAR(r.macro.precision, 0.75, 1e-15);
}

TEST(absent_classes_count_as_zero_division_says) {
    const int32_t y[] = {0, 0}, p[] = {0, 0};
    ClassReport r;
    class_report(y, p, 2, 4, CLASSES_ALL, 0, NULL, NULL, NULL, &r);
    EXPECT_NEAR(r.macro.f1, 0.25, 0);
    class_report(y, p, 2, 4, CLASSES_ALL, 1, NULL, NULL, NULL, &r);
    EXPECT_NEAR(r.macro.f1, 1, 0);
    class_report(y, p, 2, 4, CLASSES_ALL, NAN, NULL, NULL, NULL, &r);
    EXPECT_NEAR(r.macro.f1, 1, 0);
    class_report(y, p, 2, 4, CLASSES_TRUTH, 0, NULL, NULL, NULL, &r);
    EXPECT_NEAR(r.macro.f1, 1, 0);
}

TEST(the_blind_floor_is_the_most_frequent_answer_of_a_question) {
    const int32_t y[] = {2, 1, 1, 0, 3, 3, 0}, kind[] = {0, 0, 0, 1, 1, 1, 1};
    int32_t label[3];
    most_frequent(y, 7, kind, 3, 4, label);
    EXPECT(label[0] == 1 && label[1] == 0 && label[2] == -1); // 0 and 3 tie: the lower one
    int64_t count[3];
    double accuracy[3];
    const int32_t p[] = {1, 1, 1, 0, 0, 0, 0};
    accuracy_by_kind(y, p, 7, kind, 3, count, accuracy);
    EXPECT_INT(count[1], 4);
    EXPECT_NEAR(accuracy[0], 2.0 / 3, 1e-15);
    EXPECT_NEAR(accuracy[1], 0.5, 1e-15);
    EXPECT_NONE(accuracy[2]);
}

// ---------------------------------------------------------------------------------------------------- labels by frame
TEST(segments_of_the_worked_example) {
    const int32_t y[] = {0, 0, 0, 0, 1, 1, 1, 1, 2, 2}, p[] = {0, 1, 0, 0, 1, 1, 1, 1, 2, 2};
    LabelVideo video = {y, p, 10};
    SegmentScores s = segment_scores(&video, 0.1);
    EXPECT(s.tp == 3 && s.fp == 2 && s.fn == 0);
    EXPECT_NEAR(s.f1, 0.75, 1e-15);
    EXPECT_NEAR(s.accuracy, 0.9, 1e-15);
    double accuracy, f1, score;
    action_scores(&video, 1, NULL, &accuracy, &f1, &score);
    EXPECT_NEAR(score, sqrt(0.9 * 0.75), 1e-15);
    LabelVideo same = {y, y, 10}, empty = {y, y, 0};
    EXPECT(segment_scores(&same, 0.1).f1 == 1);
    EXPECT(none(segment_scores(&empty, 0.1).f1) && none(segment_scores(&empty, 0.1).accuracy));
}

// All pairs of runs, as the published code looks for them.
static SegmentScores slow_segments(const LabelVideo *v, double threshold) {
    int64_t first[2][200], last[2][200], n[2] = {0};
    bool used[200] = {false};
    const int32_t *labels[2] = {v->truth, v->predicted};
    SegmentScores s = {0};
    for (int k = 0; k < 2; k++)
        for (int64_t i = 0; i < v->frames; i++)
            if (i && labels[k][i] == labels[k][i - 1]) last[k][n[k] - 1] = i + 1;
            else first[k][n[k]] = i, last[k][n[k]++] = i + 1;
    for (int64_t i = 0; i < n[1]; i++) {
        double best = -1e9;
        int64_t at = -1;
        for (int64_t k = 0; k < n[0]; k++) {
            double iou =
                (fmin((double)last[0][k], (double)last[1][i]) - fmax((double)first[0][k], (double)first[1][i])) /
                (fmax((double)last[0][k], (double)last[1][i]) - fmin((double)first[0][k], (double)first[1][i]));
            if (v->truth[first[0][k]] == v->predicted[first[1][i]] && iou > best) best = iou, at = k;
        }
        if (at >= 0 && best >= threshold && !used[at]) used[at] = true, s.tp++;
        else s.fp++;
    }
    s.fn = n[0] - s.tp;
    return s;
}
TEST(segments_found_in_one_walk_are_those_of_all_pairs) {
    for (int round = 0; round < 500; round++) {
        int32_t y[200], p[200];
        int n = 1 + below(200), k = 1 + below(4), hold = 1 + below(20);
        for (int i = 0; i < n; i++) {
            y[i] = i && below(hold) ? y[i - 1] : below(k);
            p[i] = i && below(hold) ? p[i - 1] : below(k);
            if (below(3) == 0) p[i] = y[i];
        }
        LabelVideo v = {y, p, n};
        SegmentScores a = segment_scores(&v, 0.1), b = slow_segments(&v, 0.1);
        if (a.tp != b.tp || a.fp != b.fp || a.fn != b.fn)
            FAIL("%lld %lld %lld, of all pairs %lld %lld %lld", (long long)a.tp, (long long)a.fp, (long long)a.fn,
                 (long long)b.tp, (long long)b.fp, (long long)b.fn);
    }
}

TEST(relaxed_phases_forgive_what_is_near_a_change_only) {
    enum { N = 60 };
    int32_t y[N], p[N];
    for (int i = 0; i < N; i++) y[i] = i < 30 ? 0 : 1, p[i] = i < 25 ? 0 : 1; // the change comes 5 frames early
    LabelVideo v = {y, p, N};
    PhaseScores strict, script, tail;
    double by_video[3 * 7];
    phase_scores(&v, 1, 7, PHASE_STRICT, NULL, NULL, by_video, &strict);
    phase_scores(&v, 1, 7, PHASE_RELAXED_SCRIPT, NULL, NULL, NULL, &script);
    phase_scores(&v, 1, 7, PHASE_RELAXED_TAIL, NULL, NULL, NULL, &tail);
    EXPECT_NEAR(strict.accuracy, 100.0 * 55 / 60, 1e-12);
    EXPECT_NEAR(tail.accuracy, 100, 0);
    EXPECT_NEAR(script.accuracy, strict.accuracy, 1e-12); // it forgives frames that were right
    EXPECT_NEAR(strict.recall.mean, (100.0 * 25 / 30 + 100) / 2, 1e-12);
    EXPECT_INT(strict.recall.without_value, 5);
    EXPECT_NONE(by_video[2]);                          // a phase that the labels lack has no value, not 0
    for (int i = 0; i < N; i++) p[i] = i < 45 ? 0 : 1; // 15 frames late: 10 of them are forgiven
    phase_scores(&v, 1, 7, PHASE_RELAXED_TAIL, NULL, NULL, NULL, &tail);
    EXPECT_NEAR(tail.accuracy, 100.0 * 55 / 60, 1e-12);
    for (int i = 0; i < N; i++) p[i] = i < 30 ? -1 : 99; // unreadable answers are never near anything
    phase_scores(&v, 1, 7, PHASE_RELAXED_TAIL, NULL, NULL, NULL, &tail);
    EXPECT(tail.accuracy == 0 && tail.recall.mean == 0 && none(tail.precision.mean));
    phase_scores(NULL, 0, 7, PHASE_STRICT, NULL, NULL, NULL, &strict);
    EXPECT(none(strict.accuracy) && none(strict.accuracy_std_n1) && none(strict.jaccard.mean) &&
           none(strict.jaccard.std));
}

// -------------------------------------------------------------------------------------------- CVS, arena and intervals
TEST(the_published_overall_of_the_critical_view_is_pooled) {
    const int64_t correct[3] = {704, 912, 887}, asked[3] = {830, 939, 937};
    double percent[3], pooled, avg;
    cvs_of_counts(correct, asked, percent, &pooled, &avg);
    EXPECT_NEAR(pooled, 92.50, 0.005);
    EXPECT_NEAR(avg, 92.20, 0.01);
    const int32_t truth[] = {1, 1, 1, 0, 1, 1, 1, -1, 0}, predicted[] = {1, 1, 1, 1, 1, -1, 1, 1, 0};
    CvsScores s;
    cvs_scores(truth, predicted, NULL, 3, &s);
    EXPECT_INT(s.all_three, 2);
    EXPECT_NEAR(s.joint, 0.5, 0);
    EXPECT_NEAR(s.achieved, 1, 0); // an unreadable criterion is not achieved, and so it was
    EXPECT_NEAR(s.pooled, 6.0 / 8, 1e-15);
    EXPECT_NEAR(s.avg, (2.0 / 3 + 1 + 2.0 / 3) / 3, 1e-15);
    EXPECT_NONE(s.map);
    cvs_scores(NULL, NULL, NULL, 0, &s);
    EXPECT(none(s.avg) && none(s.pooled) && none(s.joint) && none(s.achieved) && none(s.criterion[1].accuracy));
    EXPECT(cvs_of_raters(0.5) == 0 && cvs_of_raters(1.0 / 3) == 0 && cvs_of_raters(2.0 / 3) == 1);
}

TEST(arena_scores_are_comparable_on_common_tasks_only) {
    const double x[] = {51.69, 80.90, 48.10, 49.94, 6.77, 49.70, NAN, 29.01};
    double own[2], common[2], a, b;
    int64_t n[2];
    uint8_t is_common[4];
    arena_scores(x, 2, 4, own, n, common, is_common);
    EXPECT_NEAR(own[0], 57.66, 0.005);
    EXPECT_NEAR(own[1], 28.5, 0.05);
    EXPECT_NEAR(common[0], 60.84, 0.005);
    EXPECT(n[0] == 4 && n[1] == 3 && !is_common[2] && is_common[3]);
    EXPECT_INT(arena_pair(x, x + 4, 4, &a, &b), 3);
    EXPECT(a == common[0] && b == common[1]);
    const double nothing[] = {NAN, 1, 1, NAN};
    arena_scores(nothing, 2, 2, own, n, common, is_common);
    EXPECT(none(common[0]) && none(common[1]) && own[0] == 1);
}

TEST(intervals_are_reproducible_and_honest) {
    enum { K = 40 };
    double right[K], other[K], n[K];
    for (int i = 0; i < K; i++)
        n[i] = 50 + below(100), right[i] = floor(n[i] * (0.4 + 0.4 * uniform())), other[i] = right[i] - 5;
    ClusterSums sums = {right, other, n};
    Interval a = bootstrap(cluster_ratio, &sums, K, BOOTSTRAP_RESAMPLES, 0.95, 1),
             again = bootstrap(cluster_ratio, &sums, K, BOOTSTRAP_RESAMPLES, 0.95, 1),
             other_seed = bootstrap(cluster_ratio, &sums, K, BOOTSTRAP_RESAMPLES, 0.95, 2),
             narrow = bootstrap(cluster_ratio, &sums, K, BOOTSTRAP_RESAMPLES, 0.5, 1);
    EXPECT(!memcmp(&a, &again, sizeof a));
    EXPECT(a.low != other_seed.low && fabs(a.low - other_seed.low) < 0.01);
    EXPECT(a.low < a.estimate && a.estimate < a.high);
    EXPECT(narrow.low > a.low && narrow.high < a.high);
    Interval mean = bootstrap(cluster_mean, &sums, K, 2000, 0.95, 1);
    double squares = 0; // the standard error of a mean of clusters is known
    for (int i = 0; i < K; i++) squares += pow(right[i] / n[i] - mean.estimate, 2);
    EXPECT_NEAR(mean.standard_error, sqrt(squares / K / K), 0.1 * sqrt(squares / K / K));
    Interval better = bootstrap(cluster_difference, &sums, K, 2000, 0.95, 1);
    EXPECT(better.low > 0 && better.estimate > 0);
    Interval one = bootstrap(cluster_ratio, &sums, 1, 2000, 0.95, 1),
             zero = bootstrap(cluster_ratio, &sums, 0, 2000, 0.95, 1);
    EXPECT(!none(one.estimate) && none(one.low) && none(one.high)); // one patient says nothing about another
    EXPECT(none(zero.estimate) && none(zero.low));
}

// -------------------------------------------------------------------------------------------------- empty, and many
TEST(empty_inputs_have_no_value) {
    ClassReport r;
    const enum ClassGroup groups[] = {CLASSES_ALL, CLASSES_TRUTH, CLASSES_UNION, CLASSES_VOCABULARY};
    for (int g = 0; g < 4; g++)
        for (int zero_division = 0; zero_division < 2; zero_division++) {
            class_report(NULL, NULL, 0, 5, groups[g], zero_division, NULL, NULL, NULL, &r);
            EXPECT(none(r.accuracy) && none(r.macro.f1) && none(r.weighted.recall) && none(r.micro.precision));
        }
    EXPECT_NONE(mean_of(NULL, 0));
    EXPECT_NONE(mean_of((const double[]){NAN, NAN}, 2));
    EXPECT_NONE(class_accuracy(NULL, NULL, 0));
    EXPECT_NONE(class_balanced_accuracy(NULL, NULL, 0, 3));
    EXPECT_NONE(class_map11(NULL, NULL, 0, 3));
    double accuracy, f1, score;
    action_scores(NULL, 0, NULL, &accuracy, &f1, &score);
    EXPECT(none(accuracy) && none(f1) && none(score));
    TripletSets s;
    triplet_sets(NULL, (const int64_t[]){0}, NULL, (const int64_t[]){0}, 0, NULL, &s);
    EXPECT(none(s.exact[PART_IVT]) && none(s.micro_f1[PART_I]));
}

TEST(ten_thousand_answers_are_scored_in_well_under_a_second) {
    enum { N = 10000, K = 40, VIDEOS = 50 };
    uint8_t *truth = alloc_or_die(N * TRIPLETS, 1, "labels");
    double *score = alloc_or_die(N * TRIPLETS, sizeof *score, "scores");
    ScoredBox *gt = alloc_or_die(N, sizeof *gt, "boxes"), *dt = alloc_or_die(N, sizeof *dt, "boxes");
    CocoClass *per_class = alloc_or_die(K, sizeof *per_class, "classes");
    int32_t *y = alloc_or_die(N, sizeof *y, "labels"), *p = alloc_or_die(N, sizeof *p, "labels");
    TripletVideo triplets[VIDEOS];
    LabelVideo labels[VIDEOS];
    for (int i = 0; i < N * TRIPLETS; i++) truth[i] = i % 97 == 0, score[i] = (double)(i * 7919ll % 10007);
    for (int i = 0; i < N; i++) {
        gt[i] = moved(object, i % 2000, below(300), 1), dt[i] = moved(gt[i], i % 2000, below(80), uniform());
        gt[i].category = dt[i].category = i % 3, y[i] = i / 60 % 7, p[i] = uniform() < 0.7 ? y[i] : below(7);
    }
    for (int v = 0; v < VIDEOS; v++) {
        int64_t first = v * (N / VIDEOS);
        triplets[v] = (TripletVideo){truth + first * TRIPLETS, score + first * TRIPLETS, N / VIDEOS};
        labels[v] = (LabelVideo){y + first, p + first, N / VIDEOS};
    }
    clock_t start = clock();
    TripletAP ap;
    CocoScores coco;
    ClassReport r;
    PhaseScores phases;
    double accuracy, f1, segments;
    for (int part = 0; part < TRIPLET_PARTS; part++) triplet_ap(triplets, VIDEOS, part, false, NULL, &ap);
    coco_boxes(gt, N, dt, N, K, &coco, per_class);
    class_report(y, p, N, K, CLASSES_UNION, 0, NULL, NULL, NULL, &r);
    phase_scores(labels, VIDEOS, 7, PHASE_STRICT, NULL, NULL, NULL, &phases);
    action_scores(labels, VIDEOS, NULL, &accuracy, &f1, &segments);
    double seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
    printf("     %d frames with 100 scores, %d boxes, %d labels: %.3f s\n", N, N, N, seconds);
#ifndef SURGR1_DEBUG
    EXPECT(seconds < 1); // of processor time; far less on an idle machine
#endif
    EXPECT(!none(ap.video_map) && !none(coco.ap) && !none(r.macro.f1) && !none(phases.accuracy) && !none(segments));
    free(truth), free(score), free(gt), free(dt), free(per_class), free(y), free(p);
}
