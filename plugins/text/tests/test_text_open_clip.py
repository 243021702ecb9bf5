"""open_clip's text encoder, as Stable Diffusion 2 holds it: built twice, once here from torch's own layers, and compared."""

from __future__ import annotations

import warnings

import pytest
import torch
from ldmkit_text import foreign
from ldmkit_text.conditioner import TextConditioner
from ldmkit_text.open_clip import renamed
from ldmkit_text.tokenizer import fit_tokenizer, load_tokenizer
from torch import nn

from ldmkit.conditioning import Canvas, ForeignStage
from ldmkit.errors import CheckpointError, OfflineError

WIDTH, LENGTH, COUNT, LAYERS = 128, 8, 60, 3
TARGET = "ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder"


class Layer(nn.Module):
    """Pre-norm attention and a GELU network, under open_clip's names."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn = nn.MultiheadAttention(WIDTH, WIDTH // 64, batch_first=True)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(WIDTH, 4 * WIDTH), "c_proj": nn.Linear(4 * WIDTH, WIDTH)})

    def forward(self, x, mask):
        h = self.ln_1(x)
        x = x + self.attn(h, h, h, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp["c_proj"](nn.functional.gelu(self.mlp["c_fc"](self.ln_2(x))))


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(COUNT, WIDTH)
        self.positional_embedding = nn.Parameter(torch.randn(LENGTH, WIDTH))
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(Layer() for _ in range(LAYERS))})
        self.ln_final = nn.LayerNorm(WIDTH)
        self.text_projection = nn.Parameter(torch.randn(WIDTH, WIDTH))
        self.logit_scale = nn.Parameter(torch.zeros(()))

    def forward(self, ids, layers):
        x = self.token_embedding(ids) + self.positional_embedding
        mask = torch.full((LENGTH, LENGTH), float("-inf")).triu(1)
        for layer in list(self.transformer["resblocks"])[:layers]:
            x = layer(x, mask)
        return self.ln_final(x)


@pytest.fixture(scope="module")
def tower():
    torch.manual_seed(0)
    made = Tower().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return made


@pytest.fixture(autouse=True)
def _no_tokenizer(monkeypatch):
    def absent(name: str, length: int, pad: str | None = None) -> str:
        raise OfflineError(f"no {name}")

    monkeypatch.setattr(foreign, "read_tokenizer", absent)


def stage(tower, **params):
    tensors = {f"model.{name}": value.detach() for name, value in tower.state_dict().items()}
    tensors["model.attn_mask"] = torch.zeros(LENGTH, LENGTH)
    return ForeignStage(TARGET, {"max_length": LENGTH, **params}, "txt", "tokens", 0, tensors)


@pytest.mark.parametrize(("layer", "layers"), [("penultimate", LAYERS - 1), ("last", LAYERS)])
@torch.no_grad()
def test_the_same_tokens_come_out(tower, layer, layers):
    with pytest.warns(UserWarning, match="could not be had"):
        conditioner = TextConditioner.from_foreign(stage(tower, freeze=True, layer=layer)).eval()
    assert conditioner.frozen == ("transformer",)
    assert conditioner.emits.tokens == WIDTH
    ids = torch.randint(COUNT, (3, LENGTH))
    prepared = conditioner.collate([conditioner.from_user(row, (64, 64)) for row in ids])
    canvas = Canvas((64, 64), (8, 8), torch.device("cpu"), torch.float32, lambda images: images)
    torch.testing.assert_close(conditioner.encode(prepared, canvas).tokens, tower(ids, layers), rtol=1e-4, atol=1e-5)


def test_the_names_are_those_of_diffusers_converter(tower):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        utils = pytest.importorskip(
            "diffusers.loaders.single_file_utils", reason="needs diffusers: pip install diffusers"
        )
    found = stage(tower).tensors
    checkpoint = {f"cond_stage_model.{name}": value for name, value in found.items()}
    theirs = utils.convert_open_clip_checkpoint(None, checkpoint)
    theirs = {
        name.removeprefix("text_model."): v for name, v in theirs.items() if not name.startswith("text_projection")
    }
    ours = renamed({name.removeprefix("model."): value for name, value in found.items()}, without_last=False)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_padding_is_the_first_id(monkeypatch, tower):
    """open_clip pads with zeros, which is the id of "!" in CLIP's vocabulary; CLIP itself pads with the end."""
    seen = []

    def read(name, length, pad=None):
        seen.append(pad)
        return fit_tokenizer(["a cat"], length)

    monkeypatch.setattr(foreign, "read_tokenizer", read)
    conditioner = TextConditioner.from_foreign(stage(tower))
    assert seen == ["!"]
    assert conditioner.vocabulary is not None
    assert load_tokenizer(conditioner.vocabulary).get_vocab_size() < COUNT


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.transformer.resblocks.0.attn.bias_k": torch.zeros(2)}, "no place in a layer of CLIP"),
        ({"model.something": torch.zeros(2)}, "something has no place"),
        ({"model.ln_final.weight": torch.zeros(2)}, "does not fit.*final_layer_norm.weight"),
    ],
)
@pytest.mark.filterwarnings("ignore:the tokenizer")
def test_what_does_not_fit_is_named(tower, change, message):
    found = stage(tower)
    found.tensors.update(change)
    with pytest.raises(CheckpointError, match=message):
        TextConditioner.from_foreign(found)


def test_another_layer_is_refused(tower):
    with pytest.raises(CheckpointError, match="'pooled' layer; last and penultimate"):
        TextConditioner.from_foreign(stage(tower, layer="pooled"))
