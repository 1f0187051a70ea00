"""Public preference files as they lie in their repositories, each with a reading of a few lines of its own.

Nothing here is rmkit's, so that rmkit's reading can be held against it. A reader takes a row as JSON gives it and
returns what it compares: (conversation with the better answer, with the other, tools) a pair; nothing for a tie.
"""

import itertools
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Turns = list[dict[str, Any]]
Pairs = list[tuple[Turns, Turns, list[Any] | None]]
Read = Callable[[dict[str, Any]], Pairs]

ROLES = {"human": "user", "gpt": "assistant", "system": "system", "observation": "tool"}


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def asked(question: str, better: str, worse: str) -> Pairs:
    return [
        ([turn("user", question), turn("assistant", better)], [turn("user", question), turn("assistant", worse)], None)
    ]


def either(row: dict[str, Any], question: str, first: str, second: str, first_wins: bool | None) -> Pairs:
    if first_wins is None:
        return []
    return asked(question, row[first], row[second]) if first_wins else asked(question, row[second], row[first])


def with_input(row: dict[str, Any]) -> str:
    return "\n".join(text for text in (row["instruction"], row.get("input")) if text)


def messages(row: dict[str, Any]) -> Pairs:
    """TRL, with the prompt in a field of its own."""
    return [(row["prompt"] + row["chosen"], row["prompt"] + row["rejected"], None)]


def whole(row: dict[str, Any]) -> Pairs:
    return [(row["chosen"], row["rejected"], None)]


def hh(row: dict[str, Any], sides: tuple[str, str] = ("chosen", "rejected")) -> Pairs:
    read = []
    for side in sides:
        parts = re.split(r"\n\n(Human|Assistant):(?=\s|$)", row[side])[1:]
        turns: Turns = []
        for speaker, text in zip(parts[::2], parts[1::2], strict=True):
            role = {"Human": "user", "Assistant": "assistant"}[speaker]
            if turns and turns[-1]["role"] == role:
                turns[-1]["content"] = f"{turns[-1]['content']}\n\n{text.strip()}".strip()
            else:
                turns.append(turn(role, text.strip()))
        read.append(turns)
    return [(read[0], read[1], None)]


def hhh438(row: dict[str, Any]) -> Pairs:
    return hh(row, ("text_correct", "text_incorrect"))


def sharegpt(row: dict[str, Any]) -> Pairs:
    prompt = []
    for said in row["conversations"]:
        if said["from"] == "function_call":
            call = [{"type": "function", "function": json.loads(said["value"])}]
            prompt.append({"role": "assistant", "content": None, "tool_calls": call})
        else:
            prompt.append(turn(ROLES[said["from"]], said["value"]))
    sides = [row[side] if isinstance(row[side], str) else row[side]["value"] for side in ("chosen", "rejected")]
    tools = [{"type": "function", "function": tool} for tool in json.loads(row["tools"])] if row.get("tools") else None
    return [([*prompt, turn("assistant", sides[0])], [*prompt, turn("assistant", sides[1])], tools)]


def parts(row: dict[str, Any]) -> Pairs:
    """LLaMA-Factory 1: content in parts, all of them text in its demo."""
    sides = []
    for side in ("chosen_messages", "rejected_messages"):
        sides.append([turn(m["role"], "".join(part["value"] for part in m["content"])) for m in row[side]])
    return [(sides[0], sides[1], None)]


def openai(row: dict[str, Any]) -> Pairs:
    prompt = row["input"]["messages"]
    return [(prompt + row["preferred_output"], prompt + row["non_preferred_output"], row["input"].get("tools"))]


def alpaca_eval(row: dict[str, Any]) -> Pairs:
    p = row["preference"]
    first_wins = None if p in (None, 0.0, 1.5) else p < 1.5
    return either(row, with_input(row), "output_1", "output_2", first_wins)


