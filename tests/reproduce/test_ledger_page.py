"""The ledger in docs/reproduction.md is what the command writes, and pages without markers are
refused.

Seen red under: a digit changed in the page; a sentence changed in tables.yaml.
"""

from __future__ import annotations

import shutil

import pytest

from moco_transfer.cli.main import main


def test_docs__the_page_is_up_to_date(repository, tmp_path):
    page = repository / "docs" / "reproduction.md"
    copy = shutil.copy(page, tmp_path)
    assert main(["reproduce", "--docs", str(copy)]) == 0
    assert (tmp_path / page.name).read_text("utf-8") == page.read_text("utf-8"), (
        "run `moco-transfer reproduce --docs`"
    )


@pytest.mark.parametrize("text", ["", "<!-- reproduce:end --><!-- reproduce:begin -->"])
def test_docs__a_page_without_markers_stays_as_it_is(text, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(text)
    assert main(["reproduce", "--docs", str(page)]) == 2
    assert page.read_text() == text
    assert "reproduce:begin" in capsys.readouterr().err
