"""A process of a training run under torchrun: fits the tiny model and leaves what it saw and ended with.

Usage: torchrun --nproc_per_node=2 tests/fit_process.py OUT [KILL_AFTER]
       python tests/fit_process.py OUT    two processes that share one import of torch, told what torchrun tells its own

Leaves OUT/rank-N.pt: the rows of each epoch, the weights at the end, the history, and whether it wrote any state.
With KILL_AFTER the first process kills itself as soon as it has written its state so many times.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
from pathlib import Path

import torch

from tests.fit_support import OPTIONS, tiny_rows, without_dropout
from training import fit as fitting
from training import processes


def main(out: Path, kill_after: int) -> None:
    rank = processes.accelerator().process_index
    rows = tiny_rows()
    seen: list[int] = []
    written = 0
    take, write = fitting._my_rows, fitting.whole_file

    def noted(*arguments):
        index, share = take(*arguments)
        seen.extend(index[share > 0].tolist())
        return index, share

    @contextlib.contextmanager
    def counted(path):
        nonlocal written
        with write(path) as file:
            yield file
        written += 1
        if written == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)

    fitting._my_rows, fitting.whole_file = noted, counted
    model, tokenizer = without_dropout()
    history = fitting.fit(model, tokenizer, rows, OPTIONS, name="test", state=out / "state", state_seconds=0)
    answers = fitting.predict(model, tokenizer, rows, name="test")
    torch.save(
        {
            "seen": seen,
            "weights": model.state_dict(),
            "history": history,
            "written": written,
            "answers": torch.from_numpy(answers),
        },
        out / f"rank-{rank}.pt",
    )


def start_two(out: Path) -> int:
    """Two processes of one run; their exit codes, joined."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    started = []
    for rank in ("0", "1"):
        os.environ |= {"RANK": rank, "LOCAL_RANK": rank}
        started.append(multiprocessing.get_context("fork").Process(target=main, args=(out, 0)))
        started[-1].start()
    for process in started:
        process.join()
    return int(any(process.exitcode for process in started))


if __name__ == "__main__":
    if "RANK" not in os.environ:
        sys.exit(start_two(Path(sys.argv[1])))
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
