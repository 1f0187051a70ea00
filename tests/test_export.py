"""Rung 5: what is saved is what transformers alone reads, and a changed folder is found out."""

import json

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from rmkit.data import demo
from rmkit.data.tokenizer import encode, load_tokenizer, render
from rmkit.errors import AgreedError
from rmkit.storage import export
from rmkit.storage.checkpoint import Progress, newest_whole
from rmkit.storage.self_check import SELF_CHECK, score_texts, verify
from rmkit.training.optim import adamw
from support.oracle import FAMILIES, reward_model, rewards_of
from support.saved import CONFIG, TEXTS, TOKENIZER, save, small, written
from support.tokenizer_shapes import SHAPES, write_base

transformers_logging.disable_progress_bar()


def read(file):
    return json.loads(file.read_text())


def padded_scores(folder, side="right", **options):
    """Scores by transformers alone, all texts in one padded batch."""
    # Not AutoTokenizer: for every qwen2 folder transformers 5 takes Qwen2Tokenizer, whatever tokenizer.json says.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, padding_side=side)
    model = AutoModelForSequenceClassification.from_pretrained(folder, **options).eval()
    batch = tokenizer(TEXTS, add_special_tokens=False, padding=True, return_tensors="pt")
    assert (batch["attention_mask"] == 0).any()
    with torch.no_grad():
        return model(**batch).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_alone_gives_the_same_scores_in_a_padded_batch(family, tmp_path):
    model = small(family)
    wanted = score_texts(model, TOKENIZER, TEXTS)
    eager = {"attn_implementation": "eager"} if family == "gemma2" else {}  # SDPA has no softcap
    logits = padded_scores(written(tmp_path / "x", model), **eager)
    assert logits.shape == (len(TEXTS), 1)
    assert logits[:, 0].tolist() == pytest.approx(wanted, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_and_configuration_are_those_that_transformers_itself_saves(family, tmp_path):
    model = small(family)
    model.classifier.save_pretrained(tmp_path / "theirs")
    ours = written(tmp_path / "ours", model)
    wanted, found = (load_file(folder / "model.safetensors") for folder in (tmp_path / "theirs", ours))
    assert wanted.keys() == found.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    theirs, config = read(tmp_path / "theirs" / "config.json"), read(ours / "config.json")
    assert {key: config.get(key) for key in theirs} == theirs


def test_a_large_model_is_split_into_files_as_hugging_face_does_it(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "FILE_SIZE", "40KB")
    model = small()
    model.classifier.save_pretrained(tmp_path / "theirs", max_shard_size="40KB")
    ours = written(tmp_path / "ours", model)
    files = sorted(path.name for path in (tmp_path / "theirs").glob("*.safetensors*"))
    assert len(files) > 2
    assert sorted(path.name for path in ours.glob("*.safetensors*")) == files
    for name in files[:-1]:
        assert load_file(ours / name).keys() == load_file(tmp_path / "theirs" / name).keys()
    assert read(ours / files[-1]) == read(tmp_path / "theirs" / files[-1])
    wanted = score_texts(model, TOKENIZER, TEXTS)
    assert padded_scores(ours)[:, 0].tolist() == pytest.approx(wanted, rel=1e-4, abs=1e-4)


def test_a_folder_that_cannot_be_written_is_said_and_nothing_is_left(tmp_path, monkeypatch):
    def full(tensors, file, **more):
        file.write_bytes(b"half")
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(export, "save_file", full)
    with pytest.raises(AgreedError, match=r"FINAL could not be written \(No space left on device\); make room"):
        written(tmp_path / "FINAL", small())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("head", [1, 2])
def test_the_saved_folder_is_an_ordinary_classifier(head, tmp_path):
    model = small(head=head)
    folder = written(tmp_path / "x", model, binary_head="keep")
    config = read(folder / "config.json")
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert list(config["id2label"]) == [str(i) for i in range(head)]
    assert config["pad_token_id"] == 0
    assert not list(folder.glob("*.bin"))
    weights = load_file(folder / "model.safetensors")
    assert weights["score.weight"].shape == (head, 32)
    assert "score.bias" not in weights
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    contract = read(folder / "rmkit.json")
    assert contract["head"]["labels"] == list(config["id2label"].values())
    assert contract["head"]["reward"] == [0.0] * (head - 1) + [1.0]
    assert contract["max_length"] == 77
    assert contract["overlong"] == "keep-end"
    assert contract["chat_template"] == demo.TEMPLATE
    logits = padded_scores(folder, side="left")
    assert logits[:, head - 1].tolist() == pytest.approx(score_texts(model, TOKENIZER, TEXTS), rel=1e-4, abs=1e-4)


def test_of_a_binary_head_the_row_of_the_reward_is_saved(tmp_path):
    model = small(head=2)
    wanted = score_texts(model, TOKENIZER, TEXTS)
    rows = model.classifier.score.weight.detach().clone()
    folder = written(tmp_path / "x", model)
    assert torch.equal(load_file(folder / "model.safetensors")["score.weight"], rows[1:])
    assert torch.equal(model.classifier.score.weight, rows), "the model itself keeps both"
    assert read(folder / "config.json")["id2label"] == {"0": "LABEL_0"}
    contract = read(folder / "rmkit.json")
    assert contract["head"] == {"labels": ["LABEL_0"], "reward": [1.0], "rated": False}
    assert "by_label" not in contract["self_check"]
    logits = padded_scores(folder)
    assert logits.shape == (len(TEXTS), 1)
    assert logits[:, 0].tolist() == pytest.approx(wanted, rel=1e-4, abs=1e-4)
    kept = save(tmp_path / "run", Progress(step=1), model, TOKENIZER, adamw(model, CONFIG.optim))
    assert torch.equal(load_file(kept / "model.safetensors")["score.weight"], rows), "--resume needs both rows"


@pytest.mark.parametrize(
    ("asked", "computed_in_bf16", "dtype"),
    [
        ("auto", False, torch.float32),
        ("auto", True, torch.bfloat16),
        ("bf16", False, torch.bfloat16),
        ("fp32", True, torch.float32),
    ],
)
def test_the_dtype_of_the_weights(asked, computed_in_bf16, dtype, tmp_path):
    model = small()
    before = {name: tensor.clone() for name, tensor in model.classifier.state_dict().items()}
    model.bf16 = computed_in_bf16
    folder = written(tmp_path / "x", model, dtype=asked)
    held = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in held.values()} == {dtype}
    assert all(torch.equal(held[name], tensor.to(dtype)) for name, tensor in before.items())
    config = read(folder / "config.json")
    assert config["dtype"] == config["torch_dtype"] == str(dtype).removeprefix("torch.")
    # What others read, in float32 arithmetic, has the scores of the self-check.
    check = read(folder / "rmkit.json")["self_check"]
    plain = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        scores = [plain(torch.tensor([ids])).logits.item() for ids in check["ids"]]
    assert scores == pytest.approx(check["scores"], rel=1e-5, abs=1e-5)


