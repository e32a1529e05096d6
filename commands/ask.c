// ask.c - surgr1 ask: one question about pictures, or a file of conversations.
//
// What it is:  glue from the command line to generate() and back: conversations are made and measured, everything that
//              can be refused is refused, then weights are loaded, answers stream out, and boxes are drawn.
// What it is not: the prompt (tokenizer.c), the pictures (vision.c), or how an answer is made (generate.c).
// Read before: commands.h, generate.c.  Read next: info.c.
#include "commands.h"
#include <unistd.h>

static struct {
    const char *model, *adapter, *messages, *system, *draw, *trace;
    Many images;
    int64_t max_new_tokens, top_k, seed, min_pixels, max_pixels, threads, batch, draw_image, max_memory;
    double temperature, top_p, min_p, repetition_penalty;
    int device, dtype, matmul, kernels, alpha, exif;
    bool greedy, json, trust_text, show_special, allow_nonfinite;
} ask = {.max_new_tokens = 512,
         .top_k = 50,
         .temperature = 1,
         .top_p = 1,
         .repetition_penalty = 1,
         .batch = 4,
         .draw_image = 1,
         .device = DEVICE_CPU};

// clang-format off
static Option ask_options[] = {
    TEXT("model", &ask.model, "DIR", "checkpoint folder as published on Hugging Face"),
    TEXT("adapter", &ask.adapter, "DIR", "PEFT LoRA adapter folder, applied to the model"),
    MANY("image", &ask.images, "FILE", "JPEG or PNG; again for more pictures, in order (up to 16)", 16),
    TEXT("system", &ask.system, "TEXT", "system turn (default: the chat template's own)"),
    TEXT("messages", &ask.messages, "FILE.jsonl", "many conversations; one JSON line each on standard output"),
    INT("batch", &ask.batch, "N", "conversations of --messages worked on together", 1, 64),
    INT("max-new-tokens", &ask.max_new_tokens, "N", "longest answer, in tokens", 1, 8192),
    FLAG("greedy", &ask.greedy, "always the most likely token (do_sample false)"),
    REAL("temperature", &ask.temperature, "T", "of sampling", 1e-9, 100),
    INT("top-k", &ask.top_k, "K", "sample from the K most likely; 0 = off", 0, 1048576),
    REAL("top-p", &ask.top_p, "P", "sample from the smallest set of this probability; 1 = off", 0, 1),
    REAL("min-p", &ask.min_p, "P", "drop what is less likely than P times the best; 0 = off", 0, 1),
    REAL("repetition-penalty", &ask.repetition_penalty, "R", "for tokens that occurred; 1 = off", 0.01, 100),
    INT("seed", &ask.seed, "N", "of the random numbers", 0, 9007199254740992.),
    INT("min-pixels", &ask.min_pixels, "N", "smallest area after the resize; 0 = the checkpoint's", 0, 12845056),
    INT("max-pixels", &ask.max_pixels, "N", "largest area after the resize; 0 = the checkpoint's", 0, 12845056),
    CHOICE("alpha", &ask.alpha, "drop|white", "transparent pictures: drop alpha, or lay over white"),
    CHOICE("exif", &ask.exif, "ignore|apply", "turn pictures by their EXIF orientation"),
    CHOICE("device", &ask.device, "ref|cpu|cuda", "who computes; ref is slow and defines the answer"),
    CUDA_ROWS(ask),
    INT("max-memory", &ask.max_memory, "N", "bytes of host memory to use at most; 0 = 80 % of what is there", 0, 1e15),
    INT("threads", &ask.threads, "N", "threads; 0 = one per processor; never changes a result", 0, 256),
    CHOICE("dtype", &ask.dtype, "auto|f32|bf16", "type of matrices; auto keeps the checkpoint's"),
    TEXT("draw", &ask.draw, "OUT.png", "draw the boxes of the answer into a copy of the picture"),
    INT("draw-image", &ask.draw_image, "K", "which picture the boxes belong to, from 1", 1, 16),
    FLAG("json", &ask.json, "one JSON object on standard output instead of the text"),
    FLAG("trust-text", &ask.trust_text, "typed special tokens are special, as in Hugging Face"),
    FLAG("show-special", &ask.show_special, "print special tokens of the answer too"),
    UNFLAG("skip-special", &ask.show_special, "do not (the default)"),
    FLAG("allow-nonfinite", &ask.allow_nonfinite, "load weights with NaN or infinity"),
    TEXT("trace", &ask.trace, "FILE", "write every op's output, for surgr1 trace-diff"),
    END};
