"""Features of labelled folders: evaluation mode, order, labels, unreadable images, one process
and two; encoders out of files.

Seen red under: BN left in training mode; the images' order reversed; unreadable images kept;
    max-pool kept in the CIFAR encoder; test
classes numbered on their own; both sides resized to the shorter one's length; padding of a short
share taken for an image; no all-reduce of the classifier's gradient; encoder q taken for k.
"""

from __future__ import annotations

import os
import socket

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torchvision
from PIL import Image
from torch import nn
from torchvision import transforms

from moco_transfer.data.images.cifar10 import CIFAR10_CLASSES
from moco_transfer.data.images.decode import read_rgb
from moco_transfer.data.images.folder import find_images
from moco_transfer.data.views.augmentation import centre_view
from moco_transfer.data.views.labelled import (
    EvaluationView,
    LabelledBatches,
    find_labelled,
    protocol_resize,
)
from moco_transfer.models import build_encoder
from moco_transfer.pretrain.encoder_file import TrainedEncoder, read_encoder
from moco_transfer.pretrain.features import extract_features, trunk_of
from moco_transfer.pretrain.linear import LinearPlan, LinearProtocol, evaluate_linear
from moco_transfer.runtime.device import Compute
from moco_transfer.runtime.errors import InputError, MissingFileError

MEAN, STD = (120.0, 110.0, 100.0), (50.0, 60.0, 70.0)
VIEW = EvaluationView(8, 9, MEAN, STD)
CPU = Compute(torch.device("cpu"))


class Tiny(nn.Module):
    """A convolution, BN and pooling as a ResNet names them, with a head of three outputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1 = nn.Conv2d(3, 6, 3)
        self.bn1 = nn.BatchNorm2d(6)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(6, 3)
        self.bn1.running_mean.uniform_()
        self.bn1.running_var.uniform_(0.5, 2)

    def forward(self, x):
        return self.fc(self.avgpool(self.bn1(self.conv1(x))).flatten(1))


@pytest.fixture(scope="module")
def labelled_folders(tmp_path_factory):
    """Eleven images in three class folders; the classes differ in brightness."""
    root = tmp_path_factory.mktemp("labelled")
    rng = np.random.default_rng(0)
    for i in range(11):
        name = "cab"[i % 3]
        (root / name).mkdir(exist_ok=True)
        pixels = rng.integers(0, 80, (14, 12 + i, 3)) + 70 * (i % 3)
        Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i:02d}.png")
    return root


def expected_features(folder, network):
    """One image at a time through torchvision's transforms."""
    chain = transforms.Compose(
        [transforms.Resize(VIEW.resize), transforms.CenterCrop(VIEW.size), transforms.PILToTensor()]
    )
    rows = []
    for i in range(len(folder)):
        pixels = chain(read_rgb(folder.content(i))).float()
        image = torch.stack([(pixels[c] - MEAN[c]) / STD[c] for c in range(3)])
        with torch.no_grad():
            rows.append(network(image[None])[0])
    return torch.stack(rows)


def test_extract_features__equal_one_image_at_a_time_in_evaluation_mode(labelled_folders):
    folder, _ = find_labelled(labelled_folders, labelled_folders)
    network = Tiny().train()
    before = {name: t.clone() for name, t in network.state_dict().items()}
    got = extract_features(
        network, LabelledBatches(folder, VIEW, batch_size=4), CPU, description="test"
    )
    assert network.training and all(
        torch.equal(before[name], t) for name, t in network.state_dict().items()
    )
    torch.testing.assert_close(
        got.features, expected_features(folder, network.eval()), atol=1e-5, rtol=1e-5
    )
    assert got.class_names == ("a", "b", "c")
    assert (
        got.labels.tolist() == [0] * 4 + [1] * 3 + [2] * 4
    )  # c0 a1 b2 c3 a4 b5 c6 a7 b8 c9 a10, sorted by path
    assert not got.features.requires_grad


