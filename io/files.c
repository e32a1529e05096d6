// files.c - whole files in, atomic files out, paths that stay in their folder, SHA-256.
//
// What it is:  all file access of the program but the append-only logs. Every system call's return value is looked at.
// What it is not: a format. Readers of formats (json.c, safetensors.c, image.c) get bytes from here.
// Read before: base.h.  Read next: json.c.
#define _GNU_SOURCE // O_PATH, the GNU strerror_r
#include "../surgr1.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

// The system's sentence for an errno, in double quotes.
const char *error_text(int error) {
    char text[128];
    const char *s = strerror_r(error, text, sizeof text); // the GNU form: may or may not use text
    return quoted(s, strlen(s));
}

// --------------------------------------------------------------------------------------------------------- reading

static int64_t mtime_ns(const struct stat *s) {
    return (int64_t)s->st_mtim.tv_sec * 1000000000 + (int64_t)s->st_mtim.tv_nsec;
}
static bool same_file(const struct stat *a, const struct stat *b) {
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino && a->st_size == b->st_size && mtime_ns(a) == mtime_ns(b);
}

static bool changed_while_read(const char *name, Err *e) {
    return err_set(e, "E-IO-05", AT(.file = name, BYTE(0)),
                   "expected a file that stays as it is while it is read; found that it changed; do: wait until "
                   "whatever writes it is done");
}

// O_NONBLOCK: opening a FIFO must not wait for a writer; on regular files it means nothing.
static int open_to_read(const char *path, Err *e) {
    int fd, error = ENAMETOOLONG;
    if ((int64_t)strlen(path) <= LIMIT_PATH_BYTES) {
        do fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
        while (fd < 0 && errno == EINTR);
        if (fd >= 0) return fd;
        error = errno;
    }
    char folder[1024];
    if (!getcwd(folder, sizeof folder)) snprintf(folder, sizeof folder, "unknown");
    err_set(e, "E-IO-01", AT(.file = path, BYTE(0)),
            "expected a readable file; found %s; do: check the path (current folder: %s)", error_text(error), folder);
    return -1;
}

static void close_read(int fd) { (void)!close(fd); } // nothing was written: the outcome changes nothing

static bool regular(int fd, const char *name, struct stat *s, Err *e) {
    if (fstat(fd, s))
        return err_set(e, "E-IO-03", AT(.file = name, BYTE(0)),
                       "expected a readable file; found %s; do: check the disk", error_text(errno));
    if (S_ISREG(s->st_mode)) return true;
    const char *kind = S_ISDIR(s->st_mode)    ? "a folder"
                       : S_ISFIFO(s->st_mode) ? "a FIFO"
                       : S_ISSOCK(s->st_mode) ? "a socket"
                                              : "a device";
    return err_set(e, "E-IO-02", AT(.file = name, BYTE(0)), "expected a regular file; found %s; do: name a file", kind);
}

// Reads up to size bytes, in pieces of at most 64 MiB; less only at the end of the file. -1 with errno on failure.
static int64_t read_fully(int fd, char *p, size_t size, size_t offset) {
    const size_t piece = (size_t)64 << 20;
    size_t done = 0;
    while (done < size) {
        size_t want = size - done < piece ? size - done : piece;
        ssize_t n = pread(fd, p + done, want, (off_t)(offset + done));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return -1;
        if (n == 0) break;
        done += (size_t)n;
    }
    return (int64_t)done;
}

bool file_read_fd(int fd, const char *name, int64_t limit, const char *limit_code, char **data, size_t *size, Err *e) {
    struct stat before, after;
    if (!regular(fd, name, &before, e)) return false;
    if (before.st_size > limit)
        return err_set(e, limit_code, AT(.file = name, BYTE(0)),
                       "expected at most %" PRId64 " bytes%s; found %" PRId64 "; do: check that this is the right file",
                       limit, strncmp(limit_code, "E-JS", 4) ? "" : " of JSON", (int64_t)before.st_size);
    size_t n = (size_t)before.st_size;
    char *p = malloc(n + 1);
    if (!p)
        return err_set(e, "E-ME-01", AT(.file = name, BYTE(0)),
                       "expected memory for its %zu bytes; found no more; do: close other programs", n);
    int64_t got = read_fully(fd, p, n, 0);
    int error = errno;
    char beyond;
    bool ok = true;
    if (got < 0)
        ok = err_set(e, "E-IO-03", AT(.file = name, BYTE(0)),
                     "expected %zu readable bytes; found %s; do: check the disk", n, error_text(error));
    else if (fstat(fd, &after) || !same_file(&before, &after) || read_fully(fd, &beyond, 1, n) == 1)
        ok = changed_while_read(name, e);
    else if ((size_t)got != n)
        ok = err_set(e, "E-IO-03", AT(.file = name, BYTE(got)),
                     "expected %zu bytes; found the end of the file after %" PRId64 "; do: check the disk", n, got);
    if (!ok) {
        free(p);
        return false;
    }
    p[n] = 0;
    *data = p, *size = n;
    return true;
}

