# earlytom without a GPU. From the root of a checkout:
#   docker build -f docker/cpu.Dockerfile -t earlytom:cpu .
#   docker run --rm earlytom:cpu                                   # the demo
#   docker run --rm -v "$PWD:/data" -u "$(id -u)" earlytom:cpu ask clip.mp4 "what happens?"
# The web page (earlytom app):
#   docker build -f docker/cpu.Dockerfile --target app -t earlytom:app .
#   docker run --rm -p 127.0.0.1:7860:7860 earlytom:app
# earlytom.compile with its default backend needs a C++ compiler, which is not in here.
FROM python:3.11.14-slim-bookworm AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
RUN python -m venv /opt/earlytom
ENV PATH=/opt/earlytom/bin:$PATH
COPY requirements requirements
# torch first, from the index without CUDA; then the rest by the same pins as everywhere
RUN pip install --no-deps --index-url https://download.pytorch.org/whl/cpu \
        "$(grep '^torch==' requirements/base.txt)" \
    && pip install -r requirements/base.txt \
    && grep -v '^-r' requirements/test.txt > constraints.txt
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip install --no-build-isolation -c constraints.txt '.[report]' && pip check

FROM build AS build-app
RUN pip install --no-build-isolation -c requirements/app.txt '.[demo]' && pip check

FROM python:3.11.14-slim-bookworm AS runtime
# /cache is home of whoever runs it, -u included: models of the Hub, fonts of matplotlib
RUN useradd --system --uid 10001 --home-dir /cache earlytom \
    && mkdir -m 1777 /cache /data
ENV PATH=/opt/earlytom/bin:$PATH HOME=/cache
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
