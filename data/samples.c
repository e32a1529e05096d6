// samples.c - training samples: what a data set holds, measured before the first step, and each sample when its turn
// comes.
//
// What it is:  the scan (sizes from image headers, ids by really encoding, so that lengths are known and nothing is ever
//              cut), the loss mask, units of samples that show the same pictures, the loading of one sample, and the order
//              of an epoch.
// What it is not: forms (forms.c), packing of samples into batches or the loss (train.c).
// Read before: surgr1.h, section data/samples.c; forms.c.  Read next: ../train.c.
//
// The loss mask. A target is an id of a trained turn's text or the <|im_end|> that closes it. Trained turns are tokenised
// apart (chat_encode_turns), so their ids are known by construction and are those a sampler would have to draw after the
// same prompt. The header "<|im_start|>assistant\n", the newline behind <|im_end|>, other turns and pictures are context.
//
// The scan has every sample's ids in its hands. It keeps them, up to KEPT_BYTES, so that a step of many short questions
// does not parse and tokenise the same records again and again.
#include "../surgr1.h"
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct DataFile {
    char path[1100], root[1100]; // the file; where its relative image paths start
    int fd;
    struct stat seen; // when it was scanned
} DataFile;

enum { KEPT_BYTES = 256 << 20 };

static bool same_file(const struct stat *a, const struct stat *b) {
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino && a->st_size == b->st_size &&
           a->st_mtim.tv_sec == b->st_mtim.tv_sec && a->st_mtim.tv_nsec == b->st_mtim.tv_nsec;
}

static bool file_changed(const DataFile *f, int64_t line, Err *e) {
    return err_set(e, "E-IO-05", AT(.file = f->path, .line = line),
                   "expected the data as they were when they were scanned; found them changed; do: start again, and "
                   "leave data files alone during a run");
}

// -------------------------------------------------------------------------------------------------------- pictures
// RFC 4648 section 4: groups of four, padded, nothing else. Returns the number of bytes, or -1.
static int64_t base64_decode(const char *text, size_t len, uint8_t *out) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    int64_t n = 0;
    if (len % 4) return -1;
    for (size_t i = 0; i < len; i += 4) {
        bool last = i + 4 == len;
        int pad = last && text[i + 3] == '=' ? text[i + 2] == '=' ? 2 : 1 : 0;
        uint32_t bits = 0;
        for (int k = 0; k < 4; k++) {
            const char *digit = k < 4 - pad && text[i + k] ? strchr(digits, text[i + k]) : digits;
            if (!digit || (k < 4 - pad && !text[i + k])) return -1;
            bits = bits << 6 | (uint32_t)(digit - digits);
        }
        if (bits & ((1u << 8 * pad) - 1)) return -1; // bits that belong to no byte must be zero
        for (int k = 0; k < 3 - pad; k++) out[n++] = (uint8_t)(bits >> (16 - 8 * k));
    }
    return n;
}

static bool data_uri(const char *uri, Where at, char **data, size_t *size, Err *e) {
    const char *comma = strchr(uri, ',');
    size_t head = comma ? (size_t)(comma - uri) : 0;
    bool named = head > 18 && !memcmp(uri, "data:image/", 11) && !memcmp(comma - 7, ";base64", 7);
    if (!named)
        return err_set(e, "E-DS-04", at, "expected data:image/png;base64, or data:image/jpeg;base64,; found %s; do: %s",
                       quoted(uri, head ? head : strlen(uri)), "write the picture in base64 (RFC 4648)");
    size_t len = strlen(comma + 1);
    char *bytes = alloc_or_die(len / 4 * 3 + 1, 1, "a picture in base64");
    int64_t n = base64_decode(comma + 1, len, (uint8_t *)bytes);
    if (n < 1) {
        free(bytes);
        return err_set(e, "E-DS-04", at,
                       "expected base64 with its padding (RFC 4648); found %zu other characters; do: %s", len,
                       "encode the file again, on one line");
    }
    *data = bytes, *size = (size_t)n;
    return true;
}

