"""Every form of a row of samples, what is kept of it, and what is refused."""

import json

import pytest

from rmkit.data.forms import preferences, shape_of
from rmkit.data.named import NAMED
from rmkit.data.shapes.ranked import STEERED
from rmkit.labelling import samples as samples_module
from rmkit.labelling.feedback import scalar
from rmkit.labelling.samples import samples
from support.true_rows import TOOL, call, true_rows

USER, OTHER = {"role": "user", "content": "q"}, {"role": "user", "content": "other"}


def said(content):
    return [{"role": "assistant", "content": content}]


HALOS = {
    "output": " kept as it is. No cut",
    "prompt": [USER],
    "generator": "m",
    "dataset": "d_test",
    "prompt_id": 0,
    "sample_id": 1,
    "type": "sample",
}


def test_a_sample_of_halos():
    (sample,) = samples(HALOS)
    assert (sample.prompt, sample.response, sample.prompt_id) == ([USER], said(" kept as it is. No cut"), 0)
    assert sample.record == HALOS
    assert sample.conversation == [USER, *said(" kept as it is. No cut")]


def test_alpacaeval_mode_has_instruction_in_place_of_prompt():
    (sample,) = samples({"instruction": "q", "output": "a", "generator": "m"})
    assert (sample.prompt, sample.response, sample.prompt_id) == ([USER], said("a"), None)


@pytest.mark.parametrize("field", ["responses", "completions"])
def test_a_row_of_responses(field):
    row = {"prompt": "q", field: ["a", said("b")], "ranks": [1, 2], "prompt_id": "p", "generator": "m"}
    found = samples(row)
    assert [sample.response for sample in found] == [said("a"), said("b")]
    assert [sample.record["sample_id"] for sample in found] == [0, 1]
    assert all(sample.record["generator"] == "m" and field not in sample.record for sample in found)
    assert "ranks" not in found[0].record


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"chosen": [USER, *said("a")], "rejected": [USER, *said("b")]},
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
        {"type": "pairwise_feedback", "prompt": [USER], "output_A": "a", "output_B": "b", "label": 1},
    ],
)
def test_each_side_of_a_preference(row):
    found = samples(row)
    assert [sample.response for sample in found] == [said("a"), said("b")]
    assert all(sample.prompt == [USER] and sample.of_pair for sample in found)


def test_lists_of_responses_give_each_one_once():
    found = samples({"prompt": "q", "chosen": ["a", "b"], "rejected": ["c", "a"]})
    assert [sample.response[0]["content"] for sample in found] == ["a", "c", "b"]


def test_feedback_is_labelled_anew():
    row = {**HALOS, "output": said("x"), "type": "binary_feedback", "label": 1, "reward": 9.0}
    (sample,) = samples(row)
    assert sample.response == said("x")
    assert not {"label", "reward"} & set(sample.record)


def test_group_and_text_tell_prompts_and_responses_apart():
    """prompt_id restarts in each run of HALOs' sampler: two runs in one file are two prompts."""
    (a,), (b,), (c,) = (samples(row) for row in (HALOS, {**HALOS, "prompt": [OTHER]}, {**HALOS, "output": "z"}))
    assert a.group != b.group
    assert a.group == c.group
    assert a.text != c.text
    assert a.text == samples({**HALOS, "sample_id": 7})[0].text


