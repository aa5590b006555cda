# Three images: `host` compresses (CPU), `board` and `jetson` run and time artifacts.
#
#   docker build --target host -t edge-compressor .
#   docker run --rm -v "$PWD:/work" edge-compressor run recipe.yaml -o out
#   docker build --target board -t edge-board .
#   docker build --target jetson --build-arg JETPACK_IMAGE=<registry>/nvidia/l4t-jetpack:r36.4.0 -t edge-jetson .
#
# The default build of torch brings several GB of CUDA libraries that nothing here uses: name an index
# with CPU-only builds, --build-arg TORCH_INDEX=<index>. JetPack's image lies in its vendor's registry.
#
# tests/layers/test_dockerfile.py runs the same RUN lines in a clean virtual environment.

ARG PYTHON_IMAGE=python:3.11-slim-bookworm
ARG JETPACK_IMAGE=nvidia/l4t-jetpack:r36.4.0

# ---------------------------------------------------------------------------------------- host
FROM ${PYTHON_IMAGE} AS host
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN useradd --create-home --uid 1000 user
ARG TORCH_INDEX=
WORKDIR /src
# Dependencies before sources: a change in the code installs nothing again.
COPY constraints.txt ./
RUN pip install -c constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$(grep '^torch==' constraints.txt)"
COPY pyproject.toml README.md LICENSE CHANGELOG.md ./
COPY runtimes ./runtimes
COPY exporters ./exporters
COPY compressor ./compressor
RUN pip install -c constraints.txt ".[torch,optimize,openvino,metrics]"
USER 1000
ENV COMPRESS_HOME=/home/user/.cache/edge-compressor
WORKDIR /work
ENTRYPOINT ["compress"]

# --------------------------------------------------------------------------------------- board
FROM ${PYTHON_IMAGE} AS board
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /opt/edge
COPY constraints.txt ./
RUN pip install -c constraints.txt numpy onnxruntime
COPY runtimes ./runtimes
RUN useradd --create-home --uid 1000 user
USER 1000
ENV PYTHONPATH=/opt/edge
WORKDIR /work
ENTRYPOINT ["python", "-m", "runtimes"]

# -------------------------------------------------------------------------------------- jetson
# TensorRT, CUDA and their Python bindings come with JetPack; nothing of the vendor's is installed here.
FROM ${JETPACK_IMAGE} AS jetson
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 python3-numpy \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/edge
COPY runtimes ./runtimes
RUN useradd --create-home --uid 1000 --groups video user
USER 1000
ENV PYTHONPATH=/opt/edge
WORKDIR /work
ENTRYPOINT ["python3", "-m", "runtimes"]
