// cpu_lanes.h - the kernels of cpu.c, written once for vectors of LANES floats; cpu.c includes it once per instruction set.
//
// What it is:  a template. Before including: LANES (4, 8 or 16), LANES_NAME (suffix of every name here), LANES_TARGET
//              (function attribute), LANES_FMA(a, b, c) for one vector, TILE_ROWS (rows of x in a register tile).
// What it is not: dispatch, threads or contracts: cpu.c and ops.c.
// Read before: cpu.c's comment on matmul, which says in what order everything is summed and why.
#define L_JOIN2(a, b) a##_##b
#define L_JOIN(a, b)  L_JOIN2(a, b)
#define L(name)       L_JOIN(name, LANES_NAME)
#define FN            static LANES_TARGET
#define INLINE        static inline __attribute__((always_inline)) LANES_TARGET

typedef float L(Vec) __attribute__((vector_size(4 * LANES)));
typedef float L(VecAny) __attribute__((vector_size(4 * LANES), aligned(1), may_alias)); // any address
typedef int32_t L(VecInt) __attribute__((vector_size(4 * LANES)));
typedef uint16_t L(VecHalf) __attribute__((vector_size(2 * LANES)));
typedef uint16_t L(VecHalfAny) __attribute__((vector_size(2 * LANES), aligned(1), may_alias));
typedef uint32_t L(VecBits) __attribute__((vector_size(4 * LANES)));
#define Vec    L(Vec)
#define VecInt L(VecInt)

// ---------------------------------------------------------------------------------------------------- loads and sums

INLINE Vec L(load)(const void *p) { return *(const L(VecAny) *)p; }
#define STORE(p, v) (*(L(VecAny) *)(p) = (v)) // a function with a vector parameter alone would be an ABI remark
INLINE Vec L(all)(float f) { return f - (Vec){0}; }
INLINE Vec L(fma)(Vec a, Vec b, Vec c) { return LANES_FMA(a, b, c); }

// LANES elements at p, F32 or BF16, as floats; the bits of a bf16 are the upper half of its float.
INLINE Vec L(load_as)(const char *p, bool bf16) {
    if (!bf16) return L(load)(p);
    return (Vec)(__builtin_convertvector((L(VecHalf))(*(const L(VecHalfAny) *)p), L(VecBits)) << 16);
}
// The same for n < LANES elements, zeros behind them; reads nothing past the n-th.
INLINE Vec L(load_part)(const char *p, bool bf16, int64_t n) {
    float f[LANES] = {0};
    if (!bf16) memcpy(f, p, (size_t)n * 4);
    else
        for (int64_t i = 0; i < n; i++) {
            uint16_t h;
            memcpy(&h, p + 2 * i, 2);
            f[i] = bf16_to_f32(h);
        }
    return L(load)(f);
}

// The four sums over lanes of a, b, c, d. One fixed tree: lane i with lane i + LANES/2, and so on down to one.
INLINE V4 L(fold)(Vec v) {
#if LANES == 16
    V8 h = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
           __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
    return __builtin_shufflevector(h, h, 0, 1, 2, 3) + __builtin_shufflevector(h, h, 4, 5, 6, 7);
#elif LANES == 8
    return __builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7);
#else
    return v;
#endif
}
INLINE V4 L(sum4)(Vec a, Vec b, Vec c, Vec d) {
    V4 s = L(fold)(a), t = L(fold)(b), u = L(fold)(c), v = L(fold)(d);
    V4 st = __builtin_shufflevector(s, t, 0, 1, 4, 5) + __builtin_shufflevector(s, t, 2, 3, 6, 7);
    V4 uv = __builtin_shufflevector(u, v, 0, 1, 4, 5) + __builtin_shufflevector(u, v, 2, 3, 6, 7);
    return __builtin_shufflevector(st, uv, 0, 2, 4, 6) + __builtin_shufflevector(st, uv, 1, 3, 5, 7);
}
INLINE float L(sum)(Vec v) {
    V4 s = L(fold)(v);
    return (s[0] + s[2]) + (s[1] + s[3]);
}

