#!/bin/sh
# gpu_resources.sh LOG - what each kernel takes of a multiprocessor, as a table, from what `nvcc -Xptxas -v` said.
#
# One line a kernel and architecture. Shared memory is what the kernel declares; what a launch asks for on top is decided
# in kernels.cu. Exit 1 when a kernel spills registers to memory, or when the log holds no kernel: then something else
# was measured.
log=$1
test -r "$log" || {
    echo "expected the output of nvcc -Xptxas -v in $log; found nothing there" >&2
    exit 1
}
# Lines of one entry function, in this order: "Compiling entry function 'NAME' for 'sm_80'", then "N bytes stack frame,
# N bytes spill stores, N bytes spill loads" for it (and for each function that it calls), then "Used N registers, ...".
awk '
    function before(text,  i) { # the number in front of text, anywhere in the line
        i = index($0, text)
        if (!i) return 0
        match(substr($0, 1, i - 1), /[0-9]+ *$/)
        return substr($0, RSTART, RLENGTH) + 0
    }
    /Compiling entry function/ { split($0, q, "\047"); name = q[2]; arch = q[4]; stack = stores = loads = 0 }
    /bytes stack frame/ { stack += before(" bytes stack frame"); stores += before(" bytes spill stores"); loads += before(" bytes spill loads") }
    / Used [0-9]+ registers/ && name != "" {
        print name, arch, before(" registers"), stores, loads, stack, before(" bytes smem")
        name = ""
    }' "$log" | { command -v c++filt >/dev/null && c++filt || cat; } | awk '
    { # a demangled name has spaces: the numbers are the last six words
        name = $1
        for (i = 2; i <= NF - 6; i++) name = name " " $i
        sub(/^void /, "", name)
        # matmul<(Layout)0>(Mat, ...) is matmul<0>: first the casts of its arguments go, then its parameters
        while (match(name, /\([A-Za-z_]+\)[-0-9]/)) name = substr(name, 1, RSTART - 1) substr(name, RSTART + RLENGTH - 1)
        sub(/\(.*$/, "", name)
        printf "%s\t%s\t%d\t%d\t%d\t%d\t%d\n", name, $(NF-5), $(NF-4), $(NF-3), $(NF-2), $(NF-1), $NF
    }' | sort | awk -F '\t' '
    BEGIN { printf "%-44s %-7s %9s %13s %6s %7s\n", "kernel", "for", "registers", "spilled bytes", "stack", "shared" }
    {
        printf "%-44s %-7s %9d %13d %6d %7d%s\n", $1, $2, $3, $4 + $5, $6, $7, $4 + $5 ? "   <- spills" : ""
        n++
        if ($4 + $5) spilled++
    }
    END {
        if (!n) print "expected at least one kernel; found none in the output of nvcc"
        else if (spilled) printf "%d of %d lines SPILL registers to memory\n", spilled, n
        else printf "%d lines, none spills\n", n
        exit !n || spilled
    }'
