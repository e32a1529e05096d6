// cuda_emu.h - runs CUDA kernels on the host: every CUDA thread is a fiber, every warp operation a meeting of fibers.
//
// What it is:  the part of CUDA that kernels.cu uses (qualifiers, vector types, barriers, shuffles, votes, integer
//              atomics, cp.async, ldmatrix, mma.sync, memory, streams, events), so that g++ compiles the same file that
//              nvcc compiles and every line of every kernel runs in every test, under schedules chosen to do harm.
// What it is not: a model of speed, nor a proof of the fragment layouts: ldmatrix and mma.sync below and their use in the
//              kernels come from one manual (PTX ISA 8, "Warp-level matrix instructions"), and only a GPU can tell
//              whether it was read correctly. It is blind to bank conflicts, coalescing, occupancy and spills, and to races
//              that no schedule here brings out.
// Read before: kernels.cu, first page.  Read next: test/test_cuda_emu.cpp, which plants a fault of each kind.
//
// What catches what:
//   - shared memory holds NaN bytes at the start of every block, so does fresh device memory: reading before writing
//     gives NaN;
//   - warps run one at a time as far as they can, first to last, last to first, or shuffled, and lanes within them
//     likewise: a missing barrier gives wrong values in one of them;
//   - "late" asynchronous copies land in the wait that covers them and leave NaN until then; "early" ones land when they
//     are issued: a missing wait shows with the one, a buffer refilled too soon with either;
//   - with "late", kernels and stream copies run only when the host waits: a missing wait on the host shows;
//   - a captured sequence runs at no other time than in launches of its graph, with the arguments it was captured with;
//     what a capture forbids fails and spoils it;
//   - a thread that returns while others wait, diverged barriers and absent lanes end in a report by thread and line;
//   - guard bytes after every allocation and after the shared memory asked for; under AddressSanitizer these are poisoned,
//     as is all device memory while host code runs, so the report names the line;
//   - launches outside the hardware's limits fail as they do in CUDA.
//
// A test chooses the schedule with cuda_emu_schedule; a person does for any command of a program made by `make EMU=1`:
// SURGR1_EMU=reverse,late build-emu/surgr1 sft --device cuda ... Without that: forward, early.
//
// Rules that keep a kernel emulable (kernels.cu keeps them): launches through LAUNCH, shared memory through
// DYNAMIC_SHARED (plain __shared__ works too but is neither NaN-filled nor sized by the launch), PTX only inside the
// wrappers that have a twin here, no cooperative groups, no float atomics, no return before a barrier. One OS thread
// runs everything.
#ifndef CUDA_EMU_H
#define CUDA_EMU_H
#ifndef CUDA_EMU
#define CUDA_EMU 1
#endif
#include <math.h>
#include <new>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <tuple>
#include <type_traits>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define EMU_ASAN(...) __VA_ARGS__
#else
#define EMU_ASAN(...)
#endif
#if !defined(__x86_64__) && !defined(CUDA_EMU_UCONTEXT)
#define CUDA_EMU_UCONTEXT 1
#endif
#ifdef CUDA_EMU_UCONTEXT
#include <ucontext.h>
#endif
#pragma GCC diagnostic ignored "-Wunused-function" // this header is all static functions

// --------------------------------------------------------------------------------------------------------- language
#define __global__ static
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n)         __attribute__((aligned(n)))
#define __shared__           static
#define DYNAMIC_SHARED(name) unsigned char *name = emu.shared
#define LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                                         \
    emu_launch(#kernel, kernel, dim3(grid), dim3(block), (size_t)(shared_bytes), stream, __VA_ARGS__)

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
#define EMU_VECTORS(scalar, name)                                                                                      \
    struct alignas(2 * sizeof(scalar)) name##2 {                                                                       \
        scalar x, y;                                                                                                   \
    };                                                                                                                 \
    struct alignas(4 * sizeof(scalar)) name##4 {                                                                       \
        scalar x, y, z, w;                                                                                             \
    };                                                                                                                 \
    static inline name##2 make_##name##2(scalar x, scalar y) { return name##2 {x, y}; }                                \
    static inline name##4 make_##name##4(scalar x, scalar y, scalar z, scalar w) { return name##4 {x, y, z, w}; }
EMU_VECTORS(float, float)
EMU_VECTORS(int, int)
EMU_VECTORS(unsigned, uint)
EMU_VECTORS(unsigned short, ushort)

// ------------------------------------------------------------------------------------------------------------ state
enum { EMU_MAX_THREADS = 1024, EMU_WARP = 32, EMU_MAX_COPIES = 256, EMU_GUARD = 64, EMU_GUARD_BYTE = 0xA5 };
enum : size_t {
    EMU_STACK = EMU_ASAN(2 *) 128 * 1024,
    EMU_SHARED_DEFAULT = 48 * 1024, // without cudaFuncSetAttribute
    EMU_SHARED_MAX = 163 * 1024,    // of one block on sm_80
    EMU_MEMORY = (size_t)8 << 30,
};
enum EmuOrder { EMU_FORWARD, EMU_REVERSE, EMU_SHUFFLED };
enum EmuState { EMU_READY, EMU_AT_BARRIER, EMU_AT_WARP_OP, EMU_RETURNED };

struct EmuCopy { // a cp.async in flight
    void *to;
    const void *from;
    int bytes, group;
};
struct EmuThread {
    void *sp; // where the fiber stopped; with ucontext, its context
    char *stack;
    void *fake_stack; // AddressSanitizer's
    uint3 index;
    int lane, warp;
    EmuState state;
    unsigned mask;
    const char *op, *file; // what it waits for and where
    int line;
    alignas(16) unsigned char in[64], out[16]; // of a warp operation
    int missing;                               // of the warp, in its first thread
    int copies, group;
    EmuCopy *copy; // [EMU_MAX_COPIES], elsewhere: threads side by side share cache sets less
};
struct EmuAllocation {
    char *p; // EMU_GUARD guard bytes lie before and after
    size_t bytes;
};
struct EmuTask { // something that waits in a stream, or lies in a graph
    void (*run)(EmuTask *);
    void *owned; // freed with it
    EmuTask *next;
};
struct EmuGraph {
    EmuTask *first, **last;
    int users; // handles, and launches under way
};
static struct Emu {
    int order, late;
    uint32_t random;
    // the running block
    const char *kernel;
    uint3 block_index;
    dim3 block_dim, grid_dim;
    unsigned char *shared;
    size_t shared_bytes;
    EmuThread *threads, *now; // now: the running one, NULL in host code
    int n, fibers;
    void (*entry)(void *);
    void *arg;
    void *host_sp, *host_fake_stack;
    const void *host_stack;
    size_t host_stack_size;
    // memory and streams
    EmuAllocation *allocation;
    int allocations, room;
    size_t used;
    EmuTask *first_task, *last_task;
    EmuGraph *capture; // NULL: none under way
    void *capture_stream;
    int capture_spoilt;
    int error;
} emu; // all zero: forward, early
#define threadIdx (emu.now->index)
#define blockIdx  (emu.block_index)
#define blockDim  (emu.block_dim)
#define gridDim   (emu.grid_dim)
enum { warpSize = EMU_WARP };

