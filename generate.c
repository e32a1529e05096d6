// generate.c - KV cache, batched prefill and decode with shared prompts, sampling settings, stop rules.
//
// What it is:  from prompts to answers. All prompts of a call are decoded side by side; each prompt (and its pictures)
//              is computed once, and its completions share its cache rows.
// What it is not: text (tokenizer.c) or training-time rollouts' rewards (those come on top of this).
// Read before: model.c.  Read next: surgr1.c.
//
// The cache is a list of token slots per layer. A prompt of n tokens owns n - 1 slots in a row; completion g of it owns
// max_new_tokens more, the first of them for the prompt's last token, which is computed once for each completion. A new
// token sees its prompt's slots as prefix and its own earlier slots (ops.h, Span), so nothing is ever copied or padded,
// and finished completions simply leave the batch. These are the spans of pack_add_group: a training pass over the same
// tokens adds up the same numbers in the same order.
#include "surgr1.h"

bool cache_open(Cache *c, const Model *m, int64_t rows, Err *e) {
    int64_t L = m->c.L, cols = m->c.kv_heads * m->c.dim;
    *c = (Cache){.rows = rows, .arena = {.role = "key/value cache"}};
    c->k = alloc_or_die((size_t)(2 * L), sizeof *c->k, "cache table"), c->v = c->k + L;
    Arena count = {.role = "key/value cache"};
    for (int64_t i = 0; i < 2 * L; i++) arena_mat(&count, rows, cols, m->d->act_type);
    if (!arena_reserve(&c->arena, m->d, count.used, e)) {
        cache_close(c, m);
        return false;
    }
    for (int64_t i = 0; i < 2 * L; i++) {
        c->k[i] = arena_mat(&c->arena, rows, cols, m->d->act_type);
        m->d->zero(c->k[i]); // block_forward adds into it
    }
    return true;
}

void cache_close(Cache *c, const Model *m) {
    arena_release(&c->arena, m->d);
    free(c->k);
    memset(c, 0, sizeof *c);
}

void completion_free(Completion *c) { ids_free(&c->ids), free(c->lp), free(c->entropy); }

// ----------------------------------------------------------------------------------------------------------- settings

// An end token field: an integer or a list of them.
static bool read_stop(const JsonDoc *doc, const Json *object, GenerationConfig *g, Err *e) {
    const Json *v = json_get(object, "eos_token_id");
    if (!v || v->type == JSON_NULL) return true;
    int64_t n = v->type == JSON_ARRAY ? v->count : 1;
    const Json *x = v->type == JSON_ARRAY ? v->child : v;
    if (n > (int64_t)(sizeof g->stop / sizeof *g->stop))
        return err_set(e, "E-CF-02", json_at(doc, v, "eos_token_id"),
                       "expected at most 16 end tokens; found %lld; do: shorten the list", (long long)n);
    g->n_stop = 0;
    for (; n > 0; n--, x = x->next) {
        if (x->type != JSON_NUMBER || !x->integer || x->i < 0 || x->i >= LIMIT_VOCAB)
            return err_set(
                e, "E-CF-02", json_at(doc, x, "eos_token_id"),
                "expected token ids; found %s; do: use the generation_config.json that came with the weights",
                json_shown(x));
        g->stop[g->n_stop++] = (int32_t)x->i;
    }
    return true;
}