// The bytes of one picture; with `head` only the first ones of a larger file, and *whole says whether that was all.
static bool picture_bytes(const DataFile *f, const char *path, Where at, size_t head, char **data, size_t *size,
                          bool *whole, Err *e) {
    *whole = true;
    if (!strncmp(path, "data:", 5)) return data_uri(path, at, data, size, e);
    if (path[0] == '/' && !head) return file_read(path, LIMIT_IMAGE_BYTES, "E-IM-01", data, size, e);
    int fd = path[0] == '/' ? open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY)
                            : open_beneath(f->root, path, "E-DS-04", at, e);
    if (fd < 0)
        return err_set(e, "E-IO-01", at, "expected a readable file %s; found %s; do: check the path",
                       quoted(path, strlen(path)), error_text(errno));
    struct stat s;
    bool ok = true;
    if (head && !fstat(fd, &s) && S_ISREG(s.st_mode) && s.st_size > (off_t)head && s.st_size <= LIMIT_IMAGE_BYTES) {
        *data = alloc_or_die(head, 1, "the head of a picture");
        *whole = false, *size = 0;
        for (ssize_t got = 1; *size < head && got > 0;) {
            do got = pread(fd, *data + *size, head - *size, (off_t)*size);
            while (got < 0 && errno == EINTR);
            if (got > 0) *size += (size_t)got;
        }
        if (*size < head) {
            free(*data);
            ok = err_set(e, "E-IO-03", AT(.file = path, BYTE(*size)),
                         "expected to read on; found a read error; do: check the disk");
        }
    } else ok = file_read_fd(fd, path, LIMIT_IMAGE_BYTES, "E-IM-01", data, size, e);
    close(fd);
    return ok;
}

static void picture_name(char *name, size_t size, const Record *r, int k) { // for messages
    if (strncmp(r->images[k], "data:", 5)) snprintf(name, size, "%s", r->images[k]);
    else snprintf(name, size, "%s:%lld: picture %d", r->doc.file, (long long)r->line, k + 1);
}

// ----------------------------------------------------------------------------------------------------- measurement
typedef struct Measured {
    FrameSize sizes[16];
    Grid grids[16];
    int64_t tokens[16], patches;
    float *pixels; // when decoded
} Measured;

// From headers alone. 64 KiB hold the headers of nearly every picture; where they do not, the whole file is read.
static bool picture_size(const DataFile *f, const char *path, const char *name, Where at, ImageOptions o, FrameSize *s,
                         Err *e) {
    ImageFacts facts;
    for (size_t head = 65536;; head = 0) {
        char *data;
        size_t size;
        bool whole;
        Err own = {0};
        if (!picture_bytes(f, path, at, head, &data, &size, &whole, e)) return false;
        bool ok = image_check(&facts, (const uint8_t *)data, size, name, true, &own);
        free(data);
        if (ok) break;
        if (!whole) continue;
        *e = own;
        return false;
    }
    bool turned = o.apply_orientation && facts.orientation >= 5;
    s->width = turned ? facts.height : facts.width, s->height = turned ? facts.width : facts.height;
    return true;
}

static bool picture_decode(const DataFile *f, const char *path, const char *name, Where at, ImageOptions o, Image *im,
                           Err *e) {
    char *data;
    size_t size;
    bool whole;
    if (!picture_bytes(f, path, at, 0, &data, &size, &whole, e)) return false;
    bool ok = image_decode(im, (const uint8_t *)data, size, name, o, e);
    free(data);
    return ok;
}

// Sizes, grids and tokens of all pictures of a record, with `decode` the patches too; then its boxes are placed. known: the
// sizes, where they were measured already, or NULL.
static bool measure(const Dataset *d, const DataFile *f, Record *r, const FrameSize *known, bool decode, Measured *m,
                    Err *e) {
    const VisionConfig *v = &d->c->vision;
    size_t row = (size_t)(v->channels * v->temporal * v->patch * v->patch);
    Where at = AT(.file = f->path, .line = r->line, .sample = r->id);
    *m = (Measured){0};
    for (int k = 0; k < r->n_images; k++) {
        FrameSize *s = &m->sizes[k];
        Grid *g = &m->grids[k];
        char name[1400];
        picture_name(name, sizeof name, r, k);
        if (known) *s = known[k];
        if (!decode) {
            if (!known && (!picture_size(f, r->images[k], name, at, d->options.image, s, e) ||
                           !smart_resize(s->height, s->width, v->patch * v->merge, v->min_pixels, v->max_pixels,
                                         &s->resized_height, &s->resized_width, name, e)))
                return false;
            *g = (Grid){1, s->resized_height / v->patch, s->resized_width / v->patch};
        } else {
            Image im;
            float *pixels;
            if (!picture_decode(f, r->images[k], name, at, d->options.image, &im, e)) return false;
            bool ok = image_to_patches(v, &im, name, &pixels, g, e);
            *s = (FrameSize){im.width, im.height, g->w * v->patch, g->h * v->patch};
            image_free(&im);
            if (!ok) return false;
            size_t more = (size_t)grid_patches(*g), have = (size_t)m->patches;
            m->pixels = grow_or_die(m->pixels, (have + more) * row, sizeof *pixels, "the patches of the pictures");
            memcpy(m->pixels + have * row, pixels, more * row * sizeof *pixels);
            free(pixels);
        }
        m->patches += grid_patches(*g);
        m->tokens[k] = grid_patches(*g) / (v->merge * v->merge);
    }
    return record_place_boxes(r, m->sizes, e);
}

