"""``forkyard pr`` and ``pr-status`` by the real command: the toy engine is built before and after, and really measured."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from forkyard.cache import Cache
from forkyard.console import Silent
from forkyard.gitstore import Store
from forkyard.pullrequest.documents import read_documents
from forkyard.pullrequest.policy import MARKER
from forkyard.pullrequest.report import SENTENCE
from forkyard.pullrequest.rules import RULES
from forkyard.recipes import load_recipe
from forkyard.sources import obtain
from forkyard.stacks import stack_names

from ..toy import REPOSITORY, VARIANT, Answer, Toy, finish, git

TOOL = """\
#include "llama.h"
#include <stdio.h>
#include <string.h>

static double toy_perplexity(void) {
    return 10.0;
}

static double toy_speed(void) {
    return 100.0;
}

static int toy_answer(void) {
    return 41;
}

int main(int argc, char ** argv) {
    (void) argc;
    if (strstr(argv[0], "llama-perplexity")) {
        printf("Final estimate: PPL = %.4f +/- 0.10000\\n", toy_perplexity());
    } else if (strstr(argv[0], "llama-bench")) {
        printf("[{\\"n_prompt\\": 128, \\"n_gen\\": 0, \\"avg_ts\\": %f},\\n", toy_speed());
        printf(" {\\"n_prompt\\": 0, \\"n_gen\\": 32, \\"avg_ts\\": %f}]\\n", toy_speed());
    } else {
        printf("%d\\n", toy_answer());
    }
    return llama_toy_run(0, llama_toy_default_params()) == 4 ? 0 : 1;
}
"""
OPERATORS = """\
#include <stdio.h>
int main() {
    printf("Testing 1 devices\\n\\nBackend 1/1: CPU\\n  ADD(type=f32): OK\\n  1/1 tests passed\\n1/1 backends passed\\n");
    return 0;
}
"""
TARGET = """
option(LLAMA_BUILD_TESTS "" OFF)
if(LLAMA_BUILD_TESTS)
  add_executable(test-backend-ops tests/test-backend-ops.cpp)
  target_link_libraries(test-backend-ops PRIVATE llama)
endif()
"""
TEMPLATE = "## Overview\n\n<!-- describe -->\n\n- AI usage disclosure: <!-- YES / NO -->\r\n"
TEST = """\
import os, pathlib, subprocess, zipfile

def test_the_answer(tmp_path):
    with zipfile.ZipFile(os.environ["FORKYARD_PAYLOAD_LLAMA_CPP"]) as wheel:
        wheel.extractall(tmp_path)
    (tool,) = tmp_path.glob("*/bin/llama-cli")
    for path in tool.parent.iterdir():
        path.chmod(0o755)
    assert subprocess.run([tool], capture_output=True, text=True).stdout.split()[0] == "%s"
"""
ANSWER = ("tools/tool.c", "return 41;", "return 42;")
STACK = "answer"


@pytest.fixture
def ready(toy: Toy) -> Toy:
    """The toy with tools that say something, upstream's template, and a stack that mends the answer."""
    engine = toy.engine
    (engine / "tools" / "tool.c").write_text(TOOL)
    (engine / "tests").mkdir()
    (engine / "tests" / "test-backend-ops.cpp").write_text(OPERATORS)
    (engine / ".github").mkdir()
    (engine / ".github" / "pull_request_template.md").write_bytes(TEMPLATE.encode())
    with (engine / "CMakeLists.txt").open("a") as file:
        file.write(TARGET)
    git(engine, "add", "--all")
    git(engine, "commit", "--quiet", "--message", "Give the toy a voice")
    toy.write_recipe()
    toy.stack(STACK, {"right-answer": [ANSWER]}, test=["tests/test_answer.py"])
    toy.write_test("tests/test_answer.py", TEST % 42)
    (toy.home / "model.gguf").write_bytes(b"GGUF")
    return toy


def arguments(toy: Toy, *more: str) -> list[str]:
    model = str(toy.home / "model.gguf")
    return ["pr", STACK, "toy", "--variant", VARIANT, "--model", model, "--quick", "--no-ccache", *more]


def pr(toy: Toy, *more: str) -> Answer:
    return toy.run(*arguments(toy, *more))


def evidence(answer: Answer) -> dict[str, Any]:
    return {piece["name"]: piece for piece in answer.json["evidence"]}


def states(answer: Answer) -> dict[str, str]:
    return {name: piece["state"] for name, piece in evidence(answer).items()}


