// run.c - a run folder and its checkpoints, made so that a process killed at any instant leaves a folder that resumes.
//
// What it is:  the protocol of a checkpoint (write beside, flush, rename, read back), the choice of one to resume from,
//              the lock, the frozen configuration, and the comparison of two runs.
// What it is not: aware of what a checkpoint holds. The trainer writes its files between begin and commit.
// Read before: files.c, log.c.  Read next: ../train.c.
//
// Every checkpoint has two descriptions. MANIFEST.json says what must come out the same in every run of the same
// configuration: no times, no hosts, no process ids. local.json holds the lengths of the two logs that are different
// in every run (times, TensorBoard); it is needed to cut them on resume, and nothing compares it. Both end in a
// checksum of themselves, in a place that later formats keep.
#define _GNU_SOURCE
#include "../surgr1.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

enum { FORMAT = 1 }; // of a checkpoint

#define MANIFEST "MANIFEST.json"
#define LOCAL    "local.json"
#define STATE    "state.json"

// ---------------------------------------------------------------------------------------------------------- folders

static bool write_failed(const char *path, const char *doing, int error, Err *e) {
    if (error == ENOSPC || error == EDQUOT || error == EFBIG)
        return err_set(e, "E-WR-01", AT(.file = path), "expected room to %s it; found %s; do: free space and resume",
                       doing, error_text(error));
    return err_set(e, "E-WR-02", AT(.file = path), "expected to %s it; found %s; do: %s", doing, error_text(error),
                   "check that its folder exists, is writable and on a healthy disk, and resume");
}

static bool read_failed(const char *path, int error, Err *e) {
    return err_set(e, "E-IO-01", AT(.file = path), "expected a readable folder or file; found %s; do: check the path",
                   error_text(error));
}

typedef struct Names { // of a folder's entries, in byte order
    char **p;
    int64_t n, cap;
} Names;

static void names_free(Names *names) {
    for (int64_t i = 0; i < names->n; i++) free(names->p[i]);
    free(names->p);
    *names = (Names){0};
}

