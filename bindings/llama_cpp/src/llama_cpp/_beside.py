"""Refuse to work in an environment that has llama-cpp-python as well: the files of both would be mixed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution

__all__ = ["refuse_llama_cpp_python"]

_OTHER = "llama-cpp-python"


def refuse_llama_cpp_python() -> None:
    """Raise ImportError if llama-cpp-python is installed with files of its own.

    One without any, which only satisfies other packages' requirements, does no harm.
    """
    try:
        files = distribution(_OTHER).files or ()
    except PackageNotFoundError:
        return
    if any(path.parts[:1] == ("llama_cpp",) for path in files):
        msg = (
            f"{_OTHER} and forkyard-llama-cpp-python are both installed, and both have the module llama_cpp: its files"
            f" are mixed; remove both and install the one that you want: pip uninstall {_OTHER}"
            " forkyard-llama-cpp-python; pip install forkyard-llama-cpp-python"
        )
        raise ImportError(msg)