// Chooses how blocks, warps and lanes are ordered (EmuOrder) and whether asynchronous work happens early or late.
extern "C" void cuda_emu_schedule(int order, int early) { emu.order = order, emu.late = !early, emu.random = 1; }
// The same for a program that does not call it: SURGR1_EMU holds one or two of these words, as in SURGR1_EMU=reverse,late.
__attribute__((constructor)) static void emu_environment(void) {
    static const char *const words[] = {"forward", "reverse", "shuffled", "early", "late"};
    const char *p = getenv("SURGR1_EMU");
    for (int k; p && *p; p += p[0] == ',') {
        size_t n = strcspn(p, ",");
        for (k = 0; k < 5 && (strlen(words[k]) != n || memcmp(p, words[k], n)); k++) {}
        if (k == 5) {
            fprintf(stderr, "cuda_emu: SURGR1_EMU=%s: expected forward, reverse or shuffled, and early or late\n",
                    getenv("SURGR1_EMU"));
            exit(2);
        }
        if (k < 3) emu.order = k, emu.random = 1;
        else emu.late = k == 4;
        p += n;
    }
}

static unsigned emu_random(unsigned below) {
    emu.random = emu.random * 1664525u + 1013904223u;
    return (emu.random >> 8) % below;
}
// The i-th of n things to run, when `turn` (from emu_turn) was drawn for this round.
static unsigned emu_turn(void) { return emu.order == EMU_SHUFFLED ? emu_random(1u << 20) : 0; }
static int emu_pick(int i, int n, unsigned turn) {
    if (emu.order == EMU_FORWARD) return i;
    if (emu.order == EMU_REVERSE) return n - 1 - i;
    i = (int)((unsigned)i + turn) % n; // a rotation, and by the turn's upper bits a swap of neighbours or a reversal
    if (turn & 1024) i = n - 1 - i;
    return (turn & 2048) && (i ^ 1) < n ? i ^ 1 : i;
}

// Ends the program with a report of where every thread of the block is.
[[noreturn]] static void emu_die(const char *message) {
    fprintf(stderr, "cuda_emu: %s, block (%u,%u,%u): %s\n", emu.kernel, emu.block_index.x, emu.block_index.y,
            emu.block_index.z, message);
    static const char *const states[] = {"ready after", "wait at", "wait at", "returned, last seen at"};
    for (int i = 0; i < emu.n; i++) {
        EmuThread *t = &emu.threads[i];
        auto alike = [&](int j) {
            EmuThread *u = &emu.threads[j];
            return u->state == t->state && u->line == t->line && u->op == t->op && u->mask == t->mask;
        };
        int before = 0;
        while (before < i && !alike(before)) before++;
        if (before < i) continue; // reported with that one
        fprintf(stderr, "  threads ");
        for (int j = i, k; j < emu.n; j = k) {
            for (k = j + 1; k < emu.n && alike(k) == alike(j);) k++;
            if (alike(j)) fprintf(stderr, k - j > 1 ? "%s%d-%d" : "%s%d", j > i ? "," : "", j, k - 1);
        }
        fprintf(stderr, ": %s %s", states[t->state], t->op);
        if (t->line) fprintf(stderr, " (%s:%d)", t->file, t->line);
        if (t->state == EMU_AT_WARP_OP) fprintf(stderr, " with mask %08x", t->mask);
        fprintf(stderr, "%s\n", t == emu.now ? "  <- here" : "");
    }
    abort();
}

// ----------------------------------------------------------------------------------------------------------- fibers
// A fiber lives as long as the program: when its kernel returns it waits to be given the next one.
#ifdef CUDA_EMU_UCONTEXT
static void emu_switch(void **save, void *load) { swapcontext((ucontext_t *)*save, (ucontext_t *)load); }
#else
// Saves what the System V ABI lets a callee keep, and continues on the other stack.
__attribute__((naked, noinline)) static void emu_switch(void **, void *) {
    asm("pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n movq %rsp, (%rdi)\n"
        "movq %rsi, %rsp\n popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret");
}
#endif
static void emu_yield(void) { // from a fiber to the scheduler
    EmuThread *t = emu.now;
    EMU_ASAN(__sanitizer_start_switch_fiber(&t->fake_stack, emu.host_stack, emu.host_stack_size);)
    emu_switch(&t->sp, emu.host_sp);
    EMU_ASAN(__sanitizer_finish_switch_fiber(t->fake_stack, &emu.host_stack, &emu.host_stack_size);)
}
static void emu_fiber_main(void) {
    EMU_ASAN(__sanitizer_finish_switch_fiber(NULL, &emu.host_stack, &emu.host_stack_size);)
    for (;;) {
        emu.entry(emu.arg);
        emu.now->state = EMU_RETURNED;
        emu_yield();
    }
}
static void emu_resume(EmuThread *t) { // from the scheduler to a fiber
    emu.now = t;
    EMU_ASAN(__sanitizer_start_switch_fiber(&emu.host_fake_stack, t->stack, EMU_STACK);)
    emu_switch(&emu.host_sp, t->sp);
    EMU_ASAN(__sanitizer_finish_switch_fiber(emu.host_fake_stack, NULL, NULL);)
    emu.now = NULL;
}
static void *emu_map(size_t bytes) {
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) fprintf(stderr, "cuda_emu: no memory for %zu bytes\n", bytes), abort();
    return p;
}
static void emu_new_fiber(EmuThread *t) {
    char *map = (char *)emu_map(EMU_STACK + 4096);
    mprotect(map, 4096, PROT_NONE); // a stack that overflows stops at its own line
    t->stack = map + 4096;
    t->copy = (EmuCopy *)emu_map(EMU_MAX_COPIES * sizeof *t->copy);
#ifdef CUDA_EMU_UCONTEXT
    static ucontext_t host;
    emu.host_sp = &host;
    ucontext_t *context = (ucontext_t *)emu_map(sizeof *context);
    getcontext(context);
    context->uc_stack.ss_sp = t->stack, context->uc_stack.ss_size = EMU_STACK, context->uc_link = NULL;
    makecontext(context, emu_fiber_main, 0);
    t->sp = context;
#else
    // Tops at different offsets, or all stacks would compete for the same cache sets.
    void **top = (void **)(t->stack + EMU_STACK - (size_t)(emu.fibers % 32) * 128 - 64);
    top[0] = (void *)emu_fiber_main; // popped by ret, which leaves the stack as a call would
    t->sp = top - 6;                 // six registers, zero
#endif
}

