"""Judge the metadata of a projector (mmproj): libmtmd ends the process over a value of another type, or divides by it.

Types are those that both engines' clip.cpp reads at their pins. Tensors differ from one type of projector to the next:
of the common ones those are looked for that libmtmd reads without asking whether they are there. Shapes are not looked
at, but for the positions.
"""

from __future__ import annotations

from typing import Final, NoReturn

from .gguf_reader import BOOL, STRING, UINT32, GgufSummary, fail, type_name

__all__ = ["check_projector"]

_FLOAT32: Final = 6
_INT32: Final = 5
# By the last word of the key: the type of a scalar, and the numbers that it may be.
_NUMBERS: Final = {
    "embedding_length": (1, 1 << 16),
    "feed_forward_length": (0, 1 << 20),
    "block_count": (0, 512),
    "local_block_count": (0, 512),
    "projection_dim": (0, 1 << 20),
    "head_count": (1, 1 << 12),
    "head_count_kv": (0, 1 << 12),
    "head_dim": (0, 1 << 16),
    "image_size": (1, 1 << 16),
    "preproc_image_size": (0, 1 << 16),
    "patch_size": (1, 1 << 12),
    "image_min_pixels": (0, 1 << 30),
    "image_max_pixels": (0, 1 << 30),
    "preproc_min_tiles": (0, 1 << 16),
    "preproc_max_tiles": (0, 1 << 16),
    "scale_factor": (1, 1 << 8),
    "spatial_merge_size": (1, 1 << 8),
    "query_side": (1, 1 << 12),
    "window_side": (1, 1 << 12),
    "n_wa_pattern": (0, 1 << 16),
    "window_size": (0, 1 << 16),
    "expert_used_count": (0, 1 << 10),
    "minicpmv_query_num": (0, 1 << 16),
    "num_mel_bins": (1, 1 << 12),
    "stack_factor": (1, 1 << 10),
    "chunk_size": (0, 1 << 16),
    "conv_kernel_size": (0, 1 << 12),
    "max_pos_emb": (0, 1 << 20),
    "downsample_rate": (1, 1 << 12),
    "num_quantizers": (0, 1 << 12),
    "local_group_size": (0, 1 << 16),
    "subsampling_factor": (1, 1 << 8),
}
_OTHERS: Final = {
    **dict.fromkeys(("projector_type", "mm_patch_merge_type", "model_variant"), STRING),
    **dict.fromkeys(("has_vision_encoder", "has_audio_encoder", "has_gen_audio_encoder"), BOOL),
    **dict.fromkeys(("use_gelu", "use_silu"), BOOL),
    **dict.fromkeys(("layer_norm_epsilon", "swiglu_clamp"), _FLOAT32),
}
_ARRAYS: Final = {
    **dict.fromkeys(("image_mean", "image_std"), _FLOAT32),
    **dict.fromkeys(("image_grid_pinpoints", "feature_layer", "wa_layer_indexes", "wa_pattern_mode"), _INT32),
}
# Types that have a vector for each patch of an image, and no way to do with fewer.
_FIXED_GRID: Final = ("mlp", "ldp", "ldpv2", "gemma3", "idefics3", "internvl", "janus_pro")
# Types whose blocks are those of a plain transformer, and those whose blocks are Whisper's.
_PLAIN: Final = (
    *_FIXED_GRID, "resampler", "pixtral", "qwen2vl_merger", "qwen2.5vl_merger", "qwen3vl_merger", "lfm2", "llama4",
    "kimivl",
)  # fmt: skip
_WHISPER: Final = ("ultravox", "qwen2a", "voxtral")
_OF_WHISPER: Final = ("ln1.bias", "ln2.bias", "attn_q.bias", "attn_v.bias")
# It has no function for an operation that these compute with, and ends the process over it.
_NOT_IN_IK: Final = ("cogvlm",)


def check_projector(summary: GgufSummary, *, engine: str | None = None) -> None:
    """Check the metadata of a projector for `engine` (None: for either).

    Raises ModelError, naming the key.
    """
    for key, value in summary.values.items():
        if key.startswith("clip.") and (problem := _wrong(key, value.kind, value.count is not None)):
            fail(summary.path, problem, value.offset)
    for key, value in summary.values.items():
        low, high = _NUMBERS.get(key.rsplit(".", 1)[-1], (0, 0))
        if key.startswith("clip.") and high and not all(low <= number <= high for number in value.numbers):
            fail(summary.path, f"{key} is {value.data}; the engine takes {low} to {high}", value.offset)
    for side in ("vision", "audio"):
        if _of(summary, f"clip.has_{side}_encoder"):
            _check_heads(summary, f"clip.{side}.")
            _check_tensors(summary, side)
    if _of(summary, "clip.has_vision_encoder"):
        _check_vision(summary)
    kind = _kind(summary, "vision")
    if engine == "ik_llama.cpp" and kind in _NOT_IN_IK:
        _refuse(summary, f"ik_llama.cpp cannot compute a projector of type {kind}; llama.cpp can")


