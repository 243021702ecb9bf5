"""`Conditioner.finish`: what a condition holds of an image is put back, in the rows that have the condition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ldmkit.conditioning import Canvas, Conditioner, ConditionerSet, Conditioning, Ports, Tensors
from ldmkit.errors import PluginError


class Corner(Conditioner):
    """The value of the upper left pixel."""

    reads = ("value",)

    def __init__(self, *, fault: str = "") -> None:
        super().__init__()
        self.fault, self.emits = fault, Ports(vector=1)

    def encode(self, prepared: Tensors, canvas: Canvas) -> Conditioning:
        return Conditioning(vector=prepared["value"].to(canvas.dtype))

    def null(self, canvas: Canvas) -> Conditioning:
        return Conditioning(vector=canvas.zeros(1, 1))

    def finish(self, images: Tensor, prepared: Tensors) -> Tensor:
        if self.fault == "shape":
            return images[..., :2]
        images = images.clone()
        images[:, :, 0, 0] = prepared["value"].to(images)
        return images.double() if self.fault == "dtype" else images


def finished(conditioner: Conditioner) -> Tensor:
    conditioners = ConditionerSet({"corner": conditioner, "other": Plain()}, vector_width=1)
    rows = [{"corner": {"value": torch.tensor([0.5])}, "other": None}, {"corner": None, "other": None}]
    batch = conditioners.collate(torch.zeros(2, 3, 4, 4), rows, torch.arange(2))
    return conditioners.finish(torch.zeros(2, 3, 4, 4), batch)


class Plain(Corner):
    """One that says nothing of the image."""

    finish = Conditioner.finish


def test_only_the_rows_with_the_condition_are_changed() -> None:
    images = finished(Corner())
    assert (images[0, :, 0, 0] == 0.5).all()
    assert images.sum() == pytest.approx(1.5)  # three channels of one pixel


def test_without_the_method_the_images_are_those_given() -> None:
    assert (finished(Plain()) == 0).all()


@pytest.mark.parametrize(("fault", "words"), [("shape", r"of shape \(2, 3, 4, 2\)"), ("dtype", "in float32")])
def test_an_answer_of_another_shape_or_type_is_named(fault: str, words: str) -> None:
    with pytest.raises(PluginError, match=rf"slot corner.*as finish; expected images.*|{words}") as caught:
        finished(Corner(fault=fault))
    assert "as finish" in str(caught.value)
