from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from forkyard.cache import Cache
from forkyard.console import Silent
from forkyard.errors import NetworkError, RecipeError, SourceError
from forkyard.gitstore import Author, Store, blob_id
from forkyard.recipes import Recipe, load_recipe
from forkyard.sources import obtain, recorded

FILES: dict[str, Any] = {
    "include/llama.h": b"int x;\n",
    "run.sh": ("100755", b"#!/bin/sh\n"),
    "link": ("120000", b"run.sh"),
    ".gitattributes": b"* text eol=crlf\n",
    "dos.txt": b"a\r\n",
    "lost/absent.txt": b"not in the package\n",
}
ABSENT = "lost/absent.txt"
Sdist = Callable[..., Path]


class Told(Silent):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture
def clone(tmp_path: Path) -> Store:
    made = Store(tmp_path / "clone")
    made.ensure()
    made.allow_any_fetch()
    return made


@pytest.fixture
def pin(clone: Store, forge_of: Any) -> tuple[str, str]:
    """Commit and tree of the pin."""
    tree = forge_of(clone).tree(FILES)
    return clone.commit(tree, None, Author("a", "a@b", "2026-01-05T12:00:00Z"), b"pin\n"), tree


@pytest.fixture
def recipe(project_root: Path, pin: tuple[str, str], clone: Store) -> Callable[..., Recipe]:
    """The recipe with the given sources; without any, the clone."""

    def make(*sources: str, tree: str | None = None, date: str = "2026-01-05") -> Recipe:
        path = project_root / "recipes" / "mine.toml"
        text = path.read_text()
        head, rest = text.split("[[sources]]", 1)
        listed = sources or (f'kind = "local"\npath = "{clone.path}"',)
        head = head.split("[pin]")[0] + (
            f'[pin]\ncommit = "{pin[0]}"\ntree = "{tree or pin[1]}"\ndate = "{date}"\nbuild-number = 7\n\n'
        )
        body = "".join(f"[[sources]]\n{source}\n" for source in listed)
        path.write_text(head + body + "[build]" + rest.split("[build]", 1)[1])
        return load_recipe("mine", project_root)

    return make


@pytest.fixture
def sdist(tmp_path: Path) -> Sdist:
    """A source archive with the pin's files in ``vendor/engine``, less the absent one."""

    def make(name: str = "p-1.tar.gz", *, changes: Mapping[str, bytes] | None = None) -> Path:
        path = tmp_path / name
        with tarfile.open(path, "w:gz") as tar:
            for file, value in {**FILES, **(changes or {})}.items():
                if file == ABSENT and file not in (changes or {}):
                    continue
                mode, data = value if isinstance(value, tuple) else ("100644", value)
                info = tarfile.TarInfo(f"p-1/vendor/engine/{file}")
                if mode == "120000":
                    info.type, info.linkname = tarfile.SYMTYPE, data.decode()
                    tar.addfile(info)
                    continue
                info.size, info.mode = len(data), 0o755 if mode == "100755" else 0o644
                tar.addfile(info, io.BytesIO(data))
        return path

    return make


@pytest.fixture
def folder_source(project_root: Path) -> Callable[[Path], str]:
    """The text of a registry source that names an archive, with its listing of what it lacks."""

    def make(archive: Path) -> str:
        listing = f"100644\tblob\t{blob_id(FILES[ABSENT])}\t{ABSENT}\n"
        (project_root / "recipes" / "mine.tsv").write_text(listing)
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        return (
            f'kind = "registry"\nproject = "p"\nversion = "1"\nsha256 = "{digest}"\n'
            'folder = "vendor/engine"\nabsent = "mine.tsv"'
        )

    return make


def test_a_clone_delivers_the_pin(recipe: Any, cache: Cache, pin: tuple[str, str]) -> None:
    found = obtain(recipe(), cache, Silent())
    assert (found.commit, found.tree, found.date, found.build_number) == (*pin, "2026-01-05", 7)
    assert (found.kind, found.absent) == ("local", ())


def test_what_is_recorded_needs_no_source_any_more(recipe: Any, cache: Cache, clone: Store) -> None:
    made = recipe()
    assert recorded(made, cache) is None
    found = obtain(made, cache, Silent())
    clone.path.rename(clone.path.with_name("gone"))
    assert recorded(made, cache) == found
    assert obtain(made, cache, Silent(), offline=True) == found


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"absent": 3}', "\0"])
def test_a_damaged_record_is_made_again(recipe: Any, cache: Cache, text: str) -> None:
    made = recipe()
    found = obtain(made, cache, Silent())
    (record,) = (cache.store("llama.cpp") / "forkyard-pins").glob("*.json")
    record.write_text(text)
    assert recorded(made, cache) is None
    assert obtain(made, cache, Silent()) == found


def test_another_tree_or_date_is_refused_with_both(recipe: Any, cache: Cache, pin: tuple[str, str]) -> None:
    with pytest.raises(SourceError) as caught:
        obtain(recipe(tree="3" * 40), cache, Silent())
    assert "3" * 40 in str(caught.value.why)
    with pytest.raises(SourceError) as caught:
        obtain(recipe(date="2026-01-06"), cache, Silent(), source="local")
    assert "2026-01-06" in str(caught.value.why)
    assert "2026-01-05" in str(caught.value.why)


