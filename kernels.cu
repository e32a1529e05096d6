// kernels.cu - device "cuda": every op of ops.h as a CUDA kernel, in the order of ops.c.
//
// What it is:  the plain rung of each kernel, written to be read beside its reference, and for products and attention in
//              bf16 a fast rung on tensor cores. nvcc compiles this file for sm_80 and newer; g++ compiles the same file
//              against test/cuda_emu.h, and then every line of it runs on the host, thread for thread.
// What it is not: tuned, nor aware of models.
// Read before: ops.h, ops.c (the contract and formula of each op: here they are only recalled).
// Read next:  test/test_kernels.c, which compares each op with the reference.
//
// Conventions:
//   - kernels take Mats and read elements through get() and put(), as ops.c does: any mix of F32 and BF16, any strides,
//     sums in fp32. A fast rung takes typed pointers, and says when it applies;
//   - which rung runs depends on types, alignment and the sizes of the weights, never on the number of rows: a row gives
//     the same bits alone and in a batch;
//   - "row kernels": one block per row (grid.x), threads stride over the columns;
//   - shared memory comes from the one dynamic array of the launch, so that its size is written where it is asked for;
//   - a barrier's comment names what it separates, before | after. No thread returns before a barrier that others of its
//     block reach, no float atomics.
#include "ops.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#define LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                                         \
    kernel<<<grid, block, shared_bytes, stream>>>(__VA_ARGS__)
#define DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]

// PTX behind functions; each has a twin in cuda_emu.h. Fragment layouts: PTX ISA 8, mma.m16n8k16 with .bf16.
// 16 bytes to shared memory, of which the first `bytes` (0 to 16) come from `from` and the rest are zero.
__device__ static inline void cp_async16(void *to, const void *from, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"((uint32_t)__cvta_generic_to_shared(to)),
                 "l"(from), "r"(bytes)
                 : "memory");
}
__device__ static inline void cp_async_commit(void) { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most the newest N groups of this thread are still under way.
template <int N> __device__ static inline void cp_async_wait(void) {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}
// Four 8x8 matrices of 16-bit elements; lane 8m + i gives the address of row i of matrix m.
__device__ static inline void ldmatrix_x4(uint32_t r[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(row))
                 : "memory");
}
// The same with each matrix transposed on its way into the registers.
__device__ static inline void ldmatrix_x4_trans(uint32_t r[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(row))
                 : "memory");
}
// c[16,8] += a[16,16] * b[16,8]
__device__ static inline void mma_m16n8k16_bf16(float c[4], const uint32_t a[4], const uint32_t b[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// Two floats as bf16, rounded to nearest even, `low` in the lower half: neighbours of a fragment.
__device__ static inline uint32_t bf16_pair(float low, float high) {
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}
// 2^x to 2 units of the last place, in one instruction; what is below 2^-126 becomes 0.
__device__ static inline float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
// An 8x8 matrix of 16-bit elements, transposed: lane l has elements (l/4, 2(l%4)) and the next, before and after.
__device__ static inline uint32_t movmatrix_trans(uint32_t pair) {
    uint32_t turned;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(turned) : "r"(pair));
    return turned;
}
#ifdef SURGR1_CUBLAS
#include <cublasLt.h>
#endif
#else
#include "test/cuda_emu.h"
#include "test/cublaslt_emu.h"
#endif

#ifndef SURGR1_WRAPPERS_ONLY // test/gpu_probe.cu wants what is above and nothing below
// ----------------------------------------------------------------------------------------------------------- helpers

static cudaStream_t stream; // everything runs here, in order
static int64_t processors;  // of the GPU
static CudaRungs rungs;     // which rung a kernel with two of them takes
extern "C" void cuda_rungs_set(CudaRungs chosen) { rungs = chosen; }

// A CUDA call that fails ends the program: an op has no way to return it, and a device error does not go away.
static void device_check(cudaError_t error, const char *what) {
    if (error == cudaSuccess) return;
    Err e = {};
    Where nowhere = {};
    err_set(&e, "E-DV-02", nowhere,
            "expected %s to succeed on the device; found %s; do: check the device with nvidia-smi, or run with "
            "--device cpu",
            what, cudaGetErrorString(error));
    exit(err_report(&e));
}
#define RUN(kernel, grid, block, shared_bytes, ...)                                                                    \
    do {                                                                                                               \
        LAUNCH(kernel, grid, block, shared_bytes, stream, __VA_ARGS__);                                                \
        device_check(cudaGetLastError(), #kernel);                                                                     \
    } while (0)

static unsigned blocks(int64_t items, int64_t per_block) {
    int64_t n = (items + per_block - 1) / per_block;
    CHECK(n <= INT32_MAX, "a grid of %lld blocks", (long long)n);
    return (unsigned)n;
}
// Threads for a row kernel: enough for the columns, whole warps, 256 at most.
static unsigned row_threads(int64_t cols) { return cols >= 256 ? 256 : (unsigned)((cols + 31) / 32 * 32); }

__device__ static inline float get(const Mat &m, int64_t i, int64_t j) {
    return m.type == BF16 ? bf16_to_f32(*(const uint16_t *)mat_at(m, i, j)) : *(const float *)mat_at(m, i, j);
}
__device__ static inline void put(const Mat &m, int64_t i, int64_t j, float v) {
    if (m.type == BF16) *(uint16_t *)mat_at(m, i, j) = f32_to_bf16(v);
    else *(float *)mat_at(m, i, j) = v;
}
__device__ static inline int32_t get_index(const Mat &m, int64_t i) { return *(const int32_t *)mat_at(m, i, 0); }

struct Sum {
    template <typename T> __device__ T operator()(T a, T b) const { return a + b; }
};
struct Max { // of two NaNs or numbers the number: a NaN shows in the sums that follow
    __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
    __device__ double operator()(double a, double b) const { return fmax(a, b); }
};
struct Min {
    __device__ int operator()(int a, int b) const { return a < b ? a : b; }
};
// The same result in every lane: each step pairs lanes symmetrically, so all lanes add in the same tree.
template <typename T, typename F> __device__ static inline T warp_reduce(T v, F f) {
    for (int lanes = 16; lanes > 0; lanes /= 2) v = f(v, __shfl_xor_sync(0xffffffffu, v, lanes));
    return v;
}
// The same result in every thread of the block. scratch: 32 of T in shared memory, free again after the next barrier.
template <typename T, typename F> __device__ static inline T block_reduce(T v, T *scratch, F f) {
    v = warp_reduce(v, f);
    __syncthreads(); // reads of scratch by an earlier call | writes below
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
    __syncthreads(); // writes above | reads below
    v = scratch[0];
    for (unsigned w = 1; w < blockDim.x / 32; w++) v = f(v, scratch[w]);
    return v;
}
enum { SCRATCH_BYTES = 32 * 8 }; // for block_reduce of any type

// out[0,j] += sum_i element(i, j), in F32: the gradient of a row vector. A block has 32 columns; its warp w sums rows
// w, w + 16, ..., and warp 0 adds the 16 sums in order. sums: COLUMN_SHARED bytes.
enum { COLUMN_WARPS = 16, COLUMN_SHARED = COLUMN_WARPS * 32 * 4 };
template <typename F>
__device__ static inline void add_column_sums(const Mat &out, int64_t rows, float *sums, F element) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int64_t j = (int64_t)blockIdx.x * 32 + lane;
    float sum = 0;
    if (j < out.cols)
        for (int64_t i = warp; i < rows; i += COLUMN_WARPS) sum += element(i, j);
    sums[threadIdx.x] = sum;
    __syncthreads(); // sums written above | read by warp 0 below
    if (warp == 0 && j < out.cols) {
        for (int w = 1; w < COLUMN_WARPS; w++) sum += sums[32 * w + lane];
        put(out, 0, j, get(out, 0, j) + sum);
    }
}

// ------------------------------------------------------------------------------------------------------------ memory

static bool capturing; // between capture_begin and capture_end, see below
static void not_captured(const char *op) { CHECK(!capturing, "%s inside a capture", op); }

static void *cuda_alloc(size_t bytes) {
    not_captured("alloc");
    void *p = NULL;
    cudaError_t error = cudaMalloc(&p, bytes ? bytes : 64);                                // 256-byte aligned
    if (error == cudaErrorMemoryAllocation) return (void)cudaGetLastError(), (void *)NULL; // the caller's business
    device_check(error, "cudaMalloc");
    return p;
}
static void cuda_release(void *p) {
    not_captured("release");
    device_check(cudaFree(p), "cudaFree");
}
static void cuda_memory(size_t *free, size_t *total) {
    device_check(cudaMemGetInfo(free, total), "asking for free memory");
}
// Rows of y from rows of x; one run when both are contiguous, which is what fast copies need.
static void copy_rows(Mat y, Mat x, cudaMemcpyKind kind, const char *what) {
    size_t size = type_size(y.type), width = (size_t)y.cols * size, rows = (size_t)y.rows;
    if (!width || !rows) return;
    if (rows == 1 || (y.stride == y.cols && x.stride == x.cols))
        device_check(cudaMemcpyAsync(y.p, x.p, rows * width, kind, stream), what);
    else
        device_check(
            cudaMemcpy2DAsync(y.p, (size_t)y.stride * size, x.p, (size_t)x.stride * size, width, rows, kind, stream),
            what);
}
static void cuda_sync(void) {
    not_captured("sync");
    device_check(cudaStreamSynchronize(stream), "the work in the stream");
}
static void cuda_upload(Mat dst, Mat host) {
    not_captured("upload");
    copy_rows(dst, host, cudaMemcpyHostToDevice, "upload");
    cuda_sync(); // the caller may reuse host memory on return, pinned or not
}
static void cuda_download(Mat host, Mat src) {
    not_captured("download");
    copy_rows(host, src, cudaMemcpyDeviceToHost, "download");
    cuda_sync();
}
static void cuda_zero(Mat y) {
    size_t size = type_size(y.type), width = (size_t)y.cols * size, rows = (size_t)y.rows;
    if (!width || !rows) return;
    if (rows == 1 || y.stride == y.cols) device_check(cudaMemsetAsync(y.p, 0, rows * width, stream), "zero");
    else device_check(cudaMemset2DAsync(y.p, (size_t)y.stride * size, 0, width, rows, stream), "zero");
}
static void cuda_copy(Mat y, Mat x) { copy_rows(y, x, cudaMemcpyDeviceToDevice, "copy"); }

// ----------------------------------------------------------------------------------------------------------- capture
// A sequence of launches as one CUDA graph: for decoding, whose hundreds of small kernels a token would otherwise wait
// for the host that launches them. The nodes keep the arguments they were recorded with, pointers included.

static bool cuda_capture_begin(void) {
    if (rungs.naive) return false;
    not_captured("capture_begin");
    // Other threads of the program make no CUDA calls; this one is held to what a capture allows.
    device_check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "beginning a capture");
    return capturing = true;
}
static void *cuda_capture_end(void) {
    CHECK(capturing, "capture_end without capture_begin");
    capturing = false;
    cudaGraph_t graph = NULL;
    cudaGraphExec_t runnable = NULL;
    device_check(cudaStreamEndCapture(stream, &graph), "ending a capture");
    device_check(cudaGraphInstantiate(&runnable, graph, 0), "making a graph runnable");
    device_check(cudaGraphDestroy(graph), "releasing a graph");
    return runnable;
}
static void cuda_replay(void *graph) {
    not_captured("replay");
    device_check(cudaGraphLaunch((cudaGraphExec_t)graph, stream), "launching a graph");
}
static void cuda_capture_release(void *graph) {
    if (graph) device_check(cudaGraphExecDestroy((cudaGraphExec_t)graph), "releasing a graph");
}

// ------------------------------------------------------------------------------------------------------------- dense

// add_bias: y[i,j] += b[0,j]. Row kernel.
__global__ void add_bias_kernel(Mat y, Mat b) {
    int64_t i = blockIdx.x;
    for (int64_t j = threadIdx.x; j < y.cols; j += blockDim.x) put(y, i, j, get(y, i, j) + get(b, 0, j));
}
static void cuda_add_bias(Mat y, Mat b) { RUN(add_bias_kernel, blocks(y.rows, 1), row_threads(y.cols), 0, y, b); }

// What every rung of matmul leaves in y: alpha * sum + beta * y + bias, with beta == 0 without reading y.
__device__ static inline float finished(float sum, const Mat &y, const Mat &bias, int64_t i, int64_t j, float alpha,
                                        float beta) {
    float v = alpha * sum + (beta == 0 ? 0 : beta * get(y, i, j));
    return bias.p ? v + get(bias, 0, j) : v;
}

// matmul, plain rung: any layout, types and sizes.
// grid (row tiles, column tiles), 256 threads as 16 x 16; thread (ty, tx) computes y[ty + 16a, tx + 16b], a, b < 4, of a
// 64 x 64 tile, from tiles of x and w over 16 inner elements. Each inner tile is summed by itself, then added: shorter
// chains of additions, smaller error.
enum { TILE = 64, TILE_K = 16, TILE_PITCH = TILE + 1, TILED_SHARED = 2 * TILE_K * TILE_PITCH * 4 };

__global__ void __launch_bounds__(256)
    matmul_tiled_kernel(Mat y, Mat x, Mat w, Mat bias, Layout layout, int64_t inner, float alpha, float beta) {
    DYNAMIC_SHARED(shared);
    float *xs = (float *)shared, *ws = xs + TILE_K * TILE_PITCH; // [TILE_K][TILE_PITCH]: xs[c][i], ws[c][j]
    int64_t i0 = (int64_t)blockIdx.x * TILE, j0 = (int64_t)blockIdx.y * TILE;
    int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    float acc[4][4] = {};
    for (int64_t c0 = 0; c0 < inner; c0 += TILE_K) {
        for (int e = threadIdx.x; e < TILE * TILE_K; e += 256) {
            // Neighbouring threads run along the dimension that is contiguous in memory: c, or i and j.
            int along = e % TILE_K, across = e / TILE_K, along_t = e / TILE, across_t = e % TILE;
            int c = layout == TN ? along_t : along, i = layout == TN ? across_t : across;
            bool inside = i0 + i < y.rows && c0 + c < inner;
            xs[c * TILE_PITCH + i] = !inside ? 0 : layout == TN ? get(x, c0 + c, i0 + i) : get(x, i0 + i, c0 + c);
            c = layout == NT ? along : along_t, i = layout == NT ? across : across_t;
            inside = j0 + i < y.cols && c0 + c < inner;
            ws[c * TILE_PITCH + i] = !inside ? 0 : layout == NT ? get(w, j0 + i, c0 + c) : get(w, c0 + c, j0 + i);
        }
        __syncthreads();        // tiles written above | read below
        if (i0 + ty < y.rows) { // a tile of few rows keeps only the threads that have one
            float part[4][4] = {};
            for (int c = 0; c < TILE_K; c++) {
                float xv[4], wv[4];
                for (int a = 0; a < 4; a++)
                    xv[a] = xs[c * TILE_PITCH + ty + 16 * a], wv[a] = ws[c * TILE_PITCH + tx + 16 * a];
                for (int a = 0; a < 4; a++)
                    for (int b = 0; b < 4; b++) part[a][b] += xv[a] * wv[b];
            }
            for (int a = 0; a < 4; a++)
                for (int b = 0; b < 4; b++) acc[a][b] += part[a][b];
        }
        __syncthreads(); // tiles read above | overwritten in the next round
    }
    for (int a = 0; a < 4; a++)
        for (int b = 0; b < 4; b++) {
            int64_t i = i0 + ty + 16 * a, j = j0 + tx + 16 * b;
            if (i < y.rows && j < y.cols) put(y, i, j, finished(acc[a][b], y, bias, i, j, alpha, beta));
        }
}

// matmul, tensor-core rung: x and w with rows on 16-byte addresses; y of any type.
//
// Each warp has a part of y's tile and sums it by mma.m16n8k16. Tiles of 32 inner elements come by cp.async into a ring of
// stages: one is computed with while the others fill. A tile lies as its matrix does: [outer][32 inner], or [32
// inner][outer] where the inner dimension runs down the rows (x in TN, w in NN and TN); ldmatrix turns the latter. The
// pitches make the eight 16-byte rows of one ldmatrix fall into different banks: 80 bytes, or an odd number of 16.
// Every element of y is one chain of mma, 16 inner elements at a time from the first to the last, whatever the tile: so
// the tile may be chosen by the number of rows and a row keeps its bits.
enum { MMA_K = 32, MMA_PITCH = MMA_K + 8 };

// A tile of m at (outer o0, inner c0) into shared memory, 16 bytes at a time; what lies outside of m becomes zero. `down`:
// the inner dimension runs down the rows. Sizes are below 2^30 (tensor_reads).
template <typename T, bool down, int OUTER, int PITCH, int THREADS>
__device__ static inline void load_tile(T *tile, const Mat &m, int o0, int c0) {
    enum { CHUNK = 16 / sizeof(T), ACROSS = (down ? OUTER : (int)MMA_K) / CHUNK };
#pragma unroll
    for (int e = threadIdx.x; e < OUTER * MMA_K / CHUNK; e += THREADS) {
        int i = e / ACROSS, c = e % ACROSS * CHUNK;
        int row = (down ? c0 : o0) + i, col = (down ? o0 : c0) + c, left = row < (int)m.rows ? (int)m.cols - col : 0;
        left = left < 0 ? 0 : left < CHUNK ? left : CHUNK;
        cp_async16(tile + i * PITCH + c, left ? (const T *)m.p + (row * m.stride + col) : m.p, left * (int)sizeof(T));
    }
}

// Elements (row, col) and (row, col + 1) of y; `pairs`: at once, where both are inside.
__device__ static inline void put_pair(const Mat &y, const Mat &bias, int64_t row, int64_t col, const float sum[2],
                                       float alpha, float beta, bool pairs) {
    if (row >= y.rows || col >= y.cols) return;
    float v = finished(sum[0], y, bias, row, col, alpha, beta);
    if (col + 1 == y.cols) return put(y, row, col, v);
    float v1 = finished(sum[1], y, bias, row, col + 1, alpha, beta);
    if (!pairs) put(y, row, col, v), put(y, row, col + 1, v1);
    else if (y.type == BF16) *(uint32_t *)mat_at(y, row, col) = bf16_pair(v, v1);
    else *(float2 *)mat_at(y, row, col) = make_float2(v, v1);
}
__device__ static inline bool rows_of_pairs(const Mat &y) {
    return y.stride % 2 == 0 && (uintptr_t)y.p % (2 * type_size(y.type)) == 0;
}

