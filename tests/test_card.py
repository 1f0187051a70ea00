"""The model card: true to the run, silent about this machine."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard, metadata_load

from campaigns.interop import FAMILY_OF
from rmkit.batch.lengths import Lengths
from rmkit.config import BatchConfig, DataConfig, HubConfig, LossConfig, ModelConfig, OptimConfig, TrainConfig
from rmkit.evaluation.statistics import wilson
from rmkit.model.family import FAMILIES
from rmkit.pages import heldout
from rmkit.pages.verdicts import calibration
from rmkit.storage.card import GIVEN_TO_READERS, Card, flags, interval, text
from rmkit.storage.checkpoint import Progress
from rmkit.training.record import Result, calibrations, floors
from support.saved import CONFIG, TOKENIZER, small, write_model

VLLM = "vllm server, float32, CPU"

RUN = TrainConfig(
    exp_name="my-rm",
    cache_dir="/home/someone/runs",
    model=ModelConfig(name="/home/someone/models/base", gradient_checkpointing="on"),
    data=DataConfig(train=("owner/pairs", "/home/someone/a|b.jsonl"), test=("owner/pairs:test",), shuffle=False),
    batch=BatchConfig(pairs=32),
    optim=OptimConfig(lr=1e-5),
)
CARD = Card(
    config=RUN,
    pairs=1234,
    steps=20,
    seen=640,
    held_out_pairs=100,
    dropped={"over-long (more than 77 tokens)": 5},
    metrics={"rewards_eval/accuracies": 0.75, "loss/eval": 0.5},
)


def made(card=CARD, **more):
    return text(card, **{"model_type": "llama", "dtype": "float32", "row": 0, "max_length": 77, **more})


def front_matter(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_it_tells_of_data_result_and_flags():
    card = made()
    held = front_matter(card)
    assert held["pipeline_tag"] == "text-classification"
    assert held["datasets"] == ["owner/pairs"]
    assert "base_model" not in held, "a folder of this machine is no model of the hub"
    assert "| trained on | 1,234 | owner/pairs, a/b.jsonl |" in card
    assert "| held out | 100 | owner/pairs:test |" in card
    assert "| dropped | 5 | over-long (more than 77 tokens) |" in card
    assert "\n20 optimizer steps, in which 640 pairs were seen.\n" in card
    assert "Held-out accuracy 0.7500 (95 % interval 0.657 to 0.825), loss 0.5000." in card
    assert "/home" not in card
    assert "# Reward model from base\n" in card
    assert "my-rm" not in card, "the same model has the same card, whatever its run is called"
    assert card.count("\n\n\n") == 0


def test_the_temperature_is_told_where_held_out_pairs_gave_one():
    assert "sigmoid(d / " not in made()
    card = made(replace(CARD, temperature=1.2345))
    assert "A margin d of two answers is worth sigmoid(d / 1.234)" in card.replace("1.235", "1.234")
    assert card.count("\n\n\n") == 0


def test_calibration_stands_beside_the_temperature():
    assert "Calibration error" not in made(replace(CARD, temperature=2.0)), "it was not measured"
    card = made(replace(CARD, calibration={"ece": 0.12344, "brier": 0.21}))
    assert "\n0.1234, Brier score 0.2100 (a coin: 0.25).\n" in card
    card = made(
        replace(
            CARD,
            temperature=2.0,
            calibration={"ece": 0.1234, "brier": 0.21},
            calibrated={"ece": 0.0321, "brier": 0.2},
        )
    )
    assert "these pairs or a sample of them: 0.0321 and 0.2000.\n\nA margin d" in card
    assert card.count("\n\n\n") == 0


def test_the_posterior_is_named_where_there_is_one():
    assert "posterior.safetensors" not in made()
    text = " ".join(made(posterior=2_345_678).split())
    assert "`posterior.safetensors` (2.3 MB) is a Gaussian posterior of the score head" in text
    assert "servers leave it alone (`model.safetensors.index.json` does not name it), and without it" in text
    assert "leave it alone, and without it" in " ".join(made(posterior=4_321, adapter="base").split())
    assert "(4.3 kB)" in made(posterior=4_321)


def test_flags_are_those_that_were_given():
    assert flags(RUN) == [
        "--model.name base",
        "--model.gradient-checkpointing on",
        "--data.train owner/pairs a|b.jsonl",
        "--data.test owner/pairs:test",
        "--data.no-shuffle",
        "--batch.pairs 32",
        "--optim.lr 1e-05",
    ]
    assert flags(TrainConfig()) == []


def test_a_hub_model_is_named_and_a_run_without_held_out_pairs_says_so():
    config = replace(RUN, model=ModelConfig(name="owner/base"))
    card = made(Card(config=config, pairs=3))
    assert front_matter(card)["base_model"] == "owner/base"
    assert "No held-out pairs were given" in card


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"model_type": "gemma3_text"}, '--hf-overrides \'{"architectures": ["Gemma3ForCausalLM"]}\''),
        ({"model_type": "gemma2"}, 'attn_implementation="eager"'),
        ({"model_type": "qwen3"}, "38768"),
        ({"model_type": "mistral"}, "has no classifier of this family"),
        ({"row": 1}, "logits[0, 1]"),
        ({"row": None}, "weighted sum"),
        ({"dtype": "float32"}, "it computes in float16"),
    ],
)
def test_what_a_reader_has_to_know_stands_where_it_matters(more, words):
    assert words in made(**more)
    usual = {"model_type": "llama", "dtype": "bfloat16", "row": 0}
    assert words not in made(**usual)


ONLINE = [f"trl, {name}Trainer, float32" for name in ("GRPO", "RLOO", "OnlineDPO")]
TOOLS = ("transformers", "rewardbench", "trl", *ONLINE, "openrlhf, float32", VLLM)
"""Of interop.json: those that the card says something of"""


def families_run() -> dict[str, dict[str, bool]]:
    """By model type: the readers of interop.json that were given one, and whether each gave the score."""
    rows = json.loads((Path(__file__).parents[1] / "bench/results/interop.json").read_text())["rows"]
    found: dict[str, dict[str, bool]] = {}
    for row in rows:
        if row["model"] in FAMILY_OF and row["tool"] in TOOLS:
            tool = row["tool"] + (f" {row['versions']['transformers']}" if row["tool"] == "transformers" else "")
            found.setdefault(FAMILY_OF[row["model"]], {})[tool] = row.get("same_to_1e-5", False)
    return found


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_reader_is_said_to_have_been_run_where_it_was(model_type):
    """Each reader of interop.json was given the same families, and gave their score unless the card says other."""
    card, found = made(model_type=model_type), families_run()
    lines = {line.split("**")[1]: line for line in card.splitlines() if line.startswith("* **")}
    if model_type not in GIVEN_TO_READERS:
        assert len(found.get(model_type, {})) < len(found["llama"]), "it was run: name it in GIVEN_TO_READERS"
        readers = {"transformers", "TRL", "OpenRLHF", "vLLM", "RewardBench"}
        assert {name for name, line in lines.items() if "(not run for this family, but for Qwen3)" in line} == readers
        return
    assert found[model_type]["rewardbench"] == ("(run: its pipeline class)" in lines["RewardBench"])
    old = {found[model_type][f"transformers {version}"] for version in ("4.51.3", "4.57.6")}
    assert (old == {True}) == ("4 and 5 (run)" in lines["transformers"])
    assert found[model_type]["transformers 5.24.0"]
    assert all(found[model_type][tool] for tool in ("trl", *ONLINE, "openrlhf, float32"))
    assert found[model_type][VLLM]


def test_what_was_not_run_is_marked():
    assert "* **SGLang** (read in its source, not run)" in made()
    assert "OpenRLHF" not in made(row=1), "it has a head of one label"
    assert "whatever that flag says" in made(dtype="bfloat16")
    assert "whatever that flag says" not in made(dtype="float32")
    assert "bf16 weights gave the score to 1.2e-5" in made(dtype="bfloat16")
    assert "(run with a Llama, not with this family)" in made(adapter="owner/base", model_type="qwen3")


def test_the_hub_reads_its_front_matter(tmp_path):
    config = replace(RUN, model=ModelConfig(name="owner/base"), hub=HubConfig(push="me/my-rm", private=True))
    (tmp_path / "README.md").write_text(made(replace(CARD, config=config)))
    held = metadata_load(tmp_path / "README.md")
    assert held == {
        "pipeline_tag": "text-classification",
        "library_name": "transformers",
        "base_model": "owner/base",
        "base_model_relation": "finetune",
        "datasets": ["owner/pairs"],
        "tags": ["reward-model", "rmkit"],
    }
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.pipeline_tag == "text-classification"
    assert "--hub" not in card.text, "where it is pushed is no part of the model"


def test_accuracy_stands_beside_its_floors():
    card = made(replace(CARD, floors={"the longer answer wins": 0.625}))
    assert "| this model | 0.7500 |\n| the longer answer wins | 0.6250 |\n| a coin | 0.5 |\n" in card
    assert "0.6931 is a coin's" in card
    smoothed = replace(RUN, loss=LossConfig(label_smoothing=0.1))
    assert "0.6931" not in made(replace(CARD, config=smoothed)), "the loss is then no log loss of its probabilities"


def test_the_length_floor_counts_ties_half():
    def of(*pairs):
        lengths = Lengths(
            group=np.zeros(len(pairs), np.int64),
            place=np.arange(2 * len(pairs)).reshape(-1, 2),
            length=np.array(pairs).flatten(),
            prefix=np.zeros(2 * len(pairs), np.int32),
        )
        return SimpleNamespace(lengths=lengths, labels={"compared": np.ones(len(pairs))})

    (found,) = floors(of((5, 3), (4, 4), (2, 9), (7, 1))).values()
    assert found == 0.625


def test_calibration_is_that_of_the_last_evaluation(tmp_path):
    """As heldout.jsonl has it, which the run's page is made of too."""
    scores = np.random.default_rng(0).normal(size=(40, 2))
    names = [str(i) for i in range(40)]
    held = heldout.HeldOut(step=5, pair=names, source=names, scores=scores, tokens=np.ones((40, 2), np.int64), texts={})
    heldout.write(tmp_path, held)

    def of(step, temperature, metrics=CARD.metrics):
        result = Result(final=tmp_path / "FINAL", metrics=metrics, progress=Progress(step=step))
        return calibrations(tmp_path, result, temperature)

    assert of(5, 2.0) == (calibration(held.margin), calibration(held.margin / 2.0))
    assert of(5, None) == (calibration(held.margin), None)
    assert of(6, 2.0) == of(5, 2.0, {}) == (None, None)


