"""Each document of a batch is attended alone, wherever it lies, and padding has no effect and no output."""
# ruff: noqa: D103

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from oracles import TOLERANCE, error, small_inputs
from torch import Tensor

from csa_spec.spec import (
    PADDING,
    BatchTrace,
    Document,
    DocumentTrace,
    Geometry,
    attend_batch,
    attend_document,
    split_documents,
)
from csa_spec.stages.layer.case import Scores
from csa_spec.stages.layer.inputs import Inputs

KINDS = ("csa", "hca", "sliding")
LAYOUTS = {
    "equal rows": ("13", "13"),
    "padded on the right": ("13", "5", "1"),
    "padded on the left": ("1<12", "5<8", "12<1"),
    "packed": ("4+9", "1+1+11"),
    "shifted": ("13@3", "13@7"),
    "everything": ("2<5+6@4", "10", "1<3+3+3@1000"),
}


def run(inputs: Inputs, geometry: Geometry) -> BatchTrace:
    return attend_batch(inputs.hidden, inputs.weights, geometry, inputs.positions, inputs.documents)


def alone(document: DocumentTrace, inputs: Inputs, geometry: Geometry, start: int) -> DocumentTrace:
    place = document.context.document
    tokens = inputs.hidden[place.row, place.columns].clone()
    return attend_document(tokens, Document(0, 0, len(tokens), start), inputs.weights, geometry)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", LAYOUTS.values(), ids=LAYOUTS)
def test_a_document_in_a_batch_gets_what_it_gets_alone(kind: str, rows: tuple[str, ...]) -> None:
    inputs, geometry = small_inputs(kind, *rows)
    trace = run(inputs, geometry)
    assert len(trace.documents) == sum(row.count("+") + 1 for row in rows)
    for document in trace.documents:
        place = document.context.document
        single = alone(document, inputs, geometry, place.start)
        assert error(trace.out[place.row, place.columns], single.out) <= TOLERANCE
        assert [q.selection for q in document.queries] == [q.selection for q in single.queries]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("start", [1, 2, 3, 10, 1000])
@pytest.mark.parametrize("seed", range(3))
def test_only_differences_of_positions_matter(kind: str, start: int, seed: int) -> None:
    inputs, geometry = small_inputs(kind, f"17@{start}", seed=seed, scores=Scores.SEPARATED, index_heads=8)
    (document,) = run(inputs, geometry).documents
    assert document.context.document.start == start
    unshifted = alone(document, inputs, geometry, 0)
    assert error(document.out, unshifted.out) <= TOLERANCE
    margins = [query.margin for query in document.queries if query.margin is not None]
    assert bool(margins) == (kind == "csa")
    assert all(margin > 1e-6 for margin in margins)
    assert [q.selection for q in document.queries] == [q.selection for q in unshifted.queries]
    assert not torch.equal(document.context.window_keys, unshifted.context.window_keys)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_counted_from_the_first_token_of_the_document_not_from_position_0(kind: str) -> None:
    inputs, geometry = small_inputs(kind, "7@2", compress_ratio=4)
    (document,) = run(inputs, geometry).documents
    expected = [[], [], [], [0], [0], [0], [0]] if kind != "sliding" else [[]] * 7
    assert [query.visible for query in document.queries] == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 2, 3, 4, 6, 11])
def test_the_first_tokens_of_a_document_get_what_they_get_without_the_rest(kind: str, length: int) -> None:
    inputs, geometry = small_inputs(kind, "13")
    (document,) = run(inputs, geometry).documents
    prefix = attend_document(inputs.hidden[0, :length], Document(0, 0, length, 0), inputs.weights, geometry)
    assert error(document.out[:length], prefix.out) <= TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", LAYOUTS.values(), ids=LAYOUTS)
def test_output_at_padding_is_exactly_zero_and_nowhere_else(kind: str, rows: tuple[str, ...]) -> None:
    inputs, geometry = small_inputs(kind, *rows)
    assert torch.equal((run(inputs, geometry).out == 0).all(-1), inputs.documents == PADDING)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("content", [torch.nan, torch.inf, 1e300, 0.0])
def test_content_and_position_of_padding_do_not_matter(kind: str, content: float) -> None:
    inputs, geometry = small_inputs(kind, *LAYOUTS["everything"])
    padding = inputs.documents == PADDING
    assert padding.any()
    other = replace(
        inputs,
        hidden=inputs.hidden.masked_fill(padding[..., None], content),
        positions=inputs.positions.masked_fill(padding, 999),
    )
    assert torch.equal(run(other, geometry).out, run(inputs, geometry).out)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("row", [0, 1, 2])
@pytest.mark.parametrize("number", [0, 1])
def test_other_documents_do_not_matter(kind: str, row: int, number: int) -> None:
    inputs, geometry = small_inputs(kind, "6+7@4", "3+10", "2<5+6")
    own = torch.zeros_like(inputs.documents, dtype=torch.bool)
    own[row] = inputs.documents[row] == number
    other = replace(inputs, hidden=torch.where(own[..., None], inputs.hidden, torch.nan))
    expected, got = run(inputs, geometry).out, run(other, geometry).out
    assert torch.equal(got[own], expected[own])
    assert got[~own & (inputs.documents != PADDING)].isnan().all()


