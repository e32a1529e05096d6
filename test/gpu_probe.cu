// gpu_probe.cu - asks a CUDA device what it is, how fast its tensor cores are, and which lane holds which element.
//
// What it is:  the wrappers of kernels.cu for ldmatrix, movmatrix, mma.sync and cp.async, run on known matrices by one warp; the
//              device's name; a loop of mma on registers. nvcc compiles it for the device (gpu_...), g++ against
//              cuda_emu.h (emulated_...): the twins there and the kernels come from one manual, and comparing the two is how
//              hardware checks that it was read correctly.
// What it is not: part of the program.
// Read before: kernels.cu, first page.  Read next: test_fragments.c.
#define SURGR1_WRAPPERS_ONLY
#include "../kernels.cu"
#include "gpu_probe.h"
#ifdef CUDA_EMU
#define NAME(name) emulated_##name
extern "C" void emulated_schedule(int order, int early) { cuda_emu_schedule(order, early); }
#else
#define NAME(name) gpu_##name
#endif

// y [16,16] of one warp, from x and w [16,16] in shared memory, by the addresses that matmul_mma_kernel takes.
__device__ static void product(float *y, const uint16_t *x, const uint16_t *w, Layout layout) {
    int lane = threadIdx.x % 32;
    uint32_t a[4], b[4];
    float c[2][4] = {};
    if (layout == TN) ldmatrix_x4_trans(a, x + (lane % 8 + lane / 16 * 8) * 16 + lane / 8 % 2 * 8);
    else ldmatrix_x4(a, x + lane % 16 * 16 + lane / 16 * 8);
    if (layout == NT) ldmatrix_x4(b, w + (lane % 8 + lane / 16 * 8) * 16 + lane / 8 % 2 * 8);
    else ldmatrix_x4_trans(b, w + lane % 16 * 16 + lane / 16 * 8);
    for (int j = 0; j < 2; j++) mma_m16n8k16_bf16(c[j], a, b + 2 * j);
    for (int j = 0; j < 2; j++)
        for (int e = 0; e < 4; e++) y[(lane / 4 + e / 2 * 8) * 16 + 8 * j + lane % 4 * 2 + e % 2] = c[j][e];
}
enum { PROBE_SHARED = 512 + 512 + 512 + 512 };
__global__ void __launch_bounds__(32) fragments_kernel(const FragmentsIn *in, FragmentsOut *out) {
    DYNAMIC_SHARED(shared);
    int lane = threadIdx.x;
    uint16_t *tile = (uint16_t *)shared, *x = tile + 256, *w = x + 256;
    unsigned char *to = shared + 1536;
    for (int i = lane; i < 256; i += 32) {
        tile[i] = (&in->tile[0][0][0])[i];
        x[i] = (&in->x[0][0])[i], w[i] = (&in->w[0][0])[i];
    }
    for (int i = 0; i < 16; i++) to[16 * lane + i] = 0xEE;
    __syncthreads(); // shared memory written above | read and copied over below
    ldmatrix_x4(out->plain[lane], tile + 8 * in->row_of[lane]);
    ldmatrix_x4_trans(out->turned[lane], tile + 8 * in->row_of[lane]);
    uint32_t a[4], b[2];
    float c[4];
    for (int i = 0; i < 4; i++) a[i] = in->a[lane][i], c[i] = in->c[lane][i];
    for (int i = 0; i < 2; i++) b[i] = in->b[lane][i];
    mma_m16n8k16_bf16(c, a, b);
    for (int i = 0; i < 4; i++) out->c[lane][i] = c[i];
    product(&out->nt[0][0], x, w, NT);
    product(&out->nn[0][0], x, w, NN);
    product(&out->tn[0][0], x, w, TN);
    out->moved[lane] = movmatrix_trans(in->pair[lane]);
    out->rounded[lane] = bf16_pair(in->low[lane], in->high[lane]);
    out->exp2[lane] = exp2_approx(in->power[lane]);
    cp_async16(to + 16 * lane, in->from[lane], in->bytes[lane]);
    cp_async_commit();
    cp_async_wait<0>();
    for (int i = 0; i < 16; i++) out->to[lane][i] = to[16 * lane + i]; // its own copy: no barrier needed
}

// Eight independent chains a warp; the sums are written only if they are what they cannot be.
enum { PEAK_CHAINS = 8, PEAK_WARPS = 8 };
__global__ void __launch_bounds__(32 * PEAK_WARPS) mma_peak_kernel(float *out, int rounds) {
    uint32_t a[4], b[2]; // signs and mantissas that differ: a multiplier at rest draws less power, and clocks rise
    for (int i = 0; i < 4; i++) a[i] = 0x3f803f80u ^ ((threadIdx.x + 64 * i + 1) * 2654435761u & 0x807f807fu);
    for (int i = 0; i < 2; i++) b[i] = 0x3f803f80u ^ ((threadIdx.x + 64 * i + 7) * 2246822519u & 0x807f807fu);
    float c[PEAK_CHAINS][4] = {};
    for (int r = 0; r < rounds; r++) {
#pragma unroll
        for (int k = 0; k < PEAK_CHAINS; k++) mma_m16n8k16_bf16(c[k], a, b);
    }
    float sum = 0;
#pragma unroll
    for (int k = 0; k < PEAK_CHAINS; k++) sum += c[k][0] + c[k][1] + c[k][2] + c[k][3];
    if (sum == -1) out[threadIdx.x] = sum;
}

