// knowledge.c - what is typical of an operation: instruments, tissues, actions, phases, from data/knowledge/*.json.
//
// What it is:  a strict reader of these files, the reference block of a teacher's prompt (Surg-R1: names with colour,
//              shape and texture, vocabularies, co-occurrence), and the look-up of its terms in a text.
// What it is not: a source of labels. Where picture and table disagree the picture is right, and the prompt says so.
// Read before: surgr1.h, section surgery/knowledge.c; one of the files.  Read next: synth.c.
//
// A file names the source of every row. An unknown member refuses: a misspelt one would be left out of every prompt.
#include "../surgr1.h"

// -------------------------------------------------------------------------------------------------------- reading
// The members of a file. Of lists with rows, the row's members: "!" must be there, "*" a list of strings, "#" a whole
// number, else a string.
static const struct Section {
    const char *name;
    enum { S_TEXT, S_NAMES, S_SOURCES, S_COUNTS, S_ROWS } kind;
    bool required;
    const char *row;
} sections[] = {
    {"name", S_TEXT, true, NULL},
    {"procedures", S_NAMES, true, NULL},
    {"tasks", S_NAMES, false, NULL},
    {"what", S_TEXT, true, NULL},
    {"sources", S_SOURCES, true, NULL},
    {"tools", S_ROWS, false, "name! colour! shape! texture! use! confused_with aliases* source!"},
    {"tissues", S_ROWS, false, "name! colour! shape! texture! where! aliases* source!"},
    {"actions", S_ROWS, false, "name! means! seen! aliases* source!"},
    {"phases", S_ROWS, false, "name! goal! seen! aliases* next* source!"},
    {"criteria", S_ROWS, false, "task! name! means! yes! no! source!"},
    {"cooccurrence", S_ROWS, false, "tool! action! targets* count# source!"},
    {"target_counts", S_COUNTS, false, NULL},
    {"other_verbs", S_NAMES, false, NULL},
    {"order_note", S_TEXT, false, NULL},
    {"notes", S_NAMES, false, NULL},
    {"foreign", S_NAMES, false, NULL},
};
enum { SECTIONS = sizeof sections / sizeof *sections };

static bool refuse(const Knowledge *k, const Json *v, const char *field, Err *e, const char *expected,
                   const char *todo) {
    return err_set(e, "E-CF-02", json_at(&k->doc, v, field), "expected %s; found %s; do: %s", expected,
                   v ? json_shown(v) : "nothing", todo);
}

static bool names_ok(const Knowledge *k, const Json *v, Err *e) {
    if (v->type != JSON_ARRAY) return refuse(k, v, v->key, e, "a list of names", "write a list");
    for (const Json *x = v->child; x; x = x->next)
        if (x->type != JSON_STRING || !x->len) return refuse(k, x, v->key, e, "a name", "write text");
    return true;
}

// What the mark behind `name` in a row's list of members is; 0 when the list does not hold it.
static char mark_of(const char *members, const char *name) {
    size_t len = strlen(name);
    for (const char *p = members; *p; p += strcspn(p, " "), p += *p == ' ') {
        size_t n = strcspn(p, " !*#");
        if (n == len && !memcmp(p, name, n)) return p[n] && p[n] != ' ' ? p[n] : '?';
    }
    return 0;
}

// Every word of a row's source is explained under "sources".
static bool source_ok(const Knowledge *k, const Json *row, Err *e) {
    const Json *v = json_get(row, "source"), *sources = json_get(k->doc.root, "sources");
    for (const char *p = v->str; *p;) {
        char word[24];
        size_t n = strcspn(p, " ");
        snprintf(word, sizeof word, "%.*s", (int)(n < sizeof word ? n : sizeof word - 1), p);
        if (!json_get(sources, word)) return refuse(k, v, "source", e, "keys of \"sources\"", "explain the source");
        p += n, p += *p == ' ';
    }
    return true;
}

