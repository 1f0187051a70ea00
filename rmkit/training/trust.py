"""What the scores of a trained model are worth: the posterior of its head and its temperature, after the last step.

One scoring pass over a sample of the training pairs and one over the held-out pairs, shared by all ranks. It changes
neither weights nor metrics, and where it fails the training has succeeded all the same.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from rmkit.batch.build import Batches
from rmkit.batch.planner import epoch_order
from rmkit.distributed.collectives import agreed, sent_by_first_rank
from rmkit.distributed.sharding import gathered
from rmkit.errors import brief
from rmkit.model import probability
from rmkit.model.posterior import Posterior, posterior
from rmkit.runtime import full
from rmkit.storage.checkpoint import Progress
from rmkit.storage.trust import Trust
from rmkit.training.run import Run
from rmkit.training.validation import CHUNK

Say = Callable[[str], None]

FEWEST, MOST, SHARE = 128, 4096, 64
"""Pairs that are looked at by default: one in SHARE of those that the training has seen. Two such passes, forward only,
are 2 / (3 x 64) of the training's arithmetic, under LoRA 2 / (2 x 64): under 2 %. What a sample does not tell counts as
unknown, so the standard errors of few pairs are too wide: bench/posterior_bench.py has by how much."""


def worth(run: Run, progress: Progress, say: Say) -> Trust | None:
    """Measure what the scores are worth, as --trust.* says; None where nothing can be told. `say` tells what is left
    out, and why. Every rank takes part, and gets the same."""
    if run.config.trust.posterior == "off":
        return None
    try:
        return _worth(run, progress, say)
    except Exception as error:  # whatever it is: the model is trained, and is to be saved
        why = f"the memory of the {whose} is full" if (whose := full(error)) else brief(error)
        say(f"no posterior and no temperature: {why}. The model is saved without them")
        return None


def _worth(run: Run, progress: Progress, say: Say) -> Trust | None:
    began = time.perf_counter()
    weight, most = head_weight(run), most_pairs(run, progress)
    sample, of = sampled(run, progress, most)
    made = None
    try:
        made = of_training(run, weight, sample, of)
    except ValueError as error:
        say(f"no posterior of the score head: {error}")
    trust = Trust(posterior=made, sampled_pairs=len(sample) if made else 0, training_pairs=of if made else 0)
    trust = with_temperature(run, weight, trust, most, say)
    if trust.posterior is None and trust.temperature is None:
        return None
    parts = []
    if made is not None:
        limits = _limits(made, len(sample))
        parts.append(f"posterior of the score head from {len(sample):,} of {of:,} training pairs{limits}")
    if trust.temperature is not None:
        beside = f", beside standard errors {trust.temperature_with_se:.3f}" if trust.temperature_with_se else ""
        parts.append(f"temperature {trust.temperature:.3f}{beside} ({trust.held_out_pairs:,} held-out pairs)")
    say(f"{'; '.join(parts)}; {time.perf_counter() - began:.1f} s")
    return trust


def _limits(made: Posterior, pairs: int) -> str:
    """What a posterior of so many pairs does not tell, in words; "" where it tells all."""
    hidden, kept = made.directions.shape
    words = ""
    if pairs < hidden:
        words += f", fewer than its {hidden:,} hidden units: its standard errors are too wide (--trust.pairs)"
    if kept < hidden:
        words += (
            f"; {kept:,} of {hidden:,} directions are kept, no variance is off by more than {made.factor:.1f} times"
        )
    return words


def head_weight(run: Run) -> Tensor:
    """The weights [H] whose product with an end state is the reward, float64 on the run's device."""
    full = gathered(run.model.classifier.score.weight.detach()).to(run.accelerator.device, torch.float64)
    return run.model.head.rewards(full.T)


