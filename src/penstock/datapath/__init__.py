# SPDX-License-Identifier: Apache-2.0
"""Which way file data goes, per mount and per read. No I/O of its own.

``choose.py`` decides and remembers why; ``ranges.py`` turns a filesystem's mappings into the file
ranges that a transport carries out.
"""

from penstock.datapath.choose import DataPathStatistics, PathStatistics, ReadPaths
from penstock.datapath.ranges import file_ranges

__all__ = ["DataPathStatistics", "PathStatistics", "ReadPaths", "file_ranges"]
