// answer.c - reading what a model wrote: its form, its levels, its answer, the boxes of an answer.
//
// What it is:  one reading for every byte string. A policy under training searches for parser faults, and a fault here is
//              a fault of the reward: so the parser is total, works in linear time, repairs nothing, never swaps corners
//              and never clamps a value. Rewards, refinement, evaluation and reports all read through it.
// What it is not: a judge of content. How much a right answer is worth is reward.c's business.
// Read before: surgr1.h, section surgery/answer.c.  Read next: reward.c.
//
//   completion := ws "<think>" [preamble] level1 [level2] [level3] "</think>" ws "<answer>" text "</answer>" ws
//   levelK     := "Level" blanks K [blanks] ":" text
//
// Boxes, in three spellings and nothing near them:
//   [n,n,n,n]                                       also as "bbox_2d" (or any other member) of a JSON object
//   (n,n),(n,n)                                     a name may stand directly before it: grasper(262,0),(473,172)
//   n = -?[0-9]{1,6}(\.[0-9]{1,6})?                 spaces and tabs between; no exponent, no plus, no inf
//
// The time is linear: an attempt to read a box passes over digits, blanks, signs and at most two brackets of its own
// kind, so each byte is visited by at most three attempts; names are at most 63 bytes back.
#define _GNU_SOURCE // memmem
#include "../surgr1.h"

typedef struct Scan {
    const char *p, *end;
    size_t steps; // bytes visited
} Scan;

static void skip_blanks(Scan *s) {
    while (s->p < s->end && (*s->p == ' ' || *s->p == '\t')) s->p++, s->steps++;
}
static bool take(Scan *s, char c) {
    skip_blanks(s);
    if (s->p >= s->end || *s->p != c) return false;
    s->p++, s->steps++;
    return true;
}
static int take_digits(Scan *s, int64_t *value) { // appends up to 7 digits to *value; 7 means too many
    int n = 0;
    for (; n < 7 && s->p < s->end && *s->p >= '0' && *s->p <= '9'; s->p++, n++) *value = *value * 10 + (*s->p - '0');
    s->steps += (size_t)n;
    return n;
}
static bool take_number(Scan *s, double *out) {
    static const double power[7] = {1, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6};
    skip_blanks(s);
    bool negative = s->p < s->end && *s->p == '-';
    if (negative) s->p++;
    int64_t value = 0;
    int whole = take_digits(s, &value), fraction = 0;
    if (whole < 1 || whole > 6) return false;
    if (s->p < s->end && *s->p == '.') {
        s->p++;
        fraction = take_digits(s, &value);
        if (fraction < 1 || fraction > 6) return false;
    }
    *out = (double)value / power[fraction]; // both exact, one rounding: the double nearest to the decimal
    if (negative) *out = -*out;
    return true;
}
static bool take_list(Scan *s, Box *b) { // [n,n,n,n]
    return take(s, '[') && take_number(s, &b->x1) && take(s, ',') && take_number(s, &b->y1) && take(s, ',') &&
           take_number(s, &b->x2) && take(s, ',') && take_number(s, &b->y2) && take(s, ']');
}
static bool take_pairs(Scan *s, Box *b) { // (n,n),(n,n)
    return take(s, '(') && take_number(s, &b->x1) && take(s, ',') && take_number(s, &b->y1) && take(s, ')') &&
           take(s, ',') && take(s, '(') && take_number(s, &b->x2) && take(s, ',') && take_number(s, &b->y2) &&
           take(s, ')');
}

// ---------------------------------------------------------------------------------------------------------- labels
// Cuts a label so that it fits and does not end inside a character.
static void label_set(char label[64], const char *text, size_t len) {
    if (len > 63) len = utf8_complete(text, 63);
    memcpy(label, text, len);
    label[len] = 0;
}

// "grasper(1,2),(3,4)": the name that touches the bracket, back to the start of the line or the sentence's punctuation.
static void label_before(char label[64], const char *text, const char *bracket, size_t *steps) {
    const char *from = bracket;
    while (from > text && bracket - from < 63 && !strchr("\n\r\t,;:.!?()[]{}<>|\"'`*", from[-1]) && from[-1] != 0)
        from--, ++*steps;
    if (from == bracket || bracket[-1] == ' ') return;     // nothing touches it
    while ((*from & 0xC0) == 0x80 || *from == ' ') from++; // 63 bytes back may be inside a character
    label_set(label, from, (size_t)(bracket - from));
}

