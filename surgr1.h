// surgr1.h - every type and function above the ops, in dependency order: the map of the program.
//
// What it is:  one section per file; a section uses names from sections above it only. Shapes and units stand beside
//              every field; what a function refuses stands above it.
// What it is not: documentation of the maths. That is in the .c file a section names.
// Read before: ops.h.  Read next: block.c for the transformer block, generate.c for how an answer is made.
#ifndef SURGR1_SURGR1_H
#define SURGR1_SURGR1_H
#include "ops.h"

// ==================================================================================================== io/files.c
// Whole files in, atomic files out. All paths are as the user gave them.

// What the system says of an errno value, quoted for a message.
const char *error_text(int error);
// Reads a regular file of at most `limit` bytes into memory (malloc; free with free). The buffer holds one extra zero
// byte behind `*size`. Refuses: E-IO-01 cannot open, E-IO-02 not a regular file, E-IO-03 read error or short, E-IO-05
// changed while read, and `limit_code` (for example "E-JS-01") when the file is larger.
bool file_read(const char *path, int64_t limit, const char *limit_code, char **data, size_t *size, Err *e);
// The same from an open descriptor (open_beneath), which is left open; name is for messages.
bool file_read_fd(int fd, const char *name, int64_t limit, const char *limit_code, char **data, size_t *size, Err *e);

// A file mapped read-only, for base weights only (a file that shrinks under a mapping raises SIGBUS).
typedef struct FileMap {
    const uint8_t *data;
    size_t size;
    int64_t mtime_ns, inode;
} FileMap;
bool file_map(FileMap *m, const char *path, Err *e);                 // E-IO-01, -02, -03
bool file_map_fd(FileMap *m, int fd, const char *name, Err *e);      // the same from an open descriptor, left open
bool file_map_unchanged(const FileMap *m, const char *path, Err *e); // E-IO-05 when size, mtime or inode differ
void file_unmap(FileMap *m);

// Writes data under a temporary name in the same folder, fsyncs, renames over path, fsyncs the folder. On any failure
// path is as it was and nothing is left behind (but when only the folder's fsync fails, path is already the new file).
// E-WR-01 no space, E-WR-02 other write errors, and when path is a folder, a link, a device or a pipe.
bool file_write_atomic(const char *path, const void *data, size_t size, Err *e);
// The same in pieces, for files that do not fit in memory: begin, bytes..., then commit. Whichever call fails has
// already removed the temporary file; abort does it when the caller gives up for a reason of its own.
typedef struct FileWriter {
    int fd;                     // -1 when nothing is open
    bool fsync_failed;          // private
    int64_t written;            // bytes so far
    char path[1100], tmp[1100]; // target, temporary
} FileWriter;
bool file_write_begin(FileWriter *w, const char *path, Err *e);
bool file_write_bytes(FileWriter *w, const void *data, size_t size, Err *e);
bool file_write_commit(FileWriter *w, Err *e);
void file_write_abort(FileWriter *w);
// The small file `name` of folder `from` into folder `to`; one that is not there is not missed. At most
// LIMIT_TOKENIZER_BYTES (E-IO-03).
bool file_copy(const char *from, const char *to, const char *name, Err *e);
bool file_exists(const char *path);
bool folder_exists(const char *path);
// dir + "/" + name into out; E-IO-01 when longer than LIMIT_PATH_BYTES.
bool path_join(char *out, size_t out_size, const char *dir, const char *name, Err *e);
// Folder part of path into out ("." when there is none).
bool path_dir(char *out, size_t out_size, const char *path, Err *e);
// Opens `relative` beneath `root` only: no "..", no empty part, no absolute path, no symbolic link on the way (openat
// part by part with O_NOFOLLOW). Returns a descriptor or -1 with `code` (E-DS-04, E-IX-01) or E-IO-01.
int open_beneath(const char *root, const char *relative, const char *code, Where at, Err *e);
// fsync of a folder: names made, renamed and removed in it are durable from here. E-WR-02.
bool folder_sync(const char *dir, Err *e);
// A folder that appears whole or not at all: make it under another name beside its place (files that a crash left there go
// first), write into it, commit renames it. What stands at `dir` must be nothing or an empty folder. E-WR-01, -02.
bool folder_begin(const char *made, Err *e);
bool folder_finish(const char *made, const char *dir, Err *e);
// A result's folder, as the user named it: E-WR-02 when it is there and not empty. Between the two calls it is made by
// folder_begin(made); the end gives it its name, or takes it away when something went wrong.
typedef struct NewFolder {
    char dir[1100], made[1100];
} NewFolder;
bool folder_new(NewFolder *f, const char *dir, Err *e);
bool folder_new_end(const NewFolder *f, bool ok, Err *e);
// SHA-256 (FIPS 180-4), for checks and reports: 64 hex digits and a zero into hex.
void sha256_hex(const void *data, size_t size, char hex[65]);
typedef struct Sha256 { // the same in pieces
    uint32_t h[8];
    uint64_t bytes;
    uint8_t block[64]; // bytes % 64 of them, not yet worked in
} Sha256;
void sha256_start(Sha256 *s);
void sha256_add(Sha256 *s, const void *data, size_t size);
void sha256_finish(Sha256 *s, char hex[65]);

// ===================================================================================================== io/json.c
// RFC 8259 JSON, UTF-8 only, iterative, over a length-delimited buffer. Strings are pointer + length (they may hold
// zero bytes) and also end in a zero byte. A value knows its place for error messages.

typedef enum JsonType { JSON_NULL, JSON_FALSE, JSON_TRUE, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT } JsonType;

typedef struct Json {
    JsonType type;
    bool integer;              // number: written with digits and an optional minus only, and fits an int64
    uint32_t line, col;        // 1-based place of its first byte; the column counts bytes
    uint32_t count;            // array, object: how many children
    double number;             // JSON_NUMBER (finite)
    int64_t i;                 // when `integer`
    const char *str;           // JSON_STRING: decoded bytes; JSON_NUMBER: its text
    size_t len;                //
    const char *key;           // the member's name when the parent is an object, else NULL
    size_t key_len;            //
    struct Json *child, *next; // first child; next sibling, in file order
    size_t byte;               // place of its first byte in the text, from 0
} Json;

typedef struct JsonDoc {
    Json *root;
    char *file;               // for messages
    struct JsonBlock *blocks; // private: all memory of the tree
    bool by_byte;             // private: as in the options
    size_t first_byte;        // private: as in the options
} JsonDoc;

typedef struct JsonOptions {
    int max_depth;          // LIMIT_JSON_DEPTH when 0
    bool refuse_duplicates; // E-JS-08: every reader sets it, only the bare parser does not
    bool refuse_bom;        // safetensors headers; elsewhere a BOM is skipped with warning E-JS-02
    uint32_t first_line;    // line number of the text's first line (JSONL); 0 means 1
    uint32_t first_col;     // column of the text's first byte (one element of a larger file); 0 means 1
    size_t first_byte;      // added to byte positions (safetensors headers: 8)
    bool by_byte;           // messages say "byte N" instead of line:col (safetensors headers)
} JsonOptions;

// Parses text[0..len). Refuses E-JS-01 (over LIMIT_JSON_VALUES) to E-JS-08, E-ME-01. The text may be released
// afterwards. Time is linear.
bool json_parse(JsonDoc *doc, const char *text, size_t len, const char *file, JsonOptions options, Err *e);
bool json_read(JsonDoc *doc, const char *path, int64_t limit, JsonOptions options, Err *e); // file_read + json_parse
void json_free(JsonDoc *doc);

const Json *json_get(const Json *object, const char *key);           // NULL when absent or not an object; linear search
bool json_is(const Json *v, const char *text);                       // a string equal to text
Where json_at(const JsonDoc *doc, const Json *v, const char *field); // place of v for err_set

// Typed fields. `object` may be NULL (then the field is absent). null counts as absent unless `required`.
// An absent field leaves *out alone and returns true unless `required` (E-CF-02); a wrong type or range is
// E-CF-02 (E-JS-07 for a number that is no integer) naming the field, its line and the range.
bool json_int(const JsonDoc *d, const Json *object, const char *name, bool required, int64_t min, int64_t max,
              int64_t *out, Err *e);
bool json_double(const JsonDoc *d, const Json *object, const char *name, bool required, double min, double max,
                 double *out, Err *e);
bool json_bool(const JsonDoc *d, const Json *object, const char *name, bool required, bool *out, Err *e);

// Canonical JSON of a tree: no spaces, members in file order, shortest numbers, integers kept as written.
void json_print(Text *t, const Json *v);
// A value of a file as a message shows it: quoted text, a number as written, or what kind of thing it is; NULL: none.
const char *json_shown(const Json *v);

// ============================================================================================== io/safetensors.c
// Checkpoint files: one file or a sharded folder, memory-mapped, every rule of the format checked before use.

typedef enum FileType { FT_F64, FT_F32, FT_F16, FT_BF16, FT_I64, FT_I32, FT_I16, FT_I8, FT_U8, FT_BOOL } FileType;
const char *file_type_name(FileType t); // "F32", as in the header
size_t file_type_size(FileType t);

typedef struct Tensor {
    const char *name; // as in the file
    FileType type;
    int dims;
    int64_t shape[8];
    int64_t elements;
    const uint8_t *data; // inside the mapping; any alignment
    size_t bytes;
    int shard; // index into TensorFile.shards
    bool used; // for callers that must notice unexpected tensors
} Tensor;

typedef struct TensorFile {
    Tensor *tensors; // sorted by name (byte order)
    int64_t count;
    struct TensorShard *shards; // private: path, mapping, header
    int n_shards;
    char *path;    // the file or folder that was opened
    Text metadata; // canonical JSON of __metadata__ ("{}" when there is none), first shard
} TensorFile;

// Opens one .safetensors file. Refuses E-ST-01 to E-ST-09, E-JS-*, E-IO-*.
bool tensors_open(TensorFile *f, const char *path, Err *e);
// The same for a whole file in memory, which the caller keeps until tensors_close; name is for messages.
bool tensors_open_memory(TensorFile *f, const uint8_t *data, size_t size, const char *name, Err *e);
// Opens a checkpoint folder: model.safetensors, or the shards of model.safetensors.index.json (then E-IX-01 to -03
// too).
bool tensors_open_folder(TensorFile *f, const char *dir, Err *e);
// The shards of an index file of any name, in its own folder.
bool tensors_open_index(TensorFile *f, const char *index, Err *e);
void tensors_close(TensorFile *f);
// What tells two sets of weights apart: SHA-256 over names, types and shapes of all tensors, or over all their bytes too.
void tensors_fingerprint(const TensorFile *f, bool all_bytes, char hex[65]);
Tensor *tensors_find(const TensorFile *f, const char *name);    // binary search; NULL when absent
const char *tensors_path(const TensorFile *f, const Tensor *t); // path of the shard that holds t
// Elements [first, first+count) as floats (F64, F32, F16, BF16, integers, BOOL; exact where float can hold it).
void tensor_to_f32(const Tensor *t, int64_t first, int64_t count, float *out);
void tensor_to_i64(const Tensor *t, int64_t first, int64_t count, int64_t *out); // integer types and BOOL only
// Number of NaN and infinite elements (0 for integer types).
int64_t tensor_count_nonfinite(const Tensor *t);
float f16_to_f32(uint16_t h);
// "[2,3]" into buffer, which is returned.
const char *shape_text(int dims, const int64_t *shape, char *buffer, size_t size);

// Writing, as the reference library lays files out (by alignment of the type, then by name; header padded to 8 bytes;
// __metadata__ {"format":"pt"}), through file_write_atomic's protocol but streamed.
typedef struct TensorOut {
    const char *name;
    FileType type;
    int dims;
    int64_t shape[8];
    const void *data; // row-major, host
} TensorOut;
bool tensors_write(const char *path, const TensorOut *tensors, int64_t count, Err *e); // E-WR-01, E-WR-02
// The same with other __metadata__: a JSON object of strings, or NULL for none.
bool tensors_write_with(const char *path, const char *metadata, const TensorOut *tensors, int64_t count, Err *e);
// The same for tensors that need not be in memory: source writes all bytes of tensors[i] (whose data is not looked at).
typedef bool (*TensorSource)(void *ctx, int64_t i, FileWriter *w, Err *e);
bool tensors_write_from(const char *path, const char *metadata, const TensorOut *tensors, int64_t count,
                        TensorSource source, void *ctx, Err *e);

// =================================================================================================== io/pattern.c
// Regular expressions over module paths, as Python's re reads them: without back references, look-behind and flags.
typedef struct Pattern {
    struct PatternStep *steps; // private
    int32_t n, cap, n_looks;
} Pattern;
bool pattern_compile(Pattern *p, const char *text, size_t len, Where at, Err *e); // E-AD-03
bool pattern_matches(const Pattern *p, const char *text, size_t len);             // the whole text, as re.fullmatch
void pattern_free(Pattern *p);

// =================================================================================================== io/adapter.c
// A PEFT LoRA adapter folder, described and checked but not applied: adapter_config.json + adapter_model.safetensors.

// rank_pattern or alpha_pattern: the first key that names a module gives its number. PEFT reads a key as the regular
// expression "(.*\\.)?(KEY)$".
typedef struct ModuleNumbers {
    struct ModuleNumber *keys; // private
    int64_t n;
} ModuleNumbers;
bool module_numbers_open(ModuleNumbers *p, const JsonDoc *doc, const Json *object, Err *e); // E-AD-03; NULL: no key
bool module_number(const ModuleNumbers *p, const char *module, double *out);                // false: none names it
void module_numbers_close(ModuleNumbers *p);
// Whether one of the names of modules_to_save (a JSON list) is the end of a module that the parameter lies in.
bool module_saved(const Json *names, const char *parameter);

// Paths of modules and parameters: as they stood in the original checkpoints and the module tree of transformers before
// 4.52 ("visual.blocks.0.attn.qkv", "model.layers.0.mlp.up_proj"), and in the tree since then ("model.visual...",
// "model.language_model.layers..."). Into out, which is returned. original_path reads either, and shorter ones too.
const char *original_path(char *out, size_t size, const char *path);
const char *tree_path(char *out, size_t size, const char *original);

typedef struct AdapterInfo {
    int64_t r;
    double alpha, dropout;
    bool rslora;
    char base_model[300];
    Text targets;          // canonical JSON of target_modules (a list or a pattern)
    int64_t pairs;         // A/B pairs; every lora_A has its lora_B with fitting shapes, else E-AD-04
    int64_t modules_saved; // tensors of modules_to_save
    int64_t parameters;
    TensorFile tensors;
    JsonDoc config;
    ModuleNumbers ranks, alphas;
} AdapterInfo;
bool adapter_open(AdapterInfo *a, const char *dir, Err *e); // E-AD-01 to -04, E-ST-*, E-JS-*, E-NU-01
void adapter_close(AdapterInfo *a);
// What a tensor of the adapter is: half 'A' or 'B' of a pair, or 0 for a saved parameter. Into out: the path of its
// module (of a pair) or of the parameter, as the file writes it.
char adapter_part(const Tensor *t, char *out, size_t size);
// The number of a module of the file, by the path that the file writes, else by that of today's tree, else `missing`.
double adapter_number(const ModuleNumbers *p, const char *path, double missing);
// Whether target_modules names a module, in either tree. True where that cannot be told: null, or no expression for us.
bool adapter_targets(const AdapterInfo *a, const char *path);

// ==================================================================================================== io/image.c
// JPEG and PNG in, Pillow-exact resize, PNG and JPEG out, drawing. Pixels are 8-bit RGB, rows top to bottom, [height, width, 3].

typedef struct Image {
    uint8_t *rgb; // [height, width, 3]
    int width, height;
    int orientation; // EXIF orientation found in the file, 1..8 (1 when there is none); pixels are as stored
} Image;

typedef struct ImageOptions {
    bool alpha_white;       // RGBA over white (qwen-vl-utils) instead of dropping alpha (the HF processor)
    bool apply_orientation; // turn the pixels by the EXIF orientation (the HF image loader); width and height follow
} ImageOptions;

// Size, type and EXIF orientation from the headers alone, without allocating pixels. E-IM-01, -02, E-IO-*.
bool image_info(const char *path, int *width, int *height, const char **format, int *orientation, Err *e);
// What the structural check (io/image_check.c) found out. It stands in front of every decoder.
typedef struct ImageFacts {
    const char *format; // "JPEG" or "PNG"
    int width, height;
    int orientation; // EXIF, 1..8
    int components;  // 1 or 3 (JPEG); 1 grey, 2 grey and alpha, 3 colour or palette, 4 colour and alpha (PNG)
    int depth;       // bits of a sample
    bool coded_rgb;  // a JPEG whose components are R, G, B and not Y, Cb, Cr
    uint8_t *jpeg;   // of an accepted JPEG: the stream for the decoder, only what was understood; free it
    size_t jpeg_size;
} ImageFacts;
// E-IM-01 to -05 and -08; warns E-IM-06. With headers_only up to the first picture data, and f->jpeg stays NULL.
bool image_check(ImageFacts *f, const uint8_t *data, size_t size, const char *name, bool headers_only, Err *e);
// Checksums of PNG: CRC-32 (start with 0) and Adler-32 (start with 1).
uint32_t png_crc(uint32_t crc, const uint8_t *p, size_t n);
uint32_t png_adler(uint32_t adler, const uint8_t *p, size_t n);
// The whole structural check (E-IM-01 to -05), then stb_image. name is for messages.
bool image_decode(Image *im, const uint8_t *data, size_t size, const char *name, ImageOptions options, Err *e);
bool image_read(Image *im, const char *path, ImageOptions options, Err *e);
// The same beneath `root` only (open_beneath): E-DS-04 with `at`.
bool image_read_beneath(Image *im, const char *root, const char *path, Where at, ImageOptions options, Err *e);
void image_free(Image *im);
// Pillow's BICUBIC on 8-bit RGB (libImaging/Resample.c): out is [out_h, out_w, 3]. Bit-exact.
void image_resize_bicubic(uint8_t *out, int out_w, int out_h, const uint8_t *in, int in_w, int in_h);
bool image_write_png(const char *path, const uint8_t *rgb, int width, int height, Err *e);
// The same into memory (malloc); name is for messages. E-ME-01.
bool image_encode_png(uint8_t **png, size_t *size, const uint8_t *rgb, int width, int height, const char *name, Err *e);
// A baseline JPEG (io/jpeg_write.c): quality 1 to 100 on libjpeg's scale; subsample: 4:2:0, else 4:4:4. Deterministic.
bool image_write_jpeg(const char *path, const uint8_t *rgb, int width, int height, int quality, bool subsample, Err *e);
bool image_encode_jpeg(uint8_t **jpeg, size_t *size, const uint8_t *rgb, int width, int height, int quality,
                       bool subsample, const char *name, Err *e); // into memory (malloc); E-ME-01
