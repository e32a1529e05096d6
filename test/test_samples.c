// test_samples.c - training samples: ids and loss mask, the scan and what it refuses, pictures, boxes, the order.
//
// The checkpoint folder of test/fixtures brings a small tokenizer and pictures; conversations that Hugging Face tokenised
// are looked for there and under test_root().
#include "test.h"
#include <sys/stat.h>

static const char fixtures[] = "test/fixtures/oracle/pipeline/ask";
static Tokenizer *words;
static Config model;
static char folder[] = "/tmp/surgr1_samples_XXXXXX";

static const char *in_folder(const char *name) {
    static char paths[4][1200];
    static int turn;
    return snprintf(paths[++turn % 4], 1200, "%s/%s", folder, name), paths[turn % 4];
}

static void clean_up(void) {
    char command[100];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    if (system(command)) perror(command);
}

static void set_up(void) {
    Err e = {0};
    if (words) return;
    CHECK(mkdtemp(folder), "no temporary folder");
    atexit(clean_up);
    CHECK(tokenizer_load(&words, "test/fixtures/oracle/pipeline/ask/checkpoint", &e) &&
              config_load(&model, "test/fixtures/oracle/pipeline/ask/checkpoint", &e),
          "%s %s", e.code, e.found);
}

static const char *write_text(const char *name, const char *text, size_t len) {
    const char *path = in_folder(name);
    FILE *f = fopen(path, "wb");
    CHECK(f, "no file %s", path);
    if (len) fwrite(text, 1, len, f);
    fclose(f);
    return path;
}

static char message[1200];
// Opens the text as a data set, with pictures from the fixtures. "" or the message.
static const char *open_with(Dataset *d, const char *text, DataOptions o) {
    static char path[1200];
    static const char *files[1] = {path};
    Err e = {0};
    set_up();
    snprintf(path, sizeof path, "%s", write_text("data.jsonl", text, strlen(text)));
    if (!o.files) o.files = files, o.n_files = 1;
    if (!o.image_root) o.image_root = fixtures;
    bool ok = dataset_open(d, words, &model, o, &e);
    if (ok != !e.code[0]) FAIL("verdict and error disagree");
    return ok ? "" : err_line(&e, "error", message, sizeof message);
}
static const char *verdict(const char *text, DataOptions o) {
    Dataset d;
    const char *v = open_with(&d, text, o);
    if (!*v) dataset_close(&d);
    return v;
}
static bool refused(const char *text, DataOptions o, const char *code, int line) {
    char want[1400];
    const char *v = verdict(text, o);
    snprintf(want, sizeof want, "surgr1: error %s: %s:%d: ", code, in_folder("data.jsonl"), line);
    if (!strncmp(v, want, strlen(want))) return true;
    snprintf(want, sizeof want, "surgr1: error %s: %s:%d:", code, in_folder("data.jsonl"), line); // with a column
    if (!strncmp(v, want, strlen(want))) return true;
    fprintf(stderr, "%.200s\n  expected %s, got %s\n", text, code, *v ? v : "acceptance");
    return false;
}

static bool load(const Dataset *d, int64_t i, Sample *s) {
    Err e = {0};
    if (sample_load(d, i, s, &e)) return true;
    FAIL("%s", err_line(&e, "error", message, sizeof message));
    return false;
}

// The text of all ids that are trained (or of all that are not).
static const char *decoded(const Sample *s, int trained) {
    static char out[8192];
    Ids ids = {0};
    Text t = {0};
    for (int64_t k = 0; k < s->ids.n; k++)
        if (trained < 0 || s->trained[k] == trained) ids_add(&ids, s->ids.p[k]);
    tokenizer_decode(words, ids.p, ids.n, false, &t);
    snprintf(out, sizeof out, "%s", t.len ? t.p : "");
    ids_free(&ids);
    text_free(&t);
    return out;
}

// -------------------------------------------------------------------------------------------------------- the mask
#define PICTURE                                                                                                        \
    "<|vision_start|><|image_pad|><|image_pad|><|image_pad|><|image_pad|><|image_pad|><|image_pad|><|vision_end|>"
#define FORMS                                                                                                          \
    "{\"messages\":[{\"role\":\"system\",\"content\":\"brief\"},{\"role\":\"user\",\"content\":\"<image>what\"},"      \
    "{\"role\":\"assistant\",\"content\":\"a liver\"},{\"role\":\"user\",\"content\":\"sure?\"},"                      \
    "{\"role\":\"assistant\",\"content\":\"yes\"}],\"images\":[\"c0_0.png\"]}\n"                                       \
    "{\"conversations\":[{\"from\":\"system\",\"value\":\"brief\"},{\"from\":\"human\",\"value\":\"<image>what\"},"    \
    "{\"from\":\"gpt\",\"value\":\"a liver\"},{\"from\":\"human\",\"value\":\"sure?\"},"                               \
    "{\"from\":\"gpt\",\"value\":\"yes\"}],\"image\":\"c0_0.png\"}\n"                                                  \
    "{\"system\":\"brief\",\"history\":[[\"<image>what\",\"a liver\"]],\"query\":\"sure?\",\"response\":\"yes\","      \
    "\"images\":[\"c0_0.png\"]}\n"                                                                                     \
    "{\"system\":\"brief\",\"history\":[[\"what\",\"a liver\"]],\"instruction\":\"sure?\",\"input\":\"\","             \
    "\"output\":\"yes\",\"image\":\"c0_0.png\"}\n"                                                                     \
    "{\"prompt\":[{\"role\":\"system\",\"content\":\"brief\"},{\"role\":\"user\",\"content\":\"what\"}],"              \
    "\"completion\":[{\"role\":\"assistant\",\"content\":\"a liver\"},{\"role\":\"user\",\"content\":\"sure?\"},"      \
    "{\"role\":\"assistant\",\"content\":\"yes\"}],\"images\":[\"c0_0.png\"]}\n"

