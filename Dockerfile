# The worker's image. Built and wired up by compose.yaml; by itself:
#
#   docker build --tag ordergate .
#   docker run --env-file worker.env ordergate            a worker
#   docker run --env-file worker.env ordergate migrate    any other command

FROM python:3.13-slim-trixie AS dependencies
WORKDIR /build
COPY requirements.lock ./
# Wheels only, so no compiler is needed; every one of them checked against the lock.
RUN python -m venv --without-pip /opt/ordergate \
    && python -m pip --python /opt/ordergate/bin/python install --no-cache-dir \
        --disable-pip-version-check --only-binary :all: --require-hashes --requirement requirements.lock

FROM python:3.13-slim-trixie
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Ordergate" \
    org.opencontainers.image.description="Takes orders in from Redis Streams: nothing placed twice, nothing lost, every outcome on record." \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"
ENV PATH=/opt/ordergate/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONFAULTHANDLER=1
# pip comes with the base image; nothing is installed here any more.
RUN /usr/local/bin/python -m pip uninstall --yes --quiet --root-user-action ignore pip \
    && groupadd --system --gid 10001 ordergate \
    && useradd --system --uid 10001 --gid ordergate --no-create-home --home-dir /nonexistent \
        --shell /usr/sbin/nologin ordergate
WORKDIR /app
COPY --from=dependencies /opt/ordergate /opt/ordergate
COPY LICENSE ./
COPY deploy deploy
COPY scripts scripts
COPY streams streams
COPY worker worker
# The checkout may have been made under any umask.
RUN chmod -R a+rX . && python -m compileall -q .
USER 10001:10001
STOPSIGNAL SIGTERM
ENTRYPOINT ["python", "-m", "worker"]