// ------------------------------------------------------------------------------------------------- blocks and barriers
static void emu_run_block(void) {
    int n = emu.n = (int)(emu.block_dim.x * emu.block_dim.y * emu.block_dim.z), warps = (n + EMU_WARP - 1) / EMU_WARP;
    if (!emu.threads) emu.threads = (EmuThread *)emu_map(EMU_MAX_THREADS * sizeof *emu.threads);
    for (; emu.fibers < n; emu.fibers++) emu_new_fiber(&emu.threads[emu.fibers]);
    for (int i = 0; i < n; i++) {
        EmuThread *t = &emu.threads[i];
        unsigned x = emu.block_dim.x, y = emu.block_dim.y;
        t->index = uint3{(unsigned)i % x, (unsigned)i / x % y, (unsigned)i / (x * y)};
        t->lane = i % EMU_WARP, t->warp = i / EMU_WARP, t->state = EMU_READY, t->mask = 0;
        t->op = "the start", t->file = "", t->line = 0, t->copies = t->group = 0;
    }
    EMU_ASAN(__asan_unpoison_memory_region(emu.shared, EMU_SHARED_MAX + EMU_GUARD);)
    memset(emu.shared, 0xff, emu.shared_bytes);
    memset(emu.shared + emu.shared_bytes, EMU_GUARD_BYTE, EMU_GUARD);
    EMU_ASAN(__asan_poison_memory_region(emu.shared + emu.shared_bytes, EMU_SHARED_MAX + EMU_GUARD - emu.shared_bytes);)
    for (;;) {
        int ran = 0;
        unsigned warp_turn = emu_turn();
        for (int k = 0; k < warps; k++) {
            EmuThread *warp = &emu.threads[emu_pick(k, warps, warp_turn) * EMU_WARP];
            int lanes = (int)(&emu.threads[n] - warp) < EMU_WARP ? (int)(&emu.threads[n] - warp) : EMU_WARP;
            for (int before = -1; before != ran;) { // one warp runs as far as it can before the next starts
                before = ran;
                unsigned lane_turn = emu_turn();
                for (int i = 0; i < lanes; i++) {
                    EmuThread *t = &warp[emu_pick(i, lanes, lane_turn)];
                    if (t->state == EMU_READY) emu_resume(t), ran++;
                }
            }
        }
        int returned = 0, waiting = 0, line = 0, one_line = 1;
        for (int i = 0; i < n; i++) {
            EmuThread *t = &emu.threads[i];
            returned += t->state == EMU_RETURNED;
            if (t->state != EMU_AT_BARRIER) continue;
            if (waiting++ && t->line != line) one_line = 0;
            line = t->line;
        }
        if (returned == n) break;
        if (waiting == n && !one_line) emu_die("threads of one block wait at different barriers");
        if (waiting && waiting + returned == n && returned) emu_die("threads returned before a barrier others wait at");
        if (waiting == n) {
            for (int i = 0; i < n; i++) emu.threads[i].state = EMU_READY;
        } else if (!ran) emu_die("deadlock");
    }
    EMU_ASAN(__asan_unpoison_memory_region(emu.shared, EMU_SHARED_MAX + EMU_GUARD);)
    for (int i = 0; i < EMU_GUARD; i++)
        if (emu.shared[emu.shared_bytes + (size_t)i] != EMU_GUARD_BYTE)
            emu_die("the shared memory asked for at launch was overrun");
    for (int i = 0; i < n; i++)
        if (emu.threads[i].copies) emu_die("a cp.async was never waited for");
}
static void emu_wait_here(EmuState state, const char *op, unsigned mask, const char *file, int line) {
    EmuThread *t = emu.now;
    t->op = op, t->file = file, t->line = line, t->mask = mask, t->state = state;
}
static inline void __syncthreads(const char *file = __builtin_FILE(), int line = __builtin_LINE()) {
    emu_wait_here(EMU_AT_BARRIER, "__syncthreads", 0, file, line);
    emu_yield();
}

// -------------------------------------------------------------------------------------------------- warp operations
// Each lane posts `in`; the last lane of the mask to arrive computes every lane's `out` and the warp goes on.
typedef void (*EmuComplete)(EmuThread *warp, unsigned mask);
static void emu_meet(const char *op, unsigned mask, EmuComplete complete, const char *file, int line) {
    EmuThread *me = emu.now, *warp = me - me->lane;
    emu_wait_here(EMU_AT_WARP_OP, op, mask, file, line);
    if (!(mask >> me->lane & 1)) emu_die("a lane outside the mask executed a warp operation");
    for (int k = 0; k < EMU_WARP; k++) {
        int i = (warp->missing + k) % EMU_WARP; // the lane last found missing comes first: most often it still is
        if (!(mask >> i & 1)) continue;
        if (&warp[i] >= &emu.threads[emu.n]) emu_die("the mask names a lane that does not exist");
        if (warp[i].state == EMU_RETURNED) emu_die("the mask names a lane that has returned");
        if (warp[i].state != EMU_AT_WARP_OP || warp[i].mask != mask || warp[i].op != op) {
            warp->missing = i;
            emu_yield();
            return;
        }
    }
    if (complete) complete(warp, mask);
    for (int i = 0; i < EMU_WARP; i++)
        if (mask >> i & 1) warp[i].state = EMU_READY;
}
#define EMU_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()
static const char emu_syncwarp_op[] = "__syncwarp", emu_shfl_op[] = "__shfl_sync", emu_vote_op[] = "a vote",
                  emu_ldmatrix_op[] = "ldmatrix", emu_movmatrix_op[] = "movmatrix",
                  emu_mma_op[] = "mma.sync"; // compared by address
