// metrics.c - every number that an evaluation reports, computed from plain arrays.
//
// What it is:  the metrics of Surg-R1, Surgery-R1 and of the datasets they use, one section per family; the source of
//              a definition stands above it. Equal to ivtmetrics 0.1.5, pycocotools, torchvision and scikit-learn to
//              1e-9 (test/oracle_metrics.h), to their quirks where these decide a published number.
// What it is not: a reader of answers (answer.c), a table (eval.c), or a judge of which convention is right: where two
//              are in use, both are here under names that differ.
// Read before: surgr1.h, section surgery/metrics.c.  Read next: eval.c.
//
// "No value" is NaN and leaves every mean. Ties are decided by a stated order, never by the sort: where the order of
// equals matters, the key ends in a place in the list. Time is n log n or better, but for boxes of one image and
// category.
#include "../surgr1.h"

static double share(int64_t part, int64_t whole) { return whole ? (double)part / (double)whole : (double)NAN; }

double mean_of(const double *x, int64_t n) {
    double sum = 0;
    int64_t used = 0;
    for (int64_t i = 0; i < n; i++)
        if (!isnan(x[i])) sum += x[i], used++;
    return used ? sum / (double)used : (double)NAN;
}
static double mean_of_column(const double *x, int64_t n, int64_t stride) {
    double sum = 0;
    int64_t used = 0;
    for (int64_t i = 0; i < n; i++)
        if (!isnan(x[i * stride])) sum += x[i * stride], used++;
    return used ? sum / (double)used : (double)NAN;
}
// Standard deviation of the values that are no NaN, dividing by their count less `ddof`; 0 for a single value.
static double deviation_of(const double *x, int64_t n, int64_t ddof) {
    double mean = mean_of(x, n), squares = 0;
    int64_t used = 0;
    for (int64_t i = 0; i < n; i++)
        if (!isnan(x[i])) squares += (x[i] - mean) * (x[i] - mean), used++;
    return used > ddof ? sqrt(squares / (double)(used - ddof)) : 0;
}

// A place in a list and what it is ranked by: falling score, NaN last, equal scores as listed.
typedef struct Ranked {
    double score;
    int64_t at;
} Ranked;
static Ranked ranked(double score, int64_t at) { return (Ranked){isnan(score) ? (double)-INFINITY : score, at}; }
static int by_rank(const void *a, const void *b) {
    const Ranked *x = a, *y = b;
    if (x->score != y->score) return x->score > y->score ? -1 : 1;
    return x->at < y->at ? -1 : x->at > y->at;
}
static int by_number_falling(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x > y ? -1 : x < y;
}
static int by_number(const void *a, const void *b) { return by_number_falling(b, a); }

// ------------------------------------------------------------------------------------------------------------- boxes
// torchvision.ops 0.23: box_iou, generalized_box_iou (arXiv 1902.09630), distance_box_iou and complete_box_iou
// (arXiv 1911.08287), in double.
static double at_least_0(double v) { return v > 0 ? v : 0; }

static double iou_and_union(const Box *a, const Box *b, double *united) {
    double w = at_least_0(fmin(a->x2, b->x2) - fmax(a->x1, b->x1)),
           h = at_least_0(fmin(a->y2, b->y2) - fmax(a->y1, b->y1));
    *united = (a->x2 - a->x1) * (a->y2 - a->y1) + (b->x2 - b->x1) * (b->y2 - b->y1) - w * h;
    return w * h / *united;
}

double box_iou(const Box *a, const Box *b) {
    double united;
    return iou_and_union(a, b, &united);
}

double box_giou(const Box *a, const Box *b) { // IoU - (hull - union) / hull
    double united, iou = iou_and_union(a, b, &united),
                   hull = at_least_0(fmax(a->x2, b->x2) - fmin(a->x1, b->x1)) *
                          at_least_0(fmax(a->y2, b->y2) - fmin(a->y1, b->y1));
    return iou - (hull - united) / hull;
}

static const double iou_eps = 1e-7;           // torchvision's
double box_diou(const Box *a, const Box *b) { // IoU - |centre - centre|^2 / diagonal of the hull^2
    double w = at_least_0(fmax(a->x2, b->x2) - fmin(a->x1, b->x1)),
           h = at_least_0(fmax(a->y2, b->y2) - fmin(a->y1, b->y1));
    double dx = (a->x1 + a->x2) / 2 - (b->x1 + b->x2) / 2, dy = (a->y1 + a->y2) / 2 - (b->y1 + b->y2) / 2;
    return box_iou(a, b) - (dx * dx + dy * dy) / (w * w + h * h + iou_eps);
}

double box_ciou(const Box *a, const Box *b) { // DIoU - alpha v; v compares the aspect ratios
    static const double pi = 3.14159265358979323846;
    double turn = atan((a->x2 - a->x1) / (a->y2 - a->y1)) - atan((b->x2 - b->x1) / (b->y2 - b->y1));
    double v = 4 / (pi * pi) * turn * turn, alpha = v / (1 - box_iou(a, b) + v + iou_eps);
    return box_diou(a, b) - alpha * v;
}

static bool box_has_area(const Box *b) { return b->x2 > b->x1 && b->y2 > b->y1; }
double box_iou_strict(const Box *a, const Box *b) {
    double iou = box_has_area(a) && box_has_area(b) ? box_iou(a, b) : 0;
    return iou > 0 ? iou : 0; // boxes without end have none either
}

// longbai1006/Surgical-VQLA, utils.py, mIoU_xyxy: sides + 1 although the boxes are scaled to 0-1, and the branch for
// boxes that do not overlap is overwritten.
static double iou_plus_one(const Box *a, const Box *b, double *w, double *h) {
    *w = fmin(a->x2, b->x2) - fmax(a->x1, b->x1) + 1, *h = fmin(a->y2, b->y2) - fmax(a->y1, b->y1) + 1;
    double inter = *w * *h,
           united = (a->x2 - a->x1 + 1) * (a->y2 - a->y1 + 1) + (b->x2 - b->x1 + 1) * (b->y2 - b->y1 + 1) - inter;
    return inter / (united > 1 ? united : 1);
}
double box_iou_vqla_legacy(const Box *a, const Box *b) {
    double w, h;
    return iou_plus_one(a, b, &w, &h);
}
double box_iou_pixels(const Box *a, const Box *b) {
    double w, h, iou = iou_plus_one(a, b, &w, &h);
    return w > 0 && h > 0 ? iou : 0;
}

// ------------------------------------------------------------------------------------------------- average precision
// scikit-learn, average_precision_score: AP = sum over distinct scores s, falling, of (R(s) - R(before)) P(s), where
// everything of one score comes in at once. Only scores of positives add to the sum, so only they are sorted; all
// others are counted into them.
typedef struct Step { // one distinct score of a positive: hits of that score; items from it up to below the one before
    double score;
    int64_t hits, items;
} Step;
static int by_step(const void *a, const void *b) {
    const Step *x = a, *y = b;
    return x->score > y->score ? -1 : x->score < y->score;
}

static double ranked_precision(const uint8_t *positive, const double *score, int64_t n, Step *room) { // room [n]
    int64_t positives = 0, steps = 0;
    for (int64_t i = 0; i < n; i++)
        if (positive[i]) room[positives++] = (Step){ranked(score[i], i).score, 1, 0};
    if (!positives) return NAN;
    qsort(room, (size_t)positives, sizeof *room, by_step);
    for (int64_t i = 0; i < positives; i++)
        if (steps && room[steps - 1].score == room[i].score) room[steps - 1].hits++;
        else room[steps++] = room[i];
    for (int64_t i = 0; i < n; i++) {
        double s = ranked(score[i], i).score;
        if (s < room[steps - 1].score) continue; // ranked below every positive
        int64_t low = 0, high = steps - 1;       // the first step with a score of at most s
        while (low < high) {
            int64_t middle = (low + high) / 2;
            if (room[middle].score <= s) high = middle;
            else low = middle + 1;
        }
        room[low].items++;
    }
    double ap = 0, recall = 0;
    int64_t hits = 0, items = 0;
    for (int64_t j = 0; j < steps; j++) {
        hits += room[j].hits, items += room[j].items;
        double r = (double)hits / (double)positives;
        ap += (r - recall) * ((double)hits / (double)items), recall = r;
    }
    return ap;
}

