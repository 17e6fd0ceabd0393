"""Objects drawn on an image, and grids of images: known pixels, and an SVG with the same texts."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import numpy as np
from PIL import Image

from moco_transfer.data.drawing import GAP, class_colour, draw_detections, fit, save_grid


def test_draw__box_mask_and_label():
    image = np.full((300, 400, 3), 40, np.uint8)
    mask = np.zeros((1, 300, 400), bool)
    mask[0, 120:180, 120:200] = True
    found = {
        "boxes": np.array([[100.0, 100, 220, 200]]),
        "scores": np.array([0.876]),
        "classes": np.array([1]),
        "masks": mask,
    }
    drawn = draw_detections(image, found, ["a", "b"])
    assert (image == 40).all()  # the original is left alone
    colour = np.array(class_colour(1))
    for y, x in (
        (150, 100),
        (150, 219),
        (100, 210),
        (199, 160),
    ):  # the four edges; right and lower ones are exclusive
        assert np.abs(drawn[y, x] - colour).max() <= 2, (y, x)
    np.testing.assert_array_equal(
        drawn[150, 160], np.round(0.6 * 40 + 0.4 * colour)
    )  # inside the mask
    assert (drawn[150, 110] == 40).all() and (
        drawn[250, 350] == 40
    ).all()  # inside the box and outside of all
    label = drawn[60:100, 100:220]
    assert (
        np.abs(label.astype(int) - colour).max(-1) <= 2
    ).sum() > 200  # above the box, filled with its colour
    assert (drawn[:60] == 40).all()


def test_draw__labels_stay_inside_and_apart():
    image = np.zeros((100, 100, 3), np.uint8)
    boxes = np.array([[60.0, 0, 100, 40], [60.0, 0, 100, 40]])
    drawn = draw_detections(
        image,
        {"boxes": boxes, "scores": np.array([0.9, 0.8]), "classes": np.array([0, 4])},
        ["a", "", "", "", "ü_b"],
    )
    filled = [
        int((np.abs(drawn.astype(int) - class_colour(index)).max(-1) <= 2).sum())
        for index in (0, 4)
    ]
    assert min(filled) > 150  # neither label hides the other's
    edge = draw_detections(
        image,
        {
            "boxes": np.array([[92.0, 0, 100, 40]]),
            "scores": np.array([0.9]),
            "classes": np.array([0]),
        },
        ["a"],
    )
    assert (
        int((np.abs(edge.astype(int) - class_colour(0)).max(-1) <= 2).sum()) > 200
    )  # the edge of the image does not cut it off


def test_class_colour__classes_differ():
    colours = [class_colour(index) for index in range(80)]
    assert len(set(colours)) == 80
    assert (
        min(
            sum(abs(a - b) for a, b in zip(one, other, strict=True))
            for one, other in zip(colours, colours[1:], strict=False)
        )
        > 60
    )


def test_save_grid__images_where_they_belong_and_the_titles_in_svg(tmp_path):
    wide, scale = fit(np.full((40, 80, 3), 100, np.uint8))
    tall, _ = fit(np.full((80, 40, 3), 50, np.uint8))
    assert (wide.shape, tall.shape, scale) == ((200, 400, 3), (400, 200, 3), 5)
    rows, titles = [[wide, tall], [wide, wide]], ("a <b> & $c$", "two")
    save_grid(tmp_path / "grid.png", rows, titles)
    files = [tmp_path / "grid.png", tmp_path / "grid.svg"]
    pixels = np.asarray(Image.open(files[0]).convert("RGB"))
    top, right = 28, GAP + 400 + GAP
    assert pixels.shape == (top + 400 + GAP + 200 + GAP, 2 * 400 + 3 * GAP, 3)
    assert (pixels[top : top + 200, GAP : GAP + 400] == 100).all()
    assert (pixels[top + 408 : top + 608, GAP : GAP + 400] == 100).all()
    assert (pixels[top : top + 400, right : right + 200] == 50).all()
    assert (pixels[top : top + 400, right + 200 :] == 255).all()
    root = ElementTree.fromstring(files[1].read_text(encoding="utf-8"))
    assert tuple(text.text for text in root.iter("{http://www.w3.org/2000/svg}text")) == titles
    first = [file.read_bytes() for file in files]
    save_grid(tmp_path / "grid.png", rows, titles)
    assert [file.read_bytes() for file in files] == first


def test_draw_detections__skeleton_between_the_keypoints_that_are_found():
    grey = np.full((60, 80, 3), 100, np.uint8)
    objects = {
        "boxes": np.array([[2.0, 20.0, 78.0, 58.0]]),
        "classes": np.array([1]),
        "keypoints": np.array([[[10.0, 30.0, 0.9], [50.0, 30.0, 1.0], [50.0, 50.0, 0.0]]]),
    }
    drawn = draw_detections(grey, objects, ["a", "b"], skeleton=((0, 1), (1, 2)))
    assert (drawn[30, 10] == 255).all() and (drawn[30, 50] == 255).all()
    assert tuple(drawn[30, 30]) == class_colour(1)  # the line
    assert (drawn[35:55, 40:60] == 100).all()  # neither the third point nor a line to it
    plain = draw_detections(grey, objects, ["a", "b"])
    assert (plain[30, 20:40] == 100).all() and (plain[30, 10] == 255).all()