// Outline of a box [x1, y1, x2, y2) in pixels, `thick` pixels wide, clipped to the picture; label in a small built-in
// font (ASCII) above it, on the box's colour.
void image_draw_box(Image *im, double x1, double y1, double x2, double y2, const uint8_t colour[3], int thick,
                    const char *label);

// ==================================================================================================== io/trace.c
// Every op's output as a file, for comparing two devices op by op.

// Writes every op's output (evenly spaced sample of at most 4096 elements, and rms, largest magnitude) into one
// safetensors file, so that two runs can be compared op by op.
void trace_start(const char *path, const char *label); // label: what is traced, kept in the file's metadata
void trace_where(const char *where);                   // "text.layer.3": names the ops that follow
const char *trace_place(void);                         // what trace_where said last
bool trace_finish(Err *e);                             // writes the file; true when no trace was started
// Compares two trace files and prints a report on standard output: the first op whose error passes `limit` (relative
// L2), or that they agree. *same tells which. Refuses files of other shape (E-ST-*).
bool trace_diff(const char *path_a, const char *path_b, double limit, bool *same, Err *e);

// ====================================================================================================== io/log.c
// What a run writes as it goes: JSON lines with a checksum, and TensorBoard event files. Both are append-only and can
// be cut back to a length that a checkpoint knows, so that a resumed run leaves no gap and no double line.

// One line is {"crc":"xxxxxxxx","seq":N,...}: crc is CRC-32C of the bytes after the crc member's comma up to the line's
// end (without the newline), seq counts from 0 without gaps.
typedef struct Log {
    int fd;             // -1 when closed, or given up after an error that left the file in doubt
    char path[1100];    //
    int64_t bytes, seq; // length of the file; next number
    double synced;      // clock of the last fsync: every 30 s one happens by itself
} Log;
// Opens for appending, creating the file when it is missing. keep_bytes >= 0 cuts the file to that length first
// (E-CK-02 when it is shorter, or a line before the cut is damaged, or the cut is not between lines). With -1 a torn
// last line is cut off with warning E-CK-07; a bad line with a good one behind it refuses (E-CK-02 with its line).
bool log_open(Log *l, const char *path, int64_t keep_bytes, Err *e);
// members: "\"ev\":\"step\",\"step\":3", JSON on one line, shorter than LIMIT_LOG_LINE_BYTES by 64 (else a bug). The
// line is written whole, or the file is as it was: E-WR-01, -02.
bool log_write(Log *l, const char *members, Err *e);
void log_add_text(Text *members, const char *bytes, size_t len); // a JSON string, cut at LIMIT_LOG_TEXT_BYTES
bool log_sync(Log *l, Err *e);
void log_close(Log *l);
// Every line checked: E-CK-02 with the first bad line. *lines counts the good ones; a torn last line is no fault.
bool log_check(const char *path, int64_t *lines, bool *torn, Err *e);
uint32_t crc32c(uint32_t crc, const void *data, size_t size); // start with 0

// A TensorBoard event file (rl_reference.md section 13) in `dir`; one file per run, found again by its name.
typedef struct Events {
    int fd; // -1 when closed
    char path[1100];
    int64_t bytes;
} Events;
// keep_bytes as in log_open. A file that is gone is begun anew with warning E-CK-07: only people look at it.
bool events_open(Events *t, const char *dir, int64_t keep_bytes, Err *e);
bool events_scalar(Events *t, const char *tag, int64_t step, double value, Err *e);
bool events_text(Events *t, const char *tag, int64_t step, const char *markdown, size_t len, Err *e);
bool events_image(Events *t, const char *tag, int64_t step, const Image *im, Err *e);
bool events_sync(Events *t, Err *e);
void events_close(Events *t);

// ================================================================================================== io/process.c
// This program as a child of itself.

// Runs `surgr1 argv[0] argv[1] ...` (NULL ends the list, argv[0] is the subcommand) and waits. *status: its exit code, 128 +
// the signal when one killed it. A stop that is asked of this process (stop_on_signals) is passed on, and the child then
// ends with EXIT_STOPPED in its own time. It has this process's folder, standard output and standard error, and dies with
// it. E-IO-01 when it could not be started; an exit code of the child is no error.
bool self_run(const char *const *argv, int *status, Err *e);
// The same; `out` (a file, made or emptied: E-WR-02) takes its standard output. NULL: as above.
bool self_run_to(const char *out, const char *const *argv, int *status, Err *e);

// ====================================================================================================== io/run.c
// A run folder and its checkpoints: made so that a process killed at any instant leaves a folder that resumes to the
// same bytes (robustness.md section 2 is the protocol).
//
//   RUN/LOCK  config.json  run.jsonl  rollouts.jsonl  timing.jsonl  tensorboard/  export/
//   RUN/ckpt/step-000000400/{files, state.json, MANIFEST.json, local.json}   ckpt/LATEST (a hint)
//   .tmp-* .trash-* in ckpt and export, RUN/.tmp-export*, .tmp-config.json-*: work in progress, removed at start
//
// A trainer: run_open, run_config, run_newest, run_logs_open; then log lines, and between steps checkpoint_begin, files,
// checkpoint_commit, checkpoint_rotate. What goes into run.jsonl must be a function of config and data alone: a skipped
// checkpoint, a resume, a time belong into timing.jsonl.

typedef struct Run {
    char dir[1100];
    char id[65];               // SHA-256 of config.json without its free members; "" before run_config
    int lock;                  // descriptor of LOCK, held by flock
    bool with_rollouts;        // set before run_logs_open: there is a rollouts.jsonl too, as exact as run.jsonl
    Log log, rollouts, timing; //
    Events events;
    int64_t *verified; // private: steps whose checkpoints were seen whole in this process
    int64_t n_verified;
} Run;
typedef struct Checkpoint { // one that passed verification; step < 0: there is none
    int64_t step;
    char dir[1200];
    char sha256[65];                                               // of its manifest
    char run[65];                                                  // Run.id of the run that wrote it
    int64_t log_bytes, rollouts_bytes, timing_bytes, events_bytes; // lengths of the logs when it was written
    JsonDoc state;                                                 // its state.json
} Checkpoint;
bool folder_make_all(const char *path, Err *e); // with those above it; one that is there is fine. E-WR-01, -02
bool tree_remove(const char *path, Err *e);     // with all in it, or a file; links are not followed. E-WR-02
// Removes what an earlier process left unfinished: names with that prefix in run/folder. E-WR-02.
bool folder_sweep(const char *run, const char *folder, const char *prefix, Err *e);
// DIR/LOCK, made and held: its descriptor, which close gives up; -1: E-LK-01 names the holder, E-WR-*.
int lock_take(const char *dir, Err *e);
// Makes the folder when it is missing (and those above it), takes the lock (E-LK-01 names the holder), sweeps .tmp-*
// and .trash-* away.
bool run_open(Run *r, const char *dir, Err *e);
void run_close(Run *r); // also of a zeroed Run
// config.json: written when it is missing; else compared member by member with `json` (objects within objects). Members
// that differ and are neither in `free_members` nor in `anyway` (lists ended by NULL, or NULL) refuse with E-CK-05,
// listing both values. A name "b" means every member of that name and all beneath it, "a.b" that one. The free members
// are those that never change a result: they do not enter Run.id. anyway is for this one resume.
bool run_config(Run *r, const char *json, const char *const *free_members, const char *const *anyway, Err *e);
// The newest checkpoint that verifies; each newer one that is damaged is warning E-CK-06. c->step = -1 when there is
// none at all; E-CK-01 when there are some but all are damaged; E-CK-04 when the newest is of a newer program; E-CK-05
// when it was written by a run with another Run.id; E-IO-01 and E-ME-01 when nothing can be known.
bool run_newest(Run *r, Checkpoint *c, Err *e);
bool run_owns(const Run *r, const Checkpoint *c, Err *e); // the same E-CK-05, for who looks before run_config
void checkpoint_free(Checkpoint *c);
// Opens the logs, cut to the lengths of `c` (NULL or step -1: from nothing).
bool run_logs_open(Run *r, const Checkpoint *c, Err *e);
// Writing one: begin gives a folder to write plain files into; commit adds state.json and MANIFEST.json, fsyncs
// everything and the logs, renames (the commit point), verifies by reading back, updates LATEST and logs
// {"ev":"ckpt","step":N,"sha":manifest} in timing.jsonl. When commit fails the folder is gone and older checkpoints are as
// they were: E-WR-01, -02; E-BG-02 when the same step is there with other bytes.
// *enough = false with warning E-WR-01 when the disk has less than 1.25 * bytes free: nothing was begun then.
bool checkpoint_begin(Run *r, int64_t step, int64_t bytes, char *dir, size_t dir_size, bool *enough, Err *e);
bool checkpoint_commit(Run *r, int64_t step, const char *dir, const char *state_json, Err *e);
void checkpoint_abort(Run *r, const char *dir);
// Removes all but the newest `keep` valid ones (at least two), those at multiples of keep_every (0: none), and `best`
// (-1: none).
bool checkpoint_rotate(Run *r, int64_t keep, int64_t keep_every, int64_t best, Err *e);
bool checkpoint_verify(const char *dir, Err *e); // E-CK-02, -03, -04
// Every checkpoint of a run folder, without its lock; *count says how many.
bool run_verify(const char *dir, int64_t *count, Err *e);
// Compares what two runs must have in common byte for byte: ckpt/step-* (but local.json), run.jsonl, rollouts.jsonl,
// export/. Prints the first difference (file, and tensor and element where it is one) on standard output.
bool run_compare(const char *a, const char *b, bool *same, Err *e);

// =================================================================================================== tokenizer.c
// Byte-level BPE of Qwen2, special tokens, chat template.

typedef struct Tokenizer Tokenizer;
// Reads dir/tokenizer.json, or dir/vocab.json + dir/merges.txt (added tokens then from tokenizer_config.json's
// added_tokens_decoder, else added_tokens.json, else the 22 of Qwen2.5 when the vocabulary has its 151,643 entries).
// E-TK-01 to -04, E-JS-*, E-IO-*; E-TK-07 when a tokenizer.json asks for what Qwen2.5 does not do (another pattern,
// ...). A Tokenizer is const once loaded: any number of threads may use one.
bool tokenizer_load(Tokenizer **out, const char *dir, Err *e);
bool tokenizer_load_files(Tokenizer **out, const char *vocab_json, const char *merges_txt, Err *e); // no added tokens
bool tokenizer_load_json(Tokenizer **out, const char *tokenizer_json, Err *e);
bool tokenizer_copy(const char *from, const char *to, Err *e); // all files of a tokenizer that folder `from` has
void tokenizer_free(Tokenizer *t);
int32_t tokenizer_size(const Tokenizer *t);                    // largest id + 1
int32_t tokenizer_added(const Tokenizer *t, const char *text); // id of an added token, -1 when there is none
// The token's bytes (added: its text). NULL when the id has no token. *special tells the skip_special_tokens flag.
const char *tokenizer_token(const Tokenizer *t, int32_t id, size_t *len, bool *added, bool *special);

typedef struct Ids {
    int32_t *p;
    int64_t n, cap;
} Ids;
void ids_add(Ids *a, int32_t id);
void ids_free(Ids *a);

// Appends the ids of text. With `added` false (text of users, datasets, teachers, models) the text of an added token is
// ordinary text: nobody can type a control token. Never fails: any bytes have ids.
void tokenizer_encode(const Tokenizer *t, const char *text, size_t len, bool added, Ids *out);
// Pair look-ups and heap moves of all finished encodes: what a test counts to see that time is not quadratic.
int64_t tokenizer_steps(const Tokenizer *t);
// Appends the text of ids: bytes joined, then ill-formed UTF-8 replaced by U+FFFD. Ids without a token give nothing.
void tokenizer_decode(const Tokenizer *t, const int32_t *ids, int64_t n, bool skip_special, Text *out);
// What a vocabulary is trained on: calls each with every piece of text as tokenizer_encode (added tokens off) cuts it: NFC,
// then the split pattern. A tokenizer without tokens (tokenizer_empty) can do this and nothing else.
typedef void (*PieceSink)(void *ctx, const char *piece, size_t len);
Tokenizer *tokenizer_empty(void);
void tokenizer_cut(const Tokenizer *t, const char *text, size_t len, PieceSink each, void *ctx);
extern const char tokenizer_pattern[]; // the split pattern as a regular expression
// The byte that stands behind a character of vocab.json and merges.txt, -1 when there is none. A vocabulary begins with
// these characters in order.
int token_byte(int32_t code_point);
// A stream: feed one id at a time, and print what comes back; half a character is held back until it is whole.
typedef struct DecodeStream {
    const Tokenizer *t;
    bool skip_special;
    Text held;
} DecodeStream;
void stream_push(DecodeStream *s, int32_t id, Text *out);
void stream_finish(DecodeStream *s, Text *out); // what is left, with U+FFFD for a broken tail

// A conversation. A part with `image` >= 0 is the image-th picture of the conversation (from 0), else it is text.
typedef struct Part {
    int image;
    const char *text;
    size_t len;
} Part;
typedef struct Message {
    const char *role; // "system", "user", "assistant" (any string renders)
    const Part *parts;
    int n_parts;
} Message;
// Compares the folder's own template (chat_template.jinja, else chat_template.json, else tokenizer_config.json) with the
// built-in one by its hash. It is never run: another one is warning E-CF-05. False only when a file cannot be read as JSON.
bool chat_template_check(const char *dir, Err *e);
extern const char chat_template[]; // a Jinja template that renders as chat_render does, for folders of our own
// The Qwen2.5-VL chat template as text: default system turn, <|im_start|>, pictures as
// <|vision_start|><|image_pad|><|vision_end|>. add_generation_prompt appends the assistant's opening.
void chat_render(const Message *messages, int n, bool add_generation_prompt, Text *out);
// The same as ids, with each picture's <|image_pad|> repeated image_tokens[k] times. User text goes in with added
// tokens off unless `trust_text` (as HF does), with warning E-TK-05 where one stands in it. E-TK-06 when the tokenizer
// lacks a token the template needs; E-DS-10 for more places of pictures than pictures. *out is as before when it fails.
// With `trust_text` a typed <|image_pad|> stands for the next picture, as in HF.
bool chat_encode(const Tokenizer *t, const Message *messages, int n, bool add_generation_prompt,
                 const int64_t *image_tokens, int n_images, bool trust_text, Ids *out, Err *e);
// The same, and where turns lie among the ids. A turn that is `apart` is tokenised by itself, as if the ids before it had
// been a prompt: no token spans the header's newline and its text. turns [n], or NULL.
typedef struct Turn {
    bool apart;          // in
    int64_t first, last; // out, when apart: ids [first, last) of *out are its text and the <|im_end|> that closes it
} Turn;
bool chat_encode_turns(const Tokenizer *t, const Message *messages, int n, bool add_generation_prompt,
                       const int64_t *image_tokens, int n_images, bool trust_text, Turn *turns, Ids *out, Err *e);

// ======================================================================================================= block.c
// Linear layers with optional LoRA, and the transformer block that both towers share; forward and backward.

// y += scale * B (A dropout(x)) beside a linear layer (Hu et al. 2021). Dropout is on in training only.
typedef struct Lora {
    Weight a;      // [r, in]; a.v.p == NULL: there is none
    Weight b;      // [out, r]
    float scale;   // alpha / r, or alpha / sqrt(r) (rsLoRA)
    float dropout; // p
    uint32_t site; // names the layer in the dropout mask
} Lora;

typedef struct Linear {
    Weight w; // [out, in]
    Weight b; // [1, out], or absent
    Lora lora;
} Linear;

typedef struct Block {
    Weight norm1;    // [1, C]
    Linear qkv[3];   // n_qkv of them; outputs stand side by side: q [heads*dim], k [kv_heads*dim], v [kv_heads*dim]
    int n_qkv;       // 3 in the decoder (q_proj, k_proj, v_proj), 1 in the vision tower (attn.qkv)
    Linear proj;     // [C, heads*dim]
    Weight norm2;    // [1, C]
    Linear gate, up; // [F, C]
    Linear down;     // [C, F]
} Block;

typedef struct BlockShape {
    int64_t C, heads, kv_heads, dim, F;
    float eps;
    int64_t rank; // largest LoRA rank of the tower, 0: none
    bool dropout; // a LoRA of the tower has dropout
} BlockShape;

// Below and in the towers, what a matmul sums along the rows of is padded where the device wants it (arena_padded).

// What LoRA needs beside the layers' own tensors, for up to N rows; absent where no layer has LoRA.
typedef struct LoraScratch {
    Mat h, dh;     // [N, rank]; dh in training
    Mat dropped;   // [N, widest input]; training with dropout
    Mat keys;      // I32 [N, 2] names the rows in the dropout mask; absent: dropout is off
    uint64_t seed; // of dropout
} LoraScratch;
void lora_scratch_place(LoraScratch *s, Arena *a, const Ops *d, int64_t rank, int64_t widest, bool dropout,
                        bool training, int64_t N);

