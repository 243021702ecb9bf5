"""Metrics whose right answer is known in closed form or planted."""

from __future__ import annotations

import math

import pytest
import torch

from ldmkit.evaluation.context import Evaluation
from ldmkit.evaluation.measure import evaluate
from ldmkit.evaluation.metrics import PSNR, Fidelity, Frechet, Judge, Nearest, Spectrum
from ldmkit.evaluation.metrics.frechet import frechet_distance
from ldmkit.evaluation.metrics.nearest import nearest, small
from ldmkit.evaluation.metrics.spectrum import decibels, radial_spectrum, spectral_distance


def test_frechet_distance_of_gaussians_is_the_closed_form() -> None:
    """Two Gaussians with commuting covariances: ||m||^2 + sum (sqrt(a_i) - sqrt(b_i))^2."""
    source = torch.Generator().manual_seed(0)
    turn, _ = torch.linalg.qr(torch.randn(4, 4, generator=source, dtype=torch.float64))
    a, b = torch.tensor([4.0, 1.0, 9.0, 0.25]).double(), torch.tensor([1.0, 1.0, 4.0, 2.25]).double()
    shift = torch.tensor([1.0, -2.0, 0.0, 0.5]).double()

    def whitened(n: int) -> torch.Tensor:  # exactly unit covariance and zero mean, so that the closed form is exact
        x = torch.randn(n, 4, generator=source, dtype=torch.float64)
        x = x - x.mean(0)
        values, vectors = torch.linalg.eigh(x.T @ x / (n - 1))
        return x @ vectors @ torch.diag(values.rsqrt())

    first, second = whitened(200) * a.sqrt() @ turn.T, whitened(300) * b.sqrt() @ turn.T + shift
    expected = float(shift.square().sum() + (a.sqrt() - b.sqrt()).square().sum())
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(first, first) == pytest.approx(0.0, abs=1e-9)


def test_frechet_in_one_dimension() -> None:
    a, b = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [5.0]])  # means 1, 3; deviations sqrt 2, sqrt 8
    assert frechet_distance(a, b) == pytest.approx(4 + (math.sqrt(2) - math.sqrt(8)) ** 2)


def test_frechet_metric_is_labelled(evaluation: Evaluation) -> None:
    figure = Frechet(backbone="test_resnet.r160_in1k").compute(evaluation)[0]
    assert "random weights" in figure.label
    assert "Not the published" in figure.note
    assert figure.value > figure.beside["training pictures"]  # these lie close to the held-out ones, the samples do not


