# SPDX-License-Identifier: Apache-2.0
"""Which way file data goes, per mount and per read. No I/O of its own.

``choose.py`` decides and remembers why; ``whole.py`` knows which opened files the kernel carries;
``ranges.py`` turns a filesystem's mappings into the file
ranges that a transport carries out.
"""

from penstock.datapath.choose import WORDS, DataPathStatistics, Paths, PathStatistics
from penstock.datapath.ranges import file_ranges
from penstock.datapath.whole import MOST_MAPPINGS, WholeFiles

__all__ = [
    "MOST_MAPPINGS",
    "WORDS",
    "DataPathStatistics",
    "PathStatistics",
    "Paths",
    "WholeFiles",
    "file_ranges",
]
