// import.c - public data sets into records: splits, patients, sampling, balance, and what was left out.
//
// What it is:  everything that is the same for all sets. An importer adds questions about frames; here they get their id and
//              their picture's path, a patient on both sides is refused, classes are balanced, files and report are written.
// What it is not: the file formats (import_camma.c, import_vqa.c, import_other.c), or a video decoder: frames are extracted by the
//              user (data/README.md has the ffmpeg lines).
// Read before: import.h.  Read next: import_camma.c.
// Sources: splits from CAMMA-public/cholect50 (dataloader_pth.py, README-Splits.md), ManuelRios18/CHOLEC80-CVS-PUBLIC,
//          CAMMA-public/Endoscapes, lalithjets/Surgical_VQA, mobarakol/PitVQA, surgical-vision/SAR_RARP50-evaluation.
#include "import.h"
#include <errno.h>
#include <limits.h>
#include <sys/stat.h>
#include <unistd.h>

static const struct ImportSet {
    const char *name, *procedure, *what;
    Importer run;
    double fps; // kept when --fps does not say; 0: all that are labelled
} sets[] = {
    {"cholec80", "laparoscopic cholecystectomy", "phases and tools; phase_annotations/, tool_annotations/",
     import_cholec80, 1},
    {"cholect45", "laparoscopic cholecystectomy", "triplets as text; triplet/VID01.txt, data/", import_cholect45, 0},
    {"cholect50", "laparoscopic cholecystectomy", "triplets, phases, some boxes; labels/VID01.json, videos/",
     import_cholect50, 0},
    {"multibypass140", "laparoscopic gastric bypass", "phases and steps; labels/, BernBypass70, StrasBypass70",
     import_multibypass, 0},
    {"sar-rarp50", "radical prostatectomy", "suturing actions; action_discrete.txt, rgb/", import_sar_rarp50, 0},
    {"endoscapes", "laparoscopic cholecystectomy", "critical view of safety and boxes; train|val|test/",
     import_endoscapes, 0},
    {"endovis18-vqa", "robotic nephrectomy", "questions; seq_N/vqa/Classification/", import_endovis18_vqa, 0},
    {"endovis18-vqla", "robotic nephrectomy", "questions with boxes; seq_N/vqla/label/", import_endovis18_vqla, 0},
    {"endovis17-vqla", "robotic nephrectomy", "the same for testing; vqla/label/", import_endovis17_vqla, 0},
    {"cholec80-cvs", "laparoscopic cholecystectomy", "critical view of safety; surgeons_annotations.xlsx or .csv",
     import_cholec80_cvs, 1},
    {"autolaparo", "laparoscopic hysterectomy", "phases; labels/label_01.txt", import_autolaparo, 0},
    {"pitvqa", "endoscopic pituitary surgery", "questions; qa/video_01/00001.txt, images/", import_pitvqa, 0},
    {"psi-ava-vqa", "radical prostatectomy", "questions; Train|Val/C1_location.txt, keyframes/", import_psi_ava_vqa, 0},
    {"cholectrack20", "laparoscopic cholecystectomy", "tool boxes; Training|Validation|Testing/VID01/",
     import_cholectrack20, 0},
    {"generic", NULL, "any table, by a mapping of its columns (--spec)", import_generic, 0},
};
enum { SETS = sizeof sets / sizeof *sets };
const char *const import_names[] = {"cholec80",       "cholect45",     "cholect50",     "multibypass140",
                                    "sar-rarp50",     "endoscapes",    "endovis18-vqa", "endovis18-vqla",
                                    "endovis17-vqla", "cholec80-cvs",  "autolaparo",    "pitvqa",
                                    "psi-ava-vqa",    "cholectrack20", "generic",       NULL};

const char *import_what(const char *dataset) {
    for (int i = 0; i < SETS; i++)
        if (!strcmp(sets[i].name, dataset)) return sets[i].what;
    return NULL;
}

// ------------------------------------------------------------------------------------------------------------- splits
// Lists of video numbers: "1-40 45". NULL: none; "*": every video that no other list has. The first variant of a set is the usual
// one. patients: what its videos are called in the table of patients; all sets of one laboratory that number their videos alike
// share "camma".
typedef struct SplitTable {
    const char *dataset, *variant, *patients, *train, *val, *test;
} SplitTable;
static const SplitTable split_tables[] = {
    {"cholec80", "40-40", "camma", "1-40", NULL, "41-80"},
    {"cholec80", "32-8-40", "camma", "1-32", "33-40", "41-80"},
    {"cholec80", "40-8-32", "camma", "1-40", "41-48", "49-80"},
    {"cholec80", "40-20-20", "camma", "1-40", "41-60", "61-80"},
    {"cholect50", "rdv", "camma",
     "1 15 26 40 52 65 79 2 18 27 43 56 66 92 4 22 31 47 57 68 96 5 23 35 48 60 70 103 13 25 36 49 62 75 110",
     "8 12 29 50 78", "6 51 10 73 14 74 32 80 42 111"},
    {"cholect50", "challenge", "camma",
     "1 15 26 40 52 79 2 27 43 56 66 4 22 31 47 57 68 23 35 48 60 70 13 25 49 62 75 8 12 29 50 78 6 51 10 73 14 32 80 "
     "42",
     "5 18 36 65 74", "92 96 103 110 111"},
    {"cholec80-cvs", "paper", "camma", "*", "1 2 10 16 17 28 32 46 47 57 59 70 63 65 67",
     "5 7 6 9 14 24 22 26 29 33 35 39 53 55 61"},
    {"endoscapes", "paper", "endoscapes", "1-120", "121-161", "162-201"},
    {"endoscapes", "seg", "endoscapes", "1-120", "121-161", "162-201"},
    {"endoscapes", "12_5-0", "endoscapes", "1-120", "121-161", "162-201"},
    {"endoscapes", "12_5-1", "endoscapes", "1-120", "121-161", "162-201"},
    {"endoscapes", "12_5-2", "endoscapes", "1-120", "121-161", "162-201"},
    {"endoscapes", "25-0", "endoscapes", "1-120", "121-161", "162-201"},
    {"endoscapes", "25-1", "endoscapes", "1-120", "121-161", "162-201"},
    {"endoscapes", "25-2", "endoscapes", "1-120", "121-161", "162-201"},
    {"endovis18-vqa", "paper", "endovis18", "2 3 4 6 7 9 10 11 12 14 15", "1 5 16", NULL},
    {"endovis18-vqla", "paper", "endovis18", "2 3 4 6 7 9 10 11 12 14 15", "1 5 16", NULL},
    {"autolaparo", "paper", "autolaparo", "1-10", "11-14", "15-21"},
    {"pitvqa", "paper", "pitvqa", "*", "2 6 12 13 24", NULL},
    {"sar-rarp50", "paper", "sar-rarp50", "1-13 15-40", NULL, "41-50"},
};
enum { SPLIT_TABLES = sizeof split_tables / sizeof *split_tables };