def test_an_adapter_says_what_it_is_and_how_it_is_read():
    config = replace(RUN, model=ModelConfig(name="owner/base"))
    card = made(replace(CARD, config=config), adapter="owner/base", labels=2)
    assert front_matter(card)["library_name"] == "peft"
    assert front_matter(card)["base_model_relation"] == "adapter"
    assert 'AutoPeftModelForSequenceClassification.from_pretrained("FINAL", num_labels=2)' in card
    assert "vllm serve" not in card
    assert "/home" not in made(adapter="/home/someone/models/base")


def test_of_another_family_nothing_is_claimed_that_was_not_looked_at():
    card = made(model_type="jamba")
    assert "not looked at for this family (jamba)" in card
    assert "vllm serve" not in card
    assert card.count("\n\n\n") == 0


@pytest.mark.parametrize(("accuracy", "pairs"), [(0.75, 100), (1.0, 7), (0.0, 3), (0.5, 10_000)])
def test_the_interval_is_that_of_evaluate(accuracy, pairs):
    assert interval(accuracy, pairs) == pytest.approx(wilson(round(accuracy * pairs), pairs), abs=1e-6)


def test_the_python_of_the_card_runs_as_it_stands(tmp_path, monkeypatch):
    config = replace(CONFIG, exp_name="FINAL")
    write_model(small(), TOKENIZER, config, 77, tmp_path / "FINAL", Card(config=config, pairs=3))
    card = (tmp_path / "FINAL" / "README.md").read_text()
    block = "\n".join(line[2:] for line in card.split("```python\n")[1].split("  ```")[0].splitlines())
    monkeypatch.chdir(tmp_path)
    held: dict = {}
    exec(block, held)
    assert isinstance(held["score"], float)
    assert json.loads((tmp_path / "FINAL" / "rmkit.json").read_text())["max_length"] == 77
