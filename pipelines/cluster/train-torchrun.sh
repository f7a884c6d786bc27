#!/usr/bin/env bash
# Train on several machines without a scheduler: run this on each of them, at about the same time.
# One of them, it does not matter which, is HEAD; the others reach it under that name.
#
#     HEAD=node-1 NODES=2 RUN=/shared/runs/vicuna-7b-pretrain pipelines/cluster/train-torchrun.sh
set -euo pipefail

: "${HEAD:?set HEAD to the name or address of one of the machines}"
: "${NODES:?set NODES to how many machines there are}"
: "${RUN:?set RUN to the run folder of aligntrain prepare, on storage that all machines share}"

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-8} TOKENIZERS_PARALLELISM=false
exec torchrun --nnodes "$NODES" --nproc-per-node "${GPUS:-gpu}" \
    --rdzv-id "$(basename "$RUN")" --rdzv-backend c10d --rdzv-endpoint "$HEAD:${PORT:-29500}" \
    -m aligntrain.train "$RUN" --resume
