# SPDX-License-Identifier: Apache-2.0
"""INIT: what the kernel offers, and what is taken.

A package of its own because two processes do it: the one that serves a filesystem of its own, and
the broker, which answers for a server that it does not trust. Start with :func:`negotiate`
(``init.py``); ``profile.py`` says what a kind of filesystem asks for.
"""

from penstock.negotiate.init import REFUSED, SUPPORTED, Limits, Profile, When, negotiate
from penstock.negotiate.profile import image_profile, mirror_profile

__all__ = [
    "REFUSED",
    "SUPPORTED",
    "Limits",
    "Profile",
    "When",
    "image_profile",
    "mirror_profile",
    "negotiate",
]
