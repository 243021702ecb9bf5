"""What one key says about another: sizes, heads, slots, names. Every check names both keys and a valid value."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ldmkit.messages import KeyPath, Problem, did_you_mean
from ldmkit.recipe.base import Component
from ldmkit.recipe.dump import REDACTED
from ldmkit.recipe.objective import Linear, PlainLinear, Sqrt
from ldmkit.recipe.sections import Convolutional, Identity

if TYPE_CHECKING:
    from ldmkit.recipe.model import Recipe

# A registered name, or `distribution:name` where two plugins claim one.
TYPE = re.compile(r"([A-Za-z0-9][A-Za-z0-9_-]*:)?[a-z0-9]+(-[a-z0-9]+)*")
SLOT = re.compile(r"[a-z][a-z0-9_]*")
TAKEN_SLOTS = ("null", "none", "all")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
# Names of devices on Windows, with or without an ending.
TAKEN_NAMES = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)


def cross_checks(recipe: Recipe) -> list[Problem]:
    """Everything that two keys of a valid recipe contradict each other in."""
    checks = [_name, _types, _size, _autoencoder, _alone, _attention, _widths, _heads, _schedule, _slots, _dropout]
    checks += [_guidance, _guidance_options, _redacted]
    return [Problem(path, text) for check in checks for path, text in check(recipe)]


Found = Iterator[tuple[KeyPath, str]]


def _name(recipe: Recipe) -> Found:
    if not NAME.fullmatch(recipe.name) or recipe.name.endswith(".") or TAKEN_NAMES.fullmatch(recipe.name):
        yield (
            ("name",),
            f"'{recipe.name}' cannot name a run directory; use letters, digits, '.', '_' and '-', "
            "beginning with a letter or digit",
        )


def _types(recipe: Recipe) -> Found:
    sections: list[tuple[KeyPath, Component]] = [(("data",), recipe.data), (("sample",), recipe.sample)]
    sections += [(("conditioners", slot), section) for slot, section in recipe.conditioners.items()]
    sections += [(("evaluate", index), section) for index, section in enumerate(recipe.evaluate)]
    for path, section in sections:
        kind: str = section.type  # type: ignore[attr-defined]
        if not TYPE.fullmatch(kind):
            yield (
                (*path, "type"),
                f"'{kind}' is no registered name (a-z, 0-9 and '-'), and a recipe imports nothing else",
            )


def _size(recipe: Recipe) -> Found:
    autoencoder = recipe.autoencoder
    if autoencoder.from_ is not None and "image_channels" not in autoencoder.model_fields_set:
        return  # known once the trained one is read
    if _network_comes_later(recipe):
        return
    if isinstance(autoencoder, Convolutional) and autoencoder.pad:
        return  # any size will do
    unit = autoencoder.factor
    wanted: list[tuple[KeyPath, tuple[int, int]]] = [(("data", "size"), recipe.data.shape)]
    wanted += [(("data", "buckets", index), size) for index, size in enumerate(recipe.data.buckets or ())]
    for key, size in wanted:
        for side in dict.fromkeys(size):
            if side % unit == 0:
                continue
            below, above = side // unit * unit, (side // unit + 1) * unit
            valid = f"{below} or {above}" if below else str(above)
            yield (
                key,
                f"{side} is no multiple of {unit}: the autoencoder makes it {unit} times smaller (autoencoder.downsample); "
                f"nearest: {valid}, or autoencoder.pad: true",
            )


def _autoencoder(recipe: Recipe) -> Found:
    section = recipe.autoencoder
    if section.from_ is None and section.train is None and not isinstance(section, Identity):
        yield (
            ("autoencoder",),
            "nothing says how it is trained; add `train: {steps: ...}`, or `from:` with a trained one",
        )
    crop = None if section.train is None else section.train.crop
    if crop is not None and crop % section.factor:
        yield (("autoencoder", "train", "crop"), f"{crop} is no multiple of autoencoder.downsample {section.factor}")
    if isinstance(section, Convolutional) and section.multipliers is not None:
        levels = section.downsample.bit_length()
        if len(section.multipliers) != levels:
            yield (
                ("autoencoder", "multipliers"),
                f"has {len(section.multipliers)} levels, and autoencoder.downsample {section.downsample} needs {levels}",
            )


def _alone(recipe: Recipe) -> Found:
    """A recipe without `train` is one of an autoencoder alone, and says nothing of a diffusion model."""
    if not recipe.alone:
        return
    said = [name for name in ("conditioners", "denoiser", "diffusion", "init") if recipe.document.value.get(name)]
    if said:
        yield (
            ("train",),
            f"missing; {' and '.join(said)} {'is' if len(said) == 1 else 'are'} for the diffusion model, and nothing says how it "
            f"is trained; add `train: {{steps: ...}}`, or leave {'it' if len(said) == 1 else 'them'} out to train the "
            "autoencoder alone",
        )
    elif isinstance(recipe.autoencoder, Identity):
        yield ("train",), "missing, and an identity autoencoder has nothing to train either; add `train: {steps: ...}`"


def _network_comes_later(recipe: Recipe) -> bool:
    """Whether the denoiser's levels are those of the trained model that `init` names, which is not read here."""
    return recipe.init is not None and "multipliers" not in recipe.denoiser.model_fields_set


