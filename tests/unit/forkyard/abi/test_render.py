from __future__ import annotations

import ctypes
import json
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forkyard.abi import Abi, AbiError, generate, render_ctypes, render_probe, write_abi
from forkyard.abi.model import layout_rows
from forkyard.abi.write import check_module

ENGINE = """
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#define ANSWER 42
struct model;
struct vocab;
enum mode { MODE_NONE = 0, MODE_ROW = 2, MODE_AUTO = -1 };
typedef bool (*progress)(float done, void * user);
struct inner { char tag; double weight[3]; };
struct params {
    struct inner inner;
    enum mode mode;
    const char * name;
    progress on_progress;
    union { int64_t i; bool b; char s[24]; };
    struct { uint8_t r, g; } colour;
    bool last;
};
typedef struct { uint16_t bits; } half_t;
struct model * load(const char * path, struct params params);
struct params defaults(void);
int32_t use_model(const struct model * model);
int32_t use_vocab(const struct vocab * vocab, char * out, int32_t size);
int32_t sum(const int32_t * values, size_t n);
bool notify(progress callback, float value);
void nowhere_to_be_found(void);
void dump(FILE * file);
"""

SOURCE = """
#include <stdlib.h>
#include <string.h>
struct model { int x; };
struct model * load(const char * path, struct params p) {
    struct model * m = malloc(sizeof *m);
    m->x = (int) strlen(path) + (int) p.i + p.mode;
    return m;
}
struct params defaults(void) {
    struct params p;
    memset(&p, 0, sizeof p);
    p.mode = MODE_ROW; p.inner.weight[2] = 2.5; p.i = 7; p.name = "default"; p.last = true;
    return p;
}
int32_t use_model(const struct model * model) { return model->x; }
int32_t use_vocab(const struct vocab * vocab, char * out, int32_t size) {
    (void) vocab;
    memset(out, 'v', size);
    return 1;
}
int32_t sum(const int32_t * values, size_t n) { int32_t s = 0; while (n) s += values[--n]; return s; }
bool notify(progress callback, float value) { return callback(value, NULL); }
void dump(FILE * file) { (void) file; }
"""


def load_module(abi: Abi) -> ModuleType:
    module = ModuleType("generated")
    exec(render_ctypes(abi), module.__dict__)
    return module


def compile_library(folder: Path, source: str, name: str, *flags: str) -> Path:
    (folder / f"{name}.c").write_text(source)
    library = folder / f"lib{name}.so"
    command = ["cc", "-std=c11", "-Wall", "-Werror", "-fPIC", "-shared", f"-I{folder}", *flags]
    subprocess.run([*command, "-o", str(library), str(folder / f"{name}.c")], check=True, timeout=1800)
    return library


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> tuple[Abi, ModuleType, ctypes.CDLL, ctypes.CDLL]:
    """A tiny engine of our own: its description, generated module, library and probe."""
    folder = tmp_path_factory.mktemp("engine")
    (folder / "engine.h").write_text(ENGINE)
    abi = generate([folder / "engine.h"], [], [])
    library = compile_library(folder, f'#include "engine.h"\n{SOURCE}', "engine")
    keys = (f'-DFORKYARD_BUILD_KEY="{"ab" * 32}"', f'-DFORKYARD_ABI_SHA256="{abi.sha256}"')
    probe = compile_library(folder, render_probe(abi), "probe", *keys)
    return abi, load_module(abi), ctypes.CDLL(str(library)), ctypes.CDLL(str(probe))


def test_calls_pass_structs_by_value_both_ways(engine):
    _, module, library, _ = engine
    api = module.bind(library)
    params = api.defaults()
    assert (params.mode, params.inner.weight[2], params.i, params.name, params.last) == (2, 2.5, 7, b"default", True)
    params.i = 100
    assert api.use_model(api.load(b"path", params)) == 4 + 100 + 2


def test_a_pointer_of_another_type_is_refused(engine):
    _, module, library, _ = engine
    api = module.bind(library)
    model = api.load(b"", api.defaults())
    with pytest.raises(ctypes.ArgumentError):
        api.use_vocab(model, ctypes.create_string_buffer(4), 4)
    with pytest.raises(ctypes.ArgumentError):
        api.use_model(1234)


def test_buffers_are_written(engine):
    _, module, library, _ = engine
    api = module.bind(library)
    buffer = ctypes.create_string_buffer(4)
    assert api.use_vocab(None, buffer, 4) == 1
    assert buffer.raw == b"vvvv"
    with pytest.raises(ctypes.ArgumentError):
        api.use_vocab(None, "text", 4)


def test_callbacks_and_arrays(engine):
    _, module, library, _ = engine
    api = module.bind(library)
    seen = []
    assert api.notify(module.progress(lambda done, _user: bool(seen.append(done)) or True), 0.5) is True
    assert seen == [0.5]
    assert api.sum((ctypes.c_int32 * 3)(1, 2, 3), 3) == 6


def test_what_no_library_exports_is_listed_and_explained(engine):
    _, module, library, _ = engine
    api = module.bind(library)
    assert api.missing == ("nowhere_to_be_found",)
    with pytest.raises(AttributeError, match="no library of this payload exports it"):
        _ = api.nowhere_to_be_found
    with pytest.raises(AttributeError, match="is not a function of this engine"):
        _ = api.never_declared


