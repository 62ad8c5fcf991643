"""It aborts."""

import os

os.abort()
