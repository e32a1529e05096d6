// pattern.c - regular expressions over module paths, as Python's re reads them.
//
// What it is:  the part of re that people use to choose modules (PEFT's target_modules, rank_pattern, alpha_pattern): a
//              compiler into a small program, and a machine that runs all its threads side by side (Thompson 1968).
//              There is no backtracking: a hostile pattern costs at most text x program steps, and text^2 x program
//              with look-ahead.
// What it is not: all of re. Back references, look-behind, flags and possessive quantifiers are refused, and so is what
//              re itself refuses. Whether a quantifier is greedy never changes whether a whole text matches.
// Read before: base.h.  Read next: io/adapter.c, who uses it.
// Source: docs.python.org/3/library/re.html, "Regular Expression Syntax".
#include "../surgr1.h"

enum Op { OP_SET, OP_SPLIT, OP_JUMP, OP_BEGIN, OP_END, OP_EDGE, OP_NO_EDGE, OP_LOOK, OP_MATCH };

// Jumps are relative to their own place, so that a piece of program can be copied and moved.
struct PatternStep {
    enum Op op;
    int32_t x,
        y; // SPLIT: both ways; JUMP: x; LOOK: x behind its sub-program, which begins at the next step, y its number
    bool negative;   // LOOK
    uint32_t set[4]; // SET: which of the 128 ASCII characters
};

// ----------------------------------------------------------------------------------------------------------- compiler

enum { GROUP_DEPTH = 64 };

typedef struct Compiler {
    Pattern *p;
    const char *text;
    size_t len, at;
    int depth;
    const char *fault; // what is wrong with the pattern, for the message
} Compiler;

static bool fault(Compiler *c, const char *what) {
    if (!c->fault) c->fault = what;
    return false;
}

// Room for `n` steps at `place`; what lay there moves back.
static bool steps_insert(Compiler *c, int32_t place, int32_t n) {
    Pattern *p = c->p;
    if (n == 0) return true;
    if (n > LIMIT_PATTERN - p->n) return fault(c, "one that is too large");
    if (p->n + n > p->cap) {
        p->cap = 2 * (p->n + n);
        p->steps = grow_or_die(p->steps, (size_t)p->cap, sizeof *p->steps, "a pattern");
    }
    memmove(p->steps + place + n, p->steps + place, (size_t)(p->n - place) * sizeof *p->steps);
    memset(p->steps + place, 0, (size_t)n * sizeof *p->steps);
    p->n += n;
    return true;
}
static bool step_put(Compiler *c, struct PatternStep s) {
    if (!steps_insert(c, c->p->n, 1)) return false;
    c->p->steps[c->p->n - 1] = s;
    return true;
}

static void set_range(uint32_t set[4], int from, int to) {
    for (int ch = from; ch <= to; ch++) set[ch / 32] |= UINT32_C(1) << ch % 32;
}
static bool set_has(const uint32_t set[4], unsigned char ch) { return ch < 128 && set[ch / 32] >> ch % 32 & 1; }

// \d \w \s and their opposites (of ASCII, as module paths are).
static bool set_class(uint32_t set[4], char letter) {
    uint32_t one[4] = {0};
    switch (letter) {
    case 'd':
    case 'D': set_range(one, '0', '9'); break;
    case 'w':
    case 'W':
        set_range(one, '0', '9'), set_range(one, 'A', 'Z'), set_range(one, 'a', 'z'), set_range(one, '_', '_');
        break;
    case 's':
    case 'S': set_range(one, '\t', '\r'), set_range(one, 28, 32); break; // 28..31 too, as str.isspace
    default: return false;
    }
    bool opposite = letter < 'a';
    for (int i = 0; i < 4; i++) set[i] |= opposite ? ~one[i] : one[i];
    return true;
}

// The character that an escape stands for, or -1: punctuation stands for itself, a few letters for control characters.
static int escaped(char letter) {
    static const char letters[] = "tnrfva", codes[] = "\t\n\r\f\v\a";
    const char *at = letter ? strchr(letters, letter) : NULL;
    if (at) return codes[at - letters];
    bool alphanumeric =
        (letter >= '0' && letter <= '9') || (letter >= 'a' && letter <= 'z') || (letter >= 'A' && letter <= 'Z');
    return alphanumeric || letter <= 0 ? -1 : letter;
}

