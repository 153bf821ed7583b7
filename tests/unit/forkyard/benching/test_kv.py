from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from forkyard_llm.cli import run as run_llm
from forkyard_llm.errors import UsageError
from forkyard_llm.measuring.bundle import read_bundle, write_bundle
from forkyard_llm.measuring.child import RunFailed
from forkyard_llm.measuring.exporting import as_markdown
from forkyard_llm.measuring.kv import CACHES, Wishes, bench_kv, check, read_cache
from forkyard_llm.measuring.kv_table import as_text, check_plot, plot
from forkyard_llm.measuring.machine import MemoryNode
from forkyard_llm.measuring.report import write_report
from forkyard_llm.measuring.reporting import Silent
from forkyard_llm.measuring.scenarios import conclusions
from forkyard_llm.measuring.store import Store
from forkyard_llm.measuring.timing import Timing

from forkyard.benching.engine import unpacked
from forkyard.cli import main
from forkyard.commands import bench as command

Make = Callable[..., Any]

# Both programs of either engine: what they know, and what they say of a cache.
SCRIPT = """\
#!{python} -IS
import json, os, sys
from pathlib import Path

facts = json.loads({facts!r})
tool, words = Path(sys.argv[0]).name, sys.argv[1:]
value = dict(zip(words, words[1:]))
ik = facts["engine"] == "ik_llama.cpp"
options = facts["options"][tool]
if "--help" in words:
    unknown = [word for word in words if word.startswith("-") and word not in (*options, "--help", "-ctk", "-ctv")]
    if tool == "llama-bench" and (unknown or not {{value.get("-ctk"), value.get("-ctv")}} <= {{None, *facts["types"]}}):
        sys.exit("error: invalid parameter")
    print("\\n".join("  %s N, words" % option for option in options))
    print("" if ik else "  -d, --n-depth <n>")
    sys.exit(1 if ik and tool == "llama-perplexity" else 0)
cache = "%s %s %s" % (value.get("-ctk", "f16"), value.get("-ctv", "f16"), value.get("--kv-tail-tokens", "0"))
if {{"--kv-center", "-khad"}} & set(words):
    cache += " way"
record = Path(facts["record"])
known = json.loads(record.read_text()) if record.exists() else []
known.append({{"tool": tool, "cache": cache, "words": words, "devices": os.environ.get("CUDA_VISIBLE_DEVICES")}})
record.write_text(json.dumps(known))
if (tool, cache) in map(tuple, facts["broken"]):
    print("  what():  Invalid cache type of " + value["-m"], file=sys.stderr)
    os.abort()
if tool == "llama-bench":
    rows = []
    depths = [0] if ik else map(int, value["-d"].split(","))
    for depth in depths:
        for prompt, generate in ((int(value["-p"]), 0), (0, int(value["-n"]))):
            if prompt or generate:
                speed = facts["speeds"].get(cache, 10.0)
                row = {{"model_type": "fake", "n_prompt": prompt, "n_gen": generate, "avg_ts": speed}}
                rows.append(dict(row, n_depth=depth) if not ik else row)
    if ik and "-gp" in words:
        depth, generate = map(int, value["-gp"].split(","))
        rows.append({{"n_prompt": depth, "n_gen": generate, "avg_ts": 5.0, "test": "tg%d@pp%d" % (generate, depth)}})
    print(json.dumps(rows, indent=2))
    sys.exit(0)
mib, tail, *kld = facts["caches"].get(cache, [4.0, 0.0, 0.05, 0.002, 0.03, 0.5, 90.5])
print("llama_kv_cache:        CPU KV buffer size = %7.2f MiB" % (mib / 2))
print("llama_kv_cache:      CUDA0 KV buffer size = %7.2f MiB" % (mib / 2))
print("llama_kv_cache: size = %7.2f MiB (   512 cells,  30 layers)" % mib)
print("alloc:        CPU KV tail buffer size = %7.2f MiB" % tail)
if "--save-all-logits" in words:
    Path(value["--save-all-logits"]).write_text("logits")
elif not Path(value["--kl-divergence-base"]).read_text() == "logits" or not kld:
    sys.exit(0)
else:
    print("\\n====== KL divergence statistics ======")
    print("Mean    KLD: %10.6f ± %10.6f\\nMaximum KLD: 9.0" % tuple(kld[:2]))
    print("99.9%%   KLD: %10.6f\\nMedian  KLD: %10.6f\\n" % (kld[3], kld[2]))
    print("Same top p: %6.3f ± 1.380 %%" % kld[4])
"""
BOTH = ("-lv", "--kv-tail-tokens", "--kv-sink-tokens")


