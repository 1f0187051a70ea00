"""Every flag of `python -m rmkit.train`, as frozen dataclasses of the standard library only.

The text under a field is its `--help`. A wrong value raises a ValueError that starts with the flag, gives the value
and says what to set. The whole object is passed, printed and saved (`config.json`), never a dict.
"""

import dataclasses
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rmkit.errors import UserError

DEMO = "demo"

Layout = Literal["trie", "packed", "padded"]

DEMO_MODEL = Path("runs/demo/FINAL")
"""Where a training with no flag leaves its model, and where label and evaluate with no flag find it."""


def _check(ok: bool, flag: str, value: object, mend: str) -> None:
    if not ok:
        raise UserError(flag.removeprefix("--").replace("-", "_"), value, mend)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    name: str = DEMO
    """Path or hub id of a causal LM (its head is drawn from the seed), a sequence classifier,
    a folder that rmkit wrote, or a LoRA adapter of one of these.
    "demo" is a small Llama from scratch, no network needed."""
    head: Literal["scalar", "binary", "multi"] = "scalar"
    """Form of a fresh head: one label, two as HALOs saves them (the reward is logit 1),
    or one for each of --model.objectives. A head that the checkpoint brings is kept as it is."""
    objectives: tuple[str, ...] = ()
    """Of a multi head: NAME or NAME=WEIGHT, what rows rate ("ratings": {NAME: 3.5}, any may be missing).
    The reward is the weighted sum of their scores; by default every weight is 1 / K."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the backbone; score and loss are float32 always. auto: bf16 on a GPU, fp32 on a CPU.
    bf16 on a CPU without bf16 instructions is computed in fp32, which is said."""
    weights: Literal["auto", "fp32", "bf16"] = "auto"
    """What embedding and decoder layers are kept in, and their gradients. bf16: 4 bytes a parameter for the two, not 8;
    a step is rounded at random, so small ones count; gradients of microbatches are added up in bf16.
    auto: fp32; under --lora.rank and bf16 arithmetic, a bf16 checkpoint's frozen weights stay bf16."""
    load: Literal["stored", "4bit"] = "stored"
    """stored: the weights of the checkpoint. 4bit: rounded to 4 bits (nf4) as they are read,
    under --lora.rank, on a GPU. Needs pip install bitsandbytes."""
    kernels: Literal["auto", "reference"] = "auto"
    """auto: Triton kernels for gather, score and loss on a GPU, their PyTorch references on a CPU.
    reference: these everywhere, to compare."""
    gradient_checkpointing: Literal["auto", "on", "off"] = "auto"
    """Recompute each layer in the backward pass: less memory, about a third more time.
    auto: where the step would not fit into the GPU's memory without; never on a CPU."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the decoder layers (torch.compile): the first steps take longer, the others less. auto: on a GPU."""
    attention: Literal["auto", "fa2", "fa3"] = "auto"
    """On a GPU in bf16: FlashAttention 2, which torch brings, or 3 (package flash_attn_interface, Hopper).
    auto: 3 where it is installed and torch can use it. env.json says which was used."""

    def __post_init__(self) -> None:
        recompute_ok = self.gradient_checkpointing in ("auto", "on", "off")  # from Python a switch may be given
        _check(recompute_ok, "--model.gradient-checkpointing", self.gradient_checkpointing, "set auto, on or off")
        multi = self.head == "multi"
        _check(multi or not self.objectives, "--model.objectives", " ".join(self.objectives), "set --model.head multi")
        _check(not multi or bool(self.objectives), "--model.head", "multi", "name what rows rate, --model.objectives")
        _ = self.objective_weights

    @property
    def objective_weights(self) -> dict[str, float]:
        """Weight of each objective in the reward; ValueError where one is no number, or named twice."""
        weights: dict[str, float] = {}
        for given in self.objectives:
            name, equals, weight = given.partition("=")
            try:
                weights[name] = float(weight) if equals else 1.0 / len(self.objectives)
            except ValueError:
                weights[name] = math.nan
            _check(bool(name), "--model.objectives", repr(given), "write NAME or NAME=WEIGHT")
            _check(math.isfinite(weights[name]), "--model.objectives", given, "set a finite number behind the =")
        _check(len(weights) == len(self.objectives), "--model.objectives", " ".join(self.objectives), "name each once")
        all_zero = bool(weights) and not any(weights.values())
        _check(not all_zero, "--model.objectives", " ".join(self.objectives), "give one of them a weight")
        return weights