def test_the_self_check_knows_what_a_reader_may_do_wrong(tmp_path):
    model = small(head=2)
    check = read(written(tmp_path / "x", model, binary_head="keep") / "rmkit.json")["self_check"]
    assert check["messages"] == list(SELF_CHECK)
    assert check["ids"] == encode(TOKENIZER, check["texts"])
    assert check["scores"] == [row[1] for row in check["by_label"]]
    doubled = [TOKENIZER.bos_token + text for text in check["texts"]]
    assert check["bos_doubled"] == pytest.approx(score_texts(model, TOKENIZER, doubled), rel=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_no_reader_adds_a_token_to_rendered_text(shape, tmp_path):
    """Whoever sends text gets the ids that rmkit trained on, and no special token is lost."""
    base = write_base(tmp_path / "base", shape)
    published = AutoTokenizer.from_pretrained(base)
    tokenizer = load_tokenizer(str(base), lambda text: None)
    texts = [render(tokenizer, messages) for messages in SELF_CHECK]
    wanted = encode(published, texts)
    assert encode(tokenizer, texts) == wanted, "the ids of a training are those of the published tokenizer"
    if shape in ("llama3", "gemma", "mistral"):
        assert published(texts)["input_ids"] != wanted, "this shape doubles the BOS"
    model = small(SHAPES[shape]["family"], vocab_size=400, max_position_embeddings=512)
    folder = written(tmp_path / "x", model, tokenizer)
    for reader in (AutoTokenizer, PreTrainedTokenizerFast):
        again = reader.from_pretrained(folder)
        assert again(texts)["input_ids"] == again(texts, add_special_tokens=False)["input_ids"] == wanted
        assert [render(again, messages) for messages in SELF_CHECK] == texts
        assert set(again.all_special_tokens) >= set(tokenizer.all_special_tokens)
    assert Tokenizer.from_file(str(folder / "tokenizer.json")).encode(texts[0]).ids == wanted[0]


@pytest.mark.parametrize("shape", ["qwen", "gemma"])
def test_additional_special_tokens_have_the_name_that_transformers_4_and_5_read(shape, tmp_path):
    tokenizer = load_tokenizer(str(write_base(tmp_path / "base", shape)), lambda text: None)
    model = small(SHAPES[shape]["family"], vocab_size=400, max_position_embeddings=512)
    plain = read(written(tmp_path / "x", model, tokenizer) / "tokenizer_config.json")
    assert "extra_special_tokens" not in plain
    assert plain["additional_special_tokens"] == tokenizer.extra_special_tokens != []
    assert (plain["add_bos_token"], plain["add_eos_token"]) == (False, False)


def test_the_saved_tokenizer_is_the_same_and_readable_by_older_versions(tmp_path):
    folder = written(tmp_path / "x", small())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == demo.TEMPLATE
    assert encode(tokenizer, TEXTS) == encode(TOKENIZER, TEXTS)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 2)
    plain = read(folder / "tokenizer_config.json")
    assert plain["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert plain["chat_template"] == demo.TEMPLATE
    assert "token_type_ids" not in plain["model_input_names"]
    again = read(written(tmp_path / "y", small(), tokenizer) / "tokenizer_config.json")
    assert not {"is_local", "local_files_only"} & again.keys(), "where it was read is nobody's concern"
    (folder / "chat_template.jinja").unlink()
    assert AutoTokenizer.from_pretrained(folder).chat_template == demo.TEMPLATE


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def test_config_has_both_spellings(tmp_path):
    plain = read(
        written(tmp_path / "a", small(rope_parameters={"rope_type": "default", "rope_theta": 5e5})) / "config.json"
    )
    assert plain["rope_theta"] == plain["rope_parameters"]["rope_theta"] == 5e5
    assert plain["rope_scaling"] is None
    assert plain["torch_dtype"] == plain["dtype"] == "float32"
    rope = {**LLAMA3, "original_max_position_embeddings": 64, "rope_theta": 5e5}
    scaled = read(written(tmp_path / "b", small(rope_parameters=rope)) / "config.json")
    assert scaled["rope_theta"] == scaled["rope_parameters"]["rope_theta"] == 5e5
    assert scaled["rope_scaling"] == {**LLAMA3, "original_max_position_embeddings": 64}


def test_config_of_layer_types_has_both_spellings(tmp_path):
    """Gemma 3 from 4B on: transformers 4 reads the linear scaling of its global layers from rope_scaling."""
    rope = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    found = read(written(tmp_path / "x", small("gemma3_text", rope_parameters=rope)) / "config.json")
    assert found["rope_parameters"] == rope
    assert (found["rope_theta"], found["rope_local_base_freq"]) == (1e6, 1e4)
    scaling = found["rope_scaling"]
    assert (scaling["rope_type"], scaling["factor"]) == ("linear", 8.0)


def test_a_tokenizer_with_several_templates_is_saved(tmp_path):
    """Hermes and others bring a second template for tools, which transformers saves in a folder of its own."""
    tokenizer = demo.tokenizer()
    tokenizer.chat_template = {"default": demo.TEMPLATE, "tool_use": "{{ messages }}"}
    model = small()
    folder = save(tmp_path, Progress(step=1), model, tokenizer, adamw(model, CONFIG.optim))
    again = AutoTokenizer.from_pretrained(folder)
    assert [render(again, m) for m in SELF_CHECK] == [render(TOKENIZER, m) for m in SELF_CHECK]
    assert verify(model, again, folder)
    assert newest_whole(tmp_path, pytest.fail)[0] == folder


def test_self_check_holds_in_every_layout_and_precision(tmp_path):
    model = small()
    folder = written(tmp_path / "x", model)
    check = read(folder / "rmkit.json")["self_check"]
    assert check["texts"] == [render(TOKENIZER, messages) for messages in SELF_CHECK]
    assert len(set(check["scores"])) == 3
    for layout in ("trie", "packed", "padded"):
        other = reward_model(model.classifier, layout, bf16=True)
        assert "3 scores agree" in verify(other, TOKENIZER, folder)
        assert other.bf16


def test_self_check_detects_changed_weights_at_the_size_of_a_bug(tmp_path):
    model = small()
    folder = written(tmp_path / "x", model)
    with torch.no_grad():
        model.classifier.score.weight.mul_(1 + 1e-5)
        assert verify(model, TOKENIZER, folder)
        model.classifier.score.weight.mul_(1.01)
    with pytest.raises(ValueError, match=r"rmkit\.json: the self-check failed"):
        verify(model, TOKENIZER, folder)


@pytest.mark.parametrize("text", [0, 1, 2])
def test_self_check_detects_a_score_that_is_no_number(text, tmp_path):
    """A damaged row of the embedding shows in the texts that hold its token, the first or not."""
    model = small()
    folder = written(tmp_path / "x", model)
    ids = [set(tokens) for tokens in encode(TOKENIZER, read(folder / "rmkit.json")["self_check"]["texts"])]
    only_there = min(ids[text] - set.union(*(ids[i] for i in range(3) if i != text)))
    with torch.no_grad():
        model.backbone.embed_tokens.weight[only_there] = torch.nan
    assert np.isnan(score_texts(model, TOKENIZER, read(folder / "rmkit.json")["self_check"]["texts"])[text])
    with pytest.raises(ValueError, match="self-check failed"):
        verify(model, TOKENIZER, folder)


def test_self_check_detects_another_tokenisation(tmp_path):
    model = small()
    folder = written(tmp_path / "x", model)
    other = demo.tokenizer()
    other.add_tokens(["two"])
    with pytest.raises(ValueError, match="self-check failed"):
        verify(model, other, folder)


def test_self_check_detects_a_changed_template(tmp_path):
    model = small()
    folder = written(tmp_path / "x", model)
    other = demo.tokenizer()
    other.chat_template = demo.TEMPLATE.replace("{{ eos_token }}", "")
    with pytest.raises(ValueError, match=r"rmkit\.json"):
        verify(model, other, folder)


def test_a_folder_without_a_self_check_is_taken_and_a_broken_one_is_not(tmp_path):
    model = small()
    assert verify(model, TOKENIZER, tmp_path) is None
    check = '{"chat_template": "", "self_check": {"texts": %s, "scores": [1]}}'
    of_texts = [check % texts for texts in ("[]", "[3]", '["\\ud800"]', "3")]
    for broken in ("{", "{}", "[]", '{"self_check": {"texts": []}}', "[" * 100_000, *of_texts):
        (tmp_path / "rmkit.json").write_text(broken)
        with pytest.raises(ValueError, match=r"rmkit\.json: the self-check cannot be read"):
            verify(model, TOKENIZER, tmp_path)


def test_score_texts_in_float32_whatever_the_training_precision(tmp_path):
    model = small()
    wanted = score_texts(model, TOKENIZER, TEXTS)
    model.bf16 = True
    assert score_texts(model, TOKENIZER, TEXTS) == wanted
    assert model.bf16
    sequences = [np.array(ids) for ids in encode(TOKENIZER, TEXTS)]
    with torch.no_grad():
        assert rewards_of(model, sequences).tolist() != wanted
    assert len(wanted) == len(TEXTS)
