#!/usr/bin/env bash
# All nine benchmarks of the paper's table 11, then the table with your column beside the paper's.
#   scripts/eval/all.sh MODEL [FLAGS OF llava-s2 eval, such as --batch-size 16]
#   JUDGE="--judge-url https://HOST/v1 --judge-model gpt-4-0613" scripts/eval/all.sh MODEL    grades MM-Vet, too
# Data: docs/data.md says what goes into playground/data/TASK (or $DATA_ROOT/TASK). A benchmark whose folder is missing
# is left out and named at the end. What was cut off continues when it is started again.
set -euo pipefail

MODEL=${1:?usage: $0 MODEL [FLAGS]}
DATA_ROOT=${DATA_ROOT:-playground/data}
OUTPUT_ROOT=${OUTPUT_ROOT:-playground/eval}
SCRIPTS=$(dirname "$0")
NAME=$(basename "$MODEL")
left_out=() runs=()

for task in vstar textvqa vqav2 vizwiz mmmu mathvista mmbench seedbench mmvet; do
    folder=$task
    if [ "$task" = vstar ]; then folder=vstar_bench; fi
    if [ ! -d "$DATA_ROOT/$folder" ]; then
        left_out+=("$task ($DATA_ROOT/$folder)")
        continue
    fi
    judge=""
    if [ "$task" = mmvet ] || [ "$task" = mathvista ]; then judge=${JUDGE:-}; fi
    # shellcheck disable=SC2086  # the judge's flags are several words
    DATA=$DATA_ROOT/$folder OUTPUT=$OUTPUT_ROOT/$task/$NAME bash "$SCRIPTS/$task.sh" "$MODEL" "${@:2}" $judge
    runs+=("$OUTPUT_ROOT/$task/$NAME")
done

if [ ${#runs[@]} -gt 0 ]; then python -m llava_s2.eval.table11 "${runs[@]}"; fi
if [ ${#left_out[@]} -gt 0 ]; then printf 'no data: %s\n' "${left_out[@]}"; fi
