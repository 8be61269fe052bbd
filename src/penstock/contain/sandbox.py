# SPDX-License-Identifier: Apache-2.0
"""Closing the sandbox around the calling process.

A server calls :func:`close` when it has imported all it will ever need and before it has seen a
byte of the image, and :func:`close_threads` when all its threads run. Neither can be undone. What
is left, and which of the layers it has, is its profile's.

Layers, and what each one is there for by itself
    - ``namespaces``: other processes, the network, System V objects and the host's name do not
      exist. User and pid namespaces the process must be born in (:mod:`penstock.sys.spawn`).
    - ``root``: there is no file. The root directory is empty and cannot be written to; there is
      no /proc in it.
    - ``identity``: no file of the host belongs to its user (a mirror keeps the caller's).
    - ``landlock``: nothing can be opened, made or connected to, even if a file could be found; but
      beneath the directory that is served, where there is one.
    - ``capabilities``: none, or the few of the profile, and no way to get one.
    - ``no_new_privs``: no program that is executed gives a right, no other process of its user may
      look into it, and a crash leaves no copy of its memory.
    - ``limits``: memory, descriptors, threads, size of files.
    - ``seccomp``: the system calls that are left (:mod:`penstock.contain.filter`).

Order: what takes rights to do comes first (namespaces, root, bounding set), then the identity and
the capabilities go, and last what the process may always do to itself. The filter is the last of
all, since it forbids what the others are made of.

Facts about Python in here
    - Whatever is imported later fails. What Python imports by itself when it first needs it is
      loaded here (:mod:`penstock.contain.warm`).
    - Tracebacks have no source lines, since the files cannot be read.
    - ``socket.socket(fileno=…)`` must be given family, type and protocol. ``setblocking``,
      ``settimeout`` and ``os.set_blocking`` use ioctl, which is refused: use F_SETFL, or
      MSG_DONTWAIT. ``open(fd)`` uses fstat: use ``os.read``.
    - ``mmap.mmap(-1, …)`` is shared memory by default, which no limit counts and so is refused:
      give it MAP_PRIVATE.
    - Threads start as usual until :func:`close_threads`; then RuntimeError.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import threading
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from penstock.abi.capability import Capability
from penstock.abi.process import (
    FIRST_PID_NAMESPACE,
    FIRST_USER_NAMESPACE,
    NOBODY,
    CloneFlag,
)
from penstock.abi.seccomp import Action
from penstock.abi.syscalls import SYSCALLS
from penstock.contain.filter import assemble
from penstock.contain.profile import IMAGE_SERVER, Profile
from penstock.contain.warm import import_all
from penstock.sys import capabilities, landlock, memory, namespaces, seccomp

__all__ = ["IMAGE_SERVER", "LAYERS", "LayerReport", "Profile", "close", "close_threads"]

LAYERS: Final = (
    "namespaces",
    "root",
    "identity",
    "capabilities",
    "no_new_privs",
    "landlock",
    "limits",
    "seccomp",
)
"""In the order of closing."""

_FIRST: Final = {"user": FIRST_USER_NAMESPACE, "pid": FIRST_PID_NAMESPACE}
"""The machine's first namespaces have these numbers on every Linux."""

_BORN_INTO: Final = ("user", "pid")

_UNSHARED: Final = {
    "mnt": CloneFlag.NEWNS,
    "net": CloneFlag.NEWNET,
    "ipc": CloneFlag.NEWIPC,
    "uts": CloneFlag.NEWUTS,
    "cgroup": CloneFlag.NEWCGROUP,
}


class LayerReport(NamedTuple):
    """What became of a layer."""

    name: str
    in_force: bool
    """All of it that this kernel has."""
    detail: str
    """What is in force, or why not."""


class _Ids(NamedTuple):
    """One line of uid_map or gid_map."""

    inside: int
    outside: int
    length: int


class _Before(NamedTuple):
    """What the process was when closing began: afterwards there is no /proc to ask."""

    namespaces: Mapping[str, int]
    own: frozenset[str]
    """Namespaces that it was born into and shares with nobody outside."""
    users: tuple[_Ids, ...]
    first: bool
    """Whether user 0 further out is the machine's root."""


