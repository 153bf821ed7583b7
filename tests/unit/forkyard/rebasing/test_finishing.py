"""The end of a rebase: proved on a copy, written as one change."""

from __future__ import annotations

from pathlib import Path

import pytest

from forkyard.errors import ForkyardError, PatchError, StorageError
from forkyard.rebasing import finishing
from forkyard.rebasing.session import Session
from forkyard.stacks.exporting import Exported

from .lab import Lab, numbered, text


@pytest.fixture
def hop(lab: Lab) -> list[str]:
    made = lab.history({"a.c": numbered()}, {"a.c": numbered(l20="new")})
    first = {"a.c": numbered(l5="mine")}
    lab.series(made[0], ("one", first), ("two", {**first, "ours.c": text("whole")}), whole_files=True)
    return made


def test_what_does_not_apply_exactly_is_never_written(
    lab: Lab, hop: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a fault in our own export does, the proof on a copy comes first."""
    real = finishing.export_commits

    def faulty(*args: object, **options: object) -> Exported:
        exported = real(*args, **options)  # type: ignore[arg-type]
        one = exported.patches[0]
        broken = type(one)(one.name, one.data.replace(b"+mine", b"+wine"), one.subject, one.commit, one.tree, one.adds)
        return Exported((broken, *exported.patches[1:]), exported.files, exported.notes)

    before = lab.snapshot()
    monkeypatch.setattr(finishing, "export_commits", faulty)
    with pytest.raises(PatchError, match="the rebased series does not apply exactly; nothing was written") as error:
        lab.session().start(hop[1])
    # It names the file of the project, not that of a copy which is gone.
    assert str(error.value.where).startswith(str(lab.root / "patches"))
    assert lab.snapshot() == before
    assert list((lab.cache.scratch).iterdir()) == []


def test_a_failing_write_changes_nothing(lab: Lab, hop: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> list[str]:
        msg = "could not put the changes aside"
        raise StorageError(msg)

    before = lab.snapshot()
    with monkeypatch.context() as patched, pytest.raises(StorageError):
        patched.setattr(finishing, "commit_changes", full)
        lab.session().start(hop[1])
    assert lab.snapshot() == before
    assert lab.session().start(hop[1]).finished is not None


def test_other_files_of_a_stack_are_left_alone(lab: Lab, hop: list[str]) -> None:
    folder = lab.root / "patches" / "part"
    (folder / "README.md").write_text("mine")
    series = folder / "llama.cpp" / "series"
    series.write_text("# first\none.patch\n\n# then\ntwo.patch  # why\n")
    lab.session().start(hop[1])
    assert (folder / "README.md").read_text() == "mine"
    assert series.read_text() == "# first\none.patch\n\n# then\ntwo.patch  # why\n"


def test_a_whole_file_that_another_engine_has_too_is_told_of(lab: Lab) -> None:
    made = lab.history({"a.c": numbered()}, {"a.c": numbered(), "ours.c": text("theirs")})
    lab.series(made[0], ("one", {"a.c": numbered(l2="x"), "ours.c": text("whole")}), whole_files=True)
    folder = lab.root / "patches" / "part"
    about = (folder / "stack.toml").read_text()
    (folder / "stack.toml").write_text(about.replace('["llama.cpp"]', '["llama.cpp", "ik_llama.cpp"]'))
    (folder / "ik_llama.cpp").mkdir()
    data = (folder / "llama.cpp" / "one.patch").read_bytes()
    (folder / "ik_llama.cpp" / "one.patch").write_bytes(data)
    (folder / "ik_llama.cpp" / "series").write_text("one.patch\n")
    tree = lab.session().start(made[1]).worktree
    assert tree is not None
    (tree / "ours.c").write_bytes(text("both"))
    done = lab.session().resume()
    assert done.finished is not None
    # The other engine's patch still adds it, so it stays.
    assert (folder / "src" / "ours.c").read_bytes() == text("whole")


def test_a_recipe_that_is_wrong_on_the_way(lab: Lab, hop: list[str], tmp_path: Path) -> None:
    session = lab.session()
    lab.recipe.write_text(lab.recipe.read_text() + "surprise = 1\n")
    with pytest.raises(ForkyardError, match="surprise"):
        session.start(hop[1])
    assert isinstance(session, Session)
