"""The tables and figures of the MoCo papers: each printed number with its config, source, protocol,
cost, and the run records next to it. Nothing here imports torch.

``tables.yaml`` holds what the papers print. ``paper`` reads it, ``found`` puts run records next to
it, ``commands`` makes the command lines, ``render`` the text.
"""

from .commands import Request, Step, plan_steps
from .found import Records, read_records
from .paper import PaperTable, Part, paper_tables
from .render import ledger_json, render_list, render_table

__all__ = [
    "PaperTable", "Part", "Records", "Request", "Step", "ledger_json", "paper_tables", "plan_steps",
    "read_records", "render_list", "render_table",
]  # fmt: skip
