"""The report: everything is in it, nothing is fetched, nothing a person wrote is executed."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from ldmkit.errors import CheckpointError
from ldmkit.evaluation.report import write_report
from ldmkit.evaluation.report.charts import averaged, line_chart, short, thinned, ticks


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails on tags that do not match."""

    void = frozenset({"meta", "img", "br", "circle", "line", "path"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)


def test_report_is_self_contained_and_escapes_everything(run: Path) -> None:
    text = write_report(run, place="runs/super res").read_text(encoding="utf-8")
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "base", "form"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes)
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/")), tag
    style = text.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    policy = next(
        a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert (
        policy == f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    assert len(text.encode()) < 3_000_000


def test_report_tells_the_story(run: Path) -> None:
    text = write_report(run, place="runs/super res").read_text(encoding="utf-8")
    words = " ".join(" ".join(Page(text).words).split())
    for expected in (
        "conditioned on low_res for 64 x 64 pictures (photos)",
        "Trained and evaluated in 6:40 min",
        "24.30 dB",
        "24.00 to 24.60 dB",
        "bicubic: 25.00 dB",
        "worse than bicubic",
        "Against bicubic: worse by PSNR.",
        "autoencoder step 50: codebook collapsed",
        "The model may not listen to low_res",
        "1,234,567",
        "endless",
        "https://example.org/photo",
        "torch.version",
        "ldmkit sample 'runs/super res' --held-out 4",
        "ldmkit export 'runs/super res' --format hub",
    ):
        assert expected in words
    assert text.count("<img ") == 2  # the sheet and the grid; not latest.png, nothing outside the run
    assert [file.name for file in run.iterdir() if file.name.startswith(".")] == []


def test_heavy_pictures_are_embedded_lighter(run: Path) -> None:
    text = write_report(run).read_text(encoding="utf-8")
    assert (run / "samples" / "grid.png").stat().st_size > 300_000
    kinds = re.findall(r'src="data:image/(\w+);', text)
    assert kinds == ["png", "webp"]


def test_a_run_that_has_just_begun_has_a_report(tmp_path: Path) -> None:
    (tmp_path / "recipe.resolved.yaml").write_text("name: young\n")
    text = write_report(tmp_path).read_text()
    Page(text)
    assert "has not been evaluated" in text
    assert "unconditional" in text


def test_damaged_files_are_named_and_the_rest_is_shown(run: Path) -> None:
    (run / "evaluation.json").write_text('{"schema": 1, "figures": 3')
    (run / "status.json").write_text("\x00")
    (run / "samples" / "grid.png").write_bytes(b"no picture")
    text = write_report(run).read_text(encoding="utf-8")
    Page(text)
    assert "evaluation.json cannot be read" in text
    assert "status.json cannot be read" in text
    assert "codebook collapsed" in text


def test_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no recipe\.resolved\.yaml"):
        write_report(tmp_path)


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0.0, 100.0, 5) == [0, 20, 40, 60, 80, 100]
    assert ticks(0.13, 0.36, 5) == pytest.approx([0.15, 0.2, 0.25, 0.3, 0.35])
    assert ticks(-3.0, 4.0, 4) == [-2, 0, 2, 4]
    assert ticks(5.0, 5.0, 4) == [5.0]
    assert [short(v) for v in (0.0, 1500.0, 0.021, 3e-5, 2.5e6)] == ["0", "1.5k", "0.021", "3e-05", "2.5e+06"]


def test_lines_are_drawn_where_the_values_are() -> None:
    svg = line_chart({"a": [(0.0, 0.0), (10.0, 1.0)]}, title="t")
    points = re.search(r'class="c0" d="M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)"', svg)
    assert points is not None
    x0, y0, x1, y1 = map(float, points.groups())
    assert (x0, x1) == (56.0, 548.0)
    assert y0 > y1  # up is more
    assert line_chart({"a": []}, title="t") == ""
    assert "NaN" not in line_chart({"a": [(1.0, 0.0)]}, title="t")
    steep = line_chart({"a": [(float(x), 10.0**-x) for x in range(5)]}, title="t")
    ys = [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", steep)]
    gaps = [b - a for a, b in pairwise(ys)]
    assert max(gaps) - min(gaps) < 0.2  # a logarithmic axis makes an exponential a straight line


def test_thinning_and_smoothing_keep_straight_lines_straight() -> None:
    line = [(float(x), 2.0 * x) for x in range(1000)]
    assert all(y == pytest.approx(2 * x) for x, y in thinned(line, 100))
    assert len(thinned(line, 100)) == 100
    assert averaged(line[:50], 5) == line[:50]
