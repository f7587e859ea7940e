"""Random prompts whose lengths are spread as those of a real trace, scaled to a tiny model's context."""

from __future__ import annotations

import numpy as np

from .client import Prompt

ASKED = (
    891,
    905,
    1090,
    1538,
    2306,
    3542,
    4596,
    5627,
    6909,
    8520,
    10328,
    12590,
    15368,
    18589,
    24396,
    34220,
    126195,
)
ANSWERED = (1, 13, 32, 87, 156, 223, 275, 315, 350, 381, 410, 442, 472, 513, 566, 664, 2000)
"""Tokens at 0, 1/16, ..., 16/16 of the 12,031 requests of Mooncake's conversation trace (FAST '25)."""
VOCABULARY = range(3, 256)
"""Both tiny models know these, and none of them is special."""


def _spread(quantiles: tuple[int, ...], most: int, least: int, draws: np.ndarray) -> list[int]:
    points = np.linspace(0.0, 1.0, len(quantiles))
    scaled = np.interp(draws, points, np.array(quantiles) * (most / quantiles[-1]))
    return [int(n) for n in np.maximum(scaled.round(), least)]


def make_prompts(
    count: int, seed: int, *, longest: int = 1500, most_tokens: int = 32, shared: int = 0
) -> list[Prompt]:
    """Draw ``count`` prompts of up to ``longest`` tokens, to be answered with up to ``most_tokens``.

    Every other one begins with the same ``shared`` tokens, as behind one system prompt.
    """
    random = np.random.default_rng(seed)
    lengths = _spread(ASKED, longest - shared, 1, random.random(count))
    answers = _spread(ANSWERED, most_tokens, 2, random.random(count))
    start = random.integers(VOCABULARY.start, VOCABULARY.stop, shared).tolist()
    made = []
    for index, (length, answer) in enumerate(zip(lengths, answers, strict=True)):
        tokens = random.integers(VOCABULARY.start, VOCABULARY.stop, length).tolist()
        made.append(Prompt((*(start if index % 2 else ()), *tokens), answer))
    return made
