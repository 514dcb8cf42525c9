"""Print pip constraints that hold every direct dependency to the lowest version pyproject.toml allows.

python scripts/lowest.py [EXTRA...] > lowest.txt && pip install '.[EXTRA]' --constraint lowest.txt
"""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def lowest(requirement: str) -> str:
    """`name==bound` for `name>=bound`, with the marker of the requirement if it has one.

    Raises: ValueError for a requirement without a lower bound
    """
    text, _, marker = requirement.partition(";")
    match = re.fullmatch(r"\s*([\w.-]+)\s*(?:\[[^\]]*\])?\s*>=\s*([\w.]+)\s*(?:,.*)?", text)
    if match is None:
        raise ValueError(f"pyproject.toml: {requirement!r} has no lower bound; expected 'name>=version'")
    return f"{match[1]}=={match[2]}" + (f" ;{marker}" if marker else "")


def constraints(extras: list[str]) -> list[str]:
    """The constraints for the project's dependencies and those of `extras`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in extras)]
    return [lowest(requirement) for group in wanted for requirement in group]


if __name__ == "__main__":
    print("\n".join(constraints(sys.argv[1:])))