// exp(x) with a relative error under 2e-7; 0 below -87, about 2^127 above 88; NaN stays NaN. x = n ln 2 + r, |r| <= ln 2 / 2:
// exp r by its Taylor series to the 7th power (remainder 5e-9), then n goes into the exponent.
INLINE Vec L(exp)(Vec x) {
    const Vec lo = L(all)(-87.0f), hi = L(all)(88.0f), shift = L(all)(12582912.0f); // 1.5 * 2^23: adding it rounds
    VecInt under = x < lo;
    x = (Vec)(((VecInt)lo & under) | ((VecInt)x & ~under));
    VecInt over = x > hi;
    x = (Vec)(((VecInt)hi & over) | ((VecInt)x & ~over));
    Vec n = L(fma)(x, L(all)(1.44269504f), shift);
    Vec power = (Vec)(((VecInt)n << 23) + (127 << 23)); // 2^n, from the low bits of the rounded sum
    n -= shift;
    Vec r = L(fma)(n, L(all)(-0.693145752f), x); // ln 2 in two parts, the first exact in n
    r = L(fma)(n, L(all)(-1.42860677e-6f), r);
    Vec p = L(fma)(r, L(all)(1.98412698e-4f), L(all)(1.38888889e-3f));
    p = L(fma)(p, r, L(all)(8.33333333e-3f));
    p = L(fma)(p, r, L(all)(4.16666667e-2f));
    p = L(fma)(p, r, L(all)(1.66666667e-1f));
    p = L(fma)(p, r, L(all)(0.5f));
    p = L(fma)(p, r, L(all)(1.0f));
    p = L(fma)(p, r, L(all)(1.0f));
    return (Vec)((VecInt)(p * power) & ~under);
}

// ------------------------------------------------------------------------------------------------------------ matmul

// sums[r] = the four dot products of a[r] with b[0..3], over n elements: one chain of FMAs per pair and lane, then sum4.
// a is F32, b F32 or BF16. Whatever `rows` is, the sum of a pair is made in the same order.
INLINE void L(step)(Vec acc[][4], const char *const *a, const char *const *b, bool bf16, int64_t k, const int rows) {
    Vec x[TILE_ROWS];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) x[r] = L(load)(a[r] + 4 * k);
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
        Vec w = L(load_as)(b[c] + (bf16 ? 2 : 4) * k, bf16);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) acc[r][c] = L(fma)(x[r], w, acc[r][c]);
    }
}
INLINE void L(tile)(V4 *sums, const char *const *a, const char *const *b, bool bf16, int64_t n, const int rows,
                    const bool tail) {
    Vec acc[TILE_ROWS][4];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) acc[r][0] = acc[r][1] = acc[r][2] = acc[r][3] = (Vec){0};
    const int64_t size = bf16 ? 2 : 4;
    int64_t k = 0;
    for (; k + LANES <= n; k += LANES) L(step)(acc, a, b, bf16, k, rows);
    if (tail && k < n)
#pragma GCC unroll 4
        for (int c = 0; c < 4; c++) {
            Vec w = L(load_part)(b[c] + size * k, bf16, n - k);
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++) acc[r][c] = L(fma)(L(load_part)(a[r] + 4 * k, false, n - k), w, acc[r][c]);
        }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) sums[r] = L(sum4)(acc[r][0], acc[r][1], acc[r][2], acc[r][3]);
}

// The same for four neighbours in a row, of which n exist.
INLINE void L(put4)(float *y, V4 sums, int64_t n, bool first, float alpha, float beta) {
    typedef float V4Any __attribute__((vector_size(16), aligned(4), may_alias));
    if (n == 4 && (!first || beta == 0)) {
        V4 v = alpha * sums;
        *(V4Any *)y = first ? v : v + *(V4Any *)y;
    } else
        for (int c = 0; c < n; c++) put(y + c, sums[c], first, alpha, beta);
}

// The tile for 1 to 3 rows. Whole vectors get code of their own: what the calls in the tail save and restore costs as much
// as a short tile.
#define TILE_CASE(r)                                                                                                   \
    case r:                                                                                                            \
        if (n % LANES) L(tile)(sums, a, b, TILE_BF16, n, r, true);                                                     \
        else L(tile)(sums, a, b, TILE_BF16, n, r, false);                                                              \
        break;