REFUSED = {
    "no prompt": ({"output": "a"}, "field 'prompt': found nothing"),
    "no messages": ({"prompt": [], "output": "a"}, "field 'prompt': found an empty list"),
    "no output": ({"type": "sample", "prompt": "q"}, "field 'output': found nothing"),
    "output is a number": ({"prompt": "q", "output": 3}, "field 'output': found 3"),
    "prompt without role": ({"prompt": [{"content": "q"}], "output": "a"}, r"field 'prompt\[0\].role'"),
    "no responses": ({"prompt": "q", "responses": []}, "field 'responses': found an empty list"),
    "a response is none": ({"prompt": "q", "responses": ["a", None]}, r"field 'responses\[1\]': found nothing"),
    "prompt_id is a number": ({"prompt": "q", "output": "a", "prompt_id": 0.5}, "field 'prompt_id': found 0.5"),
    "only a prompt": ({"prompt": "q"}, "found the fields prompt; samples need"),
    "half a pair": ({"prompt": "q", "chosen": "a"}, "found the fields prompt, chosen; samples need"),
    "half a surrogate pair": ({"prompt": "q", "output": "\ud800"}, "surrogate"),
    "no object": (["q"], "need an object"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_the_field(name):
    row, words = REFUSED[name]
    with pytest.raises(ValueError, match=words):
        samples(row)


def test_a_long_prompt_is_read_once_for_all_its_responses(monkeypatch):
    """Once for each, it took hours for a row of some megabytes."""
    read = []
    for name in ("messages", "instruction"):
        real = getattr(samples_module, name)

        def counted(value, field, *role, real=real):
            read.append(field)
            return real(value, field, *role)

        monkeypatch.setattr(samples_module, name, counted)
    found = samples({"prompt": "q", "responses": ["a", "b", "c"], "note": 1})
    assert read.count("prompt") == 1
    assert [s.record["sample_id"] for s in found] == [0, 1, 2]
    assert len({s.group for s in found}) == 1
    assert len({s.text for s in found}) == 3


def test_the_input_of_alpaca_is_part_of_the_prompt():
    """It was dropped: 412 of the 999 rows of LLaMA-Factory's alpaca_en_demo have one."""
    (sample,) = samples({"instruction": "sum up", "input": "a text", "output": "x", "system": "s"})
    assert sample.prompt == [{"role": "system", "content": "s"}, {"role": "user", "content": "sum up\na text"}]
    assert set(sample.record) == {"instruction", "output"}, "beside the prompt they would be read twice"
    with pytest.raises(ValueError, match="field 'input': found the text 'x' beside a prompt"):
        samples({"prompt": "q", "input": "x", "output": "a"})


TALK = [USER, *said("a"), OTHER]


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"prompt": "q", "context": "passage", "output": "a"}, "context"),
        ({"prompt": "q", "context": "passage", "responses": ["a", "b"]}, "context"),
        ({"instruction": "q", "context": "passage", "output": "a"}, "context"),
        ({"instruction": "q", "context": "passage", "response": "a"}, "context"),
        ({"prompt": "q", "response": "a", "ratings": {"helpful": 1}, "context": "passage"}, "context"),
        ({"prompt": "q", "conversations": TALK, "responses": ["a", "b"]}, "conversations"),
        ({"prompt": "q", "messages": TALK, "output": "a"}, "messages"),
        ({"prompt": "q", "messages": [{"role": "system", "content": "s"}, USER], "output": "a"}, "messages"),
        ({"prompt": "q", "messages": [USER, call("Ulm")], "output": "a"}, "messages"),
        ({"prompt": "", "question": "q", "output": "a"}, "question"),
        ({"instruction": "q", "query": "r", "output": "a"}, "query"),
        ({"prompt": "q", "conversation": 3, "output": "a"}, "conversation"),
    ],
)
def test_what_would_change_the_text_is_refused(row, field):
    """Each was scored as if the field were absent."""
    with pytest.raises(ValueError, match=rf"^field '{field}': found .* beside a prompt .*--columns {field}="):
        samples(row)
    assert samples({**row, "prompt": row.get("prompt") or "q"}, ((field, ""),))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [USER], "instruction": "q", "output": "a"},
        {"prompt": "Answer this: q", "question": "q ", "output": "a"},
        {"prompt": [USER, *said("a"), OTHER], "query": "other", "responses": ["a"]},
        {"prompt": "q", "messages": [USER, *said("a")], "responses": ["b", "a"]},
        {"system": "s", "prompt": "q", "messages": [{"role": "system", "content": "s"}, USER], "output": "a"},
        {"prompt": "q", "context": "", "messages": [], "question": None, "output": "a"},
    ],
)
def test_a_second_prompt_that_says_nothing_else_passes(row):
    assert not samples(row)[0].unread