bool file_read(const char *path, int64_t limit, const char *limit_code, char **data, size_t *size, Err *e) {
    int fd = open_to_read(path, e);
    if (fd < 0) return false;
    bool ok = file_read_fd(fd, path, limit, limit_code, data, size, e);
    close_read(fd);
    return ok;
}

bool file_map_fd(FileMap *m, int fd, const char *name, Err *e) {
    struct stat s;
    if (!regular(fd, name, &s, e)) return false;
    void *p =
        s.st_size ? mmap(NULL, (size_t)s.st_size, PROT_READ, MAP_PRIVATE, fd, 0) : NULL; // 0 bytes cannot be mapped
    if (p == MAP_FAILED)
        return err_set(e, "E-IO-03", AT(.file = name, BYTE(0)), "expected %" PRId64 " mappable bytes; found %s; do: %s",
                       (int64_t)s.st_size, error_text(errno), "copy the file to a local disk");
    *m = (FileMap){.data = p, .size = (size_t)s.st_size, .mtime_ns = mtime_ns(&s), .inode = (int64_t)s.st_ino};
    return true;
}

bool file_map(FileMap *m, const char *path, Err *e) {
    int fd = open_to_read(path, e);
    if (fd < 0) return false;
    bool ok = file_map_fd(m, fd, path, e);
    close_read(fd);
    return ok;
}

bool file_map_unchanged(const FileMap *m, const char *path, Err *e) {
    struct stat s;
    if (stat(path, &s) || (size_t)s.st_size != m->size || mtime_ns(&s) != m->mtime_ns || (int64_t)s.st_ino != m->inode)
        return changed_while_read(path, e);
    return true;
}

void file_unmap(FileMap *m) {
    if (m->data)
        CHECK(!munmap((void *)(uintptr_t)m->data, m->size), "munmap of %zu bytes: %s", m->size, error_text(errno));
    *m = (FileMap){0};
}

bool file_exists(const char *path) {
    struct stat s;
    return !stat(path, &s) && S_ISREG(s.st_mode);
}
bool folder_exists(const char *path) {
    struct stat s;
    return !stat(path, &s) && S_ISDIR(s.st_mode);
}

// ----------------------------------------------------------------------------------------------------------- paths

static bool path_too_long(const char *path, size_t length, Err *e) {
    return err_set(e, "E-IO-01", AT(.file = path), "expected a path of at most %" PRId64 " bytes; found %zu; do: %s",
                   LIMIT_PATH_BYTES, length, "use a shorter path");
}

bool path_join(char *out, size_t out_size, const char *dir, const char *name, Err *e) {
    size_t n = strlen(dir);
    const char *between = n && dir[n - 1] == '/' ? "" : "/";
    size_t length = n + strlen(between) + strlen(name);
    if ((int64_t)length > LIMIT_PATH_BYTES || length >= out_size) return path_too_long(dir, length, e);
    snprintf(out, out_size, "%s%s%s", dir, between, name);
    return true;
}

bool path_dir(char *out, size_t out_size, const char *path, Err *e) {
    const char *slash = strrchr(path, '/');
    const char *from = slash ? path : ".";
    size_t n = !slash ? 1 : slash == path ? 1 : (size_t)(slash - path);
    if ((int64_t)n > LIMIT_PATH_BYTES || n >= out_size) return path_too_long(path, n, e);
    memcpy(out, from, n), out[n] = 0;
    return true;
}

