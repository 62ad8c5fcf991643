"""Tests of the harness, and the candidates that they hold against the specification."""
