"""The sections of a report, each a function from the record of a run to HTML; empty where there is nothing to say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape
from typing import Any

from ldmkit.evaluation.next_commands import next_commands
from ldmkit.evaluation.report.charts import line_chart
from ldmkit.evaluation.report.figures import suspicions
from ldmkit.evaluation.report.record import Curve, Record
from ldmkit.evaluation.report.tables import pairs, table
from ldmkit.evaluation.results import Picture

ADVERSARIAL = re.compile(r"discriminator|generator|adversarial|logits|adaptive|r1|lecam")
SPEED = re.compile(r"_per_second$")


# pictures


def pictures(record: Record) -> str:
    """The sheets, embedded."""
    return "".join(_sheet(number, picture, uri) for number, (picture, uri) in enumerate(record.pictures, start=1))


def _sheet(number: int, picture: Picture, uri: str) -> str:
    """A sheet that fills the window once it is clicked: without a script, by being the page's target."""
    said = f"{picture.title}. {picture.caption}" if picture.caption else picture.title
    return (
        f'<figure class="card sheet" id="sheet-{number}"><h3>{escape(picture.title)}</h3>'
        f'<figcaption class="small soft">{escape(picture.caption)}</figcaption>'
        f'<a class="close" href="#pictures">Close</a><a class="zoom" href="#sheet-{number}" title="Enlarge">'
        f'<img src="{uri}" alt="{escape(said)}"></a></figure>'
    )


# training


def training(record: Record) -> str:
    """The curves of each stage: the telling ones open, the others folded."""
    out = []
    for stage, curves in record.curves.items():
        main, more = _stage_charts(curves)
        if not main and not more:
            continue
        folded = f'<details><summary>More curves</summary><div class="charts">{more}</div></details>' if more else ""
        out.append(f'<h3>{escape(stage.capitalize())}</h3><div class="charts">{main}</div>{folded}')
    return "".join(out)


def _stage_charts(curves: Mapping[str, Curve]) -> tuple[str, str]:
    left = {name: curve for name, curve in curves.items() if name != "steps_per_second"}

    def take(*names: str) -> dict[str, Curve]:
        return {name: left.pop(name) for name in names if name in left}

    def matching(pattern: re.Pattern[str]) -> dict[str, Curve]:
        return take(*[name for name in left if pattern.search(name)])

    main = line_chart(take("loss", *[n for n in left if n.startswith("validation")]), title="Loss")
    for name in [name for name in left if name.split("/")[-1] in ("psnr", "ssim", "lpips")]:
        main += line_chart(take(name), title=f"{name.upper() if name.islower() else name} on held-out pictures")
    more = line_chart(take("lr"), title="Learning rate", log=False)
    more += line_chart(take("gradient_norm"), title="Gradient norm")
    more += line_chart(matching(SPEED), title="Speed", log=False)
    presence = take(*[name for name in left if name.startswith("present/")])
    if any(y < 1 for curve in presence.values() for _, y in curve):
        more += line_chart(presence, title="Share of pictures that have the condition", log=False)
    for name in list(left):
        chart = line_chart(take(name), title=name.replace("_", " "))
        if ADVERSARIAL.search(name):
            main += chart
        else:
            more += chart
    return main, more


# alarms


def alarms(record: Record) -> str:
    """What went wrong, or may have."""
    found = [*record.alarms, *(suspicions(record.results) if record.results else [])]
    error = record.status.get("error")
    if error:
        found.insert(0, str(error.get("message", error)) if isinstance(error, Mapping) else str(error))
    if not found:
        return ""
    return f'<ul class="alarms">{"".join(f"<li>{escape(text)}</li>" for text in found)}</ul>'


# what was trained, on what


def model(record: Record) -> str:
    """The parts of the model, a row each: from `plan.json`, else as the evaluation saw them."""
    return table(record.plan or list(record.results.parts if record.results else ()))


def data(record: Record) -> str:
    """Where the pictures come from, whose they are, and under which licence."""
    facts = dict(record.results.data) if record.results else {}
    settings = record.recipe.get("data")
    rows: dict[str, Any] = (
        {"source": settings.get("type"), "size": settings.get("size")} if isinstance(settings, Mapping) else {}
    )
    for name in ("training pictures", "held-out pictures", "attribution", "licence", "notes"):
        value = facts.get(name)
        if name.endswith("pictures") and name in facts and value is None:
            value = "endless"
        rows[name] = value
    return pairs({name: value for name, value in rows.items() if value not in (None, "", [])})


def commands(record: Record, place: str) -> str:
    """What to do next, ready to paste."""
    lines = [line.command for line in next_commands(place, record.recipe, record.results)]
    return f"<pre>{escape(chr(10).join(lines))}</pre>"


def recipe(record: Record) -> str:
    """The resolved recipe: with it, the run can be done again."""
    return f"<details><summary>recipe.resolved.yaml</summary><pre>{escape(record.recipe_text)}</pre></details>"


def environment(record: Record) -> str:
    """Versions of everything that made the run, and its status."""
    hidden = ("plan", "alarms", "error", "versions", *(() if record.with_host else ("host", "pid")))
    status = {name: value for name, value in record.status.items() if name not in hidden}
    content = (pairs(status) if status else "") + (pairs(record.versions) if record.versions else "")
    return f"<details><summary>Versions and status</summary>{content}</details>" if content else ""