int open_beneath(const char *root, const char *relative, const char *code, Where at, Err *e) {
    size_t length = strlen(relative);
    const char *shown = quoted(relative, length);
    bool inside = length > 0 && (int64_t)length <= LIMIT_PATH_BYTES && !strchr(relative, '\\');
    for (const char *p = relative; inside; p++) { // every part between slashes
        size_t n = strcspn(p, "/");
        inside = !(n == 0 || (n == 1 && p[0] == '.') || (n == 2 && p[0] == '.' && p[1] == '.'));
        p += n;
        if (!*p) break;
    }
    if (!inside) {
        err_set(e, code, at, "expected a path inside the folder; found %s; do: give paths relative to %s", shown, root);
        return -1;
    }
    int dir = open(root, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (dir < 0) {
        err_set(e, "E-IO-01", AT(.file = root), "expected a folder; found %s; do: check the path", error_text(errno));
        return -1;
    }
    for (const char *p = relative;;) {
        char part[1100];
        size_t n = strcspn(p, "/");
        memcpy(part, p, n), part[n] = 0, p += n;
        bool last = !*p++;
        int flags = O_NOFOLLOW | O_CLOEXEC | (last ? O_RDONLY | O_NONBLOCK | O_NOCTTY : O_PATH | O_DIRECTORY);
        int next = openat(dir, part, flags), error = errno;
        struct stat s;
        bool link = next < 0 && !fstatat(dir, part, &s, AT_SYMLINK_NOFOLLOW) && S_ISLNK(s.st_mode);
        close_read(dir);
        if (next < 0) {
            if (link)
                err_set(e, code, at, "expected a path without symbolic links; found one at %s in %s; do: %s",
                        quoted(part, n), shown, "copy the file itself there");
            else
                err_set(e, "E-IO-01", at, "expected a readable file %s in %s; found %s; do: check the path", shown,
                        root, error_text(error));
            return -1;
        }
        dir = next;
        if (last) return regular(next, relative, &s, e) ? next : (close_read(next), -1);
    }
}

// --------------------------------------------------------------------------------------------------------- writing

// Fails with what went wrong at `path`: E-WR-01 when there is no room, E-WR-02 otherwise.
static bool write_failed(FileWriter *w, const char *doing, int error, Err *e) {
    if (error == ENOSPC || error == EDQUOT || error == EFBIG)
        err_set(e, "E-WR-01", AT(.file = w->path, BYTE(w->written)),
                "expected room for the file; found %s; do: free space (or raise ulimit -f, or the quota)",
                error_text(error));
    else
        err_set(e, "E-WR-02", AT(.file = w->path, BYTE(w->written)), "expected to %s the file; found %s; do: %s", doing,
                error_text(error), "check that its folder exists, is writable and on a healthy disk");
    file_write_abort(w);
    return false;
}

void file_write_abort(FileWriter *w) {
    if (w->fd >= 0) close_read(w->fd);    // the file is thrown away
    if (w->tmp[0]) (void)!unlink(w->tmp); // and so is its name; nobody is left to tell
    w->fd = -1, w->tmp[0] = 0;
}

bool file_write_begin(FileWriter *w, const char *path, Err *e) {
    static unsigned counter;
    *w = (FileWriter){.fd = -1};
    if (strlen(path) >= sizeof w->path) return path_too_long(path, strlen(path), e);
    memcpy(w->path, path, strlen(path) + 1);
    char dir[1100];
    if (!path_dir(dir, sizeof dir, path, e)) return false;
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    struct stat s;
    if (!*name || (!lstat(path, &s) && !S_ISREG(s.st_mode))) // a rename over a device or a link would replace it
        return err_set(e, "E-WR-02", AT(.file = path), "expected the name of a new or regular file; found %s; do: %s",
                       !*name || S_ISDIR(s.st_mode) ? "a folder"
                       : S_ISLNK(s.st_mode)         ? "a symbolic link"
                                                    : "a device or a pipe",
                       "give another name");
    for (int attempt = 0; attempt < 100 && w->fd < 0; attempt++) { // a crashed process may have left its names
        unsigned count = __atomic_fetch_add(&counter, 1, __ATOMIC_RELAXED);
        int n = snprintf(w->tmp, sizeof w->tmp, "%s%s.tmp-%.200s-%ld-%u", slash ? dir : "",
                         !slash || slash == path ? "" : "/", name, (long)getpid(), count);
        if (n < 0 || (size_t)n >= sizeof w->tmp) {
            w->tmp[0] = 0;
            return path_too_long(path, (size_t)n, e);
        }
        w->fd = open(w->tmp, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0644);
        if (w->fd < 0 && errno != EEXIST && errno != EINTR) break;
    }
    if (w->fd >= 0) return true;
    int error = errno;
    w->tmp[0] = 0; // not ours: never unlink it
    return write_failed(w, "create", error, e);
}

bool file_write_bytes(FileWriter *w, const void *data, size_t size, Err *e) {
    const char *p = data;
    while (size) {
        ssize_t n = write(w->fd, p, size < ((size_t)1 << 30) ? size : (size_t)1 << 30);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return write_failed(w, "write", n < 0 ? errno : EIO, e);
        p += n, size -= (size_t)n, w->written += n;
    }
    return true;
}

bool file_write_commit(FileWriter *w, Err *e) {
    struct stat s;
    if (fstat(w->fd, &s)) return write_failed(w, "look at", errno, e);
    if (s.st_size != w->written) return write_failed(w, "find all that was written in", EIO, e);
    if (fsync(w->fd)) {
        w->fsync_failed = true; // the pages may be gone: a second fsync of this file could lie
        return write_failed(w, "flush", errno, e);
    }
    int fd = w->fd;
    w->fd = -1;
    if (close(fd)) return write_failed(w, "close", errno, e);
    if (rename(w->tmp, w->path)) return write_failed(w, "rename", errno, e);
    w->tmp[0] = 0;
    // The name is durable once its folder is. From here path holds the new file, whole, whatever happens.
    char dir[1100];
    return path_dir(dir, sizeof dir, w->path, e) && folder_sync(dir, e);
}

bool folder_sync(const char *dir, Err *e) {
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int error = fd < 0 ? errno : fsync(fd) && errno != EINVAL ? errno : 0; // EINVAL: a file system without such a thing
    if (fd >= 0 && close(fd) && !error) error = errno;
    return !error || err_set(e, "E-WR-02", AT(.file = dir), "expected to flush the folder; found %s; do: %s",
                             error_text(error), "check that it is writable and on a healthy disk");
}

static bool folder_failed(const char *dir, const char *what, int error, Err *e) {
    return err_set(e, error == ENOSPC || error == EDQUOT ? "E-WR-01" : "E-WR-02", AT(.file = dir),
                   "expected to %s the folder; found %s; do: check that its parent is writable", what,
                   error_text(error));
}

bool folder_begin(const char *dir, Err *e) {
    DIR *left = opendir(dir);
    int error = 0;
    for (struct dirent *f; left && (f = readdir(left));)
        if (strcmp(f->d_name, ".") && strcmp(f->d_name, "..") && unlinkat(dirfd(left), f->d_name, 0)) error = errno;
    if (left) closedir(left);
    if (!error && left && rmdir(dir)) error = errno;
    if (!error && mkdir(dir, 0755)) error = errno;
    return !error || folder_failed(dir, "make", error, e);
}

bool folder_finish(const char *made, const char *dir, Err *e) {
    char parent[1100];
    if (!path_dir(parent, sizeof parent, dir, e) || !folder_sync(made, e)) return false;
    if (rename(made, dir)) return folder_failed(dir, "rename", errno, e);
    return folder_sync(parent, e);
}

static bool folder_empty(const char *dir) {
    DIR *d = opendir(dir);
    bool empty = d != NULL;
    for (struct dirent *f; empty && (f = readdir(d));) empty = !strcmp(f->d_name, ".") || !strcmp(f->d_name, "..");
    if (d) closedir(d);
    return empty;
}

bool folder_new(NewFolder *f, const char *dir, Err *e) {
    if ((int64_t)strlen(dir) + 64 > LIMIT_PATH_BYTES)
        return err_set(e, "E-IO-01", AT(.file = dir), "expected a shorter path; found %zu bytes; do: choose another",
                       strlen(dir));
    int length = snprintf(f->dir, sizeof f->dir, "%s", dir);
    while (length > 1 && f->dir[length - 1] == '/') f->dir[--length] = 0;
    struct stat s;
    if (!lstat(f->dir, &s) && !(S_ISDIR(s.st_mode) && folder_empty(f->dir)))
        return err_set(e, "E-WR-02", AT(.file = f->dir),
                       "expected the name of a new or an empty folder; found %s; do: choose another name",
                       S_ISDIR(s.st_mode) ? "a folder with files in it" : "something that is no folder");
    snprintf(f->made, sizeof f->made, "%.1060s.tmp-%ld", f->dir, (long)getpid());
    return true;
}

bool folder_new_end(const NewFolder *f, bool ok, Err *e) {
    Err unused = {0};
    ok = ok && folder_finish(f->made, f->dir, e);
    if (!ok && folder_begin(f->made, &unused)) (void)!rmdir(f->made); // best effort, nobody is left to tell
    return ok;
}

bool file_write_atomic(const char *path, const void *data, size_t size, Err *e) {
    Err first = {0};
    FileWriter w;
    for (int attempt = 0; attempt < 2; attempt++) {
        Err now = {0};
        if (file_write_begin(&w, path, &now) && file_write_bytes(&w, data, size, &now) && file_write_commit(&w, &now))
            return true;
        if (attempt == 0) first = now;
        if (!w.fsync_failed) break; // after a failed fsync, once more from memory into a fresh file
    }
    if (!e->code[0]) *e = first;
    return false;
}

bool file_copy(const char *from, const char *to, const char *name, Err *e) {
    char source[1100], target[1100], *data;
    size_t size;
    if (!path_join(source, sizeof source, from, name, e) || !path_join(target, sizeof target, to, name, e))
        return false;
    if (!file_exists(source)) return true;
    if (!file_read(source, LIMIT_TOKENIZER_BYTES, "E-IO-03", &data, &size, e)) return false;
    bool ok = file_write_atomic(target, data, size, e);
    free(data);
    return ok;
}

// --------------------------------------------------------------------------------------------------------- SHA-256
// FIPS 180-4, section 6.2. The constants are the fractional parts of the square and cube roots of the first primes.

static uint32_t rotate(uint32_t x, int n) { return x >> n | x << (32 - n); }

static void sha256_block(uint32_t h[8], const uint8_t *p) {
    static const uint32_t k[64] = {
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
        0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
        0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
        0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
        0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
        0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
        0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
    uint32_t w[64], v[8];
    for (int t = 0; t < 16; t++)
        w[t] = (uint32_t)p[4 * t] << 24 | (uint32_t)p[4 * t + 1] << 16 | (uint32_t)p[4 * t + 2] << 8 | p[4 * t + 3];
    for (int t = 16; t < 64; t++) {
        uint32_t a = w[t - 15], b = w[t - 2];
        w[t] =
            w[t - 16] + w[t - 7] + (rotate(a, 7) ^ rotate(a, 18) ^ a >> 3) + (rotate(b, 17) ^ rotate(b, 19) ^ b >> 10);
    }
    memcpy(v, h, sizeof v);
    for (int t = 0; t < 64; t++) {
        uint32_t a = v[0], c = v[4];
        uint32_t t1 = v[7] + (rotate(c, 6) ^ rotate(c, 11) ^ rotate(c, 25)) + ((c & v[5]) ^ (~c & v[6])) + k[t] + w[t];
        uint32_t t2 = (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + ((a & v[1]) ^ (a & v[2]) ^ (v[1] & v[2]));
        memmove(v + 1, v, 7 * sizeof v[0]);
        v[4] += t1, v[0] = t1 + t2;
    }
    for (int i = 0; i < 8; i++) h[i] += v[i];
}

void sha256_start(Sha256 *s) {
    *s =
        (Sha256){.h = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19}};
}

void sha256_add(Sha256 *s, const void *data, size_t size) {
    const uint8_t *p = data;
    size_t held = (size_t)(s->bytes % 64), room = held ? 64 - held : 0;
    s->bytes += size;
    if (room) { // fill the block that was begun
        size_t n = size < room ? size : room;
        if (n) memcpy(s->block + held, p, n), p += n, size -= n;
        if (n < room) return;
        sha256_block(s->h, s->block);
    }
    for (; size >= 64; size -= 64, p += 64) sha256_block(s->h, p);
    if (size) memcpy(s->block, p, size);
}

void sha256_finish(Sha256 *s, char hex[65]) {
    uint8_t tail[128] = {0}; // what is left, a 1 bit, zeros, the length in bits (big-endian, 64 bits)
    size_t rest = (size_t)(s->bytes % 64), end = rest < 56 ? 64 : 128;
    memcpy(tail, s->block, rest);
    tail[rest] = 0x80;
    for (int i = 0; i < 8; i++) tail[end - 1 - (size_t)i] = (uint8_t)(s->bytes * 8 >> 8 * i);
    sha256_block(s->h, tail);
    if (end == 128) sha256_block(s->h, tail + 64);
    for (int i = 0; i < 8; i++) snprintf(hex + 8 * i, 9, "%08x", s->h[i]);
}

void sha256_hex(const void *data, size_t size, char hex[65]) {
    Sha256 s;
    sha256_start(&s);
    sha256_add(&s, data, size);
    sha256_finish(&s, hex);
}