// x and w BF16. grid (row tiles, column tiles); DOWN x ACROSS warps share a tile of ROWS x COLS.
template <Layout layout, int ROWS, int COLS, int DOWN, int ACROSS, int STAGES> struct MmaTile {
    enum {
        THREADS = 32 * DOWN * ACROSS,
        WI = ROWS / DOWN, // a warp's part of the tile
        WJ = COLS / ACROSS,
        X_PITCH = layout == TN ? ROWS + 8 : (int)MMA_PITCH,
        W_PITCH = layout == NT ? (int)MMA_PITCH : COLS + 8,
        X_STAGE = layout == TN ? (int)MMA_K * X_PITCH : ROWS * X_PITCH,
        W_STAGE = layout == NT ? COLS * W_PITCH : (int)MMA_K * W_PITCH,
        SHARED = STAGES * (X_STAGE + W_STAGE) * 2
    };
    static_assert(WI % 16 == 0 && WJ % 16 == 0, "a warp has whole fragments");
};
template <Layout layout, int ROWS, int COLS, int DOWN, int ACROSS, int STAGES>
__global__ void __launch_bounds__(32 * DOWN * ACROSS)
    matmul_mma_kernel(Mat y, Mat x, Mat w, Mat bias, int64_t inner, float alpha, float beta) {
    typedef MmaTile<layout, ROWS, COLS, DOWN, ACROSS, STAGES> Tile;
    enum { FI = Tile::WI / 16, FJ = Tile::WJ / 16, XP = Tile::X_PITCH, WP = Tile::W_PITCH };
    DYNAMIC_SHARED(shared);
    uint16_t *xs = (uint16_t *)shared, *ws = xs + STAGES * Tile::X_STAGE;
    int i0 = (int)blockIdx.x * ROWS, j0 = (int)blockIdx.y * COLS;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, wi = warp / ACROSS * Tile::WI, wj = warp % ACROSS * Tile::WJ;
    int stages = ((int)inner + MMA_K - 1) / MMA_K;
    auto load = [&](int s) {
        if (s < stages) {
            load_tile<uint16_t, layout == TN, ROWS, XP, Tile::THREADS>(xs + s % STAGES * Tile::X_STAGE, x, i0,
                                                                       s * MMA_K);
            load_tile<uint16_t, layout != NT, COLS, WP, Tile::THREADS>(ws + s % STAGES * Tile::W_STAGE, w, j0,
                                                                       s * MMA_K);
        }
        cp_async_commit(); // an empty group too, so that "all but STAGES - 2" always means stage s has landed
    };
    float acc[FI][2 * FJ][4] =
        {}; // indexed by constants only once all loops over it are unrolled: else it is no register
    for (int s = 0; s < STAGES - 1; s++) load(s);
    for (int s = 0; s < stages; s++) {
        cp_async_wait<STAGES - 2>();
        __syncthreads(); // stage s written by every thread's copies, stage s - 1 read | s read, s - 1 refilled below
        load(s + STAGES - 1); // into the place of stage s - 1
        const uint16_t *xt = xs + s % STAGES * Tile::X_STAGE, *wt = ws + s % STAGES * Tile::W_STAGE;
#pragma unroll
        for (int c = 0; c < MMA_K; c += 16) {
            uint32_t a[FI][4], b[FJ][4]; // b[j] holds two 16 x 8 fragments
#pragma unroll
            for (int i = 0; i < FI; i++)
                if (layout == TN)
                    ldmatrix_x4_trans(a[i], xt + (c + lane % 8 + lane / 16 * 8) * XP + wi + 16 * i + lane / 8 % 2 * 8);
                else ldmatrix_x4(a[i], xt + (wi + 16 * i + lane % 16) * XP + c + lane / 16 * 8);
#pragma unroll
            for (int j = 0; j < FJ; j++)
                if (layout == NT)
                    ldmatrix_x4(b[j], wt + (wj + 16 * j + lane % 8 + lane / 16 * 8) * WP + c + lane / 8 % 2 * 8);
                else ldmatrix_x4_trans(b[j], wt + (c + lane % 16) * WP + wj + 16 * j + lane / 16 * 8);
#pragma unroll
            for (int i = 0; i < FI; i++) {
                if (i0 + wi + 16 * i >= y.rows) continue; // a whole warp's 16 rows outside of y
#pragma unroll
                for (int j = 0; j < 2 * FJ; j++) mma_m16n8k16_bf16(acc[i][j], a[i], &b[j / 2][j % 2 * 2]);
            }
        }
    }
    bool pairs = rows_of_pairs(y);
#pragma unroll
    for (int i = 0; i < FI; i++)
#pragma unroll
        for (int j = 0; j < 2 * FJ; j++)
#pragma unroll
            for (int e = 0; e < 4; e += 2)
                put_pair(y, bias, i0 + wi + 16 * i + lane / 4 + e / 2 * 8, j0 + wj + 8 * j + lane % 4 * 2,
                         &acc[i][j][e], alpha, beta, pairs);
}

// The same where x, w or both are F32 (LoRA beside bf16 activations, weights that are trained, everything in fp32). An F32
// number is cut into three bf16 whose sum it is exactly, 8 bits of its 24 each: x w = sum of x_p w_q. Of the nine products
// the three with p + q > 2 are below 2^-24 of the whole and left out. Cut, not rounded: no term overflows. A stage is
// summed by itself, then added, because mma adds less carefully than an addition does.
// grid (row tiles, column tiles), 2 x 2 warps, each 32 x 32 of a 64 x 64 tile, two stages. An F32 tile is read from shared
// memory where ldmatrix would be: lanes 4g + q read words 40g + 2q, or 136q + g: different banks.
enum {
    CUT_TILE = 64,
    CUT_PITCH = MMA_K + 8,                // F32 [64][32]; BF16 as above
    CUT_PITCH_T = CUT_TILE + 4,           // F32 [32][64]
    CUT_PITCH_T16 = CUT_TILE + 8,         // BF16 [32][64]
    CUT_STAGE = CUT_TILE * CUT_PITCH * 4, // bytes, of any of the four
    CUT_SHARED = 4 * CUT_STAGE
};
static_assert((int)MMA_K * CUT_PITCH_T * 4 <= (int)CUT_STAGE, "a stage holds either tile");

// Two neighbours of a fragment as three words of bf16: t[0] + t[1] + t[2] == (f0, f1).
__device__ static inline void cut_pair(uint32_t t[3], float f0, float f1) {
#pragma unroll
    for (int p = 0; p < 3; p++) {
        uint32_t u0 = __float_as_uint(f0) & 0xffff0000u, u1 = __float_as_uint(f1) & 0xffff0000u;
        t[p] = u0 >> 16 | u1;
        f0 -= __uint_as_float(u0), f1 -= __uint_as_float(u1);
    }
}
// Elements (outer o, inner c) and (o, c + 1) of an F32 tile, cut.
template <bool down> __device__ static inline void cut_at(uint32_t t[3], const float *tile, int o, int c) {
    if (down) return cut_pair(t, tile[c * CUT_PITCH_T + o], tile[(c + 1) * CUT_PITCH_T + o]);
    float2 f = *(const float2 *)(tile + o * CUT_PITCH + c);
    cut_pair(t, f.x, f.y);
}

template <Layout layout>
__global__ void __launch_bounds__(128)
    matmul_cut_kernel(Mat y, Mat x, Mat w, Mat bias, int64_t inner, float alpha, float beta) {
    DYNAMIC_SHARED(shared);
    unsigned char *xs = shared, *ws = xs + 2 * CUT_STAGE;
    int i0 = (int)blockIdx.x * CUT_TILE, j0 = (int)blockIdx.y * CUT_TILE;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, wi = warp / 2 * 32, wj = warp % 2 * 32;
    int stages = (int)((inner + MMA_K - 1) / MMA_K), x_terms = x.type == F32 ? 3 : 1, w_terms = w.type == F32 ? 3 : 1;
    auto load = [&](int s) {
        unsigned char *xt = xs + s % 2 * CUT_STAGE, *wt = ws + s % 2 * CUT_STAGE;
        enum { XD = layout == TN, WD = layout != NT };
        if (s < stages) {
            int c0 = s * MMA_K;
            if (x_terms == 3) load_tile<float, XD, CUT_TILE, XD ? CUT_PITCH_T : CUT_PITCH, 128>((float *)xt, x, i0, c0);
            else load_tile<uint16_t, XD, CUT_TILE, XD ? CUT_PITCH_T16 : CUT_PITCH, 128>((uint16_t *)xt, x, i0, c0);
            if (w_terms == 3) load_tile<float, WD, CUT_TILE, WD ? CUT_PITCH_T : CUT_PITCH, 128>((float *)wt, w, j0, c0);
            else load_tile<uint16_t, WD, CUT_TILE, WD ? CUT_PITCH_T16 : CUT_PITCH, 128>((uint16_t *)wt, w, j0, c0);
        }
        cp_async_commit();
    };
    float acc[2][4][4] = {};
    load(0);
    for (int s = 0; s < stages; s++) {
        cp_async_wait<0>();
        __syncthreads(); // stage s written by every thread's copies, the other one read | read, and refilled, below
        load(s + 1);
        const unsigned char *xt = xs + s % 2 * CUT_STAGE, *wt = ws + s % 2 * CUT_STAGE;
        float part[2][4][4] = {};
        for (int c = 0; c < MMA_K; c += 16) {
            uint32_t a[3][2][4] = {}, b[3][2][4] = {}; // [term]
            const uint16_t *x16 = (const uint16_t *)xt, *w16 = (const uint16_t *)wt;
#pragma unroll
            for (int i = 0; i < 2; i++) {
                int o = wi + 16 * i;
                if (x_terms == 3)
#pragma unroll
                    for (int r = 0; r < 4; r++) {
                        uint32_t t[3];
                        cut_at<layout == TN>(t, (const float *)xt, o + lane / 4 + r % 2 * 8,
                                             c + lane % 4 * 2 + r / 2 * 8);
                        a[0][i][r] = t[0], a[1][i][r] = t[1], a[2][i][r] = t[2];
                    }
                else if (layout == TN)
                    ldmatrix_x4_trans(a[0][i],
                                      x16 + (c + lane % 8 + lane / 16 * 8) * CUT_PITCH_T16 + o + lane / 8 % 2 * 8);
                else ldmatrix_x4(a[0][i], x16 + (o + lane % 16) * CUT_PITCH + c + lane / 16 * 8);
                o = wj + 16 * i;
                if (w_terms == 3)
#pragma unroll
                    for (int r = 0; r < 4; r++) {
                        uint32_t t[3];
                        cut_at<layout != NT>(t, (const float *)wt, o + lane / 4 + r / 2 * 8,
                                             c + lane % 4 * 2 + r % 2 * 8);
                        b[0][i][r] = t[0], b[1][i][r] = t[1], b[2][i][r] = t[2];
                    }
                else if (layout == NT)
                    ldmatrix_x4(b[0][i], w16 + (o + lane % 8 + lane / 16 * 8) * CUT_PITCH + c + lane / 8 % 2 * 8);
                else ldmatrix_x4_trans(b[0][i], w16 + (c + lane % 16) * CUT_PITCH_T16 + o + lane / 16 * 8);
            }
#pragma unroll
            for (int order = 2; order >= 0; order--) // the smallest products first
#pragma unroll
                for (int p = 0; p <= order; p++) {
                    if (p >= x_terms || order - p >= w_terms) continue;
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        if (i0 + wi + 16 * i >= y.rows) continue;
#pragma unroll
                        for (int j = 0; j < 4; j++)
                            mma_m16n8k16_bf16(part[i][j], a[p][i], &b[order - p][j / 2][j % 2 * 2]);
                    }
                }
        }
#pragma unroll
        for (int f = 0; f < 32; f++) acc[f / 16][f / 4 % 4][f % 4] += part[f / 16][f / 4 % 4][f % 4];
    }
    bool pairs = rows_of_pairs(y);
#pragma unroll
    for (int f = 0; f < 16; f++) {
        int i = f / 8, j = f / 2 % 4, e = f % 2 * 2;
        put_pair(y, bias, i0 + wi + 16 * i + lane / 4 + e / 2 * 8, j0 + wj + 8 * j + lane % 4 * 2, &acc[i][j][e], alpha,
                 beta, pairs);
    }
}

// Tiles by the size of y: few rows (decoding) want many small blocks that each read a few columns' weights; many rows want
// tiles that read an element once for 128 products, as soon as there is one for every processor.
template <Layout layout, int ROWS, int COLS, int DOWN, int ACROSS, int STAGES>
static void run_mma(Mat y, Mat x, Mat w, Mat bias, int64_t inner, float alpha, float beta) {
    typedef MmaTile<layout, ROWS, COLS, DOWN, ACROSS, STAGES> Tile;
    auto kernel = matmul_mma_kernel<layout, ROWS, COLS, DOWN, ACROSS, STAGES>;
    static bool asked;
    if (!asked && (int)Tile::SHARED > 48 * 1024)
        device_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Tile::SHARED),
                     "asking for shared memory");
    asked = true;
    RUN(kernel, dim3(blocks(y.rows, ROWS), blocks(y.cols, COLS)), Tile::THREADS, Tile::SHARED, y, x, w, bias, inner,
        alpha, beta);
}
template <Layout layout>
static void tensor_matmul(Mat y, Mat x, Mat w, Mat bias, int64_t inner, float alpha, float beta) {
    if (x.type == F32 || w.type == F32)
        RUN(matmul_cut_kernel<layout>, dim3(blocks(y.rows, CUT_TILE), blocks(y.cols, CUT_TILE)), 128, CUT_SHARED, y, x,
            w, bias, inner, alpha, beta);
    else if (y.rows <= 16) run_mma<layout, 16, 32, 1, 2, 6>(y, x, w, bias, inner, alpha, beta);
    else if ((int64_t)blocks(y.rows, 128) * blocks(y.cols, 128) < processors)
        run_mma<layout, 64, 64, 2, 2, 3>(y, x, w, bias, inner, alpha, beta);
    else run_mma<layout, 128, 128, 2, 4, 3>(y, x, w, bias, inner, alpha, beta);
}
// Whether cp.async can read rows of m, 16 bytes at a time. (Of a row's last 16 it may ask for fewer.)
static bool tensor_reads(Mat m) {
    return m.rows > 0 && m.rows < 1 << 30 && m.cols < 1 << 30 && m.stride * (int64_t)type_size(m.type) % 16 == 0 &&
           (uintptr_t)m.p % 16 == 0;
}

// matmul, cuBLASLt rung, the default where the build has it: x, w and y in fp32, or x and w BF16 and y either.
//
// cuBLASLt is column-major: to it our rows of `stride` are columns, so it is asked for y^T = (w or w^T) (x or x^T).
// A row must have the same bits alone and in a batch, so the algorithm must not depend on how many rows there are. It is
// chosen once for everything else (a Key), by the heuristic at ROWS_NOMINAL rows, among those that sum an element in one
// place (no split-K, no reduction) and that AlgoCheck accepts for few rows and for many; then it is used for any number.
//   - Documented: an algorithm with its configuration is what runs (cublasLtMatmul), and the same call gives the same bits
//     on the same model of GPU with the same version of the library.
//   - Not documented, to be checked on each new GPU and version: that the kernel behind an algorithm sums an element in the
//     same order however many rows there are (test_kernels, a_row_alone_and_in_a_batch_has_the_same_bits).
// The first one accepted is taken, untimed: timing would choose others from one start of the program to the next.
// fp32 is CUBLAS_COMPUTE_32F, which does not round inputs to TF32. The bias is added before rounding (EPILOGUE_BIAS), but
// its type must be y's: else the other rungs do it, or add_bias after. GELU stays a kernel of ours: the epilogue's is
// the tanh form, the model's is erf.
#ifdef SURGR1_CUBLAS
enum { CUBLAS_WORKSPACE = 8 << 20, CUBLAS_CANDIDATES = 16, ROWS_NOMINAL = 2048, CUBLAS_ALIGNMENT = 16 };
static cublasLtHandle_t cublas;
static void *cublas_workspace; // for the life of the program; the stream's order keeps calls apart

static void cublas_check(cublasStatus_t status, const char *what) {
    if (status == CUBLAS_STATUS_SUCCESS) return;
    Err e = {};
    Where nowhere = {};
    err_set(&e, "E-DV-02", nowhere, "expected cuBLASLt to succeed in %s; found %s; do: run with --matmul tensor", what,
            cublasLtGetStatusString(status));
    exit(err_report(&e));
}
static void cublas_open(void) {
    if (cublas) return;
    cublas_check(cublasLtCreate(&cublas), "making a handle");
    device_check(cudaMalloc(&cublas_workspace, CUBLAS_WORKSPACE), "reserving 8 MiB for cuBLASLt");
}

typedef struct CublasKey {
    int64_t out, inner; // columns of y; columns of x, which NT and NN sum over and TN makes rows of y
    int64_t x_pitch, w_pitch, y_pitch;
    int32_t layout, type, y_type, bias, add; // add: beta is not 0
    int32_t nothing;                         // so that a Key has no holes and memcmp compares it
} CublasKey;
typedef struct CublasPlan {
    CublasKey key;
    bool usable;
    cublasLtMatmulAlgo_t algo;
} CublasPlan;
typedef struct CublasCall { // what cuBLASLt is told of one product: D[m, n] = A B (+ C), column-major
    cublasLtMatmulDescOpaque_t desc;
    cublasLtMatrixLayoutOpaque_t a, b, d;
} CublasCall;

// n: rows of x. In NT and NN those are the columns of D, in TN they are summed over; key.out and key.inner are the others.
static void cublas_describe(CublasCall *c, const CublasKey *k, int64_t n, const void *bias) {
    const char *what = "describing a product";
    cudaDataType_t type = k->type == BF16 ? CUDA_R_16BF : CUDA_R_32F,
                   y_type = k->y_type == BF16 ? CUDA_R_16BF : CUDA_R_32F;
    cublasOperation_t a = k->layout == NT ? CUBLAS_OP_T : CUBLAS_OP_N, b = k->layout == TN ? CUBLAS_OP_T : CUBLAS_OP_N;
    int64_t a_rows = k->layout == NT ? k->inner : k->out, a_cols = k->layout == NT   ? k->out
                                                                   : k->layout == NN ? k->inner
                                                                                     : n;
    cublas_check(cublasLtMatmulDescInit(&c->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F), what);
    cublas_check(cublasLtMatmulDescSetAttribute(&c->desc, CUBLASLT_MATMUL_DESC_TRANSA, &a, sizeof a), what);
    cublas_check(cublasLtMatmulDescSetAttribute(&c->desc, CUBLASLT_MATMUL_DESC_TRANSB, &b, sizeof b), what);
    if (k->bias) {
        cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
        cublas_check(
            cublasLtMatmulDescSetAttribute(&c->desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue), what);
        cublas_check(
            cublasLtMatmulDescSetAttribute(&c->desc, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &y_type, sizeof y_type),
            what);
        cublas_check(cublasLtMatmulDescSetAttribute(&c->desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias),
                     what);
    }
    cublas_check(cublasLtMatrixLayoutInit(&c->a, type, (uint64_t)a_rows, (uint64_t)a_cols, k->w_pitch), what);
    cublas_check(cublasLtMatrixLayoutInit(&c->b, type, (uint64_t)k->inner, (uint64_t)n, k->x_pitch), what);
    cublas_check(cublasLtMatrixLayoutInit(&c->d, y_type, (uint64_t)k->out, (uint64_t)(k->layout == TN ? k->inner : n),
                                          k->y_pitch),
                 what);
}

