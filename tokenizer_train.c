// tokenizer_train.c - a new byte-level BPE vocabulary of the Qwen2 kind, counted from texts.
//
// What it is:  byte-pair encoding (Gage 1994; Sennrich et al. 2016, algorithm 1): the most frequent pair of neighbours
//              becomes a token, again and again. Pairs lie within pieces, as tokenizer.c cuts them, so each distinct piece
//              is looked at once, with how often it came. Counts are exact: positions where the pair stands, over all
//              pieces. Of equal counts the pair with the lower ids wins (left first): nothing is left to chance.
// What it is not: another scanner or another reader of vocabularies (tokenizer.c).
// Read before: tokenizer.c.  Read next: init.c.
//
// Forced merges. Words that must be one token are learned first: the same algorithm on the list of words, each counted
// once, until each is one token. Words share their parts that way ("grasper", " grasper" differ by one merge). Encoding
// applies merges in the order they were learned, so what later merges do cannot take a whole piece apart again.
//
// Time: a merge visits the pieces that hold its pair, found through a list per pair. The next pair comes from a heap whose
// entries may be out of date: counts of a pair fall while it waits, which shows when it is taken out.
#include "surgr1.h"

enum { BYTES = 256, PIECE_BYTES = 256, NONE = UINT32_MAX }; // longer pieces are no words: base64, ruled lines

static const char *const added_names[TRAIN_ADDED] = {"<|endoftext|>",    "<|im_start|>",   "<|im_end|>",
                                                     "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
                                                     "<|image_pad|>",    "<|video_pad|>"};

// --------------------------------------------------------------------------------------------------------- strings
// A set of byte strings, numbered as they come.
typedef struct Strings {
    Text bytes;
    size_t *at; // [n + 1] where each begins in bytes
    uint32_t n, cap;
    uint32_t *slots; // [1 << bits] number + 1, 0: free
    int bits;
} Strings;

static uint32_t *strings_slot(const Strings *s, const char *bytes, size_t len) {
    size_t mask = ((size_t)1 << s->bits) - 1;
    for (size_t k = (size_t)(bytes_hash(bytes, len) * UINT64_C(0x9E3779B97F4A7C15) >> (64 - s->bits));;
         k = (k + 1) & mask) {
        uint32_t i = s->slots[k];
        if (!i || (s->at[i] - s->at[i - 1] == len && !memcmp(s->bytes.p + s->at[i - 1], bytes, len)))
            return s->slots + k;
    }
}

static void strings_grow(Strings *s) {
    s->cap = s->cap ? 2 * s->cap : 1024;
    CHECK(s->cap < NONE / 4, "%u distinct pieces", s->n);
    s->at = grow_or_die(s->at, (size_t)s->cap + 1, sizeof *s->at, "distinct pieces");
    if (!s->n) s->at[0] = 0;
    free(s->slots);
    for (s->bits = 4; (size_t)1 << s->bits < 2 * (size_t)s->cap;) s->bits++;
    s->slots = alloc_or_die((size_t)1 << s->bits, sizeof *s->slots, "distinct pieces");
    for (uint32_t i = 0; i < s->n; i++) *strings_slot(s, s->bytes.p + s->at[i], s->at[i + 1] - s->at[i]) = i + 1;
}

// The number of a string; *is_new when it had none.
static uint32_t strings_add(Strings *s, const char *bytes, size_t len, bool *is_new) {
    if (s->n == s->cap) strings_grow(s);
    uint32_t *slot = strings_slot(s, bytes, len);
    *is_new = !*slot;
    if (*is_new) {
        text_add(&s->bytes, bytes, len);
        s->at[++s->n] = s->bytes.len;
        *slot = s->n;
    }
    return *slot - 1;
}

static void strings_free(Strings *s) { text_free(&s->bytes), free(s->at), free(s->slots); }