class Payload:
    """The wheel, and what its programs were asked."""

    def __init__(self, wheel: Path, record: Path) -> None:
        self.wheel, self.record = wheel, record

    @property
    def calls(self) -> list[dict[str, Any]]:
        return list(json.loads(self.record.read_text())) if self.record.exists() else []


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def write(engine: str = "llama.cpp", **facts: Any) -> Payload:
        usual = {
            "engine": engine,
            "record": str(tmp_path / f"{engine}.json"),
            "types": ("f16", "q8_0", "q4_0") + (("ftq4", "ftq3", "ftq2") if engine == "llama.cpp" else ()),
            "options": {
                "llama-bench": BOTH[1:],
                "llama-perplexity": (*BOTH, "--kv-center") if engine == "llama.cpp" else (*BOTH[1:], "-khad", "-vhad"),
            },
            "broken": [],
            "speeds": {},
            "caches": {"f16 f16 0": [16.0, 0.0]},
        }
        script = SCRIPT.format(python=sys.executable, facts=json.dumps(usual | facts))
        package = f"forkyard_{engine.replace('.', '_')}"
        wheel = tmp_path / f"{package}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            manifest = {"engine": engine, "recipe": engine, "build_key": "a" * 64}
            archive.writestr(f"{package}/manifest.json", json.dumps(manifest))
            for name in ("llama-bench", "llama-perplexity"):
                info = zipfile.ZipInfo(f"{package}/bin/{name}")
                info.external_attr = 0o100755 << 16
                archive.writestr(info, script)
        return Payload(wheel, Path(usual["record"]))

    return write


@pytest.fixture
def wishes(model: Path, tmp_path: Path) -> Wishes:
    text = tmp_path / "text.txt"
    text.write_text("many words")
    return Wishes(
        model=model,
        caches=("f16", "q4_0"),
        timing=Timing(512, 128, (0, 4096)),
        rounds=3,
        minutes=None,
        text=text,
        context=2048,
        windows=4,
        gpu_layers=999,
    )


@pytest.fixture
def run(tmp_path: Path, one_node: tuple[MemoryNode, ...]) -> Iterator[Callable[..., Any]]:
    with contextlib.ExitStack() as stack:

        def measure(wishes: Wishes, *payloads: Payload, keep: Store | None = None) -> Any:
            engines = [stack.enter_context(unpacked(one.wheel, tmp_path / "scratch")) for one in payloads]
            (tmp_path / "logits").mkdir(exist_ok=True)
            return bench_kv(engines, wishes, one_node, tmp_path / "logits", tmp_path / "run.log", Silent(), keep)

        yield measure


def table(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("f16", "-ctk f16 -ctv f16"),
        ("q8_0/ftq4", "-ctk q8_0 -ctv ftq4"),
        ("ftq4+128", "-ctk ftq4 -ctv ftq4 --kv-tail-tokens 128 --kv-sink-tokens 4"),
        ("q4_0:centers", "-ctk q4_0 -ctv q4_0 --kv-center on"),
        ("q4_0/q8_0+64:hadamard", "-ctk q4_0 -ctv q8_0 --kv-tail-tokens 64 --kv-sink-tokens 4 -khad -vhad"),
    ],
)
def test_the_words_for_a_cache(word: str, words: str) -> None:
    assert read_cache(word).words == tuple(words.split())


