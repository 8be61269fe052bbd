# SPDX-License-Identifier: Apache-2.0
"""The tests: ``unit`` without a mount, ``mount`` on a real /dev/fuse, ``root`` with privileges."""
