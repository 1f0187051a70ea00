"""Every shape on a row of its true schema: recognised alone, read rightly, refused where it cannot be."""

import json

import pytest

from rmkit.data.forms import SHAPES, detect, preferences, shape_of, unused
from rmkit.data.named import NAMED
from rmkit.data.shapes.plain import nemo_turns
from rmkit.data.shapes.ranked import STEERED
from support.true_rows import TOOL, bot, call, true_rows, user

ROWS = true_rows()


def read(row):
    shape = shape_of(row)
    if shape.named:
        return [pair for _, pair in NAMED[shape.named].function([row], "test")]
    return preferences(row, shape.name)


def one(name, **change):
    (found,) = read(ROWS[name][1] | change)
    return found


@pytest.mark.parametrize("name", ROWS)
def test_a_true_row_has_one_form_and_the_preferred_answer_is_chosen(name):
    form, row = ROWS[name]
    assert detect(row) == form
    assert [shape.name for shape in SHAPES.values() if shape.has(row)] == [form]
    found = read(row)
    if name in ("HelpSteer2", "HelpSteer2 turns"):
        assert found == []  # its other answer stands on the next row
        return
    (found,) = found
    said = [found[side][-1]["content"] for side in ("chosen", "rejected")]
    assert said == (["x", ""] if name == "Arena 55k" else ["good", "bad"])
    asked = [m["content"] for m in found["prompt"] if m["role"] == "user"]
    assert "ask" in asked[-1]
    assert found.get("undecided") is None


@pytest.mark.parametrize("name", ROWS)
def test_null_fields_of_all_other_shapes_change_nothing(name):
    """A table has every column in every row."""
    form, row = ROWS[name]
    others = {field for _, other in ROWS.values() for field in other}
    padded = {**dict.fromkeys(others - {"preference"}), **row}
    assert detect(padded) == form
    assert read(padded) == read(row)


SYSTEM = {"role": "system", "content": "s"}


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("axolotl chat_template", [SYSTEM, user("ask")]),
        ("axolotl intel", [SYSTEM, user("ask")]),
        ("axolotl prompt_pairs", [SYSTEM, user("ask")]),
        ("axolotl bradley_terry (argilla intel-orca)", [SYSTEM, user("ask")]),
        ("LLaMA-Factory alpaca", [SYSTEM, user("q0"), bot("a0"), user("ask\nabout this")]),
        ("LLaMA-Factory sharegpt", [SYSTEM, user("ask")]),
        ("ms-swift query", [SYSTEM, user("q0"), bot("a0"), user("ask")]),
        ("MedicalGPT", [user("ask")]),
        ("Dahoas full-hh-rlhf", [user("ask")]),
        ("Nectar", [user("ask")]),
        ("AlpacaFarm", [user("ask\nthis")]),
        ("summarize_from_feedback", [user("SUBREDDIT: r/tifu\n\nTITLE: t\n\nPOST: ask\n\nTL;DR:")]),
        ("Arena 55k", [user("ask")]),
        ("HelpSteer2-Preference", [user("ask")]),
        ("HelpSteer2-Preference turns", [user("q0\n\nq1"), bot("a0"), user("ask")]),
    ],
)
def test_the_whole_prompt_is_read(name, prompt):
    assert one(name)["prompt"] == prompt


def test_turns_of_helpsteer2_are_turns_in_both_of_its_parts():
    """They were one user's text with "<extra_id_1>Assistant" in it, and nothing was said."""
    row = ROWS["HelpSteer2 turns"][1]
    two = row | {"response": ["bad", "good"]} | {name: [1, 4] for name in STEERED}
    (found,) = read(two)
    assert found["prompt"] == [user("q0\n\nq1"), bot("a0"), user("ask")]
    assert found["chosen"] == [bot("good")]
    marked = "<extra_id_1>User\nq\n<extra_id_1>Assistant\n\n<extra_id_1>User\nwhat is <extra_id_1>?\n"
    assert nemo_turns(marked, "prompt") == [user("q"), bot(""), user("what is <extra_id_1>?\n")]
    assert nemo_turns([user("q")], "prompt") == [user("q")]


