"""The requests of all endpoints as one type."""

from __future__ import annotations

from cluster.api.chat import ChatRequest
from cluster.api.completion import CompletionRequest
from cluster.api.embedding import EmbeddingRequest

ApiRequest = ChatRequest | CompletionRequest | EmbeddingRequest
