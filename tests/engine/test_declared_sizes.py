"""Sizes that a candidate declares, of any stage: what is left out, what is tried outside, and what a report says."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from stages.right import declaring
from stages.streams import Tokens
from torch import Tensor

import csa_spec
from csa_spec import AllBut, Candidate, Capabilities, Report, UsageError, Verdict
from csa_spec.candidates.gather import load
from csa_spec.engine.running import CheckResult, run_check
from csa_spec.profiles import PROFILES, Profile
from csa_spec.report.text import summarise
from csa_spec.spec import Geometry, LayerKind
from csa_spec.target import make_targets

FEW = Profile("few", light=4, medium=2, heavy=2, law=1, costly=1, shrinks=False, patience=float("inf"))
"""Corners reach the rest."""
MORE = replace(FEW, medium=30)
"""Odd channels are drawn now and then; a run ends with the first failure."""
RIGHT = load()
Refuses = Callable[..., bool]
"""Whether a call is refused, given the arguments of a stage"""


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add a profile that draws hardly anything."""
    monkeypatch.setitem(PROFILES, "few", FEW)


@dataclass(frozen=True, kw_only=True)
class Guarded:
    """A right implementation that refuses some sizes, and how it declares that."""

    refuses: Refuses
    stage: str = "layer"
    kinds: tuple[str, ...] = ("sliding",)
    says: str
    """What the report says of what is just outside"""
    declared: Mapping[str, Mapping[Any, Any]] = field(default_factory=dict)

    def candidate(self, answers: bool = False, declares: bool = True) -> Candidate:
        """Return it; ``answers`` in place of refusing: wrong ones."""
        function = stream_of(self.refuses, answers) if self.stage == "cache" else self._guard(answers)
        sizes: dict[str, Any] = dict(self.declared) if declares else {}
        kinds = frozenset(map(LayerKind, self.kinds))
        capabilities = Capabilities(kinds=kinds, batch_invariant=False, **sizes)
        return Candidate("guarded", {self.stage: function}, capabilities)

    def _guard(self, answers: bool) -> Callable[..., Any]:
        right: Any = RIGHT.functions(self.stage)[""]

        def guarded(*arguments: Any) -> Any:
            if not self.refuses(*arguments):
                return right(*arguments)
            if not answers:
                raise ValueError("not these sizes")
            return getattr(right(*arguments), "out", right(*arguments)) + 1

        return guarded

    def check(self, **options: bool) -> Report:
        """Return a report on it."""
        return csa_spec.check(self.candidate(**options), profile="few")

    def results(
        self, name: str, profile: Profile = FEW, every: int = 1, **options: bool
    ) -> list[CheckResult]:
        """Return what a check of each layer kind shows up to the first failure, on every n-th case."""
        targets, _ = make_targets(
            self.candidate(**options), self.stage, "all", ("float32",), "cpu", profile, 0
        )
        found = []
        for target in targets:
            check = target.stage.check(name)
            cases = target.cases(check)[::every]
            found.append(
                run_check(
                    check,
                    target.candidate,
                    target.stage,
                    cases,
                    variant=target.variant,
                    enough=1,
                    shrinking=False,
                )
            )
        return found


def stream_of(refuses: Refuses, answers: bool) -> Callable[..., Any]:
    """Return what opens right streams that refuse calls, given their tokens and how many are there already."""

    class Guarding(Tokens):
        def extend(self, hidden: Tensor) -> Tensor:
            refused = refuses(hidden, max(map(len, self.rows)), self.layer[1])
            if refused and not answers:
                raise ValueError("not so many tokens")
            return super().extend(hidden) + int(refused)

    return lambda weights, geometry, batch: Guarding(weights, geometry, batch)


def of_geometry(refused: Callable[[Geometry], bool]) -> Refuses:
    """Return whether a layer is refused for its geometry."""
    return lambda hidden, weights, geometry, *others: refused(geometry)


