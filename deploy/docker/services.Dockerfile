# syntax=docker/dockerfile:1
# The retrieval sidecar and the HTTP gateway, one target each. Built from the root of the checkout:
#
#   docker build -f deploy/docker/services.Dockerfile --target retrieval \
#       --build-arg PYTHON_IMAGE=python@sha256:… -t resrank-retrieval .
#   docker build -f deploy/docker/services.Dockerfile --target gateway --build-arg PYTHON_IMAGE=python@sha256:… -t resrank-gateway .
#
# A tag can move: pin the base by its digest.
ARG PYTHON_IMAGE=python:3.12-slim-bookworm

FROM ${PYTHON_IMAGE} AS service
ARG PYTHON_IMAGE
LABEL org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="${PYTHON_IMAGE}"
# Of nobody else: Triton's image has this user too, and the socket between both is its owner's alone.
RUN groupadd --gid 1000 resrank && useradd --uid 1000 --gid 1000 --no-create-home --home-dir /tmp resrank
# The root file system may be read-only: what is not worth keeping goes to /tmp.
ENV HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    RESRANK_LOG_FORMAT=json

FROM service AS retrieval
LABEL org.opencontainers.image.title="ResRank's retrieval sidecar"
RUN --mount=type=bind,target=/src,rw \
    pip install --no-cache-dir --constraint /src/constraints.txt "/src[retrieval,store-postgres,otel]" \
 && python -c "import resrank.retrieval.server, opentelemetry.sdk.trace"
COPY --chmod=0755 deploy/docker/healthcheck-retrieval /usr/local/bin/healthcheck
RUN install -d -o 1000 -g 1000 -m 0700 /index /run/resrank
USER 1000:1000
# malloc asks for huge pages, which FAISS's flat search is twice as fast with.
ENV GLIBC_TUNABLES=glibc.malloc.hugetlb=1 \
    RESRANK_INDEX=/index \
    RESRANK_RETRIEVAL_SOCKET=/run/resrank/retrieval.sock \
    RESRANK_RETRIEVAL_METRICS_PORT=8004
EXPOSE 8003 8004
HEALTHCHECK --interval=30s --timeout=10s --start-period=300s --start-interval=5s --retries=3 CMD ["healthcheck"]
CMD ["python", "-m", "resrank.retrieval"]

FROM service AS gateway
LABEL org.opencontainers.image.title="ResRank's HTTP gateway"
RUN --mount=type=bind,target=/src,rw \
    pip install --no-cache-dir --constraint /src/constraints.txt "/src[gateway,otel]" \
 && python -c "import resrank.gateway.server, opentelemetry.sdk.trace"
COPY --chmod=0755 deploy/docker/healthcheck-gateway /usr/local/bin/healthcheck
USER 1000:1000
# Beyond loopback it wants a certificate and keys, or RESRANK_GATEWAY_INSECURE=true where what is before it has both.
ENV RESRANK_GATEWAY_HOST=0.0.0.0
EXPOSE 8080
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --start-interval=2s --retries=3 CMD ["healthcheck"]
CMD ["python", "-m", "resrank.gateway"]