// The folds of CholecT50; those of CholecT45 lack the last video of each.
static const char *const folds[5] = {"79 2 51 6 25 14 66 23 50 111", "80 32 5 15 40 47 26 48 70 96",
                                     "31 57 36 18 52 68 10 8 73 103", "42 29 60 27 65 75 22 49 12 110",
                                     "78 43 62 35 74 1 56 4 13 92"};
static const char *const fold_variants[5] = {"cv1", "cv2", "cv3", "cv4", "cv5"};

static bool list_has(const char *list, int64_t number) {
    for (const char *p = list; p && *p;) {
        char *end;
        int64_t from = strtoll(p, &end, 10), to = from;
        if (*end == '-') to = strtoll(end + 1, &end, 10);
        if (number >= from && number <= to) return true;
        p = end + (*end == ' ');
    }
    return false;
}

static size_t without_last(const char *list, int n) { // its length without the last n numbers
    size_t len = strlen(list);
    while (n-- > 0) {
        while (len && list[len - 1] != ' ') len--;
        if (len) len--;
    }
    return len;
}

// "cv1".."cv5": a fold is the test, validation is the last five of the remaining list, in the order of the folds.
static bool fold_table(const char *dataset, const char *variant, SplitTable *out) {
    static _Thread_local char all_lists[2][5][3][300]; // of both sets and every fold: tables of several may be in use
    bool t45 = !strcmp(dataset, "cholect45");
    if (!t45 && strcmp(dataset, "cholect50")) return false;
    for (int k = 0; k < 5; k++) {
        if (strcmp(variant, fold_variants[k])) continue;
        char(*lists)[300] = all_lists[t45][k];
        Text rest = {0};
        for (int j = 0; j < 5; j++)
            if (j != k) text_addf(&rest, "%s%.*s", rest.len ? " " : "", (int)without_last(folds[j], t45), folds[j]);
        size_t train = without_last(rest.p, 5);
        snprintf(lists[0], sizeof lists[0], "%.*s", (int)train, rest.p);
        snprintf(lists[1], sizeof lists[1], "%s", rest.p + train + 1);
        snprintf(lists[2], sizeof lists[2], "%.*s", (int)without_last(folds[k], t45), folds[k]);
        text_free(&rest);
        *out = (SplitTable){dataset, fold_variants[k], "camma", lists[0], lists[1], lists[2]};
        return true;
    }
    return false;
}

static bool table_of(const char *dataset, const char *variant, SplitTable *out) { // variant NULL: the usual one
    if (!variant && !strcmp(dataset, "cholect45")) variant = "cv1";
    for (int i = 0; i < SPLIT_TABLES; i++)
        if (!strcmp(split_tables[i].dataset, dataset) && (!variant || !strcmp(split_tables[i].variant, variant))) {
            *out = split_tables[i];
            return true;
        }
    return variant && fold_table(dataset, variant, out);
}

static const char *table_split(const SplitTable *t, int64_t number) {
    if (list_has(t->test, number)) return "test";
    if (list_has(t->val, number)) return "val";
    return (t->train && !strcmp(t->train, "*")) || list_has(t->train, number) ? "train" : NULL;
}

// Whether one of the words of "a,b,c" is `word`; NULL lists everything.
static bool listed(const char *list, const char *word) {
    if (!list) return true;
    for (const char *p = list; *p;) {
        size_t n = strcspn(p, ",");
        if (n == strlen(word) && !memcmp(p, word, n)) return true;
        p += n + (p[n] == ',');
    }
    return false;
}

bool split_wanted(const Import *im, const char *split) { return listed(im->o->splits, split); }

const char *split_of(Import *im, const char *video, int64_t number) {
    const char *split = NULL;
    if (im->n_own) {
        for (int64_t i = 0; i < im->n_own; i++)
            if (!strcmp(im->own[i][0], video)) split = im->own[i][1];
    } else if (im->split_table) split = table_split(im->split_table, number);
    if (!split) {
        skip_add(im, "video outside of the split", video, 1);
        return NULL;
    }
    if (split_wanted(im, split)) return split;
    skip_add(im, "video of a split that was not asked for", video, 1);
    return NULL;
}

// --variant FILE.csv: video,split
static bool own_splits(Import *im, const char *path, Err *e) {
    Table t;
    if (!table_read(&t, path, ',', e)) return false;
    bool ok = true;
    im->own = alloc_or_die((size_t)t.n + 1, sizeof *im->own, "splits");
    for (int64_t i = 0; ok && i < t.n; i++) {
        const TableRow *r = &t.rows[i];
        if (!(ok = table_columns(&t, r, 2, false, "video,split", e))) break;
        const char *s = r->cells[1].p;
        if (!i && !strcmp(s, "split")) continue; // the header
        ok = !strcmp(s, "train") || !strcmp(s, "val") || !strcmp(s, "test") ||
             err_set(e, "E-DS-13", AT(.file = path, .line = r->line, .field = "split"),
                     "expected train, val or test; found %s; do: mend the line", quoted(s, r->cells[1].len));
        for (int64_t k = 0; ok && k < im->n_own; k++)
            ok = strcmp(im->own[k][0], r->cells[0].p) ||
                 err_set(e, "E-DS-13", AT(.file = path, .line = r->line, .field = "video"),
                         "expected each video once; found %s again; do: delete one line",
                         quoted(r->cells[0].p, r->cells[0].len));
        im->own[im->n_own][0] = keep(im, "%s", r->cells[0].p);
        im->own[im->n_own++][1] = keep(im, "%s", s);
    }
    table_free(&t);
    return ok && (im->n_own ||
                  err_set(e, "E-DS-13", AT(.file = path), "expected lines video,split; found none; do: fill the file"));
}

static void list_variants(const char *dataset, Text *out) {
    for (int i = 0; i < SPLIT_TABLES; i++)
        if (!strcmp(split_tables[i].dataset, dataset)) text_addf(out, "%s, ", split_tables[i].variant);
    if (!strncmp(dataset, "cholect", 7) && dataset[7] != 'r') text_addf(out, "cv1, cv2, cv3, cv4, cv5, ");
    if (!strcmp(dataset, "multibypass140")) text_addf(out, "fold0, fold1, fold2, fold3, fold4, ");
    text_addf(out, "or a file.csv of video,split");
}

