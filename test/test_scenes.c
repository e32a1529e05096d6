// test_scenes.c - drawn scenes: the same bytes on any number of threads, labels that agree with the pixels, records that
// training reads.
//
// Boxes, counts, phases and criteria are worked out here a second time, from the owner of every pixel and from the lists of
// what is seen, by rules that stand in the text of surgr1.h.
#include "test.h"

static Scene draw(uint64_t seed, int64_t index, int width, int height, enum SceneStyle style, enum SceneKind kind) {
    Scene s;
    SceneOptions o = {.seed = seed, .index = index, .width = width, .height = height, .style = style, .kind = kind};
    scene_render(&s, &o);
    return s;
}
static size_t pixels(const Scene *s) { return (size_t)s->width * (size_t)s->height; }

// ----------------------------------------------------------------------------------------------------- determinism
enum { FRAMES = 36 };
static char digests[FRAMES][65];
static void digest_one(void *ctx, int64_t i, int thread) {
    Sha256 h;
    Text t = {0};
    (void)ctx, (void)thread;
    Scene s = draw(5, i, i % 3 ? 96 : 120, i % 3 ? 96 : 72, i % 2 ? SCENE_NATURAL : SCENE_CLEAR, SCENE_MIXED);
    sha256_start(&h);
    scene_truth_json(&s, &t);
    sha256_add(&h, s.rgb, 3 * pixels(&s)), sha256_add(&h, s.owner, pixels(&s)), sha256_add(&h, t.p, t.len);
    sha256_finish(&h, digests[i]);
    text_free(&t);
    scene_free(&s);
}
TEST(the_same_bytes_on_any_number_of_threads_and_in_any_order) {
    char first[FRAMES][65];
    const int threads[] = {1, 2, 3, 1};
    for (int k = 0; k < 4; k++) {
        pool_start(threads[k]);
        if (k == 3) // and backwards
            for (int i = FRAMES - 1; i >= 0; i--) digest_one(NULL, i, 0);
        else parallel_for(FRAMES, digest_one, NULL);
        pool_stop();
        if (!k) memcpy(first, digests, sizeof first);
        for (int i = 0; i < FRAMES; i++)
            if (strcmp(first[i], digests[i])) FAIL("frame %d differs with %d threads", i, threads[k]);
    }
    for (int i = 0; i < FRAMES; i++)
        for (int j = 0; j < i; j++)
            if (!strcmp(first[i], first[j])) FAIL("frames %d and %d are the same", j, i);
}

TEST(seed_index_size_and_style_all_count) {
    Scene a = draw(1, 3, 96, 96, SCENE_CLEAR, SCENE_CHOLEC), b = draw(2, 3, 96, 96, SCENE_CLEAR, SCENE_CHOLEC);
    Scene c = draw(1, 3, 96, 96, SCENE_NATURAL, SCENE_CHOLEC), d = draw(1, 3, 96, 96, SCENE_CLEAR, SCENE_CHOLEC);
    EXPECT(memcmp(a.rgb, b.rgb, 3 * pixels(&a)) != 0);
    EXPECT(memcmp(a.rgb, c.rgb, 3 * pixels(&a)) != 0);
    EXPECT(memcmp(a.rgb, d.rgb, 3 * pixels(&a)) == 0);
    // A patient's frames: neighbours of one group, and only those.
    Scene last = draw(1, SCENE_GROUP - 1, 64, 64, SCENE_CLEAR, SCENE_CHOLEC),
          next = draw(1, SCENE_GROUP, 64, 64, SCENE_CLEAR, SCENE_CHOLEC);
    EXPECT_INT(last.truth.patient, 0);
    EXPECT_INT(next.truth.patient, 1);
    EXPECT_INT(next.truth.frame, 0);
    scene_free(&last), scene_free(&next);
    scene_free(&a), scene_free(&b), scene_free(&c), scene_free(&d);
}

