// json.c - JSON (RFC 8259) in and out.
//
// What it is:  an iterative parser over a length-delimited buffer that builds a tree in a few large blocks of memory,
//              in linear time; typed access to fields with messages that name the place; the canonical printer.
// What it is not: lenient. It repairs nothing; a message says what was expected, what stands there, what to do.
// Read before: base.h.  Read next: safetensors.c, ../model.c (config_load).
#define _GNU_SOURCE
#include "../surgr1.h"
#include <float.h>
#include <inttypes.h>
#include <sys/random.h>

// ========================================================================================================= printer

// The tree is walked with a stack of the open containers' current children, on the heap and as deep as the tree.
void json_print(Text *t, const Json *v) {
    const Json **open = NULL; // open[k]: the value being printed at level k
    size_t depth = 0, cap = 0;
    for (;;) {
        if (depth && v->key) text_add_json_string(t, v->key, v->key_len), text_add(t, ":", 1);
        switch (v->type) {
        case JSON_NULL: text_add(t, "null", 4); break;
        case JSON_FALSE: text_add(t, "false", 5); break;
        case JSON_TRUE: text_add(t, "true", 4); break;
        case JSON_STRING: text_add_json_string(t, v->str, v->len); break;
        case JSON_NUMBER:
            if (v->integer) {
                text_add(t, v->str, v->len);
            } else {
                size_t start = t->len;
                text_add_json_number(t, v->number);
                if (!strpbrk(t->p + start, ".e")) text_add(t, ".0", 2); // what was no integer stays none
            }
            break;
        case JSON_ARRAY:
        case JSON_OBJECT: text_add(t, v->type == JSON_ARRAY ? "[" : "{", 1); break;
        }
        if (v->child) { // down
            if (depth == cap) cap = cap ? 2 * cap : 16, open = grow_or_die(open, cap, sizeof *open, "JSON levels");
            open[depth++] = v, v = v->child;
            continue;
        }
        if (v->type >= JSON_ARRAY) text_add(t, v->type == JSON_ARRAY ? "]" : "}", 1);
        while (depth && !v->next) v = open[--depth], text_add(t, v->type == JSON_ARRAY ? "]" : "}", 1); // up
        if (!depth) break;
        text_add(t, ",", 1), v = v->next;
    }
    free(open);
}

const char *json_shown(const Json *v) {
    if (!v) return "none";
    switch (v->type) {
    case JSON_NULL: return "null";
    case JSON_FALSE: return "false";
    case JSON_TRUE: return "true";
    case JSON_ARRAY: return "an array";
    case JSON_OBJECT: return "an object";
    case JSON_STRING: break;
    case JSON_NUMBER:
        if (v->len <= 40) return v->str;
    }
    return quoted(v->str, v->len);
}

// ========================================================================================================== blocks
// All memory of a tree: nodes grow from a block's front, strings from its back.

typedef struct JsonBlock {
    struct JsonBlock *next;
    size_t front, back; // free bytes are [front, back) of data
    _Alignas(16) char data[];
} JsonBlock;

enum { FIRST_BLOCK = 4096 - sizeof(JsonBlock), LARGEST_BLOCK = 1 << 20 };

static JsonBlock *block_with(JsonDoc *doc, size_t bytes) {
    JsonBlock *b = doc->blocks;
    if (b && b->back - b->front >= bytes) return b;
    size_t size = !b ? FIRST_BLOCK : b->next ? LARGEST_BLOCK : 65536;
    if (size < bytes) size = bytes;
    b = malloc(sizeof *b + size);
    if (!b) return NULL;
    *b = (JsonBlock){.next = doc->blocks, .front = 0, .back = size};
    return doc->blocks = b;
}

static void *node_memory(JsonDoc *doc, size_t bytes) { // zeroed; bytes is a multiple of 8
    JsonBlock *b = block_with(doc, bytes);
    if (!b) return NULL;
    b->front += bytes;
    return memset(b->data + b->front - bytes, 0, bytes);
}