static bool splits_choose(Import *im, Err *e) {
    static _Thread_local SplitTable chosen;
    const char *v = im->o->variant;
    size_t n = v ? strlen(v) : 0;
    if (n > 4 && !strcmp(v + n - 4, ".csv")) {
        im->variant = v;
        return own_splits(im, v, e);
    }
    if (!strcmp(im->dataset, "multibypass140")) { // its folds are told apart in import_camma.c
        im->variant = v ? v : "fold0";
        if (!strncmp(im->variant, "fold", 4) && im->variant[4] >= '0' && im->variant[4] <= '4' && !im->variant[5])
            return true;
    } else if (table_of(im->dataset, v, &chosen)) {
        im->split_table = &chosen;
        im->variant = chosen.variant;
        return true;
    } else if (!v) return true; // folders tell the split
    Text all = {0};
    list_variants(im->dataset, &all);
    err_set(e, "E-DS-02", AT(.file = "--variant"), "expected %s; found %s; do: choose one", all.p, quoted(v, n));
    text_free(&all);
    return false;
}

// -------------------------------------------------------------------------------------------------- texts and counters
struct KeepBlock {
    struct KeepBlock *next;
    size_t used, size;
    char bytes[];
};

static char *keep_bytes(Import *im, size_t size) {
    struct KeepBlock *b = im->blocks;
    size = (size + 7) & ~(size_t)7;
    if (!b || b->used + size > b->size) {
        size_t room = size > 1 << 20 ? size : 1 << 20;
        b = alloc_or_die(1, sizeof *b + room, "texts of an import");
        b->size = room, b->next = im->blocks, im->blocks = b;
    }
    b->used += size;
    return b->bytes + b->used - size;
}

const char *keep(Import *im, const char *fmt, ...) {
    char small[512];
    va_list args, again;
    va_start(args, fmt);
    va_copy(again, args);
    int n = vsnprintf(small, sizeof small, fmt, args);
    va_end(args);
    char *p = keep_bytes(im, (size_t)n + 1);
    if ((size_t)n < sizeof small) memcpy(p, small, (size_t)n + 1);
    else vsnprintf(p, (size_t)n + 1, fmt, again);
    va_end(again);
    return p;
}

void skip_add(Import *im, const char *what, const char *where, int64_t count) {
    if (!count) return;
    for (int i = 0; i < im->n_reasons; i++)
        if (!strcmp(im->reasons[i].what, what)) {
            im->reasons[i].count += count;
            return;
        }
    CHECK(im->n_reasons < (int)(sizeof im->reasons / sizeof *im->reasons), "too many reasons to skip");
    Reason *r = &im->reasons[im->n_reasons++];
    snprintf(r->what, sizeof r->what, "%s", what);
    snprintf(r->first, sizeof r->first, "%s", where ? where : "");
    r->count = count;
}

static const char *place_text(Where at, char *buf, size_t size) {
    int n = snprintf(buf, size, "%s", at.file ? at.file : "");
    if (at.line && n > 0 && (size_t)n < size) snprintf(buf + n, size - (size_t)n, ":%lld", (long long)at.line);
    return buf;
}

// -------------------------------------------------------------------------------------------------------------- labels
static size_t plain_label(const char *text, size_t len, bool exact, char *out, size_t size) {
    size_t n = 0;
    for (size_t i = 0; i < len && n + 1 < size; i++) {
        char c = text[i];
        if (!exact && (c == ' ' || c == '_' || c == '-')) continue;
        out[n++] = !exact && c >= 'A' && c <= 'Z' ? (char)(c + 32) : exact && (c == '_' || c == ' ') ? '-' : c;
    }
    out[n] = 0;
    return len < size ? n : 0;
}

int label_of(const Vocabulary *v, const char *text, size_t len) {
    char want[300], have[300];
    while (len && (*text == ' ' || *text == '\t')) text++, len--;
    while (len && (text[len - 1] == ' ' || text[len - 1] == '\t')) len--;
    if (!plain_label(text, len, v->exact, want, sizeof want)) return -1;
    for (int i = 0; i < v->n; i++) {
        plain_label(v->names[i], strlen(v->names[i]), v->exact, have, sizeof have);
        if (!strcmp(want, have)) return i;
    }
    for (int k = 0; v->aliases && v->aliases[k][0]; k++) {
        plain_label(v->aliases[k][0], strlen(v->aliases[k][0]), v->exact, have, sizeof have);
        if (!strcmp(want, have))
            return label_of(&(Vocabulary){v->what, v->names, v->n, NULL, v->exact}, v->aliases[k][1],
                            strlen(v->aliases[k][1]));
    }
    return -1;
}

bool unknown_label(Import *im, const Vocabulary *v, Where at, const char *text, size_t len, Err *e) {
    char place[300];
    if (im->o->skip_unknown) {
        skip_add(im, "label outside of the vocabulary", place_text(at, place, sizeof place), 1);
        return true;
    }
    Text all = {0};
    for (int i = 0; i < v->n; i++) text_addf(&all, "%s%s", i ? ", " : "", v->names[i]);
    bool cut = all.len > 340;
    err_set(e, "E-DS-12", at,
            "expected a %s: %.*s%s; found %s; do: check the file, or leave such labels out with --skip-unknown",
            v->what, cut ? 340 : (int)all.len, all.p, cut ? " ..." : "", quoted(text, len));
    text_free(&all);
    return false;
}

// ------------------------------------------------------------------------------------------------------------ sampling
void video_begin(Import *im) { im->bucket = -1, im->seen = 0; }

bool sample_keeps(Import *im, int64_t frame, double fps) {
    im->frames++;
    if (im->fps > 0 && fps > 0) { // the first labelled frame of each 1/fps seconds
        int64_t bucket = (int64_t)floor((double)frame * im->fps / fps + 1e-9);
        if (bucket == im->bucket) return false;
        im->bucket = bucket;
    }
    bool taken = im->o->every <= 1 || im->seen % im->o->every == 0;
    im->seen++;
    im->sampled += taken;
    return taken;
}

// -------------------------------------------------------------------------------------------------------------- frames
const char *tree_path_of(Import *im, const char *fmt, ...) {
    char name[1100];
    va_list args;
    va_start(args, fmt);
    vsnprintf(name, sizeof name, fmt, args);
    va_end(args);
    return keep(im, "%s/%s", im->o->root, name);
}

bool read_json(Import *im, JsonDoc *doc, const char *path, Err *e) {
    if (!json_read(doc, path, LIMIT_TABLE_BYTES, (JsonOptions){.refuse_duplicates = true}, e)) return false;
    im->files++;
    return true;
}

void naming_see(NamingFacts *n, const Frames *f, int64_t labelled, int64_t fps) {
    if (!f->n) return;
    int64_t first = f->files[0].number, last = f->files[f->n - 1].number;
    if (!n->any) n->mod0 = n->mod1 = true;
    n->any = true;
    n->zero |= first == 0, n->later |= last > 0, n->beyond |= last > labelled,
        n->full |= first >= 1 && last == labelled;
    for (int64_t i = 0; i < f->n; i++)
        n->mod0 &= f->files[i].number % fps == 0, n->mod1 &= f->files[i].number % fps == 1 % fps;
}