bool generation_config_load(GenerationConfig *g, const char *dir, bool *from_file, Err *e) {
    // transformers generation/configuration_utils.py: what a missing key means
    *g = (GenerationConfig){.sample = {.repetition_penalty = 1, .temperature = 1, .top_k = 50, .top_p = 1}, .pad = -1};
    char path[1200];
    JsonDoc doc = {0};
    if (!path_join(path, sizeof path, dir, "generation_config.json", e)) return false;
    *from_file = file_exists(path);
    if (!*from_file) { // the end tokens then stand in config.json
        if (!path_join(path, sizeof path, dir, "config.json", e) ||
            !json_read(&doc, path, LIMIT_CONFIG_BYTES, (JsonOptions){.refuse_duplicates = true}, e))
            return false;
        bool ok = read_stop(&doc, json_get(doc.root, "text_config"), g, e) && read_stop(&doc, doc.root, g, e);
        json_free(&doc);
        return ok;
    }
    if (!json_read(&doc, path, LIMIT_CONFIG_BYTES, (JsonOptions){.refuse_duplicates = true}, e)) return false;
    bool sample = false;
    int64_t top_k = 50, pad = -1, max_new = 0;
    SampleParams *s = &g->sample;
    bool ok = json_bool(&doc, doc.root, "do_sample", false, &sample, e) &&
              json_double(&doc, doc.root, "temperature", false, 1e-9, 1e9, &s->temperature, e) &&
              json_int(&doc, doc.root, "top_k", false, 0, LIMIT_VOCAB, &top_k, e) &&
              json_double(&doc, doc.root, "top_p", false, 0, 1, &s->top_p, e) &&
              json_double(&doc, doc.root, "min_p", false, 0, 1, &s->min_p, e) &&
              json_double(&doc, doc.root, "repetition_penalty", false, 1e-6, 1e6, &s->repetition_penalty, e) &&
              json_int(&doc, doc.root, "pad_token_id", false, 0, LIMIT_VOCAB, &pad, e) &&
              json_int(&doc, doc.root, "max_new_tokens", false, 1, LIMIT_NEW_TOKENS, &max_new, e) &&
              read_stop(&doc, doc.root, g, e);
    s->do_sample = sample, s->top_k = (int32_t)top_k, g->pad = (int32_t)pad, g->max_new_tokens = max_new;
    json_free(&doc);
    return ok;
}

// ----------------------------------------------------------------------------------------------------------- generate

enum { PREFILL_TOKENS = 4096 }; // prompts are packed into passes of about this many tokens

// One completion on its way.
typedef struct Row {
    int out;                                  // index into the caller's completions
    int32_t prompt_first, prompt_last, first; // cache slots: the prompt's but for its last token; that, then its own
    int64_t position;                         // of its next token
    int32_t last;                             // its newest token
    int64_t n;                                // tokens so far
} Row;

typedef struct Batch {
    Model *m;
    const GenerationConfig *g;
    Cache cache;
    Row *rows; // [n_rows] those still running
    int64_t n_rows, capacity;
    Arena arena;                // the views below
    Mat logits;                 // F32 [capacity, V]
    Mat seen;                   // I32 [capacity, ceil(V/32)], one row per running completion
    Mat tokens, streams, steps; // I32 [capacity, 1]
    Mat lp, scaled_lp, entropy; // F32 [capacity, 1] at temperature 1; at that of sampling
    int32_t *host;              // [capacity] for transfers
    float *host_lp, *host_scaled_lp, *host_entropy;
} Batch;

static void batch_place(Batch *b, Arena *a) {
    int64_t n = b->capacity, V = b->m->c.V;
    b->logits = arena_mat(a, n, V, F32);
    b->seen = arena_mat(a, n, (V + 31) / 32, I32);
    b->tokens = arena_mat(a, n, 1, I32);
    b->streams = arena_mat(a, n, 1, I32);
    b->steps = arena_mat(a, n, 1, I32);
    b->lp = arena_mat(a, n, 1, F32);
    b->scaled_lp = arena_mat(a, n, 1, F32);
    b->entropy = arena_mat(a, n, 1, F32);
}

static bool is_stop(const GenerationConfig *g, int32_t id) {
    for (int i = 0; i < g->n_stop; i++)
        if (g->stop[i] == id) return true;
    return false;
}

