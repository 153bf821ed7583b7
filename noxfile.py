"""The front door: ``nox -s build-<variant>``, ``nox -s tests``. Thin: every session calls the forkyard command.

All sessions share one virtual environment in ``.nox/forkyard``, see ``src/forkyard/environment.py``. It is installed
when it is not whole and otherwise only looked at, which keeps a build with nothing to do under three seconds.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import nox

ROOT = Path(__file__).parent
SHARED = ROOT / ".nox" / "forkyard"

nox.options.default_venv_backend = "none"
nox.options.sessions = ["tests"]
nox.options.stop_on_first_error = True


def _load_environment() -> ModuleType:
    """forkyard's module about environments, by its path: forkyard is not installed before it has done its work."""
    spec = importlib.util.spec_from_file_location("environment", ROOT / "src" / "forkyard" / "environment.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


environment = _load_environment()


def _environment(session: nox.Session, extra: str = "") -> Path:
    """The shared environment with forkyard (and the ``extra`` tools) installed; returns its bin folder."""
    if sys.version_info < (3, 11):
        session.error(f"forkyard needs Python 3.11 or newer; nox runs on {sys.version.split()[0]} ({sys.executable})")
    # Nothing of another Python or environment reaches what a session runs.
    for name in os.environ.keys() - environment.own_variables(os.environ).keys():
        del os.environ[name]
    try:
        folder: Path = environment.ensure(SHARED, ROOT, extra, session.log)
    except (environment.EnvironmentFailure, OSError) as error:
        session.error(str(error))
    return folder


def _builds() -> dict[str, str]:
    """What follows ``build-`` in a session's name -> the variant: each by its name, a GPU's without its number, too."""
    variants = tomllib.loads((ROOT / "recipes" / "variants.toml").read_text(encoding="utf-8"))["variants"]
    numbered = {name.rstrip("0123456789"): name for name in sorted(variants) if "backend" in variants[name]}
    return {**numbered, **{name: name for name in variants}}


def _define_build(name: str, variant: str) -> None:
    @nox.session(name=f"build-{name}", default=False)
    def build(session: nox.Session) -> None:
        folder = _environment(session)
        session.run(str(folder / "forkyard"), "build", variant, *session.posargs, external=True)

    build.__doc__ = f"Build the {variant} wheels of both engines into dist/ (-- llama.cpp for one of them)."


for _name, _variant in _builds().items():
    _define_build(_name, _variant)


@nox.session(name="build", default=False)
def build_best(session: nox.Session) -> None:
    """Build the best variant of each engine for this machine into dist/, and say why (-- llama.cpp for one)."""
    session.run(str(_environment(session) / "forkyard"), "build", "best", *session.posargs, external=True)


# Session -> the words of the forkyard command it runs, and what it is for.
_COMMANDS = {
    "stack-new": (["stack", "new"], "Begin a stack: nox -s stack-new -- NAME --engine llama.cpp ..."),
    "stack-edit": (["stack", "edit"], "Work on a stack's patches as commits: nox -s stack-edit -- NAME --engine E."),
    "stack-refresh": (["stack", "refresh"], "Write the commits of stack-edit back: nox -s stack-refresh -- NAME ..."),
    "stack-export": (["stack", "export"], "Write a stack's patches anew, or --check them."),
    "stack-import": (["stack", "import"], "Turn patches into commits, or add mailed patches to a stack."),
    "stack-from-branch": (
        ["stack", "from-branch"],
        "Turn somebody's fork into a stack: -- REPO BRANCH.",
    ),
    "stack-lint": (["stack", "lint"], "Check all patches and stack descriptions."),
    "stack-verify": (["stack", "verify"], "Build and test every prefix of every series, and the combinations."),
    "rebase": (["rebase"], "Move an engine's stacks: nox -s rebase -- llama.cpp --to latest."),
    "range-diff": (["range-diff"], "Compare two revisions of a stack: nox -s range-diff -- STACK REV1 REV2."),
    "pr": (["pr"], "Prepare, never submit, a pull request: nox -s pr -- STACK ENGINE."),
    "pr-status": (["pr-status"], "Read where the stacks' pull requests stand."),
    "canary": (
        ["canary", "--report-dir", "canary-report"],
        "Rebase, build and test on the newest upstream commit that can be reached.",
    ),
    "bench-numa": (["bench", "numa"], "Measure which --numa is fastest here: nox -s bench-numa -- --model FILE."),
    "bench-split": (
        ["bench", "split"],
        "Measure how to share a model between GPUs: nox -s bench-split -- --model FILE --variant cuda13.",
    ),
    "bench-kv": (
        ["bench", "kv"],
        "Measure memory, speed and quality of KV caches: nox -s bench-kv -- --model FILE --plot kv.svg.",
    ),
    "numa-guest": (
        ["numa-guest"],
        "Run the stack numa-mirror in QEMU guests with several NUMA nodes: nox -s numa-guest -- --engine llama.cpp.",
    ),
}


_SCENARIOS = {"batch", "experts", "kv", "numa", "spec", "split", "stock", "threads", "variants"}

# Those that run the stacks' tests, or the bindings.
_TESTING = {"stack-verify", "rebase", "pr", "canary", "numa-guest"}


def _define_command(name: str, words: list[str], purpose: str) -> None:
    @nox.session(name=name, default=False)
    def command(session: nox.Session) -> None:
        extra = "dev" if name in _TESTING else "plots" if name == "bench-kv" else ""
        session.run(str(_environment(session, extra) / "forkyard"), *words, *session.posargs, external=True)

    command.__doc__ = purpose


for _name, (_words, _purpose) in _COMMANDS.items():
    _define_command(_name, _words, _purpose)


@nox.session(default=False)
def plan(session: nox.Session) -> None:
    """Show what a build would do: nox -s plan -- avx512."""
    session.run(str(_environment(session) / "forkyard"), "plan", *session.posargs, external=True)


@nox.session(default=False)
def doctor(session: nox.Session) -> None:
    """Say what this machine lacks for building, and how to install it."""
    session.run(
        str(_environment(session) / "forkyard"), "doctor", *session.posargs, external=True, success_codes=[0, 7]
    )


@nox.session
def lint(session: nox.Session) -> None:
    """Style, types, and the stacks' patches."""
    folder = _environment(session, "dev")
    session.run(str(folder / "ruff"), "check", ".", external=True)
    session.run(str(folder / "ruff"), "format", "--check", ".", external=True)
    session.run(str(folder / "mypy"), external=True)
    # The bindings run on older Python, whose library lacks things.
    session.run(
        str(folder / "mypy"), "--python-version", "3.10", "-p", "forkyard_llm", "-p", "llama_cpp", external=True
    )
    session.run(str(folder / "forkyard"), "stack", "lint", external=True)


# Tests of one file run one after another; with words of one's own, `-n 0` runs all in one process.
_AT_ONCE = ("-n", "auto", "--dist", "loadfile")


def _pytest(session: nox.Session, *words: str) -> None:
    session.run(str(_environment(session, "dev") / "python"), "-m", "pytest", *words, external=True)


@nox.session
def unit(session: nox.Session) -> None:
    """Fast tests, no network, no compiler runs of an engine."""
    _pytest(session, "tests/unit", "-m", "not deep", *_AT_ONCE, *session.posargs)


@nox.session
def integration(session: nox.Session) -> None:
    """Build both engines for this machine's best ISA, install the wheels into a fresh environment, generate text."""
    _pytest(session, "tests/integration", "-m", "not deep", *_AT_ONCE, *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Everything CI runs: lint, unit, integration; at most 45 minutes on 2 cores that have nothing built yet."""
    lint(session)
    unit(session)
    integration(session)


@nox.session(name="tests-deep", default=False)
def tests_deep(session: nox.Session) -> None:
    """What takes hours: deep tests, prefixes of stacks, guests, empty machines. With words, only pytest with them."""
    _pytest(session, "tests/unit", "tests/integration", "-m", "deep", *session.posargs)
    if session.posargs:
        return
    forkyard = str(_environment(session, "dev") / "forkyard")
    session.run(forkyard, "stack", "verify", external=True)
    session.run(forkyard, "numa-guest", external=True)
    for suite in ("bookworm", "trixie"):
        _newcomer(session, suite)


@nox.session(name="split-matrix", default=False)
def split_matrix(session: nox.Session) -> None:
    """Split models on one to four loopback devices, with every KV cache, against one device: hours."""
    _pytest(session, "tests/integration/split", "-m", "deep", *session.posargs)


@nox.session(default=False)
def newcomer(session: nox.Session) -> None:
    """Run the README's commands in an empty Debian: nox -s newcomer -- bookworm, or trixie."""
    _newcomer(session, *session.posargs)


def _newcomer(session: nox.Session, *words: str) -> None:
    session.run(str(_environment(session, "dev") / "python"), "tests/newcomer.py", *words, external=True)


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Measure engines: nox -s bench -- threads --model FILE; without a scenario, forkyard's own benchmarks."""
    if session.posargs and session.posargs[0] in _SCENARIOS:
        folder = _environment(session, "plots" if session.posargs[0] == "kv" else "")
        session.run(str(folder / "forkyard"), "bench", *session.posargs, external=True)
        return
    _pytest(session, "tests/benchmarks", *session.posargs)


@nox.session(name="bench-compare", default=False)
def bench_compare(session: nox.Session) -> None:
    """Show the newest runs of forkyard's own benchmarks beside each other, or some: nox -s bench-compare -- 1 4."""
    python = str(_environment(session, "dev") / "python")
    session.run(python, "-m", "tests.benchmarks.history", *session.posargs, external=True)
