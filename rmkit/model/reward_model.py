"""The reward model: an ordinary Hugging Face sequence classifier, run on packed batches.

One module whose `forward` takes a batch through backbone, end-token gather and float32 score to the loss: sharding
engines hook the root's forward, so nothing may call the parts from outside. The classifier inside keeps its own class
and parameter names, so what is saved is what transformers reads.
"""

import functools

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from rmkit.batch.planner import pair_cost_of
from rmkit.batch.trie import PackedBatch
from rmkit.config import LossConfig
from rmkit.model.head import Head, plain_head
from rmkit.model.loss import Comparison, compare
from rmkit_kernels import Kernels, gather_end_tokens


class RewardModel(nn.Module):
    """Scores sequences and compares them. `classifier` is transformers' XForSequenceClassification.

    In the last layer only keys and values are needed of all T tokens. What follows acts on each token alone, so its
    attention, output projection, MLP and the norms after them run on the S end tokens. Hooks gather the rows. A
    rectangle (padded) keeps the whole last layer and gathers before the final norm. No class of transformers is
    edited, and every parameter keeps its name.
    """

    def __init__(
        self,
        classifier: PreTrainedModel,
        head: Head | None = None,
        *,
        bf16: bool = False,
        weights: torch.dtype = torch.float32,
        kernels: Kernels = "auto",
    ) -> None:
        """`head` says what the classifier's labels mean; by default what their number says. `bf16` is its arithmetic,
        `weights` what embedding and decoder layers are kept in once it is placed (`rmkit.model.stored`)."""
        super().__init__()
        self.classifier = classifier
        self.head = head or plain_head(classifier.config.num_labels)
        self.bf16 = bf16
        self.weights = weights
        self.kernels = kernels
        self.compute_device: torch.device | None = None
        """Where its forward runs, if the parameters are kept elsewhere (offloaded)"""
        self._batch: PackedBatch | None = None
        """The batch of a forward pass of ours. None in transformers' own forward, where the hooks do nothing"""
        self._last_input: Tensor | None = None
        last = self.backbone.layers[-1]
        last.register_forward_pre_hook(self._residual_of_ends, with_kwargs=True)
        last.input_layernorm.register_forward_pre_hook(self._every_row)
        last.self_attn.o_proj.register_forward_pre_hook(self._ends_of_row)
        self.backbone.norm.register_forward_pre_hook(self._ends_of_rectangle)
        for layer in self.backbone.layers:
            for part in (layer.self_attn, layer.mlp):
                part.register_forward_pre_hook(_cast_once, with_kwargs=True)

    @property
    def backbone(self) -> nn.Module:
        return getattr(self.classifier, self.classifier.base_model_prefix)

    @property
    def config(self) -> PretrainedConfig:
        return self.classifier.config

    @property
    def device(self) -> torch.device:
        """Where batches have to be: the parameters' own, unless they are offloaded."""
        return self.compute_device or self.classifier.device

    @functools.cached_property
    def pair_cost(self) -> float:
        """Work of one (query, key) pair of this model, in tokens (`pair_cost_of`)."""
        config, layers = self.config, self.backbone.layers
        return pair_cost_of(
            config.num_hidden_layers,
            config.num_attention_heads,
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            sum(p.numel() for p in layers.parameters()),
        )

    def forward(
        self, batch: PackedBatch, loss: LossConfig | None = None, normalizer: float = 1.0, *, features: bool = False
    ) -> Comparison | Tensor:
        """Run S sequences; with a loss, compare the batch's N pairs by it (the sum over them is divided by
        `normalizer`). Without one: the scores of all C labels, float32 [S, C]; or with `features` what the head reads,
        the end states [S, H] as they are."""
        extra = {} if batch.segments is None else {"segments": batch.segments, "kernels": self.kernels}
        self._batch = batch
        try:
            # Each weight is read once in a forward: a cache of its bf16 copies would save nothing, and hold them all.
            with torch.autocast(batch.input_ids.device.type, torch.bfloat16, self.bf16, cache_enabled=False):
                ends = self.backbone(
                    input_ids=batch.input_ids,
                    attention_mask=batch.attention_mask,
                    position_ids=batch.position_ids,
                    use_cache=False,
                    **extra,
                ).last_hidden_state[0]
        finally:
            self._batch = self._last_input = None
        if features:
            return ends
        weight = self.classifier.score.weight
        if loss is None:
            return self.head.scores(ends, weight)
        return compare(ends, weight, self.head, batch, loss, normalizer, self.kernels)

    def _gather(self, rows: Tensor, batch: PackedBatch) -> Tensor:
        """[1, S, H] end tokens of [1, T, H] rows or of a [S, Lmax, H] rectangle."""
        return gather_end_tokens(rows.flatten(0, 1), batch.end_index, kernels=self.kernels)[None]

    def _residual_of_ends(self, layer: nn.Module, inputs: tuple[Tensor], extra: dict) -> tuple[tuple, dict] | None:
        """Before the last layer: keep its input, pass on only the end tokens, and hand `ends` to its attention."""
        if self._batch is None or self._batch.ends is None:
            return None
        self._last_input = inputs[0]
        return (self._gather(inputs[0], self._batch),), {**extra, "ends": self._batch.ends}

    def _every_row(self, norm: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
        """Before its input norm: put all tokens back, whose keys and values the end tokens attend to."""
        return None if self._last_input is None else (self._last_input,)

    def _ends_of_row(self, projection: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
        """Before its output projection: keep the end tokens, the only rows for which attention was computed."""
        if self._batch is None or self._batch.ends is None:
            return None
        return (self._gather(inputs[0], self._batch),)

    def _ends_of_rectangle(self, norm: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
        """Before the final norm, under padded: keep the end tokens."""
        if self._batch is None or self._batch.ends is not None:
            return None
        return (self._gather(inputs[0], self._batch),)


def _cast_once(part: nn.Module, inputs: tuple, extra: dict) -> tuple[tuple, dict] | None:
    """Before attention and MLP, in scoring under autocast: their input in bf16, which each of their projections would
    make for itself. Not in training, where the gradients of these copies would then be added up in bf16."""
    device = (inputs[0] if inputs else extra["hidden_states"]).device.type
    if torch.is_grad_enabled() or not torch.is_autocast_enabled(device):
        return None
    dtype = torch.get_autocast_dtype(device)
    if inputs:
        return (inputs[0].to(dtype), *inputs[1:]), extra
    return inputs, {**extra, "hidden_states": extra["hidden_states"].to(dtype)}
