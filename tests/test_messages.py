import pytest

from rmkit.data.messages import messages, same_turn

CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Ulm"}}}


def test_plain_text_becomes_one_message_of_the_role():
    assert messages("hi", "prompt", "user") == [{"role": "user", "content": "hi"}]
    assert messages("hi", "chosen") == [{"role": "assistant", "content": "hi"}]


def test_one_message_may_be_an_object():
    assert messages({"role": "assistant", "content": "x"}, "chosen") == [{"role": "assistant", "content": "x"}]


def test_every_field_of_a_message_is_kept_and_null_is_absent():
    """A table has null wherever another row has a field; content is null beside tool calls (OpenAI)."""
    given = {"role": "assistant", "content": None, "tool_calls": [{**CALL, "id": None}], "name": None, "weight": 0}
    assert messages([given], "chosen") == [{"role": "assistant", "content": None, "tool_calls": [CALL], "weight": 0}]
    thought = {"role": "assistant", "content": " a ", "reasoning_content": "hm"}
    assert messages([thought], "chosen") == [thought]


def test_parts_of_text_are_joined():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b", "image_url": None}]
    assert messages([{"role": "user", "content": parts}], "prompt") == [{"role": "user", "content": "ab"}]


def test_parts_of_llama_factory_1():
    """Its v1/plugins/data_plugins/converter.py: content is a list of {"type", "value"}."""
    parts = [{"type": "reasoning", "value": "hm"}, {"type": "tool_call", "value": '{"name": "f", "arguments": {}}'}]
    (read,) = messages([{"role": "assistant", "content": parts, "loss_weight": 1.0}], "chosen_messages")
    assert (read["content"], read["reasoning_content"]) == (None, "hm")
    assert read["tool_calls"] == [{"type": "function", "function": {"name": "f", "arguments": {}}}]
    assert messages([{"role": "user", "content": [{"type": "text", "value": "q"}]}], "x")[0]["content"] == "q"


def test_sharegpt():
    turns = [
        {"from": "system", "value": "s"},
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Ulm"}}'},
        {"from": "observation", "value": "rain"},
        {"from": "gpt", "value": "It rains."},
    ]
    read = messages(turns, "conversations")
    assert [turn["role"] for turn in read] == ["system", "user", "assistant", "tool", "assistant"]
    assert (read[2]["content"], read[2]["tool_calls"]) == (None, [CALL])
    assert read[3] == {"role": "tool", "content": "rain"}


def test_two_messages_that_differ_in_an_id_only_are_one_turn():
    a = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    assert same_turn(a, {**a, "uuid": 3})
    other = {**CALL, "function": {"name": "weather", "arguments": {"city": "Aalen"}}}
    assert not same_turn(a, {**a, "tool_calls": [other]})
    assert not same_turn(a, {"role": "assistant", "content": None, "reasoning_content": "x"})


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        (3, "field 'chosen': found 3"),
        (True, "field 'chosen': found True"),
        (None, "field 'chosen': found nothing"),
        ({}, "field 'chosen': found an empty object"),
        (["x"], r"field 'chosen\[0\]': found the text 'x'"),
        ([{"content": "x"}], r"field 'chosen\[0\].role': found nothing"),
        ([{"role": " ", "content": "x"}], r"field 'chosen\[0\].role': found the text ' '"),
        ([{"role": "user"}], r"field 'chosen\[0\].content': found nothing"),
        ([{"role": "user", "content": True}], r"field 'chosen\[0\].content': found True"),
        ([{"role": "user", "content": []}], r"field 'chosen\[0\].content': found an empty list"),
        ([{"role": "user", "content": [{"type": "text"}]}], r"field 'chosen\[0\].content\[0\].value': found nothing"),
        ([{"role": "user", "content": ["x"]}], r"field 'chosen\[0\].content\[0\]': found the text 'x'"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            r"field 'chosen\[0\].content\[0\]': found a part of type the text 'image_url', .*only text can be scored",
        ),
        ([{"role": "user", "content": "x", "name": "\ud800"}], r"field 'chosen\[0\].name': found .*no JSON value"),
        ([{"from": "narrator", "value": "x"}], r"field 'chosen\[0\].from': found the text 'narrator'"),
        ([{"from": "function_call", "value": "x"}], r"field 'chosen\[0\].value': found .*need a tool call as JSON"),
        ("a\ud800", "field 'chosen': found half of a surrogate pair at character 1"),
        ([{"role": "user", "content": "\ud800"}], r"field 'chosen\[0\].content': found half of a surrogate pair"),
    ],
)
def test_a_wrong_message_names_the_field_and_the_find(wrong, found):
    with pytest.raises(ValueError, match=found):
        messages(wrong, "chosen")
