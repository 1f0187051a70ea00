import json
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from rmkit import scorer
from rmkit.data.tokenizer import encode, render
from rmkit.errors import UserError
from rmkit.labelling.config import FLAGS
from rmkit.model import precision
from rmkit.scorer import load_scorer
from support.oracle import scores_one_by_one
from support.pairs_of import tokenised
from support.saved import small, written
from support.true_rows import TOOL, call

CPU = torch.device("cpu")


def sequences(lengths) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(3, 60, n).astype(np.int32) for n in lengths]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return written(tmp_path_factory.mktemp("saved") / "m", small())


def test_a_conversation_longer_than_the_default_budget_runs_alone(folder, monkeypatch):
    monkeypatch.setitem(scorer.BUDGET, "cpu", 20)
    loaded = load_scorer(str(folder), device=CPU, say=lambda text: None)
    assert loaded.max_tokens == 20
    assert loaded.max_length == 128, "the model's context"
    given = sequences([5, 50, 7, 19])
    seen = []
    loaded.model.register_forward_pre_hook(lambda model, inputs: seen.append(inputs[0].tokens))
    found = loaded.score_tokens(given, np.arange(4))
    assert max(seen) == 50
    plain = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        np.testing.assert_allclose(found, scores_one_by_one(plain, given), rtol=1e-5, atol=1e-5)


def test_a_budget_that_is_given_bounds_the_length(folder):
    loaded = load_scorer(str(folder), device=CPU, max_tokens=64, say=lambda text: None)
    assert (loaded.max_tokens, loaded.max_length) == (64, 64)
    with pytest.raises(UserError) as caught:
        load_scorer(str(folder), device=CPU, max_tokens=64, max_length=65, say=lambda text: None)
    told = caught.value.told(FLAGS)
    assert told == "--max-length 65: one conversation would not fit into --max-tokens 64"


def test_nothing_to_score(folder):
    loaded = load_scorer(str(folder), device=CPU, say=lambda text: None)
    assert loaded.score_tokens([], np.empty(0, np.int64)).shape == (0,)


def test_bf16_rounds_the_projections_once_and_changes_no_score(folder, monkeypatch):
    monkeypatch.setattr(precision, "has_bf16", lambda: True)
    given, group = sequences([5, 50, 7, 19]), np.arange(4)
    rounded = load_scorer(str(folder), device=CPU, precision="bf16", say=lambda text: None)
    monkeypatch.setattr(scorer, "_round_projections", lambda model: None)
    each_time = load_scorer(str(folder), device=CPU, precision="bf16", say=lambda text: None)
    assert rounded.score_tokens(given, group).tobytes() == each_time.score_tokens(given, group).tobytes()
    dtypes = {name: weight.dtype for name, weight in rounded.model.named_parameters()}
    for name, dtype in dtypes.items():
        assert dtype == (torch.bfloat16 if name.endswith("_proj.weight") else torch.float32), name
    assert set(dtypes.values()) == {torch.bfloat16, torch.float32}


def test_bf16_on_a_processor_without_it_is_computed_in_fp32_and_that_is_said(folder, monkeypatch):
    monkeypatch.setattr(precision, "has_bf16", lambda: False)
    said = []
    loaded = load_scorer(str(folder), device=CPU, precision="bf16", say=said.append)
    assert not loaded.model.bf16
    assert {weight.dtype for weight in loaded.model.parameters()} == {torch.float32}
    assert [text for text in said if text.startswith("computes in fp32: bf16 is asked for")]


@pytest.mark.parametrize(("given", "passes"), [(None, [20, 20, 13]), (40, [33, 20])])
def test_a_full_pass_grows_to_the_largest_group_and_no_further(folder, monkeypatch, given, passes):
    """By default; a budget that is given is filled."""
    monkeypatch.setitem(scorer.BUDGET, "cpu", 30)
    monkeypatch.setitem(scorer.FULL, "cpu", 15)
    loaded = load_scorer(str(folder), device=CPU, max_tokens=given, max_length=30, say=lambda text: None)
    prompt = sequences([10])[0]
    pair = [np.append(prompt, np.full(5, word)) for word in (3, 4)]  # 20 tokens that must not be cut
    seen = []
    loaded.model.register_forward_pre_hook(lambda model, inputs: seen.append(inputs[0].tokens))
    others = [62 - s for s in sequences([13, 20])]  # their beginnings differ from the prompt's
    loaded.score_tokens([*pair, others[0], others[1][::-1]], np.array([0, 0, 1, 2]))
    assert sorted(seen, reverse=True) == passes


@pytest.fixture(scope="module")
def pad_ends(folder, tmp_path_factory):
    """Someone else's classifier whose pad token ends every conversation."""
    other = tmp_path_factory.mktemp("theirs") / "m"
    shutil.copytree(folder, other)
    (other / "rmkit.json").unlink()
    for name in ("config.json", "tokenizer_config.json"):
        held = json.loads((other / name).read_text())
        held |= {"pad_token_id": 2} if name == "config.json" else {"pad_token": "</s>"}
        (other / name).write_text(json.dumps(held))
    return other


