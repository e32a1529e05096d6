// tokenizer.c - text to token ids and back: the byte-level BPE of Qwen2, its added tokens and its chat template.
//
// What it is:  added tokens, NFC, the split pattern as a scanner, byte-pair merging, decoding, the chat template. The
//              ids are those of the Hugging Face tokenizers library (added_vocabulary.rs, pre_tokenizers/split.rs,
//              models/bpe/word.rs), for any vocabulary of this form.
// What it is not: a general tokenizer. A tokenizer.json that asks for anything else is refused, not guessed at.
// Read before: surgr1.h (the contracts), tokenizer_unicode.h (the character data).  Read next: data/records.c.
//
// From text to ids: (1) cut the text at added tokens; (2) each part by itself: NFC; (3) cut it into pieces (words,
// digits, runs of punctuation, white space); (4) turn each piece into ids by merging neighbours, lowest rank first.
// Most pieces are words seen before: a direct-mapped cache keeps their ids.
#include "surgr1.h"
#include "tokenizer_unicode.h"
#include <pthread.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
               "the word cache masks the high bytes of a little-endian word");
#define COUNT(array) (sizeof(array) / sizeof *(array))
enum { CODE_POINTS = 0x110000, NO_RANK = -1 };
enum { TOKEN_BYTES = 4096, LINE_BYTES = 8192 }; // LIMIT_TOKEN_BYTES and LIMIT_MERGE_LINE_BYTES, as sizes of arrays

// What the split pattern and NFC ask of a character. Ill-formed UTF-8 is OTHER. UNSETTLED: NFC may change the
// character, or it may compose with what is before it.
enum { OTHER, LETTER, NUMBER, SPACE, KIND = 3, UNSETTLED = 4 };

enum { HAS_TOKEN = 1, ADDED = 2, SPECIAL = 4, NORMALIZED = 8 };
typedef struct Token {
    uint32_t at, len; // its bytes in Tokenizer.bytes
    uint32_t flags;
} Token;

typedef struct Merge { // a slot of the pair table; free when rank == NO_RANK
    int32_t left, right, rank, id;
} Merge;

typedef struct Word { // a slot of the word cache
    uint64_t key[2];  // 1 to 15 bytes, zeros, and the length in the last byte
    int32_t ids[4];   // -1 behind the last
} Word;
enum { CACHED_BYTES = 15, CACHED_IDS = 4, WORD_BITS = 15, SHORT_PIECE = 24 };

typedef struct Node {       // a symbol of a long piece: a list in text order
    int32_t id, rank, join; // rank and product of merging with the next one
    uint32_t before, next;
} Node;

// What one encoding thread writes to. A Tokenizer is shared and const, so each call borrows a Scratch from its pool and
// brings it back: threads never share one, and the word cache outlives the call.
typedef struct Scratch {
    Word words[1 << WORD_BITS];
    Node *nodes;    // [node_cap]
    uint64_t *heap; // [3 * node_cap]: rank << 32 | place, smallest first
    size_t node_cap;
    Text normal;       // a part of the text after NFC
    uint32_t *cluster; // [2 * cluster_cap]: code point | combining class << 24; the second half for sorting
    size_t cluster_cap;
    int64_t steps;
    struct Scratch *next;
} Scratch;
typedef struct Pool {
    pthread_mutex_t lock;
    Scratch *idle;
} Pool;

typedef struct Added { // a set of added tokens to look for in text
    int32_t *ids;      // [n], sorted by text (bytes)
    int32_t n;
    bool first[256]; // one of them begins with this byte
} Added;

struct Tokenizer {
    char *path; // for messages
    bool nfc;
    Text bytes;     // of all tokens, one after another
    Token *tokens;  // [cap], by id
    int32_t size;   // largest id + 1
    int32_t cap;    //
    Added added[2]; // looked for before NFC, and after ("normalized": true)
    int32_t byte_id[256];
    Merge *merges; // [1 << (64 - merge_shift)]: open addressing, keyed by (left, right)
    int merge_shift;
    uint8_t *kinds; // [CODE_POINTS]
    int32_t *index; // [1 << (64 - index_shift)]: base tokens by their bytes, id + 1; while loading
    int index_shift;
    Pool *pool;
};

// ------------------------------------------------------------------------------------------------------ characters
// The row of a sorted table whose first column is the largest <= cp, or NULL.
static const uint32_t *row_at(const uint32_t *rows, size_t values, size_t columns, uint32_t cp) {
    size_t low = 0, high = values / columns;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (rows[middle * columns] <= cp) low = middle + 1;
        else high = middle;
    }
    return low ? rows + (low - 1) * columns : NULL;
}
#define ROW(table, columns, cp) row_at(table, COUNT(table), columns, cp)

// Hangul syllables are L V or L V T by arithmetic (Unicode 3.12).
enum { HANGUL = 0xAC00, JAMO_L = 0x1100, JAMO_V = 0x1161, JAMO_T = 0x11A7 };
enum { L_N = 19, V_N = 21, T_N = 28, HANGUL_N = L_N * V_N * T_N };

static uint8_t *kinds_make(void) {
    uint8_t *kinds = alloc_or_die(CODE_POINTS, 1, "character classes");
#define FILL(table, kind)                                                                                              \
    for (size_t k = 0; k < COUNT(table); k += 2) memset(kinds + table[k], kind, table[k + 1] - table[k] + 1)
    FILL(unicode_letter, LETTER);
    FILL(unicode_number, NUMBER);
    FILL(unicode_space, SPACE);
#undef FILL
    for (size_t k = 0; k < COUNT(unicode_ccc); k += 3)
        for (uint32_t cp = unicode_ccc[k]; cp <= unicode_ccc[k + 1]; cp++) kinds[cp] |= UNSETTLED;
    for (size_t k = 0; k < COUNT(unicode_pair); k += 3) kinds[unicode_pair[k + 2]] |= UNSETTLED;
    for (size_t k = 0; k < COUNT(unicode_single); k += 2) kinds[unicode_single[k]] |= UNSETTLED;
    for (size_t k = 0; k < COUNT(unicode_split); k += 3) kinds[unicode_split[k]] |= UNSETTLED;
    for (uint32_t cp = JAMO_V; cp < JAMO_V + V_N; cp++) kinds[cp] |= UNSETTLED;
    for (uint32_t cp = JAMO_T + 1; cp < JAMO_T + T_N; cp++) kinds[cp] |= UNSETTLED;
    return kinds;
}

// ------------------------------------------------------------------------------------------------------------- NFC
// Unicode Standard Annex 15. Nothing happens before the first UNSETTLED character: text is already in NFC until then.
// From there a cluster (one settled character and the unsettled ones behind it) is normalised by itself;
// make_unicode.py checks that no settled character composes with what is before it.

static void cluster_put(Scratch *s, size_t *n, uint32_t cp) { // with its full decomposition
    const uint32_t *row;
    if (cp >= HANGUL && cp < HANGUL + HANGUL_N) {
        uint32_t k = cp - HANGUL;
        cluster_put(s, n, JAMO_L + k / (V_N * T_N));
        cluster_put(s, n, JAMO_V + k / T_N % V_N);
        if (k % T_N) cluster_put(s, n, JAMO_T + k % T_N);
    } else if (((row = ROW(unicode_pair, 3, cp)) && *row == cp) || ((row = ROW(unicode_split, 3, cp)) && *row == cp)) {
        cluster_put(s, n, row[1]);
        cluster_put(s, n, row[2]);
    } else if ((row = ROW(unicode_single, 2, cp)) && *row == cp) {
        cluster_put(s, n, row[1]);
    } else {
        if (*n == s->cluster_cap) {
            s->cluster_cap = s->cluster_cap ? 2 * s->cluster_cap : 64;
            s->cluster = grow_or_die(s->cluster, s->cluster_cap, 2 * sizeof *s->cluster, "characters to normalise");
        }
        row = ROW(unicode_ccc, 3, cp);
        s->cluster[(*n)++] = row && cp <= row[1] ? cp | row[2] << 24 : cp;
    }
}

// Marks in order of their combining class, equal ones as they were: a counting sort, so that a long run costs no more.
static void cluster_order(Scratch *s, size_t n) {
    uint32_t *c = s->cluster, *sorted = s->cluster + s->cluster_cap;
    for (size_t first = 0, last; first < n; first = last + 1) {
        bool in_order = true;
        for (last = first; last < n && c[last] >> 24; last++)
            if (last > first && c[last] >> 24 < c[last - 1] >> 24) in_order = false;
        if (in_order) continue;
        size_t place[257] = {0};
        for (size_t k = first; k < last; k++) place[(c[k] >> 24) + 1]++;
        for (size_t k = 1; k < 257; k++) place[k] += place[k - 1];
        for (size_t k = first; k < last; k++) sorted[place[c[k] >> 24]++] = c[k];
        memcpy(c + first, sorted, (last - first) * sizeof *c);
    }
}

