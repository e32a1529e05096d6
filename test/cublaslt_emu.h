// cublaslt_emu.h - a stand-in for cuBLASLt: the few calls of it that kernels.cu makes, as a plain matrix product.
//
// What it is:  descriptors, layouts, preferences and the heuristic as far as kernels.cu uses them, and cublasLtMatmul as
//              triple loops that honour transposes, leading dimensions, types, alpha, beta and the bias epilogue, run where
//              the stream is. It refuses what the library refuses: pointers less aligned than the algorithm was asked for,
//              leading dimensions shorter than a column, types it has no kernel for, a workspace smaller than it was told.
// What it is not: the library's algorithms, its order of sums, or a promise that a real heuristic finds something.
// Read before: cuda_emu.h, and in kernels.cu the rung that calls this.
// Source: cuBLAS 12 and 13 documentation, "Using the cuBLASLt API"; names and values as in cublasLt.h.
//
// Two traps beside those refusals: an algorithm belongs to the product it was found for (types, transposes, pitches,
// epilogue, sizes except the number of columns of D, or what TN sums over) and is refused for another; and the workspace is
// filled with NaN by every product, so that nothing else may live there.
#ifndef CUBLASLT_EMU_H
#define CUBLASLT_EMU_H
#include "cuda_emu.h"
#define SURGR1_CUBLAS 1

typedef enum cublasStatus_t {
    CUBLAS_STATUS_SUCCESS = 0,
    CUBLAS_STATUS_INVALID_VALUE = 7,
    CUBLAS_STATUS_NOT_SUPPORTED = 15
} cublasStatus_t;
static inline const char *cublasLtGetStatusString(cublasStatus_t s) {
    return s == CUBLAS_STATUS_SUCCESS         ? "CUBLAS_STATUS_SUCCESS"
           : s == CUBLAS_STATUS_INVALID_VALUE ? "CUBLAS_STATUS_INVALID_VALUE"
                                              : "CUBLAS_STATUS_NOT_SUPPORTED";
}
typedef enum cudaDataType_t { CUDA_R_32F = 0, CUDA_R_16BF = 14 } cudaDataType_t;
typedef enum cublasOperation_t { CUBLAS_OP_N = 0, CUBLAS_OP_T = 1 } cublasOperation_t;
typedef enum cublasComputeType_t { CUBLAS_COMPUTE_32F = 68 } cublasComputeType_t;
typedef enum cublasLtEpilogue_t { CUBLASLT_EPILOGUE_DEFAULT = 1, CUBLASLT_EPILOGUE_BIAS = 4 } cublasLtEpilogue_t;
enum { CUBLASLT_REDUCTION_SCHEME_NONE = 0 };
typedef enum cublasLtMatmulDescAttributes_t {
    CUBLASLT_MATMUL_DESC_TRANSA = 3,
    CUBLASLT_MATMUL_DESC_TRANSB = 4,
    CUBLASLT_MATMUL_DESC_EPILOGUE = 7,
    CUBLASLT_MATMUL_DESC_BIAS_POINTER = 8,
    CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE = 26
} cublasLtMatmulDescAttributes_t;
typedef enum cublasLtMatmulPreferenceAttributes_t {
    CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES = 1,
    CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK = 3,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES = 5,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES = 6,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES = 7,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES = 8
} cublasLtMatmulPreferenceAttributes_t;
typedef enum cublasLtMatmulAlgoConfigAttributes_t {
    CUBLASLT_ALGO_CONFIG_SPLITK_NUM = 2,
    CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME = 3
} cublasLtMatmulAlgoConfigAttributes_t;

typedef struct EmuCublas *cublasLtHandle_t;
typedef struct cublasLtMatmulDescOpaque_t {
    cublasOperation_t a, b;
    cublasLtEpilogue_t epilogue;
    cudaDataType_t bias_type;
    const void *bias;
} cublasLtMatmulDescOpaque_t, *cublasLtMatmulDesc_t;
typedef struct cublasLtMatrixLayoutOpaque_t {
    cudaDataType_t type;
    uint64_t rows, cols;
    int64_t ld;
} cublasLtMatrixLayoutOpaque_t, *cublasLtMatrixLayout_t;
typedef struct cublasLtMatmulPreferenceOpaque_t {
    size_t workspace;
    uint32_t reductions, alignment[4]; // of A, B, C, D
} cublasLtMatmulPreferenceOpaque_t, *cublasLtMatmulPreference_t;
typedef struct cublasLtMatmulAlgo_t {
    uint64_t product;      // what it was found for
    uint32_t alignment[4]; // that it relies on
    int32_t splits, reduction;
    uint64_t workspace;
} cublasLtMatmulAlgo_t;
typedef struct cublasLtMatmulHeuristicResult_t {
    cublasLtMatmulAlgo_t algo;
    size_t workspaceSize;
    cublasStatus_t state;
    float wavesCount;
} cublasLtMatmulHeuristicResult_t;