@pytest.mark.parametrize("word", ["", "q4_0/", "q4_0+", "q4_0+0", "q4_0:nothing", "q4 0", "a/b/c", "q4_0+9999999", "ä"])
def test_words_that_are_no_cache(word: str) -> None:
    with pytest.raises(UsageError, match="is no KV cache"):
        read_cache(word)


def test_the_usual_caches_are_words() -> None:
    assert [read_cache(word).name for word in CACHES] == list(CACHES)


def test_memory_quality_and_speed_in_one_table(make: Make, run: Any, wishes: Wishes) -> None:
    payload = make(
        caches={
            "f16 f16 0": [16.0, 0.0],
            "q4_0 q4_0 0": [4.5, 0.0, 0.06, 0.002, 0.035, 0.9, 88.5],
            "ftq4 ftq4 0": [4.26, 0.0, 0.03, 0.001, 0.02, 0.5, 91.0],
            "ftq4 ftq4 128": [4.26, 1.0, 0.006, 0.0004, 0.005, 0.04, 98.0],
        },
        speeds={"ftq4 ftq4 0": 12.0},
    )
    found = run(dataclasses.replace(wishes, caches=("f16", "q4_0", "ftq4", "ftq4+128"), rounds=6), payload)
    rows = table(as_text(found))
    assert rows[0] == [
        *("engine", "K", "V", "cache", "MiB at 2048", "KLD", "median", "99.9 %", "same top %"),
        *("pp512 t/s", "tg128 t/s", "pp512 @ d4096 t/s", "tg128 @ d4096 t/s"),
    ]
    assert [row[1:9] for row in rows[2:]] == [
        ["f16", "f16", "", "16.00 *", "0", "0", "0", "100"],
        ["q4_0", "q4_0", "", "4.50", "0.0600 ± 0.0020", "0.0350", "0.9000", "88.5"],
        ["ftq4", "ftq4", "", "4.26 *", "0.0300 ± 0.0010", "0.0200", "0.5000", "91.0"],
        ["ftq4", "ftq4", "tail 128", "5.26 *", "0.0060 ± 0.0004", "0.0050", "0.0400", "98.0"],
    ]
    assert rows[2][9] == "10.00 (10.00 to 10.00) 1"
    assert rows[4][9:] == ["12.00 (12.00 to 12.00) 1.20x"] * 4
    document = json.loads(json.dumps(found.as_json()))
    assert document["rows"][3]["quality"]["cache_mib"] == 5.26
    assert document["rows"][3]["sink_tokens"] == 4
    assert document["quality"] == {"text": "text.txt", "context": 2048, "windows": 4}


def test_a_run_is_kept_with_its_table_and_can_be_given_away(
    make: Make, run: Any, wishes: Wishes, tmp_path: Path
) -> None:
    payload = make(broken=[("llama-perplexity", "q8_0 q8_0 0")])
    with contextlib.closing(Store(tmp_path / "here.sqlite")) as store:
        found = run(dataclasses.replace(wishes, caches=("f16", "q4_0", "q8_0"), rounds=6), payload, keep=store)
        ((info, finished, _),) = store.runs()
        recorded = store.read(info.id)
    assert (info.scenario, finished) == ("kv", True)
    assert as_markdown(recorded) == as_text(found)
    assert recorded.speeds("llama.cpp, q4_0", "tg128") == [10.0] * 6
    assert "killed by signal 6" in recorded.failed["llama.cpp, q8_0"]
    assert info.facts["kld"]["llama.cpp, q4_0"] == {"mean": 0.05, "mib": 4.0}
    assert info.facts["quality"]["llama.cpp, q4_0"]["kld_standard_error"] == 0.002
    # Without an anchor there is nothing that a conclusion could be relative to.
    assert conclusions(recorded) == []
    write_bundle([recorded], tmp_path / "bundle.zip")
    (other,), _ = read_bundle(tmp_path / "bundle.zip")
    assert as_markdown(other) == as_text(found)
    write_report([recorded], tmp_path / "page.html")
    assert "Quality against speed and memory" in (tmp_path / "page.html").read_text()


