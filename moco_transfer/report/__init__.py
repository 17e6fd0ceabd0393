"""Report: from results.json files to the transfer table. Nothing here imports torch.

Run folders are read (``records``), grouped and averaged (``aggregate``, ``seed_statistics``) and
rendered (``cells``, ``sentences``, ``table_*``, ``html``). Functions return text; writing files and
ending with a message is the command line's part.
"""

from .aggregate import BASELINES, Row, Setting, Table, build_tables
from .published import find_settings, published_settings, setting_for_task
from .records import Problem, RunRecord, read_run, read_runs
from .table_csv import render_csv
from .table_latex import render_latex
from .table_markdown import fill_sections, render_markdown, render_published

__all__ = [
    "BASELINES", "Problem", "Row", "RunRecord", "Setting", "Table", "build_tables", "fill_sections",
    "find_settings", "published_settings", "read_run", "read_runs", "render_csv", "render_latex",
    "render_markdown", "render_published", "setting_for_task",
]  # fmt: skip
