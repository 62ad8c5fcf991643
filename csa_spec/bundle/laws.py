"""The body of a script, by the law that it shows: calls, and assertions."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable

import torch

from csa_spec.bundle.comparing import agree, form, right, two_runs, valid_picks, within
from csa_spec.bundle.literals import WIDTH, Literals, near, number, rounded_up, shorten
from csa_spec.bundle.streams import answers_of, wrong_call
from csa_spec.bundle.subjects import Subject, subject_of
from csa_spec.candidates.transformers import WEIGHT_NAMES
from csa_spec.engine.failures import (
    Failure,
    NoGradient,
    NotBatchInvariant,
    OverwritesOutput,
    Place,
    ReadsUninitialised,
    SharesMemory,
    StateChanged,
    StrayGradient,
    WeightIgnored,
    WrongGradient,
    WrongSelection,
)
from csa_spec.engine.gradients import cotangent_of
from csa_spec.engine.trial import Trial
from csa_spec.plug.arrays import named_tensors, same_bits
from csa_spec.stages.attend.case import IndexLists
from csa_spec.stages.attend.trial import AttendTrial
from csa_spec.stages.cache.trial import CacheTrial
from csa_spec.stages.compressor.trial import CompressorTrial
from csa_spec.stages.layer.checks import cut_column
from csa_spec.stages.layer.inputs import fresh_tokens, fresh_weight
from csa_spec.stages.layer.trial import LayerTrial
from csa_spec.stages.select.trial import SelectTrial

Body = Callable[[Trial, Failure, Subject, Literals], "list[str] | None"]


def _specification(trial: Trial, failure: Failure, subject: Subject, literals: Literals) -> list[str] | None:
    if isinstance(failure, WrongSelection):
        return _selection(trial, failure, subject)
    if isinstance(trial, CacheTrial) and subject.schedule is not None:
        return _schedule(trial, failure, subject, literals)
    return [f"got = {subject.call()}", *right(trial, failure, literals)]


def _selection(trial: Trial, failure: Failure, subject: Subject) -> list[str] | None:
    """Hold the selection that a layer shows against those that its scores allow."""
    place = failure.place
    if place is None or not subject.plain_call:
        return None
    assert isinstance(trial, LayerTrial)
    for document in trial.expected.documents:
        own = document.trace.context.document
        if own.row == place.row and own.begin <= place.column < own.begin + own.length:
            choice = document.choices[place.t]
            if choice.count <= _FEW:
                break
    else:
        return None
    valid = sorted(map(sorted, choice.selections()))
    return [
        f"shown = {subject.plain_call}.selection[{place.row}, {place.column}].tolist()",
        "picks = sorted(entry for entry in shown if entry != -1)",
        f"valid = {valid}",
        'print(f"valid {valid}, got {picks}")',
        'assert picks in valid, f"the selection {picks} is none of {valid}"',
    ]


_FEW = 8


def _schedule(trial: CacheTrial, failure: Failure, subject: Subject, literals: Literals) -> list[str]:
    """Call by call up to the one that answers wrongly, whose answer is held against the specification."""
    assert subject.schedule is not None
    wrong = wrong_call(failure)
    step = next(step for step in trial.case.steps[::-1] if wrong in (None, step.call))
    expected, allowed, several = answers_of(trial, step, failure.place)
    place, at = failure.place, None
    if place is not None:
        column = place.t - len(step.rows[place.row]) + step.tokens
        at = Place(place.row, column, place.t)
    return [
        *subject.schedule.program(trial.case, step.call, to_the_end=wrong is None),
        *form(expected.shape[-3:], (trial.arguments["weights"].wkv.dtype,)),
        "# What one call with all tokens that each row then holds answers at the last of them:",
        *within(expected, allowed, several, at, literals),
    ]


def _order(trial: Trial, failure: Failure, subject: Subject, literals: Literals) -> list[str] | None:
    assert isinstance(trial, AttendTrial)
    declared = trial.capabilities
    plain = (
        ("attend", IndexLists.LEADING) in declared.lacks
        or "n" in {*declared.limits, *declared.multiples}
        or declared.static_shapes
    )
    other = "indices.flip(-1)" if plain else "torch.nn.functional.pad(indices.flip(-1), (1, 1), value=-1)"
    return [f"got = {subject.call(indices=other)}", *right(trial, failure, literals)]


def _repeat(trial: Trial, failure: Failure, subject: Subject, literals: Literals) -> list[str] | None:
    if not trial.capabilities.deterministic:
        return None
    same = "torch.equal(first, second)"
    if isinstance(trial, LayerTrial) and bool((trial.inputs.documents < 0).any()):
        same = f"torch.equal(first[{_real(subject)}], second[{_real(subject)}])"
    elif not isinstance(trial, SelectTrial):
        same = "torch.equal(first.nan_to_num(), second.nan_to_num())"
    return [
        f"first = {subject.call()}.clone()",
        f"second = {subject.call()}",
        'print("one run  ", first.flatten()[:8].tolist())',
        'print("the other", second.flatten()[:8].tolist())',
        f'assert {same}, "two runs on the same input differ"',
    ]


def _real(subject: Subject) -> str:
    return "attention_mask.bool()" if "attention_mask" in subject.names else "documents != -1"


def _inputs(trial: Trial, failure: Failure, subject: Subject, literals: Literals) -> list[str] | None:
    if trial.capabilities.arrays not in ("torch", "numpy"):
        return None
    return [
        *_named(trial, subject),
        "before = {name: tensor.nan_to_num().clone() for name, tensor in inputs.items()}",
        subject.call(),
        "changed = [name for name, tensor in inputs.items() if not torch.equal(tensor.nan_to_num(), before[name])]",
        'print("changed by the call:", changed)',
        'assert not changed, f"the call changes its inputs: {changed}"',
    ]


def _named(trial: Trial, subject: Subject) -> list[str]:
    """Return the lines that gather the tensors of a call by name."""
    names = [name for name in subject.names if name in subject.data and name != "weights"]
    if (
        trial.candidate.name != "transformers"
        and "weights" in subject.names
        and trial.capabilities.arrays == "torch"
    ):
        names += named_tensors({"weights": trial.arguments["weights"]})
    entries = ", ".join(f'"{name}": {name}' for name in names)
    return textwrap.wrap(f"inputs = {{{entries}}}", WIDTH, subsequent_indent="    ", break_on_hyphens=False)


def _memory(trial: Trial, failure: Failure, subject: Subject, literals: Literals) -> list[str] | None:
    if isinstance(failure, ReadsUninitialised):
        filled = 'torch.set_deterministic_debug_mode("warn")  # fills what torch.empty returns with NaN'
        return [filled, f"got = {subject.call()}", *right(trial, failure, literals)]
    if trial.capabilities.arrays != "torch" or literals.device != "cpu":
        return None
    if isinstance(failure, SharesMemory):
        return [
            *_named(trial, subject),
            f"memory = {subject.call()}.untyped_storage().data_ptr()",
            "shared = [name for name, one in inputs.items() if one.untyped_storage().data_ptr() == memory]",
            'print("the output lies in the memory of:", shared)',
            'assert not shared, f"the output lies in the memory of {shared}"',
        ]
    other = _other_data(trial, subject, literals)
    if not isinstance(failure, OverwritesOutput) or other is None:
        return None
    return [
        f"first = {subject.call()}",
        "kept = first.clone()",
        *other,
        subject.call(),
        'print(f"was {kept.flatten()[:4].tolist()}, is {first.flatten()[:4].tolist()}")',
        'assert torch.equal(first.nan_to_num(), kept.nan_to_num()), "a call changes what the call before returned"',
    ]


def _own_inputs(trial: Trial, failure: Failure, subject: Subject, literals: Literals) -> list[str] | None:
    other = _other_data(trial, subject, literals)
    if other is None:
        return None
    return [subject.call(), *other, f"got = {subject.call()}", *right(trial.sibling(), failure, literals)]


def _other_data(trial: Trial, subject: Subject, literals: Literals) -> list[str] | None:
    """Return the lines that make the tensors of another call, in the same variables."""
    if trial.candidate.name == "transformers":  # its weights lie in the model
        return None
    literals.prefix = "other "
    other = subject_of(trial.sibling(), literals)
    literals.prefix = ""
    if other is None:
        return None
    mine, changed = named_tensors(trial.arguments), named_tensors(trial.sibling().arguments)
    same = {name for name, tensor in mine.items() if same_bits(tensor, changed[name])}
    lines = [line for name, lines in other.data.items() if name not in same for line in lines]
    return ["# Other inputs:", *lines] if lines else None


_STATE = {
    "torch's random generator": "torch.get_rng_state().tolist()",
    "Python's random generator": "random.getstate()",
    "default dtype": "torch.get_default_dtype()",
    "number of threads": "torch.get_num_threads()",
    "grad mode": "torch.is_grad_enabled()",
    "float32 matmul precision": "torch.get_float32_matmul_precision()",
    "working directory": "os.getcwd()",
}


def _state(trial: Trial, failure: Failure, subject: Subject, literals: Literals) -> list[str] | None:
    assert isinstance(failure, StateChanged)
    if failure.what not in _STATE or trial.candidate.name == "transformers":
        return None
    long = "random" in failure.what
    return [
        *["torch.set_grad_enabled(False)  # as at inference"] * (failure.what == "grad mode"),
        f"before = {_STATE[failure.what]}",
        subject.call(),
        f"after = {_STATE[failure.what]}",
        'print("changed:", before != after)' if long else 'print(f"before {before}, after {after}")',
        f'assert before == after, "the call changes this: {failure.what}"',
    ]


def _weights(trial: Trial, failure: Failure, subject: Subject, literals: Literals) -> list[str] | None:
    assert isinstance(trial, LayerTrial)
    assert isinstance(failure, WeightIgnored)
    place, expected = failure.place, failure.expected
    if place is None or expected is None:
        return None
    name, at = failure.weight, f"[{place.row}, {place.column}].double()"
    drawn = fresh_weight(trial.case, trial.inputs, name).weights.named()[name]
    if trial.candidate.name == "transformers":
        parameter = next(mine for mine, official in WEIGHT_NAMES.items() if official == name)
        change = [
            "with torch.no_grad():",
            "    for name, parameter in attention.named_parameters():",
            f'        if name.replace("indexer.scorer.", "indexer.") == "{parameter}":',
            f"            parameter.copy_({literals.of('another', drawn, '            ')})",
        ]
    elif subject.own:
        other = f'weights.named() | {{"{name}": {literals.given("another", drawn)}}}'
        change = [f"weights = LayerWeights.from_named({other})"]
    else:
        change = [f"weights.{name} = {literals.given('another', drawn)}"]
    document = next(one for one in trial.expected.documents if one.trace.context.document.row == place.row
                    and place.column - one.trace.context.document.begin == place.t)  # fmt: skip
    _, allowed = shorten(torch.zeros(len(expected)), document.budgets.out[place.t])
    return [
        f"before = {subject.call()}{at}",
        f"# Another {name}:",
        *change,
        f"after = {subject.call()}{at}",
        f"allowed = {literals.of('allowed', allowed)}  # what rounding may change",
        'print(f"before {before.tolist()}\\nafter  {after.tolist()}")',
        f'print("right after:", {[float(f"{one:.4g}") for one in expected]})',
        f'assert ((after - before).abs() > allowed).any(), "{name} has no effect where it must have one"',
    ]


def _gradients(trial: Trial, failure: Failure, subject: Subject, literals: Literals) -> list[str] | None:
    """Show one element of one gradient: the one that is wrong the most."""
    if not isinstance(failure, WrongGradient) or trial.candidate.name == "transformers":
        return None
    of, cotangent = failure.of, cotangent_of(trial)
    assert cotangent is not None
    lines = [f"{of}.requires_grad_()", f"out = {subject.call()}"]
    if isinstance(failure, NoGradient):
        return [
            *lines,
            f"found = out.requires_grad and torch.autograd.grad(out.sum(), {of}, allow_unused=True)[0] is not None",
            f'print("does a path lead from the output to {of}:", found)',
            f'assert found, "autograd finds no path from the output to {of}"',
        ]
    at = re.search(r" at \[([\d, ]*)\] is ", failure.detail)
    if at is None or failure.expected is None or failure.got is None or failure.over_budget is None:
        return None
    (want,), (got,) = failure.expected, failure.got
    stray, off = isinstance(failure, StrayGradient), abs(got - want)
    if not stray and not (math.isfinite(off) and math.isfinite(failure.over_budget)):
        return None  # by how much it may be off is not known
    allowed = 0.0 if stray else rounded_up(off / failure.over_budget)
    return [
        *lines,
        f"cotangent = {literals.of('cotangent', cotangent)}",
        "(out * cotangent).sum().backward()",
        *[f"assert {of}.grad is not None"] * (not stray),
        f"got = {of}.grad[{at[1]}].item()" + f" if {of}.grad is not None else 0" * stray,
        f'print(f"the gradient of {of} at [{at[1]}]: expected {number(near(want, allowed))}, got {{got}}")',
        f'assert abs(got - {number(near(want, allowed))}) <= {number(allowed)}, "the gradient of {of} is wrong"',
    ]


def _rows(trial: Trial, failure: Failure, subject: Subject, literals: Literals) -> list[str] | None:
    batch = len(trial.arguments[trial.batched[0]])
    alone = [
        "# Each row alone; in the batch all is right."
        if not isinstance(trial, LayerTrial)
        else "# Each row alone:",
        "alone = [",
        f"    {subject.call(**subject.each('{}[row : row + 1]'))}",
        f"    for row in range({batch})",
        "]",
    ]
    if isinstance(trial, SelectTrial):
        if isinstance(failure, NotBatchInvariant):
            return None
        return [*alone, "got = [one[0] for one in alone]", *valid_picks(trial, literals)]
    if isinstance(failure, NotBatchInvariant):
        part = "" if not isinstance(trial, LayerTrial) else f"[{_real(subject)}]"
        return [
            f"first = {subject.call()}",
            *alone,
            "second = torch.cat(alone)",
            'print("largest difference", (first - second).abs().max().item())',
            f'assert torch.equal(first{part}, second{part}), "a row alone has other bits than in the batch"',
        ]
    if isinstance(trial, LayerTrial):
        return [*alone, *agree(trial, failure, literals, subject.call(), "torch.cat(alone)", "rows alone")]
    return [*alone, "got = torch.cat(alone)", *right(trial, failure, literals)]


def _future(trial: Trial, failure: Failure, subject: Subject, literals: Literals) -> list[str] | None:
    assert isinstance(trial, LayerTrial)
    cut = cut_column(trial.case)
    later = fresh_tokens(trial.case, trial.inputs, "future")[:, cut:]
    changed = ["changed = hidden.clone()", f"changed[:, {cut}:] = {literals.of('later', later)}"]
    return changed + agree(
        trial,
        failure,
        literals,
        subject.call(),
        subject.call(hidden="changed"),
        f"other tokens from column {cut} on",
        cut,
    )


def _prefix(trial: Trial, failure: Failure, subject: Subject, literals: Literals) -> list[str] | None:
    if isinstance(trial, LayerTrial):
        cut = cut_column(trial.case)
        if cut is None or trial.capabilities.multiples.get("S", 1) > 1:
            return None
        starts = [f"{name}_start = {name}[:, :{cut}].contiguous()" for name in subject.batched]
        shorter = subject.call(**subject.each("{}_start"))
        return starts + agree(
            trial, failure, literals, subject.call(), shorter, f"only the first {cut} columns", cut
        )
    assert isinstance(trial, CompressorTrial)
    keep = trial.case.seed % trial.case.tokens
    entries = trial.case.geometry.entry_count(keep)
    return two_runs(
        failure, literals, subject.call(), subject.call(hidden=f"hidden[:, :{keep}].contiguous()"),
        2 * trial.expected[1][:, :entries], trial.arguments["hidden"].dtype, f"only the first {keep} tokens",
        f"[:, :{entries}]", elementwise=True,
    )  # fmt: skip


def _batch_order(trial: Trial, failure: Failure, subject: Subject, literals: Literals) -> list[str] | None:
    assert isinstance(trial, LayerTrial)
    other = f"{subject.call(**subject.each('{}.roll(-1, 0)'))}.roll(1, 0)"
    return agree(trial, failure, literals, subject.call(), other, "the first row last")


BODIES: dict[str, Body] = {
    "specification": _specification,
    "order": _order,
    "repeat": _repeat,
    "inputs": _inputs,
    "rows": _rows,
    "future": _future,
    "prefix": _prefix,
    "batch-order": _batch_order,
    "memory": _memory,
    "own-inputs": _own_inputs,
    "state": _state,
    "weights": _weights,
    "gradients": _gradients,
}
"""By the name of the check; others are laws that a few lines cannot show."""