// Ids and, with `trained`, the loss mask of a record. Returns through *targets how many ids are targets.
static bool encode(const Dataset *d, const Record *r, const Measured *m, Ids *ids, uint8_t **trained, int64_t *targets,
                   Err *e) {
    Turn *turns = alloc_or_die((size_t)r->n, sizeof *turns, "the turns of a sample");
    int32_t pad = tokenizer_added(d->t, "<|image_pad|>");
    for (int i = 0; i < r->n; i++) turns[i].apart = r->trained[i];
    bool ok =
        chat_encode_turns(d->t, r->messages, r->n, false, m->tokens, r->n_images, d->options.trust_text, turns, ids, e);
    uint8_t *mask = ok ? alloc_or_die((size_t)ids->n, 1, "the loss mask of a sample") : NULL;
    *targets = 0;
    for (int i = 0; ok && i < r->n; i++)
        for (int64_t k = turns[i].first; turns[i].apart && k < turns[i].last; k++)
            if (ids->p[k] != pad) mask[k] = 1, ++*targets; // with trust_text a picture can stand in an answer
    if (ok && trained) *trained = mask;
    else free(mask);
    free(turns);
    return ok;
}

// Ids up to the end of the last picture: what samples with the same pictures may have in common. 0 when there is none, or a
// target in front of it: several samples then learn there, and one computed row cannot stand for all.
static int64_t beginning(const Dataset *d, const Ids *ids, const uint8_t *trained) {
    int32_t pad = tokenizer_added(d->t, "<|image_pad|>"), end = tokenizer_added(d->t, "<|vision_end|>");
    int64_t n = ids->n;
    while (n > 0 && ids->p[n - 1] != pad) n--;
    if (n && n < ids->n && ids->p[n] == end) n++;
    return n < ids->n && !(n && memchr(trained, 1, (size_t)n)) ? n : 0;
}

static bool bad_cells(const Record *r, const Json *v, Err *e, int64_t rows, const char *found) {
    return err_set(
        e, "E-DS-02", json_at(&r->doc, v, "cells"),
        "expected one picture and a list of %lld words or nulls, one for each of its rows; found %s; do: write "
        "them from left to right and from top to bottom",
        (long long)rows, found);
}

// The word of a cell as the model would begin to say it: behind a space, and "cystic_duct" in two words.
static int32_t word_id(const Dataset *d, const char *word, size_t len) {
    Text text = {0};
    Ids ids = {0};
    text_add(&text, " ", 1), text_add(&text, word, len);
    for (size_t i = 1; i < text.len; i++)
        if (text.p[i] == '_') text.p[i] = ' ';
    tokenizer_encode(d->t, text.p, text.len, false, &ids);
    int32_t id = ids.n ? ids.p[0] : -1;
    text_free(&text), ids_free(&ids);
    return id;
}

// The member "cells": *align [rows] has the id that each row of the picture is to predict, -1 for null, and *aligned counts
// the others. NULL and 0 when the record has none, or when nobody asked.
static bool read_cells(const Dataset *d, const Record *r, const Measured *m, int32_t **align, int64_t *aligned,
                       Err *e) {
    const Json *cells = d->options.align ? json_get(r->doc.root, "cells") : NULL;
    char found[80];
    *align = NULL, *aligned = 0;
    if (!cells || cells->type == JSON_NULL) return true;
    if (r->n_images != 1) {
        snprintf(found, sizeof found, "%d pictures", r->n_images);
        return bad_cells(r, cells, e, m->tokens[0], found);
    }
    int64_t rows = m->tokens[0], k = 0;
    snprintf(found, sizeof found, "%u entries", cells->count);
    if (cells->type != JSON_ARRAY || cells->count != rows)
        return bad_cells(r, cells, e, rows, cells->type == JSON_ARRAY ? found : json_shown(cells));
    int32_t *ids = alloc_or_die((size_t)rows, sizeof *ids, "the cells of a sample");
    const Json *known[16] = {0}; // words come again and again: each is looked up once while the list is short
    int32_t known_ids[16];
    int n_known = 0;
    for (const Json *v = cells->child; v; v = v->next, k++) {
        int w = 0;
        ids[k] = -1;
        if (v->type == JSON_NULL) continue;
        if (v->type != JSON_STRING || !v->len || v->len > 100) {
            free(ids);
            return bad_cells(r, v, e, rows, json_shown(v));
        }
        while (w < n_known && (known[w]->len != v->len || memcmp(known[w]->str, v->str, v->len))) w++;
        ids[k] = w < n_known ? known_ids[w] : word_id(d, v->str, v->len);
        if (w == n_known && w < 16) known[w] = v, known_ids[w] = ids[k], n_known++;
        *aligned += ids[k] >= 0;
    }
    *align = ids;
    return true;
}

