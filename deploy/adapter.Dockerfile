# The adapter: HTTP in front of Triton. No model, no torch.
#
#   docker build -f deploy/adapter.Dockerfile -t qwen3-vl-embed/adapter .        (docker compose does this)
ARG BASE_IMAGE=python:3.12-slim
FROM ${BASE_IMAGE}

COPY requirements/client.txt /opt/requirements.txt
RUN python3 -m pip install --no-cache-dir --require-hashes -r /opt/requirements.txt
RUN useradd --uid 1000 --no-create-home adapter

ENV ADAPTER_HOST=0.0.0.0 \
    ADAPTER_PORT=8000 \
    ADAPTER_TRITON_URL=triton:8001 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

# Last, so that changed code costs no new dependencies.
WORKDIR /app
COPY client client

USER 1000
EXPOSE 8000
# Not urllib: it would ask a proxy, where the engine was told of one.
HEALTHCHECK --interval=5s --timeout=10s --start-period=60s --retries=3 \
    CMD ["python3", "-c", "from http.client import HTTPConnection as C; c = C('127.0.0.1', 8000, timeout=8); c.request('GET', '/health'); exit(c.getresponse().status != 200)"]

CMD ["python3", "-m", "client"]
