"""Small scans with a known place in the world, shared by the tests."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from srlib import systems
from srlib.core import paths
from srlib.models.weights import save_weights
from srlib.scans.volume import Volume, save_scan
from srlib.training.games import Players

# tests that take minutes; each of two workers begins with some of them, so that none ends with one
LONGEST = (
    "test_the_chain_",
    "test_every_published_system_is_",
    "test_published_weights_",
    "test_types_",
)


def pytest_collection_modifyitems(items):
    long = [item for item in items if item.name.startswith(LONGEST)]
    long.sort(key=lambda item: [item.name.startswith(name) for name in LONGEST], reverse=True)
    rest = [item for item in items if item not in long]
    half = (len(items) + 1) // 2 - len(long[::2])
    items[:] = [*long[::2], *rest[:half], *long[1::2], *rest[half:]]


class LocalFabric:
    """The few calls of Fabric that training makes, on one CPU process."""

    global_rank, device = 0, torch.device("cpu")

    def setup(self, network, optimizer):
        return network, optimizer

    def backward(self, loss):
        loss.backward()


def make_players(experiment, seed=0, segmenter=None) -> Players:
    """The networks of an experiment as its game moves them, without a training loop."""
    network, examples = experiment.network, experiment.examples
    networks = {"generator": network.build(seed)}
    if critic := experiment.game.critic(network.width, examples.patch_size, seed):
        networks["critic"] = critic
    return Players(networks, experiment.training, LocalFabric(), seed, segmenter)


def rotation(x: float, y: float, z: float) -> np.ndarray:
    """Rotation matrix of three angles in radians."""
    (cx, cy, cz), (sx, sy, sz) = np.cos([x, y, z]), np.sin([x, y, z])
    return (
        np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
        @ np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
        @ np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    )


AFFINES = {
    "plain": np.eye(4),
    "anisotropic": np.diag([0.7, 1.0, 2.5, 1.0]),
    "oblique": np.block(
        [
            [rotation(0.3, -0.2, 0.5) * [0.9, 1.1, 1.7], np.array([[-31.0], [12.5], [7.25]])],
            [0, 0, 0, 1],
        ]
    ),
    "flipped": np.array([[0, 0, 1.2, -8.0], [-0.8, 0, 0, 40.0], [0, 1.0, 0, -3.0], [0, 0, 0, 1.0]]),
}


@pytest.fixture(params=AFFINES)
def affine(request) -> np.ndarray:
    """Each of a few affines in turn, oblique and anisotropic ones among them."""
    return AFFINES[request.param].copy()


@pytest.fixture
def oblique() -> np.ndarray:
    """One oblique, anisotropic affine."""
    return AFFINES["oblique"].copy()


def world(affine: np.ndarray, voxel) -> np.ndarray:
    return affine[:3, :3] @ np.asarray(voxel, dtype=float) + affine[:3, 3]


@pytest.fixture
def to_world():
    """Position in mm of a voxel coordinate under an affine."""
    return world


@pytest.fixture
def blob():
    """Maker of a volume with one Gaussian blob, off the middle by a fraction of a voxel; zero at the faces."""

    def make(shape=(25, 24, 23), affine=None, sigma=2.0, offset=(0.3, -0.4, 0.2)) -> Volume:
        centre = [(n - 1) / 2 + o for n, o in zip(shape, offset, strict=True)]
        grid = np.meshgrid(
            *(np.arange(n) - c for n, c in zip(shape, centre, strict=True)), indexing="ij"
        )
        data = np.exp(-sum(g**2 for g in grid) / (2 * sigma**2))
        return Volume(data, np.eye(4) if affine is None else affine)

    return make


@pytest.fixture
def centre_of_mass():
    """Centre of mass of a volume in world mm."""

    def measure(volume: Volume) -> np.ndarray:
        weight = volume.data.astype(np.float64)
        grid = np.indices(volume.shape).reshape(3, -1)
        return world(volume.affine, grid @ weight.ravel() / weight.sum())

    return measure


@pytest.fixture
def noise():
    """Maker of smooth-free positive random arrays, float32."""

    def make(shape, seed=0) -> np.ndarray:
        return np.random.default_rng(seed).random(shape, dtype=np.float32)

    return make


@pytest.fixture(scope="session", autouse=True)
def own_results(tmp_path_factory):
    """No test writes into the checkout's results, nor finds what was trained there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SRLIB_RESULTS", str(tmp_path_factory.mktemp("all") / "results"))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def published_dir() -> Path:
    """Folder of the weights that the original authors published; the test is skipped without it."""
    folder = paths.published_dir()
    if not folder.is_dir():
        pytest.skip(
            f"no published weights: {folder} is missing; get the files, name their folder in SRLIB_PUBLISHED"
        )
    return folder


@pytest.fixture(scope="session")
def cohort(tmp_path_factory) -> Path:
    """Manifest ``mine.csv`` of six small scans as a user has them: oblique, 0.8 mm, int16, odd sizes, T1 only."""
    folder = tmp_path_factory.mktemp("cohort")
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = rotation(0.2, -0.1, 0.3) * 0.8, (-20, 11, 5)
    rows = ["subject,split,t1"]
    for index, split in enumerate(("train", "train", "train", "val", "test", "test")):
        rng = np.random.default_rng(index)
        shape = tuple(int(n) for n in rng.integers(12, 16, 3) * 2 + 1)
        grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
        head = sum((g / 0.8) ** 2 for g in grid) < 1
        texture = ndimage.gaussian_filter(rng.standard_normal(shape), 1.2)
        data = head * (1000 + 800 * texture / texture.std() * 0.3)
        save_scan(Volume(data, affine), folder / f"scan{index}.nii.gz", dtype=np.int16)
        rows.append(f"scan{index},{split},scan{index}.nii.gz")
    (folder / "mine.csv").write_text("\n".join(rows) + "\n")
    return folder / "mine.csv"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """Weights of an untrained network of two layers."""
    experiment = systems.get("mdcsrn_res", "smoke").changed(
        model_args={"blocks": 1, "units": 1, "residual": True}
    )
    network = experiment.network.build()
    torch.manual_seed(0)
    torch.nn.init.normal_(
        network.last.weight, std=0.02
    )  # which begins at zero, and would change nothing
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_weights(network.state_dict(), path, {"experiment": experiment.to_json()})
    return path


@pytest.fixture
def script(monkeypatch):
    """Importer of a script of benchmarks/ by its name, as it is found when it is run."""
    folder = Path(__file__).parents[1] / "benchmarks"
    monkeypatch.syspath_prepend(str(folder))
    yield importlib.import_module
    for path in folder.glob("*.py"):
        sys.modules.pop(path.stem, None)
