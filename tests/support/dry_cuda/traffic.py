"""GB that a decoder layer of Llama-3-8B moves besides its matrix products and attention, forward and backward, without
recomputation: op by op as it runs uncompiled, and as Inductor counts the kernels that it fuses. Printed as JSON.

Inductor lowers the layer's graphs for a Hopper GPU, as it would there; no code is made of them, so none is needed.
A kernel counts each buffer that it reads or writes once, which is the least it can move.
`FAKE_CUDA=... python -m support.dry_cuda.traffic [list]`: with `list` also each kernel, to stderr.
"""

import json
import sys
from types import SimpleNamespace

import support.dry_cuda.device  # noqa: F401  # isort: skip (before torch)
import torch
from torch._dynamo import device_interface
from torch._functorch.aot_autograd import make_boxed_func
from torch._inductor import compile_fx, config, scheduler
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rmkit.config import LossConfig
from rmkit.model.compile import compile_layers, compiling
from rmkit.model.reward_model import RewardModel
from support.decoders import LLAMA_3_8B
from support.dry_cuda.models import batch, built, placed

GB = 1e9
TOKENS = 16_384
NOT_COUNTED = ("mm", "attn")
"""Parts of the names of matrix products and attention"""
OVERWRITES = ("copy_", "zero_", "fill_")
"""These do not read what they change"""
HOPPER = SimpleNamespace(
    type="cuda",
    index=0,
    name="NVIDIA H100",
    major=9,
    minor=0,
    cc=90,
    multi_processor_count=132,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    regs_per_multiprocessor=65536,
    warp_size=32,
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448,
    shared_memory_per_multiprocessor=233472,
    L2_cache_size=50 << 20,
    total_memory=80 << 30,
    gcnArchName="",
)


class OpByOp(TorchDispatchMode):
    """Adds up the bytes of what each operator reads and writes; views and empty tensors move none."""

    def __init__(self) -> None:
        super().__init__()
        self.moved = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        name = function._schema.name.split("::")[1]
        made = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor)]  # none if it asks for a fake's device
        views = function.is_view or name == "_unsafe_view" or "empty" in name
        if made and not views and not any(n in name for n in NOT_COUNTED):
            read = tree_leaves((args[1:] if name in OVERWRITES else args, kwargs))
            self.moved += sum(_bytes(t) for t in [*read, *made] if isinstance(t, torch.Tensor))
        return result


def _bytes(tensor: torch.Tensor) -> int:
    """Of its elements; of those that are there where it is expanded."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def of_layers(layers: int) -> RewardModel:
    return built("llama", {**LLAMA_3_8B, "num_hidden_layers": layers})


def eager() -> dict[str, float]:
    """What one layer more adds to a microbatch whose gradients are added to those of another."""
    forward, both = [], []
    for layers in (2, 3):
        model = of_layers(layers)
        wrapped, packed = placed(model), batch(TOKENS)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        with OpByOp() as ops:
            loss = wrapped(packed, LossConfig(), 8.0).loss
            forward.append(ops.moved)
            loss.backward()
        both.append(ops.moved)
    first, whole = forward[1] - forward[0], both[1] - both[0]
    return {"forward": first / GB, "backward": (whole - first) / GB, "total": whole / GB}


def pretend() -> None:
    """Have Inductor see a Hopper GPU with Triton on it, and compile without running anything on it."""
    torch.cuda.get_device_properties = lambda *_: HOPPER
    torch.cuda.get_device_capability = lambda *_: (9, 0)
    cuda = device_interface.CudaInterface
    cuda.Worker.get_device_properties = cuda.get_device_properties = staticmethod(lambda *_, **__: HOPPER)
    cuda.get_compute_capability = staticmethod(lambda *_, **__: 90)
    scheduler.has_triton = lambda *_: True
    config.compile_threads = 1  # nothing is compiled, so no workers for it
    config.joint_graph_constant_folding = config.pattern_matcher = False  # they compute on the device


def counting(moved: dict[str, float], listed: bool):
    """A backend that adds the GB of each graph's kernels to `moved`, forward and backward."""

    def lower(graph_module, inputs, **how):
        fake_mode = compile_fx.fake_tensor_prop(graph_module, inputs)
        with V.set_fake_mode(fake_mode):
            compile_fx._recursive_post_grad_passes(graph_module, bool(how.get("is_inference")))
        compile_fx.record_original_output_strides(graph_module)
        graph = GraphLowering(graph_module, shape_env=compile_fx.shape_env_from_inputs(inputs))
        debug = V.set_debug_handler(compile_fx.DebugContext())
        part = "backward" if how.get("is_backward") else "forward"
        with V.set_fake_mode(fake_mode), V.set_graph_handler(graph), debug, V.set_real_inputs(inputs):
            graph.run(*inputs)
            graph.init_wrapper_code()
            graph._update_scheduler()
            for node in graph.scheduler.nodes:
                # Not graph.count_bytes(): the list that it returns beside the sum holds a fourth of each node's bytes.
                gigabytes, name = node.get_read_write_buffers_sizes() / GB, _extern(node)
                if listed:
                    print(part, f"{gigabytes:.4f}", name or _fused(node), file=sys.stderr, flush=True)
                if not any(n in name for n in NOT_COUNTED):
                    moved[part] += gigabytes
        return make_boxed_func(graph_module.forward)

    return lambda graph_module, inputs: compile_fx.compile_fx(graph_module, inputs, inner_compile=lower)


def _extern(node: scheduler.BaseSchedulerNode) -> str:
    """The name of the operator that a node calls; empty for a kernel of Inductor's own."""
    if not isinstance(node, scheduler.ExternKernelSchedulerNode):
        return ""
    return str(getattr(node.node, "op_overload", None) or getattr(node.node, "python_kernel_name", None))


def _fused(node: scheduler.BaseSchedulerNode) -> list[str]:
    """The tensors that a kernel reads and writes, with their sizes in GB."""
    moved = node.get_read_write_buffer_accesses(include_reads=True, include_writes=True)
    written = {dep.name for dep in node.read_writes.writes}
    return [f"{'w' if name in written else 'r'} {name} {size / GB:.3f}" for name, size in moved.items() if size > 1e6]


def compiled(listed: bool) -> dict[str, float]:
    """The same of the layers as `train` compiles them, but with fixed shapes; their gradients are added outside."""
    moved = {"forward": 0.0, "backward": 0.0}
    pretend()
    with compiling():
        model = of_layers(2)  # whose last one is not compiled
        wrapped, packed = placed(model), batch(TOKENS)
        # Not dynamic as in `train`: so each size is a number.
        compile_layers(model, backend=counting(moved, listed), fullgraph=True, dynamic=False)
        wrapped(packed, LossConfig(), 8.0).loss.backward()
    weights = sum(_bytes(p) for p in model.backbone.layers[0].parameters())
    moved["gradients added"] = 3 * weights / GB  # two are read, one is written
    return {**moved, "total": sum(moved.values())}


def main() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        packed = batch(TOKENS)
        found = {"tokens": packed.tokens, "keys": packed.segments.kv_index.numel(), "eager": eager()}
        print(found, file=sys.stderr, flush=True)
        print(json.dumps({**found, "compiled": compiled("list" in sys.argv)}))


if __name__ == "__main__":
    main()
