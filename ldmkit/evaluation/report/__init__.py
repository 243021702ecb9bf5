"""The report of a run: one self-contained page that a person can send to a colleague. Loads no torch."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import replace
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from ldmkit.evaluation.report import evaluations, figures, sections
from ldmkit.evaluation.report.record import Record, read
from ldmkit.evaluation.report.tables import duration
from ldmkit.files import write_text

NAME = "report.html"


def write_report(run_dir: Path, *, place: str | None = None, with_host: bool = False) -> Path:
    """Writes ``report.html`` from what the run directory holds, and returns its path.

    Args:
        run_dir: a run; `ldmkit.evaluation.report.record.read` says what is read there.
        place: the run directory as a person types it, for the commands; default: relative to the working directory.
        with_host: name the machine that trained it.

    The page needs no network: pictures are embedded, there is no script, and its content security policy forbids both.
    Raises `CheckpointError` where `run_dir` is no run.
    """
    record = replace(read(run_dir), with_host=with_host)
    target = run_dir / NAME
    write_text(target, page(record, place or _place(run_dir)), errors="backslashreplace")
    return target


def page(record: Record, place: str) -> str:
    """The whole page."""
    style = files("ldmkit.evaluation.report").joinpath("style.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    content = [
        ("result", "Result", figures.result(record)),
        ("alarms", "Alarms", sections.alarms(record)),
        ("pictures", "Pictures", sections.pictures(record)),
        ("figures", "Figures", figures.figures(record)),
        ("evaluations", "Other settings", evaluations.evaluations(record)),
        ("training", "Training", sections.training(record)),
        ("model", "Model", sections.model(record)),
        ("data", "Data", sections.data(record)),
        ("next", "Next", sections.commands(record, place)),
        ("recipe", "Recipe", sections.recipe(record) + sections.environment(record)),
    ]
    there = [(key, title, body) for key, title, body in content if body]
    links = "".join(f'<a href="#{key}">{title}</a>' for key, title, _ in there)
    body = "".join(f'<section id="{key}"><h2>{title}</h2>{text}</section>' for key, title, text in there)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="referrer" content="no-referrer">'
        f"<title>{escape(record.name)} - ldmkit</title><style>{style}</style></head><body>"
        f"{_header(record, links)}<main>{body}</main>{_footer(record)}</body></html>\n"
    )


def _header(record: Record, links: str) -> str:
    return (
        f'<header><p class="over">ldmkit run {_state(record)}</p><h1>{escape(record.name)}</h1>'
        f'<p class="lead">{escape(summary(record))}</p><nav>{links}</nav></header>'
    )


def _state(record: Record) -> str:
    state = record.status.get("state")
    if not isinstance(state, str) or state == "running":  # a report is written while its run is still busy with it
        return ""
    kind = "good" if state in ("finished", "done", "complete") else "alarm" if state in ("failed", "diverged") else ""
    return f'<span class="chip {kind}">{escape(state)}</span>'


def summary(record: Record) -> str:
    """What was trained, in a sentence."""
    recipe = record.recipe
    data, autoencoder = _section(recipe, "data"), _section(recipe, "autoencoder")
    slots = list(_section(recipe, "conditioners"))
    size = data.get("size")
    shape = " x ".join(str(side) for side in size) if isinstance(size, list) else f"{size} x {size}" if size else ""
    kind = {"vq": "VQ", "kl": "KL"}.get(str(autoencoder.get("type")), str(autoencoder.get("type", "")))
    alone = "train" not in recipe and bool(autoencoder.get("train"))
    parts = [
        f"A {kind} autoencoder"
        if alone
        else f"A latent diffusion model conditioned on {', '.join(slots)}"
        if slots
        else "An unconditional latent diffusion model",
        f"for {shape} pictures ({data.get('type')})" if shape else "",
        f"in the latent space of a {kind} autoencoder" if kind and not alone else "",
    ]
    seconds = record.status.get("seconds")
    took = f" Trained and evaluated in {duration(seconds)}." if isinstance(seconds, int | float) else ""
    return " ".join(part for part in parts if part) + "." + took


def _section(recipe: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = recipe.get(name)
    return value if isinstance(value, Mapping) else {}


def _footer(record: Record) -> str:
    version = record.versions.get("ldmkit") or ""
    when = record.status.get("finished") or record.status.get("updated") or ""
    text = " · ".join(str(part) for part in (f"Made by ldmkit {version}".strip(), when) if part)
    return f"<footer>{escape(text)}</footer>"


def _place(run_dir: Path) -> str:
    try:
        return str(run_dir.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(run_dir)


__all__ = ["page", "summary", "write_report"]
