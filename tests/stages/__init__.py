"""The project's own tests of single stages."""