static inline cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle) {
    static char there;
    return *handle = (cublasLtHandle_t)(void *)&there, CUBLAS_STATUS_SUCCESS;
}
static inline cublasStatus_t cublasLtMatmulDescInit(cublasLtMatmulDesc_t d, cublasComputeType_t compute,
                                                    cudaDataType_t scale) {
    *d = cublasLtMatmulDescOpaque_t{CUBLAS_OP_N, CUBLAS_OP_N, CUBLASLT_EPILOGUE_DEFAULT, (cudaDataType_t)-1, NULL};
    return compute == CUBLAS_COMPUTE_32F && scale == CUDA_R_32F ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}
static inline cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t d,
                                                            cublasLtMatmulDescAttributes_t attribute, const void *value,
                                                            size_t size) {
    void *to = attribute == CUBLASLT_MATMUL_DESC_TRANSA         ? (void *)&d->a
               : attribute == CUBLASLT_MATMUL_DESC_TRANSB       ? (void *)&d->b
               : attribute == CUBLASLT_MATMUL_DESC_EPILOGUE     ? (void *)&d->epilogue
               : attribute == CUBLASLT_MATMUL_DESC_BIAS_POINTER ? (void *)&d->bias
                                                                : (void *)&d->bias_type;
    if (size != (attribute == CUBLASLT_MATMUL_DESC_BIAS_POINTER ? sizeof(void *) : (size_t)4))
        return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(to, value, size);
    return CUBLAS_STATUS_SUCCESS;
}
static inline cublasStatus_t cublasLtMatrixLayoutInit(cublasLtMatrixLayout_t l, cudaDataType_t type, uint64_t rows,
                                                      uint64_t cols, int64_t ld) {
    *l = cublasLtMatrixLayoutOpaque_t{type, rows, cols, ld};
    return CUBLAS_STATUS_SUCCESS; // what is wrong with it shows when it is used
}
static inline cublasStatus_t cublasLtMatmulPreferenceInit(cublasLtMatmulPreference_t p) {
    *p = cublasLtMatmulPreferenceOpaque_t{0, ~0u, {256, 256, 256, 256}};
    return CUBLAS_STATUS_SUCCESS;
}
static inline cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t p,
                                                                  cublasLtMatmulPreferenceAttributes_t attribute,
                                                                  const void *value, size_t size) {
    void *to = attribute == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES     ? (void *)&p->workspace
               : attribute == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK ? (void *)&p->reductions
                                                                         : (void *)&p->alignment[attribute - 5];
    if (size != (attribute == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES ? sizeof(size_t) : (size_t)4))
        return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(to, value, size);
    return CUBLAS_STATUS_SUCCESS;
}
static inline cublasStatus_t cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t *algo,
                                                                  cublasLtMatmulAlgoConfigAttributes_t attribute,
                                                                  void *value, size_t size, size_t *written) {
    if (size != 4) return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(value, attribute == CUBLASLT_ALGO_CONFIG_SPLITK_NUM ? &algo->splits : &algo->reduction, *written = 4);
    return CUBLAS_STATUS_SUCCESS;
}

