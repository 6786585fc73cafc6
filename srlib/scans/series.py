"""Scans of several volumes (4-D): read, keep and write them volume by volume."""

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.openers import ImageOpener

from srlib.core.paths import StrPath, atomic, explained
from srlib.scans.formats import load_scan
from srlib.scans.headers import check_sums, is_whole, open_image
from srlib.scans.intensity import finite
from srlib.scans.volume import Volume, save_scan, stored


def load_volumes(path: StrPath) -> tuple[tuple[int, ...], Iterator[Volume]]:
    """The shape (X, Y, Z, T) of a scan and its volumes: T of a 4-D NIfTI or MGH, one of others.

    Voxels are read as the iterator goes on, one volume at a time. Raises InputError as
    ``load_scan``; the iterator names the volume that is not finite.
    """
    path = Path(path)
    if is_whole(path):
        scan = load_scan(path)
        return (*scan.shape, 1), iter([scan])
    image, shape = open_image(path, series=True)
    count = math.prod(image.shape[3:])
    return (*shape, count), _volumes(path, image) if count > 1 else iter([load_scan(path)])


def _volumes(path, image):
    """Read volume by volume; InputError names the one that is unreadable or not finite."""
    with explained(path, "unreadable or truncated scan"):
        check_sums(image)
        # one handle, so that a compressed file is not read from its beginning each time
        voxels = type(image).from_filename(path, keep_file_open=True).dataobj
    for number in range(image.shape[3]):
        with explained(f"{path}, volume {number + 1}", "unreadable or truncated"):
            data = finite(np.asarray(voxels[:, :, :, number], dtype=np.float32))
        yield Volume(data.reshape(image.shape[:3]), image.affine)


class Series:
    """Volumes of one grid, of which the first is in memory and the others on disk.

    ``low`` and ``high`` are the least and the greatest of all values. The temporary file lies in
    ``folder``, has no name there and ends with the process.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._file = folder, None
        self.first: Volume | None = None
        self.low, self.high, self._count = np.inf, -np.inf, 0

    def __len__(self) -> int:
        return self._count

    def append(self, volume: Volume) -> None:
        """Add a volume, (X, Y, Z) as the first; InputError where the disk is full."""
        self.low = min(self.low, float(volume.data.min()))
        self.high = max(self.high, float(volume.data.max()))
        self._count += 1
        if self.first is None:
            self.first = volume
            return
        with explained(self._folder, "cannot hold the volumes", "choose another place"):
            if not self._file:
                self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115
            self._file.write(np.ascontiguousarray(volume.data))

    def __iter__(self) -> Iterator[Volume]:
        yield self.first
        if self._file:
            self._file.seek(0)
        for _ in range(self._count - 1):
            data = np.fromfile(self._file, np.float32, self.first.data.size)
            yield self.first.with_data(data.reshape(self.first.shape))


def save_series(series: Series, path: Path, header: nib.Nifti1Header) -> Path:
    """Write one volume as ``save_scan``, several as one NIfTI, atomically.

    ``header``: of ``SourceHeader.derive``. Raises InputError as ``save_scan``.
    """
    kind = header.get_data_dtype()
    if len(series) == 1:
        return save_scan(series.first, path, dtype=kind, header=header)
    with atomic(path) as temporary, ImageOpener(temporary, "wb") as file:
        header.write_to(file)
        for volume in series:
            file.write(stored(volume.data, kind, header).tobytes(order="F"))
    return path
