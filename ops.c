// ops.c - every op in turn: its contract as a formula, then its reference in plain C; then the checked entry points.
//
// What it is:  the definition of the answer. Storage is fp32 (or bf16 where a view says so), sums are double, nothing
//              is clever: a reader compares a kernel with the twenty lines here. Device "ref" runs exactly this.
// What it is not: fast (cpu.c, kernels.cu are).
// Read before: ops.h.  Read next: block.c, which calls these; cpu.c and kernels.cu hold the same ops in the same order.
#include "ops.h"
#include <sys/mman.h>

const char *type_name(Type t) { return t == F32 ? "f32" : t == BF16 ? "bf16" : "i32"; }

// Element access in double. An F32 or BF16 view may start at any address its type allows on this machine; memcpy keeps
// it legal for mapped files, whose tensors may have any alignment.
static inline double get(Mat m, int64_t i, int64_t j) {
    if (m.type == BF16) {
        uint16_t h;
        memcpy(&h, mat_at(m, i, j), sizeof h);
        return bf16_to_f32(h);
    }
    real f;
    memcpy(&f, mat_at(m, i, j), sizeof f);
    return f;
}
static inline void put(Mat m, int64_t i, int64_t j, double v) {
    if (m.type == BF16) {
        uint16_t h = f32_to_bf16((float)v);
        memcpy(mat_at(m, i, j), &h, sizeof h);
    } else {
        real f = (real)v;
        memcpy(mat_at(m, i, j), &f, sizeof f);
    }
}
static inline int32_t get_index(Mat m, int64_t i) { return *(const int32_t *)mat_at(m, i, 0); }

// sum_c a[i, ca + c] * b[j, cb + c] for c < n, in double and in order of c.
static double dot(Mat a, int64_t i, int64_t ca, Mat b, int64_t j, int64_t cb, int64_t n) {
    double sum = 0;
    a = mat_cols(a, ca, n), b = mat_cols(b, cb, n);
    if (a.type == F32 && b.type == F32) // the two common cases without a branch per element
        for (int64_t c = 0; c < n; c++) {
            real x, y;
            memcpy(&x, (const char *)mat_at(a, i, 0) + sizeof x * (size_t)c, sizeof x);
            memcpy(&y, (const char *)mat_at(b, j, 0) + sizeof y * (size_t)c, sizeof y);
            sum += (double)x * y;
        }
    else
        for (int64_t c = 0; c < n; c++) sum += get(a, i, c) * get(b, j, c);
    return sum;
}

// ------------------------------------------------------------------------------------------------------------ memory
// alloc/release: 64-byte aligned blocks. upload, download, copy: y[i,j] = x[i,j] for equal shapes and types, any
// strides.

static void *ref_alloc(size_t bytes) {
    void *p = NULL;
    return posix_memalign(&p, 64, bytes ? bytes : 64) ? NULL : p;
}
static void ref_release(void *p) { free(p); }
static void ref_copy(Mat y, Mat x) {
    for (int64_t i = 0; i < y.rows; i++)
        if (y.cols) memmove(mat_at(y, i, 0), mat_at(x, i, 0), (size_t)y.cols * type_size(y.type));
}
static void ref_zero(Mat y) {
    for (int64_t i = 0; i < y.rows; i++)
        if (y.cols) memset(mat_at(y, i, 0), 0, (size_t)y.cols * type_size(y.type));
}
static void ref_sync(void) {}

// ------------------------------------------------------------------------------------------------------------- dense

// matmul: y = alpha * product(x, w) + beta * y, with the product of `layout` (ops.h):
//   NT  y[N,M] = x[N,K] w[M,K]^T     NN  y[N,K] = x[N,M] w[M,K]     TN  y[M,K] = x[N,M]^T w[N,K]
// With beta == 0 the old y is not read (it may be NaN). x, w, y: F32 or BF16, each on its own.
static void ref_matmul(Mat y, Mat x, Mat w, Layout layout, float alpha, float beta) {
    int64_t inner = layout == NT ? x.cols : layout == NN ? x.cols : x.rows;
    for (int64_t i = 0; i < y.rows; i++)
        for (int64_t j = 0; j < y.cols; j++) {
            double sum = 0;
            if (layout == NT) sum = dot(x, i, 0, w, j, 0, inner);
            else if (layout == NN)
                for (int64_t c = 0; c < inner; c++) sum += get(x, i, c) * get(w, c, j);
            else
                for (int64_t c = 0; c < inner; c++) sum += get(x, c, i) * get(w, c, j);
            put(y, i, j, alpha * sum + (beta == 0 ? 0 : beta * get(y, i, j)));
        }
}

// matmul_bias: y = x w^T + b (NT). A device that adds the bias before the sum is rounded to y's type has it as a row of
// its own; ref and cpu are matmul, then add_bias.

// add_bias: y[i,j] += b[0,j].
static void ref_add_bias(Mat y, Mat b) {
    for (int64_t i = 0; i < y.rows; i++)
        for (int64_t j = 0; j < y.cols; j++) put(y, i, j, get(y, i, j) + get(b, 0, j));
}

// bias_backward: db[0,j] += sum_i dy[i,j]. db F32.
static void ref_bias_backward(Mat db, Mat dy) {
    for (int64_t j = 0; j < dy.cols; j++) {
        double sum = 0;
        for (int64_t i = 0; i < dy.rows; i++) sum += get(dy, i, j);
        put(db, 0, j, get(db, 0, j) + sum);
    }
}

// add: y = a + b, elementwise. y may be a or b.
static void ref_add(Mat y, Mat a, Mat b) {
    for (int64_t i = 0; i < y.rows; i++)
        for (int64_t j = 0; j < y.cols; j++) put(y, i, j, get(a, i, j) + get(b, i, j));
}

// dropout: y[i,j] = 0 where the random word r(i,j) is below p 2^32, else x[i,j] / (1 - p). (Srivastava et al. 2014.)
// r(i,j) is word j % 4 of Philox with key `seed` and counter (RANDOM_DROPOUT | site << 8, keys[i,0], keys[i,1], j / 4):
// keys I32 [N,2] name the row (which sample, which place in it), site names the layer, so the mask depends on neither
// batch nor thread nor device, and a second call gives it again: dx = dropout(dy) is the backward. y may be x.
static void ref_dropout(Mat y, Mat x, Mat keys, float p, uint64_t seed, uint32_t site) {
    double keep = 1 / (1 - (double)p);
    for (int64_t i = 0; i < y.rows; i++) {
        const uint32_t *key = mat_at(keys, i, 0);
        Random4 r = {{0}};
        for (int64_t j = 0; j < y.cols; j++) {
            if (j % 4 == 0) r = philox(seed, RANDOM_DROPOUT | site << 8, key[0], key[1], (uint32_t)(j / 4));
            put(y, i, j, (double)r.v[j % 4] < (double)p * 4294967296.0 ? 0 : get(x, i, j) * keep);
        }
    }
}

// -------------------------------------------------------------------------------------------------------------- norm

