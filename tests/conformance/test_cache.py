"""The stage cache: any schedule of calls gives what one call gives, and good manners. One test per property.

Each test is parametrised by the plugin over candidates, layer kinds and dtypes.
"""

from __future__ import annotations

from collections.abc import Callable

Hold = Callable[[str], None]
STAGE = "cache"


def test_any_schedule_of_calls_gives_what_one_call_gives(csa_hold: Hold) -> None:
    """Chunks, single tokens, reorder, rollback, ...: the answer is that of the tokens that are then in each row."""
    csa_hold("specification")


def test_two_runs_agree(csa_hold: Hold) -> None:
    """Bit for bit, unless the candidate declares that it is not deterministic."""
    csa_hold("repeat")


def test_inputs_are_not_mutated(csa_hold: Hold) -> None:
    """All arguments are the same bits after the calls."""
    csa_hold("inputs")


def test_the_process_is_left_as_it_was(csa_hold: Hold) -> None:
    """Random generators, default dtype, threads, grad mode, working directory."""
    csa_hold("state")


def test_the_output_has_memory_of_its_own(csa_hold: Hold) -> None:
    """Not that of an input, of an earlier output, or memory that nobody wrote."""
    csa_hold("memory")


def test_a_call_answers_its_own_inputs(csa_hold: Hold) -> None:
    """A new stream remembers nothing of the one before."""
    csa_hold("own-inputs")
