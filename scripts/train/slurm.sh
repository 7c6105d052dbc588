#!/usr/bin/env bash
#SBATCH --job-name=llava-s2
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
# Any recipe on several nodes under SLURM:  sbatch scripts/train/slurm.sh scripts/train/finetune_full.sh
# One torchrun a node; they meet at the first node. All nodes must see the same folders. What ends a job:
# - out of time: SLURM requeues nothing by itself (--requeue is for failed nodes, preemption and `scontrol requeue`).
#   Ten minutes ahead it tells this script, which has the run save and puts the job back into the queue.
# - preempted, or a node failed: SLURM requeues; the run goes on from its last checkpoint.
# - a worker died: its torchrun starts all workers again, up to RESTARTS times.
set -euo pipefail

RECIPE=${1:?usage: sbatch scripts/train/slurm.sh RECIPE.sh [flags]}
shift
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export TORCHRUN="torchrun --nnodes $SLURM_JOB_NUM_NODES --max_restarts ${RESTARTS:-3} --rdzv_id $SLURM_JOB_ID \
    --rdzv_backend c10d --rdzv_endpoint $HEAD:${PORT:-29500}"
# The time torchrun gives its processes to save after SIGTERM: below that of --signal above.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-540}
# torchrun's own restart can hang where workers share the launchers' store (seen in half of the runs without this).
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

OUT_OF_TIME=
stop() {
    OUT_OF_TIME=1
    scancel --signal=TERM "$SLURM_JOB_ID" # to the steps, not to this script
}
trap stop USR1

srun --kill-on-bad-exit=1 bash "$RECIPE" "$@" &
STATUS=0
wait $! || STATUS=$?
if [ -n "$OUT_OF_TIME" ]; then
    wait || true # the trap ended the first wait; the run is still saving
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $STATUS
