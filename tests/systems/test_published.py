"""The original authors' files are read whole, or refused."""

import pytest
import torch

from srlib.core.paths import InputError, root
from srlib.core.tables import read_table
from srlib.systems.published import PUBLISHED, load_published
from srlib.systems.registry import EXPERIMENTS

NAME = "mDCSRN_pretrained_G_step250000.pth"


@pytest.fixture
def weights(published_dir):
    if not (published_dir / NAME).is_file():
        pytest.skip(f"{NAME} is not in {published_dir}; get it from its authors")
    return published_dir / NAME


@torch.no_grad()
def test_the_authors_weights_are_loaded_tensor_by_tensor(weights):
    network, experiment = load_published(weights)
    assert experiment is EXPERIMENTS["mdcsrn"]
    theirs = torch.load(weights, map_location="cpu", weights_only=True)
    ours = {k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert len(ours) == len(theirs) == 85
    assert torch.equal(ours["first.weight"], theirs["conv0.weight"])
    assert torch.equal(ours["last.weight"], theirs["recon.weight"])
    for i in range(3):
        assert torch.equal(ours[f"compress.{i}.weight"], theirs[f"comp{i}.weight"])
    for i in range(16):
        block, unit = divmod(i, 4)
        for part in (
            "conv.weight",
            "norm.weight",
            "norm.bias",
            "norm.running_mean",
            "norm.running_var",
        ):
            assert torch.equal(
                ours[f"blocks.{block}.{unit}.{part}"],
                theirs[f"block{block}.denselayer{unit + 1}.{part}"],
            )


def test_the_printed_rows_of_the_replication_state_their_data_range():
    """Three rows of the notebook; scikit-image 0.14.2 takes 1 for PSNR, 2 for SSIM."""
    rows = [r for r in read_table(root() / "csv" / "reported.csv") if r["system"] == "mDCSRN"]
    rows = [r for r in rows if r["source"] == "replicated code: main notebook"]
    printed = {(r["metric"], r["mean"], r["std"]) for r in rows}
    assert len(rows) == 9 and printed == {
        ("ssim", "0.9275", "0.0215"), ("psnr", "30.02", "2.37"), ("nrmse", "0.2876", "0.0693"),
        ("ssim", "0.9331", "0.0081"), ("psnr", "30.54", "1.3734"), ("nrmse", "0.2485", "0.0343"),
        ("ssim", "0.9269", "0.0217"), ("psnr", "29.99", "2.54"), ("nrmse", "0.2883", "0.0673"),
    }  # fmt: skip
    said = {"psnr": "data_range: 1 for", "ssim": "data_range: 2 for", "nrmse": "Euclidean"}
    assert all(said[r["metric"]] in r["conventions"] for r in rows)


@pytest.mark.parametrize("size", [0, 10, 1000, 100_000, -1, -1000])
def test_a_truncated_file_is_refused(weights, tmp_path, size):
    (tmp_path / NAME).write_bytes(weights.read_bytes()[:size])
    with pytest.raises(InputError, match=NAME):
        load_published(tmp_path / NAME)


def other_keys(path):
    torch.save({"conv0.weight": torch.zeros(32, 1, 3, 3, 3)}, path)


def other_units(path):
    torch.save({"block0.denselayerA.norm.weight": torch.zeros(3)}, path)


def a_list(path):
    torch.save([torch.zeros(3)], path)


def text(path):
    path.write_text("not weights")


def a_whole_object(path):
    torch.save(torch.nn.Linear(2, 2), path)


@pytest.mark.parametrize("write", [other_keys, other_units, a_list, text, a_whole_object])
def test_a_file_of_the_right_name_but_other_content_is_refused(tmp_path, write):
    write(tmp_path / NAME)
    with pytest.raises(InputError, match=NAME) as error:
        load_published(tmp_path / NAME)
    assert "\n" not in str(error.value)


def test_an_unknown_name_and_a_missing_file_are_refused(tmp_path):
    with pytest.raises(InputError, match="not a published file"):
        load_published(tmp_path / "other.pth")
    for name in PUBLISHED:
        with pytest.raises(InputError, match="no such file"):
            load_published(tmp_path / name)