// Draws one token for rows [first, first + n) from logits [n, V], records it, and drops the rows that are done.
// Returns false when the callback asks to stop.
static bool draw(Batch *b, int64_t first, int64_t n, const Request *requests, const int *request_of, Completion *out,
                 TokenCallback on_token, void *ctx) {
    const Ops *d = b->m->d;
    SampleParams p = b->g->sample;
    Mat tokens = mat_rows(b->tokens, 0, n), streams = mat_rows(b->streams, 0, n), steps = mat_rows(b->steps, 0, n);
    Mat logits = mat_rows(b->logits, 0, n), lp = mat_rows(b->lp, 0, n), scaled_lp = mat_rows(b->scaled_lp, 0, n);
    Mat entropy = mat_rows(b->entropy, 0, n);
    bool scaled = p.do_sample && p.temperature != 1;
    const float *own_lp = scaled ? b->host_scaled_lp : b->host_lp;
    const int32_t *host = b->host;
    for (int64_t i = 0; i < n; i++) {
        int o = b->rows[first + i].out, r = request_of[o], g = 0;
        while (o - g > 0 && request_of[o - g - 1] == r) g++; // completion g of its request
        b->host[i] = (int32_t)(requests[r].stream + (uint32_t)g);
    }
    d->upload(streams, mat(b->host, n, 1, I32));
    for (int64_t i = 0; i < n; i++) b->host[i] = (int32_t)b->rows[first + i].n;
    d->upload(steps, mat(b->host, n, 1, I32));
    sample(d, tokens, logits, mat_rows(b->seen, first, n), streams, steps, p);
    logprob_forward(d, lp, mat_none(), scaled ? mat_none() : entropy, logits, tokens, 1);
    if (scaled) {
        logprob_forward(d, scaled_lp, mat_none(), entropy, logits, tokens, (float)(1 / p.temperature));
        d->download(mat(b->host_scaled_lp, n, 1, F32), scaled_lp);
    }
    d->download(mat(b->host, n, 1, I32), tokens);
    d->download(mat(b->host_lp, n, 1, F32), lp);
    d->download(mat(b->host_entropy, n, 1, F32), entropy);

    bool go_on = true;
    int64_t kept = first;
    for (int64_t i = 0; i < n; i++) {
        Row *row = &b->rows[first + i];
        Completion *c = &out[row->out];
        if (!(c->ids.n & (c->ids.n - 1))) { // room for 1, 2, 4, 8, ...
            size_t room = (size_t)(c->ids.n ? 2 * c->ids.n : 1);
            c->lp = grow_or_die(c->lp, room, sizeof *c->lp, "log-probabilities");
            c->entropy = grow_or_die(c->entropy, room, sizeof *c->entropy, "entropies");
        }
        c->lp[c->ids.n] = own_lp[i], c->entropy[c->ids.n] = b->host_entropy[i];
        ids_add(&c->ids, host[i]);
        c->logprob += (double)b->host_lp[i];
        row->last = host[i], row->n++;
        c->stopped = is_stop(b->g, host[i]);
        if (on_token && !on_token(ctx, row->out, host[i])) go_on = false;
        if (c->stopped || row->n == b->g->max_new_tokens) continue;
        if (kept != first + i) copy(d, mat_rows(b->seen, kept, 1), mat_rows(b->seen, first + i, 1));
        b->rows[kept++] = *row;
    }
    for (int64_t i = first + n; i < b->n_rows; i++, kept++) { // rows behind the drawn ones close up
        if (kept != i) copy(d, mat_rows(b->seen, kept, 1), mat_rows(b->seen, i, 1));
        b->rows[kept] = b->rows[i];
    }
    b->n_rows = kept;
    return go_on;
}

// One packed pass over several prompts, on the host. Rows: a prompt without its last token, then that once for each of its
// completions.
typedef struct Pass {
    int64_t N, images, n;                  // rows, picture rows and completions so far
    int64_t all_N, all_images, all_n;      // of the whole pass
    int32_t *ids, *pos, *slots, *image_at; // [all_N], [3, all_N], [all_N], [all_images]
    int32_t *last;                         // [all_n] the row of each completion
    Span *spans;                           // [n_spans]
    int64_t n_spans;
    Arena arena;
    Mat image_rows; // [all_images, C]
} Pass;
static int64_t pass_rows(const Request *q) { return q->n - 1 + q->completions; }

static int64_t picture_rows(const Model *m, const Request *q) {
    int64_t rows = 0;
    for (int k = 0; k < q->n_grids; k++) rows += grid_patches(q->grids[k]) / (m->c.vision.merge * m->c.vision.merge);
    return rows;
}

static bool pass_open(Pass *p, const Model *m, const Request *requests, int n, Err *e) {
    *p = (Pass){.arena = {.role = "picture rows"}, .image_rows = mat_none()};
    for (int r = 0; r < n; r++) {
        p->all_N += pass_rows(&requests[r]), p->all_images += picture_rows(m, &requests[r]);
        p->all_n += requests[r].completions;
    }
    p->ids = alloc_or_die((size_t)(5 * p->all_N + p->all_images + p->all_n), sizeof *p->ids, "prompts");
    p->pos = p->ids + p->all_N, p->slots = p->pos + 3 * p->all_N, p->image_at = p->slots + p->all_N;
    p->last = p->image_at + p->all_images;
    p->spans = alloc_or_die((size_t)(n + p->all_n), sizeof *p->spans, "attention spans");
    if (!p->all_images) return true;
    Type type = m->d->act_type;
    if (!arena_reserve(&p->arena, m->d, (size_t)(p->all_images * m->c.C) * type_size(type) + 64, e)) return false;
    p->image_rows = arena_mat(&p->arena, p->all_images, m->c.C, type);
    return true;
}

