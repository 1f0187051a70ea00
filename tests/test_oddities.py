"""What is odd about one pair."""

import pytest

from rmkit.inspection.oddities import BIT, roles, script, seems_cut, texts


def turns(*named):
    return [{"role": role, "content": content} for role, _, content in (each.partition(":") for each in named)]


ANSWER = turns("assistant:a")


@pytest.mark.parametrize(
    ("prompt", "odd"),
    [
        (turns("user:q"), []),
        (turns("system:s", "user:q", "assistant:a", "user:q"), []),
        (turns("user:q", "user:r"), ["same role twice"]),
        (turns("user:q", "wizard:x", "user:r"), ["odd role"]),
        (turns("user:q", "system:s", "user:r"), ["system message late"]),
        (turns("user:q", "assistant:", "user:r"), ["empty turn"]),
        (turns("user:q", "assistant:a"), ["same role twice", "no user turn last"]),
        (turns("user:q", "tool:1", "tool:2"), []),
    ],
)
def test_roles(prompt, odd):
    assert roles(prompt, ANSWER, ANSWER) == sum(BIT[name] for name in odd)


def test_an_answer_of_the_user_is_odd():
    assert roles(turns("user:q"), ANSWER, turns("assistant:a", "user:x")) == BIT["answer of no assistant"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Hello", "LATIN"),
        ("123 !", ""),
        ("Privet \u043f\u0440\u0438\u0432\u0435\u0442 \u043c\u0438\u0440", "CYRILLIC"),
        ("\u4f60\u597d\u4e16\u754c", "CJK"),
        ("\u0928\u092e\u0938\u094d\u0924\u0947", "DEVANAGARI"),
    ],
)
def test_the_script_is_that_of_most_letters(text, found):
    assert script(text) == found


def test_answers_in_other_scripts_are_flagged():
    flags, of_chosen = texts("hello", "\u4f60\u597d", "world")
    assert flags == BIT["script differs from prompt"] | BIT["scripts of answers differ"]
    assert of_chosen == "CJK"
    assert texts("hello", "world", "42")[0] == 0


@pytest.mark.parametrize(
    ("end", "cut"),
    [
        ("and then the", True),
        ("first,", True),
        ("The end.", False),
        ("\n- milk", False),
        ("```", False),
        ("(see", True),
    ],
)
def test_long_answers_that_end_within_a_sentence_seem_cut(end, cut):
    assert seems_cut("word " * 60 + end) is cut
    assert not seems_cut(end)