@pytest.mark.parametrize("kind", KINDS)
def test_two_documents_are_not_one_long_document(kind: str) -> None:
    packed, geometry = small_inputs(kind, "6+7")
    joined = replace(
        packed, positions=torch.arange(13)[None], documents=torch.zeros(1, 13, dtype=torch.long)
    )
    packed_out, joined_out = run(packed, geometry).out, run(joined, geometry).out
    assert error(packed_out[:, :6], joined_out[:, :6]) <= TOLERANCE
    assert error(packed_out[:, 6:], joined_out[:, 6:]) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_padding_only_has_no_documents_and_no_output(kind: str) -> None:
    inputs, geometry = small_inputs(kind, "5", "5")
    trace = run(replace(inputs, documents=torch.full((2, 5), PADDING)), geometry)
    assert trace.documents == []
    assert torch.equal(trace.out, torch.zeros(2, 5, geometry.hidden, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["csa", "hca"])
def test_each_document_of_a_batch_can_be_told_its_selections(kind: str) -> None:
    inputs, geometry = small_inputs(kind, "7+6", "1<9")
    told = [
        [query.visible[:1] for query in document.queries] for document in run(inputs, geometry).documents
    ]
    trace = attend_batch(
        inputs.hidden, inputs.weights, geometry, inputs.positions, inputs.documents, selections=told
    )
    assert [[query.selection for query in document.queries] for document in trace.documents] == told
    assert error(trace.out, run(inputs, geometry).out) > 1e-3


def _split(positions: list[int], documents: list[int]) -> list[Document]:
    return split_documents(torch.tensor([positions]), torch.tensor([documents]))


def test_documents_are_found_row_by_row_from_left_to_right() -> None:
    positions = torch.tensor([[0, 5, 6, 7, 0, 1, 0], [3, 4, 5, 0, 0, 1, 2]])
    documents = torch.tensor([[-1, 0, 0, 0, 1, 1, -1], [4, 4, 4, -1, 2, 2, 2]])
    assert split_documents(positions, documents) == [
        Document(0, 1, 3, 5),
        Document(0, 4, 2, 0),
        Document(1, 0, 3, 3),
        Document(1, 4, 3, 0),
    ]


def test_one_id_on_both_sides_of_padding_names_two_documents() -> None:
    assert _split([0, 1, 0, 0, 1, 2], [7, 7, -1, 7, 7, 7]) == [Document(0, 0, 2, 0), Document(0, 3, 3, 0)]


def test_positions_of_padding_need_not_be_consecutive() -> None:
    assert _split([9, 2, 0, 1, 5, 5], [-1, -1, 0, 0, -1, -1]) == [Document(0, 2, 2, 0)]


def test_a_batch_without_columns_has_no_documents() -> None:
    assert split_documents(torch.zeros(2, 0, dtype=torch.long), torch.zeros(2, 0, dtype=torch.long)) == []


@pytest.mark.parametrize(
    "positions",
    [[0, 1, 3], [0, 2, 1], [2, 1, 0], [0, 0, 0], [0, 1, 0], [0, 0, 2]],
    ids=lambda positions: str(positions),
)
def test_positions_that_are_not_consecutive_are_refused(positions: list[int]) -> None:
    with pytest.raises(ValueError, match=r"^row 0: positions of document 3 are not consecutive$"):
        _split(positions, [3, 3, 3])


def test_the_refusal_names_the_row() -> None:
    positions, documents = torch.tensor([[0, 1], [0, 0]]), torch.tensor([[0, 0], [5, 5]])
    with pytest.raises(ValueError, match=r"^row 1: positions of document 5 are not consecutive$"):
        split_documents(positions, documents)


@pytest.mark.parametrize(
    ("positions", "documents"),
    [((2, 3), (3, 2)), ((2, 3), (2, 4)), ((1, 3), (2, 3)), ((3,), (3,)), ((1, 2, 3), (1, 2, 3)), ((), ())],
)
def test_shapes_that_are_not_those_of_a_batch_are_refused(
    positions: tuple[int, ...], documents: tuple[int, ...]
) -> None:
    sentence = f"positions {list(positions)} and documents {list(documents)} must both be [B, S]"
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        split_documents(_zeros(positions), _zeros(documents))


def test_the_layer_refuses_such_batches_too() -> None:
    inputs, geometry = small_inputs("csa", "3")
    with pytest.raises(ValueError, match="not consecutive"):
        run(replace(inputs, positions=torch.tensor([[0, 2, 1]])), geometry)
    with pytest.raises(ValueError, match="must both be"):
        run(replace(inputs, positions=torch.arange(3)), geometry)


def _zeros(shape: tuple[int, ...]) -> Tensor:
    return torch.zeros(shape, dtype=torch.long)