static int hex4(const char *p, const char *end) {
    int v = 0;
    for (int i = 0; i < 4; i++) {
        int c = p + i < end ? (unsigned char)p[i] : 0, low = c | 32;
        if (c >= '0' && c <= '9') v = v * 16 + (c - '0');
        else if (low >= 'a' && low <= 'f') v = v * 16 + (low - 'a' + 10);
        else return -1;
    }
    return v;
}

// At `"label" : "..."`: moves past it and gives the string, unescaped and cut. A string that does not end on its line
// is no string (the answer broke off): false.
static bool read_label(Scan *s, char label[64]) {
    static const char key[] = "\"label\"";
    Scan t = *s;
    if ((size_t)(t.end - t.p) < sizeof key - 1 || memcmp(t.p, key, sizeof key - 1)) return false;
    t.p += sizeof key - 1;
    if (!take(&t, ':') || !take(&t, '"')) return *s = t, false;
    char text[72];
    size_t n = 0;
    for (; t.p < t.end && *t.p != '"' && *t.p != '\n'; t.p++) {
        uint32_t code = (unsigned char)*t.p;
        bool escaped = *t.p == '\\';
        if (escaped) {
            if (++t.p >= t.end) return *s = t, false;
            code = *t.p == 'n' || *t.p == 't' || *t.p == 'r' || *t.p == 'b' || *t.p == 'f' ? ' ' : (unsigned char)*t.p;
            if (*t.p == 'u') {
                int unit = hex4(t.p + 1, t.end), low = -1;
                if (unit < 0) return *s = t, false;
                t.p += 4;
                if (unit >= 0xD800 && unit < 0xDC00 && t.end - t.p > 6 && t.p[1] == '\\' && t.p[2] == 'u')
                    low = hex4(t.p + 3, t.end);
                if (low >= 0xDC00 && low < 0xE000) {
                    t.p += 6, code = 0x10000u + ((uint32_t)(unit - 0xD800) << 10) + (uint32_t)(low - 0xDC00);
                } else code = unit >= 0xD800 && unit < 0xE000 ? 0xFFFDu : (uint32_t)unit;
            }
        }
        if (n > sizeof text - 5) continue; // what is beyond the cut is read over
        if (escaped && code >= 0x80) n += utf8_put(text + n, code);
        else text[n++] = (char)(code ? code : ' ');
    }
    *s = t;
    if (t.p >= t.end || *t.p != '"') return false;
    s->p++;
    label_set(label, text, n);
    return true;
}
static bool take_label(Scan *s, char label[64]) {
    Scan t = *s;
    bool ok = read_label(&t, label);
    s->steps += 7 + (size_t)(t.p - s->p);
    if (ok) s->p = t.p;
    return ok;
}

// ----------------------------------------------------------------------------------------------------------- boxes
// How many boxes the text holds; the first `max` of them in boxes. *first: where the first begins, NULL without one.
static int64_t scan_boxes(const char *text, size_t len, Box *boxes, int max, const char **first, size_t *steps) {
    Scan s = {text, text + len, 0};
    int n = 0, object_first = -1; // first box of the JSON object we are in; -1 outside of one
    int64_t found = 0;
    char object_label[64] = "";
    *first = NULL;
    while (s.p < s.end) { // to the end also when `max` are found: the last one's label may follow it
        Box b = {0};
        Scan t = s;
        bool ok = false;
        switch (*s.p) {
        case '{': object_first = n, object_label[0] = 0; break;
        case '}': object_first = -1, object_label[0] = 0; break;
        case '"':
            if (object_first < 0 || !take_label(&s, object_label)) break;
            for (int i = object_first; i < n; i++)
                if (!boxes[i].label[0]) memcpy(boxes[i].label, object_label, sizeof object_label);
            continue;
        case '[':
            ok = take_list(&t, &b);
            if (ok) memcpy(b.label, object_label, sizeof object_label);
            break;
        case '(':
            ok = take_pairs(&t, &b);
            if (ok) label_before(b.label, text, s.p, &t.steps);
            break;
        default: break;
        }
        s.steps = t.steps > s.steps ? t.steps : s.steps;
        if (ok) {
            if (!found++) *first = s.p;
            if (n < max) boxes[n++] = b;
            s.p = t.p;
        } else s.p++, s.steps++;
    }
    *steps += s.steps;
    return found;
}