static const char *const naming_words[] = {"unknown", "seconds0", "seconds1", "frames0", "frames1"};
static const char *const naming_texts[] = {"unknown", "seconds, from 0", "seconds, from 1", "video frames, from 0",
                                           "video frames, from 1"};

bool naming_tell(Import *im, const NamingFacts *n, int64_t fps, FrameNaming *out, Err *e) {
    *out = SECONDS_0;
    if (im->o->frame_names) {
        for (int i = SECONDS_0; i <= FRAMES_1; i++)
            if (!strcmp(im->o->frame_names, naming_words[i])) *out = (FrameNaming)i;
    } else if (!n->any) {
        snprintf(im->naming, sizeof im->naming, "no frames found");
        return true;
    } else if (fps > 1 && n->mod1) *out = FRAMES_1; // 1, 26, 51: a counter of video frames that starts at 1
    else if (fps > 1 && n->mod0 && n->later) *out = FRAMES_0;
    else if (n->beyond && n->zero && fps > 1) *out = FRAMES_0;
    else if (n->beyond) *out = NAMING_UNKNOWN;
    else if (n->zero) *out = SECONDS_0;
    else *out = n->full ? SECONDS_1 : NAMING_UNKNOWN;
    snprintf(im->naming, sizeof im->naming, "%s", naming_texts[*out]);
    return *out ||
           err_set(
               e, "E-DS-14", AT(.file = im->o->frames ? im->o->frames : im->o->root),
               "expected pictures named by seconds or by video frames, from 0 or from 1; found names that fit several "
               "of these; do: say which with --frame-names seconds0|seconds1|frames0|frames1");
}

int64_t naming_number(FrameNaming n, int64_t frame, int64_t fps) {
    switch (n) {
    case SECONDS_0: return frame % fps ? -1 : frame / fps;
    case SECONDS_1: return frame % fps ? -1 : frame / fps + 1;
    case FRAMES_0: return frame;
    default: return frame + 1;
    }
}

bool task_on(const Import *im, enum Task t) { return im->task_wanted[t]; }

static bool is_black(const Image *p) {
    int64_t sum = 0, n = (int64_t)p->width * p->height * 3;
    for (int64_t i = 0; i < n; i++) sum += p->rgb[i];
    return sum < 2 * n; // JPEG leaves a little noise
}

bool frame_open(Import *im, ImportFrame *f, bool sized, Err *e) {
    char path[2300], resolved[PATH_MAX];
    if (!f->name || !*f->dir) {
        skip_add(im, *f->dir ? "missing frame file" : "missing folder of frames",
                 keep(im, "%s frame %lld", f->video, (long long)f->frame), 1);
        return false;
    }
    snprintf(path, sizeof path, "%s/%s", f->dir, f->name);
    if (!realpath(path, resolved)) {
        skip_add(im, "missing frame file", path, 1);
        return false;
    }
    size_t root = strlen(im->image_root);
    if (im->o->absolute_images) f->image = keep(im, "%s", resolved);
    else if (!strncmp(resolved, im->image_root, root) && resolved[root] == '/')
        f->image = keep(im, "%s", resolved + root + 1);
    else
        return err_set(
            e, "E-DS-04", AT(.file = path),
            "expected pictures beneath %s; found %s; do: give --image-root a folder above both, or --absolute-images",
            im->image_root, quoted(resolved, strlen(resolved)));
    if (strlen(f->image) > (size_t)LIMIT_PATH_BYTES || strchr(f->image, '\\'))
        return err_set(e, "E-DS-04", AT(.file = path),
                       "expected a path of at most %lld bytes without \\; found another; do: rename it",
                       (long long)LIMIT_PATH_BYTES);
    Err bad = {0};
    if (im->o->drop_black) {
        Image picture;
        if (!image_read(&picture, resolved, (ImageOptions){0}, &bad)) {
            skip_add(im, "picture that cannot be read", path, 1);
            return false;
        }
        bool black = is_black(&picture);
        image_free(&picture);
        if (black) {
            skip_add(im, "black frame", path, 1);
            return false;
        }
    }
    if (sized) {
        int width, height, orientation;
        const char *format;
        if (!image_info(resolved, &width, &height, &format, &orientation, &bad)) {
            skip_add(im, "picture that cannot be read", path, 1);
            return false;
        }
        f->width = width, f->height = height;
    }
    return true;
}

// ------------------------------------------------------------------------------------------------------------- records
static bool clean_text(const char *text, size_t limit, const char *what, Where at, Err *e) {
    size_t n = strlen(text);
    bool bad = !n || n > limit;
    for (size_t i = 0; i < n && !bad; i++) bad = ((unsigned char)text[i] < 32 && text[i] != '\t') || text[i] == 127;
    return !bad || err_set(e, "E-DS-05", at,
                           "expected a %s of 1 to %zu bytes without control characters; found %s; do: mend the file",
                           what, limit, n > limit ? "a longer one" : quoted(text, n));
}

static bool boxes_fit(const ImportFrame *f, const Question *q, Err *e) {
    if (q->n_boxes > LIMIT_BOXES)
        return err_set(e, "E-DS-06", q->at, "expected at most %lld boxes; found %d; do: check the file",
                       (long long)LIMIT_BOXES, q->n_boxes);
    for (int i = 0; i < q->n_boxes; i++) {
        const Box *b = &q->boxes[i];
        double slack = 1e-6 * (double)(f->width + f->height); // scaled coordinates are rounded
        if (!(b->x1 >= 0 && b->y1 >= 0 && b->x2 > b->x1 && b->y2 > b->y1 && (double)f->width + slack >= b->x2 &&
              (double)f->height + slack >= b->y2))
            return err_set(e, "E-DS-06", q->at,
                           "expected 0 <= x1 < x2 <= %lld and 0 <= y1 < y2 <= %lld; found [%.10g,%.10g,%.10g,%.10g]; "
                           "do: check that "
                           "the frames have the size the boxes were drawn on",
                           (long long)f->width, (long long)f->height, b->x1, b->y1, b->x2, b->y2);
    }
    return true;
}