TEST(every_form_gives_the_same_ids_and_mask) {
    Dataset d;
    Sample first, s;
    const char *v = open_with(&d, FORMS, (DataOptions){0});
    EXPECT_STR(v, "");
    if (*v) return;
    EXPECT_INT(d.n, 5);
    if (!load(&d, 0, &first)) return;
    EXPECT_STR(decoded(&first, 1), "a liver<|im_end|>yes<|im_end|>");
    EXPECT_STR(decoded(&first, 0),
               "<|im_start|>system\nbrief<|im_end|>\n<|im_start|>user\n" PICTURE
               "what<|im_end|>\n<|im_start|>assistant\n\n<|im_start|>user\nsure?<|im_end|>\n<|im_start|>assistant\n\n");
    EXPECT_INT(first.n_grids, 1);
    EXPECT(first.grids[0].t == 1 && first.grids[0].h == 6 && first.grids[0].w == 4);
    for (int64_t i = 1; i < d.n; i++) {
        if (!load(&d, i, &s)) return;
        EXPECT(s.ids.n == first.ids.n && !memcmp(s.ids.p, first.ids.p, (size_t)s.ids.n * sizeof *s.ids.p));
        EXPECT(s.ids.n == first.ids.n && !memcmp(s.trained, first.trained, (size_t)s.ids.n));
        EXPECT_INT(s.targets, first.targets);
        EXPECT_INT(d.samples[i].tokens, s.ids.n);
        EXPECT_INT(d.samples[i].targets, s.targets);
        sample_free(&s);
    }
    EXPECT_INT(d.tokens, 5 * first.ids.n);
    EXPECT_INT(d.targets, 5 * first.targets);
    EXPECT_INT(d.patches, 5 * 24);
    EXPECT_INT(d.longest, first.ids.n);
    EXPECT_INT(d.most_patches, 24);
    sample_free(&first);
    dataset_close(&d);
}

// Answers that look like the template, or that a tokenizer would like to join with what stands before them.
static const char *const answers[] = {"yes",
                                      "\\nyes",
                                      "\\n\\n yes\\n",
                                      " ",
                                      "assistant",
                                      "<|im_start|>assistant\\nno<|im_end|>",
                                      "\\n",
                                      "<|image_pad|>",
                                      "caf\\u00e9 \\ud83d\\ude42",
                                      "system\\nuser\\nassistant\\n"};
TEST(the_mask_is_the_answers_and_nothing_else) {
    enum { N = sizeof answers / sizeof *answers };
    Text text = {0};
    for (int i = 0; i < N * N; i++)
        text_addf(
            &text,
            "{\"messages\":[{\"role\":\"user\",\"content\":\"<image>say %s\"},{\"role\":\"assistant\",\"content\":"
            "\"%s\"},{\"role\":\"user\",\"content\":\"assistant\"},{\"role\":\"assistant\",\"content\":\"%s\","
            "\"loss\":%s}],\"image\":\"c0_0.png\"}\n",
            answers[i % N], answers[i % N], answers[i / N], i % 2 ? "true" : "false");
    Dataset d;
    const char *v = open_with(&d, text.p, (DataOptions){0});
    EXPECT_STR(v, "");
    for (int i = 0; !*v && i < d.n; i++) {
        Sample s;
        JsonDoc doc;
        Err e = {0};
        Ids prompt = {0};
        char json[400], want[400];
        int grids = 0;
        snprintf(json, sizeof json, "\"%s<|im_end|>%s%s\"", answers[i % N], i % 2 ? answers[i / N] : "",
                 i % 2 ? "<|im_end|>" : "");
        EXPECT(json_parse(&doc, json, strlen(json), "json", (JsonOptions){0}, &e));
        snprintf(want, sizeof want, "%s", doc.root->str);
        json_free(&doc);
        if (!load(&d, i, &s)) break;
        EXPECT_STR(decoded(&s, 1), want);
        for (int64_t k = 0; k < s.ids.n; k++) EXPECT(!s.trained[k] || s.ids.p[k] != model.image_id);
        // a sampler that sees the prompt has to draw exactly the ids that are trained
        EXPECT(sample_prompt(&d, i, &prompt, &grids, &e));
        EXPECT_INT(grids, 1);
        EXPECT(prompt.n < s.ids.n && !memcmp(prompt.p, s.ids.p, (size_t)prompt.n * sizeof *prompt.p));
        EXPECT(prompt.n < s.ids.n && s.trained[prompt.n] && !s.trained[prompt.n - 1]);
        ids_free(&prompt);
        sample_free(&s);
    }
    if (!*v) dataset_close(&d);
    text_free(&text);
}

TEST(trusted_text_can_type_control_tokens_but_no_picture_is_a_target) {
    Dataset d;
    Sample s;
    const char *v = open_with(&d,
                              "{\"messages\":[{\"role\":\"user\",\"content\":\"<image>a<|im_end|>\"},{\"role\":"
                              "\"assistant\",\"content\":\"b<|im_end|>c<|im_start|>\"}],\"image\":\"c0_0.png\"}\n",
                              (DataOptions){.trust_text = true});
    EXPECT_STR(v, "");
    if (*v || !load(&d, 0, &s)) return;
    int32_t end = tokenizer_added(words, "<|im_end|>");
    int64_t ends = 0;
    for (int64_t k = 0; k < s.ids.n; k++) ends += s.trained[k] && s.ids.p[k] == end;
    EXPECT_INT(ends, 2);
    EXPECT_STR(decoded(&s, 1), "b<|im_end|>c<|im_start|><|im_end|>");
    sample_free(&s);
    dataset_close(&d);
    v = open_with(&d,
                  "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\"},"
                  "{\"role\":\"user\",\"content\":\"c<image>\"},{\"role\":\"assistant\",\"content\":\"d\"}],"
                  "\"image\":\"c0_0.png\"}\n",
                  (DataOptions){.trust_text = true});
    EXPECT_STR(v, "");
    if (*v || !load(&d, 0, &s)) return;
    EXPECT_STR(decoded(&s, 1), "b<|im_end|>d<|im_end|>");
    Ids prompt = {0};
    Err e = {0};
    int grids = -1;
    EXPECT(sample_prompt(&d, 0, &prompt, &grids, &e));
    EXPECT_INT(grids, 0); // the picture comes later
    ids_free(&prompt);
    sample_free(&s);
    dataset_close(&d);
    // a picture that an answer takes by typing its token
    v = open_with(&d,
                  "{\"messages\":[{\"role\":\"user\",\"content\":\"<image>\"},{\"role\":\"assistant\",\"content\":"
                  "\"b<|image_pad|>\"}],\"images\":[\"c0_0.png\"]}\n",
                  (DataOptions){.trust_text = true});
    EXPECT(strstr(v, "E-DS-10") != NULL);
    if (!*v) dataset_close(&d);
}

