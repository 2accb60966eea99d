"""Why a request is not answered: each error is one `code` of the predictor's protocol."""


class PredictorError(Exception):
    """An error that the client is told of; the text is for it to show."""

    status = 500
    code = "internal"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class BadQuestion(PredictorError):
    """The request can never be answered as it stands."""

    status = 422
    code = "bad_request"


class Unauthorized(PredictorError):
    """Not from the API: the shared token is missing or wrong."""

    status = 401
    code = "unauthorized"


class Overloaded(PredictorError):
    """Not now: too much waits already, or the request's time ran out while it waited."""

    status = 503
    code = "overloaded"

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class CheckpointProblem(PredictorError):
    """The weights that were asked for can't be had; no others are used in their place."""

    def __init__(self, digest: str, message: str) -> None:
        super().__init__(message)
        self.digest = digest


class Corrupt(CheckpointProblem):
    """The bytes in the store do not match their digest."""

    status = 410
    code = "corrupt_checkpoint"


class Missing(CheckpointProblem):
    """The store has nothing of that digest."""

    status = 404
    code = "missing_checkpoint"


class NoNumbers(PredictorError):
    """The weights are whole, but compute nothing."""

    def __init__(self) -> None:
        super().__init__("This version's weights yield no numbers for the prompt.")


class EngineLost(Exception):
    """The device is beyond use for this process; only a new process can answer again."""
