#!/usr/bin/env bash
# Checks and times what ./dev gpu-bundle packed, on a machine with a GPU and Python 3: no compiler, no package. Results go to
# ${OUT:-.} as JSON and text. A part that fails does not keep the others from running; the last lines are the summary; fails if a
# part failed. A part that cannot be run here says so in the summary and in notrun.txt.
#
# Arguments choose parts (without any: all of them, half an hour):
#   machine     what the machine gives: hearth benchmark --machine, hearth doctor
#   rates       what hearth doctor measures of the GPU is plausible (test_gpu_rates)
#   ops         each kernel against the CPU's ops (test_ops_cuda)
#   worker_ops  the CPU's ops on this CPU (test_worker_ops)
#   engine      the engine on the GPU (test_cuda_engine, test_cuda_engine_lost, test_cuda_mtp_text), where they were packed
#   verify      reference cases, float32 and fast, with no, few and all experts in VRAM
#   evaluation  the demo model's 200 questions through HTTP, cache at 10 to 100 %, every policy, 8 at once and one by one
#   faults      the worker killed while it generates; the GPU failing under it; VRAM held by another process
#   bench_ops   the kernels' speed
#   mtp         multi-token prediction: the demo model's answers and the 80B model's shape, with and without guesses
#   speed       the 80B model's shape with all 48 layers, row by row against what is required
#   sanitizer   compute-sanitizer: memcheck of a whole model, racecheck of the kernels' tests
#
# HEARTH_DATA    folder with models/demo and tests/golden, as a checkout has them (default: the bundle's own)
# HEARTH_BIN     folder of the programs (default: the bundle's own)
# HEARTH_BACKEND cpu: the parts verify, evaluation, faults, mtp and speed on the CPU backend, to try this script where there is no GPU
# HEARTH_EVALUATION_FLAGS, HEARTH_MTP_FLAGS, HEARTH_SPEED_FLAGS  more flags of gpu_bundle/evaluation.py, mtp.py and speed.py
# HEARTH_SANITIZER_FILTER  which of the kernels' tests racecheck runs
set -uo pipefail
here=$(dirname "$(readlink -f "$0")")
scripts=$here/gpu_bundle
out=${OUT:-.}
mkdir -p "$out"
out=$(readlink -f "$out")
bin=${HEARTH_BIN:-$here/bin}
data=$(readlink -f "${HEARTH_DATA:-$here}")
backend=${HEARTH_BACKEND:-cuda}
chmod +x "$bin"/* 2>/dev/null || true  # some ways of carrying lose the bit
parts=("$@")
((${#parts[@]})) || parts=(machine rates ops worker_ops engine verify evaluation faults bench_ops mtp speed sanitizer)
results=()
failed=0
: >"$out/notrun.txt"

# The libraries for our programs only: the machine's own tools keep theirs.
ours=(env "LD_LIBRARY_PATH=$here/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}")

result() { # result NAME STATUS SECONDS TEXT
  results+=("$(printf '%-12s %-8s %4d s  %s' "$1" "$2" "$3" "$4")")
}

not_run() { # not_run NAME WHY
  result "$1" "not run" 0 "$2"
  echo "$1: $2" >>"$out/notrun.txt"
}

part() { # part NAME SECONDS COMMAND...: stdout and stderr to NAME.log
  local name=$1 limit=$2 begin=$SECONDS code
  shift 2
  printf '\n== %s: %s\n' "$name" "${*##*/}"
  timeout -k 5 "$limit" "$@" >"$out/$name.log" 2>&1
  code=$?
  if ((code == 0)); then
    result "$name" ok $((SECONDS - begin)) "$(summary_of "$name")"
    tail -3 "$out/$name.log"
  else
    failed=1
    result "$name" "exit $code" $((SECONDS - begin)) "$(summary_of "$name")"
    grep -E -B12 'FAILED|Failure|rror' "$out/$name.log" | head -60
    tail -25 "$out/$name.log"
  fi
}

summary_of() {
  grep -E '^\[  (PASSED|SKIPPED|FAILED)|^\[==========\]|ERROR SUMMARY|RACECHECK SUMMARY|^evaluation:|^verify:|^faults:' \
    "$out/$1.log" | tail -2 | tr '\n' ' '
}