// ------------------------------------------------------------------------------------------------------------ kept
// What the scan made of a record, in one piece: grids (t, h, w), ids (an id that is trained as ~id), targets of the
// picture's rows.
static size_t kept_size(const SampleInfo *info, int64_t rows) {
    return (size_t)(3 * info->pictures + info->tokens + (info->aligned ? rows : 0)) * sizeof(int32_t);
}
static int64_t picture_rows(const Dataset *d, int64_t patches) {
    return patches / (d->c->vision.merge * d->c->vision.merge);
}

static void keep(Dataset *d, SampleInfo *info, const Measured *m, const Ids *ids, const uint8_t *trained,
                 const int32_t *align) {
    int64_t rows = picture_rows(d, info->patches);
    size_t bytes = kept_size(info, rows);
    if (d->options.forget || d->kept + bytes > KEPT_BYTES) return;
    int32_t *p = info->kept = alloc_or_die(bytes, 1, "the ids of a sample");
    d->kept += bytes;
    for (int k = 0; k < info->pictures; k++) {
        *p++ = (int32_t)m->grids[k].t, *p++ = (int32_t)m->grids[k].h, *p++ = (int32_t)m->grids[k].w;
    }
    for (int64_t i = 0; i < ids->n; i++) *p++ = trained[i] ? ~ids->p[i] : ids->p[i];
    if (info->aligned) memcpy(p, align, (size_t)rows * sizeof *p);
}

static void take_kept(const Dataset *d, const SampleInfo *info, Sample *s) {
    const int32_t *p = info->kept;
    int64_t rows = picture_rows(d, info->patches);
    for (int k = 0; k < info->pictures; k++, p += 3) s->grids[k] = (Grid){p[0], p[1], p[2]};
    s->n_grids = info->pictures;
    s->ids = (Ids){alloc_or_die((size_t)info->tokens, sizeof *s->ids.p, "a sample"), info->tokens, info->tokens};
    s->trained = alloc_or_die((size_t)info->tokens, 1, "the loss mask of a sample");
    for (int64_t i = 0; i < info->tokens; i++, p++)
        s->ids.p[i] = *p < 0 ? ~*p : *p, s->trained[i] = *p < 0, s->targets += *p < 0;
    if (!info->aligned) return;
    s->align = alloc_or_die((size_t)rows, sizeof *s->align, "the cells of a sample");
    memcpy(s->align, p, (size_t)rows * sizeof *p);
}

// ------------------------------------------------------------------------------------------------------------ scan
enum { BEGINNINGS = 8 };
typedef struct Beginning { // of samples of one unit
    int64_t lead, n;       // the first of them; ids
    int32_t *ids;          // [n]
    bool cells;            // one of them brought targets for the picture
} Beginning;
typedef struct Scan {
    Dataset *d;
    int file;
    int64_t cap, units_cap, limit;
    Err fatal, first_bad;
    // of the record before: its pictures, each path with its zero; their sizes
    Text pictures;
    FrameSize sizes[16];
    int64_t in_unit; // samples with these pictures so far, in the last unit; 0: a new one begins
    Beginning begun[BEGINNINGS];
    int n_begun;
} Scan;

