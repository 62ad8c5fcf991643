"""The stage ``cache``."""