static uint32_t compose(uint32_t a, uint32_t b) { // 0 when they do not
    if (a - JAMO_L < L_N && b - JAMO_V < V_N) return HANGUL + ((a - JAMO_L) * V_N + (b - JAMO_V)) * T_N;
    if (a - HANGUL < HANGUL_N && (a - HANGUL) % T_N == 0 && b - JAMO_T - 1 < T_N - 1) return a + (b - JAMO_T);
    size_t low = 0, high = COUNT(unicode_pair_order);
    while (low < high) {
        size_t middle = (low + high) / 2;
        const uint32_t *row = unicode_pair + 3 * (size_t)unicode_pair_order[middle];
        if (row[1] == a && row[2] == b) return row[0];
        if (row[1] < a || (row[1] == a && row[2] < b)) low = middle + 1;
        else high = middle;
    }
    return 0;
}

static void cluster_compose_into(Scratch *s, size_t n, Text *out) {
    uint32_t *c = s->cluster;
    size_t kept = 0, starter = SIZE_MAX;
    for (size_t k = 0; k < n; k++) {
        uint32_t class = c[k] >> 24, whole;
        // a mark reaches the starter unless one of its own class or higher, or another starter, stands between
        bool reaches = starter != SIZE_MAX && (kept - 1 == starter || c[kept - 1] >> 24 < class);
        if (reaches && (whole = compose(c[starter], c[k] & 0xFFFFFF))) {
            c[starter] = whole;
            continue;
        }
        if (class == 0) starter = kept;
        c[kept++] = c[k];
    }
    for (size_t k = 0; k < kept; k++) {
        char utf8[4];
        text_add(out, utf8, utf8_put(utf8, c[k] & 0xFFFFFF));
    }
}

// NFC of text into s->normal; false when text is in NFC already (then s->normal is not touched).
static bool normalise(const Tokenizer *t, Scratch *s, const char *text, size_t len) {
    size_t pos = 0, done = 0;
    while (pos < len) {
        if ((uint8_t)text[pos] < 0xCC) { // U+0300, the first unsettled character, begins with 0xCC
            pos++;
            continue;
        }
        size_t start = pos, n = 0;
        int32_t cp = utf8_next(text, len, &pos);
        if (cp < 0 || !(t->kinds[cp] & UNSETTLED)) continue;
        size_t from = start; // of the cluster: the character before, when there is a well-formed one
        if (from > done) {
            do from--;
            while (from > done && start - from < 4 && ((uint8_t)text[from] & 0xC0) == 0x80);
            size_t end = from;
            int32_t before = utf8_next(text, len, &end);
            if (before >= 0 && end == start) cluster_put(s, &n, (uint32_t)before);
            else from = start;
        }
        while (cp >= 0 && (t->kinds[cp] & UNSETTLED)) {
            cluster_put(s, &n, (uint32_t)cp);
            start = pos;
            cp = pos < len ? utf8_next(text, len, &pos) : -1;
        }
        pos = start;
        if (!done) s->normal.len = 0;
        text_add(&s->normal, text + done, from - done);
        cluster_order(s, n);
        cluster_compose_into(s, n, &s->normal);
        done = pos;
    }
    if (!done) return false;
    text_add(&s->normal, text + done, len - done);
    return true;
}

// --------------------------------------------------------------------------------------------------------- scanner
// The split pattern, by hand (alternatives in this order, leftmost match):
//   (?i:'s|'t|'re|'ve|'m|'ll|'d) | [^\r\n\p{L}\p{N}]?\p{L}+ | \p{N} | ?[^\s\p{L}\p{N}]+[\r\n]* | \s*[\r\n]+ | \s+(?!\S)
//   | \s+
const char tokenizer_pattern[] = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}|"
                                 " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

// Kind of the character at `at`; *next is the place behind it.
static inline int kind_at(const uint8_t *kinds, const char *text, size_t len, size_t at, size_t *next) {
    uint8_t c = (uint8_t)text[at];
    if (c < 0x80) {
        *next = at + 1;
        return kinds[c] & KIND;
    }
    *next = at;
    int32_t cp = utf8_next(text, len, next);
    return cp < 0 ? OTHER : kinds[cp] & KIND;
}

// End of the run of characters of one kind that begins at `at`.
static inline size_t run_end(const uint8_t *kinds, const char *text, size_t len, size_t at, int kind) {
    size_t next;
    while (at < len && kind_at(kinds, text, len, at, &next) == kind) at = next;
    return at;
}

static inline bool is_newline(char c) { return c == '\r' || c == '\n'; }

// Bytes of the contraction that text begins with ("'" was seen), or 0. U+017F is an s to a regex that ignores case.
static size_t contraction(const char *text, size_t len) {
    int a = len > 1 ? text[1] | 0x20 : 0, b = len > 2 ? text[2] | 0x20 : 0;
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
    if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l')) return 3;
    return len > 2 && (uint8_t)text[1] == 0xC5 && (uint8_t)text[2] == 0xBF ? 3 : 0;
}

// End of the piece that begins at `at` (at < len).
static size_t piece_end(const uint8_t *kinds, const char *text, size_t len, size_t at) {
    char c = text[at];
    if (c == '\'') {
        size_t n = contraction(text + at, len - at);
        if (n) return at + n;
    }
    size_t one, two; // behind the first character, behind the second
    int kind = kind_at(kinds, text, len, at, &one);
    if (kind == LETTER) return run_end(kinds, text, len, one, LETTER);
    if (kind == NUMBER) return one;
    int second = one < len ? kind_at(kinds, text, len, one, &two) : SPACE;
    if (second == LETTER && !is_newline(c)) return run_end(kinds, text, len, two, LETTER);
    if (kind == OTHER || (c == ' ' && second == OTHER)) {
        size_t end = run_end(kinds, text, len, one, OTHER);
        while (end < len && is_newline(text[end])) end++;
        return end;
    }
    size_t end = at, last = at, behind_newline = 0; // white space: the last character of the run begins at `last`
    while (end < len && kind_at(kinds, text, len, end, &two) == SPACE) {
        if (is_newline(text[end])) behind_newline = two;
        last = end, end = two;
    }
    if (behind_newline) return behind_newline;
    return end == len || last == at ? end : last;
}

// ------------------------------------------------------------------------------------------------------------- BPE
static inline size_t merge_slot(const Tokenizer *t, int32_t left, int32_t right) {
    uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    return (size_t)(((key ^ key >> 29) * UINT64_C(0x9E3779B97F4A7C15)) >> t->merge_shift);
}

// The slot of a pair: its merge, or a free one (rank NO_RANK) when the pair does not merge.
static inline Merge *merge_find(const Tokenizer *t, int32_t left, int32_t right) {
    size_t mask = ((size_t)1 << (64 - t->merge_shift)) - 1;
    for (size_t k = merge_slot(t, left, right);; k = (k + 1) & mask) {
        Merge *m = t->merges + k;
        if (m->rank == NO_RANK || (m->left == left && m->right == right)) return m;
    }
}

// A short piece: the best pair is looked for from left to right each time. Returns how many ids.
static int64_t merge_short(const Tokenizer *t, Scratch *s, const uint8_t *piece, size_t n, int32_t *ids) {
    uint32_t rank[SHORT_PIECE]; // of (ids[k], ids[k + 1]); NO_RANK becomes the largest number
    int32_t join[SHORT_PIECE];
    for (size_t k = 0; k < n; k++) ids[k] = t->byte_id[piece[k]];
    for (size_t k = 0; k + 1 < n; k++) {
        const Merge *m = merge_find(t, ids[k], ids[k + 1]);
        rank[k] = (uint32_t)m->rank, join[k] = m->id;
    }
    s->steps += (int64_t)n;
    while (n > 1) {
        size_t best = 0;
        for (size_t k = 1; k + 1 < n; k++)
            if (rank[k] < rank[best]) best = k;
        s->steps += (int64_t)n;
        if (rank[best] == (uint32_t)NO_RANK) break;
        ids[best] = join[best];
        n--;
        memmove(ids + best + 1, ids + best + 2, (n - best - 1) * sizeof *ids);
        memmove(rank + best, rank + best + 1, (n - best - 1) * sizeof *rank);
        memmove(join + best, join + best + 1, (n - best - 1) * sizeof *join);
        for (size_t k = best ? best - 1 : 0; k <= best && k + 1 < n; k++) {
            const Merge *m = merge_find(t, ids[k], ids[k + 1]);
            rank[k] = (uint32_t)m->rank, join[k] = m->id;
        }
    }
    return (int64_t)n;
}

