"""It raises an exception."""

raise RuntimeError("no GPU found")
