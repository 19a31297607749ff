"""MNIST's doubtful test labels: what people saw in those images."""

# Test images in which at most two of five people saw what the label says, and how many did (Northcutt, Athalye and
# Mueller 2021, arXiv 2103.14749; github.com/cleanlab/label-errors, mturk/mnist_mturk.json)
DOUBTFUL = {
    **{947: 0, 1621: 2, 1901: 2, 2130: 2, 2462: 0, 2597: 0, 2654: 0, 3520: 2, 3558: 1, 5937: 1, 6651: 0, 6783: 2},
    **{8527: 2, 9679: 2, 9729: 2},
}
