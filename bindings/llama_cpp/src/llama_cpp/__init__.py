"""The names of llama-cpp-python 0.3.36 over forkyard_llm, so that packages written for it run on either engine.

Nothing is computed here: every class is a thin front of one of forkyard_llm's. The names of llama.h are those of the
llama.cpp payload in use, looked up when they are first asked for.
"""

from __future__ import annotations

from ._beside import refuse_llama_cpp_python

refuse_llama_cpp_python()

from . import (  # noqa: E402
    _low_level,
    llama_chat_format,
    llama_cpp,
    llama_cpp_ext,
    llama_tokenizer,
    llama_types,
    mtmd_cpp,
)
from .llama import (  # noqa: E402
    Llama,
    LlamaState,
    LogitsProcessor,
    LogitsProcessorList,
    MinTokensLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
)
from .llama_cache import BaseLlamaCache, LlamaCache, LlamaDiskCache, LlamaRAMCache  # noqa: E402
from .llama_grammar import LlamaGrammar  # noqa: E402
from .llama_speculative import LlamaDraftModel  # noqa: E402
from .llama_tokenizer import BaseLlamaTokenizer, LlamaTokenizer  # noqa: E402
from .llama_types import *  # noqa: E402, F403

__version__ = "0.3.36"

__all__ = [
    "BaseLlamaCache",
    "BaseLlamaTokenizer",
    "Llama",
    "LlamaCache",
    "LlamaDiskCache",
    "LlamaDraftModel",
    "LlamaGrammar",
    "LlamaRAMCache",
    "LlamaState",
    "LlamaTokenizer",
    "LogitsProcessor",
    "LogitsProcessorList",
    "MinTokensLogitsProcessor",
    "StoppingCriteria",
    "StoppingCriteriaList",
    "__version__",
    "llama_chat_format",
    "llama_cpp",
    "llama_cpp_ext",
    "llama_tokenizer",
    "mtmd_cpp",
    *llama_types.__all__,
]


def __getattr__(name: str) -> object:
    """The names of llama.h, which this package has, too."""
    return _low_level.find(__name__, name)
