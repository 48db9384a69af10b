#!/bin/sh
# test/fuzz/run.sh FOLDER SECONDS TARGET...: runs the fuzz targets FOLDER/fuzz_TARGET one after the other, SECONDS in
# all. What was found stays in FOLDER/found; a find is a failure. Seeds come from test/data and make_seeds.
#
# CORPUS=DIR keeps the inputs that reached new code between runs. RUNS=N stops each target after N cases instead.

dir=$1 seconds=$2
shift 2
passed=0 failed=0
corpus=${CORPUS:-$dir/corpus}
each=$((seconds / $#))
[ "$each" -gt 0 ] || each=1

mkdir -p "$dir/found" "$dir/seeds/model" "$dir/seeds/tokenizer" "$dir/seeds/forward" "$dir/seeds/exif" || exit 1
"$dir/make_seeds" "$dir/seeds" || exit 1
for format in png gif bmp pnm; do
    mkdir -p "$dir/seeds/$format"
    cp test/data/images/$format-* "$dir/seeds/$format"
done
for f in test/data/images/exif-* test/data/images/xmp-*; do   # a byte in front chooses: a file as it is
    { printf '\010'; cat "$f"; } >"$dir/seeds/exif/$(basename "$f")"
done

# Memory: what a single request and the whole process may take. A case of more than 10 s counts as a loop without end.
limits="-malloc_limit_mb=512 -rss_limit_mb=2048 -timeout=10"
for t; do
    mkdir -p "$corpus/$t" "$dir/seeds/$t"
    [ -d "test/fuzz/seeds/$t" ] && cp "test/fuzz/seeds/$t"/* "$dir/seeds/$t"
    dict=
    [ -f "test/fuzz/$t.dict" ] && dict=-dict=test/fuzz/$t.dict
    if [ -n "$RUNS" ]; then stop=-runs=$RUNS; else stop=-max_total_time=$each; fi
    # shellcheck disable=SC2086  # several words
    if "$dir/fuzz_$t" $limits $dict $stop -print_final_stats=1 \
            -max_len=32768 -artifact_prefix="$dir/found/$t-" "$corpus/$t" "$dir/seeds/$t" >"$dir/$t.log" 2>&1; then
        passed=$((passed + 1))
        echo "fuzz_$t: $(sed -n 's/^stat::number_of_executed_units: *//p' "$dir/$t.log") cases"
    else
        failed=$((failed + 1))
        echo "FAIL fuzz_$t: see $dir/$t.log" >&2
        grep -E 'ERROR|SUMMARY|cannot happen|Test unit written' "$dir/$t.log" >&2
    fi
done
echo "$passed passed, $failed failed, 0 skipped"
[ "$failed" -eq 0 ]