// ---------------------------------------------------------------------------------------------------------- pieces
typedef struct Pieces {
    Strings set;
    int64_t *count; // [set.cap]
    bool once;      // count each piece once, however often it comes
    int64_t pieces, bytes, left_out;
} Pieces;

static void piece_add(void *ctx, const char *piece, size_t len) {
    Pieces *p = ctx;
    uint32_t cap = p->set.cap;
    bool is_new;
    p->pieces++, p->bytes += (int64_t)len;
    if (len > PIECE_BYTES) {
        p->left_out++;
        return;
    }
    uint32_t i = strings_add(&p->set, piece, len, &is_new);
    if (p->set.cap != cap) p->count = grow_or_die(p->count, p->set.cap, sizeof *p->count, "distinct pieces");
    p->count[i] = is_new || p->once ? 1 : p->count[i] + 1;
}

static void pieces_free(Pieces *p) { strings_free(&p->set), free(p->count); }

// ------------------------------------------------------------------------------------------------------------- BPE
typedef struct Vocabulary {
    Strings tokens;         // by id: the 256 bytes, then what merges made
    int32_t byte_id[BYTES]; //
    struct {
        int32_t left, right, id;
    } * merges;
    int64_t n, cap;
} Vocabulary;

typedef struct Pair {
    int32_t left, right;
    int64_t count, queued; // queued: the largest count it has in the heap, 0: it is not there
    uint32_t first;        // of its places, NONE: no place
} Pair;
typedef struct Place { // a word that has or had the pair
    uint32_t word, next;
} Place;
typedef struct Entry {
    int64_t count;
    uint32_t pair;
} Entry;
typedef struct Word { // a distinct piece as it is now
    int64_t count;
    size_t at; // in symbols
    uint32_t n;
} Word;

typedef struct Bpe {
    int32_t *symbols;
    Word *words;
    uint32_t n_words;
    Pair *pairs;
    uint32_t n_pairs, cap_pairs;
    uint32_t *slots; // [1 << bits] pair + 1, 0: free
    int bits;
    Place *places;
    size_t n_places, cap_places;
    Entry *heap;
    size_t n_heap, cap_heap;
    uint32_t *changed; // pairs whose count rose in this merge
    size_t n_changed, cap_changed;
} Bpe;

static uint32_t *pair_slot(const Bpe *b, int32_t left, int32_t right) {
    uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    size_t mask = ((size_t)1 << b->bits) - 1;
    for (size_t k = (size_t)((key ^ key >> 29) * UINT64_C(0x9E3779B97F4A7C15) >> (64 - b->bits));; k = (k + 1) & mask) {
        const Pair *p = b->pairs + b->slots[k] - 1;
        if (!b->slots[k] || (p->left == left && p->right == right)) return b->slots + k;
    }
}

static uint32_t pair_add(Bpe *b, int32_t left, int32_t right) {
    if (b->n_pairs == b->cap_pairs) {
        b->cap_pairs = b->cap_pairs ? 2 * b->cap_pairs : 4096;
        CHECK(b->cap_pairs < NONE / 4, "%u pairs", b->n_pairs);
        b->pairs = grow_or_die(b->pairs, b->cap_pairs, sizeof *b->pairs, "pairs");
        free(b->slots);
        for (b->bits = 4; (size_t)1 << b->bits < 2 * (size_t)b->cap_pairs;) b->bits++;
        b->slots = alloc_or_die((size_t)1 << b->bits, sizeof *b->slots, "pairs");
        for (uint32_t i = 0; i < b->n_pairs; i++) *pair_slot(b, b->pairs[i].left, b->pairs[i].right) = i + 1;
    }
    uint32_t *slot = pair_slot(b, left, right);
    if (!*slot) {
        b->pairs[b->n_pairs] = (Pair){.left = left, .right = right, .first = NONE};
        *slot = ++b->n_pairs;
    }
    return *slot - 1;
}

