#!/usr/bin/env bash
# All benchmarks whose data is there, on one loaded model; then the paper's table 11 and a table of all scores.
#   scripts/eval/all.sh MODEL [FLAGS OF llava-s2 eval, such as --batch-size 16]
# Data: docs/data.md says what goes into playground/data/TASK (or $DATA_ROOT/TASK). What is missing or failed is named
# at the end; what was cut off continues when it is started again. For suites of your own see the YAML files here.
set -euo pipefail

MODEL=${1:?usage: $0 MODEL [FLAGS]}
llava-s2 eval all --model "$MODEL" --data "${DATA_ROOT:-playground/data}" \
    --output "${OUTPUT_ROOT:-playground/eval}/$(basename "$MODEL")" "${@:2}"
