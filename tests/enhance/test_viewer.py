"""The viewer shows both scans at one place of the world, and moves, without and with a browser."""

import base64
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

from srlib.core.paths import InputError
from srlib.enhance import viewer
from srlib.evaluation.views import pixels, section
from srlib.scans.volume import Volume, coarse_grid, resample, save_scan

ROOT = Path(__file__).parents[2]
LOCAL = urllib.request.build_opener(
    urllib.request.ProxyHandler({})
)  # whatever proxy the machine has


def controls(widget) -> dict:
    """The widget's parts by their descriptions, or by their kind."""
    found, todo = {}, [widget]
    while todo:
        part = todo.pop(0)
        todo += getattr(part, "children", ())
        if part.__class__.__name__ in ("Image", "ToggleButtons", "HTML"):
            found.setdefault(part.__class__.__name__, []).append(part)
        elif getattr(part, "description", ""):
            found[part.description] = part
    return found


def pictures(parts) -> list[np.ndarray]:
    return [
        np.asarray(Image.open(io.BytesIO(image.value))).astype(float) for image in parts["Image"]
    ]


@pytest.fixture
def scans(blob, oblique):
    """A blob, sampled 2 x 1 x 3 times coarser in the same world, and the fine one."""
    fine = blob((50, 44, 46), oblique, 4.0, (6.3, -3.4, 4.2))
    return resample(fine, *coarse_grid(fine, (2, 1, 3))), fine


def brightest(image: np.ndarray) -> np.ndarray:
    """Centre of mass in the picture of what is brighter than half, away from letters."""
    inner = image[30:-30, 30:-30] * (image[30:-30, 30:-30] > 128)
    return (np.indices(inner.shape).reshape(2, -1) @ inner.ravel()) / inner.sum()


@pytest.mark.parametrize("spline", [0, 3])
def test_a_blob_is_at_the_same_place_in_both_scans(scans, spline):
    widget = viewer.compare(*scans)
    parts = controls(widget)
    shown, order = parts["ToggleButtons"]
    order.value = spline
    shown.value = "before"
    before = pictures(parts)
    shown.value = "after"
    after = pictures(parts)
    for one, two in zip(before, after, strict=True):
        assert one.shape == two.shape and (one != two).any()
        pixel = 330 / 50  # of the screen, in voxels
        assert (
            np.abs(brightest(one) - brightest(two)).max() < (0.8 if spline == 0 else 0.15) * pixel
        )


def test_every_control_changes_the_picture(scans):
    parts = controls(viewer.compare(*scans))
    last = pictures(parts)
    shown, _ = parts["ToggleButtons"]
    for name, value in (
        ("window", (0.1, 0.4)),
        ("to R", 20),
        ("to A", 15),
        ("to S", 18),
        ("swipe", 0.3),
        ("zoom", 3),
    ):
        parts[name].value = value
        now = pictures(parts)
        assert any(a.shape != b.shape or (a != b).any() for a, b in zip(last, now, strict=True)), (
            name
        )
        last = now
    shown.value = "after"
    assert any((a != b).any() for a, b in zip(last, pictures(parts), strict=True))


def test_the_place_is_that_of_the_world(scans, to_world):
    parts = controls(viewer.compare(*scans))
    for name, value in zip(("to R", "to A", "to S"), (7, 8, 9), strict=True):
        parts[name].value = value
    r, a, s = to_world(scans[1].affine, (7, 8, 9))
    assert parts["HTML"][0].value == f"R {r:.1f}, A {a:.1f}, S {s:.1f} mm"


def test_files_single_slices_and_other_units_are_taken(scans, tmp_path, noise):
    before, after = scans
    save_scan(before, tmp_path / "b.nii.gz")
    by_path, by_scan = (
        pictures(controls(viewer.compare(b, after))) for b in (tmp_path / "b.nii.gz", before)
    )
    assert all((a == b).all() for a, b in zip(by_path, by_scan, strict=True))
    other = pictures(controls(viewer.compare(before, after.with_data(after.data * 1000 + 300))))
    assert all(np.abs(a - b).mean() < 1 for a, b in zip(by_scan, other, strict=True))
    flat = Volume(noise((40, 30, 1)), np.eye(4))
    (only,) = pictures(controls(viewer.compare(flat, flat)))
    assert only.shape[0] < only.shape[1]


