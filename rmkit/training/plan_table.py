"""What --plan.only prints: a training's size, memory, work and time, and the flags with which it fits."""

from rmkit.config import DEMO
from rmkit.terminal import Terminal, clock
from rmkit.training.estimate import trained, work
from rmkit.training.plan import CONTEXT, MARGIN, Plan, gib

OFFERS = 6
"""Lines of flags that are shown, at most"""


def show(plan: Plan, terminal: Terminal) -> None:
    """Print the plan and what would make it fit."""
    asked = plan.config.model.gradient_checkpointing
    plan = plan.decided()
    terminal.table([*_size(plan), *_memory(plan), *_work(plan)])
    if not plan.shape.counted:
        terminal.say("rough for this family, but for the weights: each token is counted as if it met all parameters")
    if plan.devices.kind == "cpu":
        terminal.say("activations are estimated for GPUs alone: --plan.gpus 1 --plan.memory 80 plans for one of 80 GiB")
    elif plan.devices.memory is None:
        terminal.say("give --plan.memory, the GiB of a GPU, to see whether it fits")
    else:
        left = f"with {MARGIN - 1:.0%} for the estimate's error and {CONTEXT:.0f} GiB for CUDA itself"
        by = " by recomputation, which auto turns on" if asked == "auto" and plan.way.recompute and plan.fits else ""
        terminal.say(f"it fits{by}, {left}" if plan.fits else f"it does not fit, {left}")
        _offers(plan, terminal)


def _size(plan: Plan) -> list[tuple[str, str]]:
    w, d, name = plan.workload, plan.devices, plan.config.model.name
    count = trained(plan.shape, plan.way)
    return [
        ("model", f"{'the demo' if name == DEMO else name}, {plan.shape.parameters:,} parameters, {count:,} trained"),
        ("pairs", f"{w.pairs:,} in {w.steps:,} steps of {plan.config.batch.pairs}"),
        ("tokens", f"{w.flat:,.0f} flat, {w.computed:,.0f} computed: {1 - w.computed / w.flat:.0%} saved"),
        ("microbatches", f"{w.microbatches:.3g} a step on each device, the largest {w.load.tokens:,} tokens"),
        ("devices", f"{d.count} x {d.name}" + (f", {d.memory:.1f} GiB each" if d.memory else "")),
    ]


def _memory(plan: Plan) -> list[tuple[str, str]]:
    m, way = plan.memory, plan.way
    rows = [
        ("weights", f"{gib(m.weights)}, {'4-bit matrices, else ' if way.four_bit else ''}{way.weights}"),
        ("gradients", gib(plan.gradients)),
        ("Adam's states", f"{gib(m.states)}, {way.states}"),
    ]
    if plan.devices.kind == "cpu":
        return rows
    if way.sharded:
        rows.append(("gathered", f"{gib(m.gathered)}, what fsdp holds of others' shards"))
    rows.append(("activations", f"{gib(m.activations)}, {'recomputed' if way.recompute else 'all kept'}"))
    rows.append(("peak", f"{gib(m.peak)} on each device, at: {m.moment}"))
    return [*rows, ("in CPU memory", f"{gib(m.host)} for each device")] if way.offload else rows


def _work(plan: Plan) -> list[tuple[str, str]]:
    w, d, mfu = plan.workload, plan.devices, plan.config.plan.mfu
    flops = work(plan.shape, plan.way, w.computed, w.keys, w.ends, w.end_keys)
    again = f", {flops.again / flops.done:.0%} of them recomputation" if flops.again else ""
    rows = [("FLOPs a step", f"{flops.done / w.steps:.3g}{again}")]
    if d.rate:
        seconds = flops.done / (d.rate * mfu * d.count)
        at = f"at {mfu:.0%} of {d.rate / 1e12:,.0f} TFLOP/s, assumed (--plan.mfu)"
        rows.append(("time", f"{seconds / w.steps:.3g} s a step, {clock(seconds)} in all {at}"))
    return rows


def _offers(plan: Plan, terminal: Terminal) -> None:
    if plan.fits:
        return
    offers = [offer for offer, _ in zip(plan.offers(), range(OFFERS), strict=False)]
    if offers:
        terminal.say("it does with, cheapest first:")
        terminal.table([(gib(offer.memory.peak), offer.shown) for offer in offers])
    else:
        terminal.say("no flags make it fit: take a smaller model, or larger GPUs")
