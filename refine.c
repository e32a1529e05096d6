// refine.c - stage 4 of Surg-R1: iterative refinement with pseudo-labels of the model and of a teacher.
//
// What it is:  for iteration n = 1..N: K rollouts of every record with the model as it is; equation 8,
//              HardSample(x) = 1[ sum_k 1[y_hat_k = y] = 0 ]; an easy record is labelled by one of its right rollouts
//              (predicted pseudo-label), a hard one by a teacher (teacher pseudo-label), both judged by the filters of
//              surgery/synth.c; then one supervised fine-tuning on what was accepted makes the next model.
// What it is not: sampling (generate.c), rewards (surgery/reward.c), the built-in teacher (surgery/teach.c) or training
//              (sft.c, which runs as a child: surgr1 sft).
// Read before: surgery/prompts.c, surgery/synth.c, sft.c.  Read next: commands/refine.c.
//
//   RUN/LOCK  config.json  run.jsonl  refine.json
//   RUN/iter-1/rollouts.jsonl   every completion, written as it comes
//   RUN/iter-1/hard.jsonl, requests/, teacher.jsonl, teacher-rollouts.jsonl   what the teacher needs and says
//   RUN/iter-1/pseudo.jsonl, summary.json   the labels with their provenance; the counts
//   RUN/iter-1/sft/  sft.json   the training; that it is done
//
// A process may die at any instant. What only grows (rollouts) is cut back to whole records and goes on; a file that
// appears whole marks the end of its phase; and no number depends on what was there before: the random stream of a
// completion is a function of (seed, iteration, id of the record, k), so that neither a batch nor a resume changes it.
//
// The paper draws one more rollout for the label of an easy record (--pick fresh): with success rate p it accepts
// p (1 - (1 - p)^3), against 1 - (1 - p)^3 when a right rollout of eq. 8 is used again, which is our default.
#define _GNU_SOURCE
#include "surgr1.h"
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

enum {
    PATH_BYTES = 1300,
    MOST_KNOWLEDGE = 64,
    MOST_TEXT_BYTES = 60000
}; // of a completion as JSON: a log line holds it

bool refine_hard(const Rollout *r, int K) {
    int right = 0;
    for (int k = 0; k < K; k++) right += r[k].right;
    return right == 0;
}

int refine_order(const Rollout *r, int K, enum RefinePick pick, int *order) {
    int n = 0;
    if (refine_hard(r, K)) return 0;
    if (pick == PICK_FRESH) {
        if (r[K].right) order[n++] = K;
        return n;
    }
    for (int k = 0; k < K; k++) {
        if (!r[k].right) continue;
        int at = n++; // by insertion: equal ones stay in the order in which they were drawn
        for (; pick == PICK_LOGPROB && at > 0 && r[order[at - 1]].logprob < r[k].logprob; at--)
            order[at] = order[at - 1];
        order[at] = k;
    }
    return n;
}

// --------------------------------------------------------------------------------------------------------------- state

typedef struct Counts { // of one task, or of all
    int64_t records, sampled, right, easy, hard, predicted, asked, teacher, without;
    int64_t by_right[REFINE_MOST_ROLLOUTS + 1]; // records with so many right rollouts of K
    int64_t refused[SYNTH_VERDICTS], teacher_refused[SYNTH_VERDICTS];
} Counts;

typedef struct Policy {                          // the model of an iteration
    char model[PATH_BYTES], adapter[PATH_BYTES]; // "": no adapter
    char name[PATH_BYTES];                       // as provenance names it: given, or beneath RUN
    char sha256[65];
} Policy;

typedef struct Refine {
    const RefineOptions *o;
    int K, drawn; // K of eq. 8; completions of a record, one more when the label is a fresh one
    Run run;
    Config c;
    Tokenizer *t;
    PromptSet set;
    int64_t *chosen, n; // records that are taken, in the order of the data
    Knowledge *knowledge;
    int n_knowledge;
    Policy first, policy;
    bool absolute; // pictures by absolute paths: the files of a training have their pictures in several places
    bool any_absolute;
    bool responses_used;
    bool waiting; // for a teacher
    int status;
    // teacher that is a model
    Config teacher_c;
    Tokenizer *teacher_t;
    PromptSet teacher_set;
    char teacher_sha256[65];
    // of one iteration
    int64_t iteration;
    char dir[PATH_BYTES];
    Rollout *rollouts;         // [n, drawn]
    Rollout *teacher_rollouts; // [n_asked, K]
    int64_t *asked, n_asked;   // places in `chosen` of the records that go to the teacher
    Counts counts[TASKS], all;
} Refine;

static bool in_dir(const Refine *r, const char *name, char out[PATH_BYTES], Err *e) {
    return path_join(out, PATH_BYTES, r->dir, name, e);
}

static bool dir_has(const Refine *r, const char *name) {
    char path[PATH_BYTES];
    Err e = {0};
    return in_dir(r, name, path, &e) && file_exists(path);
}

// A line of run.jsonl that stands there once, however often the run was started.
static bool event(Refine *r, const char *name, const Text *more, Err *e) {
    Text line = {0}, key = {0};
    char *text = NULL;
    size_t size = 0;
    text_addf(&key, "\"ev\":\"%s\",\"iteration\":%lld", name, (long long)r->iteration);
    bool ok = file_read(r->run.log.path, LIMIT_JSONL_BYTES, "E-JS-01", &text, &size, e);
    bool there = false;
    for (char *p = ok ? text : NULL; p && (p = strstr(p, key.p)); p += key.len)
        there |= p[key.len] == ',' || p[key.len] == '}';
    free(text);
    text_addf(&line, "%s%s%s", key.p, more && more->len ? "," : "", more && more->len ? more->p : "");
    if (ok && !there) ok = log_write(&r->run.log, line.p, e) && log_sync(&r->run.log, e);
    text_free(&line), text_free(&key);
    return ok;
}

// -------------------------------------------------------------------------------------------------------- fingerprints

static bool fingerprint(Policy *p, bool all_bytes, Err *e) {
    TensorFile f;
    char path[PATH_BYTES], hex[65];
    Sha256 h;
    if (!tensors_open_folder(&f, p->model, e)) return false;
    tensors_fingerprint(&f, all_bytes, p->sha256);
    tensors_close(&f);
    if (!p->adapter[0]) return true;
    if (!path_join(path, sizeof path, p->adapter, "adapter_model.safetensors", e) || !tensors_open(&f, path, e))
        return false;
    tensors_fingerprint(&f, true, hex);
    tensors_close(&f);
    sha256_start(&h);
    sha256_add(&h, p->sha256, 64), sha256_add(&h, hex, 64);
    sha256_finish(&h, p->sha256);
    return true;
}

static bool load_model(const Refine *r, Model *m, const char *model, const char *adapter, Err *e) {
    double started = clock_seconds();
    if (!model_load(m, model, r->o->device, r->o->load, e)) return false;
    const Config *c = model == r->o->teacher_model ? &r->teacher_c : &r->c;
    m->c.vision.min_pixels = c->vision.min_pixels, m->c.vision.max_pixels = c->vision.max_pixels;
    m->vision.c = m->c.vision;
    if (adapter && *adapter && !lora_load(m, adapter, e)) return model_free(m), false;
    note("model: %s%s%s, read in %.2f s; device %s, %d threads", model, adapter && *adapter ? " with " : "",
         adapter ? adapter : "", clock_seconds() - started, r->o->device->name, pool_threads());
    return true;
}

// ------------------------------------------------------------------------------------------------------------ rollouts

typedef struct Sampling { // one file of rollouts
    const char *name;     // of the file
    const char *who;      // for people
    const char *model, *adapter, *sha256;
    const PromptSet *set;
    const int64_t *records, n; // of the set
    int per_record;
    uint64_t seed;
    Rollout *out; // [n, per_record]
} Sampling;

typedef struct Found { // what is in the file already
    const Sampling *s;
    const char *path;
    Text header;
    int64_t offset, lines, keep; // keep: bytes up to the last whole record
    bool ended;
} Found;

