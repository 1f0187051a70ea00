import copy
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rmkit.data.forms import NEEDS, detect, hh_turns, preferences

# The machine may be shared: how long one example takes says nothing.
relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def user(content):
    return {"role": "user", "content": content}


def bot(content):
    return {"role": "assistant", "content": content}


EXPLICIT = {"prompt": "q", "chosen": "good", "rejected": "bad"}
PAIRWISE = {"type": "pairwise_feedback", "prompt_id": 3, "prompt": [user("q")], "output_A": "a", "output_B": "b"}
RANKED = {"prompt": "q", "responses": ["a", "b", "c"], "ranks": [2, 1, 3], "id": "r"}
HH = {"chosen": "\n\nHuman: q\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant: bad"}


def read(row):
    return preferences(row, detect(row))


def one(row):
    (found,) = read(row)
    return found


def texts(found):
    return [(p["chosen"][0]["content"], p["rejected"][0]["content"]) for p in found]


@pytest.mark.parametrize(
    ("row", "form"),
    [
        (EXPLICIT, "explicit prompt"),
        ({"prompt": [user("q")], "chosen": [bot("a")], "rejected": [bot("b")]}, "explicit prompt"),
        ({"chosen": [user("q"), bot("a")], "rejected": [user("q"), bot("b")]}, "implicit prompt"),
        ({"prompt": None, "chosen": [user("q"), bot("a")], "rejected": [user("q"), bot("b")]}, "implicit prompt"),
        (HH, "HH text"),
        ({**PAIRWISE, "label": 1}, "HALOs pairwise_feedback"),
        (RANKED, "ranked responses"),
        ({"prompt": "q", "completions": ["a", "b"], "scores": [1, 2]}, "ranked responses"),
        ({"prompt": "q", "chosen": ["a"], "rejected": ["b", "c"]}, "response lists"),
    ],
)
def test_detect(row, form):
    assert detect(row) == form
    assert form in NEEDS


@pytest.mark.parametrize("prompt", ["q", [user("q")]])
@pytest.mark.parametrize(
    ("chosen", "rejected"), [("good", "bad"), ([bot("good")], [bot("bad")]), ("good", [bot("bad")])]
)
def test_explicit_prompt_as_text_or_messages(prompt, chosen, rejected):
    assert one({"prompt": prompt, "chosen": chosen, "rejected": rejected}) == {
        "prompt": [user("q")],
        "chosen": [bot("good")],
        "rejected": [bot("bad")],
        "margin": 0.0,
        "ratings": None,
        "compared": 1.0,
        "weight": 1.0,
        "target": None,
        "subset": "",
        "id": "",
    }


def test_a_repeated_prompt_is_not_doubled():
    found = one({"prompt": "q ", "chosen": [user("q"), bot("a")], "rejected": [user("q"), bot("b")]})
    assert (found["prompt"], found["chosen"], found["rejected"]) == ([user("q ")], [bot("a")], [bot("b")])


def test_a_system_message_before_the_repeated_prompt_joins_it():
    head = [{"role": "system", "content": "be brief"}, user("q")]
    found = one({"prompt": "q", "chosen": [*head, bot("a")], "rejected": [*head, bot("b")]})
    assert (found["prompt"], found["chosen"], found["rejected"]) == (head, [bot("a")], [bot("b")])


def test_different_system_messages_before_the_prompt_are_refused():
    sides = [[{"role": "system", "content": s}, user("q"), bot("a")] for s in "xy"]
    with pytest.raises(ValueError, match=r"'chosen' and 'rejected'.*different system messages"):
        read({"prompt": "q", "chosen": sides[0], "rejected": sides[1]})


def test_a_conversation_on_another_prompt_is_refused():
    with pytest.raises(ValueError, match=r"field 'rejected': found a user message at its start .*'other'"):
        read({"prompt": "q", "chosen": "a", "rejected": [user("other"), bot("b")]})


def test_a_prompt_may_end_with_any_role():
    assert one({**EXPLICIT, "prompt": [user("q"), bot("start")]})["prompt"] == [user("q"), bot("start")]


def test_white_space_stays():
    found = one({"prompt": " q  q\t", "chosen": "def f():\n    return  1\n", "rejected": "  "})
    assert found["prompt"][0]["content"] == " q  q\t"
    assert found["chosen"][0]["content"] == "def f():\n    return  1\n"
    assert found["rejected"][0]["content"] == "  "


