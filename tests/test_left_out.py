import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmkit.data import demo
from rmkit.data.left_out import LeftOut, matters
from support.true_rows import TOOL, bot, call, user

SKIPS = "{% for m in messages if m.role in ('user', 'assistant') %}<{{ m.role }}>{{ m.content }}{% endfor %}</s>"
TOOLS = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<{{ m.role }}>{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}"
    "{% if m.reasoning_content and loop.last and thinking is not false %}{{ m.reasoning_content }}{% endif %}"
    "{% endfor %}</s>"
)
SYSTEM = {"role": "system", "content": "s"}


def template(text):
    tokenizer = demo.tokenizer()
    tokenizer.chat_template = text
    return LeftOut(tokenizer)


def test_a_template_that_skips_roles():
    turns = [SYSTEM, user("q"), call("Ulm") | {"content": ""}, {"role": "tool", "content": "rain"}, bot("a")]
    left_out = template(SKIPS).of(turns, {"tools": [TOOL]})
    assert left_out == [
        "messages of role system",
        "field tool_calls of role assistant",
        "messages of role tool",
        "tools",
    ]
    assert all(map(matters, left_out))


def test_a_template_that_reads_everything():
    turns = [SYSTEM, user("q"), call("Ulm"), {"role": "tool", "content": "rain"}, bot("a")]
    assert template(TOOLS).of(turns, {"tools": [TOOL], "chat_template_kwargs": {"thinking": False}}) == []


def test_a_field_that_only_the_last_turn_shows():
    thought = bot("a") | {"reasoning_content": "hm"}
    assert template(TOOLS).of([user("q"), thought], None) == []
    left_out = template(TOOLS).of([user("q"), thought, user("r"), bot("b")], None)
    assert left_out == ["field reasoning_content of role assistant"]


def test_an_argument_that_no_template_knows():
    assert template(TOOLS).of([user("q"), bot("a")], {"chat_template_kwargs": {"think": 1}}) == []
    options = {"chat_template_kwargs": {"colour": "red"}}
    assert template(TOOLS).of([user("q"), bot("a")], options) == ["the argument colour"]


def test_an_id_does_not_matter():
    (name,) = template(SKIPS).of([user("q"), bot("a") | {"num_tokens": 3}], None)
    assert not matters(name)


def test_plain_conversations_are_not_rendered_again(monkeypatch):
    left_out = template(SKIPS)
    monkeypatch.setattr(left_out, "_same", None)
    assert left_out.of([user("q"), bot("a")], None) == []


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)


@pytest.mark.filterwarnings("ignore")
@given(st.sampled_from(["tool_calls", "name", "x"]), json_values)
def test_any_value_is_tried(field, value):
    template(SKIPS).of([user("q"), bot("a") | {field: value}], None)
