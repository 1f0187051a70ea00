#!/usr/bin/env bash
# Llama-3-8B on UltraFeedback (HALOs' ultrabin) on one node of 4 GPUs of 80 GB.
# Not yet run: no GPU was at hand. Counted on fake tensors: 44 GiB on each of the four (README, "Limits"; CHANGELOG).
#   bash runs/llama3_8b_4gpu.sh
set -euo pipefail
cd "$(dirname "$0")/.."
# First what it takes, from the model's configuration and the pairs alone: wrong flags show in a minute, not in an hour.
python -m rmkit.train --model.name meta-llama/Meta-Llama-3-8B --data.train ultrabin --data.test ultrabin \
    --plan.only --plan.gpus 4 --plan.memory 80
# Layers are sharded (fsdp is what auto means on GPUs) and gathered in bf16; 16k trie tokens a rank are about 40 answers.
# The learning rate is HALOs'. Anything that fails after a checkpoint goes on with the same command and --resume.
torchrun --standalone --nproc-per-node 4 -m rmkit.train --exp-name llama3-8b-bt \
    --model.name meta-llama/Meta-Llama-3-8B --data.train ultrabin --data.test ultrabin \
    --data.max-length 2048 --batch.pairs 64 --batch.max-tokens 16384 \
    --optim.lr 5e-6 --optim.schedule cosine --eval.every 200 --save.every 500
python -m rmkit.evaluate --model runs/llama3-8b-bt/FINAL --data rewardbench2
