"""Hypothesis strategies for cases of DeepSeek-V4's attention: a module for each stage.

>>> from hypothesis import given
>>> from csa_spec.strategies import cases, stage_cases
>>> @given(cases("csa"))
... def test_my_layer(case): ...
>>> @given(stage_cases("attend"))
... def test_my_kernel(case): ...

Import them as ``csa_spec.strategies``. The module of a stage has its name, and ``DRAWS``: what a run tries.
"""

from __future__ import annotations

from typing import Any

from hypothesis.strategies import SearchStrategy

from csa_spec.engine.stage import Setting
from csa_spec.stages import STAGES
from csa_spec.strategies.geometry import compress_ratios, geometries, yarns
from csa_spec.strategies.layer import cases, top_ks, windows
from csa_spec.strategies.rows import batches, lengths, rows, starts

__all__ = [
    "batches",
    "cases",
    "compress_ratios",
    "geometries",
    "lengths",
    "rows",
    "stage_cases",
    "starts",
    "top_ks",
    "windows",
    "yarns",
]


def stage_cases(
    stage: str, dtype: str = "float32", device: str = "cpu", layer: str = ""
) -> SearchStrategy[Any]:
    """Cases of one stage.

    Parameters
    ----------
    stage
        Its name.
    dtype, device
        Where the case runs.
    layer
        The layer kind, for stages that have some; the first of them where nothing is said.
    """
    variant = layer or STAGES[stage].variants[0]
    return STAGES[stage].draws.cases(variant, Setting(dtype, device))
