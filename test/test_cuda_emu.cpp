// test_cuda_emu.cpp - the emulator itself: that it computes what CUDA defines, and that it catches planted faults.
//
// What it is:  small kernels with one fault each, switched on by an argument. The sound version must give the same right
//              answer under every schedule; the faulty one must be caught: by a wrong answer under at least one schedule, or
//              by a report that names what happened, the threads and the line.
// Read before: cuda_emu.h.
#include "cuda_emu.h"
#include "cublaslt_emu.h"
#include "test.h"
#include <initializer_list>
#include <sys/wait.h>

#if defined(__SANITIZE_ADDRESS__)
static const bool sanitized = true;
#else
static const bool sanitized = false;
#endif

static const int schedules[6][2] = {{EMU_FORWARD, 1}, {EMU_FORWARD, 0},  {EMU_REVERSE, 1},
                                    {EMU_REVERSE, 0}, {EMU_SHUFFLED, 1}, {EMU_SHUFFLED, 0}};

template <typename T> struct Device { // n elements of device memory, full of NaN bytes
    T *p;
    int n;
    explicit Device(int count) : n(count) { cudaMalloc((void **)&p, (size_t)n * sizeof(T)); }
    ~Device() { cudaFree(p); }
    void set(const T *from) { cudaMemcpy(p, from, (size_t)n * sizeof(T), cudaMemcpyHostToDevice); }
    void get(T *to) { cudaMemcpy(to, p, (size_t)n * sizeof(T), cudaMemcpyDeviceToHost); }
};

// How many of the six schedules give a right answer, as `run` judges.
template <typename F> static int right_schedules(F run) {
    int right = 0;
    for (auto &s : schedules) cuda_emu_schedule(s[0], s[1]), right += run() ? 1 : 0;
    cuda_emu_schedule(EMU_FORWARD, 1);
    return right;
}

// Kernels note the lines that a report must name, in memory shared with the children that die.
static int *const marks = (int *)mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
#define MARK(n) marks[n] = __LINE__

// Runs f in a child, which must die saying every one of the texts; "@0" stands for the line of MARK(0).
static char death_report[65536];
template <typename F> static bool dies_saying(F f, std::initializer_list<const char *> texts) {
    int ends[2];
    if (pipe(ends)) return false;
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        dup2(ends[1], 2), close(ends[0]), close(ends[1]);
        f();
        cudaDeviceSynchronize();
        _exit(0);
    }
    close(ends[1]);
    size_t used = 0;
    for (ssize_t got; (got = read(ends[0], death_report + used, sizeof death_report - 1 - used)) > 0;)
        used += (size_t)got;
    death_report[used] = 0;
    close(ends[0]);
    int status = 0;
    waitpid(pid, &status, 0);
    bool said = !(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    for (const char *text : texts) {
        char line[40];
        snprintf(line, sizeof line, "test_cuda_emu.cpp:%d", text[0] == '@' ? marks[text[1] - '0'] : 0);
        said = said && strstr(death_report, text[0] == '@' ? line : text);
    }
    if (!said) fprintf(stderr, "status %d, said: %s\n", status, death_report);
    return said;
}
// ------------------------------------------------------------------------------------------------ what CUDA defines

__global__ void index_kernel(int *y) {
    int thread = (int)(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z));
    int block = (int)(blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z));
    y[block * (int)(blockDim.x * blockDim.y * blockDim.z) + thread] = block * 1000 + thread;
}
TEST(every_thread_of_every_block_runs_once) {
    EXPECT_INT(right_schedules([] {
                   Device<int> y(24 * 35);
                   int host[24 * 35];
                   LAUNCH(index_kernel, dim3(2, 3, 4), dim3(7, 5, 1), 0, 0, y.p);
                   y.get(host);
                   bool right = true;
                   for (int i = 0; i < 24 * 35; i++) right = right && host[i] == i / 35 * 1000 + i % 35;
                   return right;
               }),
               6);
}

__global__ void warp_kernel(int *y) {
    int lane = (int)threadIdx.x % 32, *out = y + threadIdx.x * 10;
    long long wide = (long long)lane << 40;
    out[0] = __shfl_sync(0xffffffffu, lane * lane, 5);
    out[1] = __shfl_sync(0xffffffffu, lane, lane + 1, 8); // segments of eight, wrapping inside
    out[2] = __shfl_xor_sync(0xffffffffu, lane, 16);
    out[3] = __shfl_down_sync(0xffffffffu, lane, 3);
    out[4] = __shfl_up_sync(0xffffffffu, lane, 3);
    out[5] = (int)__ballot_sync(0xffffffffu, lane % 3 == 0);
    out[6] = (int)(__shfl_xor_sync(0xffffffffu, wide, 1) >> 40);
    if (lane < 8) { // two halves of a warp in different operations
        for (int k = 0; k < 3; k++) out[7] = __any_sync(0xffu, lane == 2) + 2 * __all_sync(0xffu, lane < 8);
        out[8] = __shfl_down_sync(0xffu, lane, 4, 8);
    } else {
        out[7] = (int)__ballot_sync(0xffffff00u, lane == 9), out[8] = 0;
    }
    __syncwarp();
    out[9] = __shfl_sync(0xffffffffu, out[7], 0);
}
TEST(shuffles_and_votes_move_what_cuda_says) {
    EXPECT_INT(right_schedules([] {
                   Device<int> y(64 * 10);
                   int host[64 * 10];
                   LAUNCH(warp_kernel, 1, 64, 0, 0, y.p);
                   y.get(host);
                   bool right = true;
                   for (int t = 0; t < 64; t++) {
                       int lane = t % 32, *o = host + t * 10;
                       right = right && o[0] == 25 && o[1] == lane / 8 * 8 + (lane + 1) % 8 && o[2] == (lane ^ 16) &&
                               o[3] == (lane < 29 ? lane + 3 : lane) && o[4] == (lane >= 3 ? lane - 3 : lane) &&
                               o[5] == 0x49249249 && o[6] == (lane ^ 1) && o[7] == (lane < 8 ? 3 : 512) &&
                               o[8] == (lane < 4   ? lane + 4
                                        : lane < 8 ? lane
                                                   : 0) &&
                               o[9] == 3;
                   }
                   return right;
               }),
               6);
}

