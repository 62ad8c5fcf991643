"""One wrong line in transformers' modeling file is found, wherever it is; the same file unchanged is not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import transformers
from transformers.cache_utils import DYNAMIC_LAYER_TYPE_MAPPING
from transformers_adapter.mutants import MUTANTS, WRITTEN_FOR, Mutant, hunt, patched

from csa_spec.spec import LayerKind

pytestmark = pytest.mark.skipif(
    transformers.__version__ != WRITTEN_FOR,
    reason=f"the changed lines are those of transformers {WRITTEN_FOR}, installed is {transformers.__version__}",
)


@pytest.fixture(autouse=True)
def registered_cache_layers() -> Iterator[None]:
    """Put back transformers' own cache layers, in whose place a patched copy registers its own."""
    before = dict(DYNAMIC_LAYER_TYPE_MAPPING)
    yield
    DYNAMIC_LAYER_TYPE_MAPPING.update(before)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_a_wrong_line_is_found_in_every_layer_kind_that_it_serves(mutant: Mutant, tmp_path: Path) -> None:
    """The default profile finds it; a kind at a time, so that no kind is covered by another."""
    candidate = patched(mutant, tmp_path)
    escaped = [str(kind) for kind in mutant.kinds if hunt(candidate, (kind,), "default") is None]
    assert not escaped, f"{mutant.name}: not found in {', '.join(escaped)} layers"


@pytest.mark.parametrize("kind", list(LayerKind), ids=str)
def test_the_unchanged_copy_is_found_right(kind: LayerKind, tmp_path: Path) -> None:
    """The same procedure, with no line changed, finds nothing."""
    assert hunt(patched(None, tmp_path), (kind,), "smoke") is None