// Where the next sample belongs: a new unit or the last one, and in it beside the first sample whose beginning is the same.
static void place_in_unit(Scan *s, SampleInfo *info, const Ids *ids) {
    Dataset *d = s->d;
    info->lead = d->n;
    if (!d->options.group || !info->pictures || s->in_unit == UNIT_SAMPLES) s->in_unit = 0;
    if (!s->in_unit++) {
        if (d->n_units + 1 >= s->units_cap) {
            s->units_cap = s->units_cap ? 2 * s->units_cap : 256;
            d->units = grow_or_die(d->units, (size_t)s->units_cap, sizeof *d->units, "the list of units");
        }
        d->units[d->n_units++] = d->n, s->n_begun = 0;
    }
    if (!d->options.group || !info->shared) return;
    size_t bytes = (size_t)info->shared * sizeof *ids->p;
    int k = 0;
    while (k < s->n_begun && (s->begun[k].n != info->shared || memcmp(s->begun[k].ids, ids->p, bytes))) k++;
    Beginning *b = k < BEGINNINGS ? &s->begun[k] : NULL;
    if (!b) return; // too many kinds: this one stands alone
    if (k == s->n_begun) {
        s->n_begun++;
        b->lead = d->n, b->n = info->shared, b->cells = false;
        b->ids = grow_or_die(b->ids, (size_t)b->n, sizeof *b->ids, "the beginning of a sample");
        memcpy(b->ids, ids->p, bytes);
    }
    info->lead = b->lead;
    if (b->cells) info->aligned = 0; // the picture is computed once
    b->cells |= info->aligned > 0;
}

static void scan_free(Scan *s) {
    text_free(&s->pictures);
    for (int k = 0; k < BEGINNINGS; k++) free(s->begun[k].ids);
}

// Whether every picture has its place among the ids: what the model would refuse in the middle of a run. An error of the
// prompt gets the place of the sample.
static bool encode_whole(const Dataset *d, const Record *r, const Measured *m, Where at, Ids *ids, uint8_t **trained,
                         int64_t *targets, Err *e) {
    bool ok = encode(d, r, m, ids, trained, targets, e);
    if (ok) {
        int64_t next;
        int32_t *pos = alloc_or_die((size_t)(3 * ids->n), sizeof *pos, "the positions of a sample");
        ok = mrope_positions(d->c, ids->p, ids->n, ids->n, m->grids, r->n_images, pos, &next, e);
        free(pos);
    }
    if (ok || (e->file[0] && strcmp(e->file, "prompt"))) return ok;
    snprintf(e->file, sizeof e->file, "%s", at.file), snprintf(e->field, sizeof e->field, "%s", at.sample);
    memcpy(e->field_kind, "sample", sizeof "sample");
    e->line = at.line;
    return false;
}

// One usable sample more.
static void add_sample(Scan *s, SampleInfo info, const Record *r, const Measured *m, const Ids *ids,
                       const uint8_t *trained, const int32_t *align) {
    Dataset *d = s->d;
    if (d->n == s->cap) {
        s->cap = s->cap ? 2 * s->cap : 256;
        d->samples = grow_or_die(d->samples, (size_t)s->cap, sizeof *d->samples, "the list of samples");
    }
    size_t id = strlen(r->id) + 1;
    info.id = alloc_or_die(id, 1, "the id of a sample");
    memcpy(info.id, r->id, id), info.named = r->named;
    place_in_unit(s, &info, ids);
    keep(d, &info, m, ids, trained, align);
    d->samples[d->n++] = info;
    d->tokens += info.tokens, d->targets += info.targets, d->patches += info.patches, d->aligned += info.aligned;
    if (info.tokens > d->longest) d->longest = info.tokens;
    if (info.patches > d->most_patches) d->most_patches = info.patches;
}

// Sizes of the record's pictures; those of the record before are taken again when it shows the same.
static bool scan_pictures(Scan *s, Record *r, Measured *m, Err *e) {
    Text pictures = {0};
    for (int k = 0; k < r->n_images; k++) text_add(&pictures, r->images[k], strlen(r->images[k]) + 1);
    bool same = r->n_images && pictures.len == s->pictures.len && !memcmp(pictures.p, s->pictures.p, pictures.len);
    bool ok = measure(s->d, &s->d->files[s->file], r, same ? s->sizes : NULL, false, m, e);
    if (ok && !same) {
        text_free(&s->pictures);
        s->pictures = pictures, s->in_unit = 0;
        memcpy(s->sizes, m->sizes, sizeof s->sizes);
    } else text_free(&pictures);
    return ok;
}

