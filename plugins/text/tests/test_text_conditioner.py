"""The text conditioner trained from scratch: contract, tokenizer, prompts, and the network against an independent one."""

from __future__ import annotations

import importlib
import json
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from ldmkit_text.conditioner import PromptWarning, TextConditioner
from ldmkit_text.tokenizer import fit_tokenizer, load_tokenizer
from ldmkit_text.transformer import TextTransformer
from torch import nn

from ldmkit.conditioning import Canvas
from ldmkit.errors import DataError, RecipeError, UsageError
from ldmkit.testing import check_conditioner

CAPTIONS = ["a red circle", "A blue square on green ground", "two circles, one red"]
SAMPLES = [{"caption": caption} for caption in CAPTIONS]


def canvas() -> Canvas:
    return Canvas((64, 64), (8, 8), torch.device("cpu"), torch.float32, lambda images: images)


def small(length: int = 10, **options: object) -> TextConditioner:
    learned = TextConditioner.fit({"length": length, **options}, SAMPLES)
    return TextConditioner(length=length, **{"width": 16, "depth": 2, "heads": 2, **options}, **learned)


@pytest.mark.parametrize("mask", [False, True])
def test_contract(mask):
    check_conditioner(small(mask=mask), SAMPLES[0], others=SAMPLES[1:], value="a circle")


def test_importing_the_plugin_loads_no_torch():
    code = "import sys, ldmkit_text; assert not {'torch', 'transformers', 'tokenizers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_conditioner_is_imported_without_transformers(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("ldmkit_text")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("transformers", "tokenizers"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it now fails
    module = importlib.import_module("ldmkit_text.conditioner")
    assert module.TextConditioner(ids=10, length=4, width=8, depth=1, heads=1).emits.tokens == 8


# the network


def reference(
    network: TextTransformer, ids: torch.Tensor, hidden: torch.Tensor | None, depth: int, heads: int
) -> torch.Tensor:
    """The same transformer from torch's own layers, at heads x 64 = width, where nn.MultiheadAttention can express it."""
    state = network.state_dict()
    width = network.width
    x = state["token_emb.weight"][ids] + state["pos_emb.emb.weight"][: ids.shape[1]]
    for index in range(depth):
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        ).eval()
        a, f = f"attn_layers.layers.{2 * index}", f"attn_layers.layers.{2 * index + 1}"
        layer.load_state_dict(
            {
                "norm1.weight": state[f"{a}.0.weight"],
                "norm1.bias": state[f"{a}.0.bias"],
                "self_attn.in_proj_weight": torch.cat([state[f"{a}.1.to_{name}.weight"] for name in "qkv"]),
                "self_attn.in_proj_bias": torch.zeros(3 * width),
                "self_attn.out_proj.weight": state[f"{a}.1.to_out.weight"],
                "self_attn.out_proj.bias": state[f"{a}.1.to_out.bias"],
                "norm2.weight": state[f"{f}.0.weight"],
                "norm2.bias": state[f"{f}.0.bias"],
                "linear1.weight": state[f"{f}.1.net.0.0.weight"],
                "linear1.bias": state[f"{f}.1.net.0.0.bias"],
                "linear2.weight": state[f"{f}.1.net.2.weight"],
                "linear2.bias": state[f"{f}.1.net.2.bias"],
            }
        )
        x = layer(x, src_key_padding_mask=hidden)
    return nn.functional.layer_norm(x, (width,), state["norm.weight"], state["norm.bias"])