static bool cublas_accepts(const cublasLtMatmulHeuristicResult_t *candidate, const CublasKey *key) {
    static const int64_t rows[] = {1, 7, 64, 1000, ROWS_NOMINAL, 1 << 16};
    int32_t splits = 1;
    uint32_t reduction = CUBLASLT_REDUCTION_SCHEME_NONE;
    size_t written;
    if (candidate->state != CUBLAS_STATUS_SUCCESS ||
        cublasLtMatmulAlgoConfigGetAttribute(&candidate->algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &splits, sizeof splits,
                                             &written) != CUBLAS_STATUS_SUCCESS ||
        cublasLtMatmulAlgoConfigGetAttribute(&candidate->algo, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, &reduction,
                                             sizeof reduction, &written) != CUBLAS_STATUS_SUCCESS ||
        splits > 1 || reduction != CUBLASLT_REDUCTION_SCHEME_NONE)
        return false;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        CublasCall c;
        cublasLtMatmulHeuristicResult_t result = {};
        cublas_describe(&c, key, rows[i], cublas_workspace);
        if (cublasLtMatmulAlgoCheck(cublas, &c.desc, &c.a, &c.b, &c.d, &c.d, &candidate->algo, &result) !=
                CUBLAS_STATUS_SUCCESS ||
            result.workspaceSize > CUBLAS_WORKSPACE)
            return false;
    }
    return true;
}
static void cublas_choose(CublasPlan *plan) {
    const char *what = "choosing an algorithm";
    CublasCall c;
    cublas_describe(&c, &plan->key, ROWS_NOMINAL,
                    cublas_workspace); // some pointer: only whether there is a bias counts
    cublasLtMatmulPreferenceOpaque_t p;
    size_t workspace = CUBLAS_WORKSPACE;
    uint32_t reduction = CUBLASLT_REDUCTION_SCHEME_NONE, alignment = CUBLAS_ALIGNMENT;
    cublas_check(cublasLtMatmulPreferenceInit(&p), what);
    cublas_check(cublasLtMatmulPreferenceSetAttribute(&p, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace,
                                                      sizeof workspace),
                 what);
    cublas_check(cublasLtMatmulPreferenceSetAttribute(&p, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reduction,
                                                      sizeof reduction),
                 what);
    static const cublasLtMatmulPreferenceAttributes_t alignments[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    for (int i = 0; i < 4; i++)
        cublas_check(cublasLtMatmulPreferenceSetAttribute(&p, alignments[i], &alignment, sizeof alignment), what);
    cublasLtMatmulHeuristicResult_t candidates[CUBLAS_CANDIDATES] = {};
    int n = 0;
    if (cublasLtMatmulAlgoGetHeuristic(cublas, &c.desc, &c.a, &c.b, &c.d, &c.d, &p, CUBLAS_CANDIDATES, candidates,
                                       &n) != CUBLAS_STATUS_SUCCESS)
        n = 0; // it has nothing for this product
    for (int i = 0; i < n && !plan->usable; i++)
        if ((plan->usable = cublas_accepts(&candidates[i], &plan->key))) plan->algo = candidates[i].algo;
}
static const CublasPlan *cublas_plan(const CublasKey *key) {
    static CublasPlan *plans;
    static int64_t n, room;
    for (int64_t i = 0; i < n; i++)
        if (!memcmp(&plans[i].key, key, sizeof *key)) return &plans[i];
    if (n == room)
        plans = (CublasPlan *)grow_or_die(plans, (size_t)(room = 2 * room + 16), sizeof *plans, "plans of cuBLASLt");
    CublasPlan *p = &plans[n++];
    *p = CublasPlan();
    p->key = *key;
    cublas_choose(p);
    return p;
}

// False where this rung does not apply, which depends on types, pitches and alignment only.
static bool cublas_product(Mat y, Mat x, Mat w, Mat bias, Layout layout, float alpha, float beta) {
    bool types = x.type == w.type && (x.type == BF16 || y.type == F32);
    if (!types || !tensor_reads(x) || !tensor_reads(w) || !tensor_reads(y)) return false;
    if (layout == NT && x.zeros && w.zeros) { // a padded inner dimension is summed over its zeros too, which is exact
        int64_t wide = (x.cols + CUDA_PAD - 1) / CUDA_PAD * CUDA_PAD;
        if (x.cols + x.zeros >= wide && w.cols + w.zeros >= wide) x.cols = w.cols = wide;
    }
    CublasKey key = {};
    key.out = y.cols, key.inner = layout == NT ? x.cols : layout == NN ? x.cols : y.rows;
    key.x_pitch = x.stride, key.w_pitch = w.stride, key.y_pitch = y.stride;
    key.layout = layout, key.type = x.type, key.y_type = y.type, key.add = beta != 0;
    key.bias = bias.p && bias.type == y.type && (uintptr_t)bias.p % CUBLAS_ALIGNMENT == 0;
    const CublasPlan *plan = cublas_plan(&key);
    if (!plan->usable) return false;
    CublasCall c;
    cublas_describe(&c, &key, x.rows, bias.p);
    cublas_check(cublasLtMatmul(cublas, &c.desc, &alpha, w.p, &c.a, x.p, &c.b, &beta, y.p, &c.d, y.p, &c.d, &plan->algo,
                                cublas_workspace, CUBLAS_WORKSPACE, stream),
                 "a product");
    if (bias.p && !key.bias) cuda_add_bias(y, bias);
    return true;
}
extern "C" bool cuda_has_cublas(void) { return true; }
#else
static void cublas_open(void) {}
static bool cublas_product(Mat, Mat, Mat, Mat, Layout, float, float) { return false; }
extern "C" bool cuda_has_cublas(void) { return false; }
#endif

static void cuda_product(Mat y, Mat x, Mat w, Mat bias, Layout layout, float alpha, float beta) {
    int64_t inner = layout == TN ? x.rows : x.cols;
    bool tensor = rungs.matmul != MATMUL_NAIVE && inner > 0 && tensor_reads(x) && tensor_reads(w);
    if (rungs.matmul != MATMUL_NAIVE && rungs.matmul != MATMUL_TENSOR && inner > 0 &&
        cublas_product(y, x, w, bias, layout, alpha, beta))
        return;
    if (tensor && layout == NT) tensor_matmul<NT>(y, x, w, bias, inner, alpha, beta);
    else if (tensor && layout == NN) tensor_matmul<NN>(y, x, w, bias, inner, alpha, beta);
    else if (tensor) tensor_matmul<TN>(y, x, w, bias, inner, alpha, beta);
    else
        RUN(matmul_tiled_kernel, dim3(blocks(y.rows, TILE), blocks(y.cols, TILE)), 256, TILED_SHARED, y, x, w, bias,
            layout, inner, alpha, beta);
}
static void cuda_matmul(Mat y, Mat x, Mat w, Layout layout, float alpha, float beta) {
    cuda_product(y, x, w, mat_none(), layout, alpha, beta);
}
static void cuda_matmul_bias(Mat y, Mat x, Mat w, Mat b) { cuda_product(y, x, w, b, NT, 1, 0); }

// bias_backward: db[0,j] += sum_i dy[i,j].
__global__ void __launch_bounds__(COLUMN_WARPS * 32) bias_backward_kernel(Mat db, Mat dy) {
    DYNAMIC_SHARED(shared);
    add_column_sums(db, dy.rows, (float *)shared, [&](int64_t i, int64_t j) { return get(dy, i, j); });
}
static void cuda_bias_backward(Mat db, Mat dy) {
    RUN(bias_backward_kernel, blocks(dy.cols, 32), COLUMN_WARPS * 32, COLUMN_SHARED, db, dy);
}

// add: y = a + b; y may be a or b: each element is read and written by one thread. Row kernel.
__global__ void add_kernel(Mat y, Mat a, Mat b) {
    int64_t i = blockIdx.x;
    for (int64_t j = threadIdx.x; j < y.cols; j += blockDim.x) put(y, i, j, get(a, i, j) + get(b, i, j));
}
static void cuda_add(Mat y, Mat a, Mat b) { RUN(add_kernel, blocks(y.rows, 1), row_threads(y.cols), 0, y, a, b); }

// dropout: y = 0 where the random word of (row key, site, j) is below p 2^32, else x / (1 - p). One Philox call gives
// the words of four columns, which are one thread's; so y may be x. `limit` is p 2^32 rounded up: for whole numbers the
// same comparison. Row kernel over groups of four.
__global__ void dropout_kernel(Mat y, Mat x, Mat keys, uint32_t limit, float keep, uint64_t seed, uint32_t site) {
    int64_t i = blockIdx.x;
    const uint32_t *key = (const uint32_t *)mat_at(keys, i, 0);
    for (int64_t g = threadIdx.x; 4 * g < y.cols; g += blockDim.x) {
        Random4 r = philox(seed, RANDOM_DROPOUT | site << 8, key[0], key[1], (uint32_t)g);
        for (int e = 0; e < 4 && 4 * g + e < y.cols; e++)
            put(y, i, 4 * g + e, r.v[e] < limit ? 0 : get(x, i, 4 * g + e) * keep);
    }
}
static void cuda_dropout(Mat y, Mat x, Mat keys, float p, uint64_t seed, uint32_t site) {
    uint32_t limit = (uint32_t)ceil((double)p * 4294967296.0); // p < 1 in float: at most 2^32 - 256
    float keep = (float)(1 / (1 - (double)p));
    RUN(dropout_kernel, blocks(y.rows, 1), row_threads((y.cols + 3) / 4), 0, y, x, keys, limit, keep, seed, site);
}

// -------------------------------------------------------------------------------------------------------------- norm

// rmsnorm: rstd = 1/sqrt(mean x^2 + eps); y = w x rstd. With r present, first sum = x + r in sum's type, and the norm is of
// sum; a thread reads back only what it wrote itself. Row kernel.
__global__ void rmsnorm_kernel(Mat y, Mat rstd, Mat sum, Mat x, Mat r, Mat w, float eps) {
    DYNAMIC_SHARED(shared);
    int64_t i = blockIdx.x;
    float squares = 0;
    for (int64_t j = threadIdx.x; j < x.cols; j += blockDim.x) {
        if (r.p) put(sum, i, j, get(x, i, j) + get(r, i, j));
        float v = get(sum, i, j);
        squares += v * v;
    }
    float scale = 1 / sqrtf(block_reduce(squares, (float *)shared, Sum()) / (float)x.cols + eps);
    for (int64_t j = threadIdx.x; j < x.cols; j += blockDim.x) put(y, i, j, get(w, 0, j) * (get(sum, i, j) * scale));
    if (rstd.p && threadIdx.x == 0) put(rstd, i, 0, scale);
}
static void cuda_add_rmsnorm_forward(Mat y, Mat rstd, Mat sum, Mat x, Mat r, Mat w, float eps) {
    RUN(rmsnorm_kernel, blocks(x.rows, 1), row_threads(x.cols), SCRATCH_BYTES, y, rstd, sum, x, r, w, eps);
}
static void cuda_rmsnorm_forward(Mat y, Mat rstd, Mat x, Mat w, float eps) {
    cuda_add_rmsnorm_forward(y, rstd, x, x, mat_none(), w, eps);
}

// rmsnorm_backward_add, with n = x rstd and g = w dy: dx += rstd (g - n mean(g n)). Row kernel.
__global__ void rmsnorm_dx_kernel(Mat dx, Mat dy, Mat x, Mat w, Mat rstd) {
    DYNAMIC_SHARED(shared);
    int64_t i = blockIdx.x;
    float scale = get(rstd, i, 0), mean = 0;
    for (int64_t j = threadIdx.x; j < x.cols; j += blockDim.x)
        mean += get(w, 0, j) * get(dy, i, j) * (get(x, i, j) * scale);
    mean = block_reduce(mean, (float *)shared, Sum()) / (float)x.cols;
    for (int64_t j = threadIdx.x; j < x.cols; j += blockDim.x)
        put(dx, i, j, get(dx, i, j) + scale * (get(w, 0, j) * get(dy, i, j) - get(x, i, j) * scale * mean));
}
// and dw += sum_i dy[i,:] n[i,:].
__global__ void __launch_bounds__(COLUMN_WARPS * 32) rmsnorm_dw_kernel(Mat dw, Mat dy, Mat x, Mat rstd) {
    DYNAMIC_SHARED(shared);
    add_column_sums(dw, x.rows, (float *)shared,
                    [&](int64_t i, int64_t j) { return get(dy, i, j) * (get(x, i, j) * get(rstd, i, 0)); });
}
static void cuda_rmsnorm_backward_add(Mat dx, Mat dw, Mat dy, Mat x, Mat w, Mat rstd) {
    RUN(rmsnorm_dx_kernel, blocks(x.rows, 1), row_threads(x.cols), SCRATCH_BYTES, dx, dy, x, w, rstd);
    if (dw.p) RUN(rmsnorm_dw_kernel, blocks(x.cols, 32), COLUMN_WARPS * 32, COLUMN_SHARED, dw, dy, x, rstd);
}

// ---------------------------------------------------------------------------------------------------------- position

// rope: with c, s from angles[n] and a = x[i], b = x[i + half]: x[i] = a c - sign b s, x[i + half] = b c + sign a s.
// Row kernel over heads * half pairs; a pair is read and written by one thread.
__global__ void rope_kernel(Mat x, Mat angles, int pairs, int half, float sign) {
    int64_t n = blockIdx.x;
    for (int e = threadIdx.x; e < pairs; e += blockDim.x) {
        int i = e % half, at = e / half * 2 * half + i;
        float c = get(angles, n, i), s = sign * get(angles, n, half + i), a = get(x, n, at), b = get(x, n, at + half);
        put(x, n, at, a * c - b * s);
        put(x, n, at + half, b * c + a * s);
    }
}
static void cuda_rope(Mat x, Mat angles, int64_t heads, int64_t dim, float sign) {
    int half = (int)dim / 2, pairs = (int)heads * half;
    RUN(rope_kernel, blocks(x.rows, 1), row_threads(pairs), 0, x, angles, pairs, half, sign);
}

// --------------------------------------------------------------------------------------------------------- attention

// A query's keys are numbered t = 0, 1, ...: the prefix rows of its span, then its own rows from span.first.
__device__ static inline int64_t key_row(const Span &s, int64_t t) {
    int64_t prefix = s.prefix_last - s.prefix_first;
    return t < prefix ? s.prefix_first + t : s.first + t - prefix;
}
enum { MAX_DIM = 512, QUERIES = 8, KEYS = 32, DECODE_HEADS = 8, DECODE_KEYS = 256 };

#define LOG2_E 1.44269504f
#define LN_2   0.69314718f

// What the tensor-core rungs share. q, k, v, o and their gradients are BF16 with rows on 16-byte addresses, heads have D
// columns or fewer, which are filled up with zeros. A tile of rows of one head lies in shared memory as [rows][D + 8]:
// rows 2D + 16 bytes apart, an odd number of 16-byte pieces, so the eight rows of one ldmatrix fall into different banks.
static bool head_rows(Mat m, int64_t dim) { // a head's rows can be copied by 16 bytes
    return m.type == BF16 && dim % 16 == 0 && m.stride % 8 == 0 && (uintptr_t)m.p % 16 == 0;
}
// Begins to copy `rows` rows of the head at column `at`: row i is row row_of(i) of m, or zeros where that is negative.
template <int D, int THREADS, typename F>
__device__ static inline void load_head_rows(uint16_t *tile, const Mat &m, int64_t at, int dim, int rows, F row_of) {
    for (int e = threadIdx.x; e < rows * (D / 8); e += THREADS) {
        int i = e / (D / 8), c = e % (D / 8) * 8;
        int64_t row = row_of(i);
        bool inside = row >= 0 && c < dim;
        cp_async16(tile + i * (D + 8) + c, inside ? (const uint16_t *)m.p + row * m.stride + at + c : m.p,
                   inside ? 16 : 0);
    }
}
// Fragment a, 16 rows by D, straight from m: rows `upper` and `lower` are this lane's two of the 16 (lane / 4 and 8 more),
// zeros where negative.
template <int D>
__device__ static inline void load_a_rows(uint32_t a[D / 16][4], const Mat &m, int64_t at, int dim, int64_t upper,
                                          int64_t lower) {
#pragma unroll
    for (int n = 0; n < D / 4; n++) {
        int64_t row = n % 2 ? lower : upper;
        int c = n / 4 * 16 + n / 2 % 2 * 8 + (int)threadIdx.x % 4 * 2;
        const uint16_t *p = (const uint16_t *)m.p + row * m.stride + at + c;
        a[n / 4][n % 4] = row >= 0 && c < dim ? *(const uint32_t *)p : 0;
    }
}
// Fragments b of 16 columns (two of 8) by 16 inner elements: from 16 rows of a tile that are the columns, or with _trans
// from 16 rows that are the inner elements. `tile` points to the first element.
template <int D> __device__ static inline void load_b(uint32_t b[4], const uint16_t *tile) {
    int lane = threadIdx.x % 32;
    ldmatrix_x4(b, tile + (lane % 8 + lane / 16 * 8) * (D + 8) + lane / 8 % 2 * 8);
}
template <int D> __device__ static inline void load_b_trans(uint32_t b[4], const uint16_t *tile) {
    int lane = threadIdx.x % 32;
    ldmatrix_x4_trans(b, tile + lane % 16 * (D + 8) + lane / 16 * 8);
}

// attention_forward: o = sum_t exp(s_t - lse) v_t with s_t = scale q.k_t, in one pass over the keys (online softmax: Milakov
// and Gimelshein 2018; Rabe and Staats 2021). grid (spans * tiles of queries, heads), one warp per query, all warps
// share tiles of 32 keys, then of their 32 values. In the scores a lane is a key, in the sums it is every 32nd column.
// Tiles start at key 0 whatever the query's place in its span, and hidden keys add nothing.
static size_t attention_shared(int64_t dim) { // queries, a tile of keys or values, weights
    return (size_t)(QUERIES * dim + KEYS * (dim + 1) + QUERIES * KEYS) * sizeof(float);
}
__global__ void __launch_bounds__(QUERIES * 32, 2)
    attention_forward_kernel(Mat o, Mat lse, Mat q, Mat k, Mat v, Mat spans, int tiles, int group, int dim,
                             float scale) {
    DYNAMIC_SHARED(shared);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, pitch = dim + 1; // odd for even dim: no bank conflicts
    float *query = (float *)shared + warp * dim, *tile = (float *)shared + QUERIES * dim;
    float *weight = tile + KEYS * pitch + warp * KEYS;
    Span s = *(const Span *)mat_at(spans, (int)blockIdx.x / tiles, 0);
    int head = (int)blockIdx.y, at = head * dim, kv = head / group * dim;
    int64_t prefix = s.prefix_last - s.prefix_first;
    int64_t first = s.first + (int)blockIdx.x % tiles * QUERIES, row = first + warp;
    int64_t last = first + QUERIES < s.last ? first + QUERIES : s.last; // of this block's queries
    int64_t keys = first >= s.last ? 0 : prefix + (s.causal ? last : s.last) - s.first;
    int64_t visible = row >= s.last ? 0 : prefix + (s.causal ? row + 1 : s.last) - s.first; // itself at least
    if (row < s.last)
        for (int c = lane; c < dim; c += 32) query[c] = get(q, row, at + c);
    auto load = [&](const Mat &m, int64_t t0) {
        for (int t = warp; t < KEYS; t += QUERIES)
            for (int c = lane; c < dim; c += 32)
                tile[t * pitch + c] = t0 + t < keys ? get(m, key_row(s, t0 + t), kv + c) : 0;
    };
    float largest = -INFINITY, sum = 0, acc[MAX_DIM / 32] = {};
    for (int64_t t0 = 0; t0 < keys; t0 += KEYS) {
        load(k, t0);
        __syncthreads(); // keys written above (and queries, at first) | read below
        float score = -INFINITY;
        if (t0 + lane < visible) {
            score = 0;
            for (int c = 0; c < dim; c++) score += query[c] * tile[lane * pitch + c];
            score *= scale;
        }
        float larger = fmaxf(largest, warp_reduce(score, Max()));
        float p = t0 + lane < visible ? expf(score - larger) : 0;
        float fade = larger == -INFINITY ? 1 : expf(largest - larger);
        sum = sum * fade + warp_reduce(p, Sum()), largest = larger;
        weight[lane] = p;
        __syncthreads(); // keys read above | overwritten by the values; weights written above | read below
        load(v, t0);
        __syncthreads(); // values written above | read below
#pragma unroll
        for (int n = 0; n < MAX_DIM / 32; n++) acc[n] *= fade;
        // A hidden value is not even multiplied by 0: it may be NaN.
        int here = visible - t0 < KEYS ? (int)(visible - t0) : KEYS;
        for (int t = 0; t < here; t++) {
            float p_t = weight[t];
#pragma unroll
            for (int n = 0; n < MAX_DIM / 32; n++)
                if (lane + 32 * n < dim) acc[n] += p_t * tile[t * pitch + lane + 32 * n];
        }
        __syncthreads(); // values and weights read above | overwritten in the next round
    }
    if (row < s.last) {
#pragma unroll
        for (int n = 0; n < MAX_DIM / 32; n++)
            if (lane + 32 * n < dim) put(o, row, at + lane + 32 * n, acc[n] / sum);
        if (lse.p && lane == 0) put(lse, row, head, largest + logf(sum));
    }
}
// attention_forward, tensor-core rung (FlashAttention-2: Dao 2023): a warp owns 16 queries and keeps them, their scores and
// their sums as fragments in registers; tiles of 64 keys and values come by cp.async into two stages and are shared by
// the block's warps. scores = q k^T, then p = 2^(scores scale log2(e) - largest), rounded to bf16, and o += p v: fragment
// c of scores has the shape of fragment a. The sum of p is of the unrounded ones; with the rounding of o that makes two
// roundings to bf16 between this and the reference, while lse has none.
// grid (spans * tiles of queries, heads): blocks that follow each other read the same keys, through L2. The last queries
// of a span come first, as with `causal` they have the most keys. Tiles start at key 0 of the span, and a tile that shows
// a row nothing leaves its bits alone, so they depend on its keys only.
enum { FLASH_KEYS = 64 };
template <int D> static constexpr int flash_shared(void) { return 4 * FLASH_KEYS * (D + 8) * 2; } // k and v, two stages

// acc[16,D] += p[16,64] value[64,D]. The value of a key that a row does not see may be NaN, and 0 * NaN is NaN: FINITE turns
// what is not finite into 0 on its way into the product, and returns whether there was any.
template <int D, bool FINITE>
__device__ static inline bool add_values(float acc[D / 8][4], const float p[FLASH_KEYS / 8][4], const uint16_t *value) {
    bool found = false;
#pragma unroll
    for (int j = 0; j < FLASH_KEYS / 16; j++) {
        uint32_t a[4], b[4];
#pragma unroll
        for (int e = 0; e < 4; e++) a[e] = bf16_pair(p[2 * j + e / 2][e % 2 * 2], p[2 * j + e / 2][e % 2 * 2 + 1]);
#pragma unroll
        for (int n = 0; n < D / 16; n++) {
            load_b_trans<D>(b, value + 16 * j * (D + 8) + 16 * n);
#pragma unroll
            for (int i = 0; i < 4 && FINITE; i++) {
                if ((b[i] & 0x7f80u) == 0x7f80u) b[i] &= 0xffff0000u, found = true;
                if ((b[i] & 0x7f800000u) == 0x7f800000u) b[i] &= 0xffffu, found = true;
            }
            mma_m16n8k16_bf16(acc[2 * n], a, b), mma_m16n8k16_bf16(acc[2 * n + 1], a, b + 2);
        }
    }
    return found;
}

template <int D, int THREADS>
__global__ void __launch_bounds__(THREADS)
    attention_flash_kernel(Mat o, Mat lse, Mat q, Mat k, Mat v, Mat spans, int tiles, int group, int dim, float scale) {
    DYNAMIC_SHARED(shared);
    constexpr int QUERIES_HERE = THREADS / 2, TILE_SIZE = FLASH_KEYS * (D + 8);
    uint16_t *stages = (uint16_t *)shared; // 2 of a tile of keys and a tile of values
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    Span s = *(const Span *)mat_at(spans, (int)blockIdx.x / tiles, 0);
    int head = (int)blockIdx.y, at = head * dim, kv = head / group * dim, prefix = s.prefix_last - s.prefix_first;
    int first = s.first + (tiles - 1 - (int)blockIdx.x % tiles) * QUERIES_HERE, warp_first = first + 16 * warp;
    int last = first + QUERIES_HERE < s.last ? first + QUERIES_HERE : s.last; // of this block's queries
    int keys = first >= s.last ? 0 : prefix + (s.causal ? last : s.last) - s.first;
    auto load = [&](int t0, int stage) {
        auto row_of = [&](int i) { return t0 + i < keys ? key_row(s, t0 + i) : -1; };
        uint16_t *tile = stages + stage * 2 * TILE_SIZE;
        load_head_rows<D, THREADS>(tile, k, kv, dim, FLASH_KEYS, row_of);
        load_head_rows<D, THREADS>(tile + TILE_SIZE, v, kv, dim, FLASH_KEYS, row_of);
        cp_async_commit();
    };
    if (keys == 0) return; // the whole block
    load(0, 0);

    // A lane has two of its warp's queries: row lane / 4 of the 16 (elements 0 and 1 of a fragment c) and 8 further (2, 3).
    int row[2], visible[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        row[r] = warp_first + lane / 4 + 8 * r;
        if (row[r] >= s.last) row[r] = -1;
        visible[r] = s.causal && row[r] >= 0 ? prefix + row[r] + 1 - s.first : keys; // itself at least
    }
    // What any of the warp's queries sees, and what they all see.
    int warp_keys = warp_first >= s.last                 ? 0
                    : s.causal && warp_first + 16 < last ? prefix + warp_first + 16 - s.first
                                                         : keys;
    int open_keys = s.causal ? prefix + warp_first + 1 - s.first : keys;
    uint32_t query[D / 16][4];
    load_a_rows<D>(query, q, at, dim, row[0], row[1]);

    float acc[D / 8][4] = {}, largest[2] = {-INFINITY, -INFINITY}, sum[2] = {}, base2 = scale * LOG2_E;
    int stage = 0;
    for (int t0 = 0; t0 < keys; t0 += FLASH_KEYS, stage ^= 1) {
        cp_async_wait<0>();
        __syncthreads(); // this stage filled, the other one read in the last round | read and refilled below
        if (t0 + FLASH_KEYS < keys) load(t0 + FLASH_KEYS, stage ^ 1);
        if (t0 >= warp_keys) continue; // the whole warp
        const uint16_t *key = stages + stage * 2 * TILE_SIZE, *value = key + TILE_SIZE;
        bool hides = t0 + FLASH_KEYS > open_keys; // something, from some row
        float p[FLASH_KEYS / 8][4] = {}, fade[2]; // scores, then probabilities
#pragma unroll
        for (int n = 0; n < D / 16; n++)
#pragma unroll
            for (int j = 0; j < FLASH_KEYS / 16; j++) {
                uint32_t b[4];
                load_b<D>(b, key + 16 * j * (D + 8) + 16 * n);
                mma_m16n8k16_bf16(p[2 * j], query[n], b), mma_m16n8k16_bf16(p[2 * j + 1], query[n], b + 2);
            }
        if (hides)
#pragma unroll
            for (int f = 0; f < FLASH_KEYS / 2; f++) // selected: a hidden score may be NaN
                if (t0 + f / 4 * 8 + lane % 4 * 2 + f % 2 >= visible[f % 4 / 2]) p[f / 4][f % 4] = -INFINITY;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float larger = -INFINITY, part = 0;
#pragma unroll
            for (int f = 0; f < FLASH_KEYS / 4; f++) larger = fmaxf(larger, p[f / 2][2 * r + f % 2]);
            larger = fmaxf(larger, __shfl_xor_sync(0xffffffffu, larger, 1)); // four lanes have a row between them
            larger = fmaxf(larger, __shfl_xor_sync(0xffffffffu, larger, 2));
            larger = fmaxf(largest[r], larger * base2); // scale > 0
            fade[r] = exp2_approx(largest[r] - larger), largest[r] = larger;
#pragma unroll
            for (int f = 0; f < FLASH_KEYS / 4; f++) {
                float *p_t = &p[f / 2][2 * r + f % 2];
                *p_t = exp2_approx(fmaf(*p_t, base2, -larger)), part += *p_t;
            }
            sum[r] = sum[r] * fade[r] + part; // of this lane's keys
        }
#pragma unroll
        for (int f = 0; f < D / 2; f++) acc[f / 4][f % 4] *= fade[f % 4 / 2];
        bool found = hides ? add_values<D, true>(acc, p, value) : add_values<D, false>(acc, p, value);
        if (__any_sync(0xffffffffu, found)) // rows that see such a value get it after all
#pragma unroll 1
            for (int t = 0; t < FLASH_KEYS; t++)
#pragma unroll
                for (int f = 0; f < D / 2; f++) {
                    float value_t = bf16_to_f32(value[t * (D + 8) + f / 4 * 8 + lane % 4 * 2 + f % 2]);
                    if (t0 + t < visible[f % 4 / 2] && !(fabsf(value_t) < INFINITY)) acc[f / 4][f % 4] += value_t;
                }
    }
    // Through shared memory, so that rows are written by 16 bytes: into the stage that nobody has read since the last
    // barrier, each warp its own 16 rows.
    uint16_t *out = stages + stage * 2 * TILE_SIZE + warp * 16 * (D + 8);
#pragma unroll
    for (int r = 0; r < 2; r++) {
        sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 1);
        sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 2);
        if (lse.p && row[r] >= 0 && lane % 4 == 0) put(lse, row[r], head, (largest[r] + log2f(sum[r])) * LN_2);
        float share = 1 / sum[r];