static bool more(const Compiler *c) { return c->at < c->len; }
static bool next_is(const Compiler *c, const char *text) {
    size_t n = strlen(text);
    return c->len - c->at >= n && !memcmp(c->text + c->at, text, n);
}

// One character of a [set], or -1 when it was a class, which is then in the set already.
static bool set_item(Compiler *c, uint32_t set[4], int *ch) {
    *ch = (unsigned char)c->text[c->at++];
    if (*ch != '\\') return true;
    if (!more(c)) return fault(c, "a set without its end");
    char letter = c->text[c->at++];
    *ch = -1;
    if (set_class(set, letter)) return true;
    *ch = letter == 'b' ? '\b' : escaped(letter);
    return *ch >= 0 || fault(c, "an escape that is not known");
}

static bool compile_set(Compiler *c) { // behind its "["
    struct PatternStep s = {.op = OP_SET};
    bool opposite = next_is(c, "^");
    c->at += opposite;
    for (bool first = true;; first = false) {
        int from, to;
        if (!more(c)) return fault(c, "a set without its end");
        if (!first && next_is(c, "]")) break;
        if (!set_item(c, s.set, &from)) return false;
        to = from;
        if (next_is(c, "-") && c->at + 1 < c->len && c->text[c->at + 1] != ']') {
            c->at++;
            if (!set_item(c, s.set, &to)) return false;
            if (from < 0 || to < from) return fault(c, "a range of a set that runs backwards");
        }
        if (from >= 0) set_range(s.set, from, to);
    }
    c->at++;
    for (int i = 0; opposite && i < 4; i++) s.set[i] = ~s.set[i];
    return step_put(c, s);
}

static bool compile_choice(Compiler *c);

static bool compile_group(Compiler *c, bool *repeatable) { // behind its "("
    bool look = next_is(c, "?=") || next_is(c, "?!");
    int32_t start = c->p->n;
    if (look) {
        struct PatternStep s = {.op = OP_LOOK, .negative = next_is(c, "?!"), .y = c->p->n_looks++};
        if (!step_put(c, s)) return false;
        c->at += 2;
    } else if (next_is(c, "?:")) c->at += 2;
    else if (next_is(c, "?P<")) {
        while (more(c) && c->text[c->at] != '>') c->at++;
        c->at += more(c);
    } else if (next_is(c, "?")) return fault(c, "a flag, a look-behind or another extension");
    if (++c->depth > GROUP_DEPTH) return fault(c, "groups that are nested too deeply");
    if (!compile_choice(c)) return false;
    c->depth--;
    if (!next_is(c, ")")) return fault(c, "a group without its end");
    c->at++;
    if (look) {
        if (!step_put(c, (struct PatternStep){.op = OP_MATCH})) return false;
        c->p->steps[start].x = c->p->n - start;
    }
    *repeatable = !look;
    return true;
}

// {m}, {m,}, {,n} or {m,n} at the current place; *max is -1 without a limit. False, and nothing is read, when the brace
// is only a brace.
static bool braces(Compiler *c, int64_t *min, int64_t *max) {
    size_t at = c->at;
    int64_t n[2] = {-1, -1};
    int k = 0;
    if (!next_is(c, "{")) return false;
    for (at++; at < c->len && c->text[at] != '}'; at++) {
        char ch = c->text[at];
        if (ch == ',' && k == 0) k = 1;
        else if (ch < '0' || ch > '9') return false;
        else n[k] = (n[k] < 0 ? 0 : n[k] > LIMIT_PATTERN ? n[k] : 10 * n[k]) + (ch - '0');
    }
    if (at == c->len || (k == 0 && n[0] < 0)) return false;
    c->at = at + 1;
    *min = n[0] < 0 ? 0 : n[0], *max = k ? n[1] : n[0];
    return true;
}

