from __future__ import annotations

from pathlib import Path

import pytest
from clang import cindex

from forkyard.abi import AbiError, generate
from forkyard.abi.model import Array, Callback, EnumRef, Pointer, RecordRef, Scalar, Void

VOID = Void()
INT32 = Scalar("i32")


def test_functions_carry_names_types_and_deprecation(describe):
    abi = describe(
        engine="""
        #include <stdint.h>
        #include <stddef.h>
        #include <stdbool.h>
        struct model;
        int32_t count(const struct model * model, size_t limit, float);
        void gone(void) __attribute__((deprecated("use count")));
        """
    )
    count, gone = abi.functions
    assert count.name == "count"
    assert count.result == INT32
    assert [(p.name, p.type) for p in count.params] == [
        ("model", Pointer(RecordRef("model"), const=True)),
        ("limit", Scalar("u64")),
        ("", Scalar("f32")),
    ]
    assert not count.deprecated
    assert gone.deprecated
    assert gone.result == VOID
    assert gone.params == ()
    assert abi.opaque == ("model",)


def test_a_later_deprecation_of_the_same_function_counts(describe):
    abi = describe(engine="void f(void); void f(void) __attribute__((deprecated));")
    assert [function.deprecated for function in abi.functions] == [True]


def test_variadic_functions_are_marked(describe):
    abi = describe(engine="void log_it(const char * format, ...); void plain();")
    assert {function.name: function.variadic for function in abi.functions} == {"log_it": True, "plain": False}


def test_inline_functions_and_variables_are_skipped_with_a_reason(describe):
    abi = describe(
        engine="""
        static inline int half(int x) { return x / 2; }
        static int quarter(int x) { return x / 4; }
        inline int same(int x) { return x; }
        extern int counter;
        int real(int x);
        """
    )
    assert [function.name for function in abi.functions] == ["real"]
    assert {item.name: item.reason for item in abi.skipped} == {
        "half": "inline: no library exports it",
        "quarter": "inline: no library exports it",
        "same": "inline: no library exports it",
        "counter": "a variable, not a function",
    }


def test_a_function_with_an_inexpressible_type_is_skipped_with_a_reason(describe):
    abi = describe(engine="#include <stdarg.h>\nvoid v(const char * f, va_list list);\nlong double wide(void);\n")
    assert abi.functions == ()
    assert {item.name for item in abi.skipped} == {"v", "wide"}
    assert all("its signature has" in item.reason for item in abi.skipped)


def test_array_parameters_are_the_pointers_they_are_passed_as(describe):
    abi = describe(engine="void fill(float values[16], const int flags[]);")
    assert [param.type for param in abi.functions[0].params] == [Pointer(Scalar("f32")), Pointer(INT32, const=True)]


def test_structs_have_sizes_offsets_arrays_and_nested_records(describe):
    abi = describe(
        engine="""
        #include <stdint.h>
        struct point { double x; double y; };
        struct shape { char name[5]; struct point corners[2]; int8_t flag; };
        """
    )
    shape = abi.record("shape")
    assert (shape.kind, shape.spelling, shape.size, shape.align) == ("struct", "struct shape", 48, 8)
    assert [(f.name, f.offset, f.size) for f in shape.fields] == [("name", 0, 5), ("corners", 8, 32), ("flag", 40, 1)]
    assert shape.fields[1].type == Array(RecordRef("point"), 2)


def test_a_flexible_array_member_has_no_size(describe):
    abi = describe(engine="struct tail { int n; float data[]; };")
    assert abi.record("tail").size == 4
    assert abi.record("tail").fields[1].type == Array(Scalar("f32"), 0)


def test_anonymous_members_lend_their_names(describe):
    abi = describe(engine="struct value { int tag; union { long i; double d; char s[16]; }; };")
    value = abi.record("value")
    assert [(f.name, f.anonymous, f.offset) for f in value.fields] == [("tag", False, 0), ("anonymous1", True, 8)]
    union = abi.record("value__anonymous1")
    assert (union.kind, union.spelling, union.size) == ("union", "", 16)