// clang-format on

typedef struct Conversation {
    Record record;
    const char *root; // folder its pictures lie beneath (--messages); NULL: paths as the user gave them
    Ids ids;
    Grid grids[16];
    int64_t width[16], height[16], tokens[16]; // of the pictures as stored; tokens each takes in the prompt
    float *pixels;
} Conversation;

typedef struct Session {
    Config c;
    Tokenizer *t;
    GenerationConfig g;
    Model m;
    Conversation *list;
    int64_t n, cap;
    char folder[1200];             // of --messages
    double loaded, started, first; // seconds to load; clocks of this batch: start, first token
    int64_t prompt_tokens, new_tokens, continued_tokens;
    double prompt_s, decode_s; // of all batches
    DecodeStream stream;
} Session;

static bool read_picture(const Conversation *c, int k, Image *im, Err *e) {
    const char *path = c->record.images[k];
    ImageOptions options = {.alpha_white = ask.alpha == 1, .apply_orientation = ask.exif == 1};
    if (!c->root) return image_read(im, path, options, e);
    return image_read_beneath(im, c->root, path, AT(.file = ask.messages, .sample = c->record.id), options, e);
}

// Sizes, grids and ids of a conversation, and with `keep` the patches too. Everything that can be refused is refused in
// a first pass over all conversations, before weights are loaded. The pass keeps the patches of a single question; those
// of many conversations would not fit, and are made again batch by batch.
static bool prepare(Session *s, Conversation *c, bool keep, Err *e) {
    const VisionConfig *v = &s->c.vision;
    size_t row = (size_t)(v->channels * v->temporal * v->patch * v->patch), rows = 0;
    for (int k = 0; k < c->record.n_images; k++) {
        Image im;
        Grid *g = &c->grids[k];
        const char *name = c->record.images[k];
        int64_t h, w;
        if (!read_picture(c, k, &im, e)) return false;
        c->width[k] = im.width, c->height[k] = im.height;
        float *pixels = NULL;
        bool ok = keep ? image_to_patches(v, &im, name, &pixels, g, e)
                       : smart_resize(im.height, im.width, v->patch * v->merge, v->min_pixels, v->max_pixels, &h, &w,
                                      name, e);
        image_free(&im);
        if (!ok) return false;
        if (keep) {
            size_t more = (size_t)grid_patches(*g);
            c->pixels = grow_or_die(c->pixels, (rows + more) * row, sizeof *pixels, "the patches of the pictures");
            memcpy(c->pixels + rows * row, pixels, more * row * sizeof *pixels);
            free(pixels), rows += more;
        } else *g = (Grid){1, h / v->patch, w / v->patch};
        c->tokens[k] = grid_patches(*g) / (v->merge * v->merge);
    }
    if (c->ids.n) return true;
    const Record *r = &c->record;
    Where at = c->root ? AT(.file = ask.messages, .sample = r->id) : AT(.file = ask.model);
    if (!chat_encode(s->t, r->messages, r->n, true, c->tokens, r->n_images, ask.trust_text, &c->ids, e)) return false;
    int64_t pictures = 0, room = s->c.context < LIMIT_CONTEXT ? s->c.context : LIMIT_CONTEXT;
    for (int k = 0; k < r->n_images; k++) pictures += c->tokens[k];
    if (c->ids.n + s->g.max_new_tokens <= room) return true;
    return err_set(
        e, "E-ME-02", at,
        "expected at most %lld tokens in all; found %lld of the prompt (%lld of pictures) and %lld new ones; "
        "do: lower --max-pixels or --max-new-tokens, or ask for less",
        (long long)room, (long long)c->ids.n, (long long)pictures, (long long)s->g.max_new_tokens);
}

