"""The display of a plan."""

from __future__ import annotations

import re

import pytest

from fluxnb.planning.plan import plan


@pytest.fixture(scope="module")
def chosen():
    return plan("schnell", "rtx-3060-12gb")


def names(text: str) -> list[tuple[str, str]]:
    """The first two words of each line of the table: whether it fits, and the preset."""
    return re.findall(r"^(yes|no) +(?:> +)?([a-z0-9-]+)", text, flags=re.MULTILINE)


def test_the_chosen_preset_comes_first_and_what_fits_before_what_does_not(chosen):
    rows = names(repr(chosen))
    assert rows[0] == ("yes", chosen.preset) and len(rows) == len(chosen.options)
    assert [fits for fits, _ in rows] == sorted((fits for fits, _ in rows), reverse=True)
    assert {name for fits, name in rows if fits == "no"} == {name for name, _ in chosen.refused}


def test_the_line_to_type_loads_the_chosen_preset(chosen):
    assert chosen.line == f'flux = fnb.load("schnell", preset="{chosen.preset}")'
    assert chosen.line in repr(chosen) and chosen.line.replace('"', "&quot;") in chosen._repr_html_()


def test_the_line_of_a_folder_names_no_path(tmp_path):
    from tests.conftest import toy_pipeline

    toy_pipeline().save_pretrained(tmp_path / "mine")
    assert plan(tmp_path / "mine").line == 'flux = fnb.load(folder, preset="cpu")'


def test_each_preset_has_one_sentence_and_a_mark(chosen):
    page = chosen._repr_html_()
    assert page.count("✓ yes") == len(names(repr(chosen))) - len(chosen.refused) and page.count("✗ no") == len(
        chosen.refused
    )
    remarks = re.findall(r"white-space:normal'>([^<]+)</td>", page)
    assert len(remarks) == len(chosen.options)
    for remark in remarks:
        assert remark.endswith(".") and remark[0].isupper() and ". " not in remark
