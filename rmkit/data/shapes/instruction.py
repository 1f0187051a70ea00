"""An instruction or a question as text, and the two answers beside it, under the names of many sets.

Sources: LLaMA-Factory `data/converter.py` and ms-swift (Alpaca: instruction, a line break, input), axolotl
`prompt_strategies/dpo/chatml.py` and `llama3.py` (argilla, icr, intel, prompt_pairs, ultra) and
`bradley_terry/chat_template.py` (system, input), argilla's ultrafeedback-binarized-preferences, shibing624's DPO sets
(MedicalGPT), lvwerra/stack-exchange-paired.
"""

from collections.abc import Callable, Iterator

from rmkit.data.fields import text
from rmkit.data.messages import Message, messages
from rmkit.data.shapes.plain import PROMPTS
from rmkit.data.shapes.shape import Pair, Row, Shape, behind, names


def instruction(row: Row, field: str = "instruction") -> list[Message]:
    """An instruction and, on a line of its own, the input it is about: LLaMA-Factory's and ms-swift's way."""
    given = row.get("input") if field == "instruction" else None
    if given is None or given == "":
        return messages(row.get(field), field, "user")
    lines = [text(row.get(field), field), text(given, "input")]
    return [{"role": "user", "content": "\n".join(line for line in lines if line)}]


def _sides(prompt_field: str, chosen: str, rejected: str) -> Callable[[Row], Iterator[Pair]]:
    def pairs(row: Row) -> Iterator[Pair]:
        prompt = instruction(row, prompt_field)
        yield behind(prompt, messages(row[chosen], chosen), messages(row[rejected], rejected))

    return pairs


def _shape(field: str, chosen: str, rejected: str, name: str = "") -> Shape:
    input_too = field == "instruction"
    return Shape(
        name=name or f"{field} with {chosen} and {rejected}",
        needs=f"{field}{' (and input)' if input_too else ''}, {chosen} and {rejected} (text or messages)",
        keys=names(field, chosen, rejected),
        without=(PROMPTS | names("query" if input_too else "input")) - names(field),
        uses=names("input") if input_too else names(),
        pairs=_sides(field, chosen, rejected),
    )


SHAPES = (
    _shape("instruction", "chosen", "rejected"),
    _shape("question", "chosen", "rejected"),
    _shape("query", "chosen", "rejected"),
    _shape("input", "chosen", "rejected"),
    _shape("prompt", "chosen_response", "rejected_response"),
    _shape("instruction", "chosen_response", "rejected_response"),
    _shape("question", "chosen_response", "rejected_response"),
    _shape("input", "chosen_response", "rejected_response"),
    _shape("question", "response_chosen", "response_rejected"),
    _shape("question", "response_j", "response_k", "stack-exchange-paired"),
)
