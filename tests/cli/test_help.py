"""The help of every option: in help.yaml, which holds no other option.

Seen red under: an option without a text.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

import pytest
import yaml

import moco_transfer.cli
from moco_transfer.cli.main import VERBS

TEXTS = yaml.safe_load((Path(moco_transfer.cli.__file__).parent / "help.yaml").read_text())
OF_VERB = {"summary", "description"}


def _options(verb: str) -> set[str]:
    parser = argparse.ArgumentParser(add_help=False)
    importlib.import_module(f"moco_transfer.cli.{verb.replace('-', '_')}").add_arguments(parser)
    return {(*action.option_strings, action.dest)[0] for action in parser._actions}


@pytest.mark.parametrize("verb", VERBS)
def test_help__explains_every_option(verb):
    own = {key: text for key, text in TEXTS[verb].items() if key not in OF_VERB}
    assert own.keys() <= _options(verb) <= own.keys() | TEXTS["shared"].keys()


def test_help__has_texts_of_verbs_alone():
    assert TEXTS.keys() == {"shared", *VERBS}
    assert all(TEXTS[verb].keys() >= OF_VERB for verb in VERBS)
    assert TEXTS["shared"].keys() <= set().union(*map(_options, VERBS))