FN void L(tile_f32)(V4 *sums, const char *const *a, const char *const *b, int64_t n, int64_t rows) {
#define TILE_BF16 false
    switch (rows) { TILE_CASE(1) TILE_CASE(2) TILE_CASE(3) }
#undef TILE_BF16
}
FN void L(tile_bf16)(V4 *sums, const char *const *a, const char *const *b, int64_t n, int64_t rows) {
#define TILE_BF16 true
    switch (rows) { TILE_CASE(1) TILE_CASE(2) TILE_CASE(3) }
#undef TILE_BF16
}
#undef TILE_CASE

// dst[0..n) = n elements at p as floats, then zeros up to a whole vector.
INLINE void L(widen_row)(float *dst, const char *p, bool bf16, int64_t n) {
    int64_t k = 0, size = bf16 ? 2 : 4;
    for (; k + LANES <= n; k += LANES) STORE(dst + k, L(load_as)(p + k * size, bf16));
    if (k < n) STORE(dst + k, L(load_part)(p + k * size, bf16, n - k));
}

// Few rows: w is read once, straight from where it lies, as four streams that run through a quarter of the chunk each:
// memory likes long runs (four neighbouring rows, and software prefetch, were no faster: PERF.md). With more rows than
// one tile holds, bf16 is widened once for all tiles.
FN void L(few_rows_job)(void *ctx, int64_t chunk, int thread) {
    const Product *g = ctx;
    int64_t j0 = chunk * g->block_j, nj = g->J - j0 < g->block_j ? g->J - j0 : g->block_j, quarter = (nj + 3) / 4;
    _Alignas(64) float wide[4 * PACKED_ROW];
    bool widen = g->b.bf16 && g->I > 3;
    (void)thread;
    for (int64_t t = 0; t < quarter; t++)
        for (int64_t k = 0; k < g->K; k += K_BLOCK) {
            int64_t n = g->K - k < K_BLOCK ? g->K - k : K_BLOCK, j[4];
            const char *b[4];
            for (int c = 0; c < 4; c++) {
                j[c] = c * quarter + t < nj ? j0 + c * quarter + t : -1;
                b[c] = g->b.p + (j[c] < 0 ? j0 : j[c]) * g->b.row + k * g->b.col;
                if (widen)
                    L(widen_row)(wide + c * PACKED_ROW, b[c], true, n), b[c] = (const char *)(wide + c * PACKED_ROW);
            }
            int64_t groups = (g->I + 2) / 3;
            for (int64_t i = 0, rows; i < g->I; i += rows, groups--) {
                const char *a[3];
                V4 sums[3];
                rows = (g->I - i + groups - 1) / groups;
                for (int r = 0; r < rows; r++) a[r] = g->a.p + (i + r) * g->a.row + 4 * k;
                if (g->b.bf16 && !widen) L(tile_bf16)(sums, a, b, n, rows);
                else L(tile_f32)(sums, a, b, n, rows);
                for (int r = 0; r < rows; r++)
                    for (int c = 0; c < 4; c++)
                        if (j[c] >= 0) put(g->y + (i + r) * g->ldy + j[c], sums[r][c], k == 0, g->alpha, g->beta);
            }
        }
}

// dst[r][k] = element (row0 + r, k0 + k) of an operand as float, for r < rows, k < n; zeros up to pad_rows and to a whole
// number of vectors. Rows of dst are PACKED_ROW apart.
FN void L(pack)(float *dst, Operand o, int64_t row0, int64_t rows, int64_t pad_rows, int64_t k0, int64_t n) {
    int64_t pad_n = (n + LANES - 1) / LANES * LANES;
    const char *p = o.p + row0 * o.row + k0 * o.col;
    if (o.col == (o.bf16 ? 2 : 4)) {
        for (int64_t r = 0; r < rows; r++) L(widen_row)(dst + r * PACKED_ROW, p + r * o.row, o.bf16, n);
    } else { // transposed: squares of 16, so that both sides stay in the first cache
        for (int64_t r0 = 0; r0 < rows; r0 += 16)
            for (int64_t c0 = 0; c0 < pad_n; c0 += 16)
                for (int64_t r = r0; r < rows && r < r0 + 16; r++)
                    for (int64_t k = c0; k < pad_n && k < c0 + 16; k++) {
                        uint32_t bits = 0;
                        if (k < n) memcpy(&bits, p + r * o.row + k * o.col, o.bf16 ? 2 : 4);
                        bits <<= o.bf16 ? 16 : 0;
                        memcpy(dst + r * PACKED_ROW + k, &bits, 4);
                    }
    }
    for (int64_t r = rows; r < pad_rows; r++) memset(dst + r * PACKED_ROW, 0, (size_t)pad_n * 4);
}

