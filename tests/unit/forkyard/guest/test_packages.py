"""Packages through an apt that is a shell script: what it is asked for, what is believed, what is used again."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from forkyard.cache import Cache
from forkyard.console import Silent
from forkyard.errors import NetworkError, SourceError, ToolchainError
from forkyard.guest.packages import TOOLS, get_packages, unpack

IMAGE = "linux-image-6.1.0-9-cloud-amd64"
CONTENT = {name: f"content of {name}" for name in (IMAGE, *TOOLS)}

APT_GET = """#!/bin/sh
echo "$@" >> {log}
while [ "$1" = -o ]; do shift 2; done
[ "$1" = -q ] && shift
case "$1" in
  update) [ -e {fail}/update ] && {{ echo "E: no network" >&2; exit 100; }}; exit 0 ;;
  download)
    name=${{2%%=*}}
    [ -e {fail}/download ] && {{ echo "E: 404" >&2; exit 100; }}
    if [ -e {fail}/content ]; then printf other; else printf 'content of %s' "$name"; fi > "${{name}}_1%3a2.0_amd64.deb" ;;
esac
"""
APT_CACHE = """#!/bin/sh
for name; do :; done
case "$name" in
  linux-image-cloud-amd64) printf 'Package: x\\nVersion: 6\\nDepends: {depends}\\nSHA256: 00\\n' ;;
{rows}
  *) echo "N: Unable to locate" >&2; exit 100 ;;
esac
"""
DPKG_DEB = """#!/bin/sh
[ "$1" = -x ] || exit 2
case "$(cat "$2")" in *broken*) echo "not a package" >&2; exit 2 ;; esac
mkdir -p "$3" && cp "$2" "$3/"
"""


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the fake programs; files in ``fail`` make them fail, ``log`` has apt-get's arguments."""
    write(tmp_path, depends=f"{IMAGE} (= 6.1.9-1)")
    (tmp_path / "fail").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return tmp_path


def write(folder: Path, depends: str) -> None:
    (folder / "bin").mkdir(exist_ok=True)
    rows = "\n".join(
        f"  {name}) printf 'Version: 1:2.0\\nSHA256: {hashlib.sha256(text.encode()).hexdigest()}\\n' ;;"
        for name, text in CONTENT.items()
    )
    for name, text in {
        "apt-get": APT_GET.format(log=folder / "log", fail=folder / "fail"),
        "apt-cache": APT_CACHE.format(depends=depends, rows=rows),
        "dpkg-deb": DPKG_DEB,
    }.items():
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    found = Cache(tmp_path / "cache")
    found.prepare()
    return found


def test_the_kernel_and_the_tools_are_fetched_once(apt: Path, cache: Cache) -> None:
    found = get_packages(cache, Silent(), offline=False)
    assert [one.name for one in found] == [IMAGE, *TOOLS]
    assert [one.path(cache).read_text() for one in found] == [CONTENT[one.name] for one in found]
    assert found[0].version == "1:2.0"
    asked = (apt / "log").read_text()
    assert f"Dir::State={cache.scratch}" in asked
    assert not list(cache.scratch.iterdir())
    assert get_packages(cache, Silent(), offline=True) == found
    assert (apt / "log").read_text() == asked
    get_packages(cache, Silent(), offline=False, refresh=True)
    assert (apt / "log").read_text() != asked


def test_what_was_changed_in_the_cache_is_not_used(apt: Path, cache: Cache) -> None:
    found = get_packages(cache, Silent(), offline=False)
    found[1].path(cache).write_text("evil")
    with pytest.raises(NetworkError, match="not in the cache"):
        get_packages(cache, Silent(), offline=True)
    assert get_packages(cache, Silent(), offline=False) == found
    assert found[1].path(cache).read_text() == CONTENT[found[1].name]


def test_an_index_that_is_damaged_is_made_again(apt: Path, cache: Cache) -> None:
    found = get_packages(cache, Silent(), offline=False)
    for text in ("", "[", "[3]", "{}", '[{"name": "x"}]'):
        (cache.root / "guest" / "packages.json").write_text(text)
        assert get_packages(cache, Silent(), offline=False) == found


def test_another_content_than_the_lists_name_is_refused(apt: Path, cache: Cache) -> None:
    (apt / "fail" / "content").touch()
    with pytest.raises(SourceError, match=r"not the one apt's lists name[\s\S]*expected sha256"):
        get_packages(cache, Silent(), offline=False)
    assert not list(cache.downloads.iterdir())


def test_apt_cannot_fetch(apt: Path, cache: Cache) -> None:
    (apt / "fail" / "download").touch()
    with pytest.raises(NetworkError, match=r"could not fetch[\s\S]*404"):
        get_packages(cache, Silent(), offline=False)


def test_lists_that_cannot_be_had_matter_only_if_a_package_is_missing(apt: Path, cache: Cache) -> None:
    (apt / "fail" / "update").touch()
    assert get_packages(cache, Silent(), offline=False)
    (apt / "bin" / "apt-cache").write_text("#!/bin/sh\nexit 100\n")
    with pytest.raises(NetworkError, match=r"apt knows no package linux-image-cloud-amd64[\s\S]*no network"):
        get_packages(cache, Silent(), offline=False, refresh=True)


def test_an_empty_package_that_leads_nowhere(apt: Path, cache: Cache) -> None:
    write(apt, depends="something-else")
    with pytest.raises(SourceError, match="depends on no kernel"):
        get_packages(cache, Silent(), offline=False)


def test_without_apt(cache: Cache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolchainError, match=r"apt-get is not on this machine[\s\S]*qemu-system-x86"):
        get_packages(cache, Silent(), offline=False)


def test_unpacking(apt: Path, cache: Cache, tmp_path: Path) -> None:
    found = get_packages(cache, Silent(), offline=False)
    unpack(found, cache, tmp_path / "system")
    assert len(list((tmp_path / "system").iterdir())) == len(found)
    found[0].path(cache).write_text("broken")
    with pytest.raises(SourceError, match=f"{IMAGE} cannot be unpacked"):
        unpack(found, cache, tmp_path / "system")
