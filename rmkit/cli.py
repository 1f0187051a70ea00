"""What every program does around its work: quiet libraries, one boxed sentence for an error, an exit status."""

import os
import signal
import warnings
from collections.abc import Callable

import datasets
import torch.distributed as dist
from rich.console import Console
from transformers.utils import logging as transformers_logging

from rmkit import errors, terminal
from rmkit.distributed import collectives, launch


def run(work: Callable[[Console], int], interrupted: str, again: str = "Start the command again") -> int:
    """Do `work` and return its status; 2 with a boxed sentence on a user's error, 130 with `interrupted` on Ctrl-C, 1
    with what to do `again` where another process of the run was lost.

    Progress bars of other libraries are left off in a log; `datasets` gets its own back afterwards.
    """
    warnings.filterwarnings("ignore", category=FutureWarning)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers_logging.disable_progress_bar()
    console = Console(emoji=False)  # a file may be called :smile:
    bars = not datasets.are_progress_bars_disabled()
    if not console.is_terminal:
        datasets.disable_progress_bars()
    try:
        return work(console)
    except errors.AgreedError as error:
        if collectives.rank() == 0:
            terminal.refuse(error)
        if dist.is_initialized():
            dist.barrier()  # the launcher ends all when the first one leaves, so nobody does before it is told
        return 2
    except (ValueError, OSError) as error:  # OSError: a full disk, a folder that is not ours
        terminal.refuse(error)
        return 2
    except RuntimeError as error:
        before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher's, which would come before our word
        if (told := launch.lost(error)) is None:
            signal.signal(signal.SIGTERM, before)
            raise
        terminal.refuse(f"{told} {again}")
        return 1
    except KeyboardInterrupt:
        terminal.refuse(interrupted)
        return 130
    finally:
        if bars:
            datasets.enable_progress_bars()
