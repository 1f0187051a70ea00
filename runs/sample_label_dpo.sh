#!/usr/bin/env bash
# From a policy and a reward model to a better policy: sample with vLLM, label with rmkit, train by DPO with TRL.
# Not yet run as a whole: sampling and DPO need a GPU. Labelling is measured on a CPU: 2.6 to 5.1 times one answer at a
# time (bench/results/label_bench.json).
#   bash runs/sample_label_dpo.sh REWARD_MODEL PROMPTS.jsonl        # lines {"prompt": "..."}
set -euo pipefail
reward_model=$1 prompts=$2 policy=${POLICY:-Qwen/Qwen3-0.6B} out=${OUT:-runs/dpo}
cd "$(dirname "$0")/.."
mkdir -p "$out/pairs"
# vLLM has its own torch: an environment of its own keeps this one as it is. 8 answers a prompt, one row a prompt.
"${VLLM_PYTHON:-python}" - "$policy" "$prompts" "$out/samples.jsonl" <<'PYTHON'
import json
import sys

from vllm import LLM, SamplingParams

policy, prompts, out = sys.argv[1:]
asked = [json.loads(line)["prompt"] for line in open(prompts)]
talks = [[{"role": "user", "content": each}] for each in asked]
answers = LLM(policy).chat(talks, SamplingParams(n=8, temperature=1.0, max_tokens=1024))
with open(out, "w") as file:
    for prompt, answer in zip(asked, answers, strict=True):
        file.write(json.dumps({"prompt": prompt, "responses": [each.text for each in answer.outputs]}) + "\n")
PYTHON
# The best and the worst answer of each prompt, if their rewards are at least 0.5 apart: closer ones teach noise.
# The eight answers share their prompt in the trie, so it is computed once. --resume goes on after a kill.
python -m rmkit.label --model "$reward_model" --feedback pairwise --pairing max --threshold 0.5 --format trl --resume \
    "$out/samples.jsonl" "$out/pairs/train.jsonl"
# A folder with train.jsonl is a data set to TRL, and the records are in its own form.
trl dpo --model_name_or_path "$policy" --dataset_name "$out/pairs" --output_dir "$out/policy" \
    --learning_rate 5e-7 --per_device_train_batch_size 2 --gradient_accumulation_steps 16 --beta 0.1
