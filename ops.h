// ops.h - the contract of a device: views, spans, arenas, the Ops table, and the checked entry points.
//
// What it is:  everything that ops.c (device "ref"), cpu.c ("cpu") and kernels.cu ("cuda") implement and that the model
//              calls. A reader who knows this page can read block.c without knowing any device.
// What it is not: a tensor library. Nothing here owns memory but an Arena, nothing allocates inside an op.
// Read before: base.h.  Read next: ops.c (each op's formula and its reference), block.c (who calls them).
//
// Rules, stated once:
//   - outputs first, then inputs, then sizes and flags;
//   - y = ...: activations and their gradients are overwritten. Only names with `add` accumulate (matmul has beta);
//   - gradients of parameters (dw, db) always accumulate, and may be absent (p == NULL) where a parameter is frozen;
//   - outputs never alias inputs, except where the op says so;
//   - statistics and accumulators are fp32 or better; the reference accumulates in double;
//   - an op with zero rows does nothing; no op allocates; only upload (host memory may be reused on return), download
//     and sync wait for the device;
//   - no atomics on floats: the same inputs give the same bits, at any thread count;
//   - a row's result does not depend on the rows beside it: a sequence alone and in a batch gives the same bits;
//   - between capture_begin and capture_end ops are recorded and do not run. Only ops that work on device memory may be
//     called (zero and copy too): no alloc, release, upload, download, sync. Every replay runs them on the same views
//     with the same arguments. So what differs between replays lies in device memory that is written in between, and
//     all these views must outlive the graph.
#ifndef SURGR1_OPS_H
#define SURGR1_OPS_H
#include "base.h"

