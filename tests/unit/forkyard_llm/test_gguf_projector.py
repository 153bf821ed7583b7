"""Projectors whose metadata libmtmd would end the process over are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from forkyard_llm.errors import ModelError
from forkyard_llm.gguf_check import PROJECTOR, TEXT, check

from .gguf_bytes import BOOL, F32, I32, STRING, U32, U64, gguf, numbers, scalar, string, tensor, write

KEYS = {
    "clip.has_vision_encoder": (BOOL, True),
    "clip.projector_type": (STRING, "mlp"),
    "clip.vision.embedding_length": (U32, 32),
    "clip.vision.attention.head_count": (U32, 2),
    "clip.vision.block_count": (U32, 2),
    "clip.vision.image_size": (U32, 28),
    "clip.vision.patch_size": (U32, 14),
    "clip.vision.attention.layer_norm_epsilon": (F32, 1e-5),
    "clip.vision.image_mean": (F32, [0.5, 0.5, 0.5]),
    "clip.vision.image_std": (F32, [0.5, 0.5, 0.5]),
    "clip.vision.feature_layer": (I32, [-1, 0, 2]),
    "clip.vision.image_grid_pinpoints": (I32, [28, 56]),
}
TENSORS = (
    "v.patch_embd.weight",
    *(
        f"v.blk.{block}.{part}.weight"
        for block in range(2)
        for part in ("attn_q", "attn_k", "attn_v", "attn_out", "ffn_up", "ffn_down", "ln1", "ln2")
    ),
    *(f"v.blk.1.attn_{part}.bias" for part in "qkv"),
)


def projector(folder: Path, rows: int = 5, without: str = "", **changed: object) -> Path:
    """A projector; ``changed`` by the last word of a key, None for none."""
    values = [string(b"general.architecture", b"clip")]
    for key, given in KEYS.items():
        found = changed.get(key.rsplit(".", 1)[-1], given)
        if found is None:
            continue
        assert isinstance(found, tuple)
        kind, value = found
        if kind == STRING:
            values.append(string(key.encode(), value.encode()))
        else:
            values.append(numbers(key, kind, value) if isinstance(value, list) else scalar(key, kind, value))
    shapes = {"v.position_embd.weight": [8, rows]}
    shapes |= {name: [8] for name in TENSORS if name != without}
    infos = [tensor(name.encode(), shape, 0, 64 * at * rows) for at, (name, shape) in enumerate(shapes.items())]
    return write(folder, gguf(values, infos, b"\0" * 64 * rows * len(infos)))


def test_a_sound_projector_is_one(tmp_path: Path) -> None:
    for engine in ("llama.cpp", "ik_llama.cpp", None):
        check(projector(tmp_path), engine=engine, purposes={PROJECTOR})
    with pytest.raises(ModelError, match=r"Llama\(MODEL, mmproj=THIS\)"):
        check(projector(tmp_path), purposes={TEXT})


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("has_vision_encoder", (U32, 1), "has_vision_encoder is uint32, not bool"),
        ("projector_type", (U32, 1), "projector_type is uint32, not string"),
        ("embedding_length", (U64, 32), "embedding_length is uint64, not uint32"),
        ("embedding_length", (U32, [32]), "embedding_length is an array of uint32, not uint32"),
        ("embedding_length", (U32, 33), "33, which 2 heads cannot share"),
        ("head_count", (U32, 0), "head_count is 0; the engine takes 1 to"),
        ("block_count", (U32, 1), "feature_layer names a block of 1 that is not there"),
        ("image_size", (U32, 0), "image_size is 0"),
        ("image_size", (U32, 42), r"has the shape \[8, 5\], and an image of 42 times 42 pixels .* has 9"),
        ("patch_size", (F32, 14), "patch_size is float32, not uint32"),
        ("patch_size", (U32, 0), "patch_size is 0"),
        ("layer_norm_epsilon", (U32, 1), "layer_norm_epsilon is uint32, not float32"),
        ("image_mean", None, "image_mean must be three numbers"),
        ("image_mean", (F32, 0.5), "image_mean is float32, not an array of float32"),
        ("image_mean", (I32, [0, 0, 0]), "image_mean is an array of int32, not an array of float32"),
        ("image_std", (F32, [0.5, 0.5]), "image_std must be three numbers"),
        ("image_std", (F32, [0.5, 0.0, 0.5]), "image_std has no 0"),
        ("feature_layer", (I32, [3]), "feature_layer names a block"),
        ("image_grid_pinpoints", (I32, [28]), "pairs of widths and heights"),
        ("image_grid_pinpoints", (I32, [28, 0]), "pairs of widths and heights"),
    ],
)
def test_what_cannot_be_true_is_refused(tmp_path: Path, name: str, given: object, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        check(projector(tmp_path, **{name: given}), purposes={PROJECTOR})


def test_what_one_engine_cannot_compute_is_refused_for_it(tmp_path: Path) -> None:
    path = projector(tmp_path, projector_type=(STRING, "cogvlm"))
    check(path, engine="llama.cpp")
    with pytest.raises(ModelError, match=r"llama\.cpp can"):
        check(path, engine="ik_llama.cpp")


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_that_is_read_without_asking_must_be_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError, match=f"has a tensor {name}"):
        check(projector(tmp_path, without=name), purposes={PROJECTOR})
    check(projector(tmp_path, without=name, projector_type=(STRING, "newer")), purposes={PROJECTOR})
