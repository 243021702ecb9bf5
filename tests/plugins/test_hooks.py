"""Each hook is called as it is specified, and documented under its signature."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ldmkit import hookimpl, plugins
from ldmkit.errors import PluginError
from ldmkit.plugins import hookspecs

HOOKS = {name: value for name, value in vars(hookspecs).items() if name.startswith("ldmkit_")}
REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "hooks.md"


@dataclass
class Run:
    path: Path = Path("runs/a")
    recipe: object = None


@dataclass
class Observer:
    calls: list = field(default_factory=list)

    @hookimpl
    def ldmkit_run_started(self, run):
        self.calls.append(("started", run.path))

    @hookimpl
    def ldmkit_step_logged(self, step, metrics):
        self.calls.append(("step", step, dict(metrics)))

    @hookimpl
    def ldmkit_run_finished(self, run, error):
        self.calls.append(("finished", error))


def test_observers_get_the_facts_and_only_the_arguments_they_name():
    observer, run, error = Observer(), Run(), ValueError("x")
    registry = plugins.load(only=[], extra=[observer])
    registry.run_started(run)
    registry.step_logged(run, 7, {"loss": 0.5})
    registry.run_finished(run, error)
    assert observer.calls == [("started", run.path), ("step", 7, {"loss": 0.5}), ("finished", error)]


def test_an_observer_cannot_change_the_numbers():
    class Meddler:
        @hookimpl
        def ldmkit_step_logged(self, metrics):
            metrics["loss"] = 0.0

    metrics = {"loss": 0.5}
    with pytest.raises(PluginError, match="plugin Meddler failed in ldmkit_step_logged at step 3: TypeError"):
        plugins.load(only=[], extra=[Meddler()]).step_logged(Run(), 3, metrics)
    assert metrics == {"loss": 0.5}


@pytest.mark.parametrize("kind", ["conditioners", "data_sources", "samplers", "metrics"])
def test_registration_hooks_fill_the_catalog_of_their_kind(kind):
    def registration(register):
        register("mine", "a:B")

    plugin = type("Plugin", (), {f"ldmkit_register_{kind}": staticmethod(hookimpl(registration))})()
    registry = plugins.load(only=[], extra=[plugin])
    assert "mine" in registry.catalogs[kind]
    assert sum("mine" in catalog for catalog in registry.catalogs.values()) == 1


@pytest.mark.parametrize("name", HOOKS)
def test_the_reference_has_a_heading_equal_to_each_hooks_signature(name):
    signature = ", ".join(inspect.signature(HOOKS[name]).parameters)
    assert f"\n## {name}({signature})\n" in REFERENCE.read_text("utf-8")


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_says_what_it_is_for(name):
    assert HOOKS[name].__doc__