// Whether D[m,n] = op(A)[m,k] op(B)[k,n] fits together, and its sizes.
typedef struct EmuProduct {
    int64_t m, n, k;
} EmuProduct;
static cublasStatus_t emu_product(const cublasLtMatmulDescOpaque_t *p, const cublasLtMatrixLayoutOpaque_t *a,
                                  const cublasLtMatrixLayoutOpaque_t *b, const cublasLtMatrixLayoutOpaque_t *c,
                                  const cublasLtMatrixLayoutOpaque_t *d, EmuProduct *s) {
    s->m = (int64_t)d->rows, s->n = (int64_t)d->cols, s->k = (int64_t)(p->a == CUBLAS_OP_T ? a->rows : a->cols);
    int64_t a_m = (int64_t)(p->a == CUBLAS_OP_T ? a->cols : a->rows);
    int64_t b_k = (int64_t)(p->b == CUBLAS_OP_T ? b->cols : b->rows),
            b_n = (int64_t)(p->b == CUBLAS_OP_T ? b->rows : b->cols);
    if (!s->m || !s->n || !s->k || a_m != s->m || b_k != s->k || b_n != s->n || c->rows != d->rows ||
        c->cols != d->cols || a->ld < (int64_t)a->rows || b->ld < (int64_t)b->rows || d->ld < s->m || c->ld != d->ld)
        return CUBLAS_STATUS_INVALID_VALUE;
    // The documentation's table for CUBLAS_COMPUTE_32F: A and B alike, C as D, a bias of D's type.
    if (a->type != b->type || c->type != d->type || (a->type == CUDA_R_32F && d->type != CUDA_R_32F) ||
        (p->epilogue == CUBLASLT_EPILOGUE_BIAS && p->bias_type != (cudaDataType_t)-1 && p->bias_type != d->type))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    return p->epilogue == CUBLASLT_EPILOGUE_BIAS && !p->bias ? CUBLAS_STATUS_INVALID_VALUE : CUBLAS_STATUS_SUCCESS;
}
static uint64_t emu_product_id(const cublasLtMatmulDescOpaque_t *p, const cublasLtMatrixLayoutOpaque_t *a,
                               const cublasLtMatrixLayoutOpaque_t *b, const cublasLtMatrixLayoutOpaque_t *d,
                               EmuProduct s) {
    bool sums_rows = p->b == CUBLAS_OP_T; // TN: any k, else any n
    uint64_t words[] = {
        (uint64_t)p->a,  (uint64_t)p->b,  (uint64_t)p->epilogue, (uint64_t)a->type, (uint64_t)d->type,
        (uint64_t)a->ld, (uint64_t)b->ld, (uint64_t)d->ld,       (uint64_t)s.m,     (uint64_t)(sums_rows ? s.n : s.k)};
    uint64_t h = 14695981039346656037u; // FNV-1a
    for (uint64_t w : words)
        for (int i = 0; i < 64; i += 8) h = (h ^ (w >> i & 255)) * 1099511628211u;
    return h;
}

// Three candidates: one that splits the sum (to be refused by who wants rows to keep their bits), one that AlgoCheck then
// tells to need more workspace than there is, and one that serves.
static inline cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t p,
                                                            cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                                            cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                                            cublasLtMatmulPreference_t preference, int wanted,
                                                            cublasLtMatmulHeuristicResult_t *results, int *n) {
    EmuProduct s;
    *n = 0;
    cublasStatus_t status = emu_product(p, a, b, c, d, &s);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    for (int i = 0; i < 3 && *n < wanted; i++) {
        cublasLtMatmulHeuristicResult_t r = {};
        r.algo.product = emu_product_id(p, a, b, d, s);
        memcpy(r.algo.alignment, preference->alignment, sizeof r.algo.alignment);
        r.algo.splits = i == 0 ? 4 : 1, r.algo.reduction = i == 0 && preference->reductions ? 1 : 0;
        r.algo.workspace = i == 1 ? preference->workspace + 1 : 4096;
        if (preference->workspace < 4096) continue;
        results[(*n)++] = r;
    }
    return *n ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}
static inline cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t, cublasLtMatmulDesc_t p, cublasLtMatrixLayout_t a,
                                                     cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c,
                                                     cublasLtMatrixLayout_t d, const cublasLtMatmulAlgo_t *algo,
                                                     cublasLtMatmulHeuristicResult_t *result) {
    EmuProduct s;
    cublasStatus_t status = emu_product(p, a, b, c, d, &s);
    if (status == CUBLAS_STATUS_SUCCESS && algo->product != emu_product_id(p, a, b, d, s))
        status = CUBLAS_STATUS_NOT_SUPPORTED;
    result->algo = *algo, result->state = status, result->workspaceSize = algo->workspace;
    return status;
}

