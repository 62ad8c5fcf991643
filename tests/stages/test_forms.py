"""Arguments in the form that a candidate declares: lists with lengths, 32-bit indices, keys in pages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from engine.drawing import stage_corners
from torch import Tensor

import csa_spec
from csa_spec.bugs import find_bug
from csa_spec.bundle.write import write_bundles
from csa_spec.candidates.recognise import as_candidate
from csa_spec.checking import check_case
from csa_spec.engine.failures import Failure
from csa_spec.engine.shrink import shrink
from csa_spec.plug.candidate import Candidate, CandidateError
from csa_spec.plug.capabilities import Capabilities
from csa_spec.plug.layouts import Layout
from csa_spec.stages import STAGES, parse_case
from csa_spec.stages.attend.trial import AttendTrial
from csa_spec.strategies.attend import SPECIAL
from stages.right import attend_gather, attend_loops, attend_tiles, declaring, index_scores_kernel

PAGES = (1, 16, 64)


# RIGHT ONES, each in a way of its own


def loops_with_lengths(
    q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float, *, topk_length: Tensor
) -> Tensor:
    """Cut every list with Python's slices."""
    lists = [
        [row[:length] for row, length in zip(*pair, strict=True)]
        for pair in zip(indices.tolist(), topk_length.tolist(), strict=True)
    ]
    width = max((len(row) for rows in lists for row in rows), default=0)
    padded = [[row + [-1] * (width - len(row)) for row in rows] for rows in lists]
    return attend_loops(
        q, kv, torch.tensor(padded, dtype=torch.long).reshape(*q.shape[:2], width), sinks, scale
    )


def tiles_with_lengths(
    q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float, topk_length: Tensor
) -> Tensor:
    """Mask what lies behind the length in every tile; only ever read 32-bit indices."""
    assert indices.dtype == topk_length.dtype == torch.int32
    behind = torch.arange(indices.shape[-1]) >= topk_length[..., None]
    return attend_tiles(q, kv, indices.masked_fill(behind, -1).long(), sinks, scale)


def reads_all_pages(
    q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float, block_table: Tensor
) -> Tensor:
    """Put the keys of a row side by side, and go on as if there were no pages."""
    return attend_tiles(q, kv[block_table.long()].flatten(1, 2), indices, sinks, scale)


