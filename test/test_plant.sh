#!/bin/sh
# test_plant.sh ORACLE ROOT - proves that the comparisons of test_oracle can fail: every kind of value that it compares
# in ROOT is damaged in one element (--plant), in the first case that has it, and that case must then fail, alone.
# Training has few kinds of values in many cases: each of its cases is damaged in each kind, and in whole-file faults.
oracle=$1 root=$2 passed=0 failed=0
list=$(mktemp) && trap 'rm -f "$list"' EXIT
# "     CASE  VALUE  ERROR <= LIMIT  UNIT": one line per value name; of the numbered rows of a table the first one is enough.
"$oracle" --root "$root" --verbose 2>/dev/null | awk -F '  +' '/^     / {
        value = $3; sub(/, (mean|far off)$/, "", value)
        kind = value; sub(/[0-9]+/, "N", kind)
        if ($2 ~ /^training/) {
            if (kind ~ /[.]/) { # a tensor: its sort, as the end of its name says it
                if (kind ~ /modules_to_save/) kind = "saved"
                else if (match(kind, /lora_[AB]/)) kind = substr(kind, RSTART, RLENGTH)
                else sub(/.*[.]/, "", kind)
                if (!($2 in tensors)) { tensors[$2] = 1; print $2 "\ta missing tensor"; print $2 "\tan unknown tensor" }
                if (kind == "lora_A" && !($2 in pairs)) { pairs[$2] = 1; print $2 "\thalf a pair"; print $2 "\ta pair" }
            }
            kind = $2 " " kind
        }
        if (!(kind in seen)) { seen[kind] = 1; print $2 "\t" value }
    }' >"$list"
while IFS="$(printf '\t')" read -r case value; do
    if "$oracle" --root "$root" --only "$case" --plant "$value" 2>/dev/null | grep -aqF "FAIL $case  "; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAIL $case: a damaged \"$value\" went unnoticed"
    fi
done <"$list"
[ "$passed" -gt 0 ] || failed=1
echo "$passed passed, $failed failed, 0 skipped"
[ "$failed" -eq 0 ]
