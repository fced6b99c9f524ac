# The one image that every step, trainer, worker and the MLflow server run in.
#
#     make image IMAGE=example/blip     tags it by the git revision
#
# The base is any Debian or Ubuntu with Python 3.11 or newer in its packages. torch's wheels bring CUDA's libraries along; of the base comes
# what the driver looks for. Nothing is downloaded when the image runs, and only /scratch and /tmp are written to.

ARG BASE_IMAGE=nvidia/cuda:13.0.1-base-ubuntu24.04

# hadolint ignore=DL3006
FROM ${BASE_IMAGE} AS python
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3 \
    && rm -rf /var/lib/apt/lists/*

FROM python AS build
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
# The file of exact versions: another one makes an image without CUDA, for example.
ARG CONSTRAINTS=constraints.txt
# What the cluster needs beyond the project: the driver of MLflow's database.
ARG EXTRAS="psycopg2-binary==2.9.13"
# Other places to install from, as pip reads them: a mirror, a folder of wheels that is mounted for the build.
ARG PIP_INDEX_URL
ARG PIP_FIND_LINKS
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 DS_BUILD_OPS=0
WORKDIR /src
# First what changes seldom. Everything is in place before the project itself comes, which then costs seconds.
COPY pyproject.toml ${CONSTRAINTS} ./
RUN python3 -m venv /opt/blip \
    && python3 -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; x = p['optional-dependencies']; \
        print(*p['dependencies'], *x['train'], *x['cluster'], *x['pipelines'], sep='\n')" > requirements.txt \
    && /opt/blip/bin/pip install -c "${CONSTRAINTS}" -r requirements.txt ${EXTRAS}
COPY README.md LICENSE ./
COPY blip blip
RUN /opt/blip/bin/pip install --no-deps . \
    && /opt/blip/bin/pip check
# Steps import these by name; they are not installed, since their names are too common.
COPY components /opt/blip/checkout/components
COPY pipelines /opt/blip/checkout/pipelines

FROM python
ARG BASE_IMAGE
ARG REVISION
LABEL org.opencontainers.image.title="blip" \
      org.opencontainers.image.description="Bootstraps vision-language models from noisy web image-text pairs" \
      org.opencontainers.image.licenses="BSD-3-Clause" \
      org.opencontainers.image.base.name="${BASE_IMAGE}" \
      org.opencontainers.image.revision="${REVISION}"
RUN test -n "${REVISION}" || { echo "give --build-arg REVISION=\$(git rev-parse --short HEAD)" >&2; exit 1; } \
    && mkdir --mode=0777 /scratch
COPY --from=build /opt/blip /opt/blip
ENV PATH=/opt/blip/bin:$PATH \
    PYTHONPATH=/opt/blip/checkout \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    BLIP_REVISION=${REVISION} \
    HOME=/scratch \
    TMPDIR=/scratch \
    XDG_CACHE_HOME=/scratch/cache \
    HF_HOME=/scratch/huggingface \
    MPLCONFIGDIR=/scratch/matplotlib \
    TRITON_CACHE_DIR=/scratch/triton \
    TORCHINDUCTOR_CACHE_DIR=/scratch/inductor \
    HF_HUB_OFFLINE=1 \
    TRANSFORMERS_OFFLINE=1 \
    MLFLOW_DISABLE_TELEMETRY=true
WORKDIR /scratch
VOLUME ["/scratch", "/tmp"]
USER 10001:10001
HEALTHCHECK --interval=5m --timeout=30s CMD ["python", "-c", "import blip"]
ENTRYPOINT ["blip"]
CMD ["--help"]
