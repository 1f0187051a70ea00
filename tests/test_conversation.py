import json

from rmkit.data.conversation import key, packed, whole
from rmkit.data.forms import preferences
from support.true_rows import TOOL, bot, call, true_rows, user


def test_plain_messages_stand_in_the_columns_alone():
    (made,) = preferences({"prompt": "q", "chosen": "a", "rejected": "b"}, "explicit prompt")
    row = packed(made)
    assert row == {**made, "more": None}
    assert whole(row) == ([user("q")], [bot("a")], [bot("b")], None)
    assert key(row["prompt"], None) == row["prompt"], "the group of a prompt is what it always was"


def test_whole_messages_and_options_come_back():
    (made,) = preferences(true_rows()["TRL tools"][1], "explicit prompt")
    row = packed(made)
    assert {tuple(message) for side in ("prompt", "chosen", "rejected") for message in row[side]} == {
        ("role", "content")
    }
    assert row["chosen"][0]["content"] == "", "a column of texts holds no null"
    prompt, chosen, rejected, options = whole(json.loads(json.dumps(row)))
    assert (prompt, chosen, rejected) == (made["prompt"], made["chosen"], made["rejected"])
    assert chosen[0] == call("Ulm")
    assert options == {"tools": [TOOL], "chat_template_kwargs": {"enable_thinking": False}}


def test_prompts_differ_by_their_tools_but_not_by_ids():
    assert key([user("q")], {"tools": [TOOL]}) != key([user("q")], None)
    assert key([{**user("q"), "uuid": 1}], None) == key([user("q")], None)
    assert key([call("Ulm")], None) != key([call("Aalen")], None)
