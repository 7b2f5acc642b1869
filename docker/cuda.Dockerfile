# Wishbone on an NVIDIA GPU:  docker build -f docker/cuda.Dockerfile -t wishbone:cuda .
#   docker run --rm --gpus all -v "$PWD:/work" wishbone:cuda train run.yaml
# The wheel of torch brings its own CUDA libraries; the image needs a C compiler, because Triton builds a launcher at run time.
FROM python:3.12-slim-bookworm

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 HF_HOME=/cache/huggingface WISHBONE_CACHE=/cache/wishbone \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility TRITON_CACHE_DIR=/cache/triton
RUN apt-get update \
    && apt-get install --no-install-recommends -y gcc=4:12.2.0-3 libc6-dev=2.36-* \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/wishbone
COPY requirements/locked.txt requirements/torch.txt requirements/
RUN pip install --no-deps --require-hashes --requirement requirements/locked.txt \
    && pip install --requirement requirements/torch.txt
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip install --no-deps --no-build-isolation . \
    && useradd --create-home --uid 1000 wishbone \
    && mkdir -p /cache /work \
    && chown wishbone:wishbone /cache /work
USER 1000
WORKDIR /work
VOLUME ["/cache"]
ENTRYPOINT ["wishbone"]
CMD ["--help"]