@pytest.mark.parametrize("end", ["Assistant\n", "Assistant", "Assistant\na\n<extra_id_1>Assistant\nb"])
@pytest.mark.parametrize("name", ["HelpSteer2 turns", "HelpSteer2-Preference turns"])
def test_turns_of_helpsteer2_that_end_in_no_question_are_refused(name, end):
    with pytest.raises(ValueError, match=r"^field 'prompt': found <extra_id_1> turns of .*assistant, need turns"):
        read(ROWS[name][1] | {"prompt": f"ask\n<extra_id_1>{end}"})


def test_tools_and_arguments_of_the_template_are_kept():
    found = one("TRL tools")
    assert found["options"] == {"tools": [TOOL], "chat_template_kwargs": {"enable_thinking": False}}
    assert found["chosen"][0] == call("Ulm")
    assert one("LLaMA-Factory sharegpt")["options"] == {"tools": [TOOL]}, "bare tools get OpenAI's form"


def test_the_tools_of_openai_stand_in_its_input():
    held = {"messages": [user("ask")], "tools": [TOOL], "parallel_tool_calls": True}
    assert one("OpenAI", input=held)["options"] == {"tools": [TOOL]}


def test_roles_of_ms_swift():
    chosen = one("ms-swift messages")["chosen"]
    assert [turn["role"] for turn in chosen] == ["assistant", "assistant"]
    assert chosen[0]["tool_calls"] == [{"type": "function", "function": {"name": "f", "arguments": {}}}]
    found = read(ROWS["ms-swift"][1] | {"rejected_response": ["x", "y"]})
    assert [pair["rejected"] for pair in found] == [[bot("x")], [bot("y")]]


@pytest.mark.parametrize(
    ("name", "change", "undecided"),
    [
        ("AlpacaEval", {"preference": 0.0}, "tie"),
        ("AlpacaEval", {"preference": 1.5}, "tie"),
        ("AlpacaEval", {"preference": None}, "no label"),
        ("PandaLM", {"annotator1": 0, "annotator2": 0}, "tie"),
        ("PandaLM", {"annotator1": 0, "annotator2": 1}, "tie"),
        ("auto-j", {"label": 2}, "tie"),
        ("Arena", {"winner": "tie (bothbad)"}, "tie"),
        ("Arena 55k", {"winner_model_a": 0, "winner_tie": 1}, "tie"),
        ("HelpSteer2-Preference", {"preference_strength": 0}, "tie"),
        ("HelpSteer3", {"overall_preference": 0}, "tie"),
        ("WebGPT", {"score_1": -0.5}, "tie"),
    ],
)
def test_a_tie_is_no_preference(name, change, undecided):
    assert one(name, **change)["undecided"] == undecided


def test_a_preference_between_one_and_two_is_a_probability():
    found = one("AlpacaEval", preference=1.25)
    assert (found["chosen"], found["target"]) == ([bot("bad")], 0.75)
    assert one("AlpacaEval", preference=1.25, target=0.9)["target"] == 0.9
    assert one("AlpacaEval")["target"] is None


@pytest.mark.parametrize(
    ("name", "change", "found"),
    [
        ("AlpacaEval", {"preference": 0.5}, "field 'preference': found 0.5"),
        ("LLMBar", {"label": 0}, "field 'label': found 0, need 1 or 2"),
        ("Arena", {"winner": "nobody"}, "field 'winner': found the text 'nobody'"),
        ("Arena", {"conversation_b": [user("other"), bot("x")]}, "need the same questions"),
        ("Arena 55k", {"winner_tie": 1}, "need one 1 and two 0"),
        ("Arena 55k", {"response_b": "[]"}, "found 2, 2 and 0 turns"),
        ("WebGPT", {"question": "q"}, "field 'question': found the text 'q'"),
        (
            "ms-swift",
            {"messages": [user("ask")]},
            "field 'messages': found a conversation that ends in the text 'user'",
        ),
        ("HelpSteer2", {"response": ["a", "b"]}, r"field 'response\[0\]': found the text 'a'"),
        ("HelpSteer2", {"helpfulness": [1]}, "field 'helpfulness': found a list with 1 entries"),
        ("Nectar", {"answers": {"answer": ["x"], "rank": 5}}, "field 'answers': found an object|need a list"),
        ("Nectar", {"answers": [{"answer": "x", "rank": "1"}]}, r"field 'answers\[0\].rank': found the text '1'"),
    ],
)
def test_a_wrong_row_is_named(name, change, found):
    with pytest.raises(ValueError, match=found):
        read(ROWS[name][1] | change)


