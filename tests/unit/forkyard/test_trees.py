from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from forkyard.cache import Cache
from forkyard.console import Silent
from forkyard.errors import PatchError
from forkyard.gitstore import Store
from forkyard.recipes import load_recipe
from forkyard.sources import Obtained
from forkyard.stacks import Stack, apply_stacks, load_stacks
from forkyard.trees import Checkout, checked_out, headers_of, pin_label

FILES = {"common/a.cpp": b"1\n2\n3\n", "absent": b"never delivered\n", "x.h": b"x\n"}
PATCHED = {**FILES, "common/a.cpp": b"1\ntwo\n3\n"}
MADE = "common/build-info.cpp"
Open = Callable[..., AbstractContextManager[Checkout]]


@pytest.fixture
def opened(project_root: Path, cache: Cache, forge_of: Any, add_stack: Callable[..., Path]) -> Open:
    """Check out the engine, patched or not; every call is like another forkyard's."""
    store = Store(cache.store("llama.cpp"))
    store.ensure()
    forge = forge_of(store)
    tree = forge.tree(FILES)
    add_stack(project_root, "part", patches={"a.patch": forge.patch(FILES, PATCHED)})
    recipe = load_recipe("mine", project_root)
    obtained = Obtained(recipe.pin.commit, tree, "2026-01-05", 7, "local", "x", ("absent",))

    def make(*names: str, toolchain: str = "t", reporter: Any = None) -> AbstractContextManager[Checkout]:
        stacks = load_stacks(project_root, names, "llama.cpp")
        return checked_out(recipe, "mine", obtained, stacks, toolchain, cache, reporter or Silent())

    return make


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def delivered(of: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in of.items() if name != "absent"}


def test_the_folder_holds_the_patched_tree_less_what_was_not_delivered(opened: Open) -> None:
    with opened("part") as checkout:
        assert files(checkout.folder) == delivered(PATCHED)
        assert checkout.tree != checkout.patched.tree
    with opened() as checkout:
        assert files(checkout.folder) == delivered(FILES)


WITH_HEADER = b"part : more\n\nWhy.\n\nUpstream-Status: Pending\nAdds-Files: api.h -> include/api.h\n"
Applied = Callable[..., tuple[Stack, list[str]]]


@pytest.fixture
def headers(project_root: Path, cache: Cache, forge_of: Any, add_stack: Callable[..., Path]) -> Applied:
    """The headers of a stack whose second patch adds one: of the first ``count`` patches, for what stack.toml names."""
    store = Store(cache.store("llama.cpp"))
    store.ensure()
    forge = forge_of(store)
    tree = forge.tree(FILES)
    more = {**PATCHED, "x.h": b"y\n"}
    patches = {"a.patch": forge.patch(FILES, PATCHED), "b.patch": forge.patch(PATCHED, more, WITH_HEADER)}
    folder = add_stack(project_root, "part", patches=patches, files={"api.h": b"int api(void);\n"})

    def make(named: str, count: int | None = None) -> tuple[Stack, list[str]]:
        with (folder / "stack.toml").open("a") as about:
            about.write(f"headers = {named}\n")
        (stack,) = load_stacks(project_root, ["part"], "llama.cpp")
        part = stack if count is None else stack.first(count)
        return part, headers_of(part, apply_stacks(store, "llama.cpp", "1" * 40, "2026-01-05", tree, [part]))

    return make


@pytest.mark.parametrize(
    ("named", "count", "found"),
    [
        ('["include/api.h"]', None, ["include/api.h"]),
        ('["include/api.h"]', 2, ["include/api.h"]),
        ('["include/api.h"]', 1, []),
        ("[]", None, []),
    ],
)
def test_the_headers_of_a_stack_are_those_its_patches_added(
    headers: Applied, named: str, count: int | None, found: list[str]
) -> None:
    assert headers(named, count)[1] == found


@pytest.mark.parametrize("named", ["api.h", "x.h", "include/apis.h"])
def test_a_header_that_the_whole_series_does_not_add(headers: Applied, named: str) -> None:
    with pytest.raises(PatchError, match=rf"(?s)no patch of stack part adds its header {named}.*adds: include/api\.h"):
        headers(f'["{named}"]')


def test_files_a_build_wrote_live_as_long_as_their_origin(opened: Open) -> None:
    with opened() as checkout:
        (checkout.folder / MADE).write_text("made")
        (checkout.folder / "stray.o").write_text("x")
    with opened() as checkout:
        assert (checkout.folder / MADE).exists()
    with opened(toolchain="another") as checkout:
        assert files(checkout.folder) == delivered(FILES), "another compiler made it"
        (checkout.folder / MADE).write_text("made")
    with opened("part", toolchain="another") as checkout:
        assert files(checkout.folder) == delivered(PATCHED), "it names the commit"


def test_tampering_is_put_right(opened: Open) -> None:
    with opened() as checkout:
        folder = checkout.folder
    info = (folder / "x.h").stat()
    (folder / "x.h").write_bytes(b"y\n")
    os.utime(folder / "x.h", ns=(info.st_atime_ns, info.st_mtime_ns))
    with opened() as checkout:
        assert files(checkout.folder) == delivered(FILES)


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"tree": "x"}', "\0"])
def test_a_damaged_stamp_is_no_stamp(opened: Open, cache: Cache, text: str) -> None:
    with opened():
        pass
    (stamp,) = (cache.root / "trees").glob("*.stamp")
    stamp.write_text(text)
    with opened() as checkout:
        assert files(checkout.folder) == delivered(FILES)


def test_two_builds_of_one_tree_share_it(opened: Open) -> None:
    with opened("part") as one, opened("part") as two:
        assert one.folder == two.folder
        assert one.lock_fd != two.lock_fd


class Noting(Silent):
    def __init__(self) -> None:
        self.waiting = threading.Event()

    def note(self, text: str) -> None:
        self.waiting.set()


def test_one_that_needs_another_tree_waits_until_it_is_free(opened: Open) -> None:
    noting = Noting()
    seen: list[dict[str, bytes]] = []

    def other() -> None:
        with opened(reporter=noting) as checkout:
            seen.append(files(checkout.folder))

    thread = threading.Thread(target=other)
    with opened("part") as checkout:
        thread.start()
        assert noting.waiting.wait(30)
        assert files(checkout.folder) == delivered(PATCHED)
        assert seen == []
    thread.join(30)
    assert seen == [delivered(FILES)]


def test_the_label_says_whether_patches_are_on_it(project_root: Path, opened: Open) -> None:
    recipe = load_recipe("mine", project_root)
    assert pin_label(recipe, []) == "1" * 9
    assert pin_label(recipe, load_stacks(project_root, ["part"], "llama.cpp")) == "1" * 9 + "-forkyard"
