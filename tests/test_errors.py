import pickle

from lora_mnist.errors import DataError


def test_an_error_survives_the_way_out_of_another_process():
    error = pickle.loads(pickle.dumps(DataError("It is gone.", "Fetch it.")))
    assert (type(error), str(error), error.cause, error.exit_code) == (
        DataError,
        "It is gone. Fetch it.",
        "It is gone.",
        3,
    )
