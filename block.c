// block.c - linear layers with optional LoRA, and the transformer block of both towers, forward and backward.
//
// What it is:  the maths of the network, once. The vision tower and the decoder run the same block with other sizes:
//
//                  mid = x + proj(attention(rope(qkv(rmsnorm(x)))))
//                  y = mid + down(silu(gate(n)) * up(n)),   n = rmsnorm(mid)
//
//              (transformers modeling_qwen2_5_vl.py: Qwen2_5_VLVisionBlock, Qwen2_5_VLDecoderLayer.) The backward pass
//              is the same page read from the bottom up.
// What it is not: aware of pictures, positions or caches beyond the views it is given.
// Read before: ops.c.  Read next: vision.c, model.c.
#include "surgr1.h"

// ------------------------------------------------------------------------------------------------------------- linear

void lora_scratch_place(LoraScratch *s, Arena *a, const Ops *d, int64_t rank, int64_t widest, bool dropout,
                        bool training, int64_t N) {
    *s = (LoraScratch){0};
    if (!rank) return;
    s->h = arena_padded(a, d, N, rank, d->act_type);
    if (training) s->dh = arena_padded(a, d, N, rank, d->act_type);
    if (training && dropout) s->dropped = arena_padded(a, d, N, widest, d->act_type);
}
// The first rows and columns of a scratch matrix. Beyond fewer columns than it has lies what another layer left there.
static Mat corner(Mat scratch, int64_t rows, int64_t cols) { return mat_cols(mat_rows(scratch, 0, rows), 0, cols); }

// The input of A: x, or dropout(x) while that is on. The same call gives the same mask, in forward and backward.
static Mat lora_input(const Ops *d, const Lora *l, Mat x, const LoraScratch *s) {
    if (!s->keys.p || l->dropout == 0) return x;
    Mat dropped = corner(s->dropped, x.rows, x.cols);
    dropout(d, dropped, x, mat_rows(s->keys, 0, x.rows), l->dropout, s->seed, l->site);
    return dropped;
}
static Mat lora_rows(Mat scratch, const Lora *l, int64_t N) { return corner(scratch, N, l->a.v.rows); }

// y = x w^T + b + scale (dropout(x) A^T) B^T.
void linear_forward(const Ops *d, const Linear *l, Mat y, Mat x, const LoraScratch *s) {
    if (l->b.v.p) matmul_bias(d, y, x, l->w.v, l->b.v);
    else matmul(d, y, x, l->w.v, NT, 1, 0);
    if (!l->lora.a.v.p) return;
    Mat h = lora_rows(s->h, &l->lora, x.rows);
    matmul(d, h, lora_input(d, &l->lora, x, s), l->lora.a.v, NT, 1, 0);
    matmul(d, y, h, l->lora.b.v, NT, l->lora.scale, 1);
}

// With h = dropout(x) A^T:  dB += scale dy^T h;  dh = scale dy B;  dA += dh^T dropout(x);  dx += dropout'(dh A).
static void lora_backward(const Ops *d, const Lora *l, Mat dx, Mat dy, Mat x, const LoraScratch *s) {
    Mat h = lora_rows(s->h, l, x.rows), dh = lora_rows(s->dh, l, x.rows), input = lora_input(d, l, x, s);
    matmul(d, h, input, l->a.v, NT, 1, 0);
    if (l->b.d.p) matmul(d, l->b.d, dy, h, TN, l->scale, 1);
    matmul(d, dh, dy, l->b.v, NN, l->scale, 0);
    if (l->a.d.p) matmul(d, l->a.d, dh, input, TN, 1, 1);
    if (!dx.p) return;
    if (input.p == x.p) {
        matmul(d, dx, dh, l->a.v, NN, 1, 1);
        return;
    }
    matmul(d, input, dh, l->a.v, NN, 1, 0);
    dropout(d, input, input, mat_rows(s->keys, 0, x.rows), l->dropout, s->seed, l->site);
    add(d, dx, dx, input);
}

