"""Scripts of the stage ``select``."""

from __future__ import annotations

import torch

from csa_spec.scripting.comparing import form, has_wrong_form
from csa_spec.scripting.literals import Literals
from csa_spec.scripting.stage_script import StageScript, Task, alone
from csa_spec.spec import SPEC
from csa_spec.stages.select.trial import SelectTrial


class SelectScript(StageScript):
    """The rules of a selection, since any choice among equal scores is right."""

    def right(self, task: Task) -> list[str]:
        """Return the lines that compare ``got`` with the rules."""
        trial = task.trial
        shape, dtypes, _ = trial.form(trial.arguments)
        lines = form(shape, dtypes, task.failure) if has_wrong_form(task.failure) else []
        return lines + _rules(trial, task.literals)

    def rows(self, task: Task) -> list[str] | None:
        """Call with each row alone; rows may have other numbers of picks."""
        return [*alone(task, "[row[0] for row in alone]"), *self.right(task)]


def _rules(trial: SelectTrial, literals: Literals) -> list[str]:
    """Return the rules of a selection in a few lines."""
    case, tolerance = trial.case, trial.capabilities.tie_tolerance
    slack = f" + {tolerance!r} * max(abs(least), abs(most))" if tolerance else ""
    lines = [
        f"right = {literals.of('right', _right_picks(trial))}  # among equal scores any choice is",
        f"for row, t in [(row, t) for row in range({case.rows}) for t in range({case.queries})]:",
        f"    visible = min({case.entries}, (int(positions[row, t]) + 1) // compress_ratio)",
        "    picks, seen = [s for s in got[row][t].tolist() if s != -1], scores[row, t].tolist()",
        '    print(f"row {row}, query {t}: right is {right[row, t].tolist()}, got {got[row][t].tolist()}")',
        "    assert all(0 <= s < visible for s in picks), "
        'f"query {t} may see entries below {visible}, got {picks}"',
        "    count = min(top_k, visible)",
        "    assert len(set(picks)) == len(picks) == count, "
        'f"expected {count} different entries, got {picks}"',
        "    rest = set(range(visible)) - set(picks)",
        "    least = min((seen[s] for s in picks if seen[s] == seen[s]), default=torch.inf)",
        "    most = max((seen[s] for s in rest if seen[s] == seen[s]), default=-torch.inf)",
        f"    assert not most > least{slack}, "
        'f"leaves out a score of {most} and selects one of {least}"',
    ]
    if trial.capabilities.lowest_index_first:
        lines += [
            "    later = max((s for s in picks if seen[s] == least), default=-1)",
            "    assert not any(seen[s] == least and s < later for s in rest), "
            'f"a tie is not broken towards the lowest entry: {picks}"',
        ]
    return lines


def _right_picks(trial: SelectTrial) -> torch.Tensor:
    """Return what the specification selects, ``[B, S, k]``, with -1 at the end."""
    case = trial.case
    right = torch.full((case.rows, case.queries, case.top_k), -1)
    for b, t in trial.places:
        visible = trial.visible(b, t)
        scores = trial.arguments["scores"][b, t, :visible].nan_to_num(-torch.inf, torch.inf, -torch.inf)
        picks = sorted(SPEC.select(range(visible), scores.tolist(), case.top_k))
        right[b, t, : len(picks)] = torch.tensor(picks, dtype=torch.long)
    return right
