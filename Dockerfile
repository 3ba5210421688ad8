# The GPU worker, for Runpod or any host with a driver of the 580 series or later (CUDA 13.0).
#   docker build -t aviary .
#   docker build -t aviary --build-arg BAKE_MODEL=nvidia/parakeet-tdt-0.6b-v3 .    with the weights
#   docker build -t aviary --build-arg RUN_AS=aviary .                             without root; see RUN_AS below
#   docker run --gpus all -e RUNPOD_SERVERLESS=0 aviary                            runs test_input.json and exits
#
# The image publishes no port. docs/runpod.md has the commands that serve HTTP, and deploy/ the files for several machines.

# torch's wheels contain the CUDA libraries and cuDNN that they were built with. The `base` image adds the rest, without a
# second cuDNN that could be mixed with torch's. `cudnn-runtime` works too, but is several gigabytes larger.
# The image is named by a tag, because this file was written without access to its registry. To pin the image, build with
# --build-arg CUDA_IMAGE=nvidia/cuda@sha256:DIGEST.
ARG CUDA_IMAGE=nvidia/cuda:13.0.1-base-ubuntu24.04
FROM ${CUDA_IMAGE}

# Python of Ubuntu 24.04 is 3.12. Packages have no versions, because the archive keeps only the newest.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ca-certificates ffmpeg nginx-light python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

# RUNPOD_MIN_CUDA_VERSION: Runpod's SDK ends the worker if the machine's driver is older than torch's CUDA.
ENV PATH=/opt/venv/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1 \
    RUNPOD_MIN_CUDA_VERSION=13.0

# The requirements come first: their layer is the largest and changes least. requirements.lock has the version and the
# hashes of every package; `make lock` renews it. One package has no wheel. It is built with the setuptools of the lock,
# because pip checks no hash of the build tools that it downloads.
WORKDIR /app
COPY requirements.lock ./
RUN python3 -m venv /opt/venv \
    && awk '/^setuptools==/,!/\\$/' requirements.lock > /tmp/setuptools.lock \
    && pip install --no-cache-dir --require-hashes -r /tmp/setuptools.lock \
    && pip install --no-cache-dir --require-hashes --no-build-isolation \
        --only-binary :all: --no-binary antlr4-python3-runtime -r requirements.lock \
    && rm /tmp/setuptools.lock

# One cache of models, linked from the home folder of each user that may run the worker. Volumes that Docker makes for
# /data and /models belong to the user aviary.
RUN useradd --create-home --uid 10001 aviary \
    && mkdir -p /opt/huggingface /root/.cache /home/aviary/.cache /data /models \
    && ln -s /opt/huggingface /root/.cache/huggingface \
    && ln -s /opt/huggingface /home/aviary/.cache/huggingface \
    && chown -R aviary:aviary /opt/huggingface /home/aviary /data /models

# Optional: the weights of one public model (owner/name), which becomes the default model. Without this argument, and for
# gated models, weights come from MODEL_DIR, Runpod's cached models, the network volume, or the hub, in that order.
# If a repository has a .nemo file, only that file is downloaded: the rest is the same weights for other programs.
ARG BAKE_MODEL=
RUN if [ -n "$BAKE_MODEL" ]; then \
        python -c "import sys; from huggingface_hub import list_repo_files, snapshot_download; \
name = sys.argv[1]; nemo = any(f.endswith('.nemo') for f in list_repo_files(name)); \
print(snapshot_download(name, allow_patterns='*.nemo' if nemo else None))" "$BAKE_MODEL" \
        && rm -rf /opt/huggingface/xet \
        && chmod -R a+rX /opt/huggingface; \
    fi
ENV MODEL=${BAKE_MODEL}

COPY LICENSE handler.py test_input.json ./
COPY samples/ samples/
COPY worker/ worker/
# The code belongs to root, so that a worker without root cannot change it; Python's caches are made here for that reason.
RUN python -m compileall -q handler.py worker \
    && chmod -R a+rX,go-w /app

# The baked weights once more in bfloat16, beside the .nemo file, so that a start on a GPU reads half the bytes and casts
# nothing. DTYPE=float32 reads the .nemo file itself.
RUN if [ -n "$BAKE_MODEL" ]; then \
        HF_HUB_OFFLINE=1 python -m worker.backends.nemo.prepared "$BAKE_MODEL" \
        && chmod -R a+rX /opt/huggingface; \
    fi

# The user that runs the worker. Runpod's network volume belongs to root, so only root can keep downloaded weights there:
# root is the default. If nothing is downloaded to a volume (weights in the image, Runpod's cached models, or no volume),
# build with RUN_AS=aviary or use `docker run --user aviary`. That user can write to /tmp, /data, /models, its home folder
# and the cache of models. deploy/ runs the server as that user, with a read-only root file system.
ARG RUN_AS=root
USER ${RUN_AS}

# Checks the server that `python -m worker serve` runs. The handler has no port, and counts as healthy while it runs.
HEALTHCHECK --interval=30s --timeout=15s --start-period=60s --retries=3 \
    CMD python /app/worker/entrypoints/http/healthcheck.py "${PORT:-8000}"

CMD ["python", "-u", "handler.py"]
