"""Writes tokenizer_unicode.h from a list of character classes and normalisation data.

    python3 test/reference/make_unicode.py unicode_classes.txt > tokenizer_unicode.h

The list has one record per line (numbers hexadecimal, ccc decimal; # starts a comment):
    L|N|W first last   code points that are letters, numbers, white space for the split pattern
    C cp ccc           canonical combining class, where it is not 0
    D cp a b           canonical decomposition that composes back (primary composite)
    X cp a [b]         canonical decomposition that does not
Hangul syllables follow from arithmetic and are not listed.
"""
import sys

HEAD = """\
// tokenizer_unicode.h - character data for tokenizer.c, written by test/reference/make_unicode.py. Do not edit.
//
// What it is:  which code points are letters, numbers and white space (Unicode 16.0, as the split pattern of the Hugging
//              Face tokenizers library 0.23 sees them) and what NFC needs (Unicode 9.0, as its normaliser has it: later
//              characters neither reorder nor compose). Hangul syllables follow from arithmetic and are not listed.
// What it is not: general Unicode data. Nothing but tokenizer.c should include it.
// Tables are rows of 2 or 3 columns, one after another, sorted by the first column.
// Origin:      numbers derived from the Unicode Character Database, copyright Unicode, Inc., under the Unicode License
//              V3 (https://www.unicode.org/license.txt).
#ifndef SURGR1_TOKENIZER_UNICODE_H
#define SURGR1_TOKENIZER_UNICODE_H
#include <stdint.h>
// clang-format off
"""


def main(path):
    ranges, ccc, pairs, lasting = {"L": [], "N": [], "W": []}, {}, {}, {}
    for line in open(path, encoding="ascii"):
        part = line.split("#")[0].split()
        if not part:
            continue
        if part[0] in ranges:
            ranges[part[0]].append((int(part[1], 16), int(part[2], 16)))
        elif part[0] == "C":
            ccc[int(part[1], 16)] = int(part[2])
        elif part[0] == "D":
            pairs[int(part[1], 16)] = (int(part[2], 16), int(part[3], 16))
        elif part[0] == "X":
            lasting[int(part[1], 16)] = tuple(int(p, 16) for p in part[2:])
        else:
            sys.exit(f"{path}: a line begins with {part[0]!r}")
    check(ccc, pairs, lasting)
    runs = []  # first, last, ccc
    for cp in sorted(ccc):
        if runs and runs[-1][1] == cp - 1 and runs[-1][2] == ccc[cp]:
            runs[-1][1] = cp
        else:
            runs.append([cp, cp, ccc[cp]])
    print(HEAD)
    for name, what in (("L", "letter"), ("N", "number"), ("W", "space")):
        table(f"uint32_t unicode_{what}[]", "2 columns: first and last code point of each range.", sorted(ranges[name]))
    table("uint32_t unicode_ccc[]", "3 columns: first and last code point of a run, and its canonical combining class.", runs)
    by_cp = sorted(pairs)
    table("uint32_t unicode_pair[]", "3 columns: a character and the two that it decomposes into and composes from.",
          [(cp, *pairs[cp]) for cp in by_cp])
    order = sorted(range(len(by_cp)), key=lambda k: pairs[by_cp[k]])
    table("uint16_t unicode_pair_order[]", "Rows of unicode_pair by what they compose from.", [(k,) for k in order])
    table("uint32_t unicode_single[]", "2 columns: a character and the one that replaces it for good.",
          [(cp, lasting[cp][0]) for cp in sorted(lasting) if len(lasting[cp]) == 1])
    table("uint32_t unicode_split[]", "3 columns: a character and the two that replace it for good.",
          [(cp, *lasting[cp]) for cp in sorted(lasting) if len(lasting[cp]) == 2])
    print("#endif")


def check(ccc, pairs, lasting):
    """What normalising one character and the marks behind it, apart from the rest, relies on."""
    decompositions = {**pairs, **lasting}
    seconds = {b for _, b in pairs.values()} | set(range(0x1161, 0x1176)) | set(range(0x11A8, 0x11C3))
    for cp in pairs:
        first = cp
        while first in decompositions:
            first = decompositions[first][0]
        assert cp in ccc or (first not in ccc and first not in seconds), f"U+{cp:04X} can compose with what is before it"
    assert len(set(pairs.values())) == len(pairs), "two characters compose from the same pair"


def table(declaration, comment, rows):
    print(f"// {comment}\nstatic const {declaration} = {{")
    line = "   "
    for row in rows:
        text = " " + ",".join(number(v) for v in row) + ","
        if len(line) + len(text) > 120:
            print(line)
            line = "   "
        line += text
    print(line + "\n};\n")


def number(v):
    return str(v) if v < 100000 else f"0x{v:X}"


main(*sys.argv[1:])
