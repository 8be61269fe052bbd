# SPDX-License-Identifier: Apache-2.0
"""Features that keep a server in: each switched on in a child that then ends."""

from __future__ import annotations

import errno
import os
import signal

from penstock.abi.process import CloneFlag
from penstock.abi.seccomp import SOCK_FILTER, Action, Bpf
from penstock.cli.errors import explain
from penstock.cli.probes.base import Finding, attempt, file_text, kernel_config
from penstock.sys import capabilities, landlock, namespaces, seccomp

__all__ = ["containment_findings"]


def containment_findings() -> list[Finding]:
    """What concerns sandboxes and limits."""
    return [_landlock(), _seccomp(), _user_namespaces(), _pidfd(), _cgroups(), _pressure()]


def _landlock() -> Finding:
    title, how = "Landlock", "landlock_create_ruleset asked for its version"
    try:
        version = landlock.abi_version()
    except OSError as error:
        off = error.errno == errno.EOPNOTSUPP
        needs = (
            "landlock in the lsm= boot parameter"
            if off
            else "Linux 5.13 with CONFIG_SECURITY_LANDLOCK"
        )
        return Finding("landlock", title, off, False, explain(error), how, needs)
    return Finding("landlock", title, True, True, f"ABI {version}", how)


def _seccomp() -> Finding:
    title, how = "seccomp filters", "a filter that allows everything was installed in a child"
    found = attempt(_install_empty_filter)
    actions = file_text("/proc/sys/kernel/seccomp/actions_avail")
    if not found.reason:
        return Finding("seccomp", title, True, True, f"works; actions: {actions}", how)
    kernel = seccomp.is_supported()
    return Finding("seccomp", title, kernel, False, found.reason, how, "CONFIG_SECCOMP_FILTER")


def _install_empty_filter() -> None:
    capabilities.no_new_privs()
    seccomp.install(SOCK_FILTER.pack(Bpf.RETURN, 0, 0, Action.ALLOW))


def _user_namespaces() -> Finding:
    title, how = "user namespaces", "unshare(CLONE_NEWUSER) and an id mapping in a child"
    found = attempt(lambda: namespaces.unshare(CloneFlag.NEWUSER))
    limit = file_text("/proc/sys/user/max_user_namespaces")
    if not found.reason:
        return Finding("user-namespaces", title, True, True, f"works; at most {limit}", how)
    kernel = kernel_config("USER_NS") if limit is None else True
    needs = "CONFIG_USER_NS"
    if kernel:
        needs = "as root: sysctl user.max_user_namespaces=10000"
        for name, good in (
            ("kernel.unprivileged_userns_clone", "1"),
            ("kernel.apparmor_restrict_unprivileged_userns", "0"),
        ):
            value = file_text("/proc/sys/" + name.replace(".", "/"))
            if value is not None and value != good:
                needs = f"as root: sysctl {name}={good}"
    return Finding("user-namespaces", title, kernel, False, found.reason, how, needs)


def _pidfd() -> Finding:
    title, how = "process descriptors", "pidfd_open and pidfd_send_signal on this process"
    try:
        fd = os.pidfd_open(os.getpid())
        try:
            signal.pidfd_send_signal(fd, 0)
        finally:
            os.close(fd)
    except OSError as error:
        return Finding("pidfd", title, False, False, explain(error), how, "Linux 5.3")
    return Finding("pidfd", title, True, True, "works", how)


def _cgroups() -> Finding:
    title, path = "cgroup v2 (limits)", "/sys/fs/cgroup/cgroup.controllers"
    text = file_text(path)
    if text is None:
        kernel = "cgroup2" in (file_text("/proc/filesystems") or "").split()
        return Finding(
            "cgroup", title, kernel, False, "not mounted on /sys/fs/cgroup", f"no {path}",
            "mount -t cgroup2 none /sys/fs/cgroup (as root)",
        )  # fmt: skip
    may = os.access("/sys/fs/cgroup/cgroup.procs", os.W_OK)
    needs = "" if may else "root, or a delegated subtree (systemd: Delegate=yes)"
    return Finding(
        "cgroup", title, True, may, f"controllers: {text or 'none'}", f"read {path}", needs
    )


def _pressure() -> Finding:
    title, path = "pressure stall information", "/proc/pressure/memory"
    if file_text(path) is None:
        return Finding(
            "psi", title, False, False, "not there", f"no {path}", "CONFIG_PSI, or psi=1 at boot"
        )
    return Finding("psi", title, True, True, "readable", f"read {path}")
