"""What each stage says about its scripts, by its name. What is not listed has no scripts."""

from __future__ import annotations

from csa_spec.bundle.by_stage.cache import CacheScript
from csa_spec.bundle.by_stage.compressor import CompressorScript
from csa_spec.bundle.by_stage.layer import LayerScript
from csa_spec.bundle.by_stage.select import SelectScript
from csa_spec.scripting.stage_script import StageScript

SCRIPTS: dict[str, StageScript] = {
    "compressor": CompressorScript(),
    "index_scores": StageScript(),
    "select": SelectScript(),
    "attend": StageScript(),
    "layer": LayerScript(),
    "cache": CacheScript(),
}
