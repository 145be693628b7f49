"""A run of a policy in an environment: every choice made, trained, and tested on fresh episodes.

::

    metrics.jsonl     one line a rollout
    checkpoints/      the newest two, exact
    model/            policy.safetensors and config.json, which `to_sb3` makes a model of stable-baselines3 of
    frames.png        some pictures of one test episode, where the environment draws itself
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from .. import rng
from ..core.step import Passes
from ..errors import CheckpointError, DataError, RecipeError, SelfdistillError
from ..evaluation.statistics import compare_paired, two_sided_t
from ..io import trust
from ..io.expressions import expression_name, one_line
from ..io.files import csv_text, remove_unfinished
from ..io.run_record import Request, read_record
from ..io.tensors import canonical
from ..methods.prior import read_most
from ..methods.registry import is_auto
from ..training import budget
from ..training.fit import choose_device
from ..training.shortlist import Trial, candidate_folder, foreword, refuse_budget, try_each
from ..training.task_type import Listeners
from .actors import Actor, SelectedColumns
from .environments import Environment, replays
from .episodes import Episodes, Player, play_test
from .generations import Lineage, PolicyTrainer
from .recipes import CONTINUED, MATCHED, RESTARTED, PolicyMethod, read_recipe
from .store import describe_space, load_policy, policy_arguments, read_config, registered_options, save_policy
from .teachers import read_teacher, teacher_path
from .training import Arm, Place, Trained, train

STEPS = 100_000  # of the environment, where none are asked for
ALONE = ("self_imitation()", "policy_peers()", "born_again_policy()")  # what auto() tries, beside a restart
TAUGHT, SEEING = ("kickstart()", "policy_distillation()"), ("privileged()",)  # with a teacher; with a better view
TEACHER_ROW = "its teacher"  # the row of one that was trained for the run
AUDITED = 100  # episodes of an audit, where no number is given
SHOWN = 6  # pictures of the strip
USED = {"lr", "clip", "save_seconds", "save_steps"}  # training options that mean something here
OWN_FIELDS = {
    "data",
    "method",
    "steps",
    "batch_size",
    "seed",
    "device",
    "control",
    "training",
    "raw_csv",
    "net",
    "sees",
    "teacher",
    "episodes",
    "engine",
    "deployment",
    "budget",
}
NOTHING_TAUGHT = (
    "nothing taught this policy but its reward; a second opinion has something to teach where a part of the state is "
    "hidden from the policy (--sees KEY), where the network is smaller (--net 8,8), where there is a teacher "
    "(--teacher ZIP), or among several policies (--method 'policy_peers()')"
)


class EnvironmentData(NamedTuple):
    """An environment as run.json describes data; ``tested`` is the number of test episodes."""

    environment: Environment
    digest: str
    steps: int
    tested: int = 0

    def describe(self) -> dict[str, Any]:
        """Name, task, steps and episodes, and a digest of id and spaces."""
        rows = {"steps": self.steps, "test": self.tested}
        return {
            "name": str(self.environment),
            "task": "control",
            "rows": rows,
            "classes": [],
            "noise": 0.0,
            "fingerprint": self.digest,
        }


class Outcome(NamedTuple):
    """A training of a run: its name, its folder below the run, and what came of it."""

    name: str
    folder: str
    policy: ActorCriticPolicy
    steps: int
    updates: int
    teacher_steps: int | None = None

    def scores(self, test: Episodes) -> dict[str, float | None]:
        """The figures of its test episodes, and what it took."""
        spent = {"env_steps": self.steps, "updates": self.updates}
        return {**test.figures(), **spent, "teacher_steps": self.teacher_steps}


@dataclass
class ControlRun:
    """A run of a policy with every choice made; ``teacher`` is where one that is not trained here comes from."""

    request: Request
    arm: Arm
    method: PolicyMethod
    expression: str
    teacher: str | None
    settings: dict[str, Any]
    data: EnvironmentData
    build: str
    note: str
    replays: bool

    def threads(self) -> int:
        """One: the networks are small, and environments take turns."""
        return torch.get_num_threads() if "CnnPolicy" in self.build else 1

    @property
    def player(self) -> Player:
        """How the policy is tested: as it will be deployed."""
        return Player(self.arm.environment, self.request.seed, self.request.deployment != "sampled")

    def train(self, folder: Path, listeners: Listeners, below: str = "") -> dict[str, Any]:
        """Train teacher, method and controls, from wherever they were cut; then play the test episodes, once.

        ``below`` is the folder of the method's training, below that of the run, where it is another one.
        """
        self._fit_into_budget()
        own, lineage, teacher = self.train_policy(folder / below, listeners)
        own = own._replace(folder=str(Path(below, own.folder)))
        product, outcomes = lineage.product, [own]
        if self.request.control and self.method.method is not None:
            outcomes += self._controls(folder, lineage.updates, own.teacher_steps, listeners)
        if teacher is not None:
            trained = str(Path(below, "teacher"))
            outcomes.append(Outcome(TEACHER_ROW, trained, teacher.policy, teacher.steps, teacher.updates))
        listeners.tell(f"the test episodes are played by {len(outcomes)} policies")
        tests = play_test(self.player, [one.policy for one in outcomes], self.request.episodes)
        if cut := sum(test.cut for test in tests):
            listeners.warn(f"{cut} test episodes had no end and were cut")
        save_policy(folder / "model", product.model, self.arm.environment, self.arm.hidden)
        frames = _draw(folder, self.player, product.policy)
        return self._result(folder, lineage, outcomes, tests, frames)

    def _fit_into_budget(self) -> None:
        """Take as many steps of the environment as the budget has room for, by the cost of two rollouts.

        Raises:
            DataError: it has room for none.
        """
        meter, key = budget.active(), "policy"
        if meter is None:
            return
        controls = 2 + self.can_continue() if self.request.control and self.method.method is not None else 0
        taught = self.method.needs_teacher and self.teacher is None
        method = 2.0 if self.method.method is not None else 1.0  # its extra steps, and those of its matched control
        if key not in meter.steps:
            begun, short = time.monotonic(), replace(self.arm, steps=2 * self.arm.per_rollout)
            with budget.unbounded():
                trained = train(short, Place(replays=self.replays))
            seconds = (time.monotonic() - begun) / 2 / budget.MARGIN
            meter.check_memory("a training of the policy")
            meter.passes["first rollouts"] = float(trained.steps + 3 * trained.updates * self.arm.batch_size)
            passes = meter.passes["first rollouts"] / 2
            trainings = method + taught + (method if controls else 0) + max(0, controls - 1)
            rest = meter.left()
            rollouts = int(min(rest.seconds / seconds, rest.passes / passes, trainings * self.arm.rollouts) / trainings)
            if not rollouts:
                raise DataError(
                    f"--budget {meter.text} has no room for a rollout of {self.arm.per_rollout} steps in each of its "
                    "trainings; give a larger one"
                )
            meter.steps[key] = min(self.arm.steps, rollouts * self.arm.per_rollout)
            if meter.steps[key] < self.arm.steps:
                meter.cut(f"{meter.steps[key]:,} steps of the environment in place of {self.arm.steps:,}: no more fit")
            meter.write()
        self.arm = replace(self.arm, steps=meter.steps[key])

    def train_policy(self, folder: Path, listeners: Listeners) -> tuple[Outcome, Lineage, Trained | None]:
        """Train the teacher, where it is trained here, and the method: what came of it, its trainings, the teacher."""
        teacher, steps = self._teacher(folder, listeners)
        lineage = self._method(folder, None if teacher is None else teacher.model, listeners)
        last = f"generations/{lineage.number}" if len(lineage.generations) > 1 else ""
        own = Outcome(self.expression, last, lineage.product.policy, lineage.steps, lineage.updates, steps)
        return own, lineage, teacher

    def can_continue(self) -> bool:
        """Whether the teacher can go on training: it has the network and the observation of the policy."""
        return self.teacher is not None and not self.arm.hidden and self._start() is not None

    def _place(self, folder: Path, name: str, listeners: Listeners) -> Place:
        saving = {key: value for key, value in self.request.training if key.startswith("save_")}
        progress = listeners.progress(name)
        return Place(folder, replays=self.replays, progress=progress, warn=listeners.warn, **saving)

    def _teacher(self, folder: Path, listeners: Listeners) -> tuple[Trained | None, int | None]:
        """A teacher that sees everything, trained first; and the environment steps of whatever teacher there is."""
        if self.teacher is not None:
            return None, teacher_steps(teacher_path(self.teacher))
        if not self.method.needs_teacher:
            return None, None
        arm = replace(self.arm, hidden=(), net=None, seed=rng.seed(self.arm.seed, "teacher") % 2**31)
        trained = train(arm, self._place(folder / "teacher", "its teacher, which sees everything", listeners))
        save_policy(folder / "teacher" / "model", trained.model, arm.environment)
        return trained, trained.steps

    def _method(self, folder: Path, teacher: Any, listeners: Listeners) -> Lineage:
        def place(name: str) -> Place:
            part = f", {name.replace('generations/', 'training ')}" if name else ""
            return self._place(folder / name, f"{self.expression}{part}", listeners)

        if self.method.training.start == "teacher":
            start = self._start()
            if start is None:
                raise DataError(
                    f"{self.teacher} goes on only with its own network, observations and normaliser, and those of this "
                    "run differ; give its --net, or take kickstart()"
                )
            return Lineage.of([train(self.arm, place(""), start)])
        return PolicyTrainer(
            self.method,
            self.arm,
            place,
            teacher=teacher or self.teacher,
            player=self.player,
            episodes=self.request.episodes or AUDITED,
            tell=listeners.tell,
        ).train()

    def _start(self) -> nn.Module | None:
        """The teacher's policy, to go on with; None where it has another network, or reads normalised observations."""
        env = self.arm.environment.make()
        teacher = read_teacher(self.teacher, env.observation_space, env.action_space, self.arm.hidden)
        actor = teacher.actor if isinstance(teacher, SelectedColumns) else teacher
        fits = isinstance(actor, Actor) and shapes(actor.policy) == shapes(self.arm.build(self.arm.vector()).policy)
        return actor.policy if isinstance(actor, Actor) and fits else None

    def _controls(self, folder: Path, updates: int, steps: int | None, listeners: Listeners) -> list[Outcome]:
        """The controls at equal environment steps: fresh, with equal gradient steps, and the teacher that goes on."""
        plans: list[tuple[str, str, Arm, nn.Module | None]] = [(RESTARTED, "restarted", self.arm, None)]
        epochs = self.arm.matched_epochs(updates)
        if epochs > self.arm.epochs:
            plans.append((MATCHED, "matched", replace(self.arm, epochs=epochs), None))
        if self.can_continue():
            plans.append((CONTINUED, "continued", self.arm, self._start()))
        outcomes = []
        for name, part, arm, begin in plans:
            trained = train(arm, self._place(folder / part, f"{name}, a control", listeners), begin)
            spent = steps if begin is not None else None
            outcomes.append(Outcome(name, part, trained.policy, trained.steps, trained.updates, spent))
        return outcomes

    def _result(
        self, folder: Path, lineage: Lineage, outcomes: Sequence[Outcome], tests: Sequence[Episodes], frames: str | None
    ) -> dict[str, Any]:
        scores = [one.scores(test) for one, test in zip(outcomes, tests, strict=True)]
        rest = [i for i, one in enumerate(outcomes) if i and one.name != TEACHER_ROW]
        differences = {outcomes[i].name: (tests[0].returns - tests[i].returns).tolist() for i in rest}
        tested = len(tests[0].returns)
        decided = [one for one in lineage.generations if one.get("decision")]
        first = {"generation": 0, "decision": {"accepted": True, "why": "generation 0: the first one"}}
        return {
            "kind": "control",
            "run": str(folder),
            "method": self.expression,
            "model": self.build,
            "parameters": sum(p.numel() for p in lineage.product.policy.parameters()),
            "data": self.data._replace(tested=tested, steps=lineage.steps).describe(),
            "seed": self.request.seed,
            "final_generation": lineage.number if decided else 0,
            "chosen": "method",
            "test": scores[0],
            "generations": [first, *decided] if decided else [{"generation": 0, "test": scores[0]}],
            "steps": lineage.steps,
            "seconds": round(lineage.seconds, 2),
            "against": {
                name: {"test": {"gain": c.difference, "half": c.half, "rows": tested, "verdict": c.verdict}}
                for name, c in compare_paired(differences, two_sided_t).items()
            },
            "control": {
                "deployment": "greedy" if self.player.greedy else "sampled",
                "frames": frames,
                "note": "" if self.method.method is not None else NOTHING_TAUGHT,
                "arms": [
                    {"name": one.name, "log": str(Path(one.folder, "metrics.jsonl")), "scores": score}
                    for one, score in zip(outcomes, scores, strict=True)
                ],
            },
        }


