"""Each hook is called as it is specified, and documented under its signature."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from pathlib import Path

import click
import pytest

from ldmkit import hookimpl, plugins
from ldmkit.errors import PluginError
from ldmkit.plugins import hookspecs
from ldmkit.plugins.catalog import KINDS

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


@pytest.mark.parametrize("kind", KINDS)
def test_registration_hooks_fill_the_catalog_of_their_kind(kind):
    def registration(register):
        register("mine", "a:B")

    plugin = type("Plugin", (), {f"ldmkit_register_{kind}": staticmethod(hookimpl(registration))})()
    registry = plugins.load(only=[], extra=[plugin])
    assert "mine" in registry.catalogs[kind]
    assert sum("mine" in catalog for catalog in registry.catalogs.values()) == 1


def test_every_registration_hook_has_its_kind():
    assert {f"ldmkit_register_{kind}" for kind in (*KINDS, "models", "commands")} == {
        h for h in HOOKS if "_register_" in h
    }


class Shipping:
    """A plugin with models: (name, folder)."""

    def __init__(self, *models: tuple[object, object]) -> None:
        self.models = models

    @hookimpl
    def ldmkit_register_models(self, register):
        for name, folder in self.models:
            register(name, folder)


def test_a_plugins_model_is_known_by_its_name(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    models = plugins.load(only=[], extra=[Shipping(("small", tmp_path))]).models
    assert models.names() == ("small",)
    assert models.folder("small") == tmp_path
    assert models.nearest("smal") == "small"


def test_two_models_of_one_name_are_an_error_for_whoever_asks(tmp_path):
    models = plugins.load(only=[], extra=[Shipping(("small", tmp_path)), Shipping(("small", tmp_path))]).models
    with pytest.raises(PluginError, match="'small' is registered twice: by Shipping and Shipping"):
        models.folder("small")


def test_a_model_whose_folder_is_gone_says_so(tmp_path):
    models = plugins.load(only=[], extra=[Shipping(("small", tmp_path / "gone"))]).models
    with pytest.raises(PluginError, match="the model 'small' of Shipping is not in"):
        models.folder("small")


@pytest.mark.parametrize(
    ("models", "words"),
    [
        ([("Small", "/a")], "registers the model 'Small': names are lower-case"),
        ([("small", "package:folder")], "give its folder, an absolute path"),
        ([("small", "/a"), ("small", "/b")], "registers the model 'small' twice"),
    ],
)
def test_a_model_registered_wrongly_is_refused(models, words):
    with pytest.raises(PluginError, match=words):
        plugins.load(only=[], extra=[Shipping(*models)])


class Commands:
    """A plugin with the commands that it is given."""

    def __init__(self, *names: str) -> None:
        self.names = names

    @hookimpl
    def ldmkit_register_commands(self, group):
        for name in self.names:
            group.add_command(click.Command(name, callback=lambda: click.echo("mine")))


def test_a_plugins_command_is_one_of_the_group():
    group = click.Group("ldmkit", commands={"run": click.Command("run")})
    registry = plugins.load(only=[], extra=[Commands("demo")])
    registry.commands(group)
    assert set(group.commands) == {"run", "demo"}
    assert registry.problems == []


def test_a_command_that_is_there_is_not_replaced():
    own = click.Command("run")
    group = click.Group("ldmkit", commands={"run": own})
    registry = plugins.load(only=[], extra=[Commands("demo", "run")])
    registry.commands(group)
    assert group.commands == {"run": own}
    assert "registers the command 'run', which is there already" in str(registry.problems[0])


def test_commands_that_fail_leave_the_others(monkeypatch):
    class Broken:
        @hookimpl
        def ldmkit_register_commands(self, group):
            group.add_command(click.Command("half"))
            raise RuntimeError("no")

    group = click.Group("ldmkit")
    registry = plugins.load(only=[], extra=[Broken(), Commands("demo")])
    registry.commands(group)
    assert set(group.commands) == {"demo"}
    assert "its commands fail: RuntimeError: no" in str(registry.problems[0])


@pytest.mark.parametrize("name", HOOKS)
def test_the_reference_has_a_heading_equal_to_each_hooks_signature(name):
    signature = ", ".join(inspect.signature(HOOKS[name]).parameters)
    assert f"\n## {name}({signature})\n" in REFERENCE.read_text("utf-8")


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_says_what_it_is_for(name):
    assert HOOKS[name].__doc__
