"""LoRA: exact against peft's own forward, the same run on any ranks, resumed bit for bit, folders that peft reads."""

import copy
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from campaigns.invariance import LIMITS, compared
from rmkit import evaluate, label, load_scorer
from rmkit.batch.trie import pack
from rmkit.config import LoraConfig, LossConfig, ModelConfig, OptimConfig, TrainConfig
from rmkit.model import adapter, lora
from rmkit.model.folder import saved_head
from rmkit.model.pretrained import build_model, implementation, load_config
from rmkit.train import main
from rmkit.training.optim import adamw
from support import ranks
from support.oracle import (
    FAMILIES,
    gradients,
    random_pairs,
    reference_loss,
    reward_model,
    rewards_of,
    run,
    scores_one_by_one,
    tiny_classifier,
)
from support.victim import lines, make_world

LAYOUTS = ("trie", "packed", "padded")
SET = LoraConfig(rank=3, alpha=12.0)
STEPS = 4


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference over the largest magnitude."""
    return ((a - b).abs().max() / b.abs().max().clamp_min(1e-30)).item()


def adapted(classifier, config=SET, seed=0):
    """The classifier with LoRA, all of whose updates count."""
    lora.put(classifier, config, "a base", None, seed, lambda text: None)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in classifier.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.empty(parameter.shape).normal_(0.0, 0.1, generator=generator))
    return classifier


def pefts_own(family: str, ours):
    """The same model in float64 as peft makes it, its head wrapped as peft wraps it."""
    classifier = tiny_classifier(family).double()
    classifier.set_attn_implementation(implementation("padded", classifier.config))  # eager softmaxes in float32
    config = copy.deepcopy(ours.peft_config["default"])
    config.modules_to_save, config.base_model_name_or_path = ["score"], None
    model = peft.get_peft_model(classifier, config)
    state = {name: tensor.double() for name, tensor in lora.adapter_state(ours).items()}
    assert peft.get_peft_model_state_dict(model).keys() == state.keys()
    peft.set_peft_model_state_dict(model, state)
    return model.train()


def peft_gradients(model) -> dict[str, torch.Tensor]:
    """By the names in PEFT's files."""
    held = ((n, p) for n, p in model.named_parameters() if p.requires_grad)
    return {n.replace(".modules_to_save", "").replace(".default.", "."): p.grad for n, p in held}


# As in test_reward_model.py: the float64 mask value of a padded row overflows in transformers' eager attention.
FLOAT64 = [(family, layout) for family in FAMILIES for layout in LAYOUTS if (family, layout) != ("gemma2", "padded")]


