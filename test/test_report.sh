#!/bin/sh
# test_report.sh - the report as a file and in a browser: every answer counted, nothing of a hostile answer alive, nothing
# fetched from anywhere, filters and keys at work.
#
# SURGR1 names the program (./surgr1). The part in a browser needs Debian's chromium and python3-free tools only; without it
# that part is skipped.
surgr1=${SURGR1:-./surgr1}
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
passed=0 failed=0 skipped=0
check() { # WHAT command...
    what=$1
    shift
    if "$@" >"$dir/out" 2>&1; then passed=$((passed + 1)); else failed=$((failed + 1)) && echo "FAIL $what" && head -n 5 "$dir/out"; fi
}
lacks() { ! grep -qiE -- "$1" "$2"; }
page=$dir/report.html

"$surgr1" scenes --out "$dir/scenes" --count 3 --seed 5 --size 96 --split test --quiet >/dev/null || {
    echo "FAIL no scenes to report on"
    exit 1
}
# Answers: the label as it is, one that is hostile, one that is empty.
head -n 12 "$dir/scenes/test.jsonl" | sed 's/"messages":\[\({"role":"user"[^]]*}\),{"role":"assistant".*\],"images"/"messages":[\1],"images"/' |
    awk 'NR == 2 { sub(/}$/, ",\"response\":\"</p><script>document.title=\\\"owned\\\"</script><img src=x onerror=alert(1)> and \\\"<answer>x</answer>\"}") }
         NR == 3 { sub(/}$/, ",\"response\":\"\"}") }
         NR != 2 && NR != 3 { sub(/}$/, ",\"response\":\"<think>Level 1: seen.</think><answer>grasper</answer>\"}") } { print }' >"$dir/scenes/pred.jsonl"
check "report refuses its own input" "$surgr1" report --predictions "$dir/scenes/pred.jsonl" --out "$page" --title "A <b>title</b>" --quiet
check "not every answer has a card" [ "$(grep -c '<article' "$page")" -eq 12 ]
check "a hostile answer is alive" lacks '<script>document.title|<img src=x|onerror=alert\(1\)>' "$page"
check "a hostile answer is not shown" grep -q '&lt;script&gt;document.title' "$page"
check "the title is not escaped" grep -q 'A &lt;b&gt;title&lt;/b&gt;' "$page"
check "something is fetched from elsewhere" lacks '(src|href)="?(https?:)?//' "$page"
check "no picture is inside" grep -qE 'href="data:image/(png;base64,iVBOR|jpeg;base64,/9j/)' "$page"
check "a picture is there twice" [ "$(grep -oE 'data:image/[^"]*' "$page" | sort | uniq -d | wc -l)" -eq 0 ]
rm -r "$dir/scenes/frames"
check "a missing picture is fatal" "$surgr1" report --predictions "$dir/scenes/pred.jsonl" --out "$dir/bare.html" --quiet
check "a missing picture is not told" grep -q 'No picture: ' "$dir/bare.html"
"$surgr1" report --predictions "$dir/none.jsonl" --out "$dir/no.html" --quiet 2>/dev/null
check "predictions that are not there" [ $? -eq 4 -a ! -e "$dir/no.html" ]
# Runs and a table whose every text is hostile.
runs=$dir/runs.html fixture=$(dirname "$0")/fixtures/report
check "hostile runs are refused" "$surgr1" report --table "$fixture/table.json" --run "$fixture" --predictions "$dir/scenes/pred.jsonl" --out "$runs" --quiet
check "a hostile run is alive" lacks '<script>document.title|<img|<[^>]* onmouseover' "$runs"
check "a hostile completion is not shown" grep -q '&lt;scr</i>.*onmouseover=&quot;alert(1)</i>' "$runs"
check "sections are out of order" [ "$(grep -oE 'id=(table|curves|rollouts|answers)>' "$runs" | tr -d '\n')" = "id=table>id=curves>id=rollouts>id=answers>" ]
check "something is fetched from elsewhere by runs" lacks '(src|href)="?(https?:)?//|url\(|@import' "$runs"
"$surgr1" report --quiet 2>/dev/null
check "a report on nothing" [ $? -eq 2 ]

browser=$(command -v chromium || command -v chromium-browser || command -v google-chrome)
dom() { timeout 90 "$browser" --headless --no-sandbox --disable-gpu --virtual-time-budget=2000 --dump-dom "file://$1" 2>/dev/null; }
if [ -n "$browser" ] && dom "$page" >"$dir/dom.html" && [ -s "$dir/dom.html" ]; then
    check "the script does not run" grep -q '<span id="count">12 of 12</span>' "$dir/dom.html"
    check "the hostile answer ran" lacks '<title>owned' "$dir/dom.html"
    # The same page, driven: wrong answers only, then the second of them by key.
    { cat "$page" && echo "<script>state.value='wrong';state.onchange();for(const k of ['ArrowRight','ArrowRight'])
dispatchEvent(new KeyboardEvent('keydown',{key:k}));document.title='at '+shown.indexOf(document.activeElement)+', '+shown.length+' wrong, '+
document.querySelectorAll('article[data-state=wrong]').length</script>"; } >"$dir/driven.html"
    dom "$dir/driven.html" >"$dir/dom.html"
    check "filter and keys" sh -c "grep -oE '<title>at 1, ([0-9]+) wrong, ([0-9]+)' '$dir/dom.html' | sed -E 's/.*at 1, //;s/ wrong, / /' | awk '{ exit !(\$1 == \$2 && \$1 > 1) }'"
    dom "$runs" >"$dir/dom.html"
    check "a hostile run ran" lacks '<title>owned' "$dir/dom.html"
    # Markup of strangers made no element: scripts are the page's two, there is no other picture, no handler.
    { cat "$runs" && echo "<script>document.title='made '+[document.scripts.length,document.images.length,document.querySelectorAll('[onerror],[onmouseover]').length,
document.querySelectorAll('.member').length,document.querySelectorAll('.tok i').length,document.documentElement.scrollWidth<=innerWidth]</script>"; } >"$dir/driven.html"
    dom "$dir/driven.html" >"$dir/dom.html"
    check "elements of a hostile run" grep -q '<title>made 3,0,0,4,16,true' "$dir/dom.html"
    check "no screenshot" timeout 90 "$browser" --headless --no-sandbox --disable-gpu --window-size=1100,1400 --screenshot="$dir/shot.png" "file://$page"
    check "the screenshot is empty" [ "$(stat -c %s "$dir/shot.png")" -gt 20000 ]
else
    skipped=7
    echo "skip no browser that runs here (chromium)"
fi
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ]