// Which of two entries is taken first.
static bool before(const Bpe *b, Entry x, Entry y) {
    const Pair *p = b->pairs + x.pair, *q = b->pairs + y.pair;
    if (x.count != y.count) return x.count > y.count;
    return p->left != q->left ? p->left < q->left : p->right < q->right;
}

static void heap_push(Bpe *b, uint32_t pair) {
    Entry x = {b->pairs[pair].count, pair};
    b->pairs[pair].queued = x.count;
    if (b->n_heap == b->cap_heap) {
        b->cap_heap = b->cap_heap ? 2 * b->cap_heap : 4096;
        b->heap = grow_or_die(b->heap, b->cap_heap, sizeof *b->heap, "pairs by count");
    }
    size_t k = b->n_heap++;
    for (; k && before(b, x, b->heap[(k - 1) / 2]); k = (k - 1) / 2) b->heap[k] = b->heap[(k - 1) / 2];
    b->heap[k] = x;
}

static Entry heap_pop(Bpe *b) {
    Entry top = b->heap[0], x = b->heap[--b->n_heap];
    size_t k = 0;
    for (size_t child; (child = 2 * k + 1) < b->n_heap; k = child) {
        if (child + 1 < b->n_heap && before(b, b->heap[child + 1], b->heap[child])) child++;
        if (!before(b, b->heap[child], x)) break;
        b->heap[k] = b->heap[child];
    }
    if (b->n_heap) b->heap[k] = x;
    return top;
}

// The pair with the largest count, NONE when no pair occurs `least` times.
static uint32_t best_pair(Bpe *b, int64_t least) {
    while (b->n_heap) {
        Entry top = heap_pop(b);
        Pair *p = b->pairs + top.pair;
        if (top.count != p->queued) continue; // an older entry; a later one is in the heap
        p->queued = 0;
        if (p->count == top.count) return p->count >= least ? top.pair : NONE;
        if (p->count > 0) heap_push(b, top.pair);
    }
    return NONE;
}

static void place_add(Bpe *b, uint32_t pair, uint32_t word) {
    Pair *p = b->pairs + pair;
    if (p->first != NONE && b->places[p->first].word == word) return;
    if (b->n_places == b->cap_places) {
        b->cap_places = b->cap_places ? 2 * b->cap_places : 4096;
        b->places = grow_or_die(b->places, b->cap_places, sizeof *b->places, "places of pairs");
    }
    CHECK(b->n_places < NONE, "%zu places of pairs", b->n_places);
    b->places[b->n_places] = (Place){word, p->first};
    p->first = (uint32_t)b->n_places++;
}

// Every pair of a word: `sign` times the word's count. made: the token whose pairs are new to the word, -1: all are.
static void count_word(Bpe *b, uint32_t word, int sign, int32_t made) {
    const Word *w = b->words + word;
    const int32_t *s = b->symbols + w->at;
    for (uint32_t k = 0; k + 1 < w->n; k++) {
        uint32_t pair = pair_add(b, s[k], s[k + 1]);
        b->pairs[pair].count += sign * w->count;
        if (sign < 0) continue;
        if (made < 0 || s[k] == made || s[k + 1] == made) place_add(b, pair, word);
        if (b->n_changed == b->cap_changed) {
            b->cap_changed = b->cap_changed ? 2 * b->cap_changed : 4096;
            b->changed = grow_or_die(b->changed, b->cap_changed, sizeof *b->changed, "pairs of a merge");
        }
        b->changed[b->n_changed++] = pair;
    }
}

// A pair whose count is larger than what the heap knows of it would be taken too late.
static void requeue(Bpe *b) {
    for (size_t k = 0; k < b->n_changed; k++)
        if (b->pairs[b->changed[k]].count > b->pairs[b->changed[k]].queued) heap_push(b, b->changed[k]);
    b->n_changed = 0;
}