double average_precision(const uint8_t *positive, const double *score, int64_t n) {
    Step *room = alloc_or_die((size_t)n, sizeof *room, "scores of positives");
    double ap = ranked_precision(positive, score, n, room);
    free(room);
    return ap;
}

// The 11-point curve of ivtmetrics' Detection and of the Surg-R1 authors' evaluator: hits in the order of the list, the
// mean over r = 0, 0.1 .. 1 of the largest precision where recall >= r. NaN without objects and without hits to judge.
static CurveScores curve_11(const uint8_t *hit, int64_t n, int64_t objects) {
    CurveScores c = {NAN, NAN, NAN};
    if (!n && !objects) return c;
    int64_t hits = 0;
    for (int64_t i = 0; i < n; i++) hits += hit[i];
    c = (CurveScores){0, objects ? (double)hits / (double)objects : 0, 0};
    double best[11] = {0}; // best[i]: largest precision where i is the last point reached
    hits = 0;
    for (int64_t i = 0; i < n; i++) {
        hits += hit[i];
        double recall = objects ? (double)hits / (double)objects : 0, precision = (double)hits / (double)(i + 1);
        int point = recall >= 1 ? 10 : (int)(recall * 10);
        if (point < 10 && recall >= (point + 1) / 10.0) point++; // the comparison with i / 10.0 decides,
        else if (recall < point / 10.0) point--;                 // not the product
        best[point] = fmax(best[point], precision);
    }
    double reached = 0;
    for (int i = 10; i >= 0; i--) reached = fmax(reached, best[i]), c.ap += reached;
    c.ap /= 11, c.precision = reached;
    return c;
}

// ---------------------------------------------------------------------------------------------------------- triplets
const char *const triplet_part_names[TRIPLET_PARTS] = {"ivt", "i", "v", "t", "iv", "it"};
enum { VERBS = 10, TARGETS = 15, LARGEST_ID = 100 };

static int part_id(enum TripletPart part, int id) { // the dataset's id of a part of a triplet
    const uint8_t *x = cholect50_triplets[id];
    switch (part) {
    case PART_I: return x[0];
    case PART_V: return x[1];
    case PART_T: return x[2];
    case PART_IV: return x[0] * VERBS + x[1];
    case PART_IT: return x[0] * TARGETS + x[2];
    default: return id;
    }
}
// Column of each triplet and id of each column: the ids that occur, ascending.
typedef struct PartMap {
    int columns, column[TRIPLETS], id[LARGEST_ID];
} PartMap;
static PartMap part_map(enum TripletPart part) {
    PartMap m = {0};
    int column_of[LARGEST_ID];
    bool occurs[LARGEST_ID] = {false};
    for (int x = 0; x < TRIPLETS; x++) occurs[part_id(part, x)] = true;
    for (int id = 0; id < LARGEST_ID; id++)
        if (occurs[id]) column_of[id] = m.columns, m.id[m.columns++] = id;
    for (int x = 0; x < TRIPLETS; x++) m.column[x] = column_of[part_id(part, x)];
    return m;
}
Triplet triplet_at(int id) {
    CHECK(id >= 0 && id < TRIPLETS, "triplet %d of %d", id, TRIPLETS);
    return (Triplet){cholect50_triplets[id][0], cholect50_triplets[id][1], cholect50_triplets[id][2]};
}
int triplet_id(Triplet x) {
    for (int id = 0; id < TRIPLETS; id++)
        if (cholect50_triplets[id][0] == x.i && cholect50_triplets[id][1] == x.v && cholect50_triplets[id][2] == x.t)
            return id;
    return -1;
}
int triplet_columns(enum TripletPart part) { return part_map(part).columns; }
int triplet_column(enum TripletPart part, int id) {
    CHECK(id >= 0 && id < TRIPLETS, "triplet %d of %d", id, TRIPLETS);
    return part_map(part).column[id];
}
int triplet_column_id(enum TripletPart part, int column) {
    PartMap m = part_map(part);
    CHECK(column >= 0 && column < m.columns, "column %d of %d", column, m.columns);
    return m.id[column];
}

// A part of all videos by column: truth (or of the triplets) and score (maximum over the triplets) [columns, frames].
typedef struct PartTable {
    PartMap map;
    int64_t frames;
    uint8_t *truth;
    double *score;
} PartTable;
static PartTable part_table(const TripletVideo *videos, int64_t n, enum TripletPart part) {
    PartTable t = {.map = part_map(part)};
    for (int64_t v = 0; v < n; v++) t.frames += videos[v].frames;
    t.truth = alloc_or_die((size_t)t.frames, (size_t)t.map.columns, "triplet labels");
    t.score = alloc_or_die((size_t)t.frames, (size_t)t.map.columns * sizeof(double), "triplet scores");
    for (int64_t i = 0; i < t.frames * t.map.columns; i++) t.score[i] = -INFINITY; // scores may be negative
    for (int64_t v = 0, frame = 0; v < n; v++)
        for (int64_t f = 0; f < videos[v].frames; f++, frame++)
            for (int x = 0; x < TRIPLETS; x++) {
                int64_t at = t.map.column[x] * t.frames + frame, from = f * TRIPLETS + x;
                t.truth[at] |= videos[v].truth[from] != 0;
                t.score[at] = fmax(t.score[at], videos[v].score[from]);
            }
    return t;
}
static void part_table_free(PartTable *t) { free(t->truth), free(t->score); }

// CAMMA-public/ivtmetrics 0.1.5 Recognition (arXiv 2204.05235). An absent class has no value, as its authors mean; the
// release finds it by the text "-0.0", which scikit-learn 1.6 no longer gives: then it counts as 0 (absent_is_zero).
void triplet_ap(const TripletVideo *videos, int64_t n, enum TripletPart part, bool absent_is_zero, double *per_video,
                TripletAP *out) {
    PartTable t = part_table(videos, n, part);
    Step *room = alloc_or_die((size_t)t.frames, sizeof *room, "scores of positives");
    double *ap = alloc_or_die((size_t)n, (size_t)t.map.columns * sizeof *ap, "average precisions");
    int columns = t.map.columns;
    *out = (TripletAP){.columns = columns, .video_map_ignore_null = NAN, .global_map_ignore_null = NAN};
    for (int c = 0; c < columns; c++) {
        const uint8_t *truth = t.truth + c * t.frames;
        const double *score = t.score + c * t.frames;
        for (int64_t v = 0; v < n; v++) {
            double value = ranked_precision(truth, score, videos[v].frames, room);
            truth += videos[v].frames, score += videos[v].frames;
            ap[v * columns + c] = isnan(value) && absent_is_zero ? 0 : value;
        }
        double value = ranked_precision(t.truth + c * t.frames, t.score + c * t.frames, t.frames, room);
        out->global_ap[c] = isnan(value) && absent_is_zero ? 0 : value;
        out->video_ap[c] = mean_of_column(ap + c, n, columns);
    }
    out->video_map = mean_of(out->video_ap, columns), out->global_map = mean_of(out->global_ap, columns);
    if (part == PART_IVT) {
        out->video_map_ignore_null = mean_of(out->video_ap, TRIPLET_FIRST_NULL);
        out->global_map_ignore_null = mean_of(out->global_ap, TRIPLET_FIRST_NULL);
    }
    for (int64_t i = 0; per_video && i < n * columns; i++) per_video[i] = ap[i];
    free(ap), free(room), part_table_free(&t);
}

