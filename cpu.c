// cpu.c - the device "cpu": the reference device with its hot rows replaced by fast ones, and the thread pool.
//
// What it is:  the pool of base.h and the choice of instruction set.
// What it is not: where an operation is defined. Contracts, formulas and the slow, exact version of each op are in
// ops.c. Read before: ops.h, ops.c.  Read next: block.c.
#ifndef _GNU_SOURCE
#define _GNU_SOURCE // CPU_COUNT
#endif
#include "ops.h"
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <unistd.h>

// ------------------------------------------------------------------------------------------------------ thread pool
// A job is open while its chunks may be taken. A worker first counts itself in (`inside`), then looks whether a job is
// open; the caller first closes the job, then waits for `inside` to reach zero. Whichever order these two pairs meet in
// (all four accesses are sequentially consistent), no worker can run a chunk of a job that has returned, and the caller
// never waits for a worker that the system has not scheduled yet: on a busy machine it does the work itself.
//
// Waiting is a short spin (a decode step is hundreds of jobs a few dozen microseconds apart), then sleep: endless
// spinning takes the processor from whoever shares it, including our own workers.
enum { SPIN_WORKER = 400, SPIN_CALLER = 4000, WORKER_STACK = 8 << 20 }; // spins of 10 to 20 ns each

static struct {
    int threads; // including the caller; 0 before pool_start
    pthread_t worker[256];
    PoolJob job; // these three are written while no job is open and nobody is inside
    void *ctx;
    int64_t chunks;
    _Atomic int64_t next;   // first chunk nobody has taken
    _Atomic int open;       // a job may be entered
    _Atomic int inside;     // workers between counting in and counting out
    _Atomic uint32_t round; // changes with every job, and at the end
    _Atomic int stop;       //
    _Atomic int sleepers;   // workers asleep or about to be
    _Atomic int caller_waits;
    _Atomic int busy; // a parallel_for is running
    pthread_mutex_t lock;
    pthread_cond_t work, done;
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER, .work = PTHREAD_COND_INITIALIZER, .done = PTHREAD_COND_INITIALIZER};

static inline void pause_briefly(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#else
    atomic_signal_fence(memory_order_seq_cst);
#endif
}

static void take_chunks(int thread) {
    for (int64_t c; (c = atomic_fetch_add_explicit(&pool.next, 1, memory_order_relaxed)) < pool.chunks;)
        pool.job(pool.ctx, c, thread);
}

static void *worker_main(void *arg) {
    int thread = (int)(intptr_t)arg;
    for (uint32_t seen = 0;;) {
        for (int i = 0; i < SPIN_WORKER && atomic_load(&pool.round) == seen; i++) pause_briefly();
        if (atomic_load(&pool.round) == seen) {
            pthread_mutex_lock(&pool.lock);
            atomic_fetch_add(&pool.sleepers, 1);
            while (atomic_load(&pool.round) == seen) pthread_cond_wait(&pool.work, &pool.lock);
            atomic_fetch_sub(&pool.sleepers, 1);
            pthread_mutex_unlock(&pool.lock);
        }
        seen = atomic_load(&pool.round);
        if (atomic_load(&pool.stop)) return NULL;
        atomic_fetch_add(&pool.inside, 1);
        if (atomic_load(&pool.open)) take_chunks(thread);
        if (atomic_fetch_sub(&pool.inside, 1) == 1 && atomic_load(&pool.caller_waits)) {
            pthread_mutex_lock(&pool.lock);
            pthread_cond_signal(&pool.done);
            pthread_mutex_unlock(&pool.lock);
        }
    }
}

static void wake_workers(void) {
    atomic_fetch_add(&pool.round, 1);
    if (atomic_load(&pool.sleepers)) {
        pthread_mutex_lock(&pool.lock);
        pthread_cond_broadcast(&pool.work);
        pthread_mutex_unlock(&pool.lock);
    }
}

void parallel_for(int64_t chunks, PoolJob job, void *ctx) {
    if (chunks <= 0) return;
    CHECK(!atomic_exchange(&pool.busy, 1), "parallel_for inside a job, or from two threads at once");
    if (chunks == 1 || pool_threads() == 1) {
        for (int64_t c = 0; c < chunks; c++) job(ctx, c, 0);
        atomic_store(&pool.busy, 0);
        return;
    }
    pool.job = job, pool.ctx = ctx, pool.chunks = chunks;
    atomic_store(&pool.next, 0);
    atomic_store(&pool.open, 1);
    wake_workers();
    take_chunks(0);
    atomic_store(&pool.open, 0);
    for (int i = 0; i < SPIN_CALLER && atomic_load(&pool.inside); i++) pause_briefly();
    if (atomic_load(&pool.inside)) {
        pthread_mutex_lock(&pool.lock);
        atomic_store(&pool.caller_waits, 1);
        while (atomic_load(&pool.inside)) pthread_cond_wait(&pool.done, &pool.lock);
        atomic_store(&pool.caller_waits, 0);
        pthread_mutex_unlock(&pool.lock);
    }
    atomic_store(&pool.busy, 0);
}

int pool_threads(void) { return pool.threads > 1 ? pool.threads : 1; }

void pool_start(int threads) {
    CHECK(threads >= 0 && threads <= LIMIT_THREADS, "pool_start(%d)", threads);
    pool_stop();
    if (threads == 0) {
        cpu_set_t set;
        threads = sched_getaffinity(0, sizeof set, &set) ? (int)sysconf(_SC_NPROCESSORS_ONLN) : CPU_COUNT(&set);
        threads = threads < 1 ? 1 : threads > (int)LIMIT_THREADS ? (int)LIMIT_THREADS : threads;
    }
    atomic_store(&pool.stop, 0);
    atomic_store(&pool.round, 0);
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, WORKER_STACK);
    pool.threads = 1;
    // Where the system gives no more threads, fewer do the same work: the count never changes a result.
    while (pool.threads < threads) {
        void *arg = (void *)(intptr_t)pool.threads;
        if (pthread_create(&pool.worker[pool.threads], &attr, worker_main, arg)) break;
        pool.threads++;
    }
    pthread_attr_destroy(&attr);
}

void pool_stop(void) {
    CHECK(!atomic_load(&pool.busy), "pool_stop inside a job");
    if (pool.threads > 1) {
        atomic_store(&pool.stop, 1);
        wake_workers();
        for (int t = 1; t < pool.threads; t++) pthread_join(pool.worker[t], NULL);
    }
    pool.threads = 0;
}