static bool stale(const Found *f, int64_t line, Err *e) {
    return err_set(e, "E-TA-05", AT(.file = f->path, .line = line),
                   "expected the rollouts of this run; found others; do: begin in another folder");
}

static bool find_line(void *ctx, const char *line, size_t len, int64_t number, Err *e) {
    Found *f = ctx;
    const Sampling *s = f->s;
    JsonDoc d;
    if (!json_parse(&d, line, len, f->path, (JsonOptions){.refuse_duplicates = true, .first_line = (uint32_t)number},
                    e))
        return false;
    const Json *ev = json_get(d.root, "ev"), *id = json_get(d.root, "id"), *k = json_get(d.root, "k");
    int64_t at = f->lines - 1, total = s->n * s->per_record;
    bool ok = true;
    if (!f->lines) {
        const char *rest = memmem(line, len, f->header.p, f->header.len);
        ok = (rest && rest + f->header.len + 1 == line + len) || stale(f, number, e);
    } else if (at == total) {
        ok = (json_is(ev, "end") && !f->ended) || stale(f, number, e);
        f->ended = ok;
    } else {
        const PromptInfo *info = at < total ? &s->set->prompts[s->records[at / s->per_record]] : NULL;
        double logprob = 0;
        ok = info && json_is(ev, "rollout") && id && json_is(id, info->id) && k && k->integer &&
             k->i == at % s->per_record;
        ok = ok || stale(f, number, e);
        if (ok) {
            Rollout *out = &s->out[at];
            ok = json_bool(&d, d.root, "right", true, &out->right, e) &&
                 json_bool(&d, d.root, "usable", true, &out->usable, e) &&
                 json_double(&d, d.root, "logprob", true, -1e9, 0, &logprob, e);
            out->logprob = logprob, out->offset = f->offset, out->len = (int64_t)len;
        }
    }
    f->lines++, f->offset += (int64_t)len + 1;
    if (ok && (f->lines - 1) % s->per_record == 0) f->keep = f->offset;
    if (f->ended) f->keep = f->offset;
    json_free(&d);
    return ok;
}

static bool go_on(void *ctx, int completion, int32_t id) {
    (void)ctx, (void)completion, (void)id;
    return !stop_requested();
}

static bool write_rollout(Log *l, const Prompt *q, const Tokenizer *t, const Completion *c, int k, Rollout *out,
                          Err *e) {
    RewardOptions options;
    CHECK(reward_preset(&options, "surg-r1"), "no preset surg-r1");
    Text text = {0}, json = {0}, line = {0};
    Reward reward;
    tokenizer_decode(t, c->ids.p, c->ids.n, true, &text);
    const FrameSize *size = q->record.n_images ? &q->sizes[0] : NULL;
    RewardInput in = {.item = &q->task.item,
                      .text = text.p ? text.p : "",
                      .len = text.len,
                      .resized_w = size ? size->resized_width : 0,
                      .resized_h = size ? size->resized_height : 0,
                      .tokens = c->ids.n};
    reward_score(&reward, &options, &in);
    text_add_json_string(&json, in.text, in.len);
    bool whole = json.len <= MOST_TEXT_BYTES;
    *out = (Rollout){.right = reward.right,
                     .usable = whole && c->stopped,
                     .logprob = c->ids.n ? c->logprob / (double)c->ids.n : 0,
                     .offset = l->bytes};
    if (out->logprob > 0) out->logprob = 0; // a rounding of log 1
    text_addf(&line, "\"ev\":\"rollout\",\"id\":");
    text_add_json_string(&line, q->record.id, strlen(q->record.id));
    text_addf(&line,
              ",\"k\":%d,\"task\":\"%s\",\"tokens\":%lld,\"stopped\":%s,\"usable\":%s,\"status\":\"%s\",\"right\":%s,"
              "\"logprob\":",
              k, task_info(q->task.item.task)->name, (long long)c->ids.n, c->stopped ? "true" : "false",
              out->usable ? "true" : "false", answer_status_names[reward.answer.status],
              reward.right ? "true" : "false");
    text_add_json_number(&line, out->logprob);
    text_addf(&line, ",\"text\":");
    if (whole) text_add(&line, json.p, json.len);
    else log_add_text(&line, in.text, in.len);
    bool ok = log_write(l, line.p, e);
    out->len = l->bytes - out->offset - 1;
    text_free(&text), text_free(&json), text_free(&line);
    return ok;
}

// Records [first, first + n) of the sampling.
static bool sample_batch(const Refine *r, const Sampling *s, Model *m, Log *l, int64_t first, int n, Err *e) {
    GenerationConfig g = r->o->g;
    g.sample.seed = s->seed;
    int K = s->per_record, loaded = 0;
    Prompt *q = alloc_or_die((size_t)n, sizeof *q, "a batch of prompts");
    Request *requests = alloc_or_die((size_t)n, sizeof *requests, "a batch of prompts");
    Completion *done = alloc_or_die((size_t)(n * K), sizeof *done, "a batch of completions");
    bool ok = true;
    for (; ok && loaded < n; loaded += ok) {
        ok = prompts_load(s->set, s->records[first + loaded], &q[loaded], e);
        if (ok)
            requests[loaded] =
                prompt_request(&q[loaded], crc32c(0, q[loaded].record.id, strlen(q[loaded].record.id)), K);
    }
    ok = ok && generate(m, requests, n, &g, go_on, NULL, done, e);
    for (int i = 0; ok && !stop_requested() && i < n * K; i++)
        ok = write_rollout(l, &q[i / K], s->set->t, &done[i], i % K, &s->out[first * K + i], e);
    for (int i = 0; i < n * K; i++) completion_free(&done[i]);
    for (int i = 0; i < loaded; i++) prompt_free(&q[i]);
    free(q), free(requests), free(done);
    return ok;
}

// Fills s->out. *finished is false when a stop was asked for.
static bool sample_records(Refine *r, const Sampling *s, bool *finished, Err *e) {
    char path[PATH_BYTES];
    Log l;
    Model m;
    Found f = {.s = s, .path = path};
    int64_t K = s->per_record, from = 0;
    *finished = false;
    text_addf(&f.header,
              "\"ev\":\"rollouts\",\"iteration\":%lld,\"records\":%lld,\"k\":%lld,\"seed\":\"%llx\",\"model\":\"%s\"",
              (long long)r->iteration, (long long)s->n, (long long)K, (unsigned long long)s->seed, s->sha256);
    bool ok = in_dir(r, s->name, path, e) && log_open(&l, path, -1, e); // whole lines are left
    if (ok) log_close(&l);
    ok = ok && lines_read(path, find_line, &f, e) && log_open(&l, path, f.keep, e);
    if (!ok) return text_free(&f.header), false;
    if (!l.seq) ok = log_write(&l, f.header.p, e);
    if (l.seq > 1) from = (l.seq - 1) / K;
    if (from > s->n) from = s->n;
    if (ok && from && !f.ended) note("resumed behind %lld of %lld records", (long long)from, (long long)s->n);
    double started = clock_seconds();
    bool loaded = ok && from < s->n && (ok = load_model(r, &m, s->model, s->adapter, e));
    for (int64_t i = from; ok && i < s->n && !stop_requested(); i += r->o->batch) {
        int64_t n = s->n - i < r->o->batch ? s->n - i : r->o->batch;
        ok = sample_batch(r, s, &m, &l, i, (int)n, e);
        if (!stop_requested()) progress(s->who, i + n, s->n, started);
        if (ok && !stop_requested()) *finished = i + n == s->n;
    }
    if (from == s->n) *finished = ok;
    if (loaded) model_free(&m);
    if (ok && *finished && !f.ended) {
        Text end = {0};
        text_addf(&end, "\"ev\":\"end\",\"lines\":%lld", (long long)(s->n * K));
        ok = log_write(&l, end.p, e) && log_sync(&l, e);
        text_free(&end);
    }
    log_close(&l);
    text_free(&f.header);
    return ok;
}

