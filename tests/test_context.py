import json

import pytest

from rmkit.data.context import options, surrounded
from support.true_rows import TOOL, bot, user

SYSTEM = {"role": "system", "content": "s"}


@pytest.mark.parametrize("field", ["system", "system_prompt"])
def test_a_system_message_stands_in_front(field):
    assert surrounded({field: "s"}, [user("q")], ()) == [SYSTEM, user("q")]
    assert surrounded({field: ""}, [user("q")], ()) == [user("q")]
    assert surrounded({field: "s"}, [SYSTEM, user("q")], ()) == [SYSTEM, user("q")], "it is not doubled"


def test_two_system_messages_that_differ_are_refused():
    with pytest.raises(ValueError, match="'system' and 'system_prompt': they differ"):
        surrounded({"system": "s", "system_prompt": "t"}, [user("q")], ())
    with pytest.raises(ValueError, match="field 'system': found the text 't', but the conversation has a system mess"):
        surrounded({"system": "t"}, [], ([SYSTEM, user("q")],))


def test_earlier_turns_stand_between():
    history = [["q0", "a0"], ["q1", "a1"]]
    turns = [user("q0"), bot("a0"), user("q1"), bot("a1")]
    assert surrounded({"system": "s", "history": history}, [user("q")], ()) == [SYSTEM, *turns, user("q")]
    assert surrounded({"history": turns}, [SYSTEM, user("q")], ()) == [SYSTEM, *turns, user("q")]
    with pytest.raises(ValueError, match=r"field 'history\[0\]': found a list with 3 entries, need a pair"):
        surrounded({"history": [["q", "a", "x"]]}, [user("q")], ())


def test_tools_as_a_list_or_as_json():
    assert options({"tools": [TOOL]}) == options({"tools": json.dumps([TOOL])}) == {"tools": [TOOL]}
    assert options({"tools": [TOOL["function"]]}) == {"tools": [TOOL]}
    assert options({"tools": "", "chat_template_kwargs": None}) is None
    assert options({"tools": "[]"}) is None


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"tools": "x"}, "field 'tools': found the text 'x'"),
        ({"tools": ["x"]}, "field 'tools': found a list"),
        ({"chat_template_kwargs": "x"}, "field 'chat_template_kwargs': found the text 'x'"),
        ({"chat_template_kwargs": {"chat_template": "x"}}, "found the text 'chat_template', which a row may not set"),
        ({"chat_template_kwargs": {"add_generation_prompt": True}}, "which a row may not set"),
        ({"images": ["x.png"]}, "field 'images': found a list with 1 entries; only text can be scored"),
    ],
)
def test_what_cannot_be_rendered_is_refused(row, found):
    with pytest.raises(ValueError, match=found):
        options(row)


def test_no_image_is_no_image():
    assert options({"images": [], "videos": None}) is None
