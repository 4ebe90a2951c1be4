"""docs/licences.md: the licence of each package that images, wheel, extras and tests are pinned to.

    python -m lab.licences        writes the page (`make licences`)

Packages and versions are those of requirements/*.txt for Linux and Python 3.11 and 3.12. Licences are what the
installed packages say of themselves. What wheels bundle and base images bring, no metadata tell: see the page.
"""

import re
from collections import defaultdict
from importlib.metadata import metadata
from pathlib import Path

import typer
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "licences.md"
MARKED = re.compile(r"(<!-- licences -->\n).*(<!-- /licences -->)", re.DOTALL)
FILES = {"wheel": "wheel", "client": "adapter", "server": "model", "lora": "model with LoRA", "dev": "extras, tests"}
SHIPPED = ("wheel", "adapter", "model")
PYTHONS = ("3.11", "3.12")
SPDX = {  # what packages write in other words
    "Apache-2.0": ("Apache", "Apache 2", "Apache 2.0", "Apache 2.0 License", "Apache License",
                   "Apache License, Version 2.0", "Apache Software License"),
    "BSD-2-Clause": ("BSD 2-Clause License",),
    "BSD-3-Clause": ("3-Clause BSD License", "BSD", "BSD License"),
    "ISC": ("ISC License", "ISC License (ISCL)"),
    "LicenseRef-NVIDIA-Proprietary": ("NVIDIA Proprietary Software",),
    "MIT": ("MIT License",),
    "MPL-2.0": ("Mozilla Public License 2.0 (MPL 2.0)",),
    "PSF-2.0": ("Python Software Foundation License",),
}  # fmt: skip
UNSAID = {  # their metadata have none
    "axe-playwright-python": "MIT",  # its LICENSE; axe-core in it is MPL-2.0
    "cuda-toolkit": "LicenseRef-NVIDIA-Proprietary",  # it holds no file of its own
}
app = typer.Typer(add_completion=False)


def pinned(file: Path) -> set[tuple[str, str]]:
    """(name, version) of what the file installs on Linux with either Python."""
    lines = re.findall(r"^[^\s#-][^\\\n]*", file.read_text(), re.MULTILINE)
    found = set()
    for requirement in map(Requirement, lines):
        for python in PYTHONS:
            environment = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
            if requirement.marker is None or requirement.marker.evaluate(environment):
                found.add((requirement.name, str(requirement.specifier).removeprefix("==")))
    return found


def licence(name: str) -> str:
    """Of an installed package: its SPDX expression, or what else it says.

    Raises:
        LookupError: it says nothing.
    """
    said = metadata(name)
    classified = [each.rpartition(" :: ")[2] for each in said.get_all("Classifier", []) if each.startswith("License")]
    words = [*said.get_all("License-Expression", []), *said.get_all("License", []), " OR ".join(classified)]
    found = next((each.strip() for each in words if each and len(each) < 60), UNSAID.get(name))
    if found is None:
        raise LookupError(f"{name} says nothing of its licence: look, and add it to UNSAID")
    return next((spdx for spdx, others in SPDX.items() if found in others), found)


def table() -> str:
    """A row for each package."""
    files = {title: pinned(ROOT / "requirements" / f"{file}.txt") for file, title in FILES.items()}
    versions: dict[str, set[str]] = defaultdict(set)
    for name, version in set.union(*files.values()):
        versions[name].add(version)
    rows = (
        f"| {name} | {', '.join(sorted(versions[name]))} | {licence(name)} | {where(name, files)} |\n"
        for name in sorted(versions)
    )
    return "| package | version | licence | in |\n| --- | --- | --- | --- |\n" + "".join(rows)


def where(name: str, files: dict[str, set[tuple[str, str]]]) -> str:
    """What brings it: all that is shipped, or else the first of the others."""
    found = [title for title, held in files.items() if name in dict(held)]
    return ", ".join([title for title in found if title in SHIPPED] or found[:1])


def filled(page: str) -> str:
    """The page with its table made anew."""
    return MARKED.sub(lambda found: found[1] + table() + found[2], page)


@app.command(epilog="Example: python -m lab.licences")
def main() -> None:
    """Write the table of docs/licences.md."""
    PAGE.write_text(filled(PAGE.read_text()))


if __name__ == "__main__":
    app()
