"""Each test belongs to a tier, and the run says where its time went."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

TESTS = {
    "a/test_a.py": "import pytest\n@pytest.mark.deep\ndef test_deep():\n    pass\ndef test_quick():\n    pass\n",
    "b/test_b.py": "import time, pytest\n@pytest.fixture\ndef slow():\n    time.sleep(0.3)\ndef test_b(slow):\n    pass\n",
}


def run(folder: Path, *words: str) -> str:
    for name, text in TESTS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    (folder / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    command = [sys.executable, "-m", "pytest", "-q", "--rootdir", str(folder), "-c", os.devnull, "--strict-markers"]
    done = subprocess.run([*command, *words, str(folder)], capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_time_of_each_folder_is_printed(tmp_path: Path) -> None:
    said = run(tmp_path, "-m", "not deep")
    rows = re.findall(r"^ +(\d+\.\d) +(\d+\.\d)  (\w+)$", said, re.MULTILINE)
    assert [name for _, _, name in rows] == ["b", "a", "together"], said
    # A build is in the set-up of the first test that needs it.
    assert float(rows[0][0]) >= 0.3 > float(rows[0][1])
    assert "2 passed, 1 deselected" in said


def test_the_deep_tier_has_the_rest(tmp_path: Path) -> None:
    assert "1 passed, 2 deselected" in run(tmp_path, "-m", "deep")
