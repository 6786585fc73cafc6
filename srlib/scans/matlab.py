"""Read arrays of MATLAB files (version 5), in a process of its own: SciPy crashes on damaged ones."""

import io
from pathlib import Path

import numpy as np

from srlib.core.isolated import answer, isolated
from srlib.core.paths import InputError, explained


def read_matlab(path: Path, name: str, axes: int) -> np.ndarray:
    """Read a real array of so many axes from a MATLAB file (version 5).

    Raises InputError, naming the file, for anything else.
    """
    with explained(path, "not a readable MATLAB 5 file"):
        data = np.load(io.BytesIO(isolated("srlib.scans.matlab", path, name)))
    if data.ndim != axes or data.dtype.kind not in "iuf" or not np.isfinite(data).all():
        raise InputError(
            f"{path}: expected finite, real numbers of {axes} axes in the variable {name}, got "
            f"{data.dtype} of {data.shape}; save it anew"
        )
    return data


def variable(path: Path, name: str) -> bytes:
    """A variable of a file as NumPy saves it; 0 where there is none of that name."""
    from scipy.io import loadmat

    content = io.BytesIO()
    np.save(content, loadmat(path, variable_names=[name]).get(name, 0), allow_pickle=False)
    return content.getvalue()


def main() -> None:
    """Write the variable that the command line names."""
    answer(variable)


if __name__ == "__main__":
    main()