def test_what_the_programs_are_asked(make: Make, run: Any, wishes: Wishes) -> None:
    payload = make()
    run(dataclasses.replace(wishes, extra=("-t", "8"), rounds=1), payload)
    base, q4_0, *bench = [call["words"][2:] for call in payload.calls]
    usual = ["-c", "2048", "-b", "512", "--chunks", "4", "-fa", "on", "-ngl", "999", "-lv", "4"]
    assert base[2:-1] == [*usual, "--save-all-logits"]
    assert q4_0[2:-1] == [*usual, "-ctk", "q4_0", "-ctv", "q4_0", "--kl-divergence", "--kl-divergence-base"]
    tests = ["-p", "512", "-n", "128", "-d", "0,4096", "-r", "1", "-t", "8", "-o", "json"]
    assert bench[1] == ["-ngl", "999", "-fa", "1", "-ctk", "q4_0", "-ctv", "q4_0", *tests]


def test_f16_is_the_base_even_if_it_is_not_asked_for(make: Make, run: Any, wishes: Wishes) -> None:
    payload = make()
    found = run(dataclasses.replace(wishes, caches=("q4_0",)), payload)
    assert payload.calls[0]["cache"] == "f16 f16 0"
    assert found.baseline is None
    assert "Factors" not in as_text(found)


def test_without_tests_only_quality_is_measured(make: Make, run: Any, wishes: Wishes) -> None:
    payload = make()
    found = run(dataclasses.replace(wishes, timing=Timing(0, 0, (0,))), payload)
    assert {call["tool"] for call in payload.calls} == {"llama-perplexity"}
    assert table(as_text(found))[0][-1] == "same top %"


def test_a_way_that_llama_bench_has_no_word_for_has_no_speeds(make: Make, run: Any, wishes: Wishes) -> None:
    found = run(dataclasses.replace(wishes, caches=("f16", "q4_0:centers")), make())
    rows = table(as_text(found))
    assert rows[3][3:5] == ["centers", "4.00 *"]
    assert rows[3][9:] == ["not measurable"] * 4
    assert "llama.cpp, q4_0:centers has no speeds: the llama-bench of llama.cpp has no --kv-center" in as_text(found)


def test_what_one_engine_lacks_is_a_note_and_what_all_lack_an_error(make: Make, run: Any, wishes: Wishes) -> None:
    ours, theirs = make(), make("ik_llama.cpp")
    words = ("f16", "ftq4", "q4_0:hadamard")
    text = as_text(run(dataclasses.replace(wishes, caches=words), ours, theirs))
    assert [row[0] for row in table(text)[2:]] == ["llama.cpp"] * 2 + ["ik_llama.cpp"] * 2
    assert "ik_llama.cpp has no KV cache ftq4" in text
    assert "llama.cpp has no -khad" in text
    assert "pp512 @ d4096 could not be measured: the llama-bench of ik_llama.cpp times no prompt after another" in text
    with pytest.raises(UsageError, match="no engine that is measured has the KV cache ftq4") as caught:
        run(dataclasses.replace(wishes, caches=words), theirs)
    assert "ik_llama.cpp has no KV cache ftq4" in (caught.value.why or "")


def test_the_usual_caches_are_those_that_an_engine_has(make: Make, run: Any, wishes: Wishes) -> None:
    found = run(dataclasses.replace(wishes, caches=None), make("ik_llama.cpp"))
    assert [line.row.cache.name for line in found.lines] == ["f16", "q8_0", "q4_0", "q4_0:hadamard"]


