"""Several processes train what one trains: the same losses, averages and checkpoints, for any number of them."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ldmkit.errors import PluginError, ResourceError
from ldmkit.training.caching import latents
from ldmkit.training.checkpointing.checkpoints import Checkpoint, Checkpoints
from ldmkit.training.diffusion import train_diffusion, trainable
from ldmkit.training.logging.log import Log, read
from ldmkit.training.optim import Group
from ldmkit.training.parallel.ranks import Ranks
from ldmkit.training.runtime import Runtime
from ldmkit.training.stop import Interrupted, Stop

InRanks = Callable[..., list[Any]]
# Networks compute in float64, where another order of sums is far below; what is logged has six digits.
TOLERANCE = 1.1e-5


def make(toy: SimpleNamespace) -> Any:
    """In float64, and without the layers that draw by call, and so differ by rank."""
    model = toy.in_double(toy.model())
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def train(
    toy: SimpleNamespace,
    folder: Path,
    ranks: Ranks | None = None,
    *,
    model: Any = None,
    at: Callable[[int], None] = lambda step: None,
    changes: Mapping[str, Any] | None = None,
    **options: Any,
) -> Any:
    """One process' share of the stage, as `Stages` calls it."""
    ranks = ranks or Ranks()

    def observer(stage: str, step: int, values: Mapping[str, float]) -> None:
        at(step)

    return train_diffusion(
        model or make(toy),
        toy.data(),
        toy.data(),
        settings=toy.settings(log_every=1, **(changes or {})),
        seed=5,
        checkpoints=Checkpoints(folder / "diffusion", ranks=ranks),
        log=Log(folder if ranks.first else None, ranks=ranks, observer=observer if ranks.first else None),
        ranks=ranks,
        **{"stop": Stop(), **options},
    )


def series(folder: Path, name: str) -> list[float]:
    return [line[name] for line in read(folder / "metrics.jsonl") if name in line]


def newest(folder: Path) -> Checkpoint:
    found = Checkpoints(folder / "diffusion").newest()
    assert found is not None
    return found


def digest(tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode() + tensors[name].detach().contiguous().numpy().tobytes())
    return found.hexdigest()


def assert_same_training(one: Path, other: Path) -> None:
    """Losses, validation, gradient norms, counters, and the moments, which are sums of all gradients."""
    for name in ("loss", "validation", "gradient_norm", "lr", "present/label"):
        assert series(one, name)
        assert series(other, name) == pytest.approx(series(one, name), abs=TOLERANCE, rel=TOLERANCE), name
    first, second = newest(one), newest(other)
    assert dict(second.state) == dict(first.state)
    assert set(first.manifest["files"]) == set(second.manifest["files"])
    moments, others = first.tensors("model-optimizer"), second.tensors("model-optimizer")
    assert set(moments) == set(others)
    for name, value in moments.items():
        assert torch.allclose(others[name], value, atol=TOLERANCE * float(value.abs().max()) + 1e-9, rtol=1e-3), name
    for file in ("model", "ema"):
        assert {k: v.shape for k, v in first.tensors(file).items()} == {
            k: v.shape for k, v in second.tensors(file).items()
        }


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, toy: SimpleNamespace) -> Path:
    """What one process makes of six steps."""
    folder = tmp_path_factory.mktemp("one")
    train(toy, folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True], ids=["ddp", "fsdp"])