bool item_add(Import *im, const ImportFrame *f, Question q, Err *e) {
    im->task_offered[q.task] = true;
    if (!task_on(im, q.task)) return true;
    if (q.question && !clean_text(q.question, (size_t)LIMIT_QUESTION_BYTES - 512, "question", q.at, e)) return false;
    if (q.answer && !clean_text(q.answer, 65536, "label", q.at, e)) return false;
    if (!boxes_fit(f, &q, e)) {
        if (!im->o->skip_unknown) return false;
        skip_add(im, "box outside of its picture", e->file, 1);
        *e = (Err){0};
        return true;
    }
    if (im->n == im->cap)
        im->items =
            grow_or_die(im->items, (size_t)(im->cap = im->cap ? 2 * im->cap : 1024), sizeof *im->items, "records");
    ImportItem *item = &im->items[im->n++];
    *item = (ImportItem){.class_name = q.class_name ? q.class_name : q.answer};
    TaskItem *t = &item->t;
    *t = (TaskItem){.task = q.task,
                    .dataset = im->dataset,
                    .procedure = im->procedure,
                    .patient = f->patient,
                    .video = f->video,
                    .split = f->split,
                    .image = f->image,
                    .slot = q.slot,
                    .question = q.question,
                    .answer = q.answer,
                    .n_boxes = q.n_boxes,
                    .frame = f->frame,
                    .width = f->width,
                    .height = f->height};
    t->id = keep(im, "%s-%s-%06lld-%s%s%s", im->dataset, f->video, (long long)f->frame, task_info(q.task)->name,
                 q.what ? "-" : "", q.what ? q.what : "");
    if (strlen(t->id) > 256)
        return err_set(e, "E-DS-03", q.at,
                       "expected an id of at most 256 bytes; found %s; do: shorten the video's name",
                       quoted(t->id, strlen(t->id)));
    if (q.choices && q.choices->n <= TASK_MAX_CHOICES) t->choices = q.choices->names, t->n_choices = q.choices->n;
    if (q.n_boxes) {
        t->boxes = (Box *)(void *)keep_bytes(im, (size_t)q.n_boxes * sizeof *q.boxes);
        memcpy(t->boxes, q.boxes, (size_t)q.n_boxes * sizeof *q.boxes);
        for (int i = 0; i < q.n_boxes; i++) { // rounding of scaled coordinates
            if (t->boxes[i].x2 > (double)f->width) t->boxes[i].x2 = (double)f->width;
            if (t->boxes[i].y2 > (double)f->height) t->boxes[i].y2 = (double)f->height;
        }
    }
    item->source = f->fps > 0 ? keep(im, "\"fps\":%.10g%s%s", f->fps, f->source ? "," : "", f->source ? f->source : "")
                              : f->source;
    return true;
}

bool tools_add(Import *im, const ImportFrame *f, const Box *boxes, int n, bool count, Where at, Err *e) {
    const char *names[64] = {NULL};
    int kinds = 0;
    Text list = {0};
    for (int i = 0; i < n && i < LIMIT_BOXES; i++) {
        bool seen = false;
        for (int k = 0; k < kinds; k++) seen |= !strcmp(names[k], boxes[i].label);
        if (!seen) names[kinds++] = boxes[i].label;
    }
    task_list_text(names, kinds, &list);
    bool ok = true;
    if (kinds) ok = item_add(im, f, (Question){.task = TASK_TOOL, .answer = keep(im, "%s", list.p), .at = at}, e);
    else skip_add(im, "no tool to name", f->video, task_on(im, TASK_TOOL));
    text_free(&list);
    for (int k = 0; ok && k < kinds; k++) {
        const Box *only = NULL;
        int same = 0;
        for (int i = 0; i < n; i++)
            if (!strcmp(boxes[i].label, names[k])) only = &boxes[i], same++;
        const char *label = keep(im, "%s", names[k]);
        if (same > 1) skip_add(im, "several tools of one kind: no single box", f->video, task_on(im, TASK_TOOL_BOX));
        else
            ok = item_add(im, f,
                          (Question){.task = TASK_TOOL_BOX,
                                     .what = label,
                                     .slot = label,
                                     .answer = label,
                                     .boxes = only,
                                     .n_boxes = 1,
                                     .at = at},
                          e);
    }
    ok = ok &&
         item_add(im, f,
                  (Question){
                      .task = TASK_TOOL_BOXES, .boxes = boxes, .n_boxes = n, .class_name = keep(im, "%d", n), .at = at},
                  e);
    if (ok && count) ok = item_add(im, f, (Question){.task = TASK_COUNT, .answer = keep(im, "%d", n), .at = at}, e);
    return ok;
}

// ------------------------------------------------------------------------------------------------------------- overlap
// One patient is on one side only. Videos of the CAMMA family are one patient under one number; an Endoscapes video may be any of
// them until the user's table says.
typedef struct Use { // somebody's patient
    const char *patient, *where;
    bool trained;
} Use;
typedef struct Uses {
    Import *im;
    const char *where;
    Use *p;
    int64_t n, cap;
} Uses;

static void use_add(Uses *u, const char *patient, const char *where, bool trained) {
    for (int64_t i = u->n; i-- > 0 && i > u->n - 8;) // records of a video stand together
        if (u->p[i].trained == trained && !strcmp(u->p[i].patient, patient) && !strcmp(u->p[i].where, where)) return;
    if (u->n == u->cap)
        u->p = grow_or_die(u->p, (size_t)(u->cap = u->cap ? 2 * u->cap : 256), sizeof *u->p, "patients");
    u->p[u->n++] = (Use){patient, where, trained};
}

static void use_table(Uses *u, const SplitTable *t, const char *split) { // NULL: val and test
    for (int64_t number = 1; number <= 201; number++) {
        const char *s = table_split(t, number);
        if (!s || (split ? strcmp(s, split) : !strcmp(s, "train"))) continue;
        use_add(u, keep(u->im, "%s-%lld", t->patients, (long long)number),
                keep(u->im, "%s:%s:%s", t->dataset, t->variant, s), false);
    }
}

static bool use_named(Uses *u, const char *name,
                      Err *e) { // "set", "set:split", "set:variant:split", "set:variant", "all"
    char part[3][64] = {"", "", ""};
    SplitTable t;
    int n = 0;
    if (!strcmp(name, "all")) {
        for (int i = 0; i < SPLIT_TABLES; i++)
            if (!i || strcmp(split_tables[i].dataset, split_tables[i - 1].dataset))
                use_table(u, &split_tables[i], NULL);
        if (table_of("cholect45", NULL, &t)) use_table(u, &t, NULL);
        return true;
    }
    for (const char *p = name; n < 3; n++) {
        size_t len = strcspn(p, ":");
        snprintf(part[n], sizeof part[n], "%.*s", (int)len, p);
        p += len;
        if (!*p++) {
            n++;
            break;
        }
    }
    bool second_is_split = n == 2 && (!strcmp(part[1], "val") || !strcmp(part[1], "test"));
    const char *variant = n >= 2 && !second_is_split ? part[1] : NULL, *split = n == 3            ? part[2]
                                                                                : second_is_split ? part[1]
                                                                                                  : NULL;
    if (table_of(part[0], variant, &t) && (!split || !strcmp(split, "val") || !strcmp(split, "test"))) {
        use_table(u, &t, split);
        return true;
    }
    return err_set(
        e, "E-DS-02", AT(.file = "--eval"),
        "expected SET, SET:SPLIT or SET:VARIANT:SPLIT with val or test, or all; found %s; do: see surgr1 import --help",
        quoted(name, strlen(name)));
}

