"""The ``README.md`` of a bundle: the text of an issue, for a maintainer who has never heard of this package."""

from __future__ import annotations

from collections.abc import Mapping

from csa_spec.bundle.wording import plain
from csa_spec.engine.case import LayerCase
from csa_spec.engine.failures import CandidateRaised, Failure
from csa_spec.engine.stage import SPECIFICATION
from csa_spec.spec import LayerKind
from csa_spec.stages import stage_of
from csa_spec.stages.cache.case import CacheCase
from csa_spec.stages.layer.case import LayerCase

_HOME = "an executable specification of DeepSeek-V4's compressed sparse attention with a property-based test suite"
_KINDS = {
    "csa": "compressed sparse attention (CSA)",
    "hca": "heavily compressed attention (HCA)",
    "sliding": "sliding-window attention",
}
_SHOWN = 8


def make_readme(
    failure: Failure,
    candidate: str,
    check: str,
    environment: Mapping[str, str],
    script: str | None,
    files: list[str],
) -> str:
    """Return the text: title, what, expected and got, what it looks like, environment, script, how it was found."""
    stage, case = stage_of(failure.case), failure.case
    sentence = next(one.sentence for one in stage.checks if one.name == check)
    first = str(case).split()[0]
    subject = f"the {_KINDS.get(first, first)} layer" if stage.name == LAYER else f"`{stage.name}`"
    if isinstance(case, CacheCase):
        subject = f"a sequence of calls on the {_KINDS[case.kind]} layer"
    of = f"`{candidate}`" if ":" in candidate else candidate
    blocks = [
        f"# {of}, {first}: {failure.title}",
        f"In {subject} of {of}: {_text(failure.detail)} {_wanted(check, sentence)} The smallest input found has"
        f" {plain(case.in_words())}.{_entries(case)}",
    ]
    if failure.findings and (failure.diagnosis is None or not failure.diagnosis.summary):
        blocks.append(f"The first step that differs: {_sentence(failure.findings[0])}")
    blocks += _numbers(failure, check, program=script is None or not isinstance(case, CacheCase))
    blocks += _looks_like(failure)
    blocks.append(
        "**Environment:** " + ", ".join(f"{name} {version}" for name, version in environment.items())
    )
    law = "" if check == SPECIFICATION.name else f" --check {check}"
    again = f'csa-spec case {candidate} "{case}"{law}'
    if script is None:
        blocks.append(
            "There is no script that shows this without csa-spec: it takes more than one plain call. With csa-spec "
            f"installed, `csa-spec replay FOLDER` on the folder of this file tries it again, or in Python:\n\n"
            f'```python\nfrom csa_spec import check_case\n\ncheck_case("{candidate}", "{case}"'
            + (f', check="{check}"' if law else "") + ")\n```"
        )  # fmt: skip
    else:
        needs = (
            ""
            if "tensors.safetensors" not in files
            else " It reads `tensors.safetensors`, which lies beside it."
        )
        blocks.append(
            f"**Script** (`repro.py`): it needs torch and the library under test only.{needs}\n\n<details>\n"
            f"<summary>repro.py</summary>\n\n```python\n{script.rstrip()}\n```\n\n</details>"
        )
    blocks.append(
        f"**How it was found:** by csa-spec, {_HOME}. It tried small random inputs, "
        f"and made the failing one smaller:\n\n"
        f"```\n{again}\n```"
    )
    if "picture.svg" in files:
        blocks.append("`picture.svg` draws which query attends to what, and where the outputs differ.")
    return "\n\n".join(blocks) + "\n"


def _wanted(check: str, sentence: str) -> str:
    if check == SPECIFICATION.name:
        return "What is expected is a float64 reference written after the official code, within rounding errors."
    return f"What should hold: {plain(sentence)}."


def _entries(case: LayerCase) -> str:
    """Say what an entry is, where failures may speak of one."""
    if not isinstance(case, LayerCase) or case.geometry.kind is LayerKind.SLIDING:
        return ""
    ratio = case.geometry.compress_ratio
    return f" Entries are the compressed keys, one for every {'token' if ratio == 1 else f'{ratio} tokens'}."


def _text(text: str) -> str:
    text = plain(text).replace("<", "&lt;")
    return text if text.endswith(".") else f"{text}."


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{_text(text)[1:]}"


def _numbers(failure: Failure, check: str, program: bool) -> list[str]:
    if isinstance(failure, CandidateRaised):
        return [
            f"**Expected:** an output.\n\n**Got:**\n\n```\n{type(failure.error).__name__}: {failure.error}\n```"
        ]
    if failure.expected is None or failure.got is None:
        return []
    two_runs = stage_of(failure.case).name == LAYER and check not in (
        SPECIFICATION.name,
        "gradients",
        "limits",
    )
    one, other = ("One run", "The other") if two_runs or check == "repeat" else ("Expected", "Got")
    place = "" if failure.place is None else plain(f"at {failure.place}")
    lines = [
        f"{f'{one} {place}'.strip():<40} {_listed(failure.expected)}",
        f"{f'{other}':<40} {_listed(failure.got)}",
    ]
    over = failure.over_budget
    if over is not None and over > 1:
        lines.append(f"{'times the allowed rounding error':<40} {over:.3g}")
    if program:  # of a stream these are its calls, which the script has
        lines += failure.context
    return [f"**{one} and {other.lower()}:**\n\n```\n" + "\n".join(lines) + "\n```"]


def _listed(values: list[float]) -> str:
    shown = ", ".join(f"{x:.7g}" for x in values[:_SHOWN])
    return f"[{shown}{', ...' if len(values) > _SHOWN else ''}]"


def _looks_like(failure: Failure) -> list[str]:
    found = failure.diagnosis
    if found is None:
        return []
    lines = []
    for one in found.behaves_like:
        links = ", ".join(f"[{name}]({url})" for name, url in zip(one.sources, one.urls, strict=False))
        lines.append(f"* {one.title}{f' ({links})' if links else ''}: {one.cause}")
    like = ["**Looks like** a known mistake:\n\n" + "\n".join(lines)] if lines else []
    return like + ([plain(found.summary)] if found.summary else [])