// Many rows: a block of w, as floats, stays in the second cache while rows of x, a tile of them at a time in the first,
// pass over it. Rows of x are read where they lie unless they are columns there (TN).
FN void L(many_rows_job)(void *ctx, int64_t chunk, int thread) {
    const Product *g = ctx;
    _Alignas(64) float w[J_BLOCK * PACKED_ROW], x[TILE_ROWS * PACKED_ROW];
    int64_t blocks_j = (g->J + g->block_j - 1) / g->block_j;
    int64_t j0 = chunk % blocks_j * g->block_j, nj = g->J - j0 < g->block_j ? g->J - j0 : g->block_j;
    int64_t i0 = chunk / blocks_j * I_BLOCK, ni = g->I - i0 < I_BLOCK ? g->I - i0 : I_BLOCK;
    bool in_place = g->a.col == 4;
    (void)thread;
    for (int64_t k = 0; k < g->K; k += K_BLOCK) {
        int64_t n = g->K - k < K_BLOCK ? g->K - k : K_BLOCK;
        L(pack)(w, g->b, j0, nj, (nj + 3) / 4 * 4, k, n);
        for (int64_t i = 0; i < ni; i += TILE_ROWS) {
            int64_t rows = ni - i < TILE_ROWS ? ni - i : TILE_ROWS;
            const char *a[TILE_ROWS];
            if (!in_place) L(pack)(x, g->a, i0 + i, rows, rows, k, n);
            for (int64_t r = 0; r < TILE_ROWS; r++) { // a row too many is the last one again, and not stored
                int64_t row = r < rows ? r : rows - 1;
                a[r] = in_place ? g->a.p + (i0 + i + row) * g->a.row + 4 * k : (const char *)(x + row * PACKED_ROW);
            }
            for (int64_t j = 0; j < nj; j += 4) {
                const char *b[4];
                V4 sums[TILE_ROWS];
                for (int c = 0; c < 4; c++) b[c] = (const char *)(w + (j + c) * PACKED_ROW);
                for (int64_t at = j * (K_BLOCK * 4 / J_BLOCK); at < (j + 4) * (K_BLOCK * 4 / J_BLOCK); at += 64)
                    for (int r = 0; r < TILE_ROWS && in_place; r++) // the next rows' share, spread over the columns
                        __builtin_prefetch(a[r] + TILE_ROWS * g->a.row + at, 0, 2);
                if (n % LANES == 0) L(tile)(sums, a, b, false, n, TILE_ROWS, false);
                else L(tile)(sums, a, b, false, n, TILE_ROWS, true);
                for (int64_t r = 0; r < rows; r++) L(put4)
                (g->y + (i0 + i + r) * g->ldy + j0 + j, sums[r], nj - j < 4 ? nj - j : 4, k == 0, g->alpha, g->beta);
            }
        }
    }
}

// ----------------------------------------------------------------------------------------------------- rows of numbers
// One chunk of rows of an elementwise or row-wise op. Whole vectors, then one padded with zeros.

#define EACH_VECTOR(k, n, cols)                                                                                        \
    for (int64_t k = 0, n; k < (cols) && (n = (cols)-k < LANES ? (cols)-k : LANES); k += LANES)
