# docker build -t lora-mnist .
# docker run --rm -v "$PWD/runs:/work/runs" lora-mnist                    trains, repairs, proves, writes a report
# docker run --rm -v "$PWD/runs:/work/runs" --network host lora-mnist play  its page answers this machine alone
FROM python:3.13-slim
ENV PIP_NO_CACHE_DIR=1 PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
COPY pyproject.toml constraints.txt README.md LICENSE /src/
COPY configs /src/configs
COPY lora_mnist /src/lora_mnist
RUN pip install --constraint /src/constraints.txt torch torchvision && pip install --constraint /src/constraints.txt "/src[play,onnx]"
WORKDIR /work
ENTRYPOINT ["lora-mnist"]
CMD ["run", "--config", "rare"]