// What a block leaves behind, for up to N rows (activation type of the device unless it says F32).
typedef struct BlockScratch {
    Mat normed1, normed2;  // [N, C]  one memory in inference
    Mat qkv;               // [N, (heads + 2*kv_heads) * dim]
    Mat att;               // [N, heads*dim]
    Mat mid;               // [N, C]  x after attention; absent in inference, where it is x itself
    Mat gate, up;          // [N, F]  side by side
    Mat mlp;               // [N, F]
    Mat lse, rstd1, rstd2; // F32 [N, heads], [N, 1], [N, 1]; training
    Mat branch;            // [N, C]  output of attention or MLP before the residual add
    LoraScratch lora;
} BlockScratch;
// training: all that block_backward reads. shared: take branch and lora from there, which no backward reads.
void block_scratch_place(BlockScratch *s, Arena *a, const Ops *d, BlockShape shape, int64_t N, bool training,
                         const BlockScratch *shared);

// Where a block's keys and values come from in generation (absent in training and in the vision tower).
typedef struct BlockCache {
    Mat k, v;    // [cache rows, kv_heads*dim] of this layer
    Mat slots;   // I32 [N, 1]: cache row of each new token
    bool decode; // spans speak of cache rows (one query row per span) instead of the N rows themselves
} BlockCache;

typedef void (*Tap)(void *ctx, const char *name, const Ops *d, Mat value); // sees hidden states by name

// mid = x + attention(norm1(x)); y = mid + mlp(norm2(mid)).  x, y [N, C]; y may be x where s.mid is absent.
// angles F32 [N, dim] (cos | sin). tap_attention / tap_mlp name the two branches for the tap and may be NULL.
void block_forward(const Ops *d, const Block *b, BlockShape shape, BlockScratch s, Mat y, Mat x, Mat angles,
                   Spans spans, const BlockCache *cache, Tap tap, void *tap_ctx, const char *tap_attention,
                   const char *tap_mlp);
// y = x w^T + b (+ LoRA). s: only where LoRA may be.
void linear_forward(const Ops *d, const Linear *l, Mat y, Mat x, const LoraScratch *s);

// Scratch of block_backward for up to N rows.
typedef struct BlockGrad {
    Mat dnormed;    // [N, C]
    Mat dqkv;       // as qkv
    Mat datt;       // as att
    Mat dgate, dup; // as gate and up
    Mat dmlp;       // [N, F]
    Mat delta;      // F32 [N, heads]
} BlockGrad;
void block_grad_place(BlockGrad *g, Arena *a, const Ops *d, BlockShape shape, int64_t N);
// dx [N, C] comes in as the gradient of y and leaves as that of x; s is what block_forward left for the same x.
// Gradients of parameters are added where they are not frozen.
void block_backward(const Ops *d, const Block *b, BlockShape shape, BlockScratch s, BlockGrad g, Mat dx, Mat x,
                    Mat angles, Spans spans);
// dx = beta dx + dy w (+ LoRA's share); dw += dy^T x; db += sum dy; LoRA's gradients. dx may be absent.
void linear_backward(const Ops *d, const Linear *l, Mat dx, Mat dy, Mat x, float beta, const LoraScratch *s);
bool linear_trained(const Linear *l); // some gradient is wanted here
bool block_trained(const Block *b);

// ====================================================================================================== vision.c
// Pictures to rows of the decoder: smart resize, patches, window order, rotary table, the tower and the merger.

typedef struct VisionConfig {
    int64_t depth, C, F, heads, dim; // dim = C / heads
    int64_t patch, merge, temporal, window, out;
    int64_t channels;               // 3
    bool full[512];                 // full[j]: block j attends over the whole picture
    int64_t min_pixels, max_pixels; // from preprocessor_config.json
    double rescale;                 // 1/255
    float mean[3], std[3];
    float eps; // 1e-6
} VisionConfig;

typedef struct Grid { // a picture in patches: t frames groups, h rows, w columns
    int64_t t, h, w;
} Grid;
static inline int64_t grid_patches(Grid g) { return g.t * g.h * g.w; }

// Height and width after the resize, both multiples of patch*merge (transformers smart_resize; round half to even).
// False with E-IM-02 when the ratio is over 200.
bool smart_resize(int64_t height, int64_t width, int64_t factor, int64_t min_pixels, int64_t max_pixels, int64_t *out_h,
                  int64_t *out_w, const char *name, Err *e);
// Resizes and cuts into patches: pixels [grid_patches, channels*temporal*patch*patch] F32 on the host, rows in
// merge-group order. image_to_patches allocates *pixels (free with free).
bool image_to_patches(const VisionConfig *c, const Image *im, const char *name, float **pixels, Grid *grid, Err *e);
// The other way, exact in the 8-bit levels: the picture as the model is shown it (after the resize). Free with image_free.
void patches_to_image(const VisionConfig *c, const float *pixels, Grid g, Image *im);

// Window order of a list of pictures. index [sum of merged units]: new unit g is old unit index[g]. starts
// [n_windows+1]: cumulative, in patches. full_starts [n_frames+1]. All malloc'ed.
typedef struct WindowOrder {
    int32_t *index;
    int64_t units;
    int32_t *starts;
    int64_t n_windows;
    int32_t *full_starts;
    int64_t n_frames;
} WindowOrder;
void window_order(WindowOrder *o, const VisionConfig *c, const Grid *grids, int n);
void window_order_free(WindowOrder *o);

typedef struct Vision {
    VisionConfig c;
    Linear patch_embed; // [C, channels*temporal*patch*patch], no bias
    Block *blocks;      // [depth]
    Weight ln_q;        // [1, C]
    Linear merger0;     // [C*merge^2, C*merge^2]
    Linear merger2;     // [out, C*merge^2]
    int64_t rank;       // largest LoRA rank in here, 0: none
    bool dropout;       // one of those has dropout
} Vision;

// All pictures at once: y [sum of merged units, out] in raster order on the device. pixels: host, F32 [patches, .].
// Scratch comes from `arena`, which grows when it must (E-ME-01) and is the caller's.
bool vision_forward(const Ops *d, const Vision *v, Mat y, const float *pixels, const Grid *grids, int n, Arena *arena,
                    Tap tap, void *tap_ctx, Err *e);

// The same with what the backward pass needs, and that pass. Between the two the arena is the tape's.
typedef struct VisionTape {
    Arena arena;
    int64_t keep;                  // in: the last `keep` blocks keep all they computed; the others run again
    const int32_t *keys;           // in: host I32 [patches, 2] for dropout, in the order of pixels; NULL: off
    uint64_t seed;                 // in: of dropout
    struct VisionScratch *scratch; // private
} VisionTape;
bool vision_forward_train(const Ops *d, const Vision *v, Mat y, const float *pixels, const Grid *grids, int n,
                          VisionTape *tape, Err *e);
void vision_backward(const Ops *d, const Vision *v, Mat dy, VisionTape *tape); // dy as y; frees the tape's scratch
// Of the arena of either pass (keep: in training only).
size_t vision_bytes(const Ops *d, const Vision *v, const Grid *grids, int n, bool training, int64_t keep);
void vision_tape_close(const Ops *d, VisionTape *tape);

// ======================================================================================================= model.c
// Configuration, the parameter table, loading, positions, the layer loop, the head.

typedef struct Config {
    char dir[1100];
    int64_t V, C, F, L, heads, kv_heads, dim; // dim = C / heads
    int64_t context;                          // max_position_embeddings
    float eps;
    double theta;
    int64_t mrope[3]; // half-dim sections of t, h, w
    bool tied;
    int32_t image_id, video_id, vision_start_id, vision_end_id; // -1 when absent
    int64_t tokens_per_second;
    VisionConfig vision;
} Config;
// config.json (flat, nested, rope_parameters) and preprocessor_config.json of a checkpoint folder. E-CF-01 to -04.
bool config_load(Config *c, const char *dir, Err *e);
// The same from a config file of any name, with the preprocessor's class defaults.
bool config_read(Config *c, const char *path, Err *e);
void config_print(const Config *c, Text *out); // canonical JSON of what was understood

enum ParamKind { PARAM_BASE, PARAM_LORA_A, PARAM_LORA_B };
enum Tower { TOWER_VISION, TOWER_MERGER, TOWER_DECODER }; // the embedding and the head belong to the decoder

typedef struct Param { // one row of the parameter table: everything that lists parameters walks it
    char name[160];    // canonical name: original layout, "model.layers.0.self_attn.q_proj.weight", "....lora_A.weight"
    Weight *w;
    int64_t rows, cols; // cols == 0 never; a vector has rows == 1
    int dims;
    int64_t shape[8]; // as in the file
    bool tied;        // not stored: shares another parameter's memory
    enum ParamKind kind;
    enum Tower tower;
    Linear *linear; // whose weight (or LoRA half) this is; NULL for embeddings, norms, biases, patch_embed and head
    bool trained;   // has a gradient
    bool owned;     // its value is F32 in an arena of ours (a trained one's must be)
} Param;

typedef struct LoraConfig { // what adapter_config.json says beyond the tensors; filled by lora_init and lora_load
    int64_t r;
    double alpha, dropout;
    bool rslora;
    Text targets, saved, rank_pattern, alpha_pattern; // canonical JSON
    char base_model[300];
} LoraConfig;

typedef struct Model {
    Config c;
    const Ops *d;
    Vision vision;
    Weight embed;             // [V, C]
    Block *layers;            // [L]
    Weight norm;              // [1, C]
    Linear head;              // [V, C] (tied: the embedding itself)
    Param *params;            // [n_params], room for a LoRA pair beside every linear layer
    int64_t n_params, n_base; // the base's come first
    int64_t rank;             // largest LoRA rank in the decoder, 0: none
    bool dropout;             // one of those has dropout
    LoraConfig *lora;         // NULL: no adapter
    bool pictures;            // a backward pass since model_zero_gradients went through the vision tower
    Arena weights, merged, adapter, trained, gradients, activations, tables;
    VisionTape tape;
    TensorFile files; // kept open while weights are mapped
    bool mapped;      // matrices on the CPU point into the mapping
} Model;

typedef struct LoadOptions {
    bool allow_nonfinite; // else E-NU-01
    bool force_f32;       // --dtype f32: matrices are converted to F32 on load
} LoadOptions;
// Reads config and weights onto device d. Refuses E-CF-*, E-ST-*, E-IX-*, E-ME-01, E-NU-01.
bool model_load(Model *m, const char *dir, const Ops *d, LoadOptions options, Err *e);
// The same without any weights, in addresses only (ops_paper): what would be held on a GPU with activations of that type.
bool model_lay_out(Model *m, const char *dir, Type act_type, Err *e); // E-CF-*
void model_free(Model *m);
// The parameter table without weights (for `info` and tests): names, shapes; free with model_free.
bool model_describe(Model *m, const char *dir, Err *e);
// Original tensor name of a tensor in either layout ("model.visual.X" -> "visual.X", ...) into out.
void canonical_name(char *out, size_t size, const char *name);

// M-RoPE positions (transformers get_rope_index): pos [3, n] for ids with pictures of the given grids, in order. Ids
// from n_prompt on were drawn by the model and are text, whatever they are: a model may draw <|image_pad|>.
// *next is the position behind the last id. E-DS-10 when image tokens and grids do not fit each other.
bool mrope_positions(const Config *c, const int32_t *ids, int64_t n, int64_t n_prompt, const Grid *grids, int n_grids,
                     int32_t *pos, int64_t *next, Err *e);
// The places of image tokens in a prompt, plus `first`, into at (room for n); returns how many.
int64_t image_places(const Config *c, const int32_t *ids, int64_t n, int64_t first, int32_t *at);
// cos | sin table, F32 [n, dim] on the host, for positions pos [3, n].
void mrope_table(const Config *c, const int32_t *pos, int64_t n, float *table);

// One packed forward pass over the decoder. Everything is on the device unless said otherwise.
typedef struct TextInput {
    const int32_t *ids;       // host [N]
    int64_t N;                //
    const int32_t *pos;       // host [3, N]
    const Span *spans;        // host [n_spans]; of the N rows
    int64_t n_spans;          //
    Mat image_rows;           // [n_images, C] rows of the pictures, or absent
    const int32_t *image_at;  // host [n_images]: which of the N rows each of them takes (image_places)
    const int32_t *head_rows; // host [n_head]: rows whose logits are wanted; NULL = all N
    int64_t n_head;           //
    struct Cache *cache;      // NULL: no cache. Else keys and values are stored there
    const int32_t *slots;     // host [N]: cache row of each token (with cache)
} TextInput;
// logits F32 [n_head or N, V] on the device, or absent. E-ME-01 when memory does not suffice.
bool text_forward(Model *m, const TextInput *in, Mat logits, Tap tap, void *tap_ctx, Err *e);
// What it takes of the activations' arena; of `in` only the counts are looked at, and which lists are there.
size_t text_forward_bytes(const Model *m, const TextInput *in, int64_t n_images);

// One step of decoding: row n is one new token of one sequence. Everything that differs between steps lies in device
// memory already, and nothing but ops runs on it and on what text_step_place laid out: a step may be captured.
typedef struct TextStep {
    Mat ids;             // I32 [N, 1]; -1: an idle row, which gives some finite logits
    Mat positions;       // I32 [N, 1] row of `turns`, -1 when idle
    Mat slots;           // I32 [N, 1] cache row of the token, -1 when idle
    Spans spans;         // N of them, of cache rows, the new token's included
    Mat turns;           // F32 [., dim]: rotary table by position, for text, whose three positions are one
    struct Cache *cache; //
    Mat x, angles;       // scratch: [N, C], F32 [N, dim]
    Mat head_x;          // [N, C] after the final norm
    BlockScratch block;
} TextStep;
void text_step_place(TextStep *s, Arena *a, const Model *m, int64_t N); // the scratch
void text_step(const Model *m, const TextStep *s, Mat logits);          // logits F32 [N, V]

// Training. Whoever wants a parameter trained sets Param.trained; then open gives every trained one an F32 value of its own
// (unless it is owned already) and a zeroed F32 gradient. E-ME-01.
bool model_train_open(Model *m, Err *e);
void model_zero_gradients(Model *m);
void model_train_bytes(const Model *m, size_t *values, size_t *gradients); // what open will reserve, or has

// One packed pass over several sequences, pictures included. Host memory.
typedef struct TrainBatch {
    int64_t N;                 // tokens
    const int32_t *ids;        // [N]
    const int32_t *pos;        // [3, N]
    const Span *spans;         // [n_spans]
    int64_t n_spans;           //
    const float *pixels;       // [patches, .]
    const Grid *grids;         // [n_grids]
    int n_grids;               //
    const int32_t *image_at;   // [picture rows] which of the N rows each picture row takes
    const int32_t *targets;    // [N] the id row i is to predict, -1: none
    const int32_t *keys;       // [N, 2] of dropout; NULL: off
    const int32_t *patch_keys; // [patches, 2]
    uint64_t seed;             // of dropout
    int64_t keep;              // the last `keep` blocks of each tower keep what they computed; the others run again
    float inv_temperature;     // 1/T: lp and entropy are of softmax(logits / T); 0 stands for 1
} TrainBatch;
// Log-probability lp [N] of every target (0 where there is none) and entropy [N] of the full distribution (may be
// NULL), on the host. With dlp [N], the gradient of a loss with respect to lp, gradients of all
// trained parameters are added, and dropout is on where keys are given; with dlp NULL it only scores. Logits exist only for
// a chunk of rows at a time. E-ME-01.
bool model_pass(Model *m, const TrainBatch *b, const float *dlp, float *lp, float *entropy, Err *e);
// What the arenas of a pass will hold, without running it (only N, spans, grids, targets and keep are looked at, and what
// is marked as trained). A tower that learns nothing runs in the arena of `text`, before the decoder does.
typedef struct PassBytes {
    size_t text, vision, pictures;
} PassBytes;
PassBytes model_pass_bytes(const Model *m, const TrainBatch *b, bool backward);

// ====================================================================================================== lora.c
// LoRA on a loaded model, PEFT adapters in and out, merging, and checkpoints out.

typedef struct LoraOptions {
    const char *targets; // comma-separated: decoder, vision, merger, or module names (PEFT's suffix rule); or one
                         // "/regular expression/" that must match a whole module path, as PEFT's string form does
    int64_t r;
    double alpha;
    bool rslora;
    double dropout;
    uint64_t seed; // A ~ U(-1/sqrt(in), 1/sqrt(in)) as PEFT draws it (Kaiming with a = sqrt 5), B = 0
} LoraOptions;
// Both mark the adapter's parameters as trained and all others as frozen. Names that hit nothing refuse: E-AD-03.
bool lora_init(Model *m, const LoraOptions *o, Err *e);
// A PEFT folder: both key layouts, patterns, rsLoRA, modules_to_save. Every tensor must land: E-AD-*.
bool lora_load(Model *m, const char *dir, Err *e);
// Writes adapter_config.json and adapter_model.safetensors (F32), in the key layout of transformers >= 4.52 or before.
bool lora_save(const Model *m, const char *dir, bool old_keys, Err *e);
// W += scale B A for every pair, in F32 with double sums; the adapter is gone afterwards (then another may come), and no
// parameter is trained. E-ME-01.
bool lora_merge(Model *m, Err *e);
// A plain checkpoint folder that transformers opens: config and tokenizer files are copied from the folder the model
// came from, weights in the types they had there (or all in one), sharded above shard_bytes. An adapter that is not
// merged yet is added on the way, piece by piece. dir must be new or empty; it appears whole or not at all. E-WR-01,
// E-WR-02, E-NU-01 (too large for the type).
typedef struct SaveOptions {
    const char *type;    // "keep", "f32" or "bf16"
    int64_t shard_bytes; // 0: 5 GB, as transformers
} SaveOptions;
bool model_save(const Model *m, const char *dir, SaveOptions o, Err *e);

// ==================================================================================================== generate.c
// KV cache, batched prefill and decode with shared prompts, sampling settings, stop rules.

typedef struct Cache {
    int64_t rows; // token slots
    Mat *k, *v;   // [L] each [rows, kv_heads*dim]
    Arena arena;
} Cache;
bool cache_open(Cache *c, const Model *m, int64_t rows, Err *e); // E-ME-01
void cache_close(Cache *c, const Model *m);

