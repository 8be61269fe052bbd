# SPDX-License-Identifier: Apache-2.0
"""Damage at random: fields, bytes, whole blocks; and cases as text, to be kept and made again."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeAlias

from tests.fuzz.bases import BASES, CORPUS, Image, Patch, load
from tests.fuzz.edit import Editor
from tests.fuzz.places import Field, fields, values
from tests.fuzz.serve import serve
from tests.fuzz.use import BrokenPromise, use

__all__ = ["Case", "cases", "check", "damaged", "from_text", "set_field", "to_text"]

Case: TypeAlias = dict[str, Any]
CASES: Final = CORPUS / "cases.json"


def set_field(editor: Editor, field: Field, value: int, *, seal: bool = True) -> None:
    """Put a number into a field, with the checksum of its structure if ``seal``."""
    editor.write(field.offset, value.to_bytes(field.size, "little"))
    if seal:
        field.seal(editor)


def _field(editor: Editor, chance: random.Random) -> None:
    field = chance.choice(fields(editor.name))
    now = int.from_bytes(editor.pread(field.size, field.offset), "little")
    value = chance.choice(values(field.size, now, chance))
    set_field(editor, field, value, seal=chance.random() < 0.9)


def _bytes(editor: Editor, chance: random.Random) -> None:
    """Near a field, so that it hits structures more often than the empty rest."""
    field = chance.choice(fields(editor.name))
    offset = min(max(field.offset + chance.randrange(-64, 64), 0), editor.size - 16)
    editor.write(offset, chance.randbytes(chance.choice((1, 1, 2, 4, 8, 16))))
    field.seal(editor)


def _block(editor: Editor, chance: random.Random) -> None:
    """One block of metadata becomes a copy of another."""
    size = editor.block_size
    source, field = (chance.choice(fields(editor.name)) for _ in range(2))
    editor.put_block(field.offset // size, editor.block(source.offset // size))
    field.seal(editor)


def damaged(base: str, chance: random.Random, count: int) -> Editor:
    """A base with ``count`` random changes."""
    editor = Editor(base)
    steps: tuple[Callable[[Editor, random.Random], None], ...] = (_field, _field, _bytes, _block)
    for _ in range(count):
        chance.choice(steps)(editor, chance)
    return editor


def to_text(editor: Editor, why: str) -> str:
    """A case as one line of JSON, to be added to ``tests/corpus/cases.json``."""
    patches = [[offset, data.hex()] for offset, data in editor.patches]
    return json.dumps({"why": why, "base": editor.name, "size": editor.size, "patches": patches})


def from_text(case: Case) -> Image:
    """The image of a case."""
    patches = [Patch(offset, bytes.fromhex(data)) for offset, data in case["patches"]]
    return Image(load(case["base"]), patches, case["size"])


def cases() -> list[Case]:
    """The cases that were found and are kept."""
    found: list[Case] = json.loads(CASES.read_text(encoding="utf-8"))
    assert all(case["base"] in BASES for case in found)
    return found


def check(image: Image, ways: Iterable[str] = ("reader", "unverified", "server")) -> None:
    """Use an image in these ways.

    Raises:
        BrokenPromise: naming the way.
    """
    for way in ways:
        try:
            if way == "server":
                serve(image)
            else:
                use(image, verify=way == "reader")
        except BrokenPromise as error:
            raise BrokenPromise(f"{way}: {error}") from error
