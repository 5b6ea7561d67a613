"""Between Triton's Python backend and a step: tensors to arrays, outcomes to responses.

Nothing here is raised out of ``execute``, where an exception would fail every request of the batch.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from resrank.core.errors import (
    DeadlineExceededError,
    InvalidInputError,
    QueueFullError,
    ResRankError,
    RetrievalError,
    ServerFailedError,
    ServerUnavailableError,
)
from resrank.core.names import Model, Parameter, Tensor
from resrank.core.search import choice
from resrank.core.tracing import export_traces, record_span
from resrank.core.triton_words import QUEUE_FULL, RETRIEVAL_FAILURE, STOPPING, WAITED_TOO_LONG
from resrank.core.truncation import Side, Truncation
from resrank.serving.request_trace import read_trace, traced_part
from resrank.serving.step import Answer, Arrays, CancelledRequestError, Step, StepRequest


def version_folder(args: Mapping[str, str]) -> Path:
    """Where a model's own files are.

    Args:
        args: What Triton gives to ``initialize``.
    """
    return Path(args["model_repository"]) / args["model_version"]


def config_parameters(args: Mapping[str, str]) -> dict[str, str]:
    """The ``parameters`` of the model's config.

    Args:
        args: What Triton gives to ``initialize``.
    """
    parameters = json.loads(args["model_config"]).get("parameters", {})
    return {name: value["string_value"] for name, value in parameters.items()}


@dataclass(frozen=True)
class ModelInstance:
    """One of the processes that Triton runs a model in.

    Attributes:
        folder: Where the model's own files are.
        parameters: Of its config.
        max_rows: Rows of one request, or of the batch that Triton joins, at most.
        gpu: CUDA ordinal of the GPU that it is placed on; None on the CPU.
    """

    folder: Path
    parameters: Mapping[str, str]
    max_rows: int
    gpu: int | None

    @classmethod
    def from_args(cls, args: Mapping[str, str]) -> Self:
        """Reads what Triton gives to ``initialize``."""
        return cls(
            version_folder(args),
            config_parameters(args),
            json.loads(args["model_config"])["max_batch_size"],
            int(args["model_instance_device_id"]) if args["model_instance_kind"] == "GPU" else None,
        )


class PythonBackend:
    """Translates for one model.

    Args:
        pb_utils: The module ``triton_python_backend_utils``, which exists inside Triton only.
        args: What Triton gives to ``initialize``.

    Attributes:
        model: The model's name.
        queue_bound: Requests that may wait or be under way by the model's config; 0 for any number.
    """

    def __init__(self, pb_utils: Any, args: Mapping[str, str]) -> None:
        self._pb = pb_utils
        self.model = args["model_name"]
        export_traces("resrank-triton")
        config = json.loads(args["model_config"])
        self._inputs = [Tensor(tensor["name"]) for tensor in config["input"]]
        self.queue_bound = int(config_parameters(args).get(Parameter.MAX_QUEUE_SIZE, 0))

    def execute(self, step: Step, requests: Sequence[Any]) -> list[Any]:
        """Answers one batch.

        Args:
            step: The model's logic.
            requests: ``pb_utils.InferenceRequest`` objects.

        Returns:
            ``pb_utils.InferenceResponse`` objects in the same order.
        """
        read = [self._read_or_error(request) for request in requests]
        valid = [request for request in read if isinstance(request, StepRequest)]
        began_ns = time.time_ns()
        try:
            outcomes = step.run(valid)
        except Exception as error:
            outcomes = [error] * len(valid)
        ended_ns = time.time_ns()
        for request in valid:
            if request.trace is not None and not request.trace.seen_by_triton:
                record_span(f"{self.model} compute", began_ns, ended_ns, context=request.trace.context)
        return self._respond(read, outcomes)

    def send(self, request: Any, outcome: Answer) -> Answer:
        """Answers one request of a batch whose ``execute`` has returned (see :mod:`resrank.serving.deferred`).

        Whatever happens an answer is sent: a request without one would wait for ever, and Triton with it. Nothing is
        raised, since whoever sends has other requests to answer.

        Args:
            request: A ``pb_utils.InferenceRequest``.
            outcome: Its outputs, those that the caller asked for or more, or its error.

        Returns:
            What was sent: the outcome, or the error that no response can be made of it.
        """
        try:
            self._send(request, outcome)
        except Exception as error:
            outcome = error
            try:
                self._send(request, error)
            except Exception as again:  # Triton took the first one half, which ends the request, or is gone itself
                self._pb.Logger.log_error(f"{self.model}: an answer could not be sent: {error!r}, then {again!r}")
        return outcome

    def refuse_above_queue_bound(self, requests: int) -> None:
        """Sheds a request that is one too many by the model's config.

        Args:
            requests: That wait or are under way, this one included.

        Raises:
            QueueFullError: They are more than the bound.
        """
        if self.queue_bound and requests > self.queue_bound:
            raise self.queue_full(f"{self.queue_bound} requests are before it")

    def queue_full(self, why: str) -> QueueFullError:
        """The error of a request that is shed, in words by which models that call this one know it."""
        return QueueFullError(f"{QUEUE_FULL} of {self.model}: {why}")

    @staticmethod
    def cancelled(request: Any) -> bool:
        """Whether the caller has gone; a question to Triton of about 50 microseconds.

        Args:
            request: A ``pb_utils.InferenceRequest``.
        """
        return bool(request.is_cancelled())

    async def infer(self, model: Model, inputs: Arrays, output: Tensor, caller: StepRequest) -> NDArray[Any]:
        """Calls another model for one of its outputs, see :meth:`infer_outputs`."""
        return (await self.infer_outputs(model, inputs, (output,), caller))[output]

    async def infer_outputs(
        self, model: Model, inputs: Arrays, outputs: Sequence[Tensor], caller: StepRequest
    ) -> dict[Tensor, NDArray[Any]]:
        """Calls another model of the repository on behalf of a request.

        Args:
            model: Which one.
            inputs: Its inputs, the batch dimension first.
            outputs: The outputs that are wanted.
            caller: The request that this is done for; its parameters and what is left of its time go along.

        Returns:
            The outputs.

        Raises:
            InvalidInputError: The model refused the input.
            QueueFullError: A queue was full.
            DeadlineExceededError: The caller's time is over.
            ServerUnavailableError: The server is stopping.
            ServerFailedError: Anything else that the model answered; the text is its own.
        """
        left_us = 0
        if caller.deadline is not None:
            left_us = int((caller.deadline - time.monotonic()) * 1e6)
            if left_us <= 0:
                raise DeadlineExceededError(WAITED_TOO_LONG)
        with traced_part(caller.trace, model.value) as trace:
            parameters = _truncation_parameters(Truncation.of(caller.truncate))
            if trace is not None and trace.traceparent is not None:
                parameters[Parameter.TRACEPARENT.value] = trace.traceparent
            response = await self._pb.InferenceRequest(
                model_name=model.value,
                requested_output_names=[output.value for output in outputs],
                inputs=[self._pb.Tensor(name.value, array) for name, array in inputs.items()],
                parameters=parameters,
                timeout=left_us,
            ).async_exec()
            if response.has_error():
                raise inner_error(response.error().message())
        # Copied: the memory is Triton's and goes with the response.
        return {
            output: np.array(self._pb.get_output_tensor_by_name(response, output.value).as_numpy())
            for output in outputs
        }

    def read(self, request: Any) -> StepRequest:
        """Reads a ``pb_utils.InferenceRequest``.

        Raises:
            InvalidInputError: A request parameter has the wrong type or is out of its range, or an input has no rows.
        """
        parameters = json.loads(request.parameters())
        truncate = _read_truncation(parameters)
        inputs = {
            name: tensor.as_numpy()
            for name in self._inputs
            if (tensor := self._pb.get_input_tensor_by_name(request, name.value)) is not None  # optional ones
        }
        for name, array in inputs.items():
            # Triton lets dimensions through whose product overflows; texts of such a shape come without dimensions.
            if array.ndim < 2 or array.shape[0] == 0:
                raise InvalidInputError(name, "has no rows", limit="at least 1", value=0)
        return StepRequest(
            inputs,
            truncate,
            _deadline(request.timeout()),
            parameters,
            request.requested_output_names(),
            read_trace(request, parameters),
        )

    def _send(self, request: Any, outcome: Answer) -> None:
        if not isinstance(outcome, Exception):
            wanted = request.requested_output_names()
            outcome = {name: array for name, array in outcome.items() if name.value in wanted}
        request.get_response_sender().send(self._response(outcome), flags=self._pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _read_or_error(self, request: Any) -> StepRequest | Exception:
        try:
            return self.read(request)
        except Exception as error:  # what a foreign client sent costs its own request and no other
            return error

    def _respond(self, read: Sequence[StepRequest | Exception], outcomes: Sequence[Answer]) -> list[Any]:
        computed = iter(outcomes)
        return [self._response(next(computed) if isinstance(request, StepRequest) else request) for request in read]

    def _response(self, outcome: Answer) -> Any:
        if isinstance(outcome, Exception):
            return self._pb.InferenceResponse(error=self._error(outcome))
        return self._pb.InferenceResponse(
            output_tensors=[self._pb.Tensor(name.value, array) for name, array in outcome.items()]
        )

    def _error(self, error: Exception) -> Any:
        """The one table from errors to Triton's codes."""
        codes = self._pb.TritonError
        text = str(error)
        match error:
            case InvalidInputError():
                code = codes.INVALID_ARG
            case QueueFullError() | ServerUnavailableError():
                code = codes.UNAVAILABLE
            case DeadlineExceededError():
                code = codes.UNAVAILABLE
                text = text if WAITED_TOO_LONG in text else f"{WAITED_TOO_LONG}: {text}"
            case CancelledRequestError():
                code = codes.CANCELLED
            case RetrievalError():
                code, text = codes.INTERNAL, f"{RETRIEVAL_FAILURE}{text}"
            case ResRankError():
                code = codes.INTERNAL
            case _:
                self._pb.Logger.log_error(f"{self.model}:\n{''.join(traceback.format_exception(error))}")
                code, text = codes.INTERNAL, f"internal error in {self.model}, see the server's log: {error!r}"
        return codes(text, code)


