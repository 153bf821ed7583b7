from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from forkyard import network
from forkyard.errors import NetworkError, SourceError
from forkyard.sources.registry import IndexSettings, fetch_package, index_settings, parse_pip_settings

SDIST = b"an archive, as far as anybody here looks" * 100
DIGEST = hashlib.sha256(SDIST).hexdigest()
OTHER = hashlib.sha256(b"other").hexdigest()
FILE = "engine_python-1.2.tar.gz"
JSON_PAGE = "application/vnd.pypi.simple.v1+json"


@pytest.fixture(autouse=True)
def _no_proxies_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(network.download, "__kwdefaults__", {**(network.download.__kwdefaults__ or {}), "tries": 1})


def settings(*indexes: str, **facts: Any) -> IndexSettings:
    return IndexSettings(indexes=indexes, **facts)


def html(*links: tuple[str, str], head: str = "") -> bytes:
    body = "".join(f'<a href="{href}">{text}</a><br/>' for href, text in links)
    return f"<!DOCTYPE html><html><head>{head}</head><body>{body}</body></html>".encode()


def page(reply: Any, body: bytes, kind: str = "text/html") -> Any:
    return reply(body, headers={"Content-Type": kind})


def fetch(folder: Path, *indexes: str, **facts: Any) -> Path:
    return fetch_package("engine-python", "1.2", DIGEST, folder, settings=settings(*indexes, **facts))


# -- pip's settings ------------------------------------------------------------------------------------


def test_without_settings_the_registry_itself_is_the_index() -> None:
    found = parse_pip_settings("")
    assert len(found.indexes) == 1
    assert found.indexes[0].startswith("https://")
    assert found.folders == ()


def test_everything_that_says_where_from_is_read() -> None:
    found = parse_pip_settings(
        "global.index-url='https://i.example/simple'\n"
        "global.extra-index-url='\\nhttps://x.example/a\\nhttps://y.example/b/'\n"
        "global.find-links='/a/folder file:///b/folder https://z.example/page'\n"
        "global.cert='/c.pem'\n"
        "global.client-cert='/d.pem'\n"
        "global.proxy='http://p.example:3128'\n"
        "global.trusted-host='i.example x.example'\n"
        "global.timeout='3'\n"
    )
    assert found == IndexSettings(
        ("https://i.example/simple/", "https://x.example/a/", "https://y.example/b/"),
        (Path("/a/folder"), Path("/b/folder")),
        "/c.pem",
        "/d.pem",
        "http://p.example:3128",
        ("i.example", "x.example"),
    )


@pytest.mark.parametrize("word", ["1", "true", "True", "yes", "on", "y", "t"])
def test_no_index(word: str) -> None:
    listing = f"global.no-index='{word}'\nglobal.extra-index-url='https://x.example'"
    assert parse_pip_settings(listing).indexes == ()
    assert len(parse_pip_settings(listing.replace(repr(word), "'no'")).indexes) == 2


@given(st.permutations(["global", "download", ":env:"]))
def test_later_sections_win_in_whatever_order_they_are_listed(order: list[str]) -> None:
    listing = "\n".join(f"{section}.index-url='https://{section.strip(':')}.example/'" for section in order)
    assert parse_pip_settings(listing).indexes == ("https://env.example/",)
    without = "\n".join(line for line in listing.splitlines() if not line.startswith(":env:"))
    assert parse_pip_settings(without).indexes == ("https://download.example/",)


def test_settings_of_other_commands_do_not_count() -> None:
    assert parse_pip_settings("install.index-url='https://no.example'") == parse_pip_settings("")


@given(st.text())
def test_any_text_gives_settings(text: str) -> None:
    assert isinstance(parse_pip_settings(text), IndexSettings)


@given(
    st.dictionaries(
        st.sampled_from(["index-url", "extra-index-url", "find-links", "proxy", "cert", "no-index", "timeout"]),
        st.text(st.characters(exclude_categories=["Cs"])),
    )
)
def test_values_come_back_as_they_were_quoted(values: dict[str, str]) -> None:
    found = parse_pip_settings("".join(f"global.{key}={value!r}\n" for key, value in values.items()))
    assert found.proxy == next(iter(values.get("proxy", "").split()), None)
    assert found.certificate == next(iter(values.get("cert", "").split()), None)
    for word in values.get("extra-index-url", "").split() if found.indexes else []:
        assert word.rstrip("/") + "/" in {url.rstrip("/") + "/" for url in found.indexes}
    assert all(url.endswith("/") for url in found.indexes)


