import os
import platform
import signal

import pytest
import torch

from lora_mnist.errors import UsageError
from lora_mnist.training.device import prepare_device, without_interrupts

from ..conftest import printed_by


def test_a_process_is_prepared_as_asked():
    assert prepare_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    prepare_device("cpu", threads=1)
    assert torch.get_num_threads() == 1
    assert float(torch.tensor(1e-40) * 1) == 0.0  # denormals are flushed


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this torch has no MKL")
@pytest.mark.parametrize(("chosen", "mode"), [({}, "AUTO"), ({"MKL_CBWR": "COMPATIBLE"}, "COMPATIBLE")])
def test_products_are_reproducible_unless_the_user_chose_otherwise(monkeypatch, chosen, mode):
    script = """if True:
        import torch
        from lora_mnist.training.device import prepare_device
        prepare_device("cpu")
        torch.ones(8, 8) @ torch.ones(8, 8)
    """
    monkeypatch.delenv("MKL_CBWR", raising=False)
    assert f"CNR:{mode} " in printed_by(script, **chosen, MKL_VERBOSE="1")  # MKL says how it computed each product


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep memory")
def test_a_step_gets_the_memory_of_the_last_one():
    script = """if True:
        import resource, torch
        from lora_mnist.training.device import prepare_device
        prepare_device("cpu")
        faults = []
        for _ in range(60):  # the first steps may still find their place in the heap
            torch.ones(16, 1 << 20)
            faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
        print(faults[-1] - faults[39], (64 << 20) // resource.getpagesize())
    """
    faults, pages = map(int, printed_by(script).split())
    assert faults < pages  # of the 20 x pages that 20 steps touch


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "", "cpu:0", "cuda:99"])
def test_an_unknown_or_absent_device_is_refused_by_name(device):
    with pytest.raises(UsageError, match=repr(device)):
        prepare_device(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_asked_for_and_absent_is_an_error():
    with pytest.raises(UsageError, match="sees 0 CUDA devices"):
        prepare_device("cuda")


@pytest.mark.parametrize("threads", [0, -1, 100_000])
def test_impossible_numbers_of_threads_are_refused(threads):
    with pytest.raises(UsageError, match="threads"):
        prepare_device("cpu", threads=threads)


def test_only_what_is_started_within_never_hears_ctrl_c(monkeypatch):
    script = "import signal; print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()))"
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    with without_interrupts():
        within = printed_by(script)
    assert (within, printed_by(script)) == ("True\n", "False\n")
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert os.environ["PYTHONWARNINGS"] == "error"
