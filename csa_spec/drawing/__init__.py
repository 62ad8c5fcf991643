"""Drawing failures: SVG, grids of squares, and the frame around them. Pictures of stages are made of these."""
