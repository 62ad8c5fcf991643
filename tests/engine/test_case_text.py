"""One line of text is a case: what can be written can be read, and what cannot be read is refused in a sentence."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from csa_spec.engine.case import CaseError
from csa_spec.plug.capabilities import Capabilities
from csa_spec.spec import Geometry, LayerKind, Yarn
from csa_spec.stages.layer.case import Feature, LayerCase, Row, Scores, Sinks, Values
from engine.drawing import case_of_json

SMALL_ROWS = st.lists(
    st.builds(
        Row,
        st.lists(st.integers(1, 3), min_size=1, max_size=2).map(tuple),
        st.integers(0, 2),
        st.integers(0, 1),
    ),
    min_size=1,
    max_size=3,
).map(tuple)
"""Small enough that rows of the same width, but padded differently, are common."""

ISSUE = LayerCase.of(Geometry(top_k=2, window=4), rows=(Row((3,)),))
FULL = LayerCase.of(
    Geometry(
        kind=LayerKind.CSA, compress_ratio=4, top_k=2, window=8, hidden=6, heads=4, head_dim=8, rope_dim=4,
        q_lora_rank=3, index_heads=2, index_head_dim=6, o_groups=2, o_lora_rank=5, rope_theta=500.0,
        compress_rope_theta=1600.0, yarn=Yarn(4.0, 64, 32.0, 2.0), norm_eps=1e-5,
    ),
    rows=(Row((3, 4), left_padding=2, start=8), Row((1,))),
    values=Values.GAUSSIAN, scores=Scores.NEAR_TIED, sinks=Sinks.EXTREME, seed=17,
    mode="cache", dtype="bfloat16", device="cuda",
)  # fmt: skip
FULL_LINE = (
    "csa m=4 k=2 W=8 E=6 H=4 D=8 R=4 q_lora=3 HI=2 DI=6 groups=2 o_lora=5 theta=500 compress_theta=1600 eps=1e-05 "
    "yarn=4/64/32/2 rows=2<3+4@8,1 values=gaussian scores=near-tied sinks=extreme seed=17 mode=cache dtype=bfloat16 "
    "device=cuda"
)


def test_a_line_leaves_out_what_is_at_its_simplest() -> None:
    """So the line of a shrunk case shows what matters."""
    assert str(LayerCase()) == "csa rows=1"
    assert str(ISSUE) == "csa k=2 W=4 rows=3"
    assert str(FULL) == FULL_LINE


@pytest.mark.parametrize(
    "case", [LayerCase(), ISSUE, FULL, LayerCase.of(Geometry(kind=LayerKind.SLIDING))], ids=str
)
def test_what_is_written_can_be_read(case: LayerCase) -> None:
    """As text and as JSON."""
    assert LayerCase.parse(str(case)) == case
    assert case_of_json(json.loads(json.dumps(case.to_json()))) == case


def test_words_may_come_in_any_order() -> None:
    """People write lines by hand."""
    kind, *words = FULL_LINE.split()
    assert LayerCase.parse("  ".join([kind, *reversed(words)])) == FULL


def test_ids_never_change() -> None:
    """Reports of different releases can be compared by them."""
    assert LayerCase().id == "5955e85a1023"
    assert FULL.id == "bef9ad64e902"


def test_every_field_counts_for_the_id() -> None:
    """Two cases that differ anywhere have different ids."""
    others = [
        LayerCase(),
        replace(FULL, seed=18),
        replace(FULL, mode=""),
        replace(FULL, dtype="float32"),
        replace(FULL, values=Values.INTEGERS),
        replace(FULL, rows=FULL.rows[::-1]),
        replace(FULL, norm_eps=1e-6),
        replace(FULL, yarn=None),
        replace(FULL, yarn=Yarn(4.0, 65, 32.0, 2.0)),
    ]
    assert len({case.id for case in [FULL, *others]}) == len(others) + 1


@settings(max_examples=100, phases=[Phase.generate, Phase.shrink])
@given(
    st.floats(1.001, 1e9),
    st.floats(1.001, 1e9),
    st.floats(1e-12, 1.0),
    st.builds(
        Yarn, st.floats(0.1, 100.0), st.integers(1, 2**20), st.floats(2.0, 99.0), st.floats(0.01, 1.9)
    ),
)
def test_constants_keep_every_digit(theta: float, compress_theta: float, eps: float, yarn: Yarn) -> None:
    """A line that rounds a constant would show another case."""
    geometry = Geometry(rope_theta=theta, compress_rope_theta=compress_theta, norm_eps=eps, yarn=yarn)
    assert LayerCase.parse(str(LayerCase.of(geometry))).geometry == geometry


@pytest.mark.parametrize("mode", ["cache", "use_cache", "two words", "a-b", "a=b", "chunks/3"])
def test_modes_survive_the_line(mode: str) -> None:
    """They are named by the candidate, which is free to use underscores."""
    assert LayerCase.parse(str(LayerCase(mode=mode))).mode == mode


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "unknown layer kind ''; choose from csa, hca, sliding"),
        ("dsa rows=3", "unknown layer kind 'dsa'; did you mean csa?"),
        ("csa rows=3 q=1", "'q=1' is not part of a case of layer; choose from seed, "),
        ("csa rows", "'' is not a row"),
        ("csa rows=3,", "'' is not a row"),
        ("csa rows=0", "needs documents of at least one token"),
        ("csa rows=3+", "'3+' is not a row"),
        ("csa rows=-1", "'-1' is not a row"),
        ("csa k=two rows=3", "'k=two' is not a whole number"),
        ("csa k=1.5 rows=3", "'k=1.5' is not a whole number"),
        ("csa k rows=3", "'k' is not a whole number"),
        ("csa rows=3 seed=x", "'seed=x' is not a whole number"),
        ("csa m=0 rows=3", "m (compression ratio) must be an integer of at least 1, not 0"),
        ("csa R=3 rows=3", "rope_dim 3 must be even"),
        ("csa groups=2 rows=3", "o_groups 2 must divide heads 1"),
        ("csa theta=nan rows=3", "theta has nan, which is not a finite number"),
        ("csa yarn=4/64 rows=3", "'yarn=4/64' must have four numbers"),
        ("csa yarn=0/64/32/1 rows=3", "YaRN needs a positive factor"),
        (
            "csa rows=3 values=large",
            "unknown values 'large'; choose from units, integers, gaussian, large-logits",
        ),
        ("csa rows=3 scores=even", "unknown scores 'even'; choose from"),
        ("csa rows=3 sinks=none", "unknown sinks 'none'; choose from"),
        ("csa rows=3 dtype=int8", "unknown dtype 'int8'; choose from"),
        ("csa rows=3 device=tpu", "unknown device 'tpu'; choose from cpu, cuda"),
    ],
)
def test_what_cannot_be_read_is_refused_in_a_sentence(text: str, sentence: str) -> None:
    """Always as a :class:`CaseError`, which is all that a caller has to catch."""
    with pytest.raises(CaseError) as refused:
        LayerCase.parse(text)
    assert sentence in str(refused.value)


def test_a_batch_needs_rows_with_tokens() -> None:
    """Nothing empty, nothing negative."""
    with pytest.raises(CaseError, match="at least one row"):
        LayerCase(rows=())
    for lengths, left_padding, start in (((), 0, 0), ((0,), 0, 0), ((1,), -1, 0), ((1,), 0, -1)):
        with pytest.raises(CaseError, match="at least one token, and nothing negative"):
            Row(lengths, left_padding, start)


def test_a_layout_spells_out_padding_documents_and_positions() -> None:
    """Padding has position 0 and belongs to no document."""
    positions, documents = replace(
        FULL, rows=(Row((2, 3), left_padding=1, start=8), Row((1,)))
    ).positions_and_documents()
    assert positions == [[0, 8, 9, 8, 9, 10], [0, 0, 0, 0, 0, 0]]
    assert documents == [[-1, 0, 0, 1, 1, 1], [0, -1, -1, -1, -1, -1]]


@settings(max_examples=200)
@given(SMALL_ROWS, st.integers(1, 3), st.frozensets(st.sampled_from(Feature)))
def test_taking_features_out_leaves_none_of_them(
    rows: tuple[Row, ...], m: int, features: frozenset[Feature]
) -> None:
    """And keeps the rest: all rows, their widths, and their tokens where no padding has to go."""
    case = LayerCase(compress_ratio=m, rows=rows)
    plainer = case.without(features)
    assert not plainer.features & features
    assert len(plainer.rows) == len(case.rows)
    assert case.without(frozenset()) == case
    if not features & {Feature.RIGHT_PADDING, Feature.LEFT_PADDING, Feature.INSIDE_A_BLOCK}:
        assert [sum(row.lengths) for row in plainer.rows] == [sum(row.lengths) for row in rows]


@settings(max_examples=200)
@given(SMALL_ROWS, st.integers(1, 3), st.frozensets(st.sampled_from(Feature)))
@example((Row((3,), left_padding=1), Row((4,))), 1, frozenset({Feature.LEFT_PADDING, Feature.RIGHT_PADDING}))
@example((Row((1, 1)), Row((2,))), 2, frozenset({Feature.INSIDE_A_BLOCK, Feature.RIGHT_PADDING}))
def test_a_candidate_is_never_given_what_it_declines(
    rows: tuple[Row, ...], m: int, declined: frozenset[Feature]
) -> None:
    """Not even as a consequence of taking something else out: rows without left padding may differ in length."""
    capabilities = Capabilities(lacks={(LayerKind.CSA, feature): "reason" for feature in declined})
    fitting, names = LayerCase(compress_ratio=m, rows=rows).fit(capabilities)
    assert not fitting.features & declined
    assert fitting.fit(capabilities) == (fitting, [])
    assert set(names) <= set(map(str, declined))