@pytest.mark.parametrize(("family", "layout"), FLOAT64)
def test_float64_layout_is_pefts_own_forward_one_at_a_time(family, layout):
    sequences, pairs = random_pairs(np.random.default_rng(1), 4)
    classifier = adapted(tiny_classifier(family).double())
    truth = pefts_own(family, classifier)
    scores = scores_one_by_one(truth, sequences)
    loss = reference_loss(scores, pairs)
    loss.backward()
    wanted = peft_gradients(truth)
    model = reward_model(classifier, layout)
    found_loss, found, _ = run(model, sequences, pairs, layout)
    # Norms and rotary embeddings of transformers compute in float32 whatever the weights are.
    assert relative(found, scores.detach()) < 1e-6
    assert relative(found_loss, loss.detach()) < 1e-6
    trained = {lora.saved_name(n): g for n, g in gradients(model).items() if lora.is_trained(n)}
    assert trained.keys() == wanted.keys()
    for name, gradient in trained.items():
        assert wanted[name].abs().max() > 0.0, name
        assert relative(gradient, wanted[name]) < 2e-5, name


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_merged_scores_are_the_unmerged_within_1e_5(family, layout):
    sequences, _ = random_pairs(np.random.default_rng(2), 4)
    classifier = adapted(tiny_classifier(family))
    names = set(tiny_classifier(family).state_dict())
    with torch.no_grad():
        base = rewards_of(reward_model(tiny_classifier(family), layout), sequences, layout)
        apart = rewards_of(reward_model(classifier, layout), sequences, layout)
        lora.merge(classifier)
        merged = rewards_of(reward_model(classifier, layout), sequences, layout)
    assert relative(apart, base) > 1e-2
    assert relative(merged, apart) < 1e-5
    assert set(classifier.state_dict()) == names
    assert lora.described(classifier) is None
    assert all(p.requires_grad for p in classifier.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_before_the_first_step_the_scores_are_those_of_the_base_bit_for_bit(family):
    sequences, _ = random_pairs(np.random.default_rng(2), 4)
    models = [tiny_classifier(family) for _ in range(4)]
    for model, seed in zip(models, (0, 0, 1), strict=False):
        lora.put(model, SET, "a base", None, seed, lambda text: None)
        torch.rand(3)  # what was drawn before decides nothing
    with torch.no_grad():
        scores = [rewards_of(reward_model(m, "trie"), sequences) for m in (models[0], models[3])]
    assert torch.equal(*scores)
    one, same, other = (lora.adapter_state(model) for model in models[:3])
    assert all(torch.equal(one[name], same[name]) and one[name].dtype == torch.float32 for name in one)
    down = [name for name in one if "lora_A" in name]
    assert len(down) == 4 * len(lora._sides(models[3]))
    assert all(not torch.equal(one[name], other[name]) for name in down)
    assert all(not one[name].any() for name in one if "lora_B" in name)


def test_only_updates_and_head_are_trained_and_the_optimizer_has_no_others():
    model = reward_model(adapted(tiny_classifier("qwen2")), "trie")
    sequences, pairs = random_pairs(np.random.default_rng(3), 3)
    run(model, sequences, pairs, "trie")
    trained = {name for name, p in model.classifier.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in model.classifier.named_parameters() if p.grad is not None}
    assert trained == {name for name in dict(model.classifier.named_parameters()) if lora.is_trained(name)}
    decayed, kept = adamw(model, OptimConfig(lr=0.1)).param_groups
    assert len(decayed["params"]) == len(trained) - 1
    assert kept["params"][0] is model.classifier.score.weight


def test_the_last_layer_still_runs_on_end_tokens_only():
    sequences, pairs = random_pairs(np.random.default_rng(1), 3)
    model = reward_model(adapted(tiny_classifier("llama")), "trie")
    seen = []
    for part in (model.backbone.layers[-1].self_attn.o_proj, model.backbone.layers[-1].mlp.up_proj):
        part.lora_A["default"].register_forward_hook(lambda layer, inputs, output: seen.append(output.shape[1]))
    run(model, sequences, pairs, "trie")
    assert seen == [len(sequences)] * 2


def test_a_batch_without_sequences_reaches_every_update():
    """What a rank runs that has nothing left: DDP waits for the gradient of each parameter that is trained."""
    model = reward_model(adapted(tiny_classifier("llama")), "trie")
    model(pack([]), LossConfig()).loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("layout", ["trie", "padded"])
def test_recomputed_layers_give_the_same_gradients(layout):
    sequences, pairs = random_pairs(np.random.default_rng(1), 3)
    found, calls = [], []
    for recomputed in (False, True):
        model = reward_model(adapted(tiny_classifier("llama")), layout)
        if recomputed:
            model.classifier.gradient_checkpointing_enable({"use_reentrant": False})
            model.backbone.layers[-1].gradient_checkpointing = False  # as build_model has it
        calls.append(0)
        counted = model.backbone.layers[1].self_attn.q_proj.lora_A["default"]
        counted.register_forward_hook(lambda layer, inputs, output: calls.__setitem__(-1, calls[-1] + 1))
        run(model, sequences, pairs, layout)
        found.append(gradients(model))
    assert calls == [1, 2]
    assert [name for name, g in found[0].items() if not torch.equal(g, found[1][name])] == []


def test_updates_of_half_precision_weights_are_float32_and_merged_without_rounding_them():
    classifier = adapted(tiny_classifier("llama", dtype=torch.bfloat16))
    assert {p.dtype for p in classifier.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in classifier.parameters() if not p.requires_grad} == {torch.bfloat16}
    updated = {name.removesuffix(".weight") for name in lora.updates(classifier)}
    lora.merge(classifier)
    for name, layer in classifier.model.named_modules():
        for parameter in layer.parameters(recurse=False):
            assert parameter.dtype == (torch.float32 if f"model.{name}" in updated else torch.bfloat16), name


# ---- runs


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return make_world(tmp_path_factory.mktemp("world") / "w")


def flags(world: Path, cache: Path, *more: str, model: str | Path | None = None) -> list[str]:
    given = ["--exp-name", "r", "--cache-dir", str(cache), "--model.name", str(model or world / "lm")]
    given += ["--data.train", str(world / "train.jsonl"), "--batch.pairs", "8", "--optim.lr", "1e-2"]
    return [*given, "--optim.max-steps", str(STEPS), "--save.every", "2", *more]


RANK = ("--lora.rank", "4")


@pytest.fixture(scope="module")
def both(world, tmp_path_factory) -> Path:
    """The run folder of an uninterrupted run that kept both."""
    cache = tmp_path_factory.mktemp("both")
    assert main(flags(world, cache, *RANK, "--lora.keep", "both")) == 0
    return cache / "r"


def self_check(folder: Path) -> tuple[list[str], list[float]]:
    check = json.loads((folder / "rmkit.json").read_text())["self_check"]
    return check["texts"], check["scores"]


def scores_in_transformers(model, folder: Path) -> list[float]:
    tokens = AutoTokenizer.from_pretrained(folder)(self_check(folder)[0], add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        return [model(torch.tensor([ids])).logits[0, 0].item() for ids in tokens]


def test_final_is_an_ordinary_classifier(world, both, tmp_path):
    assert main(flags(world, tmp_path)) == 0
    plain, final = tmp_path / "r" / "FINAL", both / "FINAL"
    assert {f.name for f in final.iterdir()} == {f.name for f in plain.iterdir()} | {"adapter"}
    assert (final / "posterior.safetensors").read_bytes() == (final / "adapter/posterior.safetensors").read_bytes()
    assert (final / "config.json").read_text() == (plain / "config.json").read_text()
    a, b = (load_file(folder / "model.safetensors") for folder in (final, plain))
    assert {n: (t.shape, t.dtype) for n, t in a.items()} == {n: (t.shape, t.dtype) for n, t in b.items()}
    model = AutoModelForSequenceClassification.from_pretrained(final)
    assert scores_in_transformers(model, final) == pytest.approx(self_check(final)[1], rel=1e-5, abs=1e-5)


def test_peft_alone_reads_the_adapter_and_scores_the_same(world, both):
    folder = both / "FINAL" / "adapter"
    assert {f.name for f in folder.iterdir()} >= {adapter.CONFIG, adapter.WEIGHTS, "rmkit.json", "tokenizer.json"}
    assert not {f.name for f in folder.iterdir()} & {"config.json", "model.safetensors"}
    held = json.loads((folder / adapter.CONFIG).read_text())
    assert held["base_model_name_or_path"] == str((world / "lm").resolve())
    assert (held["task_type"], held["modules_to_save"], held["r"], held["lora_alpha"]) == ("SEQ_CLS", ["score"], 4, 8)
    base = AutoModelForSequenceClassification.from_pretrained(held["base_model_name_or_path"], num_labels=1)
    model = peft.PeftModel.from_pretrained(base, folder)
    assert peft.get_peft_model_state_dict(model).keys() == load_file(folder / adapter.WEIGHTS).keys()
    assert scores_in_transformers(model, folder) == pytest.approx(self_check(folder)[1], rel=1e-5, abs=1e-5)


def test_a_checkpoint_holds_the_adapter_only(both):
    folder = both / "checkpoints" / "step-2"
    assert not list(folder.glob("model*")) + list(folder.glob("config.json"))
    names = set(load_file(folder / adapter.WEIGHTS))
    assert all(".lora_" in name or name == adapter.HEAD for name in names)
    assert len(names) == 4 * 7 * 2 + 1
    held = {name for file in (folder / "training").iterdir() for name in load_file(file)}
    assert sum(name.startswith("optimizer.") for name in held) == 3 * len(names)


@pytest.mark.parametrize("keep", ["adapter", "merged"])
def test_keep_decides_what_final_is(world, both, tmp_path, keep):
    assert main(flags(world, tmp_path, *RANK, "--lora.keep", keep)) == 0
    final, wanted = tmp_path / "r" / "FINAL", both / "FINAL" / ("adapter" if keep == "adapter" else "")
    for file in (f for f in wanted.iterdir() if f.is_file()):
        assert (final / file.name).read_bytes() == file.read_bytes(), file.name
    card = {"README.md"}  # that of an adapter which is all that is left; beside a merged model there is one card
    assert {f.name for f in final.iterdir()} == {f.name for f in wanted.iterdir() if f.is_file()} | card
    assert ("AutoPeftModel" in (final / "README.md").read_text()) == (keep == "adapter")


def go_on_from_step_2(folder: Path, again) -> None:
    """Resume a finished run from its first checkpoint; it must end as it did."""
    metrics = lines(folder)
    final = {file: load_file(file) for file in (folder / "FINAL").rglob("*.safetensors")}
    assert sorted(file.name for file in final) == [
        "adapter_model.safetensors",
        "model.safetensors",
        *2 * ["posterior.safetensors"],
    ]
    shutil.rmtree(folder / "FINAL")
    shutil.rmtree(folder / "checkpoints" / "step-4")
    again()
    assert lines(folder) == metrics
    for file, wanted in final.items():
        found = load_file(file)
        assert found.keys() == wanted.keys()
        assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []


def test_one_process_that_goes_on_is_the_uninterrupted_one_bit_for_bit(world, tmp_path, capsys):
    arguments = flags(world, tmp_path, *RANK, "--lora.keep", "both", "--save.keep", "0")
    assert main(arguments) == 0

    def again():
        assert main([*arguments, "--resume"]) == 0

    go_on_from_step_2(tmp_path / "r", again)
    assert "resumed at step 2 of 4" in capsys.readouterr().out


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_are_the_run_of_one_and_go_on_bit_for_bit(world, both, tmp_path, strategy):
    arguments = flags(world, tmp_path, *RANK, "--lora.keep", "both", "--save.keep", "0")
    arguments += ["--parallel.strategy", strategy]
    ranks.run(2, tmp_path / "said", main, arguments)
    found = compared(tmp_path / "r", both)
    assert {key: value for key, value in found.items() if value > LIMITS[key]} == {}
    go_on_from_step_2(tmp_path / "r", lambda: ranks.run(2, tmp_path / "said", main, [*arguments, "--resume"]))


def test_offloaded_bf16_shards_that_recompute_are_merged_whole(world, tmp_path):
    more = ["--parallel.strategy", "fsdp", "--parallel.cpu-offload", "--model.precision", "bf16", "--lora.keep", "both"]
    more += ["--save.dtype", "fp32"]  # rounded weights would not score as base and adapter do
    arguments = flags(world, tmp_path, *RANK, *more, "--model.gradient-checkpointing", "on")
    ranks.run(2, tmp_path / "said", ranks.with_bf16, main, arguments)
    final = tmp_path / "r" / "FINAL"
    model = AutoModelForSequenceClassification.from_pretrained(final)
    assert scores_in_transformers(model, final) == pytest.approx(self_check(final)[1], rel=1e-5, abs=1e-5)
    texts = [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]]
    # Merged by one thread a rank, or here by as many as there are: not the same last bit.
    assert load_scorer(final).score(texts) == pytest.approx(load_scorer(final / "adapter").score(texts), rel=1e-5)


def test_the_demo_model_with_lora_goes_on_from_its_checkpoint(world, tmp_path, capsys):
    arguments = ["--cache-dir", str(tmp_path), "--exp-name", "r", *RANK, "--optim.max-steps", "4", "--batch.pairs", "4"]
    arguments += ["--save.every", "2", "--save.keep", "0", "--data.train", str(world / "train.jsonl")]
    assert main(arguments) == 0
    wanted = load_file(tmp_path / "r" / "FINAL" / "model.safetensors")
    shutil.rmtree(tmp_path / "r" / "checkpoints" / "step-4")
    assert main([*arguments, "--resume"]) == 0
    assert "resumed at step 2" in capsys.readouterr().out
    found = load_file(tmp_path / "r" / "FINAL" / "model.safetensors")
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []


# ---- adapter folders as models


def test_label_and_evaluate_read_an_adapter_as_what_it_is_merged(world, both, tmp_path, capsys):
    samples = str(world / "test.jsonl")
    written, measured = [], []
    for name, folder in (("m", both / "FINAL"), ("a", both / "FINAL" / "adapter")):
        out = tmp_path / f"{name}.jsonl"
        assert label.main(["--model", str(folder), samples, str(out)]) == 0
        written.append(out.read_bytes())
        arguments = ["--model", str(folder), "--data", samples, "--out", str(tmp_path / name)]
        assert evaluate.main([*arguments, "--against", str(both / "FINAL" / "adapter")]) == 0
        measured.append((tmp_path / name / "scores.jsonl").read_bytes())
    assert written[0] == written[1]
    assert measured[0] == measured[1]
    said = " ".join(capsys.readouterr().out.split())
    assert f"is merged into its base {world / 'lm'}" in said
    assert f"self-check of {both / 'FINAL' / 'adapter'}: 3 scores agree" in said


def test_train_goes_on_from_an_adapter_as_an_adapter_of_the_same_base(world, both, tmp_path):
    folder = both / "FINAL" / "adapter"
    assert main(flags(world, tmp_path, *RANK, "--lora.keep", "adapter", "--optim.max-steps", "1", model=folder)) == 0
    final = tmp_path / "r" / "FINAL"
    assert (final / adapter.CONFIG).read_text() == (folder / adapter.CONFIG).read_text()
    before, after = (load_file(f / adapter.WEIGHTS) for f in (folder, final))
    assert before.keys() == after.keys()
    moved = max(relative(after[name], before[name]) for name in before if "lora_A" in name)
    assert 0.0 < moved < 0.2


def test_train_goes_on_from_an_adapter_merged_with_all_weights(world, both, tmp_path, capsys):
    assert main(flags(world, tmp_path, "--optim.max-steps", "1", model=both / "FINAL" / "adapter")) == 0
    assert "is merged into its base" in " ".join(capsys.readouterr().out.split())
    before, after = (load_file(r / "FINAL" / "model.safetensors") for r in (both, tmp_path / "r"))
    assert all(not torch.equal(before[name], after[name]) for name in before if "proj" in name)


@pytest.fixture
def foreign(world, tmp_path):
    """An adapter of the base that peft made and saved by itself, without tokenizer or rmkit.json."""

    def make(kind=AutoModelForSequenceClassification, task="SEQ_CLS", base=world / "lm", **more) -> Path:
        extra = {"num_labels": 1} if task == "SEQ_CLS" else {}
        given = {"r": 2, "lora_alpha": 3, "target_modules": ["q_proj", "down_proj"], "lora_dropout": 0.1, **more}
        torch.manual_seed(1)
        model = peft.get_peft_model(kind.from_pretrained(base, **extra), peft.LoraConfig(task_type=task, **given))
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, 0.0, 0.1)
        model.save_pretrained(tmp_path / "foreign")
        make.model = model.eval()
        return tmp_path / "foreign"

    return make


