"""What an evaluation says, in a sentence: does the model obey its conditions, and does it beat the baseline. Loads no torch."""

from __future__ import annotations

from ldmkit.evaluation.results import Figure, Results, Verdict

SHUFFLED = "shuffled conditions"
ADHERENCE = ("judge", "fidelity", "conditioning-gain")  # the first one that speaks of a slot is asked


def conclusion(results: Results) -> str:
    """One or two sentences; empty where nothing was compared with anything."""
    return " ".join(part for part in (_obeys(results), *_against(results)) if part)


def _obeys(results: Results) -> str:
    said: dict[Verdict, list[str]] = {}
    for figure in adherence(results):
        verdict = figure.verdict()
        if verdict is not None and figure.baseline is not None:
            other = figure.show(figure.beside[figure.baseline])
            words = "with shuffled conditions" if figure.baseline == SHUFFLED else f"for {figure.baseline}"
            why = f"{figure.title or figure.name} {figure.show(figure.value)} against {other} {words}"
            said.setdefault(verdict, []).append(
                f"{figure.slot} ({why}{'' if verdict == 'better' else f'; {figure.counted}'})"
            )
    parts = []
    if "better" in said:
        parts.append(f"The model obeys {_listed(said['better'])}.")
    if "no difference" in said:
        parts.append(f"It is not seen to obey {_listed(said['no difference'])}.")
    if "too few" in said:
        parts.append(f"It was judged on too few independent images for a verdict: {_listed(said['too few'])}.")
    if "worse" in said:
        parts.append(f"It does worse by the right conditions than by others': {_listed(said['worse'])}.")
    text = " ".join(parts)
    return text if text.startswith("The model") else text.replace("It ", "The model ", 1)


def adherence(results: Results) -> list[Figure]:
    """For each slot the figure that says best whether it is obeyed: a judge's, the conditioner's own, else the gain."""
    chosen: dict[str, Figure] = {}
    for name in ADHERENCE:
        for figure in results.figures:
            if figure.name == name and figure.slot is not None and figure.verdict() is not None:
                chosen.setdefault(figure.slot, figure)
    return list(chosen.values())


def _against(results: Results) -> list[str]:
    """A sentence for each baseline that is no other condition."""
    told: dict[str, dict[Verdict, list[Figure]]] = {}
    for figure in results.figures:
        verdict = figure.verdict()
        if verdict is not None and figure.baseline is not None and figure.name not in ADHERENCE:
            told.setdefault(figure.baseline, {}).setdefault(verdict, []).append(figure)
    words: dict[Verdict, str] = {
        "better": "better by",
        "worse": "worse by",
        "no difference": "no difference seen by",
        "too few": "too few independent images for a verdict by",
    }
    return [
        f"Against {baseline}: "
        + "; ".join(
            f"{words[verdict]} {_listed([f.title or f.name for f in found[verdict]])}"
            for verdict in words
            if verdict in found
        )
        + "."
        for baseline, found in told.items()
    ]


def _listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
