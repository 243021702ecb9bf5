"""Conditioners on encoders of transformers keep the contract; what no checkpoint can hold does not."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from ldmkit import Conditioner, Conditioning, PluginError, Ports
from ldmkit.conditioning.checks import Examiner, check_state
from ldmkit.plugins.options import model as options_of
from ldmkit.testing import ContractError, check_conditioner

LENGTH, WIDTH = 8, 16
SMALL = {
    "vocab_size": 64, "hidden_size": WIDTH, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "max_position_embeddings": 16,
}  # fmt: skip


def encoder(kind: str) -> nn.Module:
    if kind == "clip":
        config = transformers.CLIPTextConfig(**SMALL, eos_token_id=63, bos_token_id=62, pad_token_id=0)
        return transformers.CLIPTextModel(config)
    if kind == "bert":
        return transformers.BertModel(transformers.BertConfig(**SMALL), add_pooling_layer=False)
    if kind == "llama":
        return transformers.LlamaModel(transformers.LlamaConfig(**SMALL, num_key_value_heads=2))
    config = transformers.T5Config(vocab_size=64, d_model=WIDTH, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return transformers.T5EncoderModel(config)


class Encoded(Conditioner):
    reads = ("ids",)

    def __init__(self, *, kind: str = "clip", trained: bool = False) -> None:
        super().__init__()
        self.emits, self.frozen = Ports(tokens=WIDTH, length=LENGTH), () if trained else ("net",)
        self.net = encoder(kind)

    def prepare(self, sample, generator=None):
        ids = torch.as_tensor(sample["ids"], dtype=torch.long)
        padded = torch.zeros(LENGTH, dtype=torch.long)
        padded[: len(ids)] = ids
        return {"ids": padded, "mask": torch.arange(LENGTH) < max(len(ids), 1)}

    def encode(self, prepared, canvas):
        hidden = self.net(input_ids=prepared["ids"], attention_mask=prepared["mask"].long()).last_hidden_state
        return Conditioning(tokens=hidden.to(canvas.dtype), mask=prepared["mask"])

    def null(self, canvas):
        ids = torch.zeros(1, LENGTH, dtype=torch.long, device=canvas.device)
        return self.encode({"ids": ids, "mask": ids == 0}, canvas)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("kind", ["clip", "t5", "bert", "llama"])
def test_an_encoder_with_an_attention_mask_passes(kind, trained):
    torch.manual_seed(0)
    sample, other = {"ids": [62, 3, 4, 63]}, {"ids": [62, 9, 63]}
    check_conditioner(Encoded(kind=kind, trained=trained), sample, others=[other])


class Extra(Encoded):
    def get_extra_state(self):
        return {"seen": 1}

    def set_extra_state(self, state):
        pass


class Lazy(Encoded):
    def __init__(self) -> None:
        super().__init__()
        self.late = nn.LazyLinear(4)


@pytest.mark.parametrize(
    ("kind", "words"), [(Extra, "a state that is no tensor"), (Lazy, r"late\.\w+ without a shape")]
)
def test_state_that_no_checkpoint_holds_is_refused_by_the_kit_and_by_a_run(kind, words):
    with pytest.raises(ContractError, match=words):
        check_conditioner(kind(), {"ids": [1, 2]})
    with pytest.raises(PluginError, match=f"slot s has .*{words}"):
        check_state("slot s", kind())


class Long(Conditioner):
    """One token an id, though it promises one in all."""

    reads = ("ids",)

    def __init__(self, *, tokens: int = 2) -> None:
        super().__init__()
        self.tokens, self.emits = tokens, Ports(tokens=4, length=1)

    def encode(self, prepared, canvas):
        return Conditioning(tokens=canvas.zeros(len(prepared["ids"]), self.tokens, 4))

    def null(self, canvas):
        return Conditioning(tokens=canvas.zeros(1, 1, 4))


@pytest.mark.parametrize("tokens", [0, 2, 5])
def test_the_number_of_tokens_is_checked_by_the_kit_and_by_a_run(tokens):
    with pytest.raises(ContractError, match=f"returned {tokens} tokens; emits says length=1"):
        check_conditioner(Long(tokens=tokens), {"ids": torch.tensor([1.0, 2.0])})
    from ldmkit.testing.subject import Subject

    canvas = Subject(Long(), {}, None, (), ((64, 64),)).canvas((64, 64))
    with pytest.raises(PluginError, match=f"gave {tokens} tokens; emits says length=1"):
        Examiner("s", Long(tokens=tokens)).ask({"ids": torch.zeros(3, 2)}, canvas, 3)


def infinite(*, far: float = float("inf")) -> None: ...
def of_numpy(*, far: float = __import__("numpy").float64(0.5)) -> None: ...
def nested(*, sizes: tuple[float, ...] = (1.0, float("nan"))) -> None: ...


@pytest.mark.parametrize("target", [infinite, of_numpy, nested])
def test_a_default_that_no_recipe_holds_is_named(target):
    with pytest.raises(PluginError, match=r"the default of `(far|sizes)` is .*, which no recipe can hold"):
        options_of(target)


def test_help_lists_what_a_conditioner_says_of_itself():
    text = Conditioner.__doc__ or ""
    for name in ("reads", "aligned", "emits", "frozen", "options"):
        assert f"`{name}`" in text
