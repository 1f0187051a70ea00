#!/usr/bin/env bash
# An 8B model on one GPU of 40 GB or more: frozen bf16 weights, low-rank updates, and the head.
# Not yet run: no GPU was at hand. Counted on fake tensors at rank 64: 29.1 GiB (bench/results/memory.json).
#   bash runs/lora_one_gpu.sh TRAIN.jsonl TEST.jsonl
set -euo pipefail
train=$1 test=$2
cd "$(dirname "$0")/.."
pip install -e '.[lora]'
# LoRA wants a higher learning rate than full training: 1e-4, not 5e-6. `both` leaves a merged classifier, which every
# server takes, and PEFT's own folder in FINAL/adapter, which is small enough to keep of every run.
python -m rmkit.train --exp-name llama3-8b-lora --model.name meta-llama/Meta-Llama-3-8B \
    --data.train "$train" --data.test "$test" --data.max-length 2048 \
    --lora.rank 64 --lora.keep both --optim.lr 1e-4 --optim.warmup-ratio 0.05 \
    --batch.pairs 64 --batch.max-tokens 8192 --eval.every 100
# The memory of the GPU may be smaller: without LoRA, 6 bytes a parameter in place of 16 do too (49.9 GiB, same file):
#   --model.weights bf16 --optim.states 8bit