static void heap_up(uint64_t *heap, size_t k, uint64_t v) {
    for (; k && heap[(k - 1) / 2] > v; k = (k - 1) / 2) heap[k] = heap[(k - 1) / 2];
    heap[k] = v;
}
static void heap_down(uint64_t *heap, size_t n, size_t k, uint64_t v) {
    for (size_t child; (child = 2 * k + 1) < n; k = child) {
        if (child + 1 < n && heap[child + 1] < heap[child]) child++;
        if (heap[child] >= v) break;
        heap[k] = heap[child];
    }
    heap[k] = v;
}

// Rank of the pair that begins at node k; its heap entry when it merges.
static bool node_pair(const Tokenizer *t, Node *nodes, uint32_t k, uint64_t *entry) {
    Node *node = nodes + k;
    node->rank = NO_RANK;
    if (node->next == UINT32_MAX) return false;
    const Merge *m = merge_find(t, node->id, nodes[node->next].id);
    node->rank = m->rank, node->join = m->id;
    *entry = (uint64_t)(uint32_t)m->rank << 32 | k;
    return m->rank != NO_RANK;
}

// A long piece: a heap of pairs by (rank, place), a list of symbols. n log n, also for a megabyte of one letter. An
// entry whose pair changed since is known by its rank: a rank names one pair of ids.
static int64_t merge_long(const Tokenizer *t, Scratch *s, const uint8_t *piece, size_t n, int32_t *ids) {
    CHECK(n < INT32_MAX, "a piece of %zu bytes", n);
    if (n > s->node_cap) {
        s->node_cap = n + n / 2;
        s->nodes = grow_or_die(s->nodes, s->node_cap, sizeof *s->nodes, "symbols of a piece");
        s->heap = grow_or_die(s->heap, s->node_cap, 3 * sizeof *s->heap, "pairs of a piece");
    }
    Node *nodes = s->nodes;
    uint64_t *heap = s->heap, entry;
    size_t entries = 0;
    for (uint32_t k = 0; k < n; k++)
        nodes[k] = (Node){t->byte_id[piece[k]], NO_RANK, -1, k - 1, k + 1 < n ? k + 1 : UINT32_MAX};
    for (uint32_t k = 0; k < n; k++)
        if (node_pair(t, nodes, k, &entry)) heap[entries++] = entry;
    for (size_t k = entries / 2; k--;) heap_down(heap, entries, k, heap[k]);
    s->steps += (int64_t)(n + entries);
    while (entries) {
        uint32_t at = (uint32_t)heap[0];
        int32_t rank = (int32_t)(heap[0] >> 32);
        if (--entries) heap_down(heap, entries, 0, heap[entries]);
        s->steps++;
        Node *node = nodes + at;
        if (node->rank != rank) continue;
        Node *gone = nodes + node->next;
        node->id = node->join, node->next = gone->next, gone->rank = NO_RANK;
        if (node->next != UINT32_MAX) nodes[node->next].before = at;
        if (node_pair(t, nodes, at, &entry)) heap_up(heap, entries, entry), entries++;
        if (node->before != UINT32_MAX && node_pair(t, nodes, node->before, &entry))
            heap_up(heap, entries, entry), entries++;
    }
    int64_t count = 0;
    for (uint32_t k = 0; k != UINT32_MAX; k = nodes[k].next) ids[count++] = nodes[k].id;
    return count;
}

static void ids_reserve(Ids *a, int64_t more) {
    if (a->cap - a->n >= more) return;
    a->cap = 2 * a->cap > a->n + more ? 2 * a->cap : a->n + more + 60;
    a->p = grow_or_die(a->p, (size_t)a->cap, sizeof *a->p, "token ids");
}

// Appends the ids of text[at..end). `len` is how far text can be read.
static inline void encode_piece(const Tokenizer *t, Scratch *s, const char *text, size_t len, size_t at, size_t end,
                                Ids *out) {
    const uint8_t *piece = (const uint8_t *)text + at;
    size_t n = end - at;
    ids_reserve(out, (int64_t)(n < CACHED_IDS ? CACHED_IDS : n));
    int32_t *ids = out->p + out->n;
    if (n > CACHED_BYTES) {
        out->n += n <= SHORT_PIECE ? merge_short(t, s, piece, n, ids) : merge_long(t, s, piece, n, ids);
        return;
    }
    uint64_t key[2] = {0, 0};
    if (len - at >= sizeof key) {
        memcpy(key, piece, sizeof key);
        if (n < 8) key[0] &= (UINT64_C(1) << 8 * n) - 1, key[1] = 0;
        else key[1] &= (UINT64_C(1) << 8 * (n - 8)) - 1;
    } else {
        memcpy(key, piece, n);
    }
    key[1] |= (uint64_t)n << 56;
    uint64_t hash = (key[0] ^ (key[1] << 23 | key[1] >> 41)) * UINT64_C(0x9E3779B97F4A7C15);
    Word *word = s->words + ((hash ^ hash >> 32) * UINT64_C(0xD6E8FEB86659FD93) >> (64 - WORD_BITS));
    if (word->key[0] != key[0] || word->key[1] != key[1]) {
        int64_t count = merge_short(t, s, piece, n, ids);
        if (count <= CACHED_IDS) {
            *word = (Word){{key[0], key[1]}, {-1, -1, -1, -1}};
            memcpy(word->ids, ids, (size_t)count * sizeof *ids);
        }
        out->n += count;
        return;
    }
    memcpy(ids, word->ids, sizeof word->ids); // the -1s behind the last are overwritten by what follows
    out->n += 1 + (ids[1] >= 0) + (ids[2] >= 0) + (ids[3] >= 0);
}

// Text that is in normal form, without added tokens.
static void encode_pieces(const Tokenizer *t, Scratch *s, const char *text, size_t len, Ids *out) {
    for (size_t at = 0, end; at < len; at = end) {
        end = piece_end(t->kinds, text, len, at);
        encode_piece(t, s, text, len, at, end, out);
    }
}

static Scratch *scratch_take(Pool *pool) {
    pthread_mutex_lock(&pool->lock);
    Scratch *s = pool->idle;
    if (s) pool->idle = s->next;
    pthread_mutex_unlock(&pool->lock);
    return s ? s : alloc_or_die(1, sizeof *s, "tokenizer scratch");
}

static void scratch_give(Pool *pool, Scratch *s) {
    pthread_mutex_lock(&pool->lock);
    s->next = pool->idle, pool->idle = s;
    pthread_mutex_unlock(&pool->lock);
}

void tokenizer_cut(const Tokenizer *t, const char *text, size_t len, PieceSink each, void *ctx) {
    Scratch *s = scratch_take(t->pool);
    if (t->nfc && normalise(t, s, text, len)) text = s->normal.p, len = s->normal.len;
    for (size_t at = 0, end; at < len; at = end) {
        end = piece_end(t->kinds, text, len, at);
        each(ctx, text + at, end - at);
    }
    scratch_give(t->pool, s);
}

// ---------------------------------------------------------------------------------------------------- added tokens
static const char *token_bytes(const Tokenizer *t, int32_t id) { return t->bytes.p + t->tokens[id].at; }

// First of ids[low..high), which share their first k bytes, whose byte k is at least `byte` (none counts as -1).
static int32_t added_bound(const Tokenizer *t, const Added *set, int32_t low, int32_t high, size_t k, int byte) {
    while (low < high) {
        int32_t middle = low + (high - low) / 2, id = set->ids[middle];
        int b = k < t->tokens[id].len ? (uint8_t)token_bytes(t, id)[k] : -1;
        if (b < byte) low = middle + 1;
        else high = middle;
    }
    return low;
}

// The longest token of the set that text begins with, or -1.
static int32_t added_at(const Tokenizer *t, const Added *set, const char *text, size_t len) {
    int32_t low = 0, high = set->n, longest = -1;
    for (size_t k = 0; k < len && low < high; k++) {
        int byte = (uint8_t)text[k];
        low = added_bound(t, set, low, high, k, byte);
        high = added_bound(t, set, low, high, k, byte + 1);
        if (low < high && t->tokens[set->ids[low]].len == k + 1) longest = set->ids[low];
    }
    return longest;
}

