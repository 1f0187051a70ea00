import pytest

from rmkit.data.columns import of_file, renamed

ROW = {"question": "q", "best": "a", "worst": "b", "id": 3}
GIVEN = ("prompt=question", "chosen=best", "rejected=worst")


def test_fields_are_read_under_other_names():
    renames = of_file(GIVEN, ROW)
    assert renamed(ROW, renames) == {"prompt": "q", "chosen": "a", "rejected": "b", "id": 3}
    assert renamed({"question": "x", "id": 4}, renames)["chosen"] is None


def test_two_fields_may_change_places():
    renames = of_file(("chosen=rejected", "rejected=chosen"), {"chosen": 1, "rejected": 2})
    assert renamed({"chosen": 1, "rejected": 2}, renames) == {"chosen": 2, "rejected": 1}


def test_a_field_is_left_out():
    assert renamed({"prompt": "q", "input": "x"}, of_file(("input=",), {"input": None})) == {"prompt": "q"}


def test_a_file_without_such_fields_is_read_as_it_is():
    other = {"prompt": "q", "chosen": "a", "rejected": "b"}
    assert of_file(GIVEN, other) == ()
    assert renamed(other, ()) is other
    assert of_file(GIVEN, "no object") == ()


def test_a_field_that_is_missing_among_others_is_named():
    with pytest.raises(ValueError, match=r"columns prompt=question .*: found no field bset, only question, "):
        of_file(("prompt=question", "chosen=bset", "rejected=worst"), ROW)