// The text of a rollout, from its line.
static bool rollout_text(int fd, const char *path, const Rollout *r, Text *out, Err *e) {
    JsonDoc d;
    char *line = alloc_or_die((size_t)r->len + 1, 1, "a rollout");
    bool ok = pread(fd, line, (size_t)r->len, (off_t)r->offset) == (ssize_t)r->len ||
              err_set(e, "E-IO-05", AT(.file = path, BYTE(r->offset)),
                      "expected a rollout there, as before; found other bytes; do: start again");
    ok = ok && json_parse(&d, line, (size_t)r->len, path, (JsonOptions){.refuse_duplicates = true}, e);
    free(line);
    if (!ok) return false;
    const Json *text = json_get(d.root, "text");
    ok = (text && text->type == JSON_STRING) ||
         err_set(e, "E-CF-02", json_at(&d, d.root, "text"), "expected a text; found none; do: begin in another folder");
    if (ok) text_add(out, text->str, text->len);
    json_free(&d);
    return ok;
}

// -------------------------------------------------------------------------------------------------------------- labels

typedef struct Said { // by a batch teacher
    char *id, *text, *teacher, *request;
} Said;
typedef struct Labels { // one pass over all records
    Refine *r;
    bool write; // pseudo.jsonl; else the pass only finds out who goes to the teacher (hard.jsonl)
    FileWriter out;
    bool open;     // there is such a file
    Sha256 hash;   // of it
    int64_t lines; // of it
    int64_t asked; // so far
    char own_path[PATH_BYTES], teacher_path[PATH_BYTES];
    int own_fd, teacher_fd; // of the rollouts
    Said *said;
    int64_t n_said, cap_said, next_said;
} Labels;

static bool add_line(Labels *l, const Text *line, Err *e) {
    if (l->open && !file_write_bytes(&l->out, line->p, line->len, e)) return false;
    sha256_add(&l->hash, line->p, line->len);
    l->lines++;
    return true;
}

// Where the pictures of a record start, as prompts_open has it.
static bool root_of(const RefineOptions *o, const char *file, char out[PATH_BYTES], Err *e) {
    if (!o->image_root) return path_dir(out, PATH_BYTES, file, e);
    snprintf(out, PATH_BYTES, "%s", o->image_root);
    return true;
}

typedef struct Moved { // a path of a record while it is named from the root
    Json *v;
    const char *was;
    size_t was_len;
    Text path;
} Moved;
enum { MOST_MOVED = 16 };

// Files of a training may have their pictures in several places; those of pseudo-labels are then named from the root, until
// put_back: a record may be printed for several candidates.
static bool make_absolute(const Refine *r, int64_t i, const Json *root, Moved moved[MOST_MOVED], Err *e) {
    const Json *images = json_get(root, "images");
    char folder[PATH_BYTES];
    if (!r->absolute || !images) return true;
    if (!root_of(r->o, r->o->data[r->set.prompts[r->chosen[i]].file], folder, e)) return false;
    char *place = realpath(folder, NULL);
    if (!place)
        return err_set(e, "E-IO-01", AT(.file = folder), "expected a folder of pictures; found %s; do: check the path",
                       error_text(errno));
    Json *v = images->type == JSON_ARRAY ? images->child : (Json *)(uintptr_t)images;
    for (int n = 0; v && n < MOST_MOVED; v = v->next, n++) {
        if (v->type != JSON_STRING || v->str[0] == '/') continue;
        moved[n] = (Moved){.v = v, .was = v->str, .was_len = v->len};
        text_addf(&moved[n].path, "%s/%s", place, v->str);
        v->str = moved[n].path.p, v->len = moved[n].path.len;
        if (images->type != JSON_ARRAY) break;
    }
    free(place);
    return true;
}
static void put_back(Moved moved[MOST_MOVED]) {
    for (int n = 0; n < MOST_MOVED; n++) {
        if (moved[n].v) moved[n].v->str = moved[n].was, moved[n].v->len = moved[n].was_len;
        text_free(&moved[n].path);
    }
}

typedef struct Label { // a text that wants to become one
    const Text *text;
    const FrameSize *size; // of the picture as its writer was shown it; NULL: its boxes are in pixels of the file
    const char *teacher, *request; // NULL: the model itself
    const char *provenance;        // members of "pseudo"
} Label;

// Its line of pseudo.jsonl, when it passes the filters.
static bool label_line(const Refine *r, int64_t i, const Prompt *q, const Label *x, Text *line, enum SynthVerdict *v,
                       Err *e) {
    const TaskItem *item = &q->task.item;
    const Knowledge *knowledge[MOST_KNOWLEDGE];
    Text clean = {0};
    Moved moved[MOST_MOVED] = {{0}};
    int n = 0;
    for (int k = 0; k < r->n_knowledge && n < MOST_KNOWLEDGE; k++)
        if (item->procedure && knowledge_fits(&r->knowledge[k], item->procedure, item->task))
            knowledge[n++] = &r->knowledge[k];
    View text = view_trim((View){x->text->p ? x->text->p : "", x->text->len});
    *v = memchr(text.p, 0, text.len) ? SYNTH_FORMAT
                                     : synth_judge_thought(item, text.p, text.len, knowledge, n, r->o->min_words,
                                                           r->o->max_words, r->o->any_language);
    if (*v != SYNTH_ACCEPTED) return true;
    const FrameSize *s = x->size;
    if (s && (s->width != s->resized_width || s->height != s->resized_height))
        boxes_to_file(text.p, text.len, s, &clean);
    else text_add(&clean, text.p, text.len);
    bool ok = make_absolute(r, i, q->task.doc.root, moved, e);
    if (ok) {
        synth_record_print(q->task.doc.root, clean.p, x->teacher, x->request, line);
        line->len -= 2; // "}\n"
        text_addf(line, ",\"pseudo\":{%s}}\n", x->provenance);
        if (!synth_is_record(line, q->record.n_images ? q->sizes : NULL))
            *v = strstr(clean.p, "bbox") ? SYNTH_BOXES : SYNTH_FORMAT;
    }
    put_back(moved), text_free(&clean);
    return ok;
}

typedef struct Writer {      // who drew rollouts
    const Rollout *rollouts; // of one record
    int fd, K;
    enum RefinePick pick;
    const char *path, *teacher, *name, *sha256;
    const FrameSize *size;
} Writer;

// What the rewards of Surg-R1 say of a text whose boxes, if any, are in pixels of the file.
static Reward judged(const Prompt *q, const Text *text) {
    RewardOptions o;
    Reward reward;
    CHECK(reward_preset(&o, "surg-r1"), "no preset surg-r1");
    reward_score(&reward, &o, &(RewardInput){.item = &q->task.item, .text = text->p, .len = text->len, .tokens = -1});
    return reward;
}

// The best of the right rollouts that passes the filters. *v: the verdict on the best one of all when none does.
static bool pick_rollout(const Refine *r, int64_t i, const Prompt *q, const Writer *w, int own_right, Text *line,
                         enum SynthVerdict *v, Err *e) {
    int order[REFINE_MOST_ROLLOUTS + 1], n = refine_order(w->rollouts, w->K, w->pick, order);
    bool ok = true;
    *v = SYNTH_ANSWER;
    for (int j = 0; ok && j < n; j++) {
        const Rollout *x = &w->rollouts[order[j]];
        enum SynthVerdict now = SYNTH_CUT;
        Text text = {0}, provenance = {0};
        text_addf(&provenance,
                  "\"source\":\"%s\",\"iteration\":%lld,\"of\":%d,\"right\":%d,\"rollout\":%d,\"logprob\":",
                  w->teacher ? "teacher" : "predicted", (long long)r->iteration, r->K, own_right, order[j]);
        text_add_json_number(&provenance, x->logprob);
        text_addf(&provenance, ",\"model\":");
        text_add_json_string(&provenance, w->name, strlen(w->name));
        text_addf(&provenance, ",\"sha256\":\"%s\"", w->sha256);
        Label label = {&text, w->size, w->teacher, NULL, provenance.p};
        if (x->usable) {
            line->len = 0;
            ok = rollout_text(w->fd, w->path, x, &text, e) && label_line(r, i, q, &label, line, &now, e);
            if (ok && now == SYNTH_ACCEPTED && r->o->consistent) {
                Reward reward = judged(q, &text);
                if (synth_contradicts(&reward) == 1) now = SYNTH_CONTRADICTION;
            }
        }
        text_free(&text), text_free(&provenance);
        if (!j || now == SYNTH_ACCEPTED) *v = now;
        if (now == SYNTH_ACCEPTED) break;
    }
    return ok;
}