def most_pairs(run: Run, progress: Progress) -> int:
    """How many pairs of either set are looked at, at most."""
    asked = run.config.trust.pairs
    return min(max(progress.examples // SHARE, FEWEST), MOST) if asked is None else asked


def sampled(run: Run, progress: Progress, most: int) -> tuple[np.ndarray, int]:
    """Indices of the training pairs that are looked at, drawn from the seed, and how many pairs they stand for: those
    that the training has seen, each once."""
    pairs = run.train.items
    seen = epoch_order(pairs.group, 0, run.config)[: progress.examples]
    seen = seen[pairs.labels["compared"][seen] > 0]
    draw = np.random.default_rng([run.config.seed, 13]).permutation(len(seen))
    return seen[draw[:most]], len(seen)


def of_training(run: Run, weight: Tensor, sample: np.ndarray, of: int) -> Posterior:
    """The posterior from the training pairs `sample`, which stand for `of`. ValueError where they tell none.

    The sums are float64 and added up over ranks; the first rank does the algebra, and all get its result.
    """
    labels = run.train.items.labels
    if len(sample) == 0:
        raise ValueError("no pair was trained on")

    def sums() -> np.ndarray:
        hessian, total = weight.new_zeros(len(weight), len(weight)), torch.zeros_like(weight)
        for part, chosen, rejected in _ends(run, run.train, sample):
            x = chosen - rejected
            margin, times = (torch.from_numpy(labels[name][part]).to(x) for name in ("margin", "weight"))
            p = torch.sigmoid(x @ weight - margin)
            hessian += (x * (times * p * (1.0 - p))[:, None]).T @ x
            total += (chosen + rejected).sum(0)
        return torch.cat([hessian, total[None]])

    summed = _agreed_sum(run, sums)

    def fit() -> Posterior:
        hessian, mean = summed[:-1] * (of / len(sample)), summed[-1] / (2 * len(sample))
        return posterior(hessian.cpu(), weight.cpu(), mean.cpu())

    return sent_by_first_rank(fit)


def with_temperature(run: Run, weight: Tensor, trust: Trust, most: int, say: Say) -> Trust:
    """The same with the temperatures of at most `most` held-out pairs, where these tell them."""
    if run.test is None:
        say("no temperature: there are no held-out pairs to fit it on (give --data.test)")
        return trust
    labels = run.test.items.labels
    compared = np.flatnonzero(labels["compared"] > 0)
    draw = np.random.default_rng([run.config.seed, 14]).permutation(len(compared))
    looked_at = compared[draw[:most]]

    def margins() -> Tensor:
        """A row [margin, squared standard error] of each held-out pair; zeros for those of other ranks."""
        table = weight.new_zeros(len(labels["weight"]), 2)
        for part, chosen, rejected in _ends(run, run.test, looked_at):
            x = chosen - rejected
            table[part, 0] = x @ weight
            if trust.posterior is not None:
                table[part, 1] = torch.from_numpy(trust.posterior.variance(x.cpu().numpy())).to(x)
        return table

    margin, variance = _agreed_sum(run, margins)[looked_at].cpu().numpy().T
    target = labels["target"][looked_at]
    target = np.where(np.isnan(target), 1.0, target)
    try:
        plain = probability.temperature(margin, target)
        beside = trust.posterior and probability.temperature(margin, target, np.sqrt(variance))
    except ValueError as error:
        say(f"no temperature: {error}")
        return trust
    return replace(trust, temperature=plain, temperature_with_se=beside, held_out_pairs=len(looked_at))


def _agreed_sum(run: Run, part: Callable[[], Tensor]) -> Tensor:
    """The sum of what `part` makes on each rank. Where it fails on one, all raise."""
    return run.accelerator.reduce(agreed(part), "sum")


def _ends(run: Run, batches: Batches, indices: np.ndarray) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
    """This rank's share of the pairs `indices`, a pass at a time: their indices, and the end states [n, H] of both
    sides, float64. Every rank runs the same number of passes."""
    order = indices[np.argsort(batches.items.group[indices], kind="stable")]  # pairs on one prompt meet
    for chunk in np.split(order, range(CHUNK, len(order), CHUNK)):
        for part in batches.split(chunk)[batches.rank]:
            batch = batches.pack(part).to(run.accelerator.device)
            with torch.no_grad():
                ends = run.wrapped(batch, features=True).double()
            if len(part):
                yield part, ends[batch.chosen], ends[batch.rejected]