static inline float emu_element(const void *p, cudaDataType_t type, int64_t at) {
    return type == CUDA_R_16BF ? __uint_as_float((uint32_t)((const uint16_t *)p)[at] << 16) : ((const float *)p)[at];
}
// rows x k floats of op: out[i * k + c] = element (i, c) of a column-major matrix, or of its transpose.
static float *emu_rows(const void *p, const cublasLtMatrixLayoutOpaque_t &l, bool transposed, int64_t rows, int64_t k) {
    float *out = (float *)malloc((size_t)(rows * k) * sizeof *out);
    if (!out) abort();
    for (int64_t i = 0; i < rows; i++)
        for (int64_t c = 0; c < k; c++)
            out[i * k + c] = emu_element(p, l.type, transposed ? i * l.ld + c : c * l.ld + i);
    return out;
}
static void emu_matmul(const cublasLtMatmulDescOpaque_t &p, EmuProduct s, float alpha, const void *A,
                       const cublasLtMatrixLayoutOpaque_t &a, const void *B, const cublasLtMatrixLayoutOpaque_t &b,
                       float beta, const void *C, void *D, const cublasLtMatrixLayoutOpaque_t &d) {
    float *left = emu_rows(A, a, p.a == CUBLAS_OP_T, s.m, s.k), *right = emu_rows(B, b, p.b == CUBLAS_OP_N, s.n, s.k);
    for (int64_t j = 0; j < s.n; j++)
        for (int64_t i = 0; i < s.m; i++) {
            const float *x = left + i * s.k, *w = right + j * s.k;
            double part[8] = {}, sum = 0; // eight chains, whatever the sizes: the same order for every column
            int64_t c = 0;
            for (; c + 8 <= s.k; c += 8)
                for (int e = 0; e < 8; e++) part[e] += (double)x[c + e] * w[c + e];
            for (; c < s.k; c++) sum += (double)x[c] * w[c];
            for (int e = 0; e < 8; e++) sum += part[e];
            float v = alpha * (float)sum;
            if (beta != 0) v += beta * emu_element(C, d.type, j * d.ld + i);
            if (p.epilogue == CUBLASLT_EPILOGUE_BIAS) v += emu_element(p.bias, d.type, i);
            uint32_t u = __float_as_uint(v);
            bool nan = (u & 0x7fffffffu) > 0x7f800000u;
            if (d.type == CUDA_R_32F) ((float *)D)[j * d.ld + i] = v;
            else
                ((uint16_t *)D)[j * d.ld + i] =
                    (uint16_t)(nan ? u >> 16 | 0x40u : (u + 0x7fffu + (u >> 16 & 1u)) >> 16);
        }
    free(left), free(right);
}
static inline cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t desc, const void *alpha,
                                            const void *A, cublasLtMatrixLayout_t a, const void *B,
                                            cublasLtMatrixLayout_t b, const void *beta, const void *C,
                                            cublasLtMatrixLayout_t c, void *D, cublasLtMatrixLayout_t d,
                                            const cublasLtMatmulAlgo_t *algo, void *workspace, size_t workspace_bytes,
                                            cudaStream_t) {
    cublasLtMatmulHeuristicResult_t checked;
    cublasStatus_t status = cublasLtMatmulAlgoCheck(NULL, desc, a, b, c, d, algo, &checked);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    const void *const pointers[4] = {A, B, C, D};
    const cublasLtMatrixLayoutOpaque_t *const layouts[4] = {a, b, c, d};
    for (int i = 0; i < 4; i++) {
        size_t size = layouts[i]->type == CUDA_R_16BF ? 2 : 4;
        size_t bytes = ((layouts[i]->cols - 1) * (uint64_t)layouts[i]->ld + layouts[i]->rows) * size;
        if ((uintptr_t)pointers[i] % algo->alignment[i] || (uint64_t)layouts[i]->ld * size % algo->alignment[i])
            return CUBLAS_STATUS_NOT_SUPPORTED;
        if (!emu_find(pointers[i], bytes)) {
            fprintf(stderr, "cublaslt_emu: matrix %c lies outside of what was allocated\n", "ABCD"[i]);
            abort();
        }
    }
    if (workspace_bytes < algo->workspace || !emu_find(workspace, workspace_bytes)) return CUBLAS_STATUS_INVALID_VALUE;
    cublasLtMatmulDescOpaque_t p = *desc;
    cublasLtMatrixLayoutOpaque_t la = *a, lb = *b, ld = *d;
    float by[2];
    memcpy(&by[0], alpha, 4), memcpy(&by[1], beta, 4);
    EmuProduct s;
    emu_product(desc, a, b, c, d, &s);
    size_t used = algo->workspace;
    emu_enqueue([=] {
        memset(workspace, 0xff, used);
        emu_matmul(p, s, by[0], A, la, B, lb, by[1], C, D, ld);
        emu_check_guards("cublasLtMatmul");
    });
    return CUBLAS_STATUS_SUCCESS;
}
#endif
