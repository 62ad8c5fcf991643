"""The script of a failure: it makes the inputs, calls the implementation, and asserts, all without this package."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from csa_spec.bundle.literals import WIDTH, Literals, number, shorten
from csa_spec.bundle.subjects import Subject, subject_of
from csa_spec.harness.candidate import Candidate
from csa_spec.harness.expected import ALTERNATIVES
from csa_spec.harness.failures import (
    CandidateDied,
    CandidateHung,
    CandidateRaised,
    Failure,
    NotBatchInvariant,
    WrongSelection,
    WrongShape,
)
from csa_spec.harness.inputs import fresh_tokens
from csa_spec.harness.trial import Trial
from csa_spec.spec import SPEC
from csa_spec.stages import stage_of
from csa_spec.stages.attend import AttendTrial
from csa_spec.stages.attend_cases import IndexLists
from csa_spec.stages.compressor import CompressorTrial
from csa_spec.stages.layer import cut_column
from csa_spec.stages.layer_trial import LayerTrial
from csa_spec.stages.numbers import NumbersTrial
from csa_spec.stages.select import SelectTrial

_MOST_NUMBERS, _MOST_LINES = 4000, 200
TENSORS_FILE = "tensors.safetensors"


def make_script(
    failure: Failure, candidate: Candidate, check: str, environment: Mapping[str, str]
) -> tuple[str, dict[str, Tensor]] | None:
    """Return the text of ``repro.py`` and the tensors that it reads from a file; None where there can be no script."""
    trial = stage_of(failure.case).trial(candidate, failure.case)
    for in_file in (False, True):
        literals = Literals(in_file)
        text = _script(trial, failure, check, environment, literals)
        if text is None:
            return None
        if literals.count <= _MOST_NUMBERS and text.count("\n") <= _MOST_LINES:
            break
    assert text is not None
    return text, literals.file


def _script(
    trial: Trial, failure: Failure, check: str, environment: Mapping[str, str], literals: Literals
) -> str | None:
    subject = subject_of(trial, literals)
    if subject is None or isinstance(failure, WrongSelection):
        return None
    make = _BODIES.get(check)
    body = None if make is None else make(trial, failure, subject, literals)
    if body is None:
        return None
    code = "\n".join([*subject.setup, *body])
    imports = subject.imports
    if literals.file:
        imports = [*imports, "from pathlib import Path", "from safetensors.torch import load_file"]
        code = f'tensors = load_file(Path(__file__).with_name("{TENSORS_FILE}"))\n{code}'
    return f"{_docstring(trial, failure, environment)}\n\n{_sorted(imports)}\n\n{code}\n"


def _sorted(imports: list[str]) -> str:
    standard = [line for line in imports if line.split()[1] in ("types", "pathlib")]
    others = [line for line in imports if line not in standard] + ["import torch"]

    def key(line: str) -> tuple[bool, str]:
        return (line.startswith("from"), line)

    return "\n\n".join("\n".join(sorted(group, key=key)) for group in (standard, others) if group)


def _docstring(trial: Trial, failure: Failure, environment: Mapping[str, str]) -> str:
    versions = ", ".join(
        f"{name} {version}" for name, version in environment.items() if name not in ("csa-spec", "python", "platform")
    )
    ends = "ends with an AssertionError"
    if isinstance(failure, CandidateRaised):
        ends = f"ends with {type(failure.error).__name__}"
    elif isinstance(failure, CandidateHung):
        ends = "does not end"
    elif isinstance(failure, CandidateDied):
        ends = "does not come to its end"
    where = ""
    if trial.candidate.name != "transformers":
        where = " where the function can be imported (PYTHONPATH=. python repro.py)"
    paragraphs = [
        f"{failure.title[0].upper()}{failure.title[1:]}: {failure.detail}",
        f"Run it with `python repro.py`{where}. It {ends} as long as the bug is there."
        + (f" Seen with {versions}." if versions else ""),
    ]
    text = "\n\n".join(textwrap.fill(" ".join(one.split()), WIDTH, break_on_hyphens=False) for one in paragraphs)
    text = text.replace("\\", "\\\\").replace('"""', "'''")
    return f'"""{text}\n"""'


Body = Callable[[Trial, Failure, Subject, Literals], "list[str] | None"]


