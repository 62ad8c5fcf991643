"""Scripts of the stage ``compressor``."""

from __future__ import annotations

from collections.abc import Mapping

from csa_spec.scripting.comparing import two_runs
from csa_spec.scripting.stage_script import Law, StageScript, Task


class CompressorScript(StageScript):
    """Numbers by entry; a prefix of the tokens has the same complete blocks."""

    def laws(self) -> Mapping[str, Law]:
        """Return those of numbers, and the prefix."""
        return {**super().laws(), "prefix": self.prefix}

    def prefix(self, task: Task) -> list[str]:
        """Call with the first tokens only."""
        case, subject = task.trial.case, task.subject
        keep = case.seed % case.tokens
        entries = case.geometry.entry_count(keep)
        return two_runs(
            subject.call(),
            subject.call(hidden=f"hidden[:, :{keep}].contiguous()"),
            f"only the first {keep} tokens",
            2 * task.trial.expected[1][:, :entries],
            task.trial.arguments["hidden"].dtype,
            task.literals,
            at=task.failure.place,
            part=f"[:, :{entries}]",
            elementwise=True,
        )
