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
        average: one interest, the average of the window, in place of routing.
        hidden: width of the ReLU layer after the capsules; 0 for none.
        attention_power: p of label-aware attention; infinity for the likeliest interest alone.
        temperature: similarities are divided by it in the softmax.
        sampler: negatives by "log_uniform" popularity rank (Zipf), by "popularity", or "uniform".
        negatives: negatives per batch, shared by its examples; as many as there are items, or
            more, for the softmax over all of them.
        correct_sampling: subtract the log of the chance of being drawn.
        targets: clicks to predict from one window.
        horizon: they are drawn from this many clicks after it.
        routing_noise: standard deviation of the initial routing logits.
        fade: a click counts e^-fade for every click after it; 0 if all count alike.
        fades: of which the one is taken that recommends best to users held out; none to take
            `fade` as it is.
        trial: share of the examples that each of them is tried with.
        warm: share of the epochs and of the examples when starting from the previous release.
        smoothing: weight of an item's neighbours in its vector, over that of its own; 0 for none.
        graph_reach: items are neighbours when clicked this close to each other.
        neighbours: an edge is kept if it is among the so many heaviest of either item.
        spectral: start the item table from the graph's leading eigenvectors; otherwise at random.
        spectral_epochs: where one of `fades` above 0 is taken, so that the order of clicks counts,
            the table starts spectrally, and so many epochs are enough; 0 for never.
        spectral_reach: `graph_reach` there.
        marks: colours by which a search leaves out own items, see `training.marks`: so many numbers
            more in each vector; 0 for none.
        trial_marks: so many where they let the trial of `fades` recommend better; 0 for never.
        item_dropout: share of items without their id's vector, drawn anew each step: they have only
            their fields' and their neighbours'.
        unlinked: share of those that have no neighbours either, as an item that is new; of items
            with fields only.
        epochs: passes over all positions; a fraction stops within the pass.
        examples: most examples in all; on a long log there are fewer passes.
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
    width: int = 128
    routing_iterations: int = 3
    cosine: bool = True
    average: bool = False
    hidden: int = 0
    attention_power: float = math.inf
    temperature: float = 0.1
    sampler: str = "uniform"
    negatives: int = 4096
    correct_sampling: bool = True
    targets: int = 2
    horizon: int = 100
    routing_noise: float = 1.0
    fade: float = 0.0
    fades: tuple[float, ...] = (0.0, 0.2)
    trial: float = 0.1
    warm: float = 0.5
    smoothing: float = 3.0
    graph_reach: int = 3
    neighbours: int = 64
    spectral: bool = False
    spectral_epochs: float = 3.0
    spectral_reach: int = 2
    marks: int = 0
    trial_marks: int = 64
    item_dropout: float = 0.2
    unlinked: float = 1.0
    epochs: float = 8.0
    examples: int = 1_500_000
    batch_size: int = 512
    learning_rate: float = 2e-3
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
                ("interests", "1 for an average", self.interests == 1 or not self.average),
                ("temperature", "positive", self.temperature > 0),
                ("sampler", f"one of {', '.join(SAMPLERS)}", self.sampler in SAMPLERS),
                ("negatives", "at least 1", self.negatives >= 1),
                ("targets", "from 1 to horizon", 1 <= self.targets <= self.horizon),
                ("fade", "at least 0", self.fade >= 0),
                ("fades", "at least 0 each", all(fade >= 0 for fade in self.fades)),
                ("trial", "above 0 and at most 1", 0 < self.trial <= 1),
                ("warm", "above 0 and at most 1", 0 < self.warm <= 1),
                ("smoothing", "at least 0", self.smoothing >= 0),
                ("graph_reach", "at least 1", self.graph_reach >= 1),
                ("neighbours", "at least 1", self.neighbours >= 1),
                ("spectral_epochs", "at least 0", self.spectral_epochs >= 0),
                ("spectral_reach", "at least 1", self.spectral_reach >= 1),
                ("marks", "at least 0", self.marks >= 0),
                ("marks", "0 without cosine", self.cosine or not self.marks),
                ("trial_marks", "at least 0", self.trial_marks >= 0),
                ("item_dropout", "from 0 to below 1", 0 <= self.item_dropout < 1),
                ("unlinked", "from 0 to 1", 0 <= self.unlinked <= 1),
                ("epochs", "positive", self.epochs > 0),
                ("examples", "at least 1", self.examples >= 1),
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
        applied = ("name", "seed", "fades", "trial", "warm")
        for name in (*applied, "spectral_epochs", "spectral_reach", "trial_marks"):
            del values[name]
        return {k: str(v) if v == math.inf else v for k, v in values.items()}


SAMPLERS: Final = ("log_uniform", "popularity", "uniform")

# As published: raw inner products; capsules, with the profile where there is one, through a ReLU
# layer; the next click as the one target; hard label-aware attention, p → ∞ (the larger p, the
# better and faster the paper found it to be); three rounds of routing from logits of standard
# deviation 1; as many interests as log2 of the clicks; sampled softmax with the correction that
# TensorFlow's makes; all clicks alike. Item and profile fields come with the data: see
# `ItemFields` and `Sequences.profiles`.
#
# Where the paper leaves it open, or this departs from it:
# - It has "several ReLU layers", and does not say how many, how wide, or what comes last. Here it
#   is one of 256 and a linear layer down to D: a ReLU at the end would keep interests to positive
#   coordinates, where items are not kept.
# - p of a negative product: see `attend`. Irrelevant to p → ∞.
# - It is served with logits that the item seeds, not with random ones: see `Mind.served_logits`.
# - Gradients pass through the last round of routing only: see `route`.
# - Width, negatives, epochs and learning rate are ours, chosen for data of this size.
_PAPER: Final = TrainingConfig(
    name="paper",
    cosine=False,
    hidden=256,
    temperature=1.0,
    sampler="log_uniform",
    negatives=1024,
    targets=1,
    horizon=1,
    fades=(),
    smoothing=0.0,
    item_dropout=0.0,
)

PRESETS: Final = {
    "default": TrainingConfig(),
    "paper": _PAPER,
    # One vector per user, the average of the window through a ReLU layer: the candidate generator
    # of Covington et al., "Deep neural networks for YouTube recommendations", RecSys 2016, from the
    # clicks alone.
    "youtube-dnn": dataclasses.replace(_PAPER, name="youtube-dnn", interests=1, average=True),
}

# Not a preset that a release can be trained with: what `training.max_mf` reads of it.
MAX_MF: Final = TrainingConfig(
    name="maxmf",
    width=64,
    negatives=512,
    epochs=20.0,
    examples=3_000_000,
    batch_size=1024,
    learning_rate=3e-3,
)
