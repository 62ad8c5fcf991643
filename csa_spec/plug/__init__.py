"""What users plug in, and how it is called: in this process or in one of its own."""
