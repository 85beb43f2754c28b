FROM python:3.11-slim AS build
# For networks with a package index of their own: docker build --build-arg PIP_INDEX_URL=...
ARG PIP_INDEX_URL
WORKDIR /build
COPY . .
# Not editable, and without a pip of its own: the environment is all that the image takes over.
RUN python -m venv --without-pip /opt/sekali \
    && pip --python /opt/sekali/bin/python install --no-cache-dir -c constraints.txt .

FROM python:3.11-slim
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin sekali \
    && install -d -o sekali -g sekali /data
COPY --from=build /opt/sekali /opt/sekali
ENV PATH=/opt/sekali/bin:$PATH \
    DB_PATH=/data/store.db \
    SEKALI_HOST=0.0.0.0
# By number, so that an orchestrator can tell that it is not root.
USER 10001:10001
VOLUME /data
EXPOSE 8080
# The base image has no curl. urlopen raises on 503, so the exit code is 1. It asks itself: whose certificate does not matter.
HEALTHCHECK --interval=5s --timeout=4s --start-period=30s \
    CMD ["python", "-c", "import os, ssl, urllib.request as r; tls = 'SEKALI_TLS_CERT_FILE' in os.environ; r.urlopen(('https' if tls else 'http') + '://127.0.0.1:' + os.getenv('SEKALI_PORT', '8080') + '/healthz', timeout=3, context=ssl._create_unverified_context() if tls else None)"]
ENTRYPOINT ["sekali"]
CMD ["serve"]
