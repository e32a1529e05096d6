// eval_generate.c - answers of a model to a file of records, in batches.
//
// What it is:  batches of prompts go through generate(), and each answer is written behind its record's own members.
// What it is not: a score (eval.c), or the prompt (prompts.c).
// Read before: prompts.c, ../generate.c.  Read next: ../commands/eval.c.
//
// The random stream of an answer is a function of its id. So neither the batch nor the order of lines changes a text.
#include "../surgr1.h"

typedef struct Answering {
    Model *m;
    const Tokenizer *t;
    const EvalGenerate *o;
    PromptOptions how;
    char folder[1200];
    const char *root;
    Prompt *batch;
    int n;
    int64_t done;
    double started;
    FileWriter out;
    bool stopped;
} Answering;

static void add_answer(const Answering *a, const Prompt *q, const Completion *c, const Json *root, Text *out) {
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
        const Prompt *q = &a->batch[i];
        requests[i] = prompt_request(q, crc32c(0, q->record.id, strlen(q->record.id)), 1);
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
    for (int i = 0; i < a->n; i++) completion_free(&done[i]), prompt_free(&a->batch[i]);
    free(requests), free(done);
    a->n = 0;
    return ok;
}

static bool on_record(void *ctx, const Piece *p, Err *e) {
    Answering *a = ctx;
    if (a->stopped) return true;
    if (!prompt_read(&a->batch[a->n], &a->m->c, a->t, &a->how, a->o->data, a->root, p, true, e)) return false;
    a->n++;
    if (a->n < a->o->batch) return true;
    bool ok = answer_batch(a, e);
    progress(a->o->blind ? "answers without a picture" : "answers", a->done, a->done, a->started);
    return ok;
}

bool eval_generate(Model *m, const Tokenizer *t, const EvalGenerate *o, int64_t *n, Err *e) {
    Answering a = {.m = m, .t = t, .o = o, .started = clock_seconds(), .out = {.fd = -1}};
    if (!path_dir(a.folder, sizeof a.folder, o->data, e) || !file_write_begin(&a.out, o->out, e)) return false;
    a.how = (PromptOptions){.system = o->system,
                            .form = o->form,
                            .blind = o->blind,
                            .trust_text = o->trust_text,
                            .new_tokens = o->g.max_new_tokens,
                            .image = o->image};
    a.root = o->image_root ? o->image_root : a.folder;
    a.batch = alloc_or_die((size_t)o->batch, sizeof *a.batch, "the batch");
    bool ok = pieces_read(o->data, NULL, on_record, &a, e) && (a.stopped || answer_batch(&a, e));
    for (int i = 0; i < a.n; i++) prompt_free(&a.batch[i]); // of a batch that was refused
    free(a.batch);
    *n = a.done;
    if (ok && !a.stopped) return file_write_commit(&a.out, e);
    if (a.out.fd >= 0) file_write_abort(&a.out);
    return ok;
}
