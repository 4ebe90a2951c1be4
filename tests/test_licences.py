"""docs/licences.md lists every pinned package with what it says of itself, and the SBOM command its hashes."""

import json
import re
import subprocess

import pytest
from typer.testing import CliRunner

from lab import licences

ROOT = licences.ROOT


def test_the_page_is_what_the_packages_say():
    page = licences.PAGE.read_text()
    assert page == licences.filled(page), "run: make licences"
    listed = dict(re.findall(r"^\| ([a-z0-9-]+) \| ([^|]+) \|", page, re.MULTILINE))
    for file in ("wheel", "client", "server", "lora"):
        for name, version in licences.pinned(ROOT / "requirements" / f"{file}.txt"):
            assert version in listed[name].split(", ")


def test_what_is_shipped_may_be_passed_on():
    """No licence of a package in the wheel or an image asks for more than its own text and source."""
    rows = re.findall(r"^\| (\S+) \| [^|]+ \| ([^|]+) \| ([^|]+) \|$", licences.PAGE.read_text(), re.MULTILINE)
    assert len(rows) > 100
    strange = [(name, said) for name, said, where in rows if "GPL" in said and where != "extras, tests"]
    assert strange == []


@pytest.mark.parametrize(
    ("marker", "counts"),
    [("", True), ("; sys_platform == 'win32'", False), ("; python_full_version >= '3.12'", True)],
)
def test_only_what_linux_installs_is_pinned(tmp_path, marker, counts):
    file = tmp_path / "requirements.txt"
    file.write_text(f"# a comment\nsome-package==1.2 {marker} \\\n    --hash=sha256:00\n")
    assert licences.pinned(file) == ({("some-package", "1.2")} if counts else set())


def test_a_package_that_says_nothing_is_found(monkeypatch):
    monkeypatch.setattr(licences, "UNSAID", {})
    with pytest.raises(LookupError, match="cuda-toolkit says nothing of its licence"):
        licences.licence("cuda-toolkit")
    assert "Example: python -m lab.licences" in CliRunner().invoke(licences.app, ["--help"]).stdout


@pytest.mark.installs
def test_an_sbom_has_every_package_with_its_hashes():
    subprocess.run(["make", "sbom"], cwd=ROOT, check=True, capture_output=True)
    for name, file in {"wheel": "wheel", "adapter": "client", "triton": "server"}.items():
        bom = json.loads((ROOT / "build" / "sbom" / f"{name}.cdx.json").read_text())
        assert bom["bomFormat"] == "CycloneDX"
        parts = {(each["name"], each.get("version")): each for each in bom["components"]}
        assert licences.pinned(ROOT / "requirements" / f"{file}.txt") <= parts.keys()
        for each in parts.values():
            assert each["purl"].startswith("pkg:pypi/")
            assert any(reference.get("hashes") for reference in each["externalReferences"])
