"""The checklist: pass where a program can tell, a person where it cannot, and nothing unrun passes."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from forkyard.pullrequest.change import read_change
from forkyard.pullrequest.checking import CHECKS, NEEDS_PERSON, Facts, check_rules
from forkyard.pullrequest.documents import Documents, read_documents
from forkyard.pullrequest.evidence import FAIL, NOT_APPLICABLE, NOT_RUN, PASS, UNDECIDED, Evidence
from forkyard.pullrequest.policy import MARKER, POLICIES
from forkyard.pullrequest.rules import RULES
from forkyard.pullrequest.size import measure
from forkyard.stacks.model import Stack

from .conftest import HOME, Upstream

NAMES = ("build-before", "build-after", "regression", "backend-ops", "perplexity", "bench", "kl-divergence")


def pieces(state: str, **data: Any) -> dict[str, Evidence]:
    return {name: Evidence(name, name, state, f"{name} {state}", ("ran",), data=data) for name in NAMES}


@pytest.fixture
def facts(upstream: Upstream, kv: Stack) -> Facts:
    prepared = upstream.prepare(kv)
    change = read_change(upstream.store, prepared.below, prepared.tip)
    documents = Documents({}, b"AI usage disclosure: x", POLICIES["llama.cpp"])
    return Facts(
        "llama.cpp", prepared, change, measure(change, frozenset()), pieces(PASS), documents, [], [f"{MARKER} first"]
    )


def change_of(facts: Facts, upstream: Upstream, files: dict[str, Any]) -> Facts:
    change = read_change(upstream.store, upstream.home.tree, upstream.forge.tree({**HOME, **files}))
    return dataclasses.replace(facts, change=change, size=measure(change, frozenset()))


def status(facts: Facts, name: str) -> str:
    return next(item.verdict.status for item in check_rules(facts) if item.rule.name == name)


def test_every_rule_has_a_check_and_a_name_of_its_own() -> None:
    for rules in RULES.values():
        assert len({rule.name for rule in rules}) == len(rules)
        for rule in rules:
            assert rule.check == "person" or rule.check in CHECKS
            assert rule.advice or rule.check != "person"
    used = {rule.check for rules in RULES.values() for rule in rules}
    assert set(CHECKS) <= used


@pytest.mark.parametrize("family", list(RULES))
@pytest.mark.parametrize("state", [FAIL, UNDECIDED, NOT_RUN, None])
def test_what_was_not_run_or_failed_never_passes(facts: Facts, family: str, state: str | None) -> None:
    evidence = {} if state is None else pieces(state)
    items = check_rules(dataclasses.replace(facts, family=family, evidence=evidence))

    wanted = FAIL if state == FAIL else NEEDS_PERSON
    found = {item.rule.name: item.verdict.status for item in items}
    for name in ("builds", "regression-test", "perplexity", "performance"):
        assert found[name] == wanted, name


def test_messages_are_a_persons(facts: Facts) -> None:
    for left in (facts.messages_to_write, []):
        assert status(dataclasses.replace(facts, messages_to_write=left), "messages") == NEEDS_PERSON
    for name in ("title", "disclosure", "assisted-by", "submission", "full-ci", "duplicates", "understood"):
        assert status(facts, name) == NEEDS_PERSON


def test_our_tests_alone_are_no_regression_test_of_upstreams(facts: Facts, upstream: Upstream) -> None:
    assert status(facts, "regression-test") == NEEDS_PERSON
    assert status(change_of(facts, upstream, {"tests/test-x.cpp": b"x\n"}), "regression-test") == PASS


def test_new_tests_want_approval(facts: Facts, upstream: Upstream) -> None:
    assert status(facts, "new-tests") == PASS
    assert status(change_of(facts, upstream, {"tests/test-x.cpp": b"x\n"}), "new-tests") == NEEDS_PERSON


def test_several_patches_of_a_module_and_of_several(facts: Facts) -> None:
    assert status(facts, "one-feature") == NEEDS_PERSON
    one, two = facts.prepared.commits
    single = dataclasses.replace(facts.prepared, commits=(one,))
    assert status(dataclasses.replace(facts, prepared=single), "one-feature") == PASS
    mixed = dataclasses.replace(facts.prepared, commits=(one, dataclasses.replace(two, subject="ggml : x")))
    assert status(dataclasses.replace(facts, prepared=mixed), "one-feature") == FAIL
    above = dataclasses.replace(single, beneath=(two,))
    assert status(dataclasses.replace(facts, prepared=above), "one-feature") == NEEDS_PERSON


def test_what_upstream_seems_to_have(facts: Facts) -> None:
    assert status(facts, "needed") == PASS
    one, two = facts.prepared.commits
    old = dataclasses.replace(facts.prepared, commits=(dataclasses.replace(one, retired="it has"), two))
    assert status(dataclasses.replace(facts, prepared=old), "needed") == FAIL


@pytest.mark.parametrize(
    ("backends", "complete", "expected"),
    [(["CPU"], True, NEEDS_PERSON), (["CPU", "CUDA0"], True, PASS), (["CPU", "CUDA0"], False, NEEDS_PERSON)],
)
def test_a_change_in_ggml_wants_two_backends(
    facts: Facts, upstream: Upstream, backends: list[str], complete: bool, expected: str
) -> None:
    assert status(facts, "backend-ops") == NOT_APPLICABLE
    ggml = change_of(facts, upstream, {"ggml/src/ggml.c": b"x\n"})
    evidence = pieces(PASS, backends=backends, complete=complete)
    assert status(dataclasses.replace(ggml, evidence=evidence), "backend-ops") == expected
    assert status(dataclasses.replace(facts, evidence=pieces(FAIL)), "backend-ops") == FAIL


def test_what_is_undecided_is_no_pass(facts: Facts) -> None:
    assert status(facts, "performance") == PASS
    assert status(dataclasses.replace(facts, evidence=pieces(UNDECIDED)), "performance") == NEEDS_PERSON


def test_operators(facts: Facts, upstream: Upstream) -> None:
    assert status(facts, "operator-tests") == status(facts, "operator-docs") == NOT_APPLICABLE
    touched = change_of(facts, upstream, {"ggml/src/ggml-cpu/ops.cpp": b"x\n"})
    assert status(touched, "operator-tests") == NEEDS_PERSON
    header = b"enum ggml_op {\n GGML_OP_NEW,\n};\n"
    new = change_of(facts, upstream, {"ggml/include/ggml.h": header})
    assert status(new, "operator-tests") == status(new, "operator-docs") == FAIL
    files = {"ggml/include/ggml.h": header, "tests/test-backend-ops.cpp": b"x\n", "docs/ops.md": b"x\n"}
    whole = change_of(facts, upstream, files)
    assert status(whole, "operator-tests") == status(whole, "operator-docs") == PASS


def test_types(facts: Facts, upstream: Upstream) -> None:
    assert status(facts, "new-type") == NOT_APPLICABLE
    new = change_of(facts, upstream, {"ggml/include/ggml.h": b"enum ggml_type {\n GGML_TYPE_NEW,\n};\n"})
    assert status(new, "new-type") == NEEDS_PERSON
    assert status(dataclasses.replace(new, evidence=pieces(FAIL)), "new-type") == FAIL


@pytest.mark.parametrize(
    ("files", "name", "expected"),
    [
        ({"include/llama.h": b"int more(void);\n"}, "public-api", NEEDS_PERSON),
        ({"common/arg.cpp": b"x\n"}, "public-api", NEEDS_PERSON),
        ({"ggml/src/ggml-cuda/x.cu": b"x\n"}, "cpu-first", NEEDS_PERSON),
        ({"CMakeLists.txt": b"find_package(X)\n"}, "dependencies", FAIL),
        ({"new.cpp": b"x\n"}, "extra-files", NEEDS_PERSON),
        ({"new.cpp": "\u2014\n".encode()}, "ascii", FAIL),
        ({"new.cpp": b"x \n"}, "whitespace", FAIL),
        ({"tools/server/x.cpp": b"x\n"}, "server-docs", NEEDS_PERSON),
        ({"new.cpp": b"x\n" * 401}, "size", NEEDS_PERSON),
        ({"new.cpp": b"x\n" * 401}, "code-owner", NEEDS_PERSON),
        ({"new.cpp": b"x\n" * 1001}, "size", FAIL),
        ({f"n{number}.cpp": b"x\n" for number in range(31)}, "size", FAIL),
    ],
)
def test_rules_about_files(facts: Facts, upstream: Upstream, files: dict[str, bytes], name: str, expected: str) -> None:
    assert status(facts, name) in (PASS, NOT_APPLICABLE)
    assert status(change_of(facts, upstream, files), name) == expected


def test_long_lists_are_cut(facts: Facts, upstream: Upstream) -> None:
    items = check_rules(change_of(facts, upstream, {"new.cpp": b"x \n" * 100}))
    (details,) = (item.verdict.details for item in items if item.rule.name == "whitespace")
    assert (len(details), details[-1]) == (21, "and 80 more")


def test_the_disclosure_line(facts: Facts) -> None:
    assert status(facts, "disclosure-line") == PASS
    for template in (b"nothing", None):
        documents = Documents({}, template, POLICIES["llama.cpp"])
        assert status(dataclasses.replace(facts, documents=documents), "disclosure-line") == FAIL


def test_rules_that_upstream_states_in_other_words_now(upstream: Upstream, facts: Facts) -> None:
    tree = upstream.forge.tree({"CONTRIBUTING.md": b"Test\n   YOUR changes, please.\n", "AGENTS.md": b"\xff"})
    documents = read_documents(upstream.store, tree, "llama.cpp")

    items = {item.rule.name: item for item in check_rules(dataclasses.replace(facts, documents=documents))}

    assert items["builds"].stated is True
    assert items["one-feature"].stated is False
    assert items["messages"].stated is False
    assert documents.template is None
    assert documents.as_json() == {
        "documents": ["AGENTS.md", "CONTRIBUTING.md"], "template": None, "disclosure_line": False,
    }  # fmt: skip