static bool rows_ok(const Knowledge *k, const Json *v, const char *members, Err *e) {
    if (v->type != JSON_ARRAY) return refuse(k, v, v->key, e, "a list of rows", "write a list");
    for (const Json *row = v->child; row; row = row->next) {
        if (row->type != JSON_OBJECT) return refuse(k, row, v->key, e, "an object", "write a row");
        for (const Json *m = row->child; m; m = m->next) {
            char mark = mark_of(members, m->key);
            if (!mark) return refuse(k, m, m->key, e, "a member that this list knows", "see another row");
            if (mark == '*' && !names_ok(k, m, e)) return false;
            if (mark == '#' && !(m->type == JSON_NUMBER && m->integer && m->i >= 0))
                return refuse(k, m, m->key, e, "a count", "write a whole number");
            if (mark != '*' && mark != '#' && m->type != JSON_STRING)
                return refuse(k, m, m->key, e, "text", "write a string");
        }
        for (const char *p = members; *p; p += strcspn(p, " "), p += *p == ' ') {
            char name[24];
            size_t n = strcspn(p, " !*#");
            snprintf(name, sizeof name, "%.*s", (int)n, p);
            const Json *m = json_get(row, name);
            if (p[n] == '!' && (!m || !m->len)) return refuse(k, m ? m : row, name, e, "text", "fill it in");
        }
        if (!source_ok(k, row, e)) return false;
        const Json *name = json_get(row, "name");
        for (const Json *x = v->child; name && x != row; x = x->next)
            if (json_is(json_get(x, "name"), name->str))
                return refuse(k, name, "name", e, "a new name", "merge the rows");
    }
    return true;
}

static bool section_ok(const Knowledge *k, const Json *v, Err *e) {
    int s = 0;
    while (s < SECTIONS && strcmp(sections[s].name, v->key)) s++;
    if (s == SECTIONS) return refuse(k, v, v->key, e, "a section that this program knows", "mend its name");
    switch (sections[s].kind) {
    case S_TEXT: return v->type == JSON_STRING || refuse(k, v, v->key, e, "text", "write a string");
    case S_NAMES: return names_ok(k, v, e);
    case S_ROWS: return rows_ok(k, v, sections[s].row, e);
    default: break;
    }
    if (v->type != JSON_OBJECT) return refuse(k, v, v->key, e, "an object", "write one");
    for (const Json *m = v->child; m; m = m->next)
        if (sections[s].kind == S_SOURCES ? m->type != JSON_STRING
                                          : !(m->type == JSON_NUMBER && m->integer && m->i >= 0))
            return refuse(k, m, m->key, e, sections[s].kind == S_SOURCES ? "text" : "a count", "mend it");
    return true;
}

static const Json *row_of(const Json *rows, const char *name) {
    for (const Json *r = rows ? rows->child : NULL; r; r = r->next)
        if (json_is(json_get(r, "name"), name)) return r;
    return NULL;
}

static bool listed(const Json *list, const char *name) {
    for (const Json *v = list ? list->child : NULL; v; v = v->next)
        if (json_is(v, name)) return true;
    return false;
}

// Names that point at rows point at rows that are there.
static bool references_ok(const Knowledge *k, Err *e) {
    const Json *root = k->doc.root, *tools = json_get(root, "tools"), *tissues = json_get(root, "tissues"),
               *actions = json_get(root, "actions"), *phases = json_get(root, "phases"), *v;
    for (const Json *r = (v = json_get(root, "cooccurrence")) ? v->child : NULL; r; r = r->next) {
        const Json *tool = json_get(r, "tool"), *action = json_get(r, "action"), *targets = json_get(r, "targets");
        if (!row_of(tools, tool->str)) return refuse(k, tool, "tool", e, "a name of \"tools\"", "mend it");
        if (!row_of(actions, action->str) && !listed(json_get(root, "other_verbs"), action->str))
            return refuse(k, action, "action", e, "a name of \"actions\" or \"other_verbs\"", "mend it");
        for (const Json *t = targets ? targets->child : NULL; t; t = t->next)
            if (!row_of(tissues, t->str) && !row_of(tools, t->str))
                return refuse(k, t, "targets", e, "a name of \"tissues\" or \"tools\"", "mend it");
    }
    for (const Json *r = phases ? phases->child : NULL; r; r = r->next)
        for (const Json *n = (v = json_get(r, "next")) ? v->child : NULL; n; n = n->next)
            if (!row_of(phases, n->str)) return refuse(k, n, "next", e, "a name of \"phases\"", "mend it");
    for (const Json *r = (v = json_get(root, "criteria")) ? v->child : NULL; r; r = r->next)
        if (task_of(json_get(r, "task")->str) < 0)
            return refuse(k, json_get(r, "task"), "task", e, "the name of a task", "mend it");
    for (const Json *t = (v = json_get(root, "tasks")) ? v->child : NULL; t; t = t->next)
        if (task_of(t->str) < 0) return refuse(k, t, "tasks", e, "names of tasks", "mend it");
    return true;
}

