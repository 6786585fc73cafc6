"""Make scans that are odd, and damage files of every kind; a seed gives the same file each time."""

import gzip
import io
import json
import random
import re
import zipfile
import zlib
from functools import cache
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pydicom
from pydicom.dataelem import DataElement
from safetensors.torch import load_file, save_file

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
LEAVES = (None, "", "x", "a\nb", 0, -1, 1, 3, 1e30, 10**5, 10**9, 2**70, 0.5, True, [], [[1]], {})
CELLS = (
    "", '"', 'a"b', "\n", "\r", "\0", ";", "\t", ",", "nan", "-inf", "-1", "1e999", "9" * 5000,
    "x" * 100_000, "../..", "/", ".", "\u2028", "\x85", "'<>&", "=1+1", "\ud7ff", "a\nb", "train",
)  # fmt: skip
TAGS = ("", "abc", "1e400", "-1", "0", "nan", "1\\2\\3\\4\\5\\6", "9" * 3000, "a\nb", "1.5")
BYTES = (b"\xff" * 8, bytes(8), (1 << 31).to_bytes(8, "little"), (1 << 40).to_bytes(8, "big"))
BOMB = 100_000_000  # bytes of zeros


def mutant(content: bytes, rng: random.Random, reach: int = 400) -> bytes:
    """A damaged copy: cut off, or with bytes replaced, half of them within its first ``reach``."""
    copy = bytearray(content or b"\0")
    end = min(rng.choice((len(copy), reach)), len(copy))
    kind, at = rng.random(), rng.randrange(end)
    if kind < 0.15:
        del copy[at:]
    elif kind < 0.4:
        copy[at : at + 8] = rng.choice((*BYTES, rng.randbytes(8)))
    elif kind < 0.5:
        copy[at:at] = copy[: rng.randrange(len(copy))]
    else:
        for _ in range(rng.randint(1, 6)):
            copy[rng.randrange(end)] = rng.randrange(256)
    return bytes(copy)


def mutants(content: bytes, count: int, reach: int):
    """``count`` damaged copies of a file's content."""
    return (mutant(content, random.Random(seed), reach) for seed in range(count))


def random_voxels(rng: np.random.Generator) -> np.ndarray:
    dims = 3 if rng.random() < 0.9 else int(rng.integers(1, 6))
    sizes = rng.choice([1, 2, 3, 5, 8, 12], dims, p=[0.04, 0.12, 0.14, 0.3, 0.2, 0.2])
    shape = tuple(map(int, sizes))
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


@np.errstate(all="ignore")
def odd_scan(folder: Path, seed: int, kind: str = "") -> Path:
    """Write a random scan, of any of TYPES by default, most of them with something odd or wrong."""
    rng, bits = np.random.default_rng(seed), random.Random(seed)
    image_type, header_type, suffix = TYPES[kind or str(rng.choice(list(TYPES)))]
    path, data, affine = folder / f"s{seed}{suffix}", random_voxels(rng), np.eye(4)
    affine[:3] = rng.normal(0, 10.0 ** rng.integers(-1, 2), (3, 4))
    try:
        if image_type is None:
            np.savez(path, data)
        else:
            how = {"dtype": data.dtype} if suffix == ".nii" else {}
            nib.save(image_type(data, affine, **how), path)
    except (nib.spatialimages.HeaderDataError, nib.freesurfer.mghformat.MGHError, ValueError):
        path.write_bytes(rng.bytes(500))  # the format has no such voxels
    content = path.read_bytes()
    if header_type and rng.random() < 0.5 and len(content) > 540:
        content = with_odd_fields(content, header_type, rng)
    if rng.random() < 0.4:
        content = (packed if rng.random() < 0.7 else mutant)(content, bits)
    if suffix == ".nii" and rng.random() < 0.4:
        path.unlink()
        path = path.with_name(path.name + ".gz")
        content = gzip.compress(content)
        content = mutant(content, bits) if rng.random() < 0.3 else content
        content += bomb() if rng.random() < 0.02 else b""
    path.write_bytes(content)
    return path


@cache
def bomb() -> bytes:
    """Zeros that gzip packs into a thousandth."""
    return gzip.compress(bytes(BOMB), 6)


def packed(content: bytes, rng: random.Random) -> bytes:
    """A mutant within the compression of a gzip file; of any other its bytes."""
    if content[:2] != b"\x1f\x8b":
        return mutant(content, rng)
    return gzip.compress(mutant(gzip.decompress(content), rng))