static void pass_close(Pass *p, const Model *m) {
    arena_release(&p->arena, m->d);
    free(p->ids), free(p->spans);
}

// Token t of the prompt as the next row.
static void pass_row(Pass *p, const Request *q, int64_t t, const int32_t *pos, int32_t slot) {
    for (int axis = 0; axis < 3; axis++) p->pos[axis * p->all_N + p->N] = pos[axis * q->n + t];
    p->slots[p->N] = slot, p->ids[p->N++] = q->ids[t];
}

// Appends a prompt whose cache slots begin at `slot`; those of its completions follow, `own` for each. *next is the
// position of the first new token.
static bool pass_add(Pass *p, Model *m, const Request *q, int32_t slot, int64_t own, int64_t *next, Err *e) {
    int64_t images = picture_rows(m, q);
    int32_t *pos = alloc_or_die((size_t)(3 * q->n), sizeof *pos, "positions");
    bool ok = mrope_positions(&m->c, q->ids, q->n, q->n, q->grids, q->n_grids, pos, next, e);
    if (ok && images && q->ids[q->n - 1] == m->c.image_id)
        ok = err_set(e, "E-DS-10", AT(.file = "prompt"),
                     "expected a prompt that ends in text; found a picture at its end; do: end it as the chat template "
                     "does");
    if (ok && images)
        ok = vision_forward(m->d, &m->vision, mat_rows(p->image_rows, p->images, images), q->pixels, q->grids,
                            q->n_grids, &m->activations, NULL, NULL, e);
    if (ok) {
        int32_t first = (int32_t)p->N, last = (int32_t)(p->N + q->n - 1);
        if (images) image_places(&m->c, q->ids, q->n, p->N, p->image_at + p->images);
        if (first < last) p->spans[p->n_spans++] = (Span){first, last, 0, 0, 1};
        for (int64_t t = 0; t < q->n - 1; t++) pass_row(p, q, t, pos, slot + (int32_t)t);
        for (int64_t g = 0; g < q->completions; g++) {
            p->last[p->n++] = (int32_t)p->N;
            p->spans[p->n_spans++] = (Span){(int32_t)p->N, (int32_t)p->N + 1, first, last, 1};
            pass_row(p, q, q->n - 1, pos, slot + (int32_t)(q->n - 1 + g * own));
        }
        p->images += images;
    }
    free(pos);
    return ok;
}

// Prefills requests [r0, r1) in one packed pass and draws the first token of each of their completions. *slot: the next
// free cache slot.
static bool prefill(Batch *b, const Request *requests, int r0, int r1, int first_out, int32_t *slot,
                    const int *request_of, Completion *out, TokenCallback on_token, void *ctx, bool *go_on, Err *e) {
    Model *m = b->m;
    Pass p;
    int64_t next, first_row = b->n_rows, own = b->g->max_new_tokens;
    bool ok = pass_open(&p, m, requests + r0, r1 - r0, e);
    uint32_t *bits = alloc_or_die((size_t)b->seen.cols, sizeof *bits, "seen tokens");
    for (int r = r0; ok && r < r1; r++) {
        const Request *q = &requests[r];
        int32_t prompt = *slot;
        ok = pass_add(&p, m, q, prompt, own, &next, e);
        if (!ok) break;
        *slot += (int32_t)q->n - 1;
        memset(bits, 0, (size_t)b->seen.cols * sizeof *bits);
        for (int64_t t = 0; t < q->n; t++) bits[q->ids[t] / 32] |= 1u << (q->ids[t] % 32);
        for (int g = 0; g < q->completions; g++) {
            m->d->upload(mat_rows(b->seen, b->n_rows, 1), mat(bits, 1, b->seen.cols, I32));
            b->rows[b->n_rows++] = (Row){first_out++, prompt, prompt + (int32_t)q->n - 1, *slot, next, -1, 0};
            *slot += (int32_t)own;
        }
    }
    if (ok) {
        TextInput in = {.ids = p.ids, .N = p.N, .pos = p.pos, .spans = p.spans, .n_spans = p.n_spans};
        in.image_rows = p.image_rows, in.image_at = p.image_at;
        in.head_rows = p.last, in.n_head = p.n;
        in.cache = &b->cache, in.slots = p.slots;
        ok = text_forward(m, &in, mat_rows(b->logits, 0, p.n), NULL, NULL, e);
    }
    if (ok) *go_on = draw(b, first_row, p.n, requests, request_of, out, on_token, ctx);
    pass_close(&p, m);
    free(bits);
    return ok;
}

