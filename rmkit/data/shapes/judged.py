"""Two answers and a label that says which is better, or that neither is.

Sources: HALOs (pairwise_feedback); tatsu-lab/alpaca_eval annotations.json and AlpacaFarm (preference 1 or 2; between
them the judge's probability of the second; 0 and 1.5 are ties, null is no label); princeton-nlp/LLMBar;
WeOpenML/PandaLM; GAIR-NLP/auto-j; ScalerLab/JudgeBench; lmsys/chatbot_arena_conversations and its kin
(arena-human-preference-100k and -55k, mt_bench_human_judgments); nvidia/HelpSteer2 preference/ and HelpSteer3 (strength
from -3 to 3, negative where the first is better); openai/webgpt_comparisons; openai/summarize_from_feedback.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from rmkit.data.fields import number, show, text
from rmkit.data.messages import Message, messages
from rmkit.data.shapes.instruction import instruction
from rmkit.data.shapes.plain import nemo_turns, turned
from rmkit.data.shapes.shape import Pair, Row, Shape, names, parted

TIE = "tie"
UNKNOWN = "no label"


class Verdict(NamedTuple):
    """Which of two answers is preferred."""

    first: bool = True
    undecided: str = ""
    """TIE or UNKNOWN; "" where one is preferred"""
    target: float | None = None
    """Probability of the preferred one, where the label is a probability"""


def _pair(prompt: list[Message], sides: list[list[Message]], verdict: Verdict) -> Pair:
    chosen, rejected = sides if verdict.first else sides[::-1]
    return Pair("", prompt, chosen, rejected, verdict.undecided, verdict.target)


def _whole(sides: list[list[Message]], verdict: Verdict) -> Pair:
    pair = parted(*(sides if verdict.first else sides[::-1]))
    return pair._replace(undecided=verdict.undecided, target=verdict.target)


def _one_of(words: dict[Any, Verdict], field: str, need: str) -> Callable[[Row], Verdict]:
    """The verdict of a label that is one of these words or numbers."""

    def verdict(row: Row) -> Verdict:
        given = row.get(field)
        if isinstance(given, (str, int, float)) and not isinstance(given, bool) and given in words:
            return words[given]
        raise ValueError(f"field '{field}': found {show(given)}, need {need}")

    return verdict


def _strength(field: str) -> Callable[[Row], Verdict]:
    """HelpSteer: from -3 (the first is much better) to 3 (the second is)."""

    def verdict(row: Row) -> Verdict:
        strength = number(row[field], field)
        return Verdict(first=strength < 0, undecided=TIE if strength == 0 else "")

    return verdict


def _alpaca(row: Row) -> Verdict:
    """AlpacaEval: 1 is the first, 2 the second; what lies between is how sure the judge is of the second."""
    if row.get("preference") is None:
        return Verdict(undecided=UNKNOWN)
    preference = number(row["preference"], "preference", 0.0, 2.0)
    if preference in (0.0, 1.5):
        return Verdict(undecided=TIE)
    if preference < 1.0:
        raise ValueError(f"field 'preference': found {preference:g}, need 1 to 2, or 0 for a tie")
    sure = max(preference - 1.0, 2.0 - preference)
    return Verdict(first=preference < 1.5, target=None if sure == 1.0 else sure)


def _pandalm(row: Row) -> Verdict:
    """Three people: 0 is a tie, 1 the first, 2 the second; what most of them say."""
    votes = Counter(_one_of({0: 0, 1: 1, 2: 2}, f"annotator{i}", "0, 1 or 2")(row) for i in (1, 2, 3))
    label, count = votes.most_common(1)[0]
    return Verdict(undecided=TIE) if count < 2 or label == 0 else Verdict(first=label == 1)


def _texts(prompt: Callable[[Row], list[Message]], first: str, second: str, verdict: Callable[[Row], Verdict]) -> Any:
    def pairs(row: Row) -> Iterator[Pair]:
        yield _pair(prompt(row), [messages(row[side], side) for side in (first, second)], verdict(row))

    return pairs


def _field(name: str) -> Callable[[Row], list[Message]]:
    return lambda row: messages(row.get(name), name, "user")


def _nemo(row: Row) -> list[Message]:
    return nemo_turns(row["prompt"], "prompt")


def _halos(row: Row) -> Iterator[Pair]:
    """Label 1 prefers output_A and 0 output_B. HALOs reads any other number as 0: nothing is silently something else
    here. 0.5 says neither and -1 (or NaN) that nobody knows, both are left out; what else lies between 0 and 1 is how
    sure the judge is of output_A, and other numbers are refused. Rewards are ignored."""
    field = "instruction" if row.get("prompt") is None and "instruction" in row else "prompt"
    prompt, answers = turned(row.get(field), [row.get(side) for side in ("output_A", "output_B")])
    sides = [messages(answer, side) for answer, side in zip(answers, ("output_A", "output_B"), strict=True)]
    yield _pair(messages(prompt, field, "user"), sides, _halos_label(row.get("label")))


def _halos_label(label: Any) -> Verdict:
    if isinstance(label, (int, float)) and (label in (0.5, -1) or label != label):  # NaN equals nothing
        return Verdict(undecided=TIE if label == 0.5 else UNKNOWN)
    if not isinstance(label, (int, float)) or not 0 <= label <= 1:
        raise ValueError(
            f"field 'label': found {show(label)}, need 1 (A is preferred), 0 (B is), the probability of A between "
            "them, 0.5 for a tie, or -1 where nobody knows"
        )
    sure = max(label, 1 - label)
    return Verdict(first=label > 0.5, target=None if sure == 1 else float(sure))


_WINNER = {"model_a": Verdict(), "model_b": Verdict(first=False)}
_WINNER |= dict.fromkeys(("tie", "tie (bothbad)", "both_bad", "bothbad", "tie (both bad)"), Verdict(undecided=TIE))


def _arena(row: Row) -> Iterator[Pair]:
    """Two whole conversations with the same questions. Where `turn` is given, what was judged ends there (MT-Bench
    keeps both turns of a conversation in the rows of either)."""
    sides = [messages(row[side], side) for side in ("conversation_a", "conversation_b")]
    if row.get("turn") is not None:
        turns = number(row["turn"], "turn", 1.0)
        sides = [_until(side, turns) for side in sides]
    heads = [[m["content"] for m in side if m["role"] == "user"] for side in sides]
    if heads[0] != heads[1] or not all(side and side[-1]["role"] == "assistant" for side in sides):
        raise ValueError("fields 'conversation_a' and 'conversation_b': need the same questions, and an answer each")
    yield _whole(sides, _one_of(_WINNER, "winner", "model_a, model_b or tie")(row))


def _until(side: list[Message], turns: float) -> list[Message]:
    asked = [i for i, message in enumerate(side) if message["role"] == "user"]
    return side[: asked[int(turns)]] if turns < len(asked) else side


def _arena_55k(row: Row) -> Iterator[Pair]:
    """Questions and answers as JSON lists in text, as its CSV has them."""
    asked, a, b = (_listed(row[field], field) for field in ("prompt", "response_a", "response_b"))
    if not len(asked) == len(a) == len(b) or not asked:
        raise ValueError(
            f"fields 'prompt', 'response_a' and 'response_b': found {len(asked)}, {len(a)} and {len(b)} turns"
        )
    won = [number(row[field], field) for field in ("winner_model_a", "winner_model_b", "winner_tie")]
    if sorted(won) != [0.0, 0.0, 1.0]:
        raise ValueError("fields 'winner_model_a', 'winner_model_b' and 'winner_tie': need one 1 and two 0")
    sides = []
    for answers in (a, b):
        turns = []
        for question, answer in zip(asked, answers, strict=True):
            turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        sides.append(turns)
    yield _whole(sides, Verdict(first=won[0] == 1.0, undecided=TIE if won[2] == 1.0 else ""))


def _listed(value: Any, field: str) -> list[str]:
    """The texts of a JSON list in text; an answer that is null there is an empty one."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError(f"field '{field}': found {show(value)}, need a list of texts as JSON") from None
    if not isinstance(value, list):
        raise ValueError(f"field '{field}': found {show(value)}, need a list of texts")
    return ["" if entry is None else text(entry, f"{field}[{i}]") for i, entry in enumerate(value)]


