#!/usr/bin/env bash
# machine.sh BIN OUT: what the machine gives, to be quoted beside speeds. For ../gpu_bundle_run.sh.
set -uo pipefail
"$1/hearth" benchmark --machine --json >"$2/machine.json" || exit 1
cat "$2/machine.json"
"$1/hearth" doctor --json --out "$2/doctor.json"
code=$?
((code <= 1))  # 1: something could be better here, and it says what