def _wrong(key: str, kind: int, array: bool) -> str | None:
    name = key.rsplit(".", 1)[-1]
    if name in _ARRAYS:
        if array and kind == _ARRAYS[name]:
            return None
        return (
            f"{key} is {'an array of ' if array else ''}{type_name(kind)}, not an array of {type_name(_ARRAYS[name])}"
        )
    wanted = UINT32 if name in _NUMBERS else _OTHERS.get(name)
    if wanted is None or (kind == wanted and not array):
        return None
    return f"{key} is {'an array of ' if array else ''}{type_name(kind)}, not {type_name(wanted)}"


def _check_heads(summary: GgufSummary, prefix: str) -> None:
    width, heads = (_of(summary, prefix + name) for name in ("embedding_length", "attention.head_count"))
    if width and heads and not _of(summary, f"{prefix}attention.head_dim") and width % heads:
        _refuse(summary, f"{prefix}embedding_length is {width}, which {heads} heads cannot share")
    layers = summary.values.get(f"{prefix}feature_layer")
    blocks = _of(summary, f"{prefix}block_count")
    if layers is not None and not all(-1 <= layer <= blocks for layer in layers.numbers):
        fail(summary.path, f"{prefix}feature_layer names a block of {blocks} that is not there", layers.offset)


def _check_vision(summary: GgufSummary) -> None:
    for name in ("image_mean", "image_std"):
        value = summary.values.get(f"clip.vision.{name}")
        colours = tuple(value.numbers) if value is not None else ()
        if len(colours) < 3 or (name == "image_std" and 0 in colours):
            _refuse(
                summary, f"clip.vision.{name} must be three numbers, one for each colour, of which image_std has no 0"
            )
    sizes = summary.values.get("clip.vision.image_grid_pinpoints")
    if sizes is not None and (len(sizes.numbers) % 2 or not all(1 <= size <= 1 << 14 for size in sizes.numbers)):
        fail(summary.path, "clip.vision.image_grid_pinpoints must be pairs of widths and heights", sizes.offset)
    shape = summary.shapes.get("v.position_embd.weight")
    size, patch = (_of(summary, f"clip.vision.{name}") for name in ("image_size", "patch_size"))
    if _kind(summary, "vision") in _FIXED_GRID and shape is not None and size and patch:
        needed = (size // patch) ** 2
        if needed < 1 or len(shape) < 2 or shape[1] < needed:
            _refuse(
                summary,
                f"v.position_embd.weight has the shape {list(shape)}, and an image of {size} times {size} pixels in"
                f" patches of {patch} has {needed}",
            )


def _check_tensors(summary: GgufSummary, side: str) -> None:
    kind, short = _kind(summary, side), side[0]
    if kind not in (*_PLAIN, *_WHISPER):
        return
    needed = ["a.position_embd.weight", "a.post_ln.weight", "a.post_ln.bias"] if kind in _WHISPER else []
    needed += ["v.position_embd.weight"] if kind in _FIXED_GRID else []
    needed += [] if kind in _WHISPER else ["v.patch_embd.weight"]
    needed += ["v.patch_embd.weight.1"] if kind in ("qwen2vl_merger", "qwen2.5vl_merger") else []
    for block in range(_of(summary, f"clip.{side}.block_count")):
        together = f"{short}.blk.{block}.attn_qkv.weight" in summary.shapes
        parts = ("attn_qkv",) if together else ("attn_q", "attn_k", "attn_v")
        weights = [f"{part}.weight" for part in (*parts, "attn_out", "ffn_up", "ffn_down", "ln1", "ln2")]
        biases = [f"{short}.blk.{block}.{part}.bias" for part in parts]
        needed += [f"{short}.blk.{block}.{name}" for name in (*weights, *(_OF_WHISPER if kind in _WHISPER else ()))]
        # All of them or none.
        needed += biases if kind not in _WHISPER and any(name in summary.shapes for name in biases) else []
    missing = [name for name in needed if name not in summary.shapes]
    if missing:
        _refuse(summary, f"a projector of type {kind} has a tensor {missing[0]}, and this one has none")


def _kind(summary: GgufSummary, side: str) -> str:
    """The type of the projector of images or of sounds."""
    for key in ("clip.projector_type", f"clip.{side}.projector_type"):
        value = summary.values.get(key)
        if value is not None and isinstance(value.data, str) and value.data:
            return value.data
    return ""


def _of(summary: GgufSummary, key: str) -> int:
    """A number whose type was checked; 0 if there is none."""
    value = summary.values.get(key)
    return int(value.numbers[0]) if value is not None and value.numbers else 0


def _refuse(summary: GgufSummary, why: str) -> NoReturn:
    fail(summary.path, why, 0)