static bool add_conversation(void *ctx, Record *r, Err *e) { // takes the record over
    Session *s = ctx;
    const Message *last = &r->messages[r->n - 1];
    if (strcmp(last->role, "user"))
        return err_set(
            e, "E-DS-02", AT(.file = ask.messages, .sample = r->id, .field = "messages"),
            "expected the user's turn last; found the turn of %s; do: leave out the answer that is asked for",
            quoted(last->role, strlen(last->role)));
    if (s->n == s->cap) {
        s->cap = s->cap ? 2 * s->cap : 16;
        s->list = grow_or_die(s->list, (size_t)s->cap, sizeof *s->list, "the conversations");
    }
    s->list[s->n++] = (Conversation){.record = *r};
    memset(r, 0, sizeof *r);
    return true;
}

// The one conversation of the command line. Pictures stand where <image> marks say, else before the question.
static bool question_of_options(Session *s, const char *question, Err *e) {
    size_t len = strlen(question);
    int marks = 0, n_parts = split_image_marks(question, len, &marks, NULL), pictures = ask.images.n, first = 0;
    if (marks && marks != pictures)
        return err_set(e, "E-CL-01", AT(.file = "command line", .field = "question"),
                       "expected one picture for each <image> mark; found %d marks and %d pictures; do: give --image "
                       "FILE for each",
                       marks, pictures);
    if (!len || (int64_t)len > LIMIT_QUESTION_BYTES)
        return err_set(e, "E-CL-01", AT(.file = "command line", .field = "question"),
                       "expected 1 to %lld bytes; found %zu; do: %s", (long long)LIMIT_QUESTION_BYTES, len,
                       len ? "shorten it" : "write it");
    Record r = {.n = ask.system ? 2 : 1, .n_images = pictures};
    snprintf(r.id, sizeof r.id, "1");
    Part *parts = alloc_or_die((size_t)n_parts + 18, sizeof *parts, "the question");
    Message *m = r.messages = alloc_or_die(2, sizeof *m, "the question");
    r.images = alloc_or_die(16, sizeof *r.images, "the pictures");
    for (int k = 0; k < pictures; k++) r.images[k] = (char *)(uintptr_t)ask.images.p[k];
    if (ask.system) {
        parts[0] = (Part){.image = -1, .text = ask.system, .len = strlen(ask.system)};
        *m++ = (Message){.role = "system", .parts = parts, .n_parts = 1};
        parts++;
    }
    int n = 0;
    if (!marks)
        for (; n < pictures; n++) parts[n].image = n;
    n += split_image_marks(question, len, &first, parts + n);
    *m = (Message){.role = "user", .parts = parts, .n_parts = n};
    return add_conversation(s, &r, e);
}

// The conversations of this run, measured: what can be refused without weights is refused here.
static bool conversations_open(Session *s, const char *question, Err *e) {
    if (!ask.messages ? !question_of_options(s, question, e)
                      : !path_dir(s->folder, sizeof s->folder, ask.messages, e) ||
                            !records_read(ask.messages, add_conversation, s, e))
        return false;
    for (int64_t i = 0; i < s->n; i++) {
        s->list[i].root = ask.messages ? s->folder : NULL;
        if (!prepare(s, &s->list[i], !ask.messages, e)) return false;
    }
    return true;
}

