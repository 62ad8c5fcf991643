"""What stages with flat cases share: a case written by hand is varied in every name of its data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from enum import StrEnum
from typing import Any, TypeVar

from hypothesis import event
from hypothesis import strategies as st

from csa_spec.engine.case import Case
from csa_spec.engine.stage import Draws, Setting
from csa_spec.strategies.sizes import Sweep

C = TypeVar("C", bound=Case)
SEEDS = st.integers(0, 2**16 - 1)


def any_of(kind: type[StrEnum]) -> st.SearchStrategy[Any]:
    """Any name of one kind of data."""
    return st.sampled_from(list(kind))


def draws(
    cases: Callable[[], st.SearchStrategy[C]],
    bases: Sequence[C],
    special: Sequence[C],
    production: Sequence[C],
    gradients: Sequence[C] | None = None,
    sweep: Sweep[C] | None = None,
) -> Draws[C]:
    """Return the cases of a stage.

    Parameters
    ----------
    cases
        Returns the strategy.
    bases
        Plain cases; the corner cases are these with every name that their data may have.
    special
        Further corner cases.
    production
        Cases of the sizes of the released models: 64 heads of 512 channels, 512 picks, blocks of 4.
    gradients
        Cases that costly laws, gradients say, are tried on: few drawn ones may all have no entry or no
        query. Where nothing is said, the plain ones.
    sweep
        Which sizes cross those at which implementations switch.
    """
    larger = [_four_times(base) for base in bases]  # what is kept or shared may be so from some size on only
    costly = bases if gradients is None else gradients
    varied = [case for base in bases for case in (base, *_varied(base))]
    corners = list(dict.fromkeys((*varied, *special)))

    def strategy(variant: str, setting: Setting) -> st.SearchStrategy[C]:
        def place(case: C) -> C:
            for name in case.regime:
                event(case.stage, name)
            return _placed(case, setting)

        return cases().map(place)

    def written(listed: Sequence[C], setting: Setting, seeds: bool = True) -> list[C]:
        return [_placed(replace(case, seed=n) if seeds else case, setting) for n, case in enumerate(listed)]

    return Draws(
        cases=strategy,
        corners=lambda variant, setting: written(corners, setting),
        for_laws=lambda variant, setting, costly_law: written(
            costly if costly_law else larger, setting, seeds=False
        ),
        production=lambda variant, setting: written(production, setting),
        sizes=(lambda drawn, seed: ()) if sweep is None else sweep.cases,
    )


def _varied(case: C) -> list[C]:
    data = (field for field in fields(case) if not field.metadata.get("form"))
    named: dict[str, Any] = {field.name: field.metadata.get("kind", ()) for field in data}
    return [replace(case, **{field: name}) for field, names in named.items() for name in names]


def _four_times(case: C) -> C:
    return case.with_sizes({letter: 4 * size for letter, size in case.sizes.items()})


def _placed(case: C, setting: Setting) -> C:
    return replace(case, dtype=setting.dtype, device=setting.device)