@pytest.mark.parametrize(
    "more", [{}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 3}}, {"init_lora_weights": "gaussian"}]
)
def test_an_adapter_that_peft_saved_is_scored_as_peft_scores_it(foreign, more):
    folder, said = foreign(**more), []
    scorer = load_scorer(folder, say=said.append)
    text = scorer.tokenizer.apply_chat_template(TURNS, tokenize=False)
    ids = scorer.tokenizer(text, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        wanted = foreign.model(torch.tensor([ids])).logits[0, 0].item()
    assert scorer.score(TURNS) == pytest.approx(wanted, rel=1e-5, abs=1e-5)
    assert any("no rmkit.json" in text for text in said)


TURNS = [{"role": "user", "content": "reverse abc"}, {"role": "assistant", "content": "cba"}]


def test_an_adapter_of_a_causal_lm_gets_a_fresh_head(foreign, world, tmp_path, capsys):
    folder = foreign(AutoModelForCausalLM, "CAUSAL_LM")
    assert saved_head(load_config(str(folder)), str(folder)) is None
    assert main(flags(world, tmp_path, "--lora.rank", "2", "--lora.keep", "adapter", model=folder)) == 0
    held = json.loads((tmp_path / "r" / "FINAL" / adapter.CONFIG).read_text())
    assert (held["r"], held["lora_alpha"], held["target_modules"]) == (2, 3, ["down_proj", "q_proj"])
    assert adapter.HEAD in load_file(tmp_path / "r" / "FINAL" / adapter.WEIGHTS)
    with pytest.raises(ValueError, match="has no score head"):
        load_scorer(folder)


def test_an_adapter_on_the_hub_is_read_whole(both, monkeypatch):
    folder = both / "FINAL" / "adapter"
    monkeypatch.setattr(
        adapter, "cached_file", lambda name, *a, **k: str(folder / adapter.CONFIG) if "some" in name else None
    )
    monkeypatch.setattr(adapter, "snapshot_download", lambda name, **k: str(folder))
    adapter._downloaded.cache_clear()
    try:
        assert load_scorer("some/adapter").score(TURNS) == load_scorer(folder).score(TURNS)
    finally:
        adapter._downloaded.cache_clear()


# ---- bad input


def refusal(capsys, arguments: list[str], work=main) -> str:
    """What the user is told, on one line without spaces."""
    try:
        assert work(arguments) == 2
    except SystemExit as ended:  # tyro's end, where a flag alone is wrong
        assert ended.code == 2  # noqa: PT017
    told = capsys.readouterr().err
    assert "Traceback" not in told
    return "".join(told.replace("\u2502", "").split())


KINDS = "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"
BAD_FLAGS = {
    "no such target": (
        ("--lora.rank", "2", "--lora.targets", "q_proj", "query"),
        f"--lora.targets query: {{lm}} has no such linear layer; its decoder layers have {KINDS}",
    ),
    "rank of all": (("--lora.rank", "17"), "--lora.rank 17: the smaller side of k_proj is 16; set at most that"),
    "rank of targets": (
        ("--lora.rank", "33", "--lora.targets", "q_proj", "o_proj"),
        "--lora.rank 33: the smaller side of q_proj is 32; set at most that",
    ),
    "dropout": (("--lora.rank", "2", "--lora.dropout", "0.1"), "--lora.dropout 0.1: leave it at 0"),
    "negative": (("--lora.rank", "-1"), "--lora.rank -1: set 0 (off) or more"),
    "alpha": (("--lora.rank", "2", "--lora.alpha", "nan"), "--lora.alpha nan: set a positive number"),
    "alpha alone": (("--lora.alpha", "2"), "--lora.alpha 2.0: set --lora.rank too"),
    "targets alone": (("--lora.targets", "q_proj"), "--lora.targets q_proj: set --lora.rank too"),
    "keep alone": (("--lora.keep", "both"), "--lora.keep both: set --lora.rank too"),
    "demo": (("--lora.rank", "2", "--lora.keep", "both", "--model.name", "demo"), "--lora.keep both: the demo model"),
}


@pytest.mark.parametrize("name", BAD_FLAGS)
def test_bad_flag_is_a_sentence_before_the_weights_are_read(world, tmp_path, capsys, monkeypatch, name):
    given, words = BAD_FLAGS[name]
    monkeypatch.setattr("rmkit.training.run.build_model", None)
    told = refusal(capsys, flags(world, tmp_path, *given))
    assert words.format(lm=world / "lm").replace(" ", "") in told


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--lora.rank", "8"), "--lora.rank 8: the adapter {a} has 4; give that to train it on, or --lora.rank 0"),
        ((*RANK, "--lora.alpha", "9"), "--lora.alpha 9.0: the adapter {a} has 8"),
        ((*RANK, "--lora.targets", "q_proj"), "--lora.targets q_proj: the adapter {a} has down_proj gate_proj"),
    ],
)
def test_flags_that_are_not_those_of_the_adapter(world, both, tmp_path, capsys, given, words):
    adapter = both / "FINAL" / "adapter"
    told = refusal(capsys, flags(world, tmp_path, *given, model=adapter))
    assert words.format(a=adapter).replace(" ", "") in told


