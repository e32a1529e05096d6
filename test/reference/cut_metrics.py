#!/usr/bin/env python3
"""Cut a small set out of a full set of metric cases, for test/fixtures/oracle/metrics.

    python make_metrics.py --out FULL --seed 101        (beside the data of ../shared/oracle/metrics)
    python cut_metrics.py FULL OUT [--bytes 140000]

Of every file the smallest case of each kind is kept (by its "kind" or "note", and by what not all cases have), the
files in turn, while there is room.  Cases are copied byte for byte.
"""
import argparse
import json
import os


def kind(case):
    features = [case.get("kind", case.get("note", "")), case.get("format", ""), "expect_legacy" in case, "scores" in case]
    features += [case.get("nphase", 0) == 7, len(case.get("names", []))]
    return json.dumps(features)


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("full")
    ap.add_argument("out")
    ap.add_argument("--bytes", type=int, default=140000)
    a = ap.parse_args()
    os.makedirs(a.out, exist_ok=True)
    cases = []  # (round, size, file, line): the n-th kind of every file, by size, before the kind after it
    for f in sorted(f for f in os.listdir(a.full) if f.endswith(".jsonl")):
        lines = open(os.path.join(a.full, f), encoding="ascii").readlines()
        kinds = set()
        for i in sorted(range(len(lines)), key=lambda i: (len(lines[i]), i)):
            k = kind(json.loads(lines[i]))
            if k not in kinds:
                cases.append((len(kinds), len(lines[i]), f, i, lines[i]))
            kinds.add(k)
    total, kept = 0, {}
    for turn, size, f, i, line in sorted(cases):
        if turn == 0 or total + size <= a.bytes:
            kept.setdefault(f, []).append((i, line))
            total += size
    for f, lines in sorted(kept.items()):
        with open(os.path.join(a.out, f), "w", encoding="ascii") as out:
            out.writelines(line for _, line in sorted(lines))
        print(f"{f:24s} {len(lines):4d} cases {sum(len(line) for _, line in lines):7d} bytes")
    print(f"{total} bytes")


if __name__ == "__main__":
    main()
