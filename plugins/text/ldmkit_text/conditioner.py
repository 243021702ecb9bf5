"""Text prompts: token ids into a transformer, its tokens into cross-attention (paper, section 3.3)."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Generator, Tensor

from ldmkit.conditioning import Canvas, Conditioner, Conditioning, ForeignStage, Ports, Tensors
from ldmkit.conditioning.widgets import Text
from ldmkit.data import NO_FIELDS, Fields
from ldmkit.errors import CheckpointError, DataError, LdmkitError, RecipeError, UsageError
from ldmkit_text.pretrained import PretrainedEncoder, check_length, read_architecture
from ldmkit_text.tokenizer import (
    as_written,
    clean,
    cut_off,
    fit_tokenizer,
    known_words,
    load_tokenizer,
    read_tokenizer,
    unknown_words,
)
from ldmkit_text.transformer import TextTransformer

MOST_SHOWN = 60  # words that a page lists


class PromptWarning(UserWarning):
    """A prompt was longer than the model reads, or holds words it has never seen."""


class TextConditioner(Conditioner):
    """A caption, or its token ids, as cross-attention tokens.

    Without `encoder` a transformer is trained from scratch with the UNet, as in the paper; with it, an encoder of the
    `transformers` library is used, frozen unless `trainable`.

    Args:
        encoder: a pretrained text encoder: a directory or hub name (CLIP, T5, BERT ...).
        trainable: train the pretrained encoder too.
        tokenizer: a `transformers` tokenizer: a directory or hub name; default: the encoder's, or one fitted on the captions.
        length: the tokens a prompt is padded or cut to (paper: 77).
        width: width of the tokens, from scratch only (default 256; paper: 1280 for text, 512 elsewhere).
        depth: attention layers, from scratch only (default 6; paper: 32).
        heads: attention heads of width 64, from scratch only (default 8, as the paper).
        mask: hide padding from attention, here and in the UNet. The released models were trained without: padding is attended.
        vocabulary: the tokenizer as JSON; `fit` fills it.
        architecture: the pretrained encoder's configuration; `fit` fills it.
        ids: how many token ids there are, for a model that reads ids alone and has no tokenizer.
        empty: token ids of the empty prompt, for a model without tokenizer (default: all 0).

    The null is the encoding of the empty prompt, as in the released models: what condition dropout trains, and what a person who
    gives no text gets. Raises RecipeError for options that contradict each other, and where `fit` has not filled what
    it learns.
    """

    reads = ("caption",)

    def __init__(
        self,
        *,
        encoder: str | None = None,
        trainable: bool = False,
        tokenizer: str | None = None,
        length: int = 77,
        width: int | None = None,
        depth: int | None = None,
        heads: int | None = None,
        mask: bool = False,
        vocabulary: str | None = None,
        architecture: dict[str, Any] | None = None,
        ids: int | None = None,
        empty: list[int] | None = None,
    ) -> None:
        super().__init__()
        if length < 2:
            raise RecipeError(f"length is {length}; a prompt needs room for at least 2 tokens")
        if vocabulary is None and ids is None:
            raise RecipeError(
                "the tokenizer is not known",
                hint="let `fit` learn it from the captions, or give `ids` for a model that reads token ids alone",
            )
        self.encoder, self.tokenizer, self.vocabulary = encoder, tokenizer, vocabulary
        self.length, self.mask = length, mask
        self.count = ids or load_tokenizer(vocabulary or "").get_vocab_size()
        self.transformer: TextTransformer | PretrainedEncoder
        if encoder is None and architecture is None:
            if trainable:
                raise RecipeError("trainable belongs to a pretrained `encoder`; a transformer from scratch always is")
            self.transformer = TextTransformer(
                vocabulary=self.count, length=length, width=width or 256, depth=depth or 6, heads=heads or 8
            )
        else:
            self.transformer = _pretrained(architecture, length, {"width": width, "depth": depth, "heads": heads})
            self.frozen = () if trainable else ("transformer",)
        self.emits = Ports(tokens=self.transformer.width, length=length)
        self.pad = _pad(vocabulary, empty, length)
        with torch.device("cpu"):  # numbers that are needed wherever the weights are, also on meta
            self.nothing = _tokenise("", vocabulary)[0] if vocabulary else self._given(empty or [0], RecipeError)
        self.reported = False

    @classmethod
    def fit(
        cls, options: Mapping[str, Any], samples: Iterable[Mapping[str, Any]], fields: Fields = NO_FIELDS
    ) -> Mapping[str, Any]:
        """`vocabulary` from the captions, or from a named tokenizer; `architecture` from a named encoder.

        Raises DataError where the samples have no captions, or only empty ones.
        """
        learned: dict[str, Any] = {}
        length, encoder = options.get("length", 77), options.get("encoder")
        if encoder is not None and options.get("architecture") is None:
            learned["architecture"] = read_architecture(encoder)
            check_length(learned["architecture"], length)
        if options.get("vocabulary") is None and options.get("ids") is None:
            named = options.get("tokenizer") or encoder
            learned["vocabulary"] = read_tokenizer(named, length) if named else _fit(samples, length)
        return learned

    def load_pretrained(self) -> None:
        """The pretrained encoder's weights; nothing to do from scratch."""
        if self.encoder is not None and isinstance(self.transformer, PretrainedEncoder):
            self.transformer.load(self.encoder)

    def prepare(self, sample: Mapping[str, Any], generator: Generator | None = None) -> Tensors:
        """{"ids": (length,) int64, "mask": (length,) bool, True = a token and no padding}."""
        prepared, rest = self._prepare(sample["caption"], DataError)
        if rest and not self.reported:  # once a worker: a folder may hold a hundred thousand long captions
            self.reported = True
            warnings.warn(
                f"captions are longer than {self.length} tokens and are cut; the first one lost {_short(rest)}",
                PromptWarning,
                stacklevel=2,
            )
        return prepared

    def from_user(self, value: Any, size: tuple[int, int]) -> Tensors:
        """A prompt, its token ids, or its embedding (l, width), as this encoder gives it for 1 to `length` tokens.

        Raises UsageError for anything else.
        """
        if (embedding := _embedding(value)) is not None:
            return self._embedded(embedding)
        if isinstance(value, str) and self.vocabulary is not None:
            tokenizer = load_tokenizer(self.vocabulary)
            text = clean(value)
            if unknown := unknown_words(text, tokenizer, tokenizer.encode(text)):
                words = ", ".join(map(repr, unknown))
                warnings.warn(f"the model was trained without the words {words}", PromptWarning, stacklevel=2)
        prepared, rest = self._prepare(value, UsageError)
        if rest:
            warnings.warn(
                f"the prompt is longer than {self.length} tokens; cut off: {_short(rest)}", PromptWarning, stacklevel=2
            )
        return prepared

    def encode(self, prepared: Tensors, canvas: Canvas) -> Conditioning:
        """All `length` tokens; padding is masked only with `mask`. An embedding that was given is taken as it is."""
        if "embedding" in prepared:
            return Conditioning(
                tokens=prepared["embedding"].to(canvas.dtype), mask=prepared["mask"] if self.mask else None
            )
        mask = prepared["mask"] if self.mask else None
        return Conditioning(tokens=self.transformer(prepared["ids"], mask).to(canvas.dtype), mask=mask)

    def null(self, canvas: Canvas) -> Conditioning:
        """The encoding of the empty prompt."""
        return self.encode({name: value[None].to(canvas.device) for name, value in self.nothing.items()}, canvas)

    def preview(self, prepared: Tensors) -> str:
        """The text as the model reads it, or its token ids where there is no tokenizer."""
        ids = prepared["ids"][prepared["mask"]].tolist()
        if self.vocabulary is None:
            return " ".join(map(str, ids))
        return as_written(ids, load_tokenizer(self.vocabulary))

    def widget(self) -> Text:
        """A text box of two lines; where the words it knows are few, they stand below."""
        words = known_words(load_tokenizer(self.vocabulary)) if self.vocabulary else []
        known = f"the words it knows: {', '.join(words)}" if 0 < len(words) <= MOST_SHOWN else ""
        return Text(lines=2, placeholder="describe the image", help=known or f"up to {self.length} tokens")

    @classmethod
    def from_foreign(cls, stage: ForeignStage) -> Self | None:
        """The original's `BERTEmbedder`, `TransformerEmbedder` (unless of boxes), `FrozenCLIPEmbedder`, `FrozenOpenCLIPEmbedder`.

        Raises CheckpointError for weights that do not fit.
        """
        from ldmkit_text.foreign import read_stage

        found = read_stage(stage)
        if found is None:
            return None
        options, tensors = found
        conditioner = cls(**options)
        try:
            conditioner.transformer.load_state_dict(tensors)
        except RuntimeError as error:
            raise CheckpointError(f"the text encoder does not fit: {' '.join(str(error).split())[:300]}") from error
        return conditioner

    def _embedded(self, embedding: Tensor) -> Tensors:
        width = self.emits.tokens
        if embedding.ndim != 2 or embedding.shape[1] != width or not 0 < len(embedding) <= self.length:
            raise UsageError(
                f"an embedding of a prompt is (l, {width}), 1 to {self.length} tokens; given: {tuple(embedding.shape)}",
                hint="several are a tensor (images, l, width), or a list of them, one per image",
            )
        return {"embedding": embedding.float(), "mask": torch.ones(len(embedding), dtype=torch.bool)}

    def _prepare(self, value: Any, error: type[LdmkitError]) -> tuple[Tensors, str]:
        """What `prepare` returns, and the text that did not fit."""
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = _written(value)
        if isinstance(value, str):
            if self.vocabulary is None:
                raise error(
                    "this model has no tokenizer and reads token ids only", hint=f"give up to {self.length} of them"
                )
            return _tokenise(clean(value), self.vocabulary)
        if isinstance(value, Sequence | np.ndarray | Tensor):
            return self._given(value, error), ""
        raise error(f"a caption is text or a sequence of token ids, not {type(value).__name__}")

    def _given(self, value: Sequence[int] | np.ndarray | Tensor, error: type[LdmkitError]) -> Tensors:
        ids = torch.as_tensor(value)
        if ids.ndim != 1 or ids.is_floating_point() or ids.is_complex() or not 0 < len(ids) <= self.length:
            raise error(
                f"token ids are 1 to {self.length} whole numbers in a row; given: {ids.dtype} of shape {tuple(ids.shape)}"
            )
        if int(ids.min()) < 0 or int(ids.max()) >= self.count:
            raise error(f"token ids lie from 0 to {self.count - 1}; given: {int(ids.min())} to {int(ids.max())}")
        padded = torch.full((self.length,), self.pad, dtype=torch.int64)
        padded[: len(ids)] = ids
        return {"ids": padded, "mask": torch.arange(self.length) < len(ids)}