// rmsnorm: rstd[i] = 1 / sqrt(mean_j x[i,j]^2 + eps); y[i,j] = w[j] * x[i,j] * rstd[i].
// x, y [N,C]; w [1,C] F32 or BF16; rstd F32 [N,1] or absent. (Zhang and Sennrich 2019; transformers Qwen2RMSNorm.)
static void ref_rmsnorm_forward(Mat y, Mat rstd, Mat x, Mat w, float eps) {
    for (int64_t i = 0; i < x.rows; i++) {
        double r = 1 / sqrt(dot(x, i, 0, x, i, 0, x.cols) / (double)x.cols + eps);
        for (int64_t j = 0; j < x.cols; j++) put(y, i, j, get(w, 0, j) * (get(x, i, j) * r));
        if (rstd.p) put(rstd, i, 0, r);
    }
}

// add_rmsnorm: sum = x + r (rounded to its type), then rmsnorm of sum. sum may be x or r.
static void ref_add_rmsnorm_forward(Mat y, Mat rstd, Mat sum, Mat x, Mat r, Mat w, float eps) {
    ref_add(sum, x, r);
    ref_rmsnorm_forward(y, rstd, sum, w, eps);
}

// rmsnorm_backward_add: with n = x[i,:] rstd[i] and g = w dy[i,:], elementwise,
//   dx[i,:] += rstd[i] (g - n mean_j(g n));   dw += sum_i dy[i,:] n.        rstd as rmsnorm_forward left it; dw F32.
// dx accumulates because the same rows also go past the norm, along the residual.
static void ref_rmsnorm_backward_add(Mat dx, Mat dw, Mat dy, Mat x, Mat w, Mat rstd) {
    for (int64_t i = 0; i < x.rows; i++) {
        double r = get(rstd, i, 0), mean = 0;
        for (int64_t j = 0; j < x.cols; j++) mean += get(w, 0, j) * get(dy, i, j) * (get(x, i, j) * r);
        mean /= (double)x.cols;
        for (int64_t j = 0; j < x.cols; j++)
            put(dx, i, j, get(dx, i, j) + r * (get(w, 0, j) * get(dy, i, j) - get(x, i, j) * r * mean));
    }
    for (int64_t j = 0; dw.p && j < x.cols; j++) {
        double sum = 0;
        for (int64_t i = 0; i < x.rows; i++) sum += get(dy, i, j) * (get(x, i, j) * get(rstd, i, 0));
        put(dw, 0, j, get(dw, 0, j) + sum);
    }
}

// ---------------------------------------------------------------------------------------------------------- position

// rope: rotates each head of x [N, heads*dim] in place. angles F32 [N, dim] holds cos in columns [0, dim/2) and sin in
// [dim/2, dim). With half = dim/2, a = x[i], b = x[i + half]:
//   x[i] = a cos_i - sign b sin_i;   x[i + half] = b cos_i + sign a sin_i.      sign = 1 forward, -1 inverse.
// (Su et al. 2021 in the half-split form of transformers rotate_half; text and pictures differ only in the table.)
static void ref_rope(Mat x, Mat angles, int64_t heads, int64_t dim, float sign) {
    int64_t half = dim / 2;
    for (int64_t n = 0; n < x.rows; n++)
        for (int64_t h = 0; h < heads; h++)
            for (int64_t i = 0; i < half; i++) {
                double c = get(angles, n, i), s = sign * get(angles, n, half + i);
                double a = get(x, n, h * dim + i), b = get(x, n, h * dim + half + i);
                put(x, n, h * dim + i, a * c - b * s);
                put(x, n, h * dim + half + i, b * c + a * s);
            }
}

// --------------------------------------------------------------------------------------------------------- attention

enum { MAX_HEAD_DIM = 512 };

// One query row against its keys: the prefix rows, then own rows [span.first, own_last).
//   s_t = scale q.k_t;  lse = log sum_t exp(s_t);  o = sum_t exp(s_t - lse) v_t.    No key at all: o = 0, lse = -inf.
static void attend(Mat o, Mat lse, Mat q, int64_t row, Mat k, Mat v, Span span, int64_t own_last, int64_t heads,
                   int64_t kv_heads, int64_t dim, double scale) {
    int64_t prefix = span.prefix_last - span.prefix_first, keys = prefix + own_last - span.first;
    for (int64_t h = 0; h < heads; h++) {
        int64_t kv =
            h / (heads / kv_heads) * dim; // grouped-query attention: heads/kv_heads query heads share a key head
        double largest = -INFINITY, sum = 0, acc[MAX_HEAD_DIM] = {0};
        for (int pass = 0; pass < 2; pass++)
            for (int64_t t = 0; t < keys; t++) {
                int64_t key = t < prefix ? span.prefix_first + t : span.first + t - prefix;
                double s = scale * dot(q, row, h * dim, k, key, kv, dim);
                if (pass == 0) {
                    largest = s > largest ? s : largest;
                    continue;
                }
                double p = exp(s - largest);
                sum += p;
                for (int64_t c = 0; c < dim; c++) acc[c] += p * get(v, key, kv + c);
            }
        for (int64_t c = 0; c < dim; c++) put(o, row, h * dim + c, keys ? acc[c] / sum : 0);
        if (lse.p) put(lse, row, h, keys ? largest + log(sum) : -INFINITY);
    }
}

// attention_forward: o [N, heads*dim] from q [N, heads*dim], k and v [rows, kv_heads*dim], for the spans of ops.h:
// query row first+i of a span sees its prefix rows and its own rows, causally or all. lse F32 [N, heads] (natural log)
// or absent. Query head h uses key head h / (heads/kv_heads).
static void ref_attention_forward(Mat o, Mat lse, Mat q, Mat k, Mat v, Spans spans, int64_t heads, int64_t kv_heads,
                                  int64_t dim, float scale) {
    for (int64_t n = 0; n < spans.n; n++) {
        Span s = spans.host[n];
        for (int64_t i = s.first; i < s.last; i++)
            attend(o, lse, q, i, k, v, s, s.causal ? i + 1 : s.last, heads, kv_heads, dim, scale);
    }
}

// attention_backward: for every query row i, head h and key t it saw, with p = exp(scale q.k_t - lse[i,h]),
//   delta[i,h] = dout.o;   ds = scale p (dout.v_t - delta);   dq = sum_t ds k_t;   dk_t += ds q;   dv_t += p dout.
// dq, dk, dv are overwritten whole (zero in rows that nothing saw); dk and dv sum over the query heads that share a key
// head and over all spans that see the row. Where a query sees a single key ds is exactly 0. delta F32 [N, heads] is
// scratch that comes out as defined. The probabilities are made again from lse (Dao et al. 2022, FlashAttention,
// algorithm 4), so nothing of size N x N is kept.
static double seen_probability(Mat q, int64_t row, int64_t h, Mat k, int64_t key, int64_t kv, Mat lse, int64_t dim,
                               double scale) {
    return exp(scale * dot(q, row, h * dim, k, key, kv, dim) - get(lse, row, h));
}

