# SPDX-License-Identifier: Apache-2.0
"""Where a contained server begins: executed as a script, by :mod:`penstock.broker.launch`.

Its arguments: what kind of server it is to be, the namespaces of who started it, and the folders
where modules are found.
"""

import gc
import sys

if __name__ == "__main__":
    gc.disable()  # there is no garbage in importing
    sys.path += sys.argv[3:]
    from penstock.contain.server import main

    main(sys.argv[2], sys.argv[1])