static int by_bytes(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

// Entries whose name begins with `prefix` (hidden ones only when the prefix says so). A missing folder has none.
static bool names_list(Names *names, const char *dir, const char *prefix, Err *e) {
    *names = (Names){0};
    DIR *d = opendir(dir);
    if (!d) return errno == ENOENT || read_failed(dir, errno, e);
    struct dirent *f;
    while (errno = 0, (f = readdir(d))) {
        const char *name = f->d_name;
        if (strncmp(name, prefix, strlen(prefix)) || (name[0] == '.' && prefix[0] != '.')) continue;
        if (names->n == names->cap) {
            names->cap = 2 * names->cap + 16;
            names->p = grow_or_die(names->p, (size_t)names->cap, sizeof *names->p, "names of a folder");
        }
        size_t size = strlen(name) + 1;
        char *copy = alloc_or_die(size, 1, "a name");
        memcpy(copy, name, size);
        names->p[names->n++] = copy;
    }
    int error = errno;
    (void)!closedir(d);
    if (error) return names_free(names), read_failed(dir, error, e);
    if (names->n) qsort(names->p, (size_t)names->n, sizeof *names->p, by_bytes);
    return true;
}

// Removes a file, or a folder with all in it; links are removed, not followed.
static bool remove_tree(int at, const char *name, int depth) {
    if (!unlinkat(at, name, 0) || errno == ENOENT) return true;
    if ((errno != EISDIR && errno != EPERM) || depth > 16) return false;
    int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    if (!d) {
        if (fd >= 0) (void)!close(fd);
        return false;
    }
    bool ok = true;
    for (struct dirent *f; (f = readdir(d));)
        if (strcmp(f->d_name, ".") && strcmp(f->d_name, "..")) ok &= remove_tree(fd, f->d_name, depth + 1);
    (void)!closedir(d);
    return ok && (!unlinkat(at, name, AT_REMOVEDIR) || errno == ENOENT);
}

bool tree_remove(const char *path, Err *e) {
    return remove_tree(AT_FDCWD, path, 0) || write_failed(path, "remove", errno, e);
}

bool folder_sweep(const char *run, const char *folder, const char *prefix, Err *e) {
    char dir[1200], path[1400];
    Names names;
    if (!path_join(dir, sizeof dir, run, folder, e) || !names_list(&names, dir, prefix, e)) return false;
    bool ok = true;
    for (int64_t i = 0; ok && i < names.n; i++)
        ok = path_join(path, sizeof path, dir, names.p[i], e) && tree_remove(path, e);
    names_free(&names);
    return ok;
}

// Makes a folder; one that is there is fine. Its name is durable afterwards.
static bool folder_make(const char *path, Err *e) {
    char parent[1100];
    if (mkdir(path, 0755)) return (errno == EEXIST && folder_exists(path)) || write_failed(path, "make", errno, e);
    return path_dir(parent, sizeof parent, path, e) && folder_sync(parent, e);
}

bool folder_make_all(const char *path, Err *e) {
    char part[1100];
    size_t n = strlen(path);
    for (size_t i = 1; i < n; i++) {
        if (path[i] != '/' || path[i - 1] == '/') continue;
        memcpy(part, path, i), part[i] = 0;
        if (!folder_exists(part) && !folder_make(part, e)) return false;
    }
    return folder_make(path, e);
}

// --------------------------------------------------------------------------------------------- the folder and its lock

static int lock_taken(const char *path, int fd, Err *e) {
    char text[200] = "";
    ssize_t n = pread(fd, text, sizeof text - 1, 0);
    size_t len = n > 0 ? strcspn(text, "\n") : 0;
    (void)!close(fd);
    err_set(e, "E-LK-01", AT(.file = path),
            "expected a run folder that no other process uses; found it held by %s; do: %s",
            len ? quoted(text, len) : "another process", "wait until that one ends, or stop it");
    return -1;
}

int lock_take(const char *dir, Err *e) {
    char path[1200], text[300], host[128] = "";
    if (!path_join(path, sizeof path, dir, "LOCK", e)) return -1;
    int fd, rc;
    do fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
    while (fd < 0 && errno == EINTR);
    if (fd < 0) return write_failed(path, "open", errno, e), -1;
    do rc = flock(fd, LOCK_EX | LOCK_NB);
    while (rc && errno == EINTR);
    if (rc && errno == EWOULDBLOCK) return lock_taken(path, fd, e);
    if (rc) return write_failed(path, "lock", errno, e), (void)!close(fd), -1;
    if (gethostname(host, sizeof host - 1)) snprintf(host, sizeof host, "unknown");
    struct tm tm;
    time_t now = time(NULL);
    char when[40] = "";
    if (gmtime_r(&now, &tm)) strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", &tm);
    int n = snprintf(text, sizeof text, "pid %ld, host %s, since %s\n", (long)getpid(), host, when);
    if (ftruncate(fd, 0) || pwrite(fd, text, (size_t)n, 0) != n)
        return write_failed(path, "write", errno ? errno : EIO, e), (void)!close(fd), -1;
    return fd;
}

static bool run_path(char *out, size_t size, const char *run, const char *name, Err *e) {
    return path_join(out, size, run, name, e);
}

bool run_open(Run *r, const char *dir, Err *e) {
    *r = (Run){.lock = -1, .log.fd = -1, .rollouts.fd = -1, .timing.fd = -1, .events.fd = -1};
    if ((int64_t)strlen(dir) + 100 > LIMIT_PATH_BYTES || !*dir) // room for what is made inside
        return err_set(e, "E-IO-01", AT(.file = dir), "expected a path of 1 to %" PRId64 " bytes; found %zu; do: %s",
                       LIMIT_PATH_BYTES - 100, strlen(dir), "give another folder");
    snprintf(r->dir, sizeof r->dir, "%s", dir);
    char ckpt[1200], board[1200];
    bool ok = folder_make_all(dir, e) && (r->lock = lock_take(dir, e)) >= 0;
    ok = ok && run_path(ckpt, sizeof ckpt, dir, "ckpt", e) && folder_make(ckpt, e) &&
         run_path(board, sizeof board, dir, "tensorboard", e) && folder_make(board, e);
    // In the run folder itself, which may hold other people's things, only what is certainly ours.
    ok = ok && folder_sweep(dir, "ckpt", ".tmp-", e) && folder_sweep(dir, "ckpt", ".trash-", e) &&
         folder_sweep(dir, "export", ".tmp-", e) && folder_sweep(dir, "export", ".trash-", e) &&
         folder_sweep(dir, ".", ".tmp-config.json-", e) && folder_sweep(dir, ".", ".tmp-nan-report.json-", e) &&
         folder_sweep(dir, ".", ".tmp-export", e) && // of an adapter
         folder_sweep(dir, ".", "export.tmp-", e);   // of whole weights
    if (!ok) run_close(r);
    return ok;
}

void run_close(Run *r) {
    if (!r->dir[0]) return; // never opened
    log_close(&r->log), log_close(&r->rollouts), log_close(&r->timing), events_close(&r->events);
    if (r->lock >= 0) (void)!close(r->lock); // the lock goes with it
    free(r->verified);
    *r = (Run){.lock = -1, .log.fd = -1, .rollouts.fd = -1, .timing.fd = -1, .events.fd = -1};
}

// ---------------------------------------------------------------------------------------------------- configuration

// Is the member at `path` freed by a name of the list? "b" frees every member of that name and all beneath it, wherever
// it stands; "a.b" that one.
static bool freed(const char *path, const char *const *names) {
    for (; names && *names; names++) {
        size_t m = strlen(*names);
        for (const char *p = path; p; p = strchr(*names, '.') ? NULL : strchr(p, '.')) {
            p += *p == '.';
            if (!strncmp(p, *names, m) && (!p[m] || p[m] == '.')) return true;
        }
    }
    return false;
}

typedef struct Differences {
    Text list;
    int64_t n, left_out;
    const char *const *free_members, *const *anyway;
} Differences;

static void add_value(Text *t, const Json *v) {
    Text printed = {0};
    if (v) json_print(&printed, v);
    const char *text = v ? printed.p : "nothing";
    size_t len = strlen(text);
    text_add_clean(t, text, len > 40 ? utf8_complete(text, 40) : len, "");
    if (len > 40) text_addf(t, "...");
    text_free(&printed);
}

static void difference(Differences *d, const char *path, const Json *before, const Json *now) {
    d->n++;
    if (d->n > LIMIT_LISTED || d->list.len > 380) { // the rest of a message would be cut anyway
        d->left_out++;
        return;
    }
    text_addf(&d->list, "%s%s was ", d->list.len ? ", " : "", quoted(path, strlen(path)));
    add_value(&d->list, before);
    text_addf(&d->list, " and is ");
    add_value(&d->list, now);
}

static bool same_json(const Json *a, const Json *b) {
    Text p = {0}, q = {0};
    json_print(&p, a), json_print(&q, b);
    bool same = p.len == q.len && !memcmp(p.p, q.p, p.len);
    text_free(&p), text_free(&q);
    return same;
}

// Members of two objects, the recursion bounded by LIMIT_JSON_DEPTH of the parser.
static void compare_members(Differences *d, const char *above, const Json *before, const Json *now) {
    for (int side = 0; side < 2; side++)
        for (const Json *v = (side ? now : before)->child; v; v = v->next) {
            const Json *other = json_get(side ? before : now, v->key);
            if (side && other) continue;
            Text path = {0};
            text_addf(&path, "%s%s%s", above, *above ? "." : "", v->key);
            if (freed(path.p, d->free_members) || freed(path.p, d->anyway)) {
            } else if (other && v->type == JSON_OBJECT && other->type == JSON_OBJECT)
                compare_members(d, path.p, v, other);
            else if (!other || !same_json(v, other)) difference(d, path.p, side ? NULL : v, side ? v : other);
            text_free(&path);
        }
}

static void print_bound(Text *out, const char *above, const Json *object, const char *const *free_members) {
    text_addf(out, "{");
    for (const Json *v = object->child; v; v = v->next) {
        Text path = {0};
        text_addf(&path, "%s%s%s", above, *above ? "." : "", v->key);
        if (!freed(path.p, free_members)) {
            text_add_json_string(out, v->key, v->key_len);
            text_addf(out, ":");
            if (v->type == JSON_OBJECT) print_bound(out, path.p, v, free_members);
            else json_print(out, v);
            text_addf(out, ";"); // after each member: no two trees print alike
        }
        text_free(&path);
    }
    text_addf(out, "}");
}

bool run_config(Run *r, const char *json, const char *const *free_members, const char *const *anyway, Err *e) {
    char path[1200];
    JsonDoc now, before;
    const JsonOptions strict = {.refuse_duplicates = true};
    if (!run_path(path, sizeof path, r->dir, "config.json", e)) return false;
    bool parsed = json_parse(&now, json, strlen(json), path, strict, e);
    if (!parsed) return false;
    CHECK(now.root->type == JSON_OBJECT, "a configuration that is no object");
    struct stat s;
    bool ok = !lstat(path, &s) || errno == ENOENT || read_failed(path, errno, e), fresh = ok && lstat(path, &s);
    if (ok && fresh) {
        Text text = {0};
        text_addf(&text, "%s%s", json, *json && json[strlen(json) - 1] == '\n' ? "" : "\n");
        ok = file_write_atomic(path, text.p, text.len, e);
        text_free(&text);
    }
    if (ok && json_read(&before, path, LIMIT_CONFIG_BYTES, strict, e)) {
        Differences d = {.free_members = free_members, .anyway = anyway};
        Text bound = {0};
        if (before.root->type != JSON_OBJECT)
            ok = err_set(e, "E-CK-05", json_at(&before, before.root, NULL),
                         "expected an object; found another value; do: bring back the file this run began with");
        else compare_members(&d, "", before.root, now.root);
        if (d.left_out) text_addf(&d.list, ", and %" PRId64 " more", d.left_out);
        if (d.n)
            ok = err_set(e, "E-CK-05", AT(.file = path),
                         "expected the configuration this run began with; found that %s; do: %s", d.list.p,
                         "give the same options, or begin in another folder");
        if (ok) print_bound(&bound, "", before.root, free_members), sha256_hex(bound.p, bound.len, r->id);
        text_free(&bound), text_free(&d.list), json_free(&before);
    } else ok = false;
    json_free(&now);
    return ok;
}

// ------------------------------------------------------------------------------------ what a checkpoint says of itself

// Closes an object with the checksum of itself: {...} is hashed, then "self" is put before its last brace.
static void seal(Text *t, char self[65]) {
    text_add(t, "}", 1);
    sha256_hex(t->p, t->len, self);
    t->len--;
    text_addf(t, ",\"self\":\"%s\"}\n", self);
}

static bool seal_holds(const char *text, size_t len, char self[65]) {
    static const char before[] = ",\"self\":\"", after[] = "\"}\n";
    const size_t tail = sizeof before - 1 + 64 + sizeof after - 1;
    if (len <= tail) return false;
    const char *p = text + len - tail;
    Sha256 s;
    sha256_start(&s), sha256_add(&s, text, len - tail), sha256_add(&s, "}", 1), sha256_finish(&s, self);
    return !memcmp(p, before, sizeof before - 1) && !memcmp(p + sizeof before - 1, self, 64) &&
           !memcmp(text + len - (sizeof after - 1), after, sizeof after - 1);
}

static bool damaged(const char *path, const char *expected, const char *found, Err *e) {
    return err_set(e, "E-CK-02", AT(.file = path), "expected %s; found %s; do: %s", expected, found,
                   "use an older checkpoint, or bring this one back from a copy");
}

// Opens a file of a checkpoint. What is missing is damage; what cannot be opened for other reasons says nothing.
static int open_part(const char *dir, const char *name, const char *path, Err *e) {
    struct stat s;
    if (lstat(path, &s)) {
        int error = errno;
        if (error == ENOENT || error == ENOTDIR) damaged(path, "this file", "none", e);
        else read_failed(path, error, e);
        return -1;
    }
    if (!S_ISREG(s.st_mode)) return damaged(path, "a regular file", "something else", e), -1;
    return open_beneath(dir, name, "E-CK-02", AT(.file = path), e);
}

// SHA-256 and length of a file's bytes. cold: ask the system to read the disk again, not its memory.
static bool hash_file(int fd, const char *path, bool cold, char hex[65], int64_t *size, Err *e) {
    enum { PIECE = 1 << 20 };
    uint8_t *piece = alloc_or_die(PIECE, 1, "a piece of a file");
    Sha256 s;
    sha256_start(&s);
    if (cold) (void)!posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED); // a wish: where it is not granted nothing is lost
    ssize_t n;
    int64_t at = 0;
    while ((n = pread(fd, piece, PIECE, (off_t)at)) > 0 || (n < 0 && errno == EINTR))
        if (n > 0) sha256_add(&s, piece, (size_t)n), at += n;
    int error = errno;
    free(piece);
    if (n < 0)
        return err_set(e, "E-IO-03", AT(.file = path, BYTE(at)),
                       "expected readable bytes; found %s; do: check the disk", error_text(error));
    sha256_finish(&s, hex);
    *size = at;
    return true;
}

