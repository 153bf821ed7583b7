"""A small valid recipe and variants file to break in one place at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

RECIPE = """\
schema = 1
name = "mine"
family = "llama.cpp"
title = "my engine"
stacks = ["fixes"]

[pin]
commit = "1111111111111111111111111111111111111111"
tree = "2222222222222222222222222222222222222222"
date = "2026-01-31"
build-number = 7

[[sources]]
kind = "git"
url = "https://example.org/engine"

[[sources]]
kind = "registry"
project = "engine-python"
version = "1.0"
sha256 = "3333333333333333333333333333333333333333333333333333333333333333"
folder = "vendor/engine"
drop = ["sub/module"]
absent = "mine.absent.tsv"

[[sources]]
kind = "local"
path = "../clone"

[build]
tools = ["llama-server"]
libraries = ["llama"]
headers = ["include/llama.h"]
include-dirs = ["include"]
defines = ["SHARED", "LEVEL=2"]
cpu-target = "ggml-cpu"
options = { GGML_OPENMP = true, GGML_LIMIT = 4, GGML_LABEL = "fy" }

[[build.guarded]]
library = "mtmd"
instruction-sets = ["LZCNT"]
why = "it asks first"
"""

VARIANTS = """\
schema = 1

[features]
avx = { flags = ["-mavx"], instruction-sets = ["AVX"] }
avx2 = { flags = ["-mavx2"], instruction-sets = ["AVX2"] }
bmi2 = { flags = ["-mbmi2"], instruction-sets = ["BMI2"] }
avx512f = { flags = ["-mavx512f"], instruction-sets = ["AVX512F"] }
avx512dq = { flags = ["-mavx512dq"], instruction-sets = ["AVX512DQ"] }

[engines."llama.cpp"]
native = "GGML_NATIVE"

[engines."llama.cpp".options]
GGML_AVX = ["avx"]
GGML_AVX2 = ["avx2"]
GGML_BMI2 = ["bmi2"]
GGML_AVX512 = ["avx512f", "avx512dq"]

[engines."ik_llama.cpp"]
native = "GGML_NATIVE"
options = { GGML_AVX = ["avx"], GGML_AVX2 = ["avx2"], GGML_AVX512 = ["avx512f"] }

[variants.avx2]
title = "with AVX2"
kind = "isa"
features = ["avx", "avx2", "bmi2"]
proof = ["avx2"]
rank = 30

[variants.avx512]
title = "with AVX-512"
kind = "isa"
extends = "avx2"
features = ["avx512f", "avx512dq"]
proof = ["avx512f"]
rank = 40

[variants.avx512.engines."ik_llama.cpp"]
unsupported = "it is not done yet"

[variants.native]
title = "this machine"
kind = "isa"
native = true
rank = 90
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project folder with the small recipe and variants file."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.toml").write_text(RECIPE)
    (tmp_path / "recipes" / "variants.toml").write_text(VARIANTS)
    return tmp_path


@pytest.fixture(scope="session")
def recipe_text() -> str:
    """The small recipe."""
    return RECIPE


@pytest.fixture(scope="session")
def variants_text() -> str:
    """The small variants file."""
    return VARIANTS


@pytest.fixture(scope="session")
def repository() -> Path:
    """The project's own folder."""
    return Path(__file__).parents[4]