static TaskWording wording_of(const Refine *r, const TaskRecord *t) {
    return (TaskWording){.seed = r->o->seed, .choices = t->prompt && strstr(t->prompt, "\nA. ")};
}

// What the teacher has for record i, the a-th that it is asked about.
static bool teacher_line(Labels *l, int64_t i, int64_t a, const Prompt *q, int right, Text *line, enum SynthVerdict *v,
                         Err *e) {
    Refine *r = l->r;
    Text text = {0}, provenance = {0};
    bool ok = true;
    *v = SYNTH_MISSING;
    text_addf(&provenance, "\"source\":\"teacher\",\"iteration\":%lld,\"of\":%d,\"right\":%d", (long long)r->iteration,
              r->K, right);
    Label label = {&text, NULL, "scene-graph", NULL, provenance.p};
    if (r->o->teacher == TEACHER_SCENE) {
        ok = teach_text(&q->task.item, wording_of(r, &q->task), json_get(q->task.doc.root, "truth"), r->o->teach, &text,
                        e);
        if (ok && r->o->teach.overcall > 0 && !judged(q, &text).right) *v = SYNTH_ANSWER;
        else ok = ok && label_line(r, i, q, &label, line, v, e);
    } else if (r->o->teacher == TEACHER_MODEL) {
        Prompt seen; // by the teacher: its picture may have another size
        enum RefinePick pick = r->o->pick == PICK_FRESH ? PICK_FIRST : r->o->pick;
        ok = prompts_measure(&r->teacher_set, r->chosen[i], &seen, e);
        Writer w = {.rollouts = &r->teacher_rollouts[a * r->K],
                    .fd = l->teacher_fd,
                    .K = r->K,
                    .pick = pick,
                    .path = l->teacher_path,
                    .teacher = r->o->teacher_model,
                    .name = r->o->teacher_model,
                    .sha256 = r->teacher_sha256,
                    .size = ok && seen.record.n_images ? &seen.sizes[0] : NULL};
        if (ok) {
            ok = pick_rollout(r, i, q, &w, right, line, v, e);
            prompt_free(&seen);
        }
    } else if (l->next_said < l->n_said && !strcmp(l->said[l->next_said].id, q->record.id)) {
        const Said *said = &l->said[l->next_said++];
        text_add(&text, said->text, strlen(said->text));
        label.teacher = said->teacher, label.request = said->request;
        ok = label_line(r, i, q, &label, line, v, e);
    }
    text_free(&text), text_free(&provenance);
    return ok;
}

// Easy or hard, and what becomes of it.
static bool label_record(Labels *l, int64_t i, Err *e) {
    Refine *r = l->r;
    const Rollout *x = &r->rollouts[i * r->drawn];
    Prompt q;
    Text line = {0};
    enum SynthVerdict v;
    int order[REFINE_MOST_ROLLOUTS + 1], right = 0, candidates = refine_order(x, r->K, r->o->pick, order);
    bool hard = !candidates, ask = hard; // of a fresh rollout: when that is wrong, too
    if (!prompts_measure(&r->set, r->chosen[i], &q, e)) return false;
    for (int k = 0; k < r->K; k++) right += x[k].right;
    Counts *c = &r->counts[q.task.item.task];
    c->records++, c->sampled += r->K, c->right += right, c->by_right[right]++;
    c->easy += !hard, c->hard += hard;
    Writer w = {.rollouts = x,
                .fd = l->own_fd,
                .K = r->K,
                .pick = r->o->pick,
                .path = l->own_path,
                .name = r->policy.name,
                .sha256 = r->policy.sha256,
                .size = q.record.n_images ? &q.sizes[0] : NULL};
    bool ok = !candidates || pick_rollout(r, i, &q, &w, right, &line, &v, e);
    if (ok && candidates && v == SYNTH_ACCEPTED) {
        c->predicted++;
        ok = !l->write || add_line(l, &line, e);
    } else if (ok && candidates) c->refused[v]++, ask = r->o->refused_to_teacher;
    if (ok && ask) {
        int64_t a = l->asked++;
        c->asked++, line.len = 0;
        if (r->o->teacher == TEACHER_NONE) c->without++;
        else if (!l->write) {
            r->asked[r->n_asked++] = i;
            text_add(&line, q.text, q.len), text_addf(&line, "\n");
            ok = add_line(l, &line, e);
        } else if ((ok = teacher_line(l, i, a, &q, right, &line, &v, e))) {
            if (v == SYNTH_ACCEPTED) c->teacher++, ok = add_line(l, &line, e);
            else c->teacher_refused[v]++;
        }
    }
    text_free(&line), prompt_free(&q);
    return ok;
}

static char *copy_text(const Json *v) {
    size_t n = v && v->type == JSON_STRING ? v->len : 0;
    char *copy = alloc_or_die(n + 1, 1, "a teacher's answer");
    if (n) memcpy(copy, v->str, n);
    return copy;
}

// A line of teacher.jsonl, which synth_ingest wrote.
static bool said_line(void *ctx, const char *line, size_t len, int64_t number, Err *e) {
    Labels *l = ctx;
    JsonDoc d;
    JsonOptions options = {.refuse_duplicates = true, .first_line = (uint32_t)number};
    if (!json_parse(&d, line, len, "teacher.jsonl", options, e)) return false;
    const Json *messages = json_get(d.root, "messages"), *last = messages ? messages->child : NULL;
    while (last && last->next) last = last->next;
    if (l->n_said == l->cap_said) {
        l->cap_said = l->cap_said ? 2 * l->cap_said : 256;
        l->said = grow_or_die(l->said, (size_t)l->cap_said, sizeof *l->said, "a teacher's answers");
    }
    l->said[l->n_said++] = (Said){copy_text(json_get(d.root, "id")), copy_text(json_get(last, "content")),
                                  copy_text(json_get(d.root, "teacher")), copy_text(json_get(d.root, "request"))};
    json_free(&d);
    return true;
}

static int open_to_read(const char *path, Err *e) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        err_set(e, "E-IO-01", AT(.file = path), "expected a readable file; found %s; do: start again",
                error_text(errno));
    return fd;
}

// name: of the file that is written, NULL: none. Fills r->counts anew.
static bool label_records(Refine *r, bool write, const char *name, int64_t *lines, char sha256[65], Err *e) {
    Labels l = {.r = r, .write = write, .own_fd = -1, .teacher_fd = -1};
    char path[PATH_BYTES];
    memset(r->counts, 0, sizeof r->counts), memset(&r->all, 0, sizeof r->all);
    if (!write) r->n_asked = 0;
    sha256_start(&l.hash);
    bool ok = in_dir(r, "rollouts.jsonl", l.own_path, e) && (l.own_fd = open_to_read(l.own_path, e)) >= 0;
    if (ok && write && r->n_asked && r->o->teacher == TEACHER_MODEL)
        ok = in_dir(r, "teacher-rollouts.jsonl", l.teacher_path, e) &&
             (l.teacher_fd = open_to_read(l.teacher_path, e)) >= 0;
    if (ok && write && r->n_asked && r->o->teacher == TEACHER_BATCH)
        ok = in_dir(r, "teacher.jsonl", path, e) && lines_read(path, said_line, &l, e);
    if (ok && name) ok = l.open = in_dir(r, name, path, e) && file_write_begin(&l.out, path, e);
    for (int64_t i = 0; ok && i < r->n; i++) ok = label_record(&l, i, e);
    if (l.open && ok) ok = file_write_commit(&l.out, e);
    else if (l.open && l.out.fd >= 0) file_write_abort(&l.out);
    for (int64_t k = 0; k < l.n_said; k++)
        free(l.said[k].id), free(l.said[k].text), free(l.said[k].teacher), free(l.said[k].request);
    free(l.said);
    if (l.own_fd >= 0) close(l.own_fd);
    if (l.teacher_fd >= 0) close(l.teacher_fd);
    for (int t = 0; t < TASKS; t++) {
        const int64_t *from = (const int64_t *)&r->counts[t];
        for (size_t k = 0; k < sizeof(Counts) / sizeof(int64_t); k++) ((int64_t *)&r->all)[k] += from[k];
    }
    *lines = l.lines;
    sha256_finish(&l.hash, sha256);
    return ok;
}

