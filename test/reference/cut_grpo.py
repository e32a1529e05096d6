#!/usr/bin/env python3
"""Cut a small set out of a full set of GRPO cases, for test/fixtures/oracle/grpo.

    python make_grpo.py --seed 101 --vary --out FULL     (beside the data of ../shared/oracle/grpo)
    python cut_grpo.py FULL OUT [--bytes 90000]

Of every file the smallest case of each kind is kept (by the settings that choose a formula, and by the first word of its
id), the smallest first, while there is room in the file's share.  Cases are copied byte for byte.
"""
import argparse
import json
import os

SWITCHES = ["loss_type", "level", "kl_bias_correction", "scale", "ddof", "missing_rows", "objective", "entropy_weights", "norm",
            "mask_truncated"]
SHARES = {"advantage_cases.jsonl": 0.14, "batch_cases.jsonl": 0.03, "eq7_cases.jsonl": 0.43, "loss_cases.jsonl": 0.40}
NUMBERS = ["delta", "beta", "entropy_coef", "old_logp"]  # on or off


def kind(case):
    features = [case.get(k) for k in SWITCHES] + [bool(case.get(k)) for k in NUMBERS]
    features += [case.get("top_entropy_quantile", 1) < 1, case["id"].split("_")[0] if "loss_type" not in case else ""]
    return json.dumps(features)


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("full")
    ap.add_argument("out")
    ap.add_argument("--bytes", type=int, default=90000)
    a = ap.parse_args()
    os.makedirs(a.out, exist_ok=True)
    total = 0
    for f, share in SHARES.items():
        lines = open(os.path.join(a.full, f), encoding="ascii").readlines()
        kinds, kept, size = set(), [], 0
        for i in sorted(range(len(lines)), key=lambda i: (len(lines[i]), i)):
            k = kind(json.loads(lines[i]))
            if k not in kinds and size + len(lines[i]) <= share * a.bytes:
                kept.append(i)
                size += len(lines[i])
            kinds.add(k)
        with open(os.path.join(a.out, f), "w", encoding="ascii") as out:
            out.writelines(lines[i] for i in sorted(kept))
        print(f"{f:24s} {len(kept):4d} cases {size:7d} bytes")
        total += size
    print(f"{total} bytes")


if __name__ == "__main__":
    main()
