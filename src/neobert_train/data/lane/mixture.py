"""Which source the next chunk or micro-batch of a lane comes from.

Every source has a credit in tokens. Whatever is drawn, each source is credited its share of it by
weight, and the one that gave it pays for it all; the source with the highest credit is drawn from
next. So the tokens drawn follow the weights to within a few documents at any time, whatever the
lengths of the documents, and weights may change at any step (deficit round robin; Shreedhar and
Varghese, 1996, with one queue a source).
"""

from collections.abc import Sequence

from neobert_train.data.lane.randomness import keyed_generator


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
        """Return the source to draw from; None where all that have a weight are exhausted."""
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


def draw_initial_credits(
    seed: int, lane: int, weights: Sequence[float], scale: float
) -> list[float]:
    """Return the credits with which a lane begins, as if it had been running for a while.

    They differ from lane to lane, so that a rare source does not come in all lanes at once.

    Args:
        seed: of the run.
        lane: which one.
        weights: of the sources; one of them above 0.
        scale: tokens drawn at a time.
    """
    shares = [weight / sum(weights) for weight in weights]
    draws = keyed_generator(seed, "mixture", lane).random(len(weights)).tolist()
    # Between two draws from a source its credit climbs from about -scale to 0, at the cost of the
    # others; a source with nearly all of the weight stays where it is.
    credits = [-scale * draw * (1 - share) for draw, share in zip(draws, shares, strict=True)]
    total = sum(credits)
    return [credit - share * total for credit, share in zip(credits, shares, strict=True)]
