# SPDX-License-Identifier: Apache-2.0
"""``make bench-peers``: fetch and build what the mirror is measured against, into .cache/peers.

Each peer is a pinned release: its archive must have the SHA-256 of ``peers``. libfuse comes as
PENSTOCK_LIBFUSE=FILE, from Debian's source package (apt, in lists of its own, so that the system's
stay as they are), or as its makers' release; the others come from PyPI. What cannot be had is noted
with the reason, which the benchmark then shows in its place.

Needs a C and C++ compiler, pkg-config, the interpreter's headers and (for libfuse's io_uring)
liburing and libnuma; as root the Debian packages are installed. Exit status 1 when a peer is
missing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench.peers import (
    LIBFUSE,
    MFUSEPY,
    NOTE,
    PASSTHROUGHFS,
    PLACE,
    PREFIX,
    PYFUSE3,
    PYTHON,
    SOURCES,
    Peer,
    example,
)
from tools.bootstrap import install_packages

__all__ = ["main"]

RELEASE = f"https://github.com/libfuse/libfuse/releases/download/fuse-{LIBFUSE.version}/fuse-{LIBFUSE.version}.tar.gz"
SUITE = "sid"  # of Debian's suites the one with this libfuse
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
TOOLS = ("meson==1.9.1", "ninja==1.13.0")
TRIO = "trio==0.31.0"


class PeerError(Exception):
    """A peer cannot be had; the text says why, in one line."""


def say(text: str) -> None:
    """One line for whoever waits."""
    print(f"bench-peers: {text}", flush=True)


def run(*command: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
    """Run a program, its output kept; its last line is the reason when it fails.

    Raises:
        PeerError: it failed or is not there.
    """
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
    except FileNotFoundError as error:
        raise PeerError(f"{words[0]} is not there") from error
    if done.returncode != 0:
        lines = done.stdout.strip().splitlines() or [f"exit status {done.returncode}"]
        told = [line for line in lines if "error" in line.lower()] or lines
        raise PeerError(f"{Path(words[0]).name}: {told[-1].strip()[:200]}")
    return done.stdout


def right(archive: Path, peer: Peer) -> bool:
    """Whether an archive is the pinned one."""
    if not archive.is_file():
        return False
    return hashlib.sha256(archive.read_bytes()).hexdigest() == peer.sha256


def from_debian(archive: Path) -> None:
    """The upstream archive of Debian's source package.

    Raises:
        PeerError: no apt, no network, or another version there.
    """
    asked = run(
        "apt-get", "indextargets", "--format", "$(LABEL) $(REPO_URI)", "Created-By: Packages"
    )
    hosts = [line.split()[1] for line in asked.splitlines() if line.split()[0] == "Debian"]
    if not hosts:
        raise PeerError("this is not a Debian system")
    place = PLACE / "apt"
    for folder in ("lists/partial", "cache/archives/partial"):
        (place / folder).mkdir(parents=True, exist_ok=True)
    sources = place / "sources.list"
    sources.write_text(f"deb-src [signed-by={KEYRING}] {hosts[0]} {SUITE} main\n")
    apart = (
        f"Dir::Etc::SourceList={sources}",
        "Dir::Etc::SourceParts=/nonexistent",
        f"Dir::State::Lists={place / 'lists'}",
        f"Dir::Cache={place / 'cache'}",
        "APT::Sandbox::User=root",
        "Acquire::Retries=3",
    )
    apt = ["apt-get", "-qq", *(word for option in apart for word in ("-o", option))]
    try:
        run(*apt, "update")
        package = f"fuse3={LIBFUSE.version}-1"
        run(*apt, "source", "--download-only", "--tar-only", package, cwd=place)
        (place / f"fuse3_{LIBFUSE.version}.orig.tar.gz").replace(archive)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def from_release(archive: Path) -> None:
    """The archive that libfuse's makers publish.

    Raises:
        PeerError: it cannot be reached.
    """
    try:
        with urllib.request.urlopen(RELEASE, timeout=60) as answer:
            archive.write_bytes(answer.read())
    except (urllib.error.URLError, TimeoutError) as error:
        raise PeerError(f"{RELEASE}: {getattr(error, 'reason', error)}") from error


def from_user(archive: Path) -> None:
    """What PENSTOCK_LIBFUSE names.

    Raises:
        PeerError: it names nothing.
    """
    named = os.environ.get("PENSTOCK_LIBFUSE")
    if named is None:
        raise PeerError("PENSTOCK_LIBFUSE is not set")
    try:
        shutil.copyfile(named, archive)
    except OSError as error:
        raise PeerError(f"PENSTOCK_LIBFUSE: {error}") from error


def fetched(peer: Peer, archive: Path, *ways: Callable[[Path], None]) -> Path:
    """The pinned archive, by the first way that gives it.

    Raises:
        PeerError: none does.
    """
    reasons = []
    for way in ways:
        if right(archive, peer):
            break
        try:
            way(archive)
        except PeerError as error:
            reasons.append(str(error))
        else:
            reasons.append(f"{way.__name__}: not the archive that is pinned")
    if not right(archive, peer):
        raise PeerError(f"{peer.name} {peer.version} cannot be fetched: {'; '.join(reasons)}")
    return archive


def from_pypi(peer: Peer) -> Callable[[Path], None]:
    """A way to get the sources of a peer from the package index."""

    def fetch(_archive: Path) -> None:
        wanted = f"{peer.name}=={peer.version}"
        run(PYTHON, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "-d",
            PLACE, wanted)  # fmt: skip

    fetch.__name__ = "package index"
    return fetch


def unpacked(archive: Path, folder: Path) -> None:
    """The content of an archive, new."""
    shutil.rmtree(folder, ignore_errors=True)
    run("tar", "-xf", archive, "-C", folder.parent)


def build_libfuse() -> None:
    """The library for all three, and libfuse's own examples."""
    archive = PLACE / f"fuse-{LIBFUSE.version}.tar.gz"
    unpacked(fetched(LIBFUSE, archive, from_user, from_debian, from_release), SOURCES)
    tools = PYTHON.parent
    build = SOURCES / "build"
    path = {"PATH": f"{tools}:{os.environ.get('PATH', '')}"}
    # No fusermount3 of its own: one without the setuid bit would only be in the way.
    options = ("-Dexamples=true", "-Dtests=false", "-Dutils=false", "-Duseroot=false")
    run(tools / "meson", "setup", build, SOURCES, f"--prefix={PREFIX}", "--libdir=lib",
        "--buildtype=release", *options, env=path)  # fmt: skip
    # The other examples would take most of the time.
    wanted = [f"example/{name}" for name in ("passthrough_ll", "passthrough_hp")]
    wanted.append(f"lib/libfuse3.so.{LIBFUSE.version}")
    run(tools / "ninja", "-C", build, *wanted, env=path)
    run(tools / "meson", "install", "-C", build, "--no-rebuild", env=path)
    if not example("passthrough_hp").exists():
        raise PeerError("libfuse was built without passthrough_hp (no C++ compiler)")