// The first token of the set in text[from..len), longest wins; -1 when there is none. *start is its place.
static int32_t added_next(const Tokenizer *t, const Added *set, const char *text, size_t len, size_t from,
                          size_t *start) {
    for (size_t k = from; set->n && k < len; k++) {
        if (!set->first[(uint8_t)text[k]]) continue;
        int32_t id = added_at(t, set, text + k, len - k);
        *start = k;
        if (id >= 0) return id;
    }
    return -1;
}

static int32_t added_find(const Tokenizer *t, const char *text, size_t len) {
    for (int k = 0; k < 2; k++) {
        int32_t id = added_at(t, t->added + k, text, len);
        if (id >= 0 && t->tokens[id].len == len) return id;
    }
    return -1;
}

int32_t tokenizer_added(const Tokenizer *t, const char *text) { return added_find(t, text, strlen(text)); }

// ---------------------------------------------------------------------------------------------------------- encode
void ids_add(Ids *a, int32_t id) {
    ids_reserve(a, 1);
    a->p[a->n++] = id;
}

void ids_free(Ids *a) {
    free(a->p);
    *a = (Ids){0};
}

int64_t tokenizer_steps(const Tokenizer *t) {
    int64_t steps = 0;
    for (const Scratch *s = t->pool->idle; s; s = s->next) steps += s->steps;
    return steps;
}

// Text cut at the added tokens of set k; what is between them goes through NFC and set 1 (k = 0) or to the pieces.
static void encode_part(const Tokenizer *t, Scratch *s, const char *text, size_t len, bool added, int k, Ids *out) {
    if (k == 1 && t->nfc && normalise(t, s, text, len)) text = s->normal.p, len = s->normal.len;
    for (size_t pos = 0, start; pos < len;) {
        int32_t id = added ? added_next(t, t->added + k, text, len, pos, &start) : -1;
        if (id < 0) start = len;
        if (k == 0) encode_part(t, s, text + pos, start - pos, added, 1, out);
        else encode_pieces(t, s, text + pos, start - pos, out);
        if (id >= 0) ids_add(out, id);
        pos = start + (id >= 0 ? t->tokens[id].len : 0);
    }
}

void tokenizer_encode(const Tokenizer *t, const char *text, size_t len, bool added, Ids *out) {
    Scratch *s = scratch_take(t->pool);
    encode_part(t, s, text, len, added, 0, out);
    scratch_give(t->pool, s);
}

// ---------------------------------------------------------------------------------------------------------- decode
int32_t tokenizer_size(const Tokenizer *t) { return t->size; }

const char *tokenizer_token(const Tokenizer *t, int32_t id, size_t *len, bool *added, bool *special) {
    if (id < 0 || id >= t->size || !(t->tokens[id].flags & HAS_TOKEN)) return NULL;
    *len = t->tokens[id].len;
    *added = t->tokens[id].flags & ADDED;
    *special = t->tokens[id].flags & SPECIAL;
    return token_bytes(t, id);
}

static void add_token_bytes(const Tokenizer *t, int32_t id, bool skip_special, Text *out) {
    size_t len;
    bool added, special;
    const char *bytes = tokenizer_token(t, id, &len, &added, &special);
    if (bytes && !(special && skip_special)) text_add(out, bytes, len);
}

static void add_well_formed(Text *out, const char *bytes, size_t len) { // each ill-formed part becomes U+FFFD
    for (size_t pos = 0, good = 0, start; good < len;) {
        int32_t cp = 0;
        for (start = pos; pos < len && cp >= 0;) start = pos, cp = utf8_next(bytes, len, &pos);
        if (cp >= 0) start = len;
        text_add(out, bytes + good, start - good);
        if (cp < 0) text_add(out, "\xEF\xBF\xBD", 3);
        good = pos;
    }
}

void tokenizer_decode(const Tokenizer *t, const int32_t *ids, int64_t n, bool skip_special, Text *out) {
    Text bytes = {0};
    for (int64_t k = 0; k < n; k++) add_token_bytes(t, ids[k], skip_special, &bytes);
    add_well_formed(out, bytes.p, bytes.len);
    text_free(&bytes);
}

void stream_push(DecodeStream *s, int32_t id, Text *out) {
    add_token_bytes(s->t, id, s->skip_special, &s->held);
    if (!s->held.len) return;
    size_t whole = utf8_complete(s->held.p, s->held.len);
    add_well_formed(out, s->held.p, whole);
    s->held.len -= whole;
    memmove(s->held.p, s->held.p + whole, s->held.len);
}

void stream_finish(DecodeStream *s, Text *out) {
    add_well_formed(out, s->held.p, s->held.len);
    text_free(&s->held);
}

// --------------------------------------------------------------------------------------------------------- loading
// The byte that stands behind a character of a vocabulary: printable ones for themselves, the other 68 in order from
// U+0100. -1 when there is none.
int token_byte(int32_t cp) {
    if ((cp >= 0x21 && cp <= 0x7E) || (cp >= 0xA1 && cp <= 0xAC) || (cp >= 0xAE && cp <= 0xFF)) return cp;
    int32_t k = cp - 0x100; // of 00..20, 7F..A0, AD
    if (k < 0 || k > 67) return -1;
    return k <= 0x20 ? k : k < 67 ? 0x7F + (k - 0x21) : 0xAD;
}

// The bytes that a vocabulary's string stands for, at most len of them, into out; false when a character has no byte.
static bool bytes_of(const char *text, size_t len, char *out, size_t *n) {
    *n = 0;
    for (size_t pos = 0; pos < len;) {
        int byte = token_byte(utf8_next(text, len, &pos));
        if (byte < 0) return false;
        out[(*n)++] = (char)byte;
    }
    return true;
}

// The slot of a base token in the index: its own, or a free one.
static int32_t *index_find(const Tokenizer *t, const char *bytes, size_t len) {
    uint64_t hash = bytes_hash(bytes, len);
    size_t mask = ((size_t)1 << (64 - t->index_shift)) - 1;
    for (size_t k = (size_t)(hash * UINT64_C(0x9E3779B97F4A7C15) >> t->index_shift);; k = (k + 1) & mask) {
        int32_t id = t->index[k] - 1;
        if (id < 0 || (t->tokens[id].len == len && !memcmp(token_bytes(t, id), bytes, len))) return t->index + k;
    }
}

// 64 - log2 of a power of two of at least 2 * count slots.
static int shift_for(size_t count) {
    int bits = 4;
    while ((size_t)1 << bits < 2 * count) bits++;
    return 64 - bits;
}

static void token_set(Tokenizer *t, int32_t id, const char *bytes, size_t len, uint32_t flags) {
    if (id >= t->cap) {
        int32_t cap = id < 256 ? 512 : 2 * id;
        t->tokens = grow_or_die(t->tokens, (size_t)cap, sizeof *t->tokens, "tokens");
        memset(t->tokens + t->cap, 0, (size_t)(cap - t->cap) * sizeof *t->tokens);
        t->cap = cap;
    }
    t->tokens[id] = (Token){(uint32_t)t->bytes.len, (uint32_t)len, HAS_TOKEN | flags};
    text_add(&t->bytes, bytes, len);
    if (id >= t->size) t->size = id + 1;
}

static bool token_exists(const Tokenizer *t, int64_t id) { return id < t->size && t->tokens[id].flags & HAS_TOKEN; }

static const char *found_text(const Json *v) { // a value in a message
    static const char *const names[] = {"null", "false", "true", "", "", "an array", "an object"};
    if (!v) return "nothing";
    return v->type == JSON_STRING || v->type == JSON_NUMBER ? quoted(v->str, v->len) : names[v->type];
}

static const Json *string_at(const Json *object, const char *key) {
    const Json *v = json_get(object, key);
    return v && v->type == JSON_STRING ? v : NULL;
}

