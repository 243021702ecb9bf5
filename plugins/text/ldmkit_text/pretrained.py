"""Text encoders of the `transformers` library: CLIP, T5, BERT and whatever else encodes text."""

from __future__ import annotations

import json
from typing import Any

from torch import Tensor, nn

from ldmkit.errors import OfflineError, RecipeError
from ldmkit.hub import cache_unless_reached


class PretrainedEncoder(nn.Module):
    """A `transformers` text encoder of a given architecture, with fresh weights until `load` fills them.

    Args:
        architecture: its configuration, as `read_architecture` returns it: every shape without a file or a download.
    """

    def __init__(self, architecture: dict[str, Any]) -> None:
        super().__init__()
        from transformers import AutoConfig, AutoModelForTextEncoding

        config = AutoConfig.for_model(**architecture)
        self.width: int = config.hidden_size
        self.model = _without_pooler(AutoModelForTextEncoding.from_config(config))  # type: ignore[no-untyped-call]

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """ids (b, l) int64, mask (b, l) bool, True = attend -> the last hidden state (b, l, width)."""
        hidden: Tensor = self.model(
            input_ids=ids, attention_mask=None if mask is None else mask.long()
        ).last_hidden_state
        return hidden

    def load(self, name: str) -> None:
        """Fills the weights from a directory or a hub name; raises `OfflineError` where they cannot be had."""
        from transformers import AutoModelForTextEncoding

        try:
            with cache_unless_reached(name):
                found = AutoModelForTextEncoding.from_pretrained(
                    name, config=self.model.config, trust_remote_code=False
                )
        except OSError as error:
            raise not_there("text encoder", name, error) from error
        self.model.load_state_dict(_without_pooler(found).state_dict())


def _without_pooler(model: nn.Module) -> nn.Module:
    """BERT and its kin make a sentence vector too; unused, its weights would never see a gradient."""
    if "pooler" in dict(model.named_children()):
        model.register_module("pooler", None)
    return model


def read_architecture(name: str) -> dict[str, Any]:
    """The configuration of the text encoder in a directory or under a hub name, as JSON values.

    Raises:
        RecipeError: it is no model that `transformers` knows, or no text encoder.
        OfflineError: it is not here and could not be downloaded.
    """
    from transformers import MODEL_FOR_TEXT_ENCODING_MAPPING, AutoConfig

    try:
        with cache_unless_reached(name):
            config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except OSError as error:
        raise not_there("text encoder", name, error) from error
    except ValueError as error:
        raise RecipeError(f"{name} is no model that transformers knows: {error}") from error
    config = config.get_text_config()  # CLIP's own holds a vision tower too
    if type(config) not in MODEL_FOR_TEXT_ENCODING_MAPPING:
        raise RecipeError(
            f"{name} is a {config.model_type} model, which is no text encoder",
            hint="take one such as CLIP (openai/clip-vit-large-patch14), T5 (google/t5-v1_1-base) or BERT",
        )
    values: dict[str, Any] = json.loads(config.to_json_string())
    values.pop("transformers_version", None)
    return values | {"model_type": config.model_type}


def check_length(architecture: dict[str, Any], length: int) -> None:
    """Raises `RecipeError` where the encoder has learned fewer positions than `length`; T5's are relative, any number will do."""
    most = architecture.get("max_position_embeddings")
    if most is not None and length > most:
        raise RecipeError(
            f"length is {length}; this text encoder knows at most {most} positions", hint=f"set length: {most}"
        )


def not_there(what: str, name: str, error: OSError) -> OfflineError:
    """The OfflineError for something that is neither on disk nor could be downloaded."""
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return OfflineError(
        f"the {what} {name!r} is no directory here and could not be downloaded: {reason}",
        hint="give a local directory, or connect and run again; what was downloaded once is kept and works offline",
    )
