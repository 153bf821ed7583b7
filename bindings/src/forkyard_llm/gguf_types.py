"""The sizes of the tensor types that can stand in a GGUF file, for each engine family, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

__all__ = ["TENSOR_TYPES", "TensorType"]


@dataclass(frozen=True)
class TensorType:
    """What tensor rows of one type take: `size` bytes per `block` elements, and `row` bytes more a row."""

    name: str
    block: int
    size: int
    row: int = 0

    def data_bytes(self, width: int, rows: int) -> int:
        """Bytes of `rows` rows of `width` elements (a multiple of `block`)."""
        if self.name == "i2_s":  # four elements a byte and one scale block a tensor: ggml_nbytes of ik_llama.cpp
            return rows * width // 4 + 32
        return rows * (width // self.block * self.size + self.row)


_BOTH: Final = ("llama.cpp", "ik_llama.cpp")
_LLAMA: Final = ("llama.cpp",)
_IK: Final = ("ik_llama.cpp",)

# (id, name, block, size, extra bytes per row, engines). ggml_blck_size, ggml_type_size and ggml_row_size of
# both engines at their pins (where only the name differs, llama.cpp's). Wrong or absent here means a file is
# refused that the engine could load, so an integration test compares this with every installed payload.
_TYPE_ROWS: Final[tuple[tuple[int, str, int, int, int, tuple[str, ...]], ...]] = (
    (0, "f32", 1, 4, 0, _BOTH), (1, "f16", 1, 2, 0, _BOTH), (2, "q4_0", 32, 18, 0, _BOTH),
    (3, "q4_1", 32, 20, 0, _BOTH), (6, "q5_0", 32, 22, 0, _BOTH), (7, "q5_1", 32, 24, 0, _BOTH),
    (8, "q8_0", 32, 34, 0, _BOTH), (9, "q8_1", 32, 36, 0, _BOTH), (10, "q2_k", 256, 84, 0, _BOTH),
    (11, "q3_k", 256, 110, 0, _BOTH), (12, "q4_k", 256, 144, 0, _BOTH), (13, "q5_k", 256, 176, 0, _BOTH),
    (14, "q6_k", 256, 210, 0, _BOTH), (15, "q8_k", 256, 292, 0, _LLAMA), (15, "q8_k", 256, 296, 0, _IK),
    (16, "iq2_xxs", 256, 66, 0, _BOTH), (17, "iq2_xs", 256, 74, 0, _BOTH), (18, "iq3_xxs", 256, 98, 0, _BOTH),
    (19, "iq1_s", 256, 50, 0, _BOTH), (20, "iq4_nl", 32, 18, 0, _BOTH), (21, "iq3_s", 256, 110, 0, _BOTH),
    (22, "iq2_s", 256, 82, 0, _BOTH), (23, "iq4_xs", 256, 136, 0, _BOTH), (24, "i8", 1, 1, 0, _BOTH),
    (25, "i16", 1, 2, 0, _BOTH), (26, "i32", 1, 4, 0, _BOTH), (27, "i64", 1, 8, 0, _BOTH),
    (28, "f64", 1, 8, 0, _BOTH), (29, "iq1_m", 256, 56, 0, _BOTH), (30, "bf16", 1, 2, 0, _BOTH),
    (31, "q4_0_4x4", 32, 18, 0, _IK), (32, "q4_0_4x8", 32, 18, 0, _IK), (33, "q4_0_8x8", 32, 18, 0, _IK),
    (34, "tq1_0", 256, 54, 0, _LLAMA), (35, "tq2_0", 256, 66, 0, _LLAMA), (36, "i2_s", 1, 1, 0, _IK),
    (39, "mxfp4", 32, 17, 0, _BOTH), (40, "nvfp4", 64, 36, 0, _LLAMA), (41, "q1_0", 128, 18, 0, _BOTH),
    (42, "q2_0", 64, 18, 0, _LLAMA), (97, "q8_0_x4", 32, 34, 0, _IK), (98, "q8_1_x4", 32, 36, 0, _IK),
    (99, "q8_2_x4", 32, 36, 0, _IK), (133, "q6_0", 32, 26, 0, _IK), (134, "iq1_bn", 64, 13, 2, _IK),
    (135, "iq2_bn", 64, 16, 4, _IK), (136, "q8_k64", 64, 68, 0, _IK), (137, "iq2_k", 256, 76, 0, _IK),
    (138, "iq3_k", 256, 110, 0, _IK), (139, "iq4_k", 256, 144, 0, _IK), (140, "iq5_k", 256, 176, 0, _IK),
    (141, "iq6_k", 256, 212, 0, _IK), (144, "iq4_ks", 256, 136, 4, _IK), (145, "iq2_ks", 256, 70, 2, _IK),
    (146, "iq4_kss", 256, 128, 4, _IK), (147, "q8_k16", 64, 64, 20, _IK), (148, "q8_k32", 256, 296, 0, _IK),
    (149, "q8_kr8", 256, 296, 0, _IK), (150, "q8_k128", 128, 140, 0, _IK), (151, "q8_kv", 32, 32, 8, _IK),
    (152, "iq5_ks", 256, 168, 4, _IK), (153, "iq2_kt", 256, 68, 4, _IK), (154, "iq3_kt", 256, 100, 4, _IK),
    (155, "iq4_kt", 256, 128, 4, _IK), (156, "iq3_ks", 256, 102, 2, _IK), (157, "iq2_kl", 256, 86, 2, _IK),
    (158, "iq1_kt", 256, 56, 4, _IK), (202, "q4_0_r8", 32, 18, 0, _IK), (206, "q5_0_r4", 32, 22, 0, _IK),
    (208, "q8_0_r8", 32, 34, 0, _IK), (210, "q2_k_r4", 256, 84, 0, _IK), (211, "q3_k_r4", 256, 110, 0, _IK),
    (212, "q4_k_r4", 256, 144, 0, _IK), (213, "q5_k_r4", 256, 176, 0, _IK),
    (214, "q6_k_r4", 256, 210, 0, _IK), (216, "iq2_xxs_r4", 256, 66, 0, _IK),
    (217, "iq2_xs_r4", 256, 74, 0, _IK), (218, "iq3_xxs_r4", 256, 98, 0, _IK),
    (219, "iq1_s_r4", 32, 6, 2, _IK), (220, "iq4_nl_r4", 32, 18, 0, _IK), (221, "iq3_s_r4", 256, 110, 0, _IK),
    (222, "iq2_s_r4", 256, 82, 0, _IK), (223, "iq4_xs_r8", 256, 136, 0, _IK),
    (229, "iq1_m_r4", 32, 7, 2, _IK), (230, "bf16_r16", 1, 2, 0, _IK), (233, "q6_0_r4", 32, 26, 0, _IK),
    (335, "iq2_bn_r4", 64, 16, 4, _IK), (337, "iq2_k_r4", 256, 76, 0, _IK),
    (338, "iq3_k_r4", 256, 110, 0, _IK), (339, "iq4_k_r4", 256, 144, 0, _IK),
    (340, "iq5_k_r4", 256, 176, 0, _IK), (344, "iq4_ks_r4", 256, 136, 4, _IK),
    (352, "iq5_ks_r4", 256, 168, 4, _IK), (397, "q8_k_r16", 256, 258, 0, _IK),
    (398, "q8_kv_r8", 32, 32, 4, _IK), (399, "q8_k_r8", 256, 258, 0, _IK),
    (500, "ftq4", 64, 34, 0, _BOTH), (501, "ftq3", 64, 26, 0, _BOTH), (502, "ftq2", 64, 18, 0, _BOTH),
)  # fmt: skip

TENSOR_TYPES: Final[Mapping[str, Mapping[int, TensorType]]] = {
    engine: {row[0]: TensorType(*row[1:5]) for row in _TYPE_ROWS if engine in row[5]} for engine in _BOTH
}
"""Engine family -> tensor type id -> its size, for the types that engine can load from a file."""
