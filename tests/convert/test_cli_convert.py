"""``moco-transfer convert`` as it is typed.

Seen red under: --inspect that writes a file beside the one inspected.
"""

import pytest

from moco_transfer.cli.convert import _next_step
from moco_transfer.cli.main import main


def test_convert__prints_the_coverage_and_the_next_command(saved, tmp_path, official, capsys):
    source, output = saved(official), tmp_path / "moco.pkl"
    assert main(["convert", str(source), str(output)]) == 0
    printed = capsys.readouterr().out
    assert "expected      100 backbone tensors" in printed and "verified" in printed
    assert f"wrote         {output} (detectron2, sha256 " in printed
    assert "Next: moco-transfer train --config-file " in printed and f" MODEL.WEIGHTS {output}" in printed


def test_convert__a_refusal_is_one_sentence_and_status_2(saved, tmp_path, official_small, capsys):
    state = dict(official_small["state_dict"])
    del state["module.encoder_q.bn1.weight"]
    assert main(["convert", str(saved({"state_dict": state})), str(tmp_path / "moco.pkl")]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and "module.encoder_q.bn1.weight" in printed.err
    assert not (tmp_path / "moco.pkl").exists()


@pytest.mark.parametrize("words", [[], ["only.pth"], ["a", "--inspect", "b"], ["--inspect", "nowhere.pth"]])
def test_convert__wrong_words_end_with_status_2(words, capsys):
    assert main(["convert", *words]) == 2
    assert capsys.readouterr().err.startswith("moco-transfer convert: ")


def test_inspect__says_what_a_file_is(saved, tmp_path, official_small, capsys):
    source, output = saved(official_small), tmp_path / "moco.pkl"
    main(["convert", str(source), str(output), "--no-verify"])
    assert "not verified" in capsys.readouterr().out
    assert main(["convert", "--inspect", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "layout        Detectron2 (detectron2), under 'model.'" in printed
    assert "moco.pkl covers 100 of 100 backbone tensors of resnet18. Missing (0). Unused (0)." in printed
    assert "source_format: moco" in printed and "pixel_mean: [123.675, 116.28, 103.53]" in printed
    assert main(["convert", "--inspect", str(source)]) == 0
    printed = capsys.readouterr().out
    assert "layout        MoCo v1/v2 (moco), under 'state_dict.module.encoder_q.'" in printed and "stamp         none" in printed
    assert {path.name for path in tmp_path.iterdir()} == {"moco.pkl", "source.pth"}


@pytest.mark.parametrize(
    ("to", "arch", "words"),
    [
        ("detectron2", "resnet18", "train --config-file pascal_voc_R_18_"),
        ("detectron2", "wide_resnet50_2", "train --config-file YOUR_CONFIG.yaml MODEL.WEIGHTS x"),
        (
            "torchvision",
            "resnet50",
            "model = torchvision.models.resnet50(); model.fc = torch.nn.Identity(); model.load_state_dict(",
        ),
        ("timm", "resnet50", "timm.create_model('resnet50', num_classes=0, checkpoint_path='x')"),
    ],
)
def test_next_step__names_a_config_that_exists(to, arch, words):
    assert words in _next_step(to, "x", arch)
