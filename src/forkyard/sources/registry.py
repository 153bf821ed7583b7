"""Finding a file in the Python package registry the user's pip is set up for.

pip's own ``download`` would run the package's build code to read its metadata and cannot continue a broken
download; so the index is read with ``pypi-simple`` and the file fetched by :mod:`forkyard.network`. All of
pip's settings that say *where from* are honoured: index-url, extra-index-url, find-links folders, no-index,
cert, client-cert, proxy, trusted-host.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from packaging.utils import canonicalize_name
from pypi_simple import (
    PYPI_SIMPLE_ENDPOINT,
    NoSuchProjectError,
    PyPISimple,
    UnsupportedContentTypeError,
    UnsupportedRepoVersionError,
)

from forkyard.environment import pip_settings
from forkyard.errors import NetworkError, SourceError
from forkyard.network import CONNECT_TIMEOUT_S, READ_TIMEOUT_S, Progress, download, sha256_of, without_secrets
from forkyard.process import run


class _Unverified(requests.adapters.HTTPAdapter):
    """For hosts the user told pip to trust without a certificate; what they deliver is checked by hash."""

    def send(self, *arguments: Any, **options: Any) -> requests.Response:
        return super().send(*arguments, **{**options, "verify": False})


@dataclass(frozen=True)
class IndexSettings:
    """Where packages come from, as the user's pip is configured."""

    indexes: tuple[str, ...]
    folders: tuple[Path, ...] = ()
    certificate: str | None = None
    client_certificate: str | None = None
    proxy: str | None = None
    trusted_hosts: tuple[str, ...] = ()

    def session(self) -> requests.Session:
        """A session with these settings; environment proxies and netrc are honoured by requests itself."""
        session = requests.Session()
        if self.certificate:
            session.verify = self.certificate
        if self.client_certificate:
            session.cert = self.client_certificate
        if self.proxy:
            session.proxies = {"http": self.proxy, "https": self.proxy}
        for host in self.trusted_hosts:
            # A host without a port is trusted on all of them.
            session.mount(f"https://{host}/", _Unverified())
            if ":" not in host:
                session.mount(f"https://{host}:", _Unverified())
        return session


def parse_pip_settings(listing: str) -> IndexSettings:
    """Read the output of ``pip config list`` (lines ``section.key='value'``, later sections win)."""
    values = pip_settings(listing, ("global", "download", ":env:"))

    def words(key: str) -> list[str]:
        return values.get(key, "").split()

    off = values.get("no-index", "").lower() in ("1", "true", "t", "yes", "y", "on")
    indexes = [] if off else [*(words("index-url") or [PYPI_SIMPLE_ENDPOINT]), *words("extra-index-url")]
    folders = [
        Path(word.removeprefix("file://")) for word in words("find-links") if "://" not in word.removeprefix("file://")
    ]
    return IndexSettings(
        indexes=tuple(url if url.endswith("/") else url + "/" for url in indexes),
        folders=tuple(folders),
        certificate=next(iter(words("cert")), None),
        client_certificate=next(iter(words("client-cert")), None),
        proxy=next(iter(words("proxy")), None),
        trusted_hosts=tuple(words("trusted-host")),
    )


def index_settings() -> IndexSettings:
    """The settings of the pip beside this Python; the registry's default when there is no pip."""
    done = run([sys.executable, "-m", "pip", "config", "list"], timeout_s=60)
    return parse_pip_settings(done.stdout if done.returncode == 0 else "")


SDIST, WHEEL = ".tar.gz", ".whl"


def fetch_package(
    project: str,
    version: str,
    sha256: str,
    folder: Path,
    kind: str = SDIST,
    *,
    settings: IndexSettings | None = None,
    progress: Progress | None = None,
) -> Path:
    """Bring a file of ``project`` ``version`` into ``folder`` and check its sha256.

    Args:
        kind: its source archive, or one of its wheels: the one that has the digest.

    Returns:
        the path of the file, named after its digest.

    Raises:
        NetworkError: no index could be read or none has the file.
        SourceError: the file has another digest, or the index announces another one.
    """
    target = folder / f"{sha256}{kind}"
    if target.is_file() and sha256_of(target) == sha256:
        return target
    settings = settings or index_settings()
    for local in settings.folders:
        for candidate in sorted(local.glob(f"*{kind}")):
            if _is_of(candidate.name, project, version, kind) and sha256_of(candidate) == sha256:
                return candidate
    session = settings.session()
    problems: list[str] = []
    for index in settings.indexes:
        url, announced = _find(index, session, project, version, kind, sha256, problems)
        if url is None:
            continue
        if announced is not None and announced != sha256:
            msg = f"the index offers another {project} {version} than the recipe names"
            raise SourceError(
                msg,
                where=without_secrets(index),
                why=f"expected sha256 {sha256}, the index says {announced}",
                next_step="check the index in your pip settings; nothing was fetched",
            )
        return download(session, url, target, sha256=sha256, progress=progress)
    msg = f"no registry gave {project} {version}"
    raise NetworkError(
        msg,
        where=", ".join(without_secrets(index) for index in settings.indexes) or "no index is configured",
        why="; ".join(problems) or "pip is set to use no index",
        next_step="check the network and `pip config list`, or choose another source with --source",
    )


def _is_of(filename: str, project: str, version: str, kind: str) -> bool:
    """Whether a file is the project's source archive or a wheel of it, in any spelling of the name."""
    if kind == WHEEL:
        name, found, *_ = [*filename.split("-"), ""]
        return found == version and filename.endswith(kind) and canonicalize_name(name) == canonicalize_name(project)
    name = filename.removesuffix(f"-{version}{kind}")
    return name != filename and canonicalize_name(name) == canonicalize_name(project)


def _find(
    index: str, session: requests.Session, project: str, version: str, kind: str, sha256: str, problems: list[str]
) -> tuple[str | None, str | None]:
    """URL and announced sha256 of the file in one index; what went wrong is added to ``problems``."""
    shown = without_secrets(index)
    try:
        page = PyPISimple(index, session=session).get_project_page(project, timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S))
    except NoSuchProjectError:
        problems.append(f"{shown} does not know {project}")
        return None, None
    except UnsupportedContentTypeError as error:
        problems.append(f"{shown} did not answer with an index page ({without_secrets(str(error))})")
        return None, None
    except requests.RequestException as error:
        problems.append(f"{shown} could not be reached ({without_secrets(str(error))})")
        return None, None
    except (ValueError, UnsupportedRepoVersionError) as error:
        problems.append(f"{shown} answered something that is no index page ({error})")
        return None, None
    found = [
        (package.url, (package.digests or {}).get("sha256"))
        for package in page.packages
        if _is_of(package.filename, project, version, kind)
    ]
    if not found:
        problems.append(f"{shown} has no {'wheel' if kind == WHEEL else 'source archive'} of {project} {version}")
        return None, None
    # A version has several wheels, one for each platform.
    return next((one for one in found if one[1] == sha256), found[0])
