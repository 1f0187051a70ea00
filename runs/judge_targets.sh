#!/usr/bin/env bash
# A reward model from a judge that gives probabilities: not "A is better" but "A is better with 0.8".
# Not yet run as a whole: the judge needs a GPU. Training on `target` is tested (tests/test_loss.py, tests/test_train.py).
#   bash runs/judge_targets.sh PAIRS.jsonl TEST.jsonl      # lines {"prompt": .., "chosen": .., "rejected": ..}
set -euo pipefail
pairs=$1 test=$2 judge=${JUDGE:-Qwen/Qwen3-8B} out=${OUT:-runs/judged}
cd "$(dirname "$0")/.."
mkdir -p "$out"
# The probability is that of the letters A and B as the judge's next token, in both orders: the mean of the two takes out
# its liking for the first place. 0.5 is a tie; below it the pair stands the wrong way round, which the loss understands.
"${VLLM_PYTHON:-python}" - "$judge" "$pairs" "$out/pairs.jsonl" <<'PYTHON'
import json
import math
import sys

from vllm import LLM, SamplingParams

ASKED = "Which answer is better? Say A or B only.\n\nQuestion: {}\n\nAnswer A: {}\n\nAnswer B: {}"
judge, pairs, out = sys.argv[1:]
rows = [json.loads(line) for line in open(pairs)]


def prefers_first(first, second):
    talks = [[{"role": "user", "content": ASKED.format(r["prompt"], r[first], r[second])}] for r in rows]
    one_token = SamplingParams(max_tokens=1, logprobs=20, temperature=0.0)
    found = []
    for answer in model.chat(talks, one_token, chat_template_kwargs={"enable_thinking": False}):
        seen = {each.decoded_token.strip(): math.exp(each.logprob) for each in answer.outputs[0].logprobs[0].values()}
        a, b = seen.get("A", 0.0), seen.get("B", 0.0)
        found.append(a / (a + b) if a + b else 0.5)
    return found


model = LLM(judge)
both = zip(prefers_first("chosen", "rejected"), prefers_first("rejected", "chosen"), strict=True)
with open(out, "w") as file:
    for row, (forward, backward) in zip(rows, both, strict=True):
        file.write(json.dumps({**row, "target": (forward + 1 - backward) / 2}) + "\n")
PYTHON
# Label smoothing stays at 0: the targets say how sure the judge is. The held-out pairs keep people's own labels.
python -m rmkit.train --exp-name judged --model.name Qwen/Qwen3-0.6B --data.train "$out/pairs.jsonl" --data.test "$test" \
    --batch.pairs 64 --optim.lr 1e-5 --eval.every 100
python -m rmkit.evaluate --model runs/judged/FINAL --data "$test"
