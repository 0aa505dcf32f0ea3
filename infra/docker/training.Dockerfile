# The training node: `dropforge train-node`, what the pipelines of the platform train with, and MLflow for Azure ML.
#
#   docker build --file infra/docker/training.Dockerfile .
#   docker build --file infra/docker/training.Dockerfile --build-arg ACCELERATOR=cuda13 \
#       --build-arg FRAMEWORKS="torch==2.13.0 onnxscript==0.7.2" .
#
# ACCELERATOR  cpu, or cuda13: which build of PyTorch is taken. It brings CUDA, cuDNN and NCCL along; the driver is the
#              machine's (580 or newer for CUDA 13).
# FRAMEWORKS   what the pipelines' commands import, in the versions of the lock. What the lock does not hold needs its own.
# RUN_AS       root, as in Azure ML's own images: its runtime writes logs and mounts folders as the image's user, and nobody
#              promises that another one may. `dropforge` (1000) is there for every other place that runs containers.
ARG PYTHON=3.11

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
ARG FRAMEWORKS="scikit-learn skl2onnx pandas"
ARG RUN_AS=root
ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN useradd --create-home --uid 1000 dropforge
COPY requirements/train.txt requirements/train-azureml.txt /requirements/
RUN pip install --require-hashes --requirement /requirements/train.txt
COPY --from=wheel /pins.txt /requirements/
RUN case "$ACCELERATOR" in \
        cpu) index=https://download.pytorch.org/whl/cpu ;; \
        cuda13) index=https://download.pytorch.org/whl/cu130 ;; \
        *) echo "ACCELERATOR is '$ACCELERATOR'; choose cpu or cuda13" >&2; exit 1 ;; \
    esac \
    && pip install --extra-index-url "$index" --constraint /requirements/pins.txt $FRAMEWORKS
# Last, for it wants an older MLflow and an older python-dateutil than the lock has.
RUN pip install --require-hashes --requirement /requirements/train-azureml.txt
COPY --from=wheel /wheels /wheels
RUN pip install --no-deps /wheels/*.whl && pip check && dropforge train-node --help
USER ${RUN_AS}
CMD ["dropforge", "train-node", "--help"]
