"""A comparison for people: as plain text, in colour for a terminal, and as a page of its own.

What is compared is anybody's text. Whatever could steer a terminal, or reorder what is read, is shown as an escape.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import jinja2
from rich.text import Text

from forkyard.rangediff.model import SHORT, Comparison, Fact, Line, Pair, Place

_WORDS = {"=": "same", "!": "changed", "<": "dropped", ">": "added"}
# C0 without tab, DEL, C1, and the marks that turn the direction of writing or hide.
_UNSAFE = re.compile(
    r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)
_FOLD_LINES = 400
"""A longer difference is folded on the page until it is asked for."""
_LONG_FACT = 100
_WORDS_AROUND = 3
# git's dual colours: the outer sign in reverse, the line in the colour of what the patch does; lines of the old patch
# dim, those of the new one bold.
_INNER = {"+": "green", "-": "red", "@": "cyan", "#": "bold", " ": ""}
_OUTER = {"+": ("reverse green", "bold"), "-": ("reverse red", "dim"), " ": ("", ""), "@": ("", "cyan")}
_HEADER = {"=": "green", "!": "yellow", "<": "red", ">": "cyan"}


def visible(text: str) -> str:
    """The text with control characters as carets (``^[``) and other unsafe ones as code points (``<U+202E>``)."""

    def shown(match: re.Match[str]) -> str:
        code = ord(match[0])
        return f"^{chr(code ^ 0x40)}" if code < 0x80 else f"<U+{code:04X}>"

    return _UNSAFE.sub(shown, text)


# -- text ----------------------------------------------------------------------------------------


def as_text(comparisons: Sequence[Comparison], *, stat: bool = False) -> Text:
    """Tables and, unless ``stat``, what git says: plain where colours are not wanted, and then exactly git's words."""
    parts = []
    for one in comparisons:
        text = Text("\n").join([_heading(one), *_table(one), *_lists(one)])
        if not stat and one.pairs:
            text.append("\n\n").append_text(difference(one))
        parts.append(text)
    return Text("\n\n").join(parts)


def difference(comparison: Comparison) -> Text:
    """What ``git range-diff`` prints about it, in its dual colours."""
    lines = []
    for pair in comparison.pairs:
        lines.append(Text(visible(pair.header), style=_HEADER[pair.sign]))
        lines += [_coloured(line) for line in pair.lines]
    return Text("\n").join(lines)


def _coloured(line: Line) -> Text:
    sign_style, strength = _OUTER.get(line.outer, ("", ""))
    text = Text("    ")
    if line.outer == "@":
        return text.append(visible(line.text), style=strength)
    text.append(visible(line.text[:1]), style=sign_style)
    return text.append(visible(line.text[1:]), style=f"{strength} {_INNER.get(line.inner, '')}".strip())


def _heading(comparison: Comparison) -> Text:
    lines = [Text(visible(f"{comparison.stack} for {comparison.engine}"), style="bold")]
    for word, place in (("old", comparison.old), ("new", comparison.new)):
        lines.append(Text(f"  {word}: {place_text(place)}"))
        lines += [Text(f"       {visible(note)}") for note in place.notes]
    return Text("\n").join(lines)


def place_text(place: Place) -> str:
    """Where one side was taken, in words."""
    if place.pin is None:
        return visible(f"{place.revision}, where it was not there")
    after = f" after {', '.join(place.after)}" if place.after else ""
    number = f"{place.patches} patch{'' if place.patches == 1 else 'es'}"
    return visible(f"{place.revision}, {number} on {place.pin[:SHORT]} of {place.date}{after}")


def _table(comparison: Comparison) -> Iterator[Text]:
    if not comparison.pairs:
        yield Text("  no patches in either")
        return
    width = max(len(str(max(comparison.old.patches, comparison.new.patches))), 3)
    names = max(len(visible(pair.name)) for pair in comparison.pairs)
    yield Text(f"  {'old':>{width}}   {'new':>{width}}  patch", style="bold")
    for pair in comparison.pairs:
        old, new = (str(side.number) if side else "-" for side in (pair.old, pair.new))
        remarks = ", ".join(remarks_of(pair))
        line = f"  {old:>{width}} {pair.sign} {new:>{width}}  {visible(pair.name):<{names if remarks else 0}}"
        yield Text(line + (f"  {remarks}" if remarks else ""), style=_HEADER[pair.sign])
        for fact in pair.facts:
            yield Text(f"  {'':>{2 * width + 5}}{fact_text(fact)}")


def remarks_of(pair: Pair) -> list[str]:
    """What became of a patch, in words."""
    words = [_WORDS[pair.sign]] if pair.sign != "=" else []
    plus, minus = pair.counts
    if plus or minus:
        words[-1] += f" +{plus} -{minus}"
    if pair.rewritten:
        words.append("rewritten: the other revision has another patch of this name")
    if pair.renamed_from is not None:
        words.append(f"was {visible(pair.renamed_from)}")
    if pair.moved and pair.old and pair.new:
        words.append(f"moved from {pair.old.number} to {pair.new.number}")
    return words


def fact_text(fact: Fact) -> str:
    """A change in one line; of two long texts only the words around where they differ."""
    old, new = (" ".join(value.split()) if value is not None else None for value in (fact.old, fact.new))
    if old is None:
        return visible(f"{fact.what}: now {new}")
    if new is None:
        return visible(f"{fact.what}: no longer {old}")
    if len(old) + len(new) > _LONG_FACT:
        old, new = _around(old, new)
    return visible(f"{fact.what}: {old} -> {new}")


def _around(old: str, new: str) -> tuple[str, str]:
    one, other = old.split(" "), new.split(" ")
    start = 0
    while start < min(len(one), len(other)) and one[start] == other[start]:
        start += 1
    end = 0
    while end < min(len(one), len(other)) - start and one[-1 - end] == other[-1 - end]:
        end += 1
    start, end = max(start - _WORDS_AROUND, 0), max(end - _WORDS_AROUND, 0)

    def cut(words: list[str]) -> str:
        kept = words[start : len(words) - end]
        return " ".join([*(["..."] if start else []), *kept, *(["..."] if end else [])])

    return cut(one), cut(other)


def _lists(comparison: Comparison) -> Iterator[Text]:
    for title, facts in (("stack.toml", comparison.metadata), ("whole files (sha256)", comparison.files)):
        if facts:
            yield Text(f"  {title}", style="bold")
            yield from (Text(f"    {fact_text(fact)}") for fact in facts)


# -- a page --------------------------------------------------------------------------------------


def as_html(comparisons: Sequence[Comparison]) -> str:
    """A page that needs nothing else: a table, and each patch's difference with both levels of signs."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("forkyard.rangediff"),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(visible=visible, fact=fact_text, place=place_text, remarks=remarks_of)
    return environment.get_template("rangediff.html.j2").render(
        comparisons=comparisons,
        words=_WORDS,
        fold=_FOLD_LINES,
        outer_class={"+": "on", "-": "oo", "@": "oh", " ": "ob"},
        inner_class={"+": "ip", "-": "im", "@": "ih", "#": "if", " ": "ib"},
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
