"""Ratings: the rows that hold them, and what the cache keeps of them."""

import json

import numpy as np
import pytest

from rmkit.data.forms import detect, preferences
from rmkit.data.ratings import of_sides, table


def read(row):
    return preferences(row, detect(row))


def test_a_rated_response_stands_alone():
    row = {"prompt": "q", "response": "a", "ratings": {"helpful": 3, "harmless": None}, "id": 7, "weight": 2}
    (found,) = read(row)
    assert detect(row) == "rated responses"
    assert found["chosen"] == [{"role": "assistant", "content": "a"}]
    assert found["rejected"] == []
    assert found["compared"] == 0.0
    assert found["weight"] == 2.0
    assert json.loads(found["ratings"]) == {"chosen": {"helpful": 3.0}}
    assert found["id"] == "7"


@pytest.mark.parametrize("field", ["responses", "completions"])
def test_lists_of_rated_responses(field):
    row = {"prompt": "q", field: ["a", "b"], "ratings": [{"helpful": 1}, {"helpful": 2.5}], "id": "x"}
    found = read(row)
    assert [f["chosen"][0]["content"] for f in found] == ["a", "b"]
    assert [json.loads(f["ratings"])["chosen"]["helpful"] for f in found] == [1.0, 2.5]
    assert [f["id"] for f in found] == ["x/0", "x/1"]


def test_ratings_beside_a_pair():
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "ratings": {"chosen": {"helpful": 4}, "rejected": {}}}
    (found,) = read(row)
    assert found["compared"] == 1.0
    assert json.loads(found["ratings"]) == {"chosen": {"helpful": 4.0}, "rejected": {}}
    assert read({"prompt": "q", "chosen": "a", "rejected": "b"})[0]["ratings"] is None


def test_ranked_responses_stay_pairs():
    row = {"prompt": "q", "responses": ["a", "b"], "scores": [1, 2], "ratings": [{"helpful": 1}, {"helpful": 2}]}
    assert detect(row) == "ranked responses"
    assert read(row)[0]["ratings"] is None


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"response": "a", "ratings": 3}, r"field 'ratings': found 3, need an object such as"),
        (
            {"response": "a", "ratings": {"helpful": "good"}},
            r"field 'ratings\.helpful': found the text 'good'",
        ),
        ({"response": "a", "ratings": {"helpful": True}}, r"field 'ratings\.helpful': found True"),
        ({"response": "a", "ratings": [1]}, r"field 'ratings': found a list with 1 entries, need an object"),
        ({"responses": ["a", "b"], "ratings": [{"h": 1}]}, r"field 'ratings': found 1 entries for 2 responses"),
        ({"responses": ["a"], "ratings": [3]}, r"field 'ratings\[0\]': found 3"),
        ({"chosen": "a", "rejected": "b", "ratings": {"helpful": 3}}, r"need an object with chosen and rejected"),
        ({"chosen": "a", "rejected": "b", "ratings": 3}, r"field 'ratings': found 3, need an object with chosen"),
    ],
)
def test_ratings_of_a_wrong_kind_are_named(row, told):
    with pytest.raises(ValueError, match=told):
        read({"prompt": "q", **row})


def test_the_table_of_what_the_cache_holds():
    held = ['{"chosen": {"b": 2.0, "c": 9.0}}', None, '{"chosen": {"a": 1.0}, "rejected": {"a": 3.0, "b": 4.0}}']
    found, others = table(held, ("a", "b"))
    assert found.shape == (3, 2, 2)
    np.testing.assert_array_equal(found[0], [[np.nan, 2.0], [np.nan, np.nan]])
    assert np.isnan(found[1]).all()
    np.testing.assert_array_equal(found[2], [[1.0, np.nan], [3.0, 4.0]])
    assert others == {"c"}


def test_nothing_is_kept_of_no_rating():
    assert of_sides({"ratings": None}) == of_sides({"ratings": {"chosen": None}}) is None
