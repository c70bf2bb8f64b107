"""``earlytom serve``: vLLM's OpenAI-compatible server with compression, as a child process.

What runs inside vLLM is in :mod:`earlytom.integrations.vllm`. Nothing here imports vLLM.
"""

from earlytom.serve.client import Reply, ask, ask_streaming, chat_body, counters, data_url, posted
from earlytom.serve.command import Launch, check_vllm, on_cpu, prepare
from earlytom.serve.examples import curl_example, python_example
from earlytom.serve.process import Server

__all__ = [
    "Launch",
    "Reply",
    "Server",
    "ask",
    "ask_streaming",
    "chat_body",
    "check_vllm",
    "counters",
    "curl_example",
    "data_url",
    "on_cpu",
    "posted",
    "prepare",
    "python_example",
]
