"""Pretrained encoders (tiny ones, made here and saved locally) and the text stages of released checkpoints."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from ldmkit_text import foreign
from ldmkit_text.conditioner import TextConditioner
from ldmkit_text.tokenizer import fit_tokenizer, load_tokenizer
from ldmkit_text.transformer import TextTransformer

from ldmkit.conditioning import Canvas, ForeignStage
from ldmkit.errors import CheckpointError, OfflineError, RecipeError
from ldmkit.testing import check_conditioner

CAPTIONS = ["a red circle", "a blue square on green ground"]
KINDS = ("clip", "clip_text_model", "t5", "bert")


def canvas() -> Canvas:
    return Canvas((64, 64), (8, 8), torch.device("cpu"), torch.float32, lambda images: images)


def tiny_model(kind: str):
    import transformers as tf

    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    text = {
        "vocab_size": 20,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 12,
    }
    if kind == "bert":
        return tf.BertModel(tf.BertConfig(**text))
    if kind == "t5":
        sizes = {"vocab_size": 20, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
        return tf.T5EncoderModel(tf.T5Config(**sizes))
    if kind == "clip_text_model":
        return tf.CLIPTextModel(tf.CLIPTextConfig(**text, **ends))
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 8, "patch_size": 4}
    return tf.CLIPModel(tf.CLIPConfig(text_config={**text, **ends}, vision_config=vision, projection_dim=8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A directory a kind, each with a model and a tokenizer."""
    from transformers import PreTrainedTokenizerFast

    root = tmp_path_factory.mktemp("encoders")
    tokenizer = load_tokenizer(fit_tokenizer(CAPTIONS, 8))
    for kind in KINDS:
        tiny_model(kind).save_pretrained(root / kind)
        wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", eos_token="[END]")
        wrapped.save_pretrained(root / kind)
    return root


def build(folder: Path, kind: str, **options: object) -> TextConditioner:
    given = {"encoder": str(folder / kind), "length": 10, **options}
    conditioner = TextConditioner(**given, **TextConditioner.fit(given, []))
    conditioner.load_pretrained()
    return conditioner.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_contract(folder, kind):
    samples = [{"caption": caption} for caption in CAPTIONS]
    check_conditioner(build(folder, kind), samples[0], others=samples[1:], value="a circle")


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_encoder_itself_computes_the_same(folder, kind, mask):
    from transformers import AutoModelForTextEncoding, CLIPModel

    conditioner = build(folder, kind, mask=mask)
    prepared = conditioner.collate([conditioner.from_user(caption, (64, 64)) for caption in CAPTIONS])
    if kind == "clip":
        model = CLIPModel.from_pretrained(folder / kind).text_model
    else:
        model = AutoModelForTextEncoding.from_pretrained(folder / kind)
    attention = prepared["mask"].long() if mask else torch.ones_like(prepared["ids"])
    with torch.no_grad():
        expected = model.eval()(input_ids=prepared["ids"], attention_mask=attention).last_hidden_state
        answer = conditioner.encode(prepared, canvas())
    shown = prepared["mask"] if mask else torch.ones_like(prepared["mask"])
    torch.testing.assert_close(answer.tokens[shown], expected[shown])
    assert (answer.mask is not None) == mask


def test_frozen_unless_trainable(folder):
    frozen, trained = build(folder, "bert"), build(folder, "bert", trainable=True)
    assert frozen.frozen == ("transformer",)
    assert trained.frozen == ()
    check_conditioner(trained, {"caption": CAPTIONS[0]}, others=[{"caption": CAPTIONS[1]}])
    frozen.train()
    assert not frozen.transformer.training


def test_options_alone_give_every_shape(folder, tmp_path):
    """A model that is loaded again needs neither the directory nor the network."""
    given = {"encoder": str(tmp_path / "gone"), "length": 10}
    learned = TextConditioner.fit({**given, "encoder": str(folder / "t5")}, [])
    original, twin = build(folder, "t5"), TextConditioner(**given, **learned).eval()
    twin.load_state_dict(original.state_dict())
    prepared = original.collate([twin.from_user("a red circle", (64, 64))])
    assert torch.equal(original.encode(prepared, canvas()).tokens, twin.encode(prepared, canvas()).tokens)