typedef struct GenerationConfig {
    SampleParams sample;
    int64_t max_new_tokens;
    int32_t stop[16]; // end tokens
    int n_stop;
    int32_t pad;
} GenerationConfig;
// generation_config.json with HF's defaults for what is missing (top_k 50, top_p 1, temperature 1, ...); end tokens
// from config.json when the file is missing. E-CF-02. *from_file tells whether the file was there.
bool generation_config_load(GenerationConfig *g, const char *dir, bool *from_file, Err *e);

typedef struct Request { // one prompt
    const int32_t *ids;
    int64_t n;
    const float *pixels; // host [patches, .] of all its pictures, or NULL
    const Grid *grids;
    int n_grids;
    uint32_t stream; // random stream: the same stream gives the same text, whatever is beside it in the batch
    int completions; // how many answers to this prompt (they share its cache rows), at least 1; the k-th draws from
                     // stream + k
} Request;
typedef struct Completion {
    Ids ids;        // with the end token when it came
    double logprob; // sum over its tokens, of the full distribution at temperature 1
    float *lp;      // [ids.n] of each token, of softmax(logits / T) with the sampling temperature T (1 when greedy). On
                    // ref and cpu the bits of a training pass over pack_add_group of the answers, shared = all of the
                    // prompt, with inv_temperature (float)(1 / T); packed otherwise, or on cuda, to rounding
    float *entropy; // [ids.n] of that distribution, likewise
    bool stopped;   // ended by an end token (else by the length limit)
} Completion;
// Called for every new token, in order of completions within a step. Return false to stop everything.
typedef bool (*TokenCallback)(void *ctx, int completion, int32_t id);
// Fills out[sum of completions]. Refuses E-ME-02 (prompt + new tokens over the context), E-DS-10.
bool generate(Model *m, const Request *requests, int n, const GenerationConfig *g, TokenCallback on_token, void *ctx,
              Completion *out, Err *e);
void completion_free(Completion *c);
// What the arenas of a call hold at most, whose prompts have at most so many tokens and patches; activations: of m->activations.
typedef struct GenerateBytes {
    size_t cache, logits, pictures, activations;
} GenerateBytes;
GenerateBytes generate_bytes(const Model *m, int64_t prompts, int64_t tokens, int64_t patches, int64_t completions,
                             int64_t new_tokens);

// ============================================================================================== data/vocabulary.c
// Names by number, as the owners of the data sets publish them.
extern const char *const cholect50_instruments[6], *const cholect50_verbs[10], *const cholect50_targets[15];
extern const uint8_t cholect50_triplets[100][3]; // instrument, verb, target of each
extern const char *const rarp50_actions[8];

// =================================================================================================== data/tasks.c
// The tasks of both papers, the record that carries one question about one frame, and how questions and answers are worded.

enum Task {
    TASK_TOOL,
    TASK_TISSUE,
    TASK_TOOL_BOX,
    TASK_TOOL_BOXES,
    TASK_TISSUE_BOX,
    TASK_GRID,
    TASK_CVS1,
    TASK_CVS2,
    TASK_CVS3,
    TASK_ACTION,
    TASK_MOTION,
    TASK_TRIPLET,
    TASK_COUNT,
    TASK_STEP,
    TASK_PHASE,
    TASK_CVS,
    TASK_PROTOCOL,
    TASK_VQA,
    TASK_VQLA,
    TASKS
};
enum AnswerKind {
    ANSWER_WORD,
    ANSWER_LIST,
    ANSWER_BOX,
    ANSWER_BOXES,
    ANSWER_YESNO,
    ANSWER_NUMBER,
    ANSWER_TRIPLETS,
    ANSWER_VQLA
};
typedef struct TaskInfo {
    const char *name; // "triplet"
    int level;        // 1 perceptual grounding, 2 relational understanding, 3 contextual reasoning; 0: Surgical-VQLA
    enum AnswerKind kind;
    const char *what; // for tables and help
} TaskInfo;
const TaskInfo *task_info(enum Task t);
int task_of(const char *name); // -1 when there is none of that name

typedef struct Box { // in a frame that stands beside it
    double x1, y1, x2, y2;
    char label[64]; // "" when there is none
} Box;

typedef struct TaskItem { // one question about one frame; texts belong to whoever made it
    enum Task task;
    const char *id, *dataset, *procedure, *patient, *video, *split, *image; // image: path in the record
    const char *slot;           // what is asked for: the tool of tool_box and grid, the tissue of tissue_box; or NULL
    const char *question;       // for vqa and vqla: the question itself; else NULL (task_question words it)
    const char *answer;         // the label as text; NULL: unknown
    const char *const *choices; // multiple choice, or NULL
    int n_choices;
    Box *boxes; // in pixels of the file
    int n_boxes;
    int64_t frame, width, height;
    const char *truth; // JSON of everything known about the frame, or NULL
} TaskItem;

typedef struct TaskWording {
    uint64_t seed;  // with the item's id it picks one of several ways to ask
    bool compat;    // the one shape per task that the public Surg-R1 model knows; boxes of the answer as <bbox>
    bool brief;     // a few words behind the picture, for small models; boxes of the answer as <bbox>
    bool choices;   // the item's choices follow the question as "A. name", and the answer is "A. name"
    bool reasoning; // with the system prompt that wants <think> and <answer>
} TaskWording;
enum { TASK_MAX_CHOICES = 26 };
const char *task_system_prompt(bool brief);
// The question of `brief` without the picture's mark: "Two structures?".
const char *task_brief_question(enum Task t);
// The question, with <image> once inside its sentence (unless the item's own question brings it).
void task_question(const TaskItem *t, TaskWording w, Text *out);
// The plain answer. Boxes are in pixels of the file: {"bbox_2d": [x1, y1, x2, y2], "label": "grasper"}, a list of these, or
// {"answer": "left-top", "bbox_2d": [...]}. False, with nothing added, when the item lacks it or it is none of the choices.
bool task_answer_text(const TaskItem *t, TaskWording w, Text *out);
// One line: the record that records_read, synth, eval and reward-check take. completion: the assistant's whole text
// (boxes as task_answer_text writes them), NULL for none. more: further members without braces ("\"teacher\":\"x\""), or NULL.
// truth and more are JSON already.
void task_record_print(const TaskItem *t, TaskWording w, const char *completion, const char *more, Text *out);
void task_list_text(const char *const *names, int n, Text *out); // "a, b and c"
// Which ninth of a picture of width x height: "upper left" ... "center" ... "lower right".
const char *task_grid_cell(double x, double y, double width, double height);
// One of [0, n), a pure function of its arguments. what: tells several picks for one id apart.
int task_pick(uint64_t seed, const char *id, uint32_t what, int n);

typedef struct TaskRecord { // one line, read; `item` points into the rest of it
    TaskItem item;          // without boxes: n_boxes 0, or -1 where a list of them is asked for
    const char *prompt;     // the last user turn, NULL: none
    const char *response;   // the completion of a model: "response", "prediction", "output" or "completion"; NULL: none
    size_t response_len;    //
    int64_t resized_width, resized_height; // "resized": of the picture as the model was shown it; 0: not said
    int64_t tokens;                        // "tokens" of the completion; -1: not said
    char *id, **choices;                   // private, as all that follows
    bool choices_owned;
    Text truth;
    JsonDoc doc;
} TaskRecord;
// One record of any program that writes this form. A missing task is vqa, a missing id the number; the label may be called
// answer, labels, label, ground_truth or target; missing choices are read from the prompt ("A. ..." lines). Refuses
// E-JS-*, E-DS-01 to -03, -05, -06. May be moved, not copied; nothing to free after a refusal.
bool task_record_read(TaskRecord *r, const char *line, size_t len, const char *file, int64_t number, Err *e);
void task_record_free(TaskRecord *r);

// ================================================================================================= data/protocol.c
// A walk over what is seen, from fact to fact, to the action that comes next: for tasks that need intermediate steps.
enum { PROTOCOL_ACTIONS = 8, PROTOCOL_MOST_MOVES = 9 }; // six kinds of instrument and three criteria
extern const char *const protocol_actions[PROTOCOL_ACTIONS];
typedef struct ProtocolMove {
    const char *fact, *value, *action; // "structures", "yes", "cut"; of an instrument value is ""
} ProtocolMove;
// tools: names of CholecT50, a repeated one counts once; criteria 1 to 3 of the critical view. Returns how many moves were
// filled in, at least 3; the action of the last is the answer.
int protocol_walk(const char *const *tools, int n_tools, const bool criteria[3],
                  ProtocolMove moves[PROTOCOL_MOST_MOVES]);

// =================================================================================================== data/scenes.c
// Drawn operating fields with their full truth. A scene is a pure function of its options.

enum SceneStyle { SCENE_CLEAR, SCENE_NATURAL }; // hues that mark the tools, little texture; or steel, texture, glare
enum SceneKind { SCENE_CHOLEC, SCENE_RARP, SCENE_MIXED }; // mixed: patient by patient
enum { SCENE_GROUP = 12 };                                // frames of one patient (shared anatomy and colours)
typedef struct SceneOptions {
    uint64_t seed;
    int64_t index, group; // frame from 0; frames of one patient, 0: SCENE_GROUP
    int width, height;    // 64..1024
    enum SceneStyle style;
    enum SceneKind kind;
} SceneOptions;
typedef struct SceneTool {
    const char *name;          // of CholecT50, or of robotic surgery
    int tool;                  // its number among the instruments of its kind of operation
    const char *verb, *target; // of CholecT50; NULL in suturing
    int triplet;               // its number there; -1 in suturing
    Box box, head;             // tight boxes of its visible pixels: all of it (shaft included); jaws or tip alone
    double tip_x, tip_y;       // pixels
    const char *cell;          // task_grid_cell of the tip
    double visible;            // visible pixels / pixels it would have in the picture with nothing in front
    int64_t pixels;
} SceneTool;
typedef struct SceneTissue {
    const char *name; // of CholecT50 where it has one
    bool tissue;      // else an object: fluid, specimen bag, clip, port, needle, thread, catheter
    Box box;          // tight box of its visible pixels
    int64_t pixels;
    double share; // of the square of the shorter side
} SceneTissue;
typedef struct SceneTruth {
    bool robotic;
    int64_t patient, frame; // frame: within the patient
    int n_tools, n_tissues; // tools are what counts as visible: head 60 % seen, whole 40 %
    SceneTool tools[4];     // in painter's order, the front one first
    SceneTissue tissues[32];
    const char *action;       // of SAR-RARP50; suturing only
    const char *phase, *step; // cholecystectomy only; phase as Cholec80 writes it
    const char *also;         // another phase that the picture would allow, or NULL
    bool cvs_asked;           // the triangle is part of the scene; else the criteria mean nothing
    bool criteria[3], cvs;    // two structures, triangle, plate; all three
    bool attached;            // a duct, an artery or a bundle still reaches the gallbladder
    double smoke, blur;       // 0: none
    bool round_scope;         // black outside of a circle
    int drafts;               // how many were drawn until everything meant could be seen
} SceneTruth;
typedef struct Scene {
    int width, height;
    uint8_t *rgb;   // [height, width, 3]
    uint8_t *owner; // [height, width] whose pixel it is; from SCENE_TOOL_OWNER on two numbers a tool: shaft, head
    SceneTruth truth;
} Scene;
enum { SCENE_TOOL_OWNER = 25 };
void scene_render(Scene *s, const SceneOptions *o); // free it
void scene_free(Scene *s);
const char *scene_owner_name(const Scene *s, int owner); // NULL: nobody's (outside of a round picture)
void scene_truth_json(const Scene *s, Text *out);        // one object
typedef struct SceneRecords {                            // how a frame becomes records
    uint64_t seed;                                       // of the scene's options
    int64_t index;                                       //
    const char *split;                                   // "train"
    const char *image;                                   // path of the picture in the record
    TaskWording wording;                                 // choices: where the answer is one of a vocabulary
    bool answers;                                        // with the assistant's message
    bool truth;                                          // with the truth in every record
    int cell;                                            // > 0: "cells" in the first record, of so many pixels a side
    uint32_t tasks;                                      // bit by enum Task
    int per_frame; // 0: every question that the frame allows; else so many, tasks in turn
} SceneRecords;
// Adds the records of a frame, one JSON line each; returns how many. "The grasper" is asked for only when there is one.
int scene_records(const Scene *s, const SceneRecords *how, Text *out);

// ==================================================================================================== data/forms.c
// One record: a conversation in any of the forms that data/README.md shows, told apart by their fields.

typedef struct Piece { // the text of one record in a file
    const char *text;
    size_t len;
    int64_t number;    // of the line, or of the element in the array, from 1
    int64_t line, col; // where it begins, from 1
    int64_t offset;    // bytes in front of it
} Piece;
enum BoxFrame {
    BOX_RESIZED,
    BOX_ORIGINAL,
    BOX_NORM1,
    BOX_NORM1000
}; // pixels shown to the model, of the file; 0..1; 0..1000

typedef struct BoxMark { // a <bbox> place of a text, filled once the picture's size is known
    int message, part;   // which part of which message it is
    int image;           // whose picture's frame
    enum BoxFrame frame;
    double box[4]; // x1, y1, x2, y2
    const Json *at;
} BoxMark;

typedef struct Record {
    char id[260];      // "id" when present, else the number of the line or element
    bool named;        // the id was there
    Message *messages; // [n]
    int n;
    bool *trained; // [n] whether the loss counts this turn: assistant turns, but for "loss": false and prompts
    char **images; // paths as written, in the order the pictures appear
    int n_images;
    BoxMark *boxes; // [n_boxes]
    int n_boxes;
    enum BoxFrame frame;         // of every "bbox_2d" in the texts: "box_frame"
    int text_image;              // whose frame that is: "image_id"; -1: not said
    double weight;               // of its loss, 1 unless "weight" says otherwise
    int64_t line, offset, bytes; // where its JSON text stands
    struct RecordText *placed;   // private: texts with boxes written in
    JsonDoc doc;                 // owns all other text
} Record;

typedef struct RecordOptions { // what the caller is ready for; what he is not is refused
    bool boxes;                // he will call record_place_boxes (else "objects" and a "box_frame" refuse: E-DS-02)
    bool absolute_images;      // absolute paths among the images (else E-DS-04)
    bool data_images;          // data: URIs among them (else E-DS-04)
} RecordOptions;
// One record. Refuses E-DS-01 to -06, -08, E-JS-* with file and place.
bool record_parse(Record *r, const char *line, size_t len, const char *file, int64_t line_number, Err *e);
bool record_parse_piece(Record *r, const Piece *p, const char *file, RecordOptions o, Err *e);
void record_free(Record *r);

typedef struct FrameSize { // of a picture
    int64_t width, height; // of the file, as turned by ImageOptions
    int64_t resized_width, resized_height;
} FrameSize;
// Writes every box as whole pixels of the resized picture: <bbox> places become "[x1, y1, x2, y2]", numbers of "bbox_2d"
// in the texts are replaced where they stand. sizes [n_images]. E-DS-06.
bool record_place_boxes(Record *r, const FrameSize *sizes, Err *e);
// The other way, for what a model wrote: adds the text with the numbers of every "bbox_2d" (pixels of the picture as it
// was shown) in pixels of the file, so that record_place_boxes with the same size gives the same whole pixels again.
void boxes_to_file(const char *text, size_t len, const FrameSize *s, Text *out);

// Cuts text at its <image> marks; pictures are numbered from *image on. Returns the number of parts (their text lies in
// text); parts may be NULL to count.
int split_image_marks(const char *text, size_t len, int *image, Part *parts);

// ================================================================================================== data/records.c
// Files of records: JSON lines, or one JSON array whose elements stream by.

// Each record's text of a file. Lines come without their ends; blank ones are skipped with warning E-DS-11. Adds the
// file's bytes to hash (may be NULL). Memory is that of the longest piece. E-IO-01 to -03, -05, E-JS-01; E-JS-04 for
// an array that is none.
typedef bool (*PieceCallback)(void *ctx, const Piece *p, Err *e);
bool pieces_read(const char *path, Sha256 *hash, PieceCallback each, void *ctx, Err *e);
// The same for a file that is JSON lines whatever its first byte.
typedef bool (*LineCallback)(void *ctx, const char *line, size_t len, int64_t line_number, Err *e);
bool lines_read(const char *path, LineCallback each, void *ctx, Err *e);

// Calls each for every record of a file; stops and returns false when it does or when a record is refused. Ids are
// unique in a file (E-DS-03). The record is freed after the call; who keeps it moves it out and zeroes *r.
typedef bool (*RecordCallback)(void *ctx, Record *r, Err *e);
bool records_read(const char *path, RecordCallback each, void *ctx, Err *e);
// The same, but a refused record (or one that `each` refused) goes to `bad` and reading goes on. bad may be NULL: then it
// stops, as records_read does. hash as in pieces_read.
typedef void (*BadRecord)(void *ctx, const Err *e);
bool records_read_all(const char *path, RecordOptions o, Sha256 *hash, RecordCallback each, BadRecord bad, void *ctx,
                      Err *e);
// ================================================================================================== data/samples.c
// Training samples: records of any accepted form, measured from image headers before the first step, tokenised with a
// loss mask, read again when their turn comes.

typedef struct DataOptions {
    const char *const *files; // JSONL or a JSON array of records
    int n_files;
    const char *image_root;   // where relative paths start; NULL: the folder of each file
    int64_t max_tokens;       // longest sample; 0: the model's context
    bool drop_long, drop_bad; // leave such samples out and count them; else refuse (E-DS-07, and whatever is bad)
    bool absolute_images;     // accept absolute paths
    bool trust_text;          // typed special tokens are special
    bool group;               // samples that follow each other in a file and show the same pictures are one unit, up to
                              // UNIT_SAMPLES of them; a sample without pictures is one
    bool align;               // read "cells": one word for each row of the picture (see Sample.align)
    bool forget;              // keep no ids in memory: every load reads the record again
    ImageOptions image;
} DataOptions;

