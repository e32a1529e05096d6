#!/bin/sh
# deps_check.sh BUILD - the direction of the arrows: no file may use a name of a floor above its own.
#
# Floors are those of the sections of surgr1.h, with ops.h (1) and base.h (0) below them. A function's floor is its
# header's where base.h or ops.h declares it (base.h is implemented by base.c and cpu.c), else its file's. What counts
# are the undefined symbols of the objects, so a comment or an include deceives nobody.
build=$1
floors='
base 0
ops 10
cpu 10
kernels 10
kernels_emulated 10
io/ 20
tokenizer 25
block 30
vision 40
config 45
model 50
data/vocabulary 52
data/tasks 53
data/ 55
tokenizer_train 56
init 58
lora 57
generate 60
surgery/metrics 65
surgery/answer 70
surgery/reward 70
surgery/ 80
train 90
trainer 92
sft 95
grpo 100
grpo_run 102
refine 100
commands/ 110
surgr1 110
'
words() { sed 's|//.*||' "$1" | grep -oE '[A-Za-z_][A-Za-z0-9_]*' | sort -u | sed "s/^/H $2 /"; }
symbols() {
    find "$build" -name '*.o' ! -path "$build/test/*" ! -path "$build/bench/*" ! -path "$build/emulated/*" | sort | while read -r object; do
        name=${object#"$build"/}
        name=${name%.o}
        nm -g "$object" 2>/dev/null | awk -v name="$name" 'NF >= 2 { print ($(NF-1) == "U" ? "U" : "D"), name, $NF }'
    done
}
judge() {
    awk -v floors="$floors" '
    BEGIN { n = split(floors, f); for (i = 1; i < n; i += 2) { name[++rules] = f[i]; level[rules] = f[i + 1] } }
    function floor(file,  i, best) { # an exact name, else the longest folder
        best = 0
        for (i = 1; i <= rules; i++) {
            if (name[i] == file) return level[i]
            if (name[i] ~ /\/$/ && index(file, name[i]) == 1) best = level[i]
        }
        return best ? best : -1
    }
    $1 == "H" { if (!($3 in header)) header[$3] = $2 }
    $1 == "D" { home[$3] = $2 }
    $1 == "U" { user[++uses] = $2; used[uses] = $3 }
    { if ($1 != "H") files[$2] = 1 }
    END {
        for (file in files) if (floor(file) < 0) { print "no floor is known for " file; bad++ }
        for (i = 1; i <= uses; i++) {
            if (!(used[i] in home) || home[used[i]] == user[i]) continue
            checked++
            to = used[i] in header ? header[used[i]] : floor(home[used[i]])
            if (to > floor(user[i])) { print "FAIL " user[i] " uses " used[i] " of " home[used[i]] ", a floor above it"; bad++ }
        }
        if (checked < 20) { print "FAIL only " checked + 0 " uses seen: are the objects there?"; bad++ }
        print (bad ? 0 : 1) " passed, " bad + 0 " failed, 0 skipped"
        exit bad ? 1 : 0
    }' "$@"
}
headers() { words base.h 0 && words ops.h 10; }
# The control: one planted arrow to the left must be found.
if { headers; symbols; echo 'U ops generate'; echo 'D generate generate'; } | judge >/dev/null; then
    echo "FAIL a planted use of generate() in ops.c was not found"
    echo "0 passed, 1 failed, 0 skipped"
    exit 1
fi
{ headers; symbols; } | judge