def test_what_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(OfflineError, match=r"text encoder .* no directory here and could not be downloaded"):
        TextConditioner.fit({"encoder": str(tmp_path / "nothing")}, [])
    with pytest.raises(OfflineError, match=r"tokenizer .* no directory here"):
        TextConditioner.fit({"tokenizer": str(tmp_path / "nothing")}, [])


def test_too_long_for_the_encoder(folder):
    with pytest.raises(RecipeError, match=r"length is 77; this text encoder knows at most 12 positions\n.*length: 12"):
        TextConditioner.fit({"encoder": str(folder / "bert")}, [])


def test_what_is_no_text_encoder(tmp_path):
    from transformers import ViTConfig

    ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16).save_pretrained(
        tmp_path
    )
    with pytest.raises(RecipeError, match="is a vit model, which is no text encoder"):
        TextConditioner.fit({"encoder": str(tmp_path), "length": 8}, [])


# released checkpoints


@pytest.fixture
def no_tokenizer(monkeypatch):
    def absent(name: str, length: int, pad: str | None = None) -> str:
        raise OfflineError(f"no {name}")

    monkeypatch.setattr(foreign, "read_tokenizer", absent)


def bert_stage(network: TextTransformer, key: str = "caption", **params: object) -> ForeignStage:
    tensors = {f"transformer.{name}": value for name, value in network.state_dict().items()}
    tensors |= {"transformer.to_logits.weight": torch.zeros(30, 24), "transformer.to_logits.bias": torch.zeros(30)}
    return ForeignStage("ldm.modules.encoders.modules.BERTEmbedder", params, key, "tokens", 0, tensors)


def test_a_released_text_transformer(no_tokenizer):
    network = TextTransformer(vocabulary=30, length=9, width=24, depth=3, heads=2)
    stage = bert_stage(network, n_embed=24, n_layer=3, vocab_size=30, max_seq_len=9)
    with pytest.warns(UserWarning, match="bert-base-uncased could not be had"), pytest.raises(Exception, match="101"):
        TextConditioner.from_foreign(stage)  # [CLS] and [SEP] are no ids of a vocabulary of 30
    network = TextTransformer(vocabulary=200, length=9, width=24, depth=3, heads=2)
    with pytest.warns(UserWarning, match="reads token ids only"):
        conditioner = TextConditioner.from_foreign(bert_stage(network))
    assert conditioner.emits.tokens == 24
    assert conditioner.nothing["ids"].tolist() == [101, 102] + [0] * 7
    ids = torch.randint(200, (2, 9))
    prepared = conditioner.collate([conditioner.from_user(row, (64, 64)) for row in ids])
    assert torch.equal(conditioner.encode(prepared, canvas()).tokens, network(ids))


def test_with_its_tokenizer_it_reads_text(monkeypatch):
    monkeypatch.setattr(foreign, "read_tokenizer", lambda name, length, pad=None: fit_tokenizer(CAPTIONS, length))
    network = TextTransformer(vocabulary=40, length=9, width=24, depth=1, heads=2)
    conditioner = TextConditioner.from_foreign(bert_stage(network))
    assert conditioner.preview(conditioner.from_user("a red circle", (64, 64))) == "a red circle"


