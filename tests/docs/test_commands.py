"""Every command line of README, CONTRIBUTING and docs is executed, or accepted by its parser.

Seen red under: a verb or flag misspelt in a page; a config renamed; a key renamed; a path of
docs/architecture.md moved; a command without a row in RULES.
"""

from __future__ import annotations

import importlib
import re
import shlex

import pytest

from moco_transfer.cli import main as program
from moco_transfer.config import available, load_detection_config, load_pretrain_config

from .commands import PAGES, REPOSITORY, command_lines, program_words

RUN = "run"
# The first pattern that matches a command decides: it is executed in the folder of the fixture
# `world`, with options added behind the verb, or it is only parsed, for the reason given.
RULES: list[tuple[str, str | list[str]]] = [
    (r"moco-transfer [\w-]+$(?<!doctor)(?<!reproduce)", "names a verb"),
    (r"moco-transfer reproduce --docs", "writes a page; tests/reproduce compares it"),
    (r"moco-transfer reproduce .*--output", ["--dry-run"]),
    (r"moco-transfer check-data fields ", "tests/data/test_check_labels.py checks such sets"),
    (r"moco-transfer make-labels ", "needs SBD or Cityscapes; tests/data makes label images"),
    (
        r"moco-transfer report .*--watch",
        "waits for a benchmark; tests/report/test_watch.py has one",
    ),
    (r"moco-transfer (doctor|reproduce|check-data|report|schema|suggest)\b", RUN),
    (r"moco-transfer convert (SRC|moco_v2|ResNet50_W)", "downloads, or has a placeholder"),
    (r"moco-transfer convert .*(--to hub|hf://)", "needs huggingface-hub; see test_hub.py"),
    (r"moco-transfer convert .*--to onnx", "needs a trained detector; see test_onnx.py"),
    (r"moco-transfer convert ", RUN),
    (r"moco-transfer pretrain .*DATA.CHANNELS 5", "needs images of five bands"),
    (r"moco-transfer (pretrain|train) .*(R_18|small)", ["--dry-run"]),
    (r"moco-transfer (knn|linear) out/moco", ["--workers", "0", "--image-size", "32"]),
    (r"moco-transfer (pretrain|train) ", "needs ImageNet, CIFAR-10, VOC or several GPUs"),
    (r"moco-transfer benchmark ", "needs COCO and takes hours; tests/benchmark runs one"),
    (r"moco-transfer evaluate ", "needs detections; tests/cli/test_evaluate.py has some"),
    (r"moco-transfer predict ", "needs a trained detector; tests/finetune runs it"),
    (r"moco-transfer pack ", "needs ImageNet; tests/data packs"),
    (r"moco-transfer demo", "takes 8 minutes, and the network"),
    (
        r"(MOCO_\w+=1 )?python tools/(bench|plot|screenshot|count|gpu)_",
        "takes minutes, on an idle machine",
    ),
    (r"make |pip |pre-commit |git |export |python -m (venv|pytest)", "sets up the machine"),
]
EXTRA = {"linear": ["--epochs", "1", "--cache-features"]}

COMMANDS = {program_words(line): page.name for page in PAGES for line in command_lines(page)}
IDS = [f"{page}: {command}" for command, page in COMMANDS.items()]


def _rule(command: str) -> str | list[str]:
    return next((how for pattern, how in RULES if re.match(pattern, command)), "no rule")


def _words(command: str) -> list[str]:
    return shlex.split(command)[1:]


EXECUTED = [c for c in COMMANDS if _rule(c) == RUN or isinstance(_rule(c), list)]


def test_commands__each_has_a_rule_and_each_rule_a_command():
    assert not [command for command in COMMANDS if _rule(command) == "no rule"]
    assert len(EXECUTED) > 15
    unused = [pattern for pattern, _ in RULES if not any(re.match(pattern, c) for c in COMMANDS)]
    assert not unused


@pytest.mark.parametrize("command", COMMANDS, ids=IDS)
def test_commands__are_accepted(command, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    if command.startswith("moco-transfer"):
        _assert_parsed(_words(command), monkeypatch)
    elif command.startswith("make "):
        makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
        for target in command.split()[1:]:
            assert "=" in target or re.search(rf"^{target}:", makefile, re.MULTILINE), target
    elif "pip install" in command:
        setup = (REPOSITORY / "setup.py").read_text(encoding="utf-8")
        for extra in re.findall(r"moco-transfer\[(\w+)\]", command):
            assert f'"{extra}": [' in setup
    elif match := re.search(r"python (tools/\S+)", command):
        source = (REPOSITORY / match[1]).read_text(encoding="utf-8")
        for flag in re.findall(r"(?<= )--[\w-]+", command):
            assert f'"{flag}"' in source, f"{match[1]} has no {flag}"


def _assert_parsed(words: list[str], monkeypatch) -> None:
    """Give the words to the verb's parser, and load the configs that they name."""
    verb = words[0]
    assert verb in program.VERBS
    if len(words) == 1:
        return
    seen = []
    module = importlib.import_module(f"moco_transfer.cli.{verb.replace('-', '_')}")
    monkeypatch.setattr(module, "run", lambda args: seen.append(args) or 0)
    monkeypatch.setattr(program, "torchrun_command", lambda *_: None)
    assert program.main(words) == 0
    args = seen[0]
    for task in getattr(args, "tasks", None) or []:
        assert task in available()
    if name := getattr(args, "config_file", None):
        load = load_pretrain_config if verb == "pretrain" else load_detection_config
        overrides = getattr(args, "overrides", None) or []
        assert load(name, overrides).is_frozen()


@pytest.mark.parametrize("command", EXECUTED)
def test_commands__run(command, world, monkeypatch, capsys):
    monkeypatch.chdir(world)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(world))
    verb, *rest = _words(command)
    rule = _rule(command)
    if not (world / "backbone.pkl").exists():
        source, target = "out/moco/checkpoint_0012.pth", "backbone.pkl"
        assert program.main(["convert", source, target, "--no-verify"]) == 0
        (world / "out" / "moco" / target).write_bytes((world / target).read_bytes())
    more = rule if isinstance(rule, list) else []
    before = {path: path.stat().st_mtime_ns for path in world.rglob("*")}
    assert program.main([verb, *more, *EXTRA.get(verb, []), *rest]) == 0, capsys.readouterr().err
    if more == ["--dry-run"]:
        assert {path: path.stat().st_mtime_ns for path in world.rglob("*")} == before
        assert capsys.readouterr().out


@pytest.mark.parametrize("verb", program.VERBS)
def test_examples_of_help__are_accepted(verb, monkeypatch):
    file = REPOSITORY / "moco_transfer" / "cli" / "examples" / f"{verb.replace('-', '_')}.txt"
    text = re.sub(r"\\\n\s*", "", file.read_text(encoding="utf-8"))
    lines = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    monkeypatch.chdir(REPOSITORY)
    for line in lines:
        line = program_words(re.sub(r"\s{2,}\(.*|\s+#.*", "", line))
        if line.startswith("moco-transfer ") and "..." not in line:
            for part in line.split(" && "):
                _assert_parsed(_words(part), monkeypatch)
                monkeypatch.undo()
                monkeypatch.chdir(REPOSITORY)
