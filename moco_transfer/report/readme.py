"""The tables' places in a README: between markers, which may name the records that belong there.

A section opens with ``<!-- results:begin -->``, to be filled by the runs that the command names, or
with ``<!-- results:begin docs/results/bccd -->``, to be filled by these records again and again,
and ends with ``<!-- results:end -->``. What stands between is the tool's, everything else the
author's.
"""

from __future__ import annotations

import re

END_MARKER = "<!-- results:end -->"
_BEGIN = re.compile(r"<!-- results:begin((?: [^\s<>]+)*) -->")


def begin_marker(paths: tuple[str, ...] = ()) -> str:
    """Return the line that opens a section; ``paths`` are the records that it names."""
    return f"<!-- results:begin{''.join(f' {path}' for path in paths)} -->"


def marked_paths(text: str) -> list[tuple[str, ...]]:
    """Return what each section of a Markdown file names, () for a section that names nothing."""
    return [tuple(match[1].split()) for match in _BEGIN.finditer(text)]


def insert_between_markers(text: str, content: str, paths: tuple[str, ...] = ()) -> str:
    """Replace what stands between the two markers of one section of a Markdown file.

    Args:
        text: The whole file, in which :func:`begin_marker` of ``paths`` stands once, with an ``<!--
            results:end -->`` of its own.
        content: Markdown to stand between them; the markers stay.
        paths: Which section is meant.

    Returns:
        The new text of the file; inserting the same content twice changes nothing.

    Raises:
        ValueError: If a marker is missing, occurs more than once, or the two are in the wrong
            order.
    """
    begin = begin_marker(paths)
    sections = marked_paths(text)
    if sections.count(paths) != 1:
        raise ValueError(f"expected the line {begin} once, found it {sections.count(paths)} times")
    if text.count(END_MARKER) != len(sections):
        how_often = (
            "once" if len(sections) == 1 else f"{len(sections)} times, once for each section"
        )
        raise ValueError(
            f"expected the line {END_MARKER} {how_often}, found it {text.count(END_MARKER)} times"
        )
    head, rest = text.split(begin)
    inside, end, tail = rest.partition(END_MARKER)
    if not end or _BEGIN.search(inside):
        raise ValueError(
            f"expected {begin} before its {END_MARKER}, found them the other way round"
        )
    return f"{head}{begin}\n\n{content.strip()}\n\n{END_MARKER}{tail}"
