# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/broker-protocol.md, made from the protocol's own declarations.

``python -m tests.support.brokertables`` writes them into the page, each between the two comments
that name it; a test compares.
"""

from __future__ import annotations

import ast
import enum
import re
from collections.abc import Callable, Iterable
from typing import Any

from penstock.broker import backings, lens, peer, protocol, registrar
from penstock.broker.codec import Field, Form, fields_of
from penstock.broker.protocol import BECOMES, MAY_SEND, REGISTRY, Kind, State
from tests.support.requirements import PROJECT

__all__ = ["PAGE", "filled"]

PAGE = PROJECT / "docs" / "broker-protocol.md"
_SOURCE = PROJECT / "src" / "penstock" / "broker" / "protocol.py"
_CODES = {"B": "u8", "H": "u16", "I": "u32", "Q": "u64", "q": "s64"}


def _classes() -> dict[str, ast.ClassDef]:
    tree = ast.parse(_SOURCE.read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


_CLASSES = _classes()


def _plain(text: str) -> str:
    """A docstring as one line of Markdown."""
    text = re.sub(r":(?:class|data|attr):`~?([\w.]+)`", r"\1", " ".join(text.split()))
    return text.replace("``", "`").replace("|", "\\|")


def _doc(name: str) -> str:
    return _plain(ast.get_docstring(_CLASSES[name]) or "")


def _member_docs(name: str) -> dict[str, str]:
    """What is said of the members of a class: the text behind each."""
    found: dict[str, str] = {}
    last = ""
    for node in _CLASSES[name].body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            last = node.target.id
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            last = node.targets[0].id
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and last:
            found[last] = _plain(str(node.value.value))
            last = ""
    return found


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _type(field: Field) -> str:
    if field.number is not None:
        code = _CODES[field.number.format[-1]]
        if field.kind is None:
            return code
        return f"{code}, {'0 or 1' if field.kind is bool else field.kind.__name__}"
    if field.item is str:
        return f"{field.form.value} ≤ {field.longest}"
    item = _type(field.item) if isinstance(field.item, Field) else field.item.__name__
    return f"≤ {field.longest} of {item}"


def _fields(cls: type[Any]) -> str:
    said = _member_docs(cls.__name__)
    words = []
    for field in fields_of(cls):
        text = f"`{field.name}`: {_type(field)}"
        if field.name in said:
            text += f" ({said[field.name].rstrip('.')})"
        words.append(text)
    return "; ".join(words) or "none"


def _descriptors(fds: range) -> str:
    return str(fds[0]) if len(fds) == 1 else f"{fds[0]} to {fds[-1]}"


def _messages(kinds: Iterable[Kind]) -> str:
    rows = []
    for kind in kinds:
        rule = protocol._RULES[kind]
        rows.append([
            f"`{kind.name}`", str(int(kind)), _descriptors(rule.fds), _fields(rule.body),
            _doc(rule.body.__name__),
        ])  # fmt: skip
    return _table(["Kind", "Number", "Descriptors", "Fields", "Meaning"], rows)


def _items() -> str:
    """The structures that lists are made of."""
    found: dict[str, type[Any]] = {}
    for kind in Kind:
        for field in fields_of(protocol._RULES[kind].body):
            if hasattr(field.item, "_fields") and not isinstance(field.item, Field):
                found[field.item.__name__] = field.item
    rows = [[f"`{name}`", _fields(cls), _doc(name)] for name, cls in found.items()]
    return _table(["Item", "Fields", "Meaning"], rows)


def _enumeration(cls: type[enum.IntEnum]) -> str:
    said = _member_docs(cls.__name__)
    return _table(
        [cls.__name__, "Number", "Meaning"],
        [[f"`{member.name}`", str(int(member)), said.get(member.name, "")] for member in cls],
    )


def _names(kinds: Iterable[Kind]) -> str:
    return ", ".join(f"`{kind.name}`" for kind in sorted(kinds)) or "nothing"


def _states() -> str:
    said = _member_docs("State")
    rows = []
    for state in State:
        leads = ", ".join(f"`{kind.name}` → {to.value}" for kind, to in BECOMES[state].items())
        rows.append(
            [state.value, said.get(state.name, ""), _names(MAY_SEND[state]), leads or "none"]
        )
    rows.append(["serving, through the socket of the registry", "", _names(REGISTRY), "none"])
    return _table(["State", "Meaning", "The server may send", "Becomes"], rows)


def _rates() -> str:
    rows = [["all together", f"{peer.ALL.burst:,}", f"{peer.ALL.per_second:,g}"]]
    rows += [
        [f"`{kind.name}`", f"{rate.burst:,}", f"{rate.per_second:,g}"]
        for kind, rate in peer.RATES.items()
    ]
    rate = registrar._RATE
    rows.append(["to the registry", f"{rate.burst:,}", f"{rate.per_second:,g}"])
    return _table(["Messages", "At once", "Per second"], rows)


def _limits() -> str:
    forms = _member_docs_of_forms()
    rows = [
        ["a message, with its header", f"{protocol.MAX_MESSAGE:,} bytes"],
        ["workers of a server", str(protocol.MAX_WORKERS)],
        ["extents of a file", f"{protocol.MAX_EXTENTS:,}"],
        [
            "blocks that a file in the lens may take, of a size that divides all of its extents",
            f"{lens.MAX_CHUNKS:,}",
        ],
        ["backing files of a mount", f"{backings.MAX_BACKINGS:,}"],
        *[[f"a {form.value} consists of", forms[form]] for form in Form],
    ]
    return _table(["What", "Limit"], rows)


def _member_docs_of_forms() -> dict[Form, str]:
    source = (_SOURCE.parent / "codec.py").read_text(encoding="utf-8")
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and node.name == "Form":
            _CLASSES["Form"] = node
    said = _member_docs("Form")
    return {form: said[form.name].rstrip(".") for form in Form}


TABLES: dict[str, Callable[[], str]] = {
    "to the server": lambda: _messages(kind for kind in Kind if kind < 16),
    "to the broker": lambda: _messages(kind for kind in Kind if kind >= 16),
    "items": _items,
    "purposes": lambda: _enumeration(protocol.Purpose),
    "failures": lambda: _enumeration(protocol.FailureCode),
    "reasons": lambda: _enumeration(protocol.EndReason),
    "states": _states,
    "rates": _rates,
    "limits": _limits,
}


def filled(page: str) -> str:
    """The page with its tables as they should be.

    Raises:
        ValueError: a table has no place in it, or there is a place for none.
    """
    places = re.findall(r"<!-- table: (.*) -->", page)
    if sorted(places) != sorted(TABLES):
        raise ValueError(f"places for {places}, tables {sorted(TABLES)}")
    for name, make in TABLES.items():
        begin, end = f"<!-- table: {name} -->", "<!-- end -->"
        before, _, rest = page.partition(begin)
        _, _, after = rest.partition(end)
        page = f"{before}{begin}\n\n{make()}\n\n{end}{after}"
    return page


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
