"""The marks of a difference between two answers."""

from rmkit.inspection import page


def joined(pieces, only=None):
    return "".join(text for differs, text in pieces if only in (None, differs))


def test_what_differs_is_marked_and_the_texts_stay_whole():
    a, b = page.marked("the quick brown fox, it ran", "the slow brown fox. it ran")
    assert joined(a) == "the quick brown fox, it ran"
    assert joined(b) == "the slow brown fox. it ran"
    assert joined(a, True) == "quick,"
    assert joined(b, True) == "slow."


def test_long_texts_are_cut_and_say_so():
    a, b = page.marked("word " * 3000, "short")
    assert joined(a).endswith(" [...]")
    assert len(joined(a)) < 3300
    assert joined(b) == "short"