// Notes one added token. `flags` is the object with "special", "normalized" and so on, or NULL; `at` is its place.
static bool added_read(Tokenizer *t, const JsonDoc *d, const Json *flags, const Json *at, const char *text, size_t len,
                       int64_t id, Err *e) {
    static const struct {
        const char *name;
        uint32_t flag; // 0: Qwen2.5 has none, must be false
    } ways[] = {{"special", SPECIAL}, {"normalized", NORMALIZED}, {"lstrip", 0}, {"rstrip", 0}, {"single_word", 0}};
    uint32_t set = ADDED;
    for (size_t k = 0; k < COUNT(ways); k++) {
        const Json *v = json_get(flags, ways[k].name);
        if (v && v->type != JSON_FALSE && v->type != JSON_TRUE)
            return err_set(e, "E-TK-04", json_at(d, v, ways[k].name),
                           "expected true or false; found %s; do: correct it", found_text(v));
        if (!v || v->type == JSON_FALSE) continue;
        if (!ways[k].flag)
            return err_set(e, "E-TK-07", json_at(d, v, ways[k].name),
                           "expected false for every added token; found true; do: %s",
                           "use the tokenizer files of a Qwen2 model");
        set |= ways[k].flag;
    }
    if (!len || (int64_t)len > LIMIT_TOKEN_BYTES)
        return err_set(e, "E-TK-04", json_at(d, at, NULL),
                       "expected an added token of 1 to %lld bytes; found %zu; do: %s", (long long)LIMIT_TOKEN_BYTES,
                       len, "give the token a text or remove it");
    if (id < 0 || id >= LIMIT_VOCAB)
        return err_set(e, "E-TK-04", json_at(d, at, NULL),
                       "expected an added token's id in 0..%lld; found %lld; do: %s", (long long)LIMIT_VOCAB - 1,
                       (long long)id, "correct the id");
    if (token_exists(t, id))
        return err_set(e, "E-TK-04", json_at(d, at, NULL), "expected each id once; found id %lld for %s and %s; do: %s",
                       (long long)id, quoted(token_bytes(t, (int32_t)id), t->tokens[id].len), quoted(text, len),
                       "give one of them another id");
    token_set(t, (int32_t)id, text, len, set);
    return true;
}

// [{"id": 151643, "content": "<|endoftext|>", "special": true, ...}, ...] of a tokenizer.json
static bool added_from_list(Tokenizer *t, const JsonDoc *d, const Json *list, Err *e) {
    if (!list || list->type == JSON_NULL) return true;
    if (list->type != JSON_ARRAY)
        return err_set(e, "E-TK-04", json_at(d, list, "added_tokens"),
                       "expected a list of added tokens; found %s; do: %s", found_text(list), "write a list");
    for (const Json *v = list->child; v; v = v->next) {
        const Json *id = json_get(v, "id"), *content = string_at(v, "content");
        if (!content || !id || !id->integer)
            return err_set(
                e, "E-TK-04", json_at(d, v, "added_tokens"),
                "expected an added token with a text \"content\" and an integer \"id\"; found %s and %s; do: %s",
                found_text(json_get(v, "content")), found_text(id), "complete it");
        if (!added_read(t, d, v, v, content->str, content->len, id->i, e)) return false;
    }
    return true;
}

// {"151643": {"content": "<|endoftext|>", "special": true, ...}, ...} of a tokenizer_config.json
static bool added_from_decoder(Tokenizer *t, const JsonDoc *d, const Json *decoder, Err *e) {
    for (const Json *v = decoder->child; v; v = v->next) {
        const Json *content = string_at(v, "content");
        int64_t id = v->key_len && v->key_len < 10 ? 0 : -1;
        for (size_t k = 0; k < v->key_len && id >= 0; k++)
            id = v->key[k] >= '0' && v->key[k] <= '9' ? 10 * id + (v->key[k] - '0') : -1;
        if (!content || id < 0)
            return err_set(e, "E-TK-04", json_at(d, v, "added_tokens_decoder"),
                           "expected an id and an object with a text \"content\"; found %s and %s; do: %s",
                           quoted(v->key, v->key_len), found_text(json_get(v, "content")), "complete it");
        if (!added_read(t, d, v, v, content->str, content->len, id, e)) return false;
    }
    return true;
}

// The added tokens of every Qwen2.5 model, from id 151643.
static const char *const qwen_added[] = {
    "<|endoftext|>",  "<|im_start|>",   "<|im_end|>",    "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>",    "<|quad_start|>", "<|quad_end|>",  "<|vision_start|>",     "<|vision_end|>",     "<|vision_pad|>",
    "<|image_pad|>",  "<|video_pad|>",  "<tool_call>",   "</tool_call>",         "<|fim_prefix|>",     "<|fim_middle|>",
    "<|fim_suffix|>", "<|fim_pad|>",    "<|repo_name|>", "<|file_sep|>"};
enum { QWEN_BASE = 151643, QWEN_SPECIAL = 14 }; // the first 14 are special

static bool qwen_special(const char *text, size_t len) {
    for (size_t k = 0; k < QWEN_SPECIAL; k++)
        if (strlen(qwen_added[k]) == len && !memcmp(text, qwen_added[k], len)) return true;
    return false;
}

// {"<|endoftext|>": 151643, ...}: the older added_tokens.json. It does not say which are special; those of Qwen are
// known, and `config` (tokenizer_config.json or NULL) lists others.
static bool added_from_map(Tokenizer *t, const JsonDoc *d, const Json *config, Err *e) {
    static const char *const named[] = {"bos_token", "eos_token", "unk_token", "pad_token"};
    if (d->root->type != JSON_OBJECT)
        return err_set(e, "E-TK-04", json_at(d, d->root, NULL), "expected an object of added tokens; found %s; do: %s",
                       found_text(d->root), "use the file that came with the model");
    for (const Json *v = d->root->child; v; v = v->next) {
        if (!v->integer)
            return err_set(e, "E-TK-04", json_at(d, v, NULL), "expected an integer id for %s; found %s; do: correct it",
                           quoted(v->key, v->key_len), found_text(v));
        if (!added_read(t, d, NULL, v, v->key, v->key_len, v->i, e)) return false;
        bool special = qwen_special(v->key, v->key_len);
        for (size_t k = 0; k < COUNT(named); k++) special = special || json_is(json_get(config, named[k]), v->key);
        const Json *more = json_get(config, "additional_special_tokens");
        for (more = more && more->type == JSON_ARRAY ? more->child : NULL; more; more = more->next)
            special = special || json_is(more, v->key);
        if (special) t->tokens[v->i].flags |= SPECIAL;
    }
    return true;
}

typedef struct Sorted {
    const char *text;
    uint32_t len;
    int32_t id;
} Sorted;
static int sorted_compare(const void *a, const void *b) {
    const Sorted *x = a, *y = b;
    int order = memcmp(x->text, y->text, x->len < y->len ? x->len : y->len);
    return order ? order : (x->len > y->len) - (x->len < y->len);
}

// The tables that added_at searches. Two tokens of one text have no one reading; a prefix of another is fine.
static bool added_finish(Tokenizer *t, Err *e) {
    Sorted *all = alloc_or_die((size_t)t->size + 1, sizeof *all, "added tokens");
    int32_t n = 0;
    for (int32_t id = 0; id < t->size; id++)
        if (t->tokens[id].flags & ADDED) all[n++] = (Sorted){token_bytes(t, id), t->tokens[id].len, id};
    qsort(all, (size_t)n, sizeof *all, sorted_compare);
    for (int k = 0; k < 2; k++) t->added[k].ids = alloc_or_die((size_t)n + 1, sizeof(int32_t), "added tokens");
    Scratch *s = scratch_take(t->pool);
    bool ok = true;
    for (int32_t k = 0; k < n && ok; k++) {
        Added *set = t->added + (t->tokens[all[k].id].flags & NORMALIZED ? 1 : 0);
        set->ids[set->n++] = all[k].id;
        set->first[(uint8_t)all[k].text[0]] = true;
        if (k && !sorted_compare(all + k - 1, all + k))
            ok = err_set(e, "E-TK-04", AT(.file = t->path),
                         "expected added tokens of different texts; found %s as %d and %d; do: remove one",
                         quoted(all[k].text, all[k].len), all[k - 1].id, all[k].id);
        if (ok && set == t->added + 1 && t->nfc && normalise(t, s, all[k].text, all[k].len) &&
            (s->normal.len != all[k].len || memcmp(s->normal.p, all[k].text, all[k].len)))
            ok =
                err_set(e, "E-TK-07", AT(.file = t->path, .field = "normalized"),
                        "expected a normalized added token in normal form C; found %s; do: write its text in that form",
                        quoted(all[k].text, all[k].len));
    }
    scratch_give(t->pool, s);
    free(all);
    return ok;
}

