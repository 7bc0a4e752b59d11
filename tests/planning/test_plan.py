from __future__ import annotations

import json

import pytest

import fluxnb as fnb
from fluxnb.errors import InputError, RunError, StorageError
from fluxnb.families.defaults import ModelDefaults
from fluxnb.io.packaged import packaged_defaults
from fluxnb.planning.hardware import Hardware, detect
from fluxnb.planning.model_facts import small_workload
from fluxnb.planning.plan import plan


def machine(device="cuda", vram=0.0, ram=64.0, **more):
    more.setdefault("capability", (8, 9))
    return Hardware(device=device, name="test", vram_gib=vram, ram_gib=ram, tflops=100, bandwidth=900, **more)


def test_a_plan_names_what_fits_and_why_others_do_not():
    chosen = plan("schnell", machine(vram=23))
    assert isinstance(chosen, fnb.Plan) and chosen.preset == "lean" and chosen.exact
    assert chosen.vram_gib <= 23 and chosen.ram_gib <= 64
    assert dict(chosen.refused)["resident"].startswith("needs 33.8 GiB on the GPU, 23.0 are free")


def test_pocket_runs_on_a_cpu_whatever_the_memory():
    assert plan("pocket", machine("cpu", ram=1)).preset == "cpu"


def test_too_little_memory_is_an_error_before_anything_is_downloaded():
    with pytest.raises(RunError, match="no preset fits") as caught:
        plan("schnell", machine("cpu", ram=12))
    assert "pocket" in caught.value.remedy and "GiB of RAM" in str(caught.value)


def test_too_little_disk_is_an_error_before_anything_is_downloaded():
    with pytest.raises(RunError, match=r"at least 15 GiB have to be downloaded and 10 GiB of disk") as caught:
        plan("schnell", machine(vram=80, disk_gib=10.0))
    assert "HF_HOME" in caught.value.remedy


def test_a_small_disk_takes_the_file_that_fits_it():
    chosen = plan("schnell", machine(vram=80, disk_gib=20.0))
    assert chosen.preset == "gguf-q4" and chosen.download_gib < 20
    assert "GiB of disk" in dict(chosen.refused)["lean"]


def test_a_requested_preset_is_planned_or_refused_with_its_reason():
    assert plan("schnell", machine(vram=80), preset="model-offload").preset == "model-offload"
    with pytest.raises(RunError, match=r"needs 33\.8 GiB on the GPU, 24\.0 are free"):
        plan("schnell", machine(vram=24), preset="resident")


@pytest.mark.parametrize("preset", ["lean-int8", "lean-fp8-rows"])
def test_a_compiled_preset_never_offloads_blocks_and_is_planned_with_the_compiled_decoder(preset):
    chosen = plan("schnell", machine(vram=10.0), preset=preset)
    assert not chosen.offload_blocks and chosen.vram_gib < 9.7


def test_an_unknown_preset_is_an_error():
    with pytest.raises(InputError, match="Try preset='resident'"):
        plan("schnell", machine(), preset="residant")


def test_a_card_without_bfloat16_computes_in_float16():
    assert plan("schnell", "colab-t4").dtype == "float16"
    assert plan("schnell", "rtx-4090").dtype == "bfloat16"


def test_the_next_smaller_preset_needs_less_and_fits():
    chosen = plan("schnell", machine(vram=23))
    smaller = {option.preset.name: option for option in chosen.options}[chosen.next_smaller]
    assert smaller.requirements.vram_gib < 0.8 * chosen.vram_gib and not smaller.refused


def test_a_plan_prints_each_preset_on_a_line_and_as_a_table():
    chosen = plan("schnell", "colab-t4")
    text, page = repr(chosen), chosen._repr_html_()
    for option in chosen.options:
        assert f" {option.preset.name} " in text and f">{option.preset.name}<" in page
    assert "31.4 GiB to download" in text and "float16" in text and page.count("<tr") == len(chosen.options) + 1


def test_the_html_of_a_plan_is_escaped(tmp_path):
    hostile = machine(vram=23)
    page = plan("schnell", Hardware(**{**vars(hostile), "name": "<script>"}))._repr_html_()
    assert "<script>" not in page and "&lt;script&gt;" in page


def test_this_machine_can_be_described():
    here = detect()
    assert here.device in ("cuda", "mps", "cpu") and here.cores >= 1 and here.ram_gib > 0 and here.disk_gib > 0


@pytest.mark.parametrize("name", ["foo", "schnel", ""])
@pytest.mark.parametrize("hardware", [None, "rtx-4090"])
def test_a_name_that_does_not_exist_is_an_error(name, hardware):
    with pytest.raises(InputError, match="known are 'pocket'"):
        plan(name, hardware)


def test_a_folder_that_is_missing_or_empty_is_an_error(tmp_path):
    with pytest.raises(StorageError, match="there is no such folder"):
        plan(tmp_path / "missing")
    with pytest.raises(StorageError, match=r"config\.json"):
        plan(tmp_path)


