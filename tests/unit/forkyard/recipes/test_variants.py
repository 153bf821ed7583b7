from __future__ import annotations

from pathlib import Path

import pytest
from capstone import aarch64_const
from iced_x86 import CpuidFeature

from forkyard.errors import RecipeError
from forkyard.recipes.load import load_recipe, load_variants
from forkyard.recipes.model import FAMILIES
from forkyard.recipes.variants import (
    Choice,
    Variants,
    best,
    cmake_value,
    configure_options,
    for_architectures,
    resolve,
    score_source,
    supported,
    unsupported,
)


@pytest.fixture
def variants(project: Path) -> Variants:
    return load_variants(project)


@pytest.fixture(scope="module")
def own(repository: Path) -> Variants:
    return load_variants(repository)


def test_every_isa_option_is_given_explicitly(variants: Variants) -> None:
    resolved = resolve(variants, "avx2", "llama.cpp")
    assert resolved.options == {
        "GGML_AVX": True,
        "GGML_AVX2": True,
        "GGML_AVX512": False,
        "GGML_BMI2": True,
        "GGML_NATIVE": False,
    }
    assert resolved.flags == ()
    assert resolved.features == ("avx", "avx2", "bmi2")


def test_what_no_option_covers_becomes_a_flag(variants: Variants) -> None:
    resolved = resolve(variants, "avx2", "ik_llama.cpp")
    assert "GGML_BMI2" not in resolved.options
    assert resolved.flags == ("-mbmi2",)


def test_an_option_is_off_unless_all_its_features_are_there(project: Path) -> None:
    extra = project / "extra.toml"
    extra.write_text(
        'schema = 1\n[variants.f]\ntitle = "F alone"\nkind = "isa"\nextends = "avx2"\n'
        'features = ["avx512f"]\nrank = 35\n'
    )
    resolved = resolve(load_variants(project, extra), "f", "llama.cpp")
    assert resolved.options["GGML_AVX512"] is False
    assert resolved.flags == ("-mavx512f",)


def test_features_and_proof_are_inherited_or_own(variants: Variants) -> None:
    resolved = resolve(variants, "avx512", "llama.cpp")
    assert set(resolved.features) == {"avx", "avx2", "bmi2", "avx512f", "avx512dq"}
    assert resolved.proof == {"avx512f": frozenset({"AVX512F"})}
    assert resolved.instruction_sets == {"AVX", "AVX2", "BMI2", "AVX512F", "AVX512DQ"}


def test_native_takes_the_hosts_features_and_the_proof_they_owe(variants: Variants) -> None:
    resolved = resolve(variants, "native", "llama.cpp", ["fpu", "avx", "avx2", "bmi2", "avx512f"])
    assert resolved.features == ("avx", "avx2", "avx512f", "bmi2")
    assert resolved.options["GGML_NATIVE"] is True
    assert resolved.flags == ()
    assert resolved.proof == {"avx2": frozenset({"AVX2"})}
    assert resolve(variants, "native", "llama.cpp", []).proof == {}


def test_native_needs_to_know_the_host(variants: Variants) -> None:
    with pytest.raises(RecipeError, match="were not given"):
        resolve(variants, "native", "llama.cpp")


def test_an_unsupported_variant_says_why_and_what_there_is(variants: Variants) -> None:
    with pytest.raises(RecipeError, match="it is not done yet") as caught:
        resolve(variants, "avx512", "ik_llama.cpp")
    assert "native, avx2" in str(caught.value)
    assert caught.value.where == variants.location_of("variants", "avx512", "engines", "ik_llama.cpp", "unsupported")


def test_a_mistyped_variant_is_corrected(variants: Variants) -> None:
    with pytest.raises(RecipeError, match=r"did you mean 'avx512'\?"):
        resolve(variants, "avx521", "llama.cpp")
    with pytest.raises(RecipeError, match="no ISA options are known"):
        resolve(variants, "avx2", "whisper.cpp")


def test_options_are_written_as_cmake_does(project: Path, variants: Variants) -> None:
    options = configure_options(load_recipe("mine", project), resolve(variants, "avx2", "llama.cpp"))
    assert options["GGML_OPENMP"] == "ON"
    assert options["GGML_AVX512"] == "OFF"
    assert options["GGML_LIMIT"] == "4"
    assert options["GGML_LABEL"] == "fy"
    assert list(options) == sorted(options)
    assert [cmake_value(value) for value in (True, 0, "")] == ["ON", "0", ""]


