"""Draw the picture of each lesson of docs/course, as the lesson's own cell draws it.  Needs matplotlib.

python scripts/course_pictures.py
"""

import ast
from pathlib import Path

import matplotlib

matplotlib.use("agg")

from matplotlib import pyplot

from numllama.api.cli.course import lesson_cells, lesson_files


def draw(page: Path) -> Path:
    """Run the cells of a lesson up to its first picture, and save that beside the page."""
    names: dict[str, object] = {"__name__": "__main__"}
    for cell in lesson_cells(page.read_text(encoding="utf-8")):
        if not cell.is_code:
            continue
        tree = ast.parse(cell.text)
        shown = tree.body.pop() if "picture" in cell.tags and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, page.name, "exec"), names)
        if "picture" in cell.tags:
            figure = eval(ast.unparse(shown), names) if shown else None
            figure = figure if hasattr(figure, "savefig") else pyplot.gcf()
            picture = page.with_suffix(".png")
            figure.savefig(picture, dpi=80)
            return picture
    raise ValueError(f"{page}: no cell is tagged as a picture")


if __name__ == "__main__":
    for lesson in lesson_files():
        print(draw(lesson))
