"""Speed promises as work done, never as time: what did not change is not compiled again."""

from __future__ import annotations

from ..toy import Toy

# The one source of the tools, compiled for each of them, is the same compile every time for ccache.
TOOLS = {"llama-server", "llama-bench", "llama-cli", "llama-perplexity", "llama-quantize"}
# Compiled from what differs in every build: the probe holds the build key.
PROBE = "CMakeFiles/forkyard-probe.dir/probe.c"


def units(built: dict[str, object]) -> set[str]:
    """Compiled files of the engine: ``src/part1.cpp``."""
    compiled = built["compiled"]
    assert isinstance(compiled, list)
    assert len(set(compiled)) == len(compiled)
    return {unit.partition(".dir/")[2] for unit in compiled if unit != PROBE}


def test_a_second_build_does_nothing(toy: Toy) -> None:
    first = toy.build().built
    assert first["fresh"]
    assert len(first["compiled"]) == 5 + 5 + 1 + len(TOOLS) + 1
    log = next((toy.cache / "logs").glob("*.log"))
    before = log.stat().st_mtime_ns, toy.wheels()[0].stat().st_mtime_ns
    second = toy.build().built
    assert not second["fresh"]
    assert (second["steps"], second["compiled"]) == (0, [])
    assert second["sha256"] == first["sha256"]
    assert (log.stat().st_mtime_ns, toy.wheels()[0].stat().st_mtime_ns) == before


def test_a_removed_wheel_comes_back_without_a_compiler(toy: Toy) -> None:
    first = toy.build().built
    toy.wheels()[0].unlink()
    second = toy.build().built
    assert (second["fresh"], second["steps"], second["sha256"]) == (False, 0, first["sha256"])
    assert toy.wheels()


def test_a_line_in_a_patch_compiles_only_what_includes_it(toy: Toy) -> None:
    toy.patch(("src/part3.cpp", "value + 3", "value + 33"))
    whole = toy.build().built
    assert len(units(whole)) > 10
    toy.patch(("src/part3.cpp", "value + 3", "value + 34"))
    assert units(toy.build().built) == {"src/part3.cpp"}
    # A header: those that include it, and the file that is as upstream has it again.
    toy.patch(("src/parts.h", "value * 3", "value * 5"))
    assert units(toy.build().built) == {"src/part1.cpp", "src/part2.cpp", "src/part3.cpp"}


def test_a_patch_that_changes_nothing_that_is_compiled_compiles_nothing(toy: Toy) -> None:
    toy.patch(("src/part3.cpp", "value + 3", "value + 33"))
    toy.build()
    toy.patch(("src/part3.cpp", "value + 3", "value + 33"), ("LICENSE", "MIT", "M.I.T."))
    again = toy.build().built
    assert again["fresh"]
    assert units(again) == set()


def test_another_variant_gets_what_does_not_depend_on_it_from_ccache(toy: Toy) -> None:
    # Four of the five tools are the same compile as the first, if that has ended when they begin.
    first = toy.build("--with-ccache", "--jobs", "1").built
    assert first["ccache"] == {"hits": 4, "misses": len(first["compiled"]) - 4}
    second = toy.build("--with-ccache", variant="avx2").built
    assert len(second["compiled"]) == len(first["compiled"])
    # The two units of the CPU library and the probe; nothing else.
    assert second["ccache"] == {"hits": len(second["compiled"]) - 3, "misses": 3}


def test_the_number_of_jobs_is_no_reason_to_compile_again(toy: Toy) -> None:
    toy.patch(("src/part4.cpp", "value + 4", "value + 44"))
    toy.build("--jobs", "1")
    toy.patch(("src/part4.cpp", "value + 4", "value + 45"))
    assert units(toy.build("--jobs", "2").built) == {"src/part4.cpp"}
