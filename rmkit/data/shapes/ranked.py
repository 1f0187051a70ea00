"""One prompt with several answers, each with a rank, a score or ratings, on a row or on rows that follow one another.

Sources: TRL's and our own `responses` with `ranks` or `scores`; NeMo-RL `docs/guides/rm.md` (context, completions);
openbmb/UltraFeedback (its fine-grained_score, the mean of the four ratings: of overall_score, argilla found thousands
wrong, ultrafeedback-binarized-preferences); distilabel `steps/tasks/ultrafeedback.py` (generations, ratings);
berkeley-nest/Nectar (rank 1 is best; axolotl's `zephyr.nectar` takes the worst); nvidia/HelpSteer and HelpSteer2.
"""

import json
from collections.abc import Iterator
from typing import Any

from rmkit.data.fields import entries, number, show
from rmkit.data.messages import Message, messages
from rmkit.data.ratings import LIST, ONE, is_rated
from rmkit.data.shapes.instruction import instruction
from rmkit.data.shapes.plain import hh_turns, is_hh_prompt, nemo_turns, turned
from rmkit.data.shapes.shape import Pair, Responses, Row, Shape, names, ranked, same_count

STEERED = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
"""What HelpSteer rates, from 0 to 4."""


def _ranked(row: Row) -> Responses:
    """With both ranks and scores, the ranks decide."""
    field = "completions" if row.get("responses") is None else "responses"
    given, responses = turned(row.get("prompt"), entries(row.get(field), field))
    prompt = messages(given, "prompt", "user")
    by = "scores" if row.get("ranks") is None else "ranks"
    values = entries(row.get(by), by)
    same_count(values, by, responses, field)
    sign = -1.0 if by == "ranks" else 1.0
    goods = [sign * number(value, f"{by}[{i}]") for i, value in enumerate(values)]
    return Responses(prompt, [messages(side, f"{field}[{i}]") for i, side in enumerate(responses)], goods)


def _is_ranked(row: Row) -> bool:
    lists = any(row.get(field) is not None for field in LIST)
    return lists and any(row.get(field) is not None for field in ("ranks", "scores"))


def _of_objects(row: Row, field: str, answer: str, by: str, sign: float) -> tuple[list, list[float]]:
    """Answers and numbers of a list of objects, or of an object of lists, as older tables have it."""
    given = row[field]
    if isinstance(given, dict) and all(isinstance(values, list) for values in given.values()):
        given = [dict(zip(given, values, strict=False)) for values in zip(*given.values(), strict=False)]
    sides, goods = [], []
    for i, entry in enumerate(entries(given, field) if given != [] else []):
        if not isinstance(entry, dict):
            raise ValueError(f"field '{field}[{i}]': found {show(entry)}, need an object with {answer} and {by}")
        sides.append(messages(entry.get(answer), f"{field}[{i}].{answer}"))
        goods.append(sign * number(entry.get(by), f"{field}[{i}].{by}"))
    return sides, goods


def _nemo(row: Row) -> Responses:
    return Responses(
        messages(row["context"], "context", "user"), *_of_objects(row, "completions", "completion", "rank", -1.0)
    )


def _ultrafeedback(row: Row) -> Responses:
    """Each completion was sampled under a system prompt of its own (custom_system_prompt), which is no part of what is
    compared: it would differ between chosen and rejected. It is said to be unused."""
    return Responses(instruction(row), *_of_objects(row, "completions", "response", "fine-grained_score", 1.0))


def _nectar(row: Row) -> Responses:
    prompt = messages(row["prompt"], "prompt", "user")
    if is_hh_prompt(row["prompt"]):
        prompt = hh_turns(row["prompt"])[0]
    return Responses(prompt, *_of_objects(row, "answers", "answer", "rank", -1.0))


def _distilabel(row: Row) -> Responses:
    field = "instruction" if row.get("input") is None else "input"
    by = "ratings" if row.get("rating") is None else "rating"
    generations, ratings = entries(row["generations"], "generations"), entries(row[by], by)
    same_count(ratings, by, generations, "generations")
    # A judge that gave no rating to an answer says nothing about it.
    rated = [i for i, rating in enumerate(ratings) if rating is not None]
    sides = [messages(generations[i], f"generations[{i}]") for i in rated]
    return Responses(messages(row.get(field), field, "user"), sides, [number(ratings[i], f"{by}[{i}]") for i in rated])


