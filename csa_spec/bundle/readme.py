"""The ``README.md`` of a bundle: the text of an issue, for maintainers who do not know this package."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from csa_spec.engine.failures import CandidateRaised, Failure
from csa_spec.engine.stage import SPECIFICATION
from csa_spec.report.content import call_line, numbers_lines, sides
from csa_spec.report.markup import code, fence, prose
from csa_spec.scripting.stage_script import StageScript
from csa_spec.stages import stage_of

_HOME = (
    "an executable specification of DeepSeek-V4's compressed sparse attention with a property-based suite"
)
_SHOWN = 8


def make_readme(
    failure: Failure,
    candidate: str,
    check: str,
    environment: Mapping[str, str],
    script: str | None,
    files: list[str],
) -> str:
    """Return the text: what, expected and got, what it looks like, environment, script, how it was found."""
    stage, case = stage_of(failure.case), failure.case
    words = stage.script or StageScript()
    of = code(candidate) if ":" in candidate else prose(candidate)
    expected = "What is expected is the output of a float64 reference, written after the official code."
    about = [
        f"In {stage.words.title(case.variant)} of {of}: {_text(failure.detail)}",
        expected if check == SPECIFICATION else f"What should hold: {stage.check(check).sentence}.",
        f"The smallest input that was found has {case.in_words()}.",
        words.legend(case),
    ]
    blocks = [f"# {of}, {str(case).split()[0]}: {failure.title}", " ".join(filter(None, about))]
    if failure.findings and (failure.diagnosis is None or not failure.diagnosis.summary):
        first = failure.findings[0]
        blocks.append(f"The first step that differs: {_text(first[0].upper() + first[1:])}")
    blocks += _numbers(failure, check, context=script is None or not words.shows_calls)
    blocks += _looks_like(failure)
    versions = prose(", ".join(f"{name} {version}" for name, version in environment.items()))
    blocks.append(f"**Environment:** {versions}")
    blocks.append(_again_in_python(failure, candidate, check) if script is None else _script(script, files))
    law = "" if check == SPECIFICATION else f" --check {check}"
    again = f'csa-spec case {shlex.quote(candidate)} "{case}"{law}'
    blocks.append(
        f"**How it was found:** by csa-spec, {_HOME}. It tried small random inputs and made the failing one "
        f"smaller. To try it again:\n\n{_block(again)}"
    )
    if "picture.svg" in files:
        blocks.append("`picture.svg` shows which query attends to what, and where the outputs differ.")
    return "\n\n".join(blocks) + "\n"


def _script(script: str, files: list[str]) -> str:
    needs = " It reads `tensors.safetensors` in the same folder." * ("tensors.safetensors" in files)
    return (
        f"**Script** (`repro.py`): it only needs torch and the library under test.{needs}\n\n<details>\n"
        f"<summary>repro.py</summary>\n\n{_block(script.rstrip(), 'python')}\n\n</details>"
    )


def _again_in_python(failure: Failure, candidate: str, check: str) -> str:
    trust = " --trust" * (":" in candidate)
    call = f"from csa_spec import check_case\n\n{call_line(failure, candidate, check)}"
    return (
        "No script can show this without csa-spec. To try it again with csa-spec, run "
        f"`csa-spec replay{trust} FOLDER` on the folder of this file, or in Python:\n\n{_block(call, 'python')}"
    )


def _text(text: str) -> str:
    return prose(text if text.endswith(".") else f"{text}.")


def _block(text: str, language: str = "") -> str:
    return "\n".join(fence(text, language))


def _numbers(failure: Failure, check: str, context: bool) -> list[str]:
    if isinstance(failure, CandidateRaised):
        raised = "\n".join([*failure.context, f"{failure.facts['error']}: {failure.facts['message']}"])
        return [f"**Expected:** an output.\n\n**Got:**\n\n{_block(raised)}"]
    lines = numbers_lines(failure, check, _SHOWN)
    if not lines:
        return []
    lines += failure.context if context else ()  # of a stream these are its calls, which the script has
    first, second = sides(failure, check)
    block = _block("\n".join(lines))
    return [f"**{first.capitalize()} and {second}:**\n\n{block}"]


def _looks_like(failure: Failure) -> list[str]:
    if failure.diagnosis is None:
        return []
    lines = []
    for bug in failure.diagnosis.behaves_like:
        links = ", ".join(f"[{name}]({url})" for name, url in zip(bug.sources, bug.urls, strict=False))
        lines.append(f"* {bug.title}{f' ({links})' if links else ''}: {bug.cause} It {bug.agreement}.")
    says = failure.diagnosis.certainty.value.capitalize()
    like = f"**{says}:**\n\n" + "\n".join(lines) if lines else ""
    return [block for block in (like, prose(failure.diagnosis.summary)) if block]
