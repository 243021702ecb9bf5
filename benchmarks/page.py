"""`docs/explanation/performance.md` from the figures in `performance.json` beside it, and the notes in `performance-notes.md`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

NOTES = Path(__file__).with_name("performance-notes.md")
HEAD = """# Performance

Ratios to diffusers, how many times as fast: above 1 ldmkit is faster. This page is written by `python -m benchmarks` from
`performance.json`, which holds the seconds too, and the machine and versions of every figure.

Both sides run in one process, in turns, on one thread; what counts is CPU time, and the median over the rounds of each round's
ratio. Both have the same weights, random ones as in the middle of training, and their outputs are compared first: `error` is the
norm of the difference relative to diffusers in float32. Other work ran on the machine at the same time: a tenth more or less
means nothing.
"""
TITLES = {
    "forward": ("UNet, one prediction", "No gradient. `tokens`: how many the cross-attention reads."),
    "training": (
        "Training step",
        """Forward, backward, clipping, AdamW, average of the weights. diffusers as in its scripts (torch's AdamW as it is,
`EMAModel`), ldmkit as `ldmkit run` (fused AdamW, one `foreach` average). bf16: autocast over float32 weights, attention that
needs a gradient in float32. The error is that of the gradients' norm.""",
    ),
    "sampling": (
        "Guided sampling",
        "DDIM with classifier-free guidance, null and condition in one batch on both sides. The last rows change the result.",
    ),
    "encode": ("Encoding", "bf16 with channels last."),
    "decode": ("Decoding", "Upsampling and the convolution after it are one transposed convolution in float32."),
}
QUALITY = """## Sampling at equal quality

Of a trained model, its own guidance: the distance to 1,000 steps of DDIM from the same noise (norm of the difference relative to
the latents'), and how many times as fast as 50 steps. `cache n`: the inner blocks run in every n-th evaluation.

"""
MEMORY = """## Peak memory of a training step

Beside the weights: gradients, the optimizer's state, the average, activations. Each side in a process of its own; ratios to
diffusers, below 1 is less.

"""
SEARCH = """## Nearest code

How many times as fast as `torch.cdist` and `argmin`, see [nearest code](nearest-code.md).

"""
START = """## Start

CPU seconds of a process of its own, the least of several.

"""


def key(row: dict[str, Any]) -> str:
    """What a row is of: a newer one replaces it."""
    return str([row.get(name) for name in ("network", "shape", "tokens", "batch", "vectors", "codes", "width")])


def page(data: dict[str, Any]) -> str:
    """The whole page."""
    parts = [HEAD]
    for device in ("cpu", "cuda"):
        own = data.get(device)
        parts.append("# On a CPU\n" if device == "cpu" else "# On a GPU\n")
        if not own:
            parts.append(
                "Not run: `python -m benchmarks --device cuda` does it, and nothing here was measured on a GPU.\n"
            )
            continue
        machines = sorted({" · ".join(row["machine"].values()) for rows in own.values() for row in rows})
        parts.append("Machine: " + "; ".join(machines) + ".\n")
        for name, (title, note) in TITLES.items():
            if own.get(name):
                parts.append(f"## {title}\n\n{note}\n\n{_timed(own[name])}")
            if name == "sampling" and own.get("quality"):
                parts.append(_quality(own["quality"]))
        parts += [_memory(own["memory"])] if own.get("memory") else []
        parts += [_search(own["search"])] if own.get("search") else []
        parts += [_start(own["start"])] if own.get("start") else []
    return "\n".join([*parts, NOTES.read_text("utf-8")])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _timed(rows: Sequence[dict[str, Any]]) -> str:
    ways = list(dict.fromkeys(way for row in rows for way in row["ways"]))
    head = ["network", "parameters", "input", "tokens", f"{ways[0]}, s", *ways[1:], "error"]
    lines = []
    for row in rows:
        cells = [f"{row['ways'][way]['ratio']:.2f}" if way in row["ways"] else "" for way in ways[1:]]
        wrong = ", ".join(f"{value:.0e} {way}" for way, value in row["errors"].items() if way in ways[1:])
        about = [row["network"], f"{row['parameters'] / 1e6:.1f} M", " x ".join(map(str, row["shape"]))]
        base = f"{row['ways'][ways[0]]['seconds']:.3g}"
        lines.append([*about, str(row.get("tokens") or ""), base, *cells, wrong])
    return _table(head, lines)


def _quality(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        [way, f"{row['errors'][way]:.3f}", f"{row['ways'][way]['ratio']:.2f}"] for row in rows for way in row["ways"]
    ]
    return QUALITY + _table(["way", "distance", "speed"], lines)


def _memory(rows: Sequence[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        base = row["bytes"]["diffusers fp32"]
        others = [f"{value / base:.2f}" for side, value in row["bytes"].items() if side != "diffusers fp32"]
        lines.append([row["network"], str(row["batch"]), f"{base / 2**20:.0f} MiB", *others])
    return MEMORY + _table(["network", "batch", "diffusers fp32", "fp32", "bf16"], lines)


def _search(rows: Sequence[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        found = row["seconds"]
        base = found.get("cdist", found["product"])
        gains = [f"{base / found[way]:.1f}" if way in found else "" for way in ("tree", "product")]
        lines.append([*(f"{row[name]:,}" for name in ("vectors", "codes", "width")), *gains])
    return SEARCH + _table(["vectors", "codes", "channels", "k-d tree", "chunked products"], lines)


def _start(rows: Sequence[dict[str, Any]]) -> str:
    lines = [[name, f"{value:.2f}"] for row in rows for name, value in row.items() if isinstance(value, float)]
    return START + _table(["what", "seconds"], lines)