def close(
    profile: Profile,
    *,
    layers: frozenset[str] = frozenset(LAYERS),
    outside: Mapping[str, int] | None = None,
    tree: int | None = None,
) -> tuple[LayerReport, ...]:
    """Close the sandbox for good.

    For a process with one thread that has imported everything. Afterwards the end of the thread
    that started it is its end too, whatever the layers.

    Args:
        profile: what is left to it.
        layers: which layers to close; all but in tests. What the profile is without stays away.
        outside: the namespaces of whoever started this process, as
            :func:`penstock.sys.namespaces.namespace_ids` told it there: one with the same number
            is not the process's own. If it is not given, the machine's first ones count.
        tree: the directory beneath which files are left to it.

    Returns:
        A report on each of ``layers``. A layer that the kernel or the caller's rights do not
        allow is reported, with the reason, and never an exception.

    Raises:
        RuntimeError: the process has more than one thread: some layers would bind only this one.
    """
    import_all()
    before = _look(_FIRST if outside is None else outside)
    layers -= profile.without.keys()
    reports: dict[str, LayerReport] = {}

    def attempt(name: str, closing: Callable[[], tuple[bool, str]]) -> None:
        if name in layers:
            try:
                reports[name] = LayerReport(name, *closing())
            except (OSError, ValueError) as error:  # setrlimit's refusals are ValueErrors
                reports[name] = LayerReport(name, False, _reason(error))

    attempt("namespaces", lambda: _namespaces(before, profile.namespaces))
    attempt("root", lambda: _root(before))
    bounds = _give_up_bounds(profile) if "capabilities" in layers else ""
    attempt("identity", lambda: _identity(before))
    attempt("capabilities", lambda: _capabilities(profile, bounds))
    attempt("no_new_privs", _no_new_privs)
    attempt("landlock", lambda: _landlock(tree))
    attempt("limits", lambda: _limits(profile, own_user="user" in before.own))
    _last_words(dumpable="no_new_privs" not in layers)
    attempt("seccomp", lambda: _seccomp(profile))
    return tuple(reports[name] for name in LAYERS if name in layers)


def close_threads(profile: Profile) -> LayerReport:
    """Take away what starting threads takes, from all threads. For the time when all of them run.

    Returns:
        A report on the layer ``seccomp``, as of now.
    """
    try:
        program = assemble(profile.calls_later, seccomp.machine(), default=Action.ALLOW)
        seccomp.install(program, tsync=True)
    except OSError as error:
        return LayerReport("seccomp", False, f"threads can still start: {_reason(error)}")
    left = _count(profile) - len(profile.calls_later)
    return LayerReport("seccomp", True, f"{left} system calls are left, no new threads")


def _look(outside: Mapping[str, int]) -> _Before:
    """What is to be known before closing; without /proc, nothing.

    Raises:
        RuntimeError: there are other threads.
    """
    try:
        threads = len(os.listdir("/proc/self/task"))
        here = namespaces.namespace_ids()
        users = _id_map("/proc/self/uid_map")
    except OSError:
        threads, here, users = threading.active_count(), {}, ()
    if threads > 1:
        raise RuntimeError("a sandbox is closed before there are threads")
    own = frozenset(name for name in _BORN_INTO if name in here and here[name] != outside.get(name))
    first = outside.get("user", _FIRST["user"]) == _FIRST["user"]
    return _Before(here, own, users, first)


def _id_map(path: str) -> tuple[_Ids, ...]:
    with open(path, encoding="ascii") as file:
        return tuple(_Ids(*map(int, line.split())) for line in file)


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _namespaces(before: _Before, wanted: frozenset[str]) -> tuple[bool, str]:
    if not before.namespaces:
        return False, "/proc cannot be read, so there is no telling which there are"
    wanted &= before.namespaces.keys()
    missing = _unshare([name for name in _UNSHARED if name in wanted])
    if "time" in wanted:
        try:
            namespaces.enter_time_namespace()
        except OSError as error:
            missing["time"] = _reason(error)
    for name in _BORN_INTO:
        if name in wanted and name not in before.own:
            missing[name] = "the process was started without"
    own = " ".join(sorted(wanted - missing.keys())) or "none"
    if not missing:
        return True, own
    groups: dict[str, list[str]] = {}
    for name in sorted(missing):
        groups.setdefault(missing[name], []).append(name)
    reasons = "; ".join(f"{' '.join(names)}: {reason}" for reason, names in groups.items())
    return False, f"{own}; missing: {reasons}"


def _unshare(names: list[str]) -> dict[str, str]:
    """Make new namespaces of these kinds; those that could not be made, and why."""
    flags = CloneFlag(0)
    for name in names:
        flags |= _UNSHARED[name]
    try:
        namespaces.unshare(flags)
    except OSError:
        pass  # one of them is refused: which one, only trying each will tell
    else:
        return {}
    missing = {}
    for name in names:
        try:
            namespaces.unshare(_UNSHARED[name])
        except OSError as error:
            missing[name] = _reason(error)
    return missing


def _root(before: _Before) -> tuple[bool, str]:
    if namespaces.namespace_ids().get("mnt") == before.namespaces.get("mnt"):
        namespaces.unshare(CloneFlag.NEWNS)
    namespaces.pivot_to_empty_root()
    return True, "an empty directory, read-only"