static char *string_memory(JsonDoc *doc, size_t bytes) {
    JsonBlock *b = block_with(doc, bytes);
    return b ? b->data + (b->back -= bytes) : NULL;
}

void json_free(JsonDoc *doc) {
    for (JsonBlock *b = doc->blocks, *next; b; b = next) next = b->next, free(b);
    *doc = (JsonDoc){0};
}

// ========================================================================================================== parser

typedef struct Level { // one open array or object
    Json *container;
    Json **link; // where its next child is hung in
} Level;

typedef struct Parser {
    const char *text;
    size_t len, pos;
    uint32_t line;
    size_t line_start; // position of the line's first byte
    JsonDoc *doc;
    JsonOptions options;
    Level *levels;
    int depth;
    int64_t values;
    Json **table; // scratch of the search for repeated keys
    size_t table_size;
    uint64_t secret[2]; // of this parse's hash, so that nobody can prepare keys that collide
    Err *e;
} Parser;

// Messages name the place by counting lines up to it: only failures pay for that.
static Where place(const Parser *p, size_t pos, const char *field) {
    if (p->options.by_byte) return AT(.file = p->doc->file, BYTE(p->options.first_byte + pos), .field = field);
    int64_t line = p->options.first_line;
    size_t start = 1 - (size_t)p->options.first_col; // wraps below 0
    for (size_t i = 0; i < pos; i++)
        if (p->text[i] == '\n') line++, start = i + 1;
    return AT(.file = p->doc->file, .line = line, .col = (int64_t)(pos - start) + 1, .field = field);
}

static bool no_memory(Parser *p) {
    return err_set(p->e, "E-ME-01", place(p, p->pos, NULL),
                   "expected memory for the JSON text; found no more; do: close other programs");
}

