"""adamw_lowbit: torch's AdamW in float32; below that unbiased, the same for any shards, the same in Triton."""

import pytest
import torch

from rmkit_kernels import adamw_lowbit, scale_like
from rmkit_kernels.adamw_lowbit import (
    BLOCK,
    BLOCKS,
    CHUNK,
    MEAN_TOP,
    SQUARE_TOP,
    decoded,
    encoded,
    random_bits,
    read,
    scale_of,
    to_bf16,
)
from support.kernel_checks import triton_kernels

WEIGHTS = pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=str)
STATES = pytest.mark.parametrize("states", [torch.float32, torch.bfloat16, torch.uint8], ids=str)
SHAPES = [(1, 1), (33,), (2, 3, 41), (BLOCKS + 1, BLOCK), (5, 2 * BLOCK + 7)]
BEYOND_32_BITS = 2**32 - 300


def fresh(weight, states):
    """(mean, square, mean_scale, square_scale) before the first step."""
    moments = [torch.zeros_like(weight, dtype=states) for _ in range(2)]
    return *moments, *([scale_like(weight), scale_like(weight)] if states == torch.uint8 else [None, None])


def stepped(weight, gradients, states, *, offset=0, **more):
    """The weight after a step with each gradient, and the state."""
    weight = weight.clone()
    state = fresh(weight, states)
    for i, gradient in enumerate(gradients, start=1):
        keys = (i * 7919 - 2**31, i * -104729)
        adamw_lowbit(weight, gradient, *state, step=i, keys=keys, offset=offset, **{"lr": 1e-3, "decay": 0.1, **more})
    return [weight, *(tensor for tensor in state if tensor is not None)]


def example(shape, weights, steps=3, device="cpu"):
    """A weight, and gradients of very different sizes within each row."""
    generator = torch.Generator().manual_seed(len(shape) + shape[-1])
    sizes = torch.logspace(-6, 0, shape[-1])
    made = [torch.randn(shape, generator=generator) for _ in range(steps + 1)]
    return made[0].to(device, weights), [(g * sizes).to(device, weights) for g in made[1:]]


@WEIGHTS
@STATES
@pytest.mark.parametrize("shape", SHAPES)
def test_triton_is_the_reference_bit_for_bit_in_the_interpreter(shape, weights, states):
    weight, gradients = example(shape, weights)
    wanted = stepped(weight, gradients, states, offset=BEYOND_32_BITS, kernels="reference")
    with triton_kernels("cpu"):
        found = stepped(weight, gradients, states, offset=BEYOND_32_BITS)
    for ours, reference in zip(found, wanted, strict=True):
        assert torch.equal(ours, reference)


@pytest.mark.gpu
@WEIGHTS
@STATES
def test_a_gpu_rounds_otherwise_only_where_the_last_bit_before_decides(weights, states):
    weight, gradients = example((64, 1000), weights, device="cuda")
    wanted = stepped(weight, gradients, states, kernels="reference")
    for ours, reference in zip(stepped(weight, gradients, states), wanted, strict=True):
        apart = (ours.float() - reference.float()).abs() > 1e-5 * reference.float().abs()
        assert apart.float().mean() < 1e-3


def test_float32_is_torchs_adamw():
    weight, gradients = example((7, 300), torch.float32, steps=5)
    parameter = torch.nn.Parameter(weight.clone())
    optimizer = torch.optim.AdamW([parameter], lr=1e-3, weight_decay=0.1, fused=True)
    for gradient in gradients:
        parameter.grad = gradient
        optimizer.step()
    found, mean, square = stepped(weight, gradients, torch.float32)
    state = optimizer.state[parameter]
    torch.testing.assert_close(found, parameter.detach(), rtol=1e-6, atol=1e-7)
    # Round-off of what is added up, where it cancels.
    for ours, torchs, added in (
        (mean, state["exp_avg"], sum(g.abs() for g in gradients)),
        (square, state["exp_avg_sq"], sum(g * g for g in gradients)),
    ):
        assert ((ours - torchs).abs() <= 4 * torch.finfo(torch.float32).eps * added).all()