// ivtmetrics Recognition.topK: hits / all positives, over all frames. The library sorts without a rule for ties.
double triplet_top_k(const TripletVideo *videos, int64_t n, enum TripletPart part, int k, double *least,
                     double *greatest) {
    PartTable t = part_table(videos, n, part);
    int columns = t.map.columns;
    CHECK(k >= 1 && k <= columns, "the best %d of %d columns", k, columns);
    int64_t all = 0, hits = 0, low = 0, high = 0;
    for (int64_t f = 0; f < t.frames; f++) {
        Ranked row[TRIPLETS];
        for (int c = 0; c < columns; c++) row[c] = ranked(t.score[c * t.frames + f], c);
        qsort(row, (size_t)columns, sizeof *row, by_rank);
        int64_t above = 0, above_hits = 0, tied = 0, tied_hits = 0; // of the k-th score
        for (int c = 0; c < columns; c++) {
            int hit = t.truth[row[c].at * t.frames + f];
            all += hit, hits += c < k ? hit : 0;
            if (row[c].score > row[k - 1].score) above++, above_hits += hit;
            else if (row[c].score == row[k - 1].score) tied++, tied_hits += hit;
        }
        int64_t places = k - above, misses = tied - tied_hits;
        low += above_hits + (places > misses ? places - misses : 0);
        high += above_hits + (places < tied_hits ? places : tied_hits);
    }
    part_table_free(&t);
    double whole = (double)(all ? all : 1);
    *least = (double)low / whole, *greatest = (double)high / whole;
    return (double)hits / whole;
}

// One number per part of a triplet; -1 when a word of it is unknown.
static int64_t part_key(enum TripletPart part, Triplet x) {
    bool i = part != PART_V && part != PART_T, v = part == PART_IVT || part == PART_V || part == PART_IV,
         t = part == PART_IVT || part == PART_T || part == PART_IT;
    if ((i && x.i < 0) || (v && x.v < 0) || (t && x.t < 0)) return -1;
    const int64_t base = INT64_C(1) << 20;
    return ((i ? x.i : 0) * base + (v ? x.v : 0)) * base + (t ? x.t : 0);
}
static int by_key(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? -1 : x > y;
}
static bool triplet_ignored(Triplet x, const Triplet *ignore) { return ignore && x.v == ignore->v && x.t == ignore->t; }
static int64_t part_set(enum TripletPart part, const Triplet *x, int64_t n, const Triplet *ignore, int64_t *set) {
    int64_t all = 0, kept = 0;
    for (int64_t k = 0; k < n; k++)
        if (!triplet_ignored(x[k], ignore)) set[all++] = part_key(part, x[k]);
    if (all) qsort(set, (size_t)all, sizeof *set, by_key);
    for (int64_t k = 0; k < all; k++)
        if (!k || set[k] != set[k - 1]) set[kept++] = set[k];
    return kept;
}

// Sets per frame as scikit-learn has them on indicator rows (accuracy_score, jaccard_score and f1_score with "micro");
// frames without truth are left out (datasets.md M.2).
void triplet_sets(const Triplet *truth, const int64_t *truth_start, const Triplet *predicted,
                  const int64_t *predicted_start, int64_t frames, const Triplet *ignore, TripletSets *out) {
    int64_t longest = 0, equal[TRIPLET_PARTS] = {0}, within[TRIPLET_PARTS] = {0}, tp[TRIPLET_PARTS] = {0},
            fp[TRIPLET_PARTS] = {0}, fn[TRIPLET_PARTS] = {0};
    *out = (TripletSets){.frames = frames};
    for (int64_t f = 0; f < frames; f++) {
        int64_t a = truth_start[f + 1] - truth_start[f], b = predicted_start[f + 1] - predicted_start[f];
        CHECK(a >= 0 && b >= 0, "triplets of frame %lld end before they start", (long long)f);
        longest = a > longest ? a : longest, longest = b > longest ? b : longest;
    }
    int64_t *g = alloc_or_die((size_t)longest, sizeof *g, "triplets of a frame"),
            *p = alloc_or_die((size_t)longest, sizeof *p, "triplets of a frame");
    for (int64_t f = 0; f < frames; f++) {
        const Triplet *gt = truth + truth_start[f], *pd = predicted + predicted_start[f];
        int64_t n_gt = truth_start[f + 1] - truth_start[f], n_pd = predicted_start[f + 1] - predicted_start[f];
        for (int64_t k = 0; k < n_pd; k++) out->outside += pd[k].i < 0 || pd[k].v < 0 || pd[k].t < 0;
        for (enum TripletPart part = 0; part < TRIPLET_PARTS; part++) {
            int64_t n = part_set(part, gt, n_gt, ignore, g), m = part_set(part, pd, n_pd, ignore, p), both = 0;
            if (!n) break; // the same for every part
            for (int64_t i = 0, j = 0; i < n && j < m;) {
                if (g[i] == p[j]) both += g[i] >= 0, i++, j++; // an unknown word equals nothing
                else if (g[i] < p[j]) i++;
                else j++;
            }
            if (part == PART_IVT) out->frames_used++;
            equal[part] += both == n && both == m, within[part] += both == n;
            tp[part] += both, fp[part] += m - both, fn[part] += n - both;
        }
    }
    free(g), free(p);
    for (int part = 0; part < TRIPLET_PARTS; part++) {
        out->exact[part] = share(equal[part], out->frames_used);
        out->contained[part] = share(within[part], out->frames_used);
        out->micro_jaccard[part] = share(tp[part], tp[part] + fp[part] + fn[part]);
        out->micro_f1[part] = share(2 * tp[part], 2 * tp[part] + fp[part] + fn[part]);
    }
}

// --------------------------------------------------------------------------------------------------- found in frames
static double found_iou(const ScoredBox *a, const ScoredBox *b) {
    Box x = {a->x1, a->y1, a->x2, a->y2, ""}, y = {b->x1, b->y1, b->x2, b->y2, ""};
    return box_iou_strict(&x, &y);
}
static int by_frame(const ScoredBox *a, const ScoredBox *b) {
    if (a->video != b->video) return a->video < b->video ? -1 : 1;
    return a->image < b->image ? -1 : a->image > b->image;
}
// Where the frame that starts at `first` ends.
static int64_t frame_end(const ScoredBox *x, int64_t first, int64_t n) {
    int64_t i = first;
    while (i < n && !by_frame(&x[first], &x[i])) i++;
    return i;
}
static void rank_boxes(const ScoredBox *x, int64_t first, int64_t last, Ranked *out) {
    for (int64_t i = first; i < last; i++) out[i - first] = ranked(x[i].score, i);
    if (last > first) qsort(out, (size_t)(last - first), sizeof *out, by_rank);
}

// The fault of the release: every comparison turns x, y, w, h into corners again, in place, so that from its second one
// on a box reaches too far; and it lists equal scores backwards.
typedef struct LegacyBox {
    double x, y, w, h;
} LegacyBox;
static double legacy_iou(LegacyBox *a, LegacyBox *b) {
    a->w += a->x, a->h += a->y, b->w += b->x, b->h += b->y; // corners now
    double w = at_least_0(fmin(a->w, b->w) - fmax(a->x, b->x)), h = at_least_0(fmin(a->h, b->h) - fmax(a->y, b->y));
    double area = at_least_0(a->w - a->x) * at_least_0(a->h - a->y) + at_least_0(b->w - b->x) * at_least_0(b->h - b->y);
    return w * h > 0 ? w * h / (area - w * h) : 0;
}
static void legacy_boxes(const ScoredBox *x, int64_t first, int64_t last, Ranked *order, LegacyBox *out) {
    for (int64_t i = first; i < last; i++) {
        order[i - first] = ranked(x[i].score, -i);
        out[i - first] = (LegacyBox){x[i].x1, x[i].y1, x[i].x2 - x[i].x1, x[i].y2 - x[i].y1};
    }
    if (last > first) qsort(order, (size_t)(last - first), sizeof *order, by_rank);
    for (int64_t i = first; i < last; i++) order[i - first].at = -order[i - first].at;
}

