// passes.h - training passes of the small random checkpoint over made-up sequences, on whatever device a test says.
#ifndef SURGR1_PASSES_H
#define SURGR1_PASSES_H
#include "tiny.h"

enum { MAX_N = 64 };
typedef struct Example {
    int32_t ids[MAX_N];
    uint8_t trained[MAX_N];
    int64_t n;
    float pixels[96 * 96]; // up to 96 patches of 3*2*4*4 values
    Grid grid;
} Example;

// Sequence k: a few words, a picture for odd k, more words; a random half of the words are targets.
static inline Example example(int k) {
    Example x = {.grid = {1, 4 + 2 * (k % 3), 4}};
    int64_t units = x.grid.h * x.grid.w / 4, words = 9 + 3 * (k % 4);
    for (int64_t i = 0; i < words; i++) {
        if (k % 2 && i == 3) {
            x.ids[x.n++] = 42;
            for (int64_t u = 0; u < units; u++) x.ids[x.n++] = 40;
            x.ids[x.n++] = 43;
        }
        uint64_t stream = (uint64_t)(100 * k + i);
        x.trained[x.n] = random_uniform(1, RANDOM_TEST, stream, 0) < 0.5 || i == words - 1;
        x.ids[x.n++] = (int32_t)(random_uniform(1, RANDOM_TEST, stream, 1) * 39);
    }
    for (int64_t i = 0; i < 96 * grid_patches(x.grid); i++)
        x.pixels[i] = (float)(2 * random_uniform(2, RANDOM_TEST, (uint64_t)k, (uint32_t)i) - 1);
    return x;
}
static inline void add_example(Pack *p, const Model *m, int k) {
    static Example x;
    Err e = {0};
    x = example(k);
    Sequence s = {.ids = x.ids,
                  .n = x.n,
                  .n_prompt = x.n,
                  .trained = x.trained,
                  .pixels = x.pixels,
                  .grids = &x.grid,
                  .n_grids = k % 2,
                  .key = (uint32_t)k};
    if (!pack_add(p, &m->c, &s, &e)) err_report(&e), exit(99);
}

typedef struct Result {
    float *lp; // of all rows, in order of sequences
    int64_t n, targets;
} Result;

// Examples [first, last) as one pack: log-probabilities, and gradients of sum -lp / total.
static inline Result train_pass(Model *m, int first, int last, double total, bool dropout, int64_t keep) {
    Pack p = {0};
    Err e = {0};
    for (int k = first; k < last; k++) add_example(&p, m, k);
    const TrainBatch *b = pack_batch(&p, dropout, 7, keep);
    Result r = {alloc_or_die((size_t)b->N, sizeof(float), "test"), b->N, 0};
    float *dlp = alloc_or_die((size_t)b->N, sizeof *dlp, "test");
    for (int64_t i = 0; i < b->N; i++) r.targets += b->targets[i] >= 0, dlp[i] = (float)(-1 / total);
    if (!model_pass(m, b, total > 0 ? dlp : NULL, r.lp, NULL, &e)) err_report(&e), exit(99);
    free(dlp), pack_free(&p);
    return r;
}
static inline double loss_of(Model *m, int first, int last, double total, bool dropout) {
    Result r = train_pass(m, first, last, dropout ? total : -1, dropout, 0);
    double loss = 0;
    for (int64_t i = 0; i < r.n; i++) loss -= r.lp[i] / total;
    free(r.lp);
    return loss;
}

// The parameter table points into the Model, so a Model is filled where it stays.
static const Ops *passes_on;      // NULL: cpu
static const char *passes_config; // NULL: FLAT
static inline void open_at(Model *m) {
    Err e = {0};
    const char *dir = checkpoint(passes_config ? passes_config : FLAT, false);
    if (!model_load(m, dir, passes_on ? passes_on : ops_cpu(), (LoadOptions){0}, &e)) err_report(&e), exit(99);
}

static inline void trainable(Model *m, bool lora, double dropout) {
    Err e = {0};
    open_at(m);
    LoraOptions o = {.targets = "decoder,vision,merger", .r = 3, .alpha = 6, .dropout = dropout, .seed = 3};
    if (lora && !lora_init(m, &o, &e)) err_report(&e), exit(99);
    for (int64_t i = 0; i < m->n_params; i++) {
        Param *p = &m->params[i];
        if (!lora) p->trained = true;
        if (p->kind != PARAM_LORA_B) continue;
        float *v = alloc_or_die((size_t)(p->rows * p->cols), sizeof *v, "test");
        for (int64_t k = 0; k < p->rows * p->cols; k++) // B starts at zero, where A has no gradient
            v[k] = (float)(0.2 * (random_uniform(4, RANDOM_TEST, (uint64_t)i, (uint32_t)k) - 0.5));
        m->d->upload(p->w->v, mat(v, p->rows, p->cols, F32)), free(v);
    }
    if (!model_train_open(m, &e)) err_report(&e), exit(99);
}

// All gradients (or values) of the trained parameters, one after the other.
static inline float *flat(const Model *m, bool values, int64_t *n) {
    float *out = NULL;
    *n = 0;
    for (int64_t i = 0; i < m->n_params; i++) {
        const Param *p = &m->params[i];
        if (!p->w->d.p || p->tied) continue;
        int64_t count = p->rows * p->cols;
        out = grow_or_die(out, (size_t)(*n + count), sizeof *out, "test");
        m->d->download(mat(out + *n, p->rows, p->cols, F32), values ? p->w->v : p->w->d);
        *n += count;
    }
    return out;
}
#endif
