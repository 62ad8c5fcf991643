"""What the suite must say about every wrong function of the catalogue that is a stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from csa_spec.bugs import find_bug

ALL = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class Wrong:
    """What the suite must say about a wrong function."""

    stage: str
    function: Callable[..., Any]
    kinds: tuple[str, ...]
    """Kinds of failure that the check "specification" must find, each of them"""
    also: tuple[str, ...] = ()
    """Kinds that it may find beside them: the same mistake on other data"""
    dtypes: tuple[str, ...] = ALL
    """Where it is wrong, and not merely rounded"""
    size: int = 12
    """Bound on the sum of sizes of the shrunk case"""


WIDER = ("float32", "float16")
"""Where rounding to bfloat16 is a mistake; in bfloat16 it changes nothing at all."""


def _table(stage: str, *rows: tuple[Any, ...], **common: Any) -> dict[str, Wrong]:
    table = {}
    for name, kinds, *rest in rows:
        options = rest[0] if rest else {}
        table[name] = Wrong(stage, find_bug(name).function, tuple(kinds.split()), **(common | options))
    return table


WRONG: dict[str, Wrong] = {
    **_table(
        "attend",
        ("nan_in_an_empty_first_tile", "NotFinite"),
        ("starts_from_row_zero", "NotZero", {"also": ("NotFinite",)}),  # row 0 may hold NaN
        ("drops_the_sink", "WrongNumbers"),
        ("scales_the_sink", "WrongNumbers"),
        ("subtracts_the_sink", "WrongNumbers"),
        # What was a small number may be read as a huge one, and then no key matters.
        ("reads_the_sink_as_bfloat16", "WrongNumbers", {"also": ("SeesTooLittle", "NotFinite")}),
        ("counts_the_sink_in_every_tile", "WrongNumbers", {"size": 24}),
        ("gives_every_head_the_first_sink", "WrongNumbers"),
        ("hides_key_zero", "SeesTooLittle", {"also": ("WrongNumbers",)}),
        ("takes_none_for_row_zero", "SeesTooMuch NotZero", {"also": ("WrongNumbers", "NotFinite")}),
        ("wraps_none_to_the_last_row", "SeesTooMuch NotZero", {"also": ("WrongNumbers", "NotFinite")}),
        ("reads_padded_lanes", "SeesTooMuch NotZero", {"also": ("WrongNumbers", "NotFinite")}),
        ("ignores_the_first_index", "SeesTooMuch SeesTooLittle", {"also": ("NotFinite",)}),
        ("ignores_the_list", "SeesTooMuch SeesTooLittle", {"also": ("NotFinite",)}),
        ("stops_at_the_first_none", "SeesTooLittle ReturnsZeros", {"also": ("WrongNumbers",)}),
        ("reads_as_many_as_there_are", "SeesTooLittle ReturnsZeros", {"also": ("WrongNumbers",)}),
        ("reads_whole_tiles_only", "SeesTooLittle", {"also": ("WrongNumbers",), "size": 24}),
        ("has_no_running_maximum", "NotFinite"),
        (
            "keeps_old_weights_when_the_maximum_grows",
            "WrongNumbers",
            {"also": ("SeesTooLittle",), "size": 24},
        ),
        (
            "takes_the_scale_from_the_head_dim",
            "WrongNumbers",
            {"also": ("SeesTooLittle",)},
        ),  # one-hot where it is not
        ("confuses_powers_of_two_and_e", "WrongNumbers"),
        ("takes_keys_of_the_next_row", "SeesTooLittle", {"also": ("NotFinite", "WrongNumbers")}),
        ("sees_what_other_queries_gathered", "SeesTooMuch", {"also": ("WrongNumbers", "NotZero")}),
        ("counts_missing_rows_as_zeros", "WrongNumbers"),
        ("masks_with_a_finite_number", "NotZero"),
        ("multiplies_unused_rows_by_zero", "NotFinite"),
        ("forgets_half_of_the_queries", "AnswersAnother", {"also": ("NotZero",)}),
        ("rounds_to_bfloat16", "WrongNumbers", {"dtypes": WIDER}),
        ("returns_zeros", "ReturnsZeros"),
        ("returns_its_accumulator", "WrongDtype"),
        ("returns_heads_first", "WrongShape"),
        ("fails_without_keys", "CandidateRaised[IndexError]"),
    ),
    **_table(
        "select",
        ("sees_the_unfinished_block", "PickNotVisible"),
        ("hides_a_block_from_its_last_token", "WrongCount", {"also": ("BetterLeftOut",)}),
        ("sees_everything", "PickNotVisible"),
        ("masks_after_the_top_k", "WrongCount"),
        ("leaves_hidden_picks_in_the_list", "PickNotVisible"),
        ("fills_up_with_the_best", "PickedTwice"),
        ("finds_equal_scores_at_the_same_place", "PickedTwice"),
        ("takes_everything_visible", "WrongCount"),
        ("takes_one_too_few", "WrongCount"),
        ("takes_every_tie", "WrongCount"),
        ("drops_ties", "WrongCount"),
        ("ranks_by_the_high_bits", "BetterLeftOut", {"size": 16}),
        ("ranks_in_bfloat16", "BetterLeftOut", {"dtypes": WIDER}),
        # In 16 bits no 4096 of 70000 scores share their high bits and differ in the low ones.
        ("buffers_4096_candidates", "BetterLeftOut", {"dtypes": ("float32",), "size": 300_000}),
        ("writes_nan_nowhere", "PickOutOfRange"),
        ("pads_with_zeros", "WrongCount"),
        ("selects_for_the_last_query", "PickNotVisible", {"also": ("BetterLeftOut",)}),
        ("selects_by_the_first_query", "BetterLeftOut"),
        ("assumes_positions_from_zero", "WrongCount", {"also": ("BetterLeftOut",)}),
        ("has_one_position_for_a_call", "BetterLeftOut", {"also": ("WrongCount",)}),
        ("takes_positions_of_the_first_row", "WrongCount", {"also": ("BetterLeftOut",)}),
        ("takes_the_worst", "BetterLeftOut"),
        ("takes_positive_scores_only", "WrongCount"),
        ("points_behind_the_entries", "PickOutOfRange"),
    ),
    **_table(
        "index_scores",
        ("has_no_relu", "WrongNumbers"),
        ("folds_heads", "WrongNumbers"),
        ("applies_relu_to_the_terms", "WrongNumbers"),
        ("takes_magnitudes", "WrongNumbers"),
        ("squashes_weights", "WrongNumbers"),
        ("takes_the_mean_over_heads", "WrongNumbers"),
        ("scales_by_the_head_dim", "WrongNumbers"),
        ("scores_whole_tiles_only", "WrongNumbers"),
        ("leaves_minus_infinity", "NotFinite"),
        ("takes_weights_of_the_next_query", "WrongNumbers"),
        ("takes_entries_of_the_next_row", "WrongNumbers"),
        ("scores_for_the_last_query", "AnswersAnother"),
        ("scores_in_bfloat16", "WrongNumbers", {"dtypes": WIDER}),
        ("uses_one_head", "WrongNumbers", {"also": ("ReturnsZeros",)}),  # a negative product is no score
    ),
    # Where another token wins a nearly one-hot pooling, what should have won has no effect: SeesTooLittle beside.
    **_table(
        "compressor",
        ("swaps_the_halves", "WrongNumbers"),
        ("does_not_overlap", "SeesTooLittle"),
        ("pools_its_own_block_twice", "SeesTooLittle"),
        ("reads_two_blocks_back", "SeesTooMuch"),
        ("reverses_the_bias", "WrongNumbers"),
        ("pools_one_token_late", "SeesTooMuch"),
        ("drops_the_bias", "WrongNumbers"),
        ("has_one_softmax_over_channels", "WrongNumbers"),
        ("shares_weights_between_channels", "WrongNumbers"),
        ("overflows_with_large_gates", "NotFinite"),
        ("rotates_at_the_last_token", "WrongNumbers"),
        ("rotates_at_the_entry", "WrongNumbers"),
        (
            "rotates_at_zero",
            "WrongNumbers",
            {"also": ("AnswersAnother",)},
        ),  # where blocks are alike, all entries are
        ("rotates_halves", "WrongNumbers"),
        ("rotates_leading_channels", "WrongNumbers"),
        ("ignores_yarn", "WrongNumbers"),
        ("rotates_with_the_main_theta", "WrongNumbers"),
        ("starts_from_zero_logits", "WrongNumbers"),
        # Logits of -20000 are coarser than a whole softmax in 16 bits.
        (
            "starts_from_minus_ten_thousand",
            "SeesTooLittle",
            {"also": ("ReturnsZeros",), "dtypes": ("float32",)},
        ),
        ("forgets_the_norm", "WrongNumbers"),
        ("ignores_the_norm_weight", "WrongNumbers"),
        ("norms_after_the_rotation", "WrongNumbers"),
        ("pools_the_tail", "WrongShape"),
        ("overlaps_with_the_row_before", "WrongNumbers"),
        ("answers_for_the_block_before", "AnswersAnother"),
        ("pools_in_bfloat16", "WrongNumbers", {"dtypes": WIDER}),
        also=("SeesTooLittle",),
    ),
}
"""Wrong functions by name."""
