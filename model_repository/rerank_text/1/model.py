"""``rerank_text``: query and passages as texts to scores, by calls to ``embed_passage`` and ``rerank``."""

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Hosts one step of ``resrank.serving``."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the step."""
        try:
            from resrank.core.names import Parameter
            from resrank.serving.cache_metrics import CacheMetrics
            from resrank.serving.deferred import DeferredBackend
            from resrank.serving.embedding_cache import EmbeddingCache
            from resrank.serving.load_metrics import CallerMetrics
            from resrank.serving.python_backend import PythonBackend, config_parameters
            from resrank.serving.rerank_text import TextRerankingStep
        except ImportError as error:
            message = f"{error}: Triton's Python needs resrank[triton], in a clone pip install '.[triton]'"
            raise ImportError(message) from error

        backend = PythonBackend(pb_utils, args)
        parameters = config_parameters(args)
        cache = EmbeddingCache(
            parameters[Parameter.ENCODER_SHA256], int(parameters[Parameter.EMBEDDING_CACHE_MIB]) * 1024 * 1024
        )
        step = TextRerankingStep(
            backend.infer,
            cache,
            CacheMetrics(pb_utils, args["model_name"], cache.max_bytes),
            embed_batch_size=int(parameters[Parameter.EMBED_BATCH_SIZE]),
            max_passages=int(parameters[Parameter.MAX_PASSAGES]),
            infer_outputs=backend.infer_outputs,
        )
        self._deferred = DeferredBackend(backend, CallerMetrics(pb_utils, args["model_name"]), step)

    def execute(self, requests: list) -> None:
        """Takes one batch, whose answers follow."""
        self._deferred.execute(requests)

    def finalize(self) -> None:
        """Ends when all is answered."""
        self._deferred.close()