def test_a_recipe_leaves_instruction_sets_to_the_variant(project: Path, variants: Variants) -> None:
    path = project / "recipes" / "mine.toml"
    path.write_text(path.read_text().replace("GGML_LIMIT = 4", "GGML_AVX = false"))
    with pytest.raises(RecipeError, match="the recipe sets GGML_AVX") as caught:
        configure_options(load_recipe("mine", project), resolve(variants, "avx2", "llama.cpp"))
    assert str(path) in str(caught.value.where)


def test_the_projects_features_are_named_as_the_disassembler_does(own: Variants) -> None:
    groups = {name.removeprefix("AARCH64_FEATURE_HAS") for name in vars(aarch64_const)}
    arm = {f for name in own.variants if own.target_of(name) for f in own.features_of(name)}
    for name, feature in own.features.items():
        assert feature.flags, name
        for unit in feature.instruction_sets:
            # Capstone has SVEORSME where either will do.
            assert {unit, f"{unit}ORSME"} & groups if name in arm else hasattr(CpuidFeature, unit), unit


@pytest.mark.parametrize("family", FAMILIES)
def test_the_projects_variants_resolve_for_both_engines(own: Variants, repository: Path, family: str) -> None:
    recipe = load_recipe(family, repository)
    names = supported(own, family)
    # Nothing for CPUs alone is preferred to what the machine itself has.
    assert next(name for name in names if own.variants[name].kind != "backend") == "native"
    for name in names:
        resolved = resolve(own, name, family, own.features)
        assert set(resolved.proof) <= set(resolved.features)
        assert set(resolved.options) >= set(own.engines[recipe.family].options)
        configure_options(recipe, resolved)


def test_the_fast_kernels_of_ik_get_every_flag_they_ask_for(own: Variants) -> None:
    resolved = resolve(own, "avx512-vnni", "ik_llama.cpp")
    on = {option for option, value in resolved.options.items() if value is True}
    assert on == {"GGML_AVX", "GGML_AVX2", "GGML_FMA", "GGML_F16C", "GGML_AVX512", "GGML_AVX512_VNNI"}
    assert {"-mavx512vl", "-mavx512dq", "-mavx512cd", "-mbmi2"} <= set(resolved.flags)


def machine(own: Variants, family: str, target: str | None) -> list[str]:
    return [name for name in supported(own, family) if own.target_of(name) == target]


def test_engines_lack_the_variants_their_code_cannot_have(own: Variants) -> None:
    assert machine(own, "llama.cpp", None) == [
        *(
            "cuda13",
            "hip",
            "metal",
            "sycl",
            "vulkan",
            "native",
            "amx",
            "avx512-bf16",
            "avx512-vnni",
            "avx512",
            "avx2-vnni",
            "avx2",
        ),
        *("avx-f16c", "avx", "sse42", "x86-64", "cpu", "rpc"),
    ]
    assert machine(own, "ik_llama.cpp", None) == [
        *("cuda13", "native", "avx512-bf16", "avx512-vnni", "avx512", "avx2-vnni", "avx2", "cpu"),
    ]
    assert machine(own, "llama.cpp", "aarch64") == ["sve2", "sve-i8mm", "i8mm", "dotprod", "neon", "cpu-aarch64"]
    assert machine(own, "ik_llama.cpp", "aarch64") == ["i8mm", "dotprod", "cpu-aarch64"]
    assert "need dot products" in str(unsupported(own, "neon", "ik_llama.cpp"))


# -- a variant that carries several -------------------------------------------------------------------


def test_the_cpu_variant_has_every_instruction_set_of_each_engine(own: Variants) -> None:
    for family in FAMILIES:
        resolved = resolve(own, "cpu", family)
        isa = [name for name in machine(own, family, None) if own.variants[name].kind == "isa" and name != "native"]
        assert [member.name for member in resolved.members] == isa[::-1]
        first = resolve(own, isa[-1], family)
        assert (resolved.features, resolved.flags) == (first.features, first.flags)
        assert resolved.instruction_sets == first.instruction_sets
        # Whatever a member needs of the compiler, the whole does.
        assert set(resolved.compilers) == set(own.features_of(isa[0])) | {"avx_vnni"}
        for member in resolved.members:
            alone = resolve(own, member.name, family)
            assert (member.features, member.rank, member.proof) == (alone.features, alone.rank, alone.proof)
            assert member.instruction_sets == alone.instruction_sets
            given = {flag for f in alone.features if f not in resolved.features for flag in own.features[f].flags}
            assert set(member.flags) == given


