"""Fills the templates of this package: the page, the LaTeX tables, the published numbers."""

from __future__ import annotations

import functools
from typing import Any

from moco_transfer.evaluate.metric_names import headline_metric

from . import cells, sentences
from .comparisons.label_efficiency import label_sentences
from .records import text_of


def render(name: str, **context: Any) -> str:
    """Return a file of ``templates`` filled with ``context``; in HTML, values are escaped."""
    return _environment().get_template(name).render(**context)


@functools.cache
def _environment() -> Any:
    import jinja2  # takes 0.1 s, and the table in Markdown does not need it

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__),
        autoescape=lambda name: bool(name and name.endswith(".html")),  # noqa: S701
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    called = (
        sentences.comparison_sentences, sentences.dagger_sentences, sentences.interval_sentences,
        sentences.legend_sentences, sentences.metric_sentence, sentences.published_sentences,
        sentences.separation_sentences, sentences.setting_sentence, sentences.version_sentences,
        cells.interval_text, cells.kind_name, cells.p_text, cells.rate_rows, cells.run_caveats,
        cells.signed_text, cells.summary_text, cells.transfer_rows, headline_metric,
        label_sentences, text_of,
    )  # fmt: skip
    environment.globals |= {function.__name__: function for function in called}
    return environment
