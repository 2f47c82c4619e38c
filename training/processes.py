"""The processes that train together: one, or those that `torchrun` or `accelerate launch` started. The home of
`accelerate`.

All of them go through the same steps; the first one writes, and speaks, for all. They must see the same folders.
"""

from __future__ import annotations

import torch
from accelerate import Accelerator


def accelerator() -> Accelerator:
    """This process among those that train together, on its device; they talk through NCCL on GPUs, Gloo on CPUs."""
    # Unless told that there is nothing but the CPU, accelerate lets processes without a GPU train each for itself.
    return Accelerator(cpu=not torch.accelerator.is_available())


def is_first() -> bool:
    """Whether this is the process that writes."""
    return accelerator().is_main_process


def wait_for_all() -> None:
    """Returns when every process has come here."""
    accelerator().wait_for_everyone()
