// import.h - what the importers share: tables, folders of frames, vocabularies, and where a record goes.
//
// What it is:  the inner side of import.c. An importer reads the annotation files of one data set and calls item_add()
//              for every question it can ask about a frame; sampling, splits, overlap, balance and writing are done here.
// What it is not: part of the program's map. Outside there is import_run() only.
// Read before: surgr1.h, section data/import.c.  Read next: import_camma.c.
#ifndef SURGR1_IMPORT_H
#define SURGR1_IMPORT_H
#include "../surgr1.h"

// ---------------------------------------------------------------------------------------- files (import_read.c)
typedef struct Cell { // zero-terminated
    const char *p;
    size_t len;
} Cell;
typedef struct TableRow {
    Cell *cells;
    int64_t n, line; // the line it begins on, from 1
} TableRow;
typedef struct Table {
    char *file, *text;
    TableRow *rows;
    int64_t n;
    Cell *cells; // private
} Table;
// separator ',': RFC 4180 (quotes, doubled quotes, line ends inside quotes). '\t' and '|': as they stand. ' ': any run of
// blanks. UTF-8 without NUL; CRLF and a byte order mark are accepted; blank lines are skipped. E-DS-13, E-IO-*, E-JS-03.
bool table_read(Table *t, const char *path, char separator, Err *e);
// The same for text in memory; file is for messages.
bool table_text(Table *t, const char *file, const char *text, size_t size, char separator, Err *e);
void table_free(Table *t);
// The fields of row r, which has exactly (or, many: at least) n cells; E-DS-13.
bool table_columns(const Table *t, const TableRow *r, int64_t n, bool many, const char *what, Err *e);
bool table_int(const Table *t, const TableRow *r, int column, const char *name, int64_t min, int64_t max, int64_t *out,
               Err *e);
bool table_double(const Table *t, const TableRow *r, int column, const char *name, double min, double max, double *out,
                  Err *e);
bool text_int(const char *p, size_t len, int64_t *out); // digits with an optional minus and nothing else
bool text_double(const char *p, size_t len, double *out);

typedef struct Names {
    char **p;
    int64_t n;
} Names;
// The names in a folder without those that begin with a dot, in byte order.
bool folder_names(Names *names, const char *dir, Err *e); // E-IO-01
void names_free(Names *names);

typedef struct FrameFile {
    int64_t number; // the last run of digits of the name
    char *name;
} FrameFile;
typedef struct Frames { // the pictures of one folder
    char dir[1100];     // "" when there is none
    FrameFile *files;   // [n] by number
    int64_t n;
} Frames;
// dirs: folders that may hold them, the first that is there is taken; none is no error. Two pictures of one number refuse:
// E-DS-13.
bool frames_open(Frames *f, const char *const *dirs, int n_dirs, Err *e);
bool frames_list(Frames *f, const char *const *dirs, int n_dirs, Err *e); // the same with numbers that may repeat
const char *frames_find(const Frames *f, int64_t number);                 // name, or NULL
void frames_free(Frames *f);

// A Python pickle of dicts, lists, tuples, texts, numbers, booleans and None as JSON text: nothing is ever executed, and any
// other opcode refuses. E-DS-15, E-IO-*.
bool pickle_json(Text *json, const char *path, Err *e);

// The first sheet of a spreadsheet as CSV, every cell quoted: table_text reads it. E-DS-13, E-IO-*.
bool xlsx_csv(Text *csv, const char *path, Err *e);

// ------------------------------------------------------------------------------------------------------ vocabularies
typedef struct Vocabulary {
    const char *what;                // "phase of Cholec80"
    const char *const *names;        // [n] as written in an answer
    int n;                           //
    const char *const (*aliases)[2]; // pairs of another spelling and the name, ended by {NULL}; or NULL
    bool exact;                      // letters count as written; else case, blanks, _ and - do not
} Vocabulary;
int label_of(const Vocabulary *v, const char *text, size_t len); // -1: none

// ------------------------------------------------------------------------------------------------- the import itself
typedef struct ImportItem {
    TaskItem t;
    const char *class_name; // for balance and counts
    const char *source;     // JSON members of "source", or NULL
} ImportItem;

typedef struct Reason { // why something was left out
    char what[96];
    int64_t count;
    char first[300];
} Reason;

