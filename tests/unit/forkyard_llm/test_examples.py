"""The examples of the documents: what a strict type checker says of them, and whether each method has one."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

from forkyard_llm import Llama

from ...examples import ROOT, Example, examples


def attributes(example: Example) -> set[str]:
    """What it uses of a model, or of the class."""
    return {
        node.attr
        for node in ast.walk(ast.parse(example.text))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("llm", "Llama")
    }


def test_each_public_method_has_an_example_that_runs():
    public = {name for name in vars(Llama) if not name.startswith("_")}
    used = {name for example in examples() if example.runs for name in attributes(example)}
    assert len(public) > 35
    assert public <= used, sorted(public - used)


def test_examples_use_what_there_is():
    wrong = [
        f"{example.where}: {name}"
        for example in examples()
        for name in attributes(example)
        if not hasattr(Llama, name) and "llama_cpp" not in example.text
    ]
    assert not wrong


def test_examples_pass_mypy_strict(tmp_path: Path):
    names = {}
    for number, example in enumerate(examples()):
        (tmp_path / f"example_{number}.py").write_text(example.text)
        names[f"example_{number}.py"] = example.where
    assert len(names) > 15
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", *map(str, sorted(tmp_path.glob("*.py")))],
        cwd=ROOT,
        env={**os.environ, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    said = done.stdout + done.stderr
    for name, where in names.items():
        said = said.replace(str(tmp_path / name), where).replace(name, where)
    assert done.returncode == 0, said