typedef struct SampleInfo { // what the scan found, one per usable sample
    char *id;
    bool named; // the record brought its id
    int32_t file;
    int64_t offset, bytes, line; // of its JSON text
    int64_t tokens, targets, patches;
    int32_t pictures;
    int64_t aligned; // picture rows that have a target of their own; 0 when an earlier sample of the same lead has them
    int64_t shared;  // as in Sample
    int64_t lead;    // first sample of its unit with the same `shared` ids in front; without `group` the sample itself
    double weight;
    int32_t *kept; // private: its ids, while there is room
} SampleInfo;
enum { UNIT_SAMPLES = 64 };

typedef struct Dataset {
    DataOptions options;
    const Tokenizer *t;
    const Config *c;
    SampleInfo *samples;
    int64_t n;
    int64_t *units,
        n_units; // [n_units + 1] first sample of each unit of the order: without `group` every sample is one
    int64_t dropped_long, dropped_bad;
    int64_t tokens, targets, patches, aligned; // sums
    int64_t longest, most_patches;             // of one sample: tokens, patches
    size_t kept;                               // bytes of ids that are held in memory
    char sha256[65];                           // of the files' bytes, one after the other
    struct DataFile *files;                    // private
} Dataset;
// Scans everything. A sample is never cut: one over max_tokens refuses or is dropped whole. With drop_bad it stops
// anyway when more than 1 % of the samples, and more than 10, are bad. Nothing usable refuses: E-DS-02. t and c must
// outlive d. E-DS-*, E-IM-*, E-IO-*, E-TK-06.
bool dataset_open(Dataset *d, const Tokenizer *t, const Config *c, DataOptions o, Err *e);
void dataset_close(Dataset *d);
// How many named samples of b have the id of one of a; *first: one of these ids (NULL: none). Leakage, if b measures a.
int64_t dataset_shared(const Dataset *a, const Dataset *b, const char **first);

typedef struct Sample {
    char id[260];
    Ids ids;          // with every picture's tokens
    uint8_t *trained; // [ids.n] 1: this id is a target of the loss (assistant's text and its end token, nothing else)
    int64_t targets;
    double weight;
    float *pixels; // [patches, .] of all pictures
    Grid grids[16];
    int n_grids;
    int32_t *align; // [picture rows] first token of the word that "cells" has for the row, -1: none; NULL: no cells
    int64_t
        shared; // ids up to the end of its last picture: what samples of one unit may have in common; 0: no picture,
                // or a target among them
} Sample;
// Reads sample i with its pictures. E-IO-05 when the file or the number of its tokens changed since the scan. Any number
// of threads may load from one data set.
bool sample_load(const Dataset *d, int64_t i, Sample *s, Err *e);
bool sample_load_text(const Dataset *d, int64_t i, Sample *s,
                      Err *e); // without pixels: for samples that share a picture
void sample_free(Sample *s);
// The ids of its prompt alone (up to the first trained turn, with the generation prompt), for sample completions. The
// pictures of the prompt are the first *n_grids ones of the sample (n_grids may be NULL).
bool sample_prompt(const Dataset *d, int64_t i, Ids *prompt, int *n_grids, Err *e);
// Place `index` of epoch `epoch`: a permutation of 0..n-1 that is a pure function of its arguments (no state to save).
int64_t shuffled(uint64_t seed, int64_t epoch, int64_t index, int64_t n);

// ============================================================================================ tokenizer_train.c
// A new vocabulary of the kind that tokenizer.c reads.

typedef struct TokenizerTrain {
    const char *const *data; // files of records: every message, as the chat template shows it
    int n_data;
    const char *const *text; // plain text files
    int n_text;
    const char *words; // to be one token each, with and without a space in front: a list or a file of words, split by
                       // white space or commas; NULL: none
    int64_t size;      // ids in all: 256 bytes, merges, TRAIN_ADDED added tokens
} TokenizerTrain;
enum { TRAIN_ADDED = 8 };
typedef struct TokenizerStats {
    int64_t size, merges, word_merges;       // ids; merges, of which for the words
    int64_t pieces, distinct, bytes, tokens; // of the texts; tokens: with the new vocabulary
    int64_t left_out;                        // pieces that are too long to learn from
} TokenizerStats;
// Writes the new folder dir: vocab.json, merges.txt, tokenizer_config.json, tokenizer.json, chat_template.jinja. The result
// depends on the texts alone, not on their order. Fewer ids than asked for, with a warning, when no pair is left that
// occurs twice. E-CL-01 when the words need more ids; E-IO-*, E-JS-*, E-DS-*, E-WR-*.
bool tokenizer_train(const TokenizerTrain *o, const char *dir, TokenizerStats *s, Err *e);

// ================================================================================================== data/import.c
// Public data sets, as their owners publish them, into records: annotations from the tree, pictures from folders of frames that
// the user extracted. data/README.md shows what each importer expects.

typedef struct ImportOptions {
    const char *dataset, *root, *out; // "cholec80"; the data set's folder; folder of the new <split>.jsonl files
    const char *frames;               // folder of the frames; NULL: where the data set has them
    const char *image_root; // what paths in records start from; NULL: `out` when the frames are beneath it, else root
    bool absolute_images;   // absolute paths instead
    const char *variant;    // which of the published splits; NULL: the usual one
    const char *splits, *tasks; // those wanted, with commas; NULL: all
    double fps;                 // frames a second to keep; 0: as the data set is commonly used
    int64_t every;              // of these, every so manieth
    int64_t balance;            // at most so many of a class, task and split; 0: all, -1: as the rarest class has
    uint64_t seed;
    double weight;           // of every record
    const char *const *eval; // evaluation splits in use: "cholect50:rdv:test", or "all" that are known
    int n_eval;
    const char *const *beside; // files of records that will be used together with these
    int n_beside;
    const char *overlap_table; // csv: endoscapes,camma (which videos are one patient); NULL: unknown
    bool allow_overlap, skip_unknown, drop_black;
    const char *frame_names; // seconds0, seconds1, frames0, frames1; NULL: told from the names
    const char *spec;        // of "generic": its mapping
    int label_base;          // 1: class numbers start at 0, 2: at 1; 0: told from the numbers
    double cvs_part;         // Cholec80-CVS: the last part of what comes before the first clip; 0: 0.15
    int64_t cvs_score;       // a criterion is met from this score on; 0: 2
    TaskWording wording;
    bool no_answers; // without the assistant's turn
} ImportOptions;
extern const char *const import_names[];      // the data sets, ended by NULL
const char *import_what(const char *dataset); // one line for the help; NULL when there is none of that name
// Writes out/<split>.jsonl and adds one JSON object to report: what was read, kept, left out and why. Refuses E-DS-02 (nothing is
// left), -04, -06, -09 (a patient on both sides), -12 (a label outside of its vocabulary), -13 (an annotation file), -14 (how
// frames are numbered), -15 (a pickle), E-JS-*, E-IM-*, E-IO-*, E-WR-*.
bool import_run(const ImportOptions *o, Text *report, Err *e);

// ====================================================================================================== init.c
// A checkpoint folder with random weights, for any shape that config.json can describe.

typedef struct InitOptions {
    const char *config;    // file; its vocab_size is raised to what the tokenizer needs
    const char *tokenizer; // folder
    uint64_t seed;
    FileType type;                  // FT_F32 or FT_BF16
    int64_t min_pixels, max_pixels; // of a picture; 0: 4, and 1280 or half the context, picture tokens
} InitOptions;
typedef struct InitResult {
    int64_t parameters, tensors, vocab;
} InitResult;
// The value of a parameter: pure in (seed, name, element). Fills out [rows * cols].
void init_values(const Param *p, uint64_t seed, float *out);
// Writes the new folder dir. E-CF-*, E-TK-* (-06: a token that pictures or the chat template need), E-IO-*, E-WR-*.
bool model_init(const InitOptions *o, const char *dir, InitResult *r, Err *e);

// =============================================================================================== surgery/metrics.c
// Every number of an evaluation, from plain arrays: no file, no text, no model. Shares are in [0, 1] unless "percent"
// stands there. NaN means "no value" everywhere, and leaves a mean: a class without a positive, a mean of nothing, an
// empty input. Sources stand above each function of the file. 10,000 items take a few milliseconds.

double mean_of(const double *x, int64_t n); // of the values that are no NaN; NaN when none is left

// Boxes in continuous coordinates, area (x2-x1)(y2-y1), no +1; both in one frame. The first four give whatever the
// formula gives, for crossed corners too (NaN for 0/0); eps 1e-7 is in the diagonal of diou and in alpha of ciou.
double box_iou(const Box *a, const Box *b);
double box_giou(const Box *a, const Box *b);
double box_diou(const Box *a, const Box *b);
double box_ciou(const Box *a, const Box *b);
// What rewards and tables use: box_iou, but 0 unless both have x2 > x1 and y2 > y1. Corners are never swapped.
double box_iou_strict(const Box *a, const Box *b);
// What the published VQLA code computes, on boxes scaled to 0-1: +1 on every side, and no zero for boxes that are apart
// (0.39 for two that do not touch). For comparison with published numbers only.
double box_iou_vqla_legacy(const Box *a, const Box *b);
double box_iou_pixels(const Box *a, const Box *b); // first and last pixel, both inside: +1 on every side; 0 when apart

// Average precision of a ranked list: sum of (R_n - R_n-1) P_n over distinct scores, falling; no interpolation. A NaN
// score ranks last. NaN when nothing is positive.
double average_precision(const uint8_t *positive, const double *score, int64_t n);

// The 100 triplets of CholecT50 and their parts. A column of a part counts the ids that occur: iv has 26, it has 59.
enum TripletPart { PART_IVT, PART_I, PART_V, PART_T, PART_IV, PART_IT, TRIPLET_PARTS };
enum { TRIPLETS = 100, TRIPLET_FIRST_NULL = 94 }; // the last six are "instrument, null_verb, null_target"
typedef struct Triplet {
    int32_t i, v, t; // ids of instrument, verb, target, in any vocabulary; -1: a word outside it
} Triplet;
Triplet triplet_at(int id);                                 // [0, TRIPLETS)
int triplet_id(Triplet x);                                  // -1 when it is none of the 100
int triplet_columns(enum TripletPart part);                 // 100, 6, 10, 15, 26, 59
int triplet_column(enum TripletPart part, int id);          // of triplet id
int triplet_column_id(enum TripletPart part, int column);   // ids as in the dataset: iv = 10 i + v, it = 15 i + t
extern const char *const triplet_part_names[TRIPLET_PARTS]; // "ivt", "i", "v", "t", "iv", "it"

typedef struct TripletVideo {
    const uint8_t *truth; // [frames, TRIPLETS], 0 or 1
    const double *score;  // [frames, TRIPLETS]; 0 and 1 where an answer is text
    int64_t frames;
} TripletVideo;
typedef struct TripletAP {
    int columns;
    double video_ap[TRIPLETS], global_ap[TRIPLETS];       // [columns]: mean over videos; all frames pooled
    double video_map, global_map;                         // means of these
    double video_map_ignore_null, global_map_ignore_null; // ivt only, else NaN: the first 94 columns
} TripletAP;
// Recognition as ivtmetrics has it. per_video: [videos, columns], or NULL. absent_is_zero: a class without a positive
// counts as 0, as the released ivtmetrics does under scikit-learn 1.6 and later; for comparison only.
void triplet_ap(const TripletVideo *videos, int64_t n, enum TripletPart part, bool absent_is_zero, double *per_video,
                TripletAP *out);
// Positives among the k best columns of each frame (the lower column first among equals), of all positives; 0 when
// there is no positive. least, greatest: over all orders of equal scores. 1 <= k <= columns.
double triplet_top_k(const TripletVideo *videos, int64_t n, enum TripletPart part, int k, double *least,
                     double *greatest);

typedef struct TripletSets { // over the frames whose truth is not empty
    int64_t frames, frames_used;
    int64_t outside; // predicted triplets with an unknown word: always wrong
    double exact[TRIPLET_PARTS], contained[TRIPLET_PARTS], micro_jaccard[TRIPLET_PARTS], micro_f1[TRIPLET_PARTS];
} TripletSets;
// Frame f has truth[truth_start[f] .. truth_start[f+1]) and predicted likewise: sets, order and repeats do not count.
// exact: equal; contained: truth within prediction; micro: sums over frames. ignore: triplets with its verb and target
// leave both sides first ({.v = 9, .t = 14} in CholecT50), or NULL. A part compares the sets of that part.
void triplet_sets(const Triplet *truth, const int64_t *truth_start, const Triplet *predicted,
                  const int64_t *predicted_start, int64_t frames, const Triplet *ignore, TripletSets *out);

typedef struct ScoredBox { // one object or one detection of it
    int64_t video, image;  // image: a frame number within the video
    int32_t category;
    double score; // 1 where an answer is text: then the order of the list decides
    double x1, y1, x2, y2;
} ScoredBox;
typedef struct CurveScores {
    double ap, recall, precision; // 11-point AP; largest recall; largest precision on the curve, not the last one
} CurveScores;
// Detection of ivtmetrics, for one of its two kinds of category (triplet or instrument). Both lists stand in the order
// (video, image), videos counted from 0. video, global: [categories], or NULL; video_mean, global_mean: means over
// categories. A category with detections and no object has 0 here, not NaN. legacy: with the fault of the release, for
// comparison only.
void triplet_detection(const ScoredBox *truth, int64_t n_truth, const ScoredBox *found, int64_t n_found, int64_t videos,
                       int32_t categories, double threshold, bool legacy, CurveScores *video, CurveScores *global,
                       CurveScores *video_mean, CurveScores *global_mean);

typedef struct CocoScores { // areas: up to 32^2, to 96^2, above; AR1, AR10, AR100: with so many detections per image
    double ap, ap50, ap75, ap_small, ap_medium, ap_large;
    double ar1, ar10, ar100, ar_small, ar_medium, ar_large;
} CocoScores;
typedef struct CocoClass {
    double ap, ap50, ap75, ar100;
    int64_t matched50, detections, objects; // at IoU 0.5; at most 100 detections per image are counted
} CocoClass;
// COCO's box AP over categories [0, categories), original pixels; images are told apart by (video, image). per_class:
// [categories], or NULL. Detections of one score are ranked by image, then as listed.
void coco_boxes(const ScoredBox *truth, int64_t n_truth, const ScoredBox *found, int64_t n_found, int32_t categories,
                CocoScores *out, CocoClass *per_class);

// Classification. Labels are 0..k-1; a prediction may be k (or anything else): outside the vocabulary, always wrong.
enum ClassGroup {
    CLASSES_ALL,        // 0..k-1, whether they occur or not
    CLASSES_TRUTH,      // those of the truth: Surg-R1's tables
    CLASSES_UNION,      // those of truth or prediction, "outside" too when it occurs: scikit-learn's default
    CLASSES_VOCABULARY, // the same without "outside"
};
typedef struct ClassScores {
    double precision, recall, f1, jaccard;
} ClassScores;
typedef struct ClassReport {
    int32_t classes; // in the group
    double accuracy;
    ClassScores macro, weighted, micro; // means over classes: plain, by support; from sums. Macro f1: mean of class f1
} ClassReport;
// zero_division: the value of 0/0 (0, 1, or NaN: left out). per_class, support, in_group: [k + 1], or NULL.
void class_report(const int32_t *truth, const int32_t *predicted, int64_t n, int32_t k, enum ClassGroup group,
                  double zero_division, ClassScores *per_class, int64_t *support, uint8_t *in_group, ClassReport *out);
double class_accuracy(const int32_t *truth, const int32_t *predicted, int64_t n);
double class_balanced_accuracy(const int32_t *truth, const int32_t *predicted, int64_t n, int32_t k); // mean recall
// counts [k + 1, k + 1], rows are the truth
void class_confusion(const int32_t *truth, const int32_t *predicted, int64_t n, int32_t k, int64_t *counts);
// The "mAP" of the Surg-R1 authors' evaluator: 11-point, rows in file order, no scores, mean over the truth's classes.
double class_map11(const int32_t *truth, const int32_t *predicted, int64_t n, int32_t k);
// Accuracy by kind of question, kind[i] in [0, kinds): counts and accuracies [kinds].
void accuracy_by_kind(const int32_t *truth, const int32_t *predicted, int64_t n, const int32_t *kind, int32_t kinds,
                      int64_t *count, double *accuracy);
// The most frequent label of each kind of question (the lowest among equals; -1 without one): what a blind answer gets.
void most_frequent(const int32_t *truth, int64_t n, const int32_t *kind, int32_t kinds, int32_t k, int32_t *label);

typedef struct LabelVideo { // labels per frame, 1 frame a second
    const int32_t *truth, *predicted;
    int64_t frames;
} LabelVideo;
enum PhaseMode {
    PHASE_STRICT,
    PHASE_RELAXED_SCRIPT, // the published script: neighbouring phases count within 10 frames of a change (7 phases)
    PHASE_RELAXED_TAIL,   // what it meant: early changes are forgiven at the end of a phase, where they are
};
typedef struct PhaseTable { // percent
    double mean, std;       // over the phases that have a value; std divides by N-1
    int32_t without_value;  // phases without one
} PhaseTable;
typedef struct PhaseScores {                          // percent
    double accuracy, accuracy_std_n1, accuracy_std_n; // mean and deviations over videos
    PhaseTable jaccard, precision, recall;
} PhaseScores;
// The per-video convention of the Cholec80 literature. accuracy: [videos]; by_phase: [3, phases] (jaccard, precision,
// recall; above 100 cut to 100); by_video: [3, videos, phases] before the cut (relaxed ones pass 100, a relaxed
// precision may be infinite). Any may be NULL. Every label of the truth is in [0, phases).
void phase_scores(const LabelVideo *videos, int64_t n, int32_t phases, enum PhaseMode mode, double *accuracy,
                  double *by_phase, double *by_video, PhaseScores *out);