// CAMMA-public/ivtmetrics 0.1.5 Detection (arXiv 2302.06294), without its two faults (boxes converted again at every
// comparison; a pooled score that cannot be called). Within a frame, detections by falling score take the first object
// left, of their category, with IoU >= threshold: not the best one. Frames are joined in order, not sorted by score.
void triplet_detection(const ScoredBox *truth, int64_t n_truth, const ScoredBox *found, int64_t n_found, int64_t videos,
                       int32_t categories, double threshold, bool legacy, CurveScores *video, CurveScores *global,
                       CurveScores *video_mean, CurveScores *global_mean) {
    const size_t cells = (size_t)(videos * categories);
    int64_t *objects = alloc_or_die(cells, sizeof *objects, "objects by category"),
            *start = alloc_or_die(cells + 1, sizeof *start, "detections by category");
    uint8_t *hit = alloc_or_die((size_t)n_found, 1, "hits"), *taken = alloc_or_die((size_t)n_truth, 1, "objects taken");
    Ranked *order = alloc_or_die((size_t)(n_truth + n_found), sizeof *order, "order of boxes");
    LegacyBox *grown = alloc_or_die(legacy ? (size_t)(n_truth + n_found) : 0, sizeof *grown, "boxes of a frame");
    // counting sort into [category, video], in the order of the list
    for (int64_t i = 0; i < n_truth + n_found; i++) {
        const ScoredBox *b = i < n_truth ? &truth[i] : &found[i - n_truth];
        CHECK(b->video >= 0 && b->video < videos && b->category >= 0 && b->category < categories,
              "video %lld of %lld, category %d of %d", (long long)b->video, (long long)videos, b->category, categories);
        CHECK(!i || i == n_truth || by_frame(b - 1, b) <= 0, "boxes are not in the order of video and image");
        if (i < n_truth) objects[b->category * videos + b->video]++;
        else start[b->category * videos + b->video + 1]++;
    }
    for (size_t i = 0; i < cells; i++) start[i + 1] += start[i];
    int64_t *next = alloc_or_die(cells, sizeof *next, "detections by category");
    memcpy(next, start, cells * sizeof *next);
    for (int64_t i = 0, g = 0; i < n_found;) {
        int64_t last = frame_end(found, i, n_found);
        while (g < n_truth && by_frame(&truth[g], &found[i]) < 0) g++;
        int64_t g_last = g < n_truth && !by_frame(&truth[g], &found[i]) ? frame_end(truth, g, n_truth) : g;
        Ranked *objects_here = order, *found_here = order + (g_last - g);
        if (legacy) {
            legacy_boxes(truth, g, g_last, objects_here, grown);
            legacy_boxes(found, i, last, found_here, grown + (g_last - g));
        } else rank_boxes(truth, g, g_last, objects_here), rank_boxes(found, i, last, found_here);
        for (int64_t d = 0; d < last - i; d++) {
            const ScoredBox *b = &found[found_here[d].at];
            uint8_t matched = 0;
            for (int64_t o = 0; o < g_last - g && !matched; o++) {
                int64_t at = objects_here[o].at;
                if (taken[at] || truth[at].category != b->category) continue;
                double iou = legacy ? legacy_iou(&grown[at - g], &grown[g_last - g + found_here[d].at - i])
                                    : found_iou(&truth[at], b);
                if (iou >= threshold) matched = taken[at] = 1;
            }
            hit[next[b->category * videos + b->video]++] = matched;
        }
        i = last, g = g_last;
    }
    double *by_video = alloc_or_die((size_t)videos, 3 * sizeof(double), "scores by video"),
           *columns = alloc_or_die((size_t)categories, 6 * sizeof(double), "scores by category");
    for (int32_t c = 0; c < categories; c++) {
        int64_t all = 0, at = c * videos;
        for (int64_t v = 0; v < videos; v++) {
            CurveScores s = curve_11(hit + start[at + v], start[at + v + 1] - start[at + v], objects[at + v]);
            by_video[v] = s.ap, by_video[videos + v] = s.recall, by_video[2 * videos + v] = s.precision;
            all += objects[at + v];
        }
        CurveScores g = curve_11(hit + start[at], start[at + videos] - start[at], all), m;
        m = (CurveScores){mean_of(by_video, videos), mean_of(by_video + videos, videos),
                          mean_of(by_video + 2 * videos, videos)};
        double values[6] = {m.ap, m.recall, m.precision, g.ap, g.recall, g.precision};
        for (int k = 0; k < 6; k++) columns[k * categories + c] = values[k];
        if (video) video[c] = m;
        if (global) global[c] = g;
    }
    double mean[6];
    for (int k = 0; k < 6; k++) mean[k] = mean_of(columns + k * categories, categories);
    *video_mean = (CurveScores){mean[0], mean[1], mean[2]}, *global_mean = (CurveScores){mean[3], mean[4], mean[5]};
    free(grown), free(columns), free(by_video), free(next), free(order), free(taken), free(hit), free(start),
        free(objects);
}

// --------------------------------------------------------------------------------------------------------- COCO boxes
// cocodataset/cocoapi, PythonAPI/pycocotools/cocoeval.py with its default parameters, no crowd.
enum { COCO_THRESHOLDS = 10, COCO_POINTS = 101, COCO_MOST = 100, COCO_RANGES = 4, COCO_CURVES = 6 };
static const double coco_thresholds[COCO_THRESHOLDS] = { // the doubles of linspace(.5, .95, 10); 0.5 + 0.05 i is not
    // that: at i = 7 it is above 0.85
    0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.8999999999999999, 0.95};
static const double coco_areas[COCO_RANGES][2] = { // all, small, medium, large; both ends belong to the range
    {0, 1e10},
    {0, 32 * 32},
    {32 * 32, 96 * 96},
    {96 * 96, 1e10}};
static const struct {
    int range, most; // detections per image
} coco_curves[COCO_CURVES] = {{0, 100}, {1, 100}, {2, 100}, {3, 100}, {0, 1}, {0, 10}};
enum { COUNTS_HIT = 1, COUNTS_NOT = 2 }; // what became of a detection

typedef struct CocoFound { // one detection among the first 100 of its image
    Ranked rank;           // at: place in the order of images
    int32_t place;         // by score within the image
    uint8_t fate[COCO_RANGES][COCO_THRESHOLDS];
} CocoFound;
static int by_coco_rank(const void *a, const void *b) {
    return by_rank(&((const CocoFound *)a)->rank, &((const CocoFound *)b)->rank);
}

typedef struct
    CocoOrder { // a box's place in the order of category, video, image; then by falling score, then as listed
    const ScoredBox *box;
    double score; // 0 for objects
    int64_t at;
} CocoOrder;
static int by_coco_order(const void *a, const void *b) {
    const CocoOrder *x = a, *y = b;
    if (x->box->category != y->box->category) return x->box->category < y->box->category ? -1 : 1;
    int frame = by_frame(x->box, y->box);
    if (frame) return frame;
    if (x->score != y->score) return x->score > y->score ? -1 : 1;
    return x->at < y->at ? -1 : x->at > y->at;
}
static CocoOrder *coco_order(const ScoredBox *x, int64_t n, int32_t categories, bool with_score) {
    CocoOrder *out = alloc_or_die((size_t)n, sizeof *out, "order of boxes");
    for (int64_t i = 0; i < n; i++) {
        CHECK(x[i].category >= 0 && x[i].category < categories, "category %d of %d", x[i].category, categories);
        out[i] = (CocoOrder){&x[i], with_score ? ranked(x[i].score, i).score : 0, i};
    }
    if (n) qsort(out, (size_t)n, sizeof *out, by_coco_order);
    return out;
}

