"""A row of every shape as its source has it, with all fields of the true schema, in as few words as they take.

Written by hand from the sources that rmkit/data/shapes names; each says "good" where the answer is that is preferred,
and "bad" where the other one is.
"""

import json
from typing import Any

Row = dict[str, Any]


def user(content: str) -> Row:
    return {"role": "user", "content": content}


def bot(content: str) -> Row:
    return {"role": "assistant", "content": content}


def gpt(content: str) -> Row:
    return {"from": "gpt", "value": content}


TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def call(city: str) -> Row:
    function = {"name": "weather", "arguments": {"city": city}}
    return {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": function}]}


def true_rows(good: str = "good", bad: str = "bad", ask: str = "ask") -> dict[str, tuple[str, Row]]:
    """Name of a source -> (the form that its rows have, a row)."""
    chats = {
        "TRL tools": (
            "explicit prompt",
            {
                "prompt": [user(ask)],
                "chosen": [call("Ulm"), {"role": "tool", "name": "weather", "content": "rain"}, bot(good)],
                "rejected": [call("Aalen"), {"role": "tool", "name": "weather", "content": "sun"}, bot(bad)],
                "tools": [TOOL],
                "chat_template_kwargs": {"enable_thinking": False},
            },
        ),
        "OpenRLHF": (
            "implicit prompt",
            {"source": "x", "chosen": [user(ask), bot(good)], "rejected": [user(ask), bot(bad)], "chosen_score": 5.0},
        ),
        "axolotl chat_template": (
            "messages with chosen and rejected",
            {"messages": [{"role": "system", "content": "s"}, user(ask)], "chosen": bot(good), "rejected": bot(bad)},
        ),
        "axolotl argilla_chat": (
            "implicit prompt",
            {
                **{"chosen": [user(ask), bot(good)], "rejected": [user(ask), bot(bad)], "dataset": "d"},
                **{"chosen_rating": 5.0, "rejected_rating": 2.0},
            },
        ),
        "axolotl intel": (
            "question with chosen and rejected",
            {"system": "s", "question": ask, "chosen": good, "rejected": bad},
        ),
        "axolotl prompt_pairs": (
            "explicit prompt",
            {"system": "s", "prompt": ask, "chosen": good, "rejected": bad},
        ),
        "axolotl bradley_terry (argilla intel-orca)": (
            "input with chosen and rejected",
            {
                **{"system": "s", "input": ask, "chosen": good, "rejected": bad, "generations": [good, bad]},
                **{"order": ["x", "y"], "labelling_model": "gpt-4", "labelling_prompt": [user("judge")]},
                **{"rating": [9.0, 1.0], "rationale": "r", "status": "s", "original_chosen": good},
                **{"original_rejected": bad, "chosen_score": 9.0, "in_gsm8k_train": False},
            },
        ),
        "LLaMA-Factory alpaca": (
            "instruction with chosen and rejected",
            {
                **{"instruction": ask, "input": "about this", "chosen": good, "rejected": bad, "system": "s"},
                "history": [["q0", "a0"]],
            },
        ),
        "LLaMA-Factory sharegpt": (
            "conversations with chosen and rejected",
            {
                "conversations": [{"from": "human", "value": ask}],
                "chosen": gpt(good),
                "rejected": gpt(bad),
                "system": "s",
                "tools": json.dumps([TOOL["function"]]),
            },
        ),
        "LLaMA-Factory 1": (
            "LLaMA-Factory 1",
            {
                f"{side}_messages": [
                    {"role": "user", "content": [{"type": "text", "value": ask}], "loss_weight": 0.0},
                    {"role": "assistant", "content": [{"type": "text", "value": answer}], "loss_weight": 1.0},
                ]
                for side, answer in (("chosen", good), ("rejected", bad))
            },
        ),
        "torchtune": (
            "torchtune",
            {
                "chosen_conversations": [user(ask), bot(good)],
                "rejected_conversations": [user(ask), bot(bad)],
            },
        ),
        "ms-swift": (
            "ms-swift rejected_response",
            {"messages": [user(ask), bot(good)], "rejected_response": bad, "margin": 1.5},
        ),
        "ms-swift messages": (
            "ms-swift rejected_messages",
            {
                "messages": [user(ask), {"role": "tool_call", "content": '{"name": "f", "arguments": {}}'}, bot(good)],
                "rejected_messages": [user(ask), bot(bad)],
            },
        ),
        "ms-swift query": (
            "ms-swift query",
            {"system": "s", "query": ask, "response": good, "rejected_response": bad, "history": [["q0", "a0"]]},
        ),
        "OpenAI": (
            "OpenAI preference",
            {
                "input": {"messages": [user(ask)], "tools": [], "parallel_tool_calls": True},
                "preferred_output": [bot(good)],
                "non_preferred_output": [bot(bad)],
            },
        ),
    }
    instructions = {
        "argilla ultrafeedback-binarized": (
            "instruction with chosen_response and rejected_response",
            {
                **{"source": "x", "instruction": ask, "chosen_response": good, "rejected_response": bad},
                **{"chosen_avg_rating": 5.0, "rejected_avg_rating": 2.0, "chosen_model": "gpt-4"},
            },
        ),
        "argilla ultrafeedback-cleaned": (
            "explicit prompt",
            {
                **{"source": "x", "prompt": ask, "chosen": [user(ask), bot(good)], "chosen-rating": 5.0},
                **{
                    "chosen-model": "m",
                    "rejected": [user(ask), bot(bad)],
                    "rejected-rating": 2.0,
                    "rejected-model": "n",
                },
            },
        ),
        "MedicalGPT": (
            "question with response_chosen and response_rejected",
            {
                **{"system": "", "history": [], "question": ask},
                **{"response_chosen": good, "response_rejected": bad},
            },
        ),
        "stack-exchange-paired": (
            "stack-exchange-paired",
            {
                **{"qid": 1, "question": ask, "date": "2011", "metadata": ["u"], "response_j": good},
                "response_k": bad,
            },
        ),
        "Dahoas full-hh-rlhf": (
            "HH prompt",
            {
                "prompt": f"\n\nHuman: {ask}\n\nAssistant:",
                **{"response": f" {good}", "chosen": f" {good}", "rejected": f" {bad}"},
            },
        ),
    }
    return chats | instructions | _ranked(good, bad, ask) | _judged(good, bad, ask) | _named(good, bad, ask)


def _ranked(good: str, bad: str, ask: str) -> dict[str, tuple[str, Row]]:
    def rated(model: str, answer: str, score: float) -> Row:
        aspects = ("helpfulness", "honesty", "instruction_following", "truthfulness")
        return {
            "annotations": {aspect: {"Rating": "5", "Rationale": "r"} for aspect in aspects},
            **{"custom_system_prompt": "be kind", "model": model, "principle": "helpfulness", "response": answer},
            **{"critique": "c", "fine-grained_score": score, "overall_score": 10.0},
        }

    return {
        "NeMo-RL": (
            "NeMo-RL completions",
            {
                "context": [user(ask)],
                "completions": [{"rank": 1, "completion": [bot(bad)]}, {"rank": 0, "completion": [bot(good)]}],
                "task_name": "t",
            },
        ),
        "UltraFeedback": (
            "UltraFeedback (fine-grained_score)",
            {
                **{"source": "x", "instruction": ask, "models": ["a", "b"]},
                "completions": [rated("a", bad, 2.5), rated("b", good, 4.75)],
                **{"correct_answers": ["None"], "incorrect_answers": ["None"]},
            },
        ),
        "distilabel": (
            "distilabel generations",
            {
                **{"instruction": ask, "generations": [bad, "unrated", good], "ratings": [1, None, 5]},
                **{"rationales": ["r"] * 3, "model_name": "m"},
            },
        ),
        "Nectar": (
            "Nectar",
            {
                "prompt": f"\n\nHuman: {ask}\n\nAssistant: ",
                "answers": [
                    {"answer": good, "model": "a", "rank": 1.0},
                    {"answer": bad, "model": "b", "rank": 2.0},
                ],
                **{"turns": 1, "num_responses": 2, "source": ["lmsys"], "good_natured": True},
            },
        ),
        "HelpSteer2": (
            "HelpSteer (the more helpful of the answers that follow one another)",
            {
                **{"prompt": ask, "response": good, "helpfulness": 4, "correctness": 4, "coherence": 4},
                **{"complexity": 2, "verbosity": 1},
            },
        ),
        "HelpSteer2 turns": (
            "HelpSteer (the more helpful of the answers that follow one another)",
            {
                **{"prompt": _turns(ask), "response": good, "helpfulness": 4, "correctness": 4, "coherence": 4},
                **{"complexity": 2, "verbosity": 1},
            },
        ),
    }


def _turns(ask: str) -> str:
    """A prompt of several turns as nvidia/HelpSteer2 has them, in NeMo's marks."""
    return f"q0\n\nq1\n<extra_id_1>Assistant\na0\n<extra_id_1>User\n{ask}"


def _judged(good: str, bad: str, ask: str) -> dict[str, tuple[str, Row]]:
    return {
        "AlpacaEval": (
            "AlpacaEval or AlpacaFarm",
            {
                **{"instruction": ask, "output_1": bad, "generator_1": "a", "output_2": good, "generator_2": "b"},
                **{"dataset": "d", "annotator": "gpt4", "preference": 2.0},
            },
        ),
        "AlpacaFarm": (
            "AlpacaEval or AlpacaFarm",
            {"instruction": ask, "input": "this", "output_1": good, "output_2": bad, "preference": 1},
        ),
        "LLMBar": ("LLMBar", {"input": ask, "output_1": bad, "output_2": good, "label": 2}),
        "PandaLM": (
            "PandaLM",
            {
                **{"idx": 0, "instruction": ask, "input": "", "motivation_app": "x", "response1": good},
                **{"response2": bad, "annotator1": 1, "annotator2": 1, "annotator3": 2, "cmp_key": "a_b"},
            },
        ),
        "auto-j": (
            "auto-j",
            {"scenario": "s", "label": 1, "prompt": ask, "response 1": bad, "response 2": good},
        ),
        "JudgeBench": (
            "JudgeBench",
            {
                **{"pair_id": "p", "source": "mmlu", "question": ask, "response_model": "gpt-4o"},
                **{"response_A": bad, "response_B": good, "label": "B>A"},
            },
        ),
        "Arena": (
            "Arena conversations",
            {
                **{"question_id": "q", "model_a": "a", "model_b": "b", "winner": "model_b", "judge": "j"},
                "conversation_a": [user(ask), bot(bad)],
                "conversation_b": [user(ask), bot(good)],
                **{"turn": 1, "anony": True, "language": "English", "tstamp": 1.0},
                **{"openai_moderation": {}, "toxic_chat_tag": {}},
            },
        ),
        "Arena 55k": (
            "Arena 55k",
            {
                **{"id": 30192, "model_a": "a", "model_b": "b", "prompt": json.dumps([ask, "and?"])},
                **{"response_a": json.dumps([good, "x"]), "response_b": json.dumps([bad, None])},
                **{"winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0},
            },
        ),
        "HelpSteer2-Preference": (
            "HelpSteer2 preference",
            {
                **{"split": "train", "prompt": ask, "response_1": bad, "response_2": good},
                **{"preference_strength": 2, "preference_statement": "s", "preference_elaboration": "e"},
                **{"three_most_similar_preferences": [], "all_preferences_unprocessed": []},
            },
        ),
        "HelpSteer2-Preference turns": (
            "HelpSteer2 preference",
            {
                **{"split": "train", "prompt": _turns(ask), "response_1": bad, "response_2": good},
                **{"preference_strength": 2, "preference_statement": "s", "preference_elaboration": "e"},
                **{"three_most_similar_preferences": [], "all_preferences_unprocessed": []},
            },
        ),
        "HelpSteer3": (
            "HelpSteer3",
            {
                **{"domain": "code", "language": "python", "context": [user(ask)], "response1": good},
                **{"response2": bad, "overall_preference": -2, "individual_preference": [{"score": -2}]},
            },
        ),
        "WebGPT": (
            "WebGPT comparisons",
            {
                "question": {"dataset": "eli5", "id": "i", "full_text": ask},
                **{"quotes_0": {"title": [], "extract": []}, "answer_0": bad, "tokens_0": {}, "score_0": -0.5},
                **{"quotes_1": {"title": [], "extract": []}, "answer_1": good, "tokens_1": {}, "score_1": 0.5},
            },
        ),
        "summarize_from_feedback": (
            "summarize_from_feedback comparisons",
            {
                "info": {
                    **{"id": "t3_x", "post": ask, "title": "t", "subreddit": "tifu"},
                    **{"site": None, "article": None},
                },
                "summaries": [{"text": bad, "policy": "a", "note": None}, {"text": good, "policy": "b", "note": None}],
                **{"choice": 1, "worker": "w", "batch": "b", "split": "train", "extra": {"confidence": 3}},
            },
        ),
    }


def _named(good: str, bad: str, ask: str) -> dict[str, tuple[str, Row]]:
    return {
        "SHP": (
            "SHP",
            {
                **{"post_id": "p", "domain": "askculinary_train", "upvote_ratio": 0.98, "history": ask},
                **{"c_root_id_A": "a", "c_root_id_B": "b", "created_at_utc_A": 1, "created_at_utc_B": 2},
                **{"score_A": 2, "score_B": 8, "human_ref_A": bad, "human_ref_B": good, "labels": 0},
                **{"seconds_difference": 1.0, "score_ratio": 4.0},
            },
        ),
        "PKU-SafeRLHF": (
            "PKU-SafeRLHF (better_response_id)",
            {
                **{"prompt": ask, "prompt_source": "x", "response_0_source": "a", "response_1_source": "b"},
                **{"response_0": bad, "response_1": good, "is_response_0_safe": True, "is_response_1_safe": True},
                **{"response_0_harm_category": {}, "response_1_harm_category": {}, "better_response_id": 1},
                **{"safer_response_id": 0, "response_0_sha256": "x", "response_1_sha256": "y"},
            },
        ),
    }


def benchmark_rows() -> dict[str, dict[str, Row]]:
    """Name of a benchmark -> a row of each kind of file of its clone, by the place of the file."""
    lists = {"prompt": "ask", "chosen": ["a", "bb", "ccc"], "rejected": ["d", "ee", "fff"]}
    asked = {"conversation_input": [{"role": "user", "content": "ask", "language": "English"}], "task": "t"}
    paired = {"answer": "good", "llm_name": "m"}, {"answer": "bad", "llm_name": "n"}
    sampled = {f"response_{i + 1}": answer for i, answer in enumerate(("good", "bad", "worse", "right"))}
    return {
        "rm-bench": {
            "data/chat_filtered.json": {"id": 8, "subset": "alpacaeval", **lists, "error": "e", "error_key": "k"},
            "data/math_filtered.json": {"id": 9, **lists, "domain": "math"},
        },
        "judgebench": {
            "data/dataset=judgebench,response_model=gpt-4o-2024-05-13.jsonl": {
                **{"pair_id": "p", "original_id": 1, "source": "mmlu-pro-law", "question": "ask"},
                **{"response_model": "gpt-4o", "response_A": "bad", "response_B": "good", "label": "B>A"},
            }
        },
        "rewardbench": {
            "filtered.jsonl": {
                **{"prompt": "ask", "chosen": "good", "chosen_model": "m", "rejected": "bad"},
                **{"rejected_model": "n", "subset": "alpacaeval-easy", "id": 0},
            }
        },
        "rewardbench2": {
            "test.jsonl": {
                **{"id": "1", "prompt": "ask", "chosen": ["good"], "rejected": ["bad", "worse", "worst"]},
                **{"num_correct": 1, "num_incorrect": 3, "total_completions": 4, "subset": "Factuality"},
            },
            "ties.jsonl": {**lists, "id": "ref:1", "subset": "Ties", "num_correct": 3, "total_completions": 6},
        },
        "rmb": {
            "RMB_dataset/Pairwise_set/Harmlessness/S1.json": {
                **asked,
                **{"pair_uid": "1", "chosen": paired[0], "reject": paired[1]},
                "category_path": "Pairwise_set/Harmlessness/S1",
            },
            "RMB_dataset/BoN_set/Harmlessness/S1.json": {
                **asked,
                **{"bon_uid": "2", "bon_best": paired[0], "loser_list": [paired[1], paired[1]]},
                "category_path": "BoN_set/Harmlessness/S1",
            },
        },
    } | {
        # These lie on the hub as Parquet; a file of JSON is read alike where its path is given.
        "ppe-preference": {
            "test.jsonl": {"question_id": "q", "prompt": "ask", "winner": "model_b", **sampled, "is_code": False}
        },
        "ppe-correctness": {
            "PPE-MATH-Best-of-K/train.jsonl": {
                **{"question_id": "q", "prompt": "ask", **sampled, "scores": [True, False, False, True]},
                "sampled_conflict_pairs": [[1, 0], [3, 2], [1, 2]],
            }
        },
    }
