"""Conversations in rounds: while one goes on, the pages of the others wait in the host's memory, and come back in time.

The KV cache holds hardly more than one conversation. What a reply leaves in it is saved to the host beside the steps
that follow. A question that continues the conversation loads it again, and need not be computed from its beginning.
"""

from __future__ import annotations

from nanort.serving.engine import StepRecord
from nanort.serving.generate import load_model
from nanort.serving.sampling import SamplingParams

ROUNDS = (
    ("What is the longest river of Europe?", "Why is the sky blue?", "Who was Ada Lovelace?"),
    ("And which cities lie on it?", "And the sea as well?", "And what did she write?"),
    ("How deep is it there?", "Even at night?", "For which machine?"),
)
PARAMS = SamplingParams(max_new_tokens=24, ignore_eos=True)


def talk(host_cache: int) -> list[tuple[int, ...]]:
    """All replies of three conversations, a round of each in turn; prints what each round cost."""
    replies, moved = [], {"loads": 0, "saves": 0}

    def observe(step: StepRecord) -> None:
        moved["loads"] += len(step.batch.loads)
        moved["saves"] += len(step.batch.saves)

    with load_model("tiny", policy="serial", cache_tokens=192, host_cache=host_cache) as llm:
        llm.engine.observers.append(observe)
        texts: list[tuple[int, ...]] = [()] * len(ROUNDS[0])
        for number, questions in enumerate(ROUNDS):
            asked = found = 0
            for i, question in enumerate(questions):
                request = llm.engine.submit((*texts[i], *llm.tokenizer.encode(question)), PARAMS)
                while llm.engine.busy:
                    llm.engine.step()
                asked, found = asked + len(request.prompt), found + request.prefix_hits
                texts[i] = request.tokens
                replies.append(tuple(request.generated))
            print(f"{number + 1:5}{asked:15}{found:11}{asked - found:14}{moved['loads']:14}{moved['saves']:7}")
            moved.update(loads=0, saves=0)
        print(f"{llm.cache}, {llm.cache.host_used} pages on the host")
    return replies


def main() -> None:
    """The same conversations without and with pages on the host."""
    answers = []
    for host_cache in (0, 1 << 20):
        print(f"\n{host_cache >> 10} KiB of the host:" if host_cache else "Without the host:")
        print("round  prompt tokens  in cache  to compute  pages loaded  saved")
        answers.append(talk(host_cache))
    print(f"\nThe replies are {'the same' if answers[0] == answers[1] else 'not the same'}.")


if __name__ == "__main__":
    main()
