"""`check_conditioner` passes what keeps the contract, and names each planted fault in words an author understands."""

from __future__ import annotations

import threading
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from ldmkit.conditioning import Conditioner, Conditioning, LatentSpec, Ports, pad_stack
from ldmkit.testing import LATENT, ContractError, check_conditioner

pytest_plugins = ["pytester", "ldmkit.testing.fixtures"]

SAMPLE = {"notes": torch.tensor([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]])}
OTHERS = [{"notes": torch.tensor([[-0.5, 1.0]])}, {"notes": torch.linspace(-1, 1, 10).reshape(5, 2)}]


class Notes(Conditioner):
    """A sound conditioner on all three ports: (l, 2) notes of any length."""

    reads = ("notes",)

    def __init__(self, *, width: int = 6, channels: int = 2, loudness: float = 1.0) -> None:
        super().__init__()
        self.width, self.channels, self.loudness = width, channels, loudness
        self.emits = Ports(tokens=width, vector=width, concat=channels, length=16)
        self.net = nn.Linear(2, width)
        self.spread = nn.Linear(width, channels)
        self.absent = nn.Parameter(torch.zeros(1, 1, width))

    def prepare(self, sample, generator=None):
        return {"notes": sample["notes"].float() * self.loudness}

    def from_user(self, value, size):
        return self.prepare({"notes": torch.as_tensor(value)})

    def collate(self, prepared):
        notes, mask = pad_stack([row["notes"] for row in prepared])
        return {"notes": notes, "mask": mask}

    def encode(self, prepared, canvas):
        mask = prepared["mask"]
        tokens = self.net(prepared["notes"].to(canvas.dtype))
        vector = (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        concat = self.spread(vector)[:, :, None, None].expand(-1, -1, *canvas.grid)
        return Conditioning(tokens=tokens, mask=mask, vector=vector, concat=concat)

    def null(self, canvas):
        return Conditioning(
            tokens=self.absent.to(canvas.dtype),
            vector=self.absent[:, 0].to(canvas.dtype),
            concat=canvas.zeros(1, self.channels, *canvas.grid),
        )


class Depth(Conditioner):
    reads = aligned = ("depth",)

    def __init__(self, *, far: float = 10.0, features: int = 4) -> None:
        super().__init__()
        self.far, self.emits = far, Ports(concat=features)
        self.net = nn.Conv2d(1, features, 3, padding=1)

    def encode(self, prepared, canvas):
        depth = prepared["depth"].to(canvas.dtype).clamp(0, self.far) / self.far
        return Conditioning(concat=self.net(F.interpolate(depth, canvas.grid, mode="area")))

    def null(self, canvas):
        return Conditioning(concat=canvas.zeros(1, self.emits.concat, *canvas.grid))


class Masked(Conditioner):
    reads = aligned = ("image",)

    def __init__(self, *, latent: LatentSpec) -> None:
        super().__init__()
        self.emits = Ports(concat=latent.channels)

    def encode(self, prepared, canvas):
        image = F.interpolate(prepared["image"].to(canvas.dtype), canvas.size)
        return Conditioning(concat=canvas.to_latent(image))

    def null(self, canvas):
        return Conditioning(concat=canvas.zeros(1, self.emits.concat, *canvas.grid))


class Letters(Conditioner):
    reads = ("text",)

    def __init__(self, *, width: int = 3) -> None:
        super().__init__()
        self.width, self.emits = width, Ports(vector=width)

    def prepare(self, sample, generator=None):
        codes = [float(ord(letter)) for letter in sample["text"]]
        return {"mean": torch.tensor(codes).mean().expand(3)}

    def encode(self, prepared, canvas):
        return Conditioning(vector=prepared["mean"].to(canvas.dtype))

    def null(self, canvas):
        return Conditioning(vector=canvas.zeros(1, 3))


class Frozen(Notes):
    frozen = ("backbone",)

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(2, 2)

    def encode(self, prepared, canvas):
        notes = self.backbone(prepared["notes"].to(canvas.dtype))
        return super().encode({**prepared, "notes": notes}, canvas)


class Shown(Notes):
    def preview(self, prepared):
        return Image.new("RGB", (4, 4))

    def output_size(self, prepared):
        return 64, 64

    def fidelity(self, images, prepared):
        return images.flatten(1).mean(1)


def check(conditioner: Conditioner, **changes: Any) -> None:
    check_conditioner(conditioner, **{"sample": SAMPLE, "others": OTHERS, "value": [[0.5, 0.5]], **changes})


def test_a_sound_conditioner_passes_and_stays_as_it_is():
    conditioner = Notes(width=8).train()
    before = {name: value.clone() for name, value in conditioner.state_dict().items()}
    seed = torch.get_rng_state()
    check(conditioner)
    assert conditioner.training
    assert torch.equal(seed, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in conditioner.state_dict().items())
    assert all(parameter.grad is None for parameter in conditioner.parameters())


def test_the_smallest_conditioner_passes():
    depth = torch.rand(1, 64, 64) * 10
    check_conditioner(Depth(features=6), {"depth": depth}, value=depth)


def test_the_latent_space_of_the_kit():
    check_conditioner(Masked(latent=LATENT), {"image": torch.rand(3, 64, 64) * 2 - 1})


# Each fault is one class or one change, and the words that must be in the message.


class WrongWidth(Notes):
    def encode(self, prepared, canvas):
        answer = super().encode(prepared, canvas)
        return Conditioning(answer.tokens[..., :-1], answer.mask, answer.vector, answer.concat)


class UnpromisedPort(Notes):
    def __init__(self) -> None:
        super().__init__()
        self.emits = Ports(tokens=6, concat=2, length=16)


class NullOfAnotherShape(Notes):
    def null(self, canvas):
        answer = super().null(canvas)
        return Conditioning(answer.tokens, None, canvas.zeros(1, 7), answer.concat)


class NullOfManyRows(Notes):
    def null(self, canvas):
        return super().null(canvas).expand(2)


class RandomInPrepare(Notes):
    def prepare(self, sample, generator=None):
        return {"notes": sample["notes"] + 0.1 * torch.randn(sample["notes"].shape)}


class RandomByNumpy(Notes):
    def prepare(self, sample, generator=None):
        return {"notes": sample["notes"] + float(np.random.rand())}


class RandomWithoutGenerator(Notes):
    def prepare(self, sample, generator=None):
        return {"notes": sample["notes"] + torch.rand((), generator=generator)}


class RandomInEncode(Notes):
    def encode(self, prepared, canvas):
        answer = super().encode(prepared, canvas)
        return Conditioning(answer.tokens, answer.mask, answer.vector + torch.randn(6), answer.concat)


class BatchStatistics(Notes):
    def encode(self, prepared, canvas):
        answer = super().encode(prepared, canvas)
        return Conditioning(answer.tokens, answer.mask, answer.vector - answer.vector.mean(0), answer.concat)


class PaddingLeaks(Notes):
    def encode(self, prepared, canvas):
        answer = super().encode(prepared, canvas)
        tokens = answer.tokens + answer.tokens.mean(1, keepdim=True)
        return Conditioning(tokens, answer.mask, answer.vector, answer.concat)


class NoMaskOverPadding(Notes):
    def encode(self, prepared, canvas):
        answer = super().encode(prepared, canvas)
        return Conditioning(answer.tokens, None, answer.vector, answer.concat)


class GradientCut(Notes):
    def encode(self, prepared, canvas):
        answer = super().encode(prepared, canvas)
        return answer.map(torch.Tensor.detach)


class UnusedParameter(Notes):
    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Linear(2, 2)


class PrepareReadsAParameter(Notes):
    def prepare(self, sample, generator=None):
        return {"notes": sample["notes"] * float(self.net.weight.detach().abs().max())}


class FixedDtype(Notes):
    def encode(self, prepared, canvas):
        return super().encode(prepared, canvas).map(lambda value: value if value.dtype == torch.bool else value.float())


class IgnoresDtypeOfPrepared(Notes):
    def encode(self, prepared, canvas):
        return Conditioning(
            tokens=self.net(prepared["notes"]),
            mask=prepared["mask"],
            vector=self.net(prepared["notes"][:, 0]),
            concat=self.spread(self.net(prepared["notes"][:, 0]))[:, :, None, None].expand(-1, -1, *canvas.grid),
        )


class MaskInverted(Notes):
    def encode(self, prepared, canvas):
        answer = super().encode(prepared, canvas)
        return Conditioning(answer.tokens, ~answer.mask, answer.vector, answer.concat)


class MaskInvertedAtFixedLength(Notes):
    def collate(self, prepared):
        notes, mask = pad_stack([row["notes"] for row in prepared], length=8)
        return {"notes": notes, "mask": ~mask}

    def encode(self, prepared, canvas):
        answer = super().encode(prepared, canvas)
        zeros = canvas.zeros(len(answer.tokens), self.width)
        return Conditioning(answer.tokens, answer.mask, zeros + answer.vector[:1].mean() * 0, answer.concat * 0)


class FixedGrid(Notes):
    def encode(self, prepared, canvas):
        answer = super().encode(prepared, canvas)
        concat = answer.concat[:, :, :1, :1].expand(-1, -1, 8, 8)
        return Conditioning(answer.tokens, answer.mask, answer.vector, concat)


class CannotBePickled(Notes):
    def __init__(self) -> None:
        super().__init__()
        self.gain = lambda x: x


class CannotBeCopied(Notes):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class NanOnEmpty(Notes):
    def encode(self, prepared, canvas):
        answer = super().encode(prepared, canvas)
        return Conditioning(
            answer.tokens,
            answer.mask,
            answer.vector * (prepared["notes"] / prepared["notes"].abs().amax()).amax(),
            answer.concat,
        )


class SilentAboutMissingField(Notes):
    def prepare(self, sample, generator=None):
        return {"notes": sample.get("notes", torch.zeros(1, 2))}


class UnclearAboutMissingField(Notes):
    def prepare(self, sample, generator=None):
        if "notes" not in sample:
            raise RuntimeError("bad sample")
        return super().prepare(sample)


class UserValueWithBatch(Notes):
    def from_user(self, value, size):
        return {"notes": torch.as_tensor(value)[None]}


class CannotCollate(Notes):
    def collate(self, prepared):
        notes = torch.stack([row["notes"] for row in prepared])
        return {"notes": notes, "mask": torch.ones(notes.shape[:2], dtype=torch.bool)}


class ChangesTheSample(Notes):
    def prepare(self, sample, generator=None):
        return {"notes": sample["notes"].mul_(0.5)}


class ChangesTheBatch(Notes):
    def encode(self, prepared, canvas):
        answer = super().encode(prepared, canvas)
        prepared["notes"] *= 2
        return answer


class ChangesTheProcess(Notes):
    def encode(self, prepared, canvas):
        torch.set_num_threads(torch.get_num_threads() + 1)
        return super().encode(prepared, canvas)


class StateThatIsNoOption(Notes):
    def __init__(self, *, width: int = 6, channels: int = 2, loudness: float = 1.0) -> None:
        super().__init__(width=width, channels=channels, loudness=loudness)
        self.offset = float(torch.randn(()))

    def encode(self, prepared, canvas):
        answer = super().encode(prepared, canvas)
        return Conditioning(answer.tokens + self.offset, answer.mask, answer.vector, answer.concat)


class ShapeThatIsNoOption(Notes):
    made: ClassVar[int] = 0

    def __init__(self, *, width: int = 6, channels: int = 2, loudness: float = 1.0) -> None:
        super().__init__(width=width, channels=channels, loudness=loudness)
        ShapeThatIsNoOption.made += 1
        self.register_buffer("seen", torch.zeros(ShapeThatIsNoOption.made))


class DataDependentShape(Notes):
    def encode(self, prepared, canvas):
        if prepared["notes"].abs().max().item() > 100:
            raise AssertionError("never")
        return super().encode(prepared, canvas)


class PositionalOption(Conditioner):
    reads = ("notes",)

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.emits = Ports(vector=width)

    def encode(self, prepared, canvas):
        return Conditioning(vector=prepared["notes"][:, 0].to(canvas.dtype))

    def null(self, canvas):
        return Conditioning(vector=canvas.zeros(1, 2))


class ReservedOption(PositionalOption):
    def __init__(self, *, dropout: float = 0.1) -> None:
        super().__init__()


class NoPorts(PositionalOption):
    def __init__(self) -> None:
        super().__init__()
        self.emits = Ports()


class AlignedElsewhere(Notes):
    aligned = ("image",)


class FrozenElsewhere(Notes):
    frozen = ("backbone",)


class BadPreview(Notes):
    def preview(self, prepared):
        return prepared["notes"]


class BadSize(Notes):
    def output_size(self, prepared):
        return 64


class BadFidelity(Notes):
    def fidelity(self, images, prepared):
        return images.mean()


class ClaimsEverything(Notes):
    @classmethod
    def from_foreign(cls, stage):
        return cls()


class LearnsStrangers(Notes):
    @classmethod
    def fit(cls, options, samples):
        return {"vocabulary": 5}


FAULTS: list[tuple[type[Conditioner], str]] = [
    (WrongWidth, r"encode on a canvas of 64 x 64 .* returned tokens of shape \(1, 3, 5\); expected \(1, length, 6\)"),
    (UnpromisedPort, r"returned vector of shape \(1, 6\); expected none"),
    (NullOfAnotherShape, r"null .* returned vector of shape \(1, 7\); expected \(1, 6\).*\n.*ONE row"),
    (NullOfManyRows, r"null .* returned tokens of shape \(2, 1, 6\)"),
    (RandomInPrepare, "prepare is random under equal generators: notes differs"),
    (RandomByNumpy, "prepare is random under equal generators"),
    (RandomWithoutGenerator, "prepare is random without a generator"),
    (RandomInEncode, "encode is random in eval mode: vector differs"),
    (BatchStatistics, "vector of a sample depends on the samples beside it"),
    (PaddingLeaks, "tokens of a sample depend on the samples beside it"),
    (NoMaskOverPadding, "with no mask over the padding"),
    (GradientCut, r"the gradient of net\.weight is cut"),
    (UnusedParameter, r"extra\.weight is never used"),
    (PrepareReadsAParameter, "prepare raised AttributeError.* on the copy for a data worker, which has no weights"),
    (FixedDtype, "returned tokens in float32; the canvas is bfloat16"),
    (IgnoresDtypeOfPrepared, "encode raised RuntimeError.*bfloat16.*\n.*canvas.dtype"),
    (MaskInverted, r"attends to nothing \(all False\)\n.*inverted"),
    (MaskInvertedAtFixedLength, "the mask seems inverted"),
    (FixedGrid, r"concat of shape \(1, 2, 8, 8\); expected \(1, 2, 12, 20\).*\n.*canvas.grid"),
    (CannotBePickled, "the copy for a data worker cannot be pickled"),
    (CannotBeCopied, "cannot be copied"),
    (NanOnEmpty, r"vector with NaN or infinite values for an empty notes \(all zeros\)"),
    (SilentAboutMissingField, "prepare took a sample without 'notes'"),
    (UnclearAboutMissingField, "RuntimeError: bad sample on a sample without 'notes', which does not name the field"),
    (UserValueWithBatch, r"from_user returned notes as \(1, 1, 2\) float32 where prepare returns \(3, 2\) float32"),
    (CannotCollate, "collate raised RuntimeError.*\n.*pad_stack"),
    (ChangesTheSample, "prepare changed the sample's notes"),
    (ChangesTheBatch, "encode changed the batch's notes"),
    (ChangesTheProcess, "encode changed the number of threads"),
    (StateThatIsNoOption, "saved and loaded it returns other tokens"),
    (ShapeThatIsNoOption, "weights do not fit a conditioner made from its options"),
    (DataDependentShape, "meta.*\n.*no .item"),
    (PositionalOption, "`width` is not keyword-only"),
    (ReservedOption, "`dropout`, a name that recipes use themselves"),
    (NoPorts, "emits is Ports"),
    (AlignedElsewhere, "aligned is"),
    (FrozenElsewhere, "'backbone', which is no submodule|cannot be copied"),
    (BadPreview, "preview returned Tensor"),
    (BadSize, "output_size returned 64"),
    (BadFidelity, r"fidelity returned \(\) for 3 images"),
    (ClaimsEverything, "claims a stage it cannot know"),
    (LearnsStrangers, "fit returned vocabulary, which the constructor does not take"),
]


@pytest.mark.parametrize(("fault", "words"), FAULTS, ids=[fault.__name__ for fault, _ in FAULTS])
def test_a_planted_fault_is_named(fault: type[Conditioner], words: str):
    threads = torch.get_num_threads()
    sample = {"notes": SAMPLE["notes"].clone()}
    try:
        with pytest.raises(ContractError, match=f"(?s)^{fault.__name__}: .*{words}"):
            check(fault(), sample=sample)
    finally:
        torch.set_num_threads(threads)


def test_empty_text_that_breaks_is_named():
    with pytest.raises(ContractError, match=r"NaN or infinite values for an empty text \(''\)"):
        check_conditioner(Letters(), {"text": "abc"})


def test_frozen_submodules_need_no_gradient():
    check(Frozen())


def test_a_picture_as_preview_and_a_size_pass():
    check(Shown())


def test_a_local_class_is_told_where_to_live():
    class Local(Notes):
        pass

    with pytest.raises(ContractError, match="top level of a module"):
        check(Local())


def test_something_else_is_refused():
    with pytest.raises(ContractError, match=r"Linear is no ldmkit\.Conditioner"):
        check_conditioner(nn.Linear(1, 1), SAMPLE)  # type: ignore[arg-type]


def test_the_fixture_is_the_function(check_conditioner):
    check_conditioner(Notes(), SAMPLE, others=OTHERS)


def test_the_fixture_loads_no_torch(pytester: pytest.Pytester):
    pytester.makepyfile("def test_nothing(): import sys; assert 'torch' not in sys.modules")
    result = pytester.runpytest_subprocess("-p", "ldmkit.testing.fixtures", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=1)
