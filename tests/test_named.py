"""Each named set on rows made to its true schema on the hub (the columns that its card lists)."""

import random

import pytest

from rmkit.data.named import NAMED, SHP_MAX_PAIRS


def user(content):
    return {"role": "user", "content": content}


def bot(content):
    return {"role": "assistant", "content": content}


def read(name, rows, split="train"):
    return list(NAMED[name].function(rows, split))


def pairs(found):
    return [(p["chosen"][0]["content"], p["rejected"][0]["content"]) for _, p in found if not isinstance(p, str)]


def shp_row(history, a, b, labels, score_a, score_b):
    return {
        "post_id": "p" + history,
        "domain": "askculinary_train",
        "upvote_ratio": 0.98,
        "history": history,
        "c_root_id_A": "c" + a,
        "c_root_id_B": "c" + b,
        "created_at_utc_A": 1,
        "created_at_utc_B": 2,
        "score_A": score_a,
        "score_B": score_b,
        "human_ref_A": a,
        "human_ref_B": b,
        "labels": labels,
        "seconds_difference": 1.0,
        "score_ratio": max(score_a, score_b) / min(score_a, score_b),
    }


def test_the_sets_of_halos_are_there():
    hubs = {
        name: (known.hub, known.data_dir, known.splits["train"], known.splits["test"]) for name, known in NAMED.items()
    }
    assert hubs == {
        "shp": ("stanfordnlp/SHP", None, "train", "test"),
        "hh": ("Anthropic/hh-rlhf", None, "train", "test"),
        "hh_helpful": ("Anthropic/hh-rlhf", "helpful-base", "train", "test"),
        "hh_harmless": ("Anthropic/hh-rlhf", "harmless-base", "train", "test"),
        "oasst": ("OpenAssistant/oasst1", None, "train", "validation"),
        "ultrabin": ("HuggingFaceH4/ultrafeedback_binarized", None, "train_prefs", "test_prefs"),
        "ultrafeedback_armorm": ("princeton-nlp/llama3-ultrafeedback-armorm", None, "train", "test"),
        "ultrafeedback_armorm_gemma": ("princeton-nlp/gemma2-ultrafeedback-armorm", None, "train", "test"),
        "safe_rlhf": ("PKU-Alignment/PKU-SafeRLHF-single-dimension", None, "train", "test"),
    }
    assert all(known.similar for known in NAMED.values())


def test_shp_prefers_by_label_and_keeps_white_space():
    ((i, found),) = read("shp", [shp_row("a  b\tc", "x", "y  z", 0, 2, 8)])
    assert i == 0
    assert found["prompt"] == [user("a  b\tc")]
    assert (found["chosen"], found["rejected"]) == ([bot("y  z")], [bot("x")])
    assert (found["subset"], found["id"]) == ("askculinary_train", "pa  b\tc/cx-cy  z")
    assert pairs(read("shp", [shp_row("q", "x", "y", 1, 8, 2)])) == [("x", "y")]


def test_shp_score_ratio_counts_in_training_only():
    rows = [shp_row("q", "x", "y", 1, 19, 10), shp_row("q", "v", "w", 1, 20, 10), shp_row("r", "s", "t", 0, 1, 0.1)]
    found = read("shp", rows)
    assert found[0] == (0, "score ratio below 2")
    assert pairs(found) == [("v", "w"), ("t", "s")]
    assert len(pairs(read("shp", rows, "test"))) == 3


def test_shp_draws_the_five_pairs_that_halos_draws():
    rows = [shp_row(f"q{i % 2}", f"a{i}", f"b{i}", 1, 30, 10) for i in range(40)]
    rows.insert(0, shp_row("q0", "near", "miss", 1, 11, 10))  # filtered before the draw, so it takes no place in it
    found = read("shp", rows)
    expected = set()
    for parity in range(2):
        of_prompt = [f"a{i}" for i in range(40) if i % 2 == parity]
        expected |= set(random.Random(0).sample(of_prompt, SHP_MAX_PAIRS))
    assert {chosen for chosen, _ in pairs(found)} == expected
    assert len(pairs(found)) == 10
    assert [reason for _, reason in found if isinstance(reason, str)].count("beyond 5 pairs of its prompt") == 30
    assert [i for i, _ in found] == list(range(41))
    assert read("shp", rows) == found
    assert len(pairs(read("shp", rows, "test"))) == 41


@pytest.mark.parametrize("name", ["hh", "hh_helpful", "hh_harmless"])
def test_hh(name):
    start = "\n\nHuman: q  1 \n\nAssistant: a\n\nHuman: r"
    row = {"chosen": f"{start}\n\nAssistant: good ", "rejected": f"{start}\n\nAssistant: bad"}
    ((_, found),) = read(name, [row])
    assert found["prompt"] == [user("q  1"), bot("a"), user("r")]
    assert (found["chosen"], found["rejected"]) == ([bot("good")], [bot("bad")])


