"""The JSON schemas that editors use agree with what the program accepts.

Seen red under: additional keys allowed; 1e-3 no number; a required key of results.json optional; an
entry of ONE_OF left out; comments of another key.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft7Validator

from moco_transfer.cli.main import main
from moco_transfer.config import load_detection_config, load_pretrain_config
from moco_transfer.config.pretrain_schema import AT_LEAST, ONE_OF
from moco_transfer.runtime.errors import InputError

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGS = sorted((REPOSITORY / "configs").rglob("*.yaml"))
RESULTS = sorted((REPOSITORY / "docs" / "results").rglob("results.json"))


@pytest.fixture(scope="module")
def schemas(tmp_path_factory):
    """What the command writes, by kind."""
    found = {}
    for kind in ("pretrain", "detection", "results"):
        file = tmp_path_factory.mktemp("schemas") / f"{kind}.schema.json"
        assert main(["schema", kind, "--output", str(file)]) == 0
        content = json.loads(file.read_text())
        Draft7Validator.check_schema(content)
        found[kind] = content
    return found


def faults(schema: dict, content: object) -> list[str]:
    return [error.message for error in Draft7Validator(schema).iter_errors(content)]


def test_schema__is_printed_without_output(schemas, capsys):
    assert main(["schema", "results"]) == 0
    assert json.loads(capsys.readouterr().out) == schemas["results"]


def test_configs__of_the_package_are_valid(schemas):
    assert len(CONFIGS) > 50
    for file in CONFIGS:
        kind = "pretrain" if file.parent.name == "pretrain" else "detection"
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        assert faults(schemas[kind], content) == [], file


def test_results__of_the_repository_are_valid(schemas):
    assert len(RESULTS) > 50
    for file in RESULTS:
        assert faults(schemas["results"], json.loads(file.read_text())) == [], file


@pytest.mark.parametrize(
    ("kind", "content", "named"),
    [
        ("pretrain", {"MOCO": {"TEMPRATURE": 0.1}}, "TEMPRATURE"),
        ("pretrain", {"MOCO": {"QUEUE_SIZE": "many"}}, "many"),
        ("pretrain", {"MOCO": {"QUEUE_SIZE": 0}}, "0"),
        ("pretrain", {"MODEL": {"ARCH": "resnet51"}}, "resnet51"),
        ("pretrain", {"DATA": {"PIXEL_MEAN": ["a"]}}, "a"),
        ("detection", {"SOLVER": {"BASE_LRR": 0.1}}, "BASE_LRR"),
        ("detection", {"MODEL": {"MASK_ON": "perhaps"}}, "perhaps"),
        ("detection", {"SOLVER": {"STEPS": "18000"}}, "18000"),
    ],
)
def test_config__that_is_refused_is_not_valid(schemas, tmp_path, kind, content, named):
    (message,) = faults(schemas[kind], content)
    assert named in message
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(content))
    load = load_pretrain_config if kind == "pretrain" else load_detection_config
    with pytest.raises(InputError):
        load(tmp_path / "my.yaml")


def test_config__that_is_accepted_is_valid(schemas, tmp_path):
    texts = {
        "pretrain": "_BASE_: a.yaml\nSOLVER: {BASE_LR: 3e-2, STEPS: [1, 2]}\n",
        "detection": "MODEL: {PIXEL_MEAN: [1.0, 2, 3.5]}\n"
        'SOLVER: {STEPS: "(18000, 22000)", BASE_LR: 1e-3}\nLOGGERS: [csv]\n',
    }
    (tmp_path / "a.yaml").write_text("SEED: 1\n")
    for kind, load in (("pretrain", load_pretrain_config), ("detection", load_detection_config)):
        file = tmp_path / f"{kind}.yaml"
        file.write_text(texts[kind])
        load(file)
        assert faults(schemas[kind], yaml.safe_load(texts[kind])) == []


def test_results__with_a_mistyped_key_or_value(schemas):
    good = json.loads(RESULTS[0].read_text())
    renamed = copy.deepcopy(good)
    renamed["config_hsah"] = renamed.pop("config_hash")
    assert any("config_hash" in message for message in faults(schemas["results"], renamed))
    changes = {"seed": "0", "schema": 2, "metrics": {}, "world_size": 1.5}
    for key, value in changes.items():
        assert len(faults(schemas["results"], good | {key: value})) == 1, key
    nested = copy.deepcopy(good)
    nested["dataset"]["test"] = []
    assert faults(schemas["results"], nested)


def test_schema__explains_keys_and_has_the_legal_values(schemas):
    def entry(kind: str, key: str) -> dict:
        place = schemas[kind]
        for name in key.split("."):
            place = place["properties"][name]
        return place

    assert all(entry("pretrain", key)["enum"] == list(legal) for key, legal in ONE_OF.items())
    assert all(entry("pretrain", key)["minimum"] == low for key, low in AT_LEAST.items())
    assert entry("pretrain", "MOCO.DIM")["description"].startswith("Dimension C of the features")
    assert entry("pretrain", "MECHANISM")["description"].startswith("What is trained")
    assert "freeze stem" in entry("detection", "MODEL.BACKBONE.FREEZE_AT")["description"]
    assert "SemanticSegmentor" in entry("detection", "MODEL.SEM_SEG_HEAD.NUM_CONVS")["description"]
    assert entry("detection", "SOLVER.MAX_ITER")["default"] == 40000