def test_only_a_variant_of_several_is_loaded_as_a_backend(own: Variants) -> None:
    for name in supported(own, "llama.cpp"):
        options = resolve(own, name, "llama.cpp", own.features).options
        assert options["GGML_BACKEND_DL"] is (own.variants[name].kind != "isa")


def test_the_engine_is_told_what_to_ask_the_cpu_for(own: Variants) -> None:
    members = {member.name: member.options for member in resolve(own, "cpu", "llama.cpp").members}
    assert members["x86-64"] == ()
    assert members["avx-f16c"] == ("GGML_AVX", "GGML_F16C", "GGML_SSE42")
    assert set(members["amx"]) > {"GGML_AMX_INT8", "GGML_AVX512_BF16"}


BACKEND = '[variants.many.backend]\ntoolkit = "cuda13"\nunit-mib = 1\nccache = "1G"\n'


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('kind = "cpu"', "`cpu` and `backend` variants have members"),
        ('kind = "isa"\nmembers = ["avx2"]', "`cpu` and `backend` variants have members"),
        ('kind = "backend"\nextends = "cpu"', "a `backend` variant has this table"),
        (f'kind = "cpu"\nmembers = ["avx2"]\n{BACKEND}', "a `backend` variant has this table"),
        (
            'kind = "cpu"\nmembers = ["avx2"]\n[variants.many.backend]\nremote = true',
            "a `backend` variant has this table",
        ),
        (f'kind = "backend"\nextends = "cpu"\n{BACKEND}'.replace("unit-mib = 1\n", ""), "give all three, or none"),
        (f'kind = "backend"\nextends = "cpu"\n{BACKEND}'.replace('toolkit = "cuda13"\n', ""), "all three, or none"),
        (f'kind = "backend"\nextends = "cpu"\n{BACKEND}'.replace("cuda13", "cuda31"), "no toolkit 'cuda31' is defined"),
        (
            f'kind = "backend"\nextends = "cpu"\n{BACKEND}\n[variants.many.engines."ik_llama.cpp"]\nmembers = ["cpu"]',
            "'cpu' is not one instruction set",
        ),
        ('kind = "cpu"\nmembers = ["avx22"]', "there is no variant 'avx22'"),
        ('kind = "cpu"\nmembers = ["native"]', "'native' is not one instruction set"),
        ('kind = "cpu"\nmembers = ["cpu"]', "'cpu' is not one instruction set"),
        ('kind = "cpu"\nmembers = ["avx2"]\nextends = "avx2"', "its features are those of its members"),
        ('kind = "cpu"\nmembers = ["sse42"]', "ik_llama.cpp has none of these"),
        ('kind = "cpu"\nmembers = ["avx2-vnni", "avx512"]', "avx512 lacks avx_vnni of avx2-vnni"),
    ],
)
def test_members_that_do_not_fit(project: Path, repository: Path, text: str, problem: str) -> None:
    mine = project / "mine.toml"
    mine.write_text(f'schema = 1\n[variants.many]\ntitle = "x"\nrank = 1\n{text}\n')
    with pytest.raises(RecipeError, match=problem):
        load_variants(repository, mine)


# -- the best for a machine ----------------------------------------------------------------------------

SSE42 = {"ssse3", "sse4_1", "sse4_2", "popcnt"}
AVX2 = SSE42 | {"avx", "f16c", "fma", "avx2", "bmi1", "bmi2", "abm", "movbe"}
AVX512 = AVX2 | {"avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw"}
VNNI = AVX512 | {"avx512_vnni"}
BF16 = VNNI | {"avx512vbmi", "avx512_bf16", "avx512_bitalg", "gfni"}
AMX = BF16 | {"amx_tile", "amx_int8", "amx_bf16"}
# AVX-512 without BW (Xeon Phi), and AVX-VNNI without AVX-512 (Alder Lake).
HOSTS = [
    ("SSE4.2", SSE42, "sse42", None),
    ("AVX without AVX2", SSE42 | {"avx"}, "avx", None),
    ("AVX with F16C", SSE42 | {"avx", "f16c", "fma"}, "avx-f16c", None),
    ("AVX2", AVX2, "avx2", "avx2"),
    ("AVX2 with AVX-VNNI", AVX2 | {"avx_vnni"}, "avx2-vnni", "avx2-vnni"),
    ("half of AVX-512", AVX2 | {"avx512f", "avx512cd"}, "avx2", "avx2"),
    ("AVX-512", AVX512, "avx512", "avx512"),
    ("VNNI", VNNI, "avx512-vnni", "avx512-vnni"),
    ("BF16 without VBMI", VNNI | {"avx512_bf16"}, "avx512-vnni", "avx512-vnni"),
    ("BF16", BF16, "avx512-bf16", "avx512-bf16"),
    ("AMX", AMX, "amx", "avx512-bf16"),
    ("nothing", set[str](), "x86-64", None),
]


