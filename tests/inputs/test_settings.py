import pytest

from gpt_parallel.base.errors import SpecError
from gpt_parallel.inputs.option_groups import GROUPS, METAVARS
from gpt_parallel.inputs.settings import PRESETS, Settings, make_settings, options


def test_presets_have_the_documented_workloads():
    def shape(name):
        s = make_settings(name, {})
        return s.model, s.num_samples, s.batch_size, s.prompt_tokens, s.max_length

    assert shape("smoke") == ("gpt2-nano", 8, 2, 32, 8)
    assert shape("cpu") == ("gpt2", 16, 4, 64, 16)
    assert shape("xl") == ("gpt2-xl", 60, 4, 256, 64)


def test_no_preset_needs_a_download():
    assert {make_settings(name, {}).weights for name in PRESETS} == {"auto"}


def test_what_the_user_says_wins_and_text_is_converted():
    settings = make_settings("smoke", {"batch_size": "7", "verify": "False", "temperature": "0.5", "top_k": None})

    assert (settings.batch_size, settings.verify, settings.temperature, settings.top_k) == (7, False, 0.5, 0)


def test_own_prompts_keep_their_number_and_lengths():
    settings = make_settings("smoke", {"prompts": "mine.jsonl"})
    assert (settings.num_samples, settings.prompt_tokens, settings.max_length) == (None, None, None)
    assert make_settings("smoke", {"prompts": "mine.jsonl", "max_length": 5}).max_length == 5
    assert make_settings("smoke", {"prompts": "random"}).prompt_tokens == 32


def test_every_wrong_field_is_named_with_what_is_allowed():
    with pytest.raises(SpecError) as failure:
        make_settings("smoke", {"batch_size": "0", "dtype": "int8", "num_gpus": "1,x", "top_p": "2"})

    text = "\n".join(failure.value.problems)
    assert len(failure.value.problems) == 4
    assert "batch_size = '0': must be greater than 0" in text
    assert "dtype = 'int8': must be 'auto', 'float32', 'bfloat16' or 'float16'" in text
    assert "num_gpus = '1,x'" in text
    assert "top_p = '2'" in text


def test_unknown_preset():
    with pytest.raises(SpecError, match="unknown preset 'big'; allowed: smoke, cpu, xl"):
        make_settings("big", {})


def test_device_counts_are_sorted_and_single():
    assert make_settings("smoke", {"num_gpus": "4,1,4"}).device_counts == (1, 4)
    assert make_settings("smoke", {}).device_counts == ()


def test_every_setting_is_an_option_of_one_group():
    assert sorted(option.field for option in options()) == sorted(Settings.model_fields)
    assert {option.group for option in options()} == set(GROUPS)
    assert set(METAVARS) <= set(Settings.model_fields)