def _specification(trial: Trial, failure: Failure, subject: Subject, literals: Literals) -> list[str] | None:
    return [f"got = {subject.call()}", *_right(trial, failure, literals)]


def _right(trial: Trial, failure: Failure, literals: Literals) -> list[str]:
    """Return the lines that hold ``got`` against the specification."""
    if isinstance(trial, SelectTrial):
        return _valid_picks(trial, literals)
    lines = _form(trial, failure)
    if isinstance(trial, LayerTrial):
        expected, allowed, several = _layer_numbers(trial, failure)
    else:
        assert isinstance(trial, NumbersTrial)
        (expected, allowed), several = trial.expected, False
    expected, allowed = shorten(expected, allowed)
    comment = "  # by valid selection, as scores tie" if several else ""
    lines += [f"expected = {literals.of('expected', expected)}{comment}"]
    several_right = "; inf where ties leave several answers, or none is asked" if allowed.isinf().any() else ""
    lines += [f"# The allowed error{several_right}:", f"allowed = {literals.of('allowed', allowed)}"]
    lines += ["wrong = ~((got - expected).abs() <= allowed) & (got != expected)"]
    if several:
        lines += ["best = wrong.any(-1).long().argmin(0)  # by query, the selection that explains the output"]
        lines += [
            "expected, allowed, wrong = (",
            "    x.gather(0, best[None, ..., None].expand_as(x[:1]))[0] for x in (expected, allowed, wrong)",
            ")",
        ]
    at = _place(trial, failure, expected[0] if several else expected)
    return [
        *lines,
        f'print(f"expected {{expected{at}.tolist()}}\\ngot      {{got{at}.tolist()}}")',
        "shown = [values[wrong][:4].tolist() for values in (expected, got, allowed)]",
        'assert not wrong.any(), "expected {}, got {}, allowed error {}".format(*shown)',
    ]


def _form(trial: Trial, failure: Failure) -> list[str]:
    shape, dtypes, _ = trial.form(trial.arguments)
    lines = []
    if isinstance(failure, WrongShape):
        lines.append('assert isinstance(got, torch.Tensor), f"got {type(got).__name__}"')
    names = ", ".join(map(str, dtypes))
    test = f"got.dtype in ({names})" if len(dtypes) > 1 else f"got.dtype == {names}"
    size = tuple(shape)
    return [*lines, f'assert got.shape == {size} and {test}, f"got {{got.dtype}} of shape {{tuple(got.shape)}}"',
            "got = got.detach().double()"]  # fmt: skip


def _place(trial: Trial, failure: Failure, expected: Tensor) -> str:
    """Return an index of what is shown: the item that the failure is about, or everything where that is little."""
    place = failure.place
    if place is None or expected.numel() <= 12:
        return "" if expected.numel() <= 64 else ".flatten()[:8]"
    head = "" if place.head is None else f", {place.head}"
    return f"[{place.row}, {place.column}{head}]"


def _layer_numbers(trial: LayerTrial, failure: Failure) -> tuple[Tensor, Tensor, bool]:
    """Return outputs and allowed errors, ``[B, S, hidden]``, with a dimension for valid selections before, if needed.

    Only the query that the failure is about needs its several selections; others that have some may have any error,
    and so may padding.
    """
    place = failure.place
    at = None if place is None else (place.row, place.column)
    out = trial.expected.out.clone()
    allowed = torch.full_like(out, torch.inf)
    for document in trial.expected.documents:
        own = document.trace.context.document
        out[own.row, own.columns] = document.trace.out
        allowed[own.row, own.columns] = document.budgets.out
        for t, choice in enumerate(document.choices):
            if choice.ambiguous:
                allowed[own.row, own.begin + t] = torch.inf
    for document in trial.expected.documents:
        own = document.trace.context.document
        for t, choice in enumerate(document.choices):
            if not choice.ambiguous or choice.count > ALTERNATIVES or at != (own.row, own.begin + t):
                continue
            others = [trial.expected.reselect(document, {t: selection}) for selection in choice.selections()]
            out, allowed = (x.expand(len(others), *x.shape).clone() for x in (out, allowed))
            out[:, own.row, own.begin + t] = torch.stack([other.trace.queries[t].out for other in others])
            allowed[:, own.row, own.begin + t] = torch.stack([other.budgets.out[t] for other in others])
            return out, allowed, True
    return out, allowed, False