@pytest.mark.parametrize(("features", "llama", "ik"), [host[1:] for host in HOSTS], ids=[host[0] for host in HOSTS])
def test_the_best_variant_of_each_engine(own: Variants, features: set[str], llama: str | None, ik: str | None) -> None:
    for family, wanted in (("llama.cpp", llama), ("ik_llama.cpp", ik)):
        choice = best(own, family, features)
        if wanted is None:
            assert isinstance(choice, str)
            assert choice.startswith(f"this CPU runs no variant of {family}: not ")
        else:
            assert isinstance(choice, Choice)
            assert choice.variant == wanted
            assert own.features_of(wanted) <= features
            # Reproducible, so never the native one; and each better one is ruled out by a reason.
            here = {name: v for name, v in own.variants.items() if own.target_of(name) is None}
            isas = {name: v.rank for name, v in here.items() if v.kind == "isa" and not v.native}
            better = {name for name, rank in isas.items() if rank > isas[wanted]}
            assert {reason.split()[1].rstrip(":") for reason in choice.reasons if reason.startswith("not ")} == better


def test_the_document_says_which_is_best(own: Variants, repository: Path) -> None:
    text = (repository / "docs" / "variants.md").read_text(encoding="utf-8")
    table = text.partition("| CPU | llama.cpp | ik_llama.cpp |")[2].partition("\n\n")[0].splitlines()[2:]
    for line, features in zip(table, (SSE42, AVX2, AVX512, VNNI, BF16, AMX), strict=True):
        cells = [cell.strip().partition(";")[0].strip("`") for cell in line.strip("|").split("|")[1:]]
        choices = [best(own, family, features) for family in ("llama.cpp", "ik_llama.cpp")]
        assert cells == [choice.variant if isinstance(choice, Choice) else "none" for choice in choices]


def test_the_reasons_of_a_choice(own: Variants) -> None:
    def reasons(family: str, features: set[str]) -> str:
        choice = best(own, family, features)
        assert isinstance(choice, Choice)
        return "; ".join(choice.reasons)

    assert "an avx512 build lacks" in reasons("ik_llama.cpp", VNNI)
    assert "an avx512 build lacks" in reasons("ik_llama.cpp", AMX)
    assert "an avx512 build lacks" not in reasons("ik_llama.cpp", AVX512)
    assert "an avx512 build lacks" not in reasons("llama.cpp", VNNI)
    assert "not avx512-vnni: this CPU, or what the compiler knows of it, lacks avx512_vnni" in reasons(
        "ik_llama.cpp", AVX512
    )
    assert "not amx: it has no AMX kernels" in reasons("ik_llama.cpp", AMX)
    assert "for other machines as well: cpu" in reasons("ik_llama.cpp", AMX)


def test_a_variant_of_ones_own_is_chosen_by_its_rank(project: Path, repository: Path) -> None:
    mine = project / "mine.toml"
    mine.write_text(
        'schema = 1\n[variants.alderlake]\ntitle = "AVX-VNNI"\nkind = "isa"\nextends = "avx2"\n'
        'features = ["avx_vnni"]\nproof = ["avx_vnni"]\nrank = 35\n'
    )
    choice = best(load_variants(repository, mine), "llama.cpp", AVX2 | {"avx_vnni"})
    assert isinstance(choice, Choice)
    assert choice.variant == "alderlake"


def test_no_variant_is_called_best(project: Path, repository: Path) -> None:
    mine = project / "mine.toml"
    mine.write_text('schema = 1\n[variants.best]\ntitle = "x"\nkind = "isa"\nextends = "avx2"\nrank = 35\n')
    with pytest.raises(RecipeError, match="best"):
        load_variants(repository, mine)