int answer_boxes(const char *text, size_t len, Box *boxes, int max) {
    const char *first;
    size_t steps = 0;
    int64_t found = scan_boxes(text, len, boxes, max, &first, &steps);
    return found < max ? (int)found : max;
}

bool box_is_valid(Box b, int64_t width, int64_t height) {
    return b.x1 < b.x2 && b.y1 < b.y2 && b.x2 > 0 && b.y2 > 0 && b.x1 < (double)width && b.y1 < (double)height;
}

Box box_to_original(Box b, int64_t resized_w, int64_t resized_h, int64_t original_w, int64_t original_h) {
    double sx = (double)original_w / (double)resized_w, sy = (double)original_h / (double)resized_h;
    b.x1 *= sx, b.x2 *= sx, b.y1 *= sy, b.y2 *= sy;
    return b;
}

// ------------------------------------------------------------------------------------------------------------ form
const char *const answer_status_names[ANSWER_STATUSES] = {"OK",     "NO_THINK", "NO_ANSWER", "UNCLOSED",
                                                          "NESTED", "REPEATED", "ORDER",     "OUTSIDE",
                                                          "EMPTY",  "TOO_LONG", "BAD_UTF8",  "TOO_MANY"};

static bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
static bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
static bool is_digit(char c) { return c >= '0' && c <= '9'; }
static char lower(char c) { return c >= 'A' && c <= 'Z' ? (char)(c + 32) : c; }
static bool begins(View v, const char *word, size_t len) { return v.len >= len && !memcmp(v.p, word, len); }
static View skip(View v, size_t n) { return (View){v.p + n, v.len - n}; }

View view_of(const char *text) { return text ? (View){text, strlen(text)} : (View){"", 0}; }

View view_trim(View v) {
    while (v.len && is_space(v.p[0])) v = skip(v, 1);
    while (v.len && is_space(v.p[v.len - 1])) v.len--;
    return v;
}

enum Pair { THINK, ANSWER, PAIRS };
typedef struct TagSeen {
    enum Pair pair;
    bool opens;
    size_t len; // 0: no tag here
} TagSeen;

static TagSeen tag_at(View v) { // v begins with <
    static const struct {
        const char *text;
        size_t len;
    } tags[4] = {{"<think>", 7}, {"<answer>", 8}, {"</think>", 8}, {"</answer>", 9}};
    for (int i = 0; i < 4; i++)
        if (begins(v, tags[i].text, tags[i].len)) return (TagSeen){i % 2 ? ANSWER : THINK, i < 2, tags[i].len};
    return (TagSeen){0};
}

// Where the tags stand. A pair is an opening tag and the next closing tag of its kind.
typedef struct Form {
    bool has_pair[PAIRS], unclosed, nested, outside, answer_first;
    int64_t pairs[PAIRS]; // those that lie in no other
    View body[PAIRS];     // of the first such pair of each kind
    View last_answer;     // text of the last complete answer pair of all, wherever it stands
    View thought;         // from the first <think> to whichever tag comes next, or the end
} Form;

static void read_form(Form *f, View text) {
    const char *end = text.p + text.len, *open[PAIRS] = {0}, *gap = text.p, *think = NULL; // gap: outside since here
    int inside = PAIRS; // which pair we are in; PAIRS: none
    *f = (Form){.last_answer = {end, 0}, .thought = {end, 0}};
    bool thought = false; // its end is known
    for (const char *p = text.p; p < end && (p = memchr(p, '<', (size_t)(end - p)));) {
        TagSeen tag = tag_at((View){p, (size_t)(end - p)});
        const char *after = p + tag.len;
        if (!tag.len) {
            p++;
            continue;
        }
        if (think && !thought) f->thought = (View){think, (size_t)(p - think)}, thought = true;
        if (tag.opens) {
            open[tag.pair] = after;
            if (tag.pair == THINK && !think) think = after;
            if (inside == PAIRS) {
                if (view_trim((View){gap, (size_t)(p - gap)}).len) f->outside = true;
                if (tag.pair == ANSWER && !f->pairs[THINK]) f->answer_first = true;
                if (!f->pairs[tag.pair]++) f->body[tag.pair].p = after;
                inside = (int)tag.pair;
            } else f->nested = true;
        } else {
            if (open[tag.pair]) {
                f->has_pair[tag.pair] = true;
                if (tag.pair == ANSWER) f->last_answer = (View){open[ANSWER], (size_t)(p - open[ANSWER])};
            }
            open[tag.pair] = NULL;
            if (inside == (int)tag.pair) {
                View *body = &f->body[tag.pair];
                if (f->pairs[tag.pair] == 1) body->len = (size_t)(p - body->p);
                inside = PAIRS, gap = after;
            } else if (inside != PAIRS) f->nested = true; // outside of a pair it is text that does not belong there
        }
        p = after;
    }
    if (think && !thought) f->thought = (View){think, (size_t)(end - think)};
    f->unclosed = open[THINK] || open[ANSWER];
    if (inside == PAIRS && view_trim((View){gap, (size_t)(end - gap)}).len) f->outside = true;
}

