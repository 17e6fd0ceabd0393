"""Print published transfer numbers by name: the rows of the MoCo papers and of independent
repetitions, with sources.

A name is `<data> <detector>`, such as `voc07+12 R50-C4`; a part of it prints every setting that
matches. In brackets stands the gap to the supervised row of the same source, as the papers print
it. Without a name, all names are listed.
"""

from __future__ import annotations

import argparse
import sys

EPILOG = """examples:
  the paper's Table 2b, what MoCo v2 adds to it, and who has repeated it:
    moco-transfer reference voc07+12 R50-C4

  every COCO setting with an FPN:
    moco-transfer reference coco fpn

  all names:
    moco-transfer reference
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `reference` to its parser."""
    parser.add_argument(
        "name", nargs="*", metavar="NAME", help="a setting, or words of its name in any case"
    )


def run(args: argparse.Namespace) -> int:
    """Print the settings that the name means.

    Returns:
        0.

    Raises:
        UnknownKeyError: If no setting has all the words in its name.
    """
    from moco_transfer.report import find_settings, published_settings, render_published
    from moco_transfer.runtime.errors import UnknownKeyError, did_you_mean

    if not args.name:
        width = max(len(setting.name) for setting in published_settings())
        lines = [f"{setting.name:{width}}  {setting.title}" for setting in published_settings()]
        sys.stdout.write("\n".join(lines) + "\n")
        return 0
    found = find_settings(args.name)
    if not found:
        name, names = " ".join(args.name), [setting.name for setting in published_settings()]
        hint = did_you_mean(name, names)
        raise UnknownKeyError(
            f"No published setting is called {name!r}.{hint} There are: {', '.join(names)}."
        )
    sys.stdout.write("\n".join(render_published(setting) for setting in found))
    return 0