// ------------------------------------------------------------------------------------------------ labels and pixels
typedef struct Area {
    int64_t n;
    int x1, y1, x2, y2;
} Area;
static Area area_of(const Scene *s, int low, int high) { // pixels whose owner is in [low, high]
    Area a = {0, s->width, s->height, 0, 0};
    for (int y = 0; y < s->height; y++)
        for (int x = 0; x < s->width; x++) {
            int o = s->owner[y * s->width + x];
            if (o < low || o > high) continue;
            a.n++;
            a.x1 = x < a.x1 ? x : a.x1, a.x2 = x + 1 > a.x2 ? x + 1 : a.x2;
            a.y1 = y < a.y1 ? y : a.y1, a.y2 = y + 1 > a.y2 ? y + 1 : a.y2;
        }
    return a;
}
static bool is_box(const Box *b, const Area *a) {
    return b->x1 == a->x1 && b->y1 == a->y1 && b->x2 == a->x2 && b->y2 == a->y2;
}
static const SceneTissue *find(const SceneTruth *t, const char *name) {
    for (int i = 0; i < t->n_tissues; i++)
        if (!strcmp(t->tissues[i].name, name)) return &t->tissues[i];
    return NULL;
}
static bool has_tool(const SceneTruth *t, const char *name) {
    for (int i = 0; i < t->n_tools; i++)
        if (!strcmp(t->tools[i].name, name)) return true;
    return false;
}

static void check_tools(const Scene *s, int64_t index) {
    const SceneTruth *t = &s->truth;
    int drawn = 0;
    for (int k = 0; k < 4; k++) {
        int o = SCENE_TOOL_OWNER + 2 * k;
        Area all = area_of(s, o, o + 1), head = area_of(s, o + 1, o + 1);
        drawn += all.n > 0;
        if (k >= t->n_tools) continue;
        const SceneTool *tool = &t->tools[k];
        if (!is_box(&tool->box, &all) || tool->pixels != all.n)
            FAIL("frame %lld: box of %s", (long long)index, tool->name);
        if (!is_box(&tool->head, &head)) FAIL("frame %lld: head of %s", (long long)index, tool->name);
        if (tool->visible < .4 || tool->visible > 1)
            FAIL("frame %lld: %s is %g visible", (long long)index, tool->name, tool->visible);
        double slack = .03 * (s->width < s->height ? s->width : s->height);
        if (tool->tip_x < tool->head.x1 - slack || tool->tip_x > tool->head.x2 + slack ||
            tool->tip_y < tool->head.y1 - slack || tool->tip_y > tool->head.y2 + slack)
            FAIL("frame %lld: tip of %s away from its head", (long long)index, tool->name);
        EXPECT_STR(tool->cell, task_grid_cell(tool->tip_x, tool->tip_y, s->width, s->height));
        if (t->robotic) {
            EXPECT(!tool->verb && !tool->target);
            continue;
        }
        EXPECT(tool->triplet >= 0 && tool->triplet < 100);
        EXPECT((tool->triplet >= 94) == !strcmp(tool->verb, "null_verb"));
        EXPECT(!strcmp(tool->target, "null_target") == !strcmp(tool->verb, "null_verb"));
        if (strcmp(tool->target, "null_target") && !find(t, tool->target))
            FAIL("frame %lld: %s %s %s, and no such target is visible", (long long)index, tool->name, tool->verb,
                 tool->target);
        if (!strcmp(tool->verb, "clip")) EXPECT_STR(tool->name, "clipper");
        if (!strcmp(tool->verb, "pack")) EXPECT(!strcmp(tool->name, "grasper") && find(t, "specimen_bag"));
        if (!strcmp(tool->verb, "aspirate")) EXPECT(!strcmp(tool->name, "irrigator") && !strcmp(tool->target, "fluid"));
    }
    if (drawn != t->n_tools)
        FAIL("frame %lld: %d instruments have pixels, count says %d", (long long)index, drawn, t->n_tools);
}

