"""The candidates of one session: the array of (id, logit, p) both engines' sampling functions work on."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from types import ModuleType
from typing import Any

from ..errors import AbiMismatch, EngineError
from ..sampling import SamplingParams

__all__ = ["Candidates"]


class Candidates:
    """One array with room for the whole vocabulary (12 bytes a token), refilled for every token sampled.

    Filling it and finding the tokens worth sampling from is done by the payload's probe library: a Python loop over a
    vocabulary of 50,000 would cost many times the token itself. ``complaints`` gives the engine's last ones.

    Raises:
        AbiMismatch: the probe library has no such function.
    """

    def __init__(self, abi: ModuleType, probe: ctypes.CDLL, n_vocab: int, complaints: Callable[[], str] = str) -> None:
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
        self._complaints = complaints
        self._data = (abi.llama_token_data * n_vocab)()
        self._first = ctypes.cast(self._data, ctypes.POINTER(abi.llama_token_data))
        self.array: Any = abi.llama_token_data_array()
        self.reference = ctypes.byref(self.array)

    def fill(self, logits: Any, params: SamplingParams) -> None:
        """Take the candidates from the engine's row of logits, as many as ``params`` can choose from.

        The biases of ``params`` are added to the row itself: it is the engine's scratch, written anew by every decode.

        Raises:
            EngineError: there are no logits, or some are not numbers; the engines' own sampling ends the process then.
        """
        if not logits:
            msg = "the engine has no logits to sample from"
            raise EngineError(msg)
        for token, bias in params.logit_bias.items():
            logits[token] += bias
        count = self._write(logits, self._n_vocab, params.shortlist, self._data)
        if not count:
            said = self._complaints()
            msg = "the model computed logits that are not numbers; is its file sound, do the KV cache types suit it?"
            raise EngineError(f"{msg} The engine says: {said}" if said else msg)
        array = self.array
        # The engines' functions sort and cut in place, and may leave a pointer to memory of their own here.
        array.data = self._first
        array.size = count
        array.selected = -1
        array.sorted = False

    def first(self) -> int:
        """The first candidate: the chosen token, where the parameters leave only one."""
        return int(self._data[0].id)

    def selected(self) -> int:
        """The token a sampler chain selected."""
        return int(self.array.data[self.array.selected].id)
