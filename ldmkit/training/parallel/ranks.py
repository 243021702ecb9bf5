"""The processes of one run: which is the first, what it decides for all, what is summed over all. One process is the usual case.

Loads torch only where there are several; `ldmkit.training.parallel.launch` joins them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from ldmkit.errors import LdmkitError, ResourceError
from ldmkit.training.stop import Stop

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup
    from torch.distributed.distributed_c10d import Store

T = TypeVar("T")

LINGERING = timedelta(seconds=20)
BROKEN = ("connection closed", "connection reset", "connection refused", "broken pipe", "timed out", "timeout", "nccl")


class LostRankError(ResourceError):
    """Another process of the run is gone, and this one cannot go on."""


@dataclass(frozen=True)
class Ranks:
    """Who this process is among those of the run. Every method is called by all of them, in the same order.

    Args:
        rank: 0 to count - 1; rank 0, the first, writes all files and speaks to the user.
        count: how many there are.
        local: which one of its machine's it is, and so which GPU is its own.
    """

    rank: int = 0
    count: int = 1
    local: int = 0
    patient: ProcessGroup | None = None  # for what the first one does alone
    store: Store | None = None  # where one that fails says why

    @property
    def first(self) -> bool:
        """Whether this is the one that decides and writes."""
        return self.rank == 0

    def own_name(self, name: str) -> str:
        """A name for what each rank has for itself; the first one's is that of a single process."""
        return name if self.first else f"{name}-rank-{self.rank}"

    def rows(self, total: int) -> range:
        """This rank's share of `total` rows, in order; all of them on every rank, where there are not enough for each."""
        if total < self.count:
            return range(total)
        ends = [total * rank // self.count for rank in (self.rank, self.rank + 1)]
        return range(*ends)

    def device(self, asked: str) -> str:
        """What a recipe's `runtime.device` means here: of several GPUs, each rank of a machine takes its own.

        Raises:
            ResourceError: a machine has fewer GPUs than processes, or all are asked to use one.
        """
        import torch

        if self.count == 1 or asked not in ("auto", "cuda") or not torch.cuda.is_available():
            if self.count > 1 and asked.startswith("cuda:"):
                raise ResourceError(
                    f"runtime.device is {asked}, and there are {self.count} processes",
                    hint="leave it at `auto` or `cuda`: each takes a GPU of its own",
                )
            return asked
        if self.local >= (there := torch.cuda.device_count()):
            raise ResourceError(
                f"process {self.local + 1} of this machine finds {there} GPU{'s' * (there > 1)}",
                hint=f"start {there} a machine: torchrun --nproc-per-node {there} ...",
            )
        torch.cuda.set_device(self.local)
        return f"cuda:{self.local}"

    # the first one decides

    def decide(self, action: Callable[[], T]) -> T:
        """What `action` gives on the first rank, for all; the others wait, however long it takes.

        Its error is raised by all; an error that is none of ldmkit's raises ResourceError on the others.
        """
        if self.count == 1:
            return action()
        if not self.first:
            found, failure = self._tell(None)
            if failure is not None:
                raise failure
            answer: T = found
            return answer
        try:
            answer = action()
        except BaseException as error:
            self._tell((None, _as_told(error)))
            raise
        self._tell((answer, None))
        return answer

    def _tell(self, message: Any) -> Any:
        from torch import distributed as dist

        box = [message]
        dist.broadcast_object_list(box, src=0, group=self.patient)
        return box[0]

    def share(self, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors that `make` gives on the first rank, for all, on the CPU. Nobody needs to see the first one's files."""
        if self.count == 1:
            return dict(make())
        import torch
        from torch import distributed as dist

        own: dict[str, Tensor] = {}

        def described() -> list[tuple[str, torch.Size, torch.dtype]]:
            own.update({name: value.detach().cpu().contiguous() for name, value in make().items()})
            return [(name, value.shape, value.dtype) for name, value in own.items()]

        for name, shape, dtype in self.decide(described):
            value = own[name] if self.first else torch.empty(shape, dtype=dtype)
            if value.numel():
                dist.broadcast(value.reshape(-1).view(torch.uint8), src=0, group=self.patient)
            own[name] = value
        return own

    # all of them together

    def agree(self, stop: Stop) -> bool:
        """Whether a signal reached any of them: what one sees later than the others must not part them."""
        if self.count == 1:
            return stop.requested
        import torch
        from torch import distributed as dist

        number = torch.tensor(stop.number or 0)
        dist.all_reduce(number, op=dist.ReduceOp.MAX)
        if int(number) and not stop.requested:
            stop.request(int(number))
        return int(number) > 0

    def check(self, stop: Stop, doing: str = "") -> None:
        """Raises `Interrupted` on all of them if a signal reached any."""
        if self.agree(stop):
            stop.check(doing)

    def total(self, values: Sequence[float]) -> list[float]:
        """The sum of each number over all ranks."""
        if self.count == 1:
            return list(values)
        import torch
        from torch import distributed as dist

        sums = torch.tensor(list(values), dtype=torch.float64)
        dist.all_reduce(sums)
        return [float(value) for value in sums]

    def means(self, values: Mapping[str, float]) -> dict[str, float]:
        """The mean of each number over all ranks, which have the same names."""
        if self.count == 1:
            return dict(values)
        return {name: total / self.count for name, total in zip(values, self.total(list(values.values())), strict=True)}

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Each tensor, of any shape, becomes its mean over all ranks, in place; one message for all of them."""
        if self.count == 1 or not tensors:
            return
        import torch
        from torch import distributed as dist

        flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.count
        for tensor, part in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.detach().copy_(part.view_as(tensor))

    def alike(self, tensors: Mapping[str, Tensor]) -> None:
        """The tensors become those of the first rank, in place: what all begin from is the same to the bit."""
        if self.count == 1:
            return
        for name, value in self.share(lambda: tensors).items():
            tensors[name].detach().copy_(value)

    # when one fails

    def explained(self, error: BaseException) -> BaseException:
        """`error`; where it only says that another rank is gone, a LostRankError that says which, and why if known."""
        text = str(error).lower()
        if self.count == 1 or isinstance(error, LdmkitError) or not isinstance(error, RuntimeError):
            return error
        if not any(word in text for word in BROKEN):
            return error
        if said := [f"rank {rank} ended: {reason}" for rank, reason in self._reasons()]:
            return LostRankError("; ".join(said), hint="the last checkpoint is intact; the same command continues")
        hangs = "timed out" in text or "timeout" in text
        return LostRankError(
            f"another process of this run {'gave no answer for a long time' if hangs else 'died'}",
            hint="the last checkpoint is intact; the same command continues. The launcher's summary names the rank and its code",
        )

    def leave(self, error: BaseException) -> None:
        """Says to the others why this rank ends."""
        if self.store is not None:
            with suppress(RuntimeError):  # the store is gone with the launcher, or with the rank that held it
                self.store.set(_reason(self.rank), json.dumps(str(error) or type(error).__name__))

    def linger(self) -> None:
        """Waits until the first rank, which has something to say and to write, is gone: a launcher ends all as one has ended."""
        import torch
        from torch import distributed as dist

        with suppress(RuntimeError):  # it sends nothing: the connection closes, or the time is up
            work = dist.irecv(torch.zeros(1), src=0)
            assert work is not None
            work.wait(LINGERING)

    def _reasons(self) -> Iterator[tuple[int, str]]:
        for rank in range(self.count):
            try:
                if rank != self.rank and self.store is not None and self.store.check([_reason(rank)]):
                    yield rank, json.loads(self.store.get(_reason(rank)))
            except RuntimeError:  # the store went with the rank that held it
                return


def _reason(rank: int) -> str:
    return f"ended/{rank}"


def _as_told(error: BaseException) -> Exception:
    """The first rank's error as the others raise it, which need not say it again."""
    if not isinstance(error, Exception) or not type(error).__module__.startswith("ldmkit."):
        error = ResourceError(f"the first process failed: {str(error) or type(error).__name__}")
    told = copy(error)
    vars(told)["elsewhere"] = True
    return told