def pandalm(row: dict[str, Any]) -> Pairs:
    label, votes = Counter(row[f"annotator{i}"] for i in (1, 2, 3)).most_common(1)[0]
    if not (isinstance(row["response1"], str) and isinstance(row["response2"], str)):  # six rows hold `true`
        return []
    return either(row, with_input(row), "response1", "response2", None if label == 0 or votes < 2 else label == 1)


def auto_j(row: dict[str, Any]) -> Pairs:
    return either(row, row["prompt"], "response 1", "response 2", {0: True, 1: False, 2: None}[row["label"]])


def judgebench(row: dict[str, Any]) -> Pairs:
    return either(row, row["question"], "response_A", "response_B", {"A>B": True, "B>A": False}[row["label"]])


def llmbar(row: dict[str, Any]) -> Pairs:
    return either(row, row["input"], "output_1", "output_2", {1: True, 2: False}[row["label"]])


def safe_rlhf(row: dict[str, Any]) -> Pairs:
    return either(row, row["prompt"], "response_0", "response_1", row["better_response_id"] == 0)


def stack_exchange(row: dict[str, Any]) -> Pairs:
    return asked(row["question"], row["response_j"], row["response_k"])


def lists(row: dict[str, Any]) -> Pairs:
    """RM-Bench: each of the three right answers beside each of the three wrong ones."""
    return [asked(row["prompt"], *two)[0] for two in itertools.product(row["chosen"], row["rejected"])]


def rmb(row: dict[str, Any]) -> Pairs:
    prompt = [turn(said["role"], said["content"]) for said in row["conversation_input"]]
    best, others = row.get("bon_best") or row["chosen"], row["loser_list"] if "bon_best" in row else [row["reject"]]
    sides = [prompt + [turn("assistant", one["answer"])] for one in (best, *others)]
    return [(sides[0], other, None) for other in sides[1:]]


@dataclass(frozen=True, kw_only=True)
class File:
    repository: str
    commit: str
    """The one that was read; a clone of another may have other rows"""
    path: str
    """Of a file, or of the folder of a clone"""
    rows: int
    read: Read
    shape: str
    """What rmkit should call it"""
    benchmark: str = ""
    files: str = ""
    """Pattern of the files of a clone"""
    flags: tuple[str, ...] = ()


_FACTORY = ("hiyouga/LLaMA-Factory", "ff6d4d12eeb035d6ce06805a5733dd7b29f2ac30")
_RM_BENCH = ("THU-KEG/RM-Bench", "73c52d7b27b361621361ec959ac6c0eb9bb7a689")
_JUDGEBENCH = ("ScalerLab/JudgeBench", "e2c52c284e735e139b3daa61c206ee208f36c461")
_LLMBAR = ("princeton-nlp/LLMBar", "900616bff90b6c6c8e1681f7d079250637c55992")
_ALPACA = ("tatsu-lab/alpaca_eval", "cd543a149df89434d8a54582c0151c0b945c3d20")
_HH = ("anthropics/hh-rlhf", "354e5c3cb8960630860dd5774a6ac2a58313bf4d")
_438 = ("anthropics/ConstitutionalHarmlessnessPaper", "831f7813dbafab659a526d7452f7adeac464b796")
_PANDALM = ("WeOpenML/PandaLM", "3871806e72b4832f815ecafd24d3503c73403f48")
_AUTO_J = ("GAIR-NLP/auto-j", "2ae17a3965d933232e9cd50302aa0f176249c83b")
_MEDICAL = ("shibing624/MedicalGPT", "2f1008cfa49cbba69ff6f138c3b5e2fb0646bdc7")
_ALIGN = ("PKU-Alignment/align-anything", "3f9decc221be74b2052e712e3a32e155686ec6ec")
_TORCHTUNE = ("meta-pytorch/torchtune", "bd2a0fc7c31430972728494fa01aaeeb0ebf1ba1")
_FOUNDRY = ("microsoft-foundry/fine-tuning", "de257fc40581a1e6040d0eed682eab89f6d107e8")
_RMB = ("Zhou-Zoey/RMB-Reward-Model-Benchmark", "2be3180857f2190b7ffa929d43190835627f1f4d")

