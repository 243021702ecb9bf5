"""The site is built without a network and without a warning, asks nobody for anything, and has no page that nothing leads to."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
# What a newcomer asks, where it is told, and words that are there.
QUESTIONS = [
    ("How do I get a first image?", "tutorial/first-run.md", "ldmkit run superres"),
    ("What is a slot, a port, a null?", "concepts.md", "a named place for a conditioner"),
    ("How do I train on my own photographs?", "how-to/your-data.md", "type: folder"),
    ("How do I condition on something new?", "tutorial/conditioner.md", "check_conditioner"),
    ("How strong should guidance be?", "how-to/choose.md", "## Guidance"),
    ("Why are my images grey?", "how-to/troubleshooting.md", "grey"),
    ("What do I do when memory runs out?", "how-to/troubleshooting.md", "train.accumulate"),
    ("Can I stop and continue?", "how-to/long-runs.md", "The same command continues"),
    ("How do I use a Stable Diffusion checkpoint?", "how-to/import-checkpoints.md", "stable-diffusion-v1-5"),
    ("Which options has the sampler ddim?", "reference/components.md", "### ddim"),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    # A proxy that is none: whatever asked for something would fail.
    offline = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, **offline},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.slow
def test_nothing_is_asked_of_another_host(site):
    loads = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)=[\"']?((?:https?:)?//[^\"'\s>]+)")
    for page in site.rglob("*.html"):
        foreign = [url for url in loads.findall(page.read_text("utf-8")) if "canonical" not in url]
        assert foreign == [], page


@pytest.mark.slow
def test_docstrings_are_on_the_pages(site):
    page = (site / "reference" / "python" / "latent_diffusion.html").read_text("utf-8")
    assert "ldmkit.latent_diffusion.LatentDiffusion" in page
    assert "autoguidance by a path" in page


def test_every_page_is_in_the_navigation():
    listed = set(_pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"]))
    assert listed == {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}


def _pages(nav: object) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    elif isinstance(nav, dict):
        for inner in nav.values():
            yield from _pages(inner)
    elif isinstance(nav, list):
        for inner in nav:
            yield from _pages(inner)


@pytest.mark.parametrize(("question", "page", "words"), QUESTIONS, ids=[question for question, *_ in QUESTIONS])
def test_a_newcomers_question_is_within_two_clicks_of_the_start_page(question, page, words):
    assert words in (DOCS / page).read_text("utf-8")
    first = _links("index.md")
    second = {further for near in first for further in _links(near)}
    assert page in first | second, f"{question} is told in {page}, and nothing leads there"


def _links(page: str) -> set[str]:
    found = re.findall(r"\]\((?!https?:)([^)#\s]+\.md)", (DOCS / page).read_text("utf-8"))
    return {(DOCS / page).parent.joinpath(link).resolve().relative_to(DOCS.resolve()).as_posix() for link in found}
