"""``--model_args`` of the lmms-eval plugin: parsing, checks, no model and no lmms-eval needed."""

import subprocess
import sys

import pytest

from earlytom.errors import ConfigError, EarlyTomError
from earlytom.integrations.lmms_eval import parse_options
from earlytom.methods import EVS, EarlyTom


def test_defaults():
    options = parse_options()
    assert options.method == EarlyTom()
    assert (options.pretrained, options.frames, options.batch_size) == (None, None, 1)


def test_settings_of_the_method_stand_beside_the_options():
    options = parse_options(
        pretrained="some/model",
        method="earlytom",
        retention_ratio=0.1,
        policy="paper",
        positions="keep",
        merge_layers="[10,21,23]",
        tau_merge="none",
        frames=32,
        dtype="bfloat16",
        device="cpu",
        attn_implementation="sdpa",
        batch_size="4",
        max_batch_size=8,
    )
    assert options.method == EarlyTom(
        retention_ratio=0.1, policy="paper", positions="keep", merge_layers=(10, 21, 23)
    )
    assert (options.pretrained, options.frames, options.batch_size) == ("some/model", 32, 4)
    assert (options.dtype, options.device, options.attn_implementation) == (
        "bfloat16",
        "cpu",
        "sdpa",
    )


def test_a_taken_name_needs_the_prefix():
    options = parse_options(**{"frames": 32, "method.frames": "[16, 8]"})
    assert options.frames == 32
    assert options.method == EarlyTom(frames=(16, 8))


def test_other_methods_and_none():
    assert parse_options(method="evs", retention_ratio=0.5).method == EVS(retention_ratio=0.5)
    assert parse_options(method="none").method is None


def test_presets():
    options = parse_options(preset="videomme", retention_ratio=0.1)
    assert options.method == EarlyTom.preset("videomme", 0.1)
    options = parse_options(preset="llava-video-7b/longvideobench", retention_ratio=0.25)
    assert options.method == EarlyTom.preset("longvideobench", 0.25, "llava-video-7b")
    assert parse_options(preset="mvbench", retention_ratio=0.15, ema=0.5).method.ema == 0.5


def test_a_saved_method(tmp_path):
    method = EarlyTom(retention_ratio=0.3, encoder_budget=0.5)
    assert parse_options(method=str(method.save(tmp_path))).method == method


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"retention": 0.1}, "unknown option 'retention'"),
        ({"max_frames_num": 32}, "unknown option 'max_frames_num'"),
        ({"method": "evs", "tau": 0.5}, "unknown option 'tau'"),
        ({"method": "magic"}, "unknown method 'magic'"),
        ({"method": "none", "retention_ratio": 0.1}, "retention_ratio has no meaning"),
        ({"method": "none", "preset": "mvbench"}, "preset has no meaning"),
        ({"method": "a/compression_config.json"}, "cannot read"),
        ({"method": "evs", "preset": "mvbench"}, "preset belongs to method=earlytom"),
        ({"preset": "chess", "retention_ratio": 0.1}, "no published settings for task 'chess'"),
        ({"preset": "mvbench", "retention_ratio": 0.5}, "no published settings for retention"),
        ({"retention_ratio": 7}, "retention_ratio must be"),
        ({"merge_layers": "[1,2"}, "not a list"),
        ({"frames": 0}, "frames must be"),
        ({"frames": 8, "fps": 1}, "either frames or fps"),
        ({"layout": "grid"}, "layout must be one of"),
        ({"batch_size": "auto"}, "batch_size must be an integer"),
        ({"batch_size": 0}, "batch_size must be an integer"),
        ({"images_as_video": "yes"}, "images_as_video must be true or false"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(EarlyTomError, match=message) as caught:
        parse_options(**arguments)
    assert "\n" not in str(caught.value)


def test_unknown_option_names_what_there_is():
    with pytest.raises(
        ConfigError, match=r"options: .*frames.*preset.*settings of earlytom: .*tau"
    ):
        parse_options(frame=3)


def test_import_needs_no_lmms_eval():
    code = (
        "import sys; sys.modules['lmms_eval'] = None\n"
        "import earlytom, earlytom.integrations.lmms_eval as plugin\n"
        "plugin.parse_options()\n"
        "try: plugin.manifest()\n"
        "except ImportError: print('no lmms-eval')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(p for p in sys.path if p)},
    )
    assert done.stdout.strip() == "no lmms-eval"
