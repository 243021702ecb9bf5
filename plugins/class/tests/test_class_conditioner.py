"""The class conditioner: its contract, its labels, and the released `ClassEmbedder` as the truth."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ldmkit_class.conditioner import ClassConditioner

from ldmkit.conditioning import Canvas, ForeignStage
from ldmkit.data import Field
from ldmkit.errors import CheckpointError, DataError, RecipeError, UsageError
from ldmkit.testing import check_conditioner

NAMES = ["apple", "pear", "3"]


def canvas() -> Canvas:
    return Canvas((64, 64), (8, 8), torch.device("cpu"), torch.float32, lambda images: images)


@pytest.mark.parametrize("port", ["tokens", "vector"])
def test_contract(port):
    conditioner = ClassConditioner(classes=NAMES, width=8, port=port)
    check_conditioner(conditioner, {"label": 0}, others=[{"label": "pear"}, {"label": np.int64(2)}], value="apple")


def test_importing_the_plugin_loads_no_torch():
    code = "import sys, ldmkit_class; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_port_is_switched_by_one_word():
    tokens, vector = (ClassConditioner(classes=4, width=8, port=port) for port in ("tokens", "vector"))
    vector.load_state_dict(tokens.state_dict())
    prepared = {"label": torch.tensor([1, 3])}
    assert tokens.emits.tokens == vector.emits.vector == 8
    assert torch.equal(tokens.encode(prepared, canvas()).tokens[:, 0], vector.encode(prepared, canvas()).vector)


def test_a_label_gets_its_row_and_null_the_last():
    conditioner = ClassConditioner(classes=4, width=8)
    table = conditioner.embedding.weight
    answer = conditioner.encode({"label": torch.tensor([2, 0])}, canvas())
    assert torch.equal(answer.tokens, table[[2, 0]][:, None])
    assert torch.equal(conditioner.null(canvas()).tokens, table[4][None, None])


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([3, 0, None, 7], 8),
        ([np.int64(1), torch.tensor(4)], 5),
        ([2.0, 1.0], 3),
        (["pear", "apple", None, "pear"], ["apple", "pear"]),
    ],
)
def test_fit_learns_the_classes(labels, expected):
    assert ClassConditioner.fit({}, [{"label": label} for label in labels]) == {"classes": expected}


def test_fit_leaves_what_the_recipe_says():
    assert ClassConditioner.fit({"classes": 10}, iter([])) == {}


def test_fit_takes_the_names_that_the_source_knows():
    known = {"label": Field("label", classes=3, names=("bird", "cat", "dog"))}
    assert ClassConditioner.fit({}, iter([]), known) == {"classes": ["bird", "cat", "dog"]}
    assert ClassConditioner.fit({}, iter([]), {"label": Field("label", classes=12)}) == {"classes": 12}
    with pytest.raises(DataError, match="the data have the classes dog, and `classes` lists cat, bird"):
        ClassConditioner.fit({"classes": ["cat", "bird"]}, iter([]), known)
    with pytest.raises(DataError, match="the data have 3 classes, and `classes` says 2"):
        ClassConditioner.fit({"classes": 2}, iter([]), known)


def test_names_in_another_order_than_the_sources_mean_the_same_class():
    conditioner = ClassConditioner(classes=["cat", "dog", "bird"], width=4)
    conditioner.known_fields = {"label": Field("label", classes=3, names=("bird", "cat", "dog"))}
    shown = [conditioner.preview(conditioner.prepare({"label": number})) for number in range(3)]
    assert shown == ["bird", "cat", "dog"]


def test_a_number_of_classes_knows_the_names_of_the_source():
    conditioner = ClassConditioner(classes=3, width=4)
    conditioner.known_fields = {"label": Field("label", classes=3, names=("bird", "cat", "dog"))}
    assert conditioner.from_user("cat", (8, 8))["label"] == 1
    assert conditioner.preview({"label": torch.tensor(2)}) == "dog"


@pytest.mark.parametrize(
    ("labels", "words"),
    [([None], "no sample has a `label`"), ([1, "pear"], "'pear' is no class"), ([-1], "-1 is no class")],
)
def test_fit_refuses(labels, words):
    with pytest.raises(DataError, match=words):
        ClassConditioner.fit({}, [{"label": label} for label in labels])


@pytest.mark.parametrize(("value", "number"), [("pear", 1), (1, 1), ("1", 1), ("3", 2), (torch.tensor(0), 0), (0.0, 0)])
def test_what_a_person_gives(value, number):
    prepared = ClassConditioner(classes=NAMES, width=4).from_user(value, (64, 64))
    assert prepared["label"] == number


def test_names_are_previewed():
    named, numbered = ClassConditioner(classes=NAMES, width=4), ClassConditioner(classes=5, width=4)
    assert named.preview({"label": torch.tensor(1)}) == "pear"
    assert numbered.preview({"label": torch.tensor(4)}) == "4"


@pytest.mark.parametrize("label", [3, -1, 1.5, float("nan"), [0], None, torch.tensor([0, 1])])
def test_bad_labels_name_the_range(label):
    with pytest.raises(DataError, match="from 0 to 2, or its name"):
        ClassConditioner(classes=NAMES, width=4).prepare({"label": label})


def test_a_misspelt_name_gets_the_nearest():
    with pytest.raises(
        UsageError, match=r"no class 'aple'; the 3 classes are apple, pear, 3\n  did you mean 'apple'\?"
    ):
        ClassConditioner(classes=NAMES, width=4).from_user("aple", (64, 64))


def test_text_for_numbered_classes_is_refused():
    with pytest.raises(UsageError, match="'pear' is not the number of a class, from 0 to 4"):
        ClassConditioner(classes=5, width=4).from_user("pear", (64, 64))


@pytest.mark.parametrize(
    ("classes", "words"), [(None, "not known"), (0, "at least one"), (["a", "a"], "'a' more than once")]
)
def test_impossible_options(classes, words):
    with pytest.raises(RecipeError, match=words):
        ClassConditioner(classes=classes, width=4)


# released checkpoints


def stage(table: torch.Tensor | None, **params: object) -> ForeignStage:
    tensors = {} if table is None else {"embedding.weight": table}
    return ForeignStage("ldm.modules.encoders.modules.ClassEmbedder", params, "class_label", "tokens", 0, tensors)


def test_a_null_in_the_last_row_is_no_class():
    table = torch.randn(11, 6)
    conditioner = ClassConditioner.from_foreign(stage(table, null_class=10))
    assert conditioner.count == 10
    assert torch.equal(conditioner.embedding.weight, table)


def test_a_null_elsewhere_keeps_its_number():
    table = torch.randn(5, 6)
    conditioner = ClassConditioner.from_foreign(stage(table, null_class=1))
    assert conditioner.count == 5
    assert torch.equal(conditioner.null(canvas()).tokens[0], table[1:2])
    assert torch.equal(conditioner.encode({"label": torch.arange(5)}, canvas()).tokens[:, 0], table)


def test_without_a_null_it_is_the_mean():
    table = torch.randn(5, 6)
    conditioner = ClassConditioner.from_foreign(stage(table))
    torch.testing.assert_close(conditioner.null(canvas()).tokens[0, 0], table.mean(0))


def test_foreign_stages_that_do_not_fit():
    assert ClassConditioner.from_foreign(ForeignStage("x.SpatialRescaler", {}, "class_label", "concat", 3)) is None
    with pytest.raises(CheckpointError, match=r"embedding\.weight"):
        ClassConditioner.from_foreign(stage(None))
    with pytest.raises(UsageError, match="rows 0 to 4"):
        ClassConditioner.from_foreign(stage(torch.randn(5, 6), null_class=5))


def test_the_original_computes_the_same():
    from safetensors.torch import load_file

    folder = (
        Path(os.environ.get("LDMKIT_REFERENCE", Path(__file__).parents[4] / "shared" / "reference"))
        / "compvis"
        / "class"
    )
    if not folder.is_dir():
        pytest.skip(f"set LDMKIT_REFERENCE to the folder with compvis/class (looked in {folder})")
    state = torch.load(folder / "model.ckpt", map_location="cpu", weights_only=True)["state_dict"]
    table = state["cond_stage_model.embedding.weight"]
    conditioner = ClassConditioner.from_foreign(stage(table, null_class=10, n_classes=11, embed_dim=48))
    expected = load_file(folder / "io.safetensors")
    prepared = conditioner.collate([conditioner.from_user(label, (64, 64)) for label in expected["cond_raw"]])
    assert torch.equal(conditioner.encode(prepared, canvas()).tokens, expected["cond"])
    assert torch.equal(conditioner.null(canvas()).tokens.expand(2, -1, -1), expected["uncond"])


def test_the_menu_reads_back_as_each_class():
    conditioner = ClassConditioner(classes=12, width=8)
    conditioner.known_fields = {"label": Field("label", names=("cat", "dog"))}
    names = conditioner.widget().names
    assert names == ("cat", "dog", *map(str, range(2, 12)))
    assert [int(conditioner.from_user(name, (8, 8))["label"]) for name in names] == list(range(12))
