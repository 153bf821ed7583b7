"""The checklist: upstream's rules as data, each with the place in upstream's tree that states it.

A rule whose words are no longer in that place is still checked, and the report says that a person must read the
document again: upstream has changed its mind or only its wording.
"""

from __future__ import annotations

from dataclasses import dataclass

CONTRIBUTING, AGENTS, TEMPLATE = "CONTRIBUTING.md", "AGENTS.md", ".github/pull_request_template.md"


@dataclass(frozen=True)
class Rule:
    """One rule."""

    name: str
    title: str
    check: str
    """The function of :mod:`forkyard.pullrequest.checking` that decides; ``person`` where none can."""
    document: str | None = None
    """Where upstream states it; ``None`` for a custom nobody wrote down, or one of ours."""
    words: str = ""
    """Words of that document the rule stands in."""
    advice: str = ""
    """What a person has to do."""


_CI = "bash ci/run.sh ./tmp/results ./tmp/mnt"

_LLAMA = (
    Rule("builds", "Upstream's commit and the branch build", "builds", CONTRIBUTING, "Test your changes"),
    Rule(
        "one-feature",
        "One feature or fix in a pull request",
        "one_feature",
        CONTRIBUTING,
        "Create separate PRs for each feature or fix",
    ),
    Rule(
        "needed",
        "The change is still needed at the target",
        "needed",
        AGENTS,
        "ensure the change is needed",
    ),
    Rule(
        "issue-first",
        "A feature starts as an issue, a fix answers one that can be reproduced",
        "person",
        CONTRIBUTING,
        "Features must begin with an issue, not a PR",
        "open the issue or name the one it answers, and wait for interest before the pull request",
    ),
    Rule(
        "regression-test",
        "A regression test fails before and passes after",
        "regression",
        CONTRIBUTING,
        "a regression test that fails before your change and passes after",
        "agree with maintainers where the test belongs: ours is not part of upstream's tree",
    ),
    Rule(
        "duplicates",
        "Nobody has proposed the same",
        "duplicates",
        CONTRIBUTING,
        "Search for existing discussions and PRs first",
        "open the searches of the report and look",
    ),
    Rule(
        "new-contributor",
        "A new contributor has one open pull request, and it is not a trivial fix",
        "person",
        CONTRIBUTING,
        "Limit your open PRs to 1",
        "look at your own open pull requests",
    ),
    Rule(
        "new-tests",
        "No new file in tests/ without maintainers' approval",
        "new_tests",
        AGENTS,
        "Do NOT add a new file in `tests/*` without maintainers' approval",
        "ask maintainers first, or put the cases into a test that is there",
    ),
    Rule(
        "cpu-first",
        "Initial support is for the CPU alone",
        "cpu_first",
        CONTRIBUTING,
        "focus on **CPU support only** in the initial PR",
        "leave the other backends to a later pull request, or say why not",
    ),
    Rule("size", "It can be reviewed in one piece", "size", CONTRIBUTING, "one hour per 200-400 LOC", "split it"),
    Rule(
        "understood",
        "The submitter understands, and has reviewed, every line",
        "understood",
        CONTRIBUTING,
        "Be prepared to explain every line of code you submit",
        "review it yourself, without haste",
    ),
    Rule(
        "full-ci",
        "The full CI was run on the submitter's machine",
        "person",
        CONTRIBUTING,
        "the full CI locally on your machine",
        f"run it on the branch: mkdir -p tmp && {_CI}",
    ),
    Rule(
        "perplexity",
        "Perplexity is not affected negatively",
        "perplexity",
        CONTRIBUTING,
        "Verify that the perplexity and the performance are not affected negatively",
        "run llama-perplexity on both builds",
    ),
    Rule(
        "performance",
        "Speed is not affected negatively",
        "performance",
        CONTRIBUTING,
        "Verify that the perplexity and the performance are not affected negatively",
        "run llama-bench on both builds, on a quiet machine",
    ),
    Rule(
        "backend-ops",
        "A change in ggml: test-backend-ops on two backends",
        "backend_ops",
        CONTRIBUTING,
        "this requires access to at least two different `ggml` backends",
        "run test-backend-ops on a machine with another backend (CUDA, Vulkan, Metal ...)",
    ),
    Rule(
        "operator-tests",
        "A new or changed operator has its cases in test-backend-ops",
        "operator_tests",
        CONTRIBUTING,
        "add the corresponding test cases to `test-backend-ops`",
        "add cases to tests/test-backend-ops.cpp, unless the operators do what they did before",
    ),
    Rule(
        "operator-docs",
        "A new or changed operator is in docs/ops.md and docs/ops/*.csv",
        "operator_docs",
        "docs/ops.md",
        "",
        "run `test-backend-ops support --output csv` for the backend and scripts/create_ops_docs.py",
    ),
    Rule(
        "new-type",
        "A new type: model uploaded, perplexity, KL divergence and CPU speed beside similar types",
        "new_type",
        CONTRIBUTING,
        "to add a new quantization type you will need to meet the following",
        "convert a small model to the type, upload it, and compare it with types of similar size",
    ),
    Rule(
        "public-api",
        "A new API or option is justified and has a working example",
        "public_api",
        CONTRIBUTING,
        "New CLI or public API additions carry a **higher bar**",
        "say why what is there does not suffice, and show it working",
    ),
    Rule(
        "dependencies",
        "No third-party dependency",
        "dependencies",
        CONTRIBUTING,
        "Avoid adding third-party dependencies",
        "do without it",
    ),
    Rule(
        "extra-files",
        "No extra files",
        "extra_files",
        CONTRIBUTING,
        "Avoid adding third-party dependencies, extra files, extra headers",
        "say why each new file is needed",
    ),
    Rule("ascii", "Added code is ASCII", "ascii", AGENTS, "any unicode characters", "write the ASCII equivalents"),
    Rule(
        "whitespace",
        "Spaces, LF line ends, nothing trailing",
        "whitespace",
        CONTRIBUTING,
        "Clean-up any trailing whitespaces, use 4 spaces for indentation",
        "mend the lines and refresh the patch",
    ),
    Rule(
        "clang-format",
        "Added lines follow upstream's clang-format, version 15 or newer",
        "person",
        CONTRIBUTING,
        "use `clang-format` (from clang-tools v15+) to format the added code",
        "run `git clang-format --diff BASE` on the branch; upstream asks for it only in case of doubt",
    ),
    Rule(
        "server-docs",
        "A change of the server follows its development documentation",
        "server",
        CONTRIBUTING,
        "please make sure to refer to the",
        "read tools/server/README-dev.md",
    ),
    Rule(
        "code-owner",
        "A large piece of code has somebody who maintains it",
        "code_owner",
        CONTRIBUTING,
        "When adding or modifying a large piece of code",
        "name yourself in CODEOWNERS, or find a collaborator who maintains it",
    ),
    Rule(
        "messages",
        "Commit messages and description are written by a named person",
        "messages",
        AGENTS,
        "Do NOT write PR descriptions, commit messages, or reviewer responses",
        "write them yourself: `git rebase -i BASE` with `reword`, and `git commit --amend --reset-author`",
    ),
    Rule(
        "title",
        "The title has the form `<module> : <title>`",
        "person",
        CONTRIBUTING,
        "`<module> : <commit title> (#<issue_number>)`",
        "word it yourself",
    ),
    Rule(
        "disclosure-line",
        "The line on AI usage stays in the description",
        "disclosure_line",
        TEMPLATE,
        "AI usage disclosure",
        "keep the template's section on requirements",
    ),
    Rule(
        "disclosure",
        "AI usage is disclosed: YES or NO, and how",
        "person",
        TEMPLATE,
        "YES / NO - if yes, describe how AI was used",
        "fill it in truthfully",
    ),
    Rule(
        "assisted-by",
        "Where AI helped, the commit says `Assisted-by:`, not `Co-authored-by:`",
        "person",
        AGENTS,
        "use `Assisted-by: <assistant name>` in the commit message",
        "add the trailer to the messages you write",
    ),
    Rule(
        "write-access",
        "Maintainers may push to the branch",
        "person",
        CONTRIBUTING,
        "Consider allowing write access to your branch",
        "tick it when you open the pull request",
    ),
    Rule(
        "submission",
        "A person pushes the branch and opens the pull request",
        "person",
        AGENTS,
        "Do NOT run `git push` or create a PR",
        "do it yourself: forkyard pushes and submits nothing",
    ),
)

