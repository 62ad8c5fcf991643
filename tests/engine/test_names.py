"""What is said of a name that is not known."""

from __future__ import annotations

import pytest

from csa_spec.plug.capabilities import DTYPES
from csa_spec.plug.names import did_you_mean, unknown
from csa_spec.stages import STAGES


@pytest.mark.parametrize(
    ("name", "known", "advice"),
    [
        ("atttend", STAGES, "did you mean attend?"),
        ("ATTEND", STAGES, "did you mean attend?"),
        ("s", ["S", "s1"], "did you mean S or s1?"),
        ("float", DTYPES, "did you mean float64 or float32 or float16?"),
        ("softmax", STAGES, f"choose from {', '.join(STAGES)}"),
        ("", STAGES, f"choose from {', '.join(STAGES)}"),
        (5, STAGES, f"choose from {', '.join(STAGES)}"),
        ("attend" * 10_000, STAGES, f"choose from {', '.join(STAGES)}"),
    ],
)
def test_a_close_name_is_suggested_and_all_names_where_none_is_close(
    name: object, known: list[str], advice: str
) -> None:
    """Whatever the case of its letters, and at once for a very long one."""
    assert unknown("name", name, known).partition("; ")[2] == advice


def test_what_it_is_and_of_what_stands_in_the_sentence() -> None:
    """And nothing that a terminal would take for a command."""
    assert unknown("check", "row", ["rows"], "attend") == "unknown check 'row' of attend; did you mean rows?"
    assert unknown("check", "\x1b[31mrow", ["a"]) == "unknown check '\\x1b[31mrow'; choose from a"
    assert did_you_mean("b", []) == ""