typedef struct Import {
    const ImportOptions *o;
    const char *dataset, *procedure, *variant;
    const char *image_root;               // real path that pictures' paths start from
    const struct SplitTable *split_table; // the chosen one, or NULL
    const char *(*own)[2];                // splits of the user's own: video, split
    int64_t n_own;
    int64_t (*same)[2]; // videos of Endoscapes and of the CAMMA family that are one patient
    int64_t n_same;
    bool same_known;
    bool task_wanted[TASKS], task_offered[TASKS];
    ImportItem *items;
    int64_t n, cap;
    Reason reasons[32];
    int n_reasons;
    struct KeepBlock *blocks;             // private: texts
    int64_t files, rows, frames, sampled; // annotation files, rows, frames seen; frames left after sampling
    char naming[80];                      // how frames are numbered, as found
    const char *taken[16];                // labels that only the files name (PitVQA's operations)
    int n_taken;
    const char **kept_words; // freed at the end
    double fps;              // to keep; 0: all
    int64_t bucket, seen;    // of the sampling of this video
} Import;

typedef struct ImportFrame { // one frame of one video
    const char *video, *patient, *split;
    const char *dir, *name; // its picture
    const char *image;      // set by frame_open
    int64_t frame;          // number in the source video, from 0 where the set has it so
    double fps;             // of these numbers; 0: unknown
    int64_t width, height;  // 0: unknown
    const char *source;     // further members of "source"
} ImportFrame;

const char *keep(Import *im, const char *fmt, ...) PRINTF_LIKE(2, 3);
void skip_add(Import *im, const char *what, const char *where, int64_t count);
// A label outside of its vocabulary: E-DS-12, or counted with --skip-unknown (then true).
bool unknown_label(Import *im, const Vocabulary *v, Where at, const char *text, size_t len, Err *e);
// Whether the sampling keeps this labelled frame; called once per frame of a video in order. fps: of `frame`'s numbers.
void video_begin(Import *im);
bool sample_keeps(Import *im, int64_t frame, double fps);
// Split of a video by its number or name: "train", "val", "test"; NULL when the variant does not have it (counted) or when it is
// not asked for.
const char *split_of(Import *im, const char *video, int64_t number);
bool split_wanted(const Import *im, const char *split);
bool task_on(const Import *im, enum Task t);
// The picture's path as a record names it. False when the frame is left out (counted) or, with e->code set, on an error.
// sized: also reads the picture's size.
bool frame_open(Import *im, ImportFrame *f, bool sized, Err *e);
// One question. what: told apart in the id, or NULL. Boxes are in pixels of the file; those outside of the picture refuse,
// E-DS-06 (at).
typedef struct Question {
    enum Task task;
    const char *what, *slot, *question, *answer, *class_name;
    const Vocabulary *choices;
    const Box *boxes;
    int n_boxes;
    Where at;
} Question;
bool item_add(Import *im, const ImportFrame *f, Question q, Err *e);
// All instruments of a frame from named boxes: tool, tool_box for names that occur once, tool_boxes, count.
bool tools_add(Import *im, const ImportFrame *f, const Box *boxes, int n, bool count, Where at, Err *e);

// root/name of the user's tree
const char *tree_path_of(Import *im, const char *fmt, ...) PRINTF_LIKE(2, 3);
bool read_json(Import *im, JsonDoc *doc, const char *path, Err *e); // any size up to LIMIT_TABLE_BYTES

// How numbers in frame names relate to time, for the sets that leave it to the user. `labelled` is how many seconds a video
// has labels for; fps is the video's.
typedef enum FrameNaming { NAMING_UNKNOWN, SECONDS_0, SECONDS_1, FRAMES_0, FRAMES_1 } FrameNaming;
typedef struct NamingFacts {
    bool any, zero, later; // a picture; one of number 0; one of another
    bool mod0, mod1;       // all numbers are multiples of fps; all are one more
    bool beyond, full;     // a number above the seconds; the last number is their count
} NamingFacts;
void naming_see(NamingFacts *n, const Frames *f, int64_t labelled, int64_t fps);
bool naming_tell(Import *im, const NamingFacts *n, int64_t fps, FrameNaming *out, Err *e); // E-DS-14
int64_t naming_number(FrameNaming n, int64_t frame, int64_t fps); // of the picture of 0-based video frame; -1: none

typedef bool (*Importer)(Import *im, Err *e);
bool import_cholec80(Import *im, Err *e);
bool import_cholect50(Import *im, Err *e);
bool import_cholect45(Import *im, Err *e);
bool import_cholectrack20(Import *im, Err *e);
bool import_cholec80_cvs(Import *im, Err *e);
bool import_endoscapes(Import *im, Err *e);
bool import_multibypass(Import *im, Err *e);
bool import_sar_rarp50(Import *im, Err *e);
bool import_autolaparo(Import *im, Err *e);
bool import_endovis18_vqa(Import *im, Err *e);
bool import_endovis18_vqla(Import *im, Err *e);
bool import_endovis17_vqla(Import *im, Err *e);
bool import_pitvqa(Import *im, Err *e);
bool import_psi_ava_vqa(Import *im, Err *e);
bool import_generic(Import *im, Err *e);

extern const Vocabulary cholec80_phases, cholec_tools;

#endif