def test_where_the_pad_token_ends_a_conversation_both_readings_are_offered(pad_ends):
    talk = [{"role": "user", "content": "reverse abc"}, {"role": "assistant", "content": "cba"}]
    said = []
    last = load_scorer(str(pad_ends), device=CPU, say=said.append)
    early = load_scorer(str(pad_ends), device=CPU, end_token="before-pad", say=said.append)
    told = [line for line in said if "its files do not say" in line]
    way = "--end-token {0} (label, evaluate, inspect) or end_token='{0}' (load_scorer) scores the other"
    assert f"Here the last is scored; {way.format('before-pad')}" in told[0]
    assert f"Here the one before is scored; {way.format('last')}" in told[1]
    plain = AutoModelForSequenceClassification.from_pretrained(pad_ends).eval()
    ids = encode(last.tokenizer, [render(last.tokenizer, talk)])[0]
    assert ids[-1] == plain.config.pad_token_id == 2
    with torch.no_grad():
        theirs = plain(torch.tensor([ids])).logits.item()
        plain.config.pad_token_id = 0
        of_the_last = plain(torch.tensor([ids])).logits.item()
    assert early.score(talk) == pytest.approx(theirs, abs=1e-5)
    assert last.score(talk) == pytest.approx(of_the_last, abs=1e-5)
    assert abs(theirs - of_the_last) > 0.01


def test_elsewhere_the_flag_changes_nothing(folder):
    given, group = sequences([5, 50]), np.arange(2)
    said = []
    usual = load_scorer(str(folder), device=CPU, say=said.append).score_tokens(given, group)
    early = load_scorer(str(folder), device=CPU, end_token="before-pad", say=said.append).score_tokens(given, group)
    assert usual.tobytes() == early.tobytes()
    assert not any("pad token" in line for line in said)


def test_whole_messages_and_tools_reach_the_template(folder):
    loaded = load_scorer(str(folder), device=CPU, say=lambda text: None)
    plain = loaded.tokenizer.chat_template
    loaded.tokenizer.chat_template = (
        "{{ tools[0].function.name if tools else '' }}{% for m in messages %}"
        "{{ m.tool_calls[0].function.arguments.city if m.tool_calls else m.content }}{% endfor %}"
    )
    turns = [{"role": "user", "content": "q"}, call("Ulm")]
    bare, other = loaded.score([turns, [turns[0], call("Aalen")]])
    assert bare != other
    with_tools = loaded.score(turns, tools=[TOOL])
    assert with_tools != bare
    margin = loaded.compare("q", [call("Ulm")], [call("Aalen")], tools=[TOOL]).margin
    assert margin == pytest.approx(with_tools - loaded.score([turns[0], call("Aalen")], tools=[TOOL]), abs=1e-5)
    loaded.tokenizer.chat_template = plain
    said = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    with pytest.warns(UserWarning, match="conversation 0: the chat template leaves out tools"):
        assert loaded.score(said, tools=[TOOL]) == loaded.score(said)


def test_the_features_of_a_pair_times_the_head_are_its_margin(folder):
    loaded = load_scorer(str(folder), device=CPU, say=lambda text: None)
    rows = [("reverse abc", "cba", "bca"), ("hi", "a much longer answer", "b"), ("reverse abc", "cba", "abc")]

    def side(prompt, answer):
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        return np.array(encode(loaded.tokenizer, [render(loaded.tokenizer, turns)])[0], np.int32)

    sides = [[side(prompt, answers[i]) for prompt, *answers in rows] for i in (0, 1)]
    pairs = tokenised(*sides, group=[0, 1, 0])
    found = loaded.features(pairs)
    assert (found.shape, found.dtype) == ((3, loaded.model.config.hidden_size), np.float32)
    weight = loaded.model.classifier.score.weight.detach().double().numpy()[0]
    margins = [loaded.compare(*row).margin for row in rows]
    np.testing.assert_allclose(found @ weight, margins, atol=1e-5)
    assert len(set(margins)) == 3


def test_features_leave_the_scores_as_they_are_to_the_last_bit(folder):
    loaded = load_scorer(str(folder), device=CPU, max_tokens=60, max_length=60, say=lambda text: None)
    given, group = sequences([5, 50, 7, 19]), np.arange(4)
    scores, features = loaded.score_with_features(given, group)
    assert scores.tobytes() == loaded.score_tokens(given, group).tobytes()
    weight = loaded.model.classifier.score.weight.detach().numpy()[0]
    np.testing.assert_allclose(features @ weight, scores, rtol=1e-5, atol=1e-6)
    plain = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        ends = [plain.model(torch.tensor(s)[None]).last_hidden_state[0, -1].numpy() for s in map(np.int64, given)]
    np.testing.assert_allclose(features, ends, rtol=1e-4, atol=1e-5)
