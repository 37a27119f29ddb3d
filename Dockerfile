# One peer. The home (key, adapters, merges) is the volume /var/lib/mingle; nothing else is written.
#   docker build -t mingle .
#   docker run -v mingle:/var/lib/mingle -v ./data:/data:ro -p 4001:4001/tcp -p 4001:4001/udp mingle \
#       run --round /data/round.json --base /data/base --data /data/notes.jsonl \
#       --listen /ip4/0.0.0.0/tcp/4001 --listen /ip4/0.0.0.0/udp/4001/quic-v1
# With CUDA (docs/gpu.md): both images are NVIDIA's then, and the feature is named:
#   docker build -t mingle-cuda --build-arg FEATURES=cuda --build-arg CUDA_COMPUTE_CAP=80 \
#       --build-arg BUILD=nvidia/cuda:12.6.3-devel-ubuntu24.04 --build-arg RUN=nvidia/cuda:12.6.3-runtime-ubuntu24.04 .
ARG BUILD=debian:trixie-slim
ARG RUN=debian:trixie-slim

FROM ${BUILD} AS build
ARG FEATURES=
ARG CUDA_COMPUTE_CAP=
ENV CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP}
RUN apt-get update && apt-get install -y --no-install-recommends build-essential ca-certificates cmake curl \
    && rm -rf /var/lib/apt/lists/*
RUN curl --proto '=https' -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal
ENV PATH=/root/.cargo/bin:$PATH
WORKDIR /mingle
COPY . .
RUN cargo install --locked --path node --features "${FEATURES}" --root /usr/local

FROM ${RUN}
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/* \
    && useradd --system --home-dir /var/lib/mingle --create-home mingle
COPY --from=build /usr/local/bin/mingle /usr/local/bin/mingle
USER mingle
ENV MINGLE_HOME=/var/lib/mingle
VOLUME /var/lib/mingle
WORKDIR /var/lib/mingle
EXPOSE 4001/tcp 4001/udp
# An init would do as well: the program ends by itself on SIGINT.
STOPSIGNAL SIGINT
ENTRYPOINT ["mingle"]
CMD ["--help"]
