"""``python -m csa_spec``."""

import sys

from csa_spec.cli import main

if __name__ == "__main__":
    sys.exit(main())
