# SPDX-License-Identifier: Apache-2.0
"""penstock beside the kernel's ext4 and fuse2fs, on one image, in one run: ``make bench``.

``plan`` says what is measured, ``image`` makes the image, ``contenders`` mount it, ``client`` is
the program that is timed, ``run`` puts them together, ``judge`` turns samples into ratios and
verdicts, ``report`` and ``plot`` show them. README.md in this folder explains every row.
"""

__all__: list[str] = []
