"""heldout.jsonl: what is written is read back, past spoiled lines."""

import json

import numpy as np
import pytest

from rmkit.pages import heldout
from support.run_of import held_out

SCORES = np.round(np.random.default_rng(0).normal(size=(9, 2)), 4)


def test_round_trip(tmp_path):
    written = held_out(SCORES, 7, "</script>\u2028\ud800 {{ x }}")
    heldout.write(tmp_path, written)
    found = heldout.read(tmp_path)
    assert (found.step, found.pair, found.texts.keys()) == (7, written.pair, written.texts.keys())
    np.testing.assert_array_equal(found.scores, written.scores)
    np.testing.assert_array_equal(found.tokens, written.tokens)
    assert found.worst == written.worst
    assert found.margin[found.worst[0]] == found.margin.min()
    rows = [json.loads(line) for line in (tmp_path / heldout.NAME).read_text().splitlines()]
    assert [row["margin"] for row in rows] == (SCORES[:, 0] - SCORES[:, 1]).tolist()
    assert sum("prompt" in row for row in rows) == 2


@pytest.mark.parametrize("spoiled", ["{", "[]", "3", '{"step": 1}', '{"step": 7, "pair": 3}', "\0", "[" * 3000])
def test_spoiled_lines_are_left_out(tmp_path, spoiled):
    heldout.write(tmp_path, held_out(SCORES, 7, "x"))
    file = tmp_path / heldout.NAME
    lines = file.read_text().splitlines()
    no_number = lines[2].replace('"score_chosen": ', '"score_chosen": NaN, "was": ')
    file.write_text("\n".join([lines[0], spoiled, no_number, lines[1]]) + "\n" + lines[3][:30])
    assert len(heldout.read(tmp_path).pair) == 2


def test_nothing_to_read_is_none(tmp_path):
    assert heldout.read(tmp_path) is None
    (tmp_path / heldout.NAME).write_text("")
    assert heldout.read(tmp_path) is None
    heldout.write(tmp_path, held_out(SCORES[:0], 7, "x"))
    assert heldout.read(tmp_path) is None