def test_pips_own_answer_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = tmp_path / "pip.conf"
    config.write_text("[global]\nindex-url = https://mine.example/simple\n")
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    assert index_settings().indexes[0] == "https://mine.example/simple/"


def test_a_session_carries_certificates_and_proxy() -> None:
    with settings(certificate="/c.pem", client_certificate="/d.pem", proxy="http://p.example:1").session() as session:
        assert session.verify == "/c.pem"
        assert session.cert == "/d.pem"
        assert session.proxies == {"http": "http://p.example:1", "https": "http://p.example:1"}


def test_only_trusted_hosts_go_unverified(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def send(self: Any, request: Any, **options: Any) -> Any:
        seen[request.url] = options["verify"]
        raise requests.ConnectionError

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", send)
    hosts = ("lax.example", "lax2.example:8443")
    addresses = [
        "https://lax.example/a",
        "https://lax.example:444/a",
        "https://lax2.example:8443/a",
        "https://lax2.example/a",
        "https://lax.example.evil.example/a",
        "https://strict.example/a",
    ]
    with settings(trusted_hosts=hosts).session() as session:
        session.trust_env = False
        for address in addresses:
            with pytest.raises(requests.ConnectionError):
                session.get(address)
    assert seen == dict(zip(addresses, [False, False, False, True, True, True], strict=True))


# -- index pages ---------------------------------------------------------------------------------------


def test_an_html_page_with_a_relative_address(server: Any, reply: Any, tmp_path: Path) -> None:
    server.replies["/simple/engine-python/"] = page(
        reply,
        html(
            ("../../f/engine_python-1.1.tar.gz", "engine_python-1.1.tar.gz"), (f"../../f/{FILE}#sha256={DIGEST}", FILE)
        ),
    )
    server.replies[f"/f/{FILE}"] = reply(SDIST)
    found = fetch(tmp_path, f"{server.url}/simple/")
    assert found == tmp_path / f"{DIGEST}.tar.gz"
    assert found.read_bytes() == SDIST


def test_a_json_page(server: Any, reply: Any, tmp_path: Path) -> None:
    document = {
        "meta": {"api-version": "1.0"},
        "name": "engine-python",
        "files": [
            {"filename": "engine_python-1.2-py3-none-any.whl", "url": "x.whl", "hashes": {"sha256": OTHER}},
            {"filename": FILE, "url": f"{server.url}/f", "hashes": {"sha256": DIGEST}},
        ],
    }
    server.replies["/simple/engine-python/"] = page(reply, json.dumps(document).encode(), JSON_PAGE)
    server.replies["/f"] = reply(SDIST)
    assert fetch(tmp_path, f"{server.url}/simple/").read_bytes() == SDIST


def test_a_page_without_digests_is_checked_by_the_recipes(server: Any, reply: Any, tmp_path: Path) -> None:
    server.replies["/simple/engine-python/"] = page(reply, html((f"/{FILE}", FILE)))
    server.replies[f"/{FILE}"] = reply(b"not it")
    with pytest.raises(SourceError) as caught:
        fetch(tmp_path, f"{server.url}/simple/")
    assert DIGEST in caught.value.describe()
    assert list(tmp_path.iterdir()) == []


def test_another_announced_digest_is_refused_before_anything_is_fetched(
    server: Any, reply: Any, tmp_path: Path
) -> None:
    server.replies["/simple/engine-python/"] = page(reply, html((f"/{FILE}#sha256={OTHER}", FILE)))
    with pytest.raises(SourceError) as caught:
        fetch(tmp_path, f"{server.url}/simple/")
    assert DIGEST in str(caught.value.why)
    assert OTHER in str(caught.value.why)
    assert len(server.requests) == 1


def test_the_next_index_is_asked_when_one_does_not_have_it(server: Any, reply: Any, tmp_path: Path) -> None:
    server.replies["/two/engine-python/"] = page(reply, html((f"/{FILE}", FILE)))
    server.replies[f"/{FILE}"] = reply(SDIST)
    assert fetch(tmp_path, f"{server.url}/one/", f"{server.url}/two/").read_bytes() == SDIST
    assert server.requests[0].path.startswith("/one/")


GARBAGE: dict[str, tuple[dict[str, Any], str]] = {
    "missing project": ({"status": 404}, "does not know"),
    "server error": ({"status": 500}, "could not be reached"),
    "an image": ({"body": b"\x89PNG", "headers": {"Content-Type": "image/png"}}, "index page"),
    "broken json": ({"body": b"{not json", "headers": {"Content-Type": JSON_PAGE}}, ""),
    "other json": ({"body": b"[1, 2]", "headers": {"Content-Type": JSON_PAGE}}, ""),
    "json of the future": (
        {
            "body": b'{"meta": {"api-version": "9.0"}, "name": "engine-python", "files": []}',
            "headers": {"Content-Type": JSON_PAGE},
        },
        "",
    ),
    "html of the future": (
        {
            "body": html(head='<meta name="pypi:repository-version" content="9.0">'),
            "headers": {"Content-Type": "text/html"},
        },
        "",
    ),
    "a login page": (
        {"body": html(("/login", "log in")), "headers": {"Content-Type": "text/html"}},
        "no source archive",
    ),
    "bytes called html": ({"body": bytes(range(256)), "headers": {"Content-Type": "text/html"}}, "no source archive"),
    "no content type": ({"body": b"hello"}, ""),
    "other version": (
        {"body": html(("/x", "engine_python-1.20.tar.gz")), "headers": {"Content-Type": "text/html"}},
        "no source archive",
    ),
    "only a wheel": (
        {"body": html(("/x", "engine_python-1.2-py3-none-any.whl")), "headers": {"Content-Type": "text/html"}},
        "no source archive",
    ),
    "cut off": ({"body": html((f"/{FILE}", FILE)) * 9, "cut_after": 20, "headers": {"Content-Type": "text/html"}}, ""),
}


@pytest.mark.parametrize("case", GARBAGE)
def test_useless_answers_name_the_index_and_the_cause(server: Any, reply: Any, tmp_path: Path, case: str) -> None:
    answer, why = GARBAGE[case]
    server.replies["/simple/engine-python/"] = reply(**answer)
    with pytest.raises(NetworkError) as caught:
        fetch(tmp_path, f"{server.url}/simple/")
    assert f"{server.url}/simple/" in str(caught.value.why)
    assert why in str(caught.value.why)
    assert caught.value.next_step


@pytest.mark.parametrize("status", [404, 500])
def test_secrets_in_an_index_url_are_not_shown(server: Any, reply: Any, tmp_path: Path, status: int) -> None:
    server.replies["/simple/engine-python/"] = reply(status=status)
    address = server.url.replace("http://", "http://me:hunter2@") + "/simple/"
    with pytest.raises(NetworkError) as caught:
        fetch(tmp_path, address)
    assert "hunter2" not in caught.value.describe()


@pytest.mark.parametrize("name", ["engine-python-1.2.tar.gz", "Engine_Python-1.2.tar.gz", "engine.python-1.2.tar.gz"])
def test_old_spellings_of_a_file_name(server: Any, reply: Any, tmp_path: Path, name: str) -> None:
    server.replies["/simple/engine-python/"] = page(reply, html((f"/{name}", name)))
    server.replies[f"/{name}"] = reply(SDIST)
    assert fetch(tmp_path, f"{server.url}/simple/").read_bytes() == SDIST


# -- without an index ----------------------------------------------------------------------------------


def test_what_is_there_is_not_asked_for(server: Any, tmp_path: Path) -> None:
    (tmp_path / f"{DIGEST}.tar.gz").write_bytes(SDIST)
    assert fetch(tmp_path, f"{server.url}/simple/") == tmp_path / f"{DIGEST}.tar.gz"
    assert server.requests == []


def test_a_find_links_folder_comes_first_and_only_the_right_file_counts(server: Any, tmp_path: Path) -> None:
    links = tmp_path / "links"
    links.mkdir()
    (links / "engine-python-1.2.tar.gz").write_bytes(b"another content")
    (links / "other-1.2.tar.gz").write_bytes(SDIST)
    (links / FILE).write_bytes(SDIST)
    found = fetch(tmp_path / "down", f"{server.url}/simple/", folders=(tmp_path / "none", links))
    assert found.read_bytes() == SDIST
    assert found.name in (FILE, f"{DIGEST}.tar.gz")
    assert server.requests == []


def test_no_index_at_all(tmp_path: Path) -> None:
    with pytest.raises(NetworkError) as caught:
        fetch(tmp_path)
    assert "no index" in caught.value.describe()
