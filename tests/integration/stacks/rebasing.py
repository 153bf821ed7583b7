"""What the tests of a rebase have in common: a toy whose engine has moved on, and a series that conflicts with it."""

from __future__ import annotations

from pathlib import Path

from ..toy import Answer, Toy, git


def move_on(toy: Toy, *changes: tuple[str, str, str], subject: str = "move on") -> str:
    """A commit of upstream's on its main branch, which no recipe pins; returns its id."""
    for path, old, new in changes:
        target = toy.engine / path
        text = target.read_text()
        assert old in text
        target.write_text(text.replace(old, new, 1))
    git(toy.engine, "commit", "--quiet", "--all", "--allow-empty", "--message", subject)
    return toy.commit


def clean_hop(toy: Toy) -> tuple[str, str]:
    """A series of two patches, and an upstream commit it goes to without conflicts; old and new commit."""
    old = toy.commit
    toy.stack(
        "changes",
        {
            "one": [("src/part1.cpp", "+ 1;", "+ 11;")],
            "two": [("src/part3.cpp", "value + 3", "value + 33"), ("src/new.c", "", "int mine;\n")],
        },
    )
    return old, move_on(toy, ("src/part4.cpp", "value + 4", "value + 44"))


def hard_hop(toy: Toy) -> tuple[str, str]:
    """A series of three patches of which the first and the last conflict with where upstream went."""
    old = toy.commit
    toy.stack(
        "changes",
        {
            "one": [("src/part1.cpp", "+ 1;", "+ 11;")],
            "two": [("src/part3.cpp", "value + 3", "value + 33")],
            "three": [("src/part2.cpp", "+ 2;", "+ 22;")],
        },
    )
    new = move_on(toy, ("src/part1.cpp", "+ 1;", "+ 111;"), subject="Change part 1")
    new = move_on(toy, ("src/part2.cpp", "+ 2;", "+ 222;"), subject="Change part 2")
    return old, new


def project_files(toy: Toy) -> dict[str, bytes]:
    """Every file of the project that a rebase may write."""
    return {
        path.relative_to(toy.root).as_posix(): path.read_bytes()
        for name in ("recipes", "patches")
        for path in sorted((toy.root / name).rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def worktree(toy: Toy) -> Path:
    """Where conflicts are shown."""
    return toy.root / "work" / "rebase-toy"


def resolve(toy: Toy, number: int) -> None:
    """Resolve the conflict in a part as the person meant it."""
    path = worktree(toy) / "src" / f"part{number}.cpp"
    lines, kept = path.read_text().splitlines(), []
    state = ""
    for line in lines:
        if line[:27] in ("<" * 27, "|" * 27, "=" * 27, ">" * 27):
            state = {"<": "upstream", "|": "before", "=": "patch", ">": ""}[line[0]]
        elif state in ("", "patch"):
            kept.append(line)
    path.write_text("\n".join(kept) + "\n")


def rebase(toy: Toy, *words: str) -> Answer:
    """Run ``forkyard rebase toy``."""
    return toy.run("rebase", "toy", *words)
