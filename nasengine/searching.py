"""Search: a supernet, an algorithm and a task in the loop; from the API and the command line alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from nasengine import alphas as alphas_
from nasengine import cost
from nasengine.algorithm import Algorithm, load_state_dict, state_dict
from nasengine.architecture import Architecture
from nasengine.batches import Batches
from nasengine.budget import CostModel, Limits
from nasengine.config import (
    AnySpace,
    AnyTask,
    SearchSettings,
    read_config,
    resolve_device,
)
from nasengine.descent import refuse_early
from nasengine.drawing import changes, draw
from nasengine.errors import LimitError, ParallelError, RunError
from nasengine.evolution import Budget
from nasengine.footprint import Footprint
from nasengine.judging import Judge
from nasengine.launch import telling
from nasengine.loop import Loop, Observer, seeded
from nasengine.microbatches import Division, micro_batches, within_memory
from nasengine.parallel import ALONE, Ranks, local_device, start, sum_over_ranks, together
from nasengine.proposals import Candidate
from nasengine.run_directory import CHECKPOINT, Row, Run, read_record, read_tensors
from nasengine.search_plan import plan_search
from nasengine.seeding import generator
from nasengine.sharding import sharded
from nasengine.shared_run import SharedRun
from nasengine.space import Space
from nasengine.supernet import Mixture, Supernet
from nasengine.tables import csv_text
from nasengine.task import Batch, Task
from nasengine.trial import check_network

INHERITED = "inherited.safetensors"
WEIGHTS_OF_EPOCHS = "alphas.csv"
TRAIN, VALID, WEIGHTS, ALPHAS, RECALIBRATION, DERIVE = range(6)  # streams of random numbers
NOISE = 13  # also of random numbers, beside those of the other verbs
_TRIAL_STEPS = 2  # a schedule has two phases in so many


@dataclass(frozen=True)
class SearchResult:
    """What a finished search found.

    Attributes:
        path: the run directory.
        architecture: the one that was found.
        text: the architecture in the form that other tools exchange.
        record: all of run.json; `record["result"]` has the scores.
    """

    path: Path
    architecture: Architecture
    text: str
    record: dict[str, Any]


class SearchJob:
    """A search for the loop."""

    def __init__(
        self,
        space: Space,
        algorithm: Algorithm[Any],
        task: Task,
        settings: SearchSettings,
        observer: Observer | None = None,
        ranks: Ranks = ALONE,
        final: Space | None = None,
    ) -> None:
        self.ranks, self.final = ranks, final or space.final()
        self.space, self.algorithm, self.task, self.settings = space, algorithm, task, settings
        self.observer = observer or Observer()
        self.device = local_device(ranks, resolve_device(settings.device))
        table = settings.benchmark
        self.benchmark = None if table is None else space.benchmark(Path(table).expanduser())
        self.train_indices, self.valid_indices = task.split(settings.seed)
        self.train = self._batches(self.train_indices, TRAIN)
        self.valid = self._batches(self.valid_indices, VALID)
        self.epochs, self.steps_per_epoch = settings.epochs, len(self.train)
        self.judge = Judge(task, settings, self.train_indices, self.valid_indices, RECALIBRATION, self.device)
        self.limits = Limits(settings.max_params, settings.max_flops, settings.max_latency, settings.max_memory)
        self.footprint = Footprint(self.final, task.shapes, settings.latency, self._told)
        form = space.form(self.final)
        if self.limits:
            refuse_early(self.final, task.shapes, self.limits, self.footprint, form)
        with seeded(settings.seed, WEIGHTS), telling(self.observer.note):
            check_network(space, task.shapes, self.device)
        self.costs = CostModel(self.final, task.shapes, self.footprint, form) if self.limits else None
        if self.costs is not None:
            self.costs.check()
            self.costs.nearest(self.limits)  # a limit that nothing keeps is answered before anything is computed
        if ranks.world > 1 and settings.step_memory is not None:
            raise ParallelError(
                f"search.step_memory must be of one process, but there are {ranks.world}, which divide batches "
                "already; leave it out, or start without torchrun."
            )
        supernet, self.state = self._begun(self.epochs * self.steps_per_epoch)
        self.division = Division.of(supernet, settings.batch_size) if ranks.world == 1 else Division()
        self.architecture: Architecture | None = None
        self.weights: list[dict[str, float]] = []
        self.publish: Callable[[Sequence[Row]], object] = lambda rows: None

    def _begun(self, steps: int) -> tuple[Supernet, Any]:
        """A supernet, and the state before the first of so many steps, the same at every call."""
        with seeded(self.settings.seed, WEIGHTS):
            supernet: Supernet = on_device(self.space.supernet(self.task.shapes, self.task.loss), self.device)
            supernet.precision = self.settings.precision
            if self.limits.parameters or self.limits.multiply_adds:
                supernet.price = lambda mixture: self._price(mixture)  # a copied method would copy its job
            return supernet, self.algorithm.init(supernet, generator(self.settings.seed, ALPHAS), steps)

    def fit_memory(self) -> None:
        """Divides batches so that a step keeps `step_memory`, by trials. Raises SettingError."""
        if self.settings.step_memory is not None:
            self.observer.note("trials of a step tell how to divide batches, to keep search.step_memory")
            with within_memory("a trial of search.step_memory"):
                self.division.fit(self.settings.step_memory, self.step_bytes)

    def step_bytes(self, examples: int, count: int) -> int:
        """Bytes that a step on so many examples, in so many micro-batches, takes beyond what is held between steps."""
        _, state = self._begun(_TRIAL_STEPS)
        train, valid = (Batch(*(part[:examples] for part in batches[0])) for batches in (self.train, self.valid))
        with seeded(self.settings.seed, NOISE), micro_batches(count):
            step = partial(self.algorithm.step, state, train, valid)
            return max(cost.step_bytes(step, self.device) for _ in range(_TRIAL_STEPS))

    def step(self, step: int) -> dict[str, Tensor]:
        train, valid = self.train[step], self.valid[step]
        with self._sharded(step), micro_batches(self.division.count):
            info = self.algorithm.step(self.state, train, valid)
        measure = self.task.measure
        row = {
            "train_loss": info.train_loss,
            f"train_{measure.name}": measure(info.train_outputs, train.targets) / len(train.targets),
        }
        if info.valid_loss is None or info.valid_outputs is None:
            return self._of_all(row)
        return self._of_all(
            {
                "train_loss": info.train_loss,
                "valid_loss": info.valid_loss,
                **row,
                f"valid_{measure.name}": measure(info.valid_outputs, valid.targets) / len(valid.targets),
            }
        )

    @contextmanager
    def _sharded(self, step: int) -> Iterator[None]:
        """Where there are several processes, each draws what dropout and the like drop by a generator of its own."""
        if self.ranks.world == 1:
            yield
            return
        with sharded(self.ranks, self.settings.norms), seeded(self.settings.seed, NOISE, step, self.ranks.rank):
            yield

    def _of_all(self, row: dict[str, Tensor]) -> dict[str, Tensor]:
        """The numbers of the whole batch."""
        if self.ranks.world == 1:
            return row
        numbers = torch.stack([number.detach().to(torch.float64).cpu() for number in row.values()])
        return dict(zip(row, sum_over_ranks(numbers) / self.ranks.world, strict=True))

    def end_epoch(self, epoch: int) -> Row:
        architecture = self.algorithm.derive(self.state, self._budget(None))
        changed = (
            changes(self.space.graphs(self.architecture), self.space.graphs(architecture)) if self.architecture else []
        )
        self.architecture = architecture
        for text in (*changed, self.space.warning(architecture)):
            if text:
                self.observer.note(text)
        full, mixture = self.algorithm.supernet(self.state), self.algorithm.mixture(self.state)
        self._note_weights(epoch, full, mixture)
        supernet, derived = self.judge.supernet(full, mixture), self.judge.subnet(full, architecture)
        return {
            f"supernet_{self.task.measure.name}": supernet,
            f"derived_{self.task.measure.name}": derived,
            "gap": supernet - derived,
            "alpha_entropy": alphas_.entropy({k: v for k, v in mixture.items() if isinstance(v, Tensor)}),
            "changed": len(changed),
            **self.algorithm.indicators(self.state),
            **self.space.indicators(architecture),
            **self._known(architecture),
            "architecture": self.space.write(architecture),
        }

    def finish(self, run: Run) -> dict[str, Any]:
        full, mixture = self.algorithm.supernet(self.state), self.algorithm.mixture(self.state)
        budget = self._budget(full)
        architecture = self.algorithm.derive(self.state, budget)
        self.space.check(self.space.choices(self.task.shapes), architecture)
        if not budget.allows(architecture):
            raise LimitError(
                f"An algorithm must derive an architecture that keeps the limits, but {self.algorithm.name!r} did not; "
                "its derive(state, budget) must heed the budget."
            )
        supernet, derived = self.judge.supernet(full, mixture), self.judge.subnet(full, architecture)
        self._write_inherited(run, full, architecture)
        text, graphs = self.space.write(architecture), self.space.graphs(architecture)
        for suffix in ("svg", "png"):
            run.write_file(f"cells.{suffix}", lambda path: draw(graphs, path))
        run.write_text("genotype.txt", text + "\n")
        run.write_text("architecture.txt", str(architecture).replace(" ", "\n") + "\n")
        return {
            "architecture": str(architecture),
            "genotype": text,
            f"supernet_{self.task.measure.name}": supernet,
            f"derived_{self.task.measure.name}": derived,
            **self.cost(architecture),
            "trained_with": self.space.form(self.final),
            **self._known(architecture),
        }

    def propose(self, count: int) -> list[Candidate]:
        """Different candidates of the search, the derived one first, within its limits."""
        return self.algorithm.propose(self.state, count, self._budget(self.algorithm.supernet(self.state)))

    def state_dict(self) -> dict[str, Any]:
        return {
            "algorithm": state_dict(self.state),
            "architecture": str(self.architecture) if self.architecture else "",
            "weights": self.weights,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        load_state_dict(self.state, state["algorithm"])
        self.architecture = Architecture.parse(state["architecture"]) if state["architecture"] else None
        self.weights = list(state.get("weights", []))

    def _note_weights(self, epoch: int, full: Supernet, mixture: Mixture) -> None:
        """Adds the row of an epoch to alphas.csv: the weights of all soft choices."""
        soft = {label: row.tolist() for label, row in mixture.items() if isinstance(row, Tensor)}
        named = {
            f"{label}={option}": round(weight, 6)
            for label, row in soft.items()
            for option, weight in zip(full.choices[label].options, row, strict=True)
        }
        if named:
            self.weights.append({"epoch": epoch, **named})
            self.publish(self.weights)

    def _known(self, architecture: Architecture) -> dict[str, float]:
        """What the benchmark says of an architecture, nothing without one."""
        found = self.benchmark(architecture) if self.benchmark is not None else {}
        return {f"benchmark_{name}": value for name, value in found.items()}

    def _batches(self, indices: Tensor, stream: int) -> Batches:
        seed, augment = self.settings.seed, self.task.search_augment
        return Batches(
            self.task,
            indices,
            self.settings.batch_size,
            seed=seed,
            stream=stream,
            augment=augment,
            device=self.device,
            shard=self.ranks.rank,
            shards=self.ranks.world,
        )

    def _budget(self, full: Supernet | None) -> Budget:
        """What may be spent on deriving; with a supernet, its subnets may be judged."""
        judge = None if full is None else lambda architecture: self.judge.subnet(full, architecture)
        return Budget(self.limits, self.costs, judge, generator(self.settings.seed, DERIVE), self.observer.note)

    def _price(self, mixture: Mixture) -> Tensor | float:
        assert self.costs is not None
        return self.settings.cost_weight * self.limits.excess(self.costs.expected(mixture))

    def cost(self, architecture: Architecture) -> dict[str, Any]:
        """Parameters and multiply-adds of the derived network in its final form, and what else is limited."""
        final, shapes = self.final, self.task.shapes
        with torch.device("meta"):
            parameters = cost.parameters(final.build(architecture, shapes))
        multiply_adds = cost.multiply_adds(lambda: final.build(architecture, shapes), shapes)
        latency = self.footprint.facts(architecture) if self.limits.latency else {}
        memory = {"memory": self.footprint.memory(architecture)} if self.limits.memory else {}
        return {"parameters": parameters, "multiply_adds": multiply_adds, **latency, **memory}

    def _told(self, stage: str, done: int, total: int) -> None:
        if stage == "networks" and done == 0:
            self.observer.note(f"{total} networks are measured end-to-end, for the table of latencies")

    def _write_inherited(self, run: Run, full: Supernet, architecture: Architecture) -> None:
        """The weights of the architecture in the supernet, where its stand-alone network can take them."""
        weights = self.judge.extracted(full, architecture).state_dict()
        with torch.device("meta"):
            alone = self.final.build(architecture, self.task.shapes).state_dict()
        if {name: tensor.shape for name, tensor in weights.items()} == {n: t.shape for n, t in alone.items()}:
            run.write_bytes(INHERITED, packed(weights))


def packed(weights: Mapping[str, Tensor]) -> bytes:
    """Tensors as a file of safetensors, which cannot hold two names for one tensor: copies."""
    return save({name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in weights.items()})


def on_device(module: nn.Module, device: torch.device) -> Any:
    """The module on a device, in the memory format in which convolutions are fastest."""
    return module.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def search(
    space: AnySpace | None = None,
    algorithm: str | type[Algorithm[Any]] | Algorithm[Any] | None = None,
    task: AnyTask | None = None,
    *,
    settings: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    observer: Observer | None = None,
) -> SearchResult:
    """Searches a space with an algorithm on a task.

    Args:
        space: a name, class or instance; "darts" unless `config` has another.
        algorithm: a name, class or instance; "rarts" unless `config` has another.
        task: a data spec such as "digits", "cifar10:PATH" or "file.py:name", or a Task; "digits" unless `config` has
            another.
        settings: texts such as "algo.beta=5" or "search.epochs=10"; "final.channels=16" is of the network to train,
            for which limits hold.
        config: plain values as `record["config"]` of an earlier run has them.
        out: the run directory; results/<task>/<space>/<algo>/seed-<n> by default.
        resume: go on with the run in `out`, whose configuration is then the default; one that is finished answers
            anew if the limits differ and nothing else.
        observer: sees the run; where there are several processes, that of rank 0 alone.

    Under torchrun the processes divide every batch and search as one does; rank 0 writes the run, and all answer alike.

    Raises:
        NasengineError: see nasengine.errors; InterruptedRun after SIGINT or SIGTERM.
    """
    ranks = start()
    observer = observer if observer is not None and ranks.first else Observer()
    if resume and out is not None:
        config = {**read_config(Path(out), "search", ranks), **(config or {})}
    with together(ranks):
        plan = plan_search(space=space, algorithm=algorithm, task=task, settings=settings, config=config)
        job = SearchJob(plan.space, plan.algorithm, plan.task, plan.settings, observer, ranks, plan.final)
        path = Path(out) if out is not None else plan.default_out
        if plan.settings.step_memory is not None and not (resume and "micro_batches" in read_record(path)):
            job.fit_memory()
        facts = {"task": plan.task.name, "fingerprint": plan.task.fingerprint}
    with _opened(ranks, resume, path, plan.config, facts) as run, seeded(plan.settings.seed, TRAIN):
        job.publish = lambda rows: run.write_text(WEIGHTS_OF_EPOCHS, csv_text(rows))
        result = Loop(run, job, observer, plan.settings.checkpoint_seconds)()
        architecture = Architecture.parse(result["architecture"])
        return SearchResult(path, architecture, str(result["genotype"]), run.record)


def _opened(ranks: Ranks, resume: bool, path: Path, config: Mapping[str, Any], facts: Mapping[str, Any]) -> Run:
    if ranks.world > 1:
        return SharedRun.open(ranks, resume, path, "search", config, facts)
    return (Run.resume if resume else Run.start)(path, "search", config, facts)


def open_search(path: Path | str, task: AnyTask | None = None) -> SearchJob:
    """The search in a run directory as its last checkpoint left it: supernet, judge, and what derives architectures.

    Args:
        path: the run directory of a search, finished or not.
        task: its data again, where they were a Task.

    Raises:
        RunError: there is no search with a checkpoint.
    """
    path = Path(path)
    plan = plan_search(task=task, config=read_config(path, "search"))
    job = SearchJob(plan.space, plan.algorithm, plan.task, plan.settings, final=plan.final)
    if not (path / CHECKPOINT).exists():
        raise RunError(f"A search must have saved a checkpoint to be opened, but the one in {path} has not; resume it.")
    job.load_state_dict(read_tensors(path / CHECKPOINT, job.device)["state"]["job"])
    return job
