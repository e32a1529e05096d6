// cpu_lanes.h - the kernels of cpu.c, written once for vectors of LANES floats; cpu.c includes it once per instruction set.
//
// What it is:  a template. Before including: LANES (4, 8 or 16), LANES_NAME (suffix of every name here), LANES_TARGET
//              (function attribute), LANES_FMA(a, b, c) for one vector, TILE_ROWS (rows of x in a register tile).
// What it is not: dispatch, threads or contracts: cpu.c and ops.c.
// Read before: cpu.c's comment on matmul, which says in what order everything is summed and why.
#define L_JOIN2(a, b) a##_##b
#define L_JOIN(a, b) L_JOIN2(a, b)
#define L(name) L_JOIN(name, LANES_NAME)
#define FN static LANES_TARGET
#define INLINE static inline __attribute__((always_inline)) LANES_TARGET

typedef float L(Vec) __attribute__((vector_size(4 * LANES)));
typedef float L(VecAny) __attribute__((vector_size(4 * LANES), aligned(1), may_alias)); // any address
typedef int32_t L(VecInt) __attribute__((vector_size(4 * LANES)));
typedef uint16_t L(VecHalf) __attribute__((vector_size(2 * LANES)));
typedef uint16_t L(VecHalfAny) __attribute__((vector_size(2 * LANES), aligned(1), may_alias));
typedef uint32_t L(VecBits) __attribute__((vector_size(4 * LANES)));
#define Vec L(Vec)
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
    V8 h = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) + __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
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
    VecInt exponent = (VecInt)n << 23;
    n -= shift;
    Vec r = L(fma)(n, L(all)(-0.693145752f), x);      // ln 2 in two parts, the first exact in n
    r = L(fma)(n, L(all)(-1.42860677e-6f), r);
    Vec p = L(fma)(r, L(all)(1.98412698e-4f), L(all)(1.38888889e-3f));
    p = L(fma)(p, r, L(all)(8.33333333e-3f));
    p = L(fma)(p, r, L(all)(4.16666667e-2f));
    p = L(fma)(p, r, L(all)(1.66666667e-1f));
    p = L(fma)(p, r, L(all)(0.5f));
    p = L(fma)(p, r, L(all)(1.0f));
    p = L(fma)(p, r, L(all)(1.0f));
    return (Vec)(((VecInt)p + exponent) & ~under);
}

// ------------------------------------------------------------------------------------------------------------ matmul

// sums[r] = the four dot products of a[r] with b[0..3], over n elements: one chain of FMAs per pair and lane, then sum4.
// a is F32, b F32 or BF16. Whatever `rows` is, the sum of a pair is made in the same order. `ahead`: prefetch b so many
// bytes further on (0: not).
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
                    int64_t ahead) {
    Vec acc[TILE_ROWS][4];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) acc[r][0] = acc[r][1] = acc[r][2] = acc[r][3] = (Vec){0};
    const int64_t size = bf16 ? 2 : 4, line = 64 / size;
    int64_t k = 0;
    if (ahead)
        for (; k + line <= n; k += line) {
#pragma GCC unroll 4
            for (int c = 0; c < 4; c++) __builtin_prefetch(b[c] + size * k + ahead, 0, 3);
#pragma GCC unroll 8
            for (int64_t u = 0; u < line; u += LANES) L(step)(acc, a, b, bf16, k + u, rows);
        }
    for (; k + LANES <= n; k += LANES) L(step)(acc, a, b, bf16, k, rows);
    if (k < n)
        for (int c = 0; c < 4; c++) {
            Vec w = L(load_part)(b[c] + size * k, bf16, n - k);
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++) acc[r][c] = L(fma)(L(load_part)(a[r] + 4 * k, false, n - k), w, acc[r][c]);
        }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) sums[r] = L(sum4)(acc[r][0], acc[r][1], acc[r][2], acc[r][3]);
}

// y[0..n) of one row, n <= 4: the first block of k starts it (beta y is read only where beta is not 0), others add.
INLINE void L(put4)(float *y, V4 sums, int64_t n, bool first, float alpha, float beta) {
    V4 old = {0}, v = alpha * sums;
    if (!first || beta != 0) memcpy(&old, y, (size_t)n * 4);
    if (!first) v += old;
    else if (beta != 0) v += beta * old;
    memcpy(y, &v, (size_t)n * 4);
}

