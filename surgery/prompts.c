// prompts.c - records as prompts: what of a record a model is asked, and files of them for everyone who samples.
//
// What it is:  a record's conversation up to its last question, as ids, with its pictures as patches and its label beside
//              it; and the scan of whole files, so that a fault is told before step 0 and a prompt is read when its turn
//              comes.
// What it is not: samples with a loss mask (data/samples.c), answers (eval_generate.c) or rewards (reward.c).
// Read before: ../data/records.c, ../data/tasks.c.  Read next: eval_generate.c, ../grpo_run.c.
#include "../surgr1.h"
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

// ---------------------------------------------------------------------------------------------------------- pictures

typedef struct Reader { // one record on its way
    Prompt *q;
    const Config *c;
    const Tokenizer *t;
    const PromptOptions *o;
    const char *file, *root;
} Reader;

static bool read_picture(const Reader *r, const char *path, Image *im, Err *e) {
    if (path[0] == '/') return image_read(im, path, r->o->image, e);
    return image_read_beneath(im, r->root, path, AT(.file = r->file, .sample = r->q->record.id), r->o->image, e);
}

// Sizes, grids and patches. A blind run keeps the places of the pictures; zero is the mean after normalisation.
static bool read_pictures(const Reader *r, Err *e) {
    Prompt *q = r->q;
    const VisionConfig *v = &r->c->vision;
    size_t row = (size_t)(v->channels * v->temporal * v->patch * v->patch), rows = 0;
    for (int k = 0; k < q->record.n_images; k++) {
        Image im;
        Grid *g = &q->grids[k];
        float *pixels;
        if (!read_picture(r, q->record.images[k], &im, e)) return false;
        q->sizes[k] = (FrameSize){.width = im.width, .height = im.height};
        bool ok = image_to_patches(v, &im, q->record.images[k], &pixels, g, e);
        image_free(&im);
        if (!ok) return false;
        size_t more = (size_t)grid_patches(*g);
        if (r->o->blind) memset(pixels, 0, more * row * sizeof *pixels);
        q->pixels = grow_or_die(q->pixels, (rows + more) * row, sizeof *pixels, "the patches of the pictures");
        memcpy(q->pixels + rows * row, pixels, more * row * sizeof *pixels);
        free(pixels), rows += more;
        q->sizes[k].resized_width = g->w * v->patch, q->sizes[k].resized_height = g->h * v->patch;
        q->tokens[k] = grid_patches(*g) / (v->merge * v->merge);
    }
    return true;
}

// The same without the patches, from the headers alone.
static bool measure_pictures(const Reader *r, Err *e) {
    Prompt *q = r->q;
    const VisionConfig *v = &r->c->vision;
    for (int k = 0; k < q->record.n_images; k++) {
        const char *path = q->record.images[k];
        FrameSize *s = &q->sizes[k];
        ImageFacts f;
        char *data = NULL;
        size_t size = 0;
        int fd = path[0] == '/'
                     ? open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY)
                     : open_beneath(r->root, path, "E-DS-04", AT(.file = r->file, .sample = q->record.id), e);
        if (fd < 0)
            return err_set(e, "E-IO-01", AT(.file = r->file, .sample = q->record.id),
                           "expected a readable file %s; found %s; do: check the path", quoted(path, strlen(path)),
                           error_text(errno));
        bool ok = file_read_fd(fd, path, LIMIT_IMAGE_BYTES, "E-IM-01", &data, &size, e);
        close(fd);
        ok = ok && image_check(&f, (const uint8_t *)data, size, path, true, e);
        free(data);
        if (!ok) return false;
        bool turned = r->o->image.apply_orientation && f.orientation >= 5;
        s->width = turned ? f.height : f.width, s->height = turned ? f.width : f.height;
        if (!smart_resize(s->height, s->width, v->patch * v->merge, v->min_pixels, v->max_pixels, &s->resized_height,
                          &s->resized_width, path, e))
            return false;
        q->grids[k] = (Grid){1, s->resized_height / v->patch, s->resized_width / v->patch};
        q->tokens[k] = grid_patches(q->grids[k]) / (v->merge * v->merge);
    }
    return true;
}

// --------------------------------------------------------------------------------------------------------------- ids

// The options behind the question: taken away or added. They stand at its end, a line each.
static void set_options(Prompt *q, const PromptOptions *o, Message *user) {
    const TaskItem *item = &q->task.item;
    q->options = -1;
    if (o->form == EVAL_AS_WRITTEN || !item->n_choices || !user->n_parts) return;
    Part *last = (Part *)(uintptr_t)&user->parts[user->n_parts - 1];
    if (last->image >= 0) return;
    q->options = o->form == EVAL_CHOICE;
    Text options = {0}, text = {0};
    for (int i = 0; i < item->n_choices; i++) text_addf(&options, "\n%c. %s", 'A' + i, item->choices[i]);
    bool there = last->len >= options.len && !memcmp(last->text + last->len - options.len, options.p, options.len);
    if (there && o->form == EVAL_OPEN) last->len -= options.len;
    if (!there && o->form == EVAL_CHOICE) {
        text_add(&text, last->text, last->len), text_add(&text, options.p, options.len);
        last->text = q->question = text.p, last->len = text.len;
    }
    text_free(&options);
}

