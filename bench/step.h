// step.h - one training step to be timed, and the same step in another program, for the programs of bench/.
//
// What it is:  samples of random ids and pictures; a checkpoint loaded for full fine-tuning or with a new LoRA; packing,
//              forward, backward, the norm of the gradient, clipping, AdamW; how many operations that takes; a peer in
//              another process that does the same from the same files, a line for every step.
// What it is not: part of the library.
// Read before: train.c, ceilings.h.  Read next: bench_train.c, bench_gpu.c.
#ifndef SURGR1_STEP_H
#define SURGR1_STEP_H
#include "ceilings.h"
#include <sys/wait.h>
#include <unistd.h>

// ------------------------------------------------------------------------------------------------------------ samples

enum { MOST_SEQUENCES = 16 };
typedef struct SampleShape {
    int n;                     // sequences
    int64_t length, spread;    // tokens of each; with spread their lengths are 2 spread apart around that
    const int64_t (*sides)[2]; // [n] patches of each one's picture, high and wide; NULL: no pictures
    int64_t trained;           // the last so many ids are targets; 0: the last half
} SampleShape;

typedef struct Samples {
    int n;
    int64_t tokens;
    int32_t *ids, *trained, lengths[MOST_SEQUENCES], grids[MOST_SEQUENCES][3];
    uint8_t *flags;
    Grid grid[MOST_SEQUENCES];
    float *pixels;
    int64_t patches, values, targets;
    bool pictures;
} Samples;

// text, a picture, text.
static void samples_make(Samples *s, const Config *c, SampleShape shape) {
    int64_t at = 0, text = c->vision_start_id - 9; // ids below the special ones
    *s = (Samples){.n = shape.n, .pictures = shape.sides != NULL, .tokens = shape.n * shape.length};
    s->ids = alloc_or_die((size_t)s->tokens, sizeof *s->ids, "ids");
    s->trained = alloc_or_die((size_t)s->tokens, sizeof *s->trained, "ids");
    s->flags = alloc_or_die((size_t)s->tokens, sizeof *s->flags, "ids");
    s->values = c->vision.channels * c->vision.temporal * c->vision.patch * c->vision.patch;
    for (int k = 0; k < s->n; k++) {
        Grid g = s->grid[k] = shape.sides ? (Grid){1, shape.sides[k][0], shape.sides[k][1]} : (Grid){0, 0, 0};
        int64_t n = shape.length + shape.spread * (2 * k - s->n + 1), units = g.h * g.w / 4;
        int64_t from = shape.trained ? n - shape.trained : n / 2;
        s->lengths[k] = (int32_t)n;
        for (int i = 0; i < 3; i++) s->grids[k][i] = (int32_t)(i == 0 ? g.t : i == 1 ? g.h : g.w);
        for (int64_t i = 0; i < n; i++) {
            s->ids[at + i] = units && i == 8                   ? c->vision_start_id
                             : units && i > 8 && i < 9 + units ? c->image_id
                             : units && i == 9 + units         ? c->vision_end_id
                                                               : (int32_t)(cheap() % (uint64_t)text);
            s->flags[at + i] = i > 0 && i >= from && (!units || i > 9 + units);
            s->trained[at + i] = s->flags[at + i], s->targets += s->flags[at + i];
        }
        at += n, s->patches += units * 4;
    }
    s->pixels = alloc_or_die((size_t)(s->patches * s->values), sizeof *s->pixels, "pictures");
    for (int64_t i = 0; i < s->patches * s->values; i++)
        s->pixels[i] = (float)(int32_t)cheap() * (2.0f / 2147483648.0f);
}
static void samples_free(Samples *s) { free(s->ids), free(s->trained), free(s->flags), free(s->pixels); }

static bool samples_write(const Samples *s, const char *dir, Err *e) {
    char path[1300];
    TensorOut out[] = {
        {"grids", FT_I32, 2, {s->n, 3}, s->grids},       {"ids", FT_I32, 1, {s->tokens}, s->ids},
        {"lengths", FT_I32, 1, {s->n}, s->lengths},      {"pixels", FT_F32, 2, {s->patches, s->values}, s->pixels},
        {"trained", FT_I32, 1, {s->tokens}, s->trained},
    };
    return path_join(path, sizeof path, dir, "bench_samples.safetensors", e) &&
           tensors_write(path, out, sizeof out / sizeof *out, e);
}

