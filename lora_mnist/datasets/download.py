"""Download MNIST under a deadline, in a folder of its own, which a download that was cut off leaves to the next."""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tqdm import tqdm

DOWNLOAD_BYTES = 11_594_722  # the four .gz files together
LAST_WORDS = 1 << 16  # bytes: what is read of what the child said
FOLDER = ".download-"  # how the names of the folders begin


@contextmanager
def fetch_mnist(data: Path, deadline: float, mirrors: Sequence[str] = (), quiet: bool = False) -> Iterator[Path]:
    """Download the four files, each as NAME.gz, into a folder below `data` that is gone afterwards.

    Args:
        deadline: seconds after which the download is ended, however far it came.
        mirrors: base URLs to use instead of those that torchvision knows.

    Yields:
        That folder.

    Raises:
        OSError: they could not be had, or not in time, or not be written. What came of them stays for the next time.
    """
    with _own_folder(data) as folder:
        done = False
        try:
            _download(folder, deadline, mirrors, quiet)
            yield folder
            done = True
        finally:
            if done or not _came(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _download(folder: Path, deadline: float, mirrors: Sequence[str], quiet: bool) -> None:
    command = [sys.executable, "-m", "lora_mnist.datasets.fetch", str(folder), *mirrors]
    with tempfile.TemporaryFile() as said:
        with subprocess.Popen(command, stdout=said, stderr=said, stdin=subprocess.PIPE) as child:
            try:
                _await(child, folder, time.monotonic() + deadline, quiet)
            finally:
                child.kill()
        if child.returncode != 0:
            said.seek(max(0, said.tell() - LAST_WORDS))
            lines = said.read().decode(errors="replace").strip().splitlines()
            raise OSError(lines[-1] if lines else f"the download ended with code {child.returncode}")


def _await(child: subprocess.Popen, folder: Path, end: float, quiet: bool) -> None:
    show = True if quiet else None  # None: only on a terminal
    with tqdm(total=DOWNLOAD_BYTES, unit="B", unit_scale=True, desc="downloading MNIST", disable=show) as bar:
        while child.poll() is None:
            if time.monotonic() > end:
                raise TimeoutError("the server was too slow")
            time.sleep(0.05)
            bar.update(min(DOWNLOAD_BYTES, _came(folder)) - bar.n)


def _came(folder: Path) -> int:
    """How many bytes."""
    return sum(file.stat().st_size for file in folder.glob("*.gz"))


@contextmanager
def _own_folder(data: Path) -> Iterator[Path]:
    """A folder that no other download is in: one that was left, of which more are removed, else a new one.

    Whoever is in a folder holds its lock, which a kill frees.
    """
    data.mkdir(parents=True, exist_ok=True)
    with ExitStack() as locks:
        free = [folder for folder in sorted(data.glob(f"{FOLDER}*")) if _is_free(folder, locks)]
        for folder in free[1:]:
            shutil.rmtree(folder, ignore_errors=True)
        while not free:
            fresh = Path(tempfile.mkdtemp(prefix=FOLDER, dir=data))
            if _is_free(fresh, locks, unlocked=True):  # else another download was as quick
                free.append(fresh)
        yield free[0]


def _is_free(folder: Path, locks: ExitStack, unlocked: bool = False) -> bool:
    """Take its lock, and say whether that was possible; where a file system has none, `unlocked`."""
    from filelock import FileLock

    try:
        locks.enter_context(FileLock(folder / "lock", blocking=False, fallback_to_soft=False))
    except TimeoutError:  # what filelock's refusal is
        return False
    except OSError:
        return unlocked
    return True
