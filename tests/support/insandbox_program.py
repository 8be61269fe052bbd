# SPDX-License-Identifier: Apache-2.0
"""What runs inside a sandbox, and what starts it there. Its text is given to ``python -c``.

Started with ``launch`` it starts itself again in new namespaces, says which process that is, waits
for its end and says how it ended. Started with ``inside`` it closes the sandbox, reports, waits for
a byte and carries out a task. Each says what it has to say in one line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

ORDER = json.loads(sys.argv[2])
sys.path[:0] = ORDER["path"]


def say(**what: Any) -> None:
    """One line; not with print, which a limit on files stops where the output is one."""
    os.write(1, json.dumps(what).encode() + b"\n")


def launch() -> None:
    """Start the program inside, from a process with one thread."""
    from penstock.abi.process import CloneFlag
    from penstock.sys.namespaces import namespace_ids
    from penstock.sys.spawn import IdMap, spawn

    flags = CloneFlag(0)
    for name in ORDER["namespaces"]:
        flags |= CloneFlag[f"NEW{name.upper()}"]
    uid, gid = os.geteuid(), os.getegid()
    both = [IdMap(0, 0), IdMap(65534, 65534)]
    order = json.dumps({**ORDER, "outside": namespace_ids()})
    text = sys.orig_argv[sys.orig_argv.index("-c") + 1]
    # Files are limited to nothing inside, and a test's output may be one.
    started = spawn(
        [ORDER["python"], "-I", "-c", text, "inside", order],
        fds=[0, 1, 2],
        namespaces=flags,
        users=[IdMap(0, uid)] if uid else both,
        groups=[IdMap(0, gid)] if uid else both,
    )
    say(pid=started.pid)
    say(status=os.waitstatus_to_exitcode(os.waitpid(started.pid, 0)[1]))


def inside() -> None:
    """Close the sandbox and do the task."""
    import time
    from unittest import mock

    from penstock.contain import sandbox

    for name, number in ORDER["refused"].items():
        refusal = OSError(number, os.strerror(number))
        mock.patch(f"penstock.sys.{name}", side_effect=refusal).start()
    task = TASKS[ORDER["task"]]
    prepared = PREPARED[ORDER["task"]]() if ORDER["task"] in PREPARED else ()
    profile = sandbox.IMAGE_SERVER._replace(**ORDER["profile"])
    layers = frozenset(sandbox.LAYERS if ORDER["layers"] is None else ORDER["layers"])
    begun = time.perf_counter()
    reports = sandbox.close(profile, layers=layers, outside=ORDER["outside"])
    took = time.perf_counter() - begun
    say(seconds=took, reports=[list(report) for report in reports])
    os.read(0, 1)
    say(result=task(profile, *prepared))
    os._exit(0)


def nothing(_profile: Any) -> None:
    """Be there, to be looked at."""


def files_before() -> tuple[Any, ...]:
    """What a server is given: a pipe, an image, the null device, pairs of sockets."""
    import socket

    pipe = os.pipe()
    image = os.open(ORDER["python"], os.O_RDONLY)
    null = os.open("/dev/null", os.O_RDWR)
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return pipe, image, null, pair


def work(profile: Any, pipe: tuple[int, int], image: int, null: int, pair: Any) -> dict[str, Any]:
    """What servers do, and what Python does for them, all of it inside."""
    import fcntl
    import io
    import logging
    import select
    import socket
    import threading
    import time

    from penstock.contain.sandbox import close_threads

    tried: list[str] = []
    done: dict[str, Any] = {"tried": tried}
    sys.addaudithook(lambda event, args: tried.append(args[0]) if event == "import" else None)

    go = threading.Event()
    ended: list[int] = []

    def run() -> None:
        if go.wait(20):
            ended.append(len(b"".join(bytes(1 << 18) for _ in range(8))))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    go.set()
    for thread in threads:
        thread.join()
    done["threads"] = ended

    blocks = [b"x" * (1 << 20) for _ in range(200)]
    small = [str(number) for number in range(200_000)]
    done["memory"] = len(blocks) + len(small)
    del blocks, small

    text = io.StringIO()
    logger = logging.getLogger("inside")
    logger.propagate = False
    logger.addHandler(logging.StreamHandler(text))
    form = "%(asctime)s %(process)d %(threadName)s %(levelname)s %(message)s"
    logger.handlers[0].setFormatter(logging.Formatter(form))

    def deep(number: int) -> int:
        return deep(number + 1)

    for mistake in ("1 / 0", "{}['é']", "nowhere", "sys.exitt", "import nowhere", "1 +", "deep(0)"):
        try:
            try:
                exec(mistake, {"sys": sys, "deep": deep})  # noqa: S102
            except Exception as error:
                raise ExceptionGroup("several", [error, ValueError("日本")]) from error
        except ExceptionGroup:
            logger.exception("%s went wrong", mistake)
    done["log"] = text.getvalue()

    poller = select.poll()
    poller.register(pipe[0], select.POLLIN)
    done["poll"] = [len(poller.poll(1)), os.write(pipe[1], b"x"), len(poller.poll(10_000))]
    done["pipe"] = os.read(pipe[0], 1).decode()
    begun = time.monotonic()
    time.sleep(0.001)
    lock = threading.Lock()
    lock.acquire()
    condition = threading.Condition()
    with condition:
        done["locks"] = [lock.acquire(timeout=0.001), condition.wait(0.001)]
    done["slept"] = time.monotonic() > begun
    done["json"] = json.loads(json.dumps({"a": [1, 2.5, None, "é"]}))
    socket.send_fds(pair[0], [b"m"], [null])
    message, fds, _, _ = socket.recv_fds(pair[1], 10, 4, socket.MSG_CMSG_CLOEXEC)
    done["received"] = [message.decode(), len(fds)]
    os.close(fds[0])
    buffer = bytearray(100)
    read = os.preadv(image, [buffer], 0)
    done["read"] = [len(os.pread(image, 10, 5)), read, bytes(buffer[:4]) == b"\x7fELF"]
    done["read"].append(os.preadv(image, [buffer], 0, os.RWF_NOWAIT))
    moved = os.splice(image, pipe[1], 4096, offset_src=0)
    done["splice"] = [moved, os.splice(pipe[0], null, moved)]
    flags = fcntl.fcntl(pipe[0], fcntl.F_GETFL)
    fcntl.fcntl(pipe[0], fcntl.F_SETFL, flags | os.O_NONBLOCK)
    try:
        os.read(pipe[0], 1)
    except BlockingIOError:
        done["nonblocking"] = True
    done["random"] = len(os.urandom(8))

    stop = threading.Event()
    refused: list[str] = []

    def late() -> None:
        if stop.wait(20):
            refused.append(refusal(threading.Thread(target=nothing, args=(0,)).start))

    others = [threading.Thread(target=late) for _ in range(3)]
    for thread in others:
        thread.start()
    done["later"] = list(close_threads(profile))
    stop.set()
    for thread in others:
        thread.join()
    late()
    done["refused"] = refused
    return done


def refusal(action: Any, *arguments: Any) -> str:
    """The exception that something ends with."""
    try:
        action(*arguments)
    except Exception as error:  # noqa: BLE001 - whatever it is
        return f"{type(error).__name__}: {error}"
    return ""


def grow(profile: Any) -> dict[str, Any]:
    """Take memory until there is none, and see that one can live on."""
    blocks = []
    try:
        while True:
            blocks.append(b"x" * (1 << 20))
    except MemoryError:
        taken = len(blocks)
    del blocks
    return {"mebibytes": taken, "after": refusal(lambda: b"x" * (8 << 20))}


def start_threads(profile: Any) -> dict[str, Any]:
    """Start threads until no more can be started."""
    import threading

    from penstock.contain.sandbox import close_threads

    go = threading.Event()
    threads: list[Any] = []
    try:
        while len(threads) < 1000:
            thread = threading.Thread(target=go.wait, args=(30,))
            thread.start()
            threads.append(thread)
    except RuntimeError:
        pass
    say(threads=len(threads), later=list(close_threads(profile)))
    os.read(0, 1)  # while all of them run
    go.set()
    for thread in threads:
        thread.join()
    return {"threads": len(threads)}


def facts(_profile: Any) -> dict[str, Any]:
    """What the process sees of itself and the world, where calls are not filtered."""
    import resource
    import socket

    def opened(path: str) -> str:
        return refusal(lambda: os.close(os.open(path, os.O_RDONLY)))

    def bound(family: int, address: Any) -> str:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            return refusal(sock.bind, address)

    return {
        "listing": refusal(os.listdir, "/") or sorted(os.listdir("/"))[:3],
        "file": opened(ORDER["python"]),
        "made": refusal(os.mkdir, ORDER["folder"] + "/made"),
        "made in root": refusal(os.mkdir, "/made") if "root" in ORDER["layers"] else None,
        "ids": [*os.getresuid(), *os.getresgid()],
        "groups": os.getgroups(),
        "tcp": bound(socket.AF_INET, ("127.0.0.1", 0)),
        "interfaces": [name for _, name in socket.if_nameindex()],
        "hostname": refusal(socket.sethostname, "inside"),
        "limits": resource.getrlimit(resource.RLIMIT_CORE),
    }


def kill_by(name: str) -> Any:
    """A call that ends the process."""

    def call(_profile: Any) -> str:
        from ctypes import CDLL

        from penstock.abi.syscalls import SYSCALLS
        from penstock.sys.seccomp import machine

        CDLL(None).syscall(SYSCALLS[machine()][name], 0, 0, 0, 0, 0, 0)
        return "alive"

    return call


def with_threads(_profile: Any) -> None:
    """Not reached: closing is refused."""


def a_thread() -> tuple[()]:
    """A thread that is there before the sandbox closes."""
    import threading

    threading.Thread(target=threading.Event().wait, args=(30,), daemon=True).start()
    return ()


def abort(_profile: Any) -> None:
    """End as the C library does when it gives up."""
    os.abort()


TASKS = {
    "nothing": nothing,
    "work": work,
    "grow": grow,
    "threads": start_threads,
    "facts": facts,
    "abort": abort,
    "with threads": with_threads,
    **{
        name: kill_by(name)
        for name in ("execve", "unshare", "ptrace", "bpf", "mount", "keyctl", "setuid", "kill")
    },
}
PREPARED = {"work": files_before, "with threads": a_thread}

if __name__ == "__main__":
    {"launch": launch, "inside": inside}[sys.argv[1]]()
