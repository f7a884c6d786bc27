# syntax=docker/dockerfile:1
# The three packages in the versions of the lock, with PyTorch for CPUs or for CUDA:
#
#   docker build --target cpu --tag alignstack:cpu .
#   docker build --target cuda --tag alignstack:cuda .

FROM ghcr.io/astral-sh/uv:0.13.9 AS uv

FROM python:3.11-slim-bookworm AS wheels
WORKDIR /source
COPY . .
RUN --mount=from=uv,source=/uv,target=/usr/local/bin/uv \
    --mount=type=cache,target=/root/.cache/uv \
    uv build --all-packages --wheel --out-dir /wheels \
    && uv export --locked --quiet --no-hashes --no-emit-workspace --group eval \
        --output-file /wheels/cpu.txt \
    && uv export --locked --quiet --no-hashes --no-emit-workspace --no-group cpu --group gpu \
        --group qlora --group eval --output-file /wheels/cuda.txt

FROM python:3.11-slim-bookworm AS user
# Volumes that are mounted at /work should belong to this user.
RUN useradd --create-home --uid 1000 align && install --directory --owner align /work
ENV UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1
WORKDIR /work
CMD ["aligntrain", "--help"]

FROM user AS cpu
# The lock's versions are constraints, so that what only its torch with CUDA needs stays out.
RUN --mount=from=uv,source=/uv,target=/usr/local/bin/uv \
    --mount=from=wheels,source=/wheels,target=/wheels \
    --mount=type=cache,target=/root/.cache/uv \
    uv pip install --system --torch-backend cpu --constraints /wheels/cpu.txt \
        /wheels/alignshared-*.whl "$(echo /wheels/aligncurate-*.whl)[cpu]" \
        "$(echo /wheels/aligntrain-*.whl)[eval,serve]"
ENV DS_ACCELERATOR=cpu
USER 1000

FROM user AS cuda
# PyPI's torch brings CUDA. Triton compiles what starts its kernels, with a C compiler.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
RUN --mount=from=uv,source=/uv,target=/usr/local/bin/uv \
    --mount=from=wheels,source=/wheels,target=/wheels \
    --mount=type=cache,target=/root/.cache/uv \
    uv pip install --system --constraints /wheels/cuda.txt \
        /wheels/alignshared-*.whl "$(echo /wheels/aligncurate-*.whl)[gpu]" \
        "$(echo /wheels/aligntrain-*.whl)[eval,qlora,serve]"
USER 1000