static bool compile_atom(Compiler *c, bool *repeatable) {
    struct PatternStep s = {.op = OP_SET};
    unsigned char ch = (unsigned char)c->text[c->at++];
    *repeatable = true;
    switch (ch) {
    case '(': return compile_group(c, repeatable);
    case '[': return compile_set(c);
    case '^': *repeatable = false, s.op = OP_BEGIN; return step_put(c, s);
    case '$': *repeatable = false, s.op = OP_END; return step_put(c, s);
    case '*':
    case '+':
    case '?': return fault(c, "a quantifier with nothing to repeat");
    case '{': {
        int64_t min, max;
        c->at--;
        if (braces(c, &min, &max)) return fault(c, "a quantifier with nothing to repeat");
        c->at++;
        break;
    }
    case '.':
        set_range(s.set, 0, 127);
        s.set[0] &= ~(UINT32_C(1) << '\n');
        return step_put(c, s);
    case '\\': {
        if (!more(c)) return fault(c, "an escape without its letter");
        char letter = c->text[c->at++];
        if (set_class(s.set, letter)) return step_put(c, s);
        const char *places = letter ? strchr("AZbB", letter) : NULL;
        if (places) {
            static const enum Op ops[] = {['A'] = OP_BEGIN, ['Z'] = OP_END, ['b'] = OP_EDGE, ['B'] = OP_NO_EDGE};
            *repeatable = false, s.op = ops[(unsigned char)letter];
            return step_put(c, s);
        }
        int meant = escaped(letter);
        if (meant < 0) return fault(c, "a back reference or an escape that is not known");
        ch = (unsigned char)meant;
        break;
    }
    default: break;
    }
    set_range(s.set, ch, ch);
    return step_put(c, s);
}

// The steps from `start` on, `min` to `max` times. (A copied look-ahead keeps its number: it asks the same question.)
static bool repeat(Compiler *c, int32_t start, int64_t min, int64_t max) {
    Pattern *p = c->p;
    int32_t size = p->n - start;
    if (size == 0) max = min = 1; // nothing, any number of times
    if (max >= 0 && max < min) return fault(c, "a quantifier whose least is more than its most");
    if (min > LIMIT_PATTERN || max > LIMIT_PATTERN) return fault(c, "one that is too large");
    int64_t copies = max < 0 ? min + 1 : max; // the last of an unlimited one is the loop
    if (copies == 0) {
        p->n = start;
        return true;
    }
    int32_t atom = start; // where the piece that is copied lies: always the latest copy that is not wrapped yet
    for (int64_t k = 0; k < copies; k++) {
        bool optional = k >= min, loop = optional && max < 0;
        if (k + 1 < copies) { // keep a clean copy behind this one before it is wrapped
            if (!steps_insert(c, p->n, size)) return false;
            memcpy(p->steps + p->n - size, p->steps + atom, (size_t)size * sizeof *p->steps);
        }
        if (optional) {
            if (!steps_insert(c, atom, 1)) return false;
            p->steps[atom] = (struct PatternStep){.op = OP_SPLIT, .x = 1, .y = size + 1 + loop};
            atom++;
        }
        atom += size;
        if (loop && !step_put(c, (struct PatternStep){.op = OP_JUMP, .x = -(size + 1)})) return false;
    }
    return true;
}

static bool compile_piece(Compiler *c) { // an atom and its quantifier
    int32_t start = c->p->n;
    bool repeatable;
    if (!compile_atom(c, &repeatable)) return false;
    int64_t min = 1, max = 1;
    if (next_is(c, "*")) min = 0, max = -1, c->at++;
    else if (next_is(c, "+")) max = -1, c->at++;
    else if (next_is(c, "?")) min = 0, c->at++;
    else if (!braces(c, &min, &max)) return true;
    if (!repeatable) return fault(c, "a quantifier with nothing to repeat");
    if (next_is(c, "?")) c->at++;
    if (next_is(c, "*") || next_is(c, "+") || next_is(c, "?")) return fault(c, "a quantifier of a quantifier");
    return repeat(c, start, min, max);
}

static bool compile_choice(Compiler *c) { // a|b|c up to ")" or the end
    Pattern *p = c->p;
    int32_t last_jump = -1; // jumps to the end of the choice wait in a chain through x
    for (;;) {
        int32_t start = p->n;
        while (more(c) && c->text[c->at] != '|' && c->text[c->at] != ')')
            if (!compile_piece(c)) return false;
        if (!next_is(c, "|")) break;
        c->at++;
        if (!steps_insert(c, start, 1)) return false;
        p->steps[start] = (struct PatternStep){.op = OP_SPLIT, .x = 1, .y = p->n - start + 1};
        if (!step_put(c, (struct PatternStep){.op = OP_JUMP, .x = last_jump})) return false;
        last_jump = p->n - 1;
    }
    while (last_jump >= 0) {
        int32_t before = p->steps[last_jump].x;
        p->steps[last_jump].x = p->n - last_jump;
        last_jump = before;
    }
    return true;
}

