"""Commands can be typed after torchrun, which reads some options of a script as its own."""

from __future__ import annotations

import argparse
import importlib

import pytest

pytestmark = pytest.mark.moderate


def options_of(parser: argparse.ArgumentParser) -> list[str]:
    """The first long name of every option of a parser and of its commands."""
    found = []
    for action in parser._actions:
        found += [name for name in action.option_strings if name.startswith("--")][:1]
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                found += options_of(command)
    return list(dict.fromkeys(found))


@pytest.mark.parametrize("module", ["fluxnb", "fluxnb.train"])
def test_torchrun_leaves_the_options_to_the_script(module):
    from torch.distributed.run import get_args_parser

    options = options_of(importlib.import_module(f"{module}.__main__")._parser())
    arguments = ["command", *(each for option in options for each in (option, "1"))]
    launch = get_args_parser().parse_args(["--standalone", "-m", module, *arguments])
    assert len(options) > 5 and launch.training_script_args == arguments
