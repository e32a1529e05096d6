// scenes.c - surgr1 scenes: drawn operating fields as pictures, questions and answers.
//
// What it is:  glue: frames in parallel, PNG or JPEG files, one file of records and one of truths, a preview sheet, a
//              statistic of the labels.
// What it is not: the renderer or its labels (data/scenes.c), or the wording (data/tasks.c).
// Read before: commands.h, data/scenes.c.  Read next: sft.c.
#include "commands.h"
#include <errno.h>
#include <sys/stat.h>

static struct {
    const char *out, *size, *split, *tasks, *preview;
    int64_t count, seed, first, per_frame, group, threads, benchmark, columns, quality, cell;
    int style, kind, format;
    bool choices, reasoning, compat, truth, no_answers, both, brief;
} scenes = {.count = 100, .seed = 1, .group = SCENE_GROUP, .columns = 6, .quality = 90};
// clang-format off
static Option scenes_options[] = {
    TEXT("out", &scenes.out, "DIR", "folder: frames/NNNNNN.png (or .jpg), SPLIT.jsonl and SPLIT.truth.jsonl"),
    INT("count", &scenes.count, "N", "frames", 1, 1e6),
    INT("first", &scenes.first, "N", "number of the first frame; a patient's frames are neighbours", 0, 1e9),
    INT("seed", &scenes.seed, "N", "another seed is another hospital: no patient is shared", 0, 9e15),
    TEXT("size", &scenes.size, "WxH", "pixels, 64 to 1024 a side, or one number for a square; default 224"),
    CHOICE("style", &scenes.style, "clear|natural", "clear: tools in hues that tissue does not have; natural: steel, glare"),
    CHOICE("kind", &scenes.kind, "cholec|rarp|mixed", "cholecystectomy; robotic suturing; by patient in turn"),
    CHOICE("format", &scenes.format, "png|jpeg", "of the frames; JPEG: baseline, 4:2:0 as videos are"),
    INT("quality", &scenes.quality, "Q", "of a JPEG, on libjpeg's scale", 1, 100),
    INT("group", &scenes.group, "N", "frames of one patient", 1, 1e6),
    TEXT("split", &scenes.split, "NAME", "name of the split and of its files; default train"),
    TEXT("tasks", &scenes.tasks, "LIST", "tasks by name, with commas; default all"),
    INT("per-frame", &scenes.per_frame, "N", "questions of a frame, drawn at random, its tasks in turn; 0 = all it allows", 0, 1000),
    FLAG("choices", &scenes.choices, "multiple choice where the answer is one of a vocabulary"),
    FLAG("compat", &scenes.compat, "questions in the shapes that the public Surg-R1 model knows"),
    FLAG("brief", &scenes.brief, "questions of a few words behind the picture, for small models"),
    INT("cells", &scenes.cell, "N", "what each cell of N x N pixels shows, in the first record of a frame (sft --align)", 0, 1024),
    FLAG("reasoning", &scenes.reasoning, "with the system prompt that asks for <think> and <answer>"),
    FLAG("no-answers", &scenes.no_answers, "questions only (reinforcement learning, evaluation)"),
    FLAG("truth", &scenes.truth, "the whole truth of the frame in every record"),
    TEXT("preview", &scenes.preview, "FILE", "one PNG with the frames side by side (at most 64)"),
    FLAG("both-styles", &scenes.both, "the preview shows each frame in the other style too"),
    INT("columns", &scenes.columns, "N", "of the preview", 1, 16),
    INT("benchmark", &scenes.benchmark, "N", "draw N frames, write nothing, print frames a second", 0, 1e6),
    INT("threads", &scenes.threads, "N", "threads; 0 = one per processor; never changes a result", 0, 256),
    END};
// clang-format on

typedef struct Batch { // frames that are drawn at the same time
    SceneOptions o;
    SceneRecords how;
    int64_t from;
    bool write;
    Scene *scenes;
    Text *records, *truths;
    int *counts;
    Err *errors;
} Batch;
enum { BATCH = 64 };

// The path of a frame in the records.
static void frame_name(char *out, size_t size, int64_t index) {
    snprintf(out, size, "frames/%06lld.%s", (long long)index, scenes.format ? "jpg" : "png");
}