void linear_backward(const Ops *d, const Linear *l, Mat dx, Mat dy, Mat x, float beta, const LoraScratch *s) {
    if (dx.p) matmul(d, dx, dy, l->w.v, NN, 1, beta);
    if (l->w.d.p) matmul(d, l->w.d, dy, x, TN, 1, 1);
    bias_backward(d, l->b.d, dy);
    if (l->lora.a.v.p) lora_backward(d, &l->lora, dx, dy, x, s);
}

bool linear_trained(const Linear *l) { return l->w.d.p || l->b.d.p || l->lora.a.d.p || l->lora.b.d.p; }

// -------------------------------------------------------------------------------------------------------------- block

bool block_trained(const Block *b) {
    bool any = b->norm1.d.p || b->norm2.d.p || linear_trained(&b->proj) || linear_trained(&b->gate) ||
               linear_trained(&b->up) || linear_trained(&b->down);
    for (int i = 0; i < b->n_qkv; i++) any |= linear_trained(&b->qkv[i]);
    return any;
}

// gate and up as the halves of one row; the second begins behind the padding of the first.
static void pair_place(Mat *gate, Mat *up, Arena *a, const Ops *d, int64_t N, int64_t F) {
    Arena one = {0};
    int64_t half = arena_padded(&one, d, 1, F, d->act_type).stride;
    Mat both = arena_mat(a, N, 2 * half, d->act_type);
    *gate = corner(both, N, F), *up = both.p ? mat_cols(both, half, F) : *gate;
    gate->zeros = up->zeros = (int32_t)(half - F);
    if (!both.p || half == F) return;
    d->zero(mat_cols(both, F, half - F)), d->zero(mat_cols(both, half + F, half - F));
}

void block_scratch_place(BlockScratch *s, Arena *a, const Ops *d, BlockShape shape, int64_t N, bool training,
                         const BlockScratch *shared) {
    Type act_type = d->act_type;
    *s = (BlockScratch){0};
    s->normed1 = arena_padded(a, d, N, shape.C, act_type);
    s->normed2 = training ? arena_padded(a, d, N, shape.C, act_type) : s->normed1;
    s->qkv = arena_mat(a, N, (shape.heads + 2 * shape.kv_heads) * shape.dim, act_type);
    s->att = arena_padded(a, d, N, shape.heads * shape.dim, act_type);
    pair_place(&s->gate, &s->up, a, d, N, shape.F);
    s->mlp = arena_padded(a, d, N, shape.F, act_type);
    if (training) {
        s->mid = arena_mat(a, N, shape.C, act_type);
        s->lse = arena_mat(a, N, shape.heads, F32);
        s->rstd1 = arena_mat(a, N, 1, F32);
        s->rstd2 = arena_mat(a, N, 1, F32);
    }
    if (shared) {
        s->branch = shared->branch, s->lora = shared->lora;
        return;
    }
    int64_t widest = shape.heads * shape.dim > shape.C ? shape.heads * shape.dim : shape.C;
    s->branch = arena_mat(a, N, shape.C, act_type);
    lora_scratch_place(&s->lora, a, d, shape.rank, shape.F > widest ? shape.F : widest, shape.dropout, training, N);
}

typedef struct Heads { // the parts of a row of qkv
    Mat q, k, v;
} Heads;
static Heads heads_of(Mat qkv, BlockShape shape) {
    int64_t q_cols = shape.heads * shape.dim, kv_cols = shape.kv_heads * shape.dim;
    return (Heads){mat_cols(qkv, 0, q_cols), mat_cols(qkv, q_cols, kv_cols), mat_cols(qkv, q_cols + kv_cols, kv_cols)};
}