typedef struct SegmentScores {
    int64_t tp, fp, fn;
    double f1, accuracy;
} SegmentScores;
// One video of SAR-RARP50: segmental F1@(100 threshold), threshold > 0, and frame accuracy.
SegmentScores segment_scores(const LabelVideo *video, double threshold);
// Means over videos of frame accuracy and F1@10, and sqrt of their product. per_video: [n], or NULL.
void action_scores(const LabelVideo *videos, int64_t n, SegmentScores *per_video, double *accuracy, double *f1,
                   double *score);

typedef struct CvsCriterion {
    int64_t n, positives, negatives, correct;
    double accuracy, balanced_accuracy, majority; // majority: what a constant answer gets
    double ap;                                    // NaN without scores or positives
} CvsCriterion;
typedef struct CvsScores {
    CvsCriterion criterion[3];
    double avg, pooled, majority_pooled; // mean of the three; correct / asked (the papers' "overall"); constant answers
    double joint, achieved, map;         // all three right; "all three 1" alike; mean ap
    int64_t all_three;                   // images asked for all three: joint and achieved are over these
} CvsScores;
// truth [n, 3]: 1, 0, or -1 not asked; predicted [n, 3]: 1, 0, else unreadable, always wrong; score [n, 3] or NULL.
void cvs_scores(const int32_t *truth, const int32_t *predicted, const double *score, int64_t n, CvsScores *out);
int cvs_of_raters(double mean); // 1 or 0: half goes to even, so two raters who disagree give 0
// From counts: percent per criterion, pooled and mean.
void cvs_of_counts(const int64_t correct[3], const int64_t asked[3], double percent[3], double *pooled, double *avg);

// Arena score (Surg-R1, eq. 9). scores: [models, tasks], NaN where a model has none. own: mean over what it has,
// n_tasks of them; common: mean over the tasks that all models have (is_common, [tasks]).
void arena_scores(const double *scores, int64_t models, int64_t tasks, double *own, int64_t *n_tasks, double *common,
                  uint8_t *is_common);
// Two models on the tasks that both have; returns how many.
int64_t arena_pair(const double *a, const double *b, int64_t tasks, double *mean_a, double *mean_b);

// Confidence intervals. Frames of one patient are not independent: whole clusters (patients, videos) are drawn with
// replacement. The statistic sees the clusters that were drawn (n of them, with repeats) and may give NaN: left out.
typedef double (*ClusterStatistic)(const void *ctx, const int64_t *drawn, int64_t n);
typedef struct Interval {
    double estimate, low, high, standard_error; // low, high: percentiles; NaN with fewer than two clusters
} Interval;
enum { BOOTSTRAP_RESAMPLES = 10000 };
// A pure function of its arguments. level: 0.95 for example.
Interval bootstrap(ClusterStatistic statistic, const void *ctx, int64_t clusters, int64_t resamples, double level,
                   uint64_t seed);
typedef struct ClusterSums {           // per cluster
    const double *correct, *other, *n; // other: of a second model on the same clusters; used by cluster_difference only
} ClusterSums;
double cluster_ratio(const void *sums, const int64_t *drawn, int64_t n);      // sum correct / sum n
double cluster_mean(const void *sums, const int64_t *drawn, int64_t n);       // mean of correct / n
double cluster_difference(const void *sums, const int64_t *drawn, int64_t n); // (sum correct - sum other) / sum n
// ================================================================================================ surgery/answer.c
// Reading a model's answer: one reading for every byte string. Nothing here fails, allocates per level, or repairs.

typedef struct View { // part of a text; not zero-ended
    const char *p;
    size_t len;
} View;
View view_of(const char *text); // NULL: empty
View view_trim(View v);         // without ASCII white space around it

enum AnswerStatus {   // exactly one; of several that apply the one that is named first after TOO_LONG
    ANSWER_OK,        // <think>T</think> <answer>A</answer>, nothing else but white space, no tag within T or A
    ANSWER_NO_THINK,  // a pair is missing
    ANSWER_NO_ANSWER, //
    ANSWER_UNCLOSED,  // an opening tag with no end behind it; told before the two above
    ANSWER_NESTED,    // a tag inside a pair
    ANSWER_REPEATED,  // a pair twice
    ANSWER_ORDER,     // answer before think
    ANSWER_OUTSIDE,   // anything but white space outside the pairs
    ANSWER_EMPTY,     // T or A
    ANSWER_TOO_LONG,  // over LIMIT_OUTPUT_BYTES: nothing of it is read
    ANSWER_BAD_UTF8,  // within A
    ANSWER_TOO_MANY,  // over LIMIT_BOXES boxes within A
    ANSWER_STATUSES
};
extern const char *const answer_status_names[ANSWER_STATUSES]; // "OK", "NO_THINK", ...

typedef struct AnswerLevel { // "Level K: text"
    View text;               // up to the next level or the end of the thought
    size_t at;               // where "Level" stands in Answer.text
    bool found, colon;       // colon: without it the header stood alone in front of a line
} AnswerLevel;
typedef struct Answer { // views into the parsed text
    enum AnswerStatus status;
    View text;            // trimmed
    View think;           // T; of another status than OK what follows the first <think>, up to the next tag
    bool think_closed;    // think stood in a pair
    View answer;          // A; of another status (lenient) that of the last complete pair
    bool has_answer;      // there is such a pair
    View preamble;        // of think, in front of its first level
    AnswerLevel level[3]; //
    int headers;          // n when the headers with a colon are exactly levels 1..n, in order, each with a text; else 0
    size_t steps;         // bytes looked at: linear in the length
} Answer;
void answer_parse(Answer *a, const char *text, size_t len);
View answer_any(const Answer *a); // of a model that may know no tags: a->answer, else what is behind </think>, or all

// Labels are equal when their N are: lower case; without `_`, `-`, white space, a leading option letter ("D. ") and one
// final full stop; three spellings of Calot's triangle are one. Nothing equals an empty label.
bool label_equal(View a, View b);
void label_normalise(View v, Text *out);                   // adds N(v)
int label_lookup(View v, const char *const *words, int n); // which of them; the very same bytes first; -1: none
typedef struct TripletNames {
    const char *const *instruments, *const *verbs, *const *targets;
    int n_instruments, n_verbs, n_targets;
} TripletNames;
// "grasper retract gallbladder", spaces or underscores. False when it is not three names; those in front of the first
// unknown one are in *out, -1 elsewhere.
bool answer_triplet(View item, const TripletNames *names, Triplet *out);
// The next item of a list ("a, b and c") or of triplets (`,` `;` newline); false at the end. *rest moves on.
bool answer_next_item(View *rest, enum AnswerKind kind, View *item);

enum { ANSWER_MAX_BOXES = 64 };
typedef struct Reading { // of an answer, by the kind of its task
    enum AnswerKind kind;
    bool ok;                     // it says something of that kind
    View word;                   // WORD: the label as written, LIST and TRIPLETS: all of it, VQLA: the label (in .text)
    bool yes;                    // YESNO
    int64_t number;              // NUMBER
    bool json;                   // VQLA: one JSON object with "answer" or "bbox_2d", each as it must be
    int n_boxes;                 // BOX, BOXES, VQLA; ok and 0: it says there is none ("No tools detected")
    Box boxes[ANSWER_MAX_BOXES]; // in the frame they were written in
    char text[1024];
} Reading;
// An option letter alone stands for the item's choice. An answer that begins as JSON is read as JSON only.
void answer_read(Reading *r, View answer, const TaskItem *item);
// Whether it says what item->answer says. Of boxes: false, they are measured. Sets (LIST, TRIPLETS) are compared as sets.
bool answer_matches(const Reading *r, const TaskItem *item);

// Boxes anywhere in a text (here in the frame the model was shown: pixels of the resized picture) in every spelling the
// model uses: {"bbox_2d": [n,n,n,n], "label": "..."}, (n,n),(n,n), a bare [n,n,n,n]. Linear time, never fails; an answer
// that breaks off gives the boxes before the break. Returns how many (at most max).
int answer_boxes(const char *text, size_t len, Box *boxes, int max);
// Corners in order and some part inside a picture of width x height.
bool box_is_valid(Box b, int64_t width, int64_t height);
// Resized frame -> original frame, in double.
Box box_to_original(Box b, int64_t resized_w, int64_t resized_h, int64_t original_w, int64_t original_h);

// ================================================================================================ surgery/reward.c
// The rewards of Surg-R1 (eq. 4) and of Surgery-R1, and shaping terms, each by its name.

enum RewardTerm {
    REWARD_FORMAT,     // Surg-R1's format; Surgery-R1's R_fmt
    REWARD_ANSWER,     // Surg-R1: 1[answer], IoU where boxes are asked for
    REWARD_STRUCTURE,  // Surg-R1: the levels
    REWARD_GROUNDING,  // Surgery-R1: R_VG
    REWARD_LANGUAGE,   // Surgery-R1: R_LA
    REWARD_COHERENCE,  // Surgery-R1: R_MC
    REWARD_OVERLONG,   // shaping, all <= 0 but the cosine: DAPO's soft overlong punishment
    REWARD_COSINE,     // length as a cosine (arXiv 2502.03373)
    REWARD_REPETITION, // repeated n-grams
    REWARD_TERMS
};
extern const char *const reward_term_names[REWARD_TERMS]; // "format", ...
// "Level 1" anywhere in think, as the paper says, which a preamble "This is a Level 1 task" earns for nothing; or headers
// with a text, in order, up to the task's level (not asked for where a task has none: vqa, vqla).
enum StructureMode { STRUCTURE_PAPER, STRUCTURE_HEADER };
enum BoxReward {
    BOX_IOU,    // the value
    BOX_IOU50,  // 1[IoU >= box_threshold] (Surgery-R1: >)
    BOX_TIERED, // mean of 1[IoU >= k], k = 0.3, 0.5, 0.7
    BOX_L1,     // 1[largest corner error < 10 pixels of the original]
    BOX_GIOU,   // (1 + GIoU) / 2, so that a box far off is worth more than none
    BOX_GIOU50  // 1[GIoU >= box_threshold]
};
enum LanguageReward { LANGUAGE_EXACT, LANGUAGE_IN_VOCAB, LANGUAGE_TOKEN_F1 };
enum CoherenceReward { COHERENCE_JOINT, COHERENCE_PRODUCT, COHERENCE_QUADRANT, COHERENCE_TRACE };

typedef struct RewardOptions {
    bool surgery_r1;             // which paper's terms; the other's are not asked for
    double weight[REWARD_TERMS]; // 0: not in the total (but still measured)
    double structure_part;       // the structure term counts in this part of the run from its start (S0)
    enum StructureMode structure;
    bool strict_answer; // an answer counts with status OK only; else that of the last complete pair does
    bool any_answer;    // and so does plain text: answer_any
    enum BoxReward box;
    double box_threshold;
    enum LanguageReward language;
    enum CoherenceReward coherence;
    int64_t max_tokens, overlong_buffer; // L and C of the overlong term; L of the cosine
    double cosine[4];                    // right: at length 0, at L; wrong: at length 0, at L
    int64_t ngram;                       // of repetition
    double repetition_penalty;           // < 0
} RewardOptions;
// "surg-r1" or "surgery-r1"; false for another name.
bool reward_preset(RewardOptions *o, const char *name);

typedef struct RewardInput { // one completion
    const TaskItem *item;    // its boxes are in pixels of the file
    const char *text;        // the completion
    size_t len;
    int64_t resized_w, resized_h; // of the picture the model was shown; 0: boxes are written in pixels of the file
    int64_t step, steps;          // of the run; steps 0: no run, everything counts
    int64_t tokens;               // of the completion; -1: not known, then overlong and cosine are not asked for
    const int32_t *ids;           // [tokens], or NULL: repetition is of lower-cased words
    const char *const *labels;    // vocabulary of in-vocab; NULL: the 18 labels of EndoVis-18-VQA
    int n_labels;
} RewardInput;
typedef struct Reward {
    double term[REWARD_TERMS]; // NaN: not asked for
    double total;              // sum of weight * term
    double iou;                // plain IoU of the answer's boxes (mean over a matching); NaN where none are asked for
    bool right;                // the answer is right: exactly; of boxes IoU >= 0.5
    bool structure_counts;     // its weight is in the total
    Answer answer;
    Reading reading;
} Reward;
void reward_score(Reward *r, const RewardOptions *o, const RewardInput *in);
// Largest sum over one-to-one matchings of the boxes' values, over the larger number of boxes; 1 when both are none.
// Names must be equal where the truth has one. found is in pixels of the file. At most ANSWER_MAX_BOXES each.
double boxes_match(const Box *truth, int n_truth, const Box *found, int n_found, int64_t width, int64_t height,
                   const RewardOptions *o);

// ============================================================================================= surgery/knowledge.c
// What is typical of an operation, from data/knowledge/*.json, for a teacher's prompt; and its terms in a text.

typedef struct Knowledge {
    JsonDoc doc;
} Knowledge;
// Refuses what it does not know, what is missing, rows without a source, names that lead nowhere: E-CF-02, E-JS-*, E-IO-*.
bool knowledge_read(Knowledge *k, const char *path, Err *e);
void knowledge_free(Knowledge *k);
bool knowledge_fits(const Knowledge *k, const char *procedure, enum Task task);
void knowledge_print(const Knowledge *k, enum Task task, Text *out); // only what a question of this kind needs
// How many of its instruments and tissues a text names; the first word in it that belongs to another operation, or NULL.
int knowledge_terms(const Knowledge *k, const char *text, size_t len);
const char *knowledge_foreign(const Knowledge *k, const char *text, size_t len);
// Adds lower-case words (a-z, 0-9) with one space around each. Then: how often a term stands in them, whole, with or
// without a plural s.
void words_of(const char *text, size_t len, Text *out);
int words_hold(const Text *words, const char *term);

// ================================================================================================= surgery/synth.c
// Reasoning data: requests to a teacher, what comes back, and the built-in teacher of drawn scenes.

typedef struct SynthRequests {
    const char *data, *image_root; // records of task_record_print; where their pictures are (NULL: beside the file)
    const char *const *knowledge;  // files
    int n_knowledge;
    const char *out;          // new folder: requests-NNN.jsonl, manifest.jsonl, the knowledge files
    const char *model;        // as the server names it
    const char *image_detail; // "auto", "low", "high"; NULL: not said
    const char *limit_name;   // "max_tokens" or "max_completion_tokens"
    int64_t max_tokens;
    double temperature;           // < 0: not said
    int64_t max_bytes;            // of one file of requests
    int64_t min_words, max_words; // of a thought
} SynthRequests;
typedef struct SynthSent {
    int64_t requests, files, bytes;
} SynthSent;
enum { SYNTH_FILE_REQUESTS = 50000 }; // at most in one file: the published limit
// E-DS-* for a record without picture, task, label or fitting knowledge; E-DS-07 when one request is over max_bytes.
bool synth_requests(const SynthRequests *o, SynthSent *sent, Err *e);

enum SynthVerdict { // of one request; the first that applies
    SYNTH_ACCEPTED,
    SYNTH_MISSING,       // no response
    SYNTH_DUPLICATE,     // more than one: nothing tells which is meant
    SYNTH_ERROR,         // the server's, or a response of neither form
    SYNTH_CUT,           // finish_reason is not "stop"
    SYNTH_EMPTY,         //
    SYNTH_FORMAT,        // answer_parse
    SYNTH_LEVELS,        // not exactly the levels up to the task's
    SYNTH_LENGTH,        // words of the thought
    SYNTH_LANGUAGE,      // not English
    SYNTH_LEAK,          // the thought speaks of label, list or prompt
    SYNTH_VOCABULARY,    // words of another operation, or none of this one
    SYNTH_BOXES,         // not as bbox_2d, or outside of the picture
    SYNTH_ANSWER,        // not the label; of boxes IoU < 0.99
    SYNTH_CONTRADICTION, // of a student: the thought ends elsewhere than the answer
    SYNTH_VERDICTS
};
extern const char *const synth_verdict_names[SYNTH_VERDICTS];
// Boxes are in pixels of the file on both sides. knowledge: those that fit the item; n 0: no vocabulary to look at.
enum SynthVerdict synth_judge(const TaskItem *item, const char *text, size_t len, const Knowledge *const *knowledge,
                              int n, int64_t min_words, int64_t max_words);

typedef struct SynthCounts {
    int64_t requests, lines;         // lines: of the response files
    int64_t verdict[SYNTH_VERDICTS]; // sums to requests
    int64_t foreign, unreadable;     // lines with an unknown id; that are no JSON object with an id
} SynthCounts;
// Joins by custom_id, in any order. Writes accepted answers as they are (but for white space around them), in the order of
// the requests, as training records with "teacher" and "request"; and when some are refused and retry is not NULL, a new folder of requests for them.
bool synth_ingest(const char *requests, const char *const *responses, int n, const char *out, const char *retry,
                  SynthCounts *c, Err *e);
void synth_counts_print(const SynthCounts *c, Text *out); // one JSON object
// Only form and thought: SYNTH_EMPTY to SYNTH_VOCABULARY. any_language: a thought of a few words need not be English.
enum SynthVerdict synth_judge_thought(const TaskItem *item, const char *text, size_t len,
                                      const Knowledge *const *knowledge, int n, int64_t min_words, int64_t max_words,
                                      bool any_language);
// Whether the answer names something that the last level of its trace does not: the name itself, of triplets their verbs.
// -1: not a kind of answer for which words tell, or nothing to compare.
int synth_contradicts(const Reward *r);
// The record (its JSON, with "messages") as a training record: its system turn, or before a thought the prompt for reasoning,
// its question, text.
// teacher, request may be NULL.
void synth_record_print(const Json *root, const char *text, const char *teacher, const char *request, Text *out);
bool synth_is_record(const Text *line,
                     const FrameSize *sizes); // what was printed can be read; sizes of its pictures, or NULL

// ================================================================================================= surgery/teach.c
// The built-in teacher of drawn scenes. It writes from the truth of the frame and sees no picture.