static void check_tissues(const Scene *s, int64_t index) {
    const SceneTruth *t = &s->truth;
    double square = pow(s->width < s->height ? s->width : s->height, 2);
    for (int o = 1; o < SCENE_TOOL_OWNER; o++) {
        Area a = area_of(s, o, o);
        const SceneTissue *listed = find(t, scene_owner_name(s, o));
        if (listed && (!is_box(&listed->box, &a) || listed->pixels != a.n))
            FAIL("frame %lld: box of %s", (long long)index, listed->name);
        if (listed) EXPECT_NEAR(listed->share, (double)a.n / square, 1e-12);
        bool pelvis = t->robotic && o == 1; // its wall has no name
        if (!listed && !pelvis && (double)a.n > .03 * square)
            FAIL("frame %lld: %s covers %lld pixels and is not listed", (long long)index, scene_owner_name(s, o),
                 (long long)a.n);
        if (!a.n && listed) FAIL("frame %lld: %s is listed and hidden", (long long)index, listed->name);
    }
}

// Phase and step a second time, from the lists alone.
static void check_meaning(const SceneTruth *t, int64_t index) {
    if (t->robotic) {
        bool needle = find(t, "suture_needle"), thread = find(t, "thread");
        EXPECT(t->action && !t->phase && !t->step);
        EXPECT(thread == !!strcmp(t->action, "other"));
        EXPECT(needle == (strstr(t->action, "needle") != NULL));
        if (!strcmp(t->action, "cutting the suture")) EXPECT(has_tool(t, "monopolar curved scissors"));
        return;
    }
    bool sac = find(t, "gallbladder"), bag = find(t, "specimen_bag"), clip = find(t, "clip"),
         plate = find(t, "cystic_plate");
    const char *phase = bag && sac                       ? "GallbladderPackaging"
                        : bag                            ? "GallbladderRetraction"
                        : !sac                           ? "CleaningCoagulation"
                        : clip && plate && !t->attached  ? "GallbladderDissection"
                        : clip || has_tool(t, "clipper") ? "ClippingCutting"
                        : find(t, "cystic_duct") || find(t, "cystic_artery") || find(t, "cystic_pedicle")
                            ? "CalotTriangleDissection"
                            : "Preparation";
    if (strcmp(phase, t->phase))
        FAIL("frame %lld: phase %s, but what is seen says %s", (long long)index, t->phase, phase);
    EXPECT_INT(t->cvs, t->criteria[0] && t->criteria[1] && t->criteria[2]);
    if (t->criteria[0]) EXPECT(find(t, "cystic_duct") && find(t, "cystic_artery") && !find(t, "cystic_pedicle"));
    if (t->criteria[2]) EXPECT(plate && sac);
    if (t->cvs_asked && plate && sac) EXPECT(t->criteria[2]);
    if (!strcmp(t->step, "clip and divide")) EXPECT(t->cvs && !strcmp(phase, "ClippingCutting"));
    if (!strcmp(t->step, "dissect the triangle")) EXPECT(!t->cvs && t->n_tools >= 2);
    if (!strcmp(t->step, "explore the field")) EXPECT(t->n_tools < 2);
}

TEST(boxes_counts_triplets_and_phases_agree_with_the_pixels) {
    for (int64_t i = 0; i < 260; i++) {
        int size = i % 2 ? 112 : 160;
        Scene s = draw(11, i, size, size, i % 4 == 3 ? SCENE_NATURAL : SCENE_CLEAR, SCENE_MIXED);
        check_tools(&s, i), check_tissues(&s, i), check_meaning(&s.truth, i);
        scene_free(&s);
    }
}

TEST(every_size_works_to_its_edges) {
    const int sizes[][2] = {{64, 64}, {64, 1024}, {1024, 64}, {65, 97}, {427, 240}};
    for (int k = 0; k < 5; k++)
        for (int64_t i = 0; i < 4; i++) {
            Scene s = draw(3, 12 * i, sizes[k][0], sizes[k][1], SCENE_NATURAL, SCENE_MIXED);
            EXPECT_INT(s.width, sizes[k][0]);
            EXPECT_INT(s.height, sizes[k][1]);
            check_tools(&s, i), check_tissues(&s, i);
            int64_t black = 0;
            for (size_t p = 0; p < pixels(&s); p++) {
                black += !s.owner[p];
                if (s.owner[p] >= SCENE_TOOL_OWNER + 8) FAIL("owner %d", s.owner[p]);
                if (!s.owner[p] && s.rgb[3 * p] + s.rgb[3 * p + 1] + s.rgb[3 * p + 2] > 380)
                    FAIL("bright outside of the picture");
            }
            EXPECT(s.truth.round_scope || !black);
            scene_free(&s);
        }
}

