# SPDX-License-Identifier: Apache-2.0
"""Set this clone up: Debian packages, the virtual environment, penstock in it. Called by make.

Runs on a bare python3 (standard library alone), from any folder, as root or not:

* root gets missing Debian packages installed; anybody else is told their names, and the work goes
  on;
* pip is tried again when the network fails, and says in plain words what it wanted;
* at the end an ordinary user must be able to start the result. A clone below a private folder
  (mode 0700) works for its owner alone: the folder is named, since mounting as another user fails
  later with far less clear words.
"""

from __future__ import annotations

import argparse
import os
import pwd
import shutil
import stat
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PURPOSES = {"run": ("run",), "test": ("run", "test"), "bench": ("run", "bench")}
NETWORK_WORDS = (
    "retrying (",
    "temporary failure",
    "name or service not known",
    "timed out",
    "connection reset",
    "connection refused",
    "connection broken",
    "connection aborted",
    "network is unreachable",
    "incompleteread",
    "503 server",
    "502 server",
)
PIP_TRIES = 3


class SetupError(Exception):
    """Setting up cannot go on; the text tells the user what to do."""


def say(text: str) -> None:
    """One line for the user."""
    print(f"setup: {text}", flush=True)


def listed_packages(purposes: Iterable[str]) -> list[str]:
    """Names from packaging/debian-packages.txt that serve one of ``purposes``, each once."""
    names: dict[str, None] = {}
    text = (ROOT / "packaging" / "debian-packages.txt").read_text(encoding="utf-8")
    for line in text.splitlines():
        words = line.split("#", 1)[0].split()
        if words and words[0] in purposes:
            names[words[1]] = None
    return list(names)


def missing_packages(names: list[str]) -> list[str]:
    """Those of ``names`` that dpkg does not know as installed."""
    found = subprocess.run(
        ["dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status}\n", *names],
        capture_output=True,
        text=True,
        check=False,
    )
    installed = {
        line.split()[0] for line in found.stdout.splitlines() if line.endswith(" installed")
    }
    return [name for name in names if name not in installed]


