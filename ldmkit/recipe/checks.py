"""What one key says about another: sizes, heads, slots, names. Every check names both keys and a valid value."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from ldmkit.messages import KeyPath, Problem, did_you_mean
from ldmkit.recipe.components import TYPE, complete_options
from ldmkit.recipe.core_schema import COMPONENTS
from ldmkit.recipe.dump import REDACTED
from ldmkit.recipe.sections import Sections

SLOT = re.compile(r"[a-z][a-z0-9_]*")
TAKEN_SLOTS = ("null", "none", "all")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
UNET, IDENTITY = "unet", "identity"
# Names of devices on Windows, with or without an ending.
TAKEN_NAMES = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)


def cross_checks(recipe: Sections) -> list[Problem]:
    """Everything that two keys of a valid recipe contradict each other in."""
    checks = [_name, _types, _size, _autoencoder, _alone, _attention, _widths, _heads, _schedule, _slots, _dropout]
    checks += [_guidance, _guidance_options, _losses, _redacted]
    return [Problem(path, text) for check in checks for path, text in check(recipe)]


Found = Iterator[tuple[KeyPath, str]]


def _name(recipe: Sections) -> Found:
    if not NAME.fullmatch(recipe.name) or recipe.name.endswith(".") or TAKEN_NAMES.fullmatch(recipe.name):
        yield (
            ("name",),
            f"'{recipe.name}' cannot name a run directory; use letters, digits, '.', '_' and '-', "
            "beginning with a letter or digit",
        )


def _types(recipe: Sections) -> Found:
    named: list[tuple[KeyPath, str]] = [(("data",), recipe.data.type), (("sample",), recipe.sample.type)]
    named += [(("autoencoder",), recipe.autoencoder.type), (("denoiser",), recipe.denoiser.type)]
    named += [
        (("diffusion", "schedule"), recipe.diffusion.schedule.type),
        (("train", "optimizer"), recipe.train.optimizer.type),
    ]
    named += [(("conditioners", slot), section.type) for slot, section in recipe.conditioners.items()]
    named += [(("losses", name), section.type) for name, section in recipe.losses.items()]
    named += [(("evaluate", index), section.type) for index, section in enumerate(recipe.evaluate)]
    for path, kind in named:
        if not TYPE.fullmatch(kind):
            yield (
                (*path, "type"),
                f"'{kind}' is not a registered name (a-z, 0-9 and '-'), and a recipe imports nothing else",
            )


def _of_core(kind: str, type_: str, given: dict[str, Any]) -> dict[str, Any]:
    """The options of a component of the core with all defaults; nothing of a plugin's, whose sizes are its own affair."""
    model = COMPONENTS[kind].get(type_)
    return {} if model is None else complete_options(model, given)


def _first_stage(recipe: Sections) -> dict[str, Any]:
    return _of_core("autoencoders", recipe.autoencoder.type, recipe.autoencoder.options)


def _factor(recipe: Sections) -> int | None:
    """How many times smaller latents are, where that is known here."""
    return 1 if recipe.autoencoder.type == IDENTITY else _first_stage(recipe).get("downsample")


def _unet(recipe: Sections) -> dict[str, Any]:
    """The UNet's options; nothing of another denoiser, or where its levels are a trained model's, which is not read here."""
    if recipe.init is not None and "multipliers" not in recipe.denoiser.options:
        return {}
    return _of_core("denoisers", recipe.denoiser.type, recipe.denoiser.options) if recipe.denoiser.type == UNET else {}


def _size(recipe: Sections) -> Found:
    autoencoder, unit = recipe.autoencoder, _factor(recipe)
    if autoencoder.from_ is not None and "image_channels" not in autoencoder.options:
        return  # known once the trained one is read
    if unit is None or recipe.init is not None or _first_stage(recipe).get("pad"):
        return  # known once the networks are made, or any size will do
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


def _autoencoder(recipe: Sections) -> Found:
    section, factor = recipe.autoencoder, _factor(recipe)
    if section.from_ is None and section.train is None and section.type != IDENTITY:
        yield (
            ("autoencoder",),
            "nothing says how it is trained; add `train: {steps: ...}`, or `from:` with a trained one",
        )
    if (
        section.type == IDENTITY
        and "loss" in section.model_fields_set
        and recipe.document.value.get("autoencoder", {}).get("train")
    ):
        yield (
            ("autoencoder", "loss"),
            "identity has no weights to train; leave out autoencoder.train and autoencoder.loss",
        )
    if section.type == "vq" and section.loss.equivariance is not None:
        yield (
            ("autoencoder",),
            "loss.equivariance transforms latents before they are decoded, and no gradient passes through codes that are "
            "looked up; leave it out, or take type: kl",
        )
    crop = None if section.train is None else section.train.crop
    if crop is not None and factor is not None and crop % factor:
        yield (("autoencoder", "train", "crop"), f"{crop} is no multiple of autoencoder.downsample {factor}")
    options = _first_stage(recipe)
    if options.get("multipliers") is not None:
        levels = options["downsample"].bit_length()
        if len(options["multipliers"]) != levels:
            yield (
                ("autoencoder", "multipliers"),
                f"has {len(options['multipliers'])} levels, and autoencoder.downsample {options['downsample']} needs {levels}",
            )


