"""The stage ``compressor``."""