// "Level K" at v.p: its length up to behind the colon, or behind the digit when there is none. 0: no header.
static size_t level_header(View v, int *k, bool *colon, size_t *steps) {
    size_t i = 5;
    if (!begins(v, "Level", 5)) return 0;
    while (i < v.len && (v.p[i] == ' ' || v.p[i] == '\t')) i++;
    *steps += i;
    if (i == 5 || i >= v.len || v.p[i] < '1' || v.p[i] > '3') return 0;
    *k = v.p[i++] - '1';
    if (i < v.len && (is_letter(v.p[i]) || is_digit(v.p[i]))) return 0;
    size_t digit = i;
    while (i < v.len && (v.p[i] == ' ' || v.p[i] == '\t')) i++;
    *steps += i - digit;
    *colon = i < v.len && v.p[i] == ':';
    return *colon ? i + 1 : digit;
}

// A header is "Level K:" where a word may begin; without its colon only in front of a line, and only where the text has
// no header with a colon for that level: "This is a Level 1 task" is none.
static void read_levels(Answer *a, size_t *steps) {
    View body = a->think, text[3] = {0}; // text[k]: from behind the header to the end of the thought
    const char *at[3] = {0}, *end = body.p + body.len;
    int n = 0;
    bool in_order = true, fresh = true; // fresh: nothing on this line but blanks and marks of a heading
    char before = ' ';
    for (View v = body; v.len; before = v.p[0], v = skip(v, 1), ++*steps) {
        int k;
        bool colon;
        size_t len = v.p[0] == 'L' && !is_letter(before) && !is_digit(before) ? level_header(v, &k, &colon, steps) : 0;
        if (len && (colon || fresh)) {
            AnswerLevel *l = &a->level[k];
            if (colon) in_order = in_order && k == n, n++;
            if (!l->found || (colon && !l->colon)) {
                l->found = true, l->colon = colon, at[k] = v.p;
                text[k] = (View){v.p + len, (size_t)(end - v.p) - len};
            }
        }
        if (v.p[0] == '\n') fresh = true;
        else if (!strchr(" \t\r*#>-", v.p[0]) || !v.p[0]) fresh = false;
    }
    const char *first = end;
    bool all_say = true;
    for (int k = 0; k < 3; k++) {
        if (!at[k]) continue;
        if (at[k] < first) first = at[k];
        const char *stop = end;
        for (int other = 0; other < 3; other++)
            if (at[other] > at[k] && at[other] < stop) stop = at[other];
        size_t room = stop > text[k].p ? (size_t)(stop - text[k].p) : 0;
        a->level[k].at = (size_t)(at[k] - a->text.p);
        a->level[k].text = view_trim((View){text[k].p, room});
        all_say = all_say && (a->level[k].text.len || !a->level[k].colon);
    }
    a->preamble = view_trim((View){body.p, (size_t)(first - body.p)});
    a->headers = in_order && all_say ? n : 0;
}

