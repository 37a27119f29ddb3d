# One peer. The home (key, adapters, merges) is the volume /var/lib/mingle; nothing else is written.
#   docker build -t mingle .
#   docker run -v mingle:/var/lib/mingle -v ./data:/data:ro -p 4001:4001/tcp -p 4001:4001/udp mingle \
#       run --round /data/round.json --base /data/base --data /data/notes.jsonl \
#       --listen /ip4/0.0.0.0/tcp/4001 --listen /ip4/0.0.0.0/udp/4001/quic-v1
# With CUDA (docs/gpu.md): both images are NVIDIA's then, and the feature is named:
#   docker build -t mingle-cuda --build-arg FEATURES=cuda --build-arg CUDA_COMPUTE_CAP=80 \
#       --build-arg BUILD=nvidia/cuda:12.6.3-devel-ubuntu24.04 --build-arg RUN=nvidia/cuda:12.6.3-runtime-ubuntu24.04 .
# An image that has Rust is used as it is: --build-arg BUILD=rust:1-slim-trixie. BUILD's glibc must not be newer than RUN's.
ARG BUILD=debian:trixie-slim
ARG RUN=debian:trixie-slim

FROM ${BUILD} AS build
ARG FEATURES=
# Without a value it is not set at all, and the build asks the GPU that is there.
ARG CUDA_COMPUTE_CAP
RUN apt-get update && apt-get install -y --no-install-recommends build-essential ca-certificates curl \
    && rm -rf /var/lib/apt/lists/*
ENV PATH=$PATH:/root/.cargo/bin
# Not through a pipe: of that a shell knows only how its end went.
RUN command -v cargo || { curl --proto '=https' -sSfo /tmp/rustup https://sh.rustup.rs && sh /tmp/rustup -y --profile minimal; }
WORKDIR /mingle
COPY . .
RUN cargo install --locked --path node --features "${FEATURES}" --root /usr/local

FROM ${RUN}
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/*
# The number is fixed so that folders of the host can be given to it (chown 10001).
RUN useradd --uid 10001 --user-group --home-dir /var/lib/mingle --create-home mingle
COPY --from=build /usr/local/bin/mingle /usr/local/bin/mingle
# By its number, which is what clusters ask about who is not root.
USER 10001
ENV MINGLE_HOME=/var/lib/mingle
VOLUME /var/lib/mingle
WORKDIR /var/lib/mingle
EXPOSE 4001/tcp 4001/udp
# An init would do as well: the program ends by itself on SIGINT.
STOPSIGNAL SIGINT
ENTRYPOINT ["mingle"]
CMD ["--help"]
