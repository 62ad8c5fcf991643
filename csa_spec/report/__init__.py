"""What is made of a run's results: text for people, JSON for programs."""
