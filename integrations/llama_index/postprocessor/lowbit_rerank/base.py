"""LowBitRerank: a reranking model in low bits behind a LlamaIndex retriever.

Translates types to and from `lowbit.Reranker`; loads and scores nothing itself. LlamaIndex's base class runs it in a
worker thread where it is awaited.
"""

from __future__ import annotations

from typing import Any

from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.callbacks import CBEventType, EventPayload
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle

import lowbit

dispatcher = get_dispatcher(__name__)


class LowBitRerank(BaseNodePostprocessor):
    """Keeps the top_n nodes whose text answers the query best, with the reranker's scores, best first.

    top_n, model, device and keep_retrieval_score are those of LlamaIndex's SentenceTransformerRerank. model: hub id,
    folder, or a folder that `lowbit.Reranker.save_low_bit` wrote. keep_retrieval_score: puts the retriever's score into
    the returned node's metadata as "retrieval_score". model_kwargs: further options for loading: `load_in_low_bit`
    (default "sym_int8"), `threads`, `max_length`, ... The nodes that are given in are not changed.

        from llama_index.postprocessor.lowbit_rerank import LowBitRerank

        engine = index.as_query_engine(similarity_top_k=10, node_postprocessors=[LowBitRerank(top_n=3)])
    """

    model: str = Field(description="Hub id or folder of the reranker.")
    top_n: int = Field(default=2, description="Nodes to keep.", ge=1)
    batch_size: int = Field(default=32, description="Pairs scored at a time.", ge=1)
    keep_retrieval_score: bool = Field(default=False, description="Whether metadata keeps the retriever's score.")

    _model: Any = PrivateAttr()
    """The `lowbit.Reranker`."""

    def __init__(
        self,
        top_n: int = 2,
        model: str = "BAAI/bge-reranker-base",
        device: str | None = None,
        keep_retrieval_score: bool = False,
        batch_size: int = 32,
        **model_kwargs: Any,
    ) -> None:
        fields: dict[str, Any] = {
            "model": model,
            "top_n": top_n,
            "keep_retrieval_score": keep_retrieval_score,
            "batch_size": batch_size,
        }
        super().__init__(**fields)
        options = {("low_bit" if name == "load_in_low_bit" else name): value for name, value in model_kwargs.items()}
        if device is not None:
            options["device"] = device
        self._model = lowbit.Reranker(model, **options)

    @classmethod
    def class_name(cls) -> str:
        """Returns the name LlamaIndex stores the class under."""
        return "LowBitRerank"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise ValueError("a reranker needs the query: pass query_str or query_bundle")
        if not nodes:
            return []
        start = ReRankStartEvent(query=query_bundle, nodes=nodes, top_n=self.top_n, model_name=self.model)
        dispatcher.event(start)
        payload: dict[str, Any] = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: self.model,
            EventPayload.QUERY_STR: query_bundle.query_str,
            EventPayload.TOP_K: self.top_n,
        }
        with self.callback_manager.event(CBEventType.RERANKING, payload=payload) as event:
            passages = [node.node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes]
            scores = self._model.score(query_bundle.query_str, passages, batch_size=self.batch_size).tolist()
            order = sorted(range(len(nodes)), key=lambda i: -scores[i])[: self.top_n]
            kept = [self._scored(nodes[i], scores[i]) for i in order]
            event.on_end(payload={EventPayload.NODES: kept})
        dispatcher.event(ReRankEndEvent(nodes=kept))
        return kept

    def _scored(self, found: NodeWithScore, score: float) -> NodeWithScore:
        node = found.node
        if self.keep_retrieval_score:
            node = node.model_copy(update={"metadata": {**node.metadata, "retrieval_score": found.score}})
        return NodeWithScore(node=node, score=score)
