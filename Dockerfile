# The GPU worker for Runpod, or for any host with a driver of the 580 series or later (CUDA 13.0).
#   docker build -t aviary .
#   docker build -t aviary --build-arg BAKE_MODEL=nvidia/parakeet-tdt-0.6b-v3 .    the weights inside
#   docker build -t aviary --build-arg RUN_AS=aviary .                             never as root
#   docker run --gpus all -e RUNPOD_SERVERLESS=0 aviary                            hears test_input.json and ends

# torch's wheels bring the CUDA libraries and cuDNN that they were built with. The `base` image has what remains to be
# added, and no second cuDNN for them to mix with; `cudnn-runtime` works as well, and is some gigabytes larger.
ARG CUDA_IMAGE=nvidia/cuda:13.0.1-base-ubuntu24.04
FROM ${CUDA_IMAGE}

# ubuntu 24.04's own Python is 3.12. No versions: the archive keeps only the newest.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ca-certificates ffmpeg nginx-light python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

ENV PATH=/opt/venv/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1

# The largest layer, and the one that changes least.
WORKDIR /app
COPY requirements-base.txt requirements.txt ./
RUN python3 -m venv /opt/venv \
    && pip install --no-cache-dir -r requirements.txt

# One cache of models in the image, found from the home of whoever runs the worker.
RUN useradd --create-home --uid 10001 aviary \
    && mkdir -p /opt/huggingface /root/.cache /home/aviary/.cache \
    && ln -s /opt/huggingface /root/.cache/huggingface \
    && ln -s /opt/huggingface /home/aviary/.cache/huggingface \
    && chown -R aviary:aviary /opt/huggingface /home/aviary

# Optional: the weights of one public model, as owner/name; it is then the default model too. Without it, and for gated
# models, they come from MODEL_DIR, Runpod's cached models, the network volume or the hub, in that order.
# Of a repository that has a .nemo file only that is taken: the rest is the same weights for other programs.
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

# Runpod mounts its network volume as root's: only root can keep downloaded weights there, so root is the default.
# Where nothing is downloaded to a volume (weights baked in, Runpod's cached models, or no volume at all) build with
# RUN_AS=aviary, or run the same image with `docker run --user aviary`: the worker itself writes only to /tmp.
ARG RUN_AS=root
USER ${RUN_AS}

CMD ["python", "-u", "handler.py"]