_IK = (
    Rule("builds", "Upstream's commit and the branch build", "builds", CONTRIBUTING, "Test your changes"),
    Rule("one-feature", "One feature or fix in a pull request", "one_feature"),
    Rule("needed", "The change is still needed at the target", "needed"),
    Rule("regression-test", "A regression test fails before and passes after", "regression"),
    Rule("duplicates", "Nobody has proposed the same", "duplicates", advice="open the searches of the report and look"),
    Rule("size", "It can be reviewed in one piece", "size", advice="split it"),
    Rule(
        "read",
        "The contributing guidelines were read",
        "person",
        TEMPLATE,
        "I have read the [contributing guidelines]",
        "read them; the template's box is ticked from the start",
    ),
    Rule(
        "complexity",
        "Review complexity is rated: Low, Medium or High",
        "complexity",
        CONTRIBUTING,
        "rate the complexity of your PR",
        "tick one box of the template",
    ),
    Rule(
        "tests",
        "Upstream's tests were run",
        "person",
        CONTRIBUTING,
        "Using the commands in the [`tests`](tests) folder",
        "build with -DLLAMA_BUILD_TESTS=ON and run ctest and tests/test-backend-ops",
    ),
    Rule(
        "full-ci",
        "The full CI was run on the submitter's machine",
        "person",
        CONTRIBUTING,
        "the full CI locally on your machine",
        f"run it on the branch: mkdir -p tmp && {_CI}",
    ),
    Rule("perplexity", "Perplexity is not affected negatively", "perplexity", advice="run llama-perplexity on both"),
    Rule("performance", "Speed is not affected negatively", "performance", advice="run llama-bench on both builds"),
    Rule(
        "sweep",
        "Performance tables by llama-sweep-bench",
        "person",
        advice="the custom there: build llama-sweep-bench before and after, and compare their tables",
    ),
    Rule(
        "public-api",
        "A new API or option is justified and has a working example",
        "public_api",
        advice="say why what is there does not suffice",
    ),
    Rule(
        "dependencies",
        "No third-party dependency",
        "dependencies",
        CONTRIBUTING,
        "Avoid adding third-party dependencies",
        "do without it",
    ),
    Rule(
        "extra-files",
        "No extra files",
        "extra_files",
        CONTRIBUTING,
        "Avoid adding third-party dependencies, extra files, extra headers",
        "say why each new file is needed",
    ),
    Rule("ascii", "Added code is ASCII", "ascii", advice="write the ASCII equivalents"),
    Rule(
        "whitespace",
        "Spaces, LF line ends, nothing trailing",
        "whitespace",
        CONTRIBUTING,
        "Clean-up any trailing whitespaces, use 4 spaces for indentation",
        "mend the lines and refresh the patch",
    ),
    Rule(
        "title",
        "The title has the form `<module> : <title>`",
        "person",
        CONTRIBUTING,
        "`<module> : <commit title> (#<issue_number>)`",
        "word it yourself",
    ),
    Rule(
        "write-access",
        "Maintainers may push to the branch",
        "person",
        CONTRIBUTING,
        "Consider allowing write access to your branch",
        "tick it when you open the pull request",
    ),
    Rule(
        "submission",
        "A person pushes the branch and opens the pull request",
        "person",
        advice="do it yourself: forkyard pushes and submits nothing",
    ),
)

RULES: dict[str, tuple[Rule, ...]] = {"llama.cpp": _LLAMA, "ik_llama.cpp": _IK}
"""Rules by engine family, in the order a person goes through them."""