static void draw_one(void *ctx, int64_t i, int thread) {
    Batch *b = ctx;
    SceneOptions o = b->o;
    (void)thread;
    o.index = b->from + i;
    scene_render(&b->scenes[i], &o);
    if (!b->write) return;
    char image[64], path[1200];
    frame_name(image, sizeof image, o.index);
    snprintf(path, sizeof path, "%s/%s", scenes.out, image);
    SceneRecords how = b->how;
    how.index = o.index, how.image = image;
    b->records[i].len = b->truths[i].len = 0;
    b->counts[i] = scene_records(&b->scenes[i], &how, &b->records[i]);
    text_addf(&b->truths[i], "{\"id\":\"scenes-%llu-%06lld\",\"image\":\"%s\",\"truth\":", (unsigned long long)o.seed,
              (long long)o.index, image);
    scene_truth_json(&b->scenes[i], &b->truths[i]);
    text_addf(&b->truths[i], "}\n");
    const uint8_t *rgb = b->scenes[i].rgb;
    if (scenes.format) image_write_jpeg(path, rgb, o.width, o.height, (int)scenes.quality, true, &b->errors[i]);
    else image_write_png(path, rgb, o.width, o.height, &b->errors[i]);
}

// The statistic: how often each label came.
typedef struct Tally {
    char name[80];
    int64_t n;
} Tally;
static Tally tallies[400];
static int n_tallies;
static void tally(const char *kind, const char *label) {
    char name[80];
    int i = 0;
    snprintf(name, sizeof name, "%s: %s", kind, label);
    while (i < n_tallies && strcmp(tallies[i].name, name)) i++;
    if (i == n_tallies && n_tallies < (int)(sizeof tallies / sizeof *tallies))
        snprintf(tallies[n_tallies++].name, sizeof name, "%s", name);
    if (i < n_tallies) tallies[i].n++;
}
static void count_labels(const SceneTruth *t) {
    static const char *const criteria[] = {"cvs1", "cvs2", "cvs3"};
    char number[8];
    snprintf(number, sizeof number, "%d", t->n_tools);
    tally("kind", t->robotic ? "rarp" : "cholec"), tally("count", number);
    for (int i = 0; i < t->n_tools; i++) {
        tally("tool", t->tools[i].name), tally("grid", t->tools[i].cell);
        if (t->tools[i].verb) tally("verb", t->tools[i].verb), tally("target", t->tools[i].target);
    }
    for (int i = 0; i < t->n_tissues; i++) tally(t->tissues[i].tissue ? "tissue" : "object", t->tissues[i].name);
    if (t->robotic) {
        tally("action", t->action);
        return;
    }
    tally("phase", t->phase), tally("step", t->step);
    for (int i = 0; i < 3 && t->cvs_asked; i++) tally(criteria[i], t->criteria[i] ? "yes" : "no");
    if (t->cvs_asked) tally("cvs", t->cvs ? "yes" : "no");
}
static int by_name(const void *a, const void *b) { return strcmp(((const Tally *)a)->name, ((const Tally *)b)->name); }

static bool read_size(int *width, int *height) {
    long w = 224, h = 224;
    char *end = NULL;
    if (scenes.size) {
        w = strtol(scenes.size, &end, 10), h = w;
        if (*end == 'x') h = strtol(end + 1, &end, 10);
        if (*end || end == scenes.size) return false;
    }
    *width = (int)w, *height = (int)h;
    return w >= 64 && w <= 1024 && h >= 64 && h <= 1024;
}

// "a,b" as bits by enum Task; -1 when a name is none.
static int64_t read_tasks(const char *list) {
    int64_t bits = 0;
    if (!list) return ((int64_t)1 << TASKS) - 1;
    while (*list) {
        char name[40];
        size_t n = strcspn(list, ",");
        if (n >= sizeof name) return -1;
        memcpy(name, list, n), name[n] = 0;
        int t = task_of(name);
        if (t < 0) return -1;
        bits |= (int64_t)1 << t;
        list += n + (list[n] == ',');
    }
    return bits;
}