// -------------------------------------------------------------------------------------------------------------- counts

static void add_reasons(Text *out, const char *name, const int64_t *n) {
    text_addf(out, ",\"%s\":{", name);
    for (int v = 0; v < SYNTH_VERDICTS; v++)
        if (n[v])
            text_addf(out, "%s\"%s\":%lld", out->p[out->len - 1] == '{' ? "" : ",", synth_verdict_names[v],
                      (long long)n[v]);
    text_addf(out, "}");
}

static void add_counts(const Refine *r, const Counts *c, Text *out) {
    text_addf(out, "{\"records\":%lld,\"rollouts\":%lld,\"right\":%lld,\"by_right\":[", (long long)c->records,
              (long long)c->sampled, (long long)c->right);
    for (int k = 0; k <= r->K; k++) text_addf(out, "%s%lld", k ? "," : "", (long long)c->by_right[k]);
    text_addf(out, "],\"easy\":%lld,\"hard\":%lld,\"predicted\":%lld", (long long)c->easy, (long long)c->hard,
              (long long)c->predicted);
    add_reasons(out, "refused", c->refused);
    text_addf(out, ",\"asked\":%lld,\"teacher\":%lld,\"without\":%lld", (long long)c->asked, (long long)c->teacher,
              (long long)c->without);
    add_reasons(out, "teacher_refused", c->teacher_refused);
    text_addf(out, "}");
}

static void add_tasks(const Refine *r, Text *out) {
    text_addf(out, "\"all\":");
    add_counts(r, &r->all, out);
    text_addf(out, ",\"tasks\":{");
    for (int t = 0; t < TASKS; t++) {
        if (!r->counts[t].records) continue;
        text_addf(out, "%s\"%s\":", out->p[out->len - 1] == '{' ? "" : ",", task_info((enum Task)t)->name);
        add_counts(r, &r->counts[t], out);
    }
    text_addf(out, "}");
}

static int64_t count(const Json *v, const char *name) {
    const Json *x = json_get(v, name);
    return x && x->type == JSON_NUMBER && x->integer ? x->i : 0;
}
static int64_t sum_reasons(const Json *v, const char *name) {
    const Json *x = json_get(v, name);
    int64_t n = 0;
    for (const Json *c = x ? x->child : NULL; c; c = c->next) n += c->integer ? c->i : 0;
    return n;
}
static double share(const Json *v) {
    int64_t n = count(v, "rollouts");
    return n ? 100. * (double)count(v, "right") / (double)n : 0;
}

static void print_row(const char *name, const Json *v) {
    printf("  %-12s %8lld %8.1f%% %7lld %7lld %10lld %8lld %8lld %8lld %8lld\n", name, (long long)count(v, "records"),
           share(v), (long long)count(v, "easy"), (long long)count(v, "hard"), (long long)count(v, "predicted"),
           (long long)sum_reasons(v, "refused"), (long long)count(v, "teacher"),
           (long long)sum_reasons(v, "teacher_refused"), (long long)count(v, "without"));
}

static void print_reasons(const char *who, const Json *v) {
    if (!v || !v->child) return;
    printf("  refused of %s:", who);
    for (const Json *x = v->child; x; x = x->next) printf(" %s %lld%s", x->key, (long long)x->i, x->next ? "," : "\n");
}

// Each iteration, then the success of every model by task.
static void print_tables(const JsonDoc *d) {
    const Json *list = json_get(d->root, "iterations"), *last = json_get(d->root, "last"), *first = list->child;
    for (const Json *it = first; it; it = it->next) {
        printf("%siteration %lld: rollouts of %s, K = %lld\n", it == first ? "" : "\n",
               (long long)count(it, "iteration"), json_get(it, "model")->str, (long long)count(it, "k"));
        printf("  %-12s %8s %9s %7s %7s %10s %8s %8s %8s %8s\n", "task", "records", "sampled", "easy", "hard",
               "predicted", "refused", "teacher", "refused", "without");
        const Json *all = json_get(it, "all");
        for (const Json *t = json_get(it, "tasks")->child; t; t = t->next) print_row(t->key, t);
        print_row("all", all);
        print_reasons("the model", json_get(all, "refused"));
        print_reasons("the teacher", json_get(all, "teacher_refused"));
    }
    if (!first || (!first->next && !last)) return;
    printf("\nsampled success, %% of rollouts that are right\n  %-12s", "task");
    for (const Json *it = first; it; it = it->next) printf(" before %lld", (long long)count(it, "iteration"));
    printf("%s\n", last ? "    after" : "");
    for (const Json *t = json_get(first, "tasks")->child, *row; t; t = row ? t->next : NULL) {
        row = t;
        printf("  %-12s", t->key);
        for (const Json *it = first; it; it = it->next)
            printf(" %8.1f", share(json_get(json_get(it, "tasks"), t->key)));
        if (last) printf(" %8.1f", share(json_get(json_get(last, "tasks"), t->key)));
        printf("\n");
    }
    printf("  %-12s", "all");
    for (const Json *it = first; it; it = it->next) printf(" %8.1f", share(json_get(it, "all")));
    if (last) printf(" %8.1f", share(json_get(last, "all")));
    printf("\n");
}

// RUN/refine.json from the summaries that are there, and the tables.
static bool write_tables(Refine *r, Err *e) {
    Text all = {0};
    char path[PATH_BYTES], *text = NULL;
    size_t size = 0;
    int64_t n = 0;
    bool ok = true;
    text_addf(&all, "{\"iterations\":[");
    for (int64_t i = 1; ok && i <= r->o->iterations + 1; i++) {
        bool last = i == r->o->iterations + 1;
        snprintf(path, sizeof path, "%s/iter-%lld/%s.json", r->o->out, (long long)i, last ? "measure" : "summary");
        if (last) text_addf(&all, "]");
        if (!file_exists(path)) continue;
        ok = file_read(path, LIMIT_CONFIG_BYTES, "E-JS-01", &text, &size, e);
        if (!ok) break;
        text_addf(&all, "%s\n", last ? ",\"last\":" : n++ ? "," : "");
        text_add(&all, text, size && text[size - 1] == '\n' ? size - 1 : size);
        free(text);
    }
    text_addf(&all, "}\n");
    JsonDoc d;
    ok = ok && path_join(path, sizeof path, r->o->out, "refine.json", e) &&
         file_write_atomic(path, all.p, all.len, e) &&
         json_parse(&d, all.p, all.len, path, (JsonOptions){.refuse_duplicates = true}, e);
    if (ok) print_tables(&d), json_free(&d);
    text_free(&all);
    return ok;
}

// ----------------------------------------------------------------------------------------------------------- iteration

static uint64_t seed_of(const Refine *r, bool teacher) { // of the rollouts of an iteration
    Random4 x = philox(r->o->seed, (uint32_t)r->iteration, teacher, RANDOM_SAMPLE, 0);
    return (uint64_t)x.v[0] << 32 | x.v[1];
}

static bool sample_own(Refine *r, int per_record, bool *finished, Err *e) {
    free(r->rollouts);
    r->rollouts = alloc_or_die((size_t)(r->n * per_record), sizeof *r->rollouts, "the rollouts");
    Sampling s = {.name = "rollouts.jsonl",
                  .who = "records sampled",
                  .model = r->policy.model,
                  .adapter = r->policy.adapter,
                  .sha256 = r->policy.sha256,
                  .set = &r->set,
                  .records = r->chosen,
                  .n = r->n,
                  .per_record = per_record,
                  .seed = seed_of(r, false),
                  .out = r->rollouts};
    return sample_records(r, &s, finished, e);
}