void answer_parse(Answer *a, const char *text, size_t len) {
    *a = (Answer){.text = view_trim((View){len ? text : "", len})};
    a->think = a->answer = a->preamble = (View){a->text.p, 0};
    a->steps = len - a->text.len;
    if (len > (size_t)LIMIT_OUTPUT_BYTES) {
        a->status = ANSWER_TOO_LONG;
        return;
    }
    Form f;
    read_form(&f, a->text);
    a->steps += 4 * a->text.len; // memchr, four comparisons that end at the first byte or in a tag, and both trims
    a->status = f.unclosed                                  ? ANSWER_UNCLOSED
                : !f.has_pair[THINK]                        ? ANSWER_NO_THINK
                : !f.has_pair[ANSWER]                       ? ANSWER_NO_ANSWER
                : f.nested                                  ? ANSWER_NESTED
                : f.pairs[THINK] > 1 || f.pairs[ANSWER] > 1 ? ANSWER_REPEATED
                : f.answer_first                            ? ANSWER_ORDER
                : f.outside                                 ? ANSWER_OUTSIDE
                                                            : ANSWER_OK;
    bool plain = a->status == ANSWER_OK;
    a->think_closed = f.has_pair[THINK] && f.body[THINK].p && !f.nested;
    a->think = view_trim(plain ? f.body[THINK] : f.thought);
    a->has_answer = f.has_pair[ANSWER];
    a->answer = view_trim(plain ? f.body[ANSWER] : f.last_answer);
    read_levels(a, &a->steps);
    if (plain) {
        const char *first;
        size_t bad;
        a->steps += a->answer.len;
        if (!a->think.len || !a->answer.len) a->status = ANSWER_EMPTY;
        else if (!utf8_valid(a->answer.p, a->answer.len, &bad)) a->status = ANSWER_BAD_UTF8;
        else if (scan_boxes(a->answer.p, a->answer.len, NULL, 0, &first, &a->steps) > LIMIT_BOXES)
            a->status = ANSWER_TOO_MANY;
    }
}

View answer_any(const Answer *a) {
    View v = a->text;
    if (a->status == ANSWER_TOO_LONG || a->status == ANSWER_TOO_MANY) return (View){0};
    if (a->has_answer) return a->answer;
    for (const char *p = v.p; v.len && (p = memmem(v.p, v.len, "</think>", 8));)
        v.len -= (size_t)(p + 8 - v.p), v.p = p + 8;
    return view_trim(v);
}

// --------------------------------------------------------------------------------------------------- normalisation
// N: lower case; outer white space, a leading option letter ("D. ", "D) "), `_`, `-`, spaces and one final full stop do
// not count. The letter is a capital, and something must be left behind it.
static View label_core(View v) {
    v = view_trim(v);
    if (v.len > 2 && v.p[0] >= 'A' && v.p[0] <= 'Z' && (v.p[1] == '.' || v.p[1] == ')')) {
        View rest = view_trim(skip(v, 2));
        if (rest.len && !(rest.len == 1 && rest.p[0] == '.')) v = rest;
    }
    if (v.len && v.p[v.len - 1] == '.') v.len--;
    return view_trim(v);
}

static int next_byte(View *v) { // the next one that counts, or -1
    while (v->len) {
        char c = v->p[0];
        *v = skip(*v, 1);
        if (!is_space(c) && c != '_' && c != '-') return (unsigned char)lower(c);
    }
    return -1;
}

void label_normalise(View v, Text *out) {
    v = label_core(v);
    for (int c; (c = next_byte(&v)) >= 0;) {
        char byte = (char)c;
        text_add(out, &byte, 1);
    }
}

static bool same_bytes(View a, View b) { // of two cores
    int x, y;
    bool any = false;
    do {
        x = next_byte(&a), y = next_byte(&b);
        any = any || x >= 0;
    } while (x == y && x >= 0);
    return any && x == y; // nothing equals nothing
}

// Names of one thing that data sets and models spell differently, normalised.
static const char *const same_labels[][2] = {{"carlottriangledissection", "calottriangledissection"},
                                             {"hepatocystictriangledissection", "calottriangledissection"}};

static View one_name(View core) {
    for (size_t i = 0; i < sizeof same_labels / sizeof *same_labels; i++)
        if (same_bytes(core, view_of(same_labels[i][0]))) return view_of(same_labels[i][1]);
    return core;
}

bool label_equal(View a, View b) { return same_bytes(one_name(label_core(a)), one_name(label_core(b))); }

int label_lookup(View v, const char *const *words, int n) {
    View t = view_trim(v);
    for (int i = 0; i < n; i++) // some sets tell labels apart by case alone
        if (strlen(words[i]) == t.len && !memcmp(words[i], t.p, t.len) && t.len) return i;
    for (int i = 0; i < n; i++)
        if (label_equal(v, view_of(words[i]))) return i;
    return -1;
}