def test_a_cache_that_the_engine_refuses_is_a_row_with_its_reason(make: Make, run: Any, wishes: Wishes) -> None:
    payload = make(broken=[("llama-perplexity", "q4_0 q4_0 0")])
    found = run(dataclasses.replace(wishes, caches=("f16", "q4_0", "q8_0")), payload)
    text = as_text(found)
    assert table(text)[3][4:] == ["refused", "", "", "", "", *["refused"] * 4]
    assert "llama.cpp, q4_0 was refused: killed by signal 6: what():  Invalid cache type of model.gguf" in text
    assert str(wishes.model.parent) not in json.dumps(found.as_json())
    assert not [call for call in payload.calls if call["tool"] == "llama-bench" and "q4_0" in call["cache"]]


def test_a_cache_that_is_only_too_slow_or_large_later(make: Make, run: Any, wishes: Wishes) -> None:
    found = run(wishes, make(broken=[("llama-bench", "q4_0 q4_0 0")]))
    assert found.lines[1].quality.mean == 0.05
    assert "killed by signal 6" in (found.lines[1].refused or "")


def test_quality_stays_where_no_cache_can_be_timed(make: Make, run: Any, wishes: Wishes) -> None:
    found = run(wishes, make(broken=[("llama-bench", "f16 f16 0"), ("llama-bench", "q4_0 q4_0 0")]))
    assert [line.quality.mib for line in found.lines] == [16.0, 4.0]
    assert all("killed by signal 6" in (line.refused or "") for line in found.lines)
    assert found.baseline is None


def test_both_programs_see_the_devices_that_were_chosen(
    make: Make, run: Any, wishes: Wishes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    payload = make()
    run(wishes, payload)
    assert {(call["tool"], call["devices"]) for call in payload.calls} == {
        ("llama-bench", "1"),
        ("llama-perplexity", "1"),
    }


def test_an_engine_that_says_no_divergence(make: Make, run: Any, wishes: Wishes) -> None:
    found = run(wishes, make(caches={"f16 f16 0": [16.0, 0.0], "q4_0 q4_0 0": [4.0, 0.0]}))
    assert found.lines[1].refused == "llama-perplexity says no KL divergence"


def test_an_engine_that_cannot_load_the_model_is_an_error(make: Make, run: Any, wishes: Wishes) -> None:
    with pytest.raises(RunFailed, match="llama-perplexity failed"):
        run(wishes, make(broken=[("llama-perplexity", "f16 f16 0")]))


def test_the_logits_are_gone_afterwards(make: Make, run: Any, wishes: Wishes, tmp_path: Path) -> None:
    run(wishes, make())
    assert list((tmp_path / "logits").iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"model": Path("nowhere.gguf")}, "there is no file nowhere.gguf"),
        ({"text": Path("nowhere.txt")}, "there is no file nowhere.txt"),
        ({"caches": ()}, "no KV cache is named"),
        ({"caches": ("f16", "q4:x")}, "is no KV cache"),
        ({"context": 128, "windows": 1}, "63 tokens are too few"),
    ],
)
def test_what_is_refused_before_anything_is_built(wishes: Wishes, changes: dict[str, Any], what: str) -> None:
    check(wishes)
    with pytest.raises(UsageError, match=what):
        check(dataclasses.replace(wishes, **changes))


@pytest.mark.parametrize("timing", [Timing(512, 128, (0, 4096)), Timing(0, 0, (0,))])
def test_the_plot_names_every_cache(make: Make, run: Any, wishes: Wishes, tmp_path: Path, timing: Timing) -> None:
    found = run(dataclasses.replace(wishes, timing=timing, caches=("f16", "q4_0", "ftq4+128")), make())
    path = tmp_path / "kv.svg"
    check_plot(path)
    plot(found, path)
    text = path.read_text()
    assert "<!-- q4_0 -->" in text
    assert "<!-- ftq4+128 -->" in text
    assert ("tg128 @ d4096" in text) is bool(timing.tests)


@pytest.mark.parametrize("name", ["kv.nothing", "kv", "."])
def test_a_plot_that_cannot_be_written_is_said_before(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="no plot can be written"):
        check_plot(tmp_path / name)