#pragma unroll
        for (int n = 0; n < D / 8; n++)
            *(uint32_t *)(out + (lane / 4 + 8 * r) * (D + 8) + 8 * n + lane % 4 * 2) =
                bf16_pair(acc[n][2 * r] * share, acc[n][2 * r + 1] * share);
    }
    __syncwarp(); // rows written above | read by the warp's other lanes below
    for (int e = lane; e < 16 * (D / 8); e += 32) {
        int i = e / (D / 8), c = e % (D / 8) * 8;
        if (warp_first + i < s.last && c < dim)
            *(uint4 *)mat_at(o, warp_first + i, at + c) = *(const uint4 *)(out + i * (D + 8) + c);
    }
}
static bool flash_fits(Mat o, Mat q, Mat k, Mat v, int64_t dim, float scale) {
    return !rungs.naive && dim <= 128 && scale > 0 && head_rows(o, dim) && head_rows(q, dim) && head_rows(k, dim) &&
           head_rows(v, dim);
}
static void cuda_attention_forward(Mat o, Mat lse, Mat q, Mat k, Mat v, Spans spans, int64_t heads, int64_t kv_heads,
                                   int64_t dim, float scale) {
    if (spans.longest == 0) return; // only empty spans
    bool flash = flash_fits(o, q, k, v, dim, scale);
    // Windows of 64 queries and less take blocks of 64, longer spans blocks of 128, which read the keys half as often.
    int threads = dim > 80 || (dim > 64 && spans.longest > 64) ? 256 : 128;
    int tiles = (int)blocks(spans.longest, flash ? threads / 2 : QUERIES), group = (int)(heads / kv_heads);
    dim3 grid(blocks(spans.n * tiles, 1), (unsigned)heads);
#define FLASH(D, THREADS)                                                                                              \
    RUN((attention_flash_kernel<D, THREADS>), grid, THREADS, flash_shared<D>(), o, lse, q, k, v, spans.rows, tiles,    \
        group, (int)dim, scale)
    if (flash && dim <= 32) FLASH(32, 128);
    else if (flash && dim <= 64) FLASH(64, 128);
    else if (flash && dim <= 80 && threads == 128) FLASH(80, 128);
    else if (flash && dim <= 80) FLASH(80, 256);
    else if (flash) FLASH(128, 256);
    else
        RUN(attention_forward_kernel, grid, QUERIES * 32, attention_shared(dim), o, lse, q, k, v, spans.rows, tiles,
            group, (int)dim, scale);
#undef FLASH
}

// attention_backward: with p = exp(scale q.k_t - lse) and delta = dout.o for every query and key it saw,
//   ds = scale p (dout.v_t - delta);   dq = sum_t ds k_t;   dk_t = sum ds q;   dv_t = sum p dout.
// Two kernels, mirror images: a warp owns a query and walks over keys (dq, and delta), or owns a key and walks over the
// queries that saw it (dk, dv). Both score 16 pairs a round: a tile holds 16 rows of k or q, then 16 of v or dout; lane
// l below 16 takes q.k of pair l, lane 16 + l its dout.v. In the sums a lane is every 32nd column. Each sum over pairs
// runs in their order, so it depends neither on where tiles begin nor on what lies beside the sequence.
enum { PAIRS = 16 };
static size_t attention_backward_shared(int64_t dim) { // per warp two own rows, a tile, per warp two weights a pair
    return (size_t)((2 * QUERIES + 2 * PAIRS) * (dim + 1) + QUERIES * 2 * PAIRS) * sizeof(float);
}
__device__ static inline float dot_rows(const float *a, const float *b, int n) {
    float sum = 0;
    for (int c = 0; c < n; c++) sum += a[c] * b[c];
    return sum;
}

// grid (spans * tiles of queries, heads), one warp per query, tiles of keys and values shared by all.
__global__ void __launch_bounds__(QUERIES * 32, 2)
    attention_dq_kernel(Mat dq, Mat delta, Mat dout, Mat q, Mat k, Mat v, Mat o, Mat lse, Mat spans, int tiles,
                        int group, int dim, float scale) {
    DYNAMIC_SHARED(shared);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, pitch = dim + 1;
    float *own = (float *)shared + warp * 2 * pitch,
          *tile = (float *)shared + QUERIES * 2 * pitch; // q, dout | keys, values
    float *weight = tile + 2 * PAIRS * pitch + warp * 2 * PAIRS;
    Span s = *(const Span *)mat_at(spans, (int)blockIdx.x / tiles, 0);
    int head = (int)blockIdx.y, at = head * dim, kv = head / group * dim;
    int64_t prefix = s.prefix_last - s.prefix_first;
    int64_t first = s.first + (int)blockIdx.x % tiles * QUERIES, row = first + warp;
    int64_t last = first + QUERIES < s.last ? first + QUERIES : s.last; // of this block's queries
    int64_t keys = first >= s.last ? 0 : prefix + (s.causal ? last : s.last) - s.first;
    int64_t visible = row >= s.last ? 0 : prefix + (s.causal ? row + 1 : s.last) - s.first; // itself at least
    float row_delta = 0, row_lse = 0, acc[MAX_DIM / 32] = {};
    if (row < s.last) { // the whole warp or nobody
        for (int c = lane; c < dim; c += 32) {
            own[c] = get(q, row, at + c), own[pitch + c] = get(dout, row, at + c);
            row_delta += own[pitch + c] * get(o, row, at + c);
        }
        row_delta = warp_reduce(row_delta, Sum()), row_lse = get(lse, row, head);
        if (lane == 0) put(delta, row, head, row_delta);
    }
    for (int64_t t0 = 0; t0 < keys; t0 += PAIRS) {
        for (int r = warp; r < 2 * PAIRS; r += QUERIES) {
            int64_t t = t0 + r % PAIRS;
            for (int c = lane; c < dim; c += 32)
                tile[r * pitch + c] = t >= keys ? 0 : get(r < PAIRS ? k : v, key_row(s, t), kv + c);
        }
        __syncthreads(); // tile (and own rows, at first) written above | read below
        int here = visible - t0 < PAIRS ? (int)(visible - t0) : PAIRS;
        float product = 0;
        if (lane % PAIRS < here) product = dot_rows(own + lane / PAIRS * pitch, tile + lane * pitch, dim);
        float other = __shfl_xor_sync(0xffffffffu, product, PAIRS);
        if (lane < here) // here <= 16
            weight[lane] = visible == 1 ? 0 : scale * expf(scale * product - row_lse) * (other - row_delta);
        __syncwarp(); // weights written above | read by the warp's other lanes below
        for (int t = 0; t < here; t++) {
            float ds = weight[t];
#pragma unroll
            for (int n = 0; n < MAX_DIM / 32; n++)
                if (lane + 32 * n < dim) acc[n] += ds * tile[t * pitch + lane + 32 * n];
        }
        __syncthreads(); // tile and weights read above | overwritten in the next round
    }
    if (row < s.last) {
#pragma unroll
        for (int n = 0; n < MAX_DIM / 32; n++)
            if (lane + 32 * n < dim) put(dq, row, at + lane + 32 * n, acc[n]);
    }
}

