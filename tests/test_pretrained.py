"""What can be trained: heads, families, lengths and damaged folders; each refusal is a sentence."""

import json
import os
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from rmkit.config import BatchConfig, ModelConfig, TrainConfig
from rmkit.data import demo
from rmkit.distributed.sharding import placed
from rmkit.model import precision, pretrained
from rmkit.model.family import check_family
from rmkit.model.pretrained import build_model, check_length, implementation, load_config
from support import ranks
from support.oracle import (
    FAMILIES,
    TINY,
    gradients,
    random_pairs,
    run,
    tiny_classifier,
)

LAYOUTS = ("trie", "packed", "padded")


def saved_causal(folder, family="llama", **extra):
    """A causal LM of a family as its makers save it: no head, no pad token."""
    config = AutoConfig.for_model(family, **{**TINY, **FAMILIES[family], "pad_token_id": None, **extra})
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def saved_classifier(folder, **extra):
    tiny_classifier("llama", **extra).save_pretrained(folder)
    return folder


def built(folder, *, seed=0, vocabulary=97, layout="trie", said=None, **model):
    config = TrainConfig(seed=seed, batch=BatchConfig(layout=layout), model=ModelConfig(name=str(folder), **model))
    said = [] if said is None else said
    return build_model(config, load_config(str(folder)), vocabulary, 5, said.append)


@pytest.mark.parametrize(("head", "labels"), [("scalar", 1), ("binary", 2)])
def test_a_causal_lm_gets_a_head_drawn_from_the_seed(head, labels, tmp_path):
    folder, said = saved_causal(tmp_path), []
    model = built(folder, seed=3, head=head, said=said)
    assert said == [f"{head} head drawn from seed 3", "computes in fp32"]
    assert type(model.classifier).__name__ == "LlamaForSequenceClassification"
    weight = model.classifier.score.weight
    assert weight.shape == (labels, 32)
    assert weight.requires_grad
    assert model.head.row == labels - 1
    assert model.config.num_labels == labels
    assert model.config.pad_token_id == 5
    torch.rand(7)  # the state of the generator does not matter
    assert torch.equal(built(folder, seed=3, head=head).classifier.score.weight, weight)
    assert not torch.equal(built(folder, seed=4, head=head).classifier.score.weight, weight)
    spread = torch.cat([built(folder, seed=i, head=head).classifier.score.weight.flatten() for i in range(8)]).std()
    assert 0.2 < spread < 0.4  # initializer_range is 0.3
    saved = load_file(folder / "model.safetensors")
    for name, parameter in model.classifier.named_parameters():
        assert parameter.dtype == torch.float32
        assert name == "score.weight" or torch.equal(parameter, saved[name])


@pytest.mark.parametrize("labels", [1, 2])
@pytest.mark.parametrize("head", ["scalar", "binary"])
def test_the_head_of_a_classifier_is_kept_whatever_the_flag_says(labels, head, tmp_path):
    folder, said = saved_classifier(tmp_path, num_labels=labels), []
    model = built(folder, head=head, said=said)
    assert torch.equal(model.classifier.score.weight, load_file(folder / "model.safetensors")["score.weight"])
    assert f"a head of {labels} label{'s' if labels > 1 else ''}; it is kept" in said[0]
    assert model.config.num_labels == labels


def without(folder, *keys):
    file = folder / "config.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k not in keys}))


def edit_weights(folder, keep):
    file = folder / "model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if keep(k)}, file, {"format": "pt"})


def test_labels_are_those_of_the_weights_where_the_config_says_nothing(tmp_path):
    folder = saved_classifier(tmp_path)
    without(folder, "id2label", "label2id")
    assert built(folder).classifier.score.weight.shape == (1, 32)


def test_labels_are_found_in_a_sharded_checkpoint(tmp_path):
    tiny_classifier("llama").save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    without(tmp_path, "id2label", "label2id")
    assert built(tmp_path).classifier.score.weight.shape == (1, 32)


def test_three_labels_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^--model\.name .*its head has 3 labels"):
        built(saved_classifier(tmp_path, num_labels=3))


def test_another_kind_of_model_is_refused(tmp_path):
    folder = saved_classifier(tmp_path)
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "architectures": ["LlamaForTokenClassification"]}))
    with pytest.raises(ValueError, match=r"^--model\.name .*it is saved as LlamaForTokenClassification"):
        built(folder)
    without(folder, "architectures")
    with pytest.raises(ValueError, match="an unnamed class"):
        built(folder)