// A sealed JSON object of a checkpoint; self is its checksum.
static bool read_sealed(JsonDoc *doc, const char *dir, const char *name, char self[65], Err *e) {
    char path[1400], *text;
    size_t len;
    if (!path_join(path, sizeof path, dir, name, e)) return false;
    int fd = open_part(dir, name, path, e);
    if (fd < 0) return false;
    bool ok = file_read_fd(fd, path, LIMIT_CONFIG_BYTES, "E-CK-02", &text, &len, e);
    (void)!close(fd);
    if (!ok) return false;
    ok = seal_holds(text, len, self) || damaged(path, "a file with the right checksum of itself", "another", e);
    ok = ok && json_parse(doc, text, len, path, (JsonOptions){.refuse_duplicates = true}, e);
    free(text);
    if (!ok) return false;
    int64_t format = 0;
    const Json *program = json_get(doc->root, "program");
    ok = json_int(doc, doc->root, "format", true, 1, INT64_MAX, &format, e);
    if (ok && format != FORMAT)
        ok = err_set(e, "E-CK-04", AT(.file = path), "expected format %d; found %" PRId64 "; do: use surgr1 %s", FORMAT,
                     format,
                     program && program->type == JSON_STRING ? quoted(program->str, program->len) : "that wrote it");
    if (!ok) json_free(doc);
    return ok;
}

static bool copy_hex(const JsonDoc *doc, const Json *object, const char *name, char hex[65], Err *e) {
    const Json *v = json_get(object, name);
    if (!v || v->type != JSON_STRING || v->len != 64 || strspn(v->str, "0123456789abcdef") != 64)
        return err_set(e, "E-CK-02", json_at(doc, object, name), "expected 64 hexadecimal digits; found %s; do: %s",
                       v ? json_shown(v) : "nothing", "use an older checkpoint");
    memcpy(hex, v->str, 65);
    return true;
}

