"""Bytes that a compiled decoder layer moves besides its matrix products, as Inductor counts them; printed as JSON.

The graphs are lowered for a Hopper GPU and fused, as they would be there; no code is made of them, so none is needed.
`python -m support.dry_cuda.traffic`.
"""

import json
from types import SimpleNamespace

import support.dry_cuda.device  # noqa: F401  # isort: skip (before torch)
import torch
from torch._dynamo import device_interface
from torch._functorch.aot_autograd import make_boxed_func
from torch._inductor import compile_fx, config, scheduler
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode

from rmkit.config import LossConfig
from rmkit.model.compile import compile_layers, compiling
from support.dry_cuda.models import LLAMA_3_8B, batch, built, placed

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


def pretend() -> None:
    """Have Inductor see a Hopper GPU with Triton on it, and compile without running anything on it."""
    torch.cuda.get_device_properties = lambda *_: HOPPER
    torch.cuda.get_device_capability = lambda *_: (9, 0)
    cuda = device_interface.CudaInterface
    cuda.Worker.get_device_properties = cuda.get_device_properties = staticmethod(lambda *_, **__: HOPPER)
    cuda.get_compute_capability = staticmethod(lambda *_, **__: 90)
    scheduler.has_triton = lambda *_: True
    config.joint_graph_constant_folding = config.pattern_matcher = False  # they compute on the device


def counting(moved: dict[str, list[float]]):
    """A backend that adds the GB of each graph's fused kernels to `moved`, forward and backward."""

    def lower(graph_module, inputs, **how):
        fake_mode = compile_fx.fake_tensor_prop(graph_module, inputs)
        with V.set_fake_mode(fake_mode):
            compile_fx._recursive_post_grad_passes(graph_module, bool(how.get("is_inference")))
        compile_fx.record_original_output_strides(graph_module)
        graph = GraphLowering(graph_module, shape_env=compile_fx.shape_env_from_inputs(inputs))
        debug = V.set_debug_handler(compile_fx.DebugContext())
        with V.set_fake_mode(fake_mode), V.set_graph_handler(graph), debug, V.set_real_inputs(inputs):
            graph.run(*inputs)
            graph.init_wrapper_code()
            graph._update_scheduler()
            _, by_node, _ = graph.count_bytes()
        fused = [n for node, n in by_node if not isinstance(node, scheduler.ExternKernelSchedulerNode)]
        moved["backward" if how.get("is_backward") else "forward"].append(sum(fused) / 1e9)
        return make_boxed_func(graph_module.forward)

    return lambda graph_module, inputs: compile_fx.compile_fx(graph_module, inputs, inner_compile=lower)


def main() -> None:
    pretend()
    moved = {"forward": [], "backward": []}
    with FakeTensorMode(allow_non_fake_inputs=True), compiling():
        model = built("llama", {**LLAMA_3_8B, "num_hidden_layers": 2})
        wrapped = placed(model)
        # With open shapes Inductor counts no bytes of what depends on them.
        compile_layers(model, backend=counting(moved), fullgraph=True, dynamic=False)
        packed = batch(16_384)
        wrapped(packed, LossConfig(), 8.0).loss.backward()
    print(json.dumps({**moved, "tokens": packed.tokens}))


if __name__ == "__main__":
    main()
