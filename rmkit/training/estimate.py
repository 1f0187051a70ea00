"""Memory and FLOPs of a training step, counted from the model's configuration before any weight is read.

What PyTorch keeps for the backward pass follows from the operators of a decoder layer, so it is written down here
operator by operator, and the peak is the largest of the moments at which something large comes on top. The whole is
held to the CUDA step that runs on fake tensors: bench/memory_table.py, bench/results/memory.json.

Letters: T tokens of a microbatch, K its keys as attention gathers them, L segments, E end tokens, H hidden, Q and KV
the width of all queries and of all keys, I the width of the MLP. Counts of bytes are per token where they say so.
"""

from dataclasses import dataclass, replace
from functools import cached_property

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from rmkit.model import lora

FLASH_ROWS = 128
"""Rows in float32 by which flash attention's scratch for dQ grows with each segment, beside its tokens"""
STATES = {"fp32": 8.0, "bf16": 4.0, "8bit": 2.0 + 8.0 / 256}
"""Bytes a trained parameter of Adam's two moments; in 8 bits each block of 256 has a float32 scale for either one"""


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
    classifier: PreTrainedModel = lora.skeleton(architecture)
    layer = getattr(classifier, classifier.base_model_prefix).layers[0]
    heads = architecture.num_attention_heads
    head = getattr(architecture, "head_dim", None) or architecture.hidden_size // heads
    of_layer = sum(p.numel() for p in layer.parameters())
    return Shape(
        layers=architecture.num_hidden_layers,
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
        outside=sum(p.numel() for p in classifier.parameters()) - architecture.num_hidden_layers * of_layer,
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
    shards: int = 1
    """Devices among which the model is split; 1 without fsdp"""
    sharded: bool = False
    """Whether fsdp gathers the layers, on one device too"""
    offload: bool = False
    """Whether shards, gradients and states are in CPU memory"""


@dataclass(frozen=True, kw_only=True)
class Load:
    """The largest microbatch of a step, and how many of them a rank runs in it."""

    tokens: int
    gathered: int
    """Keys that attention gathers: the sum of all segments' keys; 0 where the row itself is the keys"""
    segments: int
    ends: int
    end_keys: int
    """Keys of the last layer's attention, whose queries are the end tokens alone"""
    microbatches: int = 2


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
    return shape.layers * sum(way.rank * (i + o) for i, o in _targets(shape, way)) + shape.hidden


def _targets(shape: Shape, way: Way) -> list[tuple[int, int]]:
    """(in, out) of the linear layers of a decoder layer that LoRA updates."""
    if not way.rank:
        return []
    chosen = (s for n, s in shape.linears.items() if not way.targets or n.rpartition(".")[2] in way.targets)
    return list(chosen)


def memory(shape: Shape, way: Way, load: Load) -> Memory:
    """Bytes on one device at the peak of a training: the largest of the moments of `_moments`."""
    count, updated = shape.parameters, trained(shape, way)
    wide = 4 if way.weights == "fp32" else 2
    # LoRA's updates and the head are float32 whatever the weights are.
    frozen = count * wide if way.rank else 0
    weights = (frozen + 4 * updated if way.rank else count * wide) / way.shards
    gradients = updated * (4 if way.rank else wide) / way.shards
    states = updated * STATES[way.states] / way.shards
    host = 0.0
    if way.offload:
        host, weights, gradients, states = weights + gradients + states, 0.0, 0.0, 0.0
    moments = _moments(shape, way, load)
    first = gradients if load.microbatches > 1 else 0.0  # those of earlier microbatches are there when it begins
    held = {name: (first if at_top else gradients) + g + a for name, (at_top, g, a) in moments.items()}
    moment = max(held, key=held.__getitem__)
    at_top, gathered, activations = moments[moment]
    if (with_all := weights + states + gradients) > weights + states + held[moment]:
        return Memory(
            weights=weights, gradients=gradients, states=states, gathered=0.0, activations=with_all * 0.0,
            moment="optimizer step", host=host,
        )  # fmt: skip
    return Memory(
        weights=weights,
        gradients=first if at_top else gradients,
        states=states,
        gathered=gathered,
        activations=activations,
        moment=moment,
        host=host,
    )


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """Bytes that a decoder layer keeps for its backward pass."""

    attention: float
    """By its first norm and attention, its own input included"""
    mlp: float
    copies: float
    """bf16 copies that autocast made of its float32 matrices"""
    copy_down: float
    """Of these, that of the MLP's last matrix"""
    input: float
    """Its input alone, which recomputation keeps"""

    @property
    def all(self) -> float:
        return self.attention + self.mlp + self.copies


def _kept(shape: Shape, way: Way, load: Load) -> _Kept:
    T, H, Q, KV, I = load.tokens, shape.hidden, shape.queries, shape.keys, shape.mlp
    c = 2 if way.bf16 else 4  # what matrices are multiplied in
    r = 4 if way.weights == "fp32" else 2  # the residual stream, which starts as the embedding
    casts = c < r  # autocast rounds its input for each linear layer anew
    full = not way.rank
    # x^2 and x * rstd keep x in float32, which under float32 weights is the residual itself; weight * that keeps it
    # where the weight is trained (Llama rounds it to the residual's dtype first, Gemma does not).
    norm = 4 * H + 4 + (r * H if full else 0)
    attention, mlp = norm, norm * (shape.norms - 1)
    if shape.norms == 4:
        attention, mlp = 2 * norm, 2 * norm
    before_attention, before_mlp = shape.readers
    if full:  # a matrix that is trained keeps its input
        attention += c * H * (before_attention if casts else 1)
        mlp += c * H * (before_mlp if casts else 1)
    for name, (i, _) in shape.linears.items():
        if way.rank and (not way.targets or name.rpartition(".")[2] in way.targets):
            # LoRA's A keeps the bf16 copy of its input that was made for it alone, and B what A gives.
            kept = c * i + c * way.rank
            attention, mlp = (attention + kept, mlp) if "attn" in name else (attention, mlp + kept)
    if shape.head_norms:
        attention += (4 + (c if full else 0)) * (Q + KV)
    keys = load.gathered or T
    attention += 2 * c * Q + 4 * shape.heads + 2 * c * KV * keys / T  # queries, output, log-sum-exp, keys and values
    mlp += 3 * c * I + (c * I if full else 0)  # gate, its activation, up; and their product, which the last matrix reads
    copied = c < 4 and way.weights == "fp32" and not way.sharded
    down = shape.linears["mlp.down_proj"]
    return _Kept(
        attention=attention * T,
        mlp=mlp * T,
        copies=2.0 * shape.matrices if copied else 0.0,
        copy_down=2.0 * down[0] * down[1] if copied else 0.0,
        input=r * H * T,
    )


def _moments(shape: Shape, way: Way, load: Load) -> dict[str, tuple[bool, float, float]]:
    """By name: whether it comes before the gradients of this microbatch, bytes that fsdp holds, bytes of activations."""
    T, H, Q, KV, I = load.tokens, shape.hidden, shape.queries, shape.keys, shape.mlp
    c, r = (2 if way.bf16 else 4), (4 if way.weights == "fp32" else 2)
    full, kept = not way.rank, _kept(shape, way, load)
    others = (shape.layers - 2) * (kept.input if way.recompute else kept.all)  # all but the last two layers
    # The layer before the last: the first whose backward pass runs on all tokens. Recomputed, its input is there twice:
    # as what was kept, and, but for float32 residuals, as its norm's float32 copy.
    layer = kept.all + (kept.input if way.recompute and r == 2 else 0)
    below = others + layer
    batch = 2 * r * (Q // shape.heads) * T  # cosines and sines of the positions
    gradient = r * H * T  # of the residual stream
    # The last layer: input and norm of all tokens, keys and values; all else is of E rows.
    readers = shape.readers[0]
    begun = (r + 4 * (r == 2) + (r if full else 0) + c * (readers if c < r and full else 1)) * H * T
    last = begun + kept.copies + 2 * c * KV * (load.end_keys or T)
    begun += 2 * H * (Q + 2 * KV) if kept.copies else 0
    unfinished = others + (kept.input if way.recompute else kept.all)
    # Matrix gradients come in the dtype of the product, and are then widened to that of the weight.
    new = shape.largest * (c + (4 if c < r and not way.sharded else 0)) if full else 0
    down = I * H * c if full else 0
    scratch = 4 * Q * (T + FLASH_ROWS * load.segments)
    # Rotated in the residual's dtype: queries (4 bytes wide where they were normed), times cosine, with the halves
    # exchanged, times sine; with the keys and values that wait, and the norm's output that the projections read.
    wide = max(r, 4 if shape.head_norms and r == 4 else c)
    rotated = (wide + 3 * r) * Q + (wide + c) * KV + (r + c) * H
    if shape.head_norms:
        rotated += (4 + c) * (Q + KV)
    under_lora = 0
    if any(shape.linears["mlp.down_proj"] == size for size in _targets(shape, way)):
        # Its input, that in float32 as peft casts it, the norm's output; output of base, of B, and that times alpha / r
        under_lora = c * I + 4 * I + r * H + (c * H if way.recompute else 3 * c * H)
        under_lora += (r * H + 2 * c * H) if way.recompute else 0  # gradients that wait for the recomputed layer
    gathered, reducing, root = 0.0, 0.0, 0.0
    if way.sharded:
        # Layers come in the product's dtype, one that runs and one on its way; gradients leave in float32, those of the
        # layer before while this one computes. Embedding and head stay gathered as they are.
        gathered = c * 2 * shape.layer + r * shape.outside
        reducing = 4 * shape.layer if full else 4 * trained(shape, way) / shape.layers
        root = r * shape.outside
    embedded = 4 * shape.embedding if full else 0
    return {
        "forward": (True, gathered, batch + unfinished + begun + rotated * T),
        "last layer": (True, gathered, batch + unfinished + last + max(new, 4 * Q * load.ends * (FLASH_ROWS + 1))),
        "MLP, last matrix": (True, gathered + reducing, batch + below + gradient + c * (H + I) * T + down),
        "MLP, product": (
            True,
            gathered + reducing + (down if way.sharded else 0),
            batch + below + gradient + 2 * c * I * T - kept.copy_down,
        ),
        "MLP under LoRA": (True, gathered + (reducing if way.recompute else 0), batch + below + under_lora * T),
        "attention": (
            True,
            gathered + reducing + (c * shape.layer if way.sharded else 0),
            batch + below - kept.mlp + gradient + 2 * c * Q * T + 2 * c * KV * (load.gathered or T) + scratch,
        ),
        "reduction": (False, gathered + reducing * (1 + 1 / way.shards), batch + others + gradient),
        "embedding": (False, root, batch + gradient + embedded),
        "embedding's reduction": (False, root * (1 + 1 / way.shards), batch + embedded),
    }