def _is_distilabel(row: Row) -> bool:
    one_prompt = (row.get("instruction") is None) != (row.get("input") is None)
    return one_prompt and (row.get("ratings") is None) != (row.get("rating") is None)


def _holds(field: str, *parts: str) -> Any:
    """Whether the entries of a list (or an object of lists) have these parts, judged by the first."""

    def fits(row: Row) -> bool:
        first = row[field][0] if isinstance(row[field], list) and row[field] else row[field]
        return isinstance(first, dict) and set(parts) <= first.keys()

    return fits


def _steered_prompt(row: Row) -> list[Message]:
    return nemo_turns(row["prompt"], "prompt")


def _steered(row: Row) -> Iterator[Pair]:
    """The answers that follow one another on one prompt, the more helpful first; each field is a list by then. Of two
    answers the ratings are kept; of more, each would count once for each of its pairs."""
    answers, rated = row["response"], [row[name] for name in STEERED]
    if not (isinstance(answers, list) and all(isinstance(of, list) and len(of) == len(answers) for of in rated)):
        answers, rated = [answers], [[number] for number in rated]
    prompt = _steered_prompt(row)
    sides = [messages(answer, "response") for answer in answers]
    ratings = [dict(zip(STEERED, map(number, of, STEERED), strict=True)) for of in zip(*rated, strict=True)]
    goods = [of["helpfulness"] for of in ratings]
    if len(sides) == 2 and goods[0] == goods[1]:
        yield Pair("", prompt, *sides, undecided="tie")
    for pair, (i, j) in ranked(Responses(prompt, sides, goods)):
        kept = {"chosen": ratings[i], "rejected": ratings[j]} if len(sides) == 2 else None
        yield pair._replace(ratings=json.dumps(kept) if kept else None)


_NO_PAIR = names("chosen", "rejected")

SHAPES = (
    Shape(
        name="ranked responses",
        needs="prompt, responses, and ranks (1 is best) or scores (higher is better)",
        keys=names("prompt"),
        without=_NO_PAIR,
        fits=_is_ranked,
        uses=names(LIST, "ranks", "scores"),
        responses=_ranked,
    ),
    Shape(
        name="rated responses",
        needs='prompt, response and ratings ({"helpful": 3, ..}), or lists of both (responses, ratings)',
        keys=names("prompt", "ratings"),
        fits=is_rated,
        uses=names(ONE, LIST),
    ),
    Shape(
        name="NeMo-RL completions",
        needs="context (messages) and completions, each with its completion and rank (0 is best)",
        keys=names("context", "completions"),
        without=names("prompt"),
        fits=_holds("completions", "completion", "rank"),
        parts=("completions", names("completion", "rank")),
        responses=_nemo,
    ),
    Shape(
        name="UltraFeedback (fine-grained_score)",
        needs="instruction and completions, each with its response and fine-grained_score",
        keys=names("instruction", "completions"),
        without=names("prompt"),
        fits=_holds("completions", "response", "fine-grained_score"),
        parts=("completions", names("response", "fine-grained_score")),
        uses=names("input"),
        responses=_ultrafeedback,
    ),
    Shape(
        name="Nectar",
        needs="prompt and answers, each with its answer and rank (1 is best)",
        keys=names("prompt", "answers"),
        fits=_holds("answers", "answer", "rank"),
        parts=("answers", names("answer", "rank")),
        responses=_nectar,
    ),
    Shape(
        name="distilabel generations",
        needs="instruction (or input), generations and ratings (or rating), a number for each",
        keys=names("generations"),
        without=_NO_PAIR | names("prompt"),
        fits=_is_distilabel,
        uses=names("instruction", "input", "ratings", "rating"),
        responses=_distilabel,
    ),
    Shape(
        name="HelpSteer (the more helpful of the answers that follow one another)",
        needs="prompt, response and numbers for helpfulness, correctness, coherence, complexity and verbosity",
        keys=names("prompt", "response", STEERED),
        without=names("ratings"),
        pairs=_steered,
        asked=_steered_prompt,
        joins="prompt",
    ),
)