// A file the manifest names: there, as long and with the hash it says.
static bool verify_file(const JsonDoc *doc, const Json *f, const char *dir, bool cold, bool *is_state, Err *e) {
    char path[1400], want[65], hex[65];
    int64_t size = -1, found;
    const Json *name = json_get(f, "name");
    if (!name || name->type != JSON_STRING || name->len != strlen(name->str) || !name->len || name->len > 255 ||
        name->str[0] == '.' || strpbrk(name->str, "/\\"))
        return err_set(e, "E-CK-02", json_at(doc, f, "name"), "expected a plain file name; found %s; do: %s",
                       name ? json_shown(name) : "nothing", "use an older checkpoint");
    if (!json_int(doc, f, "size", true, 0, INT64_MAX, &size, e) || !copy_hex(doc, f, "sha256", want, e)) return false;
    if (!path_join(path, sizeof path, dir, name->str, e)) return false;
    int fd = open_part(dir, name->str, path, e);
    if (fd < 0) return false;
    bool ok = hash_file(fd, path, cold, hex, &found, e);
    (void)!close(fd);
    if (ok && found != size)
        ok = err_set(e, "E-CK-03", AT(.file = path), "expected %" PRId64 " bytes; found %" PRId64 "; do: %s", size,
                     found, "use an older checkpoint, or bring this one back from a copy");
    if (ok && strcmp(hex, want))
        ok = err_set(e, "E-CK-03", AT(.file = path), "expected SHA-256 %s; found %s; do: %s", want, hex,
                     "use an older checkpoint, or bring this one back from a copy");
    *is_state |= !strcmp(name->str, STATE);
    return ok;
}

// The whole check of one checkpoint; fills c, and the canonical list of its files when `files` is not NULL.
static bool verify(const char *dir, bool cold, Checkpoint *c, Text *files, Err *e) {
    JsonDoc doc, local;
    char path[1400], unused[65];
    *c = (Checkpoint){.step = -1};
    snprintf(c->dir, sizeof c->dir, "%s", dir);
    if (!read_sealed(&doc, dir, MANIFEST, c->sha256, e)) return false;
    int64_t step = -1;
    bool has_state = false;
    const Json *list = json_get(doc.root, "files"), *log = json_get(doc.root, "log");
    bool ok = json_int(&doc, doc.root, "step", true, 0, INT64_MAX, &step, e) &&
              json_int(&doc, log, "bytes", true, 0, INT64_MAX, &c->log_bytes, e) &&
              json_int(&doc, json_get(doc.root, "rollouts"), "bytes", false, 0, INT64_MAX, &c->rollouts_bytes, e) &&
              copy_hex(&doc, doc.root, "run", c->run, e);
    ok = ok && ((list && list->type == JSON_ARRAY) || damaged(dir, "a list of files in " MANIFEST, "none", e));
    for (const Json *f = ok ? list->child : NULL; ok && f; f = f->next)
        ok = verify_file(&doc, f, dir, cold, &has_state, e);
    ok = ok && (has_state || damaged(dir, "a file " STATE, "none", e));
    if (ok && files) json_print(files, list);
    json_free(&doc);
    if (!ok || !read_sealed(&local, dir, LOCAL, unused, e)) return false;
    ok = json_int(&local, local.root, "timing_bytes", true, 0, INT64_MAX, &c->timing_bytes, e) &&
         json_int(&local, local.root, "events_bytes", true, 0, INT64_MAX, &c->events_bytes, e);
    json_free(&local);
    ok = ok && path_join(path, sizeof path, dir, STATE, e) &&
         json_read(&c->state, path, LIMIT_CONFIG_BYTES, (JsonOptions){.refuse_duplicates = true}, e);
    if (ok) c->step = step;
    return ok;
}

void checkpoint_free(Checkpoint *c) {
    if (c->step >= 0) json_free(&c->state);
    c->step = -1;
}

bool checkpoint_verify(const char *dir, Err *e) {
    Checkpoint c;
    bool ok = verify(dir, false, &c, NULL, e);
    checkpoint_free(&c);
    return ok;
}

// Errors that say that a checkpoint is bad. Others (no descriptor, no memory, a newer format) say nothing about it.
static bool means_damage(const Err *e) {
    return !strcmp(e->code, "E-CK-02") || !strcmp(e->code, "E-CK-03") || !strncmp(e->code, "E-JS", 4) ||
           !strncmp(e->code, "E-CF", 4) || !strcmp(e->code, "E-IO-02") || !strcmp(e->code, "E-IO-03") ||
           !strcmp(e->code, "E-IO-05");
}

// ----------------------------------------------------------------------------------------------- choosing a checkpoint

static bool step_dir(char *out, size_t size, const char *run, int64_t step, Err *e) {
    char name[64];
    snprintf(name, sizeof name, "ckpt/step-%09" PRId64, step);
    return run_path(out, size, run, name, e);
}

// The number in "step-000000400"; -1 for other names.
static int64_t step_of(const char *name) {
    char again[64];
    if (strncmp(name, "step-", 5) || strlen(name) > 5 + 18 || strspn(name + 5, "0123456789") != strlen(name + 5))
        return -1;
    int64_t step = strtoll(name + 5, NULL, 10);
    snprintf(again, sizeof again, "step-%09" PRId64, step);
    return strcmp(name, again) ? -1 : step;
}

static int newest_first(const void *a, const void *b) {
    int64_t p = *(const int64_t *)a, q = *(const int64_t *)b;
    return p < q ? 1 : p > q ? -1 : 0;
}

// Steps of the checkpoints in a run, the newest first; free *steps.
static bool list_steps(const char *run, int64_t **steps, int64_t *n, Err *e) {
    char dir[1200];
    Names names;
    *steps = NULL, *n = 0;
    if (!run_path(dir, sizeof dir, run, "ckpt", e) || !names_list(&names, dir, "step-", e)) return false;
    *steps = alloc_or_die((size_t)names.n, sizeof **steps, "steps");
    for (int64_t i = 0; i < names.n; i++)
        if (((*steps)[*n] = step_of(names.p[i])) >= 0) ++*n;
    names_free(&names);
    if (*n) qsort(*steps, (size_t)*n, sizeof **steps, newest_first);
    return true;
}