def _valid_picks(trial: SelectTrial, literals: Literals) -> list[str]:
    """Return the rules of a selection in a few lines, since any choice among equal scores is right."""
    case, must = trial.case, []
    for b in range(case.rows):
        for t in range(case.queries):
            visible = trial.visible(b, t)
            scores = [x if x == x else -torch.inf for x in trial.arguments["scores"][b, t, :visible].tolist()]
            picks = sorted(SPEC.select(range(visible), scores, case.top_k))
            must.append(picks + [-1] * (case.top_k - len(picks)))
    listed = torch.tensor(must, dtype=torch.long).view(case.rows, case.queries, case.top_k)
    tolerance, lowest = trial.capabilities.tie_tolerance, trial.capabilities.lowest_index_first
    slack = f" + {tolerance!r} * max(abs(least), abs(most))" if tolerance else ""
    lines = [
        f"right = {literals.of('right', listed)}  # among equal scores any choice is",
        f"for row, t in [(row, t) for row in range({case.rows}) for t in range({case.queries})]:",
        f"    visible = min({case.entries}, (int(positions[row, t]) + 1) // compress_ratio)",
        "    picks, seen = [s for s in got[row][t].tolist() if s != -1], scores[row, t].tolist()",
        '    print(f"row {row}, query {t}: right is {right[row, t].tolist()}, got {got[row][t].tolist()}")',
        '    assert all(0 <= s < visible for s in picks), f"query {t} may see entries below {visible}, got {picks}"',
        "    count = min(top_k, visible)",
        '    assert len(set(picks)) == len(picks) == count, f"expected {count} different entries, got {picks}"',
        "    rest = set(range(visible)) - set(picks)",
        "    least = min((seen[s] for s in picks if seen[s] == seen[s]), default=torch.inf)",
        "    most = max((seen[s] for s in rest if seen[s] == seen[s]), default=-torch.inf)",
        f'    assert not most > least{slack}, f"leaves out a score of {{most}} and selects one of {{least}}"',
    ]
    if lowest:
        lines += [
            "    later = max((s for s in picks if seen[s] == least), default=-1)",
            "    assert not any(seen[s] == least and s < later for s in rest), "
            'f"a tie is not broken towards the lowest entry: {picks}"',
        ]
    return lines


def _order(trial: Trial, failure: Failure, subject: Subject, literals: Literals) -> list[str] | None:
    assert isinstance(trial, AttendTrial)
    declared = trial.capabilities
    plain = (
        ("attend", IndexLists.LEADING) in declared.lacks
        or "n" in {*declared.limits, *declared.multiples}
        or declared.static_shapes
    )
    other = "indices.flip(-1)" if plain else "torch.nn.functional.pad(indices.flip(-1), (1, 1), value=-1)"
    return [f"got = {subject.call(indices=other)}", *_right(trial, failure, literals)]


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
    names = [name for name in subject.names if isinstance(trial.arguments.get(name), Tensor)]
    if trial.candidate.name != "transformers" and "weights" in subject.names and trial.capabilities.arrays == "torch":
        inner = getattr(trial.arguments["weights"], "named", None)
        parts = list(inner()) if inner is not None else ["wkv", "wgate", "ape", "norm"]
        names += [f"weights.{part}" for part in parts]
    entries = ", ".join(f'"{name}": {name}' for name in names)
    return [
        *textwrap.wrap(f"inputs = {{{entries}}}", WIDTH, subsequent_indent="    ", break_on_hyphens=False),
        "before = {name: tensor.nan_to_num().clone() for name, tensor in inputs.items()}",
        subject.call(),
        "changed = [name for name, tensor in inputs.items() if not torch.equal(tensor.nan_to_num(), before[name])]",
        'print("changed by the call:", changed)',
        'assert not changed, f"the call changes its inputs: {changed}"',
    ]


