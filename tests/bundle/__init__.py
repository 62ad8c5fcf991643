"""Tests of bundles and of their replay."""
