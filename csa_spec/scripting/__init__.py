"""Scripts that show a failure without this package: tensors as text, calls, comparisons."""