static bool was_verified(const Run *r, int64_t step) {
    for (int64_t i = 0; i < r->n_verified; i++)
        if (r->verified[i] == step) return true;
    return false;
}
static void remember(Run *r, int64_t step) {
    if (was_verified(r, step)) return;
    r->verified = grow_or_die(r->verified, (size_t)r->n_verified + 1, sizeof *r->verified, "steps");
    r->verified[r->n_verified++] = step;
}
static void forget(Run *r, int64_t step) {
    for (int64_t i = 0; i < r->n_verified; i++)
        if (r->verified[i] == step) r->verified[i--] = r->verified[--r->n_verified];
}

static bool verify_step(const char *dir, int64_t step, Checkpoint *c, Err *e) {
    if (!verify(dir, false, c, NULL, e)) return false;
    if (c->step == step) return true;
    checkpoint_free(c);
    return damaged(dir, "the step that its name says in " MANIFEST, "another step", e);
}

bool run_owns(const Run *r, const Checkpoint *c, Err *e) {
    return !strcmp(r->id, c->run) ||
           err_set(e, "E-CK-05", AT(.file = c->dir), "expected a checkpoint of run %.16s; found one of %.16s; do: %s",
                   r->id, c->run, "move it away, it was made with another configuration");
}

bool run_newest(Run *r, Checkpoint *c, Err *e) {
    int64_t *steps, n;
    char dir[1200];
    Err first = {0};
    *c = (Checkpoint){.step = -1};
    if (!list_steps(r->dir, &steps, &n, e)) return false;
    bool ok = true, found = false;
    for (int64_t i = 0; ok && !found && i < n; i++) {
        Err why = {0};
        ok = step_dir(dir, sizeof dir, r->dir, steps[i], e);
        if (!ok || (found = verify_step(dir, steps[i], c, &why))) break;
        if (!means_damage(&why)) {
            *e = why, ok = false;
            break;
        }
        if (!first.code[0]) first = why;
        warn("E-CK-06", AT(.file = why.file),
             "expected a whole checkpoint of step %" PRId64 "; found %s (%s: expected %s); do: %s", steps[i], why.found,
             why.code, why.expected, "nothing, an older one is used and the steps after it are done again");
    }
    free(steps);
    if (ok && n && !found)
        ok = err_set(e, "E-CK-01", AT(.file = r->dir),
                     "expected a checkpoint that is whole; found %" PRId64 ", all damaged (the newest: %s, %s); do: %s",
                     n, first.code, first.found, "bring one back from a copy, or begin in another folder");
    if (ok && found && r->id[0]) ok = run_owns(r, c, e);
    if (ok && found) remember(r, c->step);
    if (!ok) checkpoint_free(c);
    return ok;
}

bool run_verify(const char *dir, int64_t *count, Err *e) {
    int64_t *steps, n;
    char path[1200];
    Checkpoint c;
    if (!folder_exists(dir)) return read_failed(dir, ENOENT, e);
    if (!list_steps(dir, &steps, &n, e)) return false;
    bool ok = true;
    for (int64_t i = 0; ok && i < n; i++)
        if ((ok = step_dir(path, sizeof path, dir, steps[i], e) && verify_step(path, steps[i], &c, e)))
            checkpoint_free(&c);
    free(steps);
    *count = n;
    return ok;
}

bool run_logs_open(Run *r, const Checkpoint *c, Err *e) {
    char path[1200], members[200];
    bool resumed = c && c->step >= 0;
    int64_t keep = resumed ? c->timing_bytes : 0, keep_log = resumed ? c->log_bytes : 0;
    struct stat s;
    bool ok = run_path(path, sizeof path, r->dir, "run.jsonl", e);
    if (ok && !stat(path, &s) && (int64_t)s.st_size > keep_log)
        note("%s: %" PRId64 " bytes behind the checkpoint are cut off, those steps are done again (E-CK-07)", path,
             (int64_t)s.st_size - keep_log);
    ok = ok && log_open(&r->log, path, keep_log, e);
    ok = ok && (!r->with_rollouts || (run_path(path, sizeof path, r->dir, "rollouts.jsonl", e) &&
                                      log_open(&r->rollouts, path, resumed ? c->rollouts_bytes : 0, e)));
    ok = ok && run_path(path, sizeof path, r->dir, "timing.jsonl", e);
    if (ok && keep && !file_exists(path)) {
        warn("E-CK-07", AT(.file = path), "expected %" PRId64 " bytes of times; found none; do: %s", keep,
             "nothing, the file begins again here");
        keep = 0;
    }
    ok = ok && log_open(&r->timing, path, keep, e) && run_path(path, sizeof path, r->dir, "tensorboard", e) &&
         events_open(&r->events, path, resumed ? c->events_bytes : 0, e);
    if (ok && resumed) {
        snprintf(members, sizeof members, "\"ev\":\"resume\",\"step\":%" PRId64 ",\"sha\":\"%s\"", c->step, c->sha256);
        ok = log_write(&r->timing, members, e);
    }
    return ok;
}

// ------------------------------------------------------------------------------------------------ writing a checkpoint

bool checkpoint_begin(Run *r, int64_t step, int64_t bytes, char *dir, size_t dir_size, bool *enough, Err *e) {
    char ckpt[1200], name[100];
    struct statvfs v;
    CHECK(step >= 0 && bytes >= 0, "a checkpoint of step %" PRId64 " with %" PRId64 " bytes", step, bytes);
    *enough = true;
    if (!run_path(ckpt, sizeof ckpt, r->dir, "ckpt", e)) return false;
    if (!statvfs(ckpt, &v)) {
        double room = (double)v.f_bavail * (double)v.f_frsize;
        if (room < 1.25 * (double)bytes) {
            warn("E-WR-01", AT(.file = ckpt),
                 "expected %.0f MB free for checkpoint step %" PRId64 "; found %.0f MB; do: free space, older "
                 "checkpoints are safe and training goes on",
                 1.25e-6 * (double)bytes, step, 1e-6 * room);
            *enough = false;
            return true;
        }
    }
    snprintf(name, sizeof name, ".tmp-step-%09" PRId64 "-%ld", step, (long)getpid());
    if (!path_join(dir, dir_size, ckpt, name, e) || !tree_remove(dir, e)) return false;
    return !mkdir(dir, 0755) || write_failed(dir, "make", errno, e);
}

