"""Recipe -> model -> file -> model."""

from __future__ import annotations

import pytest
import torch

import ldmkit
from ldmkit import plugins
from ldmkit.assembly import build, datasets, fit, load, model_folder
from ldmkit.errors import CheckpointError, RecipeError, UsageError
from ldmkit.plugins.hookspecs import hookimpl
from ldmkit.recipe import Recipe

RECIPE = {
    "name": "tiny",
    "data": {"type": "digits", "size": 16},
    "autoencoder": {
        "type": "kl",
        "downsample": 4,
        "channels": 8,
        "multipliers": [1, 1, 2],
        "blocks": 1,
        "latent_channels": 2,
        "loss": {"perceptual": None, "adversarial": None},
        "train": {"steps": 2, "batch": 4},
    },
    "conditioners": {"mark": {"fields": {"mark": "label"}, "dropout": 0.2, "width": 6}},
    "denoiser": {"channels": 16, "multipliers": [1, 2], "blocks": 1, "attention": [1]},
    "train": {"steps": 2, "batch": 4},
    "sample": {"steps": 3, "guidance": 2.0},
}


class Mark(ldmkit.Conditioner):
    """Learns its list of names from data; an invented modality, so that no installed plugin matters."""

    reads = ("mark",)

    def __init__(self, *, names: list[int], latent: ldmkit.LatentSpec, width: int = 4) -> None:
        super().__init__()
        self.names, self.latent = names, latent
        self.emits = ldmkit.Ports(tokens=width, length=1)
        self.table = torch.nn.Embedding(len(names) + 1, width)

    @classmethod
    def fit(cls, options, samples):
        return {"names": sorted({int(sample["mark"]) for sample in samples})}

    def prepare(self, sample, generator=None):
        return {"id": torch.tensor(self.names.index(int(sample["mark"])))}

    def encode(self, prepared, canvas):
        return ldmkit.Conditioning(tokens=self.table(prepared["id"])[:, None])

    def null(self, canvas):
        return ldmkit.Conditioning(tokens=self.table.weight[-1:, None])


class Plugin:
    @hookimpl
    def ldmkit_register_conditioners(self, register):
        register("mark", Mark)


@pytest.fixture(scope="module")
def registry():
    return plugins.load(only=(), extra=[Plugin()])


@pytest.fixture(scope="module")
def fitted(registry):
    return fit(Recipe.parse(RECIPE, registry=registry), registry)


def test_what_a_conditioner_learns_from_data_is_written_into_its_slot(fitted):
    assert fitted.conditioners["mark"].options["names"] == list(range(10))


def test_a_value_that_the_recipe_gives_wins(registry):
    given = {**RECIPE, "conditioners": {"mark": {"fields": {"mark": "label"}, "names": [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]}}}
    recipe = fit(Recipe.parse(given, registry=registry), registry)
    assert recipe.conditioners["mark"].options["names"] == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]


def test_building_an_unfitted_recipe_names_slot_and_option(registry):
    with pytest.raises(RecipeError, match=r"conditioners.mark: names .*learned from the data"):
        build(Recipe.parse(RECIPE), registry)


def test_widths_follow_from_the_autoencoder_and_the_conditioners(fitted, registry):
    model = build(fitted, registry)
    assert model.denoiser.config["in_channels"] == model.denoiser.config["out_channels"] == 2
    assert model.denoiser.config["context_width"] == 6
    assert model.autoencoder.image_channels == 1
    assert model.conditioners["mark"].latent == ldmkit.LatentSpec(2, 4, (16, 16))
    assert {name: model.sampling[name] for name in ("sampler", "steps", "guidance")} == {
        "sampler": "ddim",
        "steps": 3,
        "guidance": 2.0,
    }


def test_weights_come_from_the_recipes_seed_and_leave_the_global_generator_alone(fitted, registry):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = build(fitted, registry)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    second = build(fitted, registry)
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


def test_a_saved_model_loads_and_samples_the_same_bits(fitted, registry, tmp_path):
    model = build(fitted, registry)
    model.save(tmp_path / "model")
    loaded = load(tmp_path / "model", registry=registry)
    assert not any(parameter.is_meta for parameter in loaded.state_dict().values())
    settings = {"count": 2, "output": "tensor", "seed": 3}
    assert torch.equal(model.sample({"mark": 3}, **settings), loaded.sample({"mark": 3}, **settings))
    assert model_folder(tmp_path) == tmp_path / "model"  # a run's directory


