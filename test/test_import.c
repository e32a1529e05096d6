// test_import.c - importers: small made-up trees in the true formats, and the records that must come out of them.
//
// What it is:  for every data set the exact labels, boxes, splits and patients, and each trap that its format has; sampling, balance,
//              overlap of patients, refusals with file and line. Every accepted tree is also read back as training data.
// What it is not: a test of wording (test_tasks.c).
#include "test.h"
#include "../data/import.h"
#include <sys/stat.h>

static char folder[64], message[1800];
static Text report;
static Tokenizer *words;
static Config model;

static void clean_up(void) {
    char command[100];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    if (system(command)) perror(command);
}

// A new, empty tree for every test.
static void new_tree(void) {
    Err e = {0};
    if (*folder) clean_up();
    else atexit(clean_up);
    snprintf(folder, sizeof folder, "%s/surgr1_import_XXXXXX", folder_exists("/dev/shm") ? "/dev/shm" : "/tmp");
    CHECK(mkdtemp(folder), "no temporary folder");
    if (words) return;
    CHECK(tokenizer_load(&words, "test/fixtures/oracle/pipeline/ask/checkpoint", &e) &&
              config_load(&model, "test/fixtures/oracle/pipeline/ask/checkpoint", &e),
          "%s %s", e.code, e.found);
    model.vision.max_pixels = LIMIT_MODEL_PIXELS; // pictures stay as large as they are, and with them boxes of a pixel
}

static const char *at(const char *name) {
    static char paths[8][1200];
    static int turn;
    return snprintf(paths[++turn % 8], 1200, "%s/%s", folder, name), paths[turn % 8];
}

static void put_bytes(const char *name, const void *bytes, size_t len) {
    char path[1200];
    snprintf(path, sizeof path, "%s", at(name));
    for (char *p = path + strlen(folder) + 1; (p = strchr(p, '/')); *p++ = '/') *p = 0, mkdir(path, 0777);
    FILE *f = fopen(path, "wb");
    CHECK(f, "no file %s", path);
    if (len) fwrite(bytes, 1, len, f);
    fclose(f);
}
static void put(const char *name, const char *text) { put_bytes(name, text, strlen(text)); }

static void put_grey(const char *name, int width, int height, int grey) {
    uint8_t *rgb = alloc_or_die((size_t)width * (size_t)height, 3, "a picture"), *png;
    size_t size;
    Err e = {0};
    memset(rgb, grey, (size_t)width * (size_t)height * 3);
    CHECK(image_encode_png(&png, &size, rgb, width, height, name, &e), "%s", e.found);
    put_bytes(name, png, size);
    free(rgb), free(png);
}
static void picture(const char *name) { put_grey(name, 64, 48, 90); }

#pragma GCC diagnostic ignored "-Wformat-nonliteral"
static void pictures(const char *shape, int from, int to, int step) { // "frames/video01/%05d.png"
    char name[300];
    for (int i = from; i <= to; i += step) {
        snprintf(name, sizeof name, shape, i);
        picture(name);
    }
}

// ------------------------------------------------------------------------------------------------------------- reading
static JsonDoc docs[4000];
static int n_docs, in_file[3];
static bool keep_record(void *ctx, const Piece *p, Err *e) {
    (void)ctx;
    CHECK(n_docs < 4000, "too many records");
    return json_parse(&docs[n_docs++], p->text, p->len, "out", (JsonOptions){.refuse_duplicates = true}, e);
}
static bool no_more(void *ctx, Record *r, Err *e) {
    (void)e;
    ++*(int *)ctx;
    return r->n >= 1;
}

static JsonDoc report_doc;
static const Json *from_report(const char *path) { // "read.rows"
    const Json *v = report_doc.root;
    while (v && *path) {
        char key[100];
        size_t n = strcspn(path, ".");
        snprintf(key, sizeof key, "%.*s", (int)n, path);
        v = json_get(v, key);
        path += n + (path[n] == '.');
    }
    return v;
}
static long long skipped(const char *reason) {
    const Json *v = json_get(json_get(from_report("skipped"), reason), "count");
    return v ? v->i : 0;
}

// Runs an import of the tree; "" or the whole message. What comes out must be readable as records and as training data.
static const char *run(const char *set, ImportOptions o) {
    static const char *const splits[3] = {"train", "val", "test"};
    Err e = {0};
    for (int i = 0; i < n_docs; i++) json_free(&docs[i]);
    n_docs = 0;
    if (report_doc.root) json_free(&report_doc), report_doc.root = NULL;
    text_free(&report);
    char root[1200], out[1200];
    snprintf(root, sizeof root, "%s", folder), snprintf(out, sizeof out, "%s/out", folder);
    for (int s = 0; s < 3; s++)
        in_file[s] = 0, unlink(at(s == 0 ? "out/train.jsonl" : s == 1 ? "out/val.jsonl" : "out/test.jsonl"));
    o.dataset = set, o.root = root, o.out = out;
    if (!o.weight) o.weight = 1;
    bool ok = import_run(&o, &report, &e);
    if (ok != !e.code[0]) FAIL("verdict and error disagree: %s", e.code);
    if (!ok) return err_line(&e, "error", message, sizeof message);
    if (!json_parse(&report_doc, report.p, report.len, "report", (JsonOptions){.refuse_duplicates = true}, &e))
        FAIL("report: %s %s", e.code, e.found);
    for (int s = 0; s < 3; s++) {
        char path[1300];
        const char *files[1] = {path};
        Dataset d;
        int n = 0, before = n_docs;
        snprintf(path, sizeof path, "%s/%s.jsonl", out, splits[s]);
        if (!file_exists(path)) continue;
        if (!pieces_read(path, NULL, keep_record, NULL, &e)) FAIL("%s", err_line(&e, "error", message, sizeof message));
        RecordOptions ready = {.boxes = true, .absolute_images = o.absolute_images};
        if (!records_read_all(path, ready, NULL, no_more, NULL, &n, &e))
            FAIL("%s", err_line(&e, "error", message, sizeof message));
        in_file[s] = n;
        EXPECT_INT(n, n_docs - before);
        const Json *image_root = from_report("image_root");
        DataOptions options = {.files = files,
                               .n_files = 1,
                               .image_root = image_root ? image_root->str : NULL,
                               .absolute_images = o.absolute_images,
                               .max_tokens = 30000};
        if (o.no_answers) continue;
        if (!dataset_open(&d, words, &model, options, &e)) FAIL("%s", err_line(&e, "error", message, sizeof message));
        else {
            EXPECT_INT(d.n, n);
            dataset_close(&d);
        }
    }
    return "";
}
static bool refused(const char *set, ImportOptions o, const char *code,
                    const char *place) { // place: part of the message
    const char *v = run(set, o);
    if (strstr(v, code) && strstr(v, place)) return true;
    fprintf(stderr, "expected %s with \"%s\", got: %s\n", code, place, *v ? v : "acceptance");
    return false;
}

static const Json *record(const char *id) {
    for (int i = 0; i < n_docs; i++)
        if (json_is(json_get(docs[i].root, "id"), id)) return docs[i].root;
    return NULL;
}
static const char *text_of(const char *id, const char *field) {
    const Json *v = json_get(record(id), field);
    return v && v->type == JSON_STRING ? v->str : record(id) ? "(no field)" : "(no record)";
}
static const char *answer(const char *id) { return text_of(id, "answer"); }
static const char *printed(const char *id, const char *field) { // as JSON
    static Text t[4];
    static int turn;
    Text *out = &t[++turn % 4];
    text_free(out);
    const Json *v = json_get(record(id), field);
    if (v) json_print(out, v);
    return out->p ? out->p : "(none)";
}
static long long count_task(const char *task) {
    long long n = 0;
    for (int i = 0; i < n_docs; i++) n += json_is(json_get(docs[i].root, "task"), task);
    return n;
}

// ------------------------------------------------------------------------------------------------------------ Cholec80
#define TOOL_HEADER "Frame\tGrasper\tBipolar\tHook\tScissors\tClipper\tIrrigator\tSpecimenBag\n"
static void phases_file(const char *name, int frames, int change, const char *first, const char *then) {
    Text t = {0};
    text_addf(&t, "Frame\tPhase\n");
    for (int i = 0; i < frames; i++) text_addf(&t, "%d\t%s\n", i, i < change ? first : then);
    put(name, t.p);
    text_free(&t);
}
static void cholec80(void) { // videos 1 (train) and 41 (test), three seconds each
    new_tree();
    phases_file("phase_annotations/video01-phase.txt", 75, 50, "Preparation", "CalotTriangleDissection");
    phases_file("phase_annotations/video41-phase.txt", 75, 75, "GallbladderPackaging", "");
    put("tool_annotations/video01-tool.txt",
        TOOL_HEADER "0\t1\t0\t0\t0\t0\t0\t0\n25\t1\t0\t1\t0\t0\t0\t0\n50\t0\t0\t0\t0\t0\t0\t0\n");
    // the columns in another order: they are read by name
    put("tool_annotations/video41-tool.txt", "Frame\tSpecimenBag\tGrasper\n0\t1\t0\n25\t0\t1\n50\t1\t1\n");
    pictures("frames/video01/%05d.png", 0, 2, 1);
    pictures("frames/video41/%05d.png", 0, 2, 1);
}

TEST(cholec80_phases_and_tools) {
    cholec80();
    EXPECT_STR(run("cholec80", (ImportOptions){0}), "");
    EXPECT_INT(in_file[0], 5);
    EXPECT_INT(in_file[1], 0);
    EXPECT_INT(in_file[2], 6);
    EXPECT_STR(answer("cholec80-01-000000-phase"), "Preparation");
    EXPECT_STR(answer("cholec80-01-000025-phase"), "Preparation");
    EXPECT_STR(answer("cholec80-01-000050-phase"), "Calot Triangle Dissection");
    EXPECT_STR(answer("cholec80-01-000025-tool"), "grasper and hook");
    EXPECT_STR(answer("cholec80-41-000000-tool"), "specimen bag");
    EXPECT_STR(answer("cholec80-41-000050-tool"), "grasper and specimen bag");
    EXPECT_STR(text_of("cholec80-41-000050-tool", "patient"), "camma-41");
    EXPECT_STR(text_of("cholec80-41-000050-tool", "split"), "test");
    EXPECT_STR(printed("cholec80-01-000025-phase", "images"), "[\"frames/video01/00001.png\"]");
    EXPECT_STR(printed("cholec80-01-000025-phase", "source"),
               "{\"fps\":25,\"frame_base\":0,\"image_number\":1,\"image_base\":0}");
    EXPECT_INT(skipped("no tool to name"), 1);
    EXPECT_STR(from_report("frame_names")->str, "seconds, from 0");
}

