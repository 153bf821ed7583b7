from __future__ import annotations

import dataclasses
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest
from forkyard_llm.measuring.records import Arm, Recorded, RunInfo, Sample
from forkyard_llm.measuring.report import write_report

from .conftest import arm

HOSTILE = '<script>alert(1)</script> "onload=x" $\\frac$ &amp; https://evil.example/x.png'


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def run_of(values: list[dict[str, str]], tests: tuple[str, ...], **facts: object) -> Recorded:
    arms = [arm(f"arm {number}", *tests, **one) for number, one in enumerate(values)]
    samples = [
        Sample(one.name, number, test, 10.0 + at + number / 10, 1e9, 0.5, 10.0)
        for number in range(4)
        for at, one in enumerate(arms)
        for test in tests
    ]
    info = RunInfo("cd" * 16, "threads", 1e9, "model.gguf", 4, {"cpu": "A CPU"}, "arm 0", facts=facts)
    return Recorded(info, arms, samples)


def written(tmp_path: Path, *runs: Recorded) -> tuple[str, Page]:
    write_report(runs, tmp_path / "x.html")
    text = (tmp_path / "x.html").read_text()
    return text, Page(text)


def test_a_run_with_its_table_and_commands(tmp_path: Path, recorded: Recorded) -> None:
    _, page = written(tmp_path, recorded)
    words = " ".join(" ".join(page.words).split())
    assert "305.00" in words
    assert "1.52x" in words
    assert "a tie" in words
    assert "killed by signal 9" in words
    assert "llama-bench -m" in words
    assert "of 31 samples were not counted" in words
    assert page.tags.count("svg") == 1


@pytest.mark.parametrize(
    ("values", "tests", "caption"),
    [
        ([{"engine": "a", "threads": str(t)} for t in (1, 2, 4)], ("pp8", "tg8"), "Speed against threads"),
        ([{"parallel": str(t)} for t in (1, 2, 4)], ("generated",), "Speed against parallel"),
        ([{}, {}], ("tg8", "tg8 @ d64"), "Speed against tokens in the cache"),
        ([{"threads": str(t), "ubatch": str(u)} for t in (1, 2) for u in (64, 128)], ("tg8",), "threads and ubatch"),
        ([{}, {}], ("pp8", "tg8", "tg9"), "Speed"),
    ],
)
def test_the_plot_is_chosen_by_what_varies(
    tmp_path: Path, values: list[dict[str, str]], tests: tuple[str, ...], caption: str
) -> None:
    text, _ = written(tmp_path, run_of(values, tests))
    assert re.search(rf"<figcaption>[^<]*{caption}[^<]*</figcaption>", text)


def test_quality_against_speed(tmp_path: Path) -> None:
    kld = {"arm 0": {"mean": 0.001}, "arm 1": {"mean": 0.1}, "arm 2": {"mean": "x"}}
    text, _ = written(tmp_path, run_of([{}, {}, {}], ("tg8",), kld=kld))
    assert "Quality against speed and memory" in text


def test_texts_of_strangers_are_texts(tmp_path: Path, recorded: Recorded) -> None:
    info = dataclasses.replace(recorded.info, model=HOSTILE, title=HOSTILE, machine={HOSTILE: HOSTILE}, anchor=HOSTILE)
    arms = [Arm(HOSTILE, (HOSTILE,), (HOSTILE,), HOSTILE, values={"engine": HOSTILE, "threads": "2"})]
    samples = [Sample(HOSTILE, number, HOSTILE, 1.0, 1e9, 0.0, 1.0) for number in range(3)]
    text, page = written(tmp_path, Recorded(info, arms, samples, {}))
    assert "script" not in page.tags
    assert "<script" not in text
    assert not [one for one in page.attributes if one[0].startswith("on")]


def test_the_page_needs_nothing_else(tmp_path: Path, recorded: Recorded) -> None:
    text, page = written(tmp_path, recorded, run_of([{"threads": str(t)} for t in (1, 2, 4)], ("pp8", "tg8")))
    named = [value for name, value in page.attributes if name in ("src", "href", "xlink:href", "action", "data")]
    assert all((value or "").startswith("#") for value in named)
    assert "default-src 'none'" in text
    assert not set(page.tags) & {"script", "link", "img", "image", "iframe", "object"}
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    for svg in re.findall(r"<svg .*?</svg>", text, re.DOTALL):
        assert ElementTree.fromstring(svg).get("aria-label")


def test_the_same_runs_give_the_same_bytes(tmp_path: Path, recorded: Recorded) -> None:
    write_report([recorded], tmp_path / "a.html")
    write_report([recorded], tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