static bool make_folder(const char *path, Err *e) {
    if (!mkdir(path, 0777) || errno == EEXIST) return true;
    return err_set(e, "E-WR-02", AT(.file = path), "expected to make this folder; found %s; do: choose another --out",
                   error_text(errno));
}

static bool preview(const Batch *b, int64_t n, Err *e) {
    int w = b->o.width, h = b->o.height, gap = 4, each = scenes.both ? 2 : 1, columns = (int)scenes.columns;
    if (n * each < columns) columns = (int)n * each;
    int rows = (int)((n * each + columns - 1) / columns);
    int sheet_w = columns * (w + gap) + gap, sheet_h = rows * (h + gap) + gap;
    uint8_t *sheet = alloc_or_die((size_t)sheet_w * (size_t)sheet_h, 3, "a preview");
    memset(sheet, 255, (size_t)sheet_w * (size_t)sheet_h * 3);
    for (int64_t i = 0; i < n * each; i++) {
        int x = gap + (int)(i % columns) * (w + gap), y = gap + (int)(i / columns) * (h + gap);
        const Scene *s = &b->scenes[i / each];
        Scene other = {0};
        SceneOptions o = b->o;
        if (i % each) {
            o.index = b->from + i / each, o.style = o.style == SCENE_CLEAR ? SCENE_NATURAL : SCENE_CLEAR;
            scene_render(&other, &o);
            s = &other;
        }
        for (int row = 0; row < h; row++)
            memcpy(sheet + 3 * ((size_t)(y + row) * (size_t)sheet_w + (size_t)x), s->rgb + 3 * (size_t)row * (size_t)w,
                   3 * (size_t)w);
        scene_free(&other);
    }
    bool ok = image_write_png(scenes.preview, sheet, sheet_w, sheet_h, e);
    free(sheet);
    return ok;
}

static bool scenes_run(Batch *b, Err *e) {
    FileWriter records = {.fd = -1}, truths = {.fd = -1};
    char path[1100], frame[1200], image[64];
    const char *split = scenes.split ? scenes.split : "train";
    bool ok = true;
    int64_t questions = 0, drafts = 0, total = scenes.benchmark ? scenes.benchmark : scenes.count;
    double seconds = 0, started = clock_seconds();
    b->write = scenes.out && !scenes.benchmark;
    if (b->write) {
        frame_name(image, sizeof image, scenes.first);
        snprintf(frame, sizeof frame, "%s/%s", scenes.out, image);
        if (file_exists(frame))
            return err_set(e, "E-WR-02", AT(.file = frame),
                           "expected no picture of that name; found one, perhaps of another split; do: choose another "
                           "--out or --first, or remove the folder");
        snprintf(path, sizeof path, "%s/frames", scenes.out);
        ok = make_folder(scenes.out, e) && make_folder(path, e);
        snprintf(path, sizeof path, "%s/%s.jsonl", scenes.out, split);
        ok = ok && file_write_begin(&records, path, e);
        snprintf(path, sizeof path, "%s/%s.truth.jsonl", scenes.out, split);
        ok = ok && file_write_begin(&truths, path, e);
    }
    for (int64_t done = 0; ok && done < total; done += BATCH) {
        int64_t n = total - done < BATCH ? total - done : BATCH;
        b->from = scenes.first + done;
        double before = clock_seconds();
        parallel_for(n, draw_one, b);
        seconds += clock_seconds() - before;
        if (scenes.preview && !done) ok = preview(b, n, e);
        for (int64_t i = 0; i < n; i++) {
            if (ok && b->errors[i].code[0]) ok = false, *e = b->errors[i];
            if (ok && b->write)
                ok = file_write_bytes(&records, b->records[i].p, b->records[i].len, e) &&
                     file_write_bytes(&truths, b->truths[i].p, b->truths[i].len, e);
            questions += b->counts[i], drafts += b->scenes[i].truth.drafts;
            count_labels(&b->scenes[i].truth);
            scene_free(&b->scenes[i]);
        }
        progress("frames", done + n, total, started);
    }
    if (b->write) {
        ok = ok && file_write_commit(&truths, e) && file_write_commit(&records, e);
        if (!ok) file_write_abort(&truths), file_write_abort(&records);
    }
    if (!ok) return false;
    if (scenes.benchmark) {
        printf("%.1f frames a second of %d x %d, style %s, %d threads (%lld frames, %.2f drawn for each)\n",
               (double)total / seconds, b->o.width, b->o.height, scenes.style ? "natural" : "clear", pool_threads(),
               (long long)total, (double)drafts / (double)total);
        return true;
    }
    qsort(tallies, (size_t)n_tallies, sizeof *tallies, by_name);
    for (int i = 0; i < n_tallies; i++)
        printf("%-56s %8lld  %5.1f %% of frames\n", tallies[i].name, (long long)tallies[i].n,
               100.0 * (double)tallies[i].n / (double)total);
    if (b->write)
        printf("%s: %lld frames, %lld records in %s.jsonl\n", scenes.out, (long long)total, (long long)questions,
               split);
    return true;
}

