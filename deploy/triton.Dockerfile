# Triton, the model repository and what its Python backend imports. The weights are not in it: EMBED_CHECKPOINT names
# them, a hub id (downloaded to HF_HOME at the first start) or a mounted folder.
#
#   docker build -f deploy/triton.Dockerfile -t qwen3-vl-embed/triton .        (docker compose does this)
#
# BASE_IMAGE  26.08 or newer (before, the dynamic batcher could starve). The driver must run CUDA 13 (R580 or newer),
#             whatever the image: torch is pinned with CUDA libraries of its own. Pin the image by digest where builds
#             must repeat (docs/security.md).
# TORCH_INDEX, TORCH_PINS   empty: the pinned torch, for CUDA 13. For an older driver: an index and what pip shall
#             install from it in its place, such as "torch==2.12.1+cu126 torchvision==0.27.1+cu126" (2.11 or newer).
# REQUIREMENTS  server, or lora: with peft too, which merges the LoRA adapter of a checkpoint.
ARG BASE_IMAGE=nvcr.io/nvidia/tritonserver:26.11-py3
FROM ${BASE_IMAGE}

# A virtual environment of its own, so that nothing which the base image brought is replaced. Triton's Python stub finds
# it as the first `python3` on PATH. The image's pip fills it: not every base image could put a pip into it.
RUN python3 -m venv --without-pip /opt/venv
ARG REQUIREMENTS=server
COPY requirements/${REQUIREMENTS}.txt /opt/requirements.txt
# Without av, which is for videos: nothing here imports it, and its wheel brings x264 and x265 (docs/licences.md).
RUN python3 -m pip --python /opt/venv/bin/python3 install --no-cache-dir --require-hashes -r /opt/requirements.txt \
 && python3 -m pip --python /opt/venv/bin/python3 uninstall --yes av

ARG TORCH_INDEX=
ARG TORCH_PINS=
RUN if [ -n "${TORCH_PINS}" ]; then \
      python3 -m pip --python /opt/venv/bin/python3 install --no-cache-dir ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} ${TORCH_PINS}; \
    fi

# What launches the fused kernels is compiled at the first pass on a GPU (into HOME's cache), by the image's own compiler;
# the kernels themselves by what torch brings. Without it passes would take longer, so the build ends here.
RUN include=$(/opt/venv/bin/python3 -c 'import sysconfig; print(sysconfig.get_path("include", "posix_prefix"))'); \
    echo '#include <Python.h>' | gcc -fsyntax-only -I"$include" -xc - \
    || { echo "the base image has no gcc, or no Python.h in $include: install gcc and python3-dev in it" >&2; exit 1; }

# A named volume that is mounted here first takes over this owner.
RUN install -d -o 1000 -g 1000 /cache/huggingface

# HOME: whatever wants to write there does so on the tmpfs, since the file system may be read-only.
# LOGNAME: torch asks for its user's name, and does not start where the engine chose a user that has none.
ENV PATH=/opt/venv/bin:$PATH \
    HF_HOME=/cache/huggingface \
    HOME=/tmp \
    LOGNAME=triton-server \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TOKENIZERS_PARALLELISM=false

# Last, so that changed code costs no new dependencies.
COPY qwen3_vl_embed/serving/watchdog.py /opt/watchdog.py
COPY model_repository/qwen3_vl_embed /models/qwen3_vl_embed

# The base image's own user `triton-server`.
USER 1000
EXPOSE 8000 8001 8002
HEALTHCHECK --interval=10s --timeout=65s --start-period=30m --retries=3 CMD ["python3", "/opt/watchdog.py", "check"]

# Only flags that 24.10 knows already. The model's shared memory starts large, since it would grow a megabyte at a time.
CMD ["python3", "/opt/watchdog.py", "tritonserver", \
     "--model-repository=/models", \
     "--model-control-mode=none", \
     "--disable-auto-complete-config", \
     "--exit-timeout-secs=40", \
     "--log-format=ISO8601", \
     "--backend-config=python,shm-default-byte-size=268435456", \
     "--backend-config=python,shm-growth-byte-size=67108864"]
