// fuzz_json.c - libFuzzer harness of the JSON parser (make fuzz-smoke; or replay stored inputs as a plain program).
//
// What it asserts beyond "no sanitizer finding":
//   - what is accepted is printed, parses again to the same tree, and prints to the same bytes;
//   - accepting and refusing equal a second validator, written here from the grammar of RFC 8259 as one table;
//   - a refusal has code, expected, found and remedy, and leaves no tree behind.
// Read before: ../io/json.c.
#include "../surgr1.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

// ------------------------------------------------------------------------------------------- the second validator
// A pushdown automaton over classes of bytes. It knows nothing of values: only whether the text is JSON.

enum Class {
    SPACE,
    QUOTE,
    BACKSLASH,
    OPEN_ARRAY,
    CLOSE_ARRAY,
    OPEN_OBJECT,
    CLOSE_OBJECT,
    COMMA,
    COLON,
    MINUS,
    PLUS,
    POINT,
    ZERO,
    NONZERO,
    EXPONENT,
    OTHER
};
static enum Class class_of(uint8_t c) {
    switch (c) {
    case ' ':
    case '\t':
    case '\n':
    case '\r': return SPACE;
    case '"': return QUOTE;
    case '\\': return BACKSLASH;
    case '[': return OPEN_ARRAY;
    case ']': return CLOSE_ARRAY;
    case '{': return OPEN_OBJECT;
    case '}': return CLOSE_OBJECT;
    case ',': return COMMA;
    case ':': return COLON;
    case '-': return MINUS;
    case '+': return PLUS;
    case '.': return POINT;
    case '0': return ZERO;
    case 'e':
    case 'E': return EXPONENT;
    default: return c >= '1' && c <= '9' ? NONZERO : OTHER;
    }
}

// States between tokens.
enum State { VALUE, VALUE_OR_CLOSE, KEY, KEY_OR_CLOSE, COLON_NEXT, AFTER };

// The length of a string token at p (0: none), with its escapes checked.
static size_t string_token(const uint8_t *p, size_t n) {
    unsigned pending_high = 0; // a high surrogate waits for its low one
    for (size_t i = 1; i < n; i++) {
        if (p[i] < 0x20) return 0;
        if (p[i] == '\\' && i + 1 < n && p[i + 1] == 'u') {
            char hex[5] = {0}, *end;
            if (i + 6 > n) return 0;
            memcpy(hex, p + i + 2, 4);
            for (int k = 0; k < 4; k++)
                if (!strchr("0123456789abcdefABCDEF", hex[k]) || !hex[k]) return 0;
            unsigned long unit = strtoul(hex, &end, 16);
            if ((unit >= 0xdc00 && unit <= 0xdfff) != pending_high) return 0;
            pending_high = unit >= 0xd800 && unit <= 0xdbff;
            i += 5;
            continue;
        }
        if (pending_high) return 0;
        if (p[i] == '"') return i + 1;
        if (p[i] == '\\' && (++i >= n || !p[i] || !strchr("\"\\/bfnrt", p[i]))) return 0;
    }
    return 0;
}

// The length of a number token at p (0: none): the longest match, which must not stop inside a number.
static size_t number_token(const uint8_t *p, size_t n) {
    enum { START, SIGN, LEADING_ZERO, INTEGER, DOT, FRACTION, E, E_SIGN, POWER, BAD };
    static const uint8_t next[BAD][16] = {
        // one row a state; columns: MINUS PLUS POINT ZERO NONZERO EXPONENT (the others are BAD)
        [START] = {[MINUS] = SIGN, [ZERO] = LEADING_ZERO, [NONZERO] = INTEGER},
        [SIGN] = {[ZERO] = LEADING_ZERO, [NONZERO] = INTEGER},
        [LEADING_ZERO] = {[POINT] = DOT, [EXPONENT] = E, [ZERO] = BAD, [NONZERO] = BAD},
        [INTEGER] = {[ZERO] = INTEGER, [NONZERO] = INTEGER, [POINT] = DOT, [EXPONENT] = E},
        [DOT] = {[ZERO] = FRACTION, [NONZERO] = FRACTION},
        [FRACTION] = {[ZERO] = FRACTION, [NONZERO] = FRACTION, [EXPONENT] = E},
        [E] = {[MINUS] = E_SIGN, [PLUS] = E_SIGN, [ZERO] = POWER, [NONZERO] = POWER},
        [E_SIGN] = {[ZERO] = POWER, [NONZERO] = POWER},
        [POWER] = {[ZERO] = POWER, [NONZERO] = POWER},
    };
    size_t i = 0;
    int state = START;
    while (i < n) {
        int to = next[state][class_of(p[i])];
        if (to == BAD) return 0;
        if (to == START) break;
        state = to, i++;
    }
    if (state != LEADING_ZERO && state != INTEGER && state != FRACTION && state != POWER) return 0;
    char *copy = malloc(i + 1);
    memcpy(copy, p, i), copy[i] = 0;
    bool finite = isfinite(strtod(copy, NULL));
    free(copy);
    return finite ? i : 0;
}