@WEIGHTS
@STATES
def test_shards_of_rows_are_the_whole(weights, states):
    """Whatever the cut, and however many elements the reference takes at a time."""
    rows, columns = 7, CHUNK // 2 - 100
    weight, gradients = example((rows, columns), weights, steps=2)
    whole = stepped(weight, gradients, states)
    for cut in (1, 4):
        parts = [
            stepped(weight[rows_of], [g[rows_of] for g in gradients], states, offset=rows_of.start * columns)
            for rows_of in (slice(0, cut), slice(cut, rows), slice(rows, rows))
        ]
        for ours, pieces in zip(whole, zip(*parts, strict=True), strict=True):
            assert torch.equal(ours, torch.cat(pieces))


def test_small_steps_are_not_lost():
    """At 5e-6 plain bf16 leaves 9 of 10 weights where they are; rounded at random they go where float32 goes."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 512, generator=generator).mul_(0.02).bfloat16()
    way = torch.randn(64, 512, generator=generator)
    sizes = torch.randn(512, generator=generator).exp() * 1e-4
    gradients = [(way + torch.randn(64, 512, generator=generator)) * sizes for _ in range(20)]
    given = {"lr": 5e-6, "decay": 0.0}
    exact = stepped(weight.float(), gradients, torch.float32, **given)[0] - weight.float()

    plain = torch.nn.Parameter(weight.clone())
    optimizer = torch.optim.AdamW([plain], lr=5e-6, weight_decay=0.0)
    plain.grad = gradients[0].bfloat16()
    optimizer.step()
    assert 0.85 < (plain == weight).float().mean() < 0.97

    towards = exact.sign()
    mean, bound = (exact * towards).mean(), {}
    for states in (torch.float32, torch.bfloat16, torch.uint8):
        for kept in (torch.float32, torch.bfloat16):
            moved = stepped(weight.to(kept), gradients, states, **given)[0].float() - weight.float()
            # Means of 32,768 weights; the last bit of a bf16 weight of 0.02 is 1.2e-4, the way 6e-5.
            bound = 0.02 if kept == torch.float32 else 0.05
            assert abs((moved * towards).mean() / mean - 1) < bound, (states, kept)


@pytest.mark.parametrize("size", [1.0, 3e-5, 1e-20])
def test_rounding_to_bf16_keeps_the_mean(size):
    x = torch.full((400, 500), 1.2345678 * size) * torch.tensor([1.0, -1.0]).repeat(250)
    rounded = to_bf16(x, random_bits(0, (400, 500), (1, 2), x.device) & 0xFFFF).float()
    assert rounded.unique().numel() == 4
    assert ((rounded - x).abs() <= x.abs() / 128).all()
    assert abs((rounded / x).mean() - 1) < 4 * 0.004 / 400000**0.5


@pytest.mark.parametrize("top", [MEAN_TOP, SQUARE_TOP])
def test_every_code_is_read_and_written_back_as_it_is(top):
    codes = torch.arange(top * 8 + 1, dtype=torch.int32)[None]  # up to 1
    scale = torch.ones(1, 1)
    values = decoded(codes, scale, top)
    assert (values.diff() > 0).all()
    assert (values[0, 0], values[0, -1]) == (0.0, 1.0)
    for random in (0, 2**16 - 1):
        assert torch.equal(encoded(values, scale, torch.tensor(random, dtype=torch.int32), top), codes)


@pytest.mark.parametrize("top", [MEAN_TOP, SQUARE_TOP])
def test_rounding_to_8_bits_keeps_the_mean_and_errs_by_an_eighth(top):
    least = 2.0 ** (1 - top)
    values = torch.tensor([1.0, 0.71, 0.0123, 1.9 * least, 0.77 * least, 0.03 * least])
    x = values.repeat(3000, 1)
    scale = torch.ones(3000, 1)
    rounded = decoded(encoded(x, scale, (random_bits(5, x.shape, (7, 8), x.device) >> 16) & 0xFFFF, top), scale, top)
    error = (rounded - x).abs()
    assert (error <= torch.maximum(x, torch.tensor(least)) / 8).all()
    spread = rounded.std(0) / 3000**0.5
    assert ((rounded.mean(0) - values).abs() <= 5 * spread + 1e-6 * values).all()


def test_scales_are_powers_of_two_above_the_largest_of_each_block():
    x = torch.zeros(2, 2 * BLOCK + 1)
    x[0, 3], x[0, BLOCK], x[1, -1] = -0.75, 1.0, 3e-5
    assert scale_of(x).tolist() == [[1.0, 2.0, 2.0**-99], [2.0**-99, 2.0**-99, 2.0**-15]]
    assert scale_like(x).shape == (2, 3)


def test_a_moment_of_zero_stays_zero_and_a_small_square_never_becomes_zero():
    weight = torch.ones(1, BLOCK)
    gradient = torch.zeros(1, BLOCK)
    gradient[0, 0], gradient[0, 1] = 1.0, 1e-7  # squares of 1 and 1e-14: below all codes of the block
    after, _, square, _, _ = stepped(weight, [gradient] * 5, torch.uint8, decay=0.0)
    assert (square[0, :2] > 0).all()
    assert not square[0, 2:].any()
    assert torch.equal(after[0, 2:], weight[0, 2:])
    assert (weight - after)[0, 1] <= 5 * 1e-3 * 1.01


def test_a_square_fades_as_it_should():
    """0.1 % a step, which no rounding to the nearest would store."""
    x = torch.full((8, BLOCK), 1.0)
    for states in (torch.bfloat16, torch.uint8):
        _, _, square, *scales = stepped(x, [x] + [torch.zeros_like(x)] * 200, states)
        held = read(square, scales[1] if scales else None, SQUARE_TOP).mean()
        assert held == pytest.approx(0.001 * 0.999**200, rel=0.03)


def test_random_bits_are_even_and_others_for_another_key_or_place():
    bits = random_bits(0, (256, 256), (3, 4), torch.device("cpu"))
    ones = torch.stack([((bits >> i) & 1).float().mean() for i in range(32)])
    assert ((ones - 0.5).abs() < 5 * 0.5 / 256).all()
    assert bits.unique().numel() > 65_500
    assert torch.equal(random_bits(256, (1, 256), (3, 4), bits.device)[0], bits[1])
    for other in (
        random_bits(0, (256, 256), (3, 5), bits.device),
        random_bits(0, (256, 256), (4, 4), bits.device),
        random_bits(2**32, (256, 256), (3, 4), bits.device),
    ):
        agree = torch.stack([(((bits ^ other) >> i) & 1).float().mean() for i in range(32)])
        assert ((agree - 0.5).abs() < 5 * 0.5 / 256).all()


@STATES
def test_opcheck(states):
    weight, (gradient,) = example((3, 300), torch.bfloat16, steps=1)
    given = (weight, gradient, *fresh(weight, states), 1e-3, 0.9, 0.999, 1e-8, 0.1, 1, 0, 5, 6)
    torch.library.opcheck(torch.ops.rmkit.adamw_lowbit, given)


def test_wrong_arguments():
    weight, (gradient,) = example((3, 300), torch.bfloat16, steps=1)
    mean, square, *scales = fresh(weight, torch.uint8)
    given = {"lr": 1e-3, "step": 1}
    with pytest.raises(ValueError, match=r"weight is torch.float16 .* give torch.float32 or torch.bfloat16"):
        adamw_lowbit(weight.half(), gradient, mean, square, *scales, **given)
    with pytest.raises(ValueError, match=r"grad is torch.bfloat16 of \[3, 299\]"):
        adamw_lowbit(weight, gradient[:, 1:], mean, square, *scales, **given)
    with pytest.raises(ValueError, match=r"square is torch.float32 .* give torch.uint8"):
        adamw_lowbit(weight, gradient, mean, square.float(), *scales, **given)
    with pytest.raises(ValueError, match=r"weight has strides \(1, 300\)"):
        adamw_lowbit(torch.empty_strided((3, 300), (1, 300)), gradient, mean, square, *scales, **given)
    with pytest.raises(ValueError, match=r"a scale of shape None for torch.uint8 states: codes need \[3, 2\]"):
        adamw_lowbit(weight, gradient, mean, square, **given)
    with pytest.raises(ValueError, match=r"a scale of shape \[3, 2\] for torch.float32"):
        adamw_lowbit(weight, gradient, mean.float(), square.float(), *scales, **given)