EVERY = ("csa", "hca", "sliding")
GUARDED = {
    "decoding only": Guarded(
        refuses=lambda hidden, *others: bool(hidden.shape[1] > 1),
        declared={"limits": {"S": 1}},
        says="S over 1",
        kinds=("csa",),
    ),
    "one row": Guarded(
        refuses=lambda hidden, *others: len(hidden) > 1, declared={"limits": {"B": 1}}, says="B over 1"
    ),
    "no window of one token": Guarded(
        refuses=of_geometry(lambda g: g.window < 2), declared={"least": {"W": 2}}, says="W under 2"
    ),
    "even channels": Guarded(
        refuses=of_geometry(lambda g: g.head_dim % 2 == 1),
        declared={"multiples": {"D": 2}},
        says="D not a multiple of 2",
    ),
    "some entry is selected": Guarded(
        refuses=of_geometry(lambda g: g.kind is LayerKind.CSA and g.top_k < 1),
        declared={"least": {"k": 1}},
        says="k under 1",
        kinds=("csa",),
    ),
    "as the official code": Guarded(
        refuses=of_geometry(
            lambda g: g.kind is not LayerKind.SLIDING and g.overlap != (g.compress_ratio == 4)
        ),
        declared={"allowed": {("csa", "m"): {4}, ("hca", "m"): AllBut(4)}},
        says="m=4",
        kinds=("csa", "hca"),
    ),
    "rotates 64 channels": Guarded(
        refuses=of_geometry(lambda g: g.rope_dim != 64), declared={"allowed": {"R": {64}}}, says="R=6"
    ),
    "one group": Guarded(
        refuses=of_geometry(lambda g: g.o_groups > 1),
        declared={"limits": {"groups": 1}},
        says="groups over 1",
    ),
    "ranks of outputs": Guarded(
        refuses=of_geometry(lambda g: g.o_lora_rank % 4 > 0),
        declared={"multiples": {"o_lora": 4}},
        says="o_lora not a multiple of 4",
    ),
    "ranks of queries": Guarded(
        refuses=of_geometry(lambda g: g.q_lora_rank < 3),
        declared={"least": {"q_lora": 3}},
        says="q_lora under 3",
    ),
    "hidden sizes": Guarded(
        refuses=of_geometry(lambda g: g.hidden % 8 > 0),
        declared={"multiples": {"E": 8}},
        says="E not a multiple of 8",
    ),
    "channels of the index": Guarded(
        refuses=of_geometry(lambda g: g.index_head_dim != 8),
        declared={"allowed": {("csa", "DI"): {8}}},
        says="DI=",
        kinds=("csa",),
    ),
    "heads of the index": Guarded(
        refuses=of_geometry(lambda g: g.index_heads < 2),
        declared={"least": {"HI": 2}},
        says="HI under 2",
        kinds=("csa",),
    ),
    "compressor that rotates 64 channels": Guarded(
        stage="compressor",
        refuses=of_geometry(lambda g: g.rope_dim != 64),
        declared={"allowed": {"R": {64}}},
        says="R=6",
    ),
    "single tokens after prefill": Guarded(
        stage="cache",
        refuses=lambda hidden, before, geometry: bool(before and hidden.shape[1] > 1),
        declared={"limits": {"step": 1}},
        says="step over 1",
    ),
    "prefill of a block": Guarded(
        stage="cache",
        refuses=lambda hidden, before, geometry: bool(not before and hidden.shape[1] < 4),
        declared={"least": {"first": 4}},
        says="first under 4",
    ),
    "streams of wide windows": Guarded(
        stage="cache",
        refuses=lambda hidden, before, geometry: geometry.window < 2,
        declared={"least": {"W": 2}},
        says="W under 2",
    ),
}
every_guard = pytest.mark.parametrize("guarded", GUARDED.values(), ids=list(GUARDED))


@every_guard
def test_what_raises_an_error_outside_what_it_declares_is_right(guarded: Guarded) -> None:
    """It is tried there, and what is seen is counted."""
    results = [*guarded.results("specification", every=3), *guarded.results("limits")]
    assert [str(failure) for result in results for failure in result.failures] == []
    assert all(result.cases for result in results)
    seen = [what for result in results for what in result.tally.seen]
    assert any(re.fullmatch(f"{guarded.says}.*: raises an error", what) for what in seen), seen


@every_guard
def test_what_raises_an_error_and_does_not_declare_it_is_not(guarded: Guarded) -> None:
    """It is an exception like any other."""
    results = guarded.results("specification", MORE, declares=False)
    kinds = {failure.kind for result in results for failure in result.failures}
    assert kinds == {"CandidateRaised[ValueError]"}


@every_guard
def test_what_answers_wrongly_outside_what_it_declares_is_found(guarded: Guarded) -> None:
    """Silence is the one thing that a limit does not excuse."""
    results = guarded.results("limits", answers=True)
    assert {failure.kind for result in results for failure in result.failures} == {"SilentlyWrong"}


@pytest.mark.parametrize(
    ("name", "untried"),
    [
        ("decoding only", "truncated top-k"),
        ("no window of one token", "window of one token"),
        ("single tokens after prefill", "a later call longer than the window"),
    ],
)
def test_a_report_says_what_is_not_tried_and_what_is_refused(name: str, untried: str) -> None:
    """The candidate is conformant all the same."""
    guarded = GUARDED[name]
    text = summarise(guarded.check())
    left_out = [line for line in text.splitlines() if line.startswith("not tried for ")]
    assert len(left_out) == len(guarded.kinds)
    assert all(untried in line for line in left_out)
    assert text.splitlines()[-1].startswith("guarded: CONFORMANT for ")
    assert re.search(rf"outside the declared limits of [a-z ]+: .*{guarded.says}: raises an error", text)
    assert re.search(rf"[a-z ]+: \d+ cases? with .*{guarded.says}.* skipped \(declared unsupported\)", text)


