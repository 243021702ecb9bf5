"""The page: inputs of the models' conditions, settings, and a result for each model."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from ldmkit import LatentDiffusion, LdmkitError
from ldmkit_demo.inputs import Given, Input
from ldmkit_demo.results import Result, waiting
from ldmkit_demo.sampling import MOST_IMAGES, Frame, Request, frames

STYLE = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
# A font that every system has: none is fetched.
FONT, MONOSPACE = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
MOST_GUIDANCE = 15.0


@dataclass(frozen=True)
class Shown:
    """A model on the page: `run` as the person named it, and what its command line needs besides."""

    run: str
    model: LatentDiffusion
    weights: str = "ema"
    files: tuple[str, ...] = ()

    @property
    def inputs(self) -> tuple[Input, ...]:
        return tuple(Input.of(slot, c, self.model.size) for slot, c in self.model.conditioners.items())

    @property
    def about(self) -> str:
        count = sum(parameter.numel() for parameter in self.model.parameters()) / 1e6
        height, width = self.model.size
        return f"{count:.1f} M parameters, images of {height} x {width}; press Sample"


def build(models: Sequence[Shown]) -> gr.Blocks:
    """Models with the same inputs stand side by side; others have a tab of their own."""
    groups: list[list[Shown]] = []
    for model in models:
        fitting = next((group for group in groups if group[0].inputs == model.inputs), None)
        if fitting is None:
            groups.append([model])
        else:
            fitting.append(model)
    with gr.Blocks(title=f"{', '.join(model.run for model in models)} · ldmkit", analytics_enabled=False) as page:
        gr.HTML('<header class="top"><b>ldmkit demo</b><span>sampled on this machine</span></header>')
        if len(groups) == 1:
            _Panel(groups[0]).draw()
        else:
            with gr.Tabs():
                for group in groups:
                    with gr.Tab(", ".join(Path(model.run).name for model in group)):
                        _Panel(group).draw()
    page.queue(default_concurrency_limit=1)
    queued: gr.Blocks = page
    return queued


class _Panel:
    """Models that are asked for the same."""

    def __init__(self, models: Sequence[Shown]) -> None:
        self.models = models
        self.first = models[0].model
        self.inputs = [Input.of(slot, c, self.first.size) for slot, c in self.first.conditioners.items()]

    def draw(self) -> None:
        with gr.Row(elem_classes="panel"):
            with gr.Column(scale=2, min_width=300, elem_classes="asking"):
                uses = [self._input(one) for one in self.inputs]
                settings = self._settings()
                with gr.Row(elem_classes="buttons"):
                    go = gr.Button("Sample", variant="primary", elem_classes="go")
                    stop = gr.Button("Stop", elem_classes="halt", min_width=80)
            with gr.Column(scale=3, min_width=300), gr.Row(elem_classes="results"):
                results = []
                for shown in self.models:
                    with gr.Column(min_width=280):
                        results.append(gr.HTML(waiting(shown.run, shown.about), apply_default_css=False, padding=False))
        parts = [part for one in self.inputs for part in one.components]
        clicked = gr.on(
            [go.click],
            self._sample,
            inputs=[*uses, *parts, *settings],
            outputs=results,
            show_progress="hidden",
            api_visibility="private",
            concurrency_id="sampling",
        )
        stop.click(None, cancels=[clicked], api_visibility="private")

    def _input(self, one: Input) -> gr.Checkbox:
        """A condition and its tick; giving the condition sets the tick."""
        with gr.Column(elem_classes="condition"):
            use = gr.Checkbox(self._at_first(one.slot), label=one.slot, elem_classes="use", elem_id=f"use-{one.slot}")
            for part in one.components:
                if not part.is_rendered:
                    part.render()  # type: ignore[no-untyped-call]
            if one.widget.help:
                gr.HTML(f'<p class="help">{_escaped(one.widget.help)}</p>', padding=False)
        for part in one.components:
            event = getattr(part, "input", None)
            if event is not None:
                event(None, js="() => true", outputs=use, show_progress="hidden", api_visibility="private")
        return use

    def _at_first(self, slot: str) -> bool:
        """The first condition is asked for, and each that training never left out."""
        slots = list(self.first.conditioners)
        others = frozenset(slots[1:])
        return slot == slots[0] or others not in self.first.conditioners.dropout.trained

    def _settings(self) -> list[gr.components.Component]:
        saved = {"sampler": "ddim", "steps": 50, "guidance": 1.0, **self.first.sampling}
        count = gr.Slider(1, MOST_IMAGES, value=4, step=1, label="images")
        with gr.Accordion("Guidance", open=len(self.inputs) == 1, visible=bool(self.inputs)):
            guidance, expression = self._guidance(saved["guidance"])
        with gr.Accordion("Steps and seed", open=False):
            sampler = gr.Dropdown(sorted(self.first.samplers), value=saved["sampler"], label="sampler")
            steps = gr.Slider(1, 250, value=min(250, saved["steps"]), step=1, label="steps")
            with gr.Row(elem_classes="seed"):
                seed = gr.Number(0, label="seed of the first image", precision=0, minimum=0)
                dice = gr.Button("another", min_width=80)
            dice.click(lambda: random.randrange(1_000_000), outputs=seed, api_visibility="private")
        return [count, sampler, steps, seed, expression, *guidance]

    def _guidance(self, saved: Any) -> tuple[list[gr.components.Component], gr.components.Component]:
        """A scale for each condition, in the order in which they are applied; and a line for all else."""
        order = self._order(saved)
        scales: list[gr.components.Component] = []
        for slot in order:
            value = (
                saved.get(slot, 1.0) if isinstance(saved, Mapping) else saved if isinstance(saved, int | float) else 1.0
            )
            label = f"guidance: {slot}" if len(order) > 1 else "guidance"
            scales.append(gr.Slider(0, MOST_GUIDANCE, value=float(value), step=0.1, label=label))
        expression = gr.Textbox(
            saved if isinstance(saved, str) else "",
            label="guidance as an expression",
            info="goes before the scales; see the guide on sampling",
            visible=len(order) > 1,
        )
        return scales, expression

    def _order(self, saved: Any) -> list[str]:
        slots = list(self.first.conditioners)
        return [*saved, *(slot for slot in slots if slot not in saved)] if isinstance(saved, Mapping) else slots

    def _request(self, values: Sequence[Any], folder: Path) -> tuple[Request, tuple[Path, ...]]:
        """What the components hold -> what is asked of every model, and the files of it. Raises UsageError."""
        rest = iter(values)
        uses = [bool(next(rest)) for _ in self.inputs]
        conditions: dict[str, Given] = {}
        for one, use in zip(self.inputs, uses, strict=True):
            own = [next(rest) for _ in one.components]
            if use:
                conditions[one.slot] = one.given(own, folder)
        count, sampler, steps, seed, expression, *scales = rest
        request = Request(
            conditions,
            count=int(count or 0),
            steps=int(steps or 0),
            sampler=str(sampler),
            guidance=self._asked_guidance(expression, scales),
            seed=int(seed or 0),
        )
        return request, tuple(path for given in conditions.values() for path in given.files)

    def _asked_guidance(self, expression: Any, scales: Sequence[Any]) -> float | dict[str, float] | str | None:
        """One number where all are equal: the scales of all conditions in one step are that of all together."""
        if expression and str(expression).strip():
            return str(expression).strip()
        numbers = [round(float(scale), 6) for scale in scales]
        if len(set(numbers)) <= 1:
            return numbers[0] if numbers else None
        return dict(zip(self._order(self.first.sampling.get("guidance", 1.0)), numbers, strict=True))

    def _sample(self, *values: Any) -> Iterator[Any]:
        """One model after the other; each shows its way."""
        texts = [waiting(shown.run, "waits for the one before it") for shown in self.models]
        with tempfile.TemporaryDirectory(prefix="ldmkit-demo-") as folder:
            try:
                request, files = self._request(values, Path(folder))
            except (LdmkitError, TypeError, ValueError) as error:
                said = error if isinstance(error, LdmkitError) else "what the page sent cannot be read"
                yield _several([Result(shown.run, Frame(error=str(said))).html() for shown in self.models])
                return
            for index, shown in enumerate(self.models):
                command = request.command(shown.run, shown.files, shown.weights)
                for frame in frames(shown.model, request):
                    texts[index] = Result(shown.run, frame, command, files, request.seed).html()
                    yield _several(texts)


def _several(texts: Sequence[str]) -> Any:
    """One output is itself, several are a tuple."""
    return texts[0] if len(texts) == 1 else tuple(texts)


def _escaped(text: str) -> str:
    from html import escape

    return escape(text)
