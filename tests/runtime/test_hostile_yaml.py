"""Hostile YAML and JSON: one sentence at once, by every reader of files from elsewhere.

Seen red under: PyYAML's own ValueErrors let through; aliases not counted; merges not counted; a
level of aliases not counted as a level; safe_load in a reader.
"""

from __future__ import annotations

import json
import time

import pytest
import yaml

from moco_transfer.benchmark.matrix import read_matrix
from moco_transfer.config import load_detection_config, load_pretrain_config
from moco_transfer.convert.huggingface import read_facts
from moco_transfer.data.annotations.coco import load_json
from moco_transfer.data.images.decode import decode_pixels
from moco_transfer.report.pretraining import find_pretraining
from moco_transfer.runtime.errors import InputError
from moco_transfer.runtime.text import carried_config, parse_json, parse_yaml, read_yaml

LAUGHS = "A0: &a0 {X: 1}\n" + "".join(
    f"A{i + 1}: &a{i + 1} {{" + ", ".join(f"K{k}: *a{i}" for k in range(9)) + "}\n"
    for i in range(9)
)
KEYS = ", ".join(f"K{i}: 1" for i in range(1000))
MERGES = f"A0: &a0 {{{KEYS}}}\nA1: {{<<: [{', '.join(['*a0'] * 2000)}]}}\n"
CHAIN = "A0: &a0 {X: 1}\n" + "".join(f"A{i + 1}: &a{i + 1} {{X: *a{i}}}\n" for i in range(1000))
YAML = {
    "merges": MERGES,
    "chain": CHAIN,
    "large": "A: 1\n" * 200_001,
    "many keys": "".join(f"A{i}: 1\n" for i in range(8000)) + "A0: 1",
    "deep mapping": "A: " + "{a: " * 3000,
    "billion laughs": LAUGHS,
    "within itself": "A: &a {B: *a}",
    "no date": "A: 2001-99-99",
    "no number": "A: !!float x",
    "5000 digits": "A: " + "1" * 5000,
    "code": "A: !!python/object/apply:os.system ['touch pwned']",
}


def carried(file):
    return carried_config(file.read_text(), file)


def matrix(file):
    return read_matrix(file, "out")


@pytest.mark.parametrize("name", YAML)
@pytest.mark.parametrize(
    "read", [read_yaml, load_detection_config, load_pretrain_config, matrix, carried]
)
def test_yaml__one_sentence(tmp_path, read, name):
    file, since = tmp_path / "a.yaml", time.process_time()
    file.write_text(YAML[name])
    with pytest.raises(InputError) as caught:
        read(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "pwned").exists() and time.process_time() - since < 8  # s; 1 here


@pytest.mark.parametrize("name", YAML)
def test_page__a_hostile_config_of_a_run_is_no_config(tmp_path, name):
    row = {"iteration": 1, "loss": 1.0, "contrast_acc1": 1.0}
    (tmp_path / "metrics.json").write_text(json.dumps(row))
    (tmp_path / "config.yaml").write_text(YAML[name])
    [run], _ = find_pretraining([tmp_path], [])
    assert (run.mechanism, run.arch, run.epochs) == ("", "", None)


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 200_000, "1" * 5000])
def test_json__one_sentence(tmp_path, text):
    with pytest.raises(ValueError):
        parse_json(text)
    (tmp_path / "config.json").write_text(text)
    for read in (load_json, lambda file: read_facts(file.with_name("w.safetensors"))):
        with pytest.raises(InputError) as caught:
            read(tmp_path / "config.json")
        assert "config.json" in str(caught.value) and "\n" not in str(caught.value)


def test_parse__what_the_libraries_read():
    text = "A: &a [1, 2.5, null, yes, 2001-01-01]\nZ: &z {k: 1, l: 2}\n"
    text += "M: {x: &x {<<: *z, k: 3}}\nN: {<<: *x}\nB: {<<: {C: *a}, D: *a}\n"
    assert parse_yaml(text) == yaml.safe_load(text)
    assert parse_json('{"a": [1, 1e999, "x"]}') == json.loads('{"a": [1, 1e999, "x"]}')


@pytest.mark.parametrize("key", ["SOLVER.EPOCHS", "DATA.CROP_SCALE"])
def test_config__a_key_without_a_value(tmp_path, key):
    (tmp_path / "a.yaml").write_text(f"{key}: null\n")
    with pytest.raises(InputError, match=key):
        load_pretrain_config(tmp_path / "a.yaml")


def test_image__a_npy_header_that_ends_within_a_bracket():
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (12, 10, 3), ".ljust(117) + b"\n"
    with pytest.raises(ValueError, match="npy"):
        decode_pixels(b"\x93NUMPY\1\0v\0" + header + bytes(360))