@pytest.mark.parametrize("save", [saved_causal, saved_classifier])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused_with_a_sentence(save, share, tmp_path):
    folder = save(tmp_path)
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"^--model\.name "):
        built(folder)


@pytest.mark.parametrize("save", [saved_causal, saved_classifier])
def test_a_half_missing_checkpoint_is_refused(save, tmp_path):
    folder = save(tmp_path)
    edit_weights(folder, lambda name: "layers.1." not in name)
    with pytest.raises(ValueError, match=r"^--model\.name .*not whole, 9 tensors are missing: model\.layers\.1\."):
        built(folder)


def test_a_classifier_without_its_head_is_refused(tmp_path):
    """It must not be said to be kept where transformers drew a new one."""
    folder = saved_classifier(tmp_path)
    edit_weights(folder, lambda name: name != "score.weight")
    with pytest.raises(ValueError, match=r"^--model\.name .*score"):
        built(folder)


@pytest.mark.parametrize("save", [saved_causal, saved_classifier])
def test_a_pickle_is_never_read(save, tmp_path):
    folder = save(tmp_path)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"^--model\.name .*its weights are a pickle.*python -m rmkit\.convert "):
        built(folder)


def test_no_model_there(tmp_path):
    with pytest.raises(ValueError, match=r"^--model\.name .*: no model configuration was found in that folder"):
        load_config(str(tmp_path))
    with pytest.raises(ValueError, match=r"^--model\.name no/such: no model .* on this disk or on the hub"):
        load_config("no/such")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"^--model\.name "):
        load_config(str(tmp_path))


@pytest.mark.parametrize(
    "kind", ["mamba", "bert", "t5", "rwkv", "deberta-v2", "falcon_mamba", "modernbert", "recurrent_gemma"]
)
def test_models_that_score_no_last_token_are_refused(kind):
    with pytest.raises(ValueError, match=rf"^--model\.name NAME: it is a {kind} model\. .*tested families: llama, "):
        check_family(AutoConfig.for_model(kind), "NAME")


def test_bidirectional_attention_is_refused():
    config = AutoConfig.for_model("gemma3_text", **TINY)
    assert check_family(config, "NAME") is config
    config.use_bidirectional_attention = True
    with pytest.raises(ValueError, match=r"^--model\.name NAME: its attention is bidirectional"):
        check_family(config, "NAME")


LONG = {"rope_type": "longrope", "long_factor": [2.0] * 4, "short_factor": [1.0] * 4, "rope_theta": 1e4}


