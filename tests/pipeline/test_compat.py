"""What fluxnb relies on in diffusers, transformers and torch beyond their public interfaces."""

from __future__ import annotations

import logging
import threading

import pytest
import torch

from fluxnb.pipeline import compat
from tests.conftest import toy_pipeline


@pytest.fixture(scope="module")
def pipe():
    made = toy_pipeline()
    made.set_progress_bar_config(disable=True)
    return made


def call(pipe, **more):
    options = {"height": 32, "width": 32, "num_inference_steps": 4, "max_sequence_length": 48, "output_type": "latent"}
    return pipe("a fox", generator=torch.Generator().manual_seed(0), **{**options, **more}).images


def test_model_hooks_are_seen_from_the_time_they_are_set_to_the_time_they_are_removed(monkeypatch):
    other = toy_pipeline()
    assert not compat.has_model_hooks(other)
    other._all_hooks = [object()]
    assert compat.has_model_hooks(other)
    other._all_hooks = []
    assert not compat.has_model_hooks(other)
    assert hasattr(type(other), "enable_model_cpu_offload") and hasattr(type(other), "maybe_free_model_hooks")


def test_an_interrupted_call_takes_no_further_step(pipe):
    taken = []

    def stop(pipe, index, *_):
        taken.append(index)
        compat.interrupt(pipe)
        return {}

    evaluations = []
    hook = pipe.transformer.register_forward_hook(lambda *_: evaluations.append(1))
    try:
        call(pipe, callback_on_step_end=stop)
    finally:
        hook.remove()
    assert taken == [0] and len(evaluations) == 1
    assert len(call(pipe)) == 1, "the next call starts afresh"


def test_an_own_instance_gives_the_same_bytes_and_leaves_the_original_as_it_was(pipe):
    import copy

    expected = call(pipe)
    before, configuration = dict(vars(pipe)), dict(pipe.config)
    view = compat.own_instance(pipe, copy.copy(pipe.scheduler), torch.device("cpu"))
    assert torch.equal(call(view), expected)
    compat.interrupt(view)
    view.set_progress_bar_config(desc="another")
    assert vars(pipe) == before and dict(pipe.config) == configuration
    assert view.scheduler is not pipe.scheduler and view.transformer is pipe.transformer


def test_the_progress_bar_settings_can_be_read(pipe):
    assert compat.progress_bar_config(pipe) == {"disable": True}
    assert compat.progress_bar_config(toy_pipeline()) == {}


def test_the_shift_is_that_of_diffusers(pipe):
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    for tokens in (64, 1024, 4096):
        assert compat.calculate_shift(tokens, pipe.scheduler.config) == calculate_shift(tokens)


def test_rotary_embedding_turns_queries_as_the_attention_processor_does():
    angles = torch.linspace(0, 1, 6 * 8).reshape(6, 8)
    x = torch.randn(1, 6, 2, 8, generator=torch.Generator().manual_seed(0))
    turned = compat.apply_rope(x, (angles.cos(), angles.sin()))
    assert turned.shape == x.shape
    torch.testing.assert_close(turned.norm(dim=-1)[0, 0], x.norm(dim=-1)[0, 0], rtol=0.5, atol=0.5)
    torch.testing.assert_close(compat.apply_rope(x, (torch.ones_like(angles), torch.zeros_like(angles))), x)


@pytest.mark.moderate
def test_a_compiled_module_is_known_as_one():
    layer = torch.nn.Linear(2, 2)
    assert not compat.is_compiled(layer)
    assert compat.is_compiled(torch.compile(layer, backend="eager"))
    layer.compile(backend="eager")
    assert compat.is_compiled(layer)


def test_a_transformer_on_one_device_is_not_parallel(pipe):
    assert not compat.is_parallel(pipe.transformer)


def test_a_write_in_place_raises_the_version_of_a_tensor():
    tensor = torch.zeros(2)
    before = compat.tensor_version(tensor)
    tensor.add_(1)
    assert compat.tensor_version(tensor) == before + 1
    with torch.inference_mode():
        assert compat.tensor_version(torch.zeros(2)) is None


def test_truncation_warnings_are_silenced_in_one_thread_alone(caplog):
    log = logging.getLogger(compat.LOGGERS[0])
    log.setLevel(logging.WARNING)
    caplog.set_level(logging.WARNING)
    log.addHandler(caplog.handler)
    try:
        with compat.silenced():
            log.warning("from the silenced thread")
            other = threading.Thread(target=lambda: log.warning("from another thread"))
            other.start()
            other.join()
        log.warning("afterwards")
    finally:
        log.removeHandler(caplog.handler)
    assert {record.getMessage() for record in caplog.records} == {"from another thread", "afterwards"}


@pytest.mark.parametrize("name", compat.LOGGERS)
def test_the_loggers_that_are_silenced_exist(name):
    import importlib.util

    assert importlib.util.find_spec(name) is not None or name == "transformers.tokenization_utils_base"


def test_registering_a_setting_replaces_the_configuration_object():
    scheduler = toy_pipeline().scheduler
    before = compat.config_object(scheduler)
    assert before is not None and compat.config_object(scheduler) is before
    scheduler.register_to_config(shift=2.0)
    assert compat.config_object(scheduler) is not before


def test_the_configuration_of_an_enabled_cache_can_be_read():
    from diffusers import FirstBlockCacheConfig

    transformer = toy_pipeline().transformer
    assert compat.cache_config(transformer) is None and compat.hook_names(transformer) == ()
    transformer.enable_cache(FirstBlockCacheConfig(threshold=0.25))
    assert compat.cache_config(transformer).threshold == 0.25
    names = [name for module in transformer.modules() for name in compat.hook_names(module)]
    assert names


def test_the_dtype_keyword_sets_the_dtype_without_a_warning(pipe, tmp_path, recwarn):
    from diffusers import AutoencoderKL

    pipe.vae.save_pretrained(tmp_path)
    vae = AutoencoderKL.from_pretrained(tmp_path, **{compat.dtype_keyword(): torch.float16})
    assert vae.dtype is torch.float16
    assert not [warning for warning in recwarn if "dtype" in str(warning.message)]


@pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
def test_output_while_loading_is_suppressed_and_restored(fails):
    import transformers.utils.logging as of_transformers
    from diffusers.utils import logging as of_diffusers

    def state():
        bars = getattr(of_diffusers, "is_progress_bar_enabled", lambda: None)()
        return of_transformers.get_verbosity(), of_transformers.is_progress_bar_enabled(), bars

    before = state()
    try:
        with compat.without_loading_output():
            assert not of_transformers.is_progress_bar_enabled()
            if fails:
                raise ValueError
    except ValueError:
        assert fails
    assert state() == before