def nan_where_empty(q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """Divide 0 by 0 where a query names no key, unless there are no keys or no lists at all."""
    out: Tensor = RIGHT.functions("attend")[""](q, kv, indices, sinks, scale)
    if not kv.shape[1] or not indices.shape[2]:
        return out
    return out.masked_fill((indices < 0).all(-1)[..., None, None], torch.nan)


def test_what_a_function_lacks_is_tried_however_it_is_given() -> None:
    """By its stage's name, or as the candidate."""
    lacks = {("attend", "empty"): "leaves a query without keys", ("attend", "holes"): "so do holes"}
    function = declaring(nan_where_empty, lacks=lacks, least={"n": 1, "N": 1}, batch_invariant=False)
    reports = (
        csa_spec.check(attend=function, profile="few"),
        csa_spec.check(function, stage="attend", profile="few"),
    )
    for report in reports:
        assert report.verdict is Verdict.CONFORMANT, summarise(report)
        assert {one.name: one.state for one in report.known_issues}["empty"] == "wrong"
        assert "known issue of attend: empty: wrong (leaves a query without keys)" in summarise(report)


def index_scores_without_weights(index_q: Tensor, index_k: Tensor, head_weights: Tensor) -> Tensor:
    """Take head weights for constants, as far as gradients go."""
    found: Tensor = RIGHT.functions("index_scores")[""](index_q, index_k, head_weights.detach())
    return found


def test_gradients_of_index_scores_are_checked_where_they_are_declared() -> None:
    """A right one passes, one that loses a gradient does not."""
    right = declaring(RIGHT.functions("index_scores")[""], gradients=True, batch_invariant=False)
    report = csa_spec.check(index_scores=right, profile="few")
    assert report.verdict is Verdict.CONFORMANT, summarise(report)
    assert next(result for result in report.results if result.check == "gradients").cases
    wrong = declaring(index_scores_without_weights, gradients=True, batch_invariant=False)
    report = csa_spec.check(index_scores=wrong, profile="few")
    assert {failure.kind for result in report.results for failure in result.failures} == {
        "NoGradient[head_weights]"
    }


REFUSED = {
    "gradients of a selection": ("select", {"gradients": True}, "select has no gradients that could be checked"),
    "no such limit": ("select", {"limits": {"s": 1}}, "capabilities.limits names 's'; select has the sizes B, S, T,"),
    "no such least": ("attend", {"least": {"M": 1}}, "capabilities.least names 'M'; attend has the sizes"),
    "no such multiple": ("layer", {"multiples": {"d": 2}}, "capabilities.multiples names 'd'; layer has the sizes"),
    "no such set": ("cache", {"allowed": {"steps": {1}}}, "capabilities.allowed names 'steps'; cache has the sizes"),
    "no such kind": ("layer", {"limits": {("cs", "m"): 4}}, "capabilities.limits names 'cs'; did you mean csa?"),
    "no such kind of a least": ("layer", {"least": {("HCA", "m"): 4}}, "capabilities.least names 'HCA'"),
    "no such kind of a multiple": ("cache", {"multiples": {("x", "m"): 4}}, "capabilities.multiples names 'x'"),
    "no such kind of a set": ("layer", {"allowed": {("x", "m"): {4}}}, "capabilities.allowed names 'x'"),
    "a kind of a stage without": ("attend", {"limits": {("csa", "n"): 4}}, "capabilities.limits names 'csa'"),
    "nothing left": ("layer", {"limits": {"S": 0}}, "leave no size S for layer"),
    "least over the limit": ("attend", {"least": {"n": 9}, "limits": {"n": 8}}, "leave no size n for attend"),
    "no multiple": ("layer", {"multiples": {"D": 64}, "limits": {"D": 32}}, "leave no size D for layer"),
    "an empty set": ("select", {"allowed": {"m": set()}}, "leave no size m for select"),
    "an illegal set": ("compressor", {"allowed": {"R": {0, 3}}}, "compressor"),
    "R over D": ("layer", {"allowed": {"R": {64}}, "limits": {"D": 32}}, "layer"),
    "longer than all": ("cache", {"least": {"first": 8}, "limits": {"total": 4}}, "cache"),
    "every name": ("select", {"lacks": {("select", f"{x}-invisible"): "" for x in ("plain", "nan", "huge")}}, "select"),
}  # fmt: skip


@pytest.mark.parametrize(("stage", "declared", "sentence"), REFUSED.values(), ids=list(REFUSED))
def test_what_cannot_be_declared_is_one_sentence(
    stage: str, declared: dict[str, Any], sentence: str
) -> None:
    """Before anything runs, and not a traceback."""
    function = RIGHT.functions(stage).get("", Tokens)
    candidate = Candidate("mine", {stage: function}, Capabilities(**declared))
    with pytest.raises(UsageError, match=re.escape(sentence)) as refusal:
        csa_spec.check(candidate, profile="few")
    assert str(refusal.value).startswith("mine: ")
    assert "\n" not in str(refusal.value)


def test_what_is_declared_of_one_layer_kind_leaves_the_others_alone() -> None:
    """Outside of it they are tried as they are."""
    declared = Capabilities(allowed={("csa", "m"): {4}})
    hca, csa = (csa_spec.parse_case(f"{kind} m=3 W=2 rows=9") for kind in ("hca", "csa"))
    assert hca.fit(declared) == (hca, [])
    fitting, reasons = csa.fit(declared)
    assert (fitting.sizes["m"], reasons) == (4, ["m=3"])
    assert [(str(case), why) for case, why in hca.outside(declared)] == []
