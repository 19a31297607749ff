# docker build -t lora-mnist .
#
# Train, repair, prove, write a report into runs/:
# docker run --rm -v "$PWD/runs:/app/runs" lora-mnist
#
# Draw on it, in a browser on this machine, the only one that the page answers:
# docker run --rm -v "$PWD/runs:/app/runs" --network host lora-mnist play
FROM python:3.13-slim
ENV PIP_NO_CACHE_DIR=1 PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
COPY pyproject.toml constraints.txt README.md LICENSE /src/
COPY configs /src/configs
COPY lora_mnist /src/lora_mnist
RUN pip install --constraint /src/constraints.txt torch \
 && pip install --constraint /src/constraints.txt "/src[onnx]"
WORKDIR /app
ENTRYPOINT ["lora-mnist"]
CMD ["run", "--config", "rare"]