// ----------------------------------------------------------------------------------------------- Hugging Face's ids
static int hf_rows;
static void hf_row(const Json *row, const char *dir) {
    const Json *ids = json_get(row, "input_ids"), *grids = json_get(row, "grid_thw");
    Text text = {0};
    text_addf(&text, "{\"prompt\":");
    json_print(&text, json_get(row, "messages"));
    text_addf(&text, ",\"completion\":\"fine\"}\n{\"messages\":");
    json_print(&text, json_get(row, "messages"));
    text.len--; // the ] of the list
    text_addf(&text, ",{\"role\":\"assistant\",\"content\":\"fine\"}]}\n");
    Dataset d;
    const char *v = open_with(&d, text.p, (DataOptions){.image_root = dir});
    EXPECT_STR(v, "");
    text_free(&text);
    if (*v) return;
    for (int64_t i = 0; i < d.n; i++) {
        Sample s;
        if (!load(&d, i, &s)) continue;
        int64_t k = 0, g = 0;
        for (const Json *id = ids->child; id; id = id->next, k++) EXPECT(k < s.ids.n && s.ids.p[k] == id->i);
        EXPECT(k < s.ids.n && s.trained[k] && !s.trained[k - 1]);
        for (const Json *t = grids ? grids->child : NULL; t; t = t->next, g++)
            EXPECT(g < s.n_grids && s.grids[g].t == t->child->i && s.grids[g].h == t->child->next->i &&
                   s.grids[g].w == t->child->next->next->i);
        EXPECT_INT(g, s.n_grids);
        const char *all = decoded(&s, 1), *end = "fine<|im_end|>";
        EXPECT_STR(all + (strlen(all) > strlen(end) ? strlen(all) - strlen(end) : 0), end);
        if (i == 0) EXPECT_STR(all, end); // of a prompt nothing is trained
        sample_free(&s);
    }
    dataset_close(&d);
    hf_rows++;
}

static void hf_folder(const char *dir) {
    char path[1200], *text;
    size_t size;
    Err e = {0};
    Tokenizer *other = NULL, *before = (set_up(), words);
    Config other_model, model_before = model;
    snprintf(path, sizeof path, "%s/checkpoint", dir);
    if (!tokenizer_load(&other, path, &e) || !config_load(&other_model, path, &e)) return;
    snprintf(path, sizeof path, "%s/conversations.jsonl", dir);
    if (file_read(path, LIMIT_CONFIG_BYTES, "E-JS-01", &text, &size, &e)) {
        words = other, model = other_model;
        for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
            JsonDoc doc;
            if (!json_parse(&doc, line, strlen(line), path, (JsonOptions){0}, &e)) continue;
            hf_row(doc.root, dir);
            json_free(&doc);
        }
        words = before, model = model_before;
        free(text);
    }
    tokenizer_free(other);
}

TEST(prompts_have_the_ids_of_the_processor) {
    char dir[1100];
    hf_folder(fixtures);
    EXPECT(hf_rows > 0);
    snprintf(dir, sizeof dir, "%s/oracle/pipeline/ask", test_root());
    hf_folder(dir);
}

// -------------------------------------------------------------------------------------------------------- pictures
static char *base64(const char *path, size_t *size) { // of a file, made the long way
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    char *data, *out;
    Err e = {0};
    CHECK(file_read(path, LIMIT_IMAGE_BYTES, "E-IM-01", &data, size, &e), "%s", path);
    out = calloc(*size / 3 * 4 + 8, 1);
    for (size_t bit = 0; bit < *size * 8; bit += 6) {
        int v = 0;
        for (size_t k = bit; k < bit + 6; k++)
            v = v << 1 | (k < *size * 8 ? (unsigned char)data[k / 8] >> (7 - k % 8) & 1 : 0);
        out[bit / 6] = digits[v];
    }
    while (strlen(out) % 4) strcat(out, "=");
    free(data);
    return out;
}

static void expect_same_pixels(const Sample *a, const Sample *b, int64_t patches) {
    size_t row = (size_t)(model.vision.channels * model.vision.temporal * model.vision.patch * model.vision.patch);
    EXPECT(!memcmp(a->pixels, b->pixels, (size_t)patches * row * sizeof(float)));
}

