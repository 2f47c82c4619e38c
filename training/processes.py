"""The processes that train together: one, or those that `torchrun` or `accelerate launch` started. The home of
`accelerate`.

All of them go through the same steps; the first one writes, and speaks, for all. They must see the same folders.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs


def accelerator() -> Accelerator:
    """This process among those that train together, on its device; they talk through NCCL on GPUs, Gloo on CPUs."""
    # No model here has buffers that training changes, and processes differ in how many passes they make of a step.
    as_they_are = DistributedDataParallelKwargs(broadcast_buffers=False)
    # Unless told that there is nothing but the CPU, accelerate lets processes without a GPU train each for itself.
    return Accelerator(cpu=not torch.accelerator.is_available(), kwargs_handlers=[as_they_are])


def is_first() -> bool:
    """Whether this is the process that writes."""
    return bool(accelerator().is_main_process)


def wait_for_all() -> None:
    """Returns when every process has come here."""
    accelerator().wait_for_everyone()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread, for requests one by one: each is too small for several.

    Beside other work on the machine threads wait for one another more than they work: 256 requests of an export took 33
    seconds for one.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