def test_labelled_batches__decode_a_small_set_only_once(labelled_folders, monkeypatch):
    folder, _ = find_labelled(labelled_folders, labelled_folders)
    batches = LabelledBatches(folder, VIEW, batch_size=4)
    first = list(batches("first"))
    monkeypatch.setattr(
        "moco_transfer.data.images.folder.ImageFolder.content", None
    )  # a second decoding would fail
    for a, b in zip(first, batches("second"), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_extract_features__unreadable_image_is_left_out_and_logged(
    labelled_folders, tmp_path, caplog
):
    for i, name in enumerate(("a/1.png", "a/2.png", "b/3.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(
            (labelled_folders / "c" / "00.png").read_bytes() if i != 1 else b"no image"
        )
    folder, _ = find_labelled(tmp_path, tmp_path)
    got = extract_features(Tiny(), LabelledBatches(folder, VIEW), CPU, description="test")
    assert got.labels.tolist() == [0, 1] and got.num_unreadable == 1
    assert torch.equal(got.features[0], got.features[1])
    assert str(tmp_path / "a" / "2.png") in caplog.text


def test_find_labelled__numbers_by_name_and_errors(labelled_folders, tmp_path):
    for name in ("b", "c"):
        (tmp_path / "test" / name).mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(tmp_path / "test" / name / "0.png")
    _, test = find_labelled(labelled_folders, tmp_path / "test")
    assert test.labels.tolist() == [1, 2] and test.class_names == (
        "a",
        "b",
        "c",
    )  # as the training folder numbers them
    (tmp_path / "test" / "c").rename(tmp_path / "test" / "z")
    with pytest.raises(InputError, match="1 classes that .* lacks, the first is 'z'"):
        find_labelled(labelled_folders, tmp_path / "test")
    with pytest.raises(InputError, match="at least two classes, found 0"):
        find_labelled(labelled_folders / "a", labelled_folders)
    with pytest.raises(MissingFileError):
        find_labelled(labelled_folders, tmp_path / "nowhere")


def test_find_labelled__takes_cifar10_by_its_splits(tmp_path):
    for i, name in enumerate(CIFAR10_CLASSES):
        for split in ("train", "test"):
            folder = tmp_path / "c" / split / name
            folder.mkdir(parents=True)
            Image.new("RGB", (32, 32), (20 * i, 255 * (split == "test"), 0)).save(folder / "0.png")
    train, test = find_labelled(tmp_path / "c", tmp_path / "c")
    assert train.labels.tolist() == test.labels.tolist() == list(range(10))
    pixels = [np.asarray(read_rgb(part.content(3)))[0, 0].tolist() for part in (train, test)]
    assert pixels == [[60, 0, 0], [60, 255, 0]]


def test_centre_view__equals_torchvisions_chain_also_where_nothing_is_resized():
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (37, 53, 3), dtype=np.uint8))
    chain = transforms.Compose([transforms.Resize(20), transforms.CenterCrop(16)])
    assert np.array_equal(centre_view(image, size=16, resize=20), np.asarray(chain(image)))
    square = image.crop((0, 0, 32, 32))
    assert np.array_equal(
        centre_view(square, size=32, resize=32), np.asarray(square)
    )  # the CIFAR-10 demo's test transform
    assert protocol_resize(224) == 256


@pytest.mark.parametrize("arch", ["resnet18", "resnet18_cifar", "resnet50"])
def test_trunk_of__is_what_the_head_sees(arch):
    torch.manual_seed(0)
    encoder = build_encoder(arch, num_classes=5).eval()
    seen = []
    encoder.fc.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        encoder(images)
        assert torch.equal(trunk_of(encoder)(images), seen[0])


def test_cifar_encoder__stem_resolution_parameters_and_initialisation():
    """The official demo's network has 11,234,496 parameters with 128 outputs (its ``ModelBase``,
    run outside this repository).
    """
    torch.manual_seed(0)
    encoder = build_encoder("resnet18_cifar", num_classes=128)
    assert sum(p.numel() for p in encoder.parameters()) == 11_234_496
    assert set(encoder.state_dict()) == set(torchvision.models.resnet18().state_dict())
    assert encoder.conv1.bias is None and encoder.conv1.stride == (1, 1)
    stages = []
    for stage in (encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4):
        stage.register_forward_hook(
            lambda module, inputs, output: stages.append(tuple(output.shape[1:]))
        )
    encoder(torch.randn(2, 3, 32, 32))
    assert stages == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]
    # nn.Conv2d's own: uniform within 1 / sqrt(27), so the spread is a third of the ResNet's normal
    # one, sqrt(2 / 576)
    bound = 27**-0.5
    assert (
        encoder.conv1.weight.abs().max() <= bound
        and encoder.conv1.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    )
    assert encoder.layer1[0].conv1.weight.std().item() == pytest.approx((2 / 576) ** 0.5, rel=0.05)