// The clear style is what it promises: an instrument's hue is far from everything that is tissue.
TEST(tools_stand_out_in_the_clear_style) {
    double far = 0, n = 0;
    for (int64_t i = 0; i < 40; i++) {
        Scene s = draw(8, 7 * i, 96, 96, SCENE_CLEAR, SCENE_CHOLEC);
        for (size_t p = 0; p < pixels(&s); p++) {
            int r = s.rgb[3 * p], g = s.rgb[3 * p + 1], b = s.rgb[3 * p + 2], o = s.owner[p];
            bool warm = r >= g && g + 40 >= b; // red, brown, yellow, pink
            if (o >= SCENE_TOOL_OWNER && o % 2 == SCENE_TOOL_OWNER % 2)
                far += !warm || r + g + b < 200 || r + g + b > 560, n++;
        }
        scene_free(&s);
    }
    EXPECT(n > 1000);
    if (far < .8 * n) FAIL("%.2f of the shafts' pixels stand out", far / n);
}

// ------------------------------------------------------------------------------------------------------- statistics
static struct {
    char name[64];
    int n;
} label[128];
static int n_labels;
static void count(const char *kind, const char *name) {
    char full[64];
    int i = 0;
    snprintf(full, sizeof full, "%s %s", kind, name);
    while (i < n_labels && strcmp(label[i].name, full)) i++;
    if (i == n_labels) snprintf(label[n_labels++].name, sizeof full, "%s", full);
    label[i].n++;
}
static int counted(const char *kind) {
    int n = 0;
    for (int i = 0; i < n_labels; i++)
        n += !strncmp(label[i].name, kind, strlen(kind)) && label[i].name[strlen(kind)] == ' ';
    return n;
}
static SceneTruth *truths;
static int64_t truths_kind;
static void truth_one(void *ctx, int64_t i, int thread) {
    Scene s = draw(21, i, 80, 80, SCENE_CLEAR, (enum SceneKind)truths_kind);
    (void)ctx, (void)thread;
    truths[i] = s.truth;
    scene_free(&s);
}

TEST(no_class_is_rare) {
    enum { N = 1200 };
    int most = 0, drafts = 0;
    truths = alloc_or_die(N, sizeof *truths, "test");
    for (truths_kind = SCENE_CHOLEC; truths_kind <= SCENE_RARP; truths_kind++) {
        int frames = truths_kind == SCENE_CHOLEC ? N : N / 3, asked = 0;
        n_labels = 0, memset(label, 0, sizeof label);
        pool_start(2);
        parallel_for(frames, truth_one, NULL);
        pool_stop();
        for (int i = 0; i < frames; i++) {
            const SceneTruth *t = &truths[i];
            char number[8];
            snprintf(number, sizeof number, "%d", t->n_tools);
            count("count", number);
            for (int k = 0; k < t->n_tools; k++) {
                count("tool", t->tools[k].name), count("grid", t->tools[k].cell);
                if (!t->robotic) count("verb", t->tools[k].verb), count("target", t->tools[k].target);
            }
            if (t->robotic) count("action", t->action);
            else count("phase", t->phase), count("step", t->step);
            if (t->cvs_asked) {
                asked++;
                count("cvs", t->cvs ? "yes" : "no");
                for (int k = 0; k < 3; k++)
                    count("criterion", ((const char *[]){"1 no", "1 yes", "2 no", "2 yes", "3 no",
                                                         "3 yes"})[2 * k + t->criteria[k]]);
            }
            most = t->drafts > most ? t->drafts : most, drafts += t->drafts;
        }
        for (int i = 0; i < n_labels; i++) {
            printf("  %-44s %5.1f %%\n", label[i].name, 100.0 * label[i].n / frames);
            if (label[i].n < .0199 * frames) FAIL("%s: %d of %d frames", label[i].name, label[i].n, frames);
        }
        EXPECT_INT(counted("tool"), 6);
        EXPECT_INT(counted("grid"), 9);
        EXPECT_INT(counted("phase"), truths_kind == SCENE_CHOLEC ? 7 : 0);
        EXPECT_INT(counted("step"), truths_kind == SCENE_CHOLEC ? 11 : 0);
        EXPECT_INT(counted("verb"), truths_kind == SCENE_CHOLEC ? 10 : 0);
        EXPECT_INT(counted("target"), truths_kind == SCENE_CHOLEC ? 14 : 0); // all of CholecT50 but blood_vessel
        EXPECT_INT(counted("action"), truths_kind == SCENE_RARP ? 8 : 0);
    }
    printf("  drafts: %.2f a frame, at most %d\n", (double)drafts / (N + N / 3), most);
    EXPECT(most < 150); // no frame fell back to the empty view
    free(truths);
}