__global__ void atomic_kernel(unsigned *counts, unsigned long long *sum, int *most) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    atomicAdd(&counts[i % 7], 1u);
    atomicAdd(sum, (unsigned long long)i << 30);
    atomicMax(most, (int)(i * 37 % 101));
    if (i == 3) atomicCAS(&counts[7], 0u, 9u), atomicExch(&counts[8], 5u), atomicOr(&counts[9], 6u);
}
TEST(integer_atomics_count_every_thread) {
    EXPECT_INT(right_schedules([] {
                   Device<unsigned> counts(10);
                   Device<unsigned long long> sum(1);
                   Device<int> most(1);
                   cudaMemset(counts.p, 0, 40), cudaMemset(sum.p, 0, 8), cudaMemset(most.p, 0, 4);
                   LAUNCH(atomic_kernel, 4, 96, 0, 0, counts.p, sum.p, most.p);
                   unsigned c[10];
                   unsigned long long s;
                   int m;
                   counts.get(c), sum.get(&s), most.get(&m);
                   return c[0] == 55 && c[6] == 54 && s == (384ull * 383 / 2) << 30 && m == 100 && c[7] == 9 &&
                          c[8] == 5 && c[9] == 6;
               }),
               6);
}

// One warp: c[16,8] = a[16,16] b[8,16]^T through ldmatrix and mma.sync; with trans, b is given as [16,8] instead.
__global__ void mma_kernel(float *c, const uint16_t *a, const uint16_t *b, int trans, int skew) {
    DYNAMIC_SHARED(shared);
    uint16_t *as = (uint16_t *)shared, *bs = as + 16 * 16;
    int lane = (int)threadIdx.x;
    for (int i = lane; i < 32; i += 32) cp_async16(as + i * 8, a + i * 8, 16);
    if (lane < 16) cp_async16(bs + lane * 8, b + lane * 8, 16);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads(); // tiles written | read
    uint32_t fa[4], fb[4];
    ldmatrix_x4(fa, as + lane % 16 * 16 + lane / 16 * 8 + skew);
    if (trans) ldmatrix_x4_trans(fb, bs + lane % 16 * 8); // 16 rows of 8: two matrices, and two again
    else ldmatrix_x4(fb, bs + lane % 8 * 16 + lane / 8 % 2 * 8);
    float acc[4] = {1, 1, 1, 1};
    mma_m16n8k16_bf16(acc, fa, fb);
    for (int i = 0; i < 4; i++) c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = acc[i];
}
TEST(tensor_core_operations_multiply_matrices) {
    uint16_t a[256], b[128];
    float want[128];
    for (int i = 0; i < 256; i++) a[i] = f32_to_bf16((float)((i * 7 + i / 5) % 19 - 9));
    for (int i = 0; i < 128; i++) b[i] = f32_to_bf16((float)((i * 5 + i / 3) % 17 - 8));
    for (int trans = 0; trans < 2; trans++) {
        for (int i = 0; i < 16; i++)
            for (int j = 0; j < 8; j++) {
                want[i * 8 + j] = 1;
                for (int k = 0; k < 16; k++)
                    want[i * 8 + j] += bf16_to_f32(a[i * 16 + k]) * bf16_to_f32(trans ? b[k * 8 + j] : b[j * 16 + k]);
            }
        EXPECT_INT(right_schedules([&] {
                       Device<uint16_t> da(256), db(128);
                       Device<float> dc(128);
                       float c[128];
                       da.set(a), db.set(b);
                       LAUNCH(mma_kernel, 1, 32, 1024, 0, dc.p, da.p, db.p, trans, 0);
                       dc.get(c);
                       return !memcmp(c, want, sizeof c);
                   }),
                   6);
    }
    EXPECT(dies_saying(
        [&] {
            Device<uint16_t> da(256), db(128);
            Device<float> dc(128);
            LAUNCH(mma_kernel, 1, 32, 1024, 0, dc.p, da.p, db.p, 0, 1);
        },
        {"ldmatrix needs row addresses that are multiples of 16", "mma_kernel"}));
}