def test_a_wild_voxel_and_signed_units_leave_the_window_where_it_was(scans):
    before, after = (scan.with_data(scan.data * 1000 - 1000) for scan in scans)
    plain = controls(viewer.compare(before, after))
    wild = before.data.copy()
    wild[3, 3, 3] = -1e7
    parts = controls(viewer.compare(before.with_data(wild), after))
    assert parts["window"].value == pytest.approx(plain["window"].value, abs=30)
    assert (
        -1050 < parts["window"].value[0] < -950 and parts["window"].min < parts["window"].value[0]
    )
    assert all(
        np.abs(a - b).mean() < 8 for a, b in zip(pictures(plain), pictures(parts), strict=True)
    )


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2), (1, 1, 5), (1, 30, 30)], ids=str)
def test_tiny_scans_and_nan_are_taken(shape, noise):
    scan = noise(shape)
    scan.flat[0] = np.nan
    assert all(
        np.isfinite(p).all()
        for p in pictures(controls(viewer.compare(*[Volume(scan, np.eye(4))] * 2)))
    )


def test_without_ipywidgets_one_line_says_what_to_do(scans, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(InputError, match="pip install ipywidgets"):
        viewer.compare(*scans)


def test_the_package_does_not_need_ipywidgets():
    code = "import sys; sys.modules['ipywidgets'] = None; import srlib.enhance.viewer, srlib.enhance.report, srlib.cli.commands"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_section_is_that_of_the_whole_scan(noise, oblique):
    scan = Volume(noise((60, 50, 40)), oblique)
    plane = pixels(scan, 2, (30, 20, 25), finer=2)
    whole = np.rot90(resample(scan, *plane, order=3).data[:, :, 0])
    np.testing.assert_allclose(section(scan, *plane, 3)[4:-4, 4:-4], whole[4:-4, 4:-4], atol=1e-3)


def end(process: subprocess.Popen) -> None:
    """Ask a process to stop, and make it stop when it hangs."""
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout:
        process.stdout.close()


class Browser:
    """A headless Chromium, driven by the WebDriver protocol, which is JSON over HTTP."""

    def __init__(self, chromium: str, driver: str, folder: Path):
        home = {**os.environ, "HOME": str(folder)}
        self.process = subprocess.Popen(
            [driver, "--port=0"], stdout=subprocess.PIPE, text=True, env=home
        )
        line = next(line for line in self.process.stdout if "successfully on port" in line)
        port = line.strip().rstrip(".").split()[-1]
        self.url = f"http://127.0.0.1:{port}/session"
        flags = (
            "headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run",
            "disable-background-networking", "disable-component-update", "disable-sync", "disable-dev-shm-usage",
            "window-size=1400,1000", f"user-data-dir={folder / 'profile'}",
        )  # fmt: skip
        options = {"binary": chromium, "args": [f"--{flag}" for flag in flags]}
        try:
            session = self.call("", capabilities={"alwaysMatch": {"goog:chromeOptions": options}})
        except BaseException:
            end(self.process)
            raise
        self.url += "/" + session["sessionId"]

    def call(self, path: str, method: str = "POST", **body) -> object:
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode() if method == "POST" else None, method=method
        )
        try:
            with LOCAL.open(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as err:
            raise AssertionError(f"{path} {body}: {json.load(err)['value']['message']}") from err

    def run(self, script: str) -> object:
        return self.call("/execute/sync", script=script, args=[])

    def wait(self, script: str, seconds: float = 90) -> object:
        end = time.monotonic() + seconds
        while not (value := self.run(f"return {script}")):
            assert time.monotonic() < end, (
                f"never came true: {script}\n{self.run('return document.body.innerText')}"
            )
            time.sleep(0.3)
        return value

    def close(self) -> None:
        try:
            self.call("", "DELETE")
        finally:
            end(self.process)


@pytest.fixture
def browser(tmp_path):
    chromium = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip(
            "no chromium or no chromedriver on this machine (Debian: apt install chromium chromium-driver)"
        )
    started = Browser(chromium, driver, tmp_path)
    yield started
    started.close()


@pytest.fixture
def lab(tmp_path):
    """URL of a JupyterLab in ``tmp_path``, with a token; ended when the test ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = {
        f"JUPYTER_{n}_DIR": str(tmp_path / f"jupyter_{n}") for n in ("CONFIG", "DATA", "RUNTIME")
    }
    words = (
        "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0", "--IdentityProvider.token=secret", f"--ServerApp.root_dir={tmp_path}",
        "--LabApp.expose_app_in_browser=True", "--LabApp.extension_manager=readonly", "--LabApp.news_url=",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    )  # fmt: skip
    environment = {
        **os.environ, **places, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "JUPYTER_PREFER_ENV_PATH": "1",
    }  # fmt: skip
    with open(tmp_path / "lab.log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *words],
            cwd=tmp_path,
            env=environment,
            stdout=log,
            stderr=log,
        )
    try:
        for _ in range(300):
            time.sleep(0.2)
            try:
                LOCAL.open(f"http://127.0.0.1:{port}/api?token=secret", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, (tmp_path / "lab.log").read_text()
        yield f"http://127.0.0.1:{port}/lab/tree/viewer.ipynb?token=secret"
    finally:
        end(server)


@pytest.mark.browser
def test_the_viewer_in_jupyterlab(browser, lab, scans, tmp_path):
    """A notebook that calls ``compare`` is run in a browser; a slider and a button change what is on the screen."""
    for scan, name in zip(scans, ("b.nii.gz", "a.nii.gz"), strict=True):
        save_scan(scan, tmp_path / name)
    code = "from srlib import viewer\n\nviewer.compare('b.nii.gz', 'a.nii.gz')"
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    book.metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
    }
    nbformat.write(book, tmp_path / "viewer.ipynb")
    browser.call("/url", url=lab)
    browser.wait("window.jupyterapp && document.querySelector('.jp-Notebook .jp-Cell') !== null")
    panel = "[...window.jupyterapp.shell.widgets('main')].find(w => w.sessionContext)"
    browser.wait(f"{panel}.sessionContext.session?.kernel?.status === 'idle'")
    browser.run(f"window.jupyterapp.shell.activateById({panel}.id)")
    browser.run("window.jupyterapp.commands.execute('notebook:run-all-cells')")
    picture = "document.querySelectorAll('.jp-OutputArea img.widget-image')"
    browser.wait(f"{picture}.length === 3 && [...{picture}].every(i => i.naturalWidth > 50)")
    shot = browser.call("/screenshot", "GET")
    (tmp_path / "viewer.png").write_bytes(base64.b64decode(shot))
    seen = np.asarray(Image.open(tmp_path / "viewer.png").convert("L"))
    corner = browser.run(
        f"const r = {picture}[0].getBoundingClientRect(); return [r.top, r.left, r.bottom, r.right]"
    )
    top, left, low, right = map(int, corner)
    assert (
        np.ptp(seen[top + 20 : low - 20, left + 20 : right - 20]) > 150
    )  # the blob is on the screen

    def sources() -> list[str]:
        return browser.run(f"return [...{picture}].map(i => i.src)")

    first = sources()
    handle = browser.call(
        "/element", using="css selector", value=".widget-inline-hbox .noUi-handle"
    )
    browser.call(
        f"/element/{next(iter(handle.values()))}/value", text="\ue014" * 5
    )  # the right arrow key
    browser.wait(
        f"[...{picture}].every((i, k) => i.src !== {json.dumps(first)}[k] && i.naturalWidth > 50)"
    )
    moved = base64.b64decode(browser.call("/screenshot", "GET"))
    assert (
        np.asarray(Image.open(io.BytesIO(moved)).convert("L"))[top:low, left:right]
        != seen[top:low, left:right]
    ).any()
    second = sources()
    button = browser.call("/element", using="css selector", value=".widget-toggle-buttons button")
    browser.call(f"/element/{next(iter(button.values()))}/click")
    browser.wait(
        f"[...{picture}].every((i, k) => i.src !== {json.dumps(second)}[k] && i.naturalWidth > 50)"
    )
