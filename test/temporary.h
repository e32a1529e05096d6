// temporary.h - a folder of this test run, made on first use and removed at exit, and files in it.
// Include it before anything else: it needs nftw.
#ifndef SURGR1_TEMPORARY_H
#define SURGR1_TEMPORARY_H
#define _GNU_SOURCE // nftw
#include "test.h"
#include <ftw.h>
#include <sys/stat.h>

static char folder[256]; // of this run, made on first use and removed at exit

static int remove_one(const char *path, const struct stat *s, int type, struct FTW *w) {
    (void)s, (void)type, (void)w;
    return remove(path);
}
static void remove_folder(void) { nftw(folder, remove_one, 16, FTW_DEPTH | FTW_PHYS); }

// A path in the folder of this run, in one of 4 rotating buffers.
static const char *tmp_path(const char *name) {
    static char ring[4][600];
    static int turn;
    if (!folder[0]) {
        const char *base = getenv("TMPDIR");
        if (!base || !*base) base = access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm"; // in memory: every write is fsynced
        snprintf(folder, sizeof folder, "%.200s/surgr1_test_XXXXXX", base);
        if (!mkdtemp(folder)) perror(folder), exit(1);
        atexit(remove_folder);
    }
    char *p = ring[turn++ % 4];
    snprintf(p, sizeof ring[0], "%s/%s", folder, name);
    return p;
}
static void put_file(const char *path, const void *data, size_t size) {
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, size, f) != size || fclose(f)) perror(path), exit(1);
}
static const char *tmp_folder(const char *name) {
    const char *p = tmp_path(name);
    mkdir(p, 0755);
    return p;
}
#endif