def raw(path: Path, rng: random.Random) -> None:
    path.write_bytes(packed(path.read_bytes(), rng))


def archive(path: Path, rng: random.Random) -> None:
    """A part of a ZIP file mutated, doubled, left out or made a bomb; the checksums are right."""
    with zipfile.ZipFile(path) as parts:
        held = [(name, parts.read(name)) for name in parts.namelist()]
    at = rng.randrange(len(held))
    name, content = held[at]
    kind = rng.random()
    if kind < 0.05:
        held.append(held[at])
    elif kind < 0.1:
        del held[at]
    elif kind < 0.12:
        held[at] = name, content + bytes(BOMB)
    else:
        held[at] = name, mutant(content, rng, 130)
    how = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if kind < 0.12 else how) as parts:
        for name, content in held:
            parts.writestr(name, content)


def chunks(path: Path, rng: random.Random) -> None:
    """A chunk of a PNG mutated; its checksum is right."""
    content, at, found = path.read_bytes(), 8, []
    while at < len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        found.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += 12 + size
    n = rng.randrange(len(found))
    kind, body = found[n]
    if kind == b"IDAT" and rng.random() < 0.5:
        body = zlib.compress(mutant(zlib.decompress(body), rng))
    found[n] = kind, mutant(body, rng)
    path.write_bytes(content[:8] + b"".join(len(b).to_bytes(4, "big") + k + b + zlib.crc32(k + b).to_bytes(4, "big") for k, b in found))  # fmt: skip


def matlab(path: Path, rng: random.Random) -> None:
    """A MATLAB file whose compressed element is mutated inside."""
    content = path.read_bytes()
    inner = mutant(zlib.decompress(content[136:]), rng)
    outer = zlib.compress(inner + (bytes(BOMB) if rng.random() < 0.01 else b""))
    path.write_bytes(content[:132] + len(outer).to_bytes(4, "little") + outer)


def cells(path: Path, rng: random.Random) -> None:
    """A text with cells, lines or its encoding changed."""
    parts = re.split(r"([,\n])", path.read_text(encoding="utf-8"))
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(parts))
        parts[at] = rng.choice((*CELLS, rng.choice(parts), parts[at] * 2))
    text = "".join(parts)
    encoding = rng.choices(("utf-8", "utf-8-sig", "utf-16", "latin-1"), (20, 1, 1, 1))[0]
    path.write_bytes(text.encode(encoding, "replace"))


def leaf(value: object, rng: random.Random) -> object:
    """JSON with one value in it replaced by an odd one."""
    if isinstance(value, str) and value[:1] == "{":
        return json.dumps(leaf(json.loads(value), rng))
    if not isinstance(value, dict | list) or not value or rng.random() < 0.05:
        return rng.choice(LEAVES)
    key = rng.choice([*value] if isinstance(value, dict) else range(len(value)))
    if isinstance(value, dict) and rng.random() < 0.1:
        return {k: v for k, v in value.items() if k != key}
    changed = leaf(value[key], rng)
    if isinstance(value, dict):
        return value | {key: changed}
    return [*value[:key], changed, *value[key + 1 :]]


def values(path: Path, rng: random.Random) -> None:
    """A JSON file with another value in it, or nested deeply."""
    text = json.dumps(leaf(json.loads(path.read_text(encoding="utf-8")), rng))
    path.write_text("[" * 200_000 if rng.random() < 0.02 else text, encoding="utf-8")


def settings(path: Path, rng: random.Random) -> None:
    """A safetensors file whose description of the network has another value."""
    with open(path, "rb") as file:
        head = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    state, described = load_file(path), json.loads(head["__metadata__"]["srlib"])
    text = json.dumps(leaf(described, rng)) if rng.random() < 0.97 else "[" * 200_000
    if rng.random() < 0.3:
        name = rng.choice([*state])
        state[name] = state[name].to(rng.choice(DTYPES)) if rng.random() < 0.7 else state[name][:0]
    save_file(state, path, metadata={"srlib": text})


def _dtypes():
    import torch

    return torch.float16, torch.float64, torch.int8, torch.bool, torch.complex64, torch.bfloat16


DTYPES = _dtypes()