def test_resume_with_another_rank_is_refused(world, both, capsys):
    told = refusal(capsys, flags(world, both.parent, "--lora.rank", "5", "--resume"))
    assert "--lora.rank5:therunin" in told
    assert "wasstartedwith4" in told


def test_without_peft_the_line_to_install_it(world, both, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    line = "peftisnotinstalled;pipinstall'rmkit[lora]'"
    assert f"--lora.rank4:{line}" in refusal(capsys, flags(world, tmp_path, *RANK))
    adapter = both / "FINAL" / "adapter"
    assert line in refusal(capsys, flags(world, tmp_path, model=adapter))
    samples = [str(world / "test.jsonl"), str(tmp_path / "out.jsonl")]
    assert line in refusal(capsys, ["--model", str(adapter), *samples], label.main)
    data = ["--data", samples[0], "--out", str(tmp_path / "out")]
    assert line in refusal(capsys, ["--model", str(both / "FINAL"), *data, "--against", str(adapter)], evaluate.main)
    assert main(flags(world, tmp_path, "--optim.max-steps", "1")) == 0  # nothing else needs it


def changed(folder: Path, to: Path, **values) -> Path:
    shutil.copytree(folder, to)
    file = to / adapter.CONFIG
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    return to


def other_base(folder: Path, family: str = "llama", **extra) -> str:
    model = AutoModelForCausalLM.from_config(
        tiny_classifier(family, **{"vocab_size": 128, **extra}).config, attn_implementation="eager"
    )
    model.save_pretrained(folder)
    return str(folder)


SPOILED = {
    "base that is gone": ({"base_model_name_or_path": "/no/such"}, "its base /no/such: no model configuration"),
    "no base": ({"base_model_name_or_path": None}, "adapter_config.json cannot be read (base_model_name_or_path"),
    "another kind": ({"peft_type": "IA3"}, "peft_type 'IA3'; rmkit reads plain LoRA"),
    "DoRA": ({"use_dora": True}, "use_dora True; rmkit reads plain LoRA"),
    "base changed at the start": ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'"),
    "another layer saved": ({"modules_to_save": ["embed_tokens"]}, "modules_to_save ['embed_tokens']"),
    "a field of the future": ({"use_magic": True}, "use_magic True"),
    "targets that are not there": ({"target_modules": ["query"]}, "does not fit its base"),
    "other targets": ({"target_modules": ["q_proj"]}, "is 4 x 48 in the adapter and should be absent"),
    "other rank": ({"r": 2}, "in the adapter and should be"),
    "targets by an expression": ({"target_modules": "(.*)*q_proj"}, "target_modules '(.*)*q_proj'"),
    "ranks by an expression": ({"rank_pattern": {"(.*)*x": 3}}, "rank_pattern"),
    "rank beyond all memory": ({"r": 10**12}, "in the adapter and should be"),
    "rank that is no number": ({"r": "many"}, "does not fit its base"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_spoiled_adapter_is_a_sentence_before_the_weights_are_read(both, tmp_path, name):
    values, words = SPOILED[name]
    folder = changed(both / "FINAL" / "adapter", tmp_path / "x", **values)
    with pytest.raises(ValueError, match=r"^--model\.name ") as told:
        load_config(str(folder))
    assert str(told.value).startswith(f"--model.name {folder}")
    assert words in str(told.value)


@pytest.mark.parametrize("raw", ["", "[]", "{", "3", "null", "[" * 100_000])
def test_an_adapter_config_that_is_none_is_a_sentence(both, tmp_path, raw):
    folder = changed(both / "FINAL" / "adapter", tmp_path / "x")
    (folder / adapter.CONFIG).write_text(raw)
    with pytest.raises(ValueError, match=r"adapter_config\.json cannot be read"):
        load_config(str(folder))


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ({"hidden_size": 40}, "a llama of hidden size 40"),
        ({"num_hidden_layers": 3}, "should be absent"),
        ({"num_hidden_layers": 5}, "is absent in the adapter"),
        ({"family": "phi3"}, "a phi3 of hidden size 32"),
    ],
)
def test_an_adapter_of_another_base_is_a_sentence(both, tmp_path, base, words):
    other = other_base(tmp_path / "base", **base)
    folder = changed(both / "FINAL" / "adapter", tmp_path / "x", base_model_name_or_path=other)
    with pytest.raises(ValueError, match=f"the adapter does not fit its base {other}, .*{words}"):
        load_config(str(folder))


def test_a_base_of_the_same_shape_with_other_weights_fails_the_self_check(both, tmp_path):
    torch.manual_seed(5)
    other = other_base(tmp_path / "base", initializer_range=0.1)
    folder = changed(both / "FINAL" / "adapter", tmp_path / "x", base_model_name_or_path=other)
    with pytest.raises(ValueError, match="self-check failed"):
        load_scorer(folder)


def test_an_adapter_is_never_read_in_part(both, tmp_path):
    folder = changed(both / "FINAL" / "adapter", tmp_path / "x")
    whole = load_file(folder / adapter.WEIGHTS)
    first = min(whole)
    for spoiled in (
        {n: t for n, t in whole.items() if n != first},
        {**whole, "base_model.model.lm_head.x": torch.ones(1)},
    ):
        save_file(spoiled, folder / adapter.WEIGHTS)
        with pytest.raises(ValueError, match="absent"):
            load_config(str(folder))
    raw = (both / "FINAL" / "adapter" / adapter.WEIGHTS).read_bytes()
    for share in (0.0, 0.001, 0.5, 0.99):
        (folder / adapter.WEIGHTS).write_bytes(raw[: int(len(raw) * share)])
        with pytest.raises(ValueError, match=r"adapter_model\.safetensors cannot be read"):
            load_config(str(folder))
    (folder / adapter.WEIGHTS).unlink()
    (folder / "adapter_model.bin").write_bytes(raw)  # no pickle is ever read
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors cannot be read"):
        load_config(str(folder))


def test_an_adapter_of_an_adapter_and_one_beside_a_model_are_refused(both, tmp_path):
    adapter = both / "FINAL" / "adapter"
    folder = changed(adapter, tmp_path / "x", base_model_name_or_path=str(adapter))
    with pytest.raises(ValueError, match="is an adapter itself"):
        load_config(str(folder))
    folder = changed(adapter, tmp_path / "y")
    shutil.copy(both / "FINAL" / "model.safetensors", folder)
    with pytest.raises(ValueError, match=r"weights of a model and an adapter_config\.json"):
        load_config(str(folder))


@pytest.mark.parametrize("has_peft", [True, False])
def test_no_program_reads_half_of_a_model_with_an_adapter_in_it(has_peft, world, both, tmp_path, capsys, monkeypatch):
    """transformers loads such a folder as the adapter's base where peft is installed, and without the adapter where it
    is not."""
    if not has_peft:
        monkeypatch.setitem(sys.modules, "peft", None)
    final, inside = both / "FINAL", both / "FINAL" / "adapter"
    made = {}
    for name, files in {
        "config and weights": [inside / adapter.CONFIG, inside / adapter.WEIGHTS],
        "config alone": [inside / adapter.CONFIG],
        "weights alone": [inside / adapter.WEIGHTS],
    }.items():
        made[name] = tmp_path / name
        shutil.copytree(final, made[name], ignore=shutil.ignore_patterns("adapter"))
        for file in files:
            shutil.copy(file, made[name])
    made["a pickle beside"] = tmp_path / "a pickle beside"
    shutil.copytree(inside, made["a pickle beside"])
    (made["a pickle beside"] / "pytorch_model.bin").write_bytes(b"")
    samples = [str(world / "test.jsonl"), str(tmp_path / "out.jsonl")]
    for name, folder in made.items():
        alone = name == "weights alone"
        words = "adapter_model.safetensorswithouttheadapter_config.json" if alone else "anadapter_config.json;moveone"
        assert words in refusal(capsys, flags(world, tmp_path, model=folder)), name
        assert words in refusal(capsys, ["--model", str(folder), *samples], label.main), name
    assert not (tmp_path / "out.jsonl").exists()


def test_a_model_with_a_head_keeps_it_under_lora(both):
    """FINAL as the base of another adapter."""
    config = TrainConfig(model=ModelConfig(name=str(both / "FINAL")), lora=SET)
    model = build_model(config, load_config(config.model.name), 128, 0, lambda text: None)
    held = load_file(both / "FINAL" / "model.safetensors")
    assert torch.equal(model.classifier.score.weight, held["score.weight"])
    assert lora.described(model.classifier)["base_model_name_or_path"] == str(both / "FINAL")