void checkpoint_abort(Run *r, const char *dir) {
    Err unused = {0};
    (void)r, (void)tree_remove(dir, &unused); // what stays is swept away at the next start
}

// Flushes every file of the folder and lists it: [{"name":...,"size":...,"sha256":...},...].
static bool flush_and_list(const char *dir, Text *list, Err *e) {
    Names names;
    if (!names_list(&names, dir, "", e)) return false;
    bool ok = true;
    text_addf(list, "[");
    for (int64_t i = 0; ok && i < names.n; i++) {
        char path[1400], hex[65];
        int64_t size;
        ok = path_join(path, sizeof path, dir, names.p[i], e);
        int fd = ok ? open_part(dir, names.p[i], path, e) : -1;
        ok = fd >= 0 && (!fsync(fd) || write_failed(path, "flush", errno, e)) &&
             hash_file(fd, path, false, hex, &size, e);
        if (fd >= 0 && close(fd) && ok) ok = write_failed(path, "close", errno, e);
        if (!ok) break;
        text_addf(list, "%s{\"name\":", i ? "," : "");
        text_add_json_string(list, names.p[i], strlen(names.p[i]));
        text_addf(list, ",\"size\":%" PRId64 ",\"sha256\":\"%s\"}", size, hex);
    }
    text_addf(list, "]");
    names_free(&names);
    return ok;
}

static bool write_sealed(const char *dir, const char *name, Text *t, char self[65], Err *e) {
    char path[1400];
    seal(t, self);
    return path_join(path, sizeof path, dir, name, e) && file_write_atomic(path, t->p, t->len, e);
}

static bool flush_logs(Run *r, Err *e) { // those that were opened; one that was given up fails here
    return (!r->log.path[0] || log_sync(&r->log, e)) && (!r->rollouts.path[0] || log_sync(&r->rollouts, e)) &&
           (!r->timing.path[0] || log_sync(&r->timing, e)) && (!r->events.path[0] || events_sync(&r->events, e));
}

// All of a checkpoint but its final name.
static bool complete(Run *r, int64_t step, const char *dir, const char *state_json, Text *files, char self[65],
                     Err *e) {
    char path[1400], unused[65], run[65];
    Text manifest = {0}, local = {0};
    bool ok = path_join(path, sizeof path, dir, STATE, e) &&
              file_write_atomic(path, state_json, strlen(state_json), e) && flush_and_list(dir, files, e) &&
              flush_logs(r, e);
    if (r->id[0]) memcpy(run, r->id, sizeof run);
    else memset(run, '0', 64), run[64] = 0;
    text_addf(&manifest,
              "{\"format\":%d,\"program\":\"%s\",\"run\":\"%s\",\"step\":%" PRId64 ",\"log\":{\"bytes\":%" PRId64
              ",\"lines\":%" PRId64 "},",
              FORMAT, SURGR1_VERSION, run, step, r->log.bytes, r->log.seq);
    if (r->rollouts.path[0])
        text_addf(&manifest, "\"rollouts\":{\"bytes\":%" PRId64 ",\"lines\":%" PRId64 "},", r->rollouts.bytes,
                  r->rollouts.seq);
    text_addf(&manifest, "\"files\":");
    if (ok) text_add(&manifest, files->p, files->len);
    text_addf(&local, "{\"format\":%d,\"timing_bytes\":%" PRId64 ",\"events_bytes\":%" PRId64, FORMAT, r->timing.bytes,
              r->events.bytes);
    ok = ok && write_sealed(dir, LOCAL, &local, unused, e) && write_sealed(dir, MANIFEST, &manifest, self, e) &&
         folder_sync(dir, e);
    text_free(&manifest), text_free(&local);
    return ok;
}

static bool to_trash(Run *r, const char *from, int64_t step, Err *e) {
    static unsigned counter;
    char name[100], path[1200], ckpt[1200];
    snprintf(name, sizeof name, "ckpt/.trash-step-%09" PRId64 "-%ld-%u", step, (long)getpid(), counter++);
    forget(r, step);
    return run_path(ckpt, sizeof ckpt, r->dir, "ckpt", e) && run_path(path, sizeof path, r->dir, name, e) &&
           tree_remove(path, e) && (!rename(from, path) || write_failed(from, "rename", errno, e)) &&
           folder_sync(ckpt, e) && tree_remove(path, e);
}

// When step's folder is there already: the same (*same), damaged (moved away), or E-BG-02.
static bool meet_existing(Run *r, int64_t step, const char *target, const Text *files, bool *same, Err *e) {
    Checkpoint old;
    Text listed = {0};
    Err why = {0};
    struct stat s;
    *same = false;
    if (lstat(target, &s)) return errno == ENOENT || read_failed(target, errno, e);
    bool whole = verify(target, false, &old, &listed, &why), ok = true;
    if (whole) {
        *same = listed.len == files->len && !memcmp(listed.p, files->p, listed.len) &&
                (!r->id[0] || !strcmp(old.run, r->id)) && r->log.bytes >= old.log_bytes;
        if (!*same)
            ok = err_set(e, "E-BG-02", AT(.file = target),
                         "expected the same bytes as the checkpoint of this step that is there; found others; do: %s",
                         "report this, the run did not repeat itself; nothing was overwritten");
    } else if (means_damage(&why)) {
        note("%s: the damaged checkpoint of step %" PRId64 " makes room for a good one (%s)", target, step, why.code);
        ok = to_trash(r, target, step, e);
    } else *e = why, ok = false;
    text_free(&listed), checkpoint_free(&old);
    return ok;
}

static void update_latest(const Run *r, int64_t step) { // a hint: without it nothing is lost
    char path[1200], text[64];
    Err e = {0};
    int n = snprintf(text, sizeof text, "step-%09" PRId64 "\n", step);
    if (run_path(path, sizeof path, r->dir, "ckpt/LATEST", &e) && file_write_atomic(path, text, (size_t)n, &e)) return;
    warn(e.code, AT(.file = e.file), "expected %s; found %s; do: %s", e.expected, e.found, e.todo);
}

