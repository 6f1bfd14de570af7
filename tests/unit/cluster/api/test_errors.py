import json
import pickle

from cluster.api.errors import ApiError, bad_request
from cluster.config.mistakes import ConfigError, Mistake


def test_the_body_has_the_form_that_openai_clients_read() -> None:
    error = bad_request("n", "`n` must be 1 to 8.")
    assert error.status == 400
    assert json.loads(error.body()) == {
        "error": {
            "message": "`n` must be 1 to 8.",
            "type": "invalid_request_error",
            "param": "n",
            "code": "invalid_value",
        }
    }


def test_errors_cross_processes_whole() -> None:
    error = ApiError(429, "c", "m", type="t", param="p", headers={"retry-after": "1"})
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert vars(copy) == vars(error)
    assert str(copy) == "m"
    mistakes = ConfigError("f", (Mistake("a.b", "wrong", "mend", 3),))
    again = pickle.loads(pickle.dumps(mistakes))  # noqa: S301 - our own bytes
    assert (again.mistakes, str(again)) == (mistakes.mistakes, str(mistakes))
