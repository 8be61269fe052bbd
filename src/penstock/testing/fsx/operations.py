# SPDX-License-Identifier: Apache-2.0
"""What an operation is, and the table of their kinds.

An :class:`Operation` is a kind's name and integers, chosen with a look at the model but meaningful
without it: carried out where it makes no sense (a descriptor that is not open, say) it does
nothing. So a run can be written down, cut, and run again. Each kind has two functions side by side:
how its arguments are chosen, and how it is carried out on the filesystem and the model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from penstock.testing.fsx.picking import Pick
    from penstock.testing.fsx.world import World

__all__ = ["KINDS", "SKIPPED", "Act", "Arguments", "Choose", "Kind", "Operation", "operation"]

Arguments = tuple[int, ...]
SKIPPED: Final = "-"
"""The result of an operation that does not make sense where it stands."""


class Operation(NamedTuple):
    """One step of a run."""

    number: int
    """Its place in the run as it was made; decides what is written."""
    kind: str
    args: Arguments


Choose = Callable[["Pick"], "Arguments | None"]
"""Arguments for the present state; None where there is nothing to do it to."""
Act = Callable[["World", Operation], object]
"""Carries it out, compares what it returned, and returns what is to stand in the log.

Raises:
    Difference: it is not what the model says.
    OSError: it must not fail, and did.
"""


class Kind(NamedTuple):
    """A kind of operation."""

    name: str
    weight: int
    """How often, in relation to others."""
    needs: frozenset[str]
    """Features of the filesystem; without one of them the kind is left out."""
    parameters: tuple[str, ...]
    """Names of the arguments. One called ``slot`` is a descriptor, ``map`` a mapping, and
    ``name`` one of the names."""
    choose: Choose
    act: Act


KINDS: Final[dict[str, Kind]] = {}
"""All kinds, by name, in the order of their modules."""


def operation(
    weight: int, choose: Choose, parameters: str, *, needs: str = ""
) -> Callable[[Act], Act]:
    """A decorator: the function carries out the kind of its name.

    Args:
        weight, choose: as in :class:`Kind`.
        parameters, needs: words, as in :class:`Kind`.
    """

    def register(act: Act) -> Act:
        name = getattr(act, "__name__", "").rstrip("_")
        KINDS[name] = Kind(
            name, weight, frozenset(needs.split()), tuple(parameters.split()), choose, act
        )
        return act

    return register
