"""A stream, a layer that keeps state between calls: what can be asked of it, and how a schedule is run."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

import torch
from torch import Tensor

from csa_spec.engine.case import CaseError, whole
from csa_spec.plug.arrays import received
from csa_spec.plug.call import MisshapenAnswer, NotOffered
from csa_spec.plug.names import did_you_mean
from csa_spec.plug.plain import plain_line
from csa_spec.spec import Geometry, LayerWeights


class Op(StrEnum):
    """What can be asked of a stream."""

    EXTEND = "extend"
    """Take more tokens in every row and answer them; the number says how many"""
    ROLLBACK = "rollback"
    """Forget the last tokens of every row, as after rejected drafts"""
    RESET = "reset"
    """Forget everything"""
    REORDER = "reorder"
    """Row i goes on as row ``rows[i]`` was, as in beam search"""
    SELECT = "select"
    """Keep these rows, in this order"""
    REPEAT = "repeat"
    """Every row that many times, the copies side by side"""
    CLEAR = "clear"
    """Forget what is in these rows: other requests get their slots, and rows have different lengths"""
    FORK = "fork"
    """Go on with a copy; the original takes and answers other tokens first, as where a prefix is shared"""
    OTHER = "other"
    """Another request, in a stream of its own that stays open, takes a turn; this needs no method"""
    SAVE = "save"
    """Remember the state"""
    RESTORE = "restore"
    """Go back to the state that was saved last"""
    EXTEND_ROWS = "extend_rows"
    """Take and answer as many more tokens as each row's number says: a batch of requests in different phases"""
    ROLLBACK_ROWS = "rollback_rows"
    """Forget as many of the last tokens as each row's number says, as where rows reject different drafts"""
    ORIGINAL = "original"
    """The original of the last fork takes another turn, beside its copy; this needs no method"""


ANSWERED = (Op.EXTEND, Op.EXTEND_ROWS, Op.FORK, Op.ORIGINAL, Op.OTHER)
"""Operations in which some stream takes tokens and answers them"""
PER_ROW = (Op.EXTEND_ROWS, Op.ROLLBACK_ROWS)
"""Operations with a number of tokens for every row, none too"""


_NUMBERS = {
    **{Op.EXTEND: 1, Op.ROLLBACK: 1, Op.REPEAT: 1},
    **dict.fromkeys((Op.REORDER, Op.SELECT, Op.CLEAR, *PER_ROW)),
}
"""How many numbers an operation has; None: one or more, of rows or for rows. Others have none."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a schedule."""

    op: Op
    numbers: tuple[int, ...] = ()

    def __str__(self) -> str:
        """Return e.g. ``3``, ``reorder:1.0`` or ``reset``."""
        numbers = ".".join(map(str, self.numbers))
        return numbers if self.op is Op.EXTEND else str(self.op) + (f":{numbers}" if numbers else "")

    @classmethod
    def parse(cls, text: str) -> Call:
        """Read what ``str`` wrote."""
        match = re.fullmatch(r"(?:([0-9]+)|([a-z_]+)(?::([0-9]+(?:\.[0-9]+)*))?)", text)
        if match is None or (match[2] and match[2] not in list(Op)):
            listed = f"write e.g. 3, rollback:1, reorder:1.0, {', '.join(list(Op)[4:])}"
            meant = did_you_mean(text.partition(":")[0], list(Op)[1:])
            raise CaseError(f"{plain_line(text, 60)!r} is no call; {meant or listed}")
        if match[1]:
            return cls(Op.EXTEND, (whole(match[1]),))
        op, numbers = Op(match[2]), tuple(map(whole, match[3].split("."))) if match[3] else ()
        wanted = _NUMBERS.get(op, 0)
        if (wanted is None and not numbers) or (wanted is not None and len(numbers) != wanted):
            many = ("the rows'" if op in PER_ROW else "rows") if wanted is None else wanted or "no"
            raise CaseError(f"{plain_line(text, 60)!r} must have {many} numbers behind a colon")
        return cls(op, numbers)


class Stream(Protocol):
    """What ``open`` returns. Only ``extend`` is needed."""

    def extend(self, hidden: Tensor, /) -> Tensor:
        """Take ``[B, n, hidden]`` more tokens of every row; return the layer's outputs at them."""


def drive(
    open_stream: Callable[..., Stream],
    weights: LayerWeights,
    geometry: Geometry,
    batch: int,
    calls: Sequence[Call],
    *tokens: Tensor,
    after: Callable[[Any], None] = lambda tokens: None,
) -> Any:
    """Run a schedule on a new stream; return the outputs of all calls one by one, ``[tokens, hidden]``.

    ``after`` is called with the tokens of each call once it has returned.
    """
    stream: Any = open_stream(weights, geometry, batch)
    other: Any = None
    original: Any = None
    saved, outs, fed = None, [], iter(tokens)
    for call in calls:
        if call.op is Op.EXTEND:
            outs.append(_extended(stream, next(fed), after))
        elif call.op is Op.EXTEND_ROWS:
            outs.append(_extended_rows(stream, next(fed), list(call.numbers), after))
        elif call.op is Op.FORK:
            original, stream = stream, _ask(stream, Op.FORK)
            outs.append(_extended(original, next(fed), after))
        elif call.op is Op.ORIGINAL:
            outs.append(_extended(original, next(fed), after))
        elif call.op is Op.OTHER:
            other = open_stream(weights, geometry, batch) if other is None else other
            outs.append(_extended(other, next(fed), after))
        elif call.op is Op.SAVE:
            saved = _ask(stream, Op.SAVE)
        elif call.op is Op.RESTORE:
            _ask(stream, Op.RESTORE, saved)
        elif call.op in (Op.REORDER, Op.SELECT, Op.CLEAR, Op.ROLLBACK_ROWS):
            _ask(stream, call.op, list(call.numbers))
        else:
            _ask(stream, call.op, *call.numbers)
    return torch.cat(outs)


def _extended(stream: Any, hidden: Any, after: Callable[[Any], None]) -> Tensor:
    return _answer(Op.EXTEND, stream.extend(hidden), hidden, after).flatten(0, 1)


def _extended_rows(stream: Any, hidden: Any, lengths: list[int], after: Callable[[Any], None]) -> Tensor:
    """Return the outputs at the tokens; what comes back at padding means nothing."""
    returned = _ask(stream, Op.EXTEND_ROWS, hidden, list(lengths))
    out = _answer(Op.EXTEND_ROWS, returned, hidden, after)
    return torch.cat([row[:length] for row, length in zip(out, lengths, strict=True)])


def _answer(op: Op, returned: Any, hidden: Any, after: Callable[[Any], None]) -> Tensor:
    shape = tuple(hidden.shape)
    out = received(returned, hidden)
    if not isinstance(out, Tensor) or tuple(out.shape) != shape:
        got = list(out.shape) if isinstance(out, Tensor) else str(out)
        raise MisshapenAnswer(f"{list(shape)} from {op}", got)
    after(hidden)
    return out


def _ask(stream: Any, op: Op, *arguments: Any) -> Any:
    method = getattr(stream, op, None)
    if method is None:
        raise NotOffered(f"{op}, not offered")
    try:
        return method(*arguments)
    except NotImplementedError as error:
        raise NotOffered(f"{op}, refused: {plain_line(error, 160)}") from error