// grid (tiles of keys, key heads), one warp per key, tiles of queries shared by all. A lane looks at one span in 32, so
// that a list of hundreds of windows costs little; spans that show no key of the block are passed by.
__global__ void __launch_bounds__(QUERIES * 32, 2)
    attention_dkdv_kernel(Mat dk, Mat dv, Mat delta, Mat dout, Mat q, Mat k, Mat v, Mat lse, Mat spans, int group,
                          int dim, float scale) {
    DYNAMIC_SHARED(shared);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, pitch = dim + 1;
    float *own = (float *)shared + warp * 2 * pitch, *tile = (float *)shared + QUERIES * 2 * pitch; // k, v | q, dout
    float *weight = tile + 2 * PAIRS * pitch + warp * 2 * PAIRS;                                    // ds, p
    int kv_head = (int)blockIdx.y, kv = kv_head * dim;
    int64_t first = (int64_t)blockIdx.x * QUERIES, key = first + warp;
    int64_t last = first + QUERIES < k.rows ? first + QUERIES : k.rows; // of this block's keys
    float acc_k[MAX_DIM / 32] = {}, acc_v[MAX_DIM / 32] = {};
    if (key < last)
        for (int c = lane; c < dim; c += 32) own[c] = get(k, key, kv + c), own[pitch + c] = get(v, key, kv + c);
    for (int64_t n0 = 0; n0 < spans.rows; n0 += 32) {
        bool shows = false;
        if (n0 + lane < spans.rows) {
            Span s = *(const Span *)mat_at(spans, n0 + lane, 0);
            shows = (s.first < last && s.last > first) || (s.prefix_first < last && s.prefix_last > first);
        }
        // The same in every warp, as nothing in it is a warp's own: all meet at the same barriers.
        for (unsigned found = __ballot_sync(0xffffffffu, shows); found; found &= found - 1) {
            Span s = *(const Span *)mat_at(spans, n0 + __ffs((int)found) - 1, 0);
            bool in_own = key >= s.first && key < s.last, in_prefix = key >= s.prefix_first && key < s.prefix_last;
            // The first query that sees this warp's key, and the first that sees any of the block's.
            int64_t seen_from = key >= last || !(in_own || in_prefix) ? s.last : in_own && s.causal ? key : s.first;
            bool all = !s.causal || first < s.first || (s.prefix_first < last && s.prefix_last > first);
            for (int head = kv_head * group; head < (kv_head + 1) * group; head++)
                for (int64_t i0 = all ? s.first : first; i0 < s.last; i0 += PAIRS) {
                    for (int r = warp; r < 2 * PAIRS; r += QUERIES) {
                        int64_t i = i0 + r % PAIRS;
                        for (int c = lane; c < dim; c += 32)
                            tile[r * pitch + c] = i >= s.last ? 0 : get(r < PAIRS ? q : dout, i, head * dim + c);
                    }
                    __syncthreads(); // tile (and own rows, at first) written above | read below
                    int from = seen_from < i0 ? 0 : seen_from - i0 < PAIRS ? (int)(seen_from - i0) : PAIRS;
                    int here = s.last - i0 < PAIRS ? (int)(s.last - i0) : PAIRS, pair = lane % PAIRS;
                    float product = 0;
                    if (pair >= from && pair < here)
                        product = dot_rows(own + lane / PAIRS * pitch, tile + lane * pitch, dim);
                    float other = __shfl_xor_sync(0xffffffffu, product, PAIRS);
                    if (lane >= from && lane < here) { // here <= 16
                        float p = expf(scale * product - get(lse, i0 + lane, head));
                        bool alone = s.prefix_first == s.prefix_last && (s.causal ? i0 + lane : s.last - 1) == s.first;
                        weight[lane] = alone ? 0 : scale * p * (other - get(delta, i0 + lane, head));
                        weight[PAIRS + lane] = p;
                    }
                    __syncwarp(); // weights written above | read by the warp's other lanes below
                    for (int t = from; t < here; t++) {
                        float ds = weight[t], p = weight[PAIRS + t];
#pragma unroll
                        for (int n = 0; n < MAX_DIM / 32; n++)
                            if (lane + 32 * n < dim) {
                                acc_k[n] += ds * tile[t * pitch + lane + 32 * n];
                                acc_v[n] += p * tile[(PAIRS + t) * pitch + lane + 32 * n];
                            }
                    }
                    __syncthreads(); // tile and weights read above | overwritten in the next round
                }
        }
    }
    if (key < last) {
#pragma unroll
        for (int n = 0; n < MAX_DIM / 32; n++)
            if (lane + 32 * n < dim)
                put(dk, key, kv + lane + 32 * n, acc_k[n]), put(dv, key, kv + lane + 32 * n, acc_v[n]);
    }
}

// attention_backward, tensor-core rung: the same two kernels on blocks of 64 rows, of which a warp owns 16, while tiles of
// 64 of the other rows come by cp.async into two stages. Fragment c of scores has the shape of fragment a, so p and
// ds / scale, rounded to bf16, go from one product to the next in registers; these roundings and that of the result are
// what lies between this and the reference. Sums run over pieces of 16 rows that are counted from the beginning of the span
// (dk, dv) or of its keys (dq): a piece holds the same rows wherever the sequence lies, and one that shows a warp nothing
// adds exact zeros or is passed by. What a row does not see never changes its bits, whatever it holds.
enum { BACKWARD_TILE = 64, DQ_THREADS = 128, DKDV_THREADS = 256 };
template <int D> static constexpr int dq_mma_shared(void) { // tiles of k and v, two stages
    return 4 * BACKWARD_TILE * (D + 8) * 2;
}
template <int D> static constexpr int dkdv_mma_shared(void) { // tiles of q and dout, and a number a thread, two stages
    return dq_mma_shared<D>() + 2 * DKDV_THREADS * 4;
}

// acc[16,D] += a[16,16] tile[16,D]. As in add_values: a row that some of the 16 do not see has weight 0 for them but may be
// NaN, so FINITE turns what is not finite into 0 on its way into the product, and returns whether there was any. The rows
// that see it get it after all: sees(t, r), for row t of the tile and the upper (r 0) or lower of this lane's two rows.
// Apart from add_values on purpose: one function for both made attention_flash_kernel<128> spill on sm_90.
template <int D, bool FINITE>
__device__ static inline bool add_product(float acc[D / 8][4], const uint32_t a[4], const uint16_t *tile) {
    bool found = false;
#pragma unroll
    for (int n = 0; n < D / 16; n++) {
        uint32_t b[4];
        load_b_trans<D>(b, tile + 16 * n);
#pragma unroll
        for (int i = 0; i < 4 && FINITE; i++) {
            if ((b[i] & 0x7f80u) == 0x7f80u) b[i] &= 0xffff0000u, found = true;
            if ((b[i] & 0x7f800000u) == 0x7f800000u) b[i] &= 0xffffu, found = true;
        }
        mma_m16n8k16_bf16(acc[2 * n], a, b), mma_m16n8k16_bf16(acc[2 * n + 1], a, b + 2);
    }
    return found;
}
template <int D, typename F>
__device__ static inline void add_non_finite(float acc[D / 8][4], const uint16_t *tile, F sees) {
    int lane = threadIdx.x % 32;
#pragma unroll 1
    for (int t = 0; t < 16; t++)
#pragma unroll
        for (int f = 0; f < D / 2; f++) {
            float v = bf16_to_f32(tile[t * (D + 8) + f / 4 * 8 + lane % 4 * 2 + f % 2]);
            if (sees(t, f % 4 / 2) && !(fabsf(v) < INFINITY)) acc[f / 4][f % 4] += v;
        }
}

// dq: scores = q k^T, dp = dout v^T, dq = sum ds k. grid (spans * tiles of queries, heads), 4 warps; the last queries of a
// span come first, as with `causal` they have the most keys.
template <int D>
__global__ void __launch_bounds__(DQ_THREADS, 2)
    attention_dq_mma_kernel(Mat dq, Mat delta, Mat dout, Mat q, Mat k, Mat v, Mat o, Mat lse, Mat spans, int tiles,
                            int group, int dim, float scale) {
    DYNAMIC_SHARED(shared);
    constexpr int TILE_SIZE = BACKWARD_TILE * (D + 8);
    uint16_t *key_tiles = (uint16_t *)shared, *value_tiles = key_tiles + 2 * TILE_SIZE;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    Span s = *(const Span *)mat_at(spans, (int)blockIdx.x / tiles, 0);
    int head = (int)blockIdx.y, at = head * dim, kv = head / group * dim, prefix = s.prefix_last - s.prefix_first;
    int first = s.first + (tiles - 1 - (int)blockIdx.x % tiles) * BACKWARD_TILE;
    int last = first + BACKWARD_TILE < s.last ? first + BACKWARD_TILE : s.last; // of this block's queries
    int keys = first >= s.last ? 0 : prefix + (s.causal ? last : s.last) - s.first;
    auto load = [&](int t0, int stage) {
        auto row_of = [&](int i) { return t0 + i < keys ? key_row(s, t0 + i) : -1; };
        load_head_rows<D, DQ_THREADS>(key_tiles + stage * TILE_SIZE, k, kv, dim, BACKWARD_TILE, row_of);
        load_head_rows<D, DQ_THREADS>(value_tiles + stage * TILE_SIZE, v, kv, dim, BACKWARD_TILE, row_of);
        cp_async_commit();
    };
    if (keys) load(0, 0);

    // A lane has two of its warp's queries: row lane / 4 of the 16 (elements 0 and 1 of a fragment c) and 8 further (2, 3).
    int row[2], visible[2], warp_keys = 0;
    float row_lse[2], row_delta[2] = {};
#pragma unroll
    for (int r = 0; r < 2; r++) {
        row[r] = first + 16 * warp + lane / 4 + 8 * r;
        if (row[r] >= s.last) row[r] = -1;
        visible[r] = row[r] < 0 ? 0 : prefix + (s.causal ? row[r] + 1 : s.last) - s.first; // itself at least
        row_lse[r] = row[r] < 0 ? 0 : get(lse, row[r], head) * LOG2_E;
    }
    if (first + 16 * warp < s.last) // what any of the warp's queries sees
        warp_keys = s.causal && first + 16 * warp + 16 < last ? prefix + first + 16 * warp + 16 - s.first : keys;
    uint32_t query[D / 16][4], dout_row[D / 16][4], o_row[D / 16][4];
    load_a_rows<D>(query, q, at, dim, row[0], row[1]);
    load_a_rows<D>(dout_row, dout, at, dim, row[0], row[1]);
    load_a_rows<D>(o_row, o, at, dim, row[0], row[1]);
#pragma unroll
    for (int n = 0; n < D / 4; n++) {
        uint32_t a = dout_row[n / 4][n % 4], b = o_row[n / 4][n % 4];
        row_delta[n % 2] += bf16_to_f32((uint16_t)a) * bf16_to_f32((uint16_t)b);
        row_delta[n % 2] += bf16_to_f32((uint16_t)(a >> 16)) * bf16_to_f32((uint16_t)(b >> 16));
    }
#pragma unroll
    for (int r = 0; r < 2; r++) { // four lanes have a row between them
        row_delta[r] += __shfl_xor_sync(0xffffffffu, row_delta[r], 1);
        row_delta[r] += __shfl_xor_sync(0xffffffffu, row_delta[r], 2);
        if (row[r] >= 0 && lane % 4 == 0) put(delta, row[r], head, row_delta[r]);
    }

    float acc[D / 8][4] = {};
    for (int t0 = 0, stage = 0; t0 < keys; t0 += BACKWARD_TILE, stage ^= 1) {
        cp_async_wait<0>();
        __syncthreads(); // this stage filled, the other one read in the last round | read and refilled below
        if (t0 + BACKWARD_TILE < keys) load(t0 + BACKWARD_TILE, stage ^ 1);
        for (int c = 0; c < BACKWARD_TILE && t0 + c < warp_keys; c += 16) {
            int tile_at = stage * TILE_SIZE + c * (D + 8);
            const uint16_t *key = key_tiles + tile_at, *value = value_tiles + tile_at;
            float score[2][4] = {}, dp[2][4] = {};
            uint32_t b[4], ds[4];
#pragma unroll
            for (int n = 0; n < D / 16; n++) {
                load_b<D>(b, key + 16 * n);
                mma_m16n8k16_bf16(score[0], query[n], b), mma_m16n8k16_bf16(score[1], query[n], b + 2);
                load_b<D>(b, value + 16 * n);
                mma_m16n8k16_bf16(dp[0], dout_row[n], b), mma_m16n8k16_bf16(dp[1], dout_row[n], b + 2);
            }
#pragma unroll
            for (int f = 0; f < 8; f++) { // from dp to ds / scale
                int j = f / 4, e = f % 4, r = e / 2;
                float p = exp2_approx(score[j][e] * (scale * LOG2_E) - row_lse[r]);
                dp[j][e] = p * (dp[j][e] - row_delta[r]);
            }
            bool hides = __any_sync(0xffffffffu, t0 + c + 16 > visible[0] || t0 + c + 16 > visible[1]);
            if (hides)
#pragma unroll
                for (int f = 0; f < 8; f++) {
                    int j = f / 4, e = f % 4, t = t0 + c + 8 * j + lane % 4 * 2 + e % 2;
                    if (t >= visible[e / 2] || visible[e / 2] == 1) dp[j][e] = 0;
                }
#pragma unroll
            for (int f = 0; f < 4; f++) ds[f] = bf16_pair(dp[f / 2][f % 2 * 2], dp[f / 2][f % 2 * 2 + 1]);
            bool found = hides ? add_product<D, true>(acc, ds, key) : add_product<D, false>(acc, ds, key);
            if (__any_sync(0xffffffffu, found))
                add_non_finite<D>(acc, key, [&](int t, int r) { return t0 + c + t < visible[r]; });
        }
    }
#pragma unroll
    for (int f = 0; f < D / 4; f++) {
        int n = f / 2, r = f % 2, c = 8 * n + lane % 4 * 2;
        if (row[r] >= 0 && c < dim)
            *(uint32_t *)mat_at(dq, row[r], at + c) = bf16_pair(scale * acc[n][2 * r], scale * acc[n][2 * r + 1]);
    }
}

// dk, dv: scores^T = k q^T, dp^T = v dout^T, dv = sum p^T dout, dk = sum ds^T q. grid (tiles of keys, key heads), twice 4
// warps: each half takes 32 queries of every tile, and at the end the second half's sums are added to the first's.
template <int D>
__global__ void __launch_bounds__(DKDV_THREADS, 1)
    attention_dkdv_mma_kernel(Mat dk, Mat dv, Mat delta, Mat dout, Mat q, Mat k, Mat v, Mat lse, Mat spans, int group,
                              int dim, float scale) {
    DYNAMIC_SHARED(shared);
    constexpr int TILE_SIZE = BACKWARD_TILE * (D + 8);
    uint16_t *query_tiles = (uint16_t *)shared, *dout_tiles = query_tiles + 2 * TILE_SIZE;
    float *facts = (float *)(dout_tiles + 2 * TILE_SIZE); // [2 stages][DKDV_THREADS]
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, half = warp / 4;
    int kv_head = (int)blockIdx.y, kv = kv_head * dim, first = (int)blockIdx.x * BACKWARD_TILE;
    int last = first + BACKWARD_TILE < k.rows ? first + BACKWARD_TILE : (int)k.rows; // of this block's keys

    // The tiles of queries that see keys of the block: by span, then head, then place. A lane looks at one span in 32, as
    // in the plain rung, and all warps find the same. Spans are read again wherever they are needed: registers are dearer.
    auto span = [&](int n) { return *(const Span *)mat_at(spans, n, 0); };
    auto shows = [&](const Span &s) { return s.first < last && s.last > first; };
    auto shows_prefix = [&](const Span &s) { return s.prefix_first < last && s.prefix_last > first; };
    int at = 0, head = (kv_head + 1) * group, i0 = 0, looked = 0;
    unsigned found = 0;
    auto next_tile = [&]() { // to the next (span at, head, queries from i0); false behind the last
        if (head < (kv_head + 1) * group) {
            if ((i0 += BACKWARD_TILE) < span(at).last) return true;
            head++;
        }
        if (head >= (kv_head + 1) * group) {
            for (; !found && looked < spans.rows; looked += 32) {
                Span s = looked + lane < spans.rows ? span(looked + lane) : Span{};
                found = __ballot_sync(0xffffffffu, s.first < s.last && (shows(s) || shows_prefix(s)));
            }
            if (!found) return false;
            at = looked - 32 + __ffs((int)found) - 1, head = kv_head * group;
            found &= found - 1;
        }
        Span s = span(at);
        bool all = !s.causal || first < s.first || shows_prefix(s);
        i0 = all ? s.first : s.first + (first - s.first) / BACKWARD_TILE * BACKWARD_TILE;
        return true;
    };
    // What must be known of a tile beside its rows, a number a thread: lse and delta of its queries, the first query that
    // sees each of the block's keys, how many queries there are, and whether the first sees one key only. They wait in a
    // register until their place in shared memory is free.
    float fact = 0;
    auto load = [&](int stage) {
        int head_at = head * dim, e = threadIdx.x % BACKWARD_TILE, what = threadIdx.x / BACKWARD_TILE;
        Span s = span(at);
        auto row_of = [&](int i) { return i0 + i < s.last ? i0 + i : -1; };
        load_head_rows<D, DKDV_THREADS>(query_tiles + stage * TILE_SIZE, q, head_at, dim, BACKWARD_TILE, row_of);
        load_head_rows<D, DKDV_THREADS>(dout_tiles + stage * TILE_SIZE, dout, head_at, dim, BACKWARD_TILE, row_of);
        cp_async_commit();
        int number = s.last - i0, key = first + e;
        if (what == 0) fact = i0 + e < s.last ? get(lse, i0 + e, head) * LOG2_E : INFINITY; // of no query: p is 0
        if (what == 1) fact = i0 + e < s.last ? get(delta, i0 + e, head) : 0;
        if (what == 2) {
            bool own = key >= s.first && key < s.last, in_prefix = key >= s.prefix_first && key < s.prefix_last;
            number = key >= last || !(own || in_prefix) ? BACKWARD_TILE : own && s.causal ? key - i0 : 0;
        }
        if (what == 3 && e)
            number = i0 == s.first && s.prefix_first == s.prefix_last && (s.causal || s.last - s.first == 1);
        if (what > 1) fact = __int_as_float(number);
    };
    bool more = next_tile();
    if (more) load(0);
    int key = first + warp % 4 * 16 + lane / 4; // and 8 further
    uint32_t own_key[D / 16][4], own_value[D / 16][4];
    load_a_rows<D>(own_key, k, kv, dim, key < last ? key : -1, key + 8 < last ? key + 8 : -1);
    load_a_rows<D>(own_value, v, kv, dim, key < last ? key : -1, key + 8 < last ? key + 8 : -1);

    float acc_k[D / 8][4] = {}, acc_v[D / 8][4] = {};
    for (int stage = 0; more; stage ^= 1) {
        float *tile_facts = facts + stage * DKDV_THREADS;
        tile_facts[threadIdx.x] = fact;
        cp_async_wait<0>();
        __syncthreads(); // this stage filled, the other one read in the last round | read and refilled below
        more = next_tile();
        if (more) load(stage ^ 1);
        const int *number = (const int *)tile_facts + 2 * BACKWARD_TILE;
        int from[2] = {number[warp % 4 * 16 + lane / 4], number[warp % 4 * 16 + lane / 4 + 8]};
        int queries = number[BACKWARD_TILE], alone = number[BACKWARD_TILE + 1];
        for (int c = 32 * half; c < 32 * half + 32 && c < queries; c += 16) {
            if (!__any_sync(0xffffffffu, from[0] < c + 16 || from[1] < c + 16)) continue;
            int tile_at = stage * TILE_SIZE + c * (D + 8);
            const uint16_t *query = query_tiles + tile_at, *dout_row = dout_tiles + tile_at;
            float p[2][4] = {}, ds[2][4] = {};
            uint32_t b[4], a_p[4], a_ds[4];
#pragma unroll
            for (int n = 0; n < D / 16; n++) {
                load_b<D>(b, query + 16 * n);
                mma_m16n8k16_bf16(p[0], own_key[n], b), mma_m16n8k16_bf16(p[1], own_key[n], b + 2);
                load_b<D>(b, dout_row + 16 * n);
                mma_m16n8k16_bf16(ds[0], own_value[n], b), mma_m16n8k16_bf16(ds[1], own_value[n], b + 2);
            }
            const float *lse2 = tile_facts + c + lane % 4 * 2, *delta_in = lse2 + BACKWARD_TILE;
#pragma unroll
            for (int f = 0; f < 8; f++) { // from scores to p, from dp to ds / scale
                int j = f / 4, e = f % 4, i = 8 * j + e % 2;
                p[j][e] = exp2_approx(p[j][e] * (scale * LOG2_E) - lse2[i]);
                ds[j][e] = p[j][e] * (ds[j][e] - delta_in[i]);
            }
            bool hides = __any_sync(0xffffffffu, from[0] > c || from[1] > c || alone);
            if (hides)
#pragma unroll
                for (int f = 0; f < 8; f++) {
                    int j = f / 4, e = f % 4, i = c + 8 * j + lane % 4 * 2 + e % 2;
                    if (i < from[e / 2]) p[j][e] = ds[j][e] = 0;
                    if (alone && i == 0) ds[j][e] = 0;
                }
#pragma unroll
            for (int f = 0; f < 4; f++) {
                a_p[f] = bf16_pair(p[f / 2][f % 2 * 2], p[f / 2][f % 2 * 2 + 1]);
                a_ds[f] = bf16_pair(ds[f / 2][f % 2 * 2], ds[f / 2][f % 2 * 2 + 1]);
            }
            auto sees = [&](int t, int r) { return c + t >= from[r]; };
            bool found =
                hides ? add_product<D, true>(acc_v, a_p, dout_row) : add_product<D, false>(acc_v, a_p, dout_row);
            if (__any_sync(0xffffffffu, found)) add_non_finite<D>(acc_v, dout_row, sees);
            found = hides ? add_product<D, true>(acc_k, a_ds, query) : add_product<D, false>(acc_k, a_ds, query);
            if (__any_sync(0xffffffffu, found)) add_non_finite<D>(acc_k, query, sees);
        }
    }
    __syncthreads(); // tiles read above | overwritten below
    float *sums = (float *)shared + threadIdx.x % 128;
    if (half) { // its sums, [D][128]
#pragma unroll
        for (int f = 0; f < D / 2; f++)
            sums[128 * f] = acc_k[f / 4][f % 4], sums[128 * (D / 2 + f)] = acc_v[f / 4][f % 4];
    }
    __syncthreads(); // sums written above | read below
    if (!half) {
#pragma unroll
        for (int f = 0; f < D / 2; f++)
            acc_k[f / 4][f % 4] += sums[128 * f], acc_v[f / 4][f % 4] += sums[128 * (D / 2 + f)];
#pragma unroll
        for (int f = 0; f < D / 4; f++) {
            int n = f / 2, r = f % 2, c = 8 * n + lane % 4 * 2;
            if (key + 8 * r >= last || c >= dim) continue;
            *(uint32_t *)mat_at(dk, key + 8 * r, kv + c) =
                bf16_pair(scale * acc_k[n][2 * r], scale * acc_k[n][2 * r + 1]);
            *(uint32_t *)mat_at(dv, key + 8 * r, kv + c) = bf16_pair(acc_v[n][2 * r], acc_v[n][2 * r + 1]);
        }
    }
}