static bool make_ids(const Reader *r, Err *e) {
    Prompt *q = r->q;
    const PromptOptions *o = r->o;
    const Record *rec = &q->record;
    int n = rec->n;
    while (n && strcmp(rec->messages[n - 1].role, "user")) n--;
    Where at = AT(.file = r->file, .line = rec->line, .sample = rec->id);
    if (!n) return err_set(e, "E-DS-02", at, "expected a question of the user; found none; do: give it as messages");
    set_options(q, o, &rec->messages[n - 1]);
    int pictures = 0; // of the prompt: they come first
    for (int i = 0; i < n; i++)
        for (int k = 0; k < rec->messages[i].n_parts; k++) pictures += rec->messages[i].parts[k].image >= 0;
    Message *messages = alloc_or_die((size_t)n + 1, sizeof *messages, "a conversation");
    const char *said = o->system ? o->system : o->or_system;
    for (int i = 0; !o->system && i < n; i++)
        if (!strcmp(rec->messages[i].role, "system")) said = NULL;
    Part system = {.image = -1, .text = said, .len = said ? strlen(said) : 0};
    int count = 0;
    if (said) messages[count++] = (Message){.role = "system", .parts = &system, .n_parts = 1};
    for (int i = 0; i < n; i++)
        if (!said || strcmp(rec->messages[i].role, "system")) messages[count++] = rec->messages[i];
    bool ok = chat_encode(r->t, messages, count, true, q->tokens, pictures, o->trust_text, &q->ids, e);
    free(messages);
    if (!ok) return false;
    // pictures of turns that are not asked have no places in the prompt
    int64_t places = 0, pad = 0;
    for (int64_t k = 0; k < q->ids.n; k++) pad += q->ids.p[k] == r->c->image_id;
    while (q->n_grids < rec->n_images && places < pad) places += q->tokens[q->n_grids++];
    int64_t room = r->c->context < LIMIT_CONTEXT ? r->c->context : LIMIT_CONTEXT;
    return q->ids.n + o->new_tokens <= room ||
           err_set(e, "E-ME-02", at,
                   "expected at most %lld tokens in all; found %lld of the prompt and %lld new ones; do: lower "
                   "--max-pixels or --max-new-tokens",
                   (long long)room, (long long)q->ids.n, (long long)o->new_tokens);
}

bool prompt_read(Prompt *q, const Config *c, const Tokenizer *t, const PromptOptions *o, const char *file,
                 const char *root, const Piece *p, bool decode, Err *e) {
    Reader r = {q, c, t, o, file, root};
    *q = (Prompt){.len = p->len};
    // what cannot be scored is not worked on
    if (!task_record_read(&q->task, p->text, p->len, file, p->number, e)) return false;
    RecordOptions options = {.boxes = true, .absolute_images = true};
    if (!record_parse_piece(&q->record, p, file, options, e)) {
        task_record_free(&q->task);
        return false;
    }
    q->text = alloc_or_die(p->len + 1, 1, "a record");
    memcpy(q->text, p->text, p->len);
    bool ok = (decode ? read_pictures(&r, e) : measure_pictures(&r, e)) &&
              record_place_boxes(&q->record, q->sizes, e) && make_ids(&r, e);
    TaskItem *item = &q->task.item;
    if (ok && q->record.n_images && (item->width < 1 || item->height < 1))
        item->width = q->sizes[0].width, item->height = q->sizes[0].height;
    if (!ok) prompt_free(q);
    return ok;
}

void prompt_free(Prompt *q) {
    if (!q->text) return;
    record_free(&q->record), task_record_free(&q->task), ids_free(&q->ids);
    free(q->text), free(q->question), free(q->pixels);
    *q = (Prompt){.len = 0};
}

Request prompt_request(const Prompt *q, uint32_t stream, int completions) {
    return (Request){.ids = q->ids.p,
                     .n = q->ids.n,
                     .pixels = q->pixels,
                     .grids = q->grids,
                     .n_grids = q->n_grids,
                     .stream = stream,
                     .completions = completions};
}

// -------------------------------------------------------------------------------------------------------------- files

typedef struct Scan {
    PromptSet *s;
    int file;
    int64_t cap;
} Scan;

static bool labelled(const TaskItem *t) {
    enum AnswerKind k = task_info(t->task)->kind;
    if (k == ANSWER_BOX) return t->n_boxes > 0;
    if (k == ANSWER_BOXES) return t->n_boxes >= 0;
    return (t->answer && *t->answer) || t->n_boxes > 0;
}

