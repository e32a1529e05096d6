// cpu_lanes.h - the kernels of cpu.c, written once for vectors of LANES floats; cpu.c includes it once per instruction set.
//
// What it is:  a template. Before including: LANES (4, 8 or 16), LANES_NAME (suffix of every name here), LANES_TARGET
//              (function attribute), LANES_FMA(a, b, c) for one vector, LANES_PART(p, n) for the first n < LANES floats at p
//              and zeros behind them, LANES_SQRT(a), TILE_ROWS (rows of x in a register tile), OUTER_ROWS (those of outer).
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
INLINE int64_t L(vectors)(int64_t n) { return (n + LANES - 1) / LANES * LANES; } // up to the end of a vector

// LANES elements at p, F32 or BF16, as floats; the bits of a bf16 are the upper half of its float.
INLINE Vec L(load_as)(const char *p, bool bf16) {
    if (!bf16) return L(load)(p);
    return (Vec)(__builtin_convertvector((L(VecHalf))(*(const L(VecHalfAny) *)p), L(VecBits)) << 16);
}
// The same for n < LANES elements, zeros behind them; reads nothing past the n-th.
INLINE Vec L(load_part)(const char *p, bool bf16, int64_t n) {
    if (!bf16) return LANES_PART(p, n);
    float f[LANES] = {0};
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
// The largest lane, by the same tree. A NaN may be passed over.
INLINE float L(most)(Vec v) {
    typedef int32_t V4Int __attribute__((vector_size(16)));
    V4 m = __builtin_shufflevector(v, v, 0, 1, 2, 3);
    for (int i = 4; i < LANES; i += 4) {
        V4 x = {v[i], v[i + 1], v[i + 2], v[i + 3]};
        V4Int keep = m > x;
        m = (V4)(((V4Int)m & keep) | ((V4Int)x & ~keep));
    }
    float a = m[0] > m[2] ? m[0] : m[2], b = m[1] > m[3] ? m[1] : m[3];
    return a > b ? a : b;
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

// *density = exp(-x^2/2); returns the normal distribution Phi(x) = erfc(-x / sqrt 2) / 2, relative error about 4e-7 at
// any x, also where Phi is small. For a = |x|: Phi(-a) exp(a^2/2) is smooth in u = 1 / (1 + 0.3 a); the polynomial of
// degree 10 is its Chebyshev fit over 0 <= a <= 14 (3e-8). a^2 is taken in two parts: its rounding would count tenfold
// in the exponential. Beyond 14 both ends are as good as reached. NaN stays NaN.
INLINE Vec L(normal)(Vec x, Vec *density) {
    Vec a = (Vec)((VecInt)x & 0x7fffffff);
    VecInt far = a > 14.0f;
    a = (Vec)(((VecInt)L(all)(14.0f) & far) | ((VecInt)a & ~far));
    Vec square = a * a, rest = L(fma)(a, a, -square);
    Vec e = L(exp)(-0.5f * square) * (1.0f - 0.5f * rest), u = 1.0f / (1.0f + 0.3f * a);
    Vec p = L(fma)(u, L(all)(-0.01784326694905758f), L(all)(0.09617850929498672f));
    p = L(fma)(p, u, L(all)(-0.18655987083911896f));
    p = L(fma)(p, u, L(all)(0.13032661378383636f));
    p = L(fma)(p, u, L(all)(-0.02171684056520462f));
    p = L(fma)(p, u, L(all)(0.060201261192560196f));
    p = L(fma)(p, u, L(all)(0.09341484308242798f));
    p = L(fma)(p, u, L(all)(0.106084905564785f));
    p = L(fma)(p, u, L(all)(0.12029607594013214f));
    p = L(fma)(p, u, L(all)(0.11961467564105988f));
    p = L(fma)(p, u, L(all)(3.097261469520163e-6f));
    Vec below = p * e, above = 1.0f - below;
    VecInt left = x < 0.0f;
    *density = e;
    return (Vec)(((VecInt)below & left) | ((VecInt)above & ~left));
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
    int64_t pad_n = L(vectors)(n);
    const char *p = o.p + row0 * o.row + k0 * o.col;
    if (o.col == (o.bf16 ? 2 : 4)) {
        for (int64_t r = 0; r < rows; r++) L(widen_row)(dst + r * PACKED_ROW, p + r * o.row, o.bf16, n);
    } else if (!o.bf16 && o.row == 4) { // transposed: squares of 4, in stripes that use a cache line whole
        for (int64_t r0 = 0; r0 < rows; r0 += 16)
            for (int64_t k = 0; k < pad_n; k += 4)
                for (int64_t r = r0; r < rows && r < r0 + 16; r += 4) {
                    if (r + 4 <= rows && k + 4 <= n) {
                        turn4(dst + r * PACKED_ROW + k, PACKED_ROW, p + r * 4 + k * o.col, o.col);
                        continue;
                    }
                    for (int64_t c = r; c < rows && c < r + 4; c++)
                        for (int64_t t = k; t < k + 4; t++)
                            if (t < n) memcpy(dst + c * PACKED_ROW + t, p + c * 4 + t * o.col, 4);
                            else dst[c * PACKED_ROW + t] = 0;
                }
    } else {
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

// The other order: one chain of FMAs per element of y, over k in turn. No sum over lanes is needed, and operands whose
// rows are columns in memory (TN) are read as they lie. acc[r] += sum_k a[r*ai + k*ak] * b[k*ldb ..], one or two vectors.
INLINE void L(outer)(Vec acc[][2], const float *a, int64_t ai, int64_t ak, const float *b, int64_t ldb, int64_t n,
                     const int rows, const int vecs) {
    for (int64_t k = 0; k < n; k++, a += ak, b += ldb) {
        Vec b0 = L(load)(b), b1 = vecs == 2 ? L(load)(b + LANES) : b0;
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++) {
            Vec x = L(all)(a[r * ai]);
            acc[r][0] = L(fma)(x, b0, acc[r][0]);
            if (vecs == 2) acc[r][1] = L(fma)(x, b1, acc[r][1]);
        }
    }
}
enum { L(A_ROW) = (OUTER_ROWS + 3) / 4 * 4, L(B_ROW) = 2 * LANES, L(UNIT) = OUTER_ROWS / 3 };

// One tile of y: rows and cols may be fewer than the tile has; the packed operands are padded.
INLINE void L(outer_put)(const Product *g, const float *a, const float *b, int64_t n, int64_t i, int64_t rows,
                         int64_t j, int64_t cols, bool first, const int tile_rows, const int vecs) {
    Vec acc[OUTER_ROWS][2];
#pragma GCC unroll 12
    for (int r = 0; r < tile_rows; r++) acc[r][0] = acc[r][1] = (Vec){0};
    L(outer)(acc, a, 1, L(A_ROW), b, L(B_ROW), n, tile_rows, vecs);
    if (cols == vecs * LANES && !g->swapped && (!first || g->beta == 0 || g->beta == 1)) {
        bool add = !first || g->beta != 0;
#pragma GCC unroll 12
        for (int r = 0; r < tile_rows; r++) {
            if (r >= rows) break;
            float *y = g->y + (i + r) * g->ldy + j;
#pragma GCC unroll 2
            for (int c = 0; c < vecs; c++) {
                Vec v = g->alpha * acc[r][c];
                STORE(y + c * LANES, add ? v + L(load)(y + c * LANES) : v);
            }
        }
        return;
    }
    float sums[OUTER_ROWS][2 * LANES];
#pragma GCC unroll 12
    for (int r = 0; r < tile_rows; r++) {
        STORE(sums[r], acc[r][0]);
        STORE(sums[r] + LANES, acc[r][1]);
    }
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++)
            put(g->y + (g->swapped ? (j + c) * g->ldy + i + r : (i + r) * g->ldy + j + c), sums[r][c], first, g->alpha,
                g->beta);
}

// dst[k*width + r] = element (row0 + r, k0 + k) of an operand as float, for r < rows <= width, k < n; zeros up to width.
FN void L(pack_columns)(float *dst, int64_t width, Operand o, int64_t row0, int64_t rows, int64_t k0, int64_t n) {
    const char *p = o.p + row0 * o.row + k0 * o.col;
    if (!o.bf16 && o.row == 4 && rows == width && width % LANES == 0) {
        for (int64_t k = 0; k < n; k++)
            for (int64_t r = 0; r < width; r += LANES) STORE(dst + k * width + r, L(load)(p + k * o.col + 4 * r));
        return;
    }
    int64_t r = 0;
    if (!o.bf16 && o.row == 4)
        for (; r + 4 <= rows; r += 4)
            for (int64_t k = 0; k < n; k++) memcpy(dst + k * width + r, p + k * o.col + 4 * r, 16);
    else if (!o.bf16 && o.col == 4)
        for (; r + 4 <= rows; r += 4) {
            int64_t k = 0;
            for (; k + 4 <= n; k += 4) turn4(dst + k * width + r, width, p + r * o.row + 4 * k, o.row);
            for (; k < n; k++)
                for (int64_t c = r; c < r + 4; c++) memcpy(dst + k * width + c, p + c * o.row + 4 * k, 4);
        }
    for (; r < width; r++)
        for (int64_t k = 0; k < n; k++) {
            uint32_t bits = 0;
            if (r < rows) memcpy(&bits, p + r * o.row + k * o.col, o.bf16 ? 2 : 4);
            bits <<= o.bf16 ? 16 : 0;
            memcpy(dst + k * width + r, &bits, 4);
        }
}

// A whole block as panels of `width` rows: dst[p*panel + k*stride + r] is row p*width + r. Where a row of the block is a
// column in memory, one pass over memory fills all panels: stepping through it once per panel costs a page each step.
// Where stride > width, the places behind a panel's rows hold rows of the next panel or zeros; nobody looks at them.
INLINE void L(pack_panels)(float *dst, int64_t panel, Operand o, int64_t row0, int64_t rows, int64_t k0, int64_t n,
                           const int width, const int stride) {
    if (o.bf16 || o.row != 4) {
        for (int64_t r = 0; r < rows; r += width)
            L(pack_columns)(dst + r / width * panel, stride, o, row0 + r, rows - r < stride ? rows - r : stride, k0, n);
        return;
    }
    const char *p = o.p + row0 * 4 + k0 * o.col;
    for (int64_t k = 0; k < n; k++, p += o.col, dst += stride) {
        float *to = dst;
        int64_t r = 0;
        for (int64_t c = 0; c < rows; c += 16) __builtin_prefetch(p + 8 * o.col + 4 * c); // steps too wide for hardware
        for (; r + width <= rows; r += width, to += panel)
            if (width % LANES == 0)
#pragma GCC unroll 2
                for (int c = 0; c < width; c += LANES) STORE(to + c, L(load)(p + 4 * (r + c)));
            else memcpy(to, p + 4 * r, 4 * width);
        if (r == rows) continue;
        memcpy(to, p + 4 * r, (size_t)(rows - r) * 4);
        for (int64_t c = rows - r; c < width; c++) to[c] = 0;
    }
}

FN void L(outer_job)(void *ctx, int64_t chunk, int thread) {
    const Product *g = ctx;
    enum { A_PANEL = OUTER_K * L(A_ROW) + 16, B_PANEL = OUTER_K * L(B_ROW) + 32 }; // not multiples of a page
    _Alignas(64) float a[(OUTER_I / OUTER_ROWS + 1) * A_PANEL], b[OUTER_J / L(B_ROW) * B_PANEL];
    int64_t blocks_j = (g->J + g->block_j - 1) / g->block_j;
    int64_t j0 = chunk % blocks_j * g->block_j, nj = g->J - j0 < g->block_j ? g->J - j0 : g->block_j;
    int64_t i0 = chunk / blocks_j * g->block_i, ni = g->I - i0 < g->block_i ? g->I - i0 : g->block_i;
    (void)thread;
    for (int64_t k = 0; k < g->K; k += OUTER_K) {
        int64_t n = g->K - k < OUTER_K ? g->K - k : OUTER_K;
        L(pack_panels)(a, A_PANEL, g->a, i0, ni, k, n, OUTER_ROWS, L(A_ROW));
        L(pack_panels)(b, B_PANEL, g->b, j0, nj, k, n, L(B_ROW), L(B_ROW));
        for (int64_t j = 0; j < nj; j += L(B_ROW)) {
            int64_t cols = nj - j < L(B_ROW) ? nj - j : L(B_ROW);
            const float *bp = b + j / L(B_ROW) * B_PANEL;
            for (int64_t i = 0; i < ni; i += OUTER_ROWS) {
                int64_t rows = ni - i < OUTER_ROWS ? ni - i : OUTER_ROWS;
                const float *ap = a + i / OUTER_ROWS * A_PANEL;
#define OUTER_CASE(r, v) L(outer_put)(g, ap, bp, n, i0 + i, rows, j0 + j, cols, k == 0, r, v)
                if (cols > LANES) {
                    if (rows > 2 * L(UNIT)) OUTER_CASE(OUTER_ROWS, 2);
                    else if (rows > L(UNIT)) OUTER_CASE(2 * L(UNIT), 2);
                    else OUTER_CASE(L(UNIT), 2);
                } else {
                    if (rows > 2 * L(UNIT)) OUTER_CASE(OUTER_ROWS, 1);
                    else if (rows > L(UNIT)) OUTER_CASE(2 * L(UNIT), 1);
                    else OUTER_CASE(L(UNIT), 1);
                }
#undef OUTER_CASE
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

FN void L(swiglu_backward_job)(void *ctx, int64_t chunk, int thread) { // m: dgate, dup, dy, gate, up
    const Rows *g = ctx;
    (void)thread;
    for (int64_t i = rows_first(g, chunk); i < rows_last(g, chunk); i++) {
        char *dgate = mat_at(g->m[0], i, 0), *dup = mat_at(g->m[1], i, 0), *dy = mat_at(g->m[2], i, 0);
        char *gate = mat_at(g->m[3], i, 0), *up = mat_at(g->m[4], i, 0);
        EACH_VECTOR(k, n, g->m[0].cols) {
            Vec z = L(take)(gate + 4 * k, false, n), s = 1.0f / (1.0f + L(exp)(-z));
            Vec ds = L(take)(dy + 4 * k, false, n) * s;
            GIVE(dgate + 4 * k, ds * L(take)(up + 4 * k, false, n) * (1.0f + z * (1.0f - s)), n);
            GIVE(dup + 4 * k, ds * z, n);
        }
    }
}

FN void L(gelu_job)(void *ctx, int64_t chunk, int thread) { // m: y, x
    const Rows *g = ctx;
    (void)thread;
    for (int64_t i = rows_first(g, chunk); i < rows_last(g, chunk); i++) {
        char *y = mat_at(g->m[0], i, 0), *x = mat_at(g->m[1], i, 0);
        EACH_VECTOR(k, n, g->m[0].cols) {
            Vec z = L(take)(x + 4 * k, false, n), density;
            GIVE(y + 4 * k, z * L(normal)(z, &density), n);
        }
    }
}

FN void L(gelu_backward_job)(void *ctx, int64_t chunk, int thread) { // m: dx, dy, x
    const Rows *g = ctx;
    (void)thread;
    for (int64_t i = rows_first(g, chunk); i < rows_last(g, chunk); i++) {
        char *dx = mat_at(g->m[0], i, 0), *dy = mat_at(g->m[1], i, 0), *x = mat_at(g->m[2], i, 0);
        EACH_VECTOR(k, n, g->m[0].cols) {
            Vec z = L(take)(x + 4 * k, false, n), density, Phi = L(normal)(z, &density);
            GIVE(dx + 4 * k, L(take)(dy + 4 * k, false, n) * (Phi + z * (density * 0.398942280f)), n);
        }
    }
}

FN void L(rmsnorm_backward_job)(void *ctx, int64_t chunk, int thread) { // m: dx, dy, x, w, rstd
    const Rows *g = ctx;
    (void)thread;
    int64_t C = g->m[2].cols;
    bool bf16 = g->m[3].type == BF16;
    const char *w = g->m[3].p;
    for (int64_t i = rows_first(g, chunk); i < rows_last(g, chunk); i++) {
        char *dx = mat_at(g->m[0], i, 0), *dy = mat_at(g->m[1], i, 0), *x = mat_at(g->m[2], i, 0);
        float rstd = *(float *)mat_at(g->m[4], i, 0);
        double sum = 0; // floats over a block of K_BLOCK, double over blocks
        for (int64_t k0 = 0; k0 < C; k0 += K_BLOCK) {
            int64_t block = C - k0 < K_BLOCK ? C - k0 : K_BLOCK;
            Vec s = {0};
            EACH_VECTOR(k, n, block)
            s = L(fma)(L(take)(w + (bf16 ? 2 : 4) * (k0 + k), bf16, n) * L(take)(dy + 4 * (k0 + k), false, n),
                       L(take)(x + 4 * (k0 + k), false, n), s);
            sum += (double)L(sum)(s);
        }
        float along = (float)(sum * (double)rstd / (double)C) * rstd; // mean_j(g n) rstd
        EACH_VECTOR(k, n, C) {
            Vec d = L(take)(w + (bf16 ? 2 : 4) * k, bf16, n) * L(take)(dy + 4 * k, false, n);
            d -= L(take)(x + 4 * k, false, n) * along;
            GIVE(dx + 4 * k, L(take)(dx + 4 * k, false, n) + rstd * d, n);
        }
    }
}

// db += sum_i dy[i,:], or with x and rstd dw += sum_i dy[i,:] x[i,:] rstd[i]. A chunk is COLUMNS columns of all rows:
// floats over COLUMN_ROWS rows, double over those. m: db, dy, x, rstd
FN void L(columns_job)(void *ctx, int64_t chunk, int thread) {
    const Rows *g = ctx;
    int64_t N = g->m[1].rows, c0 = chunk * COLUMNS, cols = g->m[1].cols - c0 < COLUMNS ? g->m[1].cols - c0 : COLUMNS;
    double total[COLUMNS] = {0};
    (void)thread;
    for (int64_t i0 = 0; i0 < N; i0 += COLUMN_ROWS) {
        Vec s[COLUMNS / LANES] = {{0}};
        float part[COLUMNS];
        for (int64_t i = i0; i < N && i < i0 + COLUMN_ROWS; i++) {
            const char *dy = mat_at(g->m[1], i, c0), *x = g->m[2].p ? mat_at(g->m[2], i, c0) : NULL;
            Vec rstd = L(all)(x ? *(float *)mat_at(g->m[3], i, 0) : 0);
            if (cols == COLUMNS && x)
#pragma GCC unroll 16
                for (int c = 0; c < COLUMNS / LANES; c++)
                    s[c] = L(fma)(L(load)(dy + 4 * LANES * c), L(load)(x + 4 * LANES * c) * rstd, s[c]);
            else if (cols == COLUMNS)
#pragma GCC unroll 16
                for (int c = 0; c < COLUMNS / LANES; c++) s[c] += L(load)(dy + 4 * LANES * c);
            else EACH_VECTOR(k, n, cols) {
                    Vec d = L(take)(dy + 4 * k, false, n);
                    s[k / LANES] = x ? L(fma)(d, L(take)(x + 4 * k, false, n) * rstd, s[k / LANES]) : s[k / LANES] + d;
                }
        }
        memcpy(part, s, sizeof part);
        for (int64_t c = 0; c < COLUMNS; c++) total[c] += (double)part[c];
    }
    float *out = mat_at(g->m[0], 0, c0);
    for (int64_t c = 0; c < cols; c++) out[c] = (float)((double)out[c] + total[c]);
}

// y[index[i],:] += x[i,:] in order of i, for COLUMNS columns. m: y, x, index
FN void L(scatter_job)(void *ctx, int64_t chunk, int thread) {
    const Rows *g = ctx;
    int64_t c0 = chunk * COLUMNS, cols = g->m[1].cols - c0 < COLUMNS ? g->m[1].cols - c0 : COLUMNS;
    (void)thread;
    for (int64_t i = 0; i < g->m[1].rows; i++) {
        int32_t to = *(int32_t *)mat_at(g->m[2], i, 0);
        if (to < 0) continue;
        char *y = mat_at(g->m[0], to, c0), *x = mat_at(g->m[1], i, c0);
        EACH_VECTOR(k, n, cols) GIVE(y + 4 * k, L(take)(y + 4 * k, false, n) + L(take)(x + 4 * k, false, n), n);
    }
}

FN void L(gather_job)(void *ctx, int64_t chunk, int thread) { // m: y (F32), table, index
    const Rows *g = ctx;
    bool bf16 = g->m[1].type == BF16;
    (void)thread;
    for (int64_t i = rows_first(g, chunk); i < rows_last(g, chunk); i++) {
        int32_t from = *(int32_t *)mat_at(g->m[2], i, 0);
        char *y = mat_at(g->m[0], i, 0), *x = from < 0 ? NULL : mat_at(g->m[1], from, 0);
        if (!x) memset(y, 0, (size_t)g->m[0].cols * 4);
        else EACH_VECTOR(k, n, g->m[0].cols) GIVE(y + 4 * k, L(take)(x + (bf16 ? 2 : 4) * k, bf16, n), n);
    }
}

// LANES Philox counters c3, c3 + 1, ... at once (base.h has the plain one): words[4*i + w] is word w of counter c3 + i.
INLINE void L(philox)(uint32_t *words, uint64_t seed, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
    typedef L(VecBits) Bits;
    typedef uint64_t Wide __attribute__((vector_size(4 * LANES)));
    const Wide low = (Wide){0} + 0xffffffffu;
    Bits v0 = (Bits){0} + c0, v1 = (Bits){0} + c1, v2 = (Bits){0} + c2, v3 = (Bits){0} + c3;
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (uint32_t i = 0; i < LANES; i++) v3[i] += i;
    for (int round = 0; round < 10; round++) {
        Wide a = ((Wide)v0 & low) * 0xD2511F53u, b = ((Wide)v0 >> 32) * 0xD2511F53u; // even lanes, odd lanes
        Wide c = ((Wide)v2 & low) * 0xCD9E8D57u, d = ((Wide)v2 >> 32) * 0xCD9E8D57u;
        Bits high0 = (Bits)(a >> 32 | (b & ~low)), low0 = (Bits)((a & low) | b << 32);
        Bits high2 = (Bits)(c >> 32 | (d & ~low)), low2 = (Bits)((c & low) | d << 32);
        v0 = high2 ^ v1 ^ k0, v2 = high0 ^ v3 ^ k1, v1 = low2, v3 = low0;
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    uint32_t words_by_lane[4][LANES];
    memcpy(words_by_lane[0], &v0, sizeof v0), memcpy(words_by_lane[1], &v1, sizeof v1);
    memcpy(words_by_lane[2], &v2, sizeof v2), memcpy(words_by_lane[3], &v3, sizeof v3);
    for (int i = 0; i < LANES; i += 4)
        turn4((float *)words + 4 * i, 4, (const char *)&words_by_lane[0][i], sizeof words_by_lane[0]);
}

FN void L(dropout_job)(void *ctx, int64_t chunk, int thread) { // m: y, x, keys
    const Rows *g = ctx;
    double keep = 1 / (1 - (double)g->f);
    uint32_t least = (uint32_t)ceil((double)g->f * 4294967296.0); // the smallest word that stays
    (void)thread;
    for (int64_t i = rows_first(g, chunk); i < rows_last(g, chunk); i++) {
        char *y = mat_at(g->m[0], i, 0), *x = mat_at(g->m[1], i, 0);
        const uint32_t *key = mat_at(g->m[2], i, 0);
        for (int64_t k0 = 0; k0 < g->m[0].cols; k0 += 4 * LANES) {
            uint32_t words[4 * LANES];
            int64_t block = g->m[0].cols - k0 < 4 * LANES ? g->m[0].cols - k0 : 4 * LANES;
            L(philox)(words, g->seed, RANDOM_DROPOUT | g->site << 8, key[0], key[1], (uint32_t)(k0 / 4));
            EACH_VECTOR(k, n, block) {
                VecInt stays = (VecInt)((L(VecBits))L(load)(words + k) >= least);
                Vec v = L(take)(x + 4 * (k0 + k), false, n) * (float)keep;
                GIVE(y + 4 * (k0 + k), (Vec)((VecInt)v & stays), n);
            }
        }
    }
}

// dlogits[i,:] = g ([v == t] - exp(z_v f - lse)). m: dlogits, logits, targets, lse, dlp; dlogits may be logits
FN void L(logprob_backward_job)(void *ctx, int64_t chunk, int thread) {
    const Rows *g = ctx;
    int64_t V = g->m[0].cols;
    (void)thread;
    for (int64_t i = rows_first(g, chunk); i < rows_last(g, chunk); i++) {
        float *out = mat_at(g->m[0], i, 0), lse = *(float *)mat_at(g->m[3], i, 0);
        const char *z = mat_at(g->m[1], i, 0);
        int32_t target = *(int32_t *)mat_at(g->m[2], i, 0);
        float d = target < 0 ? 0 : *(float *)mat_at(g->m[4], i, 0) * g->f;
        if (d == 0) {
            memset(out, 0, (size_t)V * 4);
            continue;
        }
        EACH_VECTOR(k, n, V)
        GIVE(out + k, -d * L(exp)(L(fma)(L(take)(z + 4 * k, false, n), L(all)(g->f), L(all)(-lse))), n);
        out[target] += d;
    }
}

// m: w, m, v, g. The moments and the last sum in double, the square root and the quotient in float: a step is small
// against w, so its rounding does not show, while w (1 - lr decay) in float would lose a decay under 6e-8.
FN void L(adamw_job)(void *ctx, int64_t chunk, int thread) {
    const AdamRows *a = ctx;
    const Rows *g = &a->rows;
    typedef float Half __attribute__((vector_size(2 * LANES)));
    typedef float HalfAny __attribute__((vector_size(2 * LANES), aligned(1), may_alias));
    typedef double Wide __attribute__((vector_size(4 * LANES)));
    const double scale = a->step.grad_scale, rate1 = 1 - a->step.beta1, beta2 = a->step.beta2, rate2 = 1 - beta2;
    const double shrink = 1 - a->step.lr * a->step.decay;
    (void)thread;
    for (int64_t i = rows_first(g, chunk); i < rows_last(g, chunk); i++) {
        char *w = mat_at(g->m[0], i, 0), *m = mat_at(g->m[1], i, 0), *v = mat_at(g->m[2], i, 0),
             *d = mat_at(g->m[3], i, 0);
        EACH_VECTOR(k, n, g->m[0].cols) {
            float part[4][LANES] = {{0}}; // the last vector of a row is padded with zeros
            char *pw = w + 4 * k, *pm = m + 4 * k, *pv = v + 4 * k, *pd = d + 4 * k;
            if (n < LANES) {
                memcpy(part[0], pw, (size_t)n * 4), memcpy(part[1], pm, (size_t)n * 4);
                memcpy(part[2], pv, (size_t)n * 4), memcpy(part[3], pd, (size_t)n * 4);
                pw = (char *)part[0], pm = (char *)part[1], pv = (char *)part[2], pd = (char *)part[3];
            }
#pragma GCC unroll 2
            for (int h = 0; h < 2; h++) {
                int64_t at = 2 * LANES * h;
                Wide grad = __builtin_convertvector((Half)(*(HalfAny *)(pd + at)), Wide) * scale;
                Wide m1 = __builtin_convertvector((Half)(*(HalfAny *)(pm + at)), Wide);
                Wide v1 = __builtin_convertvector((Half)(*(HalfAny *)(pv + at)), Wide);
                m1 += rate1 * (grad - m1), v1 = beta2 * v1 + rate2 * grad * grad;
                *(HalfAny *)(pm + at) = __builtin_convertvector(m1, Half);
                *(HalfAny *)(pv + at) = __builtin_convertvector(v1, Half);
            }
            Vec mean = L(load)(pm), root = LANES_SQRT(L(load)(pv));
            Vec step = mean * (float)a->step.step_size / (root * (float)a->step.root_scale + (float)a->step.eps);
            float steps[LANES];
            STORE(steps, step);
#pragma GCC unroll 2
            for (int h = 0; h < 2; h++) {
                int64_t at = 2 * LANES * h;
                Wide old = __builtin_convertvector((Half)(*(HalfAny *)(pw + at)), Wide);
                old = old * shrink - __builtin_convertvector((Half)(*(HalfAny *)((char *)steps + at)), Wide);
                *(HalfAny *)(pw + at) = __builtin_convertvector(old, Half);
            }
            if (n < LANES) {
                memcpy(w + 4 * k, part[0], (size_t)n * 4), memcpy(m + 4 * k, part[1], (size_t)n * 4);
                memcpy(v + 4 * k, part[2], (size_t)n * 4);
            }
        }
    }
}

// sums[chunk] = the squares of the chunk's rows, or of its stretch of a matrix without gaps, in double.
FN void L(squares_job)(void *ctx, int64_t chunk, int thread) {
    const Squares *g = ctx;
    typedef float Half __attribute__((vector_size(2 * LANES)));
    typedef float HalfAny __attribute__((vector_size(2 * LANES), aligned(1), may_alias));
    typedef double Wide __attribute__((vector_size(4 * LANES)));
    double sum = 0;
    int64_t last = (chunk + 1) * g->per_chunk < g->x.rows ? (chunk + 1) * g->per_chunk : g->x.rows;
    (void)thread;
    for (int64_t i = chunk * g->per_chunk; i < last; i++) {
        const float *x = mat_at(g->x, i, 0);
        Wide s[4] = {{0}};
        int64_t k = 0;
        for (; k + 2 * LANES <= g->x.cols; k += 2 * LANES)
#pragma GCC unroll 4
            for (int c = 0; c < 4; c++) {
                Wide v = __builtin_convertvector((Half)(*(const HalfAny *)(x + k + c * (LANES / 2))), Wide);
                s[c] += v * v;
            }
        s[0] = (s[0] + s[1]) + (s[2] + s[3]);
        for (int c = 0; c < LANES / 2; c++) sum += s[0][c];
        for (; k < g->x.cols; k++) sum += (double)x[k] * (double)x[k];
    }
    g->sums[chunk] = sum;
}

FN void L(logprob_job)(void *ctx, int64_t chunk, int thread) { // m: lp, lse, entropy, logits, targets
    const Rows *g = ctx;
    (void)thread;
    int64_t V = g->m[3].cols;
    for (int64_t i = rows_first(g, chunk); i < rows_last(g, chunk); i++) {
        const float *z = mat_at(g->m[3], i, 0);
        Vec most = L(all)(-INFINITY); // of every lane; a NaN is passed over here and comes through the sum
        for (int64_t v = 0; v + LANES <= V; v += LANES) {
            Vec x = L(load)(z + v) * g->f;
            VecInt more = x > most;
            most = (Vec)(((VecInt)x & more) | ((VecInt)most & ~more));
        }
        float top = L(most)(most);
        for (int64_t v = V / LANES * LANES; v < V; v++) top = z[v] * g->f > top ? z[v] * g->f : top;
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

// y[r*w + c] += sum_k a[r*ai + k*ak] b[k*w + c] for r < rows, c < w (whole vectors), first <= k < last. y, a and b are
// padded: what lies up to the next whole tile of rows is computed too, and means nothing.
INLINE void L(tile_add)(float *y, int64_t w, const float *a, int64_t ai, int64_t ak, const float *b, int64_t ldb,
                        int64_t n, const int rows, const int vecs, const bool fresh) {
    Vec acc[OUTER_ROWS][2];
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++) {
        acc[r][0] = fresh ? (Vec){0} : L(load)(y + r * w);
        acc[r][1] = fresh || vecs == 1 ? (Vec){0} : L(load)(y + r * w + LANES);
    }
    L(outer)(acc, a, ai, ak, b, ldb, n, rows, vecs);
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++) {
        STORE(y + r * w, acc[r][0]);
        if (vecs == 2) STORE(y + r * w + LANES, acc[r][1]);
    }
}
INLINE void L(add_product)(float *y, int64_t w, const float *a, int64_t ai, int64_t ak, const float *b, int64_t ldb,
                           int64_t n, int64_t rows, int64_t cols, const bool fresh) {
    if (n <= 0 && !fresh) return;
    for (int64_t c = 0, vecs; c < cols; c += vecs * LANES) {
        vecs = cols - c > LANES ? 2 : 1;
        for (int64_t r = 0, left; (left = rows - r) > 0; r += OUTER_ROWS) {
#define TILE_ADD(n_rows, v) L(tile_add)(y + r * w + c, w, a + r * ai, ai, ak, b + c, ldb, n, n_rows, v, fresh)
            if (vecs == 2) {
                if (left > 2 * L(UNIT)) TILE_ADD(OUTER_ROWS, 2);
                else if (left > L(UNIT)) TILE_ADD(2 * L(UNIT), 2);
                else if (left > 1) TILE_ADD(L(UNIT), 2);
                else TILE_ADD(1, 2);
            } else {
                if (left > 2 * L(UNIT)) TILE_ADD(OUTER_ROWS, 1);
                else if (left > L(UNIT)) TILE_ADD(2 * L(UNIT), 1);
                else if (left > 1) TILE_ADD(L(UNIT), 1);
                else TILE_ADD(1, 1);
            }
#undef TILE_ADD
        }
    }
}
// dst[c*SIDE + r] = element c of row r at src (rows are `row` bytes apart), c < dim; zeros up to the end of a vector.
FN void L(side_turn)(float *dst, const char *src, int64_t row, int64_t rows, int64_t dim) {
    for (int64_t r = 0; r < L(vectors)(rows); r += 4)
        for (int64_t c = 0; c < dim; c += 4) {
            if (r + 4 <= rows && c + 4 <= dim) {
                turn4(dst + c * SIDE + r, SIDE, src + r * row + 4 * c, row);
                continue;
            }
            for (int64_t k = c; k < c + 4 && k < dim; k++)
                for (int64_t i = r; i < r + 4; i++)
                    if (i < rows) memcpy(dst + k * SIDE + i, src + i * row + 4 * k, 4);
                    else dst[k * SIDE + i] = 0;
        }
}

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

// s[r][t] = sum_c q[r][c] kt[c][t]: whole tiles of rows, t < cols (whole vectors).
FN void L(scores)(float *s, const float *q, const float *kt, int64_t dim, int64_t rows, int64_t cols) {
    L(add_product)(s, KEYS, q, OUT_ROW, 1, kt, SIDE, dim, rows, cols, true);
}

// Up to six rows at once; a row's sum is the same in any company.
INLINE void L(weigh_rows)(float *o, const float *p, const char *v, int64_t v_row, int64_t n, int64_t dim,
                          int64_t rows) {
    switch (rows) {
    case 1: L(weigh)(o, p, v, v_row, n, dim, 1); break;
    case 2: L(weigh)(o, p, v, v_row, n, dim, 2); break;
    case 3: L(weigh)(o, p, v, v_row, n, dim, 3); break;
    case 4: L(weigh)(o, p, v, v_row, n, dim, 4); break;
    case 5: L(weigh)(o, p, v, v_row, n, dim, 5); break;
    default: L(weigh)(o, p, v, v_row, n, dim, 6);
    }
}

// Attention of up to QUERIES query rows, in three parts: start, keys once for each run of keys, finish. Row r is head
// `head` + r % per of token `token` + r / per. Softmax online (Milakov and Gimelshein 2018): keys in blocks of KEYS
// counted from the start of their run, so a row's result depends on its own keys only, whichever rows are beside it.
FN void L(attend_start)(Attend *a, const Attention *g, int64_t token, int64_t head, int64_t tokens, int64_t per) {
    int64_t dim = g->dim, whole = L(vectors)(dim), rows = tokens * per;
    for (int64_t r = 0; r < rows; r++) {
        const char *q = mat_at(g->q, token + r / per, (head + r % per) * dim);
        for (int64_t c = 0; c < whole; c += LANES) {
            int64_t n = dim - c < LANES ? dim - c : LANES;
            STORE(a->o + r * OUT_ROW + c, (Vec){0});
            STORE(a->q + r * OUT_ROW + c, L(take)(q + 4 * c, false, n) * g->scale);
        }
        a->top[r] = -INFINITY, a->sum[r] = 0;
    }
    for (int64_t r = rows; r < rows + OUTER_ROWS; r++)
        memset(a->q + r * OUT_ROW, 0, (size_t)whole * 4); // of a last tile
}
// Rows [from, from + rows) against key rows [first, last): row from + r sees all of them, or the first own[r] (causal: one
// more than the row before). Keys a row may not see are not touched in the weighted sum.
FN void L(attend_keys)(Attend *a, const Attention *g, int64_t from, int64_t rows, int64_t kv, int64_t first,
                       int64_t last, const int64_t *own) {
    int64_t dim = g->dim, whole = L(vectors)(dim), k_row = g->k.stride * 4, v_row = g->v.stride * 4;
    float *s = a->s, *out = a->o + from * OUT_ROW, *top = a->top + from, *sum = a->sum + from;
    for (int64_t t0 = first; t0 < last; t0 += KEYS) {
        int64_t n = last - t0 < KEYS ? last - t0 : KEYS, cols = L(vectors)(n), done = t0 - first;
        if (own && own[rows - 1] <= done) break; // above the diagonal for every row
        const char *k = (const char *)mat_at(g->k, t0, kv), *v = (const char *)mat_at(g->v, t0, kv);
        L(side_turn)(a->kt, k, k_row, n, dim);
        L(scores)(s, a->q + from * OUT_ROW, a->kt, dim, rows, cols);
        bool all = true; // every row sees the whole block
        for (int64_t r = 0; r < rows; r++) {
            int64_t seen = !own || own[r] - done > n ? n : own[r] - done;
            if (seen < n) all = false;
            if (seen <= 0) continue;
            float *p = s + r * KEYS, *o = out + r * OUT_ROW;
            for (int64_t t = seen; t < cols; t++) p[t] = -INFINITY;
            Vec m = L(all)(top[r]);
            for (int64_t t = 0; t < cols; t += LANES) {
                Vec x = L(load)(p + t);
                VecInt keep = m > x;
                m = (Vec)(((VecInt)m & keep) | ((VecInt)x & ~keep)); // a score that is not a number goes through
            }
            float largest = L(most)(m);
            Vec total = {0};
            for (int64_t t = 0; t < cols; t += LANES) {
                Vec x = L(exp)(L(load)(p + t) - largest);
                STORE(p + t, x);
                total += x;
            }
            float shrink = L(exp)(L(all)(top[r] - largest))[0];
            sum[r] = sum[r] * shrink + L(sum)(total), top[r] = largest;
            if (shrink != 1)
                for (int64_t c = 0; c < whole; c += LANES) STORE(o + c, L(load)(o + c) * shrink);
        }
        for (int64_t r = 0; r < rows; r += 6) { // what all six rows see, then what the later ones see beyond
            int64_t six = rows - r < 6 ? rows - r : 6, common = all ? n : own[r] - done > 0 ? own[r] - done : 0;
            if (common > n) common = n;
            if (common) L(weigh_rows)(out + r * OUT_ROW, s + r * KEYS, v, v_row, common, dim, six);
            for (int64_t i = r; !all && i < r + six; i++) {
                int64_t seen = own[i] - done > n ? n : own[i] - done;
                if (seen > common) L(weigh)
                (out + i * OUT_ROW, s + i * KEYS + common, v + common * v_row, v_row, seen - common, dim, 1);
            }
        }
    }
}
FN void L(attend_finish)(Attend *a, const Attention *g, int64_t token, int64_t head, int64_t tokens, int64_t per) {
    int64_t dim = g->dim;
    for (int64_t r = 0; r < tokens * per; r++) {
        char *out = mat_at(g->o, token + r / per, (head + r % per) * dim);
        bool none = a->sum[r] == 0; // it saw no key: one that sees any has at least exp(0)
        EACH_VECTOR(c, n, dim)
        GIVE(out + 4 * c, none ? (Vec){0} : L(load)(a->o + r * OUT_ROW + c) / a->sum[r], n);
        if (g->lse.p)
            *(float *)mat_at(g->lse, token + r / per, head + r % per) =
                none ? -INFINITY : (float)(a->top[r] + log((double)a->sum[r]));
    }
}

FN void L(attention_job)(void *ctx, int64_t chunk, int thread) { // a block of queries of one head of one span
    const Attention *g = ctx;
    Attend a;
    (void)thread;
    int64_t h = chunk % g->heads, block = chunk / g->heads % g->blocks, kv = h / g->group * g->dim;
    Span s = g->spans[chunk / g->heads / g->blocks];
    int64_t own_rows = s.last - s.first, blocks = (own_rows + QUERIES - 1) / QUERIES;
    if (block >= blocks) return;
    block = blocks - 1 - block; // the longest first: a causal block costs as much as lies before it
    int64_t i = s.first + block * QUERIES, rows = s.last - i < QUERIES ? s.last - i : QUERIES, own[QUERIES];
    for (int64_t r = 0; r < rows; r++) own[r] = s.causal ? i + r + 1 - s.first : own_rows;
    L(attend_start)(&a, g, i, h, rows, 1);
    L(attend_keys)(&a, g, 0, rows, kv, s.prefix_first, s.prefix_last, NULL);
    L(attend_keys)(&a, g, 0, rows, kv, s.first, s.last, own);
    L(attend_finish)(&a, g, i, h, rows, 1);
}

// The query heads that share a key head. Rows beside each other with the same prefix go through it together, up to
// g->together of them: the chunk of the first of those does all, those of the others nothing.
FN void L(decode_job)(void *ctx, int64_t chunk, int thread) {
    const Attention *g = ctx;
    Attend a;
    (void)thread;
    int64_t kv_heads = g->heads / g->group, row = chunk / kv_heads, kv = chunk % kv_heads, before = 0, n = 1;
    const Span *s = g->spans + row;
    while (row > before && same_prefix(s, s - before - 1)) before++;
    if (before % g->together) return;
    while (row + n < g->q.rows && n < g->together && same_prefix(s, s + n)) n++;
    for (int64_t h = 0, per; h < g->group; h += per) {
        int64_t head = kv * g->group + h;
        per = g->group - h < QUERIES ? g->group - h : QUERIES;
        L(attend_start)(&a, g, row, head, n, per);
        L(attend_keys)(&a, g, 0, n * per, kv * g->dim, s->prefix_first, s->prefix_last, NULL);
        for (int64_t i = 0; i < n; i++) L(attend_keys)(&a, g, i * per, per, kv * g->dim, s[i].first, s[i].last, NULL);
        L(attend_finish)(&a, g, row, head, n, per);
    }
}

// ------------------------------------------------------------------------------------------------ attention, backward

// The three products a square needs, by how a is stepped through: scores (a by rows of w, into fresh [.., SIDE]), rows of
// a square times a side, columns of a square times a side.
FN void L(square_fill)(float *y, const float *a, int64_t w, const float *b, int64_t n, int64_t rows, int64_t cols) {
    L(add_product)(y, SIDE, a, w, 1, b, SIDE, n, rows, cols, true);
}
FN void L(rows_times)(float *y, int64_t w, const float *a, const float *b, int64_t n, int64_t rows) {
    L(add_product)(y, w, a, SIDE, 1, b, w, n, rows, w, false);
}
FN void L(columns_times)(float *y, int64_t w, const float *a, const float *b, int64_t n, int64_t rows) {
    L(add_product)(y, w, a, 1, SIDE, b, w, n, rows, w, false);
}

enum { L(PAD) = SIDE + OUTER_ROWS }; // rows of a side's buffer
typedef struct L(Side) { // of keys: k and v; of queries: q and dout; [rows, w], and keys also turned, [dim, SIDE]
    float a[L(PAD) * HEAD_DIM], b[L(PAD) * HEAD_DIM];
} L(Side);
typedef struct L(Square) {
    L(Side) keys, queries;
    float kt[HEAD_DIM * SIDE], vt[HEAD_DIM * SIDE];
    float dk[L(PAD) * HEAD_DIM], dv[L(PAD) * HEAD_DIM], dq[L(PAD) * HEAD_DIM];
    float p[L(PAD) * SIDE], ds[L(PAD) * SIDE], lse[SIDE], delta[SIDE];
} L(Square);

// dst [rows, w] = rows of a view, zeros up to w and in the rows that fill the last tile.
FN void L(side_load)(float *dst, int64_t w, Mat m, int64_t row, int64_t col, int64_t rows, int64_t dim) {
    for (int64_t r = 0; r < rows; r++) {
        const char *p = mat_at(m, row + r, col);
        EACH_VECTOR(c, n, dim) STORE(dst + r * w + c, L(take)(p + 4 * c, false, n));
    }
    memset(dst + rows * w, 0, (size_t)(OUTER_ROWS * w) * 4);
}
FN void L(side_store)(Mat m, int64_t row, int64_t col, const float *src, int64_t w, int64_t rows, int64_t dim,
                      float factor) {
    for (int64_t r = 0; r < rows; r++) {
        char *p = mat_at(m, row + r, col);
        EACH_VECTOR(c, n, dim) GIVE(p + 4 * c, L(load)(src + r * w + c) * factor, n);
    }
}
FN void L(load_keys)(const Backward *g, L(Square) * s, int64_t w, int64_t t0, int64_t keys, int64_t kv) {
    L(side_load)(s->keys.a, w, g->k, t0, kv * g->dim, keys, g->dim);
    L(side_load)(s->keys.b, w, g->v, t0, kv * g->dim, keys, g->dim);
    L(side_turn)(s->kt, (const char *)s->keys.a, 4 * w, keys, g->dim);
    L(side_turn)(s->vt, (const char *)s->keys.b, 4 * w, keys, g->dim);
}
FN void L(load_queries)(const Backward *g, L(Square) * s, int64_t w, int64_t i0, int64_t rows, int64_t h) {
    L(side_load)(s->queries.a, w, g->q, i0, h * g->dim, rows, g->dim);
    L(side_load)(s->queries.b, w, g->dout, i0, h * g->dim, rows, g->dim);
    for (int64_t r = 0; r < rows; r++) {
        s->lse[r] = *(float *)mat_at(g->lse, i0 + r, h);
        s->delta[r] = *(float *)mat_at(g->delta, i0 + r, h);
    }
}

// One square of what load_keys and load_queries brought. Row r sees the first seen(r) keys: all of them, or when
// `diagonal` the first r + ahead. What a row does not see is not touched, not multiplied by zero: there may be NaN.
// dq without its factor scale goes to s->dq; dk (without) and dv to s->dk, s->dv.
#define SEEN(r) (!diagonal || (r) + ahead >= keys ? keys : (r) + ahead > 0 ? (r) + ahead : 0)
FN void L(square)(const Backward *g, L(Square) * s, int64_t w, int64_t rows, int64_t keys, bool diagonal, int64_t ahead,
                  bool want_dq, bool want_dkv) {
    for (int64_t r = 0; r < rows; r += OUTER_ROWS) {
        int64_t n = rows - r < OUTER_ROWS ? rows - r : OUTER_ROWS, cols = L(vectors)(SEEN(r + n - 1));
        L(square_fill)(s->p + r * SIDE, s->queries.a + r * w, w, s->kt, g->dim, n, cols);
        L(square_fill)(s->ds + r * SIDE, s->queries.b + r * w, w, s->vt, g->dim, n, cols);
        for (int64_t i = r; i < r + n; i++)
            for (int64_t t = 0; t < SEEN(i); t += LANES) {
                Vec p = L(exp)(L(load)(s->p + i * SIDE + t) * g->scale - s->lse[i]);
                STORE(s->p + i * SIDE + t, p);
                STORE(s->ds + i * SIDE + t, p * (L(load)(s->ds + i * SIDE + t) - s->delta[i]));
            }
    }
    for (int64_t r = 0; want_dq && r < rows; r += OUTER_ROWS) { // what all rows of a tile see at once, the rest by rows
        int64_t n = rows - r < OUTER_ROWS ? rows - r : OUTER_ROWS, common = SEEN(r);
        L(rows_times)(s->dq + r * w, w, s->ds + r * SIDE, s->keys.a, common, n);
        for (int64_t i = r + 1; i < r + n && diagonal; i++)
            L(rows_times)(s->dq + i * w, w, s->ds + i * SIDE + common, s->keys.a + common * w, SEEN(i) - common, 1);
    }
    for (int64_t t = 0; want_dkv && t < keys; t += OUTER_ROWS) { // key t is seen by rows from t - ahead + 1 on
        int64_t n = keys - t < OUTER_ROWS ? keys - t : OUTER_ROWS;
        int64_t common = diagonal && t + n - ahead > 0 ? t + n - ahead : 0;
        common = common < rows ? common : rows;
        for (int64_t c = t; c < t + n && common > 0; c++) {
            int64_t first = c + 1 - ahead > 0 ? c + 1 - ahead : 0, count = common - first;
            L(columns_times)(s->dv + c * w, w, s->p + first * SIDE + c, s->queries.b + first * w, count, 1);
            L(columns_times)(s->dk + c * w, w, s->ds + first * SIDE + c, s->queries.a + first * w, count, 1);
        }
        L(columns_times)(s->dv + t * w, w, s->p + common * SIDE + t, s->queries.b + common * w, rows - common, n);
        L(columns_times)(s->dk + t * w, w, s->ds + common * SIDE + t, s->queries.a + common * w, rows - common, n);
    }
}
#undef SEEN

FN void L(scale_rows)(Mat m, int64_t row, int64_t col, int64_t rows, int64_t dim, float factor) {
    for (int64_t i = row; i < row + rows; i++) {
        char *p = mat_at(m, i, col);
        EACH_VECTOR(c, n, dim) GIVE(p + 4 * c, L(take)(p + 4 * c, false, n) * factor, n);
    }
}

FN void L(backward_delta_job)(void *ctx, int64_t chunk, int thread) { // delta = dout.o of a block of a span, all heads
    const Backward *g = ctx;
    Span span = g->spans[chunk / g->blocks];
    // A query that sees one key has no gradient: not even a rounding of one, which Adam would make a step of.
    bool alone = span.prefix_first == span.prefix_last && (span.causal || span.last - span.first == 1);
    (void)thread;
    for (int64_t i = span.first + chunk % g->blocks * SIDE, n = 0; i < span.last && n < SIDE; i++, n++)
        for (int64_t h = 0; h < g->heads; h++) {
            const char *dout = mat_at(g->dout, i, h * g->dim), *o = mat_at(g->o, i, h * g->dim);
            Vec s = {0};
            if (alone && i == span.first) // in the order of L(square), so that dout.v - delta is exactly 0, as it is
                for (int64_t c = 0; c < g->dim; c++)
                    s = L(fma)(L(all)(((const float *)dout)[c]), L(all)(((const float *)o)[c]), s);
            else EACH_VECTOR(c, m, g->dim) s = L(fma)(L(take)(dout + 4 * c, false, m), L(take)(o + 4 * c, false, m), s);
            *(float *)mat_at(g->delta, i, h) = alone && i == span.first ? s[0] : L(sum)(s);
        }
}

FN void L(backward_dq_job)(void *ctx, int64_t chunk, int thread) { // a block of queries of one head of one span
    const Backward *g = ctx;
    L(Square) s;
    int64_t w = L(vectors)(g->dim), h = chunk % g->heads, block = chunk / g->heads % g->blocks;
    Span span = g->spans[chunk / g->heads / g->blocks];
    int64_t blocks = (span.last - span.first + SIDE - 1) / SIDE;
    (void)thread;
    if (block >= blocks) return;
    block = blocks - 1 - block; // the longest first
    int64_t i0 = span.first + block * SIDE, rows = span.last - i0 < SIDE ? span.last - i0 : SIDE;
    memset(s.dq, 0, (size_t)((rows + OUTER_ROWS) * w) * 4);
    L(load_queries)(g, &s, w, i0, rows, h);
    for (int seg = 0; seg < 2; seg++) {
        int64_t first = seg ? span.first : span.prefix_first, last = seg ? span.last : span.prefix_last;
        bool causal = seg && span.causal;
        if (causal) last = i0 + rows;
        for (int64_t t0 = first; t0 < last; t0 += SIDE) {
            int64_t keys = last - t0 < SIDE ? last - t0 : SIDE;
            L(load_keys)(g, &s, w, t0, keys, h / g->group);
            L(square)(g, &s, w, rows, keys, causal && t0 + keys > i0 + 1, i0 + 1 - t0, true, false);
        }
    }
    L(side_store)(g->dq, i0, h * g->dim, s.dq, w, rows, g->dim, g->scale);
}

// dk and dv of the loaded keys [t0, t0 + keys) from the rows of one span that see them.
FN void L(keys_of_span)(const Backward *g, L(Square) * s, int64_t w, Span span, int64_t t0, int64_t keys, int64_t kv,
                        bool own, bool want_dq) {
    bool causal = own && span.causal;
    int64_t from = causal ? (t0 - span.first) / SIDE * SIDE + span.first : span.first;
    for (int64_t i0 = from; i0 < span.last; i0 += SIDE) {
        int64_t rows = span.last - i0 < SIDE ? span.last - i0 : SIDE;
        for (int64_t h = kv * g->group; h < (kv + 1) * g->group; h++) {
            L(load_queries)(g, s, w, i0, rows, h);
            if (want_dq) L(side_load)(s->dq, w, g->dq, i0, h * g->dim, rows, g->dim);
            L(square)(g, s, w, rows, keys, causal && t0 + keys > i0 + 1, i0 + 1 - t0, want_dq, true);
            if (want_dq) L(side_store)(g->dq, i0, h * g->dim, s->dq, w, rows, g->dim, 1);
        }
    }
}
FN void L(backward_dkv_job)(void *ctx, int64_t chunk, int thread) { // a block of keys of one key head
    const Backward *g = ctx;
    L(Square) s;
    int64_t w = L(vectors)(g->dim), kv_heads = g->heads / g->group;
    int64_t kv = chunk % kv_heads, t0 = chunk / kv_heads * SIDE, last = t0 + SIDE < g->k.rows ? t0 + SIDE : g->k.rows;
    (void)thread;
    for (int64_t n = 0; n < g->n_spans; n++)
        for (int seg = 0; seg < 2; seg++) {
            Span span = g->spans[n];
            int64_t from = seg ? span.first : span.prefix_first, to = seg ? span.last : span.prefix_last;
            from = from > t0 ? from : t0, to = to < last ? to : last;
            if (from >= to || span.first == span.last) continue;
            L(load_keys)(g, &s, w, from, to - from, kv);
            L(side_load)(s.dk, w, g->dk, from, kv * g->dim, to - from, g->dim);
            L(side_load)(s.dv, w, g->dv, from, kv * g->dim, to - from, g->dim);
            L(keys_of_span)(g, &s, w, span, from, to - from, kv, seg, false);
            L(side_store)(g->dk, from, kv * g->dim, s.dk, w, to - from, g->dim, 1);
            L(side_store)(g->dv, from, kv * g->dim, s.dv, w, to - from, g->dim, 1);
        }
    L(scale_rows)(g->dk, t0, kv * g->dim, last - t0, g->dim, g->scale);
}

FN void L(backward_all_job)(void *ctx, int64_t chunk, int thread) { // a span and a key head: nobody else sees its keys
    const Backward *g = ctx;
    L(Square) s;
    int64_t w = L(vectors)(g->dim), kv_heads = g->heads / g->group, kv = chunk % kv_heads;
    Span span = g->spans[chunk / kv_heads];
    (void)thread;
    for (int64_t t0 = span.first; t0 < span.last; t0 += SIDE) {
        int64_t keys = span.last - t0 < SIDE ? span.last - t0 : SIDE;
        L(load_keys)(g, &s, w, t0, keys, kv);
        memset(s.dk, 0, (size_t)(keys * w) * 4), memset(s.dv, 0, (size_t)(keys * w) * 4);
        L(keys_of_span)(g, &s, w, span, t0, keys, kv, true, true);
        L(side_store)(g->dk, t0, kv * g->dim, s.dk, w, keys, g->dim, g->scale);
        L(side_store)(g->dv, t0, kv * g->dim, s.dv, w, keys, g->dim, 1);
    }
    for (int64_t h = kv * g->group; h < (kv + 1) * g->group; h++)
        L(scale_rows)(g->dq, span.first, h * g->dim, span.last - span.first, g->dim, g->scale);
}

static const Lanes L(lanes) = {
    .few_rows = L(few_rows_job),
    .many_rows = L(many_rows_job),
    .outer = L(outer_job),
    .add = L(add_job),
    .columns = L(columns_job),
    .dropout = L(dropout_job),
    .rmsnorm = L(rmsnorm_job),
    .rmsnorm_backward = L(rmsnorm_backward_job),
    .rope = L(rope_job),
    .attention = L(attention_job),
    .backward_delta = L(backward_delta_job),
    .backward_dq = L(backward_dq_job),
    .backward_dkv = L(backward_dkv_job),
    .backward_all = L(backward_all_job),
    .decode = L(decode_job),
    .swiglu = L(swiglu_job),
    .swiglu_backward = L(swiglu_backward_job),
    .gelu = L(gelu_job),
    .gelu_backward = L(gelu_backward_job),
    .gather = L(gather_job),
    .scatter = L(scatter_job),
    .logprob = L(logprob_job),
    .logprob_backward = L(logprob_backward_job),
    .squares = L(squares_job),
    .adamw = L(adamw_job),
};
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
#undef LANES_PART
#undef LANES_SQRT
#undef TILE_ROWS
#undef OUTER_ROWS