static bool scan_record(void *ctx, Record *r, Err *e) {
    Scan *s = ctx;
    Dataset *d = s->d;
    const DataFile *f = &d->files[s->file];
    Where at = AT(.file = f->path, .line = r->line, .sample = r->id);
    Measured m;
    Ids ids = {0};
    uint8_t *trained = NULL;
    int32_t *align = NULL;
    SampleInfo info = {.file = s->file, .offset = r->offset, .bytes = r->bytes, .line = r->line, .weight = r->weight};
    if (s->fatal.code[0]) return true; // the scan failed: nothing more counts
    bool ok = scan_pictures(s, r, &m, e) && encode_whole(d, r, &m, at, &ids, &trained, &info.targets, e) &&
              read_cells(d, r, &m, &align, &info.aligned, e);
    info.tokens = ids.n, info.patches = m.patches, info.pictures = r->n_images;
    if (ok && !info.targets)
        ok = err_set(e, "E-DS-02", at,
                     "expected an answer to learn; found %s; do: add an assistant turn that is not \"loss\": false",
                     strcmp(r->messages[r->n - 1].role, "assistant") ? "a conversation that ends with a question"
                                                                     : "no trained turn");
    if (ok && info.tokens > s->limit) {
        int64_t pictures = 0;
        for (int k = 0; k < r->n_images; k++) pictures += m.tokens[k];
        if (d->options.drop_long) d->dropped_long++;
        else
            ok = err_set(e, "E-DS-07", at,
                         "expected at most %lld tokens; found %lld (%lld of pictures); do: raise the limit, lower "
                         "--max-pixels, or drop long samples",
                         (long long)s->limit, (long long)info.tokens, (long long)pictures);
    } else if (ok) {
        info.shared = beginning(d, &ids, trained);
        add_sample(s, info, r, &m, &ids, trained, align);
    }
    ids_free(&ids), free(trained), free(align);
    return ok;
}

// What is wrong with one sample alone may be dropped with it; a full memory, a broken tokenizer or a changing file may not,
// and a long sample has its own option.
static bool can_drop(const Err *e) {
    static const char *const kinds[] = {"E-DS-", "E-IM-", "E-JS-", "E-IO-01", "E-IO-02"};
    if (!strcmp(e->code, "E-DS-07")) return false;
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++)
        if (!strncmp(e->code, kinds[k], strlen(kinds[k]))) return true;
    return false;
}

static void scan_bad(void *ctx, const Err *e) {
    Scan *s = ctx;
    if (s->fatal.code[0]) return;
    if (!can_drop(e)) {
        s->fatal = *e;
        return;
    }
    if (!s->d->dropped_bad++) s->first_bad = *e;
    Where at = AT(.file = e->file, .line = e->line, .col = e->col);
    if (!strcmp(e->field_kind, "sample")) at.sample = e->field;
    else if (e->field[0]) at.field = e->field;
    warn(e->code, at, "expected %s; found %s; do: %s (the sample is dropped)", e->expected, e->found, e->todo);
}

static bool file_scan(Scan *s, Sha256 *hash, Err *e) {
    Dataset *d = s->d;
    DataFile *f = &d->files[s->file];
    const char *path = d->options.files[s->file];
    text_free(&s->pictures); // another file may have another root
    s->in_unit = 0;
    RecordOptions options = {.boxes = true, .absolute_images = d->options.absolute_images, .data_images = true};
    struct stat now;
    if (strlen(path) >= sizeof f->path || (d->options.image_root && strlen(d->options.image_root) >= sizeof f->root))
        return err_set(e, "E-IO-01", AT(.file = path),
                       "expected a path of at most %lld bytes; found a longer one; do: %s", (long long)LIMIT_PATH_BYTES,
                       "move the file");
    snprintf(f->path, sizeof f->path, "%s", path);
    if (d->options.image_root) snprintf(f->root, sizeof f->root, "%s", d->options.image_root);
    else if (!path_dir(f->root, sizeof f->root, path, e)) return false;
    f->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (f->fd >= 0 && fstat(f->fd, &f->seen)) f->seen.st_size = -1;
    if (!records_read_all(path, options, hash, scan_record, d->options.drop_bad ? scan_bad : NULL, s, e)) return false;
    if (s->fatal.code[0]) {
        *e = s->fatal;
        return false;
    }
    return (f->fd >= 0 && !stat(path, &now) && same_file(&now, &f->seen)) || file_changed(f, 0, e);
}

