"""Podman for the container tests, and stand-ins for the base images, which no registry can be asked for here.

`deploy/stand-in/Dockerfile` says what is in them. They are built once, a minute, and kept under a name that changes
with their recipe. Knows the engine; not what the product's containers do.
"""

import hashlib
import os
import shutil
import ssl
import subprocess
import tarfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "deploy" / "stand-in" / "Dockerfile"
WHEEL = ROOT / "requirements" / "tritonserver.txt"
TOOLS = ("podman", "podman-compose", "buildah", "runc", "debootstrap", "iptables", "catatonit")
PACKAGES = "python3,python3-venv,python3-pip,python-is-python3,libpython3.11,ca-certificates,gcc,libc6-dev,python3-dev"
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith(("EMBED_", "ADAPTER_"))},
    "BUILDAH_ISOLATION": "chroot",  # builds inside a container too
    "BUILDAH_FORMAT": "docker",  # the other format has no HEALTHCHECK
    "CONTAINERS_CONF": str(RECIPE.with_name("containers.conf")),
}


def missing() -> str | None:
    """Why the container tests cannot run on this machine."""
    if tools := [tool for tool in TOOLS if not shutil.which(tool)]:
        return (
            f"needs {', '.join(tools)}: apt install podman buildah runc netavark aardvark-dns iptables debootstrap "
            "catatonit; pip install podman-compose"
        )
    return "needs root" if os.geteuid() else None


def run(*command: str | Path, seconds: float = 1200, **environment: str) -> str:
    """The command's standard output.

    Raises:
        AssertionError: it failed; with the end of what it said.
    """
    done = subprocess.run(
        [str(word) for word in command],
        cwd=ROOT,
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def base_images(folder: Path) -> dict[str, str]:
    """The two stand-ins, built in `folder` where they are missing, under the names of compose's variables."""
    version = hashlib.sha256(RECIPE.read_bytes() + WHEEL.read_bytes() + PACKAGES.encode()).hexdigest()[:12]
    images = {name: f"localhost/stand-in-{name}:{version}" for name in ("python", "tritonserver")}
    if any(image not in run("podman", "images", "--format", "{{.Repository}}:{{.Tag}}") for image in images.values()):
        _debian(folder)
        shutil.copy(WHEEL, folder)
        for target, image in images.items():
            _build(folder, target, image)
    return {"PYTHON_BASE_IMAGE": images["python"], "TRITON_BASE_IMAGE": images["tritonserver"]}


def _debian(folder: Path) -> None:
    run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", folder / "rootfs")
    if trusted := ssl.get_default_verify_paths().cafile:  # an index behind a proxy with a certificate of its own
        shutil.copy(trusted, folder / "rootfs" / "etc" / "ssl" / "certs" / "ca-certificates.crt")
    with tarfile.open(folder / "rootfs.tar", "w") as archive:
        archive.add(folder / "rootfs", arcname=".", filter=lambda entry: None if entry.isdev() else entry)
    shutil.rmtree(folder / "rootfs")


def _build(folder: Path, target: str, image: str) -> None:
    pip = [f"--env={name}={value}" for name, value in os.environ.items() if name.startswith("PIP_")]
    run("buildah", "bud", "--layers", *pip, "--target", target, "-t", image, "-f", RECIPE, folder)
