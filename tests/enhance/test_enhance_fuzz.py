"""Whatever a scan file holds, its user sees an output in its place or one line."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from srlib.cli.commands import main
from srlib.core.tables import read_table
from srlib.scans import formats
from srlib.scans.series import load_volumes
from tests.mutations import odd_scan

FILES, FOLDERS = 800, 8
DTYPES = next(p.type.choices for p in main.commands["enhance"].params if p.name == "dtype")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", range(FOLDERS))
def test_random_files_end_as_an_output_or_as_one_line(part, tiny, tmp_path, to_world):
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for seed in range(part * FILES // FOLDERS, (part + 1) * FILES // FOLDERS):
        odd_scan(source, seed)
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
            sr = target / f"{formats.scan_name(Path(row['file']))}_sr.nii.gz"
            (*_, count), given = load_volumes(row["file"])
            (*_, finer), made = load_volumes(sr)  # a scan may have several volumes
            given, made = next(given), next(made)
            assert count == finer
            assert made.shape == tuple(2 * n for n in given.shape)
            for corner in ((-0.5,) * 3, np.array(given.shape) - 0.5):
                there = to_world(made.affine, 2 * np.array(corner) + 0.5)
                assert (
                    np.abs(there - to_world(given.affine, corner)).max()
                    < 1e-5 * np.abs(given.affine).max() * 24
                )
