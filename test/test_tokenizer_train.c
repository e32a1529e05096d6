// test_tokenizer_train.c - a new vocabulary: what its merges are, and that encoding with it is what was counted.
#include "test.h"
#include <sys/stat.h>

static char folder[200];
static void remove_folder(void) {
    static const char *const dirs[] = {"a", "b", "c"}, *const names[] = {"vocab.json", "merges.txt", "tokenizer.json",
                                                                         "tokenizer_config.json",
                                                                         "chat_template.jinja"};
    char path[400];
    for (int d = 0; d < 3; d++) {
        for (int k = 0; k < 5; k++) snprintf(path, sizeof path, "%s/%s/%s", folder, dirs[d], names[k]), unlink(path);
        snprintf(path, sizeof path, "%s/%s", folder, dirs[d]), rmdir(path);
    }
    static const char *const files[] = {"one.txt", "two.txt", "words.txt", "records.jsonl"};
    for (int k = 0; k < 4; k++) snprintf(path, sizeof path, "%s/%s", folder, files[k]), unlink(path);
    rmdir(folder);
}
static const char *in_folder(const char *name) {
    static char path[8][400];
    static int turn;
    if (!*folder) {
        snprintf(folder, sizeof folder, "%s",
                 access("/dev/shm", W_OK) ? "/tmp/surgr1_XXXXXX" : "/dev/shm/surgr1_XXXXXX");
        if (!mkdtemp(folder)) exit(99);
        atexit(remove_folder);
    }
    turn = (turn + 1) % 8;
    snprintf(path[turn], sizeof path[turn], "%s/%s", folder, name);
    return path[turn];
}
static void put(const char *name, const char *text, size_t len) {
    Err e = {0};
    if (!file_write_atomic(in_folder(name), text, len, &e)) exit(err_report(&e));
}
static char *get(const char *name) {
    Err e = {0};
    char *text;
    size_t size;
    if (!file_read(in_folder(name), 1 << 26, "E-JS-01", &text, &size, &e)) exit(err_report(&e));
    return text;
}
static void clear(const char *dir) { // so that it can be made again
    Err e = {0};
    if (!folder_begin(in_folder(dir), &e)) exit(err_report(&e));
}
static TokenizerStats train(const char *dir, int64_t size, const char *words, const char *one, const char *two) {
    Err e = {0};
    TokenizerStats s = {0};
    const char *text[2] = {one, two};
    TokenizerTrain o = {.text = text, .n_text = two ? 2 : 1, .size = size, .words = words};
    clear(dir);
    if (!tokenizer_train(&o, in_folder(dir), &s, &e)) FAIL("%s refused: %s, found %s", dir, e.code, e.found);
    return s;
}
static Tokenizer *load(const char *dir) {
    Err e = {0};
    Tokenizer *t;
    if (!tokenizer_load(&t, in_folder(dir), &e)) exit(err_report(&e));
    return t;
}
static int64_t count_ids(const Tokenizer *t, const char *text) {
    Ids ids = {0};
    tokenizer_encode(t, text, strlen(text), false, &ids);
    int64_t n = ids.n;
    ids_free(&ids);
    return n;
}

// Text of few words that share parts, with runs of one letter, and punctuation.
static size_t random_text(uint64_t seed, char *out, size_t words) {
    static const char *const parts[] = {"a", "aa",   "ab",  "ba",       "grasp", "er",
                                        "s", "hook", "tip", "\xC3\xA9", "--",    "7"};
    size_t n = 0;
    for (size_t k = 0; k < words; k++) {
        int many = 1 + (int)(3 * random_uniform(seed, RANDOM_TEST, 0, (uint32_t)k));
        for (int j = 0; j < many; j++) {
            double u = random_uniform(seed, RANDOM_TEST, 1 + (uint64_t)j, (uint32_t)k);
            const char *part = parts[(int)(12 * u * u)];
            memcpy(out + n, part, strlen(part)), n += strlen(part);
        }
        out[n++] = k % 11 ? ' ' : '\n';
    }
    out[n] = 0;
    return n;
}

// The definition, slowly: pieces one after the other, all pairs counted anew for every merge.
enum { MOST = 20000 };
typedef struct Slow {
    int32_t s[MOST]; // symbols; -1 between pieces
    int n;
    int byte_id[256];
} Slow;
static void slow_piece(void *ctx, const char *piece, size_t len) {
    Slow *w = ctx;
    for (size_t k = 0; k < len; k++) w->s[w->n++] = w->byte_id[(uint8_t)piece[k]];
    w->s[w->n++] = -1;
}
static bool slow_best(const Slow *w, int *left, int *right) {
    static int count[400][400];
    memset(count, 0, sizeof count);
    int best = 1;
    for (int k = 0; k + 1 < w->n; k++)
        if (w->s[k] >= 0 && w->s[k + 1] >= 0) count[w->s[k]][w->s[k + 1]]++;
    for (int a = 0; a < 400; a++)
        for (int b = 0; b < 400; b++)
            if (count[a][b] > best) best = count[a][b], *left = a, *right = b;
    return best > 1;
}
static void slow_merge(Slow *w, int left, int right, int id) {
    int kept = 0;
    for (int k = 0; k < w->n; k++) {
        bool joins = k + 1 < w->n && w->s[k] == left && w->s[k + 1] == right;
        w->s[kept++] = joins ? id : w->s[k];
        k += joins;
    }
    w->n = kept;
}