TEST(cholec80_frame_names_are_told_apart) {
    cholec80();
    EXPECT(!system("true"));
    // 1-based counter of video frames: 1, 26, 51
    char command[300];
    snprintf(command, sizeof command, "rm -r %s/frames", folder);
    EXPECT(!system(command));
    pictures("frames/video01/%d.jpg.png", 1, 51, 25), pictures("frames/41/%d.png", 1, 51, 25);
    EXPECT_STR(run("cholec80", (ImportOptions){.tasks = "phase"}), "");
    EXPECT_STR(from_report("frame_names")->str, "video frames, from 1");
    EXPECT_STR(printed("cholec80-41-000050-phase", "images"), "[\"frames/41/51.png\"]");
    EXPECT(!system(command));
    pictures("frames/video01/%d.png", 0, 50, 25);
    EXPECT_STR(run("cholec80", (ImportOptions){.tasks = "phase"}), "");
    EXPECT_STR(from_report("frame_names")->str, "video frames, from 0");
    EXPECT_STR(printed("cholec80-01-000050-phase", "images"), "[\"frames/video01/50.png\"]");
    EXPECT_INT(skipped("missing folder of frames"), 3); // of video 41
    EXPECT(!system(command));
    phases_file("phase_annotations/video41-phase.txt", 25 * 60, 1500, "GallbladderPackaging",
                ""); // a minute: 0, 25, 50 could be seconds
    pictures("frames/video41/%d.png", 0, 50, 25);
    EXPECT_STR(run("cholec80", (ImportOptions){.tasks = "phase"}), "");
    EXPECT_STR(printed("cholec80-41-000050-phase", "images"), "[\"frames/video41/50.png\"]");
    EXPECT(!system(command));
    pictures("frames/video01/%d.png", 1, 3, 1); // as many as seconds, none is 0
    EXPECT_STR(run("cholec80", (ImportOptions){.tasks = "phase"}), "");
    EXPECT_STR(from_report("frame_names")->str, "seconds, from 1");
    EXPECT_STR(printed("cholec80-01-000050-phase", "images"), "[\"frames/video01/3.png\"]");
    EXPECT(!system(command));
    pictures("frames/video01/%d.png", 1, 2, 1); // from 0 or from 1? nobody can know
    EXPECT(refused("cholec80", (ImportOptions){.tasks = "phase"}, "E-DS-14", "frame-names"));
    EXPECT_STR(run("cholec80", (ImportOptions){.tasks = "phase", .frame_names = "seconds0"}), "");
    EXPECT_STR(printed("cholec80-01-000025-phase", "images"), "[\"frames/video01/1.png\"]");
    EXPECT_INT(skipped("missing frame file"), 1);
}

TEST(cholec80_refuses_what_it_does_not_know) {
    cholec80();
    put("phase_annotations/video01-phase.txt", "Frame\tPhase\n0\tPreparation\n25\tLunch\n");
    EXPECT(refused("cholec80", (ImportOptions){0}, "E-DS-12", "video01-phase.txt:3"));
    EXPECT_STR(run("cholec80", (ImportOptions){.skip_unknown = true}), "");
    EXPECT_INT(skipped("label outside of the vocabulary"), 1);
    put("phase_annotations/video01-phase.txt", "Frame\tPhase\n25\tPreparation\n0\tPreparation\n");
    EXPECT(refused("cholec80", (ImportOptions){0}, "E-DS-13", "video01-phase.txt:3"));
    put("phase_annotations/video01-phase.txt", "Frame\tPhase\n0\tPreparation\textra\n");
    EXPECT(refused("cholec80", (ImportOptions){0}, "E-DS-13", "video01-phase.txt:2"));
    put("phase_annotations/video01-phase.txt", "Frame\tPhase\n0x10\tPreparation\n");
    EXPECT(refused("cholec80", (ImportOptions){0}, "E-DS-13", "video01-phase.txt:2"));
    cholec80();
    put("tool_annotations/video01-tool.txt", "Frame\tGrasper\tSpoon\n0\t1\t0\n");
    EXPECT(refused("cholec80", (ImportOptions){0}, "E-DS-12", "video01-tool.txt:1"));
    cholec80();
    put("tool_annotations/video01-tool.txt", TOOL_HEADER "0\t2\t0\t0\t0\t0\t0\t0\n");
    EXPECT(refused("cholec80", (ImportOptions){0}, "E-DS-13", "video01-tool.txt:2"));
}

TEST(cholec80_without_a_part) {
    cholec80();
    unlink(at("phase_annotations/video41-phase.txt"));
    EXPECT_STR(run("cholec80", (ImportOptions){0}), "");
    EXPECT_INT(skipped("missing phase file"), 1);
    EXPECT_INT(count_task("phase"), 3);
    unlink(at("frames/video01/00001.png"));
    EXPECT_STR(run("cholec80", (ImportOptions){0}), "");
    EXPECT_INT(skipped("missing frame file"), 1);
    char command[300];
    snprintf(command, sizeof command, "rm -r %s/frames", folder);
    EXPECT(!system(command));
    EXPECT(refused("cholec80", (ImportOptions){0}, "E-DS-02", "6 missing folder of frames"));
    EXPECT(refused("cholec81", (ImportOptions){0}, "E-DS-02", "cholec81"));
    EXPECT(refused("cholec80", (ImportOptions){.tasks = "phase,lunch"}, "E-DS-02", "lunch"));
    EXPECT(refused("cholec80", (ImportOptions){.variant = "50-30"}, "E-DS-02", "40-40, 32-8-40"));
}

TEST(sampling_and_splits) {
    new_tree();
    phases_file("phase_annotations/video33-phase.txt", 250, 250, "Preparation", "");
    pictures("frames/video33/%05d.png", 0, 9, 1);
    EXPECT_STR(run("cholec80", (ImportOptions){0}), "");
    EXPECT_INT(in_file[0], 10);
    EXPECT_STR(run("cholec80", (ImportOptions){.fps = 0.5, .variant = "32-8-40"}), "");
    EXPECT_INT(in_file[0], 0);
    EXPECT_INT(in_file[1], 5);
    EXPECT_STR(answer("cholec80-33-000050-phase"), "Preparation");
    EXPECT(!record("cholec80-33-000025-phase"));
    EXPECT_STR(run("cholec80", (ImportOptions){.every = 4}), "");
    EXPECT_INT(in_file[0], 3);
    EXPECT(record("cholec80-33-000100-phase") && record("cholec80-33-000200-phase"));
    EXPECT(refused("cholec80", (ImportOptions){.splits = "test"}, "E-DS-02", "not asked for"));
    char path[1300];
    put("mine.csv", "video,split\n33,test\n");
    snprintf(path, sizeof path, "%s", at("mine.csv"));
    EXPECT_STR(run("cholec80", (ImportOptions){.variant = path}), "");
    EXPECT_INT(in_file[2], 10);
    put("mine.csv", "video,split\n33,exam\n");
    EXPECT(refused("cholec80", (ImportOptions){.variant = path}, "E-DS-13", "mine.csv:2"));
}

TEST(balance_is_a_function_of_the_seed) {
    new_tree();
    phases_file("phase_annotations/video02-phase.txt", 25 * 40, 25 * 30, "Preparation", "ClippingCutting");
    pictures("frames/video02/%05d.png", 0, 39, 1);
    EXPECT_STR(run("cholec80", (ImportOptions){.balance = 6, .seed = 1}), "");
    EXPECT_INT(in_file[0], 12);
    char first[20000] = "", again[20000] = "", other[20000] = "";
    for (int i = 0; i < n_docs; i++) strcat(first, json_get(docs[i].root, "id")->str);
    EXPECT_STR(run("cholec80", (ImportOptions){.balance = 6, .seed = 1}), "");
    for (int i = 0; i < n_docs; i++) strcat(again, json_get(docs[i].root, "id")->str);
    EXPECT_STR(again, first);
    EXPECT_STR(run("cholec80", (ImportOptions){.balance = 6, .seed = 2}), "");
    for (int i = 0; i < n_docs; i++) strcat(other, json_get(docs[i].root, "id")->str);
    EXPECT(strcmp(first, other));
    EXPECT_STR(run("cholec80", (ImportOptions){.balance = -1}), ""); // as many as the rarest: 10
    EXPECT_INT(in_file[0], 20);
    EXPECT_INT(skipped("left out by the balance of classes"), 20);
    const Json *counts = from_report("tasks.phase.counts");
    EXPECT_INT(json_get(counts, "Preparation")->i, 10);
    EXPECT_INT(json_get(counts, "Clipping Cutting")->i, 10);
    // a smaller sample is part of a larger one: what is kept hangs on the id alone
    EXPECT_STR(run("cholec80", (ImportOptions){.balance = 2, .seed = 1}), "");
    for (int i = 0; i < n_docs; i++) EXPECT(strstr(first, json_get(docs[i].root, "id")->str));
}

TEST(records_say_what_options_ask) {
    cholec80();
    EXPECT_STR(run("cholec80", (ImportOptions){.tasks = "phase", .weight = 0.25, .wording.choices = true}), "");
    EXPECT_STR(printed("cholec80-01-000000-phase", "weight"), "0.25");
    EXPECT(strstr(printed("cholec80-01-000050-phase", "messages"), "\"B. Calot Triangle Dissection\"}]"));
    EXPECT(strstr(printed("cholec80-01-000050-phase", "choices"), "[\"Preparation\",\"Calot Triangle Dissection\""));
    EXPECT_STR(run("cholec80", (ImportOptions){.tasks = "phase", .no_answers = true}), "");
    EXPECT(!strstr(printed("cholec80-01-000000-phase", "messages"), "assistant"));
    EXPECT_STR(answer("cholec80-01-000000-phase"), "Preparation");
    EXPECT_STR(run("cholec80", (ImportOptions){.tasks = "phase", .absolute_images = true}), "");
    EXPECT(strstr(printed("cholec80-01-000000-phase", "images"), "[\"/"));
    char path[1300];
    snprintf(path, sizeof path, "%s", at("frames/video01"));
    EXPECT(refused("cholec80", (ImportOptions){.tasks = "phase", .image_root = path}, "E-DS-04", "--image-root"));
    put_grey("frames/video01/00000.png", 64, 48, 0);
    EXPECT_STR(run("cholec80", (ImportOptions){.tasks = "phase", .drop_black = true}), "");
    EXPECT(!record("cholec80-01-000000-phase") && record("cholec80-01-000025-phase"));
    EXPECT_INT(skipped("black frame"), 1);
}

