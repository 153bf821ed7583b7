"""A GGUF under construction: keys of one architecture and tensors with seeded random values.

Every tensor draws from a generator of its own, seeded by its name: adding one to a model leaves the others as they were.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from .random_blocks import random_blocks

SEED = 20261124
N_VOCAB = 128
N_CTX_TRAIN = 512

Type = gguf.GGMLQuantizationType


class Builder:
    """Writes one model; ``kind`` is the type of its matrices (where their rows are whole blocks of it, else F16).

    It has no texts of tokens unless ``texts``: then llama.cpp's server runs it, by a tokenizer that is made for tests.
    """

    def __init__(
        self,
        path: Path,
        arch: str,
        *,
        n_embd: int,
        n_layer: int,
        kind: gguf.GGMLQuantizationType = Type.F16,
        texts: bool = False,
    ) -> None:
        self._gguf = gguf.GGUFWriter(path, arch)
        self._arch = arch
        self._kind = kind
        self.n_embd = n_embd
        self.n_layer = n_layer
        self._gguf.add_vocab_size(N_VOCAB)
        self._gguf.add_context_length(N_CTX_TRAIN)
        self._gguf.add_embedding_length(n_embd)
        self._gguf.add_block_count(n_layer)
        self._gguf.add_tokenizer_model("test" if texts else "no_vocab")
        if texts:
            self._gguf.add_token_list([f"tok_{number}" for number in range(N_VOCAB)])
            self._gguf.add_token_scores([0.0] * N_VOCAB)

    def keys(self, **values: int | float | bool | Sequence[int]) -> None:
        """Keys of the architecture, without its prefix and with ``__`` for each dot."""
        for word, value in values.items():
            name = f"{self._arch}.{word.replace('__', '.')}"
            if isinstance(value, bool):
                self._gguf.add_bool(name, value)
            elif isinstance(value, int):
                self._gguf.add_uint32(name, value)
            elif isinstance(value, float):
                self._gguf.add_float32(name, value)
            else:
                self._gguf.add_array(name, list(value))

    def normal(self, name: str, shape: tuple[int, ...], std: float, mean: float = 0.0) -> None:
        """F32 values, normally distributed; ``shape`` as numpy has it, rows first."""
        self._gguf.add_tensor(name, self._values(name, shape, std, mean))

    def norm(self, name: str, size: int, *, bias: bool = False) -> None:
        """The weights of a normalization: around 1."""
        self.normal(f"{name}.weight", (size,), 0.1, 1.0)
        if bias:
            self.normal(f"{name}.bias", (size,), 0.1)

    def matrix(
        self,
        name: str,
        n_out: int,
        n_in: int,
        *,
        count: int = 0,
        gain: float = 1.0,
        kind: gguf.GGMLQuantizationType | None = None,
    ) -> None:
        """A projection whose output has ``gain`` times the scale of its input; ``count`` of them, stacked, if not 0."""
        shape = (count, n_out, n_in) if count else (n_out, n_in)
        std = gain / float(np.sqrt(n_in))
        kind = self._kind if kind is None else kind
        if n_in % gguf.GGML_QUANT_SIZES[kind][0]:
            kind = Type.F16
        if kind == Type.F32:
            self.normal(name, shape, std)
        elif kind == Type.F16:
            self._gguf.add_tensor(name, self._values(name, shape, std, 0.0).astype(np.float16))
        else:
            self._gguf.add_tensor(name, random_blocks(self._rng(name), shape, kind, std), raw_dtype=kind)

    def embeddings(self, *, bias: bool = False, scale: float = 1.0) -> None:
        """Token embeddings, of ``scale`` for each value, the last normalization and the output matrix."""
        self.matrix("token_embd.weight", N_VOCAB, self.n_embd, gain=scale * float(np.sqrt(self.n_embd)))
        self.norm("output_norm", self.n_embd, bias=bias)
        self.matrix("output.weight", N_VOCAB, self.n_embd)

    def identity(self, name: str, n_out: int, n_in: int, *, scale: float) -> None:
        """A projection that passes on the first part of its input, times ``scale``, and drops the rest."""
        self._gguf.add_tensor(name, scale * np.eye(n_out, n_in, dtype=np.float32))

    def finish(self) -> None:
        self._gguf.write_header_to_file()
        self._gguf.write_kv_data_to_file()
        self._gguf.write_tensors_to_file()
        self._gguf.close()

    @staticmethod
    def _rng(name: str) -> np.random.Generator:
        return np.random.default_rng([SEED, zlib.crc32(name.encode())])

    def _values(self, name: str, shape: tuple[int, ...], std: float, mean: float) -> NDArray[np.float32]:
        values: NDArray[np.float32] = self._rng(name).standard_normal(shape, dtype=np.float32)
        return values * np.float32(std) + np.float32(mean)


def write_adapter(path: Path, arch: str, shapes: Sequence[tuple[str, int, int]], *, rank: int = 32) -> None:
    """A LoRA adapter for the matrices named in ``shapes``, each with its outputs and inputs."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(rank))
    for name, n_out, n_in in shapes:
        rng = np.random.default_rng([SEED, zlib.crc32(name.encode())])
        for part, shape in (("a", (rank, n_in)), ("b", (n_out, rank))):
            values: NDArray[np.float32] = rng.standard_normal(shape, dtype=np.float32)
            writer.add_tensor(f"{name}.lora_{part}", values * np.float32(1 / np.sqrt(shape[1])))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