def test_unnamed_records_and_enums_take_the_name_of_their_typedef(describe):
    abi = describe(
        engine="""
        typedef struct { unsigned short bits; } half_t;
        typedef enum { RED, BLUE = 7 } colour_t;
        struct palette { colour_t first; half_t weight; };
        """
    )
    assert abi.record("half_t").spelling == "half_t"
    assert [(e.name, e.values) for e in abi.enums] == [("colour_t", (("RED", 0), ("BLUE", 7)))]
    assert [f.type for f in abi.record("palette").fields] == [EnumRef("colour_t", "u32"), RecordRef("half_t")]


def test_enums_are_signed_only_when_a_value_is_negative(describe):
    abi = describe(engine="enum a { A = -1, B }; enum b { C, D = 0x7fffffff }; enum { LOOSE = 3 };")
    assert {enum.name: (enum.scalar, enum.values) for enum in abi.enums} == {
        "a": ("i32", (("A", -1), ("B", 0))),
        "b": ("u32", (("C", 0), ("D", 2147483647))),
        "": ("u32", (("LOOSE", 3),)),
    }


def test_callbacks_and_typedefs(describe):
    abi = describe(
        engine="""
        #include <stdbool.h>
        struct model;
        typedef struct model * model_t;
        typedef bool (*progress)(float done, void * user);
        typedef progress alias_of_progress;
        struct params { progress on_progress; void (*other)(const char *); };
        """
    )
    progress = Callback(Scalar("bool"), (Scalar("f32"), Pointer(VOID)))
    assert abi.callbacks == {"alias_of_progress": progress, "progress": progress}
    assert abi.typedefs == {"model_t": Pointer(RecordRef("model"))}
    assert [f.type for f in abi.record("params").fields] == [
        progress,
        Callback(VOID, (Pointer(Scalar("char"), const=True),)),
    ]


def test_an_enum_and_a_function_may_share_a_name(describe):
    abi = describe(engine="enum kind { K }; enum kind kind(void);")
    assert abi.functions[0].result == EnumRef("kind", "u32")


def test_defines_change_what_is_declared(describe):
    text = "#ifdef EXTRA\nint extra(void);\n#endif\nint level_is(int a[LEVEL]);"
    assert [f.name for f in describe("LEVEL=2", engine=text).functions] == ["level_is"]
    assert [f.name for f in describe("LEVEL=2", "EXTRA", engine=text).functions] == ["extra", "level_is"]


def test_headers_beside_the_asked_one_are_described_and_hashed(describe, tmp_path: Path):
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "inner.h").write_text("int inner(void);\n")
    abi = describe(outer='#include "inner.h"\nint outer(void);\n')
    assert {f.name: f.header for f in abi.functions} == {"inner": "inner.h", "outer": "outer.h"}
    assert set(abi.headers) == {"inner.h", "outer.h"}
    assert abi.includes == ("outer.h",)


def test_headers_elsewhere_only_lend_their_types(describe, tmp_path: Path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "lib.h").write_text("typedef struct lib_handle * lib_t; int lib_call(void);\n")
    (tmp_path / "a.h").write_text('#include "lib.h"\nint use(lib_t lib);\n')
    abi = generate([tmp_path / "a.h"], [other], [])
    assert [f.name for f in abi.functions] == ["use"]
    assert abi.opaque == ("lib_handle",)


def test_bitfields_are_refused(describe):
    with pytest.raises(AbiError, match=r"struct flags has a bitfield \(low, 3 bits\)") as caught:
        describe(engine="\nstruct flags { unsigned low : 3; };")
    assert caught.value.where is not None
    assert caught.value.where.endswith("engine.h:2")


def test_a_struct_with_an_inexpressible_member_is_refused(describe):
    with pytest.raises(AbiError, match="struct wide has a"):
        describe(engine="struct wide { long double x; };")


