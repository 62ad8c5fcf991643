"""Hypothesis strategies for cases of DeepSeek-V4's attention layers.

>>> from hypothesis import given
>>> from csa_spec.strategies import cases
>>> @given(cases("csa"))
... def test_my_layer(case): ...

Import them as ``csa_spec.strategies``.
"""

from csa_spec.strategies.cache import cache_cases, cache_corners
from csa_spec.strategies.cases import cases, top_ks, windows
from csa_spec.strategies.corners import corner_cases, law_corners
from csa_spec.strategies.geometry import compress_ratios, geometries, yarns
from csa_spec.strategies.rows import batches, lengths, rows, starts
from csa_spec.strategies.stages import gradient_corners, production_cases, stage_cases, stage_corners

__all__ = [
    "batches",
    "cache_cases",
    "cache_corners",
    "cases",
    "compress_ratios",
    "corner_cases",
    "geometries",
    "gradient_corners",
    "law_corners",
    "lengths",
    "production_cases",
    "rows",
    "stage_cases",
    "stage_corners",
    "starts",
    "top_ks",
    "windows",
    "yarns",
]