INLINE Vec L(take)(const char *p, bool bf16, int64_t n) {
    return n == LANES ? L(load_as)(p, bf16) : L(load_part)(p, bf16, n);
}
#define GIVE(p, v, n)                                                                                                  \
    do {                                                                                                               \
        Vec give_ = (v);                                                                                               \
        if ((n) == LANES) STORE(p, give_);                                                                             \
        else memcpy(p, &give_, (size_t)(n)*4);                                                                         \
    } while (0)

FN void L(add_job)(void *ctx, int64_t chunk, int thread) { // m[0] = m[1] + m[2]; m[2] may be one row, added to each
    const Rows *g = ctx;
    (void)thread;
    bool bias = g->m[2].rows == 1 && g->m[0].rows > 1, bf16 = g->m[2].type == BF16;
    for (int64_t i = rows_first(g, chunk); i < rows_last(g, chunk); i++) {
        char *y = mat_at(g->m[0], i, 0), *a = mat_at(g->m[1], i, 0), *b = mat_at(g->m[2], bias ? 0 : i, 0);
        EACH_VECTOR(k, n, g->m[0].cols)
        GIVE(y + 4 * k, L(take)(a + 4 * k, false, n) + L(take)(b + (bf16 ? 2 : 4) * k, bf16, n), n);
    }
}

FN void L(rmsnorm_job)(void *ctx, int64_t chunk, int thread) { // m: y, rstd, sum, x, r, w; sum and r may be absent
    const Rows *g = ctx;
    (void)thread;
    int64_t C = g->m[3].cols;
    bool bf16 = g->m[5].type == BF16;
    for (int64_t i = rows_first(g, chunk); i < rows_last(g, chunk); i++) {
        char *y = mat_at(g->m[0], i, 0), *x = mat_at(g->m[3], i, 0), *w = g->m[5].p;
        if (g->m[2].p) {
            char *sum = mat_at(g->m[2], i, 0), *r = mat_at(g->m[4], i, 0);
            EACH_VECTOR(k, n, C) GIVE(sum + 4 * k, L(take)(x + 4 * k, false, n) + L(take)(r + 4 * k, false, n), n);
            x = sum;
        }
        double squares = 0; // floats over a block of K_BLOCK, double over blocks
        for (int64_t k0 = 0; k0 < C; k0 += K_BLOCK) {
            int64_t block = C - k0 < K_BLOCK ? C - k0 : K_BLOCK;
            Vec s = {0};
            EACH_VECTOR(k, n, block) {
                Vec v = L(take)(x + 4 * (k0 + k), false, n);
                s = L(fma)(v, v, s);
            }
            squares += (double)L(sum)(s);
        }
        float rstd = (float)(1 / sqrt(squares / (double)C + (double)g->f));
        EACH_VECTOR(k, n, C)
        GIVE(y + 4 * k, L(take)(w + (bf16 ? 2 : 4) * k, bf16, n) * (L(take)(x + 4 * k, false, n) * rstd), n);
        if (g->m[1].p) *(float *)mat_at(g->m[1], i, 0) = rstd;
    }
}

FN void L(rope_job)(void *ctx, int64_t chunk, int thread) { // m: x, angles
    const Rows *g = ctx;
    (void)thread;
    int64_t half = g->dim / 2;
    for (int64_t i = rows_first(g, chunk); i < rows_last(g, chunk); i++)
        for (int64_t h = 0; h < g->heads; h++) {
            char *x = mat_at(g->m[0], i, h * g->dim), *t = mat_at(g->m[1], i, 0);
            EACH_VECTOR(k, n, half) {
                Vec c = L(take)(t + 4 * k, false, n), s = L(take)(t + 4 * (half + k), false, n) * g->f;
                Vec a = L(take)(x + 4 * k, false, n), b = L(take)(x + 4 * (half + k), false, n);
                GIVE(x + 4 * k, a * c - b * s, n);
                GIVE(x + 4 * (half + k), b * c + a * s, n);
            }
        }
}

