from .oldest import oldest, tried


def test_every_package_has_a_lower_bound_and_a_version_that_was_tried():
    names = {line.partition("==")[0] for line in oldest()}
    assert {"torch", "onnx", "ray", "pytest"} <= names
    assert names <= tried().keys()


def test_packages_that_are_left_out_are_as_they_were_tried():
    assert tried()["torch"] in oldest("torch")
    assert "torch==2.10" in oldest()