// ---------------------------------------------------------------------------------------------------------- typed
// The option that an answer of one letter names: "D", "D.", "D)", "(D)".
static View chosen(View v, const TaskItem *item) {
    View t = view_trim(v);
    if (t.len == 3 && t.p[0] == '(' && t.p[2] == ')') t = (View){t.p + 1, 1};
    else if (t.len == 2 && (t.p[1] == '.' || t.p[1] == ')')) t.len = 1;
    if (t.len != 1 || !item->choices) return v;
    int k = lower(t.p[0]) - 'a';
    return is_letter(t.p[0]) && k < item->n_choices ? view_of(item->choices[k]) : v;
}

static bool says_something(View v) {
    v = label_core(v);
    return next_byte(&v) >= 0;
}

bool answer_next_item(View *rest, enum AnswerKind kind, View *item) {
    while (rest->len) {
        size_t n = 0, mark = 1;
        for (; n < rest->len; n++) {
            char c = rest->p[n];
            if (c == ',' || c == ';' || c == '\n') break;
            bool word = kind == ANSWER_LIST && (n == 0 || is_space(rest->p[n - 1])) && rest->len - n > 3;
            if (word && lower(c) == 'a' && lower(rest->p[n + 1]) == 'n' && lower(rest->p[n + 2]) == 'd' &&
                is_space(rest->p[n + 3])) {
                mark = 4;
                break;
            }
        }
        *item = view_trim((View){rest->p, n});
        *rest = skip(*rest, n + mark < rest->len ? n + mark : rest->len);
        if (says_something(*item)) return true;
    }
    return false;
}

bool answer_triplet(View item, const TripletNames *names, Triplet *out) {
    View v = label_core(item);
    const char *const *words[3] = {names->instruments, names->verbs, names->targets};
    const int n[3] = {names->n_instruments, names->n_verbs, names->n_targets};
    int id[3] = {-1, -1, -1};
    for (int part = 0; part < 3; part++) { // the longest name that the rest begins with
        View best = v;
        size_t longest = 0;
        for (int i = 0; i < n[part]; i++) {
            View rest = v, name = view_of(words[part][i]);
            size_t len = 0;
            int c = next_byte(&name);
            for (; c >= 0; c = next_byte(&name), len++)
                if (next_byte(&rest) != c) break;
            if (c < 0 && len > longest) longest = len, best = rest, id[part] = i;
        }
        if (id[part] < 0) break;
        v = best;
    }
    *out = (Triplet){id[0], id[1], id[2]};
    return id[2] >= 0 && next_byte(&v) < 0;
}

// Whether the items of both are the same set: order and repeats do not count.
static bool same_items(View a, View label, enum AnswerKind kind) {
    View wanted[64], item;
    bool hit[64] = {0};
    int n = 0, hits = 0;
    while (n < 64 && answer_next_item(&label, kind, &wanted[n])) {
        bool again = false;
        for (int i = 0; i < n; i++) again = again || label_equal(wanted[i], wanted[n]);
        n += !again;
    }
    if (answer_next_item(&label, kind, &item)) return false; // more than any label here has
    while (answer_next_item(&a, kind, &item)) {
        int i = 0;
        while (i < n && !label_equal(item, wanted[i])) i++;
        if (i == n) return false;
        hits += !hit[i], hit[i] = true;
    }
    return n && hits == n;
}

static int yes_or_no(View v) { // 1, 0, or -1: by the first word
    v = label_core(v);
    size_t n = 0;
    while (n < v.len && is_letter(v.p[n])) n++;
    if (n == 3 && lower(v.p[0]) == 'y' && lower(v.p[1]) == 'e' && lower(v.p[2]) == 's') return 1;
    return n == 2 && lower(v.p[0]) == 'n' && lower(v.p[1]) == 'o' ? 0 : -1;
}

static bool whole_number(View v, int64_t *out) {
    static const char *const words[21] = {"zero",     "one",      "two",      "three",   "four",    "five",
                                          "six",      "seven",    "eight",    "nine",    "ten",     "eleven",
                                          "twelve",   "thirteen", "fourteen", "fifteen", "sixteen", "seventeen",
                                          "eighteen", "nineteen", "twenty"};
    v = label_core(v);
    *out = 0;
    for (int i = 0; i <= 20; i++)
        if (same_bytes(v, view_of(words[i]))) return *out = i, true;
    bool negative = v.len && v.p[0] == '-';
    if (negative) v = skip(v, 1);
    if (!v.len || v.len > 6) return false;
    for (size_t i = 0; i < v.len; i++) {
        if (!is_digit(v.p[i])) return false;
        *out = 10 * *out + (v.p[i] - '0');
    }
    if (negative) *out = -*out;
    return true;
}