static bool scan_all(Dataset *d, Err *e) {
    Scan s = {.d = d, .limit = d->options.max_tokens};
    Sha256 hash;
    sha256_start(&hash);
    if (s.limit < 1) s.limit = d->c->context < LIMIT_CONTEXT ? d->c->context : LIMIT_CONTEXT;
    bool ok = true;
    for (s.file = 0; ok && s.file < d->options.n_files; s.file++) ok = file_scan(&s, &hash, e);
    sha256_finish(&hash, d->sha256);
    scan_free(&s);
    if (!ok) return false;
    if (d->n_units) d->units[d->n_units] = d->n;
    int64_t all = d->n + d->dropped_long + d->dropped_bad;
    const Err *b = &s.first_bad;
    if (d->dropped_bad > 10 && d->dropped_bad * 100 > all)
        return err_set(e, b->code, AT(.file = b->file, .line = b->line, .col = b->col),
                       "expected at most 1 %% of bad samples; found %lld of %lld, the first: %s, not %s; do: mend the "
                       "file, or the form it is written in",
                       (long long)d->dropped_bad, (long long)all, b->found, b->expected);
    if (d->n) return true;
    return err_set(e, "E-DS-02", AT(.file = d->options.n_files ? d->options.files[0] : "data"),
                   "expected at least one sample; found none (%lld bad and %lld long ones dropped); do: check the file",
                   (long long)d->dropped_bad, (long long)d->dropped_long);
}

bool dataset_open(Dataset *d, const Tokenizer *t, const Config *c, DataOptions o, Err *e) {
    *d = (Dataset){.options = o, .t = t, .c = c};
    d->files = alloc_or_die((size_t)o.n_files + 1, sizeof *d->files, "the list of data files");
    for (int i = 0; i < o.n_files; i++) d->files[i].fd = -1;
    if (scan_all(d, e)) return true;
    dataset_close(d);
    return false;
}

static int by_id(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }
int64_t dataset_shared(const Dataset *a, const Dataset *b, const char **first) {
    char **ids = alloc_or_die((size_t)a->n + 1, sizeof *ids, "the ids of the samples");
    int64_t n = 0, shared = 0;
    *first = NULL;
    for (int64_t i = 0; i < a->n; i++)
        if (a->samples[i].named) ids[n++] = a->samples[i].id;
    qsort(ids, (size_t)n, sizeof *ids, by_id);
    for (int64_t i = 0; i < b->n; i++) {
        if (!b->samples[i].named || !bsearch(&b->samples[i].id, ids, (size_t)n, sizeof *ids, by_id)) continue;
        if (!shared++) *first = b->samples[i].id;
    }
    free(ids);
    return shared;
}

void dataset_close(Dataset *d) {
    for (int i = 0; d->files && i < d->options.n_files; i++)
        if (d->files[i].fd >= 0) close(d->files[i].fd);
    for (int64_t i = 0; i < d->n; i++) free(d->samples[i].id), free(d->samples[i].kept);
    free(d->files), free(d->units);
    free(d->samples);
    memset(d, 0, sizeof *d);
}

// --------------------------------------------------------------------------------------------------------- samples
static bool unchanged(const DataFile *f, const SampleInfo *info, Err *e) {
    struct stat now;
    return (!fstat(f->fd, &now) && same_file(&now, &f->seen)) || file_changed(f, info->line, e);
}

// The record of sample i, read from its place in the file.
static bool record_again(const Dataset *d, int64_t i, Record *r, Err *e) {
    const SampleInfo *info = &d->samples[i];
    const DataFile *f = &d->files[info->file];
    RecordOptions options = {.boxes = true, .absolute_images = d->options.absolute_images, .data_images = true};
    size_t n = (size_t)info->bytes, done = 0;
    char *text = alloc_or_die(n + 1, 1, "the text of a sample");
    while (done < n) {
        ssize_t got = pread(f->fd, text + done, n - done, (off_t)info->offset + (off_t)done);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) break;
        done += (size_t)got;
    }
    Piece p = {.text = text, .len = n, .number = 1, .line = info->line, .col = 1, .offset = info->offset};
    bool ok = done == n ? unchanged(f, info, e) : file_changed(f, info->line, e);
    ok = ok && record_parse_piece(r, &p, f->path, options, e);
    free(text);
    if (ok) snprintf(r->id, sizeof r->id, "%s", info->id); // the number of an unnamed record is the scan's
    return ok;
}

