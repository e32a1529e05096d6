// fuzz_tokenizer.c - any bytes as text, as ids, and as tokenizer files: nothing crashes, and what is accepted holds.
//
//     clang -fsanitize=fuzzer,address,undefined -I. test/fuzz_tokenizer.c tokenizer.c io/*.c ...   coverage-guided
//     gcc -DFUZZ_MAIN ...  &&  fuzz_tokenizer [ROUNDS]                      mutates its own seeds, the same each time
//
// The first byte of an input picks what the rest is: text, ids, merges, a vocabulary, a tokenizer.json.
#include "../surgr1.h"
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char folder[64];
static Tokenizer *fixed; // 256 bytes, a few merges, two added tokens

static void put(const char *name, const char *text, size_t len) {
    char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "wb");
    CHECK(f && fwrite(text, 1, len, f) == len && !fclose(f), "cannot write %s", path);
}

// The 256 bytes as JSON members, ids 0 to 255.
static void add_bytes(Text *t) {
    for (int b = 0, other = 0x100; b < 256; b++) {
        bool prints = (b >= '!' && b <= '~') || (b >= 0xA1 && b != 0xAD);
        char utf8[4];
        size_t n = utf8_put(utf8, (uint32_t)(prints ? b : other++));
        text_add_json_string(t, utf8, n), text_addf(t, ":%d,", b);
    }
}

static Text vocabulary(void) {
    Text t = {0};
    text_addf(&t, "{"), add_bytes(&t);
    text_addf(&t, "\"ab\":256,\"abc\":257,\"\xC4\xA0\xC4\xA0\":258,\"aa\":259,\"aaaa\":260,\"\xC3\x8C\xC4\xA3\":261}");
    return t;
}
static const char merges[] = "a b\nab c\n\xC4\xA0 \xC4\xA0\na a\naa aa\n\xC3\x8C \xC4\xA3\n";

static Tokenizer *load(void) {
    Err e = {0};
    Tokenizer *t;
    bool ok = tokenizer_load(&t, folder, &e);
    CHECK(ok == (t != NULL) && ok == !e.code[0], "load and its error disagree");
    CHECK(ok || (e.expected[0] && e.found[0] && e.todo[0]), "an error without its parts");
    return t;
}

static void check_text(const Tokenizer *t, const char *text, size_t len) {
    Ids ids = {0}, again = {0};
    Text bytes = {0}, whole = {0}, streamed = {0};
    tokenizer_encode(t, text, len, false, &ids);
    for (int64_t k = 0; k < ids.n; k++) {
        size_t n;
        bool added, special;
        const char *p = tokenizer_token(t, ids.p[k], &n, &added, &special);
        CHECK(p && (!added || t != fixed), "an added token out of plain text");
        text_add(&bytes, p, n);
    }
    tokenizer_encode(t, bytes.p, bytes.len, false, &again); // normal form is a fixed point
    CHECK(again.n == ids.n && (!ids.n || !memcmp(again.p, ids.p, (size_t)ids.n * sizeof *ids.p)), "not a fixed point");
    ids.n = 0;
    tokenizer_encode(t, text, len, true, &ids);
    for (int64_t k = 0; k < (int64_t)len; k++)
        ids_add(&ids, (uint8_t)text[k] + (k % 5 ? 0 : 100)); // and ids of no text
    DecodeStream s = {.t = t};
    for (int64_t k = 0; k < ids.n; k++) stream_push(&s, ids.p[k], &streamed);
    stream_finish(&s, &streamed);
    tokenizer_decode(t, ids.p, ids.n, false, &whole);
    CHECK(whole.len == streamed.len && (!whole.len || !memcmp(whole.p, streamed.p, whole.len)), "a stream differs");
    CHECK(utf8_valid(whole.p, whole.len, NULL), "decoded text is not UTF-8");
    ids_free(&ids), ids_free(&again), text_free(&bytes), text_free(&whole), text_free(&streamed);
}

static void check_loaded(Tokenizer *t) {
    char bytes[256];
    if (!t) return;
    for (int b = 0; b < 256; b++) bytes[b] = (char)b;
    check_text(t, bytes, sizeof bytes);
    tokenizer_free(t);
}