TEST(merges_are_those_of_the_definition) {
    static char text[100000];
    static Slow w;
    int64_t seen = 0;
    for (uint64_t seed = 1; seed <= 4; seed++) {
        size_t len = random_text(seed, text, 1500);
        put("one.txt", text, len);
        TokenizerStats s = train("a", 256 + 8 + 60, NULL, in_folder("one.txt"), NULL);
        char *merges = get("a/merges.txt"), *line = strchr(merges, '\n') + 1;
        Tokenizer *t = load("a"), *cutter = tokenizer_empty();
        w.n = 0;
        for (int b = 0; b < 256; b++) {
            char c = (char)b;
            Ids ids = {0};
            tokenizer_encode(t, &c, 1, false, &ids);
            w.byte_id[b] = ids.p[0];
            ids_free(&ids);
        }
        tokenizer_cut(cutter, text, len, slow_piece, &w);
        for (int id = 256; id < 256 + 60; id++, seen++) {
            int left = 0, right = 0;
            size_t n, m, k;
            bool added, special;
            EXPECT(slow_best(&w, &left, &right));
            const char *a = tokenizer_token(t, left, &n, &added, &special),
                       *b = tokenizer_token(t, right, &m, &added, &special),
                       *join = tokenizer_token(t, id, &k, &added, &special);
            EXPECT(k == n + m && !memcmp(join, a, n) && !memcmp(join + n, b, m));
            slow_merge(&w, left, right, id);
            line = strchr(line, '\n') + 1;
        }
        int64_t symbols = 0;
        for (int k = 0; k < w.n; k++) symbols += w.s[k] >= 0;
        EXPECT_INT(s.tokens, symbols);
        EXPECT_INT(s.size, 324);
        EXPECT_STR(line, "");
        free(merges), tokenizer_free(t), tokenizer_free(cutter);
    }
    EXPECT_INT(seen, 240);
}

TEST(encoding_the_texts_gives_the_tokens_that_were_counted) {
    static char one[100000], two[100000];
    put("one.txt", one, random_text(11, one, 3000)), put("two.txt", two, random_text(12, two, 500));
    for (int k = 0; k < 2; k++) {
        const char *words = k ? "grasper,hooktip" : NULL;
        TokenizerStats s = train("a", 400, words, in_folder("one.txt"), in_folder("two.txt"));
        Tokenizer *t = load("a");
        EXPECT_INT(count_ids(t, one) + count_ids(t, two), s.tokens);
        EXPECT(s.tokens < s.bytes / 2);
        tokenizer_free(t);
    }
}

TEST(the_order_of_the_texts_changes_no_byte) {
    static char text[100000];
    static const char *const names[] = {"vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json",
                                        "chat_template.jinja"};
    put("one.txt", text, random_text(21, text, 900)), put("two.txt", text, random_text(22, text, 900));
    train("a", 350, NULL, in_folder("one.txt"), in_folder("two.txt"));
    train("b", 350, NULL, in_folder("two.txt"), in_folder("one.txt"));
    train("c", 350, NULL, in_folder("one.txt"), NULL);
    for (int k = 0; k < 5; k++) {
        char *file[3];
        for (int d = 0; d < 3; d++) {
            char name[60];
            snprintf(name, sizeof name, "%c/%s", 'a' + d, names[k]);
            file[d] = get(name);
        }
        EXPECT_STR(file[1], file[0]);
        if (k == 1) EXPECT(strcmp(file[2], file[0])); // other counts do
        for (int d = 0; d < 3; d++) free(file[d]);
    }
}

TEST(given_words_are_one_token_each) {
    static char text[100000];
    static const char *const words[] = {"hook", "gallbladder", "clipper", "Level", "duct"};
    put("one.txt", text, random_text(31, text, 900));
    const char *list = "hook gallbladder\r\nclipper\tLevel,\n\nduct";
    put("words.txt", list, strlen(list));
    TokenizerStats s = train("a", 400, in_folder("words.txt"), in_folder("one.txt"), NULL);
    Tokenizer *t = load("a");
    for (int k = 0; k < 5; k++) {
        char spaced[40];
        snprintf(spaced, sizeof spaced, " %s", words[k]);
        EXPECT_INT(count_ids(t, words[k]), 1);
        EXPECT_INT(count_ids(t, spaced), 1);
    }
    EXPECT_INT(count_ids(t, "duct clipper"), 2); // pieces of their own
    EXPECT(count_ids(t, "ducts") > 1);
    EXPECT(s.word_merges > 10 && s.word_merges < s.merges);
    tokenizer_free(t);
    train("b", 400, "hook,clip", in_folder("one.txt"), NULL);
    t = load("b");
    EXPECT_INT(count_ids(t, "clip hook"), 2);
    EXPECT(count_ids(t, " gallbladder") > 1);
    tokenizer_free(t);
}