static void bpe_open(Bpe *b, const Pieces *p, const Vocabulary *v) {
    const Strings *set = &p->set;
    *b = (Bpe){.n_words = set->n};
    b->symbols = alloc_or_die(set->bytes.len + 1, sizeof *b->symbols, "symbols");
    b->words = alloc_or_die((size_t)set->n + 1, sizeof *b->words, "distinct pieces");
    for (size_t k = 0; k < set->bytes.len; k++) b->symbols[k] = v->byte_id[(uint8_t)set->bytes.p[k]];
    for (uint32_t i = 0; i < set->n; i++) {
        b->words[i] = (Word){p->count[i], set->at[i], (uint32_t)(set->at[i + 1] - set->at[i])};
        count_word(b, i, 1, -1);
        b->n_changed = 0;
    }
    for (uint32_t i = 0; i < b->n_pairs; i++) heap_push(b, i);
}

static void bpe_close(Bpe *b) {
    free(b->symbols), free(b->words), free(b->pairs), free(b->slots), free(b->places), free(b->heap), free(b->changed);
}

// left right -> id in every word, leftmost first, as the encoder does.
static void bpe_merge(Bpe *b, int32_t left, int32_t right, int32_t id) {
    uint32_t place = b->pairs[pair_add(b, left, right)].first;
    for (; place != NONE; place = b->places[place].next) {
        uint32_t word = b->places[place].word, kept = 0;
        Word *w = b->words + word;
        int32_t *s = b->symbols + w->at;
        bool has = false;
        for (uint32_t k = 0; k + 1 < w->n && !has; k++) has = s[k] == left && s[k + 1] == right;
        if (!has) continue;
        count_word(b, word, -1, -1);
        for (uint32_t k = 0; k < w->n; k++) {
            bool joins = k + 1 < w->n && s[k] == left && s[k + 1] == right;
            s[kept++] = joins ? id : s[k];
            k += joins;
        }
        w->n = kept;
        count_word(b, word, 1, id);
    }
    requeue(b);
}

// ------------------------------------------------------------------------------------------------------ vocabulary
static void vocabulary_open(Vocabulary *v) {
    *v = (Vocabulary){0};
    bool is_new;
    for (int32_t cp = 0; cp < 0x200; cp++) { // the characters of the 256 bytes, in order
        int byte = token_byte(cp);
        char c = (char)byte;
        if (byte >= 0) v->byte_id[byte] = (int32_t)strings_add(&v->tokens, &c, 1, &is_new);
    }
    CHECK(v->tokens.n == BYTES, "%u bytes", v->tokens.n);
}

static void vocabulary_close(Vocabulary *v) { strings_free(&v->tokens), free(v->merges); }

// Merges until there are `size` tokens or no pair occurs `least` times. Two merges may make one text (a bc, ab c): the
// second one makes no new token.
static void learn(Vocabulary *v, Bpe *b, int64_t size, int64_t least) {
    double started = clock_seconds();
    while (v->tokens.n < size) {
        uint32_t pair = best_pair(b, least);
        if (pair == NONE) break;
        int32_t left = b->pairs[pair].left, right = b->pairs[pair].right;
        char join[2 * PIECE_BYTES];
        size_t n = 0;
        for (int k = 0; k < 2; k++) {
            int32_t part = k ? right : left;
            size_t len = v->tokens.at[part + 1] - v->tokens.at[part];
            memcpy(join + n, v->tokens.bytes.p + v->tokens.at[part], len);
            n += len;
        }
        if (v->n == v->cap) {
            v->cap = v->cap ? 2 * v->cap : 1024;
            v->merges = grow_or_die(v->merges, (size_t)v->cap, sizeof *v->merges, "merges");
        }
        bool is_new;
        int32_t id = (int32_t)strings_add(&v->tokens, join, n, &is_new);
        v->merges[v->n].left = left, v->merges[v->n].right = right, v->merges[v->n++].id = id;
        bpe_merge(b, left, right, id);
        if (v->n % 256 == 0) progress("tokens", v->tokens.n, size, started);
    }
}

