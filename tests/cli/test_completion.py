"""Tab in a shell, by argcomplete's own protocol: COMP_LINE and COMP_POINT in, words out.

Seen red under: no completer of --tasks; keys offered where a value is due; pre-training configs
offered to train; options of torchrun left out; torch imported.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from .conftest import environment

ASK = [sys.executable, "-X", "importtime", "-m", "moco_transfer"]


def words(tmp_path, line: str) -> list[str]:
    """Return what is offered at the end of a line."""
    answer = tmp_path / "answer"
    more = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_SHELL": "bash"}
    more |= {"COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9"}
    env = environment() | more | {"_ARGCOMPLETE_STDOUT_FILENAME": str(answer)}
    done = subprocess.run(ASK, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout == "", done.stderr
    assert " torch\n" not in done.stderr  # a shell waits
    return [word.strip() for word in answer.read_text().splitlines()]


@pytest.mark.parametrize(
    ("line", "offered", "withheld"),
    [
        ("moco-transfer re", {"report", "reproduce"}, {"pretrain"}),
        ("moco-transfer train --allow", {"--allow-partial"}, {"--force"}),
        ("moco-transfer train --num-g", {"--num-gpus"}, set()),
        ("moco-transfer convert --to ", set(), {"q", "k"}),
        ("moco-transfer convert --encoder ", {"q", "k"}, set()),
        ("moco-transfer pretrain --config-file moco_v2_R_5", {"moco_v2_R_50_200ep"}, set()),
        ("moco-transfer train --config-file ", {"pascal_voc_R_50_C4_24k", "mine.yaml"},
         {"moco_v2_R_50_200ep"}),
        ("moco-transfer benchmark --tasks pascal_voc_R_50_C", {"pascal_voc_R_50_C4_24k"}, set()),
        ("moco-transfer pretrain --config-file a MOCO.T", {"MOCO.TEMPERATURE"}, {"MOCO.DIM"}),
        ("moco-transfer pretrain --config-file a SEED 1 TRAIN.PRECISION ", {"bf16", "auto"},
         {"SEED"}),
        ("moco-transfer train --config-file a DATASETS.TEST voc_2", {"voc_2007_test"}, set()),
        ("moco-transfer check-data coco_2017_v", {"coco_2017_val"}, {"voc_2007_test"}),
        ("moco-transfer reproduce tab", {"table1", "table6"}, {"fig3"}),
        ("moco-transfer convert moco_v2", {"moco_v2_200ep", "moco_v2_800ep"}, {"moco_v1_200ep"}),
        ("moco-transfer schema ", {"pretrain", "detection", "results"}, set()),
    ],
)  # fmt: skip
def test_completion(tmp_path, line, offered, withheld):
    (tmp_path / "mine.yaml").write_text("SEED: 1\n")
    found = set(words(tmp_path, line))
    assert offered <= found and not withheld & found, found


def test_completion__in_a_shell(tmp_path):
    """The line of docs/cli.md, and Tab, in bash."""
    bash, register = (
        shutil.which(n, path=_path()) for n in ("bash", "register-python-argcomplete")
    )
    if not bash or not register:
        pytest.skip("needs bash and argcomplete's scripts")
    program = tmp_path / "bin" / "moco-transfer"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m moco_transfer "$@"\n')
    program.chmod(0o755)
    script = f"""
PATH={program.parent}:$PATH
eval "$({register} moco-transfer)"
COMP_LINE='moco-transfer che' COMP_POINT=17 COMP_TYPE=9
_python_argcomplete moco-transfer
echo "${{COMPREPLY[@]}}"
"""
    done = subprocess.run([bash, "-c", script], env=environment(), capture_output=True, text=True)
    assert done.stdout.split() == ["check-data"], done.stderr


def _path() -> str:
    return os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
