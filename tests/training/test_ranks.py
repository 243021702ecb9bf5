"""What the processes of a run say to each other."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch

from ldmkit.errors import DataError, ResourceError
from ldmkit.training.parallel.launch import launched
from ldmkit.training.parallel.ranks import Ranks
from ldmkit.training.stop import Interrupted, Stop

InRanks = Callable[..., list[Any]]


def test_alone_nothing_is_asked_of_anybody() -> None:
    ranks, stop = Ranks(), Stop()
    assert (ranks.first, ranks.own_name("noise"), list(ranks.rows(3))) == (True, "noise", [0, 1, 2])
    assert ranks.decide(lambda: 4) == 4
    assert ranks.total([1.5, 2]) == [1.5, 2]
    assert ranks.means({"loss": 0.25}) == {"loss": 0.25}
    gradient = torch.tensor([1.0, 3.0])
    ranks.average([gradient])
    assert gradient.tolist() == [1, 3]
    ranks.agree(stop)
    assert not stop.requested


@pytest.mark.parametrize(("count", "total"), [(2, 8), (3, 8), (8, 8), (5, 64)])
def test_shares_are_all_rows_once_and_nearly_equal(count: int, total: int) -> None:
    shares = [list(Ranks(rank, count).rows(total)) for rank in range(count)]
    assert [row for share in shares for row in share] == list(range(total))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_too_few_rows_are_everybodys() -> None:
    assert [list(Ranks(rank, 3).rows(2)) for rank in range(3)] == [[0, 1]] * 3


def test_what_is_said(in_ranks: InRanks) -> None:
    """One start of two processes for all of it: each costs more than what it tests."""
    odd = {"a": torch.tensor(3.5), "b": torch.tensor([True, False]), "c": torch.zeros(0, 4), "d": torch.ones(2, 3).t()}
    odd |= {"e": torch.tensor([1.5, -2.0], dtype=torch.bfloat16), "f": torch.tensor([2**40])}

    def action(ranks: Ranks) -> dict[str, Any]:
        rank = ranks.rank
        found: dict[str, Any] = {"rank": (rank, ranks.count, ranks.first)}
        found["decided"] = ranks.decide(lambda: {"told by": rank})
        found["shared"] = ranks.share(lambda: odd if rank == 0 else {"never": torch.zeros(())})
        found["total"] = ranks.total([1.0 + rank, 10.0])
        found["means"] = ranks.means({"loss": 1.0 + rank, "other": 5.0})
        gradients = [torch.full((2, 2), float(rank)), torch.tensor(4.0 * rank)]
        ranks.average(gradients)
        found["averaged"] = gradients
        mine = {"w": torch.full((3,), float(rank))}
        ranks.alike(mine)
        found["alike"] = mine["w"]
        stop = Stop()
        ranks.agree(stop)
        found["before"] = stop.requested
        if rank == 1:
            stop.request(signal.SIGINT)
        ranks.agree(stop)
        found["signal"] = stop.number
        return found

    first, second = in_ranks(2, action)
    assert (first["rank"], second["rank"]) == ((0, 2, True), (1, 2, False))
    for one in (first, second):
        assert one["decided"] == {"told by": 0}
        assert list(one["shared"]) == list(odd)
        for name, value in odd.items():
            assert one["shared"][name].dtype == value.dtype
            assert torch.equal(one["shared"][name], value)
        assert one["total"] == [3.0, 20.0]
        assert one["means"] == {"loss": 1.5, "other": 5.0}
        assert [value.tolist() for value in one["averaged"]] == [[[0.5, 0.5], [0.5, 0.5]], 2.0]
        assert one["alike"].tolist() == [0, 0, 0]
        assert one["before"] is False
        assert one["signal"] == signal.SIGINT


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (DataError("no such picture", hint="look", where="a.png"), DataError, "a.png: no such picture"),
        (Interrupted("stopped by SIGTERM", exit_code=143), Interrupted, "stopped by SIGTERM"),
        (KeyError("oops"), ResourceError, "the first process failed: 'oops'"),
    ],
)
def test_the_first_ones_error_is_everybodys(
    in_ranks: InRanks, error: Exception, kind: type[Exception], words: str
) -> None:
    def fail() -> None:
        raise error

    first, second = in_ranks(2, lambda ranks: ranks.decide(fail))
    assert type(first) is type(error)
    assert type(second) is kind
    assert str(second).splitlines()[0] == words
    assert second.elsewhere, "and it is said once"
    assert isinstance(first, KeyError) or not first.elsewhere
    if isinstance(second, Interrupted):
        assert second.exit_code == 143


def test_one_that_fails_says_why_and_one_that_dies_is_missed(in_ranks: InRanks) -> None:
    def action(ranks: Ranks, die: bool) -> Any:
        if ranks.rank == 1:
            if die:
                os.kill(os.getpid(), signal.SIGKILL)
            raise DataError("its disk is gone")
        try:
            ranks.total([1.0])
        except RuntimeError as error:
            raise ranks.explained(error) from None

    first, second = in_ranks(2, lambda ranks: action(ranks, die=False))
    assert isinstance(second, DataError)
    assert isinstance(first, ResourceError)
    assert "rank 1 ended: its disk is gone" in str(first)
    first, second = in_ranks(2, lambda ranks: action(ranks, die=True))
    assert second == -signal.SIGKILL
    assert isinstance(first, ResourceError)
    assert "another process of this run died" in str(first)
    assert "the same command continues" in str(first)


def test_other_errors_stay_what_they_are() -> None:
    several = Ranks(0, 2)
    for error in (RuntimeError("shapes do not fit"), DataError("connection closed"), OSError("timed out")):
        assert several.explained(error) is error
    broken = RuntimeError("Connection closed by peer")
    assert Ranks().explained(broken) is broken, "alone, it is about something else"


def test_an_environment_that_is_incomplete(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ResourceError, match="WORLD_SIZE is 4, and RANK, MASTER_PORT are not set"), launched():
        pass
    monkeypatch.setenv("WORLD_SIZE", "many")
    with pytest.raises(ResourceError, match="WORLD_SIZE is 'many'"), launched():
        pass
    monkeypatch.setenv("WORLD_SIZE", "1")
    with launched() as ranks:
        assert ranks == Ranks()


def test_one_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", asked.append)
    assert Ranks(3, 4, local=1).device("auto") == "cuda:1"
    assert asked == [1]
    assert Ranks(1, 2, local=1).device("cpu") == "cpu"
    assert Ranks().device("auto") == "auto"
    with pytest.raises(ResourceError, match="process 3 of this machine finds 2 GPUs"):
        Ranks(2, 4, local=2).device("cuda")
    with pytest.raises(ResourceError, match=r"runtime\.device is cuda:0, and there are 2 processes"):
        Ranks(0, 2).device("cuda:0")