// ----------------------------------------------------------------------------------------------------------- texts
typedef struct Source {
    const Tokenizer *t;
    Pieces *pieces;
    Text chat;
} Source;

// What stands between control tokens is a text of its own; so is what stands around a mark that will be a box.
static bool record_cut(void *ctx, Record *r, Err *e) {
    (void)e;
    Source *s = ctx;
    s->chat.len = 0;
    chat_render(r->messages, r->n, false, &s->chat);
    size_t from = 0;
    for (size_t at = 0; at < s->chat.len;) {
        size_t mark = 0;
        for (int k = 0; k <= TRAIN_ADDED && s->chat.p[at] == '<' && !mark; k++) {
            const char *name = k < TRAIN_ADDED ? added_names[k] : "<bbox>";
            size_t len = strlen(name);
            if (len <= s->chat.len - at && !memcmp(s->chat.p + at, name, len)) mark = len;
        }
        if (mark) tokenizer_cut(s->t, s->chat.p + from, at - from, piece_add, s->pieces), from = at + mark;
        at += mark ? mark : 1;
    }
    tokenizer_cut(s->t, s->chat.p + from, s->chat.len - from, piece_add, s->pieces);
    return true;
}

static bool texts_read(const TokenizerTrain *o, Source *s, Err *e) {
    RecordOptions any = {.boxes = true, .absolute_images = true, .data_images = true};
    for (int k = 0; k < o->n_data; k++)
        if (!records_read_all(o->data[k], any, NULL, record_cut, NULL, s, e)) return false;
    for (int k = 0; k < o->n_text; k++) {
        char *text;
        size_t size;
        if (!file_read(o->text[k], LIMIT_TABLE_BYTES, "E-ME-01", &text, &size, e)) return false;
        tokenizer_cut(s->t, text, size, piece_add, s->pieces);
        free(text);
    }
    return true;
}

// Each word as it begins a text, and as it stands behind a space.
static bool words_read(const char *words, Source *s, Err *e) {
    char *text = NULL;
    size_t size = strlen(words);
    if (file_exists(words) && !file_read(words, LIMIT_TABLE_BYTES, "E-ME-01", &text, &size, e)) return false;
    Text word = {0};
    for (const char *p = text ? text : words, *end = p + size; p < end;) {
        size_t len = 0;
        while (p + len < end && !strchr(", \t\r\n", p[len])) len++;
        word.len = 0;
        text_addf(&word, " ");
        text_add(&word, p, len);
        for (size_t k = 0; len && k < 2; k++) tokenizer_cut(s->t, word.p + k, word.len - k, piece_add, s->pieces);
        p += len + 1;
    }
    text_free(&word), free(text);
    return true;
}

// ----------------------------------------------------------------------------------------------------------- files
// A token as vocab.json and merges.txt write it: a character for each byte.
static void token_print(const Vocabulary *v, int32_t id, Text *out) {
    static char utf8[BYTES][4];
    static size_t len[BYTES];
    if (!len[0])
        for (int32_t cp = 0; cp < 0x200; cp++)
            if (token_byte(cp) >= 0) len[token_byte(cp)] = utf8_put(utf8[token_byte(cp)], (uint32_t)cp);
    for (size_t k = v->tokens.at[id]; k < v->tokens.at[id + 1]; k++) {
        uint8_t byte = (uint8_t)v->tokens.bytes.p[k];
        text_add(out, utf8[byte], len[byte]);
    }
}

static void vocab_print(const Vocabulary *v, Text *out) {
    Text token = {0};
    for (int32_t id = 0; id < (int32_t)v->tokens.n; id++) {
        token.len = 0;
        token_print(v, id, &token);
        text_addf(out, "%s", id ? ",\n" : "{\n");
        text_add_json_string(out, token.p, token.len);
        text_addf(out, ": %d", id);
    }
    text_addf(out, "\n}");
    text_free(&token);
}

