"""Gates of payloads for GPUs, on wheels made by hand and with a stand-in for the program that lists CUDA code."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from forkyard.gates import GATES, GPU_GATES, GpuLimits, IsaLimits, check_wheel, gpu_gates, gpu_limits
from forkyard.recipes import load_variants, resolve

from .conftest import PACKAGE, PIN

MakeWheel = Callable[..., Path]
MakeElf = Callable[..., bytes]
PROJECT = Path(__file__).resolve().parents[4]
FOLDER = "/builds/here"
GPU: dict[str, Any] = {
    "soname": "libgpu.so",
    "runpath": "$ORIGIN/../lib:$ORIGIN/../../nvidia/cu13/lib",
    "needed": ["libcpu-fy.so", "libcudart.so.13", "libcublas.so.13"],
}


@pytest.fixture
def cuobjdump(tmp_path: Path) -> Path:
    """Lists code for sm_80 and PTX for sm_75, and extracts a file that holds what FAKE_CUBIN says."""
    program = tmp_path / "cuobjdump"
    program.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = -lelf ]; then\n'
        "  echo 'ELF file    1: tmpxft.1.sm_80.cubin'; echo 'PTX file    1: tmpxft.1.sm_75.ptx'\n"
        "else\n"
        f"  cat {tmp_path}/code > one.sm_80.cubin\n"
        "fi\n"
    )
    program.chmod(0o755)
    (tmp_path / "code").write_bytes(b"kernels")
    return program


@pytest.fixture
def gpu(cuobjdump: Path) -> GpuLimits:
    return GpuLimits(
        library="gpu",
        needs=("libcudart.so.13", "libcublas.so.13"),
        folders=("nvidia/cu13/lib",),
        architectures=("80-real", "75-virtual"),
        cuobjdump=cuobjdump,
    )


def found(
    make_wheel: MakeWheel,
    make_elf: MakeElf,
    limits: IsaLimits,
    gpu: GpuLimits,
    files: dict[str, bytes] | None = None,
    **elf: Any,
) -> list[str]:
    libraries = {"engine": "lib/libengine-fy.so", "cpu": "lib/libcpu-fy.so", "gpu": "bin/libgpu.so"}
    manifest = {"package": PACKAGE, "pin": {"commit": PIN}, "libraries": libraries, "tools": {"tool": "bin/tool"}}
    inside = {
        "bin/libgpu.so": make_elf(**{**GPU, **elf}),
        "manifest.json": json.dumps(manifest).encode(),
        **(files or {}),
    }
    wheel = make_wheel(files=inside, modes={f"{PACKAGE}/bin/libgpu.so": 0o100644})
    report = check_wheel(wheel, package=PACKAGE, limits=limits, gpu=gpu, forbidden_prefixes=[FOLDER])
    assert report.gates == GATES + GPU_GATES
    assert set(report.seconds) == set(report.gates)
    return [str(finding) for finding in report.findings]


def test_a_sound_payload_passes(make_wheel: MakeWheel, make_elf: MakeElf, limits: IsaLimits, gpu: GpuLimits) -> None:
    assert found(make_wheel, make_elf, limits, gpu) == []
    assert found(make_wheel, make_elf, limits, replace(gpu, architectures=("80-real",), cuobjdump=None)) == []


@pytest.mark.parametrize(
    ("elf", "expected"),
    [
        (
            {"needed": ["libcudart.so.12", "libcublas.so.13"]},
            "does not need libcudart.so.13, which the variant names; it needs libcudart.so.12",
        ),
        (
            {"needed": ["libcudart.so.12", "libcublas.so.13"]},
            "needs libcudart.so.12, which is neither in the wheel nor",
        ),
        ({"needed": ["libcublas.so.13"]}, "does not need libcudart.so.13"),
        ({"needed": [*GPU["needed"], "libcuda.so.1"]}, "needs libcuda.so.1, which is neither in the wheel nor"),
        # NCCL is linked exactly if the variant says so: the manifest and `forkyard-llm doctor` repeat it.
        ({"needed": [*GPU["needed"], "libnccl.so.2"]}, "needs libnccl.so.2, which is neither in the wheel nor"),
        ({"runpath": "$ORIGIN/../lib:/usr/local/cuda/lib64"}, "looks for libraries in '/usr/local/cuda/lib64'"),
        ({"runpath": "$ORIGIN/../lib:$ORIGIN/../../nvidia"}, "looks for libraries in '$ORIGIN/../../nvidia'"),
    ],
)
def test_what_it_links_to(
    make_wheel: MakeWheel, make_elf: MakeElf, limits: IsaLimits, gpu: GpuLimits, elf: dict[str, Any], expected: str
) -> None:
    findings = found(make_wheel, make_elf, limits, gpu, **elf)
    assert any(expected in finding for finding in findings), findings


@pytest.mark.parametrize(
    "name",
    [
        *("libcuda.so.1", "libcudart.so.13", "libcublasLt.so.13", "libnvrtc-builtins.so.13.4", "libnccl.so.2"),
        *("libvulkan.so.1", "libamdhip64.so.6", "librocblas.so.4", "libsycl.so.8", "libze_loader.so.1"),
        *("libcudart-1a2b3c.so.13", "libOpenCL.so.1"),
    ],
)
def test_a_library_of_a_gpu_is_not_carried(
    make_wheel: MakeWheel, make_elf: MakeElf, limits: IsaLimits, gpu: GpuLimits, name: str
) -> None:
    findings = found(make_wheel, make_elf, limits, gpu, {f"lib/{name}": make_elf(soname=name)})
    assert findings == [
        f"[gpu-libraries] {PACKAGE}/lib/{name}: belongs to a GPU's driver or toolkit, which a wheel must not carry"
    ]


def test_a_lost_architecture(make_wheel: MakeWheel, make_elf: MakeElf, limits: IsaLimits, gpu: GpuLimits) -> None:
    wanted = replace(gpu, architectures=("80", "75-virtual", "120-real"))
    place = f"[architectures] {PACKAGE}/bin/libgpu.so: holds no"
    assert found(make_wheel, make_elf, limits, wanted) == [
        f"{place} ptx_80, which the variant names (it has ptx_75, sm_80)",
        f"{place} sm_120, which the variant names (it has ptx_75, sm_80)",
    ]


def test_upstream_compiles_120_as_120a(
    make_wheel: MakeWheel, make_elf: MakeElf, limits: IsaLimits, gpu: GpuLimits, cuobjdump: Path
) -> None:
    cuobjdump.write_text(cuobjdump.read_text().replace("sm_80.cubin", "sm_120a.cubin"))
    assert found(make_wheel, make_elf, limits, replace(gpu, architectures=("120-real", "75-virtual"))) == []


def test_a_path_within_the_gpu_code(
    make_wheel: MakeWheel, make_elf: MakeElf, limits: IsaLimits, gpu: GpuLimits, tmp_path: Path
) -> None:
    """A library's kernels are compressed: a search through the file does not see what they hold."""
    (tmp_path / "code").write_bytes(b"\0" + os.fsencode(FOLDER) + b"/fattn.cu\0")
    (finding,) = found(make_wheel, make_elf, limits, gpu)
    assert f"holds a path below {FOLDER} in its GPU code (one.sm_80.cubin)" in finding


