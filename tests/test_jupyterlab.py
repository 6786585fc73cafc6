"""JupyterLab in a real browser: the notebooks run, and the viewer moves."""

import base64
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

from srlib.scans.volume import coarse_grid, resample, save_scan

pytestmark = pytest.mark.browser
ROOT = Path(__file__).parents[1]
EXECUTED = sorted((ROOT / "results" / "quick" / "notebooks").glob("*.ipynb"))
LOCAL = urllib.request.build_opener(
    urllib.request.ProxyHandler({})
)  # whatever proxy the machine has
PANEL = "[...window.jupyterapp.shell.widgets('main')].find(w => w.sessionContext)"


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
    """URL of notebooks in a JupyterLab in ``tmp_path``; it ends when the test ends."""
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
        "SRLIB_RESULTS": str(tmp_path / "results"),
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
        yield f"http://127.0.0.1:{port}/lab/tree/{{}}?token=secret"
    finally:
        end(server)


def run_all(browser: Browser, url: str) -> None:
    """Open a notebook and run all its cells."""
    browser.call("/url", url=url)
    browser.wait("window.jupyterapp && document.querySelector('.jp-Notebook .jp-Cell') !== null")
    browser.wait(f"{PANEL}.sessionContext.session?.kernel?.status === 'idle'")
    browser.run(f"window.jupyterapp.shell.activateById({PANEL}.id)")
    browser.run("window.jupyterapp.commands.execute('notebook:run-all-cells')")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["00_example_cohort", "10_mdcsrn"])
def test_a_notebook_runs_by_hand(name, browser, lab, cohort, tmp_path):
    """Every cell has run, none ended in an error, and its figures are on the screen."""
    book = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    parameters = next(c for c in book.cells if "parameters" in c.metadata.get("tags", []))
    parameters.source = parameters.source.replace('"quick"', '"smoke"')
    parameters.source = parameters.source.replace("csv/example.csv", str(cohort))
    nbformat.write(book, tmp_path / "book.ipynb")
    run_all(browser, lab.format("book.ipynb"))
    cells = f"{PANEL}.content.model.toJSON().cells.filter(c => c.cell_type === 'code')"
    outputs = f"{cells}.flatMap(c => c.outputs)"
    errors = f"{outputs}.filter(o => o.output_type === 'error')"
    browser.wait(
        f"{errors}.length > 0 || {PANEL}.sessionContext.session.kernel.status === 'idle' && "
        f"{cells}.every(c => c.execution_count !== null)",
        300,
    )
    assert browser.run(f"return {errors}") == []
    assert browser.run(f"return {outputs}.some(o => o.data && o.data['image/png'])")


@pytest.mark.slow
def test_the_viewer_moves(browser, lab, blob, oblique, tmp_path):
    """A notebook calls ``compare``; a slider and a button change what is on the screen."""
    fine = blob((50, 44, 46), oblique, 4.0, (6.3, -3.4, 4.2))
    save_scan(resample(fine, *coarse_grid(fine, (2, 1, 3))), tmp_path / "b.nii.gz")
    save_scan(fine, tmp_path / "a.nii.gz")
    code = "from srlib.enhance import viewer\n\nviewer.compare('b.nii.gz', 'a.nii.gz')"
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    book.metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
    }
    nbformat.write(book, tmp_path / "viewer.ipynb")
    run_all(browser, lab.format("viewer.ipynb"))
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
    browser.wait(  # the plane across the slider's axis
        f"[...{picture}].some((i, k) => i.src !== {json.dumps(first)}[k] && i.naturalWidth > 50)"
    )
    second = sources()
    button = browser.call("/element", using="css selector", value=".widget-toggle-buttons button")
    browser.call(f"/element/{next(iter(button.values()))}/click")
    browser.wait(
        f"[...{picture}].every((i, k) => i.src !== {json.dumps(second)}[k] && i.naturalWidth > 50)"
    )


@pytest.mark.slow
@pytest.mark.parametrize("path", EXECUTED, ids=lambda p: p.stem)
def test_an_executed_notebook_is_read(path, browser, tmp_path):
    """All pictures and tables are on the page, and links lead somewhere."""
    from nbconvert import HTMLExporter

    nothing = "data:,"  # scripts that only the network has
    page = HTMLExporter(mathjax_url=nothing, require_js_url=nothing, jquery_url=nothing)
    (tmp_path / "page.html").write_text(page.from_filename(path)[0], "utf-8")
    browser.call("/url", url=(tmp_path / "page.html").as_uri())
    browser.wait("document.readyState === 'complete'")
    book = nbformat.read(path, as_version=4)
    shown = [o.get("data", {}) for c in book.cells if c.cell_type == "code" for o in c.outputs]
    pictures = browser.run("return [...document.images].map(i => i.naturalWidth)")
    assert len(pictures) == sum("image/png" in data for data in shown) > 0
    assert min(pictures) > 100
    tables = sum("<table" in "".join(data.get("text/html", "")) for data in shown)
    assert browser.run("return document.querySelectorAll('.jp-OutputArea table').length") == tables
    for link in browser.run("return [...document.links].map(a => a.getAttribute('href'))"):
        target = link.partition("#")[0]
        assert not target or target.startswith("http") or (path.parent / target).exists(), link
    shot = base64.b64decode(browser.call("/screenshot", "GET"))
    (tmp_path / f"{path.stem}.png").write_bytes(shot)
