"""The suite put to the test: whether it finds every known bug, with what, and whether would less find them too."""
