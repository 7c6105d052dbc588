#!/usr/bin/env bash
# Your own data on top of a LLaVA that there is: LoRA and the projector, three epochs, on one GPU.
#   DATA=mine.json IMAGES=photos OUTPUT=mine bash scripts/train/finetune_task_lora.sh
# DATA is LLaVA's JSON or JSON lines, IMAGES the folder that its "image" names lie in; check them with
# `llava-s2 data check`. MODEL is what to go on from: an S2 checkpoint or adapter, or, with --s2_scales 336,672,1008
# after the script's name, a single-scale LLaVA to widen. Without a GPU and a checkpoint at hand, MODEL=embedded is
# described in docs/training.md. Started again, it goes on from the last checkpoint.
set -euo pipefail
# Seconds that torchrun gives its processes to save after SIGTERM: more than a step and a checkpoint take.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}

MODEL=${MODEL:-playground/checkpoints/llava-s2-v1.5-7b-lora}
DATA=${DATA:-playground/data/mine.json}
IMAGES=${IMAGES:-playground/data/mine}
OUTPUT=${OUTPUT:-playground/checkpoints/mine}
GPUS=${GPUS:-1}

exec ${TORCHRUN:-torchrun} --nproc_per_node "$GPUS" -m llava_s2.train finetune \
    --model_name_or_path "$MODEL" \
    --data_path "$DATA" \
    --image_folder "$IMAGES" \
    --output_dir "$OUTPUT" \
    --lora_r 128 --lora_alpha 256 \
    --mm_projector_lr 2e-5 \
    --bf16 True \
    --num_train_epochs 3 \
    --per_device_train_batch_size 16 \
    --gradient_accumulation_steps 1 \
    --learning_rate 2e-4 \
    --weight_decay 0. \
    --warmup_steps 0.03 \
    --lr_scheduler_type cosine \
    --model_max_length 2048 \
    --gradient_checkpointing True \
    --dataloader_num_workers 4 \
    --save_strategy epoch \
    --save_total_limit 1 \
    --logging_steps 1 \
    "$@"
