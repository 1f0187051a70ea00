"""Copies on the host of what is saved while training goes on.

From a GPU they go into pinned memory on the stream that trains, one after the other, and are waited for once. PyTorch
keeps pinned memory that is let go of and hands it out at the next save, so a save pays for fresh pages only once. It
is let go of when the writer is done, and a save waits for the writer of the one before: no copy is written into twice.
"""

import torch
from torch import Tensor


def copied(tensor: Tensor) -> Tensor:
    """A contiguous copy, sharded as the tensor is. From a GPU it holds nothing yet: see `wait`."""
    # Made contiguous before, because a copy that is still under way cannot be rearranged. Pinned by non_blocking.
    return tensor.detach().contiguous().to("cpu", copy=True, non_blocking=True)


def wait() -> None:
    """Wait until every copy so far holds what it should."""
    if torch.cuda.is_available():
        torch.cuda.current_stream().synchronize()
