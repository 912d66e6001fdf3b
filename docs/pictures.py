"""The README's pictures that are of pages: `make pictures` takes them again, with Chromium, of a store made for it."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
ROOT = HERE.parent
SIDE_PANEL = 390  # of MLflow, which has nothing to do with the runs


def photograph(browser: str, address: str, picture: Path, width: int, height: int) -> None:
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=20000"]
    words = [browser, *flags, f"--window-size={width},{height}", f"--screenshot={picture}", address]
    subprocess.run(words, check=True, capture_output=True, timeout=180)
    print(picture.relative_to(ROOT))


@contextmanager
def served(store: str) -> Iterator[int]:
    """MLflow's pages of a store, on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "mlflow", "ui", "--port", str(port), "--backend-store-uri", store]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    server = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(120):
            with socket.socket() as knock:
                if knock.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.5)
        yield port
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not browser:
        sys.exit("error: no Chromium on the PATH; install chromium and run this again")
    photograph(browser, (ROOT / "results/digits/report.html").as_uri(), HERE / "report.png", 1100, 900)
    with tempfile.TemporaryDirectory() as folder:
        store = f"sqlite:///{folder}/mlflow.db"
        environment = os.environ | {"MLFLOW_TRACKING_URI": store}
        tracking = [sys.executable, "-m", "tripletkd.tracking"]
        subprocess.run(tracking, cwd=ROOT, env=environment, check=True, capture_output=True)
        with served(store) as port:
            named = environment | {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"}
            done = subprocess.run([*tracking, "ui", "0"], env=named, check=True, capture_output=True, text=True)
            [page] = [line.split()[-1] for line in done.stdout.splitlines() if line.startswith("digits: ")]
            photograph(browser, page, HERE / "mlflow.png", 1500, 700)
        with Image.open(HERE / "mlflow.png") as picture:
            picture.crop((0, 0, picture.width - SIDE_PANEL, picture.height)).save(HERE / "mlflow.png")


if __name__ == "__main__":
    main()