def install_packages(purposes: Iterable[str]) -> None:
    """Install what is missing when root, else name it. Never fatal: their users say so."""
    names = listed_packages(purposes)
    if shutil.which("dpkg-query") is None or shutil.which("apt-get") is None:
        say("this is not a Debian system; penstock expects what Debian calls " + " ".join(names))
        return
    missing = missing_packages(names)
    if not missing:
        return
    command = "apt-get install --no-install-recommends " + " ".join(missing)
    if os.geteuid() != 0:
        say(f"not installed: {', '.join(missing)} (to have them, as root: {command})")
        return
    say("installing Debian packages: " + " ".join(missing))
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    options = ["-qq", "-y", "-o", "DPkg::Lock::Timeout=300", "-o", "Acquire::Retries=3"]
    for arguments in (["update"], ["install", "--no-install-recommends", *missing]):
        done = subprocess.run(
            ["apt-get", *options, *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            tail = "\n".join(done.stdout.splitlines()[-8:])
            say(f"apt-get {arguments[0]} failed; going on without. Its last words:\n{tail}")
    still = missing_packages(missing)
    if still:
        say("still not installed: " + " ".join(still))


def check_writable() -> None:
    """Everything is made inside the clone, so it must be writable.

    Raises:
        SetupError: it is not.
    """
    place = VENV if VENV.is_dir() else ROOT
    if not os.access(place, os.W_OK):
        raise SetupError(
            f"{place} is not writable for you. Clone penstock into a folder of your own, or ask "
            f"{owner_of(place)}, who owns it, to run make setup"
        )


def owner_of(path: Path) -> str:
    """Name of the owner of a file, or the number of one without name."""
    try:
        return path.owner()
    except KeyError:
        return f"user {path.stat().st_uid}"


def venv_fits() -> bool:
    """True when .venv works, is of this interpreter, and was made at this very place."""
    python = VENV / "bin" / "python"
    probe = "import sys; print(sys.prefix, sys._base_executable, sys.version, sep='\\n')"
    try:
        asked = subprocess.run(
            [python, "-I", "-c", probe], capture_output=True, text=True, check=True, timeout=60
        )
        configured = (VENV / "pyvenv.cfg").read_text(encoding="utf-8")
    except (OSError, subprocess.SubprocessError):
        return False
    prefix, base, version = asked.stdout.split("\n", 2)
    made_here = not any(
        line.startswith("command = ") and not line.endswith(str(VENV))
        for line in configured.splitlines()
    )
    same_python = Path(base).resolve() == Path(sys.executable).resolve()
    return (
        made_here and same_python and prefix == str(VENV) and version.strip() == sys.version.strip()
    )


def make_venv() -> None:
    """Make .venv with pip in it.

    Raises:
        SetupError: neither ensurepip nor another pip or virtualenv is to be had.
    """
    if venv_fits() and pip_works():
        return
    say(f"making {VENV.name} with {sys.executable} ({sys.version.split()[0]})")
    made = subprocess.run(
        [sys.executable, "-m", "venv", "--clear", VENV], capture_output=True, text=True, check=False
    )
    if made.returncode == 0 and pip_works():
        return
    # Debian ships ensurepip in python3-venv. A pip or virtualenv from elsewhere does as well.
    others = (
        [sys.executable, "-m", "virtualenv", "--clear", str(VENV)],
        ["virtualenv", "--clear", "--python", sys.executable, str(VENV)],
        ["uv", "venv", "--seed", "--clear", "--python", sys.executable, str(VENV)],
    )
    for command in others:
        if shutil.which(command[0]) is None:
            continue
        if (
            subprocess.run(command, capture_output=True, check=False).returncode == 0
            and pip_works()
        ):
            return
    shutil.rmtree(VENV, ignore_errors=True)
    words = " ".join((made.stdout + made.stderr).split())
    raise SetupError(
        f"{sys.executable} cannot make a virtual environment: {words[:200] or 'no reason given'}\n"
        "On Debian it needs the package python3-venv: apt-get install python3-venv, as root"
    )


def pip_works() -> bool:
    """True when .venv has a pip that starts."""
    try:
        command = [str(VENV / "bin" / "python"), "-m", "pip", "--version"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def pip_install(groups: Iterable[str]) -> None:
    """Install penstock, editable, and the dependency groups named.

    Raises:
        SetupError: pip failed for good.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = [name for group in groups for name in project["dependency-groups"].get(group, ())]
    say("installing penstock" + (f" and {', '.join(wanted)}" if wanted else ""))
    command = [str(VENV / "bin" / "python"), "-m", "pip", "install", "--quiet", "--retries", "5"]
    command += ["--editable", str(ROOT), *wanted]
    for attempt in range(1, PIP_TRIES + 1):
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        if done.returncode == 0:
            return
        words = done.stdout.lower()
        untrusted = "certificate_verify_failed" in words
        network = any(word in words for word in NETWORK_WORDS)
        if untrusted or not network or attempt == PIP_TRIES:
            break
        say(f"the package index did not answer (try {attempt} of {PIP_TRIES}); trying again")
        time.sleep(5 * attempt)
    tail = "\n".join(done.stdout.splitlines()[-12:])
    if untrusted:
        cause = "the package index shows an untrusted certificate; PIP_CERT=FILE names yours"
    elif network:
        cause = "the package index cannot be reached; check the network and pip's index settings"
    else:
        cause = "pip could not install what penstock needs"
    raise SetupError(f"{cause}. pip's last words:\n{tail}")


def paths_to_enter() -> Iterator[Path]:
    """Files and folders that an ordinary user must reach, links resolved step by step."""
    for start in (VENV / "bin" / "python", VENV / "bin" / "penstock", ROOT / "src" / "penstock"):
        path = start
        for _ in range(16):
            yield path
            if not path.is_symlink():
                break
            path = path.parent / path.readlink()
    yield Path(os.__file__)
    yield VENV / "lib"


def forbidding_path() -> Path | None:
    """The first file or folder on the way whose mode keeps ordinary users out, if any."""
    for path in paths_to_enter():
        for part in (*reversed(path.parents), path):
            mode = part.stat().st_mode
            need = stat.S_IROTH | (stat.S_IXOTH if stat.S_ISDIR(mode) else 0)
            # A folder above need only be passed through; the file or folder itself must be read.
            need = stat.S_IXOTH if part != path and stat.S_ISDIR(mode) else need
            if mode & need != need:
                return part
    return None


def nobody_can_start() -> bool | None:
    """Start penstock's python as nobody. None when this cannot be tried (not root)."""
    if os.geteuid() != 0:
        return None
    nobody = pwd.getpwnam("nobody")
    probe = "import penstock, sys; sys.exit(0 if sys.prefix != sys.base_prefix else 1)"
    tried = subprocess.run(
        [VENV / "bin" / "python", "-I", "-c", probe],
        user=nobody.pw_uid,
        group=nobody.pw_gid,
        extra_groups=[],
        env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
        cwd="/",
        capture_output=True,
        check=False,
    )
    return tried.returncode == 0


def check_others() -> None:
    """Say so when only the owner can use this clone."""
    try:
        started = nobody_can_start()
    except OSError:
        started = False
    if started:
        return
    forbids = forbidding_path()
    if forbids is not None:
        mode = stat.S_IMODE(forbids.stat().st_mode)
        say(
            f"ordinary users cannot start {VENV}/bin/penstock: {forbids} has mode {mode:04o}. "
            f"It works for you; for others: chmod o+rx {forbids}, or clone elsewhere"
        )
    elif started is False:
        say(f"ordinary users cannot start {VENV}/bin/penstock, though no mode forbids it")


def compile_sources() -> None:
    """Compile once what every command imports; users who may not write here profit as well."""
    command = [str(VENV / "bin" / "python"), "-m", "compileall", "-q", str(ROOT / "src")]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=False)


def main() -> int:
    """Set up for the purpose named on the command line; the exit status says whether it worked."""
    parser = argparse.ArgumentParser(description="Set up penstock in .venv (called by make).")
    parser.add_argument("purpose", choices=PURPOSES)
    purposes = PURPOSES[parser.parse_args().purpose]
    try:
        check_writable()
        install_packages(purposes)
        make_venv()
        pip_install(purpose for purpose in purposes if purpose != "run")
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    compile_sources()
    check_others()
    return 0


if __name__ == "__main__":
    sys.exit(main())