// {"!": 0, ...}: base tokens, and added tokens that are listed here too. After the added tokens are known.
static bool vocab_read(Tokenizer *t, const JsonDoc *d, const Json *vocab, Err *e) {
    if (!vocab || vocab->type != JSON_OBJECT)
        return err_set(e, "E-TK-01", json_at(d, vocab, NULL),
                       "expected a vocabulary, an object of texts and ids; found %s; do: %s", found_text(vocab),
                       "use the file that came with the model");
    if (vocab->count > LIMIT_VOCAB)
        return err_set(e, "E-TK-01", json_at(d, vocab, NULL), "expected at most %lld tokens; found %u; do: %s",
                       (long long)LIMIT_VOCAB, vocab->count, "check that this is the right file");
    t->index_shift = shift_for(vocab->count);
    t->index = alloc_or_die((size_t)1 << (64 - t->index_shift), sizeof *t->index, "token index");
    int32_t highest = -1;
    for (const Json *v = vocab->child; v; v = v->next) {
        char bytes[TOKEN_BYTES];
        size_t n;
        if (!v->integer || v->i < 0 || v->i >= LIMIT_VOCAB)
            return err_set(e, "E-TK-01", json_at(d, v, NULL),
                           "expected an integer id 0..%lld for %s; found %s; do: correct the id",
                           (long long)LIMIT_VOCAB - 1, quoted(v->key, v->key_len), found_text(v));
        if ((int64_t)v->key_len > LIMIT_TOKEN_BYTES)
            return err_set(e, "E-TK-01", json_at(d, v, NULL),
                           "expected tokens of at most %lld bytes; found %zu; do: %s", (long long)LIMIT_TOKEN_BYTES,
                           v->key_len, "check that this is the right file");
        int32_t id = (int32_t)v->i, added = added_find(t, v->key, v->key_len);
        highest = id > highest ? id : highest;
        bool has_bytes = bytes_of(v->key, v->key_len, bytes, &n);
        if (added >= 0 && added != id)
            return err_set(e, "E-TK-04", json_at(d, v, NULL),
                           "expected one id for the added token %s; found %d and %d; do: %s",
                           quoted(v->key, v->key_len), added, id, "correct one of them");
        if (added < 0 && !has_bytes)
            return err_set(e, "E-TK-02", json_at(d, v, NULL),
                           "expected a token in the 256 characters of byte-level BPE; found %s; "
                           "do: use the vocabulary of a byte-level tokenizer",
                           quoted(v->key, v->key_len));
        if (added < 0 && token_exists(t, id))
            return err_set(e, t->tokens[id].flags & ADDED ? "E-TK-04" : "E-TK-01", json_at(d, v, NULL),
                           "expected each id once; found id %d for %s and %s; do: give one of them another id", id,
                           quoted(token_bytes(t, id), t->tokens[id].len), quoted(v->key, v->key_len));
        if (added < 0) token_set(t, id, bytes, n, 0);
        if (has_bytes) *index_find(t, bytes, n) = id + 1;
    }
    for (int32_t id = 0; id < highest; id++)
        if (!token_exists(t, id))
            return err_set(e, "E-TK-01", json_at(d, vocab, NULL),
                           "expected a token for every id up to %d; found none for %d; do: %s", highest, id,
                           "use the file that came with the model");
    for (int k = 0; k < 256; k++) {
        char byte = (char)k;
        t->byte_id[k] = *index_find(t, &byte, 1) - 1;
        if (t->byte_id[k] < 0)
            return err_set(e, "E-TK-02", json_at(d, vocab, NULL),
                           "expected a token for each of the 256 bytes; found none for 0x%02X; do: %s", k,
                           "use the vocabulary of a byte-level tokenizer");
    }
    return true;
}

// ---- merges
static void merges_reserve(Tokenizer *t, size_t count) {
    t->merge_shift = shift_for(count);
    size_t slots = (size_t)1 << (64 - t->merge_shift);
    t->merges = alloc_or_die(slots, sizeof *t->merges, "merges");
    for (size_t k = 0; k < slots; k++) t->merges[k].rank = NO_RANK;
}

// Adds the merge "left right" of a rank. Returns what was expected of the line, or NULL when it is good.
static const char *merge_add(Tokenizer *t, const char *line, size_t len, int32_t rank) {
    char join[LINE_BYTES];
    const char *space = memchr(line, ' ', len);
    size_t left_len = space ? (size_t)(space - line) : 0, n_left, n_right;
    if (!left_len || left_len + 1 == len || memchr(space + 1, ' ', len - left_len - 1))
        return "two parts split by one space";
    bool known =
        bytes_of(line, left_len, join, &n_left) && bytes_of(space + 1, len - left_len - 1, join + n_left, &n_right);
    int32_t left = known ? *index_find(t, join, n_left) - 1 : -1;
    int32_t right = known ? *index_find(t, join + n_left, n_right) - 1 : -1;
    if (left < 0 || right < 0) return "two parts that are tokens of the vocabulary";
    int32_t id = *index_find(t, join, n_left + n_right) - 1;
    if (id < 0) return "two parts whose join is a token of the vocabulary";
    Merge *m = merge_find(t, left, right);
    if (m->rank != NO_RANK) return "each pair once";
    *m = (Merge){left, right, rank, id};
    return NULL;
}

static bool merges_refuse(Where at, const char *expected, const char *line, size_t len, Err *e) {
    return err_set(e, "E-TK-03", at, "expected %s; found %s; do: use the merges that belong to the vocabulary",
                   expected, quoted(line, len));
}

// A merges.txt: one pair a line by rank; an optional first line "#version...", CRLF and empty lines.
static bool merges_read_text(Tokenizer *t, const char *path, Err *e) {
    char *text;
    size_t size;
    if (!file_read(path, LIMIT_TOKENIZER_BYTES, "E-TK-03", &text, &size, e)) return false;
    size_t lines = 1;
    for (size_t k = 0; k < size; k++) lines += text[k] == '\n';
    const char *expected = NULL;
    if ((int64_t)lines > LIMIT_VOCAB + 2) expected = "at most 1048576 merges";
    merges_reserve(t, expected ? 0 : lines);
    int64_t number = 0;
    int32_t rank = 0;
    const char *line = text, *next = text, *end = text + size;
    size_t len = 0;
    while (next < end && !expected) {
        line = next, number++;
        const char *newline = memchr(line, '\n', (size_t)(end - line));
        next = newline ? newline + 1 : end;
        len = (size_t)((newline ? newline : end) - line);
        if (len && line[len - 1] == '\r') len--;
        if (!len || (number == 1 && len >= 8 && !memcmp(line, "#version", 8))) continue;
        if ((int64_t)len > LIMIT_MERGE_LINE_BYTES) expected = "a line of at most 8192 bytes";
        else if (!utf8_valid(line, len, NULL)) expected = "UTF-8 text";
        else if (rank == LIMIT_VOCAB) expected = "at most 1048576 merges";
        else expected = merge_add(t, line, len, rank++);
    }
    if (expected) merges_refuse(AT(.file = path, .line = number), expected, line, len, e);
    free(text);
    return !expected;
}

// The merges of a tokenizer.json: "left right" or ["left", "right"] each.
static bool merges_read_json(Tokenizer *t, const JsonDoc *d, const Json *merges, Err *e) {
    if (!merges || merges->type != JSON_ARRAY || merges->count > LIMIT_VOCAB)
        return err_set(e, "E-TK-03", json_at(d, merges, "model.merges"),
                       "expected a list of at most %lld merges; found %s; do: %s", (long long)LIMIT_VOCAB,
                       found_text(merges), "use the file that came with the model");
    merges_reserve(t, merges->count);
    int32_t rank = 0;
    for (const Json *v = merges->child; v; v = v->next, rank++) {
        char line[LINE_BYTES], field[40];
        const Json *left = v->type == JSON_ARRAY && v->count == 2 ? v->child : v,
                   *right = left == v ? NULL : left->next;
        size_t len = left->len;
        const char *expected = NULL;
        if (left->type != JSON_STRING || (right && right->type != JSON_STRING)) expected = "a pair of texts";
        else if (left->len + (right ? right->len + 1 : 0) > sizeof line) expected = "a pair of at most 8192 bytes";
        else if (memcpy(line, left->str, left->len), right) {
            line[len++] = ' ';
            memcpy(line + len, right->str, right->len);
            len += right->len;
        }
        if (!expected) expected = merge_add(t, line, len, rank);
        if (!expected) continue;
        snprintf(field, sizeof field, "model.merges[%d]", rank);
        bool text = left->type == JSON_STRING && len <= sizeof line;
        return merges_refuse(json_at(d, v, field), expected, text ? line : "", text ? len : 0, e);
    }
    return true;
}