// ------------------------------------------------------------------------------------------------------------- overlap
TEST(a_patient_is_on_one_side) {
    const char *rdv[1] = {"cholect50:rdv:test"}, *all[1] = {"all"}, *scopes[1] = {"endoscapes"},
               *odd[1] = {"cholect50:rdv:train"};
    new_tree();
    phases_file("phase_annotations/video06-phase.txt", 25, 25, "Preparation", "");
    pictures("frames/video06/%05d.png", 0, 0, 1);
    EXPECT_STR(run("cholec80", (ImportOptions){0}), "");                        // no other set is in use
    EXPECT(strstr(report.p, "{\"split\":\"cholect50:rdv\",\"videos\":\"6\"}")); // but it says so
    EXPECT(refused("cholec80", (ImportOptions){.eval = rdv, .n_eval = 1}, "E-DS-09",
                   "camma-6 in cholec80:train and the same in cholect50:rdv:test"));
    EXPECT(refused("cholec80", (ImportOptions){.eval = all, .n_eval = 1}, "E-DS-09", "camma-6"));
    EXPECT(refused("cholec80", (ImportOptions){.eval = odd, .n_eval = 1}, "E-DS-02", "--eval"));
    EXPECT_STR(run("cholec80", (ImportOptions){.eval = rdv, .n_eval = 1, .allow_overlap = true}), "");
    EXPECT_INT(from_report("overlaps")->count, 1);
    EXPECT(refused("cholec80", (ImportOptions){.eval = scopes, .n_eval = 1}, "E-DS-09",
                   "--overlap-table"));         // may be one patient
    const char *val[1] = {"cholect50:rdv:val"}; // 8 12 29 50 78
    EXPECT_STR(run("cholec80", (ImportOptions){.eval = val, .n_eval = 1}), "");
    // records of another import, on either side
    char beside[1300];
    const char *files[1] = {beside};
    snprintf(beside, sizeof beside, "%s", at("other.jsonl"));
    put("other.jsonl", "{\"id\":\"a\",\"dataset\":\"cholect50\",\"patient\":\"camma-6\",\"split\":\"test\"}\n");
    EXPECT(refused("cholec80", (ImportOptions){.beside = files, .n_beside = 1}, "E-DS-09", "other.jsonl"));
    put("other.jsonl", "{\"id\":\"a\",\"dataset\":\"cholect50\",\"patient\":\"camma-6\",\"split\":\"train\"}\n");
    EXPECT_STR(run("cholec80", (ImportOptions){.beside = files, .n_beside = 1}), "");
    char mine[1300];
    put("mine.csv", "06,test\n");
    snprintf(mine, sizeof mine, "%s", at("mine.csv"));
    EXPECT(refused("cholec80", (ImportOptions){.variant = mine, .beside = files, .n_beside = 1}, "E-DS-09",
                   "cholec80:test"));
}

// ----------------------------------------------------------------------------------------------------------- CholecT50
#define T50_HEAD                                                                                                       \
    "{\"video\": 1, \"fps\": 1, \"num_frames\": 5, \"categories\": {\"triplet\": {\"0\": "                             \
    "\"grasper,dissect,cystic_plate\"},"                                                                               \
    "\"instrument\": {\"0\": \"grasper\"}, \"verb\": {\"0\": \"grasp\"}, \"target\": {\"0\": \"gallbladder\"},"        \
    "\"phase\": {\"0\": \"preparation\", \"1\": \"carlot-triangle-dissection\", \"6\": \"gallbladder-extraction\"}}, " \
    "\"annotations\": {"
#define T50_TAIL "}, \"info\": {}, \"licenses\": []}"

TEST(cholect50_triplets_phases_boxes) {
    new_tree();
    put("labels/VID01.json",
        T50_HEAD "\"0\": [[-1,-1,1,-1,-1,-1,-1,-1,-1,1,-1,-1,-1,-1,0]],"
                 "\"1\": [[17,0,1,-1,-1,-1,-1,1,0,1,-1,-1,-1,-1,1], [60,2,1,0.25,0.5,0.5,0.25,2,0,1,-1,-1,-1,-1,1]],"
                 "\"2\": [[94,0,1,-1,-1,-1,-1,9,14,1,-1,-1,-1,-1,6]], \"3\": [],"
                 "\"4\": [[17,0,1,0.25,0.5,0.5,0.25,1,0,1,-1,-1,-1,-1,1], [17,0,1,0.5,0,0.25,0.25,1,0,1,-1,-1,-1,-1,1],"
                 "[60,2,1,0,0,1,1,2,0,1,-1,-1,-1,-1,1]]" T50_TAIL);
    pictures("videos/VID01/%06d.png", 0, 4, 1);
    EXPECT_STR(run("cholect50", (ImportOptions){0}), "");
    EXPECT_STR(answer("cholect50-01-000000-phase"), "Preparation"); // no triplet, but a phase
    EXPECT(!record("cholect50-01-000000-triplet"));
    EXPECT_INT(skipped("frame without a triplet"), 1);
    EXPECT_STR(answer("cholect50-01-000001-triplet"),
               "grasper retract gallbladder, hook dissect gallbladder");          // verb is index 7, target 8
    EXPECT_STR(answer("cholect50-01-000001-phase"), "Calot Triangle Dissection"); // "carlot"
    EXPECT_STR(answer("cholect50-01-000001-tool"), "grasper and hook");
    EXPECT(!record("cholect50-01-000001-action"));
    EXPECT_INT(skipped("boxes of a frame where some tool has none"), 1);
    EXPECT_STR(answer("cholect50-01-000002-triplet"), "grasper null_verb null_target"); // id 94: the ids start at 0
    EXPECT_STR(answer("cholect50-01-000002-phase"), "Gallbladder Retraction");          // "extraction"
    EXPECT_INT(skipped("action: null triplet"), 1);
    EXPECT_INT(skipped("null frame: no row"), 1);
    EXPECT_STR(answer("cholect50-01-000004-triplet"), "grasper retract gallbladder, hook dissect gallbladder"); // a set
    EXPECT_STR(printed("cholect50-01-000004-tool_boxes", "boxes"),
               "[{\"label\":\"grasper\",\"box\":[16,24,48,36]},{\"label\":\"grasper\",\"box\":[32,0,48,12]},{\"label\":"
               "\"hook\",\"box\":[0,0,64,48]}]");
    EXPECT_STR(printed("cholect50-01-000004-tool_box-hook", "boxes"), "[{\"label\":\"hook\",\"box\":[0,0,64,48]}]");
    EXPECT(!record("cholect50-01-000004-tool_box-grasper")); // two of them
    EXPECT_STR(text_of("cholect50-01-000001-triplet", "split"), "train");
    EXPECT_STR(run("cholect50", (ImportOptions){.variant = "cv5"}), ""); // fold 5 holds video 1
    EXPECT_STR(text_of("cholect50-01-000001-triplet", "split"), "test");
}

TEST(cholect50_refuses) {
    new_tree();
    pictures("videos/VID01/%06d.png", 0, 1, 1);
    static const struct {
        const char *row, *code;
    } cases[] = {
        {"[17,0,1,-1,-1,-1,-1,2,0,1,-1,-1,-1,-1,1]", "E-DS-13"}, // triplet 17 retracts, it does not dissect
        {"[17,0,1,-1,-1,-1,-1,1,0,1,-1,-1,-1,1]", "E-DS-13"},    // 14 numbers
        {"[100,0,1,-1,-1,-1,-1,1,0,1,-1,-1,-1,-1,1]", "E-DS-13"},
        {"[17,0,1,0.5,0,0.75,0.5,1,0,1,-1,-1,-1,-1,1]", "E-DS-06"}, // leaves the picture
        {"[17,0,1,-1,-1,-1,-1,1,0,1,-1,-1,-1,-1,0],[60,2,1,-1,-1,-1,-1,2,0,1,-1,-1,-1,-1,1]", "E-DS-13"}}; // two phases
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Text t = {0};
        text_addf(&t, T50_HEAD "\n\"1\": [%s]" T50_TAIL, cases[i].row);
        put("labels/VID01.json", t.p);
        EXPECT(refused("cholect50", (ImportOptions){0}, cases[i].code, "VID01.json:2"));
        text_free(&t);
    }
    put("labels/VID01.json", "{\"categories\":{\"phase\":{\"1\":\"lunch\"}},\"annotations\":{\"0\":[[17,0,1,-1,-1,-1,-"
                             "1,1,0,1,-1,-1,-1,-1,1]]}}");
    EXPECT(refused("cholect50", (ImportOptions){0}, "E-DS-12", "lunch"));
    put("labels/VID01.json", "{\"annotations\":{\"x\":[]}}");
    EXPECT(refused("cholect50", (ImportOptions){0}, "E-DS-13", "\"x\""));
    put("labels/VID01.json", "{\"annotations\":{\"0\":[],\"0\":[]}}");
    EXPECT(refused("cholect50", (ImportOptions){0}, "E-JS-08", "VID01.json"));
}

TEST(categories_are_read_by_name) { // a file whose instruments stand in another order
    new_tree();
    put("labels/VID01.json", "{\"categories\":{\"triplet\":{\"5\":\"hook,dissect,gallbladder\"},\"instrument\":{\"1\":"
                             "\"hook\"},\"verb\":{\"3\":\"dissect\"},"
                             "\"target\":{\"2\":\"gallbladder\"},\"phase\":{\"0\":\"clipping-and-cutting\"}},"
                             "\"annotations\":{\"0\":[[5,1,1,-1,-1,-1,-1,3,2,1,-1,-1,-1,-1,0]]}}");
    pictures("videos/VID01/%06d.png", 0, 0, 1);
    EXPECT_STR(run("cholect50", (ImportOptions){0}), "");
    EXPECT_STR(answer("cholect50-01-000000-triplet"), "hook dissect gallbladder");
    EXPECT_STR(answer("cholect50-01-000000-action"), "dissect");
    EXPECT_STR(answer("cholect50-01-000000-phase"), "Clipping Cutting");
}

