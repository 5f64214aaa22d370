# The stream worker; build with --build-arg EXTRA=airflow for Airflow's processes and MLflow.
FROM python:3.11-slim
ARG EXTRA=worker
WORKDIR /srv
COPY pyproject.toml README.md requirements.lock ./
COPY monitors monitors
COPY streamer streamer
COPY dags dags
COPY demo demo
COPY config config
# Directories that volumes are mounted on are made here, so that the volumes belong to the user who writes them.
RUN pip install --no-cache-dir uv==0.13.9 \
    && uv pip install --system --no-cache --constraint requirements.lock ".[${EXTRA}]" \
    && useradd --create-home driftloop \
    && mkdir -p /var/lib/driftloop /srv/.driftloop \
    && chown driftloop /var/lib/driftloop /srv/.driftloop
USER driftloop
ENV DRIFTLOOP_WORKER__DATA_DIR=/var/lib/driftloop DRIFTLOOP_WORKER__WEB_HOST=0.0.0.0
EXPOSE 6066
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:6066/health', timeout=2)"]
CMD ["driftloop", "worker"]
