"""Requests to tokens."""

from nanort.serving.generate import LLM, Completion, Token, load_model
from nanort.serving.requests import TokenLogprobs
from nanort.serving.sampling import SamplingParams

__all__ = ["LLM", "Completion", "SamplingParams", "Token", "TokenLogprobs", "load_model"]
