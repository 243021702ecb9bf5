"""The Hugging Face hub, asked once: without a network its libraries would try for a minute; here they use their cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

PATIENCE = 5.0  # seconds for the hub to answer


@contextmanager
def cache_unless_reached(name: str, kind: Literal["model", "dataset"] = "model", *followers: Any) -> Iterator[None]:
    """Inside, the repository `name` is read from the hub, or from the local cache alone where the hub does not answer.

    A local directory asks nobody.

    Args:
        followers: modules of other libraries that keep a copy of the hub's `HF_HUB_OFFLINE`.
    """
    import huggingface_hub

    settings = (huggingface_hub.constants, *followers)
    before = [module.HF_HUB_OFFLINE for module in settings]
    offline = any(before) or not (Path(name).expanduser().exists() or _answers(name, kind))
    for module in settings:
        module.HF_HUB_OFFLINE = offline
    try:
        yield
    finally:
        for module, value in zip(settings, before, strict=True):
            module.HF_HUB_OFFLINE = value


def _answers(name: str, kind: str) -> bool:
    import huggingface_hub

    try:
        huggingface_hub.HfApi().repo_info(name, repo_type=kind, timeout=PATIENCE)
    except (huggingface_hub.errors.RepositoryNotFoundError, huggingface_hub.errors.GatedRepoError):
        return True  # and whoever asks for a file is told so
    except Exception:  # no network, a proxy's page, an error of the hub, a name that is none
        return False
    return True
