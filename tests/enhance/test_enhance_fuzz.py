"""Whatever a scan file holds, its user sees an output in its place or one line."""

import gzip
import random
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner

from srlib.cli.commands import main
from srlib.core.tables import read_table
from srlib.enhance import jobs
from srlib.scans import formats, volume

FILES, FOLDERS = 800, 8
DTYPES = next(p.type.choices for p in main.commands["enhance"].params if p.name == "dtype")
TYPES = {
    "nifti1": (nib.Nifti1Image, nib.Nifti1Header, ".nii"),
    "nifti2": (nib.Nifti2Image, nib.Nifti2Header, ".nii"),
    "pair": (nib.Nifti1Pair, nib.nifti1.Nifti1PairHeader, ".hdr"),
    "analyze": (nib.Spm99AnalyzeImage, nib.AnalyzeHeader, ".hdr"),
    "mgh": (nib.MGHImage, None, ".mgz"),
    "npz": (None, None, ".npz"),
}
VOXELS = ("u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8", "c8", "c16")
ODD = (0, 1, -1, 2, 7, 32767, -32768, 1e-30, 1e30, np.nan, np.inf, -np.inf, 0.001, 300)


def random_voxels(rng: np.random.Generator) -> np.ndarray:
    dims = 3 if rng.random() < 0.9 else int(rng.integers(1, 6))
    shape = tuple(
        int(n) for n in rng.choice([1, 2, 3, 5, 8, 12], dims, p=[0.04, 0.12, 0.14, 0.3, 0.2, 0.2])
    )
    data = rng.random(shape) * (10.0 ** rng.integers(-40, 40) if rng.random() < 0.1 else 4000) - 500
    if rng.random() < 0.05:
        data.flat[0] = rng.choice([np.nan, np.inf])
    if rng.random() < 0.04:
        data[:] = 7
    if rng.random() < 0.04:
        return np.zeros(shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    return data.astype(rng.choice(VOXELS))


def with_odd_fields(content: bytes, header_type, rng: np.random.Generator) -> bytes:
    """A header with up to two fields overwritten by what is odd or wrong."""
    size = header_type.template_dtype.itemsize
    header = header_type(content[:size], check=False)
    for field in rng.choice(list(header.keys()), rng.integers(0, 3)):
        value = np.array(header[field]).reshape(-1)
        if value.dtype.kind in "iuf":
            value[rng.integers(value.size)] = np.array(rng.choice(ODD)).astype(value.dtype)
            header[field] = value.reshape(header[field].shape)
    return header.binaryblock + content[size:]


def damaged(content: bytes, seed: int) -> bytes:
    rng, copy = random.Random(seed), bytearray(content)
    for _ in range(rng.randint(1, 6)):
        copy[rng.randrange(min(len(copy), 400))] = rng.randrange(256)
    return bytes(copy[: rng.randrange(len(copy))] if rng.random() < 0.2 else copy)


def write(folder: Path, seed: int) -> None:
    """A random scan, most of them with something odd or wrong."""
    rng = np.random.default_rng(seed)
    image_type, header_type, suffix = TYPES[str(rng.choice(list(TYPES)))]
    path, data, affine = folder / f"s{seed}{suffix}", random_voxels(rng), np.eye(4)
    affine[:3] = rng.normal(0, 10.0 ** rng.integers(-1, 2), (3, 4))
    try:
        if image_type is None:
            np.savez(path, data)
        else:
            nib.save(
                image_type(data, affine, **({"dtype": data.dtype} if suffix == ".nii" else {})),
                path,
            )
    except (nib.spatialimages.HeaderDataError, nib.freesurfer.mghformat.MGHError, ValueError):
        path.write_bytes(rng.bytes(500))  # the format has no such voxels
    content = path.read_bytes()
    if header_type and rng.random() < 0.5 and len(content) > 540:
        content = with_odd_fields(content, header_type, rng)
    if rng.random() < 0.4:
        inner = suffix == ".mgz" and rng.random() < 0.7 and content[:2] == b"\x1f\x8b"
        content = (
            gzip.compress(damaged(gzip.decompress(content), seed))
            if inner
            else damaged(content, seed)
        )
    if suffix == ".nii" and rng.random() < 0.4:
        path.unlink()
        path = path.with_name(path.name + ".gz")
        content = gzip.compress(content)
        content = damaged(content, seed) if rng.random() < 0.3 else content
    path.write_bytes(content)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", range(FOLDERS))
def test_random_files_end_as_an_output_or_as_one_line(part, tiny, tmp_path, to_world):
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for seed in range(part * FILES // FOLDERS, (part + 1) * FILES // FOLDERS):
        write(source, seed)
    dtype = DTYPES[part % len(DTYPES)]
    words = ["enhance", source, target, "--weights", tiny, "--dtype", dtype, "--device", "cpu"]
    result = CliRunner().invoke(main, [str(w) for w in words])
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output and "unexpectedly" not in result.output
    rows = read_table(target / "summary.csv")
    assert len(rows) == FILES // FOLDERS
    failed = [row for row in rows if row["status"] == "failed"]
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert sorted(lines) == sorted(f"error: {row['message']}" for row in failed)
    assert all(Path(row["file"]).name in row["message"] for row in failed)
    assert 20 < len(failed) < 80  # there is much of both
    written = result.stdout.splitlines()
    assert sorted([*written, str(target / "summary.csv")]) == sorted(
        str(p) for p in target.iterdir()
    )
    for row in rows:
        if row["status"] == "enhanced":
            given, made = (
                formats.load_scan(row["file"]),
                volume.load_nifti(target / f"{jobs._stem(Path(row['file']))}_sr.nii.gz"),
            )
            assert made.shape == tuple(2 * n for n in given.shape)
            for corner in ((-0.5,) * 3, np.array(given.shape) - 0.5):
                there = to_world(made.affine, 2 * np.array(corner) + 0.5)
                assert (
                    np.abs(there - to_world(given.affine, corner)).max()
                    < 1e-5 * np.abs(given.affine).max() * 24
                )