static bool in_range(const ScoredBox *b, int range) {
    double w = b->x2 - b->x1, h = b->y2 - b->y1, area = w > 0 && h > 0 ? w * h : 0; // a crossed box must not vanish
    return area >= coco_areas[range][0] && area <= coco_areas[range][1];
}

// One image, one category: every detection, by falling score, takes the free object of highest IoU >= t, of equal IoU
// the last one listed; objects outside the area range come last and only if no other fits.
static void coco_match(const CocoOrder *objects, int64_t n, CocoFound *found, const CocoOrder *order, int64_t m,
                       double *iou, uint8_t *taken) {
    for (int64_t d = 0; d < m; d++)
        for (int64_t g = 0; g < n; g++) iou[d * n + g] = found_iou(objects[g].box, order[d].box);
    for (int range = 0; range < COCO_RANGES; range++)
        for (int k = 0; k < COCO_THRESHOLDS; k++) {
            memset(taken, 0, (size_t)n);
            for (int64_t d = 0; d < m; d++) {
                double best = fmin(coco_thresholds[k], 1 - 1e-10);
                int64_t match = -1;
                bool ignored = false;
                for (int pass = 0; pass < 2 && match < 0; pass++) // first the objects inside the range
                    for (int64_t g = 0; g < n; g++)
                        if (!taken[g] && in_range(objects[g].box, range) == !pass && iou[d * n + g] >= best)
                            best = iou[d * n + g], match = g, ignored = pass;
                if (match >= 0) taken[match] = 1;
                else ignored = !in_range(order[d].box, range);
                found[d].fate[range][k] = (uint8_t)(ignored ? COUNTS_NOT : match >= 0 ? COUNTS_HIT : 0);
            }
        }
}

// AP and last recall of one category at one threshold from its detections by rank.
static void coco_curve(const CocoFound *found, int64_t n, int curve, int k, int64_t objects, double *precision,
                       double *recall, double *ap, double *last_recall) {
    int64_t hits = 0, misses = 0, m = 0;
    for (int64_t i = 0; i < n; i++) {
        uint8_t fate = found[i].fate[coco_curves[curve].range][k];
        if (found[i].place >= coco_curves[curve].most || fate == COUNTS_NOT) continue;
        if (fate == COUNTS_HIT) hits++;
        else misses++;
        precision[m] = (double)hits / (double)(hits + misses), recall[m++] = (double)hits / (double)objects;
    }
    *last_recall = m ? recall[m - 1] : 0;
    for (int64_t i = m - 1; i > 0; i--) precision[i - 1] = fmax(precision[i - 1], precision[i]);
    double sum = 0;
    int64_t i = 0;
    for (int point = 0; point < COCO_POINTS; point++) { // recall points i * 0.01, a little more than i / 100 for some i
        while (i < m && recall[i] < point * 0.01) i++;
        sum += i < m ? precision[i] : 0;
    }
    *ap = sum / COCO_POINTS;
}

void coco_boxes(const ScoredBox *truth, int64_t n_truth, const ScoredBox *found, int64_t n_found, int32_t categories,
                CocoScores *out, CocoClass *per_class) {
    CocoOrder *gt = coco_order(truth, n_truth, categories, false), *dt = coco_order(found, n_found, categories, true);
    int64_t most_gt = 0; // objects of one image and category
    for (int64_t g = 0, first = 0; g < n_truth; g++) {
        if (gt[g].box->category != gt[first].box->category || by_frame(gt[g].box, gt[first].box)) first = g;
        most_gt = g - first + 1 > most_gt ? g - first + 1 : most_gt;
    }
    CocoFound *kept = alloc_or_die((size_t)n_found, sizeof *kept, "detections");
    double *iou = alloc_or_die((size_t)most_gt, COCO_MOST * sizeof *iou, "IoU of one image"),
           *precision = alloc_or_die((size_t)n_found, sizeof *precision, "precision"),
           *recall = alloc_or_die((size_t)n_found, sizeof *recall, "recall");
    uint8_t *taken = alloc_or_die((size_t)most_gt, 1, "objects taken");
    // [curve, threshold, category]
    const size_t cells = (size_t)COCO_CURVES * COCO_THRESHOLDS * sizeof(double);
    double *ap = alloc_or_die((size_t)categories, cells, "COCO precisions"),
           *ar = alloc_or_die((size_t)categories, cells, "COCO recalls");
    int64_t g = 0, d = 0;
    for (int32_t c = 0; c < categories; c++) {
        int64_t objects[COCO_RANGES] = {0}, first = g, n = 0, last, g_last;
        CocoClass *report = per_class ? &per_class[c] : &(CocoClass){0};
        *report = (CocoClass){0};
        for (g_last = g; g_last < n_truth && gt[g_last].box->category == c; g_last++)
            for (int range = 0; range < COCO_RANGES; range++) objects[range] += in_range(gt[g_last].box, range);
        report->objects = g_last - first;
        while (d < n_found && dt[d].box->category == c) {
            for (last = d; last < n_found && dt[last].box->category == c && !by_frame(dt[d].box, dt[last].box);) last++;
            while (g < g_last && by_frame(gt[g].box, dt[d].box) < 0) g++;
            int64_t here = g, m = last - d < COCO_MOST ? last - d : COCO_MOST;
            while (here < g_last && !by_frame(gt[here].box, dt[d].box)) here++;
            for (int64_t i = 0; i < m; i++)
                kept[n + i] = (CocoFound){.rank = {dt[d + i].score, n + i}, .place = (int32_t)i};
            coco_match(gt + g, here - g, kept + n, dt + d, m, iou, taken);
            n += m, d = last;
        }
        g = g_last;
        if (n) qsort(kept, (size_t)n, sizeof *kept, by_coco_rank);
        report->detections = n;
        for (int64_t i = 0; i < n; i++) report->matched50 += kept[i].fate[0][0] == COUNTS_HIT;
        for (int curve = 0; curve < COCO_CURVES; curve++)
            for (int k = 0; k < COCO_THRESHOLDS; k++) {
                int64_t at = (curve * COCO_THRESHOLDS + k) * (int64_t)categories + c,
                        wanted = objects[coco_curves[curve].range];
                if (wanted) coco_curve(kept, n, curve, k, wanted, precision, recall, &ap[at], &ar[at]);
                else ap[at] = ar[at] = NAN;
            }
        report->ap = mean_of_column(ap + c, COCO_THRESHOLDS, categories);
        report->ap50 = ap[c], report->ap75 = ap[5 * (int64_t)categories + c];
        report->ar100 = mean_of_column(ar + c, COCO_THRESHOLDS, categories);
    }
    const int64_t one = categories, curve = COCO_THRESHOLDS * one;
    *out = (CocoScores){.ap = mean_of(ap, curve),
                        .ap50 = mean_of(ap, one),
                        .ap75 = mean_of(ap + 5 * one, one),
                        .ap_small = mean_of(ap + curve, curve),
                        .ap_medium = mean_of(ap + 2 * curve, curve),
                        .ap_large = mean_of(ap + 3 * curve, curve),
                        .ar1 = mean_of(ar + 4 * curve, curve),
                        .ar10 = mean_of(ar + 5 * curve, curve),
                        .ar100 = mean_of(ar, curve),
                        .ar_small = mean_of(ar + curve, curve),
                        .ar_medium = mean_of(ar + 2 * curve, curve),
                        .ar_large = mean_of(ar + 3 * curve, curve)};
    free(ar), free(ap), free(taken), free(recall), free(precision), free(iou), free(kept), free(dt), free(gt);
}