void block_forward(const Ops *d, const Block *b, BlockShape shape, BlockScratch s, Mat y, Mat x, Mat angles,
                   Spans spans, const BlockCache *cache, Tap tap, void *tap_ctx, const char *tap_attention,
                   const char *tap_mlp) {
    Heads a = heads_of(s.qkv, shape);
    Mat mid = s.mid.p ? s.mid : x;
    float scale = 1.0f / sqrtf((float)shape.dim);

    // attention
    rmsnorm_forward(d, s.normed1, s.rstd1, x, b->norm1.v, shape.eps);
    for (int64_t i = 0, col = 0; i < b->n_qkv; col += b->qkv[i].w.v.rows, i++)
        linear_forward(d, &b->qkv[i], mat_cols(s.qkv, col, b->qkv[i].w.v.rows), s.normed1, &s.lora);
    rope(d, a.q, angles, shape.heads, shape.dim, 1);
    rope(d, a.k, angles, shape.kv_heads, shape.dim, 1);
    if (cache) { // cache rows are zero until their token comes, so that adding is storing
        scatter_add_rows(d, cache->k, a.k, cache->slots);
        scatter_add_rows(d, cache->v, a.v, cache->slots);
    }
    if (cache && cache->decode)
        attention_decode(d, s.att, a.q, cache->k, cache->v, spans, shape.heads, shape.kv_heads, shape.dim, scale);
    else attention_forward(d, s.att, s.lse, a.q, a.k, a.v, spans, shape.heads, shape.kv_heads, shape.dim, scale);
    linear_forward(d, &b->proj, s.branch, s.att, &s.lora);
    if (tap && tap_attention) tap(tap_ctx, tap_attention, d, s.branch);

    // mlp
    add_rmsnorm_forward(d, s.normed2, s.rstd2, mid, x, s.branch, b->norm2.v, shape.eps);
    linear_forward(d, &b->gate, s.gate, s.normed2, &s.lora);
    linear_forward(d, &b->up, s.up, s.normed2, &s.lora);
    swiglu_forward(d, s.mlp, s.gate, s.up);
    linear_forward(d, &b->down, s.branch, s.mlp, &s.lora);
    if (tap && tap_mlp) tap(tap_ctx, tap_mlp, d, s.branch);
    add(d, y, mid, s.branch);
}

void block_grad_place(BlockGrad *g, Arena *a, const Ops *d, BlockShape shape, int64_t N) {
    Type act_type = d->act_type;
    g->dnormed = arena_mat(a, N, shape.C, act_type);
    g->dqkv = arena_mat(a, N, (shape.heads + 2 * shape.kv_heads) * shape.dim, act_type);
    g->datt = arena_mat(a, N, shape.heads * shape.dim, act_type);
    pair_place(&g->dgate, &g->dup, a, d, N, shape.F);
    g->dmlp = arena_padded(a, d, N, shape.F, act_type);
    g->delta = arena_mat(a, N, shape.heads, F32);
}

void block_backward(const Ops *d, const Block *b, BlockShape shape, BlockScratch s, BlockGrad g, Mat dx, Mat x,
                    Mat angles, Spans spans) {
    Heads a = heads_of(s.qkv, shape), da = heads_of(g.dqkv, shape);
    float scale = 1.0f / sqrtf((float)shape.dim);

    // mlp: dx is the gradient of y, and so of mid along the residual; the norm adds what came through the branch
    linear_backward(d, &b->down, g.dmlp, dx, s.mlp, 0, &s.lora);
    swiglu_backward(d, g.dgate, g.dup, g.dmlp, s.gate, s.up);
    linear_backward(d, &b->gate, g.dnormed, g.dgate, s.normed2, 0, &s.lora);
    linear_backward(d, &b->up, g.dnormed, g.dup, s.normed2, 1, &s.lora);
    rmsnorm_backward_add(d, dx, b->norm2.d, g.dnormed, s.mid, b->norm2.v, s.rstd2);

    // attention: the same, with mid in the place of y
    linear_backward(d, &b->proj, g.datt, dx, s.att, 0, &s.lora);
    attention_backward(d, da.q, da.k, da.v, g.delta, g.datt, a.q, a.k, a.v, s.att, s.lse, spans, shape.heads,
                       shape.kv_heads, shape.dim, scale);
    rope(d, da.q, angles, shape.heads, shape.dim, -1);
    rope(d, da.k, angles, shape.kv_heads, shape.dim, -1);
    for (int64_t i = 0, col = 0; i < b->n_qkv; col += b->qkv[i].w.v.rows, i++)
        linear_backward(d, &b->qkv[i], g.dnormed, mat_cols(g.dqkv, col, b->qkv[i].w.v.rows), s.normed1, i > 0, &s.lora);
    rmsnorm_backward_add(d, dx, b->norm1.d, g.dnormed, x, b->norm1.v, s.rstd1);
}