bool pattern_compile(Pattern *p, const char *text, size_t len, Where at, Err *e) {
    *p = (Pattern){0};
    Compiler c = {.p = p, .text = text, .len = len};
    if ((int64_t)len > LIMIT_PATTERN) fault(&c, "one that is too large");
    for (size_t i = 0; i < len; i++)
        if ((unsigned char)text[i] >= 128 || !text[i]) fault(&c, "a character that is not ASCII");
    bool ok = !c.fault && compile_choice(&c) && (!more(&c) || fault(&c, "a group without its start")) &&
              step_put(&c, (struct PatternStep){.op = OP_MATCH});
    if (ok) return true;
    pattern_free(p);
    return err_set(e, "E-AD-03", at,
                   "expected a regular expression for module paths; found %s at byte %zu of %s; do: write it without",
                   c.fault, c.at, quoted(text, len));
}

void pattern_free(Pattern *p) {
    free(p->steps);
    *p = (Pattern){0};
}

// ------------------------------------------------------------------------------------------------------------ machine

typedef struct Machine {
    const Pattern *p;
    const char *text;
    size_t len;
    uint8_t *looks; // [n_looks, len + 1] 0 unknown, 1 no, 2 yes
} Machine;

static bool word_at(const Machine *m, size_t i) {
    char ch = i < m->len ? m->text[i] : 0;
    return (ch >= '0' && ch <= '9') || (ch >= 'A' && ch <= 'Z') || (ch >= 'a' && ch <= 'z') || ch == '_';
}
static bool edge_at(const Machine *m, size_t i) { return (i && word_at(m, i - 1)) != word_at(m, i); }

// Whether the program at `start` matches from byte `from`: to the end of the text, or with !whole anywhere.
static bool run(const Machine *m, int32_t start, size_t from, bool whole) {
    const struct PatternStep *steps = m->p->steps;
    size_t n = (size_t)m->p->n;
    int32_t *lists = alloc_or_die(3 * n, sizeof *lists, "a pattern's threads");
    int32_t *now = lists, *next = lists + n, *stack = lists + 2 * n;
    size_t *seen = alloc_or_die(n, sizeof *seen, "a pattern's threads"); // at which byte (+1) a step was entered
    size_t n_now = 0;
    bool matched = false;
    now[n_now++] = start;
    for (size_t i = from; n_now && !matched && i <= m->len; i++) {
        size_t n_next = 0;
        for (size_t t = 0; t < n_now && !matched; t++) {
            size_t top = 0;
            if (seen[now[t]] != i + 1) seen[now[t]] = i + 1, stack[top++] = now[t];
            while (top && !matched) {
                int32_t at = stack[--top], ways[2] = {-1, -1};
                const struct PatternStep *s = &steps[at];
                switch (s->op) {
                case OP_MATCH: matched = !whole || i == m->len; break;
                case OP_JUMP: ways[0] = at + s->x; break;
                case OP_SPLIT: ways[0] = at + s->x, ways[1] = at + s->y; break;
                case OP_BEGIN: ways[0] = i == 0 ? at + 1 : -1; break;
                case OP_END: ways[0] = i == m->len ? at + 1 : -1; break;
                case OP_EDGE: ways[0] = edge_at(m, i) ? at + 1 : -1; break;
                case OP_NO_EDGE: ways[0] = edge_at(m, i) ? -1 : at + 1; break;
                case OP_LOOK: {
                    uint8_t *known = &m->looks[(size_t)s->y * (m->len + 1) + i];
                    if (!*known) *known = run(m, at + 1, i, false) ? 2 : 1;
                    ways[0] = (*known == 2) != s->negative ? at + s->x : -1;
                    break;
                }
                case OP_SET:
                    if (i < m->len && set_has(s->set, (unsigned char)m->text[i])) next[n_next++] = at + 1;
                    break;
                }
                for (int k = 0; k < 2; k++)
                    if (ways[k] >= 0 && seen[ways[k]] != i + 1) seen[ways[k]] = i + 1, stack[top++] = ways[k];
            }
        }
        int32_t *swap = now;
        now = next, next = swap, n_now = n_next;
    }
    free(lists), free(seen);
    return matched;
}

bool pattern_matches(const Pattern *p, const char *text, size_t len) {
    Machine m = {.p = p, .text = text, .len = len};
    m.looks = alloc_or_die((size_t)p->n_looks * (len + 1) + 1, 1, "a pattern's look-aheads");
    bool matched = run(&m, 0, 0, true);
    free(m.looks);
    return matched;
}