// ------------------------------------------------------------------------------------------------------ classification
// scikit-learn: accuracy_score, balanced_accuracy_score, precision_recall_fscore_support, jaccard_score.
typedef struct ClassCounts {
    int64_t hits, predicted, support;
} ClassCounts;
static int32_t label_of(int32_t predicted, int32_t k) { return predicted >= 0 && predicted < k ? predicted : k; }
static ClassCounts *class_counts(const int32_t *truth, const int32_t *predicted, int64_t n, int32_t k) { // [k + 1]
    ClassCounts *c = alloc_or_die((size_t)k + 1, sizeof *c, "counts by class");
    for (int64_t i = 0; i < n; i++) {
        CHECK(truth[i] >= 0 && truth[i] < k, "label %d of %d classes", truth[i], k);
        c[truth[i]].support++, c[label_of(predicted[i], k)].predicted++;
        if (truth[i] == predicted[i]) c[truth[i]].hits++;
    }
    return c;
}
static double or_else(int64_t part, int64_t whole, double zero_division) {
    return whole ? (double)part / (double)whole : zero_division;
}
static ClassScores scores_of(ClassCounts c, double zero_division) {
    return (ClassScores){or_else(c.hits, c.predicted, zero_division), or_else(c.hits, c.support, zero_division),
                         or_else(2 * c.hits, c.predicted + c.support, zero_division),
                         or_else(c.hits, c.predicted + c.support - c.hits, zero_division)};
}

void class_report(const int32_t *truth, const int32_t *predicted, int64_t n, int32_t k, enum ClassGroup group,
                  double zero_division, ClassScores *per_class, int64_t *support, uint8_t *in_group, ClassReport *out) {
    enum { KINDS = 4 }; // precision, recall, f1, jaccard
    ClassCounts *counts = class_counts(truth, predicted, n, k), sum = {0};
    double plain[KINDS] = {0}, weighted[KINDS] = {0};
    int64_t used[KINDS] = {0}, weight[KINDS] = {0}, right = 0;
    *out = (ClassReport){.classes = 0};
    for (int32_t c = 0; c <= k; c++) {
        ClassCounts x = counts[c];
        bool truth_has = x.support > 0, occurs = truth_has || x.predicted > 0,
             is_in = group == CLASSES_ALL     ? c < k
                     : group == CLASSES_TRUTH ? truth_has
                     : group == CLASSES_UNION ? occurs
                                              : occurs && c < k;
        ClassScores s = scores_of(x, n ? zero_division : (double)NAN);
        right += x.hits;
        if (per_class) per_class[c] = s;
        if (support) support[c] = x.support;
        if (in_group) in_group[c] = is_in;
        if (!is_in) continue;
        out->classes++;
        sum.hits += x.hits, sum.predicted += x.predicted, sum.support += x.support;
        const double value[KINDS] = {s.precision, s.recall, s.f1, s.jaccard};
        for (int i = 0; i < KINDS; i++)
            if (!isnan(value[i])) {
                plain[i] += value[i], weighted[i] += value[i] * (double)x.support;
                used[i]++, weight[i] += x.support;
            }
    }
    free(counts);
    for (int i = 0; i < KINDS; i++) {
        plain[i] = used[i] ? plain[i] / (double)used[i] : (double)NAN;
        weighted[i] = weight[i] ? weighted[i] / (double)weight[i] : (double)NAN;
    }
    out->accuracy = share(right, n);
    out->macro = (ClassScores){plain[0], plain[1], plain[2], plain[3]};
    out->weighted = (ClassScores){weighted[0], weighted[1], weighted[2], weighted[3]};
    out->micro = scores_of(sum, n ? zero_division : (double)NAN);
}

double class_accuracy(const int32_t *truth, const int32_t *predicted, int64_t n) {
    int64_t right = 0;
    for (int64_t i = 0; i < n; i++) right += truth[i] == predicted[i];
    return share(right, n);
}

double class_balanced_accuracy(const int32_t *truth, const int32_t *predicted, int64_t n, int32_t k) {
    ClassReport r;
    class_report(truth, predicted, n, k, CLASSES_TRUTH, NAN, NULL, NULL, NULL, &r);
    return r.macro.recall;
}

void class_confusion(const int32_t *truth, const int32_t *predicted, int64_t n, int32_t k, int64_t *counts) {
    memset(counts, 0, (size_t)(k + 1) * (size_t)(k + 1) * sizeof *counts);
    for (int64_t i = 0; i < n; i++) {
        CHECK(truth[i] >= 0 && truth[i] < k, "label %d of %d classes", truth[i], k);
        counts[truth[i] * (int64_t)(k + 1) + label_of(predicted[i], k)]++;
    }
}

// JianJiangKCL/Eval_SurgR1, eval_mcq_acc.py, "mAP".
double class_map11(const int32_t *truth, const int32_t *predicted, int64_t n, int32_t k) {
    ClassCounts *counts = class_counts(truth, predicted, n, k);
    int64_t *next = alloc_or_die((size_t)k + 1, sizeof *next, "rows by class");
    uint8_t *hit = alloc_or_die((size_t)n, 1, "hits");
    for (int32_t c = 0; c < k; c++) next[c + 1] = next[c] + counts[c].predicted;
    for (int64_t i = 0; i < n; i++) hit[next[label_of(predicted[i], k)]++] = truth[i] == predicted[i];
    double sum = 0;
    int64_t classes = 0, first = 0;
    for (int32_t c = 0; c < k; first += counts[c].predicted, c++)
        if (counts[c].support) sum += curve_11(hit + first, counts[c].predicted, counts[c].support).ap, classes++;
    free(hit), free(next), free(counts);
    return classes ? sum / (double)classes : (double)NAN;
}

void accuracy_by_kind(const int32_t *truth, const int32_t *predicted, int64_t n, const int32_t *kind, int32_t kinds,
                      int64_t *count, double *accuracy) {
    int64_t *right = alloc_or_die((size_t)kinds, sizeof *right, "right answers by kind");
    for (int32_t q = 0; q < kinds; q++) count[q] = 0;
    for (int64_t i = 0; i < n; i++) {
        CHECK(kind[i] >= 0 && kind[i] < kinds, "kind %d of %d", kind[i], kinds);
        count[kind[i]]++, right[kind[i]] += truth[i] == predicted[i];
    }
    for (int32_t q = 0; q < kinds; q++) accuracy[q] = share(right[q], count[q]);
    free(right);
}

void most_frequent(const int32_t *truth, int64_t n, const int32_t *kind, int32_t kinds, int32_t k, int32_t *label) {
    int64_t *count = alloc_or_die((size_t)kinds, (size_t)k * sizeof *count, "labels by kind");
    for (int64_t i = 0; i < n; i++) {
        CHECK(kind[i] >= 0 && kind[i] < kinds && truth[i] >= 0 && truth[i] < k, "label %d of %d, kind %d of %d",
              truth[i], k, kind[i], kinds);
        count[kind[i] * (int64_t)k + truth[i]]++;
    }
    for (int32_t q = 0; q < kinds; q++) {
        int64_t best = 0;
        label[q] = -1;
        for (int32_t c = 0; c < k; c++)
            if (count[q * (int64_t)k + c] > best) best = count[q * (int64_t)k + c], label[q] = c;
    }
    free(count);
}