// Generation settings: an option wins over generation_config.json, which wins over Hugging Face's defaults. The origin
// of each is kept for the listing.
static bool generation_settings(Session *s, Err *e) {
    bool from_file, sampling = false;
    JsonDoc doc = {0};
    char path[1200];
    SampleParams *p = &s->g.sample;
    if (!generation_config_load(&s->g, ask.model, &from_file, e) ||
        !path_join(path, sizeof path, ask.model, "generation_config.json", e) ||
        (from_file && !json_read(&doc, path, LIMIT_CONFIG_BYTES, (JsonOptions){.refuse_duplicates = true}, e)))
        return false;
    const struct {
        const char *key;
        void *option;
        double loaded;
        bool of_sampling;
    } fields[] = {{"do_sample", &ask.greedy, !p->do_sample, false},
                  {"temperature", &ask.temperature, p->temperature, true},
                  {"top_k", &ask.top_k, p->top_k, true},
                  {"top_p", &ask.top_p, p->top_p, true},
                  {"min_p", &ask.min_p, p->min_p, true},
                  {"repetition_penalty", &ask.repetition_penalty, p->repetition_penalty, false},
                  {"max_new_tokens", &ask.max_new_tokens,
                   (double)(s->g.max_new_tokens ? s->g.max_new_tokens : ask.max_new_tokens), false}};
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        Option *o = option_of(ask_options, fields[i].option);
        const Json *stored = from_file ? json_get(doc.root, fields[i].key) : NULL;
        if (o->origin) sampling |= fields[i].of_sampling;
        else if (o->kind == OPT_REAL) *(double *)o->value = fields[i].loaded;
        else if (o->kind == OPT_INT) *(int64_t *)o->value = (int64_t)fields[i].loaded;
        else *(bool *)o->value = fields[i].loaded != 0;
        if (!o->origin && stored && stored->type != JSON_NULL) o->origin = "generation_config.json";
    }
    json_free(&doc);
    if (sampling && ask.greedy) { // who gives --top-k wants to sample, whatever the file says
        if (!strcmp(option_of(ask_options, &ask.greedy)->origin ? option_of(ask_options, &ask.greedy)->origin : "",
                    "command line"))
            return err_set(e, "E-CL-01", AT(.file = "command line", .field = "--greedy"),
                           "expected --greedy or options of sampling; found both; do: leave one out");
        ask.greedy = false, option_of(ask_options, &ask.greedy)->origin = "command line";
    }
    p->do_sample = !ask.greedy, p->temperature = ask.temperature, p->top_k = (int32_t)ask.top_k;
    p->top_p = ask.top_p, p->min_p = ask.min_p, p->repetition_penalty = ask.repetition_penalty;
    p->seed = (uint64_t)ask.seed, s->g.max_new_tokens = ask.max_new_tokens;
    return true;
}

// Everything that can be known to be wrong without weights.
static bool session_open(Session *s, Err *e) {
    VisionConfig *v = &s->c.vision;
    if (!config_load(&s->c, ask.model, e) || !tokenizer_load(&s->t, ask.model, e) ||
        !chat_template_check(ask.model, e) || !generation_settings(s, e))
        return false;
    int32_t tokens = tokenizer_size(s->t), pad = tokenizer_added(s->t, "<|image_pad|>");
    if (tokens > s->c.V)
        return err_set(e, "E-CF-03", AT(.file = ask.model, .field = "vocab_size"),
                       "expected at least the %d tokens of the tokenizer; found %lld; do: use files of one checkpoint",
                       tokens, (long long)s->c.V);
    if (pad >= 0 && s->c.image_id >= 0 && pad != s->c.image_id)
        return err_set(e, "E-CF-03", AT(.file = ask.model, .field = "image_token_id"),
                       "expected the tokenizer's %d; found %d; do: use files of one checkpoint", pad, s->c.image_id);
    if (ask.min_pixels) v->min_pixels = ask.min_pixels;
    if (ask.max_pixels) v->max_pixels = ask.max_pixels;
    return pixel_limits_ok(v, e);
}

static void describe_session(const Session *s) {
    const Model *m = &s->m;
    int64_t parameters = 0, bytes = 0;
    for (int64_t i = 0; i < m->n_params; i++) {
        const Param *p = &m->params[i];
        if (p->tied) continue;
        parameters += p->rows * p->cols, bytes += p->rows * p->cols * (int64_t)type_size(p->w->v.type);
    }
    note("model: %s: %.2f million parameters, matrices %s, %.2f MB%s, read in %.2f s", ask.model,
         1e-6 * (double)parameters, type_name(m->embed.v.type), 1e-6 * (double)bytes, m->mapped ? " (mapped)" : "",
         s->loaded);
    note("device: %s%s%s, %d thread%s", m->d->name, ask.device == DEVICE_CPU ? " " : "",
         ask.device == DEVICE_CPU ? cpu_isa() : "", pool_threads(), pool_threads() == 1 ? "" : "s");
    list_options(ask_options, "command line", "given");
    list_options(ask_options, "generation_config.json", "from generation_config.json");
    list_options(ask_options, "", "defaults");
    if (ask.messages) return;
    const Conversation *c = s->list;
    for (int k = 0; k < c->record.n_images; k++)
        note("image: %s: %lldx%lld, resized to %lldx%lld, %lld tokens", c->record.images[k], (long long)c->width[k],
             (long long)c->height[k], (long long)(c->grids[k].w * s->c.vision.patch),
             (long long)(c->grids[k].h * s->c.vision.patch), (long long)c->tokens[k]);
}

