# The gateway, the webhooks, the registry and the command line: without torch and Prefect, with traces.
#   docker build -f infra/deploy/docker/gateway.Dockerfile -t nightschool-gateway:0.1.0 .
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CONSTRAINT=/src/infra/constraints.txt
WORKDIR /src
RUN python -m venv /opt/venv
COPY infra/constraints.txt infra/constraints.txt
RUN /opt/venv/bin/pip install hatchling
COPY . .
RUN /opt/venv/bin/pip install --no-build-isolation '.[telemetry]' \
    && /opt/venv/bin/pip uninstall --yes hatchling pip

FROM ${PYTHON_IMAGE}
RUN groupadd --gid 10001 nightschool \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/nightschool nightschool \
    && install -d -o 10001 -g 10001 -m 0750 /var/lib/nightschool \
        /var/lib/nightschool/shared /var/lib/nightschool/spool
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    OMP_NUM_THREADS=1 \
    NIGHTSCHOOL_GATEWAY__HOST=0.0.0.0 \
    NIGHTSCHOOL_GATEWAY__PORT=8300 \
    NIGHTSCHOOL_HOOKS__HOST=0.0.0.0 \
    NIGHTSCHOOL_REGISTRY__HOST=0.0.0.0 \
    NIGHTSCHOOL_HOOKS__PORT=8303 \
    NIGHTSCHOOL_REGISTRY__PORT=8306
USER 10001:10001
WORKDIR /var/lib/nightschool
EXPOSE 8300 8303 8306
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8300/healthz', timeout=3)"]
CMD ["python", "-m", "serving.gateway"]