@pytest.mark.parametrize(
    ("extra", "largest"),
    [
        ({}, 128),
        ({"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}, 128),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}}, 128),
        ({"rope_parameters": {**LONG, "original_max_position_embeddings": 32}}, 32),
        ({"rope_scaling": {**LONG, "original_max_position_embeddings": 32}}, 32),
    ],
)
def test_longest_conversation_whose_score_does_not_depend_on_its_neighbours(extra, largest):
    config = AutoConfig.for_model("llama", **TINY, **extra)
    check_length(config, largest)
    with pytest.raises(ValueError, match=rf"^--data\.max-length {largest + 1}: .*{largest}"):
        check_length(config, largest + 1)


def test_longrope_as_phi3_writes_it():
    config = AutoConfig.for_model(
        "phi3", **TINY, rope_scaling={**LONG, "type": "longrope"}, original_max_position_embeddings=32
    )
    check_length(config, 32)
    with pytest.raises(ValueError, match=r"^--data\.max-length 33: beyond 32 tokens"):
        check_length(config, 33)


def test_longrope_of_one_layer_type():
    config = AutoConfig.for_model("llama", **TINY)
    config.rope_parameters = {
        "full_attention": {**LONG, "original_max_position_embeddings": 32},
        "sliding_attention": {},
    }
    check_length(config, 32)
    with pytest.raises(ValueError, match="beyond 32 tokens"):
        check_length(config, 33)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_dropout_is_off_so_that_a_step_repeats(layout, tmp_path):
    folder = saved_causal(tmp_path, "phi3", attention_dropout=0.5, resid_pdrop=0.5, embd_pdrop=0.5)
    model = built(folder, layout=layout)
    sequences, pairs = random_pairs(np.random.default_rng(1), 2)
    first = run(model, sequences, pairs, layout)
    assert torch.equal(first[1], run(model, sequences, pairs, layout)[1])


def attention_calls(model) -> Counter:
    """How often each layer's attention runs from now on."""
    calls = Counter()
    for i, layer in enumerate(model.backbone.layers):
        layer.self_attn.register_forward_hook(lambda *_, i=i: calls.update([i]))
    return calls


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradient_checkpointing_gives_the_same_gradients(layout, tmp_path):
    folder = saved_causal(tmp_path)
    sequences, pairs = random_pairs(np.random.default_rng(1), 3)
    found = {}
    for checkpointing in (False, True):
        model = built(folder, layout=layout, gradient_checkpointing="on" if checkpointing else "off")
        assert model.classifier.is_gradient_checkpointing == checkpointing
        calls = attention_calls(model)
        loss, scores, _ = run(model, sequences, pairs, layout)
        # As it is built, without a call of train(). The last layer holds little and is not recomputed.
        assert calls == {0: 1 + checkpointing, 1: 1 + checkpointing, 2: 1 + checkpointing, 3: 1}
        found[checkpointing] = {"loss": loss, "scores": scores, **gradients(model)}
    for name, value in found[False].items():
        assert value.abs().max() > 0 or name == "loss", name
        torch.testing.assert_close(found[True][name], value, rtol=1e-6, atol=1e-7)


def in_dtype(folder, kind, family, dtype, **extra):
    """A checkpoint of 16-bit weights, as makers save it."""
    config = AutoConfig.for_model(family, **{**TINY, **FAMILIES[family], "pad_token_id": None, **extra})
    torch.manual_seed(1)
    kind.from_config(config).to(dtype).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [AutoModelForCausalLM, AutoModelForSequenceClassification])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("vocabulary", [97, 99])
def test_16_bit_weights_stay_so_until_they_are_placed_and_are_then_what_float32_loads(
    family, kind, dtype, vocabulary, tmp_path, monkeypatch
):
    folder = in_dtype(tmp_path, kind, family, dtype)
    model = built(folder, vocabulary=vocabulary)
    assert {p.dtype for p in model.backbone.layers.parameters()} == {dtype}
    found = placed(model, torch.device("cpu"))
    monkeypatch.setattr(pretrained, "_stored", lambda name: (torch.float32, {}))
    wanted = built(folder, vocabulary=vocabulary)
    assert found.config.to_dict() == wanted.config.to_dict()
    for each in ("named_parameters", "named_buffers"):
        a, b = (dict(getattr(m, each)()) for m in (found, wanted))
        assert a.keys() == b.keys()
        for name in a:
            assert a[name].dtype == b[name].dtype, name
            assert torch.equal(a[name], b[name]), name


def test_weights_of_several_dtypes_are_loaded_as_float32(tmp_path):
    folder = in_dtype(tmp_path, AutoModelForCausalLM, "llama", torch.bfloat16)
    file = folder / "model.safetensors"
    mixed = {name: t.float() if "norm" in name else t for name, t in load_file(file).items()}
    mixed["model.norm.weight"] += 1e-4  # what bf16 would round away
    save_file(mixed, file, {"format": "pt"})
    held = built(folder).classifier.state_dict()
    assert {t.dtype for t in held.values()} == {torch.float32}
    assert torch.equal(held["model.norm.weight"], mixed["model.norm.weight"])


def host_memory(small: Path, folder: Path, told: Path) -> None:
    """Megabytes that building a model takes of this process's own memory: pages that no file backs."""

    def own() -> float:
        return int(re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1e3

    built(small)  # what libraries take once
    before = own()
    model = built(folder)
    (told / os.environ["RANK"]).write_text(f"{own() - before} {next(model.parameters()).dtype}")


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory is read from Linux's /proc")
def test_all_ranks_together_hold_little_more_than_one_copy_of_16_bit_weights(tmp_path):
    small = in_dtype(tmp_path / "small", AutoModelForCausalLM, "llama", torch.bfloat16)
    size = {"vocab_size": 20_000, "hidden_size": 2048, "intermediate_size": 2048}
    folder = in_dtype(tmp_path / "m", AutoModelForCausalLM, "llama", torch.bfloat16, **size)
    file = (folder / "model.safetensors").stat().st_size / 1e6
    ranks.run(3, tmp_path, host_memory, small, folder, tmp_path)
    taken = [float((tmp_path / str(rank)).read_text().split()[0]) for rank in range(3)]
    assert file + sum(taken) < 1.2 * file, (file, taken)


def test_recomputation_keeps_no_state_of_random_generators(tmp_path, monkeypatch):
    model = built(saved_causal(tmp_path), gradient_checkpointing="on")

    def asked(*_):
        raise AssertionError("the state of a generator was read")

    monkeypatch.setattr(torch, "get_rng_state", asked)
    run(model, *random_pairs(np.random.default_rng(1), 2), "trie")


def test_the_vocabulary_grows_to_the_tokenizer_and_never_shrinks(tmp_path):
    folder = saved_causal(tmp_path)
    grown = built(folder, vocabulary=99)
    assert grown.classifier.get_input_embeddings().weight.shape == (99, 32)
    assert grown.config.vocab_size == 99
    old = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(grown.classifier.get_input_embeddings().weight[:97], old)
    again = built(folder, vocabulary=99).classifier.get_input_embeddings().weight
    assert torch.equal(again, grown.classifier.get_input_embeddings().weight)
    assert built(folder, vocabulary=90).classifier.get_input_embeddings().weight.shape == (97, 32)


def test_the_demo_is_drawn_from_the_seed_alone():
    def demo_model(seed):
        return build_model(TrainConfig(seed=seed), demo.model_config(), 102, 0, lambda text: None)

    one = demo_model(0).state_dict()
    torch.rand(3)
    assert all(torch.equal(value, one[name]) for name, value in demo_model(0).state_dict().items())
    other = demo_model(1).state_dict()
    assert not torch.equal(other["classifier.score.weight"], one["classifier.score.weight"])
    assert not torch.equal(other["classifier.model.embed_tokens.weight"], one["classifier.model.embed_tokens.weight"])


def test_precision(tmp_path, monkeypatch):
    folder = saved_causal(tmp_path)
    monkeypatch.setattr(precision, "has_bf16", lambda: True)
    assert not built(folder, precision="fp32").bf16
    assert built(folder, precision="bf16").bf16
    assert built(folder, precision="auto").bf16 == torch.cuda.is_available()
    monkeypatch.setattr(precision, "has_bf16", lambda: False)
    assert built(folder, precision="bf16").bf16 == torch.cuda.is_available()


def test_implementation_of_a_layout():
    gemma, llama = (AutoConfig.for_model(family, **TINY) for family in ("gemma2", "llama"))
    assert [implementation(layout, llama) for layout in LAYOUTS] == ["rmkit", "rmkit", "sdpa"]
    assert implementation("padded", gemma) == "eager"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "chat_template.jinja"])