def _attention(recipe: Recipe) -> Found:
    if _network_comes_later(recipe):
        return
    denoiser = recipe.denoiser
    factors = [2**level for level in range(len(denoiser.multipliers))]
    for factor in denoiser.attention:
        if factor not in factors:
            yield (
                ("denoiser", "attention"),
                f"no level is down-sampled {factor} times; denoiser.multipliers has levels at "
                f"{', '.join(map(str, factors))} (factors of the latent, not pixels)",
            )
    for key in ("blocks", "heads", "head_width", "transformer_depth"):
        value = getattr(denoiser, key)
        if isinstance(value, tuple) and len(value) != len(factors):
            yield ("denoiser", key), f"has {len(value)} numbers, and denoiser.multipliers has {len(factors)} levels"


def _widths(recipe: Recipe) -> Found:
    """Whole numbers of channels, which `groups` divides where it is given."""
    found: list[tuple[str, int, Sequence[float], KeyPath, int | None]] = []
    if not _network_comes_later(recipe):
        denoiser = recipe.denoiser
        groups = ("denoiser", "variant", "groups")
        found.append(("denoiser", denoiser.channels, denoiser.multipliers, groups, denoiser.variant.groups))
    section = recipe.autoencoder
    if isinstance(section, Convolutional) and section.from_ is None:
        found.append(
            ("autoencoder", section.channels, section.multipliers or (1,), ("autoencoder", "groups"), section.groups)
        )
    for part, channels, multipliers, key, count in found:
        widths = [channels, *(channels * multiplier for multiplier in multipliers)]
        if broken := [
            width for width in widths if not math.isclose(width, round(width), rel_tol=1e-9) or round(width) < 1
        ]:
            yield (
                (part, "multipliers"),
                f"{part}.channels {channels} times a multiplier is {broken[0]:g}, no number of channels",
            )
        elif count is not None and (odd := [round(width) for width in widths if round(width) % count]):
            most = math.gcd(*map(round, widths))
            valid = [number for number in range(1, most + 1) if most % number == 0]
            nearest = min(valid, key=lambda number: abs(number - count))
            yield (
                key,
                f"{count} does not divide the {odd[0]} channels of a level, as group norms need; nearest: {nearest}",
            )


def _heads(recipe: Recipe) -> Found:
    if _network_comes_later(recipe):
        return
    denoiser = recipe.denoiser
    if denoiser.channels % 2:
        yield (
            ("denoiser", "channels"),
            f"must be even (it is the width of the timestep embedding), got {denoiser.channels}",
        )
    if denoiser.heads is not None and denoiser.head_width is not None:
        yield ("denoiser", "heads"), "heads and head_width are both given; one follows from the other: remove one"
        return
    key, given = ("heads", denoiser.heads) if denoiser.heads is not None else ("head_width", denoiser.head_width)
    if given is None or (isinstance(given, tuple) and len(given) != len(denoiser.multipliers)):
        return
    last = len(denoiser.multipliers) - 1
    for level, multiplier in enumerate(denoiser.multipliers):
        if 2**level not in denoiser.attention and level != last:  # the middle has the last level's heads
            continue
        divisor, width = given[level] if isinstance(given, tuple) else given, round(denoiser.channels * multiplier)
        if width % divisor:
            valid = [number for number in range(1, width + 1) if width % number == 0]
            nearest = min(valid, key=lambda number: abs(number - divisor))
            yield (
                ("denoiser", key),
                f"{divisor} does not divide the {width} channels of level {level + 1} "
                f"(denoiser.channels {denoiser.channels} x {multiplier}); nearest: {nearest}",
            )
            return


def _schedule(recipe: Recipe) -> Found:
    schedule = recipe.diffusion.schedule
    if isinstance(schedule, (Linear, PlainLinear, Sqrt)) and schedule.start >= schedule.end:
        yield (
            ("diffusion", "schedule", "start"),
            f"{schedule.start:g} must be less than diffusion.schedule.end, {schedule.end:g}",
        )
    timesteps = len(schedule.betas) if schedule.type == "given" else schedule.timesteps
    if recipe.sample.steps > timesteps:
        yield ("sample", "steps"), f"{recipe.sample.steps} is more than diffusion.schedule has timesteps, {timesteps}"
    if schedule.zero_snr and recipe.diffusion.prediction == "eps":
        yield (
            ("diffusion", "prediction"),
            "eps says nothing of the picture where there is no signal (diffusion.schedule.zero_snr); use v, x0 or flow",
        )


