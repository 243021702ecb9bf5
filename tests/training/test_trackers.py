from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from PIL import Image

from ldmkit.errors import ResourceError
from ldmkit.training.logging.log import Log
from ldmkit.training.logging.trackers import Trackers

tracking = pytest.importorskip("accelerate.tracking", reason="install accelerate: pip install 'ldmkit[trackers]'")


class Notebook(tracking.GeneralTracker):  # type: ignore[misc]
    """A tracker as a stranger registers one with Accelerate."""

    name = "notebook"
    requires_logging_directory = True
    main_process_only = False
    made: ClassVar[list[Notebook]] = []

    def __init__(self, run_name: str, logging_dir: str, **options: Any) -> None:
        super().__init__()
        self.told: list[Any] = [("made", run_name, Path(logging_dir).name)]
        Notebook.made.append(self)

    @property
    def tracker(self) -> None:
        return None

    def start(self) -> None:
        self.told.append("started")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.told.append(values)

    def log(self, values: dict[str, Any], step: int | None = None, **options: Any) -> None:
        if "diffusion/bad" in values:
            raise ConnectionError("the network is gone")
        self.told.append((step, values))

    def finish(self) -> None:
        self.told.append("finished")


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> list[Notebook]:
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "notebook", Notebook)
    monkeypatch.setattr(Notebook, "made", [])
    return Notebook.made


def trackers(folder: Path, *names: str, warn: Any = print) -> Trackers:
    configuration = {"train": {"lr": 0.1, "betas": [0.9, 0.99]}, "name": "tiny", "init": None}
    return Trackers(names, folder=folder, configuration=configuration, offsets={"diffusion": 400}, warn=warn)


def test_numbers_go_out_with_steps_that_only_rise(tmp_path: Path, notebook: list[Notebook]) -> None:
    with Log(tmp_path, trackers=trackers(tmp_path, "notebook")) as log:
        for stage, total in (("autoencoder", 2), ("diffusion", 1)):
            with log.stage(stage, total=total, every=1) as out:
                for done in range(total):
                    out.step(done + 1, {"loss": 0.5}, images=4)
    told = notebook[0].told
    assert told[:3] == [
        ("made", "ldmkit", "trackers"),
        "started",
        {"train.lr": 0.1, "train.betas": "[0.9, 0.99]", "name": "tiny"},
    ]
    assert [entry[0] for entry in told[3:-1]] == [1, 2, 401]
    assert told[3][1]["autoencoder/loss"] == 0.5
    assert told[-2][1]["diffusion/loss"] == 0.5
    assert told[-1] == "finished"


def test_one_that_fails_is_left_out_and_training_goes_on(tmp_path: Path, notebook: list[Notebook]) -> None:
    said: list[str] = []
    found = trackers(tmp_path, "notebook", warn=said.append)
    found.log("diffusion", 1, {"bad": 1.0})
    found.log("diffusion", 2, {"loss": 1.0})
    found.finish()
    assert said == ["warning: notebook failed (ConnectionError: the network is gone); training goes on without it"]
    assert all(not isinstance(entry, tuple) or entry[0] == "made" for entry in notebook[0].told)


def test_nothing_asked_for_writes_nothing(tmp_path: Path) -> None:
    trackers(tmp_path).log("diffusion", 1, {"loss": 1.0})
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_is_not_there_is_said_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(
        ResourceError, match=r"names mlflow, and the package mlflow is not installed\n  pip install mlflow"
    ):
        trackers(tmp_path, "mlflow")
    with pytest.raises(ResourceError, match=r"names 'wanbd'; there are .*wandb"):
        trackers(tmp_path, "wanbd")
    with pytest.raises(ResourceError, match="names 'tensorboard'"):
        trackers(tmp_path, "tensorboard")


WANDB = """
class Run:
    def __init__(self, **options): self.options, self.logged = options, []
    def log(self, values, step=None): self.logged.append((step, values))
    def finish(self): self.logged.append("finished")
class config:
    stored = {}
    @classmethod
    def update(cls, values, allow_val_change): cls.stored.update(values)
class Image:
    def __init__(self, image): self.size = image.size
runs = []
def init(**options):
    runs.append(Run(**options))
    return runs[-1]
"""


def test_accelerates_own_wandb_tracker_is_driven_as_it_wants_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package is a stand-in with wandb's names; the tracker between it and us is Accelerate's."""
    (tmp_path / "site" / "wandb").mkdir(parents=True)
    (tmp_path / "site" / "wandb" / "__init__.py").write_text(WANDB)
    monkeypatch.syspath_prepend(tmp_path / "site")
    run = tmp_path / "tiny"
    run.mkdir()
    for _ in range(2):  # the second one is the run that continues
        found = trackers(run, "wandb")
        found.log("diffusion", 3, {"loss": 0.5})
        found.picture("diffusion", 3, Image.new("RGB", (4, 2)), run / "sheet.png")
        found.finish()
    import wandb  # the one above

    first, second = (SimpleNamespace(**made.options) for made in wandb.runs)
    assert (first.project, first.name, first.resume) == ("ldmkit", "tiny", "allow")
    assert first.id == second.id
    assert wandb.config.stored["train.lr"] == 0.1
    numbers, picture, end = wandb.runs[0].logged
    assert numbers == (403, {"diffusion/loss": 0.5})
    assert picture[0] == 403
    assert picture[1]["diffusion/samples"][0].size == (4, 2)
    assert end == "finished"
