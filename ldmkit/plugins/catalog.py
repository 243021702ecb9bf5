"""What is registered, by whom, and how a name becomes an object. Loads no torch: a target is imported when it is asked for."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ldmkit.errors import PluginError
from ldmkit.messages import did_you_mean

if TYPE_CHECKING:
    from ldmkit.plugins.options import Options

BUILTINS = "builtins"
NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
TARGET = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


@dataclass(frozen=True)
class Origin:
    """Where a registration comes from: an installed distribution's entry point, or a file given with `-p`."""

    distribution: str | None = None
    version: str | None = None
    entry_point: str | None = None
    file: str | None = None

    @property
    def core(self) -> bool:
        """Whether it is ldmkit itself."""
        return self.entry_point == BUILTINS and self.distribution == "ldmkit"

    def to_json(self) -> dict[str, str]:
        """What is known, for `config.json`."""
        return {key: value for key, value in vars(self).items() if value is not None}

    def __str__(self) -> str:
        if self.file:
            return self.file
        if self.distribution:
            return f"{self.distribution} {self.version}"
        return self.entry_point or "this program"


@dataclass(frozen=True)
class Entry:
    """One registered name. `target` is "package.module:Name" or the object itself."""

    name: str
    target: object
    origin: Origin


@dataclass(frozen=True)
class Problem:
    """A plugin that is installed and cannot be used: its origin, the last line of the cause, and what to do."""

    origin: Origin
    cause: str
    remedy: str

    def __str__(self) -> str:
        return f"plugin {self.origin}: {self.cause}"


@dataclass(frozen=True)
class Kind:
    """What a catalog holds. `base` is the class its objects derive from; None: any callable.

    `reserved` names may not be options, because the recipe's section uses them; `skipped` parameters are no options; `filled`
    ones may be left out, for the core knows their value.
    """

    noun: str
    base: str | None = None
    reserved: frozenset[str] = frozenset()
    skipped: frozenset[str] = frozenset()
    filled: frozenset[str] = frozenset()


CONDITIONER = Kind(
    "conditioner",
    base="ldmkit.conditioning:Conditioner",
    reserved=frozenset({"type", "fields", "dropout", "lr", "weight_decay", "freeze", "known"}),
)
DATA_SOURCE = Kind(
    "data source",
    base="ldmkit.data:Source",
    reserved=frozenset(
        {"type", "crop", "flip", "views", "zoom", "portion", "resample", "jitter", "buckets", "channels"}
    ),
    skipped=frozenset({"size"}),  # a source that draws its pictures gets the recipe's `data.size`
)
SAMPLER = Kind(
    "sampler",
    reserved=frozenset(
        {"type", "steps", "count", "guidance", "guidance_options", "negative", "clip", "cache", "seed", "sampler"}
    ),
    skipped=frozenset({"generators", "callback"}),
)
METRIC = Kind("metric", reserved=frozenset({"type"}))
DENOISER = Kind("denoiser", base="ldmkit.denoiser:Denoiser", reserved=frozenset({"type"}))
AUTOENCODER = Kind(
    "autoencoder",
    base="ldmkit.autoencoder:Autoencoder",
    reserved=frozenset({"type", "from", "scale", "train", "loss"}),
    filled=frozenset({"image_channels"}),  # the data say it
)
LOSS = Kind("loss", base="ldmkit.losses:Loss", reserved=frozenset({"type", "weight", "until"}))
OPTIMIZER = Kind("optimizer", reserved=frozenset({"type"}), skipped=frozenset({"betas"}))
SCHEDULE = Kind("schedule", reserved=frozenset({"type", "zero_snr", "shift"}))
GUIDANCE = Kind("guidance method", base="ldmkit.guidance:Method", reserved=frozenset({"type"}))
# The registration hook's ending -> what it registers.
KINDS = {
    "conditioners": CONDITIONER,
    "denoisers": DENOISER,
    "autoencoders": AUTOENCODER,
    "losses": LOSS,
    "optimizers": OPTIMIZER,
    "schedules": SCHEDULE,
    "guidance": GUIDANCE,
    "data_sources": DATA_SOURCE,
    "samplers": SAMPLER,
    "metrics": METRIC,
}


