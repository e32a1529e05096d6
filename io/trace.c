// trace.c - the op trace: every op's output, sampled, in one safetensors file, and the comparison of two such files.
//
// What it is:  how two devices are compared op by op: run both with a trace, then `surgr1 trace-diff a b`.
// What it is not: a log of training steps.
// Read before: ops.h (op_trace_set), io/safetensors.c.  Read next: vision.c, which names the places.
#include "../surgr1.h"
#include <inttypes.h>

// ----------------------------------------------------------------------------------------------------------- trace
// In the file, op number 12 is two tensors: "000012.text.layer.3.matmul" F32 [kept elements] and the same name with
// ".stats", F64 [5]: rows, columns, rms, largest magnitude, non-finite elements. rms and magnitude are of the finite
// elements of the whole output; names sort in the order of the ops.

enum { TRACE_KEPT = 4096, TRACE_STATS = 5 };

typedef struct TracedOp {
    char name[200];
    float *kept;
    int64_t n;
    double stats[TRACE_STATS];
} TracedOp;

static struct {
    char path[1100], where[120];
    Text label; // JSON string
    TracedOp *ops;
    int64_t count, cap, lost;
    char *host; // scratch for the largest output so far
    size_t host_size;
} trace;

static float element(Type type, const char *p, int64_t i) {
    uint16_t h;
    int32_t k;
    float f;
    switch (type) {
    case BF16: memcpy(&h, p + 2 * i, 2); return bf16_to_f32(h);
    case I32: memcpy(&k, p + 4 * i, 4); return (float)k;
    case F32: break;
    }
    memcpy(&f, p + 4 * i, 4);
    return f;
}

static void trace_op(void *ctx, const Ops *d, const char *op, Mat y) {
    (void)ctx;
    if (2 * (trace.count + 1) > LIMIT_TENSORS) { // the file could not be read back
        trace.lost++;
        return;
    }
    int64_t n = y.rows * y.cols;
    size_t bytes = (size_t)n * type_size(y.type);
    if (bytes > trace.host_size) {
        trace.host = grow_or_die(trace.host, bytes, 1, "an op's output in the trace");
        trace.host_size = bytes;
    }
    if (n) d->download(mat(trace.host, y.rows, y.cols, y.type), y);
    if (trace.count == trace.cap) {
        trace.cap = trace.cap ? 2 * trace.cap : 256;
        trace.ops = grow_or_die(trace.ops, (size_t)trace.cap, sizeof *trace.ops, "the trace");
    }
    TracedOp *t = &trace.ops[trace.count];
    snprintf(t->name, sizeof t->name, "%06" PRId64 ".%s%s%s", trace.count, trace.where, *trace.where ? "." : "", op);
    double squares = 0, largest = 0;
    int64_t bad = 0;
    for (int64_t i = 0; i < n; i++) {
        double v = (double)element(y.type, trace.host, i);
        if (!isfinite(v)) bad++;
        else squares += v * v, largest = fabs(v) > largest ? fabs(v) : largest;
    }
    t->n = n < TRACE_KEPT ? n : TRACE_KEPT;
    t->kept = alloc_or_die((size_t)t->n, sizeof *t->kept, "the trace");
    for (int64_t k = 0; k < t->n; k++) // evenly spaced, from the first element on
        t->kept[k] = element(y.type, trace.host, (int64_t)((double)k * (double)n / (double)t->n));
    double rms = n > bad ? sqrt(squares / (double)(n - bad)) : 0;
    const double stats[TRACE_STATS] = {(double)y.rows, (double)y.cols, rms, largest, (double)bad};
    memcpy(t->stats, stats, sizeof stats);
    trace.count++;
}

static void trace_free(void) {
    for (int64_t i = 0; i < trace.count; i++) free(trace.ops[i].kept);
    free(trace.ops), free(trace.host), text_free(&trace.label);
    memset(&trace, 0, sizeof trace);
}

void trace_start(const char *path, const char *label) {
    trace_free();
    snprintf(trace.path, sizeof trace.path, "%s", path);
    text_addf(&trace.label, "{\"label\":"), text_add_json_string(&trace.label, label, strlen(label));
    text_addf(&trace.label, "}");
    op_trace_set(trace_op, NULL);
}

void trace_where(const char *where) { snprintf(trace.where, sizeof trace.where, "%s", where); }
const char *trace_place(void) { return trace.where; }

bool trace_finish(Err *e) {
    if (!trace.path[0]) return true;
    op_trace_set(NULL, NULL);
    TensorOut *out = alloc_or_die(2 * (size_t)trace.count, sizeof *out, "the trace");
    char(*names)[220] = alloc_or_die((size_t)trace.count, sizeof *names, "the trace");
    for (int64_t i = 0; i < trace.count; i++) {
        const TracedOp *t = &trace.ops[i];
        snprintf(names[i], sizeof names[i], "%s.stats", t->name);
        out[2 * i] = (TensorOut){.name = t->name, .type = FT_F32, .dims = 1, .shape = {t->n}, .data = t->kept};
        out[2 * i + 1] = (TensorOut){names[i], FT_F64, 1, {TRACE_STATS}, t->stats};
    }
    if (trace.lost)
        note("the trace is full: %" PRId64 " ops after the first %" PRId64 " are not in it", trace.lost, trace.count);
    bool ok = tensors_write_with(trace.path, trace.label.p, out, 2 * trace.count, e);
    free(names), free(out);
    trace_free();
    return ok;
}