has_data() { # has_data NAME FILE
  [[ -e $data/$2 ]] && return 0
  not_run "$1" "$data/$2 is not there: name its folder in HEARTH_DATA"
  return 1
}

has_program() { # has_program NAME PROGRAM
  [[ -x $bin/$2 ]] && return 0
  not_run "$1" "$2 was not packed"
  return 1
}

python() { part "$1" "$2" "${ours[@]}" python3 "$scripts/$1.py" --bin "$bin" --out "$out" --backend "$backend" "${@:3}"; }

{
  cat "$here/commit" 2>/dev/null
  date -u
  nvidia-smi
  nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit,memory.total --format=csv
  lscpu | head -40
  free -m
} >"$out/card.log" 2>&1
head -25 "$out/card.log"
if [[ $backend == cuda ]] && ! nvidia-smi -L >/dev/null 2>&1; then
  echo "run.sh: no GPU: nvidia-smi fails (see $out/card.log)" >&2
  exit 2
fi

export HEARTH_REQUIRE_GPU=1
read -ra evaluation_flags <<<"${HEARTH_EVALUATION_FLAGS:-}"
read -ra mtp_flags <<<"${HEARTH_MTP_FLAGS:-}"
read -ra speed_flags <<<"${HEARTH_SPEED_FLAGS:-}"
for name in "${parts[@]}"; do
  case $name in
    machine) part machine 120 "${ours[@]}" "$scripts/machine.sh" "$bin" "$out" ;;
    rates) has_program rates test_gpu_rates && part rates 60 "${ours[@]}" "$bin/test_gpu_rates" --gtest_brief=1 ;;
    ops) has_program ops test_ops_cuda && part ops 150 "${ours[@]}" "$bin/test_ops_cuda" --gtest_brief=1 ;;
    worker_ops) has_program worker_ops test_worker_ops && part worker_ops 120 "${ours[@]}" "$bin/test_worker_ops" --gtest_brief=1 ;;
    engine)
      if has_program engine test_cuda_engine && has_data engine tests/golden/tiny-a/config.json; then
        # They look for their files beside a CMakePresets.json above themselves.
        root=$(mktemp -d)
        cp "$bin/test_cuda_engine" "$bin/test_cuda_engine_lost" "$bin/test_cuda_mtp_text" "$root"
        ln -s "$data/models" "$data/tests" "$root"
        touch "$root/CMakePresets.json"
        part engine 180 "${ours[@]}" "$root/test_cuda_engine" --gtest_brief=1
        part engine_lost 60 "${ours[@]}" "$root/test_cuda_engine_lost" --gtest_brief=1
        has_data mtp_text models/demo/config.json &&
          part mtp_text 120 "${ours[@]}" "$root/test_cuda_mtp_text" --gtest_brief=1
        rm -rf "$root"
      fi
      ;;
    verify)
      has_data verify tests/golden/tiny-a/config.json &&
        python verify 240 --golden "$data/tests/golden" --demo "$data/models/demo"
      ;;
    evaluation)
      has_data evaluation models/demo/config.json && python evaluation 300 --model "$data/models/demo" "${evaluation_flags[@]}"
      ;;
    faults) has_data faults models/demo/config.json && python faults 240 --model "$data/models/demo" ;;
    bench_ops)
      # Its progress on stderr is for people, its JSON is the log.
      has_program bench_ops hearth-bench-cuda && part bench_ops 180 "${ours[@]}" "$bin/hearth-bench-cuda"
      ;;
    mtp) has_data mtp models/demo/config.json && python mtp 500 --demo "$data/models/demo" "${mtp_flags[@]}" ;;
    speed) python speed 600 "${speed_flags[@]}" ;;
    sanitizer)
      if ! command -v compute-sanitizer >/dev/null; then
        not_run sanitizer "compute-sanitizer is not on the PATH"
      elif has_data sanitizer tests/golden/tiny-a/config.json; then
        part sanitizer 400 "${ours[@]}" "$scripts/sanitizer.sh" "$bin" "$data/tests/golden/tiny-a"
      fi
      ;;
    *) result "$name" unknown 0 "there is no such part"; failed=1 ;;
  esac
done

{
  printf '\n== summary (%s)\n' "$(cat "$here/commit" 2>/dev/null)"
  printf '%s\n' "${results[@]}"
} | tee "$out/summary.txt"
exit "$failed"
