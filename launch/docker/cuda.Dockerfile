# uae_jax for NVIDIA GPUs. jax brings CUDA itself; the host needs driver and NVIDIA container toolkit:
#   docker build --file launch/docker/cuda.Dockerfile --tag uae .
#   docker run --gpus all --ipc host --volume "$PWD/runs:/uae_jax/runs" uae \
#       uae train --config configs/tiny/autoencoder.py --workdir runs/autoencoder
FROM python:3.12-slim

WORKDIR /uae_jax
# What the dependencies depend on comes first, so that a change of code does not install them again.
COPY setup.py README.md LICENSE ./
COPY launch/local.sh launch/find_python.sh launch/
COPY uae_jax/__init__.py uae_jax/
RUN UAE_HARDWARE=cuda UAE_EXTRAS=gcs launch/local.sh --only-install
COPY . .
ENV PATH=/uae_jax/.venv/bin:$PATH NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
CMD ["uae", "--help"]
