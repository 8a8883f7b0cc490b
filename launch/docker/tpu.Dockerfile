# uae_jax for Cloud TPU on GKE; launch/xpk.sh --build makes and pushes it. By hand:
#   docker build --platform linux/amd64 --file launch/docker/tpu.Dockerfile --tag IMAGE .
FROM python:3.12-slim

WORKDIR /uae_jax
# What the dependencies depend on comes first, so that a change of code does not install them again.
COPY setup.py README.md LICENSE ./
COPY launch/local.sh launch/find_python.sh launch/
COPY uae_jax/__init__.py uae_jax/
RUN UAE_HARDWARE=tpu UAE_EXTRAS=gcs launch/local.sh --only-install
COPY . .
ENV PATH=/uae_jax/.venv/bin:$PATH
CMD ["uae", "--help"]