static void merges_print(const Vocabulary *v, bool json, Text *out) {
    Text line = {0};
    for (int64_t k = 0; k < v->n; k++) {
        line.len = 0;
        token_print(v, v->merges[k].left, &line);
        text_add(&line, " ", 1);
        token_print(v, v->merges[k].right, &line);
        if (json) text_addf(out, "%s", k ? ",\n" : "");
        if (json) text_add_json_string(out, line.p, line.len);
        else text_addf(out, "%s\n", line.p);
    }
    text_free(&line);
}

static const char added_flags[] = "\"lstrip\": false, \"normalized\": false, \"rstrip\": false, "
                                  "\"single_word\": false, \"special\": true";

static void config_print_to(int32_t first, Text *out) {
    text_addf(out, "{\n  \"added_tokens_decoder\": {\n");
    for (int k = 0; k < TRAIN_ADDED; k++)
        text_addf(out, "    \"%d\": {\"content\": \"%s\", %s}%s\n", first + k, added_names[k], added_flags,
                  k + 1 < TRAIN_ADDED ? "," : "");
    text_addf(out, "  },\n  \"additional_special_tokens\": [");
    for (int k = 1; k < TRAIN_ADDED; k++) text_addf(out, "%s\"%s\"", k > 1 ? ", " : "", added_names[k]);
    text_addf(out, "],\n  \"add_prefix_space\": false,\n  \"bos_token\": null,\n  \"chat_template\": ");
    text_add_json_string(out, chat_template, strlen(chat_template));
    text_addf(out, ",\n  \"clean_up_tokenization_spaces\": false,\n  \"eos_token\": \"<|im_end|>\",\n"
                   "  \"errors\": \"replace\",\n  \"model_max_length\": 32768,\n  \"pad_token\": \"<|endoftext|>\",\n"
                   "  \"split_special_tokens\": false,\n  \"tokenizer_class\": \"Qwen2Tokenizer\",\n"
                   "  \"unk_token\": null\n}\n");
}

static void json_print_to(const Vocabulary *v, Text *out) {
    text_addf(out, "{\n\"version\": \"1.0\",\n\"truncation\": null,\n\"padding\": null,\n\"added_tokens\": [\n");
    for (int k = 0; k < TRAIN_ADDED; k++)
        text_addf(out, "{\"id\": %u, \"content\": \"%s\", %s}%s\n", v->tokens.n + (uint32_t)k, added_names[k],
                  added_flags, k + 1 < TRAIN_ADDED ? "," : "");
    text_addf(out, "],\n\"normalizer\": {\"type\": \"NFC\"},\n\"pre_tokenizer\": {\"type\": \"Sequence\", "
                   "\"pretokenizers\": [\n{\"type\": \"Split\", \"pattern\": {\"Regex\": ");
    text_add_json_string(out, tokenizer_pattern, strlen(tokenizer_pattern));
    text_addf(out,
              "}, \"behavior\": \"Isolated\", \"invert\": false},\n{\"type\": \"ByteLevel\", \"add_prefix_space\": "
              "false, \"trim_offsets\": false, \"use_regex\": false}\n]},\n"
              "\"post_processor\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"trim_offsets\": false, "
              "\"use_regex\": false},\n"
              "\"decoder\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"trim_offsets\": false, "
              "\"use_regex\": false},\n"
              "\"model\": {\"type\": \"BPE\", \"dropout\": null, \"unk_token\": null, "
              "\"continuing_subword_prefix\": \"\", \"end_of_word_suffix\": \"\", \"fuse_unk\": false, "
              "\"byte_fallback\": false, \"ignore_merges\": false,\n\"vocab\": ");
    vocab_print(v, out);
    text_addf(out, ",\n\"merges\": [\n");
    merges_print(v, true, out);
    text_addf(out, "\n]}\n}\n");
}

