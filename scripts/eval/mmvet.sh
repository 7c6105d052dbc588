#!/usr/bin/env bash
# MM-Vet: the answers, and with a judge their scores.
#   scripts/eval/mmvet.sh MODEL [FLAGS OF llava-s2 eval, such as --judge-url https://HOST/v1 --judge-model gpt-4-0613]
# The judge's key is read from $OPENAI_API_KEY. Without a judge it writes the file for the official evaluator.
# Data: docs/data.md says what goes into playground/data/mmvet (or $DATA).
# A run that was cut off continues when it is started again.
set -euo pipefail

MODEL=${1:?usage: $0 MODEL [FLAGS]}
DATA=${DATA:-playground/data/mmvet}
OUTPUT=${OUTPUT:-playground/eval/mmvet/$(basename "$MODEL")}

llava-s2 eval mmvet --model "$MODEL" --data "$DATA" --output "$OUTPUT" "${@:2}"
