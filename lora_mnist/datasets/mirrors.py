"""Where MNIST is to be had: the mirrors that torchvision knows."""

import sys
from types import ModuleType


def mirrors() -> list[str]:
    """Base URLs, in the order in which they are to be tried."""
    import_torchvision()
    from torchvision.datasets import MNIST

    return list(MNIST.mirrors)


def import_torchvision() -> ModuleType:
    """Import torchvision, also one built for CUDA beside a torch built for CPU (`pip` installs that pair on Linux).

    Such a torchvision fails to register two detection operators it has no library for, which nothing here uses.
    Declaring their schemas is enough for the import to go through; it is done only when that very error is met.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        import torch

        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]  # half-imported
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision

        torchvision.lora_mnist_operators = library  # the schemas live as long as this object
    return torchvision
