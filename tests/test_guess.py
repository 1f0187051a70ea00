import pickle

import numpy as np
import pytest

from rmkit.data.demo import tokenizer
from rmkit.data.guess import guess, no_tokenizer_in
from rmkit.data.tokenizer import encode, prepare, render


def test_tokens_are_bytes_over_four_and_equal_where_the_bytes_are():
    stand_in = pickle.loads(pickle.dumps(guess()))  # as the workers that tokenise get it
    a, b, c = encode(stand_in, ["the same words, then these", "the same words, then others", "\u00e9" * 3])
    assert (len(a), len(b), len(c)) == (7, 7, 2)
    shared = np.flatnonzero(np.not_equal(a, b))[0]
    assert shared == len("the same words, then ") // 4
    assert encode(stand_in, [""]) == [[]]


def test_it_needs_nothing_more_to_render():
    said = []
    stand_in = prepare(guess(), "m", said.append)
    assert render(stand_in, [{"role": "user", "content": "a"}]) == "<s>user: a</s>"
    assert said == []


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt", "spiece.model"])
def test_a_folder_with_any_file_of_a_tokenizer_has_one(tmp_path, name):
    assert no_tokenizer_in(str(tmp_path))
    assert not no_tokenizer_in("some/hub-id")
    (tmp_path / "config.json").touch()
    assert no_tokenizer_in(str(tmp_path))
    (tmp_path / name).touch()
    assert not no_tokenizer_in(str(tmp_path))


def test_what_save_pretrained_leaves_is_a_tokenizer(tmp_path):
    tokenizer().save_pretrained(tmp_path)
    assert not no_tokenizer_in(str(tmp_path))