def reads_key_by_key(
    q: Tensor, kv: Tensor, indices: Tensor, sinks: Tensor, scale: float, block_table: Tensor
) -> Tensor:
    """Read only the pages that an index names."""
    size, own = kv.shape[1], torch.zeros(*indices.shape, kv.shape[2], dtype=kv.dtype)
    for place in (indices >= 0).nonzero().tolist():
        index = int(indices[tuple(place)])
        if index < size * block_table.shape[1]:
            own[tuple(place)] = kv[int(block_table[place[0], index // size]), index % size]
    none = (indices < 0) | (indices >= size * block_table.shape[1])
    flat = torch.arange(indices[0].numel()).view(indices[0].shape)
    return attend_tiles(q, own.flatten(1, 2), torch.where(none, -1, flat), sinks, scale)


def paged_with_lengths(
    q: Tensor,
    kv: Tensor,
    indices: Tensor,
    sinks: Tensor,
    scale: float,
    *,
    topk_length: Tensor,
    block_table: Tensor,
) -> Tensor:
    """Take every form at once."""
    behind = torch.arange(indices.shape[-1]) >= topk_length[..., None]
    return reads_all_pages(q, kv, indices.masked_fill(behind, -1).long(), sinks, scale, block_table)


def scores_of_pages(
    index_q: Tensor, index_k: Tensor, head_weights: Tensor, *, block_table: Tensor
) -> Tensor:
    """Score page by page."""
    scores = [index_q.new_zeros(*index_q.shape[:2], 0)]
    for pages in block_table.T:
        scores.append(index_scores_kernel(index_q, index_k[pages], head_weights))
    return torch.cat(scores, -1)


RIGHT: dict[str, tuple[Any, dict[str, Any]]] = {
    "loops with lengths": (loops_with_lengths, {"lengths": True, "invalid_indices": True}),
    "tiles with lengths": (tiles_with_lengths, {"lengths": True, "index_dtypes": {"int32"}}),
    "all pages": (reads_all_pages, {"paged": PAGES, "invalid_indices": True}),
    "key by key": (reads_key_by_key, {"paged": (48, 5), "invalid_indices": True}),
    "everything": (
        paged_with_lengths,
        {"paged": {32}, "lengths": True, "index_dtypes": {"int64", "int32"}},
    ),
    "pages of index keys": (scores_of_pages, {"paged": [64, 2]}),
}


def candidate_of(name: str) -> tuple[Any, str]:
    """Return a right function that declares its form, and its stage."""
    function, declared = RIGHT[name]

    def stage(*arguments: Any, **named: Any) -> Tensor:
        return function(*arguments, **named)

    stage.capabilities = Capabilities(**declared, batch_invariant=False)  # type: ignore[attr-defined]
    return stage, "index_scores" if function is scores_of_pages else "attend"


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", RIGHT)
def test_a_right_candidate_in_any_form_is_conformant(name: str, dtype: str) -> None:
    """Whatever stands behind lengths, in unused pages and in the table."""
    function, stage = candidate_of(name)
    report = csa_spec.check(function, stage=stage, profile="smoke", dtype=dtype)
    assert str(report.verdict) == "conformant", report.results[0].failures


# WHAT IS HANDED OVER


def handed(line: str, **declared: Any) -> tuple[AttendTrial, dict[str, Any]]:
    """Return a trial and what its candidate is called with."""
    candidate = Candidate("right", {"attend": attend_gather}, Capabilities(**declared))
    case = parse_case(line)
    trial = STAGES[case.stage].trial(candidate, case.fit(candidate.capabilities_of("attend"))[0])
    return trial, dict(trial.handed(trial.arguments).arguments)


def test_a_candidate_that_declares_nothing_gets_the_plain_form() -> None:
    """Whatever the case says."""
    line = "attend B=2 S=3 N=9 n=6 indices=shuffled"
    plain = handed(line)[1]
    other = handed(f"{line} lengths=ragged index_dtype=int32 page=16 spare=7")[1]
    assert list(plain) == list(other) == ["q", "kv", "indices", "sinks", "scale"]
    assert all(torch.equal(plain[name], other[name]) for name in ("q", "kv", "indices", "sinks"))


@pytest.mark.parametrize("layout", [Layout.PLAIN, Layout.EXPANDED])
@pytest.mark.parametrize("seed", range(5))
def test_lengths_cut_the_list_that_the_specification_sees(seed: int, layout: Layout) -> None:
    """What is behind a length is -1 there, and garbage for the candidate; some of it names a key."""
    line = f"attend B=3 S=9 N=30 n=20 indices=shuffled lengths=ragged seed={seed} layout={layout}"
    trial, given = handed(line, lengths=True)
    lists, lengths = trial.arguments["indices"], given["topk_length"]
    assert (given["indices"].dtype, lengths.dtype) == (torch.int64, torch.int32)
    behind = torch.arange(20) >= lengths[..., None]
    assert bool((lists[behind] == -1).all())
    assert torch.equal(given["indices"][~behind], lists[~behind])
    garbage = given["indices"][behind]
    assert bool(((garbage >= 0) & (garbage < 30)).any())
    assert bool(((garbage < -1) | (garbage >= 30)).any())
    assert lengths.min() == 0
    assert lengths.max() > 10


@pytest.mark.parametrize("page", [1, 3, 16, 64])
@pytest.mark.parametrize("keys", [0, 1, 16, 33])
def test_pages_hold_the_keys_and_poison(page: int, keys: int) -> None:
    """In an order of their own; no row shares a page, and what is no key is no usable number."""
    trial, given = handed(f"attend B=3 D=4 N={keys} n=2 page={page} spare=4 values=gaussian", paged={page})
    pages, table = given["kv"], given["block_table"].long()
    width = -(-keys // page)
    assert (table.shape, given["block_table"].dtype) == ((3, width), torch.int32)
    assert pages.shape == (3 * width + 3 + 4, page, 4)
    assert len(set(table.flatten().tolist())) == 3 * width
    assert torch.equal(pages[table].flatten(1, 2)[:, :keys], trial.arguments["kv"])
    rest = pages.clone()
    rest[table] = torch.nan
    assert bool((rest.isnan() | (rest > 1e38)).all())
    if width > 1:
        assert table[0].tolist() != list(range(width))


def test_the_table_has_garbage_for_pages_that_nobody_names() -> None:
    """Where unnamed keys hold anything; the named ones are still there."""
    line = "attend B=2 S=1 N=64 n=2 indices=shuffled unused=nan-unused page=2"
    trial, given = handed(line, paged={2})
    pages, table = given["kv"], given["block_table"]
    named = {index // 2 for index in trial.arguments["indices"][0, 0].tolist()}
    assert int((table[0] == -1).sum()) > 10
    for index in trial.arguments["indices"][0, 0].tolist():
        key = pages[int(table[0, index // 2]), index % 2]
        assert torch.equal(key, trial.arguments["kv"][0, index])
    unnamed = {int(table[0, number]) for number in range(32) if number not in named}
    assert bool(pages[list(unnamed - {-1})].isnan().any())


def test_holes_in_pages_lie_behind_the_last_page() -> None:
    """A candidate does not know how many keys the last page holds."""
    trial, _ = handed("attend S=40 N=17 n=30 indices=outside page=16", paged={16}, invalid_indices=True)
    indices = trial.arguments["indices"]
    assert not bool(((indices >= 17) & (indices < 32)).any())
    assert bool((indices >= 32).any())


# CASES


@pytest.mark.parametrize(
    "line",
    [
        "attend N=40 n=3 page=64 spare=300 lengths=ragged index_dtype=int32",
        "index_scores T=40 page=24 spare=9",
    ],
)
def test_a_shrunk_case_reads_back_and_stays_within_what_is_declared(line: str) -> None:
    """Its page is one of those that are declared."""
    case = parse_case(line)
    declared = Capabilities(paged=(16, case.page), lengths=True, index_dtypes={"int32"})
    stage = STAGES[case.stage]

    def judge(smaller: Any) -> Failure | None:
        assert parse_case(str(smaller)) == smaller
        return Failure(smaller) if smaller.fits(declared) else None

    smallest = shrink(Failure(case), judge, stage.passes).case
    assert smallest.page == 16
    assert smallest.spare == 0
    assert sum(smallest.sizes.values()) == sum(smallest.letters().values())


@pytest.mark.parametrize("text", ["attend page=-1", "attend spare=-2", "attend page=x", "attend lengths=x"])
def test_a_form_that_cannot_be_is_refused(text: str) -> None:
    """In one sentence."""
    with pytest.raises(ValueError, match=r"page|spare|lengths"):
        parse_case(text)


def test_a_case_without_a_form_is_run_in_the_one_that_is_declared() -> None:
    """Lines of others say nothing of it."""
    function, _ = candidate_of("everything")
    assert check_case(function, "attend B=2 S=3 N=40 n=6 indices=shuffled") == ""
    with pytest.raises(Failure) as failed:
        check_case(
            find_bug("uses_the_block_table_of_row_0").function, "attend B=2 D=4 N=40 n=6 values=gaussian"
        )
    assert "page=" in str(failed.value.case)


def test_corner_cases_reach_the_kinds_of_every_form() -> None:
    """Without a single draw."""
    for name in RIGHT:
        function, stage = candidate_of(name)
        candidate = as_candidate(function, name, stage)
        declared = candidate.capabilities_of(stage)
        corners = [case.fit(declared)[0] for case in stage_corners(stage)]
        reached = set[str]().union(*(STAGES[stage].trial(candidate, case).kinds() for case in corners))
        assert set(STAGES[stage].required("", declared)) <= reached, name


def test_numbers_of_pages_go_beyond_16_bits() -> None:
    """In a case that every run tries, whatever the page size."""
    (large,) = (case for case in SPECIAL if case.spare)
    for page in (1, 16, 64):
        case = replace(large, page=0).formed(Capabilities(paged={page}))
        assert case.spare > 2**15
        assert case.spare * page <= 2**22


# DECLARATIONS


@pytest.mark.parametrize(
    ("stage", "declared", "says"),
    [
        ("attend", {"lengths": True}, "topk_length"),
        ("attend", {"paged": (16,)}, "block_table"),
        ("index_scores", {"paged": (16,)}, "block_table"),
        ("attend", {"paged": (0,)}, "at most 8 page sizes"),
        ("attend", {"paged": range(1, 20)}, "at most 8 page sizes"),
        ("attend", {"paged": 16}, "at most 8 page sizes"),
        ("attend", {"index_dtypes": {"int16"}}, "a set out of int64, int32"),
        ("attend", {"index_dtypes": "int32"}, "a set out of int64, int32"),
        ("attend", {"lengths": 1}, "True or False"),
    ],
)
def test_a_declaration_that_does_not_fit_the_function_is_refused(
    stage: str, declared: dict[str, Any], says: str
) -> None:
    """Before anything is run."""
    plain = declaring(attend_gather if stage == "attend" else index_scores_kernel, **declared)
    with pytest.raises(CandidateError, match=says):
        as_candidate(plain, "plain", stage)


@pytest.mark.parametrize(
    ("stage", "declared", "says"),
    [
        ("select", {"lengths": True}, "no such form"),
        ("index_scores", {"index_dtypes": {"int32"}}, "no such form"),
        ("attend", {"paged": (16,), "gradients": True}, "declare one of the two"),
    ],
)
def test_a_form_that_a_stage_does_not_have_is_refused(
    stage: str, declared: dict[str, Any], says: str
) -> None:
    """One sentence says so."""

    def function(*arguments: Any, **named: Any) -> Tensor:
        raise AssertionError

    function.capabilities = Capabilities(**declared)  # type: ignore[attr-defined]
    with pytest.raises(csa_spec.UsageError, match=says):
        csa_spec.check(function, stage=stage, profile="smoke")


# REPORTS


def test_a_bundle_calls_in_the_declared_form(tmp_path: Path) -> None:
    """By name, with the very garbage."""
    for name, says in (
        ("ignores_the_lengths_of_lists", "topk_length=topk_length"),
        ("scores_pages_in_the_order_of_their_numbers", "block_table=block_table"),
    ):
        bug = find_bug(name)
        report = csa_spec.check(bug.candidate, stage=bug.stage, profile="smoke", fail_fast=True)
        assert list(write_bundles(report, bug.candidate, tmp_path / name))
        (script,) = (tmp_path / name).rglob("repro.py")
        assert says in script.read_text()