def test_read_encoder__official_names_and_both_encoders(tmp_path):
    torch.manual_seed(0)
    q, k = build_encoder("resnet18", num_classes=16), build_encoder("resnet18", num_classes=16)
    state = {
        f"module.encoder_{n}.{key}": t
        for n, e in (("q", q), ("k", k))
        for key, t in e.state_dict().items()
    }
    checkpoint = {
        "arch": "resnet18",
        "epoch": 200,
        "state_dict": state | {"module.queue": torch.zeros(16, 4)},
    }
    path = str(tmp_path / "official.pth.tar")
    torch.save(checkpoint, path)
    images = torch.randn(2, 3, 64, 64)
    for name, encoder in (("q", q), ("k", k)):
        found = read_encoder(path, encoder=name)
        with torch.no_grad():
            assert torch.equal(found.network(images), encoder.eval()(images))
        assert (found.has_head, found.mechanism, found.epoch) == (True, "moco", 200)
        assert found.view == EvaluationView(
            224, 256, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
        )
    assert not found.network.training and not any(
        p.requires_grad for p in found.network.parameters()
    )
    del checkpoint["state_dict"]["module.encoder_q.layer4.1.bn2.running_var"]
    torch.save(checkpoint, path)
    with pytest.raises(
        InputError,
        match=r"99 of 100 .* Missing \(1\): \S*module.encoder_q.layer4.1.bn2.running_var",
    ):
        read_encoder(path)
    torch.save({"state_dict": {"conv1.weight": torch.zeros(1)}}, path)
    with pytest.raises(InputError, match="holds no ResNet"):
        read_encoder(path)


def test_read_encoder__a_backbone_needs_every_tensor_but_no_head(tmp_path):
    tensors = {
        n: t
        for n, t in build_encoder("resnet18", num_classes=1).state_dict().items()
        if not n.startswith("fc.")
    }

    def read(**changed: torch.Tensor):
        torch.save(tensors | {n.replace("__", "."): t for n, t in changed.items()}, tmp_path / "b")
        return read_encoder(str(tmp_path / "b"))

    found = read()
    assert not found.has_head and found.arch == "resnet18"
    assert torch.equal(found.network.layer4[1].conv2.weight, tensors["layer4.1.conv2.weight"])
    with pytest.raises(InputError, match="Misshapen .* layer4.1.conv2.weight"):
        read(layer4__1__conv2__weight=torch.zeros(3))
    with pytest.raises(InputError, match="conv1.weight.* have NaN or infinite values"):
        read(conv1__weight=torch.full_like(tensors["conv1.weight"], float("nan")))


def both(root, folder) -> dict:
    """Return what one process, or each of two, finds."""
    found = {
        "features": extract_features(
            Tiny(), LabelledBatches(find_images(root), VIEW, batch_size=3), CPU, description="test"
        )
    }
    for cache in (False, True):
        # 11 images, batch 5: the last batch has one image, so the second process has none of it
        protocol = LinearProtocol(lr=2.0, epochs=3, batch_size_total=5)
        out = folder / f"cached{cache}"
        out.mkdir(parents=True, exist_ok=True)
        train, test = find_labelled(root, root)
        encoder = TrainedEncoder(Tiny().eval().requires_grad_(False), "tiny", VIEW, True)
        record = evaluate_linear(
            LinearPlan(encoder, train, test, {}, CPU, out, protocol, cache_features=cache)
        )
        found[cache] = (record["top1"], record["train_loss"])
    return found


def in_process(rank: int, port: int, root, folder) -> None:
    """Body of each of two processes."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.save(both(root, folder / "two"), folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes__find_what_one_finds(labelled_folders, tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(in_process, (port, labelled_folders, tmp_path), nprocs=2)
    one = both(labelled_folders, tmp_path / "one")
    for rank in range(2):
        two = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        torch.testing.assert_close(
            two["features"].features, one["features"].features, atol=1e-6, rtol=1e-6
        )
        assert two["features"].labels.tolist() == one["features"].labels.tolist()
        for cache in (False, True):
            assert two[cache] == pytest.approx(one[cache], rel=1e-4)
    weights = [
        torch.load(tmp_path / n / "cachedTrue" / "checkpoint_0003.pth", weights_only=True)[
            "state_dict"
        ]
        for n in ("one", "two")
    ]
    torch.testing.assert_close(weights[0], weights[1], atol=1e-5, rtol=1e-5)


def test_extract_features__no_readable_image__one_sentence(tmp_path):
    for name in ("a/0.jpg", "b/1.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"no image")
    images, _ = find_labelled(tmp_path, tmp_path)
    network = nn.Sequential(nn.Flatten(1), nn.Linear(192, 3))
    with pytest.raises(
        InputError, match=r"kNN test: none of the images can be read, the first is .*0.jpg"
    ):
        extract_features(network, LabelledBatches(images, VIEW), CPU, description="kNN test")
    assert network.training