@pytest.mark.parametrize(
    ("chosen", "rejected", "n"),
    [
        ([user("q"), bot("a")], [user("q"), bot("b")], 1),
        ([user("q"), bot("a"), user("r"), bot("x")], [user("q"), bot("a"), user("r"), bot("y")], 3),
        ([user("q"), bot("a"), user("r"), bot("x")], [user("q"), bot("a")], 1),
        ([user("q"), bot("a")], [user("q"), bot("a")], 1),
        ([bot("a"), user("q")], [bot("b"), user("q")], 0),
    ],
)
def test_implicit_prompt_is_the_common_start(chosen, rejected, n):
    found = one({"chosen": chosen, "rejected": rejected})
    assert found["prompt"] == chosen[:n]
    assert (found["chosen"], found["rejected"]) == (chosen[n:], rejected[n:])


turns = st.builds(user, st.sampled_from("ab")) | st.builds(bot, st.sampled_from("ab"))
conversations = st.lists(turns, min_size=1).filter(lambda found: user("a") in found or user("b") in found)


@relaxed
@given(conversations, conversations)
def test_implicit_prompt_loses_nothing(chosen, rejected):
    row = {"chosen": chosen, "rejected": rejected}
    before = copy.deepcopy(row)
    found = one(row)
    assert row == before
    assert found["prompt"] + found["chosen"] == chosen
    assert found["prompt"] + found["rejected"] == rejected
    assert found["chosen"]
    assert found["rejected"]
    assert found["chosen"][0] != found["rejected"][0] or 1 in (len(found["chosen"]), len(found["rejected"]))


def test_hh_text():
    start = "\n\nHuman: q\n\nAssistant:  a \n\nHuman: r\nr"
    found = one({"chosen": start + "\n\nAssistant: good\n\nmore ", "rejected": start + "\n\nAssistant: bad"})
    assert found["prompt"] == [user("q"), bot("a"), user("r\nr")]
    assert (found["chosen"], found["rejected"]) == ([bot("good\n\nmore")], [bot("bad")])


def test_hh_prompt_ends_where_the_texts_part():
    found = one({**HH, "rejected": "\n\nHuman: q\n\nAssistant: x\n\nHuman: y\n\nAssistant: bad"})
    assert found["prompt"] == [user("q")]
    assert (found["chosen"], found["rejected"]) == ([bot("good")], [bot("x"), user("y"), bot("bad")])


def test_hh_empty_turn_at_the_end_is_an_empty_response():
    assert one({**HH, "rejected": "\n\nHuman: q\n\nAssistant:"})["rejected"] == [bot("")]


def test_hh_turns_alternate_where_one_role_speaks_twice():
    assert hh_turns("\n\nHuman: a\n\nHuman: b\n\nAssistant: c") == ([user("a\n\nb")], "c")
    assert hh_turns("\n\nHuman: a") == ([], None)


@relaxed
@given(st.lists(st.text("ab \n:", max_size=5).map(str.strip), min_size=2, max_size=8))
def test_hh_text_round_trip(parts):
    parts = parts[: len(parts) // 2 * 2]
    roles = ["Human", "Assistant"] * (len(parts) // 2)
    text = "".join(f"\n\n{role}: {part}" for role, part in zip(roles, parts, strict=True))
    turns, response = hh_turns(text)
    assert [turn["content"] for turn in turns] + [response] == parts
    assert [turn["role"] for turn in turns] == (["user", "assistant"] * len(parts))[: len(turns)]


def test_hh_text_as_the_prompt_is_turns():
    """It stayed one literal user's text."""
    row = {"prompt": "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant:", "chosen": " good", "rejected": " bad"}
    assert detect(row) == "HH prompt"
    found = one(row)
    assert found["prompt"] == [user("q"), bot("a"), user("r")]
    assert (found["chosen"], found["rejected"]) == ([bot("good")], [bot("bad")])
    quoted = {**row, "prompt": "Go on:\n\nHuman: q"}
    assert one(quoted)["prompt"] == [user("Go on:\n\nHuman: q")]


def test_text_without_a_prompt_says_to_add_one():
    with pytest.raises(ValueError, match="add a prompt field"):
        detect({"chosen": "good", "rejected": "bad"})


@pytest.mark.parametrize(("label", "better"), [(1, "a"), (1.0, "a"), (True, "a"), (0, "b"), (0.0, "b"), (False, "b")])
def test_halos_label_one_prefers_a_and_zero_b(label, better):
    found = one({**PAIRWISE, "label": label})
    assert found["chosen"] == [bot(better)]
    assert found["id"] == "3"
    assert "undecided" not in found
    assert found["target"] is None


@pytest.mark.parametrize(("label", "better", "target"), [(0.9, "a", 0.9), (0.25, "b", 0.75), (0.51, "a", 0.51)])
def test_a_halos_label_between_is_the_probability_of_a(label, better, target):
    """HALOs reads 0.9 as "output_B is better", without a word."""
    found = one({**PAIRWISE, "label": label})
    assert (found["chosen"], found["target"]) == ([bot(better)], pytest.approx(target))
    assert "undecided" not in found
    assert one({**PAIRWISE, "label": label, "target": 0.6})["target"] == 0.6


@pytest.mark.parametrize(("label", "undecided"), [(0.5, "tie"), (-1, "no label"), (math.nan, "no label")])
def test_halos_labels_that_prefer_neither(label, undecided):
    """HALOs reads them as "output_B is better", without a word."""
    assert one({**PAIRWISE, "label": label}).get("undecided") == undecided


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": [bot("a")], "rejected": [bot("b")]},
        {"prompt": [], "chosen": "a", "rejected": "b"},
        {"prompt": [{"role": "system", "content": "s"}], "chosen": "a", "rejected": "b"},
        {"chosen": "\n\nAssistant: a", "rejected": "\n\nAssistant: b"},
        {"prompt": [bot("x")], "response": "a", "ratings": {"helpful": 1}},
    ],
)
def test_a_conversation_that_nobody_began_is_refused(row):
    with pytest.raises(ValueError, match=r"the conversation has no user turn .*the roles "):
        read(row)