static int run_scenes(char **args, int n) {
    Err e = {0};
    Batch b = {0};
    (void)args, (void)n;
    if (!scenes.out && !scenes.preview && !scenes.benchmark)
        return usage("--out", "a folder, --preview or --benchmark", "none", "give --out DIR");
    if (!read_size(&b.o.width, &b.o.height))
        return usage("--size", "64 to 1024, as 224 or 854x480", quoted(scenes.size, strlen(scenes.size)),
                     "write --size 224");
    int64_t bits = read_tasks(scenes.tasks);
    if (bits < 0)
        return usage("--tasks", "names of tasks with commas", quoted(scenes.tasks, strlen(scenes.tasks)),
                     "write for example --tasks triplet,phase,tool_box");
    if (option_of(scenes_options, &scenes.quality)->origin && !scenes.format)
        return usage("--quality", "--format jpeg beside it", "frames as PNG, which lose nothing",
                     "write --format jpeg, or leave --quality out");
    if (scenes.split && (strchr(scenes.split, '/') || !*scenes.split))
        return usage("--split", "a plain name", quoted(scenes.split, strlen(scenes.split)), "write --split train");
    b.o.seed = (uint64_t)scenes.seed, b.o.group = scenes.group;
    b.o.style = (enum SceneStyle)scenes.style, b.o.kind = (enum SceneKind)scenes.kind;
    b.how = (SceneRecords){.seed = b.o.seed,
                           .split = scenes.split ? scenes.split : "train",
                           .wording = {.seed = b.o.seed,
                                       .compat = scenes.compat,
                                       .brief = scenes.brief,
                                       .choices = scenes.choices,
                                       .reasoning = scenes.reasoning},
                           .answers = !scenes.no_answers,
                           .truth = scenes.truth,
                           .cell = (int)scenes.cell,
                           .tasks = (uint32_t)bits,
                           .per_frame = (int)scenes.per_frame};
    b.scenes = alloc_or_die(BATCH, sizeof *b.scenes, "frames");
    b.records = alloc_or_die(BATCH, sizeof *b.records, "frames"),
    b.truths = alloc_or_die(BATCH, sizeof *b.truths, "frames");
    b.counts = alloc_or_die(BATCH, sizeof *b.counts, "frames"),
    b.errors = alloc_or_die(BATCH, sizeof *b.errors, "frames");
    pool_start((int)scenes.threads);
    bool ok = scenes_run(&b, &e);
    pool_stop();
    for (int i = 0; i < BATCH; i++) text_free(&b.records[i]), text_free(&b.truths[i]);
    free(b.scenes), free(b.records), free(b.truths), free(b.counts), free(b.errors);
    return ok ? EXIT_OK : err_report(&e);
}

const Command command_scenes = {
    "scenes",
    "scenes --out DIR [--count N] [--seed S] [--size WxH] [--style clear|natural] [--format png|jpeg]",
    "Draws operating fields (cholecystectomy, robotic suturing) with their full truth and writes "
    "pictures, records of\nquestions and answers, and truths. Standard output says how often each "
    "label came.",
    scenes_options,
    0,
    0,
    "no argument",
    run_scenes};
