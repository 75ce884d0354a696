"""Draw the pictures of ``docs/reports.md`` from a real small training.

``report-page.png`` is a screenshot of the page in a headless Chromium: it needs node, and
``NODE_MODULES`` naming a folder with ``puppeteer-core`` and ``@sparticuz/chromium``, which ``npm
install`` brings. Without them only the plots are drawn.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).resolve().parent

PROGRAM = """\
import torch
from sklearn.datasets import load_digits

import tracelens as tl

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
labels = torch.tensor(digits.target)


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(1, 8, 3, padding=1)
        self.conv2 = torch.nn.Conv2d(8, 16, 3, padding=1)
        self.norm = torch.nn.LayerNorm(256)
        self.head = torch.nn.Sequential(
            torch.nn.Linear(256, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10)
        )

    def forward(self, x):
        x = torch.relu(self.conv1(x))
        x = torch.nn.functional.max_pool2d(torch.relu(self.conv2(x)), 2)
        return self.head(self.norm(x.flatten(1)))


model = Net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
with tl.trace("digits.tltrace", capture="ops", quiet=True) as session:
    tl.watch(model)
    for step in range(60):
        at = step * 28 % 1700
        p = torch.softmax(model(images[at : at + 64]), -1)
        if step >= 48:
            p = p * (p > 1e-3)  # to save memory, somebody thought
        loss = -torch.log(p.gather(1, labels[at : at + 64, None])).mean()
        optimizer.zero_grad()
        loss.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        session.step(loss=loss, grad_norm=grad_norm)
"""

SCREENSHOT = """
const {createRequire} = require('module'), {pathToFileURL} = require('url');
const need = createRequire(process.env.NODE_MODULES + '/x.js');
const load = async name => (await import(pathToFileURL(need.resolve(name)))).default;
(async () => {
  const chromium = await load('@sparticuz/chromium'), puppeteer = await load('puppeteer-core');
  const browser = await puppeteer.launch({
    executablePath: await chromium.executablePath(), args: [...chromium.args, '--no-sandbox'],
    headless: 'shell'});
  const page = await browser.newPage();
  await page.setViewport({width: 1000, height: 1930});
  await page.goto(pathToFileURL(process.argv[2]).href);
  await page.screenshot({path: process.argv[3]});
  await browser.close();
})();
"""


def main() -> None:
    """Record the training and draw it."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "train.py").write_text(PROGRAM, encoding="utf-8")
        subprocess.run([sys.executable, "train.py"], cwd=folder, check=True)
        plot = [sys.executable, "-m", "tracelens", "plot", "digits.tltrace", "--force"]
        for what, name in (
            ("loss,gradients,nonfinite", "plot-training.svg"),
            ("step_time,ops", "plot-time.svg"),
        ):
            command = [*plot, "--what", what, "-o", str(DOCS / name)]
            subprocess.run(command, cwd=folder, check=True)
        report = [sys.executable, "-m", "tracelens", "report", "digits.tltrace", "--force"]
        subprocess.run(report, cwd=folder, check=True)
        modules = os.environ.get("NODE_MODULES", "")
        if not shutil.which("node") or not (Path(modules) / "puppeteer-core").is_dir():
            raise SystemExit("no screenshot: needs node and NODE_MODULES, see the docstring")
        script = folder / "shot.cjs"
        script.write_text(SCREENSHOT, encoding="utf-8")
        page, picture = folder / "digits.html", folder / "page.png"
        # The folder is of no interest, and another one each time.
        text = page.read_text(encoding="utf-8").replace(f"{folder}/", "")
        page.write_text(text, encoding="utf-8")
        subprocess.run(["node", script, page, picture], check=True)
        shrink(picture, DOCS / "report-page.png")


def shrink(picture: Path, target: Path) -> None:
    """Write a screenshot with 256 colours, which is a third of its size."""
    from PIL import Image

    Image.open(picture).convert("RGB").quantize(256).save(target, optimize=True)


if __name__ == "__main__":
    main()
