"""The probes on shipped texts as tasks, which need no data and seconds."""

from collections.abc import Sequence
from typing import Any

from neobert_train.evaluation.candidates import Candidate
from neobert_train.evaluation.cells import Measurement
from neobert_train.evaluation.conditions import Conditions
from neobert_train.evaluation.embedder import embed_texts, load_embedder
from neobert_train.evaluation.metrics import compute_score
from neobert_train.evaluation.state_of_the_union import PROBES, list_paragraphs
from neobert_train.evaluation.tasks import SCORE
from neobert_train.files import hash_json


class ProbeTask:
    """A linear model on the mean hidden states of paragraphs of addresses."""

    seeds: Sequence[int] = (0,)

    def __init__(self, name: str, max_length: int) -> None:
        """Take the shipped paragraphs.

        Args:
            name: of the probe.
            max_length: tokens after which paragraphs are cut.
        """
        self.name, self._max_length, self._probe = name, max_length, PROBES[name]
        self.scoring, self.labels = self._probe.scoring, self._probe.list_labels()
        self.digest = hash_json([list_paragraphs().texts, self.labels.tolist()])

    def list_settings(self) -> list[dict[str, Any]]:
        """Return the one setting of vectors."""
        return [{"max_length": self._max_length}]

    def measure(
        self, candidate: Candidate, settings: dict[str, Any], seed: int, conditions: Conditions
    ) -> Measurement:
        """Return the score, with the answers for the test paragraphs."""
        model = load_embedder(candidate, settings["max_length"], conditions)
        features = embed_texts(model, list_paragraphs().texts, conditions.batch_tokens)
        answers = self._probe.answer(features)
        score = compute_score(self.scoring, answers, self.labels)
        return Measurement({SCORE: score}, answers.tolist())

    def estimate_flops(self, candidate: Candidate, settings: dict[str, Any]) -> float:
        """Return 2 operations a parameter and token; a text has a token for every four characters."""
        characters = sum(map(len, list_paragraphs().texts))
        return 2.0 * candidate.num_parameters * characters / 4