static inline void __syncwarp(unsigned mask = 0xffffffffu, EMU_HERE) {
    emu_meet(emu_syncwarp_op, mask, NULL, file, line);
}
template <typename T> static T emu_shfl(unsigned mask, T value, int from, const char *file, int line) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "CUDA shuffles 4 or 8 bytes");
    EmuThread *t = emu.now;
    memcpy(t->in, &from, 4), memset(t->in + 8, 0, 8), memcpy(t->in + 8, &value, sizeof value);
    emu_meet(
        emu_shfl_op, mask,
        [](EmuThread *warp, unsigned lanes) {
            for (int i = 0; i < EMU_WARP; i++) {
                if (!(lanes >> i & 1)) continue;
                int source;
                memcpy(&source, warp[i].in, 4);
                if (!(lanes >> source & 1)) emu_die("a shuffle reads a lane outside the mask");
                memcpy(warp[i].out, warp[source].in + 8, 8);
            }
        },
        file, line);
    memcpy(&value, t->out, sizeof value);
    return value;
}
// `width` cuts the warp into segments; a source outside the own segment gives the own value.
static inline int emu_source(int source, int width) {
    int lane = emu.now->lane;
    return source >= 0 && source / width == lane / width ? source : lane;
}
template <typename T> static inline T __shfl_sync(unsigned mask, T v, int source, int width = 32, EMU_HERE) {
    return emu_shfl(mask, v, emu.now->lane / width * width + (source & (width - 1)), file, line);
}
template <typename T> static inline T __shfl_xor_sync(unsigned mask, T v, int lanes, int width = 32, EMU_HERE) {
    return emu_shfl(mask, v, emu_source(emu.now->lane ^ lanes, width), file, line);
}
template <typename T> static inline T __shfl_down_sync(unsigned mask, T v, int lanes, int width = 32, EMU_HERE) {
    return emu_shfl(mask, v, emu_source(emu.now->lane + lanes, width), file, line);
}
template <typename T> static inline T __shfl_up_sync(unsigned mask, T v, int lanes, int width = 32, EMU_HERE) {
    return emu_shfl(mask, v, emu_source(emu.now->lane - lanes, width), file, line);
}
static inline unsigned __ballot_sync(unsigned mask, int predicate, EMU_HERE) {
    EmuThread *t = emu.now;
    t->in[0] = predicate != 0;
    emu_meet(
        emu_vote_op, mask,
        [](EmuThread *warp, unsigned lanes) {
            unsigned votes = 0;
            for (int i = 0; i < EMU_WARP; i++)
                if (lanes >> i & 1) votes |= (unsigned)warp[i].in[0] << i;
            for (int i = 0; i < EMU_WARP; i++)
                if (lanes >> i & 1) memcpy(warp[i].out, &votes, 4);
        },
        file, line);
    unsigned votes;
    memcpy(&votes, t->out, 4);
    return votes;
}
static inline int __any_sync(unsigned mask, int predicate, EMU_HERE) {
    return __ballot_sync(mask, predicate, file, line) != 0;
}
static inline int __all_sync(unsigned mask, int predicate, EMU_HERE) {
    return __ballot_sync(mask, predicate, file, line) == mask;
}

// --------------------------------------------------------------------------------------------- atomics, math, bits
// Fibers change only inside the operations above, so a plain read and write is atomic here. On floats: not offered.
template <typename T> using EmuInteger = std::enable_if_t<std::is_integral<T>::value && (sizeof(T) >= 4), T>;
#define EMU_ATOMIC(name, result)                                                                                       \
    template <typename T> static inline EmuInteger<T> name(T *p, T v) {                                                \
        T old = *p;                                                                                                    \
        *p = (T)(result);                                                                                              \
        return old;                                                                                                    \
    }
EMU_ATOMIC(atomicAdd, old + v)
EMU_ATOMIC(atomicMax, old > v ? old : v)
EMU_ATOMIC(atomicMin, old < v ? old : v)
EMU_ATOMIC(atomicOr, old | v)
EMU_ATOMIC(atomicAnd, old &v)
EMU_ATOMIC(atomicXor, old ^ v)
EMU_ATOMIC(atomicExch, v)
template <typename T> static inline EmuInteger<T> atomicCAS(T *p, T expected, T v) {
    T old = *p;
    if (old == expected) *p = v;
    return old;
}
static inline void __threadfence(void) {}
static inline void __threadfence_block(void) {}

template <typename T> static inline T __ldg(const T *p) { return *p; }
template <typename T> static inline T __ldcg(const T *p) { return *p; }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline float __fdividef(float a, float b) { return a / b; }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
template <typename To, typename From> static inline To emu_bits(From x) {
    static_assert(sizeof(To) == sizeof(From), "same size");
    To y;
    memcpy(&y, &x, sizeof y);
    return y;
}
static inline unsigned __float_as_uint(float x) { return emu_bits<unsigned>(x); }
static inline float __uint_as_float(unsigned x) { return emu_bits<float>(x); }
static inline int __float_as_int(float x) { return emu_bits<int>(x); }
static inline float __int_as_float(int x) { return emu_bits<float>(x); }