def test_the_prompt_that_stands_in_another_field_is_not_lost():
    """It was: such rows were read as whole conversations without a prompt."""
    for field in ("messages", "conversations"):
        row = {field: [user("ask")], "chosen": [bot("good")], "rejected": [bot("bad")]}
        assert read(row)[0]["prompt"] == [user("ask")]
    for field in ("instruction", "question", "query", "input"):
        assert read({field: "ask", "chosen": [bot("good")], "rejected": [bot("bad")]})[0]["prompt"] == [user("ask")]


def test_a_conversation_that_is_the_chosen_one_is_no_prompt():
    whole = [user("ask"), bot("good")]
    (found,) = read({"messages": whole, "chosen": whole, "rejected": [user("ask"), bot("bad")]})
    assert (found["prompt"], found["chosen"]) == ([user("ask")], [bot("good")])


def test_two_prompts_are_never_guessed_between():
    with pytest.raises(ValueError, match="found a prompt in each of the fields instruction and question; leave one"):
        detect({"instruction": "a", "question": "b", "chosen": "x", "rejected": "y"})
    assert detect({"prompt": "a", "question": "b", "chosen": "x", "rejected": "y"}) == "explicit prompt"


def test_mt_bench_shows_both_turns_where_the_first_is_judged():
    turns = {
        f"conversation_{side}": [user("ask"), bot(word), user("more"), bot("z")]
        for side, word in (("a", "bad"), ("b", "good"))
    }
    assert one("Arena", **turns)["chosen"] == [bot("good")]
    assert one("Arena", **turns, turn=2)["chosen"] == [bot("good"), user("more"), bot("z")]


def test_an_object_of_lists_is_read_as_a_list_of_objects():
    row = dict(ROWS["Nectar"][1])
    row["answers"] = {"answer": ["good", "bad"], "rank": [1.0, 2.0], "model": ["a", "b"]}
    assert read(row)[0]["chosen"] == [bot("good")]


def test_fields_that_are_not_read_are_known_by_name():
    shape = shape_of(ROWS["OpenRLHF"][1])
    assert unused(ROWS["OpenRLHF"][1], shape) == {"source", "chosen_score"}
    assert unused(ROWS["TRL tools"][1], shape_of(ROWS["TRL tools"][1])) == set()


def test_fields_within_answers_that_are_not_read_are_known_by_name():
    """The system prompt under which each completion of UltraFeedback was sampled was dropped without a word."""
    row = ROWS["UltraFeedback"][1]
    within = {"annotations", "critique", "custom_system_prompt", "model", "overall_score", "principle"}
    others = {"source", "models", "correct_answers", "incorrect_answers"}
    assert unused(row, shape_of(row)) == others | {f"completions[].{name}" for name in within}
    lists = {name: [of[name] for of in row["completions"]] for name in ("response", "fine-grained_score", "model")}
    assert "completions[].model" in unused(row | {"completions": lists}, shape_of(row))
    plain = [
        {name: of[name] for name in ("response", "fine-grained_score")} | {"model": None} for of in row["completions"]
    ]
    assert unused(row | {"completions": plain}, shape_of(row)) == others
    assert "answers[].model" in unused(ROWS["Nectar"][1], shape_of(ROWS["Nectar"][1]))
    assert unused(ROWS["NeMo-RL"][1], shape_of(ROWS["NeMo-RL"][1])) == {"task_name"}


def test_every_row_is_one_line_of_json():
    assert all("\n" not in json.dumps(row) for _, row in ROWS.values())
