from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rmkit.config import LossConfig
from rmkit.training import validation
from rmkit.training.validation import means, measure
from support.oracle import reward_model, scores_one_by_one, tiny_classifier
from support.pairs_of import batches_of, random_tokenised, tokenised

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


LOSS = LossConfig(label_smoothing=0.1, center=0.02)


def measured(model, pairs, rank=0, ranks=1, max_tokens=16384):
    batches = batches_of(pairs, max_tokens=max_tokens, rank=rank, ranks=ranks)
    return measure(model, batches, LOSS, rank_of(rank, ranks))[0]


def truth(pairs):
    with torch.no_grad():
        chosen = scores_one_by_one(CLASSIFIER, pairs.chosen)
        rejected = scores_one_by_one(CLASSIFIER, pairs.rejected)
    d = chosen - rejected - torch.from_numpy(pairs.labels["margin"])
    p = torch.from_numpy(np.where(np.isnan(pairs.labels["target"]), 0.9, pairs.labels["target"]))
    softplus = torch.nn.functional.softplus
    loss = (
        torch.from_numpy(pairs.labels["weight"]) * (p * softplus(-d) + (1 - p) * softplus(d))
        + 0.02 * (chosen + rejected) ** 2
    )
    values = (loss, chosen, rejected, (chosen > rejected).double(), chosen - rejected)
    return {name: value.mean().item() for name, value in zip(SUMMED, values, strict=True)}


@pytest.mark.parametrize(
    ("count", "ranks", "max_tokens", "chunk"), [(1, 1, 9999, 256), (1, 5, 9999, 256), (13, 2, 90, 4)]
)
def test_means_over_every_pair_once(count, ranks, max_tokens, chunk, monkeypatch):
    monkeypatch.setattr(validation, "CHUNK", chunk)
    pairs = random_tokenised(count)
    sums = []
    monkeypatch.setattr(validation, "all_ranks", lambda of_rank, accelerator: sums.append(of_rank) or of_rank)
    of_ranks = [measured(MODEL, pairs, rank, ranks, max_tokens) for rank in range(ranks)]
    total = sum(sums[1:], sums[0]).as_dict()
    assert means(total, count, "eval") == pytest.approx(truth(pairs), rel=1e-5, abs=1e-6)
    assert total["pairs"] == of_ranks[0]["pairs"] == count
    assert of_ranks[0]["seconds"] > 0


@pytest.mark.parametrize("count", [1, 7, 14])
def test_every_rank_runs_the_same_number_of_passes_and_no_pair_twice(count, monkeypatch):
    monkeypatch.setattr(validation, "CHUNK", 6)
    pairs, seen = random_tokenised(count), []

    def model(batch, loss):
        assert not torch.is_grad_enabled()
        seen[-1].append(len(batch.chosen))
        return MODEL(batch, loss)

    for rank in range(4):
        seen.append([])
        measured(model, pairs, rank, 4, 90)
    assert len({len(passes) for passes in seen}) == 1
    assert sum(map(sum, seen)) == count


def test_pairs_on_one_prompt_meet_wherever_they_stand(monkeypatch):
    monkeypatch.setattr(validation, "CHUNK", 2)
    a, b = np.arange(10, 30), np.arange(40, 60)
    chosen = [np.append(prompt, 3) for prompt in (a, b, a, b)]
    rejected = [np.append(prompt, 4 + i) for i, prompt in enumerate((a, b, a, b))]
    tokens = []

    def model(batch, loss):
        tokens.append(batch.tokens)
        return MODEL(batch, loss)

    measured(model, tokenised(chosen, rejected, group=[5, 7, 5, 7]))
    assert tokens == [23, 23]


def test_a_tie_counts_as_wrong():
    same = np.array([5, 6, 7])
    found = measured(MODEL, tokenised([same], [same.copy()]))
    assert found["rewards_eval/accuracies"] == 0.0
    assert found["rewards_eval/margins"] == 0.0


def test_means_names():
    sums = {"chosen": 8.0, "rejected": 4.0, "margin": 12.0, "correct": 2.0, "loss": 6.0, "pairs": 4.0}
    assert means(sums, 4, "train") == {
        "loss/train": 1.5,
        "rewards_train/chosen": 2.0,
        "rewards_train/rejected": 1.0,
        "rewards_train/accuracies": 0.5,
        "rewards_train/margins": 3.0,
    }


def test_means_leave_out_what_there_is_none_of():
    sums = dict.fromkeys(("chosen", "rejected", "margin", "correct", "pairs"), 0.0) | {"loss": 6.0}
    sums |= {"rated/helpful": 4.0, "squared_error/helpful": 2.0, "rated/kind": 0.0, "squared_error/kind": 0.0}
    assert means(sums, 4, "eval") == {"loss/eval": 1.5, "squared_error_eval/helpful": 0.5}