// ---------------------------------------------------------------------------------------- twins of the PTX wrappers
static inline bool emu_in_shared(const void *p, size_t bytes) {
    return (const unsigned char *)p >= emu.shared && (const unsigned char *)p + bytes <= emu.shared + emu.shared_bytes;
}
// 16 bytes to shared memory, of which the first `bytes` (0 to 16) come from `from` and the rest are zero.
static inline void cp_async16(void *to, const void *from, int bytes, EMU_HERE) {
    EmuThread *t = emu.now;
    t->op = "cp.async", t->file = file, t->line = line;
    if (((uintptr_t)to | (uintptr_t)from) & 15) emu_die("cp.async needs addresses that are multiples of 16");
    if (!emu_in_shared(to, 16)) emu_die("cp.async writes outside the block's shared memory");
    if (!emu.late) {
        memset(to, 0, 16), memcpy(to, from, (size_t)bytes);
        return;
    }
    if (t->copies == EMU_MAX_COPIES) emu_die("too many cp.async in flight");
    memset(to, 0xff, 16);
    t->copy[t->copies++] = EmuCopy{to, from, bytes, t->group};
}
static inline void cp_async_commit(void) { emu.now->group++; }
template <int N> static inline void cp_async_wait(void) { // all but the newest N groups land
    EmuThread *t = emu.now;
    int kept = 0;
    for (int i = 0; i < t->copies; i++) {
        EmuCopy c = t->copy[i];
        if (c.group < t->group - N) memset(c.to, 0, 16), memcpy(c.to, c.from, (size_t)c.bytes);
        else t->copy[kept++] = c;
    }
    t->copies = kept;
}
// Two floats as bf16, rounded to nearest even, `low` in the lower half. A NaN becomes 7FFF, as cvt makes it.
static inline uint32_t bf16_pair(float low, float high) {
    uint32_t pair = 0;
    for (int i = 0; i < 2; i++) {
        float f = i ? high : low;
        uint32_t u = __float_as_uint(f);
        u = f != f ? 0x7fff : (u + 0x7fff + (u >> 16 & 1)) >> 16;
        pair |= u << 16 * i;
    }
    return pair;
}
// 2^x; what is below 2^-126 becomes 0.
static inline float exp2_approx(float x) {
    float y = exp2f(x);
    return y < 0x1p-126f ? 0 : y; // a NaN stays
}
// An 8x8 matrix of 16-bit elements, transposed: lane l has elements (l/4, 2(l%4)) and the next, before and after.
static inline uint32_t movmatrix_trans(uint32_t pair, EMU_HERE) {
    EmuThread *t = emu.now;
    memcpy(t->in, &pair, 4);
    emu_meet(
        emu_movmatrix_op, 0xffffffffu,
        [](EmuThread *warp, unsigned) {
            for (int lane = 0; lane < EMU_WARP; lane++)
                for (int e = 0; e < 2; e++)
                    memcpy(warp[lane].out + 2 * e, warp[(2 * (lane % 4) + e) * 4 + lane / 8].in + lane / 4 % 2 * 2, 2);
        },
        file, line);
    memcpy(&pair, t->out, 4);
    return pair;
}
// Four 8x8 matrices of 16-bit elements; row i of matrix m is at the address given by lane 8m + i. Lane l receives of each
// matrix the elements (l/4, 2(l%4)) and (l/4, 2(l%4)+1), transposed with Trans.
template <bool Trans> static inline void emu_ldmatrix(uint32_t r[4], const void *row, const char *file, int line) {
    EmuThread *t = emu.now;
    t->op = emu_ldmatrix_op, t->file = file, t->line = line;
    if ((uintptr_t)row & 15) emu_die("ldmatrix needs row addresses that are multiples of 16");
    if (!emu_in_shared(row, 16)) emu_die("ldmatrix reads outside the block's shared memory");
    memcpy(t->in, &row, sizeof row);
    emu_meet(
        emu_ldmatrix_op, 0xffffffffu,
        [](EmuThread *warp, unsigned) {
            for (int m = 0; m < 4; m++)
                for (int lane = 0; lane < EMU_WARP; lane++)
                    for (int e = 0; e < 2; e++) {
                        int i = lane / 4, j = 2 * (lane % 4) + e;
                        const char *from;
                        memcpy(&from, warp[8 * m + (Trans ? j : i)].in, sizeof from);
                        memcpy(warp[lane].out + 4 * m + 2 * e, from + 2 * (Trans ? i : j), 2);
                    }
        },
        file, line);
    memcpy(r, t->out, 16);
}
static inline void ldmatrix_x4(uint32_t r[4], const void *row, EMU_HERE) { emu_ldmatrix<false>(r, row, file, line); }
static inline void ldmatrix_x4_trans(uint32_t r[4], const void *row, EMU_HERE) {
    emu_ldmatrix<true>(r, row, file, line);
}
// c[16,8] += a[16,16] * b[16,8], bf16 with fp32 sums. Lane l = 4g + q holds a(g + 8(i&1), 2q + 8(i>>1) + {0,1}) in a[i],
// b(2q + 8i + {0,1}, g) in b[i], c(g + 8(i>>1), 2q + (i&1)) in c[i].
static inline void mma_m16n8k16_bf16(float c[4], const uint32_t a[4], const uint32_t b[2], EMU_HERE) {
    EmuThread *t = emu.now;
    memcpy(t->in, a, 16), memcpy(t->in + 16, b, 8), memcpy(t->in + 32, c, 16);
    emu_meet(
        emu_mma_op, 0xffffffffu,
        [](EmuThread *warp, unsigned) {
            typedef float Row __attribute__((vector_size(32))); // eight columns: the compiler's vectors, on any machine
            float am[16][16];
            Row bm[16], cm[16];
            for (int lane = 0; lane < EMU_WARP; lane++) {
                uint32_t in[12]; // a, b, nothing, c
                memcpy(in, warp[lane].in, sizeof in);
                int g = lane / 4, q = lane % 4;
                for (int i = 0; i < 4; i++) { // the two bf16 of a word are the upper halves of two floats
                    am[g + 8 * (i & 1)][2 * q + 8 * (i >> 1)] = __uint_as_float(in[i] << 16);
                    am[g + 8 * (i & 1)][2 * q + 8 * (i >> 1) + 1] = __uint_as_float(in[i] & 0xffff0000u);
                    cm[g + 8 * (i >> 1)][2 * q + (i & 1)] = __uint_as_float(in[8 + i]);
                }
                for (int i = 0; i < 2; i++) {
                    bm[2 * q + 8 * i][g] = __uint_as_float(in[4 + i] << 16);
                    bm[2 * q + 8 * i + 1][g] = __uint_as_float(in[4 + i] & 0xffff0000u);
                }
            }
            for (int i = 0; i < 16; i++)
                for (int k = 0; k < 16; k++) cm[i] += am[i][k] * bm[k];
            for (int lane = 0; lane < EMU_WARP; lane++)
                for (int i = 0; i < 4; i++) {
                    float v = cm[lane / 4 + 8 * (i >> 1)][2 * (lane % 4) + (i & 1)];
                    memcpy(warp[lane].out + 4 * i, &v, 4);
                }
        },
        file, line);
    memcpy(c, t->out, 16);
}

