"""Inputs that mean nothing end with exit code 2 and one sentence, which ``bad_inputs.txt`` has."""

from __future__ import annotations

import re
import time

import pytest
from bad_inputs import INPUTS, outcome, rows

SENTENCES = [sentence for _, _, sentence in rows()]


def without_details(sentence: str) -> str:
    """Return a sentence without what the parsers of a release of Python say."""
    return re.sub(r"(is not valid (?:TOML|JSON)): .*", r"\1", sentence)


@pytest.mark.parametrize(("number", "sentence"), list(enumerate(SENTENCES)))
def test_a_bad_input_is_one_sentence_at_once(number: int, sentence: str) -> None:
    """No traceback, nothing made first, and nothing that a terminal would take for a command."""
    begin = time.process_time()
    code, said = outcome(INPUTS[number])
    assert (code, without_details(said)) == (2, without_details(sentence))
    assert said.isprintable()
    assert len(said) < 500
    assert time.process_time() - begin < 5


def test_there_are_enough_and_each_is_another() -> None:
    """The table is worth reading."""
    assert len(INPUTS) >= 60
    assert len({bad.shown for bad in INPUTS}) == len(INPUTS)
