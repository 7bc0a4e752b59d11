from __future__ import annotations

import pickle

import pytest

from fluxnb.errors import FluxnbError, InputError, RunError, StorageError, shorten, unknown_choice


@pytest.mark.parametrize(
    ("kind", "builtin"), [(InputError, ValueError), (RunError, RuntimeError), (StorageError, OSError)]
)
def test_each_error_is_also_a_built_in_exception(kind, builtin):
    with pytest.raises(builtin):
        raise kind("a", "b", "c")
    assert issubclass(kind, FluxnbError)


@pytest.mark.parametrize("kind", [InputError, RunError, StorageError])
def test_the_message_has_three_parts_in_order(kind):
    error = kind("steps=0", "at least 1 is needed", "try steps=4")
    assert str(error) == "steps=0: at least 1 is needed. Try steps=4."
    assert (error.given, error.possible, error.remedy) == ("steps=0", "at least 1 is needed", "try steps=4")


def test_an_error_can_be_pickled():
    assert str(pickle.loads(pickle.dumps(StorageError("a", "b", "c")))) == "a: b. C."


def test_the_remedy_names_the_most_similar_option():
    assert unknown_choice("sampler", "renoize", ["euler", "renoise"]).remedy == "try sampler='renoise'"


def test_a_huge_value_does_not_flood_the_message():
    assert len(shorten("x" * 10**7)) == 60
    assert len(shorten(list(range(10**4)), 40)) == 40


def test_warnings_of_the_package_are_user_warnings():
    import fluxnb as fnb

    for warning in (fnb.PromptWarning, fnb.RecordingWarning, fnb.StoreWarning, fnb.VersionWarning):
        assert issubclass(warning, UserWarning)