static bool use_record(void *ctx, const Piece *p, Err *e) {
    Uses *u = ctx;
    JsonDoc doc;
    if (!json_parse(&doc, p->text, p->len, u->where,
                    (JsonOptions){.refuse_duplicates = true, .first_line = (uint32_t)p->line}, e))
        return false;
    const Json *patient = json_get(doc.root, "patient"), *split = json_get(doc.root, "split"),
               *set = json_get(doc.root, "dataset");
    if (patient && patient->type == JSON_STRING && split && split->type == JSON_STRING)
        use_add(u, keep(u->im, "%s", patient->str),
                keep(u->im, "%s:%s (%s)", set && set->type == JSON_STRING ? set->str : "records", split->str, u->where),
                json_is(split, "train"));
    json_free(&doc);
    return true;
}

static bool may_be_same(const char *a, const char *b) {
    if (!strcmp(a, b)) return true;
    bool ea = !strncmp(a, "endoscapes-", 11), eb = !strncmp(b, "endoscapes-", 11);
    return (ea && !strncmp(b, "camma-", 6)) || (eb && !strncmp(a, "camma-", 6));
}

static bool overlap_check(Import *im, Text *report, Err *e) {
    Uses mine = {.im = im}, others = {.im = im};
    bool ok = true;
    for (int64_t i = 0; i < im->n; i++) {
        const TaskItem *t = &im->items[i].t;
        use_add(&mine, t->patient, keep(im, "%s:%s", im->dataset, t->split), !strcmp(t->split, "train"));
    }
    for (int i = 0; ok && i < im->o->n_eval; i++) ok = use_named(&others, im->o->eval[i], e);
    for (int i = 0; ok && i < im->o->n_beside; i++) {
        others.where = im->o->beside[i];
        ok = pieces_read(im->o->beside[i], NULL, use_record, &others, e);
    }
    for (int64_t i = 0, n = mine.n; ok && i < n; i++)
        use_add(&others, mine.p[i].patient, mine.p[i].where, mine.p[i].trained);
    Text list = {0};
    int64_t found = 0;
    const char *last = "";
    for (int64_t i = 0; ok && i < mine.n; i++)
        for (int64_t k = 0; k < others.n; k++) {
            if (mine.p[i].trained == others.p[k].trained || !may_be_same(mine.p[i].patient, others.p[k].patient))
                continue;
            bool sure = !strcmp(mine.p[i].patient, others.p[k].patient);
            if (!sure && !strcmp(last, mine.p[i].patient)) continue; // one line is enough for "may be anybody"
            last = sure ? "" : mine.p[i].patient;
            text_addf(&list, "%s{\"patient\":\"%s\",\"in\":", found++ ? "," : "", mine.p[i].patient);
            text_add_json_string(&list, mine.p[i].where, strlen(mine.p[i].where));
            text_addf(&list, ",\"and\":");
            text_add_json_string(&list, others.p[k].where, strlen(others.p[k].where));
            text_addf(&list, ",\"sure\":%s}", sure ? "true" : "false");
            if (im->o->allow_overlap) continue;
            ok = err_set(e, "E-DS-09", AT(.file = im->o->root, .sample = mine.p[i].patient),
                         "expected a patient to be on one side only; found %s in %s and %s in %s%s; do: leave the "
                         "video out (--variant "
                         "FILE.csv), use splits that agree, or --allow-overlap",
                         mine.p[i].patient, mine.p[i].where, sure ? "the same" : others.p[k].patient, others.p[k].where,
                         sure ? "" : ", who may be one (give --overlap-table)");
            break;
        }
    text_addf(report, ",\"overlaps\":[%s]", list.p ? list.p : "");
    text_free(&list);
    free(mine.p), free(others.p);
    return ok;
}

// Which known evaluation splits of other sets hold a training video of this import, in use or not.
static void known_overlaps(Import *im, Text *report) {
    const char *comma = "";
    text_addf(report, ",\"known_evaluation_splits_with_these_training_videos\":[");
    for (int k = 0; k <= SPLIT_TABLES; k++) {
        SplitTable t;
        Text numbers = {0};
        if (k < SPLIT_TABLES) t = split_tables[k];
        else if (!table_of("cholect45", NULL, &t)) break;
        const char *last = "";
        if (!strcmp(t.dataset, im->dataset)) continue;
        for (int64_t i = 0; i < im->n; i++) {
            const TaskItem *item = &im->items[i].t;
            size_t n = strlen(t.patients);
            int64_t number;
            if (strcmp(item->split, "train") || !strcmp(item->patient, last) || strncmp(item->patient, t.patients, n) ||
                item->patient[n] != '-' || !text_int(item->patient + n + 1, strlen(item->patient + n + 1), &number))
                continue;
            last = item->patient;
            const char *s = table_split(&t, number);
            if (s && strcmp(s, "train")) text_addf(&numbers, "%s%lld", numbers.len ? " " : "", (long long)number);
        }
        if (numbers.len)
            text_addf(report, "%s{\"split\":\"%s:%s\",\"videos\":\"%s\"}", comma, t.dataset, t.variant, numbers.p),
                comma = ",";
        text_free(&numbers);
    }
    text_addf(report, "]");
}

// ------------------------------------------------------------------------------------------------------------- balance
typedef struct Pick { // an item as the balance sees it
    const ImportItem *item;
    int64_t index;
    double key;
} Pick;

static int same_group(const Pick *a, const Pick *b, bool with_class) {
    int c = strcmp(a->item->t.split, b->item->t.split);
    if (!c) c = (int)a->item->t.task - (int)b->item->t.task;
    if (!c && with_class)
        c = strcmp(a->item->class_name ? a->item->class_name : "", b->item->class_name ? b->item->class_name : "");
    return c;
}

static int by_pick(const void *x, const void *y) {
    const Pick *a = x, *b = y;
    int c = same_group(a, b, true);
    if (!c) c = (a->key > b->key) - (a->key < b->key);
    return c ? c : strcmp(a->item->t.id, b->item->t.id);
}