TEST(splits_are_the_published_ones) { // every video of CholecT50, one frame each
    static const int videos[50] = {1,  2,  4,  5,  6,  8,  10, 12, 13, 14, 15, 18, 22, 23,  25,  26, 27,
                                   29, 31, 32, 35, 36, 40, 42, 43, 47, 48, 49, 50, 51, 52,  56,  57, 60,
                                   62, 65, 66, 68, 70, 73, 74, 75, 78, 79, 80, 92, 96, 103, 110, 111};
    static const struct {
        const char *variant;
        int train, val, test;
    } want[] = {{NULL, 35, 5, 10}, {"challenge", 40, 5, 5}, {"cv1", 35, 5, 10}, {"cv5", 35, 5, 10}};
    new_tree();
    for (int i = 0; i < 50; i++) {
        char name[100];
        snprintf(name, sizeof name, "labels/VID%02d.json", videos[i]);
        put(name, "{\"annotations\":{\"0\":[[17,0,1,-1,-1,-1,-1,1,0,1,-1,-1,-1,-1,1]]}}");
        snprintf(name, sizeof name, "videos/VID%02d/000000.png", videos[i]);
        picture(name);
    }
    for (size_t k = 0; k < sizeof want / sizeof *want; k++) {
        EXPECT_STR(run("cholect50", (ImportOptions){.variant = want[k].variant, .tasks = "triplet"}), "");
        EXPECT_INT(in_file[0], want[k].train);
        EXPECT_INT(in_file[1], want[k].val);
        EXPECT_INT(in_file[2], want[k].test);
    }
    // fold 5: the last five of the remaining list are those of fold 4
    EXPECT_STR(text_of("cholect50-75-000000-triplet", "split"), "val");
    EXPECT_STR(text_of("cholect50-110-000000-triplet", "split"), "val");
    EXPECT_STR(text_of("cholect50-65-000000-triplet", "split"), "train");
    EXPECT_STR(text_of("cholect50-92-000000-triplet", "split"), "test");
}

static void zeros_and_ones(Text *t, int frame, int n, int one, int two) {
    text_addf(t, "%d", frame);
    for (int i = 0; i < n; i++) text_addf(t, ",%d", i == one || i == two);
    text_addf(t, "\n");
}

TEST(cholect45_text) {
    new_tree();
    Text t = {0};
    zeros_and_ones(&t, 0, 100, -1, -1), zeros_and_ones(&t, 1, 100, 17, 60), zeros_and_ones(&t, 2, 100, 79, -1);
    put("triplet/VID79.txt", t.p);
    text_free(&t);
    put("dict/maps.txt", "# IVT, I, V, T, IV, IT\n0,0,2,1,2,1\n79,4,4,2,44,62\n");
    pictures("data/VID79/%06d.png", 0, 2, 1);
    EXPECT_STR(run("cholect45", (ImportOptions){0}), "");
    EXPECT_STR(answer("cholect45-79-000001-triplet"), "grasper retract gallbladder, hook dissect gallbladder");
    EXPECT_STR(answer("cholect45-79-000002-action"), "clip");
    EXPECT_STR(text_of("cholect45-79-000002-action", "split"), "test"); // fold 1
    EXPECT_STR(text_of("cholect45-79-000002-action", "patient"), "camma-79");
    EXPECT_INT(skipped("frame without a triplet"), 1);
    put("dict/maps.txt", "# IVT, I, V, T, IV, IT\n79,4,4,3,44,63\n");
    EXPECT(refused("cholect45", (ImportOptions){0}, "E-DS-12", "maps.txt:2"));
    put("dict/maps.txt", "");
    put("triplet/VID79.txt", "0,1,0\n");
    EXPECT(refused("cholect45", (ImportOptions){0}, "E-DS-13", "VID79.txt:1"));
}

// ------------------------------------------------------------------------------------------------------ CholecTrack20
#define TRACK(box, tool)                                                                                               \
    "{\"tool_bbox\": " box ", \"instrument\": " tool ", \"operator\": 1, \"phase\": 1, \"triplet\": 60, \"score\": "   \
    "1.0}"
TEST(cholectrack20_boxes_in_shares_and_pixels) {
    new_tree();
    put("Training/VID01/VID01.json", "{\"video\": {\"name\": 1, \"width\": 64, \"height\": 48}, \"categories\": "
                                     "{\"tools\": [{\"id\": 0, \"name\": \"grasper\"}]},"
                                     "\"annotations\": {\"25\": [" TRACK("[0.25, 0.5, 0.5, 0.25]", "2") "," TRACK(
                                         "[0, 0, 0.5, 0.5]", "0") "], \"50\": []}}");
    put("Testing/VID111/VID111.json",
        "{\"video\": {\"name\": 111, \"width\": 64, \"height\": 48}, \"annotations\": {\"0\": [" TRACK(
            "[16, 24, 32, 12]", "6") "]}}");
    pictures("Training/VID01/Frames/%06d.png", 25, 50, 25), pictures("Testing/VID111/Frames/%06d.png", 0, 0, 1);
    EXPECT_STR(run("cholectrack20", (ImportOptions){0}), "");
    EXPECT_STR(printed("cholectrack20-01-000025-tool_boxes", "boxes"),
               "[{\"label\":\"hook\",\"box\":[16,24,48,36]},{\"label\":\"grasper\",\"box\":[0,0,32,24]}]");
    EXPECT_STR(answer("cholectrack20-01-000025-count"), "2");
    EXPECT_STR(answer("cholectrack20-01-000050-count"), "0");
    EXPECT_STR(answer("cholectrack20-01-000025-phase"), "Calot Triangle Dissection");
    EXPECT_STR(printed("cholectrack20-111-000000-tool_box-specimen bag", "boxes"),
               "[{\"label\":\"specimen bag\",\"box\":[16,24,48,36]}]");
    EXPECT_STR(text_of("cholectrack20-111-000000-count", "split"), "test");
    EXPECT_INT(skipped("missing folder of a split"), 1);
    put_grey("Testing/VID111/Frames/000000.png", 32, 24, 9); // scaled frames do not fit boxes in pixels
    EXPECT(refused("cholectrack20", (ImportOptions){0}, "E-DS-06", "64x48"));
}

// --------------------------------------------------------------------------------------------------------- Endoscapes
#define ENDO_CATEGORIES                                                                                                \
    "\"categories\":[{\"id\":1,\"name\":\"cystic_plate\"},{\"id\":2,\"name\":\"calot_triangle\"},{\"id\":3,\"name\":"  \
    "\"cystic_artery\"},"                                                                                              \
    "{\"id\":4,\"name\":\"cystic_duct\"},{\"id\":5,\"name\":\"gallbladder\"},{\"id\":6,\"name\":\"tool\"}]}"
#define ENDO_IMAGE(id, name, key, ds)                                                                                  \
    "{\"id\":" #id ",\"file_name\":\"" name                                                                            \
    "\",\"height\":48,\"width\":64,\"video_id\":1,\"is_det_keyframe\":true,\"is_ds_keyframe\":" key ",\"ds\":" ds "}"

TEST(endoscapes_boxes_and_criteria) {
    new_tree();
    put("train/annotation_coco.json",
        "{\"images\":[" ENDO_IMAGE(
            1000025, "1_25.jpg", "true",
            "[0,1,1]") "],\"annotations\":["
                       "{\"id\":1,\"image_id\":1000025,\"category_id\":5,\"bbox\":[10.0,5.0,22.0,14.0],\"area\":1,"
                       "\"iscrowd\":0,\"segmentation\":[]},"
                       "{\"id\":2,\"image_id\":1000025,\"category_id\":6,\"bbox\":[0,0,4,4]},{\"id\":3,\"image_id\":"
                       "1000025,\"category_id\":6,\"bbox\":[60,44,4,4]},"
                       "{\"id\":4,\"image_id\":1000025,\"category_id\":2,\"bbox\":[1,1,2,2]}]," ENDO_CATEGORIES);
    put("train/annotation_ds_coco.json",
        "{\"images\":[" ENDO_IMAGE(1000025, "1_25.jpg", "true", "[0.6666666666666666,0.3333333333333333,1.0]") "," ENDO_IMAGE(
            1000050, "1_50.jpg", "false",
            "[1.0,1.0,1.0]") "," ENDO_IMAGE(1000150, "1_150.jpg", "true",
                                            "[1.0,0.6666666666666666,1.0]") "],"
                                                                            "\"annotations\":[]," ENDO_CATEGORIES);
    pictures("train/1_%d.jpg", 25, 50, 25), picture("train/1_150.jpg");
    EXPECT_STR(run("endoscapes", (ImportOptions){0}), "");
    EXPECT_STR(printed("endoscapes-1-000025-tissue_box-4", "boxes"),
               "[{\"label\":\"gallbladder\",\"box\":[10,5,32,19]}]");
    EXPECT_STR(answer("endoscapes-1-000025-tissue"), "calot triangle and gallbladder");
    EXPECT_STR(answer("endoscapes-1-000025-count"), "2");
    EXPECT_STR(printed("endoscapes-1-000025-tool_boxes", "boxes"),
               "[{\"label\":\"tool\",\"box\":[0,0,4,4]},{\"label\":\"tool\",\"box\":[60,44,64,48]}]");
    EXPECT_STR(answer("endoscapes-1-000025-cvs1"), "yes"); // 2/3 rounds up
    EXPECT_STR(answer("endoscapes-1-000025-cvs2"), "no");  // 1/3 down
    EXPECT_STR(answer("endoscapes-1-000025-cvs3"), "yes");
    EXPECT_STR(answer("endoscapes-1-000025-cvs"), "no");
    EXPECT_STR(answer("endoscapes-1-000150-cvs"), "yes");
    EXPECT(!record("endoscapes-1-000050-cvs1")); // it carries the label of the key frame before
    EXPECT_INT(skipped("frame that no rater looked at"), 1);
    EXPECT_STR(text_of("endoscapes-1-000150-cvs", "patient"), "endoscapes-1");
    // who is who in the CAMMA family
    const char *rdv[1] = {"cholect50:rdv:test"};
    EXPECT(refused("endoscapes", (ImportOptions){.eval = rdv, .n_eval = 1}, "E-DS-09", "--overlap-table"));
    char path[1300];
    put("same.csv", "endoscapes,camma\n1,52\n");
    snprintf(path, sizeof path, "%s", at("same.csv"));
    EXPECT_STR(run("endoscapes", (ImportOptions){.eval = rdv, .n_eval = 1, .overlap_table = path}), "");
    EXPECT_STR(text_of("endoscapes-1-000150-cvs", "patient"), "camma-52");
    put("same.csv", "endoscapes,camma\n1,51\n");
    EXPECT(
        refused("endoscapes", (ImportOptions){.eval = rdv, .n_eval = 1, .overlap_table = path}, "E-DS-09", "camma-51"));
    put_grey("train/1_25.jpg", 32, 24, 90);
    EXPECT(refused("endoscapes", (ImportOptions){0}, "E-DS-06", "64x48"));
}

