"""What a stage says about its scripts, in one object. The base fits stages whose output is numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from csa_spec.engine.failures import Failure, NotBatchInvariant
from csa_spec.engine.stage import SPECIFICATION
from csa_spec.scripting.comparing import form, has_wrong_form, within
from csa_spec.scripting.literals import Literals
from csa_spec.scripting.subject import Callee, Subject


@dataclass
class Task:
    """A failure, and the script that is being written about it."""

    trial: Any
    """The candidate on the failing case"""
    failure: Failure
    subject: Subject
    literals: Literals


Law = Callable[[Task], "list[str] | None"]


class StageScript:
    """How scripts call a stage, and what they compare.

    The base needs of a trial ``arguments``, ``batched``, ``form``, and ``expected``: what is right and by
    how much each number may be off.
    """

    shows_calls = False
    """Whether a script shows what ``failure.context`` says"""

    # What a README says.

    def legend(self, case: Any) -> str:
        """Return a sentence on words that its failures use."""
        return ""

    # How the stage is called.

    def arguments(self, trial: Any) -> dict[str, Any]:
        """Return what the script must make, by variable, in the order of the call."""
        return dict(trial.handed(trial.arguments).arguments)

    def write_call(self, subject: Subject, trial: Any, callee: Callee) -> None:
        """Complete a subject that has all arguments: ``subject.call()`` returns a tensor on the CPU."""
        tensors, hand_over, handed = subject.tensors, callee.hand_over, trial.handed(trial.arguments)
        subject.batched, subject.function, by_name = handed.batched, callee.expression, handed.by_name
        given = {name: hand_over.format(name) if name in tensors else name for name in subject.names}
        words = (f"{name}={word}" if name in by_name else word for name, word in given.items())
        subject.plain_call = f"{callee.expression}({', '.join(words)})"
        extract = self.output_of_result()
        if callee.converts or callee.hand_over != "{}" or extract:
            body = [f"out = {subject.plain_call}", *extract, *callee.returns()]
            subject.define("run", subject.names, body)
            subject.function = "run"
        else:
            subject.keywords = by_name

    def output_of_result(self) -> list[str]:
        """Return the lines that make the output of what was returned, both called ``out``."""
        return []

    # What a script compares, by check.

    def laws(self) -> Mapping[str, Law]:
        """Return what writes the body of a script, by the name of the check."""
        return {SPECIFICATION: self.specification, "rows": self.rows}

    def body(self, check: str, task: Task) -> list[str] | None:
        """Return the lines of a check; None where a few lines cannot show it."""
        law = self.laws().get(check)
        bits_or_form = has_wrong_form(task.failure) or isinstance(task.failure, NotBatchInvariant)
        if law is None or (check != SPECIFICATION and bits_or_form):
            return None  # laws compare numbers; a wrong form is in the script of the specification
        return law(task)

    def specification(self, task: Task) -> list[str] | None:
        """Call, and compare the answer with the specification."""
        return [f"got = {task.subject.call()}", *self.right(task)]

    def right(self, task: Task) -> list[str]:
        """Return the lines that compare ``got`` with the specification."""
        shape, dtypes, _ = task.trial.form(task.trial.arguments)
        expected, allowed, several = self.numbers(task)
        numbers = within(expected, allowed, several, task.failure.place, task.literals)
        return [*form(shape, dtypes, task.failure), *self.compared(task), *numbers]

    def compared(self, task: Task) -> list[str]:
        """Return the lines that leave of ``got`` what is compared."""
        return []

    def numbers(self, task: Task) -> tuple[Any, Any, bool]:
        """Return what is right, the allowed errors, and whether both have several selections in front."""
        return (*task.trial.expected, False)

    def rows(self, task: Task) -> list[str] | None:
        """Call with each row alone, whose numbers must be right."""
        return [*alone(task), *self.right(task)]


def alone(task: Task, joined: str = "torch.cat(alone)") -> list[str]:
    """Return the lines that call with each row alone; ``got`` is what they make together."""
    subject, trial = task.subject, task.trial
    return [
        "# Each row alone:",
        "alone = [",
        f"    {subject.call(**subject.each('{}[row : row + 1]'))}",
        f"    for row in range({len(trial.arguments[trial.batched[0]])})",
        "]",
        f"got = {joined}",
    ]