def check_columns(columns: tuple[str, ...], flag: str) -> None:
    """ValueError where one is not NAME=FIELD, or a name is given twice."""
    for given in columns:
        name, equals, _ = given.partition("=")
        _check(bool(name and equals), flag, given or repr(given), "write NAME=FIELD, such as prompt=question")
    named = [given.partition("=")[0] for given in columns]
    _check(len(set(named)) == len(named), flag, " ".join(columns), "name each once")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    train: tuple[str, ...] = ()
    """Training preferences: named sets, hub ids (NAME or NAME:SPLIT) or paths, mixed.
    By default the embedded set for the demo model, ultrabin for any other."""
    test: tuple[str, ...] = ()
    """Held-out preferences, likewise. By default none where --data.train is given."""
    columns: tuple[str, ...] = ()
    """Fields under other names, NAME=FIELD: prompt=question chosen=best rejected=worst. NAME= leaves a field out.
    Files without such fields are read as they are."""
    max_length: int | None = None
    """Longest conversation (prompt + response) in tokens; by default the model's context, at most 2048."""
    overlong: Literal["drop", "keep-start", "keep-end", "error"] = "drop"
    """A pair with a longer side is dropped (and counted), cut to its first or last tokens, or stops the run."""
    bad_rows: Literal["stop", "drop"] = "stop"
    """A row that cannot be read, or that the chat template refuses, stops the run, or is left out,
    counted and listed."""
    shuffle: bool = True
    """A new order each epoch, drawn from the seed."""
    workers: int = 0
    """Processes that tokenise (once; the result is cached), at most four per core.
    0: as many as the set is worth, at most one per core."""

    def __post_init__(self) -> None:
        if self.max_length is not None:
            _check(self.max_length >= 2, "--data.max-length", self.max_length, "set at least 2 tokens")
        check_columns(self.columns, "--data.columns")
        _check(self.workers >= 0, "--data.workers", self.workers, "set 0 (automatic) or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchConfig:
    pairs: int = 64
    """Preferences per optimizer step, over all ranks and microbatches."""
    max_tokens: int = 16384
    """Tokens that one rank runs forward and backward at once (trie tokens, padding included under padded)."""
    layout: Layout = "trie"
    """trie: shared prefixes computed once. packed: padding-free without sharing. padded: the usual rectangle,
    for any decoder, such as those with state spaces or linear attention beside attention."""
    group: Literal["prompt", "none"] = "prompt"
    """prompt: pairs on one prompt meet in one batch, where the trie shares it. none: pairs are drawn alone."""

    def __post_init__(self) -> None:
        _check(self.pairs >= 1, "--batch.pairs", self.pairs, "set at least 1 preference per step")
        _check(self.max_tokens >= 2, "--batch.max-tokens", self.max_tokens, "set at least 2 tokens")


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelConfig:
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """How several processes share the work: ddp copies the model, fsdp shards it. auto: ddp on CPUs, fsdp on GPUs."""
    replicate: int = 1
    """Copies of the model under fsdp, each sharded over its own group of ranks (HSDP). 0: one copy on each node."""
    cpu_offload: bool = False
    """Keep the shards of fsdp and Adam's state in CPU memory, where the optimizer then steps."""

    def __post_init__(self) -> None:
        _check(self.replicate >= 0, "--parallel.replicate", self.replicate, "set 0 (one copy a node) or more")
        for flag, given in (
            (f"--parallel.replicate {self.replicate}", self.replicate != 1),
            ("--parallel.cpu-offload", self.cpu_offload),
        ):
            if given and self.strategy == "ddp":
                raise ValueError(f"{flag}: it belongs to fsdp; leave it out or set --parallel.strategy fsdp")

    @property
    def needs_fsdp(self) -> bool:
        """Whether a flag asks for fsdp, by its name or by what only fsdp does."""
        return self.strategy == "fsdp" or self.replicate != 1 or self.cpu_offload


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    name: Literal["bt", "hinge", "focal"] = "bt"
    """Of d = chosen - rejected - margin. bt: -log sigmoid(d). hinge: max(0, 1 - d).
    focal: InternLM2's, in which pairs that are clearly right count less."""
    label_smoothing: float = 0.0
    """Probability that a label is wrong: the target becomes 1 - this where a row gives none."""
    center: float = 0.0
    """Weight of (chosen + rejected)^2, which keeps scores near zero (TRL: center_rewards_coefficient)."""
    ratings: float = 1.0
    """Under a multi head: weight of the squared error of each rating, beside the loss of the pairs."""

    def __post_init__(self) -> None:
        smoothing = self.label_smoothing
        _check(0.0 <= smoothing < 0.5, "--loss.label-smoothing", smoothing, "set a number in [0, 0.5)")
        center_ok = self.center >= 0.0 and math.isfinite(self.center)
        _check(center_ok, "--loss.center", self.center, "set a finite number of at least 0")
        ratings_ok = self.ratings >= 0.0 and math.isfinite(self.ratings)
        _check(ratings_ok, "--loss.ratings", self.ratings, "set a finite number of at least 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    lr: float | None = None
    """Peak learning rate of AdamW; by default 5e-6 (HALOs), and 2e-3 for the demo model."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """After the warm-up: stay, or fall to zero by a line or by half a cosine."""
    warmup_ratio: float = 0.1
    """Share of the steps over which the learning rate rises from zero."""
    weight_decay: float = 0.01
    """Decoupled decay of weight matrices."""
    decay_all: bool = False
    """Decay norms, biases and the score head too."""
    max_grad_norm: float = 1.0
    """Global gradient norm above which gradients are scaled down; 0 measures without clipping."""
    epochs: int = 1
    """Passes over the training preferences."""
    max_steps: int = 0
    """Stop after so many optimizer steps; 0: no such limit."""
    states: Literal["fp32", "bf16", "8bit"] = "fp32"
    """AdamW's two moments of each matrix: 8, 4 or 2 bytes a parameter. bf16 and 8bit are rounded at random, so that
    nothing small is lost on average. Those of vectors and of the score head are fp32 always."""

    def __post_init__(self) -> None:
        if self.lr is not None:
            _check(self.lr > 0 and math.isfinite(self.lr), "--optim.lr", self.lr, "set a positive number, such as 5e-6")
        _check(0.0 <= self.warmup_ratio <= 1.0, "--optim.warmup-ratio", self.warmup_ratio, "set a share in [0, 1]")
        for flag, value in (
            ("--optim.weight-decay", self.weight_decay),
            ("--optim.max-grad-norm", self.max_grad_norm),
        ):
            _check(value >= 0.0 and math.isfinite(value), flag, value, "set a finite number of at least 0")
        _check(self.epochs >= 1, "--optim.epochs", self.epochs, "set at least 1")
        _check(self.max_steps >= 0, "--optim.max-steps", self.max_steps, "set 0 (no limit) or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraConfig:
    rank: int = 0
    """Train low-rank updates of this rank (LoRA) beside frozen weights, and the head; 0: train all weights.
    Needs pip install 'rmkit[lora]', and usually a higher --optim.lr (1e-4)."""
    alpha: float | None = None
    """The update counts alpha / rank times; by default alpha is 2 x rank."""
    targets: tuple[str, ...] = ()
    """Linear layers that are updated, such as q_proj v_proj; by default all of the decoder layers."""
    dropout: float = 0.0
    """Always 0: a token that sequences share would be dropped for all of them."""
    keep: Literal["adapter", "merged", "both"] = "merged"
    """What FINAL is. merged: an ordinary classifier. adapter: a PEFT adapter folder, which needs its base.
    both: the classifier, and the adapter in FINAL/adapter."""

    def __post_init__(self) -> None:
        _check(self.rank >= 0, "--lora.rank", self.rank, "set 0 (off) or more")
        mend = "leave it at 0: tokens are shared between sequences, which is exact only without dropout"
        _check(self.dropout == 0.0, "--lora.dropout", self.dropout, mend)
        alpha_ok = self.alpha is None or (self.alpha > 0.0 and math.isfinite(self.alpha))
        _check(alpha_ok, "--lora.alpha", self.alpha, "set a positive number, such as 2 x the rank")
        for flag, value, default in (
            ("--lora.alpha", self.alpha, None),
            ("--lora.targets", " ".join(self.targets), ""),
            ("--lora.keep", self.keep, "merged"),
        ):
            _check(self.rank > 0 or value == default, flag, value, "set --lora.rank too, such as 16")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalConfig:
    every: int = 100
    """Steps between evaluations on the held-out pairs; 0: before and after training only."""

    def __post_init__(self) -> None:
        _check(self.every >= 0, "--eval.every", self.every, "set 0 (before and after only) or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class SaveConfig:
    every: int = 500
    """Steps between checkpoints for --resume; 0: none on a schedule."""
    keep: int = 2
    """Newest checkpoints that stay; the best one (lowest held-out loss) stays besides. 0: all stay."""
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Weights of FINAL; checkpoints and adapters stay float32.
    auto: bf16, half the disk, where the backbone computed in it."""
    binary_head: Literal["fold", "keep"] = "fold"
    """fold: of a head of two labels FINAL has the reward's row alone, which every reader takes
    for the score. keep: both rows, as HALOs' own readers expect them."""

    def __post_init__(self) -> None:
        _check(self.every >= 0, "--save.every", self.every, "set 0 (none) or more")
        _check(self.keep >= 0, "--save.keep", self.keep, "set 0 (all stay) or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class LogConfig:
    to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Trackers that get each line of metrics.jsonl too; each is an extra (pip install 'rmkit[wandb]').
    tensorboard writes into the run folder; WANDB_MODE=offline keeps wandb off the network."""
    project: str = "rmkit"
    """Project of wandb and trackio under which the run stands, by its name."""

    def __post_init__(self) -> None:
        _check(self.project.strip() != "", "--log.project", repr(self.project), "set a name, such as rmkit")


@dataclass(frozen=True, kw_only=True, slots=True)
class HubConfig:
    push: str | None = None
    """OWNER/NAME on the Hugging Face hub, to which FINAL is uploaded when it is whole (hf auth login, or HF_TOKEN).
    What goes wrong there is told in a sentence, and the training has ended well."""
    private: bool = False
    """Make it a private repository; nothing is uploaded to one that is public already."""
    revision: str | None = None
    """Branch that it is uploaded to, made where there is none; by default main."""

    def __post_init__(self) -> None:
        if self.push is not None:
            _check(_repository(self.push), "--hub.push", self.push or "''", "write OWNER/NAME, such as my-name/my-rm")
        for flag, value in (("--hub.private", self.private), ("--hub.revision", self.revision)):
            _check(self.push is not None or not value, flag, value, "set --hub.push OWNER/NAME too")
        if self.revision is not None:
            branch = re.fullmatch(r"\w[\w./-]*", self.revision, re.ASCII) and ".." not in self.revision
            _check(bool(branch), "--hub.revision", self.revision or "''", "write the name of a branch, such as v1")


def _repository(name: str) -> bool:
    """Whether a name can be a model's on the hub, by huggingface_hub's own rules, with an owner."""
    part = r"[A-Za-z0-9_](?:[\w.-]*\w)?"
    fits = re.fullmatch(f"{part}/{part}", name, re.ASCII) is not None
    return fits and len(name) <= 96 and not name.endswith(".git") and "--" not in name and ".." not in name


@dataclass(frozen=True, kw_only=True, slots=True)
class TrustConfig:
    posterior: Literal["auto", "off"] = "auto"
    """Measure after training how uncertain the head is (FINAL/posterior.safetensors), and fit
    the temperature of held-out pairs (rmkit.json). auto: where the pairs tell them. off: neither."""
    pairs: int | None = None
    """Most training pairs, and most held-out pairs, that it is measured on; drawn from the seed.
    By default one in 64 of the pairs that the training has seen, but 128 to 4096: about 1 %
    of its time, and more of one that sees under 8,192 pairs.
    Fewer pairs than hidden units make the standard errors too wide."""

    def __post_init__(self) -> None:
        _check(self.pairs is None or self.pairs >= 1, "--trust.pairs", self.pairs, "set at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanConfig:
    only: bool = False
    """Print what the training takes (pairs, tokens, steps, memory, FLOPs, time) and with what it fits.
    It stops before weights are read: the model's configuration is enough.
    In a folder without a tokenizer, tokens are guessed as bytes / 4."""
    gpus: int | None = None
    """Plan for so many GPUs; by default the devices of this run."""
    memory: float | None = None
    """GiB of each GPU that is planned for, such as 80; by default that of the GPU here."""
    mfu: float = 0.4
    """Share of the GPU's peak rate at which the planned time is told; it is assumed, not measured."""
    rate: float | None = None
    """Peak rate of the planned GPU in TFLOP/s (dense bf16); by default that of the GPU here, else of an H100 SXM."""

    def __post_init__(self) -> None:
        for flag, value, default in (
            ("--plan.gpus", self.gpus, None),
            ("--plan.memory", self.memory, None),
            ("--plan.mfu", self.mfu, 0.4),
            ("--plan.rate", self.rate, None),
        ):
            _check(self.only or value == default, flag, value, "it is for a plan; set --plan.only too")
        _check(self.gpus is None or self.gpus >= 1, "--plan.gpus", self.gpus, "set at least 1")
        for flag, value in (("--plan.memory", self.memory), ("--plan.rate", self.rate)):
            ok = value is None or (value > 0.0 and math.isfinite(value))
            _check(ok, flag, value, "set a positive number")
        _check(0.0 < self.mfu <= 1.0, "--plan.mfu", self.mfu, "set a share in (0, 1], such as 0.4")


DEEPEST = 256
"""Folders in the path of --cache-dir: Python makes missing ones by recursion"""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    exp_name: str | None = None
    """The run's folder is CACHE_DIR/EXP_NAME; by default demo, or the model's name with -bt behind it."""
    cache_dir: str = "runs"
    """Folder of all runs."""
    seed: int = 0
    """Draws the fresh head and the order of the data."""
    deterministic: bool = False
    """On a GPU: the same run again gives the same weights bit for bit, more slowly. On a CPU it always does."""
    resume: bool = False
    """Go on from the newest whole checkpoint of this run."""
    overwrite: bool = False
    """Replace an earlier run: it moves to old-run/ in its folder, goes when this one has
    two checkpoints or FINAL, and is put back where this one fails before."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    save: SaveConfig = field(default_factory=SaveConfig)
    log: LogConfig = field(default_factory=LogConfig)
    hub: HubConfig = field(default_factory=HubConfig)
    trust: TrustConfig = field(default_factory=TrustConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)

    def __post_init__(self) -> None:
        _check(0 <= self.seed < 2**63, "--seed", self.seed, "set a whole number from 0 to 2^63 - 1")
        if self.exp_name is not None:
            plain = self.exp_name not in ("", ".", "..") and not set(self.exp_name) & set("/\\\0")
            _check(plain, "--exp-name", repr(self.exp_name), "set one folder name, without slashes")
        depth = len(Path(self.cache_dir).parts)
        _check(depth <= DEEPEST, "--cache-dir", f"{depth} folders deep", f"set a path of at most {DEEPEST} folders")
        both = self.resume and self.overwrite
        _check(not both, "--resume", "--overwrite", "give one of the two: go on with the old run, or replace it")
        base_ok = self.model.name != DEMO or self.lora.keep == "merged"
        _check(base_ok, "--lora.keep", self.lora.keep, "the demo model is in no folder that an adapter could name")
        if self.model.load == "4bit":
            for ok, mend in (
                (self.model.name != DEMO, "the demo model is drawn, not loaded; set --model.name"),
                (self.lora.rank > 0, "4-bit weights cannot be trained; set --lora.rank too, such as 16"),
                (self.lora.keep == "adapter", "no merged model is exact; set --lora.keep adapter"),
                (not self.parallel.needs_fsdp, "fsdp cannot shard 4-bit weights; set --parallel.strategy ddp"),
            ):
                _check(ok, "--model.load", "4bit", mend)
        max_length = self.data.max_length
        if max_length is not None and max_length > self.batch.max_tokens:
            raise ValueError(
                f"--data.max-length {max_length}: one conversation would not fit into --batch.max-tokens "
                f"{self.batch.max_tokens}; lower the first or raise the second"
            )

    @property
    def folder(self) -> Path:
        """The run folder, CACHE_DIR/EXP_NAME."""
        return Path(self.cache_dir) / (self.exp_name or "")

    @property
    def reads(self) -> dict[str, tuple[str, ...]]:
        """What is read, by field; a run that is resumed may have no need of it any more."""
        named = {"data.train": self.data.train, "data.test": self.data.test, "model.name": (self.model.name,)}
        return {} if self.resume else named

    def resolved(self) -> "TrainConfig":
        """The same run with every default that depends on another flag written out."""
        demo = self.model.name == DEMO
        data, optim = self.data, self.optim
        if not data.train:
            name = DEMO if demo else "ultrabin"
            data = dataclasses.replace(data, train=(name,), test=data.test or (name,))
        if optim.lr is None:
            optim = dataclasses.replace(optim, lr=2e-3 if demo else 5e-6)
        default_name = DEMO if demo else f"{_called(Path(self.model.name))}-bt"
        return dataclasses.replace(self, exp_name=self.exp_name or default_name, data=data, optim=optim)


def _called(model: Path) -> str:
    """The name of a model: that of its run where it is a run's FINAL, adapter or checkpoint."""
    parts = list(model.parts)
    while len(parts) > 1 and (parts[-1] in ("FINAL", "adapter", "checkpoints") or parts[-1].startswith("step-")):
        parts.pop()
    return parts[-1].strip("/") if parts else ""


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """The configuration as plain JSON values, nested as the flags are."""
    return dataclasses.asdict(config)