bool checkpoint_commit(Run *r, int64_t step, const char *dir, const char *state_json, Err *e) {
    char target[1200], ckpt[1200], path[1400], better[1400], self[65], members[200];
    Text files = {0};
    Checkpoint written;
    Err why = {0};
    bool same = false;
    bool ok = complete(r, step, dir, state_json, &files, self, e) && run_path(ckpt, sizeof ckpt, r->dir, "ckpt", e) &&
              step_dir(target, sizeof target, r->dir, step, e) && meet_existing(r, step, target, &files, &same, e);
    text_free(&files);
    if (ok && same) // only the lengths of the other logs may be newer
        ok = path_join(path, sizeof path, dir, LOCAL, e) && path_join(better, sizeof better, target, LOCAL, e) &&
             (!rename(path, better) || write_failed(better, "rename", errno, e)) && folder_sync(target, e);
    else if (ok && rename(dir, target)) ok = write_failed(target, "rename", errno, e); // else: the commit point
    if (!ok || same) checkpoint_abort(r, dir);
    if (!ok || !folder_sync(ckpt, e)) return false;
    if (!verify(target, true, &written, NULL, &why)) {
        if (!means_damage(&why)) return *e = why, false; // cannot be read now: nobody knows
        if (!to_trash(r, target, step, e)) return false;
        return err_set(e, "E-WR-02", AT(.file = why.file),
                       "expected to read back what was written; found %s (%s); do: %s", why.found, why.code,
                       "check the disk, older checkpoints are kept");
    }
    checkpoint_free(&written);
    remember(r, step);
    update_latest(r, step);
    snprintf(members, sizeof members, "\"ev\":\"ckpt\",\"step\":%" PRId64 ",\"sha\":\"%s\"", step, written.sha256);
    return !r->timing.path[0] || log_write(&r->timing, members, e);
}

bool checkpoint_rotate(Run *r, int64_t keep, int64_t keep_every, int64_t best, Err *e) {
    int64_t *steps, n, valid = 0;
    char dir[1200];
    if (keep < 2) keep = 2; // should the newest rot, there is another
    if (!list_steps(r->dir, &steps, &n, e)) return false;
    bool ok = true;
    for (int64_t i = 0; ok && i < n; i++) {
        ok = step_dir(dir, sizeof dir, r->dir, steps[i], e);
        if (ok && valid < keep) { // what is damaged among the newest is left for people to look at
            Err why = {0};
            Checkpoint c = {.step = -1};
            if (was_verified(r, steps[i]) || verify_step(dir, steps[i], &c, &why)) remember(r, steps[i]), valid++;
            else if (!means_damage(&why)) *e = why, ok = false;
            checkpoint_free(&c);
        } else if (ok && steps[i] != best && (!keep_every || steps[i] % keep_every)) ok = to_trash(r, dir, steps[i], e);
    }
    free(steps);
    return ok;
}

// ------------------------------------------------------------------------------------------------------ comparing runs

typedef struct Comparison {
    const char *a, *b; // the two runs
    int64_t files, bytes;
    bool same;
} Comparison;

PRINTF_LIKE(3, 4) static bool differs(Comparison *c, const char *what, const char *fmt, ...) {
    char text[1000];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    Text out = {0};
    text_add_clean(&out, what, strlen(what), "");
    printf("%s: %s\n", out.p ? out.p : "", text);
    text_free(&out);
    c->same = false;
    return true;
}

static void element_text(char *out, size_t size, const Tensor *t, int64_t i) {
    float v;
    size_t width = file_type_size(t->type);
    tensor_to_f32(t, i, 1, &v);
    int n = snprintf(out, size, "%.9g (0x", (double)v);
    for (size_t k = width; k-- > 0;) n += snprintf(out + n, size - (size_t)n, "%02x", t->data[(size_t)i * width + k]);
    snprintf(out + n, size - (size_t)n, ")");
}

// Names the first tensor and element of two safetensors files that differ; false when that is not where they differ.
static bool tensors_differ(Comparison *c, const char *what, const char *path_a, const char *path_b) {
    TensorFile a, b;
    Err unused = {0};
    if (!tensors_open(&a, path_a, &unused)) return false;
    if (!tensors_open(&b, path_b, &unused)) return tensors_close(&a), false;
    bool told = false;
    for (int64_t i = 0; !told && (i < a.count || i < b.count); i++) {
        const Tensor *p = i < a.count ? &a.tensors[i] : NULL, *q = i < b.count ? &b.tensors[i] : NULL;
        int order = !p ? 1 : !q ? -1 : strcmp(p->name, q->name);
        if (order) {
            const char *name = order < 0 ? p->name : q->name;
            told = differs(c, what, "tensor %s is only in the %s run", quoted(name, strlen(name)),
                           order < 0 ? "first" : "second");
        } else if (p->type != q->type || p->dims != q->dims ||
                   memcmp(p->shape, q->shape, (size_t)p->dims * sizeof *p->shape)) {
            char s[100], t[100];
            told = differs(c, what, "tensor %s: %s %s and %s %s", quoted(p->name, strlen(p->name)),
                           file_type_name(p->type), shape_text(p->dims, p->shape, s, sizeof s), file_type_name(q->type),
                           shape_text(q->dims, q->shape, t, sizeof t));
        } else if (p->bytes && memcmp(p->data, q->data, p->bytes)) {
            size_t at = 0;
            while (p->data[at] == q->data[at]) at++;
            int64_t element = (int64_t)(at / file_type_size(p->type));
            char s[100], x[80], y[80];
            element_text(x, sizeof x, p, element), element_text(y, sizeof y, q, element);
            told = differs(c, what, "tensor %s %s: element %" PRId64 " is %s and %s", quoted(p->name, strlen(p->name)),
                           shape_text(p->dims, p->shape, s, sizeof s), element, x, y);
        }
    }
    tensors_close(&a), tensors_close(&b);
    return told;
}

static int open_compared(const char *path, Err *e) {
    int fd;
    struct stat s;
    do fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    while (fd < 0 && errno == EINTR);
    if (fd < 0) return read_failed(path, errno, e), -1;
    if (!fstat(fd, &s) && S_ISREG(s.st_mode)) return fd;
    (void)!close(fd);
    err_set(e, "E-IO-02", AT(.file = path), "expected a regular file; found something else; do: move it away");
    return -1;
}