static void ref_attention_backward(Mat dq, Mat dk, Mat dv, Mat delta, Mat dout, Mat q, Mat k, Mat v, Mat o, Mat lse,
                                   Spans spans, int64_t heads, int64_t kv_heads, int64_t dim, float scale) {
    int64_t group = heads / kv_heads;
    ref_zero(dq), ref_zero(dk), ref_zero(dv), ref_zero(delta);
    for (int64_t n = 0; n < spans.n; n++) { // rows of queries
        Span s = spans.host[n];
        int64_t prefix = s.prefix_last - s.prefix_first;
        for (int64_t i = s.first; i < s.last; i++)
            for (int64_t h = 0; h < heads; h++) {
                int64_t kv = h / group * dim, keys = prefix + (s.causal ? i + 1 : s.last) - s.first;
                double acc[MAX_HEAD_DIM] = {0}, D = dot(dout, i, h * dim, o, i, h * dim, dim);
                put(delta, i, h, D);
                for (int64_t t = 0; t < keys; t++) {
                    int64_t key = t < prefix ? s.prefix_first + t : s.first + t - prefix;
                    double p = seen_probability(q, i, h, k, key, kv, lse, dim, scale);
                    double ds = keys == 1 ? 0 : scale * p * (dot(dout, i, h * dim, v, key, kv, dim) - D);
                    for (int64_t c = 0; c < dim; c++) acc[c] += ds * get(k, key, kv + c);
                }
                for (int64_t c = 0; c < dim; c++) put(dq, i, h * dim + c, acc[c]);
            }
    }
    for (int64_t key = 0; key < k.rows; key++) // rows of keys
        for (int64_t g = 0; g < kv_heads; g++) {
            double acc_k[MAX_HEAD_DIM] = {0}, acc_v[MAX_HEAD_DIM] = {0};
            for (int64_t n = 0; n < spans.n; n++) {
                Span s = spans.host[n];
                bool own = key >= s.first && key < s.last, before = key >= s.prefix_first && key < s.prefix_last;
                if (!own && !before) continue;
                for (int64_t i = own && s.causal ? key : s.first; i < s.last; i++)
                    for (int64_t h = g * group; h < (g + 1) * group; h++) {
                        double p = seen_probability(q, i, h, k, key, g * dim, lse, dim, scale);
                        bool alone = s.prefix_first == s.prefix_last && (s.causal ? i : s.last - 1) == s.first;
                        double ds = dot(dout, i, h * dim, v, key, g * dim, dim) - get(delta, i, h);
                        ds = alone ? 0 : scale * p * ds;
                        for (int64_t c = 0; c < dim; c++) {
                            acc_k[c] += ds * get(q, i, h * dim + c);
                            acc_v[c] += p * get(dout, i, h * dim + c);
                        }
                    }
            }
            for (int64_t c = 0; c < dim; c++) put(dk, key, g * dim + c, acc_k[c]), put(dv, key, g * dim + c, acc_v[c]);
        }
}

// attention_decode: one query row per span. Row n of q and o [n_spans, heads*dim] sees rows [prefix_first, prefix_last)
// and [first, last) of the cache k, v [cache rows, kv_heads*dim].
static void ref_attention_decode(Mat o, Mat q, Mat k, Mat v, Spans spans, int64_t heads, int64_t kv_heads, int64_t dim,
                                 float scale) {
    for (int64_t n = 0; n < spans.n; n++)
        attend(o, mat_none(), q, n, k, v, spans.host[n], spans.host[n].last, heads, kv_heads, dim, scale);
}

// --------------------------------------------------------------------------------------------------------------- mlp

// swiglu: y = silu(gate) * up, silu(z) = z / (1 + exp(-z)). (Shazeer 2020.)
static void ref_swiglu_forward(Mat y, Mat gate, Mat up) {
    for (int64_t i = 0; i < y.rows; i++)
        for (int64_t j = 0; j < y.cols; j++) {
            double z = get(gate, i, j);
            put(y, i, j, z / (1 + exp(-z)) * get(up, i, j));
        }
}

// swiglu_backward: with s = 1 / (1 + exp(-gate)),  dup = dy gate s;  dgate = dy up s (1 + gate (1 - s)).
static void ref_swiglu_backward(Mat dgate, Mat dup, Mat dy, Mat gate, Mat up) {
    for (int64_t i = 0; i < dy.rows; i++)
        for (int64_t j = 0; j < dy.cols; j++) {
            double z = get(gate, i, j), s = 1 / (1 + exp(-z)), g = get(dy, i, j);
            put(dgate, i, j, g * get(up, i, j) * s * (1 + z * (1 - s)));
            put(dup, i, j, g * z * s);
        }
}

// gelu: y = x/2 * (1 + erf(x / sqrt 2)), the exact form.
static void ref_gelu_forward(Mat y, Mat x) {
    for (int64_t i = 0; i < y.rows; i++)
        for (int64_t j = 0; j < y.cols; j++) {
            double z = get(x, i, j);
            put(y, i, j, 0.5 * z * (1 + erf(z * 0.70710678118654752440)));
        }
}

// gelu_backward: dx = dy (Phi(x) + x phi(x)), the normal distribution and its density.
static void ref_gelu_backward(Mat dx, Mat dy, Mat x) {
    for (int64_t i = 0; i < x.rows; i++)
        for (int64_t j = 0; j < x.cols; j++) {
            double z = get(x, i, j), Phi = 0.5 * (1 + erf(z * 0.70710678118654752440));
            put(dx, i, j, get(dy, i, j) * (Phi + z * 0.39894228040143267794 * exp(-0.5 * z * z)));
        }
}

// -------------------------------------------------------------------------------------------------------------- rows

// gather_rows: y[i,:] = table[index[i],:], or zeros where index[i] < 0. index I32 [N,1]. y and table may differ in
// type. The embedding, the window order, its inverse, and the choice of rows for the head.
static void ref_gather_rows(Mat y, Mat table, Mat index) {
    for (int64_t i = 0; i < y.rows; i++) {
        int32_t r = get_index(index, i);
        for (int64_t j = 0; j < y.cols; j++) put(y, i, j, r < 0 ? 0 : get(table, r, j));
    }
}

// scatter_add_rows: y[index[i],:] += x[i,:] for i in order; negative indices are skipped. Places picture rows among the
// text rows (which are zero there), and is the backward of gather_rows.
static void ref_scatter_add_rows(Mat y, Mat x, Mat index) {
    for (int64_t i = 0; i < x.rows; i++) {
        int32_t r = get_index(index, i);
        if (r < 0) continue;
        for (int64_t j = 0; j < y.cols; j++) put(y, r, j, get(y, r, j) + get(x, i, j));
    }
}

// -------------------------------------------------------------------------------------------------------------- head

// logprob: with z = logits[i,:] * inv_temperature and t = targets[i]:
//   lse = log sum_v exp z_v;   lp = z_t - lse (0 where t < 0);   entropy = lse - sum_v exp(z_v - lse) z_v, in [0, ln
//   V].
// logits [N,V] F32; targets I32 [N,1]; lp, lse, entropy F32 [N,1], the last two may be absent.
static void ref_logprob_forward(Mat lp, Mat lse, Mat entropy, Mat logits, Mat targets, float inv_temperature) {
    for (int64_t i = 0; i < logits.rows; i++) {
        double largest = -INFINITY, sum = 0, weighted = 0;
        for (int64_t v = 0; v < logits.cols; v++) largest = fmax(largest, get(logits, i, v) * inv_temperature);
        for (int64_t v = 0; v < logits.cols; v++) {
            double z = get(logits, i, v) * inv_temperature - largest, p = exp(z);
            sum += p, weighted += p > 0 ? p * z : 0;
        }
        int32_t t = get_index(targets, i);
        put(lp, i, 0, t < 0 ? 0 : get(logits, i, t) * inv_temperature - largest - log(sum));
        if (lse.p) put(lse, i, 0, largest + log(sum));
        if (entropy.p) put(entropy, i, 0, fmin(fmax(log(sum) - weighted / sum, 0), log((double)logits.cols)));
    }
}

