// generate.c - KV cache, batched prefill and decode with shared prompts, sampling settings, stop rules.
//
// What it is:  from prompts to answers. All prompts of a call are decoded side by side; each prompt (and its pictures)
//              is computed once, and its completions share its cache rows.
// What it is not: text (tokenizer.c) or training-time rollouts' rewards (those come on top of this).
// Read before: model.c.  Read next: surgr1.c.
//
// The cache is a list of token slots per layer. A prompt of n tokens owns n - 1 slots in a row; completion g of it owns
// max_new_tokens more, the first of them for the prompt's last token, which is computed once for each completion. A new
// token sees its prompt's slots as prefix and its own earlier slots (ops.h, Span), so no slot is ever copied or padded,
// and finished completions simply leave the batch. These are the spans of pack_add_group: a training pass over the same
// tokens adds up the same numbers in the same order.
//
// A step of decoding costs one transfer to the device and one back, and where the device can record ops, one launch: a
// graph of everything from the token's embedding to the next token. A graph is of one number of rows, so there batches
// are filled up with idle rows to a few sizes. A graph is dropped when that number changes, and with the call of
// generate(): within it neither buffers nor weights move.
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
    uint32_t stream;                          // of its random numbers
    int32_t prompt_first, prompt_last, first; // cache slots: the prompt's but for its last token; that, then its own
    int64_t position;                         // of its next token
    int32_t last;                             // its newest token
    int64_t n;                                // tokens so far
} Row;

// A step of N rows has these columns of N words each in one block, and leaves those in another. A span is five words.
enum { STREAMS, STEPS, IDS, POSITIONS, SLOTS, SPANS, STEP_WORDS = SPANS + 5 }; // I32
enum { TOKENS, LP, ENTROPY, SCALED_LP, DRAWN_WORDS }; // I32, then F32: lp at temperature 1, the others as sampled

typedef struct Batch {
    Model *m;
    const GenerationConfig *g;
    Cache cache;
    Row *rows; // [n_rows] those still running
    int64_t n_rows, capacity;
    Arena arena; // the views below
    Mat logits;  // F32 [capacity, V]
    Mat seen;    // I32 [capacity, ceil(V/32)], one row per running completion
    Mat words;   // I32 [1, STEP_WORDS * capacity]
    Mat drawn;   // I32 [1, DRAWN_WORDS * capacity]
    Mat turns;   // F32 [., dim] rotary table of positions from first_position on
    Arena turns_arena;
    int64_t first_position;
    int32_t *host_words, *host_drawn;
    bool records; // steps are recorded
    // of steps of N rows; rows only leave, so a number that has been left does not come again
    int64_t N;
    TextStep step;
    bool ran;    // one by one: alone a step is not worth recording, and what runs for the first time may set up what a
                 // capture forbids
    void *graph; // NULL: none yet
} Batch;

// Whether steps can be recorded now; tried, as only the device knows its reasons.
static bool can_record(const Ops *d) {
    if (!capture_begin(d)) return false;
    capture_release(d, capture_end(d));
    return true;
}
// How many rows a step of n runs with: one of a few numbers where steps are recorded.
static int64_t padded(const Batch *b, int64_t n) {
    int64_t N = 1;
    while (N < n && N < 64) N *= 2;
    return !b->records ? n : n <= 64 ? N : (n + 63) / 64 * 64;
}

static void batch_place(Batch *b, Arena *a) {
    int64_t n = b->capacity, V = b->m->c.V;
    b->logits = arena_mat(a, n, V, F32);
    b->seen = arena_mat(a, n, (V + 31) / 32, I32);
    b->words = arena_mat(a, 1, STEP_WORDS * n, I32);
    b->drawn = arena_mat(a, 1, DRAWN_WORDS * n, I32);
}
// Column k of a block of N rows, `width` words a row.
static Mat column(Mat block, int64_t k, int64_t N, int64_t width, Type type) {
    return mat(mat_at(block, 0, k * N), N, width, type);
}

static bool is_stop(const GenerationConfig *g, int32_t id) {
    for (int i = 0; i < g->n_stop; i++)
        if (g->stop[i] == id) return true;
    return false;
}

static bool scaled(const Batch *b) { return b->g->sample.do_sample && b->g->sample.temperature != 1; }

