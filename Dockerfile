# docs/deploy.md says how to build and run this image.

FROM python:3.13-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY numllama numllama
COPY kernels kernels
COPY engine engine
COPY api api
COPY benchmarks benchmarks
COPY docs/course docs/course
RUN python -m venv /opt/numllama && /opt/numllama/bin/pip install --no-cache-dir .

FROM python:3.13-slim
RUN useradd --uid 1000 --create-home numllama \
    && install -d -o numllama -g numllama /models /var/cache/numllama
COPY --from=build /opt/numllama /opt/numllama
ENV PATH=/opt/numllama/bin:$PATH \
    OLLAMA_HOST=0.0.0.0:11434 \
    OLLAMA_MODELS=/models \
    XDG_CACHE_HOME=/var/cache
USER numllama
# Machine code is for the CPU that builds the image; on another one kernels are compiled when they are first used.
RUN numllama warmup
EXPOSE 11434
VOLUME /models
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:11434/api/version', timeout=4)"]
ENTRYPOINT ["numllama"]
CMD ["serve"]
