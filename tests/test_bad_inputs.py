"""Inputs that mean nothing end with exit code 2 and one sentence, which ``bad_inputs.txt`` has."""

from __future__ import annotations

import re
import time

import pytest
from bad_inputs import INPUTS, outcome, rows
from stages.toy import NormCase

from csa_spec.engine.case import CaseError
from csa_spec.stages import parse_case

SENTENCES = [sentence for _, _, sentence in rows()]


def without_details(sentence: str) -> str:
    """Return a sentence without what the parsers of a release of Python, or of safetensors, say."""
    theirs = r"(is not valid (?:TOML|JSON)|is not a readable safetensors file|written: \S+\.safetensors): .*"
    return re.sub(theirs, r"\1", sentence)


@pytest.mark.parametrize(("number", "sentence"), list(enumerate(SENTENCES)))
def test_a_bad_input_is_one_sentence_at_once(number: int, sentence: str) -> None:
    """No traceback, nothing made first, and nothing that a terminal would take for a command."""
    begin = time.process_time()
    code, said = outcome(INPUTS[number])
    assert (code, without_details(said)) == (2, without_details(sentence))
    assert said.isprintable()
    assert len(said) < 500
    assert time.process_time() - begin < 5


@pytest.mark.parametrize(
    "line",
    [
        "csa rows=65536",
        "csa rows=3@16777217 W=65536 k=65536",
        "csa E=7168 H=128 D=512 R=64 q_lora=1536 HI=64 DI=128 groups=16 o_lora=1024 k=1024 W=128 m=4 rows=64",
        "cache csa calls=4096,1,1,1 W=128",
        "attend S=65536 H=8 D=64",
        "attend N=65536 D=512 B=8 n=2048",
        "select T=65536 S=4096 k=1024",
        "index_scores T=65536 HI=64 DI=128 S=64",
        "compressor blocks=16384 m=4 D=512 E=64",
    ],
)
def test_large_cases_that_are_meant_stay_cases(line: str) -> None:
    """The limit is one of memory: sizes at which kernels switch, and those of the released models, are cases."""
    assert sum(parse_case(line).numbers.values()) > 0


def test_a_stage_that_says_nothing_of_its_memory_is_bounded_too() -> None:
    """By one tensor over all its sizes; it may be as large as it fits."""
    with pytest.raises(CaseError, match="745,059 GiB of memory, most of it for a tensor over all sizes"):
        NormCase(rows=1_000_000, tokens=99_999_999)
    assert NormCase(rows=1_000, tokens=1_000, channels=1_000).sizes["D"] == 1_000


def test_there_are_enough_and_each_is_another() -> None:
    """The table is worth reading."""
    assert len(INPUTS) >= 60
    assert len({bad.shown for bad in INPUTS}) == len(INPUTS)