// logprob_backward: dlogits[i,v] = dlp[i] inv_temperature ([v == t] - exp(logits[i,v] inv_temperature - lse[i])), zeros
// where t = targets[i] < 0. dlp F32 [N,1] is the gradient of the loss with respect to lp; lse as the forward left it.
// dlogits may be logits, or BF16 in the first half of their rows (the same p, twice the stride).
static void ref_logprob_backward(Mat dlogits, Mat logits, Mat targets, Mat lse, Mat dlp, float inv_temperature) {
    for (int64_t i = 0; i < logits.rows; i++) {
        int32_t t = get_index(targets, i);
        double g = t < 0 ? 0 : get(dlp, i, 0) * inv_temperature, l = get(lse, i, 0);
        for (int64_t v = 0; v < logits.cols; v++)
            put(dlogits, i, v, g == 0 ? 0 : g * ((v == t) - exp(get(logits, i, v) * inv_temperature - l)));
    }
}

// The scores a token is chosen by, in double, in the order of transformers 4.57 (generation/utils.py
// _get_logits_processor; generation/logits_process.py):
//   1. penalty p, once per seen id:  x < 0 ? x p : x / p.     Then, only when sampling:
//   2. x / temperature.   3. top-k: keep the k largest, and all that equal the k-th.
//   4. top-p: in the order (score down, id up) keep while the mass before, renormalised after top-k, is < top_p.
//   5. min-p: drop what is less than min_p times the best probability.   At least min_keep ids stay in each of 3 to 5.
// A heap gives the ids in order, so only as many are sorted as are kept (V = 152,064 would cost 10 ms a token else).
typedef struct Scores {
    double *z;      // [V] scores after 1 and 2
    int32_t *order; // [V] the n kept ids first, best first; when nothing is cut, 0..V-1 in order of id
    int32_t *heap;  // [V]
    int64_t n, capacity;
} Scores;

static bool heap_before(const double *z, int32_t a, int32_t b) { return z[a] > z[b] || (z[a] == z[b] && a < b); }
static void heap_sink(const double *z, int32_t *heap, int64_t n, int64_t i) {
    int32_t id = heap[i];
    for (int64_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && heap_before(z, heap[child + 1], heap[child])) child++;
        if (!heap_before(z, heap[child], id)) break;
        heap[i] = heap[child];
    }
    heap[i] = id;
}

static void scores_compute(Scores *s, Mat logits, int64_t row, const uint32_t *seen, SampleParams p, int64_t min_keep) {
    int64_t V = logits.cols;
    if (s->capacity < V) {
        s->z = grow_or_die(s->z, (size_t)V, sizeof *s->z, "scores of one row");
        s->order = grow_or_die(s->order, (size_t)V, sizeof *s->order, "scores of one row");
        s->heap = grow_or_die(s->heap, (size_t)V, sizeof *s->heap, "scores of one row");
        s->capacity = V;
    }
    double *z = s->z, best = -INFINITY, total = 0, before = 0;
    for (int64_t v = 0; v < V; v++) {
        z[v] = get(logits, row, v);
        if (seen && seen[v / 32] >> (v % 32) & 1)
            z[v] = z[v] < 0 ? z[v] * p.repetition_penalty : z[v] / p.repetition_penalty;
        if (p.do_sample) z[v] /= p.temperature;
        best = fmax(best, z[v]);
        s->order[v] = (int32_t)v;
    }
    s->n = V;
    bool cut_k = p.top_k > 0 && p.top_k < V, cut_p = p.top_p<1, cut_min = p.min_p> 0;
    if (!p.do_sample || !(cut_k || cut_p || cut_min)) return;

    int64_t left = V, kept = 0, k = p.top_k > min_keep ? p.top_k : min_keep;
    memcpy(s->heap, s->order, (size_t)V * sizeof *s->heap);
    for (int64_t i = V / 2 - 1; i >= 0; i--) heap_sink(z, s->heap, V, i);
    if (!cut_k)
        for (int64_t v = 0; v < V; v++) total += exp(z[v] - best);
    // Pops in order. With top-k the survivors must be known before their mass is: pop them all, then cut the list.
    while (left > 0) {
        int32_t id = s->heap[0];
        if (cut_k && kept >= k && z[id] < z[s->order[kept - 1]]) break;
        if (!cut_k && kept >= min_keep &&
            ((cut_p && before >= p.top_p * total) || (cut_min && exp(z[id] - best) < p.min_p)))
            break;
        before += exp(z[id] - best);
        s->order[kept++] = id;
        s->heap[0] = s->heap[--left];
        heap_sink(z, s->heap, left, 0);
    }
    if (cut_k) {
        total = before, before = 0;
        int64_t survivors = kept;
        for (kept = 0; kept < survivors; kept++) {
            double e = exp(z[s->order[kept]] - best);
            if (kept >= min_keep && ((cut_p && before >= p.top_p * total) || (cut_min && e < p.min_p))) break;
            before += e;
        }
    }
    s->n = kept;
}

// sample: tokens[i] I32 [N,1] from logits[i,:] F32 [N,V]. Without do_sample the largest score, lowest id on ties. Else
// one draw from the softmax of the kept scores, by the Gumbel-max rule: the id with the largest z - log(-log u), u
// uniform in (0,1) from (seed, stream[i], step[i], id) (Gumbel 1954; Maddison et al. 2014). The largest of a set needs
// no order, so every device and thread count draws the same id. seen I32 [N, ceil(V/32)] holds one bit per id that the
// penalty counts; the drawn id's bit is set. It may be absent when the penalty is 1. streams, steps I32 [N,1].
static void ref_sample(Mat tokens, Mat logits, Mat seen, Mat streams, Mat steps, SampleParams p) {
    Scores s = {0}; // scratch of one row
    for (int64_t i = 0; i < logits.rows; i++) {
        uint32_t *bits = seen.p ? mat_at(seen, i, 0) : NULL;
        scores_compute(&s, logits, i, p.repetition_penalty != 1 ? bits : NULL, p, 1);
        int32_t best = -1;
        double best_key = -INFINITY;
        for (int64_t k = 0; k < s.n; k++) {
            int32_t id = s.order[k];
            double key = s.z[id];
            if (p.do_sample) {
                uint64_t stream = (uint64_t)(uint32_t)get_index(steps, i) << 32 | (uint32_t)get_index(streams, i);
                key -= log(-log(random_uniform(p.seed, RANDOM_SAMPLE, stream, (uint32_t)id)));
            }
            if (best < 0 || key > best_key || (key == best_key && id < best)) best = id, best_key = key;
        }
        *(int32_t *)mat_at(tokens, i, 0) = best;
        if (bits) bits[best / 32] |= 1u << (best % 32);
    }
    free(s.z), free(s.order), free(s.heap);
}