static const char json_form[] =
    "{\"added_tokens\":[{\"id\":300,\"content\":\"<a>\",\"special\":true},{\"id\":301,\"content\":\"<b>\","
    "\"normalized\":true}],"
    "\"normalizer\":{\"type\":\"NFC\"},\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\","
    "\"pattern\":{\"Regex\":\"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}|"
    " ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+\"},\"behavior\":\"Isolated\"},"
    "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}]},\"decoder\":{\"type\":\"ByteLevel\"},"
    "\"model\":{\"type\":\"BPE\",\"merges\":[[\"a\",\"b\"],\"ab c\"],\"vocab\":";

static void remove_files(void) {
    static const char *const names[] = {"tokenizer.json", "vocab.json", "merges.txt"};
    for (int k = 0; k < 3; k++) {
        char path[128];
        snprintf(path, sizeof path, "%s/%s", folder, names[k]);
        unlink(path);
    }
}
static void at_end(void) { tokenizer_free(fixed), remove_files(), rmdir(folder); }

static void start(void) {
    Text v = vocabulary(), t = {0};
    snprintf(folder, sizeof folder, "/tmp/fuzz_tokenizer_XXXXXX");
    CHECK(mkdtemp(folder), "no temporary folder");
    text_addf(&t, "%s%s}}", json_form, v.p);
    put("tokenizer.json", t.p, t.len);
    CHECK((fixed = load()) != NULL, "the seed tokenizer is refused");
    text_free(&v), text_free(&t);
    atexit(at_end);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (!fixed) start();
    if (!size) return 0;
    const char *text = (const char *)data + 1;
    Text v = vocabulary();
    size--;
    remove_files();
    if (data[0] % 4 == 0) {
        check_text(fixed, text, size);
    } else if (data[0] % 4 == 1) {
        put("vocab.json", v.p, v.len), put("merges.txt", text, size);
        check_loaded(load());
    } else if (data[0] % 4 == 2) {
        put("vocab.json", text, size), put("merges.txt", merges, sizeof merges - 1);
        check_loaded(load());
    } else {
        put("tokenizer.json", text, size);
        check_loaded(load());
    }
    text_free(&v);
    return 0;
}

#ifdef FUZZ_MAIN
int main(int argc, char **argv) {
    int64_t rounds = argc > 1 ? strtoll(argv[1], NULL, 10) : 2000;
    static const char words[] = "a\xCC\x81\xCC\xA3 ab'll <a><b>\r\n\xED\x95\x98\xE1\x86\xAB\xF0\x9F\x99\x82\xE0\x80\xFF"
                                "12  \t\n aaaaaaa";
    Text v = vocabulary(), json = {0};
    text_addf(&json, "%s%s}}", json_form, v.p);
    const Text seeds[4] = {
        {(char *)(uintptr_t)words, sizeof words - 1, 0}, {(char *)(uintptr_t)merges, sizeof merges - 1, 0}, v, json};
    for (int64_t r = 0; r < rounds; r++) {
        const Text *seed = seeds + r % 4;
        uint8_t *input = alloc_or_die(seed->len + 300, 1, "input");
        size_t n = seed->len;
        input[0] = (uint8_t)(r % 4);
        memcpy(input + 1, seed->p, n);
        for (uint32_t k = 0; k < (uint32_t)r % 7; k++) { // a byte changed, a part cut or doubled
            Random4 d = philox(1, RANDOM_TEST, (uint32_t)r, k, 0);
            size_t at = n ? d.v[0] % n : 0, some = d.v[1] % 40;
            if (at + some > n) some = n - at;
            if (d.v[2] % 3 == 0 && n) input[1 + at] = (uint8_t)d.v[3];
            else if (d.v[2] % 3 == 1) memmove(input + 1 + at, input + 1 + at + some, n - at - some), n -= some;
            else memmove(input + 1 + at + some, input + 1 + at, n - at), n += some;
        }
        LLVMFuzzerTestOneInput(input, n + 1);
        free(input);
    }
    text_free(&v), text_free(&json);
    printf("fuzz_tokenizer: %lld inputs\n", (long long)rounds);
    return 0;
}
#endif
