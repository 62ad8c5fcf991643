"""The suite put to the test: whether it finds every known bug, and whether right candidates pass."""
