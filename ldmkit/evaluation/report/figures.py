"""The figures of a report: each beside what it is to be compared with. Loads no torch."""

from __future__ import annotations

from html import escape

from ldmkit.evaluation.report.charts import comparison, line_chart
from ldmkit.evaluation.report.record import Curve, Record
from ldmkit.evaluation.report.tables import duration, plain
from ldmkit.evaluation.results import Figure, Results
from ldmkit.evaluation.verdicts import conclusion

HEROES = 4


def result(record: Record) -> str:
    """The figures a reader asks for first, each beside its baseline."""
    if record.results is None or not record.results.figures:
        return '<p class="soft">This run has not been evaluated.</p>'
    said = conclusion(record.results)
    return (
        f'<p class="conclusion">{escape(said)}</p>' if said else ""
    ) + f'<div class="heroes">{"".join(_hero(figure) for figure in heroes(record.results))}</div>{_how(record.results)}'


def heroes(results: Results) -> list[Figure]:
    """Up to four figures: a judge's first, then those with a baseline in the recipe's order, one a metric."""
    ranked = sorted(
        results.figures, key=lambda f: (f.baseline is None, f.name != "judge", f.name == "conditioning-gain")
    )
    chosen: dict[str, Figure] = {}
    for figure in ranked:
        if figure.baseline is not None or len(ranked) <= HEROES:
            chosen.setdefault(figure.name if figure.name != "judge" else figure.label, figure)
    return list(chosen.values())[:HEROES] or ranked[:HEROES]


def _hero(figure: Figure) -> str:
    baseline = ""
    if figure.baseline is not None and figure.baseline in figure.beside:
        baseline = f'<p class="small soft">{escape(figure.baseline)}: {escape(figure.show(figure.beside[figure.baseline]))}</p>'
    return f'<div class="card"><h3>{escape(figure.label)}</h3>{_value(figure)}{baseline}{_verdict(figure)}</div>'


def _value(figure: Figure) -> str:
    spread = f'<p class="small soft">{escape(figure.span())}</p>' if figure.interval else ""
    return f'<p class="value">{escape(figure.show(figure.value))}</p>{spread}'


def _verdict(figure: Figure) -> str:
    verdict = figure.verdict()
    if verdict is None:
        return f'<span class="chip">{figure.better} is better</span>'
    kind = {"better": " good", "worse": " bad", "no difference": "", "too few": ""}[verdict]
    return f'<span class="chip{kind}">{escape(figure.judgement())}</span>'


def _how(results: Results) -> str:
    sources = f", over {results.sources} source images" if results.sources else ""
    parts = [f"{results.n} samples, seeds from {results.seed}, no selection"]
    parts += [f"{name} {plain(value)}" for name, value in results.sampling.items()]
    if results.seconds:
        parts.append(f"evaluated in {duration(results.seconds)}")
    return f'<p class="small soft">{escape(", ".join(parts))}. Intervals are 95 %{sources}.</p>'


def figures(record: Record) -> str:
    """Every figure with what it means and what stands beside it."""
    if record.results is None:
        return ""
    cards = "".join(_card(figure) for figure in record.results.figures)
    missing = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(reason)}</td></tr>"
        for name, reason in record.results.unavailable.items()
    )
    table = (
        f'<h3>Not available</h3><div class="card scroll"><table class="lines">{missing}</table></div>'
        if missing
        else ""
    )
    return f'<div class="cards">{cards}</div>{table}'


def _card(figure: Figure) -> str:
    plot = comparison(figure) if figure.beside else ""
    curves = ""
    if figure.series:
        named: dict[str, Curve] = {
            name: [(float(index + 1), y) for index, y in enumerate(values)] for name, values in figure.series.items()
        }
        curves = line_chart(named, title=figure.axes[1] or figure.name, x_label=figure.axes[0], log=False)
    return (
        f'<div class="card"><h3>{escape(figure.label)}</h3>{_value(figure)}{_verdict(figure)}{plot}{curves}'
        f'<p class="small soft">{escape(figure.note)}</p>'
        f'<p class="small soft">{escape(figure.counted)}, seed {figure.seed}; {figure.better} is better</p></div>'
    )


def suspicions(results: Results) -> list[str]:
    """What the figures themselves say against the result."""
    out = []
    for figure in results.figures:
        if figure.name == "conditioning-gain" and figure.interval is not None and figure.interval[0] <= 0:
            out.append(
                f"The model may not listen to {figure.slot}: the interval of its conditioning gain includes none at all."
            )
        real = figure.beside.get("held-out pictures")
        if figure.name == "judge" and real is not None and real < 0.95:
            out.append(f"{figure.label}: the judge knows only {figure.show(real)} of the real held-out pictures.")
        if figure.name == "near-copies" and real is not None and figure.value > 5 * real + 0.05:
            out.append(f"{figure.show(figure.value)} of the samples are suspiciously close to a training picture.")
    return out
