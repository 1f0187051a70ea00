"""AdamW in few bits: what has which bits, the same on any ranks, saved and gone on with bit for bit."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rmkit.config import ModelConfig, OptimConfig, TrainConfig
from rmkit.model.pretrained import build_model, load_config
from rmkit.storage.checkpoint import Progress
from rmkit.train import main
from rmkit.training.lowbit import LowBitAdamW
from rmkit.training.optim import adamw, clip
from support import lowbit_ranks, ranks
from support.saved import TOKENIZER, save, small
from support.state_of import full_state, trained
from support.victim import lines, make_world


def test_float32_stays_torchs_fused_adamw():
    optimizer = adamw(small(), OptimConfig(lr=0.1))
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.defaults["fused"]


@pytest.mark.parametrize(("states", "dtype"), [("bf16", torch.bfloat16), ("8bit", torch.uint8)])
def test_matrices_have_the_states_that_are_asked_for_and_vectors_and_head_float32(states, dtype):
    model = small("qwen2")
    optimizer = adamw(model, OptimConfig(lr=0.1, states=states))
    trained(model, optimizer, 1)
    seen = set()
    for name, parameter in model.classifier.named_parameters():
        state = optimizer.state[parameter]
        low = parameter.ndim == 2 and name != "score.weight"
        seen.add(low)
        assert {state["exp_avg"].dtype, state["exp_avg_sq"].dtype} == {dtype if low else torch.float32}, name
        assert ("exp_avg_scale" in state) == (low and states == "8bit")
        assert state["exp_avg"].data_ptr() != state["exp_avg_sq"].data_ptr()
    assert seen == {True, False}


def bytes_of(optimizer) -> int:
    return sum(v.nbytes for state in optimizer.state.values() for k, v in state.items() if k != "step")


def test_bytes_a_parameter():
    """8, 4 and 2, the 8-bit codes with two scales a block of 256."""
    found = {}
    for states in ("fp32", "bf16", "8bit"):
        weight = torch.nn.Parameter(torch.zeros(16, 1024))
        weight.grad = torch.ones_like(weight)
        optimizer = LowBitAdamW([{"params": [weight]}], {weight: "w"}, lr=0.1, states=states, seed=0)
        optimizer.step()
        found[states] = bytes_of(optimizer) / weight.numel()
    assert found == {"fp32": 8.0, "bf16": 4.0, "8bit": 2.0 + 2 * 4 / 256}


def after_steps(seed: int) -> dict[str, torch.Tensor]:
    model = small()
    optimizer = adamw(model, OptimConfig(lr=0.01, states="bf16"), seed)
    trained(model, optimizer, 2)
    return full_state(model, optimizer)


def test_rounding_repeats_and_is_anothers_with_another_seed():
    one, same, other = after_steps(1), after_steps(1), after_steps(2)
    assert lowbit_ranks.differing(one, same) == []
    assert any("exp_avg" in name for name in lowbit_ranks.differing(one, other))


def test_two_matrices_are_rounded_apart():
    weights = [torch.nn.Parameter(torch.full((8, 64), 1.0, dtype=torch.bfloat16)) for _ in range(2)]
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    named = dict(zip(weights, ("a", "b"), strict=True))
    optimizer = LowBitAdamW([{"params": weights}], named, lr=1e-3, states="fp32", seed=0)
    optimizer.step()
    assert 0.0 < (weights[0] != 1.0).float().mean() < 1.0
    assert not torch.equal(*weights)


@pytest.mark.parametrize(("max_norm", "scale"), [(0.0, 1.0), (2.5, 0.5)])
def test_the_norm_of_bf16_gradients_is_float32(max_norm, scale):
    model = torch.nn.ParameterList(
        [torch.nn.Parameter(torch.zeros(3, dtype=d)) for d in (torch.bfloat16, torch.float32)]
    )
    model[0].grad, model[1].grad = torch.tensor([3.0, 0.0, 0.0]).bfloat16(), torch.tensor([0.0, 4.0, 0.01])
    norm = clip(model, max_norm)
    assert norm.dtype == torch.float32
    assert norm.item() == pytest.approx((25.0 + 1e-4) ** 0.5, rel=1e-6)
    assert model[0].grad.tolist() == pytest.approx([3.0 * scale, 0.0, 0.0], rel=2.0**-8)
    assert model[1].grad.tolist() == pytest.approx([0.0, 4.0 * scale, 0.01 * scale], rel=1e-4)


# ---- ranks


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    """What one process and, in one go, two ranks left of the same steps."""
    folder = tmp_path_factory.mktemp("shared")
    model, optimizer = lowbit_ranks.after("ddp", 3)
    save_file(full_state(model, optimizer), folder / "wanted.safetensors")
    save(folder / "one", Progress(step=3), model, TOKENIZER, optimizer)
    ranks.run(2, folder / "said", lowbit_ranks.main, folder)
    return folder


def test_the_same_gradients_give_the_same_bits_on_one_or_two_ranks_and_read_from_each_other(shared):
    wanted = load_file(shared / "wanted.safetensors")
    assert wanted["model.layers.0.mlp.up_proj.weight"].dtype == torch.bfloat16
    assert wanted["optimizer.model.layers.0.mlp.up_proj.weight.exp_avg"].dtype == torch.uint8
    assert wanted["optimizer.model.layers.0.mlp.up_proj.weight.exp_avg_scale"].shape == (48, 1)
    found = json.loads((shared / "found.json").read_text())
    assert [len(each) for each in found] == [8, 8]
    assert [(name, wrong) for each in found for name, wrong in each.items() if wrong] == []


@pytest.mark.parametrize("written", ["one", "ddp", "fsdp"])
def test_one_process_reads_what_one_or_two_wrote(shared, written):
    wanted = load_file(shared / "wanted.safetensors")
    held = lowbit_ranks.read("ddp", shared / written / "checkpoints" / "step-3")
    assert held.keys() == {name for name in wanted if name.startswith("optimizer.")}
    assert lowbit_ranks.differing(held, wanted) == []


# ---- runs


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return make_world(tmp_path_factory.mktemp("world") / "w")


def flags(world: Path, cache: Path, *more: str) -> list[str]:
    given = ["--exp-name", "r", "--cache-dir", str(cache), "--model.name", str(world / "lm")]
    given += ["--data.train", str(world / "train.jsonl"), "--batch.pairs", "8", "--optim.lr", "1e-3"]
    return [*given, "--optim.max-steps", "4", "--save.every", "2", "--save.keep", "0", *more]


KINDS = {
    "bf16 states": ("--optim.states", "bf16"),
    "8bit states": ("--optim.states", "8bit"),
    "bf16 weights": ("--model.weights", "bf16"),
    "bf16 weights and 8bit states": ("--model.weights", "bf16", "--optim.states", "8bit"),
    "LoRA with 8bit states": ("--optim.states", "8bit", "--lora.rank", "4", "--lora.keep", "both"),
    "LoRA on bf16 weights": ("--model.weights", "bf16", "--lora.rank", "4", "--lora.keep", "both"),
}


def gone_on(folder: Path, again) -> None:
    """Resume a finished run from its first checkpoint; it must end as it did."""
    metrics = lines(folder)
    final = {file: file.read_bytes() for file in (folder / "FINAL").rglob("*.safetensors")}
    assert final
    shutil.rmtree(folder / "FINAL")
    shutil.rmtree(folder / "checkpoints" / "step-4")
    again()
    assert lines(folder) == metrics
    assert [file for file, wanted in final.items() if file.read_bytes() != wanted] == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_goes_on_is_the_uninterrupted_one_bit_for_bit(world, tmp_path, capsys, kind):
    arguments = flags(world, tmp_path, *KINDS[kind])
    assert main(arguments) == 0
    gone_on(tmp_path / "r", lambda: main([*arguments, "--resume"]))
    assert "resumed at step 2 of 4" in capsys.readouterr().out


def final_scores(final: Path) -> tuple[list[float], list[float]]:
    """Of the self-check's texts: by transformers alone, and as they are written."""
    check = json.loads((final / "rmkit.json").read_text())["self_check"]
    model, tokenizer = (kind.from_pretrained(final) for kind in (AutoModelForSequenceClassification, AutoTokenizer))
    assert model.dtype == torch.float32
    batch = tokenizer(check["texts"], add_special_tokens=False, padding=True, return_tensors="pt")
    with torch.no_grad():
        return model(**batch).logits[:, 0].tolist(), check["scores"]


