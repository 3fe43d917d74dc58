"""How a release is trained: one dial (the preset), and what may be changed about it."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides what comes out of training, beside the clicks.

    Attributes:
        name: what the rest was derived from, for the record.
        window_length: L, longest window.
        interests: K.
        width: D.
        routing_iterations: rounds of routing.
        cosine: compare unit vectors; otherwise raw inner products.
        hidden: width of the ReLU layer after the capsules; 0 for none.
        attention_power: p of label-aware attention; infinity for the likeliest interest alone.
        temperature: similarities are divided by it in the softmax.
        sampler: negatives by "log_uniform" popularity rank (Zipf), by "popularity", or "uniform".
        negatives: negatives per batch, shared by its examples.
        correct_sampling: subtract the log of the chance of being drawn.
        targets: clicks to predict from one window.
        horizon: they are drawn from this many clicks after it.
        routing_noise: standard deviation of the initial routing logits.
        epochs: passes over all positions; a fraction stops within the pass.
        batch_size: examples per step.
        learning_rate: of Adam; falls to zero along a cosine after a warm-up of a twentieth.
        min_item_clicks: items clicked fewer times are left out.
        holdout: newest share of the clicks, by time, kept for evaluation.
        seed: of everything random.
        threads: of torch.
    """

    name: str = "default"
    window_length: int = 50
    interests: int = 4
    width: int = 64
    routing_iterations: int = 3
    cosine: bool = True
    hidden: int = 0
    attention_power: float = math.inf
    temperature: float = 0.1
    sampler: str = "log_uniform"
    negatives: int = 1024
    correct_sampling: bool = True
    targets: int = 4
    horizon: int = 100
    routing_noise: float = 1.0
    epochs: float = 1.0
    batch_size: int = 512
    learning_rate: float = 3e-3
    min_item_clicks: int = 1
    holdout: float = 0.05
    seed: int = 0
    threads: int = 2

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be {bound}, got {getattr(self, name)}"
            for name, bound, fine in (
                ("window_length", "at least 1", self.window_length >= 1),
                ("interests", "at least 1", self.interests >= 1),
                ("width", "at least 2", self.width >= 2),
                ("routing_iterations", "at least 1", self.routing_iterations >= 1),
                ("temperature", "positive", self.temperature > 0),
                ("sampler", f"one of {', '.join(SAMPLERS)}", self.sampler in SAMPLERS),
                ("negatives", "at least 1", self.negatives >= 1),
                ("targets", "from 1 to horizon", 1 <= self.targets <= self.horizon),
                ("epochs", "positive", self.epochs > 0),
                ("batch_size", "at least 1", self.batch_size >= 1),
                ("learning_rate", "positive", self.learning_rate > 0),
                ("min_item_clicks", "at least 1", self.min_item_clicks >= 1),
                ("holdout", "from 0 to below 1", 0 <= self.holdout < 1),
                ("threads", "at least 1", self.threads >= 1),
            )
            if not fine
        ]
        if problems:
            raise ValueError("; ".join(problems))

    def hyper_parameters(self) -> dict[str, bool | int | float | str]:
        """For the manifest; infinity as the text "inf", since JSON has none."""
        values = dataclasses.asdict(self)
        del values["name"], values["seed"]
        return {k: str(v) if v == math.inf else v for k, v in values.items()}


SAMPLERS: Final = ("log_uniform", "popularity", "uniform")

PRESETS: Final = {
    "default": TrainingConfig(),
    # As published: raw inner products, a ReLU layer after the capsules, the next click as the one
    # target, hard label-aware attention (the paper finds that the larger p the better).
    "paper": TrainingConfig(
        name="paper", cosine=False, hidden=256, temperature=1.0, targets=1, horizon=1
    ),
}
