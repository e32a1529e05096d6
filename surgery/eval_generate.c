// eval_generate.c - answers of a model to a file of records, in batches.
//
// What it is:  every record becomes a prompt (its conversation up to the question), batches go through generate(), and each
//              answer is written behind its record's own members.
// What it is not: a score (eval.c), or the prompt's ids (tokenizer.c).
// Read before: eval.c, ../generate.c.  Read next: ../commands/eval.c.
//
// The random stream of an answer is a function of its id. So neither the batch nor the order of lines changes a text.
#include "../surgr1.h"

typedef struct Asked { // one record of the batch
    Record record;
    char *text; // its JSON
    size_t len;
    char *question; // the last part of the question, when the options in it were changed
    int options;    // 1: shown, 0: not shown; -1: as the record has it
    Ids ids;
    Grid grids[16];
    FrameSize sizes[16];
    int64_t tokens[16];
    float *pixels;
} Asked;
typedef struct Answering {
    Model *m;
    const Tokenizer *t;
    const EvalGenerate *o;
    char folder[1200];
    const char *root;
    Asked *batch;
    int n;
    int64_t done;
    double started;
    FileWriter out;
    bool stopped;
} Answering;

static bool read_picture(const Answering *a, const Asked *q, const char *path, Image *im, Err *e) {
    if (path[0] == '/') return image_read(im, path, a->o->image, e);
    return image_read_beneath(im, a->root, path, AT(.file = a->o->data, .sample = q->record.id), a->o->image, e);
}

// Sizes, grids and patches. A blind run keeps the places of the pictures; zero is the mean after normalisation.
static bool read_pictures(Answering *a, Asked *q, Err *e) {
    const VisionConfig *v = &a->m->c.vision;
    size_t row = (size_t)(v->channels * v->temporal * v->patch * v->patch), rows = 0;
    for (int k = 0; k < q->record.n_images; k++) {
        Image im;
        Grid *g = &q->grids[k];
        float *pixels;
        if (!read_picture(a, q, q->record.images[k], &im, e)) return false;
        q->sizes[k] = (FrameSize){.width = im.width, .height = im.height};
        bool ok = image_to_patches(v, &im, q->record.images[k], &pixels, g, e);
        image_free(&im);
        if (!ok) return false;
        size_t more = (size_t)grid_patches(*g);
        if (a->o->blind) memset(pixels, 0, more * row * sizeof *pixels);
        q->pixels = grow_or_die(q->pixels, (rows + more) * row, sizeof *pixels, "the patches of the pictures");
        memcpy(q->pixels + rows * row, pixels, more * row * sizeof *pixels);
        free(pixels), rows += more;
        q->sizes[k].resized_width = g->w * v->patch, q->sizes[k].resized_height = g->h * v->patch;
        q->tokens[k] = grid_patches(*g) / (v->merge * v->merge);
    }
    return true;
}

// The options behind the question: taken away or added. They stand at its end, a line each.
static void set_options(const Answering *a, Asked *q, Message *user, const TaskItem *item) {
    q->options = -1;
    if (a->o->form == EVAL_AS_WRITTEN || !item->n_choices || !user->n_parts) return;
    Part *last = (Part *)(uintptr_t)&user->parts[user->n_parts - 1];
    if (last->image >= 0) return;
    q->options = a->o->form == EVAL_CHOICE;
    Text options = {0}, text = {0};
    for (int i = 0; i < item->n_choices; i++) text_addf(&options, "\n%c. %s", 'A' + i, item->choices[i]);
    bool there = last->len >= options.len && !memcmp(last->text + last->len - options.len, options.p, options.len);
    if (there && a->o->form == EVAL_OPEN) last->len -= options.len;
    if (!there && a->o->form == EVAL_CHOICE) {
        text_add(&text, last->text, last->len), text_add(&text, options.p, options.len);
        last->text = q->question = text.p, last->len = text.len;
    }
    text_free(&options);
}

static bool make_prompt(Answering *a, Asked *q, const TaskItem *item, Err *e) {
    Record *r = &q->record;
    int n = r->n;
    while (n && strcmp(r->messages[n - 1].role, "user")) n--;
    Where at = AT(.file = a->o->data, .line = r->line, .sample = r->id);
    if (!n) return err_set(e, "E-DS-02", at, "expected a question of the user; found none; do: give it as messages");
    set_options(a, q, &r->messages[n - 1], item);
    int pictures = 0; // of the prompt: they come first
    for (int i = 0; i < n; i++)
        for (int k = 0; k < r->messages[i].n_parts; k++) pictures += r->messages[i].parts[k].image >= 0;
    Message *messages = alloc_or_die((size_t)n + 1, sizeof *messages, "a conversation");
    Part system = {.image = -1, .text = a->o->system, .len = a->o->system ? strlen(a->o->system) : 0};
    int count = 0;
    if (a->o->system) messages[count++] = (Message){.role = "system", .parts = &system, .n_parts = 1};
    for (int i = 0; i < n; i++)
        if (!a->o->system || strcmp(r->messages[i].role, "system")) messages[count++] = r->messages[i];
    bool ok = chat_encode(a->t, messages, count, true, q->tokens, pictures, a->o->trust_text, &q->ids, e);
    free(messages);
    int64_t room = a->m->c.context < LIMIT_CONTEXT ? a->m->c.context : LIMIT_CONTEXT;
    if (ok && q->ids.n + a->o->g.max_new_tokens > room)
        return err_set(e, "E-ME-02", at,
                       "expected at most %lld tokens in all; found %lld of the prompt and %lld new ones; do: lower "
                       "--max-pixels or --max-new-tokens",
                       (long long)room, (long long)q->ids.n, (long long)a->o->g.max_new_tokens);
    return ok;
}