def test_the_spectrum_of_a_wave_is_one_line_and_white_noise_is_flat() -> None:
    columns = torch.arange(64)
    wave = torch.sin(2 * math.pi * 10 * columns / 64)[None, None, None, :].expand(1, 1, 64, 64)
    assert int(radial_spectrum(wave).argmax()) + 1 == 10
    noise = torch.randn(256, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    flat = decibels(radial_spectrum(noise))
    assert float(flat[2:].max() - flat[2:].min()) < 1.0
    assert spectral_distance(2 * noise, noise) == pytest.approx(10 * math.log10(4), rel=1e-6)


def test_spectrum_tells_blur_from_detail(evaluation: Evaluation) -> None:
    figure = Spectrum().compute(evaluation)[0]
    assert set(figure.beside) == {"bicubic", "reconstruction"}
    assert set(figure.series) == {"held-out pictures", "samples", "bicubic", "reconstruction"}
    assert len(figure.series["samples"]) == 16
    truth = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    blurred = torch.nn.functional.avg_pool2d(truth, 3, 1, 1)
    assert spectral_distance(blurred, truth) > 3
    assert spectral_distance(truth.roll(5, 3), truth) < 1


def test_planted_copies_are_found() -> None:
    source = torch.Generator().manual_seed(0)
    references = torch.rand(300, 3, 32, 32, generator=source) * 2 - 1
    queries = torch.rand(20, 3, 32, 32, generator=source) * 2 - 1
    queries[4], queries[9] = references[17], references[200] + 0.01
    distance, index = nearest(small(queries, 16), small(references, 16), chunk=6)
    assert (int(index[4]), int(index[9])) == (17, 200)
    assert float(distance[4]) == 0.0
    assert float(distance[9]) == pytest.approx(0.01, rel=1e-3)
    exact = torch.cdist(small(queries, 16).double(), small(references, 16).double()) / math.sqrt(3 * 16 * 16)
    torch.testing.assert_close(distance.double(), exact.min(1).values, rtol=1e-5, atol=1e-6)
    assert int(index[0]) == int(exact[0].argmin())


def test_nearest_flags_a_model_that_repeats_its_training_pictures(evaluation: Evaluation) -> None:
    distance, near = Nearest().compute(evaluation)
    assert near.value == 0.0
    assert distance.value > distance.beside["held-out pictures"]
    train = torch.stack([evaluation.train.readable(item)["image"] for item in range(24)])
    evaluation.__dict__["generated"] = torch.cat([train, evaluation.generated[24:]])
    _, near = Nearest(quantile=0.05).compute(evaluation)
    assert near.value == pytest.approx(0.5)
    assert near.beside["held-out pictures"] == pytest.approx(0.05, abs=0.03)


def test_judge_stands_beside_real_pictures_and_chance(evaluation: Evaluation) -> None:
    (figure,) = Judge().compute(evaluation)
    assert (figure.slot, figure.label) == ("label", "brightness read back (label)")
    assert figure.value == 1.0
    assert figure.beside["held-out pictures"] == figure.beside["reconstructions"] == 1.0
    assert figure.beside["chance"] == 0.5
    assert 0.2 < figure.beside["shuffled conditions"] < 0.8
    assert figure.verdict() == "better"
    assert figure.n == 48
    assert Judge(count=10).compute(evaluation)[0].n == 10


def test_judge_leaves_out_rows_without_the_condition(evaluation: Evaluation) -> None:
    _ = evaluation.generated  # paints all rows
    evaluation.samples[5:20] = [{**sample, "label": None} for sample in evaluation.samples[5:20]]
    for name in ("rows", "batch"):
        evaluation.__dict__.pop(name, None)
    (figure,) = Judge().compute(evaluation)
    assert (figure.n, figure.value) == (33, 1.0)


def test_fidelity_is_the_conditioners_own(evaluation: Evaluation) -> None:
    (figure,) = Fidelity().compute(evaluation)  # the label conditioner measures none
    assert figure.slot == "small"
    conditioner = evaluation.model.conditioners["small"]
    prepared = evaluation.batch.prepared["small"]
    assert prepared is not None
    expected = conditioner.fidelity(evaluation.generated, prepared)
    assert expected is not None
    assert figure.value == pytest.approx(float(expected.mean()), rel=1e-5)
    assert figure.beside["held-out pictures"] == pytest.approx(0.0, abs=1e-9)
    assert figure.beside["shuffled conditions"] < figure.value


def test_a_metric_that_cannot_be_computed_is_named_and_the_others_go_on(evaluation: Evaluation) -> None:
    from ldmkit.errors import OfflineError
    from ldmkit.evaluation.metric import Metric
    from ldmkit.evaluation.results import Figure

    class Offline(Metric):
        def compute(self, evaluation: Evaluation) -> list[Figure]:
            raise OfflineError("no weights", hint="fetch them")

    class Nothing(Metric):
        def compute(self, evaluation: Evaluation) -> list[Figure]:
            return []

    evaluation.model.train()
    results = evaluate(evaluation, {"offline": Offline(), "nothing": Nothing(), "psnr": PSNR()})
    assert evaluation.model.training
    assert [figure.name for figure in results.figures] == ["psnr"]
    assert results.unavailable["offline"] == "no weights\n  fetch them"
    assert "does not apply" in results.unavailable["nothing"]
    assert results.sampling == {"sampler": "ddim", "steps": 7, "guidance": 1.0}
    assert [(part["name"], part["kind"], part["parameters"]) for part in results.parts] == [
        ("autoencoder", "codec", 1),
        ("small", "SmallPicture", 0),
        ("label", "Label", 0),
        ("denoiser", "Linear", 9),
    ]
    assert results.data["examples"] == {"small": "image.png", "label": str(evaluation.samples[0]["label"])}
    assert results.data["attribution"] == "Planes, drawn by the tests <CC0>"


def test_weights_of_a_backbone_without_a_network(monkeypatch):
    """Its library would ask a hub that does not answer five times over, for a minute."""
    import huggingface_hub
    import timm

    from ldmkit.errors import OfflineError
    from ldmkit.evaluation.metrics.frechet import Frechet

    def make(backbone, **options):
        assert huggingface_hub.constants.HF_HUB_OFFLINE, "the network is asked again"
        raise FileNotFoundError("not in the cache")

    before = huggingface_hub.constants.HF_HUB_OFFLINE
    monkeypatch.setattr("ldmkit.hub._answers", lambda name, kind: False)
    monkeypatch.setattr(timm, "create_model", make)
    with pytest.raises(OfflineError, match=r"hf download timm/resnet10t\.\w+, .* `weights: random`"):
        Frechet(weights="pretrained").extractor()
    assert before == huggingface_hub.constants.HF_HUB_OFFLINE
