#!/usr/bin/env bash
# sanitizer.sh BIN CASE: memcheck of a whole model's run, then racecheck of the kernels' tests. For ../gpu_bundle_run.sh.
# Racecheck makes kernels a hundred times slower: by default a few tests of each family.
set -uo pipefail
few='*ARowsBits*:*Neighbours*:*NothingToDo*:*TiesGo*:NormCudaTest.*:DeltaCudaTest.OneRow*:PrefillDeltaTest.AnIdle*'
few+=':DeltaCudaTest.AStep*:AttentionCudaTest.AStep*:DecodeLinearTest.ANorm*:TopLogitsTest.Broken*:*RouteAndDispatchTest*/0'
few+=':PrefillExpertsTest.GroupsHold*:PrefillExpertsTest.PlacesAddUp*:DecodeLinearTest.BothSigns*:DequantiseCudaTest.*'
compute-sanitizer --error-exitcode 9 "$1/hearth" verify "$2" "$2/reference.safetensors" --backend cuda --fast --expert-slots 8 ||
  exit 1
HEARTH_REQUIRE_GPU=1 compute-sanitizer --tool racecheck --error-exitcode 9 "$1/test_ops_cuda" --gtest_brief=1 \
  --gtest_filter="${HEARTH_SANITIZER_FILTER:-$few}"
