"""What a page shows for a condition."""

from __future__ import annotations

import pytest
import torch

from ldmkit import Conditioner, Conditioning, Ports
from ldmkit.conditioning.widgets import (
    Boxes,
    Choice,
    Choices,
    File,
    ImageAndMask,
    ImageDrop,
    LabelMapCanvas,
    Mask,
    Number,
    Numbers,
    Text,
)
from ldmkit.errors import PluginError
from ldmkit.fields import Field

COLOURS = ((255, 0, 0), (0, 0, 255))


class Plain(Conditioner):
    reads = ("thing",)

    def __init__(self) -> None:
        super().__init__()
        self.emits = Ports(vector=1)

    def encode(self, prepared, canvas):
        return Conditioning(vector=canvas.zeros(1, 1))

    def null(self, canvas):
        return Conditioning(vector=canvas.zeros(1, 1))


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        (Field("text"), Text()),
        (Field("other"), Text()),
        (Field("image"), ImageDrop()),
        (Field("label", classes=2), Choice(names=("0", "1"))),
        (Field("label", classes=2, names=("cat", "dog")), Choice(names=("cat", "dog"))),
        (Field("boxes", names=("cat",)), Boxes(names=("cat",))),
        (
            Field("map", classes=2, palette=COLOURS, ignore=255),
            LabelMapCanvas(names=("0", "1"), palette=COLOURS, ignore=255),
        ),
        (Field("map", classes=2), Text()),
    ],
)
def test_without_a_widget_of_its_own_a_conditioner_shows_what_suits_its_field(field, expected):
    conditioner = Plain()
    conditioner.known_fields = {"thing": field}
    assert conditioner.widget() == expected


def test_several_fields_are_given_as_text():
    class Two(Plain):
        reads = ("one", "two")

    conditioner = Two()
    conditioner.known_fields = {"one": Field("image"), "two": Field("image")}
    assert conditioner.widget() == Text()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Choice(names=()), "a Choice needs names"),
        (lambda: Choices(names=("a", "a")), "each another one"),
        (lambda: Number(low=1, high=1), "from low to high; given: 1 to 1"),
        (lambda: Number(low=0, high=1, value=2), "cannot stand at 2"),
        (lambda: Numbers(numbers=(Number(), Number(name="b"))), "a Numbers needs names"),
        (lambda: LabelMapCanvas(names=("a",), palette=COLOURS), "1 names and 2 colours"),
        (lambda: LabelMapCanvas(names=("a", "b"), palette=COLOURS, values=(1,)), "2 names and 1 values"),
        (lambda: LabelMapCanvas(names=("a", "b"), palette=COLOURS, values=(0, 256)), "given: 256"),
        (lambda: LabelMapCanvas(names=("a", "b"), palette=COLOURS, ignore=-1), "given: -1"),
        (lambda: Boxes(names=("a",), palette=COLOURS), "1 names and 2 colours"),
    ],
)
def test_a_widget_that_cannot_be_shown_says_why(make, reason):
    with pytest.raises(PluginError, match=reason):
        make()


def test_a_widget_is_a_value():
    assert Mask() == Mask()
    assert hash(ImageAndMask(help="a")) == hash(ImageAndMask(help="a"))
    assert File(suffixes=(".npy",)).suffixes == (".npy",)


def test_a_widget_holds_no_tensor_and_its_copy_without_weights_has_it_too():
    assert Plain().weightless().widget() == Text()
    assert not any(isinstance(value, torch.Tensor) for value in vars(Boxes(names=("a",))).values())
