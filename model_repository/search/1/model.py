"""``search``: a query to the best passages, by what ``embed_query``, the retrieval sidecar and ``rerank`` do."""

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Hosts one step of ``resrank.serving``."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the step."""
        try:
            from resrank.core.search_plan import ServedReranker
            from resrank.serving.deferred import DeferredBackend
            from resrank.serving.load_metrics import SearchMetrics
            from resrank.serving.near_steps import NearSteps
            from resrank.serving.python_backend import PythonBackend, config_parameters, version_folder
            from resrank.serving.rerank_chain import RerankChain
            from resrank.serving.retriever import SidecarRetriever
            from resrank.serving.search import SearchStep
        except ImportError as error:
            message = f"{error}: Triton's Python needs resrank[triton], in a clone pip install '.[triton]'"
            raise ImportError(message) from error

        backend = PythonBackend(pb_utils, args)
        parameters = config_parameters(args)
        metrics = SearchMetrics(pb_utils, args["model_name"])
        models = NearSteps.read(backend.infer_outputs, version_folder(args), parameters)
        step = SearchStep(
            models,
            SidecarRetriever.from_environment(),
            ServedReranker.read(parameters),
            RerankChain.read(models, parameters),
            metrics,
        )
        self._deferred = DeferredBackend(backend, metrics, step)

    def execute(self, requests: list) -> None:
        """Takes one batch, whose answers follow."""
        self._deferred.execute(requests)

    def finalize(self) -> None:
        """Ends when all is answered."""
        self._deferred.close()