def test_a_pipe_in_a_model_folder_is_refused_and_not_waited_for(tmp_path, name):
    folder = saved_classifier(tmp_path)
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(ValueError, match=rf"^--model.name .*: {name} is no ordinary file"):
        built(folder)


@pytest.mark.parametrize(
    "file", ["pytorch_model.bin", "../outside.safetensors", "/etc/x.safetensors", "\x00.safetensors", 1]
)
def test_an_index_of_weights_names_safetensors_of_the_folder_only(tmp_path, file):
    """transformers reads any other shard as a pickle, and follows a path wherever it leads."""
    folder = saved_classifier(tmp_path)
    index = {"metadata": {}, "weight_map": {"score.weight": "model.safetensors", "model.norm.weight": file}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"index.json names .*, need a .safetensors beside it"):
        built(folder)


@pytest.mark.parametrize("raw", ["[]", "{}", '{"weight_map": 3}', "{", "[" * 100_000])
def test_an_index_of_weights_that_is_none_is_a_sentence(tmp_path, raw):
    folder = saved_classifier(tmp_path)
    (folder / "model.safetensors.index.json").write_text(raw)
    with pytest.raises(ValueError, match=r"model.safetensors.index.json cannot be read"):
        built(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"architectures": [["x"]]},
        {"architectures": {"a": "x"}},
        {"rope_parameters": "x"},
        {"num_hidden_layers": "two"},
        {"hidden_size": None},
        {"max_position_embeddings": {}},
    ],
)
def test_a_value_that_no_library_expects_is_a_sentence(tmp_path, change):
    folder = saved_classifier(tmp_path)
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ValueError, match=r"^--model.name"):
        built(folder)
