"""All metrics on a real, untrained model: the interfaces fit, and figures that are known for such a model come out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ldmkit import plugins
from ldmkit.assembly import build, datasets, fit
from ldmkit.evaluation import Evaluation, Results, evaluate, write_pictures, write_report
from ldmkit.recipe import Recipe

SMALL = {"features": "test_resnet.r160_in1k", "weights": "random"}  # instead of Inception, whose weights are not here
FEWER = {
    "variational-bound": {"steps": 4, "count": 4},  # it asks the network at every step
    **dict.fromkeys(("fid", "r-fid", "kid", "precision-recall"), SMALL),
}


def unreachable(*_: object, **__: object) -> None:
    raise OSError("no network")


@pytest.mark.slow
def test_every_metric_on_an_untrained_model_of_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", unreachable)
    registry = plugins.load()
    recipe = Recipe.parse(
        {
            "name": "untrained",
            "data": {"type": "digits", "size": 32},
            "autoencoder": {"type": "identity"},
            "conditioners": {"class": {}},
            "denoiser": {"channels": 32, "multipliers": [1], "blocks": 1, "attention": []},
            "train": {"steps": 1},
            "evaluate": [{"type": name, **FEWER.get(name, {})} for name in sorted(registry.metrics)],
        },
        registry=registry,
    )
    recipe = fit(recipe, registry)
    train, validation = datasets(recipe, registry)
    evaluation = Evaluation(build(recipe, registry), train, validation, n=24, steps=2, guidance=1.0)
    metrics = [(entry.type, registry.metrics.create(entry.type, entry.options)) for entry in recipe.evaluate]
    results = evaluate(evaluation, metrics)
    results = replace(results, pictures=write_pictures(evaluation, tmp_path / "samples"))

    found = {figure.name: figure for figure in results.figures}
    assert set(results.unavailable) == {"fidelity", "inception-score"}  # a class has no fidelity of its own
    assert "`weights: PATH`" in results.unavailable["inception-score"]
    assert found["reconstruction-fid"].value < 0.1 < found["fid"].value
    assert found["judge"].beside["held-out pictures"] > 0.9
    assert found["judge"].value < 0.5
    assert found["conditioning-gain"].value == pytest.approx(0.0, abs=1e-3)  # its output layer starts at zero
    assert found["reconstruction-psnr"].value > 100  # the identity
    assert found["near-copies"].value == 0.0

    results.save(tmp_path / "evaluation.json")
    assert Results.load(tmp_path / "evaluation.json").figures == results.figures
    (tmp_path / "recipe.resolved.yaml").write_text(recipe.to_yaml())
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert "conditioned on class" in text
    assert text.count("<img ") == 4
