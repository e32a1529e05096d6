// options.c - the one reader of command lines, and the help text made from the same tables.
//
// What it is:  parsing, near-miss suggestions, --help, and the start-up listing of every option with its origin.
// What it is not: aware of any subcommand. Tables belong to the files that use them.
// Read before: commands.h.  Read next: ask.c.
#include "commands.h"
#include <errno.h>

static struct {
    bool help, quiet, verbose;
    int log_format;
} common;
// clang-format off
static Option common_options[] = {
    FLAG("quiet", &common.quiet, "only errors and warnings on standard error"),
    FLAG("verbose", &common.verbose, "more on standard error"),
    CHOICE("log-format", &common.log_format, "text|json", "form of the lines on standard error"),
    FLAG("help", &common.help, "this page"),
    END};
// clang-format on

// A wrong command line: one line of the usual form, exit 2.
int usage(const char *field, const char *expected, const char *found, const char *todo) {
    Err e = {0};
    log_setup(common.quiet ? LOG_QUIET : LOG_NORMAL, common.log_format == 1);
    err_set(&e, "E-CL-01", AT(.file = "command line", .field = field), "expected %s; found %s; do: %s", expected, found,
            todo);
    return err_report(&e);
}

static int smaller(int a, int b) { return a < b ? a : b; }

// Levenshtein distance, for "did you mean"; names are short, longer ones are as far as can be.
int word_distance(const char *a, const char *b) {
    int row[41], n = (int)strlen(b);
    if (strlen(a) > 40 || n > 40) return 99;
    for (int j = 0; j <= n; j++) row[j] = j;
    for (int i = 1; a[i - 1]; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= n; j++) {
            int replaced = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            row[j] = smaller(replaced, smaller(row[j], row[j - 1]) + 1);
        }
    }
    return row[n];
}

static Option *find_option(const Command *c, const char *name, size_t len) {
    Option *tables[2] = {c->options, common_options};
    for (int t = 0; t < 2; t++)
        for (Option *o = tables[t]; o->name; o++)
            if (strlen(o->name) == len && !memcmp(o->name, name, len)) return o;
    return NULL;
}

static const char *nearest_option(const Command *c, const char *given) { // NULL when none is near
    const char *best = NULL;
    int least = 3; // two slips are a slip, three are another word
    Option *tables[2] = {c->options, common_options};
    for (int t = 0; t < 2; t++)
        for (Option *o = tables[t]; o->name; o++) {
            int d = strlen(given) > 3 && !strncmp(o->name, given, strlen(given)) ? 1 : word_distance(given, o->name);
            if (d < least) least = d, best = o->name;
        }
    return best;
}

static int unknown_option(const Command *c, const char *given) {
    char todo[160], field[80];
    const char *best = nearest_option(c, given);
    if (best) snprintf(todo, sizeof todo, "write --%s, or see surgr1 %s --help", best, c->name);
    else snprintf(todo, sizeof todo, "see surgr1 %s --help", c->name);
    snprintf(field, sizeof field, "--%.60s", given);
    return usage(field, "an option of this command", "an unknown one", todo);
}

// Which of the words "a|b|c" the text is; -1 when it is none.
int choice_of(const char *words, const char *text) {
    size_t len = strlen(text);
    for (int i = 0;; i++) {
        size_t n = strcspn(words, "|");
        if (n == len && !memcmp(words, text, n)) return i;
        if (!words[n]) return -1;
        words += n + 1;
    }
}

static void value_text(const Option *o, char *out, size_t size) {
    switch (o->kind) {
    case OPT_FLAG: snprintf(out, size, "%s", *(bool *)o->value ? "yes" : "no"); break;
    case OPT_UNFLAG: snprintf(out, size, "%s", *(bool *)o->value ? "no" : "yes"); break;
    case OPT_TEXT: snprintf(out, size, "%s", *(const char **)o->value ? *(const char **)o->value : "none"); break;
    case OPT_INT: snprintf(out, size, "%lld", (long long)*(int64_t *)o->value); break;
    case OPT_REAL: snprintf(out, size, "%g", *(double *)o->value); break;
    case OPT_MANY: {
        const Many *m = o->value;
        snprintf(out, size, "%s%s", m->n ? m->p[0] : "none", m->n > 1 ? " ..." : "");
        break;
    }
    case OPT_CHOICE: {
        const char *w = o->arg;
        for (int i = 0; i < *(int *)o->value; i++) w += strcspn(w, "|") + 1;
        snprintf(out, size, "%.*s", (int)strcspn(w, "|"), w);
        break;
    }
    }
}