// Keeps at most `balance` items of each class: those whose random number, a function of seed and id alone, is lowest.
static void balance(Import *im, uint8_t *kept) {
    Pick *p = alloc_or_die((size_t)im->n + 1, sizeof *p, "balance");
    for (int64_t i = 0; i < im->n; i++) {
        const char *id = im->items[i].t.id;
        p[i] = (Pick){&im->items[i], i, random_uniform(im->o->seed, RANDOM_SAMPLE, bytes_hash(id, strlen(id)), 0)};
    }
    qsort(p, (size_t)im->n, sizeof *p, by_pick);
    for (int64_t from = 0, to; from < im->n; from = to) { // one task of one split
        int64_t most = im->o->balance, dropped = 0;
        for (to = from; to < im->n && !same_group(&p[from], &p[to], false);) to++;
        if (most < 0) {
            most = INT64_MAX;
            for (int64_t a = from, b; a < to; a = b) {
                for (b = a; b < to && !same_group(&p[a], &p[b], true);) b++;
                if (b - a < most) most = b - a;
            }
        }
        for (int64_t i = from, in_class = 0; i < to; i++) {
            in_class = i > from && !same_group(&p[i - 1], &p[i], true) ? in_class + 1 : 0;
            if (in_class >= most) kept[p[i].index] = 0, dropped++;
        }
        skip_add(im, "left out by the balance of classes", task_info(p[from].item->t.task)->name, dropped);
    }
    free(p);
}

// -------------------------------------------------------------------------------------------------------------- writing
static int by_id(const void *a, const void *b) { return strcmp(*(const char *const *)a, *(const char *const *)b); }

static bool ids_unique(const Import *im, Err *e) {
    const char **ids = alloc_or_die((size_t)im->n + 1, sizeof *ids, "ids");
    bool ok = true;
    for (int64_t i = 0; i < im->n; i++) ids[i] = im->items[i].t.id;
    qsort(ids, (size_t)im->n, sizeof *ids, by_id);
    for (int64_t i = 1; ok && i < im->n; i++)
        ok = strcmp(ids[i], ids[i - 1]) ||
             err_set(e, "E-DS-03", AT(.file = im->o->root, .sample = ids[i]),
                     "expected one record of an id; found two; do: remove one of the annotations");
    free(ids);
    return ok;
}

static bool write_split(Import *im, const char *split, const uint8_t *kept, const char *path, int64_t *records,
                        char hex[65], Err *e) {
    FileWriter w;
    Sha256 hash;
    bool ok = file_write_begin(&w, path, e);
    sha256_start(&hash);
    *records = 0;
    for (int64_t i = 0; ok && i < im->n; i++) {
        const ImportItem *item = &im->items[i];
        Text line = {0}, answer = {0}, more = {0};
        if (!kept[i] || strcmp(item->t.split, split)) continue;
        if (im->o->weight != 1) text_addf(&more, "\"weight\":"), text_add_json_number(&more, im->o->weight);
        if (item->source) text_addf(&more, "%s\"source\":{%s}", more.len ? "," : "", item->source);
        if (!im->o->no_answers && !task_answer_text(&item->t, im->o->wording, &answer))
            skip_add(im, "label that cannot be worded", item->t.id, 1);
        else {
            task_record_print(&item->t, im->o->wording, im->o->no_answers ? NULL : answer.p, more.p, &line);
            sha256_add(&hash, line.p, line.len);
            ok = file_write_bytes(&w, line.p, line.len, e);
            ++*records;
        }
        text_free(&line), text_free(&answer), text_free(&more);
    }
    sha256_finish(&hash, hex);
    return ok && file_write_commit(&w, e);
}

static int by_class(const void *a, const void *b) {
    const ImportItem *const *x = a, *const *y = b;
    int c = (int)(*x)->t.task - (int)(*y)->t.task;
    return c ? c : strcmp((*x)->class_name ? (*x)->class_name : "", (*y)->class_name ? (*y)->class_name : "");
}

static void report_classes(const Import *im, const uint8_t *kept, Text *out) {
    const ImportItem **p = alloc_or_die((size_t)im->n + 1, sizeof *p, "classes");
    int64_t n = 0;
    for (int64_t i = 0; i < im->n; i++)
        if (kept[i]) p[n++] = &im->items[i];
    qsort(p, (size_t)n, sizeof *p, by_class);
    text_addf(out, ",\"tasks\":{");
    for (int64_t from = 0, to; from < n; from = to) {
        int64_t classes = 0;
        Text list = {0};
        for (to = from; to < n && p[to]->t.task == p[from]->t.task;) {
            int64_t a = to;
            while (to < n && !by_class(&p[a], &p[to])) to++;
            const char *name = p[a]->class_name ? p[a]->class_name : "";
            if (classes++ >= 64) continue;
            text_addf(&list, "%s", list.len ? "," : "");
            text_add_json_string(&list, name, strlen(name));
            text_addf(&list, ":%lld", (long long)(to - a));
        }
        text_addf(out, "%s\"%s\":{\"records\":%lld,\"classes\":%lld,\"%s\":{%s}}", from ? "," : "",
                  task_info(p[from]->t.task)->name, (long long)(to - from), (long long)classes,
                  classes > 64 ? "first_64" : "counts", list.p ? list.p : "");
        text_free(&list);
    }
    text_addf(out, "}");
    free(p);
}

static int64_t count_videos(const Import *im, const uint8_t *kept, const char *split) {
    const char **names = alloc_or_die((size_t)im->n + 1, sizeof *names, "videos");
    int64_t n = 0, different = 0;
    for (int64_t i = 0; i < im->n; i++)
        if (kept[i] && !strcmp(im->items[i].t.split, split)) names[n++] = im->items[i].t.video;
    qsort(names, (size_t)n, sizeof *names, by_id);
    for (int64_t i = 0; i < n; i++) different += !i || strcmp(names[i], names[i - 1]);
    free(names);
    return different;
}

static void add_path(Text *out, const char *name, const char *path) {
    text_addf(out, ",\"%s\":", name);
    text_add_json_string(out, path, strlen(path));
}

static bool write_all(Import *im, const uint8_t *kept, Text *report, Err *e) {
    static const char *const splits[] = {"train", "val", "test"};
    int64_t total = 0;
    const char *comma = "";
    text_addf(report, ",\"files\":[");
    for (int s = 0; s < 3; s++) {
        char path[2200], hex[65];
        int64_t records = 0;
        bool any = false;
        for (int64_t i = 0; i < im->n && !any; i++) any = kept[i] && !strcmp(im->items[i].t.split, splits[s]);
        if (!any) continue;
        snprintf(path, sizeof path, "%s/%s.jsonl", im->o->out, splits[s]);
        if (!write_split(im, splits[s], kept, path, &records, hex, e)) return false;
        text_addf(report, "%s{\"split\":\"%s\"", comma, splits[s]);
        add_path(report, "path", path);
        text_addf(report, ",\"records\":%lld,\"videos\":%lld,\"sha256\":\"%s\"}", (long long)records,
                  (long long)count_videos(im, kept, splits[s]), hex);
        comma = ",";
        total += records;
    }
    text_addf(report, "],\"records\":%lld", (long long)total);
    return true;
}

