"""The harness: cases and their tensors, comparison within budgets, failures, checks and laws, shrinking."""
