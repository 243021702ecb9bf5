"""Faults of plugins: each stops only what needs it, and says plugin, version, cause and remedy."""

from __future__ import annotations

import json
import pickle
import signal
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from ldmkit import cli, plugins
from ldmkit.errors import PluginError, UsageError
from ldmkit.plugins import Registry


def problem(registry: Registry, distribution: str) -> plugins.Problem:
    return next(found for found in registry.problems if found.origin.distribution == distribution)


def foreign(registry: Registry) -> set[str]:
    """The conditioners that are not ldmkit's own."""
    return {entry.name for entry in registry.conditioners.entries() if entry.origin.distribution != "ldmkit"}


def test_a_good_plugin_is_found_with_its_origin(install, registers):
    install("ldmkit-depth", registers("depth", "depth_part:Depth"), version="1.2")
    registry = plugins.load()
    entry = registry.conditioners.entry("depth")
    assert entry.target == "depth_part:Depth"
    assert (entry.origin.distribution, entry.origin.version, entry.origin.entry_point) == (
        "ldmkit-depth",
        "1.2",
        "depth",
    )
    assert "depth_part" not in sys.modules


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("import a_package_that_is_not_there", "ModuleNotFoundError: No module named 'a_package_that_is_not_there'"),
        ("raise ValueError('first line\\nlast line')", "ValueError: last line"),
        ("def broken(:\n    pass", "SyntaxError: invalid syntax"),
        ("import sys; sys.exit(7)", "it exits the program (SystemExit: 7)"),
        ("x = 1", "it implements no hook: is `@hookimpl` missing above its functions?"),
    ],
)
def test_a_plugin_that_cannot_be_imported_is_reported_and_the_others_work(install, registers, code, cause):
    install("ldmkit-bad", code)
    install("ldmkit-good", registers("good"))
    registry = plugins.load()
    found = problem(registry, "ldmkit-bad")
    assert found.cause.startswith(cause)
    assert found.origin.version == "1.0"
    assert "good" in registry.conditioners
    assert "ddim" in registry.samplers


def test_signal_handlers_set_at_import_are_put_back(install):
    before = signal.getsignal(signal.SIGINT)
    install("ldmkit-greedy", "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n")
    plugins.load()
    assert signal.getsignal(signal.SIGINT) is before


def test_an_unknown_argument_of_a_hook_is_named_with_those_allowed(install):
    install(
        "ldmkit-wrong",
        """
        from ldmkit import hookimpl

        @hookimpl
        def ldmkit_step_logged(run, step, values):
            pass
        """,
    )
    cause = problem(plugins.load(), "ldmkit-wrong").cause
    assert cause == "hook ldmkit_step_logged: argument values unknown; allowed: run, step, metrics"


def test_a_misspelt_hook_gets_a_suggestion_and_leaves_nothing_behind(install):
    install(
        "ldmkit-typo",
        """
        from ldmkit import hookimpl

        @hookimpl
        def ldmkit_register_metrics(register):
            register("half", "a:B")

        @hookimpl
        def ldmkit_register_conditioner(register):
            register("depth", "a:B")
        """,
    )
    registry = plugins.load()
    found = problem(registry, "ldmkit-typo")
    assert found.cause == (
        "there is no hook 'ldmkit_register_conditioner'; did you mean 'ldmkit_register_conditioners'?"
    )
    assert "ldmkit_run_started" in found.remedy
    assert "half" not in registry.metrics


def test_what_was_registered_before_an_exception_is_not_kept(install):
    install(
        "ldmkit-half",
        """
        from ldmkit import hookimpl

        @hookimpl
        def ldmkit_register_conditioners(register):
            register("first", "a:B")
            raise RuntimeError("no")
        """,
    )
    registry = plugins.load()
    assert problem(registry, "ldmkit-half").cause == "its registration fails: RuntimeError: no"
    assert "first" not in registry.conditioners


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            "register('De_pth', 'a:B')",
            "it registers the conditioner 'De_pth': names are lower-case words joined by '-'",
        ),
        ("register('depth', 'a.B')", "it registers the conditioner 'depth' as 'a.B': write 'package.module:Name'"),
        ("register('depth', 5)", "it registers the conditioner 'depth' as 5: give 'package.module:Name' or a class"),
        ("register('depth', 'a:B'); register('depth', 'a:C')", "it registers the conditioner 'depth' twice"),
    ],
)
def test_what_register_refuses(install, call, message):
    install(
        "ldmkit-odd",
        f"from ldmkit import hookimpl\n@hookimpl\ndef ldmkit_register_conditioners(register):\n    {call}\n",
    )
    assert problem(plugins.load(), "ldmkit-odd").cause == message


