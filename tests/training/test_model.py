import torch
from torch import nn

from lora_mnist.training.model import MLP, normalise


def test_the_standard_network_has_the_published_number_of_parameters():
    assert sum(p.numel() for p in MLP().parameters()) == 2_807_010


def test_it_computes_what_a_plain_sequential_does():
    model = MLP((7, 5))
    plain = nn.Sequential(nn.Linear(784, 7), nn.ReLU(), nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 10))
    plain.load_state_dict(dict(zip(plain.state_dict(), model.state_dict().values(), strict=True)))
    images = torch.randn(3, 28, 28)
    torch.testing.assert_close(model(images), plain(images.view(3, 784)), rtol=1e-5, atol=1e-6)
    assert torch.equal(model(images.view(3, 784)), model(images))


def test_normalise_is_torchvisions_to_tensor_and_normalize():
    from PIL import Image

    from lora_mnist.datasets.mnist import import_torchvision

    import_torchvision()
    from torchvision.transforms import Compose, Normalize, ToTensor

    images = torch.randint(256, (4, 28, 28), dtype=torch.uint8)
    usual = Compose([ToTensor(), Normalize((0.1307,), (0.3081,))])
    expected = torch.cat([usual(Image.fromarray(image.numpy())) for image in images])
    assert torch.equal(normalise(images), expected)
