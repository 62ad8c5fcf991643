"""Text for people: one failure explained, and the table at the end of a run."""

from __future__ import annotations

import textwrap

from csa_spec.harness.case import Case
from csa_spec.harness.checks import CHECKS, SPECIFICATION
from csa_spec.harness.engine import CheckResult
from csa_spec.harness.failures import Failure, letter
from csa_spec.harness.inputs import make_inputs
from csa_spec.harness.results import Report, Verdict
from csa_spec.report.maps import dependence_map, sight_map
from csa_spec.spec import LayerKind


def describe(failure: Failure, candidate: str, check: str) -> str:
    """Explain one failure to someone who does not know how the suite works."""
    case = failure.case
    lines = [
        f"  {failure.title[0].upper()}{failure.title[1:]}:",
        *_wrapped(failure.detail),
        "",
        f"  smallest case found   {case}",
        f"  which is              {_in_words(case)}",
        *_tokens(case),
        *_numbers(failure, check),
    ]
    if failure.findings:
        lines += ["", "  first stage that differs", *_wrapped(failure.findings[0], "    ")]
        if len(failure.findings) > 1:
            lines += ["  later stages", *(line for one in failure.findings[1:] for line in _wrapped(one, "    "))]
    for drawing in (
        sight_map(failure.document) if failure.document else [],
        dependence_map(failure.dependence) if failure.dependence else [],
    ):
        lines += ["", *("  " + line for line in drawing)] if drawing else []
    lines += ["", "  to see it again", "    from csa_spec import check_case", f"    {_call(failure, candidate, check)}"]
    return "\n".join(lines)


def _call(failure: Failure, candidate: str, check: str) -> str:
    law = "" if check == "specification" else f', check="{check}"'
    return f'check_case("{candidate}", "{failure.case}"{law})'


def _in_short(failure: Failure, candidate: str, check: str) -> str:
    """Return a failure without its explanation, for laws that fall where the equality does."""
    return "\n".join([*_wrapped(failure.detail), f"  {_call(failure, candidate, check)}"])


def _wrapped(sentence: str, indent: str = "  ") -> list[str]:
    return textwrap.wrap(sentence, 116, initial_indent=indent, subsequent_indent=indent)


def _in_words(case: Case) -> str:
    g = case.geometry
    parts = [f"B={len(case.rows)}", f"S={case.columns}", f"window {g.window}"]
    if g.kind is not LayerKind.SLIDING:
        parts.append(f"compression ratio {g.compress_ratio}")
    if g.kind is LayerKind.CSA:
        parts.append(f"top-k {g.top_k}")
    parts += [f"{g.heads} heads of {g.head_dim}", f"hidden {g.hidden}", case.dtype, case.device]
    return ", ".join(parts) + (f", mode {case.mode!r}" if case.mode else "")


def _tokens(case: Case) -> list[str]:
    """Show hidden states where there are few enough to read."""
    hidden = make_inputs(case).hidden.cpu()
    if hidden.numel() > 24 or len(hidden) > 1:
        return []
    names = (f"{letter(t)}=[{', '.join(f'{x:.4g}' for x in token)}]" for t, token in enumerate(hidden[0].tolist()))
    return [f"  hidden states         {' '.join(names)}"]


def _numbers(failure: Failure, check: str) -> list[str]:
    if failure.place is None or failure.expected is None or failure.got is None:
        return []
    first, second = ("expected", "got") if check == "specification" else ("one run", "the other")
    shown = 6
    width = min(len(failure.expected), shown)
    more = ", ..." if len(failure.expected) > shown else ""
    lines = [
        f"  output of             {failure.place}",
        f"    {first:<20}[{', '.join(f'{x:.7g}' for x in failure.expected[:width])}{more}]",
        f"    {second:<20}[{', '.join(f'{x:.7g}' for x in failure.got[:width])}{more}]",
    ]
    if failure.over_budget is not None and failure.over_budget > 1:
        lines.append(f"    off by              {failure.over_budget:.4g} times the error budget")
    return lines


def summarise(report: Report) -> str:
    """Return the failures, the table and the verdict of a run."""
    blocks = []
    explained = set()
    for result in report.results:
        for failure in result.failures:
            where = f"{result.kind}, {result.dtype}" if len(report.dtypes) > 1 else str(result.kind)
            heading = f"FAILED {where}: {result.sentence}"
            if (result.kind, result.dtype) in explained and result.check != SPECIFICATION.name:
                blocks.append(f"{heading}\n{_in_short(failure, report.candidate, result.check)}")
            else:
                blocks.append(f"{heading}\n{describe(failure, report.candidate, result.check)}")
                explained.add((result.kind, result.dtype))
    for dtype in report.dtypes:
        blocks.append(_table([result for result in report.results if result.dtype == dtype], dtype, report))
    blocks.append(_verdict(report))
    return "\n\n".join(blocks)


def _table(results: list[CheckResult], dtype: str, report: Report) -> str:
    kinds = list(dict.fromkeys(result.kind for result in results))
    by_place = {(result.check, result.kind): result for result in results}
    lines = [f"{dtype:<46}" + "".join(f"{kind!s:>16}" for kind in kinds)]
    for check in CHECKS:
        row = [_cell(by_place[check.name, kind]) for kind in kinds]
        lines.append(f"{check.sentence:<46}" + "".join(f"{cell:>16}" for cell in row))
    first = [by_place[CHECKS[0].name, kind] for kind in kinds]
    rows = {
        "largest error/budget of what is right": [f"{result.tally.worst:.2f}" for result in first],
        "queries held against the specification": [str(result.tally.queries) for result in first],
        "  of these ambiguous (ties across k)": [str(result.tally.ambiguous) for result in first],
        "  of these with too many choices to judge": [str(result.tally.unjudged) for result in first],
    }
    for name, cells in rows.items():
        lines.append(f"{name:<46}" + "".join(f"{cell:>16}" for cell in cells))
    for kind, result in zip(kinds, first, strict=True):
        if result.not_applicable:
            counts = ", ".join(f"{name} {count}" for name, count in sorted(result.not_applicable.items()))
            lines.append(f"not applicable to {kind}: cases with {counts}")
    return "\n".join(lines)


def _cell(result: CheckResult) -> str:
    if result.failures:
        return f"{result.failing} FAILED"
    return f"{result.cases} ok" if result.cases else "no case"


def _verdict(report: Report) -> str:
    lines = []
    for (dtype, kind), names in report.missing.items():
        if names and report.verdict is Verdict.INCONCLUSIVE:
            lines.append(f"inconclusive for {kind} in {dtype}: no case of these kinds was reached: {', '.join(names)}")
    lines += [f"not applicable: {reason}" for reason in report.declined.values()]
    versions = ", ".join(f"{name} {version}" for name, version in report.environment.items())
    lines.append(f"{versions}; {report.profile} profile, {report.device}, seed {report.seed}, {report.seconds:.0f} s")
    failed = dict.fromkeys(str(result.kind) for result in report.results if result.failures)
    right = dict.fromkeys(str(r.kind) for r in report.results if str(r.kind) not in failed)
    if report.verdict is Verdict.NOT_CONFORMANT:
        lines.append(f"{report.candidate}: NOT CONFORMANT for {', '.join(failed)}")
        if right:
            lines[-1] += f" (nothing found for {', '.join(right)})"
    else:
        lines.append(f"{report.candidate}: {str(report.verdict).upper()} for {', '.join(right)}")
    return "\n".join(lines)