def test_one_entry_point_name_in_two_distributions_works_side_by_side(install, registers):
    install("ldmkit-one", registers("one"), entry="shared")
    install("ldmkit-two", registers("two"), entry="shared")
    registry = plugins.load()
    assert registry.problems == []
    assert foreign(registry) >= {"one", "two"}
    origins = {name: registry.conditioners.entry(name).origin.distribution for name in ("one", "two")}
    assert origins == {"one": "ldmkit-one", "two": "ldmkit-two"}
    assert foreign(plugins.load(only=["ldmkit-two"])) == {"two"}


def test_what_a_plugin_prints_at_import_is_on_standard_error(install, registers, capsys):
    install("ldmkit-loud", "print('hello')\n" + registers("loud"))
    plugins.load()
    out, err = capsys.readouterr()
    assert (out, "hello" in err) == ("", True)


def test_a_registry_is_found_again_from_what_it_was_made_of(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from ldmkit import hookimpl\n@hookimpl\ndef ldmkit_register_conditioners(register): register('mine', 'a:B')\n"
    )
    registry = plugins.load(files=[file])
    sent = pickle.loads(pickle.dumps(registry.discovery))
    assert set(sent.again().conditioners) == set(registry.conditioners)
    assert "mine" in sent.again().conditioners


def test_one_name_by_two_plugins_is_an_error_that_names_both_and_can_be_resolved(install, registers):
    install("ldmkit-one", registers("depth", "one:Depth"))
    install("ldmkit-two", registers("depth", "two:Depth"), version="2.0")
    catalog = plugins.load().conditioners
    with pytest.raises(
        PluginError, match=r"'depth' is registered twice: by ldmkit-one 1.0 and ldmkit-two 2.0"
    ) as caught:
        catalog.entry("depth")
    assert "type: ldmkit-one:depth" in (caught.value.hint or "")
    assert catalog.entry("ldmkit-two:depth").target == "two:Depth"
    assert catalog.entry("class").origin.distribution == "ldmkit-class"


@pytest.mark.parametrize("requires", ["ldmkit>=99", "ldmkit<0.0.1; python_version > '3'"])
def test_a_plugin_for_another_version_is_refused_by_its_own_requirement(install, registers, requires):
    install("ldmkit-future", registers("future"), requires=requires)
    registry = plugins.load()
    assert "it needs ldmkit" in problem(registry, "ldmkit-future").cause
    assert "future" not in registry.conditioners


def test_a_requirement_of_an_extra_does_not_count(install, registers):
    install("ldmkit-extra", registers("extra"), requires="ldmkit>=99; extra == 'next'")
    assert "extra" in plugins.load().conditioners


def test_an_unknown_name_says_what_is_there_what_is_near_or_what_to_install():
    with pytest.raises(PluginError) as caught:
        plugins.load(only=["class", "text"]).conditioners.entry("clas")
    assert str(caught.value) == (
        "no conditioner is called 'clas'; installed: class, given, text; did you mean 'class'?\n"
        "  `ldmkit plugins list` shows what is installed; a plugin of one file is given with -p"
    )
    with pytest.raises(PluginError, match="Perhaps a package is missing: pip install ldmkit-zebra"):
        plugins.load(only=["class", "text"]).conditioners.entry("zebra")


def test_an_unknown_name_points_to_the_broken_plugin_of_that_name(install):
    install("ldmkit-depth", "import not_there")
    with pytest.raises(PluginError, match=r"plugin ldmkit-depth 1.0: ModuleNotFoundError: No module named 'not_there'"):
        plugins.load().conditioners.entry("depth")


def test_the_variable_chooses_plugins_and_built_ins_stay(monkeypatch):
    monkeypatch.setenv("LDMKIT_PLUGINS", "class, ldmkit-low-res")
    assert foreign(plugins.load()) == {"class", "low-res"}
    monkeypatch.setenv("LDMKIT_PLUGINS", "")
    registry = plugins.load()
    assert foreign(registry) == set()
    assert "photos" in registry.data_sources
    monkeypatch.setenv("LDMKIT_PLUGINS", "clas")
    with pytest.raises(PluginError, match=r"no plugin 'clas' is installed; did you mean 'class'\?"):
        plugins.load()


