"""The layer stage: equality with the specification, and the laws. One test per property.

Each test is parametrised by the plugin over candidates, layer kinds and dtypes.
"""

from __future__ import annotations

from collections.abc import Callable

Hold = Callable[[str], None]
STAGE = "layer"


def test_output_equals_the_specification(csa_hold: Hold) -> None:
    """Every output element is within its error budget, for some valid selection; every required kind is reached."""
    csa_hold("specification")


def test_future_tokens_do_not_change_earlier_outputs(csa_hold: Hold) -> None:
    """Replace all tokens from some column on; outputs before it stay."""
    csa_hold("future")


def test_rows_do_not_change_each_other(csa_hold: Hold) -> None:
    """Each row alone gives what it gives in the batch."""
    csa_hold("rows")


def test_a_prefix_gives_the_same_outputs_as_the_whole(csa_hold: Hold) -> None:
    """Cut the batch at some column; outputs before it stay."""
    csa_hold("prefix")


def test_permuting_the_batch_permutes_the_output(csa_hold: Hold) -> None:
    """Rows in another order give the same outputs in that order."""
    csa_hold("batch-order")


def test_two_runs_agree(csa_hold: Hold) -> None:
    """Bit for bit, unless the candidate declares that it is not deterministic."""
    csa_hold("repeat")


def test_inputs_are_not_mutated(csa_hold: Hold) -> None:
    """Hidden states, weights, positions and documents are the same bits after the call."""
    csa_hold("inputs")


def test_the_process_is_left_as_it_was(csa_hold: Hold) -> None:
    """Random generators, default dtype, threads, grad mode, working directory."""
    csa_hold("state")


def test_the_output_has_memory_of_its_own(csa_hold: Hold) -> None:
    """Not that of an input, of an earlier output, or memory that nobody wrote."""
    csa_hold("memory")


def test_a_call_answers_its_own_inputs(csa_hold: Hold) -> None:
    """A call does not return what the call before returned, or should have."""
    csa_hold("own-inputs")


def test_every_weight_matters_where_it_should(csa_hold: Hold) -> None:
    """Where replacing a weight clearly moves the specification's output, it moves the candidate's."""
    csa_hold("weights")


def test_gradients_equal_the_specification_s(csa_hold: Hold) -> None:
    """Of hidden states and every weight, none of the indexer's; only where the candidate declares gradients."""
    csa_hold("gradients")
