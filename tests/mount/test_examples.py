# SPDX-License-Identifier: Apache-2.0
"""The examples work as they stand, and the README shows what is in them."""

from __future__ import annotations

import errno
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.requirements import PROJECT

HELLO = PROJECT / "examples" / "hello.py"


def wait_mounted(point: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait for the kernel to say that its mounts have changed, until ``point`` is one of them."""
    with open("/proc/self/mountinfo", "rb") as mounts:
        changes = select.poll()
        changes.register(mounts, select.POLLERR | select.POLLPRI)
        for _ in range(1000):
            mounts.seek(0)
            if f" {point} ".encode() in mounts.read():
                return
            assert process.poll() is None, "the example ended"
            changes.poll(1000)
    pytest.fail("not mounted")


@pytest.fixture
def hello(tmp_path: Path) -> Iterator[Path]:
    """The example, mounted; afterwards it must end by itself, and well."""
    process = subprocess.Popen([sys.executable, str(HELLO), str(tmp_path)])
    try:
        wait_mounted(tmp_path, process)
        yield tmp_path
        subprocess.run(["umount", str(tmp_path)], check=True)
        assert process.wait(timeout=20) == 0
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
            subprocess.run(["umount", "--lazy", str(tmp_path)], check=False)


def test_hello(hello: Path) -> None:
    assert [path.name for path in hello.iterdir()] == ["hello"]
    assert (hello / "hello").read_bytes() == b"Hello from Python.\n"
    assert (hello / "hello").stat().st_mode == 0o100444
    with pytest.raises(FileNotFoundError):
        (hello / "absent").stat()
    with pytest.raises(OSError) as refused:
        (hello / "new").mkdir()
    assert refused.value.errno == errno.ENOSYS


def test_readme_shows_the_example() -> None:
    shown = (PROJECT / "README.md").read_text(encoding="utf-8").partition("```python\n")[2]
    code = HELLO.read_text(encoding="utf-8").partition('"""\n\n')[2]
    assert shown.partition("```")[0] == code
