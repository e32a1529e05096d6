// run.c - surgr1 run: a recipe, which is a list of stages, each one command line of this program.
//
// What it is:  a recipe is JSON (data/recipes/README.md). All of it is resolved and checked against the commands' own option
//              tables before the first stage starts, so that a slip costs no hour. Stages run as children of this program,
//              one after the other; a finished one leaves a stamp with its command line and is skipped from then on.
// What it is not: a build system. It looks at command lines and stamps, not at the bytes of inputs; and it runs no other
//              program.
// Read before: commands.h, ../io/process.c.  Read next: table.c, ../data/recipes/README.md.
//
// Beneath the variable "out":
//   recipe.json             the recipe as it was resolved
//   .stages/NAME.begun      which of the stage's folders were not there when it first started: those are ours to remove
//   .stages/NAME.json       the stamp of a finished stage: command line, hashes of the stamps it came after, seconds
//   .stages/trash           a folder on its way out: renamed first, so that no half of it stays in its place
#include "commands.h"
#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

static struct {
    const char *only, *from, *with;
    Many set, redo;
    bool list;
} given;
// clang-format off
static Option run_options[] = {
    MANY("set", &given.set, "NAME=VALUE", "another value of a variable of the recipe; again for more", 64),
    TEXT("only", &given.only, "STAGE,...", "these stages only"),
    TEXT("from", &given.from, "STAGE", "this stage and those behind it"),
    TEXT("with", &given.with, "TAG,...", "also the stages with one of these tags"),
    MANY("redo", &given.redo, "STAGE", "throw away what this stage made, and those that come from it, and run them again", 64),
    FLAG("list", &given.list, "the stages, their state and their command lines; nothing runs"),
    END};
// clang-format on

// What never decides a number of a stage: a changed value makes no new stage.
static const char *const free_options[] = {"threads", "max-memory", "quiet", "verbose", "log-format"};

typedef struct Words {
    char **p; // [n], and a NULL behind them
    int n, cap;
} Words;
enum State { STATE_TODO, STATE_DONE, STATE_CHANGED, STATE_STALE };
static const char *const state_names[] = {"to do", "done", "changed", "stale"};

typedef struct Stage {
    const Json *at;
    const char *name, *about;
    Words line;                 // the command line, without the program
    Words makes, fresh, folder; // fresh, folder: owned; a half-made `fresh` must go before a second start
    Words tags;
    int after[64], n_after;
    double expected, took; // seconds; NaN: unknown
    enum State state;
    int stale_by; // the stage that it came from has changed; -1: none
    bool selected, redo;
    char id[65];      // SHA-256 of the stamp; "" without one
    char *difference; // STATE_CHANGED: what the command line was
} Stage;

static struct Recipe {
    const char *path;
    JsonDoc doc;
    char here[1100], dir[1200]; // the folder of the recipe; OUT/.stages
    const char *name, *out;
    Words names, values; // variables
    Stage *stages;
    int n, lock;
} recipe;

static void words_add(Words *w, const char *text, size_t len) {
    if (w->n + 1 >= w->cap) {
        w->cap = 2 * w->cap + 8;
        w->p = grow_or_die(w->p, (size_t)w->cap, sizeof *w->p, "words of a recipe");
    }
    char *copy = alloc_or_die(len + 1, 1, "a word of a recipe");
    if (len) memcpy(copy, text, len);
    w->p[w->n++] = copy, w->p[w->n] = NULL;
}
static void words_free(Words *w) {
    for (int i = 0; i < w->n; i++) free(w->p[i]);
    free(w->p);
    *w = (Words){0};
}
static bool words_have(const Words *w, const char *text, size_t len) {
    for (int i = 0; i < w->n; i++)
        if (strlen(w->p[i]) == len && !memcmp(w->p[i], text, len)) return true;
    return false;
}
static void words_json(const Words *w, Text *out) {
    text_addf(out, "[");
    for (int i = 0; i < w->n; i++) {
        text_addf(out, i ? "," : "");
        text_add_json_string(out, w->p[i], strlen(w->p[i]));
    }
    text_addf(out, "]");
}
static bool in_list(const char *list, const char *word) { // comma-separated
    for (const char *p = list; p && *p;) {
        size_t n = strcspn(p, ",");
        if (n == strlen(word) && !memcmp(p, word, n)) return true;
        p += n + (p[n] == ',');
    }
    return false;
}

