// block.c - linear layers and the transformer block of both towers.
//
// What it is:  the maths of the network, once. The vision tower and the decoder run the same block with other sizes:
//
//                  x = x + proj(attention(rope(qkv(rmsnorm(x)))))
//                  x = x + down(silu(gate(n)) * up(n)),   n = rmsnorm(x)
//
//              (transformers modeling_qwen2_5_vl.py: Qwen2_5_VLVisionBlock, Qwen2_5_VLDecoderLayer.)
// What it is not: aware of pictures, positions or caches beyond the views it is given.
// Read before: ops.c.  Read next: vision.c, model.c.
#include "surgr1.h"

void linear_forward(const Ops *d, const Linear *l, Mat y, Mat x) {
    matmul(d, y, x, l->w.v, NT, 1, 0);
    if (l->b.v.p) add_bias(d, y, l->b.v);
}

void block_scratch_place(BlockScratch *s, Arena *a, BlockShape shape, int64_t N, Type act_type) {
    s->normed = arena_mat(a, N, shape.C, act_type);
    s->qkv = arena_mat(a, N, (shape.heads + 2 * shape.kv_heads) * shape.dim, act_type);
    s->att = arena_mat(a, N, shape.heads * shape.dim, act_type);
    s->branch = arena_mat(a, N, shape.C, act_type);
    s->gate_up = arena_mat(a, N, 2 * shape.F, act_type);
    s->mlp = arena_mat(a, N, shape.F, act_type);
}

void block_forward(const Ops *d, const Block *b, BlockShape shape, BlockScratch s, Mat x, Mat angles, Spans spans,
                   const BlockCache *cache, Tap tap, void *tap_ctx, const char *tap_attention, const char *tap_mlp) {
    int64_t q_cols = shape.heads * shape.dim, kv_cols = shape.kv_heads * shape.dim;
    Mat q = mat_cols(s.qkv, 0, q_cols), k = mat_cols(s.qkv, q_cols, kv_cols),
        v = mat_cols(s.qkv, q_cols + kv_cols, kv_cols);
    float scale = 1.0f / sqrtf((float)shape.dim);

    // attention
    rmsnorm_forward(d, s.normed, mat_none(), x, b->norm1.v, shape.eps);
    for (int64_t i = 0, col = 0; i < b->n_qkv; col += b->qkv[i].w.v.rows, i++)
        linear_forward(d, &b->qkv[i], mat_cols(s.qkv, col, b->qkv[i].w.v.rows), s.normed);
    rope(d, q, angles, shape.heads, shape.dim, 1);
    rope(d, k, angles, shape.kv_heads, shape.dim, 1);
    if (cache) { // cache rows are zero until their token comes, so that adding is storing
        scatter_add_rows(d, cache->k, k, cache->slots);
        scatter_add_rows(d, cache->v, v, cache->slots);
    }
    if (cache && cache->decode)
        attention_decode(d, s.att, q, cache->k, cache->v, spans, shape.heads, shape.kv_heads, shape.dim, scale);
    else attention_forward(d, s.att, mat_none(), q, k, v, spans, shape.heads, shape.kv_heads, shape.dim, scale);
    linear_forward(d, &b->proj, s.branch, s.att);
    if (tap && tap_attention) tap(tap_ctx, tap_attention, d, s.branch);

    // mlp
    add_rmsnorm_forward(d, s.normed, mat_none(), x, x, s.branch, b->norm2.v, shape.eps);
    Mat gate = mat_cols(s.gate_up, 0, shape.F), up = mat_cols(s.gate_up, shape.F, shape.F);
    linear_forward(d, &b->gate, gate, s.normed);
    linear_forward(d, &b->up, up, s.normed);
    swiglu_forward(d, s.mlp, gate, up);
    linear_forward(d, &b->down, s.branch, s.mlp);
    if (tap && tap_mlp) tap(tap_ctx, tap_mlp, d, s.branch);
    add(d, x, x, s.branch);
}
