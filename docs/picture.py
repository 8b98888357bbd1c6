"""Draw the picture of the README from the rows of a run: python docs/picture.py results/digits-pcm docs/result.svg"""

import re
import sys
from pathlib import Path

from galvanic.report import curves
from galvanic.report.conditions import floating_point
from galvanic.report.run import read


def picture(folder: Path) -> str:
    """The panels of accuracy over time side by side, as one SVG on white."""
    run = read(folder)
    reference = floating_point(run)
    panels = [str(panel) for panel in curves.over_age(run, reference[1].mean if reference else None)]
    width, height = map(float, re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', panels[0])[0])
    placed = [panel.replace("<svg", f'<svg x="{k * width}" width="{width}" height="{height}"', 1) for k, panel in enumerate(panels)]
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    frame = f'<svg {spaces} viewBox="0 0 {len(panels) * width} {height}" font-family="sans-serif">'
    return frame + '<rect width="100%" height="100%" fill="white"/>' + "".join(placed) + "</svg>\n"


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.write_text(picture(source), encoding="utf-8")
