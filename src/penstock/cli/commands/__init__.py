# SPDX-License-Identifier: Apache-2.0
"""One module per command: ``run(arguments: argparse.Namespace) -> int``."""

__all__: list[str] = []
