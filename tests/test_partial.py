"""The partial folder: torn lines, and what it was made with."""

import numpy as np
import pytest

from rmkit.labelling.partial import PartialScores
from support.listing import listing


def line(chunk, scores, **skipped):
    return {"chunk": chunk, "scores": scores, "skipped": skipped}


@pytest.fixture
def partial(tmp_path):
    partial = PartialScores(tmp_path / "out.json")
    partial.open({"--model": "m"}, resume=False, overwrite=False, say=print)
    return partial


def test_scores_of_all_ranks_come_together(partial):
    for rank, lines in enumerate([[line(0, [1.0, None], long=1)], [line(1, [3.0])]]):
        with partial.writer(rank) as write:
            for each in lines:
                write(each)
    scores, skipped = partial.scores(np.array([2, 0, 1]), [0, 2, 3])
    assert scores.tolist()[1:] == [3.0, 1.0]
    assert np.isnan(scores[0])
    assert skipped == {"long": 1}
    assert partial.done() == {0, 1}


@pytest.mark.parametrize("left", range(20))
def test_a_torn_last_line_is_scored_again(partial, left):
    with partial.writer(0) as write:
        write(line(0, [1.0]))
        write(line(1, [2.0]))
    file = partial.folder / "scores-0.jsonl"
    file.write_bytes(file.read_bytes()[: -1 - left])
    assert partial.done() == {0}
    with pytest.raises(ValueError, match="1 chunks are missing"):
        partial.scores(np.arange(2), [0, 1, 2])
    with partial.writer(0) as write:
        write(line(1, [2.5]))
    assert partial.scores(np.arange(2), [0, 1, 2])[0].tolist() == [1.0, 2.5]


def test_what_was_left_is_neither_taken_nor_deleted_unasked(partial):
    again = PartialScores(partial.folder.with_name("out.json"))
    with pytest.raises(ValueError, match=r"--resume to go on .* --overwrite"):
        again.open({"--model": "m"}, resume=False, overwrite=False, say=print)
    again.open({"--model": "m"}, resume=True, overwrite=False, say=print)
    with pytest.raises(ValueError, match="--model n: it differs"):
        again.open({"--model": "n"}, resume=True, overwrite=False, say=print)
    again.open({"--model": "n"}, resume=False, overwrite=True, say=print)


def test_a_kill_before_the_contract_was_written_starts_anew(partial):
    (partial.folder / "contract.json").unlink()
    said = []
    partial.open({"--model": "n"}, resume=True, overwrite=False, say=said.append)
    assert said == ["there is nothing to resume: labelling starts at the first sample"]


def test_a_failure_before_the_first_score_leaves_no_folder(partial):
    with pytest.raises(KeyError), partial.removed_if_unused(True):
        raise KeyError
    assert not partial.folder.exists()


@pytest.mark.parametrize("killed", [False, True])
def test_scores_that_overwrite_replaces_come_back_where_it_scores_nothing(partial, killed):
    with partial.writer(0) as write:
        write(line(0, [1.0]))
    before = listing(partial.folder)
    partial.open({"--model": "typo"}, resume=False, overwrite=True, say=print)
    assert partial.done() == set()
    if killed:
        partial.open({"--model": "m"}, resume=True, overwrite=False, say=print)
    else:
        with pytest.raises(KeyError), partial.removed_if_unused(True):
            raise KeyError
    assert listing(partial.folder) == before


def test_new_scores_are_those_that_count(partial):
    for score in (1.0, 2.0):
        partial.open({"--model": "m"}, resume=False, overwrite=True, say=print)
        with partial.writer(0) as write:
            write(line(0, [score]))
    partial.open({"--model": "m"}, resume=True, overwrite=False, say=print)
    assert partial.scores(np.arange(1), [0, 1])[0].tolist() == [2.0]


def test_no_two_labellings_work_in_one_folder(partial):
    """Workers that a killed launcher left behind may still write when --resume comes."""
    again = PartialScores(partial.folder.with_name("out.json"))
    with partial.locked(1), pytest.raises(ValueError, match="another labelling is at work"):
        again.open({"--model": "m"}, resume=True, overwrite=False, say=print)
    again.open({"--model": "m"}, resume=True, overwrite=False, say=print)
