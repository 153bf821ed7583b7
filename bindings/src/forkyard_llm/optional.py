"""What other packages do for this one, where they are installed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .errors import DownloadError, UsageError

__all__ = ["hub_file", "openai_types"]


def hub_file(repo_id: str, filename: str, revision: str | None) -> str:
    """The path of a file of the Hugging Face hub, downloaded if it is not there yet.

    Raises:
        UsageError: ``huggingface_hub`` is not installed.
        DownloadError: the hub does not give it.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        msg = "models of the hub need the package huggingface_hub: pip install huggingface_hub"
        raise UsageError(msg) from error
    try:
        return str(huggingface_hub.hf_hub_download(repo_id, filename, revision=revision))
    except Exception as error:  # its errors have no common class of their own
        msg = f"the hub does not give {filename} of {repo_id}: {error}"
        raise DownloadError(msg) from error


def openai_types(answer: Any) -> Any:
    """A chat completion, or its chunks, as objects of the package ``openai``.

    Raises:
        UsageError: it is not installed.
    """
    try:
        from openai.types.chat import ChatCompletion, ChatCompletionChunk
    except ImportError as error:
        msg = "these types are of the package openai: pip install openai"
        raise UsageError(msg) from error
    if isinstance(answer, Iterator):
        return (ChatCompletionChunk.model_validate(chunk) for chunk in answer)
    return ChatCompletion.model_validate(answer)
