"""The published numbers: spot checks typed from the papers, and that every row has what it needs.

Seen red under: the columns AP50 and AP swapped; an independent row before the paper's; a distance
    with its sign turned; the
test set not looked at; a gap to another source's supervised row; no warning of another schedule;
iterations compared without their batches.
"""

from __future__ import annotations

import argparse

import pytest

from moco_transfer.cli import reproduce
from moco_transfer.cli.options import add_options
from moco_transfer.report import (
    build_tables,
    find_settings,
    published_settings,
    read_runs,
    render_markdown,
    setting_for_task,
)
from moco_transfer.runtime.errors import InputError


def _reference(capsys, *words):
    parser = argparse.ArgumentParser()
    add_options(parser, "reproduce")
    assert reproduce.run(parser.parse_args(["--reference", *words])) == 0
    return capsys.readouterr().out


def test_published_settings__every_row_is_complete_and_sourced():
    settings = published_settings()
    assert len({setting.name for setting in settings}) == len(settings)
    for setting in settings:
        assert setting.rows
        assert not setting.tasks or setting.test_set
        for row in setting.rows:
            assert list(row.values) == setting.columns
            assert all(0 < value < 100 for value in row.values.values())
            assert row.source.count(", ") >= 1
            assert row.is_independent == ("DetCo" in row.source or "mmselfsup" in row.source)


def test_published_settings__gaps_are_the_printed_ones(capsys):
    # value (gap) as the papers print them: MoCo Tables 2b, 5a, 5d, 6 and A.1b;
    # DetCo's own dense-pose rows stand against its own supervised row
    text = _reference(capsys)
    assert "voc07+12 R50-C4" in text
    printed = {
        "voc07+12 R50-C4": ["55.9 (+2.4)", "62.6 (+3.8)", "57.2 (+3.7)", "63.7 (+4.9)"],
        "coco R50-FPN 1x": ["38.5 (-0.4)", "58.9 (-0.7)", "37.7 (-0.4)", "35.4 (0.0)"],
        "coco R50-C4 2x": ["44.1 (+1.0)", "57.3 (+0.8)", "38.1 (+1.2)"],
        "coco-densepose R50-FPN s1x": ["53.9 (+3.3)", "54.3 (+3.7)", "49.6 (-1.2)"],
        "lvis R50-FPN 2x": ["24.1 (-0.3)", "26.4 (+0.6)"],
        "coco R50-FPN 6x": ["46.2 (+0.6)", "60.1 (+0.5)"],
    }
    for name, cells in printed.items():
        text = _reference(capsys, *name.split())
        assert all(f"| {cell} |" in text for cell in cells), name


def test_reference__the_papers_rows(capsys):
    lines = _reference(capsys, "VOC07+12", "r50-c4").splitlines()
    source = "He et al., MoCo, arXiv:1911.05722v3, Table 2b"
    assert lines[0] == "### voc07+12 R50-C4"
    assert f"| MoCo v1 IN-1M 200 ep | 81.5 (+0.2) | 55.9 (+2.4) | 62.6 (+3.8) | {source} |" in lines
    torchvision_row = (
        "| super. IN-1M (torchvision) | 81.58 | 54.19 | 59.8 | github.com/open-mmlab/mmselfsup"
    )
    assert any(line.startswith(torchvision_row) for line in lines)


def test_reference__a_part_of_a_name_and_an_unknown_one(capsys):
    assert [setting.name for setting in find_settings(["coco", "fpn", "1x"])] == [
        "coco R50-FPN 1x",
        "coco-densepose R50-FPN s1x",
    ]
    assert [setting.name for setting in find_settings(["coco R50-FPN 1x"])] == ["coco R50-FPN 1x"]
    with pytest.raises(
        InputError,
        match="No published setting is called 'voc07 R50-C5'. Did you mean 'voc07 R50-C4'?",
    ):
        _reference(capsys, "voc07", "R50-C5")


def test_row_for__the_papers_row_before_independent_ones():
    setting = setting_for_task("pascal_voc_R_50_C4_24k", ["voc_2007_test"])
    assert setting.row_for("supervised").values["bbox/AP"] == 53.5
    assert setting.row_for("moco_v1") == setting.row_for("moco")
    assert setting.row_for("something") is None
    assert setting_for_task("pascal_voc_R_50_C4_24k", ["voc_2012_val"]) is None


def test_distance_in_std__hand_computed():
    setting = setting_for_task("pascal_voc_R_50_C4_24k", ["voc_2007_test"])
    assert setting.distance_in_std("moco", "bbox/AP", 56.3) == pytest.approx(
        2.0
    )  # (56.3 - 55.9) / 0.2
    assert setting.distance_in_std("moco", "bbox/AP75", 62.0) == pytest.approx(
        -1.5
    )  # (62.0 - 62.6) / 0.4
    assert (
        setting_for_task("coco_R_50_FPN_1x", ["coco_2017_val"]).distance_in_std(
            "moco", "bbox/AP", 38.0
        )
        is None
    )


def test_render_markdown__published_column(make_run, tmp_path):
    for seed, shift in enumerate((-0.1, 0.1)):
        bbox = {"AP": 56.3 + shift, "AP50": 81.5 + shift, "AP75": 62.0 + shift}
        make_run(
            f"m{seed}", "moco", seed, task="pascal_voc_R_50_C4_24k", bbox=bbox, iterations=24000
        )
    make_run("u", "unheard_of", 0, task="pascal_voc_R_50_C4_24k", iterations=24000)
    text = render_markdown(build_tables(read_runs([tmp_path])[0]))
    assert (
        "| moco | 56.3 ± 0.1 | 81.5 ± 0.1 | 62.0 ± 0.1 | 55.9 / 81.5 / 62.6 | +2.0 / 0.0 / -1.5 | 2"
        " | torchvision |" in text
    )
    assert "| unheard_of | 50.0 | 80.0 | 55.0 | – | – | 1 | torchvision |" in text
    assert "moco = MoCo v1 IN-1M 200 ep (He et al., MoCo, arXiv:1911.05722v3, Table 2b)" in text
    assert "iterations, the published ones" not in text


@pytest.mark.parametrize(
    ("iterations", "batch", "said"),
    [
        (
            100,
            None,
            (
                "Warning: runs here trained for 100 iterations, the published ones for 24000 of 16"
                " images."
            ),
        ),
        (
            24000,
            2,
            None,
        ),  # the iterations are the published ones; what a row shares is its own setting's affair
        (24000, None, None),
        (
            192000,
            2,
            (
                "Runs here trained for 192000 iterations of 2 images: as many images as the"
                " published ones with 24000 of 16 images."
            ),
        ),
        (
            54857,
            7,
            (
                "Runs here trained for 54857 iterations of 7 images: as many images as the"
                " published ones"
            ),
        ),  # 383999 of 384000
        (
            192000,
            16,
            (
                "Warning: runs here trained for 192000 iterations of 16 images, the published"
                " ones for 24000 of 16 images."
            ),
        ),
    ],
)
def test_render_markdown__says_when_the_published_schedule_differs(
    make_run, tmp_path, iterations, batch, said
):
    folder = make_run("m", "moco", task="pascal_voc_R_50_C4_24k", iterations=iterations)
    if batch:
        (folder / "config.yaml").write_text(f"SOLVER:\n  BASE_LR: 0.1\n  IMS_PER_BATCH: {batch}\n")
    text = render_markdown(build_tables(read_runs([tmp_path])[0]))
    sentences = [line[2:] for line in text.splitlines() if "rained for" in line]
    assert sentences == ([] if said is None else sentences[:1])
    assert said is None or sentences[0].startswith(said)