@pytest.mark.parametrize("field", ["context", "input"])
def test_what_would_change_the_text_is_never_ignored(field):
    with pytest.raises(ValueError, match=f"field '{field}': found the text 'x', which is part of a conversation"):
        read({**EXPLICIT, field: "x"})
    assert read({**EXPLICIT, field: ""}) == read(EXPLICIT)


def test_halos_turns_rewards_and_instruction():
    row = {"type": "pairwise_feedback", "instruction": "q", "output_A": [bot("a")], "output_B": [bot("b")], "label": 1}
    rewards = {"reward_A": 2.0, "reward_B": 1.0, "reward_difference": 1.0}
    assert one(row) == one({**row, **rewards})
    assert one(row)["prompt"] == [user("q")]
    assert one(row)["margin"] == 0.0


@pytest.mark.parametrize("label", [None, "A", "1", [1], 2, -3, -0.5, 1.01, math.inf, -math.inf, 10**400])
def test_halos_label_that_says_nothing_known_is_refused(label):
    """HALOs reads every number but 1 as 0."""
    with pytest.raises(ValueError, match=r"field 'label': found .*need 1 \(A is preferred\), 0 \(B is\), the prob"):
        read({**PAIRWISE, "label": label})


@pytest.mark.parametrize("kind", ["sample", "scalar_feedback", "binary_feedback"])
def test_halos_rows_without_pairs_say_what_to_use(kind):
    with pytest.raises(ValueError, match=f"field 'type': found the text '{kind}'.*no pairs.*pairwise_feedback"):
        detect({"type": kind, "prompt": "q", "output": "a", "reward": 1.0})


def test_ranks_count_from_the_best_and_scores_from_the_worst():
    found = read(RANKED)
    assert texts(found) == [("a", "c"), ("b", "a"), ("b", "c")]
    assert [p["id"] for p in found] == ["r/0>2", "r/1>0", "r/1>2"]
    scores = {"prompt": "q", "completions": [[bot("a")], "b", "c"], "scores": [2.5, 3, -1]}
    assert texts(read(scores)) == [("a", "c"), ("b", "a"), ("b", "c")]
    assert [p["id"] for p in read(scores)] == ["", "", ""]


@relaxed
@given(st.lists(st.integers(0, 3), min_size=1, max_size=7))
def test_ranked_gives_every_pair_of_different_rank_once(ranks):
    found = read({"prompt": "q", "responses": [str(i) for i in range(len(ranks))], "ranks": ranks})
    pairs = [(int(a), int(b)) for a, b in texts(found)]
    expected = {(i, j) for i, a in enumerate(ranks) for j, b in enumerate(ranks) if a < b}
    assert len(pairs) == len(expected)
    assert set(pairs) == expected


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"ranks": [1, 2]}, "field 'ranks': found 2 numbers for 3 responses"),
        ({"ranks": [1, 2, True]}, r"field 'ranks\[2\]': found True"),
        ({"ranks": [1, math.nan, 2]}, r"field 'ranks\[1\]': found nan"),
        ({"ranks": "1, 2, 3"}, "field 'ranks': found the text"),
        ({"responses": ["a", 3, "c"]}, r"field 'responses\[1\]': found 3"),
        ({"responses": []}, "field 'responses': found an empty list"),
    ],
)
def test_bad_ranked_rows(change, found):
    with pytest.raises(ValueError, match=found):
        read({**RANKED, **change})