// ------------------------------------------------------------------------------------------------------------ phases
// The per-video scores of the Cholec80 literature (YuemingJin/TMRNet, Evaluate.m and Main.m; M2CAI 2016 before it).
// right[f]: frame f counts as right. The script relaxes by transition: within the first t frames of a phase the one
// before (from the sixth phase on, two before) is late; within the last t the one after (from the fourth on, two) is
// early. Its fault: early frames are found in the last t but forgiven at the same places among the first t.
enum { PHASE_TOLERANCE = 10 }; // frames, at 1 fps
static void phase_right(const LabelVideo *v, int32_t phases, enum PhaseMode mode, uint8_t *right) {
    for (int64_t f = 0; f < v->frames; f++) right[f] = v->truth[f] == v->predicted[f];
    for (int64_t first = 0, last; mode != PHASE_STRICT && first < v->frames; first = last) {
        int32_t phase = v->truth[first];
        for (last = first; last < v->frames && v->truth[last] == phase;) last++;
        int64_t t = last - first < PHASE_TOLERANCE ? last - first : PHASE_TOLERANCE;
        int32_t steps_late = phase >= 5 ? 2 : 1, steps_early = phase >= 3 ? 2 : 1;
        for (int64_t i = 0; i < t; i++) {
            int32_t p = v->predicted[first + i];
            if (p >= 0 && p < phase && phase - p <= steps_late) right[first + i] = 1;
        }
        for (int64_t i = 0; i < t; i++) {
            int32_t p = v->predicted[last - t + i];
            if (p < phases && p > phase && p - phase <= steps_early)
                right[mode == PHASE_RELAXED_SCRIPT ? first + i : last - t + i] = 1;
        }
    }
}

typedef struct PhaseCounts {
    int64_t truth, predicted, united, right; // right: of the frames in truth or prediction
} PhaseCounts;
static void phase_counts(const LabelVideo *v, int32_t phases, const uint8_t *right, PhaseCounts *out) {
    memset(out, 0, (size_t)phases * sizeof *out);
    for (int64_t f = 0; f < v->frames; f++) {
        int32_t g = v->truth[f], p = v->predicted[f];
        CHECK(g >= 0 && g < phases, "phase %d of %d", g, phases);
        out[g].truth++, out[g].united++, out[g].right += right[f];
        if (p < 0 || p >= phases) continue;
        out[p].predicted++;
        if (p != g) out[p].united++, out[p].right += right[f];
    }
}

void phase_scores(const LabelVideo *videos, int64_t n, int32_t phases, enum PhaseMode mode, double *accuracy,
                  double *by_phase, double *by_video, PhaseScores *out) {
    int64_t longest = 0;
    for (int64_t v = 0; v < n; v++) longest = videos[v].frames > longest ? videos[v].frames : longest;
    uint8_t *right = alloc_or_die((size_t)longest, 1, "right frames");
    PhaseCounts *counts = alloc_or_die((size_t)phases, sizeof *counts, "counts by phase");
    double *acc = alloc_or_die((size_t)n, sizeof *acc, "accuracy by video"),
           *table = alloc_or_die((size_t)n, 3 * (size_t)phases * sizeof *table, "scores by video and phase"),
           *phase = alloc_or_die((size_t)phases, 3 * sizeof *phase, "scores by phase");
    const int64_t cells = n * phases;
    for (int64_t v = 0; v < n; v++) {
        int64_t sum = 0;
        phase_right(&videos[v], phases, mode, right), phase_counts(&videos[v], phases, right, counts);
        for (int64_t f = 0; f < videos[v].frames; f++) sum += right[f];
        acc[v] = 100 * share(sum, videos[v].frames);
        for (int32_t p = 0; p < phases; p++) {
            PhaseCounts c = counts[p];
            double *cell = table + v * phases + p; // what the labels of a video lack has no value
            cell[0] = c.truth ? 100.0 * (double)c.right / (double)c.united : (double)NAN;
            cell[cells] = !c.truth      ? (double)NAN
                          : c.predicted ? 100.0 * (double)c.right / (double)c.predicted
                          : c.right     ? (double)INFINITY
                                        : (double)NAN;
            cell[2 * cells] = c.truth ? 100.0 * (double)c.right / (double)c.truth : (double)NAN;
        }
    }
    for (int64_t i = 0; by_video && i < 3 * cells; i++) by_video[i] = table[i];
    for (int64_t i = 0; i < 3 * cells; i++)
        if (table[i] > 100) table[i] = 100; // as Main.m cuts them
    PhaseTable *summary[3] = {&out->jaccard, &out->precision, &out->recall};
    *out = (PhaseScores){.accuracy = mean_of(acc, n),
                         .accuracy_std_n1 = n ? deviation_of(acc, n, 1) : (double)NAN,
                         .accuracy_std_n = n ? deviation_of(acc, n, 0) : (double)NAN};
    for (int kind = 0; kind < 3; kind++) {
        double *row = phase + kind * (int64_t)phases;
        for (int32_t p = 0; p < phases; p++) {
            row[p] = mean_of_column(table + kind * cells + p, n, phases);
            summary[kind]->without_value += isnan(row[p]);
        }
        summary[kind]->mean = mean_of(row, phases);
        summary[kind]->std = n ? deviation_of(row, phases, 1) : (double)NAN;
    }
    for (int64_t v = 0; accuracy && v < n; v++) accuracy[v] = acc[v];
    for (int64_t i = 0; by_phase && i < 3 * (int64_t)phases; i++) by_phase[i] = phase[i];
    free(phase), free(table), free(acc), free(counts), free(right);
}

// ------------------------------------------------------------------------------------------------------------ actions
// surgical-vision/SAR_RARP50-evaluation, action_recognition.py: every predicted run takes the true run of its label
// with the largest (min end - max start) / (max end - min start), the first of equals; from `threshold` on, and if that
// run is not taken yet, it is a hit.
// Only runs that overlap can reach a threshold above 0, so one walk over both sequences is enough.
typedef struct Segment {
    int64_t first, last; // [first, last)
    int32_t label;
    bool used;
} Segment;
static int64_t runs_of(const int32_t *label, int64_t n, Segment *out) {
    int64_t runs = 0;
    for (int64_t i = 0; i < n; i++)
        if (i && label[i] == label[i - 1]) out[runs - 1].last = i + 1;
        else out[runs++] = (Segment){i, i + 1, label[i], false};
    return runs;
}

SegmentScores segment_scores(const LabelVideo *video, double threshold) {
    CHECK(threshold > 0, "a threshold of %g", threshold);
    const int64_t n = video->frames;
    SegmentScores s = {.f1 = NAN, .accuracy = class_accuracy(video->truth, video->predicted, n)};
    if (!n) return s;
    Segment *truth = alloc_or_die((size_t)n, sizeof *truth, "true runs"),
            *found = alloc_or_die((size_t)n, sizeof *found, "predicted runs");
    int64_t n_truth = runs_of(video->truth, n, truth), n_found = runs_of(video->predicted, n, found), from = 0;
    for (int64_t i = 0; i < n_found; i++) {
        Segment *f = &found[i], *best = NULL;
        double largest = 0;
        while (truth[from].last <= f->first) from++; // both cover the whole video
        for (int64_t k = from; k < n_truth && truth[k].first < f->last; k++) {
            Segment *t = &truth[k];
            int64_t start = f->first > t->first ? f->first : t->first, end = f->last < t->last ? f->last : t->last,
                    low = f->first < t->first ? f->first : t->first, high = f->last > t->last ? f->last : t->last;
            double iou = (double)(end - start) / (double)(high - low);
            if (t->label == f->label && iou > largest) largest = iou, best = t;
        }
        if (best && largest >= threshold && !best->used) best->used = true, s.tp++;
        else s.fp++;
    }
    s.fn = n_truth - s.tp;
    s.f1 = share(2 * s.tp, 2 * s.tp + s.fp + s.fn);
    free(found), free(truth);
    return s;
}

void action_scores(const LabelVideo *videos, int64_t n, SegmentScores *per_video, double *accuracy, double *f1,
                   double *score) {
    double *a = alloc_or_die((size_t)n, sizeof *a, "accuracy by video"),
           *f = alloc_or_die((size_t)n, sizeof *f, "F1 by video");
    for (int64_t v = 0; v < n; v++) {
        SegmentScores s = segment_scores(&videos[v], 0.1);
        a[v] = s.accuracy, f[v] = s.f1;
        if (per_video) per_video[v] = s;
    }
    *accuracy = mean_of(a, n), *f1 = mean_of(f, n), *score = sqrt(*accuracy * *f1);
    free(f), free(a);
}