// ----------------------------------------------------------------------------------------------------------- our step

typedef struct Step {
    Model m;
    Optimizer o;
    Pack pack;
    Samples s;
    float *dlp, *lp;
    double seconds, cpu, loss, norm; // of the last step; cpu: seconds of all threads
} Step;

// lora: NULL trains every weight, in F32 of its own.
static bool step_open(Step *t, const char *dir, const Ops *d, const LoraOptions *lora, Err *e) {
    AdamOptions a = {.lr = {1e-4, 1e-4, 1e-4}, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .decay = 0.01, .clip = 1};
    if (!model_load(&t->m, dir, d, (LoadOptions){.force_f32 = d->act_type == F32}, e)) return false;
    if (lora && !lora_init(&t->m, lora, e)) return false;
    for (int64_t i = 0; !lora && i < t->m.n_params; i++) t->m.params[i].trained = true;
    return model_train_open(&t->m, e) && optimizer_open(&t->o, &t->m, &a, e);
}
static void step_samples(Step *t, SampleShape shape) {
    samples_make(&t->s, &t->m.c, shape);
    t->dlp = alloc_or_die((size_t)t->s.tokens, sizeof *t->dlp, "the step");
    t->lp = alloc_or_die((size_t)t->s.tokens, sizeof *t->lp, "the step");
}
static void step_samples_free(Step *t) { samples_free(&t->s), free(t->dlp), free(t->lp); }
static void step_close(Step *t) { optimizer_close(&t->o, &t->m), pack_free(&t->pack), model_free(&t->m); }

static const TrainBatch *step_batch(Step *t, int64_t keep, Err *e) {
    pack_clear(&t->pack);
    for (int64_t k = 0, at = 0, patch = 0; k < t->s.n; at += t->s.lengths[k], k++) {
        Sequence q = {.ids = t->s.ids + at,
                      .n = t->s.lengths[k],
                      .n_prompt = t->s.lengths[k],
                      .trained = t->s.flags + at,
                      .pixels = t->s.pictures ? t->s.pixels + patch * t->s.values : NULL,
                      .grids = t->s.pictures ? &t->s.grid[k] : NULL,
                      .n_grids = t->s.pictures};
        if (!pack_add(&t->pack, &t->m.c, &q, e)) return NULL;
        patch += grid_patches(t->s.grid[k]);
    }
    return pack_batch(&t->pack, false, 0, keep);
}
static bool step_once(Step *t, int64_t keep, Err *e) {
    double started = clock_seconds(), cpu = cpu_seconds(), loss = 0;
    const TrainBatch *b = step_batch(t, keep, e);
    if (!b) return false;
    for (int64_t i = 0; i < b->N; i++) t->dlp[i] = b->targets[i] < 0 ? 0 : (float)(-1.0 / (double)t->s.targets);
    model_zero_gradients(&t->m);
    if (!model_pass(&t->m, b, t->dlp, t->lp, NULL, e)) return false;
    for (int64_t i = 0; i < b->N; i++) loss -= t->lp[i];
    t->norm = gradient_norm(&t->o, &t->m);
    optimizer_step(&t->o, &t->m, 1, t->norm);
    t->m.d->sync();
    t->loss = loss / (double)t->s.targets, t->seconds = clock_seconds() - started;
    t->cpu = cpu_seconds() - cpu;
    return true;
}

