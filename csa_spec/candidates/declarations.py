"""Whether what a candidate declares is about sizes and names that its stages have."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from csa_spec.engine.case import CaseError
from csa_spec.plug.arrays import library_problem
from csa_spec.plug.candidate import Candidate
from csa_spec.plug.capabilities import DEVICES, DTYPES, INDEX_DTYPES, Capabilities
from csa_spec.plug.names import did_you_mean, instead
from csa_spec.plug.plain import plain_line, shown
from csa_spec.spec import LayerKind
from csa_spec.stages import STAGES

_MOST = 100_000
"""Members of a set; what is larger is a limit."""
_MOST_PAGES = 8
"""Page sizes: a run tries each."""

Wrong = Callable[[Any], Iterable[object]]
"""Yields what of a declared value cannot be meant."""


def _unless(holds: Callable[[Any], bool]) -> Wrong:
    return lambda value: () if holds(value) else (value,)


def _each(holds: Callable[[Any], bool], most: int = _MOST) -> Wrong:
    """Of a set, or of any collection that serves as one; not of a text, nor of an empty one."""

    def wrong(value: Any) -> Iterable[object]:
        if isinstance(value, (str, bytes)) or not isinstance(value, Collection):
            return (value,)
        if not 0 < _count(value) <= most:
            return (value,)
        return (item for item in value if not holds(item))

    return wrong


def _items(holds: Callable[[Any, Any], bool]) -> Wrong:
    """Of a mapping."""

    def wrong(value: Any) -> Iterable[object]:
        if not isinstance(value, Mapping):
            return (value,)
        return ({key: item} for key, item in value.items() if not holds(key, item))

    return wrong


def _or_none(wrong: Wrong) -> Wrong:
    return lambda value: () if value is None else wrong(value)


def _whole(least: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value < 10**18


def _is_pair(key: object) -> bool:
    return isinstance(key, tuple) and len(key) == 2 and all(isinstance(part, str) for part in key)


def _sizes(holds: Callable[[Any], bool]) -> Wrong:
    return _items(lambda key, size: (isinstance(key, str) or _is_pair(key)) and holds(size))


def _is_set_of_sizes(value: Any) -> bool:
    if isinstance(value, (str, bytes)) or not hasattr(value, "__contains__"):
        return False
    return not isinstance(value, Collection) or (_count(value) <= _MOST and all(map(_whole(0), value)))


def _count(value: Collection[Any]) -> int:
    try:
        return len(value)
    except OverflowError:  # a range may be longer than any list
        return _MOST + 1


def _is_tolerance(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1


_SIZES = "a mapping from the letter of a size to a whole number of at least {}"
_FLAG = (_unless(lambda value: isinstance(value, bool)), "True or False")
_RULES: dict[str, tuple[Wrong, str]] = {
    "kinds": (_each(list(LayerKind).__contains__), f"a set out of {', '.join(LayerKind)}"),
    "dtypes": (_each(DTYPES.__contains__), f"a set out of {', '.join(DTYPES)}"),
    "devices": (_each(DEVICES.__contains__), f"a set out of {', '.join(DEVICES)}"),
    "compress_ratios": (
        _or_none(_each(_whole(1))),
        f"a set of at most {_MOST:,} whole numbers of at least 1",
    ),
    "head_dims": (_or_none(_each(_whole(1))), f"a set of at most {_MOST:,} whole numbers of at least 1"),
    "max_top_k": (_or_none(_unless(_whole(0))), "a whole number of at least 0"),
    "limits": (_sizes(_whole(0)), _SIZES.format(0)),
    "least": (_sizes(_whole(0)), _SIZES.format(0)),
    "multiples": (_sizes(_whole(1)), _SIZES.format(1)),
    "allowed": (
        _sizes(_is_set_of_sizes),
        f"a mapping from the letter of a size to a set of at most {_MOST:,} whole numbers",
    ),
    "lacks": (
        _items(lambda key, reason: _is_pair(key) and isinstance(reason, str)),
        "a mapping from pairs such as (stage, name) to a reason as text",
    ),
    "arrays": (_unless(lambda value: isinstance(value, str)), "the name of a library, as text"),
    "gradients": _FLAG,
    "draws_random": _FLAG,
    "invalid_indices": _FLAG,
    "index_dtypes": (_each(INDEX_DTYPES.__contains__), f"a set out of {', '.join(INDEX_DTYPES)}"),
    "lengths": _FLAG,
    "paged": (
        lambda value: () if value == () else _each(_whole(1), _MOST_PAGES)(value),
        f"at most {_MOST_PAGES} page sizes, whole numbers of at least 1",
    ),
    "contiguous": _FLAG,
    "static_shapes": _FLAG,
    "internal_dtype": (_or_none(_unless(DTYPES.__contains__)), f"one of {', '.join(DTYPES)}, or None"),
    "tie_tolerance": (_unless(_is_tolerance), "a number from 0 to less than 1"),
    "lowest_index_first": _FLAG,
    "deterministic": _FLAG,
    "batch_invariant": _FLAG,
}
"""By the field of ``Capabilities``: what of its value is wrong, and what it must be."""


def capabilities_problem(capabilities: Capabilities) -> str:
    """Say which declaration means nothing, whatever the stages are; nothing if all is well."""
    for name, (wrong, wanted) in _RULES.items():
        for found in wrong(getattr(capabilities, name)):
            return f"capabilities.{name} must be {wanted}, not {shown(found, 80)}"
    library = library_problem(capabilities.arrays)
    if library:
        return f"capabilities.arrays: {plain_line(library)}"
    if capabilities.gradients and capabilities.arrays != "torch":
        return f"capabilities.gradients need torch's arrays, not {capabilities.arrays}'s"
    return ""


def declaration_problem(candidate: Candidate) -> str:
    """Say what a candidate declares that none of its stages has; nothing if all is well."""
    for stage in candidate.offers:
        declared = candidate.capabilities_of(stage)
        # What is declared for all stages at once may be about any of them.
        about = candidate.offers if declared is candidate.capabilities else (stage,)
        problem = _of_sizes(declared, about) or _of_names(declared, about) or _of_gradients(declared, about)
        problem = problem or _of_forms(declared, about) or _of_nothing_left(declared, stage)
        if problem:
            return f"{candidate.name}: {problem}"
    return ""


def _of_sizes(declared: Capabilities, stages: tuple[str, ...]) -> str:
    letters = {stage: list(STAGES[stage].case.letters()) for stage in stages}
    known = {letter for own in letters.values() for letter in own}
    variants = {variant for stage in stages for variant in STAGES[stage].variants}
    listed = "; ".join(f"{stage} has the sizes {', '.join(own)}" for stage, own in letters.items())
    for what, sizes in declared.sizes.items():
        for key in sizes:
            variant, letter = key if isinstance(key, tuple) else ("", key)
            if letter not in known:
                return f"capabilities.{what} names {letter!r}; {listed}"
            if variant and variant not in variants:
                kinds = sorted(filter(None, variants))
                there = (
                    instead(variant, kinds) if kinds else "name the size alone, as there are no layer kinds"
                )
                return f"capabilities.{what} names {shown(variant, 40)}; {there}"
    return ""


def _of_names(declared: Capabilities, stages: tuple[str, ...]) -> str:
    every = {place: names for stage in STAGES.values() for place, names in stage.case.may_lack().items()}
    own = {place for stage in stages for place in STAGES[stage].case.may_lack()}
    for place, name in declared.lacks:
        if place not in every:
            return f"capabilities.lacks names {shown(str(place))}; {instead(place, every)}"
        if place in own and name not in every[place]:
            meant = did_you_mean(name, every[place]) or f"{place} has {', '.join(every[place])}"
            return f"capabilities.lacks names {shown(str(name))}; {meant}"
    return ""


def _of_gradients(declared: Capabilities, stages: tuple[str, ...]) -> str:
    checked = [stage for stage in stages if any(check.name == "gradients" for check in STAGES[stage].checks)]
    if declared.gradients and not checked:
        return f"capabilities.gradients: {', '.join(stages)} has no gradients that could be checked"
    return ""


def _of_forms(declared: Capabilities, stages: tuple[str, ...]) -> str:
    known = {form for stage in stages for form in STAGES[stage].case.forms}
    plain = Capabilities()
    for form in sorted({form for stage in STAGES.values() for form in stage.case.forms} - known):
        if getattr(declared, form) != getattr(plain, form):
            return f"capabilities.{form}: {', '.join(stages)} has no such form of its arguments"
    if declared.gradients and declared.paged:
        return "capabilities.gradients: those of a paged cache are not checked; declare one of the two"
    return ""


def _of_nothing_left(declared: Capabilities, stage: str) -> str:
    kinds = [variant for variant in STAGES[stage].variants if not variant or variant in declared.kinds]
    for variant in kinds:
        case = STAGES[stage].case
        try:
            (case(kind=variant) if variant else case()).fit(declared)
        except CaseError as error:
            return f"what is declared leaves no case of {stage}: {error}"
    return ""
