# One image for every role: `factedit api`, `worker`, `predictor`, `db upgrade`; or all at once: `serve`.
FROM python:3.11-slim

# Where pip finds torch; empty: its default index, whose build for x86-64 brings CUDA and runs on a CPU
# as well. An index of PyTorch's CPU builds makes the image some gigabytes smaller.
ARG TORCH_INDEX=""

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PYTHONUNBUFFERED=1

WORKDIR /app
COPY requirements.txt ./
RUN pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} --constraint requirements.txt torch \
    && pip install -r requirements.txt

COPY pyproject.toml README.md ./
COPY factedit factedit
COPY service service
COPY migrations migrations
COPY workers workers
RUN pip install --no-deps --no-build-isolation . \
    && useradd --system --uid 10001 --create-home factedit \
    && install -d -o factedit -g factedit /data

USER 10001
ENV FACTEDIT_DATA_DIR=/data
VOLUME /data
EXPOSE 8000
ENTRYPOINT ["factedit"]
CMD ["api"]