def test_two_bindings_of_one_library_do_not_share_types(engine):
    _, module, library, _ = engine
    first, second = module.bind(library), module.bind(library)
    assert first.sum is not second.sum


def test_constants_and_enums(engine):
    _, module, _, _ = engine
    assert module.ANSWER == 42
    assert module.MODE_AUTO == -1
    assert module.ENUMS == {"mode": {"MODE_NONE": 0, "MODE_ROW": 2, "MODE_AUTO": -1}}


def test_the_probe_agrees_with_the_headers_and_with_ctypes(engine):
    abi, module, _, probe = engine
    values = ctypes.POINTER(ctypes.c_uint64)()
    count = probe.forkyard_probe_layout(ctypes.byref(values))
    expected = tuple(value for _, value in module.PROBE_LAYOUT)
    assert tuple(values[:count]) == expected == module.ctypes_layout()
    assert [row.label for row in layout_rows(abi)] == [label for label, _ in module.PROBE_LAYOUT]
    labels = dict(module.PROBE_LAYOUT)
    assert labels["offsetof(struct params, s)"] == labels["offsetof(struct params, i)"]
    assert labels["sizeof(half_t)"] == 2


def test_the_probe_tells_its_build_key_and_abi(engine):
    abi, module, _, probe = engine
    for function in (probe.forkyard_probe_build_key, probe.forkyard_probe_abi_sha256):
        function.restype = ctypes.c_char_p
    assert probe.forkyard_probe_build_key() == b"ab" * 32
    assert probe.forkyard_probe_abi_sha256() == abi.sha256.encode() == module.ABI_SHA256.encode()


def test_the_probe_leaves_out_headers_that_are_not_c(describe, tmp_path: Path):
    abi = describe(
        first="enum level { LOW }; struct a { int x; };",
        second="struct b { level l; };",
        third="struct c { int y; };\nvoid take(json & j);\n",
    )
    source = render_probe(abi)
    assert 'typedef enum level level;\n#include "second.h"' in source
    assert "third.h" not in source
    labels = [row.label for row in layout_rows(abi)]
    assert "sizeof(struct b)" in labels
    assert "sizeof(struct c)" not in labels
    keys = ('-DFORKYARD_BUILD_KEY="k"', '-DFORKYARD_ABI_SHA256="s"', f"-I{tmp_path / 'include'}")
    compile_library(tmp_path, source, "probe", *keys)
    assert load_module(abi).c.y.offset == 0


def test_records_may_point_at_each_other(describe):
    module = load_module(
        describe(engine="struct b; struct a { struct b * b; }; struct b { struct a a; struct a * up; };")
    )
    assert ctypes.sizeof(module.b) == 16


@pytest.mark.parametrize(
    "text",
    [
        "struct packed { char a; int b; } __attribute__((packed));",
        "struct wide { char a; } __attribute__((aligned(64)));",
    ],
)
def test_layouts_ctypes_cannot_make_are_refused(describe, text: str):
    abi = describe(engine=text)
    with pytest.raises(AbiError, match="ctypes cannot lay out struct"):
        check_module(abi, render_ctypes(abi))


def test_write_abi_writes_three_files_and_touches_nothing_the_second_time(tmp_path: Path):
    (tmp_path / "e.h").write_text("struct s { int x; }; int f(struct s s);\n")
    out = tmp_path / "out"
    sha256 = write_abi(out, headers=[tmp_path / "e.h"])
    assert sorted(path.name for path in out.iterdir()) == ["_abi.py", "abi.json", "probe.c"]
    document = json.loads((out / "abi.json").read_text())
    assert document["schema"] == 1
    assert [record["name"] for record in document["records"]] == ["s"]
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert write_abi(out, headers=[tmp_path / "e.h"]) == sha256
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    assert str(tmp_path) not in "".join(path.read_text() for path in out.iterdir())


_SCALARS = ["bool", "char", "int8_t", "uint16_t", "int32_t", "uint64_t", "float", "double", "void *", "const char *"]
_MEMBERS = st.lists(
    st.tuples(st.sampled_from(_SCALARS), st.sampled_from(["", "[1]", "[3]", "[7]"])), min_size=1, max_size=6
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(["struct", "union"]), _MEMBERS, st.booleans()), min_size=1, max_size=4))
def test_ctypes_lays_out_any_plain_record_as_the_compiler_does(tmp_path: Path, records):
    lines = ["#include <stdbool.h>", "#include <stdint.h>"]
    for number, (kind, members, holds_previous) in enumerate(records):
        body = "".join(f"{ctype} m{index}{array}; " for index, (ctype, array) in enumerate(members))
        if holds_previous and number:
            body += f"{records[number - 1][0]} r{number - 1} held; "
        lines.append(f"{kind} r{number} {{ {body}}};")
    (tmp_path / "random.h").write_text("\n".join(lines))
    abi = generate([tmp_path / "random.h"], [], [])
    source = render_ctypes(abi)
    check_module(abi, source)
    assert load_module(abi).ctypes_layout() == tuple(row.expected for row in layout_rows(abi))