@dataclass
class AutoControlRun(ControlRun):
    """A run that trains a policy by each of several recipes; paired audit episodes choose one."""

    candidates: Sequence[ControlRun] = ()

    def train(self, folder: Path, listeners: Listeners, below: str = "") -> dict[str, Any]:
        """Every candidate from wherever it was cut; then the chosen one is the method of the run."""
        names, episodes = [one.expression for one in self.candidates], self.request.episodes or AUDITED

        def train_candidate(number: int) -> tuple[list[Trial], int]:
            one, title = self.candidates[number], f"candidate {number + 1} of {len(names)}: "
            told = replace(listeners, progress=lambda name: listeners.progress(title + name))
            own, lineage, _ = one.train_policy(folder / candidate_folder(number, names[number]), told)
            returns = one.player.play(own.policy, "audit", episodes).returns
            steps = own.steps + (own.teacher_steps or 0)
            return [Trial(names[number], (-returns).tolist(), steps, Passes(forward=steps), lineage.seconds)], number

        choice = try_each(names, train_candidate, names.index, listeners.tell)
        number = choice.kept[choice.chosen]
        result = self.candidates[number].train(folder, listeners, candidate_folder(number, names[number]))
        return {**result, "auto": choice.to_json("return")}


def shortlisted(request: Request) -> AutoControlRun:
    """The run of ``auto()``: a restart, and the recipes that the request has a teacher for; else those without one."""
    refuse_budget(request.budget)
    taught = TAUGHT if request.teacher is not None else SEEING if request.sees is not None else ALONE
    most = read_most(request.method)
    runs = [_candidate(request, expression) for expression in (RESTARTED, *taught)[:most]]
    names = [one.expression for one in runs]
    chooses = f"the mean return of {request.episodes or AUDITED} audit episodes, the same for all"
    lines = foreword(names, f"of {runs[0].arm.steps:,} environment steps each", chooses)
    note = "\n".join([*filter(None, [runs[0].note]), *lines])
    return AutoControlRun(
        **{**vars(runs[0]), "request": request, "expression": "auto()", "note": note}, candidates=runs
    )