@pytest.mark.parametrize("preset", ["resident", "lean", "stream"])
def test_a_preset_that_is_requested_by_name_is_checked_against_the_memory_of_a_cpu(preset):
    with pytest.raises(RunError, match=rf"{preset}: needs \d+ GiB of RAM, 8\.0 are free"):
        plan("schnell", machine("cpu", ram=8), preset=preset)
    chosen = plan("schnell", machine("cpu", ram=100), preset=preset)
    assert chosen.preset == preset and chosen.ram_gib < 100


def test_a_streamed_transformer_counts_as_main_memory_on_a_cpu():
    assert plan("schnell", machine("cpu", ram=100), preset="stream").ram_gib > 16


def test_seconds_depend_on_the_steps_and_the_steps_on_the_model():
    one, four, eight = (plan("schnell", "rtx-4090", steps=steps).seconds for steps in (1, 4, 8))
    assert 1.9 < (eight - four) / (four - one) * 3 / 2 < 2.1
    assert (plan("schnell", "rtx-4090").steps, plan("dev", "rtx-4090").steps) == (4, 28)
    assert plan("dev", "rtx-4090").seconds > 4 * plan("schnell", "rtx-4090").seconds
    assert (plan("pocket").steps, plan("pocket-base").steps) == (4, 28)


@pytest.mark.parametrize("name", ["pocket", "pocket-base"])
def test_a_plan_of_pocket_has_the_size_and_text_length_of_its_defaults(name):
    defaults = ModelDefaults(**packaged_defaults(name))
    assert (plan(name, machine()).size, plan(name, machine(), size=64).size) == (defaults.size, 64)
    assert small_workload(packaged_defaults(name)).text == defaults.max_sequence_length


@pytest.mark.moderate
def test_a_plan_of_a_folder_has_the_size_of_its_vae(toy_folder):
    sample = json.loads((toy_folder / "vae" / "config.json").read_text())["sample_size"]
    assert plan(toy_folder, machine()).size == sample


def test_a_folder_of_a_model_with_guidance_is_planned_with_the_steps_of_dev(tmp_path):
    from tests.conftest import toy_pipeline

    toy_pipeline(guidance_embeds=True).save_pretrained(tmp_path)
    assert (plan(tmp_path).steps, plan(tmp_path, steps=2).steps) == (28, 2)


@pytest.mark.parametrize("arguments", [{"size": 0}, {"size": 100}, {"size": 100_000}, {"steps": 0}, {"steps": 10**6}])
def test_a_size_or_a_number_of_steps_out_of_range_is_an_error(arguments):
    with pytest.raises(InputError, match=f"{next(iter(arguments))}="):
        plan("schnell", "rtx-4090", **arguments)


@pytest.mark.parametrize("name", ["colab-t4", "rtx-4090", "mac-m4-max-64gb", "cpu-64gb"])
def test_a_windows_console_can_print_a_plan(name):
    text = repr(plan("schnell", name))
    assert text.encode("cp1252").decode("cp1252") == text and f"> {plan('schnell', name).preset}" in text.replace(
        "  ", " "
    )


def test_a_machine_without_a_gpu_is_told_what_it_lacks_first():
    with pytest.raises(RunError) as caught:
        plan("schnell", machine("cpu", ram=12))
    text = str(caught.value)
    assert "there is no GPU, and on the CPU it needs 20 GiB of RAM, 12.0 are free" in text
    assert len(text) < 250 and "lean" not in text


def test_the_preset_that_is_nearest_to_fitting_is_named_first():
    with pytest.raises(RunError, match=r"no preset fits \((stream|sequential-offload|stream-mapped) needs") as caught:
        plan("schnell", machine(vram=1.0, ram=4))
    assert "resident" in str(caught.value)


# ------------------------------------------------------------------------------------------------- several processes
def test_processes_share_main_memory_and_take_a_gpu_each():
    host = machine(vram=80, ram=100.0, cores=32, gpus=4)
    alone, four = plan("schnell", host), plan("schnell", host, processes=4)
    assert (alone.preset, four.preset, four.processes) == ("resident", "resident", 4)
    assert four.machine.ram_gib == 25.0 and four.machine.vram_gib == 80 and four.machine.cores == 8
    assert "4 processes, on 4 GPUs; each holds 33.8 GiB of GPU memory" in repr(four)
    assert "4 processes, on 4 GPUs" in four._repr_html_() and "processes" not in repr(alone)


def test_processes_that_share_a_gpu_have_a_part_of_its_memory():
    host = machine(vram=60, gpus=2)
    assert plan("schnell", host, processes=2).preset == "resident"
    shared = plan("schnell", host, processes=4)
    assert shared.machine.vram_gib == 30 and shared.preset == "lean"


def test_processes_that_need_more_main_memory_than_there_is_are_refused():
    host = machine(vram=8, ram=64.0, gpus=8)
    assert plan("schnell", host, preset="stream").preset == "stream"
    with pytest.raises(RunError, match=r"of RAM, 8\.0 are free"):
        plan("schnell", host, preset="stream", processes=8)


@pytest.mark.parametrize("processes", [0, -1, True, 10**6])
def test_an_impossible_number_of_processes_is_an_error(processes):
    with pytest.raises(InputError, match="processes="):
        plan("pocket", machine(), processes=processes)