// ---- tokenizer.json: what must stand in it for this file to tokenise as it says
static const struct {
    const char *path, *want;                 // want: a text; "false"; "" = an empty text or nothing; NULL = nothing
    enum { NEVER, ITSELF, PARENT } may_lack; // what of it may be absent or null
} form[] = {
    {"normalizer.type", "NFC", PARENT},
    {"pre_tokenizer.type", "Sequence", NEVER},
    {"pre_tokenizer.pretokenizers.0.type", "Split", NEVER},
    {"pre_tokenizer.pretokenizers.0.pattern.Regex", tokenizer_pattern, NEVER},
    {"pre_tokenizer.pretokenizers.0.behavior", "Isolated", NEVER},
    {"pre_tokenizer.pretokenizers.0.invert", "false", ITSELF},
    {"pre_tokenizer.pretokenizers.1.type", "ByteLevel", NEVER},
    {"pre_tokenizer.pretokenizers.1.add_prefix_space", "false", NEVER},
    {"pre_tokenizer.pretokenizers.1.use_regex", "false", NEVER},
    {"pre_tokenizer.pretokenizers.2", NULL, ITSELF},
    {"post_processor.type", "ByteLevel", PARENT}, // moves offsets only
    {"decoder.type", "ByteLevel", NEVER},
    {"model.type", "BPE", NEVER},
    {"model.dropout", NULL, ITSELF},
    {"model.continuing_subword_prefix", "", ITSELF},
    {"model.end_of_word_suffix", "", ITSELF},
    {"model.byte_fallback", "false", ITSELF},
    {"model.ignore_merges", "false", ITSELF},
};

// The value at a path of member names and list positions; NULL when it is absent or null. *deepest: how far it goes.
static const Json *json_walk(const Json *v, const char *path, const Json **deepest) {
    for (const char *part = path; v && *part;) {
        char name[64];
        size_t n = strcspn(part, ".");
        snprintf(name, sizeof name, "%.*s", (int)n, part);
        *deepest = v;
        if (v->type == JSON_ARRAY) {
            v = v->child;
            for (int k = name[0] - '0'; k > 0 && v; k--) v = v->next;
        } else {
            v = json_get(v, name);
        }
        part += n + (part[n] == '.');
    }
    return v && v->type != JSON_NULL ? v : NULL;
}

static bool form_check(const JsonDoc *d, Err *e) {
    for (size_t k = 0; k < COUNT(form); k++) {
        const Json *deepest = d->root, *v = json_walk(d->root, form[k].path, &deepest);
        const char *want = form[k].want;
        if (!v && form[k].may_lack == ITSELF) continue;
        if (!v && form[k].may_lack == PARENT && (deepest == d->root || deepest->type == JSON_NULL)) continue;
        if (v && want && (json_is(v, want) || (v->type == JSON_FALSE && !strcmp(want, "false")))) continue;
        const char *expected = !want ? "nothing" : !*want ? "an empty text" : want;
        if (expected == want && strcmp(want, "false")) expected = quoted(want, strlen(want));
        return err_set(e, "E-TK-07", json_at(d, v ? v : deepest, form[k].path), "expected %s; found %s; do: %s",
                       expected, found_text(v),
                       "use the tokenizer files of a Qwen2 model (other tokenizers are not implemented)");
    }
    return true;
}

static Tokenizer *tokenizer_new(const char *path) {
    CHECK(TOKEN_BYTES == LIMIT_TOKEN_BYTES && LINE_BYTES == LIMIT_MERGE_LINE_BYTES, "a limit and its arrays differ");
    Tokenizer *t = alloc_or_die(1, sizeof *t, "tokenizer");
    t->path = alloc_or_die(strlen(path) + 1, 1, "path");
    memcpy(t->path, path, strlen(path));
    t->nfc = true;
    t->kinds = kinds_make();
    t->pool = alloc_or_die(1, sizeof *t->pool, "tokenizer pool");
    CHECK(!pthread_mutex_init(&t->pool->lock, NULL), "a mutex could not be made");
    return t;
}

Tokenizer *tokenizer_empty(void) { return tokenizer_new(""); }

void tokenizer_free(Tokenizer *t) {
    if (!t) return;
    for (Scratch *s = t->pool->idle, *next; s; s = next) {
        next = s->next;
        free(s->nodes), free(s->heap), free(s->cluster), text_free(&s->normal), free(s);
    }
    pthread_mutex_destroy(&t->pool->lock);
    free(t->pool), free(t->path), free(t->tokens), free(t->added[0].ids), free(t->added[1].ids), free(t->merges),
        free(t->kinds), free(t->index);
    text_free(&t->bytes);
    free(t);
}

static bool tokenizer_done(Tokenizer **out, Tokenizer *t, bool ok) {
    free(t->index), t->index = NULL;
    *out = ok ? t : NULL;
    if (!ok) tokenizer_free(t);
    return ok;
}

bool tokenizer_load_json(Tokenizer **out, const char *tokenizer_json, Err *e) {
    *out = NULL;
    JsonDoc d;
    if (!json_read(&d, tokenizer_json, LIMIT_TOKENIZER_BYTES, (JsonOptions){.refuse_duplicates = true}, e))
        return false;
    Tokenizer *t = tokenizer_new(tokenizer_json);
    const Json *normalizer = json_get(d.root, "normalizer"), *model = json_get(d.root, "model");
    t->nfc = normalizer && normalizer->type != JSON_NULL;
    bool ok = form_check(&d, e) && added_from_list(t, &d, json_get(d.root, "added_tokens"), e) && added_finish(t, e) &&
              vocab_read(t, &d, json_get(model, "vocab"), e) && merges_read_json(t, &d, json_get(model, "merges"), e);
    json_free(&d);
    return tokenizer_done(out, t, ok);
}

// vocab.json and merges.txt, after the added tokens of config or map (roots are NULL when there is no such file).
static bool load_files(Tokenizer **out, const char *vocab_json, const char *merges_txt, const JsonDoc *config,
                       const JsonDoc *map, bool qwen, Err *e) {
    *out = NULL;
    JsonDoc d;
    if (!json_read(&d, vocab_json, LIMIT_TOKENIZER_BYTES, (JsonOptions){.refuse_duplicates = true}, e)) return false;
    Tokenizer *t = tokenizer_new(vocab_json);
    const Json *decoder = json_get(config->root, "added_tokens_decoder");
    bool ok = true;
    if (decoder && decoder->type == JSON_OBJECT) ok = added_from_decoder(t, config, decoder, e);
    else if (map->root) ok = added_from_map(t, map, config->root, e);
    else if (qwen && d.root->type == JSON_OBJECT && d.root->count == QWEN_BASE)
        for (int32_t k = 0; k < (int32_t)COUNT(qwen_added); k++)
            token_set(t, QWEN_BASE + k, qwen_added[k], strlen(qwen_added[k]), ADDED | (k < QWEN_SPECIAL ? SPECIAL : 0));
    ok = ok && added_finish(t, e) && vocab_read(t, &d, d.root, e) && merges_read_text(t, merges_txt, e);
    json_free(&d);
    return tokenizer_done(out, t, ok);
}

bool tokenizer_load_files(Tokenizer **out, const char *vocab_json, const char *merges_txt, Err *e) {
    JsonDoc none = {0};
    return load_files(out, vocab_json, merges_txt, &none, &none, false, e);
}

bool tokenizer_load(Tokenizer **out, const char *dir, Err *e) {
    *out = NULL;
    enum { JSON, VOCAB, MERGES, CONFIG, MAP, FILES };
    static const char *const names[FILES] = {"tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json",
                                             "added_tokens.json"};
    char path[FILES][1100];
    for (int k = 0; k < FILES; k++)
        if (!path_join(path[k], sizeof path[k], dir, names[k], e)) return false;
    if (file_exists(path[JSON])) return tokenizer_load_json(out, path[JSON], e);
    JsonDoc config = {0}, map = {0};
    JsonOptions options = {.refuse_duplicates = true};
    bool ok = (!file_exists(path[CONFIG]) || json_read(&config, path[CONFIG], LIMIT_CONFIG_BYTES, options, e)) &&
              (!file_exists(path[MAP]) || json_read(&map, path[MAP], LIMIT_CONFIG_BYTES, options, e)) &&
              load_files(out, path[VOCAB], path[MERGES], &config, &map, true, e);
    json_free(&config), json_free(&map);
    return ok;
}

bool tokenizer_copy(const char *from, const char *to, Err *e) {
    static const char *const names[] = {
        "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
        "merges.txt",     "chat_template.json",    "chat_template.jinja"};
    for (size_t k = 0; k < COUNT(names); k++)
        if (!file_copy(from, to, names[k], e)) return false;
    return true;
}

// --------------------------------------------------------------------------------------------------- chat template
// A conversation is rendered as pieces: control tokens by name, and text. Text between two control tokens is tokenised
// as one whole ("user\n" and content that begins with a newline share a token), so it is collected until one comes.
typedef struct Chat {
    Text text;          // since the last control token; with `whole`, everything
    bool whole;         // keep control tokens as text
    const Tokenizer *t; // the rest: when ids are made
    const int64_t *image_tokens;
    int n_images, message;
    int64_t pictures; // with `whole`: pictures met so far
    Turn *turns;      // [messages], or NULL
    Ids *out;
    Err *e;
    bool failed;
} Chat;

