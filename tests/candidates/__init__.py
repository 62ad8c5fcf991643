"""Tests of the candidates that ship ready."""
