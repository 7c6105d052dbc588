#!/usr/bin/env bash
#SBATCH --job-name=llava-s2
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
# Any recipe on several nodes under SLURM:  sbatch scripts/train/slurm.sh scripts/train/finetune_full.sh
# One torchrun a node; they meet at the first node. Pre-empted or out of time, the run saves, and the job that SLURM
# queues again goes on from there. All nodes must see the same folders.
set -euo pipefail

RECIPE=${1:?usage: sbatch scripts/train/slurm.sh RECIPE.sh [flags]}
shift
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export TORCHRUN="torchrun --nnodes $SLURM_JOB_NUM_NODES --rdzv_id $SLURM_JOB_ID --rdzv_backend c10d --rdzv_endpoint $HEAD:29500"
exec srun --kill-on-bad-exit=1 bash "$RECIPE" "$@"
