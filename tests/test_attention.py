from dataclasses import replace

import pytest
import torch
from transformers import AttentionInterface

from rmkit.batch.trie import pack
from rmkit.model import attention
from rmkit.model.attention import attend


def row(layout="trie", seed=0):
    """Segments with shared prefixes, unequal lengths and one-token suffixes; T of the row."""
    g = torch.Generator().manual_seed(seed)
    prompts = [torch.randint(3, 90, (n,), generator=g) for n in (1, 7, 12)]
    lengths = (1, 2, 5, 9)
    tails = [torch.randint(3, 90, (n,), generator=g) for _ in prompts for n in lengths]
    sequences = [torch.cat([prompts[i // 4], tail]).numpy() for i, tail in enumerate(tails)]
    batch = pack(sequences, layout=layout)
    return batch.segments, batch.tokens


def tensors(total, heads, dim=8, dtype=torch.float64, device="cpu"):
    g = torch.Generator().manual_seed(1)
    shapes = ((1, heads[0], total, dim), (1, heads[1], total, dim), (1, heads[1], total, dim))
    return [torch.randn(shape, generator=g, dtype=torch.float64).to(device, dtype) for shape in shapes]


def brute(query, key, value, segments, *, scaling, window=None, softcap=None):
    """Softmax over the keys of one query at a time, in plain loops."""
    out = torch.zeros_like(query)
    cu_q, cu_k = segments.cu_seqlens_q.tolist(), segments.cu_seqlens_k.tolist()
    kv_index = torch.arange(query.shape[2]) if segments.kv_index is None else segments.kv_index
    groups = query.shape[1] // key.shape[1]
    for i, (n, m) in enumerate(segments.lengths):
        keys = kv_index[cu_k[i] : cu_k[i + 1]]
        for j in range(n):
            last = m - n + j
            first = 0 if window is None else max(0, last - window + 1)
            seen = keys[first : last + 1]
            for h in range(query.shape[1]):
                logits = key[0, h // groups, seen] @ query[0, h, cu_q[i] + j] * scaling
                logits = logits if softcap is None else torch.tanh(logits / softcap) * softcap
                out[0, h, cu_q[i] + j] = logits.softmax(0) @ value[0, h // groups, seen]
    return out.transpose(1, 2)


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("window", [None, 1, 4, 9, 1000])
@pytest.mark.parametrize(
    ("layout", "heads"), [("trie", (4, 2)), ("trie", (4, 1)), ("trie", (2, 2)), ("packed", (4, 2))]
)
def test_equals_a_softmax_over_the_keys_of_each_query(layout, heads, window, softcap):
    segments, total = row(layout)
    q, k, v = tensors(total, heads)
    found, weights = attend(None, q, k, v, scaling=0.7, sliding_window=window, softcap=softcap, segments=segments)
    wanted = brute(q, k, v, segments, scaling=0.7, window=window, softcap=softcap)
    assert weights is None
    assert found.shape == (1, total, heads[0], 8)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("softcap", [None, 1.5])
def test_scale_is_that_of_the_head_size_where_none_is_given(softcap):
    segments, total = row()
    q, k, v = tensors(total, (4, 2), dim=16)
    found, _ = attend(None, q, k, v, softcap=softcap, segments=segments)
    torch.testing.assert_close(found, brute(q, k, v, segments, scaling=0.25, softcap=softcap))


def test_layers_with_different_windows_do_not_share_a_mask():
    segments, total = row()
    q, k, v = tensors(total, (2, 2))
    for window in (None, 3, 2, None, 3):
        found, _ = attend(None, q, k, v, scaling=1.0, sliding_window=window, segments=segments)
        torch.testing.assert_close(found, brute(q, k, v, segments, scaling=1.0, window=window))


@pytest.mark.parametrize("softcap", [None, 1.5])
def test_autocast_computes_in_bf16(softcap):
    segments, total = row()
    q, k, v = tensors(total, (4, 2), dtype=torch.float32)
    wanted = brute(*(x.double() for x in (q, k, v)), segments, scaling=0.5, window=5, softcap=softcap)
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = attend(None, q, k, v, scaling=0.5, sliding_window=5, softcap=softcap, segments=segments)
        rounded = [x.bfloat16() for x in (q, k, v)]
        again, _ = attend(None, *rounded, scaling=0.5, sliding_window=5, softcap=softcap, segments=segments)
    for each in (found, again):
        assert each.dtype == torch.bfloat16
        assert 0 < (each.double() - wanted).norm() / wanted.norm() < 0.02


def test_what_is_not_exact_is_refused():
    segments, total = row()
    q, k, v = tensors(total, (2, 2))
    with pytest.raises(ValueError, match="without segments"):
        attend(None, q, k, v)
    with pytest.raises(ValueError, match="dropout"):
        attend(None, q, k, v, segments=segments, dropout=0.1)
    with pytest.raises(ValueError, match="without a mask"):
        attend(None, q, k, v, torch.zeros(1, 1, total, total), segments=segments)
    with pytest.raises(ValueError, match="one packed row"):
        attend(None, *(x.repeat(2, 1, 1, 1) for x in (q, k, v)), segments=segments)


def test_registered_by_its_name():
    attention.register()
    assert AttentionInterface()[attention.NAME] is attend


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize(("heads", "dim"), [((4, 4), 64), ((8, 2), 64), ((8, 2), 128), ((4, 4), 96), ((4, 2), 256)])
@pytest.mark.parametrize("layout", ["trie", "packed"])
def test_cuda_varlen_no_worse_than_twice_plain_bf16(layout, heads, dim, window, monkeypatch):
    segments, total = row(layout)
    listed = None if segments.kv_index is None else segments.kv_index.cuda()
    on_card = {"cu_seqlens_q": segments.cu_seqlens_q.cuda(), "cu_seqlens_k": segments.cu_seqlens_k.cuda()}
    segments = replace(segments, **on_card, kv_index=listed, made={})
    if layout == "trie":
        assert any(n != m for n, m in segments.lengths)
    inputs = tensors(total, heads, dim=dim, dtype=torch.bfloat16, device="cuda")
    upstream = torch.randn(1, total, heads[0], dim, generator=torch.Generator().manual_seed(2)).cuda().bfloat16()
    varlen, used = attention._varlen, []

    def counted(*arguments):
        used.append(True)
        return varlen(*arguments)

    monkeypatch.setattr(attention, "_varlen", counted)

    def output_and_gradients(function, dtype):
        leaves = [x.detach().to(dtype).requires_grad_() for x in inputs]
        out = function(*leaves)
        return [out, *torch.autograd.grad(out, leaves, upstream.to(dtype))]

    def per_segment(q, k, v):
        return attention._per_segment(q, k, v, segments, 0.125, window, None)

    wanted = output_and_gradients(per_segment, torch.float64)
    plain = output_and_gradients(per_segment, torch.bfloat16)
    found = output_and_gradients(
        lambda q, k, v: attend(None, q, k, v, scaling=0.125, sliding_window=window, segments=segments)[0],
        torch.bfloat16,
    )
    assert used == [True]
    for name, a, b, truth in zip(("out", "query", "key", "value"), found, plain, wanted, strict=True):
        assert a.shape == truth.shape
        assert (a.double() - truth).norm() <= 2 * (b.double() - truth).norm() + 1e-3 * truth.norm(), name