// ------------------------------------------------------------------------------------------- critical view of safety
// datasets.md M.9. `pooled` is what the published "overall" turns out to be, not `joint`.
void cvs_scores(const int32_t *truth, const int32_t *predicted, const double *score, int64_t n, CvsScores *out) {
    uint8_t *positive = alloc_or_die((size_t)n, 1, "labels of a criterion");
    double *asked_score = alloc_or_die((size_t)n, sizeof *asked_score, "scores of a criterion"), accuracy[3], ap[3];
    int64_t right = 0, asked = 0, majority = 0, joint = 0, achieved = 0;
    *out = (CvsScores){.all_three = 0};
    for (int k = 0; k < 3; k++) {
        CvsCriterion *c = &out->criterion[k];
        int64_t hits[2] = {0};
        for (int64_t i = 0; i < n; i++) {
            int32_t g = truth[3 * i + k], p = predicted[3 * i + k];
            if (g < 0) continue;
            CHECK(g <= 1, "a label %d of a yes/no criterion", g);
            if (score) asked_score[c->n] = score[3 * i + k];
            positive[c->n++] = (uint8_t)g, c->positives += g, hits[g] += g == p;
        }
        c->negatives = c->n - c->positives, c->correct = hits[0] + hits[1];
        int64_t larger = c->positives > c->negatives ? c->positives : c->negatives;
        double recall[2] = {share(hits[0], c->negatives), share(hits[1], c->positives)};
        c->balanced_accuracy = mean_of(recall, 2), c->majority = share(larger, c->n);
        accuracy[k] = c->accuracy = share(c->correct, c->n);
        ap[k] = c->ap = score ? average_precision(positive, asked_score, c->n) : (double)NAN;
        right += c->correct, asked += c->n, majority += larger;
    }
    for (int64_t i = 0; i < n; i++) {
        const int32_t *g = truth + 3 * i, *p = predicted + 3 * i;
        if (g[0] < 0 || g[1] < 0 || g[2] < 0) continue;
        out->all_three++;
        joint += g[0] == p[0] && g[1] == p[1] && g[2] == p[2];
        achieved += (g[0] == 1 && g[1] == 1 && g[2] == 1) == (p[0] == 1 && p[1] == 1 && p[2] == 1);
    }
    out->avg = mean_of(accuracy, 3), out->pooled = share(right, asked), out->majority_pooled = share(majority, asked);
    out->joint = share(joint, out->all_three), out->achieved = share(achieved, out->all_three);
    out->map = mean_of(ap, 3);
    free(asked_score), free(positive);
}

int cvs_of_raters(double mean) { return rint(mean) >= 1; }

void cvs_of_counts(const int64_t correct[3], const int64_t asked[3], double percent[3], double *pooled, double *avg) {
    for (int k = 0; k < 3; k++) percent[k] = 100 * share(correct[k], asked[k]);
    *pooled = 100 * share(correct[0] + correct[1] + correct[2], asked[0] + asked[1] + asked[2]);
    *avg = mean_of(percent, 3);
}

// -------------------------------------------------------------------------------------------------------------- arena
// Surg-R1, equation 9: the mean of the primary metrics of the tasks a model was measured on. Models that lack a task
// are comparable only on the tasks they share (method.md 1.9: the published comparison is not).
void arena_scores(const double *scores, int64_t models, int64_t tasks, double *own, int64_t *n_tasks, double *common,
                  uint8_t *is_common) {
    for (int64_t t = 0; t < tasks; t++) {
        is_common[t] = 1;
        for (int64_t m = 0; m < models; m++)
            if (isnan(scores[m * tasks + t])) is_common[t] = 0;
    }
    for (int64_t m = 0; m < models; m++) {
        const double *row = scores + m * tasks;
        double sum = 0;
        int64_t shared = 0;
        own[m] = mean_of(row, tasks), n_tasks[m] = 0;
        for (int64_t t = 0; t < tasks; t++) {
            n_tasks[m] += !isnan(row[t]);
            if (is_common[t]) sum += row[t], shared++;
        }
        common[m] = shared ? sum / (double)shared : (double)NAN;
    }
}

int64_t arena_pair(const double *a, const double *b, int64_t tasks, double *mean_a, double *mean_b) {
    double sum_a = 0, sum_b = 0;
    int64_t both = 0;
    for (int64_t t = 0; t < tasks; t++)
        if (!isnan(a[t]) && !isnan(b[t])) sum_a += a[t], sum_b += b[t], both++;
    *mean_a = both ? sum_a / (double)both : (double)NAN, *mean_b = both ? sum_b / (double)both : (double)NAN;
    return both;
}

// ---------------------------------------------------------------------------------------------------------- bootstrap
// Percentile bootstrap over clusters (Efron; scipy.stats.bootstrap with method "percentile"). Percentiles are
// interpolated linearly between order statistics, as numpy does.
static double percentile(const double *sorted, int64_t n, double q) {
    double at = q * (double)(n - 1), below = floor(at);
    int64_t i = (int64_t)below;
    return i + 1 < n ? sorted[i] + (at - below) * (sorted[i + 1] - sorted[i]) : sorted[n - 1];
}

Interval bootstrap(ClusterStatistic statistic, const void *ctx, int64_t clusters, int64_t resamples, double level,
                   uint64_t seed) {
    CHECK(resamples > 1 && level > 0 && level < 1, "%lld resamples, level %g", (long long)resamples, level);
    Interval out = {NAN, NAN, NAN, NAN};
    int64_t *drawn = alloc_or_die((size_t)clusters, sizeof *drawn, "clusters drawn");
    double *value = alloc_or_die((size_t)resamples, sizeof *value, "resampled values");
    for (int64_t i = 0; i < clusters; i++) drawn[i] = i;
    if (clusters) out.estimate = statistic(ctx, drawn, clusters);
    int64_t n = 0;
    for (int64_t r = 0; clusters > 1 && r < resamples; r++) {
        for (int64_t i = 0; i < clusters; i++)
            drawn[i] = (int64_t)(random_uniform(seed, RANDOM_BOOTSTRAP, (uint64_t)r, (uint32_t)i) * (double)clusters);
        double v = statistic(ctx, drawn, clusters);
        if (!isnan(v)) value[n++] = v;
    }
    if (n > 1) {
        qsort(value, (size_t)n, sizeof *value, by_number);
        out.low = percentile(value, n, (1 - level) / 2), out.high = percentile(value, n, 1 - (1 - level) / 2);
        out.standard_error = deviation_of(value, n, 1);
    }
    free(value), free(drawn);
    return out;
}

double cluster_ratio(const void *sums, const int64_t *drawn, int64_t n) {
    const ClusterSums *s = sums;
    double right = 0, all = 0;
    for (int64_t i = 0; i < n; i++) right += s->correct[drawn[i]], all += s->n[drawn[i]];
    return all > 0 ? right / all : (double)NAN;
}
double cluster_mean(const void *sums, const int64_t *drawn, int64_t n) {
    const ClusterSums *s = sums;
    double sum = 0;
    int64_t used = 0;
    for (int64_t i = 0; i < n; i++)
        if (s->n[drawn[i]] > 0) sum += s->correct[drawn[i]] / s->n[drawn[i]], used++;
    return used ? sum / (double)used : (double)NAN;
}
double cluster_difference(const void *sums, const int64_t *drawn, int64_t n) {
    const ClusterSums *s = sums;
    double more = 0, all = 0;
    for (int64_t i = 0; i < n; i++) more += s->correct[drawn[i]] - s->other[drawn[i]], all += s->n[drawn[i]];
    return all > 0 ? more / all : (double)NAN;
}
