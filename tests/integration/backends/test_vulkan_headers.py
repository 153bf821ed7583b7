"""The Vulkan backend compiles with headers older than VK_EXT_layer_settings, and uses it where they have it.

Everyday: the lines that make the instance, with a stand-in for the headers. With real headers the whole backend is
checked, which takes minutes; it needs no driver, no device and no shader compiler.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from .compiling import TIMEOUT_S, compiled, compiler, extract

pytestmark = pytest.mark.patch("vulkan-old-headers")

FOLDER = "ggml/src/ggml-vulkan"
LINES = re.compile(r"^    std::vector<const char\*> layers;\n.*?(?=^    vk_instance\.instance = )", re.M | re.S)
SUPPORT = re.compile(r"\bGGML_VULKAN_\w+_GLSLC_SUPPORT\b")
# As in vulkan.hpp: what belongs to an extension is there if the headers know it.
STAND_IN = """
#include <cstdint>
#include <cstdio>
#include <vector>

using VkBool32 = uint32_t;
namespace vk {
struct ApplicationInfo {};
struct InstanceCreateFlags {};
struct InstanceCreateInfo {
    using Names = std::vector<const char *>;
    InstanceCreateInfo(InstanceCreateFlags, const ApplicationInfo *, const Names & layers, const Names & extensions,
                       const void * next = nullptr) : pNext(next), layers(layers), extensions(extensions) {}
    const void * pNext;
    const Names & layers, & extensions;
};
#ifdef VK_EXT_layer_settings
enum class LayerSettingTypeEXT { eBool32 };
struct LayerSettingEXT {
    const char * layer, * name;
    LayerSettingTypeEXT type;
    uint32_t count;
    const VkBool32 * values;
};
struct LayerSettingsCreateInfoEXT {
    LayerSettingsCreateInfoEXT(const std::vector<LayerSettingEXT> & settings) : settings(settings) {}
    const std::vector<LayerSettingEXT> & settings;
};
#endif
}

int main(int argc, char **) {
    const vk::ApplicationInfo app_info;
    const bool layer_settings = argc > 1, debug_utils_ext = false;
"""
SAYS = """
    for (const char * name : instance_create_info.layers) std::printf("%s ", name);
    for (const char * name : instance_create_info.extensions) std::printf("%s ", name);
#ifdef VK_EXT_layer_settings
    const auto * next = static_cast<const vk::LayerSettingsCreateInfoEXT *>(instance_create_info.pNext);
    for (const auto & one : next->settings) std::printf("%s=%u", one.name, *one.values);
#else
    std::printf(instance_create_info.pNext == nullptr ? "nothing" : "something");
#endif
}
"""
ENABLED = "VK_LAYER_KHRONOS_validation VK_EXT_layer_settings"


@pytest.mark.parametrize(
    ("known", "off", "on"),
    [
        (False, "nothing", f"{ENABLED} nothing"),
        (True, "validate_best_practices=0", f"{ENABLED} validate_best_practices=1"),
    ],
    ids=["old", "new"],
)
def test_an_instance_is_made_with_the_headers_there_are(
    engine_payload: Callable[[str], Path], tmp_path: Path, known: bool, off: str, on: str
) -> None:
    extract(engine_payload("llama.cpp"), tmp_path, FOLDER)
    lines = LINES.search((tmp_path / FOLDER / "ggml-vulkan.cpp").read_text())
    assert lines is not None
    options = ["-DVK_EXT_layer_settings=1"] if known else []
    program = compiled(STAND_IN + lines[0] + SAYS, tmp_path / "instance", *options)
    for words, says in (((), off), (("validate",), on)):
        done = subprocess.run([program, *words], capture_output=True, text=True, check=True, timeout=TIMEOUT_S)
        assert done.stdout == says


@pytest.mark.deep
@pytest.mark.parametrize("can", ["nothing", "everything"])
def test_the_backend_compiles_with_the_headers_of_this_machine(
    engine_payload: Callable[[str], Path], tmp_path: Path, can: str
) -> None:
    """``can``: what the shader compiler has of the extensions that upstream's build asks it for."""
    for name in ("vulkan/vulkan.hpp", "spirv/unified1/spirv.hpp"):
        command = [compiler(), "-x", "c++", "-fsyntax-only", "-include", name, "/dev/null"]
        if subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, check=False).returncode:
            pytest.skip(f"<{name}> is not on this machine: on Debian, apt-get install libvulkan-dev spirv-headers")
    extract(engine_payload("llama.cpp"), tmp_path, "ggml/include", "ggml/src")
    folder, generated = tmp_path / FOLDER, tmp_path / "generated"
    generated.mkdir()
    supported = set(SUPPORT.findall((folder / "vulkan-shaders/CMakeLists.txt").read_text()))
    assert supported
    defines = [f"-D{name}" for name in sorted(supported)] if can == "everything" else []
    # Without a shader compiler it declares the shaders and does not make them.
    generator = tmp_path / "generator"
    command = [compiler(), "-std=c++17", "-o", str(generator), str(folder / "vulkan-shaders/vulkan-shaders-gen.cpp")]
    subprocess.run([*command, *defines, "-pthread"], check=True, timeout=TIMEOUT_S)
    words = ["--output-dir", str(generated / "spv"), "--target-hpp", str(generated / "ggml-vulkan-shaders.hpp")]
    subprocess.run([generator, *words], check=True, timeout=TIMEOUT_S)
    sources = sorted(folder.glob("*.cpp"))
    assert sources
    includes = [f"-I{path}" for path in (tmp_path / "ggml/include", tmp_path / "ggml/src", folder, generated)]
    for source in sources:
        command = [compiler(), "-std=c++17", "-fsyntax-only", "-w", *defines, *includes, str(source)]
        subprocess.run(command, check=True, timeout=TIMEOUT_S)
