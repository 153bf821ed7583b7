from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from forkyard.stacks.listing import file_name, read_listing, write_listing

TEXT = "# top\n\n# about a\na.patch\nb.patch  # why b\n# about c\n\nc.patch\n# end\n"


def names_of(text: str) -> list[str]:
    return [item.name for item in read_listing(text)[0]]


def test_names_and_what_stands_above_them() -> None:
    items, tail = read_listing(TEXT)
    assert [(item.name, item.line, item.above) for item in items] == [
        ("a.patch", "a.patch", ("# top", "", "# about a")),
        ("b.patch", "b.patch  # why b", ()),
        ("c.patch", "c.patch", ("# about c", "")),
    ]
    assert tail == ("# end",)


def test_the_same_names_are_the_same_text() -> None:
    for text in (TEXT, "", "\n\n", "# nothing\n", "a.patch", "  a.patch  \r\n"):
        assert write_listing(text, names_of(text)) == text


def test_new_ones_go_where_they_belong() -> None:
    assert write_listing(TEXT, ["a.patch", "new.patch", "b.patch", "c.patch"]) == TEXT.replace(
        "b.patch", "new.patch\nb.patch", 1
    )
    assert write_listing("# end\n", ["a.patch"]) == "a.patch\n# end\n"


def test_comments_move_with_their_patch() -> None:
    assert write_listing(TEXT, ["c.patch", "a.patch", "b.patch"]) == (
        "# about c\n\nc.patch\n# top\n\n# about a\na.patch\nb.patch  # why b\n# end\n"
    )


def test_comments_of_a_patch_that_is_gone_stay() -> None:
    assert write_listing(TEXT, ["b.patch", "c.patch"]) == (
        "# top\n\n# about a\nb.patch  # why b\n# about c\n\nc.patch\n# end\n"
    )
    assert write_listing(TEXT, []) == "# top\n\n# about a\n# about c\n\n# end\n"


def test_a_renamed_patch_keeps_its_place_and_comment() -> None:
    found = write_listing(TEXT, ["a.patch", "b.patch", "see.patch"], {"see.patch": "c.patch"})
    assert found == TEXT.replace("\nc.patch", "\nsee.patch")


lines = st.sampled_from(["", "# one", "# two", "a.patch", "b.patch # b", "c.patch", "  # three"])
wanted = st.lists(st.sampled_from(["a.patch", "b.patch", "c.patch", "d.patch"]), unique=True)


@given(st.lists(lines, max_size=9, unique_by=lambda line: line if ".patch" in line else object()), wanted)
def test_any_listing_names_what_it_should_and_loses_no_comment(found: list[str], names: list[str]) -> None:
    text = "".join(f"{line}\n" for line in found)
    written = write_listing(text, names)
    assert names_of(written) == names
    assert sorted(line for line in written.splitlines() if line.strip().startswith("#")) == sorted(
        line for line in found if line.strip().startswith("#")
    )
    assert write_listing(written, names) == written


def test_file_names() -> None:
    assert file_name("kv-cache : do it, please!", ()) == "kv-cache-do-it-please.patch"
    assert file_name("Gr\u00fc\u00dfe an \u6f22", ()) == "grue-an.patch"
    assert file_name("\u6f22", ()) == "patch.patch"
    assert file_name("0001-fix", ()) == "fix.patch"
    assert file_name("x", {"x.patch", "x-2.patch"}) == "x-3.patch"
    assert file_name("../../etc/passwd", ()) == "etc-passwd.patch"


@given(st.text(max_size=200), st.sets(st.sampled_from(["a.patch", "patch.patch", "a-2.patch"])))
def test_any_subject_gives_a_plain_name_nobody_has(subject: str, taken: set[str]) -> None:
    name = file_name(subject, taken)
    assert name not in taken
    assert name.endswith(".patch")
    assert len(name) < 80
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-.")
    assert not name.startswith((".", "-"))
