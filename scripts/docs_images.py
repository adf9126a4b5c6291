#!/usr/bin/env python3
"""Makes docs/images/float-and-compiled.png: samples of the float loop beside the compiled one's.

    scripts/docs_images.py [--cqc target/release/cqc] [--work target/docs-images]

Needs Python with Pillow. The model is tests/models/ddpm-shapes32.onnx, with the default recipe and
100 steps.
"""

import argparse
import subprocess
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "tests/models/ddpm-shapes32.onnx"
SCALE, GAP, CAPTION = 3, 24, 30

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--cqc", default=ROOT / "target/release/cqc")
parser.add_argument("--work", type=Path, default=ROOT / "target/docs-images")
args = parser.parse_args()
args.work.mkdir(parents=True, exist_ok=True)


def grid(name, *options):
    """A grid of sixteen samples. An artifact that exists is used again."""
    artifact, png = args.work / f"{name}.cq", args.work / f"{name}.png"
    if not artifact.exists():
        compile = [args.cqc, "compile", MODEL, "--steps", "100", *options, "-o", artifact]
        subprocess.run(compile, check=True)
    sample = [args.cqc, "sample", artifact, "-n", "16", "--seed", "0", "-o", png, "--force", "-q"]
    subprocess.run(sample, check=True)
    image = Image.open(png).convert("RGB")
    return image.resize((image.width * SCALE, image.height * SCALE), Image.Resampling.NEAREST)


grids = {
    "float: 100 full steps": grid("float", "--interval", "1", "--quant", "none"),
    "compiled: 20 full and 80 cached steps, 8-bit integers": grid("compiled"),
}
width = sum(g.width for g in grids.values()) + GAP
page = Image.new("RGB", (width, max(g.height for g in grids.values()) + CAPTION), "white")
draw, font = ImageDraw.Draw(page), ImageFont.load_default(size=16)
x = 0
for caption, image in grids.items():
    draw.text((x + 2, 5), caption, fill="black", font=font)
    page.paste(image, (x, CAPTION))
    x += image.width + GAP
page.save(ROOT / "docs/images/float-and-compiled.png", optimize=True)