@pytest.mark.parametrize("kind", ["bf16 weights", "LoRA on bf16 weights"])
def test_final_gives_its_scores_in_transformers_as_it_is(world, tmp_path, kind):
    assert main(flags(world, tmp_path, *KINDS[kind])) == 0
    final = tmp_path / "r" / "FINAL"
    found, written = final_scores(final)
    assert found == pytest.approx(written, rel=1e-5, abs=1e-5)
    merged = kind.startswith("LoRA")
    held = load_file(final / "model.safetensors")
    for name, tensor in held.items():
        narrow = ("layers" in name or "embed" in name) and not merged
        assert tensor.dtype == (torch.bfloat16 if narrow else torch.float32), name
    if not merged:
        model = build_model(TrainConfig(model=ModelConfig(name=str(final))), load_config(str(final)), 128, 0, print)
        for name, tensor in model.classifier.state_dict().items():  # read as it is written
            assert torch.equal(tensor, held[name]), name
            assert tensor.dtype == held[name].dtype, name
        assert json.loads((final / "config.json").read_text())["dtype"] == "float32"


def losses(cache: Path) -> np.ndarray:
    rows = [json.loads(line) for line in (cache / "r" / "metrics.jsonl").read_text().splitlines()]
    return np.array([row["loss/train"] for row in rows])


