"""The stage compressor: equality with the specification, and laws. One test per property.

Each test is parametrised by the plugin over candidates and dtypes.
"""

from __future__ import annotations

from collections.abc import Callable

Hold = Callable[[str], None]
STAGE = "compressor"


def test_entries_equal_the_specification(csa_hold: Hold) -> None:
    """Every element is within its error budget."""
    csa_hold("specification")


def test_rows_do_not_change_each_other(csa_hold: Hold) -> None:
    """Each row alone gives what it gives in the batch."""
    csa_hold("rows")


def test_a_prefix_gives_the_same_entries_as_the_whole(csa_hold: Hold) -> None:
    """Later tokens never change an entry."""
    csa_hold("prefix")


def test_two_runs_agree(csa_hold: Hold) -> None:
    """Bit for bit, unless the candidate declares that it is not deterministic."""
    csa_hold("repeat")


def test_inputs_are_not_mutated(csa_hold: Hold) -> None:
    """All arguments are the same bits after the call."""
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


def test_gradients_equal_the_specification_s(csa_hold: Hold) -> None:
    """Of every argument; only where the candidate declares gradients."""
    csa_hold("gradients")


def test_what_is_declared_away_is_refused_or_right(csa_hold: Hold) -> None:
    """Just beyond each declared limit; never silently wrong."""
    csa_hold("limits")