def _webgpt(row: Row) -> Iterator[Pair]:
    question = row["question"]
    if not isinstance(question, dict):
        raise ValueError(f"field 'question': found {show(question)}, need an object with full_text")
    a, b = (number(row[field], field) for field in ("score_0", "score_1"))
    sides = [messages(row[field], field) for field in ("answer_0", "answer_1")]
    prompt = messages(question.get("full_text"), "question.full_text", "user")
    yield _pair(prompt, sides, Verdict(first=a > b, undecided=TIE if a == b else ""))


def _summarize(row: Row) -> Iterator[Pair]:
    """The post in the words in which OpenAI's models were asked for a summary (its appendix)."""
    info, summaries = row["info"], row["summaries"]
    if not isinstance(info, dict):
        raise ValueError(f"field 'info': found {show(info)}, need an object with the post, or the article")
    if not isinstance(summaries, list) or len(summaries) != 2 or not all(isinstance(s, dict) for s in summaries):
        raise ValueError(f"field 'summaries': found {show(summaries)}, need two objects, each with its text")
    if info.get("post") is not None:
        parts = {name: text(info.get(name), f"info.{name}") for name in ("subreddit", "title", "post")}
        asked = "SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:".format(**parts)
    else:
        asked = f"Article:\n\n{text(info.get('article'), 'info.article')}\n\nTL;DR:"
    sides = [messages(s.get("text"), f"summaries[{i}].text") for i, s in enumerate(summaries)]
    verdict = _one_of({0: Verdict(), 1: Verdict(first=False)}, "choice", "0 or 1")(row)
    yield _pair([{"role": "user", "content": asked}], sides, verdict)


