// log.c - what a run writes as it goes: JSON lines with checksums, and TensorBoard event files.
//
// What it is:  two kinds of append-only files. A record is written whole or not at all, with one write(); a process
//              killed in the middle leaves at most one torn record at the end, which the next open cuts off.
// What it is not: a decision about what to log, or about when a checkpoint is made (run.c knows the lengths).
// Read before: files.c.  Read next: run.c.
#define _GNU_SOURCE
#include "../surgr1.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

// --------------------------------------------------------------------------------------------------------- CRC-32C
// Castagnoli's polynomial 0x1EDC6F41, reflected, all ones before and after (RFC 3720, appendix B.4). Eight bytes at a
// time: table[k][b] is the remainder of byte b followed by k zero bytes (Kounavis and Berry 2005, "slicing by 8").

static uint32_t crc_table[8][256];

static void crc_fill(void) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int k = 0; k < 8; k++) c = c & 1 ? 0x82F63B78u ^ c >> 1 : c >> 1;
        crc_table[0][i] = c;
    }
    for (int k = 1; k < 8; k++)
        for (int i = 0; i < 256; i++)
            crc_table[k][i] = crc_table[0][crc_table[k - 1][i] & 255] ^ crc_table[k - 1][i] >> 8;
}

static uint32_t little32(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

uint32_t crc32c(uint32_t crc, const void *data, size_t size) {
    const uint8_t *p = data;
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, crc_fill);
    crc = ~crc;
    for (; size >= 8; size -= 8, p += 8) {
        uint32_t a = crc ^ little32(p), b = little32(p + 4);
        crc = crc_table[7][a & 255] ^ crc_table[6][a >> 8 & 255] ^ crc_table[5][a >> 16 & 255] ^ crc_table[4][a >> 24] ^
              crc_table[3][b & 255] ^ crc_table[2][b >> 8 & 255] ^ crc_table[1][b >> 16 & 255] ^ crc_table[0][b >> 24];
    }
    for (; size; size--) crc = crc_table[0][(crc ^ *p++) & 255] ^ crc >> 8;
    return ~crc;
}

// ---------------------------------------------------------------------------------------------- files that only grow

static bool write_failed(const char *path, int64_t at, const char *doing, int error, Err *e) {
    if (error == ENOSPC || error == EDQUOT || error == EFBIG)
        return err_set(e, "E-WR-01", AT(.file = path, BYTE(at)), "expected room for the log; found %s; do: %s",
                       error_text(error), "free space (or raise ulimit -f, or the quota) and resume");
    return err_set(e, "E-WR-02", AT(.file = path, BYTE(at)), "expected to %s the log; found %s; do: %s", doing,
                   error_text(error), "check that its folder exists, is writable and on a healthy disk, and resume");
}

static void give_up(int *fd) { // the file is no longer in a known state: nothing more goes in
    (void)!close(*fd);
    *fd = -1;
}

static bool is_open(int fd, const char *path, Err *e) {
    return fd >= 0 || err_set(e, "E-WR-02", AT(.file = path), "expected an open log; found one that %s; do: %s",
                              "was closed, or given up after an earlier error", "resume the run");
}

// Appends a record: all of it, or the file is as it was.
static bool append(int *fd, const char *path, int64_t *bytes, const void *data, size_t size, Err *e) {
    if (!is_open(*fd, path, e)) return false;
    int error = EIO;
    for (int attempt = 0; attempt < 3; attempt++) {
        ssize_t n;
        do n = write(*fd, data, size);
        while (n < 0 && errno == EINTR);
        if (n == (ssize_t)size) {
            *bytes += n;
            return true;
        }
        error = n < 0 ? errno : ENOSPC;         // a short write: the next attempt says why
        if (n >= 0 && ftruncate(*fd, *bytes)) { // half a record must not stay before the next one
            error = errno, give_up(fd);
            break;
        }
        if (n < 0) break;
    }
    return write_failed(path, *bytes, "write to", error, e);
}

static bool flush(int *fd, const char *path, int64_t bytes, Err *e) {
    if (!is_open(*fd, path, e)) return false;
    if (!fsync(*fd)) return true;
    int error = errno;
    give_up(fd); // the pages may be gone, and a second fsync could lie
    return write_failed(path, bytes, "flush", error, e);
}

