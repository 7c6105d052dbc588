#!/usr/bin/env bash
# MathVista's testmini, answers extracted by rules; with --judge-url and --judge-model by a judge, as officially.
#   scripts/eval/mathvista.sh MODEL [FLAGS OF llava-s2 eval, such as --batch-size 8]
# Data: docs/data.md says what goes into playground/data/mathvista (or $DATA).
# A run that was cut off continues when it is started again.
set -euo pipefail

MODEL=${1:?usage: $0 MODEL [FLAGS]}
DATA=${DATA:-playground/data/mathvista}
OUTPUT=${OUTPUT:-playground/eval/mathvista/$(basename "$MODEL")}

llava-s2 eval mathvista --model "$MODEL" --data "$DATA" --output "$OUTPUT" "${@:2}"