bool knowledge_read(Knowledge *k, const char *path, Err *e) {
    *k = (Knowledge){0};
    if (!json_read(&k->doc, path, LIMIT_CONFIG_BYTES, (JsonOptions){.refuse_duplicates = true}, e)) return false;
    const Json *root = k->doc.root;
    bool ok = root->type == JSON_OBJECT || refuse(k, root, NULL, e, "an object", "write one");
    for (int s = 0; ok && s < SECTIONS; s++)
        if (sections[s].required && !json_get(root, sections[s].name))
            ok = refuse(k, NULL, sections[s].name, e, "a member", "add it");
    for (const Json *v = ok ? root->child : NULL; ok && v; v = v->next) ok = section_ok(k, v, e);
    ok = ok && references_ok(k, e);
    if (!ok) knowledge_free(k);
    return ok;
}

void knowledge_free(Knowledge *k) {
    if (k->doc.root) json_free(&k->doc);
    *k = (Knowledge){0};
}

// ----------------------------------------------------------------------------------------------------------- terms
void words_of(const char *text, size_t len, Text *out) {
    if (!out->len) text_add(out, " ", 1);
    for (size_t i = 0; i < len; i++) {
        char c = text[i];
        if (c >= 'A' && c <= 'Z') c = (char)(c + 'a' - 'A');
        bool word = (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
        if (word) text_add(out, &c, 1);
        else if (out->p[out->len - 1] != ' ') text_add(out, " ", 1);
    }
    if (out->p[out->len - 1] != ' ') text_add(out, " ", 1);
}

int words_hold(const Text *words, const char *term) {
    Text t = {0};
    int n = 0;
    words_of(term, strlen(term), &t);
    size_t len = t.len - 1; // without the space behind it
    for (const char *p = words->p; len > 1 && (p = strstr(p, t.p + 1)) != NULL; p++) n += p[-1] == ' ';
    if (len > 1 && t.p[len - 1] != 's') {
        t.p[len] = 's';
        text_add(&t, " ", 1);
        for (const char *p = words->p; (p = strstr(p, t.p + 1)) != NULL; p++) n += p[-1] == ' ';
    }
    text_free(&t);
    return n;
}

bool knowledge_fits(const Knowledge *k, const char *procedure, enum Task task) {
    const Json *procedures = json_get(k->doc.root, "procedures"), *tasks = json_get(k->doc.root, "tasks");
    if (tasks && !listed(tasks, task_info(task)->name)) return false;
    Text a = {0}, b = {0};
    bool fits = false;
    words_of(procedure, strlen(procedure), &a);
    for (const Json *p = procedures->child; p && !fits; p = p->next) {
        b.len = 0;
        words_of(p->str, p->len, &b);
        fits = !strcmp(a.p, b.p);
    }
    text_free(&a), text_free(&b);
    return fits;
}

int knowledge_terms(const Knowledge *k, const char *text, size_t len) {
    static const char *const lists[] = {"tools", "tissues"};
    Text words = {0};
    int n = 0;
    words_of(text, len, &words);
    for (int l = 0; l < 2; l++) {
        const Json *rows = json_get(k->doc.root, lists[l]);
        for (const Json *r = rows ? rows->child : NULL; r; r = r->next) {
            const Json *aliases = json_get(r, "aliases");
            bool there = words_hold(&words, json_get(r, "name")->str) > 0;
            for (const Json *a = aliases ? aliases->child : NULL; a && !there; a = a->next)
                there = words_hold(&words, a->str) > 0;
            n += there;
        }
    }
    text_free(&words);
    return n;
}

const char *knowledge_foreign(const Knowledge *k, const char *text, size_t len) {
    const Json *list = json_get(k->doc.root, "foreign");
    const char *found = NULL;
    Text words = {0};
    words_of(text, len, &words);
    for (const Json *f = list ? list->child : NULL; f && !found; f = f->next)
        if (words_hold(&words, f->str)) found = f->str;
    text_free(&words);
    return found;
}

// ---------------------------------------------------------------------------------------------------------- prompt
static const char *text_of(const Json *row, const char *name) {
    const Json *v = json_get(row, name);
    return v && v->type == JSON_STRING ? v->str : "";
}

static void print_names(const Json *rows, const char *title, Text *out) {
    if (!rows || !rows->child) return;
    text_addf(out, "%s: ", title);
    for (const Json *r = rows->child; r; r = r->next)
        text_addf(out, "%s%s", r == rows->child ? "" : ", ", r->type == JSON_STRING ? r->str : text_of(r, "name"));
    text_addf(out, ".\n");
}

static void print_rows(const Json *rows, const char *title, const char *members, Text *out) {
    if (!rows || !rows->child) return;
    text_addf(out, "%s:\n", title);
    for (const Json *r = rows->child; r; r = r->next) {
        text_addf(out, "- %s:", text_of(r, "name"));
        const char *comma = " ";
        for (const char *p = members; *p; p += strcspn(p, " "), p += *p == ' ') {
            char name[24];
            snprintf(name, sizeof name, "%.*s", (int)strcspn(p, " "), p);
            if (!*text_of(r, name)) continue;
            text_addf(out, "%s%s%s", comma, !strcmp(name, "confused_with") ? "may be taken for " : "",
                      text_of(r, name));
            comma = "; ";
        }
        text_addf(out, "\n");
    }
}

// Combinations whose counts are known come most frequent first; the others are in the order of the file.
static void print_cooccurrence(const Json *root, Text *out) {
    const Json *rows = json_get(root, "cooccurrence"), *counts = json_get(root, "target_counts");
    if (!rows || !rows->child) return;
    text_addf(out, "Combinations that occur (instrument: action of targets):\n");
    for (const Json *r = rows->child; r; r = r->next) {
        const Json *targets = json_get(r, "targets"), *count = json_get(r, "count");
        text_addf(out, "- %s: %s", text_of(r, "tool"), text_of(r, "action"));
        for (const Json *t = targets ? targets->child : NULL; t; t = t->next)
            text_addf(out, "%s%s", t == targets->child ? " " : ", ", t->str);
        if (count) text_addf(out, " (seen %lld times)", (long long)count->i);
        text_addf(out, "\n");
    }
    if (counts) {
        text_addf(out, "Targets by how often they were labelled: ");
        for (const Json *c = counts->child; c; c = c->next)
            text_addf(out, "%s%s %lld", c == counts->child ? "" : ", ", c->key, (long long)c->i);
        text_addf(out, ".\n");
    }
}

void knowledge_print(const Knowledge *k, enum Task task, Text *out) {
    const Json *root = k->doc.root, *criteria = json_get(root, "criteria"), *notes = json_get(root, "notes");
    const TaskInfo *info = task_info(task);
    bool cvs = task == TASK_CVS1 || task == TASK_CVS2 || task == TASK_CVS3 || task == TASK_CVS;
    text_addf(out, "About %s: %s\n", text_of(root, "name"), text_of(root, "what"));
    print_rows(json_get(root, "tools"), "Instruments (colour; shape; surface; use)",
               "colour shape texture use confused_with", out);
    print_rows(json_get(root, "tissues"), "Tissues (colour; shape; surface; place)", "colour shape texture where", out);
    for (const Json *c = criteria ? criteria->child : NULL; c; c = c->next)
        if (task == TASK_CVS || task_of(text_of(c, "task")) == (int)task)
            text_addf(out, "Criterion \"%s\": %s. It is met with %s. It is not met with %s.\n", text_of(c, "name"),
                      text_of(c, "means"), text_of(c, "yes"), text_of(c, "no"));
    for (const Json *n = notes ? notes->child : NULL; n; n = n->next) text_addf(out, "%s\n", n->str);
    if (info->level != 1 && !cvs) {
        print_rows(json_get(root, "actions"), "Actions (meaning; what shows it)", "means seen", out);
        print_cooccurrence(root, out);
    }
    if (task == TASK_PHASE || task == TASK_STEP) {
        print_rows(json_get(root, "phases"), "Phases (aim; what shows it)", "goal seen", out);
        if (*text_of(root, "order_note")) text_addf(out, "%s\n", text_of(root, "order_note"));
    } else if (info->level == 0) print_names(json_get(root, "phases"), "Phases", out);
}