def checklist(answer: Answer) -> dict[str, str]:
    return {item["name"]: item["status"] for item in answer.json["checklist"]}


def work(toy: Toy) -> Path:
    return toy.root / "work" / f"pr-{STACK}-toy"


def out(toy: Toy) -> Path:
    return toy.root / "work" / f"pr-{STACK}-toy-evidence"


def everything(folder: Path) -> dict[str, str]:
    """Digest of every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


ALL_GOOD = {
    "build-before": "pass",
    "build-after": "pass",
    "regression": "pass",
    "backend-ops": "pass",
    "perplexity": "pass",
    "bench": "pass",
    "kl-divergence": "not-applicable",
}


def test_prepared_and_not_submitted(ready: Toy) -> None:
    upstream = everything(ready.engine)

    answer = pr(ready)

    assert answer.status == 0, answer.stdout + answer.stderr
    assert states(answer) == ALL_GOOD, evidence(answer)
    document = answer.json
    assert document["submitted"] is False
    # The branch.
    folder = work(ready)
    assert git(folder, "log", "--format=%s", f"{ready.commit}..{STACK}").splitlines() == [f"{MARKER} right-answer"]
    assert git(folder, "rev-parse", f"{STACK}~1", f"{STACK}-base").split() == [ready.commit] * 2
    assert git(folder, "status", "--porcelain") == ""
    assert "return 42;" in (folder / "tools" / "tool.c").read_text()
    # What a person fills in.
    assert (out(ready) / "pull_request_template.md").read_bytes() == TEMPLATE.encode()
    assert checklist(answer)["messages"] == "needs-a-person"
    assert checklist(answer)["submission"] == "needs-a-person"
    assert checklist(answer)["disclosure-line"] == "pass"
    # The evidence is there to be read, and names nothing of this machine.
    for piece in document["evidence"]:
        for log in piece["logs"]:
            assert (out(ready) / log).is_file()
        for command in piece["commands"]:
            assert str(ready.root) not in command
    assert evidence(answer)["regression"]["data"]["fail_before_pass_after"] == ["tests.test_answer::test_the_answer"]
    assert evidence(answer)["backend-ops"]["data"]["backends"] == ["CPU"]
    for name in ("report.md", "report.html", "report.json"):
        assert SENTENCE.split(",")[0] in (out(ready) / name).read_text() or name == "report.json"
    # Nobody else's things.
    assert everything(ready.engine) == upstream
    ready.assert_sound()


def test_the_second_run_repeats_nothing(ready: Toy) -> None:
    first = pr(ready)
    again = pr(ready)

    assert (first.status, again.status) == (0, 0)
    assert first.json["branch"]["tip"] == again.json["branch"]["tip"]
    assert [piece["reused"] for piece in again.json["evidence"] if piece["state"] == "pass"] == [True] * 6
    assert again.json["branch"]["made_now"] is False


def test_evidence_is_gathered_again_when_the_patch_changes(ready: Toy) -> None:
    pr(ready)
    ready.stack(
        STACK,
        {"right-answer": [ANSWER, ("tools/tool.c", "return 100.0;", "return 50.0;")]},
        test=["tests/test_answer.py"],
    )

    answer = pr(ready)

    assert answer.status == 12
    assert states(answer)["bench"] == "fail"
    assert evidence(answer)["bench"]["data"]["generation"]["median_ratio_of_pairs"] == 0.5
    assert checklist(answer)["performance"] == "fail"
    assert evidence(answer)["build-before"]["reused"]
    assert not evidence(answer)["regression"]["reused"]


def test_worse_quality_fails(ready: Toy) -> None:
    worse = ("tools/tool.c", "return 10.0;", "return 10.1;")
    ready.stack(STACK, {"right-answer": [ANSWER, worse]}, test=["tests/test_answer.py"])

    answer = pr(ready)

    assert answer.status == 12
    assert states(answer) == {**ALL_GOOD, "perplexity": "fail"}


@pytest.mark.parametrize(
    ("expected", "why"),
    [(41, "1 fail on the branch"), (43, "1 fail on the branch")],
    ids=["holds before", "never holds"],
)
def test_a_test_that_shows_nothing_fails(ready: Toy, expected: int, why: str) -> None:
    ready.write_test("tests/test_answer.py", TEST % expected)

    answer = pr(ready)

    assert answer.status == 12
    assert states(answer)["regression"] == "fail"
    assert why in evidence(answer)["regression"]["reason"]


def test_a_branch_that_does_not_build(ready: Toy) -> None:
    broken = ("tools/tool.c", "return 41;", "return fortytwo;")
    ready.stack(STACK, {"right-answer": [broken]}, test=["tests/test_answer.py"])

    answer = pr(ready)

    assert answer.status == 12
    assert states(answer) == {
        "build-before": "pass",
        "build-after": "fail",
        "regression": "not-run",
        "backend-ops": "not-run",
        "perplexity": "not-run",
        "bench": "not-run",
        "kl-divergence": "not-applicable",
    }
    assert "fortytwo" in evidence(answer)["build-after"]["reason"]
    assert "fortytwo" in (out(ready) / evidence(answer)["build-after"]["logs"][0]).read_text()
    assert checklist(answer)["builds"] == "fail"
    assert checklist(answer)["perplexity"] == "needs-a-person"


def test_without_builds_nothing_has_passed(ready: Toy) -> None:
    answer = pr(ready, "--no-build")

    assert answer.status == 0, answer.stdout
    assert set(states(answer).values()) == {"not-run", "not-applicable"}
    for name in ("builds", "perplexity", "performance", "regression-test"):
        assert checklist(answer)[name] == "needs-a-person"
    assert not ready.wheels()


def test_without_a_model_the_measurements_are_not_run(ready: Toy) -> None:
    answer = pr(ready, "--model", str(ready.home / "none.gguf"))

    assert answer.status == 0
    assert states(answer) == {**ALL_GOOD, "perplexity": "not-run", "bench": "not-run"}


def test_prose_is_refused(ready: Toy) -> None:
    answer = pr(ready, "--describe")

    assert answer.status == 2
    assert "CONTRIBUTING.md and AGENTS.md forbid" in answer.json["why"]
    assert not work(ready).exists()
    assert not out(ready).exists()


def test_on_a_newer_upstream(ready: Toy) -> None:
    pin = ready.commit
    (ready.engine / "src" / "more.h").write_text("// more\n")
    text = (ready.engine / "tools" / "tool.c").read_text()
    (ready.engine / "tools" / "tool.c").write_text("// newer\n" + text)
    git(ready.engine, "add", "--all")
    git(ready.engine, "commit", "--quiet", "--message", "Go on")

    answer = pr(ready, "--source", str(ready.engine))

    assert answer.status == 0, answer.stdout + answer.stderr
    assert answer.json["target"]["commit"] == ready.commit != pin
    assert git(work(ready), "rev-parse", f"{STACK}~1").strip() == ready.commit
    assert states(answer) == ALL_GOOD
    assert (work(ready) / "src" / "more.h").is_file()


def test_a_conflict_names_the_way_on(ready: Toy) -> None:
    text = (ready.engine / "tools" / "tool.c").read_text()
    (ready.engine / "tools" / "tool.c").write_text(text.replace("return 41;", "return 40 + 1;"))
    git(ready.engine, "commit", "--quiet", "--all", "--message", "Go elsewhere")

    answer = pr(ready, "--source", str(ready.engine))

    assert answer.status == 6
    assert f"forkyard rebase llama.cpp --to {ready.commit} --stack {STACK}" in answer.json["next"]
    assert not work(ready).exists()


def test_somebodys_work_is_left_alone(ready: Toy) -> None:
    pr(ready, "--no-build")
    (work(ready) / "tools" / "tool.c").write_text("mine\n")
    ready.stack(STACK, {"right-answer": [("tools/tool.c", "return 41;", "return 6 * 7;")]})

    answer = pr(ready, "--no-build")

    assert answer.status == 4
    assert "somebody's work" in answer.json["what"]
    assert (work(ready) / "tools" / "tool.c").read_text() == "mine\n"


def test_a_reworded_branch_is_kept_and_told(ready: Toy) -> None:
    pr(ready, "--no-build")
    git(work(ready), "commit", "--quiet", "--amend", "--message", "toy : answer right")

    answer = pr(ready, "--no-build")

    assert answer.status == 0
    assert answer.json["branch"]["changed_by_a_person"] is True
    assert answer.json["branch"]["messages_to_write"] == []
    assert git(work(ready), "log", "-1", "--format=%s").strip() == "toy : answer right"


def test_required_stacks(ready: Toy) -> None:
    ready.stack("first", {"speak": [("src/part1.cpp", "#include", "// first\n#include")]}, order=10)
    ready.stack(
        STACK, {"right-answer": [ANSWER]}, on="first", requires=["first"], order=20, test=["tests/test_answer.py"]
    )

    refused = pr(ready, "--no-build")
    above = pr(ready, "--on-top-of", "first")

    assert refused.status == 2
    assert "--on-top-of first" in refused.json["next"]
    assert above.status == 0, above.stdout + above.stderr
    assert states(above) == ALL_GOOD
    assert [commit["patch"] for commit in above.json["branch"]["beneath"]] == ["speak.patch"]
    assert checklist(above)["one-feature"] == "needs-a-person"
    assert len(git(work(ready), "log", "--format=%h", f"{ready.commit}..{STACK}").split()) == 2
    # Both engines have the stack beneath: the evidence is about the change alone.
    for side in ("before", "after"):
        (wheel,) = (out(ready) / "wheels" / side).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (manifest,) = (name for name in archive.namelist() if name.endswith("/manifest.json"))
            assert b"speak.patch" in archive.read(manifest)


def test_killed_and_run_again(ready: Toy) -> None:
    child = ready.start_compiling(*arguments(ready))
    os.killpg(child.pid, signal.SIGKILL)
    child.communicate()
    assert ready.wait_until_alone() == {}

    answer = pr(ready)

    assert answer.status == 0, answer.stdout + answer.stderr
    assert states(answer) == ALL_GOOD
    ready.assert_sound()


def test_two_at_once(ready: Toy) -> None:
    children = [ready.start(*arguments(ready)) for _ in range(2)]
    done = [finish(child) for child in children]

    assert [answer.status for answer in done] == [0, 0], [answer.stderr for answer in done]
    assert done[0].json["branch"]["tip"] == done[1].json["branch"]["tip"]
    assert [states(answer) for answer in done] == [ALL_GOOD, ALL_GOOD]
    ready.assert_sound()


@pytest.mark.parametrize("engine", ["llama.cpp", "ik_llama.cpp"])
def test_rules_are_stated_in_these_words_at_the_real_pins(engine: str) -> None:
    recipe = load_recipe(engine, REPOSITORY, stacks=stack_names(REPOSITORY))
    cache = Cache.default()
    obtained = obtain(recipe, cache, Silent())

    documents = read_documents(Store(cache.store(recipe.family)), obtained.tree, recipe.family)

    unsaid = [rule.name for rule in RULES[engine] if rule.document and not documents.says(rule.document, rule.words)]
    assert unsaid == []
    assert documents.template
    assert documents.has_disclosure == (engine == "llama.cpp")


class Site:
    """Answers what ``replies`` says."""

    def __init__(self) -> None:
        self.replies: dict[str, Any] = {}
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                found = site.replies.get(self.path)
                self.send_response(200 if found is not None else 404)
                self.end_headers()
                self.wfile.write(json.dumps(found).encode())

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.http.shutdown()
    made.http.server_close()


def submitted(toy: Toy) -> Path:
    path = toy.root / "patches" / STACK / "llama.cpp" / "right-answer.patch"
    text = path.read_text()
    path.write_text(
        text.replace("Upstream-Status: Pending", "Upstream-Status: Submitted https://github.com/o/r/pull/7")
    )
    return path


def test_states_are_read_and_written_only_when_asked(ready: Toy, site: Site) -> None:
    path = submitted(ready)
    before, commit = path.read_text(), "c" * 40
    site.replies["/repos/o/r/pulls/7"] = {
        "number": 7, "state": "closed", "merged": True, "merge_commit_sha": commit,
    }  # fmt: skip

    read = ready.run("pr-status", STACK, "--api", site.url)
    assert (read.status, read.json["patches"][0]["should_be"]) == (0, f"Accepted {commit}")
    assert path.read_text() == before

    written = ready.run("pr-status", "--api", site.url, "--write")
    assert written.json["written"] == [f"{STACK}/llama.cpp/right-answer.patch"]
    assert path.read_text() == before.replace("Submitted https://github.com/o/r/pull/7", f"Accepted {commit}")
    assert pr(ready, "--no-build").status == 0, "the series is still exact"


def test_without_network_states_are_not_known(ready: Toy) -> None:
    before = submitted(ready).read_text()

    answer = ready.run("pr-status", "--api", "http://127.0.0.1:9", "--write")

    assert answer.status == 5
    assert "could not be read" in answer.json["what"]
    assert (ready.root / "patches" / STACK / "llama.cpp" / "right-answer.patch").read_text() == before