// One warp: an 8x8 matrix turned, and pairs of floats rounded.
__global__ void turn_kernel(uint32_t *y, const uint32_t *x, uint32_t *pair, const float *f) {
    int lane = (int)threadIdx.x;
    y[lane] = movmatrix_trans(x[lane]);
    pair[lane] = bf16_pair(f[2 * lane], f[2 * lane + 1]);
}
TEST(fragments_are_turned_and_rounded) {
    uint16_t x[8][8], y[8][8], pairs[64];
    float f[64];
    for (int i = 0; i < 64; i++) x[i / 8][i % 8] = (uint16_t)(100 * (i / 8) + i % 8), f[i] = (1 + 0.003f * i) * (i - 9);
    f[20] = INFINITY, f[21] = 3.4e38f, f[22] = 1.00390625f, f[23] = 1.01171875f; // rounds up to inf; two ties
    EXPECT_INT(right_schedules([&] {
                   Device<uint32_t> dx(32), dy(32), dp(32);
                   Device<float> df(64);
                   dx.set((const uint32_t *)x), df.set(f);
                   LAUNCH(turn_kernel, 1, 32, 0, 0, dy.p, dx.p, dp.p, df.p);
                   dy.get((uint32_t *)y), dp.get((uint32_t *)pairs);
                   bool right = true;
                   for (int i = 0; i < 64; i++) {
                       right = right && y[i / 8][i % 8] == x[i % 8][i / 8];
                       right = right && pairs[i] == f32_to_bf16(f[i]);
                   }
                   return right;
               }),
               6);
    EXPECT(pairs[22] == 0x3f80 && pairs[23] == 0x3f82); // to even
    EXPECT(exp2_approx(-INFINITY) == 0 && exp2_approx(-127) == 0 && exp2_approx(-3) == 0.125f);
    EXPECT(isnan(exp2_approx(NAN)) && exp2_approx(129) == INFINITY);
}

// ----------------------------------------------------------------------------------------------------- planted faults

// y[t] = the sum of all x of the block, by partial sums per warp. Fault 1: no barrier between writing and reading them.
// Fault 2: threads past n return before the barrier. Fault 3: half of the block waits at another barrier.
__global__ void sum_kernel(float *y, const float *x, int n, int fault) {
    DYNAMIC_SHARED(shared);
    float *part = (float *)shared;
    int t = (int)threadIdx.x;
    if (fault == 2 && t >= n) return;
    float v = t < n ? x[t] : 0;
    for (int lanes = 16; lanes; lanes /= 2) v += __shfl_xor_sync(0xffffffffu, v, lanes);
    if (t % 32 == 0) part[t / 32] = v;
    if (fault == 0 || fault == 2) {
        MARK(0), __syncthreads(); // partial sums written | read
    } else if (fault == 3) {
        if (t < 64) MARK(1), __syncthreads();
        else MARK(2), __syncthreads();
    }
    v = 0;
    for (int w = 0; w < (int)blockDim.x / 32; w++) v += part[w];
    y[t] = v;
}
static bool sum_is_right(int fault) {
    Device<float> x(128), y(128);
    float host[128], out[128];
    for (int i = 0; i < 128; i++) host[i] = (float)i;
    x.set(host);
    LAUNCH(sum_kernel, 1, 128, 16, 0, y.p, x.p, 96, fault);
    y.get(out);
    bool right = true;
    for (int i = 0; i < 128; i++) right = right && out[i] == 95 * 96 / 2;
    return right;
}
TEST(a_missing_barrier_gives_wrong_sums) {
    EXPECT_INT(right_schedules([] { return sum_is_right(0); }), 6);
    EXPECT_INT(right_schedules([] { return sum_is_right(1); }), 0);
}
TEST(a_return_before_a_barrier_is_reported) {
    EXPECT(dies_saying([] { sum_is_right(2); },
                       {"threads returned before a barrier others wait at", "sum_kernel", "block (0,0,0)",
                        "threads 0-95: wait at __syncthreads", "@0", "threads 96-127: returned"}));
}
TEST(barriers_at_two_places_are_reported) {
    EXPECT(dies_saying([] { sum_is_right(3); }, {"wait at different barriers", "threads 0-63: wait at __syncthreads",
                                                 "@1", "threads 64-127: wait at __syncthreads", "@2"}));
}

