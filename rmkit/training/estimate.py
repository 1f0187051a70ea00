"""Memory and FLOPs of a training step, counted from the model's configuration before any weight is read.

What PyTorch keeps for the backward pass follows from the operators of a decoder layer, so it is written down here
operator by operator, and the peak is the largest of the moments at which something large comes on top. The whole is
held to the CUDA step that runs on fake tensors: tests/campaigns/memory.py, bench/results/memory.json.

Letters: T tokens of a microbatch, K its keys as attention gathers them, L segments, E end tokens, H hidden, Q and KV
the width of all queries and of all keys, I the width of the MLP. Counts of bytes are per token where they say so.
"""

import copy
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from rmkit.batch.trie import PackedBatch
from rmkit.model import family

FLASH_ROWS = 128
"""Rows in float32 by which flash attention's scratch for dQ grows with each segment, beside its tokens"""
STATES = {"fp32": 8.0, "bf16": 4.0, "8bit": 2.0 + 8.0 / 256}
"""Bytes a trained parameter of Adam's two moments; in 8 bits each block of 256 has a float32 scale for either one"""

NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a weight of 4 bits: its code, 8 bits of scale for each 64 of them, and a float32 for each 256 scales (QLoRA,
arXiv:2305.14314, section 3, whose block sizes bitsandbytes has: 0.127 bits a parameter beside the 4)"""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What of an architecture counts: widths, parameters, and how its layers are made."""

    layers: int
    hidden: int
    heads: int
    queries: int
    keys: int
    mlp: int
    layer: int
    """Parameters of a decoder layer"""
    linears: dict[str, tuple[int, int]]
    """(in, out) of each linear layer of a decoder layer, by its name in it"""
    norms: int
    """Norms over the residual stream in a decoder layer: 2, or 4 with those behind attention and MLP (Gemma)"""
    head_norms: bool
    """Whether queries and keys are normed"""
    embedding: int
    outside: int
    """Parameters outside the layers: embedding, final norm, head"""
    counted: bool = True
    """Whether operators were counted one by one; else memory beside the weights and FLOPs are rough"""

    @cached_property
    def matrices(self) -> int:
        return sum(i * o for i, o in self.linears.values())

    @cached_property
    def largest(self) -> int:
        return max(i * o for i, o in self.linears.values())

    @cached_property
    def readers(self) -> tuple[int, int]:
        """Linear layers that read the norm before attention, and the one before the MLP."""
        reading = [n for n in self.linears if n.rpartition(".")[2] not in ("o_proj", "down_proj")]
        return sum("attn" in n for n in reading), sum("attn" not in n for n in reading)

    @property
    def parameters(self) -> int:
        return self.layers * self.layer + self.outside


def shape_of(architecture: PretrainedConfig) -> Shape:
    """The shape of a model, read off its layers without their weights."""
    architecture = copy.deepcopy(architecture)
    architecture.num_labels = 1  # a head of more rows is as small
    classifier: PreTrainedModel = family.skeleton(architecture)
    layers, heads, head = family.sizes(architecture)
    if not family.tested(architecture):
        return _rough(classifier, layers, heads, head)
    layer = getattr(classifier, classifier.base_model_prefix).layers[0]
    of_layer = sum(p.numel() for p in layer.parameters())
    return Shape(
        layers=layers,
        hidden=architecture.hidden_size,
        heads=heads,
        queries=heads * head,
        keys=architecture.num_key_value_heads * head,
        mlp=architecture.intermediate_size,
        layer=of_layer,
        linears={n: (m.in_features, m.out_features) for n, m in layer.named_modules() if isinstance(m, nn.Linear)},
        norms=sum("norm" in name for name, _ in layer.named_children()),
        head_norms=hasattr(layer.self_attn, "q_norm"),
        embedding=classifier.get_input_embeddings().weight.numel(),
        outside=sum(p.numel() for p in classifier.parameters()) - layers * of_layer,
    )


