"""Make official_resnet18.json: what moco's own converter writes for the checkpoint of the fixture
``official``.

python tests/convert/make_official_fixture.py PATH_OF_A_CHECKOUT_OF_facebookresearch/moco
"""

from __future__ import annotations

import hashlib
import json
import pickle
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

FIXTURE = Path(__file__).with_name("official_resnet18.json")


def official_arrays(checkout: Path, checkpoint: Path, folder: Path) -> dict:
    """Run a checkout's official converter on a checkpoint and return the arrays of its file."""
    output = folder / "official.pkl"
    script = checkout / "detection" / "convert-pretrain-to-detectron2.py"
    subprocess.run(
        [sys.executable, str(script), str(checkpoint), str(output)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return pickle.loads(output.read_bytes())["model"]


def digest(arrays: dict) -> dict[str, list]:
    """Return name -> [type, shape, SHA-256 of the bytes], in the order of the file."""
    return {
        name: [str(a.dtype), list(a.shape), hashlib.sha256(a.tobytes()).hexdigest()]
        for name, a in arrays.items()
    }


def main() -> None:
    """Write the fixture."""
    checkout = Path(sys.argv[1])
    commit = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    made = runpy.run_path(str(Path(__file__).with_name("networks.py")))
    content = made["official_content"](
        made["resnet_state"]("resnet18"), made["resnet_state"]("resnet18", salt="k")
    )
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "official.pth.tar"
        torch.save(content, checkpoint)
        arrays = official_arrays(checkout, checkpoint, Path(folder))
    made_by = "python tests/convert/make_official_fixture.py CHECKOUT_OF_facebookresearch/moco"
    rows = ",\n".join(
        f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in digest(arrays).items()
    )
    FIXTURE.write_text(
        f'{{\n "command": "{made_by}",\n "commit": "{commit}",\n "model": {{\n{rows}\n }}\n}}\n'
    )


if __name__ == "__main__":
    main()