TEST(pictures_come_as_ask_makes_them_and_from_anywhere) {
    static const char *const names[] = {"c0_0.png", "c2_0.png", "c2_1.png", "c3_0.png", "c3_1.png"};
    char cwd[1000];
    CHECK(getcwd(cwd, sizeof cwd), "no folder");
    set_up();
    for (int i = 0; i < 5; i++) {
        Text text = {0};
        char path[1200];
        size_t size;
        Dataset d;
        Sample a, b;
        snprintf(path, sizeof path, "%s/%s/%s", cwd, fixtures, names[i]);
        char *digits = base64(path, &size);
#define ROW "{\"query\":\"<image>\",\"answer\":\"a\",\"image\":\"%s%s\"}\n"
        text_addf(&text, ROW ROW ROW, "", names[i], "", path, "data:image/png;base64,", digits);
        const char *v = open_with(&d, text.p, (DataOptions){.absolute_images = true});
        EXPECT_STR(v, "");
        if (*v || !load(&d, 0, &a)) return;
        for (int k = 1; k < 3; k++) {
            if (!load(&d, k, &b)) return;
            EXPECT_INT(a.ids.n, b.ids.n);
            expect_same_pixels(&a, &b, grid_patches(a.grids[0]));
            sample_free(&b);
        }
        Image im;
        Err e = {0};
        Sample own = {0};
        Grid g;
        EXPECT(image_read(&im, path, (ImageOptions){0}, &e));
        EXPECT(image_to_patches(&model.vision, &im, path, &own.pixels, &g, &e));
        expect_same_pixels(&a, &own, grid_patches(g));
        image_free(&im);
        free(own.pixels);
        sample_free(&a);
        dataset_close(&d);
        // without leave, an absolute path is refused; a damaged encoding always
        EXPECT(refused(text.p, (DataOptions){0}, "E-DS-04", 2));
        size_t len = strlen(digits), last = strcspn(digits, "=") - 1;
        const struct {
            size_t at;
            char byte;
        } damage[] = {{8, '-'}, {9, '_'}, {10, ' '}, {10, '='}, {len, 'A'}, {last, 'B'}}; // the last: bits of no byte
        for (size_t k = 0; k < sizeof damage / sizeof *damage - (size % 3 == 0); k++) {
            char *bad = calloc(len + 8, 1);
            memcpy(bad, digits, len);
            bad[damage[k].at] = damage[k].byte;
            text.len = 0;
            text_addf(&text, ROW, "data:image/png;base64,", bad);
            EXPECT(refused(text.p, (DataOptions){0}, "E-DS-04", 1));
            free(bad);
        }
        text_free(&text);
        free(digits);
    }
    EXPECT(refused("{\"query\":\"x\",\"answer\":\"a\",\"image\":\"data:image/png,AAAA\"}\n", (DataOptions){0},
                   "E-DS-04", 1));
    EXPECT(refused("{\"query\":\"x\",\"answer\":\"a\",\"image\":\"data:text/plain;base64,AAAA\"}\n", (DataOptions){0},
                   "E-DS-04", 1));
    EXPECT(strstr(verdict("{\"query\":\"x\",\"answer\":\"a\",\"image\":\"data:image/png;base64,AAAA\"}\n",
                          (DataOptions){0}),
                  "E-IM-01") != NULL);
}

TEST(sizes_are_found_behind_long_headers_too) {
    // a PNG with 100,000 bytes of text in front of its data: the first 64 KiB do not reach the picture
    char *png;
    size_t size;
    Err e = {0};
    Text big = {0};
    set_up();
    CHECK(file_read("test/fixtures/oracle/pipeline/ask/c0_0.png", LIMIT_IMAGE_BYTES, "E-IM-01", &png, &size, &e),
          "png");
    text_add(&big, png, 33); // signature and IHDR
    uint8_t *chunk = calloc(1, 100000 + 12);
    chunk[1] = 100000 >> 16, chunk[2] = (uint8_t)(100000 >> 8), chunk[3] = (uint8_t)(100000 & 255);
    memcpy(chunk + 4, "tEXtComment", 12);
    memset(chunk + 16, 'x', 100000 - 8);
    uint32_t crc = png_crc(0, chunk + 4, 100004);
    for (int k = 0; k < 4; k++) chunk[100008 + k] = (uint8_t)(crc >> (24 - 8 * k));
    text_add(&big, (char *)chunk, 100012);
    text_add(&big, png + 33, size - 33);
    write_text("big.png", big.p, big.len);
    Dataset d;
    Sample s;
    const char *v = open_with(&d, "{\"query\":\"x\",\"answer\":\"a\",\"image\":\"big.png\"}\n",
                              (DataOptions){.image_root = folder});
    EXPECT_STR(v, "");
    if (!*v && load(&d, 0, &s)) {
        EXPECT_INT(d.patches, 24);
        sample_free(&s), dataset_close(&d);
    }
    free(png), free(chunk), text_free(&big);
}

TEST(a_picture_that_exif_turns_is_measured_as_it_is_read) {
    static const char root[] = "test/fixtures/testdata/images/jpeg";
    for (int turn = 0; turn < 2; turn++) {
        Dataset d;
        Sample s;
        Image im;
        Err e = {0};
        char path[200], text[400], want[80];
        DataOptions o = {.image_root = root, .image = {.apply_orientation = turn}};
        snprintf(path, sizeof path, "%s/exif_turned.jpg", root);
        if (!image_read(&im, path, o.image, &e)) {
            FAIL("%s", err_line(&e, "error", message, sizeof message));
            return;
        }
        EXPECT(im.orientation >= 5 && im.width != im.height); // else nothing is shown here
        snprintf(text, sizeof text, // the whole picture: its last pixel tells which way it lies
                 "{\"query\":\"q\",\"answer\":\"<bbox>\",\"image\":\"exif_turned.jpg\",\"objects\":{\"bbox\":[[0,0,%d,"
                 "%d]]}}\n",
                 im.width, im.height);
        const char *v = open_with(&d, text, o);
        EXPECT_STR(v, "");
        if (!*v && load(&d, 0, &s)) {
            int64_t p = model.vision.patch;
            EXPECT((s.grids[0].w > s.grids[0].h) == (im.width > im.height));
            snprintf(want, sizeof want, "[0, 0, %lld, %lld]<|im_end|>", (long long)(s.grids[0].w * p - 1),
                     (long long)(s.grids[0].h * p - 1));
            EXPECT_STR(decoded(&s, 1), want);
            sample_free(&s);
        }
        if (!*v) dataset_close(&d);
        image_free(&im);
    }
}