TEST(endoscapes_stubs_and_half) {
    new_tree();
    put("train_seg/annotation_coco.json",
        "{\"images\":[" ENDO_IMAGE(1000025, "1_25.jpg", "true", "[0,0.5,1]") "," ENDO_IMAGE(
            1000050, "1_50.jpg", "true", "[0,0,0]") "],"
                                                    "\"annotations\":[{\"id\":1,\"image_id\":1000025,\"category_id\":1,"
                                                    "\"bbox\":[0,0,2,2]}]," ENDO_CATEGORIES);
    put("train_seg/1_25.jpg", "../train/1_25.jpg"); // a link that became a text file
    picture("train/1_25.jpg");
    EXPECT_STR(run("endoscapes", (ImportOptions){.variant = "seg"}), "");
    EXPECT_STR(printed("endoscapes-1-000025-tissue", "images"), "[\"train/1_25.jpg\"]");
    EXPECT_INT(skipped("stub of a link: the picture of that name in another folder is used"), 1);
    EXPECT_INT(skipped("missing frame file"), 1);
    unlink(at("train_seg/1_25.jpg"));
    EXPECT(!symlink("../train/1_25.jpg", at("train_seg/1_25.jpg"))); // the link itself, as the archive has it
    EXPECT_STR(run("endoscapes", (ImportOptions){.variant = "seg"}), "");
    EXPECT_STR(printed("endoscapes-1-000025-tissue", "images"), "[\"train/1_25.jpg\"]");
    EXPECT_INT(skipped("stub of a link: the picture of that name in another folder is used"), 0);
    put("12_5/train_2/annotation_coco.json",
        "{\"images\":[" ENDO_IMAGE(
            1000025, "1_25.jpg", "true",
            "[0,0,1]") "],\"annotations\":[{\"id\":1,"
                       "\"image_id\":1000025,\"category_id\":5,\"bbox\":[1,2,3,4]}]," ENDO_CATEGORIES);
    EXPECT_STR(run("endoscapes", (ImportOptions){.variant = "12_5-2"}),
               ""); // a missing picture is looked for as a stub is
    EXPECT_STR(answer("endoscapes-1-000025-tissue"), "gallbladder");
    put("val/annotation_coco_vid.json",
        "{\"images\":[" ENDO_IMAGE(121000025, "121_25.jpg", "true",
                                   "[0.5,1,1]") "],\"annotations\":[]," ENDO_CATEGORIES);
    picture("val/121_25.jpg");
    EXPECT_STR(run("endoscapes", (ImportOptions){.splits = "val"}), "");
    EXPECT_STR(answer("endoscapes-121-000025-cvs1"), "no"); // half goes to even
    put("val/annotation_coco_vid.json",
        "{\"images\":[" ENDO_IMAGE(121000025, "121_25.jpg", "true", "[0.5,1]") "],\"annotations\":[]," ENDO_CATEGORIES);
    EXPECT(refused("endoscapes", (ImportOptions){.splits = "val"}, "E-DS-13", "annotation_coco_vid.json:1"));
}

// ------------------------------------------------------------------------------------------------------- Cholec80-CVS
static void damage(const char *set, const char *file, int times, ImportOptions o);

// A spreadsheet with stored parts: one shared text, one inline, an entity, a gap in a row that is not asked for.
static void put_sheet(const char *name, int flip) {
    static const char texts[] = "<?xml version=\"1.0\"?><sst><si><t>video</t></si><si><r><t>initial_</t></r><r><t "
                                "xml:space=\"preserve\">minute</t></r></si></sst>";
    static const char sheet[] =
        "<?xml version=\"1.0\"?><worksheet><cols/><sheetData><row r=\"1\"><c r=\"A1\" t=\"s\"><v>0</v></c><c r=\"B1\" "
        "t=\"s\"><v>1</v></c>"
        "<c r=\"C1\" t=\"inlineStr\"><is><t>initial_second</t></is></c><c r=\"D1\" t=\"str\"><v>final_minute</v></c><c "
        "r=\"E1\" t=\"str\"><v>final_second</v></c>"
        "<c r=\"F1\" t=\"str\"><v>two_structures</v></c><c r=\"G1\" t=\"str\"><v>cystic_plate</v></c><c r=\"H1\" "
        "t=\"str\"><v>hepatocystic_triangle</v></c>"
        "<c r=\"J1\" t=\"str\"><v>a &amp; &quot;b&quot;</v></c></row>"
        "<row r=\"2\"><c r=\"A2\"><v>3</v></c><c r=\"B2\"><v>0</v></c><c r=\"C2\"><v>19</v></c><c "
        "r=\"D2\"><v>0</v></c><c r=\"E2\"><v>19</v></c><c r=\"F2\"><v>2</v></c>"
        "<c r=\"G2\"><v>1</v></c><c r=\"H2\"><v>2</v></c><c r=\"I2\"/><c r=\"J2\" "
        "t=\"str\"><v></v></c></row></sheetData></worksheet>";
    static const char *const names[2] = {"xl/sharedStrings.xml", "xl/worksheets/sheet1.xml"}, *const parts[2] = {texts,
                                                                                                                 sheet};
    Text zip = {0}, list = {0};
    for (int k = 0; k < 2; k++) {
        uint32_t n = (uint32_t)strlen(parts[k]), at_byte = (uint32_t)zip.len;
        uint8_t h[46] = {'P', 'K', 1, 2, 20, 0, 20, 0};
        uint32_t crc = png_crc(0, (const uint8_t *)parts[k], n);
        memcpy(h + 16, &crc, 4), memcpy(h + 20, &n, 4),
            memcpy(h + 24, &n, 4); // little-endian machines only, as the whole program
        h[28] = (uint8_t)strlen(names[k]);
        memcpy(h + 42, &at_byte, 4);
        uint8_t local[30] = {'P', 'K', 3, 4, 20};
        memcpy(local + 14, h + 16, 12), local[26] = h[28];
        text_add(&zip, (char *)local, 30), text_add(&zip, names[k], strlen(names[k])), text_add(&zip, parts[k], n);
        if (flip && k) zip.p[zip.len - 40] ^= 1;
        text_add(&list, (char *)h, 46), text_add(&list, names[k], strlen(names[k]));
    }
    uint8_t end[22] = {'P', 'K', 5, 6, 0, 0, 0, 0, 2, 0, 2};
    uint32_t size = (uint32_t)list.len, start = (uint32_t)zip.len;
    memcpy(end + 12, &size, 4), memcpy(end + 16, &start, 4);
    text_add(&zip, list.p, list.len), text_add(&zip, (char *)end, 22);
    put_bytes(name, zip.p, zip.len);
    text_free(&zip), text_free(&list);
}

TEST(cholec80_cvs_orders_and_window) {
    new_tree();
    // columns in the order of the sheet: two structures, cystic plate, triangle
    put("surgeons_annotations.csv", "video,initial_minute,initial_second,final_minute,final_second,two_structures,"
                                    "cystic_plate,hepatocystic_triangle\n"
                                    "3,0,18,0,18,1,2,0\n3,0,19,0,19,2,2,2\n3,0,2,0,3,2,0,0\n3,0,4,0,5,0,0,0\n");
    phases_file("phase_annotations/video03-phase.txt", 25 * 25, 25 * 20, "CalotTriangleDissection", "ClippingCutting");
    pictures("frames/video03/%05d.png", 0, 24, 1);
    EXPECT_STR(run("cholec80-cvs", (ImportOptions){0}), ""); // the last 15 % of 20 seconds: 17, 18, 19
    EXPECT_INT(count_task("cvs"), 3);
    EXPECT_STR(answer("cholec80-cvs-03-000425-cvs1"), "no");  // unlisted: 0/0/0
    EXPECT_STR(answer("cholec80-cvs-03-000450-cvs1"), "no");  // 1 is not 2
    EXPECT_STR(answer("cholec80-cvs-03-000450-cvs2"), "no");  // triangle
    EXPECT_STR(answer("cholec80-cvs-03-000450-cvs3"), "yes"); // plate
    EXPECT_STR(answer("cholec80-cvs-03-000475-cvs"), "yes");
    EXPECT_INT(skipped("interval with all scores 0"), 1);
    EXPECT_STR(text_of("cholec80-cvs-03-000475-cvs", "split"), "train");
    EXPECT_STR(run("cholec80-cvs", (ImportOptions){.cvs_part = 1, .cvs_score = 1}), "");
    EXPECT_INT(count_task("cvs"), 20);
    EXPECT_STR(answer("cholec80-cvs-03-000450-cvs1"), "yes");
    EXPECT_STR(answer("cholec80-cvs-03-000075-cvs1"), "yes");
    const char *head = "video,initial_minute,initial_second,final_minute,final_second,two_structures,cystic_plate,"
                       "hepatocystic_triangle\n";
    Text t = {0};
    text_addf(&t, "%s3,0,10,0,18,1,1,1\n3,0,18,0,19,2,2,2\n", head); // 18 is shared: it belongs to what begins there
    put("surgeons_annotations.csv", t.p);
    EXPECT_STR(run("cholec80-cvs", (ImportOptions){0}), "");
    EXPECT_STR(answer("cholec80-cvs-03-000450-cvs"), "yes");
    text_addf(&t, "3,0,19,0,19,1,1,1\n3,0,17,0,18,2,1,1\n"); // and two scores for the middle of an interval
    put("surgeons_annotations.csv", t.p);
    EXPECT(refused("cholec80-cvs", (ImportOptions){0}, "E-DS-13", "two"));
    text_free(&t);
    unlink(at("surgeons_annotations.csv"));
    put("surgeons_annotations.xlsx", "PK");
    EXPECT(refused("cholec80-cvs", (ImportOptions){0}, "E-DS-13", "end record"));
    put_sheet("surgeons_annotations.xlsx", 0);
    EXPECT_STR(run("cholec80-cvs", (ImportOptions){0}), "");
    EXPECT_INT(count_task("cvs"), 3);
    EXPECT_STR(answer("cholec80-cvs-03-000475-cvs2"), "yes"); // 2 & 2
    EXPECT_STR(answer("cholec80-cvs-03-000475-cvs3"), "no");
    char *sheet; // as openpyxl writes it: deflated, shared texts
    size_t size;
    Err e = {0};
    CHECK(file_read("test/fixtures/import/sheet.xlsx", 1 << 20, "E-DS-13", &sheet, &size, &e), "%s", e.found);
    put_bytes("surgeons_annotations.xlsx", sheet, size);
    free(sheet);
    EXPECT_STR(run("cholec80-cvs", (ImportOptions){0}), "");
    EXPECT_STR(answer("cholec80-cvs-03-000450-cvs3"), "yes");
    EXPECT_STR(answer("cholec80-cvs-03-000475-cvs"), "yes");
    EXPECT_INT(skipped("interval with all scores 0"), 1);
    damage("cholec80-cvs", "surgeons_annotations.xlsx", 150, (ImportOptions){0});
    put_sheet("surgeons_annotations.xlsx", 1); // one byte of the sheet is another
    EXPECT(refused("cholec80-cvs", (ImportOptions){0}, "E-DS-13", "checksum"));
    put("surgeons_annotations.csv",
        "video,initial_minute,initial_second,final_minute,final_second,two_structures,cystic_plate\n3,0,1,0,2,1,1\n");
    EXPECT(refused("cholec80-cvs", (ImportOptions){0}, "E-DS-13", "hepatocystic_triangle"));
}

