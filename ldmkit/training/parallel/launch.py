"""Joins the processes that a launcher started: `torchrun` and `accelerate launch` say in the environment who is who.

Loads torch only where there are several.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from ldmkit.errors import ResourceError
from ldmkit.training.parallel.ranks import LostRankError, Ranks
from ldmkit.training.stop import Interrupted

NEEDED = ("RANK", "MASTER_ADDR", "MASTER_PORT")
TIMEOUT = timedelta(minutes=10)  # a rank that does not answer in a step for so long counts as hung
PATIENT = timedelta(days=7)  # what the first rank does alone (drawing, judging, encoding) may take its time


@contextmanager
def launched() -> Iterator[Ranks]:
    """The processes that a launcher started with this one, joined; this one alone where there is no launcher.

    Raises:
        ResourceError: the launcher's environment is incomplete or makes no sense, or the others cannot be reached.
    """
    if not _several():
        yield Ranks()
        return
    from torch import distributed as dist

    ranks = _join()
    try:
        yield ranks
    except BaseException as error:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # with it a launcher would cut this one's last words
        reason = ranks.explained(error)
        if reason is not error:
            raise reason from error
        if getattr(error, "elsewhere", False):
            ranks.linger()
        elif not isinstance(error, Interrupted | LostRankError):
            ranks.leave(error)  # the others end as their next message to this one fails
        raise
    ranks.decide(lambda: None)  # nobody leaves while another still needs the store
    dist.destroy_process_group()


def _several() -> bool:
    said = os.environ.get("WORLD_SIZE") or "1"
    if not said.strip().isdecimal():
        raise ResourceError(
            f"WORLD_SIZE is {said!r}, and says how many processes there are",
            hint="torchrun and accelerate launch set it; for one process, unset WORLD_SIZE",
        )
    return int(said) > 1


def _join() -> Ranks:
    import torch
    from torch import distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    if missing := [name for name in NEEDED if not os.environ.get(name)]:
        raise ResourceError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, and {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set",
            hint="torchrun --nproc-per-node N -m ldmkit run RECIPE sets all of them; for one process, unset WORLD_SIZE",
        )
    both = torch.cuda.is_available() and dist.is_nccl_available()
    try:
        store, rank, count = next(rendezvous("env://", timeout=TIMEOUT))
        store = PrefixStore("ldmkit", store)
        backend = "cpu:gloo,cuda:nccl" if both else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=TIMEOUT)
    except (RuntimeError, ValueError, OSError) as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise ResourceError(
            f"cannot join the other processes at {place}: {str(error).splitlines()[0]}",
            hint="is each of them started, with the same address, and is its port free?",
        ) from error
    patient = dist.new_group(backend="gloo", timeout=PATIENT)
    assert isinstance(patient, dist.ProcessGroup)
    return Ranks(rank, count, int(os.environ.get("LOCAL_RANK") or 0), patient, store)