template <int D>
static void attention_backward_mma(Mat dq, Mat dk, Mat dv, Mat delta, Mat dout, Mat q, Mat k, Mat v, Mat o, Mat lse,
                                   Spans spans, int64_t heads, int64_t kv_heads, int64_t dim, float scale) {
    int group = (int)(heads / kv_heads), tiles = (int)blocks(spans.longest, BACKWARD_TILE);
    if (spans.n && tiles)
        RUN(attention_dq_mma_kernel<D>, dim3(blocks(spans.n * tiles, 1), (unsigned)heads), DQ_THREADS,
            dq_mma_shared<D>(), dq, delta, dout, q, k, v, o, lse, spans.rows, tiles, group, (int)dim, scale);
    if (k.rows) // behind dq, which leaves delta
        RUN(attention_dkdv_mma_kernel<D>, dim3(blocks(k.rows, BACKWARD_TILE), (unsigned)kv_heads), DKDV_THREADS,
            dkdv_mma_shared<D>(), dk, dv, delta, dout, q, k, v, lse, mat_rows(spans.rows, 0, spans.n), group, (int)dim,
            scale);
}
template <int D> static void attention_backward_mma_prepare(void) {
    device_check(cudaFuncSetAttribute(attention_dq_mma_kernel<D>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      dq_mma_shared<D>()),
                 "asking for shared memory");
    device_check(cudaFuncSetAttribute(attention_dkdv_mma_kernel<D>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      dkdv_mma_shared<D>()),
                 "asking for shared memory");
}
static void cuda_attention_backward(Mat dq, Mat dk, Mat dv, Mat delta, Mat dout, Mat q, Mat k, Mat v, Mat o, Mat lse,
                                    Spans spans, int64_t heads, int64_t kv_heads, int64_t dim, float scale) {
    int group = (int)(heads / kv_heads), tiles = (int)blocks(spans.longest, QUERIES);
    size_t shared = attention_backward_shared(dim);
    cuda_zero(dq), cuda_zero(delta); // for the rows that are in no span
    bool mma = !rungs.naive && dim <= 128;
    const Mat heads_of[] = {dq, dk, dv, dout, q, k, v, o};
    for (const Mat &m : heads_of) mma = mma && head_rows(m, dim);
    if (mma) {
        auto run = dim <= 32   ? attention_backward_mma<32>
                   : dim <= 64 ? attention_backward_mma<64>
                   : dim <= 80 ? attention_backward_mma<80>
                               : attention_backward_mma<128>;
        run(dq, dk, dv, delta, dout, q, k, v, o, lse, spans, heads, kv_heads, dim, scale);
        return;
    }
    if (spans.n && tiles)
        RUN(attention_dq_kernel, dim3(blocks(spans.n * tiles, 1), (unsigned)heads), QUERIES * 32, shared, dq, delta,
            dout, q, k, v, o, lse, spans.rows, tiles, group, (int)dim, scale);
    if (k.rows) // behind dq, which leaves delta
        RUN(attention_dkdv_kernel, dim3(blocks(k.rows, QUERIES), (unsigned)kv_heads), QUERIES * 32, shared, dk, dv,
            delta, dout, q, k, v, lse, mat_rows(spans.rows, 0, spans.n), group, (int)dim, scale);
}

// attention_decode: one query row per span, many keys. grid (rows, key heads, eights of the query heads that share a key
// head), 256 threads. Keys go in chunks of 256: a thread scores one key for all (up to 8) query heads, reading it once;
// a warp then turns one head's 256 scores into weights; then threads sum values, each (head, column) by one thread.
static size_t decode_shared(int64_t dim) { // queries and sums, weights, and per head: fade, largest, sum
    return (size_t)(2 * DECODE_HEADS * dim + DECODE_HEADS * DECODE_KEYS + 3 * DECODE_HEADS) * sizeof(float);
}
__global__ void __launch_bounds__(DECODE_KEYS)
    attention_decode_kernel(Mat o, Mat q, Mat k, Mat v, Mat spans, int group, int dim, float scale) {
    DYNAMIC_SHARED(shared);
    float *query = (float *)shared, *acc = query + DECODE_HEADS * dim; // [8][dim] each
    float *weight = acc + DECODE_HEADS * dim;                          // [8][256]
    float *fade = weight + DECODE_HEADS * DECODE_KEYS, *largest = fade + DECODE_HEADS, *sum = largest + DECODE_HEADS;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int64_t row = blockIdx.x;
    int kv = (int)blockIdx.y * dim, done = (int)blockIdx.z * DECODE_HEADS, at = ((int)blockIdx.y * group + done) * dim;
    int heads = group - done < DECODE_HEADS ? group - done : DECODE_HEADS, width = heads * dim;
    Span s = *(const Span *)mat_at(spans, row, 0);
    int64_t keys = s.prefix_last - s.prefix_first + s.last - s.first;
    for (int e = threadIdx.x; e < width; e += DECODE_KEYS) query[e] = get(q, row, at + e), acc[e] = 0;
    if (threadIdx.x < DECODE_HEADS) largest[threadIdx.x] = -INFINITY, sum[threadIdx.x] = 0;
    __syncthreads(); // queries and states written above | read below
    for (int64_t t0 = 0; t0 < keys; t0 += DECODE_KEYS) {
        float score[DECODE_HEADS] = {};
        int64_t t = t0 + threadIdx.x, key = t < keys ? key_row(s, t) : 0;
        if (t < keys)
            for (int c = 0; c < dim; c++) {
                float kc = get(k, key, kv + c);
#pragma unroll
                for (int h = 0; h < DECODE_HEADS; h++)
                    if (h < heads) score[h] += query[h * dim + c] * kc;
            }
#pragma unroll
        for (int h = 0; h < DECODE_HEADS; h++)
            if (h < heads) weight[h * DECODE_KEYS + threadIdx.x] = t < keys ? scale * score[h] : -INFINITY;
        __syncthreads();    // scores written above | read below by the head's warp
        if (warp < heads) { // 8 warps, up to 8 heads
            float *mine = weight + warp * DECODE_KEYS, larger = largest[warp], total = 0;
            for (int i = lane; i < DECODE_KEYS; i += 32) larger = fmaxf(larger, mine[i]);
            larger = warp_reduce(larger, Max());
            for (int i = lane; i < DECODE_KEYS; i += 32) {
                float p = t0 + i < keys ? expf(mine[i] - larger) : 0;
                mine[i] = p, total += p;
            }
            total = warp_reduce(total, Sum()); // also: every lane has read largest[warp] | lane 0 writes it
            if (lane == 0) {
                fade[warp] = expf(largest[warp] - larger);
                sum[warp] = sum[warp] * fade[warp] + total, largest[warp] = larger;
            }
        }
        __syncthreads(); // weights and fades written above | read below
        int here = keys - t0 < DECODE_KEYS ? (int)(keys - t0) : DECODE_KEYS;
        for (int e = threadIdx.x; e < width; e += DECODE_KEYS) {
            const float *mine = weight + e / dim * DECODE_KEYS;
            float part = 0;
            for (int i = 0; i < here; i++) part += mine[i] * get(v, key_row(s, t0 + i), kv + e % dim);
            acc[e] = acc[e] * fade[e / dim] + part;
        }
        __syncthreads(); // weights and fades read above | overwritten in the next round
    }
    for (int e = threadIdx.x; e < width; e += DECODE_KEYS) put(o, row, at + e, keys ? acc[e] / sum[e / dim] : 0);
}
// attention_decode, tensor-core rung: the keys of a row are split over blocks (Dao et al. 2023, Flash-Decoding). Chunks of 64
// keys go to splits in turn, chunk c to split c % 32, so a sum's order depends on the number of the row's keys alone. A
// warp has 16 keys of a chunk at a time: scores^T = k q^T with keys as the 16 rows and up to 8 query heads, which share
// the key head, as the 8 columns; sums^T = v^T p^T with columns of v as the 16 rows. Both products may take their inner
// elements in any order, and rows may stand for any columns of v: so a lane loads 16 bytes of a key or value at once,
// straight from memory into the registers that make fragments, and nothing is read twice or staged.
// grid (rows, key heads * eights of their query heads, blocks that take the splits in turn). How many of the last there are
// follows from the number of rows, for enough blocks to fill the device, and changes no bits. Nothing in the launch
// depends on lengths: it can be captured, and replayed when the spans on the device have grown; blocks without keys leave
// at once. Rows that share a prefix are next to each other in x, so they read it at about the same time: from memory
// once, else from L2.
// The last block of a row to finish adds the splits up, in their order. parts: per row and eight [32][8] of the largest
// score, the sum, and [dim] the weighted values, relative to that largest one. counts: finished blocks, 0 between launches.
enum { SPLITS = 32, SPLIT_KEYS = 64, SPLIT_WARPS = SPLIT_KEYS / 16, SPLIT_THREADS = 32 * SPLIT_WARPS };
static int64_t split_floats(int64_t dim) { return SPLITS * DECODE_HEADS * (dim + 2); } // of a row and eight
static size_t split_shared(int64_t dim) { // each warp's sums, their states, one flag
    return (size_t)(SPLIT_WARPS * DECODE_HEADS * (dim + 1 + 2) + 1) * sizeof(float);
}

__device__ static inline void load16(uint32_t word[4], const uint16_t *from, bool inside) {
    uint4 w = inside ? __ldg((const uint4 *)from) : make_uint4(0, 0, 0, 0);
    word[0] = w.x, word[1] = w.y, word[2] = w.z, word[3] = w.w;
}

// o = the splits' values in their order, each with its weight, over the sum of all. A warp has a head; a lane looks at one
// split's state, then has every 32nd column.
__device__ static inline void add_splits(const Mat &o, int row, int at, const float *parts, int heads, int dim,
                                         int splits) {
    static_assert(SPLITS == 32, "one lane for each");
    int lane = threadIdx.x % 32, next = DECODE_HEADS * (dim + 2);
    for (int head = threadIdx.x / 32; head < heads; head += SPLIT_WARPS) {
        const float *part = parts + head * (dim + 2); // __ldcg: from L2, where the other blocks' stores are
        float top = lane < splits ? __ldcg(part + lane * next) : -INFINITY;
        float weight = exp2_approx(top - warp_reduce(top, Max()));
        float total = warp_reduce(lane < splits ? weight * __ldcg(part + lane * next + 1) : 0, Sum());
        for (int c0 = 0; c0 < dim; c0 += 32) { // every lane takes part in the shuffles
            int c = c0 + lane < dim ? c0 + lane : 0;
            float value = 0;
#pragma unroll 8
            for (int i = 0; i < splits; i++)
                value += __shfl_sync(0xffffffffu, weight, i) * __ldcg(part + i * next + 2 + c);
            if (c0 + lane < dim) put(o, row, at + head * dim + c, value / total);
        }
    }
}

template <int D> // 64 or 128, or fewer columns
__global__ void __launch_bounds__(SPLIT_THREADS, D <= 64 ? 4 : 3)
    attention_split_kernel(Mat o, Mat q, Mat k, Mat v, Mat spans, float *parts, int *counts, int group, int dim,
                           float scale) {
    DYNAMIC_SHARED(shared);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, c4 = lane % 4, pitch = dim + 1;
    float *sums = (float *)shared, *states = sums + SPLIT_WARPS * DECODE_HEADS * pitch; // [4][8][pitch], [4][8][2]
    int *is_last = (int *)(states + SPLIT_WARPS * DECODE_HEADS * 2);
    int row = (int)blockIdx.x, eights = (group + DECODE_HEADS - 1) / DECODE_HEADS;
    int kv_head = (int)blockIdx.y / eights, done = (int)blockIdx.y % eights * DECODE_HEADS;
    int at = (kv_head * group + done) * dim, kv = kv_head * dim;
    int heads = group - done < DECODE_HEADS ? group - done : DECODE_HEADS;
    Span s = *(const Span *)mat_at(spans, row, 0);
    int keys = s.prefix_last - s.prefix_first + s.last - s.first, chunks = (keys + SPLIT_KEYS - 1) / SPLIT_KEYS;
    int splits = chunks < SPLITS ? chunks : SPLITS, working = splits < (int)gridDim.z ? splits : (int)gridDim.z;
    if (blockIdx.z > 0 && (int)blockIdx.z >= working) return; // the whole block; a row without keys keeps its first one
    parts += ((int64_t)row * gridDim.y + blockIdx.y) * SPLITS * DECODE_HEADS * (dim + 2);

    uint32_t query[D / 32][4]; // column g of q^T, inner elements 32n + 8 c4 to 7 more
#pragma unroll
    for (int n = 0; n < D / 32; n++) {
        int c = 32 * n + 8 * c4;
        load16(query[n], (const uint16_t *)mat_at(q, row, at + g * dim + c), g < heads && c < dim);
    }
    for (int split = (int)blockIdx.z; split == 0 || split < splits; split += (int)gridDim.z) {
        // Of heads 2 c4 and 2 c4 + 1: largest score, sum of this lane's keys; acc[n][m]: of both, columns 64n + 8g + 2m, + 1.
        float largest[2] = {-INFINITY, -INFINITY}, sum[2] = {}, acc[D / 64][4][4] = {}, base2 = scale * LOG2_E;
        for (int t0 = split * SPLIT_KEYS + warp * 16; t0 < keys; t0 += SPLITS * SPLIT_KEYS) {
            uint32_t key[D / 32][2][4], value[D / 64][4][4];
#pragma unroll
            for (int i = 0; i < 2; i++) { // rows g and g + 8 of fragment a
                int t = t0 + g + 8 * i;
                const uint16_t *from = (const uint16_t *)mat_at(k, t < keys ? key_row(s, t) : 0, kv + 8 * c4);
#pragma unroll
                for (int n = 0; n < D / 32; n++) load16(key[n][i], from + 32 * n, t < keys && 32 * n + 8 * c4 < dim);
            }
#pragma unroll
            for (int i = 0; i < 4; i++) { // inner elements 2 c4, + 1, + 8, + 9
                int t = t0 + 2 * c4 + i % 2 + i / 2 * 8;
                const uint16_t *from = (const uint16_t *)mat_at(v, t < keys ? key_row(s, t) : 0, kv + 8 * g);
#pragma unroll
                for (int n = 0; n < D / 64; n++) load16(value[n][i], from + 64 * n, t < keys && 64 * n + 8 * g < dim);
            }
            float p[4] = {}, fade[2]; // of key g: heads 2 c4, + 1; of key g + 8: the same
#pragma unroll
            for (int n = 0; n < 2 * (D / 32); n++) { // the first or last four of a lane's eight inner elements
                int w = n % 2 * 2;
                uint32_t a[4] = {key[n / 2][0][w], key[n / 2][1][w], key[n / 2][0][w + 1], key[n / 2][1][w + 1]};
                mma_m16n8k16_bf16(p, a, &query[n / 2][w]);
            }
#pragma unroll
            for (int e = 0; e < 4; e++)
                if (t0 + g + e / 2 * 8 >= keys) p[e] = -INFINITY;
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float larger = fmaxf(p[h], p[h + 2]);
                for (int lanes = 4; lanes < 32; lanes *= 2)
                    larger = fmaxf(larger, __shfl_xor_sync(0xffffffffu, larger, lanes));
                larger = fmaxf(largest[h], larger * base2); // scale > 0
                fade[h] = exp2_approx(largest[h] - larger), largest[h] = larger;
                p[h] = exp2_approx(fmaf(p[h], base2, -larger)), p[h + 2] = exp2_approx(fmaf(p[h + 2], base2, -larger));
                sum[h] = sum[h] * fade[h] + (p[h] + p[h + 2]);
            }
            // Two 8x8 matrices [key][head], turned to [head][key]: fragment b of p^T.
            uint32_t b[2] = {movmatrix_trans(bf16_pair(p[0], p[1])), movmatrix_trans(bf16_pair(p[2], p[3]))};
#pragma unroll
            for (int m = 0; m < 4 * (D / 64); m++) {
                float *c = acc[m / 4][m % 4];
                uint32_t w[4], a[4];
#pragma unroll
                for (int i = 0; i < 4; i++) w[i] = value[m / 4][i][m % 4], c[i] *= fade[i % 2];
#pragma unroll
                for (int i = 0; i < 4; i += 2) { // of two neighbouring keys: the even columns, and the odd ones
                    a[i] = (w[i] & 0xffffu) | w[i + 1] << 16;
                    a[i + 1] = w[i] >> 16 | (w[i + 1] & 0xffff0000u);
                }
                mma_m16n8k16_bf16(c, a, b);
            }
        }
        // The block's warps in their order.
#pragma unroll
        for (int h = 0; h < 2; h++) {
            for (int lanes = 4; lanes < 32; lanes *= 2) sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], lanes);
            float *state = states + (warp * DECODE_HEADS + 2 * c4 + h) * 2;
            if (g == 0) state[0] = largest[h], state[1] = sum[h];
        }