def test_gpu_code_that_cannot_be_looked_into(
    make_wheel: MakeWheel, make_elf: MakeElf, limits: IsaLimits, gpu: GpuLimits, cuobjdump: Path
) -> None:
    cuobjdump.write_text(cuobjdump.read_text().replace("> one.sm_80.cubin", "> /dev/null"))
    (finding,) = found(make_wheel, make_elf, limits, gpu)
    assert "only 0 of 1 pieces of its GPU code could be looked into" in finding


def test_a_library_that_is_not_there(make_wheel: MakeWheel, limits: IsaLimits, gpu: GpuLimits) -> None:
    report = check_wheel(make_wheel(), package=PACKAGE, limits=limits, gpu=gpu)
    assert [str(finding) for finding in report.findings] == [
        "[gpu-libraries] gpu: the library with the backend's code is not in the wheel"
    ]


def test_nccl_that_was_not_linked(make_wheel: MakeWheel, make_elf: MakeElf, limits: IsaLimits, gpu: GpuLimits) -> None:
    wanted = replace(gpu, needs=(*gpu.needs, "libnccl.so.2"))
    (finding,) = found(make_wheel, make_elf, limits, wanted)
    assert "does not need libnccl.so.2, which the variant names" in finding
    assert found(make_wheel, make_elf, limits, wanted, needed=[*GPU["needed"], "libnccl.so.2"]) == []


def test_a_library_for_other_machines(make_wheel: MakeWheel, make_elf: MakeElf, limits: IsaLimits) -> None:
    """It needs nothing beyond the wheel, RDMA least of all, which upstream links where the build machine has it."""
    rpc = gpu_limits(resolve(load_variants(PROJECT), "rpc", "llama.cpp"), "ggml-cpu", None)
    assert rpc is not None
    assert (rpc.library, rpc.needs, rpc.folders, rpc.cuobjdump) == ("ggml-rpc", (), (), None)
    mine = replace(rpc, library="gpu")
    elf = {"soname": "libgpu.so", "runpath": "$ORIGIN/../lib", "needed": ["libcpu-fy.so"]}
    assert found(make_wheel, make_elf, limits, mine, **elf) == []
    findings = found(make_wheel, make_elf, limits, mine, **{**elf, "needed": ["libcpu-fy.so", "libibverbs.so.1"]})
    assert any("needs libibverbs.so.1, which is neither in the wheel nor" in finding for finding in findings)
    report = check_wheel(make_wheel(), package=PACKAGE, limits=limits, gpu=rpc)
    assert [str(finding) for finding in report.findings] == [
        "[gpu-libraries] ggml-rpc: the library with the backend's code is not in the wheel"
    ]


def test_a_wheel_that_is_too_large(
    make_wheel: MakeWheel, limits: IsaLimits, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wheel = make_wheel(files={"lib/data": os.urandom(1 << 20)})
    assert check_wheel(wheel, package=PACKAGE, limits=limits).findings == ()
    monkeypatch.setattr(gpu_gates, "_LARGEST", 1 << 19)
    (finding,) = check_wheel(wheel, package=PACKAGE, limits=limits).findings
    assert f"compressed: {PACKAGE}/lib/data 1.0 MiB" in str(finding)


def test_limits_come_from_the_variant(tmp_path: Path) -> None:
    variants = load_variants(PROJECT)
    cuda = gpu_limits(resolve(variants, "cuda13", "llama.cpp"), "ggml-cpu", tmp_path)
    assert cuda is not None
    assert cuda.library == "ggml-cuda"
    assert {"libcudart.so.13", "libcublas.so.13"} <= set(cuda.needs)
    assert cuda.cuobjdump == tmp_path / "bin" / "cuobjdump"
    linked = gpu_limits(resolve(variants, "cuda13", "ik_llama.cpp"), "ggml", tmp_path)
    assert linked is not None
    assert linked.library == "ggml"
    vulkan = gpu_limits(resolve(variants, "vulkan", "llama.cpp"), "ggml-cpu", tmp_path)
    assert vulkan is not None
    assert vulkan.cuobjdump is None
    assert gpu_limits(resolve(variants, "avx2", "llama.cpp"), "ggml-cpu", None) is None
