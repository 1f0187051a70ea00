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
)
"""Fields that are there, and those of which one belongs to them."""


def missing(given: Iterable[str]) -> str:
    """The likely mistake among the names of a row's fields; "" where there is none to see."""
    there = set(given)
    found = []
    for name in sorted(there - set(FIELDS)):
        close = difflib.get_close_matches(name.strip().lower(), FIELDS, n=1, cutoff=0.8)
        if close and close[0] not in there:
            found.append(f"{name}: did you mean {close[0]}?")
            there.add(close[0])
    for have, need in PARTNERS:
        if have <= there and not need & there:
            found.append(f"{' or '.join(sorted(need))} is missing")
    return "; ".join(found)
