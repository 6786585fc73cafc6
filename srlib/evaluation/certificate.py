"""Certify what a run was made of, and check a certificate on another machine."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import torch

from srlib.core.device import processor
from srlib.core.paths import StrPath, explained, locate, root, sha256, source_commit, write_file
from srlib.data.manifest import read_cohorts, read_manifest
from srlib.evaluation.results import read_metrics, read_runs

CERTIFICATE = "certificate.json"


def write(run: StrPath, cohort: StrPath) -> Path:
    """Write the certificate of a run: commit, versions, processor, and hashes of its files.

    These are the rows, the weights, and the manifests and scans that they come from. The list is
    that of a CODECHECK manifest (Nüst and Eglen, F1000Research 2021), with hashes.
    """
    run = Path(run)
    rows, runs = read_metrics(run), read_runs(run)
    manifests = [*read_cohorts(cohort).values()] or [locate(cohort)]
    manifests += [root() / "csv" / f"{name}.csv" for name in rows["dataset"].unique()]
    files = {run / "metrics.csv": "rows"}
    files |= dict.fromkeys(run.glob("runs.csv"), "trainings")
    files |= dict.fromkeys(sorted(run.glob("checkpoints/*/*.safetensors")), "weights")
    for manifest in dict.fromkeys(path.resolve() for path in manifests if path.is_file()):
        scans = [file for subject in read_manifest(manifest) for file in subject.files.values()]
        files |= {manifest: "manifest"} | {file: "scan" for file in scans if file.is_file()}
    content = {
        **source_commit(),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": f"{processor()}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "versions": sorted(set(runs["versions"])),
        "manifest": [
            {"file": _place(file, run), "comment": comment, "sha256": sha256(file)}
            for file, comment in files.items()
        ],
    }
    return write_file(run / CERTIFICATE, json.dumps(content, indent=1) + "\n")


def _place(file, run):
    """A file's place in the run, else in the checkout, else in the world."""
    for folder in (run.resolve(), root()):
        if file.resolve().is_relative_to(folder):
            return str(file.resolve().relative_to(folder))
    return str(file)


def check(run: StrPath) -> list[str]:
    """Compare the files of a certified run with its certificate; lines say what was found.

    Files that are not here are counted. Raises InputError for a damaged certificate.
    """
    path = Path(run) / CERTIFICATE
    if not path.is_file():
        return [f"no {CERTIFICATE} in {run}: the run is not finished, or was not certified"]
    with explained(path, "damaged certificate", "finish the run again"):
        content = json.loads(path.read_text("utf-8"))
        made = f"commit {content['commit']}, {content['processor']}, {content['threads']} threads"
        listed = {str(entry["file"]): entry["sha256"] for entry in content["manifest"]}
    here = {name: file for name in listed if (file := _found(run, name))}
    lines = [f"certificate: {made}; {len(here)} of {len(listed)} files are here"]
    return lines + [
        f"  {name} differs from the certificate"
        for name, file in here.items()
        if sha256(file) != listed[name]
    ]


def _found(run, name):
    """Where a certified file is here: in the run, else in the checkout."""
    return next((p for p in (Path(run) / name, root() / name) if os.path.isfile(p)), None)
