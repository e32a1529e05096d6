// answer.c - reading what a model wrote: the boxes of an answer.
//
// What it is:  one scan over hostile text (a policy under training searches for parser faults). It accepts the three
//              spellings models of this family use and nothing near them, never swaps corners, never clamps a value.
// What it is not: a judge. A box with its corners in the wrong order comes back as it stands; who scores or draws it
//              decides (box_is_valid).
// Read before: surgr1.h, section surgery/answer.c.  Read next: surgr1.c, which draws the boxes.
//
//   [n,n,n,n]                                       also as "bbox_2d" (or any other member) of a JSON object
//   (n,n),(n,n)                                     a name may stand directly before it: grasper(262,0),(473,172)
//   n = -?[0-9]{1,6}(\.[0-9]{1,6})?                 spaces and tabs between; no exponent, no plus, no inf
//
// The time is linear: an attempt to read a box passes over digits, blanks, signs and at most two brackets of its own
// kind, so each byte is visited by at most three attempts; names are at most 63 bytes back.
#include "../surgr1.h"

typedef struct Scan {
    const char *p, *end;
} Scan;

static void skip_blanks(Scan *s) {
    while (s->p < s->end && (*s->p == ' ' || *s->p == '\t')) s->p++;
}
static bool take(Scan *s, char c) {
    skip_blanks(s);
    if (s->p >= s->end || *s->p != c) return false;
    s->p++;
    return true;
}
static int take_digits(Scan *s, int64_t *value) { // appends up to 7 digits to *value; 7 means too many
    int n = 0;
    for (; n < 7 && s->p < s->end && *s->p >= '0' && *s->p <= '9'; s->p++, n++) *value = *value * 10 + (*s->p - '0');
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
static void label_before(char label[64], const char *text, const char *bracket) {
    const char *from = bracket;
    while (from > text && bracket - from < 63 && !strchr("\n\r\t,;:.!?()[]{}<>|\"'`*", from[-1]) && from[-1] != 0)
        from--;
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
static bool take_label(Scan *s, char label[64]) {
    static const char key[] = "\"label\"";
    Scan t = *s;
    if ((size_t)(t.end - t.p) < sizeof key - 1 || memcmp(t.p, key, sizeof key - 1)) return false;
    t.p += sizeof key - 1;
    if (!take(&t, ':') || !take(&t, '"')) return false;
    char text[72];
    size_t n = 0;
    for (; t.p < t.end && *t.p != '"' && *t.p != '\n'; t.p++) {
        uint32_t code = (unsigned char)*t.p;
        bool escaped = *t.p == '\\';
        if (escaped) {
            if (++t.p >= t.end) return false;
            code = *t.p == 'n' || *t.p == 't' || *t.p == 'r' || *t.p == 'b' || *t.p == 'f' ? ' ' : (unsigned char)*t.p;
            if (*t.p == 'u') {
                int unit = hex4(t.p + 1, t.end), low = -1;
                if (unit < 0) return false;
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
    if (t.p >= t.end || *t.p != '"') return false;
    t.p++;
    label_set(label, text, n);
    *s = t;
    return true;
}

// ----------------------------------------------------------------------------------------------------------- boxes
int answer_boxes(const char *text, size_t len, Box *boxes, int max) {
    Scan s = {text, text + len};
    int n = 0, object_first = -1; // first box of the JSON object we are in; -1 outside of one
    char object_label[64] = "";
    while (s.p < s.end) { // to the end also when `max` are found: the last one's label may follow it
        Box b = {0};
        Scan t = s;
        switch (*s.p) {
        case '{': object_first = n, object_label[0] = 0; break;
        case '}': object_first = -1, object_label[0] = 0; break;
        case '"':
            if (object_first < 0 || !take_label(&s, object_label)) break;
            for (int i = object_first; i < n; i++)
                if (!boxes[i].label[0]) memcpy(boxes[i].label, object_label, sizeof object_label);
            continue;
        case '[':
            if (!take_list(&t, &b)) break;
            memcpy(b.label, object_label, sizeof object_label);
            if (n < max) boxes[n++] = b;
            s = t;
            continue;
        case '(':
            if (!take_pairs(&t, &b)) break;
            label_before(b.label, text, s.p);
            if (n < max) boxes[n++] = b;
            s = t;
            continue;
        default: break;
        }
        s.p++;
    }
    return n;
}

bool box_is_valid(Box b, int64_t width, int64_t height) {
    return b.x1 < b.x2 && b.y1 < b.y2 && b.x2 > 0 && b.y2 > 0 && b.x1 < (double)width && b.y1 < (double)height;
}

Box box_to_original(Box b, int64_t resized_w, int64_t resized_h, int64_t original_w, int64_t original_h) {
    double sx = (double)original_w / (double)resized_w, sy = (double)original_h / (double)resized_h;
    b.x1 *= sx, b.x2 *= sx, b.y1 *= sy, b.y2 *= sy;
    return b;
}