FN void L(swiglu_job)(void *ctx, int64_t chunk, int thread) { // m: y, gate, up
    const Rows *g = ctx;
    (void)thread;
    for (int64_t i = rows_first(g, chunk); i < rows_last(g, chunk); i++) {
        char *y = mat_at(g->m[0], i, 0), *gate = mat_at(g->m[1], i, 0), *up = mat_at(g->m[2], i, 0);
        EACH_VECTOR(k, n, g->m[0].cols) {
            Vec z = L(take)(gate + 4 * k, false, n);
            GIVE(y + 4 * k, z / (1.0f + L(exp)(-z)) * L(take)(up + 4 * k, false, n), n);
        }
    }
}

FN void L(logprob_job)(void *ctx, int64_t chunk, int thread) { // m: lp, lse, entropy, logits, targets
    const Rows *g = ctx;
    (void)thread;
    int64_t V = g->m[3].cols;
    for (int64_t i = rows_first(g, chunk); i < rows_last(g, chunk); i++) {
        const float *z = mat_at(g->m[3], i, 0);
        float top = -INFINITY;
        for (int64_t v = 0; v < V; v++) top = z[v] * g->f > top ? z[v] * g->f : top;
        double sum = 0, weighted = 0; // floats over a block, double over blocks
        for (int64_t k0 = 0; k0 < V; k0 += K_BLOCK) {
            int64_t block = V - k0 < K_BLOCK ? V - k0 : K_BLOCK;
            Vec s = {0}, t = {0};
            EACH_VECTOR(k, n, block) {
                Vec d = L(all)(-1000); // exp(-1000) is 0: what a part of a vector leaves empty adds nothing
                memcpy(&d, z + k0 + k, (size_t)n * 4);
                if (n == LANES) d = d * g->f - top;
                else
                    for (int64_t c = 0; c < n; c++) d[c] = d[c] * g->f - top;
                Vec p = L(exp)(d);
                VecInt gone = p == 0.0f; // 0 * -infinity is not a number; its limit is 0
                s += p, t += p * (Vec)((VecInt)d & ~gone);
            }
            sum += (double)L(sum)(s), weighted += (double)L(sum)(t);
        }
        int32_t target = *(const int32_t *)mat_at(g->m[4], i, 0);
        double lse = top + log(sum);
        *(float *)mat_at(g->m[0], i, 0) = target < 0 ? 0 : (float)(z[target] * g->f - top - log(sum));
        if (g->m[1].p) *(float *)mat_at(g->m[1], i, 0) = (float)lse;
        if (g->m[2].p)
            *(float *)mat_at(g->m[2], i, 0) = (float)fmin(fmax(log(sum) - weighted / sum, 0), log((double)V));
    }
}

// --------------------------------------------------------------------------------------------------------- attention

// o[r][0..dim) += sum_t p[r][t] v[t][0..dim) for `rows` rows and n keys, t in order. o has OUT_ROW, p has KEYS per row.
INLINE void L(weigh)(float *o, const float *p, const char *v, int64_t v_row, int64_t n, int64_t dim, const int rows) {
    int64_t c = 0;
    for (; c + 2 * LANES <= dim; c += 2 * LANES) {
        Vec acc[6][2];
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++)
            acc[r][0] = L(load)(o + r * OUT_ROW + c), acc[r][1] = L(load)(o + r * OUT_ROW + c + LANES);
        for (int64_t t = 0; t < n; t++) {
            Vec v0 = L(load)(v + t * v_row + 4 * c), v1 = L(load)(v + t * v_row + 4 * (c + LANES));
#pragma GCC unroll 6
            for (int r = 0; r < rows; r++) {
                Vec w = L(all)(p[r * KEYS + t]);
                acc[r][0] = L(fma)(w, v0, acc[r][0]), acc[r][1] = L(fma)(w, v1, acc[r][1]);
            }
        }
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            STORE(o + r * OUT_ROW + c, acc[r][0]);
            STORE(o + r * OUT_ROW + c + LANES, acc[r][1]);
        }
    }
    for (int64_t m; c < dim; c += m) { // what is left: a vector or a part of one
        m = dim - c < LANES ? dim - c : LANES;
        for (int r = 0; r < rows; r++) {
            Vec acc = L(load)(o + r * OUT_ROW + c);
            for (int64_t t = 0; t < n; t++)
                acc = L(fma)(L(all)(p[r * KEYS + t]), L(take)(v + t * v_row + 4 * c, false, m), acc);
            STORE(o + r * OUT_ROW + c, acc);
        }
    }
}

