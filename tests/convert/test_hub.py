"""The folder for the Hub: timm and Transformers compute the checkpoint's features from it, its card
says what is known, and a Hub on this machine gives the same bytes back.

Seen red under: std of 0-255 in config.json; another value of fixed_input_size; a licence that
nobody gave.
"""

from __future__ import annotations

import hashlib
import http.server
import importlib.util
import json
import threading

import pytest
import torch
import torchvision
from generated_images import write_pool, write_voc_scenes

from moco_transfer.cli.main import main
from moco_transfer.convert import convert_checkpoint

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("huggingface_hub") is None, reason="huggingface-hub is not installed"
)


def needed(name):
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    network = torchvision.models.resnet18().eval()
    for module in network.modules():  # statistics that matter
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
    return network


@pytest.fixture(scope="module")
def folder(encoder, tmp_path_factory):
    place = tmp_path_factory.mktemp("hub")
    state = {f"module.encoder_q.{name}": v for name, v in encoder.state_dict().items()}
    torch.save({"arch": "resnet18", "epoch": 12, "state_dict": state}, place / "moco.pth")
    knn = {"schema": "moco_transfer.knn/1", "top1": 43.219, "top5": 70.0}
    (place / "knn").mkdir()
    (place / "knn" / "results.json").write_text(json.dumps(knn))
    words = [place / "moco.pth", place / "mine", "--to", "hub", "--results", place / "knn"]
    assert main(["convert", *map(str, words), "--license", "cc-by-4.0"]) == 0
    return place / "mine"


def features(network, images):
    stem = torch.nn.Sequential(*list(network.children())[:-1])
    with torch.no_grad():
        return stem(images).flatten(1)


IMAGES = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))


def test_folder__timm_has_the_same_features(folder, encoder):
    needed("timm")
    import timm

    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        found = model(IMAGES)
    assert (found - features(encoder, IMAGES)).abs().max() < 1e-5
    assert model.pretrained_cfg["std"] == pytest.approx([58.395 / 255, 57.12 / 255, 57.375 / 255])


def test_folder__transformers_has_the_same_features(folder, encoder):
    needed("timm"), needed("transformers")
    from transformers import AutoModel

    with torch.no_grad():
        found = AutoModel.from_pretrained(folder).eval()(IMAGES).pooler_output
    assert (found - features(encoder, IMAGES)).abs().max() < 1e-5


def test_card__says_what_is_known(folder):
    from huggingface_hub import ModelCard

    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "cc-by-4.0" and card.data.library_name == "timm"
    assert "| kNN | top-1 43.22 %, top-5 70.00 % |" in card.text and "12 epochs" in card.text
    assert "| arch | resnet18 |" in card.text and "{{" not in card.text


def test_card__no_licence_that_nobody_gave(folder, tmp_path):
    assert main(["convert", str(folder / "model.safetensors"), str(tmp_path), "--to", "hub"]) == 0
    assert "license" not in (tmp_path / "README.md").read_text()


@pytest.fixture
def hub(folder, monkeypatch, tmp_path):
    """Serve the folder as me/mine, as the Hub does; return the addresses that were asked for."""
    asked = []

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append(self.path)
            name = self.path.removeprefix("/me/mine/resolve/main/")
            file = folder / name
            found = self.path != name and file.is_file()
            content = file.read_bytes() if found else b""
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", str(len(content)))
            if found:
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                self.send_header("X-Repo-Commit", "0" * 40)
            else:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.end_headers()
            return content

        def do_GET(self):
            self.wfile.write(self.do_HEAD())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    import huggingface_hub.constants as constants
    from huggingface_hub import file_download

    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", address)  # read once, when the library is imported
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    for module in (constants, file_download):
        for name, value in (("ENDPOINT", address), ("HUGGINGFACE_CO_URL_TEMPLATE", template)):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield asked
    server.shutdown()
    server.server_close()


def test_hf_address__the_round_trip_gives_the_same_bytes(hub, folder, tmp_path):
    report = convert_checkpoint("hf://me/mine", tmp_path / "backbone.pkl")
    sha256 = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert report.stamp["source_sha256"] == sha256
    assert any("/me/mine/resolve/main/model.safetensors" in path for path in hub)


def test_hf_address__is_taken_wherever_weights_are(hub, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sha256 = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    write_pool(tmp_path / "images", count=16, size=32, seed=0)
    words = ["hf://me/mine", "--train", "images", "--test", "images", "--output", "out/knn"]
    assert main(["knn", *words, "--image-size", "32", "--workers", "0", "--k", "3"]) == 0
    result = json.loads((tmp_path / "out" / "knn" / "results.json").read_text())
    assert (result["checkpoint"], result["checkpoint_sha256"]) == ("hf://me/mine", sha256)
    write_voc_scenes(tmp_path / "voc", splits={"train": 4, "test": 2}, size=64, seed=0)
    data = [
        f"--dataset=mine_{split}=voc:voc:{split}:voc/classes.txt" for split in ("train", "test")
    ]
    sets = ["DATASETS.TRAIN", "('mine_train',)", "DATASETS.TEST", "('mine_test',)"]
    run = ["train", "--config-file", "demo_R_18_FPN", *data, "--dry-run", *sets]
    assert main([*run, "MODEL.WEIGHTS", "hf://me/mine", "OUTPUT_DIR", "out/run"]) == 0
    assert "hf://me/mine" in capsys.readouterr().out
    matrix = ["benchmark", "--tasks", "demo_R_18_FPN", *data, "--init", "moco=hf://me/mine"]
    assert main([*matrix, "--dry-run", "--output", "out/matrix", *sets]) == 0
    assert main(["knn", "hf://me/mine/gone.pth", *words[1:]]) == 2
    assert "hf://me/mine/gone.pth" in capsys.readouterr().err


def test_hf_address__what_is_not_there_is_one_sentence(hub, tmp_path, capsys):
    for address, said in (
        ("hf://me/mine/other.pth", "hf://me/mine/other.pth"),
        ("hf://me", "hf://USER"),
    ):
        assert main(["convert", address, str(tmp_path / "backbone.pkl")]) == 2
        error = capsys.readouterr().err
        assert said in error and len(error.splitlines()) == 1


def test_push__needs_the_card(folder, tmp_path, capsys):
    words = [str(folder / "model.safetensors"), str(tmp_path / "b.pkl"), "--push", "me/mine"]
    assert main(["convert", *words]) == 2
    assert "--to hub" in capsys.readouterr().err
