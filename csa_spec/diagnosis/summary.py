"""Where a candidate goes wrong and what is wrong with what it depends on, in one to three sentences."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch

from csa_spec.diagnosis.probes import sight_of_a_stream, sight_of_scores
from csa_spec.engine import failures as kinds
from csa_spec.engine.comparison import error_ratios
from csa_spec.engine.dependence import Dependence
from csa_spec.engine.expected import ExpectedDocument
from csa_spec.engine.failures import Failure, Place, query_name
from csa_spec.engine.trial import Trial
from csa_spec.spec import SPEC, Geometry, answer_query
from csa_spec.stages.attend import AttendTrial
from csa_spec.stages.cache import CacheTrial
from csa_spec.stages.compressor import CompressorTrial
from csa_spec.stages.index_scores import IndexScoresTrial
from csa_spec.stages.layer_trial import LayerTrial

_SHOWN = 3
"""Queries that a sentence names."""
_MOST_ENTRIES = 6
"""Where there are no more entries, every set of them is tried as what a query attended to."""

_PROBED = 64
"""Keys or tokens up to which the checks of attend and compressor probe what an output depends on."""
_RIGHT_SET = "the set is right, the numbers are wrong"

_SAYS = {
    kinds.SeesTooMuch: "It sees too much",
    kinds.SeesTooLittle: "It sees too little",
    kinds.PickNotVisible: "It sees too much",
    kinds.PickOutOfRange: "It sees what is not there",
    kinds.PickedTwice: "It counts an entry twice",
    kinds.WrongCount: "It sees too few or too many entries",
    kinds.BetterLeftOut: "It sees as many entries as it must, but the wrong ones",
    kinds.TieBrokenOtherwise: "It sees entries that a promise excludes",
    kinds.NotZero: "It sees too much",
    kinds.AnswersAnother: "It sees what belongs to another",
    kinds.OrderMatters: "It sees the right set, but its order counts",
    kinds.RowsInteract: "A row depends on the other rows",
    kinds.FutureLeak: "It sees too much",
    kinds.PrefixDiffers: "It depends on how many tokens follow",
    kinds.ReturnsPrevious: "It depends on the call before",
    kinds.StreamDiffers: "It does not answer the tokens that the row holds",
    kinds.ReturnsZeros: "It depends on nothing",
    kinds.NotFinite: "The numbers are not finite",
    kinds.StrayGradient: "A gradient reaches what must get none",
    kinds.NoGradient: "A gradient does not reach what must get one",
    kinds.WeightIgnored: "It does not depend on a weight that it must depend on",
}
"""What is wrong with what an output depends on, by the kind of failure; others say it all themselves."""


def summary(trial: Trial, failure: Failure) -> str:
    """Say where a candidate goes wrong, and whether it sees too much, too little, or the right set.

    Parameters
    ----------
    trial
        Of the candidate, on the failure's case.
    failure
        What it did there. A layer's is given its matrices of dependence if it has none yet.
    """
    sentences = [f"The first stage that differs is {failure.findings[0]}"] if failure.findings else []
    if isinstance(trial, LayerTrial) and failure.place is not None:
        document = _document(trial, failure)
        if document is not None:
            return " ".join(f"{one}." for one in [*sentences, *_layer(trial, failure, document)][:3])
    if isinstance(failure, kinds.WrongNumbers):
        sentences += [f"It differs: {failure.detail}", *_numbers(trial, failure)]
    else:
        says = next((text for kind, text in _SAYS.items() if isinstance(failure, kind)), "")
        sentences.append(f"{says}: {failure.detail}" if says else str(failure)[0].upper() + str(failure)[1:])
    if isinstance(trial, CacheTrial) and failure.place is not None:
        sentences.append(_probed(sight_of_a_stream, trial, failure.place))
    sentences = [one for one in sentences if one]
    return " ".join(f"{one}." for one in sentences[:3])


def _numbers(trial: Trial, failure: Failure) -> list[str]:
    """Say what wrong numbers of a stage depend on; that it is the right set is what its check found out."""
    factor = _factor(failure)
    times = "" if factor is None else f", {factor:.4g} times what they must be"
    if isinstance(trial, IndexScoresTrial) and failure.place is not None:
        return [_probed(sight_of_scores, trial, failure.place) + times]
    if isinstance(trial, AttendTrial) and trial.case.keys <= _PROBED:
        return [f"The query depends on the keys that its indices name and on no other: {_RIGHT_SET}{times}"]
    if isinstance(trial, CompressorTrial) and trial.case.tokens <= _PROBED:
        return [f"The entry depends on the tokens that it pools and on no other: {_RIGHT_SET}{times}"]
    return [f"The numbers are wrong{times}; what they depend on was not probed"]


def _probed(probe: Callable[[Any, Place], str], trial: Trial, place: Place) -> str:
    try:
        return probe(trial, place)
    except Failure as again:  # it does not answer every time
        return str(again)


def _factor(failure: Failure) -> float | None:
    """Return by which factor all numbers are off, if they are by one."""
    expected, got = torch.tensor(failure.expected or []), torch.tensor(failure.got or [])
    if len(expected) < 2 or len(expected) != len(got) or (expected == 0).any():
        return None
    ratios = got / expected
    factor = float(ratios.mean())
    return factor if factor and bool(((ratios - factor).abs() < 1e-3 * abs(factor)).all()) else None


def _document(trial: LayerTrial, failure: Failure) -> ExpectedDocument | None:
    """Return the document that a failure is about."""
    assert failure.place is not None
    for document in trial.expected.documents:
        place = document.trace.context.document
        if place.row == failure.place.row and 0 <= failure.place.column - place.begin < place.length:
            return document
    return None


def _layer(trial: LayerTrial, failure: Failure, document: ExpectedDocument) -> list[str]:
    try:
        output = trial.output.out
        if failure.dependence is None:
            failure.dependence = trial.dependence(document)
    except Failure as again:  # it does not answer every time
        return [str(again)]
    place = document.trace.context.document
    got = output[place.row, place.columns]
    ratios = error_ratios(got, document.trace.out, document.budgets.out).amax(1)
    wrong = [t for t, ratio in enumerate(ratios.tolist()) if ratio > 1 and not document.choices[t].ambiguous]
    if not wrong:
        return [f"{failure.title[0].upper()}{failure.title[1:]}: {failure.detail}"]
    told = failure.place.t if failure.place is not None and failure.place.t in wrong else wrong[0]
    right = place.length - len(wrong)
    where = f"{_queries(wrong)} of row {place.row} {'is' if len(wrong) == 1 else 'are'} wrong"
    if right:
        where += ", the other is right" if right == 1 else f", the other {right} are right"
    other = _other_selection(trial, document, told, got)
    query = document.trace.queries[told]
    if trial.expected.geometry.kind != "sliding":
        where += f"; query {query_name(told)} must attend to {_entries(sorted(query.selection))}"
        where += f" (of {len(document.trace.context.entries)}) and to {_tokens(query.window)} in its window"
    if other is not None:
        where += f"; its output is that of attending to {_entries(other)}"
    sight = _sight(failure.dependence, trial.case.geometry, document)
    if sight:
        return [where, *sight]
    if failure.dependence is None:
        return [where, "The document is too long to probe what each query depends on"]
    if other is not None:
        return [where, "Every query depends on tokens that it may see, but it selects the wrong entries"]
    return [where, f"Every query depends on the tokens that it must and on no other: {_RIGHT_SET}"]


def _other_selection(
    trial: LayerTrial, document: ExpectedDocument, t: int, got: torch.Tensor
) -> list[int] | None:
    """Return the set of entries with which the specification gives what the candidate gave, if there is one alone."""
    context, count = document.trace.context, len(document.trace.context.entries)
    if not 0 < count <= _MOST_ENTRIES:
        return None
    expected, found = trial.expected, []
    right = sorted(document.trace.queries[t].selection)
    for size in range(count + 1):
        for chosen in itertools.combinations(range(count), size):
            if list(chosen) == right:
                continue
            answer = answer_query(t, context, expected.weights, expected.geometry, selection=chosen)
            if float(error_ratios(got[t], answer.out, 2 * document.budgets.out[t]).max()) <= 1:
                found.append(list(chosen))
    return found[0] if len(found) == 1 else None


def _sight(dependence: Dependence | None, geometry: Geometry, document: ExpectedDocument) -> list[str]:
    """Say what depends on what it must not, or does not on what it must."""
    if dependence is None:
        return []
    sentences = []
    for pairs, says, verb in (
        (dependence.too_much, "It sees too much", "depends on"),
        (dependence.too_little, "It sees too little", "does not depend on"),
    ):
        by_query: dict[int, list[int]] = {}
        for t, token in pairs:
            by_query.setdefault(t, []).append(token)
        told = [
            f"query {query_name(t)} {verb} {_tokens(tokens)}{_of_entries(tokens, t, geometry, document)}"
            for t, tokens in list(by_query.items())[:_SHOWN]
        ]
        if told:
            more = f", and so for {len(by_query) - _SHOWN} more" if len(by_query) > _SHOWN else ""
            sentences.append(f"{says}: {', '.join(told)}{more}")
    return sentences


def _of_entries(tokens: list[int], t: int, geometry: Geometry, document: ExpectedDocument) -> str:
    """Name the entries that tokens are part of, unless the query sees the tokens in its window."""
    outside = [token for token in tokens if token not in document.trace.queries[t].window]
    found = [
        s
        for s in range(len(document.trace.context.entries))
        if any(
            one.token in outside for one in SPEC.pooled_tokens(s, geometry.compress_ratio, geometry.overlap)
        )
    ]
    return f" (of {_entries(found)})" if found else ""


def _queries(ts: list[int]) -> str:
    names = ", ".join(query_name(t) for t in ts[:_SHOWN]) + (", ..." if len(ts) > _SHOWN else "")
    return ("Query " if len(ts) == 1 else f"{len(ts)} queries, ") + names + ("" if len(ts) == 1 else ",")


def _entries(entries: list[int]) -> str:
    return _named("entry", "entries", entries)


def _tokens(tokens: list[int]) -> str:
    return _named("token", "tokens", tokens)


def _named(one: str, many: str, numbers: list[int]) -> str:
    """Return e.g. ``entry 0``, ``tokens 2 to 5`` or ``no entry``."""
    if not numbers:
        return f"no {one}"
    if len(numbers) == 1:
        return f"{one} {numbers[0]}"
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{many} {numbers[0]} to {numbers[-1]}"
    return f"{many} {', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"
