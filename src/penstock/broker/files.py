# SPDX-License-Identifier: Apache-2.0
"""Whole files of one mount: what carries them, from the choice to the last registration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from penstock.abi.fuse import InitFlag
from penstock.broker.outcome import ServerFailure
from penstock.broker.peer import Peer
from penstock.broker.protocol import FailureCode, Ready, Reason
from penstock.fs import Connection
from penstock.negotiate import Profile, When

if TYPE_CHECKING:
    from penstock.broker.backings import BackingsStatistics
    from penstock.broker.carriers import Carrier
    from penstock.broker.registrar import Registrar

__all__ = ["Files"]


class Files:
    """Chooses and keeps what carries whole files. The steps come in the order of the methods.

    Args:
        word: of ``-o datapath=``.
        stackable: whether an overlay has to find room on top of the mount.
    """

    def __init__(self, word: str, *, stackable: bool) -> None:
        self._word = word
        self._stackable = stackable
        self._carrier: Carrier | None = None
        self._registrar: Registrar | None = None

    def choose(self, image: int, ready: Ready, how: str) -> None:
        """Find out what is possible.

        Args:
            image: the image or directory.
            ready: what the servers said of it.
            how: by which means it is going to be mounted.

        Raises:
            ServerFailure: what was asked for is impossible.
        """
        # Loaded while the servers judge.
        from penstock.broker.carriers import Window, choose_carrier  # noqa: PLC0415

        window = Window(ready.offset, ready.length, ready.block_size)
        try:
            self._carrier = choose_carrier(
                self._word, image, window, how, stackable=self._stackable
            )
        except OSError as error:
            text = f"datapath={self._word}: {error.strerror or error}"
            raise ServerFailure(text, FailureCode.OPTION) from error

    def profile(self, profile: Profile) -> Profile:
        """What to ask of the kernel."""
        if self._carrier is None or not self._carrier.files:
            return profile
        return profile._replace(has=profile.has | {When.PASSTHROUGH})

    @property
    def depth(self) -> int:
        """``max_stack_depth``."""
        return self._carrier.depth if self._carrier is not None else 0

    def start(
        self,
        device: int,
        connection: Connection,
        peers: Sequence[Peer],
        *,
        superblock_read_only: bool,
        on_violation: Callable[[int, str], None],
    ) -> None:
        """The connection is there.

        Args:
            device: its descriptor; stays the caller's.
            connection: what is in force on it.
            peers: the servers.
            superblock_read_only: whether the broker made it so.
            on_violation: called with a server's number and what it did wrong, from a thread.
        """
        for peer in peers:
            peer.channel.refuse_fds()
        carrier = self._carrier
        if carrier is None or not carrier.files:
            return
        if not connection.flags & InitFlag.PASSTHROUGH:
            if carrier.lens is not None:
                carrier.lens.close()
            reasons = carrier.reasons | {carrier.files: "the kernel's FUSE has no passthrough"}
            self._carrier = carrier._replace(files="", lens=None, reasons=reasons)
            return
        from penstock.broker.registrar import Registrar  # noqa: PLC0415 - needs a connection

        self._registrar = Registrar(
            device,
            [peer.pid for peer in peers],
            superblock_read_only=superblock_read_only,
            own_mount=carrier.own_mount,
            lens=carrier.lens,
            on_violation=on_violation,
        )

    @property
    def name(self) -> str:
        """The data path that carries whole files; empty: none does."""
        return self._carrier.files if self._carrier is not None else ""

    @property
    def reasons(self) -> tuple[Reason, ...]:
        """Why the others do not."""
        if self._carrier is None:
            return ()
        return tuple(Reason(*pair) for pair in self._carrier.reasons.items())

    def descriptors(self, number: int) -> list[int]:
        """What a server gets to register files with; closed by :meth:`run`."""
        return [] if self._registrar is None else [self._registrar.theirs(number)]

    def run(self) -> None:
        """All servers have their descriptors."""
        if self._registrar is not None:
            self._registrar.start()

    def statistics(self) -> BackingsStatistics | None:
        """Of backing files; None where there can be none."""
        return None if self._registrar is None else self._registrar.statistics()

    def close(self) -> None:
        """The connection ends. Idempotent."""
        if self._registrar is not None:
            self._registrar.close()
        elif self._carrier is not None and self._carrier.lens is not None:
            self._carrier.lens.close()
        self._carrier = None
