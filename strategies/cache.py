"""Strategies for schedules of calls on a stream, and the ready-made schedules that every run tries.

A schedule is drawn as a recipe, call by call, against the model of which rows and tokens there are: a state
machine whose runs are text. So a failing schedule shrinks call by call, and can be pasted.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from hypothesis import event
from hypothesis import strategies as st

from csa_spec.engine.stage import Draws, Setting
from csa_spec.spec import LayerKind
from csa_spec.stages.cache.case import CacheCase
from csa_spec.stages.cache.stream import Call, Op
from csa_spec.stages.layer.case import Sinks, Values
from csa_spec.strategies.flat import SEEDS
from csa_spec.strategies.geometry import compress_ratios, geometries
from csa_spec.strategies.layer import SMALL_LAYER

LONGEST = 28
"""Tokens of a row; what goes wrong between calls goes wrong early."""


def _boundaries(ratio: int, window: int) -> list[int]:
    near = {border + more for border in (ratio, 2 * ratio, window) for more in (-1, 0, 1)}
    return sorted(length for length in near if 0 < length <= LONGEST)


@st.composite
def schedules(
    draw: st.DrawFn, ratio: int, window: int, batch: int, ops: Collection[Op] = tuple(Op)
) -> tuple[Call, ...]:
    """Schedules that are legal for ``batch`` rows: extends up to and past blocks and window, and more."""
    lengths, saved, calls = [0] * batch, None, []
    others = [op for op in Op if op is not Op.EXTEND and op in ops]
    count = draw(st.integers(2, 7), label="calls")
    of_rows = (Op.REORDER, Op.SELECT, Op.CLEAR)
    planned = _planned(draw, [op for op in others if batch > 1 or op not in of_rows], count)
    for number in range(count):
        op = planned.get(number, Op.EXTEND)
        if number not in planned and any(lengths):
            op = draw(_mix(others), label="op")
        if op is Op.RESTORE and saved is None:
            op = Op.SAVE
        if (op is Op.ROLLBACK and not min(lengths)) or (op is Op.REPEAT and len(lengths) > 3):
            op = Op.EXTEND
        room = LONGEST - max(lengths)
        numbers: tuple[int, ...] = ()
        if op is Op.EXTEND:
            if room < 1:
                continue
            longest = max(lengths)
            to_boundary = [end - longest for end in _boundaries(ratio, window) if end > longest]
            amounts = st.integers(1, ratio + 2) | st.just(1)
            if to_boundary:
                amounts = amounts | st.sampled_from(to_boundary)
            amount = min(draw(amounts, label="tokens"), room)
            numbers, lengths = (amount,), [length + amount for length in lengths]
        elif op is Op.ROLLBACK:
            amount = draw(st.integers(1, min(*lengths, ratio + 2)), label="rollback")
            numbers, lengths = (amount,), [length - amount for length in lengths]
        elif op in (Op.REORDER, Op.SELECT):
            kept = len(lengths) if op is Op.REORDER else draw(st.integers(1, len(lengths)), label="kept")
            rows = st.integers(0, len(lengths) - 1)
            numbers = tuple(draw(st.lists(rows, min_size=kept, max_size=kept), label="rows"))
            lengths = [lengths[row] for row in numbers]
        elif op is Op.REPEAT:
            numbers, lengths = (2,), [length for length in lengths for _ in range(2)]
        elif op is Op.CLEAR:
            row = draw(st.integers(0, len(lengths) - 1), label="cleared")
            numbers, lengths[row] = (row,), 0
        elif op is Op.RESET:
            lengths = [0] * len(lengths)
        elif op is Op.SAVE:
            saved = list(lengths)
        elif op is Op.RESTORE:
            assert saved is not None
            lengths = list(saved)
        calls.append(Call(op, numbers))
    amount = min(max(1, LONGEST - max(lengths)), draw(st.integers(1, ratio + 1), label="last"))
    return (*calls, Call(Op.EXTEND, (amount,)))


def _planned(draw: st.DrawFn, others: Sequence[Op], count: int) -> dict[int, Op]:
    """Return which operation comes where, after a first extend: left to chance, some would never come."""
    if not others:
        return {}
    op = draw(st.sampled_from(others), label="planned")
    place = draw(st.integers(1, count - 1), label="place")
    return {1: Op.SAVE, max(3, place): op} if op is Op.RESTORE and count > 3 else {place: op}


def _mix(others: Sequence[Op]) -> st.SearchStrategy[Op]:
    """Draw extends as often as all other operations together."""
    return st.sampled_from([Op.EXTEND] * max(2, len(others)) + list(others))


@st.composite
def cache_cases(
    draw: st.DrawFn, kind: LayerKind | str = LayerKind.CSA, setting: Setting = Setting()
) -> CacheCase:
    """Schedules on small layers; a third of them only extend."""
    ratio = min(8, draw(compress_ratios(), label="compress_ratio"))
    window = draw(st.integers(1, 4) | st.sampled_from((ratio, ratio + 1, 8)), label="window")
    geometry = replace(
        draw(geometries(LayerKind(kind)), label="geometry"),
        compress_ratio=1 if kind == LayerKind.SLIDING else ratio,
        window=window,
        top_k=draw(st.integers(0, 4), label="top_k") if kind == LayerKind.CSA else 1,
    )
    values = draw(st.sampled_from((Values.GAUSSIAN, Values.INTEGERS, Values.LARGE_LOGITS)), label="values")
    sinks = draw(st.sampled_from((Sinks.DRAWN, Sinks.ZERO, Sinks.EXTREME)), label="sinks")
    seed = draw(SEEDS, label="seed")
    batch = draw(st.sampled_from((1, 1, 2, 3)), label="batch")
    ops = draw(st.sampled_from((tuple(Op), tuple(Op), (Op.EXTEND,))), label="operations")
    case = CacheCase.of(
        geometry,
        batch=batch,
        calls=draw(schedules(ratio, window, batch, ops), label="calls"),
        values=values,
        sinks=sinks,
        seed=seed,
        dtype=setting.dtype,
        device=setting.device,
    )
    for call in case.calls:
        event("call", str(call.op))
    return case


def cache_corners(kind: LayerKind | str, setting: Setting = Setting()) -> list[CacheCase]:
    """Return the ready-made schedules of one layer kind."""
    m, window = 4, 6
    ratio = 1 if kind == LayerKind.SLIDING else m
    text = f"cache {kind} {SMALL_LAYER} m={ratio} W={window} values=gaussian sinks=drawn"
    plain = replace(CacheCase.parse(text), dtype=setting.dtype, device=setting.device)
    if kind == LayerKind.CSA:
        plain = replace(plain, top_k=2, index_heads=4)
    total = 3 * m + 1
    texts = [
        str(total),  # one shot ...
        *(f"{first},{total - first}" for first in range(1, total)),  # ... is every split
        ",".join(["1"] * total),  # ... is token by token
        # Blocks of drafts to verify.
        *(",".join(["1", *[str(block)] * (total // block)]) for block in range(2, m + 3)),
        f"{window - 1},1,1,1",
        f"{window},1,{window + 2}",
        f"{m + 1},other,2,other,{m},other",  # requests that take turns
        f"{2 * m + 1},reset,{m - 1},1,1",  # a shorter request after a longer one
        f"{2 * m + 3},reset,{m - 2},{m}",
        f"{m + 1},3,rollback:2,2,1",  # drafts rejected inside a block, over its border, and all of a block
        f"{2 * m},{m},rollback:{m},{m + 1}",
        f"{m + 2},rollback:3,1,1,1,1",
        f"{m},rollback:1,1,1",  # inside the window, where a ring still holds all
        f"{m + 2},{m + 1},rollback:{m + 1},{m}",  # more drafts than a block
        f"{2 * m + 1},save,3,restore,2,1",
        f"{m + 1},save,2,restore,1,restore,{m}",  # the same state twice
        f"{m + 1},fork,2,{m}",
    ]
    several = [
        f"{m + 2},reorder:1.0,1,1,1",  # in the middle of a block
        f"{m},reorder:1.1,{m + 1}",
        f"{3 * m + 1},reorder:1.0,1,{m}",  # more entries than are selected
        f"{2 * m + 1},select:1,2,1",
        f"{m + 2},select:1.0,2,1",
        f"{m + 2},3,rollback:2,1,{m}",
        f"{m + 1},repeat:2,3,2",
        f"{m + 2},clear:0,{m - 1},1,{m}",  # a new request beside an old one
        f"{2 * m + 3},clear:1,1,1,1,1,1",
        f"{m + 2},clear:0,{m - 1},rollback:2,1,2",  # over the border of a block in one row only
        f"{window},clear:0,{window + 1},reorder:1.0,3",
        f"{m + 2},1,1,1",
    ]
    narrow = replace(plain, window=1)
    corners = [
        *(replace(plain, calls=_calls(text)) for text in texts),
        *(replace(plain, batch=2, calls=_calls(text)) for text in several),
        *(replace(narrow, calls=_calls(text)) for text in (f"{m + 1},1,{m}", "1,1,1,1,1")),
    ]
    return [replace(case, seed=n) for n, case in enumerate(corners)]


def _calls(text: str) -> tuple[Call, ...]:
    return tuple(map(Call.parse, text.split(",")))


DRAWS = Draws(cases=cache_cases, corners=cache_corners)