static bool utf8_by_pattern(const uint8_t *p, size_t n) {
    for (size_t i = 0; i < n;) {
        int k = p[i] < 0x80 ? 1 : p[i] >> 5 == 6 ? 2 : p[i] >> 4 == 14 ? 3 : p[i] >> 3 == 30 ? 4 : 0;
        if (!k || i + (size_t)k > n) return false;
        uint32_t c = k == 1 ? p[i] : p[i] & (0x7fu >> k);
        for (int j = 1; j < k; j++) {
            if (p[i + (size_t)j] >> 6 != 2) return false;
            c = c << 6 | (p[i + (size_t)j] & 63u);
        }
        static const uint32_t smallest[5] = {0, 0, 0x80, 0x800, 0x10000};
        if (c < smallest[k] || (c >= 0xd800 && c < 0xe000) || c > 0x10ffff) return false;
        i += (size_t)k;
    }
    return true;
}

static bool valid(const uint8_t *p, size_t n, int max_depth) {
    char stack[64];
    int depth = 0;
    enum State state = VALUE;
    if (!utf8_by_pattern(p, n)) return false;
    if (n >= 3 && !memcmp(p, "\xef\xbb\xbf", 3)) p += 3, n -= 3;
    for (size_t i = 0; i < n;) {
        enum Class c = class_of(p[i]);
        bool want_value = state == VALUE || state == VALUE_OR_CLOSE;
        size_t token = 1;
        if (c == SPACE) {
            i++;
            continue;
        }
        if (state == AFTER && depth == 0) return false;
        if (want_value && (c == OPEN_ARRAY || c == OPEN_OBJECT)) {
            if (depth == max_depth) return false;
            stack[depth++] = (char)p[i];
            state = c == OPEN_ARRAY ? VALUE_OR_CLOSE : KEY_OR_CLOSE;
        } else if ((c == CLOSE_ARRAY && depth && stack[depth - 1] == '[' &&
                    (state == AFTER || state == VALUE_OR_CLOSE)) ||
                   (c == CLOSE_OBJECT && depth && stack[depth - 1] == '{' &&
                    (state == AFTER || state == KEY_OR_CLOSE))) {
            depth--, state = AFTER;
        } else if (state == AFTER && c == COMMA) {
            state = stack[depth - 1] == '[' ? VALUE : KEY;
        } else if (state == COLON_NEXT && c == COLON) {
            state = VALUE;
        } else if (c == QUOTE && state != AFTER && state != COLON_NEXT) {
            token = string_token(p + i, n - i);
            state = want_value ? AFTER : COLON_NEXT;
        } else if (want_value) {
            static const char *const words[3] = {"true", "false", "null"};
            token = number_token(p + i, n - i);
            for (int k = 0; k < 3 && !token; k++)
                if (n - i >= strlen(words[k]) && !memcmp(p + i, words[k], strlen(words[k]))) token = strlen(words[k]);
            state = AFTER;
        } else return false;
        if (!token) return false;
        i += token;
    }
    return state == AFTER && depth == 0;
}

// ------------------------------------------------------------------------------------------------------ the harness

static bool same_tree(const Json *a, const Json *b) {
    for (;; a = a->next, b = b->next) {
        if (!a || !b) return a == b;
        if (a->type != b->type || a->integer != b->integer || a->count != b->count || a->key_len != b->key_len)
            return false;
        if (a->key_len && memcmp(a->key, b->key, a->key_len)) return false;
        if (a->type == JSON_NUMBER && (memcmp(&a->number, &b->number, sizeof(double)) || a->i != b->i)) return false;
        if (a->type == JSON_STRING && (a->len != b->len || memcmp(a->str, b->str, a->len))) return false;
        if (!same_tree(a->child, b->child)) return false;
    }
}

static void round_trip(const JsonDoc *doc) {
    JsonDoc again;
    Err e = {0};
    Text once = {0}, twice = {0};
    json_print(&once, doc->root);
    CHECK(json_parse(&again, once.p, once.len, "printed", (JsonOptions){0}, &e), "printed JSON is refused: %s", e.code);
    CHECK(same_tree(doc->root, again.root), "printed JSON is another tree");
    json_print(&twice, again.root);
    CHECK(once.len == twice.len && !memcmp(once.p, twice.p, once.len), "printing twice differs");
    text_free(&once), text_free(&twice);
    json_free(&again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    JsonDoc doc;
    Err e = {0};
    const char *text = (const char *)data;
    bool ok = json_parse(&doc, text, size, "fuzz", (JsonOptions){0}, &e);
    CHECK(ok == valid(data, size, 64), "the two validators differ: %s", ok ? "accepted" : e.code);
    if (ok) round_trip(&doc);
    else CHECK(e.code[0] && e.expected[0] && e.found[0] && e.todo[0] && !doc.root && !doc.blocks, "half a refusal");
    json_free(&doc);

    // The same as a safetensors header: less deep, each key once, places in bytes.
    const JsonOptions strict = {
        .max_depth = 4, .refuse_duplicates = true, .refuse_bom = true, .first_byte = 8, .by_byte = true};
    Err strict_e = {0};
    if (json_parse(&doc, text, size, "fuzz", strict, &strict_e)) {
        CHECK(ok, "the strict parser accepts more");
        round_trip(&doc);
        json_free(&doc);
    } else if (strcmp(strict_e.code, "E-ME-01")) CHECK(strict_e.has_byte && strict_e.byte >= 8, "a place without byte");
    return 0;
}