int64_t sample_distribution(const float *logits, int64_t V, const int32_t *seen_ids, int64_t n_seen, SampleParams p,
                            int64_t min_keep, double *probs, uint8_t *kept) {
    Scores s = {0};
    uint32_t *bits = alloc_or_die((size_t)(V + 31) / 32, sizeof *bits, "seen ids");
    for (int64_t i = 0; i < n_seen; i++) bits[seen_ids[i] / 32] |= 1u << (seen_ids[i] % 32);
    scores_compute(&s, mat((void *)(uintptr_t)logits, 1, V, F32), 0, bits, p, min_keep);
    double best = -INFINITY, total = 0;
    for (int64_t k = 0; k < s.n; k++) best = fmax(best, s.z[s.order[k]]);
    for (int64_t k = 0; k < s.n; k++) total += exp(s.z[s.order[k]] - best);
    for (int64_t v = 0; v < V; v++) probs[v] = 0, kept[v] = 0;
    for (int64_t k = 0; k < s.n; k++) probs[s.order[k]] = exp(s.z[s.order[k]] - best) / total, kept[s.order[k]] = 1;
    int64_t n = s.n;
    free(s.z), free(s.order), free(s.heap), free(bits);
    return n;
}

// -------------------------------------------------------------------------------------------------------------- step

// sum_squares: out[0,0] = sum x^2, summed in double in a fixed order. out F32 [1,1]. NaN and infinity pass through.
static void ref_sum_squares(Mat out, Mat x) {
    double sum = 0;
    for (int64_t i = 0; i < x.rows; i++) sum += dot(x, i, 0, x, i, 0, x.cols);
    put(out, 0, 0, sum);
}

// adamw: one update of w with its moments m and v, all F32, in the order of torch.optim.AdamW (Loshchilov and Hutter
// 2019): g = grad_scale g;  w *= 1 - lr decay;  m += (1 - beta1)(g - m);  v = beta2 v + (1 - beta2) g^2;
// w -= step_size m / (sqrt(v) root_scale + eps).
static void ref_adamw(Mat w, Mat m, Mat v, Mat g, AdamStep s) {
    for (int64_t i = 0; i < w.rows; i++)
        for (int64_t j = 0; j < w.cols; j++) {
            double d = s.grad_scale * get(g, i, j), m1 = get(m, i, j), v1 = get(v, i, j);
            m1 += (1 - s.beta1) * (d - m1), v1 = s.beta2 * v1 + (1 - s.beta2) * d * d;
            put(m, i, j, m1), put(v, i, j, v1);
            put(w, i, j, get(w, i, j) * (1 - s.lr * s.decay) - s.step_size * m1 / (sqrt(v1) * s.root_scale + s.eps));
        }
}

// ------------------------------------------------------------------------------------------------------------- types

// cast: y = x in y's type (F32 or BF16; round to nearest even).
static void ref_cast(Mat y, Mat x) {
    for (int64_t i = 0; i < y.rows; i++)
        for (int64_t j = 0; j < y.cols; j++) put(y, i, j, get(x, i, j));
}

const Ops *ops_ref(void) {
    static const Ops ref = {
        .name = "ref",
        .act_type = F32,
        .weight_grad_type = F32,
        .alloc = ref_alloc,
        .release = ref_release,
        .upload = ref_copy,
        .download = ref_copy,
        .zero = ref_zero,
        .copy = ref_copy,
        .sync = ref_sync,
        .matmul = ref_matmul,
        .add_bias = ref_add_bias,
        .bias_backward = ref_bias_backward,
        .add = ref_add,
        .dropout = ref_dropout,
        .rmsnorm_forward = ref_rmsnorm_forward,
        .add_rmsnorm_forward = ref_add_rmsnorm_forward,
        .rmsnorm_backward_add = ref_rmsnorm_backward_add,
        .rope = ref_rope,
        .attention_forward = ref_attention_forward,
        .attention_backward = ref_attention_backward,
        .attention_decode = ref_attention_decode,
        .swiglu_forward = ref_swiglu_forward,
        .swiglu_backward = ref_swiglu_backward,
        .gelu_forward = ref_gelu_forward,
        .gelu_backward = ref_gelu_backward,
        .gather_rows = ref_gather_rows,
        .scatter_add_rows = ref_scatter_add_rows,
        .logprob_forward = ref_logprob_forward,
        .logprob_backward = ref_logprob_backward,
        .sample = ref_sample,
        .sum_squares = ref_sum_squares,
        .adamw = ref_adamw,
        .cast = ref_cast,
    };
    return &ref;
}

// -------------------------------------------------------------------------------------------------------------- paper

enum { PAPER_PAGE = 4096 }; // in front of every block: how long it is
static void *paper_alloc(size_t bytes) {
    bytes += PAPER_PAGE;
    char *p = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return NULL;
    CHECK(!mprotect(p, PAPER_PAGE, PROT_READ | PROT_WRITE), "a page for the length of a block");
    memcpy(p, &bytes, sizeof bytes);
    return p + PAPER_PAGE;
}
static void paper_release(void *p) {
    size_t bytes;
    if (!p) return;
    memcpy(&bytes, (char *)p - PAPER_PAGE, sizeof bytes);
    munmap((char *)p - PAPER_PAGE, bytes);
}
static void paper_one(Mat y) { (void)y; }
static void paper_two(Mat y, Mat x) { (void)y, (void)x; }
static void paper_sync(void) {}
static bool paper_capture(void) { return false; } // there as on cuda, where batches are filled up for it

const Ops *ops_paper(Type act_type) {
    static Ops papers[2];
    CHECK(act_type == F32 || act_type == BF16, "activations of type %d", (int)act_type);
    papers[act_type == BF16] = (Ops){.name = act_type == BF16 ? "cuda (on paper, bf16)" : "cuda (on paper, f32)",
                                     .act_type = act_type,
                                     .weight_grad_type = F32,
                                     .pad = CUDA_PAD,
                                     .alloc = paper_alloc,
                                     .release = paper_release,
                                     .upload = paper_two,
                                     .download = paper_two,
                                     .zero = paper_one,
                                     .copy = paper_two,
                                     .sync = paper_sync,
                                     .cast = paper_two,
                                     .capture_begin = paper_capture};
    return &papers[act_type == BF16];
}

// ------------------------------------------------------------------------------------------------------------- arenas

static int64_t host_bytes, host_limit; // of all arenas in host memory; 0 = not known yet
static int64_t device_bytes;           // of all others
static int64_t *bytes_on(const Ops *d) { return d->alloc == ref_alloc ? &host_bytes : &device_bytes; }
int64_t memory_held(const Ops *d) { return *bytes_on(d); }

// The number that follows `key` on the first line of a kernel's file, or `missing` when there is none ("max").
static int64_t number_in(const char *path, const char *key, int64_t missing) {
    char line[200], *end = line;
    FILE *f = fopen(path, "r");
    bool read = f && fgets(line, sizeof line, f) && !strncmp(line, key, strlen(key));
    long long value = read ? strtoll(line + strlen(key), &end, 10) : 0;
    if (f) fclose(f);
    return read && end > line + strlen(key) ? (int64_t)value : missing;
}

void memory_limit_set(int64_t bytes) { host_limit = bytes; }
int64_t memory_limit(void) {
    if (!host_limit) {
        int64_t machine = number_in("/proc/meminfo", "MemTotal:", INT64_MAX / 1024) * 1024;
        int64_t group = number_in("/sys/fs/cgroup/memory.max", "", INT64_MAX);
        host_limit = (machine < group ? machine : group) / 5 * 4;
    }
    return host_limit;
}

