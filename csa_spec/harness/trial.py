"""A trial: one candidate on one case, with what the specification says about it."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from csa_spec.harness.candidate import Candidate, LayerOutput
from csa_spec.harness.case import Case
from csa_spec.harness.dependence import LONGEST, Dependence, allowed_tokens, probe
from csa_spec.harness.expected import Expected, ExpectedDocument, expect
from csa_spec.harness.failures import CandidateRaised, InputsChanged, WrongDtype, WrongShape
from csa_spec.harness.inputs import Inputs, fresh_tokens, make_inputs
from csa_spec.spec import attend_document


class Trial:
    """One candidate on one case. What is computed once is kept."""

    def __init__(self, candidate: Candidate, case: Case) -> None:
        self.candidate = candidate
        self.case = case

    @cached_property
    def inputs(self) -> Inputs:
        """The case's tensors; candidates only ever get copies."""
        return make_inputs(self.case)

    @cached_property
    def expected(self) -> Expected:
        """What the specification says."""
        return expect(self.case, self.inputs, self.candidate.capabilities.internal_dtype)

    @cached_property
    def output(self) -> LayerOutput:
        """What the candidate says about the case as it is."""
        return self.run(self.inputs)

    def run(self, inputs: Inputs, watch_inputs: bool = False) -> LayerOutput:
        """Run the candidate on a copy of ``inputs`` and return what it says, in float64 on the CPU.

        Raises
        ------
        Failure
            If it raises, or returns something other than a tensor of the input's shape and dtype.
        """
        given = inputs.copy()
        try:
            output = self.candidate.run(self.case, given.hidden, given.weights, given.positions, given.documents)
            if given.hidden.is_cuda:
                torch.cuda.synchronize()
        except (Exception, SystemExit) as error:
            raise CandidateRaised(error, self.case) from error
        self._check_form(output.out, inputs.hidden)
        if watch_inputs:
            self._check_unchanged(given, inputs)
        return self._settled(output)

    def _settled(self, output: LayerOutput) -> LayerOutput:
        """Return an output on the CPU, in float64 and int64, without exposed stages whose shape does not fit."""
        rows, columns, _ = output.out.shape
        heads, head_dim = self.case.geometry.heads, self.case.geometry.head_dim
        return LayerOutput(
            _on_cpu(output.out, (rows, columns, None)),
            _on_cpu(output.entries, (rows, None, head_dim)),
            _on_cpu(output.index_scores, (rows, columns, None)),
            _on_cpu(output.selection, (rows, columns, None)),
            _on_cpu(output.probabilities, (rows, heads, columns, None)),
        )

    def _check_form(self, out: object, hidden: Tensor) -> None:
        if not isinstance(out, Tensor):
            raise WrongShape(f"expected a tensor, got {type(out).__name__}", self.case)
        if out.shape != hidden.shape:
            raise WrongShape(f"expected {list(hidden.shape)} [B, S, hidden], got {list(out.shape)}", self.case)
        if out.dtype != hidden.dtype:
            raise WrongDtype(f"expected {hidden.dtype}, got {out.dtype}", self.case)

    def _check_unchanged(self, given: Inputs, inputs: Inputs) -> None:
        original = inputs.tensors()
        changed = [name for name, tensor in given.tensors().items() if not _same_bits(tensor, original[name])]
        if changed:
            raise InputsChanged(f"after the call these differ: {', '.join(changed)}", self.case)

    def dependence(self, document: ExpectedDocument) -> Dependence | None:
        """Probe which output depends on which token of a document; None where it is too long."""
        context, place = document.trace.context, document.trace.context.document
        if place.length > LONGEST:
            return None
        fresh = fresh_tokens(self.case, self.inputs, "probe")
        # A perturbation must move an output by more than both runs may be off together.
        threshold = 2 * document.budgets.out

        def candidate_out(token: int | None, sign: int) -> Tensor:
            hidden = self.inputs.hidden.clone()
            if token is not None:
                hidden[place.row, place.begin + token] = sign * fresh[place.row, place.begin + token]
            changed = Inputs(hidden, self.inputs.weights, self.inputs.positions, self.inputs.documents)
            return self.run(changed).out[place.row, place.columns]

        def spec_out(token: int | None, sign: int) -> Tensor:
            hidden = context.hidden.clone()
            if token is not None:
                hidden[token] = sign * fresh[place.row, place.begin + token].double().cpu()
            return attend_document(hidden, place, self.expected.weights, self.case.geometry).out

        return Dependence(
            allowed_tokens(document.trace, self.case.geometry),
            # Only what moves the specification clearly is needed of a candidate.
            probe(place.length, spec_out, 4 * threshold),
            probe(place.length, candidate_out, threshold),
        )


def _on_cpu(tensor: Any, shape: tuple[int | None, ...]) -> Any:
    """Return a tensor on the CPU in a wide dtype; None if it is none, or not of the shape (None: any length)."""
    if not isinstance(tensor, Tensor) or tensor.dim() != len(shape):
        return None
    if any(want is not None and want != have for want, have in zip(shape, tensor.shape, strict=True)):
        return None
    tensor = tensor.detach().cpu()
    return tensor.double() if tensor.is_floating_point() else tensor.long()


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return (
        a.shape == b.shape
        and a.dtype == b.dtype
        and bool(torch.equal(a.isnan(), b.isnan()))
        and bool(torch.equal(*(x.nan_to_num(posinf=torch.inf, neginf=-torch.inf) for x in (a, b))))
    )