// The number when it is one and in range: into *number, and of OPT_INT into *whole.
static bool number_read(const Option *o, const char *text, double *number, int64_t *whole) {
    char *end = NULL;
    errno = 0;
    double value = strtod(text, &end); // the C locale: nothing calls setlocale
    bool ok =
        *text && !*end && !errno && isfinite(value) && value >= o->min && value <= o->max && !strpbrk(text, " xX");
    *number = value;
    if (o->kind == OPT_REAL) return ok;
    errno = 0;
    *whole = strtoll(text, &end, 10);
    return ok && !*end && !errno;
}
static bool number_fits(Option *o, const char *text) { // and stores it
    double number;
    int64_t whole = 0;
    if (!number_read(o, text, &number, &whole)) return false;
    if (o->kind == OPT_REAL) *(double *)o->value = number;
    else *(int64_t *)o->value = whole;
    return true;
}

static int set_number(Option *o, const char *field, const char *text) {
    char expected[120];
    if (number_fits(o, text)) return EXIT_OK;
    if (o->kind == OPT_INT) snprintf(expected, sizeof expected, "a whole number from %.0f to %.0f", o->min, o->max);
    else snprintf(expected, sizeof expected, "a number from %g to %g", o->min, o->max);
    return usage(field, expected, quoted(text, strlen(text)), "give such a number");
}

static int set_option(const Command *c, Option *o, const char *field, const char *text) {
    Many *many = o->value;
    char todo[120];
    int chosen;
    snprintf(todo, sizeof todo, "see surgr1 %s --help", c->name);
    o->origin = "command line";
    switch (o->kind) {
    case OPT_FLAG:
    case OPT_UNFLAG: *(bool *)o->value = o->kind == OPT_FLAG; return EXIT_OK;
    case OPT_TEXT:
        if (!*text) return usage(field, o->arg, "an empty text", todo);
        *(const char **)o->value = text;
        return EXIT_OK;
    case OPT_MANY:
        if (many->n == (int)o->max || !*text)
            return usage(field, o->arg, *text ? "the option given too often" : "an empty text", todo);
        many->p[many->n++] = text;
        return EXIT_OK;
    case OPT_CHOICE:
        if ((chosen = choice_of(o->arg, text)) < 0) return usage(field, o->arg, quoted(text, strlen(text)), todo);
        *(int *)o->value = chosen;
        return EXIT_OK;
    default: return set_number(o, field, text);
    }
}

// Reads the options of argv[0..argc) and moves the other arguments to its front. *n is how many those are.
static int parse_options(const Command *c, int argc, char **argv, int *n) {
    bool only_arguments = false;
    *n = 0;
    for (int i = 0; i < argc; i++) {
        const char *a = argv[i];
        if (only_arguments || a[0] != '-' || !a[1]) {
            argv[(*n)++] = argv[i];
            continue;
        }
        if (!strcmp(a, "--")) {
            only_arguments = true;
            continue;
        }
        size_t len = strcspn(a, "=");
        Option *o = a[1] == '-' ? find_option(c, a + 2, len - 2) : NULL;
        if (!o) {
            char name[64];
            snprintf(name, sizeof name, "%.*s", (int)smaller((int)len - 1, 60), a + 1);
            return unknown_option(c, name[0] == '-' ? name + 1 : name);
        }
        char field[80];
        snprintf(field, sizeof field, "--%s", o->name);
        bool flag = o->kind == OPT_FLAG || o->kind == OPT_UNFLAG;
        if (flag && a[len]) return usage(field, "no value", quoted(a + len + 1, strlen(a + len + 1)), "leave it out");
        if (!flag && !a[len] && i + 1 >= argc) return usage(field, o->arg, "the end of the command line", "add it");
        int rc = set_option(c, o, field, flag ? NULL : a[len] ? a + len + 1 : argv[++i]);
        if (rc) return rc;
    }
    return EXIT_OK;
}

static void help_options(const Option *o) {
    for (; o->name; o++) {
        char left[64], value[64];
        bool flag = o->kind == OPT_FLAG || o->kind == OPT_UNFLAG;
        snprintf(left, sizeof left, "--%s%s%s", o->name, flag ? "" : " ", flag ? "" : o->arg);
        value_text(o, value, sizeof value);
        printf("  %-26s %s", left, o->help);
        if (o->kind == OPT_INT) printf(" (%.0f to %.0f; default %s)", o->min, o->max, value);
        else if (o->kind == OPT_REAL) printf(" (%g to %g; default %s)", o->min, o->max, value);
        else if (o->kind == OPT_CHOICE) printf(" (default %s)", value);
        printf("\n");
    }
}

