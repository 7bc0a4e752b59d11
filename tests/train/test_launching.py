"""Commands can be typed after torchrun, which reads some options of a script as its own."""

from __future__ import annotations

import argparse

import pytest
from torch.distributed.run import get_args_parser

from fluxnb import __main__ as command_line
from fluxnb.train import __main__ as first
from fluxnb.train.pocket2 import __main__ as second


def options_of(parser: argparse.ArgumentParser) -> list[str]:
    """The first name of every option of a parser and of its commands."""
    found = []
    for action in parser._actions:
        found += action.option_strings[-1:] if len(action.option_strings) < 2 else action.option_strings[:1]
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                found += options_of(command)
    return [option for option in dict.fromkeys(found) if option.startswith("--")]


OPTIONS = {module.__name__: options_of(module._parser()) for module in (command_line, first, second)}


@pytest.mark.parametrize(
    ("module", "option"), [(module, option) for module, options in OPTIONS.items() for option in options]
)
def test_torchrun_leaves_an_option_to_the_script(module, option):
    launch = get_args_parser().parse_args(["--standalone", "-m", module, "command", option, "1"])
    assert launch.training_script_args == ["command", option, "1"]
