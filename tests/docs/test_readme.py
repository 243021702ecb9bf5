"""The README's code runs, and its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import ldmkit
from ldmkit import plugins
from ldmkit.testing import check_conditioner

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_plugin_of_the_readme_is_a_plugin_and_keeps_the_contract(tmp_path):
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.S) if "hookimpl" in block]
    file = tmp_path / "my_plugin.py"
    file.write_text(code)
    registry = plugins.load(only=(), files=[file])
    depth = registry.conditioners.load("depth")
    sample = {"depth": torch.rand(1, 64, 64) * 8}
    check_conditioner(depth(features=3), sample, others=[{"depth": torch.zeros(1, 64, 64)}])


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!https?:)([^)#]+)\)", README))))
def test_a_link_of_the_readme_leads_somewhere(target):
    assert (ROOT / target).exists()


def test_the_names_of_the_readme_exist():
    for name in re.findall(r"ldmkit\.(\w+)\(", README):
        assert callable(getattr(ldmkit, name))
