"""A user's error in the words of the program that was called."""

import pickle

import pytest

from rmkit.errors import AgreedError, UserError, flag, make_folder, told
from rmkit.train import main
from support import ranks

LABEL = {"model.name": "--model", "data.train": "SAMPLES", "data.max_length": "--max-length", "data.overlong": None}


def no_pair() -> UserError:
    ways = f"raise {flag('data.max_length')}", f"set {flag('data.overlong')} keep-end"
    return UserError("", None, "no pair is left of 5", *ways)


@pytest.mark.parametrize(
    ("error", "train", "label"),
    [
        (UserError("model.name", "a/b", "wrong"), "--model.name a/b: wrong", "--model a/b: wrong"),
        (UserError("data.train", None, "none"), "--data.train: none", "SAMPLES: none"),
        (UserError("exp_name", "x", "wrong"), "--exp-name x: wrong", "--exp-name x: wrong"),
        (UserError("", "a.json:3", "wrong"), "a.json:3: wrong", "a.json:3: wrong"),
        (UserError("data.max_length", 0, "low"), "--data.max-length 0: low", "--max-length 0: low"),
        (
            no_pair(),
            "no pair is left of 5; raise --data.max-length or set --data.overlong keep-end",
            "no pair is left of 5; raise --max-length",
        ),
        (
            UserError("model.name", "{x} --model.name %s", f"{{y}}; see {flag('data.max_length')}"),
            "--model.name {x} --model.name %s: {y}; see --data.max-length",
            "--model {x} --model.name %s: {y}; see --max-length",
        ),
    ],
)
def test_each_program_tells_it_with_its_own_flags(error, train, label):
    assert str(error) == train
    assert told(error, LABEL) == label
    assert str(AgreedError(error)) == train
    assert told(AgreedError(error), LABEL) == label
    again = pickle.loads(pickle.dumps(error))
    assert told(again, LABEL) == label


def test_no_way_that_the_program_has_leaves_what_was_found():
    assert no_pair().told({"data.max_length": None, "data.overlong": None}) == "no pair is left of 5"


def test_a_second_model_is_another_field():
    error = UserError("model.name", "b", f"wrong; see {flag('data.max_length')}").about("against")
    assert (error.field, error.value) == ("against", "b")
    assert error.told(LABEL) == "--against b: wrong; see --max-length"


def test_the_rank_that_met_it_is_named():
    error = UserError("model.name", "b", "wrong")
    error.rank = 3
    assert AgreedError(error).told(LABEL) == "rank 3: --model b: wrong"


@pytest.mark.parametrize("error", [ValueError("as it is"), OSError("as it is"), "as it is"])
def test_other_errors_are_told_as_they_are(error):
    assert told(error, LABEL) == "as it is"
    assert str(AgreedError(error)) == "as it is"


def test_a_wrong_value_on_the_command_line_is_told_whole(tmp_path):
    """tyro shows the first argument of an error, whatever its text is."""
    with ranks.started(1, tmp_path, main, ["--optim.lr", "-1"], COLUMNS=200) as alone:
        assert alone.wait(120) == [2]
    assert "--optim.lr -1.0: set a positive number, such as 5e-6" in alone.out(0) + alone.err(0)
    assert UserError("optim.lr", -1, "set more").args == (str(UserError("optim.lr", -1, "set more")),)


def test_a_thousand_folders_are_an_error_of_the_disk(tmp_path):
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    with pytest.raises(OSError, match=r"deep|long"):
        make_folder(tmp_path.joinpath(*["x"] * 2000))
