// gpu_probe.h - what tests and benchmarks ask of a CUDA device beside the ops.
//
// What it is:  the doors of gpu_probe.cu, which is compiled twice: by nvcc for the device (gpu_...), and by g++ against
//              cuda_emu.h (emulated_...). On a machine with a GPU both are linked into one test.
// What it is not: part of the program.
// Read before: kernels.cu, first page.  Read next: gpu_probe.cu, test_fragments.c.
#ifndef GPU_PROBE_H
#define GPU_PROBE_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

// Everything a warp is given and what it leaves in its registers. Elements of 16 bits are stored as such.
typedef struct FragmentsIn {
    uint16_t tile[4][8][8]; // four matrices in shared memory, rows in the order `row_of` of their addresses
    uint8_t row_of[32];     // lane l gives the address of row row_of[l] of the 32 rows
    uint32_t a[32][4], b[32][2];
    float c[32][4];                  // registers of mma.m16n8k16, lane by lane
    uint16_t x[16][16], w[16][16];   // bf16; w is read as [n][k], and as [k][n]
    uint8_t bytes[32], from[32][16]; // of cp.async
    uint32_t pair[32];               // an 8x8 matrix, two neighbours of a row in each lane
    float low[32], high[32], power[32];
} FragmentsIn;
typedef struct FragmentsOut {
    uint32_t plain[32][4], turned[32][4];     // ldmatrix_x4 and ldmatrix_x4_trans of `tile`
    float c[32][4];                           // c + a b
    float nt[16][16], nn[16][16], tn[16][16]; // x w^T, x w, x^T w, read and written as matmul does
    uint8_t to[32][16];                       // cp_async16 onto bytes of 0xEE
    uint32_t moved[32], rounded[32];          // movmatrix_trans of `pair`; bf16_pair(low, high)
    float exp2[32]; // exp2_approx(power): the last one, as hardware may differ from the twin in its last bits
} FragmentsOut;
// False where there is no device; `why` says so.
bool gpu_fragments(const FragmentsIn *in, FragmentsOut *out, char *why, size_t size);
bool emulated_fragments(const FragmentsIn *in, FragmentsOut *out, char *why, size_t size);
void emulated_schedule(int order, int early); // of cuda_emu.h, for emulated_fragments

// A few lines about device 0: name, compute capability, memory, clocks, driver and runtime. False: there is none that the
// kernels run on, and the text says why.
bool gpu_describe(char *text, size_t size);
bool emulated_describe(char *text, size_t size);
// TFLOP/s of mma.m16n8k16 on registers alone: no kernel built on it can be faster.
double gpu_mma_peak(void);
double emulated_mma_peak(void);

#ifdef __cplusplus
}
#endif
#endif