TEST(boxes_reach_the_ids_in_the_resized_frame) {
    Dataset d;
    Sample s;
    // c0_0.png is 84 x 103 and becomes 56 x 84
    const char *v = open_with(
        &d,
        "{\"query\":\"find "
        "<ref-object>\",\"response\":\"<bbox>\",\"images\":[\"c0_0.png\"],\"objects\":{\"ref\":[\"it\"],"
        "\"bbox\":[[42,51.5,84,103]]},\"weight\":2.5}\n"
        "{\"query\":\"find it\",\"response\":\"{\\\"bbox_2d\\\": [42, 51.5, 84, 103]}\",\"images\":[\"c0_0.png\"],"
        "\"box_frame\":\"original\"}\n",
        (DataOptions){0});
    EXPECT_STR(v, "");
    if (*v || !load(&d, 0, &s)) return;
    EXPECT_STR(decoded(&s, 1), "[28, 42, 55, 83]<|im_end|>");
    EXPECT(strstr(decoded(&s, 0), "find it<|im_end|>") != NULL);
    EXPECT_NEAR(s.weight, 2.5, 0);
    sample_free(&s);
    if (!load(&d, 1, &s)) return;
    EXPECT_STR(decoded(&s, 1), "{\"bbox_2d\": [28, 42, 55, 83]}<|im_end|>");
    sample_free(&s);
    dataset_close(&d);
    EXPECT(refused("{\"query\":\"q\",\"response\":\"{\\\"bbox_2d\\\": [42, 51, 84, 83]}\",\"images\":[\"c0_0.png\"]}\n",
                   (DataOptions){0}, "E-DS-06", 1)); // 84 is outside of 56
}

// ------------------------------------------------------------------------------------------------ what is refused
#define GOOD(id) "{\"id\":\"" id "\",\"query\":\"q\",\"answer\":\"a\"}\n"

TEST(bad_samples_refuse_with_code_and_place) {
    DataOptions plain = {0};
    EXPECT(refused(GOOD("a") "{\"query\":\"q\"}\n", plain, "E-DS-02", 2));
    EXPECT(strstr(message, "ends with a question") != NULL);
    EXPECT(refused(GOOD("a") "{\"messages\":[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\",\"content\":"
                             "\"a\",\"loss\":false}]}\n",
                   plain, "E-DS-02", 2));
    EXPECT(refused(GOOD("a") GOOD("a"), plain, "E-DS-03", 2));
    EXPECT(refused(GOOD("a") "{\n", plain, "E-JS-04", 2));
    EXPECT(refused("{\"query\":\"q\",\"answer\":\"a\",\"image\":\"none.png\"}\n", plain, "E-IO-01", 1));
    EXPECT(refused("{\"query\":\"q\",\"answer\":\"a\",\"image\":\"../x.png\"}\n", plain, "E-DS-04", 1));
    EXPECT(strstr(verdict("{\"query\":\"q\",\"answer\":\"a\",\"image\":\"conversations.jsonl\"}\n", plain),
                  "E-IM-01") != NULL);
    EXPECT(strstr(verdict("", plain), "E-DS-02") != NULL);
    EXPECT(symlink("/etc/passwd", in_folder("link.png")) == 0);
    EXPECT(refused("{\"query\":\"q\",\"answer\":\"a\",\"image\":\"link.png\"}\n", (DataOptions){.image_root = folder},
                   "E-DS-04", 1));
}

TEST(what_the_model_would_refuse_is_refused_before_the_first_step) {
    static const char *const typed[] = {"<|video_pad|>", "<|image_pad|>", "<image><|image_pad|>"};
    for (int i = 0; i < 3; i++) {
        char text[400];
        snprintf(text, sizeof text, GOOD("a") "{\"id\":\"v\",\"query\":\"%s\",\"answer\":\"x\"%s}\n", typed[i],
                 i == 2 ? ",\"image\":\"c0_0.png\"" : "");
        EXPECT_STR(verdict(text, (DataOptions){0}), ""); // plain text
        EXPECT(refused(text, (DataOptions){.trust_text = true}, "E-DS-10", 2));
        EXPECT(strstr(message, "sample \"v\"") != NULL);
    }
}

TEST(a_sample_over_the_limit_is_refused_or_dropped_whole) {
    const char *text = GOOD("a") "{\"id\":\"long\",\"query\":\"q<image>\",\"answer\":\"one two three four\",\"image\":"
                                 "\"c0_0.png\"}\n" GOOD("b");
    Dataset d;
    Sample s;
    const char *v = open_with(&d, text, (DataOptions){0});
    EXPECT_STR(v, "");
    if (*v) return;
    int64_t longest = d.samples[1].tokens;
    EXPECT_INT(d.longest, longest);
    dataset_close(&d);
    EXPECT_STR(verdict(text, (DataOptions){.max_tokens = longest}), "");
    EXPECT(refused(text, (DataOptions){.max_tokens = longest - 1}, "E-DS-07", 2));
    char want[200];
    snprintf(want, sizeof want,
             "sample \"long\": expected at most %lld tokens; found %lld (6 of pictures); do: ", (long long)longest - 1,
             (long long)longest);
    EXPECT(strstr(message, want) != NULL);
    EXPECT(refused(text, (DataOptions){.max_tokens = longest - 1, .drop_bad = true}, "E-DS-07", 2));
    v = open_with(&d, text, (DataOptions){.max_tokens = longest - 1, .drop_long = true});
    EXPECT_STR(v, "");
    if (*v) return;
    EXPECT_INT(d.n, 2);
    EXPECT_INT(d.dropped_long, 1);
    EXPECT_STR(d.samples[1].id, "b");
    EXPECT(load(&d, 1, &s));
    EXPECT_STR(s.id, "b");
    sample_free(&s);
    dataset_close(&d);
}

