"""The stage ``select``."""
