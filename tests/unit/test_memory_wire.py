# SPDX-License-Identifier: Apache-2.0
"""The conversations with the memory filesystem use every operation of the protocol."""

from __future__ import annotations

from penstock.abi.fuse import Opcode
from penstock.wire import REQUESTS
from tests.support.conversation import converse
from tests.unit import test_memory_wire_files as files
from tests.unit import test_memory_wire_names as names


def test_every_opcode_is_used() -> None:
    scenarios = [*names.SCENARIOS, *files.SCENARIOS]
    used = set().union(*map(converse, scenarios))
    assert used == set(REQUESTS) - {Opcode.CUSE_INIT}