#pragma unroll
        for (int f = 0; f < D / 4; f++) {
            int c = f / 16 * 64 + 8 * g + f / 4 % 4 * 2 + f % 4 / 2, head = 2 * c4 + f % 2;
            if (c < dim) sums[(warp * DECODE_HEADS + head) * pitch + c] = acc[f / 16][f / 4 % 4][f % 4];
        }
        __syncthreads(); // sums and states written above | read below
        for (int head = warp; head < heads; head += SPLIT_WARPS) {
            float top = -INFINITY, total = 0, weight[SPLIT_WARPS];
            const float *state = states + 2 * head, *values = sums + head * pitch;
#pragma unroll
            for (int w = 0; w < SPLIT_WARPS; w++) top = fmaxf(top, state[w * DECODE_HEADS * 2]);
#pragma unroll
            for (int w = 0; w < SPLIT_WARPS; w++) { // a warp without keys has largest -inf and weight 0
                weight[w] = exp2_approx(state[w * DECODE_HEADS * 2] - top);
                total += weight[w] * state[w * DECODE_HEADS * 2 + 1];
            }
            float *part = parts + (split * DECODE_HEADS + head) * (dim + 2);
            for (int c = lane; c < dim; c += 32) {
                float value = 0;
#pragma unroll
                for (int w = 0; w < SPLIT_WARPS; w++) value += weight[w] * values[w * DECODE_HEADS * pitch + c];
                if (splits > 1) part[2 + c] = value;
                else put(o, row, at + head * dim + c, keys ? value / total : 0);
            }
            if (splits > 1 && lane == 0) part[0] = top, part[1] = total;
        }
        __syncthreads(); // sums and states read above | written for the next split
    }
    if (splits <= 1) return; // the whole block
    __threadfence();         // this thread's share of parts | the count below
    __syncthreads();         // every thread's share of parts | the count below
    int *count = counts + (int64_t)row * gridDim.y + blockIdx.y;
    if (threadIdx.x == 0) *is_last = atomicAdd(count, 1) == working - 1;
    __syncthreads(); // flag written above | read below
    if (!*is_last) return;
    __threadfence(); // the count above | the other blocks' parts below
    if (threadIdx.x == 0) *count = 0;
    add_splits(o, row, at, parts, heads, dim, splits);
}

// Room for the parts: 64 rows of 32 heads of 128, or what that makes of other sizes; more rows go in pieces, one after the
// other. A few blocks on every multiprocessor, wherever that is possible. Emulated, less of both, so that tests have pieces
// and blocks with several splits.
#ifdef CUDA_EMU
enum { SPLIT_ROWS = 2, SPLIT_BLOCKS = 12 };
#else
enum { SPLIT_ROWS = 64, SPLIT_BLOCKS = 1536 };
#endif
static float *split_parts;
static int *split_counts;
static const int64_t SPLIT_ROOM = (int64_t)SPLIT_ROWS * 4 * SPLITS * DECODE_HEADS * (128 + 2); // floats: 32.5 MiB
static void split_reserve(void) {
    if (split_parts) return;
    size_t counts = (size_t)(SPLIT_ROOM / split_floats(16)) * sizeof *split_counts; // for the smallest heads
    device_check(cudaMalloc((void **)&split_parts, (size_t)SPLIT_ROOM * sizeof *split_parts),
                 "reserving 33 MiB for decoding");
    device_check(cudaMalloc((void **)&split_counts, counts), "reserving counters for decoding");
    device_check(cudaMemsetAsync(split_counts, 0, counts, stream), "zero");
}

static void cuda_attention_decode(Mat o, Mat q, Mat k, Mat v, Spans spans, int64_t heads, int64_t kv_heads, int64_t dim,
                                  float scale) {
    int64_t group = heads / kv_heads, eights = blocks(group, DECODE_HEADS);
    int64_t piece = SPLIT_ROOM / split_floats(dim) / (kv_heads * eights); // rows
    if (!flash_fits(o, q, k, v, dim, scale) || piece == 0) {
        dim3 grid(blocks(q.rows, 1), (unsigned)kv_heads, (unsigned)eights);
        RUN(attention_decode_kernel, grid, DECODE_KEYS, decode_shared(dim), o, q, k, v, spans.rows, (int)group,
            (int)dim, scale);
        return;
    }
    for (int64_t first = 0; first < q.rows; first += piece) {
        int64_t n = q.rows - first < piece ? q.rows - first : piece;
        int64_t depth = SPLIT_BLOCKS / (n * kv_heads * eights) + 1;
        dim3 grid((unsigned)n, (unsigned)(kv_heads * eights), (unsigned)(depth < SPLITS ? depth : (int64_t)SPLITS));
        Mat o_n = mat_rows(o, first, n), q_n = mat_rows(q, first, n), spans_n = mat_rows(spans.rows, first, n);
        if (dim <= 64)
            RUN(attention_split_kernel<64>, grid, SPLIT_THREADS, split_shared(dim), o_n, q_n, k, v, spans_n,
                split_parts, split_counts, (int)group, (int)dim, scale);
        else
            RUN(attention_split_kernel<128>, grid, SPLIT_THREADS, split_shared(dim), o_n, q_n, k, v, spans_n,
                split_parts, split_counts, (int)group, (int)dim, scale);
    }
}

// --------------------------------------------------------------------------------------------------------------- mlp

// swiglu: y = silu(gate) * up, silu(z) = z / (1 + exp(-z)). Row kernel.
__global__ void swiglu_kernel(Mat y, Mat gate, Mat up) {
    int64_t i = blockIdx.x;
    for (int64_t j = threadIdx.x; j < y.cols; j += blockDim.x) {
        float z = get(gate, i, j);
        put(y, i, j, z / (1 + expf(-z)) * get(up, i, j));
    }
}
static void cuda_swiglu_forward(Mat y, Mat gate, Mat up) {
    RUN(swiglu_kernel, blocks(y.rows, 1), row_threads(y.cols), 0, y, gate, up);
}

// swiglu_backward: with s = 1 / (1 + exp(-gate)), dup = dy gate s; dgate = dy up s (1 + gate (1 - s)). Row kernel.
__global__ void swiglu_backward_kernel(Mat dgate, Mat dup, Mat dy, Mat gate, Mat up) {
    int64_t i = blockIdx.x;
    for (int64_t j = threadIdx.x; j < dy.cols; j += blockDim.x) {
        float z = get(gate, i, j), s = 1 / (1 + expf(-z)), g = get(dy, i, j);
        put(dgate, i, j, g * get(up, i, j) * s * (1 + z * (1 - s)));
        put(dup, i, j, g * z * s);
    }
}
static void cuda_swiglu_backward(Mat dgate, Mat dup, Mat dy, Mat gate, Mat up) {
    RUN(swiglu_backward_kernel, blocks(dy.rows, 1), row_threads(dy.cols), 0, dgate, dup, dy, gate, up);
}

// gelu: y = x/2 (1 + erf(x / sqrt 2)), here as x/2 erfc(-x / sqrt 2): for x << 0 the sum would cancel. Row kernel.
__global__ void gelu_kernel(Mat y, Mat x) {
    int64_t i = blockIdx.x;
    for (int64_t j = threadIdx.x; j < y.cols; j += blockDim.x) {
        float z = get(x, i, j);
        put(y, i, j, 0.5f * z * erfcf(-0.70710678f * z));
    }
}
static void cuda_gelu_forward(Mat y, Mat x) { RUN(gelu_kernel, blocks(y.rows, 1), row_threads(y.cols), 0, y, x); }

// gelu_backward: dx = dy (Phi(x) + x phi(x)), Phi by erfc as above. Row kernel.
__global__ void gelu_backward_kernel(Mat dx, Mat dy, Mat x) {
    int64_t i = blockIdx.x;
    for (int64_t j = threadIdx.x; j < x.cols; j += blockDim.x) {
        float z = get(x, i, j), Phi = 0.5f * erfcf(-0.70710678f * z), phi = 0.39894228f * expf(-0.5f * z * z);
        put(dx, i, j, get(dy, i, j) * (Phi + z * phi));
    }
}
static void cuda_gelu_backward(Mat dx, Mat dy, Mat x) {
    RUN(gelu_backward_kernel, blocks(x.rows, 1), row_threads(x.cols), 0, dx, dy, x);
}

// -------------------------------------------------------------------------------------------------------------- rows

// gather_rows: y[i,:] = table[index[i],:], zeros for a negative index. Row kernel.
__global__ void gather_rows_kernel(Mat y, Mat table, Mat index) {
    int64_t i = blockIdx.x;
    int32_t r = get_index(index, i);
    for (int64_t j = threadIdx.x; j < y.cols; j += blockDim.x) put(y, i, j, r < 0 ? 0 : get(table, r, j));
}
static void cuda_gather_rows(Mat y, Mat table, Mat index) {
    RUN(gather_rows_kernel, blocks(y.rows, 1), row_threads(y.cols), 0, y, table, index);
}

// scatter_add_rows: y[index[i],:] += x[i,:] for i in order. Several rows of x may meet in one row of y: the block of the
// first of them adds them all, in order, and the blocks of the others do nothing. Row kernel over the rows of x.
__global__ void scatter_add_rows_kernel(Mat y, Mat x, Mat index) {
    DYNAMIC_SHARED(shared);
    int64_t i = blockIdx.x;
    int32_t r = get_index(index, i);
    int earlier = 0, later = 0;
    for (int64_t n = threadIdx.x; n < x.rows; n += blockDim.x)
        if (get_index(index, n) == r) earlier += n<i, later += n> i;
    earlier = block_reduce(earlier, (int *)shared, Sum());
    later = block_reduce(later, (int *)shared, Sum());
    int64_t end = r < 0 || earlier ? i : later ? x.rows : i + 1;
    for (int64_t n = i; n < end; n++)
        if (get_index(index, n) == r)
            for (int64_t j = threadIdx.x; j < y.cols; j += blockDim.x) put(y, r, j, get(y, r, j) + get(x, n, j));
}
static void cuda_scatter_add_rows(Mat y, Mat x, Mat index) {
    RUN(scatter_add_rows_kernel, blocks(x.rows, 1), row_threads(y.cols), SCRATCH_BYTES, y, x, index);
}

// -------------------------------------------------------------------------------------------------------------- head

// logprob, plain rung: z = logits inv_temperature; lse = log sum exp z; lp = z_t - lse; entropy = lse - sum exp(z - lse) z.
// One block of 512 threads per row, two passes: the largest z, then the sums relative to it; each first per thread, then in
// the block.
__global__ void __launch_bounds__(512)
    logprob_kernel(Mat lp, Mat lse, Mat entropy, Mat logits, Mat targets, float inv_temperature) {
    DYNAMIC_SHARED(shared);
    float *scratch = (float *)shared, largest = -INFINITY, sum = 0, weighted = 0;
    int64_t i = blockIdx.x;
    for (int64_t v = threadIdx.x; v < logits.cols; v += blockDim.x)
        largest = fmaxf(largest, get(logits, i, v) * inv_temperature);
    largest = block_reduce(largest, scratch, Max());
    for (int64_t v = threadIdx.x; v < logits.cols; v += blockDim.x) {
        float z = get(logits, i, v) * inv_temperature - largest, p = expf(z);
        sum += p, weighted += p > 0 ? p * z : 0;
    }
    sum = block_reduce(sum, scratch, Sum());
    weighted = block_reduce(weighted, scratch, Sum());
    if (threadIdx.x == 0) {
        int32_t t = get_index(targets, i);
        put(lp, i, 0, t < 0 ? 0 : get(logits, i, t) * inv_temperature - largest - logf(sum));
        if (lse.p) put(lse, i, 0, largest + logf(sum));
        if (entropy.p) put(entropy, i, 0, fminf(fmaxf(logf(sum) - weighted / sum, 0), logf((float)logits.cols)));
    }
}

// logprob_backward, plain rung: with g = dlp[i] inv_temperature,
//   dlogits[i,v] = g ([v == t] - exp(logits[i,v] inv_temperature - lse[i])),
// zeros where g is 0 or t < 0. The exponent is one fused operation: logits of 100 would lose 1e-5 of p to a rounded
// product. Row kernel. dlogits may lie over logits: in F32 an element is read and written by one thread; in BF16 a step's
// writes fall on logits that this step or an earlier one has read.
__global__ void logprob_backward_kernel(Mat dlogits, Mat logits, Mat targets, Mat lse, Mat dlp, float inv_temperature) {
    int64_t i = blockIdx.x;
    int32_t t = get_index(targets, i);
    float g = t < 0 ? 0 : get(dlp, i, 0) * inv_temperature, l = get(lse, i, 0);
    for (int64_t v0 = 0; v0 < logits.cols; v0 += blockDim.x) {
        int64_t v = v0 + threadIdx.x;
        float z = v < logits.cols ? get(logits, i, v) : 0;
        __syncthreads(); // the step's logits read above | overwritten below
        if (v < logits.cols)
            put(dlogits, i, v, g == 0 ? 0 : g * ((float)(v == t) - expf(fmaf(z, inv_temperature, -l))));
    }
}

// The fast rungs read a row of V logits from memory once for the sums and once for the gradient; 152,064 of them are
// 608 KB, too many to stay in shared memory. One block of 512 threads a row; in every step a thread has four neighbouring
// logits here and four 2048 further on, in 16-byte loads where rows begin at such addresses. Which thread has which logit
// does not depend on that, so neither does a bit of the result. Products that are added to are written as fmaf: a compiler
// that fuses them in one kernel and not in another would give the two other bits.
enum { HEAD_THREADS = 512, HEAD_APART = 4 * HEAD_THREADS, HEAD_STEP = 2 * HEAD_APART };
// z[0..8) of the thread's columns, the first of which is v; -infinity, which weighs nothing, behind the row's end.
__device__ static inline void head_load(float z[8], const float *row, int64_t v, int64_t V, bool wide) {
#pragma unroll
    for (int h = 0; h < 2; h++, v += HEAD_APART)
        if (wide && v + 4 <= V) {
            float4 four = *(const float4 *)(row + v);
            z[4 * h] = four.x, z[4 * h + 1] = four.y, z[4 * h + 2] = four.z, z[4 * h + 3] = four.w;
        } else
#pragma unroll
            for (int k = 0; k < 4; k++) z[4 * h + k] = v + k < V ? row[v + k] : -INFINITY;
}

// Of the logits that were seen so far: the largest z, and sums of p = exp(z - largest) and p (z - largest).
struct Softmax {
    float largest, sum, weighted;
};
// The same sums relative to a larger z: with d = largest - top, exp(z - top) = exp(d) p and z - top = (z - largest) + d.
__device__ static inline void softmax_raise(Softmax &s, float top) {
    float d = s.largest - top, fade = expf(d);
    s.weighted = fade > 0 ? fade * fmaf(d, s.sum, s.weighted) : 0; // d may be -infinity, and 0 times that is no number
    s.sum *= fade, s.largest = top;
}
// Of a whole row, in one pass; the same in every thread. What a thread has seen is relative to its own largest z until
// the end. That begins at the smallest float: -infinity would make its difference to a logit of -infinity no number.
__device__ static inline Softmax row_softmax(const float *row, int64_t V, bool wide, float inv_temperature,
                                             float *scratch) {
    Softmax s = {-3.402823466e38f, 0, 0};
    for (int64_t v = 4 * threadIdx.x; v < V; v += HEAD_STEP) {
        float z[8], top = s.largest;
        head_load(z, row, v, V, wide);
#pragma unroll
        for (int k = 0; k < 8; k++) top = fmaxf(top, z[k] * inv_temperature); // a NaN shows in the sum
        if (top > s.largest) softmax_raise(s, top);
#pragma unroll
        for (int k = 0; k < 8; k++) {
            float d = fmaf(z[k], inv_temperature, -top), p = expf(d);
            s.sum += p;
            if (p > 0) s.weighted = fmaf(p, d, s.weighted); // 0 times -infinity is no number; its limit is 0
        }
    }
    softmax_raise(s, block_reduce(s.largest, scratch, Max()));
    s.sum = block_reduce(s.sum, scratch, Sum());
    s.weighted = block_reduce(s.weighted, scratch, Sum());
    return s;
}

// dlogits of row i from its logits and their lse l, as the plain rung; g and t are the row's. With dlogits over logits the
// steps are kept apart as there.
__device__ static inline void row_gradient(const Mat &dlogits, const float *row, int64_t i, int32_t t, float g, float l,
                                           float inv_temperature, bool wide, bool wide_out) {
    int64_t V = dlogits.cols;
    for (int64_t v0 = 0; v0 < V; v0 += HEAD_STEP) {
        int64_t v = v0 + 4 * threadIdx.x;
        float z[8];
        head_load(z, row, v, V, wide);
        __syncthreads(); // the step's logits read above | overwritten below
#pragma unroll
        for (int h = 0; h < 2; h++, v += HEAD_APART) {
            float d[4];
#pragma unroll
            for (int k = 0; k < 4; k++)
                d[k] = g == 0 ? 0 : g * ((float)(v + k == t) - expf(fmaf(z[4 * h + k], inv_temperature, -l)));
            if (wide_out && v + 4 <= V && dlogits.type == BF16)
                *(uint2 *)mat_at(dlogits, i, v) = make_uint2(f32_to_bf16(d[0]) | (uint32_t)f32_to_bf16(d[1]) << 16,
                                                             f32_to_bf16(d[2]) | (uint32_t)f32_to_bf16(d[3]) << 16);
            else if (wide_out && v + 4 <= V) *(float4 *)mat_at(dlogits, i, v) = make_float4(d[0], d[1], d[2], d[3]);
            else
#pragma unroll
                for (int k = 0; k < 4; k++)
                    if (v + k < V) put(dlogits, i, v + k, d[k]);
        }
    }
}

