"""``moco-transfer convert`` as it is typed.

Seen red under: --inspect that writes a file next to the one inspected; the
    coverage counted wrongly.
"""

import pytest
from networks import one_number_each

from moco_transfer.cli.convert import _next_step
from moco_transfer.cli.main import main
from moco_transfer.convert.formats import known_formats
from moco_transfer.convert.zoo import ZOO
from moco_transfer.runtime.errors import InputError


def test_convert__prints_the_coverage_and_the_next_command(saved, tmp_path, official, capsys):
    source, output = saved(official), tmp_path / "moco.pkl"
    assert main(["convert", str(source), str(output)]) == 0
    printed = capsys.readouterr().out
    assert "expected      100 backbone tensors" in printed and "verified" in printed
    assert f"wrote         {output} (detectron2, sha256 " in printed
    assert (
        "Next: moco-transfer train --config-file " in printed
        and f" MODEL.WEIGHTS {output}" in printed
    )


def test_convert__a_refusal_is_one_sentence_and_status_2(saved, tmp_path, official_small, capsys):
    state = dict(official_small["state_dict"])
    del state["module.encoder_q.bn1.weight"]
    assert main(["convert", str(saved({"state_dict": state})), str(tmp_path / "moco.pkl")]) == 2
    printed = capsys.readouterr()
    assert (
        printed.out == ""
        and printed.err.count("\n") == 1
        and "module.encoder_q.bn1.weight" in printed.err
    )
    assert not (tmp_path / "moco.pkl").exists()


@pytest.mark.parametrize(
    "words", [[], ["only.pth"], ["a", "--inspect", "b"], ["--inspect", "nowhere.pth"]]
)
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
    assert (
        "moco.pkl covers 100 of 100 backbone tensors of resnet18. Missing (0). Unused (0)."
        in printed
    )
    assert "source_format: moco" in printed and "pixel_mean: [123.675, 116.28, 103.53]" in printed
    assert main(["convert", "--inspect", str(source)]) == 0
    printed = capsys.readouterr().out
    assert (
        "layout        MoCo v1/v2 (moco), under 'state_dict.module.encoder_q.'" in printed
        and "stamp         none" in printed
    )
    assert {path.name for path in tmp_path.iterdir()} == {"moco.pkl", "source.pth"}


@pytest.mark.parametrize(
    ("to", "arch", "words"),
    [
        ("detectron2", "resnet18", "train --config-file pascal_voc_R_18_"),
        ("detectron2", "wide_resnet50_2", "train --config-file YOUR_CONFIG.yaml MODEL.WEIGHTS x"),
        (
            "torchvision",
            "resnet50",
            (
                "model = torchvision.models.resnet50(); model.fc = torch.nn.Identity();"
                " model.load_state_dict("
            ),
        ),
        (
            "torchvision",
            "resnext50_32x8d",
            "build_encoder('resnext50_32x8d', num_classes=1); model.fc",
        ),
        ("torchvision", "resnet50_w2x", "build_encoder('resnet50_w2x', num_classes=1); model.fc"),
        ("timm", "resnet50", "timm.create_model('resnet50', num_classes=0, checkpoint_path='x')"),
        (
            "timm",
            "resnext50_32x8d",
            (
                "timm.create_model('resnext50_32x4d', base_width=8, num_classes=0,"
                " checkpoint_path='x')"
            ),
        ),
        ("huggingface", "resnet50", "AutoModel.from_pretrained('.')"),
    ],
)
def test_next_step__names_a_config_that_exists(to, arch, words):
    assert words in _next_step(to, "x", arch)


@pytest.mark.parametrize("to", ["torchvision", "timm"])
@pytest.mark.parametrize(
    "arch", ["resnet18", "resnext50_32x8d", pytest.param("resnet50_w2x", marks=pytest.mark.slow)]
)
def test_next_step__loads_the_file_that_was_written(tmp_path, arch, to):
    """The command printed is run as it is, and the network has every tensor."""
    import torch
    import torchvision  # noqa: F401 - the command names them

    import moco_transfer.models
    from moco_transfer.convert import convert_checkpoint

    if to == "timm":
        timm = pytest.importorskip("timm", reason="timm is not installed")
    with torch.device("meta"):
        shapes = moco_transfer.models.build_encoder(arch, num_classes=1).state_dict()
    state = one_number_each(
        {name: tensor for name, tensor in shapes.items() if not name.startswith("fc.")}
    )
    torch.save(state, tmp_path / "source.pth")
    output = tmp_path / ("out.pth" if to == "torchvision" else "out.safetensors")
    if (to, arch) == ("timm", "resnet50_w2x"):
        with pytest.raises(InputError, match="timm has no resnet50_w2x, whose stem is wider"):
            convert_checkpoint(tmp_path / "source.pth", output, to=to, verify=False)
        return
    convert_checkpoint(tmp_path / "source.pth", output, to=to, verify=False)
    names = {
        "torch": torch,
        "torchvision": torchvision,
        "moco_transfer": moco_transfer,
        "timm": None if to != "timm" else timm,
    }
    exec(_next_step(to, str(output), arch).removeprefix("Next: "), names)
    loaded = names["model"].state_dict()
    assert loaded.keys() == state.keys() and all(
        torch.equal(loaded[name], tensor) for name, tensor in state.items()
    )


def test_help__names_every_layout(capsys):
    with pytest.raises(SystemExit):
        main(["convert", "--help"])
    printed = capsys.readouterr().out
    assert all(f"{name}" in printed for name in known_formats())
    layouts = printed.partition("layouts (--from): ")[2].partition(";")[0]
    assert set(layouts.replace(" (and mmselfsup)", "").split()) == {
        *(f"{name}," for name in known_formats() if name != "encoder"),
        "encoder",
    }
    assert all(name in printed for name in ZOO)
