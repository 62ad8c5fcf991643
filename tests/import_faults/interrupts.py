"""It raises KeyboardInterrupt."""

raise KeyboardInterrupt