def _rows(trial: Trial, failure: Failure, subject: Subject, literals: Literals) -> list[str] | None:
    batch = len(trial.arguments[trial.batched[0]])
    alone = [
        "# Each row alone; in the batch all is right." if not isinstance(trial, LayerTrial) else "# Each row alone:",
        "alone = [",
        f"    {subject.call(**subject.each('{}[row : row + 1]'))}",
        f"    for row in range({batch})",
        "]",
    ]
    if isinstance(trial, SelectTrial):
        if isinstance(failure, NotBatchInvariant):
            return None
        return [*alone, "got = [one[0] for one in alone]", *_valid_picks(trial, literals)]
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
        return [*alone, *_agree(trial, failure, literals, subject.call(), "torch.cat(alone)", "rows alone")]
    return [*alone, "got = torch.cat(alone)", *_right(trial, failure, literals)]


def _future(trial: Trial, failure: Failure, subject: Subject, literals: Literals) -> list[str] | None:
    assert isinstance(trial, LayerTrial)
    cut = cut_column(trial.case)
    later = fresh_tokens(trial.case, trial.inputs, "future")[:, cut:]
    changed = ["changed = hidden.clone()", f"changed[:, {cut}:] = {literals.of('later', later)}"]
    return changed + _agree(
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
        return starts + _agree(trial, failure, literals, subject.call(), shorter, f"only the first {cut} columns", cut)
    assert isinstance(trial, CompressorTrial)
    keep = trial.case.seed % trial.case.tokens
    entries = trial.case.geometry.entry_count(keep)
    return _two_runs(
        failure, literals, subject.call(), subject.call(hidden=f"hidden[:, :{keep}].contiguous()"),
        2 * trial.expected[1][:, :entries], trial.arguments["hidden"].dtype, f"only the first {keep} tokens",
        f"[:, :{entries}]", elementwise=True,
    )  # fmt: skip


def _batch_order(trial: Trial, failure: Failure, subject: Subject, literals: Literals) -> list[str] | None:
    assert isinstance(trial, LayerTrial)
    other = f"{subject.call(**subject.each('{}.roll(-1, 0)'))}.roll(1, 0)"
    return _agree(trial, failure, literals, subject.call(), other, "the first row last")


def _agree(
    trial: LayerTrial, failure: Failure, literals: Literals, first: str, second: str, what: str, cut: int | None = None
) -> list[str]:
    allowed = torch.full_like(trial.expected.out, torch.inf)
    for document in trial.expected.documents:
        place = document.trace.context.document
        for t in range(place.length):
            if not document.choices[t].ambiguous:
                allowed[place.row, place.begin + t] = 2 * document.budgets.out[t]
    part = "" if cut is None else f"[:, :{cut}]"
    return _two_runs(failure, literals, first, second, allowed[:, :cut], trial.expected.dtype, what, part)


def _two_runs(
    failure: Failure, literals: Literals, first: str, second: str, allowed: Tensor, dtype: torch.dtype, what: str,
    part: str, elementwise: bool = False,
) -> list[str]:  # fmt: skip
    """Hold two runs against each other: both may be off by an error, and what is large rounds more."""
    _, allowed = shorten(torch.zeros_like(allowed), allowed)
    size = "first.abs()" if elementwise else "first.abs().amax(-1, keepdim=True)"
    place = failure.place
    at = "" if place is None or allowed.numel() <= 12 else f"[{place.row}, {place.column}]"
    return [
        f"first = {first}",
        f"# The same with {what}:",
        f"second = {second}",
        f"first, second = (out.detach().double(){part} for out in (first, second))",
        "# The allowed difference; inf where ties leave several answers, or none is asked:"
        if allowed.isinf().any()
        else "# The allowed difference:",
        f"allowed = {literals.of('allowed', allowed)}",
        f"allowed = allowed + {number(16 * torch.finfo(dtype).eps)} * {size}",
        "wrong = ~((second - first).abs() <= allowed) & ~(first.isnan() & second.isnan()) & (first != second)",
        f'print("one run  ", first{at}.tolist())',
        f'print("the other", second{at}.tolist())',
        "shown = [values[wrong][:4].tolist() for values in (first, second)]",
        'assert not wrong.any(), "one run has {}, the other {}".format(*shown)',
    ]


_BODIES: dict[str, Body] = {
    "specification": _specification,
    "order": _order,
    "repeat": _repeat,
    "inputs": _inputs,
    "rows": _rows,
    "future": _future,
    "prefix": _prefix,
    "batch-order": _batch_order,
}
"""By the name of the check; others are laws that a few lines cannot show."""
