# earlytom with CUDA; the host needs the NVIDIA driver and its container toolkit. From the root of a
# checkout:
#   docker build -f docker/cuda.Dockerfile -t earlytom:cuda .
#   docker run --rm --gpus all earlytom:cuda                       # the demo
#   docker run --rm --gpus all -v "$PWD:/data" -v hub:/cache earlytom:cuda ask clip.mp4 \
#       "what happens?" --model llava-hf/llava-onevision-qwen2-7b-ov-hf
# The web page (earlytom app): --target app, as in cpu.Dockerfile.
# The CUDA libraries are packages that torch asks for, so a plain Python image is enough.
FROM python:3.11.14-slim-bookworm AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
RUN python -m venv /opt/earlytom
ENV PATH=/opt/earlytom/bin:$PATH
COPY requirements requirements
RUN pip install -r requirements/base.txt \
    && grep -v '^-r' requirements/test.txt > constraints.txt
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip install --no-build-isolation -c constraints.txt '.[report]' && pip check

FROM build AS build-app
RUN pip install --no-build-isolation -c requirements/app.txt '.[demo]' && pip check

FROM python:3.11.14-slim-bookworm AS runtime
# Triton and torch.compile build small launchers while they run
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
# /cache is home of whoever runs it, -u included: models of the Hub, compiled kernels
RUN useradd --system --uid 10001 --home-dir /cache earlytom \
    && mkdir -m 1777 /cache /data
ENV PATH=/opt/earlytom/bin:$PATH HOME=/cache TORCHINDUCTOR_CACHE_DIR=/cache/inductor \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001
WORKDIR /data
ENTRYPOINT ["earlytom"]

FROM runtime AS app
COPY --from=build-app /opt/earlytom /opt/earlytom
EXPOSE 7860
CMD ["app", "--host", "0.0.0.0"]
HEALTHCHECK --start-period=2m --interval=30s --timeout=10s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:7860/', timeout=9)"]

# built without --target; commands that run and end have no health
FROM runtime
COPY --from=build /opt/earlytom /opt/earlytom
CMD ["demo"]
HEALTHCHECK NONE
