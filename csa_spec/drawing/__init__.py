"""Drawing failures: SVG, grids of squares, and the frame around them, for the pictures of stages."""
