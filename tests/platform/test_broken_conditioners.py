"""What a plugin does wrong in a run stops it with slot, plugin, cause and remedy, and nothing that was saved before is lost."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from ldmkit import hookimpl, plugins
from ldmkit.assembly import build, datasets, fit
from ldmkit.conditioning import Canvas, Conditioner, ConditionerSet, Conditioning
from ldmkit.conditioning import user_inputs as user_values
from ldmkit.conditioning.conditioner_set import CLOSE_LOOK
from ldmkit.data import batches
from ldmkit.errors import DataError, PluginError, RecipeError, UsageError
from ldmkit.recipe import Recipe
from ldmkit.runs.directory import read_status
from ldmkit.runs.run import run
from ldmkit.training.checkpointing.checkpoints import Checkpoints
from tests.platform.conftest import Level

CANVAS = Canvas((32, 32), (8, 8), torch.device("cpu"), torch.float32, lambda images: images)


class GivesNone(Level):
    def encode(self, prepared, canvas):
        super().encode(prepared, canvas)


class GivesATensor(Level):
    def encode(self, prepared, canvas):
        return super().encode(prepared, canvas).tokens


class Double(Level):
    def encode(self, prepared, canvas):
        return super().encode(prepared, canvas).map(torch.Tensor.double)


class Elsewhere(Level):
    def encode(self, prepared, canvas):
        return super().encode(prepared, canvas).map(lambda value: value.to("meta"))


class OneRow(Level):
    def encode(self, prepared, canvas):
        return super().encode(prepared, canvas).map(lambda value: value[:1])


class NoVector(Level):
    def encode(self, prepared, canvas):
        return Conditioning(tokens=super().encode(prepared, canvas).tokens)


class NullOfTwoRows(Level):
    def null(self, canvas):
        return super().null(canvas).expand(2)


class NotANumber(Level):
    def encode(self, prepared, canvas):
        return Level.encode(self, prepared, canvas).map(lambda value: value / (value - value))


class MaskOfNumbers(Level):
    def encode(self, prepared, canvas):
        answer = super().encode(prepared, canvas)
        return Conditioning(tokens=answer.tokens, vector=answer.vector, mask=torch.ones(2, 1))


class HidesAll(Level):
    def encode(self, prepared, canvas):
        answer = super().encode(prepared, canvas)
        return Conditioning(tokens=answer.tokens, vector=answer.vector, mask=torch.zeros(2, 1, dtype=torch.bool))


class Fails(Level):
    def encode(self, prepared, canvas):
        raise KeyError("level")


class ChangesTheBatch(Level):
    def encode(self, prepared, canvas):
        prepared["level"] *= 2
        return super().encode(prepared, canvas)


class ChangesTheFolder(Level):
    def encode(self, prepared, canvas):
        os.chdir("/")
        return super().encode(prepared, canvas)


WRONG: list[tuple[type[Level], str]] = [
    (GivesNone, r"gave NoneType; expected Conditioning"),
    (GivesATensor, r"gave Tensor; expected Conditioning"),
    (Double, r"gave tokens in float64; the canvas is float32\n.*canvas\.dtype"),
    (Elsewhere, r"gave tokens on meta; the canvas is on cpu\n.*canvas\.zeros"),
    (OneRow, r"gave tokens of shape \(1, 1, 4\); expected \(2, length, 4\)"),
    (NoVector, r"gave vector of shape None; expected \(2, 4\) from emits"),
    (NullOfTwoRows, r"gave tokens of shape \(2, 1, 4\); expected \(1, length, 4\)"),
    (NotANumber, r"gave tokens with NaN or infinite values from encode\n.*division by 0"),
    (MaskOfNumbers, r"gave a mask \(2, 1\) float32 beside tokens \(2, 1, 4\); expected \(batch, length\) bool on cpu"),
    (HidesAll, r"gave a mask with a row that attends to nothing"),
    (Fails, r"raised KeyError in encode: 'level'\n.*check_conditioner"),
    (ChangesTheBatch, r"changed the batch's level"),
    (ChangesTheFolder, r"changed the working directory from .* to /"),
]


def asked(conditioners: ConditionerSet, *, rows: int = 2) -> Conditioning:
    prepared = [{"depth": {"level": torch.tensor([float(row + 1)])}} for row in range(rows)]
    batch = conditioners.collate(torch.zeros(rows, 3, 1, 1), prepared, torch.arange(rows))
    return conditioners(batch.prepared, batch.present, CANVAS, rows)


def slots(conditioner: Conditioner) -> ConditionerSet:
    return ConditionerSet({"depth": conditioner}, vector_width=8, origins={"depth": "ldmkit-depth 1.2"})


@pytest.mark.parametrize(("kind", "words"), WRONG, ids=[kind.__name__ for kind, _ in WRONG])
def test_a_wrong_answer_names_slot_plugin_what_came_and_what_was_promised(kind, words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    name = rf"^the conditioner of slot depth \({kind.__name__}, ldmkit-depth 1\.2\) "
    with pytest.raises(PluginError, match=f"(?s){name}{words}"):
        asked(slots(kind()).train())


def test_a_sound_one_passes():
    assert asked(slots(Level()).train()).tokens.shape == (2, 1, 4)


class BreaksLater(Level):
    broken = False

    def encode(self, prepared, canvas):
        return (NotANumber if self.broken else Level).encode(self, prepared, canvas)


def test_numbers_are_looked_at_again_later_and_weights_that_went_astray_are_not_the_plugins_fault():
    conditioners = slots(BreaksLater()).train()
    asked(conditioners)
    conditioners["depth"].broken = True
    for _ in range(CLOSE_LOOK - 1):
        asked(conditioners)
    with pytest.raises(PluginError, match="NaN or infinite"):
        asked(conditioners)
    conditioners["depth"].net.bias.data.fill_(float("nan"))
    asked(conditioners)  # the training sees its loss, and says that it has diverged


def test_nan_that_prepare_made_is_told_apart():
    conditioners = slots(Level()).train()
    batch = conditioners.collate(
        torch.zeros(1, 3, 1, 1), [{"depth": {"level": torch.tensor([float("nan")])}}], torch.arange(1)
    )
    with pytest.raises(PluginError, match=r"from encode; level had them already, as `prepare` made it"):
        conditioners(batch.prepared, batch.present, CANVAS, 1)


def test_memory_that_runs_out_is_no_fault_of_the_plugin():
    class Large(Level):
        def encode(self, prepared, canvas):
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    with pytest.raises(RuntimeError, match=r"^CUDA out of memory"):
        asked(slots(Large()).train())


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"level": 3.0}, r"prepared \{'level': float\}; expected a dict of tensors"),
        (torch.zeros(1), r"prepared Tensor; expected a dict of tensors"),
        (
            {"level": torch.zeros(2)},
            r"prepared level with the shape \(1\) for the first sample of a batch and \(2\) for number 2",
        ),
        (
            {"depth": torch.zeros(1)},
            r"prepared level with the shape \(1\) for the first sample of a batch and none for number 2",
        ),
    ],
)
def test_what_prepare_and_collate_return_is_looked_at(row, words):
    first: Any = {"level": torch.zeros(1)}
    with pytest.raises(PluginError, match=rf"\(Level, ldmkit-depth 1\.2\) {words}"):
        slots(Level()).collate(torch.zeros(2, 3, 1, 1), [{"depth": first}, {"depth": row}], torch.arange(2))


def test_a_value_of_a_person_that_cannot_be_used_is_theirs_to_mend():
    with pytest.raises(
        UsageError, match=r"slot depth cannot use 'deep': ValueError: could not convert string to float: 'deep'"
    ):
        user_values.prepare(slots(Level()), [{"depth": "deep"}], None, (32, 32))


# in a run


class Registered:
    """A plugin of objects: conditioners by name, a sampler, an observer that fails at a step."""

    kinds: ClassVar[dict[str, type[Conditioner]]] = {}
    fails_at: ClassVar[int] = 0

    @hookimpl
    def ldmkit_register_conditioners(self, register: Any) -> None:
        for name, kind in self.kinds.items():
            register(name, kind)

    @hookimpl
    def ldmkit_register_samplers(self, register: Any) -> None:
        register("nothing", nothing)

    @hookimpl
    def ldmkit_step_logged(self, step: int) -> None:
        if step == self.fails_at:
            raise RuntimeError("the dashboard is down")


def nothing(denoiser, noise, schedule, steps, *, generators=None, callback=None):
    """Forgets to return."""


class LearnsNothing(Level):
    @classmethod
    def fit(cls, options, samples):
        return None


class LearnsStrangers(Level):
    @classmethod
    def fit(cls, options, samples):
        return {"colour": 3}


class LearnsTensors(Level):
    @classmethod
    def fit(cls, options, samples):
        return {"width": torch.tensor(3)}


class FailsToLearn(Level):
    @classmethod
    def fit(cls, options, samples):
        raise IndexError("list index out of range")


class WithoutPorts(Level):
    def __init__(self) -> None:
        super(Level, self).__init__()


class FailsToStart(Level):
    def __init__(self) -> None:
        raise ZeroDivisionError("division by zero")


class FailsToDownload(Level):
    def load_pretrained(self) -> None:
        raise FileNotFoundError("weights.bin")


class HoldsALock(Level):
    def __init__(self, *, width: int = 4) -> None:
        super().__init__(width=width)
        self.lock = threading.Lock()


class Misplaced(Level):
    reads = ("height",)


def registry(kind: type[Conditioner] | None = None, fails_at: int = 0) -> plugins.Registry:
    members = {"kinds": {} if kind is None else {"level": kind}, "fails_at": fails_at}
    return plugins.load(only=[], extra=[type("Broken", (Registered,), members)()])


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (LearnsNothing, r"learned NoneType; `fit` returns a mapping of options: width"),
        (LearnsStrangers, r"learned colour; `fit` returns a mapping of options: width"),
        (LearnsTensors, r"learned what no file can hold: Object of type Tensor is not JSON serializable"),
        (FailsToLearn, r"raised IndexError in fit: list index out of range"),
        (WithoutPorts, r"has no ports: emits is None\n.*self\.emits = Ports"),
        (FailsToStart, r"raised ZeroDivisionError in __init__: division by zero"),
        (FailsToDownload, r"raised FileNotFoundError in load_pretrained: weights\.bin"),
        (HoldsALock, r"raised TypeError in its copy for data workers: cannot pickle '_thread\.lock'"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_goes_wrong_while_a_model_is_built_names_slot_and_plugin(tiny, kind, words):
    found = registry(kind)
    recipe = Recipe.parse(tiny(conditioners={"depth": {"type": "level"}}), registry=found)
    with pytest.raises(PluginError, match=rf"(?s)^the conditioner of slot depth \({kind.__name__}, Broken\) {words}"):
        build(fit(recipe, found), found).conditioners.worker_copies()


def test_nan_stops_a_run_before_its_first_step(tiny, tmp_path):
    recipe = Recipe.parse(tiny(conditioners={"depth": {"type": "level"}}))
    with pytest.raises(PluginError, match=r"slot depth \(NotANumber, Broken\) gave tokens with NaN"):
        run(recipe, tmp_path / "run", registry=registry(NotANumber), console=False)
    status = read_status(tmp_path / "run")
    assert (status["state"], status["exit_code"], status["error"]["code"]) == ("failed", 2, "plugin")
    assert Checkpoints(tmp_path / "run" / "checkpoints" / "diffusion").newest() is None


def test_a_hook_that_raises_names_plugin_hook_and_step_and_the_checkpoint_from_before_is_kept(tiny, tmp_path):
    recipe = Recipe.parse(tiny(train__steps=3))
    with pytest.raises(
        PluginError, match=r"plugin Broken failed in ldmkit_step_logged at step 2: RuntimeError: the dashboard"
    ):
        run(recipe, tmp_path / "run", registry=registry(fails_at=2), console=False)
    found = Checkpoints(tmp_path / "run" / "checkpoints" / "diffusion").newest()
    assert found is not None
    assert found.step == 1
    assert run(recipe, tmp_path / "run", registry=registry(), console=False).status["state"] == "finished"


def test_a_sampler_that_returns_nothing_is_named(tiny):
    found = registry()
    model = build(Recipe.parse(tiny(), registry=found), found)
    with pytest.raises(
        PluginError, match=r"the sampler nothing gave NoneType; expected latents of shape \(1, 3, 16, 16\)"
    ):
        model.sample(count=1, steps=1, sampler="nothing")


def test_a_field_that_the_data_lack_is_named_with_those_there_are(tiny):
    found = registry(Misplaced)
    recipe = Recipe.parse(tiny(conditioners={"depth": {"type": "level"}}), registry=found)
    train, _ = datasets(recipe, found)
    with pytest.raises(
        DataError, match=r"slot depth reads the field 'height', and the data have .*'caption'.*\n.*fields"
    ):
        next(iter(batches(train, build(recipe, found).conditioners, start=0, batch=2, seed=0, steps=1)))


def test_core_sections_are_checked_before_torch_is_imported(tmp_path):
    (tmp_path / "wrong.yaml").write_text("data: {type: scenes, size: 33}\ntrain: {steps: 0}\n")
    code = (
        "import sys\nfrom ldmkit.recipe import load\nfrom ldmkit.errors import RecipeError\n"
        "try: load('wrong.yaml')\nexcept RecipeError as error: print(error)\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "train.steps" in result.stdout


def test_a_slow_plugin_is_imported_when_it_is_asked_for_and_its_time_is_shown(tmp_path, monkeypatch):
    entry = "from ldmkit import hookimpl\n{}\n@hookimpl\ndef ldmkit_register_conditioners(register):\n    register('{}', '{}')\n"
    (tmp_path / "slow_inside.py").write_text("raise RuntimeError('ten seconds later')\n")
    (tmp_path / "quick.py").write_text(entry.format("", "inner", "slow_inside:Slow"))
    (tmp_path / "slow.py").write_text(entry.format("import time; time.sleep(0.25)", "outer", "slow_inside:Slow"))
    monkeypatch.syspath_prepend(str(tmp_path))
    found = plugins.load(only=[], files=[tmp_path / "quick.py", tmp_path / "slow.py"])
    seconds = {Path(plugin.origin.file).stem: plugin.seconds for plugin in found.plugins if plugin.origin.file}
    assert seconds["slow"] >= 0.25
    assert "slow_inside" not in sys.modules  # a target is imported when a recipe asks
    with pytest.raises(
        PluginError, match=r"'inner' of .*quick\.py cannot be imported: RuntimeError: ten seconds later"
    ):
        found.conditioners.load("inner")


def test_only_the_recipe_that_needs_a_broken_plugin_is_stopped(tiny):
    found = registry(Level)
    found.problems.append(
        plugins.Problem(plugins.Origin("ldmkit-depth", "1.2", "depth"), "ImportError: no sound", "Mend it")
    )
    Recipe.parse(tiny(conditioners={"level": {}}), registry=found)
    with pytest.raises((PluginError, RecipeError), match=r"plugin ldmkit-depth 1\.2: ImportError: no sound"):
        Recipe.parse(tiny(conditioners={"depth": {}}), registry=found)