// Opens for appending; a new file's name is made durable. *size is what is there.
static int open_grown(const char *path, bool *created, int64_t *size, Err *e) {
    int fd, flags = O_RDWR | O_APPEND | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK;
    char dir[1100];
    struct stat s;
    *created = false;
    do fd = open(path, flags);
    while (fd < 0 && errno == EINTR);
    if (fd < 0 && errno == ENOENT) {
        do fd = open(path, flags | O_CREAT | O_EXCL, 0644);
        while (fd < 0 && errno == EINTR);
        *created = true;
    }
    if (fd < 0) return write_failed(path, 0, "open", errno, e), -1;
    bool ok = !*created || (path_dir(dir, sizeof dir, path, e) && folder_sync(dir, e));
    if (ok && fstat(fd, &s)) ok = write_failed(path, 0, "look at", errno, e);
    if (ok && !S_ISREG(s.st_mode))
        ok = err_set(e, "E-IO-02", AT(.file = path), "expected a regular file; found something else; do: move it away");
    if (!ok) return (void)!close(fd), -1;
    *size = (int64_t)s.st_size;
    return fd;
}

static bool cut(int *fd, const char *path, int64_t from, int64_t to, Err *e) {
    if (from == to) return true;
    int error = ftruncate(*fd, to) ? errno : fsync(*fd) ? errno : 0;
    return !error || write_failed(path, to, "cut", error, e);
}

// Bytes [at, at + size) of a file, or fewer at its end; -1 with e set.
static ssize_t read_at(int fd, const char *path, void *out, size_t size, int64_t at, Err *e) {
    size_t done = 0;
    while (done < size) {
        ssize_t n = pread(fd, (char *)out + done, size - done, (off_t)(at + (int64_t)done));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) {
            err_set(e, "E-IO-03", AT(.file = path, BYTE(at + (int64_t)done)),
                    "expected readable bytes; found %s; do: check the disk", error_text(errno));
            return -1;
        }
        if (n == 0) break;
        done += (size_t)n;
    }
    return (ssize_t)done;
}

enum { PIECE = 1 << 20 };

static bool too_short(const char *path, int64_t keep, int64_t size, Err *e) {
    return err_set(e, "E-CK-02", AT(.file = path, BYTE(size)),
                   "expected at least the %" PRId64 " bytes that the checkpoint knows; found %" PRId64 "; do: %s", keep,
                   size, "bring the whole file back, or resume from an older checkpoint by moving the newer ones away");
}

// -------------------------------------------------------------------------------------------------------- JSON lines

enum { HEAD = 18 }; // {"crc":"XXXXXXXX",

// A line without its newline. *seq is its number.
static bool line_good(const char *line, size_t len, int64_t *seq) {
    static const char before[] = "{\"crc\":\"", number[] = "\"seq\":";
    if (len < HEAD + sizeof number || (int64_t)len > LIMIT_LOG_LINE_BYTES || line[len - 1] != '}') return false;
    if (memcmp(line, before, sizeof before - 1) || line[16] != '"' || line[17] != ',') return false;
    char crc[9];
    snprintf(crc, sizeof crc, "%08" PRIx32, crc32c(0, line + HEAD, len - HEAD));
    if (memcmp(line + 8, crc, 8) || memcmp(line + HEAD, number, sizeof number - 1)) return false;
    const char *p = line + HEAD + sizeof number - 1;
    int64_t n = 0;
    int digits = 0;
    for (; *p >= '0' && *p <= '9' && digits < 18; p++, digits++) n = 10 * n + (*p - '0');
    *seq = n;
    return digits && (*p == ',' || p == line + len - 1);
}

typedef struct Lines { // what a scan found
    int64_t number;    // lines that ended
    int64_t good, end; // good ones from the start without a gap; where the last of them ends
    int64_t bad;       // number of the first bad one, 0: none
    bool damaged;      // a good one stands behind it
} Lines;

static void judge(Lines *l, const char *line, size_t len, int64_t end) {
    int64_t seq;
    bool good = line && line_good(line, len, &seq);
    l->number++;
    if (l->bad) l->damaged |= good;
    else if (good && seq == l->good) l->good++, l->end = end;
    else l->bad = l->number, l->damaged = good; // a gap in the numbers is no torn tail
}

