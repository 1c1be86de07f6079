#!/usr/bin/env bash
# Runs what ./dev gpu-bundle packed, on a machine with a GPU: tests, then benchmarks. Logs go to ${OUT:-.}; a part that fails
# does not keep the others from running. The last lines are the summary; fails if a part failed. Ends within 9 minutes.
# Arguments choose parts: ops worker_ops bench sanitizer (without any: all but sanitizer).
set -uo pipefail
here=$(dirname "$(readlink -f "$0")")
out=${OUT:-.}
mkdir -p "$out"
chmod +x "$here"/bin/* 2>/dev/null || true  # some ways of carrying lose the bit
parts=("$@")
((${#parts[@]})) || parts=(ops worker_ops bench)
results=()
failed=0

# The libraries for our programs only: the machine's own tools keep theirs.
ours=(env LD_LIBRARY_PATH="$here/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}")

part() { # part NAME SECONDS COMMAND...: stdout and stderr to NAME.log
  local name=$1 limit=$2 begin=$SECONDS code
  shift 2
  printf '\n== %s: %s\n' "$name" "$*"
  timeout -k 5 "$limit" "$@" >"$out/$name.log" 2>&1
  code=$?
  results+=("$(printf '%-12s exit %3d  %3d s  %s' "$name" "$code" $((SECONDS - begin)) \
    "$(grep -E '^\[  (PASSED|SKIPPED|FAILED)|^\[==========\]|ERROR SUMMARY' "$out/$name.log" | tail -2 | tr '\n' ' ')")")
  if ((code != 0)); then
    failed=1
    grep -E -B12 'FAILED|Failure|rror' "$out/$name.log" | head -60
    tail -15 "$out/$name.log"
  fi
}

{
  cat "$here/commit"
  date -u
  nvidia-smi
  nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit --format=csv
  lscpu | head -40
} >"$out/machine.log" 2>&1
head -25 "$out/machine.log"

export HEARTH_REQUIRE_GPU=1
for name in "${parts[@]}"; do
  case $name in
    ops) part ops 150 "${ours[@]}" "$here/bin/test_ops_cuda" --gtest_brief=1 ;;
    worker_ops) part worker_ops 120 "${ours[@]}" "$here/bin/test_worker_ops" --gtest_brief=1 ;;
    sanitizer)
      part memcheck 240 "${ours[@]}" compute-sanitizer --error-exitcode 9 \
        "$here/bin/test_ops_cuda" --gtest_brief=1 --gtest_filter="${HEARTH_SANITIZER_FILTER:-*}"
      ;;
    bench)
      printf '\n== bench\n'
      begin=$SECONDS
      "${ours[@]}" timeout -k 5 180 "$here/bin/hearth-bench-cuda" >"$out/bench.json" 2>"$out/bench.log"
      code=$?
      ((code == 0)) || failed=1
      results+=("$(printf '%-12s exit %3d  %3d s' bench "$code" $((SECONDS - begin)))")
      cat "$out/bench.log"
      ;;
    *) results+=("$name: no such part"); failed=1 ;;
  esac
done

printf '\n== summary (%s)\n' "$(cat "$here/commit")"
printf '%s\n' "${results[@]}"
exit "$failed"