_12 = {1: Verdict(), 2: Verdict(first=False)}
_AUTO_J = {0: Verdict(), 1: Verdict(first=False), 2: Verdict(undecided=TIE)}
_AB = {"A>B": Verdict(), "B>A": Verdict(first=False), "A=B": Verdict(undecided=TIE)}

SHAPES = (
    Shape(
        name="HALOs pairwise_feedback",
        needs='type "pairwise_feedback", prompt, output_A, output_B and label',
        keys=names("type"),
        fits=lambda row: row["type"] == "pairwise_feedback",
        uses=names("prompt", "instruction", "output_A", "output_B", "label", "prompt_id"),
        pairs=_halos,
    ),
    Shape(
        name="AlpacaEval or AlpacaFarm",
        needs="instruction (and input), output_1, output_2 and preference",
        keys=names("instruction", "output_1", "output_2"),
        without=names("label"),
        fits=lambda row: "preference" in row,
        uses=names("input", "preference"),
        pairs=_texts(instruction, "output_1", "output_2", _alpaca),
    ),
    Shape(
        name="LLMBar",
        needs="input, output_1, output_2 and label (1 or 2)",
        keys=names("input", "output_1", "output_2", "label"),
        without=names("instruction", "preference"),
        pairs=_texts(_field("input"), "output_1", "output_2", _one_of(_12, "label", "1 or 2")),
    ),
    Shape(
        name="PandaLM",
        needs="instruction (and input), response1, response2 and annotator1 to annotator3",
        keys=names("instruction", "response1", "response2", "annotator1", "annotator2", "annotator3"),
        uses=names("input"),
        pairs=_texts(instruction, "response1", "response2", _pandalm),
    ),
    Shape(
        name="auto-j",
        needs="prompt, response 1, response 2 and label (0, 1, or 2 for a tie)",
        keys=names("prompt", "response 1", "response 2", "label"),
        pairs=_texts(
            _field("prompt"), "response 1", "response 2", _one_of(_AUTO_J, "label", "0 (the first), 1 or 2 (a tie)")
        ),
    ),
    Shape(
        name="JudgeBench",
        needs="question, response_A, response_B and label (A>B or B>A)",
        keys=names("question", "response_A", "response_B", "label"),
        pairs=_texts(_field("question"), "response_A", "response_B", _one_of(_AB, "label", "A>B or B>A")),
    ),
    Shape(
        name="Arena conversations",
        needs="conversation_a, conversation_b and winner",
        keys=names("conversation_a", "conversation_b", "winner"),
        uses=names("turn"),
        pairs=_arena,
    ),
    Shape(
        name="Arena 55k",
        needs="prompt, response_a, response_b and winner_model_a, winner_model_b, winner_tie",
        keys=names("prompt", "response_a", "response_b", "winner_model_a", "winner_model_b", "winner_tie"),
        pairs=_arena_55k,
    ),
    Shape(
        name="HelpSteer2 preference",
        needs="prompt, response_1, response_2 and preference_strength",
        keys=names("prompt", "response_1", "response_2", "preference_strength"),
        pairs=_texts(_nemo, "response_1", "response_2", _strength("preference_strength")),
    ),
    Shape(
        name="HelpSteer3",
        needs="context, response1, response2 and overall_preference",
        keys=names("context", "response1", "response2", "overall_preference"),
        pairs=_texts(_field("context"), "response1", "response2", _strength("overall_preference")),
    ),
    Shape(
        name="WebGPT comparisons",
        needs="question (its full_text), answer_0, answer_1, score_0 and score_1",
        keys=names("question", "answer_0", "answer_1", "score_0", "score_1"),
        pairs=_webgpt,
    ),
    Shape(
        name="summarize_from_feedback comparisons",
        needs="info (its post or article), two summaries and choice",
        keys=names("info", "summaries", "choice"),
        pairs=_summarize,
    ),
)
