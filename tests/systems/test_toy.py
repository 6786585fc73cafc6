"""A sixth system costs a network, a file of experiments, and not a line of the package."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from srlib import data, systems
from srlib.cli import main
from srlib.evaluation import benchmark
from srlib.inference.prediction import SameGrid
from srlib.models.network import Network
from srlib.models.registry import MODELS
from srlib.scans import formats
from srlib.systems.base import Experiment
from srlib.training.examples import ScanPatches
from srlib.training.games import Training


class Toy(torch.nn.Module):
    """One convolution."""

    def __init__(self, width: int = 1) -> None:
        super().__init__()
        self.last = torch.nn.Conv3d(1, 1, 3, padding=1)
        torch.nn.init.zeros_(self.last.weight)
        torch.nn.init.zeros_(self.last.bias)
        self.halo, self.live_channels = 1, width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.last(x)


@dataclass(frozen=True)
class Brighter(SameGrid):
    """A prediction of its own: the scan a little brighter."""

    factor_of_brightness: float = 1.25

    def run(self, *given, **settings):
        made = super().run(*given, **settings)
        return type(made)(made.image.with_data(made.image.data * self.factor_of_brightness))


@pytest.fixture
def toy(monkeypatch) -> Experiment:
    """The experiment ``toy``, known by its name as any other."""
    monkeypatch.setitem(MODELS, "toy", Toy)
    experiment = Experiment(
        name="toy",
        task="gaussian_x2",
        network=Network("toy", 1),
        examples=ScanPatches(patch_size=16, n_train=2),
        training=Training(max_steps=3, batch_size=2, learning_rate=1e-4),
        prediction=Brighter(),
    )
    monkeypatch.setitem(systems.EXPERIMENTS, "toy", experiment)
    return experiment


def run(*words):
    result = CliRunner().invoke(main, [*map(str, words)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def test_a_system_of_its_own_goes_all_the_way(toy, cohort, tmp_path):
    run("train", "toy", "--cohort", cohort, "--profile", "smoke", "--out", tmp_path / "run")
    weights = tmp_path / "run" / "model.safetensors"
    model = systems.load_model(weights, device="cpu")
    assert model.experiment == toy
    (subject, *_) = data.read_manifest(cohort, "test")
    scan = subject.file("t1")
    run("enhance", scan, tmp_path / "sr.nii.gz", "--weights", weights)
    before, after = formats.load_scan(scan), formats.load_scan(tmp_path / "sr.nii.gz")
    assert after.shape == tuple(2 * n for n in before.shape)
    assert after.data.mean() == pytest.approx(1.25 * before.data.mean(), rel=0.05)
    out = tmp_path / "evaluated"
    run("evaluate", "--weights", weights, "--cohort", cohort, "--out", out)
    assert (out / "metrics.csv").is_file()
    rows, costs = benchmark.measure(subject, {"toy": model}, 16)
    tasks = {row["degradation"] for row in rows if row["experiment"] == "toy"}
    assert tasks == set(benchmark.BENCHMARK)
    assert np.isfinite([row["value"] for row in rows]).all() and len(costs) == len(tasks)


def test_an_unknown_network_of_a_file_is_one_line(toy, cohort, tmp_path, monkeypatch):
    run("train", "toy", "--cohort", cohort, "--profile", "smoke", "--out", tmp_path / "run")
    monkeypatch.delitem(MODELS, "toy")
    result = CliRunner().invoke(
        main,
        ["enhance", "a.nii", "b.nii", "--weights", str(tmp_path / "run" / "model.safetensors")],
    )
    assert result.exit_code == 1 and "unknown model 'toy'" in result.output
    assert result.output.count("\n") == 1
