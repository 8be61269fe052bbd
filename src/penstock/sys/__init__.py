# SPDX-License-Identifier: Apache-2.0
"""System calls and ioctls. The only place with ctypes."""