def build_pyfuse3() -> None:
    """pyfuse3 against that library, and its example beside it."""
    archive = PLACE / f"pyfuse3-{PYFUSE3.version}.tar.gz"
    fetched(PYFUSE3, archive, from_pypi(PYFUSE3))
    unpacked(archive, PASSTHROUGHFS.parent.parent)
    found = {
        "PKG_CONFIG_PATH": str(PREFIX / "lib" / "pkgconfig"),
        "LDFLAGS": f"-Wl,-rpath,{PREFIX / 'lib'}",
    }
    run(PYTHON, "-m", "pip", "install", "-q", archive, TRIO, env=found)
    run(PYTHON, "-c", "import pyfuse3, trio")


def build_mfusepy() -> None:
    """mfusepy, which loads the library when it starts."""
    archive = PLACE / f"mfusepy-{MFUSEPY.version}.tar.gz"
    fetched(MFUSEPY, archive, from_pypi(MFUSEPY))
    run(PYTHON, "-m", "pip", "install", "-q", archive)
    library = {"FUSE_LIBRARY_PATH": str(PREFIX / "lib" / "libfuse3.so.4")}
    run(PYTHON, "-c", "import mfusepy", env=library)


def build_venv() -> None:
    """The interpreter of the peers, with the tools that build libfuse."""
    if not (PYTHON.parent / "meson").exists():
        run(sys.executable, "-m", "venv", "--clear", PYTHON.parent.parent)
        run(PYTHON, "-m", "pip", "install", "-q", *TOOLS)


def main() -> int:
    """Build what is not there yet; 1 when something is missing at the end."""
    PLACE.mkdir(parents=True, exist_ok=True)
    note: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        note = json.loads(NOTE.read_text(encoding="utf-8"))
    install_packages(("peers",))
    builders = ((LIBFUSE, build_libfuse), (PYFUSE3, build_pyfuse3), (MFUSEPY, build_mfusepy))
    for peer, builder in builders:
        if note.get(peer.name) == {"version": peer.version, "absent": None}:
            say(f"{peer.name} {peer.version}: there already")
            continue
        say(f"{peer.name} {peer.version}: fetching and building")
        reason = None
        try:
            build_venv()
            builder()
        except PeerError as error:
            reason = str(error)
            say(f"{peer.name}: absent, {reason}")
        note[peer.name] = {"version": peer.version, "absent": reason}
    NOTE.write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")
    missing = [peer.name for peer, _builder in builders if note[peer.name]["absent"]]
    say(f"missing: {', '.join(missing)}" if missing else f"all there, in {PLACE}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