// Adds <think>...</think> and <answer>...</answer> up to the task's level, a pure function of its arguments. wording:
// seed, and whether the answer takes its letter. truth: as scene_truth_json has it. E-DS-02.
typedef struct TeachOptions {
    bool brief; // a few words a level, for small models
    double
        wrong; // in this share of the records the thought gives one instrument another verb and target that it could have;
               // the answer stays the label. A teacher who sees the label errs so.
    double
        overcall; // in this share an unmet criterion of the critical view is taken for met, each by itself, and the answer
                  // follows (tasks cvs1 to cvs3, cvs and protocol): so errs a teacher who sees the picture alone
    bool silent; // the same answers, without thoughts and tags
} TeachOptions;
bool teach_text(const TaskItem *item, TaskWording wording, const Json *truth, TeachOptions o, Text *out, Err *e);
// Every record of a file, which must carry its "truth", as a training record with "teacher":"scene-graph".
bool synth_teach(const char *data, const char *out, uint64_t seed, TeachOptions o, int64_t *n, Err *e);

// ================================================================================================== surgery/eval.c
// Every number of an evaluation: answers against records, beside floors, intervals and published variants.

enum EvalReading { // what of a completion is the answer
    EVAL_TAGS,     // the text of its last complete <answer> pair
    EVAL_FORMAT,   // the same, in a completion of status OK only
    EVAL_ANY       // without such a pair the text behind </think>, or all of it
};
typedef struct EvalOptions {
    const char *data;        // records of data/README.md
    const char *predictions; // lines of id and response, in any order; NULL: data has the responses
    const char *blind;       // the same of a run that saw no picture; NULL: none
    const char *train;       // records whose labels the floors are made of; NULL: those of data
    const char *joined;      // new file: the labelled records with their answers, as report reads them; NULL: none
    enum EvalReading reading;
    bool missing_wrong, skip_foreign;       // instead of a refusal
    bool boxes_original;                    // boxes are in pixels of the file, whatever "resized" says
    int64_t min_pixels, max_pixels, factor; // of the resize, where a line has no "resized"
    int64_t resamples;                      // of the intervals; 0: none
    double level;                           // 0.95
    uint64_t seed;
} EvalOptions;
// Adds metrics.json and the tables for people, both without a path or a time in them. E-DS-*, E-TA-01 an id that is none of
// data's, -02 a second answer, -03 no answer; E-JS-*, E-IO-*.
bool eval_score(const EvalOptions *o, Text *json, Text *tables, Err *e);
typedef struct EvalAnswer { // what stands behind a record's members; absent where it is unknown
    const char *text;
    size_t len;
    int64_t resized_width, resized_height; // 0: unknown
    int64_t tokens;                        // -1: unknown
    int stopped;                           // -1: unknown
} EvalAnswer;
// One line: the record with "response", "resized", "tokens", "stopped" behind its own members. more: further members, or NULL.
void eval_record_print(const Json *record, const char *more, const EvalAnswer *a, Text *out);
// What the Surg-R1 authors' evaluator compares, and whether it calls it right (method.md 1.9: an empty answer is).
void eval_legacy_text(const char *text, size_t len, Text *out);
bool eval_legacy_right(const Text *said, const Text *label);

// =============================================================================================== surgery/prompts.c
// Records as prompts: their conversation up to the last question, for everyone who samples answers.

enum EvalForm { EVAL_AS_WRITTEN, EVAL_OPEN, EVAL_CHOICE }; // options of a question: as its record has it, never, always
typedef struct PromptOptions {
    const char *system;    // system turn, instead of the records' own; NULL: theirs
    const char *or_system; // system turn of records that have none; NULL: none
    enum EvalForm form;
    bool blind; // every picture in the mean colour of the preprocessor
    bool trust_text;
    int64_t new_tokens; // that must find room behind the prompt (E-ME-02)
    ImageOptions image;
} PromptOptions;
typedef struct Prompt {
    TaskRecord task; // its item has the size of the picture's file, also where the record lacks it
    Record record;
    char *text; // its JSON, [len]
    size_t len;
    char *question;      // private
    int options;         // of the question: 1 shown, 0 not shown; -1: as the record has it
    Ids ids;             // with the generation prompt
    Grid grids[16];      // of all pictures of the record; the prompt's are the first n_grids
    FrameSize sizes[16]; //
    int64_t tokens[16];  // of each picture
    int n_grids;
    float *pixels; // [patches, .]; NULL when it was not decoded
} Prompt;
// decode: the pictures too; else only their headers are read. After a refusal there is nothing to free. E-DS-*, E-IM-*.
bool prompt_read(Prompt *q, const Config *c, const Tokenizer *t, const PromptOptions *o, const char *file,
                 const char *root, const Piece *p, bool decode, Err *e);
void prompt_free(Prompt *q); // also of a zeroed one
Request prompt_request(const Prompt *q, uint32_t stream, int completions);

typedef struct PromptInfo { // what the scan found
    char *id;
    enum Task task;
    int file;
    uint32_t crc; // of its text
    int64_t offset, bytes, line, number, tokens, patches;
} PromptInfo;
typedef struct PromptSet { // labelled prompts of several files
    PromptOptions options;
    const Tokenizer *t;
    const Config *c;
    const char *const *files;
    int n_files, *fds;    // private
    char (*roots)[1200];  // private
    PromptInfo *prompts;  // [n]
    int64_t n;            //
    int64_t longest;      // tokens
    int64_t most_patches; //
    char sha256[65];      // of the files' bytes, one after the other
} PromptSet;
// Scans everything: a record without a label to reward refuses (E-DS-02). files, t and c must outlive s.
bool prompts_open(PromptSet *s, const Tokenizer *t, const Config *c, const char *const *files, int n,
                  const char *image_root, PromptOptions o, Err *e);
void prompts_close(PromptSet *s);
bool prompts_load(const PromptSet *s, int64_t i, Prompt *q, Err *e);    // E-IO-05 when it changed since the scan
bool prompts_measure(const PromptSet *s, int64_t i, Prompt *q, Err *e); // the same without pixels

// ========================================================================================= surgery/eval_generate.c
// Answers of a model to a file of records.

typedef struct EvalGenerate {
    const char *data, *image_root; // NULL: beside the records
    const char *out;    // predictions.jsonl, as eval_record_print; "options_shown" where form changed a question
    const char *system; // system turn, instead of the records' own; NULL: theirs
    enum EvalForm form;
    bool blind; // every picture in the mean colour of the preprocessor
    bool trust_text;
    int64_t batch;
    GenerationConfig g;
    ImageOptions image;
} EvalGenerate;
// An answer depends on its record, the options and the model alone: not on the batch, the order of lines or threads.
// *n: how many; fewer than the records, with nothing written, when a stop was asked for. E-DS-*, E-IM-*, E-ME-*, E-WR-*.
bool eval_generate(Model *m, const Tokenizer *t, const EvalGenerate *o, int64_t *n, Err *e);

// =========================================================================================== surgery/report_runs.c
// The parts of a report about experiments, and what they share. A part adds one <section>, or nothing.

// Text of strangers as HTML: markup is escaped, what is not UTF-8 becomes U+FFFD, control characters go.
void html_add(Text *out, const char *p, size_t len);
void html_text(Text *out, const char *text); // NULL: nothing
void html_json(Text *out, const Json *v);    // a string; of anything else nothing
// A member that is a number of at most 1e200; else false, and *out is left alone.
bool report_number(const Json *object, const char *name, double *out);
// The lines of a log of io/log.c, checked whole first (E-CK-02). A torn last one, of a run that works or was killed, is not
// there.
bool report_log(const char *path, LineCallback each, void *ctx, Err *e);
extern const char *const report_runs_style; // CSS
// table.json of surgr1 table: accuracies with their intervals drawn, paired differences against 0. E-CF-02, E-JS-*, E-IO-*.
// number: of the table on the page, from 0.
bool report_table(const char *file, int number, Text *out, Err *e);
// run.jsonl of run folders, several runs in one chart. E-CK-02, E-JS-*, E-IO-*.
bool report_curves(const char *const *runs, int n, Text *out, Err *e);

// ======================================================================================= surgery/report_rollouts.c
extern const char *const report_rollouts_style;
// rollouts.jsonl of those run folders that have one: at most max_groups groups of each, tokens tinted by weight. E-CK-02,
// E-JS-*, E-CF-02, E-IO-*.
bool report_rollouts(const char *const *runs, int n, int64_t max_groups, Text *out, Err *e);

// ================================================================================================= surgery/table.c
// Arms of an experiment side by side, over seeds, with paired differences.
typedef struct TableOptions {
    const char *spec;         // data/recipes/README.md
    const char *const *roots; // one folder per seed; the paths of the spec are beneath each
    int n_roots;
    int64_t resamples; // of the intervals
    double level;
    uint64_t seed;
} TableOptions;
// Adds the table as text, Markdown and JSON, none with a path or a time in it. Answers that are not there are said and warned
// of (E-TA-03). E-CF-02 the spec; E-DS-*, E-JS-*, E-IO-*; E-TA-02 an id twice in one file.
bool table_make(const TableOptions *o, Text *text, Text *markdown, Text *json, Err *e);

// ================================================================================================ surgery/report.c
// One HTML file about predictions, metrics and runs.

typedef struct ReportOptions {
    const char *predictions;   // records with "response"; NULL: none
    const char *metrics;       // metrics.json; NULL: none
    const char *const *tables; // table.json of surgr1 table
    const char *const *runs;   // run folders
    int n_tables, n_runs;
    const char *image_root; // NULL: the folder of predictions
    const char *out, *title;
    int64_t max_items, max_side; // answers with a card; longer side of their pictures
    int64_t max_groups;          // groups of completions shown of each run
} ReportOptions;
// E-DS-*, E-JS-*, E-IO-*, E-WR-*. A picture that cannot be read is said in its card.
bool report_write(const ReportOptions *o, int64_t *cards, Err *e);

// ======================================================================================================= train.c
// What every trainer is made of: packed batches, AdamW, the schedule, the guards, what a checkpoint holds.

typedef struct Sequence {   // one sequence of a packed batch
    const int32_t *ids;     // [n]
    int64_t n, n_prompt;    // ids from n_prompt on are text, whatever they are
    const uint8_t *trained; // [n] 1: this id is a target
    const float *pixels;    // [patches, .] of its pictures
    const Grid *grids;      //
    int n_grids;            //
    uint32_t key;           // names this visit of the sample in the dropout mask
    const int32_t *align;   // [picture rows] the id that each row of its pictures is to predict, -1: none; or NULL
} Sequence;
typedef struct PackPlace { // row `row + i - from` of the batch stands for id i of a sequence, i in [from, n)
    int64_t row, from, n;
    // [align_row, align_row + n_align) holds all rows with targets of align; 0 rows: none. Of its rows only those of a
    // picture (their id is image_id) have such targets; with several pictures there may be text between them.
    int64_t align_row, n_align;
} PackPlace;
typedef struct Pack { // several sequences side by side, each seeing itself only
    TrainBatch b;
    PackPlace *places; // [n] of every sequence, in the order they were added
    int64_t n;
    int32_t *ids, *axes, *pos, *targets, *keys, *patch_keys, *image_at;
    Span *spans;
    float *pixels;
    Grid *grids;
    int64_t n_places, patches;
} Pack;
void pack_clear(Pack *p);
bool pack_add(Pack *p, const Config *c, const Sequence *s, Err *e); // E-DS-10
// Several sequences that begin alike: their first `shared` ids (at least 1, at most n_prompt of each) are equal, hold all
// their pictures (those of s[0] stand for all; the last shared id is none of a picture's) and no target. They are computed
// once, and every sequence sees them as if they were its own; the gradients are the sum over the separate sequences. Row
// shared - 1 is there once for each (its target differs), so that the rows of sequence k begin at id shared - 1. Only
// align of s[0] is read. Dropout: the rows of ids [0, shared - 1) have the key of s[0]. E-DS-10 leaves p as it was.
bool pack_add_group(Pack *p, const Config *c, const Sequence *s, int n, int64_t shared, Err *e);
// The batch for model_pass; valid until the next call with p.
const TrainBatch *pack_batch(Pack *p, bool dropout, uint64_t seed, int64_t keep);
void pack_free(Pack *p);

enum ScheduleKind { SCHEDULE_COSINE, SCHEDULE_LINEAR, SCHEDULE_CONSTANT, SCHEDULE_WSD };
typedef struct Schedule {
    enum ScheduleKind kind;
    int64_t warmup, steps; // of warm-up (the first has factor 0 then); of the whole run
    double floor;          // part of the learning rate that is left at the end
    double decay_part;     // wsd: the part of the run that falls
} Schedule;
double schedule_factor(const Schedule *s, int64_t step); // step from 0

typedef struct AdamOptions {
    double lr[3]; // by enum Tower
    double beta1, beta2, eps, decay;
    double clip; // largest norm of the gradient; 0: off
} AdamOptions;
typedef struct OptimizerRow {
    Param *p;
    Mat m, v;
    double lr, decay;
} OptimizerRow;
typedef struct Optimizer {
    AdamOptions options;
    OptimizerRow *rows; // [n] the trained parameters in the order of the table
    int64_t n;
    int64_t updates[3]; // applied so far, by enum Tower: an update without pictures leaves the vision tower alone
    Arena arena;
    Mat squares; // F32 [n, 1]
    float *host; // [n] the same
} Optimizer;
bool optimizer_open(Optimizer *o, Model *m, const AdamOptions *options, Err *e); // after model_train_open; E-ME-01
size_t optimizer_bytes(const Model *m);                                          // of its arena
void optimizer_close(Optimizer *o, const Model *m);
double gradient_norm(Optimizer *o, const Model *m);
void optimizer_step(Optimizer *o, Model *m, double factor, double norm);
void describe_nonfinite(const Optimizer *o, Text *out); // after gradient_norm: which gradients are not finite

// The last accepted values of a quantity. outlier: value > mean + 6 sd and > 2 mean of at least OUTLIER_FROM values.
enum { OUTLIER_WINDOW = 128, OUTLIER_FROM = 64 };
typedef struct Window {
    double value[OUTLIER_WINDOW];
    int64_t n, next;
} Window;
bool outlier(Window *w, double value);
void window_print(const Window *w, Text *out); // JSON, exact
bool window_read(Window *w, const Json *v);

// A parameter whose weights or moments are not all finite; NULL when there is none. Read before every checkpoint, and
// every CHECK_FINITE_EVERY steps.
enum { CHECK_FINITE_EVERY = 50 };
const char *train_find_nonfinite(const Optimizer *o, const Model *m);
// Weights and moments in a checkpoint folder: adapter files (or trained.safetensors) and optimizer.safetensors, F32.
bool train_save(const Optimizer *o, const Model *m, const char *dir, Err *e);
bool train_load_values(Model *m, const char *dir, Err *e); // of a model without adapter; E-CK-05
bool train_load_moments(Optimizer *o, const Model *m, const char *dir, Err *e);
// All trained values, those of an adapter too, in one file: what a reference policy is kept in.
bool train_values_save(const Optimizer *o, const Model *m, const char *dir, const char *file, Err *e);
bool train_values_load(Model *m, const char *dir, const char *file, Err *e); // E-CK-05
int64_t train_bytes(const Optimizer *o);

// ===================================================================================================== trainer.c
// What every trainer does around its updates: logs, guards, checkpoints, the export.

enum { TRAINER_SKIPS = 64 };
typedef struct TrainerOptions {
    int64_t max_skips; // in a row
    int64_t keep_last, keep_every;
    bool skip_outliers, old_keys;
    const char *export_type; // of whole weights: SaveOptions.type
    size_t device_free;      // of a device: bytes that were free before the weights came; 0: no such device
    size_t foretold;         // and what the memory table says of the largest pass
} TrainerOptions;
typedef struct Trainer {
    Model *m;
    Run *run;
    TrainerOptions o;
    Optimizer opt;
    // what a checkpoint holds
    int64_t step, skipped, in_a_row, outliers;
    int64_t skips[TRAINER_SKIPS], n_skips; // the latest steps that were skipped
    Window losses, norms;
    // not saved
    double started;
    int64_t first_step, disk_full;
} Trainer;
bool trainer_log(Trainer *t, Text *members, Err *e);                // a line of run.jsonl; frees members
void trainer_number(Text *t, const char *name, double v);           // adds ,"name":v; NaN and infinity as texts
bool trainer_scalar(Trainer *t, const char *tag, double v, Err *e); // TensorBoard, at t->step
bool trainer_due(int64_t every, int64_t step);
// Members of state.json, between those of the trainer itself. what: "a fine-tuning run", for E-CK-04.
void trainer_state_print(const Trainer *t, Text *out);
bool trainer_state_read(Trainer *t, const Checkpoint *c, const char *what, Err *e);
bool trainer_state_bad(const Checkpoint *c, const char *what, Err *e); // E-CK-04
bool trainer_finite(Trainer *t, Err *e);                               // E-NU-07
// A checkpoint of t->step, with further files of `more` (NULL: none). last: there is no later step at which to try again
// when the disk is full. best: the step that is never removed, -1: none. E-WR-*, E-NU-07.
typedef bool (*CheckpointFiles)(void *ctx, const char *dir, Err *e);
bool trainer_save(Trainer *t, const char *state, int64_t best, bool last, CheckpointFiles more, void *ctx, Err *e);
bool trainer_resume(Trainer *t, const Checkpoint *c, int64_t best,
                    Err *e); // moments, weights; after the state was read
typedef struct Culprit {     // the first op whose output is not finite: "text.layer.3 matmul"; "": none yet
    char op[200];
} Culprit;
void culprit_watch(Culprit *c); // from here on; NULL: no longer
// A step that is not applied. bad: the samples whose loss is not finite, NULL: it is the gradient's norm. E-NU-04 when the
// run has to stop.
bool trainer_skip(Trainer *t, const char *bad, const char *ids, double norm, const Culprit *culprit, Err *e);
// The windows of loss and norm of a finite step; *skip: it is far out and not to be applied.
bool trainer_far(Trainer *t, const char *ids, double loss, double norm, bool *skip);
// After the first step on a device: what of its memory is gone, beside what the arenas hold and the table says.
void trainer_memory(const Trainer *t);
bool trainer_end(Trainer *t, int64_t step, Err *e); // the last line, and RUN/export of that step; -1: of the last

