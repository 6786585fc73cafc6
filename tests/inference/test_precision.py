"""bfloat16 where it is faster: what it may cost, how it is chosen, and who says so."""

import json
import platform
from functools import partial

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from srlib import systems
from srlib.cli.commands import main
from srlib.core.device import choose_precision
from srlib.core.paths import InputError, cache_dir
from srlib.data.cohorts import read_template
from srlib.inference.tiles import run_tiled
from srlib.metrics import psnr
from srlib.models.mdcsrn import MDCSRN
from srlib.models.recnn import ReCNN
from srlib.models.srgan3d import SRGAN3D
from srlib.models.unet3d import UNet3D
from srlib.scans import headers
from srlib.scans.volume import central, load_nifti, save_scan
from srlib.systems.trained import Model, load_model

CPU = torch.device("cpu")
PUBLISHED = {  # whether its network adds to its input
    "SRReCNN3D_10Layers_IsoScalex2.caffemodel": True,
    "SRCNN3D_iter_470000.caffemodel": False,
    "mDCSRN_pretrained_G_step250000.pth": False,
}
RESIDUAL = [
    partial(MDCSRN, residual=True),
    partial(ReCNN, width=16),
    partial(SRGAN3D, residual=True),
    partial(UNet3D, width=8, residual_channel=0),
]


@pytest.fixture(scope="module")
def fast():
    """Whether this processor has bfloat16; emulated, a convolution is 40 times slower."""
    return choose_precision("auto", CPU) == "bf16"


@pytest.fixture(scope="module")
def head(fast):
    return central(read_template()[0], 72 if fast else 28)


def moved(one: np.ndarray, other: np.ndarray) -> float:
    """Share of voxels that differ by more than 1 % of the range."""
    return float(np.mean(np.abs(one - other) > 0.01 * np.ptp(one)))


def check_gate(name: str, head) -> None:
    exact, quick = (load_model(name, device="cpu", precision=p) for p in ("32", "bf16"))
    pair = exact.experiment.pairs.degrade(head)
    one, other = (model.predict_pair(pair) for model in (exact, quick))
    assert moved(one.data, other.data) <= 0.001
    peak = float(np.ptp(pair.hr.data))
    lost = (psnr(pair.hr.data, made.data, data_range=peak) for made in (one, other))
    assert next(lost) - next(lost) <= 0.01
    assert quick.precision == ("bf16" if PUBLISHED.get(name, True) else "32")
    assert np.array_equal(one.data, other.data) == (quick.precision == "32")


def test_the_shipped_weights_pass_the_gate(head):
    check_gate("robust", head)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_weights_pass_the_gate(name, head, fast, published_dir):
    if PUBLISHED[name] and not fast:
        pytest.skip("bfloat16 is emulated on this processor, which would take minutes")
    check_gate(name, head)


@pytest.mark.parametrize("make", RESIDUAL)
def test_others_that_add_to_their_input_pass_the_gate(make, head, fast):
    """With weights that add much, as no training has begun."""
    torch.manual_seed(0)
    network = make().eval()
    assert network.residual
    *_, last = (part for part in network.modules() if isinstance(part, torch.nn.Conv3d))
    data = central(head, 40 if fast else 12).data / head.data.max()
    start = run_tiled(network, data)
    torch.nn.init.normal_(last.weight, 0, 0.05)
    one, other = (run_tiled(network, data, precision=p) for p in ("32", "bf16"))
    assert np.abs(one - start).mean() > 0.01 * np.ptp(start) and other.dtype == np.float32
    assert not np.array_equal(one, other) and moved(one, other) <= 0.001


def kept(text: str) -> None:
    file = cache_dir() / f"bf16-{platform.node()}-cpu-torch-{torch.__version__}"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_auto_measures_once_and_keeps_the_answer(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = choose_precision("auto", CPU)
    (file,) = cache_dir().iterdir()
    assert first == ("bf16" if float(file.read_text()) >= 1.3 else "32")
    kept("4.0")
    assert choose_precision("auto", CPU) == "bf16" and choose_precision("32", CPU) == "32"
    kept("1.1")
    assert choose_precision("auto", CPU) == "32" and choose_precision("bf16", CPU) == "bf16"
    kept("damaged")
    assert choose_precision("auto", CPU) in ("32", "bf16") and float(file.read_text()) > 0
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # nowhere to keep it
    assert choose_precision("auto", CPU) in ("32", "bf16")
    with pytest.raises(InputError, match="unknown precision 'fp8'; expected one of auto, 32, bf16"):
        choose_precision("fp8", CPU)


def test_enhance_says_and_records_its_precision(tmp_path, head, fast, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kept("8.0")
    scan = save_scan(central(head, 40 if fast else 16), tmp_path / "scan.nii.gz")
    made = {}
    for name, asked in (("auto", ()), ("32", ("--precision", "32"))):
        out = tmp_path / f"{name}.nii.gz"
        done = CliRunner().invoke(main, ["enhance", str(scan), str(out), *asked])
        assert done.exit_code == 0, done.output
        precision = "bf16" if name == "auto" else name
        assert f"precision {precision}" in done.output
        record = headers.read_record(out)
        assert json.loads(json.dumps(record))["settings"]["precision"] == precision
        made[name] = load_nifti(out).data
    assert np.abs(made["auto"] - made["32"]).max() > 0 and moved(*made.values()) <= 0.001


def test_a_model_without_a_precision_computes_in_float32():
    experiment = systems.get("mdcsrn", "smoke")
    assert Model(experiment.network.build(), experiment).precision == "32"


def test_train_takes_a_stated_precision_alone(tmp_path, cohort):
    asked = ["train", "mdcsrn_res", "--cohort", str(cohort), "--profile", "smoke"]
    assert CliRunner().invoke(main, [*asked, "--precision", "auto"]).exit_code == 2
    done = CliRunner().invoke(main, [*asked, "--precision", "bf16"])
    assert done.exit_code == 0, done.output
    assert "training.precision=bf16-mixed" in done.output
