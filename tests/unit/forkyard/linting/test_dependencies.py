from __future__ import annotations

from typing import Any

import pytest

ADDS = (
    b"part : x\n\nBecause.\n\nUpstream-Status: Pending\nRetire-When: file-exists never.c\nAdds-Files: our.c -> src/%s\n"
)


@pytest.mark.parametrize(
    "line",
    [
        b"find_package(Boost REQUIRED)\n",
        b"  FIND_PACKAGE (Boost)\n",
        b"include(FetchContent)\n",
        b"FetchContent_Declare(x)\n",
        b"ExternalProject_Add(x)\n",
        b"pkg_check_modules(X x)\n",
    ],
)
def test_a_package_in_upstreams_build(lab: Any, line: bytes, line_of: Any) -> None:
    lab.stack(lab.edit("CMakeLists.txt", b"project(a)\n", b"project(a)\n" + line))
    (finding,) = lab.lint().findings
    assert (finding.rule, finding.level) == ("dependency", "warning")
    assert line_of(lab, finding) == "+" + line.decode().rstrip()


@pytest.mark.parametrize("line", [b"# find_package(Boost)\n", b"add_library(x)\n", b"my_find_package(x)\n"])
def test_no_package(lab: Any, line: bytes) -> None:
    lab.stack(lab.edit("CMakeLists.txt", b"project(a)\n", b"project(a)\n" + line))
    assert lab.rules() == []


@pytest.mark.parametrize("name", [b"boost/any.hpp", b"numa.h", b"fmt/core.h", b"deep/other.h"])
def test_a_header_nobody_brings(lab: Any, name: bytes) -> None:
    lab.stack(lab.edit("src/a.h", b"int one();\n", b"#include <" + name + b">\n\nint one();\n"))
    (finding,) = lab.lint().findings
    assert (finding.rule, finding.level) == ("include", "warning")
    assert name.decode() in finding.what


@pytest.mark.parametrize(
    "name",
    [
        b"vector",
        b"stdio.h",
        b"sys/mman.h",
        b"immintrin.h",
        b"cuda_fp16.h",
        b"linux/mempolicy.h",
        b"own.h",
        b"deep/own.h",
    ],
)
def test_a_header_of_the_system_or_upstream(lab: Any, name: bytes) -> None:
    lab.stack(lab.edit("src/a.h", b"int one();\n", b"#include <" + name + b">\n\nint one();\n"))
    assert lab.rules() == []


def test_a_header_of_ours(lab: Any) -> None:
    user = lab.edit("src/a.h", b"int one();\n", b"#include <our.h>\n\nint one();\n")
    lab.stack(lab.patch({}, message=ADDS % b"our.h"), name="first", files={"our.c": b"int x;\n"})
    lab.stack(user, name="second")
    assert lab.rules() == []


def test_a_whole_file_of_ours(lab: Any) -> None:
    lab.stack(lab.patch({}, message=ADDS % b"our.c"), files={"our.c": b"#include <zlib.h>\n"})
    (finding,) = lab.lint().findings
    assert (finding.rule, finding.file, finding.line) == ("include", "patches/part/src/our.c", 1)


def test_an_include_that_is_no_code(lab: Any) -> None:
    lab.stack(lab.edit("notes.txt", b"notes\n", b"#include <boost/any.hpp>\n"))
    assert lab.rules() == []
