"""The stage ``attend``."""