def _alone(recipe: Sections) -> Found:
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
    elif recipe.autoencoder.type == IDENTITY:
        yield ("train",), "missing, and an identity autoencoder has nothing to train either; add `train: {steps: ...}`"


def _attention(recipe: Sections) -> Found:
    if not (unet := _unet(recipe)):
        return
    factors = [2**level for level in range(len(unet["multipliers"]))]
    for factor in unet["attention"]:
        if factor not in factors:
            yield (
                ("denoiser", "attention"),
                f"no level is down-sampled {factor} times; denoiser.multipliers has levels at "
                f"{', '.join(map(str, factors))} (factors of the latent, not pixels)",
            )
    for key in ("blocks", "heads", "head_width", "transformer_depth"):
        if isinstance(value := unet[key], list) and len(value) != len(factors):
            yield ("denoiser", key), f"has {len(value)} numbers, and denoiser.multipliers has {len(factors)} levels"


def _widths(recipe: Sections) -> Found:
    """Whole numbers of channels, which `groups` divides where it is given."""
    found: list[tuple[str, int, Sequence[float], KeyPath, int | None]] = []
    if unet := _unet(recipe):
        groups = ("denoiser", "variant", "groups")
        found.append(("denoiser", unet["channels"], unet["multipliers"], groups, (unet["variant"] or {}).get("groups")))
    first = _first_stage(recipe)
    if first.get("channels") is not None and recipe.autoencoder.from_ is None:
        widths_of = first["channels"], first["multipliers"] or (1,)
        found.append(("autoencoder", *widths_of, ("autoencoder", "groups"), first["groups"]))
    for part, channels, multipliers, key, count in found:
        widths = [channels, *(channels * multiplier for multiplier in multipliers)]
        if broken := [
            width for width in widths if not math.isclose(width, round(width), rel_tol=1e-9) or round(width) < 1
        ]:
            yield (
                (part, "multipliers"),
                f"{part}.channels {channels} times a multiplier is {broken[0]:g}, not a whole number of channels",
            )
        elif count is not None and (odd := [round(width) for width in widths if round(width) % count]):
            most = math.gcd(*map(round, widths))
            valid = [number for number in range(1, most + 1) if most % number == 0]
            nearest = min(valid, key=lambda number: abs(number - count))
            yield (
                key,
                f"{count} does not divide the {odd[0]} channels of a level, as group norms need; nearest: {nearest}",
            )


def _heads(recipe: Sections) -> Found:
    if not (unet := _unet(recipe)):
        return
    if unet["channels"] % 2:
        yield (
            ("denoiser", "channels"),
            f"must be even (it is the width of the timestep embedding), got {unet['channels']}",
        )
    if unet["heads"] is not None and unet["head_width"] is not None:
        yield ("denoiser", "heads"), "heads and head_width are both given; one follows from the other: remove one"
        return
    key = "heads" if unet["heads"] is not None else "head_width"
    given, multipliers = unet[key], unet["multipliers"]
    if given is None or (isinstance(given, list) and len(given) != len(multipliers)):
        return
    last = len(multipliers) - 1
    for level, multiplier in enumerate(multipliers):
        if 2**level not in unet["attention"] and level != last:  # the middle has the last level's heads
            continue
        divisor, width = given[level] if isinstance(given, list) else given, round(unet["channels"] * multiplier)
        if width % divisor:
            valid = [number for number in range(1, width + 1) if width % number == 0]
            nearest = min(valid, key=lambda number: abs(number - divisor))
            yield (
                ("denoiser", key),
                f"{divisor} does not divide the {width} channels of level {level + 1} "
                f"(denoiser.channels {unet['channels']} x {multiplier}); nearest: {nearest}",
            )
            return