static bool folder_write(const Vocabulary *v, const char *dir, Err *e) {
    enum { VOCAB, MERGES, CONFIG, JSON, TEMPLATE, FILES };
    static const char *const names[FILES] = {"vocab.json", "merges.txt", "tokenizer_config.json", "tokenizer.json",
                                             "chat_template.jinja"};
    bool ok = true;
    for (int k = 0; k < FILES && ok; k++) {
        char path[1100];
        Text out = {0};
        if (k == VOCAB) vocab_print(v, &out), text_addf(&out, "\n");
        if (k == MERGES) text_addf(&out, "#version: 0.2\n"), merges_print(v, false, &out);
        if (k == CONFIG) config_print_to((int32_t)v->tokens.n, &out);
        if (k == JSON) json_print_to(v, &out);
        if (k == TEMPLATE) text_addf(&out, "%s", chat_template);
        ok = path_join(path, sizeof path, dir, names[k], e) && file_write_atomic(path, out.p, out.len, e);
        text_free(&out);
    }
    return ok;
}

// ----------------------------------------------------------------------------------------------------------- train
static bool train(const TokenizerTrain *o, Vocabulary *v, Pieces *words, Pieces *texts, TokenizerStats *s, Err *e) {
    Tokenizer *t = tokenizer_empty();
    Source from_words = {.t = t, .pieces = words}, from_texts = {.t = t, .pieces = texts};
    bool ok = (!o->words || words_read(o->words, &from_words, e)) && texts_read(o, &from_texts, e);
    text_free(&from_texts.chat);
    tokenizer_free(t);
    if (!ok) return false;
    int64_t base = o->size - TRAIN_ADDED;
    Bpe b;
    bpe_open(&b, words, v);
    learn(v, &b, LIMIT_VOCAB, 1);
    bpe_close(&b);
    s->word_merges = v->n;
    if (v->tokens.n > base)
        return err_set(e, "E-CL-01", AT(.file = "command line", .field = "--words"),
                       "expected words that %lld ids have room for; found words that need %lld; do: raise --size, or "
                       "name fewer words",
                       (long long)o->size, (long long)v->tokens.n + TRAIN_ADDED);
    bpe_open(&b, texts, v);
    for (int64_t k = 0; k < s->word_merges; k++) bpe_merge(&b, v->merges[k].left, v->merges[k].right, v->merges[k].id);
    learn(v, &b, base, 2);
    for (uint32_t i = 0; i < b.n_words; i++) s->tokens += b.words[i].count * b.words[i].n;
    bpe_close(&b);
    if (v->tokens.n < base)
        warn("E-TK-01", AT(.field = "--size"), "expected texts for %lld ids; found enough for %lld; do: %s",
             (long long)o->size, (long long)v->tokens.n + TRAIN_ADDED, "give more text, or lower --size");
    return true;
}

bool tokenizer_train(const TokenizerTrain *o, const char *dir, TokenizerStats *s, Err *e) {
    CHECK(o->size >= BYTES + TRAIN_ADDED && o->size <= LIMIT_VOCAB, "a vocabulary of %lld", (long long)o->size);
    *s = (TokenizerStats){0};
    NewFolder folder;
    if (!folder_new(&folder, dir, e)) return false;
    Vocabulary v;
    Pieces words = {.once = true}, texts = {0};
    vocabulary_open(&v);
    bool ok = train(o, &v, &words, &texts, s, e);
    if (ok) {
        s->size = v.tokens.n + TRAIN_ADDED, s->merges = v.n;
        s->pieces = texts.pieces, s->distinct = texts.set.n, s->bytes = texts.bytes, s->left_out = texts.left_out;
        ok = folder_begin(folder.made, e) && folder_write(&v, folder.made, e);
        ok = folder_new_end(&folder, ok, e);
    }
    pieces_free(&words), pieces_free(&texts), vocabulary_close(&v);
    return ok;
}
