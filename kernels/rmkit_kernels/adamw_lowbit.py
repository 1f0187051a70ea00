"""One step of AdamW over one tensor, in place, with weights in float32 or bf16 and moments in float32, bf16 or 8 bits.

    w = w (1 - lr decay);  m = m + (1 - beta1) (g - m);  v = beta2 v + (1 - beta2) g^2      (in float32)
    w = w - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)                    (by m and v before rounding)

What is stored in fewer bits is rounded up or down at random, with the probabilities that keep its mean: to the nearest,
a bf16 weight would not feel a step of 5e-6 (it is 1/400 of its last bit), nor a moment the 0.1 % by which v fades. The
random bits are a hash of two keys and of the element's index in the whole tensor, in integers: no generator has a
state, and a shard gets the bits that it would get in the whole.

8 bits: a block of 256 elements along the last dimension has a scale, the power of two above its largest (block-wise:
Dettmers et al. 2021, arXiv 2110.02861); an element over it is a small float with 3 bits of fraction, for m sign and 4
bits of exponent, for v 5 (FP8 moments: FP8-LM, arXiv 2310.18313). A v above zero never becomes zero: m / sqrt(v) would
explode. Each power of two being exact, all of it is integer arithmetic.

Why not torchao (0.18): its 8-bit states are a tensor subclass that torch.distributed.checkpoint cannot write as
safetensors ("invalid python storage") and whose blocks cross rows ("start and end align with block boundary" on another
number of ranks); its rounding draws from the global generator; a shape took 97 s to compile on a busy CPU.

Shapes: weight, grad, m, v [.., C] contiguous; scales [.., ceil(C / 256)] float32; codes uint8.
"""

import math

import torch
from torch import Tensor

from rmkit_kernels import _backend
from rmkit_kernels._backend import Kernels, tl, triton

BLOCK = 256
BLOCKS = 4
"""Blocks of one Triton program: 1,024 elements"""
CHUNK = 2**16
"""Elements that the reference takes at a time, so that its many passes stay in a CPU's cache"""
MEAN_TOP, SQUARE_TOP = 15, 31
"""Exponent of the codes that stands for 1: 4 bits for m, 5 for v"""
STATES = (torch.float32, torch.bfloat16, torch.uint8)


# ---- the reference: the specification, and what CPUs run


def random_bits(offset: int, shape: tuple[int, int], keys: tuple[int, int], device: torch.device) -> Tensor:
    """32 random bits (int32) for each of the elements that follow `offset` in the whole tensor."""
    index = torch.arange(offset, offset + shape[0] * shape[1], device=device)
    high = (index >> 32).int()
    bits = _mixed(index.int() ^ keys[0])  # the lower half
    return _mixed(bits ^ (high * -1640531527 + keys[1])).view(shape)


def _mixed(x: Tensor) -> Tensor:
    """lowbias32 of Chris Wellons (https://github.com/skeeto/hash-prospector), on int32 that wraps."""
    x = x ^ ((x >> 16) & 0xFFFF)
    x = x * 0x7FEB352D
    x = x ^ ((x >> 15) & 0x1FFFF)
    x = x * -2073254261  # 0x846CA68B
    return x ^ ((x >> 16) & 0xFFFF)


def to_bf16(x: Tensor, random: Tensor) -> Tensor:
    """float32 rounded to bf16, up or down by 16 random bits (int32)."""
    return ((x.view(torch.int32) + random) & -65536).view(torch.float32).bfloat16()