def test_errors_name_file_and_line(describe):
    with pytest.raises(AbiError, match="do not parse as C") as caught:
        describe(engine="int fine(void);\nstruct broken { nonsense x; };\n")
    assert caught.value.where is not None
    assert caught.value.where.endswith("engine.h:2")
    assert "nonsense" in str(caught.value)


def test_a_missing_include_is_an_error(describe):
    with pytest.raises(AbiError, match=r"nowhere\.h"):
        describe(engine='#include "nowhere.h"\nint f(void);')


def test_a_missing_header_is_an_error(tmp_path: Path):
    with pytest.raises(AbiError, match=r"header absent\.h is not there"):
        generate([tmp_path / "absent.h"], [], [])


def test_two_headers_of_one_name_are_an_error(tmp_path: Path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.h").write_text(f"int from_{folder}(void);\n")
    (tmp_path / "a" / "main.h").write_text('#include "x.h"\n#include "../b/x.h"\n')
    (tmp_path / "b" / "other.h").write_text("int other(void);\n")
    with pytest.raises(AbiError, match=r"two headers are called x\.h"):
        generate([tmp_path / "a" / "main.h", tmp_path / "b" / "other.h"], [], [])


def test_cxx_parts_are_guarded_away(describe):
    abi = describe(
        engine="""
        #ifdef __cplusplus
        #include <vector>
        extern "C" {
        #endif
        int plain(void);
        #ifdef __cplusplus
        }
        std::vector<int> fancy();
        #endif
        """
    )
    assert [f.name for f in abi.functions] == ["plain"]
    assert abi.not_c == ()


def test_a_tag_used_as_a_type_name_gets_a_typedef(describe):
    abi = describe(
        base="enum level { LOW, HIGH }; struct thing { int x; };",
        extra="struct params { level l; const thing * t; };",
    )
    assert abi.tags == {"extra.h": ("enum level", "struct thing")}
    assert abi.not_c == ()
    assert [f.type for f in abi.record("params").fields] == [
        EnumRef("level", "u32"),
        Pointer(RecordRef("thing"), const=True),
    ]


def test_functions_that_are_not_c_are_set_apart_and_their_header_is_not_probed(describe):
    abi = describe(engine="int before(void);\nvoid take(json & j);\nint after(void);\n", other="int fine(void);\n")
    assert [f.name for f in abi.functions] == ["after", "before", "fine"]
    assert [item.name for item in abi.skipped] == ["take"]
    assert "is not C" in abi.skipped[0].reason
    assert abi.not_c == ("engine.h",)


def test_the_description_does_not_depend_on_where_the_headers_are(tmp_path: Path):
    descriptions = []
    for folder in ("one", "another/deeper"):
        place = tmp_path / folder
        place.mkdir(parents=True)
        (place / "e.h").write_text("struct s { int a; union { int b; float c; }; }; int f(struct s s);\n#define N 3\n")
        descriptions.append(generate([place / "e.h"], [], ["X"]).to_json())
    assert descriptions[0] == descriptions[1]
    assert str(tmp_path).encode() not in descriptions[0]


def test_the_hash_changes_with_the_headers(describe):
    assert describe(engine="int f(int);").sha256 != describe(engine="int f(long);").sha256


def test_a_header_in_the_current_folder_is_not_the_engines(describe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "engine.h").write_text("void theirs(void);\n")
    monkeypatch.chdir(strange)
    abi = describe(engine="void ours(void);")
    assert [function.name for function in abi.functions] == ["ours"]


def test_a_libclang_that_cannot_be_loaded(describe, monkeypatch: pytest.MonkeyPatch):
    def fail() -> None:
        raise cindex.LibclangError("libclang.so: failed to map segment. To provide a path use Config")

    monkeypatch.setattr(cindex.Index, "create", fail)
    with pytest.raises(AbiError, match="libclang cannot be loaded") as caught:
        describe(engine="void f(void);")
    assert caught.value.why == "libclang.so: failed to map segment"
    assert "ulimit -v" in (caught.value.next_step or "")