def test_token_models_need_no_tokenizer():
    network = TextTransformer(vocabulary=30, length=9, width=24, depth=1, heads=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        conditioner = TextConditioner.from_foreign(bert_stage(network, use_tokenizer=False))
    assert conditioner.count == 30
    assert TextConditioner.from_foreign(bert_stage(network, key="coordinates_bbox", use_tokenizer=False)) is None


def test_a_released_clip(no_tokenizer):
    from transformers import CLIPTextConfig, CLIPTextModel

    sizes = {
        "vocab_size": 50,
        "hidden_size": 128,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    ends = {"bos_token_id": 0, "eos_token_id": 49}
    model = CLIPTextModel(CLIPTextConfig(**sizes, **ends, max_position_embeddings=8, hidden_act="quick_gelu")).eval()
    state = {name.removeprefix("text_model."): value for name, value in model.state_dict().items()}
    tensors = {f"transformer.text_model.{name}": value for name, value in state.items()}
    tensors["transformer.text_model.embeddings.position_ids"] = torch.arange(8)[None]
    target = "ldm.modules.encoders.modules.FrozenCLIPEmbedder"
    with pytest.warns(UserWarning, match="clip-vit-large-patch14 could not be had"):
        conditioner = TextConditioner.from_foreign(
            ForeignStage(target, {"max_length": 8}, "txt", "tokens", 0, tensors)
        ).eval()
    assert conditioner.frozen == ("transformer",)
    ids = torch.randint(50, (2, 8))
    prepared = conditioner.collate([conditioner.from_user(row, (64, 64)) for row in ids])
    with torch.no_grad():
        expected = model(input_ids=ids).last_hidden_state
        torch.testing.assert_close(conditioner.encode(prepared, canvas()).tokens, expected)


def test_a_stage_without_its_weights():
    with pytest.raises(CheckpointError, match=r"token_emb\.weight is not in the checkpoint"):
        TextConditioner.from_foreign(ForeignStage("x.BERTEmbedder", {}, "caption", "tokens", 0))
    assert TextConditioner.from_foreign(ForeignStage("x.ClassEmbedder", {}, "caption", "tokens", 0)) is None


def test_a_tokenizer_and_a_description_beside_the_weights(folder):
    """A folder of diffusers brings both: no hub is asked, and what no shape tells is what the folder says."""
    from transformers import AutoModelForTextEncoding, CLIPTextConfig

    model = AutoModelForTextEncoding.from_pretrained(folder / "clip_text_model").eval()
    config = {**CLIPTextConfig.from_pretrained(folder / "clip_text_model").to_dict(), "layer_norm_eps": 0.1}
    model.final_layer_norm.eps = 0.1
    for layer in model.encoder.layers:
        layer.layer_norm1.eps = layer.layer_norm2.eps = 0.1
    state = {name.removeprefix("text_model."): value for name, value in model.state_dict().items()}
    tensors = {f"transformer.text_model.{name}": value for name, value in state.items()}
    params = {"max_length": 10, "tokenizer": str(folder / "clip_text_model"), "architecture": config}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        conditioner = TextConditioner.from_foreign(
            ForeignStage("x.FrozenCLIPEmbedder", params, "caption", "tokens", 0, tensors)
        ).eval()
    assert conditioner.tokenizer is None  # the directory is gone tomorrow; what it said is kept
    assert conditioner.transformer.model.config.num_attention_heads == 2
    prepared = conditioner.collate([conditioner.from_user("a red circle", (64, 64))])
    with torch.no_grad():
        expected = model(input_ids=prepared["ids"]).last_hidden_state
        torch.testing.assert_close(conditioner.encode(prepared, canvas()).tokens, expected)


def test_a_description_cannot_bring_code_or_sizes(folder):
    model = tiny_model("clip_text_model")
    tensors = {
        f"transformer.text_model.{name.removeprefix('text_model.')}": v for name, v in model.state_dict().items()
    }
    said = {"auto_map": {"AutoConfig": "evil.Config"}, "num_hidden_layers": 10**9, "num_attention_heads": 2}
    params = {"max_length": 10, "tokenizer": str(folder / "clip_text_model"), "architecture": said}
    stage = ForeignStage("x.FrozenCLIPEmbedder", params, "caption", "tokens", 0, tensors)
    config = TextConditioner.from_foreign(stage).transformer.model.config
    assert not hasattr(config, "auto_map")
    assert config.num_hidden_layers == 2


def test_a_tokenizer_that_brings_code_is_not_run(folder, tmp_path):
    model = tiny_model("clip_text_model")
    tensors = {
        f"transformer.text_model.{name.removeprefix('text_model.')}": v for name, v in model.state_dict().items()
    }
    (tmp_path / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'trap')!r})\nclass Evil: pass\n")
    told = {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "tokenizer_class": "Evil"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(told))
    params = {"max_length": 10, "tokenizer": str(tmp_path), "architecture": {"num_attention_heads": 2}}
    with pytest.warns(UserWarning, match="reads token ids only"):
        TextConditioner.from_foreign(ForeignStage("x.FrozenCLIPEmbedder", params, "caption", "tokens", 0, tensors))
    assert not (tmp_path / "trap").exists()