static bool sample_teacher(Refine *r, bool *finished, Err *e) {
    free(r->teacher_rollouts);
    r->teacher_rollouts = alloc_or_die((size_t)(r->n_asked * r->K) + 1, sizeof *r->teacher_rollouts, "the rollouts");
    int64_t *records = alloc_or_die((size_t)r->n_asked + 1, sizeof *records, "the hard records");
    for (int64_t a = 0; a < r->n_asked; a++) records[a] = r->chosen[r->asked[a]];
    Sampling s = {.name = "teacher-rollouts.jsonl",
                  .who = "records sampled by the teacher",
                  .model = r->o->teacher_model,
                  .sha256 = r->teacher_sha256,
                  .set = &r->teacher_set,
                  .records = records,
                  .n = r->n_asked,
                  .per_record = r->K,
                  .seed = seed_of(r, true),
                  .out = r->teacher_rollouts};
    bool ok = sample_records(r, &s, finished, e);
    free(records);
    return ok;
}

// Requests out, then answers in: *finished is false as long as they are missing.
static bool ask_batch(Refine *r, bool *finished, Err *e) {
    char hard[PATH_BYTES], requests[PATH_BYTES], answers[PATH_BYTES], counts[PATH_BYTES], root[PATH_BYTES];
    SynthSent sent;
    SynthCounts c;
    bool ok = in_dir(r, "hard.jsonl", hard, e) && in_dir(r, "requests", requests, e) &&
              in_dir(r, "teacher.jsonl", answers, e) && in_dir(r, "ingest.json", counts, e) &&
              root_of(r->o, r->o->data[0], root, e);
    *finished = ok && file_exists(counts);
    if (!ok || *finished) return ok;
    if (!folder_exists(requests)) {
        SynthRequests o = r->o->ask;
        o.data = hard, o.image_root = root, o.out = requests;
        o.knowledge = r->o->knowledge, o.n_knowledge = r->o->n_knowledge;
        o.min_words = r->o->min_words, o.max_words = r->o->max_words;
        if (!synth_requests(&o, &sent, e)) return false;
    }
    if (!r->o->n_responses || r->responses_used) {
        r->waiting = true;
        note("iteration %lld waits for a teacher: %lld records are hard; have the files of %s answered, then start the "
             "same command with --responses FILE",
             (long long)r->iteration, (long long)r->n_asked, requests);
        return true;
    }
    r->responses_used = true;
    if (!synth_ingest(requests, r->o->responses, r->o->n_responses, answers, NULL, &c, e)) return false;
    if (c.foreign && c.verdict[SYNTH_MISSING] == c.requests) {
        (void)!unlink(answers);
        return err_set(e, "E-TA-01", AT(.file = r->o->responses[0]),
                       "expected answers to the requests of iteration %lld; found answers to others only; do: give the "
                       "responses to %s",
                       (long long)r->iteration, requests);
    }
    Text line = {0};
    synth_counts_print(&c, &line);
    ok = file_write_atomic(counts, line.p, line.len, e);
    text_free(&line);
    *finished = ok;
    return ok;
}

// Which reasons a batch teacher's refused answers had: only their sums are known.
static bool add_ingest(Refine *r, Err *e) {
    char path[PATH_BYTES];
    JsonDoc d;
    if (r->o->teacher != TEACHER_BATCH || !r->n_asked) return true;
    if (!in_dir(r, "ingest.json", path, e) || !json_read(&d, path, LIMIT_CONFIG_BYTES, (JsonOptions){0}, e))
        return false;
    int64_t known = 0;
    for (int v = 1; v < SYNTH_VERDICTS; v++) {
        int64_t n = count(d.root, synth_verdict_names[v]);
        if (v != SYNTH_MISSING) r->all.teacher_refused[v] += n, known += n;
    }
    r->all.teacher_refused[SYNTH_MISSING] -= known;
    json_free(&d);
    return true;
}

static bool label_iteration(Refine *r, bool *finished, Err *e) {
    int64_t lines;
    char sha256[65], path[PATH_BYTES];
    enum RefineTeacher teacher = r->o->teacher;
    bool asks = teacher == TEACHER_BATCH || teacher == TEACHER_MODEL;
    if (!sample_own(r, r->drawn, finished, e)) return false;
    if (!*finished) return true;
    if (asks && !label_records(r, false, teacher == TEACHER_BATCH ? "hard.jsonl" : NULL, &lines, sha256, e))
        return false;
    if (asks && r->n_asked) {
        bool ok = teacher == TEACHER_BATCH ? ask_batch(r, finished, e) : sample_teacher(r, finished, e);
        if (!ok || !*finished) return ok;
    }
    if (!label_records(r, true, "pseudo.jsonl", &lines, sha256, e) || !add_ingest(r, e)) return false;
    Text t = {0}, line = {0};
    text_addf(&t, "\"k\":%d,\"model\":", r->K);
    text_add_json_string(&t, r->policy.name, strlen(r->policy.name));
    text_addf(&t, ",\"model_sha256\":\"%s\",\"pseudo\":{\"lines\":%lld,\"sha256\":\"%s\"},", r->policy.sha256,
              (long long)lines, sha256);
    add_tasks(r, &t);
    text_addf(&line, "{\"iteration\":%lld,%s}\n", (long long)r->iteration, t.p);
    bool ok = in_dir(r, "summary.json", path, e) && file_write_atomic(path, line.p, line.len, e);
    text_free(&t), text_free(&line);
    return ok;
}

// The event of the labels, from the summary: the process that made it may have died before it could tell.
static bool tell_labels(Refine *r, int64_t *lines, Err *e) {
    char path[PATH_BYTES];
    JsonDoc d;
    Text more = {0};
    if (!in_dir(r, "summary.json", path, e) || !json_read(&d, path, LIMIT_CONFIG_BYTES, (JsonOptions){0}, e))
        return false;
    const Json *all = json_get(d.root, "all"), *pseudo = json_get(d.root, "pseudo");
    *lines = count(pseudo, "lines");
    text_addf(&more, "\"pseudo\":");
    json_print(&more, pseudo);
    text_addf(&more, ",\"all\":");
    json_print(&more, all);
    bool ok = event(r, "labels", &more, e);
    note("iteration %lld: %lld records, %.1f %% of rollouts right; %lld easy, %lld hard; labels: %lld predicted, %lld "
         "of a "
         "teacher",
         (long long)r->iteration, (long long)count(all, "records"), share(all), (long long)count(all, "easy"),
         (long long)count(all, "hard"), (long long)count(all, "predicted"), (long long)count(all, "teacher"));
    text_free(&more), json_free(&d);
    return ok;
}

// ------------------------------------------------------------------------------------------------------------ training

// Options that shape a new adapter say nothing where an adapter goes on.
static bool shapes_adapter(const char *arg, bool *takes_value) {
    static const char *const names[] = {"--lora", "--lora-rank", "--lora-alpha", "--lora-dropout", "--rslora"};
    size_t n = strcspn(arg, "=");
    for (size_t k = 0; k < sizeof names / sizeof *names; k++)
        if (strlen(names[k]) == n && !memcmp(names[k], arg, n)) {
            *takes_value = k < 4 && !arg[n];
            return true;
        }
    return false;
}

// A training that was killed with its parent a moment ago may still be dying.
static void wait_for_lock(const char *dir) {
    for (int i = 0; i < 100 && folder_exists(dir); i++) {
        Err ignored = {0};
        int fd = lock_take(dir, &ignored);
        if (fd >= 0) {
            close(fd);
            return;
        }
        nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
    }
}