// Up to QUERIES query rows q (each dim floats at q + r*q_row bytes) against key rows [first[s], last[s]) of segments 0
// (prefix) and 1 (own); of its own keys row r sees the first own[r] (causal: one more than the row before). Softmax
// online (Milakov and Gimelshein 2018): keys in blocks of KEYS counted from the segment's start, so a row's result
// depends on its own keys only. Keys a row may not see are not touched in the weighted sum.
FN void L(attend)(const Attention *g, const char *q, int64_t q_row, char *out, int64_t out_row, float *lse,
                  int64_t lse_row, int64_t rows, int64_t kv, const int64_t first[2], const int64_t last[2],
                  const int64_t *own) {
    _Alignas(64) float qs[QUERIES * OUT_ROW], o[QUERIES * OUT_ROW], s[QUERIES * KEYS], top[QUERIES], sum[QUERIES];
    int64_t dim = g->dim, whole = (dim + LANES - 1) / LANES * LANES, pad = (rows + 5) / 6 * 6;
    for (int64_t r = 0; r < pad; r++) {
        for (int64_t c = 0; c < whole; c += LANES) {
            int64_t n = dim - c < LANES ? dim - c : LANES;
            STORE(o + r * OUT_ROW + c, (Vec){0});
            STORE(qs + r * OUT_ROW + c, r < rows ? L(take)(q + r * q_row + 4 * c, false, n) * g->scale : (Vec){0});
        }
        top[r] = -INFINITY, sum[r] = 0;
    }
    memset(s, 0, sizeof s);
    for (int seg = 0; seg < 2; seg++)
        for (int64_t t0 = first[seg]; t0 < last[seg]; t0 += KEYS) {
            int64_t n = last[seg] - t0 < KEYS ? last[seg] - t0 : KEYS, done = t0 - first[seg];
            if (seg == 1 && own[rows - 1] <= done) break; // above the diagonal for every row
            const char *k = (const char *)mat_at(g->k, t0, kv), *v = (const char *)mat_at(g->v, t0, kv);
            int64_t k_row = g->k.stride * 4, v_row = g->v.stride * 4;
            for (int64_t t = 0; t < n; t += 4) {
                const char *b[4];
                for (int c = 0; c < 4; c++) b[c] = k + (t + c < n ? t + c : n - 1) * k_row;
                for (int64_t r = 0; r < pad; r += TILE_ROWS) {
                    const char *a[TILE_ROWS];
                    V4 scores[TILE_ROWS];
                    for (int64_t c = 0; c < TILE_ROWS; c++) a[c] = (const char *)(qs + (r + c) * OUT_ROW);
                    if (dim % LANES == 0) L(tile)(scores, a, b, false, dim, TILE_ROWS, false);
                    else L(tile)(scores, a, b, false, dim, TILE_ROWS, true);
                    for (int64_t c = 0; c < TILE_ROWS; c++)
                        memcpy(s + (r + c) * KEYS + t, &scores[c], sizeof scores[c]);
                }
            }
            bool all = true; // every row sees the whole block
            for (int64_t r = 0; r < rows; r++) {
                int64_t seen = seg == 0 || own[r] - done > n ? n : own[r] - done;
                if (seen < n) all = false;
                if (seen <= 0) continue;
                float *p = s + r * KEYS;
                for (int64_t t = seen; t < KEYS; t++) p[t] = -INFINITY;
                Vec m = L(all)(top[r]);
                for (int64_t t = 0; t < KEYS; t += LANES) {
                    Vec x = L(load)(p + t);
                    VecInt keep = m > x;
                    m = (Vec)(((VecInt)m & keep) | ((VecInt)x & ~keep)); // a score that is not a number goes through
                }
                float largest = m[0];
                for (int c = 1; c < LANES; c++) largest = largest > m[c] ? largest : m[c];
                Vec total = {0};
                for (int64_t t = 0; t < KEYS; t += LANES) {
                    Vec x = L(exp)(L(load)(p + t) - largest);
                    STORE(p + t, x);
                    total += x;
                }
                float shrink = L(exp)(L(all)(top[r] - largest))[0];
                sum[r] = sum[r] * shrink + L(sum)(total), top[r] = largest;
                if (shrink != 1)
                    for (int64_t c = 0; c < whole; c += LANES)
                        STORE(o + r * OUT_ROW + c, L(load)(o + r * OUT_ROW + c) * shrink);
            }
            if (all)
                for (int64_t r = 0; r < pad; r += 6) L(weigh)(o + r * OUT_ROW, s + r * KEYS, v, v_row, n, dim, 6);
            else
                for (int64_t r = 0; r < rows; r++) {
                    int64_t seen = own[r] - done > n ? n : own[r] - done;
                    if (seen > 0) L(weigh)(o + r * OUT_ROW, s + r * KEYS, v, v_row, seen, dim, 1);
                }
        }
    for (int64_t r = 0; r < rows; r++) {
        bool none = first[0] == last[0] && own[r] <= 0;
        EACH_VECTOR(c, n, dim)
        GIVE(out + r * out_row + 4 * c, none ? (Vec){0} : L(load)(o + r * OUT_ROW + c) / sum[r], n);
        if (lse) lse[r * lse_row] = none ? -INFINITY : (float)(top[r] + log((double)sum[r]));
    }
}

