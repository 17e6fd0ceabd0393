"""The page as a file: what it says, that it is whole in itself, and that nothing in a run folder
can become markup.

Seen red under: autoescape off; a difference coloured without looking at the spread; an id of one
    figure used in another; a
link to a run without its details; the image of another table embedded; a verdict on a single run;
config of the second run shown as the first's.
"""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure

from moco_transfer.report import build_tables, read_runs
from moco_transfer.report.html.page import render_page
from moco_transfer.report.html.plots import STYLES, figure_name, inline_svg, swatch
from moco_transfer.report.pretraining import find_pretraining

_VOID = {"meta", "link", "img", "path", "use", "br"}


class _Page(HTMLParser):
    """Reads a page into its tables, ids, addresses and text, and refuses tags that do not close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.tables, self.ids, self.addresses, self.texts, self.classes = (
            [],
            [],
            [],
            [],
            [],
            {},
        )
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.addresses += [attrs[name] for name in ("href", "src", "xlink:href") if name in attrs]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.classes[len(self.tables), len(self.tables[-1]), len(self.tables[-1][-1])] = (
                attrs.get("class", "")
            )
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in _VOID:
            assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data):
        self.texts.append(data)
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data.strip()


def _render(folder, **more):
    records, problems = read_runs([folder])
    pretraining, faults = find_pretraining([folder], records)
    return render_page(
        build_tables(records),
        [*problems, *faults],
        pretraining=pretraining,
        folders=[folder],
        **more,
    )


def test_render_page__shows_the_numbers_of_the_table(three_rows):
    page = _Page(_render(three_rows))
    transfer, trials = page.tables
    # worked out in test_aggregate: means 34.0, 53.7, 56.2; stds 1, 0.82, 1.31; t test of moco p =
    # 0.013
    assert transfer == [
        ["init", "AP", "AP50", "AP75", "Δ AP", "Δ AP50", "Δ AP75", "p (AP)", "n"],
        [
            "random",
            "34.0 ± 1.0",
            "54.0 ± 1.0",
            "39.0 ± 1.0",
            "-19.7 ▼",
            "-19.7 ▼",
            "-19.7 ▼",
            "<0.001 (n=3)",
            "3",
        ],
        ["supervised", "53.7 ± 0.8", "73.7 ± 0.8", "58.7 ± 0.8", "–", "–", "–", "–", "3"],
        [
            "moco",
            "56.2 ± 1.3",
            "76.2 ± 1.3",
            "61.2 ± 1.3",
            "+2.5 ▲",
            "+2.5 ▲",
            "+2.5 ▲",
            "0.013 (n=3)",
            "3",
        ],
    ]
    assert [page.classes[1, row, 5] for row in (2, 3, 4)] == ["worse", "", "better"]
    assert len(trials) == 1 + 9
    assert trials[0] == ["init", "seed", "AP", "AP50", "AP75", "iterations", "hours", "status"]
    assert trials[9] == ["moco", "2", "57.6", "77.6", "62.6", "100", "0.00", "averaged"]


def test_render_page__no_colour_at_one_run(make_run, tmp_path):
    make_run("s", "supervised", bbox={"AP": 50.0, "AP50": 50.0, "AP75": 50.0})
    make_run("m", "moco", bbox={"AP": 60.0, "AP50": 49.0, "AP75": 50.0})
    page = _Page(_render(tmp_path))
    assert page.tables[0][2] == ["moco", "60.0", "49.0", "50.0", "+10.0", "-1.0", "0.0", "1"]
    assert not {"better", "worse"} & set(page.classes.values())


def test_render_page__says_what_the_numbers_allow(three_rows, make_run):
    make_run("one", "single", 0, bbox={"AP": 53.7, "AP50": 1.0, "AP75": 1.0})
    for seed, value in enumerate((53.5, 55.5)):  # mean 54.5, std 1.41
        make_run(f"close{seed}", "close", seed, bbox={"AP": value, "AP50": 1.0, "AP75": 1.0})
    texts = [text.strip() for text in _Page(_render(three_rows)).texts]
    for sentence in (
        (
            "random: AP 19.7 below supervised, more than the std of both rows, paired t test p"
            " <0.001 (n=3)."
        ),
        "close: AP 0.8 above supervised, within the std over seeds, so no difference is shown.",
        (
            "moco: AP 2.5 above supervised, more than the std of both rows, paired t test p 0.013"
            " (n=3)."
        ),
        "single: AP level with supervised, a single run shows no spread, so nothing follows.",
    ):
        assert sentence in texts


def test_render_page__needs_nothing_from_outside(three_rows):
    page = _Page(_render(three_rows))
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    # Addresses inside style and script, too; the names of XML's own vocabularies are not fetched.
    text = re.sub(r'xmlns(:\w+)?="[^"]+"', "", _render(three_rows))
    assert not re.search(r"https?://|url\((?!#)|@import", text)


def test_render_page__ids_are_unique_and_links_lead_somewhere(three_rows, make_run):
    make_run(
        "other",
        task="coco_R_50_FPN_1x",
        bbox={"AP": 1.0, "AP50": 2.0, "AP75": 1.0, "APs": 1.0, "AP-dog": 3.0},
    )
    page = _Page(_render(three_rows))
    assert len(page.ids) == len(set(page.ids))
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= set(page.ids)


def test_render_page__the_same_runs_give_the_same_bytes(three_rows):
    assert _render(three_rows) == _render(three_rows)


def test_render_page__names_from_files_are_text(make_run, tmp_path):
    nasty = "<script>alert(1)</script>"
    folder = make_run(
        "a",
        nasty,
        task=nasty,
        command=f"{nasty} \" onload='x'",
        bbox={"AP": 1.0, f"AP-{nasty}": 2.0},
        norm=nasty,
    )
    (folder / "config.yaml").write_text(f"A: {nasty}\n")
    (folder / "env.txt").write_text(f"</pre>{nasty}")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/results.json").write_text(json.dumps({"schema": nasty}))
    text = _render(tmp_path, title=nasty)
    assert "<script>alert" not in text
    page = _Page(text)
    assert page.tables[0][1][0] == nasty
    assert "".join(page.texts).count(nasty) >= 7


def test_render_page__tells_what_cannot_be_used(three_rows, make_run):
    make_run("again", "moco", 0)
    make_run("bad", schema=99)
    text = "".join(_Page(_render(three_rows)).texts)
    assert "2 runs claim seed 0, none of them is averaged" in text
    assert "has schema 99, expected 1" in text


def test_render_page__names_a_run_without_curves_once(make_run, tmp_path):
    make_run("a", "moco", 0)
    text = "".join(_Page(_render(tmp_path)).texts)
    assert (
        text.count(
            f"{tmp_path / 'a/metrics.json'}: cannot be read (No such file or directory); the run"
            " has no curve."
        )
        == 1
    )
    assert "Training loss over iterations" not in text  # a panel of nothing
    assert "AP of boxes over iterations" in text  # results.json gives its end


def test_render_page__config_once_and_command_and_environment_of_each_run(make_run, tmp_path):
    for seed in range(2):
        folder = make_run(f"m{seed}", "moco", seed, command=f"moco-transfer train SEED {seed}")
        (folder / "config.yaml").write_text(f"SEED: {seed}\nMODEL:\n  WEIGHTS: a.pkl\n")
        (folder / "env.txt").write_text("gpu 0: some card\n")
    text = re.sub(r"\s+", " ", " ".join(_Page(_render(tmp_path)).texts))
    assert text.count("WEIGHTS: a.pkl") == 1
    assert text.count("gpu 0: some card") == 2
    for seed in range(2):
        assert f"moco-transfer train SEED {seed}" in text


def test_render_page__embeds_the_sheet_of_its_own_table(three_rows, make_run):
    make_run("other", task="x")
    tables = build_tables(read_runs([three_rows])[0])
    name = next(figure_name(table) for table in tables if table.setting.task == "x")
    (three_rows / f"detections_{name}.png").write_bytes(b"png of x")
    (three_rows / "detections_of_something_else.png").write_bytes(b"another")
    page = _Page(_render(three_rows))
    assert [address for address in page.addresses if address.startswith("data:image")] == [
        "data:image/png;base64,cG5nIG9mIHg="
    ]


def test_inline_svg__follows_the_page():
    figure = Figure()
    axis = figure.subplots()
    axis.plot([1, 2], [3, 4], color=STYLES[1][0], marker="o")
    axis.set_xlabel("letters")
    text = inline_svg(figure, 'role="img"', prefix="p-")
    assert re.match(r'<svg viewBox="[^"]+" role="img" ', text)
    ids = re.findall(r' id="([^"]+)"', text)
    used = re.findall(r'(?:url\(|href=")#([^")]+)', text)
    assert ids and set(ids) == set(used) and all(name.startswith("p-") for name in ids)
    assert "var(--row-1)" in text and "currentColor" in text and ">letters</text>" in text
    assert "metadata" not in text and "<style" not in text and STYLES[1][0] not in text


@pytest.mark.parametrize("style", STYLES)
def test_swatch__draws_every_style(style):
    text = swatch(style)
    assert text.count(f"var(--row-{STYLES.index(style)})") == 2  # line and marker
    assert " id=" not in text and 'viewBox="0 0 34 10"' in text