static void chat_text(Chat *c, const char *text, size_t len) { text_add(&c->text, text, len); }

static int32_t chat_token(Chat *c, const char *name) { // its id; remembers an error when the tokenizer lacks it
    int32_t id = tokenizer_added(c->t, name);
    if (id < 0 && !c->failed)
        c->failed = !err_set(c->e, "E-TK-06", AT(.file = c->t->path),
                             "expected the token %s, which the chat template needs; found none; "
                             "do: use the tokenizer files of a Qwen2.5-VL model",
                             quoted(name, strlen(name)));
    return id;
}

static int64_t chat_image_tokens(Chat *c, int64_t image) {
    if (image < c->n_images) return c->image_tokens[image];
    if (!c->failed)
        c->failed = !err_set(c->e, "E-DS-10", AT(.field = "messages"),
                             "expected a picture for every place of a picture; found %d "
                             "pictures; do: give one picture for each",
                             c->n_images);
    return 0;
}

// The text so far with all that is typed in it, then each <|image_pad|> as often as its picture has tokens.
static void chat_flush_whole(Chat *c) {
    Ids ids = {0};
    int32_t pad = tokenizer_added(c->t, "<|image_pad|>");
    tokenizer_encode(c->t, c->text.p, c->text.len, true, &ids);
    for (int64_t k = 0; k < ids.n && !c->failed; k++)
        for (int64_t copies = ids.p[k] == pad ? chat_image_tokens(c, c->pictures++) : 1; copies > 0; copies--)
            ids_add(c->out, ids.p[k]);
    ids_free(&ids);
    c->text.len = 0;
}

// The text so far, as ids that no added token is among.
static void chat_flush(Chat *c) {
    size_t start;
    if (!c->text.len || c->failed) return;
    if (c->whole) {
        chat_flush_whole(c);
        return;
    }
    int32_t typed = added_next(c->t, c->t->added, c->text.p, c->text.len, 0, &start);
    if (typed < 0) typed = added_next(c->t, c->t->added + 1, c->text.p, c->text.len, 0, &start);
    if (typed >= 0) {
        char field[40];
        snprintf(field, sizeof field, "messages[%d]", c->message);
        warn("E-TK-05", AT(.field = field),
             "expected text without control tokens; found %s, kept as plain text; do: %s",
             quoted(token_bytes(c->t, typed), c->t->tokens[typed].len), "remove it from the text if it is not meant");
    }
    tokenizer_encode(c->t, c->text.p, c->text.len, false, c->out);
    c->text.len = 0;
}

static void chat_control(Chat *c, const char *name, int64_t times) {
    if (c->whole) {
        chat_text(c, name, strlen(name));
        return;
    }
    chat_flush(c);
    int32_t id = chat_token(c, name);
    for (int64_t k = 0; k < times && !c->failed; k++) ids_add(c->out, id);
}

static void chat_open(Chat *c, const char *role) {
    chat_control(c, "<|im_start|>", 1);
    chat_text(c, role, strlen(role));
    chat_text(c, "\n", 1);
}

static void chat_walk(Chat *c, const Message *messages, int n, bool add_generation_prompt) {
    static const char help[] = "You are a helpful assistant.";
    if (n && strcmp(messages[0].role, "system")) {
        chat_open(c, "system");
        chat_text(c, help, sizeof help - 1);
        chat_control(c, "<|im_end|>", 1);
        chat_text(c, "\n", 1);
    }
    for (c->message = 0; c->message < n; c->message++) {
        const Message *m = messages + c->message;
        chat_open(c, m->role);
        Turn *turn = c->turns && c->turns[c->message].apart ? &c->turns[c->message] : NULL;
        if (turn) chat_flush(c), turn->first = c->out->n;
        for (const Part *p = m->parts; p < m->parts + m->n_parts; p++) {
            if (p->image < 0) {
                chat_text(c, p->text, p->len);
                continue;
            }
            chat_control(c, "<|vision_start|>", 1);
            chat_control(c, "<|image_pad|>", c->whole ? 1 : chat_image_tokens(c, p->image));
            chat_control(c, "<|vision_end|>", 1);
        }
        chat_control(c, "<|im_end|>", 1);
        if (turn) chat_flush(c), turn->last = c->out->n;
        chat_text(c, "\n", 1);
    }
    if (add_generation_prompt) chat_open(c, "assistant");
}

void chat_render(const Message *messages, int n, bool add_generation_prompt, Text *out) {
    Chat c = {.text = *out, .whole = true};
    chat_walk(&c, messages, n, add_generation_prompt);
    *out = c.text;
}

bool chat_encode_turns(const Tokenizer *t, const Message *messages, int n, bool add_generation_prompt,
                       const int64_t *image_tokens, int n_images, bool trust_text, Turn *turns, Ids *out, Err *e) {
    static const char *const names[] = {"<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|image_pad|>",
                                        "<|vision_end|>"};
    Chat c = {.t = t, .image_tokens = image_tokens, .n_images = n_images, .turns = turns, .out = out, .e = e};
    int64_t before = out->n;
    c.whole = trust_text;
    for (size_t k = 0; trust_text && k < (n_images ? COUNT(names) : 2); k++) chat_token(&c, names[k]);
    chat_walk(&c, messages, n, add_generation_prompt);
    chat_flush(&c);
    text_free(&c.text);
    if (c.failed) out->n = before;
    return !c.failed;
}

bool chat_encode(const Tokenizer *t, const Message *messages, int n, bool add_generation_prompt,
                 const int64_t *image_tokens, int n_images, bool trust_text, Ids *out, Err *e) {
    return chat_encode_turns(t, messages, n, add_generation_prompt, image_tokens, n_images, trust_text, NULL, out, e);
}

// As chat_walk, for texts and pictures.
const char chat_template[] =
    "{%- if messages[0]['role'] != 'system' -%}\n"
    "<|im_start|>system\n"
    "{{ 'You are a helpful assistant.' }}<|im_end|>{{ '\n"
    "' }}\n"
    "{%- endif -%}\n"
    "{%- for m in messages -%}\n"
    "<|im_start|>{{ m['role'] + '\n"
    "' }}\n"
    "{%- if m['content'] is string -%}{{ m['content'] }}\n"
    "{%- else -%}\n"
    "{%- for part in m['content'] -%}\n"
    "{%- if part['type'] == 'image' or 'image' in part -%}<|vision_start|><|image_pad|><|vision_end|>\n"
    "{%- elif 'text' in part -%}{{ part['text'] }}\n"
    "{%- endif -%}\n"
    "{%- endfor -%}\n"
    "{%- endif -%}\n"
    "<|im_end|>{{ '\n"
    "' }}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}<|im_start|>assistant{{ '\n"
    "' }}{%- endif -%}";

// sha256 of templates that render as chat_walk does: that of Qwen2.5-VL, and the one above (rendered like the first on
// 10,000 random conversations).
static const char *const known_templates[] = {
    "a0bc6f6fc7a29a80017a433e8f03a1cc1236e838a944a2d034295a60c4f2fddb",
    "1eb6d1c6cb6e05a42508527b5da8cf982811dc4add88a5e5f16d3bb3f326f73a",
};

static void template_judge(const char *path, const char *text, size_t len) {
    char hash[65];
    sha256_hex(text, len, hash);
    for (size_t k = 0; k < COUNT(known_templates); k++)
        if (!strcmp(hash, known_templates[k])) return;
    warn("E-CF-05", AT(.file = path, .field = "chat_template"),
         "expected the chat template of Qwen2.5-VL; found another (sha256 %.16s...); do: compare the two, since "
         "templates of files are never run and the built-in one is used",
         hash);
}

bool chat_template_check(const char *dir, Err *e) {
    static const char *const files[] = {"chat_template.jinja", "chat_template.json", "tokenizer_config.json"};
    for (int k = 0; k < 3; k++) {
        char path[1200], *text;
        size_t len;
        JsonDoc doc = {0};
        if (!path_join(path, sizeof path, dir, files[k], e)) return false;
        if (!file_exists(path)) continue;
        if (k == 0) {
            if (!file_read(path, LIMIT_CONFIG_BYTES, "E-JS-01", &text, &len, e)) return false;
            template_judge(path, text, len);
            free(text);
            return true;
        }
        if (!json_read(&doc, path, LIMIT_CONFIG_BYTES, (JsonOptions){.refuse_duplicates = true}, e)) return false;
        const Json *v = json_get(doc.root, "chat_template");
        bool found = v && v->type == JSON_STRING;
        if (found) template_judge(path, v->str, v->len);
        json_free(&doc);
        if (found) return true;
    }
    return true;
}