// ----------------------------------------------------------------------------------------------------- MultiBypass140
TEST(multibypass_intervals) {
    new_tree();
    const char *json =
        "{\"phases\": [{\"start\": 0, \"end\": 4000, \"label_name\": \"preparation\", \"label_id\": 0},"
        "{\"start\": 4000, \"end\": 9000, \"label_name\": \"gastric_pouch_creation\", \"label_id\": 1},"
        "{\"start\": 2000, \"end\": 3000, \"label_name\": \"out_of_body\", \"label_id\": 12},"
        "{\"start\": 5000, \"end\": 6000, \"label_name\": \"severe_index\", \"label_id\": 13}],"
        "\"steps\": [{\"start\": 3000, \"end\": 7000, \"label_name\": \"s1_cavity_exploration\", \"label_id\": 1}]}";
    put("labels/bern/labels_by70/BBP12.mp4.json", json);       // validation of fold 1
    put("labels/bern/labels_by70/BBP02.mp4.json", json);       // test of fold 1
    put("labels/strasbourg/labels_by70/SBP01.mp4.json", json); // its split is in the pickles only
    pictures("labels/bern/labels_by70_splits/frames/BBP12/BBP12_%08d.jpg", 1, 8, 1);
    pictures("labels/bern/labels_by70_splits/frames/BBP02/BBP02_%08d.jpg", 1, 8, 1);
    EXPECT_STR(run("multibypass140", (ImportOptions){.variant = "fold1"}), "");
    EXPECT_STR(answer("multibypass140-BBP12-000001-phase"), "preparation");
    EXPECT(!record("multibypass140-BBP12-000002-phase")); // out of body lies over it
    EXPECT_INT(skipped("out of body"), 2);
    EXPECT_STR(answer("multibypass140-BBP12-000005-phase"), "gastric pouch creation"); // under severe_index
    EXPECT_STR(answer("multibypass140-BBP12-000005-step"), "cavity exploration");
    EXPECT(!record("multibypass140-BBP12-000007-step")); // [3000, 7000)
    EXPECT_STR(text_of("multibypass140-BBP12-000001-phase", "split"), "val");
    EXPECT_STR(text_of("multibypass140-BBP02-000001-phase", "split"), "test");
    EXPECT_INT(skipped("video whose split stands in the pickles only"), 1);
    EXPECT_STR(printed("multibypass140-BBP12-000005-step", "images"),
               "[\"labels/bern/labels_by70_splits/frames/BBP12/BBP12_00000005.jpg\"]");
    put("labels/bern/labels_by70/BBP12.mp4.json",
        "{\"phases\":[{\"start\":0,\"end\":9,\"label_name\":\"siesta\"}],\"steps\":[]}");
    EXPECT(refused("multibypass140", (ImportOptions){.variant = "fold1"}, "E-DS-12", "BBP12.mp4.json:1"));
}

// What Python's pickle writes, protocol 4, for {'BBP03': [{'Frame_id': 'BBP03_00000005', 'Original_frame_id': 4, 'Phase_gt': 0, 'Step_gt': 1,
// 'unique_id': 123}]}.
static const char pickle4[] = "\x80\x04\x95\x67\0\0\0\0\0\0\0}\x94\x8c\x05"
                              "BBP03\x94]\x94}\x94(\x8c\x08"
                              "Frame_id\x94\x8c\x0e"
                              "BBP03_00000005\x94\x8c\x11"
                              "Original_frame_id\x94K\x04\x8c\x08"
                              "Phase_gt\x94K\0\x8c\x07"
                              "Step_gt\x94K\x01\x8c\x09"
                              "unique_id\x94K{uas.";
TEST(multibypass_pickles) {
    new_tree();
    put_bytes("labels/bern/labels_by70_splits/labels/train/1fps_100_0.pickle", pickle4, sizeof pickle4 - 1);
    picture("labels/bern/labels_by70_splits/frames/BBP03/BBP03_00000005.jpg");
    EXPECT_STR(run("multibypass140", (ImportOptions){0}), "");
    EXPECT_INT(in_file[0], 2);
    EXPECT_STR(answer("multibypass140-BBP03-000005-phase"), "preparation");
    EXPECT_STR(answer("multibypass140-BBP03-000005-step"), "cavity exploration");
    EXPECT_INT(skipped("missing pickle"), 2);
    // the number in the name must be Original_frame_id + 1
    char other[sizeof pickle4];
    memcpy(other, pickle4, sizeof pickle4);
    for (size_t i = 0; i + 2 < sizeof other; i++)
        if (other[i] == 'K' && other[i + 1] == 4) other[i + 1] = 5;
    put_bytes("labels/bern/labels_by70_splits/labels/train/1fps_100_0.pickle", other, sizeof other - 1);
    EXPECT(refused("multibypass140", (ImportOptions){0}, "E-DS-15", "BBP03"));
}

TEST(pickles_never_run) {
    static const struct {
        const char *bytes, *json; // NULL: refused
        size_t n;
    } cases[] = {
#define PICKLE(bytes, json) {bytes, json, sizeof bytes - 1}
        PICKLE("\x80\x04N.", "null"),
        PICKLE("\x80\x02}q\0(X\x01\0\0\0aq\1K\1X\x01\0\0\0bq\2]q\3(K\1K\2eu.", "{\"a\":1,\"b\":[1,2]}"),
        PICKLE("\x80\x04(K\1J\xff\xff\xff\xfft.", "[1,-1]"),
        PICKLE("\x80\x04]\x94(\x88\x89\x8a\x02\0\x80G?\xf8\0\0\0\0\0\0e.", "[true,false,-32768,1.5]"),
        PICKLE("\x80\x04\x8c\x01xh\0.", NULL),                 // a memo entry that is not there
        PICKLE("cos\nsystem\n(S'true'\ntR.", NULL),            // os.system('true')
        PICKLE("\x80\x04\x8c\x02os\x8c\x06system\x93.", NULL), // STACK_GLOBAL
        PICKLE("\x80\x04N", NULL),
        PICKLE("\x80\x04K", NULL),
        PICKLE("\x80\x04\x8c\xff"
               "a.",
               NULL),
        PICKLE("\x80\x04u.", NULL),
        PICKLE("\x80\x04}(K\1u.", NULL),
        PICKLE("\x80\x04]\x94h\0a.", NULL),
        PICKLE("(.", NULL),
        PICKLE("\x80\x04}]K\1s.", NULL),
        PICKLE("", NULL),
        PICKLE("a.", NULL),
        PICKLE("s.", NULL),
        PICKLE("\x80\x09N.", NULL)};
    new_tree();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Text t = {0};
        Err e = {0};
        put_bytes("x.pickle", cases[i].bytes, cases[i].n);
        bool ok = pickle_json(&t, at("x.pickle"), &e);
        if (ok != !!cases[i].json) FAIL("case %zu: %s %s", i, ok ? "accepted" : "refused", e.found);
        if (ok && cases[i].json) EXPECT_STR(t.p, cases[i].json);
        if (!ok) EXPECT_STR(e.code, "E-DS-15");
        text_free(&t);
    }
}

// ---------------------------------------------------------------------------------------------------------- SAR-RARP50
TEST(sar_rarp50_actions_and_their_base) {
    new_tree();
    put("train1/video_11_1/action_discrete.txt", "000000000,0\n000000006,0\n000000012,2\n");
    put("test/video_41/action_discrete.txt", "000000000,7\n");
    pictures("train1/video_11_1/rgb/%09d.png", 0, 12, 6), pictures("test/video_41/rgb/%09d.png", 0, 0, 1);
    EXPECT_STR(run("sar-rarp50", (ImportOptions){0}), "");
    EXPECT_STR(answer("sar-rarp50-11_1-000000-action"), "other");
    EXPECT_STR(answer("sar-rarp50-11_1-000012-action"), "positioning the needle tip");
    EXPECT_STR(answer("sar-rarp50-41-000000-action"), "returning/dropping the needle");
    EXPECT_STR(text_of("sar-rarp50-11_1-000012-action", "patient"), "sar-rarp50-11"); // both parts are one patient
    EXPECT_STR(text_of("sar-rarp50-41-000000-action", "split"), "test");
    put("train1/video_11_1/action_discrete.txt", "000000000,1\n000000006,8\n");
    put("test/video_41/action_discrete.txt", "000000000,3\n"); // 1 to 8, as the page counts
    EXPECT_STR(run("sar-rarp50", (ImportOptions){0}), "");
    EXPECT_STR(answer("sar-rarp50-11_1-000000-action"), "other");
    EXPECT_STR(answer("sar-rarp50-11_1-000006-action"), "returning/dropping the needle");
    EXPECT_STR(answer("sar-rarp50-41-000000-action"), "positioning the needle tip");
    put("train1/video_11_1/action_discrete.txt", "000000000,1\n000000006,2\n"); // neither
    EXPECT(refused("sar-rarp50", (ImportOptions){0}, "E-DS-14", "--label-base"));
    EXPECT_STR(run("sar-rarp50", (ImportOptions){.label_base = 1}), "");
    EXPECT_STR(answer("sar-rarp50-41-000000-action"), "pushing the needle through the tissue");
    put("train1/video_11_1/action_discrete.txt", "000000000,0\n000000006,8\n"); // both
    EXPECT(refused("sar-rarp50", (ImportOptions){0}, "E-DS-14", "both ends"));
    put("train1/video_11_1/action_discrete.txt", "000000000,9\n");
    EXPECT(refused("sar-rarp50", (ImportOptions){0}, "E-DS-13", "action_discrete.txt:1"));
}

