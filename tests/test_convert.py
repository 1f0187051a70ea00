"""`python -m rmkit.convert`: HALOs' and OpenRLHF's folders in their true shapes become ordinary classifiers."""

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from rmkit import convert
from rmkit.errors import UserError
from rmkit.model.folder import saved_head
from rmkit.model.pretrained import load_config
from rmkit.scorer import load_scorer
from support.oracle import tiny_classifier
from support.saved import TOKENIZER

LAYERS = {"num_hidden_layers": 2, "vocab_size": 128}


def folder_of(place, classifier, state, *, architecture, **described):
    """A folder with config.json and tokenizer, and the state in the file that `described` names."""
    file = described.pop("file", "pytorch_model.bin")
    classifier.config.save_pretrained(place)
    config = json.loads((place / "config.json").read_text())
    config |= {"architectures": [architecture], **described}
    (place / "config.json").write_text(json.dumps(config))
    TOKENIZER.save_pretrained(place)
    (save_file if file.endswith("safetensors") else torch.save)(state, place / file)
    return place


def halos(place):
    """As HALOs' FSDP trainer saves: a pickle in bf16 of transformers' own classifier with two labels."""
    classifier = tiny_classifier("llama", num_labels=2, **LAYERS)
    state = {name: tensor.bfloat16() for name, tensor in classifier.state_dict().items()}
    classifier.load_state_dict(state)  # float32 with the rounded values: its own buffers stay whole
    return classifier, folder_of(place, classifier, state, architecture="LlamaForSequenceClassification")


def openrlhf(place, head="value_head", file="model.safetensors", **described):
    """OpenRLHF's RewardModel: the backbone and a linear layer of some name, no labels in config.json."""
    classifier = tiny_classifier("llama", **LAYERS)
    state = {name.replace("score.", f"{head}."): tensor for name, tensor in classifier.state_dict().items()}
    made = folder_of(
        place, classifier, state, architecture="RewardModel", file=file, normalize_reward=False, **described
    )
    config = json.loads((made / "config.json").read_text())
    for name in ("id2label", "label2id"):
        config.pop(name, None)
    (made / "config.json").write_text(json.dumps(config))
    return classifier, made


def rewards(classifier, folder):
    """Those of the converted folder by rmkit, and of the classifier that it was made of, by transformers."""
    talk = [{"role": "user", "content": "reverse abc"}, {"role": "assistant", "content": "cba"}]
    scorer = load_scorer(folder)
    ids = torch.tensor(
        [TOKENIZER(TOKENIZER.apply_chat_template(talk, tokenize=False), add_special_tokens=False)["input_ids"]]
    )
    with torch.no_grad():
        return scorer.score(talk), classifier.eval()(ids).logits[0, -1].item()


MADE = {
    "halos": halos,
    "openrlhf value_head": openrlhf,
    "openrlhf score": lambda place: openrlhf(place, head="score"),
    "openrlhf, pickled": lambda place: openrlhf(place, file="pytorch_model.bin"),
    "openrlhf, a prefix of its own": lambda place: openrlhf(place, head="reward", value_head_prefix="reward"),
}


@pytest.mark.parametrize("made", MADE)
def test_what_is_converted_scores_as_the_original(made, tmp_path, capsys):
    classifier, source = MADE[made](tmp_path / "theirs")
    labels = 2 if made == "halos" else 1
    with pytest.raises(UserError, match=r"python -m rmkit\.convert .*theirs OUT writes an ordinary one"):
        saved_head(load_config(str(source)), str(source))
    assert convert.main([str(source), str(tmp_path / "ours")]) == 0
    assert f"LlamaForSequenceClassification with {labels} label" in capsys.readouterr().out
    held = load_file(tmp_path / "ours" / "model.safetensors")
    assert held.keys() == classifier.state_dict().keys()
    assert all(torch.equal(held[name].float(), tensor) for name, tensor in classifier.state_dict().items())
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert len(config["id2label"]) == labels
    assert config["dtype"] == config["torch_dtype"] == ("bfloat16" if made == "halos" else "float32")
    ours, theirs = rewards(classifier, tmp_path / "ours")
    assert ours == pytest.approx(theirs, abs=1e-5)


def test_shards_are_read_by_their_index(tmp_path):
    classifier, source = halos(tmp_path / "theirs")
    state = torch.load(source / "pytorch_model.bin", weights_only=True)
    (source / "pytorch_model.bin").unlink()
    names = list(state)
    files = {name: f"pytorch_model-{1 + i % 2:05d}-of-00002.bin" for i, name in enumerate(names)}
    for file in set(files.values()):
        torch.save({name: state[name] for name in names if files[name] == file}, source / file)
    (source / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": files}))
    assert convert.main([str(source), str(tmp_path / "ours")]) == 0
    assert load_file(tmp_path / "ours" / "model.safetensors").keys() == classifier.state_dict().keys()


def test_normalisation_is_said(tmp_path, capsys):
    _, source = openrlhf(tmp_path / "theirs", mean=0.5, std=2.0)
    assert convert.main([str(source), str(tmp_path / "ours")]) == 0
    assert "mean 0.5 and std 2.0" in capsys.readouterr().out


class Planted:
    """A pickle of one would run code."""

    def __reduce__(self):
        return (open, ("planted", "w"))


def refused(arguments, capsys):
    assert convert.main([str(argument) for argument in arguments]) == 2
    return " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_a_pickle_that_would_run_code_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, source = halos(tmp_path / "theirs")
    for content in (pickle.dumps(Planted()), b"", b"garbage"):
        (source / "pytorch_model.bin").write_bytes(content)
        assert "pytorch_model.bin cannot be read" in refused([source, "ours"], capsys)
    torch.save({"x": Planted()}, source / "pytorch_model.bin")
    assert "pytorch_model.bin cannot be read" in refused([source, "ours"], capsys)
    torch.save([torch.ones(2)], source / "pytorch_model.bin")
    assert "something else than tensors" in refused([source, "ours"], capsys)
    assert {path.name for path in tmp_path.iterdir()} == {"theirs"}


def test_what_is_no_reward_model_or_not_whole_is_refused(tmp_path, capsys):
    _, source = openrlhf(tmp_path / "theirs")
    out = tmp_path / "ours"
    with pytest.raises(SystemExit):
        refused([tmp_path / "absent", out], capsys)
    assert "there is no such folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        refused([source, source], capsys)
    assert "it is there already" in " ".join(capsys.readouterr().err.split())
    state = load_file(source / "model.safetensors")
    save_file({name: t for name, t in state.items() if "value_head" not in name}, source / "model.safetensors")
    assert "no head was found (score.weight or value_head.weight)" in refused([source, out], capsys)
    save_file({name: t for name, t in state.items() if "layers.1.mlp.up" not in name}, source / "model.safetensors")
    assert "model.layers.1.mlp.up_proj.weight is absent and should be 48 x 32" in refused([source, out], capsys)
    save_file({**state, "value_head.bias": torch.ones(1)}, source / "model.safetensors")
    assert "value_head.bias is 1 and should be absent" in refused([source, out], capsys)
    (source / "model.safetensors").unlink()
    assert "neither pytorch_model.bin nor model.safetensors" in refused([source, out], capsys)
    index = source / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../../elsewhere.bin"}}))
    assert "need a .bin beside it" in refused([source, out], capsys)
    (source / "config.json").write_text('{"model_type": "mamba"}')
    assert "it is a mamba model" in refused([source, out], capsys)
    (source / "config.json").write_text("{")
    assert "its config.json cannot be read" in refused([source, out], capsys)
    assert not out.exists()
