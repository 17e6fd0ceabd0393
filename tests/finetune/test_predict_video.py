"""predict on a video and on names from stdin; and what COCO's readers make of its file.

Seen red under: frames counted from 1; channels swapped in frames or in the drawn video; another
frame rate; one file name for all frames; all names read before the first image; nothing written
after Ctrl-C; the video of a killed process under a name of its own.
"""

from __future__ import annotations

import contextlib
import io
import json
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO
from test_predict import NAMES, save_run, write_image

from moco_transfer.cli.main import main
from moco_transfer.finetune import load_detector

FRAMES, WIDTH, HEIGHT, RATE = 7, 90, 70, 12.0


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    save_run(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """A video of seven different frames."""
    folder = tmp_path_factory.mktemp("clip")
    path = folder / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), RATE, (WIDTH, HEIGHT))
    for number in range(FRAMES):
        writer.write(cv2.imread(str(write_image(folder / f"{number}.png", seed=number))))
    writer.release()
    return path


def frames_of(path: Path) -> list[np.ndarray]:
    capture, frames = cv2.VideoCapture(str(path)), []
    while (frame := capture.read()[1]) is not None:
        frames.append(np.ascontiguousarray(frame[:, :, ::-1]))
    return frames


def predict(run: Path, *words: object) -> int:
    return main(["predict", str(run), *map(str, words), "--threshold", "0.05", "--device", "cpu"])


def test_video__each_frame_has_an_entry_and_the_drawn_video_its_form(run, clip, tmp_path, capsys):
    image = write_image(tmp_path / "still.png")
    assert predict(run, clip, image, "--output", tmp_path / "out") == 0
    assert f"{FRAMES + 1} images and frames drawn" in capsys.readouterr().out
    entries = json.loads((tmp_path / "out" / "detections.json").read_text())["images"]
    assert [entry.get("frame") for entry in entries] == [*range(FRAMES), None]
    detector, frames = load_detector(run, score_threshold=0.05, device="cpu"), frames_of(clip)
    for entry, pixels in zip(entries, frames, strict=False):
        boxes = [each["box"] for each in entry["detections"]]
        np.testing.assert_allclose(boxes, detector(pixels)["boxes"], atol=0.006)
        assert entry["file"] == str(clip) and entry["drawn"] == "clip.avi.mp4"
    assert len({json.dumps(entry["detections"]) for entry in entries}) > FRAMES // 2
    drawn = cv2.VideoCapture(str(tmp_path / "out" / "clip.avi.mp4"))
    assert drawn.get(cv2.CAP_PROP_FPS) == pytest.approx(RATE)
    shown = frames_of(tmp_path / "out" / "clip.avi.mp4")
    assert len(shown) == FRAMES and shown[0].shape == (HEIGHT, WIDTH, 3)
    still = cv2.imread(str(tmp_path / "out" / "still.png"))[:, :, ::-1]
    first = np.abs(shown[0].astype(int) - still).mean()  # still.png is the first frame
    assert first < 25 < np.abs(shown[0].astype(int) - still[:, :, ::-1]).mean()
    assert not [p for p in (tmp_path / "out").iterdir() if p.name.startswith(".")]


