# The inference server: `python -m dropforge.serving`, told by its environment where its models are.
#
#   docker build --file infra/docker/serving.Dockerfile .
#   docker build --file infra/docker/serving.Dockerfile --build-arg ACCELERATOR=cuda13 .
#   docker run --publish 8000:8000 --env DROPFORGE_STORAGE --env DROPFORGE_INFERENCE_KEY <image>
#
# ACCELERATOR  cpu; cuda13 (the driver of the machine: 580 or newer); or cuda12 (525 or newer), whose last onnxruntime holds
#              the interpreter's lock while it loads a model: no request is answered meanwhile. CUDA and cuDNN come as wheels.
ARG PYTHON=3.12

FROM python:${PYTHON}-slim-bookworm AS wheel
WORKDIR /source
COPY requirements/dev.txt requirements/
# The lock's versions without its hashes: as constraints they also bind what the build asks for.
RUN sed -E '/^ /d; s/ \\$//' requirements/dev.txt >/pins.txt
COPY pyproject.toml README.md LICENSE ./
COPY dropforge dropforge
RUN PIP_CONSTRAINT=/pins.txt pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}-slim-bookworm
ARG ACCELERATOR=cpu
ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY requirements/serve.txt /requirements/
RUN pip install --require-hashes --requirement /requirements/serve.txt
# Both packages are the module `onnxruntime`: the one must go before the other comes.
RUN case "$ACCELERATOR" in \
        cpu) gpu= ;; \
        cuda13) gpu='onnxruntime-gpu[cuda,cudnn]==1.31.1' ;; \
        cuda12) gpu='onnxruntime-gpu[cuda,cudnn]==1.26.0' ;; \
        *) echo "ACCELERATOR is '$ACCELERATOR'; choose cpu, cuda13 or cuda12" >&2; exit 1 ;; \
    esac \
    && if [ -n "$gpu" ]; then \
        grep -E '^numpy==' /requirements/serve.txt | sed -E 's/ \\$//' >/requirements/numpy.txt \
        && pip uninstall --yes onnxruntime \
        && pip install --constraint /requirements/numpy.txt "$gpu"; \
    fi
COPY --from=wheel /wheels /wheels
RUN pip install --no-deps /wheels/*.whl && pip check && python -m dropforge.serving --help \
    && useradd --create-home --uid 1000 dropforge \
    && install --directory --owner dropforge --mode 700 /var/cache/dropforge
# A CUDA image that finds no GPU is live, never ready, and says why.
ENV DROPFORGE_SERVE_PROVIDER=${ACCELERATOR} \
    DROPFORGE_SERVE_CACHE=/var/cache/dropforge
USER dropforge
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/v2/health/live', timeout=4)"]
CMD ["python", "-m", "dropforge.serving", "--host", "0.0.0.0", "--port", "8000"]
