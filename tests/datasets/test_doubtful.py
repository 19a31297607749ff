from lora_mnist.datasets.dataset import load
from lora_mnist.datasets.doubtful import DOUBTFUL


def test_they_are_the_published_images(mnist):
    """The labels that the published list gives for its indices, so that these are of the same set in the same order."""
    published = {947: 8, 1621: 0, 1901: 9, 2130: 4, 2462: 2, 2597: 5, 2654: 6, 3520: 6, 3558: 5, 5937: 5, 6651: 0}
    published |= {6783: 1, 8527: 4, 9679: 6, 9729: 5}
    labels = load("mnist", mnist, 0.0, 0).test.labels
    assert {index: int(labels[index]) for index in DOUBTFUL} == published