// One token for every running row.
static bool decode(Batch *b, const Request *requests, const int *request_of, Completion *out, TokenCallback on_token,
                   void *ctx, bool *go_on, Err *e) {
    int64_t n = b->n_rows;
    int32_t *ids = alloc_or_die((size_t)(5 * n), sizeof *ids, "step"), *pos = ids + n, *slots = pos + 3 * n;
    Span *spans = alloc_or_die((size_t)n, sizeof *spans, "attention spans");
    for (int64_t i = 0; i < n; i++) {
        Row *row = &b->rows[i];
        int32_t slot = row->first + (int32_t)row->n;
        ids[i] = row->last, slots[i] = slot;
        pos[i] = pos[n + i] = pos[2 * n + i] = (int32_t)row->position++;
        spans[i] = (Span){row->first, slot + 1, row->prompt_first, row->prompt_last, 0};
    }
    TextInput in = {.ids = ids,
                    .N = n,
                    .pos = pos,
                    .spans = spans,
                    .n_spans = n,
                    .cache = &b->cache,
                    .slots = slots,
                    .decode = true};
    bool ok = text_forward(b->m, &in, mat_rows(b->logits, 0, n), NULL, NULL, e);
    if (ok) *go_on = draw(b, 0, n, requests, request_of, out, on_token, ctx);
    free(ids), free(spans);
    return ok;
}

bool generate(Model *m, const Request *requests, int n, const GenerationConfig *g, TokenCallback on_token, void *ctx,
              Completion *out, Err *e) {
    Batch b = {.m = m, .g = g, .arena = {.role = "logits"}};
    int64_t slots = 0, context = m->c.context < LIMIT_CONTEXT ? m->c.context : LIMIT_CONTEXT;
    for (int r = 0; r < n; r++) {
        if (requests[r].n < 1 || requests[r].n + g->max_new_tokens > context)
            return err_set(e, "E-ME-02", AT(.file = "prompt"),
                           "expected 1 to %lld tokens in all; found %lld in the prompt and up to %lld new; do: shorten "
                           "the question, lower --max-pixels or lower --max-new-tokens",
                           (long long)context, (long long)requests[r].n, (long long)g->max_new_tokens);
        CHECK(requests[r].completions > 0, "generate: %d completions", requests[r].completions);
        b.capacity += requests[r].completions;
        slots += requests[r].n - 1 + requests[r].completions * g->max_new_tokens;
    }
    if (slots > INT32_MAX)
        return err_set(e, "E-ME-02", AT(.file = "prompt"),
                       "expected at most %d cache rows; found %lld; do: use smaller batches", INT32_MAX,
                       (long long)slots);
    int *request_of = alloc_or_die((size_t)b.capacity + 1, sizeof *request_of, "batch");
    b.rows = alloc_or_die((size_t)b.capacity + 1, sizeof *b.rows, "batch");
    b.host = alloc_or_die((size_t)b.capacity + 1, sizeof *b.host, "batch");
    b.host_lp = alloc_or_die(3 * (size_t)b.capacity + 1, sizeof *b.host_lp, "batch");
    b.host_scaled_lp = b.host_lp + b.capacity, b.host_entropy = b.host_scaled_lp + b.capacity;
    for (int r = 0, o = 0; r < n; r++)
        for (int k = 0; k < requests[r].completions; k++, o++) request_of[o] = r, out[o] = (Completion){0};

    Arena count = {.role = "logits"};
    batch_place(&b, &count);
    bool ok = arena_reserve(&b.arena, m->d, count.used, e) && cache_open(&b.cache, m, slots, e), go_on = true;
    if (ok) batch_place(&b, &b.arena);
    int32_t next_slot = 0;
    for (int r = 0, o = 0; ok && go_on && r < n;) {
        int last = r, first_out = o;
        for (int64_t tokens = 0; last < n && (last == r || tokens + pass_rows(&requests[last]) <= PREFILL_TOKENS);
             last++)
            tokens += pass_rows(&requests[last]), o += requests[last].completions;
        ok = prefill(&b, requests, r, last, first_out, &next_slot, request_of, out, on_token, ctx, &go_on, e);
        r = last;
    }
    while (ok && go_on && b.n_rows) ok = decode(&b, requests, request_of, out, on_token, ctx, &go_on, e);

    if (b.cache.k) cache_close(&b.cache, m);
    arena_release(&b.arena, m->d);
    free(request_of), free(b.rows), free(b.host), free(b.host_lp);
    return ok;
}