def test_the_next_source_is_tried_and_a_wrong_one_is_not_passed_over_in_silence(
    recipe: Any, cache: Cache, clone: Store, tmp_path: Path
) -> None:
    blob = blob_id(FILES["dos.txt"])
    bad = Store(tmp_path / "bad")
    bad.ensure()
    bad.fetch(str(clone.path), recipe().pin.commit)
    bad.allow_any_fetch()
    for pack in (bad.path / "objects" / "pack").glob("*.pack"):
        data = bytearray(pack.read_bytes())
        data[len(data) // 2] ^= 1
        pack.chmod(0o644)
        pack.write_bytes(data)
    told = Told()
    made = recipe(
        f'kind = "local"\npath = "{tmp_path}/nowhere"',
        f'kind = "local"\npath = "{bad.path}"',
        f'kind = "local"\npath = "{clone.path}"',
    )
    found = obtain(made, cache, told)
    assert found.location == str(clone.path)
    assert Store(cache.store("llama.cpp")).has(blob, "blob")
    assert any("damaged" in text or "did not deliver" in text for text in told.warnings) or told.warnings == []


def test_no_source_left_names_every_one(recipe: Any, cache: Cache, tmp_path: Path) -> None:
    made = recipe(f'kind = "local"\npath = "{tmp_path}/a"', f'kind = "local"\npath = "{tmp_path}/b"')
    with pytest.raises(NetworkError) as caught:
        obtain(made, cache, Silent())
    assert f"{tmp_path}/a" in str(caught.value.why)
    assert f"{tmp_path}/b" in str(caught.value.why)


def test_a_folder_is_completed_by_its_listing_and_proved_by_its_tree(
    recipe: Any, cache: Cache, sdist: Sdist, folder_source: Any, pin: tuple[str, str]
) -> None:
    archive = sdist()
    made = recipe(folder_source(archive))
    found = obtain(made, cache, Silent(), source=str(archive))
    assert (found.commit, found.tree, found.kind, found.absent) == (*pin, "registry", (ABSENT,))
    assert (cache.downloads / f"{hashlib.sha256(archive.read_bytes()).hexdigest()}.tar.gz").exists()
    assert obtain(made, cache, Silent(), offline=True) == found


def test_a_complete_source_after_a_partial_one_completes_it(
    recipe: Any, cache: Cache, sdist: Sdist, folder_source: Any, clone: Store
) -> None:
    archive = sdist()
    made = recipe(folder_source(archive), f'kind = "local"\npath = "{clone.path}"')
    assert obtain(made, cache, Silent(), source=str(archive)).absent == (ABSENT,)
    assert obtain(made, cache, Silent(), source="local").absent == ()
    assert obtain(made, cache, Silent()).absent == ()


CHANGED = {
    "one byte": {"dos.txt": b"b\r\n"},
    "line end": {"dos.txt": b"a\n"},
    "a file more": {"stray": b""},
    "mode": {"run.sh": b"#!/bin/sh\n"},
    "link": {"link": b"run.sh"},
}


@pytest.mark.parametrize("change", CHANGED)
@pytest.mark.parametrize("known", [False, True])
def test_a_folder_that_differs_in_anything_is_refused_with_both_ids(
    recipe: Any, cache: Cache, sdist: Sdist, folder_source: Any, pin: tuple[str, str], change: str, known: bool
) -> None:
    archive = sdist(changes=CHANGED[change])
    if known:
        # With the pin's listing at hand, the file itself can be named.
        obtain(recipe(), cache, Silent())
    made = recipe(folder_source(archive))
    with pytest.raises(SourceError) as caught:
        obtain(made, cache, Silent(), source=str(archive))
    why = str(caught.value.why)
    assert f"expected tree {pin[1]}" in why
    assert "found " in why
    if known:
        (path,) = CHANGED[change]
        assert path in why
        if change in ("one byte", "line end"):
            assert blob_id(CHANGED[change][path]) in why
            assert blob_id(FILES[path]) in why


def test_an_archive_no_source_names(recipe: Any, cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "x.tar.gz").write_bytes(b"x")
    with pytest.raises(SourceError) as caught:
        obtain(recipe(), cache, Silent(), source=str(tmp_path / "x.tar.gz"))
    assert hashlib.sha256(b"x").hexdigest() in str(caught.value.why)


def test_a_kind_the_recipe_does_not_have(recipe: Any, cache: Cache) -> None:
    with pytest.raises(RecipeError, match="no source of kind 'git'"):
        obtain(recipe(), cache, Silent(), source="git")


def test_offline_touches_no_network(recipe: Any, cache: Cache, monkeypatch: pytest.MonkeyPatch, sdist: Sdist) -> None:
    def network(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked for")

    monkeypatch.setattr("forkyard.sources.obtaining.fetch_package", network)
    monkeypatch.setattr(Store, "fetch", network)
    made = recipe(
        'kind = "git"\nurl = "https://git.example/x"',
        f'kind = "registry"\nproject = "p"\nversion = "1"\nsha256 = "{"4" * 64}"\nstore = ".git"',
    )
    with pytest.raises(NetworkError) as caught:
        obtain(made, cache, Silent(), offline=True)
    assert str(caught.value.why).count("offline") == 2
    assert "--offline" in str(caught.value.next_step)


def test_secrets_in_a_source_are_not_shown_nor_kept(recipe: Any, cache: Cache) -> None:
    made = recipe('kind = "git"\nurl = "https://me:hunter2@127.0.0.1:1/x"')
    with pytest.raises(NetworkError) as caught:
        obtain(made, cache, Silent())
    assert "hunter2" not in caught.value.describe()