// ----------------------------------------------------------------------------------------------------------- memory
typedef enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorNoDevice = 100,
    cudaErrorIllegalState = 401,
    cudaErrorStreamCaptureUnsupported = 900,
    cudaErrorStreamCaptureInvalidated = 901,
    cudaErrorStreamCaptureUnmatched = 903,
    cudaErrorStreamCaptureImplicit = 906,
} cudaError_t;
typedef enum cudaMemcpyKind {
    cudaMemcpyHostToHost,
    cudaMemcpyHostToDevice,
    cudaMemcpyDeviceToHost,
    cudaMemcpyDeviceToDevice
} cudaMemcpyKind;
static inline const char *cudaGetErrorString(cudaError_t e) {
    return e == cudaSuccess                         ? "no error"
           : e == cudaErrorInvalidValue             ? "invalid argument"
           : e == cudaErrorMemoryAllocation         ? "out of memory"
           : e == cudaErrorInvalidConfiguration     ? "invalid configuration argument"
           : e == cudaErrorNoDevice                 ? "no CUDA-capable device is detected"
           : e == cudaErrorIllegalState             ? "the operation cannot be performed in the present state"
           : e == cudaErrorStreamCaptureUnsupported ? "operation not permitted when stream is capturing"
           : e == cudaErrorStreamCaptureInvalidated ? "operation failed due to a previous error during capture"
           : e == cudaErrorStreamCaptureUnmatched   ? "the capture was not initiated in this stream"
                                                    : "a capturing stream would depend on the legacy stream";
}
static cudaError_t emu_error(cudaError_t e) {
    if (e != cudaSuccess) emu.error = e;
    return e;
}
static inline cudaError_t cudaPeekAtLastError(void) { return (cudaError_t)emu.error; }
static inline cudaError_t cudaGetLastError(void) {
    cudaError_t e = (cudaError_t)emu.error;
    emu.error = cudaSuccess;
    return e;
}

static EmuAllocation *emu_find(const void *p, size_t bytes) { // the allocation that holds [p, p+bytes), or NULL
    for (int i = 0; i < emu.allocations; i++) {
        EmuAllocation *a = &emu.allocation[i];
        if ((const char *)p >= a->p && (const char *)p + bytes <= a->p + a->bytes) return a;
    }
    return NULL;
}
static void emu_check_guards(const char *who) {
    for (int i = 0; i < emu.allocations; i++) {
        EmuAllocation *a = &emu.allocation[i];
        EMU_ASAN(__asan_unpoison_memory_region(a->p - EMU_GUARD, EMU_GUARD);)
        EMU_ASAN(__asan_unpoison_memory_region(a->p + a->bytes, EMU_GUARD);)
        for (size_t k = 0; k < EMU_GUARD; k++)
            if ((unsigned char)a->p[(ptrdiff_t)k - EMU_GUARD] != EMU_GUARD_BYTE ||
                (unsigned char)a->p[a->bytes + k] != EMU_GUARD_BYTE) {
                fprintf(stderr, "cuda_emu: %s wrote outside an allocation of %zu bytes\n", who, a->bytes);
                abort();
            }
        EMU_ASAN(__asan_poison_memory_region(a->p - EMU_GUARD, EMU_GUARD);)
        EMU_ASAN(__asan_poison_memory_region(a->p + a->bytes, EMU_GUARD);)
    }
}
// Host code may not touch device memory: with AddressSanitizer it is poisoned except while a task runs.
static void emu_open_memory(void) {
    EMU_ASAN(for (int i = 0; i < emu.allocations; i++)
                 __asan_unpoison_memory_region(emu.allocation[i].p, emu.allocation[i].bytes);)
}
static void emu_close_memory(void) {
    EMU_ASAN(for (int i = 0; i < emu.allocations; i++)
                 __asan_poison_memory_region(emu.allocation[i].p, emu.allocation[i].bytes);)
}
// Puts a task in the stream: it runs now, or when the host waits. One queue serves all streams.
static void emu_drop_task(EmuTask *t) { free(t->owned), free(t); }
static void emu_run_task(EmuTask *t) {
    emu_open_memory();
    t->run(t);
    emu_close_memory();
    emu_drop_task(t);
}
static void emu_drain(void) {
    for (EmuTask *t; (t = emu.first_task);) {
        if (!(emu.first_task = t->next)) emu.last_task = NULL;
        emu_run_task(t);
    }
}
// While a capture is under way it is recorded instead. `owned` is freed when the task is not needed any more.
template <typename F> static void emu_enqueue(F f, void *owned = NULL) {
    static_assert(std::is_trivially_copyable<F>::value, "a task is kept in plain memory");
    struct Task : EmuTask {
        F work;
        Task(F w, void *o) : EmuTask{[](EmuTask *t) { static_cast<Task *>(t)->work(); }, o, NULL}, work(w) {}
    };
    EmuTask *t = new (malloc(sizeof(Task))) Task(f, owned);
    if (emu.capture) {
        *emu.capture->last = t, emu.capture->last = &t->next;
    } else if (!emu.late) {
        emu_drain(); // what an earlier schedule left
        emu_run_task(t);
    } else {
        *(emu.last_task ? &emu.last_task->next : &emu.first_task) = t;
        emu.last_task = t;
    }
}

// What waits, and what takes or gives memory, may not be called during a capture: it fails, and the capture with it.
static cudaError_t emu_outside_capture(void) {
    if (!emu.capture) return cudaSuccess;
    emu.capture_spoilt = 1;
    return emu_error(cudaErrorStreamCaptureUnsupported);
}
// Work for a stream during a capture: only for the one that is captured. (CUDA lets others than the legacy stream go on
// by themselves; here all streams are one queue.)
static cudaError_t emu_into_stream(void *stream) {
    if (!emu.capture) return cudaSuccess;
    if (emu.capture_spoilt) return emu_error(cudaErrorStreamCaptureInvalidated);
    if (stream == emu.capture_stream) return cudaSuccess;
    emu.capture_spoilt = 1;
    return emu_error(cudaErrorStreamCaptureImplicit);
}
#define EMU_TRY(call)                                                                                                  \
    do {                                                                                                               \
        cudaError_t error_ = (call);                                                                                   \
        if (error_ != cudaSuccess) return error_;                                                                      \
    } while (0)

