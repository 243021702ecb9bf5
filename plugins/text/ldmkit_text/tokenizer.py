"""Text to token ids. A tokenizer is kept as its JSON text: an option like any other, small to send to a data worker."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from ldmkit.errors import RecipeError
from ldmkit.hub import cache_unless_reached
from ldmkit_text.pretrained import not_there

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

PAD, START, END, UNKNOWN = SPECIAL = ("[PAD]", "[START]", "[END]", "[UNK]")
MOST_WORDS = 4096  # up to so many different words each is a token of its own; beyond, byte pairs
BYTE_PAIRS = 8192
CLOSING = re.compile(r"\s+([,.;:!?%)\]}]+)")  # punctuation that stands at the end of a word


def fit_tokenizer(captions: Iterable[str], length: int) -> str:
    """A tokenizer for these captions, as JSON: words in lower case where they are few, else byte pairs (Sennrich et al. 2016).

    Prompts become ``[START] ... [END]``, padded or cut to `length`. The same captions give the same tokenizer, in any order.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    split = pre_tokenizers.Whitespace()  # words, and runs of punctuation
    captions = sorted({clean(caption) for caption in captions})
    words = {word for caption in captions for word, _ in split.pre_tokenize_str(normalizer.normalize_str(caption))}
    if len(words) <= MOST_WORDS:
        vocabulary = {token: index for index, token in enumerate([*SPECIAL, *sorted(words - set(SPECIAL))])}
        tokenizer = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token=UNKNOWN))
        tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, split
    else:
        tokenizer = _byte_pairs(captions)
    _finish(tokenizer)
    return with_length(tokenizer, length, PAD)


def _byte_pairs(captions: Sequence[str]) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=BYTE_PAIRS, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(captions, trainer)
    return tokenizer


def _finish(tokenizer: Tokenizer) -> None:
    from tokenizers import AddedToken, processors

    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    ends = [(token, tokenizer.token_to_id(token)) for token in (START, END)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{START} $A {END}", special_tokens=ends)


def read_tokenizer(name: str, length: int, pad: str | None = None) -> str:
    """The `transformers` tokenizer in a directory or under a hub name, as JSON; `pad` is a token to pad with in place of its own.

    Raises:
        OfflineError: it is neither on disk nor can it be fetched.
        RecipeError: it brings code of its own, or is no tokenizer that the `tokenizers` library reads.
    """
    from transformers import AutoTokenizer

    try:
        with cache_unless_reached(name):
            found = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        backend = found.backend_tokenizer
    except OSError as error:
        raise not_there("tokenizer", name, error) from error
    except (ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise RecipeError(f"the tokenizer {name!r} cannot be read: {str(error).strip().splitlines()[0]}") from error
    return with_length(backend, length, pad or found.pad_token or found.eos_token)


def with_length(tokenizer: Tokenizer, length: int, pad: str | None) -> str:
    """The tokenizer's JSON, padding and cutting to `length`."""
    index = 0 if pad is None else tokenizer.token_to_id(pad)
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=index, pad_token=pad or "")
    text: str = tokenizer.to_str()
    return text


@lru_cache(maxsize=32)
def load_tokenizer(text: str) -> Tokenizer:
    """The tokenizer of a JSON text, made once a process."""
    from tokenizers import Tokenizer

    return Tokenizer.from_str(text)


def clean(text: str) -> str:
    """Text that any tokenizer can take: half a surrogate pair (a broken emoji) becomes a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


def as_written(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """Token ids as text. Words of a tokenizer fitted here are joined by spaces, which people do not set before a comma."""
    text = str(tokenizer.decode(list(ids))).strip()
    return text if tokenizer.decoder is not None else CLOSING.sub(r"\1", text)


def cut_off(text: str, encoding: Encoding) -> str:
    """What of `text` did not fit, or an empty string."""
    if not encoding.overflowing:
        return ""
    kept = [
        end for (_, end), special in zip(encoding.offsets, encoding.special_tokens_mask, strict=True) if not special
    ]
    return text[max(kept, default=0) :].strip()


def known_words(tokenizer: Tokenizer) -> list[str]:
    """The words of a word-level tokenizer fitted here, sorted; empty for any other."""
    if tokenizer.token_to_id(UNKNOWN) is None:
        return []
    return sorted(word for word in tokenizer.get_vocab() if word not in SPECIAL)


def unknown_words(text: str, tokenizer: Tokenizer, encoding: Encoding) -> list[str]:
    """Words of `text` that a word-level tokenizer fitted here has never seen."""
    index = tokenizer.token_to_id(UNKNOWN)
    spans = zip(encoding.ids, encoding.offsets, strict=True)
    return [] if index is None else [text[start:end] for token, (start, end) in spans if token == index]