// The sample from its file, but for what the scan kept.
static bool load_again(const Dataset *d, int64_t i, bool pixels, Sample *s, Err *e) {
    const SampleInfo *info = &d->samples[i];
    const DataFile *f = &d->files[info->file];
    Record r;
    Measured m = {0};
    int64_t aligned;
    if (!record_again(d, i, &r, e)) return false;
    bool ok = measure(d, f, &r, NULL, pixels, &m, e);
    s->pixels = m.pixels;
    if (info->kept) take_kept(d, info, s);
    else if (ok) {
        s->n_grids = r.n_images;
        memcpy(s->grids, m.grids, sizeof m.grids);
        ok = encode(d, &r, &m, &s->ids, &s->trained, &s->targets, e) && read_cells(d, &r, &m, &s->align, &aligned, e);
        if (!info->aligned) free(s->align), s->align = NULL;
    }
    if (ok && (s->ids.n != info->tokens || s->targets != info->targets || m.patches != info->patches ||
               memcmp(s->grids, m.grids, sizeof m.grids)))
        ok = err_set(e, "E-IO-05", AT(.file = f->path, .line = info->line, .sample = info->id),
                     "expected %lld tokens and %lld patches as in the scan; found %lld and %lld, or another shape; do: "
                     "start again, and leave pictures alone during a run",
                     (long long)info->tokens, (long long)info->patches, (long long)s->ids.n, (long long)m.patches);
    record_free(&r);
    return ok;
}

static bool load(const Dataset *d, int64_t i, bool pixels, Sample *s, Err *e) {
    CHECK(i >= 0 && i < d->n, "sample %lld of %lld", (long long)i, (long long)d->n);
    const SampleInfo *info = &d->samples[i];
    bool ok = true;
    *s = (Sample){.weight = info->weight, .shared = info->shared};
    snprintf(s->id, sizeof s->id, "%s", info->id);
    if (info->kept && (!pixels || !info->pictures)) {
        ok = unchanged(&d->files[info->file], info, e);
        take_kept(d, info, s);
    } else ok = load_again(d, i, pixels, s, e);
    if (!ok) sample_free(s);
    return ok;
}
bool sample_load(const Dataset *d, int64_t i, Sample *s, Err *e) { return load(d, i, true, s, e); }
bool sample_load_text(const Dataset *d, int64_t i, Sample *s, Err *e) { return load(d, i, false, s, e); }

void sample_free(Sample *s) {
    ids_free(&s->ids);
    free(s->trained), free(s->align);
    free(s->pixels);
    memset(s, 0, sizeof *s);
}

bool sample_prompt(const Dataset *d, int64_t i, Ids *prompt, int *n_grids, Err *e) {
    Record r;
    Measured m;
    CHECK(i >= 0 && i < d->n, "sample %lld of %lld", (long long)i, (long long)d->n);
    if (!record_again(d, i, &r, e)) return false;
    int n = 0, pictures = 0;
    while (n < r.n && !r.trained[n]) n++;
    for (int k = 0; k < n; k++)
        for (int j = 0; j < r.messages[k].n_parts; j++) pictures += r.messages[k].parts[j].image >= 0;
    bool ok = measure(d, &d->files[d->samples[i].file], &r, NULL, false, &m, e) &&
              chat_encode(d->t, r.messages, n, true, m.tokens, r.n_images, d->options.trust_text, prompt, e);
    if (ok && n_grids) *n_grids = pictures;
    record_free(&r);
    return ok;
}

// ----------------------------------------------------------------------------------------------------------- order
// Swap-or-not (Hoang, Morris, Rogaway 2012, "An enciphering scheme based on a card shuffle"). A round has a number K; it
// pairs x with K - x mod n, and swaps the pair when a coin of the round and of the pair says so. Every round is a
// permutation of 0..n-1, whatever n, and so are all of them together. About 6 log2 n rounds mix; we take more.
int64_t shuffled(uint64_t seed, int64_t epoch, int64_t index, int64_t n) {
    CHECK(n >= 1 && index >= 0 && index < n && epoch >= 0 && epoch <= UINT32_MAX, "place %lld of %lld, epoch %lld",
          (long long)index, (long long)n, (long long)epoch);
    uint32_t rounds = 24, order = (uint32_t)RANDOM_ORDER << 24;
    for (int64_t m = n; m > 1; m /= 2) rounds += 8;
    uint64_t x = (uint64_t)index;
    for (uint32_t k = 0; k < rounds; k++) {
        Random4 w = philox(seed, UINT32_MAX, UINT32_MAX, (uint32_t)epoch, order | k);
        uint64_t bits = (uint64_t)w.v[0] << 32 | w.v[1];
        uint64_t round = (uint64_t)((unsigned __int128)bits * (uint64_t)n >> 64); // uniform in 0..n-1
        uint64_t other = round >= x ? round - x : round + (uint64_t)n - x, name = x > other ? x : other;
        Random4 coin = philox(seed, (uint32_t)name, (uint32_t)(name >> 32), (uint32_t)epoch, order | k);
        if (coin.v[0] & 1) x = other;
    }
    return (int64_t)x;
}
