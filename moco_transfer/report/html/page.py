"""The page: tables, plots, images and every run's config, versions and command in one HTML file
that needs no network.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import jinja2

from ..aggregate import Table
from ..caveats import finding_sentences, legend_sentences, separation_sentences, setting_sentence
from ..pretraining import PretrainingRun, pretraining_panels
from ..records import CONFIG_FILE, Problem, text_of
from ..table_csv import render_csv
from ..table_latex import render_latex
from .page_svg import inline_svg, swatch
from .page_tables import Grid, transfer_grid, trials_grid
from .plots import (
    STYLES,
    Panel,
    breakdown_panels,
    curve_panels,
    draw_panel,
    figure_bytes,
    figure_name,
    row_styles,
)
from .run_details import ENVIRONMENT_FILE, RunDetails, anchors_of, table_details

#: What `sheet` and `neighbours` write; the first ending that is there is embedded.
SHEET_NAME, NEIGHBOURS_NAME = "detections", "neighbours"
_ENDINGS = {".svg": "image/svg+xml", ".png": "image/png", ".jpg": "image/jpeg"}
#: A panel of more classes is folded away.
_TALL_INCHES = 8.0


@dataclass(frozen=True)
class Plot:
    """A plot: its caption, its ``<svg>``, whether it is too tall to stand open."""

    caption: str
    svg: str
    is_tall: bool


@dataclass(frozen=True)
class Image:
    """An embedded image: what it shows, where it was found, and its data as a URI."""

    caption: str
    file: str
    uri: str


@dataclass(frozen=True)
class Section:
    """All that the page says of one table."""

    anchor: str
    title: str
    sentence: str
    findings: tuple[str, ...]
    grids: tuple[Grid, ...]
    legend: tuple[str, ...]
    problems: tuple[Problem, ...]
    rows: tuple[tuple[str, str], ...]
    plots: tuple[Plot, ...]
    sheet: Image | None
    trials: Grid
    config: str
    runs: tuple[RunDetails, ...]


@dataclass(frozen=True)
class PretrainingSection:
    """All that the page says of one pre-training run."""

    anchor: str
    run: PretrainingRun
    plots: tuple[Plot, ...]
    neighbours: Image | None
    config: str
    environment: str


def render_page(
    tables: Sequence[Table],
    problems: Sequence[Problem] = (),
    *,
    pretraining: Sequence[PretrainingRun] = (),
    folders: Sequence[str | Path] = (),
    title: str = "Transfer results",
) -> str:
    """Return the page.

    Args:
        tables: From :func:`moco_transfer.report.build_tables`; their runs' folders are read again,
            for curves and configs.
        problems: Files that could not be used.
        pretraining: From :func:`moco_transfer.report.pretraining.find_pretraining`.
        folders: Where the sheets of detections lie, beside the folders of the runs.
        title: Title of the page.

    Returns:
        HTML, all in one text: style, script, plots and images are inside it. The same runs give
            the same text.
    """
    sections = [_section(table, number, folders) for number, table in enumerate(tables, start=1)]
    pretrained = [_pretraining(run, number) for number, run in enumerate(pretraining, start=1)]
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template),
        autoescape=lambda name: name is None or name.endswith(".html"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["swatch"] = lambda style: jinja2.utils.markupsafe.Markup(swatch(style))
    csv_text = render_csv(tables)
    return environment.get_template("page.html").render(
        title=title,
        sections=sections,
        pretraining=pretrained,
        separation=separation_sentences(tables),
        problems=problems,
        latex=render_latex(tables, problems),
        csv_uri="data:text/csv;charset=utf-8;base64,"
        + base64.b64encode(csv_text.encode("utf-8")).decode("ascii"),
        num_runs=sum(len(table.runs) for table in tables),
        row_colours=[color for color, _, _ in STYLES],
    )


def _template(name: str) -> str:
    return (resources.files(__package__) / "templates" / name).read_text(encoding="utf-8")


def _section(table: Table, number: int, folders: Sequence[str | Path]) -> Section:
    anchor = f"table-{number}"
    config, runs = table_details(table, prefix=f"{anchor}-")
    panels = curve_panels(table) + [
        panel for kind in table.kinds for panel in breakdown_panels(table, kind)
    ]
    plots, unread = _plots(panels, anchor)
    sentence = setting_sentence(table)
    return Section(
        anchor=anchor,
        title=table.setting.task,
        sentence=sentence[0].upper() + sentence[1:],
        findings=tuple(finding_sentences(table)),
        grids=tuple(transfer_grid(table, kind) for kind in table.kinds),
        legend=tuple(legend_sentences(table, emphasis="green or red, with ▲ or ▼,")),
        problems=(*table.problems, *unread),
        rows=tuple(
            (f"{row.init} (n = {len(row.runs)})", swatch(row_styles(table)[row.init]))
            for row in table.rows
        ),
        plots=plots,
        sheet=_sheet(table, folders),
        trials=trials_grid(table, anchors_of(table.runs, runs)),
        config=config,
        runs=tuple(runs),
    )


def _pretraining(run: PretrainingRun, number: int) -> PretrainingSection:
    anchor, folder = f"pretraining-{number}", Path(run.folder)
    neighbours = embed_image(
        folder / NEIGHBOURS_NAME, "Nearest neighbours of some images by the pre-trained features"
    )
    config, environment = (text_of(folder, name) for name in (CONFIG_FILE, ENVIRONMENT_FILE))
    return PretrainingSection(
        anchor, run, _plots(pretraining_panels(run), anchor)[0], neighbours, config, environment
    )


def _plots(panels: Sequence[Panel], anchor: str) -> tuple[tuple[Plot, ...], list[Problem]]:
    """Return the plots, without those of nothing, and each problem with a file once."""
    plots, problems = [], {}
    for panel in panels:
        figure, found = draw_panel(panel)
        problems |= dict.fromkeys(found)
        if not figure.axes[0].has_data():
            continue
        caption = panel.caption[0].upper() + panel.caption[1:]
        svg = inline_svg(
            figure_bytes(figure, "svg"), prefix=f"{anchor}-{panel.name}-", label=caption
        )
        plots.append(Plot(caption, svg, panel.inches[1] > _TALL_INCHES))
    return tuple(plots), list(problems)


def sheet_folder(table: Table) -> Path:
    """Return where a table's sheet of detections is written and looked for: the folder in which all
    its runs lie, however deep.
    """
    return Path(os.path.commonpath([Path(run.folder).parent for run in table.runs]))


def _sheet(table: Table, folders: Sequence[str | Path]) -> Image | None:
    places = [
        *map(Path, folders),
        sheet_folder(table),
        *(Path(run.folder).parent for run in table.runs),
    ]
    caption = (
        "Detections of each initialisation beside the ground truth: of each image as many, the"
        " surest, as it has objects"
    )
    for place in dict.fromkeys(places):
        image = embed_image(place / f"{SHEET_NAME}_{figure_name(table)}", caption)
        if image:
            return image
    return None


def embed_image(stem: Path, caption: str) -> Image | None:
    """Return the image ``stem`` + .svg, .png or .jpg as data, the first that is there, or None."""
    for ending, kind in _ENDINGS.items():
        file = stem.parent / (stem.name + ending)
        if file.is_file():
            data = base64.b64encode(file.read_bytes()).decode("ascii")
            return Image(caption, str(file), f"data:{kind};base64,{data}")
    return None
