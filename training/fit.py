"""The training loop.

B users, L window length, K interests, D vector width, T targets, S negatives.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from training import ranks
from training.checkpoint import Checkpoint, CheckpointError, Purpose, State
from training.curve import Curve
from training.item_fields import ItemFields
from training.item_graph import ItemGraph
from training.loss import NegativeSampler, full_softmax, log_uniform, popularity, sampled_softmax
from training.model import Mind, attend, slot_counts
from training.preset import TrainingConfig
from training.sequences import Batch, Learnable, item_counts


@dataclass(frozen=True)
class Progress:
    """How far a stage of `train_release` is.

    Attributes:
        stage: "choosing", "training", "evaluating" or "exporting".
        done: steps done, of `total`.
        total: steps of this stage.
        loss: smoothed training loss; None outside training.
        recall: Recall@20 on a sample of held-out clicks, when last measured; None where it is not.
    """

    stage: str
    done: int
    total: int
    loss: float | None = None
    recall: float | None = None

    def __str__(self) -> str:
        """As shown while one waits."""
        loss = "" if self.loss is None else f", loss {self.loss:.3f}"
        recall = "" if self.recall is None else f", recall {100 * self.recall:.1f} %"
        return f"{self.stage}{loss}{recall}"


ProgressCallback = Callable[[Progress], None]


def build_model(
    sequences: Learnable, items: int, config: TrainingConfig, fields: ItemFields | None = None
) -> Mind:
    """An untrained model for so many items; its graph is of the sequences to train on.

    It has a profile if the sequences have.

    Raises:
        ValueError: there is a profile, and `config.hidden` is 0.
    """
    profile: tuple[int, ...] = ()
    if sequences.profiles is not None:
        profile = tuple((sequences.profiles.max(axis=0, initial=0) + 1).tolist())
    graph = None
    if config.smoothing:
        graph = ItemGraph.of_clicks(
            sequences, items, reach=config.graph_reach, most=config.neighbours
        )
    with torch_threads(config.threads):
        model = Mind(
            items,
            width=config.width,
            interests=config.interests,
            iterations=config.routing_iterations,
            cosine=config.cosine,
            average=config.average,
            hidden=config.hidden,
            fade=config.fade,
            graph=graph,
            smoothing=config.smoothing,
            spectral=config.spectral,
            fields=fields,
            profile=profile,
            seed=config.seed,
        )
    ranks.share_the_first(model)
    return model


def fit(
    model: Mind,
    sequences: Learnable,
    config: TrainingConfig,
    progress: ProgressCallback | None = None,
    *,
    checkpoint: Checkpoint | None = None,
    curve: Curve | None = None,
) -> float:
    """Train a model in place; the same seed and threads give the same bits.

    Args:
        model: untrained.
        sequences: rows 1..N.
        config: how.
        progress: told about every step.
        checkpoint: written now and then and at the end; training goes on from it if it is there,
            and ends with the same bits as if it had never stopped.
        curve: gathers loss and recall.

    Returns:
        The smoothed loss at the end.

    Raises:
        CheckpointError: the checkpoint is of another training.
    """
    curve = curve or Curve()
    rng = np.random.default_rng([config.seed, 1])
    noise = torch.Generator().manual_seed(config.seed)
    counts = item_counts(sequences, len(model.table) - 1)
    sampler = NegativeSampler(
        log_uniform(counts)
        if config.sampler == "log_uniform"
        else popularity(counts, 1.0 if config.sampler == "popularity" else 0.0)
    )
    correction = sampler.log_probability if config.correct_sampling else None
    whole = config.negatives >= len(counts)
    examples = min(sequences.example_count * config.epochs, config.examples)
    steps = math.ceil(examples / config.batch_size)
    optimiser = torch.optim.Adam(model.parameters(), lr=config.learning_rate, fused=True)
    smoothed = math.nan
    done = 0
    if checkpoint is not None:
        purpose = Purpose.of(sequences, len(counts), config, model.item_fields)
        if (state := checkpoint.load(purpose)) is not None:
            state.restore(model, optimiser, noise)
            done, smoothed = state.step, state.smoothed
            curve.resume(state.points)
        if ranks.as_the_first([done]) != [done]:
            raise CheckpointError("ranks read different checkpoints; their folder must be shared")
    model.train()
    with torch_threads(config.threads):
        for step, batch in enumerate(_batches(sequences, rng, config, steps), start=1):
            negatives = None if whole else sampler.draw(rng, config.negatives)
            if step <= done:
                continue  # drawn again for what comes after: a hundredth of a step's time
            for group in optimiser.param_groups:
                group["lr"] = config.learning_rate * _rate(step - 1, steps)
            loss = _loss(model, batch, negatives, correction, noise, config)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            ranks.add_gradients(model)
            optimiser.step()
            value = ranks.added(loss.item())
            smoothed = value if math.isnan(smoothed) else 0.98 * smoothed + 0.02 * value
            curve.add(step, steps, smoothed, model)
            if progress is not None:
                progress(Progress("training", step, steps, smoothed, curve.recall))
            first = ranks.rank() == 0
            if checkpoint is not None and first and (checkpoint.due or step == steps):
                at = State.of(step, smoothed, curve.points, model, optimiser, noise)
                checkpoint.save(at, purpose)
    model.eval()
    return smoothed


def _loss(
    model: Mind,
    batch: Batch,
    negatives: Tensor | None,
    correction: Tensor | None,
    noise: torch.Generator,
    config: TrainingConfig,
) -> Tensor:
    kept = linked = None
    if config.item_dropout:
        kept = torch.rand(len(model.table), 1, generator=noise) >= config.item_dropout
        if model.fields is not None and config.unlinked:
            # An item without fields would have nothing at all.
            linked = kept | (model.fields.present == 0)
            linked |= torch.rand(kept.shape, generator=noise) >= config.unlinked
    table = model.item_table(kept, linked)  # (N+1, D)
    rows = torch.from_numpy(batch.rows)  # (B, L)
    targets = torch.from_numpy(batch.targets)  # (B, T)
    logits = torch.empty(*rows.shape, config.interests).normal_(
        0, config.routing_noise, generator=noise
    )
    profiles = None if batch.profiles is None else torch.from_numpy(batch.profiles)  # (B, P)
    share = ranks.share()  # after all noise is drawn, so that every rank goes on with the same
    rows, targets, logits = rows[share], targets[share], logits[share]
    profiles = None if profiles is None else profiles[share]
    mask = rows > 0
    vectors = functional.embedding(rows, table)  # (B, L, D)
    interests, _ = model.encode(vectors, mask, logits, profiles)  # (B, K, D)
    counts = slot_counts(mask.sum(dim=1), config.interests)
    slots = torch.arange(config.interests) < counts.unsqueeze(1)  # (B, K)
    scale = 1 / config.temperature
    labels = functional.embedding(targets, table)  # (B, T, D)
    users = attend(interests, slots, labels, config.attention_power, scale)  # (B, T, D)
    # A window of unknown items only has no interest to learn from.
    targets = torch.where((counts > 0).unsqueeze(1), targets, 0)
    if negatives is None:
        mean = full_softmax(users, targets, table, config.temperature)
    else:
        mean = sampled_softmax(users, targets, table, negatives, correction, config.temperature)
    return ranks.share_of_mean(mean, (targets > 0).sum())


def _batches(
    sequences: Learnable, rng: np.random.Generator, config: TrainingConfig, steps: int
) -> Iterator[Batch]:
    done = 0
    while done < steps:
        for batch in sequences.epoch(
            rng,
            batch_size=config.batch_size,
            window_length=config.window_length,
            targets=config.targets,
            horizon=config.horizon,
            batches=steps - done,
        ):
            yield batch
            done += 1


def _rate(step: int, steps: int) -> float:
    warm_up = max(1, steps // 20)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Use so many threads within torch, and put the number back afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