def test_two_processes_train_what_one_trains(
    toy: SimpleNamespace, one: Path, tmp_path: Path, in_ranks: InRanks, shard: bool
) -> None:
    def action(ranks: Ranks) -> dict[str, Any]:
        model = make(toy)
        state = train(toy, tmp_path, ranks, model=model, shard=shard)
        raw = {name: p.detach().clone() for name, p in trainable(model).items()}
        state.ema.copy_to_parameters()
        average = {name: p.detach().clone() for name, p in trainable(model).items()}
        return {"raw": raw, "average": average, "position": state.position}

    first, second = in_ranks(2, action)
    assert first["position"] == second["position"] == 48
    assert digest(first["raw"]) == digest(second["raw"]), "the same weights, to the bit"
    assert digest(first["average"]) == digest(second["average"]) != digest(first["raw"])
    assert_same_training(one, tmp_path)
    assert digest(newest(tmp_path).tensors("ema")) == digest(first["average"]), "what was handed in has what was saved"
    saved = newest(tmp_path).tensors("model")
    assert digest({name: saved[name] for name in first["raw"]}) == digest(first["raw"])


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True], ids=["ddp", "fsdp"])
def test_parts_of_a_batch_on_each_process(
    toy: SimpleNamespace, one: Path, tmp_path: Path, in_ranks: InRanks, shard: bool
) -> None:
    changes = {"accumulate": 3}  # of the four rows of each: 2 and 2
    steps = in_ranks(2, lambda ranks: train(toy, tmp_path, ranks, changes=changes, shard=shard).step)
    assert steps == [6, 6]
    assert_same_training(one, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("chain", [("2 copies", "2 shards", "1"), ("1", "2 shards", "4 copies")], ids="-".join)
def test_going_on_with_another_number_of_processes(
    toy: SimpleNamespace, one: Path, tmp_path: Path, in_ranks: InRanks, chain: tuple[str, ...]
) -> None:
    """Two steps each: all in all the losses are those of one process in one go."""
    for link, how in enumerate(chain):
        until = 2 * (link + 1)

        def action(ranks: Ranks, until: int = until, how: str = how) -> None:
            stop = Stop()
            at = {"at": lambda step: stop.request() if step == until < 6 else None}
            train(toy, tmp_path, ranks, stop=stop, shard="shards" in how, **at)

        if how == "1":
            with pytest.raises(Interrupted) if until < 6 else pytest.MonkeyPatch.context():
                action(Ranks())
        else:
            found = in_ranks(int(how[0]), action)
            assert [type(outcome) for outcome in found] == [Interrupted if until < 6 else type(None)] * int(how[0])
        assert newest(tmp_path).step == until
        assert newest(tmp_path).state["position"] == 8 * until
    assert_same_training(one, tmp_path)


def test_a_signal_to_one_stops_all_after_the_same_step(toy: SimpleNamespace, tmp_path: Path, in_ranks: InRanks) -> None:
    def action(ranks: Ranks) -> None:
        forwards: list[int] = []

        def count(*_: Any) -> None:
            forwards.append(1)
            if ranks.rank == 1 and len(forwards) == 2:
                os.kill(os.getpid(), signal.SIGTERM)

        with Stop() as stop:
            model = make(toy)
            model.denoiser.register_forward_pre_hook(count)
            train(toy, tmp_path, ranks, stop=stop, model=model)

    found = in_ranks(2, action)
    assert [str(error) for error in found] == ["stopped by SIGTERM while training the diffusion stage, step 2 of 6"] * 2
    assert [error.exit_code for error in found] == [143, 143]
    assert newest(tmp_path).step == 2


def test_one_that_dies_ends_the_others_with_a_message(toy: SimpleNamespace, tmp_path: Path, in_ranks: InRanks) -> None:
    def action(ranks: Ranks) -> None:
        model = make(toy)
        forwards: list[int] = []

        def count(network: nn.Module, *_: Any) -> None:
            forwards.append(int(network.training))
            if ranks.rank == 1 and sum(forwards) == 3:
                os.kill(os.getpid(), signal.SIGKILL)

        model.denoiser.register_forward_pre_hook(count)
        try:
            train(toy, tmp_path, ranks, model=model)
        except RuntimeError as error:
            raise ranks.explained(error) from None

    first, second = in_ranks(2, action)
    assert second == -signal.SIGKILL
    assert isinstance(first, ResourceError)
    assert "another process of this run died" in str(first)
    assert newest(tmp_path).step == 2, "the last checkpoint is intact"


def test_numbers_that_are_not_finite_on_one_process_are_skipped_by_all(
    toy: SimpleNamespace, tmp_path: Path, in_ranks: InRanks
) -> None:
    def action(ranks: Ranks) -> tuple[int, int, str]:
        model = make(toy)
        label = model.conditioners["label"]
        calls: list[int] = []

        def poison(value: Tensor) -> Tensor:
            calls.append(int(value.requires_grad))
            if ranks.rank == 1 and sum(calls) == 3 and value.requires_grad:
                zero = value - value.detach()
                return value + torch.sqrt(zero * zero)  # whose gradient at zero is not a number
            return value

        label.poison = poison
        state = train(toy, tmp_path, ranks, model=model)
        return state.skipped, state.step, digest(trainable(model))

    first, second = in_ranks(2, action)
    assert first == second
    assert first[:2] == (1, 6)


def test_a_parameter_that_takes_no_part_is_named(toy: SimpleNamespace, tmp_path: Path, in_ranks: InRanks) -> None:
    def action(ranks: Ranks) -> None:
        model = make(toy)
        model.conditioners["label"].spare = nn.Linear(2, 2)
        train(toy, tmp_path, ranks, model=model)

    for error in in_ranks(2, action):
        assert isinstance(error, PluginError)
        assert "conditioners.label.spare.weight and 1 more took no part in the loss" in str(error)


@pytest.mark.slow
def test_shards_agree_on_the_loss_scale_of_half_precision(
    toy: SimpleNamespace, tmp_path: Path, in_ranks: InRanks
) -> None:
    """An overflow in one rank's shard is everybody's: all skip, and all halve their scale."""
    half, changes = Runtime(dtype=torch.float16), {"steps": 4, "clip": None}
    train(toy, tmp_path / "one", runtime=half, changes=changes)

    def action(ranks: Ranks) -> tuple[int, float, int, str]:
        model, calls = make(toy), []

        def poison(value: Tensor) -> Tensor:
            calls.append(int(value.requires_grad))
            if ranks.rank == 1 and sum(calls) == 3 and value.requires_grad:
                zero = value - value.detach()
                return value + torch.sqrt(zero * zero)  # whose gradient at zero is not a number
            return value

        model.conditioners["label"].poison = poison
        state = train(toy, tmp_path / "two", ranks, model=model, runtime=half, changes=changes, shard=True)
        return state.skipped, state.scaler.get_scale(), state.scaler._get_growth_tracker(), digest(trainable(model))

    first, second = in_ranks(2, action)
    assert first == second
    one = newest(tmp_path / "one").state
    assert first[0] == one["skipped"] + 1
    assert first[1] == one["scaler"]["scale"] / 2
    assert series(tmp_path / "two", "loss")[:2] == pytest.approx(series(tmp_path / "one", "loss")[:2], abs=1e-2)


@pytest.mark.slow
def test_groups_checkpointing_and_averages_after_the_fact_in_shards(
    toy: SimpleNamespace, tmp_path: Path, in_ranks: InRanks
) -> None:
    """What finds its parameters by name, or computes twice, does so in shards too."""
    changes = {"post_hoc": {"every": 3}, "validate_every": 6}

    def action(ranks: Ranks, folder: Path, shard: bool = True) -> None:
        model = make(toy)
        left = trainable(model)
        own = {name: left.pop(name) for name in list(left) if name.startswith("conditioners.label.")}
        groups = [Group(left), Group(own, lr=1e-3, starts=4)]
        runtime = Runtime(checkpointing=True)
        train(toy, folder, ranks, model=model, groups=groups, runtime=runtime, changes=changes, shard=shard)

    action(Ranks(), tmp_path / "one", shard=False)
    assert in_ranks(2, lambda ranks: action(ranks, tmp_path / "two")) == [None, None]
    assert series(tmp_path / "two", "loss") == pytest.approx(series(tmp_path / "one", "loss"), abs=TOLERANCE)
    table = "conditioners.label.table.weight"
    first, second = (newest(tmp_path / name).tensors("model") for name in ("one", "two"))
    assert torch.allclose(first[table], second[table], atol=1e-5)
    from ldmkit.training.posthoc import snapshots

    found = [snapshots(tmp_path / name / "diffusion" / "post-hoc") for name in ("one", "two")]
    assert [[s.step for s in one] for one in found] == [[3, 6], [3, 6]]


def test_latents_are_encoded_by_the_first_and_shared(toy: SimpleNamespace, tmp_path: Path, in_ranks: InRanks) -> None:
    alone = latents.build(toy.model().autoencoder, toy.data(), folder=tmp_path / "one", key="k", seed=5)

    def action(ranks: Ranks) -> tuple[Any, int, float]:
        encoder = toy.model().autoencoder
        calls: list[int] = []
        encoder.register_forward_pre_hook(lambda *_: calls.append(1))
        posterior, encoder.posterior = encoder.posterior, lambda images: (calls.append(1), posterior(images))[1]
        folder = tmp_path / ("two" if ranks.first else "nowhere")  # as on another machine
        cache = latents.build(encoder, toy.data(), folder=folder, key="k", seed=5, ranks=ranks)
        found = latents.calibrate(encoder, toy.data(), scale="std", seed=5, cache=cache, ranks=ranks)
        return cache.posteriors, len(calls), found.overall_std

    first, second = in_ranks(2, action)
    assert first[1] > 0
    assert second[1] == 0, "only the first one encodes"
    assert first[2] == second[2] > 0
    for found in (first[0], second[0]):
        for item in range(24):
            for name, value in alone.posteriors.row(item).items():
                assert torch.equal(found.row(item)[name], value)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.slow
def test_the_plan_says_what_is_held_and_sent(toy: SimpleNamespace, in_ranks: InRanks) -> None:
    """The arithmetic of `plan --gpus` beside what torch.distributed does: a bucket's bytes, a shard's bytes."""
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    from ldmkit.training.parallel.distributed import Replicated, Sharded

    def action(ranks: Ranks) -> tuple[int, int]:
        copies, model = Replicated(make(toy), Runtime()), make(toy)
        sent: list[int] = []

        def hook(group, bucket):  # torch looks at annotations, and these would be strings
            sent.append(bucket.buffer().nbytes)
            return allreduce_hook(group, bucket)

        copies._parallel.register_comm_hook(None, hook)
        batch = model.batch([toy.data().sample(row) for row in range(4)])
        for last in (False, True):
            with copies.collecting(last=last):
                copies.loss(batch, model.draw(batch.positions, 0))[0].backward()
        shards = trainable(Sharded(model, Runtime()).model)
        return sum(sent), sum(parameter.to_local().nbytes for parameter in shards.values())

    weights = sum(parameter.nbytes for parameter in trainable(make(toy)).values())
    first, second = in_ranks(2, action)
    assert first[0] == second[0] == weights, "once, though the batch came in two parts"
    assert first[1] + second[1] == weights
    assert abs(first[1] - second[1]) < 0.1 * weights