static int help_command(const Command *c) {
    printf("usage: surgr1 %s\n\n%s\n\noptions:\n", c->usage, c->what);
    help_options(c->options);
    help_options(common_options);
    return EXIT_OK;
}

// The start-up listing: every option with its value, by where it came from.
void list_options(const Option *options, const char *origin, const char *title) {
    Text t = {0};
    for (const Option *o = options; o->name; o++) {
        if (strcmp(o->origin ? o->origin : "", origin) || o->kind == OPT_UNFLAG) continue;
        char value[1200];
        value_text(o, value, sizeof value);
        text_addf(&t, " --%s %s", o->name, value);
    }
    if (t.len) note("%s:%s", title, t.p);
    text_free(&t);
}

int command_run(const Command *c, int argc, char **argv) {
    int n, rc = parse_options(c, argc, argv, &n);
    if (rc) return rc;
    if (common.help) return help_command(c);
    log_setup(common.quiet ? LOG_QUIET : common.verbose ? LOG_VERBOSE : LOG_NORMAL, common.log_format == 1);
    if (n >= c->min_args && n <= c->max_args) return c->run(argv, n);
    char found[40], todo[60];
    snprintf(found, sizeof found, "%d argument%s", n, n == 1 ? "" : "s");
    snprintf(todo, sizeof todo, "see surgr1 %s --help", c->name);
    return usage(c->name, c->args, found, todo);
}

// ------------------------------------------------------------------------------------------------- saved configurations

static void value_json(const Option *o, Text *out) {
    switch (o->kind) {
    case OPT_FLAG:
    case OPT_UNFLAG: text_addf(out, "%s", *(bool *)o->value ? "true" : "false"); return;
    case OPT_INT: text_addf(out, "%lld", (long long)*(int64_t *)o->value); return;
    case OPT_REAL: text_add_json_number(out, *(double *)o->value); return;
    case OPT_MANY: {
        const Many *m = o->value;
        text_addf(out, "[");
        for (int i = 0; i < m->n; i++) {
            if (i) text_addf(out, ",");
            text_add_json_string(out, m->p[i], strlen(m->p[i]));
        }
        text_addf(out, "]");
        return;
    }
    default: break;
    }
    char value[1200];
    value_text(o, value, sizeof value);
    if (o->kind == OPT_TEXT && !*(const char **)o->value) text_addf(out, "null");
    else text_add_json_string(out, value, strlen(value));
}

void options_json(const Option *options, Text *values, Text *origins) {
    const char *comma = "";
    text_addf(values, "{"), text_addf(origins, "{");
    for (const Option *o = options; o->name; o++) {
        if (o->kind == OPT_UNFLAG) continue;
        text_addf(values, "%s\"%s\":", comma, o->name), text_addf(origins, "%s\"%s\":", comma, o->name);
        value_json(o, values);
        const char *origin = o->origin ? o->origin : "default";
        text_add_json_string(origins, origin, strlen(origin));
        comma = ",";
    }
    text_addf(values, "}"), text_addf(origins, "}");
}

// One value of a file into its option; text of numbers goes through the same check as on a command line.
static bool option_from_json(const Command *c, Option *o, const JsonDoc *doc, const Json *v, Err *e) {
    bool ok = false;
    char field[80];
    snprintf(field, sizeof field, "--%s", o->name);
    switch (o->kind) {
    case OPT_FLAG:
    case OPT_UNFLAG:
        if ((ok = v->type == JSON_TRUE || v->type == JSON_FALSE)) *(bool *)o->value = v->type == JSON_TRUE;
        break;
    case OPT_INT:
    case OPT_REAL: ok = v->type == JSON_NUMBER && number_fits(o, v->str); break;
    case OPT_TEXT:
        ok = v->type == JSON_NULL || (v->type == JSON_STRING && v->len && !memchr(v->str, 0, v->len));
        if (ok && v->type == JSON_STRING) *(const char **)o->value = v->str;
        break;
    case OPT_CHOICE: {
        int chosen = v->type == JSON_STRING ? choice_of(o->arg, v->str) : -1;
        if ((ok = chosen >= 0)) *(int *)o->value = chosen;
        break;
    }
    case OPT_MANY: {
        Many *m = o->value;
        ok = v->type == JSON_ARRAY && v->count <= (uint32_t)o->max;
        for (const Json *x = v->child; ok && x; x = x->next)
            if ((ok = x->type == JSON_STRING && x->len && !memchr(x->str, 0, x->len))) m->p[m->n++] = x->str;
        break;
    }
    }
    return ok || err_set(e, "E-CF-02", json_at(doc, v, o->name),
                         "expected what --%s takes (%s); found %s; do: see surgr1 %s --help", o->name,
                         o->arg ? o->arg : "true or false", json_shown(v), c->name);
}

