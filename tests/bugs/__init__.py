"""Known bugs: the catalogue, and that every one is found."""