// Floating-point operations of the products of one step, forward and backward, none counted twice (what is computed again in
// the backward pass is not counted). A linear layer of n rows: 2 n in out forward, as much for the gradient of its input
// where its tower learns something (patch_embed has no such gradient), and as much for its own where it is trained.
// Attention: two products of 2 pairs heads dim forward, four backward. Elementwise work is not counted.
static double step_operations(const Step *t) {
    const Config *c = &t->m.c;
    const VisionConfig *v = &c->vision;
    double linear = 0, attention = 0;
    bool learns[2] = {false, false}; // the vision tower, or anything
    for (int64_t i = 0; i < t->m.n_params; i++) {
        learns[0] = learns[0] || (t->m.params[i].trained && t->m.params[i].tower == TOWER_VISION);
        learns[1] = learns[1] || t->m.params[i].trained;
    }
    bool below = learns[0]; // something under the merger or in it learns
    for (int64_t i = 0; i < t->m.n_params; i++)
        below = below || (t->m.params[i].trained && t->m.params[i].tower == TOWER_MERGER);
    for (int64_t i = 0; i < t->m.n_params; i++) {
        const Param *p = &t->m.params[i];
        if (p->dims < 2) continue;
        double rows = p->w == &t->m.head.w || p->tied ? (double)t->s.targets
                      : p->w == &t->m.embed           ? 0
                      : p->tower == TOWER_VISION      ? (double)t->s.patches
                      : p->tower == TOWER_MERGER      ? (double)t->s.patches / 4
                                                      : (double)t->s.tokens;
        bool down = p->w != &t->m.vision.patch_embed.w && (p->tower == TOWER_VISION   ? learns[0]
                                                           : p->tower == TOWER_MERGER ? below
                                                                                      : learns[1]);
        linear += 2 * (1 + down + p->trained) * rows * (double)(p->rows * p->cols);
    }
    for (int k = 0; k < t->s.n; k++) {
        double n = t->s.lengths[k];
        attention += (learns[1] ? 12 : 4) * (double)c->L * 0.5 * n * (n + 1) * (double)c->C;
    }
    WindowOrder o = {0};
    if (t->s.pictures) window_order(&o, v, t->s.grid, t->s.n);
    for (int64_t j = 0; t->s.pictures && j < v->depth; j++)
        for (int64_t i = 0; i < (v->full[j] ? o.n_frames : o.n_windows); i++) {
            const int32_t *s = v->full[j] ? o.full_starts : o.starts;
            double n = s[i + 1] - s[i];
            attention += (learns[0] ? 12 : 4) * n * n * (double)v->C;
        }
    if (t->s.pictures) window_order_free(&o);
    return linear + attention;
}

// ------------------------------------------------------------------------------------------------------------- the peer
// Its answer to a line is a line: first "ready NAME" or "missing WHY", then for every "step" "SECONDS CPU_SECONDS LOSS NORM".

typedef struct Peer {
    pid_t pid;
    FILE *to, *from;
    char name[400];
} Peer;

static bool peer_line(Peer *p, char *line, int size) {
    if (!fgets(line, size, p->from)) return false;
    line[strcspn(line, "\n")] = 0;
    return true;
}
// Runs `python script arguments...` (NULL-ended, at most 8). false: it is not there, and p->name says why.
static bool peer_open(Peer *p, const char *python, const char *script, const char *const *arguments) {
    int down[2], up[2];
    const char *argv[11] = {python, script};
    char line[400];
    for (int i = 0; arguments[i] && i < 8; i++) argv[2 + i] = arguments[i];
    if (pipe(down) || pipe(up)) return false;
    p->pid = fork();
    if (p->pid == 0) {
        dup2(down[0], 0), dup2(up[1], 1);
        close(down[0]), close(down[1]), close(up[0]), close(up[1]);
        execvp(python, (char *const *)(uintptr_t)argv);
        _exit(127);
    }
    close(down[0]), close(up[1]);
    p->to = fdopen(down[1], "w"), p->from = fdopen(up[0], "r");
    if (p->pid < 0 || !p->to || !p->from) return false;
    if (!peer_line(p, line, sizeof line)) snprintf(line, sizeof line, "missing %s did not run", python);
    bool ready = !strncmp(line, "ready ", 6);
    snprintf(p->name, sizeof p->name, "%s", line + strcspn(line, " ") + (strchr(line, ' ') != NULL));
    return ready;
}
static bool peer_step(Peer *p, double *wall, double *cpu, double *loss, double *norm) {
    char line[200];
    fprintf(p->to, "step\n"), fflush(p->to);
    return peer_line(p, line, sizeof line) && sscanf(line, "%lf %lf %lf %lf", wall, cpu, loss, norm) == 4;
}
static void peer_close(Peer *p) {
    if (p->to) fclose(p->to);
    if (p->from) fclose(p->from);
    if (p->pid > 0) waitpid(p->pid, NULL, 0);
}
#endif
