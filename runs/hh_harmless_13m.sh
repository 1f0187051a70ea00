#!/usr/bin/env bash
# A 13M-parameter Llama from scratch on the HH harmless pairs: one epoch, evaluated before, during and after.
# The figure: held-out accuracy 0.535 to 0.596 (bench/results/hh_harmless_13m.json). Give the folder that
# holds train.jsonl and test.jsonl.
#   bash runs/hh_harmless_13m.sh DATA_FOLDER
set -euo pipefail
data=$1
cd "$(dirname "$0")/.."
python bench/step_bench.py --prepare runs/hh-13m-start --data "$data/train.jsonl" --max-length 1024
python -m rmkit.train --exp-name hh-13m --overwrite --model.name runs/hh-13m-start \
    --data.train "$data" --data.test "$data" --data.max-length 1024 \
    --batch.pairs 16 --optim.lr 3e-4 --optim.schedule cosine --eval.every 50 --save.every 0