TEST(bad_samples_are_dropped_up_to_one_in_a_hundred) {
    for (int bad = 10; bad <= 12; bad++)
        for (int good = 900; good <= 1200; good += 300) {
            Text text = {0};
            Dataset d;
            for (int i = 0; i < good + bad; i++)
                text_addf(&text, i < bad ? "{\"query\":\"q%d\"}\n" : "{\"query\":\"q%d\",\"answer\":\"a\"}\n", i);
            const char *v = open_with(&d, text.p, (DataOptions){.drop_bad = true});
            bool stop = bad > 10 && bad * 100 > good + bad;
            if (stop) EXPECT(strstr(v, "E-DS-02") && strstr(v, "data.jsonl:1"));
            else EXPECT_STR(v, "");
            if (!*v) {
                EXPECT_INT(d.n, good);
                EXPECT_INT(d.dropped_bad, bad);
                EXPECT_INT(d.samples[0].line, bad + 1);
                dataset_close(&d);
            }
            text_free(&text);
        }
    EXPECT(strstr(verdict(GOOD("a") "{\"query\":\"q\",\"answer\":\"a\",\"image\":\"none.png\"}\n[]\n{\n" GOOD("a"),
                          (DataOptions){.drop_bad = true}),
                  "error") == NULL);
}

TEST(data_that_change_after_the_scan_are_noticed) {
    Dataset d;
    Sample s;
    Err e = {0}, f = {0}, g = {0};
    set_up();
    char command[3000];
    snprintf(command, sizeof command, "cp %s/c0_0.png %s/p.png && cp %s/c0_0.png %s/q.png", fixtures, folder, fixtures,
             folder);
    EXPECT(system(command) == 0);
    const char *v = open_with(&d,
                              "{\"query\":\"q\",\"answer\":\"a\",\"image\":\"p.png\"}\n"
                              "{\"query\":\"q\",\"answer\":\"a\",\"image\":\"q.png\"}\n",
                              (DataOptions){.image_root = folder});
    EXPECT_STR(v, "");
    if (*v) return;
    snprintf(command, sizeof command, "cp %s/c2_0.png %s/p.png", fixtures, folder);
    EXPECT(system(command) == 0);
    EXPECT(!sample_load(&d, 0, &s, &e));
    EXPECT_STR(e.code, "E-IO-05");
    EXPECT(load(&d, 1, &s));
    sample_free(&s);
    FILE *more = fopen(in_folder("data.jsonl"), "a");
    if (more) fputs("{}\n", more), fclose(more);
    EXPECT(!sample_load(&d, 1, &s, &f));
    EXPECT_STR(f.code, "E-IO-05");
    Ids prompt = {0};
    EXPECT(!sample_prompt(&d, 1, &prompt, NULL, &g));
    EXPECT_STR(g.code, "E-IO-05");
    dataset_close(&d);
}

TEST(several_files_are_one_data_set_and_have_one_hash) {
    static char one[1200], two[1200];
    static const char *files[2] = {one, two};
    Dataset d;
    char want[65];
    set_up();
    const char a[] = GOOD("x") GOOD("y"), b[] = "[\n {\"query\":\"q\",\"answer\":\"a\"}, " GOOD("z") "]";
    snprintf(one, sizeof one, "%s", write_text("one.jsonl", a, sizeof a - 1));
    snprintf(two, sizeof two, "%s", write_text("two.json", b, sizeof b - 1));
    const char *v = open_with(&d, "", (DataOptions){.files = files, .n_files = 2});
    EXPECT_STR(v, "");
    if (*v) return;
    sha256_hex(GOOD("x") GOOD("y") "[\n {\"query\":\"q\",\"answer\":\"a\"}, " GOOD("z") "]", sizeof a + sizeof b - 2,
               want);
    EXPECT_STR(d.sha256, want);
    static const char *const ids[] = {"x", "y", "1", "z"};
    EXPECT_INT(d.n, 4);
    for (int64_t i = 0; i < d.n; i++) {
        Sample s;
        EXPECT_STR(d.samples[i].id, ids[i]);
        if (!load(&d, i, &s)) continue;
        EXPECT_STR(s.id, ids[i]);
        EXPECT_STR(decoded(&s, 1), "a<|im_end|>");
        sample_free(&s);
    }
    dataset_close(&d);
}

static double scan_seconds(int n) {
    Text text = {0};
    for (int i = 0; i < n; i++)
        text_addf(&text,
                  "{\"id\":%d,\"query\":\"<image>how many tools are there in frame %d?\",\"answer\":\"there are %d\","
                  "\"image\":\"c0_0.png\"}\n",
                  i, i, i % 7);
    Dataset d;
    double best = 1e9;
    for (int k = 0; k < 3; k++) {
        double start = clock_seconds();
        const char *v = open_with(&d, text.p, (DataOptions){0});
        double now = clock_seconds() - start;
        EXPECT_STR(v, "");
        if (*v) break;
        EXPECT_INT(d.n, n);
        dataset_close(&d);
        if (now < best) best = now;
    }
    text_free(&text);
    return best;
}
TEST(ten_thousand_samples_are_scanned_in_linear_time) {
    double few = scan_seconds(625), many = scan_seconds(10000); // 16 times as many; quadratic would be 256 times
    if (many > 64 * few) FAIL("625 samples: %.4f s, 10,000 samples: %.4f s", few, many);
}

// ----------------------------------------------------------------------------------------------------------- units
#define ABOUT(id, picture, more)                                                                                       \
    "{\"id\":\"" id "\",\"query\":\"what is " id "?\",\"answer\":\"a " id "\",\"images\":[" picture "]" more "}\n"
#define LIVER "\"c0_0.png\""
#define HOOK  "\"c2_0.png\""
// six rows of pictures, the third word in two parts
#define CELLS ",\"cells\":[\"liver\",null,\"cystic_duct\",\"liver\",null,\"hook\"]"

