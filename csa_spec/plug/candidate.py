"""The candidate: what a user plugs in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from csa_spec.plug.call import Answer, Caller, LocalCaller, Request, overwrite
from csa_spec.plug.capabilities import Capabilities
from csa_spec.plug.plain import plain, plain_line

Function = Callable[..., Any]


class CandidateError(Exception):
    """A candidate that cannot be used as given; the message is one clear sentence, and where its code fails."""

    def __init__(self, sentence: str) -> None:
        super().__init__(plain(sentence, 2000))


@dataclass(frozen=True, slots=True)
class Candidate:
    """An implementation under test: of one stage or of several."""

    name: str
    stages: Mapping[str, Function | Mapping[str, Function]] = field(default_factory=dict)
    """By the name of the stage: a function, or several by mode, ways to run that must all give the same
    answer. One of the modes must be ``""``."""
    capabilities: Capabilities = field(default_factory=Capabilities)
    environment: Mapping[str, str] = field(default_factory=dict)
    """Versions worth a line in a report"""
    own: Mapping[str, Capabilities] = field(default_factory=dict)
    """Capabilities of single stages, in place of the candidate's"""
    caller: Caller = field(default_factory=LocalCaller, compare=False)
    """Makes the calls: in this process, or in a worker's"""
    recorded: bool = False
    """Whether its answers were written down elsewhere, so that nothing else can be asked"""
    implementation: Any = None
    """The class or function that is checked, where the functions of the stages only adapt it"""

    def __post_init__(self) -> None:
        """Take its name and versions as they can be shown."""
        if not isinstance(self.environment, Mapping):
            raise CandidateError(f"{plain_line(self.name)}: environment must be versions by name")
        versions = {plain_line(name, 80): plain_line(of, 200) for name, of in self.environment.items()}
        object.__setattr__(self, "name", plain_line(self.name))
        object.__setattr__(self, "environment", versions)

    @property
    def offers(self) -> tuple[str, ...]:
        """The stages that it has."""
        return tuple(name for name in self.stages if self.functions(name))

    def functions(self, stage: str) -> Mapping[str, Function]:
        """Return the functions of a stage by mode."""
        functions = self.stages.get(stage, {})
        return functions if isinstance(functions, Mapping) else {"": functions}

    def modes(self, stage: str) -> tuple[str, ...]:
        """Return the modes of a stage."""
        return tuple(self.functions(stage))

    def capabilities_of(self, stage: str) -> Capabilities:
        """Return what a stage supports: its own ``capabilities`` if it has some, else the candidate's."""
        declared = self.own.get(stage) or getattr(self.functions(stage).get(""), "capabilities", None)
        return declared if isinstance(declared, Capabilities) else self.capabilities

    def declaring(self, stage: str, capabilities: Capabilities) -> Candidate:
        """Return the same candidate with other capabilities of one stage."""
        return replace(self, own={**self.own, stage: capabilities})

    def ask(self, request: Request) -> Answer:
        """Call a stage; raises whatever it raises."""
        function = self.functions(request.stage)[request.mode]
        after = {"after": overwrite} if request.overwrite else {}
        called = function if request.through is None else partial(request.through, function, **after)
        return self.caller(called, request, self.capabilities_of(request.stage).arrays)


def one_line(error: BaseException) -> str:
    """Return what an exception says, on one line."""
    return plain_line(error)