def test_a_row_with_an_instruction_is_read_again_when_it_is_labelled():
    (sample,) = samples({"instruction": "sum up", "input": "a text", "output": "x"})
    (again,) = samples(scalar(sample, 1.0, "halos", reward_se=0.5))
    assert (again.prompt, again.response) == (sample.prompt, sample.response)
    assert not {"reward", "reward_se"} & again.record.keys(), "they are the earlier model's"


SIDES, MORE = {"chosen": "a", "rejected": "b"}, {"source": "x", "documents": ["d"], "id": "i", "model": None}


@pytest.mark.parametrize(
    ("row", "unread", "kept"),
    [
        (HALOS, set(), set()),
        ({**HALOS, "reward": 1.0, "label": 1, "type": "binary_feedback"}, set(), set()),
        ({"prompt": "q", "output": "a", **MORE}, {"source", "documents"}, {"source", "documents"}),
        ({"prompt": "q", "output": "a", **SIDES}, {"chosen", "rejected"}, {"chosen", "rejected"}),
        ({"prompt": "q", "responses": ["a"], "completions": ["b"], "ranks": [1]}, {"completions"}, set()),
        (
            {"prompt": "q", **SIDES, "documents": ["d"], "messages": TALK, "prompt_id": 1},
            {"documents", "messages"},
            set(),
        ),
        ({"prompt": "q", **SIDES, "dataset": "d", "margin": 1.0}, set(), set()),
    ],
)
def test_fields_that_are_not_scored_are_named(row, unread, kept):
    for sample in samples(row):
        assert sample.unread == unread
        assert sample.unread & sample.record.keys() == kept


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [{"role": "system", "content": "s"}], "output": "a"},
        {"prompt": said("x"), "responses": ["a", "b"]},
        {"prompt": [{"role": "system", "content": "s"}], "responses": [[USER, *said("a")], "b"]},
        {"prompt": said("x"), "responses": ["a", "b"], "ranks": [1, 1]},
    ],
)
def test_a_conversation_that_nobody_began_is_refused(row):
    with pytest.raises(ValueError, match=r"the conversation has no user turn .*the roles "):
        samples(row)


def test_a_user_may_ask_in_the_response():
    (sample,) = samples({"prompt": [{"role": "system", "content": "s"}], "output": [USER, *said("a")]})
    assert len(sample.conversation) == 3


@pytest.mark.parametrize("name", true_rows())
def test_both_answers_of_every_shape(name):
    said = [sample.response[-1]["content"] for sample in samples(true_rows()[name][1])]
    wanted = {"HelpSteer2": ["good"], "HelpSteer2 turns": ["good"], "Arena 55k": ["x", ""]}.get(name, ["bad", "good"])
    assert sorted(said) == sorted(wanted)


@pytest.mark.parametrize("name", true_rows())
def test_the_prompt_is_the_one_that_train_reads(name):
    row = true_rows()[name][1]
    if name.startswith("HelpSteer2") and "response" in row:  # train takes the next row too
        row = row | {"response": ["good", "bad"]} | {of: [4, 1] for of in STEERED}
    shape = shape_of(row)
    if shape.named:
        ((_, wanted),) = NAMED[shape.named].function([row], "test")
    else:
        (wanted,) = preferences(row, shape.name)
    assert {json.dumps(sample.prompt) for sample in samples(true_rows()[name][1])} == {json.dumps(wanted["prompt"])}