def test_hh_takes_the_prompt_from_chosen_and_the_last_answer_of_rejected():
    chosen = "\n\nHuman: q\n\nAssistant: good"
    rejected = "\n\nHuman: q\n\nAssistant: other\n\nHuman: r\n\nAssistant: bad"
    ((_, found),) = read("hh", [{"chosen": chosen, "rejected": rejected}])
    assert (found["prompt"], found["rejected"]) == ([user("q")], [bot("bad")])
    ((_, found),) = read("hh", [{"chosen": chosen, "rejected": "\n\nHuman: q"}])
    assert found["rejected"] == [bot("")]


def oasst_row(message, parent, role, rank, lang="en"):
    return {
        "message_id": message,
        "parent_id": parent,
        "user_id": "u",
        "created_date": "2023-02-05T14:23:50.983374+00:00",
        "text": f"text  of {message}",
        "role": role,
        "lang": lang,
        "review_count": 3,
        "review_result": True,
        "deleted": False,
        "rank": rank,
        "synthetic": False,
        "model_name": None,
        "message_tree_id": "root",
        "tree_state": "ready_for_export",
        "labels": {"name": ["quality"], "value": [0.5], "count": [3]},
    }


ALONE = "without a pair of its own (the best sibling, or no rank)"


def test_oasst_pairs_adjacent_ranks_on_the_path_from_the_root():
    rows = [
        oasst_row("deep0", "next", "assistant", 0.0),  # children may stand before their parents
        oasst_row("deep1", "next", "assistant", 1.0),
        oasst_row("root", None, "prompter", None),
        oasst_row("b", "root", "assistant", 1),
        oasst_row("a", "root", "assistant", 0),
        oasst_row("c", "root", "assistant", 2),
        oasst_row("next", "a", "prompter", None),
    ]
    found = [(i, pair) for i, pair in read("oasst", rows) if pair != ALONE]
    assert pairs(found) == [
        ("text  of deep0", "text  of deep1"),
        ("text  of a", "text  of b"),
        ("text  of b", "text  of c"),
    ]
    assert found[0][1]["prompt"] == [user("text  of root"), bot("text  of a"), user("text  of next")]
    assert found[1][1]["prompt"] == [user("text  of root")]
    assert [i for i, _ in found] == [1, 3, 5]
    assert found[1][1]["id"] == "a>b"


def test_oasst_reads_english_and_says_what_it_leaves_out():
    rows = [
        oasst_row("root", None, "prompter", None, lang="de"),
        oasst_row("a", "root", "assistant", 0),
        oasst_row("b", "root", "assistant", 1),
        oasst_row("c", "root", "assistant", 3),
    ]
    assert read("oasst", rows) == [
        (0, "not English"),
        (1, ALONE),
        (2, "no English path from the root"),
        (3, "no sibling one rank above"),
    ]


def test_oasst_siblings_that_people_wrote_keep_their_role():
    rows = [
        oasst_row("root", None, "prompter", None),
        oasst_row("a", "root", "assistant", None),
        oasst_row("x", "a", "prompter", 0),
        oasst_row("y", "a", "prompter", 1),
    ]
    ((_, found),) = ((i, pair) for i, pair in read("oasst", rows) if pair != ALONE)
    assert (found["chosen"], found["rejected"]) == ([user("text  of x")], [user("text  of y")])


def test_ultrabin_takes_the_last_turns_and_keeps_ties():
    row = {
        "prompt": "q  1",
        "prompt_id": "h",
        "chosen": [user("q  1"), bot("good")],
        "rejected": [user("q  1"), bot("bad")],
        "messages": [user("q  1"), bot("good")],
        "score_chosen": 7.0,
        "score_rejected": 7.0,
    }
    ((_, found),) = read("ultrabin", [row], "train_prefs")
    assert (found["prompt"], found["id"]) == ([user("q  1")], "h")
    assert (found["chosen"], found["rejected"]) == ([bot("good")], [bot("bad")])


@pytest.mark.parametrize("name", ["ultrafeedback_armorm", "ultrafeedback_armorm_gemma"])
def test_armorm(name):
    row = {
        "prompt_id": "h",
        "prompt": "q",
        "all_generated_responses": ["good", "bad"],
        "all_rm_scores": [0.2, 0.1],
        "chosen": [user("q"), bot("good")],
        "rejected": [user("q"), bot("bad")],
    }
    ((_, found),) = read(name, [row])
    assert (found["prompt"], found["chosen"], found["rejected"]) == ([user("q")], [bot("good")], [bot("bad")])


@pytest.mark.parametrize("better", [0, 1])
def test_safe_rlhf(better):
    row = {
        "prompt": "q",
        "response_0": "r0",
        "response_1": "r1",
        "prompt_source": "Alpaca3-70B",
        "response_0_source": "Alpaca-7B",
        "response_1_source": "Alpaca2-7B",
        "better_response_id": better,
    }
    assert pairs(read("safe_rlhf", [row])) == [(f"r{better}", f"r{1 - better}")]


@pytest.mark.parametrize("name", ["hh", "ultrabin", "ultrafeedback_armorm", "safe_rlhf"])
def test_a_changed_schema_is_named(name):
    with pytest.raises(ValueError, match=r"row 0: .*among the fields text"):
        read(name, [{"text": "x"}])
