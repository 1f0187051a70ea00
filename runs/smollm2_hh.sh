#!/usr/bin/env bash
# A real pretrained model on real pairs: SmolLM2-135M-Instruct (from PyPI, de-quantised from 4 bits, Apache-2.0) on HH's
# harmless pairs. Inspect, train with LoRA, evaluate, label, train on the labels. Under 30 minutes on two cores.
# Figures beside the floors and TRL's: bench/results/smollm2_hh.json (python bench/smollm2_bench.py). Give the folder
# that holds train.jsonl and test.jsonl.
#   bash runs/smollm2_hh.sh DATA_FOLDER
set -euo pipefail
data=$(realpath "$1")
cd "$(dirname "$0")/.."
python bench/smollm2.py runs/smollm2
# What is in the pairs, and what counting lengths and words reaches: a reward model has to beat these floors.
python -m rmkit.inspect "$data/train.jsonl" --test "$data/test.jsonl" --tokenizer runs/smollm2 \
    --out runs/smollm2-inspect --overwrite
# 20 steps in the order of the file, 320 pairs: TRL is given the same ones in the benchmark. More steps do more.
# LoRA: of the three products of a linear layer, the gradient of its weight falls away, which is a third of the time.
python -m rmkit.train --exp-name smollm2-hh --overwrite --data.train "$data/train.jsonl" --data.no-shuffle \
    --model.name runs/smollm2 --data.test "$data/test.jsonl" --data.max-length 192 --batch.pairs 16 \
    --optim.schedule cosine --optim.max-steps 20 --lora.rank 16 --optim.lr 3e-4 --eval.every 0 --save.every 0
python -m rmkit.evaluate --model runs/smollm2-hh/FINAL --data "$data/test.jsonl" --max-length 192 --overwrite
# Its verdicts on answers, as preferences to train on: here those of 300 pairs that it has not seen; yours are samples of
# a policy.
tail -n 300 "$data/train.jsonl" > runs/smollm2-hh/samples.jsonl
python -m rmkit.label --model runs/smollm2-hh/FINAL --feedback pairwise --max-length 192 --overwrite \
    runs/smollm2-hh/samples.jsonl runs/smollm2-hh/labels.jsonl
python -m rmkit.train --exp-name smollm2-labels --overwrite --data.train runs/smollm2-hh/labels.jsonl \
    --model.name runs/smollm2 --data.test "$data/test.jsonl" --data.max-length 192 --batch.pairs 16 \
    --optim.schedule cosine --optim.max-steps 20 --lora.rank 16 --optim.lr 3e-4 --eval.every 0 --save.every 0