def _identity(before: _Before) -> tuple[bool, str]:
    groups = ""
    try:
        os.setgroups([])
    except OSError as error:
        groups = f"; the caller's groups: {_reason(error)}"
    mapped = any(ids.inside <= NOBODY < ids.inside + ids.length for ids in before.users)
    if (mapped or not before.users) and os.getuid() != NOBODY:
        try:
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        except OSError as error:
            return False, f"user {os.getuid()}, the caller: {_reason(error)}"
        outside = _outside(NOBODY, before.users)
        return True, f"user and group {outside}{groups}"
    user = _outside(os.getuid(), before.users)
    if "user" not in before.own:
        return False, f"user {user}, the caller: there is no other, nor a user namespace of its own"
    if user == 0 and before.first:
        return False, "user 0, outside its user namespace as well"
    return True, f"user {user}, with no right that only its user namespace gives{groups}"


def _outside(user: int, maps: tuple[_Ids, ...]) -> int:
    """Who a user is one user namespace further out."""
    for ids in maps:
        if ids.inside <= user < ids.inside + ids.length:
            return ids.outside + user - ids.inside
    return user


def _give_up_bounds(profile: Profile) -> str:
    """What limits the capabilities of programs executed later; what is left of it, in words."""
    try:
        capabilities.drop_bounding()
        # Whoever keeps capabilities changes its user, and must lose them by that.
        capabilities.lock_securebits(fixup=bool(profile.capabilities))
    except OSError as error:
        return f"; the bounding set stays ({_reason(error)}), of no use with no_new_privs"
    return "; bounding set empty"


def _capabilities(profile: Profile, bounds: str) -> tuple[bool, str]:
    if not profile.capabilities:
        capabilities.drop_all()
        return True, f"none{bounds}"
    with contextlib.suppress(OSError):  # a user namespace may have only the caller's
        os.setgroups([])
    kept = profile.capabilities & capabilities.permitted()
    capabilities.keep_only(kept)
    names = " ".join(sorted(Capability(number).name.lower() for number in kept))
    return True, f"{names or 'none'}{bounds}"


def _no_new_privs() -> tuple[bool, str]:
    capabilities.no_new_privs()
    return True, "set; not dumpable"


def _landlock(tree: int | None) -> tuple[bool, str]:
    words = "rights over files"
    if tree is None:
        version, step = landlock.restrict_everything()
    else:
        version, step = landlock.restrict_to_tree(tree)
        words += " outside the source"
    words = f"ABI {version}: {step.fs.bit_count()} {words}"
    words += ", TCP" if step.net else ""
    words += ", abstract sockets, signals" if step.scopes else ""
    return True, words


def _limits(profile: Profile, *, own_user: bool) -> tuple[bool, str]:
    limits = {
        resource.RLIMIT_DATA: profile.memory,
        resource.RLIMIT_AS: profile.address_space,
        resource.RLIMIT_STACK: profile.stack,
        resource.RLIMIT_NOFILE: profile.descriptors,
        resource.RLIMIT_SIGPENDING: profile.signals,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_RTPRIO: 0,
        resource.RLIMIT_NICE: 0,
    }
    memory.limit_arenas(profile.arenas)
    threading.stack_size(profile.thread_stack)
    if own_user:
        limits[resource.RLIMIT_NPROC] = profile.threads
    if profile.file_size is not None:
        limits[resource.RLIMIT_FSIZE] = profile.file_size
    for limit, wanted in limits.items():
        hard = resource.getrlimit(limit)[1]
        limits[limit] = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(limit, (limits[limit], limits[limit]))
    unlimited = "not limited (no user namespace of its own)"
    return True, (
        f"memory {limits[resource.RLIMIT_DATA] >> 20} MiB, "
        f"{limits[resource.RLIMIT_NOFILE]} descriptors, "
        f"threads {limits.get(resource.RLIMIT_NPROC, unlimited)}, "
        f"{'' if profile.file_size is None else f'files {profile.file_size} bytes, '}no core"
    )


def _last_words(*, dumpable: bool) -> None:
    """What changes of credentials undo."""
    if not dumpable:
        capabilities.set_dumpable(dumpable=False)
    capabilities.set_parent_death_signal(signal.SIGKILL)


def _seccomp(profile: Profile) -> tuple[bool, str]:
    seccomp.install(assemble(profile.calls, seccomp.machine()))
    return True, f"{_count(profile)} system calls are left"


def _count(profile: Profile) -> int:
    """How many system calls are not refused, whatever their arguments must be."""
    here = SYSCALLS[seccomp.machine()]
    return sum(entry.action == Action.ALLOW and entry.name in here for entry in profile.calls)
