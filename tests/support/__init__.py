# SPDX-License-Identifier: Apache-2.0
"""What tests share: requirements of the machine, an ordinary user, images, the leak check."""
