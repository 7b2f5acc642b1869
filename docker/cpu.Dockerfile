# Wishbone on a CPU:  docker build -f docker/cpu.Dockerfile -t wishbone:cpu .
#   docker run --rm -v "$PWD:/work" wishbone:cpu train run.yaml
FROM python:3.12-slim-bookworm

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 HF_HOME=/cache/huggingface WISHBONE_CACHE=/cache/wishbone
WORKDIR /opt/wishbone
COPY requirements/locked.txt requirements/torch.txt requirements/
RUN pip install --no-deps --require-hashes --requirement requirements/locked.txt \
    && pip install --index-url https://download.pytorch.org/whl/cpu --extra-index-url https://pypi.org/simple \
      --requirement requirements/torch.txt
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
