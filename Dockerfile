# docker build -t llava-s2 .
# docker run --gpus all --shm-size 16g --stop-timeout 660 -v $PWD/playground:/llava-s2/playground llava-s2 \
#     bash scripts/train/finetune_lora.sh
FROM python:3.12-slim

# A compiler for DeepSpeed's and torch.compile's kernels; torch's wheel brings CUDA.
RUN apt-get update && apt-get install -y --no-install-recommends build-essential git && rm -rf /var/lib/apt/lists/*

WORKDIR /llava-s2
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY llava_s2 llava_s2
RUN pip install --no-cache-dir -c constraints.txt '.[train]'
COPY scripts scripts

CMD ["llava-s2", "--help"]