// "No tools detected", "none", "[]": an answer that says there is no box.
static bool says_none(View v) {
    View t = label_core(v);
    size_t n = 0;
    while (n < t.len && is_letter(t.p[n])) n++;
    View word = {t.p, n};
    for (size_t i = 0; i < t.len; i++)
        if (!is_letter(t.p[i]) && !is_space(t.p[i])) return same_bytes(t, view_of("[]"));
    return same_bytes(word, view_of("none")) || (same_bytes(word, view_of("no")) && t.len <= 64);
}

// A text that is a JSON value or begins like one is read as JSON and as nothing else.
static View without_fence(View v) { // ```json ... ```
    v = view_trim(v);
    if (v.len < 6 || !begins(v, "```", 3) || memcmp(v.p + v.len - 3, "```", 3)) return v;
    v = (View){v.p + 3, v.len - 6};
    if (begins(v, "json", 4)) v = skip(v, 4);
    return view_trim(v);
}
static bool looks_like_json(View v) {
    if (v.len && v.p[0] == '{') return true;
    if (!v.len || v.p[0] != '[') return false;
    v = view_trim(skip(v, 1));
    return v.len && strchr("{[]\"", v.p[0]) && v.p[0];
}

static bool box_of(const Json *v, Box *b) { // [n,n,n,n] in the strict form of numbers
    double *corner[4] = {&b->x1, &b->y1, &b->x2, &b->y2};
    const Json *c = v->child;
    if (v->type != JSON_ARRAY || v->count != 4) return false;
    for (int i = 0; i < 4; i++, c = c->next) {
        Scan s = {c->str, c->str + c->len, 0};
        if (c->type != JSON_NUMBER || !take_number(&s, corner[i]) || s.p != s.end) return false;
    }
    return true;
}

// Every array below v that is not made of arrays and objects must be a box; false when one is not. At most 4 deep.
static bool collect(const Json *v, View label, Reading *r) {
    if (v->type == JSON_ARRAY) {
        const Json *c = v->child;
        if (!c) return true;
        if (c->type == JSON_ARRAY || c->type == JSON_OBJECT) {
            for (; c; c = c->next)
                if ((c->type != JSON_ARRAY && c->type != JSON_OBJECT) || !collect(c, label, r)) return false;
            return true;
        }
        Box b = {0};
        if (!box_of(v, &b) || r->n_boxes == ANSWER_MAX_BOXES) return false;
        label_set(b.label, label.len ? label.p : "", label.len);
        r->boxes[r->n_boxes++] = b;
        return true;
    }
    const Json *name = json_get(v, "label");
    if (name && name->type == JSON_STRING) label = (View){name->str, name->len};
    for (const Json *m = v->child; m; m = m->next)
        if ((m->type == JSON_ARRAY || m->type == JSON_OBJECT) && !collect(m, label, r)) return false;
    return true;
}

// The text between square brackets, so that "{..}, {..}" is JSON too.
static bool parse_json(View v, JsonDoc *doc) {
    Text t = {0};
    Err e = {0};
    text_add(&t, "[", 1), text_add(&t, v.p, v.len), text_add(&t, "]", 1);
    bool ok = json_parse(doc, t.p, t.len, "answer", (JsonOptions){.max_depth = 5, .refuse_duplicates = true}, &e);
    text_free(&t);
    return ok;
}

static void read_boxes(Reading *r, View v) {
    v = without_fence(v);
    if (looks_like_json(v)) {
        JsonDoc doc;
        if (!parse_json(v, &doc)) return;
        r->ok = collect(doc.root, (View){0}, r);
        json_free(&doc);
    } else {
        const char *first;
        size_t steps = 0;
        int64_t n = scan_boxes(v.p, v.len, r->boxes, ANSWER_MAX_BOXES, &first, &steps);
        r->ok = n && n <= ANSWER_MAX_BOXES;
        if (n <= ANSWER_MAX_BOXES) r->n_boxes = (int)n;
    }
    if (!r->ok) r->n_boxes = 0;
    if (!r->n_boxes) r->ok = says_none(v);
}

static void keep_text(Reading *r, View v) { // a text that does not fit is none
    v = view_trim(v);
    if (v.len >= sizeof r->text) v.len = 0;
    if (v.len) memcpy(r->text, v.p, v.len);
    r->text[v.len] = 0;
    r->word = (View){r->text, v.len};
}

