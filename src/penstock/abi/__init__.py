# SPDX-License-Identifier: Apache-2.0
"""Numbers and layouts of kernel interfaces; facts only, no code that does anything."""
