"""What the commands print whose output README and docs/ show or quote, on MNIST, seed 0.

python benchmarks/transcripts.py [--threads 1] [--data DIR] [--out DIR]
"""

import subprocess
import sys
import tempfile

from timing import options

COMMANDS = {  # by the file that keeps the output
    "default-run": ["run", "--run", "runs/default", "--verbose"],
    "classic-run": ["run", "--run", "runs/classic", "--config", "classic", "--verbose"],
    "mine-pretrain": ["pretrain", "--config", "rare", "--run", "runs/mine"],
    "mine-finetune": ["finetune", "--run", "runs/mine", "--digit", "9", "--rank", "1"],
    "classic-half": ["evaluate", "--run", "runs/classic", "--adapter", "digit9-r1", "--strength", "0.5"],
    "params": ["params", "--run", "runs/default"],
}


def main() -> None:
    """Run them in order in an empty folder."""
    arguments = options(__doc__, data=True)
    threads = ["--threads", str(arguments.threads)] if arguments.threads else []
    folder = arguments.out.resolve()
    with tempfile.TemporaryDirectory() as place:
        for name, words in COMMANDS.items():
            extra = [] if name == "params" else ["--data", str(arguments.data.resolve()), *threads]
            command = [sys.executable, "-m", "lora_mnist", *words, *extra]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=place)
            (folder / f"{name}.txt").write_text(f"$ lora-mnist {' '.join(words)}\n{done.stdout}")


if __name__ == "__main__":
    main()