KILLED = """
import os, signal, sys
import numpy as np
from moco_transfer.finetune.predict.video import Video, drawn_video
from pathlib import Path
video = Video(sys.argv[1])
with drawn_video(Path(sys.argv[2]), video) as draw:
    draw(np.zeros((*video.size[::-1], 3), np.uint8))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_video__of_a_killed_process_is_removed_by_the_next(run, clip, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, str(clip), str(out / "clip.avi.mp4")]
    assert subprocess.run(command, timeout=120).returncode == -signal.SIGKILL
    assert len(list(out.iterdir())) == 1
    assert predict(run, write_image(tmp_path / "still.png"), "--output", out) == 0
    assert not [p for p in out.iterdir() if p.name.startswith(".")]


def test_coco_file__is_read_by_pycocotools_as_data_set_and_as_results(run, clip, tmp_path):
    assert predict(run, clip, "--output", tmp_path) == 0
    record = json.loads((tmp_path / "detections.json").read_text())
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(tmp_path / "coco.json"))
        results = coco.loadRes(coco.dataset["annotations"])
    assert [coco.cats[number]["name"] for number in sorted(coco.cats)] == NAMES
    names = [coco.imgs[number]["file_name"] for number in sorted(coco.imgs)]
    assert names == [f"clip/frame_{number:06d}.png" for number in range(FRAMES)]
    for number, entry in enumerate(record["images"], start=1):
        found = [results.anns[i] for i in results.getAnnIds(imgIds=number)]
        assert [each["score"] for each in found] == [d["score"] for d in entry["detections"]]
        for each, detection in zip(found, entry["detections"], strict=True):
            x, y, width, height = each["bbox"]
            np.testing.assert_allclose([x, y, x + width, y + height], detection["box"], atol=0.006)


def test_coco_file__is_imported_by_fiftyone(run, tmp_path):
    """FiftyOne's own importer reads the file, without its database."""
    coco = pytest.importorskip("fiftyone.utils.coco", reason="fiftyone is not installed")
    for name in ("a.png", "b.png"):
        write_image(tmp_path / "images" / name, seed=len(name))
    assert predict(run, tmp_path / "images", "--output", tmp_path / "out") == 0
    importer = coco.COCODetectionDatasetImporter(
        data_path=str(tmp_path / "images"), labels_path=str(tmp_path / "out" / "coco.json")
    )
    with importer:
        samples = list(importer)
    entries = json.loads((tmp_path / "out" / "detections.json").read_text())["images"]
    assert [Path(path).name for path, *_ in samples] == ["a.png", "b.png"]
    for (_, _, labels), entry in zip(samples, entries, strict=True):
        found = labels["detections"].detections
        assert [each.label for each in found] == [each["class"] for each in entry["detections"]]
        for each, detection in zip(found, entry["detections"], strict=True):
            x, y, width, height = np.array(each.bounding_box) * [WIDTH, HEIGHT, WIDTH, HEIGHT]
            np.testing.assert_allclose([x, y, x + width, y + height], detection["box"], atol=0.01)
            assert each.confidence == pytest.approx(detection["score"])


def test_stdin__images_are_looked_at_as_they_come(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    out, seen = tmp_path / "out", []

    def names():
        for name in ("a.png", "gone.png", "sub/a.png"):
            if name != "gone.png":
                write_image(tmp_path / name)
            yield f"{name}\n".encode()
            seen.append(sorted(path.name for path in out.rglob("*.png")))

    monkeypatch.setattr("sys.stdin", type("Stdin", (), {"buffer": names()}))
    assert predict(run, "-", "--output", out) == 0
    assert seen == [["a.png"], ["a.png"], ["a-2.png", "a.png"]]
    record = json.loads((out / "detections.json").read_text())
    assert [entry["file"] for entry in record["images"]] == ["a.png", "sub/a.png"]
    assert [each["file"] for each in record["skipped"]] == ["gone.png"]


def test_stdin__what_was_found_until_ctrl_c_is_written(run, tmp_path, monkeypatch):
    image = write_image(tmp_path / "a.png")

    def names():
        yield f"{image}\n".encode()
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.stdin", type("Stdin", (), {"buffer": names()}))
    with contextlib.suppress(KeyboardInterrupt):
        assert predict(run, "-", "--output", tmp_path / "out") != 0
    assert len(json.loads((tmp_path / "out" / "coco.json").read_text())["images"]) == 1


@pytest.mark.parametrize(
    ("content", "words", "said"),
    [
        (b"no video", ["clip.mp4"], "clip.mp4 is no video"),
        (b"", ["-", "clip.mp4"], "stdin"),
        (b"", ["-"], "No image was named"),
    ],
)
def test_video__what_is_wrong_is_said(content, words, said, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("clip.mp4").write_bytes(content)
    monkeypatch.setattr("sys.stdin", type("Stdin", (), {"buffer": iter(())}))
    assert predict(run, *words, "--output", "out") == 2
    assert said in capsys.readouterr().err and not Path("out", "detections.json").exists()


def test_video__a_cut_one_ends_early(run, clip, tmp_path):
    data = clip.read_bytes()
    (tmp_path / "cut.avi").write_bytes(data[: len(data) * 2 // 3])
    assert predict(run, tmp_path / "cut.avi", "--output", tmp_path / "out") == 0
    entries = json.loads((tmp_path / "out" / "detections.json").read_text())["images"]
    assert 0 < len(entries) < FRAMES
