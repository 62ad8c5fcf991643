"""The report as one HTML page that needs nothing else: no script, no font, no file beside it."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from csa_spec.engine.results import Report
from csa_spec.report.content import Explained, covered, environment, explained, gaps, tables, verdict
from csa_spec.report.picture import picture


def to_html(report: Report) -> str:
    """Return the report as a page. Only pictures, which escape what they hold, go in as they are."""
    text = _template().render(
        report=report,
        verdict=verdict(report),
        tables=list(tables(report)),
        covered=covered(report),
        failures=[(failed, _drawn(failed)) for failed in explained(report)],
        gaps=gaps(report),
        environment=environment(report),
    )
    return re.sub(r"\n\s*\n+", "\n", text)


def _drawn(failed: Explained) -> Markup | None:
    svg = picture(failed.failure, failed.result.check)
    return None if svg is None else Markup(svg)


@cache
def _template() -> Template:
    text = files("csa_spec.report").joinpath("report.html").read_text(encoding="utf-8")
    # Nothing that is not defined is passed over in silence, and everything is escaped.
    with_escapes = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    with_escapes.tests["link"] = lambda url: url.startswith("https://")
    return with_escapes.from_string(text)
