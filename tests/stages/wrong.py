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


MEMORY = {
    "also": (
        "WrongNumbers",
        "SeesTooLittle",
        "SeesTooMuch",
        "AnswersAnother",
        "NotZero",
        "ReturnsZeros",
        "NotFinite",
    )
}
"""What memory of others happens to hold decides what is wrong"""
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
        ("returns_nan_when_the_first_tile_is_empty", "NotFinite"),
        (
            "attends_to_row_0_where_a_query_has_no_keys",
            "NotZero",
            {"also": ("NotFinite",)},
        ),  # row 0 may hold NaN
        ("drops_the_sink", "WrongNumbers"),
        ("scales_the_sink", "WrongNumbers"),
        ("negates_the_sink", "WrongNumbers"),
        # What was a small number may be read as a huge one, and then no key matters.
        ("reads_the_sink_as_bfloat16", "WrongNumbers", {"also": ("SeesTooLittle", "NotFinite")}),
        ("counts_the_sink_in_every_tile", "WrongNumbers", {"size": 24}),
        ("uses_the_sink_of_head_0_for_every_head", "WrongNumbers"),
        ("drops_key_0_where_the_list_has_a_minus_one", "SeesTooLittle", {"also": ("WrongNumbers",)}),
        ("reads_index_minus_one_as_row_0", "SeesTooMuch NotZero", {"also": ("WrongNumbers", "NotFinite")}),
        (
            "reads_index_minus_one_as_the_last_row",
            "SeesTooMuch NotZero",
            {"also": ("WrongNumbers", "NotFinite")},
        ),
        ("reads_padding_lanes_as_row_0", "SeesTooMuch", {"also": ("NotZero", "WrongNumbers", "NotFinite")}),
        ("ignores_the_first_index", "SeesTooMuch SeesTooLittle", {"also": ("NotFinite",)}),
        ("ignores_the_index_list", "SeesTooMuch", {"also": ("SeesTooLittle", "NotFinite", "ReturnsZeros")}),
        ("stops_at_the_first_minus_one", "SeesTooLittle ReturnsZeros", {"also": ("WrongNumbers",)}),
        (
            "takes_the_count_of_valid_indices_for_the_length",
            "SeesTooLittle ReturnsZeros",
            {"also": ("WrongNumbers",)},
        ),
        ("reads_whole_tiles_only", "SeesTooLittle", {"also": ("WrongNumbers",), "size": 56}),
        ("does_not_subtract_the_maximum", "NotFinite"),
        (
            "does_not_rescale_when_the_maximum_grows",
            "WrongNumbers",
            {"also": ("SeesTooLittle",), "size": 24},
        ),
        (
            "computes_the_scale_from_the_head_dim",
            "WrongNumbers",
            {"also": ("SeesTooLittle",)},
        ),  # one-hot where it is not
        ("uses_exp2_without_log2_e", "WrongNumbers"),
        (
            "reads_keys_of_the_next_batch_row",
            "SeesTooLittle",
            {"also": ("NotFinite", "WrongNumbers", "AnswersAnother")},
        ),
        (
            "attends_to_the_keys_of_all_queries",
            "SeesTooMuch",
            {"also": ("WrongNumbers", "NotZero", "SeesTooLittle")},
        ),
        ("counts_unused_slots_as_zero_keys", "WrongNumbers"),
        ("masks_logits_with_a_finite_number", "NotZero"),
        ("multiplies_unused_rows_by_zero", "NotFinite"),
        ("answers_every_second_query_with_the_one_before", "AnswersAnother", {"also": ("NotZero",)}),
        ("rounds_to_bfloat16", "WrongNumbers", {"dtypes": WIDER}),
        ("returns_zeros", "ReturnsZeros"),
        ("returns_the_dtype_of_its_accumulator", "WrongDtype"),
        ("returns_heads_first", "WrongShape"),
        ("fails_without_keys", "CandidateRaised[IndexError]"),
        ("reads_q_and_kv_as_packed", "NotFinite", MEMORY),
        ("reads_keys_alone_as_packed", "NotFinite", MEMORY),
        ("takes_channels_for_adjacent", "NotFinite", MEMORY),
        ("reads_from_the_beginning_of_the_memory", "NotFinite", MEMORY),
        ("reads_from_the_aligned_address_below", "NotFinite", MEMORY),
        ("flattens_its_inputs_by_a_view", "CandidateRaised[RuntimeError]"),
        ("checks_the_layout_of_its_queries_only", "SeesTooLittle", MEMORY),
        ("gives_its_scratch_the_strides_of_the_queries", "AnswersAnother", MEMORY),
        ("exports_what_requires_grad", "CandidateRaised[BufferError]"),
    ),
    **_table(
        "select",
        ("sees_the_unfinished_block", "PickNotVisible"),
        ("hides_a_block_from_its_last_token", "WrongCount", {"also": ("MissedHigherScore",)}),
        ("sees_everything", "PickNotVisible"),
        ("masks_after_the_top_k", "WrongCount"),
        ("leaves_hidden_entries_in_the_list", "PickNotVisible"),
        ("fills_the_list_with_the_best_entry", "PickedTwice"),
        ("maps_equal_scores_to_the_same_entry", "PickedTwice"),
        ("selects_every_visible_entry", "WrongCount"),
        ("selects_one_entry_too_few", "WrongCount"),
        ("selects_every_entry_tied_at_the_threshold", "WrongCount"),
        ("drops_entries_tied_at_the_threshold", "WrongCount"),
        ("ranks_by_sign_and_exponent_only", "MissedHigherScore", {"size": 16}),
        ("ranks_in_bfloat16", "MissedHigherScore", {"dtypes": WIDER}),
        # In 16 bits no 4096 of 70000 scores share their high bits and differ in the low ones.
        ("keeps_at_most_4096_candidates", "MissedHigherScore", {"dtypes": ("float32",), "size": 300_000}),
        ("leaves_the_slots_of_nan_scores_unwritten", "PickOutOfRange"),
        ("scores_hidden_entries_as_zero", "WrongCount"),
        ("gives_every_query_the_selection_of_the_last", "PickNotVisible", {"also": ("MissedHigherScore",)}),
        ("ranks_by_the_scores_of_the_first_query", "MissedHigherScore"),
        ("assumes_positions_start_at_zero", "WrongCount", {"also": ("MissedHigherScore",)}),
        (
            "uses_the_position_of_the_first_query_for_all",
            "MissedHigherScore",
            {"also": ("WrongCount", "PickNotVisible")},
        ),
        (
            "uses_the_positions_of_the_first_row",
            "WrongCount",
            {"also": ("MissedHigherScore", "PickNotVisible")},
        ),
        ("selects_the_lowest_scoring_entries", "MissedHigherScore"),
        ("drops_entries_that_score_zero_or_less", "WrongCount"),
        ("pads_the_list_with_the_number_of_entries", "PickOutOfRange"),
        ("reads_scores_as_packed", "MissedHigherScore"),
    ),
    **_table(
        "index_scores",
        ("has_no_relu", "WrongNumbers"),
        ("folds_heads_into_one_query", "WrongNumbers"),
        ("applies_the_relu_after_the_head_weights", "WrongNumbers"),
        ("takes_absolute_values_instead_of_a_relu", "WrongNumbers"),
        ("applies_a_sigmoid_to_the_head_weights", "WrongNumbers"),
        ("averages_over_heads", "WrongNumbers"),
        ("scales_scores_by_the_head_dim", "WrongNumbers"),
        ("scores_whole_tiles_only", "WrongNumbers"),
        ("leaves_minus_infinity_in_columns_behind_the_chunk", "NotFinite"),
        ("uses_the_head_weights_of_the_next_query", "WrongNumbers"),
        ("uses_the_index_keys_of_the_next_row", "WrongNumbers"),
        ("gives_every_query_the_scores_of_the_last", "AnswersAnother"),
        ("scores_in_bfloat16", "WrongNumbers", {"dtypes": WIDER}),
        ("uses_only_the_first_head", "WrongNumbers"),
        (
            "reads_index_keys_as_packed",
            "NotFinite",
            {"also": ("WrongNumbers", "ReturnsZeros", "AnswersAnother")},
        ),
        ("joins_rows_and_queries_by_a_view", "CandidateRaised[RuntimeError]"),
        also=("ReturnsZeros",),  # a negative product is no score, and small cases have few of them
    ),
    # Where another token wins a nearly one-hot pooling, what should have won has no effect: SeesTooLittle.
    **_table(
        "compressor",
        ("swaps_the_halves", "WrongNumbers"),
        ("does_not_overlap", "SeesTooLittle"),
        ("pools_its_own_block_twice", "SeesTooLittle"),
        ("reads_two_blocks_back", "SeesTooMuch"),
        ("reverses_the_bias", "WrongNumbers"),
        ("starts_blocks_one_token_early", "SeesTooMuch"),
        ("drops_the_bias", "WrongNumbers"),
        ("takes_the_softmax_over_channels", "WrongNumbers"),
        ("shares_weights_across_channels", "WrongNumbers"),
        ("overflows_with_large_gates", "NotFinite"),
        ("rotates_at_the_last_token", "WrongNumbers"),
        ("rotates_by_the_number_of_the_entry", "WrongNumbers"),
        (
            "rotates_at_position_zero",
            "WrongNumbers",
            {"also": ("AnswersAnother",)},
        ),  # where blocks are alike, all entries are
        ("rotates_half_split_pairs", "WrongNumbers"),
        ("rotates_leading_channels", "WrongNumbers"),
        ("ignores_yarn", "WrongNumbers"),
        ("rotates_with_the_main_theta", "WrongNumbers"),
        ("counts_zeros_as_the_block_before_the_first", "WrongNumbers"),
        # Logits of -20000 are coarser than a whole softmax in 16 bits.
        (
            "masks_the_block_before_the_first_with_a_finite_number",
            "SeesTooLittle",
            {"also": ("ReturnsZeros",)},
        ),
        ("forgets_the_norm", "WrongNumbers"),
        ("ignores_the_norm_weight", "WrongNumbers"),
        ("norms_after_the_rotation", "WrongNumbers"),
        ("pools_the_tail", "WrongShape"),
        ("overlaps_with_the_row_before", "WrongNumbers"),
        ("returns_the_previous_entry", "AnswersAnother"),
        ("pools_in_bfloat16", "WrongNumbers", {"dtypes": WIDER}),
        ("reads_weights_in_the_order_of_their_memory", "NotFinite", MEMORY),
        ("compresses_hidden_states_as_packed", "NotFinite", MEMORY),
        also=("SeesTooLittle",),
    ),
}
"""Wrong functions by name."""
