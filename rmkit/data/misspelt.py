"""What is missing or misspelt among the fields of a row that fits no form, in words."""

import difflib
from collections.abc import Iterable

FIELDS = (
    *("prompt", "chosen", "rejected", "messages", "conversations", "margin", "weight", "target"),
    *("responses", "completions", "response", "ranks", "scores", "ratings", "output_A", "output_B", "label"),
)
"""Names that rows of preferences have."""

PARTNERS = (
    ({"chosen"}, {"rejected"}),
    ({"rejected"}, {"chosen"}),
    ({"output_A"}, {"output_B"}),
    ({"output_B"}, {"output_A"}),
    ({"prompt", "responses"}, {"ranks", "scores"}),
    ({"prompt", "completions"}, {"ranks", "scores"}),
    ({"responses", "ranks"}, {"prompt"}),
    ({"responses", "scores"}, {"prompt"}),
    ({"output_1", "output_2"}, {"preference", "label"}),
)
"""Fields that are there, and those of which one belongs to them."""

ALONE = ("output", "response", "completion")
"""Fields of answers where there is no pair: data for finetuning, samples."""


def missing(given: Iterable[str], known: Iterable[str] = ()) -> str:
    """The likely mistake among the names of a row's fields; "" where there is none to see. Names that are `known` from
    other forms are no misspelling of those here."""
    there = set(given)
    found = []
    for name in sorted(there - {*FIELDS, *known, *ALONE}):
        close = difflib.get_close_matches(name.strip().lower(), FIELDS, n=1, cutoff=0.8)
        if close and close[0] not in there:
            found.append(f"{name}: did you mean {close[0]}?")
            there.add(close[0])
    for have, need in PARTNERS:
        if have <= there and not need & there:
            found.append(f"{' or '.join(sorted(need))} is missing")
    answers = [name for name in ALONE if name in there]
    if not found and len(answers) == 1 and not there & {"chosen", "rejected", "ratings"}:
        found.append(f"{answers[0]} stands alone: nothing says what it is better or worse than")
    return "; ".join(found)
