"""Golden texts: what a person reads who made a mistake in a recipe."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ldmkit import plugins
from ldmkit.errors import PluginError, RecipeError
from ldmkit.recipe import Recipe, load

TRAIN_KEYS = (
    "steps, batch, lr, scale_lr, optimizer, betas, weight_decay, warmup, decay, lr_schedule, ema, post_hoc, clip, accumulate, "
    "log_every, sample_every, checkpoint_every, validate_every, keep"
)


def test_all_errors_at_once_in_the_order_of_the_file(errors):
    text = """\
        data: {type: photos, size: 64, crop: middle}
        autoencoder:
          type: vq
          downsample: 5
          train: {steps: 400, lrr: 1e-3}
        train:
          steps: 1e3
          batch: yes
          lr: .nan
        optimiser: adam
    """
    assert errors(text) == "\n".join(
        [
            'recipe.yaml:1:32: data.crop: must be one of center, random, got "middle"',
            "recipe.yaml:4:3: autoencoder.downsample: must be one of 1, 2, 4, 8, 16, 32, got 5",
            f"recipe.yaml:5:23: autoencoder.train.lrr: unknown key; did you mean 'lr'?; allowed: {TRAIN_KEYS}, crop",
            "recipe.yaml:7:3: train.steps: expected a whole number, got 1000.0 (write 1000)",
            'recipe.yaml:8:3: train.batch: expected a whole number, got "yes"',
            "recipe.yaml:9:3: train.lr: expected a finite number, got NaN",
            "recipe.yaml:10:1: optimiser: unknown key; allowed: schema, name, seed, init, data, autoencoder, conditioners, "
            "dropout, denoiser, diffusion, losses, train, sample, evaluate, runtime, extends",
        ]
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps=0", "train.steps: must be at least 1, got 0"),
        ("train.steps=true", "train.steps: expected a whole number, got true"),
        ("train.steps=many", 'train.steps: expected a whole number, got "many"'),
        ("train.lr=-1", "train.lr: must be more than 0, got -1"),
        ("train.batch=0", "train.batch: must be at least 1, got 0"),
        ("train.decay=cosin", "train.decay: must be one of constant, linear, cosine, got \"cosin\"; did you mean 'cosine'?"),
        ("train.betas=[0.9]", "train.betas.1: too few values"),
        ("train=5", "train: expected a mapping of keys, got 5"),
        ("diffusion.loss=hubr", "diffusion.loss.type: must be one of l2, l1, huber, got \"hubr\"; did you mean 'huber'?"),
        ("autoencoder.loss.perceptual.net=vggg", "alex, vgg, squeeze, efficientnet-lite0, got \"vggg\"; did you mean 'vgg'?"),
        ("data.size=64x64", 'data.size: expected a whole number or a list, got "64x64"'),
        ("data.size=[64, a]", 'data.size.1: expected a whole number, got "a"'),
        ("diffusion.schedule.ent=1", "diffusion.schedule.ent: unknown key; did you mean 'end'?; allowed: start, end, timesteps, "
         "type, zero_snr, shift"),
        ("denoiser.chanels=8", "denoiser.chanels: unknown key; did you mean 'channels'?; allowed: channels, multipliers, "),
        ("denoiser.variant.group=8", "denoiser.variant.group: unknown key; did you mean 'groups'?; allowed: scale_shift, "),
        ("autoencoder.codebok=8", "autoencoder.codebok: unknown key; did you mean 'codebook'?; allowed: codebook, commitment, "),
        ("sample.etta=1", "sample.etta: unknown key; did you mean 'eta'?; allowed: eta, "),
        ("losses.Mine.type=mine", "a loss's name is a-z, 0-9 and '_', beginning with a letter; for example mine"),
        ("denoiser.type=my.module:Net", "'my.module:Net' is not a registered name"),
        ("diffusion.weighting.gama=1", "diffusion.weighting.gama: unknown key; allowed: type"),
        ("runtime.compile=yes", 'expected true or false, got "yes" (YAML 1.2 has true and false; yes, no, on'),
        ("name=10", "name: expected text, got 10 (put it in quotes)"),
        ("evaluate.0=[3]", "evaluate.0: expected a mapping of keys, got [3]"),
        ("seed=-1", "seed: must be at least 0, got -1"),
        # one key against another
        ("data.size=66", "66 is no multiple of 4: the autoencoder makes it 4 times smaller (autoencoder.downsample); "
         "nearest: 64 or 68"),
        ("data.size=[64, 7]", "7 is no multiple of 4"),
        ("denoiser.variant.groups=24", "denoiser.variant.groups: 24 does not divide the 32 channels of a level"),
        ("denoiser.multipliers=[1, 1.01]", "denoiser.channels 32 times a multiplier is 32.32, not a whole number of channels"),
        ("denoiser.heads=7", "7 does not divide the 64 channels of level 2 (denoiser.channels 32 x 2); nearest: 8"),
        ("denoiser.head_width=48", "48 does not divide the 64 channels of level 2 (denoiser.channels 32 x 2); nearest: 32"),
        ("denoiser.attention=[16]", "no level is down-sampled 16 times; denoiser.multipliers has levels at 1, 2, 4"),
        ("denoiser.blocks=[1, 2]", "denoiser.blocks: has 2 numbers, and denoiser.multipliers has 3 levels"),
        ("denoiser.channels=33", "must be even"),
        ("autoencoder.multipliers=[1, 2]", "has 2 levels, and autoencoder.downsample 4 needs 3"),
        ("diffusion.schedule.start=0.5", "diffusion.schedule.start: 0.5 must be less than diffusion.schedule.end, 0.0195"),
        ("diffusion.schedule.zero_snr=true", "eps does not determine the image where there is no signal"),
        ("sample.steps=2000", "2000 is more than diffusion.schedule has timesteps, 1000"),
        ("sample.guidance={low_ras: 3}", "there is no slot 'low_ras'; did you mean 'low_res'?; slots: low_res"),
        ("dropout={low_res: 0.7, lowres: 0.5}", "dropout.lowres: there is no slot 'lowres'"),
        ("dropout={low_res: 1.2}", "dropout.low_res: must be at most 1, got 1.2"),
        ("dropout={low_res: 0.2}", "conditioners.low_res.dropout: the table `dropout` at the top already sets it"),
        ("conditioners.Low-Res.dropout=0", "a slot's name is a-z, 0-9 and '_', beginning with a letter; for example low_res"),
        ("conditioners.none.type=class", "'none' is a reserved name (null, none, all)"),
        ("conditioners.low_res.type=os.system", "'os.system' is not a registered name (a-z, 0-9 and '-'), and a recipe"),
        ("data.type=my.module:Source", "'my.module:Source' is not a registered name"),
        ("autoencoder.train=null", "nothing says how it is trained; add `train: {steps: ...}`, or `from:` with a trained one"),
        ("data.path=<redacted>", "this secret was removed when the recipe was saved; give it: --set data.path=..."),
    ],
)  # fmt: skip
def test_overrides_are_checked_like_yaml_and_errors_name_the_override(good, override, message):
    with pytest.raises(RecipeError) as caught:
        load(good, [override])
    first = str(caught.value).splitlines()[0]
    assert message in str(caught.value)
    assert override in first or str(good) in first


def test_guidance_on_a_slot_that_training_never_drops(good):
    with pytest.raises(RecipeError, match=r"training never drops 'low_res' \(conditioners.low_res.dropout is 0\)"):
        load(good, ["conditioners.low_res.dropout=0", "sample.guidance={low_res: 3}"])


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "a/b", "", ".hidden", "con", "NUL.txt", "x" * 101, "dot."])
def test_names_that_are_no_directory(good, name):
    with pytest.raises(RecipeError, match=r"cannot name a run directory|expected text"):
        load(good, [f'name="{name}"'])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", 'recipe.yaml:1:1: a recipe is a mapping of keys, got ["a", "b"]'),
        ("just text\n", 'recipe.yaml:1:1: a recipe is a mapping of keys, got "just text"'),
        ("schema: 2\nwhat: ever\n", "recipe.yaml:1:1: schema: 2 is newer than this ldmkit, which reads schema 1"),
        ("name: x\n", "recipe.yaml:1:1: data: missing; it has no default"),
        ("data:\n  type: photos\n", "recipe.yaml:1:1: data.size: missing; it has no default"),
    ],
)
def test_whole_files(errors, text, message):
    assert message in errors(text).splitlines()


@pytest.mark.parametrize("override", ["nope", "=3", "a..b=1", ".a=1"])
def test_overrides_that_are_none(good, override):
    with pytest.raises(RecipeError, match=r"--set .*: write key.sub=value"):
        load(good, [override])


def test_a_file_that_is_not_there_suggests_near_names(tmp_path):
    (tmp_path / "superes.yaml").write_text("")
    with pytest.raises(RecipeError, match=r"no bundled recipe of that name; did you mean 'superes.yaml'\?"):
        load(tmp_path / "supers.yaml")
    with pytest.raises(RecipeError, match=r"did you mean 'superres'\?") as caught:
        load("superrs")
    assert "superres" in (caught.value.hint or "")


def test_a_directory_is_no_recipe(good):
    with pytest.raises(RecipeError, match="this is a directory and not a recipe file") as caught:
        load(good.parent)
    assert caught.value.hint == "In it: recipe.yaml"


def test_names_that_no_file_can_have():
    with pytest.raises(RecipeError):
        load("x" * 5000)
    with pytest.raises(RecipeError):
        load("a\0b.yaml")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a": "b.yaml", "b": "a.yaml"}, "`extends` is circular: a.yaml -> b.yaml -> a.yaml"),
        ({"a": "a.yaml"}, "`extends` is circular: a.yaml -> a.yaml"),
        ({"a": "missing.yaml"}, "a.yaml:1:1: extends: missing.yaml: there is no such file"),
        ({"a": "[1]"}, "a.yaml:1:1: extends: expected a file or the name of a bundled recipe"),
    ],
)
def test_extends_that_leads_nowhere(tmp_path, files, message):
    for name, base in files.items():
        (tmp_path / f"{name}.yaml").write_text(f"extends: {base}\n")
    with pytest.raises(RecipeError) as caught:
        load(tmp_path / "a.yaml")
    assert message in str(caught.value)


def test_errors_in_a_base_name_the_base(tmp_path, good):
    good.write_text(good.read_text().replace("batch: 32", "batsh: 32"))
    child = tmp_path / "child.yaml"
    child.write_text("extends: recipe.yaml\ntrain: {stepz: 3}\n")
    with pytest.raises(RecipeError) as caught:
        load(child)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"{child}:2:9: train.stepz: unknown key; did you mean 'steps'?")
    assert lines[1].startswith(f"{good}:7:23: autoencoder.train.batsh: unknown key; did you mean 'batch'?")


def test_errors_of_core_and_components_are_reported_together(good):
    registry = plugins.load()
    overrides = ["train.stepz=3", "conditioners.low_res.scael=3", "sample.etta=1", "evaluate.0=pnsr", "data.held_out=5"]
    with pytest.raises(RecipeError) as caught:
        load(good, overrides, registry=registry)
    text = str(caught.value)
    assert "train.stepz: unknown key; did you mean 'steps'?" in text
    assert "conditioners.low_res.scael: unknown key; did you mean 'scale'?" in text
    assert "sample.etta: unknown key; did you mean 'eta'?" in text
    assert "evaluate.0.type: no metric is called 'pnsr'" in text
    assert "did you mean 'psnr'?" in text
    assert "data.held_out: expected a list, got 5" in text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("autoencoder.type=kll", "no autoencoder is called 'kll'; installed: identity, kl, vq; did you mean 'kl'"),
        ("denoiser.type=unett", "denoiser.type: no denoiser is called 'unett'; installed: unet; did you mean 'unet'?"),
        ("diffusion.schedule=cosin", "diffusion.schedule.type: no schedule is called 'cosin'; installed: cosine, edm, flow, "),
        ("sample.guidance_options=apq", "sample.guidance_options.type: no guidance method is called 'apq'; installed: apg, "),
        ("train.optimizer=adamv", "no optimizer is called 'adamv'; installed: adam, adamw, adamw-8bit, muon; "),
        ("autoencoder.train.optimizer=lion", "autoencoder.train.optimizer.type: no optimizer is called 'lion'"),
        ("losses.align.type=repa", "losses.align.type: no loss is called 'repa'; installed: alignment, contrast, "),
        ("losses={align: null}", "losses.align.type: no loss is called 'align'"),
    ],
)  # fmt: skip
def test_names_that_nobody_registered(good, override, message):
    registry = plugins.load(only=())
    recipe = load(good, [override])  # a plugin that is not asked may have it
    for ask in (recipe.require_components, recipe.validate_components):
        with pytest.raises(PluginError) as caught:
            ask(registry)
        assert message in str(caught.value)
        assert str(caught.value).startswith(f"--set {override}: ")


def test_a_typo_in_a_slots_own_key_is_found_among_its_options(good):
    with pytest.raises(RecipeError, match=r"conditioners.low_res.dropuot: unknown key; did you mean 'dropout'\?"):
        load(good, ["conditioners.low_res.dropuot=0.2"], registry=plugins.load())


def test_a_conditioner_that_nobody_registered_is_a_plugins_error(good):
    recipe = load(good, ["conditioners.low_res.type=depth"])
    for check in (recipe.require_components, recipe.validate_components):
        with pytest.raises(PluginError) as caught:
            check(plugins.load())
        assert (
            "conditioners.low_res.type: no conditioner is called 'depth'; installed: attributes, class, given"
            in str(caught.value)
        )
        assert "pip install ldmkit-depth" in str(caught.value)


def test_no_environment_variable_is_put_into_a_recipe(good):
    value = load(good, ["data.type=folder", "data.path=$HOME/${USER}/~"]).data.options["path"]
    assert value == "$HOME/${USER}/~"
    assert os.environ.get("HOME", "-") not in value


def test_recipes_from_mappings_are_checked_too():
    with pytest.raises(RecipeError, match="recipe: data: missing"):
        Recipe.parse({"name": "x", "train": {"steps": 1}, "autoencoder": {"type": "identity"}})
    assert Path("recipe") is not None
