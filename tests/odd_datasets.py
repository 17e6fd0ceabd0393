"""A generator of small data sets as no tool should write them, each with a plain twin.

``write_pair(folder, seed)`` writes both; they hold the same images and objects. Each oddity is
of one of two lists: what has one meaning, and what has none. The plain twin's images are PNG.
"""

from __future__ import annotations

import dataclasses
import json
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as mask_api

CLASSES = ("dog", "犬", "cat")
_FORMATS = {".jpg": "JPEG", ".JPG": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF"}


@dataclass
class Scene:
    """An image of a set: its id, size and objects (class, [x0, y0, x1, y1], is a crowd)."""

    name: str
    width: int
    height: int
    objects: list[tuple[str, list[int], bool]] = field(default_factory=list)


@dataclass
class Pair:
    """Flags of the odd data set and its plain twin; ``fault`` is what cannot be read, or empty."""

    odd: str
    plain: str
    oddities: list[str]
    fault: str


def write_pair(folder: Path, seed: int) -> Pair:
    """Write an odd data set of VOC's, COCO's or YOLO's kind and its twin below a folder."""
    rng = np.random.default_rng(seed)
    kind = ("voc", "coco", "yolo")[seed % 3]
    write = {"voc": _write_voc, "coco": _write_coco, "yolo": _write_yolo}[kind]
    scenes = _draw_scenes(rng, crowds=kind == "coco")
    odd, faults = _ODD[kind], _FAULTS[kind]
    odd = odd | {"image": _IMAGES}
    chosen = {key: str(rng.choice(values)) for key, values in odd.items() if rng.random() < 0.6}
    fault = str(rng.choice(faults)) if rng.random() < 0.3 else ""
    drawn_on, option = scenes, ""
    if chosen.get("image", "").endswith("as stored"):
        drawn_on, option = [_as_stored(scene, _tag(chosen)) for scene in scenes], ":exif=apply"
    plain = {"suffix": ".png"}
    places = [write(folder / "odd", drawn_on, chosen, fault) + option]
    places += [write(folder / "plain", scenes, plain, "")]
    names = [
        f"{name}_{seed}={kind}:{place}"
        for name, place in zip(("odd", "plain"), places, strict=True)
    ]
    return Pair(*names, [f"{key} {value}" for key, value in chosen.items()], fault)


def _draw_scenes(rng: np.random.Generator, *, crowds: bool) -> list[Scene]:
    scenes = []
    for number in range(int(rng.integers(2, 5))):
        width, height = map(int, rng.integers(24, 64, 2))
        scene = Scene(f"p{number}", width, height)
        for _ in range(int(rng.integers(0, 4)) if number else 2):
            x, y = int(rng.integers(0, width - 8)), int(rng.integers(0, height - 8))
            w, h = int(rng.integers(4, width - x + 1)), int(rng.integers(4, height - y + 1))
            crowd = crowds and bool(scene.objects) and rng.random() < 0.2
            scene.objects.append((CLASSES[int(rng.integers(3))], [x, y, x + w, y + h], crowd))
        scenes.append(scene)
    return scenes


def _tag(odd: dict[str, str]) -> int:
    """Return the EXIF orientation of the images; 1 is upright."""
    words = odd.get("image", "").split()
    return int(words[1]) if words[:1] == ["exif"] else 1


def _turn(image: Image.Image, tag: int) -> Image.Image:
    """Return the image that a viewer turns upright as its tag says."""
    return image.transpose(_STORED[tag]) if tag != 1 else image


def _as_stored(scene: Scene, tag: int) -> Scene:
    """Return the scene as a tool sees it that ignores the tag."""
    objects = []
    for cls, (x0, y0, x1, y1), crowd in scene.objects:
        mask = np.zeros((scene.height, scene.width), np.uint8)
        mask[y0:y1, x0:x1] = 1
        objects.append((cls, [*_turn(Image.fromarray(mask), tag).getbbox()], crowd))
    width, height = _turn(Image.new("L", (scene.width, scene.height)), tag).size
    return dataclasses.replace(scene, width=width, height=height, objects=objects)


def _save(path: Path, scene: Scene, odd: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = np.full((scene.height, scene.width), 90, np.uint8)
    for number, (_, (x0, y0, x1, y1), _) in enumerate(scene.objects):
        levels[y0:y1, x0:x1] = 50 * number
    image = Image.fromarray(np.stack([levels] * 3, axis=2))
    form, options = _FORMATS.get(path.suffix), {}
    if odd.get("image") == "16 bits":  # a PNG whatever its name says: JPEG and BMP have none
        image, form = Image.fromarray(levels.astype(np.uint16) * 257), "PNG"
    if (tag := _tag(odd)) != 1:
        # Of boxes as stored the pixels already are.
        image = image if odd["image"].endswith("as stored") else _turn(image, tag)
        options["exif"] = Image.Exif()
        options["exif"][_ORIENTATION] = tag
        form = "PNG" if path.suffix == ".bmp" else form  # BMP has no EXIF
    image.save(path, form, **options)


def _write(path: Path, text: str, encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))


_ORIENTATION = 274  # EXIF's number of the tag
_STORED = {  # orientation -> what makes of the upright image the stored one
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
_IMAGES = ["16 bits", *(f"exif {tag}{where}" for tag in _STORED for where in ("", " as stored"))]
_IMAGES += 4 * _IMAGES[:1]
_ENCODINGS = ["utf-8-sig", "utf-16", "utf-32"]
_SUFFIXES = [".JPG", ".jpeg", ".png", ".bmp", ".tif"]
_NAMES = ["image ({})", "v1.2.{}", "é{}", "ﾊ {}"]
_ODD = {
    "voc": {
        "xml": ["gb2312", "gb18030", "utf8", "utf-8-sig", "utf-16", "UTF-16 declared only"],
        "suffix": _SUFFIXES,
        "name": _NAMES,
        "layout": ["roboflow", "kaggle", "split below", "nested"],
        "list": ["suffix", "quotes", "windows", "flag", "pair", "crlf", *_ENCODINGS],
        "size": ["0", "float", "none"],
        "difficult": ["none", "blank"],
    },
    "coco": {
        "json": _ENCODINGS,
        "suffix": _SUFFIXES,
        "name": _NAMES,
        "file_name": ["backslash", "windows", "up", "case", "other suffix", "nfd", "folder"],
        "ids": ["text", "float", "repeated"],
        "size": ["none", "float", "text", "0"],
        "iscrowd": ["null", "blank", "none"],
        "area": ["null", "none"],
        "mask": ["polygon", "points", "flat", "empty", "rle", "rle as text"],
    },
    "yolo": {
        "labels": ["crlf", "utf-8-sig", "utf-16", "blank lines", "exponents"],
        "suffix": _SUFFIXES,
        "name": _NAMES,
        "yaml": ["mapping", "roboflow", "absolute", "backslash", "list", "utf-8-sig", "utf-16"],
        "layout": ["split below", "beside", "nested", "label case"],
        "objects": ["polygon"],
    },
}
_FAULTS = {
    "voc": "class,box,number,cut,undeclared,no image,no xml,unknown encoding,normalised,"
    "other size".split(","),
    "coco": "nan,category,image,cut,no image,same ids,no images,far box,bytes,normalised,"
    "rle size,rle counts,other size".split(","),
    "yolo": "class,share,count,word,no images,nc,no split,bytes,pixels".split(","),
}


def _names(scenes: list[Scene], odd: dict[str, str]) -> list[str]:
    return [odd.get("name", "p{}").format(number) for number in range(len(scenes))]


def _write_voc(root: Path, scenes: list[Scene], odd: dict[str, str], fault: str) -> str:
    layout, suffix = odd.get("layout", ""), odd.get("suffix", ".jpg")
    below = {"roboflow": ("train", "train"), "kaggle": ("annotations", "images")}.get(layout)
    below = below or {"split below": ("Annotations/train", "images/train")}.get(layout)
    xmls, images = below or ("Annotations", "JPEGImages")
    names = [("cam 1/" if layout == "nested" else "") + name for name in _names(scenes, odd)]
    for number, (scene, name) in enumerate(zip(scenes, names, strict=True)):
        if not (fault == "no image" and number == 0):
            _save(root / images / f"{name}{suffix}", scene, odd)
        everywhere = number == 0 or fault == "normalised"
        text, encoding = _xml(scene, odd, fault if everywhere else "")
        if not (fault == "no xml" and number == 0 and not below):
            _write(root / xmls / f"{name}.xml", text, encoding)
    if fault == "no xml" and below:  # which is no fault without a list
        (root / xmls / f"{names[0]}.xml").write_text("")
    if not below:
        form = odd.get("list", "")
        lines = {
            "suffix": f"{{}}{suffix}",
            "quotes": '"{}"',
            "windows": f"C:\\data\\JPEGImages\\{{}}{suffix}",
            "flag": "{} -1",
        }
        line = lines.get(form, "{}")
        if form == "pair" and not any(" " in name for name in names):
            line = f"JPEGImages/{{}}{suffix} Annotations/{{}}.xml"
        end = "\r\n" if form == "crlf" else "\n"
        text = "".join(line.replace("{}", name) + end for name in names)
        _write(root / "ImageSets/Main/train.txt", text, form if form in _ENCODINGS else "utf-8")
    return f"{root}:train:{','.join(CLASSES)}"


def _xml(scene: Scene, odd: dict[str, str], fault: str) -> tuple[str, str]:
    """Return the text of an XML file, and its encoding."""
    difficult = {"none": "", "blank": "<difficult> </difficult>"}.get(
        odd.get("difficult", ""), "<difficult>0</difficult>"
    )
    objects = []
    for number, (name, (x0, y0, x1, y1), _) in enumerate(scene.objects):
        corners: list[object] = [x0 + 1, y0 + 1, x1, y1]
        if number == 0 and fault in ("class", "box", "number"):
            name = "wolf" if fault == "class" else name
            corners = {"box": [900, 1, 990, 9], "number": ["x", *corners[1:]]}.get(fault, corners)
        if fault == "normalised":
            sides = scene.width, scene.height
            corners = [v / side for v, side in zip((x0, y0, x1, y1), 2 * sides, strict=True)]
        tags = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
        box = "".join(f"<{tag}>{value}</{tag}>" for tag, value in tags)
        objects.append(f"<object><name>{name}</name>{difficult}<bndbox>{box}</bndbox></object>\n")
    form = {"0": "0", "float": "{}.0"}.get(odd.get("size", ""), "{}")
    form = "1{}" if fault == "other size" else form
    sides = zip(("width", "height"), (scene.width, scene.height), strict=True)
    size = "".join(f"<{side}>{form.format(px)}</{side}>" for side, px in sides)
    is_left_out = odd.get("size") == "none" and fault != "other size"
    size = "" if is_left_out else f"<size>{size}</size>"
    text = f"<annotation><folder>照片</folder>{size}{''.join(objects)}</annotation>\n"
    form = odd.get("xml", "utf-8")
    declared = {"utf-8-sig": "utf-8", "UTF-16 declared only": "utf-16"}.get(form, form)
    encoding = {"UTF-16 declared only": "utf-8"}.get(form, form)
    if fault == "undeclared":
        return text, "gb18030"
    if fault == "unknown encoding":
        return f'<?xml version="1.0" encoding="martian"?>{text}', "utf-8"
    text = f'<?xml version="1.0" encoding="{declared}"?>\n{text}'
    return text[: len(text) // 2] if fault == "cut" else text, encoding


def _write_coco(root: Path, scenes: list[Scene], odd: dict[str, str], fault: str) -> str:
    form, suffix = odd.get("file_name", ""), odd.get("suffix", ".jpg")
    as_id = {"text": str, "float": float}.get(odd.get("ids", ""), int)
    images: list[dict] = []
    annotations: list[dict] = []
    for number, (scene, name) in enumerate(zip(scenes, _names(scenes, odd), strict=True), start=1):
        name = unicodedata.normalize("NFC", name)
        if not (fault == "no image" and number == 1):
            folder = "a/b/" if form in ("backslash", "folder") else ""
            _save(root / "images" / f"{folder}{name}{suffix}", scene, odd)
        written = {
            "backslash": f"a\\b\\{name}{suffix}",
            "windows": f"C:\\x\\{name}{suffix}",
            "up": f"../upload/4/{name}{suffix}",
            "case": f"{name}{suffix}".swapcase(),
            "other suffix": f"{name}.webp",
            "nfd": unicodedata.normalize("NFD", f"{name}{suffix}"),
        }.get(form, f"{name}{suffix}")
        entry = {"id": 1 if fault == "same ids" else number, "file_name": written}
        size = {"float": float, "text": str, "0": lambda px: 0}.get(odd.get("size", ""), int)
        if odd.get("size") != "none":
            entry |= {"width": size(scene.width), "height": size(scene.height)}
        if fault == "other size":
            entry |= {"width": 2 * scene.width, "height": scene.height}
        images.append(entry)
        for cls, box, crowd in scene.objects:
            of = as_id(number), as_id(CLASSES.index(cls) + 5)
            annotations.append(_annotation(len(annotations) + 1, *of, box, crowd, odd))
            sides = scene.width, scene.height
            annotations[-1] |= _mask(odd.get("mask", ""), box, sides)
            if fault == "normalised":
                shares = zip(annotations[-1]["bbox"], 2 * sides, strict=True)
                annotations[-1]["bbox"] = [value / side for value, side in shares]
    changes = {
        "nan": {"bbox": [float("nan"), 1, 2, 2]},
        "category": {"category_id": 77},
        "image": {"image_id": 77},
        "far box": {"bbox": [900, 1, 9, 9]},
        "rle size": {"segmentation": {"size": [9, 9], "counts": [81]}},
        "rle counts": {
            "segmentation": {"size": [scenes[0].height, scenes[0].width], "counts": [5, 5]}
        },
    }
    annotations[0] |= changes.get(fault, {})
    content = {
        "info": {"description": "照片"},
        "images": [] if fault == "no images" else images,
        "annotations": annotations,
        "categories": [{"id": i + 5, "name": name} for i, name in enumerate(CLASSES)],
    }
    text = json.dumps(content, ensure_ascii=False)
    text = text[: len(text) // 2] if fault == "cut" else text
    encoding = "gb18030" if fault == "bytes" else odd.get("json", "utf-8")
    _write(root / "set.json", text, encoding)
    return f"{root / 'set.json'}:{root / 'images'}"


def _annotation(number, image_id, category_id, box, crowd, odd) -> dict:  # noqa: ANN001, PLR0913
    x0, y0, x1, y1 = box
    entry = {
        "id": 1 if odd.get("ids") == "repeated" else number,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": (x1 - x0) * (y1 - y0),
        "iscrowd": int(crowd),
    }
    if not crowd and odd.get("iscrowd"):
        entry["iscrowd"] = {"null": None, "blank": "", "none": 0}[odd["iscrowd"]]
    if odd.get("area"):
        entry["area"] = None
    return entry


def _mask(form: str, box: list[int], sides: tuple[int, int]) -> dict:
    """Return the key ``segmentation`` of an object that fills its box, or nothing."""
    (x0, y0, x1, y1), (width, height) = box, sides
    corners = [x0, y0, x1, y0, x1, y1, x0, y1]
    pixels = np.zeros((height, width), np.uint8, order="F")
    pixels[y0:y1, x0:x1] = 1
    ends = np.flatnonzero(np.diff(pixels.ravel("F"), prepend=0)).tolist() + [pixels.size]
    masks = {
        "polygon": [corners],
        "points": [[x, y] for x, y in zip(corners[0::2], corners[1::2], strict=True)],
        "flat": corners,
        "empty": [[]],
        "rle": {"size": [height, width], "counts": np.diff(ends, prepend=0).tolist()},
        "rle as text": {
            "size": [height, width],
            "counts": mask_api.encode(pixels)["counts"].decode(),
        },
    }
    return {"segmentation": masks[form]} if form else {}


def _write_yolo(root: Path, scenes: list[Scene], odd: dict[str, str], fault: str) -> str:
    layout, form, suffix = (odd.get(k, "") for k in ("layout", "yaml", "suffix"))
    images = {"split below": "images/train", "beside": "train", "nested": "images/a/b"}
    folder = images.get(layout, "images")
    lines = []
    for number, (scene, name) in enumerate(zip(scenes, _names(scenes, odd), strict=True)):
        image = f"{folder}/{name}{suffix or '.jpg'}"
        if fault != "no images":
            _save(root / image, scene, odd)
        lines.append(f"./{image}\n")
        text = _labels(scene, odd, fault if number == 0 else "")
        encoding = {"utf-8-sig": "utf-8-sig", "utf-16": "utf-16"}.get(
            odd.get("labels", ""), "utf-8"
        )
        if fault == "bytes" and number == 0:
            text, encoding = text + "照片", "gb18030"
        name = name.swapcase() if layout == "label case" else name
        _write(root / folder.replace("images", "labels") / f"{name}.txt", text, encoding)
    entry = {"roboflow": f"../{folder}", "backslash": folder.replace("/", "\\"), "list": "list.txt"}
    _write(root / "list.txt", "".join(lines))
    names = ", ".join(CLASSES)
    names = f"[{names}]"
    if form == "mapping":
        names = "{" + ", ".join(f"{i}: {name}" for i, name in enumerate(CLASSES)) + "}"
    key = "val" if fault == "no split" else "train"
    text = f"{key}: {entry.get(form, folder)}\nnames: {names}\nnc: {9 if fault == 'nc' else 3}\n"
    text += {"absolute": f"path: {root.resolve()}\n"}.get(form, "")
    _write(root / "data.yaml", text, form if form.startswith("utf") else "utf-8")
    return f"{root / 'data.yaml'}:train"


def _labels(scene: Scene, odd: dict[str, str], fault: str) -> str:
    rows = []
    form = "{:.12e}" if odd.get("labels") == "exponents" else "{:.17g}"
    size = np.array([scene.width, scene.height])
    for cls, (x0, y0, x1, y1), _ in scene.objects:
        low, high = np.array([x0, y0]) / size, np.array([x1, y1]) / size
        shares = [*(low + high) / 2, *(high - low)]
        if odd.get("objects") == "polygon":
            shares = [low[0], low[1], high[0], low[1], high[0], high[1], low[0], high[1]]
        if fault == "pixels":
            shares = [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0]
        rows.append(" ".join([str(CLASSES.index(cls)), *map(form.format, shares)]))
    first = {"class": "7 0.5 0.5 0.1 0.1", "share": "0 1.5 0.5 0.1 0.1", "word": "dog 1 1 1 1"}
    first["count"] = "0 0.5 0.5 0.1"
    rows += [first[fault]] if fault in first else []
    end = {"crlf": "\r\n", "blank lines": "\n\n  \n"}.get(odd.get("labels", ""), "\n")
    return "".join(row + end for row in rows)
