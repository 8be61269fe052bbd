# SPDX-License-Identifier: Apache-2.0
"""Numbers and layouts of kernel interfaces; facts only, no code that does anything.

:mod:`~penstock.abi.layout` says how a structure is declared, :mod:`~penstock.abi.fuse` is the FUSE
protocol. Formats on disk are not here but in :mod:`penstock.formats`.
"""

__all__: list[str] = []