static bool train(Refine *r, Err *e) {
    const RefineOptions *o = r->o;
    const Policy *from = o->from_first ? &r->first : &r->policy;
    char out[PATH_BYTES], root[PATH_BYTES], (*files)[PATH_BYTES];
    const char **argv =
        alloc_or_die((size_t)(2 * (r->iteration + o->n_mix) + o->n_sft + 24), sizeof *argv, "arguments");
    int64_t first = o->aggregate_all ? 1 : r->iteration;
    int n = 0;
    bool value = false;
    files = alloc_or_die((size_t)r->iteration, sizeof *files, "arguments");
    bool ok = in_dir(r, "sft", out, e) && root_of(o, o->data[0], root, e);
    argv[n++] = "sft", argv[n++] = "--model", argv[n++] = from->model;
    if (from->adapter[0]) argv[n++] = "--adapter", argv[n++] = from->adapter;
    for (int64_t i = first; i <= r->iteration; i++) {
        snprintf(files[i - 1], sizeof files[0], "%s/iter-%lld/pseudo.jsonl", o->out, (long long)i);
        argv[n++] = "--data", argv[n++] = files[i - 1];
    }
    for (int k = 0; k < o->n_mix; k++) argv[n++] = "--data", argv[n++] = o->mix[k];
    if (o->image_root || !r->absolute) argv[n++] = "--image-root", argv[n++] = root;
    if (r->any_absolute || r->absolute) argv[n++] = "--absolute-images";
    argv[n++] = "--out", argv[n++] = out;
    for (int k = 0; k < o->n_sft; k++) {
        if (from->adapter[0] && shapes_adapter(o->sft[k], &value)) k += value;
        else argv[n++] = o->sft[k];
    }
    argv[n] = NULL;
    wait_for_lock(out);
    note("iteration %lld: training in %s", (long long)r->iteration, out);
    ok = ok && self_run_to("/dev/null", argv, &r->status, e);
    free(argv), free(files);
    return ok;
}

// The model that a training left: an adapter beside the model that it started from, or whole weights.
static bool take_export(Refine *r, Err *e) {
    char path[PATH_BYTES], config[PATH_BYTES];
    if (!in_dir(r, "sft/export", path, e) || !path_join(config, sizeof config, path, "adapter_config.json", e))
        return false;
    bool adapter = file_exists(config);
    const Policy *from = r->o->from_first ? &r->first : &r->policy;
    Policy next = {.sha256 = ""};
    memcpy(next.model, adapter ? from->model : path, sizeof next.model);
    if (adapter) memcpy(next.adapter, path, sizeof next.adapter);
    snprintf(next.name, sizeof next.name, "iter-%lld/sft/export", (long long)r->iteration);
    if (!fingerprint(&next, adapter ? r->o->hash_base : true, e)) return false;
    r->policy = next;
    return true;
}

static bool run_iteration(Refine *r, bool *finished, Err *e) {
    int64_t lines = 0;
    char path[PATH_BYTES];
    Text more = {0};
    bool ok = folder_make_all(r->dir, e) && folder_sweep(r->dir, ".", ".tmp-", e);
    *finished = true;
    if (ok && !dir_has(r, "summary.json")) ok = label_iteration(r, finished, e);
    if (!ok || !*finished) return ok;
    if (!tell_labels(r, &lines, e)) return false;
    if (!lines && !r->o->n_mix && !r->o->aggregate_all)
        return err_set(
            e, "E-DS-02", AT(.file = r->dir),
            "expected accepted pseudo-labels to train on; found none; do: look at the reasons in summary.json");
    if (!dir_has(r, "sft.json")) {
        *finished = !stop_requested();
        if (!*finished) return true;
        if (!train(r, e)) return false;
        *finished = r->status == EXIT_OK;
        if (!*finished) return true;
        text_addf(&more, "{\"export\":\"iter-%lld/sft/export\"}\n", (long long)r->iteration);
        ok = in_dir(r, "sft.json", path, e) && file_write_atomic(path, more.p, more.len, e);
        text_free(&more);
    }
    ok = ok && take_export(r, e);
    text_addf(&more, "\"model\":\"%s\",\"sha256\":\"%s\"", r->policy.name, r->policy.sha256);
    ok = ok && event(r, "trained", &more, e);
    text_free(&more);
    return ok;
}

// Rollouts of the last model, for the last column of the table.
static bool measure(Refine *r, bool *finished, Err *e) {
    char path[PATH_BYTES];
    *finished = true;
    if (!folder_make_all(r->dir, e) || !folder_sweep(r->dir, ".", ".tmp-", e)) return false;
    if (dir_has(r, "measure.json")) return true;
    if (!sample_own(r, r->drawn, finished, e)) return false;
    if (!*finished) return true;
    memset(r->counts, 0, sizeof r->counts), memset(&r->all, 0, sizeof r->all);
    for (int64_t i = 0; i < r->n; i++) {
        int right = 0;
        for (int k = 0; k < r->K; k++) right += r->rollouts[i * r->drawn + k].right;
        for (int side = 0; side < 2; side++) {
            Counts *c = side ? &r->all : &r->counts[r->set.prompts[r->chosen[i]].task];
            c->records++, c->sampled += r->K, c->right += right, c->by_right[right]++;
            c->easy += right > 0, c->hard += !right;
        }
    }
    Text t = {0};
    text_addf(&t, "{\"model\":\"%s\",", r->policy.name);
    add_tasks(r, &t);
    text_addf(&t, "}\n");
    bool ok = in_dir(r, "measure.json", path, e) && file_write_atomic(path, t.p, t.len, e);
    text_free(&t);
    return ok;
}

// -------------------------------------------------------------------------------------------------------------- set up

static bool open_prompts(const RefineOptions *o, const char *model, Config *c, Tokenizer **t, PromptSet *set, Err *e) {
    if (!config_load(c, model, e) || !tokenizer_load(t, model, e) || !chat_template_check(model, e)) return false;
    if (o->min_pixels) c->vision.min_pixels = o->min_pixels;
    if (o->max_pixels) c->vision.max_pixels = o->max_pixels;
    PromptOptions p = o->prompt;
    p.new_tokens = o->g.max_new_tokens;
    p.or_system = task_system_prompt(false); // what synth_record_print gives to a record without a system turn
    return prompts_open(set, *t, c, o->data, o->n_data, o->image_root, p, e);
}

static int by_number(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? -1 : x > y;
}
typedef struct Named {
    const char *id;
    int64_t i;
} Named;
static int by_name(const void *a, const void *b) { return strcmp(((const Named *)a)->id, ((const Named *)b)->id); }

static void choose(Refine *r) {
    int64_t limit = r->o->limit;
    r->n = limit && limit < r->set.n ? limit : r->set.n;
    r->chosen = alloc_or_die((size_t)r->n, sizeof *r->chosen, "the list of records");
    for (int64_t k = 0; k < r->n; k++) r->chosen[k] = r->n < r->set.n ? shuffled(r->o->seed, 0, k, r->set.n) : k;
    qsort(r->chosen, (size_t)r->n, sizeof *r->chosen, by_number);
    r->asked = alloc_or_die((size_t)r->n, sizeof *r->asked, "the hard records");
}

// All that a later phase would refuse, before the first rollout.
static bool check_record(Refine *r, const Prompt *q, Err *e) {
    const Json *root = q->task.doc.root, *messages = json_get(root, "messages");
    const TaskItem *item = &q->task.item;
    const Record *rec = &q->record;
    Where at = AT(.file = "--data", .line = rec->line, .sample = rec->id);
    Text text = {0};
    for (int k = 0; k < rec->n_images; k++) r->any_absolute |= rec->images[k][0] == '/';
    if (!messages || messages->type != JSON_ARRAY || !q->task.prompt)
        return err_set(e, "E-DS-02", at,
                       "expected \"messages\" with a question; found none; do: use records of surgr1 "
                       "scenes or import");
    int turns = 0, boxes = 0;
    for (int k = 0; k < rec->n; k++) {
        const Message *m = &rec->messages[k];
        bool question = !strcmp(m->role, "user");
        turns += question;
        for (int j = 0; question && j < m->n_parts; j++)
            if (m->parts[j].image < 0 && memmem(m->parts[j].text, m->parts[j].len, "bbox_2d", 7)) {
                Box one; // a form to answer in has no numbers
                boxes += answer_boxes(m->parts[j].text, m->parts[j].len, &one, 1);
            }
    }
    if (turns != 1) // the label would stand behind the last question alone
        return err_set(e, "E-DS-02", at, "expected one question; found %d; do: make a record of each", turns);
    if (boxes && rec->frame != BOX_ORIGINAL)
        return err_set(
            e, "E-DS-02", at,
            "expected boxes of a question in pixels of the file; found another \"box_frame\"; do: convert them, and "
            "write \"box_frame\": \"original\"");
    if (r->o->teacher == TEACHER_SCENE) {
        bool ok = teach_text(item, wording_of(r, &q->task), json_get(root, "truth"), r->o->teach, &text, e);
        text_free(&text);
        return ok;
    }
    if (r->o->teacher != TEACHER_BATCH) return true;
    int fitting = 0;
    for (int k = 0; k < r->n_knowledge; k++)
        fitting += item->procedure && knowledge_fits(&r->knowledge[k], item->procedure, item->task);
    if (rec->n_images != 1 || rec->images[0][0] == '/' || !fitting)
        return err_set(
            e, "E-DS-02", at,
            "expected one picture by a relative path, and a procedure of the knowledge files; found %d pictures "
            "and %s; do: leave the record out, or give the knowledge file that has it",
            rec->n_images, item->procedure ? quoted(item->procedure, strlen(item->procedure)) : "none");
    return true;
}