static void report_skipped(const Import *im, Text *out) {
    text_addf(out, ",\"skipped\":{");
    for (int i = 0; i < im->n_reasons; i++) {
        const Reason *r = &im->reasons[i];
        text_addf(out, "%s\"%s\":{\"count\":%lld,\"first\":", i ? "," : "", r->what, (long long)r->count);
        text_add_json_string(out, r->first, strlen(r->first));
        text_addf(out, "}");
    }
    text_addf(out, "}");
}

static bool nothing_left(const Import *im, Err *e) {
    Text why = {0};
    for (int i = 0; i < im->n_reasons; i++)
        text_addf(&why, "%s%lld %s", i ? ", " : "", (long long)im->reasons[i].count, im->reasons[i].what);
    err_set(e, "E-DS-02", AT(.file = im->o->root),
            "expected records; found none (%s); do: see data/README.md for the folders and frames of %s",
            why.p ? why.p : "no annotation was found", im->dataset);
    text_free(&why);
    return false;
}

// ---------------------------------------------------------------------------------------------------------- the whole
static bool real_folder(const char *path, char *out, Err *e) { // PATH_MAX bytes
    return (realpath(path, out) && folder_exists(out)) ||
           err_set(e, "E-IO-01", AT(.file = path), "expected a folder; found none; do: check the path");
}

static bool beneath(const char *path, const char *root) {
    size_t n = strlen(root);
    return !strncmp(path, root, n) && (path[n] == '/' || !path[n] || (n && root[n - 1] == '/'));
}

static bool choose_image_root(Import *im, Err *e) {
    char out[PATH_MAX], frames[PATH_MAX], given[PATH_MAX];
    const char *from = im->o->frames ? im->o->frames : im->o->root;
    if (mkdir(im->o->out, 0777) && errno != EEXIST)
        return err_set(e, "E-WR-02", AT(.file = im->o->out),
                       "expected to make the folder; found %s; do: make its parent first", error_text(errno));
    if (!real_folder(im->o->out, out, e) || !real_folder(from, frames, e)) return false;
    if (im->o->image_root && !real_folder(im->o->image_root, given, e)) return false;
    im->image_root = keep(im, "%s", im->o->image_root ? given : beneath(frames, out) ? out : frames);
    return true;
}

static bool choose_tasks(Import *im, Err *e) {
    for (int t = 0; t < TASKS; t++) im->task_wanted[t] = listed(im->o->tasks, task_info((enum Task)t)->name);
    for (const char *p = im->o->tasks; p && *p;) {
        char name[32];
        size_t n = strcspn(p, ",");
        snprintf(name, sizeof name, "%.*s", (int)n, p);
        if (n >= sizeof name || task_of(name) < 0)
            return err_set(e, "E-DS-02", AT(.file = "--tasks"),
                           "expected names of tasks with commas; found %s; do: see data/README.md", quoted(p, n));
        p += n + (p[n] == ',');
    }
    return true;
}

static bool overlap_table(Import *im, Err *e) { // endoscapes,camma
    Table t;
    bool ok = true;
    if (!im->o->overlap_table) return true;
    if (!table_read(&t, im->o->overlap_table, ',', e)) return false;
    im->same = alloc_or_die((size_t)t.n + 1, sizeof *im->same, "a table of patients");
    for (int64_t i = 0; ok && i < t.n; i++) {
        const TableRow *r = &t.rows[i];
        int64_t *pair = im->same[im->n_same];
        if (!(ok = table_columns(&t, r, 2, false, "endoscapes,camma", e))) break;
        if (!i && !strcmp(r->cells[0].p, "endoscapes")) continue; // the header
        ok = table_int(&t, r, 0, "endoscapes", 1, 100000, &pair[0], e) &&
             table_int(&t, r, 1, "camma", 1, 100000, &pair[1], e);
        im->n_same += ok;
    }
    im->same_known = ok;
    table_free(&t);
    return ok;
}

static void import_free(Import *im) {
    for (struct KeepBlock *b = im->blocks, *next; b; b = next) next = b->next, free(b);
    free(im->items), free(im->own), free(im->same), free(im->kept_words);
}

bool import_run(const ImportOptions *o, Text *report, Err *e) {
    const struct ImportSet *set = NULL;
    Import im = {.o = o, .dataset = o->dataset};
    for (int i = 0; i < SETS; i++)
        if (!strcmp(sets[i].name, o->dataset)) set = &sets[i];
    if (!set)
        return err_set(e, "E-DS-02", AT(.file = "import"),
                       "expected a known data set; found %s; do: see surgr1 import --help",
                       quoted(o->dataset, strlen(o->dataset)));
    im.fps = o->fps > 0 ? o->fps : set->fps;
    im.procedure = set->procedure ? set->procedure : "surgical";
    bool ok = folder_exists(o->root) || err_set(e, "E-IO-01", AT(.file = o->root),
                                                "expected the data set's folder; found none; do: check the path");
    ok = ok && choose_tasks(&im, e) && splits_choose(&im, e) && overlap_table(&im, e) && choose_image_root(&im, e);
    ok = ok && set->run(&im, e) && (im.n || nothing_left(&im, e)) && ids_unique(&im, e);
    Text overlaps = {0}, files = {0}, classes = {0};
    uint8_t *kept = alloc_or_die((size_t)im.n + 1, 1, "records kept");
    memset(kept, 1, (size_t)im.n);
    ok = ok && overlap_check(&im, &overlaps, e);
    if (ok && o->balance) balance(&im, kept);
    ok = ok && write_all(&im, kept, &files, e);
    if (ok) {
        report_classes(&im, kept, &classes);
        text_addf(report, "{\"dataset\":\"%s\"", im.dataset);
        add_path(report, "root", o->root);
        add_path(report, "variant", im.variant ? im.variant : "as the folders say");
        if (!o->absolute_images) add_path(report, "image_root", im.image_root);
        if (*im.naming) add_path(report, "frame_names", im.naming);
        text_addf(report,
                  ",\"sampling\":{\"fps\":%.10g,\"every\":%lld,\"balance\":%lld,\"seed\":%llu},\"weight\":%.10g",
                  im.fps, (long long)(o->every ? o->every : 1), (long long)o->balance, (unsigned long long)o->seed,
                  o->weight);
        text_addf(report,
                  ",\"read\":{\"annotation_files\":%lld,\"rows\":%lld,\"frames\":%lld,\"frames_"
                  "sampled\":%lld}",
                  (long long)im.files, (long long)im.rows, (long long)im.frames, (long long)im.sampled);
        text_add(report, files.p, files.len);
        text_add(report, classes.p, classes.len);
        report_skipped(&im, report);
        text_add(report, overlaps.p, overlaps.len);
        known_overlaps(&im, report);
        text_addf(report, "}\n");
    }
    free(kept);
    text_free(&overlaps), text_free(&files), text_free(&classes);
    import_free(&im);
    return ok;
}