// A model's text drives no terminal. Into a file or a pipe goes every byte.
static void print_answer(const char *p, size_t len) {
    Text clean = {0};
    if (isatty(STDOUT_FILENO)) text_add_clean(&clean, p, len, "\n\t");
    if (clean.len) fwrite(clean.p, 1, clean.len, stdout);
    else fwrite(p, 1, len, stdout);
    text_free(&clean);
}

static bool on_token(void *ctx, int completion, int32_t id) {
    Session *s = ctx;
    (void)completion;
    if (s->first == 0) s->first = clock_seconds();
    if (s->stream.t) {
        Text piece = {0};
        stream_push(&s->stream, id, &piece);
        if (piece.len) print_answer(piece.p, piece.len);
        fflush(stdout);
        text_free(&piece);
    }
    return !stop_requested() && !ferror(stdout);
}

// The boxes of an answer in both frames, and which picture they belong to.
typedef struct Found {
    Box seen[64], original[64];
    int n, picture;
} Found;

static void find_boxes(const Session *s, const Conversation *c, const Text *answer, Found *f) {
    int k = f->picture = (int)ask.draw_image - 1;
    f->n = c->record.n_images > k ? answer_boxes(answer->p, answer->len, f->seen, (int)LIMIT_BOXES) : 0;
    for (int i = 0; i < f->n; i++)
        f->original[i] = box_to_original(f->seen[i], c->grids[k].w * s->c.vision.patch,
                                         c->grids[k].h * s->c.vision.patch, c->width[k], c->height[k]);
}

static bool draw_boxes(const Conversation *c, const Found *f, Err *e) {
    static const uint8_t colours[][3] = {{255, 64, 64}, {64, 200, 64}, {80, 140, 255}, {255, 200, 0}, {230, 80, 230}};
    Image im;
    int drawn = 0;
    if (!read_picture(c, f->picture, &im, e)) return false;
    int thick = (im.width < im.height ? im.width : im.height) / 240 + 1;
    for (int i = 0; i < f->n; i++) {
        const Box *b = &f->original[i];
        if (!box_is_valid(*b, im.width, im.height)) continue; // corners in the wrong order, or outside: counted below
        image_draw_box(&im, b->x1, b->y1, b->x2, b->y2, colours[i % 5], thick, b->label);
        drawn++;
    }
    bool ok = image_write_png(ask.draw, im.rgb, im.width, im.height, e);
    image_free(&im);
    if (ok) note("boxes: %d found, %d drawn into %s", f->n, drawn, ask.draw);
    return ok;
}

static void add_box(Text *t, const char *name, Box b) {
    const double n[4] = {b.x1, b.y1, b.x2, b.y2};
    text_addf(t, "\"%s\":", name);
    for (int i = 0; i < 4; i++) {
        text_addf(t, i ? "," : "[");
        text_add_json_number(t, n[i]);
    }
    text_addf(t, "]");
}

