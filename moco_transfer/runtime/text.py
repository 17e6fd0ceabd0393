"""Text files as people's programs write them: with a byte order mark, or in an encoding that XML
declares. What is no text at all is named: a page, an archive, a pointer of Git LFS.
"""

from __future__ import annotations

import codecs
import os
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import yaml

from .errors import InputError, MissingFileError

_MARKS = (  # UTF-32's begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_NATURES = (  # of files that lie where another kind is expected, by their first bytes
    (rb"\Z", "empty: get it again"),
    (rb"\s*<(!doctype\s+html|html)", "an HTML page: its download failed, get the file itself"),
    (rb"version https://git-lfs", "a pointer of Git LFS: get the file with git lfs pull"),
    (rb"PK\x03\x04|PK\x05\x06", "a zip archive: unpack it"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ\0|(?s:.{257})ustar", "a compressed file or an archive: unpack it"),
    (rb"\x89PNG|\xff\xd8\xff|GIF8", "an image"),
    (rb"%PDF", "a PDF"),
    (rb"\x89HDF", "an HDF5 file"),
)
_DECLARED = re.compile(rb"\s*<\?xml[^>]*?\sencoding\s*=\s*[\"']([\w.:-]+)[\"']")
_WIDER = {"gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932"}  # what programs mean by it


def nature_of(data: bytes) -> str:
    """Return what a file is by its first 512 bytes, and what to do; "" for what is not known here.

    A sentence continues with it: ``FILE is an HTML page: ...``.
    """
    found = (nature for start, nature in _NATURES if re.match(start, data, re.IGNORECASE))
    return next(found, "")


def read_text(path: str | os.PathLike[str], *, errors: str = "strict") -> str:
    """Return the text of a file in UTF-8, or in what its byte order mark says.

    ``errors`` is of ``bytes.decode``; a file with NUL bytes is no text. MissingFileError if there
    is no file, InputError if it cannot be read or has another encoding.
    """
    return _decode(read_bytes(path), path, "utf-8", errors)


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Return the content of a file; MissingFileError, or InputError if it cannot be read."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise MissingFileError(f"{path} does not exist.") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read: {reason}.") from error


def read_xml(path: str | os.PathLike[str]) -> ElementTree.Element:
    """Return the root of an XML file, in any encoding of Python that it declares."""
    data = read_bytes(path)
    declared = _DECLARED.match(data)
    if nature := nature_of(data[:512]):
        raise InputError(f"{path} is {nature}; expected XML.")
    name = declared[1].decode().lower() if declared else "utf-8"
    # Who can read the declaration as ASCII reads no UTF-16: C# writes it so, and saves UTF-8.
    name = "utf-8" if name.startswith(("utf-16", "utf-32", "ucs-2", "unicode")) else name
    text = _decode(data, path, _WIDER.get(name, name), "strict")
    try:
        return ElementTree.fromstring(text.lstrip())  # noqa: S314 - expat bounds entities
    except ElementTree.ParseError as error:
        raise InputError(f"{path} is not readable XML: {error}; write it again.") from error


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """Return the content of a yaml file; InputError if it is none."""
    text = read_text(path)
    try:
        return parse_yaml(text)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{path} is not readable yaml: {reason}.") from error


class _OnceEach(yaml.SafeLoader):
    """YAML's own reader takes the last of two equal keys without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """Return the mapping; yaml.YAMLError if a key occurs twice."""
        written = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and written.count(key.value) > 1:
                twice = f"the key {key.value!r} occurs twice in one section"
                again = [k for k, _ in node.value if k.value == key.value][1]
                raise yaml.constructor.ConstructorError(None, None, twice, again.start_mark)
        return super().construct_mapping(node, deep=deep)


_MOST_VALUES = 1_000_000  # a config has hundreds


def parse_yaml(text: str) -> Any:
    """Return the content of a yaml text; yaml.YAMLError if it is none, or a key occurs twice."""
    try:
        content = yaml.load(text, _OnceEach)  # noqa: S506, a SafeLoader
    except RecursionError:
        raise yaml.YAMLError("it nests too deeply") from None
    except (ValueError, TypeError, LookupError, AttributeError) as error:  # of dates and numbers
        raise yaml.YAMLError(f"{type(error).__name__}: {error}") from error
    if _size(content, {}) > _MOST_VALUES:
        raise yaml.YAMLError("its aliases stand for more than a million values")
    return content


def _size(value: Any, known: dict[int, int]) -> int:
    """Return how many values a container stands for, each alias written out."""
    if not isinstance(value, (dict, list)):
        return 1
    if id(value) not in known:
        known[id(value)] = _MOST_VALUES  # for one within itself
        inner = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_size(each, known) for each in inner)
    return known[id(value)]


def _decode(data: bytes, path: str | os.PathLike[str], encoding: str, errors: str) -> str:
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), encoding)
    try:
        text = data.decode(encoding, errors)
        if "\0" in text[:400]:
            raise UnicodeDecodeError(encoding, data, data.find(0), len(data), "no text")
        return text
    except UnicodeDecodeError as error:
        raise not_text(path, error) from error
    except (LookupError, UnicodeError) as error:  # codecs that are no encoding of texts
        raise InputError(
            f"{path} declares the encoding {encoding!r}, which Python does not know; save it as"
            " UTF-8."
        ) from error


def not_text(path: str | os.PathLike[str], error: UnicodeDecodeError) -> InputError:
    """Return the error for a file that is not in the encoding that it should have."""
    if nature := nature_of(error.object[:512]):
        return InputError(f"{path} is {nature}; expected a text.")
    data, line = error.object, error.object.count(b"\n", 0, error.start) + 1
    what = f"is not in {error.encoding} (byte 0x{data[error.start]:02x} in line {line})"
    if data[:2].count(0) == 1 and data[:400].count(0) >= len(data[:400]) // 3:
        what = "is UTF-16 without a byte order mark"
    elif 0 in data[:400]:
        what = "is a binary file, not a text"
    return InputError(f"{path} {what}; save it as UTF-8.")
