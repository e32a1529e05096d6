// vocabulary.c - names and numbers that several files share, as the data sets' owners give them.
//
// What it is:  CholecT50's instruments, verbs, targets and its 100 triplets; SAR-RARP50's actions.
// What it is not: the vocabulary of a set that only its importer knows (import_*.c), or aliases (surgery/answer.c).
// Read before: surgr1.h, section data/vocabulary.c.  Read next: tasks.c.
#include "../surgr1.h"

// By id: CAMMA-public/cholect50, docs/README-Format.md.
const char *const cholect50_instruments[6] = {"grasper", "bipolar", "hook", "scissors", "clipper", "irrigator"};
const char *const cholect50_verbs[10] = {"grasp", "retract",  "dissect",  "coagulate", "clip",
                                         "cut",   "aspirate", "irrigate", "pack",      "null_verb"};
const char *const cholect50_targets[15] = {
    "gallbladder", "cystic_plate",          "cystic_duct", "cystic_artery", "cystic_pedicle", "blood_vessel",
    "fluid",       "abdominal_wall_cavity", "liver",       "adhesion",      "omentum",        "peritoneum",
    "gut",         "specimen_bag",          "null_target"};

// Instrument, verb, target of each: CAMMA-public/ivtmetrics, ivtmetrics/maps.txt. The last six are idle instruments.
const uint8_t cholect50_triplets[100][3] = {
    {0, 2, 1},  {0, 2, 0},  {0, 2, 10}, {0, 0, 3},  {0, 0, 2},  {0, 0, 4},  {0, 0, 1},  {0, 0, 0},  {0, 0, 12},
    {0, 0, 8},  {0, 0, 10}, {0, 0, 11}, {0, 0, 13}, {0, 8, 0},  {0, 1, 2},  {0, 1, 4},  {0, 1, 1},  {0, 1, 0},
    {0, 1, 12}, {0, 1, 8},  {0, 1, 10}, {0, 1, 11}, {1, 3, 7},  {1, 3, 5},  {1, 3, 3},  {1, 3, 2},  {1, 3, 4},
    {1, 3, 1},  {1, 3, 0},  {1, 3, 8},  {1, 3, 10}, {1, 3, 11}, {1, 2, 9},  {1, 2, 3},  {1, 2, 2},  {1, 2, 1},
    {1, 2, 0},  {1, 2, 10}, {1, 0, 1},  {1, 0, 8},  {1, 0, 13}, {1, 1, 2},  {1, 1, 4},  {1, 1, 0},  {1, 1, 8},
    {1, 1, 10}, {2, 3, 5},  {2, 3, 3},  {2, 3, 2},  {2, 3, 4},  {2, 3, 1},  {2, 3, 0},  {2, 3, 8},  {2, 3, 10},
    {2, 5, 5},  {2, 5, 11}, {2, 2, 5},  {2, 2, 3},  {2, 2, 2},  {2, 2, 1},  {2, 2, 0},  {2, 2, 10}, {2, 2, 11},
    {2, 1, 0},  {2, 1, 8},  {3, 3, 10}, {3, 5, 9},  {3, 5, 5},  {3, 5, 3},  {3, 5, 2},  {3, 5, 1},  {3, 5, 8},
    {3, 5, 10}, {3, 5, 11}, {3, 2, 1},  {3, 2, 0},  {3, 2, 10}, {4, 4, 5},  {4, 4, 3},  {4, 4, 2},  {4, 4, 4},
    {4, 4, 1},  {5, 6, 6},  {5, 2, 2},  {5, 2, 4},  {5, 2, 1},  {5, 2, 0},  {5, 2, 10}, {5, 7, 7},  {5, 7, 4},
    {5, 7, 8},  {5, 1, 0},  {5, 1, 8},  {5, 1, 10}, {0, 9, 14}, {1, 9, 14}, {2, 9, 14}, {3, 9, 14}, {4, 9, 14},
    {5, 9, 14}};

// By file id: SAR-RARP50, action_discrete.txt.
const char *const rarp50_actions[8] = {"other",
                                       "picking-up the needle",
                                       "positioning the needle tip",
                                       "pushing the needle through the tissue",
                                       "pulling the needle out of the tissue",
                                       "tying a knot",
                                       "cutting the suture",
                                       "returning/dropping the needle"};