def test_a_plot_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.backend_bases", None)
    with pytest.raises(UsageError, match="matplotlib is not installed") as caught:
        check_plot(tmp_path / "kv.svg")
    assert "matplotlib" in (caught.value.next_step or "")


def test_from_words_to_a_table_and_a_plot(
    make: Make, model: Path, one_node: tuple[MemoryNode, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORKYARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(command, "read_nodes", lambda: one_node)
    payload, out, picture = make(), tmp_path / "answer.json", tmp_path / "kv.svg"
    words = ["--model", str(model), "--wheel", str(payload.wheel), "--out", str(out), "--plot", str(picture)]
    words += ["--caches", "f16,ftq4/ftq3,f16", "--depths", "0", "--repetitions", "1", "--", "-t", "8"]
    done = CliRunner().invoke(main, ["bench", "kv", "--quiet", *words])
    assert done.exit_code == 0, done.output
    assert "tg128 t/s" in done.stdout
    document = json.loads(out.read_text())
    assert [row["cache"] for row in document["rows"]] == ["f16", "ftq4/ftq3"]
    assert document["quality"] == {"text": "topics.txt", "context": 4096, "windows": 4}
    assert picture.is_file()
    assert payload.calls[-1]["words"][-4:-2] == ["-t", "8"]
    (log,) = (tmp_path / "cache" / "logs").glob("bench-kv-*.log")
    assert "llama-perplexity -m" in log.read_text()
    assert not list((tmp_path / "cache" / "scratch").glob("kv-*"))


def test_both_engines_are_built_for_this_processor(
    make: Make, model: Path, one_node: tuple[MemoryNode, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    payload = make()

    class Shop:
        variants: Any = None
        toolchain = None

        def plans(self, variant: str, engines: tuple[str, ...], stacks: object = None) -> tuple[list[str], list[str]]:
            asked.append((variant, engines))
            return ["plan"], []

        def build(self, plans: list[str], console: Any, **_: Any) -> list[Any]:
            return [type("Built", (), {"wheel": payload.wheel})()]

    class Variants:
        def get(self, name: str) -> None: ...

    Shop.variants = Variants()
    monkeypatch.setenv("FORKYARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(command, "read_nodes", lambda: one_node)
    monkeypatch.setattr(command.Workshop, "open", lambda: Shop())
    monkeypatch.setattr(command, "default_variant", lambda *_: "avx2")
    monkeypatch.setattr(command, "supported", lambda *_: ["avx2"])
    words = ["--model", str(model), "--caches", "f16", "--prompt", "0", "--generate", "0"]
    done = CliRunner().invoke(main, ["bench", "kv", "--quiet", *words])
    assert done.exit_code == 0, done.output
    assert asked == [("avx2", ("llama.cpp", "ik_llama.cpp"))]


@pytest.mark.parametrize("words", [("--caches", ""), ("--caches", "q4_0:x"), ("--plot", "a.b"), ("--text", "nowhere")])
def test_words_that_mean_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setenv("FORKYARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(command, "unpacked", lambda *_: pytest.fail("it went on"))
    command_line = ["bench", "kv", "--quiet", "--json", "--model", str(model), "--wheel", "x.whl", *words]
    assert CliRunner().invoke(main, command_line).exit_code == 2


def test_with_payloads_alone(
    make: Make, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("forkyard_llm.gguf_check.check", lambda *_, **__: None)
    words = ["bench", "kv", "-m", str(model), "--payload", str(make().wheel), "--rounds", "1", "--depths", "0"]
    assert run_llm([*words, "--caches", "f16,q4_0", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [row["cache"] for row in document["rows"]] == ["f16", "q4_0"]
    assert document["quality"]["text"] == "topics.txt"
    assert run_llm(["results", "show", "last"]) == 0
    assert "0.0500 ± 0.0020" in capsys.readouterr().out
    assert run_llm([*words, "--caches", "q4:x"]) == 2
