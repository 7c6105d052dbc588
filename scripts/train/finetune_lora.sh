#!/usr/bin/env bash
# Stage 2: LoRA on the language model and the projector, on LLaVA-1.5's 665k mix.
# LLaVA-1.5's recipe with the S2 scales: global batch 128 = 8 GPUs x 16. With fewer GPUs, raise
# --gradient_accumulation_steps so that the product stays; flags after the script's name are added to the command.
# Started again, it goes on from the last checkpoint. The result loads with load_pretrained and every --model.
set -euo pipefail
# Seconds that torchrun gives its processes to save after SIGTERM: more than a step and a checkpoint take.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}

MODEL=${MODEL:-lmsys/vicuna-7b-v1.5}
VISION_TOWER=${VISION_TOWER:-openai/clip-vit-large-patch14-336}
PROJECTOR=${PROJECTOR:-playground/checkpoints/llava-s2-v1.5-7b-pretrain}
DATA=${DATA:-playground/data}
OUTPUT=${OUTPUT:-playground/checkpoints/llava-s2-v1.5-7b-lora}
GPUS=${GPUS:-8}

exec ${TORCHRUN:-torchrun} --nproc_per_node "$GPUS" -m llava_s2.train finetune \
    --model_name_or_path "$MODEL" \
    --vision_tower "$VISION_TOWER" \
    --s2_scales 336,672,1008 \
    --pretrain_mm_mlp_adapter "$PROJECTOR" \
    --version v1 \
    --data_path "$DATA/llava_v1_5_mix665k.json" \
    --image_folder "$DATA" \
    --image_aspect_ratio pad \
    --group_by_modality_length True \
    --output_dir "$OUTPUT" \
    --deepspeed scripts/train/zero2.json \
    --lora_r 128 --lora_alpha 256 \
    --mm_projector_lr 2e-5 \
    --bf16 True \
    --num_train_epochs 1 \
    --per_device_train_batch_size 16 \
    --gradient_accumulation_steps 1 \
    --learning_rate 2e-4 \
    --weight_decay 0. \
    --warmup_steps 0.03 \
    --lr_scheduler_type cosine \
    --model_max_length 2048 \
    --gradient_checkpointing True \
    --dataloader_num_workers 4 \
    --save_steps 500 \
    --save_total_limit 1 \
    --logging_steps 1 \
    "$@"