// y = sum over tiles of the tile reversed, one tile in shared memory at a time, filled by cp.async. Fault 1: no wait. Fault
// 2: no barrier between reading a tile and refilling it. Fault 3: addresses off by four bytes. Fault 4: an extra copy that
// nobody waits for. Fault 5: only half of each piece is copied.
__global__ void tiles_kernel(float *y, const float *x, int tiles, int fault) {
    DYNAMIC_SHARED(shared);
    float *tile = (float *)shared, sum = 0;
    int t = (int)threadIdx.x, n = (int)blockDim.x;
    for (int k = 0; k < tiles; k++) {
        if (t < n / 4) cp_async16(tile + 4 * t, x + k * n + 4 * t + (fault == 3), fault == 5 ? 8 : 16);
        cp_async_commit();
        if (fault != 1) cp_async_wait<0>();
        else if (k + 1 == tiles) cp_async_wait<0>(); // too late for all but the last
        __syncthreads();                             // tile written | read
        sum += tile[n - 1 - t];
        if (fault != 2) __syncthreads(); // tile read | refilled
    }
    if (fault == 4 && t == 7) cp_async16(tile, x, 16);
    y[t] = sum;
}
static bool tiles_are_right(int fault) {
    Device<float> x(4 * 128), y(128);
    float host[4 * 128], out[128];
    for (int i = 0; i < 4 * 128; i++) host[i] = (float)(i * i % 1009);
    x.set(host);
    LAUNCH(tiles_kernel, 1, 128, 512, 0, y.p, x.p, 4, fault);
    y.get(out);
    bool right = true;
    for (int i = 0; i < 128; i++)
        right = right && out[i] == host[127 - i] + host[255 - i] + host[383 - i] + host[511 - i];
    return right;
}
TEST(a_missing_wait_shows_when_copies_land_late) {
    EXPECT_INT(right_schedules([] { return tiles_are_right(0); }), 6);
    EXPECT_INT(right_schedules([] { return tiles_are_right(1); }),
               3); // the three early ones look right: both modes are needed
}
TEST(a_buffer_refilled_too_soon_gives_wrong_sums) {
    EXPECT(right_schedules([] { return tiles_are_right(2); }) < 6);
}
TEST(a_partial_asynchronous_copy_fills_with_zeros) {
    EXPECT_INT(right_schedules([] { return tiles_are_right(5); }), 0);
}
TEST(a_misaligned_asynchronous_copy_is_reported) {
    EXPECT(dies_saying([] { tiles_are_right(3); },
                       {"cp.async needs addresses that are multiples of 16", "tiles_kernel", "<- here"}));
}
TEST(a_copy_nobody_waits_for_is_reported) {
    EXPECT(dies_saying(
        [] {
            cuda_emu_schedule(EMU_FORWARD, 0);
            tiles_are_right(4);
        },
        {"a cp.async was never waited for"}));
}

// Stores at index n of memory of n elements. Where: 0 global, 1 before global, 2 dynamic shared, 3 static shared.
__global__ void store_kernel(float *y, int n, int where) {
    DYNAMIC_SHARED(shared);
    __shared__ float fixed[8];
    float *to = where < 2 ? y : where == 2 ? (float *)shared : fixed;
    int i = where == 1 ? -1 : n;
    if (threadIdx.x == 5) MARK(3), to[i] = 1;
    y[0] = fixed[0];
}
static void store_outside(int where) {
    Device<float> y(8);
    LAUNCH(store_kernel, 1, 32, 32, 0, y.p, 8, where);
    cudaDeviceSynchronize();
}
TEST(stores_outside_are_caught) {
    const char *who = sanitized ? "AddressSanitizer" : "store_kernel", *where = sanitized ? "@3" : "store_kernel";
    EXPECT(dies_saying([] { store_outside(0); },
                       {who, where, sanitized ? "" : "wrote outside an allocation of 32 bytes"}));
    EXPECT(dies_saying([] { store_outside(1); },
                       {who, where, sanitized ? "" : "wrote outside an allocation of 32 bytes"}));
    EXPECT(dies_saying([] { store_outside(2); },
                       {who, where, sanitized ? "" : "the shared memory asked for at launch was overrun"}));
    if (sanitized) EXPECT(dies_saying([] { store_outside(3); }, {who, where}));
}

// Fault 0: lane 0 takes part in no shuffle. Fault 1: a lane outside its own mask. Fault 2: a shuffle from outside the mask.
// Fault 3: a lane of the mask has returned.
__global__ void mask_kernel(int *y, int fault) {
    int lane = (int)threadIdx.x, v = lane;
    if (fault == 0 && lane > 0) v = __shfl_sync(0xffffffffu, v, 1);
    if (fault == 0 && lane == 0) __syncwarp();
    if (fault == 1 && lane < 4) v = __shfl_sync(0x7u, v, 1);
    if (fault == 2 && lane < 4) v = __shfl_sync(0xfu, v, 9);
    if (fault == 3 && lane == 0) return;
    if (fault == 3) v = __shfl_sync(0xffffffffu, v, 1);
    y[lane] = v;
}
TEST(shuffles_without_all_their_lanes_are_reported) {
    const char *says[] = {"deadlock", "a lane outside the mask", "a shuffle reads a lane outside the mask",
                          "a lane that has returned"};
    for (int fault = 0; fault < 4; fault++)
        EXPECT(dies_saying(
            [=] {
                Device<int> y(32);
                LAUNCH(mask_kernel, 1, 32, 0, 0, y.p, fault);
            },
            {says[fault], "mask_kernel", "test_cuda_emu.cpp:"}));
    EXPECT(dies_saying(
        [] {
            Device<int> y(32);
            LAUNCH(mask_kernel, 1, 32, 0, 0, y.p, 0);
        },
        {"threads 0: wait at __syncwarp", "threads 1-31: wait at __shfl_sync", "with mask ffffffff"}));
}

