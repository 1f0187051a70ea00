import hashlib
import json
from collections import Counter, defaultdict
from itertools import islice

from rmkit.data import demo
from rmkit.data.cache import features
from rmkit.data.tokenizer import encode, prepare, render
from rmkit.model.family import check_family

TRAIN, TEST = list(demo.preferences("train")), list(demo.preferences("test"))


def text(row, part):
    (message,) = row[part]
    return message["content"]


def letters(row):
    return text(row, "prompt").removeprefix("reverse ")


def test_the_rule_is_reversal_and_the_prompt_is_needed():
    for row in TRAIN + TEST:
        chosen, rejected = text(row, "chosen"), text(row, "rejected")
        assert chosen == letters(row)[::-1]
        assert rejected != chosen
        assert Counter(rejected) == Counter(chosen)  # so neither the letters nor the length tells


def test_the_answer_alone_says_nothing():
    """The same answer is right for one prompt and wrong for others: half of the shortest ones stand on both sides."""
    sides = defaultdict(set)
    for row in TRAIN:
        for side in ("chosen", "rejected"):
            if len(text(row, side)) == 4:
                sides[text(row, side)].add(side)
    assert sum(len(found) == 2 for found in sides.values()) > 0.45 * len(sides)
    first = Counter(text(row, "chosen") < text(row, "rejected") for row in TRAIN)
    assert 0.45 < first[True] / len(TRAIN) < 0.55


def test_held_out_prompts_are_never_seen_in_training():
    assert not {letters(row) for row in TRAIN} & {letters(row) for row in TEST}


def test_three_different_wrong_answers_a_prompt():
    for rows, prompts in ((TRAIN, demo.TRAIN_PROMPTS), (TEST, demo.TEST_PROMPTS)):
        wrong = defaultdict(set)
        for row in rows:
            wrong[letters(row)].add(text(row, "rejected"))
        assert len(wrong) == prompts
        assert len(rows) == 3 * prompts
        assert {len(answers) for answers in wrong.values()} == {3}
        assert len({row["id"] for row in rows}) == len(rows)


def test_the_same_on_every_machine():
    assert list(islice(demo.preferences("test"), 50)) == TEST[:50]

    def digest(rows):
        own = [{key: value for key, value in row.items() if key not in ("ratings", "compared")} for row in rows]
        return hashlib.sha256(json.dumps(own).encode()).hexdigest()[:16]

    digests = [digest(rows) for rows in (TRAIN, TEST)]
    assert digests == ["6fcad717b0ac0812", "90a06682a62c1987"]


def test_normalised_form():
    row = TEST[0]
    assert {*row, "source", "more"} == set(features())
    assert (row["margin"], row["weight"], row["target"]) == (0.0, 1.0, None)
    roles = [row[part][0]["role"] for part in ("prompt", "chosen", "rejected")]
    assert roles == ["user", "assistant", "assistant"]
    assert row["subset"] == f"{len(letters(row))} letters"


def test_tokenizer_needs_no_repair_and_splits_into_characters():
    said = []
    tokenizer = prepare(demo.tokenizer(), "demo", said.append)
    assert said == []
    row = TEST[0]
    rendered = render(tokenizer, row["prompt"] + row["chosen"])
    assert rendered == f"<s><user>reverse {letters(row)}<assistant>{letters(row)[::-1]}</s>"
    (ids,) = encode(tokenizer, [rendered])
    body = list(f"reverse {letters(row)}"), list(letters(row)[::-1])
    assert tokenizer.convert_ids_to_tokens(ids) == ["<s>", "<user>", *body[0], "<assistant>", *body[1], "</s>"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == f"reverse {letters(row)}{letters(row)[::-1]}"
    printable = "".join(map(chr, range(32, 127))) + "\n"
    assert tokenizer.unk_token_id not in encode(tokenizer, [printable])[0]
    assert encode(tokenizer, ["\u2014"]) == [[tokenizer.unk_token_id]]


def test_model_fits_the_tokenizer():
    config, tokenizer = check_family(demo.model_config(), "demo"), demo.tokenizer()
    assert len(tokenizer) <= config.vocab_size
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    assert [getattr(config, name) for name in names] == [getattr(tokenizer, name) for name in names]
    assert tokenizer.model_max_length == config.max_position_embeddings