# -- GPUs --------------------------------------------------------------------------------------------


def test_a_variant_for_gpus_carries_every_instruction_set_of_the_cpu(own: Variants) -> None:
    cpu, cuda = (resolve(own, name, "llama.cpp") for name in ("cpu", "cuda13"))
    assert [one.name for one in cuda.members] == [one.name for one in cpu.members]
    # They come before every payload for CPUs alone.
    assert min(one.rank for one in cuda.members) > max(one.rank for one in own.variants.values() if one.kind == "isa")
    assert [one.rank - cuda.rank for one in cuda.members] == [one.rank for one in cpu.members]
    assert cuda.options == {**cpu.options, "GGML_CUDA": True, "GGML_CUDA_NO_VMM": True, "GGML_CUDA_NCCL": False}
    assert cuda.module == "ggml-cuda"
    assert cuda.toolkit == own.toolkits["cuda13"]
    # Linked into the CPU library, the GPU code would be there once for each.
    linked = resolve(own, "cuda13", "ik_llama.cpp")
    assert [one.name for one in linked.members] == ["avx2"]
    assert linked.module is None


def test_a_variant_for_other_machines_is_the_cpu_s_and_a_library(own: Variants, repository: Path) -> None:
    cpu, rpc = (resolve(own, name, "llama.cpp") for name in ("cpu", "rpc"))
    assert rpc.members == cpu.members
    assert rpc.options == {**cpu.options, "GGML_RPC": True, "GGML_RPC_RDMA": False}
    assert (rpc.module, rpc.tools, rpc.toolkit) == ("ggml-rpc", ("ggml-rpc-server",), None)
    assert rpc.backend is not None
    assert rpc.backend.remote
    assert rpc.headers == ("ggml/include/ggml-rpc.h",)
    assert "buffers of other servers" in str(unsupported(own, "rpc", "ik_llama.cpp"))
    for name in own.variants:
        backend = own.variants[name].backend
        assert (backend is not None and backend.remote) == (name == "rpc")
    for family in FAMILIES:
        recipe = load_recipe(family, repository)
        options = {name: configure_options(recipe, resolve(own, name, family, ())) for name in supported(own, family)}
        on = [name for name in options if options[name]["GGML_RPC"] == "ON"]
        assert on == (["rpc"] if family == "llama.cpp" else [])


def test_other_architectures(own: Variants, repository: Path) -> None:
    recipe = load_recipe("llama.cpp", repository)
    cuda = resolve(own, "cuda13", "llama.cpp")
    usual = configure_options(recipe, cuda)["CMAKE_CUDA_ARCHITECTURES"]
    assert usual == "80-real;120-real;75-virtual"
    mine = for_architectures(cuda, ["89-real", "120"])
    assert configure_options(recipe, mine)["CMAKE_CUDA_ARCHITECTURES"] == "89-real;120"
    for name in ("avx2", "vulkan", "rpc"):
        with pytest.raises(RecipeError, match="has no GPU architectures"):
            for_architectures(resolve(own, name, "llama.cpp"), ["89"])


@pytest.mark.parametrize(
    "part",
    [
        '{ why = "x" }',
        '{ program = "a", header = "b.h", why = "x" }',
        '{ header = "b.h", least = "1.0", why = "x" }',
        '{ program = "a", least = "new", why = "x" }',
        '{ header = "/usr/include/b.h", why = "x" }',
    ],
)
def test_a_part_of_the_system_that_makes_no_sense(project: Path, repository: Path, part: str) -> None:
    mine = project / "mine.toml"
    mine.write_text(f'schema = 1\n[toolkits.mine]\ntitle = "x"\nsystem = [{part}]\n')
    with pytest.raises(RecipeError):
        load_variants(repository, mine)


# -- another machine ----------------------------------------------------------------------------------


def test_what_a_variant_for_another_machine_means(own: Variants, repository: Path) -> None:
    resolved = resolve(own, "dotprod", "llama.cpp")
    assert (resolved.machine, resolved.features) == ("aarch64", ("asimd", "asimddp", "asimdhp", "atomics", "fphp"))
    assert resolved.flags == ("-mcpu=generic+neon+lse+fullfp16+dotprod",)
    assert not [option for option, value in resolved.options.items() if value is True]
    assert resolve(own, "avx2", "llama.cpp").machine == "x86_64"
    assert resolve(own, "avx2", "llama.cpp").target is None
    options = configure_options(load_recipe("llama.cpp", repository), resolved)
    assert options["GGML_OPENMP"] == "OFF"
    assert score_source(resolved) == "ggml/src/ggml-cpu/arch/arm/cpu-feats.cpp"
    assert score_source(resolve(own, "dotprod", "ik_llama.cpp")) is None