static inline cudaError_t cudaGetDeviceCount(int *n) { // as CUDA: an empty or negative list hides the device
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    *n = visible && (!*visible || *visible == '-') ? 0 : 1;
    return *n ? cudaSuccess : cudaErrorNoDevice;
}
static inline cudaError_t cudaSetDevice(int i) { return i ? emu_error(cudaErrorInvalidValue) : cudaSuccess; }
struct cudaDeviceProp {
    char name[256];
    size_t totalGlobalMem, sharedMemPerBlock, sharedMemPerBlockOptin;
    int major, minor, multiProcessorCount, maxThreadsPerBlock, warpSize;
};
static inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int i) {
    if (i) return emu_error(cudaErrorInvalidValue);
    *p = cudaDeviceProp{"CUDA emulated on the host",
                        EMU_MEMORY,
                        EMU_SHARED_DEFAULT,
                        EMU_SHARED_MAX,
                        8,
                        0,
                        2,
                        EMU_MAX_THREADS,
                        EMU_WARP};
    return cudaSuccess;
}
static inline cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total) {
    *total = EMU_MEMORY, *free_bytes = EMU_MEMORY - emu.used;
    return cudaSuccess;
}
static inline cudaError_t cudaMalloc(void **p, size_t bytes) { // 256-byte aligned, full of NaN
    *p = NULL;
    EMU_TRY(emu_outside_capture());
    if (!bytes) return cudaSuccess;
    void *base;
    if (bytes > EMU_MEMORY - emu.used || posix_memalign(&base, 256, bytes + 256 + EMU_GUARD))
        return emu_error(cudaErrorMemoryAllocation);
    if (emu.allocations == emu.room) {
        emu.room = emu.room ? 2 * emu.room : 64;
        emu.allocation = (EmuAllocation *)realloc(emu.allocation, (size_t)emu.room * sizeof *emu.allocation);
        if (!emu.allocation) abort();
    }
    EmuAllocation a = {(char *)base + 256, bytes};
    memset(a.p - EMU_GUARD, EMU_GUARD_BYTE, EMU_GUARD);
    memset(a.p, 0xff, bytes);
    memset(a.p + bytes, EMU_GUARD_BYTE, EMU_GUARD);
    EMU_ASAN(__asan_poison_memory_region(a.p - EMU_GUARD, bytes + 2 * EMU_GUARD);)
    emu.allocation[emu.allocations++] = a, emu.used += bytes;
    *p = a.p;
    return cudaSuccess;
}
static inline cudaError_t cudaFree(void *p) {
    EMU_TRY(emu_outside_capture());
    emu_drain(); // as CUDA, which waits
    for (int i = 0; p && i < emu.allocations; i++) {
        EmuAllocation a = emu.allocation[i];
        if (a.p != p) continue;
        emu_check_guards("something");
        EMU_ASAN(__asan_unpoison_memory_region(a.p - EMU_GUARD, a.bytes + 2 * EMU_GUARD);)
        emu.used -= a.bytes, emu.allocation[i] = emu.allocation[--emu.allocations];
        memset(a.p, 0xff, a.bytes); // a late reader gets NaN
        free(a.p - 256);
        return cudaSuccess;
    }
    return p ? emu_error(cudaErrorInvalidValue) : cudaSuccess;
}
static inline cudaError_t cudaMallocHost(void **p, size_t bytes) {
    EMU_TRY(emu_outside_capture());
    return (*p = malloc(bytes)) ? cudaSuccess : cudaErrorMemoryAllocation;
}
static inline cudaError_t cudaFreeHost(void *p) { return free(p), cudaSuccess; }

// -------------------------------------------------------------------------------------------- streams, events, copies
typedef struct EmuStream *cudaStream_t; // all streams are one queue
typedef struct EmuEvent {
    double seconds;
} * cudaEvent_t;
static inline cudaError_t cudaStreamCreate(cudaStream_t *s) { // never NULL, which is the legacy stream
    return (*s = (cudaStream_t)malloc(1)) ? cudaSuccess : cudaErrorMemoryAllocation;
}
static cudaError_t emu_wait(void) {
    EMU_TRY(emu_outside_capture());
    return emu_drain(), cudaSuccess;
}
static inline cudaError_t cudaStreamDestroy(cudaStream_t s) {
    EMU_TRY(emu_wait());
    return free(s), cudaSuccess;
}
static inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return emu_wait(); }
static inline cudaError_t cudaDeviceSynchronize(void) { return emu_wait(); }
static inline cudaError_t cudaEventCreate(cudaEvent_t *e) {
    return (*e = (cudaEvent_t)calloc(1, sizeof **e)) ? cudaSuccess : cudaErrorMemoryAllocation;
}
static inline cudaError_t cudaEventDestroy(cudaEvent_t e) {
    EMU_TRY(emu_wait());
    return free(e), cudaSuccess;
}
static inline cudaError_t cudaEventSynchronize(cudaEvent_t) { return emu_wait(); }
static inline cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t stream = NULL) {
    EMU_TRY(emu_into_stream(stream));
    emu_enqueue([e] {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        e->seconds = (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
    });
    return cudaSuccess;
}
static inline cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to) {
    return *ms = (float)(1e3 * (to->seconds - from->seconds)), cudaSuccess;
}

static size_t emu_extent(size_t pitch, size_t width, size_t rows) { return rows ? (rows - 1) * pitch + width : 0; }
// All copies: `rows` runs of `width` bytes. Device ends must lie in an allocation and host ends outside of all.
static inline cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch,
                                            size_t width, size_t rows, cudaMemcpyKind kind,
                                            cudaStream_t stream = NULL) {
    bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (!width || !rows) return cudaSuccess;
    if (width > to_pitch || width > from_pitch ||
        to_device != (emu_find(to, emu_extent(to_pitch, width, rows)) != NULL) ||
        from_device != (emu_find(from, emu_extent(from_pitch, width, rows)) != NULL))
        return emu_error(cudaErrorInvalidValue);
    if (!to_device || !from_device) EMU_TRY(emu_outside_capture()); // host memory counts as pageable, which has to wait
    EMU_TRY(emu_into_stream(stream));
    emu_enqueue([=] {
        for (size_t i = 0; i < rows; i++) memcpy((char *)to + i * to_pitch, (const char *)from + i * from_pitch, width);
    });
    return cudaSuccess;
}
static inline cudaError_t cudaMemcpy2D(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                                       size_t rows, cudaMemcpyKind kind) {
    EMU_TRY(emu_outside_capture());
    cudaError_t e = cudaMemcpy2DAsync(to, to_pitch, from, from_pitch, width, rows, kind);
    return emu_drain(), e;
}
static inline cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind,
                                          cudaStream_t stream = NULL) {
    return cudaMemcpy2DAsync(to, bytes, from, bytes, bytes, 1, kind, stream);
}
static inline cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
    return cudaMemcpy2D(to, bytes, from, bytes, bytes, 1, kind);
}
static inline cudaError_t cudaMemset2DAsync(void *to, size_t pitch, int value, size_t width, size_t rows,
                                            cudaStream_t stream = NULL) {
    if (!width || !rows) return cudaSuccess;
    if (width > pitch || !emu_find(to, emu_extent(pitch, width, rows))) return emu_error(cudaErrorInvalidValue);
    EMU_TRY(emu_into_stream(stream));
    emu_enqueue([=] {
        for (size_t i = 0; i < rows; i++) memset((char *)to + i * pitch, value, width);
    });
    return cudaSuccess;
}
static inline cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream = NULL) {
    return cudaMemset2DAsync(to, bytes, value, bytes, 1, stream);
}
static inline cudaError_t cudaMemset(void *to, int value, size_t bytes) {
    EMU_TRY(emu_outside_capture());
    cudaError_t e = cudaMemsetAsync(to, value, bytes);
    return emu_drain(), e;
}