TEST(samples_with_the_same_pictures_are_one_unit) {
    const char *text = ABOUT("a", LIVER, CELLS) ABOUT("b", LIVER, CELLS) ABOUT("c", LIVER, ",\"system\":\"brief\"")
        ABOUT("d", LIVER, "") ABOUT("e", LIVER, ",\"system\":\"brief\"" CELLS) ABOUT("f", HOOK, "") GOOD("g") GOOD("h")
            ABOUT("i", LIVER, "") ABOUT("j", LIVER "," HOOK, "") "{\"query\":\"?\"}\n" ABOUT("k", LIVER "," HOOK, "");
    static const int64_t units[] = {0, 5, 6, 7, 8, 9, 10, 11}, leads[] = {0, 0, 2, 0, 2, 5, 6, 7, 8, 9, 10},
                         aligned[] = {4, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0};
    Dataset d;
    const char *v = open_with(&d, text, (DataOptions){.group = true, .align = true, .drop_bad = true});
    EXPECT_STR(v, "");
    if (*v) return;
    EXPECT_INT(d.n, 11);
    EXPECT_INT(d.n_units, 7); // also a record that is left out ends a unit
    EXPECT_INT(d.aligned, 8);
    for (int u = 0; u < 8 && d.n_units == 7; u++) EXPECT_INT(d.units[u], units[u]);
    for (int64_t i = 0; i < d.n; i++) {
        Sample s, first;
        EXPECT_INT(d.samples[i].lead, leads[i]);
        EXPECT_INT(d.samples[i].aligned, aligned[i]);
        if (!load(&d, i, &s) || !load(&d, leads[i], &first)) continue;
        EXPECT_INT(s.shared, d.samples[i].shared);
        EXPECT((s.shared > 0) == (s.n_grids > 0));
        if (s.shared) EXPECT_INT(s.ids.p[s.shared - 1], tokenizer_added(words, "<|vision_end|>"));
        EXPECT(!memcmp(s.ids.p, first.ids.p, (size_t)s.shared * sizeof *s.ids.p));
        for (int64_t k = s.shared; k < s.ids.n; k++) EXPECT(s.ids.p[k] != model.image_id);
        EXPECT((s.align != NULL) == (aligned[i] > 0));
        sample_free(&s), sample_free(&first);
    }
    dataset_close(&d);
    v = open_with(&d, text, (DataOptions){.align = true, .drop_bad = true});
    EXPECT_STR(v, "");
    if (*v) return;
    EXPECT_INT(d.n_units, d.n);
    EXPECT_INT(d.aligned, 12);
    for (int64_t i = 0; i < d.n; i++) EXPECT(d.units[i] == i && d.samples[i].lead == i);
    EXPECT_INT(d.units[d.n], d.n);
    dataset_close(&d);
}

TEST(a_unit_has_an_end_and_does_not_cross_files) {
    Text text = {0};
    Dataset d;
    for (int i = 0; i < UNIT_SAMPLES + 6; i++)
        text_addf(&text, "{\"query\":\"<image>%d?\",\"answer\":\"%d\",\"image\":\"c0_0.png\"}\n", i, i);
    static char path[1200];
    static const char *files[2] = {path, path};
    snprintf(path, sizeof path, "%s", write_text("twice.jsonl", text.p, text.len));
    const char *v = open_with(&d, "", (DataOptions){.files = files, .n_files = 2, .group = true});
    EXPECT_STR(v, "");
    if (*v) return;
    EXPECT_INT(d.n_units, 4);
    for (int u = 0; u < 4; u++) EXPECT_INT(d.units[u + 1] - d.units[u], u % 2 ? 6 : UNIT_SAMPLES);
    dataset_close(&d), text_free(&text);
}

TEST(a_beginning_with_a_target_is_not_shared) {
    Dataset d;
    const char *text =
        "{\"history\":[[\"one\",\"two\"]],\"query\":\"<image>three\",\"answer\":\"four\",\"image\":\"c0_0.png\"}\n"
        "{\"history\":[[\"one\",\"two\"]],\"query\":\"<image>five\",\"answer\":\"six\",\"image\":\"c0_0.png\"}\n";
    const char *v = open_with(&d, text, (DataOptions){.group = true});
    EXPECT_STR(v, "");
    if (*v) return;
    EXPECT_INT(d.n_units, 1);
    EXPECT(d.samples[0].shared == 0 && d.samples[1].shared == 0 && d.samples[1].lead == 1);
    dataset_close(&d);
}