// Log-probability and entropy of a row, and with `gradient` its dlogits in the same visit (else these and dlp are not
// looked at). wide, wide_out: rows of logits and dlogits may be read and written four at a time.
template <bool gradient>
__global__ void __launch_bounds__(HEAD_THREADS, 2)
    head_kernel(Mat dlogits, Mat lp, Mat lse, Mat entropy, Mat logits, Mat targets, Mat dlp, float inv_temperature,
                bool wide, bool wide_out) {
    DYNAMIC_SHARED(shared);
    int64_t i = blockIdx.x;
    const float *row = (const float *)mat_at(logits, i, 0);
    int32_t t = get_index(targets, i);
    float at = t < 0 ? 0 : row[t]; // by every thread, in front of barriers: dlogits may take its place
    Softmax s = row_softmax(row, logits.cols, wide, inv_temperature, (float *)shared);
    float l = s.largest + logf(s.sum);
    if (threadIdx.x == 0) {
        put(lp, i, 0, t < 0 ? 0 : fmaf(at, inv_temperature, -s.largest) - logf(s.sum));
        if (lse.p) put(lse, i, 0, l);
        if (entropy.p) put(entropy, i, 0, fminf(fmaxf(logf(s.sum) - s.weighted / s.sum, 0), logf((float)logits.cols)));
    }
    if (gradient)
        row_gradient(dlogits, row, i, t, t < 0 ? 0 : get(dlp, i, 0) * inv_temperature, l, inv_temperature, wide,
                     wide_out);
}
__global__ void __launch_bounds__(HEAD_THREADS, 2)
    head_backward_kernel(Mat dlogits, Mat logits, Mat targets, Mat lse, Mat dlp, float inv_temperature, bool wide,
                         bool wide_out) {
    int64_t i = blockIdx.x;
    int32_t t = get_index(targets, i);
    row_gradient(dlogits, (const float *)mat_at(logits, i, 0), i, t, t < 0 ? 0 : get(dlp, i, 0) * inv_temperature,
                 get(lse, i, 0), inv_temperature, wide, wide_out);
}

static bool
head_wide(Mat m) { // four elements of a row, from every fourth on, lie on an address that is a multiple of their size
    size_t bytes = 4 * type_size(m.type);
    return (uintptr_t)m.p % bytes == 0 && m.stride % 4 == 0;
}
static void cuda_logprob_forward(Mat lp, Mat lse, Mat entropy, Mat logits, Mat targets, float inv_temperature) {
    unsigned rows = blocks(logits.rows, 1);
    if (rungs.naive) RUN(logprob_kernel, rows, 512, SCRATCH_BYTES, lp, lse, entropy, logits, targets, inv_temperature);
    else
        RUN(head_kernel<false>, rows, HEAD_THREADS, SCRATCH_BYTES, mat_none(), lp, lse, entropy, logits, targets,
            mat_none(), inv_temperature, head_wide(logits), false);
}
static void cuda_logprob_backward(Mat dlogits, Mat logits, Mat targets, Mat lse, Mat dlp, float inv_temperature) {
    unsigned rows = blocks(logits.rows, 1);
    if (rungs.naive)
        RUN(logprob_backward_kernel, rows, row_threads(logits.cols), 0, dlogits, logits, targets, lse, dlp,
            inv_temperature);
    else
        RUN(head_backward_kernel, rows, HEAD_THREADS, 0, dlogits, logits, targets, lse, dlp, inv_temperature,
            head_wide(logits), head_wide(dlogits));
}
static void cuda_logprob_forward_backward(Mat dlogits, Mat lp, Mat lse, Mat entropy, Mat logits, Mat targets, Mat dlp,
                                          float inv_temperature) {
    if (rungs.naive) {
        cuda_logprob_forward(lp, lse, entropy, logits, targets, inv_temperature);
        cuda_logprob_backward(dlogits, logits, targets, lse, dlp, inv_temperature);
    } else
        RUN(head_kernel<true>, blocks(logits.rows, 1), HEAD_THREADS, SCRATCH_BYTES, dlogits, lp, lse, entropy, logits,
            targets, dlp, inv_temperature, head_wide(logits), head_wide(dlogits));
}

// sample: as ops.c, in double, so that the same id comes out: penalty, temperature, top-k, top-p, min-p, then the largest
// z - log(-log u). One block of 512 threads per row and no memory beyond the histogram: a score is computed anew wherever
// it is needed. What the filters keep is the beginning of the order (score down, id up), so each filter is a search for
// the last kept place: by radix, 8 bits of the (score, id) key at a time, the weight before it counted in integers, which
// may be added in any order. Probabilities become integers in units of 2^-43 of the best: 2^20 of them fit in 63 bits.
typedef unsigned long long Key;
struct Place { // ascending = later in the order
    Key score; // the complement of the score's order-preserving bits
    uint32_t id;
};
struct Row { // what a score depends on
    const float *logits;
    const uint32_t *seen; // NULL without penalty
    SampleParams p;
    int64_t V;
    double best; // the largest score
    Key last_k;  // the score key of the top_k-th place
};
__device__ static inline double row_score(const Row &r, int64_t v) {
    double z = r.logits[v];
    if (r.seen && (r.seen[v / 32] >> (v % 32) & 1)) z = z < 0 ? z * r.p.repetition_penalty : z / r.p.repetition_penalty;
    if (r.p.do_sample) z /= r.p.temperature;
    return z + 0.0; // -0 and 0 are equal and must have one key
}
__device__ static inline Key score_key(double z) {
    Key bits;
    memcpy(&bits, &z, sizeof bits);
    return bits >> 63 ? bits : ~(bits | (Key)1 << 63);
}
__device__ static inline Key row_mass(const Row &r, double z) {
    double e = exp(z - r.best);
    return e > 0 ? (Key)(e * 8796093022208.0 + 0.5) : 0; // a NaN weighs nothing
}

// The first place at which the weights up to and including it reach `limit` (>= 1): weight 1 for each id, or its mass among
// the ids up to r.last_k. `digits` 8 compares scores only, 12 scores and ids.
__device__ static Place find_place(const Row &r, bool by_mass, Key limit, int digits, Key *histogram) {
    Place at = {0, 0};
    for (int d = 0; d < digits; d++) {
        int shift = d < 8 ? 56 - 8 * d : 24 - 8 * (d - 8);
        for (int b = threadIdx.x; b < 256; b += blockDim.x) histogram[b] = 0;
        __syncthreads(); // zeros written above | added to below
        for (int64_t v = threadIdx.x; v < r.V; v += blockDim.x) {
            double z = row_score(r, v);
            Key key = score_key(z);
            uint32_t id = (uint32_t)v;
            bool same = d == 0 || (d < 8 ? key >> (shift + 8) == at.score >> (shift + 8)
                                         : key == at.score && (d == 8 || id >> (shift + 8) == at.id >> (shift + 8)));
            if (!same || (by_mass && key > r.last_k)) continue;
            atomicAdd(&histogram[(d < 8 ? key >> shift : (Key)(id >> shift)) & 255], by_mass ? row_mass(r, z) : (Key)1);
        }
        __syncthreads(); // weights added above | read below
        int b = 0;
        for (; b < 255 && histogram[b] < limit; b++) limit -= histogram[b]; // every thread takes the same walk
        if (d < 8) at.score |= (Key)b << shift;
        else at.id |= (uint32_t)b << shift;
        __syncthreads(); // histogram read above | zeroed in the next round
    }
    return at;
}

__global__ void __launch_bounds__(512)
    sample_kernel(Mat tokens, Mat logits, Mat seen, Mat streams, Mat steps, SampleParams p) {
    DYNAMIC_SHARED(shared);
    Key *histogram = (Key *)(shared + SCRATCH_BYTES);
    int64_t i = blockIdx.x;
    uint32_t *bits = seen.p ? (uint32_t *)mat_at(seen, i, 0) : NULL;
    Row r = {(const float *)mat_at(logits, i, 0), p.repetition_penalty != 1 ? bits : NULL, p, logits.cols, 0, ~(Key)0};
    double best = -INFINITY;
    for (int64_t v = threadIdx.x; v < r.V; v += blockDim.x) best = fmax(best, row_score(r, v));
    r.best = block_reduce(best, (double *)shared, Max());
    Place last = {~(Key)0, ~0u};
    if (p.do_sample && p.top_k > 0 && p.top_k < r.V)
        last.score = r.last_k = find_place(r, false, (Key)p.top_k, 8, histogram).score;
    if (p.do_sample && p.top_p < 1) {
        Key total = 0;
        for (int64_t v = threadIdx.x; v < r.V; v += blockDim.x) {
            double z = row_score(r, v);
            if (score_key(z) <= r.last_k) total += row_mass(r, z);
        }
        total = block_reduce(total, (Key *)shared, Sum());
        double limit = ceil(p.top_p * (double)total);
        last = find_place(r, true, limit < 1 ? 1 : (Key)limit, 12, histogram);
    }
    uint64_t stream_id = (uint64_t)(uint32_t)get_index(steps, i) << 32 | (uint32_t)get_index(streams, i);
    int id = INT32_MAX;
    best = -INFINITY;
    for (int64_t v = threadIdx.x; v < r.V; v += blockDim.x) {
        double z = row_score(r, v);
        if (p.do_sample) {
            Key key = score_key(z);
            if (key > last.score || (key == last.score && (uint32_t)v > last.id) ||
                (p.min_p > 0 && exp(z - r.best) < p.min_p))
                continue;
            z -= log(-log(random_uniform(p.seed, RANDOM_SAMPLE, stream_id, (uint32_t)v)));
        }
        if (z > best || (z == best && id == INT32_MAX)) best = z, id = (int)v;
    }
    double largest = block_reduce(best, (double *)shared, Max());
    id = block_reduce(best == largest ? id : INT32_MAX, (int *)shared, Min());
    if (threadIdx.x == 0) {
        if (id == INT32_MAX) id = 0; // a row of NaN
        *(int32_t *)mat_at(tokens, i, 0) = id;
        if (bits) bits[id / 32] |= 1u << (id % 32); // every thread's reads of seen are behind the barriers above
    }
}
static void cuda_sample(Mat tokens, Mat logits, Mat seen, Mat streams, Mat steps, SampleParams params) {
    RUN(sample_kernel, blocks(logits.rows, 1), 512, SCRATCH_BYTES + 256 * sizeof(Key), tokens, logits, seen, streams,
        steps, params);
}

// -------------------------------------------------------------------------------------------------------------- step

// sum_squares, in double and two steps: each block leaves one sum in `squares`, then one block adds these. How many
// blocks there are and which element goes to which thread depend on the shape only. A contiguous x is one long row.
// grid (pieces of a row, pieces of the rows).
enum { SQUARES_BLOCKS = 512 };
static double *squares; // [SQUARES_BLOCKS], 4 KiB for the life of the program; the stream's order keeps calls apart
__global__ void __launch_bounds__(256) sum_squares_kernel(double *sums, Mat x) {
    DYNAMIC_SHARED(shared);
    double sum = 0;
    for (int64_t i = blockIdx.y; i < x.rows; i += gridDim.y)
        for (int64_t j = (int64_t)blockIdx.x * 256 + threadIdx.x; j < x.cols; j += (int64_t)gridDim.x * 256) {
            double v = get(x, i, j);
            sum += v * v;
        }
    sum = block_reduce(sum, (double *)shared, Sum());
    if (threadIdx.x == 0) sums[blockIdx.y * gridDim.x + blockIdx.x] = sum;
}
__global__ void __launch_bounds__(256) sum_sums_kernel(Mat out, const double *sums, int n) {
    DYNAMIC_SHARED(shared);
    double sum = 0;
    for (int b = threadIdx.x; b < n; b += 256) sum += sums[b];
    sum = block_reduce(sum, (double *)shared, Sum());
    if (threadIdx.x == 0) put(out, 0, 0, (float)sum);
}
static void cuda_sum_squares(Mat out, Mat x) {
    if (x.stride == x.cols) x = mat_reshape(x, 1, x.rows * x.cols);
    int64_t across = x.cols / 4096 + 1, down = x.rows; // 4096 columns are 16 a thread
    if (across > SQUARES_BLOCKS) across = SQUARES_BLOCKS;
    if (down > SQUARES_BLOCKS / across) down = SQUARES_BLOCKS / across;
    if (down == 0) down = 1; // nothing to add is 0
    RUN(sum_squares_kernel, dim3((unsigned)across, (unsigned)down), 256, SCRATCH_BYTES, squares, x);
    RUN(sum_sums_kernel, 1, 256, SCRATCH_BYTES, out, (const double *)squares, (int)(across * down));
}

// adamw: g *= grad_scale;  w *= 1 - lr decay;  m += (1 - beta1)(g - m);  v = beta2 v + (1 - beta2) g^2;
// w -= step_size m / (sqrt(v) root_scale + eps). In double, as the reference: memory is what an update waits for.
// grid (rows, pieces of a row), each element by one thread.
__global__ void __launch_bounds__(256) adamw_kernel(Mat w, Mat m, Mat v, Mat g, AdamStep s) {
    int64_t i = blockIdx.x, step = (int64_t)gridDim.y * blockDim.x;
    for (int64_t j = (int64_t)blockIdx.y * blockDim.x + threadIdx.x; j < w.cols; j += step) {
        double d = s.grad_scale * get(g, i, j), m1 = get(m, i, j), v1 = get(v, i, j);
        m1 += (1 - s.beta1) * (d - m1), v1 = s.beta2 * v1 + (1 - s.beta2) * d * d;
        put(m, i, j, (float)m1), put(v, i, j, (float)v1);
        put(w, i, j,
            (float)(get(w, i, j) * (1 - s.lr * s.decay) - s.step_size * m1 / (sqrt(v1) * s.root_scale + s.eps)));
    }
}
static void cuda_adamw(Mat w, Mat m, Mat v, Mat g, AdamStep step) {
    unsigned pieces = blocks(w.cols, 1024); // of 1024 columns, but not more than 1024 of them
    RUN(adamw_kernel, dim3(blocks(w.rows, 1), pieces < 1024 ? pieces : 1024), row_threads(w.cols), 0, w, m, v, g, step);
}

// ------------------------------------------------------------------------------------------------------------- types

// cast: y = x in y's type. Row kernel.
__global__ void cast_kernel(Mat y, Mat x) {
    int64_t i = blockIdx.x;
    for (int64_t j = threadIdx.x; j < y.cols; j += blockDim.x) put(y, i, j, get(x, i, j));
}
static void cuda_cast(Mat y, Mat x) { RUN(cast_kernel, blocks(y.rows, 1), row_threads(y.cols), 0, y, x); }

// ------------------------------------------------------------------------------------------------------------- table

static const Ops *no_device(Err *e, const char *found) {
    Where nowhere = {};
    err_set(e, "E-DV-01", nowhere,
            "expected a CUDA device of compute capability 8.0 or newer; found %s; do: use --device cpu", found);
    return NULL;
}
const Ops *ops_cuda(Type act_type, Err *e) {
    static Ops tables[2];
    CHECK(act_type == F32 || act_type == BF16, "activations of type %d", (int)act_type);
    Ops *o = &tables[act_type == BF16];
    if (o->name) return o;
    int n = 0;
    cudaError_t error = cudaGetDeviceCount(&n);
    if (error != cudaSuccess || !n)
        return (void)cudaGetLastError(), no_device(e, error != cudaSuccess ? cudaGetErrorString(error) : "none");
    cudaDeviceProp device;
    device_check(cudaGetDeviceProperties(&device, 0), "reading the device's properties");
    char found[400];
    snprintf(found, sizeof found, "%s with %d.%d", device.name, device.major, device.minor);
    if (device.major < 8) return no_device(e, found);
    if (!stream) device_check(cudaStreamCreate(&stream), "creating a stream");
    processors = device.multiProcessorCount;
    cublas_open();
    device_check(cudaFuncSetAttribute(attention_forward_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      (int)attention_shared(MAX_DIM)),
                 "asking for shared memory");
    device_check(cudaFuncSetAttribute(attention_flash_kernel<128, 256>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      flash_shared<128>()),
                 "asking for shared memory"); // the others are below 48 KiB
    static_assert(flash_shared<80>() <= 48 * 1024, "needs no asking");
    int backward_shared = (int)attention_backward_shared(MAX_DIM);
    device_check(
        cudaFuncSetAttribute(attention_dq_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, backward_shared),
        "asking for shared memory");
    device_check(
        cudaFuncSetAttribute(attention_dkdv_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, backward_shared),
        "asking for shared memory");
    attention_backward_mma_prepare<32>(), attention_backward_mma_prepare<64>();
    attention_backward_mma_prepare<80>(), attention_backward_mma_prepare<128>();
    if (!squares)
        device_check(cudaMalloc((void **)&squares, SQUARES_BLOCKS * sizeof *squares), "reserving 4 KiB for sums");
    split_reserve();
    o->act_type = act_type, o->weight_grad_type = F32, o->pad = CUDA_PAD;
    o->alloc = cuda_alloc, o->release = cuda_release, o->upload = cuda_upload, o->download = cuda_download;
    o->memory = cuda_memory;
    o->zero = cuda_zero, o->copy = cuda_copy, o->sync = cuda_sync;
    o->matmul = cuda_matmul, o->matmul_bias = cuda_matmul_bias, o->add_bias = cuda_add_bias, o->add = cuda_add;
    o->bias_backward = cuda_bias_backward, o->dropout = cuda_dropout;
    o->rmsnorm_forward = cuda_rmsnorm_forward, o->add_rmsnorm_forward = cuda_add_rmsnorm_forward;
    o->rmsnorm_backward_add = cuda_rmsnorm_backward_add;
    o->rope = cuda_rope;
    o->attention_forward = cuda_attention_forward, o->attention_decode = cuda_attention_decode;
    o->attention_backward = cuda_attention_backward;
    o->swiglu_forward = cuda_swiglu_forward, o->swiglu_backward = cuda_swiglu_backward;
    o->gelu_forward = cuda_gelu_forward, o->gelu_backward = cuda_gelu_backward;
    o->gather_rows = cuda_gather_rows, o->scatter_add_rows = cuda_scatter_add_rows;
    o->logprob_forward = cuda_logprob_forward, o->logprob_backward = cuda_logprob_backward, o->sample = cuda_sample;
    o->logprob_forward_backward = cuda_logprob_forward_backward;
    o->sum_squares = cuda_sum_squares, o->adamw = cuda_adamw;
    o->cast = cuda_cast;
    o->capture_begin = cuda_capture_begin, o->capture_end = cuda_capture_end;
    o->replay = cuda_replay, o->capture_release = cuda_capture_release;
    o->name = "cuda";
    return o;
}
#endif