void arena_release(Arena *a, const Ops *d) {
    if (a->base) {
        d->release(a->base);
        *bytes_on(d) -= (int64_t)a->size;
    }
    a->base = NULL, a->used = a->size = 0;
}

bool arena_reserve(Arena *a, const Ops *d, size_t bytes, Err *e) {
    a->used = 0;
    if (a->base && a->size >= bytes) return true;
    arena_release(a, d);
    bool host = d->alloc == ref_alloc;
    if (host && (int64_t)bytes > memory_limit() - host_bytes)
        return err_set(e, "E-ME-01", AT(.file = a->role),
                       "expected at most %lld bytes more (--max-memory %lld); found a need for %zu; do: use fewer or "
                       "smaller pictures or fewer tokens, or raise --max-memory",
                       (long long)(memory_limit() - host_bytes), (long long)memory_limit(), bytes);
    a->base = d->alloc(bytes ? bytes : 64);
    if (!a->base) {
        size_t left = 0, all = 0;
        if (d->memory) d->memory(&left, &all);
        return err_set(e, "E-ME-01", AT(.file = a->role),
                       "expected %zu bytes on device %s; found %zu free of %zu; do: use fewer or smaller pictures, or "
                       "fewer tokens",
                       bytes, d->name, left, all);
    }
    a->size = bytes;
    *bytes_on(d) += (int64_t)bytes;
    return true;
}

Mat arena_padded(Arena *a, const Ops *d, int64_t rows, int64_t cols, Type type) {
    int64_t wide = d->pad > 1 ? (cols + d->pad - 1) / d->pad * d->pad : cols;
    Mat m = arena_mat(a, rows, wide, type);
    if (m.p && rows && wide > cols) d->zero(mat_cols(m, cols, wide - cols));
    m.cols = cols, m.zeros = (int32_t)(wide - cols);
    return m;
}

// ------------------------------------------------------------------------------------------- checked entry points
// Each checks its contract, skips empty work, calls the device, reports to the trace.

static OpTrace trace_call;
static void *trace_ctx;
void op_trace_set(OpTrace trace, void *ctx) { trace_call = trace, trace_ctx = ctx; }
static void done(const Ops *d, const char *op, Mat y) {
    if (trace_call) trace_call(trace_ctx, d, op, y);
}

// "[rows,cols] type" of a view, in one of 8 rotating buffers.
static const char *shape(Mat m) {
    static _Thread_local char buffers[8][64];
    static _Thread_local int turn;
    char *b = buffers[turn++ % 8];
    snprintf(b, sizeof buffers[0], "%s[%lld,%lld] %s", m.p ? "" : "absent ", (long long)m.rows, (long long)m.cols,
             type_name(m.type));
    return b;
}
static bool same(Mat a, Mat b) { return a.rows == b.rows && a.cols == b.cols; }
static bool is_real(Mat m) { return (m.type == F32 || m.type == BF16) && m.stride >= m.cols + m.zeros; }
static bool is_index(Mat m, int64_t n) { return m.type == I32 && m.rows == n && m.cols == 1; }
static bool is_column(Mat m, int64_t n) { return !m.p || (m.type == F32 && m.rows == n && m.cols == 1); }

void matmul(const Ops *d, Mat y, Mat x, Mat w, Layout layout, float alpha, float beta) {
    bool fits = layout == NT   ? y.rows == x.rows && y.cols == w.rows && x.cols == w.cols
                : layout == NN ? y.rows == x.rows && y.cols == w.cols && x.cols == w.rows
                               : y.rows == x.cols && y.cols == w.cols && x.rows == w.rows;
    CHECK(fits && is_real(y) && is_real(x) && is_real(w), "matmul %s: y %s, x %s, w %s",
          layout == NT   ? "NT"
          : layout == NN ? "NN"
                         : "TN",
          shape(y), shape(x), shape(w));
    if (!y.rows || !y.cols) return;
    d->matmul(y, x, w, layout, alpha, beta);
    done(d, "matmul", y);
}

void matmul_bias(const Ops *d, Mat y, Mat x, Mat w, Mat b) {
    CHECK(y.rows == x.rows && y.cols == w.rows && x.cols == w.cols && b.rows == 1 && b.cols == y.cols && is_real(y) &&
              is_real(x) && is_real(w) && is_real(b),
          "matmul_bias: y %s, x %s, w %s, b %s", shape(y), shape(x), shape(w), shape(b));
    if (!y.rows || !y.cols) return;
    if (d->matmul_bias) d->matmul_bias(y, x, w, b);
    else d->matmul(y, x, w, NT, 1, 0), d->add_bias(y, b);
    done(d, "matmul_bias", y);
}

void add_bias(const Ops *d, Mat y, Mat b) {
    CHECK(b.rows == 1 && b.cols == y.cols && is_real(y) && is_real(b), "add_bias: y %s, b %s", shape(y), shape(b));
    if (!y.rows || !y.cols) return;
    d->add_bias(y, b);
    done(d, "add_bias", y);
}

void bias_backward(const Ops *d, Mat db, Mat dy) {
    if (!db.p) return; // frozen
    CHECK(db.rows == 1 && db.cols == dy.cols && db.type == F32 && is_real(dy), "bias_backward: db %s, dy %s", shape(db),
          shape(dy));
    if (!dy.rows || !dy.cols) return;
    d->bias_backward(db, dy);
    done(d, "bias_backward", db);
}

void add(const Ops *d, Mat y, Mat a, Mat b) {
    CHECK(same(y, a) && same(y, b) && is_real(y) && is_real(a) && is_real(b), "add: y %s, a %s, b %s", shape(y),
          shape(a), shape(b));
    if (!y.rows || !y.cols) return;
    d->add(y, a, b);
    done(d, "add", y);
}

void dropout(const Ops *d, Mat y, Mat x, Mat keys, float p, uint64_t seed, uint32_t site) {
    CHECK(same(y, x) && is_real(y) && is_real(x) && keys.type == I32 && keys.rows == x.rows && keys.cols == 2 &&
              p >= 0 && p < 1 && site < 1u << 24,
          "dropout: y %s, x %s, keys %s, p %g, site %u", shape(y), shape(x), shape(keys), (double)p, site);
    if (!y.rows || !y.cols) return;
    d->dropout(y, x, keys, p, seed, site);
    done(d, "dropout", y);
}

void rmsnorm_forward(const Ops *d, Mat y, Mat rstd, Mat x, Mat w, float eps) {
    CHECK(same(y, x) && w.rows == 1 && w.cols == x.cols && x.cols > 0 && is_column(rstd, x.rows) && is_real(y) &&
              is_real(x) && is_real(w),
          "rmsnorm_forward: y %s, rstd %s, x %s, w %s", shape(y), shape(rstd), shape(x), shape(w));
    if (!y.rows) return;
    d->rmsnorm_forward(y, rstd, x, w, eps);
    done(d, "rmsnorm_forward", y);
}