// ---------------------------------------------------------------------------------------------------------- records
static char folder[] = "/tmp/surgr1_scenes_XXXXXX";
static void clean_up(void) {
    char command[100];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    if (system(command)) perror(command);
}

// "cells" of the first record against the owner of every pixel; the questions of few words begin with the picture; and
// no task has a second question before each has its first.
TEST(records_for_small_models) {
    for (int64_t i = 0; i < 24; i++) {
        Scene s = draw(5, i, 96, 96, SCENE_CLEAR, SCENE_CHOLEC);
        SceneRecords how = {.seed = 5,
                            .index = i,
                            .split = "train",
                            .image = "a.png",
                            .answers = true,
                            .tasks = (1u << TASKS) - 1,
                            .per_frame = 10,
                            .cell = 16};
        how.wording.brief = true;
        Text lines = {0};
        Err e = {0};
        int n = scene_records(&s, &how, &lines), by_task[TASKS] = {0}, k = 0;
        how.per_frame = 0;
        Text all = {0};
        scene_records(&s, &how, &all);
        uint32_t possible = 0, first = 0, all_of_them = 0;
        for (char *p = all.p, *end; (end = strchr(p, '\n')); p = end + 1) {
            TaskRecord r;
            EXPECT(task_record_read(&r, p, (size_t)(end - p), "all", 1, &e));
            possible |= 1u << r.item.task, all_of_them++;
            task_record_free(&r);
        }
        for (char *p = lines.p, *end; (end = strchr(p, '\n')); p = end + 1, k++) {
            TaskRecord r;
            EXPECT(task_record_read(&r, p, (size_t)(end - p), "few", 1, &e));
            EXPECT(!strncmp(r.prompt, "<image>", 7) && !strstr(r.prompt + 7, "<image>") && strlen(r.prompt) < 60);
            if (by_task[r.item.task]++) EXPECT(first == possible || all_of_them == 10);
            first |= 1u << r.item.task;
            const Json *cells = json_get(r.doc.root, "cells");
            EXPECT((cells != NULL) == (k == 0));
            const Json *c = cells ? cells->child : NULL;
            for (int at = 0; c; at++, c = c->next) {
                int y = at / 6 * 16, x = at % 6 * 16, inside = 0, tool = 0;
                EXPECT(c->type == JSON_STRING);
                for (int q = 0; q < 256; q++) {
                    int owner = s.owner[(y + q / 16) * 96 + x + q % 16];
                    const char *name = scene_owner_name(&s, owner);
                    size_t part = name ? strlen(name) - c->len : 0;
                    inside += name && strlen(name) >= c->len && !strcmp(name + part, c->str) &&
                              (!part || name[part - 1] == '_');
                    tool += owner >= SCENE_TOOL_OWNER;
                }
                bool named = false; // after an instrument
                for (int q = 0; q < s.truth.n_tools; q++) named |= json_is(c, s.truth.tools[q].name);
                EXPECT(inside > 0 && (!named || 6 * inside >= 256) && (named || 6 * tool < 256 * s.truth.n_tools));
            }
            EXPECT(!cells || cells->count == 36);
            task_record_free(&r);
        }
        EXPECT_INT(k, n);
        EXPECT_INT(k, 10);
        text_free(&lines), text_free(&all), scene_free(&s);
    }
}