def _candidate(request: Request, expression: str) -> ControlRun:
    """The run of a recipe; a restart has no teacher."""
    return prepare(replace(request, method=expression, teacher=None if expression == RESTARTED else request.teacher))


def shapes(policy: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shapes of a policy's weights by name."""
    return {name: tuple(value.shape) for name, value in policy.state_dict().items()}


def teacher_steps(source: Path) -> int | None:
    """The environment steps that a teacher took, its own teacher's included; None where nothing tells them."""
    try:
        if source.is_dir():
            test = read_record(source / "run.json")[0]["result"]["test"]
            return int(test["env_steps"]) + int(test.get("teacher_steps") or 0)
        with zipfile.ZipFile(source) as archive:
            return int(json.loads(archive.read("data"))["num_timesteps"])
    except (OSError, ValueError, KeyError, TypeError, SelfdistillError, zipfile.BadZipFile):
        return None


def choose_method(request: Request) -> tuple[PolicyMethod, str]:
    """The recipe of a request and its expression; what a request without one is trained with.

    Raises:
        RecipeError: there is no such recipe, or what it needs is missing.
    """
    default = RESTARTED if request.teacher is None else "kickstart()"
    default = default if request.sees is None else f"privileged(sees={request.sees!r})"
    expression = request.method or default
    name, method = expression_name(expression), read_recipe(expression)
    if method.sees is not None and request.sees is not None and method.sees != request.sees:
        if "sees" in expression:
            raise RecipeError(f"{expression} and --sees {request.sees} name two views; give one of them")
        method = replace(method, sees=request.sees)
    if method.teacher is not None and request.teacher is not None:
        raise RecipeError(f"{expression} and --teacher {request.teacher} name two teachers; give one of them")
    if request.teacher is not None and not method.needs_teacher:
        raise RecipeError(f"{name}() learns from no teacher from outside; leave --teacher out")
    if method.needs_teacher and method.sees is None and method.teacher is None and request.teacher is None:
        raise RecipeError(f'{name}() needs a teacher: --teacher ZIP|RUN, or {name}("teacher.zip")')
    if method.training.matched:
        raise RecipeError("restarted(matched=True) is a control beside a method with extra steps; give restarted()")
    return method, expression


def prepare(request: Request) -> ControlRun:
    """Make the environment and fill in what the request leaves open.

    Raises:
        DataError: there is no such environment, it is not served, or an option means nothing for one.
        RecipeError: there is no such recipe, or it has no teacher.
    """
    if is_auto(request.method):
        return shortlisted(request)
    refuse_other_options(request)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise DataError("a policy is trained by one process; start it without torchrun")
    method, expression = choose_method(request)
    environment = Environment.of(request.data, method.sees if request.sees is None else request.sees)
    env = environment.make()
    space, actions = env.observation_space, env.action_space
    arm = _arm(request, environment, environment.hidden(space))
    policy, _ = policy_arguments(space, arm.hidden, arm.net)
    layers = ",".join(map(str, arm.net or ((64, 64) if policy != "CnnPolicy" else (512,))))
    teacher = method.teacher if request.teacher is None else request.teacher
    if teacher is not None:
        read_teacher(teacher, space, actions, arm.hidden)  # before anything is trained
    exact = replays(environment, request.seed)
    notes = []
    if left_out := env.get_wrapper_attr("left_out"):
        notes.append(f"{environment}: the policy does not read {', '.join(left_out)} of the observation")
    if not exact:
        notes.append(f"{environment} does not replay: a run that is cut resumes at an episode's start, not bit for bit")
    if method.needs_teacher and teacher is None:
        notes.append(f"{expression}: a teacher that sees {environment.sees} is trained first, for as many steps")
    spec = env.unwrapped.spec
    described = {"observation": describe_space(space), "action": describe_space(actions), "sees": environment.sees}
    digest = hashlib.sha256(canonical({"id": str(environment), **described})).hexdigest()[:16]
    env.close()
    settings = {
        **{field.name: vars(arm)[field.name] for field in fields(arm) if field.name != "environment"},
        "net": arm.net and list(arm.net),
        "hidden": list(arm.hidden),
        "environment": {"id": spec.id if spec else environment.id, "kwargs": registered_options(environment.id)},
        "versions": {name: version(name) for name in ("gymnasium", "stable-baselines3")},
    }
    data = EnvironmentData(environment, digest, arm.rollouts * arm.per_rollout)
    build = f"{arm.engine.upper()}, {policy} of {layers}"
    return ControlRun(request, arm, method, expression, teacher, settings, data, build, "\n".join(notes), exact)


def _arm(request: Request, environment: Environment, hidden: tuple[str, ...]) -> Arm:
    """What decides the training of the policy."""
    training, steps = dict(request.training), request.steps or STEPS
    engine = request.engine or "ppo"
    if engine not in ("ppo", "a2c"):
        raise DataError(f"--engine is ppo or a2c, not {engine!r}")
    if request.deployment not in (None, "greedy", "sampled"):
        raise DataError(f"deployment is greedy or sampled, not {request.deployment!r}")
    usual = {"ppo": {"rollout": 128, "lr": 1e-3}, "a2c": {"rollout": 8, "lr": 7e-4}}[engine]
    arm = Arm(environment, steps, request.seed, engine, read_net(request.net), hidden, **usual)  # type: ignore[arg-type]
    rollout = max(1, min(arm.rollout, -(-steps // arm.environments)))
    return replace(
        arm,
        rollout=rollout,
        batch_size=min(request.batch_size or arm.batch_size, rollout * arm.environments),
        lr=training.get("lr", arm.lr),
        clip=training.get("clip", arm.clip),
        device=str(choose_device(request.device or "cpu")),
    )


def read_net(net: str | None) -> tuple[int, ...] | None:
    """The sizes of hidden layers.

    >>> read_net("8,8")
    (8, 8)

    Raises:
        DataError: they are no whole numbers from 1 on.
    """
    if net is None:
        return None
    if not re.fullmatch(r"[1-9]\d{0,4}(,[1-9]\d{0,4})*", net.replace(" ", "")):
        raise DataError(f"--net is sizes of hidden layers, such as 64,64, not {one_line(net, 40)!r}")
    return tuple(int(size) for size in net.split(","))


def refuse_other_options(request: Request) -> None:
    """Refuse what means nothing for an environment.

    Raises:
        DataError: such an option was given.
    """
    given = [field.name for field in fields(request) if vars(request)[field.name] != field.default]
    wrong = [name for name in given if name not in OWN_FIELDS]
    wrong += [name for name, _ in request.training if name not in USED]
    if wrong:
        remedy = {"model": "; give --net 64,64", "epochs": "; give --steps"}.get(wrong[0], "; leave it out")
        raise DataError(f"--{wrong[0].replace('_', '-')} has no meaning for an environment{remedy}")


# ---- pictures ------------------------------------------------------------------------------------------------------


def _draw(folder: Path, player: Player, policy: ActorCriticPolicy) -> str | None:
    """Write a strip of pictures of the first test episode; why there is none, or None."""
    try:
        from PIL import Image

        frames = player.frames(policy, "test", 0, most=1000)
        if not frames:
            return "the environment draws no pictures"
        chosen = [frames[i] for i in np.linspace(0, len(frames) - 1, SHOWN).astype(int)]
        height, width = chosen[0].shape[:2]
        size = (max(1, 160 * width // height), 160)
        strip = np.concatenate([np.asarray(Image.fromarray(frame).resize(size)) for frame in chosen], 1)
        Image.fromarray(strip).save(folder / "frames.png")
    except Exception as error:  # of the environment's own drawing, which the run can do without
        return one_line(error, 120)
    return None


def _write_gif(path: Path, frames: Sequence[NDArray[np.uint8]]) -> None:
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise DataError("--video needs the package pillow; pip install 'selfdistill[images]'") from error
    pictures = [Image.fromarray(frame) for frame in frames]
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    remove_unfinished(path.parent, path.name)
    pictures[0].save(unfinished, "GIF", save_all=True, append_images=pictures[1:], duration=33, loop=0)
    unfinished.replace(path)


# ---- episodes of a finished run ------------------------------------------------------------------------------------


_EPISODE = ("episode", "seed", "return", "length")


class PlayedEpisodes(NamedTuple):
    """Episodes of a finished policy: a row an episode."""

    rows: list[tuple[Any, ...]]
    note: str = ""

    def text(self, raw: bool = False) -> str:
        """The rows as CSV."""
        return csv_text([_EPISODE, *self.rows], raw)

    def records(self) -> list[dict[str, Any]]:
        """One mapping an episode."""
        return [dict(zip(_EPISODE, row, strict=True)) for row in self.rows]


def play_episodes(folder: Path, request: Request, count: int, video: Path | None) -> PlayedEpisodes:
    """Play fresh episodes with the final policy of a run, from the test's seeds on.

    Raises:
        CheckpointError: the run has no policy yet, or its environment is registered by code that is not trusted.
        DataError: the environment cannot be made, or draws nothing.
    """
    if not (folder / "model" / "config.json").exists():
        raise CheckpointError(f"{folder} has no model yet; finish it by `selfdistill resume {folder}`")
    saved = read_config(folder / "model")["environment"]
    environment = Environment(saved["module"], saved["id"], saved["sees"])
    for place, name in environment.code():
        trust.require_trust(place, name, folder / "model" / "config.json", folder)
    policy = load_policy(folder)
    player = Player(environment, request.seed, request.deployment != "sampled")
    played = player.play(policy, "test", count)
    rows = list(zip(range(1, count + 1), played.seeds, played.returns.tolist(), played.lengths.tolist(), strict=True))
    if video is not None:
        _record(player, policy, count, video)
    figures = played.figures()
    half = "" if figures["half"] is None else f" ± {figures['half']:.4g}"
    how = "greedy" if player.greedy else "sampled"
    cut = f"; {played.cut} had no end and were cut" if played.cut else ""
    return PlayedEpisodes(rows, f"mean return {figures['return']:.4g}{half}, {count} episodes, {how} actions{cut}")


def _record(player: Player, policy: ActorCriticPolicy, count: int, video: Path) -> None:
    """Write an animated GIF of each episode."""
    try:
        video.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{video} cannot be made ({error.strerror}); give another --video") from error
    for number in range(count):
        try:
            frames = player.frames(policy, "test", number, most=1000)
        except Exception as error:  # of the environment's own drawing
            raise DataError(
                f"{player.environment} cannot be drawn ({one_line(error, 120)}); leave --video out"
            ) from error
        if not frames:
            raise DataError(f"{player.environment} draws no pictures; leave --video out")
        _write_gif(video / f"episode-{number + 1}.gif", frames)