// ========================================================================================================= sft.c
// Supervised fine-tuning.

typedef struct SftOptions {
    uint64_t seed;
    bool in_order; // no shuffling
    double epochs; // when steps is 0
    int64_t steps;
    int64_t batch, accumulate; // units (Dataset.units) in a micro-batch; micro-batches in an update
    int64_t pack_tokens;       // most tokens in a micro-batch (at least one sequence); 0: no limit
    int64_t keep;              // blocks of each tower that keep what they computed
    bool dropout;              // some LoRA has dropout
    double align;              // weight of the mean loss over picture rows with targets of their own ("cells"); 0: off
    bool per_answer;           // every sample's targets share its weight, instead of each target having it
    AdamOptions adam;
    Schedule schedule;                          // its steps are those of the plan
    double warmup_part;                         // > 0: warm-up as a part of the steps
    int64_t eval_every, eval_samples, patience; // samples: units are taken whole
    double min_delta;
    int64_t save_every;
    int64_t sample_every, samples, sample_tokens;
    bool export_best; // export the checkpoint with the best evaluation instead of the last
    TrainerOptions trainer;
} SftOptions;
typedef struct SftPlan {                                     // of a whole run: what comes is known before it starts
    int64_t steps, end;                                      // updates; units
    int64_t units, samples, spans, tokens, patches, targets; // largest of a micro-batch, or a bound in long runs
    int64_t all_tokens;                                      // about, in long runs; rows that are shared count once
} SftPlan;
void sft_plan(const Dataset *d, const SftOptions *o, SftPlan *p);
void sft_eval_plan(const Dataset *d, const SftOptions *o, SftPlan *p); // of one evaluation on d
// Trains m, which is open for training (model_train_open), from the checkpoint `from` (NULL or step -1: from the start).
// Ends with a checkpoint, and when *finished with RUN/export; else it was asked to stop. E-NU-04, E-WR-*, E-CK-*, E-ME-01.
bool sft_run(Model *m, const Tokenizer *t, const Dataset *train, const Dataset *eval, Run *run, const SftOptions *o,
             const Checkpoint *from, bool *finished, Err *e);

// ======================================================================================================== grpo.c
// The mathematics of group-relative policy optimisation on arrays: no model, no trainer. Notation of grpo.c: sequence i
// (a completion) with tokens t; m = mask, l = log-probability, rho = exp(l - l_old), A = advantage, H = entropy in nats.
// All arrays are doubles and sums run in the order of the rows, so a result depends on nothing else.

enum GrpoBaseline { BASELINE_MEAN, BASELINE_OTHERS };           // eq. 3: group mean; RLOO: mean of the other members
enum GrpoScale { SCALE_GROUP, SCALE_BATCH, SCALE_NONE };        // eq. 3: deviation of the group; of the batch; Dr. GRPO
enum GrpoWeights { WEIGHTS_OFF, WEIGHTS_ENTROPY, WEIGHTS_TOP }; // 1; eq. 6; the most uncertain tokens only
enum GrpoTerm { TERM_REINFORCE, TERM_CLIP, TERM_CISPO, TERM_SAPO };
enum GrpoRatio { RATIO_TOKEN, RATIO_SEQUENCE, RATIO_SEQUENCE_TOKEN }; // PPO; GSPO; GSPO-token (gradient per token)
enum GrpoNorm { NORM_SEQUENCES, NORM_GRPO, NORM_BNPO, NORM_DR_GRPO, NORM_DAPO, NORM_LUSPO };
enum { GRPO_BASELINES = 2, GRPO_SCALES = 3, GRPO_WEIGHTS = 3, GRPO_TERMS = 4, GRPO_RATIOS = 3, GRPO_NORMS = 6 };
extern const char *const grpo_baseline_names[GRPO_BASELINES];
extern const char *const grpo_scale_names[GRPO_SCALES];
extern const char *const grpo_weights_names[GRPO_WEIGHTS];
extern const char *const grpo_term_names[GRPO_TERMS];
extern const char *const grpo_ratio_names[GRPO_RATIOS];
extern const char *const grpo_norm_names[GRPO_NORMS];

// Every switch; each stands beside its formula in grpo.c. A preset sets all of them.
typedef struct GrpoLoss {
    const char *preset;
    // advantages
    enum GrpoBaseline baseline; //
    enum GrpoScale scale;       //
    int ddof;                   // deviation over n - ddof: 0 the paper, 1 the trainers
    double eps;                 // A = (r - mean) / (deviation + eps)
    double spread_tol;          // a group with max r - min r <= this has A = 0 exactly
    bool normalize_then_sum;    // GDPO: every reward is normalised before the weighted sum
    bool missing_as_zero;       // a row without any reward counts as reward 0 (trl 0.26); else it is left out
    // which prompts and sequences take part
    bool dynamic_sampling;            // DAPO: prompts whose answer reward tells nothing are drawn anew
    double dynamic_low, dynamic_high; // keep low < mean < high
    bool mask_truncated;              // DAPO's overlong filtering
    // token weights
    enum GrpoWeights weights; //
    double tau, w_max;        // eq. 6; w_max 0: no cap
    double top_quantile;      // share of tokens that WEIGHTS_TOP keeps
    // policy term
    enum GrpoTerm term;           //
    enum GrpoRatio ratio;         //
    double eps_low, eps_high;     // clip bounds 1 - eps_low, 1 + eps_high (clip-higher: eps_high > eps_low)
    double delta;                 // rho is cut to at most delta before it meets A (trl); 0: off
    double dual_clip;             // the same bound c for A < 0 only (1912.09729); 0: off
    double cispo_cap;             // eps_max of CISPO
    double sapo_plus, sapo_minus; // temperatures tau of SAPO for A > 0 and otherwise
    double log_ratio_limit;       // l - l_old and l_ref - l are clamped to +- this; 0: never
    // KL to the reference
    double beta;                 // 0: no KL
    bool kl_unbiased;            // k3 times rho, rho differentiated
    bool kl_in_flat_groups;      // groups without spread keep their KL term
    double kl_limit;             // k3 is cut to at most this; 0: never
    enum GrpoNorm norm;          //
    double sft_coef, bonus_coef; // of the two terms below; 0: off
} GrpoLoss;
bool grpo_preset(GrpoLoss *o, const char *name); // surg-r1, surgery-r1, trl, vlm-r1, dapo; false: no such preset
const char *grpo_preset_name(int k);             // NULL behind the last
bool grpo_loss_check(const GrpoLoss *o, Where at, Err *e); // E-CF-02
void grpo_loss_print(const GrpoLoss *o, Text *out);        // one JSON object, every switch

// Advantages of groups * G completions; row j belongs to group j / G.
typedef struct Advantages {
    int64_t rows, groups, flat_groups;
    double *reward, *advantage; // [rows] weighted sum of rewards; A
    bool *counted;              // [rows] false: every reward is missing, A = 0
    double *mean, *deviation;   // [groups] of the sums
    bool *flat;                 // [groups] without spread: A = 0
    double batch_deviation;
} Advantages;
// rewards [rows, K], NaN: this reward does not apply; weights [K]. E-NU-06: a reward is infinite or A is out of bounds.
bool group_advantages(const GrpoLoss *o, const double *rewards, const double *weights, int64_t K, int64_t groups,
                      int64_t G, Advantages *a, Err *e);
void advantages_free(Advantages *a);
// Whether a prompt tells anything: its answer rewards [G] (NaN: none) differ and low < mean < high.
bool group_informative(const GrpoLoss *o, const double *answer_reward, int64_t G);

bool completion_truncated(const int32_t *ids, int64_t n, int32_t eos, int32_t pad); // the last id is neither
typedef struct Completions {
    int64_t n, truncated, dropped_groups, tokens;         // tokens: with mask 1
    double clipped_ratio, mean_length, mean_ended_length; // the last: of those that were not truncated; NaN: none
} Completions;
// Sequence i has the tokens first[i] .. first[i + 1] - 1. mask [first[n]] = 1, but 0 in truncated sequences with
// mask_truncated; dropped [n / G] (may be NULL): all members are masked.
void completion_mask(const GrpoLoss *o, const int64_t *first, const bool *truncated, int64_t n, int64_t G,
                     uint8_t *mask, bool *dropped, Completions *c);

// Entropies [n] of rows with V choices: refused out of [-1e-6, ln V + 1e-6] (E-NU-09), clamped to [0, ln V] within.
bool entropies_clamp(double *entropy, const uint8_t *mask, int64_t n, int64_t V, Err *e);
// Eq. 6 over one sequence: w [n] with mean 1 over mask 1, 0 elsewhere. Returns the effective token fraction
// (sum w)^2 / (L sum w^2); NaN when there is no token.
double entropy_weights(const double *entropy, const uint8_t *mask, int64_t n, double tau, double w_max, double *w);
// w = 1 where mask 1 and H >= the (1 - q) quantile over all tokens with mask 1, else 0; returns it, NaN without tokens.
double entropy_top_mask(const double *entropy, const uint8_t *mask, int64_t n, double q, double *w);
typedef struct WeightStats {
    double threshold;                   // of WEIGHTS_TOP; NaN: none
    double mean_fraction, low_fraction; // effective token fractions over sequences with tokens; NaN: none
    int64_t sequences, low, kept;       // with tokens; with a fraction below 0.1; tokens with w > 0
} WeightStats;
// What o->weights says, over B sequences at once: for WEIGHTS_TOP the quantile is that of everything given here (the
// whole rollout batch, so that it does not depend on micro-batches). Warns E-NU-11 when a fraction is below 0.1.
void grpo_weights(const GrpoLoss *o, const double *entropy, const uint8_t *mask, const int64_t *first, int64_t B,
                  double *w, WeightStats *s);

typedef struct GrpoBatch { // a micro-batch; N = first[B]
    int64_t B;
    const int64_t *first;               // [B + 1]
    const uint8_t *mask;                // [N]
    const double *lp, *old_lp, *ref_lp; // [N] old_lp NULL: rho = 1, with its gradient; ref_lp NULL: no KL
    const double *entropy, *weight;     // [N] for the statistics (may be NULL); of the policy term (NULL: 1)
    const double *advantage;            // [B]
    const bool *flat;                   // [B] its group has no spread (may be NULL)
    // Of the whole update, all micro-batches together:
    int64_t accumulate, sequences, tokens; // micro-batches K; sequences K B; sum of all masks
    int64_t max_tokens;                    // L_max
} GrpoBatch;
typedef struct GrpoStats {
    int64_t tokens, ratios;                  // with mask 1; ratios: one per token, or per sequence with tokens
    int64_t ratio_clamped, kl_clamped;       // by log_ratio_limit and kl_limit
    double policy, kl, entropy;              // policy part of the loss; means over tokens of k3 (as used) and H
    double ratio_mean, ratio_min, ratio_max; // 1 before the first update
    double drift_mean, drift_max;            // |l - l_old| over tokens
    double clip_low, clip_high, clip_cispo;  // shares of the ratios
} GrpoStats;
// The loss, and dlp [N] = d loss / d lp (0 where mask is 0). s may be NULL.
double grpo_loss(const GrpoLoss *o, const GrpoBatch *b, double *dlp, GrpoStats *s);
// -coef / tokens * sum m l over demonstrations (tokens: of the update); adds to dlp.
double grpo_sft_term(double coef, const double *lp, const uint8_t *mask, int64_t n, int64_t tokens, double *dlp);
// -coef / tokens * sum m H; dentropy [n] = d loss / d H. The gradient of H itself is up to the head.
double grpo_bonus_term(double coef, const double *entropy, const uint8_t *mask, int64_t n, int64_t tokens,
                       double *dentropy);

// ====================================================================================================== refine.c
// Stage 4 of Surg-R1: sample every training record, sort the hard ones out (eq. 8), label all of them again, train, repeat.

enum RefinePick { PICK_FIRST, PICK_LOGPROB, PICK_FRESH }; // which right rollout becomes the label of an easy record
enum RefineTeacher { TEACHER_NONE, TEACHER_SCENE, TEACHER_BATCH, TEACHER_MODEL };
enum { REFINE_MOST_ROLLOUTS = 64 };

typedef struct Rollout { // one sampled completion
    bool right;          // y_hat = y
    bool usable;         // ended by itself, and short enough to be kept whole
    double logprob;      // mean over its tokens
    int64_t offset, len; // of its line in rollouts.jsonl
} Rollout;
// Eq. 8: none of the K is right.
bool refine_hard(const Rollout *r, int K);
// The rollouts that may become the label, best first, into order [K + 1]; returns how many. PICK_FRESH: r[K] is one more
// that eq. 8 did not see.
int refine_order(const Rollout *r, int K, enum RefinePick pick, int *order);

typedef struct RefineOptions {
    const char *model, *adapter; // to begin with; adapter NULL: none
    const char *const *data;     // records with labels
    int n_data;
    const char *image_root; // NULL: beside each file
    const char *out;
    int64_t iterations, rollouts, batch; // N; K; records sampled together
    int64_t limit;                       // records to take, a draw by seed; 0: all
    uint64_t seed;
    GenerationConfig g;   // its seed is not read
    PromptOptions prompt; // its new_tokens are g's
    int64_t min_pixels, max_pixels;
    LoadOptions load;
    const Ops *device;
    enum RefinePick pick;
    enum RefineTeacher teacher;
    const char *teacher_model; // folder of TEACHER_MODEL
    TeachOptions teach;        // of TEACHER_SCENE
    SynthRequests ask;         // of TEACHER_BATCH; data, image_root, knowledge, out and words are set here
    const char *const *responses;
    int n_responses;
    bool refused_to_teacher; // easy records of which every label is refused go to the teacher; else they are left out
    bool any_language;       // thoughts need not be English sentences
    bool consistent;         // a rollout whose thought does not end in its answer becomes no label
    int64_t min_words, max_words;
    const char *const *knowledge; // files
    int n_knowledge;
    const char *const *mix; // training files of every iteration beside the pseudo-labels
    int n_mix;
    bool aggregate_all;     // pseudo-labels of all iterations so far, not of the last one only
    bool from_first;        // every training starts from the first model, not from the last one
    bool measure;           // sample the last model too
    bool hash_base;         // tell the first model by all its bytes
    const char *const *sft; // options of surgr1 sft; the first n_shared repeat options of this command
    int n_sft, n_shared;
    const char *options_json; // members "options" and "origins" for config.json
} RefineOptions;
// Runs or resumes all of it; prints the tables on standard output. *status: EXIT_OK, EXIT_STOPPED (on request, or a teacher's
// answers are wanted), or the exit code of a training that failed. E-*.
bool refine_run(const RefineOptions *o, int *status, Err *e);

// ==================================================================================================== grpo_run.c
// Reinforcement learning with group-relative advantages: the loop around grpo.c.

enum GrpoReference { REFERENCE_BASE, REFERENCE_INITIAL }; // adapter off; the policy as it was before step 0
// auto: the sampler where it has the bits of the training pass or nearly so (F32 activations), else one more pass: in BF16 both
// round apart, and the ratio of a first update would not be 1.
enum GrpoScore { SCORE_AUTO, SCORE_SAMPLER, SCORE_PASS };
typedef struct GrpoOptions {
    GrpoLoss loss;
    RewardOptions reward;
    uint64_t seed;
    double epochs;          // times through the prompts, when steps is 0
    int64_t steps;          // updates
    int64_t prompts, group; // of a rollout; completions of each prompt, at least 2
    int64_t updates, inner; // parts of a rollout, an update each; times through the rollout
    int64_t micro,
        generate_batch;     // groups in a pass; prompts drawn from together (0: all); neither changes what is drawn
    SampleParams sample;    // temperature, top_k, ...; its seed is not looked at
    int64_t max_new_tokens; //
    enum GrpoScore score;   // who says what old log-probabilities and entropies were
    int64_t keep;           // as TrainBatch.keep
    bool dropout;           // some LoRA has dropout
    enum GrpoReference reference; // of the KL term; without an adapter always the initial policy
    AdamOptions adam;             //
    Schedule schedule;            // its steps are those of the run
    double warmup_part;           // > 0: warm-up as a part of the steps
    int64_t max_redraws;          // rounds of dynamic sampling in a rollout
    int64_t sft_batch;            // demonstrations in an update
    double gate;                  // least format reward before step 0; 0: off
    double task_floor;            // least share of right sampled answers of a task; 0: off
    int64_t gate_samples;         // prompts that both are measured on
    bool keep_weak;               // train tasks below the floor anyway
    int64_t eval_every, eval_samples, save_every;
    int64_t log_groups; // of a rollout, into rollouts.jsonl; -1: all
    TrainerOptions trainer;
} GrpoOptions;
void grpo_largest(const PromptSet *train, const GrpoOptions *o,
                  SftPlan *p); // samples, tokens, patches, targets of a pass
// What rollouts, and the answers of gate and evaluation, hold at most (eval: may be empty); what the reference does.
GenerateBytes grpo_sampling(const Model *m, const PromptSet *train, const PromptSet *eval, const GrpoOptions *o);
size_t grpo_reference_bytes(const Model *m, const GrpoOptions *o);
// Trains m, which is open for training, from the checkpoint `from` (NULL or step -1: from the start). eval (first judge of
// the gate) and sft (demonstrations) may be NULL. run->with_rollouts is set. Ends with a checkpoint, and when *finished
// with RUN/export; else it was asked to stop. E-NU-04, -08, -10 the gate, -12 no task is left; E-CF-02, E-WR-*, E-CK-*.
bool grpo_run(Model *m, const Tokenizer *t, const PromptSet *prompts, const PromptSet *eval, const Dataset *sft,
              Run *run, const GrpoOptions *o, const Checkpoint *from, bool *finished, Err *e);

// ====================================================================================================== surgr1.c
// Option tables, subcommands, help.
int surgr1_main(int argc, char **argv);

#endif