def tags(path: Path, rng: random.Random) -> None:
    """A DICOM file with tags that are odd, missing or deep, pixels cut off, or deflated."""
    image = pydicom.dcmread(path)
    element = rng.choice([*image])
    kind = rng.random()
    if kind < 0.1:
        del image[element.tag]
    elif kind < 0.2:
        image.PixelData = image.PixelData[: rng.randrange(len(image.PixelData))] + b"\0" * 2
    elif kind < 0.3:
        image.file_meta.TransferSyntaxUID = rng.choice(SYNTAXES)
    elif kind < 0.33:
        for _ in range(rng.choice((20, 300))):
            inner, image = image, pydicom.Dataset()
            image.RequestAttributesSequence = [inner]
    elif element.VR in ("US", "UL", "SS"):
        image[element.tag].value = rng.choice((0, 1, 3, 7, 12, 255, 32767))
    elif isinstance(element.value, bytes):
        element.value = mutant(element.value, rng)
    else:
        image[element.tag] = DataElement(element.tag, element.VR, rng.choice(TAGS))
    if kind < 0.005:
        image.PixelData, image.file_meta.TransferSyntaxUID = bytes(BOMB), SYNTAXES[0]
    out = io.BytesIO()
    image.save_as(out)
    path.write_bytes(out.getvalue())


SYNTAXES = (
    "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.5",
    "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.70", "1.2.3", "",
)  # fmt: skip


def hdf5(path: Path, rng: random.Random) -> None:
    """An HDF5 file with an object that is missing, of another kind, deep, huge or elsewhere."""
    with h5py.File(path, "a", libver="latest") as file:
        names: list[str] = []
        file.visit(names.append)
        name = rng.choice(names)
        group = file[rng.choice(["/", *(n for n in names if isinstance(file[n], h5py.Group))])]
        if rng.random() < 0.4:
            attribute = rng.choice([*group.attrs, "items"])
            group.attrs[attribute] = rng.choice(ATTRIBUTES)
            return
        dataset = isinstance(file[name], h5py.Dataset)
        shape, dtype = (file[name].shape, file[name].dtype) if dataset else ((3,), "f4")
        del file[name]
        rng.choice(OBJECTS)(file, name, shape, dtype)


def _links(file, name, shape, dtype):
    file[name] = h5py.SoftLink(f"/{name}")


def _deep(file, name, shape, dtype):
    file[name] = file.create_group("/".join("g" * 300))


def _large(file, name, shape, dtype):
    size = (10**6, *shape[1:]) if len(shape) > 1 else (10**9,)
    file.create_dataset(name, size, "f4", chunks=(16, *shape[1:]) if len(shape) > 1 else (256,))


def _bomb(file, name, shape, dtype):
    whole = (1, 1, 500, 500, 100) if len(shape) == 5 else (BOMB // 4,)
    made = file.create_dataset(name, whole, "f4", chunks=whole, compression="gzip")
    made[:] = 0


OBJECTS = (
    lambda file, name, shape, dtype: None,
    lambda file, name, shape, dtype: file.create_group(name),
    lambda file, name, shape, dtype: file.create_dataset(name, shape, dtype),
    lambda file, name, shape, dtype: file.create_dataset(name, data=np.ones(shape, "i2")),
    lambda file, name, shape, dtype: file.create_dataset(name, data=np.ones(shape, "c8")),
    lambda file, name, shape, dtype: file.create_dataset(name, data=np.full(shape, np.nan, "f2")),
    lambda file, name, shape, dtype: file.create_dataset(name, data=np.ones(shape[:-1], "f4")),
    lambda file, name, shape, dtype: file.create_dataset(name, data=["a", "b"]),
    lambda file, name, shape, dtype: file.create_dataset(name, data=h5py.Empty("f4")),
    lambda file, name, shape, dtype: file.create_dataset(name, data=np.zeros(3, "i4,f8")),
    lambda file, name, shape, dtype: file.create_dataset(name, shape, external="/etc/passwd"),
    lambda file, name, shape, dtype: file.__setitem__(name, h5py.ExternalLink("/dev/zero", "/")),
    _links,
    _deep,
    _large,
    _large,
    _bomb,
)  # fmt: skip
ATTRIBUTES = (
    0, -1, 2**62, 1.5, "x", "a\nb" * 1000, [], [1, 2], ["conv"], ["x" * 9000], [np.nan], h5py.Empty("f4"),
    np.zeros(3_000_000, "i8"), np.ones((2, 2)), np.zeros(2, "i4,f8"), [b"\xff\xfe"],
)  # fmt: skip