static void print_json(const Session *s, const Conversation *c, const Completion *done, const Text *answer,
                       const Found *f) {
    Text t = {0};
    const Message *question = &c->record.messages[c->record.n - 1];
    text_addf(&t, "{\"id\":");
    text_add_json_string(&t, c->record.id, strlen(c->record.id));
    Text asked = {0};
    for (int i = 0; i < question->n_parts; i++)
        if (question->parts[i].image < 0) text_add(&asked, question->parts[i].text, question->parts[i].len);
    text_addf(&t, ",\"question\":");
    text_add_json_string(&t, asked.len ? asked.p : "", asked.len);
    text_addf(&t, ",\"answer\":");
    text_add_json_string(&t, answer->len ? answer->p : "", answer->len);
    text_addf(&t, ",\"stop\":\"%s\",\"prompt_tokens\":%lld,\"new_tokens\":%lld,\"ids\":[",
              done->stopped      ? "end"
              : stop_requested() ? "interrupted"
                                 : "length",
              (long long)c->ids.n, (long long)done->ids.n);
    for (int64_t i = 0; i < done->ids.n; i++) text_addf(&t, "%s%d", i ? "," : "", done->ids.p[i]);
    text_addf(&t, "],\"logprob\":");
    if (isfinite(done->logprob)) text_add_json_number(&t, done->logprob);
    else text_addf(&t, "null");
    text_addf(&t, ",\"images\":[");
    for (int k = 0; k < c->record.n_images; k++)
        text_addf(&t,
                  "%s{\"width\":%lld,\"height\":%lld,\"resized_width\":%lld,\"resized_height\":%lld,\"tokens\":%lld}",
                  k ? "," : "", (long long)c->width[k], (long long)c->height[k],
                  (long long)(c->grids[k].w * s->c.vision.patch), (long long)(c->grids[k].h * s->c.vision.patch),
                  (long long)c->tokens[k]);
    text_addf(&t, "],\"boxes\":[");
    for (int i = 0; i < f->n; i++) {
        text_addf(&t, "%s{\"label\":", i ? "," : "");
        text_add_json_string(&t, f->seen[i].label, strlen(f->seen[i].label));
        text_addf(&t, ",");
        add_box(&t, "resized", f->seen[i]);
        text_addf(&t, ",");
        add_box(&t, "original", f->original[i]);
        text_addf(&t, ",\"image\":%d}", f->picture + 1);
    }
    text_addf(&t, "]");
    if (!ask.messages) { // what may differ from run to run stays out of files that are compared
        const double now = clock_seconds();
        text_addf(&t, ",\"timing\":{\"load_s\":%.4f,\"first_token_s\":%.4f,\"decode_s\":%.4f}", s->loaded,
                  s->first - s->started, now - s->first);
    }
    text_addf(&t, "}\n");
    fwrite(t.p, 1, t.len, stdout);
    text_free(&asked);
    text_free(&t);
}

// Answers conversations [from, from + n) together.
static bool answer_batch(Session *s, int64_t from, int n, Err *e) {
    Request *requests = alloc_or_die((size_t)n, sizeof *requests, "the batch");
    Completion *done = alloc_or_die((size_t)n, sizeof *done, "the batch");
    bool ok = true;
    int64_t prompt = 0, new_tokens = 0;
    for (int i = 0; ok && i < n; i++) {
        Conversation *c = &s->list[from + i];
        ok = c->pixels || prepare(s, c, true, e);
        requests[i] = (Request){.ids = c->ids.p,
                                .n = c->ids.n,
                                .pixels = c->pixels,
                                .grids = c->grids,
                                .n_grids = c->record.n_images,
                                .stream = (uint32_t)(from + i),
                                .completions = 1};
        prompt += c->ids.n;
    }
    bool streams = !ask.messages && !ask.json;
    s->stream = (DecodeStream){.t = streams ? s->t : NULL, .skip_special = !ask.show_special};
    s->started = clock_seconds(), s->first = 0;
    ok = ok && generate(&s->m, requests, n, &s->g, on_token, s, done, e);
    double end = clock_seconds();
    if (s->first == 0) s->first = end;
    for (int i = 0; ok && i < n; i++) {
        Conversation *c = &s->list[from + i];
        Text answer = {0};
        Found found;
        tokenizer_decode(s->t, done[i].ids.p, done[i].ids.n, !ask.show_special, &answer);
        if (!answer.p) text_add(&answer, "", 0);
        find_boxes(s, c, &answer, &found);
        new_tokens += done[i].ids.n;
        if (streams) {
            Text tail = {0};
            stream_finish(&s->stream, &tail);
            print_answer(tail.len ? tail.p : "", tail.len);
            printf("\n");
            text_free(&tail);
        } else if (!stop_requested()) print_json(s, c, &done[i], &answer, &found);
        if (ask.draw) ok = draw_boxes(c, &found, e);
        text_free(&answer);
    }
    text_free(&s->stream.held);
    for (int i = 0; i < n; i++) {
        completion_free(&done[i]);
        free(s->list[from + i].pixels), s->list[from + i].pixels = NULL;
    }
    free(requests), free(done);
    if (!ok) return false;
    s->prompt_tokens += prompt, s->new_tokens += new_tokens, s->continued_tokens += new_tokens - n; // the first of each
    s->prompt_s += s->first - s->started, s->decode_s += end - s->first; // came with the prompt
    return true;
}