// Reads lines in [0, end). What has no newline at the end counts as no line.
static bool scan_lines(int fd, const char *path, int64_t end, Lines *l, Err *e) {
    char *buffer = alloc_or_die(PIECE, 1, "a piece of a log");
    size_t have = 0;
    int64_t at = 0;       // of buffer[0] in the file
    bool endless = false; // inside a line that is longer than the buffer
    *l = (Lines){0};
    for (;;) {
        size_t want = PIECE - have;
        if ((int64_t)want > end - at - (int64_t)have) want = (size_t)(end - at - (int64_t)have);
        ssize_t n = read_at(fd, path, buffer + have, want, at + (int64_t)have, e);
        if (n < 0) return free(buffer), false;
        if (n == 0) break;
        have += (size_t)n;
        char *p = buffer, *newline;
        while ((newline = memchr(p, '\n', (size_t)(buffer + have - p)))) {
            judge(l, endless ? NULL : p, (size_t)(newline - p), at + (newline + 1 - buffer));
            endless = false, p = newline + 1;
        }
        if (p == buffer && have == PIECE) endless = true, p += have;
        have -= (size_t)(p - buffer), at += p - buffer;
        memmove(buffer, p, have);
    }
    free(buffer);
    return true;
}

static bool bad_line(const char *path, const Lines *l, Err *e) {
    return err_set(e, "E-CK-02", AT(.file = path, .line = l->bad),
                   "expected line %" PRId64 " of the log with its checksum; found a damaged one; do: %s", l->good,
                   "bring the file back from a copy; surgr1 check log shows the first bad line");
}

bool log_check(const char *path, int64_t *lines, bool *torn, Err *e) {
    int fd;
    struct stat s;
    Lines l;
    do fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    while (fd < 0 && errno == EINTR);
    if (fd < 0)
        return err_set(e, "E-IO-01", AT(.file = path, BYTE(0)), "expected a readable file; found %s; do: %s",
                       error_text(errno), "check the path");
    bool ok = !fstat(fd, &s) && S_ISREG(s.st_mode);
    if (!ok) err_set(e, "E-IO-02", AT(.file = path), "expected a regular file; found something else; do: name a log");
    ok = ok && scan_lines(fd, path, INT64_MAX, &l, e);
    (void)!close(fd);
    if (!ok) return false;
    *lines = l.good, *torn = l.end < (int64_t)s.st_size;
    return !l.damaged || bad_line(path, &l, e);
}

bool log_open(Log *l, const char *path, int64_t keep_bytes, Err *e) {
    bool created;
    int64_t size;
    Lines found;
    *l = (Log){.fd = -1, .synced = clock_seconds()};
    if (strlen(path) >= sizeof l->path)
        return err_set(e, "E-IO-01", AT(0), "expected a shorter path; found %zu bytes; do: shorten it", strlen(path));
    snprintf(l->path, sizeof l->path, "%s", path);
    if ((l->fd = open_grown(path, &created, &size, e)) < 0) return false;
    bool ok = keep_bytes <= size || too_short(path, keep_bytes, size, e);
    ok = ok && scan_lines(l->fd, path, keep_bytes < 0 ? INT64_MAX : keep_bytes, &found, e);
    if (ok && (keep_bytes < 0 ? found.damaged : found.bad > 0)) ok = bad_line(path, &found, e);
    if (ok && keep_bytes >= 0 && found.end != keep_bytes)
        ok = err_set(e, "E-CK-02", AT(.file = path, BYTE(keep_bytes)),
                     "expected the end of a line there, as the checkpoint says; found the middle of one; do: %s",
                     "check that log and checkpoint belong together");
    if (ok && size > found.end && keep_bytes < 0)
        warn("E-CK-07", AT(.file = path, BYTE(found.end)),
             "expected whole lines; found %" PRId64 " bytes of a torn one; do: nothing, they are cut off",
             size - found.end);
    ok = ok && cut(&l->fd, path, size, found.end, e);
    if (!ok) return give_up(&l->fd), false;
    l->bytes = found.end, l->seq = found.good;
    return true;
}

