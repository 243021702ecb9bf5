"""The stages of a run, one after the other: autoencoder, latents, diffusion, evaluation. Each is skipped where it is done."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ldmkit import random
from ldmkit.autoencoder import AutoencoderLoss, make_loss
from ldmkit.build import build, datasets, fit, load
from ldmkit.data import Dataset
from ldmkit.errors import CheckpointError, RecipeError
from ldmkit.evaluation import Evaluation, Metric, Results, evaluate, write_pictures
from ldmkit.latent_diffusion import LatentDiffusion
from ldmkit.plugins import Registry
from ldmkit.previews import Previews
from ldmkit.recipe import Recipe
from ldmkit.rundir import RunDirectory, learned
from ldmkit.training import autoencoder as first
from ldmkit.training import cache as latents
from ldmkit.training import diffusion as second
from ldmkit.training import runtime as runtimes
from ldmkit.training.checkpoint import Checkpoints
from ldmkit.training.console import Console
from ldmkit.training.log import Log, Observer
from ldmkit.training.memory import Remembered
from ldmkit.training.opening import announce
from ldmkit.training.optim import Group
from ldmkit.training.publish import discard
from ldmkit.training.state import TrainingState, load_trained
from ldmkit.training.stop import Stop

EVALUATED = 128  # samples that are judged, unless a metric's option `count` asks for more
MODEL, EVALUATION = "model", "evaluation.json"


@dataclass
class Stages:
    """What the stages of one run share."""

    recipe: Recipe
    registry: Registry
    directory: RunDirectory
    console: Console
    stop: Stop
    observer: Observer | None = None
    facts: dict[str, Any] = field(default_factory=dict)  # for every manifest
    started: float = field(default_factory=time.monotonic)

    @cached_property
    def runtime(self) -> runtimes.Runtime:
        """Device and precision."""
        section = self.recipe.runtime
        return runtimes.resolve(
            device=section.device,
            precision=section.precision,
            compile=section.compile,
            workers=section.workers,
            threads=section.threads,
        )

    @cached_property
    def log(self) -> Log:
        """Where the numbers go."""
        return Log(self.directory.path, console=self.console, observer=self.observer)

    @cached_property
    def data(self) -> tuple[Dataset, Dataset]:
        """What is trained on, and what is held out."""
        train, validation = datasets(self.recipe, self.registry)
        return (Remembered(train) if train.finite else train), validation

    def checkpoints(self, name: str, keep: int = 2) -> Checkpoints:
        """The checkpoints of a stage; leftovers of a process that died are removed."""
        found = Checkpoints(self.directory.path / "checkpoints" / name, keep=keep, facts=self.facts)
        found.sweep()
        return found

    @property
    def seconds(self) -> float:
        """Since the start of this process's work."""
        return round(time.monotonic() - self.started, 1)

    # the run

    def execute(self) -> Results:
        """Everything that is not done yet."""
        self.stop.check()
        self.recipe = self._fitted()
        train, validation = self.data
        model = self._model()
        announce(self.console, self.recipe, model, self.data, self.runtime, self.directory.path)
        self.stop.check("reading the data")
        self._first_stage(model, train, validation)
        cache = self._cache(model, train)
        self._calibrate(model, train, cache)
        state = self._second_stage(model, train, validation, cache)
        self._save(model, state)
        return self._evaluate(model, train, validation)

    def _fitted(self) -> Recipe:
        """The recipe with what conditioners learn from data; a run that goes on keeps what it learned then."""
        known = learned(self.directory.recipe() or {}, self.recipe.resolved(redact=False))
        recipe = self.recipe.updated(known).validate_components(self.registry) if known else self.recipe
        recipe = fit(recipe, self.registry)
        self.directory.write_recipe(recipe.to_yaml())
        return recipe

    def _model(self) -> LatentDiffusion:
        model = build(self.recipe, self.registry)
        if self.recipe.init is not None:
            source = load(self.recipe.init.from_, self.recipe.init.weights, registry=self.registry)
            load_trained(model, source.state_dict(), where=self.recipe.init.from_)
        if (trained := self.recipe.autoencoder.from_) is not None:
            source = load(trained, registry=self.registry)
            _copy(source.autoencoder, model.autoencoder, where=trained)
        self._frozen(model)
        return model

    def _frozen(self, model: LatentDiffusion) -> None:
        """Weights that no stage trains are kept once a run, so that it does not depend on where they came from."""
        tensors = {name: p for name, p in model.conditioners.named_parameters() if not p.requires_grad}
        if not tensors:
            return
        checkpoints = self.checkpoints("frozen")
        if (found := checkpoints.newest()) is None:
            checkpoints.save(0, {"conditioners": tensors}, {})
            return
        saved = found.tensors("conditioners")
        for name, value in tensors.items():
            if name not in saved or saved[name].shape != value.shape:
                raise CheckpointError(f"{name} is not what this run was started with", where=str(found.path))
            value.data.copy_(saved[name])

    def _loss_section(self) -> dict[str, Any]:
        section = self.recipe.resolved(redact=False)["autoencoder"]
        return dict(section.get("loss") or {}) if self.recipe.autoencoder.train is not None else {}

    # stage one

    def _first_stage(self, model: LatentDiffusion, train: Dataset, validation: Dataset) -> None:
        """Trains the autoencoder, or takes the finished one; the finished one is kept in ``checkpoints/first-stage``."""
        settings = self.recipe.autoencoder.train
        finished = self.checkpoints("first-stage")
        found = finished.newest()
        self._say_skipped(finished)
        steps = 0 if settings is None else settings.steps
        if found is not None and found.step >= steps:
            model.autoencoder.load_state_dict(found.tensors("autoencoder"))
            return
        if found is not None and self.checkpoints("diffusion").newest() is not None:
            raise RecipeError(
                f"autoencoder.train.steps is {steps}, and the diffusion stage has begun on an autoencoder of {found.step} steps",
                hint="leave it at what it was, or train anew with --out DIR or --fresh",
            )
        if settings is not None:
            checkpoints = self.checkpoints("autoencoder")
            self._say_resumed(checkpoints, "autoencoder")
            self.directory.write_status("running", stage="autoencoder", steps=steps)
            losses = self._losses(model)
            pictures = Previews(self.directory.path, model, validation, self.recipe)
            first.train_autoencoder(
                model.autoencoder,
                losses,
                train,
                validation,
                settings=settings,
                seed=self.recipe.seed,
                checkpoints=checkpoints,
                log=self.log,
                stop=self.stop,
                runtime=self.runtime,
                pictures=pictures.reconstructions,
            )
        elif any(True for _ in model.autoencoder.parameters()) and not (
            self.recipe.autoencoder.from_ or self.recipe.init
        ):
            raise self.recipe.error(
                "the autoencoder has neither a trained one to start `from` nor a `train` section", "autoencoder"
            )
        finished.save(steps, {"autoencoder": model.autoencoder.state_dict()}, {})

    def _losses(self, model: LatentDiffusion) -> AutoencoderLoss:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(random.key(self.recipe.seed, "losses", 0))
            return make_loss(model.autoencoder.image_channels, **self._loss_section())

    # between the stages

    def _cache(self, model: LatentDiffusion, train: Dataset) -> latents.LatentCache | None:
        where = self.recipe.runtime.cache
        if where == "off" or not latents.fits(model.autoencoder, train):
            return None
        data = self.recipe.resolved(redact=False)["data"]
        return latents.build(
            model.autoencoder,
            train,
            folder=self.directory.path / "latents" if where == "auto" else Path(where).expanduser(),
            key=latents.fingerprint(model.autoencoder, {**data, "seed": self.recipe.seed}),
            seed=self.recipe.seed,
            runtime=self.runtime,
            console=self.console,
            stop=self.stop,
        )

    def _calibrate(self, model: LatentDiffusion, train: Dataset, cache: latents.LatentCache | None) -> None:
        statistics = latents.calibrate(
            model.autoencoder,
            train,
            scale=self.recipe.autoencoder.scale,
            seed=self.recipe.seed,
            cache=cache,
            runtime=self.runtime,
            stop=self.stop,
        )
        self.console.note(
            f"latents: standard deviation {statistics.overall_std:.3f} over {statistics.count} pictures, scaled to 1"
            if self.recipe.autoencoder.scale in ("std", "per-channel")
            else f"latents: standard deviation {statistics.overall_std:.3f} over {statistics.count} pictures"
        )

    # stage two

    def _second_stage(
        self, model: LatentDiffusion, train: Dataset, validation: Dataset, cache: latents.LatentCache | None
    ) -> TrainingState:
        checkpoints = self.checkpoints("diffusion")
        self._say_resumed(checkpoints, "diffusion")
        self.directory.write_status("running", stage="diffusion", steps=self.recipe.train.steps)
        return second.train_diffusion(
            model,
            train,
            validation,
            settings=self.recipe.train,
            seed=self.recipe.seed,
            checkpoints=checkpoints,
            log=self.log,
            stop=self.stop,
            runtime=self.runtime,
            groups=self._groups(model),
            cache=cache,
            pictures=Previews(self.directory.path, model, validation, self.recipe).samples,
        )

    def _groups(self, model: LatentDiffusion) -> list[Group]:
        """The denoiser's parameters, and each slot's with its own settings."""
        for name, slot in self.recipe.conditioners.items():
            if slot.freeze is True:
                model.conditioners[name].requires_grad_(False)
        left = second.trainable(model)
        groups = []
        for name, slot in self.recipe.conditioners.items():
            prefix = f"conditioners.{name}."
            own = {key: left.pop(key) for key in list(left) if key.startswith(prefix)}
            starts = 0 if isinstance(slot.freeze, bool) else slot.freeze
            groups.append(Group(own, lr=slot.lr, weight_decay=slot.weight_decay, starts=starts))
        return [Group(left), *groups]

    def _say_resumed(self, checkpoints: Checkpoints, stage: str) -> None:
        found = checkpoints.newest()
        self._say_skipped(checkpoints)
        if found is not None:
            self.console.note(f"{stage}: continuing from step {found.step}")

    def _say_skipped(self, checkpoints: Checkpoints) -> None:
        for text in checkpoints.skipped:
            self.console.note(f"warning: ignoring the checkpoint {text}")

    # the end

    def _save(self, model: LatentDiffusion, state: TrainingState) -> None:
        """The model as `ldmkit.load` reads it: average weights, and the raw ones beside them."""
        target = self.directory.path / MODEL
        raw = {name: p.detach().clone() for name, p in second.trainable(model).items()}
        if state.ema is not None:
            state.ema.copy_to_parameters()
        model.to("cpu").eval()
        if target.exists():
            discard(target)
        model.save(target, raw=raw if state.ema is not None else None)
        model.to(self.runtime.device)

    def _evaluate(self, model: LatentDiffusion, train: Dataset, validation: Dataset) -> Results:
        self.directory.write_status("running", stage="evaluation")
        path = self.directory.path
        metrics, count = _metrics(self.recipe, self.registry)
        with self.console.progress("evaluation", total=max(len(metrics), 1)) as progress:
            evaluation = Evaluation(
                model,
                train,
                validation,
                n=max(count, self.recipe.sample.count),
                seed=self.recipe.sample.seed,
                progress=lambda what, done, total: progress.update(progress.done, f"{what} {done}/{total}"),
                check=lambda: self.stop.check("evaluating"),
            )
            results = evaluate(evaluation, metrics)
            progress.update(max(len(metrics), 1), " ")
        pictures = write_pictures(evaluation, path / "samples", count=self.recipe.sample.count)
        results = replace(results, pictures=tuple(pictures))
        results.save(path / EVALUATION)
        return results


def _metrics(recipe: Recipe, registry: Registry) -> tuple[list[tuple[str, Metric]], int]:
    """The recipe's metrics, and how many samples they want."""
    metrics = [(entry.type, registry.metrics.create(entry.type, entry.options)) for entry in recipe.evaluate]
    wanted = [int(entry.options.get("count") or 0) for entry in recipe.evaluate]
    return metrics, max(wanted, default=0) or (EVALUATED if metrics else 0)


def _copy(source: nn.Module, target: nn.Module, *, where: str) -> None:
    """The weights and buffers of `source`, which must have the same shapes."""
    mine, theirs = target.state_dict(), source.state_dict()
    wrong = [name for name in mine if name not in theirs or theirs[name].shape != mine[name].shape]
    if wrong or len(mine) != len(theirs):
        raise CheckpointError(
            f"its autoencoder is another one than the recipe's ({len(wrong) or 'some'} tensors differ"
            f"{f', {wrong[0]} first' if wrong else ''})",
            hint="leave out the autoencoder's other keys, or give those it was trained with",
            where=where,
        )
    target.load_state_dict(theirs)