void add_rmsnorm_forward(const Ops *d, Mat y, Mat rstd, Mat sum, Mat x, Mat r, Mat w, float eps) {
    CHECK(same(y, x) && same(sum, x) && same(r, x) && w.rows == 1 && w.cols == x.cols && x.cols > 0 &&
              is_column(rstd, x.rows) && is_real(y) && is_real(sum) && is_real(x) && is_real(r) && is_real(w),
          "add_rmsnorm_forward: y %s, rstd %s, sum %s, x %s, r %s, w %s", shape(y), shape(rstd), shape(sum), shape(x),
          shape(r), shape(w));
    if (!y.rows) return;
    d->add_rmsnorm_forward(y, rstd, sum, x, r, w, eps);
    done(d, "add_rmsnorm_forward", y);
}

void rmsnorm_backward_add(const Ops *d, Mat dx, Mat dw, Mat dy, Mat x, Mat w, Mat rstd) {
    CHECK(same(dx, x) && same(dy, x) && w.rows == 1 && w.cols == x.cols && x.cols > 0 && rstd.p &&
              is_column(rstd, x.rows) && (!dw.p || (same(dw, w) && dw.type == F32)) && is_real(dx) && is_real(dy) &&
              is_real(x) && is_real(w),
          "rmsnorm_backward_add: dx %s, dw %s, dy %s, x %s, w %s, rstd %s", shape(dx), shape(dw), shape(dy), shape(x),
          shape(w), shape(rstd));
    if (!x.rows) return;
    d->rmsnorm_backward_add(dx, dw, dy, x, w, rstd);
    done(d, "rmsnorm_backward_add", dx);
}

void rope(const Ops *d, Mat x, Mat angles, int64_t heads, int64_t dim, float sign) {
    CHECK(heads > 0 && dim > 0 && dim % 2 == 0 && x.cols == heads * dim && angles.rows == x.rows &&
              angles.cols == dim && angles.type == F32 && is_real(x) && (sign == 1 || sign == -1),
          "rope: x %s, angles %s, %lld heads of %lld", shape(x), shape(angles), (long long)heads, (long long)dim);
    if (!x.rows) return;
    d->rope(x, angles, heads, dim, sign);
    done(d, "rope", x);
}

static bool attention_fits(Mat o, Mat q, Mat k, Mat v, int64_t heads, int64_t kv_heads, int64_t dim) {
    return heads > 0 && kv_heads > 0 && heads % kv_heads == 0 && dim > 0 && dim <= MAX_HEAD_DIM && same(o, q) &&
           q.cols == heads * dim && k.cols == kv_heads * dim && same(k, v) && is_real(o) && is_real(q) && is_real(k) &&
           is_real(v);
}

static void spans_fit(const char *op, Spans spans, Mat q, Mat k) {
    for (int64_t i = 0; i < spans.n; i++) {
        Span s = spans.host[i];
        CHECK(0 <= s.first && s.first <= s.last && s.last <= q.rows && s.last <= k.rows && 0 <= s.prefix_first &&
                  s.prefix_first <= s.prefix_last && s.prefix_last <= k.rows && s.last - s.first <= spans.longest &&
                  (s.prefix_first == s.prefix_last || s.prefix_last <= s.first || s.prefix_first >= s.last),
              "%s: span %lld is [%d,%d) with prefix [%d,%d), for q %s and k %s", op, (long long)i, s.first, s.last,
              s.prefix_first, s.prefix_last, shape(q), shape(k));
    }
}

void attention_forward(const Ops *d, Mat o, Mat lse, Mat q, Mat k, Mat v, Spans spans, int64_t heads, int64_t kv_heads,
                       int64_t dim, float scale) {
    CHECK(attention_fits(o, q, k, v, heads, kv_heads, dim) &&
              (!lse.p || (lse.type == F32 && lse.rows == q.rows && lse.cols == heads)),
          "attention_forward: o %s, lse %s, q %s, k %s, v %s, %lld/%lld heads of %lld", shape(o), shape(lse), shape(q),
          shape(k), shape(v), (long long)heads, (long long)kv_heads, (long long)dim);
    spans_fit("attention_forward", spans, q, k);
    if (!q.rows || !spans.n) return;
    d->attention_forward(o, lse, q, k, v, spans, heads, kv_heads, dim, scale);
    done(d, "attention_forward", o);
}

void attention_backward(const Ops *d, Mat dq, Mat dk, Mat dv, Mat delta, Mat dout, Mat q, Mat k, Mat v, Mat o, Mat lse,
                        Spans spans, int64_t heads, int64_t kv_heads, int64_t dim, float scale) {
    CHECK(attention_fits(o, q, k, v, heads, kv_heads, dim) && same(dout, o) && same(dq, q) && same(dk, k) &&
              same(dv, v) && is_real(dout) && is_real(dq) && is_real(dk) && is_real(dv) && lse.p && lse.type == F32 &&
              lse.rows == q.rows && lse.cols == heads && same(delta, lse) && delta.type == F32,
          "attention_backward: dq %s, dk %s, dv %s, delta %s, dout %s, q %s, k %s, lse %s, %lld/%lld heads of %lld",
          shape(dq), shape(dk), shape(dv), shape(delta), shape(dout), shape(q), shape(k), shape(lse), (long long)heads,
          (long long)kv_heads, (long long)dim);
    spans_fit("attention_backward", spans, q, k);
    if (!q.rows && !k.rows) return;
    d->attention_backward(dq, dk, dv, delta, dout, q, k, v, o, lse, spans, heads, kv_heads, dim, scale);
    done(d, "attention_backward.dq", dq), done(d, "attention_backward.dk", dk), done(d, "attention_backward.dv", dv);
}

void attention_decode(const Ops *d, Mat o, Mat q, Mat k, Mat v, Spans spans, int64_t heads, int64_t kv_heads,
                      int64_t dim, float scale) {
    CHECK(attention_fits(o, q, k, v, heads, kv_heads, dim) && spans.n == q.rows,
          "attention_decode: o %s, q %s, k %s, v %s, %lld/%lld heads of %lld, %lld spans", shape(o), shape(q), shape(k),
          shape(v), (long long)heads, (long long)kv_heads, (long long)dim, (long long)spans.n);
    for (int64_t i = 0; i < spans.n; i++) {
        Span s = spans.host[i];
        CHECK(0 <= s.first && s.first <= s.last && s.last <= k.rows && 0 <= s.prefix_first &&
                  s.prefix_first <= s.prefix_last && s.prefix_last <= k.rows,
              "attention_decode: span %lld is [%d,%d) with prefix [%d,%d), for k %s", (long long)i, s.first, s.last,
              s.prefix_first, s.prefix_last, shape(k));
    }
    if (!q.rows) return;
    d->attention_decode(o, q, k, v, spans, heads, kv_heads, dim, scale);
    done(d, "attention_decode", o);
}

void swiglu_forward(const Ops *d, Mat y, Mat gate, Mat up) {
    CHECK(same(y, gate) && same(y, up) && is_real(y) && is_real(gate) && is_real(up),
          "swiglu_forward: y %s, gate %s, up %s", shape(y), shape(gate), shape(up));
    if (!y.rows || !y.cols) return;
    d->swiglu_forward(y, gate, up);
    done(d, "swiglu_forward", y);
}

