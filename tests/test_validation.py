from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rmkit.config import BatchConfig, LossConfig, TrainConfig
from rmkit.training import validation
from rmkit.training.validation import means, measure
from support.oracle import reward_model, scores_one_by_one, tiny_classifier
from support.pairs_of import random_tokenised, tokenised

CLASSIFIER = tiny_classifier("llama", num_hidden_layers=2).double()
MODEL = reward_model(CLASSIFIER, "trie")
SUMMED = (
    "loss/eval",
    "rewards_eval/chosen",
    "rewards_eval/rejected",
    "rewards_eval/accuracies",
    "rewards_eval/margins",
)


def rank_of(rank, ranks):
    """One rank of several, whose sum over ranks is left to the test."""
    return SimpleNamespace(
        num_processes=ranks, process_index=rank, device=torch.device("cpu"), reduce=lambda totals, how: totals
    )


def config(max_tokens=16384):
    return TrainConfig(batch=BatchConfig(max_tokens=max_tokens), loss=LossConfig(label_smoothing=0.1, center=0.02))


def truth(pairs):
    with torch.no_grad():
        chosen = scores_one_by_one(CLASSIFIER, pairs.chosen)
        rejected = scores_one_by_one(CLASSIFIER, pairs.rejected)
    d = chosen - rejected - torch.from_numpy(pairs.margin)
    p = torch.from_numpy(np.where(np.isnan(pairs.target), 0.9, pairs.target))
    softplus = torch.nn.functional.softplus
    loss = torch.from_numpy(pairs.weight) * (p * softplus(-d) + (1 - p) * softplus(d)) + 0.02 * (chosen + rejected) ** 2
    values = (loss, chosen, rejected, (chosen > rejected).double(), chosen - rejected)
    return {name: value.mean().item() for name, value in zip(SUMMED, values, strict=True)}


@pytest.mark.parametrize(
    ("count", "ranks", "max_tokens", "chunk"), [(1, 1, 9999, 256), (1, 5, 9999, 256), (13, 2, 90, 4)]
)
def test_means_over_every_pair_once(count, ranks, max_tokens, chunk, monkeypatch):
    monkeypatch.setattr(validation, "CHUNK", chunk)
    pairs = random_tokenised(count)
    of_ranks = [measure(MODEL, pairs, config(max_tokens), rank_of(r, ranks), 0, 0.001) for r in range(ranks)]
    found = {name: sum(metrics[name] for metrics in of_ranks) for name in SUMMED}
    assert found == pytest.approx(truth(pairs), rel=1e-5, abs=1e-6)
    assert of_ranks[0].keys() == {*SUMMED, "pairs", "seconds"}
    assert of_ranks[0]["pairs"] == count
    assert of_ranks[0]["seconds"] > 0


@pytest.mark.parametrize("count", [1, 7, 14])
def test_every_rank_runs_the_same_number_of_passes_and_no_pair_twice(count, monkeypatch):
    monkeypatch.setattr(validation, "CHUNK", 6)
    pairs, seen = random_tokenised(count), []

    def model(batch, center):
        assert not torch.is_grad_enabled()
        seen[-1].append(len(batch.chosen))
        return MODEL(batch, center)

    for rank in range(4):
        seen.append([])
        measure(model, pairs, config(90), rank_of(rank, 4), 0, 0.001)
    assert len({len(passes) for passes in seen}) == 1
    assert sum(map(sum, seen)) == count


def test_pairs_on_one_prompt_meet_wherever_they_stand(monkeypatch):
    monkeypatch.setattr(validation, "CHUNK", 2)
    a, b = np.arange(10, 30), np.arange(40, 60)
    chosen = [np.append(prompt, 3) for prompt in (a, b, a, b)]
    rejected = [np.append(prompt, 4 + i) for i, prompt in enumerate((a, b, a, b))]
    tokens = []

    def model(batch, center):
        tokens.append(batch.tokens)
        return MODEL(batch, center)

    measure(model, tokenised(chosen, rejected, group=[5, 7, 5, 7]), config(), rank_of(0, 1), 0, 0.001)
    assert tokens == [23, 23]


def test_a_tie_counts_as_wrong():
    same = np.array([5, 6, 7])
    found = measure(MODEL, tokenised([same], [same.copy()]), config(), rank_of(0, 1), 0, 0.001)
    assert found["rewards_eval/accuracies"] == 0.0
    assert found["rewards_eval/margins"] == 0.0


def test_means_names():
    found = means(torch.tensor([8.0, 4.0, 12.0, 2.0, 6.0]), 4, "train")
    assert found == {
        "loss/train": 1.5,
        "rewards_train/chosen": 2.0,
        "rewards_train/rejected": 1.0,
        "rewards_train/accuracies": 0.5,
        "rewards_train/margins": 3.0,
    }