_CHATS = "conversations with chosen and rejected"
_ORCA = "Sample_Datasets/Direct_Preference_Optimization/orca_dpo_pairs/validation.jsonl"
_438_COLUMNS = ("--columns", "chosen=text_correct", "rejected=text_incorrect", "prompt=")


def _file(of: tuple[str, str], path: str, rows: int, read: Read, shape: str, *flags: str) -> File:
    return File(repository=of[0], commit=of[1], path=path, rows=rows, read=read, shape=shape, flags=flags)


def _clone(of: tuple[str, str], name: str, files: str, rows: int, read: Read) -> File:
    named = {"shape": f"benchmark {name}", "benchmark": name, "files": files}
    return File(repository=of[0], commit=of[1], path="", rows=rows, read=read, **named)


FILES = (
    _file(_HH, "harmless-base/test.jsonl.gz", 2312, hh, "HH text"),
    _file(_438, "evals/438HHHEvaluations.jsonl", 438, hhh438, "HH text", *_438_COLUMNS),
    _file(_FACTORY, "data/dpo_en_demo.json", 300, sharegpt, _CHATS),
    _file(_FACTORY, "data/dpo_zh_demo.json", 300, sharegpt, _CHATS),
    _file(_FACTORY, "data/v1_dpo_demo.jsonl", 10, parts, "LLaMA-Factory 1"),
    _file(_MEDICAL, "data/reward/dpo_zh_500.jsonl", 500, sharegpt, _CHATS),
    _file(_MEDICAL, "data/reward/toolcall_dpo_zh_demo.jsonl", 11, sharegpt, _CHATS),
    _file(_FOUNDRY, _ORCA, 284, openai, "OpenAI preference"),
    _file(_TORCHTUNE, "tests/assets/hh_rlhf_tiny.json", 1, whole, "implicit prompt"),
    _file(_TORCHTUNE, "tests/assets/stack_exchange_paired_tiny.json", 25, stack_exchange, "stack-exchange-paired"),
    _file(_ALIGN, "assets/text_to_text/preference/train.json", 32, safe_rlhf, "PKU-SafeRLHF (better_response_id)"),
    _file(_PANDALM, "data/testset-v1.json", 999, pandalm, "PandaLM", "--bad-rows", "drop"),
    _file(_AUTO_J, "data/test/testdata_pairwise.jsonl", 1392, auto_j, "auto-j"),
    *(
        _file(_LLMBAR, f"Dataset/LLMBar/{part}/dataset.json", rows, llmbar, "LLMBar")
        for part, rows in (
            *(("Natural", 100), ("Adversarial/Neighbor", 134), ("Adversarial/GPTInst", 92)),
            *(("Adversarial/GPTOut", 47), ("Adversarial/Manual", 46)),
        )
    ),
    *(
        _file(_ALPACA, f"results/{run}/annotations.json", 805, alpaca_eval, "AlpacaEval or AlpacaFarm")
        for run in (
            "LMCocktail-10.7B-v1/alpaca_eval_gpt4",
            "FuseChat-Llama-3.2-1B-Instruct/weighted_alpaca_eval_gpt4_turbo",
        )
    ),
    _file(_RM_BENCH, "data/code_filtered.json", 228, lists, "response lists"),
    _file(_JUDGEBENCH, "data/dataset=judgebench,response_model=gpt-4o-2024-05-13.jsonl", 350, judgebench, "JudgeBench"),
    # The clones lack the files of 4 MiB and more: RM-Bench's math and total_dataset, three files of RMB.
    _clone(_RM_BENCH, "rm-bench", "data/*_filtered.json", 798, lists),
    _clone(_JUDGEBENCH, "judgebench", "data/*.jsonl", 620, judgebench),
    _clone(_RMB, "rmb", "RMB_dataset/**/*.json", 18329, rmb),
)