def _slots(recipe: Recipe) -> Found:
    for slot in recipe.conditioners:
        if slot in TAKEN_SLOTS:
            yield ("conditioners", slot), f"'{slot}' has a meaning of its own; taken are {', '.join(TAKEN_SLOTS)}"
        elif not SLOT.fullmatch(slot):
            suggestion = re.sub(r"[^a-z0-9_]", "_", slot.lower())
            yield (
                ("conditioners", slot),
                f"a slot's name is a-z, 0-9 and '_', beginning with a letter; for example {suggestion}",
            )


def _unknown_slots(recipe: Recipe, path: KeyPath, names: list[str]) -> Found:
    slots = list(recipe.conditioners)
    for name in names:
        if name not in slots:
            yield path, f"there is no slot '{name}'{did_you_mean(name, slots)}; slots: {', '.join(slots) or 'none'}"


def _dropout(recipe: Recipe) -> Found:
    if recipe.dropout is None:
        return
    for subset in recipe.dropout:
        names = [name.strip() for name in subset.split("+")]
        yield from _unknown_slots(recipe, ("dropout", subset), names)
    if (total := sum(recipe.dropout.values())) > 1 + 1e-9:
        yield ("dropout",), f"the probabilities add up to {total:g}; at most 1 is possible"
    for slot, section in recipe.conditioners.items():
        if "dropout" in section.model_fields_set and "dropout" in recipe.document.value.get("conditioners", {}).get(
            slot, {}
        ):
            yield (
                ("conditioners", slot, "dropout"),
                "the table `dropout` at the top says it already; remove one of the two",
            )


def _guidance(recipe: Recipe) -> Found:
    guidance = recipe.sample.guidance
    if isinstance(guidance, dict):
        yield from _unknown_slots(recipe, ("sample", "guidance"), list(guidance))
        for name, scale in guidance.items():
            slot = recipe.conditioners.get(name)
            if slot is not None and recipe.dropout is None and slot.dropout == 0.0 and scale != 1.0:
                yield (
                    ("sample", "guidance", name),
                    f"training never drops '{name}' (conditioners.{name}.dropout is 0), so there is nothing to guide against",
                )
    elif isinstance(guidance, float) and guidance != 1.0 and recipe.sample.guidance_options.type in ("plain", "apg"):
        dropped = (
            [s.dropout for s in recipe.conditioners.values()] if recipe.dropout is None else recipe.dropout.values()
        )
        if not any(dropped):
            example = f"conditioners.{next(iter(recipe.conditioners))}.dropout: 0.1" if recipe.conditioners else ""
            yield (
                ("sample", "guidance"),
                f"{guidance:g}, and training drops no condition, so there is nothing to guide against; "
                + (f"say {example}, or 1" if example else "an unconditional model takes 1"),
            )


def _guidance_options(recipe: Recipe) -> Found:
    """Methods that cannot take the guidance, the sampler or the negatives that stand beside them."""
    sample, given = recipe.sample, recipe.sample.guidance_options
    path: KeyPath = ("sample", "guidance_options", "type")
    if given.interval is not None and given.interval[0] > given.interval[1]:
        yield ("sample", "guidance_options", "interval"), f"{list(given.interval)} does not rise"
    negatives = [sample.negative] if isinstance(sample.negative, dict) else sample.negative or []
    for negative in negatives:
        yield from _unknown_slots(recipe, ("sample", "negative"), list(negative))
    if len(negatives) > 1 and given.type != "perp-neg":
        yield ("sample", "negative"), "several are for guidance_options {type: perp-neg}; one can stand in for the null"
    if given.type in ("plus-plus", "perp-neg", "autoguidance") and not isinstance(sample.guidance, float):
        yield path, f"{given.type} takes a guidance of one number, and sample.guidance is {sample.guidance!r}"
    if given.type == "perp-neg" and not negatives:
        yield path, "perp-neg goes away from something: say what in sample.negative"
    if given.type == "autoguidance" and negatives:
        yield path, "autoguidance has no null that sample.negative could stand in for; remove one of the two"
    own = recipe.autoencoder.from_ is None and recipe.init is None and not isinstance(recipe.autoencoder, Identity)
    if given.type == "autoguidance" and own:
        yield path, "autoguidance needs the worse model's autoencoder: say autoencoder.from"
    if given.type == "plus-plus":
        if isinstance(sample.guidance, float) and not 0 <= sample.guidance <= 1:
            yield ("sample", "guidance"), f"{sample.guidance:g}; CFG++ (guidance_options) takes 0 to 1, 0.6 is usual"
        noise = {"ddim": "eta", "euler": "s_churn"}
        if sample.type not in noise or sample.options.get(noise[sample.type]):
            yield (
                path,
                f"CFG++ changes DDIM's step: sample.type is {sample.type}; it may be ddim (eta 0) or euler (s_churn 0)",
            )


def _redacted(recipe: Recipe) -> Found:
    def walk(value: Any, path: KeyPath) -> Iterator[KeyPath]:
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from walk(inner, (*path, key))
        elif isinstance(value, str) and REDACTED in value:
            yield path

    for path in walk(recipe.document.value, ()):
        yield (
            path,
            f"this secret was taken out when the recipe was saved; give it: --set {'.'.join(map(str, path))}=...",
        )
