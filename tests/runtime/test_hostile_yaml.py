"""Hostile YAML: one sentence at once, by every reader of configs.

Seen red under: PyYAML's own ValueErrors let through; aliases not counted.
"""

from __future__ import annotations

import pytest

from moco_transfer.config import load_detection_config, load_pretrain_config
from moco_transfer.runtime.errors import InputError
from moco_transfer.runtime.text import read_yaml

LAUGHS = "A0: &a0 {X: 1}\n" + "".join(
    f"A{i + 1}: &a{i + 1} {{" + ", ".join(f"K{k}: *a{i}" for k in range(9)) + "}\n"
    for i in range(9)
)
YAML = {
    "deep mapping": "A: " + "{a: " * 3000,
    "billion laughs": LAUGHS,
    "within itself": "A: &a {B: *a}",
    "no date": "A: 2001-99-99",
    "no number": "A: !!float x",
    "5000 digits": "A: " + "1" * 5000,
    "code": "A: !!python/object/apply:os.system ['touch pwned']",
}


@pytest.mark.parametrize("name", YAML)
@pytest.mark.parametrize("read", [read_yaml, load_detection_config, load_pretrain_config])
def test_yaml__one_sentence(tmp_path, read, name):
    file = tmp_path / "a.yaml"
    file.write_text(YAML[name])
    with pytest.raises(InputError) as caught:
        read(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "pwned").exists()