static bool check_records(Refine *r, Err *e) {
    Named *names = alloc_or_die((size_t)r->n, sizeof *names, "the list of records");
    bool ok = true;
    for (int64_t i = 0; i < r->n; i++) names[i] = (Named){r->set.prompts[r->chosen[i]].id, i};
    qsort(names, (size_t)r->n, sizeof *names, by_name);
    for (int64_t i = 1; ok && i < r->n; i++)
        if (!strcmp(names[i - 1].id, names[i].id))
            ok = err_set(e, "E-DS-03",
                         AT(.file = r->o->data[r->set.prompts[r->chosen[names[i].i]].file], .sample = names[i].id),
                         "expected every id once in all files; found one twice; do: rename one of the two");
    free(names);
    for (int64_t i = 0; ok && i < r->n; i++) {
        Prompt q;
        ok = prompts_measure(&r->set, r->chosen[i], &q, e);
        if (!ok) break;
        ok = check_record(r, &q, e);
        prompt_free(&q);
    }
    return ok;
}

static bool find_roots(Refine *r, Err *e) {
    const RefineOptions *o = r->o;
    char first[PATH_BYTES], other[PATH_BYTES];
    if (o->image_root) return true;
    if (!path_dir(first, sizeof first, o->data[0], e)) return false;
    for (int k = 1; k < o->n_data + o->n_mix; k++) {
        if (!path_dir(other, sizeof other, k < o->n_data ? o->data[k] : o->mix[k - o->n_data], e)) return false;
        if (strcmp(first, other)) r->absolute = true;
        if (k < o->n_data && r->absolute && o->teacher == TEACHER_BATCH)
            return err_set(
                e, "E-CL-01", AT(.file = "command line", .field = "--data"),
                "expected the files in one folder, for requests to a teacher; found two; do: give --image-root");
    }
    return true;
}

static void config_text(const Refine *r, Text *out) {
    text_addf(out, "{\"command\":{\"name\":\"refine\",\"version\":\"" SURGR1_VERSION "\"},%s,\"sft\":[",
              r->o->options_json);
    for (int k = r->o->n_shared; k < r->o->n_sft; k++) {
        text_addf(out, "%s", k > r->o->n_shared ? "," : "");
        text_add_json_string(out, r->o->sft[k], strlen(r->o->sft[k]));
    }
    text_addf(out, "],\"inputs\":{\"model\":\"%s\",\"data\":\"%s\"", r->first.sha256, r->set.sha256);
    if (r->o->teacher == TEACHER_MODEL) text_addf(out, ",\"teacher\":\"%s\"", r->teacher_sha256);
    text_addf(out, "}}\n");
}

// What a resumed run may change: what decides no number of it. More iterations go on from the last one.
static const char *const free_members[] = {"origins",
                                           "options.out",
                                           "options.threads",
                                           "options.max-memory",
                                           "options.batch",
                                           "options.iterations",
                                           "options.responses",
                                           "options.measure",
                                           NULL};

static bool set_up(Refine *r, Err *e) {
    const RefineOptions *o = r->o;
    char path[PATH_BYTES];
    Text config = {0};
    snprintf(r->first.model, sizeof r->first.model, "%s", o->model);
    snprintf(r->first.adapter, sizeof r->first.adapter, "%s", o->adapter ? o->adapter : "");
    snprintf(r->first.name, sizeof r->first.name, "%s", o->adapter ? o->adapter : o->model);
    r->knowledge = alloc_or_die((size_t)o->n_knowledge + 1, sizeof *r->knowledge, "knowledge of operations");
    for (; r->n_knowledge < o->n_knowledge; r->n_knowledge++)
        if (!knowledge_read(&r->knowledge[r->n_knowledge], o->knowledge[r->n_knowledge], e)) return false;
    if (!fingerprint(&r->first, o->hash_base, e) || !open_prompts(o, o->model, &r->c, &r->t, &r->set, e)) return false;
    if (o->teacher == TEACHER_MODEL) {
        Policy teacher = {.sha256 = ""};
        snprintf(teacher.model, sizeof teacher.model, "%s", o->teacher_model);
        if (!fingerprint(&teacher, o->hash_base, e) ||
            !open_prompts(o, o->teacher_model, &r->teacher_c, &r->teacher_t, &r->teacher_set, e))
            return false;
        memcpy(r->teacher_sha256, teacher.sha256, sizeof r->teacher_sha256);
    }
    choose(r);
    note("data: %lld records of %lld, the longest prompt has %lld tokens", (long long)r->n, (long long)r->set.n,
         (long long)r->set.longest);
    if (!find_roots(r, e) || !check_records(r, e)) return false;
    r->policy = r->first;
    snprintf(r->run.dir, sizeof r->run.dir, "%s", o->out);
    bool ok = folder_make_all(o->out, e) && (r->run.lock = lock_take(o->out, e)) >= 0 &&
              folder_sweep(o->out, ".", ".tmp-", e) && path_join(path, sizeof path, o->out, "run.jsonl", e);
    config_text(r, &config);
    ok = ok && run_config(&r->run, config.p, free_members, NULL, e) && log_open(&r->run.log, path, -1, e);
    text_free(&config);
    return ok;
}

bool refine_run(const RefineOptions *o, int *status, Err *e) {
    CHECK(o->rollouts >= 1 && o->rollouts < REFINE_MOST_ROLLOUTS && o->iterations >= 1, "refine_run: bad options");
    Refine *r = alloc_or_die(1, sizeof *r, "the run");
    bool finished = true;
    *r = (Refine){.o = o, .K = (int)o->rollouts, .drawn = (int)o->rollouts + (o->pick == PICK_FRESH)};
    r->run = (Run){.lock = -1, .log.fd = -1, .timing.fd = -1, .events.fd = -1};
    bool ok = set_up(r, e), made = ok;
    for (int64_t i = 1; ok && finished && i <= o->iterations + o->measure; i++) {
        r->iteration = i;
        ok = snprintf(r->dir, sizeof r->dir, "%s/iter-%lld", o->out, (long long)i) < (int)sizeof r->dir ||
             err_set(e, "E-IO-01", AT(.file = o->out), "expected a shorter path; found %zu bytes; do: shorten it",
                     strlen(o->out));
        ok = ok && (i <= o->iterations ? run_iteration(r, &finished, e) : measure(r, &finished, e));
    }
    *status = r->status ? r->status : finished ? EXIT_OK : EXIT_STOPPED;
    if (made) {
        Err later = {0};
        bool written = write_tables(r, ok ? e : &later);
        ok = ok && written;
    }
    if (ok && finished) printf("%s/%s\n", o->out, r->policy.name);
    run_close(&r->run);
    prompts_close(&r->set), prompts_close(&r->teacher_set);
    tokenizer_free(r->t), tokenizer_free(r->teacher_t);
    while (r->n_knowledge) knowledge_free(&r->knowledge[--r->n_knowledge]);
    free(r->knowledge), free(r->chosen), free(r->asked), free(r->rollouts), free(r->teacher_rollouts), free(r);
    return ok;
}
