import numpy as np
import pytest
import torch
from test_attention import brute, tensors

from rmkit.batch.trie import pack
from rmkit.model import attention, attention_cpu
from rmkit.model.attention import attend


def conversations(seed: int, prompts: int = 3, longest: int = 40) -> list[np.ndarray]:
    """Answers to prompts that share a preamble, some of them beginning alike, duplicates, prefixes, a lone token."""
    rng = np.random.default_rng(seed)

    def text(longest):
        return rng.integers(3, 90, rng.integers(1, longest + 1))

    preamble, found = text(longest), []
    for _ in range(prompts):
        prompt = np.concatenate([preamble, text(longest)])
        opening = text(6)
        for i in range(int(rng.integers(1, 6))):
            parts = [prompt, opening, text(longest)] if i % 2 else [prompt, text(longest)]
            found.append(np.concatenate(parts))
        found.append(np.concatenate([found[-1], text(longest)]))  # a further turn
    return [*found, found[0], found[1][:5], found[2][:1]]


@pytest.mark.parametrize("shortest", [1, 8, attention_cpu.SHORTEST])
@pytest.mark.parametrize("heads", [(2, 2), (4, 2)])
@pytest.mark.parametrize("seed", range(6))
def test_equals_a_softmax_over_the_keys_of_each_query(seed, heads, shortest, monkeypatch):
    monkeypatch.setattr(attention_cpu, "SHORTEST", shortest)
    batch = pack(conversations(seed))
    q, k, v = tensors(batch.tokens, heads)
    with torch.no_grad():
        found, _ = attend(None, q, k, v, scaling=0.7, segments=batch.segments)
        ends, _ = attend(None, q, k, v, scaling=0.7, segments=batch.segments, ends=batch.ends)
    assert "runs" in batch.segments.made, "it went another way"
    wanted = brute(q, k, v, batch.segments, scaling=0.7)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ends[:, batch.end_index], wanted[:, batch.end_index], rtol=1e-12, atol=1e-12)
    others = np.setdiff1d(np.arange(batch.tokens), batch.end_index)
    assert not ends[:, others].any()


def test_bf16_no_worse_than_twice_masked_attention():
    batch = pack(conversations(0, longest=60))
    exact = tensors(batch.tokens, (4, 4), dim=16)
    q, k, v = (x.bfloat16() for x in exact)
    wanted = brute(*(x.double() for x in (q, k, v)), batch.segments, scaling=0.25)
    with torch.no_grad():
        found, _ = attend(None, q, k, v, scaling=0.25, segments=batch.segments)
        plain = attention._per_segment(q, k, v, batch.segments, 0.25, None, None)
    assert found.dtype == torch.bfloat16
    assert (found.double() - wanted).norm() <= 2 * (plain.double() - wanted).norm()


def test_large_scores_stay_finite():
    """The joining weight is a sigmoid of a difference, so nothing overflows where one part takes all."""
    batch = pack(conversations(1))
    q, k, v = tensors(batch.tokens, (2, 2), dtype=torch.float32)
    with torch.no_grad():
        found, _ = attend(None, q * 1e3, k, v, scaling=1.0, segments=batch.segments)
    wanted = brute((q * 1e3).double(), k.double(), v.double(), batch.segments, scaling=1.0)
    assert found.isfinite().all()
    torch.testing.assert_close(found.double(), wanted, rtol=1e-3, atol=1e-3)


def test_answers_to_one_prompt_see_it_in_one_call():
    rng = np.random.default_rng(0)
    prompt = rng.integers(3, 90, 50)
    answers = [np.concatenate([prompt, [3 + i], rng.integers(3, 90, 20)]) for i in range(5)]
    first, rest = attention_cpu.runs(pack(answers).segments)
    assert first.prefix is None
    assert len(first.members) == 1
    assert rest.prefix == slice(0, 50), "the prompt's keys are a view"
    assert len(rest.members) == 4
    assert all(isinstance(member.keys, slice) for member in rest.members)


def test_a_short_prefix_is_not_worth_a_call():
    answers = [np.array([3, 4, 5, 10 + i, 7]) for i in range(3)]
    assert all(run.prefix is None for run in attention_cpu.runs(pack(answers).segments))


def test_training_goes_the_other_way():
    batch = pack(conversations(2))
    q, k, v = (x.requires_grad_() for x in tensors(batch.tokens, (2, 2)))
    found, _ = attend(None, q, k, v, scaling=1.0, segments=batch.segments)
    assert "runs" not in batch.segments.made
    assert all(g.any() for g in torch.autograd.grad(found.sum(), (q, k, v)))


@pytest.mark.parametrize("how", [{"softcap": 2.0}, {"sliding_window": 9}])
def test_windows_and_caps_go_the_other_way(how):
    batch = pack(conversations(3))
    q, k, v = tensors(batch.tokens, (2, 2))
    with torch.no_grad():
        found, _ = attend(None, q, k, v, scaling=1.0, segments=batch.segments, **how)
    wanted = brute(q, k, v, batch.segments, scaling=1.0, window=how.get("sliding_window"), softcap=how.get("softcap"))
    assert "runs" not in batch.segments.made
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
