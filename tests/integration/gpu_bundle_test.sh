#!/usr/bin/env bash
# gpu_bundle_test.sh BIN: tools/gpu_bundle_run.sh on the CPU backend. What can run without a GPU passes, a part that fails makes the
# script fail, and one that cannot run is recorded.
set -euo pipefail
root=$(readlink -f "$(dirname "$0")/../..")
OUT=$(mktemp -d)
trap 'rm -rf "$OUT"' EXIT
export OUT HEARTH_BIN=$1 HEARTH_DATA=$root HEARTH_BACKEND=cpu
export HEARTH_EVALUATION_FLAGS="--questions 24"
export HEARTH_MTP_FLAGS="--model synthetic:tiny,layers=4,mtp=1 --threads 2 --answers 4 --turns 1 --slots 8"
export HEARTH_SPEED_FLAGS="--model synthetic:tiny,layers=4 --threads 2 --repetitions 1 --groups locality,all --record-only"

fail() {
  echo "FAILED: $1"
  tail -n 20 "$OUT"/*.log "$OUT/summary.txt"
  exit 1
}

"$root/tools/gpu_bundle_run.sh" verify evaluation faults mtp speed >"$OUT/stdout.log" 2>&1 || fail "all parts pass"
[[ $(grep -c ' ok ' "$OUT/summary.txt") == 5 ]] || fail "the summary has five good parts"
python3 - "$OUT" <<'CHECK' || fail "the results are complete"
import json
import pathlib
import sys

out = pathlib.Path(sys.argv[1])
read = lambda name: json.loads((out / name).read_text())
assert len(read("verify.json")["verify"]) >= 6
assert {run["case"] for run in read("verify.json")["verify"]} >= {"tiny-a", "demo-mtp"}
assert len(read("mtp.json")["runs"]) == 6
rounds = read("evaluation.json")["rounds"]
assert len(rounds) == 5 and all(r["right"] == r["of"] == 24 for r in rounds), rounds
assert read("faults.json")["faults"]["killed_worker"]["first_answer_after_s"] > 0
assert [row["row"] for row in read("speed.json")["speed"]][0] == "14 GiB, decode, 80 % hits"
CHECK

HEARTH_EVALUATION_FLAGS="--questions 8 --least 400" "$root/tools/gpu_bundle_run.sh" evaluation >"$OUT/stdout.log" 2>&1 &&
  fail "too few right answers fail"
grep -q '^evaluation *exit 1' "$OUT/summary.txt" || fail "the summary names the part that failed"
HEARTH_DATA=$OUT "$root/tools/gpu_bundle_run.sh" verify >"$OUT/stdout.log" 2>&1 || fail "what cannot run is no failure"
grep -q '^verify: ' "$OUT/notrun.txt" || fail "what cannot run is recorded"
echo "the GPU bundle's script works on the CPU backend"