TEST(words_that_do_not_fit_and_folders_that_are_full_are_refused) {
    Err e = {0};
    TokenizerStats s;
    put("one.txt", "to be or not to be", 18);
    const char *text[] = {in_folder("one.txt")};
    TokenizerTrain o = {.text = text, .n_text = 1, .size = 271, .words = "abcdefgh"};
    clear("a");
    EXPECT(!tokenizer_train(&o, in_folder("a"), &s, &e));
    EXPECT_STR(e.code, "E-CL-01");
    EXPECT(!file_exists(in_folder("a/vocab.json")));
    o.size = 256 + 8 + 8; // seven merges make one token of eight letters, one more puts a space in front
    e = (Err){0};
    EXPECT(tokenizer_train(&o, in_folder("a"), &s, &e));
    EXPECT_INT(s.word_merges, 8);
    EXPECT(!tokenizer_train(&o, in_folder("a"), &s, &e)); // it is there now
    EXPECT_STR(e.code, "E-WR-02");
    EXPECT(file_exists(in_folder("a/vocab.json")));
    int64_t warned = warn_count("E-TK-01");
    s = train("b", 5000, NULL, in_folder("one.txt"), NULL); // " be", " to" are all that comes twice
    EXPECT(s.size < 300);
    EXPECT_INT(warn_count("E-TK-01"), warned + 1);
}

TEST(records_give_their_messages_without_marks) {
    Text data = {0};
    for (int k = 0; k < 40; k++)
        text_addf(&data,
                  "{\"id\":\"%d\",\"messages\":[{\"role\":\"user\",\"content\":\"<image>zebra what?\"},{\"role\":"
                  "\"assistant\",\"content\":\"quokka\"}],\"images\":[\"a.png\"],\"answer\":\"wombat\"}\n",
                  k);
    put("records.jsonl", data.p, data.len);
    text_free(&data);
    Err e = {0};
    TokenizerStats s;
    const char *files[] = {in_folder("records.jsonl")};
    TokenizerTrain o = {.data = files, .n_data = 1, .size = 600};
    clear("a");
    EXPECT(tokenizer_train(&o, in_folder("a"), &s, &e));
    Tokenizer *t = load("a");
    EXPECT_INT(count_ids(t, "zebra"), 1);
    EXPECT_INT(count_ids(t, "quokka"), 1);
    EXPECT_INT(count_ids(t, "assistant"), 1); // the template's words count too
    EXPECT(count_ids(t, "wombat") > 3);
    EXPECT(count_ids(t, "image") > 3);
    EXPECT(count_ids(t, "vision") > 3);
    tokenizer_free(t);
}

TEST(the_folder_is_that_of_a_qwen_tokenizer) {
    static char text[100000];
    static const char *const names[] = {"<|endoftext|>",  "<|im_start|>",   "<|im_end|>",    "<|vision_start|>",
                                        "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"};
    put("one.txt", text, random_text(41, text, 900));
    train("a", 380, NULL, in_folder("one.txt"), NULL);
    Err e = {0};
    int64_t warned = warn_count("E-CF-05");
    EXPECT(chat_template_check(in_folder("a"), &e)); // the .jinja file, then the field
    unlink(in_folder("a/chat_template.jinja"));
    EXPECT(chat_template_check(in_folder("a"), &e));
    EXPECT_INT(warn_count("E-CF-05"), warned);
    Tokenizer *whole = load("a"), *parts;
    unlink(in_folder("a/tokenizer.json")); // then vocab.json, merges.txt and tokenizer_config.json are read
    parts = load("a");
    EXPECT_INT(tokenizer_size(whole), 380);
    EXPECT_INT(tokenizer_size(parts), 380);
    for (int k = 0; k < 8; k++) {
        EXPECT_INT(tokenizer_added(whole, names[k]), 372 + k);
        EXPECT_INT(tokenizer_added(parts, names[k]), 372 + k);
    }
    for (int32_t id = 0; id < 380; id++) {
        size_t n, m;
        bool added[2], special[2];
        const char *a = tokenizer_token(whole, id, &n, &added[0], &special[0]),
                   *b = tokenizer_token(parts, id, &m, &added[1], &special[1]);
        EXPECT(a && b && n == m && !memcmp(a, b, n) && added[0] == added[1] && special[0] == special[1]);
        EXPECT(special[0] == (id >= 372));
    }
    Ids x = {0}, y = {0};
    Message hello = {"user", &(Part){.image = -1, .text = "grasper tip", .len = 11}, 1};
    EXPECT(chat_encode(whole, &hello, 1, true, NULL, 0, false, &x, &e));
    EXPECT(chat_encode(parts, &hello, 1, true, NULL, 0, false, &y, &e));
    EXPECT(x.n > 5 && x.n == y.n && !memcmp(x.p, y.p, (size_t)x.n * sizeof *x.p));
    ids_free(&x), ids_free(&y), tokenizer_free(whole), tokenizer_free(parts);
}
