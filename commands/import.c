// import.c - surgr1 import SET ROOT: a public data set's own files into records.
//
// What it is:  glue: options in, import_run, one JSON report out.
// What it is not: a format (../data/import_*.c).
// Read before: commands.h.  Read next: ../data/import.c.
#include "commands.h"

static Many evals, besides;
static int64_t import_seed, import_balance, import_every = 1;
static int import_naming;
static ImportOptions import = {.weight = 1};
static const char *const naming_words[] = {NULL, "seconds0", "seconds1", "frames0", "frames1"};

// clang-format off
static Option import_options[] = {
    TEXT("out", &import.out, "DIR", "folder for train.jsonl, val.jsonl and test.jsonl"),
    TEXT("frames", &import.frames, "DIR", "folder of the extracted frames (default: where the data set has them)"),
    TEXT("image-root", &import.image_root, "DIR", "what picture paths start from (default: DIR of --out when the frames are beneath it, else ROOT)"),
    FLAG("absolute-images", &import.absolute_images, "write absolute picture paths"),
    CHOICE("frame-names", &import_naming, "auto|seconds0|seconds1|frames0|frames1", "how frames are numbered where a set leaves it open"),
    TEXT("variant", &import.variant, "NAME", "which of the published splits, or a file.csv of video,split"),
    TEXT("splits", &import.splits, "LIST", "those of train,val,test that are wanted"),
    TEXT("tasks", &import.tasks, "LIST", "tasks wanted, with commas (default: all the set has labels for)"),
    REAL("fps", &import.fps, "F", "frames a second to keep; 0: as the set is commonly used", 0, 1000),
    INT("every", &import_every, "K", "of the labelled frames that are left, every K-th", 1, 1000000),
    INT("balance", &import_balance, "N", "at most N records of a class, task and split; 0: all; -1: as many as the rarest has", -1, 1e12),
    INT("seed", &import_seed, "S", "of the balance and of the wording", 0, 9007199254740992.0),
    REAL("weight", &import.weight, "W", "\"weight\" of every record: the set's share in a mixture", 0, 1000),
    MANY("eval", &evals, "SPLIT", "evaluation split in use: SET, SET:SPLIT, SET:VARIANT:SPLIT, or all; may be given again", 64),
    MANY("with", &besides, "FILE", "records used together with these: no patient on both sides; may be given again", 64),
    TEXT("overlap-table", &import.overlap_table, "FILE", "csv endoscapes,camma: videos that are one patient"),
    FLAG("allow-overlap", &import.allow_overlap, "list patients on both sides in the report instead of refusing"),
    FLAG("skip-unknown", &import.skip_unknown, "leave labels outside of the vocabulary and boxes outside of the picture out, and count them"),
    FLAG("drop-black", &import.drop_black, "decode every frame and leave black ones out"),
    CHOICE("label-base", &import.label_base, "auto|0|1", "sar-rarp50, autolaparo: the first class number where it cannot be seen"),
    REAL("cvs-part", &import.cvs_part, "P", "cholec80-cvs: the last part of the frames before the first clip; 0: 0.15", 0, 1),
    INT("cvs-score", &import.cvs_score, "N", "cholec80-cvs: a criterion is met from this score on; 0: 2", 0, 2),
    TEXT("spec", &import.spec, "FILE", "generic: the mapping of columns to fields (JSON)"),
    FLAG("choices", &import.wording.choices, "multiple choice: options behind the question"),
    FLAG("compat", &import.wording.compat, "question shapes of the public Surg-R1 model"),
    FLAG("reasoning", &import.wording.reasoning, "with the system prompt that asks for <think> and <answer>; with --no-answers"),
    FLAG("no-answers", &import.no_answers, "without the assistant's turn"),
    END};
// clang-format on

static int run_import(char **args, int n) {
    Err e = {0};
    Text report = {0};
    (void)n;
    if (!import.out) return usage("--out", "a folder for the records", "none", "give --out DIR");
    if (!import_what(args[0])) {
        Text known = {0};
        for (int i = 0; import_names[i]; i++) text_addf(&known, "%s%s", i ? ", " : "", import_names[i]);
        int rc = usage("SET", known.p, quoted(args[0], strlen(args[0])), "choose one of them");
        text_free(&known);
        return rc;
    }
    if (!strcmp(args[0], "generic") != !!import.spec)
        return usage("--spec", "a mapping with the set \"generic\" and with no other", import.spec ? "one" : "none",
                     "see data/README.md");
    if (import.wording.reasoning && !import.no_answers)
        return usage("--reasoning", "--no-answers beside it", "none", "the labels are no reasoning: add --no-answers");
    import.dataset = args[0], import.root = args[1];
    import.eval = evals.p, import.n_eval = evals.n, import.beside = besides.p, import.n_beside = besides.n;
    import.seed = import.wording.seed = (uint64_t)import_seed;
    import.every = import_every, import.balance = import_balance, import.frame_names = naming_words[import_naming];
    bool ok = import_run(&import, &report, &e);
    if (ok) fwrite(report.p, 1, report.len, stdout);
    text_free(&report);
    warn_summary();
    return ok ? EXIT_OK : err_report(&e);
}

const Command command_import = {
    "import",
    "import SET ROOT --out DIR",
    "Reads a public surgical data set as its owners publish it and writes records, one question about one frame each: "
    "what sft, grpo "
    "and eval read.\n"
    "Pictures are not copied and videos not decoded; data/README.md has the folders and the ffmpeg line of each set.\n"
    "SET: cholec80 cholect45 cholect50 multibypass140 sar-rarp50 endoscapes endovis18-vqa endovis18-vqla "
    "endovis17-vqla\n"
    "cholec80-cvs autolaparo pitvqa psi-ava-vqa cholectrack20 generic.\n"
    "One JSON object on standard output says what was read, kept, left out and why.",
    import_options,
    2,
    2,
    "a data set's name and its folder",
    run_import};