// ---------------------------------------------------------------------------------------------------------- AutoLaparo
TEST(autolaparo_bases_of_labels_and_frames) {
    new_tree();
    put("labels/label_01.txt", "Frame\tPhase\n1\t0\n2\t0\n3\t6\n");
    put("labels/label_15.txt", "Frame\tPhase\n1\t3\n");
    pictures("frames/01/%05d.png", 1, 3, 1), pictures("frames/15/%05d.png", 1, 1, 1);
    EXPECT_STR(run("autolaparo", (ImportOptions){0}), "");
    EXPECT_STR(answer("autolaparo-01-000002-phase"), "Washing");
    EXPECT_STR(printed("autolaparo-01-000002-phase", "images"), "[\"frames/01/00003.png\"]"); // frame 3 of 3, from 1
    EXPECT_STR(text_of("autolaparo-15-000000-phase", "split"), "test");
    put("labels/label_01.txt", "Frame\tPhase\n1\t1\n2\t1\n3\t7\n");
    EXPECT_STR(run("autolaparo", (ImportOptions){0}), "");
    EXPECT_STR(answer("autolaparo-01-000000-phase"), "Preparation");
    EXPECT_STR(answer("autolaparo-01-000002-phase"), "Washing");
    EXPECT_STR(answer("autolaparo-15-000000-phase"), "Dividing Uterine Vessels and Ligament");
    put("labels/label_01.txt", "Frame\tPhase\n1\t1\n2\t1\n3\t2\n");
    EXPECT(refused("autolaparo", (ImportOptions){0}, "E-DS-14", "--label-base"));
    pictures("frames/01/%05d.png", 0, 0, 1), unlink(at("frames/01/00003.png")), unlink(at("frames/15/00001.png"));
    EXPECT_STR(run("autolaparo", (ImportOptions){.label_base = 2}), "");
    EXPECT_STR(printed("autolaparo-01-000002-phase", "images"), "[\"frames/01/00002.png\"]"); // from 0
}

// -------------------------------------------------------------------------------------------------- questions, answers
TEST(endovis18_vqa) {
    new_tree();
    put("seq_2/vqa/Classification/frame000_QA.txt",
        "What organ is being operated?|kidney\nWhat is the state of bipolar_forceps?|Tissue_Manipulation\n"
        "Where is bipolar_forceps located?|left-top\n");
    put("seq_5/vqa/Classification/frame007_QA.txt", "What is the state of suction?|Tissue-Manipulation\r\n");
    put("seq_8/vqa/Classification/frame000_QA.txt",
        "What organ is being operated?|kidney\n"); // does not exist in the set
    picture("seq_2/left_frames/frame000.png"), picture("seq_5/left_fr/frame007.png"),
        picture("seq_8/left_fr/frame000.png");
    EXPECT_STR(run("endovis18-vqa", (ImportOptions){0}), "");
    EXPECT_INT(in_file[0], 3);
    EXPECT_INT(in_file[1], 1);
    EXPECT_STR(answer("endovis18-vqa-seq2-000000-vqa-1"), "Tissue Manipulation");
    EXPECT_STR(text_of("endovis18-vqa-seq2-000000-vqa-1", "question"), "What is the state of bipolar forceps?");
    EXPECT_STR(answer("endovis18-vqa-seq5-000007-vqa-0"), "Tissue Manipulation"); // hyphens, CRLF
    EXPECT_STR(text_of("endovis18-vqa-seq5-000007-vqa-0", "patient"), "endovis18-5");
    EXPECT_INT(skipped("video outside of the split"), 1);
    put("seq_2/vqa/Classification/frame000_QA.txt",
        "What organ is being operated?|kidney\nWhat is the state of suction?|suction\n");
    EXPECT(
        refused("endovis18-vqa", (ImportOptions){0}, "E-DS-12", "frame000_QA.txt:2")); // a tool, not the action Suction
    put("seq_2/vqa/Classification/frame000_QA.txt", "What organ is being operated?\n");
    EXPECT(refused("endovis18-vqa", (ImportOptions){0}, "E-DS-13", "frame000_QA.txt:1"));
}

TEST(vqla_boxes_count_from_1_and_include_both_corners) {
    new_tree();
    put("seq_2/vqla/label/frame000_QA.txt",
        "What organ is being operated?|kidney|1, 1, 1280, 1024\nWhere is bipolar_forceps located?|left-top|12, 40, "
        "498, 505\n"
        "What is the tool in the left top?|suction|5, 5, 5, 5\nWhat is the state of suction?|Suction|5, 5, 9, 9\n");
    put_grey("seq_2/left_frames/frame000.png", 1280, 1024, 80);
    EXPECT_STR(run("endovis18-vqla", (ImportOptions){0}), "");
    EXPECT_STR(printed("endovis18-vqla-seq2-000000-vqla-0", "boxes"),
               "[{\"label\":\"kidney\",\"box\":[0,0,1280,1024]}]");
    EXPECT_STR(printed("endovis18-vqla-seq2-000000-vqla-1", "boxes"),
               "[{\"label\":\"left-top\",\"box\":[11,39,498,505]}]");
    EXPECT_STR(printed("endovis18-vqla-seq2-000000-vqla-2", "boxes"),
               "[{\"label\":\"suction\",\"box\":[4,4,5,5]}]");          // one pixel
    EXPECT_STR(answer("endovis18-vqla-seq2-000000-vqla-2"), "suction"); // the tool of the extended set
    EXPECT_STR(answer("endovis18-vqla-seq2-000000-vqla-3"), "Suction"); // the action
    EXPECT_STR(text_of("endovis18-vqla-seq2-000000-vqla-1", "box_frame"), "original");
    EXPECT_STR(printed("endovis18-vqla-seq2-000000-vqla-1", "size"), "[1280,1024]");
    static const char *const bad[] = {"0, 1, 5, 5", "1, 1, 1281, 5", "1, 1, 5", "1.5, 1, 5, 5",
                                      "9, 1, 5, 5", "1, 1, 5, 5, 6", ""};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        Text t = {0};
        text_addf(&t, "What organ is being operated?|kidney|1, 1, 5, 5\nWhat organ is being operated?|kidney|%s\n",
                  bad[i]);
        put("seq_2/vqla/label/frame000_QA.txt", t.p);
        EXPECT(refused("endovis18-vqla", (ImportOptions){0}, "E-DS-06", "frame000_QA.txt:2"));
        text_free(&t);
    }
    put("seq_2/vqla/label/frame000_QA.txt",
        "What organ is being operated?|kidney|1, 1, 5, 5\nWhat organ is being operated?|kidney|1, 1, 1281, 5\n");
    EXPECT_STR(run("endovis18-vqla", (ImportOptions){.skip_unknown = true}), "");
    EXPECT_INT(skipped("box outside of its picture"), 1);
}

TEST(endovis17_vqla_is_for_testing) {
    new_tree();
    put("vqla/label/seq1_frame010.txt", "Where is bipolar_forceps located?|left-top|1, 1, 40, 30\n");
    put("vqla/label/seq2_frame010.txt", "What is the state of bipolar_forceps?|Idle|2, 2, 41, 31\n");
    put_grey("left_frames/seq1_frame010.png", 1280, 1024, 60),
        put_grey("left_frames/seq2_frame010.png", 1280, 1024, 60);
    EXPECT_STR(run("endovis17-vqla", (ImportOptions){0}), "");
    EXPECT_INT(in_file[2], 2);
    EXPECT_INT(in_file[0] + in_file[1], 0);
    EXPECT_STR(printed("endovis17-vqla-endovis17-000010-vqla-seq2_frame010-0", "boxes"),
               "[{\"label\":\"Idle\",\"box\":[1,1,41,31]}]");
    EXPECT_STR(text_of("endovis17-vqla-endovis17-000010-vqla-seq2_frame010-0", "patient"), "endovis17-seq2");
    EXPECT(refused("endovis17-vqla", (ImportOptions){.splits = "train"}, "E-DS-02", "found none"));
}

TEST(pitvqa) {
    new_tree();
    put("qa/video_01/00001.txt",
        "what is the phase of image?|nasal_sphenoid\nwhat instrument?|no_visible_instrument\nhow many?|two\nwhat is "
        "done?|the surgeon opens the sella\n");
    put("qa/video_02/00003.txt", "what is the step of image?|fat_graft_placement\n");
    picture("images/video_01/00001.png"), picture("images/video_01/00002.png"), picture("images/video_02/00003.png");
    EXPECT_STR(run("pitvqa", (ImportOptions){0}), "");
    EXPECT_STR(answer("pitvqa-video_01-000001-vqa-0"), "nasal sphenoid");
    EXPECT_STR(answer("pitvqa-video_01-000001-vqa-3"), "the surgeon opens the sella");
    EXPECT(!record("pitvqa-video_01-000001-vqa-1"));
    EXPECT_INT(skipped("answer that the data set's own loader leaves out"), 1);
    EXPECT_INT(skipped("frame without questions"), 1);
    EXPECT_STR(text_of("pitvqa-video_02-000003-vqa-0", "split"), "val");
    Text t = {0};
    for (int i = 0; i < 15; i++) text_addf(&t, "what is done?|operation %c\n", 'a' + i); // 14 may stand in the files
    put("qa/video_02/00003.txt", t.p), put("qa/video_01/00001.txt", "how many?|two\n");
    EXPECT(refused("pitvqa", (ImportOptions){0}, "E-DS-12", "00003.txt:15"));
    text_free(&t);
}

TEST(psi_ava_vqa) {
    new_tree();
    put("Train/C1_location.txt", "CASE021/00001.jpg|what is location of bipolar forceps?|top left\n");
    put("Train/C2_phase.txt", "CASE021/00001.jpg|what is the phase?|Ves\xc3\xad"
                              "culas_Seminales\nCASE002/00004.jpg|what is the phase?|LPAI\n");
    put("Val/C4_step.txt", "CASE015/00211.jpg|what is the step?|Anudar\n");
    picture("keyframes/CASE021/00001.jpg"), picture("keyframes/CASE015/00211.jpg");
    EXPECT_STR(run("psi-ava-vqa", (ImportOptions){0}), "");
    EXPECT_INT(in_file[0], 2);
    EXPECT_INT(in_file[1], 1);
    EXPECT_STR(answer("psi-ava-vqa-CASE021-000001-vqa-C1-1"), "top left");
    EXPECT_STR(answer("psi-ava-vqa-CASE021-000001-vqa-C2-1"), "Ves\xc3\xad"
                                                              "culas_Seminales");
    EXPECT_INT(skipped("missing frame file"), 1);
    put("Val/C4_step.txt", "CASE021/00001.jpg|what is the step?|Anudar\n"); // a patient on both sides
    EXPECT(refused("psi-ava-vqa", (ImportOptions){0}, "E-DS-09", "psi-ava-CASE021"));
    put("Val/C4_step.txt", "CASE015/../00211.jpg|what is the step?|Anudar\n");
    EXPECT(refused("psi-ava-vqa", (ImportOptions){0}, "E-DS-13", "C4_step.txt:1"));
}

// ------------------------------------------------------------------------------------------------------------- generic
static const char *generic(const char *spec, ImportOptions o) {
    static char path[1300];
    put("map.json", spec);
    snprintf(path, sizeof path, "%s", at("map.json"));
    o.spec = path;
    return run("generic", o);
}

