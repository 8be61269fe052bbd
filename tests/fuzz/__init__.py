# SPDX-License-Identifier: Apache-2.0
"""Hostile ext4 images: made from sound ones, and used in every way that a server uses them.

``bases.py`` has the sound images, ``layout.py`` finds their structures, ``edit.py`` changes bytes
and puts the checksums right again, ``evil.py`` makes the worst images by hand, ``use.py`` and
``serve.py`` hold the reader and the server to their promises. ``python -m tests.fuzz`` runs for as
long as it is told and prints how to make again what it found.
"""