TEST(records_are_what_training_reads) {
    Err e = {0};
    Text lines = {0};
    char path[200], image[64], message[1200];
    int n = 0, by_task[TASKS] = {0};
    CHECK(mkdtemp(folder), "no temporary folder");
    atexit(clean_up);
    for (int64_t i = 0; i < 48; i++) {
        Scene s = draw(4, i, 96, 80, SCENE_CLEAR, SCENE_MIXED);
        snprintf(image, sizeof image, "%06lld.png", (long long)i);
        snprintf(path, sizeof path, "%s/%s", folder, image);
        EXPECT(image_write_png(path, s.rgb, s.width, s.height, &e));
        SceneRecords how = {
            .seed = 4, .index = i, .split = "train", .image = image, .answers = true, .tasks = (1u << TASKS) - 1};
        how.wording.choices = i % 2, how.wording.reasoning = i % 3 == 0;
        size_t before = lines.len;
        int all = scene_records(&s, &how, &lines), seen = 0;
        for (size_t k = before; k < lines.len; k++) seen += lines.p[k] == '\n';
        EXPECT_INT(seen, all);
        n += all;
        Text few = {0};
        how.per_frame = 3;
        EXPECT_INT(scene_records(&s, &how, &few), 3);
        for (char *p = few.p, *end; (end = strchr(p, '\n')); p = end + 1) { // a choice of the same lines
            *end = 0;
            EXPECT(strstr(lines.p + before, p) != NULL);
        }
        text_free(&few);
        how.per_frame = 0, how.tasks = 1u << TASK_COUNT, how.answers = false, how.truth = true;
        EXPECT_INT(scene_records(&s, &how, &few), 1);
        EXPECT(few.p && !strstr(few.p, "\"role\":\"assistant\"") && strstr(few.p, "\"truth\":{"));
        text_free(&few);
        scene_free(&s);
    }
    int64_t number = 0;
    for (char *p = lines.p, *end; (end = strchr(p, '\n')); p = end + 1) {
        JsonDoc doc;
        if (!json_parse(&doc, p, (size_t)(end - p), "line", (JsonOptions){.refuse_duplicates = true}, &e)) {
            FAIL("%s", err_line(&e, "error", message, sizeof message));
            break;
        }
        const Json *task = json_get(doc.root, "task"), *boxes = json_get(doc.root, "boxes"),
                   *size = json_get(doc.root, "size");
        int t = task_of(task->str);
        EXPECT(t >= 0 && size && size->count == 2);
        if (t >= 0) by_task[t]++;
        for (const Json *b = boxes ? boxes->child : NULL; b; b = b->next) {
            const Json *at = json_get(b, "box")->child;
            double x1 = at->number, y1 = at->next->number, x2 = at->next->next->number,
                   y2 = at->next->next->next->number;
            EXPECT(0 <= x1 && x1 < x2 && x2 <= 96 && 0 <= y1 && y1 < y2 && y2 <= 80);
        }
        json_free(&doc);
        number++;
    }
    EXPECT_INT(number, n);
    for (int t = 0; t < TASKS; t++)
        if (t != TASK_MOTION && !by_task[t]) FAIL("no record of task %s", task_info((enum Task)t)->name);
    EXPECT_INT(by_task[TASK_MOTION], 0); // one picture shows no motion
    snprintf(path, sizeof path, "%s/train.jsonl", folder);
    EXPECT(file_write_atomic(path, lines.p, lines.len, &e));
    Tokenizer *words;
    Config model = {0};
    Dataset d;
    const char *checkpoint = "test/fixtures/oracle/pipeline/ask/checkpoint", *files[] = {path};
    CHECK(tokenizer_load(&words, checkpoint, &e) && config_load(&model, checkpoint, &e), "%s %s", e.code, e.found);
    DataOptions o = {.files = files, .n_files = 1, .max_tokens = 4096};
    if (!dataset_open(&d, words, &model, o, &e)) {
        FAIL("%s", err_line(&e, "error", message, sizeof message));
    } else {
        EXPECT_INT(d.n, n);
        EXPECT_INT(d.dropped_bad, 0);
        Sample sample;
        for (int64_t i = 0; i < d.n; i += 97)
            if (sample_load(&d, i, &sample, &e)) sample_free(&sample);
            else FAIL("%s", err_line(&e, "error", message, sizeof message));
        dataset_close(&d);
    }
    tokenizer_free(words);
    text_free(&lines);
}
