"""FID, KID, Inception score, precision and recall against torch-fidelity, on the same features of the same images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ldmkit.errors import CheckpointError, DataError
from ldmkit.evaluation.context import Evaluation
from ldmkit.evaluation.feature_statistics import FeatureStatistics, frechet, reference
from ldmkit.evaluation.features import FeatureExtractor, Features, Inception
from ldmkit.evaluation.images import to_pil
from ldmkit.evaluation.metrics import FID, KID, PrecisionRecall, ReconstructionFID
from ldmkit.evaluation.metrics.distributions import inception_score, kernel_distance, overlap, polynomial_mmd

fidelity = pytest.importorskip("torch_fidelity", reason="pip install torch-fidelity")


class Levels(FeatureExtractor):
    """The 4 x 4 mean colours of the 8-bit image."""

    name, resized = "mean colours", "averaged"

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, images: Tensor) -> Features:
        self.seen += len(images)
        levels = ((images + 1) * 127.5).round() / 255
        return Features(torch.nn.functional.adaptive_avg_pool2d(levels, 4).flatten(1))


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(0)
    turn = torch.randn(12, 12, generator=source)
    return (
        torch.randn(200, 12, generator=source) @ turn,
        1.2 * torch.randn(160, 12, generator=source) @ turn + 0.4,
    )


def test_frechet_is_torch_fidelitys(pair: tuple[Tensor, Tensor]) -> None:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    a, b = (fid_features_to_statistics(each.double()) for each in pair)
    expected = fid_statistics_to_metric(a, b, verbose=False)["frechet_inception_distance"]
    found = frechet(*(FeatureStatistics.of(each) for each in pair))
    assert found == pytest.approx(expected, rel=1e-6)


def test_statistics_of_a_stream_are_those_of_the_whole(pair: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    found = FeatureStatistics()
    for part in (pair[0] + 1000).split(7):  # a large mean, which sums of squares would lose digits to
        found.add(part)
    whole = (pair[0].double() + 1000).numpy()
    np.testing.assert_allclose(found.mean.numpy(), (pair[0] + 1000).double().mean(0).numpy(), rtol=1e-12)
    np.testing.assert_allclose(found.covariance.numpy(), np.cov(whole, rowvar=False), rtol=1e-3)
    found.save(tmp_path / "kept.npz")
    again = FeatureStatistics.load(tmp_path / "kept.npz")
    assert again.count == 200
    np.testing.assert_allclose(again.covariance.numpy(), found.covariance.numpy(), rtol=1e-12)
    (tmp_path / "bad.npz").write_bytes(b"nothing")
    with pytest.raises(DataError, match="no statistics of features"):
        FeatureStatistics.load(tmp_path / "bad.npz")


def test_kid_is_torch_fidelitys(pair: tuple[Tensor, Tensor]) -> None:
    from torch_fidelity.metric_kid import kid_features_to_metric

    a, b = pair[0][:160].double(), pair[1].double()  # subsets of all rows: no draw decides
    expected = kid_features_to_metric(a, b, kid_subsets=1, kid_subset_size=160, verbose=False)
    assert polynomial_mmd(a, b) == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-9)
    mean, spread = kernel_distance(a, b, subsets=3, size=1000)
    assert mean == pytest.approx(polynomial_mmd(a, b), rel=1e-9)
    assert spread == pytest.approx(0, abs=1e-9 * abs(mean))


def test_inception_score_is_torch_fidelitys(pair: tuple[Tensor, Tensor]) -> None:
    from torch_fidelity.metric_isc import isc_features_to_metric

    expected = isc_features_to_metric(pair[0], splits=7, shuffle=False)
    assert inception_score(pair[0], splits=7) == pytest.approx(tuple(expected.values()), rel=1e-9)


def test_precision_and_recall_are_torch_fidelitys_and_density_and_coverage_as_defined(
    pair: tuple[Tensor, Tensor],
) -> None:
    from torch_fidelity.metric_prc import prc_features_to_metric

    samples, real = pair[0].double(), pair[1].double()
    expected = prc_features_to_metric(samples, real, prc_neighborhood=3, prc_batch_size=50, verbose=False)
    found = overlap(samples, real, k=3)
    assert float(found["precision"].mean()) == pytest.approx(expected["precision"])
    assert float(found["recall"].mean()) == pytest.approx(expected["recall"])
    assert 0 < float(found["recall"].mean()) < 1
    distances = np.linalg.norm(real.numpy()[:, None] - real.numpy()[None], axis=-1)
    reach = np.sort(distances, axis=1)[:, 3]
    across = np.linalg.norm(samples.numpy()[:, None] - real.numpy()[None], axis=-1) <= reach
    assert float(found["density"].mean()) == pytest.approx(across.sum() / (3 * len(samples)))
    assert float(found["coverage"].mean()) == pytest.approx(across.any(0).mean())


def test_a_directory_of_images_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evaluation: Evaluation
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "images"
    folder.mkdir()
    for index, image in enumerate(evaluation.truth):
        to_pil(image).save(folder / f"{index:03d}.png")
    extract = Levels()

    def read() -> FeatureStatistics:
        return reference(folder, extract, device=torch.device("cpu"), channels=3, tick=lambda done, total: None)

    first, second = read(), read()
    assert extract.seen == 40
    monkeypatch.setattr("ldmkit.evaluation.metrics.frechet.extractor", lambda features, weights: extract)
    (figure,) = FID(reference=str(folder)).compute(evaluation)
    own = FID().compute(evaluation)[0]
    assert figure.value == pytest.approx(own.value, rel=1e-4)  # the folder holds the held-out images, in 8 bits
    assert figure.beside["training pictures"] < figure.value
    assert torch.equal(first.covariance, second.covariance)
    Image.new("RGB", (32, 32)).save(folder / "another.png")
    read()
    assert extract.seen > 40 + 41
    with pytest.raises(DataError, match="has no images to compare with"):
        reference(tmp_path / "nothing", extract, device=torch.device("cpu"), channels=3, tick=lambda a, b: None)


def test_metrics_take_any_features(monkeypatch: pytest.MonkeyPatch, evaluation: Evaluation) -> None:
    monkeypatch.setattr("ldmkit.evaluation.metrics.frechet.extractor", lambda features, weights: Levels())
    monkeypatch.setattr("ldmkit.evaluation.metrics.distributions.extractor", lambda features, weights: Levels())
    figures = {figure.name: figure for figure in [*KID().compute(evaluation), *PrecisionRecall().compute(evaluation)]}
    assert set(figures) == {"kid", "precision", "recall", "density", "coverage"}
    assert figures["kid"].value > figures["kid"].beside["reconstructions"]
    assert figures["precision"].interval is not None
    assert "mean colours" in figures["recall"].label
    (r_fid,) = ReconstructionFID().compute(evaluation)
    assert r_fid.value < FID().compute(evaluation)[0].value


def test_inception_reads_weights_from_a_file_and_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CheckpointError, match="no file of Inception weights"):
        Inception(str(tmp_path / "nothing.pth"))
    torch.save({"a": torch.zeros(1)}, tmp_path / "wrong.pth")
    with pytest.raises(CheckpointError, match="not the weights of this Inception"):
        Inception(str(tmp_path / "wrong.pth"))


def test_inception_offline_says_where_its_weights_go(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch_fidelity import feature_extractor_inceptionv3 as module

    from ldmkit.errors import OfflineError

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(module, "load_state_dict_from_url", unreachable)
    with pytest.raises(OfflineError, match=r"`weights: PATH`"):
        Inception()