// ----------------------------------------------------------------------------------------------------------- graphs
typedef EmuGraph *cudaGraph_t;
typedef struct EmuRunnable {
    EmuGraph *graph;
} * cudaGraphExec_t;
enum cudaStreamCaptureMode {
    cudaStreamCaptureModeGlobal,
    cudaStreamCaptureModeThreadLocal,
    cudaStreamCaptureModeRelaxed
};
static void emu_graph_leave(EmuGraph *g) {
    if (--g->users) return;
    for (EmuTask *t; (t = g->first); emu_drop_task(t)) g->first = t->next;
    free(g);
}
static inline cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
    if (emu.capture) return emu_error(cudaErrorIllegalState);
    if (!stream) return emu_error(cudaErrorStreamCaptureUnsupported); // the legacy stream
    EmuGraph *g = (EmuGraph *)malloc(sizeof *g);
    if (!g) abort();
    *g = EmuGraph{NULL, &g->first, 1};
    emu.capture = g, emu.capture_stream = stream, emu.capture_spoilt = 0;
    return cudaSuccess;
}
static inline cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    *graph = NULL;
    EmuGraph *g = emu.capture;
    if (!g) return emu_error(cudaErrorIllegalState);
    if (stream != emu.capture_stream) return emu_error(cudaErrorStreamCaptureUnmatched);
    emu.capture = NULL;
    if (emu.capture_spoilt) return emu_graph_leave(g), emu_error(cudaErrorStreamCaptureInvalidated);
    *graph = g;
    return cudaSuccess;
}
static inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t *runnable, cudaGraph_t g, unsigned long long = 0) {
    *runnable = NULL;
    if (!g) return emu_error(cudaErrorInvalidValue);
    if (!(*runnable = (cudaGraphExec_t)malloc(sizeof **runnable))) abort();
    (*runnable)->graph = g, g->users++;
    return cudaSuccess;
}
static inline cudaError_t cudaGraphDestroy(cudaGraph_t g) {
    return g ? (emu_graph_leave(g), cudaSuccess) : emu_error(cudaErrorInvalidValue);
}
static inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t r) { // launches under way go on
    if (!r) return emu_error(cudaErrorInvalidValue);
    emu_graph_leave(r->graph), free(r);
    return cudaSuccess;
}
static inline cudaError_t cudaGraphLaunch(cudaGraphExec_t r, cudaStream_t) {
    EMU_TRY(emu_outside_capture()); // CUDA would make it a node; nothing here needs that
    if (!r) return emu_error(cudaErrorInvalidValue);
    EmuGraph *g = r->graph;
    g->users++;
    emu_enqueue([g] {
        for (EmuTask *t = g->first; t; t = t->next) t->run(t);
        emu_graph_leave(g);
    });
    return cudaSuccess;
}

// ----------------------------------------------------------------------------------------------------------- launch
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
static size_t *emu_shared_limit(void *kernel) {
    static struct {
        void *kernel;
        size_t bytes;
    } limits[256];
    for (auto &slot : limits) {
        if (!slot.kernel) slot.kernel = kernel, slot.bytes = EMU_SHARED_DEFAULT;
        if (slot.kernel == kernel) return &slot.bytes;
    }
    fprintf(stderr, "cuda_emu: more than 256 kernels\n");
    abort();
}
template <typename... P> static cudaError_t cudaFuncSetAttribute(void (*kernel)(P...), cudaFuncAttribute, int bytes) {
    if (bytes < 0 || bytes > (int)EMU_SHARED_MAX) return emu_error(cudaErrorInvalidValue);
    *emu_shared_limit((void *)kernel) = (size_t)bytes;
    return cudaSuccess;
}
// Runs `entry` once per thread of the grid, block after block.
static void emu_run_grid(const char *name, dim3 grid, dim3 block, size_t shared, void (*entry)(void *), void *arg) {
    if (!emu.shared) emu.shared = (unsigned char *)emu_map(EMU_SHARED_MAX + EMU_GUARD);
    emu.kernel = name, emu.grid_dim = grid, emu.block_dim = block, emu.shared_bytes = shared;
    emu.entry = entry, emu.arg = arg;
    int64_t n = (int64_t)grid.x * grid.y * grid.z;
    unsigned turn = emu_turn();
    for (int64_t k = 0; k < n; k++) {
        int64_t i = emu.order == EMU_REVERSE || (turn & 1) ? n - 1 - k : k;
        emu.block_index =
            uint3{(unsigned)(i % grid.x), (unsigned)(i / grid.x % grid.y), (unsigned)(i / ((int64_t)grid.x * grid.y))};
        emu_run_block();
    }
    emu_check_guards(name);
}
template <typename... P, typename... A>
static void emu_launch(const char *name, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared,
                       cudaStream_t stream, A... args) {
    size_t threads = (size_t)block.x * block.y * block.z;
    if (!threads || threads > EMU_MAX_THREADS || block.z > 64 || !grid.x || !grid.y || !grid.z ||
        grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
        return (void)emu_error(cudaErrorInvalidConfiguration);
    if (shared > *emu_shared_limit((void *)kernel)) return (void)emu_error(cudaErrorInvalidValue);
    if (emu_into_stream(stream) != cudaSuccess) return;
    struct Call { // arguments are converted once, at launch
        void (*kernel)(P...);
        std::tuple<std::decay_t<P>...> args;
    };
    Call *call = new (malloc(sizeof(Call))) Call{kernel, std::tuple<std::decay_t<P>...>((P)args...)};
    emu_enqueue(
        [=] {
            emu_run_grid(
                name, grid, block, shared, [](void *c) { std::apply(((Call *)c)->kernel, ((Call *)c)->args); }, call);
        },
        call);
}
#endif