bool log_write(Log *l, const char *members, Err *e) {
    char line[65536 + 1]; // LIMIT_LOG_LINE_BYTES and the newline
    size_t length = strlen(members);
    CHECK((int64_t)length < LIMIT_LOG_LINE_BYTES - HEAD - 32 && !memchr(members, '\n', length),
          "a log line of %zu bytes, or with a newline", length);
    size_t n = HEAD + (size_t)snprintf(line + HEAD, 32, "\"seq\":%" PRId64 "%s", l->seq, length ? "," : "");
    memcpy(line + n, members, length), n += length;
    line[n++] = '}';
    char head[HEAD + 1];
    snprintf(head, sizeof head, "{\"crc\":\"%08" PRIx32 "\",", crc32c(0, line + HEAD, n - HEAD));
    memcpy(line, head, HEAD);
#ifdef SURGR1_DEBUG
    Err bad = {0};
    JsonDoc doc;
    CHECK(json_parse(&doc, line, n, l->path, (JsonOptions){.refuse_duplicates = true}, &bad),
          "a log line that is no JSON: %s", quoted(members, length));
    json_free(&doc);
#endif
    line[n++] = '\n';
    if (!append(&l->fd, l->path, &l->bytes, line, n, e)) return false;
    l->seq++;
    return clock_seconds() - l->synced < 30 || log_sync(l, e);
}

bool log_sync(Log *l, Err *e) {
    l->synced = clock_seconds();
    return flush(&l->fd, l->path, l->bytes, e);
}

void log_close(Log *l) {
    if (l->fd >= 0) (void)!close(l->fd); // what counts was flushed before a checkpoint
    l->fd = -1;
}

void log_add_text(Text *members, const char *bytes, size_t len) {
    size_t keep = len;
    if ((int64_t)len > LIMIT_LOG_TEXT_BYTES) keep = utf8_complete(bytes, (size_t)LIMIT_LOG_TEXT_BYTES);
    if (keep == len) {
        text_add_json_string(members, bytes, len);
        return;
    }
    Text t = {0};
    text_add(&t, bytes, keep);
    text_addf(&t, " [... %zu bytes more]", len - keep);
    text_add_json_string(members, t.p, t.len);
    text_free(&t);
}

// ------------------------------------------------------------------------------------------------- TensorBoard events
// A record: u64 length, u32 masked CRC-32C of those 8 bytes, payload, u32 masked CRC-32C of the payload, little-endian.
// The payload is a protobuf message Event; the fields used are named where they are written.

static uint32_t masked(uint32_t crc) { return (crc >> 15 | crc << 17) + 0xA282EAD8u; }

static void put_little(uint8_t *p, uint64_t v, int bytes) {
    for (int i = 0; i < bytes; i++) p[i] = (uint8_t)(v >> 8 * i);
}

static void proto_varint(Text *t, uint64_t v) {
    char out[10];
    size_t n = 0;
    for (; v >= 128; v >>= 7) out[n++] = (char)(v | 128);
    out[n++] = (char)v;
    text_add(t, out, n);
}
static void proto_int(Text *t, uint64_t field, uint64_t v) { proto_varint(t, field << 3), proto_varint(t, v); }
static void proto_bytes(Text *t, uint64_t field, const char *p, size_t n) {
    proto_varint(t, field << 3 | 2), proto_varint(t, n), text_add(t, p, n);
}
static void proto_fixed(Text *t, uint64_t field, uint64_t bits, int bytes) { // 4 or 8
    uint8_t out[8];
    proto_varint(t, field << 3 | (bytes == 8 ? 1 : 5));
    put_little(out, bits, bytes), text_add(t, (const char *)out, (size_t)bytes);
}