def _schedule(recipe: Sections) -> Found:
    schedule = recipe.diffusion.schedule
    options = _of_core("schedules", schedule.type, schedule.options)
    if "start" in options and options["start"] >= options["end"]:
        yield (
            ("diffusion", "schedule", "start"),
            f"{options['start']:g} must be less than diffusion.schedule.end, {options['end']:g}",
        )
    timesteps = len(options["betas"]) if "betas" in options else options.get("timesteps")
    if timesteps is not None and recipe.sample.steps > timesteps:
        yield ("sample", "steps"), f"{recipe.sample.steps} is more than diffusion.schedule has timesteps, {timesteps}"
    if schedule.zero_snr and recipe.diffusion.prediction == "eps":
        yield (
            ("diffusion", "prediction"),
            "eps does not determine the image where there is no signal (diffusion.schedule.zero_snr); use v, x0 or flow",
        )


def _slots(recipe: Sections) -> Found:
    for slot in recipe.conditioners:
        if slot in TAKEN_SLOTS:
            yield ("conditioners", slot), f"'{slot}' is a reserved name ({', '.join(TAKEN_SLOTS)})"
        elif not SLOT.fullmatch(slot):
            suggestion = re.sub(r"[^a-z0-9_]", "_", slot.lower())
            yield (
                ("conditioners", slot),
                f"a slot's name is a-z, 0-9 and '_', beginning with a letter; for example {suggestion}",
            )


def _unknown_slots(recipe: Sections, path: KeyPath, names: list[str]) -> Found:
    slots = list(recipe.conditioners)
    for name in names:
        if name not in slots:
            yield path, f"there is no slot '{name}'{did_you_mean(name, slots)}; slots: {', '.join(slots) or 'none'}"


def _dropout(recipe: Sections) -> Found:
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
                "the table `dropout` at the top already sets it; remove one of the two",
            )


def _guidance(recipe: Sections) -> Found:
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


def _guidance_options(recipe: Sections) -> Found:
    """Methods that cannot take the guidance, the sampler or the negatives that stand beside them."""
    sample, given = recipe.sample, recipe.sample.guidance_options
    path: KeyPath = ("sample", "guidance_options", "type")
    interval = given.options.get("interval")
    if isinstance(interval, list) and interval[0] > interval[1]:
        yield ("sample", "guidance_options", "interval"), f"{interval} does not rise"
    negatives = [sample.negative] if isinstance(sample.negative, dict) else sample.negative or []
    for negative in negatives:
        yield from _unknown_slots(recipe, ("sample", "negative"), list(negative))
    if len(negatives) > 1 and given.type != "perp-neg":
        yield ("sample", "negative"), "several are for guidance_options {type: perp-neg}; one can stand in for the null"
    if given.type in ("plus-plus", "perp-neg", "autoguidance") and not isinstance(sample.guidance, float):
        yield path, f"{given.type} takes a guidance of one number, and sample.guidance is {sample.guidance!r}"
    if given.type == "perp-neg" and not negatives:
        yield path, "perp-neg needs a condition to move away from: give sample.negative"
    if given.type == "autoguidance" and negatives:
        yield path, "autoguidance has no null that sample.negative could stand in for; remove one of the two"
    own = recipe.autoencoder.from_ is None and recipe.init is None and recipe.autoencoder.type != IDENTITY
    if given.type == "autoguidance" and own:
        yield path, "autoguidance needs the worse model's autoencoder: give autoencoder.from"
    if given.type == "plus-plus":
        if isinstance(sample.guidance, float) and not 0 <= sample.guidance <= 1:
            yield ("sample", "guidance"), f"{sample.guidance:g}; CFG++ (guidance_options) takes 0 to 1, 0.6 is usual"
        noise = {"ddim": "eta", "euler": "s_churn"}
        if sample.type not in noise or sample.options.get(noise[sample.type]):
            yield (
                path,
                f"CFG++ changes DDIM's step: sample.type is {sample.type}; it may be ddim (eta 0) or euler (s_churn 0)",
            )


def _losses(recipe: Sections) -> Found:
    for name in recipe.losses:
        if not SLOT.fullmatch(name):
            suggestion = re.sub(r"[^a-z0-9_]", "_", name.lower())
            yield (
                ("losses", name),
                f"a loss's name is a-z, 0-9 and '_', beginning with a letter; for example {suggestion}",
            )


def _redacted(recipe: Sections) -> Found:
    def walk(value: Any, path: KeyPath) -> Iterator[KeyPath]:
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from walk(inner, (*path, key))
        elif isinstance(value, str) and REDACTED in value:
            yield path

    for path in walk(recipe.document.value, ()):
        yield (
            path,
            f"this secret was removed when the recipe was saved; give it: --set {'.'.join(map(str, path))}=...",
        )