static ssize_t read_piece(int fd, const char *path, void *out, size_t size, int64_t at, Err *e) {
    size_t done = 0;
    while (done < size) {
        ssize_t n = pread(fd, (char *)out + done, size - done, (off_t)(at + (int64_t)done));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) {
            err_set(e, "E-IO-03", AT(.file = path, BYTE(at)), "expected readable bytes; found %s; do: check the disk",
                    error_text(errno));
            return -1;
        }
        if (n == 0) break;
        done += (size_t)n;
    }
    return (ssize_t)done;
}

// Two files byte by byte; what: their path inside the runs.
static bool compare_files(Comparison *c, const char *what, const char *path_a, const char *path_b, Err *e) {
    enum { PIECE = 1 << 18 };
    int a = open_compared(path_a, e), b = a < 0 ? -1 : open_compared(path_b, e);
    char *x = alloc_or_die(PIECE, 2, "pieces of two files"), *y = x + PIECE;
    bool ok = b >= 0, over = false;
    int64_t at = 0, line = 1;
    size_t len = strlen(what);
    while (ok && c->same && !over) {
        ssize_t n = read_piece(a, path_a, x, PIECE, at, e), m = n < 0 ? -1 : read_piece(b, path_b, y, PIECE, at, e);
        ok = m >= 0, over = n < PIECE;
        if (!ok || (n == m && !memcmp(x, y, (size_t)n))) {
            for (ssize_t i = 0; ok && i < n; i++) line += x[i] == '\n';
            at += n;
            continue;
        }
        ssize_t i = 0, least = n < m ? n : m;
        for (; i < least && x[i] == y[i]; i++) line += x[i] == '\n';
        bool tensors = len > 12 && !strcmp(what + len - 12, ".safetensors");
        if (tensors && tensors_differ(c, what, path_a, path_b)) break;
        if (tensors) differs(c, what, "byte %" PRId64 " is the first that differs", at + i);
        else if (i == least)
            differs(c, what, "the %s run's file goes on after %" PRId64 " equal bytes (line %" PRId64 ")",
                    n < m ? "second" : "first", at + i, line);
        else differs(c, what, "line %" PRId64 " (byte %" PRId64 ") is the first that differs", line, at + i);
    }
    free(x);
    if (a >= 0) (void)!close(a);
    if (b >= 0) (void)!close(b);
    c->files++, c->bytes += at;
    return ok;
}

// Two folders, or two files, that both runs may have: the same names with the same bytes. Hidden names and local.json
// are nobody's business.
static bool compare_trees(Comparison *c, const char *what, int depth, Err *e) {
    char a[1400], b[1400], inside[1200];
    if (!path_join(a, sizeof a, c->a, what, e) || !path_join(b, sizeof b, c->b, what, e)) return false;
    bool dir_a = folder_exists(a), dir_b = folder_exists(b), file_a = file_exists(a), file_b = file_exists(b);
    if (!dir_a && !file_a && !dir_b && !file_b) return true;
    if (dir_a != dir_b || file_a != file_b) {
        if ((dir_a || file_a) && (dir_b || file_b)) return differs(c, what, "a file in one run, a folder in the other");
        return differs(c, what, "only in the %s run", dir_a || file_a ? "first" : "second");
    }
    if (file_a) return compare_files(c, what, a, b, e);
    Names p, q;
    if (depth > 8 || !names_list(&p, a, "", e)) return read_failed(a, ELOOP, e);
    if (!names_list(&q, b, "", e)) return names_free(&p), false;
    bool ok = true;
    for (int64_t i = 0, k = 0; ok && c->same && (i < p.n || k < q.n);) {
        int order = i == p.n ? 1 : k == q.n ? -1 : strcmp(p.p[i], q.p[k]);
        const char *name = order <= 0 ? p.p[i] : q.p[k];
        if (strcmp(name, LOCAL))
            ok = path_join(inside, sizeof inside, what, name, e) && compare_trees(c, inside, depth + 1, e);
        i += order <= 0, k += order >= 0;
    }
    names_free(&p), names_free(&q);
    return ok;
}

// Checkpoints: the newest step must be the same in both; one that only one run has (it was stopped there, and made one
// more) is told and is no difference.
static bool compare_checkpoints(Comparison *c, Err *e) {
    int64_t *p, *q, n, m;
    if (!list_steps(c->a, &p, &n, e)) return false;
    if (!list_steps(c->b, &q, &m, e)) return free(p), false;
    bool ok = true;
    if ((n ? p[0] : -1) != (m ? q[0] : -1)) {
        char x[40] = "none", y[40] = "none";
        if (n) snprintf(x, sizeof x, "step %" PRId64, p[0]);
        if (m) snprintf(y, sizeof y, "step %" PRId64, q[0]);
        differs(c, "ckpt", "the newest checkpoint is %s and %s", x, y);
    }
    for (int64_t i = n - 1, k = m - 1; ok && c->same && (i >= 0 || k >= 0);) { // the oldest first: where it began
        int64_t step = i < 0 ? q[k] : k < 0 ? p[i] : p[i] < q[k] ? p[i] : q[k];
        bool in_a = i >= 0 && p[i] == step, in_b = k >= 0 && q[k] == step;
        char what[64];
        snprintf(what, sizeof what, "ckpt/step-%09" PRId64, step);
        if (in_a && in_b) ok = compare_trees(c, what, 0, e);
        else printf("%s: only in the %s run, not compared\n", what, in_a ? "first" : "second");
        i -= in_a, k -= in_b;
    }
    free(p), free(q);
    return ok;
}

bool run_compare(const char *a, const char *b, bool *same, Err *e) {
    Comparison c = {.a = a, .b = b, .same = true};
    for (int i = 0; i < 2; i++)
        if (!folder_exists(i ? b : a)) return read_failed(i ? b : a, ENOENT, e);
    static const char *const parts[] = {"run.jsonl", "rollouts.jsonl", "export"};
    bool ok = compare_checkpoints(&c, e);
    for (int i = 0; ok && c.same && i < 3; i++) ok = compare_trees(&c, parts[i], 0, e);
    if (ok && c.same && !c.files)
        ok = err_set(e, "E-IO-01", AT(.file = a), "expected run folders with checkpoints or logs; found none; do: %s",
                     "give the folders that were made with --out");
    if (ok && c.same) printf("equal: %" PRId64 " files, %" PRId64 " bytes\n", c.files, c.bytes);
    *same = c.same;
    return ok;
}