def _rough(classifier: PreTrainedModel, layers: int, heads: int, head: int) -> Shape:
    """The shape of a family whose operators are not written down here: its parameters, spread evenly over the layers,
    as if each token met all of them."""
    embedding = classifier.get_input_embeddings().weight.numel()
    parameters, hidden = sum(p.numel() for p in classifier.parameters()), classifier.score.in_features
    of_layer = (parameters - embedding) // layers
    return Shape(
        layers=layers,
        hidden=hidden,
        heads=heads,
        queries=heads * head,
        keys=heads * head,
        mlp=4 * hidden,
        layer=of_layer,
        linears={"mlp": (hidden, max(1, of_layer // hidden))},
        norms=2,
        head_norms=False,
        embedding=embedding,
        outside=parameters - layers * of_layer,
        counted=False,
    )


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a training holds the model: what the flags choose."""

    states: str = "fp32"
    weights: str = "fp32"
    bf16: bool = True
    """Whether matrices are multiplied in bf16"""
    recompute: bool = False
    rank: int = 0
    """Of LoRA; 0 trains all weights"""
    targets: tuple[str, ...] = ()
    """Of LoRA: last names of linear layers; all where empty"""
    four_bit: bool = False
    """Whether the layers' matrices are kept in 4 bits, under LoRA; `weights` is what all else is kept in"""
    shards: int = 1
    """Devices among which the model is split; 1 without fsdp"""
    sharded: bool = False
    """Whether fsdp gathers the layers, on one device too"""
    offload: bool = False
    """Whether shards, gradients and states are in CPU memory"""

    @property
    def wide(self) -> int:
        """Bytes of a weight"""
        return 4 if self.weights == "fp32" else 2

    @property
    def product(self) -> int:
        """Bytes of a number in a matrix product"""
        return 2 if self.bf16 else 4

    @property
    def stream(self) -> int:
        """Bytes of a number in the residual stream: float32 but beside trained bf16 weights under bf16 arithmetic"""
        return 2 if self.bf16 and self.wide == 2 and not self.rank else 4

    @property
    def given(self) -> int:
        """Bytes of a number that a matrix product gives: bitsandbytes makes it what its input was"""
        return self.stream if self.four_bit else self.product


@dataclass(frozen=True, kw_only=True)
class Load:
    """The largest microbatch of a step, and how many of them a rank runs in it."""

    tokens: int
    pairs: int
    """(query, key) pairs of attention in a layer"""
    gathered: int
    """Keys that attention gathers: the sum of all segments' keys; 0 where the row itself is the keys"""
    segments: int
    ends: int
    end_keys: int
    """Keys of the last layer's attention, whose queries are the end tokens alone"""
    microbatches: int = 2

    @classmethod
    def of_nothing(cls) -> "Load":
        return cls(tokens=0, pairs=0, gathered=0, segments=0, ends=0, end_keys=0, microbatches=1)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on each device."""

    weights: float
    gradients: float
    states: float
    gathered: float
    """What fsdp holds of other ranks' shards, and of gradients on their way, at the peak"""
    activations: float
    """What is kept for the backward pass and what it needs beside, at the peak"""
    moment: str
    """When the peak is"""
    host: float = 0.0
    """Bytes in CPU memory for each device, where shards are offloaded"""

    @property
    def peak(self) -> float:
        return self.weights + self.gradients + self.states + self.gathered + self.activations


def trained(shape: Shape, way: Way) -> int:
    """Parameters that get gradients: all, or LoRA's and the head, which is one row."""
    if not way.rank:
        return shape.parameters
    return shape.layers * sum(way.rank * (i + o) for i, o in _targets(shape, way).values()) + shape.hidden


def _targets(shape: Shape, way: Way) -> dict[str, tuple[int, int]]:
    """(in, out) of the linear layers of a decoder layer that LoRA updates, by name."""
    chosen = {n: size for n, size in shape.linears.items() if way.rank}
    return {n: size for n, size in chosen.items() if not way.targets or n.rpartition(".")[2] in way.targets}


def _stored(shape: Shape, way: Way) -> float:
    """Bytes of the weights that a checkpoint brings."""
    of_4_bits = shape.layers * shape.matrices if way.four_bit else 0
    return (shape.parameters - of_4_bits) * way.wide + of_4_bits * NF4


def memory(shape: Shape, way: Way, load: Load) -> Memory:
    """Bytes on one device at the peak of a training: the largest of the moments of `_moments`."""
    wide = way.wide
    updated = trained(shape, way)
    # LoRA's updates and the head are float32 whatever the weights are.
    weights = (_stored(shape, way) + (4 * updated if way.rank else 0)) / way.shards
    gradients = updated * (4 if way.rank else wide) / way.shards
    states = updated * STATES[way.states] / way.shards
    host = 0.0
    if way.offload:
        host, weights, gradients, states = weights + gradients + states, 0.0, 0.0, 0.0
    # Where a step has one microbatch, its gradients come while its activations go.
    at_first = gradients if load.microbatches > 1 else 0.0
    # Nothing large comes on top of the optimizer's step: it changes everything in place.
    moments = [_Moment("the optimizer's step", 0.0, 0.0, first=False), *_moments(shape, way, load)]
    most = max(moments, key=lambda m: m.fsdp + m.activations + (at_first if m.first else gradients))
    return Memory(
        weights=weights,
        gradients=at_first if most.first else gradients,
        states=states,
        gathered=most.fsdp,
        activations=most.activations,
        moment=most.name,
        host=host,
    )


@dataclass(frozen=True)
class _Kept:
    """Bytes that a decoder layer keeps for its backward pass."""

    attention: float
    """By its first norm and attention, its own input included"""
    mlp: float
    copies: float
    """Of its matrices, in the dtype of the arithmetic, where they are kept in another"""
    copy_down: float
    """Of these, that of the MLP's last matrix"""

    @property
    def all(self) -> float:
        return self.attention + self.mlp + self.copies


@dataclass(frozen=True)
class _Moment:
    """What is held at a moment beside weights, gradients and states, in bytes."""

    name: str
    fsdp: float
    activations: float
    first: bool = True
    """Whether it comes before the gradients of its own microbatch"""


def _kept(shape: Shape, way: Way, load: Load) -> _Kept:
    T, H, Q, KV, I = load.tokens, shape.hidden, shape.queries, shape.keys, shape.mlp
    c, r, full = way.product, way.stream, not way.rank
    # A norm keeps its input in float32 (a float32 residual stream is that itself), one number a token, and, for the
    # gradient of its weight, what that multiplies.
    norm = 4 * H + 4 + (r * H if full else 0)
    attention, mlp = norm * shape.norms // 2, norm * shape.norms // 2
    if full:
        # A trained matrix keeps what it reads. Autocast rounds that for each of them anew; otherwise they share it.
        before_attention, before_mlp = shape.readers if c < r else (1, 1)
        attention += c * H * before_attention
        mlp += c * H * before_mlp + c * I
    for name, size in _targets(shape, way).items():
        kept = c * size[0] + c * way.rank  # LoRA's A keeps a copy of its input, made for it alone, and B what A gives
        attention, mlp = (attention + kept, mlp) if "attn" in name else (attention, mlp + kept)
    if shape.head_norms:
        attention += (4 + (c if full else 0)) * (Q + KV)
    # Queries, output, log-sum-exp; keys and values as attention gathers them
    attention += 2 * c * Q + 4 * shape.heads + 2 * c * KV * (load.gathered or T) / T
    mlp += 3 * way.given * I  # gate, its activation, up
    copied = c if c != way.wide and not way.sharded and not way.four_bit else 0
    return _Kept(attention * T, mlp * T, copied * shape.matrices, copied * H * I)


def _moments(shape: Shape, way: Way, load: Load) -> list[_Moment]:
    """The moments that can be the peak, in the order in which they come."""
    T, H, Q, KV, I = load.tokens, shape.hidden, shape.queries, shape.keys, shape.mlp
    c, wide, full, kept = way.product, way.wide, not way.rank, _kept(shape, way, load)
    r, given = way.stream, way.given
    residual = r * H * T  # and as much for its gradient
    positions = 2 * r * (Q // shape.heads) * T  # cosines and sines
    # The layer before the last is the first whose backward pass runs on all tokens; those below it keep all, or their
    # inputs. Recomputed, it keeps all again.
    below = positions + (shape.layers - 2) * (residual if way.recompute else kept.all)
    unfinished, whole = below + (residual if way.recompute else kept.all), below + kept.all
    if way.recompute and r < 4:
        whole += residual  # its input, beside the float32 copy that its norm keeps
    # The last layer keeps its input, norm, and what its projections read of all tokens; all else is of E rows.
    begun = 4 * H * T + residual * (full + (r < 4)) + c * H * T * (shape.readers[0] if full and c < r else 1)
    begun_copies = kept.copies and c * H * (Q + 2 * KV)
    rows = load.ends if load.ends < T else 0  # padded runs it whole, and has no segments
    last = begun + kept.copies + 2 * c * KV * (load.end_keys if rows else T)
    # Rotating queries: them (as wide as the stream once normed), times cosines, with halves exchanged, times sines,
    # while keys, values and the projections' input wait.
    normed = r if shape.head_norms else given
    rotated = ((normed + 3 * r) * Q + (normed + given) * KV + (4 + c if c < r else 0) * H) * T
    rotated += (4 + c) * (Q + KV) * T if shape.head_norms else 0
    # A matrix's gradient comes in the dtype of the product, and is then made that of the weight. One of 4 bits is made
    # as wide as the product for the gradient of its input, and let go.
    new = shape.largest * (c + (wide if wide != c and not way.sharded else 0)) if full else 0
    new, new_down = (shape.largest * c if way.four_bit else new), (H * I * c if full or way.four_bit else 0)

    def scratch(tokens: int, segments: int) -> int:
        return 4 * Q * (tokens + FLASH_ROWS * segments)  # of flash attention's backward pass, for dQ

    # fsdp: two layers gathered, one that runs and one on its way, embedding and head; gradients of the layer above,
    # which leave in float32, while this one computes. A bf16 embedding is a group of its own, gathered for itself.
    layers, root, leaving = 0.0, 0.0, 0.0
    if way.sharded:
        layers = c * 2 * shape.layer + (4 * shape.outside if wide == 4 else 0)
        root = 4 * shape.outside
        leaving = 4.0 * trained(replace(shape, layers=1, outside=0), way)
    widened = 4 * shape.embedding if wide != 4 and not way.sharded else 0
    embedded = shape.embedding * 4 if full else 0
    moments = [
        _Moment("the embedding", root, positions + widened + residual),
        _Moment("forward, the last layer", layers, unfinished + begun + begun_copies + rotated),
        _Moment("backward, the last layer", layers, unfinished + last + max(new, scratch(rows, rows))),
        _Moment("backward, MLP", layers + leaving, whole + residual + (c * H * (c < r) + given * I) * T + new_down),
        _Moment(
            "backward, MLP",
            layers + leaving + (new_down if way.sharded else 0),
            whole + residual + 2 * given * I * T - kept.copy_down + (new_down if way.four_bit else 0),
        ),
        _Moment(
            "backward, attention",
            layers + leaving + (c * shape.layer if way.sharded else 0),
            whole - kept.mlp + residual + 2 * c * (Q * T + KV * (load.gathered or T)) + scratch(T, load.segments),
        ),
        _Moment("fsdp reduces a layer", layers + leaving * (1 + 1 / way.shards), below + residual, first=False),
        _Moment("backward, the embedding", root, positions + residual + embedded + (embedded and widened // 2), False),
        _Moment("fsdp reduces the embedding", root and embedded * (1 + 1 / way.shards), positions + embedded, False),
    ]
    if "mlp.down_proj" in _targets(shape, way):
        # Its input, that in float32 as peft casts it, the norm's output; what the base, B and B times alpha / rank
        # give. Recomputed, B is not reached again, but the residual's gradient waits, and two in the product's dtype.
        # Sharded, LoRA's own matrices are gathered in the product's dtype, which their input has: peft casts nothing.
        waiting = residual + 3 * c * H * T if way.recompute else 3 * c * H * T
        under = whole + residual + (c * I + (0 if way.sharded else 4 * I)) * T + waiting
        moments.append(_Moment("LoRA, MLP", layers + (leaving if way.recompute else 0), under))
    return moments


def load_of(batch: PackedBatch) -> Load:
    """The load of a packed batch, attention by the true lengths of its sequences."""
    segments, ends, tokens = batch.segments, batch.ends, batch.tokens
    if segments is None or ends is None:  # padded: each row of the rectangle is a segment, and all of it runs
        rows, longest = batch.input_ids.shape
        pairs = rows * (longest * (longest + 1) // 2)
        return Load(tokens=tokens, pairs=pairs, gathered=0, segments=rows, ends=tokens, end_keys=pairs)
    n, m = np.array(segments.lengths, np.int64).T
    return Load(
        tokens=tokens,
        pairs=int((n * m - n * (n - 1) // 2).sum()),
        gathered=int(m.sum()) if segments.kv_index is not None else 0,
        segments=len(n),
        ends=len(ends.segments.lengths),
        end_keys=sum(keys for _, keys in ends.segments.lengths),
    )


@dataclass(frozen=True)
class Work:
    """FLOPs of training, a multiplication and an addition being two."""

    model: float
    """Those that the mathematics asks for: what a share of the peak rate (MFU) is told of"""
    again: float
    """Those of recomputation, beside"""

    @property
    def done(self) -> float:
        return self.model + self.again


def work(shape: Shape, way: Way, tokens: float, pairs: float, ends: float, end_keys: float) -> Work:
    """FLOPs of training on `tokens` of tries with `pairs` of (query, key) in each layer; the last layer has `ends`
    queries with `end_keys` in all, and runs its output projection and MLP on them alone.

    2 a parameter of a matrix and token, 4 a pair and component of a query (`pair_cost_of`); backward is twice as much,
    but for the frozen matrices of LoRA, which get no gradient of their own. Windows are ignored, as in the planner.
    """
    into = shape.hidden * (shape.queries + 2 * shape.keys)  # what the last layer runs on all tokens
    layers = shape.layers - 1
    matrices = 2.0 * (layers * shape.matrices * tokens + into * tokens + (shape.matrices - into) * ends)
    attention = 4.0 * shape.queries * (layers * pairs + end_keys)
    updates = 2.0 * tokens * trained(shape, way) if way.rank else 0.0
    model = (2 if way.rank else 3) * matrices + 3 * (attention + updates)
    again = 2.0 * layers * shape.matrices * tokens + 4.0 * shape.queries * layers * pairs if way.recompute else 0.0
    return Work(model, again)
