from __future__ import annotations

import errno

import pytest

from forkyard.buildlog import first_errors, known_cause, says_why, storage_errno

GCC = "c++ (Debian 12.2.0-14) 12.2.0"

KILLED = [
    "c++: fatal error: Killed signal terminated program cc1plus",
    "g++: fatal error: Killed",
    "g++: internal compiler error: Killed (program cc1plus): out of memory",
    "clang: error: unable to execute command: Killed",
    "collect2: fatal error: ld terminated with signal 9 [Killed]",
    "cc1plus: out of memory allocating 65536 bytes after a total of 52043776 bytes",
    "virtual memory exhausted: Cannot allocate memory",
    "LLVM ERROR: out of memory",
    "terminate called after throwing an instance of 'std::bad_alloc'",
    "/usr/bin/ld: memory exhausted",
    "ninja: fatal: fork: Cannot allocate memory",
    "/bin/sh: line 1: 4711 Killed                  /usr/bin/c++ -c x.cpp",
    "Killed",
]


@pytest.mark.parametrize("line", KILLED)
def test_too_little_memory(line: str) -> None:
    lines = ["FAILED: engine/x.cpp.o", line, "compilation terminated.", "ninja: build stopped: subcommand failed."]
    cause = known_cause(lines, 1, None, GCC)
    assert cause is not None
    assert "memory" in cause.why
    assert line in cause.why
    assert "--jobs 1" in cause.next_step
    alone = known_cause(lines, 1, 1, GCC)
    assert alone is not None
    assert "--jobs" not in alone.next_step
    assert "more memory" in alone.next_step


def test_a_build_that_was_killed_as_a_whole() -> None:
    cause = known_cause(["[1/9] Building CXX object x.o"], -9, 4, GCC)
    assert cause is not None
    assert "SIGKILL" in cause.why
    assert known_cause(["[1/9] Building CXX object x.o"], -15, 4, GCC) is None


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("c++: error: unrecognized command-line option '-mavx512bf16'; did you mean '-mavx512f'?", "-mavx512bf16"),
        ("cc: error: unrecognized command line option \N{LEFT SINGLE QUOTATION MARK}-mamx-tile\u2019", "-mamx-tile"),
        ("clang: error: unknown argument: '-mamx-int8'", "-mamx-int8"),
        ("clang++: error: unsupported option '-mavxvnni' for target 'x86_64'", "-mavxvnni"),
        ("cc1: error: bad value ('sapphirerapids') for '-march=' switch", "sapphirerapids"),
        ("/tmp/cc1.s:12: Error: no such instruction: `vdpbf16ps %zmm0,%zmm1,%zmm2'", "vdpbf16ps"),
    ],
)
def test_a_compiler_that_is_too_old(line: str, word: str) -> None:
    cause = known_cause([line], 1, None, GCC)
    assert cause is not None
    assert f"does not know {word}" in cause.why
    assert GCC in cause.why
    assert "newer" in cause.next_step


@pytest.mark.parametrize(
    "line",
    [
        "g++: internal compiler error: Segmentation fault signal terminated program cc1plus",
        "a.cpp:7:1: internal compiler error: in foo, at bar.cc:12",
        "clang: error: clang frontend command failed due to signal (use -v to see invocation)",
    ],
)
def test_a_compiler_that_crashed(line: str) -> None:
    cause = known_cause([line], 1, None, GCC)
    assert cause is not None
    assert cause.why == f"the compiler crashed: {line}"
    assert GCC in cause.next_step


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("/x/a.c:3:10: fatal error: stdio.h: No such file or directory", "stdio.h"),
        ("/x/a.cpp:3:10: fatal error: iostream: No such file or directory", "iostream"),
        ("/x/a.c:3:10: fatal error: linux/futex.h: No such file or directory", "linux/futex.h"),
        ("/x/a.c:3:10: fatal error: 'omp.h' file not found", "omp.h"),
    ],
)
def test_a_missing_header(line: str, name: str) -> None:
    cause = known_cause([line], 1, None, GCC)
    assert cause is not None
    assert f"the header {name} is missing" in cause.why


@pytest.mark.parametrize(
    "line",
    [
        '   12 |     throw std::runtime_error("out of memory, Killed");',
        "      |     ^~~~ Cannot allocate memory",
        "/x/a.cpp:3:5: error: 'value' was not declared in this scope",
        "undefined reference to `nowhere()'",
    ],
)
def test_words_that_mean_nothing_about_the_machine(line: str) -> None:
    assert known_cause([line], 1, None, GCC) is None


def test_the_first_error_with_a_place_is_shown_first() -> None:
    lines = [
        "FAILED: engine/a.o",
        "a.cpp: In function 'int f()':",
        "engine/a.cpp:7:3: error: 'missing' was not declared in this scope",
        "engine/a.cpp:9:3: error: 'another' was not declared in this scope",
        *(f"engine/b.cpp:{line}:1: error: consequence" for line in range(20)),
    ]
    shown = first_errors(lines)
    assert shown[0] == "engine/a.cpp:7:3: error: 'missing' was not declared in this scope"
    assert shown[1] == "FAILED: engine/a.o"
    assert len(shown) == 6
    assert first_errors(["ld: cannot find -lm"]) == ["ld: cannot find -lm"]
    assert first_errors([]) == []


def test_lines_that_may_be_the_reason() -> None:
    assert says_why("FAILED: x.o")
    assert says_why("a.c:1:2: error: no")
    assert all(says_why(line) for line in KILLED if "bad_alloc" not in line and "allocat" not in line)
    assert not says_why("[3/9] Building CXX object killer.o")
    assert not says_why("   12 | // error: this is a comment")


def test_a_failed_write() -> None:
    assert storage_errno(["/tmp/x.s: fatal error: error writing to x: No space left on device"]) == errno.ENOSPC
    assert storage_errno(["   3 | No space left on device"]) is None
