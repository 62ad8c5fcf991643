"""The parts that pictures of failures are made of."""