HH = "\n\nHuman: hi\n\nAssistant: ho\n\nHuman: ask\n\nAssistant:"
TURNS = [{"role": "user", "content": "hi"}, *said("ho"), {"role": "user", "content": "ask"}]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": HH, "chosen": " a", "rejected": "b"},
        {"prompt": HH, "responses": [" a", "b"], "ranks": [1, 2]},
        {"prompt": HH, "responses": [" a", "b"], "ratings": [{"helpful": 1}, {"helpful": 2}]},
        {"type": "pairwise_feedback", "prompt": HH, "output_A": " a", "output_B": "b", "label": 1},
    ],
)
def test_a_prompt_in_hh_text_is_read_as_train_reads_it(row):
    """It was one user's literal text, in label and, of all but pairs, in train too."""
    trained = preferences(row, shape_of(row).name)
    found = samples(row)
    assert [sample.prompt for sample in found] == [TURNS] * 2 == [trained[0]["prompt"]] * 2
    sides = [pair[side] for pair in trained for side in ("chosen", "rejected") if pair[side]]
    assert [sample.response for sample in found] == [said("a"), said("b")] == sides


@pytest.mark.parametrize(
    ("row", "prompt", "response"),
    [
        ({"prompt": HH, "output": " a"}, TURNS, said("a")),
        ({"prompt": HH, "completions": [" a"]}, TURNS, said("a")),
        ({"prompt": HH, "response": " a", "ratings": {"helpful": 1}}, TURNS, said("a")),
        ({"prompt": HH, "output": said(" a")}, [{"role": "user", "content": HH}], said(" a")),
        ({"instruction": HH, "output": " a"}, [{"role": "user", "content": HH}], said(" a")),
    ],
)
def test_a_prompt_in_hh_text_beside_one_output(row, prompt, response):
    """As train reads the pair that such outputs make: text to text, and messages or another field as they are."""
    (sample,) = samples(row)
    assert (sample.prompt, sample.response) == (prompt, response)
    given = sample.response if isinstance(row.get("output"), list) else " a"
    field = "instruction" if "instruction" in row else "prompt"
    pair = {field: HH, "chosen": given, "rejected": "b" if given == " a" else said("b")}
    (trained,) = preferences(pair, shape_of(pair).name)
    assert (trained["prompt"], trained["chosen"]) == (prompt, response)


def test_answers_that_tie_are_samples_too():
    row = true_rows()["UltraFeedback"][1]
    for completion in row["completions"]:
        completion["fine-grained_score"] = 3.0
    assert sorted(sample.response[0]["content"] for sample in samples(row)) == ["bad", "good"]
    tied = true_rows()["WebGPT"][1] | {"score_0": 0.5}
    assert len(samples(tied)) == 2


@pytest.mark.parametrize("spoiled", ["text", ["text", 3], [None], None, 3])
@pytest.mark.parametrize("field", ["completions", "answers"])
def test_spoiled_answers_are_refused_before_their_fields_are_named(field, spoiled):
    ranked = {"completions": "UltraFeedback", "answers": "Nectar"}[field]
    with pytest.raises(ValueError):
        samples(true_rows()[ranked][1] | {field: spoiled})


def test_tools_reach_the_template_and_the_record():
    row = {"prompt": "q", "responses": [[call("Ulm")], [call("Aalen")]], "tools": [TOOL["function"]]}
    found = samples(row)
    assert [sample.options for sample in found] == [{"tools": [TOOL]}] * 2
    assert found[0].record["tools"] == [TOOL]
    assert found[0].text != found[1].text
    assert found[0].group != samples({**row, "tools": None})[0].group


def test_fields_of_other_names():
    renames = (("prompt", "question"), ("output", "answer"))
    (sample,) = samples({"question": "q", "answer": "a"}, renames)
    assert (sample.prompt, sample.response) == ([USER], said("a"))


def test_rows_of_a_rated_response_are_one_sample():
    (sample,) = samples({"prompt": "q", "response": "a", "ratings": {"helpful": 1}})
    assert sample.response == said("a")