// What stands at pos, for "found": a whole word or number where there is one, else one byte.
static const char *token_at(const Parser *p, size_t pos) {
    if (pos >= p->len) return "the end of the text";
    size_t n = 0;
    while (pos + n < p->len && n < 65) {
        char c = p->text[pos + n];
        if (!((c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || c == '.' ||
              (n == 0 ? c == '-' || c == '+' : (c == '-' || c == '+') && (p->text[pos + n - 1] | 32) == 'e')))
            break;
        n++;
    }
    return quoted(p->text + pos, n ? n : 1);
}

// A grammar error at pos; the advice gives way to a better one for the usual mistakes.
static bool bad_grammar(Parser *p, const char *expected, const char *advice) {
    static const struct {
        const char *start, *advice;
    } usual[] = {{"/", "remove the comment, JSON has none"},
                 {"#", "remove the comment, JSON has none"},
                 {"'", "use double quotes"},
                 {";", "use a comma"},
                 {"NaN", "write a finite number or null"},
                 {"nan", "write a finite number or null"},
                 {"Inf", "write a finite number or null"},
                 {"inf", "write a finite number or null"},
                 {"True", "write true, false or null in small letters"},
                 {"False", "write true, false or null in small letters"},
                 {"None", "write true, false or null in small letters"}};
    const char *here = p->text + p->pos;
    size_t rest = p->len - p->pos, before = p->pos; // before: where the last thing that is no space ended
    for (size_t i = 0; i < sizeof usual / sizeof *usual; i++)
        if (rest >= strlen(usual[i].start) && !memcmp(here, usual[i].start, strlen(usual[i].start)))
            advice = usual[i].advice;
    while (before && memchr(" \t\r\n", p->text[before - 1], 4)) before--;
    if (!rest) advice = "complete the text, it stops too early";
    else if ((*here == ']' || *here == '}') && before && p->text[before - 1] == ',')
        advice = "remove the comma before it";
    return err_set(p->e, "E-JS-04", place(p, p->pos, NULL), "expected %s; found %s; do: %s", expected,
                   token_at(p, p->pos), advice);
}

static void skip_space(Parser *p) {
    for (; p->pos < p->len; p->pos++) {
        char c = p->text[p->pos];
        if (c == '\n') p->line++, p->line_start = p->pos + 1;
        else if (c != ' ' && c != '\t' && c != '\r') return;
    }
}

// -------------------------------------------------------------------------------------------------- bytes and UTF-8

static bool refuse_encoding(Parser *p, size_t pos, const char *what, const char *advice) {
    return err_set(p->e, "E-JS-03", place(p, pos, NULL), "expected UTF-8 text; found %s; do: %s", what, advice);
}

// UTF-16 and UTF-32 by their byte order marks, or by where the zero bytes of the first characters (ASCII in any JSON
// text) stand; NULL for none of them.
static const char *wide_encoding(const unsigned char *t, size_t n) {
    if (n >= 4 && !memcmp(t, "\0\0\xfe\xff", 4)) return "UTF-32 (big-endian)";
    if (n >= 4 && !memcmp(t, "\xff\xfe\0\0", 4)) return "UTF-32 (little-endian)";
    if (n >= 2 && t[0] == 0xfe && t[1] == 0xff) return "UTF-16 (big-endian)";
    if (n >= 2 && t[0] == 0xff && t[1] == 0xfe) return "UTF-16 (little-endian)";
    if (n >= 4 && !t[0] && !t[1] && !t[2] && t[3]) return "UTF-32 (big-endian)";
    if (n >= 4 && t[0] && !t[1] && !t[2] && !t[3]) return "UTF-32 (little-endian)";
    if (n >= 2 && n % 2 == 0 && !t[0] && t[1] && (n < 4 || (!t[2] && t[3]))) return "UTF-16 (big-endian)";
    if (n >= 2 && n % 2 == 0 && t[0] && !t[1] && (n < 4 || (t[2] && !t[3]))) return "UTF-16 (little-endian)";
    return NULL;
}

static bool check_utf8(Parser *p) {
    const unsigned char *t = (const unsigned char *)p->text;
    const char *wide = wide_encoding(t, p->len);
    if (wide) return refuse_encoding(p, 0, wide, "convert the file to UTF-8");
    size_t bad;
    if (utf8_valid(p->text, p->len, &bad)) return true;
    unsigned char c = t[bad], next = bad + 1 < p->len ? t[bad + 1] : 0;
    bool continued = next >= 0x80 && next <= 0xbf, at_end = bad + 1 >= p->len;
    const char *why = "";
    if (utf8_complete(p->text, p->len) == bad) why = " (the text ends inside a character)";
    else if (c >= 0xa0 && !continued && !at_end) why = " (looks like Latin-1)";
    else if (c == 0xc0 || c == 0xc1 || ((c == 0xe0 || c == 0xf0) && continued)) why = " (an overlong form)";
    else if (c == 0xed && continued) why = " (a surrogate)";
    else if (c >= 0xf4 && continued) why = " (beyond U+10FFFF)";
    else if (c <= 0xbf) why = " (a continuation byte alone)";
    char what[64];
    snprintf(what, sizeof what, "byte 0x%02X%s", c, why);
    return refuse_encoding(p, bad, what, "convert the file to UTF-8");
}

static bool check_bom(Parser *p) { // a byte order mark at byte 0 of the file, not of a later line
    if (p->len < 3 || memcmp(p->text, "\xef\xbb\xbf", 3) || p->options.first_line != 1 || p->options.first_col != 1)
        return true;
    if (p->options.refuse_bom)
        return err_set(p->e, "E-JS-02", place(p, 0, NULL), "expected no byte order mark; found %s; do: %s", "EF BB BF",
                       "save it as UTF-8 without BOM");
    warn("E-JS-02", place(p, 0, NULL), "expected no byte order mark; found EF BB BF, skipped; do: %s",
         "save the file as UTF-8 without BOM");
    p->pos = 3;
    return true;
}

// ---------------------------------------------------------------------------------------------------------- strings

// The four hex digits at pos, or -1.
static int32_t hex4(const Parser *p, size_t pos) {
    if (p->len - pos < 4) return -1;
    int32_t v = 0;
    for (size_t i = 0; i < 4; i++) {
        char c = p->text[pos + i];
        int d = c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1;
        if (d < 0) return -1;
        v = v << 4 | d;
    }
    return v;
}

static bool bad_escape(Parser *p, size_t pos, const char *expected, size_t shown) {
    if (pos + shown > p->len) shown = p->len > pos ? p->len - pos : 0;
    return err_set(p->e, "E-JS-06", place(p, pos, NULL), "expected %s; found %s; do: re-export the text", expected,
                   shown ? quoted(p->text + pos, shown) : "the end of the text");
}

// The escape at pos (a backslash) as bytes into out; advances pos past it.
static bool take_escape(Parser *p, char **out) {
    static const char simple[] = "\"\"\\\\//b\bf\fn\nr\rt\t"; // pairs: the letter, its byte
    size_t at = p->pos + 1;
    char c = at < p->len ? p->text[at] : 0;
    for (const char *s = simple; c && *s; s += 2)
        if (*s == c) {
            *(*out)++ = s[1], p->pos += 2;
            return true;
        }
    if (c != 'u') return bad_escape(p, at, "one of \" \\ / b f n r t u after the backslash", 1);
    int32_t code = hex4(p, at + 1);
    if (code < 0) return bad_escape(p, at + 1, "four hex digits after \\u", 4);
    char expected[64];
    if (code >= 0xdc00 && code <= 0xdfff) {
        snprintf(expected, sizeof expected, "a high surrogate before \\u%04x", (unsigned)code);
        return bad_escape(p, p->pos, expected, 6);
    }
    p->pos += 6;
    if (code >= 0xd800 && code <= 0xdbff) {
        bool another = p->len - p->pos >= 6 && p->text[p->pos] == '\\' && p->text[p->pos + 1] == 'u';
        int32_t low = another ? hex4(p, p->pos + 2) : -1;
        if (low < 0xdc00 || low > 0xdfff) {
            snprintf(expected, sizeof expected, "a low surrogate after \\u%04x", (unsigned)code);
            return bad_escape(p, p->pos, expected, low >= 0 ? 6 : 1);
        }
        code = 0x10000 + ((code & 0x3ff) << 10 | (low & 0x3ff)), p->pos += 6;
    }
    *out += utf8_put(*out, (uint32_t)code);
    return true;
}

// The string at pos (its opening quote). It is measured first: decoded, it is never longer than as written.
static bool take_string(Parser *p, const char **str, size_t *len) {
    size_t start = p->pos + 1, end = start;
    bool escaped = false;
    for (; end < p->len && p->text[end] != '"'; end++) {
        if (p->text[end] == '\\') escaped = true, end++;
        else if ((unsigned char)p->text[end] < 0x20) {
            p->pos = end;
            return bad_grammar(p, "no bare control character in a string", "write it as \\u and four hex digits");
        }
    }
    if (end >= p->len) {
        p->pos = start;
        if (escaped) { // the text may end because an escape is broken: say that first
            char *scratch = string_memory(p->doc, p->len - start + 1);
            if (!scratch) return no_memory(p);
            while (p->pos < p->len)
                if (p->text[p->pos] != '\\') p->pos++;
                else if (!take_escape(p, &scratch)) return false;
        }
        p->pos = p->len;
        return bad_grammar(p, "the closing quote of a string", "");
    }
    char *out = string_memory(p->doc, end - start + 1);
    if (!out) return no_memory(p);
    *str = out;
    if (!escaped) {
        memcpy(out, p->text + start, end - start);
        out += end - start;
    } else {
        for (p->pos = start; p->pos < end;)
            if (p->text[p->pos] != '\\') *out++ = p->text[p->pos++];
            else if (!take_escape(p, &out)) return false;
    }
    *out = 0;
    *len = (size_t)(out - *str);
    p->pos = end + 1;
    return true;
}

// ---------------------------------------------------------------------------------------------------------- numbers

static bool digit_at(const Parser *p) { return p->pos < p->len && p->text[p->pos] >= '0' && p->text[p->pos] <= '9'; }

static bool take_digits(Parser *p, const char *expected) {
    if (!digit_at(p)) return bad_grammar(p, expected, "complete the number");
    while (digit_at(p)) p->pos++;
    return true;
}

static bool take_number(Parser *p, Json *v) {
    size_t start = p->pos;
    bool negative = p->text[p->pos] == '-', whole = true;
    p->pos += negative;
    size_t digits = p->pos;
    if (!take_digits(p, "a digit after \"-\"")) return false;
    if (p->text[digits] == '0' && p->pos > digits + 1) {
        p->pos = start;
        return bad_grammar(p, "a number without leading zeros", "remove the zeros");
    }
    if (p->pos < p->len && p->text[p->pos] == '.') {
        whole = false, p->pos++;
        if (!take_digits(p, "a digit after \".\"")) return false;
    }
    if (p->pos < p->len && (p->text[p->pos] | 32) == 'e') {
        whole = false, p->pos++;
        if (p->pos < p->len && (p->text[p->pos] == '+' || p->text[p->pos] == '-')) p->pos++;
        if (!take_digits(p, "a digit in the exponent")) return false;
    }
    v->len = p->pos - start;
    char *copy = string_memory(p->doc, v->len + 1);
    if (!copy) return no_memory(p);
    memcpy(copy, p->text + start, v->len), copy[v->len] = 0;
    v->str = copy;
    if (whole) { // an int64, when it fits
        v->integer = true;
        for (const char *d = copy + negative; *d && v->integer; d++)
            v->integer = mul_ok(v->i, 10, &v->i) && add_ok(v->i, negative ? '0' - *d : *d - '0', &v->i);
        if (v->integer && v->i) {
            v->number = (double)v->i;
            return true;
        }
    }
    // strtod on the bounded copy: correctly rounded; the locale is never set, so "." is the point. An underflow is 0.
    v->number = strtod(copy, NULL);
    if (!v->integer) v->i = 0;
    if (isfinite(v->number)) return true;
    return err_set(
        p->e, "E-JS-07", place(p, start, NULL),
        "expected a number that a double can hold (up to 1.8e308); found %.40s%s; do: write a smaller number", copy,
        v->len > 40 ? "..." : "");
}

// ---------------------------------------------------------------------------------------------------- repeated keys

static uint64_t hash_bytes(const uint64_t secret[2], const char *bytes, size_t len) {
    uint64_t h = secret[0] ^ len;
    for (size_t i = 0; i < len; i += 8) {
        uint64_t word = 0;
        memcpy(&word, bytes + i, len - i < 8 ? len - i : 8);
        unsigned __int128 product = (unsigned __int128)(h ^ word) * (secret[1] | 1);
        h = (uint64_t)product ^ (uint64_t)(product >> 64);
    }
    return h ^ h >> 32;
}

// Where the key of an object's member begins: back from the value over the colon to the quote that is not escaped.
static size_t key_position(const Parser *p, const Json *member) {
    size_t i = member->byte;
    while (p->text[i] != '"' || i == member->byte) i--; // the closing quote
    for (;;) {
        while (p->text[--i] != '"') {}
        size_t slashes = 0;
        while (p->text[i - 1 - slashes] == '\\') slashes++;
        if (slashes % 2 == 0) return i;
    }
}

// "a.b[3].key" of a member of the innermost open container.
static const char *member_path(const Parser *p, const Json *member, char *out, size_t size) {
    Text t = {0};
    for (int k = 1; k < p->depth; k++) {
        const Json *parent = p->levels[k - 1].container, *v = p->levels[k].container;
        if (parent->type == JSON_ARRAY) text_addf(&t, "[%" PRIu32 "]", parent->count - 1);
        else text_addf(&t, "%s%s", t.len ? "." : "", v->key);
    }
    text_addf(&t, "%s%s", t.len ? "." : "", member->key);
    snprintf(out, size, "%s", t.p);
    text_free(&t);
    return out;
}

static bool repeated(Parser *p, const Json *first, const Json *second) {
    char path[300], found[64];
    member_path(p, second, path, sizeof path);
    Where at = place(p, key_position(p, second), path), before = place(p, key_position(p, first), NULL);
    if (at.has_byte) snprintf(found, sizeof found, "at byte %" PRId64, before.byte);
    else if (at.line == before.line) snprintf(found, sizeof found, "in column %" PRId64, before.col);
    else snprintf(found, sizeof found, "on line %" PRId64, before.line);
    return err_set(p->e, "E-JS-08", at, "expected each key once; found it first %s; do: delete one of the two", found);
}

static bool same_key(const Json *a, const Json *b) {
    return a->key_len == b->key_len && !memcmp(a->key, b->key, a->key_len);
}

static bool check_keys(Parser *p, const Json *object) {
    if (object->count <= 8) { // most objects: compare all pairs
        for (Json *b = object->child; b; b = b->next)
            for (Json *a = object->child; a != b; a = a->next)
                if (same_key(a, b)) return repeated(p, a, b);
        return true;
    }
    size_t size = 32;
    while (size < 2 * (size_t)object->count) size *= 2;
    if (size > p->table_size) {
        free(p->table);
        p->table = malloc(size * sizeof *p->table), p->table_size = p->table ? size : 0;
        if (!p->table) return no_memory(p);
    }
    memset(p->table, 0, size * sizeof *p->table);
    for (Json *v = object->child; v; v = v->next) {
        size_t slot = (size_t)hash_bytes(p->secret, v->key, v->key_len) & (size - 1);
        for (; p->table[slot]; slot = (slot + 1) & (size - 1))
            if (same_key(p->table[slot], v)) return repeated(p, p->table[slot], v);
        p->table[slot] = v;
    }
    return true;
}

// ---------------------------------------------------------------------------------------------------- the machine

static bool take_word(Parser *p, const char *word, JsonType type, Json *v) {
    size_t n = strlen(word);
    if (p->len - p->pos < n || memcmp(p->text + p->pos, word, n)) return false;
    v->type = type, p->pos += n;
    return true;
}

static bool open_container(Parser *p, Json *v, JsonType type) {
    if (p->depth == p->options.max_depth)
        return err_set(p->e, "E-JS-05", place(p, p->pos, NULL),
                       "expected at most %d nested levels; found level %d; do: flatten the file", p->depth,
                       p->depth + 1);
    v->type = type, p->pos++;
    p->levels[p->depth++] = (Level){.container = v, .link = &v->child};
    return true;
}

// The value at pos, but for the children of an array or object, which is left open.
static bool take_value(Parser *p, Json *v, const char *expected) {
    if (p->pos >= p->len) return bad_grammar(p, expected, "");
    char c = p->text[p->pos];
    switch (c) {
    case '{': return open_container(p, v, JSON_OBJECT);
    case '[': return open_container(p, v, JSON_ARRAY);
    case '"': v->type = JSON_STRING; return take_string(p, &v->str, &v->len);
    case 't':
        if (take_word(p, "true", JSON_TRUE, v)) return true;
        break;
    case 'f':
        if (take_word(p, "false", JSON_FALSE, v)) return true;
        break;
    case 'n':
        if (take_word(p, "null", JSON_NULL, v)) return true;
        break;
    default:
        if (c != '-' && (c < '0' || c > '9')) break;
        v->type = JSON_NUMBER;
        return take_number(p, v);
    }
    return bad_grammar(p, expected, "write a JSON value");
}

// Makes the next value's node, hangs it into the innermost container, and reads it. In an object the key comes first.
static bool take_member(Parser *p, const char *expected_key, const char *expected_value) {
    if (++p->values > LIMIT_JSON_VALUES)
        return err_set(p->e, "E-JS-01", place(p, p->pos, NULL),
                       "expected at most %" PRId64 " values; found more; do: %s", LIMIT_JSON_VALUES,
                       "check that this is the right file");
    Json *v = node_memory(p->doc, sizeof *v);
    if (!v) return no_memory(p);
    Level *in = p->depth ? &p->levels[p->depth - 1] : NULL;
    if (in && in->container->type == JSON_OBJECT) {
        if (p->pos >= p->len || p->text[p->pos] != '"')
            return bad_grammar(p, expected_key, "write keys in double quotes");
        if (!take_string(p, &v->key, &v->key_len)) return false;
        skip_space(p);
        if (p->pos >= p->len || p->text[p->pos] != ':')
            return bad_grammar(p, "\":\" after the key", "put a colon between key and value");
        p->pos++;
        skip_space(p);
        expected_value = "a value after \":\"";
    }
    v->line = p->line, v->col = (uint32_t)(p->pos - p->line_start) + 1, v->byte = p->pos;
    if (in) *in->link = v, in->link = &v->next, in->container->count++;
    else p->doc->root = v;
    return take_value(p, v, expected_value);
}

static bool parse(Parser *p) {
    skip_space(p);
    if (!take_member(p, "", "a JSON value")) return false;
    while (p->depth) {
        Level *in = &p->levels[p->depth - 1];
        bool object = in->container->type == JSON_OBJECT, first = !in->container->count;
        skip_space(p);
        char c = p->pos < p->len ? p->text[p->pos] : 0;
        if (c == (object ? '}' : ']')) {
            p->pos++;
            if (object && p->options.refuse_duplicates && !check_keys(p, in->container)) return false;
            p->depth--;
            continue;
        }
        if (!first) {
            if (c != ',')
                return bad_grammar(p, object ? "\",\" or \"}\"" : "\",\" or \"]\"",
                                   c == ']' || c == '}' ? "close with the bracket that fits" : "add the missing comma");
            p->pos++;
            skip_space(p);
        }
        if (!take_member(p, first ? "a string key or \"}\" after \"{\"" : "a string key after \",\"",
                         first ? "a value or \"]\" after \"[\"" : "a value after \",\""))
            return false;
    }
    skip_space(p);
    return p->pos == p->len || bad_grammar(p, "nothing after the value", "remove what follows");
}

bool json_parse(JsonDoc *doc, const char *text, size_t len, const char *file, JsonOptions options, Err *e) {
    *doc = (JsonDoc){.by_byte = options.by_byte, .first_byte = options.first_byte};
    if (!options.max_depth) options.max_depth = (int)LIMIT_JSON_DEPTH;
    if (!options.first_line) options.first_line = 1;
    if (!options.first_col) options.first_col = 1;
    CHECK(options.max_depth > 0 && options.max_depth <= LIMIT_JSON_DEPTH, "JSON depth %d", options.max_depth);
    Parser p = {.text = text, .len = len, .line = options.first_line, .doc = doc, .options = options, .e = e};
    p.line_start = 1 - (size_t)options.first_col; // wraps below 0
    bool ok = len <= UINT32_MAX;
    if (!ok)
        err_set(e, "E-JS-01", AT(.file = file, BYTE(0)), "expected at most 4 GiB of JSON; found %zu bytes; do: %s", len,
                "check that this is the right file");
    ok = ok && (doc->file = string_memory(doc, strlen(file) + 1)) != NULL;
    if (ok) memcpy(doc->file, file, strlen(file) + 1);
    ok = ok && (p.levels = node_memory(doc, (size_t)options.max_depth * sizeof *p.levels)) != NULL;
    if (!ok) no_memory(&p);
    if (getrandom(p.secret, sizeof p.secret, GRND_NONBLOCK) != (ssize_t)sizeof p.secret) // early at boot: ASLR must do
        p.secret[0] ^= (uintptr_t)&p, p.secret[1] ^= (uintptr_t)doc->blocks;
    ok = ok && check_utf8(&p) && check_bom(&p) && parse(&p);
    free(p.table);
    if (!ok) json_free(doc);
    return ok;
}

bool json_read(JsonDoc *doc, const char *path, int64_t limit, JsonOptions options, Err *e) {
    *doc = (JsonDoc){0};
    char *text;
    size_t size;
    if (!file_read(path, limit, "E-JS-01", &text, &size, e)) return false;
    bool ok = json_parse(doc, text, size, path, options, e);
    free(text);
    return ok;
}

// ========================================================================================================== access

const Json *json_get(const Json *object, const char *key) {
    if (!object || object->type != JSON_OBJECT) return NULL;
    size_t n = strlen(key);
    for (const Json *v = object->child; v; v = v->next)
        if (v->key_len == n && !memcmp(v->key, key, n)) return v;
    return NULL;
}

bool json_is(const Json *v, const char *text) {
    return v && v->type == JSON_STRING && v->len == strlen(text) && !memcmp(v->str, text, v->len);
}

Where json_at(const JsonDoc *doc, const Json *v, const char *field) {
    if (!v) return AT(.file = doc->file, .field = field);
    if (doc->by_byte) return AT(.file = doc->file, BYTE(doc->first_byte + v->byte), .field = field);
    return AT(.file = doc->file, .line = v->line, .col = v->col, .field = field);
}

// A value in a message: numbers as written, strings quoted, the rest by name.
static const char *describe(const Json *v, char *buf, size_t size) {
    static const char *const names[] = {"null", "false", "true", "", "", "an array", "an object"};
    if (v->type == JSON_NUMBER) snprintf(buf, size, "%.40s%s", v->str, v->len > 40 ? "..." : "");
    else if (v->type == JSON_STRING) snprintf(buf, size, "the string %s", quoted(v->str, v->len));
    else snprintf(buf, size, "%s", names[v->type]);
    return buf;
}

// Finds a field for a typed reader. *done: the reader returns *ok at once. null counts as absent.
static const Json *field(const JsonDoc *d, const Json *object, const char *name, bool required, const char *expected,
                         bool *ok, Err *e) {
    const Json *v = json_get(object, name);
    *ok = true;
    if (v && (v->type != JSON_NULL || required)) return v;
    if (required)
        *ok = err_set(e, "E-CF-02", json_at(d, object, name), "expected %s; found no such field; do: %s", expected,
                      "use the file that came with the weights");
    return NULL;
}

static bool bad_field(const JsonDoc *d, const Json *v, const char *name, const char *code, const char *expected,
                      const char *todo, Err *e) {
    char found[400];
    return err_set(e, code, json_at(d, v, name), "expected %s; found %s; do: %s", expected,
                   describe(v, found, sizeof found), todo);
}

bool json_int(const JsonDoc *d, const Json *object, const char *name, bool required, int64_t min, int64_t max,
              int64_t *out, Err *e) {
    char expected[80], todo[80];
    bool ok;
    snprintf(expected, sizeof expected, "an integer %" PRId64 "..%" PRId64, min, max);
    const Json *v = field(d, object, name, required, expected, &ok, e);
    if (!v) return ok;
    if (v->type == JSON_NUMBER && !v->integer && strpbrk(v->str, ".eE")) { // advise the integer part, kept in the range
        int64_t near = v->number <= (double)min ? min : v->number >= (double)max ? max : (int64_t)v->number;
        snprintf(todo, sizeof todo, "write %" PRId64, near);
        return bad_field(d, v, name, "E-JS-07", expected, todo, e);
    }
    if (v->type != JSON_NUMBER || !v->integer || v->i < min || v->i > max)
        return bad_field(d, v, name, "E-CF-02", expected, "use a value in this range", e);
    *out = v->i;
    return true;
}

bool json_double(const JsonDoc *d, const Json *object, const char *name, bool required, double min, double max,
                 double *out, Err *e) {
    char expected[80];
    bool ok;
    snprintf(expected, sizeof expected, "a number %.10g..%.10g", min, max);
    const Json *v = field(d, object, name, required, expected, &ok, e);
    if (!v) return ok;
    if (v->type != JSON_NUMBER || !(v->number >= min && v->number <= max))
        return bad_field(d, v, name, "E-CF-02", expected, "use a value in this range", e);
    *out = v->number;
    return true;
}

bool json_bool(const JsonDoc *d, const Json *object, const char *name, bool required, bool *out, Err *e) {
    bool ok;
    const Json *v = field(d, object, name, required, "true or false", &ok, e);
    if (!v) return ok;
    if (v->type != JSON_TRUE && v->type != JSON_FALSE)
        return bad_field(d, v, name, "E-CF-02", "true or false", "write true or false", e);
    *out = v->type == JSON_TRUE;
    return true;
}
