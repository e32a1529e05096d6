// fuzz_dataset.c - any bytes as a file of records: refused, or conversations whose paths stay inside, whose boxes land in
// their pictures, and whose ids have a mask of the answers.
#define _GNU_SOURCE // memfd_create
#include "../surgr1.h"
#include <sys/mman.h>
#include <unistd.h>

static Tokenizer *words; // every byte is a token
static void write_into(const char *dir, const char *name, Text *t) {
    char path[100];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "wb");
    CHECK(f && fwrite(t->p, 1, t->len, f) == t->len && !fclose(f), "no %s", path);
    t->len = 0;
}
static const char *bytes_and_template(void) {
    static char dir[] = "/tmp/surgr1_fuzz_XXXXXX";
    static const char *const names[] = {"<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
                                        "<|image_pad|>"};
    Text t = {0};
    CHECK(mkdtemp(dir), "no temporary folder");
    text_addf(&t, "{");
    for (uint32_t b = 0, extra = 256; b < 256; b++) { // GPT-2's printable stand-ins of the bytes
        char utf8[4];
        bool plain = (b >= 33 && b < 127) || (b > 160 && b != 173);
        text_addf(&t, b ? "," : "");
        text_add_json_string(&t, utf8, utf8_put(utf8, plain ? b : extra++));
        text_addf(&t, ":%u", b);
    }
    text_addf(&t, "}");
    write_into(dir, "vocab.json", &t);
    text_addf(&t, "#version: 0.2\n");
    write_into(dir, "merges.txt", &t);
    for (int k = 0; k < 5; k++) text_addf(&t, "%s\"%s\":%d", k ? "," : "{", names[k], 256 + k);
    text_addf(&t, "}");
    write_into(dir, "added_tokens.json", &t);
    text_free(&t);
    return dir;
}
static void remove_folder(const char *dir) {
    char command[100];
    snprintf(command, sizeof command, "rm -rf %s", dir);
    if (system(command)) perror(command);
}

static bool each(void *ctx, Record *r, Err *e) {
    RecordOptions *o = ctx;
    FrameSize sizes[16];
    int64_t tokens[16];
    for (int k = 0; k < 16; k++) sizes[k] = (FrameSize){100 + k, 50, 84, 56}, tokens[k] = 1 + k % 2;
    for (int k = 0; k < r->n_images; k++) {
        const char *p = r->images[k];
        bool data = o->data_images && !strncmp(p, "data:", 5), absolute = o->absolute_images && *p == '/';
        CHECK(data || absolute || (*p && *p != '/' && !strstr(p, "../") && strcmp(p, "..")),
              "a path that leads out: %s", p);
    }
    CHECK(r->n > 0 && r->n_images <= 16, "nothing, or too much");
    CHECK(!r->n_boxes || o->boxes, "boxes for one who cannot place them");
    if (!record_place_boxes(r, sizes, e)) return false;
    int seen = 0;
    Turn *turns = alloc_or_die((size_t)r->n, sizeof *turns, "turns");
    for (int i = 0; i < r->n; i++) {
        turns[i].apart = r->trained[i];
        CHECK(!r->trained[i] || !strcmp(r->messages[i].role, "assistant"), "a trained turn of %s", r->messages[i].role);
        for (int k = 0; k < r->messages[i].n_parts; k++)
            if (r->messages[i].parts[k].image >= 0)
                CHECK(r->messages[i].parts[k].image == seen++, "pictures out of order");
    }
    CHECK(seen == r->n_images, "%d pictures in the text of %d", seen, r->n_images);
    for (int b = 0; b < r->n_boxes; b++) {
        const Part *p = &r->messages[r->boxes[b].message].parts[r->boxes[b].part];
        int v[4], end = 0;
        CHECK(p->image < 0 && sscanf(p->text, "[%d, %d, %d, %d]%n", v, v + 1, v + 2, v + 3, &end) == 4 &&
                  end == (int)p->len,
              "a box that is none");
        for (int k = 0; k < 4; k++) CHECK(v[k] >= 0 && v[k] < (k % 2 ? 56 : 84), "a box outside: %d", v[k]);
    }
    Ids ids = {0};
    CHECK(chat_encode_turns(words, r->messages, r->n, false, tokens, r->n_images, false, turns, &ids, e), "no ids");
    for (int i = 0; i < r->n; i++)
        if (turns[i].apart) { // decoded, it is the answer and its end
            Text want = {0}, got = {0};
            for (int k = 0; k < r->messages[i].n_parts; k++)
                text_add(&want, r->messages[i].parts[k].text, r->messages[i].parts[k].len);
            int64_t n = turns[i].last - turns[i].first;
            CHECK(n > 1 && ids.p[turns[i].last - 1] == 257, "an answer without its end");
            CHECK(ids.p[turns[i].first - 1] == '\n', "no header in front");
            tokenizer_decode(words, ids.p + turns[i].first, n - 1, false, &got);
            bool ascii = true; // NFC may rewrite other texts
            for (size_t k = 0; k < want.len; k++) ascii = ascii && (unsigned char)want.p[k] < 128;
            CHECK(!ascii || (got.len == want.len && !memcmp(got.p, want.p, got.len)), "the mask is not the answer");
            text_free(&want), text_free(&got);
        }
    ids_free(&ids);
    free(turns);
    return true;
}

static void bad(void *ctx, const Err *e) {
    (void)ctx;
    CHECK(err_exit_code(e) == EXIT_REFUSED, "refused with %s", e->code);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static char path[64];
    static int file = -1;
    Err e = {0};
    if (file < 0) {
        log_setup(LOG_QUIET, false);
        const char *dir = bytes_and_template();
        CHECK(tokenizer_load(&words, dir, &e), "%s %s", e.code, e.found);
        remove_folder(dir);
        file = memfd_create("records", 0);
        snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    }
    if (!size) return 0;
    CHECK(!ftruncate(file, 0) && pwrite(file, data + 1, size - 1, 0) == (ssize_t)size - 1, "no file");
    RecordOptions o = {.boxes = *data & 1, .absolute_images = *data & 2, .data_images = *data & 4};
    if (!records_read_all(path, o, NULL, each, bad, &o, &e)) bad(NULL, &e);
    return 0;
}
