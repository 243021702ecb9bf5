"""What a person cannot do is said before anything is trained, with what they can do instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from ldmkit import cli

GIVEN = """
data: {type: scenes, size: 16, count: 20, held_out: 8}
autoencoder: {type: identity}
conditioners: {SLOT}
denoiser: {channels: 8, multipliers: [1], blocks: 1, attention: [], variant: {groups: 4}}
train: {steps: 1, batch: 4}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def write(slot: str) -> str:
        Path("r.yaml").write_text(GIVEN.replace("{SLOT}", slot))
        return "r.yaml"

    return write


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    return int(stop.value.code or 0)


COMMANDS = [("recipe", "check", "--components"), ("plan",), ("run", "--out", "o")]


@pytest.mark.parametrize("command", COMMANDS, ids=[command[0] for command in COMMANDS])
@pytest.mark.parametrize(
    ("slot", "field", "near"),
    [
        ("{audio: {type: given, vector: 8}}", "value", ""),
        ("{class: {classes: 3, fields: {label: labels}}}", "labels", "; did you mean 'label'?"),
    ],
)
def test_a_field_that_nobody_has_is_named_before_anything_is_trained(recipe, capsys, command, slot, field, near):
    verb, *rest = command
    options = [verb, rest[0], recipe(slot), *rest[1:]] if verb == "recipe" else [verb, recipe(slot), *rest]
    assert call(*options) == 2
    said = capsys.readouterr().err
    assert f"reads the field '{field}', and the data have " in said
    assert "label" in said
    assert "r.yaml:4" in said
    assert near in said
    assert not Path("o/checkpoints").exists()


def test_data_that_are_elsewhere_are_no_fault_of_the_recipe(recipe, capsys):
    file = recipe("{class: {classes: 3}}")
    text = (
        Path(file)
        .read_text()
        .replace("type: scenes, size: 16, count: 20, held_out: 8", "type: folder, size: 16, path: gone")
    )
    Path(file).write_text(text)
    assert call("recipe", "check", file, "--components") == 0
    assert "not checked: whether the data have" in capsys.readouterr().err


def test_a_checkpoint_that_is_not_there(tmp_path, capsys):
    assert call("import", str(tmp_path / "nosuch"), "--to", str(tmp_path / "out")) == 2
    said = capsys.readouterr().err
    assert "there is no file or folder" in said
    assert "--config" not in said