FN void L(attention_job)(void *ctx, int64_t chunk, int thread) { // a block of queries of one head of one span
    const Attention *g = ctx;
    (void)thread;
    int64_t h = chunk % g->heads, block = chunk / g->heads % g->blocks;
    Span s = g->spans[chunk / g->heads / g->blocks];
    int64_t own_rows = s.last - s.first, blocks = (own_rows + QUERIES - 1) / QUERIES;
    if (block >= blocks) return;
    block = blocks - 1 - block; // the longest first: a causal block costs as much as lies before it
    int64_t i = s.first + block * QUERIES, rows = s.last - i < QUERIES ? s.last - i : QUERIES, own[QUERIES];
    for (int64_t r = 0; r < rows; r++) own[r] = s.causal ? i + r + 1 - s.first : own_rows;
    int64_t first[2] = {s.prefix_first, s.first}, last[2] = {s.prefix_last, s.last};
    L(attend)
    (g, mat_at(g->q, i, h * g->dim), g->q.stride * 4, mat_at(g->o, i, h * g->dim), g->o.stride * 4,
     g->lse.p ? mat_at(g->lse, i, h) : NULL, g->lse.stride, rows, h / g->group * g->dim, first, last, own);
}

FN void L(decode_job)(void *ctx, int64_t chunk,
                      int thread) { // the query heads that share a key head, QUERIES at a time
    const Attention *g = ctx;
    (void)thread;
    int64_t kv_heads = g->heads / g->group, row = chunk / kv_heads, kv = chunk % kv_heads;
    Span s = g->spans[row];
    int64_t first[2] = {s.prefix_first, s.first}, last[2] = {s.prefix_last, s.last}, own[QUERIES];
    for (int64_t r = 0; r < QUERIES; r++) own[r] = s.last - s.first;
    for (int64_t h = 0; h < g->group; h += QUERIES) {
        int64_t head = kv * g->group + h, rows = g->group - h < QUERIES ? g->group - h : QUERIES;
        L(attend)
        (g, mat_at(g->q, row, head * g->dim), g->dim * 4, mat_at(g->o, row, head * g->dim), g->dim * 4, NULL, 0, rows,
         kv * g->dim, first, last, own);
    }
}

static const Lanes L(lanes) = {L(few_rows_job), L(many_rows_job), L(add_job),       L(rmsnorm_job), L(rope_job),
                               L(swiglu_job),   L(logprob_job),   L(attention_job), L(decode_job)};
#undef EACH_VECTOR
#undef GIVE
#undef Vec
#undef VecInt
#undef STORE
#undef FN
#undef INLINE
#undef L
#undef L_JOIN
#undef L_JOIN2
#undef LANES
#undef LANES_NAME
#undef LANES_TARGET
#undef LANES_FMA
#undef TILE_ROWS
