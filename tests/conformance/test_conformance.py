"""One test, run once for each check of each stage or layer kind of each candidate, in each dtype.

The plugin makes the parameters: ``test_conformance[transformers-csa-float32-future]``. What the checks are is said
where they are defined, in the stages.
"""

from __future__ import annotations

from collections.abc import Callable


def test_conformance(csa_check: Callable[[], None]) -> None:
    """The candidate passes the check; what it does not offer or declare is skipped with the reason."""
    csa_check()