def test_weights_that_do_not_fit_are_listed(fitted, registry, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = build(fitted, registry).save(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["denoiser.out.2.bias"] = torch.zeros(7)
    tensors["extra"] = tensors.pop("denoiser.out.0.bias")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"out.0.bias is missing; extra is not in the model; .*is \(7,\), the model has \(2,\)"
    ):
        load(folder, registry=registry)


def test_weights_that_are_no_weights_are_not_rounded_into_some(fitted, registry, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = build(fitted, registry).save(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "denoiser.out.2.bias": torch.ones(2, dtype=torch.int64)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"out.2.bias holds torch.int64, the model torch.float32"):
        load(folder, registry=registry)


def test_no_model_there_says_what_to_give(tmp_path):
    with pytest.raises(CheckpointError, match="no trained model"):
        load(tmp_path)
    with pytest.raises(CheckpointError, match="weights is 'best'"):
        load(tmp_path, "best")


def test_held_out_pictures_are_others_than_those_trained_on(fitted, registry):
    train, validation = datasets(fitted, registry)
    seen = {bytes(train.sample(i)["image"].numpy().tobytes()) for i in range(len(train))}
    held = {bytes(validation.sample(i)["image"].numpy().tobytes()) for i in range(len(validation))}
    assert len(train) + len(validation) == 1797
    assert len(seen & held) < 5  # a few of the 8x8 digits were drawn the same twice


def test_the_model_trains_from_a_dataset(fitted, registry):
    from ldmkit.data import batches

    model = build(fitted, registry).train()
    train, _ = datasets(fitted, registry)
    batch = next(iter(batches(train, model.conditioners, start=0, batch=4, seed=0)))
    loss, _ = model(batch, model.draw(batch.positions, 0))
    loss.backward()
    assert model.conditioners["mark"].table.weight.grad is not None
    assert model.autoencoder.last_layer.grad is None


def test_what_the_recipe_freezes_is_frozen_in_the_model(fitted, registry):
    def trained(freeze):
        model = build(fitted.updated({"conditioners.mark.freeze": freeze}), registry)
        return {parameter.requires_grad for parameter in model.conditioners["mark"].parameters()}

    assert trained(True) == {False}
    assert trained(False) == trained(5) == {True}  # those of some steps are the optimizer's affair


def test_a_model_that_a_plugin_ships_is_found_by_its_name_unless_something_on_disk_has_it(
    fitted, registry, tmp_path, monkeypatch
):
    model = build(fitted, registry)
    folder = model.save(tmp_path / "shipped")

    class Ships(Plugin):
        @hookimpl
        def ldmkit_register_models(self, register):
            register("small", folder)

    shipping = plugins.load(only=(), extra=[Ships()])
    monkeypatch.chdir(tmp_path)
    assert model_folder("small", shipping) == folder
    found = ldmkit.load("small", registry=shipping).state_dict()
    assert all(torch.equal(found[name], value) for name, value in model.state_dict().items())
    with pytest.raises(CheckpointError, match="no trained model in smal\n  did you mean small, which a plugin ships"):
        model_folder("smal", shipping)
    own = build(fitted, registry).save(tmp_path / "small")
    assert model_folder("small", shipping).absolute() == own


@pytest.mark.parametrize(("storage", "bits"), [("float16", 11), ("bfloat16", 8)])
def test_weights_stored_in_half_the_space_are_the_nearest_ones_and_full_precision_again(
    fitted, registry, tmp_path, storage, bits
):
    model = build(fitted, registry)
    large = model.save(tmp_path / "large") / "model.safetensors"
    small = model.save(tmp_path / "small", storage=storage) / "model.safetensors"
    assert small.stat().st_size < 0.7 * large.stat().st_size  # the header takes its part
    for name, value in load(tmp_path / "small", registry=registry).state_dict().items():
        own = model.state_dict()[name]
        assert value.dtype == own.dtype
        # Half a unit in the last place, or of the smallest numbers that float16 has.
        assert torch.all((value - own).abs() <= own.abs() * 2.0**-bits + 2.0**-25), name


def test_a_weight_too_large_for_its_storage_is_said(fitted, registry, tmp_path):
    model = build(fitted, registry)
    with torch.no_grad():
        next(model.denoiser.parameters()).fill_(1e6)
    with pytest.raises(UsageError, match=r"float16 cannot hold denoiser\..*: its largest is 1e\+06"):
        model.save(tmp_path / "small", storage="float16")
    assert list(tmp_path.iterdir()) == []
