"""A trial of the stage ``layer``: a whole attention layer on one case."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from csa_spec.engine.agreement import Part
from csa_spec.engine.choices import NO_CHOICE, Choice
from csa_spec.engine.dependence import Dependence
from csa_spec.engine.failures import Failure, Place, WrongNumbers
from csa_spec.engine.reference import Choices, Reference
from csa_spec.engine.tally import Tally
from csa_spec.engine.trial import Form, Trial, main_output, of_case
from csa_spec.plug.call import Answer
from csa_spec.spec import PADDING, SPEC, attend_batch, attend_document
from csa_spec.stages.layer.case import LayerCase
from csa_spec.stages.layer.comparison import compare
from csa_spec.stages.layer.coverage import kinds_of
from csa_spec.stages.layer.dependence import (
    LONGEST,
    Places,
    allowed_tokens,
    moved_queries,
    probe,
    probe_outside,
)
from csa_spec.stages.layer.expected import ALTERNATIVES, Expected, ExpectedDocument, expect
from csa_spec.stages.layer.inputs import Inputs, fresh_tokens, make_inputs
from csa_spec.stages.layer.output import LayerOutput
from csa_spec.stages.layer.summary import summary


class LayerTrial(Trial[LayerCase]):
    """One candidate on one case. What is computed once is kept."""

    stage = "layer"
    batched = ("hidden", "positions", "documents")

    @of_case
    def inputs(self) -> Inputs:
        """The case's tensors."""
        return make_inputs(self.case)

    @of_case
    def arguments(self) -> dict[str, Any]:
        """hidden, weights, geometry, positions, documents."""
        return self.inputs.arguments(self.case.geometry)

    def form(self, arguments: Mapping[str, Any]) -> Form:
        """As the hidden states."""
        return Form(tuple(arguments["hidden"].shape), (arguments["hidden"].dtype,), "[B, S, hidden]")

    @property
    def queries(self) -> int:
        """Tokens of all documents, or those that are judged."""
        return sum(len(self.case.judged_of(length)) for row in self.case.rows for length in row.lengths)

    @of_case
    def expected(self) -> Expected:
        """What the specification says."""
        return expect(self.case, self.inputs, self.capabilities.internal_dtype)

    @cached_property
    def output(self) -> LayerOutput:
        """What the candidate says about the case as it is."""
        return self._settled(self.answer)

    def run(self, inputs: Inputs) -> LayerOutput:
        """Run the candidate on a copy of ``inputs`` and return what it says, in float64.

        Raises
        ------
        Failure
            If it raises, or returns something other than a tensor of the input's shape and dtype.
        """
        return self._settled(self.ask(inputs.arguments(self.case.geometry)))

    def judge(self, answer: Answer) -> Tally:
        """Compare the output with the specification; say no more than that it is wrong."""
        tally, mismatch = compare(self.expected, self._settled(answer))
        if mismatch is not None:
            raise WrongNumbers(
                self.case,
                wrong=mismatch.queries,
                total=self.queries,
                items="queries",
                expected=mismatch.expected.tolist(),
                got=mismatch.got.tolist(),
                over_budget=mismatch.over_budget,
            )
        return tally

    def relevant(self, answer: Answer) -> Tensor:
        """Return the outputs at tokens of documents; those at padding mean nothing."""
        return super().relevant(answer)[self.inputs.documents != PADDING]

    def place(self, row: int, column: int) -> Place | None:
        """Return the name of a query; None at padding."""
        document = self.expected.document_at(row, column)
        return None if document is None else document.place(column - document.span.begin)

    def specified(self, arguments: Mapping[str, Any], noise: Any = None) -> Tensor:
        """Run the specification."""
        spec = SPEC if noise is None else noise.of(SPEC)
        choices = [
            [query.selection for query in document.trace.queries] for document in self.expected.documents
        ]
        return attend_batch(**arguments, spec=spec, selections=choices, queries=self.case.judged_of).out

    @property
    def reference(self) -> Reference:
        """Tokens of documents are compared, or those that are judged."""
        expected, shape = self.expected, self.expected.out.shape
        compared, tolerance = (
            torch.zeros(shape[:2], dtype=torch.bool),
            torch.zeros(shape, dtype=torch.float64),
        )
        choices: list[Choice | None] = [NO_CHOICE] * compared.numel()
        for document in expected.documents:
            row = document.span.row
            columns = [document.place(query.t).column for query in document.trace.queries]
            compared[row, columns] = torch.tensor(
                [choice.count <= ALTERNATIVES for choice in document.choices]
            )
            tolerance[row, columns] = document.budgets.out
            for column, choice in zip(columns, document.choices, strict=True):
                choices[row * shape[1] + column] = choice
        entries = max(len(document.trace.context.entries) for document in expected.documents)
        return Reference(expected.out, compared, tolerance, Choices.of(choices, entries).shaped(*shape[:2]))

    def kinds(self) -> set[str]:
        """Return the kinds that the case belongs to."""
        return kinds_of(self.case, self.expected)

    def parts(self, *answers: Answer) -> Iterator[Part]:
        """Yield the documents."""
        outs = [_wide(main_output(answer), (None, None, None)) for answer in answers]
        for document in self.expected.documents:
            yield Part(
                tuple(document.outputs(out) for out in outs),
                document.trace.out,
                document.budgets.out,
                torch.tensor([choice.ambiguous for choice in document.choices]),
            )

    def summary(self, failure: Failure, says: str) -> list[str]:
        """Return which queries are wrong and what they depend on, where the failure is about a query."""
        return summary(self, failure) or [says]

    def data_lines(self) -> list[str]:
        """Show the hidden states of a single row where there are few enough to read."""
        hidden = self.inputs.hidden
        if hidden.numel() > 24 or len(hidden) > 1:
            return []
        tokens = ("[" + ", ".join(f"{x:.4g}" for x in token) + "]" for token in hidden[0].tolist())
        return [f"hidden states         {' '.join(tokens)}"]

    def _settled(self, answer: Answer) -> LayerOutput:
        """Return an output in float64 and int64, without exposed stages whose shape does not fit."""
        returned = answer.returned
        output = returned if isinstance(returned, LayerOutput) else LayerOutput(returned)
        rows, columns, _ = output.out.shape
        heads, head_dim = self.case.geometry.heads, self.case.geometry.head_dim
        return LayerOutput(
            _wide(output.out, (rows, columns, None)),
            _wide(output.entries, (rows, None, head_dim)),
            _wide(output.index_scores, (rows, columns, None)),
            _wide(output.selection, (rows, columns, None)),
            _wide(output.probabilities, (rows, heads, columns, None)),
        )

    def dependence(self, document: ExpectedDocument) -> Dependence | None:
        """Probe which output depends on which token of a document; None where it is too long."""
        context, span = document.trace.context, document.span
        if not self.can_probe or span.length > LONGEST or not document.trace.whole:
            return None
        fresh = fresh_tokens(self.case, self.inputs, "probe")
        # A perturbation must move an output by more than both runs may be off together.
        threshold = 2 * document.budgets.out

        def run(places: Places, sign: int) -> Tensor:
            hidden = self.inputs.hidden.clone()
            for place in places:
                hidden[place] = sign * fresh[place]
            return document.outputs(self.run(replace(self.inputs, hidden=hidden)).out)

        def candidate_out(token: int | None, sign: int) -> Tensor:
            return run([] if token is None else [(span.row, span.begin + token)], sign)

        def spec_out(token: int | None, sign: int) -> Tensor:
            hidden = context.hidden.clone()
            if token is not None:
                hidden[token] = sign * fresh[span.row, span.begin + token].double()
            return attend_document(hidden, span, self.expected.weights, self.case.geometry).out

        def moved(places: Places) -> Tensor:
            base = document.outputs(self.output.out)
            moved = moved_queries(base, [run(places, sign) for sign in (1, -1)], threshold)
            moved[document.ambiguous] = False  # they may choose differently each time
            return moved

        near = range(self.case.columns)[max(0, span.begin - LONGEST) : span.begin + span.length + LONGEST]
        batch = {(row, column) for row in range(len(self.case.rows)) for column in near}
        own = {(span.row, span.begin + t) for t in range(span.length)}
        return Dependence(
            allowed_tokens(document.trace, self.case.geometry),
            # Only what moves the specification clearly is needed of a candidate.
            probe(span.length, spec_out, 4 * threshold),
            probe(span.length, candidate_out, threshold),
            tuple(probe_outside(sorted(batch - own), moved)),
        )


def _wide(tensor: Any, shape: tuple[int | None, ...]) -> Any:
    """Return a tensor in a wide dtype; None if it is none, or not of the shape (None: any length)."""
    if not isinstance(tensor, Tensor) or tensor.dim() != len(shape):
        return None
    if any(want is not None and want != have for want, have in zip(shape, tensor.shape, strict=True)):
        return None
    return tensor.double() if tensor.is_floating_point() else tensor.long()