_LONGEST_US = 365 * 24 * 3600 * 1_000_000
"""A longer timeout is none: sums with it overflow somewhere on the way."""


def _read_truncation(parameters: Mapping[str, object]) -> Truncation | None:
    """How texts may be cut.

    Raises:
        InvalidInputError: A parameter has the wrong type or is out of its range.
    """
    truncate = parameters.get(Parameter.TRUNCATE, False)
    if not isinstance(truncate, bool):
        raise InvalidInputError(Parameter.TRUNCATE, f"must be a bool request parameter, not {truncate!r}")
    side = parameters.get(Parameter.TRUNCATION_SIDE, Side.RIGHT.value)
    limit = parameters.get(Parameter.TOKEN_LIMIT)
    if not isinstance(side, str):
        raise InvalidInputError(Parameter.TRUNCATION_SIDE, f"must be a string request parameter, not {side!r}")
    if limit is not None and type(limit) is not int:  # a bool is an int to Python
        raise InvalidInputError(Parameter.TOKEN_LIMIT, f"must be an int request parameter, not {limit!r}")
    return Truncation(choice(Parameter.TRUNCATION_SIDE, Side, side), limit) if truncate else None


def _truncation_parameters(truncation: Truncation | None) -> dict[str, object]:
    parameters: dict[str, object] = {Parameter.TRUNCATE.value: truncation is not None}
    if truncation is not None and truncation.side is not Side.RIGHT:
        parameters[Parameter.TRUNCATION_SIDE.value] = truncation.side.value
    if truncation is not None and truncation.token_limit is not None:
        parameters[Parameter.TOKEN_LIMIT.value] = truncation.token_limit
    return parameters


def _deadline(timeout_us: int) -> float | None:
    """When a caller stops waiting, on the clock of :func:`time.monotonic`; None for never.

    Triton counts in unsigned 64 bits, where a caller's negative number is an enormous one.
    """
    if timeout_us >= 1 << 63:
        raise InvalidInputError("timeout", "must not be negative", limit=0, value=timeout_us - (1 << 64))
    if timeout_us == 0 or timeout_us > _LONGEST_US:
        return None
    return time.monotonic() + timeout_us / 1e6


def inner_error(message: str) -> ResRankError:
    """Reads the error of a call to another model, of which the Python backend keeps the text but loses the code.

    Args:
        message: The text, with what Triton put before it.
    """
    invalid = InvalidInputError.parse(message)
    if invalid is not None and invalid.place.name in (*Tensor, Parameter.TRUNCATE, Parameter.TOKEN_LIMIT):
        return invalid
    if QUEUE_FULL in message:
        return QueueFullError(message)
    if WAITED_TOO_LONG in message:
        return DeadlineExceededError(message)
    if any(words in message for words in STOPPING):
        return ServerUnavailableError(message)
    return ServerFailedError(message)