def shaken(network: TextTransformer) -> TextTransformer:
    """Weights away from their start, so that every one of them matters."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


@pytest.mark.parametrize("masked", [False, True])
def test_torchs_own_layers_compute_the_same(masked):
    network = shaken(TextTransformer(vocabulary=20, length=7, width=128, depth=3, heads=2))
    ids = torch.randint(20, (4, 6), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(6)[None] < torch.tensor([[6], [3], [1], [5]])
    with torch.no_grad():
        answer = network(ids, mask if masked else None)
        expected = reference(network, ids, ~mask if masked else None, depth=3, heads=2)
    shown = mask if masked else torch.ones_like(mask)
    torch.testing.assert_close(answer[shown], expected[shown])


def test_diffusers_text_model_computes_the_same():
    """At an inner width unlike the outer one, as the released model's 1280 -> 512 -> 1280."""
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel

    network = shaken(TextTransformer(vocabulary=20, length=7, width=48, depth=2, heads=2))
    config = LDMBertConfig(20, 7, 2, 192, 2, head_dim=64, d_model=48, dropout=0.0, pad_token_id=0)
    other = LDMBertModel(config).eval()
    names = {"token_emb.": "embed_tokens.", "pos_emb.emb.": "embed_positions.", "norm.": "layer_norm."}
    parts = {"0.0.": "self_attn_layer_norm.", "1.0.": "final_layer_norm.", "1.1.net.0.0.": "fc1.", "1.1.net.2.": "fc2."}
    parts |= {"0.1.to_q.": "self_attn.q_proj.", "0.1.to_k.": "self_attn.k_proj."}
    parts |= {"0.1.to_v.": "self_attn.v_proj.", "0.1.to_out.": "self_attn.out_proj."}
    for index in range(2):
        for half in range(2):
            for ours, theirs in parts.items():
                if ours.startswith(f"{half}."):
                    names[f"attn_layers.layers.{2 * index + half}.{ours[2:]}"] = f"layers.{index}.{theirs}"
    state = other.model.state_dict()
    for ours, value in network.state_dict().items():
        stem = next(name for name in names if ours.startswith(name))
        state[names[stem] + ours.removeprefix(stem)] = value
    other.model.load_state_dict(state)
    ids = torch.randint(20, (3, 7), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(network(ids), other.model(ids).last_hidden_state)


def test_the_paper_sizes_on_meta():
    """Text to image of the paper: 32 x (attention of 8 x 64 inside 1280, feed-forward of 5120)."""
    with torch.device("meta"):
        network = TextTransformer(vocabulary=30522, length=77, width=1280, depth=32, heads=8)
    layer = 4 * 1280 * 512 + 1280 + 2 * 1280 * 5120 + 5120 + 1280 + 4 * 1280
    assert sum(p.numel() for p in network.parameters()) == (30522 + 77) * 1280 + 32 * layer + 2 * 1280


def test_names_are_the_released_ones():
    names = set(TextTransformer(vocabulary=4, length=3, width=8, depth=1, heads=1).state_dict())
    layers = "attn_layers.layers"
    expected = {"token_emb.weight", "pos_emb.emb.weight", "norm.weight", "norm.bias", f"{layers}.0.1.to_out.bias"}
    expected |= {f"{layers}.{block}.0.{part}" for block in (0, 1) for part in ("weight", "bias")}
    expected |= {f"{layers}.0.1.to_{part}.weight" for part in ("q", "k", "v", "out")}
    expected |= {f"{layers}.1.1.net.{place}.{part}" for place in ("0.0", "2") for part in ("weight", "bias")}
    assert names == expected


# the null and the mask


def test_the_null_is_the_encoding_of_nothing():
    conditioner = small()
    prepared = conditioner.collate([conditioner.from_user("", (64, 64))])
    assert torch.equal(conditioner.null(canvas()).tokens, conditioner.encode(prepared, canvas()).tokens)


def test_with_a_mask_padding_changes_nothing():
    short, long = small(length=6, mask=True), small(length=10, mask=True)
    state = long.state_dict()
    state["transformer.pos_emb.emb.weight"] = state["transformer.pos_emb.emb.weight"][:6]
    short.load_state_dict(state)
    answers = [c.encode(c.collate([c.from_user("a red circle", (64, 64))]), canvas()) for c in (short, long)]
    assert answers[0].mask.tolist() == [[True] * 5 + [False]]
    torch.testing.assert_close(*(answer.tokens[answer.mask] for answer in answers))


def test_without_a_mask_padding_is_attended():
    conditioner = small()
    prepared = conditioner.collate([conditioner.from_user("a red circle", (64, 64))])
    before = conditioner.encode(prepared, canvas())
    assert before.mask is None
    prepared["ids"][0, -1] = 5
    assert not torch.equal(before.tokens[:, 0], conditioner.encode(prepared, canvas()).tokens[:, 0])


# the tokenizer


def test_words_are_tokens():
    tokenizer = load_tokenizer(fit_tokenizer(CAPTIONS, 8))
    encoding = tokenizer.encode("One RED circle")
    assert encoding.tokens == ["[START]", "one", "red", "circle", "[END]", "[PAD]", "[PAD]", "[PAD]"]
    assert tokenizer.get_vocab_size() == 4 + 12  # a blue circle circles green ground on one red square two ","


def test_the_order_of_captions_does_not_matter():
    assert fit_tokenizer(CAPTIONS, 8) == fit_tokenizer(CAPTIONS[::-1] + CAPTIONS, 8)


def test_many_words_become_byte_pairs():
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [a + b + c + a for a in letters for b in letters for c in letters[:8]]
    tokenizer = load_tokenizer(fit_tokenizer([" ".join(words[i : i + 8]) for i in range(0, len(words), 8)], 16))
    encoding = tokenizer.encode("Xaxx \N{GRINNING FACE}")
    assert tokenizer.decode(encoding.ids, skip_special_tokens=True).strip() == "xaxx \N{GRINNING FACE}"
    assert tokenizer.token_to_id("[UNK]") not in encoding.ids
    assert encoding.tokens[0] == "[START]"


def test_options_from_fit_are_json_and_give_every_shape():
    learned = json.loads(json.dumps(TextConditioner.fit({"length": 10}, SAMPLES)))
    twin = TextConditioner(length=10, width=16, depth=2, heads=2, **learned)
    original = small()
    twin.load_state_dict(original.state_dict())
    prepared = original.collate([original.prepare(sample) for sample in SAMPLES])
    assert torch.equal(original.encode(prepared, canvas()).tokens, twin.encode(prepared, canvas()).tokens)


def test_fit_leaves_what_the_recipe_says_and_needs_captions():
    vocabulary = fit_tokenizer(CAPTIONS, 77)
    assert TextConditioner.fit({"vocabulary": vocabulary}, iter([])) == {}
    assert TextConditioner.fit({"ids": 100}, iter([])) == {}
    with pytest.raises(DataError, match="no sample has a `caption`"):
        TextConditioner.fit({}, [{"caption": None}])


def test_a_transformers_tokenizer_from_a_directory(tmp_path):
    from transformers import PreTrainedTokenizerFast

    tokenizer = load_tokenizer(fit_tokenizer(CAPTIONS, 8))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", eos_token="[END]").save_pretrained(tmp_path)
    options = {"tokenizer": str(tmp_path), "length": 12}
    conditioner = TextConditioner(**options, **TextConditioner.fit(options, []), width=16, depth=1, heads=1)
    prepared = conditioner.from_user("a red circle", (64, 64))
    assert prepared["ids"].shape == (12,)
    assert conditioner.preview(prepared) == "a red circle"


# prompts


def test_previews_show_what_the_model_reads():
    conditioner = small()
    assert conditioner.preview(conditioner.from_user("A Blue  SQUARE", (64, 64))) == "a blue square"
    learned = TextConditioner.fit({"length": 16}, [{"caption": "a green square, a purple circle (small) on sand!"}])
    listed = TextConditioner(length=16, width=16, depth=1, heads=1, **learned)
    text = "a green square, a purple circle (small) on sand!"
    assert listed.preview(listed.from_user(text, (64, 64))) == "a green square, a purple circle ( small) on sand!"


def test_a_cut_prompt_is_told():
    conditioner = small(length=6)
    with pytest.warns(PromptWarning, match=r"longer than 6 tokens; cut off: 'green ground, one'"):
        prepared = conditioner.from_user("a blue square on green ground, one", (64, 64))
    assert conditioner.preview(prepared) == "a blue square on"


def test_cut_captions_are_told_once_a_worker():
    worker = pickle.loads(pickle.dumps(small(length=4).weightless()))
    with pytest.warns(
        PromptWarning, match="captions are longer than 4 tokens and are cut; the first one lost 'circle'"
    ):
        worker.prepare(SAMPLES[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        worker.prepare(SAMPLES[1])


def test_words_never_seen_are_told():
    with pytest.warns(PromptWarning, match="without the words 'Purple', 'elephant'"):
        small().from_user("a Purple circle elephant", (64, 64))


@pytest.mark.parametrize(
    "text", ["", " ", "\0", "\ud83d", "\N{GRINNING FACE}" * 3, "\u202eright to left", "x" * 100_000]
)
def test_strange_text_is_no_crash(text):
    conditioner = small(mask=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PromptWarning)
        prepared = conditioner.from_user(text, (64, 64))
    answer = conditioner.encode(conditioner.collate([prepared]), canvas())
    assert answer.tokens.isfinite().all()
    assert answer.mask.any(1).all()


@pytest.mark.parametrize("ids", [[4, 5, 6], np.array([4, 5, 6]), torch.tensor([4, 5, 6])])
def test_token_ids_are_taken(ids):
    conditioner = small()
    prepared = conditioner.from_user(ids, (64, 64))
    assert prepared["ids"].tolist() == [4, 5, 6] + [0] * 7
    assert prepared["mask"].tolist() == [True] * 3 + [False] * 7


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([4] * 11, r"1 to 10 whole numbers in a row; given: torch.int64 of shape \(11,\)"),
        ([], "1 to 10 whole numbers"),
        ([0.5], "given: torch.float32"),
        ([16], "from 0 to 15; given: 16 to 16"),
        ([-1], "given: -1 to -1"),
        ({"a": 7}, "a caption is text or a sequence of token ids, not dict"),
    ],
)
def test_bad_prompts(value, words):
    with pytest.raises(UsageError, match=words):
        small().from_user(value, (64, 64))
    with pytest.raises(DataError, match=words):
        small().prepare({"caption": value})


def test_a_model_of_ids_alone():
    conditioner = TextConditioner(ids=50, length=5, width=16, depth=1, heads=1, empty=[7, 8])
    check_conditioner(conditioner, {"caption": [1, 2, 3]}, others=[{"caption": [4]}], value=[9, 49])
    assert conditioner.preview(conditioner.from_user([9, 49], (64, 64))) == "9 49"
    assert conditioner.nothing["ids"].tolist() == [7, 8, 0, 0, 0]
    with pytest.raises(UsageError, match="reads token ids only"):
        conditioner.from_user("a red circle", (64, 64))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "the tokenizer is not known"),
        ({"ids": 10, "length": 1}, "at least 2 tokens"),
        ({"ids": 10, "trainable": True}, "belongs to a pretrained `encoder`"),
        ({"ids": 10, "encoder": "somewhere"}, "architecture of `encoder` is not known"),
        ({"ids": 10, "encoder": "somewhere", "width": 64}, "width cannot be chosen"),
    ],
)
def test_impossible_options(options, words):
    with pytest.raises(RecipeError, match=words):
        TextConditioner(**options)


def test_numbers_and_several_captions_are_texts():
    """A column of years is read as numbers; lines of a caption file are several captions."""
    samples = [{"caption": 1990.0}, {"caption": ["a red circle", "red"]}]
    learned = TextConditioner.fit({"length": 8}, samples)
    conditioner = TextConditioner(length=8, width=16, depth=1, heads=1, **learned)
    assert conditioner.preview(conditioner.prepare({"caption": 1990.0})) == "1990"
    assert conditioner.preview(conditioner.prepare({"caption": "red circle"})) == "red circle"


def test_captions_that_are_all_empty_are_refused():
    with pytest.raises(DataError, match="all 2 captions are empty"):
        TextConditioner.fit({}, [{"caption": ""}, {"caption": " "}])


def test_a_page_lists_the_words_where_they_are_few():
    words = {word for sample in SAMPLES for word in sample["caption"].lower().replace(",", "").split()}
    shown = small().widget().help
    assert shown.startswith("the words it knows: ")
    assert words <= set(shown.removeprefix("the words it knows: ").split(", "))
    assert TextConditioner(ids=10, length=4, width=8, depth=1, heads=1).widget().help == "up to 4 tokens"