// Writes Event{1: wall_time, 2: step, field: message} as one record.
static bool write_event(Events *t, int64_t step, uint64_t field, const char *message, size_t len, Err *e) {
    struct timespec now;
    double seconds;
    uint64_t bits;
    clock_gettime(CLOCK_REALTIME, &now);
    seconds = (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
    memcpy(&bits, &seconds, 8);
    Text r = {0};
    text_add(&r, "\0\0\0\0\0\0\0\0\0\0\0", 12);
    proto_fixed(&r, 1, bits, 8);
    if (step) proto_int(&r, 2, (uint64_t)step);
    proto_bytes(&r, field, message, len);
    put_little((uint8_t *)r.p, r.len - 12, 8);
    put_little((uint8_t *)r.p + 8, masked(crc32c(0, r.p, 8)), 4);
    uint8_t crc[4];
    put_little(crc, masked(crc32c(0, r.p + 12, r.len - 12)), 4);
    text_add(&r, (const char *)crc, 4);
    bool ok = append(&t->fd, t->path, &t->bytes, r.p, r.len, e);
    text_free(&r);
    return ok;
}

// Event.5 summary: Summary{1: Value}. Takes value's text.
static bool write_value(Events *t, int64_t step, Text *value, Err *e) {
    Text summary = {0};
    proto_bytes(&summary, 1, value->p, value->len);
    bool ok = write_event(t, step, 5, summary.p, summary.len, e);
    text_free(&summary), text_free(value);
    return ok;
}

bool events_scalar(Events *t, const char *tag, int64_t step, double value, Err *e) {
    Text v = {0};
    float f = (float)value;
    uint32_t bits;
    memcpy(&bits, &f, 4);
    proto_bytes(&v, 1, tag, strlen(tag)), proto_fixed(&v, 2, bits, 4); // Value{1: tag, 2: simple_value}
    return write_value(t, step, &v, e);
}

bool events_text(Events *t, const char *tag, int64_t step, const char *markdown, size_t len, Err *e) {
    Text v = {0}, tensor = {0}, plugin = {0}, meta = {0};
    proto_int(&tensor, 1, 7), proto_bytes(&tensor, 2, "", 0); // TensorProto{1: dtype string, 2: shape of rank 0,
    proto_bytes(&tensor, 8, markdown, len);                   //             8: string_val}
    proto_bytes(&plugin, 1, "text", 4);                       // PluginData{1: plugin_name}
    proto_bytes(&meta, 1, plugin.p, plugin.len), proto_int(&meta, 4, 2); // SummaryMetadata{1, 4: data_class tensor}
    proto_bytes(&v, 1, tag, strlen(tag)), proto_bytes(&v, 8, tensor.p, tensor.len),
        proto_bytes(&v, 9, meta.p, meta.len);
    text_free(&tensor), text_free(&plugin), text_free(&meta);
    return write_value(t, step, &v, e);
}

bool events_image(Events *t, const char *tag, int64_t step, const Image *im, Err *e) {
    uint8_t *png;
    size_t size;
    if (!image_encode_png(&png, &size, im->rgb, im->width, im->height, t->path, e)) return false;
    Text v = {0}, image = {0};
    proto_int(&image, 1, (uint64_t)im->height), proto_int(&image, 2, (uint64_t)im->width);
    proto_int(&image, 3, 3), proto_bytes(&image, 4, (const char *)png, size); // 3: colour space RGB; 4: PNG
    proto_bytes(&v, 1, tag, strlen(tag)), proto_bytes(&v, 4, image.p, image.len);
    free(png), text_free(&image);
    return write_value(t, step, &v, e);
}

bool events_sync(Events *t, Err *e) { return flush(&t->fd, t->path, t->bytes, e); }

void events_close(Events *t) {
    if (t->fd >= 0) (void)!close(t->fd);
    t->fd = -1;
}

// Is there a whole record at `at`, in a file of `size` bytes? Then *next is where it ends.
static bool record_at(int fd, const char *path, const uint8_t head[12], int64_t at, int64_t size, int64_t *next,
                      bool *good, Err *e) {
    *good = false;
    if (little32(head + 8) != masked(crc32c(0, head, 8))) return true;
    uint64_t length = little32(head) | (uint64_t)little32(head + 4) << 32;
    if (size - at < 16 || length > (uint64_t)(size - at - 16)) return true;
    uint32_t crc = 0;
    uint8_t piece[16384];
    int64_t p = at + 12, end = p + (int64_t)length;
    while (p < end) {
        size_t want = end - p < (int64_t)sizeof piece ? (size_t)(end - p) : sizeof piece;
        ssize_t n = read_at(fd, path, piece, want, p, e);
        if (n < 0) return false;
        if (n == 0) return true;
        crc = crc32c(crc, piece, (size_t)n), p += n;
    }
    ssize_t n = read_at(fd, path, piece, 4, end, e);
    *good = n == 4 && little32(piece) == masked(crc), *next = end + 4;
    return n >= 0;
}

// Where the good records from the start end, within [0, limit); *damaged when a good one stands behind a bad one.
static bool scan_records(int fd, const char *path, int64_t limit, int64_t *end, bool *damaged, Err *e) {
    uint8_t *buffer = alloc_or_die(PIECE, 1, "a piece of an event file");
    bool ok = true, good = true;
    *end = 0, *damaged = false;
    while (ok && good && *end < limit) {
        int64_t next = 0;
        ssize_t n = read_at(fd, path, buffer, 12, *end, e);
        good = n == 12, ok = n >= 0 && (!good || record_at(fd, path, buffer, *end, limit, &next, &good, e));
        if (ok && good) *end = next;
    }
    // Behind a bad record the framing is lost: look at every byte for the head of a record that is whole.
    for (int64_t at = *end + 1; ok && !*damaged && at < limit; at += PIECE - 11) {
        ssize_t n = read_at(fd, path, buffer, PIECE, at, e);
        ok = n >= 0;
        for (ssize_t i = 0; ok && !*damaged && i + 12 <= n; i++) {
            int64_t next;
            ok = record_at(fd, path, buffer + i, at + i, limit, &next, damaged, e);
        }
    }
    free(buffer);
    return ok;
}

static bool is_our_name(const char *name) { // events.out.tfevents.<10 digits>.surgr1
    static const char before[] = "events.out.tfevents.", after[] = ".surgr1";
    const size_t n = sizeof before - 1;
    if (strncmp(name, before, n)) return false;
    return strspn(name + n, "0123456789") == 10 && !strcmp(name + n + 10, after);
}

// Finds the run's file in dir (the oldest, should there be copies), or makes up a name.
static bool find_events(char *path, size_t path_size, const char *dir, bool *there, Err *e) {
    char name[64] = "";
    DIR *d = opendir(dir);
    if (!d)
        return err_set(e, "E-IO-01", AT(.file = dir), "expected a folder; found %s; do: check the path",
                       error_text(errno));
    for (;;) {
        errno = 0;
        struct dirent *f = readdir(d);
        if (!f) break;
        if (is_our_name(f->d_name) && (!name[0] || strcmp(f->d_name, name) < 0))
            snprintf(name, sizeof name, "%.63s", f->d_name);
    }
    int error = errno;
    (void)!closedir(d);
    if (error)
        return err_set(e, "E-IO-03", AT(.file = dir), "expected a readable folder; found %s; do: check the disk",
                       error_text(error));
    *there = name[0];
    if (!name[0]) snprintf(name, sizeof name, "events.out.tfevents.%010lld.surgr1", (long long)time(NULL));
    return path_join(path, path_size, dir, name, e);
}

bool events_open(Events *t, const char *dir, int64_t keep_bytes, Err *e) {
    bool there = false, created, damaged = false;
    int64_t size = 0, end = 0;
    *t = (Events){.fd = -1};
    if (!find_events(t->path, sizeof t->path, dir, &there, e)) return false;
    if (!there && keep_bytes > 0) { // only for people to look at: no reason not to resume
        warn("E-CK-07", AT(.file = dir), "expected the run's event file of %" PRId64 " bytes; found none; do: %s",
             keep_bytes, "nothing, the curves begin again here");
        keep_bytes = 0;
    }
    if ((t->fd = open_grown(t->path, &created, &size, e)) < 0) return false;
    bool ok = keep_bytes <= size || too_short(t->path, keep_bytes, size, e);
    ok = ok && scan_records(t->fd, t->path, keep_bytes < 0 ? size : keep_bytes, &end, &damaged, e);
    if (ok && (damaged || (keep_bytes >= 0 && end != keep_bytes)))
        ok = err_set(e, "E-CK-02", AT(.file = t->path, BYTE(end)),
                     "expected a whole record; found a damaged one; do: move this file away, curves then begin again");
    if (ok && keep_bytes < 0 && end < size)
        warn("E-CK-07", AT(.file = t->path, BYTE(end)),
             "expected whole records; found %" PRId64 " bytes of a torn one; do: nothing, they are cut off",
             size - end);
    ok = ok && cut(&t->fd, t->path, size, end, e);
    t->bytes = end;
    if (ok && end == 0) ok = write_event(t, 0, 3, "brain.Event:2", 13, e) && events_sync(t, e); // 3: file_version
    if (!ok && t->fd >= 0) give_up(&t->fd);
    return ok;
}