@pytest.fixture(scope="module")
def alone(world, tmp_path_factory) -> dict[str, np.ndarray]:
    """Losses of one process: in float32, and with bf16 weights and 8-bit states."""
    found = {}
    for name, more in (("exact", ()), ("low", KINDS["bf16 weights and 8bit states"])):
        cache = tmp_path_factory.mktemp(name)
        assert main(flags(world, cache, *more)) == 0
        found[name] = losses(cache)
    return found


@pytest.mark.parametrize("more", ["ddp", "fsdp", "fsdp --parallel.cpu-offload", "fsdp --model.precision bf16"])
def test_two_ranks_err_no_more_than_one_and_go_on_bit_for_bit(world, alone, tmp_path, more):
    """Rung 2's bound for bf16: twice the error of one process with bf16 weights against float32."""
    kind = KINDS["bf16 weights and 8bit states"]
    arguments = flags(world, tmp_path, *kind, "--parallel.strategy", *more.split())
    ranks.run(2, tmp_path / "said", main, arguments)
    error, bar = (np.abs(found - alone["exact"]).max() for found in (losses(tmp_path), alone["low"]))
    assert 0.0 < bar < 0.02, "bf16 was not in use, or is broken"
    assert error <= 2 * bar if "precision" not in more else error < 0.02
    gone_on(tmp_path / "r", lambda: ranks.run(2, tmp_path / "said", main, [*arguments, "--resume"]))


@pytest.mark.parametrize("flag", ["--optim.states", "--model.weights"])
def test_other_states_or_weights_on_resume_are_refused(world, tmp_path, capsys, flag):
    assert main(flags(world, tmp_path, flag, "bf16")) == 0
    assert main(flags(world, tmp_path, flag, "fp32", "--resume")) == 2
    told = "".join(capsys.readouterr().err.replace("\u2502", "").split())
    assert f"{flag}fp32:therunin" in told
    assert "wasstartedwithbf16" in told