void swiglu_backward(const Ops *d, Mat dgate, Mat dup, Mat dy, Mat gate, Mat up) {
    CHECK(same(dgate, dy) && same(dup, dy) && same(gate, dy) && same(up, dy) && is_real(dgate) && is_real(dup) &&
              is_real(dy) && is_real(gate) && is_real(up),
          "swiglu_backward: dgate %s, dup %s, dy %s, gate %s, up %s", shape(dgate), shape(dup), shape(dy), shape(gate),
          shape(up));
    if (!dy.rows || !dy.cols) return;
    d->swiglu_backward(dgate, dup, dy, gate, up);
    done(d, "swiglu_backward.gate", dgate), done(d, "swiglu_backward.up", dup);
}

void gelu_forward(const Ops *d, Mat y, Mat x) {
    CHECK(same(y, x) && is_real(y) && is_real(x), "gelu_forward: y %s, x %s", shape(y), shape(x));
    if (!y.rows || !y.cols) return;
    d->gelu_forward(y, x);
    done(d, "gelu_forward", y);
}

void gelu_backward(const Ops *d, Mat dx, Mat dy, Mat x) {
    CHECK(same(dx, x) && same(dy, x) && is_real(dx) && is_real(dy) && is_real(x), "gelu_backward: dx %s, dy %s, x %s",
          shape(dx), shape(dy), shape(x));
    if (!x.rows || !x.cols) return;
    d->gelu_backward(dx, dy, x);
    done(d, "gelu_backward", dx);
}

void gather_rows(const Ops *d, Mat y, Mat table, Mat index) {
    CHECK(y.cols == table.cols && is_index(index, y.rows) && is_real(y) && is_real(table),
          "gather_rows: y %s, table %s, index %s", shape(y), shape(table), shape(index));
    if (!y.rows || !y.cols) return;
    d->gather_rows(y, table, index);
    done(d, "gather_rows", y);
}

void scatter_add_rows(const Ops *d, Mat y, Mat x, Mat index) {
    CHECK(y.cols == x.cols && is_index(index, x.rows) && is_real(y) && is_real(x),
          "scatter_add_rows: y %s, x %s, index %s", shape(y), shape(x), shape(index));
    if (!x.rows || !y.cols) return;
    d->scatter_add_rows(y, x, index);
    done(d, "scatter_add_rows", y);
}

void logprob_forward(const Ops *d, Mat lp, Mat lse, Mat entropy, Mat logits, Mat targets, float inv_temperature) {
    CHECK(lp.p && is_column(lp, logits.rows) && is_column(lse, logits.rows) && is_column(entropy, logits.rows) &&
              logits.cols > 0 && logits.type == F32 && is_index(targets, logits.rows),
          "logprob_forward: lp %s, logits %s, targets %s", shape(lp), shape(logits), shape(targets));
    if (!logits.rows) return;
    d->logprob_forward(lp, lse, entropy, logits, targets, inv_temperature);
    done(d, "logprob_forward", lp);
}

void logprob_backward(const Ops *d, Mat dlogits, Mat logits, Mat targets, Mat lse, Mat dlp, float inv_temperature) {
    CHECK(same(dlogits, logits) && is_real(dlogits) && logits.type == F32 && logits.cols > 0 && lse.p && dlp.p &&
              is_column(lse, logits.rows) && is_column(dlp, logits.rows) && is_index(targets, logits.rows),
          "logprob_backward: dlogits %s, logits %s, targets %s, lse %s, dlp %s", shape(dlogits), shape(logits),
          shape(targets), shape(lse), shape(dlp));
    if (!logits.rows) return;
    d->logprob_backward(dlogits, logits, targets, lse, dlp, inv_temperature);
    done(d, "logprob_backward", dlogits);
}

void logprob_forward_backward(const Ops *d, Mat dlogits, Mat lp, Mat lse, Mat entropy, Mat logits, Mat targets, Mat dlp,
                              float inv_temperature) {
    if (!d->logprob_forward_backward) {
        logprob_forward(d, lp, lse, entropy, logits, targets, inv_temperature);
        logprob_backward(d, dlogits, logits, targets, lse, dlp, inv_temperature);
        return;
    }
    CHECK(lp.p && is_column(lp, logits.rows) && lse.p && is_column(lse, logits.rows) &&
              is_column(entropy, logits.rows) && logits.cols > 0 && logits.type == F32 &&
              is_index(targets, logits.rows) && same(dlogits, logits) && is_real(dlogits) && dlp.p &&
              is_column(dlp, logits.rows),
          "logprob_forward_backward: dlogits %s, lp %s, lse %s, logits %s, targets %s, dlp %s", shape(dlogits),
          shape(lp), shape(lse), shape(logits), shape(targets), shape(dlp));
    if (!logits.rows) return;
    d->logprob_forward_backward(dlogits, lp, lse, entropy, logits, targets, dlp, inv_temperature);
    done(d, "logprob_forward", lp), done(d, "logprob_backward", dlogits);
}

void sample(const Ops *d, Mat tokens, Mat logits, Mat seen, Mat streams, Mat steps, SampleParams p) {
    int64_t n = logits.rows;
    CHECK(is_index(tokens, n) && logits.type == F32 && logits.cols > 0 && is_index(streams, n) && is_index(steps, n) &&
              (seen.p ? seen.type == I32 && seen.rows == n && seen.cols == (logits.cols + 31) / 32
                      : p.repetition_penalty == 1) &&
              (!p.do_sample || p.temperature > 0),
          "sample: tokens %s, logits %s, seen %s, temperature %g", shape(tokens), shape(logits), shape(seen),
          p.temperature);
    if (!n) return;
    d->sample(tokens, logits, seen, streams, steps, p);
    done(d, "sample", tokens);
}

void sum_squares(const Ops *d, Mat out, Mat x) {
    CHECK(out.rows == 1 && out.cols == 1 && out.type == F32 && is_real(x), "sum_squares: out %s, x %s", shape(out),
          shape(x));
    d->sum_squares(out, x);
    done(d, "sum_squares", out);
}

void adamw(const Ops *d, Mat w, Mat m, Mat v, Mat g, AdamStep step) {
    CHECK(same(m, w) && same(v, w) && same(g, w) && w.type == F32 && m.type == F32 && v.type == F32 && g.type == F32,
          "adamw: w %s, m %s, v %s, g %s", shape(w), shape(m), shape(v), shape(g));
    if (!w.rows || !w.cols) return;
    d->adamw(w, m, v, g, step);
    done(d, "adamw", w);
}

void cast(const Ops *d, Mat y, Mat x) {
    CHECK(same(y, x) && is_real(y) && is_real(x), "cast: y %s, x %s", shape(y), shape(x));
    if (!y.rows || !y.cols) return;
    d->cast(y, x);
    done(d, "cast", y);
}

void copy(const Ops *d, Mat y, Mat x) {
    CHECK(same(y, x) && y.type == x.type, "copy: y %s, x %s", shape(y), shape(x));
    if (!y.rows || !y.cols) return;
    d->copy(y, x);
    done(d, "copy", y);
}

bool capture_begin(const Ops *d) { return d->capture_begin && !trace_call && d->capture_begin(); }
void *capture_end(const Ops *d) { return d->capture_end(); }
void replay(const Ops *d, void *graph) { d->replay(graph); }
void capture_release(const Ops *d, void *graph) { d->capture_release(graph); }