// {"answer": "...", "bbox_2d": [...]}, either of which may be missing; or a text with a box behind it.
static void read_vqla(Reading *r, View v) {
    v = without_fence(v);
    if (looks_like_json(v)) {
        JsonDoc doc;
        if (!parse_json(v, &doc)) return;
        const Json *object = doc.root->child, *text = json_get(object, "answer"), *box = json_get(object, "bbox_2d");
        bool one = object->type == JSON_OBJECT && !object->next, bare = object->type == JSON_ARRAY && !object->next;
        if (one && text && text->type == JSON_STRING) keep_text(r, (View){text->str, text->len});
        if ((one && box && box_of(box, &r->boxes[0])) || (bare && box_of(object, &r->boxes[0]))) r->n_boxes = 1;
        r->json = one && (text || box) && (!text || r->word.len) && (!box || r->n_boxes);
        r->ok = r->word.len || r->n_boxes;
        json_free(&doc);
        return;
    }
    const char *first;
    size_t steps = 0;
    int64_t n = scan_boxes(v.p, v.len, r->boxes, ANSWER_MAX_BOXES, &first, &steps);
    if (n > 1) return; // one region is asked for
    r->n_boxes = (int)n;
    View text = {v.p, first ? (size_t)(first - v.p) : v.len};
    while (text.len && (is_space(text.p[text.len - 1]) || strchr(",;:", text.p[text.len - 1]))) text.len--;
    keep_text(r, text);
    r->ok = r->word.len || r->n_boxes;
}

void answer_read(Reading *r, View answer, const TaskItem *item) {
    size_t bad;
    r->kind = task_info(item->task)->kind;
    r->ok = r->yes = r->json = false;
    r->number = 0, r->n_boxes = 0, r->text[0] = 0, r->word = (View){0};
    r->boxes[0] = (Box){0}; // VQLA's has no name
    answer = view_trim(answer);
    if (!answer.len || answer.len > (size_t)LIMIT_OUTPUT_BYTES || !utf8_valid(answer.p, answer.len, &bad)) return;
    switch (r->kind) {
    case ANSWER_WORD:
        r->word = label_core(chosen(answer, item));
        r->ok = says_something(r->word);
        break;
    case ANSWER_LIST:
    case ANSWER_TRIPLETS: {
        View rest = r->word = chosen(answer, item), one;
        r->ok = answer_next_item(&rest, r->kind, &one);
        break;
    }
    case ANSWER_YESNO: {
        int yes = yes_or_no(chosen(answer, item));
        r->ok = yes >= 0, r->yes = yes == 1;
        break;
    }
    case ANSWER_NUMBER: r->ok = whole_number(chosen(answer, item), &r->number); break;
    case ANSWER_BOX:
    case ANSWER_BOXES: read_boxes(r, answer); break;
    case ANSWER_VQLA: read_vqla(r, answer); break;
    }
}

static bool names_phase(const TaskItem *item, View v, const char *name) {
    return item->task == TASK_PHASE && item->dataset && label_equal(view_of(item->dataset), view_of("cholec80")) &&
           label_equal(v, view_of(name));
}

bool answer_matches(const Reading *r, const TaskItem *item) {
    View label = chosen(view_of(item->answer), item);
    int64_t number;
    int yes;
    if (!r->ok || !says_something(label)) return false;
    switch (r->kind) {
    case ANSWER_WORD:
        // Cholec80 calls its last phase GallbladderRetraction; everywhere else it is the extraction.
        return label_equal(r->word, label) ||
               (names_phase(item, label, "GallbladderRetraction") &&
                names_phase(item, r->word, "GallbladderExtraction")) ||
               (names_phase(item, label, "GallbladderExtraction") &&
                names_phase(item, r->word, "GallbladderRetraction"));
    case ANSWER_LIST:
    case ANSWER_TRIPLETS: return same_items(r->word, label, r->kind);
    case ANSWER_YESNO: return (yes = yes_or_no(label)) >= 0 && r->yes == (yes == 1);
    case ANSWER_NUMBER: return whole_number(label, &number) && r->number == number;
    case ANSWER_VQLA: return label_equal(r->word, label);
    case ANSWER_BOX:
    case ANSWER_BOXES: return false; // boxes are measured, not matched
    }
    return false;
}