TEST(generic_csv_with_boxes) {
    new_tree();
    put("t.csv", "\xef\xbb\xbf"
                 "clip,n,tool,x,y,w,h,note\r\nv1,3,hook,4,8,10,20,\"a, \"\"b\"\"\nc\"\r\nv2,4,HOOK,0,0,64,48,\r\n");
    pictures("frames/v1/%d.png", 3, 3, 1), pictures("frames/v2/%d.png", 4, 4, 1);
#define GENERIC_BOX                                                                                                    \
    "{\"dataset\":\"mine\",\"procedure\":\"colonoscopy\",\"task\":\"tool_box\",\"format\":\"csv\",\"files\":[\"t."     \
    "csv\"],\"box\":\"xywh pixels\","                                                                                  \
    "\"vocabulary\":[\"hook\",\"snare\"],\"splits\":{\"train\":[\"v1\"],\"test\":[\"v2\"]},\"fields\":{\"image\":"     \
    "\"frames/{clip}/{n}.png\","                                                                                       \
    "\"video\":\"{clip}\",\"frame\":\"{n}\",\"answer\":\"{tool}\",\"slot\":\"{tool}\",\"box.1\":\"{x}\",\"box.2\":\"{" \
    "y}\",\"box.3\":\"{w}\",\"box.4\":\"{h}\"}}"
    EXPECT_STR(generic(GENERIC_BOX, (ImportOptions){0}), "");
    EXPECT_STR(printed("mine-v1-000003-tool_box-1", "boxes"), "[{\"label\":\"hook\",\"box\":[4,8,14,28]}]");
    EXPECT_STR(answer("mine-v2-000004-tool_box-2"), "hook");
    EXPECT_STR(text_of("mine-v2-000004-tool_box-2", "procedure"), "colonoscopy");
    EXPECT_STR(text_of("mine-v2-000004-tool_box-2", "split"), "test");
    put("t.csv", "clip,n,tool,x,y,w,h,note\nv1,3,spoon,4,8,10,20,\n");
    EXPECT(strstr(generic(GENERIC_BOX, (ImportOptions){0}), "E-DS-12") && strstr(message, "t.csv:2"));
    put("t.csv", "clip,n,tool,x,y,w,h,note\nv1,3,hook,4,8,100,20,\n");
    EXPECT(strstr(generic(GENERIC_BOX, (ImportOptions){0}), "E-DS-06"));
    put("t.csv", "clip,n,tool,x,y,w,h,note\nv1,3,hook,4,8\n");
    EXPECT(strstr(generic(GENERIC_BOX, (ImportOptions){0}), "E-DS-13"));
    put("t.csv", "clip,n,tool,x,y,w,h,note\nv1,3,\"hook,4,8,9,9,\n");
    EXPECT(strstr(generic(GENERIC_BOX, (ImportOptions){0}), "closing quote"));
    put("t.csv", "clip,n,tool,x,y,w,h,note\n../v1,3,hook,4,8,9,9,\n");
    EXPECT(strstr(generic(GENERIC_BOX, (ImportOptions){0}), "E-DS-"));
}

TEST(generic_pipe_without_header_and_json) {
    new_tree();
    put("qa.txt", "(header)\n(header)\nWhat color is the tool?|silver|single_and|query_color\n");
    picture("7.png");
    EXPECT_STR(generic("{\"dataset\":\"ssg\",\"task\":\"vqa\",\"format\":\"pipe\",\"header\":false,\"skip_lines\":2,"
                       "\"files\":[{\"path\":\"qa.txt\",\"split\":\"val\"}],"
                       "\"labels\":{\"silver\":\"grey\"},\"fields\":{\"image\":\"7.png\",\"question\":\"{1}\","
                       "\"answer\":\"{2}\"}}",
                       (ImportOptions){0}),
               "");
    EXPECT_INT(in_file[1], 1);
    EXPECT_STR(answer("ssg-all-000000-vqa-1"), "grey");
    put("a.json", "{\"data\":{\"rows\":[{\"img\":\"7.png\",\"phase\":\"one\",\"k\":\"train\"},{\"img\":\"8.png\","
                  "\"phase\":\"two\",\"k\":\"train\"},"
                  "{\"img\":\"7.png\",\"phase\":\"idle\",\"k\":\"train\"}]}}");
    const char *spec = "{\"dataset\":\"j\",\"task\":\"phase\",\"format\":\"json\",\"records\":\"data.rows\",\"files\":["
                       "\"a.json\"],\"labels\":{\"idle\":null},"
                       "\"fields\":{\"image\":\"{img}\",\"answer\":\"{phase}\",\"split\":\"{k}\"}}";
    EXPECT_STR(generic(spec, (ImportOptions){0}), "");
    EXPECT_INT(in_file[0], 1);
    EXPECT_INT(skipped("missing frame file"), 1);
    EXPECT_INT(skipped("label that the mapping leaves out"), 1);
    put("a.json", "{\"img\":\"7.png\",\"phase\":\"one\",\"k\":\"train\"}\n{\"img\":\"7.png\",\"phase\":2,\"k\":"
                  "\"train\"}\n"); // JSON lines
    EXPECT_STR(generic("{\"dataset\":\"j\",\"task\":\"phase\",\"format\":\"json\",\"files\":[\"a.json\"],"
                       "\"fields\":{\"image\":\"{img}\",\"answer\":\"{phase}\",\"split\":\"{k}\"}}",
                       (ImportOptions){0}),
               "");
    EXPECT_STR(answer("j-all-000000-phase-2"), "2");
    static const char *const bad[] = {
        "[]",
        "{}",
        "{\"fields\":{\"colour\":\"x\"}}",
        "{\"fields\":{},\"task\":\"lunch\"}",
        "{\"fields\":{},\"task\":\"phase\",\"format\":\"xml\",\"files\":[\"a\"]}",
        "{\"fields\":{},\"task\":\"phase\",\"format\":\"csv\",\"files\":[\"../a\"]}",
        "{\"fields\":{},\"task\":\"phase\",\"format\":\"csv\",\"files\":[]}",
        "{\"fields\":{},\"task\":\"phase\",\"format\":\"csv\",\"files\":[\"a\"],\"box\":\"polar\"}",
        "{\"fields\":{},\"task\":\"phase\",\"format\":\"csv\",\"files\":[\"a\"],\"colour\":1}"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (!strstr(generic(bad[i], (ImportOptions){0}), "E-CF-02"))
            FAIL("mapping %zu was not refused: %s", i, message);
}

// ------------------------------------------------------------------------------------------------------ damaged files
static uint32_t dice;
static uint32_t roll(uint32_t n) { // a linear congruence: any damage will do, but the same every time
    dice = dice * 1664525u + 1013904223u;
    return (dice >> 8) % n;
}

// One annotation file, damaged in many ways: a verdict each time, and what is accepted is well formed (run() looks).
static void damage(const char *set, const char *file, int times, ImportOptions o) {
    char *bytes;
    size_t size;
    Err e = {0};
    CHECK(file_read(at(file), 1 << 20, "E-DS-13", &bytes, &size, &e), "%s", e.found);
    o.skip_unknown = true, o.allow_overlap = true;
    int taken = 0;
    for (int i = 0; i < times; i++) {
        Text t = {0};
        text_add(&t, bytes, size);
        for (uint32_t k = 1 + roll(3); k-- > 0;) {
            static const char odd[] = "0189-,|\t\n\"{}[].\0\xff :e";
            uint32_t place = roll((uint32_t)t.len);
            if (roll(4)) t.p[place] = odd[roll(sizeof odd - 1)];
            else if (roll(2)) t.len = place + 1;
            else memmove(t.p + place, t.p + place + 1, t.len-- - place - 1);
            if (!t.len) text_add(&t, "x", 1);
        }
        put_bytes(file, t.p, t.len);
        taken += !*run(set, o);
        text_free(&t);
    }
    if (taken == times) FAIL("%s: no damage was noticed in %d files", set, times);
    put_bytes(file, bytes, size);
    free(bytes);
}

TEST(damaged_files_get_a_verdict) {
    cholec80();
    damage("cholec80", "phase_annotations/video01-phase.txt", 40, (ImportOptions){.label_base = 1});
    damage("cholec80", "tool_annotations/video01-tool.txt", 40, (ImportOptions){0});
    new_tree();
    put("labels/VID01.json", T50_HEAD "\"1\": [[17,0,1,0.25,0.5,0.5,0.25,1,0,1,-1,-1,-1,-1,1]]" T50_TAIL);
    pictures("videos/VID01/%06d.png", 0, 9, 1);
    damage("cholect50", "labels/VID01.json", 60, (ImportOptions){0});
    new_tree();
    put("Training/VID01/VID01.json", "{\"video\": {\"width\": 64, \"height\": 48}, \"annotations\": {\"25\": [" TRACK(
                                         "[0.25, 0.5, 0.5, 0.25]", "2") "]}}");
    pictures("Training/VID01/Frames/%06d.png", 0, 50, 25);
    damage("cholectrack20", "Training/VID01/VID01.json", 60, (ImportOptions){0});
    new_tree();
    put("train/annotation_coco.json",
        "{\"images\":[" ENDO_IMAGE(
            1000025, "1_25.jpg", "true",
            "[0,1,1]") "],\"annotations\":[{\"id\":1,"
                       "\"image_id\":1000025,\"category_id\":5,\"bbox\":[10.0,5.0,22.0,14.0]}]," ENDO_CATEGORIES);
    pictures("train/1_%d.jpg", 25, 25, 1);
    damage("endoscapes", "train/annotation_coco.json", 60, (ImportOptions){0});
    new_tree();
    put_bytes("labels/bern/labels_by70_splits/labels/train/1fps_100_0.pickle", pickle4, sizeof pickle4 - 1);
    picture("labels/bern/labels_by70_splits/frames/BBP03/BBP03_00000005.jpg");
    damage("multibypass140", "labels/bern/labels_by70_splits/labels/train/1fps_100_0.pickle", 200, (ImportOptions){0});
    new_tree();
    put("qa/video_01/00001.txt", "what is the phase of image?|nasal_sphenoid\nhow many?|two\n");
    picture("images/video_01/00001.png");
    damage("pitvqa", "qa/video_01/00001.txt", 60, (ImportOptions){0});
    new_tree();
    put("t.csv", "clip,n,tool,x,y,w,h,note\nv1,3,hook,4,8,10,20,\"a, \"\"b\"\"\nc\"\nv2,3,hook,4,8,10,20,\n");
    put("map.json", GENERIC_BOX);
    pictures("frames/v1/%d.png", 3, 3, 1);
    char spec[1300];
    snprintf(spec, sizeof spec, "%s", at("map.json"));
    damage("generic", "t.csv", 100, (ImportOptions){.spec = spec});
    damage("generic", "map.json", 100, (ImportOptions){.spec = spec});
}