// One token for each of the first N rows of logits, whose ids so far are in `seen`, and what it cost. Ops only.
static void sample_rows(const Batch *b, int64_t N, Mat seen) {
    const Ops *d = b->m->d;
    SampleParams p = b->g->sample;
    Mat logits = mat_rows(b->logits, 0, N), tokens = column(b->drawn, TOKENS, N, 1, I32);
    Mat lp = column(b->drawn, LP, N, 1, F32), entropy = column(b->drawn, ENTROPY, N, 1, F32);
    Mat scaled_lp = column(b->drawn, SCALED_LP, N, 1, F32);
    sample(d, tokens, logits, seen, column(b->words, STREAMS, N, 1, I32), column(b->words, STEPS, N, 1, I32), p);
    logprob_forward(d, lp, mat_none(), scaled(b) ? mat_none() : entropy, logits, tokens, 1);
    if (scaled(b)) logprob_forward(d, scaled_lp, mat_none(), entropy, logits, tokens, (float)(1 / p.temperature));
}
// What sample_rows needs of rows [first, first + n), in the words of a step of N.
static void draw_words(const Batch *b, int64_t first, int64_t n, int64_t N) {
    for (int64_t i = 0; i < N; i++) {
        b->host_words[STREAMS * N + i] = i < n ? (int32_t)b->rows[first + i].stream : 0;
        b->host_words[STEPS * N + i] = i < n ? (int32_t)b->rows[first + i].n : 0;
    }
}