def test_no_autoload_is_no_plugin_unless_one_is_named(monkeypatch):
    monkeypatch.setenv("LDMKIT_DISABLE_PLUGIN_AUTOLOAD", "1")
    registry = plugins.load()
    assert foreign(registry) == set()
    with pytest.raises(
        PluginError, match=r"plugin ldmkit-text 0\..*: it is left out by LDMKIT_DISABLE_PLUGIN_AUTOLOAD\n  Unset"
    ):
        registry.conditioners.entry("text")
    monkeypatch.setenv("LDMKIT_PLUGINS", "text")
    assert foreign(plugins.load()) == {"text"}
    monkeypatch.delenv("LDMKIT_PLUGINS")
    monkeypatch.setenv("LDMKIT_DISABLE_PLUGIN_AUTOLOAD", "0")
    assert "text" in plugins.load().conditioners


def test_one_plugin_is_switched_off_by_its_name_and_a_typo_is_an_error():
    everything = foreign(plugins.load())
    with plugins.switched_off(["ldmkit-text", "class"]):
        registry = plugins.load()
    assert foreign(registry) == everything - {"text", "class"}
    assert {plugin.origin.distribution for plugin in registry.left_out} == {"ldmkit-text", "ldmkit-class"}
    with pytest.raises(PluginError, match="it is switched off\n  Leave out --no-plugin"):
        registry.conditioners.entry("text")
    with (
        plugins.switched_off(["txt"]),
        pytest.raises(PluginError, match=r"no plugin 'txt' is installed; did you mean 'text'\?"),
    ):
        plugins.load()
    assert foreign(plugins.load()) == everything


def test_the_command_switches_one_off(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["plugins", "list", "--no-plugin", "text", "--json"])
    assert not stop.value.code
    told = json.loads(capsys.readouterr().out)
    assert "text" not in {entry["name"] for entry in told["registered"]}
    assert [(plugin["distribution"], plugin["cause"]) for plugin in told["left_out"]] == [
        ("ldmkit-text", "it is switched off")
    ]
    assert "text" in plugins.load().conditioners


def test_a_plugin_of_one_file_is_recorded_with_its_path(tmp_path, registers):
    file = tmp_path / "my_plugin.py"
    file.write_text(registers("mine"))
    origin = plugins.load(files=[file]).conditioners.entry("mine").origin
    assert origin.file == str(file)


def test_a_broken_file_is_an_error_at_once(tmp_path):
    file = tmp_path / "broken.py"
    file.write_text("1 / 0")
    with pytest.raises(PluginError, match=r"broken\.py cannot be imported: ZeroDivisionError: division by zero"):
        plugins.load(files=[file])
    with pytest.raises(UsageError, match="there is no plugin file"):
        plugins.load(files=[tmp_path / "missing.py"])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("class Depth: pass", "and not a subclass of ldmkit.conditioning.Conditioner"),
        ("from ldmkit import Conditioner\nclass Depth(Conditioner): pass", "lacks encode, null"),
        ("Dept = 1", "ImportError: parts has no 'Depth'; did you mean 'Dept'?"),
    ],
)
def test_what_is_loaded_is_checked(install, registers, tmp_path, body, message):
    install("ldmkit-depth", registers("depth", "parts:Depth"))
    (tmp_path / "site" / "parts.py").write_text(body)
    with pytest.raises(PluginError, match=message):
        plugins.load().conditioners.load("depth")


def test_an_option_named_like_a_slots_own_key_is_refused(install, registers, tmp_path):
    install("ldmkit-depth", registers("depth", "parts:Depth"))
    (tmp_path / "site" / "parts.py").write_text(
        dedent("""
        from ldmkit import Conditioner, Ports

        class Depth(Conditioner):
            reads = ("depth",)
            def __init__(self, *, dropout: float = 0.1):
                super().__init__()
                self.emits = Ports(vector=1)
            def encode(self, prepared, canvas): ...
            def null(self, canvas): ...
        """)
    )
    with pytest.raises(PluginError, match="Depth has an option `dropout`, a name that recipes use themselves"):
        plugins.load().conditioners.load("depth")


def test_every_built_in_loads_and_has_options():
    registry = plugins.load(only=[])
    for catalog in registry.catalogs.values():
        for name in catalog.names():
            assert isinstance(catalog.options(name).names(), tuple), Path(name)
