"""``python -m syncserver`` is ``syncserver``."""

import sys

from syncserver.cli import main

if __name__ == "__main__":
    sys.exit(main())
