// test_padding.c - rows of matrices on device "cuda", rounded up to a multiple of 32: what lies behind the columns is zero.
//
// What it is:  a model none of whose widths is a multiple of 32 (24, 20, 16, 12; LoRA of rank 3) trained for two steps and
//              asked for an answer, while the trace looks behind every output; then behind every parameter. And that none of
//              it shows outside: files, and other devices.
// What it is not: a test of matmul over the zeros (test_kernels.c).
// Read before: ops.h (arena_padded), block.c.
#include "compare.h"
#include "passes.h"

// How many of the elements behind the columns of m are not zero.
static int64_t behind(const Ops *d, Mat m) {
    size_t size = type_size(m.type), n = (size_t)m.rows * (size_t)m.zeros;
    unsigned char *host = alloc_or_die(n + 1, size, "test");
    Mat row = m;
    row.cols += m.zeros, row.zeros = 0;
    int64_t bad = 0;
    if (n) d->download(mat(host, m.rows, m.zeros, m.type), mat_cols(row, m.cols, m.zeros));
    for (size_t i = 0; i < n; i++)
        for (size_t b = 0; b < size; b++)
            if (host[i * size + b]) {
                bad++;
                break;
            }
    free(host);
    return bad;
}

typedef struct Seen {
    int64_t matrices, bad;
    char ops[600]; // names of the ops that wrote padded matrices
    char first[100];
} Seen;
static void look(void *ctx, const Ops *d, const char *op, Mat y) {
    Seen *s = ctx;
    if (!y.zeros) return;
    char word[60];
    snprintf(word, sizeof word, " %s ", op);
    if (!strstr(s->ops, word)) strncat(s->ops, word, sizeof s->ops - strlen(s->ops) - 1);
    s->matrices++;
    if (!behind(d, y)) return;
    if (!s->bad++) snprintf(s->first, sizeof s->first, "%s [%lld,%lld]", op, (long long)y.rows, (long long)y.cols);
}
static int64_t bad_parameters(const Model *m, int64_t *padded) {
    int64_t bad = 0;
    *padded = 0;
    for (int64_t i = 0; i < m->n_params; i++) {
        const Param *p = &m->params[i];
        *padded += p->w->v.zeros > 0, bad += behind(m->d, p->w->v);
    }
    return bad;
}

static void two_steps(Model *m) {
    static const AdamOptions adam = {.lr = {1e-2, 1e-2, 1e-2}, .beta1 = 0.9, .beta2 = 0.99, .eps = 1e-8, .clip = 1};
    Optimizer o;
    Err e = {0};
    EXPECT(optimizer_open(&o, m, &adam, &e));
    for (int step = 0; step < 2; step++) {
        model_zero_gradients(m);
        free(train_pass(m, step, step + 3, 30, true, step).lp);
        optimizer_step(&o, m, 1, gradient_norm(&o, m));
    }
    optimizer_close(&o, m);
}
static void answer(Model *m) {
    static Example x;
    x = example(1);
    Err e = {0};
    GenerationConfig g = {.max_new_tokens = 4, .sample = {.repetition_penalty = 1}};
    Request r = {.ids = x.ids, .n = x.n, .pixels = x.pixels, .grids = &x.grid, .n_grids = 1, .completions = 2};
    Completion done[2] = {0};
    EXPECT(generate(m, &r, 1, &g, NULL, NULL, done, &e));
    EXPECT_INT(done[0].ids.n, 4);
    completion_free(&done[0]), completion_free(&done[1]);
}
static const Ops *on_cuda(Type type) {
    Err e = {0};
    return passes_on = ops_cuda(type, &e);
}