def test_each_member_asks_the_cpu_for_what_it_is_compiled_for(own: Variants) -> None:
    members = {one.name: one for one in resolve(own, "cpu-aarch64", "llama.cpp").members}
    assert list(members) == ["neon", "dotprod", "i8mm", "sve-i8mm", "sve2"]
    assert members["neon"].options == ()
    assert members["dotprod"].options == ("GGML_USE_DOTPROD", "GGML_USE_FP16_VECTOR_ARITHMETIC")
    assert set(members["sve2"].options) == set(own.targets["aarch64"].engines["llama.cpp"].score_definitions)
    for name, member in members.items():
        assert member.flags == resolve(own, name, "llama.cpp").flags
    assert [one.name for one in resolve(own, "cpu-aarch64", "ik_llama.cpp").members] == ["dotprod", "i8mm"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('kind = "isa"\ntarget = "arch64"', "no target 'arch64' is defined"),
        ('kind = "isa"\nnative = true\ntarget = "aarch64"', "is for x86-64"),
        ('kind = "cpu"\ntarget = "aarch64"\nmembers = ["avx2"]', "'avx2' is for another machine"),
        ('kind = "cpu"\nmembers = ["dotprod"]', "'dotprod' is for another machine"),
        (
            'kind = "isa"\n[targets.riscv64]\ntitle = "x"\ntoolkit = "zag"\ntriple = "riscv64-linux-gnu"\n'
            'glibc = "2.28"\ncpu-flag = "-m"',
            "no toolkit 'zag' is defined",
        ),
        (
            'kind = "isa"\n[targets.riscv64]\ntitle = "x"\ntoolkit = "zig"\ntriple = "riscv64-linux-gnu"\n'
            'glibc = "2.28"\ncpu-flag = "-m"\n[targets.riscv64.engines."llama.cpp"]\nneeds = ["rvv"]',
            "no feature 'rvv' is defined",
        ),
    ],
)
def test_targets_that_do_not_fit(repository: Path, tmp_path: Path, text: str, message: str) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text(f'schema = 1\n[variants.many]\ntitle = "x"\nrank = 1\n{text}\n')
    with pytest.raises(RecipeError) as caught:
        load_variants(repository, mine)
    assert message in str(caught.value.describe())


# -- sources that two variants share ------------------------------------------------------------------


def test_what_does_not_ask_for_a_feature_is_compiled_once(own: Variants) -> None:
    members = {member.name: member for member in resolve(own, "cpu", "ik_llama.cpp").members}
    assert "/iqk/fa/" in members["avx2-vnni"].borrows["avx2"]
    assert "/iqk_gemm_kquants." in members["avx512-bf16"].borrows["avx512-vnni"]
    # Its BF16 caches are there, and nowhere else.
    assert not any("/fa/" in path for path in members["avx512-bf16"].borrows["avx512-vnni"])
    assert not any(members[name].borrows for name in ("avx2", "avx512", "avx512-vnni"))


def test_nothing_is_borrowed_of_who_is_not_there(project: Path, repository: Path) -> None:
    mine = project / "mine.toml"
    mine.write_text('schema = 1\n[variants.many]\ntitle = "x"\nkind = "cpu"\nmembers = ["avx2-vnni"]\nrank = 1\n')
    (member,) = resolve(load_variants(repository, mine), "many", "ik_llama.cpp").members
    assert member.borrows == {}


@pytest.mark.parametrize("lender", ["avx512", "mine", "nobody"])
def test_who_cannot_lend(project: Path, repository: Path, lender: str) -> None:
    mine = project / "mine.toml"
    mine.write_text(
        'schema = 1\n[variants.mine]\ntitle = "x"\nkind = "isa"\nextends = "avx2"\nrank = 1\n'
        f'[variants.mine.engines."ik_llama.cpp"]\nborrows = {{ {lender} = ["/x/"] }}\n'
    )
    with pytest.raises(RecipeError, match=f"'{lender}' is no variant that it extends"):
        load_variants(repository, mine)