#ifdef __cplusplus
extern "C" {
#endif

// ------------------------------------------------------------------------------------------------------------ views
// F32 elements are `real`: float, but double in the one test that takes finite differences of ops.c.
#ifdef SURGR1_REAL_DOUBLE
typedef double real;
#else
typedef float real;
#endif
typedef enum Type { F32, BF16, I32 } Type;
static inline HOST_DEVICE size_t type_size(Type t) { return t == BF16 ? 2 : t == F32 ? sizeof(real) : 4; }
const char *type_name(Type t); // "f32", "bf16", "i32"

// A row-major matrix view, passed by value. Element (i, j) is at p + (i*stride + j) * type_size(type). Vectors have one
// row. p belongs to the device that works on it (for ref and cpu: ordinary memory). p == NULL means "absent".
// Ops write columns [0, cols) and nothing else, so the zeros behind them stay zero.
typedef struct Mat {
    void *p;
    int64_t rows, cols, stride; // in elements
    Type type;
    int32_t zeros; // columns behind the last that belong to the row and hold 0 (arena_padded)
} Mat;

static inline Mat mat(void *p, int64_t rows, int64_t cols, Type type) {
    Mat m = {p, rows, cols, cols, type, 0};
    return m;
}
static inline Mat mat_none(void) {
    Mat m = {NULL, 0, 0, 0, F32, 0};
    return m;
}
static inline HOST_DEVICE void *mat_at(Mat m, int64_t row, int64_t col) {
    return (char *)m.p + (size_t)(row * m.stride + col) * type_size(m.type);
}
static inline HOST_DEVICE Mat mat_rows(Mat m, int64_t first, int64_t count) { // rows [first, first+count)
    m.p = mat_at(m, first, 0), m.rows = count;
    return m;
}
static inline HOST_DEVICE Mat mat_cols(Mat m, int64_t first, int64_t count) { // columns [first, first+count)
    m.zeros = first + count == m.cols ? m.zeros : 0;
    m.p = mat_at(m, 0, first), m.cols = count;
    return m;
}
static inline Mat mat_reshape(Mat m, int64_t rows, int64_t cols) { // contiguous views only
    m.rows = rows, m.cols = m.stride = cols, m.zeros = 0;
    return m;
}

// bf16 <-> f32 on the host: round to nearest even, NaN stays a quiet NaN.
static inline HOST_DEVICE float bf16_to_f32(uint16_t h) {
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}
static inline HOST_DEVICE uint16_t f32_to_bf16(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((u >> 16) | 0x40u);
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

// A parameter and its gradient (d.p == NULL when frozen).
typedef struct Weight {
    Mat v, d;
} Weight;

// What a run of query rows may see. Query row `first + i` sees key rows [prefix_first, prefix_last) whole, and of its
// own rows [first, last): all of them, or with `causal` only [first, first + i]. Every query row is in at most one
// span; output rows in no span are left untouched. Windows, whole images, causal text, packed sequences and a group of
// completions that share a prompt are all lists of spans.
typedef struct Span {
    int32_t first, last, prefix_first, prefix_last, causal;
} Span;
typedef struct Spans {
    Mat rows;         // device copy, I32 [n, 5]
    const Span *host; // the same on the host
    int64_t n;
    int64_t longest; // largest last - first. Not for attention_decode: captured spans grow, so its launch may depend on
                     // `n` alone
} Spans;

// ------------------------------------------------------------------------------------------------------------ arena
// One block of device memory per role, handed out in order. Laid out twice by the same code: first with base == NULL to
// count (views have p == NULL then), and again to place. Alignment of every view: 64 bytes.
typedef struct Arena {
    char *base;
    size_t used, size, peak;
    const char *role; // "weights", "activations", "cache", ...
} Arena;
static inline Mat arena_mat(Arena *a, int64_t rows, int64_t cols, Type type) {
    size_t bytes = ((size_t)rows * (size_t)cols * type_size(type) + 63) / 64 * 64;
    Mat m = mat(a->base ? a->base + a->used : NULL, rows, cols, type);
    a->used += bytes;
    if (a->used > a->peak) a->peak = a->used;
    CHECK(!a->base || a->used <= a->size, "arena \"%s\" holds %zu bytes, %zu wanted", a->role, a->size, a->used);
    return m;
}

// ------------------------------------------------------------------------------------------------------------- ops
typedef enum Layout {
    NT, // y[N,M] = x[N,K] * w[M,K]^T   a linear layer
    NN, // y[N,K] = x[N,M] * w[M,K]     its input gradient
    TN  // y[M,K] = x[N,M]^T * w[N,K]   its weight gradient
} Layout;

// How the next token is chosen (transformers 4.57 order: penalty, temperature, top-k, top-p, min-p; then one draw).
typedef struct SampleParams {
    double repetition_penalty; // 1 = off
    int32_t do_sample;         // 0: the largest penalised logit, lowest id on ties; the fields below are unused
    int32_t top_k;             // 0 = off
    double temperature;        // > 0
    double top_p;              // 1 = off
    double min_p;              // 0 = off
    uint64_t seed;
} SampleParams;

// One update of AdamW. step_size and root_scale hold the bias corrections of update t (counted from 1).
typedef struct AdamStep {
    double grad_scale; // gradients are multiplied by this first (clipping)
    double lr, decay;  // decoupled weight decay: theta *= 1 - lr * decay
    double beta1, beta2, eps;
    double step_size;  // lr / (1 - beta1^t)
    double root_scale; // 1 / sqrt(1 - beta2^t)
} AdamStep;

// The distribution `sample` draws from, for tests and reports: probs [V] (0 where not kept), kept [V]; seen_ids may
// repeat; min_keep ids stay in every filter (1 without beams). Returns how many are kept. Implemented in ops.c.
int64_t sample_distribution(const float *logits, int64_t V, const int32_t *seen_ids, int64_t n_seen, SampleParams p,
                            int64_t min_keep, double *probs, uint8_t *kept);

// One device. Contract and formula of each op: ops.c, above its reference. Shapes: N rows (tokens), C channels.
typedef struct Ops {
    const char *name;
    Type act_type;         // type of activations: F32, or BF16 on cuda
    Type weight_grad_type; // F32
    int64_t pad; // rows of padded matrices lie a multiple of this apart (arena_padded); 0 = wherever they fall
    // memory: alloc gives 64-byte aligned memory with undefined contents, NULL when there is no more
    void *(*alloc)(size_t bytes);
    void (*release)(void *p);
    void (*memory)(size_t *free, size_t *total); // bytes of the device that nobody has, and all; NULL: host memory
    void (*upload)(Mat dst, Mat host);           // same shape and type; host memory may be reused on return
    void (*download)(Mat host, Mat src);         // same shape and type; waits
    void (*zero)(Mat y);
    void (*copy)(Mat y, Mat x); // device to device, same shape and type, any strides
    void (*sync)(void);
    // dense
    void (*matmul)(Mat y, Mat x, Mat w, Layout layout, float alpha, float beta);
    void (*matmul_bias)(Mat y, Mat x, Mat w, Mat b); // y = x w^T + b, rounded once; NULL: matmul, then add_bias
    void (*add_bias)(Mat y, Mat b);                  // y[i,:] += b
    void (*bias_backward)(Mat db, Mat dy);
    void (*add)(Mat y, Mat a, Mat b);                                               // y = a + b; y may be a or b
    void (*dropout)(Mat y, Mat x, Mat keys, float p, uint64_t seed, uint32_t site); // its own backward; y may be x
    // norm
    void (*rmsnorm_forward)(Mat y, Mat rstd, Mat x, Mat w, float eps);
    void (*add_rmsnorm_forward)(Mat y, Mat rstd, Mat sum, Mat x, Mat r, Mat w, float eps); // sum may be x or r
    void (*rmsnorm_backward_add)(Mat dx, Mat dw, Mat dy, Mat x, Mat w, Mat rstd);
    // position
    void (*rope)(Mat x, Mat angles, int64_t heads, int64_t dim, float sign); // in place
    // attention
    void (*attention_forward)(Mat o, Mat lse, Mat q, Mat k, Mat v, Spans spans, int64_t heads, int64_t kv_heads,
                              int64_t dim, float scale);
    void (*attention_backward)(Mat dq, Mat dk, Mat dv, Mat delta, Mat dout, Mat q, Mat k, Mat v, Mat o, Mat lse,
                               Spans spans, int64_t heads, int64_t kv_heads, int64_t dim, float scale);
    void (*attention_decode)(Mat o, Mat q, Mat k, Mat v, Spans spans, int64_t heads, int64_t kv_heads, int64_t dim,
                             float scale);
    // mlp
    void (*swiglu_forward)(Mat y, Mat gate, Mat up);
    void (*swiglu_backward)(Mat dgate, Mat dup, Mat dy, Mat gate, Mat up);
    void (*gelu_forward)(Mat y, Mat x);
    void (*gelu_backward)(Mat dx, Mat dy, Mat x);
    // rows
    void (*gather_rows)(Mat y, Mat table, Mat index);
    void (*scatter_add_rows)(Mat y, Mat x, Mat index);
    // head
    void (*logprob_forward)(Mat lp, Mat lse, Mat entropy, Mat logits, Mat targets, float inv_temperature);
    void (*logprob_backward)(Mat dlogits, Mat logits, Mat targets, Mat lse, Mat dlp, float inv_temperature);
    // Both in one visit of the logits, for the same bits. NULL: one after the other (cpu: exp is what they take time for).
    void (*logprob_forward_backward)(Mat dlogits, Mat lp, Mat lse, Mat entropy, Mat logits, Mat targets, Mat dlp,
                                     float inv_temperature);
    void (*sample)(Mat tokens, Mat logits, Mat seen, Mat streams, Mat steps, SampleParams params);
    // step
    void (*sum_squares)(Mat out, Mat x);
    void (*adamw)(Mat w, Mat m, Mat v, Mat g, AdamStep step);
    // types
    void (*cast)(Mat y, Mat x);
    // optional, all four or none (NULL): ops recorded once, then run again as a single launch
    bool (*capture_begin)(void); // false: not now (--kernels naive), and nothing has begun
    void *(*capture_end)(void);  // the graph of what was called since
    void (*replay)(void *graph);
    void (*capture_release)(void *graph);
} Ops;

const Ops *ops_ref(void); // ops.c
const Ops *ops_cpu(void); // cpu.c: ref with its hot rows replaced
// The instruction set of "cpu": the widest of avx512, avx2, scalar that runs here, or what SURGR1_ISA or cpu_isa_set
// says (avx2x16 too: the avx512 kernels in halves, same bits, for tests). Sets of different width differ in the last
// bits. cpu_isa_set(NULL) goes back to the widest; false when `name` does not run here (nothing changes then).
const char *cpu_isa(void);
bool cpu_isa_set(const char *name);
const Ops *
ops_paper(Type act_type); // ops.c: its memory is addresses without pages, to count what another device would hold;
                          // of the ops only those of memory and cast are there, and do nothing
const Ops *ops_cuda(Type act_type, Err *e); // kernels.cu; NULL and *e = E-DV-01 when there is no usable device
enum { CUDA_PAD = 32 };                     // its Ops.pad: 64 bytes of bf16
// Which of its rungs "cuda" takes (--matmul, --kernels): for bisecting, and for tests that compare them. auto: the fastest
// that the build has and that types, alignment and sizes of weights allow; never a matter of the number of rows.
typedef enum CudaMatmul { MATMUL_AUTO, MATMUL_NAIVE, MATMUL_TENSOR, MATMUL_CUBLAS } CudaMatmul;
typedef struct CudaRungs {
    CudaMatmul matmul;
    bool naive; // every other kernel: the plain rung only
} CudaRungs;
void cuda_rungs_set(CudaRungs rungs); // takes effect at the next op
bool cuda_has_cublas(void);           // whether the build has that rung

// Empties the arena and makes sure that it holds `bytes` (growing it drops what it held). E-ME-01 with role and bytes
// when the device has no more, or when the arenas of a host device would pass the limit below.
bool arena_reserve(Arena *a, const Ops *d, size_t bytes, Err *e);
void arena_release(Arena *a, const Ops *d);
// As arena_mat, for matrices that a matmul sums along the rows of: the row length is rounded up to a multiple of d->pad,
// and what that adds is zero (Mat.zeros) from the moment it is placed. Fast kernels want rows at multiples of 16 bytes
// and may sum over the zeros too, which is exact. Where the device has no `pad` it is arena_mat.
Mat arena_padded(Arena *a, const Ops *d, int64_t rows, int64_t cols, Type type);
// Bytes that all arenas in host memory may take together (--max-memory). Until set: 80 % of what the control group or
// the machine has, whichever is less.
void memory_limit_set(int64_t bytes);
int64_t memory_limit(void);
// Bytes that all arenas on d hold now (on host devices: those of all of them).
int64_t memory_held(const Ops *d);

// The entry points the model calls: check shapes and types (a broken contract is E-BG-01 with op and shapes), skip zero
// rows, call the device, report to the trace. d is the device; everything else as in the table.
void matmul(const Ops *d, Mat y, Mat x, Mat w, Layout layout, float alpha, float beta);
void matmul_bias(const Ops *d, Mat y, Mat x, Mat w, Mat b);
void add_bias(const Ops *d, Mat y, Mat b);
void bias_backward(const Ops *d, Mat db, Mat dy);
void add(const Ops *d, Mat y, Mat a, Mat b);
void dropout(const Ops *d, Mat y, Mat x, Mat keys, float p, uint64_t seed, uint32_t site);
void rmsnorm_forward(const Ops *d, Mat y, Mat rstd, Mat x, Mat w, float eps);
void add_rmsnorm_forward(const Ops *d, Mat y, Mat rstd, Mat sum, Mat x, Mat r, Mat w, float eps);
void rmsnorm_backward_add(const Ops *d, Mat dx, Mat dw, Mat dy, Mat x, Mat w, Mat rstd);
void rope(const Ops *d, Mat x, Mat angles, int64_t heads, int64_t dim, float sign);
void attention_forward(const Ops *d, Mat o, Mat lse, Mat q, Mat k, Mat v, Spans spans, int64_t heads, int64_t kv_heads,
                       int64_t dim, float scale);
void attention_backward(const Ops *d, Mat dq, Mat dk, Mat dv, Mat delta, Mat dout, Mat q, Mat k, Mat v, Mat o, Mat lse,
                        Spans spans, int64_t heads, int64_t kv_heads, int64_t dim, float scale);
void attention_decode(const Ops *d, Mat o, Mat q, Mat k, Mat v, Spans spans, int64_t heads, int64_t kv_heads,
                      int64_t dim, float scale);
void swiglu_forward(const Ops *d, Mat y, Mat gate, Mat up);
void swiglu_backward(const Ops *d, Mat dgate, Mat dup, Mat dy, Mat gate, Mat up);
void gelu_forward(const Ops *d, Mat y, Mat x);
void gelu_backward(const Ops *d, Mat dx, Mat dy, Mat x);
void gather_rows(const Ops *d, Mat y, Mat table, Mat index);
void scatter_add_rows(const Ops *d, Mat y, Mat x, Mat index);
void logprob_forward(const Ops *d, Mat lp, Mat lse, Mat entropy, Mat logits, Mat targets, float inv_temperature);
void logprob_backward(const Ops *d, Mat dlogits, Mat logits, Mat targets, Mat lse, Mat dlp, float inv_temperature);
void logprob_forward_backward(const Ops *d, Mat dlogits, Mat lp, Mat lse, Mat entropy, Mat logits, Mat targets, Mat dlp,
                              float inv_temperature);
void sample(const Ops *d, Mat tokens, Mat logits, Mat seen, Mat streams, Mat steps, SampleParams params);
void sum_squares(const Ops *d, Mat out, Mat x);
void adamw(const Ops *d, Mat w, Mat m, Mat v, Mat g, AdamStep step);
void cast(const Ops *d, Mat y, Mat x);
void copy(const Ops *d, Mat y, Mat x);
// False where ops must run one by one: the device cannot or may not capture, or a trace wants to see every op.
bool capture_begin(const Ops *d);
void *capture_end(const Ops *d);
void replay(const Ops *d, void *graph);
void capture_release(const Ops *d, void *graph);

// The trace: when set, called after every op with the op's name and the output it wrote (on the device).
typedef void (*OpTrace)(void *ctx, const Ops *d, const char *op, Mat y);
void op_trace_set(OpTrace trace, void *ctx); // NULL = off

#ifdef __cplusplus
}
#endif
#endif
