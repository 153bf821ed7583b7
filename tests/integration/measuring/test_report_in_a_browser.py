"""The report of a run in a real browser: it shows, within its width, and asks for nothing from elsewhere."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from forkyard_llm.measuring.machine import describe
from forkyard_llm.measuring.records import Arm, Recorded, RunInfo, Sample
from forkyard_llm.measuring.report import write_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [
    pytest.mark.deep,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed (Debian: apt-get install chromium)"),
]


@pytest.fixture
def page(tmp_path: Path) -> Path:
    arms = [
        Arm(f"llama.cpp, {count} threads", ("llama-bench", "-t", str(count)), ("pp512", "tg128"), "",
            values={"engine": "llama.cpp", "threads": str(count)})
        for count in (1, 2, 4, 8)
    ]  # fmt: skip
    samples = [
        Sample(arm.name, number, test, 100.0 * (at + 1) + number, 1e9, 0.5, 100.0)
        for number in range(5)
        for at, arm in enumerate(arms)
        for test in arm.tests
    ]
    info = RunInfo("ef" * 16, "threads", 1e9, "model.gguf", 4, describe(), arms[0].name)
    write_report([Recorded(info, arms, samples)], tmp_path / "page.html")
    return tmp_path / "page.html"


def browse(page: Path, *words: str) -> subprocess.CompletedProcess[str]:
    assert BROWSER is not None
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr"]
    profile = f"--user-data-dir={page.parent / 'profile'}"
    return subprocess.run(
        [*command, profile, *words, page.as_uri()], capture_output=True, text=True, timeout=300, check=True
    )


@pytest.mark.parametrize("width", [500, 1280])
def test_it_shows_as_it_is_meant(page: Path, width: int) -> None:
    picture = page.with_name("page.png")
    done = browse(page, f"--window-size={width},3000", f"--screenshot={picture}")
    assert "Content Security Policy" not in done.stderr
    header = picture.read_bytes()[:24]
    assert struct.unpack(">II", header[16:24]) == (width, 3000)
    # A picture of an empty page has a few kilobytes.
    assert picture.stat().st_size > 30000


def test_its_text_and_plots_are_there(page: Path) -> None:
    text = browse(page, "--dump-dom").stdout
    assert text.count("<svg") == 1
    assert "8 threads is fastest" in text
    assert 'aria-label="Speed against threads' in text
