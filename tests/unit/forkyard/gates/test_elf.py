from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forkyard.gates.elf import DamagedElfError, is_elf, read_elf

MakeElf = Callable[..., bytes]


def test_everything_a_gate_asks_for_is_read(make_elf: MakeElf) -> None:
    data = make_elf(
        ["avx2"],
        soname="liba.so",
        needed=["libb.so", "libc.so.6"],
        runpath="$ORIGIN",
        rpath="/x",
        versions={"libc.so.6": ["GLIBC_2.2.5", "GLIBC_2.34"], "libb.so": ["B_1"]},
        interpreter="/lib64/ld",
        executable_stack=True,
    )
    elf = read_elf(data)
    assert is_elf(data)
    assert (elf.machine, elf.bits) == ("EM_X86_64", 64)
    assert elf.soname == "liba.so"
    assert elf.needed == ("libb.so", "libc.so.6")
    assert (elf.runpath, elf.rpath, elf.interpreter) == ("$ORIGIN", "/x", "/lib64/ld")
    assert elf.version_needs == {
        "libc.so.6": frozenset({"GLIBC_2.2.5", "GLIBC_2.34"}),
        "libb.so": frozenset({"B_1"}),
    }
    assert elf.executable_stack
    assert [code for _, code in elf.code] == [bytes.fromhex("c5f5fec2c3")]


def test_a_file_with_nothing_in_it_is_read(make_elf: MakeElf) -> None:
    elf = read_elf(make_elf())
    assert (elf.soname, elf.runpath, elf.rpath, elf.interpreter) == (None, None, None, None)
    assert elf.needed == ()
    assert elf.version_needs == {}
    assert not elf.executable_stack


def test_text_is_no_elf_file() -> None:
    assert not is_elf(b"#!/bin/sh")
    with pytest.raises(DamagedElfError):
        read_elf(b"#!/bin/sh")


@settings(deadline=None, max_examples=400)
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused(make_elf: MakeElf, data: st.DataObject) -> None:
    whole = bytearray(
        make_elf(["avx2"], soname="liba.so", needed=["libc.so.6"], versions={"libc.so.6": ["GLIBC_2.34"]})
    )
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(4, len(whole) - 1))
        whole[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(4, len(whole)))
    with contextlib.suppress(DamagedElfError):
        read_elf(bytes(whole[:cut]))
