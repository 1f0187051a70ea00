#!/usr/bin/env bash
#SBATCH --job-name=rmkit
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@300
# A 70B model on 4 nodes of 8 GPUs under SLURM: one torchrun a node, which starts a process for each GPU.
# Not yet run: neither SLURM nor a GPU was at hand (several processes of one machine are tested, invariance.json).
#   sbatch runs/slurm_multi_node.sh
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
# All nodes meet at the first one. CACHE_DIR must be on a disk that they share: each rank writes its part of a checkpoint.
head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# SLURM sends SIGTERM five minutes before the time is over: the step ends, a checkpoint is written, and the same job
# submitted again goes on from it (--resume starts from the beginning where there is none yet).
# --parallel.replicate 0 would keep one sharded copy on each node, which needs 8 GPUs to hold it: less traffic.
srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node 8 --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" \
    --rdzv-endpoint "$head_node:29500" -m rmkit.train --exp-name llama3-70b-bt --resume \
    --model.name meta-llama/Meta-Llama-3-70B --data.train ultrabin --data.test ultrabin \
    --batch.pairs 256 --batch.max-tokens 8192 --model.gradient-checkpointing on \
    --optim.lr 2e-6 --eval.every 100 --save.every 100 --save.keep 2