def scale_of(x: Tensor) -> Tensor:
    """[R, ceil(C / 256)]: of each block of [R, C] the power of two above its largest magnitude."""
    R, C = x.shape
    blocks = -(-C // BLOCK)
    largest = torch.nn.functional.pad(x.abs(), (0, blocks * BLOCK - C)).view(R, blocks, BLOCK).amax(-1)
    exponent = ((largest.view(torch.int32) >> 23) & 0xFF).clamp_min(27) + 1  # no smaller than 2^-99
    return (exponent << 23).view(torch.float32)


def _over_columns(scale: Tensor, C: int) -> Tensor:
    return scale.repeat_interleave(BLOCK, -1)[:, :C]


def encoded(x: Tensor, scale: Tensor, random: Tensor, top: int) -> Tensor:
    """Codes (int32) of magnitudes [R, C] with their blocks' scales, up or down by 16 random bits (int32)."""
    inverse = ((254 << 23) - scale.view(torch.int32)).view(torch.float32)
    y, least = x * _over_columns(inverse, x.shape[1]), 2.0 ** (1 - top)
    small = (y < least).int()  # no leading one: with `least` added, their bits count in steps of least / 8
    y = y + small * least
    return ((y.view(torch.int32) + (random << 4) + 8) >> 20) - ((127 - top) << 3) - (small << 3)


def decoded(codes: Tensor, scale: Tensor, top: int) -> Tensor:
    """Magnitudes [R, C] of codes (int32)."""
    small = (codes < 8).int()
    y = ((codes + ((127 - top) << 3) + (small << 3)) << 20).view(torch.float32) - small * 2.0 ** (1 - top)
    return y * _over_columns(scale, codes.shape[1])


def read(state: Tensor, scale: Tensor | None, top: int) -> Tensor:
    """A stored moment [R, C] as float32; `top` tells m (MEAN_TOP) from v."""
    if scale is None:
        return state.float()
    codes = state.int()
    if top == MEAN_TOP:
        return decoded(codes & 0x7F, scale, top) * (1 - 2 * (codes >> 7))
    return decoded(codes, scale, top)


def _store(x: Tensor, state: Tensor, scale: Tensor | None, random: Tensor | None, top: int) -> None:
    if state.dtype == torch.float32:
        state.copy_(x)
    elif state.dtype == torch.bfloat16:
        state.copy_(to_bf16(x, random))
    else:
        scale.copy_(scale_of(x))
        codes = encoded(x.abs(), scale, random, top)
        state.copy_(codes | (x < 0).int() << 7 if top == MEAN_TOP else torch.maximum(codes, (x > 0).int()))


def adamw_lowbit_reference(
    weight: Tensor, grad: Tensor, mean: Tensor, square: Tensor, mean_scale: Tensor | None, square_scale: Tensor | None,
    lr: float, beta1: float, beta2: float, eps: float, decay: float, step: int, offset: int, key0: int, key1: int,
) -> None:  # fmt: skip
    """The specification; `offset` is the place of the first element in the whole tensor."""
    C = weight.shape[-1] if weight.dim() else 1
    if weight.numel() == 0:
        return
    w, g, m, v = (tensor.view(-1, C) for tensor in (weight, grad, mean, square))
    scales = [None if scale is None else scale.view(-1, scale.shape[-1]) for scale in (mean_scale, square_scale)]
    rows = max(1, CHUNK // C)
    for first in range(0, w.shape[0], rows):
        part = slice(first, first + rows)
        of_m, of_v = (None if scale is None else scale[part] for scale in scales)
        _step_of_rows(
            w[part], g[part], m[part], v[part], of_m, of_v, lr, beta1, beta2, eps, decay, step, offset + first * C,
            (key0, key1),
        )  # fmt: skip


def _step_of_rows(w, g, m, v, of_m, of_v, lr, beta1, beta2, eps, decay, step, offset, keys) -> None:
    new, gradient = w.float(), g.float()
    mean, square = read(m, of_m, MEAN_TOP), read(v, of_v, SQUARE_TOP)
    mean = mean + (gradient - mean) * (1.0 - beta1)
    square = square * beta2 + gradient * gradient * (1.0 - beta2)
    new = new * (1.0 - lr * decay)
    root = square.double().sqrt().float()  # torch's own of float32 is not rounded right everywhere
    new = new - mean * (lr / (1.0 - beta1**step)) / (root * (1.0 / math.sqrt(1.0 - beta2**step)) + eps)
    bits = more = None
    if w.dtype == torch.bfloat16 or m.dtype != torch.float32:
        bits = random_bits(offset, w.shape, keys, w.device)
    if m.dtype != torch.float32:
        more = _mixed(bits + -1640531527) & 0xFFFF
    w.copy_(to_bf16(new, bits & 0xFFFF) if w.dtype == torch.bfloat16 else new)
    _store(mean, m, of_m, None if bits is None else (bits >> 16) & 0xFFFF, MEAN_TOP)
    _store(square, v, of_v, more, SQUARE_TOP)


# ---- the Triton kernel, line by line the same


@triton.jit
def _mixed_triton(x):
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D
    x = x ^ (x >> 15)
    x = x * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _float_of(bits):
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _bits_of(x):
    return x.to(tl.int32, bitcast=True)


@triton.jit
def _to_bf16(x, random):
    return _float_of((_bits_of(x) + random) & -65536)


@triton.jit
def _decoded(codes, scale, TOP: tl.constexpr):
    small = (codes < 8).to(tl.int32)
    least: tl.constexpr = 2.0 ** (1 - TOP)
    y = _float_of((codes + ((127 - TOP) << 3) + (small << 3)) << 20) - small.to(tl.float32) * least
    return y * scale


@triton.jit
def _scale_of(x):
    largest = tl.max(tl.abs(x), axis=1)
    exponent = tl.maximum((_bits_of(largest) >> 23) & 0xFF, 27) + 1
    return exponent << 23


@triton.jit
def _encoded(x, scale_bits, random, TOP: tl.constexpr):
    least: tl.constexpr = 2.0 ** (1 - TOP)
    y = x * _float_of((254 << 23) - scale_bits)[:, None]
    small = (y < least).to(tl.int32)
    y = y + small.to(tl.float32) * least
    return ((_bits_of(y) + (random << 4) + 8) >> 20) - ((127 - TOP) << 3) - (small << 3)


@triton.jit(do_not_specialize=("step_size", "keep", "offset", "key0", "key1"))
def _kernel(
    w_ptr, g_ptr, m_ptr, v_ptr, m_scale_ptr, v_scale_ptr, rows, C, blocks,
    step_size, keep, rate1, beta2, rate2, correction, eps, offset, key0, key1,
    KIND: tl.constexpr, WEIGHT_16: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr
):  # fmt: skip
    # A row of the tile is a block: `row` of the tensor, from column `(block % blocks) * BLOCK` on.
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    row = block // blocks
    column = ((block % blocks) * BLOCK)[:, None] + tl.arange(0, BLOCK)[None, :]
    held = (row < rows)[:, None] & (column < C)
    at = row[:, None] * C + column
    w = tl.load(w_ptr + at, mask=held, other=0.0).to(tl.float32)
    g = tl.load(g_ptr + at, mask=held, other=0.0).to(tl.float32)
    if KIND == 8:
        m_code = tl.load(m_ptr + at, mask=held, other=0).to(tl.int32)
        v_code = tl.load(v_ptr + at, mask=held, other=0).to(tl.int32)
        m_scale = tl.load(m_scale_ptr + block, mask=row < rows, other=0.0)[:, None]
        v_scale = tl.load(v_scale_ptr + block, mask=row < rows, other=0.0)[:, None]
        m = _decoded(m_code & 0x7F, m_scale, 15) * (1 - 2 * (m_code >> 7)).to(tl.float32)
        v = _decoded(v_code, v_scale, 31)
    else:
        m = tl.load(m_ptr + at, mask=held, other=0.0).to(tl.float32)
        v = tl.load(v_ptr + at, mask=held, other=0.0).to(tl.float32)
    m = m + (g - m) * rate1
    v = v * beta2 + g * g * rate2
    w = w * keep
    w = w - m * step_size / (tl.sqrt(v) * correction + eps)
    index = at + offset
    high = (index >> 32).to(tl.uint32) * 0x9E3779B9 + key1.to(tl.uint32, bitcast=True)
    bits = _mixed_triton(_mixed_triton(index.to(tl.uint32) ^ key0.to(tl.uint32, bitcast=True)) ^ high)
    if WEIGHT_16:
        w = _to_bf16(w, (bits & 0xFFFF).to(tl.int32))
    tl.store(w_ptr + at, w.to(w_ptr.dtype.element_ty), mask=held)
    if KIND == 32:
        tl.store(m_ptr + at, m, mask=held)
        tl.store(v_ptr + at, v, mask=held)
    else:
        of_m = (bits >> 16).to(tl.int32)
        of_v = (_mixed_triton(bits + 0x9E3779B9) & 0xFFFF).to(tl.int32)
        if KIND == 16:
            tl.store(m_ptr + at, _to_bf16(m, of_m).to(tl.bfloat16), mask=held)
            tl.store(v_ptr + at, _to_bf16(v, of_v).to(tl.bfloat16), mask=held)
        else:
            m_bits, v_bits = _scale_of(m), _scale_of(v)
            tl.store(m_scale_ptr + block, _float_of(m_bits), mask=row < rows)
            tl.store(v_scale_ptr + block, _float_of(v_bits), mask=row < rows)
            m_code = _encoded(tl.abs(m), m_bits, of_m, 15) | ((m < 0).to(tl.int32) << 7)
            v_code = tl.maximum(_encoded(v, v_bits, of_v, 31), (v > 0).to(tl.int32))
            tl.store(m_ptr + at, m_code.to(tl.uint8), mask=held)
            tl.store(v_ptr + at, v_code.to(tl.uint8), mask=held)


def _triton_step(
    weight: Tensor, grad: Tensor, mean: Tensor, square: Tensor, mean_scale: Tensor | None, square_scale: Tensor | None,
    lr: float, beta1: float, beta2: float, eps: float, decay: float, step: int, offset: int, key0: int, key1: int,
) -> None:  # fmt: skip
    if weight.numel() == 0:
        return
    C = weight.shape[-1] if weight.dim() else 1
    rows, blocks = weight.numel() // C, triton.cdiv(C, BLOCK)
    with _backend.on_device(weight):
        _kernel[(triton.cdiv(rows * blocks, BLOCKS),)](
            weight, grad, mean, square, mean_scale, square_scale, rows, C, blocks,
            lr / (1.0 - beta1**step), 1.0 - lr * decay, 1.0 - beta1, beta2, 1.0 - beta2,
            1.0 / math.sqrt(1.0 - beta2**step), eps, offset, key0, key1,
            KIND={torch.float32: 32, torch.bfloat16: 16, torch.uint8: 8}[mean.dtype],
            WEIGHT_16=weight.dtype == torch.bfloat16, BLOCK=BLOCK, BLOCKS=BLOCKS, num_warps=8,
        )  # fmt: skip


CHANGED = ("weight", "mean", "square", "mean_scale", "square_scale")
_op = torch.library.custom_op("rmkit::adamw_lowbit", _triton_step, mutates_args=CHANGED, device_types="cuda")


@_op.register_kernel("cpu")
def _op_cpu(weight, *rest):
    (_triton_step if _backend.cpu_runs_triton(weight) else adamw_lowbit_reference)(weight, *rest)


@_op.register_fake
def _op_fake(*_):
    return None


def scale_like(weight: Tensor) -> Tensor:
    """Zeros for the scales of a weight of one dimension or more: [.., ceil(C / 256)], sharded as it is."""
    return torch.zeros_like(weight[..., ::BLOCK], dtype=torch.float32, memory_format=torch.contiguous_format)


@torch.no_grad()
def adamw_lowbit(
    weight: Tensor,
    grad: Tensor,
    mean: Tensor,
    square: Tensor,
    mean_scale: Tensor | None = None,
    square_scale: Tensor | None = None,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    decay: float = 0.0,
    step: int,
    offset: int = 0,
    keys: tuple[int, int] = (0, 0),
    kernels: Kernels = "auto",
) -> None:
    """Step number `step` (from 1) of AdamW, in place.

    Args:
        weight: [.., C] float32 or bf16, contiguous: a tensor or its shard along the first dimension.
        grad: of its shape, float32 or bf16.
        mean, square: m and v, of its shape, zeros before the first step; float32, bf16, or uint8 (codes).
        mean_scale, square_scale: of codes, their scales (`scale_like`); else None.
        offset: the place of the shard's first element in the whole tensor.
        keys: two numbers in [-2^31, 2^31) that decide the rounding: others for every step and tensor.

    Raises:
        ValueError: on shapes and dtypes.
    """
    _check(weight, grad, mean, square, mean_scale, square_scale)
    given = (weight, grad, mean, square, mean_scale, square_scale, lr, *betas, eps, decay, step, offset, *keys)
    (_op if _backend.takes_op(kernels, weight) else adamw_lowbit_reference)(*given)


def _check(weight: Tensor, grad: Tensor, mean: Tensor, square: Tensor, *scales: Tensor | None) -> None:
    floats = (torch.float32, torch.bfloat16)
    for name, tensor, dtypes in (
        ("weight", weight, floats),
        ("grad", grad, floats),
        ("mean", mean, STATES),
        ("square", square, (mean.dtype,)),
    ):
        if tensor.dtype not in dtypes or tensor.shape != weight.shape or tensor.device != weight.device:
            wanted = f"{' or '.join(map(str, dtypes))} of shape {list(weight.shape)} on {weight.device}"
            raise ValueError(f"{name} is {tensor.dtype} of {list(tensor.shape)} on {tensor.device}: give {wanted}")
        if not tensor.is_contiguous():
            raise ValueError(f"{name} has strides {tensor.stride()}: give a contiguous tensor")
    shape = [*weight.shape[:-1], -(-weight.shape[-1] // BLOCK)] if weight.dim() else None
    for scale in scales:
        if (scale is None) == (mean.dtype == torch.uint8) or (scale is not None and list(scale.shape) != shape):
            found = None if scale is None else list(scale.shape)
            raise ValueError(f"a scale of shape {found} for {mean.dtype} states: codes need {shape}, others none")
