# SPDX-License-Identifier: Apache-2.0
"""System calls and ioctls: one small function each, an OSError that names the call.

The only place with ctypes (``libc.py``). ``mount.py`` mounts, ``mountinfo.py`` finds mounts without
touching them, ``devfuse.py`` is the FUSE device, ``fusermount.py`` the helper for callers without
privilege, ``unmount.py`` takes mounts away, ``process.py`` tells processes apart, ``spawn.py``
starts one in namespaces of its own, ``files.py`` is what ``os`` lacks about files (``exact.py``:
for tests of filesystems), ``inuse.py`` tells who else may write to an image, ``notify.py`` speaks
to the service manager, ``probe.py`` tells what only a try can. ``namespaces.py``,
``capabilities.py``, ``landlock.py`` and ``seccomp.py`` are what a process takes from itself,
``memory.py`` says how malloc takes memory, ``credentials.py`` is whom a thread uses files as,
``fsids.py`` changes it often; ``tree.py`` makes mounts that are attached nowhere, ``loop.py`` has
loop devices; ``atcalls.py``, ``xattrat.py``, ``handles.py`` and ``listing.py`` are
a file server's hot path, on ``rawcalls.py``; ``beneath.py`` opens what lies below a directory and
nothing else, ``reasons.py`` has the words for errors. Each is imported by who needs it.
"""

__all__ = [
    "atcalls",
    "beneath",
    "capabilities",
    "credentials",
    "devfuse",
    "exact",
    "files",
    "fsids",
    "fusermount",
    "handles",
    "inuse",
    "landlock",
    "libc",
    "listing",
    "loop",
    "memory",
    "mount",
    "mountinfo",
    "namespaces",
    "notify",
    "probe",
    "process",
    "rawcalls",
    "reasons",
    "seccomp",
    "spawn",
    "tree",
    "unmount",
    "xattrat",
]