// A command line as a shell takes it.
static void line_text(const Words *w, Text *out) {
    static const char plain[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-./:=,+@%";
    text_addf(out, "surgr1");
    for (int i = 0; i < w->n; i++) {
        const char *p = w->p[i];
        text_addf(out, " ");
        if (*p && !p[strspn(p, plain)]) text_addf(out, "%s", p);
        else {
            text_addf(out, "'");
            for (; *p; p++)
                if (*p == '\'') text_addf(out, "'\\''");
                else text_add(out, p, 1);
            text_addf(out, "'");
        }
    }
}

// ---------------------------------------------------------------------------------------------------------- variables
static bool letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
static bool digit(char c) { return c >= '0' && c <= '9'; }

static int variable(const char *name, size_t len) {
    for (int i = 0; i < recipe.names.n; i++)
        if (strlen(recipe.names.p[i]) == len && !memcmp(recipe.names.p[i], name, len)) return i;
    return -1;
}

// Every {name} by its value. Braces around anything else stand for themselves.
static bool fill_in(const Json *v, const char *field, Text *out, Err *e) {
    if (memchr(v->str, 0, v->len))
        return err_set(e, "E-CF-02", json_at(&recipe.doc, v, field), "expected text; found a zero byte; do: remove it");
    for (size_t i = 0; i < v->len; i++) {
        size_t n = 1;
        bool name = v->str[i] == '{' && i + 1 < v->len && letter(v->str[i + 1]);
        while (name && i + n < v->len && (letter(v->str[i + n]) || digit(v->str[i + n]))) n++;
        if (!name || i + n >= v->len || v->str[i + n] != '}') {
            text_add(out, v->str + i, 1);
            continue;
        }
        int k = variable(v->str + i + 1, n - 1);
        if (k < 0)
            return err_set(e, "E-CF-02", json_at(&recipe.doc, v, field),
                           "expected variables of this recipe; found %s; do: add it to \"variables\", before its use",
                           quoted(v->str + i, n + 1));
        text_addf(out, "%s", recipe.values.p[k]);
        i += n;
    }
    if (!out->p) text_add(out, "", 0);
    return true;
}

// A text, a number or true or false, as text.
static bool value_text(const Json *v, const char *field, Text *out, Err *e) {
    out->len = 0;
    if (v->type == JSON_STRING) return fill_in(v, field, out, e);
    if (v->type == JSON_NUMBER) return text_add(out, v->str, v->len), true;
    if (v->type == JSON_TRUE || v->type == JSON_FALSE)
        return text_addf(out, v->type == JSON_TRUE ? "true" : "false"), true;
    return err_set(e, "E-CF-02", json_at(&recipe.doc, v, field),
                   "expected a text, a number, true or false; found %s; do: change it", json_shown(v));
}

static const char *set_value(const char *name) { // by --set; the last one counts
    const char *found = NULL;
    size_t n = strlen(name);
    for (int i = 0; i < given.set.n; i++)
        if (!strncmp(given.set.p[i], name, n) && given.set.p[i][n] == '=') found = given.set.p[i] + n + 1;
    return found;
}

static bool is_object(const Json *v, const char *field, Err *e) {
    return !v || v->type == JSON_OBJECT ||
           err_set(e, "E-CF-02", json_at(&recipe.doc, v, field), "expected an object; found %s; do: write {...}",
                   json_shown(v));
}

static bool add_variables(const Json *object, const char *field, Err *e) {
    Text t = {0};
    bool ok = is_object(object, field, e);
    for (const Json *v = ok && object ? object->child : NULL; ok && v; v = v->next) {
        bool good = v->key_len > 0 && letter(v->key[0]);
        for (size_t i = 0; i < v->key_len; i++) good = good && (letter(v->key[i]) || digit(v->key[i]));
        if (!good || variable(v->key, v->key_len) >= 0) {
            ok = err_set(e, "E-CF-02", json_at(&recipe.doc, v, field),
                         "expected a new name of letters, digits and _; found %s; do: choose another one",
                         quoted(v->key, v->key_len));
            break;
        }
        const char *other = set_value(v->key);
        ok = value_text(v, v->key, &t, e); // a bad value is bad though another one takes its place
        if (!ok) break;
        words_add(&recipe.names, v->key, v->key_len);
        words_add(&recipe.values, other ? other : t.p, other ? strlen(other) : t.len);
    }
    text_free(&t);
    return ok;
}

// "variants": {"size": {"7b": {...}, "3b": {...}}}: the variable `size` says whose variables come in.
static bool add_variants(const Json *variants, Err *e) {
    if (!is_object(variants, "variants", e)) return false;
    for (const Json *v = variants ? variants->child : NULL; v; v = v->next) {
        int k = variable(v->key, v->key_len);
        if (k < 0)
            return err_set(e, "E-CF-02", json_at(&recipe.doc, v, "variants"),
                           "expected a variable of this recipe; found %s; do: add it to \"variables\"",
                           quoted(v->key, v->key_len));
        if (!is_object(v, v->key, e)) return false;
        const Json *chosen = json_get(v, recipe.values.p[k]);
        Text words = {0};
        for (const Json *x = v->child; x; x = x->next) text_addf(&words, "%s%s", x == v->child ? "" : ", ", x->key);
        if (!chosen)
            err_set(e, "E-CF-02", json_at(&recipe.doc, v, v->key), "expected one of %s; found %s; do: --set %s=...",
                    words.p ? words.p : "none", quoted(recipe.values.p[k], strlen(recipe.values.p[k])), v->key);
        text_free(&words);
        if (!chosen || !add_variables(chosen, "variants", e)) return false;
    }
    return true;
}

// ------------------------------------------------------------------------------------------------------------- stages
static bool one_of(const Json *object, const char *const *names, const char *what, Err *e) {
    for (const Json *v = object->child; v; v = v->next) {
        bool known = false;
        for (int i = 0; names[i]; i++) known = known || !strcmp(v->key, names[i]);
        if (!known)
            return err_set(e, "E-CF-02", json_at(&recipe.doc, v, v->key),
                           "expected a member of %s; found an unknown one; do: see data/recipes/README.md", what);
    }
    return true;
}

// A text or a list of texts, resolved; empty ones are left out.
static bool add_texts(const Json *v, const char *field, Words *out, Err *e) {
    Text t = {0};
    bool ok = true;
    if (v && v->type == JSON_NULL) v = NULL;
    bool list = v && v->type == JSON_ARRAY;
    for (const Json *x = list ? v->child : v; ok && x; x = list ? x->next : NULL) {
        ok = value_text(x, field, &t, e);
        if (ok && t.len) words_add(out, t.p, t.len);
    }
    text_free(&t);
    return ok;
}

static bool option_into(Stage *s, const Command *c, const Json *v, Err *e) {
    Where at = json_at(&recipe.doc, v, v->key);
    const Option *o = option_named(c, v->key, at, e);
    Words texts = {0};
    if (!o || !add_texts(v, v->key, &texts, e)) return words_free(&texts), false;
    bool flag = o->kind == OPT_FLAG || o->kind == OPT_UNFLAG, ok = true;
    int most = o->kind == OPT_MANY ? (int)o->max : 1;
    char name[80];
    snprintf(name, sizeof name, "--%s", o->name);
    if (texts.n > most)
        ok = err_set(e, "E-CF-02", at, "expected at most %d value%s; found %d; do: leave some out", most,
                     most == 1 ? "" : "s", texts.n);
    for (int i = 0; ok && i < texts.n; i++) {
        if (flag && strcmp(texts.p[i], "true") && strcmp(texts.p[i], "false"))
            ok = err_set(e, "E-CF-02", at, "expected true or false; found %s; do: write one of them",
                         quoted(texts.p[i], strlen(texts.p[i])));
        if (!ok || (flag && !strcmp(texts.p[i], "false"))) continue;
        if (!flag && !(ok = option_takes(c, o, texts.p[i], at, e))) continue;
        words_add(&s->line, name, strlen(name));
        if (!flag) words_add(&s->line, texts.p[i], strlen(texts.p[i]));
    }
    words_free(&texts);
    return ok;
}

static bool read_line(Stage *s, Err *e) {
    const Json *command = json_get(s->at, "command"), *options = json_get(s->at, "options"),
               *arguments = json_get(s->at, "arguments"), *sft = json_get(s->at, "sft");
    const char *nearest = NULL;
    const Command *c = command && command->type == JSON_STRING ? command_named(command->str, &nearest) : NULL;
    if (!c)
        return err_set(e, "E-CF-02", json_at(&recipe.doc, command ? command : s->at, "command"),
                       "expected a command of surgr1; found %s; do: %s%s", json_shown(command),
                       nearest ? "write " : "see surgr1 --help", nearest ? nearest : "");
    words_add(&s->line, c->name, strlen(c->name));
    if (!is_object(options, "options", e)) return false;
    for (const Json *v = options ? options->child : NULL; v; v = v->next)
        if (!option_into(s, c, v, e)) return false;
    Words texts = {0};
    if (!add_texts(arguments, "arguments", &texts, e)) return words_free(&texts), false;
    bool dash = false, ok = texts.n >= c->min_args && texts.n <= c->max_args;
    if (!ok)
        err_set(e, "E-CF-02", json_at(&recipe.doc, arguments ? arguments : s->at, "arguments"),
                "expected %s; found %d; do: see surgr1 %s --help", c->args, texts.n, c->name);
    for (int i = 0; i < texts.n; i++) dash = dash || texts.p[i][0] == '-';
    if (dash) words_add(&s->line, "--", 2);
    for (int i = 0; ok && i < texts.n; i++) words_add(&s->line, texts.p[i], strlen(texts.p[i]));
    words_free(&texts);
    if (!ok || !sft) return ok;
    if (strcmp(c->name, "refine") || dash)
        return err_set(e, "E-CF-02", json_at(&recipe.doc, sft, "sft"),
                       "expected this member with the command refine alone, and no options in \"arguments\"; found %s; "
                       "do: remove it",
                       c->name);
    words_add(&s->line, "--", 2);
    if (!is_object(sft, "sft", e)) return false;
    for (const Json *v = sft->child; v; v = v->next)
        if (!option_into(s, command_named("sft", &nearest), v, e)) return false;
    return true;
}

// A folder may be removed again only when it lies beneath OUT, and in no folder of another stage.
static bool own_folders(const Stage *s, const Words *w, const char *field, Err *e) {
    size_t n = strlen(recipe.out);
    for (int i = 0; i < w->n; i++) {
        const char *p = w->p[i], *found = NULL;
        if (strncmp(p, recipe.out, n) || p[n] != '/') found = p;
        for (const char *part = p + n + 1; !found; part++) {
            size_t len = strcspn(part, "/");
            if (!len || (len == 1 && part[0] == '.') || (len == 2 && !memcmp(part, "..", 2)) ||
                (len == 7 && !memcmp(part, ".stages", 7)))
                found = p;
            part += len;
            if (!*part) break;
        }
        if (found)
            return err_set(e, "E-CF-02", json_at(&recipe.doc, json_get(s->at, field), field),
                           "expected a folder beneath {out}, without \"..\"; found %s; do: write \"{out}/NAME\"",
                           quoted(found, strlen(found)));
        for (const Stage *other = recipe.stages; other < s; other++)
            for (int k = 0; k < other->fresh.n + other->folder.n; k++) {
                const char *q = k < other->fresh.n ? other->fresh.p[k] : other->folder.p[k - other->fresh.n];
                size_t a = strlen(p), b = strlen(q), least = a < b ? a : b;
                if (!strncmp(p, q, least) && (a == b || (a > b ? p[least] : q[least]) == '/'))
                    return err_set(e, "E-CF-02", json_at(&recipe.doc, json_get(s->at, field), field),
                                   "expected a folder of this stage alone; found %s, which is that of stage %s; do: "
                                   "give each its own",
                                   quoted(p, a), other->name);
            }
    }
    return true;
}

static int stage_named(const char *name, int end) {
    for (int i = 0; i < end; i++)
        if (!strcmp(recipe.stages[i].name, name)) return i;
    return -1;
}
static bool same_words(const Words *a, const Words *b) {
    bool same = a->n == b->n;
    for (int i = 0; same && i < a->n; i++) same = !strcmp(a->p[i], b->p[i]);
    return same;
}

// What it comes from: the stages of "after", else the nearest one before it that has no tags or the same ones.
static bool read_after(Stage *s, Err *e) {
    const Json *after = json_get(s->at, "after");
    int me = (int)(s - recipe.stages), nearest = me - 1;
    Words names = {0};
    bool ok = add_texts(after, "after", &names, e);
    while (nearest >= 0 && recipe.stages[nearest].tags.n && !same_words(&recipe.stages[nearest].tags, &s->tags))
        nearest--;
    if (ok && !after && nearest >= 0) s->after[s->n_after++] = nearest;
    for (int i = 0; ok && i < names.n; i++) {
        int k = stage_named(names.p[i], me);
        if (k < 0 || s->n_after == (int)(sizeof s->after / sizeof *s->after))
            ok = err_set(e, "E-CF-02", json_at(&recipe.doc, after, "after"),
                         "expected at most 64 names of stages before this one; found %s; do: change it",
                         quoted(names.p[i], strlen(names.p[i])));
        else s->after[s->n_after++] = k;
    }
    words_free(&names);
    return ok;
}

static bool read_stage(Stage *s, Err *e) {
    static const char *const members[] = {"name",  "about",  "command", "options", "arguments", "sft",     "makes",
                                          "fresh", "folder", "after",   "tags",    "seconds",   "sources", NULL};
    const Json *name = json_get(s->at, "name"), *about = json_get(s->at, "about");
    static const char allowed[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-.+ ";
    bool good = name && name->type == JSON_STRING && name->len > 0 && name->len <= 60 && name->str[0] != '.' &&
                name->str[0] != '-' && strspn(name->str, allowed) == name->len;
    if (!good || stage_named(name->str, (int)(s - recipe.stages)) >= 0)
        return err_set(e, "E-CF-02", json_at(&recipe.doc, name ? name : s->at, "name"),
                       "expected a name of its own: 1 to 60 letters, digits, blanks and _-.+; found %s; do: change it",
                       json_shown(name));
    s->name = name->str, s->about = about && about->type == JSON_STRING ? about->str : NULL;
    s->expected = s->took = NAN, s->stale_by = -1;
    return one_of(s->at, members, "a stage", e) && read_line(s, e) &&
           add_texts(json_get(s->at, "tags"), "tags", &s->tags, e) &&
           add_texts(json_get(s->at, "makes"), "makes", &s->makes, e) &&
           add_texts(json_get(s->at, "fresh"), "fresh", &s->fresh, e) && own_folders(s, &s->fresh, "fresh", e) &&
           add_texts(json_get(s->at, "folder"), "folder", &s->folder, e) && own_folders(s, &s->folder, "folder", e) &&
           read_after(s, e) && json_double(&recipe.doc, s->at, "seconds", false, 0, 1e9, &s->expected, e);
}

static bool known_sets(Err *e) {
    for (int i = 0; i < given.set.n; i++) {
        const char *p = given.set.p[i], *best = NULL;
        size_t n = strcspn(p, "=");
        int least = 3;
        if (p[n] && variable(p, n) >= 0) continue;
        char name[64];
        snprintf(name, sizeof name, "%.*s", (int)(n < 60 ? n : 60), p);
        for (int k = 0; k < recipe.names.n; k++)
            if (word_distance(name, recipe.names.p[k]) < least)
                least = word_distance(name, recipe.names.p[k]), best = recipe.names.p[k];
        return err_set(e, "E-CL-01", AT(.file = "command line", .field = "--set"),
                       "expected NAME=VALUE with a variable of %s; found %s; do: %s%s", recipe.path,
                       quoted(p, strlen(p)), best ? "write " : "see its \"variables\"", best ? best : "");
    }
    return true;
}

static bool read_recipe(const char *path, Err *e) {
    static const char *const members[] = {"format", "name",   "about",   "variables", "variants",
                                          "needs",  "stages", "sources", NULL};
    int64_t format = 0;
    recipe.path = path;
    if (!json_read(&recipe.doc, path, LIMIT_CONFIG_BYTES, (JsonOptions){.refuse_duplicates = true}, e)) return false;
    const Json *root = recipe.doc.root, *name = json_get(root, "name"), *stages = json_get(root, "stages");
    if (!is_object(root, "recipe", e) || !json_int(&recipe.doc, root, "format", true, 1, 1, &format, e) ||
        !one_of(root, members, "a recipe", e) || !path_dir(recipe.here, sizeof recipe.here, path, e))
        return false;
    recipe.name = name && name->type == JSON_STRING ? name->str : path;
    words_add(&recipe.names, "here", 4), words_add(&recipe.values, recipe.here, strlen(recipe.here));
    if (!add_variables(json_get(root, "variables"), "variables", e) || !add_variants(json_get(root, "variants"), e) ||
        !known_sets(e))
        return false;
    int out = variable("out", 3);
    if (out < 0 || !recipe.values.p[out][0])
        return err_set(e, "E-CF-02", json_at(&recipe.doc, root, "variables"),
                       "expected a variable \"out\", the folder of this run; found none; do: add it");
    recipe.out = recipe.values.p[out];
    if (!stages || stages->type != JSON_ARRAY || !stages->count)
        return err_set(e, "E-CF-02", json_at(&recipe.doc, stages ? stages : root, "stages"),
                       "expected a list of stages; found %s; do: see data/recipes/README.md", json_shown(stages));
    recipe.stages = alloc_or_die(stages->count, sizeof *recipe.stages, "stages");
    for (const Json *v = stages->child; v; v = v->next) {
        Stage *s = &recipe.stages[recipe.n++];
        s->at = v;
        if (!is_object(v, "stages", e) || !read_stage(s, e)) return false;
    }
    return path_join(recipe.dir, sizeof recipe.dir, recipe.out, ".stages", e);
}

// ------------------------------------------------------------------------------------------------------------- stamps
static bool stage_path(const Stage *s, const char *end, char *out, size_t size, Err *e) {
    char name[80];
    snprintf(name, sizeof name, "%s%s", s->name, end);
    return path_join(out, size, recipe.dir, name, e);
}

static bool texts_of(const JsonDoc *doc, const char *name, Words *out, Err *e) { // a list of texts of a file of ours
    const Json *v = json_get(doc->root, name);
    bool ok = v && v->type == JSON_ARRAY;
    for (const Json *x = ok ? v->child : NULL; ok && x; x = x->next)
        if ((ok = x->type == JSON_STRING)) words_add(out, x->str, x->len);
    return ok ||
           err_set(e, "E-CF-02", json_at(doc, v ? v : doc->root, name),
                   "expected a list of texts; found %s; do: remove this file, the stage runs again", json_shown(v));
}

// The option that word k of a command line belongs to, or the word itself.
static const char *option_at(const Words *w, int k) {
    if (k > 0 && k < w->n && strncmp(w->p[k], "--", 2) && !strncmp(w->p[k - 1], "--", 2)) return w->p[k - 1];
    return k < w->n ? w->p[k] : "the end";
}
static int skip_free(const Words *w, int k) { // past the options that decide nothing
    for (bool again = true; again && k < w->n;) {
        again = false;
        for (size_t i = 0; i < sizeof free_options / sizeof *free_options; i++)
            if (!strncmp(w->p[k], "--", 2) && !strcmp(w->p[k] + 2, free_options[i])) {
                bool flag = !strcmp(free_options[i], "quiet") || !strcmp(free_options[i], "verbose");
                k += flag ? 1 : 2, again = true;
                break;
            }
    }
    return k < w->n ? k : w->n;
}
// The first difference of two command lines, in words; NULL when they say the same.
static char *line_difference(const Words *before, const Words *now) {
    int i = skip_free(before, 0), k = skip_free(now, 0);
    while (i < before->n && k < now->n && !strcmp(before->p[i], now->p[k]))
        i = skip_free(before, i + 1), k = skip_free(now, k + 1);
    if (i == before->n && k == now->n) return NULL;
    Text t = {0};
    const char *old = i < before->n ? before->p[i] : "nothing", *new = k < now->n ? now->p[k] : "nothing";
    text_addf(&t, "%s %s instead of %s %s", option_at(now, k), quoted(new, strlen(new)), option_at(before, i),
              quoted(old, strlen(old)));
    return t.p;
}

static bool all_there(const Words *w) {
    bool ok = true;
    for (int i = 0; i < w->n; i++) ok = ok && (file_exists(w->p[i]) || folder_exists(w->p[i]));
    return ok;
}

// What the stamp says about the stage as the recipe has it now. The states of the stages before it are known.
static bool read_state(Stage *s, Err *e) {
    char path[1300];
    char *text;
    size_t size;
    JsonDoc stamp;
    s->state = STATE_TODO, s->id[0] = 0, s->stale_by = -1;
    if (!stage_path(s, ".json", path, sizeof path, e)) return false;
    if (!file_exists(path)) return true;
    if (!file_read(path, LIMIT_CONFIG_BYTES, "E-JS-01", &text, &size, e)) return false;
    sha256_hex(text, size, s->id);
    bool ok = json_parse(&stamp, text, size, path, (JsonOptions){.refuse_duplicates = true}, e);
    free(text);
    if (!ok) return false;
    Words before = {0};
    ok = texts_of(&stamp, "command", &before, e) &&
         json_double(&stamp, stamp.root, "seconds", true, 0, 1e12, &s->took, e);
    const Json *after = json_get(stamp.root, "after");
    if (ok) {
        free(s->difference);
        s->difference = line_difference(&before, &s->line);
        s->state = s->difference ? STATE_CHANGED : all_there(&s->makes) ? STATE_DONE : STATE_TODO;
        for (int i = 0; i < s->n_after; i++) {
            const Stage *from = &recipe.stages[s->after[i]];
            bool same = from->state == STATE_DONE && json_is(json_get(after, from->name), from->id);
            if (!same && s->state == STATE_DONE) s->state = STATE_STALE;
            if (!same && s->stale_by < 0) s->stale_by = s->after[i];
        }
    }
    words_free(&before), json_free(&stamp);
    return ok;
}

static bool write_stamp(Stage *s, double seconds, Err *e) {
    char path[1300];
    Text t = {0};
    struct timespec now; // to the nanosecond: no two stamps are alike
    clock_gettime(CLOCK_REALTIME, &now);
    text_addf(&t, "{\"stage\":\"%s\",\"command\":", s->name);
    words_json(&s->line, &t);
    text_addf(&t, ",\"after\":{");
    for (int i = 0; i < s->n_after; i++)
        text_addf(&t, "%s\"%s\":\"%s\"", i ? "," : "", recipe.stages[s->after[i]].name, recipe.stages[s->after[i]].id);
    text_addf(&t, "},\"seconds\":%.3f,\"ended\":%lld.%09ld}\n", seconds, (long long)now.tv_sec, now.tv_nsec);
    bool ok = stage_path(s, ".json", path, sizeof path, e) && file_write_atomic(path, t.p, t.len, e);
    text_free(&t);
    return ok;
}

// ---------------------------------------------------------------------------------------------------- folders of stages
static bool read_begun(const Stage *s, Words *made, bool *begun, Err *e) {
    char path[1300];
    JsonDoc doc;
    *begun = false;
    if (!stage_path(s, ".begun", path, sizeof path, e)) return false;
    if (!file_exists(path)) return true;
    *begun = true;
    if (!json_read(&doc, path, LIMIT_CONFIG_BYTES, (JsonOptions){.refuse_duplicates = true}, e)) return false;
    bool ok = texts_of(&doc, "made", made, e);
    json_free(&doc);
    return ok;
}

// Out of its place in one step, then away. No link may lie between OUT and the folder.
static bool remove_owned(const char *path, Err *e) {
    char trash[1300], part[1300];
    if (!folder_exists(path) && !file_exists(path)) return true;
    for (const char *end = path + strlen(recipe.out); *end;) {
        struct stat st;
        end += 1 + strcspn(end + 1, "/");
        snprintf(part, sizeof part, "%.*s", (int)(end - path), path);
        if (lstat(part, &st) || S_ISLNK(st.st_mode))
            return err_set(e, "E-WR-02", AT(.file = part),
                           "expected folders beneath %s; found a link; do: remove it by hand", recipe.out);
    }
    note("removing %s, which this recipe made", path);
    if (!path_join(trash, sizeof trash, recipe.dir, "trash", e) || !tree_remove(trash, e)) return false;
    if (rename(path, trash))
        return err_set(e, "E-WR-02", AT(.file = path), "expected to move it away; found %s; do: remove it by hand",
                       error_text(errno));
    return tree_remove(trash, e);
}

// Before a start: what must begin anew goes, and what is not there yet is written down as ours.
static bool prepare(const Stage *s, Err *e) {
    char path[1300];
    Words made = {0};
    bool begun, ok = read_begun(s, &made, &begun, e);
    for (int i = 0; ok && i < s->fresh.n; i++)
        if (words_have(&made, s->fresh.p[i], strlen(s->fresh.p[i]))) ok = remove_owned(s->fresh.p[i], e);
    const Words *owned[2] = {&s->fresh, &s->folder};
    for (int k = 0; ok && k < 2; k++)
        for (int i = 0; i < owned[k]->n; i++) {
            const char *p = owned[k]->p[i];
            if (!folder_exists(p) && !file_exists(p) && !words_have(&made, p, strlen(p)))
                words_add(&made, p, strlen(p));
            ok = ok && path_dir(path, sizeof path, p, e) &&
                 folder_make_all(path, e); // not every command makes those above
        }
    Text t = {0};
    text_addf(&t, "{\"stage\":\"%s\",\"made\":", s->name);
    words_json(&made, &t);
    text_addf(&t, "}\n");
    ok = ok && stage_path(s, ".begun", path, sizeof path, e) && file_write_atomic(path, t.p, t.len, e);
    text_free(&t), words_free(&made);
    return ok;
}

// --redo: the stamp goes first, so that a half-removed stage never looks finished.
static bool throw_away(const Stage *s, Err *e) {
    char stamp[1300], begin[1300];
    Words made = {0};
    bool begun, ok = read_begun(s, &made, &begun, e);
    const Words *owned[2] = {&s->fresh, &s->folder};
    for (int k = 0; ok && k < 2; k++)
        for (int i = 0; ok && i < owned[k]->n; i++) {
            const char *p = owned[k]->p[i];
            if ((folder_exists(p) || file_exists(p)) && !words_have(&made, p, strlen(p)))
                ok =
                    err_set(e, "E-CF-02", AT(.file = p),
                            "expected a folder that stage %s of this recipe made; found one that was there before; do: "
                            "move it away, then run with --redo again",
                            s->name);
        }
    ok = ok && stage_path(s, ".json", stamp, sizeof stamp, e) && tree_remove(stamp, e) &&
         stage_path(s, ".begun", begin, sizeof begin, e);
    for (int k = 0; ok && k < 2; k++)
        for (int i = 0; ok && i < owned[k]->n; i++) ok = remove_owned(owned[k]->p[i], e);
    words_free(&made);
    return ok && tree_remove(begin, e);
}

// ------------------------------------------------------------------------------------------------------------- running
static bool names_known(const char *list, const char *option, Err *e) {
    for (const char *p = list; p && *p;) {
        size_t n = strcspn(p, ",");
        char name[80];
        snprintf(name, sizeof name, "%.*s", (int)(n < 70 ? n : 70), p);
        if (stage_named(name, recipe.n) < 0)
            return err_set(e, "E-CL-01", AT(.file = "command line", .field = option),
                           "expected a stage of %s; found %s; do: see surgr1 run %s --list", recipe.path, quoted(p, n),
                           recipe.path);
        p += n + (p[n] == ',');
    }
    return true;
}

static bool select_stages(Err *e) {
    if (!names_known(given.only, "--only", e) || !names_known(given.from, "--from", e)) return false;
    for (int i = 0; i < given.redo.n; i++)
        if (!names_known(given.redo.p[i], "--redo", e)) return false;
    int from = given.from ? stage_named(given.from, recipe.n) : 0;
    for (const char *p = given.with; p && *p;) {
        size_t n = strcspn(p, ",");
        bool known = false;
        for (int i = 0; i < recipe.n; i++) known = known || words_have(&recipe.stages[i].tags, p, n);
        if (!known)
            return err_set(e, "E-CL-01", AT(.file = "command line", .field = "--with"),
                           "expected a tag of a stage of %s; found %s; do: see surgr1 run %s --list", recipe.path,
                           quoted(p, n), recipe.path);
        p += n + (p[n] == ',');
    }
    for (int i = 0; i < recipe.n; i++) {
        Stage *s = &recipe.stages[i];
        bool wanted = !s->tags.n;
        for (int k = 0; k < s->tags.n; k++) wanted = wanted || in_list(given.with, s->tags.p[k]);
        s->selected = given.only ? in_list(given.only, s->name) : wanted && i >= from;
        for (int k = 0; k < given.redo.n; k++) s->redo = s->redo || in_list(given.redo.p[k], s->name);
        for (int k = 0; k < s->n_after; k++) s->redo = s->redo || recipe.stages[s->after[k]].redo;
    }
    return true;
}

static bool read_states(Err *e) {
    bool ok = true;
    for (int i = 0; ok && i < recipe.n; i++) ok = read_state(&recipe.stages[i], e);
    return ok;
}

// Whatever would stop the run later stops it before anything starts.
static bool can_run(Err *e) {
    for (int i = 0; i < recipe.n; i++) {
        const Stage *s = &recipe.stages[i];
        Where at = AT(.file = recipe.path, .field = s->name);
        if (!s->selected) continue;
        if (s->state == STATE_CHANGED)
            return err_set(
                e, "E-CK-05", at,
                "expected the command line that this stage was made with; found %s; do: change it back, give "
                "another out, or make it and what comes from it again with --redo '%s'",
                s->difference, s->name);
        if (s->state == STATE_STALE)
            return err_set(
                e, "E-CK-05", at,
                "expected the result of stage %s that this one was made from; found that one %s; do: --redo '%s'",
                recipe.stages[s->stale_by].name,
                recipe.stages[s->stale_by].state == STATE_DONE ? "made anew" : "not there or changed",
                recipe.stages[s->stale_by].state == STATE_DONE ? s->name : recipe.stages[s->stale_by].name);
        for (int k = 0; k < s->n_after; k++) {
            const Stage *from = &recipe.stages[s->after[k]];
            if (from->state != STATE_DONE && !from->selected)
                return err_set(e, "E-CK-05", at,
                               "expected stage %s, which it comes from, to be done; found it %s; do: run it too",
                               from->name, state_names[from->state]);
        }
    }
    Words needs = {0};
    bool ok = add_texts(json_get(recipe.doc.root, "needs"), "needs", &needs, e);
    for (int i = 0; ok && i < needs.n; i++)
        if (!file_exists(needs.p[i]) && !folder_exists(needs.p[i]))
            ok = err_set(e, "E-IO-01", AT(.file = needs.p[i]),
                         "expected what this recipe starts from; found nothing; do: see \"variables\" of %s, and --set",
                         recipe.path);
    words_free(&needs);
    return ok;
}

static bool write_recipe(Err *e) {
    char path[1300];
    Text t = {0};
    text_addf(&t, "{\"format\":1,\"name\":");
    text_add_json_string(&t, recipe.name, strlen(recipe.name));
    text_addf(&t, ",\"version\":\"" SURGR1_VERSION "\",\"variables\":{");
    for (int i = 0; i < recipe.names.n; i++) {
        text_addf(&t, "%s\n  \"%s\":", i ? "," : "", recipe.names.p[i]);
        text_add_json_string(&t, recipe.values.p[i], strlen(recipe.values.p[i]));
    }
    text_addf(&t, "},\"stages\":[");
    for (int i = 0; i < recipe.n; i++) {
        const Stage *s = &recipe.stages[i];
        text_addf(&t, "%s\n  {\"name\":\"%s\",\"command\":", i ? "," : "", s->name);
        words_json(&s->line, &t);
        const Json *sources = json_get(s->at, "sources");
        if (sources) text_addf(&t, ",\"sources\":"), json_print(&t, sources);
        text_addf(&t, "}");
    }
    text_addf(&t, "]}\n");
    bool ok = path_join(path, sizeof path, recipe.out, "recipe.json", e) && file_write_atomic(path, t.p, t.len, e);
    text_free(&t);
    return ok;
}

static void list_stages(void) {
    printf("%s\n", recipe.name);
    for (int i = 0; i < recipe.n; i++) {
        const Stage *s = &recipe.stages[i];
        Text t = {0};
        line_text(&s->line, &t);
        printf("%2d  %-8s %s", i + 1, s->selected || s->state != STATE_TODO ? state_names[s->state] : "off", s->name);
        for (int k = 0; k < s->tags.n; k++) printf("%s%s", k ? "," : " [", s->tags.p[k]);
        printf("%s%s%s\n             %s\n", s->tags.n ? "]" : "", s->about ? ": " : "", s->about ? s->about : "", t.p);
        text_free(&t);
    }
}

static const char *time_text(double seconds, char out[40]) {
    if (seconds < 100) snprintf(out, 40, "%.1f s", seconds);
    else if (seconds < 6000) snprintf(out, 40, "%.0f min", seconds / 60);
    else snprintf(out, 40, "%.1f h", seconds / 3600);
    return out;
}

// What is left: the expected seconds of the stages to come, times how the finished ones compared with theirs.
static double time_left(int next) {
    double took = 0, expected = 0, left = 0;
    for (int i = 0; i < recipe.n; i++) {
        const Stage *s = &recipe.stages[i];
        bool known = isfinite(s->expected);
        if (s->state == STATE_DONE && known && isfinite(s->took)) took += s->took, expected += s->expected;
        if (i >= next && s->selected && s->state != STATE_DONE) left += known ? s->expected : (double)NAN;
    }
    return expected > 0 && took > 0 ? left * took / expected : left;
}

static int run_stage(Stage *s, int number, int of, Err *e) {
    int status = 0;
    char took[40], left[40];
    Text line = {0};
    line_text(&s->line, &line);
    double started = clock_seconds(), rest = time_left((int)(s - recipe.stages));
    note("[%d/%d] %s%s%s: %s", number, of, s->name, isfinite(rest) ? ", about " : "",
         isfinite(rest) ? time_text(rest, left) : "", line.p);
    bool ok = prepare(s, e) && self_run((const char *const *)s->line.p, &status, e);
    s->took = clock_seconds() - started;
    if (ok && status) {
        note("[%d/%d] %s %s %d after %s: %s", number, of, s->name,
             status == EXIT_STOPPED ? "was stopped, exit" : "failed, exit", status, time_text(s->took, took), line.p);
        text_free(&line);
        return status;
    }
    text_free(&line);
    for (int i = 0; ok && i < s->makes.n; i++)
        if (!file_exists(s->makes.p[i]) && !folder_exists(s->makes.p[i]))
            ok = err_set(e, "E-IO-01", AT(.file = s->makes.p[i], .field = s->name),
                         "expected the stage to make it; found nothing; do: check \"makes\" of the recipe");
    ok = ok && write_stamp(s, s->took, e);
    if (!ok) return err_report(e);
    double seconds = s->took;
    if (!read_state(s, e)) return err_report(e);
    note("[%d/%d] %s: done in %s", number, of, s->name, time_text(seconds, took));
    return EXIT_OK;
}

static int run_stages(Err *e) {
    char text[40];
    int of = 0, number = 0, ran = 0, rc = EXIT_OK;
    double started = clock_seconds();
    for (int i = 0; i < recipe.n; i++) of += recipe.stages[i].selected;
    for (int i = 0; rc == EXIT_OK && i < recipe.n; i++) {
        Stage *s = &recipe.stages[i];
        if (!s->selected) continue;
        number++;
        if (s->state == STATE_DONE)
            note("[%d/%d] %s: done before, in %s", number, of, s->name, time_text(s->took, text));
        else if (stop_requested()) rc = EXIT_STOPPED;
        else rc = run_stage(s, number, of, e), ran++;
    }
    if (rc == EXIT_OK)
        note("%s: %d stages run, %d done before; %s in all", recipe.name, ran, of - ran,
             time_text(clock_seconds() - started, text));
    return rc;
}

static void recipe_free(void) {
    for (int i = 0; i < recipe.n; i++) {
        Stage *s = &recipe.stages[i];
        words_free(&s->line), words_free(&s->makes), words_free(&s->fresh), words_free(&s->folder),
            words_free(&s->tags);
        free(s->difference);
    }
    free(recipe.stages);
    words_free(&recipe.names), words_free(&recipe.values), json_free(&recipe.doc);
    if (recipe.lock >= 0) (void)!close(recipe.lock);
}

static int run_run(char **args, int n) {
    Err e = {0};
    (void)n;
    recipe.lock = -1;
    bool ok = read_recipe(args[0], &e) && select_stages(&e);
    if (given.list) {
        ok = ok && read_states(&e);
        if (ok) list_stages();
    } else {
        ok = ok && folder_make_all(recipe.dir, &e) && (recipe.lock = lock_take(recipe.dir, &e)) >= 0;
        for (int i = 0; ok && i < recipe.n; i++)
            if (recipe.stages[i].redo && recipe.stages[i].selected) ok = throw_away(&recipe.stages[i], &e);
        ok = ok && read_states(&e) && can_run(&e) && write_recipe(&e);
    }
    int rc = EXIT_OK;
    stop_on_signals();
    if (!ok) rc = err_report(&e);
    else if (!given.list) rc = run_stages(&e);
    recipe_free();
    return rc;
}

const Command command_recipe = {
    "run",
    "run RECIPE.json [--set NAME=VALUE ...] [--only STAGE,...] [--from STAGE] [--with TAG,...] [--redo STAGE] [--list]",
    "Runs the stages of a recipe (data/recipes/README.md), each a command of this program, one after the other. Every\n"
    "option of every stage is checked before the first one starts. Stages that are done are skipped, so the same line\n"
    "goes on after a stop; the trainers among them go on in their middle. Standard output is that of the stages.",
    run_options,
    1,
    1,
    "one recipe",
    run_run};