@dataclass(eq=False)
class Catalog(Mapping[str, Any]):
    """The registered names of one kind -> what each stands for, imported when it is asked for.

    A name that two plugins claim is an error for whoever asks for it.
    """

    kind: Kind
    problems: list[Problem] = field(default_factory=list)
    left_out: list[Problem] = field(default_factory=list)
    _entries: dict[str, list[Entry]] = field(default_factory=dict)

    def add(self, entry: Entry) -> None:
        self._entries.setdefault(entry.name, []).append(entry)

    def only(self, name: str) -> Catalog:
        """A catalog of what is registered as `name` alone: plain data, where targets are names."""
        return Catalog(self.kind, _entries={name: list(self._entries[name])})

    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._entries))

    def entries(self) -> tuple[Entry, ...]:
        """Everything registered, a name that two plugins claim twice."""
        return tuple(entry for name in self.names() for entry in self._entries[name])

    def entries_of(self, name: str) -> tuple[Entry, ...]:
        """What is registered as `name`: more than one entry where several plugins claim it."""
        return tuple(self._entries.get(name, ()))

    def claims(self, name: str) -> int:
        """How many plugins registered this name."""
        return len(self._entries.get(name, []))

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def entry(self, name: str) -> Entry:
        """The entry of `name`, or of `distribution:name` where two plugins claim it. Raises PluginError."""
        distribution, _, short = name.rpartition(":")
        found = [
            entry
            for entry in self._entries.get(short, [])
            if not distribution or entry.origin.distribution == distribution
        ]
        if not found:
            raise self._unknown(name)
        if len(found) > 1:
            origins = " and ".join(str(entry.origin) for entry in found)
            first = found[0].origin.distribution
            raise PluginError(
                f"the {self.kind.noun} '{name}' is registered twice: by {origins}",
                hint=f"Uninstall one, choose plugins with LDMKIT_PLUGINS, or say which: `type: {first}:{name}`",
            )
        return found[0]

    def __getitem__(self, name: str) -> Any:
        return self.load(name)

    def load(self, name: str) -> Any:
        """Import what is registered as `name` and check that it is what it claims to be. Raises PluginError with the cause."""
        entry = self.entry(name)
        loaded = entry.target
        if isinstance(entry.target, str):
            try:
                loaded = _imported(entry.target)
            except (Exception, SystemExit) as error:
                raise PluginError(
                    f"the {self.kind.noun} '{name}' of {entry.origin} cannot be imported: {last_line(error)}",
                    hint=f"`ldmkit plugins show {name}` tells more; its target is {entry.target}",
                ) from error
        self._check(entry, loaded)
        return loaded

    def options(self, name: str) -> type[Options]:
        """The options of `name` as a pydantic model. Imports the object."""
        return self.options_of(self.load(name))

    def options_of(self, loaded: Any) -> type[Options]:
        from ldmkit.plugins import options

        kind = self.kind
        return options.model(loaded, reserved=kind.reserved, skipped=kind.skipped, filled=kind.filled)

    def create(self, name: str, options: Mapping[str, Any], **given: Any) -> Any:
        """The object of `name`, made with its options (JSON values, validated) and what is `given` beside them."""
        loaded = self.load(name)
        return loaded(**self.options_of(loaded).read(options).arguments(), **given)

    def _check(self, entry: Entry, loaded: object) -> None:
        what = f"the {self.kind.noun} '{entry.name}' of {entry.origin}"
        if self.kind.base is None:
            if not callable(loaded):
                raise PluginError(f"{what} is {loaded!r}, which cannot be called")
        else:
            base = _imported(self.kind.base)
            if not (inspect.isclass(loaded) and issubclass(loaded, base)):
                raise PluginError(f"{what} is {loaded!r}, and not a subclass of {self.kind.base.replace(':', '.')}")
            if missing := sorted(getattr(loaded, "__abstractmethods__", ())):
                raise PluginError(f"{what} ({loaded.__qualname__}) lacks {', '.join(missing)}")
        try:
            self.options_of(loaded)
        except PluginError as error:
            raise PluginError(f"{what}: {error.message}", hint=error.hint) from error

    def _unknown(self, name: str) -> PluginError:
        short = name.rpartition(":")[2]
        message = f"no {self.kind.noun} is called '{name}'; installed: {', '.join(self.names()) or 'none'}"
        near = did_you_mean(short, self.names())
        message += near
        hint = f"Perhaps a package is missing: pip install ldmkit-{short}; a plugin of one file is given with -p"
        if near:  # a slip of the pen; no package is called so
            hint = "`ldmkit plugins list` shows what is installed; a plugin of one file is given with -p"
        names = (short, f"ldmkit-{short}")
        for problem in (*self.problems, *self.left_out):
            if problem.origin.entry_point in names or problem.origin.distribution in names:
                message, hint = f"{message}; {problem}", problem.remedy
                break
        else:
            if self.problems:
                hint += f"; or one of {len(self.problems)} broken plugins has it: `ldmkit plugins list`"
        return PluginError(message, hint=hint)


def _imported(target: str) -> Any:
    module_name, _, attribute = target.partition(":")
    with redirect_stdout(sys.stderr):  # what a module prints is no part of what a command prints
        module = importlib.import_module(module_name)
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise ImportError(f"{module_name} has no '{attribute}'{did_you_mean(attribute, dir(module))}") from None


def last_line(error: BaseException) -> str:
    """`ImportError: No module named 'x'`: an exception in one line."""
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {error.msg} ({error.filename}, line {error.lineno})"
    lines = str(error).strip().splitlines()
    if isinstance(error, SystemExit):
        return f"it exits the program (SystemExit: {error.code})"
    return f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"