static bool scan_piece(void *ctx, const Piece *p, Err *e) {
    Scan *scan = ctx;
    PromptSet *s = scan->s;
    const char *file = s->files[scan->file];
    Prompt q;
    if (!prompt_read(&q, s->c, s->t, &s->options, file, s->roots[scan->file], p, false, e)) return false;
    PromptInfo info = {.task = q.task.item.task,
                       .file = scan->file,
                       .crc = crc32c(0, p->text, p->len),
                       .offset = p->offset,
                       .bytes = (int64_t)p->len,
                       .line = p->line,
                       .number = p->number,
                       .tokens = q.ids.n};
    for (int k = 0; k < q.n_grids; k++) info.patches += grid_patches(q.grids[k]);
    size_t id = strlen(q.record.id) + 1;
    info.id = alloc_or_die(id, 1, "the id of a prompt");
    memcpy(info.id, q.record.id, id);
    bool ok = labelled(&q.task.item) ||
              err_set(e, "E-DS-02", AT(.file = file, .line = p->line, .sample = info.id),
                      "expected a label to reward; found none; do: give \"answer\" or \"boxes\" (data/README.md)");
    prompt_free(&q);
    if (!ok) return free(info.id), false;
    if (s->n == scan->cap) {
        scan->cap = scan->cap ? 2 * scan->cap : 256;
        s->prompts = grow_or_die(s->prompts, (size_t)scan->cap, sizeof *s->prompts, "the list of prompts");
    }
    s->prompts[s->n++] = info;
    if (info.tokens > s->longest) s->longest = info.tokens;
    if (info.patches > s->most_patches) s->most_patches = info.patches;
    return true;
}

bool prompts_open(PromptSet *s, const Tokenizer *t, const Config *c, const char *const *files, int n,
                  const char *image_root, PromptOptions o, Err *e) {
    *s = (PromptSet){.options = o, .t = t, .c = c, .files = files, .n_files = n};
    s->fds = alloc_or_die((size_t)n + 1, sizeof *s->fds, "the list of data files");
    s->roots = alloc_or_die((size_t)n + 1, sizeof *s->roots, "the list of data files");
    for (int i = 0; i < n; i++) s->fds[i] = -1;
    Scan scan = {.s = s};
    Sha256 hash;
    bool ok = true;
    sha256_start(&hash);
    for (; ok && scan.file < n; scan.file++) {
        int i = scan.file;
        ok = image_root ? snprintf(s->roots[i], sizeof s->roots[i], "%s", image_root) < (int)sizeof s->roots[i] ||
                              err_set(e, "E-IO-01", AT(.file = "--image-root"),
                                      "expected a path of at most %lld bytes; found a longer one; do: move the folder",
                                      (long long)LIMIT_PATH_BYTES)
                        : path_dir(s->roots[i], sizeof s->roots[i], files[i], e);
        ok = ok && pieces_read(files[i], &hash, scan_piece, &scan, e);
        s->fds[i] = ok ? open(files[i], O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY) : -1;
    }
    sha256_finish(&hash, s->sha256);
    if (ok && !s->n)
        ok = err_set(e, "E-DS-02", AT(.file = n ? files[0] : "data"),
                     "expected at least one prompt; found none; do: check the file");
    if (!ok) prompts_close(s);
    return ok;
}

void prompts_close(PromptSet *s) {
    for (int i = 0; s->fds && i < s->n_files; i++)
        if (s->fds[i] >= 0) close(s->fds[i]);
    for (int64_t i = 0; i < s->n; i++) free(s->prompts[i].id);
    free(s->prompts), free(s->fds), free(s->roots);
    *s = (PromptSet){.n = 0};
}

static bool load(const PromptSet *s, int64_t i, Prompt *q, bool decode, Err *e) {
    CHECK(i >= 0 && i < s->n, "prompt %lld of %lld", (long long)i, (long long)s->n);
    const PromptInfo *info = &s->prompts[i];
    size_t n = (size_t)info->bytes, done = 0;
    char *text = alloc_or_die(n + 1, 1, "the text of a prompt");
    while (done < n) {
        ssize_t got = pread(s->fds[info->file], text + done, n - done, (off_t)info->offset + (off_t)done);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) break;
        done += (size_t)got;
    }
    Piece p = {.text = text, .len = n, .number = info->number, .line = info->line, .col = 1, .offset = info->offset};
    bool ok =
        (done == n && crc32c(0, text, n) == info->crc) ||
        err_set(e, "E-IO-05", AT(.file = s->files[info->file], .line = info->line),
                "expected the data as they were when they were scanned; found them changed; do: start again, and leave "
                "data files alone during a run");
    ok = ok && prompt_read(q, s->c, s->t, &s->options, s->files[info->file], s->roots[info->file], &p, decode, e);
    free(text);
    if (!ok || q->ids.n == info->tokens) return ok;
    prompt_free(q);
    return err_set(e, "E-IO-05", AT(.file = s->files[info->file], .line = info->line, .sample = info->id),
                   "expected %lld tokens as in the scan; found %lld; do: start again, and leave pictures alone during "
                   "a run",
                   (long long)info->tokens, (long long)q->ids.n);
}

bool prompts_load(const PromptSet *s, int64_t i, Prompt *q, Err *e) { return load(s, i, q, true, e); }
bool prompts_measure(const PromptSet *s, int64_t i, Prompt *q, Err *e) { return load(s, i, q, false, e); }