TEST(cells_become_the_first_tokens_of_their_words) {
    static const char *const want[] = {" liver", NULL, " cystic duct", " liver", NULL, " hook"};
    Dataset d;
    Sample s;
    const char *v = open_with(&d, ABOUT("a", LIVER, CELLS), (DataOptions){.align = true});
    EXPECT_STR(v, "");
    if (*v || !load(&d, 0, &s)) return;
    EXPECT(s.align != NULL);
    for (int k = 0; s.align && k < 6; k++) {
        Ids ids = {0};
        if (want[k]) tokenizer_encode(words, want[k], strlen(want[k]), false, &ids);
        EXPECT_INT(s.align[k], want[k] ? ids.p[0] : -1);
        ids_free(&ids);
    }
    sample_free(&s), dataset_close(&d);
    static const struct {
        const char *pictures, *cells, *found;
    } bad[] = {{LIVER, "[\"liver\",null,null,null,null]",
                "list of 6 words or nulls, one for each of its rows; found 5 entries"},
               {LIVER, "[\"liver\",null,null,null,null,null,null]", "found 7 entries"},
               {LIVER, "[1,null,null,null,null,null]", "list of 6 words"},
               {LIVER, "[\"\",null,null,null,null,null]", "list of 6 words"},
               {LIVER, "\"liver\"", "list of 6 words"},
               {LIVER "," HOOK, "[]", "found 2 pictures"},
               {"", "[]", "found 0 pictures"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char text[400];
        snprintf(text, sizeof text, GOOD("a") "{\"query\":\"q\",\"answer\":\"a\",\"images\":[%s],\"cells\":%s}\n",
                 bad[i].pictures, bad[i].cells);
        EXPECT(refused(text, (DataOptions){.align = true}, "E-DS-02", 2));
        if (!strstr(message, bad[i].found)) FAIL("%s\n  has no \"%s\"", message, bad[i].found);
        EXPECT_STR(verdict(text, (DataOptions){0}), ""); // nobody asked
    }
    EXPECT_STR(verdict(GOOD("a") ABOUT("b", LIVER, ",\"cells\":null"), (DataOptions){.align = true}), "");
}

TEST(what_the_scan_keeps_is_what_a_load_reads_again) {
    const char *text = ABOUT("a", LIVER, CELLS) ABOUT("b", LIVER, CELLS) GOOD("g") ABOUT(
        "j", LIVER "," HOOK, "") "{\"query\":\"<image>Where is "
                                 "<ref-object>?\",\"response\":\"<bbox>\",\"images\":[\"c0_0.png\"],\"weight\":0.5,"
                                 "\"objects\":{\"ref\":[\"the hook\"],\"bbox\":[[3,4,30,50]]}}\n";
    Dataset kept, forgot;
    static char path[1200];
    static const char *files[1] = {path};
    Err e = {0};
    set_up();
    snprintf(path, sizeof path, "%s", write_text("kept.jsonl", text, strlen(text)));
    DataOptions o = {.files = files, .n_files = 1, .image_root = fixtures, .group = true, .align = true};
    EXPECT(dataset_open(&kept, words, &model, o, &e));
    o.forget = true;
    EXPECT(dataset_open(&forgot, words, &model, o, &e));
    EXPECT(kept.kept > 0 && forgot.kept == 0);
    for (int64_t i = 0; i < kept.n; i++) {
        Sample s[4] = {0};
        EXPECT(sample_load(&kept, i, &s[0], &e) && sample_load(&forgot, i, &s[1], &e) &&
               sample_load_text(&kept, i, &s[2], &e) && sample_load_text(&forgot, i, &s[3], &e));
        for (int k = 1; k < 4; k++) {
            EXPECT_STR(s[k].id, s[0].id);
            EXPECT(s[k].ids.n == s[0].ids.n && !memcmp(s[k].ids.p, s[0].ids.p, (size_t)s[0].ids.n * sizeof(int32_t)));
            EXPECT(!memcmp(s[k].trained, s[0].trained, (size_t)s[0].ids.n));
            EXPECT(s[k].targets == s[0].targets && s[k].shared == s[0].shared && s[k].n_grids == s[0].n_grids);
            EXPECT(s[k].weight == s[0].weight && !memcmp(s[k].grids, s[0].grids, sizeof s[0].grids));
            EXPECT((s[k].align != NULL) == (i == 0) && (i || !memcmp(s[k].align, s[0].align, 6 * sizeof(int32_t))));
            EXPECT((s[k].pixels != NULL) == (k == 1 && s[0].n_grids > 0));
        }
        if (s[0].pixels) expect_same_pixels(&s[0], &s[1], kept.samples[i].patches);
        for (int k = 0; k < 4; k++) sample_free(&s[k]);
    }
    dataset_close(&kept), dataset_close(&forgot);
}

// ----------------------------------------------------------------------------------------------------------- order
TEST(an_epoch_visits_every_sample_once) {
    for (int64_t n = 1; n <= 200; n++) {
        bool seen[200] = {0};
        for (int64_t i = 0; i < n; i++) {
            int64_t k = shuffled(7, n % 3, i, n);
            EXPECT(k >= 0 && k < n && !seen[k]);
            if (k >= 0 && k < n) seen[k] = true;
        }
    }
    enum { N = 1000003, STEP = 50 };
    uint8_t *seen = calloc(N, 1);
    double sum = 0;
    int64_t n = 0, moved = 0;
    for (int64_t i = 0; i < N; i += STEP, n++) {
        int64_t k = shuffled(1, 0, i, N);
        EXPECT(k >= 0 && k < N && !seen[k]);
        if (k < 0 || k >= N) continue;
        seen[k] = 1, sum += (double)k, moved += k != i;
        EXPECT(shuffled(1, 0, i, N) == k); // no state
    }
    EXPECT_NEAR(sum / (double)n / N, 0.5, 5 * 0.2887 / sqrt((double)n)); // five standard errors
    EXPECT(moved > n - 10);
    free(seen);
}

TEST(every_order_is_about_as_likely) {
    // all 24 orders of 4 samples over 4,800 seeds: chi squared with 23 degrees of freedom is below 65 but once in 10^5
    int count[256] = {0}, kinds = 0;
    double chi = 0;
    for (uint64_t seed = 0; seed < 4800; seed++) {
        int order = 0;
        for (int64_t i = 0; i < 4; i++) order = order * 4 + (int)shuffled(seed, 3, i, 4);
        count[order]++;
    }
    for (int i = 0; i < 256; i++)
        if (count[i]) kinds++, chi += (count[i] - 200.0) * (count[i] - 200.0) / 200;
    EXPECT_INT(kinds, 24);
    if (chi > 65) FAIL("chi squared %.1f", chi);
    // where the first of 100 goes, over 10,000 epochs: 99 degrees of freedom, below 170
    int place[100] = {0};
    for (int64_t epoch = 0; epoch < 10000; epoch++) place[shuffled(5, epoch, 0, 100)]++;
    chi = 0;
    for (int i = 0; i < 100; i++) chi += (place[i] - 100.0) * (place[i] - 100.0) / 100;
    if (chi > 170) FAIL("chi squared %.1f", chi);
}

TEST(the_tokenizer_is_released) { tokenizer_free(words), words = NULL; }