TEST(what_lies_behind_the_columns_stays_zero_through_training_and_generation) {
    static const Type types[] = {F32, BF16};
    // what a matmul sums along the rows of, forward and backward
    static const char *const writers[] = {" rmsnorm_forward ",   " attention_forward ", " attention_decode ",
                                          " swiglu_forward ",    " matmul_bias ",       " matmul ",
                                          " swiglu_backward.up "};
    for (int t = 0; t < 2; t++)
        for (int lora = 0; lora < 2; lora++)
            for (int rung = MATMUL_AUTO; rung <= MATMUL_TENSOR; rung += 2) {
                if (!on_cuda(types[t])) SKIP("there is no CUDA device");
                cuda_rungs_set((CudaRungs){.matmul = (CudaMatmul)rung});
                Model m;
                Seen seen = {0};
                int64_t padded;
                trainable(&m, lora, 0.3);
                op_trace_set(look, &seen);
                two_steps(&m), answer(&m);
                op_trace_set(NULL, NULL);
                if (seen.bad)
                    FAIL("%lld of %lld outputs, the first %s", (long long)seen.bad, (long long)seen.matrices,
                         seen.first);
                for (size_t i = 0; i < sizeof writers / sizeof *writers; i++)
                    if (!strstr(seen.ops, writers[i])) FAIL("nothing padded came from%s(only%s)", writers[i], seen.ops);
                EXPECT_INT(bad_parameters(&m, &padded), 0);
                EXPECT(padded >=
                       (lora ? 60 : 25)); // the matrices of four blocks, the merger, the head; and their A and B
                // the control: one number put where there should be none
                Mat w = m.params[0].w->v;
                for (int64_t i = 0; !w.zeros; i++) w = m.params[i].w->v;
                Mat row = w;
                row.cols += w.zeros, row.zeros = 0;
                uint32_t one = w.type == BF16 ? 0x3f80 : 0x3f800000;
                m.d->upload(mat_cols(mat_rows(row, 1, 1), w.cols, 1), mat(&one, 1, 1, w.type));
                EXPECT_INT(bad_parameters(&m, &padded), 1);
                model_free(&m);
            }
    cuda_rungs_set((CudaRungs){.matmul = MATMUL_AUTO});
}

static void read_all(const char *path, char **data, size_t *size) {
    Err e = {0};
    if (!file_read(path, 1 << 24, "E-IO-01", data, size, &e)) err_report(&e), exit(99);
}
static void remove_all(const char *dir) {
    char command[500];
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    EXPECT_INT(system(command), 0);
}
// The same model from the host and from padded memory makes the same files: an adapter of rank 3, and the weights.
TEST(files_know_nothing_of_the_padding) {
    Err e = {0};
    char *data[2][2], adapter[400], merged[400], path[500];
    size_t size[2][2];
    for (int device = 0; device < 2; device++) {
        Model m;
        passes_on = NULL;
        if (device && !on_cuda(F32)) SKIP("there is no CUDA device");
        trainable(&m, true, 0);
        EXPECT((m.layers[0].down.w.v.zeros > 0) == device && (m.layers[0].down.lora.b.v.zeros > 0) == device);
        snprintf(adapter, sizeof adapter, "%s/adapter", folder), snprintf(merged, sizeof merged, "%s/merged", folder);
        EXPECT(lora_save(&m, adapter, false, &e) && lora_merge(&m, &e));
        EXPECT(model_save(&m, merged, (SaveOptions){.type = "keep"}, &e));
        snprintf(path, sizeof path, "%s/adapter_model.safetensors", adapter);
        read_all(path, &data[device][0], &size[device][0]);
        snprintf(path, sizeof path, "%s/model.safetensors", merged);
        read_all(path, &data[device][1], &size[device][1]);
        remove_all(adapter), remove_all(merged), model_free(&m);
    }
    for (int k = 0; k < 2; k++) {
        EXPECT(size[0][k] == size[1][k] && !memcmp(data[0][k], data[1][k], size[0][k]));
        free(data[0][k]), free(data[1][k]);
    }
}

// A bias that the file has in bf16 stays bf16 beside bf16 matrices, so that a product can add it, until it is trained.
TEST(biases_keep_the_type_of_a_bf16_file) {
    Err e = {0};
    Model m, host;
    char dir[400];
    passes_on = NULL;
    open_at(&m);
    snprintf(dir, sizeof dir, "%s/half", folder);
    EXPECT(model_save(&m, dir, (SaveOptions){.type = "bf16"}, &e));
    model_free(&m);
    if (!on_cuda(BF16)) SKIP("there is no CUDA device");
    if (!model_load(&host, dir, ops_cpu(), (LoadOptions){0}, &e)) err_report(&e), exit(99);
    Result want = train_pass(&host, 0, 4, -1, false, 0);
    for (int trained = 0; trained < 2; trained++) {
        if (!model_load(&m, dir, passes_on, (LoadOptions){0}, &e)) err_report(&e), exit(99);
        for (int64_t i = 0; trained && i < m.n_params; i++) m.params[i].trained = true;
        if (trained) EXPECT(model_train_open(&m, &e));
        Type type = trained ? F32 : BF16;
        EXPECT(m.layers[1].qkv[0].b.v.type == type && m.vision.blocks[0].gate.b.v.type == type);
        EXPECT(m.norm.v.type == F32 && m.layers[0].norm1.v.type == F32);
        Result got = train_pass(&m, 0, 4, -1, false, 0);
        EXPECT_CLOSE("log-probabilities", got.lp, want.lp, want.n, 2e-2); // as in test_cuda_train.c
        free(got.lp), model_free(&m);
    }
    free(want.lp), model_free(&host), remove_all(dir);
}