// Records what sample_rows drew for rows [first, first + n) in a step of N, and drops the rows that are done. Returns
// false when the callback asks to stop.
static bool take(Batch *b, int64_t first, int64_t n, int64_t N, Completion *out, TokenCallback on_token, void *ctx) {
    const Ops *d = b->m->d;
    int64_t words = (scaled(b) ? DRAWN_WORDS : SCALED_LP) * N;
    const int32_t *tokens = b->host_drawn + TOKENS * N;
    const float *lp = (const float *)(b->host_drawn + LP * N), *entropy = (const float *)(b->host_drawn + ENTROPY * N);
    const float *own_lp = scaled(b) ? (const float *)(b->host_drawn + SCALED_LP * N) : lp;
    d->download(mat(b->host_drawn, 1, words, I32), mat_cols(b->drawn, 0, words));

    bool go_on = true;
    int64_t kept = first;
    for (int64_t i = 0; i < n; i++) {
        Row *row = &b->rows[first + i];
        Completion *c = &out[row->out];
        CHECK(tokens[i] >= 0 && tokens[i] < b->m->c.V, "sample: id %d of a vocabulary of %lld", tokens[i],
              (long long)b->m->c.V);
        if (!(c->ids.n & (c->ids.n - 1))) { // room for 1, 2, 4, 8, ...
            size_t room = (size_t)(c->ids.n ? 2 * c->ids.n : 1);
            c->lp = grow_or_die(c->lp, room, sizeof *c->lp, "log-probabilities");
            c->entropy = grow_or_die(c->entropy, room, sizeof *c->entropy, "entropies");
        }
        c->lp[c->ids.n] = own_lp[i], c->entropy[c->ids.n] = entropy[i];
        ids_add(&c->ids, tokens[i]);
        c->logprob += (double)lp[i];
        row->last = tokens[i], row->n++;
        c->stopped = is_stop(b->g, tokens[i]);
        if (on_token && !on_token(ctx, row->out, tokens[i])) go_on = false;
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
static bool prefill(Batch *b, const Request *requests, int r0, int r1, int first_out, int32_t *slot, Completion *out,
                    TokenCallback on_token, void *ctx, bool *go_on, Err *e) {
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
            b->rows[b->n_rows++] = (Row){.out = first_out++,
                                         .stream = q->stream + (uint32_t)g,
                                         .prompt_first = prompt,
                                         .prompt_last = prompt + (int32_t)q->n - 1,
                                         .first = *slot,
                                         .position = next,
                                         .last = -1};
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
    if (ok) {
        draw_words(b, first_row, p.n, p.n);
        m->d->upload(mat_cols(b->words, 0, IDS * p.n), mat(b->host_words, 1, IDS * p.n, I32));
        sample_rows(b, p.n, mat_rows(b->seen, first_row, p.n));
        *go_on = take(b, first_row, p.n, p.n, out, on_token, ctx);
    }
    pass_close(&p, m);
    free(bits);
    return ok;
}

// What all steps share: the rotary table of every position that a row can come to, and scratch for the rows there are.
static bool decode_open(Batch *b, Err *e) {
    Model *m = b->m;
    int64_t last = 0;
    b->first_position = INT64_MAX;
    for (int64_t i = 0; i < b->n_rows; i++) {
        const Row *row = &b->rows[i];
        int64_t end = row->position + b->g->max_new_tokens - row->n;
        if (row->position < b->first_position) b->first_position = row->position;
        if (end > last) last = end;
    }
    int64_t n = last - b->first_position, dim = m->c.dim;
    TextStep s;
    Arena count = {0};
    text_step_place(&s, &count, m, padded(b, b->n_rows));
    if (!arena_reserve(&m->activations, m->d, count.used, e) ||
        !arena_reserve(&b->turns_arena, m->d, (size_t)(n * dim) * sizeof(float), e))
        return false;
    int32_t *pos = alloc_or_die((size_t)(3 * n), sizeof *pos, "positions");
    float *table = alloc_or_die((size_t)n, (size_t)dim * sizeof *table, "rotary table");
    for (int64_t i = 0; i < 3 * n; i++) pos[i] = (int32_t)(b->first_position + i % n);
    mrope_table(&m->c, pos, n, table);
    b->turns = mat(b->turns_arena.base, n, dim, F32);
    m->d->upload(b->turns, mat(table, n, dim, F32));
    free(pos), free(table);
    return true;
}

// Everything that differs between steps, for N rows of which the first n_rows are not idle.
static void step_words(Batch *b, int64_t N) {
    int32_t *w = b->host_words;
    Span *spans = (Span *)(w + SPANS * N);
    draw_words(b, 0, b->n_rows, N);
    for (int64_t i = 0; i < N; i++) {
        w[IDS * N + i] = w[POSITIONS * N + i] = w[SLOTS * N + i] = -1, spans[i] = (Span){0};
        if (i >= b->n_rows) continue;
        Row *row = &b->rows[i];
        int32_t slot = row->first + (int32_t)row->n;
        w[IDS * N + i] = row->last, w[SLOTS * N + i] = slot;
        w[POSITIONS * N + i] = (int32_t)(row->position++ - b->first_position);
        spans[i] = (Span){row->first, slot + 1, row->prompt_first, row->prompt_last, 0};
    }
}

// From here on steps have N rows.
static void step_open(Batch *b, int64_t N) {
    Model *m = b->m;
    if (b->graph) capture_release(m->d, b->graph);
    b->N = N, b->ran = false, b->graph = NULL;
    b->step = (TextStep){.ids = column(b->words, IDS, N, 1, I32),
                         .positions = column(b->words, POSITIONS, N, 1, I32),
                         .slots = column(b->words, SLOTS, N, 1, I32),
                         .turns = b->turns,
                         .cache = &b->cache};
    b->step.spans = (Spans){column(b->words, SPANS, N, 5, I32), (const Span *)(b->host_words + SPANS * N), N, 0};
    m->activations.used = 0;
    text_step_place(&b->step, &m->activations, m, N);
}
static void step_ops(const Batch *b) {
    text_step(b->m, &b->step, mat_rows(b->logits, 0, b->N));
    sample_rows(b, b->N, mat_rows(b->seen, 0, b->N));
}

// One token for every running row. Returns false when the callback asks to stop.
static bool decode(Batch *b, Completion *out, TokenCallback on_token, void *ctx) {
    const Ops *d = b->m->d;
    int64_t n = b->n_rows, N = padded(b, n);
    if (N != b->N) step_open(b, N);
    step_words(b, N);
    d->upload(mat_cols(b->words, 0, STEP_WORDS * N), mat(b->host_words, 1, STEP_WORDS * N, I32));
    if (!b->graph && b->ran && b->records && capture_begin(d)) step_ops(b), b->graph = capture_end(d);
    if (b->graph) replay(d, b->graph);
    else step_ops(b), b->ran = true;
    return take(b, 0, n, N, out, on_token, ctx);
}

bool generate(Model *m, const Request *requests, int n, const GenerationConfig *g, TokenCallback on_token, void *ctx,
              Completion *out, Err *e) {
    Batch b = {.m = m, .g = g, .arena = {.role = "logits"}, .turns_arena = {.role = "rotary table"}};
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
    b.records = can_record(m->d), b.capacity = padded(&b, b.capacity);
    b.rows = alloc_or_die((size_t)b.capacity + 1, sizeof *b.rows, "batch");
    b.host_words = alloc_or_die((STEP_WORDS + DRAWN_WORDS) * (size_t)b.capacity + 1, sizeof *b.host_words, "batch");
    b.host_drawn = b.host_words + STEP_WORDS * b.capacity;
    for (int r = 0, o = 0; r < n; r++)
        for (int k = 0; k < requests[r].completions; k++) out[o++] = (Completion){0};

    Arena count = {.role = "logits"};
    batch_place(&b, &count);
    bool ok = arena_reserve(&b.arena, m->d, count.used, e) && cache_open(&b.cache, m, slots, e), go_on = true;
    if (ok) batch_place(&b, &b.arena);
    if (ok) m->d->zero(b.seen); // of idle rows too
    int32_t next_slot = 0;
    for (int r = 0, o = 0; ok && go_on && r < n;) {
        int last = r, first_out = o;
        for (int64_t tokens = 0; last < n && (last == r || tokens + pass_rows(&requests[last]) <= PREFILL_TOKENS);
             last++)
            tokens += pass_rows(&requests[last]), o += requests[last].completions;
        ok = prefill(&b, requests, r, last, first_out, &next_slot, out, on_token, ctx, &go_on, e);
        r = last;
    }
    if (ok && go_on && b.n_rows) ok = decode_open(&b, e);
    while (ok && go_on && b.n_rows) go_on = decode(&b, out, on_token, ctx);

    if (b.graph) capture_release(m->d, b.graph);
    if (b.cache.k) cache_close(&b.cache, m);
    arena_release(&b.arena, m->d), arena_release(&b.turns_arena, m->d);
    free(b.rows), free(b.host_words);
    return ok;
}

// ------------------------------------------------------------------------------------------------------------- memory

GenerateBytes generate_bytes(const Model *m, int64_t prompts, int64_t tokens, int64_t patches, int64_t completions,
                             int64_t new_tokens) {
    const Config *c = &m->c;
    int64_t n = prompts * completions, slots = prompts * (tokens - 1 + completions * new_tokens);
    int64_t rows = tokens - 1 + completions, units = patches / (c->vision.merge * c->vision.merge);
    Batch b = {.m = (Model *)(uintptr_t)m, .records = m->d->capture_begin != NULL};
    b.capacity = padded(&b, n);
    TextStep step;
    Arena cache = {0}, logits = {0}, decode = {0};
    for (int64_t i = 0; i < 2 * c->L; i++) arena_mat(&cache, slots, c->kv_heads * c->dim, m->d->act_type);
    batch_place(&b, &logits);
    arena_mat(&logits, tokens + new_tokens, c->dim, F32); // the rotary table; prompts of other lengths widen it so far
    text_step_place(&step, &decode, m, b.capacity);
    // a pass of prefill has PREFILL_TOKENS at most, or one prompt
    int64_t most = rows > PREFILL_TOKENS ? rows : PREFILL_TOKENS, N = prompts * rows < most ? prompts * rows : most;
    int64_t images = prompts * units < N ? prompts * units : N;
    const int32_t some = 0;
    TextInput in = {.N = N, .n_spans = prompts + n, .head_rows = &some, .n_head = n < N ? n : N, .cache = &b.cache};
    size_t sizes[] = {text_forward_bytes(m, &in, images), decode.used, 0};
    Grid grid = {1, c->vision.merge, patches / c->vision.merge}; // one picture of as many patches stands for all
    if (patches) sizes[2] = vision_bytes(m->d, &m->vision, &grid, 1, false, 0);
    GenerateBytes bytes = {.cache = cache.used, .logits = logits.used};
    for (int k = 0; k < 3; k++)
        if (sizes[k] > bytes.activations) bytes.activations = sizes[k];
    if (images) bytes.pictures = (size_t)(images * c->C) * type_size(m->d->act_type) + 64;
    return bytes;
}
