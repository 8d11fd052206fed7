"""Requests go on while an adapter is swapped: ``python -m tests.engines.traffic vllm://HOST:PORT FOLDER_A FOLDER_B [REQUESTS]``.

None may fail, and each answer must be the one of the first adapter or the one of the second.
"""

import json
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from orchestrator.publish.engines import open_engine

_NAME, _PROMPT, _TOKENS, _AT_ONCE = "in-traffic", "The capital of the Comoros is", 3, 8


def main(address: str, first: Path, second: Path, requests: int) -> dict[str, object]:
    """Swap the adapters to and fro until all requests are answered.

    Returns:
        Counts of the answers by what they are, and the number of swaps.
    """
    engine = open_engine(address, token=None, timeout=300)
    texts = {}
    for title, folder in (("first", first), ("second", second)):
        engine.load(_NAME, folder, "adapter")
        texts[engine.ask(_NAME, [_PROMPT], _TOKENS)[0]] = title

    def ask(_: int) -> str:
        try:
            return texts.get(engine.ask(_NAME, [_PROMPT], _TOKENS)[0], "neither")
        except Exception as error:
            return f"failed: {error}"

    began, swaps = time.perf_counter(), 0
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        answers = [pool.submit(ask, k) for k in range(requests)]
        while not all(answer.done() for answer in answers):
            engine.load(_NAME, (first, second)[swaps % 2], "adapter")
            swaps += 1
            time.sleep(1)
    engine.unload(_NAME, first)
    counts = Counter(answer.result() for answer in answers)
    return {"answers": dict(counts), "distinct": len(texts), "swaps": swaps, "seconds": round(time.perf_counter() - began, 1)}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]) if len(sys.argv) > 4 else 1000)))