// One op of an open trace file.
typedef struct FileOp {
    const char *name; // without the number
    double stats[TRACE_STATS];
    float *kept;
    int64_t n;
} FileOp;

static bool trace_read(const TensorFile *f, int64_t op, FileOp *out, Err *e) {
    const Tensor *kept = &f->tensors[2 * op], *stats = kept + 1;
    size_t n = strlen(kept->name);
    bool ok =
        n > 7 && kept->name[6] == '.' && !strncmp(stats->name, kept->name, n) && !strcmp(stats->name + n, ".stats");
    ok = ok && kept->type == FT_F32 && kept->dims == 1 && kept->elements <= TRACE_KEPT;
    ok = ok && stats->type == FT_F64 && stats->dims == 1 && stats->elements == TRACE_STATS;
    if (!ok)
        return err_set(e, "E-ST-10", AT(.file = f->path, .tensor = kept->name),
                       "expected a sampled op, F32 of at most %d elements, and its stats; found another tensor; do: %s",
                       TRACE_KEPT, "give files written by --trace");
    memcpy(out->stats, stats->data, sizeof out->stats);
    out->name = kept->name + 7, out->n = kept->elements;
    tensor_to_f32(kept, 0, out->n, out->kept);
    return true;
}

// |b - a| / |a|. Non-finite elements must be the same in both, or the difference is infinite.
static double relative_l2(const FileOp *a, const FileOp *b) {
    double diff = 0, norm = 0;
    for (int64_t i = 0; i < a->n; i++) {
        double x = (double)a->kept[i], y = (double)b->kept[i];
        if (isfinite(x) && isfinite(y)) diff += (y - x) * (y - x), norm += x * x;
        else if (!(isnan(x) && isnan(y)) && x != y) return INFINITY;
    }
    return diff == 0 ? 0 : norm == 0 ? INFINITY : sqrt(diff / norm);
}

static void print_traced(const char *file, const FileOp *o) {
    printf("  %s: [%.0f, %.0f], rms %.6g, largest %.6g, %.0f not finite; first elements", file, o->stats[0],
           o->stats[1], o->stats[2], o->stats[3], o->stats[4]);
    for (int64_t i = 0; i < o->n && i < 4; i++) printf(" %.7g", (double)o->kept[i]);
    printf("\n");
}

static bool trace_compare(const TensorFile *fa, const TensorFile *fb, FileOp *a, FileOp *b, double limit, bool *same,
                          Err *e) {
    int64_t ops_a = fa->count / 2, ops_b = fb->count / 2, ops = ops_a < ops_b ? ops_a : ops_b, worst_op = 0;
    double worst = 0;
    *same = false;
    for (int64_t i = 0; i < ops; i++) {
        if (!trace_read(fa, i, a, e) || !trace_read(fb, i, b, e)) return false;
        bool name = !strcmp(a->name, b->name), shape = a->stats[0] == b->stats[0] && a->stats[1] == b->stats[1];
        shape = shape && a->n == b->n;
        double error = name && shape ? relative_l2(a, b) : INFINITY;
        if (error > worst) worst = error, worst_op = i;
        if (error <= limit) continue;
        if (!name)
            printf("op %" PRId64 " is another op: %s and %s\n", i, quoted(a->name, strlen(a->name)),
                   quoted(b->name, strlen(b->name)));
        else if (!shape) printf("op %" PRId64 ", %s, has another shape\n", i, quoted(a->name, strlen(a->name)));
        else
            printf("op %" PRId64 ", %s, is the first to differ: relative L2 %.3g, limit %.3g\n", i,
                   quoted(a->name, strlen(a->name)), error, limit);
        print_traced(fa->path, a), print_traced(fb->path, b);
        printf("  the %" PRId64 " ops before it agree\n", i);
        return true;
    }
    if (ops_a != ops_b) {
        printf("the first %" PRId64 " ops agree; then %s ends, and the other goes on for %" PRId64 "\n", ops,
               ops_a < ops_b ? fa->path : fb->path, ops_a < ops_b ? ops_b - ops : ops_a - ops);
        return true;
    }
    printf("all %" PRId64 " ops agree within %.3g", ops, limit);
    if (worst > 0)
        printf("; largest relative L2 %.3g, op %" PRId64 ", %s", worst, worst_op, fa->tensors[2 * worst_op].name + 7);
    printf("\n");
    return *same = true;
}

bool trace_diff(const char *path_a, const char *path_b, double limit, bool *same, Err *e) {
    TensorFile fa, fb;
    if (!tensors_open(&fa, path_a, e)) return false;
    if (!tensors_open(&fb, path_b, e)) {
        tensors_close(&fa);
        return false;
    }
    FileOp a = {.kept = alloc_or_die(TRACE_KEPT, sizeof(float), "traces")}, b = a;
    b.kept = alloc_or_die(TRACE_KEPT, sizeof(float), "traces");
    bool ok = trace_compare(&fa, &fb, &a, &b, limit, same, e);
    free(a.kept), free(b.kept);
    tensors_close(&fa), tensors_close(&fb);
    return ok;
}
