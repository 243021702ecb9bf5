"""The stages of a run, one after the other: autoencoder, latents, diffusion, evaluation. Each is skipped where it is done."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ldmkit import random
from ldmkit.assembly import build, datasets, extra_losses, fit, learned_options, source_of
from ldmkit.autoencoder import AutoencoderLoss, make_loss
from ldmkit.data import Dataset, Source
from ldmkit.errors import DataError, RecipeError
from ldmkit.evaluation import Results
from ldmkit.latent_diffusion import LatentDiffusion
from ldmkit.losses import AutoencoderTerm, DiffusionTerm, ExtraLosses
from ldmkit.plugins import Registry
from ldmkit.recipe import Recipe, Train
from ldmkit.runs.completion import evaluate_model, save_autoencoder_alone, save_model
from ldmkit.runs.directory import PLACES, RunDirectory, learned, longer_first_stage
from ldmkit.runs.pretrained import keep_frozen, start_trained
from ldmkit.runs.previews import Previews
from ldmkit.runs.summary import announce
from ldmkit.training import autoencoder as first
from ldmkit.training import data_fingerprint
from ldmkit.training import diffusion as second
from ldmkit.training import runtime as runtimes
from ldmkit.training.caching import latents
from ldmkit.training.caching.caches import Caches, Caching
from ldmkit.training.caching.samples import Remembered
from ldmkit.training.checkpointing.atomic_dir import checksum
from ldmkit.training.checkpointing.checkpoints import Checkpoints
from ldmkit.training.checkpointing.state import TrainingState
from ldmkit.training.logging.bad_samples import BadSamples
from ldmkit.training.logging.console import Console
from ldmkit.training.logging.log import Log, Observer
from ldmkit.training.logging.trackers import Trackers
from ldmkit.training.optim import Group, Made
from ldmkit.training.optimizers import MAKERS
from ldmkit.training.parallel.ranks import Ranks
from ldmkit.training.precision import Precisions
from ldmkit.training.probe import probe
from ldmkit.training.stop import Stop
from ldmkit.training.threads import Threads

HELD_OUT = 2**28  # bytes of held-out samples that stay in memory: far more than any stage asks for


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
    accept_new_data: bool = False
    learned: dict[str, dict[str, Any]] = field(default_factory=dict)  # slot -> the options that `fit` found
    ranks: Ranks = field(default_factory=Ranks)
    started: float = field(default_factory=time.monotonic)

    @cached_property
    def runtime(self) -> runtimes.Runtime:
        """Device and precision."""
        section = self.recipe.runtime
        return runtimes.resolve(
            device=self.ranks.device(section.device),
            precision=section.precision,
            tf32=section.tf32,
            channels_last=section.channels_last,
            compile=section.compile,
            checkpointing=section.checkpointing,
            workers=section.workers,
            worker_timeout=section.worker_timeout,
            threads=section.threads,
            deterministic=section.deterministic,
        )

    @cached_property
    def threads(self) -> Threads:
        """How many of them each stage computes with."""
        return Threads.of(self.directory.path, self.recipe.runtime.threads, self.runtime, self.ranks)

    @cached_property
    def log(self) -> Log:
        """Where the numbers go."""
        if not self.ranks.first:
            return Log(ranks=self.ranks)
        path, first = self.directory.path, self.recipe.autoencoder.train
        trackers = Trackers(
            self.recipe.runtime.trackers,
            folder=path,
            configuration=self.recipe.resolved(),
            offsets={"diffusion": 0 if first is None else first.steps},
            warn=self.console.note,
        )
        return Log(path, console=self.console, observer=self.observer, trackers=trackers, ranks=self.ranks)

    @cached_property
    def bad_samples(self) -> BadSamples:
        """Where samples that cannot be read are listed."""
        return BadSamples(self.directory.path, self.console)

    @cached_property
    def source(self) -> Source:
        """The recipe's data source, made and looked through once."""
        return source_of(self.recipe, self.registry)

    @cached_property
    def data(self) -> tuple[Dataset, Dataset]:
        """What is trained on, and what is held out; a sample that is the same in every epoch is decoded and cut once."""
        train, validation = datasets(self.recipe, self.registry, source=self.source)
        train.listener = validation.listener = self.bad_samples
        return (
            Remembered(train) if train.finite else train,
            Remembered(validation, largest=HELD_OUT) if validation.finite else validation,
        )

    def checkpoints(self, name: str, keep: int = 2) -> Checkpoints:
        """The checkpoints of a stage; leftovers of a process that died are removed."""
        folder = self.directory.path / "checkpoints" / name
        found = Checkpoints(folder, keep=keep, facts=self.facts, ranks=self.ranks)
        found.sweep()
        return found

    @property
    def seconds(self) -> float:
        """Since the start of this process's work."""
        return round(time.monotonic() - self.started, 1)

    # the run

    def execute(self) -> Results:
        """Everything that is not done yet."""
        self.ranks.check(self.stop)
        _ = self.runtime  # a device that is not there is said before the data are read
        with self.threads, self.log:
            return self._execute()

    def _execute(self) -> Results:
        self.recipe = self._fitted()
        train, validation = self.data
        self._remember_data(train, validation)
        self.directory.write_recipe(self.recipe.to_yaml())  # a start that is refused has written nothing
        model = self._model()
        folder, runtime = self.directory.path, self.runtime
        self.ranks.decide(lambda: announce(self.console, self.recipe, model, self.data, runtime, folder, self.ranks))
        self.ranks.decide(lambda: self.bad_samples.found(train.source.problems))
        self.ranks.check(self.stop, "reading the data")
        self._probe(model, train)
        # Made before the first stage: what a term asks for and is not there is said before anything is trained.
        extra = extra_losses(self.recipe, self.registry, DiffusionTerm, model)
        self._first_stage(model, train, validation)
        cache = None if self.recipe.alone else self._caching.latents(model, train)
        self._calibrate(model, train, cache)
        if self.recipe.alone:
            self.ranks.decide(lambda: save_autoencoder_alone(model, folder))
        else:
            self._diffusion(model, train, validation, cache, extra)
        if said := self.bad_samples.summary():
            self.console.note(f"note: {said}")
        self.directory.write_status("running", stage="evaluation")
        return self.ranks.decide(
            lambda: evaluate_model(
                model,
                self.data,
                recipe=self.recipe,
                registry=self.registry,
                folder=folder,
                console=self.console,
                stop=self.stop,
            )
        )

    def _diffusion(
        self,
        model: LatentDiffusion,
        train: Dataset,
        validation: Dataset,
        cache: latents.LatentCache | None,
        extra: ExtraLosses,
    ) -> None:
        """Stage two, and the model it ends with."""
        caching, model.extra = self._caching, extra
        origins = {name: str(self.registry.losses.entry(part.type).origin) for name, part in self.recipe.losses.items()}
        kept = (cache, caching.answers(model, train), caching.targets(extra, train, origins))
        found = [own for own in kept if own is not None]
        state = self._second_stage(model, train, validation, Caches(found))
        self.ranks.decide(lambda: save_model(model, state, self.directory.path))

    def _remember_data(self, train: Dataset, validation: Dataset) -> None:
        def compared() -> tuple[Any, list[int | None]]:
            now = data_fingerprint.take(train, validation)
            begun = self.directory.begun
            if begun and not self.accept_new_data:
                self._same_place_or_content(now)
            for line in data_fingerprint.check(self.directory.path, now, accept=self.accept_new_data or not begun):
                self.console.note(f"  other data: {line}")
            return now["digest"], [train.count, validation.count]

        digest, counts = self.ranks.decide(compared)
        if counts != [train.count, validation.count]:
            raise DataError(
                f"there are {train.count} samples and {validation.count} held out, and the first process sees {counts[0]} and "
                f"{counts[1]}",
                hint="the data must be the same on every machine: share them, or copy them anew",
            )
        self.facts |= {"data": digest}

    def _same_place_or_content(self, now: Mapping[str, Any]) -> None:
        """Data in another place are taken for the same by their content alone. Raises RecipeError where that is not known."""
        before = (self.directory.recipe() or {}).get("data") or {}
        moved = [key for key in PLACES if before.get(key.removeprefix("data.")) != self._place(key)]
        if moved and not any(now[part]["files"] or now[part]["content"] for part in ("train", "validation")):
            raise RecipeError(
                f"{', '.join(moved)} changed, and {self.recipe.data.type} does not tell whether the data there are the same",
                hint="--accept-new-data goes on with them; --out DIR or --fresh trains anew",
            )

    def _place(self, key: str) -> Any:
        return self.recipe.resolved(redact=False)["data"].get(key.removeprefix("data."))

    def _fitted(self) -> Recipe:
        """The recipe with what conditioners learn from data; a run that goes on keeps what it learned then."""
        asked = self.recipe
        fitted: list[Recipe] = []

        def found() -> dict[str, Any]:
            known = learned(self.directory.recipe() or {}, asked.resolved(redact=False))
            fitted.append(fit(self._completed(known), self.registry, source=self.source))
            return learned(fitted[0].resolved(redact=False), asked.resolved(redact=False))

        known = self.ranks.decide(found)
        recipe = fitted[0] if fitted else self._completed(known)
        self.learned = learned_options(asked, recipe)
        return recipe

    def _completed(self, known: Mapping[str, Any]) -> Recipe:
        return self.recipe.updated(known) if known else self.recipe

    def _model(self) -> LatentDiffusion:
        model = build(self.recipe, self.registry, source=self.source)
        model.slots |= {name: slot.with_fitted(self.learned.get(name, {})) for name, slot in model.slots.items()}
        # What each conditioner is, for whoever finds a checkpoint alone: origin, options, what `fit` learned, hashes.
        self.facts |= {"conditioners": model.config["conditioners"], "dropout": model.config["dropout"]}
        parts = ("size", "autoencoder", "denoiser", "diffusion", "sampling", "origins")
        self.facts |= {"model": {name: model.config[name] for name in parts if name in model.config}}
        if self.checkpoints("diffusion").newest() is None:  # a run that has begun its last stage has weights of its own
            start_trained(model, self.recipe, self.registry, self.ranks, self.console.note)
        keep_frozen(model, self.checkpoints("frozen"))
        return model

    def _probe(self, model: LatentDiffusion, train: Dataset) -> None:
        """Before hours of the first stage; the second one looks again, with its own autoencoder, before it begins."""
        settings = self.recipe.autoencoder.train
        found = self.checkpoints("first-stage").newest()
        if settings is not None and (found is None or found.step < settings.steps):
            self.ranks.decide(lambda: probe(model, train, self.recipe.seed, self.runtime))

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
            self.threads.resume(first.STAGE, found.step)  # with which what comes next, the latents, was computed too
            return
        if found is not None and self.checkpoints("diffusion").newest() is not None:
            raise longer_first_stage(steps, found.step)
        if settings is not None:
            checkpoints = self.checkpoints("autoencoder", settings.keep)
            self._say_resumed(checkpoints, "autoencoder")
            self.directory.write_status("running", stage="autoencoder", steps=steps)
            losses = self._losses(model)
            pictures = Previews(self.directory.path, model, validation, self.recipe, self.log)
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
                ranks=self.ranks,
                optimizer=self._optimizer(settings),
                extra=extra_losses(self.recipe, self.registry, AutoencoderTerm, model),
                threads=self.threads,
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

    @property
    def _caching(self) -> Caching:
        origin = self.registry.data_sources.entry(self.recipe.data.type).origin
        # A source's plugin may make other pictures of the same files; one in a file has no version but its content.
        file = "" if origin.file is None else checksum(Path(origin.file))
        folder, content = self.directory.path, f"{self.facts['data']} {origin} {file}"
        return Caching(self.recipe, folder, content, self.runtime, self.console, self.stop, self.ranks)

    def _calibrate(self, model: LatentDiffusion, train: Dataset, cache: latents.LatentCache | None) -> None:
        section, init = self.recipe.autoencoder, self.recipe.init
        if init is not None and section.from_ == init.from_ and "scale" not in section.model_fields_set:
            # On another scale its weights would see other pictures.
            self.console.note(f"latents: scaled as in {init.from_}")
            return
        kept = self.checkpoints("scale")
        if (found := kept.newest()) is not None:
            model.autoencoder.load_state_dict(found.tensors("autoencoder"), strict=False)
        statistics = model.autoencoder.statistics
        # What was kept is taken as it is: its scale made again from the rounded statistics has another last bit.
        if found is None or statistics is None or statistics.weights != model.autoencoder.weights_hash():
            statistics = latents.calibrate(
                model.autoencoder,
                train,
                scale=section.scale,
                seed=self.recipe.seed,
                cache=cache,
                read=self.recipe.train.steps * self.recipe.train.batch,
                runtime=self.runtime,
                stop=self.stop,
                ranks=self.ranks,
            )
            own = {name: value for name, value in model.autoencoder.state_dict().items() if name.startswith("latent_")}
            kept.save(0 if section.train is None else section.train.steps, {"autoencoder": own}, {})
        self.console.note(
            f"latents: standard deviation {statistics.overall_std:.3f} over {statistics.count} pictures, scaled to 1"
            if self.recipe.autoencoder.scale in ("std", "per-channel")
            else f"latents: standard deviation {statistics.overall_std:.3f} over {statistics.count} pictures"
        )

    # stage two

    def _second_stage(
        self, model: LatentDiffusion, train: Dataset, validation: Dataset, cache: Caches
    ) -> TrainingState:
        checkpoints = self.checkpoints("diffusion", self.recipe.train.keep)
        self._say_resumed(checkpoints, "diffusion")
        self.directory.write_status("running", stage="diffusion", steps=self.recipe.train.steps)
        state = second.train_diffusion(
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
            pictures=Previews(self.directory.path, model, validation, self.recipe, self.log).samples,
            ranks=self.ranks,
            shard=self.recipe.runtime.distributed == "fsdp",
            optimizer=self._optimizer(self.recipe.train),
            threads=self.threads,
            precisions=Precisions.of(self.directory.path, self.recipe.runtime.precision, self.runtime, self.ranks),
        )
        model.extra = ExtraLosses()  # they are no part of the trained model
        return state

    def _optimizer(self, settings: Train) -> Made | None:
        """What moves the weights, where it is none of Adam's family, which `Optimization` knows by name."""
        section, catalog = settings.optimizer, self.registry.optimizers
        if section.type in MAKERS:
            return None
        kind = catalog.load(section.type)
        return Made(section.type, kind, catalog.options_of(kind).read(section.options).arguments())

    def _groups(self, model: LatentDiffusion) -> list[Group]:
        """The denoiser's parameters, and each slot's with its own settings."""
        left = second.trainable(model)
        groups = []
        for name, slot in self.recipe.conditioners.items():
            prefix = f"conditioners.{name}."
            own = {key: left.pop(key) for key in list(left) if key.startswith(prefix)}
            starts = 0 if isinstance(slot.freeze, bool) else slot.freeze
            groups.append(Group(own, lr=slot.lr, weight_decay=slot.weight_decay, starts=starts))
        if extra := model.extra.trained():
            groups.append(Group(extra))
        return [Group(left), *groups]

    def _say_resumed(self, checkpoints: Checkpoints, stage: str) -> None:
        found = checkpoints.newest()
        self._say_skipped(checkpoints)
        if found is not None:
            self.console.note(f"{stage}: continuing from step {found.step}")

    def _say_skipped(self, checkpoints: Checkpoints) -> None:
        for text in checkpoints.skipped:
            self.console.note(f"warning: ignoring the checkpoint {text}")
