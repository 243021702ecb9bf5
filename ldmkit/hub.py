"""The Hugging Face hub, asked once: without a network its libraries would try for a minute; here they use their cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PATIENCE = 5.0  # seconds for the hub to answer


@contextmanager
def cache_unless_reached(name: str) -> Iterator[None]:
    """Inside, the repository `name` is read from the hub, or from the local cache alone where the hub does not answer.

    A local directory asks nobody.
    """
    import huggingface_hub

    settings = huggingface_hub.constants
    before = settings.HF_HUB_OFFLINE
    if not Path(name).expanduser().exists() and not before:
        settings.HF_HUB_OFFLINE = not _answers(name)
    try:
        yield
    finally:
        settings.HF_HUB_OFFLINE = before


def _answers(name: str) -> bool:
    import huggingface_hub

    try:
        huggingface_hub.HfApi().model_info(name, timeout=PATIENCE)
    except (huggingface_hub.errors.RepositoryNotFoundError, huggingface_hub.errors.GatedRepoError):
        return True  # and whoever asks for a file is told so
    except Exception:  # no network, a proxy's page, an error of the hub, a name that is none
        return False
    return True
