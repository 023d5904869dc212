"""Which source the next chunk or micro-batch of a lane comes from.

Every source has a credit in tokens. Whatever is drawn, each source is credited its share of it by
weight, and the one that gave it pays for it all; the source with the highest credit is drawn from
next. So the tokens drawn follow the weights to within a few documents at any time, whatever the
lengths of the documents, and weights may change at any step (deficit round robin; Shreedhar and
Varghese, 1996, with one queue a source).
"""

from collections.abc import Sequence

from neobert_train.data.randomness import keyed_generator


class Mixture:
    """The credits of the sources in one lane.

    Attributes:
        credits: tokens by which each source is behind its share; they sum to a constant.
        weights: of the sources; a source with weight 0 is not drawn from.
    """

    def __init__(self, credits: Sequence[float], weights: Sequence[float]) -> None:
        self.credits = list(credits)
        self.weights = list(weights)

    def choose(self, exhausted: Sequence[bool]) -> int | None:
        """The source to draw from; None where all that have a weight are exhausted."""
        best = None
        for source, credit in enumerate(self.credits):
            usable = self.weights[source] > 0.0 and not exhausted[source]
            if usable and (best is None or credit > self.credits[best]):
                best = source
        return best

    def charge(self, source: int, num_tokens: int, exhausted: Sequence[bool]) -> None:
        """Account for tokens that were drawn from a source."""
        if len(self.credits) == 1:
            return
        usable = [0.0 if gone else w for w, gone in zip(self.weights, exhausted, strict=True)]
        total = sum(usable)
        for index, weight in enumerate(usable):
            self.credits[index] += num_tokens * weight / total
        self.credits[source] -= num_tokens


def draw_initial_credits(seed: int, lane: int, num_sources: int, scale: float) -> list[float]:
    """Credits with which a lane begins.

    They differ from lane to lane, so that a rare source does not come in all lanes at once.

    Args:
        seed: of the run.
        lane: which one.
        num_sources: how many credits.
        scale: tokens drawn at a time; the credits lie within half of it around 0.
    """
    if num_sources == 1:
        return [0.0]
    draws = keyed_generator(seed, "mixture", lane).random(num_sources)
    return [float(scale * (draw - 0.5)) for draw in draws]