def test_response_lists_pair_every_chosen_with_every_rejected():
    found = read({"prompt": "q", "chosen": ["a", "b"], "rejected": ["x", "y"], "id": 5, "subset": "chat"})
    assert texts(found) == [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y")]
    assert [p["id"] for p in found] == ["5/0>0", "5/0>1", "5/1>0", "5/1>1"]
    assert {p["subset"] for p in found} == {"chat"}
    assert texts(read({"prompt": "q", "chosen": "a", "rejected": ["x"]})) == [("a", "x")]
    with pytest.raises(ValueError, match="field 'chosen': found an empty list"):
        read({"prompt": "q", "chosen": [], "rejected": ["x"]})


def test_optional_fields():
    optional = {"margin": -1, "weight": 0, "target": 0.5, "subset": "s", "id": "i"}
    found = one({**EXPLICIT, **optional})
    assert {field: found[field] for field in optional} == optional
    assert isinstance(found["margin"], float)
    assert one({**EXPLICIT, **dict.fromkeys(optional)}) == one(EXPLICIT)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("margin", math.nan),
        ("margin", math.inf),
        ("margin", "1"),
        ("margin", True),
        ("weight", -0.1),
        ("weight", math.inf),
        ("target", 1.01),
        ("target", -0.01),
        ("target", math.nan),
        ("target", True),
        ("subset", ["a"]),
        ("id", 1.5),
        ("prompt", 3),
        ("chosen", True),
        ("rejected", [{"role": "assistant"}]),
    ],
)
def test_a_bad_field_is_named(field, value):
    with pytest.raises(ValueError, match=rf"field '{field}[^']*': found"):
        read({**EXPLICIT, field: value})


@pytest.mark.parametrize("row", [{}, {"text": "x"}, {"prompt": "q"}, {"chosen_ids": [1]}])
def test_an_unknown_form_says_what_was_found_and_what_there_is(row):
    with pytest.raises(ValueError, match="fit no form") as caught:
        detect(row)
    assert all(form in str(caught.value) for form in NEEDS)
    assert all(field in str(caught.value) for field in row)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"prompt": "q", "chosen": "a"}, "(rejected is missing)"),
        ({"prompt": "q", "choosen": "a", "rejected": "b"}, "(choosen: did you mean chosen?)"),
        ({"Prompt ": "q", "responses": ["a", "b"]}, "(Prompt : did you mean prompt?; ranks or scores is missing)"),
        ({"output_A": "a", "output_B": "b", "promt": "q"}, "(promt: did you mean prompt?)"),
        ({"instruction": "q", "input": "", "output_1": "a", "output_2": "b"}, "(label or preference is missing)"),
        (
            {"instruction": "q", "input": "", "output": "a"},
            "(output stands alone: nothing says what it is better or worse than)",
        ),
    ],
)
def test_a_field_that_is_missing_or_misspelt_is_named(row, told):
    with pytest.raises(ValueError, match="fit no form") as caught:
        detect(row)
    assert str(caught.value).endswith(told)


@pytest.mark.parametrize("row", [[], "x", 3, None])
def test_a_row_that_is_no_object(row):
    with pytest.raises(ValueError, match="need an object"):
        detect(row)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content"]), inner),
    max_leaves=5,
)
any_field = st.sampled_from(
    ["prompt", "chosen", "rejected", "type", "label", "output_A", "responses", "ranks", "scores", "margin", "id"]
)


@relaxed
@given(st.sampled_from([EXPLICIT, RANKED, PAIRWISE, HH]), st.dictionaries(any_field, json_values, max_size=2))
def test_any_row_is_read_or_refused_with_a_value_error(row, change):
    try:
        found = read({**row, **change})
    except ValueError:
        return
    for preference in found:
        for message in (*preference["prompt"], *preference["chosen"], *preference["rejected"]):
            assert isinstance(message["role"], str)
            assert isinstance(message["content"], str)
        assert math.isfinite(preference["margin"])


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "responses": ["a"] * 363, "ranks": [1] * 363},
        {"prompt": "q", "chosen": ["a"] * 257, "rejected": ["b"] * 256},
    ],
)
def test_a_row_that_stands_for_too_many_preferences_is_refused(row):
    """Responses make pairs by their square: some megabytes stood for billions."""
    with pytest.raises(ValueError, match=r"found responses for 65[78][0-9]* preferences, need at most 65536 a row"):
        preferences(row, detect(row))