bool options_read(const Command *c, const char *path, JsonDoc *doc, Err *e) {
    if (!json_read(doc, path, LIMIT_CONFIG_BYTES, (JsonOptions){.refuse_duplicates = true}, e)) return false;
    const Json *values = json_get(doc->root, "options");
    if (!values) values = doc->root; // a file written by hand may hold the options alone
    if (values->type != JSON_OBJECT)
        return err_set(e, "E-CF-02", json_at(doc, values, "options"),
                       "expected an object of options; found %s; do: give a config.json of a run", json_shown(values));
    for (const Json *v = values->child; v; v = v->next) {
        Option *o = find_option(c, v->key, v->key_len);
        if (!o || o->kind == OPT_UNFLAG)
            return err_set(e, "E-CF-02", json_at(doc, v, quoted(v->key, v->key_len)),
                           "expected an option of surgr1 %s; found an unknown one; do: remove it", c->name);
        if (o->origin) continue; // the command line speaks louder
        if (!option_from_json(c, o, doc, v, e)) return false;
        o->origin = path;
    }
    return true;
}

const Option *option_named(const Command *c, const char *name, Where at, Err *e) {
    const Option *o = find_option(c, name, strlen(name));
    if (o) return o;
    const char *best = nearest_option(c, name);
    err_set(e, "E-CF-02", at, "expected an option of surgr1 %s; found %s; do: %s%s%s", c->name,
            quoted(name, strlen(name)), best ? "write " : "see surgr1 ", best ? best : c->name, best ? "" : " --help");
    return NULL;
}

bool option_takes(const Command *c, const Option *o, const char *text, Where at, Err *e) {
    double number;
    int64_t whole;
    bool ok = *text != 0;
    if (o->kind == OPT_INT || o->kind == OPT_REAL) ok = number_read(o, text, &number, &whole);
    if (o->kind == OPT_CHOICE) ok = choice_of(o->arg, text) >= 0;
    if (ok) return true;
    char range[80] = "";
    if (o->kind == OPT_INT) snprintf(range, sizeof range, ", whole, from %.0f to %.0f", o->min, o->max);
    if (o->kind == OPT_REAL) snprintf(range, sizeof range, " from %g to %g", o->min, o->max);
    return err_set(e, "E-CF-02", at, "expected what --%s takes (%s%s); found %s; do: see surgr1 %s --help", o->name,
                   o->arg, range, quoted(text, strlen(text)), c->name);
}

Option *option_of(Option *table, const void *value) {
    while (table->value != value) table++;
    return table;
}

const Ops *device_of(int device, int dtype, CudaRungs rungs, Err *e) {
    Where at = AT(.file = "command line", .field = rungs.matmul != MATMUL_AUTO ? "--matmul" : "--kernels");
    if (device != DEVICE_CUDA && (rungs.matmul != MATMUL_AUTO || rungs.naive)) {
        err_set(e, "E-CL-01", at, "expected --device cuda beside it; found --device %s; do: leave one of the two out",
                device == DEVICE_REF ? "ref" : "cpu");
        return NULL;
    }
    if (device != DEVICE_CUDA) return device == DEVICE_REF ? ops_ref() : ops_cpu();
#ifdef SURGR1_CUDA
    if (rungs.matmul == MATMUL_CUBLAS && !cuda_has_cublas()) {
        err_set(e, "E-CL-01", at,
                "expected auto, naive or tensor in a program built without cuBLASLt; found cublas; do: build where the "
                "CUDA toolkit has cublasLt.h, or choose another");
        return NULL;
    }
    cuda_rungs_set(rungs);
    return ops_cuda(dtype == DTYPE_F32 ? F32 : BF16, e);
#else
    (void)dtype;
    err_set(e, "E-DV-01", AT(.file = "--device cuda"),
            "expected a program built with CUDA; found one without; do: run make cuda, or use --device cpu");
    return NULL;
#endif
}

bool pixel_limits_ok(const VisionConfig *v, Err *e) {
    if (v->min_pixels <= v->max_pixels) return true;
    return err_set(e, "E-CL-01", AT(.file = "command line", .field = "--min-pixels"),
                   "expected at most the largest area (%lld); found %lld; do: change --min-pixels or --max-pixels",
                   (long long)v->max_pixels, (long long)v->min_pixels);
}
