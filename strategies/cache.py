"""Strategies for schedules of calls on a stream, and the ready-made schedules that every run tries.

A schedule is drawn as a recipe, call by call, against the model of which rows and tokens there are: a state
machine whose runs are text. So a failing schedule shrinks call by call, and can be pasted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from hypothesis import event
from hypothesis import strategies as st

from csa_spec.engine.stage import Draws, Setting
from csa_spec.spec import LayerKind
from csa_spec.stages.cache.case import CacheCase
from csa_spec.stages.cache.stream import PER_ROW, Call, Op
from csa_spec.stages.layer.case import Sinks, Values
from csa_spec.strategies.flat import SEEDS
from csa_spec.strategies.geometry import compress_ratios, geometries
from csa_spec.strategies.layer import FLASH, SMALL_LAYER, released_ratio, without_ties

LONGEST = 28
"""Tokens of a row in what is drawn; what goes wrong between calls goes wrong early, or in :func:`_long`."""
_OF_ROWS = (Op.REORDER, Op.SELECT, Op.CLEAR, *PER_ROW)
"""Operations that need several rows to mean anything"""
_PREPARED = {Op.RESTORE: Op.SAVE, Op.ORIGINAL: Op.FORK}
"""Operations that need another one before"""


def _boundaries(ratio: int, window: int) -> list[int]:
    near = {border + more for border in (ratio, 2 * ratio, window) for more in (-1, 0, 1)}
    return sorted(length for length in near if 0 < length <= LONGEST)


@st.composite
def schedules(
    draw: st.DrawFn, ratio: int, window: int, batch: int, ops: Collection[Op] = tuple(Op)
) -> tuple[Call, ...]:
    """Schedules that are legal for ``batch`` rows: extends up to and past blocks and window, and more."""
    lengths, saved, original, calls = [0] * batch, None, 0, []
    others = [op for op in Op if op is not Op.EXTEND and op in ops]
    of_rows = [op for op in others if op in _OF_ROWS]
    others = [*others, *of_rows] if batch > 1 else [op for op in others if op not in of_rows]
    count = draw(st.integers(2, 7), label="calls")
    planned = _planned(draw, others, count)
    for number in range(count):
        op = planned.get(number, Op.EXTEND)
        if number not in planned and any(lengths):
            op = draw(_mix(others), label="op")
        if (op is Op.RESTORE and saved is None) or (op is Op.ORIGINAL and not original):
            op = _PREPARED[op]
        useless = {
            Op.ROLLBACK: not min(lengths),
            Op.ROLLBACK_ROWS: not any(lengths),
            Op.REPEAT: len(lengths) > 3,
            Op.ORIGINAL: original > LONGEST,
        }
        if useless.get(op, False):
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
        elif op is Op.EXTEND_ROWS:
            if room < 1:
                continue
            counts = [draw(st.integers(0, min(room, ratio + 2)), label="tokens") for _ in lengths]
            numbers = tuple(counts) if any(counts) else (1,) * len(counts)
            lengths = [length + more for length, more in zip(lengths, numbers, strict=True)]
        elif op is Op.ROLLBACK_ROWS:
            counts = [draw(st.integers(0, min(length, ratio + 2)), label="rollback") for length in lengths]
            if not any(counts):  # what every row has a token for
                counts[lengths.index(max(lengths))] = 1
            numbers = tuple(counts)
            lengths = [length - less for length, less in zip(lengths, counts, strict=True)]
        elif op in (Op.FORK, Op.ORIGINAL):
            original = 2 + (max(lengths) if op is Op.FORK else original)
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
            rows = st.integers(0, len(lengths) - 1)
            numbers = tuple(draw(st.lists(rows, min_size=1, max_size=2, unique=True), label="cleared"))
            lengths = [0 if row in numbers else length for row, length in enumerate(lengths)]
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
    # Hypothesis repeats parts of what it drew before, also which name; a large number has less of a habit.
    op = others[draw(SEEDS, label="planned") % len(others)]
    place = draw(st.integers(1, count - 1), label="place")
    if op in _PREPARED and count > 3:
        return {1: _PREPARED[op], max(3, place): op}
    # Tokens that were there before rows moved, or a copy was made, are rolled back.
    then = draw(st.sampled_from((None, Op.ROLLBACK)), label="then")
    return {place: op, place + 1: then} if then is not None and then in others else {place: op}


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


_M, _WINDOW = 4, 6
"""Of schedules written by hand"""


def _plain(kind: LayerKind | str, setting: Setting) -> CacheCase:
    """Return the layer of schedules written by hand."""
    ratio = 1 if kind == LayerKind.SLIDING else _M
    text = f"cache {kind} {SMALL_LAYER} m={ratio} W={_WINDOW} values=gaussian sinks=drawn"
    plain = replace(CacheCase.parse(text), dtype=setting.dtype, device=setting.device)
    return replace(plain, top_k=2, index_heads=4) if kind == LayerKind.CSA else plain


def cache_corners(kind: LayerKind | str, setting: Setting = Setting()) -> list[CacheCase]:
    """Return the ready-made schedules of one layer kind that cost little."""
    plain, m, window = _plain(kind, setting), _M, _WINDOW
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
        f"{m + 1},reset,{m}",
        f"{2 * m + 1},reset,{m - 1},1,1",  # a shorter request after a longer one
        f"{2 * m + 3},reset,{m - 2},{m}",
        f"{2 * m + 1},reset,1,{m}",
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
        f"{m + 1},1",  # for tensors in every layout: each stream can extend
        f"{m + 2},reorder:1.0,{m}",
        f"{m + 2},reorder:1.0,1,1,1",  # in the middle of a block
        f"{m},reorder:1.1,{m + 1}",
        f"{3 * m + 1},reorder:1.0,1,{m}",  # more entries than are selected
        f"{2 * m + 1},select:1,2,1",
        f"{m + 2},select:1.0,2,1",
        "2,rollback:2,select:1,1",
        "2,reset,repeat:2,3",
        f"{m},rollback:1,2",
        f"{m + 2},3,rollback:2,1,{m}",
        f"{m + 1},repeat:2,3,2",
        f"{m + 2},clear:0,{m}",
        f"{m + 2},clear:0,{m - 1},1,{m}",  # a new request beside an old one
        f"{2 * m + 3},clear:1,1,1,1,1,1",
        f"{2 * m + 1},clear:0,1,{m}",
        f"{m + 2},clear:0,{m - 1},rollback:2,1,2",  # over the border of a block in one row only
        f"{window},clear:0,{window + 1},reorder:1.0,3",
        f"{m + 2},1,1,1",
    ]
    narrow = replace(plain, window=1)
    corners = [
        *(replace(plain, calls=_calls(text)) for text in texts),
        *(replace(plain, batch=2, calls=_calls(text)) for text in several),
        *(replace(narrow, calls=_calls(text)) for text in (f"{m + 1},1,{m}", "1,1,1,1,1")),
        *_rows_of_their_own(plain),
        *_rolled_back(plain),
        # Over pages and tiles; longer ones come with sizes.
        *(replace(plain, calls=_calls(text)) for text in ("131,1,1", "37,51,1,44,1")),
    ]
    return [replace(case, seed=n) for n, case in enumerate(corners)]


def long_schedules(drawn: Sequence[CacheCase], seed: int) -> list[CacheCase]:
    """Return schedules over many tokens, and over all pairs of operations, for the layer kind that was drawn."""
    plain = _plain(drawn[0].kind, Setting(drawn[0].dtype, drawn[0].device))
    schedules = [*_long(plain), *_one_after_another(plain)]
    return [replace(case, seed=seed + n) for n, case in enumerate(schedules)]


def _rows_of_their_own(plain: CacheCase) -> Iterator[CacheCase]:
    """Yield schedules in which rows get or lose different numbers of tokens, and copies go on side by side."""
    m = _M
    for text in (
        f"extend_rows:{m + 1}.2,1,extend_rows:1.{m - 1},1",
        f"{m - 1},extend_rows:{m + 1}.1,{m}",
        f"{m + 1},extend_rows:0.{m},1,extend_rows:2.0,1",  # a slot without a request
        f"{2 * m},3,rollback_rows:2.0,1,{m}",
        f"{m + 1},3,rollback_rows:0.2,3,rollback_rows:1.3,1,1",  # drafts, and drafts again
        f"{2 * m + 1},rollback_rows:{m + 2}.0,1,1",  # over entries in one row only
        f"{3 * m},rollback_rows:1.{m},{m + 1},{m},1",  # more entries than are selected
        f"extend_rows:{2 * m}.{m - 1},1,reorder:1.0,rollback_rows:0.2,1",
        # Slots are free, and come back in another order.
        f"{m + 2},clear:0.1,extend_rows:0.{m - 1},extend_rows:{m + 1}.0,{m}",
        f"{2 * m + 1},clear:0.1,{m + 1},1",
        f"{2 * m + 1},clear:1.0,{m + 1},1",
        f"{2 * m + 1},clear:0,extend_rows:1.0,{m}",
        f"{2 * m + 1},reorder:1.0,clear:0,{m - 1},1,1",
        f"{2 * m + 1},select:1,repeat:2,clear:0,{m - 1},1,1",
    ):
        yield replace(plain, batch=2, calls=_calls(text))
    yield replace(plain, batch=3, calls=_calls(f"{m + 2},clear:0.2,extend_rows:1.0.{m},{m},1"))
    for turn in (1, 2, m):  # both go on, and part inside a block
        yield replace(plain, turn=turn, calls=_calls(f"{m + 1},fork,1,original,{m},original"))
    yield replace(plain, batch=2, calls=_calls(f"{2 * m - 1},fork,{m},original,reorder:1.0,1,original"))


def _rolled_back(plain: CacheCase) -> Iterator[CacheCase]:
    """Yield schedules that go back over finished entries, then bring too few tokens to finish them again.

    And those in which rows moved, or were copied, before they go back to what was there earlier.
    """
    plain = replace(
        plain, top_k=8 if plain.kind == LayerKind.CSA else plain.top_k
    )  # all that is stale shows
    moves = ("select:1", "select:1.0", "reorder:1.0", "reorder:1.1", "repeat:2", "clear:0,3", "fork")
    for number, m in enumerate((1, 2, 4)):
        case = plain if plain.kind == LayerKind.SLIDING else replace(plain, compress_ratio=m)
        yield replace(case, top_k=min(plain.top_k, 2), calls=_calls(f"{4 * m},rollback:1,{m + 1},{m}"))
        for text in (f"{3 * m},rollback:2,1", f"{3 * m + 1},1,rollback:{m + 2},1,1"):
            yield replace(case, window=m + 1, calls=_calls(text))
        for turn, move in enumerate((*moves, "save,1,restore"), number):
            before, back = (2 * m, m + 6)[turn % 2], 1 + turn // 2 % 2  # the window is full, or is not
            yield replace(case, batch=2, calls=_calls(f"{before},{move},rollback:{back},1,{m}"))


_COPIES = ("fork", "save", "select:1,repeat:2")
_OPERATIONS = ("rollback:1", "rollback_rows:0.2", "clear:0", "reorder:1.0", "other", "restore", *_COPIES)
"""Operations that leave two rows behind"""
_IN_A_ROW = 5
"""Pairs in one schedule: queries see all tokens before them, so that long schedules cost more"""


def _one_after_another(plain: CacheCase) -> Iterator[CacheCase]:
    """Yield schedules in which every operation comes after every other, and after itself.

    What one leaves for later (a mark, a shared list) only another one shows. A copy and what it was made of
    go on before the other comes; after a save, other tokens take the place of the last ones, too.
    """
    between = {"": _OPERATIONS, ",2": _COPIES, ",rollback:1,1": ("save",)}
    pairs = [(first + more, then) for more in between for first in between[more] for then in _OPERATIONS]
    schedules = [
        ",".join(f"{first},{then},1" for first, then in pairs[i : i + _IN_A_ROW])
        for i in range(0, len(pairs), _IN_A_ROW)
    ]
    # All of them on rows of more than a page.
    schedules = [*(f"3,save,{schedule}" for schedule in schedules), f"67,save,{',1,'.join(_OPERATIONS)}"]
    for schedule in schedules:
        yield replace(plain, batch=2).with_calls(_calls(f"{schedule},1,restore,1"))


def _long(plain: CacheCase) -> Iterator[CacheCase]:
    """Yield schedules over several windows, blocks, pages and internal tiles of up to 128 tokens."""
    for text in (
        "263,1,1",  # a prime, so that tiles have a ragged tail; then decoding
        ",".join(["5", *["1"] * 128]),  # decoding over the border of every page
        *(f"{first},16,32,64,1,1" for first in (15, 16, 17)),  # on either side of pages
        "7,107,1,rollback:20,1,1",
        "126,1,1,1,1,rollback:3,1,1",
    ):
        yield replace(plain, calls=_calls(text))
    yield replace(plain, batch=2, calls=_calls("extend_rows:9.70,1,extend_rows:35.1,rollback_rows:0.7,1"))
    wide = replace(plain, window=40)
    if plain.kind == LayerKind.CSA:
        wide = replace(wide, top_k=20)
    yield replace(wide, calls=_calls("135,1,rollback:3,1"))
    if plain.kind != LayerKind.SLIDING:
        for m, text in ((16, "100,1,27,1,1,35,1"), (32, "95,1,1,67,1"), (128, "126,1,1,1,127,1")):
            yield replace(wide, compress_ratio=m, calls=_calls(text))


def _calls(text: str) -> tuple[Call, ...]:
    return tuple(map(Call.parse, text.split(",")))


def production(kind: LayerKind | str, setting: Setting = Setting()) -> list[CacheCase]:
    """Return a prefill longer than a window, then decoding, in a layer of a released model."""
    m = released_ratio(kind)
    text = f"cache {kind} calls=150,1,3,1 m={m} {FLASH} k=16 values=gaussian sinks=drawn"
    return [replace(CacheCase.parse(text), dtype=setting.dtype, device=setting.device)]


DRAWS = Draws(
    cases=cache_cases,
    corners=cache_corners,
    sizes=long_schedules,
    production=production,
    telling=without_ties,
)