// Few rows: w is read once, straight from where it lies, four of its rows at a time; the next four are prefetched.
INLINE void L(few_rows)(const Product *g, int64_t chunk, bool bf16) {
    int64_t j_end = (chunk + 1) * g->block_j < g->J ? (chunk + 1) * g->block_j : g->J;
    for (int64_t j = chunk * g->block_j; j < j_end; j += 4) {
        int64_t nj = j_end - j < 4 ? j_end - j : 4;
        for (int64_t k = 0; k < g->K; k += K_BLOCK) {
            int64_t n = g->K - k < K_BLOCK ? g->K - k : K_BLOCK;
            const char *b[4];
            for (int c = 0; c < 4; c++) b[c] = g->b.p + (j + (c < nj ? c : nj - 1)) * g->b.row + k * g->b.col;
            for (int64_t i = 0, rows; i < g->I; i += rows) {
                const char *a[TILE_ROWS];
                V4 sums[TILE_ROWS];
                rows = g->I - i < TILE_ROWS ? g->I - i : TILE_ROWS;
                for (int r = 0; r < rows; r++) a[r] = g->a.p + (i + r) * g->a.row + 4 * k;
                int64_t ahead = i == 0 ? 4 * g->b.row : 0;
                switch (rows) {
                case 1: L(tile)(sums, a, b, bf16, n, 1, ahead); break;
                case 2: L(tile)(sums, a, b, bf16, n, 2, ahead); break;
                case 3: L(tile)(sums, a, b, bf16, n, 3, ahead); break;
#if TILE_ROWS == 6
                case 4: L(tile)(sums, a, b, bf16, n, 4, ahead); break;
                case 5: L(tile)(sums, a, b, bf16, n, 5, ahead); break;
                case 6: L(tile)(sums, a, b, bf16, n, 6, ahead); break;
#endif
                }
                for (int r = 0; r < rows; r++) L(put4)(g->y + (i + r) * g->ldy + j, sums[r], nj, k == 0, g->alpha, g->beta);
            }
        }
    }
}
FN void L(few_rows_job)(void *ctx, int64_t chunk, int thread) {
    const Product *g = ctx;
    (void)thread;
    if (g->b.bf16) L(few_rows)(g, chunk, true);
    else L(few_rows)(g, chunk, false);
}

// dst[r][k] = element (row0 + r, k0 + k) of an operand as float, for r < rows, k < n; zeros up to pad_rows and to a whole
// number of vectors. Rows of dst are K_BLOCK apart.
FN void L(pack)(float *dst, Operand o, int64_t row0, int64_t rows, int64_t pad_rows, int64_t k0, int64_t n) {
    int64_t pad_n = (n + LANES - 1) / LANES * LANES;
    const char *p = o.p + row0 * o.row + k0 * o.col;
    if (o.col == (o.bf16 ? 2 : 4)) {
        for (int64_t r = 0; r < rows; r++) {
            const char *row = p + r * o.row;
            int64_t k = 0;
            for (; k + LANES <= n; k += LANES) STORE(dst + r * K_BLOCK + k, L(load_as)(row + k * o.col, o.bf16));
            if (k < n) STORE(dst + r * K_BLOCK + k, L(load_part)(row + k * o.col, o.bf16, n - k));
        }
    } else { // transposed: squares of 16, so that both sides stay in the first cache
        for (int64_t r0 = 0; r0 < rows; r0 += 16)
            for (int64_t c0 = 0; c0 < pad_n; c0 += 16)
                for (int64_t r = r0; r < rows && r < r0 + 16; r++)
                    for (int64_t k = c0; k < pad_n && k < c0 + 16; k++) {
                        uint32_t bits = 0;
                        if (k < n) memcpy(&bits, p + r * o.row + k * o.col, o.bf16 ? 2 : 4);
                        bits <<= o.bf16 ? 16 : 0;
                        memcpy(dst + r * K_BLOCK + k, &bits, 4);
                    }
    }
    for (int64_t r = rows; r < pad_rows; r++) memset(dst + r * K_BLOCK, 0, (size_t)pad_n * 4);
}

// Many rows: a block of w, as floats, stays in the second cache while groups of rows of x, in the first, pass over it.
FN void L(many_rows_job)(void *ctx, int64_t chunk, int thread) {
    const Product *g = ctx;
    _Alignas(64) float w[J_BLOCK * K_BLOCK], x[X_GROUP * K_BLOCK];
    int64_t blocks_j = (g->J + g->block_j - 1) / g->block_j;
    int64_t j0 = chunk % blocks_j * g->block_j, nj = g->J - j0 < g->block_j ? g->J - j0 : g->block_j;
    int64_t i0 = chunk / blocks_j * I_BLOCK, ni = g->I - i0 < I_BLOCK ? g->I - i0 : I_BLOCK;
    (void)thread;
    for (int64_t k = 0; k < g->K; k += K_BLOCK) {
        int64_t n = g->K - k < K_BLOCK ? g->K - k : K_BLOCK, whole = (n + LANES - 1) / LANES * LANES;
        L(pack)(w, g->b, j0, nj, (nj + 3) / 4 * 4, k, n);
        for (int64_t i = 0; i < ni; i += X_GROUP) {
            int64_t rows = ni - i < X_GROUP ? ni - i : X_GROUP;
            L(pack)(x, g->a, i0 + i, rows, (rows + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS, k, n);
            for (int64_t j = 0; j < nj; j += 4) {
                const char *b[4];
                for (int c = 0; c < 4; c++) b[c] = (const char *)(w + (j + c) * K_BLOCK);
                for (int64_t r0 = 0; r0 < rows; r0 += TILE_ROWS) {
                    const char *a[TILE_ROWS];
                    V4 sums[TILE_ROWS];
                    for (int r = 0; r < TILE_ROWS; r++) a[r] = (const char *)(x + (r0 + r) * K_BLOCK);
                    L(tile)(sums, a, b, false, whole, TILE_ROWS, 0);
                    for (int64_t r = 0; r < TILE_ROWS && r0 + r < rows; r++)
                        L(put4)(g->y + (i0 + i + r0 + r) * g->ldy + j0 + j, sums[r], nj - j < 4 ? nj - j : 4, k == 0,
                                g->alpha, g->beta);
                }
            }
        }
    }
}

static const Lanes L(lanes) = {L(few_rows_job), L(many_rows_job)};
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