static bool add_record(Answering *a, Asked *q, const Piece *p, Err *e) {
    TaskRecord rec; // looked at before anything is worked on: what cannot be scored is not answered
    *q = (Asked){.len = 0};
    if (!task_record_read(&rec, p->text, p->len, a->o->data, p->line, e)) return false;
    bool ok = record_parse_piece(&q->record, p, a->o->data, (RecordOptions){.boxes = true, .absolute_images = true}, e);
    if (ok) {
        q->text = alloc_or_die(p->len + 1, 1, "a record"), q->len = p->len;
        memcpy(q->text, p->text, p->len);
        ok = read_pictures(a, q, e) && record_place_boxes(&q->record, q->sizes, e) && make_prompt(a, q, &rec.item, e);
    }
    task_record_free(&rec);
    return ok;
}
static void asked_free(Asked *q) {
    record_free(&q->record), ids_free(&q->ids);
    free(q->text), free(q->question), free(q->pixels);
}

static void add_answer(const Answering *a, const Asked *q, const Completion *c, const Json *root, Text *out) {
    Text answer = {0}, more = {0};
    tokenizer_decode(a->t, c->ids.p, c->ids.n, true, &answer);
    const Json *id = json_get(root, "id"), *size = json_get(root, "size");
    if (!id || id->type == JSON_NULL) {
        text_addf(&more, "\"id\":");
        text_add_json_string(&more, q->record.id, strlen(q->record.id));
    }
    if (q->record.n_images && (!size || size->type == JSON_NULL))
        text_addf(&more, "%s\"size\":[%lld,%lld]", more.len ? "," : "", (long long)q->sizes[0].width,
                  (long long)q->sizes[0].height);
    if (q->options >= 0) text_addf(&more, "%s\"options_shown\":%s", more.len ? "," : "", q->options ? "true" : "false");
    eval_record_print(root, more.p,
                      &(EvalAnswer){answer.len ? answer.p : "", answer.len, q->sizes[0].resized_width,
                                    q->sizes[0].resized_height, c->ids.n, c->stopped},
                      out);
    text_free(&answer), text_free(&more);
}

static bool go_on(void *ctx, int completion, int32_t id) {
    (void)ctx, (void)completion, (void)id;
    return !stop_requested();
}

static bool answer_batch(Answering *a, Err *e) {
    if (!a->n) return true;
    Request *requests = alloc_or_die((size_t)a->n, sizeof *requests, "the batch");
    Completion *done = alloc_or_die((size_t)a->n, sizeof *done, "the batch");
    for (int i = 0; i < a->n; i++) {
        Asked *q = &a->batch[i];
        requests[i] = (Request){.ids = q->ids.p,
                                .n = q->ids.n,
                                .pixels = q->pixels,
                                .grids = q->grids,
                                .stream = crc32c(0, q->record.id, strlen(q->record.id)),
                                .completions = 1};
        const VisionConfig *v = &a->m->c.vision;
        int64_t places = 0, pad = 0; // pictures of turns that are not asked have no places in the prompt
        for (int64_t k = 0; k < q->ids.n; k++) pad += q->ids.p[k] == a->m->c.image_id;
        while (requests[i].n_grids < q->record.n_images && places < pad)
            places += grid_patches(q->grids[requests[i].n_grids++]) / (v->merge * v->merge);
    }
    bool ok = generate(a->m, requests, a->n, &a->o->g, go_on, a, done, e);
    a->stopped = stop_requested();
    for (int i = 0; ok && !a->stopped && i < a->n; i++) {
        JsonDoc doc;
        Text line = {0};
        ok = json_parse(&doc, a->batch[i].text, a->batch[i].len, a->o->data, (JsonOptions){.refuse_duplicates = true},
                        e);
        if (!ok) break;
        add_answer(a, &a->batch[i], &done[i], doc.root, &line);
        ok = file_write_bytes(&a->out, line.p, line.len, e);
        json_free(&doc), text_free(&line);
        a->done++;
    }
    for (int i = 0; i < a->n; i++) completion_free(&done[i]), asked_free(&a->batch[i]);
    free(requests), free(done);
    a->n = 0;
    return ok;
}

static bool on_record(void *ctx, const Piece *p, Err *e) {
    Answering *a = ctx;
    if (a->stopped) return true;
    if (!add_record(a, &a->batch[a->n++], p, e)) return false;
    if (a->n < a->o->batch) return true;
    bool ok = answer_batch(a, e);
    progress(a->o->blind ? "answers without a picture" : "answers", a->done, a->done, a->started);
    return ok;
}

bool eval_generate(Model *m, const Tokenizer *t, const EvalGenerate *o, int64_t *n, Err *e) {
    Answering a = {.m = m, .t = t, .o = o, .started = clock_seconds(), .out = {.fd = -1}};
    if (!path_dir(a.folder, sizeof a.folder, o->data, e) || !file_write_begin(&a.out, o->out, e)) return false;
    a.root = o->image_root ? o->image_root : a.folder;
    a.batch = alloc_or_die((size_t)o->batch, sizeof *a.batch, "the batch");
    bool ok = pieces_read(o->data, NULL, on_record, &a, e) && (a.stopped || answer_batch(&a, e));
    for (int i = 0; i < a.n; i++) asked_free(&a.batch[i]); // of a batch that was refused
    free(a.batch);
    *n = a.done;
    if (ok && !a.stopped) return file_write_commit(&a.out, e);
    if (a.out.fd >= 0) file_write_abort(&a.out);
    return ok;
}