def _embedding(value: Any) -> Tensor | None:
    """Floating-point numbers are no token ids."""
    if not isinstance(value, Tensor | np.ndarray):
        return None
    found = torch.as_tensor(value).detach().cpu()
    return found if found.is_floating_point() else None


def _pad(vocabulary: str | None, empty: list[int] | None, length: int) -> int:
    """The id of padding: the tokenizer's; else what an empty prompt written out to its full length ends with, else 0."""
    padding = load_tokenizer(vocabulary).padding if vocabulary else None
    if padding:
        return int(padding["pad_id"])
    return empty[-1] if empty and len(empty) == length else 0


def _tokenise(text: str, vocabulary: str) -> tuple[Tensors, str]:
    encoding = load_tokenizer(vocabulary).encode(text)
    mask = torch.tensor(encoding.attention_mask, dtype=torch.bool)
    mask[0] = True  # a tokenizer without start and end tokens leaves nothing of the empty prompt
    return {"ids": torch.tensor(encoding.ids), "mask": mask}, cut_off(text, encoding)


def _pretrained(
    architecture: dict[str, Any] | None, length: int, scratch: Mapping[str, int | None]
) -> PretrainedEncoder:
    if given := [name for name, value in scratch.items() if value is not None]:
        raise RecipeError(f"{', '.join(given)} cannot be chosen with a pretrained `encoder`, which has its own")
    if architecture is None:
        raise RecipeError("the architecture of `encoder` is not known", hint="let `fit` read it")
    check_length(architecture, length)
    return PretrainedEncoder(architecture)


def _fit(samples: Iterable[Mapping[str, Any]], length: int) -> str:
    captions = [text for sample in samples for text in _texts(sample["caption"])]
    if captions and not any(caption.strip() for caption in captions):
        raise DataError(
            f"all {len(captions)} captions are empty: a text would have no effect",
            hint="fill them in, name the column that has them (`fields: {caption: ...}`), or leave the slot out",
        )
    if not captions:
        raise DataError(
            "no sample has a `caption` to fit a tokenizer on",
            hint="choose data with captions, give `fields: {caption: ...}`, or name a `tokenizer`",
        )
    return fit_tokenizer(captions, length)


def _texts(caption: Any) -> list[str]:
    """One caption, a number as text, or several captions of one image."""
    if isinstance(caption, list):
        return [str(text) for text in caption]
    return [caption] if isinstance(caption, str) else [_written(caption)] if isinstance(caption, int | float) else []


def _written(number: float) -> str:
    """A number as a person writes it: a column of years is read as numbers, and 1990.0 is none."""
    return str(int(number)) if float(number).is_integer() else f"{number:g}"


def _short(text: str, most: int = 200) -> str:
    return repr(text if len(text) <= most else text[:most] + "...")
