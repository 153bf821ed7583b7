"""The candidates of one session: the array of (id, logit, p) both engines' sampling functions work on."""

from __future__ import annotations

import ctypes
from types import ModuleType
from typing import Any

from ..errors import AbiMismatch, EngineError

__all__ = ["Candidates"]


class Candidates:
    """One array with room for the whole vocabulary (12 bytes a token), refilled for every token sampled.

    Filling it and finding the tokens worth sampling from is done by the payload's probe library: a Python loop over a
    vocabulary of 50,000 would cost many times the token itself.

    Raises:
        AbiMismatch: the probe library has no such function.
    """

    def __init__(self, abi: ModuleType, probe: ctypes.CDLL, n_vocab: int) -> None:
        row = ctypes.POINTER(ctypes.c_float)
        try:
            # By name, not as an attribute: types set on this object stay on it.
            self._write = probe["forkyard_probe_candidates"]
        except AttributeError as error:
            msg = f"the payload's probe library has no candidate function ({error}); reinstall the payload"
            raise AbiMismatch(msg) from error
        self._write.restype = ctypes.c_uint32
        self._write.argtypes = (row, ctypes.c_uint32, ctypes.c_uint32, ctypes.POINTER(abi.llama_token_data))
        self._n_vocab = n_vocab
        self._data = (abi.llama_token_data * n_vocab)()
        self._first = ctypes.cast(self._data, ctypes.POINTER(abi.llama_token_data))
        self.array: Any = abi.llama_token_data_array()
        self.reference = ctypes.byref(self.array)

    def fill(self, logits: Any, keep: int) -> None:
        """Take the candidates from the engine's row of logits.

        Args:
            keep: 0 for the whole vocabulary; else at least the ``keep`` most likely tokens, for a top-k to follow.

        Raises:
            EngineError: there are no logits, or some are not numbers; the engines' own sampling ends the process then.
        """
        if not logits:
            msg = "the engine has no logits to sample from"
            raise EngineError(msg)
        count = self._write(logits, self._n_vocab, keep, self._data)
        if not count:
            msg = "the model computed logits that are not numbers; is its file sound, do the KV cache types suit it?"
            raise EngineError(msg)
        array = self.array
        # The engines' functions sort and cut in place, and may leave a pointer to memory of their own here.
        array.data = self._first
        array.size = count
        array.selected = -1
        array.sorted = False

    def most_likely(self, logits: Any) -> int:
        """The most likely token, of equal ones the first. Raises what :meth:`fill` raises."""
        self.fill(logits, 1)
        return int(self._data[0].id)

    def bias(self, token: int, bias: float) -> None:
        """Add ``bias`` to a token's logit; only right after :meth:`fill` with the whole vocabulary."""
        self._data[token].logit += bias

    def selected(self) -> int:
        """The token a sampler chain selected."""
        return int(self.array.data[self.array.selected].id)