__global__ void unwritten_kernel(float *y) {
    DYNAMIC_SHARED(shared);
    y[threadIdx.x] = ((float *)shared)[threadIdx.x] + y[threadIdx.x + 32];
    ((float *)shared)[threadIdx.x] = 1; // for the next block to find, if memory were not filled anew
}
TEST(memory_never_written_reads_as_nan) {
    EXPECT_INT(right_schedules([] {
                   Device<float> y(64);
                   float host[64];
                   LAUNCH(unwritten_kernel, 2, 32, 128, 0, y.p);
                   y.get(host);
                   bool nan = true;
                   for (int i = 0; i < 64; i++) nan = nan && isnan(host[i]);
                   return nan;
               }),
               6);
}

// ----------------------------------------------------------------------------------------------------------- the host

__global__ void add_one_kernel(int *y) { y[threadIdx.x] += 1; }

TEST(the_host_sees_results_only_after_it_waited) {
    for (int early = 0; early < 2; early++) {
        cuda_emu_schedule(EMU_FORWARD, early);
        Device<int> y(32);
        int host[32] = {0}, back[32] = {0};
        cudaMemcpyAsync(y.p, host, sizeof host, cudaMemcpyHostToDevice);
        LAUNCH(add_one_kernel, 1, 32, 0, 0, y.p);
        cudaMemcpyAsync(back, y.p, sizeof back, cudaMemcpyDeviceToHost);
        EXPECT_INT(back[3], early); // not waited for: only the early schedule has it
        cudaStreamSynchronize(0);
        EXPECT_INT(back[3], 1);
    }
}
TEST(strided_copies_move_rows) {
    for (int early = 0; early < 2; early++) {
        cuda_emu_schedule(EMU_FORWARD, early);
        Device<int> y(4 * 5);
        int host[4 * 3], back[4 * 5];
        for (int i = 0; i < 12; i++) host[i] = i;
        cudaMemset(y.p, 0, 80);
        EXPECT(cudaMemcpy2D(y.p, 20, host, 12, 12, 4, cudaMemcpyHostToDevice) == cudaSuccess);
        EXPECT(cudaMemset2DAsync(y.p + 1, 20, 0xff, 4, 4) == cudaSuccess);
        y.get(back);
        for (int i = 0; i < 4; i++)
            EXPECT(back[5 * i] == 3 * i && back[5 * i + 1] == -1 && back[5 * i + 2] == 3 * i + 2 &&
                   back[5 * i + 4] == 0);
    }
}
TEST(copies_and_launches_outside_the_rules_fail_as_in_cuda) {
    Device<int> y(32);
    int host[64] = {0};
    EXPECT(cudaMemcpy(y.p, host, 132, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);     // more than there is
    EXPECT(cudaMemcpy(host, host + 32, 4, cudaMemcpyDeviceToHost) == cudaErrorInvalidValue); // not a device address
    EXPECT(cudaMemcpy(y.p, y.p, 4, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
    EXPECT(cudaFree(y.p + 1) == cudaErrorInvalidValue); // not where an allocation starts
    EXPECT(cudaGetLastError() == cudaErrorInvalidValue && cudaGetLastError() == cudaSuccess);
    dim3 bad[][2] = {{dim3(1), dim3(1025)}, {dim3(0), dim3(32)}, {dim3(1, 65536), dim3(32)}, {dim3(1), dim3(1, 1, 65)}};
    for (auto &b : bad) {
        LAUNCH(add_one_kernel, b[0], b[1], 0, 0, y.p);
        EXPECT(cudaPeekAtLastError() == cudaErrorInvalidConfiguration &&
               cudaGetLastError() == cudaErrorInvalidConfiguration);
    }
    LAUNCH(add_one_kernel, 1, 32, 48 * 1024 + 1, 0, y.p);
    EXPECT(cudaGetLastError() == cudaErrorInvalidValue);
    EXPECT(cudaFuncSetAttribute(add_one_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 164 * 1024) ==
           cudaErrorInvalidValue);
    EXPECT(cudaFuncSetAttribute(add_one_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 163 * 1024) ==
           cudaSuccess);
    (void)cudaGetLastError();
    LAUNCH(add_one_kernel, 1, 32, 163 * 1024, 0, y.p);
    EXPECT(cudaGetLastError() == cudaSuccess);
}
TEST(memory_is_counted_and_limited) {
    size_t before, after, total;
    void *p, *q;
    cudaMemGetInfo(&before, &total);
    EXPECT(cudaMalloc(&p, 1000) == cudaSuccess && (uintptr_t)p % 256 == 0);
    cudaMemGetInfo(&after, &total);
    EXPECT(before - after == 1000);
    EXPECT(cudaMalloc(&q, total) == cudaErrorMemoryAllocation && q == NULL &&
           cudaGetLastError() == cudaErrorMemoryAllocation);
    EXPECT(cudaFree(p) == cudaSuccess && cudaFree(NULL) == cudaSuccess);
    cudaDeviceProp device;
    EXPECT(cudaGetDeviceProperties(&device, 0) == cudaSuccess && device.major == 8 && device.totalGlobalMem == total);
    int n = 0;
    EXPECT(cudaGetDeviceCount(&n) == cudaSuccess && n == 1);
}
// y[0] = 10 y[0] + digit: the order and number of launches can be read from it.
__global__ void digit_kernel(int *y, int digit) {
    if (threadIdx.x == 0) y[0] = 10 * y[0] + digit;
}
struct Stream {
    cudaStream_t s;
    Stream() { cudaStreamCreate(&s); }
    ~Stream() { cudaStreamDestroy(s); }
};
// Captures two digits and a copy between them: x becomes y in the middle. `digit` changes behind the capture's back.
static cudaGraphExec_t captured_digits(cudaStream_t s, int *y, int *x) {
    cudaGraph_t graph;
    cudaGraphExec_t runnable;
    int digit = 1;
    EXPECT(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
    LAUNCH(digit_kernel, 1, 32, 0, s, y, digit);
    EXPECT(cudaMemcpyAsync(x, y, 4, cudaMemcpyDeviceToDevice, s) == cudaSuccess);
    digit = 2;
    LAUNCH(digit_kernel, 1, 32, 0, s, y, digit);
    digit = 9;
    EXPECT(cudaStreamEndCapture(s, &graph) == cudaSuccess);
    EXPECT(cudaGraphInstantiate(&runnable, graph, 0) == cudaSuccess);
    EXPECT(cudaGraphDestroy(graph) == cudaSuccess); // what is runnable does not need it
    return runnable;
}
TEST(a_graph_runs_what_was_captured_and_only_when_launched) {
    EXPECT_INT(right_schedules([] {
                   Stream stream;
                   Device<int> y(1), x(1);
                   int host = 3, got[2];
                   y.set(&host), x.set(&host);
                   cudaGraphExec_t r = captured_digits(stream.s, y.p, x.p);
                   y.get(&got[0]);
                   bool right = got[0] == 3; // capturing ran nothing
                   cudaGraphLaunch(r, stream.s), cudaGraphLaunch(r, stream.s);
                   y.get(&got[0]), x.get(&got[1]);
                   right = right && got[0] == 31212 && got[1] == 3121;
                   host = 7, y.set(&host); // a replay works on what lies in the buffers by then
                   cudaGraphLaunch(r, stream.s);
                   EXPECT(cudaGraphExecDestroy(r) == cudaSuccess); // the launch under way goes on
                   y.get(&got[0]);
                   return right && got[0] == 712;
               }),
               6);
}
TEST(a_graph_is_launched_in_the_order_of_its_stream) {
    for (int early = 0; early < 2; early++) {
        cuda_emu_schedule(EMU_FORWARD, early);
        Stream stream;
        Device<int> y(1), x(1);
        int zero = 0, back = -1;
        y.set(&zero);
        cudaGraphExec_t r = captured_digits(stream.s, y.p, x.p);
        LAUNCH(digit_kernel, 1, 32, 0, stream.s, y.p, 4);
        cudaGraphLaunch(r, stream.s);
        LAUNCH(digit_kernel, 1, 32, 0, stream.s, y.p, 5);
        cudaMemcpyAsync(&back, y.p, 4, cudaMemcpyDeviceToHost, stream.s);
        EXPECT_INT(back, early ? 4125 : -1); // a missing wait shows
        cudaStreamSynchronize(stream.s);
        EXPECT_INT(back, 4125);
        cudaGraphExecDestroy(r);
    }
}
// What each of these gives inside a capture; each spoils the capture, and what comes after it fails.
static cudaError_t forbidden(int what, cudaStream_t s, int *y) {
    static int host[4];
    static void *p;
    switch (what) {
    case 0: return cudaStreamSynchronize(s);
    case 1: return cudaDeviceSynchronize();
    case 2: return cudaMalloc(&p, 64);
    case 3: return cudaFree(y);
    case 4: return cudaMemcpy(y, host, 4, cudaMemcpyHostToDevice);
    case 5: return cudaMemcpyAsync(y, host, 4, cudaMemcpyHostToDevice, s); // pageable
    case 6: return cudaMemcpyAsync(host, y, 4, cudaMemcpyDeviceToHost, s);
    case 7: return cudaMemset(y, 0, 4);
    case 8: return cudaMemsetAsync(y, 0, 4, NULL); // in the legacy stream
    default: LAUNCH(digit_kernel, 1, 32, 0, NULL, y, 5); return cudaPeekAtLastError();
    }
}
TEST(what_a_capture_forbids_fails_and_spoils_it) {
    for (int early = 0; early < 2; early++)
        for (int what = 0; what < 10; what++) {
            cuda_emu_schedule(EMU_FORWARD, early);
            Stream stream;
            Device<int> y(1);
            int zero = 0, got = -1;
            cudaGraph_t graph = NULL;
            y.set(&zero), (void)cudaGetLastError();
            EXPECT(cudaStreamBeginCapture(stream.s, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
            LAUNCH(digit_kernel, 1, 32, 0, stream.s, y.p, 1);
            EXPECT(cudaGetLastError() == cudaSuccess);
            EXPECT_INT(forbidden(what, stream.s, y.p),
                       what < 8 ? cudaErrorStreamCaptureUnsupported : cudaErrorStreamCaptureImplicit);
            (void)cudaGetLastError();
            LAUNCH(digit_kernel, 1, 32, 0, stream.s, y.p, 2);
            EXPECT_INT(cudaGetLastError(), cudaErrorStreamCaptureInvalidated);
            EXPECT_INT(cudaStreamEndCapture(stream.s, &graph), cudaErrorStreamCaptureInvalidated);
            EXPECT(graph == NULL);
            (void)cudaGetLastError();
            LAUNCH(digit_kernel, 1, 32, 0, stream.s, y.p, 3); // and the stream is as good as before
            y.get(&got);
            EXPECT_INT(got, 3);
        }
}
TEST(captures_begin_and_end_once_and_not_in_the_legacy_stream) {
    Stream stream, other;
    cudaGraph_t graph;
    cudaGraphExec_t runnable;
    EXPECT(cudaStreamBeginCapture(NULL, cudaStreamCaptureModeGlobal) == cudaErrorStreamCaptureUnsupported);
    EXPECT(cudaStreamEndCapture(stream.s, &graph) == cudaErrorIllegalState && graph == NULL);
    EXPECT(cudaGraphInstantiate(&runnable, graph, 0) == cudaErrorInvalidValue && runnable == NULL);
    EXPECT(cudaGraphLaunch(runnable, stream.s) == cudaErrorInvalidValue);
    EXPECT(cudaGraphDestroy(NULL) == cudaErrorInvalidValue && cudaGraphExecDestroy(NULL) == cudaErrorInvalidValue);
    EXPECT(cudaStreamBeginCapture(stream.s, cudaStreamCaptureModeGlobal) == cudaSuccess);
    EXPECT(cudaStreamBeginCapture(stream.s, cudaStreamCaptureModeGlobal) == cudaErrorIllegalState);
    EXPECT(cudaStreamEndCapture(other.s, &graph) == cudaErrorStreamCaptureUnmatched);
    EXPECT(cudaStreamEndCapture(stream.s, &graph) == cudaSuccess && graph);
    EXPECT(cudaGraphInstantiate(&runnable, graph, 0) == cudaSuccess); // of nothing: it does nothing
    EXPECT(cudaGraphLaunch(runnable, stream.s) == cudaSuccess && cudaStreamSynchronize(stream.s) == cudaSuccess);
    EXPECT(cudaGraphDestroy(graph) == cudaSuccess && cudaGraphExecDestroy(runnable) == cudaSuccess);
    (void)cudaGetLastError();
}
// A host that reads too early, and a graph whose buffer has gone: what the decoder could do wrong.
TEST(a_replay_on_released_memory_is_noticed) {
    if (!sanitized) SKIP("only AddressSanitizer can see it");
    EXPECT(dies_saying(
        [] {
            Stream stream;
            Device<int> x(1);
            int *gone;
            cudaMalloc((void **)&gone, 4);
            cudaGraphExec_t r = captured_digits(stream.s, gone, x.p);
            cudaFree(gone);
            cudaGraphLaunch(r, stream.s), cudaStreamSynchronize(stream.s);
        },
        {"AddressSanitizer", "digit_kernel"}));
}
TEST(events_measure_time) {
    cudaEvent_t a, b;
    float ms = -1;
    cudaEventCreate(&a), cudaEventCreate(&b);
    Device<int> y(32);
    cudaEventRecord(a);
    LAUNCH(add_one_kernel, 100, 32, 0, 0, y.p);
    cudaEventRecord(b);
    cudaEventSynchronize(b);
    cudaEventElapsedTime(&ms, a, b);
    EXPECT(ms > 0 && ms < 10000);
    cudaEventDestroy(a), cudaEventDestroy(b);
}
TEST(the_host_may_not_touch_device_memory) {
    if (!sanitized) SKIP("only AddressSanitizer can see it");
    EXPECT(dies_saying(
        [] {
            Device<int> y(8);
            y.p[3] = 1;
        },
        {"AddressSanitizer", "test_cuda_emu.cpp"}));
}

// --------------------------------------------------------------------------------------------------------- cuBLASLt
// D[m,n] = op(A) op(B), column-major, from matrices with longer columns than they need.
struct Product {
    enum { M = 5, N = 3, K = 7, LD = 8 };
    cublasLtHandle_t handle;
    cublasLtMatmulDescOpaque_t desc;
    cublasLtMatrixLayoutOpaque_t a, b, d;
    cublasLtMatmulPreferenceOpaque_t preference;
    cublasLtMatmulHeuristicResult_t found[4];
    int n;
    Device<float> A, B, D, bias, workspace;
    Product(cublasOperation_t ta, cublasOperation_t tb, bool with_bias)
        : A(LD * LD), B(LD * LD), D(LD * LD), bias(LD), workspace(4096) {
        cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
        uint32_t alignment = 16, none = CUBLASLT_REDUCTION_SCHEME_NONE;
        size_t bytes = 4096;
        cublasLtCreate(&handle);
        cublasLtMatmulDescInit(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F);
        cublasLtMatmulDescSetAttribute(&desc, CUBLASLT_MATMUL_DESC_TRANSA, &ta, sizeof ta);
        cublasLtMatmulDescSetAttribute(&desc, CUBLASLT_MATMUL_DESC_TRANSB, &tb, sizeof tb);
        if (with_bias) {
            cublasLtMatmulDescSetAttribute(&desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue);
            cublasLtMatmulDescSetAttribute(&desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias.p, sizeof bias.p);
        }
        cublasLtMatrixLayoutInit(&a, CUDA_R_32F, ta == CUBLAS_OP_T ? K : M, ta == CUBLAS_OP_T ? M : K, LD);
        cublasLtMatrixLayoutInit(&b, CUDA_R_32F, tb == CUBLAS_OP_T ? N : K, tb == CUBLAS_OP_T ? K : N, LD);
        cublasLtMatrixLayoutInit(&d, CUDA_R_32F, M, N, LD);
        cublasLtMatmulPreferenceInit(&preference);
        for (int i = CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES; i <= CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES; i++)
            cublasLtMatmulPreferenceSetAttribute(&preference, (cublasLtMatmulPreferenceAttributes_t)i, &alignment, 4);
        cublasLtMatmulPreferenceSetAttribute(&preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes, 8);
        cublasLtMatmulPreferenceSetAttribute(&preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &none, 4);
        find();
    }
    cublasStatus_t find() {
        return cublasLtMatmulAlgoGetHeuristic(handle, &desc, &a, &b, &d, &d, &preference, 4, found, &n);
    }
    cublasStatus_t run(float alpha, float beta, const float *from, float *to, size_t workspace_bytes = 4096) {
        return cublasLtMatmul(handle, &desc, &alpha, from, &a, B.p, &b, &beta, to, &d, to, &d, &found[n - 1].algo,
                              workspace.p, workspace_bytes, 0);
    }
};
TEST(the_stand_in_for_cublaslt_computes_what_the_descriptors_say) {
    float a[64], b[64], d[64], bias[8], got[64];
    for (int i = 0; i < 64; i++) a[i] = (float)(i * 7 % 11 - 5), b[i] = (float)(i * 5 % 13 - 6), d[i] = (float)(i % 9);
    for (int i = 0; i < 8; i++) bias[i] = (float)(100 * i);
    for (int k = 0; k < 8; k++) {
        bool ta = k & 1, tb = k & 2, add = k & 4;
        Product p(ta ? CUBLAS_OP_T : CUBLAS_OP_N, tb ? CUBLAS_OP_T : CUBLAS_OP_N, add);
        int right = right_schedules([&] {
            p.A.set(a), p.B.set(b), p.D.set(d), p.bias.set(bias);
            if (p.run(2, 3, p.A.p, p.D.p) != CUBLAS_STATUS_SUCCESS) return false;
            p.D.get(got);
            for (int i = 0; i < 64; i++) {
                int row = i % 8, col = i / 8;
                float want = d[i]; // outside of D: as it was
                if (row < Product::M && col < Product::N) {
                    want = 3 * d[i] + (add ? bias[row] : 0);
                    for (int c = 0; c < Product::K; c++)
                        want += 2 * a[ta ? row * 8 + c : c * 8 + row] * b[tb ? c * 8 + col : col * 8 + c];
                }
                if (got[i] != want) return false;
            }
            return true;
        });
        EXPECT_INT(right, 6);
    }
}
TEST(the_stand_in_for_cublaslt_refuses_what_the_library_refuses) {
    Product p(CUBLAS_OP_T, CUBLAS_OP_N, true);
    EXPECT(p.n > 1 && p.run(1, 0, p.A.p, p.D.p) == CUBLAS_STATUS_SUCCESS);
    EXPECT(p.run(1, 0, p.A.p + 1, p.D.p) == CUBLAS_STATUS_NOT_SUPPORTED); // aligned to 4 bytes, not to 16
    EXPECT(p.run(1, 0, p.A.p, p.D.p, 16) == CUBLAS_STATUS_INVALID_VALUE); // less workspace than it asks for
    p.d.ld = 12;                                                          // an algorithm of another product
    EXPECT(p.run(1, 0, p.A.p, p.D.p) == CUBLAS_STATUS_NOT_SUPPORTED);
    p.d.ld = 4; // columns that overlap
    EXPECT(p.run(1, 0, p.A.p, p.D.p) == CUBLAS_STATUS_INVALID_VALUE && p.find() == CUBLAS_STATUS_INVALID_VALUE);
    p.d.ld = 8, p.b.rows = 6; // inner dimensions of 7 and 6
    EXPECT(p.find() == CUBLAS_STATUS_INVALID_VALUE);
    p.b.rows = 7, p.b.type = CUDA_R_16BF;
    EXPECT(p.find() == CUBLAS_STATUS_NOT_SUPPORTED);
    p.a.type = CUDA_R_16BF; // bf16 into fp32, but not with a bias in bf16
    EXPECT(p.find() == CUBLAS_STATUS_SUCCESS);
    cudaDataType_t bias_type = CUDA_R_16BF;
    cublasLtMatmulDescSetAttribute(&p.desc, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &bias_type, sizeof bias_type);
    EXPECT(p.find() == CUBLAS_STATUS_NOT_SUPPORTED);
    EXPECT(dies_saying(
        [] {
            Product q(CUBLAS_OP_N, CUBLAS_OP_N, false);
            q.run(1, 0, q.A.p + 1024, q.D.p);
        },
        {"cublaslt_emu", "matrix A"}));
}
