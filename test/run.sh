#!/bin/sh
# run.sh BUILD "command" ... - runs every command, adds up what they count, and ends in "N passed, N failed, N skipped".
#
# A command's own last line "N passed, N failed, N skipped" counts; without one it counts as one test by its exit code
# (0 passed, 77 skipped, else failed). A command that counts no failure and yet exits non-zero counts as one more failed.
build=$1
shift
passed=0 failed=0 skipped=0 number=0
mkdir -p "$build/logs"
for command in "$@"; do
    number=$((number + 1))
    log=$build/logs/$number.txt
    before=$(date +%s)
    sh -c "$command" >"$log" 2>&1 </dev/null
    rc=$?
    seconds=$(($(date +%s) - before))
    counts=$(grep -aoE '[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$' "$log" | tail -n 1 |
        sed -E 's/ (passed|failed|skipped),?//g')
    if [ -n "$counts" ]; then
        p=${counts%% *} s=${counts##* } f=${counts#* } f=${f% *}
        [ "$rc" -ne 0 ] && [ "$f" -eq 0 ] && f=1
    else
        p=0 f=0 s=0
        case $rc in 0) p=1 ;; 77) s=1 ;; *) f=1 ;; esac
    fi
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
    printf '%s: %d passed, %d failed, %d skipped (%d s)\n' "$(printf %s "$command" | cut -c 1-90)" "$p" "$f" "$s" "$seconds"
    grep -aE '^ *(skip|SKIP)' "$log" | head -n 5 | sed 's/^/    /'
    if [ "$f" -ne 0 ]; then
        grep -aE 'FAIL|expected|ERROR|error' "$log" | head -n 40 | sed 's/^/    /'
        [ "$rc" -gt 1 ] && tail -n 15 "$log" | sed "s/^/    /" && echo "    exit code $rc, all of it in $log"
    fi
done
echo "$passed passed, $failed failed, $skipped skipped" | tee "$build/total.txt"
[ "$failed" -eq 0 ]
