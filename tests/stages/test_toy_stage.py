"""A stage that is one module and one line gets everything: checks, shrinking, texts, a picture, a bundle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import csa_spec
from csa_spec import Failure, Report, Verdict
from csa_spec.cli import main
from csa_spec.plug.candidate import Candidate
from csa_spec.profiles import PROFILES, Profile
from csa_spec.report.html import to_html
from csa_spec.report.json import to_json
from csa_spec.report.markdown import to_markdown
from csa_spec.report.picture import picture
from csa_spec.report.text import summarise
from csa_spec.stages import STAGES, parse_case, register
from stages.right import declaring, wide
from stages.toy import EPS, NORM, NormCase

pytest_plugins = ["pytester"]

FEW = Profile("few", light=20, medium=1, heavy=1, law=2, costly=1, patience=float("inf"))
HERE = "stages.test_toy_stage"


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Add the stage, and take it away again."""
    monkeypatch.setitem(PROFILES, "few", FEW)
    register(NORM)
    yield
    del STAGES[NORM.name]


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Compute in float32 at least."""
    y = x.to(wide(x.dtype))
    return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def mean(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Divide by the mean magnitude."""
    return x * torch.rsqrt(x.abs().mean(-1, keepdim=True).square() + eps) * weight


def ignores_weight(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Norm only."""
    return norm(x, torch.ones_like(weight), eps)


def shares_rows(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Take one root mean square for all rows."""
    return x * torch.rsqrt(x.square().mean((0, 2), keepdim=True) + eps) * weight


def without_eps(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Add nothing."""
    return norm(x, weight, 0.0)


def swaps_tokens(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Answer the first token with the last, and the other way round."""
    return norm(x.flip(1), weight, eps)


def detached(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Take the root mean square for a constant, as far as gradients go."""
    return x * torch.rsqrt(x.detach().square().mean(-1, keepdim=True) + eps) * weight


def one_token(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Refuse several."""
    if x.shape[1] > 1:
        raise ValueError("one token only")
    return norm(x, weight, eps)


def first_token(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Leave the others as they are."""
    return torch.cat((norm(x[:, :1], weight, eps), x[:, 1:]), 1)


def failing(function: Any, **options: Any) -> tuple[Report, Failure]:
    """Return the report of a wrong one, and its first failure."""
    report = csa_spec.check(norm=function, profile="few", **options)
    assert report.verdict is Verdict.NOT_CONFORMANT
    return report, next(failure for result in report.results for failure in result.failures)


def test_it_takes_one_module() -> None:
    """Whoever adds a stage need not know the rest of the house."""
    assert len(Path(__file__).with_name("toy.py").read_text(encoding="utf-8").splitlines()) <= 170


def test_a_right_implementation_is_conformant() -> None:
    """In two dtypes, every check with something to do but those about what it does not declare."""
    report = csa_spec.check(norm=norm, profile="few", dtype="float32,bfloat16")
    assert report.verdict is Verdict.CONFORMANT, summarise(report)
    assert {result.check for result in report.results} == {
        "specification", "rows", "repeat", "inputs", "state", "memory", "growth", "own-inputs",
    }  # fmt: skip
    assert all(result.cases for result in report.results)
    assert summarise(report).endswith(f"{HERE}:norm: CONFORMANT for norm")


@pytest.mark.parametrize(
    ("function", "sizes"),
    [
        (mean, {"B": 1, "S": 1, "D": 2}),
        (ignores_weight, {"B": 1, "S": 1, "D": 1}),
        (shares_rows, {"B": 2, "S": 1, "D": 1}),
        (without_eps, {"B": 1, "S": 1, "D": 1}),
        (swaps_tokens, {"B": 1, "S": 2, "D": 1}),
    ],
)
def test_a_wrong_one_is_found_made_small_and_explained(function: Any, sizes: dict[str, int]) -> None:
    """The line that the text prints shows the failure again."""
    report, failure = failing(function)
    assert failure.case.sizes == sizes
    text = summarise(report)
    assert f"smallest case found   {failure.case}\n" in text
    assert "FAILED norm: tokens match the specification" in text
    line = f'check_case("{HERE}:{function.__name__}", "{failure.case}")'
    assert f"    {line}\n" in f"{text}\n"
    with pytest.raises(type(failure)):
        eval(line, {"check_case": csa_spec.check_case})
    csa_spec.check_case(norm, str(failure.case))


def test_the_answer_to_another_token_is_called_that() -> None:
    """In the words of the stage: its items are tokens."""
    with pytest.raises(Failure, match="token 0 has the output of token 1 of row 0"):
        csa_spec.check_case(swaps_tokens, "norm S=2 D=3 values=gaussian")
    with pytest.raises(Failure, match="2 of 2 tokens differ from the reference, token"):
        csa_spec.check_case(ignores_weight, "norm S=2 D=3 values=gaussian")


def test_the_command_takes_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """By ``module:name`` and ``--stage``, and the case alone."""
    arguments = ["check", f"{HERE}:without_eps", "--stage", "norm", "--profile", "few"]
    assert main([*arguments, "--json", str(tmp_path / "report.json")]) == 1
    assert "NOT CONFORMANT for norm" in capsys.readouterr().out
    assert main(["check", f"{HERE}:norm", "--stage", "norm", "--profile", "few"]) == 0
    assert main(["case", f"{HERE}:without_eps", "norm values=tiny"]) == 1
    assert "norm values=tiny" in capsys.readouterr().out
    assert main(["check", f"{HERE}:norm", "--stage", "nrom"]) == 2
    assert "unknown stage 'nrom'; did you mean norm?" in capsys.readouterr().err


def test_it_has_a_picture_and_reports() -> None:
    """The default picture: sentences and numbers."""
    report, failure = failing(mean)
    drawing = picture(failure)
    assert drawing is not None
    assert drawing.startswith("<svg")
    for text in (drawing, to_html(report), to_markdown(report)):
        assert failure.title.lower() in text.lower()
        assert str(failure.case) in text
    data = to_json(report)
    assert data["verdict"] == "not conformant"
    assert str(failure.case) in str(data)


def test_declared_limits_are_tried() -> None:
    """An error outside is conformant; what is silently wrong is found, as is what is not declared."""
    limits = {"S": 1}
    report = csa_spec.check(norm=declaring(one_token, limits=limits), profile="few")
    assert report.verdict is Verdict.CONFORMANT, summarise(report)
    assert "outside the declared limits of norm: S over 1: raises an error" in summarise(report)
    assert "not tried for norm, as the candidate declares: several tokens" in summarise(report)
    _, failure = failing(one_token)
    assert failure.case.sizes["S"] == 2
    _, failure = failing(declaring(first_token, limits=limits))
    assert failure.kind == "SilentlyWrong"


def test_gradients_are_checked_where_they_are_declared() -> None:
    """A right one passes; a constant in place of a function is found."""
    right = csa_spec.check(norm=declaring(norm, gradients=True), profile="few")
    assert right.verdict is Verdict.CONFORMANT, summarise(right)
    assert next(result for result in right.results if result.check == "gradients").cases
    _, failure = failing(declaring(detached, gradients=True))
    assert failure.kind == "WrongGradient[x]"


def test_it_has_a_bundle(tmp_path: Path) -> None:
    """A folder with a text, a picture and the case, which can be tried again."""
    from csa_spec.bundle import write_bundle
    from csa_spec.replay import State, replay

    report, failure = failing(ignores_weight)
    candidate = Candidate(f"{HERE}:ignores_weight", {"norm": ignores_weight})
    folder = write_bundle(failure, candidate, "specification", tmp_path, report.environment)
    assert {"README.md", "case.json", "picture.svg"} <= {path.name for path in folder.iterdir()}
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert str(failure.case) in text
    assert "`norm`, an RMS norm" in text
    assert [one.state for one in replay([folder], trust=True)] == [State.FAILING]
    assert [one.state for one in replay([folder], norm)] == [State.FIXED]


def test_it_has_pytest_tests(pytester: pytest.Pytester) -> None:
    """One for each of its checks; those about what is not declared are skipped."""
    suite = ("--pyargs", "csa_spec.conformance", "-p", "no:cacheprovider", "--csa-profile", "few")
    right = pytester.runpytest_inprocess(*suite, "--csa-candidate", f"{HERE}:norm", "--csa-stage", "norm")
    right.assert_outcomes(passed=len(NORM.checks) - 2, skipped=2)
    wrong = pytester.runpytest_inprocess(*suite, "--csa-candidate", f"{HERE}:mean", "--csa-stage", "norm")
    assert wrong.parseoutcomes()["failed"] == 1
    wrong.stdout.fnmatch_lines(["*smallest case found   norm *"])


def test_a_case_is_one_line() -> None:
    """As for every stage."""
    case = NormCase(rows=2, channels=5, seed=3)
    assert str(case) == "norm B=2 D=5 seed=3"
    assert parse_case(str(case)) == case
    assert EPS not in case.sizes.values()