// Weights, then every conversation in batches, in order.
static bool answer_all(Session *s, Err *e) {
    LoadOptions options = {.allow_nonfinite = ask.allow_nonfinite, .force_f32 = ask.dtype == DTYPE_F32};
    stop_on_signals();
    pool_start((int)ask.threads);
    if (ask.max_memory) memory_limit_set(ask.max_memory);
    double started = clock_seconds();
    const Ops *d = device_of(ask.device, ask.dtype, CUDA_RUNGS(ask), e);
    if (!d || !model_load(&s->m, ask.model, d, options, e)) return false;
    if (ask.adapter && !lora_load(&s->m, ask.adapter, e)) {
        model_free(&s->m);
        return false;
    }
    s->loaded = clock_seconds() - started;
    describe_session(s);
    if (ask.trace) trace_start(ask.trace, d->name);
    bool ok = true;
    for (int64_t i = 0; ok && i < s->n && !stop_requested(); i += ask.batch) {
        int64_t left = s->n - i, n = left < ask.batch ? left : ask.batch;
        ok = answer_batch(s, i, (int)n, e);
        if (ask.messages) progress("conversations", i + n, s->n, started);
    }
    if (ok)
        note("timing: %lld prompt tokens in %.3f s, %lld new tokens%s, %.1f tokens/s", (long long)s->prompt_tokens,
             s->prompt_s, (long long)s->new_tokens, stop_requested() ? " (interrupted)" : "",
             s->decode_s > 0 ? (double)s->continued_tokens / s->decode_s : 0.0);
    if (ok && ask.trace) ok = trace_finish(e);
    model_free(&s->m);
    return ok;
}

static int run_ask(char **args, int n) {
    Session s = {0};
    Err e = {0};
    if (!ask.model) return usage("--model", "a checkpoint folder", "none", "give --model DIR");
    if (!ask.messages == !n)
        return usage("question", "one question, or --messages FILE.jsonl", n ? "both" : "neither",
                     "give one of the two");
    if (ask.messages && (ask.images.n || ask.draw || ask.system))
        return usage("--messages", "no --image, --system or --draw beside it", "one of them", "put them into the file");
    if (ask.draw && ask.draw_image > ask.images.n)
        return usage("--draw-image", "the number of a picture that is given", "a larger one", "give the picture");
    if (ask.dtype == DTYPE_BF16 && ask.device != DEVICE_CUDA)
        return usage("--dtype", "auto or f32 on this device", "bf16", "use --dtype auto, which keeps the file's type");
    bool ok = session_open(&s, &e) && conversations_open(&s, args[0], &e) && answer_all(&s, &e);
    for (int64_t i = 0; i < s.n; i++) record_free(&s.list[i].record), ids_free(&s.list[i].ids), free(s.list[i].pixels);
    free(s.list);
    tokenizer_free(s.t);
    pool_stop();
    warn_summary();
    return !ok ? err_report(&e) : stop_requested() ? EXIT_STOPPED : EXIT_OK;
}

const Command command_ask = {
    "ask",
    "ask --model DIR --image FILE [--image FILE ...] \"question\"\n       surgr1 ask --model DIR --messages FILE.jsonl",
    "Answers a question about pictures with a Qwen2.5-VL checkpoint. The answer streams to standard output, "
    "everything\n"
    "else goes to standard error. Pictures stand before the question, or where it says <image>.",
    ask_options,
    0,
    1,
    "one question",
    run_ask};
