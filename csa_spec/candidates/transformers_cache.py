"""Streams on the caches of ``transformers``: what ``generate``, or a loop around the model, does by calls.

Each operation is the cache's own method. What a release does not have, or refuses with an error that it
raises itself, counts as refused; a method that breaks inside, or breaks the next call, is judged.
"""

from __future__ import annotations

import copy
import dis
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

RAISE = dis.opmap["RAISE_VARARGS"]


class CacheStream:
    """One real ``DynamicCache``, and the layer that fills it.

    Parameters
    ----------
    attend
        Runs the layer inside the model: ``attend(hidden, past_key_values=cache, use_cache=True)``.
    cache
        A cache, empty or not.
    """

    def __init__(self, attend: Callable[..., dict[str, Any]], cache: Any) -> None:
        self._attend = attend
        self._cache = cache

    def extend(self, hidden: Tensor) -> Tensor:
        """Run the model on more tokens; it takes positions and mask from the cache."""
        out = self._attend(hidden, past_key_values=self._cache, use_cache=True)["attention"][0]
        assert isinstance(out, Tensor)
        return out

    def rollback(self, n: int) -> None:
        """``crop`` by a negative number, which all releases take for that many tokens to remove."""
        if not getattr(self._cache, "is_croppable", True):
            raise NotImplementedError("the cache says that it is not croppable")
        self._do("crop", -n)

    def reset(self) -> None:
        """Forget everything."""
        self._do("reset")

    def reorder(self, rows: Sequence[int]) -> None:
        """As beam search does."""
        self._do("reorder_cache", self._indices(rows))

    def select(self, rows: Sequence[int]) -> None:
        """As contrastive search does."""
        self._do("batch_select_indices", self._indices(rows))

    def repeat(self, times: int) -> None:
        """As where one prompt gets several answers."""
        self._do("batch_repeat_interleave", times)

    def fork(self) -> CacheStream:
        """Copy the cache deeply: what the documentation says for reusing a prefix."""
        return type(self)(self._attend, self.save())

    def save(self) -> Any:
        """Return a deep copy of the cache."""
        return copy.deepcopy(self._cache)

    def restore(self, state: Any) -> None:
        """Go on with a deep copy of a saved one."""
        self._cache = copy.deepcopy(state)

    def _indices(self, rows: Sequence[int]) -> Tensor:
        device = next((layer.device for layer in self._cache.layers if hasattr(layer, "device")), None)
        return torch.tensor(rows, dtype=torch.long, device=device)

    def _do(self, name: str, *arguments: Any) -> None:
        method = getattr(self._cache, name, None)
        if method is None:
            raise NotImplementedError(f"{type(self._cache).__name__} has no {name}")
        try:
            method(*arguments)
        except (ValueError, RuntimeError, TypeError) as error:  # RuntimeError: NotImplementedError too
            if is_refusal(error):
                raise NotImplementedError(str(error)) from error
            raise


class RecordingStream(CacheStream):
    """A stream whose cache keeps what ``crop`` may ask back, as releases from 5.17 on offer."""

    def __init__(self, attend: Callable[..., dict[str, Any]], cache: Any) -> None:
        super().__init__(attend, cache)
        if not hasattr(cache, "activate_past_recording"):
            raise NotImplementedError(f"{type(cache).__name__} has no activate_past_recording")
        cache.activate_past_recording()


def is_refusal(error: BaseException) -> bool:
    """Whether an exception comes from a ``raise`` statement, not from inside of an operation of torch."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback is not None and traceback.tb_frame.f_code.co_code[traceback.tb_lasti] == RAISE
