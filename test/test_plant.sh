#!/bin/sh
# test_plant.sh ORACLE ROOT - proves that the comparisons of test_oracle can fail: every kind of value that it compares in
# ROOT is damaged in one element (--plant), in the first case that has it, and that case must then fail, alone.
oracle=$1 root=$2 passed=0 failed=0
list=$(mktemp) && trap 'rm -f "$list"' EXIT
# "     CASE  VALUE  ERROR <= LIMIT  UNIT": one line per value name; of the numbered rows of a table the first one is enough.
"$oracle" --root "$root" --verbose 2>/dev/null | awk -F '  +' '/^     / {
        value = $3; sub(/, (mean|far off)$/, "", value)
        kind = value; sub(/[0-9]+/, "N", kind)
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
