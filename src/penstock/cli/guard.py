# SPDX-License-Identifier: Apache-2.0
"""What a program raises, turned into an exit code and one line on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from penstock.cli.errors import ExitCode, Failure, explain, lack, where
from penstock.cli.streams import discard, say

__all__ = ["guarded"]


def guarded(work: Callable[[], int]) -> int:
    """Do the work of a program; its exit code, and one line on stderr for whatever it raises."""
    try:
        code = work()
        sys.stdout.flush()
    except Failure as failure:
        return _fail(str(failure), failure.code)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        discard(1)  # whoever read our output has had enough
        return ExitCode.UNREAD
    except RecursionError:
        return _fail("nested too deeply", ExitCode.SYSTEM)
    except (OSError, ValueError) as error:
        return _fail(where(error) + explain(error), ExitCode.SYSTEM)
    except Exception as error:
        lacking = lack(error)
        if lacking is not None:
            return _fail(lacking, ExitCode.SYSTEM)
        if os.environ.get("PENSTOCK_TRACEBACK"):
            raise
        what = f"internal error: {type(error).__name__}: {error}"
        return _fail(f"{what} (PENSTOCK_TRACEBACK=1 shows where)", ExitCode.SYSTEM)
    return code


def _fail(message: str, code: ExitCode) -> int:
    from penstock.cli.text import printable

    say(f"penstock: {printable(message)}")
    return code