// ------------------------------------------------------------------------------------------------------------ the host

static bool failed(cudaError_t error, const char *what, char *text, size_t size) {
    if (error == cudaSuccess) return false;
    snprintf(text, size, "%s: %s", what, cudaGetErrorString(error));
    return (void)cudaGetLastError(), true;
}
extern "C" bool NAME(describe)(char *text, size_t size) {
    int n = 0;
    cudaDeviceProp p;
    if (failed(cudaGetDeviceCount(&n), "no CUDA device", text, size)) return false;
    if (!n) return snprintf(text, size, "no CUDA device"), false;
    if (failed(cudaGetDeviceProperties(&p, 0), "reading the device's properties", text, size)) return false;
    int used = snprintf(text, size, "%s, compute capability %d.%d, %d multiprocessors, %.1f GiB", p.name, p.major,
                        p.minor, p.multiProcessorCount, (double)p.totalGlobalMem / (1 << 30));
    if (p.major < 8) return snprintf(text, size, "no usable CUDA device: %s has %d.%d, kernels need 8.0", p.name, p.major, p.minor), false;
#ifndef CUDA_EMU
    int driver = 0, runtime = 0, clock = 0, memory_clock = 0; // kHz; the fields of cudaDeviceProp went with CUDA 13
    (void)cudaDriverGetVersion(&driver), (void)cudaRuntimeGetVersion(&runtime);
    (void)cudaDeviceGetAttribute(&clock, cudaDevAttrClockRate, 0);
    (void)cudaDeviceGetAttribute(&memory_clock, cudaDevAttrMemoryClockRate, 0);
    (void)cudaGetLastError();
    if (used > 0 && (size_t)used < size)
        snprintf(text + used, size - (size_t)used,
                 "\nlargest clocks %d MHz, memory %d MHz; driver for CUDA %d.%d, runtime %d.%d", clock / 1000,
                 memory_clock / 1000, driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
#else
    (void)used;
#endif
    return true;
}
extern "C" bool NAME(fragments)(const FragmentsIn *in, FragmentsOut *out, char *why, size_t size) {
    FragmentsIn *din = NULL;
    FragmentsOut *dout = NULL;
    if (!NAME(describe)(why, size)) return false;
    if (failed(cudaMalloc((void **)&din, sizeof *din), "cudaMalloc", why, size)) return false;
    if (failed(cudaMalloc((void **)&dout, sizeof *dout), "cudaMalloc", why, size)) return false;
    (void)cudaMemcpy(din, in, sizeof *in, cudaMemcpyHostToDevice);
    (void)cudaMemset(dout, 0xff, sizeof *dout);
    LAUNCH(fragments_kernel, 1, 32, PROBE_SHARED, 0, (const FragmentsIn *)din, dout);
    bool bad = failed(cudaGetLastError(), "the launch", why, size);
    bad = failed(cudaMemcpy(out, dout, sizeof *out, cudaMemcpyDeviceToHost), "the probe", why, size) || bad;
    (void)cudaFree(din), (void)cudaFree(dout);
    return !bad;
}
extern "C" double NAME(mma_peak)(void) {
    cudaDeviceProp p;
    cudaEvent_t from, to;
    float *out, ms = 0, best = 0;
    if (cudaGetDeviceProperties(&p, 0) != cudaSuccess) return 0;
#ifdef CUDA_EMU
    int rounds = 1, blocks = 1;
#else
    int rounds = 4096, blocks = 4 * p.multiProcessorCount;
#endif
    (void)cudaMalloc((void **)&out, 32 * PEAK_WARPS * sizeof *out);
    (void)cudaEventCreate(&from), (void)cudaEventCreate(&to);
    for (int r = 0; r < 5; r++) {
        (void)cudaEventRecord(from);
        LAUNCH(mma_peak_kernel, (unsigned)blocks, 32 * PEAK_WARPS, 0, 0, out, rounds);
        (void)cudaEventRecord(to), (void)cudaEventSynchronize(to);
        if (cudaEventElapsedTime(&ms, from, to) == cudaSuccess && (best == 0 || ms < best)) best = ms;
    }
    (void)cudaEventDestroy(from), (void)cudaEventDestroy(to), (void)cudaFree(out);
    double operations = 2.0 * 16 * 8 * 16 * PEAK_CHAINS * PEAK_WARPS * (double)rounds * blocks;
    return best > 0 ? operations / (1e9 * (double)best) : 0;
}
