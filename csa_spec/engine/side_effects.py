"""Side effects, for every stage: a call answers its own inputs and leaves everything else alone.

A check takes a trial. It raises a :class:`~csa_spec.engine.failures.Failure`, or returns a tally of what it
covered, or None where it does not apply to the case.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch

from csa_spec.engine import failures as kinds
from csa_spec.engine.failures import CandidateRaised, Failure, Place
from csa_spec.engine.tally import Tally
from csa_spec.engine.trial import Trial, main_output
from csa_spec.plug.arrays import same_bits
from csa_spec.plug.call import Answer
from csa_spec.plug.generators import DRAWN, SEEDED
from csa_spec.plug.layouts import CONTIGUOUS


def inputs_are_not_changed(trial: Trial[Any]) -> Tally:
    """Inputs are not mutated, nor read or mutated once the call has returned."""
    first = trial.answer
    if first.changed_inputs:
        raise kinds.InputsChanged(trial.case, names=", ".join(first.changed_inputs))
    overwritten = trial.ask(trial.arguments, overwrite=True)
    if overwritten.changed_later:
        names = ", ".join(overwritten.changed_later)
        raise kinds.InputsChanged(trial.case, names=f"{names}, after the call has returned")
    if overwritten.read_later:
        raise kinds.ReadsInputsLater(trial.case)
    if same_bits(trial.relevant(first), trial.relevant(overwritten)):
        return Tally(queries=trial.queries)
    wrong = _wrong(trial, overwritten)
    if wrong is not None and _wrong(trial, first) is None:
        raise kinds.ReadsInputsLater(trial.case, **wrong.numbers)
    return Tally(queries=trial.queries)


def state_is_left_alone(trial: Trial[Any]) -> Tally:
    """The process is left as it was: random generators, default dtype, threads, working directory, ..."""
    _check_state(trial, trial.answer)
    # A call that sets what happens to be there already shows where something else is there.
    with suppress(CandidateRaised):  # e.g. it writes to its folder: its answer is judged elsewhere
        _check_state(trial, trial.ask(trial.arguments, unusual=True))
    return Tally(queries=trial.queries)


def _check_state(trial: Trial[Any], answer: Answer) -> None:
    for what, how in answer.changed_state.items():
        if how == SEEDED:
            raise kinds.SeedsGenerator(trial.case, what=what)
        if how != DRAWN:
            raise kinds.StateChanged(trial.case, what=what, how=how)
        if not trial.capabilities.draws_random:
            raise kinds.DrawsRandom(trial.case, what=what)


_FLAWS = {"overlap": kinds.OverlapsItself, "lazy": kinds.LazyView, "graph": kinds.HoldsGraph}


def output_has_its_own_memory(trial: Trial[Any]) -> Tally:
    """The output shares no memory with inputs or the next output, and all of it is written."""
    if trial.answer.shared_with:
        raise kinds.SharesMemory(trial.case, names=", ".join(trial.answer.shared_with))
    if trial.answer.flaw:
        raise _FLAWS[trial.answer.flaw](trial.case)
    other = trial.sibling()
    if other.ask(other.arguments).overwrote:
        raise kinds.OverwritesOutput(trial.case)
    if _wrong(trial, trial.answer) is None:
        # Uninitialised memory is filled with NaN this time: what was right must stay right.
        wrong = _wrong(trial, trial.ask(trial.arguments, fill=True))
        if wrong is not None:
            raise kinds.ReadsUninitialised(trial.case, inner=wrong.detail, **wrong.numbers)
    return Tally(queries=trial.queries)


def nothing_grows(trial: Trial[Any]) -> Tally:
    """Memory, threads, child processes and open files do not grow with every call."""
    _ = trial.answer  # whose form is checked; what is made many times is not looked at
    what, how = trial.ask(trial.arguments, grows=True).grown
    if what:
        raise kinds.GrowsWithCalls(trial.case, what=what, how=how)
    return Tally(queries=trial.queries)


def a_call_answers_its_own_inputs(trial: Trial[Any]) -> Tally | None:
    """A call does not return what the call before returned, or should have."""
    other = trial.sibling()
    # In the same memory: a candidate may know its inputs by their address.
    first, second = trial.answer, other.ask(other.arguments, reuse=True)
    wrong = _wrong(other, second)
    if wrong is None:
        return Tally(queries=trial.queries)
    relevant = other.relevant(second)
    if not relevant.any() or (relevant.is_floating_point() and relevant.isnan().all()):
        return None  # zeros or NaN, whatever it is given
    # Picks, small integers, coincide by chance.
    same_as_before = relevant.is_floating_point() and same_bits(trial.relevant(first), relevant)
    if same_as_before or _wrong(trial, second) is None:
        facts: dict[str, Any] = {"first": trial.case.seed, "second": other.case.seed}
        facts |= {"same_bits": same_as_before, "expected": wrong.expected, "got": wrong.got}
        raise kinds.ReturnsPrevious(trial.case, **facts)
    if _wrong(trial, first) is None and _wrong(other, other.ask(other.arguments)) is None:
        raise kinds.IgnoresWrites(trial.case, **wrong.numbers)
    return None  # wrong in another way: the specification check says how


def two_runs_agree(trial: Trial[Any]) -> Tally:
    """Two runs agree bit for bit, unless the candidate declares otherwise."""
    again = trial.ask(trial.arguments)
    if not trial.capabilities.deterministic:
        trial.judge(again)
        return Tally(queries=trial.queries)
    if not same_bits(trial.relevant(trial.answer), trial.relevant(again)):
        place, first, second = _first_difference(trial, again)
        raise kinds.NotRepeatable(trial.case, place=place, expected=first, got=second)
    return Tally(queries=trial.queries)


def rows_do_not_interact(trial: Trial[Any]) -> Tally | None:
    """Each row alone gives what it gives in the batch, bit for bit unless declared otherwise."""
    rows = len(trial.arguments[trial.batched[0]])
    if rows < 2 or not trial.allows("B", 1) or _wrong(trial, trial.answer) is not None:
        return None  # what is wrong in the batch is the business of another check
    batch = trial.relevant(trial.answer)
    alone = [trial.relevant(trial.ask(trial.rows([row]))) for row in range(rows)]
    whole = _side_by_side(alone)
    wrong = _wrong(trial, Answer(whole))
    if wrong is not None:
        raise kinds.RowsInteract(trial.case, **wrong.numbers)
    check_bits(trial, whole, batch)
    return Tally(queries=trial.queries)


def check_bits(trial: Trial[Any], alone: torch.Tensor, batch: torch.Tensor) -> None:
    """Compare the bits of rows run alone and in the batch, unless the candidate declares otherwise.

    A row alone lies in memory in another way than in the batch, which may change how a product is rounded;
    not so where tensors are contiguous.
    """
    same = trial.case.layout in CONTIGUOUS
    if same and trial.capabilities.batch_invariant and not same_bits(alone, batch):
        raise kinds.NotBatchInvariant(trial.case)


def _first_difference(
    trial: Trial[Any], again: Answer
) -> tuple[Place | None, list[float] | None, list[float] | None]:
    """Return where two answers to the same arguments differ first, and what each has there."""
    out, out_again = main_output(trial.answer), main_output(again)
    assert isinstance(out, torch.Tensor)
    assert isinstance(out_again, torch.Tensor)
    if out.shape != out_again.shape or out.dim() < 3:  # picks of any width; calls, which have no place
        return None, None, None
    for row, column in (out != out_again).flatten(2).any(-1).nonzero().tolist():
        place = trial.place(row, column)
        if place is not None:
            first, second = out[row, column], out_again[row, column]
            while first.dim() > 1:
                lead = int((first != second).flatten(1).any(-1).nonzero()[0])
                first, second = first[lead], second[lead]
            return place, first.tolist(), second.tolist()
    return None, None, None


def _side_by_side(rows: list[torch.Tensor]) -> torch.Tensor:
    """Join rows; lists of picks of other lengths are filled up with -1."""
    width = max(row.shape[-1] for row in rows)
    if all(row.shape[-1] == width for row in rows):
        return torch.cat(rows)
    return torch.cat([torch.nn.functional.pad(row, (0, width - row.shape[-1]), value=-1) for row in rows])


def _wrong(trial: Trial[Any], answer: Answer) -> Failure | None:
    try:
        trial.judge(answer)
    except Failure as failure:
        return failure
    return None
